//! Two peers over a simulated link, with a clock moved by hand: delay, bytes cut into pieces, loss of the connection.
//!
//! Each property runs over many seeds; a failing one is printed with the assertion.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]
#![allow(clippy::needless_range_loop, reason = "a side indexes several arrays at once")]

mod common;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::{hello, welcome};
use quilt_protocol::codec::{HEADER_MAX, LENGTH_BYTES, put_frame};
use quilt_protocol::error::Violation;
use quilt_protocol::message::{Address, Delivered, Refusal, RequestNumber};
use quilt_protocol::session::{Budget, Closed, HEARTBEAT, IN_FLIGHT_MAX, MISSED_MAX};
use quilt_protocol::version::{SPOKEN, Versions};
use quilt_protocol::{Encoding, Event, Hello, Limits, Message, Outcome, RequestHead, Session, Terms};

/// A small random number generator; a dependency for this would be a crate for ten lines.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// Bytes on their way, with the time they arrive.
type Wire = VecDeque<(Instant, Vec<u8>)>;

/// Two peers and the link between them. Side 0 opened the connection.
struct Pair {
    sides: [Session; 2],
    wires: [Wire; 2],
    now: Instant,
    random: Random,
    delay: Duration,
    events: [Vec<Event>; 2],
}

fn head(remaining_ms: u32) -> RequestHead {
    RequestHead { remaining_ms, ..RequestHead::new(Terms::new(Address::Manager, "x")) }
}

impl Pair {
    fn new(seed: u64) -> Self {
        let now = Instant::now();
        Self {
            sides: [Session::open(hello(), Limits::default(), now), Session::answer(Limits::default(), now)],
            wires: [Wire::new(), Wire::new()],
            now,
            random: Random(seed * 2 + 1),
            delay: Duration::from_millis(5),
            events: [Vec::new(), Vec::new()],
        }
    }

    fn established(seed: u64) -> Self {
        let mut pair = Self::new(seed);
        pair.run(Duration::from_millis(100));
        assert!(pair.sides.iter().all(Session::is_established), "seed {seed}");
        pair.events = [Vec::new(), Vec::new()];
        pair
    }

    /// Moves what is written onto the wires, in pieces of any size, each with its delay.
    fn transmit(&mut self) {
        for side in 0..2 {
            loop {
                let bytes = self.sides[side].poll_transmit().concat();
                if bytes.is_empty() {
                    break;
                }
                let count = 1 + self.random.below(bytes.len() as u64) as usize;
                let part = bytes[..count].to_vec();
                self.sides[side].transmitted(count);
                let jitter = Duration::from_micros(self.random.below(1000));
                // A connection keeps the order of bytes.
                let arrives =
                    (self.now + self.delay + jitter).max(self.wires[side].back().map_or(self.now, |(at, _)| *at));
                self.wires[side].push_back((arrives, part));
            }
        }
    }

    fn deliver(&mut self) {
        for side in 0..2 {
            while self.wires[side].front().is_some_and(|(at, _)| *at <= self.now) {
                let (_, bytes) = self.wires[side].pop_front().unwrap();
                self.sides[1 - side].handle_bytes(&bytes.into(), self.now);
            }
        }
    }

    fn events(&mut self) {
        for side in 0..2 {
            while let Some(event) = self.sides[side].poll_event() {
                if let Event::Hello(_) = event {
                    self.sides[side].accept(welcome(), 0, "tool:test".into(), self.now);
                }
                self.events[side].push(event);
            }
        }
    }

    /// Lets time pass, from one thing that is due to the next.
    fn run(&mut self, time: Duration) {
        let until = self.now + time;
        loop {
            self.transmit();
            self.deliver();
            self.events();
            let wires = self.wires.iter().filter_map(|wire| wire.front().map(|(at, _)| *at));
            let timers = self.sides.iter().filter_map(Session::poll_timeout);
            let Some(next) = wires.chain(timers).min().filter(|next| *next <= until) else { break };
            self.now = self.now.max(next);
            self.deliver();
            for side in &mut self.sides {
                side.handle_timeout(self.now);
            }
            self.events();
        }
        self.now = until;
    }

