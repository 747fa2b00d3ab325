//! Following an apply batch by batch, until each station has settled or failed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use quilt_core::words::list;
use quilt_net::ItemSink;
use quilt_protocol::StationId;
use quilt_protocol::control::{PLUGIN_SOURCE, Phase, Progress, Share, Wait};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::judge::{Successor, judge};
use crate::apply::{self, Applied, Target};
use crate::fleet::Saying;
use crate::part::Part;
use crate::state::InstanceKey;
use crate::store::{Change, Desired};
use crate::take_back::{self, TakeBack};
use crate::{Core, register};

pub(super) struct Rollout<'a> {
    core: &'a Arc<Core>,
    /// The file that is applied.
    source: &'a str,
    wait: Wait,
    /// Progress, for whoever asked; none once they are gone or far behind.
    progress: Option<mpsc::Sender<Progress>>,
    /// Ends when all progress was passed on.
    passed_on: oneshot::Receiver<()>,
    shown: BTreeMap<String, (Phase, String)>,
    /// What stations were given since, by what this looked at last.
    successors: HashMap<StationId, Successor>,
    /// Whether the stations go back to what they had.
    goes_back: bool,
    /// Whether instances whose roles are missing count as failed.
    misses_roles: bool,
}

/// What a station was given after an apply, and what the apply gave it.
struct Unread {
    id: StationId,
    desired: Desired,
    part: Arc<Part>,
    saying: Arc<Saying>,
}

/// Stations and why they failed.
type Failures = BTreeMap<String, String>;

/// How long a rollout looks away at most.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// How many stations are looked at before others get their turn.
const JUDGED_AT_ONCE: usize = 32;
/// How long the last progress may take to be passed on.
const PASSED_ON: Duration = Duration::from_secs(2);
/// How much progress waits for whoever asked: a rollout never waits for them.
const PROGRESS_MAX: usize = 4096;

impl<'a> Rollout<'a> {
    pub(super) fn new(core: &'a Arc<Core>, source: &'a str, wait: Wait, items: Option<ItemSink>) -> Self {
        let (done, passed_on) = oneshot::channel::<()>();
        let progress = items.map(|mut items| {
            let (sender, mut progress) = mpsc::channel(PROGRESS_MAX);
            core.spawn(async move {
                let _done = done;
                while let Some(progress) = progress.recv().await {
                    if items.send_json::<Progress>(&progress).await.is_err() {
                        return;
                    }
                }
            });
            sender
        });
        // A plugin that is pushed is not to blame for others that are missing: a station would have refused a push that takes a
        // role away.
        let misses_roles = !source.starts_with(PLUGIN_SOURCE);
        let (shown, successors, goes_back) = (BTreeMap::new(), HashMap::new(), false);
        Self { core, source, wait, progress, passed_on, shown, successors, goes_back, misses_roles }
    }

    /// Waits a little until whoever asked has taken what there was to show: nothing comes after the reply.
    pub(super) async fn finish(mut self) {
        self.progress = None;
        let _ = tokio::time::timeout(PASSED_ON, self.passed_on).await;
    }

    pub(super) async fn follow(
        &mut self,
        batch: Option<Share>,
        applied: &mut Applied,
        who: &str,
    ) -> Result<(), String> {
        let size = batch.map_or(applied.targets.len(), |batch| batch.of(applied.targets.len())).max(1);
        for batch in applied.targets.chunks(size) {
            let until = Instant::now() + Duration::from_millis(self.wait.within_ms);
            self.release(batch.iter());
            apply::push_all(self.core, batch.iter()).await;
            let (failed, late) = self.follow_batch(batch, until).await;
            let is_long = self.wait.settle_ms >= register::SETTLED.as_millis() as u64;
            for target in batch.iter().filter(|_| is_long) {
                // The operator waited and saw it run well. A shorter look proves nothing: a crash loop is active now and then.
                let has_settled = matches!(self.shown.get(target.name.as_str()), Some((Phase::Settled, _)));
                if let Some(desired) = target.desired.as_ref().filter(|_| has_settled) {
                    register::note_good(self.core, target.id, desired.revision);
                }
            }
            applied.reply.timed_out = failed.is_empty() && !late.is_empty();
            applied.reply.failures.extend(failed);
            applied.reply.failures.extend(late);
            // Where something newer took over, that says nothing against the rest.
            if self.has_failed(applied) {
                break;
            }
        }
        let spared: Vec<_> = {
            let state = self.core.state();
            applied.targets.iter().filter(|target| state.is_held(target.id)).collect()
        };
        if !spared.is_empty() && !self.wait.rollback {
            // A rollout that fails halts: whoever had not been offered it keeps what it had.
            let _one_at_a_time = self.core.applying.lock().await;
            let halted = take_back::take_back(self.core, applied, TakeBack::Stations, &spared, who).await?;
            let names: Vec<_> = halted.iter().map(|target| &target.name).collect();
            self.release(applied.targets.iter());
            applied.reply.notes.push(format!("halted: {} keep what they had until the next apply", list(&names)));
        }
        Ok(())
    }

