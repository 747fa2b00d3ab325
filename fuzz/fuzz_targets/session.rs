//! A whole session fed with arbitrary bytes after a proper greeting, in arbitrary pieces.
#![no_main]

use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use quilt_protocol::codec::put_frame;
use quilt_protocol::message::Identity;
use quilt_protocol::version::SPOKEN;
use quilt_protocol::{Encoding, Event, FleetId, Hello, Limits, Message, Outcome, Session, Welcome};

fuzz_target!(|data: (u8, Vec<Vec<u8>>)| {
    let (greet, parts) = data;
    let mut now = Instant::now();
    let mut session = Session::answer(Limits::default(), now);
    if greet > 20 {
        let hello = Hello {
            versions: SPOKEN,
            software: "fuzz".into(),
            fleet: None,
            identity: Identity::Tool("fuzz".parse().expect("a name")),
            features: vec![],
            extensions: Default::default(),
        };
        let mut bytes = Vec::new();
        put_frame(&mut bytes, &Message::Hello(Box::new(hello)), &[]);
        session.handle_bytes(&bytes.into(), now);
        let welcome = Welcome {
            version: 0,
            software: "fuzz".into(),
            fleet: FleetId::random(),
            assigned: None,
            heartbeat_ms: 5000,
            features: vec![],
            extensions: Default::default(),
        };
        session.accept(welcome, 0, "tool:fuzz".into(), now);
    }
    for part in parts {
        session.handle_bytes(&part.into(), now);
        while let Some(event) = session.poll_event() {
            if let Event::Request(number, _, body) = event {
                session.respond(number, Outcome::Reply, Encoding::Json, body.pass_on());
            }
        }
        let written = session.poll_transmit().concat().len();
        session.transmitted(written / 2);
        now += Duration::from_millis(u64::from(greet));
        session.handle_timeout(now);
    }
});
