//! The state of every instance, for whoever wants to know: the manager, instances that need one another, operators.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Mutex, PoisonError};

use quilt_core::time;
use quilt_protocol::control::bounds::{
    ATTRIBUTES_BYTES_MAX, ATTRIBUTES_MAX, DETAIL_MAX, REMARKS_MAX, REPORTED_EVENTS_MAX, attribute_bytes, cut,
};
use quilt_protocol::control::{Emitted, InstanceReport, State, StateChange, StationEvent};
use quilt_protocol::{Digest, Name};
use tokio::sync::watch;

use crate::spec::{Key, Spec};

/// How many events wait for a manager that is away; the oldest are dropped first. One report tells them all.
const EVENTS_MAX: usize = REPORTED_EVENTS_MAX;

/// How many bytes all attributes of a station may come to: a registration tells them all at once.
const ATTRIBUTE_BYTES_MAX: usize = 8 << 20;

/// What is said of an attribute that does not fit.
pub(crate) fn attribute_limits() -> String {
    let all = ATTRIBUTE_BYTES_MAX >> 20;
    let of_one = ATTRIBUTES_BYTES_MAX >> 10;
    format!(
        "an instance has at most {ATTRIBUTES_MAX} of them and {of_one} KiB, and all of a station's come to at most {all} MiB"
    )
}

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
    /// What is wrong with the files on the host.
    remarks: Vec<String>,
    /// No report of this session has told the remarks.
    remarks_changed: bool,
    /// Of all attributes, names included.
    attribute_bytes: usize,
    /// The run of each instance that counts.
    shown: BTreeMap<Key, u64>,
    /// What the next run of an instance says of itself, until it takes over.
    next: BTreeMap<Key, NextRun>,
}

/// A run that was begun beside the one that counts.
struct NextRun {
    run: u64,
    pid: Option<u32>,
    attributes: BTreeMap<String, String>,
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
    /// What is wrong with the files on the host, if that changed.
    pub(crate) remarks: Option<Vec<String>>,
}

impl Inner {
    /// The attributes of a run, wherever they are; none of a run that is over.
    fn attributes_of(&mut self, key: &Key, run: u64) -> Option<&mut BTreeMap<String, String>> {
        if self.shown.get(key) == Some(&run) {
            return self.instances.get_mut(key).map(|report| &mut report.attributes);
        }
        self.next.get_mut(key).filter(|next| next.run == run).map(|next| &mut next.attributes)
    }

    /// Forgets what the next run said.
    fn drop_next(&mut self, key: &Key) {
        if let Some(next) = self.next.remove(key) {
            self.attribute_bytes -= attribute_bytes(&next.attributes);
        }
    }

    /// Shows the process and the attributes of a run in the place of those before.
    fn show(&mut self, key: &Key, pid: Option<u32>, attributes: BTreeMap<String, String>) {
        let Some(report) = self.instances.get_mut(key) else {
            self.attribute_bytes -= attribute_bytes(&attributes);
            return;
        };
        report.pid = pid;
        let before = std::mem::replace(&mut report.attributes, attributes);
        self.attribute_bytes -= attribute_bytes(&before);
        self.dirty.insert(key.clone());
    }

