//! Following an apply until its effect is there: batches, waiting, settling, going back.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use quilt_net::ItemSink;
use quilt_protocol::Name;
use quilt_protocol::control::{
    Apply, ApplyReply, InstanceReport, Owner, Phase, Progress, State as InstanceState, Wait, instance_digest,
};
use tokio::time::Instant;

use crate::Core;
use crate::apply::{self, Applied, TakeBack, Target};
use crate::state::Station;

/// Applies a fleet file and, if asked to, follows its effect; progress goes to `items`.
///
/// # Errors
///
/// As [`apply::apply`].
pub(crate) async fn run(
    core: &Arc<Core>,
    request: &Apply,
    who: &str,
    items: Option<ItemSink>,
) -> Result<ApplyReply, String> {
    if request.dry_run {
        return Ok(apply::apply(core, request, who).await?.reply);
    }
    let mut applied = {
        // Planned against what the one before left. Following the effect, which can take long, holds nobody up.
        let _one_at_a_time = core.applying.lock().await;
        apply::apply(core, request, who).await?
    };
    if !applied.reply.stored {
        return Ok(applied.reply);
    }
    let wait = request.wait.or(request.batch.map(|_| {
        // Batches without waiting would not be batches.
        Wait { within_ms: 60_000, settle_ms: 2000, rollback: false }
    }));
    let Some(wait) = wait else {
        apply::push_all(core, applied.targets.iter());
        return Ok(applied.reply);
    };
    let mut rollout = Rollout { core, wait, items, shown: BTreeMap::new() };
    let followed = rollout.follow(request, &mut applied, who).await;
    if followed.is_err() {
        rollout.release(applied.targets.iter());
        apply::push_all(core, applied.targets.iter());
    }
    followed?;
    if wait.rollback && (!applied.reply.failures.is_empty() || applied.reply.timed_out) {
        let _one_at_a_time = core.applying.lock().await;
        let all: Vec<_> = applied.targets.iter().collect();
        let gone_back = apply::take_back(core, &applied, TakeBack::Whole, &all, who).await?;
        rollout.release(applied.targets.iter());
        apply::push_all(core, applied.targets.iter());
        applied.reply.rolled_back = true;
        for name in gone_back {
            rollout.show(name.as_str(), Phase::RolledBack, "").await;
        }
    }
    Ok(applied.reply)
}

struct Rollout<'a> {
    core: &'a Arc<Core>,
    wait: Wait,
    items: Option<ItemSink>,
    shown: BTreeMap<String, (Phase, String)>,
}

impl Rollout<'_> {
    async fn follow(&mut self, request: &Apply, applied: &mut Applied, who: &str) -> Result<(), String> {
        let size = request.batch.map_or(applied.targets.len(), |batch| batch.of(applied.targets.len())).max(1);
        let until = Instant::now() + Duration::from_millis(self.wait.within_ms);
        for batch in applied.targets.chunks(size) {
            self.release(batch.iter());
            apply::push_all(self.core, batch.iter());
            let failures = self.follow_batch(batch, until).await;
            applied.reply.timed_out |= failures.values().any(|failure| failure == TIME_IS_OVER);
            applied.reply.failures.extend(failures);
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
            let names = apply::take_back(self.core, applied, TakeBack::Stations, &spared, who).await?;
            let names: Vec<_> = names.iter().map(Name::to_string).collect();
            self.release(applied.targets.iter());
            applied.reply.notes.push(format!("halted: {} keep what they had until the next apply", names.join(", ")));
        }
        Ok(())
    }

    /// Lets these stations have what was applied, as far as they still should.
    fn release<'t>(&self, targets: impl Iterator<Item = &'t Target>) {
        let mut state = self.core.state();
        for target in targets {
            let ours = target.desired.as_ref().map(|desired| desired.revision);
            if ours.is_some() && state.held.get(&target.id) == ours.as_ref() {
                state.held.remove(&target.id);
            }
        }
    }

    /// Follows some stations until each has settled or failed. Names those that failed, and why.
    async fn follow_batch(&mut self, batch: &[Target], until: Instant) -> BTreeMap<String, String> {
        let settle = Duration::from_millis(self.wait.settle_ms);
        let mut changes = self.core.changed.subscribe();
        let mut healthy_since = BTreeMap::<String, Instant>::new();
        loop {
            changes.mark_unchanged();
            let (mut failures, mut settled) = (BTreeMap::new(), 0);
            let phases: Vec<_> = {
                let state = self.core.state();
                batch.iter().map(|target| (target, judge(state.stations.get(&target.id), target))).collect()
            };
            for (target, (phase, detail)) in phases {
                let name = target.name.to_string();
                match phase {
                    Phase::Healthy => {
                        let since = *healthy_since.entry(name.clone()).or_insert_with(Instant::now);
                        let phase = if since.elapsed() >= settle { Phase::Settled } else { Phase::Healthy };
                        settled += usize::from(phase == Phase::Settled);
                        self.show(&name, phase, &detail).await;
                    }
                    Phase::Away => {
                        settled += 1;
                        self.show(&name, phase, &detail).await;
                    }
                    Phase::Failed | Phase::Rejected => {
                        self.show(&name, phase, &detail).await;
                        failures.insert(name, detail);
                    }
                    _ => {
                        // It has to stay healthy in one piece.
                        healthy_since.remove(&name);
                        self.show(&name, phase, &detail).await;
                    }
                }
            }
            if !failures.is_empty() || settled == batch.len() {
                return failures;
            }
            if Instant::now() >= until {
                let late = batch.iter().filter(|target| {
                    !matches!(self.shown.get(target.name.as_str()), Some((Phase::Settled | Phase::Away, _)))
                });
                return late.map(|target| (target.name.to_string(), TIME_IS_OVER.to_owned())).collect();
            }
            let next_settled =
                healthy_since.values().map(|since| *since + settle).filter(|at| *at > Instant::now()).min();
            let wake = next_settled.map_or(until, |at| at.min(until));
            tokio::select! {
                _ = changes.changed() => {}
                () = tokio::time::sleep_until(wake) => {}
            }
        }
    }

    async fn show(&mut self, station: &str, phase: Phase, detail: &str) {
        let shown = (phase, detail.to_owned());
        if self.shown.get(station) == Some(&shown) {
            return;
        }
        self.shown.insert(station.to_owned(), shown);
        if let Some(items) = &mut self.items {
            let progress = Progress { station: station.into(), phase, detail: detail.into() };
            if items.send_json(&progress).await.is_err() {
                // Whoever asked is gone; the rollout goes on.
                self.items = None;
            }
        }
    }
}

