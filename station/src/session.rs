//! The station's session with its manager: dial, register, report, and again.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use quilt_net::{Backoff, Handle, dial};
use quilt_plugin_api::{CallAnswer, split_error};
use quilt_protocol::control::{Registered, Registration, Report, command};
use quilt_protocol::message::{Delivered, Hello, Identity};
use quilt_protocol::version::SPOKEN;
use quilt_protocol::{Address, Encoding, Name, Outcome, RequestHead, StationId, Terms};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::board::Board;
use crate::config::StationConfig;
use crate::identity;
use crate::requests::Requests;

/// The shortest delay between attempts, and the longest.
const RECONNECT: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// How long a connection attempt may take.
const DIAL: Duration = Duration::from_secs(5);
/// How long the manager may take to answer a registration or report.
const ANSWER: Duration = Duration::from_secs(15);
/// How long the last report may take.
const LAST_REPORT: Duration = Duration::from_secs(1);
/// How much time there is between reports in the long run: five a second.
const REPORT_INTERVAL: Duration = Duration::from_millis(200);
/// How many reports may follow each other at once after a quiet time.
const REPORT_BURST: u32 = 5;
/// How long a report waits for changes that come together.
const GATHER: Duration = Duration::from_millis(5);

/// The session as the rest of the station sees it.
pub(crate) struct Link {
    id: Mutex<StationId>,
    name: Mutex<Name>,
    stage: watch::Sender<Stage>,
}

/// How far the session with the manager has come.
#[derive(Clone)]
enum Stage {
    /// There is none.
    Away,
    /// The two have greeted, and the manager registers the station. It may send requests before the station has heard that it is
    /// registered.
    Registering,
    /// The station is registered.
    Registered(Handle),
}

impl Stage {
    fn handle(&self) -> Option<&Handle> {
        match self {
            Self::Registered(handle) => Some(handle),
            Self::Away | Self::Registering => None,
        }
    }
}

impl Link {
    pub(crate) fn new(id: StationId, name: Name) -> Self {
        Self { id: Mutex::new(id), name: Mutex::new(name), stage: watch::Sender::new(Stage::Away) }
    }

    /// The name the manager assigned, or the wished one until then.
    pub(crate) fn name(&self) -> String {
        self.name.lock().unwrap_or_else(PoisonError::into_inner).to_string()
    }

    fn enter(&self, stage: Stage) {
        self.stage.send_replace(stage);
    }

