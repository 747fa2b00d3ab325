//! The entries of fleet files for single stations.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{Sourced, StationEntry, Subject};

/// Entries by the reference that names a station. Found without looking at each: a fleet may have one for every station.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct StationEntries {
    all: BTreeMap<String, Arc<Sourced<StationEntry>>>,
    /// References by id or MAC address in lower case, each with how it is written.
    by_number: BTreeSet<(String, String)>,
}

/// What a reference by id or MAC address is found by; nothing for a name.
fn number(reference: &str) -> Option<String> {
    (reference.starts_with("id:") || reference.starts_with("mac:")).then(|| reference.to_ascii_lowercase())
}

impl StationEntries {
    pub(super) fn get(&self, reference: &str) -> Option<&Arc<Sourced<StationEntry>>> {
        self.all.get(reference)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&String, &Arc<Sourced<StationEntry>>)> {
        self.all.iter()
    }

    pub(super) fn insert(&mut self, reference: String, entry: Arc<Sourced<StationEntry>>) {
        self.by_number.extend(number(&reference).map(|number| (number, reference.clone())));
        self.all.insert(reference, entry);
    }

    pub(super) fn remove(&mut self, reference: &str) {
        if let Some(number) = number(reference) {
            self.by_number.remove(&(number, reference.to_owned()));
        }
        self.all.remove(reference);
    }

    /// Those that mean a station, in the order of their references.
    pub(super) fn meant(&self, subject: &Subject<'_>) -> Vec<(&String, &Arc<Sourced<StationEntry>>)> {
        let mut meant: Vec<_> = self.all.get_key_value(subject.name).into_iter().collect();
        if !self.by_number.is_empty() {
            let mac = subject.mac.map(|mac| format!("mac:{}", mac.to_ascii_lowercase()));
            for number in [Some(format!("id:{}", subject.id)), mac].into_iter().flatten() {
                let from = (number, String::new());
                let spelled = self.by_number.range(&from..).take_while(|(other, _)| *other == from.0);
                meant.extend(spelled.filter_map(|(_, reference)| self.all.get_key_value(reference)));
            }
        }
        meant.sort_by_key(|(reference, _)| *reference);
        meant
    }
}

#[cfg(test)]
mod tests {
    use quilt_protocol::StationId;

    use super::*;

    #[test]
    fn a_station_is_found_by_its_name_its_id_and_its_mac_address_however_they_are_spelled() {
        let id = "0192F0C1-2345-7890-abcd-0123456789ab";
        let references = ["cam-1".to_owned(), format!("id:{id}"), "mac:02:AA:00:00:00:01".into(), "cam-2".into()];
        let mut entries = StationEntries::default();
        for reference in &references {
            let entry = Sourced::new("f", StationEntry::default(), 0);
            entries.insert(reference.clone(), Arc::new(entry));
        }
        let labels = Default::default();
        let subject = |name: &'static str, id: StationId, mac: Option<&'static str>| Subject {
            name,
            id,
            hostname: "h",
            mac,
            ip: None,
            roles: &[],
            state: "connected",
            labels: &labels,
        };
        let meant = |entries: &StationEntries, subject: Subject<'_>| -> Vec<String> {
            entries.meant(&subject).into_iter().map(|(reference, _)| reference.clone()).collect()
        };
        let id: StationId = id.parse().unwrap();
        let all = subject("cam-1", id, Some("02:aa:00:00:00:01"));
        assert_eq!(meant(&entries, all), references[..3]);
        let other = StationId(uuid::Uuid::nil());
        assert_eq!(meant(&entries, subject("cam-2", other, None)), ["cam-2"]);
        assert_eq!(meant(&entries, subject("cam-3", other, Some("02:AA:00:00:00:01"))), references[2..3]);
        entries.remove(&references[2]);
        assert_eq!(meant(&entries, subject("cam-3", other, Some("02:AA:00:00:00:01"))), [""; 0]);
    }
}
