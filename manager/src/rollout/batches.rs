//! Following an apply batch by batch, until each station has settled or failed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use quilt_core::words::list;
use quilt_net::ItemSink;
use quilt_protocol::StationId;
use quilt_protocol::control::{Phase, Progress, Share, Wait};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::judge::judge;
use crate::apply::{self, Applied, Target};
use crate::fleet::Instances;
use crate::store::Change;
use crate::take_back::{self, TakeBack};
use crate::{Core, register};

pub(super) struct Rollout<'a> {
    core: &'a Arc<Core>,
    wait: Wait,
    /// Progress, for whoever asked; none once they are gone or far behind.
    progress: Option<mpsc::Sender<Progress>>,
    /// Ends when all progress was passed on.
    passed_on: oneshot::Receiver<()>,
    shown: BTreeMap<String, (Phase, String)>,
    /// The digest of every instance that each target should run.
    wanted: BTreeMap<StationId, Arc<Instances>>,
    /// Whether instances whose roles are missing count as failed. A plugin that is pushed is not to blame for others that are
    /// missing: a station would have refused a push that takes a role away.
    pub(super) misses_roles: bool,
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
    pub(super) fn new(core: &'a Arc<Core>, wait: Wait, items: Option<ItemSink>, targets: &[Target]) -> Self {
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
        let wanted = targets.iter().map(|target| (target.id, target.saying.instances())).collect();
        Self { core, wait, progress, passed_on, shown: BTreeMap::new(), wanted, misses_roles: true }
    }

    /// Waits a little until whoever asked has taken what there was to show: nothing comes after the reply.
    pub(super) async fn finish(mut self) {
        self.progress = None;
        let _ = tokio::time::timeout(PASSED_ON, self.passed_on).await;
    }

    pub(super) async fn follow(&mut self, batch: Option<Share>, applied: &mut Applied, who: &str) -> Result<(), String> {
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
            if !applied.reply.failures.is_empty() {
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
            let mut phases = Vec::new();
            for some in batch.chunks(JUDGED_AT_ONCE) {
                let undecided = some.iter().filter(|target| !failed.contains_key(target.name.as_str()));
                phases.extend(undecided.map(|target| (target, self.judged(target))));
                tokio::task::yield_now().await;
            }
            for (target, ((phase, detail), restarts)) in phases {
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

    /// How far a station is, and how often its instances were restarted.
    fn judged(&self, target: &Target) -> ((Phase, String), u64) {
        let state = self.core.state();
        let station = state.stations.get(&target.id).map(|station| &**station);
        (
            judge(station, target, &self.wanted[&target.id], self.misses_roles),
            station.map_or(0, |station| station.restarts(&target.unhealthy_before)),
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
                    station.and_then(|station| station.most_restarted(&target.unhealthy_before))
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
            let progress = Progress { station: station.into(), phase, detail: detail.into() };
            if items.try_send(progress).is_err() {
                // Whoever asked is gone or does not read; the rollout goes on.
                self.progress = None;
            }
        }
    }
}
