//! Reading a log.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{CURRENT, FileId, Line, OLDER, Position, QUILT, open, parse, parse_head};
use crate::time;

/// How many bytes are read at a time.
pub(super) const READ_SIZE: usize = 64 << 10;

/// How many of a file's first bytes identify it, in bytes: they hold the time of its first record.
const HEAD_LENGTH: usize = 64;

/// Reads a log from near its end on. It reads a bounded amount at a time, so its memory does not depend on the length of the log.
/// Blocks on the disk; in async code use a [`Follower`](super::Follower).
pub struct Reader {
    folder: PathBuf,
    source: Option<Source>,
    /// The part of a record that has been read.
    partial: Vec<u8>,
    /// Records that should have been read are gone.
    has_lost: bool,
}

/// The file that is read.
struct Source {
    file: Arc<File>,
    inode: u64,
    /// How much of it has been read, in bytes.
    at: u64,
    /// Its first bytes.
    beginning: Vec<u8>,
}

impl Source {
    fn new(file: Arc<File>, inode: u64, at: u64) -> io::Result<Self> {
        let mut source = Self { file, inode, at, beginning: Vec::new() };
        source.beginning = source.read(0, HEAD_LENGTH)?;
        Ok(source)
    }

    fn read(&self, at: u64, length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        let count = self.file.read_at(&mut bytes, at)?;
        bytes.truncate(count);
        Ok(bytes)
    }

    /// Whether somebody emptied the file in place since the last call: it is shorter than what has been read, or it has grown
    /// again and begins with other bytes.
    fn was_emptied(&mut self) -> io::Result<bool> {
        let now = self.read(0, HEAD_LENGTH)?;
        let emptied = !now.starts_with(&self.beginning) || self.file.metadata()?.len() < self.at;
        self.beginning = now;
        Ok(emptied)
    }
}

impl Reader {
    /// Opens the log in `folder` at the beginning of its last `count` lines.
    ///
    /// # Errors
    ///
    /// What the operating system says.
    pub fn open(folder: &Path, count: usize) -> io::Result<Self> {
        Self::open_since(folder, count, Position::START)
    }

    /// As [`Reader::open`], but skips what was logged before `since`.
    ///
    /// # Errors
    ///
    /// What the operating system says.
    pub fn open_since(folder: &Path, count: usize, since: Position) -> io::Result<Self> {
        let mut left = count;
        let mut source = None;
        for name in [CURRENT, OLDER] {
            let Some((file, inode)) = open(folder, name)? else { continue };
            let now = file.metadata()?;
            let reached = FileId::of(&now) == since.file;
            // A file shorter than that was emptied.
            let since = if reached && since.offset <= now.len() { since.offset } else { 0 };
            let (at, lines) = last_lines(&file, left)?;
            if lines > 0 || source.is_none() {
                source = Some(Source::new(file, inode, at.max(since))?);
            }
            left -= lines;
            if left == 0 || reached {
                break;
            }
        }
        Ok(Self { folder: folder.to_owned(), source, partial: Vec::new(), has_lost: false })
    }

    /// Opens the log at a position that [`Reader::position`] gave. If that is no longer in the log, begins with a notice and the
    /// oldest record that there is.
    ///
    /// # Errors
    ///
    /// What the operating system says.
    pub fn resume(folder: &Path, position: Position) -> io::Result<Self> {
        let mut oldest = None;
        let mut is_there = position == Position::START;
        for name in [CURRENT, OLDER] {
            let Some((file, inode)) = open(folder, name)? else { continue };
            let now = file.metadata()?;
            is_there |= FileId::of(&now) == position.file && position.offset <= now.len();
            let at = if FileId::of(&now) == position.file && is_there { position.offset } else { 0 };
            oldest = Some((file, inode, at));
            if is_there && position != Position::START {
                break;
            }
        }
        let source = oldest.map(|(file, inode, at)| Source::new(file, inode, at)).transpose()?;
        Ok(Self { folder: folder.to_owned(), source, partial: Vec::new(), has_lost: !is_there })
    }

