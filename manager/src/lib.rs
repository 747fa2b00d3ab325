//! The manager: knows the stations of one fleet, holds what each should run, pushes it, relays commands, shows it all.
//!
//! It never decodes a command (bodies are bytes to it) and knows a configuration only as a JSON document whose meaning
//! is the roles'. Its memory is what questions are answered from; its store is what it starts from again.
//!
//! Read first: [`Manager`], `state`, `push`. Modules in reading order: `config`, `store`, `fleet`, `selector`, `state`,
//! `events`, `session`, `register`, `saving`, `push`, `desired`, `apply`, `remarks`, `part`, `unhealthy`, `rollout`, `take_back`, `trial`,
//! `route`, `tools`, `list_reply`, `workers`, `blobs`, `schemas`, `http`, `backup`.

mod apply;
pub mod backup;
mod blobs;
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
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

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
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use config::{ManagerArgs, ManagerConfig};

use events::EventLog;
use state::State;
use store::{STORE_FILE, SqliteStore, Store};

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
    stop: CancellationToken,
    tasks: TaskTracker,
    protocol: SocketAddr,
    http: SocketAddr,
    _lock: FolderLock,
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
        let beat =
            quilt_protocol::session::HEARTBEAT.max(Duration::from_millis((live * 1000 / BEATS_PER_SECOND) as u64));
        self.heartbeat_ms.store(beat.as_millis() as u64, Ordering::Relaxed);
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
        let store: Arc<dyn Store> = Arc::new(SqliteStore::open(&folder.join(STORE_FILE))?);
        let loaded = store.load().await?;
        let (fleet, last_event) = (loaded.fleet, loaded.last_event);
        let (damage, trials) = (loaded.damage.clone(), loaded.trials.clone());
        let stop = CancellationToken::new();
        let tasks = TaskTracker::new();
        let core = Arc::new(Core {
            fleet,
            events: EventLog::new(store.clone(), last_event),
            blobs: blobs::Blobs::open(folder.join("files")).context("the folder of files for stations")?,
            schemas: schemas::Schemas::default(),
            store,
            state: Mutex::new(State::new(loaded).map_err(anyhow::Error::msg)?),
            changed: watch::Sender::new(0),
            applying: tokio::sync::Mutex::new(()),
            saving: tokio::sync::Mutex::new(()),
            save: Notify::new(),
            registering: Arc::new(Semaphore::new(register::REGISTERING)),
            tasks: tasks.clone(),
            heartbeat_ms: AtomicU64::new(quilt_protocol::session::HEARTBEAT.as_millis() as u64),
            workers: workers::Workers::new(),
            arriving: Budget::new(session::ARRIVING_MAX),
            stop: stop.clone(),
            metrics: http::Metrics::new(),
            started: Instant::now(),
        });
        let listener = Listener::bind(&config.listen).await.with_context(|| format!("--listen {}", config.listen))?;
        let protocol = listener.local_addr()?;
        if !protocol.ip().is_loopback() {
            tracing::warn!(%protocol, "plain text beyond this machine: anybody who reaches this port commands the fleet");
        }
        let http = http::Server::bind(&config.http).await.with_context(|| format!("--http {}", config.http))?;
        let http_address = http.local_addr()?;
        let (http, listener) = (Arc::new(http), Arc::new(listener));
        let around = (core.clone(), stop.clone());
        tasks.spawn(runtime::keep_running("http", {
            let (core, stop) = around.clone();
            move || http.clone().serve(core.clone(), stop.clone())
        }));
        tasks.spawn(runtime::keep_running("connections", {
            let (core, stop) = around.clone();
            move || session::listen(core.clone(), listener.clone(), stop.clone())
        }));
        let (beating, stop_beating) = around;
        tasks.spawn(runtime::keep_running("heartbeats", move || {
            adapt_heartbeats(beating.clone(), stop_beating.clone())
        }));
        let saving = core.clone();
        tasks.spawn(runtime::keep_running("station records", move || saving::keep_saving(saving.clone())));
        let halting = core.clone();
        tasks.spawn(runtime::keep_running("interrupted rollouts", move || rollout::halt_interrupted(halting.clone())));
        if let Some(trouble) = core.store.trouble() {
            tracing::error!(
                trouble,
                "started read-only: stations register and run what they have, changes are refused"
            );
        }
        core.events.add("manager.started", None, None, format!("fleet {fleet}"));
        for damage in damage {
            tracing::error!(place = damage.place, "a row of the store is damaged; nothing is pushed from it");
            core.events.add("store.damaged", None, None, damage.place);
        }
        for trial in trials {
            core.spawn(rollout::resume(core.clone(), Arc::new(trial), rollout::Stage::Undecided));
        }
        Ok(Self { core, stop, tasks, protocol, http: http_address, _lock: lock })
    }

    /// Where stations and tools connect.
    pub fn protocol_addr(&self) -> SocketAddr {
        self.protocol
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
    pub fn http_addr(&self) -> SocketAddr {
        self.http
    }

    /// Stops: takes no connection any more, says goodbye to all, waits a little for them to take it.
    pub async fn stop(self) {
        self.stop.cancel();
        let handles: Vec<_> = {
            let state = self.core.state();
            let stations = state.stations.values().filter_map(|station| Some(station.live.as_ref()?.handle.clone()));
            let clients = state.clients.values().map(|client| client.handle.clone());
            let newcomers = state.quarantined.iter().map(|newcomer| newcomer.handle.clone());
            stations.chain(clients).chain(newcomers).collect()
        };
        handles.iter().for_each(|handle| handle.goodbye("the manager stops"));
        self.tasks.close();
        if tokio::time::timeout(DRAIN, self.tasks.wait()).await.is_err() {
            tracing::warn!(left = self.tasks.len(), "stopped without waiting for all connections");
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

async fn adapt_heartbeats(core: Arc<Core>, stop: CancellationToken) {
    let mut told = core.heartbeat();
    while stop.run_until_cancelled(tokio::time::sleep(ADAPT_EVERY)).await.is_some() {
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
