//! The manager: knows the stations of one fleet, holds what each should run, pushes it, relays commands, shows it all.
//!
//! It never decodes a command (bodies are bytes to it) and knows a configuration only as a JSON document whose meaning
//! is the roles'. Its memory is what questions are answered from; its store is what it starts from again.
//!
//! Read first: [`Manager`], `state`, `push`. Modules in reading order: `config`, `clock`, `store`, `fleet`, `selector`, `state`,
//! `events`, `session`, `register`, `saving`, `push`, `desired`, `apply`, `remarks`, `part`, `unhealthy`, `rollout`, `take_back`, `trial`,
//! `route`, `tools`, `list_reply`, `workers`, `blobs`, `schemas`, `http`, `backup`.

mod apply;
pub mod backup;
mod blobs;
mod clock;
mod config;
mod desired;
mod events;
mod fleet;
mod http;
mod list_reply;
mod part;
mod push;
mod register;
mod remarks;
mod rollout;
mod route;
mod saving;
mod schemas;
pub mod selector;
mod session;
mod state;
pub mod store;
mod take_back;
mod tools;
mod trial;
mod unhealthy;
mod workers;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use quilt_client::Client;
use quilt_core::folder_lock::FolderLock;
use quilt_core::{files, runtime, shortage};
use quilt_net::Listener;
use quilt_protocol::session::Budget;
use quilt_protocol::{FleetId, Name};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use clock::Clock;
pub use config::{ManagerArgs, ManagerConfig};

use events::EventLog;
use state::State;
use store::{Damage, STORE_FILE, SqliteStore, Store, Trial};

/// At most so many heartbeats a second from the whole fleet, unless that would be fewer than one in 5 s each.
const BEATS_PER_SECOND: usize = 1000;
/// How often the heartbeat interval is adapted to the size of the fleet.
const ADAPT_EVERY: Duration = Duration::from_secs(10);
/// How long connections get to take their goodbye.
const CALL: Duration = Duration::from_secs(15);
/// How long stopping waits for connections to end.
const DRAIN: Duration = Duration::from_secs(2);

/// A running manager.
pub struct Manager {
    core: Arc<Core>,
    addresses: Option<Addresses>,
    _lock: Option<FolderLock>,
}

/// Where a manager listens.
struct Addresses {
    protocol: SocketAddr,
    http: SocketAddr,
}

/// What all parts of a manager share.
pub(crate) struct Core {
    pub(crate) fleet: FleetId,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) events: EventLog,
    pub(crate) blobs: blobs::Blobs,
    pub(crate) schemas: schemas::Schemas,
    state: Mutex<State>,
    /// Counts changes of any station.
    pub(crate) changed: watch::Sender<u64>,
    /// One apply at a time: each is planned against what the one before left.
    pub(crate) applying: tokio::sync::Mutex<()>,
    /// Held while records of stations are stored.
    pub(crate) saving: tokio::sync::Mutex<()>,
    /// Wakes what stores records of stations.
    pub(crate) save: Notify,
    /// Stations that come in take turns.
    pub(crate) registering: Arc<Semaphore>,
    pub(crate) tasks: TaskTracker,
    heartbeat_ms: AtomicU64,
    /// Threads for work that takes long.
    workers: workers::Workers,
    /// Room for bodies, of all connections together.
    pub(crate) arriving: Budget,
    /// For how long connections look for what comes next before they sleep.
    pub(crate) watch: Duration,
    stop: CancellationToken,
    pub(crate) metrics: http::Metrics,
    pub(crate) started: Instant,
}

impl Core {
    /// Looks at the state, or changes it.
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells whoever follows that a station changed.
    pub(crate) fn note_change(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    /// Runs `work` beside everything else until the manager stops.
    #[allow(clippy::disallowed_methods, reason = "the tracker owns it")]
    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) -> AbortHandle {
        self.tasks.spawn(work).abort_handle()
    }

    /// Awaits something; none if the manager stops meanwhile.
    pub(crate) async fn until_stopped<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        self.stop.run_until_cancelled(work).await
    }

    /// Waits; false if the manager stops meanwhile.
    pub(crate) async fn pause(&self, time: Duration) -> bool {
        self.stop.run_until_cancelled(tokio::time::sleep(time)).await.is_some()
    }

    /// How often a station should be heard of, as of the last look at the size of the fleet: counted for each station that
    /// comes, the coming of many would cost the square of their number.
    pub(crate) fn heartbeat(&self) -> Duration {
        Duration::from_millis(self.heartbeat_ms.load(Ordering::Relaxed))
    }

    fn adapt_heartbeat(&self) {
        let live = self.state().stations.values().filter(|station| station.live.is_some()).count();
        self.heartbeat_ms.store(heartbeat_for(live).as_millis() as u64, Ordering::Relaxed);
    }
}

