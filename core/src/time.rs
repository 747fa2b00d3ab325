//! Points in time as text and as numbers.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// RFC 3339 in UTC with milliseconds.
pub fn rfc3339(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(time).to_string()
}

/// Now, as [`rfc3339`] text.
pub fn now_text() -> String {
    rfc3339(SystemTime::now())
}

/// Now, in milliseconds since 1970; 0 on a clock before that.
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_millis() as u64)
}

/// Milliseconds since 1970 as [`rfc3339`] text. Times beyond the year 9999 are shown as its end.
pub fn ms_text(ms: u64) -> String {
    const END_OF_9999: u64 = 253_402_300_799_999;
    rfc3339(UNIX_EPOCH + Duration::from_millis(ms.min(END_OF_9999)))
}

/// How long ago that was, as people say it: `3m`, `2h`, `5d`.
pub fn age_text(ms: u64) -> String {
    let seconds = now_ms().saturating_sub(ms) / 1000;
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86_400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}
