//! What a catalog knows: what is offered, and what goes before what.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use super::{Offered, Plugin};
use crate::plugins::LoadError;
use crate::plugins::intake::Taken;

#[derive(Default)]
pub(super) struct State {
    /// What is offered.
    pub(super) live: Offered,
    /// What the accepted configuration asks for; it goes before what is in the folders.
    pub(super) assigned: Offered,
    /// What is in the folders.
    pub(super) found: Offered,
    /// Newer files of plugins that are offered: to be taken once what runs is known to fit.
    pub(super) pending: BTreeMap<String, (PathBuf, Arc<Plugin>)>,
    /// What was replaced, as long as it may have to come back.
    pub(super) previous: Offered,
    /// Files that are not used, and why.
    pub(super) refused: BTreeMap<PathBuf, Refused>,
}

pub(super) struct Refused {
    pub(super) error: LoadError,
    pub(super) taken: Option<Taken>,
}

impl State {
    /// What would be offered of a plugin if the configuration did not ask for it.
    pub(super) fn without(&self, name: &str) -> Option<Arc<Plugin>> {
        let live = self.live.get(name);
        // What was asked for and did not work left the one before in its place.
        let kept = live.filter(|live| self.assigned.get(name).is_some_and(|one| one.taken.sha256 != live.taken.sha256));
        self.found.get(name).or(kept).cloned()
    }

    /// Offers what is in the folders, as far as the configuration asks for nothing else. What replaces something waits until
    /// what runs is known to fit it.
    pub(super) fn take_found(&mut self, found: Offered) {
        self.live.retain(|name, _| found.contains_key(name) || self.assigned.contains_key(name));
        self.pending.clear();
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
    }

    pub(super) fn replace(&mut self, name: &str, plugin: Arc<Plugin>) {
        if self.live.get(name).is_some_and(|live| live.taken.sha256 == plugin.taken.sha256) {
            return;
        }
        if let Some(before) = self.live.insert(name.to_owned(), plugin) {
            self.previous.insert(name.to_owned(), before);
        }
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