/// What a store has for a manager to see to when it starts.
struct Found {
    damage: Vec<Damage>,
    trials: Vec<Trial>,
}

/// Reads a store. Nothing happens yet.
async fn load(
    store: Arc<dyn Store>,
    clock: Clock,
    files: PathBuf,
    watch: Duration,
) -> anyhow::Result<(Arc<Core>, Found)> {
    let loaded = store.load().await?;
    let (fleet, last_event) = (loaded.fleet, loaded.last_event);
    let found = Found { damage: loaded.damage.clone(), trials: loaded.trials.clone() };
    let core = Arc::new(Core {
        fleet,
        events: EventLog::new(store.clone(), clock, last_event),
        blobs: blobs::Blobs::open(files).context("the folder of files for stations")?,
        schemas: schemas::Schemas::default(),
        store,
        state: Mutex::new(State::new(loaded, clock).map_err(anyhow::Error::msg)?),
        changed: watch::Sender::new(0),
        applying: tokio::sync::Mutex::new(()),
        saving: tokio::sync::Mutex::new(()),
        save: Notify::new(),
        registering: Arc::new(Semaphore::new(register::REGISTERING)),
        tasks: TaskTracker::new(),
        heartbeat_ms: AtomicU64::new(quilt_protocol::session::HEARTBEAT.as_millis() as u64),
        workers: workers::Workers::new(),
        arriving: Budget::new(session::ARRIVING_MAX),
        watch,
        stop: CancellationToken::new(),
        metrics: http::Metrics::new(),
        started: Instant::now(),
    });
    Ok((core, found))
}

impl Core {
    /// Serves who connects.
    fn listen(self: &Arc<Self>, listener: Arc<Listener>, http: Arc<http::Server>) {
        let core = self.clone();
        self.keep_running("http", move || http.clone().serve(core.clone(), core.stop.clone()));
        let core = self.clone();
        self.keep_running("connections", move || session::listen(core.clone(), listener.clone(), core.stop.clone()));
    }

    /// Begins with what a manager does by itself.
    fn begin(self: &Arc<Self>, found: Found) {
        let core = self.clone();
        self.keep_running("heartbeats", move || adapt_heartbeats(core.clone()));
        let core = self.clone();
        self.keep_running("station records", move || saving::keep_saving(core.clone()));
        let core = self.clone();
        self.keep_running("interrupted rollouts", move || rollout::halt_interrupted(core.clone()));
        if let Some(trouble) = self.store.trouble() {
            tracing::error!(
                trouble,
                "started read-only: stations register and run what they have, changes are refused"
            );
        }
        self.events.add("manager.started", None, None, format!("fleet {}", self.fleet));
        for damage in found.damage {
            tracing::error!(place = damage.place, "a row of the store is damaged; nothing is pushed from it");
            self.events.add("store.damaged", None, None, damage.place);
        }
        for trial in found.trials {
            self.spawn(rollout::resume(self.clone(), Arc::new(trial), rollout::Stage::Undecided));
        }
    }

    fn keep_running<F>(&self, name: &'static str, task: impl Fn() -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.spawn(runtime::keep_running(name, task));
    }
}

impl Manager {
    /// Starts a manager with its store in the data folder. It listens when this returns.
    ///
    /// # Errors
    ///
    /// The data folder is in use or damaged, an address cannot be bound.
    pub async fn start(config: &ManagerConfig) -> anyhow::Result<Self> {
        shortage::raise_descriptor_limit();
        let folder = files::create_data_dir(&config.data_dir, config::FOLDER).context("the data folder")?;
        let lock = FolderLock::take(&folder)?;
        let store = Arc::new(SqliteStore::open(&folder.join(STORE_FILE))?);
        let (core, found) = load(store, Clock::system(), folder.join("files"), *session::WATCH).await?;
        // Bound once the store is read: whoever connects is served.
        let listener = Listener::bind(&config.listen).await.with_context(|| format!("--listen {}", config.listen))?;
        let protocol = listener.local_addr()?;
        if !protocol.ip().is_loopback() {
            tracing::warn!(%protocol, "plain text beyond this machine: anybody who reaches this port commands the fleet");
        }
        let server = http::Server::bind(&config.http).await.with_context(|| format!("--http {}", config.http))?;
        let http = server.local_addr()?;
        core.listen(Arc::new(listener), Arc::new(server));
        core.begin(found);
        Ok(Self { core, addresses: Some(Addresses { protocol, http }), _lock: Some(lock) })
    }

