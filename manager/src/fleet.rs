//! What fleet files say, put together for one station: pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use quilt_protocol::control::{
    ChangeKind, Document, FleetFile, GivenPlugin, GroupEntry, InstanceChange, PluginChange, Problem, ProblemCode,
    Remark, Roles, STDIN_SOURCE, StationEntry,
};
use quilt_protocol::{Digest, Labels, Name, StationId, labels};

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
        selector.matches(&|key, test| match key {
            "name" => test(self.name),
            "id" => test(self.id.0.hyphenated().encode_lower(&mut uuid::Uuid::encode_buffer())),
            "hostname" => test(self.hostname),
            "mac" => self.mac.is_some_and(test),
            "ip" => self.ip.is_some_and(test),
            "role" => self.roles.iter().any(|role| test(role.as_str())),
            "state" => test(self.state),
            label => all_labels.get(label).is_some_and(test),
        })
    }
}

/// What all entries together say of one station.
#[derive(Debug, PartialEq)]
pub(crate) struct Said {
    /// Whether any entry names or matches it.
    pub(crate) concerned: bool,
    pub(crate) labels: Labels,
    pub(crate) saying: Arc<Saying>,
}

/// What some entries say together.
#[derive(Debug, PartialEq)]
pub(crate) struct Saying {
    pub(crate) document: Document,
    /// The document as text, byte for byte as it is pushed.
    pub(crate) json: Arc<str>,
    pub(crate) digest: Digest,
    /// Instances that two entries configure differently.
    pub(crate) conflicts: Vec<Problem>,
    /// The entries with something to run, each with the file it came from.
    pub(crate) entries: Vec<(String, String)>,
}

impl Saying {
    pub(crate) fn new(document: Document, conflicts: Vec<Problem>) -> Self {
        let json: Arc<str> = document.to_json().into();
        Self { document, digest: Digest::of(json.as_bytes()), json, conflicts, entries: Vec::new() }
    }
}

/// Makes what entries say of one station after another; what the same entries say is made once, since in most fleets many
/// stations are of one kind.
pub(crate) struct Sayings<'f> {
    fleet: &'f Fleet,
    /// By the entries, each known by where it lies.
    known: HashMap<Vec<*const Roles>, Arc<Saying>>,
}

/// An entry that concerns a station.
struct Part<'f> {
    by: By<'f>,
    source: &'f str,
    roles: &'f Roles,
    plugins: &'f BTreeMap<Name, Digest>,
}

