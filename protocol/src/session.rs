//! The rules of a connection as a state machine: bytes, calls and the time go in; bytes and events come out.
//!
//! ```text
//! opener:    Greeting ------------ Welcome ----> Established --- goodbye, silence, violation ---> Closed
//! acceptor:  AwaitingHello - Hello > Deciding - accept() > Established
//! ```
//!
//! `handle_*` takes input, `poll_*` gives output. Nothing here blocks, sleeps or allocates for what a peer merely
//! announces.

mod arrival;
mod arrived;
mod limits;
mod liveness;
mod outbox;
mod requests;
mod terms;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;
use smol_str::SmolStr;

pub use self::arrived::Arrived;
pub use self::limits::{Budget, Limits};
pub use self::liveness::{HEARTBEAT, MISSED_MAX};
pub use self::requests::IN_FLIGHT_MAX;
pub use self::terms::TERMS_KEPT;

use self::liveness::Liveness;
use self::outbox::{BUFFERED_MAX, Outbox, Placed};
use self::requests::{Asked, AskedTable, Known, ServingTable};
use self::terms::{HeardTerms, SaidTerms};
use crate::error::Violation;
use crate::message::{
    BodyOf, Delivered, Encoding, Hello, Message, NO_DEADLINE, Outcome, Refusal, RequestHead, RequestNumber, Said,
    Welcome,
};

/// Bodies up to so many bytes do not count against the limits: the number of requests in flight bounds them well enough.
pub const UNCHARGED_MAX: usize = 4096;
/// The longest item of a stream, in bytes: as many as the window may wait at the other end.
pub const ITEM_MAX: usize = 1024 * 1024;
/// How many bytes may wait to be written before streams pause, whatever credit they have.
const STREAMED_MAX: usize = 1024 * 1024;

/// Something the owner of a session should know.
#[derive(Clone, PartialEq, Debug)]
pub enum Event {
    /// The peer introduced itself; answer with [`Session::accept`] or [`Session::refuse`].
    Hello(Box<Hello>),
    /// The session is established (opener only).
    Established(Box<Welcome>),
    /// The peer declined this side's greeting.
    Refused(Box<Refusal>),
    /// The peer asks; answer with [`Session::respond`].
    Request(RequestNumber, RequestHead, Arrived),
    /// A request of this side ended.
    Answered(RequestNumber, Outcome, Encoding, Arrived),
    /// An item for a request of this side. It used up one credit.
    Item(RequestNumber, Arrived),
    /// The peer takes more items of a request being served.
    Credit(RequestNumber),
    /// A request being served is no longer wanted; an answer to it is ignored.
    Cancelled(RequestNumber),
    /// The session is over. Every request of this side has been answered before this.
    Closed(Closed),
}

/// Why a session ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Closed {
    /// The peer left on purpose.
    Goodbye(String),
    /// This side left on purpose.
    ByUs,
    /// Nothing was heard for [`MISSED_MAX`] heartbeats.
    Silent(Duration),
    /// The peer broke a rule.
    Violation(Violation),
    /// The transport ended without a goodbye.
    Broken(String),
}

impl std::fmt::Display for Closed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Goodbye(reason) => write!(f, "the peer left: {reason}"),
            Self::ByUs => f.write_str("this side left"),
            Self::Silent(time) => write!(f, "nothing heard for {time:?}"),
            Self::Violation(violation) => write!(f, "{violation}"),
            Self::Broken(reason) => write!(f, "the connection broke: {reason}"),
        }
    }
}

/// Why a request could not be put on its way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NotAsked(pub Outcome);

/// Counts for metrics.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Counters {
    /// Answers that came after their request had ended.
    pub late: u64,
    /// Requests refused because a limit was reached.
    pub overloaded: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Greeting,
    AwaitingHello,
    Deciding,
    Established,
    Closed,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            Self::Greeting => "waiting for the peer's answer to our greeting",
            Self::AwaitingHello => "waiting for the peer's greeting",
            Self::Deciding => "deciding about the peer's greeting",
            Self::Established => "established",
            Self::Closed => "closed",
        }
    }
}

