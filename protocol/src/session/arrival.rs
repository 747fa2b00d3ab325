//! What arrives: bytes become frames, frames messages, and pieces of bodies whole ones, none before its size is checked.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::liveness::Liveness;
use super::outbox::BUFFERED_MAX;
use super::requests::{Answer, Arriving, IN_FLIGHT_MAX, Known, Serving};
use super::{Arrived, Closed, Event, ITEM_MAX, Session, State, UNCHARGED_MAX, deadline};
use crate::codec::{self, FRAME_MAX, FRAME_MAX_GREETING, HEADER_MAX, LENGTH_BYTES};
use crate::error::Violation;
use crate::message::{BodyOf, Encoding, Message, Outcome, Refusal, RequestHead, RequestNumber};
use crate::version::SPOKEN;

/// How much of a frame is enough to read its header, and the first byte of its body.
const BEGINNING: usize = HEADER_MAX + 1;

impl Session {
    /// Takes what arrived, all of it. After an error the session is closed and a [`Event::Closed`] says why. A body
    /// holds `block` until it is kept or dropped.
    pub fn handle_bytes(&mut self, block: &Bytes, now: Instant) {
        if self.state == State::Closed {
            return;
        }
        self.liveness.last_heard = now;
        let mut input = &block[..];
        let result = if self.tail.is_empty() {
            self.take_frames(block, &mut input, now)
        } else {
            // Complete the one frame that is in pieces, then go on in place.
            let mut tail = std::mem::take(&mut self.tail);
            self.fill_tail(&mut tail, &mut input).and_then(|()| {
                let tail = Bytes::from(tail);
                let mut whole = &tail[..];
                self.take_frames(&tail, &mut whole, now)?;
                if !whole.is_empty() {
                    self.tail = tail.slice_ref(whole).into();
                    return Ok(());
                }
                self.take_frames(block, &mut input, now)
            })
        };
        match result {
            Ok(()) => self.tail.extend_from_slice(input),
            Err(violation) => return self.close_for(violation),
        }
        match self.tail.is_empty() && self.in_body.is_none() {
            true => self.tail_by = None,
            false => drop(self.tail_by.get_or_insert(now + time_for(FRAME_MAX))),
        }
    }

    /// Moves as much of `input` to `tail` as completes the frame that `tail` begins, or lets its header be read.
    fn fill_tail(&mut self, tail: &mut Vec<u8>, input: &mut &[u8]) -> Result<(), Violation> {
        let mut take = |tail: &mut Vec<u8>, wanted: usize| {
            let (now, later) = input.split_at(wanted.saturating_sub(tail.len()).min(input.len()));
            tail.extend_from_slice(now);
            *input = later;
        };
        take(tail, LENGTH_BYTES);
        let Some(length) = tail.first_chunk::<LENGTH_BYTES>() else { return Ok(()) };
        let length = u32::from_le_bytes(*length) as usize;
        codec::find_frame(tail, self.frame_limit())?;
        take(tail, LENGTH_BYTES + length.min(BEGINNING));
        Ok(())
    }

    fn frame_limit(&self) -> usize {
        if self.state == State::Established { FRAME_MAX } else { FRAME_MAX_GREETING }
    }