    /// The position of the next record.
    ///
    /// # Errors
    ///
    /// What the operating system says.
    pub fn position(&self) -> io::Result<Position> {
        let (now, offset) = match &self.source {
            Some(source) => (source.file.metadata()?, source.at - self.partial.len() as u64),
            None => match open(&self.folder, CURRENT)? {
                Some((file, _)) => (file.metadata()?, 0),
                None => return Ok(Position::START),
            },
        };
        Ok(Position { file: FileId::of(&now), offset })
    }

    /// Returns the next records, as many as one read yields; none if there are no more now.
    ///
    /// # Errors
    ///
    /// What the operating system says.
    pub fn more(&mut self) -> io::Result<Vec<Line>> {
        loop {
            if std::mem::take(&mut self.has_lost) {
                return Ok(vec![notice("lines were lost here: they came faster than they were read")]);
            }
            if self.source.is_none() {
                let Some((file, inode)) = open(&self.folder, CURRENT)? else { return Ok(Vec::new()) };
                self.source = Some(Source::new(file, inode, 0)?);
            }
            let source = self.source.as_mut().expect("it was opened above");
            if source.was_emptied()? {
                source.at = 0;
                self.partial.clear();
                return Ok(vec![notice("the log was emptied here")]);
            }
            // Whether it was rotated is asked before reading, so that its last lines are read.
            let rotated = fs::metadata(self.folder.join(CURRENT)).is_ok_and(|now| now.ino() != source.inode);
            let piece = source.read(source.at, READ_SIZE)?;
            source.at += piece.len() as u64;
            self.partial.extend_from_slice(&piece);
            let complete = self.partial.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
            let lines: Vec<_> = self.partial[..complete].split(|byte| *byte == b'\n').filter_map(parse).collect();
            self.partial.drain(..complete);
            if !lines.is_empty() {
                return Ok(lines);
            }
            if !piece.is_empty() {
                continue;
            }
            if !rotated {
                return Ok(lines);
            }
            // The file that was read should be the older one now; if it is gone, so is what came between.
            let older = fs::metadata(self.folder.join(OLDER)).map(|older| older.ino());
            let lost = older.is_ok_and(|older| older != source.inode);
            self.source = None;
            self.partial.clear();
            self.has_lost = lost;
        }
    }
}

fn notice(text: &str) -> Line {
    Line { at: time::now_text(), stream: QUILT.into(), bytes: text.into(), continues: false }
}

/// Finds where the last `count` lines of a file begin, reading backwards from its end, and how many there are: `count`, or fewer if
/// the file has fewer. A record whose line goes on in the next one does not count, unless it is the last record.
fn last_lines(file: &File, count: usize) -> io::Result<(u64, usize)> {
    let mut lines = 0;
    // Where the record begins that follows in the file.
    let mut next = None;
    let mut take = |begins: u64, head: &[u8]| {
        let goes_on = next.is_some() && parse_head(head).is_some_and(|(_, _, continues, _)| continues);
        if !goes_on {
            if lines == count {
                return Some((next.unwrap_or(begins), lines));
            }
            lines += 1;
        }
        next = Some(begins);
        None
    };
    let mut end = file.metadata()?.len();
    let mut bytes = vec![0; READ_SIZE + HEAD_LENGTH];
    // Set once the break that ends the last whole record is found; bytes after it belong to a record that is being written.
    let mut ends_whole = false;
    let mut last_break = end;
    while end > 0 {
        let begin = end.saturating_sub(READ_SIZE as u64);
        // With the beginning of what follows, for a record whose head lies across the edge.
        let read = file.read_at(&mut bytes, begin)?;
        let length = ((end - begin) as usize).min(read);
        for offset in (0..length).rev().filter(|offset| bytes[*offset] == b'\n') {
            let break_at = begin + offset as u64;
            if ends_whole {
                if let Some(found) = take(break_at + 1, &bytes[offset + 1..read]) {
                    return Ok(found);
                }
            } else if count == 0 {
                return Ok((break_at + 1, 0));
            }
            ends_whole = true;
            last_break = break_at;
        }
        end = begin;
    }
    if ends_whole && last_break > 0 {
        let read = file.read_at(&mut bytes, 0)?;
        if let Some(found) = take(0, &bytes[..read]) {
            return Ok(found);
        }
    }
    Ok((0, lines))
}
