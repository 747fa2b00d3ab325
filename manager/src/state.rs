//! What the manager knows of its fleet now: one structure behind one lock, held for a few lines at a time.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Instant;

use quilt_core::time;
use quilt_net::Handle;
use quilt_protocol::control::{
    Applied, Document, InstanceReport, InstanceView, Owner, Registration, Rejected, Report, State as InstanceState,
    StationState, StationView, instance_digest,
};
use quilt_protocol::{Labels, Name, Revision, StationId};

use crate::fleet::{Fleet, Subject};
use crate::store::{Desired, Loaded, StationRecord};

/// Everything that changes while a manager runs.
pub(crate) struct State {
    pub(crate) epoch: u64,
    pub(crate) last_revision: Revision,
    /// Each in a place of its own: a tree keeps room for what is not there.
    pub(crate) stations: BTreeMap<StationId, Box<Station>>,
    pub(crate) names: BTreeMap<Name, StationId>,
    pub(crate) fleet: Fleet,
    pub(crate) clients: BTreeMap<Name, Client>,
    /// Newcomers whose identity is live elsewhere.
    pub(crate) quarantined: Vec<Newcomer>,
    /// Tables that stations said of themselves, to be shared by those that say the same.
    pub(crate) said: HashSet<Labels>,
    /// Revisions whose push waits for its batch. A station that gets a newer one is not held any more.
    pub(crate) held: HashMap<StationId, Revision>,
    /// Revisions that were to be taken back if they fail, and have not been seen to settle: nobody goes back to one.
    pub(crate) on_trial: HashMap<StationId, Revision>,
}

/// A known station.
pub(crate) struct Station {
    pub(crate) record: StationRecord,
    pub(crate) desired: Option<Desired>,
    pub(crate) live: Option<Live>,
    pub(crate) rejected: Option<Rejected>,
    /// Labels with the fleet file's over the station's own.
    pub(crate) labels: Labels,
}

/// A station with a session.
pub(crate) struct Live {
    pub(crate) handle: Handle,
    pub(crate) applied: Option<Applied>,
    pub(crate) applying: bool,
    pub(crate) instances: BTreeMap<(Name, Name), InstanceReport>,
    /// Why it is not adopted, if it is not.
    pub(crate) unadopted: Option<String>,
    /// Since when it runs this revision well.
    pub(crate) healthy_since: Option<(Revision, Instant)>,
    /// A push is under way; another is wanted after it.
    pub(crate) pushing: bool,
    pub(crate) push_again: bool,
}

/// A connected tool.
pub(crate) struct Client {
    pub(crate) handle: Handle,
    pub(crate) software: String,
    pub(crate) peer: String,
    pub(crate) since_ms: u64,
}

/// A second session of an identity that is live elsewhere.
#[derive(Clone)]
pub(crate) struct Newcomer {
    pub(crate) registration: Registration,
    pub(crate) handle: Handle,
}

impl Newcomer {
    /// Keeps up with what it reports, for whoever looks at it or lets it in.
    pub(crate) fn take(&mut self, report: &Report) {
        let registration = &mut self.registration;
        registration.applied = report.applied;
        if let Some(roles) = &report.roles {
            registration.roles.clone_from(roles);
        }
        let gone = |one: &InstanceReport| {
            report.gone.iter().any(|(role, instance)| *role == one.role && *instance == one.instance)
                || report.changed.iter().any(|new| new.role == one.role && new.instance == one.instance)
        };
        registration.instances.retain(|one| !gone(one));
        registration.instances.extend(report.changed.iter().cloned());
    }
}

impl Station {
    /// Whether it was seen to fail with what is desired of it: refused it, or holds an instance of it that failed.
    pub(crate) fn is_ill(&self) -> bool {
        let (Some(live), Some(desired)) = (&self.live, &self.desired) else { return false };
        let refused = self.rejected.as_ref().is_some_and(|rejected| rejected.revision == desired.revision);
        let failed = |report: &InstanceReport| {
            matches!(report.state, InstanceState::Failed | InstanceState::Backoff)
                || report.held_back.as_ref().is_some_and(|(asked, _)| *asked == desired.digest)
        };
        let applied = live.applied.is_some_and(|applied| applied.digest == desired.digest);
        refused || (applied && live.instances.values().any(|one| one.owner == Owner::Fleet && failed(one)))
    }