    /// `input` is what is left of `block`.
    fn take_frames(&mut self, block: &Bytes, input: &mut &[u8], now: Instant) -> Result<(), Violation> {
        while self.state != State::Closed {
            if let Some((number, of, left)) = self.in_body.take() {
                let (part, rest) = input.split_at(left.min(input.len()));
                *input = rest;
                match part.len() < left {
                    true => self.in_body = Some((number, of, left - part.len())),
                    false => self.tail_by = None,
                }
                match of {
                    _ if part.is_empty() => return Ok(()),
                    BodyOf::Request => self.handle_request_chunk(number, part)?,
                    BodyOf::Answer => self.handle_answer_chunk(number, part)?,
                }
                continue;
            }
            let Some(frame) = codec::find_frame(input, self.frame_limit())? else {
                let begun = self.state == State::Established && input.len() >= LENGTH_BYTES + BEGINNING;
                if !begun {
                    return Ok(());
                }
                // A long body goes where it is gathered as it comes, and does not wait here for the end of its frame.
                let length = input.first_chunk::<LENGTH_BYTES>().map_or(0, |length| u32::from_le_bytes(*length));
                let left = LENGTH_BYTES + length as usize - input.len();
                let (message, part) = codec::read_frame(&input[LENGTH_BYTES..], false)?;
                *input = &[];
                self.in_body = message.body_of().map(|(number, of)| (number, of, left));
                self.handle_message(message, block, part, part.len() + left, now)?;
                continue;
            };
            *input = &input[LENGTH_BYTES + frame.len()..];
            self.tail_by = None;
            let greeting = matches!(self.state, State::Greeting | State::AwaitingHello);
            let (message, body) = codec::read_frame(frame, greeting)?;
            self.handle_message(message, block, body, body.len(), now)?;
            if self.outbox.buffered() > BUFFERED_MAX {
                return Err(Violation::NotReading { queued: self.outbox.buffered(), limit: BUFFERED_MAX });
            }
        }
        *input = &[];
        Ok(())
    }

    /// `in_frame` is how much of a body the frame holds, of which `part` has arrived.
    fn handle_message(
        &mut self,
        message: Message,
        block: &Bytes,
        part: &[u8],
        in_frame: usize,
        now: Instant,
    ) -> Result<(), Violation> {
        if let Message::Request { body, .. } | Message::Response { body, .. } | Message::Item { body, .. } = &message
            && in_frame > *body as usize
        {
            return Err(Violation::BodyTooLong { length: in_frame, limit: *body as usize });
        }
        match (self.state, message) {
            (State::AwaitingHello, Message::Hello(hello)) => match SPOKEN.common(hello.versions) {
                Some(_) => {
                    self.state = State::Deciding;
                    self.events.push_back(Event::Hello(hello));
                }
                None => {
                    let violation = Violation::NoCommonVersion { theirs: hello.versions, ours: SPOKEN };
                    self.outbox.push(&Message::Refusal(Box::new(Refusal {
                        code: "version".into(),
                        text: format!("this side speaks protocol {SPOKEN}, you speak {}", hello.versions),
                        versions: SPOKEN,
                        extensions: Default::default(),
                    })));
                    return Err(violation);
                }
            },
            (State::Greeting, Message::Welcome(welcome)) => {
                let interval = Duration::from_millis(welcome.heartbeat_ms.max(1).into());
                self.liveness = Liveness::new(true, interval, now);
                self.state = State::Established;
                self.events.push_back(Event::Established(welcome));
            }
            (State::Greeting, Message::Refusal(refusal)) => {
                let code = refusal.code.clone();
                self.events.push_back(Event::Refused(refusal));
                self.close(Closed::Goodbye(code));
            }
            (State::Established, Message::Request { number, message_id, remaining_ms, trace, terms, body }) => {
                let head = RequestHead { message_id, remaining_ms, trace, terms: self.heard.hear(terms)? };
                self.handle_request(number, head, body as usize, block, part, now)?;
            }
            (State::Established, Message::Response { number, outcome, encoding, body }) => {
                self.handle_answer(number, Answer::Response(outcome, encoding), body as usize, block, part)?;
            }
            (State::Established, Message::Item { number, body }) => {
                self.handle_answer(number, Answer::Item, body as usize, block, part)?;
            }
            (State::Established, Message::Chunk { number, of: BodyOf::Request }) => {
                self.handle_request_chunk(number, part)?;
            }
            (State::Established, Message::Chunk { number, of: BodyOf::Answer }) => {
                self.handle_answer_chunk(number, part)?;
            }
            (State::Established, Message::Cancel { number }) => self.stop_serving(number),
            (State::Established, Message::Credit { number, items }) => {
                // A credit may cross our response on the wire: late is not wrong.
                if let Some(serving) = self.serving.get_mut(&number).filter(|serving| serving.streaming) {
                    serving.credit = serving.credit.saturating_add(items);
                    self.events.push_back(Event::Credit(number));
                }
            }
            (State::Established, Message::Ping { nonce }) => {
                let interval = self.liveness.tell_interval();
                let interval_ms = u32::try_from(interval.as_millis()).unwrap_or(u32::MAX);
                self.outbox.push(&Message::Pong { nonce, interval_ms });
            }
            (State::Established, Message::Pong { interval_ms, .. }) => {
                self.liveness.set_interval(Duration::from_millis(interval_ms.max(1).into()), now);
            }
            (State::Established, Message::Goodbye { reason }) => self.close(Closed::Goodbye(reason)),
            (state, got) => return Err(Violation::Unexpected { state: state.name(), got: got.name() }),
        }
        Ok(())
    }

