//! What small pieces cost in instructions, counted by callgrind: the same on every run, where seconds are not.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use clap::Args;
use quilt_client::Client;
use quilt_manager::Manager;
use quilt_net::Handle;
use quilt_protocol::message::Identity;
use quilt_protocol::version::SPOKEN;
use quilt_protocol::{
    Address, Encoding, Event, FleetId, Hello, Limits, Outcome, RequestHead, Session, Terms, Welcome, codec,
};
use serde_json::json;
use tokio::runtime::Runtime;
use tokio::sync::watch;

use crate::all::apply;
use crate::part;
use crate::swarm::Light;

/// How far a count may be from the figure that is checked in.
const TOLERANCE: f64 = 0.1;

/// Arguments of `micro`.
#[derive(Args)]
pub(crate) struct Micro {
    /// Fail if a count is more than 10% above the one in this file
    #[arg(long, value_name = "FILE")]
    check: Option<PathBuf>,
    /// Write the counts to this file
    #[arg(long, value_name = "FILE", conflicts_with = "check")]
    write: Option<PathBuf>,
}

impl Micro {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let mut counts = BTreeMap::new();
        for piece in PIECES {
            counts.insert(piece.name.to_owned(), count(&piece)?);
        }
        for (name, count) in &counts {
            println!("{name:<16} {count:>8} instructions");
        }
        if let Some(file) = self.write {
            let lines: String = counts.iter().map(|(name, count)| format!("{name} {count}\n")).collect();
            std::fs::write(file, lines)?;
        }
        let Some(file) = self.check else { return Ok(()) };
        let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        let mut worse = Vec::new();
        for (name, count) in counts {
            let known = text.lines().find_map(|line| line.strip_prefix(&name)?.trim().parse::<u64>().ok());
            let known = known.with_context(|| format!("{} has no figure for {name}", file.display()))?;
            if count as f64 > known as f64 * (1.0 + TOLERANCE) {
                worse.push(format!("{name} takes {count} instructions, {known} are checked in"));
            }
        }
        let hint = "make it cheaper, or say in the commit why it is worth it and write the figures anew with --write";
        anyhow::ensure!(worse.is_empty(), "{}; {hint}", worse.join("; "));
        Ok(())
    }
}

/// Counts the instructions of one piece, in a process of its own under callgrind.
fn count(Named { name, times, each, .. }: &Named) -> anyhow::Result<u64> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "--collect-atstart=no"])
        .arg("--toggle-collect=quilt_bench::micro::counted*")
        .arg(std::env::current_exe()?)
        .args(["piece", name])
        .output()
        .context("valgrind, from the distribution's package")?;
    let text = String::from_utf8_lossy(&output.stderr);
    let collected = text.lines().find_map(|line| line.split_once("Collected :")?.1.trim().parse::<u64>().ok());
    let collected = collected.filter(|count| *count > 0 && output.status.success());
    let collected = collected.with_context(|| format!("callgrind counted nothing of {name}: {text}"))?;
    Ok(collected / u64::from(times * each))
}

/// Does one piece so often that it is counted.
pub(crate) fn piece(name: &str) -> anyhow::Result<()> {
    let Named { make, times, .. } = PIECES.iter().find(|known| known.name == name).context("there is no such piece")?;
    let mut piece = make();
    // What is allocated once, or looked up once, is not counted.
    for _ in 0..10 {
        piece();
    }
    counted(&mut *piece, *times);
    Ok(())
}

#[inline(never)]
fn counted(piece: &mut dyn FnMut(), times: u32) {
    for _ in 0..times {
        piece();
    }
}

type Piece = Box<dyn FnMut()>;

struct Named {
    name: &'static str,
    make: fn() -> Piece,
    /// How often it is done while instructions are counted.
    times: u32,
    /// For how many at a time: what is shown is for one.
    each: u32,
}

/// In a fleet's pieces every station is in the manager's process, both sides are counted, and what the store's thread does is not.
const PIECES: [Named; 7] = [
    Named { name: "head-encode", make: head_encode, times: 200, each: 1 },
    Named { name: "head-decode", make: head_decode, times: 200, each: 1 },
    Named { name: "session-call", make: session_call, times: 200, each: 1 },
    Named { name: "session-busy", make: session_busy, times: 10, each: BUSY as u32 },
    Named { name: "fleet-register", make: fleet_register, times: 200, each: 1 },
    Named { name: "fleet-push", make: fleet_push, times: 10, each: STATIONS as u32 },
    Named { name: "fleet-select", make: fleet_select, times: 10, each: STATIONS as u32 },
];

/// How many stations a fleet's pieces have.
const STATIONS: usize = 200;

/// A station comes, with full facts.
fn fleet_register() -> Piece {
    let mut fleet = Fleet::new();
    Box::new(move || fleet.register(1))
}

/// A changed configuration for every station: planned, stored, pushed, accepted.
fn fleet_push() -> Piece {
    let mut fleet = Fleet::new();
    fleet.register(STATIONS);
    let mut round = 0;
    Box::new(move || {
        round += 1;
        fleet.push(round);
    })
}

