//! How often a body is copied on its way through a program that passes it on from one session to another.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod common;

use std::time::Instant;

use bytes::Bytes;
use quilt_protocol::message::{Address, RequestNumber};
use quilt_protocol::session::Arrived;
use quilt_protocol::{Encoding, Event, Outcome, RequestHead, Session, Terms};

/// What was written by one side is read by the other in one block, as far as it goes.
fn read(from: &mut Session, to: &mut Session, now: Instant) -> Vec<Bytes> {
    let mut blocks = Vec::new();
    loop {
        let block = Bytes::from(from.poll_transmit().concat());
        if block.is_empty() {
            return blocks;
        }
        from.transmitted(block.len());
        to.handle_bytes(&block, now);
        blocks.push(block);
    }
}

fn lies_in(part: &[u8], whole: &[u8]) -> bool {
    let (part, whole) = (part.as_ptr_range(), whole.as_ptr_range());
    whole.start <= part.start && part.end <= whole.end
}

/// One copy if what arrived does not lie where it was read, and one if it is not written from where it lay then.
fn copies(blocks: &[Bytes], arrived: &[u8], writer: &mut Session) -> usize {
    let into_its_own = !blocks.iter().any(|block| lies_in(arrived, block));
    let [_, by_itself] = writer.poll_transmit();
    usize::from(into_its_own) + usize::from(by_itself.is_empty() || !lies_in(by_itself, arrived))
}

fn request(of: &mut Session) -> (RequestNumber, RequestHead, Arrived) {
    let Some(Event::Request(number, head, body)) = of.poll_event() else { panic!("no request") };
    (number, head, body)
}

#[test]
fn a_body_that_is_passed_on_is_copied_once_there_and_once_back() {
    let now = Instant::now();
    for size in [1, 64, 4096, 4097, 60_000, 90_000, 1_000_000] {
        let ([mut tool, mut front], [mut station, mut back]) = (common::established(now), common::established(now));
        let (sent, head) = (Bytes::from(vec![7; size]), RequestHead::new(Terms::new(Address::Manager, "x")));

        tool.request(&head, sent.clone(), now).unwrap();
        let blocks = read(&mut tool, &mut front, now);
        let (asked, head, arrived) = request(&mut front);
        assert_eq!(arrived[..], sent);
        let body = arrived.pass_on();
        back.request(&head, body.clone(), now).unwrap();
        let there = copies(&blocks, &body, &mut back);
        read(&mut back, &mut station, now);
        let (number, _, arrived) = request(&mut station);
        assert_eq!(arrived[..], sent);

        station.respond(number, Outcome::Reply, Encoding::Json, arrived.keep());
        let blocks = read(&mut station, &mut back, now);
        let Some(Event::Answered(_, Outcome::Reply, encoding, arrived)) = back.poll_event() else {
            panic!("no answer")
        };
        let body = arrived.pass_on();
        front.respond(asked, Outcome::Reply, encoding, body.clone());
        let back = copies(&blocks, &body, &mut front);
        read(&mut front, &mut tool, now);
        let Some(Event::Answered(.., arrived)) = tool.poll_event() else { panic!("no answer") };
        assert_eq!(arrived[..], sent);
        assert_eq!((there, back), (1, 1), "{size} bytes");
    }
}

#[test]
fn a_long_text_that_many_are_sent_lies_in_memory_once_and_arrives_behind_what_is_each_peers_own() {
    let now = Instant::now();
    let text: Bytes = (0..1_000_000u32).map(|number| number as u8).collect();
    for number in 0..3u64 {
        let [mut manager, mut station] = common::established(now);
        let head = RequestHead::new(Terms::new(Address::Manager, "x"));
        let own = Bytes::from(number.to_le_bytes().to_vec());
        manager.request_in_parts(&head, own.clone(), text.clone(), now).unwrap();
        let mut from_where_it_lies = 0;
        loop {
            let [header, part] = manager.poll_transmit();
            if header.is_empty() && part.is_empty() {
                break;
            }
            from_where_it_lies += if lies_in(part, &text) { part.len() } else { 0 };
            let block = Bytes::from([header, part].concat());
            manager.transmitted(block.len());
            station.handle_bytes(&block, now);
        }
        assert_eq!(from_where_it_lies, text.len());
        let (_, _, arrived) = request(&mut station);
        assert_eq!(arrived.keep(), Bytes::from([&own[..], &text].concat()));
    }
}

#[test]
fn a_document_that_is_sent_apart_reads_as_one_with_its_offer() {
    use quilt_protocol::codec::{bincode_before_text, to_bincode};
    use quilt_protocol::control::{Applied, Plan, UpdateConfiguration};
    use quilt_protocol::{Digest, FleetId, Revision};
    let offer = Applied { fleet: FleetId::random(), epoch: 300, revision: Revision(7), digest: Digest::of(b"x") };
    for document in [String::new(), "{}".into(), "x".repeat(70_000)] {
        let update = UpdateConfiguration { offer, document: document.as_str().into() };
        let mut parts = bincode_before_text("a push", &offer, &document).unwrap();
        parts.extend_from_slice(document.as_bytes());
        assert_eq!(parts, to_bincode("a push", &update).unwrap());
        let mut parts = bincode_before_text("a plan", &(), &document).unwrap();
        parts.extend_from_slice(document.as_bytes());
        assert_eq!(parts, to_bincode("a plan", &Plan { document }).unwrap());
    }
}
