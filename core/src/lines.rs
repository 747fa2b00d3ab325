//! The log of a role instance: a folder of two files, written by its station and its keeper, read by anybody.
//!
//! Each line is `TIME STREAM TEXT`, the time in RFC 3339 with milliseconds, the stream `out`, `err` or `quilt`. Lines
//! are appended with one write each, so that two writers never mix. When the current file reaches [`FILE_MAX`] it
//! becomes the older one, so an instance keeps between one and two times that.

use std::fs::{self, File, OpenOptions};
use std::future::poll_fn;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::Duration;

use futures_core::Stream as _;
use inotify::{EventStream, Inotify, WatchMask};

use crate::{files, time};

/// How large one file grows, in bytes.
pub const FILE_MAX: u64 = 8 << 20;
/// The longest line, in bytes; longer ones are cut into several.
pub const LINE_MAX: usize = 16 << 10;

const CURRENT: &str = "log";
const OLDER: &str = "log.1";

/// One line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Line {
    /// When, RFC 3339.
    pub at: String,
    /// `out`, `err` or `quilt`.
    pub stream: String,
    /// What.
    pub text: String,
}

/// Appends to a log.
#[derive(Debug)]
pub struct Writer {
    folder: PathBuf,
    /// The file and its inode, once there was a line.
    open: Option<(File, u64)>,
}

impl Writer {
    /// Of the log in `folder`. That and the file are made with the first line: most instances of most roles never say
    /// anything, and a host with thousands of them has neither their files nor their descriptors.
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), open: None }
    }

    /// Opens the log in `folder`, which is made if need be.
    ///
    /// # Errors
    ///
    /// What the operating system says.
    pub fn open(folder: &Path) -> io::Result<Self> {
        let mut writer = Self::new(folder);
        writer.current()?;
        Ok(writer)
    }

    /// Appends `text`, a line per line of it.
    ///
    /// # Errors
    ///
    /// What the operating system says.
    pub fn append(&mut self, stream: &str, text: &[u8]) -> io::Result<()> {
        let text = text.strip_suffix(b"\n").unwrap_or(text);
        let mut out = Vec::with_capacity(text.len() + 40);
        let at = time::now_text();
        for line in text.split(|byte| *byte == b'\n') {
            let mut rest = line;
            loop {
                let (now, later) = rest.split_at(rest.len().min(LINE_MAX));
                out.extend_from_slice(at.as_bytes());
                out.push(b' ');
                out.extend_from_slice(stream.as_bytes());
                out.push(b' ');
                out.extend_from_slice(String::from_utf8_lossy(now).as_bytes());
                out.push(b'\n');
                rest = later;
                if rest.is_empty() {
                    break;
                }
            }
        }
        if self.open.is_none() {
            // Opened first, so that a file that is full already is noticed.
            self.current()?;
        }
        self.current()?.write_all(&out)
    }

    /// The file to write to. Rotates if it is full, and goes over to the new one if the other writer rotated.
    fn current(&mut self) -> io::Result<&mut File> {
        let current = self.folder.join(CURRENT);
        let is_current = |inode: &u64| fs::metadata(&current).is_ok_and(|now| now.ino() == *inode);
        let usable = match &self.open {
            Some((file, inode)) if file.metadata()?.len() >= FILE_MAX => {
                // Two writers may come here at once; the lock lets the second see what the first did.
                let lock =
                    OpenOptions::new().write(true).create(true).truncate(false).open(self.folder.join("lock"))?;
                lock.lock()?;
                if is_current(inode) {
                    fs::rename(&current, self.folder.join(OLDER))?;
                }
                false
            }
            Some((_, inode)) => is_current(inode),
            None => {
                files::create_private_dir(&self.folder)?;
                false
            }
        };
        if !usable {
            let file = OpenOptions::new().append(true).create(true).mode(0o600).open(&current)?;
            let inode = file.metadata()?.ino();
            self.open = Some((file, inode));
        }
        let (file, _) = self.open.as_mut().expect("it was opened above");
        Ok(file)
    }
}

/// Reads a log from near its end on, a piece at a time, and follows it. What it holds in memory does not depend on how much
/// is read.
pub struct Reader {
    folder: PathBuf,
    file: Option<(File, u64)>,
    /// The part of a line that has been read.
    partial: Vec<u8>,
    watch: Option<Watch>,
}

/// How many bytes are read at a time.
const PIECE: usize = 64 << 10;

