//! What fleet files say, put together for one station: pure.

mod configuration;
mod differences;
mod entries;
mod merge;
mod saying;

use std::collections::BTreeMap;
use std::sync::Arc;

use quilt_protocol::control::{GivenPlugin, STDIN_SOURCE};
use quilt_protocol::{Digest, Labels, Name, StationId};

pub(crate) use self::configuration::{Apply, Document, FleetFile, GroupEntry, Roles, StationEntry};
pub(crate) use self::differences::{differences, plugin_differences};
pub(crate) use self::merge::Merged;
pub(crate) use self::saying::{Instances, Said, Saying, Sayings, document_of, instances_of};

use self::entries::StationEntries;
use crate::selector::Selector;
use crate::store::{Entry, EntryKey, StationRecord};

/// Everything that fleet files say now, by entry, each with the file it came from. A clone shares the entries.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Fleet {
    stations: StationEntries,
    groups: BTreeMap<Name, Arc<Sourced<(GroupEntry, Selector)>>>,
}

#[derive(Debug)]
struct Sourced<T> {
    source: String,
    content: T,
    /// How long the configurations in it are, in bytes.
    length: usize,
}

impl<T: PartialEq> PartialEq for Sourced<T> {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source && self.content == other.content
    }
}

impl<T> Sourced<T> {
    fn new(source: &str, content: T, length: usize) -> Self {
        Self { source: source.to_owned(), content, length }
    }
}

impl Sourced<StationEntry> {
    fn of_station(source: &str, entry: StationEntry) -> Arc<Self> {
        let length = length_of(&entry.roles);
        Arc::new(Self::new(source, entry, length))
    }
}

impl Sourced<(GroupEntry, Selector)> {
    fn of_group(source: &str, entry: GroupEntry, selector: Selector) -> Arc<Self> {
        let length = length_of(&entry.roles);
        Arc::new(Self::new(source, (entry, selector), length))
    }
}

fn length_of(roles: &Roles) -> usize {
    roles.values().flat_map(BTreeMap::values).map(|configuration| configuration.len()).sum()
}

/// A station as entries and selectors look at it.
pub(crate) struct Subject<'a> {
    pub(crate) name: &'a str,
    pub(crate) id: StationId,
    pub(crate) hostname: &'a str,
    pub(crate) mac: Option<&'a str>,
    pub(crate) ip: Option<&'a str>,
    /// The roles it can run.
    pub(crate) roles: &'a [Name],
    pub(crate) state: &'static str,
    /// The station's own labels.
    pub(crate) labels: &'a Labels,
}

impl<'a> Subject<'a> {
    /// A station of which this is on record.
    pub(crate) fn new(record: &'a StationRecord, state: &'static str) -> Self {
        Self {
            name: record.name.as_str(),
            id: record.id,
            hostname: &record.facts.hostname,
            mac: record.facts.mac.as_deref(),
            ip: record.facts.ip.as_deref(),
            roles: &record.roles,
            state,
            labels: &record.labels,
        }
    }

    /// Whether a selector means it, with the labels of its entries over its own.
    pub(crate) fn fits(&self, selector: &Selector, all_labels: &Labels) -> bool {
        selector.matches(&|key, test| self.has(all_labels, key, test))
    }

    /// Whether a selector means an instance of it: `role` and `instance` are then that instance's own.
    pub(crate) fn fits_instance(&self, selector: &Selector, all_labels: &Labels, role: &Name, instance: &Name) -> bool {
        selector.matches(&|key, test| match key {
            "role" => test(role.as_str()),
            "instance" => test(instance.as_str()),
            key => self.has(all_labels, key, test),
        })
    }

    fn has(&self, all_labels: &Labels, key: &str, test: &dyn Fn(&str) -> bool) -> bool {
        match key {
            "name" => test(self.name),
            "id" => test(self.id.0.hyphenated().encode_lower(&mut uuid::Uuid::encode_buffer())),
            "hostname" => test(self.hostname),
            "mac" => self.mac.is_some_and(test),
            "ip" => self.ip.is_some_and(test),
            "role" => self.roles.iter().any(|role| test(role.as_str())),
            "state" => test(self.state),
            label => all_labels.get(label).is_some_and(test),
        }
    }
}

impl Fleet {
    /// Reads what the store remembers.
    ///
    /// # Errors
    ///
    /// An entry that does not decode; names it.
    pub(crate) fn from_entries(entries: &BTreeMap<EntryKey, Entry>) -> Result<Self, String> {
        let mut fleet = Self::default();
        for (key, Entry { source, json }) in entries {
            let wrong = |error: &dyn std::fmt::Display| format!("fleet entry {key:?} of {source}: {error}");
            match key {
                EntryKey::Station(station) => {
                    let content = serde_json::from_str(json).map_err(|error| wrong(&error))?;
                    fleet.stations.insert(station.clone(), Sourced::of_station(source, content));
                }
                EntryKey::Group(group) => {
                    let entry: GroupEntry = serde_json::from_str(json).map_err(|error| wrong(&error))?;
                    let selector = entry.selector.parse().map_err(|error: String| wrong(&error))?;
                    fleet.groups.insert(group.clone(), Sourced::of_group(source, entry, selector));
                }
            }
        }
        Ok(fleet)
    }

