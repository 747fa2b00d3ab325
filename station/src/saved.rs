//! What a station keeps on disk: the configuration it accepted, and what operators stopped.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use quilt_core::slots::{Found, Slots};
use quilt_core::{disk, files};
use quilt_net::Backoff;
use quilt_protocol::Digest;
use quilt_protocol::control::{Applied, Document};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// The accepted configuration, as on disk.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Accepted {
    pub(crate) applied: Applied,
    /// The document as it was pushed, byte for byte.
    pub(crate) document: String,
}

/// The slots of what was accepted.
const ACCEPTED: &str = "accepted";
/// Its presence says that the record of what was accepted was lost.
const LOST: &str = "accepted.lost";

/// The longest list of stopped instances that is read, in bytes.
const STOPPED_MAX: u64 = 64 << 20;
/// How long to wait before what could not be written is written again, at first and at most.
const WRITE_AGAIN: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// The station's files.
pub(crate) struct Saved {
    lost: PathBuf,
    slots: Arc<Mutex<Slots>>,
    pub(crate) accepted: Option<Accepted>,
    /// The record of what was accepted last was damaged: something may run that is not known here.
    pub(crate) damaged: bool,
    stopped: Arc<Stopped>,
}

impl Saved {
    /// Reads what is there. What is damaged is told as an error: the station starts with the configuration before, or moves
    /// the files aside and starts without one, and the manager pushes again.
    pub(crate) fn open(folder: &Path) -> anyhow::Result<Self> {
        let lost = folder.join(LOST);
        let open = || Slots::open(folder, ACCEPTED).with_context(|| folder.join(ACCEPTED).display().to_string());
        let (mut slots, found) = open()?;
        let mark_lost = || files::write_atomically(&lost, b"").with_context(|| lost.display().to_string());
        let accepted = match found {
            Found::Nothing => Ok(None),
            Found::Last(json) => understood(&json).map(Some),
            Found::Before(json) => {
                tracing::error!(
                    folder = %folder.display(),
                    "the record of the configuration accepted last is damaged; the configuration before it runs until a \
                     manager pushes"
                );
                mark_lost()?;
                understood(&json).map(Some)
            }
            Found::Damaged => Err("it is not as it was written".into()),
        };
        let accepted = match accepted {
            Ok(accepted) => accepted,
            Err(why) => {
                // Remembered across restarts, and before the files are gone: until the manager pushes, nobody knows what
                // should run here.
                mark_lost()?;
                slots.paths().iter().try_for_each(|path| set_aside(path, &why))?;
                slots = open()?.0;
                None
            }
        };
        let path = folder.join("stopped.json");
        let stopped = match read(&path)? {
            None => BTreeSet::new(),
            Some(Ok(stopped)) => stopped,
            Some(Err(why)) => {
                set_aside(&path, &why)?;
                BTreeSet::new()
            }
        };
        let damaged = lost.exists();
        let slots = Arc::new(Mutex::new(slots));
        Ok(Self { lost, slots, accepted, damaged, stopped: Arc::new(Stopped::new(path, stopped)) })
    }

    /// Puts an accepted configuration on disk; it is there for good when this returns.
    ///
    /// # Cancel safety
    ///
    /// Not cancel-safe: it may reach the disk after this was dropped, and is not known here then.
    pub(crate) async fn accept(&mut self, accepted: Accepted) -> io::Result<()> {
        let (slots, json) = (self.slots.clone(), serde_json::to_vec(&accepted)?);
        let lost = self.damaged.then(|| self.lost.clone());
        disk::run(move || {
            lock(&slots).put(&json)?;
            lost.map_or(Ok(()), fs::remove_file)
        })
        .await?;
        self.damaged = false;
        self.accepted = Some(accepted);
        Ok(())
    }

    /// The accepted document.
    pub(crate) fn document(&self) -> Document {
        let document = self.accepted.as_ref().map(|accepted| serde_json::from_str(&accepted.document));
        document.and_then(Result::ok).unwrap_or_default()
    }

    pub(crate) fn stopped(&self) -> Arc<Stopped> {
        self.stopped.clone()
    }
}

/// Instances that an operator stopped; they stay so across restarts of the station.
///
/// What is known here counts at once, and [`Stopped::keep`] writes it until the disk has it: the disk may be full of what an operator
/// wants to end.
pub(crate) struct Stopped {
    path: PathBuf,
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
    fn new(path: PathBuf, set: BTreeSet<String>) -> Self {
        Self { path, set: Mutex::new(set), changes: watch::Sender::new(0), written: watch::Sender::default() }
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
                let json = move || {
                    let set = lock(&this.set).clone();
                    files::write_atomically(&this.path, &serde_json::to_vec(&set)?)
                };
                match disk::run(json).await {
                    Ok(()) => {
                        backoff.reset();
                        self.written.send_replace(Written { changes: wanted, failed: None });
                    }
                    Err(error) => {
                        if self.written.borrow().failed.is_none() {
                            tracing::error!(path = %self.path.display(), %error, "cannot record which instances are stopped; tried again");
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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn understood(json: &[u8]) -> Result<Accepted, String> {
    let accepted: Accepted = serde_json::from_slice(json).map_err(|error| error.to_string())?;
    let whole = Digest::of(accepted.document.as_bytes()) == accepted.applied.digest
        && serde_json::from_str::<Document>(&accepted.document).is_ok();
    if whole { Ok(accepted) } else { Err("it does not match its digest".into()) }
}

/// What a file holds, or why that cannot be read; nothing if there is no file.
fn read<T: for<'de> Deserialize<'de>>(path: &Path) -> anyhow::Result<Option<Result<T, String>>> {
    let bytes = match files::read_regular(path, STOPPED_MAX) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| path.display().to_string()),
    };
    Ok(Some(serde_json::from_slice(&bytes).map_err(|error| error.to_string())))
}

fn set_aside(path: &Path, why: &str) -> anyhow::Result<()> {
    tracing::error!(path = %path.display(), why, "a damaged file; set aside");
    let mut aside = path.as_os_str().to_owned();
    aside.push(".damaged");
    fs::rename(path, aside).with_context(|| path.display().to_string())
}
