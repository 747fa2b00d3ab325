//! When to try again.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};

/// Delays between attempts to reach a peer: doubling with jitter, capped, and starting over only when told so.
#[derive(Debug)]
pub struct Reconnect {
    builder: ExponentialBuilder,
    delays: ExponentialBackoff,
}

impl Reconnect {
    /// From `first` on, up to about `cap`.
    pub fn new(first: Duration, cap: Duration) -> Self {
        let builder = ExponentialBuilder::new()
            .with_min_delay(first)
            .with_max_delay(cap)
            .with_factor(2.0)
            .without_max_times()
            .with_jitter();
        Self { builder, delays: builder.build() }
    }

    /// How long to wait before the next attempt.
    pub fn next_delay(&mut self) -> Duration {
        self.delays.next().expect("the delays do not end")
    }

    /// The peer was reached and accepted us: start over.
    pub fn reset(&mut self) {
        self.delays = self.builder.build();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_differ_and_stay_bounded() {
        let (first, cap) = (Duration::from_millis(100), Duration::from_secs(5));
        let mut reconnect = Reconnect::new(first, cap);
        let delays: Vec<_> = (0..20).map(|_| reconnect.next_delay()).collect();
        assert!(delays[0] >= first && delays[0] <= 2 * first, "{:?}", delays[0]);
        assert!(delays.iter().all(|delay| *delay <= 2 * cap), "{delays:?}");
        assert!(delays[10] > delays[0] * 5, "{delays:?}");
        reconnect.reset();
        assert!(reconnect.next_delay() <= 2 * first);
    }
}
