//! The store that forgets when it is dropped. It stands in for a disk in tests: it can refuse, hang, be copied, and be what is left
//! after its manager was killed.

use std::collections::{BTreeMap, VecDeque};
use std::future::{pending, ready};
use std::sync::{Mutex, MutexGuard, PoisonError};

use quilt_net::BoxFuture;
use quilt_protocol::control::FleetEvent;
use quilt_protocol::{FleetId, Revision, StationId};
use tokio::sync::oneshot;

use super::{Change, Desired, EVENTS_MAX, HISTORY_MAX, History, Loaded, Store, StoreError};

/// Keeps everything in maps.
#[derive(Default)]
pub struct MemoryStore {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    contents: Contents,
    /// Tells which commits fail.
    refuses: Option<Refusal>,
    /// Whether the last commit failed.
    has_refused: bool,
    /// What waits while the store hangs, in order; none while it works.
    waiting: Option<VecDeque<Job>>,
    /// Nothing is taken and nothing answered any more.
    is_dead: bool,
}

/// Whether a commit fails.
type Refusal = Box<dyn FnMut(&[Change]) -> bool + Send>;

/// Something that waits for a store that hangs.
type Job = Box<dyn FnOnce(&mut Inner) + Send>;

/// What is stored.
#[derive(Default, Clone)]
struct Contents {
    loaded: Option<Loaded>,
    history: BTreeMap<StationId, Vec<Desired>>,
    events: BTreeMap<u64, FleetEvent>,
}

impl MemoryStore {
    /// Lets each commit fail for which `refuses` is true, and changes nothing then. Replaces what was given before.
    pub fn refuse(&self, refuses: impl FnMut(&[Change]) -> bool + Send + 'static) {
        self.inner().refuses = Some(Box::new(refuses));
    }

    /// Takes every commit again.
    pub fn recover(&self) {
        let mut inner = self.inner();
        (inner.refuses, inner.has_refused) = (None, false);
    }

    /// Lets commits and reads wait until [`MemoryStore::resume`], as a disk does that hangs.
    pub fn hang(&self) {
        self.inner().waiting.get_or_insert_default();
    }

    /// Does what waits, in order, and hangs no more.
    pub fn resume(&self) {
        let mut inner = self.inner();
        for job in inner.waiting.take().unwrap_or_default() {
            job(&mut inner);
        }
    }

    /// Ends it for the manager that has it, as if that were killed at this moment: commits that wait are lost, and nothing that the
    /// manager still asks is answered. What was stored is left for [`MemoryStore::copy`].
    pub fn kill(&self) {
        let mut inner = self.inner();
        (inner.is_dead, inner.waiting) = (true, None);
    }

    /// Another store with what is stored in this one: what the next manager finds, or a backup.
    pub fn copy(&self) -> Self {
        let contents = self.inner().contents.clone();
        Self { inner: Mutex::new(Inner { contents, ..Inner::default() }) }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does `work` now or, if the store hangs, when it goes on.
    fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Inner) -> Result<T, StoreError> + Send + 'static,
    ) -> BoxFuture<'static, Result<T, StoreError>> {
        let mut inner = self.inner();
        if inner.is_dead {
            return Box::pin(pending());
        }
        let Some(waiting) = &mut inner.waiting else { return Box::pin(ready(work(&mut inner))) };
        let (reply, answer) = oneshot::channel();
        waiting.push_back(Box::new(move |inner| drop(reply.send(work(inner)))));
        Box::pin(async move {
            match answer.await {
                Ok(result) => result,
                Err(_) => pending().await,
            }
        })
    }
}

impl Contents {
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
        self.run(|inner| {
            let loaded = inner.contents.loaded();
            loaded.epoch += 1;
            Ok(loaded.clone())
        })
    }

    fn commit(&self, changes: Vec<Change>) -> BoxFuture<'static, Result<(), StoreError>> {
        self.run(move |inner| {
            inner.has_refused = inner.refuses.as_mut().is_some_and(|refuses| refuses(&changes));
            if inner.has_refused {
                return Err(StoreError(REFUSED.into()));
            }
            changes.into_iter().for_each(|change| inner.contents.make(change));
            Ok(())
        })
    }

    fn close(&self) -> BoxFuture<'static, Result<(), StoreError>> {
        self.run(|_| Ok(()))
    }

    fn trouble(&self) -> Option<String> {
        self.inner().has_refused.then(|| REFUSED.into())
    }

    fn backlog(&self) -> usize {
        self.inner().waiting.as_ref().map_or(0, VecDeque::len)
    }

    fn history(&self, station: StationId) -> BoxFuture<'static, Result<History, StoreError>> {
        self.run(move |inner| {
            let desired = inner.contents.history.get(&station).cloned().unwrap_or_default();
            Ok(History { desired, damaged: Vec::new() })
        })
    }

    fn events(&self, after: u64, limit: usize) -> BoxFuture<'static, Result<Vec<FleetEvent>, StoreError>> {
        self.run(move |inner| {
            let after = inner.contents.events.range(after.saturating_add(1)..);
            Ok(after.take(limit).map(|(_, event)| event.clone()).collect())
        })
    }
}

/// Why a commit fails that is to fail.
const REFUSED: &str = "the disk takes nothing now";

#[cfg(test)]
mod tests {
    use tokio::task::yield_now;

    use super::super::conformance::record;
    use super::*;

    fn put(name: &str) -> Vec<Change> {
        vec![Change::PutStation(Box::new(record(name)))]
    }

    async fn names(store: &MemoryStore) -> Vec<String> {
        store.load().await.unwrap().stations.iter().map(|station| station.name.to_string()).collect()
    }

    #[tokio::test]
    async fn a_commit_that_is_refused_changes_nothing_and_is_told_as_trouble_until_one_is_taken() {
        let store = MemoryStore::default();
        store.refuse(|changes| matches!(changes, [Change::PutStation(_)]));
        assert!(store.commit(put("a")).await.is_err());
        assert_eq!(store.trouble().as_deref(), Some(REFUSED));
        assert!(store.commit(vec![Change::RaiseEpoch(7)]).await.is_ok());
        assert_eq!(store.trouble(), None);
        store.recover();
        assert!(store.commit(put("b")).await.is_ok());
        assert_eq!(names(&store).await, ["b"]);
    }

    #[tokio::test]
    async fn what_waits_for_a_disk_that_hangs_is_done_in_order_and_lost_with_its_manager() {
        let store = MemoryStore::default();
        store.hang();
        let mut commit = store.commit(put("a"));
        assert!(tokio::select! { biased; _ = &mut commit => false, () = yield_now() => true });
        assert_eq!(store.backlog(), 1);
        store.resume();
        assert!(commit.await.is_ok());
        store.hang();
        drop(store.commit(put("b")));
        store.kill();
        store.resume();
        let next = store.copy();
        assert_eq!(names(&next).await, ["a"]);
        assert!(tokio::select! { biased; _ = store.commit(put("c")) => false, () = yield_now() => true });
        assert_eq!(next.load().await.unwrap().epoch, 2);
    }
}
