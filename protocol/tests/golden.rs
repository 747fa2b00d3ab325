//! The wire, byte by byte: what a message looked like yesterday it looks like today.
//!
//! Until the first release the bytes may change in a commit that says why: `QUILT_GOLDEN=write cargo test -p
//! quilt-protocol --test golden` writes them anew. Afterwards a change is a new protocol version.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use quilt_protocol::codec::{from_bincode, put_frame, read_frame, to_bincode};
use quilt_protocol::control::{
    Applied, Facts, InstanceReport, Owner, Plan, Problem, ProblemCode, Registered, Registration, Rejection, Report,
    RoleOffer, State, StateChange, StationEvent, UpdateConfiguration, Verdict,
};
use quilt_protocol::message::{
    Address, BodyOf, Delivered, Encoding, Hello, Identity, Message, Outcome, Refusal, RequestHead, Said, Terms, Trace,
    Welcome,
};
use quilt_protocol::version::SPOKEN;
use quilt_protocol::{Digest, FleetId, MessageId, Revision, StationId};

const ID: &str = "0190a0b0-c0d0-7000-8000-0123456789ab";

fn head() -> RequestHead {
    RequestHead {
        message_id: MessageId(ID.parse().unwrap()),
        remaining_ms: 15_000,
        trace: Some(Box::new(Trace { trace_id: [1; 16], parent_id: [2; 8], flags: 1 })),
        terms: Arc::new(Terms {
            to: Address::Instance {
                station: "cam-1".parse().unwrap(),
                role: "counter".parse().unwrap(),
                instance: "main".parse().unwrap(),
            },
            command: "Counting:increment".into(),
            encoding: Encoding::Bincode,
            fingerprint: [7; 16],
            idempotent: true,
            credit: 0,
            principal: Some("tool:quiltctl".into()),
            extensions: BTreeMap::from([("x".to_owned(), vec![1, 2, 3])]),
        }),
    }
}

fn messages() -> Vec<(&'static str, Message, &'static [u8])> {
    let hello = Hello {
        versions: SPOKEN,
        software: "quilt-station 0.1.0".into(),
        fleet: Some(FleetId(ID.parse().unwrap())),
        identity: Identity::Station(StationId(ID.parse().unwrap())),
        features: vec!["streams".into()],
        extensions: BTreeMap::new(),
    };
    let tool = Hello { identity: Identity::Tool("quiltctl".parse().unwrap()), fleet: None, ..hello.clone() };
    let welcome = Welcome {
        version: 0,
        software: "quilt-manager 0.1.0".into(),
        fleet: FleetId(ID.parse().unwrap()),
        assigned: Some("quiltctl~2".parse().unwrap()),
        heartbeat_ms: 5000,
        features: vec![],
        extensions: BTreeMap::new(),
    };
    let refusal =
        Refusal { code: "version".into(), text: "too old".into(), versions: SPOKEN, extensions: BTreeMap::new() };
    let response = |outcome| Message::Response { number: 1029, outcome, encoding: Encoding::Json, body: 4 };
    let request = |terms| {
        let RequestHead { message_id, remaining_ms, .. } = head();
        Message::Request { number: 1030, message_id, remaining_ms, trace: None, terms, body: 4 }
    };
    vec![
        ("hello-station", Message::Hello(Box::new(hello)), b""),
        ("hello-tool", Message::Hello(Box::new(tool)), b""),
        ("welcome", Message::Welcome(Box::new(welcome)), b""),
        ("refusal", Message::Refusal(Box::new(refusal)), b""),
        ("request", Message::request(1029, &head(), 4), b"body"),
        ("request-kept", request(Said::Kept(7, head().terms)), b"body"),
        ("request-again", request(Said::Again(7)), b"body"),
        ("response-reply", response(Outcome::Reply), b"body"),
        ("response-peer-lost", response(Outcome::PeerLost(Delivered::Unknown)), b"body"),
        ("response-panicked", response(Outcome::Panicked), b"body"),
        ("cancel", Message::Cancel { number: 1029 }, b""),
        ("item", Message::Item { number: 1029, body: 4 }, b"body"),
        ("credit", Message::Credit { number: 1029, items: 64 }, b""),
        ("chunk-request", Message::Chunk { number: 1029, of: BodyOf::Request }, b"part"),
        ("chunk-answer", Message::Chunk { number: 1029, of: BodyOf::Answer }, b"part"),
        ("ping", Message::Ping { nonce: 7 }, b""),
        ("pong", Message::Pong { nonce: 7, interval_ms: 5000 }, b""),
        ("goodbye", Message::Goodbye { reason: "the station stops".into() }, b""),
    ]
}

