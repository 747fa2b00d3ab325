//! Calls of commands: found, carried out once, answered.

use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use quilt_net::{BoxFuture, Inbound, ItemSink, Responder, done};
use quilt_plugin_api as api;
use quilt_protocol::control::ASK_FOR_STREAM;
use quilt_protocol::dedupe::{Dedupe, Seen, WAITING_MAX};
use quilt_protocol::message::Delivered;
use quilt_protocol::{Encoding, Outcome, RequestHead};
use tokio_util::sync::CancellationToken;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::Requests;
use crate::catch::{PANICKED, catch, catch_now};
use crate::commands::{Found, NoHandler, Offer};
use crate::role_events::{within, within_now};
use crate::spec::Key;

impl Requests {
    /// Calls a command of an instance. A retry of a call is not carried out twice.
    pub(super) fn call(&self, key: &Key, inbound: Inbound) -> BoxFuture<'static, ()> {
        let Inbound { head, body, responder } = inbound;
        // A role may keep what it is asked for as long as it likes.
        let body = body.keep();
        let streaming = head.terms.credit > 0;
        let found = match self.find(key, &head, streaming) {
            Ok(found) => found,
            Err((outcome, text)) => {
                responder.fail(outcome, &text);
                return done();
            }
        };
        if streaming {
            let items = Box::new(Sink(responder.items())) as Box<dyn api::RawItems>;
            let calling = Calling::begin(found, head.terms.encoding, body, Some(items));
            return Box::pin(async move { answer(responder, calling.end().await) });
        }
        if found.offer.record.read {
            // To look twice does no harm.
            return match Calling::begin(found, head.terms.encoding, body, None).now() {
                Ok(ended) => {
                    answer(responder, ended);
                    done()
                }
                Err(calling) => Box::pin(async move { answer(responder, calling.end().await) }),
            };
        }
        // The lock is let go of before anything of a role runs: what answers takes it again.
        let arrived = lock(&self.dedupe).arrived(head.message_id, responder, Instant::now());
        match arrived {
            Seen::Fresh(responder) => self.call_once(found, head, body, responder),
            Seen::Answered(responder, answered) => {
                answer(responder, answered);
                done()
            }
            Seen::Joined => done(),
            Seen::Crowded(responder) => {
                let text = format!("{WAITING_MAX} retries of this request wait for its answer, which is the limit");
                responder.fail(Outcome::Overloaded, &text);
                done()
            }
        }
    }

    /// Carries out what may be asked for again: a caller that lost its connection finds the answer then, so what it began goes
    /// on to its end. One that cancels, or whose time is over, wants it ended.
    fn call_once(&self, found: Found, head: RequestHead, body: Bytes, responder: Responder) -> BoxFuture<'static, ()> {
        let time = Duration::from_millis(head.remaining_ms.into());
        let encoding = head.terms.encoding;
        let guard = Guard { dedupe: self.dedupe.clone(), head };
        let calling = match Calling::begin(found, encoding, body, None).now() {
            Ok(ended) => {
                guard.done(responder, ended);
                return done();
            }
            Err(calling) => calling,
        };
        responder.outlive_connection();
        Box::pin(async move {
            let ended = tokio::time::timeout(time, calling.end()).await;
            guard.done(responder, ended.unwrap_or((Outcome::TimedOut, Encoding::Json, Bytes::new())));
        })
    }

    fn find(&self, key: &Key, head: &RequestHead, streaming: bool) -> Result<Found, (Outcome, String)> {
        let found = self.commands.find(key, &head.terms.command).map_err(|error| match error {
            NoHandler::NoTarget => match self.board.get(key) {
                Some(report) => (Outcome::NoTarget, format!("{key} is {} and takes no commands", report.state)),
                None => (Outcome::NoTarget, format!("this station has no instance {key}")),
            },
            NoHandler::NoCommand => (Outcome::NoCommand, format!("{key} has no command {:?}", head.terms.command)),
            NoHandler::Ambiguous(text) => (Outcome::NoCommand, text),
        })?;
        let agrees =
            head.terms.fingerprint == found.offer.record.fingerprint && head.terms.fingerprint != api::JSON_ONLY;
        if head.terms.encoding == Encoding::Bincode && !agrees {
            let text = "the caller's types are not the role's; send JSON".to_owned();
            return Err((Outcome::SchemaMismatch, text));
        }
        if found.offer.record.streaming != streaming {
            let text = if streaming { "does not answer with a stream" } else { ASK_FOR_STREAM };
            return Err((Outcome::Refused, format!("{:?} {text}", head.terms.command)));
        }
        Ok(found)
    }
}

/// How a call ended, as it is answered.
type Answer = (Outcome, Encoding, Bytes);

fn answer(responder: Responder, (outcome, encoding, body): Answer) {
    responder.respond(outcome, encoding, body);
}

