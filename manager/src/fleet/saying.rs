//! What all entries together say of one station.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::{Arc, OnceLock};

use quilt_protocol::control::{Problem, ProblemCode};
use quilt_protocol::{Digest, Labels, Name};

use super::{Document, Fleet, GroupEntry, Roles, StationEntry, Subject};
use crate::store::Desired;

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
    instances: OnceLock<Arc<Instances>>,
    /// Instances that two entries configure differently.
    pub(crate) conflicts: Vec<Problem>,
    /// The entries with something to run, each with the file it came from.
    pub(crate) entries: Vec<(String, String)>,
}

/// The digest of each instance's configuration, by role and instance.
pub(crate) type Instances = BTreeMap<(Name, Name), Digest>;

impl Saying {
    pub(crate) fn new(document: Document, conflicts: Vec<Problem>) -> Self {
        let mut json = Vec::with_capacity(length_of(&document));
        serde_json::to_writer(&mut json, &document).expect("maps with text keys serialize");
        let json: Arc<str> = String::from_utf8(json).expect("JSON is UTF-8").into();
        let digest = Digest::of(json.as_bytes());
        Self { document, digest, instances: OnceLock::new(), json, conflicts, entries: Vec::new() }
    }

    /// What is desired already, or nothing.
    pub(crate) fn of_desired(desired: Option<&Desired>) -> Self {
        let document = document_of(desired);
        match desired {
            None => Self::new(document, Vec::new()),
            Some(Desired { digest, document: json, .. }) => {
                let (digest, json) = (*digest, json.clone());
                let (instances, conflicts, entries) = (OnceLock::new(), Vec::new(), Vec::new());
                Self { document, digest, instances, json, conflicts, entries }
            }
        }
    }

    /// The digest of each of its instances; found out by whoever asks first.
    pub(crate) fn instances(&self) -> Arc<Instances> {
        self.instances.get_or_init(|| Arc::new(instances_of(&self.document))).clone()
    }
}

/// How long a document's text is at most, unless it has strange names: one that grows while it is written takes twice the memory.
fn length_of(document: &Document) -> usize {
    /// What goes around a name, or around the whole.
    const AROUND: usize = 32;
    let roles = document.roles.iter();
    let roles = roles.map(|(role, instances)| {
        let instances = instances.iter().map(|(instance, config)| instance.as_str().len() + config.len() + 4);
        role.as_str().len() + AROUND + instances.sum::<usize>()
    });
    let plugins = document.plugins.keys().map(|plugin| plugin.as_str().len() + AROUND + 64);
    AROUND + roles.sum::<usize>() + plugins.sum::<usize>()
}

/// Reads what is desired; an empty document if that is nothing.
pub(crate) fn document_of(desired: Option<&Desired>) -> Document {
    desired.and_then(|desired| serde_json::from_str(&desired.document).ok()).unwrap_or_default()
}

/// The instances of a document.
pub(crate) fn instances_of(document: &Document) -> Instances {
    let all = document.roles.iter().flat_map(|(role, instances)| {
        instances.iter().map(move |(instance, config)| ((role.clone(), instance.clone()), config.digest()))
    });
    all.collect()
}

/// Makes what entries say of one station after another; what the same entries say is made once, since in most fleets many
/// stations are of one kind.
pub(crate) struct Sayings<'f> {
    fleet: &'f Fleet,
    /// By the entries, each known by where it lies.
    known: HashMap<Vec<*const Roles>, Arc<Saying>>,
}

/// An entry that concerns a station.
#[derive(PartialEq)]
struct Part<'f> {
    by: By<'f>,
    source: &'f str,
    roles: &'f Roles,
    plugins: &'f BTreeMap<Name, Digest>,
    length: usize,
}

#[derive(PartialEq)]
enum By<'f> {
    Station(&'f str),
    Group(&'f Name),
}

impl fmt::Display for By<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Station(reference) => write!(f, "station `{reference}`"),
            Self::Group(group) => write!(f, "group `{group}`"),
        }
    }
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
        let mut union = Union { station: subject.name, parts: &parts, conflicts: Vec::new() };
        let (mut document, mut entries) = (Document::default(), Vec::new());
        for Part { by, source, roles, plugins, .. } in &parts {
            let by = by.to_string();
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

    /// Whether the entries that concern a station are the same in another state of things, and its labels too.
    pub(crate) fn says_the_same(&self, other: &Self, subject: &Subject<'_>) -> bool {
        self.parts_for(subject) == other.parts_for(subject)
    }

    /// The references of entries that mean a station.
    pub(crate) fn references_to(&self, subject: &Subject<'_>) -> impl Iterator<Item = &str> {
        self.stations.meant(subject).into_iter().map(|(reference, _)| reference.as_str())
    }

    /// Whether any entry concerns a station.
    pub(crate) fn concerns(&self, subject: &Subject<'_>) -> bool {
        !self.parts_for(subject).1.is_empty()
    }

    /// How long what all entries together say of a station is about, in bytes.
    pub(crate) fn length_for(&self, subject: &Subject<'_>) -> usize {
        self.parts_for(subject).1.iter().map(|part| part.length).sum()
    }

    /// The entries that concern a station, in order, and its labels with theirs over them.
    fn parts_for(&self, subject: &Subject<'_>) -> (Labels, Vec<Part<'_>>) {
        let labels = self.labels_of(subject);
        let mut parts = Vec::new();
        for (reference, entry) in self.stations.meant(subject) {
            let StationEntry { roles, plugins, .. } = &entry.content;
            let length = entry.length;
            parts.push(Part { by: By::Station(reference), source: &entry.source, roles, plugins, length });
        }
        for (group, entry) in &self.groups {
            let (GroupEntry { roles, plugins, .. }, selector) = &entry.content;
            if subject.fits(selector, &labels) {
                let length = entry.length;
                parts.push(Part { by: By::Group(group), source: &entry.source, roles, plugins, length });
            }
        }
        (labels, parts)
    }
}

struct Union<'a> {
    station: &'a str,
    parts: &'a [Part<'a>],
    conflicts: Vec<Problem>,
}

impl Union<'_> {
    /// The first entry that configures an instance.
    fn said_by(&self, role: &Name, instance: &Name) -> String {
        let has = |part: &&Part<'_>| part.roles.get(role).is_some_and(|instances| instances.contains_key(instance));
        self.parts.iter().find(has).map_or_else(String::new, |part| part.by.to_string())
    }

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
                    }
                    Some(same) if same == config => {}
                    Some(_) => self.conflicts.push(Problem {
                        code: ProblemCode::InvalidConfiguration,
                        station: self.station.into(),
                        role: role.to_string(),
                        instance: Some(instance.to_string()),
                        key: None,
                        expected: format!("the same settings as {}", self.said_by(role, instance)),
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
