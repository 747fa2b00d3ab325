//! What a session allows its peer.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// What a session allows its peer. Every limit is checked before memory is taken.
#[derive(Clone, Debug)]
pub struct Limits {
    /// The longest body, in bytes.
    pub body: usize,
    /// Bytes of unfinished bodies, arriving or waiting to leave, that a session holds at once.
    pub unfinished: usize,
    /// How long the greeting may take.
    pub greeting: Duration,
    /// What all sessions of a process together hold of bodies that are arriving.
    pub shared: Budget,
}

/// Bytes that several sessions share. Clones share the same ones.
#[derive(Clone, Debug)]
pub struct Budget {
    left: Arc<AtomicUsize>,
}

impl Budget {
    /// So many bytes.
    pub fn new(bytes: usize) -> Self {
        Self { left: Arc::new(AtomicUsize::new(bytes)) }
    }

    pub(super) fn take(&self, bytes: usize) -> bool {
        let take = |left: usize| left.checked_sub(bytes);
        self.left.fetch_update(Ordering::AcqRel, Ordering::Acquire, take).is_ok()
    }

    pub(super) fn give_back(&self, bytes: usize) {
        self.left.fetch_add(bytes, Ordering::AcqRel);
    }
}

impl Default for Limits {
    fn default() -> Self {
        let unfinished = 128 << 20;
        Self { body: 64 << 20, unfinished, greeting: Duration::from_secs(5), shared: Budget::new(unfinished) }
    }
}
