//! Changes of what is offered: what a configuration asks for, newer builds, and back.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::Arc;

use quilt_protocol::{Digest, Name};

use super::{Catalog, Offered, Plugin};
use crate::plugins::{LoadError, fetch};

/// What would be offered under a configuration, and what of it could not be had.
pub(crate) struct Prepared {
    pub(crate) offered: Offered,
    /// Plugins of the configuration that are ready.
    assigned: Offered,
    /// Plugins that are not, by name, with the reason.
    pub(crate) lacking: Vec<(String, LoadError)>,
}

impl Catalog {
    /// Makes ready what a configuration asks for, fetching what is not here; nothing of it is offered yet.
    pub(crate) async fn prepare(&self, wanted: &BTreeMap<Name, Digest>) -> Prepared {
        let mut prepared = {
            let state = self.state();
            let mut offered = state.live.clone();
            for name in state.assigned.keys().filter(|name| !wanted.contains_key(name.as_str())) {
                match state.without(name) {
                    Some(plugin) => drop(offered.insert(name.clone(), plugin)),
                    None => drop(offered.remove(name)),
                }
            }
            Prepared { offered, assigned: BTreeMap::new(), lacking: Vec::new() }
        };
        for (name, sha256) in wanted {
            match self.wanted(name.as_str(), *sha256).await {
                Ok(plugin) => {
                    prepared.offered.insert(name.to_string(), plugin.clone());
                    prepared.assigned.insert(name.to_string(), plugin);
                }
                Err(error) => {
                    prepared.offered.remove(name.as_str());
                    prepared.lacking.push((name.to_string(), error));
                }
            }
        }
        prepared
    }

    /// Makes ready what an accepted configuration asks for. What was tried for it and given up is not tried again, and what
    /// cannot be loaded any more does not leave its role without a build: the one before goes on.
    pub(crate) async fn prepare_accepted(&self, wanted: &BTreeMap<Name, Digest>) -> Prepared {
        let mut prepared = self.prepare(wanted).await;
        for (name, sha256) in wanted {
            let (name, sha256) = (name.as_str(), sha256.to_string());
            let why = self.held_back.get(&sha256);
            let assigned = prepared.assigned.get(name);
            if assigned.is_some() && why.is_none() {
                continue;
            }
            let file = self.setup.folder.join(format!("{sha256}.so"));
            let Some(before) = self.before(name, &sha256, &file).await else { continue };
            if let (Some(assigned), Some(why)) = (assigned, why) {
                self.state().hold_back(file, &assigned.taken, &why);
            }
            prepared.offered.insert(name.to_owned(), before);
        }
        prepared
    }

    async fn wanted(&self, name: &str, sha256: Digest) -> Result<Arc<Plugin>, LoadError> {
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
        let path = {
            let _one_at_a_time = self.fetching.lock().await;
            fetch::fetch(&self.setup.link, sha256, &self.setup.folder).await?
        };
        let plugin = self.kept_copy(name, hash, &path).await?;
        self.check_roles(&plugin, &self.offered())?;
        Ok(Arc::new(plugin))
    }

    /// Offers what was prepared for a configuration that is accepted now.
    pub(crate) fn assign(&self, prepared: Prepared) {
        let hashes = |offered: &Offered| offered.values().map(|plugin| plugin.taken.sha256.clone()).collect::<Vec<_>>();
        let changed = {
            let mut state = self.state();
            let before = hashes(&state.live);
            for (name, plugin) in &prepared.offered {
                state.replace(name, plugin.clone());
            }
            state.live.retain(|name, _| prepared.offered.contains_key(name));
            state.assigned = prepared.assigned;
            // What was fetched and not taken is of no interest once nobody asks for it; files in folders are looked at again.
            let assigned: BTreeSet<_> = state.assigned.values().map(|plugin| plugin.taken.sha256.clone()).collect();
            state.refused.retain(|path, refused| {
                let is_asked_for = refused.taken.as_ref().is_some_and(|taken| assigned.contains(&taken.sha256));
                !path.starts_with(&self.setup.folder) || is_asked_for
            });
            before != hashes(&state.live)
        };
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
        wanted.len() == state.assigned.len() && wanted.iter().all(|(name, sha256)| is(&name.to_string(), sha256))
    }

    /// Newer files of plugins that are offered.
    pub(crate) fn pending(&self) -> Vec<(String, Arc<Plugin>)> {
        let state = self.state();
        state.pending.iter().map(|(name, (_, plugin))| (name.clone(), plugin.clone())).collect()
    }

    /// Offers a newer file instead of the one before.
    pub(crate) fn take_pending(&self, name: &str) {
        let mut state = self.state();
        if let Some((_, plugin)) = state.pending.remove(name) {
            tracing::info!(plugin = name, version = plugin.manifest.version, "a newer plugin is offered");
            state.replace(name, plugin);
        }
    }

    /// Leaves a newer file aside: what runs does not fit it.
    pub(crate) fn leave_pending(&self, name: &str, why: &str) {
        let mut state = self.state();
        if let Some((path, plugin)) = state.pending.remove(name) {
            self.held_back.put(&plugin.taken.sha256, why);
            state.hold_back(path, &plugin.taken, why);
        }
    }

    /// Offers what was offered before an upgrade that failed. Answers in words what goes on.
    pub(crate) fn revert(&self, name: &str, why: &str) -> String {
        let mut state = self.state();
        let Some(before) = state.previous.remove(name) else { return String::new() };
        let build: String = before.taken.sha256.chars().take(12).collect();
        if let Some(failed) = state.live.insert(name.to_owned(), before) {
            self.held_back.put(&failed.taken.sha256, why);
            state.hold_back(failed.file.clone(), &failed.taken, why);
        }
        format!("plugin {name} was not upgraded: {why}; the build before, {build}, goes on")
    }

    /// What is offered now was not given up: what was before is not needed any more.
    pub(crate) fn settled(&self) {
        let mut state = self.state();
        for (name, plugin) in &state.live {
            self.lasting.put(name, &plugin.taken.sha256);
        }
        self.held_back.forget(|sha256| state.live.values().any(|plugin| plugin.taken.sha256 == sha256));
        let before = std::mem::take(&mut state.previous);
        let plugins = [&state.live, &state.assigned, &state.found].into_iter().flat_map(Offered::values);
        let plugins = plugins.chain(state.pending.values().map(|(_, plugin)| plugin));
        let refused = state.refused.values().filter_map(|refused| refused.taken.as_ref());
        let known: BTreeSet<_> =
            plugins.map(|plugin| &plugin.taken).chain(refused).map(|taken| &taken.sha256).collect();
        for sha256 in before.values().map(|plugin| &plugin.taken.sha256).filter(|sha256| !known.contains(sha256)) {
            // Its copy would stay for ever. If it is mapped, that is not touched by this.
            for kind in ["so", "json"] {
                let _ = fs::remove_file(self.setup.folder.join(format!("{sha256}.{kind}")));
            }
        }
    }
}
