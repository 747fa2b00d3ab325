//! Applying a fleet file: planned by every connected station it changes, stored, then pushed.

mod planning;
mod prepare;
mod snapshot;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use quilt_core::words::count;
use quilt_protocol::control::{ApplyReply, Rejection, StationChange};
use quilt_protocol::{Name, Revision, StationId};
use smol_str::SmolStr;

use crate::desired::{is_outdated, refresh};
use crate::fleet::{self, Apply, Fleet, Saying, Sayings, document_of};
use crate::part::Part;
use crate::state::{InstanceKey, State};
use crate::store::{Change, Desired, EntryKey, Trial};
use crate::workers::{Apart, give_way};
use crate::{Core, push, remarks, saving, trial};
use planning::{Asked, plan_all};
use prepare::{Prepared, prepare};
use snapshot::Snapshot;

pub(crate) use planning::PLAN_WITH_PLUGINS;

/// How many pushes are begun before others get their turn. What few have to do with is still in the caches when they are
/// written; with 256, a push to 10,000 costs more (benches/NOTEBOOK.md). With 32, a call waits longer meanwhile.
const PUSHED_AT_ONCE: usize = 8;
/// How many stations get new labels before others get their turn.
const RELABELLED_AT_ONCE: usize = 128;
/// How often stations are asked before nothing else is applied meanwhile.
const ROUNDS: usize = 3;

/// One station that an apply concerns.
pub(crate) struct Target {
    pub(crate) id: StationId,
    pub(crate) name: Name,
    pub(crate) saying: Arc<Saying>,
    /// What was desired before.
    pub(crate) before: Option<Desired>,
    /// Whether that is not known, because it was damaged in the store.
    pub(crate) was_damaged: bool,
    /// What is to become desired; none if that does not change.
    pub(crate) desired: Option<Desired>,
    /// Whether it was connected when the apply began.
    pub(crate) was_live: bool,
    /// Whether it refused what was desired before and stays desired.
    pub(crate) refused: bool,
    /// What of its configuration the apply answers for, if its effect is followed.
    pub(crate) part: Arc<Part>,
    /// Instances that were not healthy before and that the apply does not change; see `unhealthy`.
    pub(crate) unhealthy_before: BTreeSet<InstanceKey>,
}

impl Target {
    /// Whether it is to be asked what it thinks: also of what it refused before, or nothing would say that it still does.
    fn is_asked(&self) -> bool {
        self.was_live && (self.desired.is_some() || self.refused)
    }

    /// The revision that it has by this apply, be it new or not.
    pub(crate) fn revision(&self) -> Option<Revision> {
        self.desired.as_ref().or(self.before.as_ref()).map(|desired| desired.revision)
    }
}

/// What an apply did, for whoever follows its effect.
#[derive(Default)]
pub(crate) struct Applied {
    pub(crate) reply: ApplyReply,
    pub(crate) targets: Apart<Vec<Target>>,
    /// What fleet files said before and after, to go back.
    pub(crate) before: Apart<Arc<Fleet>>,
    pub(crate) after: Apart<Arc<Fleet>>,
    /// The entries that the file changed.
    pub(crate) keys: Vec<EntryKey>,
    /// What is stored of it, if it is to be taken back when it fails.
    pub(crate) trial: Option<Arc<Trial>>,
}

