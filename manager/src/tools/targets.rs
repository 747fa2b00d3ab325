//! Which instances a target means.

use std::sync::Arc;

use quilt_protocol::control::{InstanceRef, Resolve};
use quilt_protocol::{Name, Outcome};

use super::{Failure, find, refused};
use crate::Core;
use crate::list_reply::ListReply;
use crate::selector::{Selector, glob};

/// Lists the instances that a target means. The set is fixed here, before anything is sent to any of them.
pub(super) async fn resolve(core: Arc<Core>, request: Resolve, list: ListReply) {
    list.answer(resolved(&core, &request)).await;
}

fn resolved(core: &Core, request: &Resolve) -> Result<Vec<InstanceRef>, Failure> {
    let mut found = match request.target.split('/').collect::<Vec<_>>()[..] {
        _ if request.target.contains('=') => selected(core, request)?,
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
            Err(refused(format!("{} has several instances of {role}; name one", station.record.name)))
        }
        (None, _) => Err((Outcome::NoTarget, format!("{} has no instance of {role}", station.record.name))),
    }
}

fn selected(core: &Core, request: &Resolve) -> Result<Vec<InstanceRef>, Failure> {
    let selector: Selector = request.target.parse().map_err(refused)?;
    let state = core.state();
    let mut found = Vec::new();
    let here = state.stations.values().filter(|station| station.state().is_here());
    for station in here.filter(|station| station.is_meant_by(Some(&selector))) {
        for (role, instance) in station.live.iter().flat_map(|live| live.instances.keys()) {
            if selector.role_pattern().is_none_or(|pattern| glob(pattern, role.as_str())) {
                let (station, role, instance) = (station.record.name.clone(), role.clone(), instance.clone());
                found.push(InstanceRef { station, role, instance });
            }
        }
    }
    Ok(found)
}
