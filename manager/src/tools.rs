//! What tools ask of the manager itself.

use std::sync::Arc;
use std::time::Duration;

use quilt_core::time;
use quilt_net::{AskError, BoxFuture, Inbound, ItemSink, Responder, decode, done};
use quilt_protocol::control::{
    Action, Adopt, Apply, ClientView, Control, ControlInstance, Empty, Events, HistoryEntry, InstanceRef,
    InstanceReport, InstanceView, OneStation, Resolve, Rollback, RolledBack, Stations, command,
};
use quilt_protocol::{Address, Encoding, Name, Outcome, Revision, StationId};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::oneshot;

use crate::blobs::BlobError;
use crate::selector::{Selector, glob};
use crate::session::Session;
use crate::store::{Change, Desired, Origin};
use crate::{Core, desired, push, register, rollout, schemas};

/// How long a station may take for what an operator asks of it.
const STATION: Duration = Duration::from_secs(60);
/// The highest epoch or revision that a store can hold.
const NUMBER_MAX: u64 = i64::MAX as u64 / 2;
/// How many events are shown to somebody who does not say after which.
const LAST_EVENTS: u64 = 100;
/// How many events are read from the store at a time.
const EVENTS_PAGE: usize = 500;

type Failure = (Outcome, String);

/// Does something that changes the fleet, to its end even if whoever asked for it goes away meanwhile: half of it would
/// leave memory and store at odds.
fn change<Q, R, F>(
    core: Arc<Core>,
    inbound: Inbound,
    work: impl FnOnce(Q) -> F + Send + 'static,
) -> BoxFuture<'static, ()>
where
    Q: DeserializeOwned + Send + 'static,
    R: Serialize + Send + 'static,
    F: Future<Output = Result<R, Failure>> + Send + 'static,
{
    inbound.answer(move |request: Q| async move {
        let (sender, receiver) = oneshot::channel();
        let work = work(request);
        core.spawn(async move { drop(sender.send(work.await)) });
        receiver.await.unwrap_or_else(|_| Err((Outcome::Cancelled, "the manager stops".into())))
    })
}

fn refused(text: impl Into<String>) -> Failure {
    (Outcome::Refused, text.into())
}

/// Whether roles on stations may ask for it: what looks and changes nothing.
pub(crate) fn is_for_roles(name: &str) -> bool {
    let name = name.strip_prefix("quilt:").unwrap_or(name);
    matches!(name, "stations" | "clients" | "resolve" | "history")
}

/// Answers a tool.
pub(crate) fn answer(session: &Session, inbound: Inbound) -> BoxFuture<'static, ()> {
    let (core, who) = (session.core.clone(), session.who());
    let name = inbound.head.terms.command.clone();
    // `quiltctl call manager stations` need not say the group.
    let name = if name.contains(':') { name } else { format!("quilt:{name}").into() };
    match name.as_str() {
        command::STATIONS => inbound.answer(move |request: Stations| async move { stations(&core, &request) }),
        command::GIVEN_PLUGINS => inbound.answer(move |_: Empty| async move {
            let state = core.state();
            let stations: Vec<_> = state.stations.values().map(|station| station.subject()).collect();
            Ok(state.fleet.given_plugins(&stations))
        }),
        command::CLIENTS => inbound.answer(move |_: Empty| async move { Ok(clients(&core)) }),
        command::RESOLVE => inbound.answer(move |request: Resolve| async move { resolve(&core, &request).await }),
        command::HISTORY => inbound.answer(move |request: OneStation| async move { history(&core, &request).await }),
        command::ROLLBACK => {
            change(core.clone(), inbound, move |request: Rollback| async move { rollback(&core, &request, &who).await })
        }
        command::FORGET => {
            change(core.clone(), inbound, move |request: OneStation| async move { forget(&core, &request, &who).await })
        }
        command::ADOPT => {
            change(core.clone(), inbound, move |request: Adopt| async move { adopt(&core, &request, &who).await })
        }
        command::REPLACE => {
            change(core.clone(), inbound, move |request: OneStation| async move { replace(&core, &request).await })
        }
        command::RENEW => {
            change(core.clone(), inbound, move |request: OneStation| async move { renew(&core, &request).await })
        }
        command::CONTROL => {
            inbound.answer(move |request: ControlInstance| async move { control(&core, &request, &who).await })
        }
        command::APPLY => {
            let items = (inbound.head.terms.credit > 0).then(|| inbound.responder.items());
            change(core.clone(), inbound, move |request: Apply| async move {
                rollout::run(&core, &request, &who, items).await.map_err(refused)
            })
        }
        command::BEGIN_FILE => {
            inbound.answer(move |request| async move { core.blobs.begin(request).await.map_err(blob_failure) })
        }
        command::ADD_TO_FILE => {
            inbound.answer(move |request| async move { core.blobs.add(request).await.map_err(blob_failure) })
        }
        command::SCHEMAS => inbound.answer(move |request| async move { schemas::read(&core, request).await }),
        command::EVENTS => events(core, inbound),
        other => {
            let text = format!("the manager has no command {other:?}; it has {}", command::OF_MANAGER.join(", "));
            inbound.responder.fail(Outcome::NoCommand, &text);
            done()
        }
    }
}

