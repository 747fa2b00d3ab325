//! The store that forgets when it is dropped.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use quilt_net::BoxFuture;
use quilt_protocol::control::FleetEvent;
use quilt_protocol::{FleetId, Revision, StationId};

use super::{Change, Desired, EVENTS_MAX, HISTORY_MAX, History, Loaded, Store, StoreError};

/// Keeps everything in maps.
#[derive(Default)]
pub struct MemoryStore {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    loaded: Option<Loaded>,
    history: BTreeMap<StationId, Vec<Desired>>,
    events: BTreeMap<u64, FleetEvent>,
}

impl MemoryStore {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn loaded(&mut self) -> &mut Loaded {
        self.loaded.get_or_insert_with(|| Loaded {
            fleet: FleetId::random(),
            epoch: 0,
            last_revision: Revision(0),
            last_event: 0,
            stations: Vec::new(),
            desired: BTreeMap::new(),
            entries: BTreeMap::new(),
            trials: Vec::new(),
            damage: Vec::new(),
        })
    }

    fn make(&mut self, change: Change) {
        match change {
            Change::PutStation(record) => {
                let stations = &mut self.loaded().stations;
                stations.retain(|station| station.id != record.id);
                stations.push(*record);
                stations.sort_by_key(|station| station.id);
            }
            Change::ForgetStation(id) => {
                self.loaded().stations.retain(|station| station.id != id);
                self.loaded().desired.remove(&id);
                self.history.remove(&id);
            }
            Change::PutDesired(id, desired) => {
                let loaded = self.loaded();
                loaded.last_revision = loaded.last_revision.max(desired.revision);
                loaded.desired.insert(id, (*desired).clone());
                let history = self.history.entry(id).or_default();
                history.insert(0, *desired);
                history.truncate(HISTORY_MAX + 1);
            }
            Change::MarkGood(id, revision, good) => {
                let mark = |desired: &mut Desired| {
                    if desired.revision == revision {
                        desired.good = good;
                    }
                };
                self.loaded().desired.get_mut(&id).into_iter().for_each(mark);
                self.history.entry(id).or_default().iter_mut().for_each(mark);
            }
            Change::Release(id, revision) => {
                let release = |desired: &mut Desired| desired.held &= desired.revision != revision;
                self.loaded().desired.get_mut(&id).into_iter().for_each(release);
                self.history.entry(id).or_default().iter_mut().for_each(release);
            }
            Change::PutEntry(key, entry) => drop(self.loaded().entries.insert(key, entry)),
            Change::RemoveEntry(key) => drop(self.loaded().entries.remove(&key)),
            Change::PutTrial(trial) => self.loaded().trials.push(*trial),
            Change::EndTrial(id) => self.loaded().trials.retain(|trial| trial.id != id),
            Change::RaiseEpoch(epoch) => {
                let loaded = self.loaded();
                loaded.epoch = loaded.epoch.max(epoch);
            }
            Change::AddEvent(event) => {
                self.loaded().last_event = event.number;
                let keep_from = event.number.saturating_sub(EVENTS_MAX) + 1;
                self.events.insert(event.number, event);
                self.events = self.events.split_off(&keep_from);
            }
        }
    }
}

impl Store for MemoryStore {
    fn load(&self) -> BoxFuture<'_, Result<Loaded, StoreError>> {
        let mut inner = self.inner();
        inner.loaded().epoch += 1;
        let loaded = inner.loaded().clone();
        Box::pin(async { Ok(loaded) })
    }

    fn commit(&self, changes: Vec<Change>) -> BoxFuture<'static, Result<(), StoreError>> {
        let mut inner = self.inner();
        changes.into_iter().for_each(|change| inner.make(change));
        Box::pin(async { Ok(()) })
    }

    fn close(&self) -> BoxFuture<'static, Result<(), StoreError>> {
        Box::pin(async { Ok(()) })
    }

    fn trouble(&self) -> Option<String> {
        None
    }

    fn backlog(&self) -> usize {
        0
    }

    fn history(&self, station: StationId) -> BoxFuture<'static, Result<History, StoreError>> {
        let desired = self.inner().history.get(&station).cloned().unwrap_or_default();
        Box::pin(async { Ok(History { desired, damaged: Vec::new() }) })
    }

    fn events(&self, after: u64, limit: usize) -> BoxFuture<'static, Result<Vec<FleetEvent>, StoreError>> {
        let inner = self.inner();
        let events =
            inner.events.range(after.saturating_add(1)..).take(limit).map(|(_, event)| event.clone()).collect();
        Box::pin(async { Ok(events) })
    }
}
