//! Following an apply until its effect is there: batches, waiting, settling, going back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use quilt_core::words::{count, list};
use quilt_net::ItemSink;
use quilt_protocol::control::{
    ApplyReply, Document, InstanceReport, Owner, PLUGIN_SOURCE, Phase, ProblemCode, Progress, Share,
    State as InstanceState, Wait,
};
use quilt_protocol::{Revision, StationId};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::Core;
use crate::apply::{self, Applied, Target};
use crate::fleet::{Apply, Instances};
use crate::state::Station;
use crate::store::{Change, Origin, Trial};
use crate::take_back::{self, TakeBack};
use crate::workers::Apart;
use crate::{desired, register, trial};

/// Applies a fleet file and, if asked to, follows its effect; progress goes to `items`.
///
/// # Errors
///
/// As [`apply::apply`].
pub(crate) async fn run(
    core: &Arc<Core>,
    request: &Arc<Apart<Apply>>,
    who: &str,
    items: Option<ItemSink>,
) -> Result<ApplyReply, String> {
    // Following the effect, which can take long, holds nobody up.
    let applied = apply::apply(core, request, who).await?;
    if !applied.reply.stored {
        return Ok(applied.reply);
    }
    let wait = request.wait.or(request.batch.map(|_| {
        // Batches without waiting would not be batches.
        Wait { within_ms: 60_000, settle_ms: 2000, rollback: false }
    }));
    let Some(wait) = wait else {
        apply::push_all(core, applied.targets.iter()).await;
        return Ok(applied.reply);
    };
    let trial = applied.trial.clone();
    let terms = Terms { source: request.known_as(), batch: request.batch, wait, who };
    let followed = follow(core, &terms, applied, items).await;
    if let Some(trial) = trial.filter(|_| followed.is_err()) {
        // The store did not take the way back. What was promised is carried out when it does.
        core.spawn(resume(core.clone(), trial));
    }
    followed
}

/// How an apply is followed.
struct Terms<'a> {
    source: &'a str,
    batch: Option<Share>,
    wait: Wait,
    who: &'a str,
}

/// Goes on with an apply that is to be taken back if it fails, where the manager before this one left it, or where the store did not
/// take the way back.
pub(crate) async fn resume(core: Arc<Core>, trial: Arc<Trial>) {
    let text = format!("{} by {}, which is to be taken back if it fails", trial.source, trial.who);
    core.events.add("fleet.resumed", None, None, text);
    let terms = Terms { source: &trial.source, batch: trial.batch, wait: trial.wait, who: &trial.who };
    loop {
        let followed = match trial::applied(&core, &trial).await {
            Ok(applied) => follow(&core, &terms, applied, None).await,
            Err(error) => Err(error),
        };
        match followed {
            Ok(reply) => {
                let failed =
                    reply.failures.iter().map(|(station, why)| format!("{station}: {why}")).collect::<Vec<_>>();
                tracing::info!(source = trial.source, failed = failed.join("; "), "a resumed apply has ended");
                return;
            }
            Err(error) => tracing::warn!(error, "a resumed apply cannot go on yet; tried again"),
        }
        if !core.pause(STORE_RETRY_INTERVAL).await {
            return;
        }
    }
}

