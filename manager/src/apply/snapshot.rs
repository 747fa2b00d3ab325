//! What an apply is prepared from: the fleet as it is, in values of its own, so that others can go on changing it.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use quilt_protocol::control::{InstanceReport, Owner};
use quilt_protocol::{Revision, StationId};

use crate::Core;
use crate::fleet::{Fleet, Subject};
use crate::state::{InstanceKey, Station};
use crate::store::{Desired, StationRecord};

/// How many stations are copied before others get their turn.
const AT_ONCE: usize = 128;

/// A fleet at a moment.
pub(crate) struct Snapshot {
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) last_revision: Revision,
    /// When it was taken, in milliseconds since 1970.
    pub(crate) at_ms: u64,
    /// In the order of their identities.
    pub(crate) stations: Vec<StationSnapshot>,
}

/// A station at a moment.
pub(crate) struct StationSnapshot {
    pub(crate) record: StationRecord,
    state: &'static str,
    pub(crate) desired: Option<Desired>,
    /// Whether what is desired is not known, because it is damaged in the store.
    pub(crate) is_damaged: bool,
    pub(crate) is_live: bool,
    pub(crate) refuses_desired: bool,
    /// Instances of the fleet that are not as wanted.
    pub(crate) unhealthy: BTreeMap<InstanceKey, InstanceReport>,
}

impl StationSnapshot {
    fn new(station: &Station) -> Self {
        let instances = station.live.iter().flat_map(|live| &live.instances);
        let unhealthy = instances.filter(|(_, report)| report.owner == Owner::Fleet && !report.state.is_as_wanted());
        Self {
            record: station.record.clone(),
            state: station.state().name(),
            desired: station.desired.clone(),
            is_damaged: station.damage.is_some(),
            is_live: station.live.is_some(),
            refuses_desired: station.refuses_desired(),
            unhealthy: unhealthy.map(|(key, report)| (key.clone(), report.clone())).collect(),
        }
    }

    /// As fleet entries and selectors look at it.
    pub(crate) fn subject(&self) -> Subject<'_> {
        Subject::new(&self.record, self.state)
    }
}

impl Snapshot {
    /// Takes one, a few stations at a time. Whoever must not miss a change of what is desired holds [`Core::applying`].
    pub(crate) async fn take(core: &Core) -> Self {
        let (fleet, last_revision, at_ms) = {
            let state = core.state();
            (state.fleet.clone(), state.last_revision, state.clock.now_ms())
        };
        let (mut stations, mut after) = (Vec::new(), Bound::Unbounded);
        while let Some(last) = add(core, after, &mut stations) {
            after = Bound::Excluded(last);
            tokio::task::yield_now().await;
        }
        Self { fleet, last_revision, at_ms, stations }
    }
}

/// Adds the next stations and returns the last of them; nothing if there is none.
fn add(core: &Core, after: Bound<StationId>, stations: &mut Vec<StationSnapshot>) -> Option<StationId> {
    let state = core.state();
    let next = state.stations.range((after, Bound::Unbounded)).take(AT_ONCE);
    stations.extend(next.map(|(_, station)| StationSnapshot::new(station)));
    let last = stations.last().map(|station| station.record.id);
    last.filter(|last| after != Bound::Excluded(*last))
}
