//! What was in use last, on record, so that the next start of the station begins with it; and what was given up.
//!
//! A newer build is only ever tried in the place of one that runs. What a file or a configuration asks for is therefore not
//! begun with if the record says that another build was in use: that one is begun with, with the configuration that it had, and
//! the newer one is tried once it runs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use quilt_core::disk;
use quilt_protocol::control::Owner;
use quilt_protocol::{Digest, Name};

use super::state::State;
use super::{Catalog, Plugin, Seen};
use crate::plugins::LoadError;
use crate::plugins::intake::Taken;
use crate::plugins::kept::Settled;
use crate::spec::{Key, Spec};

/// What goes on as it was, whatever the configuration says now: that is meant for builds that were not taken.
#[derive(Default)]
pub(crate) struct Held {
    /// The plugins.
    pub(crate) plugins: BTreeSet<String>,
    /// Their instances.
    pub(crate) running: BTreeMap<Key, Spec>,
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
        let is_judged_anew = state.is_being_tried(name, sha256) || state.allowed.contains(sha256);
        if is_judged_anew || self.quarantine.get(sha256).is_some() {
            return None;
        }
        self.settled.get(name)?.given_up.remove(sha256)
    }

    /// Notes that a build is not to be tried any more in the place of `from`.
    pub(super) fn give_up(&self, name: &str, from: &str, sha256: &str, why: &str) {
        self.settled.change(|settled| {
            let new = || Settled { build: from.to_owned(), ..Settled::default() };
            let settled = settled.entry(name.to_owned()).or_insert_with(new);
            settled.given_up.insert(sha256.to_owned(), why.to_owned());
        });
        self.state().allowed.remove(sha256);
    }

    /// Notes that a build is about to be tried: a station that ends in the middle of it, for whatever reason, would otherwise
    /// end in the same way again and again.
    pub(super) fn begin(&self, name: &str, from: &str, sha256: &str) {
        self.give_up(name, from, sha256, "the station ended in the middle of the upgrade");
    }

    /// Has every given-up build tried once more. On record it stays given up until it was.
    pub(super) fn allow_again(&self) {
        let given_up = self.settled.all().into_values().flat_map(|settled| settled.given_up.into_keys());
        self.state().allowed.extend(given_up);
    }

    /// The plugin is not here any more.
    pub(super) fn forget(&self, names: &BTreeSet<String>) {
        self.settled.forget(|name| names.contains(name));
    }

    /// The build that was in use last, if it is another than this one: what runs, or at the start of the station what ran.
    /// `file` is what it stands for.
    pub(super) async fn proven(self: &Arc<Self>, name: &str, other_than: &str, file: &Path) -> Option<Arc<Plugin>> {
        let runs = {
            let state = self.state();
            state.previous.get(name).or_else(|| state.live.get(name)).cloned()
        };
        if let Some(runs) = runs {
            return Some(runs).filter(|runs| runs.taken.sha256 != other_than);
        }
        let sha256 = self.settled.get(name)?.build;
        if sha256 == other_than {
            return None;
        }
        let copy = self.setup.folder.join(format!("{sha256}.so"));
        // What was pushed stands for itself.
        let file = if file.starts_with(&self.setup.folder) { &copy } else { file };
        match self.kept_copy(name, sha256.clone(), file, true).await {
            Ok(plugin) => {
                tracing::info!(plugin = name, sha256, "begins with the build that ran before");
                Some(plugin)
            }
            Err(error) => {
                let code = error.code();
                tracing::error!(plugin = name, sha256, code, "the build that ran before cannot go on: it {error}");
                None
            }
        }
    }

    /// What is not to be changed: its plugin is another build than the configuration asks for.
    pub(crate) fn held(&self) -> Held {
        let mut held = Held::default();
        {
            let state = self.state();
            let asked = state.assigned.iter().map(|(name, plugin)| (name, &plugin.taken.sha256));
            for (name, sha256) in asked.chain(&state.stand_ins) {
                if state.live.get(name).is_some_and(|live| live.taken.sha256 != *sha256) {
                    held.plugins.insert(name.clone());
                }
            }
        }
        let running = held.plugins.iter().filter_map(|name| self.settled.get(name)).flat_map(|one| one.running);
        held.running = running.map(|spec| (spec.key.clone(), spec)).collect();
        held
    }

    /// All is done that was asked for, of this plugin or of all, and these are the instances: the record says so, and what was
    /// replaced is not needed any more.
    pub(crate) fn is_done(&self, plugin: Option<&str>, running: &[&Spec]) {
        let is_meant = |name: &String| plugin.is_none_or(|plugin| plugin == name);
        let (replaced, live, known, begun) = {
            let mut state = self.state();
            let live = state.live.iter().filter(|(name, _)| is_meant(name));
            let live: BTreeMap<String, Arc<Plugin>> = live.map(|(name, live)| (name.clone(), live.clone())).collect();
            let (replaced, rest) =
                std::mem::take(&mut state.previous).into_iter().partition(|(name, _)| is_meant(name));
            state.previous = rest;
            let replaced: BTreeMap<String, Arc<Plugin>> = replaced;
            for live in live.values() {
                let is_it = |taken: &Taken| taken.sha256 == live.taken.sha256;
                let is_shadowed = |error: &LoadError| matches!(error, LoadError::Shadowed { .. });
                state
                    .refused
                    .retain(|_, refused| is_shadowed(&refused.error) || !refused.taken.as_ref().is_some_and(is_it));
                state.allowed.remove(&live.taken.sha256);
            }
            let begun = plugin.is_none() && !std::mem::take(&mut state.begun_with).is_empty();
            (replaced, live, state.known(), begun)
        };
        let looked = *self.looked.borrow();
        let is_kept = self.settled.change(|settled| {
            for (name, live) in live {
                let (build, file) = (live.taken.sha256.clone(), live.file.clone());
                let is_on = |spec: &Spec| spec.carrier.as_ref().is_some_and(|carrier| carrier.plugin == name);
                // What the host configures is read anew at every start.
                let running = running.iter().filter(|spec| is_on(spec) && spec.owner == Owner::Fleet);
                let mut given_up = settled.remove(&name).map(|before| before.given_up).unwrap_or_default();
                given_up.retain(|sha256, _| *sha256 != build && (known.contains(sha256) || !looked));
                let running = running.map(|spec| (*spec).clone()).collect();
                settled.insert(name, Settled { build, file, running, given_up });
            }
        });
        if is_kept {
            self.state().stale.extend(replaced.into_values());
        }
        if begun {
            // What is newer has its turn.
            self.changed.send_modify(|count| *count += 1);
        }
    }

    /// Removes the private copies of builds that were replaced and that nobody holds any more: they would stay for ever. If one is
    /// mapped, that is not touched by this. Not while a file is being taken in or a plugin is being asked for, which is known only
    /// later. `seen` is what was taken in from folders and may be loaded at any time.
    pub(super) async fn remove_stale(&self, seen: &BTreeMap<PathBuf, Seen>) {
        let Ok(_nobody_asks) = self.asking.try_write() else { return };
        let copies: Vec<_> = self.take_stale(seen).iter().flat_map(|sha256| self.copies(sha256)).collect();
        if !copies.is_empty() {
            disk::run(move || copies.iter().for_each(|copy| drop(fs::remove_file(copy)))).await;
        }
    }

    /// The hashes of the builds whose private copies can go.
    fn take_stale(&self, seen: &BTreeMap<PathBuf, Seen>) -> Vec<String> {
        let mut state = self.state();
        if state.stale.is_empty() {
            return Vec::new();
        }
        let known = state.known();
        let seen: BTreeSet<_> =
            seen.values().filter_map(|seen| Some(&seen.taken.as_ref()?.as_ref().ok()?.sha256)).collect();
        let stale = std::mem::take(&mut state.stale);
        let unknown = stale.into_iter().filter(|plugin| !known.contains(&plugin.taken.sha256));
        // A change that waits for its turn may go back to it, or to what was made ready from the same copy.
        let is_held = |plugin: &Arc<Plugin>| {
            let sha256 = &plugin.taken.sha256;
            Arc::strong_count(plugin) > 1 || state.is_prepared(sha256) || seen.contains(sha256)
        };
        let (held, stale): (Vec<_>, Vec<_>) = unknown.partition(is_held);
        state.stale = held;
        stale.iter().map(|plugin| plugin.taken.sha256.clone()).collect()
    }

    /// Forgets what there is no plugin of any more, and removes private copies that nothing refers to; not while the folders
    /// are looked at. To be called while nothing is fetched or planned.
    pub(crate) fn sweep(&self, asked: &BTreeMap<Name, Digest>) {
        let Ok(no_looks) = self.looking.try_lock() else { return };
        if !*self.looked.borrow() {
            return;
        }
        let is_there = |name: &str, settled: &Settled| {
            asked.contains_key(name) || no_looks.contains_key(&settled.file) || self.state().live.contains_key(name)
        };
        let gone = self.settled.all().into_iter().filter(|(name, settled)| !is_there(name, settled));
        self.forget(&gone.map(|(name, _)| name).collect());
        let asked: BTreeSet<String> = asked.values().map(ToString::to_string).collect();
        let mut keep = self.state().known();
        for settled in self.settled.all().into_values() {
            keep.insert(settled.build);
        }
        let entries = disk::in_place(|| fs::read_dir(&self.setup.folder)).into_iter().flatten().flatten();
        for entry in entries {
            let path = entry.path();
            let is_copy = path.extension().is_some_and(|kind| kind == "so" || kind == "json" || kind == "part");
            let name = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
            if is_copy && name.len() == 64 && !keep.contains(name) && !asked.contains(name) {
                let _ = fs::remove_file(&path);
            }
        }
    }

    fn copies(&self, sha256: &str) -> [PathBuf; 2] {
        ["so", "json"].map(|kind| self.setup.folder.join(format!("{sha256}.{kind}")))
    }
}