/// How a reader hears of new lines.
enum Watch {
    Inotify(Box<EventStream<[u8; 1024]>>),
    /// The machine is out of inotify instances (128 a user by default): look from time to time.
    Poll,
}

/// How often a log is looked at where inotify is not to be had.
const LOOK: Duration = Duration::from_millis(200);

impl Reader {
    /// A reader of the log in `folder` that begins with its last `count` lines, or later ones.
    ///
    /// # Errors
    ///
    /// What the operating system says.
    pub fn open(folder: &Path, count: usize) -> io::Result<Self> {
        let mut left = count;
        let mut begins_with = None;
        for name in [CURRENT, OLDER] {
            let mut file = match File::open(folder.join(name)) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            let (at, lines) = last_lines(&mut file, left)?;
            file.seek(SeekFrom::Start(at))?;
            let inode = file.metadata()?.ino();
            if lines > 0 || begins_with.is_none() {
                begins_with = Some((file, inode));
            }
            left -= lines;
            if left == 0 {
                break;
            }
        }
        Ok(Self { folder: folder.to_owned(), file: begins_with, partial: Vec::new(), watch: None })
    }

    /// The lines that come next, as many as are read at once; none if there are no more now.
    ///
    /// # Errors
    ///
    /// What the operating system says.
    pub fn more(&mut self) -> io::Result<Vec<Line>> {
        loop {
            if self.file.is_none() {
                match File::open(self.folder.join(CURRENT)) {
                    Ok(file) => {
                        let inode = file.metadata()?.ino();
                        self.file = Some((file, inode));
                    }
                    Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
                    Err(error) => return Err(error),
                }
            }
            let (file, inode) = self.file.as_mut().expect("it was opened above");
            // Whether it was rotated is asked before reading, so that its last lines are read.
            let rotated = fs::metadata(self.folder.join(CURRENT)).is_ok_and(|now| now.ino() != *inode);
            let count = (&*file).take(PIECE as u64).read_to_end(&mut self.partial)?;
            let complete = self.partial.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
            let mut lines: Vec<_> = self.partial[..complete].split(|byte| *byte == b'\n').filter_map(parse).collect();
            self.partial.drain(..complete);
            if !lines.is_empty() {
                return Ok(lines);
            }
            match (count, rotated) {
                (0, false) => return Ok(lines),
                (0, true) => {
                    // The file that was read should be the older one now; if it is gone, so is what came between.
                    let older = fs::metadata(self.folder.join(OLDER)).map(|older| older.ino());
                    let lost = older.is_ok_and(|older| older != *inode);
                    self.file = None;
                    self.partial.clear();
                    if lost {
                        let text = "lines were lost here: they came faster than they were read".to_owned();
                        lines.push(Line { at: time::now_text(), stream: "quilt".into(), text });
                        return Ok(lines);
                    }
                }
                _ => {}
            }
        }
    }

    /// As [`Reader::more`], but waits for at least one line.
    ///
    /// # Errors
    ///
    /// What the operating system says.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe: lines are taken only when they are returned.
    pub async fn next(&mut self) -> io::Result<Vec<Line>> {
        loop {
            // Read after the watch exists, so that nothing falls between.
            let lines = self.more()?;
            if !lines.is_empty() {
                return Ok(lines);
            }
            match &mut self.watch {
                None => self.watch = Some(watch(&self.folder)?),
                Some(Watch::Poll) => tokio::time::sleep(LOOK).await,
                Some(Watch::Inotify(watch)) => match poll_fn(|cx| Pin::new(&mut **watch).poll_next(cx)).await {
                    Some(event) => drop(event?),
                    None => return Err(io::ErrorKind::UnexpectedEof.into()),
                },
            }
        }
    }
}

fn watch(folder: &Path) -> io::Result<Watch> {
    files::create_private_dir(folder)?;
    let wanted = WatchMask::MODIFY | WatchMask::CREATE | WatchMask::MOVED_TO;
    let watch = Inotify::init().and_then(|inotify| {
        inotify.watches().add(folder, wanted)?;
        inotify.into_event_stream([0; 1024])
    });
    Ok(watch.map_or(Watch::Poll, |watch| Watch::Inotify(Box::new(watch))))
}

