//! Stations that come, report and go.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use quilt_net::{BoxFuture, Handle, Inbound, done};
use quilt_protocol::control::bounds::{INSTANCES_MAX, at_most};
use quilt_protocol::control::{
    Applied, Emitted, Facts, InstanceReport, Registered, Registration, Report, StateChange, StationEvent,
};
use quilt_protocol::session::Closed;
use quilt_protocol::{Labels, Name, Outcome, Revision, StationId};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use crate::fleet::{document_of, instances_of};
use crate::session::Session;
use crate::state::{Healthy, Live, Newcomer, State, Station};
use crate::store::{Change, Desired, StationRecord};
use crate::{Core, desired, push, saving, workers};

/// How many stations are taken into the fleet at a time. What that needs for a moment is free again when the next are: with
/// all at once it would lie between what stays, and memory would have holes that nobody can be given. Fewer would make a slow
/// disk's waits too many.
pub(crate) const REGISTERING: usize = 128;

/// How long a registration waits for what the store says of a station's past.
const HISTORY_PATIENCE: Duration = Duration::from_secs(2);

/// How long an older session of the same identity gets to show a sign of life.
const SIGN_OF_LIFE: Duration = Duration::from_secs(2);

/// A station introduces itself, once in a session. Answered when it is its turn; what it should run follows as a request of
/// its own.
pub(crate) fn register(session: &Session, id: StationId, mut inbound: Inbound) -> BoxFuture<'static, ()> {
    let (core, handle) = (session.core.clone(), session.handle.clone());
    if session.registers_again() {
        inbound.responder.fail(Outcome::Refused, "a station registers once in a session");
        return done();
    }
    inbound.body = inbound.body.keep().into();
    Box::pin(async move {
        let turn = take_turn(&core).await;
        take(core, id, handle, turn, inbound).await;
    })
}

async fn take_turn(core: &Core) -> OwnedSemaphorePermit {
    core.registering.clone().acquire_owned().await.expect("nobody closes it")
}

fn take(
    core: Arc<Core>,
    id: StationId,
    handle: Handle,
    mut turn: OwnedSemaphorePermit,
    inbound: Inbound,
) -> BoxFuture<'static, ()> {
    workers::answer(core.clone(), inbound, move |registration: Registration| async move {
        if registration.id != id {
            return Err((Outcome::Denied, format!("greeted as {id}, registers as {}", registration.id)));
        }
        registration.check().map_err(|text| (Outcome::Refused, text))?;
        core.metrics.registrations.inc();
        let (registered, changes) = loop {
            if let Some(older) = older_session(&core, id, &handle) {
                // That may take a while, which others need not wait for.
                drop(turn);
                if is_alive(&older).await {
                    return Ok(quarantine(&core, registration, handle));
                }
                older.goodbye("replaced by a newer session of the same station");
                older.closed().await;
                turn = take_turn(&core).await;
            }
            let known_past = knows_past(&core, id, registration.applied).await;
            // Another session of the same identity may have come while this one waited: then it is the older one.
            if let Some(admitted) = admit(&core, &registration, &handle, known_past) {
                break admitted;
            }
        };
        drop(registration);
        saving::save(&core, id, changes).await;
        drop(turn);
        core.note_change();
        if registered.adopted {
            // On a task of its own: it must not be cut in two by the end of this session.
            let core_of_task = core.clone();
            core.spawn(async move {
                // What is about to be made anew is not offered first: it might end what the new one has again.
                let is_current = !desired::is_out_of_date(&core_of_task, id).await;
                if is_current {
                    push::offer(&core_of_task, id);
                }
                // Not while an apply plans: it would be given a number that this one overtakes.
                let _one_at_a_time = core_of_task.applying.lock().await;
                if !desired::refresh(&core_of_task, id).await && !is_current {
                    push::offer(&core_of_task, id);
                }
            });
        }
        Ok(registered)
    })
}

