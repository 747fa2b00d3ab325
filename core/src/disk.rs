//! Disk work, away from the threads that serve connections and timers, and bounded.
//!
//! A disk can hang for a minute. Nothing but what needs the disk may wait for it then, and what waits may not take ever more threads.

use std::panic::resume_unwind;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::{fs, io};

use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::{Semaphore, watch};

use crate::files;

/// How many pieces of disk work are under way at a time, each on a background thread of the runtime.
pub const THREADS: usize = 4;

static TURNS: Semaphore = Semaphore::const_new(THREADS);

/// Does `work` on a background thread and waits for it. A panic of it goes on in the caller.
///
/// # Cancel safety
///
/// Dropping the future does not cancel work that has begun: it goes on to its end.
pub async fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let turn = TURNS.acquire().await.expect("the semaphore is never closed");
    let working = tokio::task::spawn_blocking(move || {
        let done = work();
        drop(turn);
        done
    });
    match working.await {
        Ok(done) => done,
        Err(error) if error.is_panic() => resume_unwind(error.into_panic()),
        // The runtime ends, and this task with it.
        Err(_) => std::future::pending().await,
    }
}

/// Does `work` here, and has another thread take over what else this one would do meanwhile, if its runtime has more threads. For code
/// that cannot wait asynchronously; prefer [`run`], which is bounded.
pub fn in_place<T>(work: impl FnOnce() -> T) -> T {
    match Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
    }
}

/// A file that is written behind: only what was put last is worth writing, and nobody waits for it. A crash of the process or of the
/// machine can lose the last change, never leave a mixture.
#[derive(Debug, Clone)]
pub struct WriteBehind {
    path: Arc<PathBuf>,
    pending: Arc<Mutex<Pending>>,
}

#[derive(Debug, Default)]
struct Pending {
    next: Option<Change>,
    /// A job is queued or runs that will take `next`.
    queued: bool,
}

#[derive(Debug)]
enum Change {
    Replace(Vec<u8>),
    Remove,
}

impl WriteBehind {
    /// For this file.
    pub fn new(path: PathBuf) -> Self {
        Self { path: Arc::new(path), pending: Arc::default() }
    }

    /// Has the file replaced by `content`. Call it inside a runtime.
    pub fn replace(&self, content: Vec<u8>) {
        self.change(Change::Replace(content));
    }

    /// Has the file removed. Call it inside a runtime.
    pub fn remove(&self) {
        self.change(Change::Remove);
    }

    fn change(&self, change: Change) {
        let mut pending = lock(&self.pending);
        pending.next = Some(change);
        if !std::mem::replace(&mut pending.queued, true) {
            drop(pending);
            let counted = Unwritten::new();
            let this = self.clone();
            tokio::spawn(run(move || {
                this.write();
                drop(counted);
            }));
        }
    }

    fn write(&self) {
        loop {
            let mut pending = lock(&self.pending);
            let Some(change) = pending.next.take() else {
                pending.queued = false;
                return;
            };
            drop(pending);
            let changed = match change {
                Change::Replace(content) => files::replace(&self.path, &content),
                Change::Remove => match fs::remove_file(&*self.path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                    _ => Ok(()),
                },
            };
            if let Err(error) = changed {
                tracing::debug!(%error, path = %self.path.display(), "cannot write a record");
            }
        }
    }
}

/// Counts as a file with changes that are not written yet, until it is dropped.
#[derive(Debug)]
pub(crate) struct Unwritten(());

impl Unwritten {
    pub(crate) fn new() -> Self {
        unwritten().send_modify(|files| *files += 1);
        Self(())
    }
}

impl Drop for Unwritten {
    fn drop(&mut self) {
        unwritten().send_modify(|files| *files -= 1);
    }
}

fn unwritten() -> &'static watch::Sender<usize> {
    static UNWRITTEN: OnceLock<watch::Sender<usize>> = OnceLock::new();
    UNWRITTEN.get_or_init(|| watch::Sender::new(0))
}

/// Waits until every [`WriteBehind`] and every log of this process is written. Give it a time-out: the disk may hang.
pub async fn flush() {
    let _ = unwritten().subscribe().wait_for(|files| *files == 0).await;
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_timer_goes_off_while_all_disk_work_hangs_and_what_waits_is_done_afterwards() {
        let (disk_answers, hangs) = std::sync::mpsc::channel::<()>();
        let hangs = Arc::new(Mutex::new(hangs));
        let jobs = (0..2 * THREADS).map(|number| {
            let hangs = hangs.clone();
            run(move || {
                let _ = lock(&hangs).recv();
                number
            })
        });
        let mut jobs: Vec<_> = jobs.map(Box::pin).collect();
        for job in &mut jobs {
            assert!(tokio::time::timeout(Duration::from_millis(1), job).await.is_err(), "the disk hangs");
        }
        drop(disk_answers);
        for (number, job) in jobs.into_iter().enumerate() {
            assert_eq!(job.await, number);
        }
    }

    #[tokio::test]
    async fn what_was_put_last_is_what_a_file_that_is_written_behind_holds() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        let file = WriteBehind::new(path.clone());
        for number in 0..100 {
            file.replace(vec![number; 10]);
        }
        flush().await;
        assert_eq!(fs::read(&path).unwrap(), [99; 10]);
        file.replace(vec![1]);
        file.remove();
        flush().await;
        assert!(!path.exists());
    }
}
