//! What would become of the stations that a fleet file concerns. Pure: values in, values out.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use quilt_protocol::control::{ApplyReply, Problem, Remark};
use quilt_protocol::{Name, Revision, StationId};

use super::Target;
use super::snapshot::{Snapshot, StationSnapshot};
use crate::desired::hashed_desired;
use crate::fleet::{Apply, Fleet, GroupEntry, Merged, Sayings, document_of};
use crate::part::Part;
use crate::remarks;
use crate::selector::{self, Selector};
use crate::store::{Change, EntryKey, Origin};
use crate::unhealthy::unhealthy_before;

/// What would become of every station that a file concerns.
pub(super) struct Prepared {
    pub(super) changed: ChangedEntries,
    pub(super) targets: Vec<Target>,
    pub(super) reply: ApplyReply,
    /// Instances of theirs that entries configure differently. Contradictions elsewhere were there before, and are not this
    /// file's affair.
    pub(super) contradictions: Vec<Problem>,
}

/// How a file changes the entries of the fleet.
pub(super) struct ChangedEntries {
    /// All entries afterwards.
    pub(super) fleet: Arc<Fleet>,
    /// Entries to write, since they become others, and to forget.
    pub(super) put: Vec<EntryKey>,
    pub(super) removed: Vec<EntryKey>,
}

impl ChangedEntries {
    /// What is to be stored.
    pub(super) fn writes(self) -> Vec<Change> {
        let put = self.put.into_iter().filter_map(|key| Some(Change::PutEntry(key.clone(), self.fleet.entry(&key)?)));
        put.chain(self.removed.into_iter().map(Change::RemoveEntry)).collect()
    }
}

/// The stations that a file names, by how it names them.
struct Named<'s> {
    by_reference: HashMap<&'s str, Vec<&'s StationSnapshot>>,
    ids: BTreeSet<StationId>,
}

impl<'s> Named<'s> {
    fn new(snapshot: &'s Snapshot, merged: &Fleet, request: &'s Apply) -> Self {
        let mut named = Self { by_reference: HashMap::new(), ids: BTreeSet::new() };
        for station in &snapshot.stations {
            for reference in merged.references_to(&station.subject()) {
                if let Some((reference, _)) = request.fleet.station.get_key_value(reference) {
                    named.by_reference.entry(reference).or_default().push(station);
                    named.ids.insert(station.record.id);
                }
            }
        }
        named
    }
}