/// Whether this store once gave a station what it applied, as far as history goes back. A copy restored from a backup
/// may have overtaken the numbers of the store that was lost, but not with the same contents.
async fn knows_past(core: &Core, id: StationId, applied: Option<Applied>) -> bool {
    let Some(applied) = applied else { return true };
    let newest = {
        let state = core.state();
        state.stations.get(&id).and_then(|station| station.desired.as_ref()).map(|desired| desired.revision)
    };
    if newest.is_none_or(|newest| newest <= applied.revision) {
        return true;
    }
    // A disk that hangs does not keep a station away; whether it is of another copy is then not looked at.
    let Ok(Ok(history)) = tokio::time::timeout(HISTORY_PATIENCE, core.store.history(id)).await else { return true };
    let forgotten = history.desired.last().is_some_and(|oldest| oldest.revision > applied.revision);
    let is_damaged = history.damaged.iter().any(|(revision, _)| *revision == applied.revision);
    forgotten
        || is_damaged
        || history
            .desired
            .iter()
            .any(|desired| desired.digest == applied.digest && desired.revision == applied.revision)
}

fn older_session(core: &Core, id: StationId, newer: &Handle) -> Option<Handle> {
    let state = core.state();
    let live = state.stations.get(&id)?.live.as_ref()?;
    (live.handle != *newer && !live.handle.is_closed()).then(|| live.handle.clone())
}

