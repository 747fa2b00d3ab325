//! Applying a fleet file: planned by every connected station it changes, stored, then pushed.

mod planning;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use quilt_core::words::count;
use quilt_protocol::control::{Apply, ApplyReply, Document, Problem, Rejection, Remark, StationChange};
use quilt_protocol::{Name, Revision, StationId};
use smol_str::SmolStr;

use crate::desired::{hashed_desired, refresh};
use crate::fleet::{self, Fleet, Merged, Said, Saying, Sayings};
use crate::selector::{self, Selector};
use crate::state::{InstanceKey, State, Station};
use crate::store::{Change, Desired, EntryKey, Origin};
use crate::unhealthy::unhealthy_before;
use crate::{Core, push, remarks};
use planning::{Asked, plan_all};

pub(crate) use planning::PLAN_WITH_PLUGINS;

/// How many pushes are begun before others get their turn. What few have to do with is still in the caches when they are
/// written; with 256, a push to 10,000 costs more (docs/performance.md).
const PUSHED_AT_ONCE: usize = 32;
/// How often stations are asked before nothing else is applied meanwhile.
const ROUNDS: usize = 3;

/// One station that an apply concerns.
pub(crate) struct Target {
    pub(crate) id: StationId,
    pub(crate) name: Name,
    pub(crate) saying: Arc<Saying>,
    /// What was desired before.
    pub(crate) before: Option<Desired>,
    /// What is to become desired; none if that does not change.
    pub(crate) desired: Option<Desired>,
    /// Whether it was connected when the apply began.
    pub(crate) was_live: bool,
    /// Whether it refused what was desired before and stays desired.
    pub(crate) refused: bool,
    /// Instances that a rollout is not judged by; see [`unhealthy_before`].
    pub(crate) unhealthy_before: BTreeSet<InstanceKey>,
}

impl Target {
    /// Whether it is to be asked what it thinks: also of what it refused before, or nothing would say that it still does.
    fn is_asked(&self) -> bool {
        self.was_live && (self.desired.is_some() || self.refused)
    }
}

/// What an apply did, for whoever follows its effect.
#[derive(Default)]
pub(crate) struct Applied {
    pub(crate) reply: ApplyReply,
    pub(crate) targets: Vec<Target>,
    /// What fleet files said before and after, to go back.
    pub(crate) before: Fleet,
    pub(crate) after: Fleet,
    /// The entries that the file changed.
    pub(crate) keys: Vec<EntryKey>,
}

