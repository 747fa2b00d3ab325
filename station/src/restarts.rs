//! Whether an instance that ended is started again, and when. Decides; does nothing.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use quilt_net::Backoff;

use crate::spec::{Policy, Restart};

/// An instance that worked for so long has recovered: delays start over.
const HEALTHY: Duration = Duration::from_secs(10);

/// The failures of one instance.
#[derive(Debug)]
pub(crate) struct Restarts {
    settings: Restart,
    failures: VecDeque<Instant>,
    backoff: Backoff,
}

/// What to do with an instance that ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Next {
    /// Leave it.
    Rest,
    /// Start it again after this time.
    Again(Duration),
    /// It failed too often.
    GiveUp,
}

impl Restarts {
    pub(crate) fn new(settings: &Restart) -> Self {
        Self { settings: settings.clone(), failures: VecDeque::new(), backoff: backoff(settings) }
    }

    /// Takes changed settings; past failures stay counted.
    pub(crate) fn change(&mut self, settings: &Restart) {
        if *settings != self.settings {
            self.settings = settings.clone();
            self.backoff = backoff(settings);
        }
    }

    /// Its work ended well.
    pub(crate) fn completed(&mut self) -> Next {
        match self.settings.policy {
            Policy::Permanent => Next::Again(self.settings.delay),
            Policy::Transient | Policy::Temporary => Next::Rest,
        }
    }

    /// It failed, after having been active for `worked`.
    pub(crate) fn failed(&mut self, worked: Duration, now: Instant) -> Next {
        if worked >= HEALTHY {
            self.backoff.reset();
        }
        if self.settings.policy == Policy::Temporary {
            return Next::GiveUp;
        }
        self.failures.push_back(now);
        while self.failures.front().is_some_and(|first| now.duration_since(*first) > self.settings.period) {
            self.failures.pop_front();
        }
        let limit = self.settings.intensity as usize;
        if limit > 0 && self.failures.len() > limit {
            return Next::GiveUp;
        }
        // With no limit the window need not grow for ever.
        self.failures.truncate(10_000);
        Next::Again(self.backoff.next_delay())
    }

    /// An operator starts it: what was is forgotten.
    pub(crate) fn forgive(&mut self) {
        self.failures.clear();
        self.backoff.reset();
    }
}

fn backoff(settings: &Restart) -> Backoff {
    Backoff::new(settings.delay, settings.max_delay)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn restarts(policy: Policy) -> Restarts {
        let settings =
            Restart { policy, delay: 100 * MS, max_delay: 1000 * MS, intensity: 3, period: Duration::from_secs(60) };
        Restarts::new(&settings)
    }

    #[test]
    fn delays_grow_and_the_limit_ends_them() {
        let (mut restarts, now) = (restarts(Policy::Transient), Instant::now());
        let mut last = Duration::ZERO;
        for _ in 0..3 {
            let Next::Again(delay) = restarts.failed(Duration::ZERO, now) else { panic!("gave up early") };
            assert!(delay >= last / 2 && delay >= 100 * MS, "{delay:?} after {last:?}");
            last = delay;
        }
        assert_eq!(restarts.failed(Duration::ZERO, now), Next::GiveUp);
        restarts.forgive();
        assert!(matches!(restarts.failed(Duration::ZERO, now), Next::Again(delay) if delay <= 200 * MS));
    }

    #[test]
    fn no_delay_is_longer_than_max_delay_nor_shorter_than_delay() {
        let settings = Restart { delay: 1500 * MS, max_delay: 2000 * MS, intensity: 0, ..Restart::default() };
        let (mut restarts, now) = (Restarts::new(&settings), Instant::now());
        for _ in 0..1000 {
            let next = restarts.failed(Duration::ZERO, now);
            assert!(matches!(next, Next::Again(delay) if (1500 * MS..=2000 * MS).contains(&delay)), "{next:?}");
        }
    }

    #[test]
    fn failures_far_apart_never_reach_the_limit_and_health_resets_the_delay() {
        let (mut restarts, mut now) = (restarts(Policy::Permanent), Instant::now());
        for _ in 0..50 {
            now += Duration::from_secs(30);
            let next = restarts.failed(HEALTHY, now);
            assert!(matches!(next, Next::Again(delay) if delay <= 200 * MS), "{next:?}");
        }
    }

    #[test]
    fn policies_differ_in_what_they_restart() {
        let now = Instant::now();
        assert_eq!(restarts(Policy::Permanent).completed(), Next::Again(100 * MS));
        assert_eq!(restarts(Policy::Transient).completed(), Next::Rest);
        assert_eq!(restarts(Policy::Temporary).completed(), Next::Rest);
        assert_eq!(restarts(Policy::Temporary).failed(Duration::ZERO, now), Next::GiveUp);
        assert!(matches!(restarts(Policy::Transient).failed(Duration::ZERO, now), Next::Again(_)));
    }
}
