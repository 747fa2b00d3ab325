//! A copy of a store in one file, and a store from such a copy.

use std::fmt;
use std::fs;
use std::io::{ErrorKind, Read as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use rusqlite::backup::Backup;
use rusqlite::{Connection, OpenFlags};

use quilt_core::words::count;

use super::mark::{FoundMark, Mark, MarkFile};
use super::open::{self, with_suffix};
use super::write;
use super::{read, schema};

/// What a copy holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// In words: the fleet, how many stations, how far it goes.
    pub content: String,
    /// What an operator should know beside that.
    pub notes: Vec<String>,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.content)
    }
}

/// Copies the store in `path` to the file `target`, as it is at one moment, also while a manager runs on it. The target is
/// there whole or not at all. Blocks.
///
/// # Errors
///
/// There is no store or it is damaged in its structure, `target` exists or cannot be written.
pub fn back_up(path: &Path, target: &Path) -> anyhow::Result<Summary> {
    anyhow::ensure!(!target.exists(), "{} exists; name a file that does not", target.display());
    let new = with_suffix(target, ".part");
    let copied = copy(path, &new).with_context(|| format!("{} to {}", path.display(), target.display()));
    let summary = copied.and_then(|copy| {
        let version = open::version(&copy)?;
        open::check_version(path, version)?;
        anyhow::ensure!(version == schema::VERSION, "start its manager once, which brings it to today's format");
        let notes = damage(&copy)?;
        let summary = Summary { content: content(&copy)?, notes };
        copy.close().map_err(|(_, error)| error)?;
        open::install(&new, target)?;
        Ok(summary)
    });
    summary.inspect_err(|_| drop(fs::remove_file(&new)))
}

/// Makes the store in `path` from the copy `source`; a store that was there is kept beside it as `fleet.db.replaced`. Revisions
/// and epochs go on after the highest that the folder has seen, so that none is given twice. No manager may run on it. Blocks.
///
/// # Errors
///
/// `source` is no store of a manager or is damaged in its structure; nothing was changed then. The folder cannot be written.
pub fn restore(path: &Path, source: &Path) -> anyhow::Result<Summary> {
    let new = with_suffix(path, ".new");
    let restored = restore_by(path, source, &new);
    restored.inspect_err(|_| drop(fs::remove_file(&new)))
}

/// Restores a store by a file that gets its name at the end.
fn restore_by(path: &Path, source: &Path, new: &Path) -> anyhow::Result<Summary> {
    let folder = path.parent().context("a store has a folder")?;
    let may_lack_log = may_lack_log(source);
    let mut copy = copy(source, new).with_context(|| format!("from {}", source.display()))?;
    let version = open::version(&copy)?;
    open::check_version(source, version)?;
    if version < schema::VERSION {
        open::migrate(&mut copy, version)?;
    }
    let mut notes = damage(&copy)?;
    if may_lack_log {
        notes.push(format!(
            "{0} is no backup but the database of a manager, and its write-ahead log {0}-wal is not beside it: unless that manager had \
             stopped when it was copied, what was applied last is not in it",
            source.display()
        ));
    }
    let content = content(&copy)?;
    let (mut mark_file, found) = MarkFile::open(folder)?;
    let mark = go_on_after(&mut copy, &found, &mut notes)?;
    copy.close().map_err(|(_, error)| error)?;

    // A crash from here on leaves a folder with a mark and no database, which a manager refuses and another restore mends.
    mark_file.put(&mark)?;
    set_aside(path, &mut notes)?;
    open::install(new, path)?;
    Ok(Summary { content, notes })
}

/// Whether a database was made to be used with a write-ahead log, which is not there. A backup is not; a manager that stops leaves no
/// log.
fn may_lack_log(database: &Path) -> bool {
    /// Where the header says which journal a database is read with, and the number of a write-ahead log there.
    const READ_VERSION: usize = 19;
    const WRITE_AHEAD_LOG: u8 = 2;
    let mut header = [0; READ_VERSION + 1];
    let read = fs::File::open(database).and_then(|mut file| file.read_exact(&mut header));
    read.is_ok() && header[READ_VERSION] == WRITE_AHEAD_LOG && !with_suffix(database, "-wal").exists()
}

/// Copies a database to a new file that needs no other file beside it.
fn copy(source: &Path, new: &Path) -> anyhow::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let from = Connection::open_with_flags(source, flags)?;
    let mut to = open::create_database(new)?;
    // All pages in one go: what others commit meanwhile would make it begin again.
    Backup::new(&from, &mut to)?.run_to_completion(i32::MAX, std::time::Duration::ZERO, None)?;
    to.pragma_update(None, "journal_mode", "DELETE")?;
    open::check_structure(&to)?;
    schema::add_functions(&to)?;
    Ok(to)
}

fn content(copy: &Connection) -> anyhow::Result<String> {
    let mark = read::mark(copy)?;
    let stations: i64 = copy.query_row("SELECT COUNT(*) FROM station", [], |row| row.get(0))?;
    let stations = count(stations as usize, "station");
    Ok(format!("fleet {}: {stations}, up to revision {}, epoch {}", mark.fleet, mark.last_revision, mark.epoch))
}

fn damage(copy: &Connection) -> anyhow::Result<Vec<String>> {
    let places = read::all_damage(copy)?;
    Ok(places.into_iter().map(|place| format!("{place} is damaged, and copied as it is")).collect())
}

/// Raises the numbers of a copy beyond what the folder's mark has seen.
fn go_on_after(copy: &mut Connection, found: &FoundMark, notes: &mut Vec<String>) -> anyhow::Result<Mark> {
    let mut mark = read::mark(copy)?;
    match found {
        FoundMark::Mark(before) if before.fleet != mark.fleet => {
            notes.push(format!("this folder was of fleet {} and is now of fleet {}", before.fleet, mark.fleet));
        }
        FoundMark::Mark(before) => {
            if before.last_revision > mark.last_revision {
                notes.push(format!(
                    "revisions {} to {} are not in it: a station that runs one of them keeps it and is listed as unadopted \
                     until `quiltctl adopt`",
                    mark.last_revision + 1,
                    before.last_revision
                ));
            }
            mark.epoch = mark.epoch.max(before.epoch);
            mark.writes = mark.writes.max(before.writes);
            mark.last_revision = mark.last_revision.max(before.last_revision);
        }
        FoundMark::Nothing | FoundMark::Damaged => {}
    }
    // No copy counts as one that was never started.
    mark.epoch += 1;
    let transaction = copy.transaction()?;
    write::raise(&transaction, "epoch", mark.epoch)?;
    write::raise(&transaction, "writes", mark.writes)?;
    write::raise(&transaction, "last_revision", mark.last_revision)?;
    transaction.commit()?;
    Ok(mark)
}

/// Moves the database that was there out of the way, with its log.
fn set_aside(path: &Path, notes: &mut Vec<String>) -> anyhow::Result<()> {
    let aside = with_suffix(path, ".replaced");
    let rename = |from: PathBuf, to: PathBuf| match fs::rename(from, to) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        done => done.map(|()| true),
    };
    if rename(path.to_owned(), aside.clone())? {
        rename(with_suffix(path, "-wal"), with_suffix(&aside, "-wal"))?;
        notes.push(format!("what was there is kept as {}", aside.display()));
    }
    // A log that stays would be taken for the new database's.
    for left in ["-wal", "-shm"].map(|suffix| with_suffix(path, suffix)) {
        match fs::remove_file(left) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
    }
    Ok(open::sync_folder(path)?)
}
