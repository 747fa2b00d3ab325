//! Names of all signals that the kernel has, including those from RTMIN to RTMAX, for which nix has no names.

use std::str::FromStr as _;

use nix::libc;
use nix::sys::signal::Signal;

/// The number of a signal by its name (`TERM`, `SIGTERM`, `RTMIN+3`, `RTMAX-1`) or its number as text.
pub(crate) fn number(name: &str) -> Option<i32> {
    let name = name.to_ascii_uppercase();
    let short = name.strip_prefix("SIG").unwrap_or(&name);
    let (first, last) = (libc::SIGRTMIN(), libc::SIGRTMAX());
    let number = if let Ok(signal) = Signal::from_str(&format!("SIG{short}")) {
        signal as i32
    } else if let Some(more) = short.strip_prefix("RTMIN") {
        first + if more.is_empty() { 0 } else { more.strip_prefix('+')?.parse::<u8>().ok()?.into() }
    } else if let Some(less) = short.strip_prefix("RTMAX") {
        last - if less.is_empty() { 0 } else { i32::from(less.strip_prefix('-')?.parse::<u8>().ok()?) }
    } else {
        name.parse().ok()?
    };
    // Those between the named ones and RTMIN belong to the C library.
    (Signal::try_from(number).is_ok() || (first..=last).contains(&number)).then_some(number)
}

/// What a signal is called.
pub(crate) fn name(number: i32) -> String {
    match (Signal::try_from(number), number - libc::SIGRTMIN()) {
        (Ok(signal), _) => signal.to_string(),
        (Err(_), 0) => "SIGRTMIN".into(),
        (Err(_), above @ 1..) if number <= libc::SIGRTMAX() => format!("SIGRTMIN+{above}"),
        _ => format!("signal {number}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_signal_of_the_kernel_has_a_name_that_leads_back_to_it() {
        for signal in (1..32).chain(libc::SIGRTMIN()..=libc::SIGRTMAX()) {
            assert_eq!(number(&name(signal)), Some(signal), "{}", name(signal));
            assert_eq!(number(&signal.to_string()), Some(signal));
        }
        let min = libc::SIGRTMIN();
        for (text, expected) in
            [("hup", Some(1)), ("SIGRTMIN", Some(min)), ("rtmin+3", Some(min + 3)), ("RTMAX-1", Some(63))]
        {
            assert_eq!(number(text), expected, "{text}");
        }
        for text in ["", "0", "65", "-1", "32", "RTMIN+31", "RTMIN3", "RTMAX-200", "LOUD", "SIGSIGTERM"] {
            assert_eq!(number(text), None, "{text}");
        }
        assert_eq!(name(33), "signal 33");
    }
}
