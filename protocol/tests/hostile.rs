//! Whatever bytes come, a session neither panics nor takes much memory.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::time::Instant;

use bytes::Bytes;
use proptest::prelude::*;
use quilt_protocol::codec::{from_bincode, put_frame, read_frame};
use quilt_protocol::control::{Registration, Report, UpdateConfiguration, Verdict};
use quilt_protocol::message::Identity;
use quilt_protocol::version::SPOKEN;
use quilt_protocol::{Hello, Limits, Message, Session};

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
