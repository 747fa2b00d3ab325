//! The answering side of a session.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use quilt_protocol::error::DecodeError;
use quilt_protocol::message::{Refusal, RequestNumber};
use quilt_protocol::session::{Arrived, Closed};
use quilt_protocol::{Encoding, Hello, Outcome, RequestHead, Welcome, codec};
use serde::Serialize;
use serde::de::DeserializeOwned;
use smol_str::SmolStr;

use crate::shared::Shared;

/// A boxed future, as traits that are used as objects return it.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Work that is done already. It takes no memory, which an empty `async` block in a box does.
pub fn done() -> BoxFuture<'static, ()> {
    Box::pin(poll_fn(|_| Poll::Ready(())))
}

/// Answers what one peer asks. One per connection.
pub trait Service: Send + Sync + 'static {
    /// Decides about a peer that greets (acceptor only), and on whose behalf it asks from then on. Must not block.
    ///
    /// # Errors
    ///
    /// The refusal that the peer is given.
    fn hello(&self, hello: Hello) -> Result<(Welcome, SmolStr), Refusal>;

    /// The work of one request. It is polled once on the connection's task, so what is ready at once costs no task of
    /// its own; the rest is spawned, and aborted if the request is cancelled.
    fn request(&self, inbound: Inbound) -> BoxFuture<'static, ()>;

    /// The session is over.
    fn closed(&self, why: &Closed);
}

/// For a side that is never asked anything.
#[derive(Debug)]
pub struct NoService;

impl Service for NoService {
    fn hello(&self, _: Hello) -> Result<(Welcome, SmolStr), Refusal> {
        Err(Refusal {
            code: "no_service".into(),
            text: "this side takes no connections".into(),
            versions: quilt_protocol::version::SPOKEN,
            extensions: Default::default(),
        })
    }

    fn request(&self, inbound: Inbound) -> BoxFuture<'static, ()> {
        inbound.responder.fail(Outcome::NoCommand, &format!("{} is not offered here", inbound.head.terms.command));
        done()
    }

    fn closed(&self, _: &Closed) {}
}

/// A request from the peer.
#[derive(Debug)]
pub struct Inbound {
    /// What is asked, of whom.
    pub head: RequestHead,
    /// The body, as it came.
    pub body: Arrived,
    /// Where the answer goes.
    pub responder: Responder,
}

impl Inbound {
    /// Decodes the body and carries out `work`; its result is the reply, or the failure that the caller gets.
    pub fn answer<Q, R, F>(self, work: impl FnOnce(Q) -> F + Send + 'static) -> BoxFuture<'static, ()>
    where
        Q: DeserializeOwned + Send,
        R: Serialize,
        F: Future<Output = Result<R, (Outcome, String)>> + Send + 'static,
    {
        let encoding = self.head.terms.encoding;
        match decode("the request", encoding, &self.body) {
            Err(error) => {
                self.responder.fail(Outcome::SchemaMismatch, &error.to_string());
                done()
            }
            Ok(request) => {
                let work = work(request);
                Box::pin(async move {
                    match work.await {
                        Ok(reply) => self.responder.reply(encoding, &reply),
                        Err((outcome, text)) => self.responder.fail(outcome, &text),
                    }
                })
            }
        }
    }
}

/// Decodes a typed body.
///
/// # Errors
///
/// [`DecodeError`]; for JSON its text names line and column.
pub fn decode<T: DeserializeOwned>(what: &'static str, encoding: Encoding, body: &[u8]) -> Result<T, DecodeError> {
    match encoding {
        Encoding::Bincode => codec::from_bincode(what, body),
        Encoding::Json => serde_json::from_slice(if body.is_empty() { b"{}" } else { body })
            .map_err(|error| DecodeError::Malformed { what, reason: error.to_string() }),
    }
}

/// Encodes a typed body.
///
/// # Panics
///
/// If the type cannot be encoded so; quilt's own wire types can.
pub fn encode<T: Serialize>(encoding: Encoding, value: &T) -> Bytes {
    match encoding {
        Encoding::Bincode => codec::to_bincode("a body", value).expect("wire types are made for bincode").into(),
        Encoding::Json => serde_json::to_vec(value).expect("wire types have text keys").into(),
    }
}

/// Takes exactly one answer. Dropped without one, the caller is told that the handler panicked.
#[derive(Debug)]
pub struct Responder {
    shared: Arc<Shared>,
    number: RequestNumber,
    answered: bool,
}

impl Responder {
    pub(crate) fn new(shared: Arc<Shared>, number: RequestNumber) -> Self {
        Self { shared, number, answered: false }
    }