    /// Starts a manager on this store, which nobody else has open. It keeps files for stations in the folder `files` and listens
    /// nowhere: connections come through [`Manager::take`]. All that it waits for, it waits for on tokio's clock, so that a test
    /// may pause that.
    ///
    /// # Errors
    ///
    /// The store cannot be read, the folder not be made.
    pub async fn start_with(store: Arc<dyn Store>, clock: Clock, files: PathBuf) -> anyhow::Result<Self> {
        let (core, found) = load(store, clock, files, Duration::ZERO).await?;
        core.begin(found);
        Ok(Self { core, addresses: None, _lock: None })
    }

    /// Where stations and tools connect.
    ///
    /// # Panics
    ///
    /// If it was started with [`Manager::start_with`].
    pub fn protocol_addr(&self) -> SocketAddr {
        self.addresses().protocol
    }

    /// Serves a connection that did not come through the listener; for programs that host a manager. It counts as one from
    /// nowhere.
    pub fn take<T>(&self, stream: T)
    where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let nowhere = SocketAddr::from(([0; 4], 0));
        let session = session::take(&self.core, stream, nowhere, None);
        self.core.spawn(async move { drop(session.await) });
    }

    /// Calls commands of a connected station without a way around; for programs that host a manager.
    ///
    /// # Errors
    ///
    /// There is no such station, or it is away; for people.
    pub fn station(&self, name: &Name) -> Result<Client, String> {
        let handle = route::station_handle(&self.core, name).map_err(|(_, text)| text)?;
        Ok(Client::over(handle, "manager".parse().expect("a fixed name is a name"), CALL))
    }

    /// Where health, readiness and metrics are served.
    ///
    /// # Panics
    ///
    /// If it was started with [`Manager::start_with`].
    pub fn http_addr(&self) -> SocketAddr {
        self.addresses().http
    }

    fn addresses(&self) -> &Addresses {
        self.addresses.as_ref().expect("who starts a manager without listeners does not ask where they listen")
    }

    /// Stops: takes no connection any more, says goodbye to all, waits a little for them to take it.
    pub async fn stop(self) {
        self.core.stop.cancel();
        let handles: Vec<_> = {
            let state = self.core.state();
            let stations = state.stations.values().filter_map(|station| Some(station.live.as_ref()?.handle.clone()));
            let clients = state.clients.values().map(|client| client.handle.clone());
            let newcomers = state.quarantined.iter().map(|newcomer| newcomer.handle.clone());
            stations.chain(clients).chain(newcomers).collect()
        };
        handles.iter().for_each(|handle| handle.goodbye("the manager stops"));
        self.core.tasks.close();
        if tokio::time::timeout(DRAIN, self.core.tasks.wait()).await.is_err() {
            tracing::warn!(left = self.core.tasks.len(), "stopped without waiting for all connections");
        }
        if let Err(error) = saving::save_all(&self.core).await {
            tracing::warn!(%error, "what was last heard of stations is not stored");
        }
        // Everything asked of the store before this is on disk after it.
        if let Err(error) = self.core.store.close().await {
            tracing::warn!(%error, "the store was not put in order");
        }
    }
}

/// How often each of so many stations should be heard of.
fn heartbeat_for(live: usize) -> Duration {
    quilt_protocol::session::HEARTBEAT.max(Duration::from_millis((live * 1000 / BEATS_PER_SECOND) as u64))
}

async fn adapt_heartbeats(core: Arc<Core>) {
    let mut told = core.heartbeat();
    while core.pause(ADAPT_EVERY).await {
        core.adapt_heartbeat();
        let wanted = core.heartbeat();
        if wanted != told {
            let state = core.state();
            let live = state.stations.values().filter_map(|station| station.live.as_ref());
            live.for_each(|live| live.handle.set_heartbeat(wanted));
            told = wanted;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stations_are_heard_of_less_often_where_there_are_many() {
        let expected = [(0, 5), (1, 5), (5000, 5), (10_000, 10), (1_000_000, 1000)];
        for (live, seconds) in expected {
            assert_eq!(heartbeat_for(live), Duration::from_secs(seconds), "{live} stations");
        }
    }
}
