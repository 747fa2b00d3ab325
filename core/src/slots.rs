//! One value in two files that take turns: it is replaced in place, so that the disk has one thing to do, not five.
//!
//! Replacing a file by another (`files::write_atomically`) makes the file system note a new file, its blocks, its name, and
//! that the old one is gone, and to wait for that twice. What is written over blocks that are there already is one
//! write and one wait: on ext4, 8 writers, 10,000 a second where replacing files managed 1,000 (benches/NOTEBOOK.md).
//! Which of the two counts, and that a write was not cut short, is said by a first line with a number and a checksum.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use crate::files;

/// What every slot begins with.
const MAGIC: &str = "quilt-slot";
/// What a slot begins with whose last write failed: it never counted, and is not damaged.
const VOID: &str = "quilt-slot void\n";
/// Slots grow and shrink by so many bytes: most changes then change no length, and the disk has only data to write.
const BLOCK: usize = 4096;
/// The longest slot that is read, in bytes.
const LENGTH_MAX: u64 = 64 << 20;

/// Two files, `NAME.0` and `NAME.1`, of which the one that was written last counts. For one process at a time.
#[derive(Debug)]
pub struct Slots {
    paths: [PathBuf; 2],
    /// The number of the last write.
    turn: u64,
    /// Which of them is written next.
    next: usize,
    /// How many bytes the last write took.
    length: usize,
}

/// What two slots hold.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// Nothing was ever put there.
    Nothing,
    /// What was put last.
    Last(Vec<u8>),
    /// What was put before that, because the last was damaged since; or the last after all, if the end of the process cut a write
    /// short. Nothing on the disk tells which.
    Before(Vec<u8>),
    /// Something was put there, and none of it is whole.
    Damaged,
}

/// One of them.
enum Slot {
    Empty,
    Whole(u64, Vec<u8>),
    /// With the number in its first line, as far as that can be read.
    Broken(Option<u64>),
    /// The last write to it failed.
    Void,
}

impl Slots {
    /// Opens the slots of a folder, or makes them. A disk that can only be read is no error: what it holds is found. Blocks.
    ///
    /// # Errors
    ///
    /// What the operating system says, or that something else is in the place of a slot.
    pub fn open(folder: &Path, name: &str) -> io::Result<(Self, Found)> {
        let paths = [0, 1].map(|number| folder.join(format!("{name}.{number}")));
        let mut slots = Self { paths, turn: 0, next: 0, length: 0 };
        match slots.make() {
            Err(error) if !is_shortage(&error) => return Err(error),
            _ => {}
        }
        let (mut newest, mut empty, mut broken) = (None, false, Vec::new());
        for number in 0..slots.paths.len() {
            match slots.read(number)? {
                Slot::Whole(turn, content) if turn > slots.turn => {
                    (slots.turn, slots.next) = (turn, 1 - number);
                    slots.length = padded(first_line(turn, &content).len() + content.len());
                    newest = Some(content);
                }
                Slot::Whole(..) | Slot::Void => {}
                Slot::Broken(turn) => broken.push(turn),
                Slot::Empty => empty = true,
            }
        }
        // Damage to what was before the last loses nothing. Both were written by the second time: a file is gone, and was made anew.
        let last = slots.turn;
        let broken = broken.iter().any(|turn| turn.is_none_or(|turn| turn > last)) || (empty && last > 1);
        let found = match (newest, broken) {
            (None, false) => Found::Nothing,
            (None, true) => Found::Damaged,
            (Some(content), false) => Found::Last(content),
            (Some(content), true) => Found::Before(content),
        };
        Ok((slots, found))
    }

    /// The files.
    pub fn paths(&self) -> &[PathBuf; 2] {
        &self.paths
    }