    /// The plugins that entries give to stations; `stations` are all that there are.
    pub(crate) fn given_plugins(&self, stations: &[Subject<'_>]) -> Vec<GivenPlugin> {
        let labels: Vec<_> = stations.iter().map(|station| self.labels_of(station)).collect();
        let names = |is_meant: &dyn Fn(&Subject<'_>, &Labels) -> bool| -> Vec<Name> {
            let meant = stations.iter().zip(&labels).filter(|(station, labels)| is_meant(station, labels));
            meant.filter_map(|(station, _)| station.name.parse().ok()).collect()
        };
        let mut given = Vec::new();
        let mut add = |plugins: &BTreeMap<Name, Digest>, on: &str, source: &str, stations: Vec<Name>| {
            given.extend(plugins.iter().map(|(plugin, sha256)| GivenPlugin {
                plugin: plugin.clone(),
                sha256: *sha256,
                on: on.to_owned(),
                source: source.to_owned(),
                stations: stations.clone(),
            }));
        };
        for (reference, entry) in self.stations.iter().filter(|(_, entry)| !entry.content.plugins.is_empty()) {
            let meant = names(&|station, _| is_meant(reference, station));
            add(&entry.content.plugins, reference, &entry.source, meant);
        }
        for entry in self.groups.values().filter(|entry| !entry.content.0.plugins.is_empty()) {
            let (group, selector) = &entry.content;
            let meant = names(&|station, labels| station.fits(selector, labels));
            add(&group.plugins, &group.selector, &entry.source, meant);
        }
        given
    }

    /// Whether any of these groups matches a station.
    pub(crate) fn said_by_groups_of<'a>(
        &self,
        subject: &Subject<'_>,
        mut groups: impl Iterator<Item = &'a Name>,
    ) -> bool {
        let labels = self.labels_of(subject);
        groups.any(|group| self.groups.get(group).is_some_and(|entry| subject.fits(&entry.content.1, &labels)))
    }

    /// A station's own labels with those of its entries over them.
    pub(crate) fn labels_of(&self, subject: &Subject<'_>) -> Labels {
        let mut labels = subject.labels.clone();
        for (_, entry) in self.stations.meant(subject) {
            if !entry.content.labels.is_empty() {
                let over = entry.content.labels.iter().map(|(key, value)| (key.as_str(), value.as_str()));
                labels = labels.with(over);
            }
        }
        labels
    }

    /// Takes one entry, or its absence, from another state of things.
    pub(crate) fn take_entry(&mut self, key: &EntryKey, from: &Self) {
        match key {
            EntryKey::Station(station) => match from.stations.get(station) {
                Some(entry) => self.stations.insert(station.clone(), entry.clone()),
                None => self.stations.remove(station),
            },
            EntryKey::Group(group) => match from.groups.get(group) {
                Some(entry) => drop(self.groups.insert(group.clone(), entry.clone())),
                None => drop(self.groups.remove(group)),
            },
        }
    }

    /// Whether two states of things have the same under a key, or both nothing.
    pub(crate) fn is_same(&self, key: &EntryKey, other: &Self) -> bool {
        match key {
            EntryKey::Station(station) => self.stations.get(station) == other.stations.get(station),
            EntryKey::Group(group) => self.groups.get(group) == other.groups.get(group),
        }
    }

    /// Writes an entry as the store keeps it.
    pub(crate) fn entry(&self, key: &EntryKey) -> Option<Entry> {
        let (source, json) = match key {
            EntryKey::Station(station) => {
                let entry = self.stations.get(station)?;
                (&entry.source, serde_json::to_string(&entry.content))
            }
            EntryKey::Group(group) => {
                let entry = self.groups.get(group)?;
                (&entry.source, serde_json::to_string(&entry.content.0))
            }
        };
        Some(Entry { source: source.clone(), json: json.expect("entries have text keys") })
    }
}

/// A source in a sentence.
pub(crate) fn shown(source: &str) -> &str {
    if source == STDIN_SOURCE { "standard input" } else { source }
}

/// Whether a reference (a name, `id:..` or `mac:..`) means a station.
pub(crate) fn is_meant(reference: &str, subject: &Subject<'_>) -> bool {
    match reference.split_once(':') {
        Some(("id", id)) => {
            let mut buffer = uuid::Uuid::encode_buffer();
            id.eq_ignore_ascii_case(subject.id.0.hyphenated().encode_lower(&mut buffer))
        }
        Some(("mac", mac)) => subject.mac.is_some_and(|theirs| mac.eq_ignore_ascii_case(theirs)),
        _ => reference == subject.name,
    }
}

/// What tests of the parts share.
#[cfg(test)]
mod testing {
    use super::*;

    pub(super) fn file(json: serde_json::Value) -> FleetFile {
        serde_json::from_value(json).unwrap()
    }

    pub(super) fn with_subject<T>(name: &str, labels: &[(&str, &str)], look: impl FnOnce(&Subject<'_>) -> T) -> T {
        let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        look(&Subject {
            name,
            id: StationId(uuid::Uuid::nil()),
            hostname: name,
            mac: Some("02:00:00:00:00:01"),
            ip: None,
            roles: &[],
            state: "connected",
            labels: &labels,
        })
    }

    pub(super) fn said(fleet: &Fleet, name: &str, labels: &[(&str, &str)]) -> Said {
        with_subject(name, labels, |subject| fleet.said_of(subject))
    }
}
