//! What the manager knows of its fleet now: one structure behind one lock, held for a few lines at a time.

mod views;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use quilt_net::Handle;
use quilt_protocol::control::{Applied, InstanceReport, Owner, Registration, Rejected, Report, StationState};
use quilt_protocol::{Digest, Labels, Name, Revision, StationId};
use tokio::time::Instant;

use crate::clock::Clock;
use crate::fleet::{Fleet, Instances, Subject, document_of, instances_of};
use crate::selector::Selector;
use crate::store::{DamagedRow, Desired, EntryKey, Loaded, StationRecord};
use crate::workers::LONG;

pub(crate) use views::SharedMacs;

/// Everything that changes while a manager runs.
pub(crate) struct State {
    pub(crate) clock: Clock,
    pub(crate) epoch: u64,
    pub(crate) last_revision: Revision,
    /// Each in a place of its own: a tree keeps room for what is not there.
    pub(crate) stations: BTreeMap<StationId, Box<Station>>,
    pub(crate) names: BTreeMap<Name, StationId>,
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) clients: BTreeMap<Name, Client>,
    /// Newcomers whose identity is live elsewhere.
    pub(crate) quarantined: Vec<Newcomer>,
    /// Tables that stations said of themselves, to be shared by those that say the same.
    pub(crate) said: HashSet<Labels>,
    pub(crate) instances: KnownInstances,
    /// Revisions whose push waits for its batch. A station that gets a newer one is not held any more.
    pub(crate) held: HashMap<StationId, Revision>,
    /// Revisions whose rollout goes on where the manager before this one left it.
    pub(crate) resumed: HashSet<(StationId, Revision)>,
    /// Stations whose record is to be stored soon.
    pub(crate) unsaved: BTreeSet<StationId>,
    /// Revisions that are not stored yet: they are not offered, because a manager that starts again would not know them.
    pub(crate) unsaved_desired: HashMap<StationId, Revision>,
    /// Fleet entries that are damaged in the store. Until each was applied again nothing is made from the others: what a station
    /// should run would lack what these say.
    pub(crate) damaged_entries: Vec<DamagedEntry>,
}

/// A fleet entry that is damaged in the store.
pub(crate) struct DamagedEntry {
    /// Which it was, if that can be told.
    pub(crate) key: Option<EntryKey>,
    /// Where it lies, for people.
    pub(crate) place: String,
}

/// A known station.
pub(crate) struct Station {
    pub(crate) record: StationRecord,
    pub(crate) desired: Option<Desired>,
    /// Where its desired configuration lies in the store, if that is damaged: none is known then, and nothing is pushed until it
    /// is given one again.
    pub(crate) damage: Option<String>,
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
    pub(crate) instances: BTreeMap<InstanceKey, InstanceReport>,
    /// Why it is not adopted, if it is not.
    pub(crate) unadopted: Option<String>,
    /// What it says is wrong with the files on its host.
    pub(crate) remarks: Vec<String>,
    /// Since when it runs its desired configuration well.
    pub(crate) healthy: Option<Healthy>,
    /// A push is under way; another is wanted after it.
    pub(crate) pushing: bool,
    pub(crate) push_again: bool,
    /// How often in a row it could not take what it was offered for trouble of its own.
    pub(crate) faults: u32,
}

/// A time in which a station runs a revision well. An instance that is restarted ends it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Healthy {
    pub(crate) revision: Revision,
    /// How often instances had been restarted.
    pub(crate) restarts: u64,
    pub(crate) since: Instant,
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
    /// Gives it another desired configuration.
    pub(crate) fn set_desired(&mut self, desired: Desired) {
        self.desired = Some(desired);
        self.damage = None;
    }

    /// As fleet entries and selectors look at it.
    pub(crate) fn subject(&self) -> Subject<'_> {
        Subject::new(&self.record, self.state().name())
    }

    /// Whether a selector means it; without one it is meant.
    pub(crate) fn is_meant_by(&self, selector: Option<&Selector>) -> bool {
        selector.is_none_or(|selector| self.subject().fits(selector, &self.labels))
    }

    /// How the manager stands with it.
    pub(crate) fn state(&self) -> StationState {
        match self.live {
            Some(_) if !self.record.adopted => StationState::Unadopted,
            Some(_) => StationState::Connected,
            None if self.record.said_goodbye => StationState::Disconnected,
            None => StationState::Unknown,
        }
    }

    /// Whether it refused what is desired of it.
    pub(crate) fn refuses_desired(&self) -> bool {
        let desired = self.desired.as_ref().map(|desired| desired.revision);
        self.rejected.as_ref().is_some_and(|rejected| Some(rejected.revision) == desired)
    }

    /// Whether it has every instance of its desired configuration as configured, and each runs well unless an operator stopped it.
    pub(crate) fn runs_well(&self, known: &mut KnownInstances) -> bool {
        let (Some(live), Some(desired)) = (&self.live, &self.desired) else { return false };
        live.applied.is_some_and(|applied| applied.digest == desired.digest)
            && known.of(desired).is_some_and(|instances| {
                instances.iter().all(|(key, digest)| {
                    live.instances
                        .get(key)
                        .is_some_and(|report| report.state.is_as_wanted() && report.digest == *digest)
                })
            })
    }

    /// How often some instances were restarted, all together: more than before means that one failed, also if nobody saw it down.
    pub(crate) fn restarts(&self, of: impl Fn(&InstanceKey) -> bool) -> u64 {
        self.reports(of).map(|report| u64::from(report.restarts)).sum()
    }

    /// The one of them that was restarted most often, in words.
    pub(crate) fn most_restarted(&self, of: impl Fn(&InstanceKey) -> bool) -> Option<String> {
        let most = self.reports(of).filter(|report| report.restarts > 0).max_by_key(|report| report.restarts)?;
        Some(format!("{}/{} was restarted {} times", most.role, most.instance, most.restarts))
    }

    /// The reports of some of the fleet's instances. What drop-in files of the host configure is no affair of an apply.
    fn reports(&self, of: impl Fn(&InstanceKey) -> bool) -> impl Iterator<Item = &InstanceReport> {
        let all = self.live.iter().flat_map(|live| &live.instances);
        all.filter(move |(key, report)| report.owner == Owner::Fleet && of(key)).map(|(_, report)| report)
    }
}