    /// Whether any station did not become healthy with what was applied, for another reason than that something newer took over.
    pub(super) fn has_failed(&self, applied: &Applied) -> bool {
        let superseded = self.superseded(&applied.targets);
        applied.reply.failures.keys().any(|station| !superseded.contains(station))
    }

    /// Stations that were given something newer, without what this apply gave.
    pub(super) fn superseded(&self, targets: &[Target]) -> BTreeSet<String> {
        let is_superseded =
            |target: &&Target| self.successors.get(&target.id).is_some_and(|successor| successor.supersedes.is_some());
        targets.iter().filter(is_superseded).map(|target| target.name.to_string()).collect()
    }

    /// Follows stations that go back to what they had until they run that, and says which do not. The time for it begins anew: what
    /// failed may have failed by taking too long.
    pub(super) async fn follow_back(&mut self, targets: &[Target]) -> Vec<String> {
        self.goes_back = true;
        self.shown.clear();
        self.successors.clear();
        self.wait.settle_ms = 0;
        let until = Instant::now() + Duration::from_millis(self.wait.within_ms);
        let (failed, late) = self.follow_batch(targets, until).await;
        let failed = failed.into_iter().map(|(station, why)| format!("{station}: went back to what it had, but {why}"));
        let late = late.into_iter().map(|(station, why)| format!("{station}: goes back to what it had, but is {why}"));
        failed.chain(late).collect()
    }