/// A call under way.
struct Calling {
    offer: Arc<Offer>,
    encoding: Encoding,
    /// What the handler is given, until it is.
    call: Option<api::Call>,
    work: Option<api::BoxFuture<'static, api::Ended>>,
    calls: Arc<CancellationToken>,
    _under_way: TaskTrackerToken,
}

impl Calling {
    fn begin(found: Found, encoding: Encoding, body: Bytes, items: Option<Box<dyn api::RawItems>>) -> Self {
        let as_role_sees_it = match encoding {
            Encoding::Json => api::Encoding::Json,
            Encoding::Bincode => api::Encoding::Bincode,
        };
        let Found { offer, calls, under_way } = found;
        let call = Some(api::Call { encoding: as_role_sees_it, body, items });
        Self { offer, encoding, call, work: None, calls, _under_way: under_way }
    }

    /// How it ended, if it may be tried here and ends at once. What does not is tried again by a task of its own.
    fn now(mut self) -> Result<Answer, Self> {
        if !self.offer.inline {
            return Err(self);
        }
        let ended = self.begin_work().and_then(|mut work| {
            let polled = catch_now(|| {
                within_now(self.offer.run, || work.as_mut().poll(&mut Context::from_waker(Waker::noop())))
            });
            self.work = Some(work);
            polled
        });
        match ended {
            Ok(Poll::Pending) => Err(self),
            Ok(Poll::Ready(ended)) => Ok(self.answer(Ok(ended))),
            Err(panic) => Ok(self.answer(Err(panic))),
        }
    }

    /// How it ends. Not on the connection's own task, which must go on while a role takes its time.
    async fn end(mut self) -> Answer {
        if !self.offer.inline {
            tokio::task::yield_now().await;
        }
        let ended = match self.begin_work() {
            Ok(work) => tokio::select! {
                biased;
                ended = catch(within(self.offer.run, work)) => ended,
                () = self.calls.cancelled() => {
                    let text = Bytes::from_static(b"the instance was updated or stopped");
                    return (Outcome::Cancelled, Encoding::Json, text);
                }
            },
            Err(panic) => Err(panic),
        };
        self.answer(ended)
    }

    /// The work; what a role does to begin it runs here.
    fn begin_work(&mut self) -> Result<api::BoxFuture<'static, api::Ended>, String> {
        match (self.work.take(), self.call.take()) {
            (Some(work), _) => Ok(work),
            (None, Some(call)) => catch_now(|| within_now(self.offer.run, || (self.offer.handler)(call))),
            (None, None) => unreachable!("a call is begun once and its work is put back"),
        }
    }

    fn answer(&self, ended: Result<api::Ended, String>) -> Answer {
        let text = |outcome: Outcome, text: String| (outcome, Encoding::Json, Bytes::from(text));
        match ended {
            Ok(api::Ended::Reply(body)) => (Outcome::Reply, self.encoding, body),
            Ok(api::Ended::Error(body)) => (Outcome::Error, self.encoding, body),
            Ok(api::Ended::SchemaMismatch(why)) => text(Outcome::SchemaMismatch, why),
            Ok(api::Ended::Refused(why)) => text(Outcome::Refused, why),
            Ok(api::Ended::Overloaded(why)) => text(Outcome::Overloaded, why),
            Ok(api::Ended::Lost(why)) => text(Outcome::PeerLost(Delivered::Unknown), why),
            Ok(api::Ended::TimedOut) => text(Outcome::TimedOut, String::new()),
            Err(panic) => {
                // The outcome says that it panicked; what the instance failed of has to say so itself.
                let message = panic.strip_prefix(PANICKED).unwrap_or(&panic).to_owned();
                let _ = self.offer.crashed.try_send(panic);
                text(Outcome::Panicked, message)
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes sure that a call that was dropped half-way does not stay "under way" for its retries.
struct Guard {
    dedupe: Arc<Mutex<Dedupe<Responder>>>,
    head: RequestHead,
}

impl Guard {
    /// Answers whoever asked, and whoever asked again meanwhile.
    fn done(self, first: Responder, ended: Answer) {
        let carried_out = matches!(ended.0, Outcome::Reply | Outcome::Error | Outcome::Panicked | Outcome::Cancelled);
        let mut dedupe = lock(&self.dedupe);
        let joined = match carried_out {
            true => dedupe.answered(self.head.message_id, ended.clone(), Instant::now()),
            false => dedupe.forget(self.head.message_id),
        };
        drop(dedupe);
        for joined in joined {
            answer(joined, ended.clone());
        }
        answer(first, ended);
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // After `done` this finds an answer and leaves it.
        let under_way = lock(&self.dedupe).abandon(self.head.message_id);
        for joined in under_way {
            joined.fail(Outcome::Cancelled, "the call that this retry waited for was cancelled");
        }
    }
}

struct Sink(ItemSink);

impl api::RawItems for Sink {
    fn send(&mut self, item: Bytes) -> api::BoxFuture<'_, bool> {
        Box::pin(async move { self.0.send(item).await.is_ok() })
    }
}