/// Plans and stores; pushes nothing yet.
///
/// # Errors
///
/// The store did not take it. Nothing was changed.
pub(crate) async fn apply(core: &Arc<Core>, request: &Arc<Apart<Apply>>, who: &str) -> Result<Applied, String> {
    refuse_on_damage(core, request)?;
    let mut asked = Asked::default();
    // One at a time: each is prepared against what the one before left. Stations are asked between, so that one that thinks for
    // long holds nobody up; if something else was applied meanwhile that changes what they would have, they are asked again.
    let (mut turn, mut rounds) = (None, 0);
    let (changed, targets, mut reply, contradictions) = loop {
        if turn.is_none() && !request.dry_run {
            turn = Some(core.applying.lock().await);
        }
        let (snapshot, asks) = (Snapshot::take(core).await, request.clone());
        // Long files take long to put together; see `workers`.
        let prepared = core.compute(move || prepare(&snapshot, &asks)).await;
        let Prepared { changed, targets, reply, contradictions } = match prepared {
            Ok(prepared) => prepared,
            Err(mistakes) => {
                let reply = ApplyReply { mistakes, ..ApplyReply::default() };
                return Ok(Applied { reply, ..Applied::default() });
            }
        };
        let (changed, targets) = (Apart::new(changed), Apart::new(targets));
        // Where stations come and go all the time, one that has just come is not waited for.
        if !contradictions.is_empty() || asked.is_about(&targets) || rounds > ROUNDS {
            break (changed, targets, reply, contradictions);
        }
        rounds += 1;
        if rounds < ROUNDS {
            turn = None;
        }
        asked = plan_all(core, &targets).await;
        if request.dry_run {
            break (changed, targets, reply, contradictions);
        }
        // What was made for this round is not kept beside what the next one makes.
        core.compute(move || drop((changed.take(), targets.take()))).await;
    };
    if !request.dry_run {
        // So that none is given twice; one that is not used is a gap, which is allowed.
        let given = targets.iter().filter_map(|target| Some(target.desired.as_ref()?.revision)).max();
        let mut state = core.state();
        state.last_revision = given.unwrap_or_default().max(state.last_revision);
    }
    reply.notes.extend(asked.notes);
    let contradicts = !contradictions.is_empty();
    let problems = if contradicts { contradictions } else { asked.problems };
    if !problems.is_empty() {
        reply.rejection = Some(Rejection::new(problems));
    }
    let before = Apart::new(core.state().fleet.clone());
    let after = Apart::new(changed.fleet.clone());
    let keys: Vec<_> = changed.put.iter().chain(&changed.removed).cloned().collect();
    reply.entries = keys.iter().map(remarks::entry).collect();
    let (targets, changes, notes) = changes_of(core, targets).await;
    reply.changes = changes;
    // Entries that contradict each other cannot be forced: nobody could say what they mean.
    if request.dry_run || contradicts || (reply.rejection.is_some() && !request.force) {
        reply.notes.extend(notes);
        reply.changes.iter_mut().for_each(|change| change.revision = None);
        return Ok(Applied { reply, targets: Apart::default(), before, after, keys, trial: None });
    }

    let (mut writes, trial, mut targets) = {
        let (asks, who, keys) = (request.clone(), who.to_owned(), keys.clone());
        let (before, after) = (Arc::clone(&before), Arc::clone(&after));
        let write = move || {
            let trial = trial::of(&asks, &who, &keys, (&before, &after), &targets);
            let mut writes = changed.take().writes();
            writes.extend(trial.clone().map(|trial| Change::PutTrial(Box::new(trial))));
            (writes, trial.map(Arc::new), targets)
        };
        core.compute(write).await
    };
    let (who_said, source) = (SmolStr::from(who), SmolStr::from(request.known_as()));
    for target in targets.iter_mut() {
        if let Some(desired) = &mut target.desired {
            (desired.who, desired.source) = (who_said.clone(), source.clone());
            desired.held = request.batch.is_some();
            writes.push(Change::PutDesired(target.id, Box::new(desired.clone())));
        }
    }
    saving::save_all(core).await.map_err(|error| error.to_string())?;
    core.store.commit(writes).await.map_err(|error| error.to_string())?;
    reply.stored = true;
    reply.notes.extend(notes);
    {
        let mut state = core.state();
        state.fleet = Arc::clone(&after);
        state.damaged_entries.clear();
        take_desired(&mut state, &targets);
        for target in targets.iter().filter(|target| target.refused) {
            // What it answers now counts, not what it answered when it was last asked.
            if let Some(station) = state.stations.get_mut(&target.id) {
                station.rejected = None;
            }
        }
        if request.wait.is_some() || request.batch.is_some() {
            // The rollout lets go of them, batch by batch. In the same breath, so that no registration comes between.
            let holds = targets.iter().filter_map(|target| Some((target.id, target.desired.as_ref()?.revision)));
            state.held.extend(holds);
        }
    }
    if keys.iter().any(EntryKey::has_labels) {
        relabel_all(core).await;
    }
    let changed = targets.iter().filter(|target| target.desired.is_some()).count();
    refresh_others(core, &targets).await;
    let text = match changed {
        1 => format!("{} by {who}: 1 station changes", request.known_as()),
        _ => format!("{} by {who}: {changed} stations change", request.known_as()),
    };
    core.events.add("fleet.applied", None, None, text);
    core.note_change();
    Ok(Applied { reply, targets, before, after, keys, trial })
}

