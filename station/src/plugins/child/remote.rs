//! A role in a child process, as the station handles any role.

use std::panic::resume_unwind;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use quilt_plugin_api::{
    BoxFuture, Host, Instance, LogLevel, Report, RoleContext, RoleDescription, RoleError, RoleFactory, Work,
};
use quilt_protocol::message::NO_DEADLINE;
use quilt_protocol::{Address, Encoding, Name, Outcome, RequestHead, Terms};
use tokio::sync::oneshot;

use super::{CANCEL, Child, Keeper, Placed};
use crate::plugins::LoadError;
use crate::plugins::wire::{self, Done};

/// How long judging a configuration may take.
const VALIDATE: Duration = Duration::from_secs(5);
/// More than anything that the station bounds itself.
const LONG: Duration = Duration::from_secs(24 * 60 * 60);

/// A role of a plugin in a child process.
pub(super) struct Remote {
    pub(super) keeper: Arc<Keeper>,
    pub(super) role: RoleDescription,
}

fn outcome<T>(done: Result<Done<T>, String>) -> Result<T, RoleError> {
    match done {
        Ok(Done::Ok(value)) => Ok(value),
        Ok(Done::Invalid(invalid)) => Err(RoleError::Rejected(invalid)),
        Ok(Done::NeedsRestart) => Err(RoleError::NeedsRestart),
        Ok(Done::Failed(text)) | Err(text) => Err(RoleError::Failed(text)),
        Ok(Done::Panicked(panic)) => resume_unwind(Box::new(panic)),
    }
}

impl RoleFactory for Remote {
    fn description(&self) -> &RoleDescription {
        &self.role
    }

    fn validate(&self, config: &[u8]) -> BoxFuture<'static, Result<(), RoleError>> {
        let (keeper, config, role) = (self.keeper.clone(), config.to_vec(), self.role.name.clone());
        Box::pin(async move {
            let child = keeper.child().await.map_err(|error| match error {
                LoadError::StationFault(text) => RoleError::failed(text),
                // As long as that is so nothing of it is judged.
                error => RoleError::rejected(format!("a plugin that {error}")),
            })?;
            outcome(child.ask(wire::VALIDATE, &wire::Validate { role, config }, VALIDATE).await)
        })
    }

    fn lacks(&self) -> BoxFuture<'static, Option<String>> {
        let keeper = self.keeper.clone();
        Box::pin(async move {
            match keeper.child().await {
                Err(LoadError::StationFault(text)) => Some(text),
                // What else is wrong with it the start says.
                Ok(_) | Err(_) => None,
            }
        })
    }

    fn start(&self, config: &[u8], cx: RoleContext) -> BoxFuture<'static, Result<Box<dyn Instance>, RoleError>> {
        let (keeper, config, role) = (self.keeper.clone(), config.to_vec(), self.role.name.clone());
        Box::pin(async move {
            let child = keeper.child().await.map_err(|error| RoleError::failed(error.to_string()))?;
            let place = Place::new(child.clone(), &cx);
            let stop_timeout_ms = cx.stop_timeout().as_millis() as u64;
            let instance = place.instance;
            cx.host().report(Report::Pid(Some(child.pid)));
            let request = wire::Start { instance, role, place: cx.place().clone(), config, stop_timeout_ms };
            let (give, started) = oneshot::channel();
            #[allow(clippy::disallowed_methods, reason = "ends with the start, or CANCEL after that was given up")]
            tokio::spawn(see_through(place, request, give));
            match started.await {
                Ok((place, done)) => {
                    let work = outcome(done)?;
                    Ok(Box::new(Running { place, work }) as Box<dyn Instance>)
                }
                Err(_) => Err(RoleError::failed("its start was not seen through")),
            }
        })
    }

    fn abandon(&self, cx: RoleContext) -> BoxFuture<'static, ()> {
        let (keeper, role) = (self.keeper.clone(), self.role.name.clone());
        Box::pin(async move {
            let Ok(child) = keeper.child().await else { return };
            let stop_timeout_ms = cx.stop_timeout().as_millis() as u64;
            let request = wire::Abandon { role, place: cx.place().clone(), stop_timeout_ms };
            let _ = child.ask::<_, Done<()>>(wire::ABANDON, &request, LONG).await;
        })
    }
}

