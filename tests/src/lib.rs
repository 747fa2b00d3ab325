//! A world for whole-system tests: a manager, stations and `quiltctl` as real processes on real sockets, in a folder of
//! their own, gone without a trace when the world is dropped.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod daemon;
mod fixtures;
pub mod plugins;

/// Every Rust block of the README is compiled as a doc test of this.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
pub struct Readme;

pub use daemon::Daemon;
pub use fixtures::{Fleet, clock};

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use quilt_client::Client;
use quilt_client::control::{InstanceView, StationView};
use quilt_core::slots::{Found, Slots};
use serde_json::Value;
use tempfile::TempDir;
use tokio::process::Command;
use tokio::time::Instant;

/// The last guard of a wait; what is waited for comes much sooner.
const PATIENCE: Duration = Duration::from_secs(30);

/// A fleet of real processes.
pub struct World {
    folder: TempDir,
    manager: Option<Daemon>,
    /// Where the manager listens, also across its restarts.
    pub address: String,
    /// Where its HTTP side listens.
    pub http: String,
    stations: BTreeMap<String, Daemon>,
}

/// What `quiltctl` did.
#[derive(Debug)]
pub struct Output {
    /// Its exit code.
    pub code: i32,
    /// Its standard output.
    pub out: String,
    /// Its standard error.
    pub err: String,
}

impl Output {
    /// Its standard output as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Itself, if the exit code is as expected.
    #[track_caller]
    pub fn with_code(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{self:?}");
        self
    }
}

impl World {
    /// A world with a manager.
    pub async fn new() -> Self {
        let mut world = Self::empty();
        world.start_manager().await;
        world
    }

    /// A world with nothing in it.
    pub fn empty() -> Self {
        let folder = tempfile::Builder::new().prefix("quilt-").tempdir().unwrap();
        std::fs::create_dir(folder.path().join("config")).unwrap();
        let unset = "127.0.0.1:0".to_owned();
        Self { folder, manager: None, address: unset.clone(), http: unset, stations: BTreeMap::new() }
    }

    /// The world's folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The file of one of quilt's binaries.
    pub fn binary(&self, name: &str) -> PathBuf {
        binary_path(name)
    }

