//! What a station keeps on disk: the configuration it accepted, and (`stopped`) what operators stopped.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Context as _;
use quilt_core::slots::{Found, Slots};
use quilt_core::{disk, files};
use quilt_protocol::Digest;
use quilt_protocol::control::{Applied, Document};
use serde::{Deserialize, Serialize};

use crate::stopped::Stopped;

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
        let damaged = lost.exists();
        let slots = Arc::new(Mutex::new(slots));
        Ok(Self { lost, slots, accepted, damaged, stopped: Arc::new(Stopped::open(folder)?) })
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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn understood(json: &[u8]) -> Result<Accepted, String> {
    let accepted: Accepted = serde_json::from_slice(json).map_err(|error| error.to_string())?;
    let whole = Digest::of(accepted.document.as_bytes()) == accepted.applied.digest
        && serde_json::from_str::<Document>(&accepted.document).is_ok();
    if whole { Ok(accepted) } else { Err("it does not match its digest".into()) }
}

/// Moves a damaged file out of the way.
pub(crate) fn set_aside(path: &Path, why: &str) -> anyhow::Result<()> {
    tracing::error!(path = %path.display(), why, "a damaged file; set aside");
    let mut aside = path.as_os_str().to_owned();
    aside.push(".damaged");
    fs::rename(path, aside).with_context(|| path.display().to_string())
}
