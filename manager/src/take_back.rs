//! Going back from an apply that failed.

use std::sync::Arc;

use quilt_core::words::count;
use quilt_protocol::{Name, Revision};
use smol_str::SmolStr;

use crate::Core;
use crate::apply::{Applied, Target, document_of, push_all, refresh_others, take_desired};
use crate::desired::new_desired;
use crate::fleet::Saying;
use crate::store::{Change, Desired, Origin};

/// What a station had before an apply; if it was seen to fail with that, what it last ran well. What is too new to be judged
/// was asked for and has not failed, unless it was itself to be taken back if it fails.
async fn last_good(core: &Core, target: &Target) -> Option<Desired> {
    let before = target.before.clone()?;
    let on_trial = core.state().on_trial.get(&target.id) == Some(&before.revision);
    if before.good || !(target.was_ill || on_trial) {
        return Some(before);
    }
    let history = core.store.history(target.id).await.unwrap_or_default();
    let good = history.into_iter().find(|desired| desired.good && desired.revision <= before.revision);
    Some(good.unwrap_or(before))
}

fn before_revision(target: &Target) -> Option<Revision> {
    target.before.as_ref().map(|before| before.revision)
}

/// How much of an apply is taken back.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum TakeBack {
    /// All of it, the entries of the file too.
    Whole,
    /// Only these stations; they stay so until the next apply, whatever the entries say.
    Stations,
}

/// Goes back to what ran well before an apply, on these of its stations unless they were given something newer since.
/// Names those that went back.
pub(crate) async fn take_back(
    core: &Arc<Core>,
    applied: &Applied,
    how: TakeBack,
    which: &[&Target],
    who: &str,
) -> Result<Vec<Name>, String> {
    let mut earlier = Vec::new();
    for target in which.iter().filter(|target| target.desired.is_some()) {
        let earlier_one = match how {
            // Whoever was not offered it keeps what it had, good or not.
            TakeBack::Whole if core.state().is_held(target.id) => target.before.clone(),
            TakeBack::Whole => last_good(core, target).await,
            // They were never offered it: they keep what they had, good or not.
            TakeBack::Stations => target.before.clone(),
        };
        earlier.push((target, earlier_one));
    }
    let (mut writes, mut targets) = (Vec::new(), Vec::new());
    let mut fleet = core.state().fleet.clone();
    if how == TakeBack::Whole {
        // Only what is still as this apply left it: others may have applied something since.
        for key in applied.keys.iter().filter(|key| fleet.entry(key) == applied.after.entry(key)).collect::<Vec<_>>() {
            fleet.take_entry(key, &applied.before);
            writes.push(match applied.before.entry(key) {
                Some(entry) => Change::PutEntry(key.clone(), entry),
                None => Change::RemoveEntry(key.clone()),
            });
        }
    }
    {
        let mut state = core.state();
        for (target, earlier) in earlier {
            let current = state.stations.get(&target.id).and_then(|station| station.desired.as_ref());
            if current.map(|desired| desired.revision) != target.desired.as_ref().map(|desired| desired.revision) {
                continue;
            }
            state.last_revision = Revision(state.last_revision.0 + 1);
            let saying = Arc::new(Saying::new(document_of(earlier.as_ref()), Vec::new()));
            let origin = match how {
                // An older one than before is not what the entries say.
                TakeBack::Whole if earlier.as_ref().map(|one| one.revision) != before_revision(target) => {
                    Origin::Pinned
                }
                TakeBack::Whole => earlier.as_ref().map_or(Origin::Fleet, |earlier| earlier.origin),
                TakeBack::Stations => Origin::Pinned,
            };
            let mut desired = new_desired(state.last_revision, saying.json.clone(), origin);
            (desired.who, desired.source) = (who.into(), SmolStr::new_static("rollback of a failed apply"));
            desired.good = earlier.as_ref().is_some_and(|earlier| earlier.good);
            // A part of a rollout may have run well before the rest failed; nobody goes back to it.
            if let Some(taken_back) = target.desired.as_ref().filter(|_| how == TakeBack::Whole) {
                writes.push(Change::MarkGood(target.id, taken_back.revision, false));
            }
            writes.push(Change::PutDesired(target.id, Box::new(desired.clone())));
            let (name, before) = (target.name.clone(), target.desired.clone());
            let (was_live, was_ill) = (target.was_live, target.was_ill);
            let desired = Some(desired);
            targets.push(Target { id: target.id, name, saying, before, desired, was_live, was_ill, refused: false });
        }
    }
    core.store.commit(writes).await.map_err(|error| error.to_string())?;
    {
        let mut state = core.state();
        take_desired(&mut state, &targets);
        if how == TakeBack::Whole {
            state.fleet = fleet;
            let all: Vec<_> = state.stations.keys().copied().collect();
            all.into_iter().for_each(|id| state.relabel(id));
        }
    }
    if how == TakeBack::Whole {
        refresh_others(core, &applied.targets).await;
    }
    core.events.add("fleet.rolled_back", None, None, count(targets.len(), "station"));
    push_all(core, targets.iter()).await;
    core.note_change();
    Ok(targets.into_iter().map(|target| target.name).collect())
}
