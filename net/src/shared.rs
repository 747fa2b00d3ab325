//! What the driver, the handles and the handlers of one session share: the session, who waits for answers, and what is served.
//!
//! The session lives in a mutex that is held for a few lines at a time and never across an `await`. Whoever asks or
//! answers appends to the session and wakes the driver.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use bytes::Bytes;
use quilt_protocol::message::RequestNumber;
use quilt_protocol::session::{Arrived, Closed, NotAsked};
use quilt_protocol::{Event, Hello, RequestHead, Session, Welcome};
use rustc_hash::FxHashMap;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::AbortHandle;

use crate::connection::ConnectError;
use crate::handle::{Answer, Body};
use crate::service::Responder;

/// What the driver, the handles and the handlers of one session share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) inner: Mutex<Inner>,
    pub(crate) closed: OnceLock<Closed>,
    pub(crate) closed_notify: Notify,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) session: Session,
    pub(crate) waiting: FxHashMap<RequestNumber, Waiter>,
    pub(crate) serving: FxHashMap<RequestNumber, Serving>,
    pub(crate) driver: Option<Waker>,
    pub(crate) greeting: Option<oneshot::Sender<Result<Welcome, ConnectError>>>,
    /// See [`Handle::leave_when_idle`](crate::Handle::leave_when_idle).
    pub(crate) leaves_when_idle: bool,
}

/// Who waits for the answer of a request.
#[derive(Debug)]
pub(crate) enum Waiter {
    /// A [`Pending`](crate::Pending); whom to wake, and where items go if it is a stream.
    Pending(Option<Waker>, Option<mpsc::Sender<Bytes>>),
    /// The same, until it takes its answer.
    Answered(Answer),
    /// The answer is another session's.
    Relay(Responder),
    /// Where the answer arrives, something is done with it.
    Then(Then),
}

/// What is done with an answer.
pub(crate) struct Then(pub(crate) Box<dyn FnOnce(Answer) + Send>);

impl std::fmt::Debug for Then {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Then")
    }
}

impl Waiter {
    /// Keeps the answer for whoever polls for it; gives whom to wake.
    fn keep(&mut self, answer: Answer) -> Option<Waker> {
        match std::mem::replace(self, Self::Answered(answer)) {
            Self::Pending(waker, _) => waker,
            _ => None,
        }
    }

    pub(crate) fn give(self, answer: Answer) {
        match self {
            // Theirs is kept where they look for it; only a request that was not taken comes here, and its caller knows.
            Self::Pending(..) | Self::Answered(_) => {}
            Self::Relay(responder) => responder.respond(answer.outcome, answer.encoding, answer.body),
            // A panic in it ends no connection: others wait for theirs.
            Self::Then(Then(then)) => {
                drop(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| then(answer))));
            }
        }
    }
}

/// A request being served.
#[derive(Debug, Default)]
pub(crate) struct Serving {
    pub(crate) work: Option<Working>,
    /// Goes on when the connection is lost; ends when the request is cancelled or its time is over.
    pub(crate) outlives: bool,
    pub(crate) credit_waker: Option<Waker>,
}

/// What is to be ended when a request is given up.
#[derive(Debug)]
pub(crate) enum Working {
    Here(AbortHandle),
    /// It was passed on to this session.
    There(Arc<Shared>, RequestNumber),
}

impl Serving {
    pub(crate) fn abort(self) {
        match self.work {
            Some(Working::Here(task)) => task.abort(),
            Some(Working::There(session, number)) => session.give_up(number),
            None => {}
        }
        if let Some(waker) = self.credit_waker {
            waker.wake();
        }
    }
}

/// Something to be done outside the lock.
pub(crate) enum Due {
    Hello(Box<Hello>),
    Greeted(Result<Welcome, ConnectError>),
    Serve(RequestNumber, RequestHead, Arrived),
    Answer(Waiter, Answer),
    Wake(Waker),
    Cancel(RequestNumber),
    End(Closed),
}

impl Inner {
    pub(crate) fn trim(&mut self) {
        self.session.trim();
        if self.waiting.is_empty() {
            self.waiting = FxHashMap::default();
        }
        if self.serving.is_empty() {
            self.serving = FxHashMap::default();
        }
    }

