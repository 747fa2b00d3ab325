//! What a catalog knows: what is offered, and what goes before what.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use tokio::sync::watch;
use tokio::time::Instant;

use super::retry::Retry;
use super::{Carrier, Offered, Plugin};
use crate::plugins::LoadError;
use crate::plugins::intake::Taken;

#[derive(Default)]
pub(super) struct State {
    /// What is offered.
    pub(super) live: Offered,
    /// What the accepted configuration asks for; it goes before what is in the folders.
    pub(super) assigned: Offered,
    /// What was made ready for configurations that may be accepted.
    pub(super) prepared: Vec<Weak<Plugin>>,
    /// What is in the folders.
    pub(super) found: Offered,
    /// Newer files of plugins that are offered: to be taken once what runs is known to fit.
    pub(super) pending: BTreeMap<String, (PathBuf, Arc<Plugin>)>,
    /// Plugins that the configuration asks for, by sha256, and that cannot be had: the build before goes on.
    pub(super) stand_ins: BTreeMap<String, String>,
    /// What was replaced, as long as it may have to come back.
    pub(super) previous: Offered,
    /// Plugins that the station began with as they were, although there is a newer build: it waits until they are in use.
    pub(super) begun_with: BTreeSet<String>,
    /// What was replaced for good, and whose copies are still there.
    pub(super) stale: Vec<Arc<Plugin>>,
    /// Builds that were given up and are to be tried once more, by sha256.
    pub(super) allowed: BTreeSet<String>,
    /// Files that are not used, and why.
    pub(super) refused: BTreeMap<PathBuf, Refused>,
    /// Files that are being loaded, by path and sha256.
    pub(super) loading: BTreeMap<(PathBuf, String), Loading>,
    /// A plugin of the accepted configuration was not loaded, or a newer one not judged, for trouble of the station's own.
    pub(super) waits_for_the_station: bool,
    /// When what was not loaded for such trouble is loaded again.
    pub(super) retry: Retry,
}

/// A file that is being loaded, for all who wait for it.
#[derive(Clone)]
pub(super) struct Loading {
    pub(super) since: Instant,
    /// What came of it, once it has; until somebody takes it.
    pub(super) done: watch::Receiver<Option<Result<Arc<Plugin>, LoadError>>>,
}

pub(super) struct Refused {
    pub(super) error: LoadError,
    pub(super) taken: Option<Taken>,
}

impl State {
    /// Whether it is time to load again what was not loaded for trouble of the station's own. `folder` has the private copies.
    pub(super) fn retries(&mut self, folder: &Path) -> bool {
        let files = self.refused.iter().filter(|(path, _)| !path.starts_with(folder));
        let some_wait =
            files.map(|(_, refused)| &refused.error).any(LoadError::is_station_fault) || self.waits_for_the_station;
        let is_due = self.retry.is_due(some_wait, Instant::now());
        // What goes on waiting says so anew.
        self.waits_for_the_station &= !is_due;
        is_due
    }

    /// Offers what is in the folders, as far as the configuration asks for nothing else. What replaces something, or something
    /// that is known to work, waits until what runs is known to fit it. Answers what is not offered any more.
    pub(super) fn take_found(&mut self, found: Offered, proven: Offered) -> BTreeSet<String> {
        for (name, plugin) in proven {
            if !self.assigned.contains_key(&name) && !self.live.contains_key(&name) {
                self.begin_with(name, plugin);
            }
        }
        let State { assigned, stand_ins, .. } = self;
        let stays =
            |name: &String| found.contains_key(name) || assigned.contains_key(name) || stand_ins.contains_key(name);
        let gone = self.live.keys().filter(|name| !stays(name)).cloned().collect();
        self.live.retain(|name, _| stays(name));
        self.pending.retain(|name, (_, plugin)| {
            assigned.get(name).is_some_and(|assigned| assigned.taken.sha256 == plugin.taken.sha256)
        });
        for (name, plugin) in found.iter().filter(|(name, _)| !self.assigned.contains_key(*name)) {
            match self.live.get(name) {
                Some(live) if live.taken.sha256 == plugin.taken.sha256 => {}
                Some(_) => drop(self.pending.insert(name.clone(), (plugin.file.clone(), plugin.clone()))),
                None => {
                    let (version, roles) = (&plugin.manifest.version, plugin.manifest.roles.len());
                    tracing::info!(plugin = name, version, roles, "a plugin is offered");
                    self.live.insert(name.clone(), plugin.clone());
                }
            }
        }
        self.found = found;
        gone
    }

    /// Takes a newer file that waits, if it is still the one that was judged.
    pub(super) fn take_pending(&mut self, judged: &Carrier) -> Option<(PathBuf, Arc<Plugin>)> {
        let waits = self.pending.get(&judged.plugin)?;
        if waits.1.taken.sha256 != judged.sha256 {
            return None;
        }
        self.pending.remove(&judged.plugin)
    }

    /// Offers what was in use before the station started.
    pub(super) fn begin_with(&mut self, name: String, plugin: Arc<Plugin>) {
        self.begun_with.insert(name.clone());
        self.live.insert(name, plugin);
    }

    /// The hashes of all that is offered, asked for, may come back or was looked at.
    pub(super) fn known(&self) -> BTreeSet<String> {
        let plugins = [&self.live, &self.assigned, &self.found, &self.previous].into_iter().flat_map(Offered::values);
        let pending = self.pending.values().map(|(_, plugin)| plugin);
        let refused = self.refused.values().filter_map(|refused| refused.taken.as_ref());
        let known = plugins.chain(pending).map(|plugin| &plugin.taken).chain(refused).map(|taken| &taken.sha256);
        known.chain(self.loading.keys().map(|(_, sha256)| sha256)).cloned().collect()
    }

    /// Whether a configuration that is being thought about asks for a build.
    pub(super) fn is_prepared(&self, sha256: &str) -> bool {
        self.prepared.iter().filter_map(Weak::upgrade).any(|plugin| plugin.taken.sha256 == sha256)
    }

    /// Whether a build was put in the place of another and what runs is being moved to it.
    pub(super) fn is_being_tried(&self, name: &str, sha256: &str) -> bool {
        self.previous.contains_key(name) && self.live.get(name).is_some_and(|live| live.taken.sha256 == sha256)
    }

    /// Offers a build in the place of another. Answers the sha256 of that, if there was one.
    pub(super) fn replace(&mut self, name: &str, plugin: Arc<Plugin>) -> Option<String> {
        if self.live.get(name).is_some_and(|live| live.taken.sha256 == plugin.taken.sha256) {
            return None;
        }
        let before = self.live.insert(name.to_owned(), plugin)?;
        let sha256 = before.taken.sha256.clone();
        // Of two that follow one another at once, the first is what is known to work.
        self.previous.entry(name.to_owned()).or_insert(before);
        Some(sha256)
    }

    pub(super) fn hold_back(&mut self, path: PathBuf, taken: &Taken, why: &str) {
        tracing::error!(plugin = taken.inspection.name, sha256 = taken.sha256, why, "a newer plugin is not taken");
        let name = &taken.inspection.name;
        if self.found.get(name).is_some_and(|found| found.taken.sha256 == taken.sha256) {
            // What is offered stands for what is in the folder from here on.
            match self.live.get(name).cloned() {
                Some(live) => drop(self.found.insert(name.clone(), live)),
                None => drop(self.found.remove(name)),
            }
        }
        let refusal = Refused { error: LoadError::Upgrade(why.to_owned()), taken: Some(taken.clone()) };
        self.refused.insert(path, refusal);
    }
}
