//! What is large costs the manager memory in proportion, and holds up nobody else.

use std::sync::Arc;
use std::time::{Duration, Instant};

use quilt_client::control::{Apply, FleetFile};
use quilt_net::{BoxFuture, Handle, Inbound, NoService, Service};
use quilt_protocol::control::{Empty, Facts, Plan, Registered, Registration, UpdateConfiguration, Verdict, command};
use quilt_protocol::message::{Address, Identity, Refusal};
use quilt_protocol::session::Closed;
use quilt_protocol::version::SPOKEN;
use quilt_protocol::{Encoding, Hello, Labels, Outcome, StationId, Welcome};
use quilt_tests::World;
use smol_str::SmolStr;
use tokio::net::TcpStream;

const TIME: Duration = Duration::from_secs(60);

/// The most memory that a process had so far, in bytes.
fn peak(pid: u32) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() << 10
}

/// A station that accepts everything and runs nothing.
struct Light;

impl Service for Light {
    fn hello(&self, hello: Hello) -> Result<(Welcome, SmolStr), Refusal> {
        NoService.hello(hello)
    }

    fn request(&self, inbound: Inbound) -> BoxFuture<'static, ()> {
        match inbound.head.terms.command.as_str() {
            command::PLAN => inbound.answer(|_: Plan| async { Ok(Verdict::Accepted) }),
            command::UPDATE_CONFIGURATION => {
                inbound.answer(|_: UpdateConfiguration<'static>| async { Ok(Verdict::Accepted) })
            }
            _ => inbound.answer(|_: Empty| async { Err::<(), _>((Outcome::NoCommand, String::new())) }),
        }
    }

    fn closed(&self, _: &Closed) {}
}

async fn light(world: &World, name: &str) -> Handle {
    let id = StationId::random();
    let hello = Hello {
        versions: SPOKEN,
        software: "light".into(),
        fleet: None,
        identity: Identity::Station(id),
        features: vec![],
        extensions: Default::default(),
    };
    let registration = Registration {
        id,
        wished_name: name.parse().unwrap(),
        facts: Facts::default(),
        labels: Labels::default(),
        roles: vec![],
        blocked: vec![],
        applied: None,
        applying: false,
        instances: vec![],
    };
    let stream = TcpStream::connect(&world.address).await.unwrap();
    let (session, _) = quilt_net::connect(stream, hello, Arc::new(Light)).await.unwrap();
    let to = Address::Manager;
    session.ask::<_, Registered>(to, command::REGISTER, Encoding::Bincode, &registration, TIME).await.unwrap();
    session
}

fn apply(fleet: serde_json::Value, dry_run: bool) -> Apply {
    let fleet: FleetFile = serde_json::from_value(fleet).unwrap();
    Apply { source: "f".into(), fleet, dry_run, force: false, wait: None, batch: None }
}

#[tokio::test]
async fn a_long_document_for_many_stations_lies_in_the_managers_memory_once() {
    const STATIONS: usize = 100;
    const DOCUMENT: usize = 1 << 20;
    let mut world = World::new().await;
    let mut sessions = Vec::new();
    for number in 0..STATIONS {
        sessions.push(light(&world, &format!("s{number}")).await);
    }
    let roles = serde_json::json!({ "counter": { "main": { "note": "x".repeat(DOCUMENT) } } });
    let apply = apply(serde_json::json!({ "group": { "all": { "match": "name=s*", "roles": roles } } }), false);
    let manager = world.manager().pid();
    let before = peak(manager);
    let client = world.client().await;
    let reply = client.apply(&apply).reply().await.unwrap();
    assert_eq!((reply.stored, reply.changes.len()), (true, STATIONS), "{:?}", reply.notes);
    world
        .eventually("all have it", async |world| {
            world.stations().await.iter().all(|view| view.applied_revision.is_some())
        })
        .await;
    let grown = peak(manager) - before;
    assert!(grown < STATIONS * DOCUMENT / 2, "{} MiB for one document of 1 MiB", grown >> 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_long_dry_run_holds_nobody_up_and_takes_memory_in_proportion() {
    const BODY: usize = 6 << 20;
    let mut world = World::new().await;
    let session = light(&world, "s1").await;
    let instance = |number: usize| {
        let env = serde_json::json!({ "A": "x".repeat(500), "B": "y" });
        (format!("i{number}"), serde_json::json!({ "command": ["sleep", "1000"], "env": env }))
    };
    let length = serde_json::to_string(&instance(10_000)).unwrap().len();
    let roles: serde_json::Map<_, _> = (0..BODY / length).map(instance).collect();
    let fleet = serde_json::json!({ "group": { "all": { "match": "name=s1", "roles": { "process": roles } } } });
    let apply = apply(fleet, true);
    let body = serde_json::to_string(&apply).unwrap().len();
    let manager = world.manager().pid();
    let before = peak(manager);
    let (client, other) = (world.client().await, world.client().await);
    let began = Instant::now();
    let dry_run = tokio::spawn(async move { client.apply(&apply).reply().await });
    // On a thread of its own: here, too, long texts are read and written meanwhile.
    let others = tokio::spawn(async move {
        let mut longest = Duration::ZERO;
        while !dry_run.is_finished() {
            let asked = Instant::now();
            other.clients().await.unwrap();
            longest = longest.max(asked.elapsed());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        (dry_run.await.unwrap().unwrap(), longest)
    });
    let (reply, longest) = others.await.unwrap();
    let took = began.elapsed();
    assert_eq!((reply.stored, reply.changes.len()), (false, 1), "{:?}", reply.notes);
    let grown = peak(manager) - before;
    println!("body {} KiB, grown {} KiB, took {took:?}, longest {longest:?}", body >> 10, grown >> 10);
    assert!(longest * 3 < took, "others waited for {longest:?} of {took:?}");
    assert!(grown < 5 * body, "{} KiB for a body of {} KiB", grown >> 10, body >> 10);
    assert!(!session.is_closed());
}
