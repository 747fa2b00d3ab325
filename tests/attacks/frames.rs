//! Valid messages with flipped, missing and repeated bytes.

use std::time::Duration;

use quilt_protocol::codec::put_frame;
use quilt_protocol::message::{Address, Identity};
use quilt_protocol::version::SPOKEN;
use quilt_protocol::{Hello, Message, RequestHead, Terms};
use quilt_role_counter::api::Increment;
use quilt_tests::{Fleet, World};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::churn::resident_kib;

/// How many mutated messages one connection carries at most: it is cut at the first that is no message.
const PER_CONNECTION: usize = 16;
/// How long a connection may take to be answered or cut.
const PATIENCE: Duration = Duration::from_secs(20);

/// Sends so many mutated messages. The manager lives on, answers others meanwhile, and gives memory back.
pub(crate) async fn run(seed: u64, messages: usize) -> String {
    let mut world = World::new().await;
    world.station("s0", &[]).await;
    world.apply(Fleet::new().with("s0/counter/main", "").text()).await.with_code(0);
    let client = world.client().await;
    let pid = world.manager().pid();
    let mut random = StdRng::seed_from_u64(seed);
    let (hello, valid) = (hello(), valid());
    let (mut sent, mut before) = (0, 0);
    while sent < messages {
        let mut bytes = hello.clone();
        for _ in 0..PER_CONNECTION {
            let message = &valid[random.random_range(0..valid.len())];
            bytes.extend(mutated(message, &mut random));
            sent += 1;
        }
        send(&world.address, &bytes).await;
        if sent % (PER_CONNECTION * 100) == 0 {
            let answer = client.call("s0/counter/main", &Increment { by: 1 }).await;
            assert!(answer.is_ok(), "after {sent} messages from seed {seed} others are not answered: {answer:?}");
        }
        if before == 0 && sent > messages / 4 {
            before = resident_kib(pid);
        }
    }
    let after = resident_kib(pid);
    assert!(after < before + 8 * 1024, "memory grew from {before} to {after} KiB");
    assert_eq!(world.manager().pid(), pid);
    format!("{sent} mutated messages, memory {before} then {after} KiB")
}

fn hello() -> Vec<u8> {
    let mut bytes = Vec::new();
    let hello = Hello {
        versions: SPOKEN,
        software: "attack".into(),
        fleet: None,
        identity: Identity::Tool("attack".parse().unwrap()),
        features: vec![],
        extensions: Default::default(),
    };
    put_frame(&mut bytes, &Message::Hello(Box::new(hello)), &[]);
    bytes
}

/// Messages that a tool may send.
fn valid() -> Vec<Vec<u8>> {
    let instance = "s0/counter/main".parse().unwrap();
    let asked = [
        (Address::Manager, "quilt:stations", &b"{}"[..]),
        (Address::Manager, "quilt:history", br#"{"station":"s0"}"#),
        (Address::Manager, "quilt:apply", br#"{"source":"x","fleet":{"station":{}},"dry_run":true}"#),
        (instance, "increment", br#"{"by":0}"#),
    ];
    let frames = asked.into_iter().enumerate().map(|(number, (to, command, body))| {
        let mut bytes = Vec::new();
        let head = RequestHead::new(Terms::new(to, command));
        put_frame(&mut bytes, &Message::request(number as u64, &head, body.len() as u32), body);
        bytes
    });
    frames.collect()
}

/// A message with one to four of its bytes or pieces changed.
fn mutated(message: &[u8], random: &mut StdRng) -> Vec<u8> {
    let mut bytes = message.to_vec();
    for _ in 0..random.random_range(1..5) {
        let at = random.random_range(0..bytes.len());
        match random.random_range(0..5) {
            0 => bytes[at] ^= 1 << random.random_range(0..8),
            1 => bytes[at] = random.random(),
            2 => drop(bytes.remove(at)),
            3 => bytes.insert(at, random.random()),
            _ => {
                let piece = bytes[at..].to_vec();
                bytes.extend(piece);
            }
        }
        if bytes.is_empty() {
            bytes.push(0);
        }
    }
    bytes
}

/// Sends bytes and reads what comes until the manager has had its say.
async fn send(address: &str, bytes: &[u8]) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // Cut in the middle of writing is cut all the same.
    let _ = stream.write_all(bytes).await;
    let _ = stream.shutdown().await;
    let mut rest = Vec::new();
    let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await;
    assert!(read.is_ok(), "a connection whose other end is closed stays open");
}