/// Pings a session and waits for anything at all to come from it.
async fn is_alive(older: &Handle) -> bool {
    let asked = Instant::now().into_std();
    older.ping();
    let heard = async {
        while older.last_heard() <= asked {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        result = tokio::time::timeout(SIGN_OF_LIFE, heard) => result.is_ok(),
        _ = older.closed() => false,
    }
}

fn quarantine(core: &Core, registration: Registration, handle: Handle) -> Registered {
    let name = registration.wished_name.clone();
    let text =
        format!("{} claims the identity {}, which is live elsewhere", registration.facts.hostname, registration.id);
    tracing::warn!(station = %name, "{text}");
    core.events.add("station.quarantined", Some(name.as_str()), None, text.clone());
    core.state().quarantined.push(Newcomer { registration, handle: handle.clone() });
    if handle.is_closed() {
        // Its end may have been told before it was listed, and is not told twice.
        core.state().quarantined.retain(|newcomer| newcomer.handle != handle);
    }
    core.note_change();
    let note =
        format!("{text}; an operator decides: `quiltctl station replace {name}` or `quiltctl station renew {name}`");
    Registered { name, adopted: false, notes: vec![note] }
}

/// Takes a station into the fleet, or lists it as unadopted. What must be durable is returned; nothing if another session
/// of the same identity is there.
pub(crate) fn admit(
    core: &Arc<Core>,
    registration: &Registration,
    handle: &Handle,
    known_past: bool,
) -> Option<(Registered, Vec<Change>)> {
    let id = registration.id;
    let mut notes = Vec::new();
    let mut state = core.state();
    let live = state.stations.get(&id).and_then(|station| station.live.as_ref());
    if live.is_some_and(|live| live.handle != *handle && !live.handle.is_closed()) {
        return None;
    }
    let name = state.free_name(&registration.wished_name, id);
    if name != registration.wished_name {
        notes.push(format!("the name {} is taken by another station; this one is {name}", registration.wished_name));
    }
    let known = state.stations.get(&id);
    let adopted = match known {
        // A station that never had a configuration is nobody else's.
        None => registration.applied.is_none(),
        Some(_) if !known_past => {
            notes.push("it runs a revision that this store never gave: an older copy".into());
            false
        }
        Some(station) => station.record.adopted && is_ours(core, &state, station, registration.applied, &mut notes),
    };
    let reason = notes.last().filter(|_| !adopted && known.is_some()).cloned();
    if !adopted {
        notes.push("not adopted: it keeps what it runs, and nothing is pushed; see `quiltctl adopt`".into());
    }
    let labels = state.shared(&registration.labels);
    let facts = Facts { more: state.shared(&registration.facts.more), ..registration.facts.clone() };
    let known = state.stations.get(&id);
    let record = StationRecord {
        id,
        name: name.clone(),
        adopted,
        labels,
        facts,
        roles: registration.roles.iter().map(|offer| offer.role.clone()).collect(),
        last_seen_ms: state.clock.now_ms(),
        said_goodbye: false,
    };
    let before = known.map(|station| StationRecord { last_seen_ms: record.last_seen_ms, ..station.record.clone() });
    let renamed = before.as_ref().map(|before| before.name.clone()).filter(|before| *before != name);
    let mut changes = match before.as_ref() == Some(&record) {
        true => Vec::new(),
        false => vec![Change::PutStation(Box::new(record.clone()))],
    };
    let before_it = state.stations.get(&id).map(|station| station.record.name.clone());
    if let Some(before) = before_it.filter(|before| state.names.get(before) == Some(&id)) {
        state.names.remove(&before);
    }
    state.names.insert(name.clone(), id);
    let live = Live {
        handle: handle.clone(),
        applied: registration.applied,
        applying: registration.applying,
        instances: by_key(&registration.instances),
        unadopted: (!adopted).then(|| reason.unwrap_or_else(|| "this manager has no record of it".into())),
        remarks: Vec::new(),
        healthy: None,
        pushing: false,
        faults: 0,
        push_again: false,
    };
    let station = state.stations.entry(id).or_insert_with(|| {
        Box::new(Station {
            record: record.clone(),
            desired: None,
            damage: None,
            live: None,
            rejected: None,
            labels: Labels::default(),
        })
    });
    station.record = record;
    station.live = Some(live);
    state.relabel(id);
    if let Some(before) = renamed
        && let Some(kept) = desired::keep_when_renamed(&mut state, id, &before)
    {
        notes.push(format!("it was {before}; no entry says what {name} runs, so it keeps what it has"));
        changes.push(kept);
    }
    drop(state);
    if handle.is_closed() {
        // Its end may have been told before it was listed, and is not told twice.
        let (core, handle) = (core.clone(), handle.clone());
        core.clone().spawn(async move { left(&core, id, &handle, &handle.closed().await) });
    }
    let kind = if adopted { "station.registered" } else { "station.unadopted" };
    core.events.add(kind, Some(name.as_str()), None, format!("{} {}", registration.facts.hostname, id));
    Some((Registered { name, adopted, notes }, changes))
}

/// Whether what a known station applied comes from this store, and this store is no older than it.
fn is_ours(core: &Core, state: &State, station: &Station, applied: Option<Applied>, notes: &mut Vec<String>) -> bool {
    let Some(applied) = applied else { return true };
    let desired = station.desired.as_ref();
    let reason = if applied.fleet != core.fleet {
        Some(format!("it belongs to fleet {}, this is {}", applied.fleet, core.fleet))
    } else if applied.epoch > state.epoch {
        Some(format!("it has seen epoch {} of the store, this is {}: an older copy", applied.epoch, state.epoch))
    } else if station.damage.is_some() {
        // Nothing is known to compare with, and nothing is pushed.
        None
    } else if desired.is_none_or(|desired| applied.revision > desired.revision) {
        Some(format!("it runs revision {}, which this store does not know", applied.revision))
    } else if desired.is_some_and(|desired| applied.revision == desired.revision && applied.digest != desired.digest) {
        Some(format!("it runs another content under revision {}", applied.revision))
    } else {
        None
    };
    notes.extend(reason.clone());
    reason.is_none()
}

fn by_key(instances: &[InstanceReport]) -> BTreeMap<(Name, Name), InstanceReport> {
    instances.iter().map(|report| ((report.role.clone(), report.instance.clone()), report.clone())).collect()
}

/// A station says what changed.
pub(crate) fn report(session: &Session, id: StationId, inbound: Inbound) -> BoxFuture<'static, ()> {
    let (core, handle) = (session.core.clone(), session.handle.clone());
    workers::answer(core.clone(), inbound, move |report: Report| async move {
        take_report(&core, id, &handle, report).map_err(|text| (Outcome::Refused, text))
    })
}

/// Checks what would be too much once a report is added to what a station has.
fn check_total(instances: usize, report: &Report) -> Result<(), String> {
    // One that is there already is counted twice here: a station near the limit hears of it a little early.
    let after = (instances + report.changed.len()).saturating_sub(report.gone.len());
    if report.changed.is_empty() { Ok(()) } else { at_most(after, INSTANCES_MAX, || "instances".into()) }
}

