//! What a session allows its peer.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::{IN_FLIGHT_MAX, ITEM_MAX};

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
    whole: usize,
    left: Arc<AtomicUsize>,
}

impl Budget {
    /// So many bytes.
    pub fn new(bytes: usize) -> Self {
        Self { whole: bytes, left: Arc::new(AtomicUsize::new(bytes)) }
    }

    pub(super) fn take(&self, bytes: usize) -> bool {
        let take = |left: usize| left.checked_sub(bytes);
        self.left.fetch_update(Ordering::AcqRel, Ordering::Acquire, take).is_ok()
    }

    pub(super) fn give_back(&self, bytes: usize) {
        self.left.fetch_add(bytes, Ordering::AcqRel);
    }
}

/// What is said when a limit is reached: it names the limit, so that whoever meets it knows what to change.
impl Limits {
    /// Too many requests of this side, or too many bytes of them.
    pub fn too_many_asked(&self) -> String {
        format!("a connection bears {IN_FLIGHT_MAX} requests at once and {} of bodies under way", mib(self.unfinished))
    }

    /// Too many requests of the peer, or too many bytes of them, here or on all connections.
    pub fn too_many_served(&self) -> String {
        format!("{}, all connections here together {}; try again later", self.too_many_asked(), mib(self.shared.whole))
    }

    /// A request's body is longer than it may be.
    pub fn body_too_long(&self, length: usize) -> String {
        format!("a body of {length} bytes; the limit is {}", mib(self.body))
    }

    /// What [`crate::Terms::is_small`] refuses.
    pub fn head_too_long(&self) -> &'static str {
        "the request's head is too long: a command and a principal have at most 256 bytes each, extensions 4 KiB"
    }

    /// An answer or item is longer than it may be, or too many long ones arrive.
    pub fn answer_too_long(&self) -> String {
        let (reply, item, bytes) = (mib(self.body), mib(ITEM_MAX), mib(self.unfinished));
        format!(
            "a reply has at most {reply} and an item {item}, and a connection bears {bytes} of them under way at once"
        )
    }
}

fn mib(bytes: usize) -> String {
    format!("{} MiB", bytes >> 20)
}

impl Default for Limits {
    fn default() -> Self {
        let unfinished = 128 << 20;
        Self { body: 64 << 20, unfinished, greeting: Duration::from_secs(5), shared: Budget::new(unfinished) }
    }
}
