//! When to try again.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};

/// Delays between attempts. They double with jitter, and are never shorter than the first delay nor longer than the cap.
///
/// Jitter spreads peers that failed together. At the cap a delay is a random one between half the cap and the cap.
#[derive(Debug)]
pub struct Backoff {
    builder: ExponentialBuilder,
    delays: ExponentialBackoff,
    cap: Duration,
}

impl Backoff {
    /// Delays from `first` to `cap`. A `first` beyond the cap is the cap.
    pub fn new(first: Duration, cap: Duration) -> Self {
        let first = first.min(cap);
        let builder = ExponentialBuilder::new()
            .with_min_delay(first)
            // Jitter adds up to as much again.
            .with_max_delay(first.max(cap / 2))
            .with_factor(2.0)
            .without_max_times()
            .with_jitter();
        Self { builder, delays: builder.build(), cap }
    }

    /// Returns how long to wait before the next attempt, and advances to a longer delay.
    pub fn next_delay(&mut self) -> Duration {
        self.delays.next().expect("the delays do not end").min(self.cap)
    }

    /// Starts over with the first delay. Call it once an attempt has succeeded.
    pub fn reset(&mut self) {
        self.delays = self.builder.build();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_and_stay_between_the_first_and_the_cap() {
        for (first_ms, cap_ms) in [(100, 5000), (200, 10_000), (2000, 2000), (1500, 2000), (0, 1000), (5000, 1000)] {
            let (first, cap) = (Duration::from_millis(first_ms), Duration::from_millis(cap_ms));
            let mut backoff = Backoff::new(first, cap);
            let delays: Vec<_> = (0..1000).map(|_| backoff.next_delay()).collect();
            assert!(delays.iter().all(|delay| *delay >= first.min(cap) && *delay <= cap), "{first_ms} {cap_ms}");
            assert!(delays[0] <= 2 * first, "{:?}", delays[0]);
            backoff.reset();
            assert!(backoff.next_delay() <= 2 * first);
        }
    }

    #[test]
    fn delays_at_the_cap_still_differ() {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));
        let delays: Vec<_> = (0..100).map(|_| backoff.next_delay()).skip(10).collect();
        let (least, most) = (delays.iter().min().unwrap(), delays.iter().max().unwrap());
        assert!(*most - *least > Duration::from_secs(2), "{least:?} to {most:?}");
    }
}
