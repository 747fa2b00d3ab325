//! Which instances a target means.

use std::sync::Arc;

use quilt_protocol::control::{DocumentOf, InstanceRef, LeftOut, Resolve};
use quilt_protocol::{Labels, Name, Outcome};
use serde::de::IgnoredAny;

use super::{Failure, find, refused};
use crate::Core;
use crate::fleet::Subject;
use crate::list_reply::ListReply;
use crate::selector::{Selector, is_selector};
use crate::state::Station;
use crate::store::StationRecord;

/// How many stations that are away are named; the others are counted.
const AWAY_NAMED_MAX: usize = 100;

/// Lists the instances that a target means. The set is fixed here, before anything is sent to any of them.
pub(super) async fn resolve(core: Arc<Core>, request: Resolve, list: ListReply) {
    list.answer(resolved(&core, &request)).await;
}

fn resolved(core: &Core, request: &Resolve) -> Result<Vec<InstanceRef>, Failure> {
    let mut found = match request.target.split('/').collect::<Vec<_>>()[..] {
        _ if is_selector(&request.target) => selected(core, request)?,
        [_, _, _] => vec![one_instance(core, &request.target)?],
        [station, role] => sole_instance(core, station, role)?,
        _ => {
            let text =
                format!("{:?} is no target; use station/role/instance, station/role or a selector", request.target);
            return Err((Outcome::NoTarget, text));
        }
    };
    found.sort();
    if let Some(limit) = request.limit {
        found.truncate(limit.of(found.len()));
    }
    Ok(found)
}

/// What `station/role/instance` means; the station may be `id:<uuid>` or `mac:<address>`.
pub(super) fn one_instance(core: &Core, target: &str) -> Result<InstanceRef, Failure> {
    let wrong = || (Outcome::NoTarget, format!("{target:?} is not station/role/instance"));
    let [station, role, instance] = target.split('/').collect::<Vec<_>>()[..] else { return Err(wrong()) };
    let name = |text: &str| text.parse::<Name>().map_err(|_| wrong());
    let (role, instance) = (name(role)?, name(instance)?);
    let id = find(core, station)?;
    Ok(InstanceRef { station: core.state().stations[&id].record.name.clone(), role, instance })
}

fn sole_instance(core: &Core, station: &str, role: &str) -> Result<Vec<InstanceRef>, Failure> {
    let id = find(core, station)?;
    let state = core.state();
    let station = &state.stations[&id];
    let live = station.live.as_ref().ok_or_else(|| {
        let lost = Outcome::PeerLost(quilt_protocol::message::Delivered::No);
        (lost, format!("station {} is away", station.record.name))
    })?;
    let mut instances = live.instances.keys().filter(|(theirs, _)| theirs == role);
    match (instances.next(), instances.next()) {
        (Some((role, instance)), None) => {
            let station = station.record.name.clone();
            Ok(vec![InstanceRef { station, role: role.clone(), instance: instance.clone() }])
        }
        (Some(_), Some(_)) => {
            let name = &station.record.name;
            Err(refused(format!(
                "{name} has several instances of {role}; name one as {name}/{role}/INSTANCE, or use the selector \
                 \"name={name} and role={role}\" for all of them"
            )))
        }
        (None, _) => Err((Outcome::NoTarget, format!("{} has no instance of {role}", station.record.name))),
    }
}

fn selected(core: &Core, request: &Resolve) -> Result<Vec<InstanceRef>, Failure> {
    let selector: Selector = request.target.parse().map_err(refused)?;
    let state = core.state();
    let mut found = Vec::new();
    for station in state.stations.values().filter(|station| station.state().is_here()) {
        for (role, instance) in station.live.iter().flat_map(|live| live.instances.keys()) {
            if station.subject().fits_instance(&selector, &station.labels, role, instance) {
                let (station, role, instance) = (station.record.name.clone(), role.clone(), instance.clone());
                found.push(InstanceRef { station, role, instance });
            }
        }
    }
    Ok(found)
}

/// What a selector of instances leaves out; nothing for another target.
pub(super) async fn left_out(core: &Core, request: &Resolve) -> Result<LeftOut, Failure> {
    if !is_selector(&request.target) {
        return Ok(LeftOut::default());
    }
    let selector: Selector = request.target.parse().map_err(refused)?;
    let (away, unknown_labels) = {
        let state = core.state();
        let away = state.stations.values().filter(|station| !station.state().is_here());
        let away: Vec<_> = away.map(|station| AwayStation::new(station)).collect();
        (away, selector.unknown_labels(|| state.stations.values().map(|station| &station.labels)))
    };
    // What they should run is read for this, which may be long.
    let find = move || {
        let mut names: Vec<_> =
            away.into_iter().filter(|station| station.is_meant_by(&selector)).map(|it| it.record.name).collect();
        names.sort();
        names
    };
    let mut away = core.compute(find).await;
    let away_count = away.len();
    away.truncate(AWAY_NAMED_MAX);
    Ok(LeftOut { away, away_count, unknown_labels })
}

/// A station that is away: only what it should run is known.
struct AwayStation {
    record: StationRecord,
    state: &'static str,
    labels: Labels,
    document: Option<Arc<str>>,
}

impl AwayStation {
    fn new(station: &Station) -> Self {
        let document = station.desired.as_ref().map(|desired| desired.document.clone());
        let (record, state) = (station.record.clone(), station.state().name());
        Self { record, state, labels: station.labels.clone(), document }
    }

    fn is_meant_by(&self, selector: &Selector) -> bool {
        let subject = Subject::new(&self.record, self.state);
        if !selector.mentions("role") && !selector.mentions("instance") {
            return subject.fits(selector, &self.labels);
        }
        // Only the names are read.
        let document = self.document.as_deref().and_then(|document| serde_json::from_str(document).ok());
        let should_run: DocumentOf<IgnoredAny> = document.unwrap_or_default();
        let mut instances =
            should_run.roles.iter().flat_map(|(role, named)| named.keys().map(move |name| (role, name)));
        instances.any(|(role, name)| subject.fits_instance(selector, &self.labels, role, name))
    }
}
