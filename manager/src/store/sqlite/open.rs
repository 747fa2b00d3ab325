//! Opening a store: made if there was none, brought to today's format, and refused if it is not what was acknowledged.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::mark::{FoundMark, Mark, MarkFile};
use super::{read, schema};
use crate::store::StoreError;

/// An open store.
pub(super) struct Opened {
    pub(super) connection: Connection,
    pub(super) mark: MarkFile,
    pub(super) files: Files,
    /// Whether it was opened without the shared memory that other processes need, because the disk has no room for it.
    pub(super) is_exclusive: bool,
}

/// The files of a store as they were when it was opened.
pub(super) struct Files {
    path: PathBuf,
    database: Inode,
    /// The write-ahead log, if there is one.
    log: Option<Inode>,
}

/// Identifies a file regardless of its name: device and inode number.
type Inode = (u64, u64);

impl Files {
    fn of(path: &Path) -> io::Result<Self> {
        let mut files = Self { path: path.to_owned(), database: inode(path)?, log: None };
        files.renew_log();
        Ok(files)
    }

    /// The database.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The log goes with the connection.
    pub(super) fn forget_log(&mut self) {
        self.log = None;
    }

    /// Notes which file the log is now.
    pub(super) fn renew_log(&mut self) {
        self.log = inode(&with_suffix(&self.path, "-wal")).ok();
    }

    /// Finds out whether they are still there under their names: what is written to a file that was removed is lost.
    ///
    /// # Errors
    ///
    /// They are not; says what to do.
    pub(super) fn check(&self) -> Result<(), StoreError> {
        let log = self.log.map(|log| (with_suffix(&self.path, "-wal"), log));
        for (file, opened) in std::iter::once((self.path.clone(), self.database)).chain(log) {
            let what = match inode(&file) {
                Ok(now) if now == opened => continue,
                Ok(_) => "it was replaced while the manager runs".into(),
                Err(error) if error.kind() == ErrorKind::NotFound => "it was removed while the manager runs".into(),
                Err(error) => error.to_string(),
            };
            let way_out = "put it back, or stop the manager and restore a backup with `quilt-manager restore`";
            return Err(store_error(&file, format!("{what}; {way_out}")));
        }
        Ok(())
    }
}

fn inode(path: &Path) -> io::Result<Inode> {
    // Never opened here: closing any descriptor of the database would release the locks that SQLite holds on it.
    fs::metadata(path).map(|file| (file.dev(), file.ino()))
}

/// The name of a file that belongs to a database.
pub(super) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn store_error(path: &Path, text: impl std::fmt::Display) -> StoreError {
    StoreError(format!("{}: {text}", path.display()))
}

/// Opens the store in `path`, or makes it. Blocks.
///
/// # Errors
///
/// It cannot be opened, is damaged, is older than its mark, or was written by a newer version. Its files are then as they were.
pub(super) fn open(path: &Path) -> Result<Opened, StoreError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let (mut mark_file, found) = MarkFile::open(folder).map_err(|error| store_error(folder, error))?;
    match fs::metadata(path) {
        Ok(file) if file.len() == 0 => {
            return Err(store_error(path, "it is empty; restore a backup with `quilt-manager restore`"));
        }
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => {
            refuse_if_gone(path, &mark_file, &found)?;
            create(path).map_err(|error| store_error(path, error))?;
        }
        Err(error) => return Err(store_error(path, error)),
    }
    let (mut connection, is_exclusive) = connect(path)?;
    let version = version(&connection).map_err(|error| damaged(path, &error))?;
    check_version(path, version)?;
    // An earlier format has no mark. It gets one first: after a crash between, one without would be refused.
    if version < schema::VERSION {
        let mark = read::earlier_mark(&connection).map_err(|error| damaged(path, &error))?;
        check_mark(path, &mark_file, &found, &mark, true)?;
        mark_file.put(&mark).map_err(|error| store_error(mark_file.path(), error))?;
        migrate(&mut connection, version).map_err(|error| store_error(path, error))?;
    } else {
        let mark = read::mark(&connection).map_err(|error| damaged(path, &error))?;
        check_mark(path, &mark_file, &found, &mark, mark.epoch == 0)?;
    }
    set_in_order(&connection).map_err(|error| store_error(path, error))?;
    keep_private(path).map_err(|error| store_error(path, error))?;
    let files = Files::of(path).map_err(|error| store_error(path, error))?;
    Ok(Opened { connection, mark: mark_file, files, is_exclusive })
}