/// One peer's view of a connection. See the module's doc.
#[derive(Debug)]
pub struct Session {
    state: State,
    limits: Limits,
    greet_by: Instant,
    outbox: Outbox,
    asked: AskedTable,
    serving: ServingTable,
    said: SaidTerms,
    heard: HeardTerms,
    liveness: Liveness,
    /// The part of a frame that has arrived.
    tail: Vec<u8>,
    /// The body in the midst of whose frame we are, and how much of that is still to come.
    in_body: Option<(RequestNumber, BodyOf, usize)>,
    /// When the rest of it must have arrived.
    tail_by: Option<Instant>,
    /// Bytes announced of bodies that have begun to arrive.
    arriving: usize,
    events: VecDeque<Event>,
    counters: Counters,
    /// The earliest deadline of `asked` and `serving`, or earlier.
    next_deadline: Option<Instant>,
}

impl Session {
    /// The side that connects. Its greeting is the first thing to transmit.
    pub fn open(hello: Hello, limits: Limits, now: Instant) -> Self {
        let mut session = Self::new(State::Greeting, limits, now);
        session.outbox.push(&Message::Hello(Box::new(hello)));
        session
    }

    /// The side that was connected to.
    pub fn answer(limits: Limits, now: Instant) -> Self {
        Self::new(State::AwaitingHello, limits, now)
    }

    fn new(state: State, limits: Limits, now: Instant) -> Self {
        Self {
            state,
            greet_by: now + limits.greeting,
            limits,
            outbox: Outbox::default(),
            asked: AskedTable::default(),
            serving: ServingTable::default(),
            said: SaidTerms::default(),
            heard: HeardTerms::default(),
            liveness: Liveness::new(state == State::Greeting, HEARTBEAT, now),
            tail: Vec::new(),
            in_body: None,
            tail_by: None,
            arriving: 0,
            events: VecDeque::new(),
            counters: Counters::default(),
            next_deadline: None,
        }
    }

    // ---- what the owner does

    /// Accepts the peer's [`Event::Hello`]. `welcome.version` is set here. What the peer asks is on behalf of `principal`,
    /// whatever it says itself.
    pub fn accept(&mut self, mut welcome: Welcome, version: u16, principal: SmolStr, now: Instant) {
        if self.state == State::Deciding {
            welcome.version = version;
            self.heard.principal = Some(principal);
            self.liveness = Liveness::new(false, Duration::from_millis(welcome.heartbeat_ms.into()), now);
            self.outbox.push(&Message::Welcome(Box::new(welcome)));
            self.state = State::Established;
        }
    }

    /// Declines the peer's [`Event::Hello`] and closes once that is written.
    pub fn refuse(&mut self, refusal: Refusal) {
        if self.state == State::Deciding {
            self.outbox.push(&Message::Refusal(Box::new(refusal)));
            self.close(Closed::ByUs);
        }
    }

    /// Asks the peer. Every number returned is answered by exactly one [`Event::Answered`], unless it is cancelled.
    ///
    /// # Errors
    ///
    /// The outcome that the request has right away: `PeerLost(No)` without a session, `Overloaded` at a limit,
    /// `Refused` for a body or head over its limit.
    pub fn request(&mut self, head: &RequestHead, body: Bytes, now: Instant) -> Result<RequestNumber, NotAsked> {
        self.request_in_parts(head, body, Bytes::new(), now)
    }