/// Follows an apply to its end, and goes back if that was asked for and it failed.
async fn follow(
    core: &Arc<Core>,
    terms: &Terms<'_>,
    mut applied: Applied,
    items: Option<ItemSink>,
) -> Result<ApplyReply, String> {
    let Terms { source, batch, wait, who } = *terms;
    let mut rollout = Rollout::new(core, wait, items, &applied.targets);
    rollout.misses_roles = !source.starts_with(PLUGIN_SOURCE);
    let followed = rollout.follow(batch, &mut applied, who).await;
    if followed.is_err() {
        rollout.release(applied.targets.iter());
        apply::push_all(core, applied.targets.iter()).await;
    }
    followed?;
    let has_failed = !applied.reply.failures.is_empty() || applied.reply.timed_out;
    if let Some(trial) = applied.trial.as_ref().filter(|_| !has_failed)
        && core.store.commit(vec![Change::EndTrial(trial.id)]).await.is_err()
    {
        core.spawn(end_trial(core.clone(), trial.id));
    }
    if wait.rollback && has_failed {
        let _one_at_a_time = core.applying.lock().await;
        let all: Vec<_> = applied.targets.iter().collect();
        let spared = rollout.spared(&applied.targets);
        let spared: BTreeSet<_> = spared.iter().map(|target| target.name.clone()).collect();
        let entries = core.state().fleet.clone();
        let takes_entries = applied.keys.iter().any(|key| entries.is_same(key, &applied.after));
        let gone_back = take_back::take_back(core, &applied, TakeBack::Whole, &all, who).await;
        rollout.release(applied.targets.iter());
        let gone_back = gone_back?;
        apply::push_all(core, applied.targets.iter()).await;
        let has_newer = |target: &&Target| {
            target.desired.is_some() && !target.was_damaged && gone_back.iter().all(|back| back.id != target.id)
        };
        let newer: Vec<_> = applied.targets.iter().filter(has_newer).map(|target| target.name.clone()).collect();
        if !newer.is_empty() {
            let without = if takes_entries { ", without what this apply gave" } else { "" };
            applied
                .reply
                .notes
                .push(format!("{}: something newer was applied meanwhile and stays{without}", list(&newer)));
        }
        let (spared, gone_back): (Vec<_>, Vec<_>) =
            gone_back.into_iter().partition(|target| spared.contains(&target.name));
        if !spared.is_empty() {
            let spared: Vec<_> = spared.iter().map(|target| &target.name).collect();
            applied.reply.notes.push(format!("halted: {} never got it and keep what they had", list(&spared)));
        }
        applied.reply.rolled_back = !gone_back.is_empty() || (takes_entries && !newer.is_empty());
        let (gone_back, changes, notes) = apply::changes_of(core, Apart::new(gone_back)).await;
        applied.reply.taken_back = changes;
        applied.reply.notes.extend(notes);
        for target in gone_back.iter() {
            rollout.show(target.name.as_str(), Phase::RolledBack, "");
        }
    }
    tell_unhealthy(core, source, &mut applied);
    rollout.finish().await;
    Ok(applied.reply)
}

/// Forgets that an apply was on trial, as soon as the store takes that.
async fn end_trial(core: Arc<Core>, id: Revision) {
    while core.store.commit(vec![Change::EndTrial(id)]).await.is_err() && core.pause(STORE_RETRY_INTERVAL).await {}
}

/// Tells of instances that were not healthy before the apply, which did not change them, and still are not. Those of the file itself
/// are failures all the same, or a second try would call well what failed in the first; they are no reason to go back.
fn tell_unhealthy(core: &Core, source: &str, applied: &mut Applied) {
    let state = core.state();
    for target in applied.targets.iter().filter(|target| !target.unhealthy_before.is_empty()) {
        let Some(station) = state.stations.get(&target.id) else { continue };
        let own = state.fleet.instances_from(source, &station.subject());
        let reports = station.live.iter().flat_map(|live| &live.instances);
        for (key, report) in
            reports.filter(|(key, report)| target.unhealthy_before.contains(*key) && !report.state.is_as_wanted())
        {
            let text = describe(&format!("{}/{}", key.0, key.1), report);
            if own.contains(key) {
                let text = format!("{text}, as before this apply, which does not change it");
                applied.reply.failures.entry(target.name.to_string()).or_insert(text);
            } else {
                let name = &target.name;
                applied.reply.notes.push(format!("{name}: {text}; it was not healthy before this apply either"));
            }
        }
    }
}

struct Rollout<'a> {
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
    misses_roles: bool,
}