pub(super) fn prepare(snapshot: &Snapshot, request: &Apply) -> Result<Prepared, Vec<Remark>> {
    let Merged { mut fleet, put, mut removed, mut notes } =
        snapshot.fleet.merged(&request.fleet, request.known_as())?;
    let named = Named::new(snapshot, &fleet, request);
    for (reference, stations) in request.fleet.station.keys().filter_map(|key| named.by_reference.get_key_value(&**key))
    {
        if stations.len() > 1 {
            let names = stations.iter().map(|station| station.record.name.to_string()).collect::<Vec<_>>().join(", ");
            let text = format!("station `{reference}` means {names}; it must mean one, use a name or \"id:<uuid>\"");
            return Err(vec![Remark { at: vec!["station".into(), (*reference).to_owned()], text }]);
        }
    }
    for station in snapshot.stations.iter().filter(|station| named.ids.contains(&station.record.id)) {
        for reference in fleet.drop_synonyms(&station.subject(), &request.fleet) {
            let note =
                format!("station `{reference}` is {} under another name; its entry is replaced", station.record.name);
            notes.push(note);
            removed.push(EntryKey::Station(reference));
        }
    }
    let mut reply = ApplyReply { notes, ..ApplyReply::default() };
    for reference in request.fleet.station.keys().filter(|reference| !named.by_reference.contains_key(&***reference)) {
        let note = format!("station `{reference}` is not known yet; it gets its configuration when it registers");
        reply.notes.push(note);
    }
    reply.warnings.extend(unmatched(snapshot, &fleet, request));
    let waits = request.wait.is_some() || request.batch.is_some();
    let mut revision = snapshot.last_revision;
    let (mut targets, mut contradictions, mut unadopted) = (Vec::new(), Vec::new(), 0);
    let (mut sayings, mut parts) = (Sayings::new(&fleet), HashMap::new());
    for station in &snapshot.stations {
        let StationSnapshot { record, is_live, .. } = station;
        let subject = station.subject();
        // Stations that the file has nothing to do with are left alone.
        let is_concerned = (fleet.concerns(&subject) || is_of_fleet(station))
            && (named.ids.contains(&record.id)
                || !fleet.says_the_same(&snapshot.fleet, &subject)
                || fleet.said_by_groups_of(&subject, request.fleet.group.keys()));
        if !is_concerned {
            continue;
        }
        if !record.adopted {
            reply.notes.push(format!("station {} is not adopted; nothing is pushed to it", record.name));
            reply.away.push(record.name.to_string());
            unadopted += 1;
            continue;
        }
        let before = station.desired.clone();
        let saying = sayings.of(&subject).saying;
        let changes = before.as_ref().is_none_or(|before| before.digest != saying.digest);
        let desired = changes.then(|| {
            revision = Revision(revision.0 + 1);
            hashed_desired(revision, saying.digest, saying.json.clone(), Origin::Fleet, snapshot.at_ms)
        });
        let refused = *is_live && desired.is_none() && station.refuses_desired;
        if !is_live {
            reply.away.push(record.name.to_string());
        }
        let (mut part, mut unhealthy) = (Arc::default(), BTreeSet::new());
        if waits {
            let own = || fleet.instances_from(request.known_as(), &subject);
            // What the same document becomes the same has the same part, since the same entries say it.
            let key = (before.as_ref().map(|before| before.digest), Arc::as_ptr(&saying));
            let source = request.known_as();
            let new_part = || Arc::new(Part::of(source, &document_of(before.as_ref()), &saying.document, &own()));
            part = parts.entry(key).or_insert_with(new_part).clone();
            if !station.unhealthy.is_empty() {
                let before = document_of(before.as_ref());
                unhealthy = unhealthy_before(&station.unhealthy, &before, &saying.document, &own());
            }
        }
        contradictions.extend(saying.conflicts.iter().cloned());
        let (id, name) = (record.id, record.name.clone());
        let (was_live, was_damaged) = (*is_live, station.is_damaged);
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
            unhealthy_before: unhealthy,
        });
    }
    reply.notes.extend(remarks::of_targets(request.known_as(), &targets));
    reply.targets = targets.len() + unadopted;
    Ok(Prepared { changed: ChangedEntries { fleet: Arc::new(fleet), put, removed }, targets, reply, contradictions })
}

/// Whether what is desired of a station comes from fleet entries.
fn is_of_fleet(station: &StationSnapshot) -> bool {
    station.desired.as_ref().is_some_and(|desired| desired.origin == Origin::Fleet)
}

/// Warns of groups of the file that match no station.
fn unmatched(snapshot: &Snapshot, fleet: &Fleet, request: &Apply) -> Vec<Remark> {
    let subjects = || snapshot.stations.iter().map(StationSnapshot::subject);
    let is_unmatched =
        |group: &Name| !subjects().any(|subject| fleet.said_by_groups_of(&subject, std::iter::once(group)));
    let groups: Vec<_> = request.fleet.group.iter().filter(|(group, _)| is_unmatched(group)).collect();
    if groups.is_empty() {
        return Vec::new();
    }
    let labels: Vec<_> = subjects().map(|subject| fleet.labels_of(&subject)).collect();
    let warn = |(group, entry): (&Name, &GroupEntry)| {
        let selector = &entry.selector;
        let unknown = selector.parse::<Selector>().map(|selector| selector.unknown_labels(|| labels.iter()));
        let why = unknown.ok().and_then(|labels| selector::tell_unknown(&labels));
        let why = why.map_or_else(String::new, |why| format!("; {why}"));
        Remark {
            at: vec!["group".into(), group.to_string(), "match".into()],
            text: format!("group `{group}`: its selector {selector:?} matches no station{why}"),
        }
    };
    groups.into_iter().map(warn).collect()
}