    fn ask(&mut self, side: usize, remaining_ms: u32, body: usize) -> RequestNumber {
        let body = Bytes::from(vec![7; body]);
        self.sides[side].request(&head(remaining_ms), body, self.now).unwrap()
    }

    fn take(&mut self, side: usize) -> Vec<Event> {
        std::mem::take(&mut self.events[side])
    }

    fn outcomes(&self, side: usize) -> Vec<(RequestNumber, Outcome)> {
        let answered = self.events[side].iter().filter_map(|event| match event {
            Event::Answered(number, outcome, ..) => Some((*number, *outcome)),
            _ => None,
        });
        answered.collect()
    }
}

#[test]
fn every_request_ends_exactly_once_whatever_happens_to_the_link() {
    for seed in 0..200 {
        let mut pair = Pair::established(seed);
        let (mut asked, mut ended) = ([BTreeSet::new(), BTreeSet::new()], [BTreeSet::new(), BTreeSet::new()]);
        for _ in 0..60 {
            for side in 0..2 {
                if pair.random.below(2) == 0 && pair.sides[side].is_established() {
                    let body = [0, 100, 5000, 300_000][pair.random.below(4) as usize];
                    let time = [5, 50, 15_000][pair.random.below(3) as usize];
                    asked[side].insert(pair.ask(side, time, body));
                }
            }
            let pause = Duration::from_millis(pair.random.below(8));
            pair.run(pause);
            for side in 0..2 {
                for event in pair.take(side) {
                    match event {
                        Event::Request(number, _, body) => match pair.random.below(5) {
                            0 => {} // never answered: it has to time out
                            1 => pair.sides[side].respond(number, Outcome::Error, Encoding::Json, body.pass_on()),
                            _ => pair.sides[side].respond(number, Outcome::Reply, Encoding::Json, body.pass_on()),
                        },
                        Event::Answered(number, ..) => {
                            assert!(ended[side].insert(number), "seed {seed}: request {number} ended twice");
                        }
                        _ => {}
                    }
                }
            }
            if pair.random.below(120) == 0 {
                // The cable is pulled: what is on the wire is lost.
                pair.wires = [Wire::new(), Wire::new()];
                pair.sides.iter_mut().for_each(|side| side.handle_end("pulled"));
            }
        }
        pair.run(Duration::from_secs(20));
        for side in 0..2 {
            ended[side].extend(pair.outcomes(side).into_iter().map(|(number, _)| number));
            assert_eq!(ended[side], asked[side], "seed {seed}: side {side} has requests without an end");
            assert_eq!(pair.sides[side].in_flight().0, 0, "seed {seed}");
        }
    }
}

#[test]
fn every_request_arrives_on_its_own_terms_whichever_were_said_before() {
    for seed in 0..50 {
        let mut pair = Pair::established(seed);
        let mut under_way = Vec::new();
        for _ in 0..500 {
            // More of them than are kept, some that wait for their turn, and some that are given up before it.
            let command = format!("command-{}", pair.random.below(100));
            let mut body = vec![0; [0, 100, 300_000][pair.random.below(3) as usize]];
            body.splice(0..0, command.bytes());
            let head = RequestHead::new(Terms::new(Address::Manager, command));
            match pair.sides[0].request(&head, body.into(), pair.now) {
                Ok(number) => under_way.push(number),
                Err(error) => assert_eq!(error.0, Outcome::Overloaded),
            }
            if pair.random.below(4) == 0 {
                let given_up = pair.random.below(under_way.len() as u64) as usize;
                pair.sides[0].cancel(under_way.swap_remove(given_up));
            }
            let pause = Duration::from_millis(pair.random.below(3));
            pair.run(pause);
            for event in pair.take(1) {
                let Event::Request(number, head, body) = event else { continue };
                let RequestHead { terms, .. } = head;
                let meant = body.iter().take_while(|byte| **byte != 0).copied().collect::<Vec<_>>();
                assert_eq!(terms.command.as_bytes(), meant, "seed {seed}");
                assert_eq!(terms.principal.as_deref(), Some("tool:test"));
                if pair.random.below(2) == 0 {
                    pair.sides[1].respond(number, Outcome::Reply, Encoding::Json, Bytes::new());
                }
            }
        }
        assert!(pair.sides.iter().all(Session::is_established), "seed {seed}: {:?}", pair.events);
    }
}

