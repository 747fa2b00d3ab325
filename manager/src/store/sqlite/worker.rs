//! The thread that owns the connection.
//!
//! Commits that wait while one is being made are made together by the next one (group commit): an fsync is then shared by all
//! stations that register in a storm.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode};
use tokio::sync::oneshot;

use super::mark::{Mark, MarkFile};
use super::open::{self, Files, Opened};
use super::read;
use super::write::{self, Totals};
use crate::store::{Change, Loaded, StoreError};

/// How many commits share one transaction at most, so that the first of them is not held up for long.
const GROUP_MAX: usize = 512;
/// After so long without a job the thread gives memory back, if there were [`MUCH`] jobs before.
const REST: Duration = Duration::from_secs(2);
/// After how many jobs giving memory back is worth it: what a few jobs need is soon needed again.
const MUCH: usize = GROUP_MAX;
/// How often a store that took no changes is tried again.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// After so long a commit that waits for the disk counts as trouble.
const COMMIT_PATIENCE: Duration = Duration::from_secs(10);

type Reply<T> = oneshot::Sender<Result<T, StoreError>>;
type Read = Box<dyn FnOnce(Result<&Connection, StoreError>) + Send>;

/// What the thread is asked to do.
pub(super) enum Job {
    Load(Reply<Loaded>),
    Commit(Vec<Change>, Reply<()>),
    Read(Read),
}

/// How the store fares, for threads that may not wait for it.
#[derive(Default)]
pub(super) struct Health {
    backlog: AtomicUsize,
    state: Mutex<HealthState>,
}

#[derive(Default)]
struct HealthState {
    /// Why the last commit failed, if it did.
    trouble: Option<String>,
    /// Since when a commit waits for the disk.
    waiting_since: Option<Instant>,
}

impl Health {
    fn state(&self) -> MutexGuard<'_, HealthState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a job that was sent.
    pub(super) fn add_job(&self) {
        self.backlog.fetch_add(1, Ordering::Relaxed);
    }

    /// How many jobs wait.
    pub(super) fn backlog(&self) -> usize {
        self.backlog.load(Ordering::Relaxed)
    }

    /// Why the store takes no changes, if it does not.
    pub(super) fn trouble(&self) -> Option<String> {
        let state = self.state();
        let waited = state.waiting_since.map(|since| since.elapsed()).filter(|waited| *waited > COMMIT_PATIENCE);
        let waits = waited.map(|waited| format!("a write has waited for the disk for {} s", waited.as_secs()));
        state.trouble.clone().or(waits)
    }

    fn is_troubled(&self) -> bool {
        self.state().trouble.is_some()
    }

    fn begin_commit(&self) {
        self.state().waiting_since = Some(Instant::now());
    }

    fn end_commit(&self, trouble: Option<String>) {
        let before = {
            let mut state = self.state();
            state.waiting_since = None;
            std::mem::replace(&mut state.trouble, trouble.clone())
        };
        match (before, trouble) {
            (None, Some(error)) => tracing::error!(error, "store commit failed; changes are refused until it recovers"),
            (Some(_), None) => tracing::info!("the store takes changes again"),
            _ => {}
        }
    }
}

/// Starts the thread. It ends when nobody can send jobs any more.
pub(super) fn start(opened: Opened, inbox: Receiver<Job>, health: Arc<Health>) -> Result<(), StoreError> {
    let Opened { connection, mark, files, is_exclusive } = opened;
    let connection = Some(connection);
    let ending = NoteEnd(health.clone());
    let mut worker = Worker { connection, mark, files, is_exclusive, health, owes_epoch: None, owes_mark: None };
    let named = thread::Builder::new().name("quilt-store".into());
    let started = named.spawn(move || {
        let _ending = ending;
        worker.run(&inbox);
    });
    started.map(drop).map_err(|error| StoreError(format!("its thread does not start: {error}")))
}

/// Notes that the thread has ended, also by a panic: the manager is not ready any more then.
struct NoteEnd(Arc<Health>);

impl Drop for NoteEnd {
    fn drop(&mut self) {
        self.0.state().trouble = Some("its thread has ended; restart the manager".into());
    }
}