/// A store was here, and its database is not: a new one in its place would be a new fleet.
fn refuse_if_gone(path: &Path, mark_file: &MarkFile, found: &FoundMark) -> Result<(), StoreError> {
    let log = with_suffix(path, "-wal");
    let left = match found {
        FoundMark::Mark(mark) => {
            format!(
                "{} says that fleet {} was here up to revision {}",
                mark_file.path().display(),
                mark.fleet,
                mark.last_revision
            )
        }
        FoundMark::Damaged => format!("{} says that a fleet was here", mark_file.path().display()),
        FoundMark::Nothing if log.exists() => format!("{} is there", log.display()),
        FoundMark::Nothing => return Ok(()),
    };
    let way_out = "restore a backup with `quilt-manager restore`, or use another data folder for a new fleet";
    Err(store_error(path, format!("it is gone, but {left}; {way_out}")))
}

/// Whether the database is at least as new as its mark. One without a mark is refused unless it `may_lack_it`.
fn check_mark(
    path: &Path,
    mark_file: &MarkFile,
    found: &FoundMark,
    database: &Mark,
    may_lack_it: bool,
) -> Result<(), StoreError> {
    let mark_path = mark_file.path().display();
    let database_path = path.display();
    let way_out = format!(
        "put back what is missing, restore a backup with `quilt-manager restore`, or go on from this database with \
         `quilt-manager restore {database_path}`"
    );
    let why = match found {
        FoundMark::Mark(mark) if mark.fleet != database.fleet => {
            format!("it is of fleet {}, and its mark {mark_path} of fleet {}", database.fleet, mark.fleet)
        }
        FoundMark::Mark(mark) if database.is_behind(mark) => format!(
            "it is older than what was acknowledged: it ends at revision {}, write {}, epoch {}, and its mark {mark_path} says \
             revision {}, write {}, epoch {}; its write-ahead log {database_path}-wal is damaged or missing, or it is an older copy",
            database.last_revision, database.writes, database.epoch, mark.last_revision, mark.writes, mark.epoch
        ),
        FoundMark::Mark(_) => return Ok(()),
        _ if may_lack_it => return Ok(()),
        FoundMark::Nothing => format!(
            "its mark {mark_path} is missing, so it may be a copy without its write-ahead log: it ends at revision {}",
            database.last_revision
        ),
        FoundMark::Damaged => {
            format!("its mark {mark_path} is damaged; the database ends at revision {}", database.last_revision)
        }
    };
    Err(store_error(path, format!("{why}; {way_out}")))
}

/// Makes the store of a new fleet, whole in one file before it gets its name: whoever copies that file has the fleet.
fn create(path: &Path) -> anyhow::Result<()> {
    let new = with_suffix(path, ".new");
    let mut connection = create_database(&new)?;
    schema::add_functions(&connection)?;
    let transaction = connection.transaction()?;
    schema::create(&transaction)?;
    transaction.commit()?;
    connection.close().map_err(|(_, error)| error)?;
    install(&new, path)?;
    Ok(())
}

/// An empty database in a file that only its owner can read, in the place of what an interrupted attempt left.
pub(super) fn create_database(path: &Path) -> anyhow::Result<Connection> {
    for left in ["", "-journal", "-wal", "-shm"].map(|suffix| with_suffix(path, suffix)) {
        match fs::remove_file(&left) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
    }
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    Ok(Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX)?)
}

/// Gives a closed database its name, for good when this returns.
pub(super) fn install(new: &Path, path: &Path) -> io::Result<()> {
    File::open(new)?.sync_all()?;
    fs::rename(new, path)?;
    sync_folder(path)
}

/// Waits until the names of a file's folder are on disk.
pub(super) fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new(".")))?.sync_all()
}