    /// Whether it runs every instance of its desired configuration, healthy and as configured.
    pub(crate) fn runs_well(&self) -> bool {
        let (Some(live), Some(desired)) = (&self.live, &self.desired) else { return false };
        let Ok(document) = serde_json::from_str::<Document>(&desired.document) else { return false };
        live.applied.is_some_and(|applied| applied.digest == desired.digest)
            && document.roles.iter().all(|(role, instances)| {
                instances.iter().all(|(instance, config)| {
                    let report = live.instances.get(&(role.clone(), instance.clone()));
                    report.is_some_and(|report| report.state.is_healthy() && report.digest == instance_digest(config))
                })
            })
    }
}

impl State {
    pub(crate) fn new(loaded: Loaded) -> Result<Self, String> {
        let fleet = Fleet::from_entries(&loaded.entries)?;
        let mut desired = loaded.desired;
        let mut state = Self {
            epoch: loaded.epoch,
            last_revision: loaded.last_revision,
            stations: BTreeMap::new(),
            names: BTreeMap::new(),
            fleet,
            clients: BTreeMap::new(),
            quarantined: Vec::new(),
            said: HashSet::new(),
            held: HashMap::new(),
            on_trial: HashMap::new(),
        };
        for record in loaded.stations {
            state.names.insert(record.name.clone(), record.id);
            let desired = desired.remove(&record.id);
            if let Some(held) = desired.as_ref().filter(|desired| desired.held) {
                state.held.insert(record.id, held.revision);
            }
            let labels = record.labels.clone();
            let station = Station { record, desired, live: None, rejected: None, labels };
            state.stations.insert(station.record.id, Box::new(station));
        }
        for id in state.stations.keys().copied().collect::<Vec<_>>() {
            state.relabel(id);
        }
        Ok(state)
    }

    /// The station that `reference` means: a name, `id:<uuid>` or `mac:<address>`.
    pub(crate) fn find(&self, reference: &str) -> Result<StationId, String> {
        let meant = |station: &&Station| with_subject(station, |subject| crate::fleet::is_meant(reference, subject));
        let mut all = self.stations.values().map(AsRef::as_ref).filter(meant);
        match (all.next(), all.next()) {
            (Some(one), None) => Ok(one.record.id),
            (Some(_), Some(_)) => Err(format!("{reference} means several stations; use a name or id:<uuid>")),
            (None, _) => Err(format!("there is no station {reference}; `quiltctl stations` lists them")),
        }
    }

    /// Whether the push of a station's desired configuration waits for its batch.
    pub(crate) fn is_held(&self, id: StationId) -> bool {
        let desired = self.stations.get(&id).and_then(|station| station.desired.as_ref());
        desired.is_some_and(|desired| self.held.get(&id) == Some(&desired.revision))
    }

    /// A free name as close to `wished` as can be.
    pub(crate) fn free_name(&self, wished: &Name, id: StationId) -> Name {
        let is_free = |name: &Name| self.names.get(name).is_none_or(|holder| *holder == id);
        if is_free(wished) {
            return wished.clone();
        }
        let stem: String = wished.as_str().chars().take(quilt_protocol::names::NAME_MAX - 6).collect();
        let numbered = (2..).map(|number| format!("{stem}~{number}").parse::<Name>().expect("a name and a number"));
        numbered.into_iter().find(is_free).expect("numbers do not run out")
    }

    /// The same table, in the place of one that another station has.
    pub(crate) fn shared(&mut self, table: &Labels) -> Labels {
        /// Beyond this, stations differ in what they say; sharing would only cost.
        const SAID_MAX: usize = 1024;
        /// A table of more bytes is not kept for others.
        const TABLE_MAX: usize = 4096;
        if table.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>() > TABLE_MAX {
            return table.clone();
        }
        if let Some(known) = self.said.get(table) {
            return known.clone();
        }
        if self.said.len() >= SAID_MAX {
            self.said.clear();
        }
        self.said.insert(table.clone());
        table.clone()
    }

    /// Puts the labels of a station together anew.
    pub(crate) fn relabel(&mut self, id: StationId) {
        if let Some(station) = self.stations.get(&id) {
            let labels = with_subject(station, |subject| self.fleet.labels_of(subject));
            self.stations.get_mut(&id).expect("it was just there").labels = labels;
        }
    }