fn stations(core: &Core, request: &Stations) -> Result<impl Serialize + use<>, Failure> {
    let selector = match request.selector.as_str() {
        "" => None,
        text => Some(text.parse::<Selector>().map_err(refused)?),
    };
    Ok(core.state().views(selector.as_ref()))
}

fn clients(core: &Core) -> Vec<ClientView> {
    let state = core.state();
    let view = |(name, client): (&Name, &crate::state::Client)| ClientView {
        name: name.clone(),
        software: client.software.clone(),
        peer: client.peer.clone(),
        since: time::ms_text(client.since_ms),
    };
    state.clients.iter().map(view).collect()
}

fn find(core: &Core, reference: &str) -> Result<StationId, Failure> {
    core.state().find(reference).map_err(|text| (Outcome::NoTarget, text))
}

/// Which instances a target means. The set is fixed here, before anything is sent to any of them.
async fn resolve(core: &Core, request: &Resolve) -> Result<Vec<InstanceRef>, Failure> {
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
fn one_instance(core: &Core, target: &str) -> Result<InstanceRef, Failure> {
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
    let views = core.state().views(Some(&selector));
    let mut found = Vec::new();
    for view in views.iter().filter(|view| view.state.is_here()) {
        for InstanceView { role, instance, .. } in &view.instances {
            if selector.role_pattern().is_none_or(|pattern| glob(pattern, role.as_str())) {
                let (role, instance) = (role.clone(), instance.clone());
                found.push(InstanceRef { station: view.name.clone(), role, instance });
            }
        }
    }
    Ok(found)
}

async fn history(core: &Core, request: &OneStation) -> Result<Vec<HistoryEntry>, Failure> {
    let id = find(core, &request.station)?;
    let history = core.store.history(id).await.map_err(|error| refused(error.to_string()))?;
    let entry = |desired: Desired| HistoryEntry {
        revision: desired.revision,
        digest: desired.digest,
        at: time::ms_text(desired.at_ms),
        who: desired.who.into(),
        source: desired.source.into(),
        good: desired.good,
        instances: instances_of(&desired.document),
    };
    Ok(history.into_iter().map(entry).collect())
}

fn instances_of(document: &str) -> Vec<String> {
    let document: quilt_protocol::control::Document = serde_json::from_str(document).unwrap_or_default();
    let roles = document.roles.iter();
    roles.flat_map(|(role, instances)| instances.keys().map(move |instance| format!("{role}/{instance}"))).collect()
}

/// Makes an earlier configuration desired again, under a new number.
async fn rollback(core: &Arc<Core>, request: &Rollback, who: &str) -> Result<RolledBack, Failure> {
    let _one_at_a_time = core.applying.lock().await;
    let id = find(core, &request.station)?;
    let history = core.store.history(id).await.map_err(|error| refused(error.to_string()))?;
    let current = history.first().map(|desired| desired.digest);
    let earlier = match request.to {
        Some(to) => history.iter().find(|desired| desired.revision == to),
        None => history.iter().skip(1).find(|desired| desired.good && Some(desired.digest) != current),
    };
    let Some(earlier) = earlier else {
        let text = match request.to {
            Some(to) => format!("{} has no revision {to}; `quiltctl history {0}` lists them", request.station),
            None => format!("{} has no earlier revision that ran well; name one with --to", request.station),
        };
        return Err(refused(text));
    };
    let source = format!("rollback to revision {}", earlier.revision);
    core.events.add("station.rolled_back", Some(&request.station), None, source.clone());
    let (document, to) = (earlier.document.clone(), earlier.revision);
    let digest = earlier.digest;
    let revision = desired::set_desired(core, id, document, Origin::Pinned, who, &source).await.map_err(refused)?;
    let state = core.state();
    let said = state.stations.get(&id).map(|station| state.fleet.said_of(&station.subject()));
    let others = said.filter(|said| said.saying.digest != digest);
    let mut undone_by: Vec<_> =
        others.iter().flat_map(|said| &said.saying.entries).map(|(file, _)| file.clone()).collect();
    undone_by.dedup();
    Ok(RolledBack { revision, to, undone_by })
}

async fn forget(core: &Core, request: &OneStation, who: &str) -> Result<Empty, Failure> {
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
async fn adopt(core: &Arc<Core>, request: &Adopt, who: &str) -> Result<Empty, Failure> {
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
        desired::set_desired(core, id, runs, Origin::Adopted, who, "adopt").await.map_err(refused)?;
    }
    core.note_change();
    Ok(Empty {})
}

/// Lets a quarantined newcomer take the place of the older session.
async fn replace(core: &Arc<Core>, request: &OneStation) -> Result<Empty, Failure> {
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
        return Err(refused(format!("another session of {} came meanwhile; look again", request.station)));
    };
    core.state().quarantined.retain(|one| one.handle != newcomer.handle);
    core.store.commit(changes).await.map_err(|error| refused(error.to_string()))?;
    if registered.adopted {
        desired::refresh(core, id).await;
        push::offer(core, id);
    }
    core.note_change();
    Ok(Empty {})
}