    /// Ends the request. Without effect if it was cancelled meanwhile.
    pub fn respond(mut self, outcome: Outcome, encoding: Encoding, body: Bytes) {
        self.end(outcome, encoding, body);
    }

    /// Ends the request with a typed reply.
    pub fn reply<T: Serialize>(self, encoding: Encoding, reply: &T) {
        self.respond(Outcome::Reply, encoding, encode(encoding, reply));
    }

    /// Ends the request with something other than a reply, and a text for people.
    pub fn fail(self, outcome: Outcome, text: &str) {
        self.respond(outcome, Encoding::Json, Bytes::copy_from_slice(text.as_bytes()));
    }

    /// Lets the work of this request go on when its connection is lost; whoever asks for this bounds it.
    pub fn outlive_connection(&self) {
        self.shared.with(|inner| {
            if let Some(serving) = inner.serving.get_mut(&self.number) {
                serving.outlives = true;
            }
        });
    }

    /// The way to send items, for a request that asks for a stream.
    pub fn items(&self) -> ItemSink {
        ItemSink { shared: self.shared.clone(), number: self.number }
    }

    /// The request that it answers.
    pub(crate) fn origin(&self) -> (Arc<Shared>, RequestNumber) {
        (self.shared.clone(), self.number)
    }

    fn end(&mut self, outcome: Outcome, encoding: Encoding, body: Bytes) {
        self.answered = true;
        let waker = self.shared.with(|inner| {
            let serving = inner.serving.remove(&self.number);
            inner.session.respond(self.number, outcome, encoding, body);
            serving.and_then(|serving| serving.credit_waker)
        });
        // Whoever still waits for credit hears that it is over.
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        if !self.answered {
            let text = Bytes::from_static(b"the handler ended without an answer");
            self.end(Outcome::Panicked, Encoding::Json, text);
        }
    }
}

/// Sends the items of a streaming answer, no faster than the caller takes them.
#[derive(Debug)]
pub struct ItemSink {
    shared: Arc<Shared>,
    number: RequestNumber,
}

/// The caller takes no more items.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gone;

impl ItemSink {
    /// Sends one item, waiting for credit.
    ///
    /// # Errors
    ///
    /// [`Gone`] when the request is over.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe: a dropped call has sent nothing.
    pub async fn send(&mut self, item: Bytes) -> Result<(), Gone> {
        // A handler that always finds credit must let others have their turn all the same.
        tokio::task::consume_budget().await;
        let mut item = Some(item);
        poll_fn(|cx| {
            self.shared.with(|inner| match inner.session.credit(self.number) {
                None => Poll::Ready(Err(Gone)),
                Some(0) => {
                    if let Some(serving) = inner.serving.get_mut(&self.number) {
                        serving.credit_waker = Some(cx.waker().clone());
                    }
                    Poll::Pending
                }
                Some(_) => {
                    let item = item.take().expect("polled again after it was ready");
                    Poll::Ready(inner.session.item(self.number, item).map_err(|_| Gone))
                }
            })
        })
        .await
    }

    /// Sends one item as JSON.
    ///
    /// # Errors
    ///
    /// [`Gone`] when the request is over.
    pub async fn send_json<T: Serialize>(&mut self, item: &T) -> Result<(), Gone> {
        self.send(encode(Encoding::Json, item)).await
    }
}
