//! Changes of what is offered: what a configuration asks for, newer builds, and back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use quilt_protocol::{Digest, Name};

use tokio::task::JoinSet;

use super::state::{Refused, State};
use super::{Carrier, Catalog, Offered, Plugin};
use crate::plugins::{LoadError, fetch};

/// What would be offered under a configuration, and what of it could not be had.
#[derive(Default)]
pub(crate) struct Prepared {
    /// All plugins.
    pub(crate) offered: Offered,
    /// What of them comes, or goes.
    changes: BTreeMap<String, Option<Arc<Plugin>>>,
    /// The hashes that the configuration names.
    wanted: BTreeSet<String>,
    /// Plugins of the configuration that are ready.
    assigned: Offered,
    /// Plugins that are not, by name, with the reason.
    pub(crate) lacking: Vec<(String, LoadError)>,
    /// Plugins that are not, by sha256, and whose build before goes on.
    stand_ins: BTreeMap<String, String>,
    /// Plugins whose newer build was given up, and why.
    pub(crate) given_up: BTreeMap<String, String>,
    /// What was in use of plugins that are not offered now.
    before: Offered,
    /// What is given up by the time this is offered is not tried once more.
    accepted: bool,
    /// Nothing runs yet in whose place something could be tried.
    starting: bool,
}

impl Prepared {
    fn change(&mut self, name: &str, plugin: Option<Arc<Plugin>>) {
        match plugin.clone() {
            Some(plugin) => drop(self.offered.insert(name.to_owned(), plugin)),
            None => drop(self.offered.remove(name)),
        }
        self.changes.insert(name.to_owned(), plugin);
    }
}

impl Catalog {
    /// Makes ready what a configuration asks for, fetching what is not here; nothing of it is offered yet. All at once: one that hangs
    /// does not hold up the others, and with `together` nobody for long.
    pub(crate) async fn prepare(self: &Arc<Self>, wanted: &BTreeMap<Name, Digest>, together: bool) -> Prepared {
        let mut prepared = {
            let state = self.state();
            let mut prepared = Prepared { offered: state.live.clone(), ..Prepared::default() };
            let asked_for = state.assigned.keys().chain(state.stand_ins.keys());
            for name in asked_for.filter(|name| !wanted.contains_key(name.as_str())) {
                prepared.change(name, state.found.get(name).cloned());
            }
            prepared
        };
        let mut loading = JoinSet::new();
        for (name, sha256) in wanted {
            prepared.wanted.insert(sha256.to_string());
            let (this, name, sha256) = (self.clone(), name.clone(), *sha256);
            loading.spawn(async move {
                let plugin = this.wanted(name.as_str(), sha256, together).await;
                (name, sha256, plugin)
            });
        }
        let mut loaded = loading.join_all().await;
        loaded.sort_by(|a, b| a.0.cmp(&b.0));
        for (name, sha256, plugin) in loaded {
            match plugin {
                Ok(plugin) => {
                    if !prepared.offered.contains_key(name.as_str()) {
                        let before = self.proven(name.as_str(), &sha256.to_string(), &plugin.file).await;
                        prepared.before.extend(before.map(|before| (name.to_string(), before)));
                    }
                    prepared.change(name.as_str(), Some(plugin.clone()));
                    prepared.assigned.insert(name.to_string(), plugin);
                }
                Err(error) => {
                    prepared.change(name.as_str(), None);
                    prepared.lacking.push((name.to_string(), error));
                }
            }
        }
        prepared
    }

    /// Makes ready what an accepted configuration asks for. What was tried for it and given up is not tried again, what cannot be
    /// loaded any more does not leave its role without a build as long as the one before is there.
    pub(crate) async fn prepare_accepted(
        self: &Arc<Self>,
        wanted: &BTreeMap<Name, Digest>,
        starting: bool,
    ) -> Prepared {
        let mut prepared = Prepared { accepted: true, starting, ..self.prepare(wanted, true).await };
        self.state().waits_for_the_station = prepared.lacking.iter().any(|(_, error)| error.is_station_fault());
        for (name, sha256) in wanted {
            let (name, sha256) = (name.as_str(), sha256.to_string());
            let given_up = self.given_up(name, &sha256);
            let assigned = prepared.assigned.get(name).cloned();
            if assigned.is_some() && given_up.is_none() {
                continue;
            }
            let file = self.setup.folder.join(format!("{sha256}.so"));
            let Some(proven) = self.proven(name, &sha256, &file).await else { continue };
            if self.check_roles(&proven, &prepared.offered).is_err() {
                continue;
            }
            match (assigned, given_up) {
                (Some(assigned), Some(why)) => {
                    prepared.given_up.insert(name.to_owned(), why.clone());
                    self.state().hold_back(file, &assigned.taken, &why);
                }
                _ => drop(prepared.stand_ins.insert(name.to_owned(), sha256)),
            }
            prepared.change(name, Some(proven));
        }
        prepared
    }

