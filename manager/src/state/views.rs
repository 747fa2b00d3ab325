//! What is shown of stations.

use std::collections::BTreeMap;
use std::ops::Bound;

use quilt_core::time;
use quilt_protocol::control::{InstanceReport, InstanceView, StationState, StationView};
use quilt_protocol::{Name, StationId};

use super::{Newcomer, State, Station};
use crate::clock::Clock;
use crate::fleet::Subject;
use crate::selector::Selector;

/// The MAC addresses that several stations have, with their names.
pub(crate) type SharedMacs = BTreeMap<String, Vec<Name>>;

impl State {
    /// How one station looks without its instances, if it is there and the selector means it; without a selector all are meant.
    pub(crate) fn view_of(&self, id: StationId, selector: Option<&Selector>, macs: &SharedMacs) -> Option<StationView> {
        let station = self.stations.get(&id)?;
        station.is_meant_by(selector).then(|| self.view(station, macs))
    }

    /// Adds the next instances of a station to its view, at most `limit`. Whether there may be more.
    pub(crate) fn add_instances(&self, view: &mut StationView, limit: usize) -> bool {
        let live = self.stations.get(&view.id).and_then(|station| station.live.as_ref());
        let Some(live) = live else { return false };
        let last = view.instances.last().map(|last| (last.role.clone(), last.instance.clone()));
        let behind = last.map_or(Bound::Unbounded, Bound::Excluded);
        let before = view.instances.len();
        view.instances
            .extend(live.instances.range((behind, Bound::Unbounded)).take(limit).map(|(_, it)| instance_view(it)));
        view.instances.len() - before == limit
    }

    /// The quarantined newcomers that a selector means, or all, by name.
    pub(crate) fn newcomers(&self, selector: Option<&Selector>) -> Vec<StationView> {
        let mut views = Vec::new();
        for newcomer in &self.quarantined {
            let mut view = newcomer_view(newcomer, self.clock);
            if selector.is_some_and(|selector| !subject_of(&view).fits(selector, &view.labels)) {
                continue;
            }
            if let Some(holder) = self.stations.get(&newcomer.registration.id) {
                view.flags.push(format!("same identity as {}, which is live", holder.record.name));
            }
            views.push(view);
        }
        views.sort_by(|a, b| a.name.cmp(&b.name));
        views
    }

    /// The MAC addresses that several stations say they have, with their names.
    pub(crate) fn shared_macs(&self) -> SharedMacs {
        let mut macs = BTreeMap::<_, Vec<_>>::new();
        for Station { record, .. } in self.stations.values().map(|station| &**station) {
            if let Some(mac) = &record.facts.mac {
                macs.entry(mac).or_default().push(&record.name);
            }
        }
        let shared = macs.into_iter().filter(|(_, names)| names.len() > 1);
        shared.map(|(mac, names)| (mac.clone(), names.into_iter().cloned().collect())).collect()
    }

    fn view(&self, station: &Station, macs: &SharedMacs) -> StationView {
        let Station { record, desired, live, rejected, labels, damage: _ } = station;
        let applied = live.as_ref().and_then(|live| live.applied);
        StationView {
            id: record.id,
            name: record.name.clone(),
            hostname: record.facts.hostname.clone(),
            mac: record.facts.mac.clone(),
            ip: record.facts.ip.clone(),
            state: station.state(),
            labels: labels.clone(),
            roles: record.roles.clone(),
            desired_revision: desired.as_ref().map(|desired| desired.revision),
            desired_digest: desired.as_ref().map(|desired| desired.digest),
            applied_revision: applied.map(|applied| applied.revision),
            applied_digest: applied.map(|applied| applied.digest),
            rejected: rejected.clone(),
            applying: live.as_ref().is_some_and(|live| live.applying),
            instances: Vec::new(),
            facts: record.facts.clone(),
            flags: self.flags(station, macs),
            // One that is connected beats, and is lost when it does not.
            last_seen: Some(
                live.as_ref().map_or_else(|| time::ms_text(record.last_seen_ms), |_| self.clock.now_text()),
            ),
        }
    }