enum By<'f> {
    Station(&'f str),
    Group(&'f Name),
}

impl<'f> Sayings<'f> {
    pub(crate) fn new(fleet: &'f Fleet) -> Self {
        Self { fleet, known: HashMap::new() }
    }

    /// What all entries together say of a station.
    pub(crate) fn of(&mut self, subject: &Subject<'_>) -> Said {
        let (labels, parts) = self.fleet.parts_for(subject);
        let key: Vec<_> = parts.iter().map(|part| std::ptr::from_ref(part.roles)).collect();
        if let Some(saying) = self.known.get(&key) {
            return Said { concerned: !parts.is_empty(), labels, saying: saying.clone() };
        }
        let mut union = Union { station: subject.name, said_by: BTreeMap::new(), conflicts: Vec::new() };
        let (mut document, mut entries) = (Document::default(), Vec::new());
        for Part { by, source, roles, plugins } in &parts {
            let by = match by {
                By::Station(reference) => format!("station `{reference}`"),
                By::Group(group) => format!("group `{group}`"),
            };
            union.add(&mut document.roles, roles, &by);
            union.add_plugins(&mut document.plugins, plugins, &by);
            if !roles.is_empty() || !plugins.is_empty() {
                entries.push(((*source).to_owned(), by));
            }
        }
        let saying = Arc::new(Saying { entries, ..Saying::new(document, union.conflicts) });
        // Conflicts name the station.
        if saying.conflicts.is_empty() {
            self.known.insert(key, saying.clone());
        }
        Said { concerned: !parts.is_empty(), labels, saying }
    }
}

/// How a file changes the whole.
pub(crate) struct Merged {
    pub(crate) fleet: Fleet,
    /// Entries to write, since they become others, and to forget.
    pub(crate) put: Vec<(EntryKey, Entry)>,
    pub(crate) removed: Vec<EntryKey>,
    pub(crate) notes: Vec<String>,
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

    /// The whole after `file` is applied, which is known as `source`: its entries replace those of the same name; groups
    /// that the same file no longer has are gone; stations that it no longer names are left alone. Nobody knows whether what
    /// comes through standard input is the same file as before, so its groups stay.
    ///
    /// # Errors
    ///
    /// Selectors and station references that do not parse.
    pub(crate) fn merged(&self, file: &FleetFile, source: &str) -> Result<Merged, Vec<Remark>> {
        let mut mistakes = Vec::new();
        let (mut fleet, mut put, mut removed, mut notes) = (self.clone(), Vec::new(), Vec::new(), Vec::new());
        let mut taken_over = |what: String, before: Option<&String>, is_new: bool| match before {
            Some(before) if before != source => {
                notes.push(format!("{what} came from {} and now comes from {}", shown(before), shown(source)));
            }
            Some(_) if source == STDIN_SOURCE && is_new => {
                notes.push(format!(
                    "{what} came through standard input before, maybe from another file; it is replaced"
                ));
            }
            _ => {}
        };
        for (station, entry) in &file.station {
            if let Err(text) = check_reference(station) {
                mistakes.push(Remark { at: vec!["station".into(), station.clone()], text });
            }
            for (key, _) in entry.labels.iter() {
                if let Err(text) = labels::check_key(key) {
                    let at = vec!["station".into(), station.clone(), "labels".into(), key.to_string()];
                    mistakes.push(Remark { at, text: format!("station `{station}`: {text}") });
                }
            }
            let known = self.stations.get(station);
            let sourced = Sourced { source: source.into(), content: entry.clone() };
            let is_new = known != Some(&sourced);
            taken_over(format!("station `{station}`"), known.map(|entry| &entry.source), is_new);
            if is_new {
                let json = serde_json::to_string(entry).expect("entries have text keys");
                put.push((EntryKey::Station(station.clone()), Entry { source: source.into(), json }));
                fleet.stations.insert(station.clone(), sourced);
            }
        }
        for (group, entry) in &file.group {
            let selector = match group_selector(&entry.selector) {
                Ok(selector) => selector,
                Err(text) => {
                    let at = vec!["group".into(), group.to_string(), "match".into()];
                    mistakes.push(Remark { at, text: format!("group `{group}`: {text}") });
                    continue;
                }
            };
            let known = self.groups.get(group);
            let sourced = Sourced { source: source.into(), content: (entry.clone(), selector) };
            let is_new = known != Some(&sourced);
            taken_over(format!("group `{group}`"), known.map(|entry| &entry.source), is_new);
            if is_new {
                let json = serde_json::to_string(entry).expect("entries have text keys");
                put.push((EntryKey::Group(group.clone()), Entry { source: source.into(), json }));
                fleet.groups.insert(group.clone(), sourced);
            }
        }
        for (group, entry) in &self.groups {
            if entry.source != source || file.group.contains_key(group) {
                continue;
            }
            if source == STDIN_SOURCE {
                notes.push(format!("group `{group}` came through standard input before and stays"));
            } else {
                fleet.groups.remove(group);
                removed.push(EntryKey::Group(group.clone()));
                notes.push(format!("group `{group}` is no longer in {source}; its stations lose its roles"));
            }
        }
        if mistakes.is_empty() { Ok(Merged { fleet, put, removed, notes }) } else { Err(mistakes) }
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

    /// What all entries together say of a station.
    pub(crate) fn said_of(&self, subject: &Subject<'_>) -> Said {
        Sayings::new(self).of(subject)
    }

    /// The entries that concern a station, in order, and its labels with theirs over them.
    fn parts_for(&self, subject: &Subject<'_>) -> (Labels, Vec<Part<'_>>) {
        let labels = self.labels_of(subject);
        let mut parts = Vec::new();
        for (reference, entry) in self.stations.iter().filter(|(reference, _)| is_meant(reference, subject)) {
            let StationEntry { roles, plugins, .. } = &entry.content;
            parts.push(Part { by: By::Station(reference), source: &entry.source, roles, plugins });
        }
        for (group, entry) in &self.groups {
            let (GroupEntry { roles, plugins, .. }, selector) = &entry.content;
            if subject.fits(selector, &labels) {
                parts.push(Part { by: By::Group(group), source: &entry.source, roles, plugins });
            }
        }
        (labels, parts)
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

    /// Entries that name a station in other words than `file` does: the file says all of it now. Answers their keys.
    pub(crate) fn drop_synonyms(&mut self, subject: &Subject<'_>, file: &FleetFile) -> Vec<String> {
        let meant: Vec<_> = self.stations.keys().filter(|reference| is_meant(reference, subject)).cloned().collect();
        if !meant.iter().any(|reference| file.station.contains_key(reference)) {
            return Vec::new();
        }
        let dropped: Vec<_> = meant.into_iter().filter(|reference| !file.station.contains_key(reference)).collect();
        self.stations.retain(|reference, _| !dropped.contains(reference));
        dropped
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

/// Which stations a group means.
fn group_selector(text: &str) -> Result<Selector, String> {
    let selector: Selector = text.parse()?;
    if selector.mentions("state") {
        return Err(format!("selector {text:?}: `state` changes by itself; a group cannot depend on it"));
    }
    Ok(selector)
}

fn check_reference(reference: &str) -> Result<(), String> {
    let fine = match reference.split_once(':') {
        Some(("id", id)) => id.parse::<quilt_protocol::StationId>().is_ok(),
        Some(("mac", mac)) => mac.len() == 17,
        _ => reference.parse::<Name>().is_ok(),
    };
    if fine {
        Ok(())
    } else {
        Err(format!("station `{reference}`: expected a name, \"id:<uuid>\" or \"mac:02:00:00:00:00:01\""))
    }
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

struct Union<'a> {
    station: &'a str,
    said_by: BTreeMap<(Name, Name), String>,
    conflicts: Vec<Problem>,
}

impl Union<'_> {
    /// Adds the plugins of one entry; the same one twice must be the same file.
    fn add_plugins(&mut self, whole: &mut BTreeMap<Name, Digest>, part: &BTreeMap<Name, Digest>, entry: &str) {
        for (plugin, digest) in part {
            let known = *whole.entry(plugin.clone()).or_insert(*digest);
            if known != *digest {
                self.conflicts.push(Problem {
                    code: ProblemCode::InvalidConfiguration,
                    station: self.station.into(),
                    role: String::new(),
                    instance: None,
                    key: Some(format!("plugins.{plugin}")),
                    expected: format!("the same file as another entry has, {known}"),
                    got: format!("{digest} in {entry}"),
                });
            }
        }
    }

    /// Adds the roles of one entry; the same instance twice must say the same.
    fn add(&mut self, whole: &mut Roles, part: &Roles, entry: &str) {
        for (role, instances) in part {
            for (instance, config) in instances {
                let known = whole.entry(role.clone()).or_default();
                match known.get(instance) {
                    None => {
                        known.insert(instance.clone(), config.clone());
                        self.said_by.insert((role.clone(), instance.clone()), entry.to_owned());
                    }
                    Some(same) if same == config => {}
                    Some(_) => self.conflicts.push(Problem {
                        code: ProblemCode::InvalidConfiguration,
                        station: self.station.into(),
                        role: role.to_string(),
                        instance: Some(instance.to_string()),
                        key: None,
                        expected: format!("the same settings as {}", self.said_by[&(role.clone(), instance.clone())]),
                        got: format!("others in {entry}"),
                    }),
                }
            }
        }
    }
}

/// Which plugins differ between two documents.
pub(crate) fn plugin_differences(before: &Document, after: &Document) -> Vec<PluginChange> {
    let names: BTreeSet<_> = before.plugins.keys().chain(after.plugins.keys()).cloned().collect();
    let change = |plugin: Name| PluginChange {
        before: before.plugins.get(&plugin).copied(),
        after: after.plugins.get(&plugin).copied(),
        plugin,
    };
    names.into_iter().map(change).filter(|change| change.before != change.after).collect()
}

/// What differs between two documents, by instance and key; never values, which may be secret.
pub(crate) fn differences(before: &Document, after: &Document) -> Vec<InstanceChange> {
    let flat = |document: &Document| -> BTreeMap<(Name, Name), serde_json::Map<String, serde_json::Value>> {
        let roles = document.roles.iter();
        let all = roles.flat_map(|(role, instances)| {
            instances.iter().map(|(instance, config)| ((role.clone(), instance.clone()), config.clone()))
        });
        all.collect()
    };
    let (before, after) = (flat(before), flat(after));
    let mut changes = Vec::new();
    for ((role, instance), config) in &after {
        let change = |change, keys| InstanceChange { role: role.clone(), instance: instance.clone(), change, keys };
        match before.get(&(role.clone(), instance.clone())) {
            None => changes.push(change(ChangeKind::Added, Vec::new())),
            Some(old) if old == config => {}
            Some(old) => {
                let mut keys: Vec<_> = old.keys().chain(config.keys()).cloned().collect();
                keys.retain(|key| old.get(key) != config.get(key));
                keys.sort();
                keys.dedup();
                changes.push(change(ChangeKind::Changed, keys));
            }
        }
    }
    for (role, instance) in before.keys().filter(|key| !after.contains_key(*key)) {
        let (role, instance) = (role.clone(), instance.clone());
        changes.push(InstanceChange { role, instance, change: ChangeKind::Removed, keys: Vec::new() });
    }
    changes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(json: serde_json::Value) -> FleetFile {
        serde_json::from_value(json).unwrap()
    }

    fn said(fleet: &Fleet, name: &str, labels: &[(&str, &str)]) -> Said {
        let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        fleet.said_of(&Subject {
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

    fn names(said: &Said) -> Vec<String> {
        let roles = said.saying.document.roles.iter();
        roles.flat_map(|(role, instances)| instances.keys().map(move |instance| format!("{role}/{instance}"))).collect()
    }

    #[test]
    fn a_station_gets_the_union_of_its_entry_and_the_groups_that_match() {
        let file = file(serde_json::json!({
            "station": { "cam-1": { "labels": { "room": "a" }, "roles": { "process": { "clock": { "x": 1 } } } } },
            "group": {
                "capture": { "match": "room=a", "roles": { "process": { "disk": {}, "clock": { "x": 1 } } } },
                "other": { "match": "room=b", "roles": { "process": { "no": {} } } },
            },
        }));
        let fleet = Fleet::default().merged(&file, "f").unwrap().fleet;
        // The file's label beats the station's own, and groups see it.
        let cam = said(&fleet, "cam-1", &[("room", "b")]);
        assert_eq!((names(&cam), cam.saying.conflicts.len()), (vec!["process/clock".into(), "process/disk".into()], 0));
        assert_eq!(names(&said(&fleet, "cam-2", &[("room", "b")])), ["process/no"]);
        assert!(!said(&fleet, "cam-3", &[]).concerned);
    }

    #[test]
    fn the_same_instance_with_different_settings_is_a_conflict_that_names_both() {
        let file = file(serde_json::json!({
            "station": { "mac:02:00:00:00:00:01": { "roles": { "process": { "clock": { "x": 1 } } } } },
            "group": { "all": { "match": "name=*", "roles": { "process": { "clock": { "x": 2 } } } } },
        }));
        let fleet = Fleet::default().merged(&file, "f").unwrap().fleet;
        let said = said(&fleet, "cam-1", &[]);
        let conflicts = &said.saying.conflicts;
        let text = conflicts[0].to_string();
        assert!(text.contains("station `mac:02") && text.contains("group `all`"), "{text}");
    }

    #[test]
    fn a_label_that_selectors_take_for_something_else_is_a_mistake_with_its_place() {
        let file = file(serde_json::json!({ "station": { "cam-1": { "labels": { "role": "db", "room": "a" } } } }));
        let mistakes = Fleet::default().merged(&file, "f").err().unwrap();
        let [Remark { at, text }] = &mistakes[..] else { panic!("{mistakes:?}") };
        assert_eq!(at, &["station", "cam-1", "labels", "role"]);
        assert!(text.contains("my-role"), "{text}");
    }

    #[test]
    fn a_file_replaces_its_own_groups_and_says_what_it_takes_over() {
        let first = file(serde_json::json!({ "group": { "g": { "match": "a=b" }, "h": { "match": "a=b" } } }));
        let second = file(serde_json::json!({ "group": { "g": { "match": "a=c" } } }));
        let fleet = Fleet::default().merged(&first, "one").unwrap().fleet;
        let same = fleet.merged(&second, "one").unwrap();
        assert_eq!((same.removed.len(), same.notes.len()), (1, 1));
        let other = fleet.merged(&second, "two").unwrap();
        assert_eq!(other.removed.len(), 0);
        assert!(other.notes[0].contains("came from one"), "{:?}", other.notes);
        // What is the same as before is not written again.
        let again = fleet.merged(&first, "one").unwrap();
        assert_eq!((again.put.len(), again.notes.len()), (0, 0));
    }

    #[test]
    fn two_files_through_standard_input_take_nothing_from_each_other_in_silence() {
        let first = file(
            serde_json::json!({ "station": { "s": { "labels": { "a": "b" } } }, "group": { "g": { "match": "a=b" } } }),
        );
        let second = file(serde_json::json!({ "station": { "s": {} }, "group": { "h": { "match": "a=b" } } }));
        let fleet = Fleet::default().merged(&first, STDIN_SOURCE).unwrap().fleet;
        let merged = fleet.merged(&second, STDIN_SOURCE).unwrap();
        assert_eq!(merged.removed, [], "a group of the first file is gone");
        let [replaced, stays] = &merged.notes[..] else { panic!("{:?}", merged.notes) };
        assert!(replaced.contains("station `s` came through standard input before"), "{replaced}");
        assert!(stays.contains("group `g`") && stays.contains("stays"), "{stays}");
        assert!(merged.fleet.merged(&second, STDIN_SOURCE).unwrap().notes.iter().all(|note| note.contains("stays")));
    }

    #[test]
    fn what_other_files_still_give_a_station_is_known_by_file_and_entry() {
        let old = file(serde_json::json!({ "group": { "old": { "match": "name=*", "roles": { "p": { "x": {} } } } } }));
        let new = file(serde_json::json!({ "group": { "new": { "match": "name=*", "roles": { "p": { "y": {} } } } } }));
        let fleet = Fleet::default().merged(&old, "/a/room.toml").unwrap().fleet;
        let fleet = fleet.merged(&new, "/b/room.toml").unwrap().fleet;
        let entries = &said(&fleet, "cam-1", &[]).saying.entries;
        let entry = |source: &str, by: &str| (source.to_owned(), by.to_owned());
        assert_eq!(*entries, [entry("/b/room.toml", "group `new`"), entry("/a/room.toml", "group `old`")]);
    }

    #[test]
    fn differences_name_keys_and_never_values() {
        let document = |json| serde_json::from_value::<Document>(json).unwrap();
        let before = document(serde_json::json!({ "roles": { "p": { "a": { "env": "old" }, "b": {} } } }));
        let after = document(serde_json::json!({ "roles": { "p": { "a": { "env": "secret" }, "c": {} } } }));
        let changes = differences(&before, &after);
        let kinds: Vec<_> = changes.iter().map(|change| (change.instance.as_str(), change.change)).collect();
        assert_eq!(kinds, [("a", ChangeKind::Changed), ("c", ChangeKind::Added), ("b", ChangeKind::Removed)]);
        assert_eq!(changes[0].keys, ["env"]);
    }
}
