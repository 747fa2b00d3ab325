//! Following a log from async code.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use super::shared::FolderWatch;
use super::{Line, Position, Reader};
use crate::{disk, files};

/// How often a follower looks at the log if it cannot have a watch, and how long it waits before it tries to have another one.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// Reads a log as a [`Reader`] does, on the threads for disk work, and waits for what is logged next.
pub struct Follower {
    folder: PathBuf,
    reading: Arc<Mutex<Reading>>,
    watch: Option<Watch>,
}

/// What the disk work has.
struct Reading {
    reader: Reader,
    /// What was read last and nobody took, because the future that waited for it was dropped.
    unclaimed: Option<io::Result<Vec<Line>>>,
    position: Option<Position>,
}

/// How a follower notices new lines.
enum Watch {
    Folder {
        _watch: Arc<FolderWatch>,
        changes: watch::Receiver<()>,
    },
    /// The machine is out of inotify instances (128 a user by default): look from time to time.
    Poll,
}

impl Follower {
    /// Opens the log in `folder` with one of the reader's functions.
    ///
    /// # Errors
    ///
    /// What the operating system says.
    pub async fn open(
        folder: &Path,
        open: impl FnOnce(&Path) -> io::Result<Reader> + Send + 'static,
    ) -> io::Result<Self> {
        let folder = folder.to_owned();
        disk::run(move || {
            let reading = Reading { reader: open(&folder)?, unclaimed: None, position: None };
            Ok(Self { folder, reading: Arc::new(Mutex::new(reading)), watch: None })
        })
        .await
    }

    /// The position after what was returned last; none if that is not known.
    pub fn position(&self) -> Option<Position> {
        lock(&self.reading).position
    }

    /// Returns the next records as [`Reader::more`] does; none if there are no more now.
    ///
    /// # Errors
    ///
    /// What the operating system says.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe: records are taken only when they are returned.
    pub async fn more(&mut self) -> io::Result<Vec<Line>> {
        let reading = self.reading.clone();
        disk::run(move || {
            let mut reading = lock(&reading);
            if reading.unclaimed.is_none() {
                let lines = reading.reader.more();
                reading.position = reading.reader.position().ok();
                reading.unclaimed = Some(lines);
            }
        })
        .await;
        lock(&self.reading).unclaimed.take().unwrap_or_else(|| Ok(Vec::new()))
    }

    /// Waits until there is at least one record, then returns as [`Follower::more`] does.
    ///
    /// # Errors
    ///
    /// What the operating system says.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe: records are taken only when they are returned.
    pub async fn next(&mut self) -> io::Result<Vec<Line>> {
        loop {
            // The second round reads after the watch exists, so that no record falls between.
            let lines = self.more().await?;
            if !lines.is_empty() {
                return Ok(lines);
            }
            match &mut self.watch {
                None => self.watch = Some(watch(&self.folder).await?),
                Some(Watch::Poll) => tokio::time::sleep(POLL_INTERVAL).await,
                Some(Watch::Folder { changes, .. }) => {
                    if changes.changed().await.is_err() {
                        // Somebody removed the folder, and the kernel the watch with it.
                        self.watch = None;
                        tokio::time::sleep(POLL_INTERVAL).await;
                    }
                }
            }
        }
    }
}

async fn watch(folder: &Path) -> io::Result<Watch> {
    let folder = folder.to_owned();
    disk::run(move || {
        files::create_private_dir(&folder)?;
        let watch = FolderWatch::of(&folder).map(|watch| {
            let changes = watch.changes();
            Watch::Folder { _watch: watch, changes }
        });
        Ok(watch.unwrap_or(Watch::Poll))
    })
    .await
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lines::Writer;

    #[tokio::test]
    async fn records_that_were_read_for_somebody_who_left_are_returned_to_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = Writer::open(folder.path()).unwrap();
        let mut follower = Follower::open(folder.path(), |log| Reader::open(log, 0)).await.unwrap();
        let mut texts = Vec::new();
        for number in 0..100 {
            writer.append("out", &number.to_string()).unwrap();
            // Left at once, while a thread reads.
            let left = tokio::time::timeout(Duration::ZERO, follower.next()).await;
            texts.extend(left.into_iter().flat_map(Result::unwrap));
        }
        while texts.len() < 100 {
            texts.extend(follower.next().await.unwrap());
        }
        let numbers: Vec<usize> = texts.iter().map(|line| line.text().parse().unwrap()).collect();
        assert_eq!(numbers, (0..100).collect::<Vec<_>>());
    }
}