    /// Things to look at.
    fn flags(&self, station: &Station, macs: &SharedMacs) -> Vec<String> {
        let record = &station.record;
        let mut flags = Vec::new();
        if let Some(place) = &station.damage {
            flags.push(format!(
                "what it should run is damaged in the store, and nothing is pushed to it: {place}; apply a file that names it, \
                 or restore a backup with `quilt-manager restore`"
            ));
        }
        if !record.adopted {
            flags.extend(station.live.as_ref().and_then(|live| live.unadopted.clone()));
        }
        let wished = record.name.as_str().rsplit_once('~').map(|(wished, _)| wished);
        if let Some(wished) = wished.filter(|wished| self.names.contains_key(*wished)) {
            flags.push(format!("the name {wished} is taken by another station"));
        }
        let sharing = record.facts.mac.as_deref().and_then(|mac| macs.get(mac)).into_iter().flatten();
        let others: Vec<_> = sharing.filter(|name| **name != record.name).map(ToString::to_string).collect();
        flags.extend(same_mac(&others));
        if self.quarantined.iter().any(|newcomer| newcomer.registration.id == record.id) {
            flags.push("another machine claims its identity; see `quiltctl station replace` and `renew`".into());
        }
        flags.extend(station.live.iter().flat_map(|live| live.remarks.iter().cloned()));
        flags
    }
}

/// What is said of a station whose MAC others have as well. On a host with many stations all names would be a page for each.
fn same_mac(others: &[String]) -> Option<String> {
    const NAMED_MAX: usize = 3;
    match others.len() {
        0 => None,
        1..=NAMED_MAX => Some(format!("same MAC as {}", others.join(", "))),
        many => Some(format!("same MAC as {many} others")),
    }
}

fn subject_of(view: &StationView) -> Subject<'_> {
    Subject {
        name: view.name.as_str(),
        id: view.id,
        hostname: &view.hostname,
        mac: view.mac.as_deref(),
        ip: view.ip.as_deref(),
        roles: &view.roles,
        state: view.state.name(),
        labels: &view.labels,
    }
}

fn newcomer_view(newcomer: &Newcomer, clock: Clock) -> StationView {
    let registration = &newcomer.registration;
    StationView {
        id: registration.id,
        name: registration.wished_name.clone(),
        hostname: registration.facts.hostname.clone(),
        mac: registration.facts.mac.clone(),
        ip: registration.facts.ip.clone(),
        state: StationState::Quarantined,
        labels: registration.labels.clone(),
        roles: registration.roles.iter().map(|offer| offer.role.clone()).collect(),
        desired_revision: None,
        desired_digest: None,
        applied_revision: registration.applied.map(|applied| applied.revision),
        applied_digest: registration.applied.map(|applied| applied.digest),
        rejected: None,
        applying: registration.applying,
        instances: registration.instances.iter().map(instance_view).collect(),
        facts: registration.facts.clone(),
        flags: Vec::new(),
        last_seen: Some(clock.now_text()),
    }
}

fn instance_view(report: &InstanceReport) -> InstanceView {
    let attributes = report.attributes.iter();
    let attributes = attributes.map(|(name, json)| (name.clone(), serde_json::from_str(json).unwrap_or_default()));
    InstanceView {
        role: report.role.clone(),
        instance: report.instance.clone(),
        owner: report.owner,
        state: report.state,
        detail: report.detail.clone(),
        pid: report.pid,
        restarts: report.restarts,
        since: time::ms_text(report.since_ms),
        attributes: attributes.collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_stations_with_one_mac_are_counted_and_a_few_are_named() {
        let others = |count: usize| (0..count).map(|number| format!("cam-{number}")).collect::<Vec<_>>();
        assert_eq!(same_mac(&others(0)), None);
        assert_eq!(same_mac(&others(2)).as_deref(), Some("same MAC as cam-0, cam-1"));
        assert_eq!(same_mac(&others(59)).as_deref(), Some("same MAC as 59 others"));
    }
}