    pub(crate) fn views(&self) -> Vec<StationView> {
        let macs = self.macs();
        let mut views: Vec<_> = self.stations.values().map(|station| self.view(station, &macs)).collect();
        for newcomer in &self.quarantined {
            let mut view = newcomer_view(newcomer);
            if let Some(holder) = self.stations.get(&newcomer.registration.id) {
                view.flags.push(format!("same identity as {}, which is live", holder.record.name));
            }
            views.push(view);
        }
        views.sort_by(|a, b| (&a.name, a.state).cmp(&(&b.name, b.state)));
        views
    }

    /// Which stations say they have which MAC address.
    fn macs(&self) -> BTreeMap<String, Vec<Name>> {
        let mut macs = BTreeMap::<_, Vec<_>>::new();
        for Station { record, .. } in self.stations.values().map(|station| &**station) {
            if let Some(mac) = &record.facts.mac {
                macs.entry(mac.clone()).or_default().push(record.name.clone());
            }
        }
        macs
    }

    fn view(&self, station: &Station, macs: &BTreeMap<String, Vec<Name>>) -> StationView {
        let Station { record, desired, live, rejected, labels } = station;
        let state = match live {
            Some(_) if !record.adopted => StationState::Unadopted,
            Some(_) => StationState::Connected,
            None if record.said_goodbye => StationState::Disconnected,
            None => StationState::Unknown,
        };
        let instances = live.iter().flat_map(|live| live.instances.values()).map(instance_view).collect();
        let applied = live.as_ref().and_then(|live| live.applied);
        StationView {
            id: record.id,
            name: record.name.clone(),
            hostname: record.facts.hostname.clone(),
            mac: record.facts.mac.clone(),
            ip: record.facts.ip.clone(),
            state,
            labels: labels.clone(),
            roles: record.roles.clone(),
            desired_revision: desired.as_ref().map(|desired| desired.revision),
            desired_digest: desired.as_ref().map(|desired| desired.digest),
            applied_revision: applied.map(|applied| applied.revision),
            applied_digest: applied.map(|applied| applied.digest),
            rejected: rejected.clone(),
            applying: live.as_ref().is_some_and(|live| live.applying),
            instances,
            facts: record.facts.clone(),
            flags: self.flags(station, macs),
            last_seen: Some(time::ms_text(record.last_seen_ms)),
        }
    }

    /// Things to look at.
    fn flags(&self, station: &Station, macs: &BTreeMap<String, Vec<Name>>) -> Vec<String> {
        let record = &station.record;
        let mut flags = Vec::new();
        if !record.adopted {
            flags.extend(station.live.as_ref().and_then(|live| live.unadopted.clone()));
        }
        let wished = record.name.as_str().rsplit_once('~').map(|(wished, _)| wished);
        if let Some(wished) = wished.filter(|wished| self.names.contains_key(*wished)) {
            flags.push(format!("the name {wished} is taken by another station"));
        }
        let same_mac = record.facts.mac.as_ref().and_then(|mac| macs.get(mac)).into_iter().flatten();
        let others: Vec<_> = same_mac.filter(|name| **name != record.name).map(Name::to_string).collect();
        if !others.is_empty() {
            flags.push(format!("same MAC as {}", others.join(", ")));
        }
        if self.quarantined.iter().any(|newcomer| newcomer.registration.id == record.id) {
            flags.push("another machine claims its identity; see `quiltctl station replace` and `renew`".into());
        }
        flags
    }
}

fn newcomer_view(newcomer: &Newcomer) -> StationView {
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
        last_seen: Some(time::now_text()),
    }
}

/// Looks at a station as fleet entries do.
pub(crate) fn with_subject<R>(station: &Station, work: impl FnOnce(&Subject<'_>) -> R) -> R {
    let record = &station.record;
    let values = |key: &str| match key {
        "name" => Some(vec![record.name.to_string()]),
        "id" => Some(vec![record.id.to_string()]),
        "hostname" => Some(vec![record.facts.hostname.clone()]),
        "mac" => Some(record.facts.mac.clone().into_iter().collect()),
        "ip" => Some(record.facts.ip.clone().into_iter().collect()),
        "role" => Some(record.roles.iter().map(Name::to_string).collect()),
        _ => None,
    };
    work(&Subject {
        name: record.name.as_str(),
        id: record.id.to_string(),
        mac: record.facts.mac.as_deref(),
        labels: &record.labels,
        values: &values,
    })
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
