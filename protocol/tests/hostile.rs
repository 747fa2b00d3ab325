//! Whatever bytes come, a session neither panics nor takes much memory.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod common;

use std::time::Instant;

use bytes::Bytes;
use proptest::prelude::*;
use quilt_protocol::codec::{from_bincode, put_frame, read_frame};
use quilt_protocol::control::{Registration, Report, UpdateConfiguration, Verdict};
use quilt_protocol::error::Violation;
use quilt_protocol::message::{Address, Identity};
use quilt_protocol::session::Closed;
use quilt_protocol::version::SPOKEN;
use quilt_protocol::{Encoding, Event, Hello, Limits, Message, Outcome, RequestHead, Session, Terms};

fn greeting() -> Vec<u8> {
    let hello = Hello {
        versions: SPOKEN,
        software: "x".into(),
        fleet: None,
        identity: Identity::Tool("x".parse().unwrap()),
        features: vec![],
        extensions: Default::default(),
    };
    let mut bytes = Vec::new();
    put_frame(&mut bytes, &Message::Hello(Box::new(hello)), &[]);
    bytes
}

#[test]
fn a_number_is_in_use_until_its_answer_is_written() {
    let now = Instant::now();
    let [_, mut answerer] = common::established(now);
    let mut asked = Vec::new();
    put_frame(&mut asked, &Message::request(5, &RequestHead::new(Terms::new(Address::Manager, "x")), 0), &[]);
    let asked = Bytes::from(asked);
    answerer.handle_bytes(&asked, now);
    assert!(matches!(answerer.poll_event(), Some(Event::Request(5, ..))));
    answerer.respond(5, Outcome::Reply, Encoding::Json, vec![0; 1 << 20].into());
    answerer.handle_bytes(&asked, now);
    let closed = answerer.poll_event();
    assert_eq!(closed, Some(Event::Closed(Closed::Violation(Violation::NumberInUse(5)))));
}

#[test]
fn a_peer_that_speaks_http_is_told_from_one_whose_frames_are_too_long() {
    for (bytes, violation) in [
        (&b"HTTP/1.1 400 Bad Request\r\n"[..], Violation::Http),
        (b"GET / HTTP/1.1\r\n", Violation::Http),
        (b"abcd", Violation::FrameTooLong { length: 0x6463_6261, limit: 16 << 10 }),
    ] {
        let now = Instant::now();
        let mut session = Session::answer(Limits::default(), now);
        session.handle_bytes(&Bytes::from_static(bytes), now);
        assert_eq!(session.poll_event(), Some(Event::Closed(Closed::Violation(violation))));
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic_a_session(bytes in proptest::collection::vec(any::<u8>(), 0..3000), cut in 0usize..3000) {
        for greet in [false, true] {
            let now = Instant::now();
            let mut session = Session::answer(Limits::default(), now);
            if greet {
                session.handle_bytes(&greeting().into(), now);
                let _ = session.poll_event();
            }
            let cut = cut.min(bytes.len());
            session.handle_bytes(&Bytes::copy_from_slice(&bytes[..cut]), now);
            session.handle_bytes(&Bytes::copy_from_slice(&bytes[cut..]), now);
            while session.poll_event().is_some() {}
        }
    }

    #[test]
    fn a_frame_changed_anywhere_is_read_or_refused(at in 0usize..200, value in any::<u8>()) {
        let mut bytes = greeting();
        let at = at % bytes.len();
        bytes[at] = value;
        let now = Instant::now();
        let mut session = Session::answer(Limits::default(), now);
        session.handle_bytes(&bytes.into(), now);
    }

    #[test]
    fn typed_bodies_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..500)) {
        let _ = from_bincode::<Registration>("x", &bytes);
        let _ = from_bincode::<Report>("x", &bytes);
        let _ = from_bincode::<UpdateConfiguration<'_>>("x", &bytes);
        let _ = from_bincode::<Verdict>("x", &bytes);
        let _ = read_frame(&bytes, false);
        let _ = read_frame(&bytes, true);
    }
}
