//! Offering stations what they should run.
//!
//! A push is a request of its own, sent at every registration (also when nothing changed) and whenever the desired
//! configuration changes. At most one is under way for a station. A refused revision is offered again at a
//! registration, and by itself if it was refused for the station's own trouble.

use std::sync::Arc;
use std::time::Duration;

use quilt_net::Body;
use quilt_protocol::control::{Applied, ProblemCode, Rejected, Verdict, command};
use quilt_protocol::{Address, Revision, StationId};

use crate::apply::PLAN_WITH_PLUGINS;
use crate::state::Station;
use crate::{Core, register};

/// How long a station may take to plan a configuration and put it on disk.
const ANSWER: Duration = Duration::from_secs(30);
/// How long to wait after a push that got no answer although the session goes on.
const AGAIN: Duration = Duration::from_secs(5);
/// How long to wait before a station is offered again what it could not take for trouble of its own, at first and at most.
const AFTER_FAULT: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Sees to it that a connected station is offered its desired configuration.
pub(crate) fn offer(core: &Arc<Core>, id: StationId) {
    let session = {
        let mut state = core.state();
        if !state.may_be_offered(id) {
            return;
        }
        let Some(live) = state.stations.get_mut(&id).and_then(|station| station.live.as_mut()) else { return };
        live.push_again = true;
        if std::mem::replace(&mut live.pushing, true) {
            return;
        }
        live.handle.clone()
    };
    push(core, id, session);
}

/// Pushes over this session what there is to push; a newer session has pushes of its own. No task waits for the answer: there are as many pushes under way as a change has stations.
fn push(core: &Arc<Core>, id: StationId, session: quilt_net::Handle) {
    let Some(Next { name, offered, document }) = next(core, id, &session) else { return };
    // The manager does not read a document here; one that begins so has files to fetch first.
    let time = if document.starts_with("{\"plugins\"") { PLAN_WITH_PLUGINS } else { ANSWER };
    // An `UpdateConfiguration`. Those of all stations that get the same share the document.
    let update = Body::ending_in(&offered, &document);
    let (core, asked) = (core.clone(), session.clone());
    let to = Address::Station(name.clone());
    session.ask_then(to, command::UPDATE_CONFIGURATION, update, time, move |answer| match answer {
        Ok(verdict) => {
            let fault = take_verdict(&core, id, &asked, offered, verdict);
            push(&core, id, asked);
            if let Some(fault) = fault {
                core.clone().spawn(async move { push_after_fault(&core, id, fault).await });
            }
        }
        Err(error) => {
            tracing::warn!(station = %name, revision = %offered.revision, %error, "a push got no answer");
            core.clone().spawn(async move { push_later(&core, id, asked).await });
        }
    });
}

/// Offers a station again what it could not take for trouble of its own, if nothing else came of it meanwhile. Until then other pushes
/// are free to go.
async fn push_after_fault(core: &Arc<Core>, id: StationId, fault: Fault) {
    if !core.pause(fault.delay()).await {
        return;
    }
    let is_last = core.state().stations.get(&id).is_some_and(|station| station.last_fault() == Some(fault));
    if is_last {
        offer(core, id);
    }
}

/// Pushes again after a push that got no answer, if its session goes on.
async fn push_later(core: &Arc<Core>, id: StationId, session: quilt_net::Handle) {
    if session.is_closed() || !core.pause(AGAIN).await {
        return;
    }
    {
        let mut state = core.state();
        let live = state.stations.get_mut(&id).and_then(|station| station.live.as_mut());
        let Some(live) = live.filter(|live| live.handle == session) else { return };
        live.push_again = true;
    }
    push(core, id, session);
}

/// Trouble of a station that kept it from taking a revision.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Fault {
    revision: Revision,
    /// How often in a row.
    count: u32,
}

impl Fault {
    fn delay(self) -> Duration {
        let doubled = 1 << (self.count - 1).min(16);
        (AFTER_FAULT.0 * doubled).min(AFTER_FAULT.1)
    }
}

impl Station {
    fn last_fault(&self) -> Option<Fault> {
        let rejected =
            self.rejected.as_ref().filter(|rejected| rejected.rejection.code == ProblemCode::StationFault)?;
        Some(Fault { revision: rejected.revision, count: self.live.as_ref()?.faults })
    }
}

struct Next {
    name: quilt_protocol::Name,
    offered: Applied,
    document: Arc<str>,
}

/// What to push next, if anything; otherwise the station counts as not being pushed to.
fn next(core: &Core, id: StationId, session: &quilt_net::Handle) -> Option<Next> {
    let mut state = core.state();
    let (epoch, may_be_offered) = (state.epoch, state.may_be_offered(id));
    let station = state.stations.get_mut(&id)?;
    let adopted = station.record.adopted;
    let live = station.live.as_mut().filter(|live| live.handle == *session)?;
    let wanted = std::mem::take(&mut live.push_again);
    let Some(desired) = station.desired.as_ref().filter(|_| wanted && adopted && may_be_offered) else {
        live.pushing = false;
        return None;
    };
    core.metrics.pushes.inc();
    let offered = Applied { fleet: core.fleet, epoch, revision: desired.revision, digest: desired.digest };
    let (name, document) = (station.record.name.clone(), desired.document.clone());
    Some(Next { name, offered, document })
}

/// Notes what became of a push; tells if it was trouble of the station's own.
fn take_verdict(
    core: &Arc<Core>,
    id: StationId,
    handle: &quilt_net::Handle,
    offered: Applied,
    verdict: Verdict,
) -> Option<Fault> {
    let mut state = core.state();
    let station = state.stations.get_mut(&id)?;
    let name = &station.record.name;
    let live = station.live.as_mut().filter(|live| live.handle == *handle)?;
    let is_fault = matches!(&verdict, Verdict::Rejected(rejection) if rejection.code == ProblemCode::StationFault);
    live.faults = if is_fault { live.faults.saturating_add(1) } else { 0 };
    match verdict {
        Verdict::Unchanged => {
            live.applied = Some(offered);
            station.rejected = None;
        }
        Verdict::Accepted => {
            // Until a report says that what runs has been changed to match. It may have come already.
            live.applying |= live.applied != Some(offered);
            live.applied = Some(offered);
            station.rejected = None;
            core.events.add("push.accepted", Some(name.as_str()), None, format!("revision {}", offered.revision));
        }
        Verdict::Rejected(rejection) => {
            // Told once, however often it is tried again.
            if live.faults <= 1 {
                tracing::warn!(station = %name, revision = %offered.revision, code = %rejection.code, "push rejected");
                core.events.add("push.rejected", Some(name.as_str()), None, rejection.message.clone());
            }
            station.rejected = Some(Rejected { revision: offered.revision, rejection: *rejection });
        }
    }
    let fault = station.last_fault();
    drop(state);
    register::note_health(core, id);
    core.note_change();
    fault
}
