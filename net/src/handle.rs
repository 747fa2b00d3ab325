//! The asking side of a session.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use quilt_protocol::message::{Address, Delivered, RequestNumber};
use quilt_protocol::session::{Arrived, Closed, Counters, NotAsked, UNCHARGED_MAX};
use quilt_protocol::{DecodeError, Encoding, Limits, Outcome, RequestHead, Terms, codec};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;

use crate::service::{Responder, decode, encode};
use crate::shared::{Shared, Then, Waiter};

/// How a request ended, with the body that goes with it: the reply, the command's error, or a text for people.
#[derive(Clone, PartialEq, Debug)]
pub struct Answer {
    /// How it ended.
    pub outcome: Outcome,
    /// How the body is encoded.
    pub encoding: Encoding,
    /// The body.
    pub body: Bytes,
}

impl Answer {
    pub(crate) fn bare(outcome: Outcome) -> Self {
        let limits = Limits::default();
        let why = match outcome {
            Outcome::Refused => {
                let body = limits.body >> 20;
                format!("not sent: a body has at most {body} MiB, and {}", limits.head_too_long())
            }
            Outcome::Overloaded => format!("not sent: {}", limits.too_many_asked()),
            _ => String::new(),
        };
        Self { outcome, encoding: Encoding::Json, body: why.into() }
    }

    /// The body as text for people.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Why a typed request has no reply.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum AskError {
    /// It ended otherwise.
    #[error("{}{}{text}", .outcome.name(), if .text.is_empty() { "" } else { ": " })]
    Ended {
        /// How.
        outcome: Outcome,
        /// For people.
        text: String,
    },
    /// It was carried out, and the reply is not of the expected type.
    #[error("carried out, but its answer cannot be read: {0}")]
    Undecodable(#[from] DecodeError),
}

impl AskError {
    /// How the request ended, as far as the caller is concerned. Never `SchemaMismatch` for one that was carried out.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Ended { outcome, .. } => *outcome,
            Self::Undecodable(_) => Outcome::Refused,
        }
    }
}

/// Asks the peer. Cheap to clone; the session goes on without it.
#[derive(Clone, Debug)]
pub struct Handle {
    pub(crate) shared: Arc<Shared>,
}

impl PartialEq for Handle {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }
}

impl Handle {
    /// Asks. The answer is awaited on the result; dropping that cancels the request.
    pub fn request(&self, head: &RequestHead, body: Bytes) -> Pending {
        let asked = self.shared.ask(head, body, Waiter::Pending(None, None)).map_err(|(why, _)| why);
        Pending { shared: self.shared.clone(), asked }
    }

    /// Asks on behalf of another session's peer: whatever the answer is, it is the answer to `responder`'s request too; and when
    /// that is given up, so is this.
    pub fn relay(&self, head: &RequestHead, body: Arrived, responder: Responder) {
        let (from, number) = responder.origin();
        match self.shared.ask(head, body.pass_on(), Waiter::Relay(responder)) {
            Ok(as_number) => from.passed_on(number, &self.shared, as_number),
            Err((NotAsked(outcome), waiter)) => waiter.give(Answer::bare(outcome)),
        }
    }

    /// Asks for a stream. At most `window` items wait here before the peer stops sending.
    pub fn stream(&self, mut head: RequestHead, body: Bytes, window: u32) -> Items {
        let window = window.max(1);
        Arc::make_mut(&mut head.terms).credit = window;
        let (items, receiver) = mpsc::channel(window as usize);
        let asked = self.shared.ask(&head, body, Waiter::Pending(None, Some(items))).map_err(|(why, _)| why);
        let pending = Pending { shared: self.shared.clone(), asked };
        Items { receiver, pending, window, taken: 0 }
    }

    /// Asks with a typed body for a typed reply, within `time`.
    ///
    /// # Errors
    ///
    /// [`AskError`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future cancels the request; it may have been carried out.
    pub async fn ask<Q: Serialize, R: DeserializeOwned>(
        &self,
        to: Address,
        command: &str,
        encoding: Encoding,
        request: &Q,
        time: Duration,
    ) -> Result<R, AskError> {
        let answer = self.request(&typed_head(to, command, encoding, time), encode(encoding, request)).await;
        typed(&answer)
    }

    /// As [`Handle::ask`], with a body that is encoded already.
    ///
    /// # Errors
    ///
    /// [`AskError`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future cancels the request; it may have been carried out.
    pub async fn ask_encoded<R: DeserializeOwned>(
        &self,
        to: Address,
        command: &str,
        body: Body,
        time: Duration,
    ) -> Result<R, AskError> {
        let head = typed_head(to, command, Encoding::Bincode, time);
        let asked = self.shared.ask_in_parts(&head, body, Waiter::Pending(None, None)).map_err(|(why, _)| why);
        typed(&Pending { shared: self.shared.clone(), asked }.await)
    }

    /// The same without a task that waits: `then` gets the answer where it arrives, or at once if the request cannot be sent.
    /// It holds up its connection, so it does little and never waits.
    pub fn ask_then<R: DeserializeOwned>(
        &self,
        to: Address,
        command: &str,
        body: Body,
        time: Duration,
        then: impl FnOnce(Result<R, AskError>) + Send + 'static,
    ) {
        let then = Then(Box::new(move |answer| then(typed(&answer))));
        let head = typed_head(to, command, Encoding::Bincode, time);
        if let Err((NotAsked(outcome), waiter)) = self.shared.ask_in_parts(&head, body, Waiter::Then(then)) {
            waiter.give(Answer::bare(outcome));
        }
    }

