//! Networks that let nothing through, in one direction or both.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use quilt_tests::{World, clock};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

/// The ways in which a network is cut, by the name of the station that meets them.
const CUTS: [(&str, Cut); 3] = [("both", Cut::Both), ("there", Cut::ToManager), ("back", Cut::ToStation)];
/// Three missed heartbeats, and as much again for a machine that is busy.
const GIVEN_UP: Duration = Duration::from_secs(40);
/// The longest delay between attempts to connect, and as much again.
const BACK: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Cut {
    Both,
    /// Nothing from the station arrives.
    ToManager,
    /// Nothing from the manager arrives.
    ToStation,
}

/// A network namespace with a link to the manager's. Ends when it is dropped.
struct Network {
    number: usize,
    pid: String,
    _holder: Child,
}

impl Network {
    async fn new(number: usize) -> Self {
        let mut holder = Command::new("unshare")
            .args(["--net", "sh", "-c", "ip link set lo up && echo $$ && exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("`unshare`, of util-linux");
        let mut lines = BufReader::new(holder.stdout.take().unwrap()).lines();
        let pid = lines.next_line().await.unwrap().expect("a network namespace takes root");
        let network = Self { number, pid, _holder: holder };
        ip(&format!("link add link{number} type veth peer name eth0 netns {}", network.pid)).await;
        ip(&format!("addr add 10.99.{number}.1/24 dev link{number}")).await;
        ip(&format!("link set link{number} up")).await;
        network.ip(&format!("addr add 10.99.{number}.2/24 dev eth0")).await;
        network.ip("link set eth0 up").await;
        network
    }

    /// Changes the station's side.
    async fn ip(&self, arguments: &str) {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", self.pid)).arg("ip").args(arguments.split(' '));
        carry_out(command, arguments).await;
    }

    /// Cuts it, or heals it.
    async fn cut(&self, how: Cut, is_cut: bool) {
        let verb = if is_cut { "add" } else { "del" };
        let number = self.number;
        match how {
            Cut::Both => ip(&format!("link set link{number} {}", if is_cut { "down" } else { "up" })).await,
            // A route for one address is more exact than that of the link, and this one leads nowhere.
            Cut::ToManager => self.ip(&format!("route {verb} blackhole 10.99.{number}.1/32")).await,
            Cut::ToStation => ip(&format!("route {verb} blackhole 10.99.{number}.2/32")).await,
        }
    }
}

async fn ip(arguments: &str) {
    let mut command = Command::new("ip");
    command.args(arguments.split(' '));
    carry_out(command, arguments).await;
}

async fn carry_out(mut command: Command, arguments: &str) {
    let done = command.output().await.expect("`ip`, of iproute2");
    assert!(done.status.success(), "ip {arguments}: {done:?}");
}

/// Cuts the networks of three stations, each in another way, and heals them. Both ends give up within three heartbeats; afterwards every
/// station is back with the same program.
async fn run_one(world: &World, networks: &[Network], turn: usize) {
    let mut pids = Vec::new();
    for (name, _) in CUTS {
        pids.push(world.until_state(&format!("{name}/process/clock"), "active").await.pid);
    }
    for (network, (_, how)) in networks.iter().zip(CUTS) {
        network.cut(how, true).await;
    }
    for (name, _) in CUTS {
        let log = world.folder().join(name);
        let both = async || {
            let stations = world.stations().await;
            let lost = stations.iter().any(|view| view.name == *name && view.state.name() == "unknown");
            lost && sessions_ended(&log) > turn
        };
        until(&format!("both ends of {name} give up"), GIVEN_UP, both).await;
    }
    for (network, (_, how)) in networks.iter().zip(CUTS) {
        network.cut(how, false).await;
    }
    for ((name, _), pid) in CUTS.into_iter().zip(pids) {
        let is_back = async || {
            let stations = world.stations().await;
            let all: Vec<_> = stations.iter().filter(|view| view.name.as_str().starts_with(name)).collect();
            all.len() == 1 && all[0].state.name() == "connected"
        };
        until(&format!("{name} is back"), BACK, is_back).await;
        assert_eq!(world.until_state(&format!("{name}/process/clock"), "active").await.pid, pid, "{name}");
    }
}

/// Waits until something is true.
async fn until(what: &str, patience: Duration, is_true: impl AsyncFn() -> bool) {
    let waiting = async {
        let mut ticks = tokio::time::interval(Duration::from_millis(100));
        while !is_true().await {
            ticks.tick().await;
        }
    };
    assert!(tokio::time::timeout(patience, waiting).await.is_ok(), "waited {patience:?} in vain until {what}");
}

/// How often a station's log says that its session ended.
fn sessions_ended(log: &Path) -> usize {
    fs::read_to_string(log).unwrap_or_default().matches("the session ended").count()
}

/// Goes through so many turns.
pub(crate) async fn run(turns: usize) -> String {
    let mut world = World::empty();
    world.address = "0.0.0.0:0".into();
    world.start_manager().await;
    let port = world.address.rsplit(':').next().unwrap().to_owned();
    world.address = format!("127.0.0.1:{port}");
    let mut networks = Vec::new();
    for (number, (name, _)) in CUTS.into_iter().enumerate() {
        let network = Network::new(number).await;
        let log = world.folder().join(name);
        let enter = format!("exec nsenter --net=/proc/{}/ns/net \"$@\" 2>{}", network.pid, log.display());
        let inside = std::mem::replace(&mut world.address, format!("10.99.{number}.1:{port}"));
        world.station_from_shell(name, &enter).await;
        world.address = inside;
        networks.push(network);
    }
    let names = CUTS.map(|(name, _)| name);
    world.apply(clock(&names).text()).await.with_code(0);
    for turn in 0..turns {
        run_one(&world, &networks, turn).await;
    }
    format!("{turns} times cut in both directions and in either, both ends gave up, same programs afterwards")
}