#[test]
fn large_bodies_arrive_whole_and_in_order_beside_small_ones() {
    for seed in 0..20 {
        let mut pair = Pair::established(seed);
        let sizes = [1, 70_000, 4096, 4097, 1_000_000, 0, 65_536, 3];
        let numbers: Vec<_> = sizes.iter().map(|size| pair.ask(0, 15_000, *size)).collect();
        pair.run(Duration::from_secs(1));
        let mut arrived = BTreeMap::new();
        for event in pair.take(1) {
            if let Event::Request(number, _, body) = event {
                assert!(body.iter().all(|byte| *byte == 7));
                arrived.insert(number, body.len());
            }
        }
        assert_eq!(numbers.iter().map(|number| arrived[number]).collect::<Vec<_>>(), sizes, "seed {seed}");
    }
}

#[test]
fn an_answer_after_the_deadline_is_late_not_wrong() {
    let mut pair = Pair::established(1);
    let number = pair.ask(0, 8, 10);
    pair.run(Duration::from_millis(6));
    let served = pair.take(1);
    assert!(matches!(served[..], [Event::Request(..)]), "{served:?}");
    // The answer leaves in time and arrives after it.
    pair.sides[1].respond(number, Outcome::Reply, Encoding::Json, Bytes::from_static(b"late"));
    pair.run(Duration::from_millis(50));
    assert_eq!(pair.outcomes(0), [(number, Outcome::TimedOut)]);
    assert_eq!(pair.sides[0].counters().late, 1);
    assert!(pair.sides.iter().all(Session::is_established));
}

#[test]
fn both_sides_give_up_on_a_request_whose_time_is_over() {
    let mut pair = Pair::established(2);
    let number = pair.ask(0, 100, 10);
    pair.run(Duration::from_millis(200));
    assert_eq!(pair.outcomes(0), [(number, Outcome::TimedOut)]);
    assert!(pair.events[1].contains(&Event::Cancelled(number)), "the handler is not told");
    assert_eq!(pair.sides[1].in_flight(), (0, 0));
}

#[test]
fn a_silent_peer_is_lost_after_three_heartbeats_and_a_live_one_never() {
    let mut pair = Pair::established(3);
    pair.run(Duration::from_secs(3600));
    assert!(pair.sides.iter().all(Session::is_established), "an idle session ended by itself");
    let cut = pair.now;
    while pair.now < cut + HEARTBEAT * (MISSED_MAX + 1) {
        // Written, and never arriving: a half-open link.
        pair.wires = [Wire::new(), Wire::new()];
        pair.run(Duration::from_millis(1));
    }
    for side in 0..2 {
        assert!(pair.events[side].iter().any(|event| matches!(event, Event::Closed(Closed::Silent(_)))), "side {side}");
    }
}

#[test]
fn a_side_that_stood_still_itself_gives_its_peer_one_more_heartbeat() {
    for side in 0..2 {
        let mut pair = Pair::established(3);
        // As when its container was paused, or its machine had no time for it.
        pair.now += Duration::from_secs(3600);
        let now = pair.now;
        pair.sides[side].handle_timeout(now);
        assert!(pair.sides[side].is_established(), "side {side} took the hour for its peer's");
        pair.run(Duration::from_secs(60));
        assert!(
            pair.sides.iter().all(Session::is_established),
            "side {side} and its peer did not find each other again"
        );

        let mut pair = Pair::established(3);
        pair.now += Duration::from_secs(3600);
        let now = pair.now;
        pair.sides[side].handle_timeout(now);
        pair.sides[side].handle_timeout(now + HEARTBEAT);
        assert!(!pair.sides[side].is_established(), "side {side} waits for ever");
    }
}

#[test]
fn the_acceptor_sets_the_pace_of_heartbeats_without_losing_anybody() {
    let mut pair = Pair::established(4);
    for seconds in [60, 5, 20, 1, 300] {
        pair.sides[1].set_heartbeat(Duration::from_secs(seconds));
        pair.run(Duration::from_secs(1000));
        assert!(pair.sides.iter().all(Session::is_established), "lost at a pace of {seconds} s");
    }
    // A ping from the acceptor does not change the pace.
    pair.sides[1].ping();
    pair.run(Duration::from_secs(2000));
    assert!(pair.sides.iter().all(Session::is_established));
}

