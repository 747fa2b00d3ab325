//! What tools ask of the manager itself.

mod events;
mod history;
mod membership;
mod stations;
mod targets;

use std::sync::Arc;
use std::time::Duration;

use quilt_net::{AskError, BoxFuture, Inbound, decode, done};
use quilt_protocol::control::{
    Action, Adopt, Control, ControlInstance, Controlled, Empty, InstanceRef, OneStation, Operated, Resolve, Rollback,
    command,
};
use quilt_protocol::{Address, Encoding, Outcome, StationId};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;

use crate::blobs::BlobError;
use crate::fleet::Apply;
use crate::list_reply::ListReply;
use crate::session::Session;
use crate::workers::Apart;
use crate::{Core, register, rollout, schemas, workers};

/// How long a station may take for what an operator asks of it.
const STATION: Duration = Duration::from_secs(60);

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
    inbound.answer(move |request: Q| to_its_end(core, work(request)))
}

/// Does `work` even if nobody waits for it any more.
async fn to_its_end<R: Send + 'static>(
    core: Arc<Core>,
    work: impl Future<Output = Result<R, Failure>> + Send + 'static,
) -> Result<R, Failure> {
    let (sender, receiver) = oneshot::channel();
    core.spawn(async move { drop(sender.send(work.await)) });
    receiver.await.unwrap_or_else(|_| Err((Outcome::Cancelled, "the manager stops".into())))
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
        command::STATIONS => list(inbound, |request, list| stations::stations(core, request, list)),
        command::GIVEN_PLUGINS => list(inbound, |request, list| given_plugins(core, request, list)),
        command::CLIENTS => list(inbound, |request, list| stations::clients(core, request, list)),
        command::RESOLVE => list(inbound, |request, list| targets::resolve(core, request, list)),
        command::LEFT_OUT => {
            inbound.answer(move |request: Resolve| async move { targets::left_out(&core, &request).await })
        }
        command::HISTORY => list(inbound, |request, list| history::history(core, request, list)),
        command::ROLLBACK => change(core.clone(), inbound, move |request: Rollback| async move {
            history::rollback(&core, &request, &who).await
        }),
        command::FORGET => change(core.clone(), inbound, move |request: OneStation| async move {
            membership::forget(&core, &request, &who).await
        }),
        command::ADOPT => change(core.clone(), inbound, move |request: Adopt| async move {
            membership::adopt(&core, &request, &who).await
        }),
        command::REPLACE => change(core.clone(), inbound, move |request: OneStation| async move {
            membership::replace(&core, &request).await
        }),
        command::RENEW => {
            change(
                core.clone(),
                inbound,
                move |request: OneStation| async move { membership::renew(&core, &request).await },
            )
        }
        command::CONTROL => {
            inbound.answer(move |request: ControlInstance| async move { control(&core, &request, &who).await })
        }
        command::APPLY => {
            let items = (inbound.head.terms.credit > 0).then(|| inbound.responder.items());
            workers::answer_long(core.clone(), inbound, move |request: Apply| {
                let (core_of_task, request) = (core.clone(), Arc::new(Apart::new(request)));
                let applying = async move { rollout::run(&core_of_task, &request, &who, items).await.map_err(refused) };
                to_its_end(core, applying)
            })
        }
        command::BEGIN_FILE => {
            inbound.answer(move |request| async move { core.blobs.begin(request).await.map_err(blob_failure) })
        }
        command::ADD_TO_FILE => {
            inbound.answer(move |request| async move { core.blobs.add(request).await.map_err(blob_failure) })
        }
        command::SCHEMAS => inbound.answer(move |request| async move { schemas::read(&core, request).await }),
        command::EVENTS => events::events(core, inbound),
        other => {
            let text = format!("the manager has no command {other:?}; it has {}", command::OF_MANAGER.join(", "));
            inbound.responder.fail(Outcome::NoCommand, &text);
            done()
        }
    }
}

/// Answers with a list, which `work` makes.
fn list<Q, F>(inbound: Inbound, work: impl FnOnce(Q, ListReply) -> F) -> BoxFuture<'static, ()>
where
    Q: DeserializeOwned,
    F: Future<Output = ()> + Send + 'static,
{
    let Inbound { head, body, responder } = inbound;
    match decode("the request", head.terms.encoding, &body) {
        Ok(request) => Box::pin(work(request, ListReply::new(responder, head.terms.credit > 0))),
        Err(error) => {
            responder.fail(Outcome::SchemaMismatch, &error.to_string());
            done()
        }
    }
}

/// Lists the plugins that entries of the fleet give to stations.
async fn given_plugins(core: Arc<Core>, _: Empty, list: ListReply) {
    let given = {
        let state = core.state();
        let stations: Vec<_> = state.stations.values().map(|station| station.subject()).collect();
        state.fleet.given_plugins(&stations)
    };
    list.answer(Ok(given)).await;
}

fn find(core: &Core, reference: &str) -> Result<StationId, Failure> {
    core.state().find(reference).map_err(|text| (Outcome::NoTarget, text))
}

async fn control(core: &Core, request: &ControlInstance, who: &str) -> Result<Operated, Failure> {
    let InstanceRef { station, role, instance } = targets::one_instance(core, &request.target)?;
    let handle = crate::route::station_handle(core, &station)?;
    let order = Control { role, instance, action: request.action };
    let to = Address::Station(station.clone());
    let answer = handle.ask(to, command::CONTROL, Encoding::Bincode, &order, STATION).await;
    let Controlled { report, dependants } = answer.map_err(failure)?;
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
    Ok(Operated { dependants: dependants.iter().map(|(role, instance)| format!("{role}/{instance}")).collect() })
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