/// Has an instance started, and stopped again if nobody waits for it any more: the other instances of its child have no part in
/// that. A start that was given up and does not end by itself leaves something half done, and costs the child its life.
async fn see_through(
    place: Place,
    request: wire::Start,
    mut give: oneshot::Sender<(Place, Result<Done<bool>, String>)>,
) {
    let child = place.child.clone();
    let mut given_up = KillUnlessDone { child: child.clone(), what: "a start that was given up", done: false };
    let mut starting = std::pin::pin!(child.ask::<_, Done<bool>>(wire::START, &request, LONG));
    let started = tokio::select! {
        started = &mut starting => Some(started),
        () = give.closed() => tokio::time::timeout(CANCEL, starting).await.ok(),
    };
    given_up.done = started.is_some();
    let Some(started) = started else { return };
    if let Err((place, Ok(Done::Ok(work)))) = give.send((place, started)) {
        let limit = place.host.stop_timeout().saturating_add(CANCEL);
        let _ = tokio::time::timeout(limit, Running { place, work }.end(false)).await;
    }
}

/// Kills a child that is left with something it does not finish.
struct KillUnlessDone {
    child: Arc<Child>,
    what: &'static str,
    done: bool,
}

impl Drop for KillUnlessDone {
    fn drop(&mut self) {
        if !self.done {
            self.child.kill(&format!("it hangs in {}", self.what));
        }
    }
}

/// An instance's place in a child; over when this is dropped.
struct Place {
    child: Arc<Child>,
    instance: u64,
    host: Arc<dyn Host>,
}

impl Place {
    fn new(child: Arc<Child>, cx: &RoleContext) -> Self {
        let name = |text: &str| text.parse::<Name>().expect("the station made it from a name");
        // The station part is not used: a session with a child has one station.
        let to = Address::Instance { station: name("here"), role: name(cx.role()), instance: name(cx.instance()) };
        let instance = {
            let mut next = child.next.lock().unwrap_or_else(PoisonError::into_inner);
            *next += 1;
            *next
        };
        child.placed().insert(instance, Placed { host: cx.host().clone(), to });
        Self { child, instance, host: cx.host().clone() }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.child.placed().remove(&self.instance);
    }
}

struct Running {
    place: Place,
    /// Has work of its own that is not begun yet.
    work: bool,
}

impl Running {
    async fn end(self, detach: bool) {
        let Place { child, instance, host } = &self.place;
        if child.is_over() {
            return;
        }
        let mut given_up = KillUnlessDone { child: child.clone(), what: "stop", done: false };
        let stop_timeout_ms = host.stop_timeout().as_millis() as u64;
        let stop = wire::Stop { instance: *instance, detach, stop_timeout_ms };
        let stopped = child.ask::<_, Done<()>>(wire::STOP, &stop, LONG).await;
        given_up.done = true;
        if let Err(RoleError::Failed(text)) = outcome(stopped) {
            host.log(LogLevel::Error, &format!("while stopping: {text}"));
        }
    }
}

impl Instance for Running {
    fn update(&mut self, config: &[u8]) -> BoxFuture<'_, Result<(), RoleError>> {
        let config = config.to_vec();
        Box::pin(async move {
            let Place { child, instance, host } = &self.place;
            let stop_timeout_ms = host.stop_timeout().as_millis() as u64;
            let mut given_up = KillUnlessDone { child: child.clone(), what: "update", done: false };
            let update = wire::Update { instance: *instance, config, stop_timeout_ms };
            let updated = child.ask(wire::UPDATE, &update, LONG).await;
            given_up.done = true;
            outcome(updated)
        })
    }

    fn run(&mut self) -> BoxFuture<'_, Option<Work>> {
        let work = std::mem::take(&mut self.work).then(|| {
            let (child, instance) = (self.place.child.clone(), self.place.instance);
            Box::pin(async move { outcome(child.run(instance).await) }) as Work
        });
        Box::pin(async move { work })
    }

    fn stop(self: Box<Self>) -> BoxFuture<'static, ()> {
        Box::pin(self.end(false))
    }

    fn detach(self: Box<Self>) -> BoxFuture<'static, ()> {
        Box::pin(self.end(true))
    }
}

impl Child {
    /// Runs an instance's work; without a deadline, so it is a stream that has no items.
    async fn run(&self, instance: u64) -> Result<Done<()>, String> {
        let session = self.session.get().expect("a child that was started has a session");
        let encoding = Encoding::Bincode;
        let mut head = RequestHead::new(Terms { encoding, ..Terms::new(Address::Manager, wire::RUN) });
        head.remaining_ms = NO_DEADLINE;
        let request = quilt_net::encode(Encoding::Bincode, &wire::Run { instance });
        let answer = session.stream(head, request, 1).end().await;
        match answer.outcome {
            Outcome::Reply => {
                quilt_net::decode("how work ended", answer.encoding, &answer.body).map_err(|error| error.to_string())
            }
            Outcome::PeerLost(_) => Err(self.end_in_words().await),
            _ => Err(answer.text()),
        }
    }
}
