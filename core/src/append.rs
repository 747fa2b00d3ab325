//! Appending lines to a file whose writes may fail: a full disk, a quota, a limit of file size.
//!
//! A failed write can leave the beginning of a line in the file. The next line must not continue it, and a reader must
//! learn that lines are missing.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt as _;

/// The lines that one writer could not append.
#[derive(Debug, Default)]
pub(crate) struct Losses {
    /// The writer's last line is incomplete in the file.
    torn: bool,
    lines: u64,
    why: String,
}

impl Losses {
    /// Whether lines are missing and no notice in the file says so yet.
    pub(crate) fn has_unreported_losses(&self) -> bool {
        self.lines > 0
    }

    /// Counts lines that are not even tried, for the reason that the notice gives.
    pub(crate) fn skip(&mut self, lines: u64, why: String) {
        self.lines += lines;
        self.why = why;
    }

    /// Appends whole lines with a single write. `torn` says whether the file ends in the middle of a line; `None` if the caller
    /// cannot know. `notice` turns "3 lines were lost here: REASON" into a line of the file's format, which then precedes `lines`.
    ///
    /// # Errors
    ///
    /// The operating system's error. Lines that did not reach the file are counted as lost.
    pub(crate) fn append(
        &mut self,
        out: &mut impl Write,
        torn: Option<bool>,
        lines: &[u8],
        notice: impl FnOnce(&str) -> Vec<u8>,
    ) -> io::Result<()> {
        let mut before = Vec::new();
        if torn.unwrap_or(self.torn) {
            before.push(b'\n');
        }
        if self.has_unreported_losses() {
            let plural = if self.lines == 1 { " was" } else { "s were" };
            before.extend(notice(&format!("{} line{plural} lost here: {}", self.lines, self.why)));
        }
        let (in_front, mut all) = (before.len(), before);
        let bytes: &[u8] = if in_front == 0 {
            lines
        } else {
            all.extend_from_slice(lines);
            &all
        };
        let wrote = loop {
            match out.write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                wrote => break wrote,
            }
        };
        let (count, error) = match wrote {
            Ok(count) if count == bytes.len() => {
                *self = Self::default();
                return Ok(());
            }
            // The rest is not tried again: another writer's line may follow by now.
            Ok(count) => (count, io::Error::from(io::ErrorKind::StorageFull)),
            Err(error) => (0, error),
        };
        if count >= in_front {
            self.lines = 0;
        }
        if count > 0 {
            self.torn = bytes[count - 1] != b'\n';
        }
        let missing = &bytes[count.max(in_front)..];
        self.lines += missing.iter().filter(|byte| **byte == b'\n').count() as u64;
        self.why = error.to_string();
        Err(error)
    }
}

/// Whether a file ends in the middle of a line.
pub(crate) fn is_torn(file: &File, length: u64) -> bool {
    let mut last = [0];
    length > 0 && matches!(file.read_at(&mut last, length - 1), Ok(1)) && last != *b"\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk with room for so many bytes.
    struct Disk {
        content: Vec<u8>,
        room: usize,
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let count = bytes.len().min(self.room);
            if count == 0 {
                return Err(io::Error::from(io::ErrorKind::StorageFull));
            }
            self.room -= count;
            self.content.extend_from_slice(&bytes[..count]);
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn after_a_short_write_the_next_line_begins_anew_and_says_how_many_were_lost() {
        let mut disk = Disk { content: Vec::new(), room: 10 };
        let mut losses = Losses::default();
        let notice = |text: &str| format!("{text}\n").into_bytes();
        losses.append(&mut disk, None, b"one\ntwo\nthree\nfour\n", notice).unwrap_err();
        for _ in 0..998 {
            losses.append(&mut disk, None, b"more\n", notice).unwrap_err();
        }
        disk.room = 3;
        losses.append(&mut disk, None, b"still full\n", notice).unwrap_err();
        disk.room = 1000;
        losses.append(&mut disk, None, b"five\n", notice).unwrap();
        assert!(!losses.has_unreported_losses());
        losses.append(&mut disk, None, b"six\n", notice).unwrap();
        let text = String::from_utf8(disk.content).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[..4], ["one", "two", "th", "10"], "{text}");
        assert!(lines[4].starts_with("1001 lines were lost here: "), "{text}");
        assert_eq!(lines[5..], ["five", "six"]);
    }
}