    fn update(&mut self, key: &Key, work: impl FnOnce(&mut InstanceReport)) {
        let Some(report) = self.instances.get_mut(key) else { return };
        let before = report.state;
        work(report);
        cut(&mut report.detail, DETAIL_MAX);
        if let Some((_, why)) = &mut report.held_back {
            cut(why, DETAIL_MAX);
        }
        self.dirty.insert(key.clone());
        if report.state != before {
            report.since_ms = time::now_ms();
            let InstanceReport { role, instance, state, detail, since_ms: at_ms, .. } = report.clone();
            self.note(StationEvent::State(Box::new(StateChange { role, instance, state, detail, at_ms })));
        }
    }

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
        self.change(|inner| inner.update(key, work));
    }

    /// A run of an instance begins. If another counts, what this one says is shown only once it takes over.
    pub(crate) fn begin_run(&self, key: &Key, run: u64) {
        self.change(|inner| {
            inner.drop_next(key);
            if inner.shown.contains_key(key) {
                inner.next.insert(key.clone(), NextRun { run, pid: None, attributes: BTreeMap::new() });
            } else {
                inner.shown.insert(key.clone(), run);
            }
        });
    }

    /// From here on this run counts: what it said is shown, all that the one before said is gone.
    pub(crate) fn take_over(&self, key: &Key, run: u64) {
        self.change(|inner| {
            if let Some(next) = inner.next.get(key).filter(|next| next.run == run) {
                let pid = next.pid;
                let attributes = inner.next.remove(key).map(|next| next.attributes).unwrap_or_default();
                inner.shown.insert(key.clone(), run);
                inner.show(key, pid, attributes);
            }
        });
    }

    /// A run is over: nothing that it said is true any more.
    pub(crate) fn end_run(&self, key: &Key, run: u64) {
        self.change(|inner| {
            if inner.shown.get(key) == Some(&run) {
                inner.shown.remove(key);
                inner.show(key, None, BTreeMap::new());
            } else if inner.next.get(key).is_some_and(|next| next.run == run) {
                inner.drop_next(key);
            }
        });
    }

    /// Changes an instance's report on behalf of a run, if that is the one that counts.
    pub(crate) fn update_run(&self, key: &Key, run: u64, work: impl FnOnce(&mut InstanceReport)) {
        self.change(|inner| {
            if inner.shown.get(key) == Some(&run) {
                inner.update(key, work);
            }
        });
    }

    /// Notes the process that does the work of a run.
    pub(crate) fn pid(&self, key: &Key, run: u64, pid: Option<u32>) {
        self.update_run(key, run, |report| report.pid = pid);
        self.change(|inner| {
            if let Some(next) = inner.next.get_mut(key).filter(|next| next.run == run) {
                next.pid = pid;
            }
        });
    }

    /// Publishes an attribute of a run, or takes it back; false if there is no room for it.
    pub(crate) fn attribute(&self, key: &Key, run: u64, name: &str, json: Option<String>) -> bool {
        let mut fits = true;
        self.change(|inner| {
            let all = inner.attribute_bytes;
            let Some(attributes) = inner.attributes_of(key, run) else { return };
            let before = attributes.get(name).map_or(0, |json| name.len() + json.len());
            let after = json.as_ref().map_or(0, |json| name.len() + json.len());
            let is_new = before == 0 && after > 0;
            // More would make a status line unreadable, and cost whoever keeps it.
            fits = after <= before
                || ((!is_new || attributes.len() < ATTRIBUTES_MAX)
                    && attribute_bytes(attributes) - before + after <= ATTRIBUTES_BYTES_MAX
                    && all - before + after <= ATTRIBUTE_BYTES_MAX);
            if fits {
                match json {
                    Some(json) => attributes.insert(name.to_owned(), json),
                    None => attributes.remove(name),
                };
                inner.attribute_bytes = all - before + after;
                inner.dirty.insert(key.clone());
            }
        });
        fits
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
            inner.drop_next(key);
            if let Some(gone) = inner.instances.remove(key) {
                inner.attribute_bytes -= attribute_bytes(&gone.attributes);
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

    /// Shows what is wrong with the files on the host, as far as a manager takes it. Returns what was not shown before.
    pub(crate) fn remark(&self, mut remarks: Vec<String>) -> Vec<String> {
        if remarks.len() > REMARKS_MAX {
            let more = remarks.split_off(REMARKS_MAX - 1).len();
            remarks.push(format!("and {more} more"));
        }
        remarks.iter_mut().for_each(|remark| cut(remark, DETAIL_MAX));
        let mut new = Vec::new();
        self.change(|inner| {
            new = remarks.iter().filter(|remark| !inner.remarks.contains(remark)).cloned().collect();
            inner.remarks_changed |= inner.remarks != remarks;
            inner.remarks = remarks;
        });
        new
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
        inner.remarks_changed = true;
        inner.instances.values().cloned().collect()
    }

    /// What changed since the last call, or since [`Board::all`].
    pub(crate) fn take_changes(&self) -> Changes {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let roles = std::mem::take(&mut inner.roles);
        let mut changes = Changes { applying: inner.commits > 0, roles, ..Changes::default() };
        changes.events = std::mem::take(&mut inner.events).into();
        changes.remarks = std::mem::take(&mut inner.remarks_changed).then(|| inner.remarks.clone());
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

    fn key(number: usize) -> Key {
        Key { role: "r".parse().unwrap(), instance: number.to_string().parse().unwrap() }
    }

    fn put(board: &Board, number: usize) {
        board.put(&Spec {
            key: key(number),
            owner: Owner::Fleet,
            digest: Digest::of(b""),
            settings: Default::default(),
            config: String::new(),
            carrier: None,
        });
        board.begin_run(&key(number), 1);
    }

    #[test]
    fn what_a_run_says_is_shown_from_the_moment_it_takes_over_until_it_ends_and_not_mixed_with_that_of_another() {
        let board = Board::default();
        put(&board, 0);
        let key = key(0);
        let say = |run, name: &str| board.attribute(&key, run, name, Some(run.to_string()));
        let shown = || {
            let report = board.get(&key).unwrap();
            let names: Vec<_> = report.attributes.iter().map(|(name, run)| format!("{name} {run}")).collect();
            (names.join(", "), report.pid)
        };
        assert!(say(1, "both") && say(1, "old"));
        board.pid(&key, 1, Some(11));
        board.begin_run(&key, 2);
        assert!(say(2, "both") && say(2, "new"));
        board.pid(&key, 2, Some(22));
        board.update_run(&key, 2, |report| report.detail = "waits".into());
        assert_eq!(shown(), ("both 1, old 1".into(), Some(11)));
        board.take_over(&key, 2);
        assert_eq!(shown(), ("both 2, new 2".into(), Some(22)));
        assert!(say(1, "late"));
        board.pid(&key, 1, None);
        board.update_run(&key, 1, |report| report.detail = "waits".into());
        board.end_run(&key, 1);
        assert_eq!((shown(), board.get(&key).unwrap().detail), (("both 2, new 2".into(), Some(22)), String::new()));
        // One that never takes over leaves nothing behind, nor does one that ends.
        board.begin_run(&key, 3);
        assert!(say(3, "failed"));
        board.end_run(&key, 3);
        assert_eq!(shown(), ("both 2, new 2".into(), Some(22)));
        board.end_run(&key, 2);
        assert_eq!(shown(), (String::new(), None));
        assert_eq!(board.inner.lock().unwrap().attribute_bytes, 0);
    }

    #[test]
    fn attributes_of_all_instances_together_have_a_bound_and_give_their_room_back() {
        let board = Board::default();
        let json = Some("x".repeat(16 << 10));
        let mut taken = 0;
        for number in 0..80 {
            put(&board, number);
            taken += (0..9).filter(|name| board.attribute(&key(number), 1, &name.to_string(), json.clone())).count();
        }
        assert!((500..=512).contains(&taken), "{taken}");
        // Of one instance there are at most 128 KiB.
        assert_eq!(board.get(&key(0)).unwrap().attributes.len(), 7);
        assert!(!board.attribute(&key(79), 1, "one more", json.clone()));
        board.end_run(&key(0), 1);
        board.remove(&key(1));
        assert!(board.attribute(&key(79), 1, "one more", json));
        let short = Some("1".to_owned());
        board.begin_run(&key(0), 2);
        let of_one = (0..100).filter(|name| board.attribute(&key(0), 2, &name.to_string(), short.clone())).count();
        assert_eq!(of_one, ATTRIBUTES_MAX);
    }

    #[test]
    fn what_is_said_of_a_state_is_cut_to_what_a_manager_takes() {
        let board = Board::default();
        put(&board, 0);
        board.state(&key(0), State::Failed, "x".repeat(DETAIL_MAX + 1));
        let report = board.get(&key(0)).unwrap();
        assert_eq!(report.detail.len(), DETAIL_MAX);
        let Some(StationEvent::State(change)) = board.take_changes().events.pop() else { panic!("no event") };
        assert_eq!(change.detail, report.detail);
    }
}
