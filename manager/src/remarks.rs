//! Remarks on an apply for the operator, beside its changes. Pure: values in, texts out.

use std::collections::{BTreeMap, BTreeSet};

use quilt_core::words::list;
use quilt_protocol::control::PLUGIN_SOURCE;
use quilt_protocol::{Name, Revision};

use crate::apply::Target;
use crate::fleet::shown;
use crate::store::{EntryKey, Origin};

/// An entry as a fleet file spells it.
pub(crate) fn entry(key: &EntryKey) -> String {
    match key {
        EntryKey::Station(station) => format!("station `{station}`"),
        EntryKey::Group(group) => format!("group `{group}`"),
    }
}

/// Remarks about the stations that an apply of `source` concerns.
pub(crate) fn of_targets(source: &str, targets: &[Target]) -> Vec<String> {
    let mut notes = Vec::new();
    let away: Vec<_> = targets.iter().filter(|target| !target.was_live).map(|target| &target.name).collect();
    if !away.is_empty() {
        notes.push(format!("not connected: {}; each gets its configuration when it registers", list(&away)));
    }
    let mut refused = BTreeMap::<Revision, Vec<&Name>>::new();
    for target in targets.iter().filter(|target| target.refused) {
        let revision = target.before.as_ref().map(|before| before.revision).unwrap_or_default();
        refused.entry(revision).or_default().push(&target.name);
    }
    for (revision, names) in refused {
        notes.push(format!("revision {revision} was refused by {}; an apply offers it again", list(&names)));
    }
    notes.extend(ended_pins(targets));
    notes.extend(other_sources(source, targets));
    notes
}

/// Notes stations that a rollback had pinned to a configuration of their own and that this apply changes.
fn ended_pins(targets: &[Target]) -> Vec<String> {
    let mut pins = BTreeMap::<&str, Vec<&Name>>::new();
    for target in targets.iter().filter(|target| target.desired.is_some()) {
        if let Some(before) = target.before.as_ref().filter(|before| before.origin == Origin::Pinned) {
            pins.entry(&before.source).or_default().push(&target.name);
        }
    }
    let note = |(pin, names): (&str, Vec<_>)| {
        format!("{}: the {pin} ends with this apply; fleet files decide again what runs there", list(&names))
    };
    pins.into_iter().map(note).collect()
}

/// Notes what files other than `source` still give these stations. Pushed plugins are left out: they belong beside every file.
fn other_sources(source: &str, targets: &[Target]) -> Vec<String> {
    let is_other = |other: &str| other != source && !other.starts_with(PLUGIN_SOURCE);
    let mut others = BTreeMap::<&str, (BTreeSet<&str>, Vec<&Name>)>::new();
    for target in targets {
        let mut sources = BTreeSet::new();
        for (other, entry) in target.saying.entries.iter().filter(|(other, _)| is_other(other)) {
            let (entries, names) = others.entry(other).or_default();
            entries.insert(entry);
            if sources.insert(other) {
                names.push(&target.name);
            }
        }
    }
    let note = |(other, (entries, names)): (&str, (BTreeSet<&str>, Vec<_>))| {
        let entries: Vec<_> = entries.into_iter().collect();
        format!("{} also configures {}, in {}", shown(other), list(&names), list(&entries))
    };
    others.into_iter().map(note).collect()
}
