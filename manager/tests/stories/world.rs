//! A fleet in memory: a manager on a store in memory, stations and a tool, on a clock that stands still while anybody has
//! something to do.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use quilt_client::control::{ApplyReply, FleetEvent, Phase, Progress, Registered, StationView};
use quilt_client::{AskError, Client};
use quilt_manager::store::{Change, MemoryStore};
use quilt_manager::{Clock, Manager};
use quilt_net::NoService;
use quilt_protocol::message::{Hello, Identity};
use quilt_protocol::version::SPOKEN;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::fleet_file::File;
use crate::link::Link;
use crate::station::Station;

/// How long the tool waits for the manager.
const TIMEOUT: Duration = Duration::from_secs(60);

pub(crate) struct World {
    manager: Option<Manager>,
    store: Arc<MemoryStore>,
    clock: Clock,
    files: tempfile::TempDir,
    tool: Option<(Client, Link)>,
    stations: Vec<Station>,
}

impl World {
    /// A manager without a past.
    pub(crate) async fn new() -> Self {
        let files = tempfile::tempdir().unwrap();
        let clock = Clock::simulated(SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000));
        let (store, stations) = Default::default();
        let mut world = Self { manager: None, store, clock, files, tool: None, stations };
        world.start().await;
        world
    }

    /// Starts a manager on what is stored.
    pub(crate) async fn start(&mut self) {
        let files = self.files.path().join("files");
        self.manager = Some(Manager::start_with(self.store.clone(), self.clock, files).await.unwrap());
        let (link, near, far) = Link::new();
        self.manager().take(far);
        let name = "tool".parse().unwrap();
        let hello = Hello {
            versions: SPOKEN,
            software: "test".into(),
            fleet: None,
            identity: Identity::Tool("tool".parse().unwrap()),
            features: Vec::new(),
            extensions: Default::default(),
        };
        let (handle, _) = quilt_net::connect(near, hello, Arc::new(NoService)).await.unwrap();
        self.tool = Some((Client::over(handle, name, TIMEOUT), link));
    }

    /// Kills the manager: what it had not stored is lost, and all its connections break.
    pub(crate) async fn kill(&mut self) {
        self.store.kill();
        self.store = Arc::new(self.store.copy());
        self.manager = None;
        if let Some((_, link)) = self.tool.take() {
            link.cut();
        }
        self.stations.iter().filter(|station| station.is_connected()).for_each(Station::cut);
        moment().await;
    }

    /// Kills the manager and starts another one, to which all stations that were connected come back.
    pub(crate) async fn restart(&mut self) {
        let connected: Vec<_> = self.stations.iter().filter(|station| station.is_connected()).cloned().collect();
        self.kill().await;
        self.start().await;
        for station in connected {
            self.connect(&station).await;
        }
        moment().await;
    }

    /// Stops the manager in order, and starts another one.
    pub(crate) async fn stop_and_start(&mut self) {
        self.manager.take().expect("it runs").stop().await;
        self.kill().await;
        self.start().await;
    }

    /// Puts a copy of the store that was made earlier in the place of the present one, as from a backup.
    pub(crate) async fn restore(&mut self, backup: MemoryStore) {
        self.kill().await;
        self.store = Arc::new(backup);
        self.start().await;
    }

    /// A copy of what is stored.
    pub(crate) fn backup(&self) -> MemoryStore {
        self.store.copy()
    }

    pub(crate) fn store(&self) -> &MemoryStore {
        &self.store
    }

    /// Lets the next commit fail that has a change of this kind, and no other.
    pub(crate) fn fail_next(&self, is_it: impl Fn(&Change) -> bool + Send + 'static) {
        let mut has_failed = false;
        self.store.refuse(move |changes| {
            let fails = !has_failed && changes.iter().any(&is_it);
            has_failed |= fails;
            fails
        });
    }

    /// Lets every commit fail that has a change of this kind, until [`MemoryStore::recover`].
    pub(crate) fn fail_all(&self, is_it: impl Fn(&Change) -> bool + Send + 'static) {
        self.store.refuse(move |changes| changes.iter().any(&is_it));
    }

    /// A new station that is connected, registered and through with its first push.
    pub(crate) async fn station(&mut self, name: &str) -> Station {
        let station = Station::new(name);
        self.connect(&station).await;
        moment().await;
        station
    }

    /// Some of them.
    pub(crate) async fn stations<const N: usize>(&mut self, names: [&str; N]) -> [Station; N] {
        let mut made = Vec::new();
        for name in names {
            made.push(self.station(name).await);
        }
        made.try_into().ok().expect("as many as names")
    }

    /// Connects and registers a station.
    pub(crate) async fn connect(&mut self, station: &Station) -> Registered {
        self.try_connect(station).await.unwrap()
    }

    pub(crate) async fn try_connect(&mut self, station: &Station) -> Result<Registered, AskError> {
        let (link, near, far) = Link::new();
        self.manager().take(far);
        if !self.stations.iter().any(|known| known.is(station)) {
            self.stations.push(station.clone());
        }
        station.register(near, link).await
    }

    /// The tool's library.
    pub(crate) fn tool(&self) -> &Client {
        &self.tool.as_ref().expect("the manager runs").0
    }

    /// Applies a file to the end.
    pub(crate) async fn apply(&self, file: File) -> ApplyReply {
        self.begin(file).reply().await
    }

    /// Applies a file that the manager does not take; tells why.
    pub(crate) async fn fail_to_apply(&self, file: File) -> String {
        self.begin(file).error().await
    }

    /// Begins to apply a file.
    pub(crate) fn begin(&self, file: File) -> Applying {
        let mut applying = self.tool().apply(&file.0);
        Applying(tokio::spawn(async move {
            let mut told = Vec::new();
            while let Some(progress) = applying.next().await {
                told.push(progress);
            }
            (told, applying.reply().await)
        }))
    }

    /// How the manager shows a station.
    pub(crate) async fn view(&self, name: &str) -> StationView {
        let mut views = self.tool().stations(&format!("name={name}")).await.unwrap();
        assert_eq!(views.len(), 1, "{name}");
        views.remove(0)
    }

    /// Every station with its state, such as `cam-1 connected`.
    pub(crate) async fn states(&self) -> Vec<String> {
        let views = self.tool().stations("").await.unwrap();
        views.iter().map(|view| format!("{} {}", view.name, view.state.name())).collect()
    }

    /// The instances of a station with their states, such as `counter/main active`.
    pub(crate) async fn shown(&self, name: &str) -> Vec<String> {
        let view = self.view(name).await;
        view.instances.iter().map(|one| format!("{}/{} {}", one.role, one.instance, one.state)).collect()
    }

    /// Everything that happened so far.
    pub(crate) async fn events(&self) -> Vec<FleetEvent> {
        let mut items = self.tool().events(Some(0), false);
        let mut events = Vec::new();
        while let Some(event) = items.next().await {
            events.push(event);
        }
        events
    }

    /// The kinds of what happened to a station, in order.
    pub(crate) async fn kinds(&self, station: &str) -> Vec<String> {
        let events = self.events().await.into_iter();
        events.filter(|event| event.station.as_deref() == Some(station)).map(|event| event.kind).collect()
    }

    fn manager(&self) -> &Manager {
        self.manager.as_ref().expect("the manager runs")
    }
}

/// An apply under way.
pub(crate) struct Applying(JoinHandle<(Vec<Progress>, Result<ApplyReply, AskError>)>);

impl Applying {
    /// How it ended.
    pub(crate) async fn reply(self) -> ApplyReply {
        self.0.await.unwrap().1.unwrap()
    }

    /// Why it could not be seen through.
    pub(crate) async fn error(self) -> String {
        self.0.await.unwrap().1.unwrap_err().to_string()
    }

    /// What was told of each station meanwhile, and how it ended.
    pub(crate) async fn told(self) -> (Vec<(String, Phase)>, ApplyReply) {
        let (told, reply) = self.0.await.unwrap();
        (told.into_iter().map(|progress| (progress.station, progress.phase)).collect(), reply.unwrap())
    }

    pub(crate) fn is_under_way(&self) -> bool {
        !self.0.is_finished()
    }
}

/// Lets everything happen that needs no time to speak of.
pub(crate) async fn moment() {
    pass(Duration::from_millis(200)).await;
}

/// Lets time pass.
pub(crate) async fn pass(time: Duration) {
    sleep(time).await;
}

/// Lets seconds pass.
pub(crate) async fn seconds(seconds: u64) {
    pass(Duration::from_secs(seconds)).await;
}