fn golden(name: &str, bytes: &[u8]) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/{name}.hex"));
    let hex: String =
        bytes.chunks(32).map(|line| line.iter().map(|byte| format!("{byte:02x}")).collect::<String>() + "\n").collect();
    if std::env::var_os("QUILT_GOLDEN").is_some_and(|mode| mode == "write") {
        std::fs::write(&path, &hex).unwrap();
    }
    let known = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(known, hex, "{name} is not what it was on the wire; see the head of this file");
}

#[test]
fn every_message_has_its_golden_bytes_and_reads_back() {
    for (name, message, body) in messages() {
        let mut bytes = Vec::new();
        put_frame(&mut bytes, &message, body);
        golden(name, &bytes);
        let greeting = matches!(message, Message::Hello(_) | Message::Welcome(_) | Message::Refusal(_));
        assert_eq!(read_frame(&bytes[4..], greeting).unwrap(), (message, body), "{name}");
    }
}

#[test]
fn what_station_and_manager_say_to_each_other_has_its_golden_bytes() {
    let applied = Applied {
        fleet: FleetId(ID.parse().unwrap()),
        epoch: 3,
        revision: Revision(17),
        digest: Digest::of(b"document"),
    };
    let instance = InstanceReport {
        role: "process".parse().unwrap(),
        instance: "clock".parse().unwrap(),
        owner: Owner::Fleet,
        digest: Digest::of(b"instance"),
        state: State::Backoff,
        detail: "exit code 3".into(),
        pid: Some(4711),
        restarts: 2,
        since_ms: 1_700_000_000_000,
        attributes: BTreeMap::from([("value".to_owned(), "7".to_owned())]),
        held_back: None,
    };
    let registration = Registration {
        id: StationId(ID.parse().unwrap()),
        wished_name: "cam-1".parse().unwrap(),
        facts: Facts { hostname: "cam-1".into(), mac: Some("02:00:00:00:00:01".into()), ..Facts::default() },
        labels: [("room", "a")].into_iter().collect(),
        roles: vec![RoleOffer { role: "process".parse().unwrap(), version: "0.1.0".into(), instances: 0 }],
        blocked: vec!["counter".parse().unwrap()],
        applied: Some(applied),
        applying: false,
        instances: vec![instance.clone()],
    };
    let report = Report {
        applied: None,
        applying: true,
        changed: vec![instance],
        gone: vec![("a".parse().unwrap(), "b".parse().unwrap())],
        events: vec![
            StationEvent::State(Box::new(StateChange {
                role: "process".parse().unwrap(),
                instance: "clock".parse().unwrap(),
                state: State::Backoff,
                detail: "exit code 3".into(),
                at_ms: 1_700_000_000_000,
            })),
            StationEvent::Gone("a".parse().unwrap(), "b".parse().unwrap()),
            StationEvent::Applied,
        ],
        roles: None,
        remarks: Some(vec!["roles.d/a.toml:1:1".into()]),
    };
    let problem = Problem {
        code: ProblemCode::RoleBlocked,
        station: "cam-1".into(),
        role: "counter".into(),
        instance: Some("main".into()),
        key: None,
        expected: "x".into(),
        got: "y".into(),
    };
    macro_rules! check {
        ($name:literal, $type:ty, $value:expr) => {
            let value: $type = $value;
            let bytes = to_bincode($name, &value).unwrap();
            golden($name, &bytes);
            assert_eq!(from_bincode::<$type>($name, &bytes).unwrap(), value);
        };
    }
    check!("registration", Registration, registration);
    check!(
        "registered",
        Registered,
        Registered { name: "cam-1~2".parse().unwrap(), adopted: true, notes: vec!["taken".into()] }
    );
    check!("report", Report, report);
    check!(
        "update-configuration",
        UpdateConfiguration<'_>,
        UpdateConfiguration { offer: applied, document: "{\"roles\":{}}".into() }
    );
    check!("plan", Plan, Plan { document: "{\"roles\":{}}".into() });
    check!("verdict-unchanged", Verdict, Verdict::Unchanged);
    check!("verdict-rejected", Verdict, Verdict::Rejected(Box::new(Rejection::new(vec![problem]))));
}
