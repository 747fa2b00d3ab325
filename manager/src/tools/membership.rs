//! Which stations belong to the fleet: adopting, replacing, renewing and forgetting them.

use std::sync::Arc;

use quilt_protocol::control::{Adopt, Adopted, Empty, OneStation, command};
use quilt_protocol::{Address, Digest, Encoding, Outcome, Revision};

use super::{Failure, STATION, failure, find, refused};
use crate::store::{Change, Origin};
use crate::{Core, desired, push, register, saving};

/// The highest epoch or revision that a store can hold.
const NUMBER_MAX: u64 = i64::MAX as u64 / 2;

pub(super) async fn forget(core: &Core, request: &OneStation, who: &str) -> Result<Empty, Failure> {
    let _one_at_a_time = core.applying.lock().await;
    let id = find(core, &request.station)?;
    {
        let state = core.state();
        if state.stations[&id].live.is_some() {
            return Err(refused(format!("station {} is connected; stop it first", request.station)));
        }
    }
    core.store.commit(vec![Change::ForgetStation(id)]).await.map_err(|error| refused(error.to_string()))?;
    {
        let mut state = core.state();
        let forgotten = state.stations.remove(&id);
        state.names.retain(|_, holder| *holder != id);
        // One that came back in this very moment comes again, as a newcomer.
        if let Some(live) = forgotten.and_then(|station| station.live) {
            live.handle.goodbye("forgotten by an operator");
        }
    }
    core.events.add("station.forgotten", Some(&request.station), None, format!("{id} by {who}"));
    core.note_change();
    Ok(Empty {})
}

/// Takes over a station that is not this manager's: what it runs becomes desired, or is replaced.
pub(super) async fn adopt(core: &Arc<Core>, request: &Adopt, who: &str) -> Result<Adopted, Failure> {
    let _one_at_a_time = core.applying.lock().await;
    let id = find(core, &request.station)?;
    let (handle, mut record, applied) = {
        let state = core.state();
        let station = &state.stations[&id];
        if station.record.adopted {
            return Err(refused(format!("station {} is adopted already", request.station)));
        }
        let Some(live) = &station.live else {
            return Err(refused(format!("station {} is away; it must be connected", request.station)));
        };
        (live.handle.clone(), station.record.clone(), live.applied)
    };
    // Numbers of another fleet mean nothing here; those of our own must be left behind.
    let ours = applied.filter(|applied| applied.fleet == core.fleet);
    let (seen_epoch, seen_revision) = ours.map_or((0, Revision(0)), |applied| (applied.epoch, applied.revision));
    if seen_epoch > NUMBER_MAX || seen_revision.0 > NUMBER_MAX {
        let text =
            format!("{} claims epoch {seen_epoch} and revision {seen_revision}: no manager gave that", record.name);
        return Err(refused(text));
    }
    let runs: String = handle
        .ask(Address::Station(record.name.clone()), command::ADOPT, Encoding::Bincode, &(), STATION)
        .await
        .map_err(failure)?;
    record.adopted = true;
    // This store is the younger one from here on, whatever the station has seen.
    let raise = Change::RaiseEpoch(seen_epoch + 1);
    let writes = vec![raise, Change::PutStation(Box::new(record.clone()))];
    core.store.commit(writes).await.map_err(|error| refused(error.to_string()))?;
    {
        let mut state = core.state();
        state.epoch = state.epoch.max(seen_epoch + 1);
        state.last_revision = state.last_revision.max(seen_revision);
        state.stations.get_mut(&id).expect("stations are forgotten only when away").record.adopted = true;
    }
    core.events.add("station.adopted", Some(record.name.as_str()), None, format!("by {who}"));
    let mut undone_by = Vec::new();
    if request.replace {
        desired::refresh_as(core, id, who, "adopt --replace").await;
        let desired = core.state().stations[&id].desired.clone();
        match desired {
            Some(desired) if desired.revision > seen_revision => push::offer(core, id),
            // What is pushed gets a number beyond what the station has seen.
            desired => {
                let empty = || quilt_protocol::control::Document::default().to_json().into();
                let (document, origin) =
                    desired.map_or_else(|| (empty(), Origin::Fleet), |one| (one.document, one.origin));
                desired::set_desired(core, id, document, origin, who, "adopt --replace").await.map_err(refused)?;
            }
        }
    } else {
        let digest = Digest::of(runs.as_bytes());
        desired::set_desired(core, id, runs, Origin::Adopted, who, "adopt").await.map_err(refused)?;
        // After a restored backup the files are as old as it is.
        undone_by = desired::undone_by(core, id, digest).await;
    }
    core.note_change();
    Ok(Adopted { undone_by })
}

/// Lets a quarantined newcomer take the place of the older session.
pub(super) async fn replace(core: &Arc<Core>, request: &OneStation) -> Result<Empty, Failure> {
    let _one_at_a_time = core.applying.lock().await;
    let newcomer = newcomer(core, &request.station)?;
    let id = newcomer.registration.id;
    let older = core.state().stations.get(&id).and_then(|station| Some(station.live.as_ref()?.handle.clone()));
    if let Some(older) = older {
        older.goodbye("replaced by an operator");
        older.closed().await;
    }
    if newcomer.handle.is_closed() {
        return Err(refused(format!("the newcomer {} has left meanwhile", request.station)));
    }
    let Some((registered, changes)) = register::admit(core, &newcomer.registration, &newcomer.handle, true) else {
        return Err(refused(format!(
            "another session of {} began meanwhile; see `quiltctl stations`",
            request.station
        )));
    };
    core.state().quarantined.retain(|one| one.handle != newcomer.handle);
    saving::save(core, id, changes).await;
    if registered.adopted {
        desired::refresh(core, id).await;
        push::offer(core, id);
    }
    core.note_change();
    Ok(Empty {})
}

/// Gives a quarantined newcomer an identity of its own; it registers again under it.
pub(super) async fn renew(core: &Core, request: &OneStation) -> Result<Empty, Failure> {
    // It leaves the list when it leaves, to come back under its new identity.
    let newcomer = newcomer(core, &request.station)?;
    let name = newcomer.registration.wished_name;
    let renewed = newcomer
        .handle
        .ask::<_, String>(Address::Station(name.clone()), command::RENEW, Encoding::Json, &Empty {}, STATION)
        .await;
    let id = renewed.map_err(failure)?;
    core.events.add("station.renewed", Some(name.as_str()), None, format!("now {id}"));
    core.note_change();
    Ok(Empty {})
}

fn newcomer(core: &Core, reference: &str) -> Result<crate::state::Newcomer, Failure> {
    let state = core.state();
    let meant = |newcomer: &crate::state::Newcomer| {
        let registration = &newcomer.registration;
        registration.wished_name == *reference
            || reference.strip_prefix("id:") == Some(registration.id.to_string().as_str())
    };
    let found = state.quarantined.iter().find(|newcomer| meant(newcomer)).cloned();
    found.ok_or_else(|| (Outcome::NoTarget, format!("no quarantined station is called {reference}")))
}
