//! What fleet files say, put together for one station: pure.

mod differences;
mod merge;
mod saying;

use std::collections::BTreeMap;

use quilt_protocol::control::{GivenPlugin, GroupEntry, STDIN_SOURCE, StationEntry};
use quilt_protocol::{Digest, Labels, Name, StationId};

pub(crate) use self::differences::{differences, plugin_differences};
pub(crate) use self::merge::Merged;
pub(crate) use self::saying::{Said, Saying, Sayings};

use crate::selector::Selector;
use crate::store::{Entry, EntryKey};

/// Everything that fleet files say now, by entry, each with the file it came from.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Fleet {
    stations: BTreeMap<String, Sourced<StationEntry>>,
    groups: BTreeMap<Name, Sourced<(GroupEntry, Selector)>>,
}

#[derive(Clone, Debug, PartialEq)]
struct Sourced<T> {
    source: String,
    content: T,
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

impl Subject<'_> {
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
                    fleet.stations.insert(station.clone(), Sourced { source: source.clone(), content });
                }
                EntryKey::Group(group) => {
                    let entry: GroupEntry = serde_json::from_str(json).map_err(|error| wrong(&error))?;
                    let selector = entry.selector.parse().map_err(|error: String| wrong(&error))?;
                    let content = (entry, selector);
                    fleet.groups.insert(group.clone(), Sourced { source: source.clone(), content });
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
        for (_, entry) in self.stations.iter().filter(|(reference, _)| is_meant(reference, subject)) {
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
                Some(entry) => drop(self.stations.insert(station.clone(), entry.clone())),
                None => drop(self.stations.remove(station)),
            },
            EntryKey::Group(group) => match from.groups.get(group) {
                Some(entry) => drop(self.groups.insert(group.clone(), entry.clone())),
                None => drop(self.groups.remove(group)),
            },
        }
    }

    /// An entry as the store keeps it.
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
    use quilt_protocol::control::FleetFile;

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
