//! Going back from an apply that failed.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use quilt_core::words::count;
use quilt_protocol::{Digest, Revision};
use smol_str::SmolStr;

use crate::Core;
use crate::apply::{Applied, Target, push_all, refresh_others, relabel_all, take_desired};
use crate::desired::hashed_desired;
use crate::fleet::{Fleet, Saying};
use crate::part::Part;
use crate::store::{Change, Origin};

/// How much of an apply is taken back.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum TakeBack {
    /// All of it, the entries of the file too.
    Whole,
    /// Only these stations; they stay so until the next apply, whatever the entries say.
    Stations,
}

/// What a station had before, and what goes back with it.
type Earlier = (Arc<Saying>, Arc<Part>);

/// Which content a station had before, absent where that was nothing, and which it was given.
fn digests(target: &Target) -> (Option<Digest>, Digest) {
    (target.before.as_ref().map(|before| before.digest), target.saying.digest)
}

/// Reads what was desired of these before, each content once.
async fn read(core: &Core, which: &[&Target]) -> HashMap<(Option<Digest>, Digest), Earlier> {
    let values = |target: &&Target| (digests(target), (target.before.clone(), target.saying.clone()));
    let values: HashMap<_, _> = which.iter().map(values).collect();
    let read = move || {
        let mut known = HashMap::new();
        let read = values.into_iter().map(|(digests, (before, given))| {
            let saying =
                known.entry(digests.0).or_insert_with(|| Arc::new(Saying::of_desired(before.as_ref()))).clone();
            let part = Part::new(&given.document, &saying.document, &BTreeSet::new());
            (digests, (saying, Arc::new(part)))
        });
        read.collect()
    };
    core.compute(read).await
}

/// Makes what was desired before an apply desired again, good or not, on these of its stations. One that was given something newer
/// since keeps what other files gave it, without the entries that are taken back. Returns the stations that went back to what they
/// had, with what is desired now.
pub(crate) async fn take_back(
    core: &Arc<Core>,
    applied: &Applied,
    how: TakeBack,
    which: &[&Target],
    who: &str,
) -> Result<Vec<Target>, String> {
    let (mut writes, mut targets) = (Vec::new(), Vec::new());
    let mut fleet = Fleet::clone(&core.state().fleet);
    if how == TakeBack::Whole {
        // Only what is still as this apply left it: others may have applied something since.
        for key in applied.keys.iter().filter(|key| fleet.is_same(key, &applied.after)).collect::<Vec<_>>() {
            fleet.take_entry(key, &applied.before);
            writes.push(match applied.before.entry(key) {
                Some(entry) => Change::PutEntry(key.clone(), entry),
                None => Change::RemoveEntry(key.clone()),
            });
        }
    }
    let earlier_documents = read(core, which).await;
    {
        let mut state = core.state();
        // What a station had is not known if it was damaged in the store: that station stays with what it was given.
        for target in which.iter().filter(|target| target.desired.is_some() && !target.was_damaged) {
            let earlier = target.before.as_ref();
            let station = state.stations.get(&target.id);
            let was_live = station.is_some_and(|station| station.live.is_some());
            let current = station.and_then(|station| station.desired.as_ref());
            if current.map(|desired| desired.revision) != target.desired.as_ref().map(|desired| desired.revision) {
                continue;
            }
            state.last_revision = Revision(state.last_revision.0 + 1);
            let (saying, part) = earlier_documents[&digests(target)].clone();
            let origin = match how {
                TakeBack::Whole => earlier.map_or(Origin::Fleet, |earlier| earlier.origin),
                TakeBack::Stations => Origin::Pinned,
            };
            let (digest, json, now_ms) = (saying.digest, saying.json.clone(), state.clock.now_ms());
            let mut desired = hashed_desired(state.last_revision, digest, json, origin, now_ms);
            (desired.who, desired.source) = (who.into(), SmolStr::new_static("rollback of a failed apply"));
            desired.good = earlier.is_some_and(|earlier| earlier.good);
            // A part of a rollout may have run well before the rest failed; nobody goes back to it.
            if let Some(taken_back) = target.desired.as_ref().filter(|_| how == TakeBack::Whole) {
                writes.push(Change::MarkGood(target.id, taken_back.revision, false));
            }
            writes.push(Change::PutDesired(target.id, Box::new(desired.clone())));
            let (name, before) = (target.name.clone(), target.desired.clone());
            let desired = Some(desired);
            let (id, was_damaged, refused, unhealthy_before) = (target.id, false, false, BTreeSet::new());
            targets.push(Target {
                id,
                name,
                saying,
                before,
                was_damaged,
                desired,
                was_live,
                refused,
                part,
                unhealthy_before,
            });
        }
    }
    writes.extend(applied.trial.as_ref().filter(|_| how == TakeBack::Whole).map(|trial| Change::EndTrial(trial.id)));
    core.store.commit(writes).await.map_err(|error| error.to_string())?;
    {
        let mut state = core.state();
        take_desired(&mut state, &targets);
        if how == TakeBack::Whole {
            state.fleet = Arc::new(fleet);
        }
    }
    if how == TakeBack::Whole {
        relabel_all(core).await;
        // What was given to a station meanwhile came from the entries that are taken back too.
        refresh_others(core, &targets).await;
    }
    core.events.add("fleet.rolled_back", None, None, count(targets.len(), "station"));
    push_all(core, targets.iter()).await;
    core.note_change();
    Ok(targets)
}