    fn handle_request(
        &mut self,
        number: RequestNumber,
        head: RequestHead,
        whole: usize,
        block: &Bytes,
        part: &[u8],
        now: Instant,
    ) -> Result<(), Violation> {
        // Also while its answer is being written: otherwise answers of one number could queue up without end.
        if self.serving.contains_key(&number) || self.outbox.holds((number, BodyOf::Answer)) {
            return Err(Violation::NumberInUse(number));
        }
        let streaming = head.terms.credit > 0;
        let answer_by = deadline(&head, now);
        let serving = Serving {
            deadline: answer_by,
            answer_by,
            arriving: None,
            charged: 0,
            credit: head.terms.credit,
            streaming,
        };
        let waits = part.len() < whole;
        let serving = match waits {
            // A body that drips in must not hold its place for long.
            true => {
                let arrived = now + time_for(whole);
                Serving { deadline: Some(serving.deadline.map_or(arrived, |by| by.min(arrived))), ..serving }
            }
            false => serving,
        };
        let too_long = whole > self.limits.body;
        let full = self.serving.len() >= IN_FLIGHT_MAX
            || self.outbox.buffered() > BUFFERED_MAX / 2
            || self.outbox.bulk_bytes() > self.limits.unfinished / 2;
        let refused = too_long || !head.terms.is_small();
        let charged = if !refused && (waits || whole > UNCHARGED_MAX) { whole } else { 0 };
        let full = full || (charged > 0 && !self.charge(charged));
        self.note_deadline(serving.deadline);
        let serving = self.serving.entry(number).or_insert(serving);
        serving.charged = if full { 0 } else { charged };
        if too_long {
            let text = self.limits.body_too_long(whole);
            self.respond(number, Outcome::Refused, Encoding::Json, text.into());
        } else if !head.terms.is_small() {
            let text = self.limits.head_too_long();
            self.respond(number, Outcome::Refused, Encoding::Json, text.into());
        } else if full {
            self.counters.overloaded += 1;
            let text = self.limits.too_many_served();
            self.respond(number, Outcome::Overloaded, Encoding::Json, text.into());
        } else if waits {
            serving.arriving = Some((head, Arriving::new(whole, part)));
        } else {
            self.events.push_back(Event::Request(number, head, Arrived::within(block, part)));
        }
        Ok(())
    }

    fn handle_request_chunk(&mut self, number: RequestNumber, part: &[u8]) -> Result<(), Violation> {
        // Chunks of a request that was answered or timed out early are still on their way: drop them.
        let Some(serving) = self.serving.get_mut(&number) else { return Ok(()) };
        let Some((_, arriving)) = &mut serving.arriving else { return Ok(()) };
        arriving.add(part).map_err(|length| Violation::BodyTooLong { length, limit: self.limits.body })?;
        if arriving.is_whole() {
            // It counts against the limits until it is answered: whoever works on it holds it.
            let (head, body) = serving.arriving.take().expect("it was matched above");
            let answer_by = serving.answer_by;
            serving.deadline = answer_by;
            self.note_deadline(answer_by);
            self.events.push_back(Event::Request(number, head, body.into_bytes().into()));
        }
        Ok(())
    }

