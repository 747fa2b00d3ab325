//! The store on disk: SQLite in write-ahead mode with full synchronisation, so that what was acknowledged survives a
//! power cut.
//!
//! One thread owns the connection. Commits that wait while one is being made are made together by the next one (group
//! commit): an fsync is then shared by all stations that register in a storm.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use quilt_net::BoxFuture;
use quilt_protocol::control::FleetEvent;
use quilt_protocol::{Digest, FleetId, Revision, StationId};
use rusqlite::{Connection, OptionalExtension as _, Transaction, params};
use tokio::sync::oneshot;

use super::{Change, Desired, EVENTS_MAX, Entry, HISTORY_MAX, Loaded, Store, StoreError};

/// How many commits share one transaction at most, so that the first of them is not held up for long.
const GROUP_MAX: usize = 512;

/// After so long without anything to do, memory is given back,
const REST: Duration = Duration::from_secs(2);
/// if so many jobs have been done since: what little work needs is soon needed again.
const MUCH: usize = GROUP_MAX;

const SCHEMA_VERSION: i64 = 2;
const SCHEMA: &str = "
    CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
    CREATE TABLE station (id TEXT PRIMARY KEY, record TEXT NOT NULL) STRICT;
    CREATE TABLE desired (
        station TEXT NOT NULL, revision INTEGER NOT NULL, digest TEXT NOT NULL, document TEXT NOT NULL,
        origin TEXT NOT NULL, who TEXT NOT NULL, source TEXT NOT NULL, at_ms INTEGER NOT NULL, good INTEGER NOT NULL,
        held INTEGER NOT NULL,
        PRIMARY KEY (station, revision)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE entry (key TEXT PRIMARY KEY, source TEXT NOT NULL, json TEXT NOT NULL) STRICT;
    CREATE TABLE event (number INTEGER PRIMARY KEY, event TEXT NOT NULL) STRICT;
";

type Reply<T> = oneshot::Sender<Result<T, StoreError>>;
type Read = Box<dyn FnOnce(&Connection) + Send>;

enum Job {
    Commit(Vec<Change>, Reply<()>),
    Read(Read),
}

/// A store in one file.
pub struct SqliteStore {
    /// Not bounded itself: each asker waits for its own commits, and events are left out when many wait.
    jobs: mpsc::Sender<Job>,
    backlog: Arc<AtomicUsize>,
    trouble: Trouble,
}

/// Why the last commit failed, if it did.
type Trouble = Arc<Mutex<Option<String>>>;

impl SqliteStore {
    /// Opens the store in `path`, or makes it.
    ///
    /// # Errors
    ///
    /// It cannot be opened, is damaged, or was written by a newer version.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let named = |error: rusqlite::Error| {
            StoreError(format!("{}: {error}; restore it from a backup, or move it away to begin anew", path.display()))
        };
        if std::fs::metadata(path).is_ok_and(|file| file.len() == 0) {
            let path = path.display();
            return Err(StoreError(format!("{path} is empty; restore it from a backup, or remove it to begin anew")));
        }
        let mut connection = Connection::open(path).map_err(named)?;
        prepare(&mut connection).map_err(named)?;
        keep_private(path).map_err(|error| StoreError(format!("{}: {error}", path.display())))?;
        let version: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(named)?;
        if version != SCHEMA_VERSION {
            return Err(StoreError(format!(
                "{} has format {version}, this manager reads {SCHEMA_VERSION}; use the newer manager",
                path.display()
            )));
        }
        let (jobs, inbox) = mpsc::channel();
        let backlog = Arc::new(AtomicUsize::new(0));
        let counted = backlog.clone();
        let trouble = Trouble::default();
        let noted = trouble.clone();
        thread::Builder::new()
            .name("quilt-store".into())
            .spawn(move || work(connection, &inbox, &counted, &noted))
            .map_err(|error| StoreError(error.to_string()))?;
        Ok(Self { jobs, backlog, trouble })
    }

    fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> BoxFuture<'static, Result<T, StoreError>> {
        let (reply, answer) = oneshot::channel();
        let job = Job::Read(Box::new(move |connection| drop(reply.send(read(connection).map_err(wrong)))));
        self.send(job, answer)
    }

    fn send<T: Send + 'static>(
        &self,
        job: Job,
        answer: oneshot::Receiver<Result<T, StoreError>>,
    ) -> BoxFuture<'static, Result<T, StoreError>> {
        self.backlog.fetch_add(1, Ordering::Relaxed);
        let sent = self.jobs.send(job);
        Box::pin(async move {
            sent.map_err(|_| StoreError("its thread has ended".into()))?;
            answer.await.map_err(|_| StoreError("its thread has ended".into()))?
        })
    }
}

