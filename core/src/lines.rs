//! The log of a role instance: a folder of two files, written by its station and its keeper, read by anybody.
//!
//! Each record is one line `TIME STREAM TEXT`: the time in RFC 3339 with milliseconds, the stream `out`, `err` or `quilt`, the
//! text as the bytes that came. A `+` after the stream says that no line break followed the text: the line goes on in the next
//! record of its stream. So the records of a stream, joined, are the bytes that the program wrote.
//!
//! Records are appended with one write each, so that two writers never mix. When the current file reaches [`FILE_MAX`] it
//! becomes the older one, so an instance keeps between one and two times that. A third file, `run`, says where in the log the
//! output of the current run begins; that is a [`Position`], because clocks are set back. A fourth, `ready`, is a copy of it once
//! that output has shown the run to be ready.

mod appender;
mod follow;
mod reader;
mod shared;
mod writer;

use std::borrow::Cow;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

pub use self::appender::{Appender, flush};
pub use self::follow::Follower;
pub use self::reader::Reader;
pub use self::writer::{Writer, complete_characters};

use crate::files;

/// How large one file grows, in bytes.
pub const FILE_MAX: u64 = 8 << 20;
/// The longest text of a record, in bytes; longer lines are cut into several records.
pub const LINE_MAX: usize = 16 << 10;

const CURRENT: &str = "log";
const OLDER: &str = "log.1";
const RUN: &str = "run";
const READY: &str = "ready";
/// The longest such mark that is read, in bytes: it is three numbers.
const MARK_MAX: u64 = 256;

/// The stream of quilt's own lines.
const QUILT: &str = "quilt";

/// One record: a line, or a piece of one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Line {
    /// When, RFC 3339.
    pub at: String,
    /// `out`, `err` or `quilt`.
    pub stream: String,
    /// The text, without a line break. Programs write what they like: this need not be UTF-8.
    pub bytes: Vec<u8>,
    /// The line goes on in the next record of its stream.
    pub continues: bool,
}

impl Line {
    /// The text; bytes that are not UTF-8 appear as U+FFFD.
    pub fn text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.bytes)
    }

    /// The bytes, if they are not UTF-8 and [`Line::text`] therefore does not tell them all.
    pub fn raw(&self) -> Option<&[u8]> {
        std::str::from_utf8(&self.bytes).err().map(|_| &*self.bytes)
    }
}

/// A position in a log. It stays valid when the log is rotated.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Position {
    file: FileId,
    offset: u64,
}

/// Identifies a file. File systems reuse inode numbers soon, so the time of creation is part of it; that is 0 where the file
/// system does not record it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct FileId {
    /// 0: there was no file.
    inode: u64,
    created_ns: u128,
}

impl FileId {
    fn of(file: &fs::Metadata) -> Self {
        let created = file.created().ok().and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
        Self { inode: file.ino(), created_ns: created.map_or(0, |created| created.as_nanos()) }
    }
}

impl std::fmt::Display for Position {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { file: FileId { inode, created_ns }, offset } = self;
        write!(f, "{inode} {created_ns} {offset}")
    }
}

impl std::str::FromStr for Position {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("expected three numbers as the position in a log, got {text:?}");
        let [inode, created_ns, offset] = text.split_whitespace().collect::<Vec<_>>()[..] else { return Err(wrong()) };
        let file =
            FileId { inode: inode.parse().map_err(|_| wrong())?, created_ns: created_ns.parse().map_err(|_| wrong())? };
        Ok(Self { file, offset: offset.parse().map_err(|_| wrong())? })
    }
}

impl Position {
    /// The position before everything that the log still holds.
    pub const START: Self = Self { file: FileId { inode: 0, created_ns: 0 }, offset: 0 };

    /// The position of the next record.
    ///
    /// # Errors
    ///
    /// What the operating system says.
    pub fn end(folder: &Path) -> io::Result<Self> {
        match fs::metadata(folder.join(CURRENT)) {
            Ok(now) => Ok(Self { file: FileId::of(&now), offset: now.len() }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::START),
            Err(error) => Err(error),
        }
    }

    /// Records that everything logged from now on belongs to a new run. Call it before the run can log anything.
    ///
    /// # Errors
    ///
    /// What the operating system says.
    pub fn begin_run(folder: &Path) -> io::Result<()> {
        files::create_private_dir(folder)?;
        let end = Self::end(folder)?;
        match fs::remove_file(folder.join(READY)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        replace(folder, RUN, format!("{end}\n").as_bytes())
    }

    /// Records that the current run has become ready. Call it when the ready text is found: the log may rotate it away long before
    /// the run ends. Does nothing if [`Position::begin_run`] was never called.
    ///
    /// # Errors
    ///
    /// What the operating system says.
    pub fn note_ready(folder: &Path) -> io::Result<()> {
        match files::read_regular(&folder.join(RUN), MARK_MAX) {
            Ok(mark) => replace(folder, READY, &mark),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Whether [`Position::note_ready`] was called for the current run.
    pub fn was_ready(folder: &Path) -> bool {
        let read = |name| files::read_regular(&folder.join(name), MARK_MAX).ok();
        read(READY).is_some_and(|ready| Some(ready) == read(RUN))
    }

    /// Where the output of the current or last run begins; `None` if [`Position::begin_run`] was never called.
    pub fn of_run(folder: &Path) -> Option<Self> {
        let mark = files::read_regular(&folder.join(RUN), MARK_MAX).ok()?;
        std::str::from_utf8(&mark).ok()?.parse().ok()
    }
}

/// Replaces a mark, without waiting for the disk: no run outlives the machine's.
fn replace(folder: &Path, name: &str, mark: &[u8]) -> io::Result<()> {
    let new = folder.join(format!("{name}.new"));
    // Whatever was put there: it must neither be followed nor hang.
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    file.write_all(mark)?;
    fs::rename(new, folder.join(name))
}

/// Opens one of the log's files; returns it with its inode.
fn open(folder: &Path, name: &str) -> io::Result<Option<(Arc<File>, u64)>> {
    match shared::open(&folder.join(name)) {
        Ok(file) => {
            let inode = file.metadata()?.ino();
            Ok(Some((file, inode)))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// How long the time at the beginning of a record is, in bytes.
const TIME_LENGTH: usize = "2026-01-01T00:00:00.000Z".len();

/// The time, the stream, whether the line goes on, and where the text begins.
fn parse_head(record: &[u8]) -> Option<(&str, &str, bool, usize)> {
    let at = std::str::from_utf8(record.get(..TIME_LENGTH)?).ok()?;
    if !at.ends_with('Z') || record.get(TIME_LENGTH) != Some(&b' ') {
        return None;
    }
    let rest = &record[TIME_LENGTH + 1..];
    let length = rest.iter().take(16).position(|byte| *byte == b' ')?;
    let stream = std::str::from_utf8(&rest[..length]).ok()?;
    let text_at = TIME_LENGTH + 1 + length + 1;
    Some(match stream.strip_suffix('+') {
        Some(stream) => (at, stream, true, text_at),
        None => (at, stream, false, text_at),
    })
}

fn parse(record: &[u8]) -> Option<Line> {
    let (at, stream, continues, text_at) = parse_head(record)?;
    Some(Line { at: at.into(), stream: stream.into(), bytes: record[text_at..].into(), continues })
}

#[cfg(test)]
mod tests;