/// Gives a quarantined newcomer an identity of its own; it registers again under it.
async fn renew(core: &Core, request: &OneStation) -> Result<Empty, Failure> {
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

async fn control(core: &Core, request: &ControlInstance, who: &str) -> Result<Empty, Failure> {
    let InstanceRef { station, role, instance } = one_instance(core, &request.target)?;
    let handle = crate::route::station_handle(core, &station)?;
    let order = Control { role, instance, action: request.action };
    let to = Address::Station(station.clone());
    let answer = handle.ask(to, command::CONTROL, Encoding::Bincode, &order, STATION).await;
    let report: Option<InstanceReport> = answer.map_err(failure)?;
    // Whoever looks next sees what was done, not what was reported before it.
    if let Some(report) = report {
        register::take_instance(core, &station, &handle, report);
    }
    let action = match request.action {
        Action::Start => "started",
        Action::Stop => "stopped",
        Action::Restart => "restarted",
    };
    let instance = format!("{}/{}", order.role, order.instance);
    core.events.add("instance.operated", Some(station.as_str()), Some(instance), format!("{action} by {who}"));
    Ok(Empty {})
}

/// A station reads a file that it needs.
pub(crate) fn read_file(session: &Session, inbound: Inbound) -> BoxFuture<'static, ()> {
    let core = session.core.clone();
    inbound.answer(move |request| async move { core.blobs.read(request).await.map_err(blob_failure) })
}

fn blob_failure(error: BlobError) -> Failure {
    refused(error.to_string())
}

fn failure(error: AskError) -> Failure {
    match error {
        AskError::Ended { outcome, text } => (outcome, text),
        error @ AskError::Undecodable(_) => (error.outcome(), error.to_string()),
    }
}

/// Streams events: those of the past, then on request those to come, none left out.
fn events(core: Arc<Core>, inbound: Inbound) -> BoxFuture<'static, ()> {
    let Inbound { head, body, responder } = inbound;
    let request: Events = match decode("the request", head.terms.encoding, &body) {
        Ok(request) => request,
        Err(error) => {
            responder.fail(Outcome::SchemaMismatch, &error.to_string());
            return done();
        }
    };
    if head.terms.credit == 0 {
        responder.fail(Outcome::Refused, "events are a stream; ask for one");
        return done();
    }
    Box::pin(async move {
        let items = responder.items();
        send_events(&core, &request, items, responder).await;
    })
}

async fn send_events(core: &Core, request: &Events, mut items: ItemSink, responder: Responder) {
    // Followed first and read second, so that nothing falls between; numbers tell what was read already.
    let mut live = core.events.follow();
    let mut after = request.after.unwrap_or_else(|| core.events.last().saturating_sub(LAST_EVENTS));
    loop {
        loop {
            let page = match core.events.store().events(after, EVENTS_PAGE).await {
                Ok(page) => page,
                Err(error) => return responder.fail(Outcome::Refused, &error.to_string()),
            };
            let Some(last) = page.last() else { break };
            after = last.number;
            for event in &page {
                if items.send_json(event).await.is_err() {
                    return;
                }
            }
        }
        if !request.follow {
            return responder.reply(Encoding::Json, &Empty {});
        }
        loop {
            match live.recv().await {
                Ok(event) if event.number <= after => {}
                Ok(event) => {
                    after = event.number;
                    if items.send_json(&event).await.is_err() {
                        return;
                    }
                }
                // Too far behind: catch up from the store.
                Err(RecvError::Lagged(_)) => break,
                Err(RecvError::Closed) => return responder.reply(Encoding::Json, &Empty {}),
            }
        }
    }
}
