//! Copying a program's output to the log of its instance, at a bounded rate.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use quilt_core::lines::{self, complete_characters};

use super::events::timeout;

/// How long output without a line break waits for one. A prompt or a progress bar is then logged as far as it came.
const LINE_DELAY: Duration = Duration::from_millis(500);
/// How often a keeper that lost lines tries to report that in the log.
const LOSS_RETRY: Duration = Duration::from_secs(1);

/// How many bytes of a program's output are logged in a second. More would fill the log, push everything else out of it and keep the
/// disk from the other programs.
const RATE_MAX: u64 = 256 << 10;
/// How many bytes may come at once, after a time of silence: what a program says at its start or at its end fits.
const BURST_MAX: u64 = 4 * RATE_MAX;
/// What a record takes beside its text, in bytes: a program that writes empty lines fills the log too.
const RECORD_OVERHEAD: u64 = 32;

/// How many bytes a program may have logged now.
struct Budget {
    bytes: u64,
    since: Instant,
}

impl Budget {
    fn new(now: Instant) -> Self {
        Self { bytes: BURST_MAX, since: now }
    }

    /// Takes what `output` costs; false if that is not there.
    fn take(&mut self, output: &[u8], now: Instant) -> bool {
        let grown = now.duration_since(self.since).as_micros() * u128::from(RATE_MAX) / 1_000_000;
        if grown > 0 {
            self.bytes = self.bytes.saturating_add(u64::try_from(grown).unwrap_or(u64::MAX)).min(BURST_MAX);
            self.since = now;
        }
        let records = 1 + output.iter().filter(|byte| **byte == b'\n').count() as u64;
        let cost = output.len() as u64 + records * RECORD_OVERHEAD;
        let fits = cost <= self.bytes;
        if fits {
            self.bytes -= cost;
        }
        fits
    }
}

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

/// One of a program's streams.
struct Stream {
    name: &'static str,
    /// `None` once it has ended.
    pipe: Option<File>,
    pending: Pending,
    /// The last record in the log is the beginning of a line.
    is_open: bool,
    /// What came after the last record was dropped.
    is_cut: bool,
}

