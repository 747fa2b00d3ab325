//! The state of every instance, for whoever wants to know: the manager, instances that need one another, operators.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Mutex, PoisonError};

use quilt_core::time;
use quilt_protocol::control::{Emitted, InstanceReport, State, StateChange, StationEvent};
use quilt_protocol::{Digest, Name};
use tokio::sync::watch;

use crate::spec::{Key, Spec};

/// How many events wait for a manager that is away; the oldest are dropped first.
const EVENTS_MAX: usize = 1000;

/// How many attributes an instance may have.
const ATTRIBUTES_MAX: usize = 64;
/// How many bytes all attributes of a station may come to: a registration tells them all at once.
const ATTRIBUTE_BYTES_MAX: usize = 8 << 20;

/// All instances' states.
#[derive(Default)]
pub(crate) struct Board {
    inner: Mutex<Inner>,
    /// Counts changes.
    changed: watch::Sender<u64>,
}

#[derive(Default)]
struct Inner {
    instances: BTreeMap<Key, InstanceReport>,
    /// Changed since the last report.
    dirty: BTreeSet<Key>,
    events: VecDeque<StationEvent>,
    /// Commits taken and not done with.
    commits: usize,
    roles: bool,
    /// Of all attributes, names included.
    attribute_bytes: usize,
}

fn bytes_of(attributes: &BTreeMap<String, String>) -> usize {
    attributes.iter().map(|(name, json)| name.len() + json.len()).sum()
}

/// What changed since the last time.
#[derive(Default)]
pub(crate) struct Changes {
    pub(crate) changed: Vec<InstanceReport>,
    pub(crate) gone: Vec<(Name, Name)>,
    pub(crate) events: Vec<StationEvent>,
    pub(crate) applying: bool,
    /// The roles that the station offers changed.
    pub(crate) roles: bool,
}

impl Inner {
    fn note(&mut self, event: StationEvent) {
        if self.events.len() >= EVENTS_MAX {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }
}

impl Board {
    fn change(&self, work: impl FnOnce(&mut Inner)) {
        work(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.send_modify(|count| *count += 1);
    }

    /// Puts an instance on the board, or takes over its new specification.
    pub(crate) fn put(&self, spec: &Spec) {
        self.change(|inner| {
            inner.dirty.insert(spec.key.clone());
            let report = inner.instances.entry(spec.key.clone()).or_insert_with(|| InstanceReport {
                role: spec.key.role.clone(),
                instance: spec.key.instance.clone(),
                owner: spec.owner,
                digest: spec.digest,
                state: State::Starting,
                detail: String::new(),
                pid: None,
                restarts: 0,
                since_ms: time::now_ms(),
                attributes: BTreeMap::new(),
                held_back: None,
            });
            (report.owner, report.digest) = (spec.owner, spec.digest);
        });
    }

    /// What other configurations than this asked for in vain is not told any more.
    pub(crate) fn forget_held_back(&self, digest: Option<Digest>) {
        self.change(|inner| {
            for (key, report) in &mut inner.instances {
                if report.held_back.as_ref().is_some_and(|(asked, _)| Some(*asked) != digest) {
                    report.held_back = None;
                    inner.dirty.insert(key.clone());
                }
            }
        });
    }

    /// Changes one instance's report.
    pub(crate) fn update(&self, key: &Key, work: impl FnOnce(&mut InstanceReport)) {
        self.change(|inner| {
            if let Some(report) = inner.instances.get_mut(key) {
                let before = report.state;
                work(report);
                inner.dirty.insert(key.clone());
                if report.state != before {
                    report.since_ms = time::now_ms();
                    let InstanceReport { role, instance, state, detail, since_ms: at_ms, .. } = report.clone();
                    inner.note(StationEvent::State(Box::new(StateChange { role, instance, state, detail, at_ms })));
                }
            }
        });
    }

    /// Publishes an attribute of an instance, or takes it back; false if there is no room for it.
    pub(crate) fn attribute(&self, key: &Key, name: &str, json: Option<String>) -> bool {
        let mut fits = true;
        self.change(|inner| {
            let Some(report) = inner.instances.get_mut(key) else { return };
            let before = report.attributes.get(name).map_or(0, |json| name.len() + json.len());
            let after = json.as_ref().map_or(0, |json| name.len() + json.len());
            let is_new = before == 0 && after > 0;
            // More would make a status line unreadable, and cost whoever keeps it.
            fits = after <= before
                || ((!is_new || report.attributes.len() < ATTRIBUTES_MAX)
                    && inner.attribute_bytes - before + after <= ATTRIBUTE_BYTES_MAX);
            if fits {
                inner.attribute_bytes = inner.attribute_bytes - before + after;
                match json {
                    Some(json) => report.attributes.insert(name.to_owned(), json),
                    None => report.attributes.remove(name),
                };
                inner.dirty.insert(key.clone());
            }
        });
        fits
    }

    /// Takes back whatever an instance published.
    pub(crate) fn clear_attributes(&self, key: &Key) {
        self.change(|inner| {
            if let Some(report) = inner.instances.get_mut(key) {
                inner.attribute_bytes -= bytes_of(&std::mem::take(&mut report.attributes));
                inner.dirty.insert(key.clone());
            }
        });
    }

    /// Shows a state.
    pub(crate) fn state(&self, key: &Key, state: State, detail: impl Into<String>) {
        let detail = detail.into();
        tracing::info!(instance = %key, %state, detail, "instance");
        self.update(key, |report| (report.state, report.detail) = (state, detail));
    }

    /// Takes an instance off the board.
    pub(crate) fn remove(&self, key: &Key) {
        self.change(|inner| {
            if let Some(gone) = inner.instances.remove(key) {
                inner.attribute_bytes -= bytes_of(&gone.attributes);
                inner.note(StationEvent::Gone(key.role.clone(), key.instance.clone()));
            }
            inner.dirty.insert(key.clone());
        });
    }

    pub(crate) fn emit(&self, event: Emitted) {
        self.change(|inner| inner.note(StationEvent::Emitted(Box::new(event))));
    }

    /// The roles that the station offers have changed.
    pub(crate) fn roles_changed(&self) {
        self.change(|inner| inner.roles = true);
    }

    /// A commit was taken: what runs does not match it yet.
    pub(crate) fn begin_applying(&self) {
        self.change(|inner| {
            inner.commits += 1;
            if inner.commits == 1 {
                inner.note(StationEvent::Applying);
            }
        });
    }

    /// The supervisor is done with a commit.
    pub(crate) fn end_applying(&self) {
        self.change(|inner| {
            inner.commits = inner.commits.saturating_sub(1);
            if inner.commits == 0 {
                inner.note(StationEvent::Applied);
            }
        });
    }

    pub(crate) fn is_applying(&self) -> bool {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).commits > 0
    }

