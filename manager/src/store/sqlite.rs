//! The store on disk: SQLite in write-ahead mode with full synchronisation, so that what was acknowledged survives a
//! power cut.
//!
//! One thread owns the connection (`worker`). Nothing else waits for the disk: whoever commits or reads sends a job and awaits
//! its answer. Modules in reading order: `worker`, `open`, `mark`, `schema`, `write`, `read`, `backup`.

mod backup;
mod mark;
mod open;
mod read;
mod schema;
mod worker;
mod write;

#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::{Arc, mpsc};

use quilt_net::BoxFuture;
use quilt_protocol::StationId;
use quilt_protocol::control::FleetEvent;
use rusqlite::Connection;
use tokio::sync::oneshot;

use super::{Change, History, Loaded, Store, StoreError};
use worker::{Health, Job};

pub use backup::{Summary, back_up, restore};

/// A store in one file.
pub struct SqliteStore {
    /// Not bounded itself: each asker waits for its own commits, and events are left out when many wait.
    jobs: mpsc::Sender<Job>,
    health: Arc<Health>,
}

impl SqliteStore {
    /// Opens the store in `path`, or makes it. Blocks.
    ///
    /// A disk without room does not keep it from being opened: see [`Store::trouble`].
    ///
    /// # Errors
    ///
    /// It cannot be opened, is damaged, is older than what was acknowledged, or was written by a newer version.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let (jobs, inbox) = mpsc::channel();
        let health = Arc::<Health>::default();
        worker::start(open::open(path)?, inbox, health.clone())?;
        Ok(Self { jobs, health })
    }

    fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> BoxFuture<'static, Result<T, StoreError>> {
        let (reply, answer) = oneshot::channel();
        let read = move |connection: Result<&Connection, StoreError>| {
            let result =
                connection.and_then(|connection| read(connection).map_err(|error| StoreError(error.to_string())));
            drop(reply.send(result));
        };
        self.send(Job::Read(Box::new(read)), answer)
    }

    fn send<T: Send + 'static>(
        &self,
        job: Job,
        answer: oneshot::Receiver<Result<T, StoreError>>,
    ) -> BoxFuture<'static, Result<T, StoreError>> {
        self.health.add_job();
        let sent = self.jobs.send(job);
        Box::pin(async move {
            sent.map_err(|_| StoreError("its thread has ended".into()))?;
            answer.await.map_err(|_| StoreError("its thread has ended".into()))?
        })
    }
}

impl Store for SqliteStore {
    fn load(&self) -> BoxFuture<'_, Result<Loaded, StoreError>> {
        let (reply, answer) = oneshot::channel();
        self.send(Job::Load(reply), answer)
    }

    fn commit(&self, changes: Vec<Change>) -> BoxFuture<'static, Result<(), StoreError>> {
        let (reply, answer) = oneshot::channel();
        self.send(Job::Commit(changes, reply), answer)
    }

    fn close(&self) -> BoxFuture<'static, Result<(), StoreError>> {
        self.read(|connection| connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())))
    }

    fn trouble(&self) -> Option<String> {
        self.health.trouble()
    }

    fn backlog(&self) -> usize {
        self.health.backlog()
    }

    fn history(&self, station: StationId) -> BoxFuture<'static, Result<History, StoreError>> {
        self.read(move |connection| read::history(connection, station))
    }

    fn events(&self, after: u64, limit: usize) -> BoxFuture<'static, Result<Vec<FleetEvent>, StoreError>> {
        self.read(move |connection| read::events(connection, after, limit))
    }
}