/// Copies a program's output to the log on a thread until both pipes have ended; the receiver then disconnects. Lines that cannot be
/// written, and those above [`RATE_MAX`], are dropped, because waiting would block the program; the log says how many.
///
/// # Errors
///
/// The log cannot be opened, or the machine refuses another thread.
pub(super) fn copy(pipes: [(&'static str, OwnedFd); 2], log: &Path) -> io::Result<mpsc::Receiver<()>> {
    let stream = |(name, pipe): (_, OwnedFd)| Stream {
        name,
        pipe: Some(File::from(pipe)),
        pending: Pending::default(),
        is_open: false,
        is_cut: false,
    };
    let mut streams = pipes.map(stream);
    let (done, receiver) = mpsc::channel();
    let mut log = Log { writer: lines::Writer::open(log)?, budget: Budget::new(Instant::now()), dropped: 0 };
    thread::Builder::new().name("output".into()).spawn(move || {
        let mut buffer = vec![0; 64 * 1024];
        while streams.iter().any(|stream| stream.pipe.is_some()) {
            let readable = wait(&streams, log.writer.has_unreported_losses());
            for (stream, is_readable) in streams.iter_mut().zip(readable) {
                if is_readable {
                    stream.read(&mut buffer);
                }
                let due = match &stream.pipe {
                    Some(_) => stream.pending.take_due(Instant::now()),
                    None => std::mem::take(&mut stream.pending.bytes),
                };
                if !due.is_empty() {
                    log.take(stream, &due);
                }
            }
            if readable.iter().all(|is_readable| !is_readable) {
                let _ = log.writer.report_losses();
            }
        }
        let _ = log.writer.report_losses();
        drop(done);
    })?;
    Ok(receiver)
}

impl Stream {
    fn read(&mut self, buffer: &mut [u8]) {
        match self.pipe.as_mut().map(|pipe| pipe.read(buffer)) {
            Some(Ok(count @ 1..)) => self.pending.push(&buffer[..count], Instant::now()),
            Some(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            _ => self.pipe = None,
        }
    }
}

/// The log, and what goes into it.
struct Log {
    writer: lines::Writer,
    budget: Budget,
    /// How many bytes were dropped since something was last logged.
    dropped: usize,
}

impl Log {
    /// Logs output of a stream, or drops it.
    fn take(&mut self, stream: &mut Stream, output: &[u8]) {
        if !self.budget.take(output, Instant::now()) {
            stream.is_cut = true;
            self.dropped += output.len();
            let why = format!(
                "the program writes more than {} KiB in a second, which is the limit; {} bytes are left out",
                RATE_MAX >> 10,
                self.dropped
            );
            self.writer.skip(output, why);
            return;
        }
        self.dropped = 0;
        if std::mem::take(&mut stream.is_cut) && stream.is_open {
            // What was dropped was the rest of that line.
            let _ = self.writer.append(stream.name, "");
        }
        stream.is_open = !output.ends_with(b"\n");
        let _ = self.writer.copy(stream.name, output);
    }
}

/// Waits until there is output or the end of it, or something to do before: which of the streams to read.
fn wait(streams: &[Stream; 2], owing: bool) -> [bool; 2] {
    let now = Instant::now();
    let due_at = streams.iter().filter_map(|stream| stream.pending.due_at()).min();
    let due_in = due_at.map(|due_at| due_at.saturating_duration_since(now));
    let wait = [due_in, owing.then_some(LOSS_RETRY)].into_iter().flatten().min();
    let pipes = || streams.iter().enumerate().filter_map(|(index, stream)| Some((index, stream.pipe.as_ref()?)));
    let mut polled: Vec<_> = pipes().map(|(_, pipe)| PollFd::new(pipe.as_fd(), PollFlags::POLLIN)).collect();
    let mut readable = [false; 2];
    if matches!(poll(&mut polled, wait.map_or(PollTimeout::NONE, timeout)), Ok(1..)) {
        for ((index, _), polled) in pipes().zip(&polled) {
            readable[index] = polled.revents().is_none_or(|found| !found.is_empty());
        }
    }
    readable
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_budget_lets_a_burst_through_and_then_so_much_in_a_second_and_counts_what_each_record_takes() {
        let begin = Instant::now();
        let mut budget = Budget::new(begin);
        let line = [vec![b'x'; 1023 - RECORD_OVERHEAD as usize * 2], vec![b'\n']].concat();
        let mut logged =
            |ms: u64| (0..10_000).filter(|_| budget.take(&line, begin + Duration::from_millis(ms))).count();
        let burst = BURST_MAX as usize / 1024;
        assert!((burst..=burst + 65).contains(&logged(0)));
        assert_eq!(logged(1), 0);
        let second = RATE_MAX as usize / 1024;
        assert!((second..=second + 20).contains(&logged(1001)));
        // However long the silence was.
        assert!((burst..=burst + 65).contains(&logged(1_000_000)));
        let mut budget = Budget::new(begin);
        let empty = (0..).take_while(|_| budget.take(b"\n", begin)).count() as u64;
        assert!(empty <= BURST_MAX / RECORD_OVERHEAD, "{empty}");
    }

    #[test]
    fn a_flood_is_cut_to_the_rate_and_the_log_says_how_much_was_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = || std::io::pipe().unwrap();
        let ((out, mut flood), (err, errors)) = (pipe(), pipe());
        let copied = copy([("out", out.into()), ("err", err.into())], folder.path()).unwrap();
        let began = Instant::now();
        let line = [b"y".repeat(99), b"\n".to_vec()].concat();
        let lines = 16 * BURST_MAX as usize / 100;
        for _ in 0..lines / 1000 {
            flood.write_all(&line.repeat(1000)).unwrap();
        }
        drop((flood, errors));
        assert!(copied.recv().is_err(), "it sends nothing and ends");
        let (mut reader, mut logged, mut lost) = (lines::Reader::open(folder.path(), 1_000_000).unwrap(), 0, 0);
        while let Ok(more) = reader.more()
            && !more.is_empty()
        {
            for line in more {
                match &*line.stream {
                    "out" => logged += 1,
                    _ => {
                        let text = line.text();
                        assert!(text.contains("lost here: the program writes more than 256 KiB in a second"), "{text}");
                        lost += text.split(' ').next().unwrap().parse::<usize>().unwrap();
                    }
                }
            }
        }
        // A line that is written in two pieces because this machine is slow counts twice.
        let written = lines / 1000 * 1000;
        assert!((written..written + 50).contains(&(logged + lost)), "{logged} logged, {lost} lost, {written} written");
        let most = BURST_MAX + (RATE_MAX as f64 * (began.elapsed().as_secs_f64() + 1.0)) as u64;
        assert!(logged as u64 * 132 <= most, "{logged} lines in {:?}", began.elapsed());
    }

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