/// Plans and stores; pushes nothing yet.
///
/// # Errors
///
/// The store did not take it. Nothing was changed.
pub(crate) async fn apply(core: &Arc<Core>, request: &Apply, who: &str) -> Result<Applied, String> {
    let mut asked = Asked::default();
    // One at a time: each is prepared against what the one before left. Stations are asked between, so that one that thinks for
    // long holds nobody up; if something else was applied meanwhile that changes what they would have, they are asked again.
    let (mut turn, mut rounds) = (None, 0);
    let (merged, mut targets, mut reply, contradictions) = loop {
        if turn.is_none() && !request.dry_run {
            turn = Some(core.applying.lock().await);
        }
        let Prepared { merged, targets, reply, contradictions } = match prepare(core, request) {
            Ok(prepared) => prepared,
            Err(mistakes) => {
                let reply = ApplyReply { mistakes, ..ApplyReply::default() };
                return Ok(Applied { reply, ..Applied::default() });
            }
        };
        // Where stations come and go all the time, one that has just come is not waited for.
        if !contradictions.is_empty() || asked.is_about(&targets) || rounds > ROUNDS {
            break (merged, targets, reply, contradictions);
        }
        rounds += 1;
        if rounds < ROUNDS {
            turn = None;
        }
        asked = plan_all(core, &targets).await;
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
    reply.entries = merged.put.iter().map(|(key, _)| key).chain(&merged.removed).map(remarks::entry).collect();
    let before = core.state().fleet.clone();
    let after = merged.fleet.clone();
    let keys: Vec<_> = merged.put.iter().map(|(key, _)| key.clone()).chain(merged.removed.iter().cloned()).collect();
    // Entries that contradict each other cannot be forced: nobody could say what they mean.
    if request.dry_run || contradicts || (reply.rejection.is_some() && !request.force) {
        reply.changes = changes(&targets, &mut reply.notes);
        reply.changes.iter_mut().for_each(|change| change.revision = None);
        return Ok(Applied { reply, targets: Vec::new(), before, after, keys });
    }

    let mut writes: Vec<_> = merged.put.into_iter().map(|(key, entry)| Change::PutEntry(key, entry)).collect();
    writes.extend(merged.removed.into_iter().map(Change::RemoveEntry));
    let (who_said, source) = (SmolStr::from(who), SmolStr::from(request.known_as()));
    for target in &mut targets {
        if let Some(desired) = &mut target.desired {
            (desired.who, desired.source) = (who_said.clone(), source.clone());
            desired.held = request.batch.is_some();
            writes.push(Change::PutDesired(target.id, Box::new(desired.clone())));
        }
    }
    core.store.commit(writes).await.map_err(|error| error.to_string())?;
    reply.stored = true;
    reply.changes = changes(&targets, &mut reply.notes);
    {
        let mut state = core.state();
        state.fleet = merged.fleet;
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
        if after != before {
            let all: Vec<_> = state.stations.keys().copied().collect();
            all.into_iter().for_each(|id| state.relabel(id));
        }
    }
    let changed = targets.iter().filter(|target| target.desired.is_some()).count();
    refresh_others(core, &targets).await;
    let text = match changed {
        1 => format!("{} by {who}: 1 station changes", request.known_as()),
        _ => format!("{} by {who}: {changed} stations change", request.known_as()),
    };
    core.events.add("fleet.applied", None, None, text);
    core.note_change();
    Ok(Applied { reply, targets, before, after, keys })
}

/// What would become of every station that a file concerns.
struct Prepared {
    merged: Merged,
    targets: Vec<Target>,
    reply: ApplyReply,
    /// Instances of theirs that entries configure differently. Contradictions elsewhere were there before, and are not this
    /// file's affair.
    contradictions: Vec<Problem>,
}

fn prepare(core: &Core, request: &Apply) -> Result<Prepared, Vec<Remark>> {
    let state = core.state();
    let mut merged = state.fleet.merged(&request.fleet, request.known_as())?;
    for reference in request.fleet.station.keys() {
        let meant = |station: &&Station| fleet::is_meant(reference, &station.subject());
        let names: Vec<_> =
            state.stations.values().map(AsRef::as_ref).filter(meant).map(|one| one.record.name.to_string()).collect();
        if names.len() > 1 {
            let names = names.join(", ");
            let text = format!("station `{reference}` means {names}; it must mean one, use a name or \"id:<uuid>\"");
            return Err(vec![Remark { at: vec!["station".into(), reference.clone()], text }]);
        }
    }
    let names_any = !request.fleet.station.is_empty();
    for station in state.stations.values().filter(|_| names_any) {
        for reference in merged.fleet.drop_synonyms(&station.subject(), &request.fleet) {
            let note =
                format!("station `{reference}` is {} under another name; its entry is replaced", station.record.name);
            merged.notes.push(note);
            merged.removed.push(EntryKey::Station(reference));
        }
    }
    let mut reply = ApplyReply { notes: merged.notes.clone(), ..ApplyReply::default() };
    let (unknown, unmatched) = unmatched(&state, &merged.fleet, request);
    for reference in unknown {
        let note = format!("station `{reference}` is not known yet; it gets its configuration when it registers");
        reply.notes.push(note);
    }
    if !unmatched.is_empty() {
        let stations = state.stations.values();
        let labels: Vec<_> = stations.map(|station| merged.fleet.labels_of(&station.subject())).collect();
        for group in unmatched {
            let selector = request.fleet.group.get(group.as_str()).map_or("", |group| &group.selector);
            let unknown = selector.parse::<Selector>().map(|selector| selector.unknown_labels(|| labels.iter()));
            let why = unknown.ok().and_then(|labels| selector::tell_unknown(&labels));
            let why = why.map_or_else(String::new, |why| format!("; {why}"));
            reply.warnings.push(Remark {
                at: vec!["group".into(), group.clone(), "match".into()],
                text: format!("group `{group}`: its selector {selector:?} matches no station{why}"),
            });
        }
    }
    let mut revision = state.last_revision;
    let (mut targets, mut contradictions) = (Vec::new(), Vec::new());
    let mut sayings = Sayings::new(&merged.fleet);
    let mut earlier = (merged.fleet != state.fleet).then(|| Sayings::new(&state.fleet));
    for station in state.stations.values() {
        let said = sayings.of(&station.subject());
        let concerned = said.concerned || said_before(&state, station.record.id);
        if !concerned || !named_by(request, station, &said, &merged.fleet, earlier.as_mut()) {
            continue;
        }
        if !station.record.adopted {
            reply.notes.push(format!("station {} is not adopted; nothing is pushed to it", station.record.name));
            reply.away.push(station.record.name.to_string());
            continue;
        }
        let before = station.desired.clone();
        let saying = said.saying;
        let changes = before.as_ref().is_none_or(|before| before.digest != saying.digest);
        let desired = changes.then(|| {
            revision = Revision(revision.0 + 1);
            hashed_desired(revision, saying.digest, saying.json.clone(), Origin::Fleet)
        });
        let (id, name) = (station.record.id, station.record.name.clone());
        let was_live = station.live.is_some();
        let refused = was_live && desired.is_none() && station.refuses_desired();
        if !was_live {
            reply.away.push(name.to_string());
        }
        let waits = request.wait.is_some() || request.batch.is_some();
        let unhealthy_before = match &station.live {
            Some(live) if waits && live.instances.values().any(|report| !report.state.is_as_wanted()) => {
                let earlier = document_of(before.as_ref());
                let own = merged.fleet.instances_from(request.known_as(), &station.subject());
                unhealthy_before(&live.instances, &earlier, &saying.document, &own)
            }
            _ => BTreeSet::new(),
        };
        contradictions.extend(saying.conflicts.iter().cloned());
        targets.push(Target { id, name, saying, before, desired, was_live, refused, unhealthy_before });
    }
    reply.notes.extend(remarks::of_targets(request.known_as(), &targets));
    reply.targets = targets.len()
        + state
            .stations
            .values()
            .filter(|station| !station.record.adopted && reply.away.contains(&station.record.name.to_string()))
            .count();
    drop(state);
    Ok(Prepared { merged, targets, reply, contradictions })
}

/// Whether a station's desired configuration comes from fleet entries.
fn said_before(state: &State, id: StationId) -> bool {
    let desired = state.stations.get(&id).and_then(|station| station.desired.as_ref());
    desired.is_some_and(|desired| desired.origin == Origin::Fleet)
}

/// Whether the file itself has something to do with a station: stations it does not concern are left alone.
/// `earlier` is what entries said before, if that was anything else.
fn named_by(request: &Apply, station: &Station, said: &Said, after: &Fleet, earlier: Option<&mut Sayings<'_>>) -> bool {
    let subject = &station.subject();
    let named = request.fleet.station.keys().any(|reference| fleet::is_meant(reference, subject));
    named
        || earlier.is_some_and(|earlier| *said != earlier.of(subject))
        || after.said_by_groups_of(subject, request.fleet.group.keys())
}

fn unmatched(state: &State, fleet: &Fleet, request: &Apply) -> (Vec<String>, Vec<String>) {
    let unknown = request
        .fleet
        .station
        .keys()
        .filter(|reference| !state.stations.values().any(|station| fleet::is_meant(reference, &station.subject())));
    let unmatched = request.fleet.group.keys().filter(|group| {
        !state.stations.values().any(|station| fleet.said_by_groups_of(&station.subject(), std::iter::once(*group)))
    });
    (unknown.cloned().collect(), unmatched.map(ToString::to_string).collect())
}

pub(crate) fn take_desired(state: &mut State, targets: &[Target]) {
    for target in targets {
        if let Some(desired) = &target.desired
            && let Some(station) = state.stations.get_mut(&target.id)
        {
            station.desired = Some(desired.clone());
        }
    }
}

/// How many changes of instances and plugins an answer lists: those of a million stations would not fit into one.
const LISTED_MAX: usize = 250_000;

/// What becomes of the configuration of every target that is to have another one. A note says how many are left out.
pub(crate) fn changes(targets: &[Target], notes: &mut Vec<String>) -> Vec<StationChange> {
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

pub(crate) fn document_of(desired: Option<&Desired>) -> Document {
    desired.and_then(|desired| serde_json::from_str(&desired.document).ok()).unwrap_or_default()
}

/// Starts the pushes of an apply.
pub(crate) async fn push_all<'a>(core: &Arc<Core>, targets: impl Iterator<Item = &'a Target> + Send) {
    // Also where nothing changes: a refused revision gets another chance, the others answer "unchanged".
    for (number, target) in targets.enumerate() {
        push::offer(core, target.id);
        if number % PUSHED_AT_ONCE == PUSHED_AT_ONCE - 1 {
            tokio::task::yield_now().await;
        }
    }
}

/// Makes anew what entries say of connected stations that an apply did not look at: they came while it was planned. `targets`
/// are in the order of their identities.
pub(crate) async fn refresh_others(core: &Arc<Core>, targets: &[Target]) {
    debug_assert!(targets.is_sorted_by_key(|target| target.id));
    let others: Vec<_> = {
        let state = core.state();
        let live = state.stations.values().filter(|station| station.live.is_some() && station.record.adopted);
        // Both are in the order of identities.
        let mut looked_at = targets.iter().map(|target| target.id).peekable();
        let mut is_new = |id: StationId| {
            while looked_at.next_if(|other| *other < id).is_some() {}
            looked_at.peek() != Some(&id)
        };
        live.map(|station| station.record.id).filter(|id| is_new(*id)).collect()
    };
    for id in others {
        refresh(core, id).await;
    }
}
