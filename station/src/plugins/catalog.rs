//! The plugins of a station: found in its folders, checked, described, offered; and those that are not, with the reason.

mod loading;
mod local;
mod offering;
mod state;
mod upgrades;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use quilt_core::files;
use quilt_plugin_api::{RoleDescription, RoleFactory};
use quilt_protocol::control::{PluginState, PluginView};
use tokio::sync::{Mutex as AsyncMutex, RwLock as AsyncRwLock, watch};

pub(crate) use self::offering::Prepared;

use self::state::{Loading, Refused, State};
use super::child::Keeper;
use super::intake::{self, Taken};
use super::kept::{Kept, Settled};
use super::{LoadError, Manifest, RUNTIME, Trust, trace};
use crate::session::Link;
use crate::spec::Isolation;

/// How often folders are looked at. Looking works on every file system and for folders that are made later; a file is taken
/// once it has not changed between two looks, so that one that is being copied is left alone.
const LOOK: Duration = Duration::from_millis(500);

/// How long files that are loaded at the same time are waited for, to be offered together; also by a station at its start. What takes
/// longer is offered once it is there.
const TOGETHER: Duration = Duration::from_millis(1500);

/// What a catalog is made of.
pub(crate) struct Setup {
    /// Where private copies are kept.
    pub(crate) folder: PathBuf,
    /// Folders that operators put plugins into.
    pub(crate) dirs: Vec<PathBuf>,
    pub(crate) trust: Trust,
    /// Roles that are linked in; a plugin cannot take their names.
    pub(crate) linked: BTreeSet<String>,
    /// The way to the manager, which has what configurations ask for.
    pub(crate) link: Arc<Link>,
}

/// The plugins of a station.
pub(crate) struct Catalog {
    setup: Setup,
    /// By sha256: what crashed while it was loaded, and how. Not loaded again before an operator allows it.
    quarantine: Arc<Kept<String>>,
    /// By plugin: the build that was in use last, and those that were given up.
    settled: Kept<Settled>,
    /// Held for reading while a plugin is being asked for.
    asking: AsyncRwLock<()>,
    /// One plugin is fetched at a time: two that fetch the same file would write into each other's.
    fetching: AsyncMutex<()>,
    state: Mutex<State>,
    /// One look at a time.
    looking: AsyncMutex<BTreeMap<PathBuf, Seen>>,
    /// Counts changes of what is offered.
    changed: watch::Sender<u64>,
    /// What was there at the start has been looked at.
    looked: watch::Sender<bool>,
}

/// Plugins by name.
pub(crate) type Offered = BTreeMap<String, Arc<Plugin>>;

/// Which build of which plugin carries a role.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Carrier {
    pub(crate) plugin: String,
    pub(crate) sha256: String,
}

/// A file as it was looked at last.
#[derive(Clone)]
struct Seen {
    changed: SystemTime,
    size: u64,
    inode: u64,
    /// What came of it, once it had not changed between two looks.
    taken: Option<Result<Taken, LoadError>>,
}

impl Seen {
    fn is_same_file(&self, other: &Self) -> bool {
        (self.changed, self.size, self.inode) == (other.changed, other.size, other.inode)
    }
}

/// A plugin in use.
pub(crate) struct Plugin {
    taken: Taken,
    /// Where it came from.
    file: PathBuf,
    manifest: Manifest,
    keeper: Arc<Keeper>,
    remote: BTreeMap<String, Arc<dyn RoleFactory>>,
    local: BTreeMap<String, Arc<dyn RoleFactory>>,
}