fn take_report(core: &Arc<Core>, id: StationId, handle: &Handle, report: Report) -> Result<(), String> {
    report.check()?;
    let mut offered_again = false;
    {
        let mut state = core.state();
        if let Some(newcomer) = state.quarantined.iter_mut().find(|newcomer| newcomer.handle == *handle) {
            check_total(newcomer.registration.instances.len(), &report)?;
            newcomer.take(&report);
            return Ok(());
        }
        let Some(station) = state.stations.get_mut(&id) else { return Ok(()) };
        let name = station.record.name.to_string();

        let Some(live) = station.live.as_mut().filter(|live| live.handle == *handle) else { return Ok(()) };
        check_total(live.instances.len(), &report)?;
        live.applied = report.applied;
        live.applying = report.applying;
        if let Some(remarks) = report.remarks {
            live.remarks = remarks;
        }
        if let Some(roles) = report.roles {
            let names: Vec<_> = roles.iter().map(|offer| offer.role.to_string()).collect();
            core.events.add("station.roles", Some(&name), None, names.join(", "));
            let mut record = station.record.clone();
            record.roles = roles.into_iter().map(|offer| offer.role).collect();
            station.record = record;
            offered_again = true;
        }
        for changed in report.changed {
            live.instances.insert((changed.role.clone(), changed.instance.clone()), changed);
        }
        for key in report.gone {
            live.instances.remove(&key);
        }
        let revision = report.applied.map_or_else(|| "nothing".into(), |one| format!("revision {}", one.revision));
        for event in report.events {
            let (kind, instance, text) = match event {
                StationEvent::State(change) => {
                    let StateChange { role, instance, state, detail, .. } = *change;
                    (format!("instance.{}", state.name()), Some(format!("{role}/{instance}")), detail)
                }
                StationEvent::Gone(role, instance) => {
                    ("instance.removed".into(), Some(format!("{role}/{instance}")), String::new())
                }
                StationEvent::Emitted(emitted) => {
                    let Emitted { role, instance, topic, body, .. } = *emitted;
                    (format!("role.{topic}"), Some(format!("{role}/{instance}")), body)
                }
                StationEvent::Applying => ("push.applying".into(), None, revision.clone()),
                StationEvent::Applied => ("push.applied".into(), None, revision.clone()),
            };
            core.events.add(&kind, Some(&name), instance, text);
        }
    }
    if offered_again {
        saving::save_soon(core, id);
        // What was refused for want of a role may be taken now; groups that match by role may match now.
        let core_of_task = core.clone();
        core.spawn(async move {
            push::offer(&core_of_task, id);
            let _one_at_a_time = core_of_task.applying.lock().await;
            desired::refresh(&core_of_task, id).await;
        });
    }
    note_health(core, id);
    core.note_change();
    Ok(())
}

/// How long a configuration must run well to count as good.
pub(crate) const SETTLED: Duration = Duration::from_secs(2);

/// Notes whether a station runs well what it should, and that revision as good once it has for a while.
pub(crate) fn note_health(core: &Arc<Core>, id: StationId) {
    let mut state = core.state();
    let State { stations, instances, .. } = &mut *state;
    let Some(station) = stations.get_mut(&id) else { return };
    let Some(desired) = station.desired.as_ref().filter(|desired| !desired.good) else { return };
    let is_applied = station.live.as_ref().is_some_and(|live| live.applied.map(|it| it.digest) == Some(desired.digest));
    if is_applied && instances.lacks(desired) {
        let (core_of_task, desired) = (core.clone(), desired.clone());
        core.spawn(async move { read_instances(&core_of_task, id, desired).await });
        return;
    }
    let (runs_well, restarts) = (station.runs_well(instances), station.restarts(|_| true));
    let (Some(live), Some(desired)) = (station.live.as_mut(), station.desired.as_ref()) else { return };
    if !runs_well {
        live.healthy = None;
        return;
    }
    let goes_on = |healthy: &Healthy| healthy.revision == desired.revision && healthy.restarts == restarts;
    if live.healthy.as_ref().is_none_or(|healthy| !goes_on(healthy)) {
        let healthy = Healthy { revision: desired.revision, restarts, since: Instant::now() };
        live.healthy = Some(healthy);
        let core_of_task = core.clone();
        core.spawn(async move {
            if core_of_task.pause(SETTLED).await {
                mark_good(&core_of_task, id, healthy);
            }
        });
    }
}

