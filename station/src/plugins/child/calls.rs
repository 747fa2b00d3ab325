//! Calls of commands that run in a child.

use std::panic::resume_unwind;
use std::sync::Arc;

use bytes::Bytes;
use quilt_net::{Answer, Handle};
use quilt_plugin_api as api;
use quilt_plugin_api::{Ended, Handler, RawItems};
use quilt_protocol::message::NO_DEADLINE;
use quilt_protocol::{Address, Encoding, Outcome, RequestHead, Terms};

use super::{CANCEL, Child};
use crate::plugins::wire;

/// How many items of a stream wait here.
const WINDOW: u32 = 64;

/// What carries out calls of a command in a child.
pub(super) fn handler(child: Arc<Child>, to: Address, command: u64) -> Handler {
    let terms = |encoding| Arc::new(Terms { encoding, ..Terms::new(to.clone(), command.to_string()) });
    let (json, bincode) = (terms(Encoding::Json), terms(Encoding::Bincode));
    Arc::new(move |call| {
        let terms = match call.encoding {
            api::Encoding::Json => &json,
            api::Encoding::Bincode => &bincode,
        };
        Box::pin(carry_out(child.clone(), terms.clone(), call))
    })
}

async fn carry_out(child: Arc<Child>, terms: Arc<Terms>, call: api::Call) -> Ended {
    let session = child.session.get().expect("a child that was started has a session");
    let mut head = RequestHead::new(terms);
    // Whoever calls keeps the time, and drops this when it is over.
    head.remaining_ms = NO_DEADLINE;
    let answer = match call.items {
        None => {
            let asked = session.request(&head, call.body);
            let watch = Watch { child: child.clone(), done: false };
            let answer = asked.await;
            watch.done();
            answer
        }
        Some(sink) => {
            let watch = Watch { child: child.clone(), done: false };
            let answer = stream(session, head, call.body, sink).await;
            watch.done();
            answer
        }
    };
    let Answer { outcome, body, .. } = &answer;
    match outcome {
        Outcome::Reply => Ended::Reply(body.clone()),
        Outcome::Error => Ended::Error(body.clone()),
        Outcome::SchemaMismatch => Ended::SchemaMismatch(answer.text()),
        Outcome::Overloaded => Ended::Overloaded(answer.text()),
        Outcome::Panicked => resume_unwind(Box::new(answer.text())),
        Outcome::TimedOut => Ended::TimedOut,
        Outcome::PeerLost(_) => Ended::Lost(child.end_in_words().await),
        _ => Ended::Refused(answer.text()),
    }
}

async fn stream(session: &Handle, head: RequestHead, body: Bytes, mut sink: Box<dyn RawItems>) -> Answer {
    let mut items = session.stream(head, body, WINDOW);
    while let Some(item) = items.next().await {
        if !sink.send(item).await {
            break;
        }
    }
    items.end().await
}

/// Looks whether a plugin lets go of a call that was given up: one that does not hangs, and is killed.
struct Watch {
    child: Arc<Child>,
    done: bool,
}

impl Watch {
    fn done(mut self) {
        self.done = true;
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if self.done || self.child.is_over() {
            return;
        }
        let child = self.child.clone();
        #[allow(clippy::disallowed_methods, reason = "bounded by CANCEL")]
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                // The plugin's own threads must still turn: that is what a hang in a command stops.
                if child.ask::<_, ()>(wire::ALIVE, &(), CANCEL).await.is_err() && !child.is_over() {
                    child.kill(&format!("it did not answer {CANCEL:?} after a call was given up: it hangs"));
                }
            });
        }
    }
}
