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
    /// Something was sent since something came.
    sent: bool,
    /// What came first after something was sent came within that time, and nothing was waited for in vain since.
    prompt: bool,
}

impl Watch {
    pub(crate) fn new(time: Duration) -> Self {
        Self { time, active: None, sent: false, prompt: false }
    }

    /// Something came from the peer.
    pub(crate) fn came(&mut self) {
        let before = self.active;
        self.note();
        if std::mem::take(&mut self.sent) {
            self.prompt = before.zip(self.active).is_some_and(|(before, now)| now - before <= self.time);
        }
    }

    /// Something was sent to it.
    pub(crate) fn went(&mut self) {
        self.note();
        self.sent = true;
    }

    fn note(&mut self) {
        if !self.time.is_zero() {
            self.active = Some(Instant::now());
            LATEST.set(self);
        }
    }

    /// Has the task polled again once the thread has looked for input, unless it is time to sleep.
    pub(crate) fn look_again(&mut self, cx: &mut Context<'_>) -> bool {
        if !self.prompt || !std::ptr::eq(LATEST.get(), self) {
            return false;
        }
        self.prompt = self.active.is_some_and(|active| active.elapsed() < self.time);
        // The runtime looks for input before it goes on with whoever yields.
        self.prompt && pin!(tokio::task::yield_now()).poll(cx).is_pending()
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::task::Poll;

    use super::*;

    async fn looks_again(watch: &mut Watch) -> bool {
        poll_fn(|cx| Poll::Ready(watch.look_again(cx))).await
    }

    fn answered(watch: &mut Watch) {
        watch.went();
        watch.came();
    }

    /// Until the clock has moved by more than the shortest of the watches.
    fn let_time_pass() {
        let now = Instant::now();
        while now.elapsed() < Duration::from_micros(1) {}
    }

    #[tokio::test]
    async fn a_peer_is_looked_for_when_it_was_prompt_until_another_one_is() {
        let long = Duration::from_secs(3600);
        let (mut one, mut other) = (Watch::new(long), Watch::new(long));
        one.came();
        one.came();
        assert!(!looks_again(&mut one).await, "it speaks, but answers nothing");
        answered(&mut one);
        assert!(looks_again(&mut one).await);
        other.came();
        assert!(!looks_again(&mut one).await, "one looks for all");
        one.went();
        assert!(looks_again(&mut one).await);
    }

    #[tokio::test]
    async fn a_slow_peer_is_not_looked_for() {
        for time in [Duration::ZERO, Duration::from_nanos(1)] {
            let mut watch = Watch::new(time);
            watch.went();
            let_time_pass();
            watch.came();
            assert!(!looks_again(&mut watch).await, "{time:?}");
        }
    }

    #[tokio::test]
    async fn a_peer_that_falls_silent_is_looked_for_once() {
        let mut watch = Watch::new(Duration::from_secs(3600));
        answered(&mut watch);
        assert!(looks_again(&mut watch).await);
        watch.time = Duration::from_nanos(1);
        let_time_pass();
        assert!(!looks_again(&mut watch).await, "in vain");
        watch.time = Duration::from_secs(3600);
        watch.went();
        assert!(!looks_again(&mut watch).await, "until it answers in time again");
        watch.came();
        assert!(looks_again(&mut watch).await);
    }
}