const TIME_IS_OVER: &str = "not healthy in time";

/// How far a station is with what is desired of it.
fn judge(station: Option<&Station>, target: &Target) -> (Phase, String) {
    let Some(station) = station else { return (Phase::Failed, "it was forgotten".into()) };
    let current = station.desired.as_ref().map(|desired| desired.revision);
    let ours = target.desired.as_ref().or(target.before.as_ref()).map(|desired| desired.revision);
    if current != ours {
        return (Phase::Failed, "something newer was applied meanwhile".into());
    }
    let Some(live) = &station.live else {
        if target.was_live {
            return (Phase::Applying, "it was lost".into());
        }
        return (Phase::Away, "gets its configuration when it registers".into());
    };
    let desired = station.desired.as_ref();
    if let Some(rejected) = &station.rejected
        && desired.is_some_and(|desired| desired.revision == rejected.revision)
    {
        return (Phase::Rejected, rejected.rejection.message.clone());
    }
    let digest = desired.map(|desired| desired.digest);
    if live.applied.map(|applied| applied.digest) != digest {
        return (Phase::Applying, String::new());
    }
    let mut waiting = Vec::new();
    let wanted = target.document.roles.iter().flat_map(|(role, instances)| {
        instances.iter().map(move |(instance, config)| ((role.clone(), instance.clone()), instance_digest(config)))
    });
    let wanted: BTreeMap<_, _> = wanted.collect();
    for (key, digest) in &wanted {
        let name = format!("{}/{}", key.0, key.1);
        match live.instances.get(key).filter(|report| report.digest == *digest) {
            Some(report) if report.state == InstanceState::Failed => {
                return (Phase::Failed, format!("{name}: {}", report.detail));
            }
            Some(report) if report.state == InstanceState::Stopped => {
                return (Phase::Failed, format!("{name}: {}", report.detail));
            }
            Some(report) if report.state.is_healthy() => {}
            Some(report) => waiting.push(describe(&name, report)),
            None => waiting.push(format!("{name} is to come")),
        }
    }
    let leaving =
        live.instances.iter().filter(|(key, report)| report.owner == Owner::Fleet && !wanted.contains_key(*key));
    waiting.extend(leaving.map(|((role, instance), _)| format!("{role}/{instance} is to go")));
    match waiting.is_empty() {
        true => (Phase::Healthy, format!("{} instances", wanted.len())),
        false => (Phase::Applying, waiting.join(", ")),
    }
}

fn describe(name: &str, report: &InstanceReport) -> String {
    match report.detail.as_str() {
        "" => format!("{name} is {}", report.state),
        detail => format!("{name} is {} ({detail})", report.state),
    }
}
