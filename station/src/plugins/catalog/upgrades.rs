//! Newer builds that are tried or were not taken, on record: the next start of the station goes on where this one is.

use std::collections::BTreeMap;

use quilt_protocol::control::Owner;

use super::state::State;
use super::{Catalog, Plugin};
use crate::plugins::kept::Upgrade;
use crate::spec::{Key, Spec};

/// A build that another takes the place of.
pub(super) struct Replaced {
    pub(super) plugin: String,
    pub(super) from: String,
    pub(super) to: String,
}

impl Catalog {
    /// Why a build is not to be tried, if it was given up.
    pub(super) fn given_up(&self, name: &str, sha256: &str) -> Option<String> {
        self.given_up_in(&self.state(), name, sha256)
    }

    /// The same for whoever has the state.
    pub(super) fn given_up_in(&self, state: &State, name: &str, sha256: &str) -> Option<String> {
        // What is being tried is on record as given up only for the next start of the station, and what is quarantined is
        // called so when it is loaded.
        if state.is_being_tried(name, sha256) || self.quarantine.get(sha256).is_some() {
            return None;
        }
        self.upgrades.get(sha256).filter(|upgrade| upgrade.plugin == name)?.given_up
    }

    /// A newer build is about to be tried, in the place of the one that these instances run on. A station that ends in the
    /// middle of it does not begin with it.
    pub(super) fn begin(&self, replaced: &Replaced, running: &[&Spec]) {
        let Replaced { plugin, from, to } = replaced;
        let is_on = |spec: &Spec| spec.carrier.as_ref().is_some_and(|carrier| carrier.plugin == *plugin);
        // What the host configures is read anew at every start.
        let running = running.iter().filter(|spec| is_on(spec) && spec.owner == Owner::Fleet);
        let upgrade = Upgrade {
            plugin: plugin.clone(),
            from: from.clone(),
            running: running.map(|spec| (*spec).clone()).collect(),
            given_up: Some("the station ended in the middle of the upgrade".into()),
        };
        let known = self.state().known();
        // Every build that fails would leave its own.
        self.upgrades.forget(|sha256, other| other.plugin == *plugin && !known.contains(sha256));
        self.upgrades.put(to, upgrade);
    }

    /// A newer build is not taken, now or until an operator says so.
    pub(super) fn not_taken(&self, replaced: &Replaced, given_up: Option<String>) {
        let Replaced { plugin, from, to } = replaced;
        let known = self.upgrades.get(to).filter(|known| known.from == *from);
        let running = known.map(|known| known.running).unwrap_or_default();
        self.upgrades.put(to, Upgrade { plugin: plugin.clone(), from: from.clone(), running, given_up });
    }

    /// A build of a plugin is taken: nothing has to be known of the others.
    pub(super) fn taken(&self, name: &str) {
        self.upgrades.forget(|_, upgrade| upgrade.plugin == name);
    }

    /// What goes on as it was, whatever the configuration says now: it was meant for a build that was not taken.
    pub(crate) fn held(&self) -> BTreeMap<Key, Spec> {
        let held: Vec<String> = {
            let state = self.state();
            let asked = state.assigned.iter().map(|(name, plugin)| (name, plugin.taken.sha256.clone()));
            let asked = asked.chain(state.stand_ins.iter().map(|(name, sha256)| (name, sha256.clone())));
            let is_live = |plugin: &Plugin, sha256: &str| plugin.taken.sha256 == *sha256;
            let held = asked.filter(|(name, sha256)| state.live.get(*name).is_some_and(|live| !is_live(live, sha256)));
            held.map(|(_, sha256)| sha256).collect()
        };
        let running = held.iter().filter_map(|sha256| self.upgrades.get(sha256)).flat_map(|upgrade| upgrade.running);
        running.map(|spec| (spec.key.clone(), spec)).collect()
    }
}
