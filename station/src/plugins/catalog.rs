//! The plugins of a station: found in its folders, checked, described, offered; and those that are not, with the reason.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use quilt_core::files;
use quilt_plugin_api::{BoxFuture, Instance, Invalid, RoleContext, RoleDescription, RoleError, RoleFactory};
use quilt_protocol::Name;
use quilt_protocol::control::{PluginState, PluginView};
use tokio::sync::{Mutex as AsyncMutex, OnceCell, watch};

use super::child::{Keeper, Library};
use super::image::Image;
use super::intake::{self, Taken};
use super::{LoadError, Manifest, RUNTIME, Trust, trace};
use crate::spec::Isolation;

/// How often folders are looked at. Looking works on every file system and for folders that are made later; a file is taken
/// once it has not changed between two looks, so that one that is being copied is left alone.
const LOOK: Duration = Duration::from_millis(500);

/// What a catalog is made of.
pub(crate) struct Setup {
    /// Where private copies are kept.
    pub(crate) folder: PathBuf,
    /// Folders that operators put plugins into.
    pub(crate) dirs: Vec<PathBuf>,
    pub(crate) trust: Trust,
    /// Roles that are linked in; a plugin cannot take their names.
    pub(crate) linked: BTreeSet<String>,
}

/// The plugins of a station.
pub(crate) struct Catalog {
    setup: Setup,
    state: Mutex<State>,
    /// One look at a time.
    looking: AsyncMutex<BTreeMap<PathBuf, Seen>>,
    /// Counts changes of what is offered.
    changed: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    /// By name.
    live: BTreeMap<String, Arc<Plugin>>,
    /// Files that are not used, and why.
    refused: BTreeMap<PathBuf, Refused>,
    /// By sha256: what crashed, and how.
    quarantined: BTreeMap<String, String>,
}

