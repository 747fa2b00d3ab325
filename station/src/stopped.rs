//! The record of which instances operators stopped.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use quilt_core::disk;
use quilt_core::slots::{Found, Slots};
use quilt_net::Backoff;
use tokio::sync::watch;

use crate::saved::set_aside;

/// The slots of the record.
const STOPPED: &str = "stopped";
/// How long to wait before what could not be written is written again, at first and at most.
const WRITE_AGAIN: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// Instances that an operator stopped; they stay so across restarts of the station.
///
/// What is known here counts at once, and [`Stopped::keep`] writes it until the disk has it: the disk may be full of what an operator
/// wants to end.
///
/// The record is written over blocks that it has already, so that a full disk takes it unless it has become longer.
pub(crate) struct Stopped {
    slots: Mutex<Slots>,
    set: Mutex<BTreeSet<String>>,
    /// Counts changes.
    changes: watch::Sender<u64>,
    written: watch::Sender<Written>,
}

/// How far the file is.
#[derive(Clone, Default)]
struct Written {
    /// It holds so many changes.
    changes: u64,
    /// Why so many changes could not be written.
    failed: Option<(u64, String)>,
}

impl Stopped {
    /// Reads the record. A damaged one is told as an error, and the one before it counts, or none.
    pub(crate) fn open(folder: &Path) -> anyhow::Result<Self> {
        let open = || Slots::open(folder, STOPPED).with_context(|| folder.join(STOPPED).display().to_string());
        let (mut slots, found) = open()?;
        let set = match found {
            Found::Nothing => Ok(BTreeSet::new()),
            Found::Last(json) => read(&json),
            Found::Before(json) => {
                tracing::error!(
                    folder = %folder.display(),
                    "the record of what operators stopped last is damaged; the one before it counts"
                );
                read(&json)
            }
            Found::Damaged => Err("it is not as it was written".into()),
        };
        let set = match set {
            Ok(set) => set,
            Err(why) => {
                slots.paths().iter().try_for_each(|path| set_aside(path, &why))?;
                slots = open()?.0;
                BTreeSet::new()
            }
        };
        let (changes, written) = (watch::Sender::new(0), watch::Sender::default());
        Ok(Self { slots: Mutex::new(slots), set: Mutex::new(set), changes, written })
    }

    pub(crate) fn contains(&self, key: &str) -> bool {
        lock(&self.set).contains(key)
    }

    /// Forgets the others.
    pub(crate) fn retain(&self, keep: impl Fn(&str) -> bool) {
        self.change(|set| set.retain(|key| keep(key)));
    }

    /// Notes that an instance is stopped, or not any more.
    pub(crate) fn set(&self, key: &str, stopped: bool) {
        self.change(|set| {
            if stopped {
                set.insert(key.to_owned());
            } else {
                set.remove(key);
            }
        });
    }

    fn change(&self, how: impl FnOnce(&mut BTreeSet<String>)) {
        let mut set = lock(&self.set);
        let before = set.clone();
        how(&mut set);
        if *set != before {
            self.changes.send_modify(|changes| *changes += 1);
        }
    }

    /// Waits until the disk has all that was noted before this call.
    ///
    /// # Errors
    ///
    /// Why an attempt to write it failed. It is tried again.
    pub(crate) async fn recorded(&self) -> Result<(), String> {
        let changes = *self.changes.borrow();
        let mut written = self.written.subscribe();
        let over = |written: &Written| {
            written.changes >= changes || written.failed.as_ref().is_some_and(|(failed, _)| *failed >= changes)
        };
        let Ok(written) = written.wait_for(over).await else { return Err("the station stops".into()) };
        match &written.failed {
            Some((_, why)) if written.changes < changes => Err(why.clone()),
            _ => Ok(()),
        }
    }

    /// Waits until the disk has all that was noted before this call, however long that takes.
    pub(crate) async fn on_disk(&self) {
        let changes = *self.changes.borrow();
        let _ = self.written.subscribe().wait_for(|written| written.changes >= changes).await;
    }

    /// Writes what was noted, for ever. One of these at a time.
    pub(crate) async fn keep(self: Arc<Self>) {
        let mut changes = self.changes.subscribe();
        let mut backoff = Backoff::new(WRITE_AGAIN.0, WRITE_AGAIN.1);
        loop {
            let wanted = *changes.borrow_and_update();
            if wanted > self.written.borrow().changes {
                let this = self.clone();
                let write = move || {
                    let set = lock(&this.set).clone();
                    lock(&this.slots).put(&serde_json::to_vec(&set)?)
                };
                match disk::run(write).await {
                    Ok(()) => {
                        backoff.reset();
                        self.written.send_replace(Written { changes: wanted, failed: None });
                    }
                    Err(error) => {
                        if self.written.borrow().failed.is_none() {
                            tracing::error!(%error, "cannot record which instances are stopped; tried again");
                        }
                        self.written.send_modify(|written| written.failed = Some((wanted, error.to_string())));
                        // One that comes meanwhile hears at once how it goes.
                        let _ = tokio::time::timeout(backoff.next_delay(), changes.changed()).await;
                        continue;
                    }
                }
            }
            if changes.changed().await.is_err() {
                return;
            }
        }
    }
}

fn read(json: &[u8]) -> Result<BTreeSet<String>, String> {
    serde_json::from_slice(json).map_err(|error| error.to_string())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[tokio::test]
    async fn what_an_operator_stopped_is_found_again_and_a_damaged_record_is_not_believed() {
        let folder = tempfile::tempdir().unwrap();
        let stopped = Arc::new(Stopped::open(folder.path()).unwrap());
        let keeping = tokio::spawn(stopped.clone().keep());
        for (key, is_stopped) in [("process/a", true), ("process/b", true), ("process/a", false)] {
            stopped.set(key, is_stopped);
            stopped.recorded().await.unwrap();
        }
        keeping.abort();
        let again = Stopped::open(folder.path()).unwrap();
        assert!(again.contains("process/b") && !again.contains("process/a"));
        // The newest is damaged: the one before it counts.
        let newest = folder.path().join("stopped.0");
        let text = fs::read_to_string(&newest).unwrap();
        fs::write(&newest, text.replace("process/b", "process/c")).unwrap();
        let before = Stopped::open(folder.path()).unwrap();
        assert!(before.contains("process/a") && before.contains("process/b"));
        // Both are: it begins without one, and they are kept for whoever looks into it.
        fs::write(folder.path().join("stopped.1"), "rubbish").unwrap();
        let none = Stopped::open(folder.path()).unwrap();
        assert!(!none.contains("process/a") && !none.contains("process/b"));
        assert!(folder.path().join("stopped.1.damaged").exists());
    }
}