fn wrong(error: impl std::fmt::Display) -> StoreError {
    StoreError(error.to_string())
}

/// Only their owner may read the store's files: they hold what programs are given as secrets.
fn keep_private(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    for suffix in ["", "-wal", "-shm"] {
        let mut file = path.as_os_str().to_owned();
        file.push(suffix);
        match std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o600)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn prepare(connection: &mut Connection) -> rusqlite::Result<()> {
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    let check: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if check != "ok" {
        let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT);
        return Err(rusqlite::Error::SqliteFailure(code, Some(check)));
    }
    let version: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    if version == 0 {
        let transaction = connection.transaction()?;
        transaction.execute_batch(SCHEMA)?;
        transaction.pragma_update(None, "user_version", SCHEMA_VERSION)?;
        transaction.execute("INSERT INTO meta VALUES ('fleet', ?1)", [FleetId::random().to_string()])?;
        transaction
            .execute("INSERT INTO meta VALUES ('epoch', '0'), ('last_revision', '0'), ('last_event', '0')", [])?;
        transaction.commit()?;
    }
    if version == 1 {
        let transaction = connection.transaction()?;
        transaction.execute_batch("ALTER TABLE desired ADD COLUMN held INTEGER NOT NULL DEFAULT 0")?;
        transaction.pragma_update(None, "user_version", SCHEMA_VERSION)?;
        transaction.commit()?;
    }
    Ok(())
}

fn work(mut connection: Connection, inbox: &mpsc::Receiver<Job>, backlog: &AtomicUsize, trouble: &Trouble) {
    let mut jobs = 0;
    loop {
        let first = match inbox.recv_timeout(if jobs < MUCH { Duration::MAX } else { REST }) {
            Ok(first) => first,
            Err(RecvTimeoutError::Timeout) => {
                give_back(&connection);
                jobs = 0;
                continue;
            }
            Err(RecvTimeoutError::Disconnected) => return,
        };
        let mut group = Vec::new();
        let mut next = Some(first);
        while let Some(job) = next {
            backlog.fetch_sub(1, Ordering::Relaxed);
            jobs += 1;
            match job {
                Job::Commit(changes, reply) => group.push((changes, reply)),
                Job::Read(read) => {
                    // A read sees every commit that was asked for before it.
                    commit(&mut connection, std::mem::take(&mut group), trouble);
                    read(&connection);
                }
            }
            next = if group.len() < GROUP_MAX { inbox.try_recv().ok() } else { None };
        }
        commit(&mut connection, group, trouble);
    }
}

/// Gives the memory back that a storm or a large apply needed, SQLite's pages and what the allocator keeps.
#[cfg_attr(target_env = "gnu", allow(unsafe_code, reason = "the allocator has no safe way to be asked"))]
fn give_back(connection: &Connection) {
    if let Err(error) = connection.release_memory() {
        tracing::debug!(%error, "the store keeps its memory");
    }
    // SAFETY: it may be called at any time from any thread, and only unused memory is concerned.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0)
    };
}

fn commit(connection: &mut Connection, group: Vec<(Vec<Change>, Reply<()>)>, trouble: &Trouble) {
    if group.is_empty() {
        return;
    }
    let made = make_all(connection, group.iter().map(|(changes, _)| changes));
    let now = made.as_ref().err().map(ToString::to_string);
    let before = std::mem::replace(&mut *trouble.lock().unwrap_or_else(PoisonError::into_inner), now.clone());
    match (before, now) {
        (None, Some(error)) => tracing::error!(error, "the store does not take what changes"),
        (Some(_), None) => tracing::info!("the store takes what changes again"),
        _ => {}
    }
    match made {
        Ok(()) => group.into_iter().for_each(|(_, reply)| drop(reply.send(Ok(())))),
        // One bad apple: each alone, so that only the bad one fails.
        Err(_) if group.len() > 1 => {
            for (changes, reply) in group {
                let _ = reply.send(make_all(connection, [&changes].into_iter()).map_err(wrong));
            }
        }
        Err(error) => group.into_iter().for_each(|(_, reply)| drop(reply.send(Err(wrong(&error))))),
    }
}

