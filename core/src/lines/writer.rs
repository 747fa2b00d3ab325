//! Writing a log.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::{CURRENT, FILE_MAX, LINE_MAX, OLDER, QUILT};
use crate::append::{Losses, is_torn};
use crate::{files, time};

/// Appends to a log.
#[derive(Debug)]
pub struct Writer {
    folder: PathBuf,
    /// The file and its inode, once there was a line.
    open: Option<(File, u64)>,
    losses: Losses,
}

impl Writer {
    /// A writer of the log in `folder`. The first line creates folder and file: most instances never log anything, so a host
    /// with thousands of them needs neither the files nor the descriptors.
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), open: None, losses: Losses::default() }
    }

    /// Opens the log in `folder`, and creates the folder if it is not there.
    ///
    /// # Errors
    ///
    /// What the operating system says.
    pub fn open(folder: &Path) -> io::Result<Self> {
        let mut writer = Self::new(folder);
        writer.current()?;
        Ok(writer)
    }

    /// Appends each line of `text` as a record. The last line need not have a line break.
    ///
    /// # Errors
    ///
    /// What the operating system says. Records that are not written are counted; the log says how many before the next one.
    pub fn append(&mut self, stream: &str, text: &str) -> io::Result<()> {
        let text = text.strip_suffix('\n').unwrap_or(text);
        self.copy(stream, format!("{text}\n").as_bytes())
    }

    /// Appends the next bytes of a stream. Each line break ends a record; bytes after the last one become a record that says
    /// that its line goes on.
    ///
    /// # Errors
    ///
    /// As [`Writer::append`].
    pub fn copy(&mut self, stream: &str, bytes: &[u8]) -> io::Result<()> {
        self.copy_at(&time::now_text(), stream, bytes)
    }

    /// As [`Writer::copy`], for bytes that came at a time before.
    pub(super) fn copy_at(&mut self, at: &str, stream: &str, bytes: &[u8]) -> io::Result<()> {
        let mut records = Vec::with_capacity(bytes.len() + 40);
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (mut rest, ends) = line.strip_suffix(b"\n").map_or((line, false), |line| (line, true));
            while rest.len() > LINE_MAX {
                let (piece, later) = rest.split_at(complete_characters(&rest[..LINE_MAX]));
                push(&mut records, at, stream, true, piece);
                rest = later;
            }
            push(&mut records, at, stream, !ends, rest);
        }
        self.write(&records)
    }

    /// Leaves out the next bytes of a stream. They count as lost lines, for the reason `why`; the log says how many before the next
    /// record.
    pub fn skip(&mut self, bytes: &[u8], why: String) {
        let begun = bytes.last().is_some_and(|last| *last != b'\n');
        let lines = bytes.iter().filter(|byte| **byte == b'\n').count() + usize::from(begun);
        self.skip_lines(lines as u64, why);
    }

    /// Counts lines as lost that are not even tried.
    pub(super) fn skip_lines(&mut self, lines: u64, why: String) {
        self.losses.skip(lines, why);
    }

    /// Logs how many lines are missing, if the log does not say so yet. Does nothing otherwise.
    ///
    /// # Errors
    ///
    /// As [`Writer::append`].
    pub fn report_losses(&mut self) -> io::Result<()> {
        if self.has_unreported_losses() { self.write(&[]) } else { Ok(()) }
    }

    /// Whether lines are missing and the log does not say so yet. Call [`Writer::report_losses`] from time to time while it is true.
    pub fn has_unreported_losses(&self) -> bool {
        self.losses.has_unreported_losses()
    }

    fn write(&mut self, records: &[u8]) -> io::Result<()> {
        // Taken out while the file is looked for: if there is none, the records are lost like those that a full disk refuses.
        let mut losses = std::mem::take(&mut self.losses);
        let notice = |text: &str| {
            let mut record = Vec::new();
            push(&mut record, &time::now_text(), QUILT, false, text.as_bytes());
            record
        };
        let written = match self.current() {
            Ok((file, length)) => {
                // Another writer's last record may be incomplete. Without a lock, since a stopped process would hold it: a
                // write that fails just now is missed only if room appears in the same instant.
                let torn = is_torn(file, length);
                losses.append(file, Some(torn), records, notice)
            }
            Err(error) => losses.append(&mut FailingWriter(Some(error)), Some(false), records, notice),
        };
        self.losses = losses;
        written
    }

    /// The file to write to, and its length. Rotates if it is full, and goes over to the new one if the other writer rotated.
    fn current(&mut self) -> io::Result<(&mut File, u64)> {
        let current = self.folder.join(CURRENT);
        let is_current = |inode: &u64| fs::metadata(&current).is_ok_and(|now| now.ino() == *inode);
        if self.open.is_none() {
            // Opened before it is looked at, so that a file that is full already is noticed.
            self.open = Some(self.reopen()?);
        }
        let (file, inode) = self.open.as_ref().expect("it was opened above");
        let usable = if file.metadata()?.len() >= FILE_MAX {
            // Two writers may come here at once; the lock lets the second see what the first did.
            let lock = OpenOptions::new().write(true).create(true).truncate(false).open(self.folder.join("lock"))?;
            lock.lock()?;
            if is_current(inode) {
                fs::rename(&current, self.folder.join(OLDER))?;
            }
            false
        } else {
            is_current(inode)
        };
        if !usable {
            self.open = Some(self.reopen()?);
        }
        let (file, _) = self.open.as_mut().expect("it was opened above");
        let length = file.metadata()?.len();
        Ok((file, length))
    }

    /// Opens the current file. Makes its folder if that is not there, also when somebody removed it.
    fn reopen(&self) -> io::Result<(File, u64)> {
        let current = self.folder.join(CURRENT);
        let mut options = OpenOptions::new();
        options.read(true).append(true).create(true).mode(0o600);
        let file = match options.open(&current) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                files::create_private_dir(&self.folder)?;
                options.open(&current)?
            }
            file => file?,
        };
        let inode = file.metadata()?.ino();
        Ok((file, inode))
    }
}

/// Stands in for a file that cannot be opened: every write fails with the error of the opening.
struct FailingWriter(Option<io::Error>);

impl io::Write for FailingWriter {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(self.0.take().unwrap_or_else(|| io::ErrorKind::NotFound.into()))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn push(records: &mut Vec<u8>, at: &str, stream: &str, continues: bool, text: &[u8]) {
    records.extend_from_slice(at.as_bytes());
    records.push(b' ');
    records.extend_from_slice(stream.as_bytes());
    records.extend_from_slice(if continues { b"+ " } else { b" " });
    records.extend_from_slice(text);
    records.push(b'\n');
}

/// The length of the longest prefix that does not end inside a UTF-8 character, in bytes.
pub fn complete_characters(bytes: &[u8]) -> usize {
    // A character has at most four bytes; only its first one is not a continuation byte.
    let begins = bytes.iter().rev().take(4).position(|byte| byte & 0b1100_0000 != 0b1000_0000);
    let Some(back) = begins else { return bytes.len() };
    let first_at = bytes.len() - back - 1;
    match std::str::from_utf8(&bytes[first_at..]) {
        // No error length: it is a character whose end is missing.
        Err(error) if error.error_len().is_none() && first_at > 0 => first_at,
        _ => bytes.len(),
    }
}
