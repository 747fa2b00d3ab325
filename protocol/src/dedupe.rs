//! Carrying a request out once although it may arrive twice.
//!
//! A caller that lost its connection cannot know whether its request was carried out. It asks again under the same
//! [`MessageId`]; this table answers the second ask with the first one's answer, or joins it to the first one if that
//! is still under way.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::message::{Encoding, Outcome};
use crate::names::MessageId;

/// How long an answer is remembered.
pub const REMEMBERED: Duration = Duration::from_secs(600);
/// How many answers are remembered.
pub const ANSWERS_MAX: usize = 10_000;
/// How many bytes of answers are remembered; longer answers push out older ones.
pub const BYTES_MAX: usize = 16 << 20;

/// The longest answer that is remembered, in bytes; of a longer one only that it was given.
pub const ANSWER_MAX: usize = 256 << 10;
/// How many may wait for the answer of one request.
pub const WAITING_MAX: usize = 64;

/// An answer as it went to the first asker.
pub type Answer = (Outcome, Encoding, Bytes);

/// Requests seen lately. `W` is whoever waits for the answer of one under way.
#[derive(Debug)]
pub struct Dedupe<W> {
    seen: HashMap<MessageId, Entry<W>>,
    answered: VecDeque<(Instant, MessageId)>,
    bytes: usize,
}

#[derive(Debug)]
enum Entry<W> {
    UnderWay(Vec<W>),
    Answered(Answer),
}

/// What to do with a request that arrived.
#[derive(Debug)]
pub enum Seen<W> {
    /// Never seen: carry it out, and report with [`Dedupe::answered`].
    Fresh(W),
    /// Already answered: answer the same.
    Answered(W, Answer),
    /// Under way: the asker was noted and is returned by [`Dedupe::answered`].
    Joined,
    /// Under way, and too many wait for it already.
    Crowded(W),
}

impl<W> Default for Dedupe<W> {
    fn default() -> Self {
        Self { seen: HashMap::new(), answered: VecDeque::new(), bytes: 0 }
    }
}

impl<W> Dedupe<W> {
    /// Notes a request that arrived, and says what to do with it.
    pub fn arrived(&mut self, id: MessageId, asker: W, now: Instant) -> Seen<W> {
        self.expire(now);
        match self.seen.get_mut(&id) {
            Some(Entry::Answered(answer)) => Seen::Answered(asker, answer.clone()),
            Some(Entry::UnderWay(waiting)) if waiting.len() >= WAITING_MAX => Seen::Crowded(asker),
            Some(Entry::UnderWay(waiting)) => {
                waiting.push(asker);
                Seen::Joined
            }
            None => {
                self.seen.insert(id, Entry::UnderWay(Vec::new()));
                Seen::Fresh(asker)
            }
        }
    }

    /// Notes the answer of a request and gives back who else waits for it.
    pub fn answered(&mut self, id: MessageId, answer: Answer, now: Instant) -> Vec<W> {
        let answer = match answer.2.len() {
            ..=ANSWER_MAX => answer,
            _ => {
                let text = Bytes::from_static(b"it was carried out; its reply is too long to be given twice");
                (Outcome::Refused, Encoding::Json, text)
            }
        };
        self.bytes += answer.2.len();
        self.answered.push_back((now, id));
        let waiting = match self.seen.insert(id, Entry::Answered(answer)) {
            Some(Entry::UnderWay(waiting)) => waiting,
            _ => Vec::new(),
        };
        self.expire(now);
        waiting
    }

    /// Forgets a request that ended without having been carried out, so that a retry is.
    pub fn forget(&mut self, id: MessageId) -> Vec<W> {
        match self.seen.remove(&id) {
            Some(Entry::UnderWay(waiting)) => waiting,
            _ => Vec::new(),
        }
    }

    /// Forgets a request that is still under way; one that was answered stays.
    pub fn abandon(&mut self, id: MessageId) -> Vec<W> {
        match self.seen.get(&id) {
            Some(Entry::UnderWay(_)) => self.forget(id),
            _ => Vec::new(),
        }
    }

    fn expire(&mut self, now: Instant) {
        while let Some(&(when, id)) = self.answered.front() {
            let keep = now < when + REMEMBERED && self.answered.len() <= ANSWERS_MAX && self.bytes <= BYTES_MAX;
            if keep {
                return;
            }
            self.answered.pop_front();
            if let Some(Entry::Answered(answer)) = self.seen.remove(&id) {
                self.bytes -= answer.2.len();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(text: &'static str) -> Answer {
        (Outcome::Reply, Encoding::Json, Bytes::from_static(text.as_bytes()))
    }

    #[test]
    fn a_retry_is_answered_as_the_first_was_and_not_carried_out_again() {
        let (mut table, now, id) = (Dedupe::default(), Instant::now(), MessageId::random());
        assert!(matches!(table.arrived(id, 1, now), Seen::Fresh(1)));
        assert!(matches!(table.arrived(id, 2, now), Seen::Joined));
        assert_eq!(table.answered(id, answer("done"), now), [2]);
        assert!(matches!(table.arrived(id, 3, now), Seen::Answered(3, again) if again == answer("done")));
    }

    #[test]
    fn answers_are_forgotten_by_age_and_by_number() {
        let (mut table, now, id) = (Dedupe::default(), Instant::now(), MessageId::random());
        table.arrived(id, (), now);
        table.answered(id, answer("old"), now);
        assert!(matches!(table.arrived(id, (), now + REMEMBERED), Seen::Fresh(())));
        for _ in 0..2 * ANSWERS_MAX {
            let id = MessageId::random();
            table.arrived(id, (), now);
            table.answered(id, answer("x"), now);
        }
        assert!(table.answered.len() <= ANSWERS_MAX && table.seen.len() <= ANSWERS_MAX + 1);
    }
}