#[test]
fn what_was_not_written_when_the_link_broke_was_certainly_not_delivered() {
    let mut pair = Pair::established(5);
    let sent = pair.ask(0, 15_000, 10);
    pair.transmit();
    let kept = pair.ask(0, 15_000, 10);
    let large = pair.ask(0, 15_000, 100_000);
    pair.sides[0].handle_end("pulled");
    pair.events();
    let mut outcomes = pair.outcomes(0);
    outcomes.sort_by_key(|(number, _)| *number);
    let lost = |number, delivered| (number, Outcome::PeerLost(delivered));
    assert_eq!(outcomes, [lost(sent, Delivered::Unknown), lost(kept, Delivered::No), lost(large, Delivered::No)]);
    assert!(!pair.sides[0].has_transmit(), "what is said to be undelivered leaves all the same");
}

#[test]
fn limits_are_answered_and_the_session_lives() {
    let mut pair = Pair::established(6);
    let numbers: Vec<_> = (0..IN_FLIGHT_MAX).map(|_| pair.ask(0, 15_000, 0)).collect();
    let error = pair.sides[0].request(&head(15_000), Bytes::new(), pair.now).unwrap_err();
    assert_eq!(error.0, Outcome::Overloaded);
    pair.sides[0].cancel(numbers[3]);
    pair.ask(0, 15_000, 0);
    let mut long = head(15_000);
    Arc::make_mut(&mut long.terms).command = "x".repeat(257).into();
    assert_eq!(pair.sides[1].request(&long, Bytes::new(), pair.now).unwrap_err().0, Outcome::Refused);
    pair.run(Duration::from_millis(100));
    assert!(pair.sides.iter().all(Session::is_established));
}

#[test]
fn replies_that_nobody_reads_are_bounded() {
    let mut pair = Pair::established(7);
    let mut answered = 0;
    // The asker's wire is delivered, the answers' is not: it does not read.
    for _ in 0..400 {
        let now = pair.now;
        let number = pair.sides[0].request(&head(15_000), Bytes::new(), now);
        let Ok(_) = number else { break };
        let bytes = pair.sides[0].poll_transmit().concat();
        pair.sides[0].transmitted(bytes.len());
        pair.sides[1].handle_bytes(&bytes.into(), now);
        while let Some(event) = pair.sides[1].poll_event() {
            if let Event::Request(number, ..) = event {
                pair.sides[1].respond(number, Outcome::Reply, Encoding::Json, Bytes::from(vec![0; 1 << 20]));
                answered += 1;
            }
        }
    }
    assert!(answered <= 129, "{answered} replies of 1 MiB wait for a peer that does not read");
    assert!(pair.sides[1].counters().overloaded > 0);
}

#[test]
fn announced_bodies_count_against_the_limit_before_they_arrive() {
    let mut pair = Pair::established(8);
    let now = pair.now;
    let mut bytes = Vec::new();
    for number in 0..8 {
        let message = quilt_protocol::Message::request(number, &head(15_000), 60 << 20);
        quilt_protocol::codec::put_frame(&mut bytes, &message, &[1]);
    }
    pair.sides[1].handle_bytes(&bytes.into(), now);
    assert_eq!(pair.sides[1].counters().overloaded, 6, "128 MiB hold two bodies of 60");
    assert!(pair.sides[1].is_established());
}

#[test]
fn a_body_that_drips_in_loses_its_place() {
    let mut pair = Pair::established(9);
    let now = pair.now;
    let mut bytes = Vec::new();
    let mut head = head(quilt_protocol::message::NO_DEADLINE);
    Arc::make_mut(&mut head.terms).credit = 1;
    let message = quilt_protocol::Message::request(5, &head, 100_000);
    quilt_protocol::codec::put_frame(&mut bytes, &message, &[1]);
    pair.sides[1].handle_bytes(&bytes.into(), now);
    assert_eq!(pair.sides[1].in_flight(), (0, 1));
    pair.run(Duration::from_secs(14));
    assert_eq!(pair.sides[1].in_flight(), (0, 0), "half a request holds its place for ever");
}