    fn id(&self) -> StationId {
        *self.id.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a new identity: ends the session, the station comes back under it.
    pub(crate) fn renew(&self, id: StationId) {
        *self.id.lock().unwrap_or_else(PoisonError::into_inner) = id;
        if let Some(handle) = self.stage.borrow().handle() {
            handle.goodbye("the station takes a new identity");
        }
    }

    /// The session with the manager; waits a little for one that is just being made.
    pub(crate) async fn manager(&self) -> Option<Handle> {
        let mut stage = self.stage.subscribe();
        let registered = stage.wait_for(|stage| stage.handle().is_some());
        tokio::time::timeout(DIAL, registered).await.ok()?.ok()?.handle().cloned()
    }

    /// Whether there is a session with the manager, be it one in which the station is just being registered.
    pub(crate) fn is_connected(&self) -> bool {
        !matches!(*self.stage.borrow(), Stage::Away)
    }

    /// Calls another target through the manager.
    pub(crate) async fn call(&self, target: &str, command: String, body: Bytes, time: Duration) -> CallAnswer {
        let failed = |outcome: Outcome, text: String| CallAnswer { outcome: outcome.name().into(), body: text.into() };
        let to: Address = match target.parse() {
            Ok(to) => to,
            Err(error) => return failed(Outcome::NoTarget, error.to_string()),
        };
        let handle = self.stage.borrow().handle().cloned();
        let Some(handle) = handle else {
            return failed(Outcome::PeerLost(Delivered::No), "the station has no manager now".into());
        };
        let mut head = RequestHead::new(Terms::new(to, command));
        head.remaining_ms = u32::try_from(time.as_millis()).unwrap_or(u32::MAX - 1);
        let answer = handle.request(&head, body).await;
        let body = match answer.outcome {
            Outcome::Error => Bytes::copy_from_slice(split_error(&answer.body).0),
            _ => answer.body,
        };
        CallAnswer { outcome: answer.outcome.name().into(), body }
    }
}

/// Keeps a session with one of the managers until told to stop.
pub(crate) async fn keep(
    config: Arc<StationConfig>,
    link: Arc<Link>,
    service: Arc<Requests>,
    board: Arc<Board>,
    stop: CancellationToken,
) {
    let mut backoff = Backoff::new(RECONNECT.0, RECONNECT.1);
    let mut managers = config.managers.iter().cycle();
    let mut quiet = false;
    while !stop.is_cancelled() {
        let manager = managers.next().expect("there is at least one manager");
        let attempt = tokio::select! {
            attempt = connect(manager, &config, &link, &service) => attempt,
            () = stop.cancelled() => return,
        };
        match attempt {
            Ok((handle, registered)) => {
                tracing::info!(manager, name = %registered.name, "registered");
                registered.notes.iter().for_each(|note| tracing::warn!("{note}"));
                *link.name.lock().unwrap_or_else(PoisonError::into_inner) = registered.name;
                backoff.reset();
                quiet = false;
                link.enter(Stage::Registered(handle.clone()));
                service.push.connected();
                let why = serve(&handle, &service, &board, &stop).await;
                link.enter(Stage::Away);
                if !stop.is_cancelled() {
                    tracing::warn!(manager, %why, "the session ended");
                }
            }
            // Said once; a manager that is away for a night should not fill the log.
            Err(error) if !quiet => {
                tracing::warn!(manager, error, "no manager; the configuration on disk runs on");
                quiet = true;
            }
            Err(error) => tracing::debug!(manager, error, "no manager"),
        }
        tokio::select! {
            () = tokio::time::sleep(backoff.next_delay()) => {}
            () = stop.cancelled() => {}
        }
    }
}

async fn connect(
    manager: &str,
    config: &StationConfig,
    link: &Link,
    service: &Arc<Requests>,
) -> Result<(Handle, Registered), String> {
    let id = link.id();
    let stream = dial(manager, DIAL).await.map_err(|error| error.to_string())?;
    let local = stream.local_addr().map_err(|error| error.to_string())?;
    let hello = Hello {
        versions: SPOKEN,
        software: format!("quilt-station {}", env!("CARGO_PKG_VERSION")),
        fleet: service.push.applied().map(|applied| applied.fleet),
        identity: Identity::Station(id),
        features: Vec::new(),
        extensions: Default::default(),
    };
    let (handle, _) = quilt_net::connect(stream, hello, service.clone()).await.map_err(|error| error.to_string())?;
    let registration = registration(config, id, local, service).await;
    link.enter(Stage::Registering);
    let registered = handle
        .ask(Address::Manager, command::REGISTER, Encoding::Bincode, &registration, ANSWER)
        .await
        .map_err(|error| format!("registration: {error}"));
    match registered {
        Ok(registered) => Ok((handle, registered)),
        Err(error) => {
            link.enter(Stage::Away);
            handle.goodbye("registration failed");
            Err(error)
        }
    }
}

async fn registration(config: &StationConfig, id: StationId, local: SocketAddr, service: &Requests) -> Registration {
    Registration {
        id,
        wished_name: config.name.clone(),
        facts: identity::facts(local.ip()),
        labels: config.labels.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect(),
        roles: service.roles.offers(),
        blocked: service.roles.blocked.iter().cloned().collect(),
        // In this order: what is said to be applied is then at worst still being applied.
        applied: service.push.applied(),
        applying: service.board.is_applying(),
        instances: service.board.all(),
    }
}

/// Reports changes until the session ends or the station stops.
async fn serve(handle: &Handle, service: &Requests, board: &Board, stop: &CancellationToken) -> String {
    let mut changes = board.subscribe();
    // What changed since the registration was put together.
    changes.mark_changed();
    let mut pace = ReportPace { rested_at: Instant::now() };
    loop {
        tokio::select! {
            why = handle.closed() => return why.to_string(),
            () = stop.cancelled() => {
                // A manager that hangs must not hold up the end of the station.
                let _ = tokio::time::timeout(LAST_REPORT, report(handle, service, board)).await;
                handle.goodbye("the station stops");
                return handle.closed().await.to_string();
            }
            changed = changes.changed() => {
                changed.expect("the board outlives the session");
                tokio::select! {
                    () = tokio::time::sleep_until(pace.next(Instant::now())) => {}
                    () = stop.cancelled() => continue,
                }
                changes.mark_unchanged();
                let reported = tokio::select! {
                    reported = report(handle, service, board) => reported,
                    () = stop.cancelled() => continue,
                };
                if let Err(error) = reported {
                    // What was not taken is told whole at the next registration.
                    handle.goodbye("a report was not taken");
                    return error;
                }
                pace.sent(Instant::now());
            }
        }
    }
}

/// Spaces reports. After a burst the next one waits for one interval and no longer: the manager takes what it was told last for the
/// state of the station, and judges by it whether an instance stays healthy.
struct ReportPace {
    /// When the whole burst is allowed again.
    rested_at: Instant,
}

impl ReportPace {
    /// When a report that is due now may be sent.
    fn next(&self, now: Instant) -> Instant {
        let burst = REPORT_INTERVAL * (REPORT_BURST - 1);
        (now + GATHER).max(self.rested_at.checked_sub(burst).unwrap_or(now))
    }

