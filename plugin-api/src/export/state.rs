//! The one plugin of a library: its roles, its runtime, its instances.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use quilt_plugin_abi as abi;
use serde::Serialize;
use tokio::runtime::Runtime;

use super::Library;
use super::host::StationHost;
use crate::bridge::Tokens;
use crate::factory::{Instance, RoleDescription};
use crate::{RoleFactory, Work};

/// What the library holds while it is loaded, which is for ever.
pub(super) struct State {
    library: &'static Library,
    pub(super) host: &'static abi::Host,
    pub(super) roles: BTreeMap<String, Arc<dyn RoleFactory>>,
    pub(super) runtime: Runtime,
    instances: Mutex<HashMap<u64, Arc<Hosted>>>,
    /// Calls and work under way.
    pub(super) running: Tokens<Option<tokio::task::AbortHandle>>,
}

/// An instance and what it has of the station.
pub(super) struct Hosted {
    pub(super) host: Arc<StationHost>,
    /// None once it has stopped.
    pub(super) role: tokio::sync::Mutex<Option<Box<dyn Instance>>>,
    /// Its own work, until it is begun.
    pub(super) work: Mutex<Option<Work>>,
}

static STATE: OnceLock<State> = OnceLock::new();

/// The plugin's document, as `describe` gives it.
#[derive(Serialize)]
struct Manifest<'a> {
    name: &'a str,
    version: &'a str,
    sdk: &'a str,
    roles: Vec<RoleDescription>,
}

pub(super) fn open(library: &'static Library, host: &'static abi::Host, minor: u32) -> Result<(), String> {
    if minor > abi::MINOR {
        return Err(format!(
            "the station wants minor version {minor} of the contract, this plugin knows {}",
            abi::MINOR
        ));
    }
    if STATE.get().is_some() {
        return Ok(());
    }
    // Whatever the library's tokio can do. That changes nothing for the process; listening for a signal would.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name(format!("q-{}", library.name))
        .enable_all()
        .build()
        .map_err(|error| format!("its runtime: {error}"))?;
    let roles = (library.roles)().into_iter().map(|role| (role.name().to_owned(), role)).collect();
    let (instances, running) = (Mutex::default(), Tokens::new());
    let _ = STATE.set(State { library, host, roles, runtime, instances, running });
    super::trace::install(host);
    Ok(())
}

pub(super) fn state() -> &'static State {
    STATE.get().expect("the contract has `open` called before anything else")
}

impl State {
    pub(super) fn manifest(&self) -> String {
        let Library { name, version, .. } = self.library;
        let roles = self.roles.values().map(|role| role.description().clone()).collect();
        let manifest = Manifest { name, version, sdk: super::note::SDK, roles };
        serde_json::to_string(&manifest).expect("descriptions have text keys")
    }

    pub(super) fn instance(&self, token: u64) -> Option<Arc<Hosted>> {
        self.instances.lock().unwrap_or_else(PoisonError::into_inner).get(&token).cloned()
    }

    pub(super) fn add(&self, token: u64, hosted: Hosted) {
        self.instances.lock().unwrap_or_else(PoisonError::into_inner).insert(token, Arc::new(hosted));
    }

    pub(super) fn remove(&self, token: u64) {
        self.instances.lock().unwrap_or_else(PoisonError::into_inner).remove(&token);
    }
}