#[test]
fn a_frame_that_drips_in_ends_the_session() {
    let mut pair = Pair::established(10);
    pair.sides[1].handle_bytes(&Bytes::from_static(&[0, 0, 8, 0]), pair.now);
    for _ in 0..60 {
        // A byte a second shows life, and never completes anything.
        pair.sides[1].handle_bytes(&Bytes::from_static(&[1]), pair.now);
        pair.run(Duration::from_secs(1));
    }
    let cut = |event: &Event| matches!(event, Event::Closed(Closed::Violation(Violation::SlowFrame)));
    assert!(pair.events[1].iter().any(cut), "{:?}", pair.events[1]);
}

#[test]
fn streams_stop_at_their_credit_and_go_on_with_more() {
    let mut pair = Pair::established(11);
    let mut stream = head(15_000);
    Arc::make_mut(&mut stream.terms).credit = 2;
    let number = pair.sides[0].request(&stream, Bytes::new(), pair.now).unwrap();
    pair.run(Duration::from_millis(50));
    let item = || Bytes::from_static(b"item");
    assert_eq!(pair.sides[1].credit(number), Some(2));
    pair.sides[1].item(number, item()).unwrap();
    pair.sides[1].item(number, item()).unwrap();
    assert!(pair.sides[1].item(number, item()).is_err(), "an item beyond the credit");
    pair.run(Duration::from_millis(50));
    pair.sides[0].grant(number, 1);
    pair.run(Duration::from_millis(50));
    pair.sides[1].item(number, item()).unwrap();
    pair.sides[1].respond(number, Outcome::Reply, Encoding::Json, Bytes::new());
    pair.run(Duration::from_millis(50));
    let items = pair.events[0].iter().filter(|event| matches!(event, Event::Item(..))).count();
    assert_eq!((items, pair.outcomes(0)), (3, vec![(number, Outcome::Reply)]));
}

#[test]
fn peers_without_a_common_version_are_told_both_ranges() {
    let now = Instant::now();
    let future = Hello { versions: Versions { lowest: 7, highest: 9 }, ..hello() };
    let mut opener = Session::open(future, Limits::default(), now);
    let mut acceptor = Session::answer(Limits::default(), now);
    acceptor.handle_bytes(&opener.poll_transmit().concat().into(), now);
    opener.handle_bytes(&acceptor.poll_transmit().concat().into(), now);
    let Some(Event::Refused(refusal)) = opener.poll_event() else { panic!("the opener is not told") };
    let Refusal { code, text, versions, .. } = *refusal;
    assert_eq!((code.as_str(), versions), ("version", SPOKEN));
    assert!(text.contains("7 to 9") && text.contains('0'), "{text}");
    assert!(acceptor.is_closed() && opener.is_closed());
}

#[test]
fn a_message_out_of_place_names_itself_and_the_state() {
    let now = Instant::now();
    let mut acceptor = Session::answer(Limits::default(), now);
    let mut bytes = Vec::new();
    quilt_protocol::codec::put_frame(&mut bytes, &quilt_protocol::Message::Welcome(Box::new(welcome())), &[]);
    acceptor.handle_bytes(&bytes.into(), now);
    let Some(Event::Closed(Closed::Violation(violation))) = acceptor.poll_event() else { panic!("it was taken") };
    assert_eq!(violation.to_string(), "a Welcome while waiting for the peer's greeting");
}

#[test]
fn a_lagging_reader_does_not_make_the_written_part_pile_up() {
    let mut pair = Pair::established(12);
    let mut waiting = 0usize;
    for turn in 0..20_000 {
        pair.sides[1].ping();
        let number = pair.sides[1].request(&head(15_000), Bytes::from(vec![0; 4000]), pair.now);
        if let Ok(number) = number {
            pair.sides[1].cancel(number);
        }
        let bytes = pair.sides[1].poll_transmit().concat();
        waiting = waiting.max(bytes.len());
        // Always 64 KiB behind.
        let take = bytes.len().saturating_sub(64 * 1024);
        pair.sides[1].transmitted(take);
        assert!(bytes_bound(waiting), "turn {turn}: {waiting} bytes");
    }
}

