//! The time of day, for what people read. How long something takes is measured with tokio's clock, which tests pause.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use quilt_core::time;
use tokio::time::Instant;

/// Tells a manager the time of day.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// A time of day and when it was; none to ask the operating system.
    simulated: Option<(SystemTime, Instant)>,
}

impl Clock {
    /// The machine's own clock, which an operator may set forward and back.
    pub fn system() -> Self {
        Self { simulated: None }
    }

    /// A clock that shows `now` and goes on with tokio's: it stands still while a test pauses that.
    pub fn simulated(now: SystemTime) -> Self {
        Self { simulated: Some((now, Instant::now())) }
    }

    fn now(self) -> SystemTime {
        self.simulated.map_or_else(SystemTime::now, |(shown, at)| shown + at.elapsed())
    }

    /// Milliseconds since 1970; 0 before that.
    pub(crate) fn now_ms(self) -> u64 {
        self.now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_millis() as u64
    }

    /// The time as [`time::rfc3339`] text.
    pub(crate) fn now_text(self) -> String {
        time::rfc3339(self.now())
    }
}
