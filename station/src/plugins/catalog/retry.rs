//! When files are loaded again that could not be loaded for trouble of the station's own.

use std::time::Duration;

use tokio::time::Instant;

/// The pause before the first time, and the longest.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// Counts how often they were loaded again in vain.
#[derive(Default)]
pub(super) struct Retry {
    count: u32,
    next: Option<Instant>,
}

impl Retry {
    /// Whether to load them again `now`, if some wait for that. Pauses grow as long as some do.
    pub(super) fn is_due(&mut self, some_wait: bool, now: Instant) -> bool {
        if !some_wait {
            // Those that are being loaded may come to wait again.
            if self.next.is_some_and(|next| next <= now) {
                *self = Self::default();
            }
            return false;
        }
        let next = *self.next.get_or_insert(now + pause(self.count));
        if now < next {
            return false;
        }
        self.count += 1;
        self.next = Some(now + pause(self.count));
        true
    }
}

fn pause(count: u32) -> Duration {
    (PAUSE.0 * (1 << count.min(16))).min(PAUSE.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_station_could_not_load_is_loaded_again_after_pauses_that_grow_until_nothing_waits() {
        let began = Instant::now();
        let mut retry = Retry::default();
        let due = |retry: &mut Retry, seconds: std::ops::Range<u64>| {
            let due = seconds.filter(|second| retry.is_due(true, began + Duration::from_secs(*second)));
            due.collect::<Vec<_>>()
        };
        assert_eq!(due(&mut retry, 0..100), [1, 3, 7, 15, 31, 61, 91]);
        // While they are being loaded none waits, and that is no success yet.
        assert!(!retry.is_due(false, began + Duration::from_secs(101)));
        assert_eq!(due(&mut retry, 102..125), [121]);
        assert!(!retry.is_due(false, began + Duration::from_secs(200)));
        assert_eq!(due(&mut retry, 300..304), [301, 303]);
    }
}