    /// Lets these stations have what was applied, as far as they still should.
    pub(super) fn release<'t>(&self, targets: impl Iterator<Item = &'t Target>) {
        let mut state = self.core.state();
        for target in targets {
            let ours = target.desired.as_ref().map(|desired| desired.revision);
            if ours.is_some() && state.held.get(&target.id) == ours.as_ref() {
                state.held.remove(&target.id);
                if let Some(desired) = target.desired.as_ref().filter(|desired| desired.held) {
                    // A crash before this is on disk halts the rollout, which is safe; nobody waits for it.
                    drop(self.core.store.commit(vec![Change::Release(target.id, desired.revision)]));
                }
            }
        }
    }

    /// Stations that never got what was applied: their batch was not reached, or they are away.
    pub(super) fn spared<'t>(&self, targets: &'t [Target]) -> Vec<&'t Target> {
        let state = self.core.state();
        let is_away = |target: &Target| {
            matches!(self.shown.get(target.name.as_str()), Some((Phase::Away, _)))
                && state.stations.get(&target.id).is_none_or(|station| station.live.is_none())
        };
        targets.iter().filter(|target| state.is_held(target.id) || is_away(target)).collect()
    }

    /// Follows some stations until each has settled or failed. Names all that failed and all that were not healthy in time,
    /// and why: if the first failure ended it, an operator would mend one station after the other.
    async fn follow_batch(&mut self, batch: &[Target], until: Instant) -> (Failures, Failures) {
        let settle = Duration::from_millis(self.wait.settle_ms);
        let mut changes = self.core.changed.subscribe();
        let mut healthy_since = BTreeMap::<String, (Instant, u64)>::new();
        let mut failed = Failures::new();
        loop {
            let began = Instant::now();
            changes.mark_unchanged();
            let (mut settled, mut next_settled) = (0, None::<Instant>);
            self.note_successors(batch).await;
            for (number, target) in batch.iter().enumerate() {
                if number % JUDGED_AT_ONCE == JUDGED_AT_ONCE - 1 {
                    tokio::task::yield_now().await;
                }
                if failed.contains_key(target.name.as_str()) {
                    continue;
                }
                let ((phase, detail), restarts) = self.judged(target);
                let name = target.name.to_string();
                match phase {
                    Phase::Healthy => {
                        let now = (Instant::now(), restarts);
                        let since = healthy_since.entry(name.clone()).or_insert(now);
                        if since.1 != restarts {
                            // It failed and came back between two looks.
                            *since = now;
                        }
                        let settles = since.0 + settle;
                        let phase = if Instant::now() >= settles { Phase::Settled } else { Phase::Healthy };
                        match phase {
                            Phase::Settled => settled += 1,
                            _ => next_settled = Some(next_settled.map_or(settles, |next| next.min(settles))),
                        }
                        self.show(&name, phase, &detail);
                    }
                    Phase::Away => {
                        settled += 1;
                        self.show(&name, phase, &detail);
                    }
                    Phase::Failed | Phase::Rejected => {
                        self.show(&name, phase, &detail);
                        failed.insert(name, detail);
                    }
                    _ => {
                        // It has to stay healthy in one piece.
                        healthy_since.remove(&name);
                        self.show(&name, phase, &detail);
                    }
                }
            }
            if failed.len() + settled == batch.len() {
                return (failed, Failures::new());
            }
            if Instant::now() >= until {
                return (failed, self.late(batch));
            }
            // In a large fleet something changes all the time: looking takes a tenth of the time and not all of it.
            tokio::time::sleep((9 * began.elapsed()).min(LOOK_AGAIN)).await;
            let wake = next_settled.map_or(until, |at| at.min(until));
            tokio::select! {
                _ = changes.changed() => {}
                () = tokio::time::sleep_until(wake) => {}
            }
        }
    }

    /// Reads what stations of a batch were given since this looked at them last.
    async fn note_successors(&mut self, batch: &[Target]) {
        let mut unread = Vec::new();
        for some in batch.chunks(JUDGED_AT_ONCE) {
            unread.extend(some.iter().filter_map(|target| self.unread(target)));
            tokio::task::yield_now().await;
        }
        if unread.is_empty() {
            return;
        }
        let source = self.source.to_owned();
        let read = move || {
            let mut documents = BTreeMap::new();
            let read = unread.iter().map(|Unread { id, desired, part, saying }| {
                (*id, Successor::new(desired, &source, part, &saying.instances(), &mut documents))
            });
            read.collect::<Vec<_>>()
        };
        self.successors.extend(self.core.compute(read).await);
    }

    /// What a station was given since this looked at it last.
    fn unread(&self, target: &Target) -> Option<Unread> {
        let state = self.core.state();
        let desired = state.stations.get(&target.id)?.desired.as_ref()?;
        let known = self.successors.get(&target.id).map(|successor| successor.revision);
        if Some(desired.revision) == known.or(target.revision()) {
            return None;
        }
        let (part, saying) = (target.part.clone(), target.saying.clone());
        Some(Unread { id: target.id, desired: desired.clone(), part, saying })
    }

    /// How far a station is, and how often its instances were restarted.
    fn judged(&self, target: &Target) -> ((Phase, String), u64) {
        let state = self.core.state();
        let station = state.stations.get(&target.id).map(|station| &**station);
        (
            judge(station, target, self.successors.get(&target.id), self.misses_roles),
            station.map_or(0, |station| station.restarts(|key| decides(target, key))),
        )
    }

    /// Stations that are neither healthy for long enough nor known to have failed, and what they wait for.
    fn late(&self, batch: &[Target]) -> Failures {
        let state = self.core.state();
        let late = batch.iter().filter_map(|target| {
            let why = match self.shown.get(target.name.as_str()) {
                Some((Phase::Settled | Phase::Away | Phase::Failed | Phase::Rejected, _)) => return None,
                Some((Phase::Healthy, _)) => {
                    let station = state.stations.get(&target.id);
                    station.and_then(|station| station.most_restarted(|key| decides(target, key)))
                }
                Some((_, detail)) => Some(detail.clone()).filter(|detail| !detail.is_empty()),
                None => None,
            };
            let why = why.map_or_else(String::new, |why| format!(": {why}"));
            Some((target.name.to_string(), format!("not healthy in time{why}")))
        });
        late.collect()
    }

    pub(super) fn show(&mut self, station: &str, phase: Phase, detail: &str) {
        let shown = (phase, detail.to_owned());
        if self.shown.get(station) == Some(&shown) {
            return;
        }
        self.shown.insert(station.to_owned(), shown);
        if let Some(items) = &self.progress {
            let (phase, detail) = if self.goes_back { going_back(phase, detail) } else { (phase, detail.to_owned()) };
            let progress = Progress { station: station.into(), phase, detail };
            if items.try_send(progress).is_err() {
                // Whoever asked is gone or does not read; the rollout goes on.
                self.progress = None;
            }
        }
    }
}

/// Whether an apply is judged by an instance of one of its stations.
fn decides(target: &Target, key: &InstanceKey) -> bool {
    !target.unhealthy_before.contains(key)
        && target.saying.instances().get(key).is_some_and(|digest| target.part.is_judged_by(key, digest, None))
}

/// What to show of a station that goes back to what it had.
fn going_back(phase: Phase, detail: &str) -> (Phase, String) {
    match phase {
        Phase::Healthy | Phase::Settled => (Phase::RolledBack, String::new()),
        Phase::Applying if detail.is_empty() => (phase, "goes back to what it had".into()),
        Phase::Applying => (phase, format!("goes back to what it had: {detail}")),
        _ => (phase, detail.to_owned()),
    }
}
