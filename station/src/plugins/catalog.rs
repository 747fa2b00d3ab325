//! The plugins of a station: found in its folders, checked, described, offered; and those that are not, with the reason.

mod loading;
mod local;
mod look;
mod offering;
mod retry;
mod state;
mod upgrades;
mod views;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quilt_core::files;
use quilt_plugin_api::{RoleDescription, RoleFactory};
use tokio::sync::{Mutex as AsyncMutex, RwLock as AsyncRwLock, watch};

pub(crate) use self::offering::Prepared;

use self::look::Seen;
use self::state::State;
use super::child::Keeper;
use super::intake::Taken;
use super::kept::{Kept, Settled};
use super::{Manifest, RUNTIME, Trust, trace};
use crate::session::Link;
use crate::spec::Isolation;

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