/// Lets the end of a connection put its log into the database.
fn set_in_order(connection: &Connection) -> rusqlite::Result<()> {
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false).map(drop)
}

/// A new connection to a database that was open and was found to be in order.
pub(super) fn reconnect(files: &mut Files) -> Result<(Connection, bool), StoreError> {
    let (connection, is_exclusive) = connect(&files.path)?;
    set_in_order(&connection).map_err(|error| store_error(&files.path, error))?;
    files.renew_log();
    Ok((connection, is_exclusive))
}

/// A connection to a database whose structure is sound, and whether it had to be opened without shared memory. Closing it
/// leaves the write-ahead log as it is.
pub(super) fn connect(path: &Path) -> Result<(Connection, bool), StoreError> {
    match try_connect(path, false) {
        Ok(connection) => Ok((connection, false)),
        Err(error) if is_of_the_disk(&error) => match try_connect(path, true) {
            Ok(connection) => {
                let path = path.display();
                tracing::warn!(%path, %error, "the store is opened for this process alone: backups have to wait");
                Ok((connection, true))
            }
            Err(_) => Err(damaged(path, &error)),
        },
        Err(error) => Err(damaged(path, &error)),
    }
}

fn try_connect(path: &Path, is_exclusive: bool) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    // A log that does not verify is what somebody may still want to repair.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    schema::add_functions(&connection)?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    if is_exclusive {
        // Then the index of the log is in the memory of this process, and needs no room on the disk.
        connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
    }
    match connection.pragma_update(None, "journal_mode", "WAL") {
        Err(error) if !is_exclusive || !is_of_the_disk(&error) => return Err(error),
        _ => {}
    }
    connection.pragma_update(None, "synchronous", "FULL")?;
    check_structure(&connection)?;
    Ok(connection)
}

/// Whether the structure of a database is sound. What its rows say is verified when they are read.
pub(super) fn check_structure(connection: &Connection) -> rusqlite::Result<()> {
    let check: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if check == "ok" {
        return Ok(());
    }
    let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT);
    Err(rusqlite::Error::SqliteFailure(code, Some(check)))
}

/// Whether an error says that the disk is full, read-only or broken, and not that the database is.
pub(super) fn is_of_the_disk(error: &rusqlite::Error) -> bool {
    let codes = [ErrorCode::DiskFull, ErrorCode::CannotOpen, ErrorCode::SystemIoFailure, ErrorCode::ReadOnly];
    error.sqlite_error_code().is_some_and(|code| codes.contains(&code))
}

fn damaged(path: &Path, error: &rusqlite::Error) -> StoreError {
    let way_out = if is_of_the_disk(error) { "" } else { "; restore a backup with `quilt-manager restore`" };
    store_error(path, format!("{error}{way_out}"))
}

/// The format of a database.
pub(super) fn version(connection: &Connection) -> rusqlite::Result<i64> {
    connection.query_row("PRAGMA user_version", [], |row| row.get(0))
}

/// Whether this program reads a format.
pub(super) fn check_version(path: &Path, version: i64) -> Result<(), StoreError> {
    match version {
        1..=schema::VERSION => Ok(()),
        0 => Err(store_error(
            path,
            format!(
                "it holds no fleet: it was copied without its write-ahead log {}-wal, or is no store of a manager; copy \
                 that too, or restore a backup with `quilt-manager restore`",
                path.display()
            ),
        )),
        _ => {
            let text =
                format!("it has format {version}, this manager reads {}; use the newer manager", schema::VERSION);
            Err(store_error(path, text))
        }
    }
}

/// Brings a database of an earlier format to today's.
pub(super) fn migrate(connection: &mut Connection, version: i64) -> rusqlite::Result<()> {
    let transaction = connection.transaction()?;
    schema::migrate(&transaction, version)?;
    transaction.commit()
}

/// Only their owner may read the store's files: they hold what programs are given as secrets.
fn keep_private(path: &Path) -> io::Result<()> {
    for suffix in ["", "-wal", "-shm"] {
        match fs::set_permissions(with_suffix(path, suffix), Permissions::from_mode(0o600)) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}