    /// The same with a body in two parts, so that a long one that is sent to many peers, each behind a few bytes of its own, lies in
    /// memory once. The second part is worth that from a few KiB on.
    ///
    /// # Errors
    ///
    /// As [`Session::request`].
    pub fn request_in_parts(
        &mut self,
        head: &RequestHead,
        body: Bytes,
        rest: Bytes,
        now: Instant,
    ) -> Result<RequestNumber, NotAsked> {
        let whole = body.len() + rest.len();
        if self.state != State::Established {
            return Err(NotAsked(Outcome::PeerLost(Delivered::No)));
        }
        if whole > self.limits.body || !head.terms.is_small() {
            return Err(NotAsked(Outcome::Refused));
        }
        let full =
            self.outbox.buffered() > BUFFERED_MAX / 2 || self.outbox.bulk_bytes() + whole > self.limits.unfinished;
        let Some(number) = self.asked.next_number().filter(|_| !full) else {
            self.counters.overloaded += 1;
            return Err(NotAsked(Outcome::Overloaded));
        };
        let (deadline, credit) = (deadline(head, now), head.terms.credit);
        // What waits for its turn may be overtaken, or given up before it is said.
        let is_short = rest.is_empty() && Outbox::is_inline(&body);
        let terms = match self.said.are_worth_keeping(self.asked.len()) && is_short {
            true => self.said.say(&head.terms),
            false => Said::Whole(head.terms.clone()),
        };
        let header = Message::request_saying(terms, number, head, length(whole));
        let key = (number, BodyOf::Request);
        let placed = match rest.is_empty() {
            true => self.outbox.push_with_body(key, &header, body),
            false => self.outbox.push_bulk(key, &header, body, rest),
        };
        let given = self.asked.insert(Asked { deadline, placed, arriving: None, credit });
        debug_assert_eq!(given, number);
        self.note_deadline(deadline);
        Ok(number)
    }

    /// Gives up a request of this side; nothing more is heard of it.
    pub fn cancel(&mut self, number: RequestNumber) {
        if let Some(asked) = self.asked.remove(number) {
            self.forget_arriving(asked.arriving.map(|(_, body)| body));
            let never_begun = self.outbox.forget((number, BodyOf::Request));
            if !never_begun {
                self.outbox.push(&Message::Cancel { number });
            }
        }
    }

    /// Lets the peer send `items` more items for a request of this side.
    pub fn grant(&mut self, number: RequestNumber, items: u32) {
        if items == 0 {
            return;
        }
        if let Known::Waiting(asked) = self.asked.find(number) {
            asked.credit = asked.credit.saturating_add(items);
            self.outbox.push(&Message::Credit { number, items });
        }
    }

    /// Counts an item that was delivered as taken: until then it counts against the limits.
    pub fn item_taken(&mut self, length: usize) {
        if length > UNCHARGED_MAX && self.state != State::Closed {
            self.release(length);
        }
    }

    /// Ends a request being served. Ignored if it was cancelled meanwhile.
    pub fn respond(&mut self, number: RequestNumber, outcome: Outcome, encoding: Encoding, body: Bytes) {
        let waiting = self.outbox.bulk_bytes();
        let (outcome, body) = if body.len() > self.limits.body || waiting + body.len() > self.limits.unfinished {
            (Outcome::Overloaded, Bytes::from(self.limits.answer_too_long()))
        } else {
            (outcome, body)
        };
        if let Some(serving) = self.serving.remove(&number) {
            self.release(serving.charged);
            let message = Message::Response { number, outcome, encoding, body: length(body.len()) };
            self.outbox.push_with_body((number, BodyOf::Answer), &message, body);
        }
    }

    /// How many items the peer takes now for a request being served; `None` if it takes none any more.
    pub fn credit(&self, number: RequestNumber) -> Option<u32> {
        let serving = self.serving.get(&number).filter(|serving| serving.streaming)?;
        // A peer may give credit for millions; what waits here is bounded all the same.
        Some(if self.is_congested() { 0 } else { serving.credit })
    }

    fn is_congested(&self) -> bool {
        self.outbox.buffered() + self.outbox.bulk_bytes() > STREAMED_MAX
    }

    /// Sends one item of a streaming answer.
    ///
    /// # Errors
    ///
    /// Gives the item back if there is no credit for it or the request is over. One that is too long ends the request as
    /// `Overloaded`: a stream without it would look whole.
    pub fn item(&mut self, number: RequestNumber, body: Bytes) -> Result<(), Bytes> {
        match self.serving.get_mut(&number) {
            Some(serving) if serving.streaming && body.len() > ITEM_MAX => {
                let text = self.limits.answer_too_long();
                self.respond(number, Outcome::Overloaded, Encoding::Json, text.into());
                Err(body)
            }
            Some(serving) if serving.streaming && serving.credit > 0 => {
                serving.credit -= 1;
                let message = Message::Item { number, body: length(body.len()) };
                self.outbox.push_with_body((number, BodyOf::Answer), &message, body);
                Ok(())
            }
            _ => Err(body),
        }
    }

