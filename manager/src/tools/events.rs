//! Streams what happened in the fleet, and what happens.

use std::sync::Arc;

use quilt_net::{BoxFuture, Inbound, ItemSink, Responder, decode, done};
use quilt_protocol::control::{Empty, Events};
use quilt_protocol::{Encoding, Outcome};
use tokio::sync::broadcast::error::RecvError;

use crate::Core;

/// How many events are shown to somebody who does not say after which.
const LAST_EVENTS: u64 = 100;
/// How many events are read from the store at a time.
const EVENTS_PAGE: usize = 500;

/// Streams events: those of the past, then on request those to come, none left out.
pub(super) fn events(core: Arc<Core>, inbound: Inbound) -> BoxFuture<'static, ()> {
    let Inbound { head, body, responder } = inbound;
    let request: Events = match decode("the request", head.terms.encoding, &body) {
        Ok(request) => request,
        Err(error) => {
            responder.fail(Outcome::SchemaMismatch, &error.to_string());
            return done();
        }
    };
    if head.terms.credit == 0 {
        responder.fail(Outcome::Refused, "events are a stream; ask for one");
        return done();
    }
    Box::pin(async move {
        let items = responder.items();
        send_events(&core, &request, items, responder).await;
    })
}

async fn send_events(core: &Core, request: &Events, mut items: ItemSink, responder: Responder) {
    // Followed first and read second, so that nothing falls between; numbers tell what was read already.
    let mut live = core.events.follow();
    let mut after = request.after.unwrap_or_else(|| core.events.last().saturating_sub(LAST_EVENTS));
    loop {
        loop {
            let page = match core.events.store().events(after, EVENTS_PAGE).await {
                Ok(page) => page,
                Err(error) => return responder.fail(Outcome::Refused, &error.to_string()),
            };
            let Some(last) = page.last() else { break };
            after = last.number;
            for event in &page {
                if items.send_json(event).await.is_err() {
                    return;
                }
            }
        }
        if !request.follow {
            return responder.reply(Encoding::Json, &Empty {});
        }
        loop {
            match live.recv().await {
                Ok(event) if event.number <= after => {}
                Ok(event) => {
                    after = event.number;
                    if items.send_json(&event).await.is_err() {
                        return;
                    }
                }
                // Too far behind: catch up from the store.
                Err(RecvError::Lagged(_)) => break,
                Err(RecvError::Closed) => return responder.reply(Encoding::Json, &Empty {}),
            }
        }
    }
}
