//! What is large costs the manager memory in proportion, and holds up nobody else.

use std::sync::Arc;
use std::time::Duration;

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