/// Reads which instances a long document has, where that holds nobody up.
async fn read_instances(core: &Arc<Core>, id: StationId, desired: Desired) {
    let digest = desired.digest;
    let instances = core.compute(move || Arc::new(instances_of(&document_of(Some(&desired))))).await;
    core.state().instances.add(digest, instances);
    note_health(core, id);
}

fn mark_good(core: &Core, id: StationId, healthy: Healthy) {
    let unbroken = {
        let state = core.state();
        let live = state.stations.get(&id).and_then(|station| station.live.as_ref());
        live.is_some_and(|live| live.healthy == Some(healthy))
    };
    if unbroken {
        note_good(core, id, healthy.revision);
    }
}

/// Notes that a station runs a revision well, if that is still desired: a rollback goes back to it.
pub(crate) fn note_good(core: &Core, id: StationId, revision: Revision) {
    let mut state = core.state();
    let desired = state.stations.get_mut(&id).and_then(|station| station.desired.as_mut());
    if let Some(desired) = desired.filter(|desired| desired.revision == revision && !desired.good) {
        desired.good = true;
        // Which revision ran well is a help for rollback, not a promise; nobody waits for it.
        drop(core.store.commit(vec![Change::MarkGood(id, revision, true)]));
    }
}

/// One instance's state, as its station answered it.
pub(crate) fn take_instance(core: &Core, station: &Name, handle: &Handle, report: InstanceReport) {
    let mut state = core.state();
    let id = state.names.get(station).copied();
    let live = id.and_then(|id| state.stations.get_mut(&id)?.live.as_mut());
    if let Some(live) = live.filter(|live| live.handle == *handle) {
        let key = (report.role.clone(), report.instance.clone());
        if is_newer(&report, live.instances.get(&key)) {
            live.instances.insert(key, report);
        }
    }
    drop(state);
    core.note_change();
}

/// Whether an answer tells a later state than the one that is known. A report that was made after the answer may arrive before
/// it; within the same millisecond the report is trusted, since the station reports every change.
fn is_newer(answer: &InstanceReport, known: Option<&InstanceReport>) -> bool {
    known.is_none_or(|known| answer.since_ms > known.since_ms)
}

/// A session of a station ended.
pub(crate) fn left(core: &Core, id: StationId, handle: &Handle, why: &Closed) {
    let record = {
        let mut state = core.state();
        let now_ms = state.clock.now_ms();
        state.quarantined.retain(|newcomer| newcomer.handle != *handle);
        let Some(station) = state.stations.get_mut(&id) else { return };
        if station.live.as_ref().is_none_or(|live| live.handle != *handle) {
            return;
        }
        station.live = None;
        station.record.said_goodbye = matches!(why, Closed::Goodbye(_));
        station.record.last_seen_ms = now_ms;
        station.record.clone()
    };
    let kind = if record.said_goodbye { "station.left" } else { "station.lost" };
    tracing::info!(station = %record.name, %why, "{kind}");
    core.events.add(kind, Some(record.name.as_str()), None, why.to_string());
    saving::save_soon(core, id);
    core.note_change();
}

#[cfg(test)]
mod tests {
    use quilt_protocol::control::{Owner, State as InstanceState};

    use super::*;

    #[test]
    fn an_answer_that_a_later_report_overtook_is_not_shown() {
        let report = |state, since_ms| InstanceReport {
            role: "r".parse().unwrap(),
            instance: "i".parse().unwrap(),
            owner: Owner::Fleet,
            digest: quilt_protocol::Digest::of(b""),
            state,
            detail: String::new(),
            pid: None,
            restarts: 0,
            since_ms,
            attributes: BTreeMap::new(),
            held_back: None,
        };
        let starting = report(InstanceState::Starting, 10);
        assert!(is_newer(&starting, None));
        assert!(is_newer(&starting, Some(&report(InstanceState::Stopped, 9))));
        for since_ms in [10, 11] {
            assert!(!is_newer(&starting, Some(&report(InstanceState::Active, since_ms))));
        }
    }
}