    async fn wanted(self: &Arc<Self>, name: &str, sha256: Digest, together: bool) -> Result<Arc<Plugin>, LoadError> {
        let hash = sha256.to_string();
        {
            let state = self.state();
            let known = [&state.live, &state.assigned, &state.previous].into_iter().filter_map(|all| all.get(name));
            if let Some(known) = known.into_iter().find(|plugin| plugin.taken.sha256 == hash) {
                return Ok(known.clone());
            }
            if let Some(ready) = state.pending.get(name).filter(|(_, plugin)| plugin.taken.sha256 == hash) {
                return Ok(ready.1.clone());
            }
        }
        // Until the plugin is known to be asked for, its copy is not removed either.
        let _asking = self.asking.read().await;
        let path = {
            let _one_at_a_time = self.fetching.lock().await;
            fetch::fetch(&self.setup.link, sha256, &self.setup.folder).await?
        };
        let plugin = self.kept_copy(name, hash, &path, together).await?;
        self.check_roles(&plugin, &self.offered())?;
        let prepared = &mut self.state().prepared;
        prepared.retain(|plugin| plugin.strong_count() > 0);
        prepared.push(Arc::downgrade(&plugin));
        Ok(plugin)
    }

    /// Offers what was prepared for a configuration that is accepted now.
    pub(crate) fn assign(&self, prepared: Prepared) {
        let (mut tried, mut gone) = (Vec::new(), BTreeSet::new());
        let in_use: BTreeSet<String> = self.settled.all().into_values().map(|settled| settled.build).collect();
        let changed = {
            let mut state = self.state();
            let mut changed = false;
            for (name, plugin) in prepared.changes {
                let Some(plugin) = plugin else {
                    changed |= state.live.remove(&name).is_some();
                    gone.insert(name);
                    continue;
                };
                let sha256 = plugin.taken.sha256.clone();
                let runs = state.live.get(&name).or_else(|| prepared.before.get(&name));
                let other = runs.filter(|runs| runs.taken.sha256 != sha256).cloned();
                if let Some(other) = other {
                    if prepared.accepted && self.given_up_in(&state, &name, &sha256).is_some() {
                        continue;
                    }
                    let is_asked_for = prepared.assigned.contains_key(&name);
                    if is_asked_for && (prepared.starting || !state.live.contains_key(&name)) {
                        changed = true;
                        state.begin_with(name.clone(), other);
                        state.pending.insert(name, (plugin.file.clone(), plugin));
                        continue;
                    }
                }
                changed |= state.live.get(&name).is_none_or(|live| live.taken.sha256 != sha256);
                if let Some(from) = state.replace(&name, plugin) {
                    tried.push((name, from, sha256));
                }
            }
            (state.assigned, state.stand_ins) = (prepared.assigned, prepared.stand_ins);
            state.loading.retain(|(path, sha256), loading| {
                let is_of_use = !path.starts_with(&self.setup.folder) || prepared.wanted.contains(sha256);
                is_of_use || loading.done.borrow().is_none()
            });
            let State { pending, assigned, found, .. } = &mut *state;
            pending.retain(|name, (_, plugin)| {
                let meant = assigned.get(name).or_else(|| found.get(name));
                meant.is_some_and(|meant| meant.taken.sha256 == plugin.taken.sha256)
            });
            // What was fetched and not taken is of no interest once nobody asks for it; files in folders are looked at again.
            state.refused.retain(|path, refused| {
                let of_use = |sha256: &String| prepared.wanted.contains(sha256) || in_use.contains(sha256);
                let is_asked_for = refused.taken.as_ref().is_some_and(|taken| of_use(&taken.sha256));
                !path.starts_with(&self.setup.folder) || is_asked_for
            });
            changed
        };
        // What could not be had for now is remembered.
        gone.retain(|name| prepared.lacking.iter().all(|(lacking, _)| lacking != name));
        self.forget(&gone);
        tried.iter().for_each(|(name, from, to)| self.begin(name, from, to));
        // Only then: whoever hears of it looks at everything anew, and comes by here again.
        if changed {
            self.changed.send_modify(|count| *count += 1);
        }
    }