/// How often what the store did not take is tried again.
const STORE_RETRY_INTERVAL: Duration = Duration::from_secs(1);

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
    fn new(core: &'a Arc<Core>, wait: Wait, items: Option<ItemSink>, targets: &[Target]) -> Self {
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
    async fn finish(mut self) {
        self.progress = None;
        let _ = tokio::time::timeout(PASSED_ON, self.passed_on).await;
    }

    async fn follow(&mut self, batch: Option<Share>, applied: &mut Applied, who: &str) -> Result<(), String> {
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
    fn release<'t>(&self, targets: impl Iterator<Item = &'t Target>) {
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
    fn spared<'t>(&self, targets: &'t [Target]) -> Vec<&'t Target> {
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

    fn show(&mut self, station: &str, phase: Phase, detail: &str) {
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

/// What a rollout in batches had not reached when the manager ended keeps what it had: nobody watches over the rest of it, unless it
/// is on trial and goes on. Until that is stored nothing is pushed to these stations.
pub(crate) async fn halt_interrupted(core: Arc<Core>) {
    while let Err(error) = try_halt(&core).await {
        tracing::warn!(%error, "an interrupted rollout is not halted yet; tried again");
        if !core.pause(STORE_RETRY_INTERVAL).await {
            return;
        }
    }
}

async fn try_halt(core: &Arc<Core>) -> anyhow::Result<()> {
    let held: Vec<_> = {
        let state = core.state();
        let held = state.held.iter().map(|(id, revision)| (*id, *revision));
        held.filter(|held| !state.resumed.contains(held)).collect()
    };
    for (id, revision) in held {
        let _one_at_a_time = core.applying.lock().await;
        if !core.state().is_held(id) {
            // It was given something newer meanwhile.
            continue;
        }
        let history = core.store.history(id).await?;
        let document = history.desired.into_iter().find(|desired| desired.revision < revision && !desired.held);
        let found = document.as_ref().map(|desired| desired.revision);
        if let Some((_, place)) =
            history.damaged.iter().find(|(damaged, _)| *damaged < revision && Some(*damaged) > found)
        {
            tracing::error!(station = %id, place, "the configuration before an interrupted rollout is damaged; apply a file for this station");
            continue;
        }
        let document = document.map_or_else(|| Document::default().to_json().into(), |desired| desired.document);
        let source = format!("revision {revision} was halted: the manager ended during its rollout");
        desired::set_desired(core, id, document, Origin::Pinned, "manager", &source)
            .await
            .map_err(anyhow::Error::msg)?;
        core.state().held.remove(&id);
        let name = core.state().stations.get(&id).map(|station| station.record.name.to_string());
        core.events.add("fleet.halted", name.as_deref(), None, source);
    }
    Ok(())
}

/// How far a station is with what is desired of it.
fn judge(station: Option<&Station>, target: &Target, wanted: &Instances, misses_roles: bool) -> (Phase, String) {
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
        // It is offered that again until it can take it.
        let is_fault = rejected.rejection.code == ProblemCode::StationFault;
        let phase = if is_fault { Phase::Applying } else { Phase::Rejected };
        return (phase, rejected.rejection.message.clone());
    }
    let digest_of_all = desired.map(|desired| desired.digest);
    if live.applied.map(|applied| applied.digest) != digest_of_all || live.applying {
        return (Phase::Applying, String::new());
    }
    let (mut waiting, mut beside) = (Vec::new(), Vec::new());
    for (key, digest) in wanted {
        let name = format!("{}/{}", key.0, key.1);
        if target.unhealthy_before.contains(key) {
            let report = live.instances.get(key).filter(|report| !report.state.is_as_wanted());
            beside.extend(report.map(|report| describe(&name, report)));
            continue;
        }
        if let Some(InstanceReport { held_back: Some((asked, why)), .. }) = live.instances.get(key)
            && Some(*asked) == digest_of_all
        {
            return (Phase::Failed, format!("{name}: {why}"));
        }
        if let Some(report) = live.instances.get(key).filter(|report| report.cannot_run()) {
            if misses_roles {
                return (Phase::Failed, format!("{name}: {}", report.detail));
            }
            beside.push(describe(&name, report));
            continue;
        }
        match live.instances.get(key).filter(|report| report.digest == *digest) {
            Some(report) if report.state == InstanceState::Failed => {
                return (Phase::Failed, format!("{name}: {}", report.detail));
            }
            Some(report) if report.state == InstanceState::Active => {}
            Some(report) if report.state.is_as_wanted() => beside.push(describe(&name, report)),
            Some(report) => waiting.push(describe(&name, report)),
            None => waiting.push(format!("{name} is to come")),
        }
    }
    let leaving =
        live.instances.iter().filter(|(key, report)| report.owner == Owner::Fleet && !wanted.contains_key(*key));
    waiting.extend(leaving.map(|((role, instance), report)| match report.detail.as_str() {
        "" => format!("{role}/{instance} is to go"),
        detail => format!("{role}/{instance} is to go ({detail})"),
    }));
    match waiting.is_empty() {
        true => (Phase::Healthy, healthy(wanted.len(), &beside)),
        false => (Phase::Applying, waiting.join(", ")),
    }
}

/// How many instances there are, and those that do not run any more although nothing is wrong with them.
fn healthy(instances: usize, beside: &[String]) -> String {
    const SHOWN_MAX: usize = 5;
    let all = count(instances, "instance");
    let more = beside.len().checked_sub(SHOWN_MAX).filter(|more| *more > 0);
    let more = more.map(|more| format!("and {more} more that do not run"));
    std::iter::once(all).chain(beside.iter().take(SHOWN_MAX).cloned()).chain(more).collect::<Vec<_>>().join(", ")
}

fn describe(name: &str, report: &InstanceReport) -> String {
    match report.detail.as_str() {
        "" => format!("{name} is {}", report.state),
        detail => format!("{name} is {} ({detail})", report.state),
    }
}