/// A file is merged with what other files said. Where that is damaged only a file that says it again can be applied.
///
/// # Errors
///
/// It does not say all of it again; names what is damaged.
fn refuse_on_damage(core: &Core, request: &Apply) -> Result<(), String> {
    let is_put = |key: &Option<EntryKey>| match key {
        Some(EntryKey::Station(reference)) => request.fleet.station.contains_key(reference),
        Some(EntryKey::Group(group)) => request.fleet.group.contains_key(group),
        None => false,
    };
    let state = core.state();
    let left: Vec<_> = state.damaged_entries.iter().filter(|entry| !is_put(&entry.key)).collect();
    if left.is_empty() {
        return Ok(());
    }
    let places = left.iter().map(|entry| entry.place.as_str()).collect::<Vec<_>>().join("; ");
    let way_out = match left.iter().all(|entry| entry.key.is_some()) {
        true => "apply a file with all of these entries, or restore a backup with `quilt-manager restore`",
        false => "restore a backup with `quilt-manager restore`",
    };
    Err(format!(
        "fleet entries are damaged in the store, so what stations should run is not known whole: {places}; {way_out}"
    ))
}

pub(crate) fn take_desired(state: &mut State, targets: &[Target]) {
    for target in targets {
        if let Some(desired) = &target.desired
            && let Some(station) = state.stations.get_mut(&target.id)
        {
            station.set_desired(desired.clone());
        }
    }
}

/// How many changes of instances and plugins an answer lists: those of a million stations would not fit into one.
const LISTED_MAX: usize = 250_000;

/// As [`changes`], where that holds nobody up. Gives the targets back.
pub(crate) async fn changes_of(
    core: &Core,
    targets: Apart<Vec<Target>>,
) -> (Apart<Vec<Target>>, Vec<StationChange>, Vec<String>) {
    let tell = move || {
        let mut notes = Vec::new();
        let changes = changes(&targets, &mut notes);
        (targets, changes, notes)
    };
    core.compute(tell).await
}

/// What becomes of the configuration of every target that is to have another one. A note says how many are left out.
fn changes(targets: &[Target], notes: &mut Vec<String>) -> Vec<StationChange> {
    let (mut changes, mut listed, mut more) = (Vec::new(), 0, 0);
    // What the same document becomes the same is found out once, since in most fleets many stations are of one kind.
    let mut known = HashMap::new();
    for target in targets {
        let Some(desired) = &target.desired else { continue };
        if listed >= LISTED_MAX {
            more += 1;
            continue;
        }
        let from = target.before.as_ref().map(|before| before.digest);
        let (instances, plugins) = known
            .entry((from, target.saying.digest))
            .or_insert_with(|| {
                let (before, after) = (document_of(target.before.as_ref()), &target.saying.document);
                (fleet::differences(&before, after), fleet::plugin_differences(&before, after))
            })
            .clone();
        listed += 1 + instances.len() + plugins.len();
        let (station, revision) = (target.name.to_string(), Some(desired.revision));
        changes.push(StationChange { station, revision, instances, plugins });
    }
    if more > 0 {
        notes.push(format!("{} more: so many changes are not listed here", count(more, "station")));
    }
    changes
}

/// Starts the pushes of an apply.
pub(crate) async fn push_all<'a>(core: &Arc<Core>, targets: impl Iterator<Item = &'a Target> + Send) {
    // Also where nothing changes: a refused revision gets another chance, the others answer "unchanged".
    for (number, target) in targets.enumerate() {
        push::offer(core, target.id);
        if number % PUSHED_AT_ONCE == PUSHED_AT_ONCE - 1 {
            give_way().await;
        }
    }
}

/// Makes anew what entries say of connected stations that an apply did not look at: they came while it was planned.
pub(crate) async fn refresh_others(core: &Arc<Core>, targets: &[Target]) {
    let looked_at: BTreeSet<_> = targets.iter().map(|target| target.id).collect();
    let snapshot = Snapshot::take(core).await;
    let find = move || {
        let mut sayings = Sayings::new(&snapshot.fleet);
        let others = snapshot.stations.iter().filter(|station| station.is_live && station.record.adopted);
        let others = others.filter(|station| !looked_at.contains(&station.record.id));
        let outdated = others.filter(|station| {
            let said = sayings.of(&station.subject());
            !said.saying.conflicts.is_empty() || is_outdated(station.desired.as_ref(), &said)
        });
        outdated.map(|station| station.record.id).collect::<Vec<_>>()
    };
    for id in core.compute(find).await {
        refresh(core, id).await;
    }
}

/// Puts the labels of all stations together anew, a few at a time: fleet files say some of them.
pub(crate) async fn relabel_all(core: &Core) {
    let all: Vec<_> = core.state().stations.keys().copied().collect();
    for some in all.chunks(RELABELLED_AT_ONCE) {
        some.iter().for_each(|id| core.state().relabel(*id));
        tokio::task::yield_now().await;
    }
}
