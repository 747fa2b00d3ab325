//! What happens in the fleet: numbered, stored, and sent to whoever follows.

use std::sync::{Arc, Mutex, PoisonError};

use quilt_core::time;
use quilt_protocol::control::FleetEvent;
use tokio::sync::broadcast;

use crate::store::{Change, Store};

/// How far a follower may fall behind before it reads from the store again.
const BEHIND_MAX: usize = 4096;

/// The fleet's events.
pub(crate) struct EventLog {
    store: Arc<dyn Store>,
    last: Mutex<u64>,
    live: broadcast::Sender<FleetEvent>,
}

impl EventLog {
    pub(crate) fn new(store: Arc<dyn Store>, last: u64) -> Self {
        Self { store, last: Mutex::new(last), live: broadcast::Sender::new(BEHIND_MAX) }
    }

    /// Records something that happened. It is stored soon; events are a story, not a ledger.
    pub(crate) fn add(&self, kind: &str, station: Option<&str>, instance: Option<String>, text: impl Into<String>) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        *last += 1;
        let event = FleetEvent {
            number: *last,
            at: time::now_text(),
            kind: kind.into(),
            station: station.map(Into::into),
            instance,
            text: text.into(),
        };
        // Under the lock, so that the store and followers see numbers in order. Nobody waits for the disk.
        drop(self.store.commit(vec![Change::AddEvent(event.clone())]));
        let _ = self.live.send(event);
    }

    pub(crate) fn last(&self) -> u64 {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hears of events from now on.
    pub(crate) fn follow(&self) -> broadcast::Receiver<FleetEvent> {
        self.live.subscribe()
    }

    pub(crate) fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }
}
