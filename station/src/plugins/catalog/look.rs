//! Looking at the plugin folders, and bringing what is offered to what the files say.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::state::{Loading, Refused, State};
use super::{Catalog, Offered, Plugin, TOGETHER};
use crate::plugins::LoadError;
use crate::plugins::intake::{self, Taken};
use quilt_core::disk;

/// How often folders are looked at. Looking works on every file system and for folders that are made later; a file is taken
/// once it has not changed between two looks, so that one that is being copied is left alone.
const LOOK: Duration = Duration::from_millis(500);

/// A file as it was looked at last.
#[derive(Clone)]
pub(super) struct Seen {
    changed: SystemTime,
    size: u64,
    inode: u64,
    /// What came of it, once it had not changed between two looks.
    pub(super) taken: Option<Result<Taken, LoadError>>,
}

impl Seen {
    fn waits_for_the_station(&self) -> bool {
        self.taken.as_ref().and_then(|taken| taken.as_ref().err()).is_some_and(LoadError::is_station_fault)
    }

    fn is_same_file(&self, other: &Self) -> bool {
        (self.changed, self.size, self.inode) == (other.changed, other.size, other.inode)
    }
}

impl Catalog {
    /// Looks at the folders for ever.
    pub(crate) async fn watch(self: Arc<Self>) {
        // Nobody asked for the default one.
        let default = quilt_core::settings::default_plugin_dir();
        for folder in self.setup.dirs.iter().filter(|folder| **folder != default && !folder.is_dir()) {
            tracing::warn!(folder = %folder.display(), "there is no such plugin folder; it is looked for until there is one");
        }
        // What is there at the start is taken as it is.
        self.look(true).await;
        self.looked.send_replace(true);
        loop {
            tokio::time::sleep(LOOK).await;
            self.look(false).await;
        }
    }

    /// Waits until what was there at the start is offered, apart from what takes long to load, but not for ever: a file system that
    /// hangs must not keep a station from its work.
    pub(crate) async fn settled_in(&self) {
        let _ = tokio::time::timeout(2 * TOGETHER, self.looked.subscribe().wait_for(|looked| *looked)).await;
    }

    /// Looks at the folders once; `settled` takes files for whole as they are.
    pub(crate) async fn look(self: &Arc<Self>, settled: bool) {
        let mut seen = self.looking.lock().await;
        let dirs = self.setup.dirs.clone();
        let found = disk::run(move || list(&dirs)).await;
        let gone: Vec<_> = seen.keys().filter(|path| !found.contains_key(*path)).cloned().collect();
        let is_late = |(path, _): &(PathBuf, String), loading: &Loading| {
            found.contains_key(path) && loading.done.borrow().is_some()
        };
        let retries = self.state().retries(&self.setup.folder);
        let is_late = self.state().loading.iter().any(|(key, loading)| is_late(key, loading));
        let mut news = !gone.is_empty() || is_late || retries;
        for path in gone {
            seen.remove(&path);
            self.state().refused.remove(&path);
        }
        for (path, now) in found {
            let before = seen.get(&path).cloned();
            let same = before.as_ref().is_some_and(|before| before.is_same_file(&now));
            match before {
                Some(before) if same && before.taken.is_some() && !(retries && before.waits_for_the_station()) => {}
                _ if !same && !settled => drop(seen.insert(path, now)),
                _ => {
                    let taken = self.take(&path).await;
                    seen.insert(path, Seen { taken: Some(taken), ..now });
                    news = true;
                }
            }
        }
        if news {
            self.settle(&seen).await;
        }
        self.remove_stale(&seen).await;
    }

    async fn take(&self, path: &Path) -> Result<Taken, LoadError> {
        let (path, folder, trust) = (path.to_owned(), self.setup.folder.clone(), self.setup.trust.clone());
        disk::run(move || intake::take(&path, &folder, &trust)).await
    }