struct Refused {
    error: LoadError,
    taken: Option<Taken>,
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
        let mut state = State { quarantined: read_quarantine(&setup.folder), ..State::default() };
        for marker in fs::read_dir(&setup.folder)?.flatten().map(|entry| entry.path()) {
            if marker.extension().is_some_and(|extension| extension == "running") {
                let sha256 = marker.file_stem().unwrap_or_default().to_string_lossy().into_owned();
                let what = fs::read_to_string(&marker).unwrap_or_default();
                tracing::error!(sha256, "a plugin is quarantined: the station ended while {what}");
                state.quarantined.insert(sha256, format!("the station ended while {what}"));
                let _ = fs::remove_file(&marker);
            }
        }
        let catalog =
            Self { setup, state: Mutex::new(state), looking: AsyncMutex::default(), changed: watch::Sender::new(0) };
        catalog.save_quarantine();
        Ok(Arc::new(catalog))
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
        loop {
            self.look(false).await;
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Looks at the folders once; `settled` takes files for whole as they are.
    pub(crate) async fn look(&self, settled: bool) {
        let mut seen = self.looking.lock().await;
        let found = list(&self.setup.dirs);
        let gone: Vec<_> = seen.keys().filter(|path| !found.contains_key(*path)).cloned().collect();
        let mut news = !gone.is_empty();
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
    }

    async fn take(&self, path: &Path) -> Result<Taken, LoadError> {
        let (path, folder, trust) = (path.to_owned(), self.setup.folder.clone(), self.setup.trust.clone());
        let taking = tokio::task::spawn_blocking(move || intake::take(&path, &folder, &trust));
        taking.await.unwrap_or_else(|error| Err(LoadError::NotFound(error.to_string())))
    }

    /// Brings what is offered to what the files say.
    async fn settle(&self, seen: &BTreeMap<PathBuf, Seen>) {
        let mut wanted = BTreeMap::<String, (SystemTime, &PathBuf, &Taken)>::new();
        let mut refused = BTreeMap::new();
        for (path, Seen { changed, taken, .. }) in seen {
            match taken {
                Some(Ok(taken)) => {
                    let name = taken.inspection.name.clone();
                    // Of two files with one plugin the younger is meant.
                    if wanted.get(&name).is_none_or(|(other, ..)| changed >= other) {
                        wanted.insert(name, (*changed, path, taken));
                    }
                }
                Some(Err(error)) => drop(refused.insert(path.clone(), Refused { error: error.clone(), taken: None })),
                None => {}
            }
        }
        let mut ended = Vec::new();
        self.state().live.retain(|name, plugin| {
            let stays = wanted.contains_key(name);
            if !stays {
                ended.push(plugin.clone());
            }
            stays
        });
        for (name, (_, path, taken)) in wanted {
            let current = self.state().live.get(&name).cloned();
            if current.as_ref().is_some_and(|plugin| plugin.taken.sha256 == taken.sha256) {
                continue;
            }
            match self.load(path, taken).await {
                Ok(plugin) => {
                    let (version, roles) = (&plugin.manifest.version, plugin.manifest.roles.len());
                    tracing::info!(plugin = name, version, roles, "a plugin is offered");
                    ended.extend(self.state().live.insert(name, Arc::new(plugin)));
                }
                Err(error) => {
                    let refusal = Refused { error, taken: Some(taken.clone()) };
                    refused.insert(path.clone(), refusal);
                }
            }
        }
        {
            let mut state = self.state();
            for (path, Refused { error, .. }) in &refused {
                if state.refused.get(path).is_none_or(|before| before.error != *error) {
                    tracing::error!(file = %path.display(), code = error.code(), "a plugin is not used: it {error}");
                }
            }
            state.refused = refused;
        }
        self.changed.send_modify(|count| *count += 1);
        // What runs in them goes on; a process ends when its last instance lets go of it.
        drop(ended);
    }

    async fn load(&self, path: &Path, taken: &Taken) -> Result<Plugin, LoadError> {
        if let Some(reason) = self.state().quarantined.get(&taken.sha256) {
            return Err(LoadError::Quarantined(reason.clone()));
        }
        let name = taken.inspection.name.clone();
        let library = Library { path: taken.path.clone(), sha256: taken.sha256.clone(), name: name.clone() };
        let keeper = Keeper::new(library.clone());
        let manifest = match self.described(&keeper, &taken.sha256).await {
            Ok(manifest) => manifest,
            Err(error @ LoadError::Crashed(_)) => {
                self.quarantine(&taken.sha256, &error.to_string());
                return Err(error);
            }
            Err(error) => return Err(error),
        };
        for role in &manifest.roles {
            let taken_by = |by: &str| LoadError::DuplicateRole { role: role.name.clone(), by: by.into() };
            if self.setup.linked.contains(&role.name) {
                return Err(taken_by("the station itself"));
            }
            let state = self.state();
            let other = state.live.iter().find(|(other, plugin)| **other != name && plugin.offers(&role.name));
            if let Some((other, _)) = other {
                return Err(taken_by(&format!("plugin {other}")));
            }
        }
        let by_name = |roles: Vec<Arc<dyn RoleFactory>>| {
            roles.into_iter().map(|role| (role.name().to_owned(), role)).collect::<BTreeMap<_, _>>()
        };
        let remote = by_name(keeper.roles(&manifest));
        let image = Arc::new(OnceCell::new());
        let folder = self.setup.folder.clone();
        let local = manifest.roles.iter().map(|role| {
            let (library, image, folder) = (library.clone(), image.clone(), folder.clone());
            Arc::new(Local { library, image, folder, role: role.clone() }) as Arc<dyn RoleFactory>
        });
        let local = by_name(local.collect());
        Ok(Plugin { taken: taken.clone(), file: path.to_owned(), manifest, keeper, remote, local })
    }

    /// What the plugin says of itself: asked once, and remembered by its content.
    async fn described(&self, keeper: &Arc<Keeper>, sha256: &str) -> Result<Manifest, LoadError> {
        let cache = self.setup.folder.join(format!("{sha256}.json"));
        if let Some(manifest) = fs::read(&cache).ok().and_then(|json| Manifest::read(&json).ok()) {
            return Ok(manifest);
        }
        let manifest = keeper.describe().await?;
        let json = serde_json::to_vec(&manifest).expect("descriptions have text keys");
        if let Err(error) = files::write_atomically(&cache, &json) {
            tracing::warn!(%error, "a plugin's description is not kept");
        }
        Ok(manifest)
    }

    /// The factory of a role that a plugin offers.
    pub(crate) fn factory(&self, role: &str, isolation: Option<Isolation>) -> Option<Arc<dyn RoleFactory>> {
        let state = self.state();
        let plugin = state.live.values().find(|plugin| plugin.offers(role))?;
        match isolation {
            Some(Isolation::Inproc) => plugin.local.get(role).cloned(),
            Some(Isolation::Process) | None => plugin.remote.get(role).cloned(),
        }
    }

    /// All roles that plugins offer.
    pub(crate) fn roles(&self) -> BTreeMap<Name, RoleDescription> {
        let state = self.state();
        let roles = state.live.values().flat_map(|plugin| plugin.manifest.roles.clone());
        roles.map(|role| (role.name.parse().expect("the manifest was checked"), role)).collect()
    }

    fn quarantine(&self, sha256: &str, reason: &str) {
        self.state().quarantined.insert(sha256.to_owned(), reason.to_owned());
        self.save_quarantine();
    }

    fn save_quarantine(&self) {
        let json = serde_json::to_vec(&self.state().quarantined).expect("texts serialize");
        if let Err(error) = files::write_atomically(&self.setup.folder.join("quarantine.json"), &json) {
            tracing::error!(%error, "cannot record which plugins are quarantined");
        }
    }

    /// Lifts the quarantine of a plugin, by name or sha256, and looks at everything anew.
    ///
    /// # Errors
    ///
    /// Nothing of that name is quarantined.
    pub(crate) async fn allow(&self, which: &str) -> Result<(), String> {
        let lifted: Vec<String> = {
            let mut state = self.state();
            let named = state.refused.values().filter_map(|refused| refused.taken.as_ref());
            let named: BTreeSet<_> =
                named.filter(|taken| taken.inspection.name == which).map(|taken| taken.sha256.clone()).collect();
            let lifted = state.quarantined.keys();
            let lifted: Vec<_> = lifted.filter(|sha256| *sha256 == which || named.contains(*sha256)).cloned().collect();
            lifted.iter().for_each(|sha256| drop(state.quarantined.remove(sha256)));
            lifted
        };
        if lifted.is_empty() {
            return Err(format!("no plugin {which} is quarantined; `quiltctl plugin list` shows them"));
        }
        self.save_quarantine();
        self.reload().await;
        Ok(())
    }

    /// Looks at every file anew, now.
    pub(crate) async fn reload(&self) {
        self.looking.lock().await.clear();
        self.look(true).await;
    }

    /// What operators see.
    pub(crate) async fn views(&self) -> Vec<PluginView> {
        let live: Vec<_> = self.state().live.values().cloned().collect();
        let mut views = Vec::new();
        for plugin in live {
            let Plugin { taken, manifest, file, keeper, .. } = &*plugin;
            views.push(PluginView {
                state: PluginState::Live,
                name: manifest.name.clone(),
                version: manifest.version.clone(),
                roles: manifest.roles.iter().map(|role| role.name.clone()).collect(),
                sha256: taken.sha256.clone(),
                file: file.display().to_string(),
                code: None,
                detail: String::new(),
                pid: keeper.pid().await,
            });
        }
        for (path, Refused { error, taken }) in &self.state().refused {
            let inspection = taken.as_ref().map(|taken| taken.inspection.clone()).unwrap_or_default();
            let quarantined = matches!(error, LoadError::Quarantined(_) | LoadError::Crashed(_));
            views.push(PluginView {
                state: if quarantined { PluginState::Quarantined } else { PluginState::Refused },
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
    fn offers(&self, role: &str) -> bool {
        self.remote.contains_key(role)
    }
}

fn list(dirs: &[PathBuf]) -> BTreeMap<PathBuf, Seen> {
    use std::os::unix::fs::MetadataExt as _;
    let entries = dirs.iter().flat_map(|dir| fs::read_dir(dir).into_iter().flatten().flatten());
    let libraries = entries.filter(|entry| entry.path().extension().is_some_and(|extension| extension == "so"));
    let seen = libraries.filter_map(|entry| {
        let metadata = fs::symlink_metadata(entry.path()).ok()?;
        let changed = metadata.modified().ok()?;
        Some((entry.path(), Seen { changed, size: metadata.len(), inode: metadata.ino(), taken: None }))
    });
    seen.collect()
}

fn read_quarantine(folder: &Path) -> BTreeMap<String, String> {
    let path = folder.join("quarantine.json");
    let Ok(json) = fs::read(&path) else { return BTreeMap::new() };
    serde_json::from_slice(&json).unwrap_or_else(|error| {
        tracing::error!(path = %path.display(), %error, "the list of quarantined plugins is damaged; it begins anew");
        BTreeMap::new()
    })
}

/// A role of a plugin inside the station; the library is mapped when the first instance needs it.
struct Local {
    library: Library,
    image: Arc<OnceCell<Arc<Image>>>,
    folder: PathBuf,
    role: RoleDescription,
}

/// Marks what runs now, so that the next station knows what the one before died of.
struct Marker(PathBuf);

impl Marker {
    fn set(folder: &Path, library: &Library, what: &str) -> Self {
        let path = folder.join(format!("{}.running", library.sha256));
        if let Err(error) = fs::write(&path, format!("{} {what}", library.name)) {
            tracing::warn!(%error, "a plugin is loaded without a mark");
        }
        Self(path)
    }
}

impl Drop for Marker {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

impl Local {
    /// The role of the mapped library.
    fn factory(&self) -> impl Future<Output = Result<Arc<dyn RoleFactory>, LoadError>> + Send + 'static {
        let (library, image, folder, role) =
            (self.library.clone(), self.image.clone(), self.folder.clone(), self.role.clone());
        async move {
            let open = async || {
                let runtime = tokio::runtime::Handle::current();
                let opening = tokio::task::spawn_blocking(move || {
                    let _marker = Marker::set(&folder, &library, "was loaded");
                    Image::open(&library, &runtime, true)
                });
                opening.await.unwrap_or_else(|error| Err(LoadError::Open(error.to_string())))
            };
            let image = image.get_or_try_init(open).await?;
            let manifest =
                Manifest { name: String::new(), version: String::new(), sdk: String::new(), roles: vec![role] };
            Ok(image.roles(&manifest).swap_remove(0))
        }
    }
}

impl RoleFactory for Local {
    fn name(&self) -> &str {
        &self.role.name
    }

    fn instances(&self) -> u32 {
        self.role.instances
    }

    fn version(&self) -> &str {
        &self.role.version
    }

    fn describe(&self) -> RoleDescription {
        self.role.clone()
    }

    fn validate(&self, config: &[u8]) -> BoxFuture<'static, Result<(), Vec<Invalid>>> {
        let (factory, config) = (self.factory(), config.to_vec());
        Box::pin(async move {
            let unable = |error: LoadError| {
                let got = format!("one that {error}");
                vec![Invalid::key("isolation", "a plugin that can run in the station", got)]
            };
            factory.await.map_err(unable)?.validate(&config).await
        })
    }

    fn start(&self, config: &[u8], cx: RoleContext) -> BoxFuture<'static, Result<Box<dyn Instance>, RoleError>> {
        let (factory, config) = (self.factory(), config.to_vec());
        let (folder, library) = (self.folder.clone(), self.library.clone());
        Box::pin(async move {
            let factory = factory.await.map_err(|error| RoleError::failed(error.to_string()))?;
            let _marker = Marker::set(&folder, &library, &format!("started {}/{}", cx.role(), cx.instance()));
            factory.start(&config, cx).await
        })
    }

    fn abandon(&self, cx: RoleContext) -> BoxFuture<'static, ()> {
        let factory = self.factory();
        Box::pin(async move {
            if let Ok(factory) = factory.await {
                factory.abandon(cx).await;
            }
        })
    }
}