struct Worker {
    /// `None` if it could not be opened again.
    connection: Option<Connection>,
    mark: MarkFile,
    files: Files,
    is_exclusive: bool,
    health: Arc<Health>,
    /// The epoch of this start, until it is on disk.
    owes_epoch: Option<u64>,
    /// A mark that could not be written.
    owes_mark: Option<Mark>,
}

/// Why a transaction was not made.
enum Failure {
    /// One of its changes is at odds with what is there.
    Change(StoreError),
    /// The store takes no changes.
    Store(StoreError),
}

impl Worker {
    fn run(&mut self, inbox: &Receiver<Job>) {
        let (mut jobs, mut probed_at) = (0, Instant::now());
        loop {
            // Also while others read: those jobs tell nothing of whether the store takes changes.
            if self.health.is_troubled() && probed_at.elapsed() >= PROBE_INTERVAL {
                self.probe();
                probed_at = Instant::now();
            }
            let is_troubled = self.health.is_troubled();
            let patience = match jobs {
                _ if is_troubled => PROBE_INTERVAL.saturating_sub(probed_at.elapsed()),
                MUCH.. => REST,
                _ => Duration::MAX,
            };
            let first = match inbox.recv_timeout(patience) {
                Ok(first) => first,
                Err(RecvTimeoutError::Timeout) if is_troubled => continue,
                Err(RecvTimeoutError::Timeout) => {
                    self.give_back();
                    jobs = 0;
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let mut group = Vec::new();
            let mut next = Some(first);
            while let Some(job) = next {
                self.health.backlog.fetch_sub(1, Ordering::Relaxed);
                jobs += 1;
                match job {
                    Job::Commit(changes, reply) => group.push((changes, reply)),
                    // A read sees every commit that was asked for before it.
                    Job::Read(read) => {
                        self.commit(std::mem::take(&mut group));
                        read(self.connection().map(|connection| &*connection));
                    }
                    Job::Load(reply) => {
                        self.commit(std::mem::take(&mut group));
                        drop(reply.send(self.load()));
                    }
                }
                next = if group.len() < GROUP_MAX { inbox.try_recv().ok() } else { None };
            }
            self.commit(group);
        }
    }

    /// The connection; opened again if it had to be closed and could not be opened.
    fn connection(&mut self) -> Result<&mut Connection, StoreError> {
        if self.connection.is_none() {
            let (connection, is_exclusive) = open::reconnect(&mut self.files)?;
            self.is_exclusive = is_exclusive;
            self.connection = Some(connection);
        }
        Ok(self.connection.as_mut().expect("it was just opened"))
    }

    fn load(&mut self) -> Result<Loaded, StoreError> {
        let path = self.files.path().display().to_string();
        let wrong = |error: rusqlite::Error| StoreError(format!("{path}: {error}"));
        let mut loaded = read::loaded(self.connection()?).map_err(wrong)?;
        let is_first = loaded.epoch == 0;
        loaded.epoch += 1;
        // On disk before anybody hears of it, or else before anything else is: then nothing has changed under it.
        self.owes_epoch = Some(loaded.epoch);
        self.probe();
        if is_first && !self.health.is_troubled() {
            // Whoever copies the database without its log has a fleet that was started, and no new one.
            let checkpoint =
                |connection: &Connection| connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
            checkpoint(self.connection()?).map_err(wrong)?;
        }
        Ok(loaded)
    }

    /// Tries whether the store takes changes.
    fn probe(&mut self) {
        self.health.begin_commit();
        let made = self.transact(&mut std::iter::empty());
        self.end_commit(made.err());
    }

    fn commit(&mut self, group: Vec<(Vec<Change>, Reply<()>)>) {
        if group.is_empty() {
            return;
        }
        self.health.begin_commit();
        let made = self.transact(&mut group.iter().flat_map(|(changes, _)| changes));
        let (replies, failure) = match made {
            // One bad apple: each alone, so that only the bad one fails.
            Err(Failure::Change(_)) if group.len() > 1 => {
                let (mut replies, mut failure) = (Vec::new(), None);
                for (changes, reply) in group {
                    let made = self.transact(&mut changes.iter());
                    replies.push((reply, answer(&made)));
                    failure = made.err();
                }
                (replies, failure)
            }
            made => (group.into_iter().map(|(_, reply)| (reply, answer(&made))).collect(), made.err()),
        };
        // Whoever is refused finds the trouble noted.
        self.end_commit(failure);
        for (reply, answer) in replies {
            drop(reply.send(answer));
        }
    }

    fn end_commit(&mut self, failure: Option<Failure>) {
        let trouble = match failure {
            Some(Failure::Store(error)) => Some(error.0),
            Some(Failure::Change(_)) | None => self.write_mark(),
        };
        let has_recovered = trouble.is_none() && self.health.is_troubled();
        self.health.end_commit(trouble);
        if has_recovered && self.is_exclusive {
            self.share();
        }
    }

    /// Makes all changes or none; without changes, something that nobody reads.
    fn transact(&mut self, changes: &mut dyn Iterator<Item = &Change>) -> Result<(), Failure> {
        // Before, so that nothing goes to a file that is not there any more, and after, so that nothing of it is acknowledged.
        self.files.check().map_err(Failure::Store)?;
        let owed_epoch = self.owes_epoch;
        let connection = self.connection().map_err(Failure::Store)?;
        let made = make_all(connection, changes, owed_epoch);
        let mark = made.map_err(|error| {
            let text = StoreError(format!("{}: {error}", self.files.path().display()));
            match error.sqlite_error_code() {
                Some(ErrorCode::ConstraintViolation) => Failure::Change(text),
                _ => Failure::Store(text),
            }
        })?;
        self.owes_epoch = None;
        self.owes_mark = mark.or(self.owes_mark.take());
        self.files.check().map_err(Failure::Store)?;
        // Marked before it is acknowledged. What is on disk stays there if that fails: `end_commit` tries again and says so.
        let _ = self.write_mark();
        Ok(())
    }

    /// Writes the mark that is due. Answers why it cannot.
    fn write_mark(&mut self) -> Option<String> {
        let error = self.mark.put(self.owes_mark.as_ref()?).err();
        if error.is_none() {
            self.owes_mark = None;
        }
        error.map(|error| format!("{}: {error}", self.mark.path().display()))
    }

    /// Opens the store as other processes can use it too, for backups.
    fn share(&mut self) {
        self.connection = None;
        self.files.forget_log();
        // The next job tries again.
        if let Err(error) = self.connection() {
            tracing::warn!(%error, "the store was closed to open it in shared mode, and does not open; tried again");
        }
    }

    /// Gives the memory back that a storm or a large apply needed, SQLite's pages and what the allocator keeps.
    #[cfg_attr(target_env = "gnu", allow(unsafe_code, reason = "the allocator has no safe way to be asked"))]
    fn give_back(&self) {
        if let Some(Err(error)) = self.connection.as_ref().map(Connection::release_memory) {
            tracing::debug!(%error, "the store keeps its memory");
        }
        // SAFETY: it may be called at any time from any thread, and only unused memory is concerned.
        #[cfg(target_env = "gnu")]
        unsafe {
            libc::malloc_trim(0)
        };
    }
}

fn answer(made: &Result<(), Failure>) -> Result<(), StoreError> {
    match made {
        Ok(()) => Ok(()),
        Err(Failure::Change(error) | Failure::Store(error)) => Err(error.clone()),
    }
}

/// One transaction. Gives the mark for after it, if it needs one.
fn make_all(
    connection: &mut Connection,
    changes: &mut dyn Iterator<Item = &Change>,
    owed_epoch: Option<u64>,
) -> rusqlite::Result<Option<Mark>> {
    let transaction = connection.transaction()?;
    let mut totals = Totals::default();
    if let Some(epoch) = owed_epoch {
        totals.raise_epoch(&transaction, epoch)?;
    }
    let mut has_changes = owed_epoch.is_some();
    for change in changes {
        write::make(&transaction, change, &mut totals)?;
        has_changes = true;
    }
    if !has_changes {
        write::probe(&transaction)?;
    }
    let mark = totals.note(&transaction)?;
    transaction.commit()?;
    Ok(mark)
}
