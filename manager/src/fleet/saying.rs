//! What all entries together say of one station.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use quilt_protocol::control::{Document, GroupEntry, Problem, ProblemCode, Roles, StationEntry};
use quilt_protocol::{Digest, Labels, Name};

use super::{Fleet, Subject, is_meant};

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

impl Fleet {
    /// What all entries together say of a station.
    pub(crate) fn said_of(&self, subject: &Subject<'_>) -> Said {
        Sayings::new(self).of(subject)
    }

    /// The instances that entries of one file give to a station.
    pub(crate) fn instances_from(&self, source: &str, subject: &Subject<'_>) -> BTreeSet<(Name, Name)> {
        let (_, parts) = self.parts_for(subject);
        let mut instances = BTreeSet::new();
        for (role, configured) in parts.iter().filter(|part| part.source == source).flat_map(|part| part.roles) {
            instances.extend(configured.keys().map(|instance| (role.clone(), instance.clone())));
        }
        instances
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

#[cfg(test)]
mod tests {
    use super::super::testing::{file, said, with_subject};
    use super::*;

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
    fn what_other_files_still_give_a_station_is_known_by_file_and_entry() {
        let old = file(serde_json::json!({ "group": { "old": { "match": "name=*", "roles": { "p": { "x": {} } } } } }));
        let new = file(serde_json::json!({ "group": { "new": { "match": "name=*", "roles": { "p": { "y": {} } } } } }));
        let fleet = Fleet::default().merged(&old, "/a/room.toml").unwrap().fleet;
        let fleet = fleet.merged(&new, "/b/room.toml").unwrap().fleet;
        let entries = &said(&fleet, "cam-1", &[]).saying.entries;
        let entry = |source: &str, by: &str| (source.to_owned(), by.to_owned());
        assert_eq!(*entries, [entry("/b/room.toml", "group `new`"), entry("/a/room.toml", "group `old`")]);
        let key = |instance: &str| ("p".parse().unwrap(), instance.parse().unwrap());
        let given = with_subject("cam-1", &[], |subject| fleet.instances_from("/a/room.toml", subject));
        assert_eq!(given, BTreeSet::from([key("x")]));
    }
}
