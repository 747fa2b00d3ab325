//! What a request says of itself on the wire: all, or by a number what was said before.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod common;

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use common::pass;
use quilt_protocol::message::{Address, RequestNumber};
use quilt_protocol::{Encoding, Event, Outcome, RequestHead, Session, Terms};

/// Whoever asks, whoever answers, and the terms that all requests are on.
struct Peers {
    asker: Session,
    answerer: Session,
    terms: Arc<Terms>,
    now: Instant,
}

impl Peers {
    fn established() -> Self {
        let now = Instant::now();
        let [asker, answerer] = common::established(now);
        let terms = Arc::new(Terms::new(Address::Manager, "a_command_with_a_name_that_is_longer_than_all_else"));
        Self { asker, answerer, terms, now }
    }

    /// Asks so often at once; how many bytes that took.
    fn ask(&mut self, times: usize) -> usize {
        for _ in 0..times {
            let head = RequestHead { terms: self.terms.clone(), ..RequestHead::new(Terms::clone(&self.terms)) };
            self.asker.request(&head, Bytes::new(), self.now).unwrap();
        }
        pass(&mut self.asker, &mut self.answerer, self.now)
    }

    fn answer_all(&mut self) {
        let mut asked: Vec<RequestNumber> = Vec::new();
        while let Some(event) = self.answerer.poll_event() {
            if let Event::Request(number, head, _) = event {
                assert_eq!(head.terms.command, self.terms.command);
                asked.push(number);
            }
        }
        asked.iter().for_each(|number| self.answerer.respond(*number, Outcome::Reply, Encoding::Json, Bytes::new()));
        pass(&mut self.answerer, &mut self.asker, self.now);
        while self.asker.poll_event().is_some() {}
    }
}

#[test]
fn a_session_that_was_busy_says_its_terms_by_number_until_it_forgets_them() {
    let mut peers = Peers::established();
    let alone = peers.ask(1);
    peers.answer_all();
    peers.ask(32);
    peers.answer_all();
    let by_number = peers.ask(1);
    peers.answer_all();
    assert!(by_number + 50 < alone, "{by_number} bytes, {alone} when all is said");
    peers.asker.trim();
    assert!(peers.ask(1) < by_number + 8, "a session that is trimmed after each burst goes on");
    peers.answer_all();

    peers.asker.forget_terms();
    assert!(peers.ask(1) < by_number + 8, "it was busy since terms were last forgotten");
    peers.answer_all();
    peers.asker.forget_terms();
    // Not to the byte: numbers of requests grow.
    assert!(peers.ask(1) + 8 > alone, "and then all is said again");
    peers.answer_all();
}

#[test]
fn who_asks_one_at_a_time_but_often_says_terms_by_number_too() {
    let mut peers = Peers::established();
    let mut taken = Vec::new();
    for _ in 0..100 {
        taken.push(peers.ask(1));
        peers.answer_all();
    }
    assert!(taken[99] + 50 < taken[0], "{taken:?}");
    peers.asker.forget_terms();
    for _ in 0..3 {
        // Now and then is not often.
        peers.asker.forget_terms();
        assert!(peers.ask(1) + 8 > taken[0]);
        peers.answer_all();
    }
}
