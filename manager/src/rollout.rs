//! Following an apply until its effect is there: batches, waiting, settling, going back.

mod batches;
mod halt;
mod judge;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use quilt_core::words::list;
use quilt_net::ItemSink;
use quilt_protocol::Revision;
use quilt_protocol::control::{ApplyReply, Share, State as InstanceState, Wait};

pub(crate) use self::halt::halt_interrupted;

use self::batches::Rollout;
use self::judge::describe;
use crate::Core;
use crate::apply::{self, Applied, Target};
use crate::fleet::Apply;
use crate::state::State;
use crate::store::{Change, Trial};
use crate::take_back::{self, TakeBack};
use crate::trial;
use crate::workers::Apart;

/// How often what the store did not take is tried again.
const STORE_RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// How many stations are looked at before others get their turn.
const TOLD_AT_ONCE: usize = 32;

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
    let followed = follow(core, &terms, applied, items, Stage::Undecided).await;
    if let (Some(trial), Err(unfinished)) = (trial, &followed) {
        // The store did not take the way back. What was promised is carried out when it does.
        core.spawn(resume(core.clone(), trial, unfinished.stage));
    }
    followed.map_err(|unfinished| unfinished.error)
}

/// How far following an apply has come.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// It is followed until it has settled or failed.
    Undecided,
    /// It has failed, and goes back, whatever its instances do meanwhile.
    GoesBack,
}

