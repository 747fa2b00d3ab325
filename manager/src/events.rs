//! What happens in the fleet: numbered, stored, and sent to whoever follows.

use std::sync::{Arc, Mutex, PoisonError};

use quilt_core::words::count;
use quilt_protocol::control::FleetEvent;
use tokio::sync::broadcast;

use crate::clock::Clock;
use crate::store::{Change, Store};

/// How far a follower may fall behind before it reads from the store again.
const BEHIND_MAX: usize = 4096;

/// How many commits may wait for the disk before events are left out of the store: a slow disk and a chatty role must not
/// fill memory.
const BACKLOG_MAX: usize = 4096;

/// The fleet's events.
pub(crate) struct EventLog {
    store: Arc<dyn Store>,
    clock: Clock,
    last: Mutex<Last>,
    live: broadcast::Sender<FleetEvent>,
}

struct Last {
    number: u64,
    /// Events since, that were not recorded.
    left_out: u64,
}

impl EventLog {
    pub(crate) fn new(store: Arc<dyn Store>, clock: Clock, last: u64) -> Self {
        let last = Last { number: last, left_out: 0 };
        Self { store, clock, last: Mutex::new(last), live: broadcast::Sender::new(BEHIND_MAX) }
    }

    /// Records something that happened. It is stored soon; events are a story, not a ledger.
    pub(crate) fn add(&self, kind: &str, station: Option<&str>, instance: Option<String>, text: impl Into<String>) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if self.store.backlog() > BACKLOG_MAX {
            last.left_out += 1;
            return;
        }
        let left_out = std::mem::take(&mut last.left_out);
        if left_out > 0 {
            tracing::warn!(left_out, "events were left out: they came faster than the disk took them");
            self.put(&mut last, "events.left_out", None, None, count(left_out as usize, "event"));
        }
        self.put(&mut last, kind, station, instance, text.into());
    }

    fn put(&self, last: &mut Last, kind: &str, station: Option<&str>, instance: Option<String>, text: String) {
        last.number += 1;
        let (number, at) = (last.number, self.clock.now_text());
        let event = FleetEvent { number, at, kind: kind.into(), station: station.map(Into::into), instance, text };
        // Under the lock, so that the store and followers see numbers in order. Nobody waits for the disk.
        drop(self.store.commit(vec![Change::AddEvent(event.clone())]));
        let _ = self.live.send(event);
    }

    pub(crate) fn last(&self) -> u64 {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).number
    }

    /// Hears of events from now on.
    pub(crate) fn follow(&self) -> broadcast::Receiver<FleetEvent> {
        self.live.subscribe()
    }

    pub(crate) fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }
}