    /// Whether a configuration's plugins are those that were assigned.
    pub(crate) fn has(&self, wanted: &BTreeMap<Name, Digest>) -> bool {
        let state = self.state();
        let is = |name: &String, sha256: &Digest| {
            state.assigned.get(name).is_some_and(|plugin| plugin.taken.sha256 == sha256.to_string())
        };
        let is = |name: &String, sha256: &Digest| is(name, sha256) && state.live.contains_key(name);
        wanted.len() == state.assigned.len() && wanted.iter().all(|(name, sha256)| is(&name.to_string(), sha256))
    }

    /// Newer files of plugins that are offered and in use.
    pub(crate) fn pending(&self) -> Vec<(String, Arc<Plugin>)> {
        let state = self.state();
        let pending = state.pending.iter().filter(|(name, _)| !state.begun_with.contains(*name));
        pending.map(|(name, (_, plugin))| (name.clone(), plugin.clone())).collect()
    }

    /// What is known to work of plugins whose newer build is being tried.
    pub(crate) fn proven_beside_tried(&self) -> Offered {
        self.state().previous.clone()
    }

    /// The build that an instance was made for, as long as it is offered or may come back.
    pub(crate) fn build(&self, carrier: &Carrier) -> Option<Arc<Plugin>> {
        let state = self.state();
        let builds = [&state.live, &state.previous].into_iter().filter_map(|all| all.get(&carrier.plugin));
        builds.into_iter().find(|plugin| plugin.taken.sha256 == carrier.sha256).cloned()
    }

    /// Offers a newer file instead of the one before.
    pub(crate) fn take_pending(&self, newer: &Carrier) {
        let Carrier { plugin: name, sha256 } = newer;
        let from = {
            let mut state = self.state();
            let Some((_, plugin)) = state.take_pending(newer) else { return };
            if !state.live.contains_key(name) {
                // Nobody asks for it any more.
                return;
            }
            tracing::info!(plugin = name, version = plugin.manifest.version, "a newer plugin is offered");
            state.replace(name, plugin)
        };
        if let Some(from) = from {
            self.begin(name, &from, sha256);
        }
    }

    /// Leaves a newer file aside: what runs does not fit it.
    pub(crate) fn leave_pending(&self, newer: &Carrier, why: &str) {
        let Carrier { plugin: name, sha256 } = newer;
        let from = {
            let mut state = self.state();
            let Some((path, plugin)) = state.take_pending(newer) else { return };
            state.hold_back(path, &plugin.taken, why);
            state.live.get(name).map(|live| live.taken.sha256.clone())
        };
        if let Some(from) = from {
            self.give_up(name, &from, sha256, why);
        }
    }

    /// Lets a newer file wait: this station could not judge whether what runs fits it, and tries again by itself.
    pub(crate) fn judge_later(&self, newer: &Carrier, why: &str) {
        let mut state = self.state();
        let waits = state.pending.get(&newer.plugin).filter(|(_, plugin)| plugin.carrier() == *newer);
        let Some((path, plugin)) = waits.cloned() else { return };
        tracing::warn!(plugin = newer.plugin, sha256 = newer.sha256, why, "a newer plugin waits");
        let refusal = Refused { error: LoadError::StationFault(why.to_owned()), taken: Some(plugin.taken.clone()) };
        state.refused.insert(path, refusal);
        state.waits_for_the_station = true;
    }

    /// Offers what was offered before an upgrade that failed. Answers in words what goes on; nothing if there was no upgrade.
    pub(crate) fn revert(&self, name: &str, why: &str) -> Option<String> {
        let (from, failed) = {
            let mut state = self.state();
            let before = state.previous.remove(name)?;
            let from = before.taken.sha256.clone();
            let failed = state.live.get(name)?.clone();
            state.live.insert(name.to_owned(), before);
            state.hold_back(failed.file.clone(), &failed.taken, why);
            (from, failed)
        };
        self.give_up(name, &from, &failed.taken.sha256, why);
        let build: String = from.chars().take(12).collect();
        Some(format!("plugin {name} was not upgraded: {why}; the build before, {build}, goes on"))
    }
}