    /// A command of one of quilt's binaries, with nothing of the machine's own settings.
    pub fn command(&self, binary: &str) -> Command {
        let mut command = Command::new(binary_path(binary));
        command.env("QUILT_CFG_DIR", self.folder().join("config")).stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    /// Starts the manager, or starts it again: at the same address, with what its data folder has.
    pub async fn start_manager(&mut self) {
        let command = self.command("quilt-manager");
        self.run_manager(command).await;
    }

    /// The same from a shell script, which ends with `exec .. "$@"`. It inherits what the script leaves it.
    pub async fn start_manager_from_shell(&mut self, script: &str) {
        let command = self.shell(script, "quilt-manager");
        self.run_manager(command).await;
    }

    async fn run_manager(&mut self, mut command: Command) {
        let folder = self.folder().join("manager");
        command.arg("--data-dir").arg(folder).args(["--listen", &self.address, "--http", &self.http]);
        let mut daemon = Daemon::start(command).await;
        self.address = daemon.line_after("listening protocol ").await;
        self.http = daemon.line_after("listening http ").await;
        self.manager = Some(daemon);
    }

    /// The manager's process.
    pub fn manager(&mut self) -> &mut Daemon {
        self.manager.as_mut().expect("the manager runs")
    }

    /// Ends the manager with a signal and waits for its end.
    pub async fn end_manager(&mut self, signal: Signal) {
        self.manager.take().expect("the manager runs").end(signal).await;
    }

    /// Removes what the manager remembers.
    pub fn forget_manager_data(&self) {
        std::fs::remove_dir_all(self.folder().join("manager")).unwrap();
    }

    /// Copies what a stopped manager remembers, and gives the place of the copy.
    pub fn back_up_manager(&self) -> PathBuf {
        let backup = self.folder().join("backup");
        copy(&self.folder().join("manager"), &backup);
        backup
    }

    /// Puts a copy in the place of what a stopped manager remembers.
    pub fn restore_manager(&self, backup: &Path) {
        self.forget_manager_data();
        copy(backup, &self.folder().join("manager"));
    }

    /// Copies a plugin's library into the plugin folder of this world's stations, under a name.
    pub fn plug(&self, library: &Path, name: &str) {
        let folder = self.folder().join("config/plugins");
        std::fs::create_dir_all(&folder).unwrap();
        // Beside it and renamed, as a package manager does.
        let part = folder.join(format!("{name}.part"));
        std::fs::copy(library, &part).unwrap();
        std::fs::rename(part, folder.join(name)).unwrap();
    }

    /// Waits until a station offers a role.
    pub async fn until_offered(&self, station: &str, role: &str) {
        self.eventually(&format!("{station} offers {role}"), async |world| {
            let stations = world.stations().await;
            stations.iter().any(|view| view.name == *station && view.roles.iter().any(|offered| offered == role))
        })
        .await;
    }

    /// Where a station keeps its data.
    pub fn station_folder(&self, name: &str) -> PathBuf {
        self.folder().join("stations").join(name)
    }

    /// The files that a station keeps what it accepted in.
    pub fn accepted_slots(&self, name: &str) -> [PathBuf; 2] {
        [0, 1].map(|number| self.station_folder(name).join(format!("station/accepted.{number}")))
    }

    /// What a station has on disk of what it accepted.
    pub fn accepted(&self, name: &str) -> Option<Value> {
        match Slots::open(&self.station_folder(name).join("station"), "accepted").unwrap().1 {
            Found::Nothing => None,
            Found::Last(json) => Some(serde_json::from_slice(&json).unwrap()),
            other => panic!("{other:?}"),
        }
    }

    /// Starts a station and waits until it is listed.
    pub async fn station(&mut self, name: &str, more: &[&str]) {
        self.start_station(name, more).await;
        self.eventually(&format!("{name} is listed"), async |world| {
            world.stations().await.iter().any(|station| {
                station.name.as_str() == name && !matches!(station.state.name(), "unknown" | "disconnected")
            })
        })
        .await;
    }

    /// Starts a station and does not wait for the manager.
    pub async fn start_station(&mut self, name: &str, more: &[&str]) {
        let mut command = self.command("quilt-station");
        self.station_arguments(&mut command, name).args(more);
        self.run_station(name, command).await;
    }

    /// Starts a station from a shell script, which ends with `exec .. "$@"`, and does not wait for the manager. It inherits
    /// what the script leaves it.
    pub async fn station_from_shell(&mut self, name: &str, script: &str) {
        let mut command = self.shell(script, "quilt-station");
        self.station_arguments(&mut command, name);
        self.run_station(name, command).await;
    }

    /// A command of a shell script that is given one of quilt's binaries.
    fn shell(&self, script: &str, binary: &str) -> Command {
        let mut command = Command::new("sh");
        command.env("QUILT_CFG_DIR", self.folder().join("config")).stdin(Stdio::null()).kill_on_drop(true);
        command.args(["-c", script, "sh"]).arg(binary_path(binary));
        command
    }

    fn station_arguments<'a>(&self, command: &'a mut Command, name: &str) -> &'a mut Command {
        command.arg("--data-dir").arg(self.station_folder(name)).args(["--manager", &self.address, "--name", name])
    }

    async fn run_station(&mut self, name: &str, command: Command) {
        let mut daemon = Daemon::start(command).await;
        daemon.line_after("station started").await;
        self.stations.insert(name.to_owned(), daemon);
    }

    /// A station's process.
    pub fn station_pid(&self, name: &str) -> u32 {
        self.stations[name].pid()
    }

    /// Ends a station with a signal and waits for its end.
    pub async fn end_station(&mut self, name: &str, signal: Signal) {
        self.stations.remove(name).expect("the station runs").end(signal).await;
    }

    /// A connection to the manager.
    pub async fn client(&self) -> Client {
        Client::connect(&self.address, "test").await.unwrap()
    }

    /// All stations; none while the manager is away.
    pub async fn stations(&self) -> Vec<StationView> {
        match Client::connect(&self.address, "test").await {
            Ok(client) => {
                let stations = client.stations("").await.unwrap_or_default();
                client.close();
                stations
            }
            Err(_) => Vec::new(),
        }
    }

    /// One station.
    pub async fn show(&self, name: &str) -> StationView {
        let stations = self.stations().await;
        let found = stations.iter().find(|station| station.name.as_str() == name);
        found.unwrap_or_else(|| panic!("{name} is not among {stations:#?}")).clone()
    }

    /// One instance, as `station/role/instance`; `None` if there is none.
    pub async fn instance(&self, path: &str) -> Option<InstanceView> {
        let [station, role, instance] = path.split('/').collect::<Vec<_>>()[..] else { panic!("{path}") };
        let stations = self.stations().await;
        let station = stations.into_iter().find(|view| view.name.as_str() == station)?;
        station.instances.into_iter().find(|view| view.role.as_str() == role && view.instance.as_str() == instance)
    }

    /// The pid of an instance that has one.
    pub async fn pid(&self, path: &str) -> u32 {
        self.instance(path).await.and_then(|view| view.pid).unwrap_or_else(|| panic!("{path} has no pid"))
    }

    /// Waits until an instance is in a state, and gives it.
    pub async fn until_state(&self, path: &str, state: &str) -> InstanceView {
        self.eventually(&format!("{path} is {state}"), async |world| {
            world.instance(path).await.is_some_and(|view| view.state.name() == state)
        })
        .await;
        self.instance(path).await.unwrap()
    }

    /// Waits until an instance has another process than this one, and gives it.
    pub async fn eventually_other_pid(&self, path: &str, pid: u32) -> InstanceView {
        self.eventually(&format!("{path} has another process than {pid}"), async |world| {
            world.instance(path).await.is_some_and(|view| view.pid.is_some_and(|new| new != pid))
        })
        .await;
        self.instance(path).await.unwrap()
    }

    /// Runs `quiltctl` against the manager.
    pub async fn ctl(&self, arguments: &[&str]) -> Output {
        let mut command = self.command("quiltctl");
        command.args(["--manager", &self.address]).args(arguments);
        let output = tokio::time::timeout(2 * PATIENCE, command.output()).await.expect("quiltctl ends").unwrap();
        Output {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Writes a fleet file and gives its path.
    pub fn fleet_file(&self, name: &str, text: &str) -> String {
        let path = self.folder().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// Applies a fleet file and waits until everything in it is healthy.
    pub async fn apply(&self, text: &str) -> Output {
        let path = self.fleet_file("fleet.toml", text);
        self.ctl(&["apply", "-f", &path, "--wait", "20", "--settle", "0"]).await
    }

    /// What the manager's HTTP side answers.
    pub async fn get(&self, path: &str) -> String {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let mut stream = tokio::net::TcpStream::connect(&self.http).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    /// Waits for something to become true.
    pub async fn eventually(&self, what: &str, condition: impl AsyncFn(&World) -> bool) {
        let until = Instant::now() + PATIENCE;
        let mut ticks = tokio::time::interval(Duration::from_millis(25));
        while !condition(self).await {
            assert!(Instant::now() < until, "waited in vain until {what}: {:#?}", self.stations().await);
            ticks.tick().await;
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stations.clear();
        self.manager = None;
        // Keepers outlive their stations on purpose, and one may be just starting: until none is left.
        while kill_keepers(self.folder.path()) {}
    }
}

/// Copies a folder as it is.
pub fn copy(from: &Path, to: &Path) {
    assert!(std::process::Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
}

/// Kills the keepers whose command line names a folder in the world; their programs die with them. Answers whether there
/// were any.
fn kill_keepers(world: &Path) -> bool {
    let mut found = false;
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command);
        if command.starts_with("quilt-keeper") && command.contains(world.to_str().unwrap_or("?")) {
            found = true;
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
    found
}

/// Whether a process is there and not a zombie.
pub fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().next()).is_some_and(|state| state != "Z")
}

/// One of the workspace's binaries. Cargo builds them for the tests of their own packages.
fn binary_path(name: &str) -> PathBuf {
    let own = std::env::current_exe().unwrap();
    // A test lies in a folder beside them, a binary of this package among them.
    let places = own.ancestors().skip(1).take(2).map(|folder| folder.join(name));
    let found = places.clone().find(|path| path.exists());
    let tried: Vec<_> = places.collect();
    found.unwrap_or_else(|| panic!("{tried:?} are not built; run `cargo test --workspace` or `cargo build`"))
}