/// Where the last `count` lines of a file begin, and how many there are: `count`, or all. Reads from its end.
fn last_lines(file: &mut File, count: usize) -> io::Result<(u64, usize)> {
    let mut at = file.metadata()?.len();
    let mut piece = vec![0; PIECE];
    let (mut lines, mut ends_whole) = (0, false);
    while at > 0 && (lines < count || !ends_whole) {
        let length = usize::try_from(at).map_or(PIECE, |at| at.min(PIECE));
        at -= length as u64;
        file.seek(SeekFrom::Start(at))?;
        file.read_exact(&mut piece[..length])?;
        for (offset, _) in piece[..length].iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n') {
            // The first line break from the end ends the last line; each one before it begins one.
            lines += usize::from(std::mem::replace(&mut ends_whole, true));
            if ends_whole && (lines == count) {
                return Ok((at + offset as u64 + 1, lines));
            }
        }
    }
    Ok((0, lines + usize::from(ends_whole)))
}

fn parse(line: &[u8]) -> Option<Line> {
    let line = String::from_utf8_lossy(line);
    let (at, rest) = line.split_once(' ')?;
    let (stream, text) = rest.split_once(' ')?;
    Some(Line { at: at.into(), stream: stream.into(), text: text.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(lines: &[Line]) -> Vec<&str> {
        lines.iter().map(|line| line.text.as_str()).collect()
    }

    #[tokio::test]
    async fn a_reader_follows_two_writers_across_a_rotation_without_losing_a_line() {
        let folder = tempfile::tempdir().unwrap();
        let mut one = Writer::open(folder.path()).unwrap();
        let mut two = Writer::open(folder.path()).unwrap();
        one.append("out", b"first\nsecond\n").unwrap();
        let mut reader = Reader::open(folder.path(), 1).unwrap();
        assert_eq!(texts(&reader.more().unwrap()), ["second"]);
        let big = "x".repeat(LINE_MAX);
        let writing = std::thread::spawn(move || {
            for number in 0..FILE_MAX as usize / LINE_MAX * 3 / 2 {
                let writer = if number % 2 == 0 { &mut one } else { &mut two };
                writer.append("err", format!("{number}{}", &big[8..]).as_bytes()).unwrap();
            }
        });
        let mut expected = 0;
        while expected < FILE_MAX as usize / LINE_MAX * 3 / 2 {
            for line in reader.next().await.unwrap() {
                assert!(line.text.starts_with(&format!("{expected}x")), "{expected} is missing");
                expected += 1;
            }
        }
        writing.join().unwrap();
        assert!(folder.path().join(OLDER).exists());
    }

    #[test]
    fn a_writer_of_one_line_notices_that_the_file_is_full() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(CURRENT), vec![b'x'; FILE_MAX as usize]).unwrap();
        Writer::new(folder.path()).append("quilt", b"it failed").unwrap();
        assert!(folder.path().join(OLDER).exists());
        assert!(fs::metadata(folder.path().join(CURRENT)).unwrap().len() < 100);
    }

    #[test]
    fn the_last_lines_are_found_from_the_end_across_both_files() {
        let folder = tempfile::tempdir().unwrap();
        let line = |number: usize| format!("2026-01-01T00:00:00.000Z out {number}\n");
        let write = |name: &str, numbers: std::ops::Range<usize>| {
            fs::write(folder.path().join(name), numbers.map(line).collect::<String>()).unwrap();
        };
        write(OLDER, 0..5000);
        write(CURRENT, 5000..10_000);
        for count in [0, 1, 2, 4999, 5000, 5001, 7000, 10_000, 20_000] {
            let mut reader = Reader::open(folder.path(), count).unwrap();
            let mut numbers = Vec::new();
            loop {
                let lines = reader.more().unwrap();
                if lines.is_empty() {
                    break;
                }
                assert!(lines.len() < 2 * PIECE / line(0).len(), "it was read at once");
                numbers.extend(lines.iter().map(|line| line.text.parse::<usize>().unwrap()));
            }
            let expected: Vec<_> = (10_000 - count.min(10_000)..10_000).collect();
            assert_eq!(numbers, expected, "the last {count}");
        }
    }

    #[test]
    fn a_long_line_is_cut_and_bytes_that_are_no_text_are_shown() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = Writer::open(folder.path()).unwrap();
        writer.append("out", &vec![b'y'; LINE_MAX * 2 + 1]).unwrap();
        writer.append("out", b"\xff\n\n").unwrap();
        let lines = Reader::open(folder.path(), 10).unwrap().more().unwrap();
        assert_eq!(lines.len(), 5);
        assert_eq!(texts(&lines)[3..], ["\u{fffd}", ""]);
    }
}
