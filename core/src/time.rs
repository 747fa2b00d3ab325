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

/// How long before `now` an [`rfc3339`] time was, such as `3m ago`, `2h ago` or `5d ago`. A time in the future, which another host's
/// clock may give, is `just now`. Text that is not a time is returned as it is.
pub fn age_text(then: &str, now: SystemTime) -> String {
    let Ok(time) = humantime::parse_rfc3339(then) else { return then.to_owned() };
    let seconds = now.duration_since(time).unwrap_or_default().as_secs();
    match seconds {
        0 => "just now".into(),
        1..60 => format!("{seconds}s ago"),
        60..3600 => format!("{}m ago", seconds / 60),
        3600..86_400 => format!("{}h ago", seconds / 3600),
        _ => format!("{}d ago", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_told_in_the_largest_whole_unit() {
        let now = humantime::parse_rfc3339("2026-03-02T12:00:00Z").unwrap();
        for (then, age) in [
            ("2026-03-02T12:00:09.000Z", "just now"),
            ("2026-03-02T11:59:59.500Z", "just now"),
            ("2026-03-02T11:59:01.000Z", "59s ago"),
            ("2026-03-02T10:00:01.000Z", "1h ago"),
            ("2026-02-28T11:59:00.000Z", "2d ago"),
            ("-", "-"),
        ] {
            assert_eq!(age_text(then, now), age);
        }
    }
}
