//! Copying a program's output to the log of its instance.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use quilt_core::lines::{self, complete_characters};

/// How long output without a line break waits for one. A prompt or a progress bar is then logged as far as it came.
const LINE_DELAY: Duration = Duration::from_millis(500);
/// How often a keeper that lost lines tries to report that in the log.
const LOSS_RETRY: Duration = Duration::from_secs(1);

/// Bytes of a stream that are not logged yet. After [`Pending::take_due`] that is at most the beginning of one line.
#[derive(Default)]
struct Pending {
    bytes: Vec<u8>,
    /// Since when the line waits for its end.
    since: Option<Instant>,
}

impl Pending {
    fn push(&mut self, bytes: &[u8], now: Instant) {
        self.bytes.extend_from_slice(bytes);
        self.since.get_or_insert(now);
    }

    /// Takes what is due: whole lines, and the whole characters of an unfinished line that is long or has waited [`LINE_DELAY`].
    fn take_due(&mut self, now: Instant) -> Vec<u8> {
        let mut due = self.bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        if due > 0 {
            self.since = Some(now);
        }
        let is_late = self.since.is_some_and(|since| now >= since + LINE_DELAY);
        if is_late || self.bytes.len() - due >= lines::LINE_MAX {
            due += complete_characters(&self.bytes[due..]);
            self.since = Some(now);
        }
        if due == self.bytes.len() {
            self.since = None;
        }
        self.bytes.drain(..due).collect()
    }

    /// When to call [`Pending::take_due`] even if nothing more arrives.
    fn due_at(&self) -> Option<Instant> {
        self.since.map(|since| since + LINE_DELAY)
    }
}

/// Copies a pipe to the log on a thread until the pipe ends; the receiver then disconnects. Lines that cannot be written are dropped,
/// because waiting would block the program; the log says how many.
pub(super) fn copy(
    stream: &'static str,
    pipe: Option<impl Read + AsFd + Send + 'static>,
    log: &Path,
) -> io::Result<mpsc::Receiver<()>> {
    let mut writer = lines::Writer::open(log)?;
    let mut pipe = pipe.expect("it was piped");
    let (done, receiver) = mpsc::channel();
    thread::spawn(move || {
        let (mut buffer, mut pending) = (vec![0; 64 * 1024], Pending::default());
        loop {
            if is_readable(&pipe, pending.due_at(), writer.has_unreported_losses()) {
                let Ok(count @ 1..) = pipe.read(&mut buffer) else { break };
                pending.push(&buffer[..count], Instant::now());
            }
            let due = pending.take_due(Instant::now());
            let _ = if due.is_empty() { writer.report_losses() } else { writer.copy(stream, &due) };
        }
        let _ = if pending.bytes.is_empty() { writer.report_losses() } else { writer.copy(stream, &pending.bytes) };
        drop(done);
    });
    Ok(receiver)
}

/// Waits for output or its end; false when there is something to do before.
fn is_readable(pipe: &impl AsFd, due_at: Option<Instant>, owing: bool) -> bool {
    let due_in = due_at.map(|due_at| due_at.saturating_duration_since(Instant::now()));
    let wait = [due_in, owing.then_some(LOSS_RETRY)].into_iter().flatten().min();
    // Rounded up, or the last millisecond would be spent looking.
    let timeout = wait.map_or(PollTimeout::NONE, |wait| PollTimeout::from(wait.as_millis() as u16 + 1));
    let mut polled = [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)];
    !matches!(poll(&mut polled, timeout), Ok(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_without_a_line_break_is_due_at_least_once_a_second_however_often_it_changes() {
        let begin = Instant::now();
        let mut pending = Pending::default();
        let mut taken_at = Vec::new();
        for tenth in 0..20 {
            let now = begin + Duration::from_millis(tenth * 100);
            pending.push(b"10%\r", now);
            if !pending.take_due(now).is_empty() {
                taken_at.push(tenth);
            }
        }
        assert_eq!(taken_at, [5, 11, 17]);
    }

    #[test]
    fn whole_lines_are_due_at_once_and_the_next_ones_beginning_has_its_own_time() {
        let begin = Instant::now();
        let later = |ms: u64| begin + Duration::from_millis(ms);
        let mut pending = Pending::default();
        pending.push(b"first", begin);
        assert_eq!(pending.take_due(later(400)), b"");
        pending.push(b" line\nsecond", later(450));
        assert_eq!(pending.take_due(later(450)), b"first line\n");
        assert_eq!(pending.due_at(), Some(later(950)));
        assert_eq!(pending.take_due(later(949)), b"");
        assert_eq!(pending.take_due(later(950)), b"second");
        assert_eq!(pending.due_at(), None);
    }

    #[test]
    fn an_unfinished_character_waits_for_its_end() {
        let begin = Instant::now();
        let mut pending = Pending::default();
        let euros = "\u{20ac}".repeat(lines::LINE_MAX / 3 + 1);
        pending.push(&euros.as_bytes()[..lines::LINE_MAX], begin);
        let due = pending.take_due(begin);
        assert!(std::str::from_utf8(&due).is_ok() && due.len() > lines::LINE_MAX - 3);
        pending.push(&euros.as_bytes()[lines::LINE_MAX..], begin);
        pending.push(b"\n", begin);
        assert_eq!([due, pending.take_due(begin)].concat(), format!("{euros}\n").as_bytes());
    }
}
