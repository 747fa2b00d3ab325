//! What a station remembers of its plugins from one start to the next.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use quilt_core::files;

/// Texts by key, in a file beside the private copies.
pub(super) struct Kept {
    path: PathBuf,
    texts: Mutex<BTreeMap<String, String>>,
}

impl Kept {
    /// Reads a file of the folder.
    pub(super) fn open(folder: &Path, name: &str) -> Self {
        let path = folder.join(name);
        let json = fs::read(&path).unwrap_or_else(|_| b"{}".to_vec());
        let texts = serde_json::from_slice(&json).unwrap_or_else(|error| {
            tracing::error!(path = %path.display(), %error, "what was kept of plugins is damaged; it begins anew");
            BTreeMap::new()
        });
        Self { path, texts: Mutex::new(texts) }
    }

    fn texts(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        self.texts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn save(&self, texts: &BTreeMap<String, String>) {
        let json = serde_json::to_vec(texts).expect("texts serialize");
        if let Err(error) = files::write_atomically(&self.path, &json) {
            tracing::error!(path = %self.path.display(), %error, "cannot keep this of plugins");
        }
    }

    /// The text of a key.
    pub(super) fn get(&self, key: &str) -> Option<String> {
        self.texts().get(key).cloned()
    }

    /// Puts a text in; the disk is left alone if it is there already.
    pub(super) fn put(&self, key: &str, text: &str) {
        let mut texts = self.texts();
        if texts.insert(key.to_owned(), text.to_owned()).as_deref() != Some(text) {
            self.save(&texts);
        }
    }

    /// Forgets the keys that `which` means; answers whether there were any.
    pub(super) fn forget(&self, which: impl Fn(&str) -> bool) -> bool {
        let mut texts = self.texts();
        let before = texts.len();
        texts.retain(|key, _| !which(key));
        let forgot = texts.len() < before;
        if forgot {
            self.save(&texts);
        }
        forgot
    }
}