    /// Puts something there, for good when this returns. A crash at any moment leaves it or what was there before. Blocks.
    ///
    /// # Errors
    ///
    /// What the operating system says, or that it is too long; what was there before is then untouched.
    pub fn put(&mut self, content: &[u8]) -> io::Result<()> {
        let turn = self.turn + 1;
        let mut bytes = first_line(turn, content).into_bytes();
        bytes.extend_from_slice(content);
        bytes.resize(padded(bytes.len()), b' ');
        if bytes.len() as u64 > LENGTH_MAX {
            let text = format!("{} bytes are to be kept, at most {LENGTH_MAX} can be", content.len());
            return Err(io::Error::new(ErrorKind::FileTooLarge, text));
        }
        let open = |path: &Path| files::open_regular(path, OpenOptions::new().write(true));
        let file = match open(&self.paths[self.next]) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.make()?;
                open(&self.paths[self.next])?
            }
            file => file?,
        };
        // Neither becomes shorter than the last in the other: what is not longer than that has room on a full disk too.
        let room = bytes.len().max(self.length) as u64;
        let write = || {
            if file.metadata()?.len() > room {
                file.set_len(room)?;
            }
            file.write_all_at(&bytes, 0)?;
            file.sync_data()
        };
        write().inspect_err(|_| {
            // It may be whole all the same, and must not count after a restart.
            let _ = file.write_all_at(VOID.as_bytes(), 0);
        })?;
        (self.turn, self.next, self.length) = (turn, 1 - self.next, bytes.len());
        if let Ok(other) = open(&self.paths[self.next]) {
            // Without it the next write needs more room than this one, which a full disk may not have.
            let _ = make_room(&other, bytes.len() as u64);
        }
        Ok(())
    }

    /// Makes the files that are not there, with blocks to write to.
    fn make(&self) -> io::Result<()> {
        let missing = self.paths.iter().filter(|path| !path.exists());
        missing.into_iter().try_for_each(|path| files::write_atomically(path, &[b' '; BLOCK]))
    }

    fn read(&self, number: usize) -> io::Result<Slot> {
        let mut bytes = Vec::new();
        let file = match files::open_regular(&self.paths[number], OpenOptions::new().read(true)) {
            // It could not be made.
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Slot::Empty),
            file => file?,
        };
        // What was written just before a crash of its program is not on the disk yet, and whoever reads it counts on it.
        match file.sync_data() {
            Err(error) if error.kind() != ErrorKind::ReadOnlyFilesystem => return Err(error),
            _ => {}
        }
        file.take(LENGTH_MAX).read_to_end(&mut bytes)?;
        if bytes.starts_with(VOID.as_bytes()) {
            return Ok(Slot::Void);
        }
        // An empty file is no empty slot: it was made with blanks in it.
        if !bytes.is_empty() && bytes.iter().all(|byte| *byte == b' ') {
            return Ok(Slot::Empty);
        }
        Ok(match whole(&bytes) {
            Some((turn, content)) => Slot::Whole(turn, content.to_vec()),
            None => Slot::Broken(turn_of(&bytes)),
        })
    }
}

/// The length of a slot for so many bytes and a line break.
fn padded(length: usize) -> usize {
    (length + 1).next_multiple_of(BLOCK)
}

/// Has a file take up so many bytes at least, by blanks at its end.
fn make_room(file: &File, length: u64) -> io::Result<()> {
    let there = file.metadata()?.len();
    let missing = length.saturating_sub(there) as usize;
    if missing > 0 { file.write_all_at(&vec![b' '; missing], there) } else { Ok(()) }
}

/// Whether the disk is full or can only be read now.
fn is_shortage(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::ReadOnlyFilesystem | ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}

fn first_line(turn: u64, content: &[u8]) -> String {
    let mut sum = Sha256::new();
    sum.update(turn.to_be_bytes());
    sum.update(content);
    let mut line = format!("{MAGIC} turn={turn} length={} sha256=", content.len());
    for byte in sum.finalize() {
        let _ = write!(line, "{byte:02x}");
    }
    line + "\n"
}

/// The number in a slot's first line.
fn turn_of(bytes: &[u8]) -> Option<u64> {
    let line = std::str::from_utf8(bytes.get(..bytes.iter().position(|byte| *byte == b'\n')?)?).ok()?;
    let mut words = line.split_whitespace();
    words.next().filter(|word| *word == MAGIC)?;
    words.next()?.strip_prefix("turn=")?.parse().ok()
}