    /// Leaves on purpose; the peer is told why.
    pub fn goodbye(&self, reason: &str) {
        self.shared.with(|inner| inner.session.goodbye(reason));
    }

    /// Leaves once nothing that was asked is under way, streams included. Call it when nobody will ask any more: otherwise heartbeats
    /// keep the connection open for as long as the runtime lives.
    pub fn leave_when_idle(&self) {
        self.shared.with(|inner| inner.leaves_when_idle = true);
    }

    /// Asks for a sign of life.
    pub fn ping(&self) {
        self.shared.with(|inner| inner.session.ping());
    }

    /// When the peer was last heard of.
    pub fn last_heard(&self) -> Instant {
        self.shared.with(|inner| inner.session.last_heard())
    }

    /// Asks the opener for another pace of heartbeats.
    pub fn set_heartbeat(&self, interval: Duration) {
        self.shared.with(|inner| inner.session.set_heartbeat(interval));
    }

    /// Counts so far.
    pub fn counters(&self) -> Counters {
        self.shared.with(|inner| inner.session.counters())
    }

    /// Whether the session is over.
    pub fn is_closed(&self) -> bool {
        self.shared.closed.get().is_some()
    }

    /// Waits for the end of the session.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe.
    pub async fn closed(&self) -> Closed {
        loop {
            let notified = self.shared.closed_notify.notified();
            if let Some(why) = self.shared.closed.get() {
                return why.clone();
            }
            notified.await;
        }
    }
}

/// The body of a typed request in bincode, whose end may lie in memory once for many requests.
#[derive(Clone, Debug)]
pub struct Body {
    pub(crate) first: Bytes,
    pub(crate) rest: Bytes,
}

impl Body {
    /// A structure whose last field is `text`; `before` is what is in front of that. A text of more than 4 KiB is not copied.
    ///
    /// # Panics
    ///
    /// If `before` cannot be encoded; quilt's own wire types can.
    pub fn ending_in(before: &impl Serialize, text: &Arc<str>) -> Self {
        const COPIED: usize = 4 << 10;
        let first = codec::bincode_before_text("a body", before, text);
        let mut first = first.expect("wire types are made for bincode");
        if text.len() <= COPIED {
            first.extend_from_slice(text.as_bytes());
            return Self { first: first.into(), rest: Bytes::new() };
        }
        Self { first: first.into(), rest: Bytes::from_owner(Text(text.clone())) }
    }
}

struct Text(Arc<str>);

impl AsRef<[u8]> for Text {
    fn as_ref(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

fn typed_head(to: Address, command: &str, encoding: Encoding, time: Duration) -> RequestHead {
    let mut head = RequestHead::new(Terms { encoding, ..Terms::new(to, command) });
    head.remaining_ms = u32::try_from(time.as_millis()).unwrap_or(u32::MAX - 1);
    head
}

fn typed<R: DeserializeOwned>(answer: &Answer) -> Result<R, AskError> {
    match answer.outcome {
        Outcome::Reply => Ok(decode("the reply", answer.encoding, &answer.body)?),
        outcome => Err(AskError::Ended { outcome, text: answer.text() }),
    }
}

/// A request under way. Resolves to its one answer; dropping it cancels the request.
#[derive(Debug)]
#[must_use = "dropping it cancels the request"]
pub struct Pending {
    shared: Arc<Shared>,
    asked: Result<RequestNumber, NotAsked>,
}

impl Future for Pending {
    type Output = Answer;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Answer> {
        let number = match self.asked {
            Ok(number) => number,
            Err(NotAsked(outcome)) => return Poll::Ready(Answer::bare(outcome)),
        };
        self.shared.poll_answer(number, cx).map(|answer| {
            // Answered: nothing to cancel any more.
            self.asked = Err(NotAsked(Outcome::Cancelled));
            answer.unwrap_or_else(|| Answer::bare(Outcome::PeerLost(Delivered::Unknown)))
        })
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if let Ok(number) = self.asked {
            self.shared.give_up(number);
        }
    }
}

/// A stream under way. Dropping it cancels the request.
#[derive(Debug)]
pub struct Items {
    receiver: mpsc::Receiver<Bytes>,
    pending: Pending,
    window: u32,
    taken: u32,
}

impl Items {
    /// The next item, or `None` when the stream has ended; [`Items::end`] then says how.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe: no item is lost.
    pub async fn next(&mut self) -> Option<Bytes> {
        let item = self.receiver.recv().await?;
        self.granted(item.len());
        Some(item)
    }

    /// How the stream ended. Items not taken yet are dropped.
    pub async fn end(mut self) -> Answer {
        loop {
            tokio::select! {
                biased;
                answer = &mut self.pending => return answer,
                // Taken so that the peer can come to its end.
                item = self.receiver.recv() => match item {
                    Some(item) => self.granted(item.len()),
                    None => return (&mut self.pending).await,
                },
            }
        }
    }

    fn granted(&mut self, length: usize) {
        self.taken += 1;
        let due = self.pending.asked.ok().filter(|_| self.taken * 2 >= self.window);
        if due.is_none() && length <= UNCHARGED_MAX {
            return;
        }
        let items = if due.is_some() { std::mem::take(&mut self.taken) } else { 0 };
        self.pending.shared.with(|inner| {
            inner.session.item_taken(length);
            if let Some(number) = due {
                inner.session.grant(number, items);
            }
        });
    }
}

impl Drop for Items {
    fn drop(&mut self) {
        self.receiver.close();
        while let Ok(item) = self.receiver.try_recv() {
            self.pending.shared.with(|inner| inner.session.item_taken(item.len()));
        }
    }
}