fn make_all<'a>(connection: &mut Connection, all: impl Iterator<Item = &'a Vec<Change>>) -> rusqlite::Result<()> {
    let transaction = connection.transaction()?;
    let mut highest = Highest::default();
    for change in all.flatten() {
        make(&transaction, change, &mut highest)?;
    }
    highest.note(&transaction)?;
    transaction.commit()
}

/// The highest numbers of what one transaction adds: noted once, not for each.
#[derive(Default)]
struct Highest {
    revision: Option<u64>,
    event: Option<u64>,
}

impl Highest {
    fn note(self, transaction: &Transaction<'_>) -> rusqlite::Result<()> {
        if let Some(revision) = self.revision {
            raise(transaction, "last_revision", revision)?;
        }
        if let Some(event) = self.event {
            let gone = event.saturating_sub(EVENTS_MAX);
            transaction.prepare_cached("DELETE FROM event WHERE number <= ?1")?.execute(params![gone as i64])?;
            raise(transaction, "last_event", event)?;
        }
        Ok(())
    }
}

fn text<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("store types have text keys")
}

fn make(transaction: &Transaction<'_>, change: &Change, highest: &mut Highest) -> rusqlite::Result<()> {
    let run = |sql: &str, values: &[&dyn rusqlite::ToSql]| transaction.prepare_cached(sql)?.execute(values);
    match change {
        Change::PutStation(record) => {
            run("INSERT OR REPLACE INTO station VALUES (?1, ?2)", &[&record.id.to_string(), &text(record)])?;
        }
        Change::ForgetStation(id) => {
            run("DELETE FROM station WHERE id = ?1", &[&id.to_string()])?;
            run("DELETE FROM desired WHERE station = ?1", &[&id.to_string()])?;
        }
        Change::PutDesired(id, desired) => {
            let id = id.to_string();
            run(
                "INSERT INTO desired VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
                params![
                    id,
                    desired.revision.0 as i64,
                    desired.digest.to_string(),
                    desired.document,
                    text(&desired.origin),
                    desired.who.as_str(),
                    desired.source.as_str(),
                    desired.at_ms as i64,
                    desired.good,
                    desired.held
                ],
            )?;
            run(
                "DELETE FROM desired WHERE station = ?1 AND revision <
                 (SELECT revision FROM desired WHERE station = ?1 ORDER BY revision DESC LIMIT 1 OFFSET ?2)",
                params![id, HISTORY_MAX as i64],
            )?;
            highest.revision = highest.revision.max(Some(desired.revision.0));
        }
        Change::MarkGood(id, revision, good) => {
            let values = params![id.to_string(), revision.0 as i64, good];
            run("UPDATE desired SET good = ?3 WHERE station = ?1 AND revision = ?2", values)?;
        }
        Change::Release(id, revision) => {
            let values = params![id.to_string(), revision.0 as i64];
            run("UPDATE desired SET held = 0 WHERE station = ?1 AND revision = ?2", values)?;
        }
        Change::PutEntry(key, entry) => {
            run("INSERT OR REPLACE INTO entry VALUES (?1, ?2, ?3)", params![text(key), entry.source, entry.json])?;
        }
        Change::RemoveEntry(key) => drop(run("DELETE FROM entry WHERE key = ?1", &[&text(key)])?),
        Change::RaiseEpoch(epoch) => raise(transaction, "epoch", *epoch)?,
        Change::AddEvent(event) => {
            run("INSERT INTO event VALUES (?1, ?2)", params![event.number as i64, text(event)])?;
            highest.event = highest.event.max(Some(event.number));
        }
    }
    Ok(())
}

fn raise(transaction: &Transaction<'_>, key: &str, to: u64) -> rusqlite::Result<()> {
    let sql = "UPDATE meta SET value = ?2 WHERE key = ?1 AND CAST(value AS INTEGER) < ?2";
    transaction.prepare_cached(sql)?.execute(params![key, to as i64]).map(drop)
}

/// A column that holds text of a type of ours.
fn parsed<T: std::str::FromStr>(text: &str) -> rusqlite::Result<T>
where
    T::Err: std::fmt::Display,
{
    text.parse().map_err(|error: T::Err| damaged(&error))
}

fn from_json<T: serde::de::DeserializeOwned>(text: &str) -> rusqlite::Result<T> {
    serde_json::from_str(text).map_err(|error| damaged(&error))
}

fn damaged(error: &dyn std::fmt::Display) -> rusqlite::Error {
    let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT);
    rusqlite::Error::SqliteFailure(code, Some(format!("a row does not decode: {error}")))
}

