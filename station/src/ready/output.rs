//! Searches an instance's output for its ready text.

use std::collections::HashMap;
use std::io;
use std::path::Path;

use anstream::adapter::StripBytes;
use quilt_core::disk;
use quilt_core::lines::{Follower, Line, Position, Reader};

use super::Begin;

/// Waits until a text appears in what was logged since `begin`. Once it has appeared the run counts as ready for good: when the next
/// station takes the program back, the log may have lost the text.
pub(super) async fn wait_for_text(log: &Path, begin: Begin, text: &str) -> io::Result<()> {
    let folder = log.to_owned();
    if disk::run(move || Position::was_ready(&folder)).await {
        return Ok(());
    }
    let open = move |log: &Path| Reader::open_since(log, usize::MAX, Position::of_run(log).unwrap_or(begin.otherwise));
    let mut follower = Follower::open(log, open).await?;
    let mut search = Search::new(text);
    loop {
        if follower.next().await?.iter().any(|line| search.finds_in(line)) {
            let folder = log.to_owned();
            if let Err(error) = disk::run(move || Position::note_ready(&folder)).await {
                tracing::warn!(%error, log = %log.display(), "cannot record that the instance was ready; the next station searches its log again");
            }
            return Ok(());
        }
    }
}

/// Searches each stream of a log as a terminal would show it: without escape sequences, and across the edges of records.
struct Search {
    text: Vec<u8>,
    /// The text contains escape sequences itself, so those of the output are kept.
    raw: bool,
    streams: HashMap<String, Stream>,
}

#[derive(Default)]
struct Stream {
    strip: StripBytes,
    /// The last bytes, which may be the beginning of the text.
    tail: Vec<u8>,
}

impl Search {
    fn new(text: &str) -> Self {
        Self { text: text.into(), raw: text.contains('\x1b'), streams: HashMap::new() }
    }

    /// Whether the text ends in this record. Call it for every record, in order.
    fn finds_in(&mut self, line: &Line) -> bool {
        if !self.streams.contains_key(&line.stream) {
            self.streams.insert(line.stream.clone(), Stream::default());
        }
        let stream = self.streams.get_mut(&line.stream).expect("it was added above");
        let end: &[u8] = if line.continues { b"" } else { b"\n" };
        for bytes in [&line.bytes, end] {
            if self.raw {
                stream.tail.extend_from_slice(bytes);
            } else {
                stream.strip.strip_next(bytes).for_each(|shown| stream.tail.extend_from_slice(shown));
            }
        }
        let found = stream.tail.windows(self.text.len()).any(|window| window == self.text);
        let done = stream.tail.len().saturating_sub(self.text.len().saturating_sub(1));
        stream.tail.drain(..done);
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How long to look for a text that must not be found.
    const SHORT: std::time::Duration = std::time::Duration::from_millis(100);

    fn line(stream: &str, text: &str, continues: bool) -> Line {
        Line { at: String::new(), stream: stream.into(), bytes: text.into(), continues }
    }

    fn found(text: &str, lines: &[Line]) -> bool {
        let mut search = Search::new(text);
        lines.iter().any(|line| search.finds_in(line))
    }

    #[tokio::test]
    async fn a_text_of_the_run_is_found_though_the_clock_went_back_and_one_of_an_earlier_run_is_not() {
        let log = tempfile::tempdir().unwrap();
        let file = log.path().join("log");
        std::fs::write(&file, "2026-01-01T00:00:03.000Z out server ready\n").unwrap();
        Position::begin_run(log.path()).unwrap();
        let begin = Begin { otherwise: Position::START };
        let append = |text: &str| {
            let before = std::fs::read_to_string(&file).unwrap();
            std::fs::write(&file, before + text).unwrap();
        };
        let waits = |text| tokio::time::timeout(SHORT, wait_for_text(log.path(), begin, text));
        assert!(waits("server ready").await.is_err(), "that was the earlier run");
        append("2026-01-01T00:00:00.000Z out server ready\n");
        wait_for_text(log.path(), begin, "server ready").await.unwrap();
    }

    #[tokio::test]
    async fn a_run_that_was_ready_is_so_though_its_log_has_lost_the_text() {
        let log = tempfile::tempdir().unwrap();
        let file = log.path().join("log");
        let run = Begin { otherwise: Position::START };
        Position::begin_run(log.path()).unwrap();
        std::fs::write(&file, "2026-01-01T00:00:00.000Z out server ready\n").unwrap();
        wait_for_text(log.path(), run, "server ready").await.unwrap();
        std::fs::write(&file, "").unwrap();
        wait_for_text(log.path(), run, "server ready").await.unwrap();
        // The next run begins at the same place.
        Position::begin_run(log.path()).unwrap();
        let waits = tokio::time::timeout(SHORT, wait_for_text(log.path(), run, "server ready"));
        assert!(waits.await.is_err());
    }

    #[test]
    fn a_text_is_found_in_the_stream_however_it_came() {
        let pieces = [line("out", "load", true), line("err", "warning", false), line("out", "ed: server ready", false)];
        assert!(found("loaded: server", &pieces));
        assert!(!found("loadwarning", &pieces));
        let progress = [line("out", "10%\r20%\r", true), line("out", "server ready\r", false)];
        assert!(found("server ready", &progress));
        let coloured = [line("out", "\x1b[1;32mserver\x1b[", true), line("out", "0m \x1b[4mready\x1b[0m", false)];
        assert!(found("server ready", &coloured));
        assert!(found("\x1b[1;32mserver", &coloured));
        assert!(!found("32m", &coloured));
        let two_lines = [line("out", "server", false), line("out", "ready", false)];
        assert!(!found("serverready", &two_lines));
        assert!(found("server\nready\n", &two_lines));
    }
}