    pub(crate) fn get(&self, key: &Key) -> Option<InstanceReport> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).instances.get(key).cloned()
    }

    /// Everything, and from here on changes are counted anew.
    pub(crate) fn all(&self) -> Vec<InstanceReport> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.dirty.clear();
        inner.instances.values().cloned().collect()
    }

    /// What changed since the last call, or since [`Board::all`].
    pub(crate) fn take_changes(&self) -> Changes {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let roles = std::mem::take(&mut inner.roles);
        let mut changes = Changes { applying: inner.commits > 0, roles, ..Changes::default() };
        changes.events = std::mem::take(&mut inner.events).into();
        for key in std::mem::take(&mut inner.dirty) {
            match inner.instances.get(&key) {
                Some(report) => changes.changed.push(report.clone()),
                None => changes.gone.push((key.role, key.instance)),
            }
        }
        changes
    }

    /// Gives back what a report that failed would have told and no registration tells again.
    pub(crate) fn put_back(&self, events: Vec<StationEvent>) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let newer = std::mem::replace(&mut inner.events, events.into());
        newer.into_iter().for_each(|event| inner.note(event));
    }

    /// Hears of every change.
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use quilt_protocol::control::Owner;

    use super::*;

    #[test]
    fn attributes_of_all_instances_together_have_a_bound_and_give_their_room_back() {
        let board = Board::default();
        let key = |number: usize| Key { role: "r".parse().unwrap(), instance: number.to_string().parse().unwrap() };
        let json = Some("x".repeat(16 << 10));
        let mut taken = 0;
        for number in 0..10 {
            board.put(&Spec {
                key: key(number),
                owner: Owner::Fleet,
                digest: Digest::of(b""),
                settings: Default::default(),
                config: String::new(),
                carrier: None,
            });
            taken += (0..100).filter(|name| board.attribute(&key(number), &name.to_string(), json.clone())).count();
        }
        assert!((500..=512).contains(&taken), "{taken}");
        assert_eq!(board.get(&key(0)).unwrap().attributes.len(), ATTRIBUTES_MAX);
        assert!(!board.attribute(&key(9), "one more", json.clone()));
        board.clear_attributes(&key(0));
        board.remove(&key(1));
        assert!(board.attribute(&key(9), "one more", json));
    }
}