/// An instance of a station: its role and its own name.
pub(crate) type InstanceKey = (Name, Name);

/// The instances of documents that are desired, or were of late: each is read once, however many stations it is desired of
/// and however often they report.
#[derive(Default)]
pub(crate) struct KnownInstances(HashMap<Digest, Arc<Instances>>);

impl KnownInstances {
    /// Those of one document. A long one that is not known is not read here: see [`KnownInstances::add`].
    fn of(&mut self, desired: &Desired) -> Option<Arc<Instances>> {
        if let Some(known) = self.0.get(&desired.digest) {
            return Some(known.clone());
        }
        if desired.document.len() > LONG {
            return None;
        }
        let instances = Arc::new(instances_of(&document_of(Some(desired))));
        self.add(desired.digest, instances.clone());
        Some(instances)
    }

    /// Whether a document has to be read elsewhere first, since it is long.
    pub(crate) fn lacks(&self, desired: &Desired) -> bool {
        desired.document.len() > LONG && !self.0.contains_key(&desired.digest)
    }

    /// Adds what was read elsewhere.
    pub(crate) fn add(&mut self, digest: Digest, instances: Arc<Instances>) {
        /// A fleet of more documents than this finds few of them here, and reads them as often as stations report.
        const KNOWN_MAX: usize = 256;
        if self.0.len() >= KNOWN_MAX {
            self.0.clear();
        }
        self.0.insert(digest, instances);
    }
}

impl State {
    pub(crate) fn new(loaded: Loaded, clock: Clock) -> Result<Self, String> {
        let fleet = Arc::new(Fleet::from_entries(&loaded.entries)?);
        let mut desired = loaded.desired;
        let mut state = Self {
            clock,
            epoch: loaded.epoch,
            last_revision: loaded.last_revision,
            stations: BTreeMap::new(),
            names: BTreeMap::new(),
            fleet,
            clients: BTreeMap::new(),
            quarantined: Vec::new(),
            said: HashSet::new(),
            instances: KnownInstances::default(),
            held: HashMap::new(),
            resumed: HashSet::new(),
            unsaved: BTreeSet::new(),
            unsaved_desired: HashMap::new(),
            damaged_entries: Vec::new(),
        };
        let on_trial = loaded.trials.iter().flat_map(|trial| &trial.targets);
        state.resumed = on_trial.filter_map(|target| Some((target.id, target.desired?))).collect();
        let mut damage = HashMap::new();
        for crate::store::Damage { row, place } in loaded.damage {
            match row {
                // It is not known any more; it comes back unadopted.
                DamagedRow::Station => {}
                // Nobody knows what was to be taken back: it stays as it was applied.
                DamagedRow::Trial => {}
                DamagedRow::Desired(id) => drop(damage.insert(id, place)),
                DamagedRow::Entry(key) => state.damaged_entries.push(DamagedEntry { key, place }),
            }
        }
        for record in loaded.stations {
            state.names.insert(record.name.clone(), record.id);
            let desired = desired.remove(&record.id);
            if let Some(held) = desired.as_ref().filter(|desired| desired.held) {
                state.held.insert(record.id, held.revision);
            }
            let labels = record.labels.clone();
            let damage = damage.remove(&record.id).filter(|_| desired.is_none());
            let station = Station { record, desired, damage, live: None, rejected: None, labels };
            state.stations.insert(station.record.id, Box::new(station));
        }
        for id in state.stations.keys().copied().collect::<Vec<_>>() {
            state.relabel(id);
        }
        Ok(state)
    }

    /// The station that `reference` means: a name, `id:<uuid>` or `mac:<address>`.
    pub(crate) fn find(&self, reference: &str) -> Result<StationId, String> {
        let meant = |station: &&Station| crate::fleet::is_meant(reference, &station.subject());
        let mut all = self.stations.values().map(AsRef::as_ref).filter(meant);
        match (all.next(), all.next()) {
            (Some(one), None) => Ok(one.record.id),
            (Some(_), Some(_)) => Err(format!("{reference} means several stations; use a name or id:<uuid>")),
            (None, _) => Err(format!("there is no station {reference}; `quiltctl stations` lists them")),
        }
    }

    /// Whether the push of a station's desired configuration waits for its batch.
    pub(crate) fn is_held(&self, id: StationId) -> bool {
        let Some(held) = self.held.get(&id) else { return false };
        let desired = self.stations.get(&id).and_then(|station| station.desired.as_ref());
        desired.is_some_and(|desired| desired.revision == *held)
    }

    /// Whether a station's desired configuration may be offered to it now.
    pub(crate) fn may_be_offered(&self, id: StationId) -> bool {
        let desired = self.stations.get(&id).and_then(|station| station.desired.as_ref());
        let is_unsaved = |revision: &Revision| desired.is_some_and(|desired| desired.revision == *revision);
        !self.is_held(id) && !self.unsaved_desired.get(&id).is_some_and(is_unsaved)
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
            let labels = self.fleet.labels_of(&station.subject());
            self.stations.get_mut(&id).expect("it was just there").labels = labels;
        }
    }
}
