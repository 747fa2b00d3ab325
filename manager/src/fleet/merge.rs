//! What an applied file changes in the whole.

use quilt_protocol::control::{Remark, STDIN_SOURCE};
use quilt_protocol::{Name, labels};

use super::{Fleet, FleetFile, Sourced, Subject, shown};
use crate::selector::Selector;
use crate::store::EntryKey;

/// How a file changes the whole.
pub(crate) struct Merged {
    pub(crate) fleet: Fleet,
    /// Entries to write, since they become others, and to forget.
    pub(crate) put: Vec<EntryKey>,
    pub(crate) removed: Vec<EntryKey>,
    pub(crate) notes: Vec<String>,
}

impl Fleet {
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
            let table = entry.labels.iter().map(|(key, value)| (key.as_str(), value.as_str()));
            if let Err(text) = labels::check_table("label", table) {
                let at = vec!["station".into(), station.clone(), "labels".into()];
                mistakes.push(Remark { at, text: format!("station `{station}`: {text}") });
            }
            let known = self.stations.get(station);
            let sourced = Sourced::of_station(source, entry.clone());
            let is_new = known != Some(&sourced);
            taken_over(format!("station `{station}`"), known.map(|entry| &entry.source), is_new);
            if is_new {
                put.push(EntryKey::Station(station.clone()));
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
            let sourced = Sourced::of_group(source, entry.clone(), selector);
            let is_new = known != Some(&sourced);
            taken_over(format!("group `{group}`"), known.map(|entry| &entry.source), is_new);
            if is_new {
                put.push(EntryKey::Group(group.clone()));
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

    /// Entries that name a station in other words than `file` does: the file says all of it now. Answers their keys.
    pub(crate) fn drop_synonyms(&mut self, subject: &Subject<'_>, file: &FleetFile) -> Vec<String> {
        let meant: Vec<_> = self.stations.meant(subject).into_iter().map(|(reference, _)| reference.clone()).collect();
        if !meant.iter().any(|reference| file.station.contains_key(reference)) {
            return Vec::new();
        }
        let dropped: Vec<_> = meant.into_iter().filter(|reference| !file.station.contains_key(reference)).collect();
        dropped.iter().for_each(|reference| self.stations.remove(reference));
        dropped
    }
}

/// Which stations a group means.
fn group_selector(text: &str) -> Result<Selector, String> {
    let selector = Selector::of_stations(text)?;
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

#[cfg(test)]
mod tests {
    use super::super::testing::file;
    use super::*;

    #[test]
    fn more_labels_than_a_station_may_have_are_a_mistake_that_names_the_limit() {
        let labels: std::collections::BTreeMap<_, _> = (0..65).map(|number| (format!("k{number}"), "x")).collect();
        let file = file(serde_json::json!({ "station": { "cam-1": { "labels": labels } } }));
        let mistakes = Fleet::default().merged(&file, "f").err().unwrap();
        let [Remark { at, text }] = &mistakes[..] else { panic!("{mistakes:?}") };
        assert_eq!(at, &["station", "cam-1", "labels"]);
        assert_eq!(text, "station `cam-1`: 65 labels; at most 64 are taken");
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
}
