//! Applies that are to be taken back if they fail, as they are stored: put together when one is made, and read again by the
//! manager that starts next.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use quilt_protocol::Revision;
use quilt_protocol::control::ApplyReply;

use crate::Core;
use crate::apply::{Applied, Target};
use crate::fleet::{Apply, Fleet, Saying, document_of};
use crate::part::Part;
use crate::state::InstanceKey;
use crate::store::{Desired, Entry, EntryKey, Trial, TrialEntry, TrialTarget};
use crate::workers::Apart;

/// What is stored of an apply; none if it is not to be taken back, or changes nothing.
pub(crate) fn of(
    request: &Apply,
    who: &str,
    keys: &[EntryKey],
    (before, after): (&Fleet, &Fleet),
    targets: &[Target],
) -> Option<Trial> {
    let wait = request.wait.filter(|wait| wait.rollback)?;
    let revision = |desired: &Option<Desired>| desired.as_ref().map(|desired| desired.revision);
    let id = targets.iter().filter_map(|target| revision(&target.desired)).min()?;
    let entry = |key: &EntryKey| TrialEntry { key: key.clone(), before: before.entry(key), after: after.entry(key) };
    let target = |target: &Target| TrialTarget {
        id: target.id,
        name: target.name.clone(),
        before: revision(&target.before),
        desired: revision(&target.desired),
        was_live: target.was_live,
        unhealthy_before: target.unhealthy_before.clone(),
    };
    Some(Trial {
        id,
        who: who.into(),
        source: request.known_as().into(),
        wait,
        batch: request.batch,
        entries: keys.iter().map(entry).collect(),
        targets: targets.iter().map(target).collect(),
    })
}

/// The apply that was stored, of the stations that are still known. What they were given since is followed as if the manager had not
/// ended.
///
/// # Errors
///
/// The store does not say what they had before.
pub(crate) async fn applied(core: &Arc<Core>, trial: &Arc<Trial>) -> Result<Applied, String> {
    let mut left = Vec::new();
    for (number, target) in trial.targets.iter().enumerate() {
        let Some(current) = core.state().stations.get(&target.id).map(|station| station.desired.clone()) else {
            continue;
        };
        let history = core.store.history(target.id).await.map_err(|error| error.to_string())?.desired;
        let find = |revision: Option<Revision>| {
            let is_meant = |desired: &&Desired| Some(desired.revision) == revision;
            current.iter().chain(&history).find(is_meant).cloned()
        };
        let (given, earlier) = (find(target.desired.or(target.before)), find(target.before));
        if given.is_none() && target.desired.is_some() {
            // So much was applied since that nobody knows any more what this apply gave.
            continue;
        }
        let own = {
            let state = core.state();
            let station = state.stations.get(&target.id);
            station.map(|station| state.fleet.instances_from(&trial.source, &station.subject())).unwrap_or_default()
        };
        left.push(Left { number, given, earlier, own });
    }
    let trial = trial.clone();
    // Long documents and entries take long to read; see `workers`.
    core.compute(move || put_together(trial, left)).await
}

/// A target of an apply on trial.
struct Left {
    /// Which of the targets.
    number: usize,
    /// What it has by the apply, be it new or not.
    given: Option<Desired>,
    earlier: Option<Desired>,
    /// The instances that the file gives it.
    own: BTreeSet<InstanceKey>,
}

fn put_together(trial: Arc<Trial>, left: Vec<Left>) -> Result<Applied, String> {
    let fleet = |side: fn(&TrialEntry) -> &Option<Entry>| {
        let entries = trial.entries.iter().filter_map(|entry| Some((entry.key.clone(), side(entry).clone()?)));
        Fleet::from_entries(&entries.collect::<BTreeMap<_, _>>()).map(|fleet| Apart::new(Arc::new(fleet)))
    };
    // What many stations have is read once.
    let mut known = HashMap::new();
    let targets = left.into_iter().map(|Left { number, given, earlier, own }| {
        let target = &trial.targets[number];
        let digest = given.as_ref().map(|given| given.digest);
        let saying = known.entry(digest).or_insert_with(|| Arc::new(Saying::of_desired(given.as_ref()))).clone();
        let part = Arc::new(Part::of(&trial.source, &document_of(earlier.as_ref()), &saying.document, &own));
        Target {
            id: target.id,
            name: target.name.clone(),
            saying,
            was_damaged: target.before.is_some() && earlier.is_none(),
            before: earlier,
            desired: given.filter(|_| target.desired.is_some()),
            was_live: target.was_live,
            refused: false,
            part,
            unhealthy_before: target.unhealthy_before.clone(),
        }
    });
    Ok(Applied {
        reply: ApplyReply::default(),
        targets: Apart::new(targets.collect()),
        before: fleet(|entry| &entry.before)?,
        after: fleet(|entry| &entry.after)?,
        keys: trial.entries.iter().map(|entry| entry.key.clone()).collect(),
        trial: Some(trial.clone()),
    })
}
