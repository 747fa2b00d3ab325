//! Looking for what comes next before sleeping, where it mostly comes soon.
//!
//! A thread that sleeps takes longer to wake up than a short command takes to be carried out, and a call through a manager
//! wakes four. Whoever serves many peers can afford to look for an answer, or the next request, for about as long as waking
//! up would take. At worst that doubles the cost of waiting, which is the usual argument for spinning before blocking
//! (Karlin, Li, Manasse, Owicki: Empirical studies of competitive spinning for a shared-memory multiprocessor, 1991); and it
//! is not done where it did not pay the last time.

use std::cell::Cell;
use std::pin::pin;
use std::task::Context;
use std::time::{Duration, Instant};

thread_local! {
    /// The watch on which something happened last. One looks for all connections of a thread. Only ever compared: it may be gone.
    static LATEST: Cell<*const Watch> = const { Cell::new(std::ptr::null()) };
}

/// What is known of one connection. The time is the real one, which goes on while a test pauses tokio's.
pub(crate) struct Watch {
    /// For how long to look; not at all if it is zero.
    time: Duration,
    /// When something last came or went.
    active: Option<Instant>,
    /// What came last came within that time after what was before.
    prompt: bool,
}

impl Watch {
    pub(crate) fn new(time: Duration) -> Self {
        Self { time, active: None, prompt: false }
    }

    /// Something came from the peer.
    pub(crate) fn came(&mut self) {
        let before = self.active;
        self.went();
        self.prompt = before.zip(self.active).is_some_and(|(before, now)| now - before <= self.time);
    }

    /// Something was sent to it.
    pub(crate) fn went(&mut self) {
        if !self.time.is_zero() {
            self.active = Some(Instant::now());
            LATEST.set(self);
        }
    }

    /// Has the task polled again once the thread has looked for input, unless it is time to sleep.
    pub(crate) fn look_again(&self, cx: &mut Context<'_>) -> bool {
        let looks = self.prompt
            && std::ptr::eq(LATEST.get(), self)
            && self.active.is_some_and(|active| active.elapsed() < self.time);
        // The runtime looks for input before it goes on with whoever yields.
        looks && pin!(tokio::task::yield_now()).poll(cx).is_pending()
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::task::Poll;

    use super::*;

    async fn looks_again(watch: &Watch) -> bool {
        poll_fn(|cx| Poll::Ready(watch.look_again(cx))).await
    }

    #[tokio::test]
    async fn a_peer_is_looked_for_when_it_was_prompt_until_another_one_is() {
        let long = Duration::from_secs(3600);
        let (mut one, mut other) = (Watch::new(long), Watch::new(long));
        one.came();
        assert!(!looks_again(&one).await, "nothing is known of it");
        one.went();
        one.came();
        assert!(looks_again(&one).await);
        other.came();
        assert!(!looks_again(&one).await, "one looks for all");
        one.went();
        assert!(looks_again(&one).await);
    }

    #[tokio::test]
    async fn a_slow_peer_is_not_looked_for() {
        for time in [Duration::ZERO, Duration::from_nanos(1)] {
            let mut watch = Watch::new(time);
            for _ in 0..3 {
                watch.went();
                let sent = Instant::now();
                while sent.elapsed() < Duration::from_micros(1) {}
                watch.came();
            }
            assert!(!looks_again(&watch).await, "{time:?}");
        }
    }
}