    /// Brings what is offered to what the files say.
    async fn settle(self: &Arc<Self>, seen: &BTreeMap<PathBuf, Seen>) {
        let mut wanted = BTreeMap::<String, (SystemTime, &PathBuf, &Taken)>::new();
        let shadowed = |by: &PathBuf, taken: &Taken| Refused {
            error: LoadError::Shadowed {
                name: taken.inspection.name.clone(),
                by: format!("the younger {}", by.display()),
            },
            taken: Some(taken.clone()),
        };
        let (mut refused, mut unusable) = (BTreeMap::new(), BTreeSet::new());
        for (path, Seen { changed, taken, .. }) in seen {
            match taken {
                Some(Ok(taken)) => {
                    let name = taken.inspection.name.clone();
                    // Of two files with one plugin the younger is meant.
                    match wanted.get(&name) {
                        Some((other, by, _)) if changed < other => {
                            refused.insert(path.clone(), shadowed(by, taken));
                        }
                        _ => {
                            if let Some((_, older, taken)) = wanted.insert(name, (*changed, path, taken)) {
                                refused.insert(older.clone(), shadowed(path, taken));
                            }
                        }
                    }
                }
                Some(Err(error)) => {
                    refused.insert(path.clone(), Refused { error: error.clone(), taken: None });
                    unusable.insert(path);
                }
                // It is being copied.
                None => drop(unusable.insert(path)),
            }
        }
        // A file that cannot be used does not end what its predecessor runs; one that is gone does.
        let mut offered = self.offered();
        offered.retain(|name, plugin| {
            wanted.contains_key(name) || unusable.contains(&plugin.file) || self.state().assigned.contains_key(name)
        });
        let kept =
            offered.iter().filter(|(name, plugin)| !wanted.contains_key(*name) && unusable.contains(&plugin.file));
        let mut found: Offered = kept.map(|(name, plugin)| (name.clone(), plugin.clone())).collect();
        // All at once, and what takes long is left to itself: one that hangs must not hold up the others.
        let mut loading = tokio::task::JoinSet::new();
        for (name, (_, path, taken)) in wanted {
            let known = {
                let state = self.state();
                let known = [&state.found, &state.live].into_iter().filter_map(|all| all.get(&name));
                known.into_iter().find(|plugin| plugin.taken.sha256 == taken.sha256).cloned()
            };
            let (this, path, taken) = (self.clone(), path.clone(), taken.clone());
            loading.spawn(async move {
                let given_up = this.given_up(&name, &taken.sha256);
                let proven = this.proven(&name, &taken.sha256, &path).await;
                let loaded = match (given_up.filter(|_| proven.is_some()), known) {
                    (Some(why), _) => Err(LoadError::Upgrade(why)),
                    (None, Some(known)) => Ok(known),
                    (None, None) => this.loaded(&path, &taken, true).await,
                };
                (name, path, taken, loaded, proven)
            });
        }
        let mut loaded = loading.join_all().await;
        // What goes on comes before what is new: a role stays with whoever has it.
        let settled = self.settled.all();
        loaded.sort_by(|a, b| (!settled.contains_key(&a.0), &a.0).cmp(&(!settled.contains_key(&b.0), &b.0)));
        let mut begun_with = Offered::new();
        // Also at the start of the station.
        for (name, settled) in settled.iter().filter(|(_, settled)| unusable.contains(&settled.file)) {
            if !found.contains_key(name)
                && let Some(proven) = self.proven(name, "", &settled.file).await
            {
                begun_with.insert(name.clone(), proven.clone());
                found.insert(name.clone(), proven);
            }
        }
        for (name, path, taken, loaded, proven) in loaded {
            let others = offered.iter().chain(&found).map(|(name, plugin)| (name.clone(), plugin.clone())).collect();
            let checked = |plugin: Arc<Plugin>| self.check_roles(&plugin, &others).map(|()| plugin);
            let proven = proven.and_then(|proven| checked(proven).ok());
            begun_with.extend(proven.iter().map(|proven| (name.clone(), proven.clone())));
            match loaded.and_then(checked) {
                Ok(plugin) => drop(found.insert(name, plugin)),
                Err(error) => {
                    let refusal = Refused { error, taken: Some(taken) };
                    refused.insert(path, refusal);
                    let goes_on = proven.or_else(|| checked(self.state().live.get(&name).cloned()?).ok());
                    found.extend(goes_on.map(|goes_on| (name, goes_on)));
                }
            }
        }
        let gone = {
            let mut state = self.state();
            for (path, Refused { error, .. }) in &refused {
                if *error != LoadError::Loading && state.refused.get(path).is_none_or(|before| before.error != *error) {
                    tracing::error!(file = %path.display(), code = error.code(), "a plugin is not used: it {error}");
                }
            }
            // What is in the folder of private copies was asked for by a configuration.
            state.refused.retain(|path, _| path.starts_with(&self.setup.folder));
            state.refused.extend(refused);
            // What came of a file that nobody waits for any more.
            let State { loading, refused, .. } = &mut *state;
            loading.retain(|(path, _), loading| {
                let is_waited_for = refused.get(path).is_some_and(|refused| refused.error == LoadError::Loading);
                is_waited_for || path.starts_with(&self.setup.folder) || loading.done.borrow().is_none()
            });
            state.take_found(found, begun_with)
        };
        self.forget(&gone);
        self.changed.send_modify(|count| *count += 1);
    }
}

fn list(dirs: &[PathBuf]) -> BTreeMap<PathBuf, Seen> {
    use std::os::unix::fs::MetadataExt as _;
    let entries = dirs.iter().flat_map(|dir| fs::read_dir(dir).into_iter().flatten().flatten());
    // What begins with a dot is not for us: that is how copying programs name what is not whole yet.
    let is_hidden = |entry: &fs::DirEntry| entry.file_name().as_encoded_bytes().starts_with(b".");
    let is_library = |entry: &fs::DirEntry| entry.path().extension().is_some_and(|extension| extension == "so");
    let libraries = entries.filter(|entry| is_library(entry) && !is_hidden(entry));
    let seen = libraries.filter_map(|entry| {
        let metadata = fs::symlink_metadata(entry.path()).ok()?;
        let changed = metadata.modified().ok()?;
        Some((entry.path(), Seen { changed, size: metadata.len(), inode: metadata.ino(), taken: None }))
    });
    seen.collect()
}
