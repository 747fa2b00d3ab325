//! One value in two files that take turns: it is replaced in place, so that the disk has one thing to do, not five.
//!
//! Replacing a file by another (`files::write_atomically`) makes the file system note a new file, its blocks, its name, and
//! that the old one is gone, and to wait for that twice. What is written over blocks that are there already is one
//! write and one wait: on ext4, 8 writers, 10,000 a second where replacing files managed 1,000 (docs/performance.md).
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
}

/// What two slots hold.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// Nothing was ever put there.
    Nothing,
    /// What was put last.
    Last(Vec<u8>),
    /// What was put before that: putting the last was cut short, or it was damaged since.
    Before(Vec<u8>),
    /// Something was put there, and none of it is whole.
    Damaged,
}

/// One of them.
enum Slot {
    Empty,
    Whole(u64, Vec<u8>),
    Broken,
}

impl Slots {
    /// Opens the slots of a folder, or makes them. Blocks.
    ///
    /// # Errors
    ///
    /// What the operating system says.
    pub fn open(folder: &Path, name: &str) -> io::Result<(Self, Found)> {
        let paths = [0, 1].map(|number| folder.join(format!("{name}.{number}")));
        let mut slots = Self { paths, turn: 0, next: 0 };
        slots.make()?;
        let (mut newest, mut broken, mut empty) = (None, false, false);
        for number in 0..slots.paths.len() {
            match slots.read(number)? {
                Slot::Whole(turn, content) if turn > slots.turn => {
                    (slots.turn, slots.next) = (turn, 1 - number);
                    newest = Some(content);
                }
                Slot::Whole(..) => {}
                Slot::Broken => broken = true,
                Slot::Empty => empty = true,
            }
        }
        // Both were written by the second time: a file is gone, and was made anew.
        broken |= empty && slots.turn > 1;
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
        bytes.push(b'\n');
        bytes.resize(bytes.len().next_multiple_of(BLOCK), b' ');
        if bytes.len() as u64 > LENGTH_MAX {
            let text = format!("{} bytes are to be kept, at most {LENGTH_MAX} can be", content.len());
            return Err(io::Error::new(ErrorKind::FileTooLarge, text));
        }
        let path = &self.paths[self.next];
        let file = match OpenOptions::new().write(true).open(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.make()?;
                OpenOptions::new().write(true).open(path)?
            }
            file => file?,
        };
        let write = || {
            if file.metadata()?.len() != bytes.len() as u64 {
                file.set_len(bytes.len() as u64)?;
            }
            file.write_all_at(&bytes, 0)?;
            file.sync_data()
        };
        write().inspect_err(|_| {
            // It may be whole all the same, and must not count after a restart.
            let _ = file.write_all_at(&[b'?'; MAGIC.len()], 0);
        })?;
        (self.turn, self.next) = (turn, 1 - self.next);
        Ok(())
    }

    /// Makes the files that are not there, with blocks to write to.
    fn make(&self) -> io::Result<()> {
        let missing = self.paths.iter().filter(|path| !path.exists());
        missing.into_iter().try_for_each(|path| files::write_atomically(path, &[b' '; BLOCK]))
    }

    fn read(&self, number: usize) -> io::Result<Slot> {
        let (file, mut bytes) = (File::open(&self.paths[number])?, Vec::new());
        // What was written just before a crash of its program is not on the disk yet, and whoever reads it counts on it.
        file.sync_data()?;
        file.take(LENGTH_MAX).read_to_end(&mut bytes)?;
        // An empty file is no empty slot: it was made with blanks in it.
        if !bytes.is_empty() && bytes.iter().all(|byte| *byte == b' ') {
            return Ok(Slot::Empty);
        }
        Ok(whole(&bytes).map_or(Slot::Broken, |(turn, content)| Slot::Whole(turn, content.to_vec())))
    }
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

/// A slot's number and content, if it is as it was written.
fn whole(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    let line = std::str::from_utf8(&bytes[..=end]).ok()?;
    let mut words = line.split_whitespace().skip(1);
    let turn = words.next()?.strip_prefix("turn=")?.parse().ok()?;
    let length = words.next()?.strip_prefix("length=")?.parse().ok()?;
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
                    () if torn == older => last("third, and a little longer"),
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