fn bytes_bound(waiting: usize) -> bool {
    waiting < 1 << 20
}

#[test]
fn sessions_that_share_a_budget_are_bounded_together() {
    let limits = Limits { shared: Budget::new(100 << 20), ..Limits::default() };
    let now = Instant::now();
    let begin = |number| {
        let message = quilt_protocol::Message::request(number, &head(15_000), 60 << 20);
        let mut bytes = Vec::new();
        quilt_protocol::codec::put_frame(&mut bytes, &message, &[1]);
        bytes
    };
    let session = || {
        let mut session = Session::answer(limits.clone(), now);
        let mut opener = Session::open(hello(), Limits::default(), now);
        session.handle_bytes(&opener.poll_transmit().concat().into(), now);
        session.accept(welcome(), 0, "tool:test".into(), now);
        session
    };
    let (mut one, mut two) = (session(), session());
    one.handle_bytes(&begin(0).into(), now);
    two.handle_bytes(&begin(0).into(), now);
    assert_eq!((one.counters().overloaded, two.counters().overloaded), (0, 1));
    // Whatever way the first ends, its share is free again.
    drop(one);
    two.handle_bytes(&begin(1).into(), now);
    assert_eq!(two.counters().overloaded, 1);
    two.handle_end("gone");
    let mut three = session();
    three.handle_bytes(&begin(0).into(), now);
    assert_eq!(three.counters().overloaded, 0);
}

#[test]
fn a_body_cut_anywhere_arrives_as_it_was_sent() {
    let body: Bytes = (0..60_000u32).map(|at| (at % 251) as u8).collect();
    let mut pair = Pair::established(23);
    let now = pair.now;
    pair.sides[0].request(&head(15_000), body.clone(), now).unwrap();
    let bytes = pair.sides[0].poll_transmit().concat();
    let header = bytes.len() - body.len();
    let edge = LENGTH_BYTES + HEADER_MAX;
    for cut in [1, header - 1, header, header + 1, edge - 1, edge, edge + 1, edge + 2, bytes.len() - 1] {
        let mut pair = Pair::established(23);
        for part in [&bytes[..cut], &bytes[cut..]] {
            assert!(pair.sides[1].poll_event().is_none(), "cut at {cut}");
            pair.sides[1].handle_bytes(&Bytes::copy_from_slice(part), now);
        }
        let Some(Event::Request(_, _, arrived)) = pair.sides[1].poll_event() else { panic!("cut at {cut}") };
        assert!(arrived[..] == body, "cut at {cut}");
        // What comes next is read in its place.
        pair.sides[0].ping();
        pair.run(Duration::from_millis(50));
        assert!(pair.sides[1].is_established(), "cut at {cut}: {:?}", pair.take(1));
    }
}

#[test]
fn a_frame_that_holds_more_than_its_body_ends_the_session_before_it_is_whole() {
    let mut pair = Pair::established(24);
    let message = Message::request(1, &head(15_000), 20_000);
    let mut bytes = Vec::new();
    put_frame(&mut bytes, &message, &[7; 20_001]);
    bytes.truncate(bytes.len() - 2000);
    pair.sides[1].handle_bytes(&bytes.into(), pair.now);
    let why = pair.sides[1].poll_event();
    let expected = Violation::BodyTooLong { length: 20_001, limit: 20_000 };
    assert_eq!(why, Some(Event::Closed(Closed::Violation(expected))));
}

#[test]
fn a_body_that_took_its_time_leaves_the_request_all_of_its_own() {
    let mut pair = Pair::established(25);
    let number = pair.ask(0, 60_000, 200_000);
    pair.run(Duration::from_millis(100));
    assert!(matches!(pair.take(1)[..], [Event::Request(..)]));
    // Longer than a body of this size may take to arrive.
    pair.run(Duration::from_secs(30));
    pair.sides[1].respond(number, Outcome::Reply, Encoding::Json, Bytes::new());
    pair.run(Duration::from_millis(100));
    assert_eq!(pair.outcomes(0), [(number, Outcome::Reply)]);
}