    /// Whom an event concerns, if anybody.
    pub(crate) fn find(&mut self, event: Event) -> Option<Due> {
        Some(match event {
            Event::Hello(hello) => Due::Hello(hello),
            Event::Established(welcome) => Due::Greeted(Ok(*welcome)),
            Event::Refused(refusal) => Due::Greeted(Err(ConnectError::Refused(refusal))),
            Event::Request(number, head, body) => Due::Serve(number, head, body),
            Event::Answered(number, outcome, encoding, body) => {
                let answer = |body| Answer { outcome, encoding, body };
                match self.waiting.get_mut(&number)? {
                    waiter @ Waiter::Pending(..) => Due::Wake(waiter.keep(answer(body.keep()))?),
                    _ => Due::Answer(self.waiting.remove(&number)?, answer(body.pass_on())),
                }
            }
            Event::Item(number, item) => {
                let length = item.len();
                // The channel is as long as the credit given, which the session enforces.
                let sent = match self.waiting.get(&number) {
                    Some(Waiter::Pending(_, Some(items))) => items.try_send(item.keep()).is_ok(),
                    _ => false,
                };
                if !sent {
                    self.session.item_taken(length);
                }
                return None;
            }
            Event::Credit(number) => Due::Wake(self.serving.get_mut(&number)?.credit_waker.take()?),
            // Found when its turn comes: it may be the cancellation of what is to be served before.
            Event::Cancelled(number) => Due::Cancel(number),
            Event::Closed(why) => Due::End(why),
        })
    }
}

impl Shared {
    pub(crate) fn new(session: Session) -> Arc<Self> {
        let (waiting, serving) = Default::default();
        let inner = Inner { session, waiting, serving, driver: None, greeting: None, leaves_when_idle: false };
        Arc::new(Self { inner: Mutex::new(inner), closed: OnceLock::new(), closed_notify: Notify::new() })
    }

    /// Does something to the session and lets the driver see to what follows.
    pub(crate) fn with<R>(&self, work: impl FnOnce(&mut Inner) -> R) -> R {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let result = work(&mut inner);
        let driver = inner.driver.take();
        drop(inner);
        if let Some(driver) = driver {
            driver.wake();
        }
        result
    }

    /// Asks; gives the waiter back if that cannot be.
    pub(crate) fn ask(
        &self,
        head: &RequestHead,
        body: Bytes,
        waiter: Waiter,
    ) -> Result<RequestNumber, (NotAsked, Waiter)> {
        self.with(|inner| match inner.session.request(head, body, now()) {
            Ok(number) => {
                inner.waiting.insert(number, waiter);
                Ok(number)
            }
            Err(why) => Err((why, waiter)),
        })
    }

    /// The same with a body whose end others share.
    pub(crate) fn ask_in_parts(
        &self,
        head: &RequestHead,
        body: Body,
        waiter: Waiter,
    ) -> Result<RequestNumber, (NotAsked, Waiter)> {
        self.with(|inner| match inner.session.request_in_parts(head, body.first, body.rest, now()) {
            Ok(number) => {
                inner.waiting.insert(number, waiter);
                Ok(number)
            }
            Err(why) => Err((why, waiter)),
        })
    }

    /// The answer of a request that a [`Pending`](crate::Pending) waits for. Asking for it is nothing that the driver need know.
    pub(crate) fn poll_answer(&self, number: RequestNumber, cx: &Context<'_>) -> Poll<Option<Answer>> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        match inner.waiting.get_mut(&number) {
            Some(Waiter::Pending(waker, _)) => {
                match waker {
                    Some(waker) => waker.clone_from(cx.waker()),
                    None => *waker = Some(cx.waker().clone()),
                }
                Poll::Pending
            }
            Some(Waiter::Answered(_)) => match inner.waiting.remove(&number) {
                Some(Waiter::Answered(answer)) => Poll::Ready(Some(answer)),
                _ => unreachable!("it was looked at under the same lock"),
            },
            _ => Poll::Ready(None),
        }
    }

    /// Nobody wants the answer of a request any more.
    pub(crate) fn give_up(&self, number: RequestNumber) {
        // Dropped outside the lock: a responder in it answers another session, which may be this one.
        let _waiter = self.with(|inner| {
            let waiter = inner.waiting.remove(&number);
            if waiter.is_some() {
                inner.session.cancel(number);
            }
            waiter
        });
    }

    /// Notes that a request being served was passed on to another session. It may be over already.
    pub(crate) fn passed_on(&self, number: RequestNumber, to: &Arc<Self>, as_number: RequestNumber) {
        let over = self.with(|inner| match inner.serving.get_mut(&number) {
            Some(serving) => {
                serving.work = Some(Working::There(to.clone(), as_number));
                false
            }
            None => true,
        });
        if over {
            to.give_up(as_number);
        }
    }
}

/// The time as sessions take it: tokio's, so that tests can pause it.
pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