    /// Asks the peer for a sign of life; see [`Session::last_heard`].
    pub fn ping(&mut self) {
        if self.state == State::Established {
            let nonce = self.liveness.next_nonce();
            self.outbox.push(&Message::Ping { nonce });
        }
    }

    /// When the peer was last heard of.
    pub fn last_heard(&self) -> Instant {
        self.liveness.last_heard
    }

    /// Asks the opener for another heartbeat interval, from its next ping on (acceptor only).
    pub fn set_heartbeat(&mut self, interval: Duration) {
        self.liveness.plan_interval(interval);
    }

    /// Leaves on purpose. What was said before it still leaves, except large bodies that are under way.
    pub fn goodbye(&mut self, reason: &str) {
        if self.state == State::Established {
            self.outbox.push(&Message::Goodbye { reason: reason.chars().take(256).collect() });
        }
        self.close(Closed::ByUs);
    }

    /// Whether the session is over; what [`Session::poll_transmit`] still gives should be written before closing.
    pub fn is_closed(&self) -> bool {
        self.state == State::Closed
    }

    /// Whether both sides have greeted and neither has left.
    pub fn is_established(&self) -> bool {
        self.state == State::Established
    }

    /// Counts so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Requests of this side without an answer, and requests being served.
    pub fn in_flight(&self) -> (usize, usize) {
        (self.asked.len(), self.serving.len())
    }

    // ---- output

    /// Whether [`Session::poll_event`] has something.
    pub fn has_events(&self) -> bool {
        !self.events.is_empty()
    }

    /// Whether nothing is under way and [`Session::trim`] gives back so little that allocating it again costs less than it
    /// would take in thousands of sessions that are idle.
    pub fn is_small_and_idle(&self) -> bool {
        self.asked.len() == 0 && self.serving.is_empty() && self.serving.capacity() <= 8 && self.outbox.is_small()
    }

    /// Gives back memory that a busy session keeps and an idle one does not need. Call it now and then.
    pub fn trim(&mut self) {
        self.outbox.trim();
        self.asked.trim();
        if self.events.is_empty() {
            self.events = VecDeque::new();
        }
        if self.serving.is_empty() {
            self.serving = ServingTable::default();
        }
    }

    /// Forgets what terms were said, unless requests are under way or much was asked since the last time: the next ones say all
    /// again. Call it now and then, but not after each burst. What the peer said is kept for as long as the session, since it
    /// may say so again.
    pub fn forget_terms(&mut self) {
        if self.asked.len() == 0 {
            self.said.forget();
        }
    }