impl Catalog {
    /// A catalog of what is in the folders now. Reads what crashed earlier.
    ///
    /// # Errors
    ///
    /// The folder of private copies cannot be made.
    pub(crate) fn open(setup: Setup) -> anyhow::Result<Arc<Self>> {
        let _ = RUNTIME.set(tokio::runtime::Handle::current());
        trace::follow_the_filter();
        files::create_private_dir(&setup.folder)?;
        let quarantine = Kept::open(&setup.folder, "quarantine.json");
        let settled = Kept::open(&setup.folder, "settled.json");
        for marker in fs::read_dir(&setup.folder)?.flatten().map(|entry| entry.path()) {
            if marker.extension().is_some_and(|extension| extension == "running") {
                let sha256 = marker.file_stem().unwrap_or_default().to_string_lossy().into_owned();
                let what = fs::read_to_string(&marker).unwrap_or_default();
                tracing::error!(sha256, "a plugin is quarantined: the station ended while {what}");
                quarantine.put(&sha256, format!("the station ended while {what}"));
                let _ = fs::remove_file(&marker);
            }
        }
        Ok(Arc::new(Self {
            quarantine: Arc::new(quarantine),
            settled,
            setup,
            state: Mutex::default(),
            looking: AsyncMutex::default(),
            asking: AsyncRwLock::default(),
            fetching: AsyncMutex::default(),
            changed: watch::Sender::new(0),
            looked: watch::Sender::new(false),
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hears of every change of what is offered.
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

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
        let found = list(&self.setup.dirs);
        let gone: Vec<_> = seen.keys().filter(|path| !found.contains_key(*path)).cloned().collect();
        let is_late = |(path, _): &(PathBuf, String), loading: &Loading| {
            found.contains_key(path) && loading.done.borrow().is_some()
        };
        let mut news = !gone.is_empty() || self.state().loading.iter().any(|(key, loading)| is_late(key, loading));
        for path in gone {
            seen.remove(&path);
            self.state().refused.remove(&path);
        }
        for (path, now) in found {
            let before = seen.get(&path).cloned();
            let same = before.as_ref().is_some_and(|before| before.is_same_file(&now));
            match before {
                Some(before) if same && before.taken.is_some() => {}
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
        self.remove_stale(&seen);
    }

    async fn take(&self, path: &Path) -> Result<Taken, LoadError> {
        let (path, folder, trust) = (path.to_owned(), self.setup.folder.clone(), self.setup.trust.clone());
        let taking = tokio::task::spawn_blocking(move || intake::take(&path, &folder, &trust));
        taking.await.unwrap_or_else(|error| Err(LoadError::NotFound(error.to_string())))
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

    /// What is offered now.
    pub(crate) fn offered(&self) -> Offered {
        self.state().live.clone()
    }

    /// Lifts the quarantine of a plugin, by name or sha256, and looks at everything anew.
    ///
    /// # Errors
    ///
    /// Nothing of that name is quarantined.
    pub(crate) async fn allow(self: &Arc<Self>, which: &str) -> Result<(), String> {
        let named: BTreeSet<String> = {
            let state = self.state();
            let refused = state.refused.values().filter_map(|refused| refused.taken.as_ref());
            let all = refused.chain(state.live.values().map(|plugin| &plugin.taken));
            all.filter(|taken| taken.inspection.name == which).map(|taken| taken.sha256.clone()).collect()
        };
        if !self.quarantine.forget(|sha256| sha256 == which || named.contains(sha256)) {
            return Err(format!("no plugin {which} is quarantined; `quiltctl plugin list` shows them"));
        }
        self.reload().await;
        Ok(())
    }

    /// Looks at every file anew, now.
    pub(crate) async fn reload(self: &Arc<Self>) {
        self.allow_again();
        {
            let mut state = self.state();
            // Also what the configuration asks for and was not taken.
            for (name, plugin) in state.assigned.clone() {
                if state.live.get(&name).is_some_and(|live| live.taken.sha256 != plugin.taken.sha256) {
                    state.pending.insert(name, (plugin.file.clone(), plugin));
                }
            }
        }
        self.looking.lock().await.clear();
        let this = self.clone();
        #[allow(clippy::disallowed_methods, reason = "bounded by the time-outs of loading")]
        let looking = tokio::spawn(async move { this.look(true).await });
        // It goes on if whoever asked gives up: what was taken in is offered only at the end of the look that took it in.
        let _ = looking.await;
        // Also if the folders have no news: what runs is to be moved to what was not taken.
        self.changed.send_modify(|count| *count += 1);
    }

    /// What operators see.
    pub(crate) async fn views(&self) -> Vec<PluginView> {
        let live: Vec<_> = self.state().live.values().cloned().collect();
        let mut views = Vec::new();
        for plugin in live {
            let Plugin { taken, manifest, file, keeper, .. } = &*plugin;
            let crashed = self.quarantine.get(&taken.sha256).map(LoadError::Quarantined);
            views.push(PluginView {
                state: if crashed.is_some() { PluginState::Quarantined } else { PluginState::Live },
                name: manifest.name.clone(),
                version: manifest.version.clone(),
                roles: manifest.roles.iter().map(|role| role.name.clone()).collect(),
                sha256: taken.sha256.clone(),
                file: file.display().to_string(),
                code: crashed.as_ref().map(|error| error.code().into()),
                detail: crashed.map(|error| error.to_string()).unwrap_or_default(),
                pid: keeper.pid().await,
            });
        }
        let state = self.state();
        let pushed_over = state.found.iter().filter(|(name, found)| {
            let live = state.live.get(*name).filter(|_| state.assigned.contains_key(*name));
            live.is_some_and(|live| live.taken.sha256 != found.taken.sha256)
        });
        let pushed_over = pushed_over.map(|(name, found)| {
            let error = LoadError::Shadowed { name: name.clone(), by: "what was pushed to this station".into() };
            (found.file.clone(), Refused { error, taken: Some(found.taken.clone()) })
        });
        let pushed_over: Vec<_> = pushed_over.collect();
        let unused = state.refused.iter().chain(pushed_over.iter().map(|(path, refused)| (path, refused)));
        for (path, Refused { error, taken }) in unused {
            let inspection = taken.as_ref().map(|taken| taken.inspection.clone()).unwrap_or_default();
            views.push(PluginView {
                state: match error {
                    LoadError::Loading => PluginState::Loading,
                    LoadError::Quarantined(_) | LoadError::Crashed(_) => PluginState::Quarantined,
                    _ => PluginState::Refused,
                },
                name: inspection.name,
                version: inspection.version,
                roles: inspection.roles,
                sha256: taken.as_ref().map(|taken| taken.sha256.clone()).unwrap_or_default(),
                file: path.display().to_string(),
                code: Some(error.code().into()),
                detail: error.to_string(),
                pid: None,
            });
        }
        views
    }
}

impl Plugin {
    pub(crate) fn offers(&self, role: &str) -> bool {
        self.remote.contains_key(role)
    }

    /// What makes instances of one of its roles, where the fleet file wants them.
    pub(crate) fn factory(&self, role: &str, isolation: Option<Isolation>) -> Option<Arc<dyn RoleFactory>> {
        match isolation {
            Some(Isolation::Inproc) => self.local.get(role).cloned(),
            Some(Isolation::Process) | None => self.remote.get(role).cloned(),
        }
    }

    /// Its roles.
    pub(crate) fn roles(&self) -> &[RoleDescription] {
        &self.manifest.roles
    }

    pub(crate) fn carrier(&self) -> Carrier {
        Carrier { plugin: self.manifest.name.clone(), sha256: self.taken.sha256.clone() }
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
