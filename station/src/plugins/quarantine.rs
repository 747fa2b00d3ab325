//! Builds of plugins that crashed while they were loaded: not loaded again before an operator allows it. Kept on disk.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use quilt_core::files;

/// By sha256: what crashed, and how.
pub(super) struct Quarantine {
    path: PathBuf,
    crashed: Mutex<BTreeMap<String, String>>,
}

impl Quarantine {
    /// Reads what is kept in a folder.
    pub(super) fn open(folder: &Path) -> Self {
        let path = folder.join("quarantine.json");
        let json = fs::read(&path).unwrap_or_else(|_| b"{}".to_vec());
        let crashed = serde_json::from_slice(&json).unwrap_or_else(|error| {
            tracing::error!(path = %path.display(), %error, "the list of quarantined plugins is damaged; it begins anew");
            BTreeMap::new()
        });
        Self { path, crashed: Mutex::new(crashed) }
    }

    fn crashed(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        self.crashed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn save(&self, crashed: &BTreeMap<String, String>) {
        let json = serde_json::to_vec(crashed).expect("texts serialize");
        if let Err(error) = files::write_atomically(&self.path, &json) {
            tracing::error!(%error, "cannot record which plugins are quarantined");
        }
    }

    /// How a build crashed, if it did.
    pub(super) fn reason(&self, sha256: &str) -> Option<String> {
        self.crashed().get(sha256).cloned()
    }

    /// Puts a build in.
    pub(super) fn put(&self, sha256: &str, reason: &str) {
        let mut crashed = self.crashed();
        crashed.insert(sha256.to_owned(), reason.to_owned());
        self.save(&crashed);
    }

    /// Lets the builds go that `which` means; answers whether there were any.
    pub(super) fn lift(&self, which: impl Fn(&str) -> bool) -> bool {
        let mut crashed = self.crashed();
        let before = crashed.len();
        crashed.retain(|sha256, _| !which(sha256));
        self.save(&crashed);
        crashed.len() < before
    }
}
