//! What a station remembers of its plugins from one start to the next.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use quilt_core::{disk, files};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use crate::spec::Spec;

/// Values by key, in a file beside the private copies.
pub(super) struct Kept<T> {
    path: PathBuf,
    values: Mutex<BTreeMap<String, T>>,
    /// Held while the file is written, so that nobody who reads the values waits for the disk.
    saving: Mutex<()>,
}

/// The longest file of them that is read, in bytes.
const LENGTH_MAX: u64 = 64 << 20;

/// What was in use of a plugin when all was done that had been asked for, and what is known not to work.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub(super) struct Settled {
    /// The sha256 of the build.
    pub(super) build: String,
    /// The file that it stood for.
    #[serde(default)]
    pub(super) file: PathBuf,
    /// The fleet's instances on it, as they were configured.
    #[serde(default, deserialize_with = "readable")]
    pub(super) running: Vec<Spec>,
    /// By sha256: builds that were tried in its place, and why they were given up.
    #[serde(default)]
    pub(super) given_up: BTreeMap<String, String>,
}

/// A station of another version may have written more than is understood; the build counts all the same.
fn readable<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Spec>, D::Error> {
    let all = Vec::<Value>::deserialize(deserializer)?;
    Ok(all.into_iter().filter_map(|spec| serde_json::from_value(spec).ok()).collect())
}

impl<T: Serialize + DeserializeOwned + Clone + PartialEq> Kept<T> {
    /// Reads a file of the folder.
    pub(super) fn open(folder: &Path, name: &str) -> Self {
        let path = folder.join(name);
        let unreadable = |what: &str, error: String| {
            tracing::error!(path = %path.display(), what, error, "what was kept of plugins cannot be read; it begins anew");
        };
        let values = match files::read_regular(&path, LENGTH_MAX) {
            Ok(json) => serde_json::from_slice::<BTreeMap<String, Value>>(&json).map_err(|error| error.to_string()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(BTreeMap::new()),
            Err(error) => Err(error.to_string()),
        };
        let values = values.inspect_err(|error| unreadable("all", error.clone())).unwrap_or_default();
        let values = values.into_iter().filter_map(|(key, value)| {
            let value = serde_json::from_value(value).inspect_err(|error| unreadable(&key, error.to_string()));
            Some((key, value.ok()?))
        });
        let values = values.collect();
        Self { path, values: Mutex::new(values), saving: Mutex::default() }
    }

    fn values(&self) -> MutexGuard<'_, BTreeMap<String, T>> {
        self.values.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes the values as they are when its turn comes.
    fn save(&self) -> bool {
        let saved = disk::in_place(|| {
            let _turn = self.saving.lock().unwrap_or_else(PoisonError::into_inner);
            let json = serde_json::to_vec(&*self.values()).expect("what is kept has text keys");
            files::write_atomically(&self.path, &json)
        });
        if let Err(error) = &saved {
            tracing::error!(path = %self.path.display(), %error, "cannot keep this of plugins");
        }
        saved.is_ok()
    }

    /// The value of a key.
    pub(super) fn get(&self, key: &str) -> Option<T> {
        self.values().get(key).cloned()
    }

    /// All of them.
    pub(super) fn all(&self) -> BTreeMap<String, T> {
        self.values().clone()
    }

    /// Puts a value in.
    pub(super) fn put(&self, key: &str, value: T) {
        self.change(|values| drop(values.insert(key.to_owned(), value)));
    }

    /// Changes all of them at once; the disk is left alone if that changes nothing. Answers whether they are there.
    pub(super) fn change(&self, how: impl FnOnce(&mut BTreeMap<String, T>)) -> bool {
        let mut values = self.values();
        let before = values.clone();
        how(&mut values);
        let is_same = *values == before;
        drop(values);
        is_same || self.save()
    }

    /// Forgets the keys that `which` means; answers whether there were any.
    pub(super) fn forget(&self, which: impl Fn(&str) -> bool) -> bool {
        let mut values = self.values();
        let before = values.len();
        values.retain(|key, _| !which(key));
        let forgot = values.len() < before;
        drop(values);
        if forgot {
            self.save();
        }
        forgot
    }
}
