//! Two peers that greet each other, without a link between them.
#![allow(dead_code, reason = "each test program uses some of it")]

use std::collections::BTreeMap;
use std::time::Instant;

use quilt_protocol::message::Identity;
use quilt_protocol::session::HEARTBEAT;
use quilt_protocol::version::SPOKEN;
use quilt_protocol::{FleetId, Hello, Limits, Session, Welcome};

pub(crate) fn hello() -> Hello {
    Hello {
        versions: SPOKEN,
        software: "test".into(),
        fleet: None,
        identity: Identity::Tool("tool".parse().unwrap()),
        features: vec![],
        extensions: BTreeMap::new(),
    }
}

pub(crate) fn welcome() -> Welcome {
    Welcome {
        version: 0,
        software: "test".into(),
        fleet: FleetId::random(),
        assigned: None,
        heartbeat_ms: HEARTBEAT.as_millis() as u32,
        features: vec![],
        extensions: BTreeMap::new(),
    }
}

/// Passes on at once what one has to write; how many bytes that was.
pub(crate) fn pass(from: &mut Session, to: &mut Session, now: Instant) -> usize {
    let bytes = from.poll_transmit().concat();
    let length = bytes.len();
    from.transmitted(length);
    to.handle_bytes(&bytes.into(), now);
    length
}

/// An opener and an acceptor that have greeted.
pub(crate) fn established(now: Instant) -> [Session; 2] {
    let mut opener = Session::open(hello(), Limits::default(), now);
    let mut acceptor = Session::answer(Limits::default(), now);
    pass(&mut opener, &mut acceptor, now);
    acceptor.accept(welcome(), SPOKEN.highest, "tool:test".into(), now);
    pass(&mut acceptor, &mut opener, now);
    while opener.poll_event().is_some() || acceptor.poll_event().is_some() {}
    [opener, acceptor]
}