/// One station found among all.
fn fleet_select() -> Piece {
    let mut fleet = Fleet::new();
    fleet.register(STATIONS);
    Box::new(move || {
        let listed = fleet.runtime.block_on(fleet.client.stations("swarm=yes and name=swarm-77"));
        assert_eq!(black_box(listed.expect("it answers")).len(), 1);
    })
}

fn head() -> RequestHead {
    let to = "bench-0/echo/main".parse::<Address>().expect("it is one");
    RequestHead::new(Terms { encoding: Encoding::Bincode, fingerprint: [7; 16], ..Terms::new(to, "Bench:echo") })
}

/// A request's head and body of 84 bytes into a frame.
fn head_encode() -> Piece {
    let message = quilt_protocol::Message::request(1029, &head(), 84);
    let mut out = Vec::with_capacity(1024);
    Box::new(move || {
        out.clear();
        codec::put_frame(&mut out, black_box(&message), &[7; 84]);
    })
}

/// The same out of a frame.
fn head_decode() -> Piece {
    let message = quilt_protocol::Message::request(1029, &head(), 84);
    let mut out = Vec::new();
    codec::put_frame(&mut out, &message, &[7; 84]);
    Box::new(move || {
        let read = codec::read_frame(black_box(&out[codec::LENGTH_BYTES..]), false);
        black_box(read.expect("it was written above"));
    })
}

/// How many calls a busy session has under way.
const BUSY: usize = 64;

/// A call from one session to another and its answer back: both sides, without a socket.
fn session_call() -> Piece {
    session_calls(1)
}

/// The same for one of many at a time.
fn session_busy() -> Piece {
    session_calls(BUSY)
}

fn session_calls(at_a_time: usize) -> Piece {
    let now = Instant::now();
    let hello = Hello {
        versions: SPOKEN,
        software: "bench".into(),
        fleet: None,
        identity: Identity::Tool("bench".parse().expect("a fixed name is a name")),
        features: Vec::new(),
        extensions: Default::default(),
    };
    let mut asker = Session::open(hello, Limits::default(), now);
    let mut server = Session::answer(Limits::default(), now);
    let pass = move |from: &mut Session, to: &mut Session| {
        let bytes = from.poll_transmit().concat();
        from.transmitted(bytes.len());
        to.handle_bytes(&bytes.into(), now);
    };
    pass(&mut asker, &mut server);
    server.poll_event().expect("the greeting");
    let welcome = Welcome {
        version: 0,
        software: "bench".into(),
        fleet: FleetId(uuid::Uuid::nil()),
        assigned: None,
        heartbeat_ms: 5000,
        features: Vec::new(),
        extensions: Default::default(),
    };
    server.accept(welcome, 0, "tool:bench".into(), now + Duration::ZERO);
    pass(&mut server, &mut asker);
    asker.poll_event().expect("the welcome");
    let (head, body) = (head(), Bytes::from_static(&[7; 84]));
    Box::new(move || {
        for _ in 0..at_a_time {
            asker.request(black_box(&head), body.clone(), now).expect("it is established");
        }
        pass(&mut asker, &mut server);
        while let Some(event) = server.poll_event() {
            let Event::Request(number, _, body) = event else { panic!("no request") };
            server.respond(number, Outcome::Reply, Encoding::Bincode, body.pass_on());
        }
        pass(&mut server, &mut asker);
        for _ in 0..at_a_time {
            black_box(asker.poll_event().expect("an answer"));
        }
    })
}

/// A manager and light stations, without sockets between them.
struct Fleet {
    runtime: Runtime,
    manager: Manager,
    client: Client,
    sessions: Vec<Handle>,
    answered: watch::Sender<usize>,
    _folder: tempfile::TempDir,
}

impl Fleet {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let (manager, client, folder) = runtime.block_on(async {
            let (manager, folder) = part::host().await.expect("a manager");
            let client = Client::connect(&manager.protocol_addr().to_string(), "bench").await.expect("it listens");
            (manager, client, folder)
        });
        Self { runtime, manager, client, sessions: Vec::new(), answered: watch::Sender::new(0), _folder: folder }
    }

    fn register(&mut self, count: usize) {
        for _ in 0..count {
            let (ours, theirs) = tokio::io::duplex(16 << 10);
            let light = Light::new(self.sessions.len(), None, self.answered.clone());
            let registering = async {
                self.manager.take(theirs);
                light.register(ours).await
            };
            self.sessions.push(self.runtime.block_on(registering).expect("it is taken"));
        }
    }

    fn push(&mut self, round: usize) {
        let config = json!({ "start": round, "padding": "x".repeat(900) });
        let fleet = json!({ "group": { "all": { "match": "swarm=yes", "roles": { "counter": { "main": config } } } } });
        let mut answers = self.answered.subscribe();
        let before = *answers.borrow_and_update();
        self.runtime.block_on(async {
            apply(&self.client, fleet).await.expect("it is stored");
            let all = before + self.sessions.len();
            answers.wait_for(|answers| *answers >= all).await.expect("they are there");
        });
    }
}
