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

    /// Shows a state.
    pub(crate) fn state(&self, key: &Key, state: State, detail: impl Into<String>) {
        let detail = detail.into();
        tracing::info!(instance = %key, %state, detail, "instance");
        self.update(key, |report| (report.state, report.detail) = (state, detail));
    }

    /// Takes an instance off the board.
    pub(crate) fn remove(&self, key: &Key) {
        self.change(|inner| {
            if inner.instances.remove(key).is_some() {
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