    /// The next thing the owner should know.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Whether [`Session::poll_transmit`] has something.
    pub fn has_transmit(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// The bytes to write next, the second part after the first; both are empty if there are none. Report with
    /// [`Session::transmitted`].
    pub fn poll_transmit(&mut self) -> [&[u8]; 2] {
        self.outbox.unwritten()
    }

    /// Records that the first `count` bytes of [`Session::poll_transmit`] were written.
    pub fn transmitted(&mut self, count: usize) {
        let was_congested = self.is_congested();
        self.outbox.advance(count);
        if was_congested && !self.is_congested() {
            let streaming = self.serving.iter().filter(|(_, serving)| serving.streaming && serving.credit > 0);
            self.events.extend(streaming.map(|(number, _)| Event::Credit(*number)));
        }
    }

    /// When [`Session::handle_timeout`] wants to be called next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match self.state {
            State::Closed => None,
            State::Greeting | State::AwaitingHello | State::Deciding => Some(self.greet_by),
            State::Established => {
                let alive = self.liveness.next_timeout();
                self.next_deadline.into_iter().chain(self.tail_by).chain([alive]).min()
            }
        }
    }

    /// Does what has become due.
    pub fn handle_timeout(&mut self, now: Instant) {
        match self.state {
            State::Closed => {}
            State::Greeting | State::AwaitingHello | State::Deciding => {
                if now >= self.greet_by {
                    self.close_for(Violation::GreetingTimeout(self.limits.greeting));
                }
            }
            State::Established => {
                if self.tail_by.is_some_and(|by| by <= now) {
                    return self.close_for(Violation::SlowFrame);
                }
                if self.liveness.is_lost(now) {
                    return self.close(Closed::Silent(now - self.liveness.last_heard));
                }
                if let Some(nonce) = self.liveness.ping_due(now) {
                    self.outbox.push(&Message::Ping { nonce });
                }
                if self.next_deadline.is_some_and(|deadline| deadline <= now) {
                    self.expire(now);
                }
            }
        }
    }

    fn expire(&mut self, now: Instant) {
        let due = |deadline: Option<Instant>| deadline.is_some_and(|deadline| deadline <= now);
        for number in self.asked.numbers(|asked| due(asked.deadline)) {
            self.cancel(number);
            self.events.push_back(Event::Answered(number, Outcome::TimedOut, Encoding::Json, Bytes::new().into()));
        }
        let overdue: Vec<_> = self.serving.iter().filter(|(_, s)| due(s.deadline)).map(|(n, _)| *n).collect();
        for number in overdue {
            if self.serving[&number].arriving.is_none() {
                self.events.push_back(Event::Cancelled(number));
            }
            self.respond(number, Outcome::TimedOut, Encoding::Json, Bytes::new());
        }
        let serving = self.serving.values().filter_map(|serving| serving.deadline).min();
        self.next_deadline = self.asked.next_deadline().into_iter().chain(serving).min();
    }

    fn note_deadline(&mut self, deadline: Option<Instant>) {
        self.next_deadline = self.next_deadline.into_iter().chain(deadline).min();
    }

    /// The transport ended. Without a goodbye before it, that is a crash or a cut.
    pub fn handle_end(&mut self, reason: &str) {
        if self.state != State::Closed && (self.in_body.is_some() || !self.tail.is_empty()) {
            return self.close(Closed::Broken(format!("{reason}, in the middle of a frame")));
        }
        self.close(Closed::Broken(reason.to_owned()));
    }

    fn close_for(&mut self, violation: Violation) {
        self.close(Closed::Violation(violation));
    }

    fn close(&mut self, why: Closed) {
        if self.state == State::Closed {
            return;
        }
        let was_established = self.state == State::Established;
        self.state = State::Closed;
        self.tail = Vec::new();
        let left = |outbox: &Outbox, number, placed| match placed {
            Placed::InBulk => outbox.begun((number, BodyOf::Request)),
            placed => outbox.has_left(placed) || why == Closed::ByUs,
        };
        let asked: Vec<_> = self.asked.numbers(|_| true);
        let asked = asked.into_iter().map(|number| (number, self.asked.remove(number).expect("it was just listed")));
        let asked: Vec<_> = asked.map(|(number, asked)| (number, left(&self.outbox, number, asked.placed))).collect();
        // What is reported as not delivered must not leave after all.
        match why {
            Closed::ByUs => self.outbox.clear_bulk(),
            _ if was_established => self.outbox.clear(),
            _ => {}
        }
        for (number, left) in asked {
            let delivered = if left { Delivered::Unknown } else { Delivered::No };
            let lost = Outcome::PeerLost(delivered);
            self.events.push_back(Event::Answered(number, lost, Encoding::Json, Bytes::from(why.to_string()).into()));
        }
        for (number, serving) in std::mem::take(&mut self.serving) {
            if serving.arriving.is_none() {
                self.events.push_back(Event::Cancelled(number));
            }
        }
        self.release(self.arriving);
        self.events.push_back(Event::Closed(why));
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.limits.shared.give_back(self.arriving);
    }
}

fn length(body: usize) -> u32 {
    u32::try_from(body).expect("bodies are checked against a limit far below 4 GiB")
}

/// When a request must have ended. A plain one always has a deadline, whatever the head says: at most a day.
fn deadline(head: &RequestHead, now: Instant) -> Option<Instant> {
    const DAY_MS: u32 = 24 * 60 * 60 * 1000;
    let remaining_ms = match head.terms.credit {
        0 => head.remaining_ms.min(DAY_MS),
        _ if head.remaining_ms == NO_DEADLINE => return None,
        _ => head.remaining_ms,
    };
    Some(now + Duration::from_millis(remaining_ms.into()))
}