fn meta<T: std::str::FromStr>(connection: &Connection, key: &str) -> rusqlite::Result<T>
where
    T::Err: std::fmt::Display,
{
    let sql = "SELECT value FROM meta WHERE key = ?1";
    let value: Option<String> = connection.query_row(sql, [key], |row| row.get(0)).optional()?;
    parsed(&value.ok_or_else(|| damaged(&format!("meta {key} is missing")))?)
}

const DESIRED: &str = "SELECT station, revision, digest, document, origin, who, source, at_ms, good, held FROM desired";

fn desired(row: &rusqlite::Row<'_>) -> rusqlite::Result<(StationId, Desired)> {
    let text = |at: usize| row.get::<_, String>(at);
    let desired = Desired {
        revision: Revision(row.get::<_, i64>(1)? as u64),
        digest: parsed::<Digest>(&text(2)?)?,
        document: text(3)?.into(),
        origin: from_json(&text(4)?)?,
        who: text(5)?.into(),
        source: text(6)?.into(),
        at_ms: row.get::<_, i64>(7)? as u64,
        good: row.get(8)?,
        held: row.get(9)?,
    };
    Ok((parsed(&text(0)?)?, desired))
}

fn load(connection: &Connection) -> rusqlite::Result<Loaded> {
    // Raised and on disk before anybody hears of it.
    connection.execute("UPDATE meta SET value = CAST(value AS INTEGER) + 1 WHERE key = 'epoch'", [])?;
    let rows = |sql: &str| -> rusqlite::Result<Vec<(String, String, String)>> {
        let mut statement = connection.prepare(sql)?;
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
        rows.collect()
    };
    let stations = rows("SELECT id, record, '' FROM station ORDER BY id")?;
    let entries = rows("SELECT key, source, json FROM entry")?;
    let newest =
        format!("{DESIRED} AS d WHERE revision = (SELECT MAX(revision) FROM desired WHERE station = d.station)");
    let mut statement = connection.prepare(&newest)?;
    let mut documents = BTreeMap::<Digest, Arc<str>>::new();
    let desired = statement.query_map([], desired)?.map(|row| {
        let (station, mut desired) = row?;
        desired.document = documents.entry(desired.digest).or_insert_with(|| desired.document.clone()).clone();
        Ok((station, desired))
    });
    let desired = desired.collect::<rusqlite::Result<_>>()?;
    Ok(Loaded {
        fleet: meta(connection, "fleet")?,
        epoch: meta(connection, "epoch")?,
        last_revision: Revision(meta(connection, "last_revision")?),
        last_event: meta(connection, "last_event")?,
        stations: stations.iter().map(|(_, record, _)| from_json(record)).collect::<rusqlite::Result<_>>()?,
        desired,
        entries: entries
            .into_iter()
            .map(|(key, source, json)| Ok((from_json(&key)?, Entry { source, json })))
            .collect::<rusqlite::Result<_>>()?,
    })
}

impl Store for SqliteStore {
    fn load(&self) -> BoxFuture<'_, Result<Loaded, StoreError>> {
        self.read(load)
    }

    fn commit(&self, changes: Vec<Change>) -> BoxFuture<'static, Result<(), StoreError>> {
        let (reply, answer) = oneshot::channel();
        self.send(Job::Commit(changes, reply), answer)
    }

    fn close(&self) -> BoxFuture<'static, Result<(), StoreError>> {
        self.read(|connection| connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())))
    }

    fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn backlog(&self) -> usize {
        self.backlog.load(Ordering::Relaxed)
    }

    fn history(&self, station: StationId) -> BoxFuture<'static, Result<Vec<Desired>, StoreError>> {
        self.read(move |connection| {
            let sql = format!("{DESIRED} WHERE station = ?1 ORDER BY revision DESC");
            let mut statement = connection.prepare(&sql)?;
            let rows = statement.query_map([station.to_string()], |row| Ok(desired(row)?.1))?;
            rows.collect()
        })
    }

    fn events(&self, after: u64, limit: usize) -> BoxFuture<'static, Result<Vec<FleetEvent>, StoreError>> {
        self.read(move |connection| {
            let sql = "SELECT event FROM event WHERE number > ?1 ORDER BY number LIMIT ?2";
            let mut statement = connection.prepare(sql)?;
            let after = i64::try_from(after).unwrap_or(i64::MAX);
            let rows = statement.query_map(params![after, limit as i64], |row| row.get::<_, String>(0))?;
            rows.map(|row| from_json(&row?)).collect()
        })
    }
}