    fn sent(&mut self, now: Instant) {
        self.rested_at = self.rested_at.max(now) + REPORT_INTERVAL;
    }
}

async fn report(handle: &Handle, service: &Requests, board: &Board) -> Result<(), String> {
    // In this order: what is said to be applied is then at worst still being applied.
    let applied = service.push.applied();
    let changes = board.take_changes();
    let report = Report {
        applied,
        applying: changes.applying,
        changed: changes.changed,
        gone: changes.gone,
        events: changes.events,
        roles: changes.roles.then(|| service.roles.offers()),
        remarks: changes.remarks,
    };
    let told = handle.ask::<_, ()>(Address::Manager, command::REPORT, Encoding::Bincode, &report, ANSWER).await;
    told.map_err(|error| {
        board.put_back(report.events);
        error.to_string()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_burst_of_changes_is_told_at_once_and_no_later_one_waits_for_more_than_an_interval() {
        let begin = Instant::now();
        let mut pace = ReportPace { rested_at: begin };
        let (mut now, mut told) = (begin, Vec::new());
        for _ in 0..50 {
            let next = pace.next(now);
            assert!(next - now <= REPORT_INTERVAL, "it is silent for {:?}", next - now);
            now = next;
            pace.sent(now);
            told.push(now - begin);
        }
        assert!(told[4] < REPORT_INTERVAL, "{told:?}");
        assert!(told[49] >= REPORT_INTERVAL * 45, "more than five a second: {told:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_manager_that_is_just_registering_the_station_is_waited_for() {
        let link = Link::new(StationId::random(), "s".parse().unwrap());
        assert!(!link.is_connected(), "nobody is there");
        link.enter(Stage::Registering);
        assert!(link.is_connected(), "what the manager asks for now can be fetched from it");
        let asked = tokio::time::Instant::now();
        assert!(link.manager().await.is_none());
        assert_eq!(asked.elapsed(), DIAL);
    }
}
