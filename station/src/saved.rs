//! What a station keeps on disk: the configuration it accepted, and what operators stopped.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use quilt_core::files;
use quilt_core::slots::{Found, Slots};
use quilt_protocol::Digest;
use quilt_protocol::control::{Applied, Document};
use serde::{Deserialize, Serialize};

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
    slots: Slots,
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
                tracing::error!(folder = %folder.display(), "what was accepted last is damaged; what was before it runs");
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
        let stopped = Arc::new(Stopped { path, set: Mutex::new(stopped) });
        let damaged = lost.exists();
        Ok(Self { lost, slots, accepted, damaged, stopped })
    }

    /// Puts an accepted configuration on disk; it is there for good when this returns.
    pub(crate) fn accept(&mut self, accepted: Accepted) -> io::Result<()> {
        self.slots.put(&serde_json::to_vec(&accepted)?)?;
        if std::mem::take(&mut self.damaged) {
            fs::remove_file(&self.lost)?;
        }
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
pub(crate) struct Stopped {
    path: PathBuf,
    set: Mutex<BTreeSet<String>>,
}

impl Stopped {
    pub(crate) fn contains(&self, key: &str) -> bool {
        self.set.lock().unwrap_or_else(PoisonError::into_inner).contains(key)
    }

    /// Forgets the others.
    pub(crate) fn retain(&self, keep: impl Fn(&str) -> bool) {
        let gone: Vec<_> = {
            let set = self.set.lock().unwrap_or_else(PoisonError::into_inner);
            set.iter().filter(|key| !keep(key)).cloned().collect()
        };
        for key in gone {
            if let Err(error) = self.set(&key, false) {
                tracing::error!(%error, "cannot record what is stopped");
            }
        }
    }

    /// Records it; nothing is changed if that fails.
    pub(crate) fn set(&self, key: &str, stopped: bool) -> io::Result<()> {
        let mut set = self.set.lock().unwrap_or_else(PoisonError::into_inner);
        if set.contains(key) == stopped {
            return Ok(());
        }
        let mut changed = set.clone();
        if stopped {
            changed.insert(key.to_owned());
        } else {
            changed.remove(key);
        }
        files::write_atomically(&self.path, &serde_json::to_vec(&changed)?)?;
        *set = changed;
        Ok(())
    }
}

fn understood(json: &[u8]) -> Result<Accepted, String> {
    let accepted: Accepted = serde_json::from_slice(json).map_err(|error| error.to_string())?;
    let whole = Digest::of(accepted.document.as_bytes()) == accepted.applied.digest
        && serde_json::from_str::<Document>(&accepted.document).is_ok();
    if whole { Ok(accepted) } else { Err("it does not match its digest".into()) }
}

/// What a file holds, or why that cannot be read; nothing if there is no file.
fn read<T: for<'de> Deserialize<'de>>(path: &Path) -> anyhow::Result<Option<Result<T, String>>> {
    let bytes = match fs::read(path) {
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
