//! Which instances a target means.

use std::sync::Arc;

use quilt_protocol::control::{InstanceRef, LeftOut, Resolve};
use quilt_protocol::{Name, Outcome};

use super::{Failure, find, refused};
use crate::Core;
use crate::apply::document_of;
use crate::list_reply::ListReply;
use crate::selector::{Selector, is_selector};
use crate::state::Station;

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
pub(super) fn left_out(core: &Core, request: &Resolve) -> Result<LeftOut, Failure> {
    if !is_selector(&request.target) {
        return Ok(LeftOut::default());
    }
    let selector: Selector = request.target.parse().map_err(refused)?;
    let of_instances = selector.mentions("role") || selector.mentions("instance");
    let state = core.state();
    let is_meant = |station: &Station| {
        let subject = station.subject();
        if !of_instances {
            return subject.fits(&selector, &station.labels);
        }
        // Of a station that is away it is known only what it should run.
        let should_run = document_of(station.desired.as_ref());
        let mut instances =
            should_run.roles.iter().flat_map(|(role, named)| named.keys().map(move |name| (role, name)));
        instances.any(|(role, name)| subject.fits_instance(&selector, &station.labels, role, name))
    };
    let away = state.stations.values().filter(|station| !station.state().is_here() && is_meant(station));
    let mut away: Vec<_> = away.map(|station| station.record.name.clone()).collect();
    away.sort();
    let away_count = away.len();
    away.truncate(AWAY_NAMED_MAX);
    let unknown_labels = selector.unknown_labels(|| state.stations.values().map(|station| &station.labels));
    Ok(LeftOut { away, away_count, unknown_labels })
}