    fn handle_answer(
        &mut self,
        number: RequestNumber,
        answer: Answer,
        whole: usize,
        block: &Bytes,
        part: &[u8],
    ) -> Result<(), Violation> {
        let longest = if answer == Answer::Item { ITEM_MAX } else { self.limits.body };
        if let Known::Waiting(asked) = self.asked.find(number) {
            if asked.arriving.is_some() {
                return Err(Violation::NotAsked(number));
            }
            if answer == Answer::Item {
                asked.credit = asked.credit.checked_sub(1).ok_or(Violation::NoCredit(number))?;
            }
        }
        let waits = part.len() < whole && matches!(self.asked.find(number), Known::Waiting(_));
        let fits = whole <= longest && (!waits || self.charge(whole));
        match self.asked.find(number) {
            Known::Never => return Err(Violation::NotAsked(number)),
            Known::Late => self.counters.late += u64::from(answer != Answer::Item),
            Known::Waiting(_) if !waits && fits => {
                self.deliver(number, answer, Arrived::within(block, part));
            }
            Known::Waiting(_) if !fits => self.too_much(number),
            Known::Waiting(asked) => {
                asked.arriving = Some((answer, Arriving::new(whole, part)));
            }
        }
        Ok(())
    }

    fn handle_answer_chunk(&mut self, number: RequestNumber, part: &[u8]) -> Result<(), Violation> {
        match self.asked.find(number) {
            Known::Never => Err(Violation::NotAsked(number)),
            Known::Late => Ok(()),
            Known::Waiting(asked) => {
                let Some((_, arriving)) = &mut asked.arriving else { return Err(Violation::NotAsked(number)) };
                arriving.add(part).map_err(|length| Violation::BodyTooLong { length, limit: self.limits.body })?;
                if arriving.is_whole() {
                    let (answer, body) = asked.arriving.take().expect("it was matched above");
                    self.release(body.whole());
                    self.deliver(number, answer, body.into_bytes().into());
                }
                Ok(())
            }
        }
    }

    fn too_much(&mut self, number: RequestNumber) {
        let text = Bytes::from(self.limits.answer_too_long());
        self.cancel(number);
        self.events.push_back(Event::Answered(number, Outcome::Overloaded, Encoding::Json, text.into()));
    }

    fn deliver(&mut self, number: RequestNumber, answer: Answer, body: Arrived) {
        match answer {
            Answer::Item if body.len() > UNCHARGED_MAX && !self.charge(body.len()) => self.too_much(number),
            Answer::Item => self.events.push_back(Event::Item(number, body)),
            Answer::Response(outcome, encoding) => {
                self.asked.remove(number);
                self.outbox.forget((number, BodyOf::Request));
                self.events.push_back(Event::Answered(number, outcome, encoding, body));
            }
        }
    }

    fn stop_serving(&mut self, number: RequestNumber) {
        // Also when it was answered: nobody wants the rest of a long answer any more.
        self.outbox.forget((number, BodyOf::Answer));
        if let Some(serving) = self.serving.remove(&number) {
            self.release(serving.charged);
            if serving.arriving.is_none() {
                self.events.push_back(Event::Cancelled(number));
            }
        }
    }

    /// Counts a body against the limits, with the length it announced. False, and nothing counted, if there is no
    /// room for it.
    fn charge(&mut self, whole: usize) -> bool {
        let fits = self.arriving + whole <= self.limits.unfinished && self.limits.shared.take(whole);
        self.arriving += if fits { whole } else { 0 };
        fits
    }

    pub(super) fn release(&mut self, whole: usize) {
        self.arriving -= whole;
        self.limits.shared.give_back(whole);
    }

    pub(super) fn forget_arriving(&mut self, body: Option<Arriving>) {
        self.release(body.map_or(0, |body| body.whole()));
    }
}

/// How long so many bytes may take to arrive: 10 s, and a second for each 64 KiB.
fn time_for(bytes: usize) -> Duration {
    Duration::from_secs(10 + bytes as u64 / (64 * 1024))
}
