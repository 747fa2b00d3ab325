//! Relaying requests to whom they are addressed. Bodies pass as they are.

use quilt_net::{BoxFuture, Handle, Inbound, done};
use quilt_protocol::control::command;
use quilt_protocol::message::Delivered;
use quilt_protocol::{Address, Name, Outcome};

use crate::Core;
use crate::session::Session;

/// What tools may ask a station's own agent; everything else is between it and the manager.
const OPEN: [&str; 8] = [
    command::COMMANDS,
    command::ROLES,
    command::LOGS,
    command::PLUGINS,
    command::ALLOW_PLUGIN,
    command::RELOAD_PLUGINS,
    command::FOLDERS,
    command::PURGE_FOLDERS,
];

/// Passes a request on and its answer back.
pub(crate) fn relay(session: &Session, inbound: Inbound) -> BoxFuture<'static, ()> {
    let Inbound { head, body, responder } = inbound;
    if matches!(&head.terms.to, Address::Station(_)) && !OPEN.contains(&head.terms.command.as_str()) {
        let text = format!("{:?} of a station is not open to {}", head.terms.command, session.principal());
        responder.fail(Outcome::Denied, &text);
        return done();
    }
    let target = match find(&session.core, &head.terms.to) {
        Ok(target) => target,
        Err((outcome, text)) => {
            responder.fail(outcome, &text);
            return done();
        }
    };
    session.core.metrics.relayed.inc();
    if head.terms.credit == 0 {
        target.relay(&head, body, responder);
        return done();
    }
    let window = head.terms.credit.clamp(1, WINDOW_MAX);
    let mut items = target.stream(head, body.pass_on(), window);
    let mut sink = responder.items();
    Box::pin(async move {
        while let Some(item) = items.next().await {
            if sink.send(item).await.is_err() {
                return;
            }
        }
        let answer = items.end().await;
        responder.respond(answer.outcome, answer.encoding, answer.body);
    })
}

/// The most items of one stream that wait here, whatever window the caller asks for.
const WINDOW_MAX: u32 = 64;

fn find(core: &Core, to: &Address) -> Result<Handle, (Outcome, String)> {
    match to {
        Address::Manager => unreachable!("the session answers what is addressed to the manager"),
        Address::Client(name) => {
            let client = core.state().clients.get(name).map(|client| client.handle.clone());
            client.ok_or_else(|| (Outcome::NoTarget, format!("no tool named {name} is connected")))
        }
        Address::Station(station) | Address::Instance { station, .. } => station_handle(core, station),
    }
}

/// The session of a station, by name.
pub(crate) fn station_handle(core: &Core, name: &Name) -> Result<Handle, (Outcome, String)> {
    let state = core.state();
    let station = state.names.get(name).and_then(|id| state.stations.get(id));
    match station.map(|station| (&station.live, &station.record)) {
        Some((Some(live), _)) => Ok(live.handle.clone()),
        Some((None, _)) => Err((Outcome::PeerLost(Delivered::No), format!("station {name} is away"))),
        None => Err((Outcome::NoTarget, format!("there is no station {name}; `quiltctl stations` lists them"))),
    }
}
