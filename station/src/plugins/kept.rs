//! What a station remembers of its plugins from one start to the next.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, ErrorKind, Read as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use quilt_core::files;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::spec::Spec;

/// Values by key, in a file beside the private copies.
pub(super) struct Kept<T> {
    path: PathBuf,
    values: Mutex<BTreeMap<String, T>>,
}

/// The longest file of them that is read, in bytes.
const LENGTH_MAX: u64 = 64 << 20;

/// By the sha256 of a newer build that is being tried or was not taken: what goes on without it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(super) struct Upgrade {
    pub(super) plugin: String,
    /// The sha256 of the build before.
    pub(super) from: String,
    /// What ran on it when the newer one was tried, as the fleet had configured it then.
    pub(super) running: Vec<Spec>,
    /// Why the newer one is not to be tried again before an operator says so; none if its file is judged anew.
    pub(super) given_up: Option<String>,
}

impl<T: Serialize + DeserializeOwned + Clone + PartialEq> Kept<T> {
    /// Reads a file of the folder.
    pub(super) fn open(folder: &Path, name: &str) -> Self {
        let path = folder.join(name);
        let values = match read(&path) {
            Ok(json) => serde_json::from_slice(&json).map_err(|error| error.to_string()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(BTreeMap::new()),
            Err(error) => Err(error.to_string()),
        };
        let values = values.unwrap_or_else(|error| {
            tracing::error!(path = %path.display(), error, "what was kept of plugins cannot be read; it begins anew");
            BTreeMap::new()
        });
        Self { path, values: Mutex::new(values) }
    }

    fn values(&self) -> MutexGuard<'_, BTreeMap<String, T>> {
        self.values.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn save(&self, values: &BTreeMap<String, T>) {
        let json = serde_json::to_vec(values).expect("what is kept has text keys");
        if let Err(error) = files::write_atomically(&self.path, &json) {
            tracing::error!(path = %self.path.display(), %error, "cannot keep this of plugins");
        }
    }

    /// The value of a key.
    pub(super) fn get(&self, key: &str) -> Option<T> {
        self.values().get(key).cloned()
    }

    /// Puts a value in; the disk is left alone if it is there already.
    pub(super) fn put(&self, key: &str, value: T) {
        let mut values = self.values();
        if values.get(key) != Some(&value) {
            values.insert(key.to_owned(), value);
            self.save(&values);
        }
    }

    /// Changes every value.
    pub(super) fn change(&self, mut how: impl FnMut(&str, &mut T)) {
        let mut values = self.values();
        let before = values.clone();
        values.iter_mut().for_each(|(key, value)| how(key, value));
        if *values != before {
            self.save(&values);
        }
    }

    /// Forgets the keys that `which` means; answers whether there were any.
    pub(super) fn forget(&self, which: impl Fn(&str, &T) -> bool) -> bool {
        let mut values = self.values();
        let before = values.len();
        values.retain(|key, value| !which(key, value));
        let forgot = values.len() < before;
        if forgot {
            self.save(&values);
        }
        forgot
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut json = Vec::new();
    File::open(path)?.take(LENGTH_MAX + 1).read_to_end(&mut json)?;
    if json.len() as u64 > LENGTH_MAX {
        return Err(io::Error::other(format!("it is longer than {LENGTH_MAX} bytes")));
    }
    Ok(json)
}