/// The store did not take something.
struct Unfinished {
    error: String,
    stage: Stage,
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
pub(crate) async fn resume(core: Arc<Core>, trial: Arc<Trial>, mut stage: Stage) {
    let text = format!("{} by {}, which is to be taken back if it fails", trial.source, trial.who);
    core.events.add("fleet.resumed", None, None, text);
    let terms = Terms { source: &trial.source, batch: trial.batch, wait: trial.wait, who: &trial.who };
    loop {
        let followed = match trial::applied(&core, &trial).await {
            Ok(applied) => follow(&core, &terms, applied, None, stage).await,
            Err(error) => Err(Unfinished { error, stage }),
        };
        match followed {
            Ok(reply) => {
                let failed =
                    reply.failures.iter().map(|(station, why)| format!("{station}: {why}")).collect::<Vec<_>>();
                tracing::info!(source = trial.source, failed = failed.join("; "), "a resumed apply has ended");
                return;
            }
            Err(unfinished) => {
                tracing::warn!(error = unfinished.error, "a resumed apply cannot go on yet; tried again");
                stage = unfinished.stage;
            }
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
    stage: Stage,
) -> Result<ApplyReply, Unfinished> {
    let Terms { source, batch, wait, who } = *terms;
    let mut rollout = Rollout::new(core, source, wait, items);
    let has_failed = match stage {
        Stage::GoesBack => true,
        Stage::Undecided => {
            if let Err(error) = rollout.follow(batch, &mut applied, who).await {
                let held = halt::held(core, |id| applied.targets.iter().any(|target| target.id == id));
                let why = "its rollout failed, and the store did not take the halt at first";
                core.spawn(halt::keep_trying(core.clone(), held, why));
                return Err(Unfinished { error, stage });
            }
            applied.reply.superseded = rollout.superseded(&applied.targets);
            rollout.has_failed(&applied)
        }
    };
    if let Some(trial) = applied.trial.as_ref().filter(|_| !has_failed)
        && core.store.commit(vec![Change::EndTrial(trial.id)]).await.is_err()
    {
        core.spawn(end_trial(core.clone(), trial.id));
    }
    if wait.rollback && has_failed {
        let gone_back = go_back(core, &mut rollout, &mut applied, who).await;
        gone_back.map_err(|error| Unfinished { error, stage: Stage::GoesBack })?;
    }
    tell_unhealthy(core, source, &mut applied).await;
    if wait.rollback && !applied.reply.failures.is_empty() && !applied.reply.rolled_back {
        let changes_nothing = applied.keys.is_empty() && applied.targets.iter().all(|target| target.desired.is_none());
        let why = match has_failed {
            true if changes_nothing => ": this apply changed nothing",
            true => "",
            false => ": this apply is not to blame",
        };
        applied.reply.notes.push(format!("nothing was rolled back{why}"));
    }
    rollout.finish().await;
    Ok(applied.reply)
}

/// Takes back an apply that failed, and waits until its stations run again what they had.
async fn go_back(core: &Arc<Core>, rollout: &mut Rollout<'_>, applied: &mut Applied, who: &str) -> Result<(), String> {
    let turn = core.applying.lock().await;
    let all: Vec<_> = applied.targets.iter().collect();
    let spared = rollout.spared(&applied.targets);
    let spared: BTreeSet<_> = spared.iter().map(|target| target.name.clone()).collect();
    let entries = core.state().fleet.clone();
    let takes_entries = applied.keys.iter().any(|key| entries.is_same(key, &applied.after));
    // Whoever was not reached is let go only when it has what it had: until then it must not get what failed.
    let gone_back = take_back::take_back(core, applied, TakeBack::Whole, &all, who).await?;
    rollout.release(applied.targets.iter());
    apply::push_all(core, applied.targets.iter()).await;
    drop(turn);
    let has_newer = |target: &&Target| {
        target.desired.is_some() && !target.was_damaged && gone_back.iter().all(|back| back.id != target.id)
    };
    let newer: Vec<_> = applied.targets.iter().filter(has_newer).map(|target| target.name.clone()).collect();
    if !newer.is_empty() {
        let without = if takes_entries { ", without what this apply gave" } else { "" };
        applied.reply.notes.push(format!("{}: something newer was applied meanwhile and stays{without}", list(&newer)));
    }
    let (spared, gone_back): (Vec<_>, Vec<_>) = gone_back.into_iter().partition(|target| spared.contains(&target.name));
    if !spared.is_empty() {
        let spared: Vec<_> = spared.iter().map(|target| &target.name).collect();
        applied.reply.notes.push(format!("halted: {} never got it and keep what they had", list(&spared)));
    }
    applied.reply.rolled_back = !gone_back.is_empty() || (takes_entries && !newer.is_empty());
    let (gone_back, changes, notes) = apply::changes_of(core, Apart::new(gone_back)).await;
    applied.reply.taken_back = changes;
    applied.reply.notes.extend(notes);
    applied.reply.notes.extend(rollout.follow_back(&gone_back).await);
    Ok(())
}

/// Forgets that an apply was on trial, as soon as the store takes that.
async fn end_trial(core: Arc<Core>, id: Revision) {
    while core.store.commit(vec![Change::EndTrial(id)]).await.is_err() && core.pause(STORE_RETRY_INTERVAL).await {}
}

/// Tells of instances that the apply does not change and that are not healthy. Those of the file itself are failures all the same, or
/// a second try would call well what failed in the first; they are no reason to go back.
async fn tell_unhealthy(core: &Core, source: &str, applied: &mut Applied) {
    for some in applied.targets.chunks(TOLD_AT_ONCE) {
        tell_unhealthy_of(&core.state(), source, some, &mut applied.reply);
        tokio::task::yield_now().await;
    }
}

fn tell_unhealthy_of(state: &State, source: &str, targets: &[Target], reply: &mut ApplyReply) {
    for target in targets.iter().filter(|one| !one.unhealthy_before.is_empty() || !one.part.others.is_empty()) {
        let Some(station) = state.stations.get(&target.id) else { continue };
        let own = state.fleet.instances_from(source, &station.subject());
        for (key, report) in station.live.iter().flat_map(|live| &live.instances) {
            let was_unhealthy = target.unhealthy_before.contains(key);
            let has_failed = matches!(report.state, InstanceState::Failed | InstanceState::Backoff);
            let is_told = match was_unhealthy {
                true => !report.state.is_as_wanted(),
                false => has_failed && target.part.others.contains(key),
            };
            if !is_told {
                continue;
            }
            let (name, text) = (&target.name, describe(&format!("{}/{}", key.0, key.1), report));
            if own.contains(key) {
                let text = format!("{text}, as before this apply, which does not change it");
                reply.failures.entry(target.name.to_string()).or_insert(text);
            } else if was_unhealthy {
                reply.notes.push(format!("{name}: {text}; it was not healthy before this apply either"));
            } else {
                reply.notes.push(format!("{name}: {text}; this apply does not change it"));
            }
        }
    }
}