/// A slot's number and content, if it is as it was written.
fn whole(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    let line = std::str::from_utf8(&bytes[..=end]).ok()?;
    let turn = turn_of(bytes)?;
    let length = line.split_whitespace().nth(2)?.strip_prefix("length=")?.parse().ok()?;
    let content = bytes[end + 1..].get(..length)?;
    (line == first_line(turn, content)).then_some((turn, content))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn last(text: &str) -> Found {
        Found::Last(text.as_bytes().to_vec())
    }

    #[test]
    fn what_was_put_last_is_found_whatever_its_length() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Slots::open(folder.path(), "x").unwrap().1, Found::Nothing);
        let (mut slots, found) = Slots::open(folder.path(), "x").unwrap();
        assert_eq!(found, Found::Nothing);
        for (number, length) in [10, 10_000, 20, 0, 4096, 4000, 100_000, 1].into_iter().enumerate() {
            let text = number.to_string().repeat(length);
            slots.put(text.as_bytes()).unwrap();
            assert_eq!(Slots::open(folder.path(), "x").unwrap().1, last(&text));
        }
        for path in slots.paths() {
            assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
            assert!(fs::metadata(path).unwrap().len() <= 2 * 100_000, "slots become small again");
        }
    }

    #[test]
    fn a_write_that_is_cut_short_anywhere_leaves_what_was_there_before() {
        let folder = tempfile::tempdir().unwrap();
        let (mut slots, _) = Slots::open(folder.path(), "x").unwrap();
        for text in ["first", "second", "third, and a little longer"] {
            slots.put(text.as_bytes()).unwrap();
        }
        let older = fs::read(&slots.paths()[1]).unwrap();
        slots.put(b"fourth").unwrap();
        let newer = fs::read(&slots.paths()[1]).unwrap();
        let changed = newer.iter().rposition(|byte| *byte != b' ').unwrap();
        // Past what they differ in, a cut changes nothing.
        for cut in 0..=changed + 2 {
            // What was written first may be on the disk, or what was written last.
            for (from, to) in [(&newer, &older), (&older, &newer)] {
                let torn = [&from[..cut], &to[cut..]].concat();
                fs::write(&slots.paths()[1], &torn).unwrap();
                let (mut again, found) = Slots::open(folder.path(), "x").unwrap();
                let expected = match () {
                    () if torn == newer => last("fourth"),
                    // It is still known for the one before the last.
                    () if torn == older || turn_of(&torn) == Some(2) => last("third, and a little longer"),
                    () => Found::Before(b"third, and a little longer".to_vec()),
                };
                assert_eq!(found, expected, "cut at {cut} of {changed}");
                if cut % 16 == 0 {
                    again.put(b"after it").unwrap();
                    assert_eq!(Slots::open(folder.path(), "x").unwrap().1, last("after it"));
                    fs::write(&again.paths()[0], slot_of("third, and a little longer", 3)).unwrap();
                }
            }
        }
    }

    #[test]
    fn a_write_that_failed_is_no_damage_and_what_is_not_longer_than_the_last_needs_no_room() {
        let folder = tempfile::tempdir().unwrap();
        let (mut slots, _) = Slots::open(folder.path(), "x").unwrap();
        for text in ["first", &"longer".repeat(2000)] {
            slots.put(text.as_bytes()).unwrap();
        }
        let lengths = || slots.paths().each_ref().map(|path| fs::metadata(path).unwrap().len());
        assert!(lengths().iter().all(|length| *length == 4 * BLOCK as u64 - BLOCK as u64), "{:?}", lengths());
        // As a full disk leaves it.
        let torn = [VOID.as_bytes(), &slot_of("third", 3)[VOID.len()..]].concat();
        fs::write(&slots.paths()[0], torn).unwrap();
        assert_eq!(Slots::open(folder.path(), "x").unwrap().1, last(&"longer".repeat(2000)));
        slots.put(b"third").unwrap();
        assert_eq!(Slots::open(folder.path(), "x").unwrap().1, last("third"));
        // Damage to what is of no use any more.
        let mut older = fs::read(&slots.paths()[1]).unwrap();
        older[200] ^= 1;
        fs::write(&slots.paths()[1], older).unwrap();
        assert_eq!(Slots::open(folder.path(), "x").unwrap().1, last("third"));
    }

    #[test]
    fn a_fifo_or_a_link_in_the_place_of_a_slot_is_refused_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let (slots, _) = Slots::open(folder.path(), "x").unwrap();
        let path = &slots.paths()[0];
        fs::remove_file(path).unwrap();
        nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let error = Slots::open(folder.path(), "x").unwrap_err().to_string();
        assert!(error.contains("x.0") && error.contains("a FIFO"), "{error}");
        fs::remove_file(path).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", path).unwrap();
        let error = Slots::open(folder.path(), "x").unwrap_err().to_string();
        assert!(error.contains("x.0") && error.contains("a link"), "{error}");
    }

    fn slot_of(text: &str, turn: u64) -> Vec<u8> {
        [first_line(turn, text.as_bytes()).as_bytes(), text.as_bytes()].concat()
    }

    #[test]
    fn damage_to_all_there_is_is_told_and_what_is_missing_is_made_again() {
        let folder = tempfile::tempdir().unwrap();
        let (mut slots, _) = Slots::open(folder.path(), "x").unwrap();
        slots.put(b"one").unwrap();
        for damage in ["", "{", "quilt-slot turn=9 length=99999999 sha256=", "quilt-slot turn=1 length=3 sha256=0\none"]
        {
            fs::write(&slots.paths()[0], damage).unwrap();
            assert_eq!(Slots::open(folder.path(), "x").unwrap().1, Found::Damaged, "{damage:?}");
        }
        slots.paths().iter().for_each(|path| fs::remove_file(path).unwrap());
        slots.put(b"two").unwrap();
        assert_eq!(Slots::open(folder.path(), "x").unwrap().1, Found::Before(b"two".to_vec()), "the other is gone");
        slots.put(b"three").unwrap();
        assert_eq!(Slots::open(folder.path(), "x").unwrap().1, last("three"));
        fs::remove_file(&slots.paths()[0]).unwrap();
        assert_eq!(Slots::open(folder.path(), "x").unwrap().1, Found::Before(b"two".to_vec()), "the last is gone");
    }
}
