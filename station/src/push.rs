//! What should run here: what the host configures, and what was accepted of a manager.

mod offers;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use quilt_core::{disk, time};
use quilt_protocol::Digest;
use quilt_protocol::control::{Applied, Document, Owner, Problem, ProblemCode, instance_digest};
use tokio::sync::{Mutex, MutexGuard};

use crate::board::Board;
use crate::folders;
use crate::instance::{self, Surroundings};
use crate::local::{self, Local};
use crate::plan::{self, Read};
use crate::plugins::{Catalog, Offered, Plugin};
use crate::role_table::RoleTable;
use crate::saved::Saved;
use crate::session::Link;
use crate::spec::{Key, Spec};
use crate::supervisor::{self, FORGOTTEN_STOP, Impossible, Offering, Target};

/// When the folders of removed instances are looked at after the start of the station, and then again and again.
const FIRST_SWEEP: Duration = Duration::from_secs(60);
const SWEEP_INTERVAL: Duration = Duration::from_secs(3600);
/// Where they are kept for less than that, they are looked at so often, but not more often than this.
const SWEEP_INTERVAL_MIN: Duration = Duration::from_secs(1);

/// The one place that decides what the station should run.
pub(crate) struct Push {
    saved: Mutex<Saved>,
    /// What was accepted last; known without waiting for what is being thought about.
    applied: std::sync::Mutex<Option<Applied>>,
    /// Instances of it that cannot run, with the digests of their configurations.
    impossible: std::sync::Mutex<BTreeMap<Key, Digest>>,
    /// The fleet's instances of it.
    accepted: std::sync::Mutex<BTreeSet<Key>>,
    /// What the host configures; replaced as a whole.
    local: std::sync::Mutex<Arc<Local>>,
    roles: Arc<RoleTable>,
    supervisor: supervisor::Handle,
    link: Arc<Link>,
    board: Arc<Board>,
}

impl Push {
    /// Starts what was accepted before, and what the host configures, without waiting for a manager.
    pub(crate) async fn start(
        saved: Saved,
        local: Local,
        roles: Arc<RoleTable>,
        supervisor: supervisor::Handle,
        link: &Arc<Link>,
        board: &Arc<Board>,
    ) -> Arc<Self> {
        let applied = saved.accepted.as_ref().map(|accepted| accepted.applied).into();
        let local = std::sync::Mutex::new(Arc::new(local));
        let push = Self {
            saved: Mutex::new(saved),
            applied,
            impossible: Default::default(),
            accepted: Default::default(),
            local,
            roles,
            supervisor,
            link: link.clone(),
            board: board.clone(),
        };
        let saved = push.saved.lock().await;
        let target = push.accepted_target(&saved, true).await;
        push.supervisor.commit(target).await;
        if let Some(catalog) = push.roles.catalog() {
            catalog.sweep(&saved.document().plugins);
        }
        drop(saved);
        Arc::new(push)
    }

    /// What the host configures and what was accepted, as far as it can run now.
    async fn accepted_target(&self, saved: &Saved, starting: bool) -> Target {
        let document = saved.document();
        let (roles, plugins, given_up) = self.offering(&document, starting).await;
        // What was accepted holds until the next push, which would be refused for the clash.
        let local = self.local();
        let mut fits = local.document.clone();
        let mut remarks = local.problems.clone();
        remarks.extend(take_clashes(&mut fits, &document, &local));
        if !starting {
            remarks.extend(self.mistakes(&fits, &local, &roles).await);
        }
        for remark in self.board.remark(remarks) {
            tracing::error!("{remark}");
        }
        let mut target = self.target(&fits, local.whole, &roles).await;
        // Lenient: what cannot run any more is shown as failed and holds nothing up.
        self.add(&mut target, &document, Owner::Fleet, &roles).await;
        self.note_impossible(&document, &target.impossible);
        self.note_accepted(&target.specs, &target.impossible);
        target.complete &= !saved.damaged;
        target.resuming = starting;
        target.digest = saved.accepted.as_ref().map(|accepted| accepted.applied.digest);
        (target.plugins, target.given_up) = (plugins, given_up);
        target
    }

    /// The roles that an accepted configuration can have now, and how they come to be offered: its own plugins as far as they
    /// can be had, and newer files of others if what runs can be configured with them.
    async fn offering(
        &self,
        document: &Document,
        starting: bool,
    ) -> (RoleTable, Option<Offering>, BTreeMap<String, String>) {
        let Some(catalog) = self.roles.catalog() else {
            return (self.roles.as_ref().clone(), None, BTreeMap::new());
        };
        let mut prepared = match catalog.has(&document.plugins) {
            true => None,
            false => Some(catalog.prepare_accepted(&document.plugins, starting).await),
        };
        for (plugin, error) in prepared.iter().flat_map(|prepared| &prepared.lacking) {
            tracing::error!(plugin, code = error.code(), "a plugin of the configuration is not used: it {error}");
        }
        let mut offered = prepared.as_ref().map_or_else(|| catalog.offered(), |prepared| prepared.offered.clone());
        let mut newer = Vec::new();
        // What is newer is tried in the place of something that runs.
        for (name, plugin) in catalog.pending().into_iter().filter(|_| !starting) {
            let newest = plugin.carrier();
            let asked_for = document.plugins.get(name.as_str());
            if asked_for.is_some_and(|sha256| sha256.to_string() != newest.sha256) {
                continue;
            }
            match self.misfit(document, &offered, &name, plugin.clone()).await {
                None => {
                    offered.insert(name.clone(), plugin);
                    newer.push(newest);
                }
                Some(problem) if problem.code == ProblemCode::StationFault => {
                    catalog.judge_later(&newest, &problem.to_string());
                }
                Some(problem) => catalog.leave_pending(&newest, &problem.to_string()),
            }
        }
        let given_up = prepared.as_mut().map(|prepared| std::mem::take(&mut prepared.given_up)).unwrap_or_default();
        let offer = move |catalog: &Catalog| {
            if let Some(prepared) = prepared {
                catalog.assign(prepared);
            }
            newer.iter().for_each(|newest| catalog.take_pending(newest));
        };
        (self.roles.with(offered), Some(Box::new(offer)), given_up)
    }

    /// There is a manager: it may have what was lacking.
    pub(crate) fn connected(self: &Arc<Self>) {
        let push = self.clone();
        #[allow(clippy::disallowed_methods, reason = "bounded by the time-outs of fetching")]
        tokio::spawn(async move {
            let lacks = {
                let saved = push.saved.lock().await;
                push.roles.catalog().is_some_and(|catalog| !catalog.has(&saved.document().plugins))
            };
            if lacks {
                push.reconsider().await;
            }
        });
    }

    /// Starts what could not run until now and can: the station's roles have changed. Also takes newer
    /// files of plugins that are in use.
    pub(crate) async fn reconsider(&self) {
        let saved = self.saved.lock().await;
        let Some(place) = self.supervisor.reserve().await else { return };
        let target = self.accepted_target(&saved, false).await;
        place.commit(target);
    }

    /// What would be wrong with an instance that is fine now, if a plugin were another; or what keeps this station from knowing that.
    async fn misfit(&self, document: &Document, offered: &Offered, name: &str, newer: Arc<Plugin>) -> Option<Problem> {
        let now = self.roles.with(offered.clone());
        let mut offered = offered.clone();
        let before = offered.insert(name.to_owned(), newer);
        let concerned = |key: &Key| before.as_ref().is_some_and(|before| before.offers(key.role.as_str()));
        let would = self.roles.with(offered);
        let local = self.local();
        let mut unknown = None;
        for (document, owner) in [(&local.document, Owner::Local), (document, Owner::Fleet)] {
            let now = plan::read(&self.link.name(), document, owner, &now, concerned).await;
            let then = plan::read(&self.link.name(), document, owner, &would, concerned).await;
            for (now, then) in now.into_iter().zip(then) {
                if !concerned(&now.key) || then.problems.is_empty() {
                    continue;
                }
                let is_fine_now = now.problems.is_empty();
                let mut problems = then.problems.into_iter();
                let fault = now.problems.into_iter().chain(problems.clone());
                match fault.into_iter().find(|problem| problem.code == ProblemCode::StationFault) {
                    Some(fault) => unknown = Some(fault),
                    None if is_fine_now => return problems.next(),
                    None => {}
                }
            }
        }
        unknown
    }

    /// What is wrong with instances of drop-in files: the roles are asked too. They are tried all the same, as their restart policy
    /// says, because what a role misses may come.
    async fn mistakes(&self, document: &Document, local: &Local, roles: &RoleTable) -> Vec<String> {
        let read = plan::read(&self.link.name(), document, Owner::Local, roles, |_| true).await;
        let wrong =
            read.into_iter().flat_map(|one| one.problems.into_iter().map(move |problem| (one.key.clone(), problem)));
        let wrong = wrong.filter(|(_, problem)| self.loading(problem).is_none());
        wrong.filter_map(|(key, problem)| Some(format!("{}: {problem}", local.file_of(&key)?.display()))).collect()
    }

    fn local(&self) -> Arc<Local> {
        self.local.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes what the host configures now. If one file cannot be read, all stay as they were read last: what a broken file
    /// configures runs on until the file says something else.
    pub(crate) fn reload(self: &Arc<Self>, folder: &Path) {
        let mut local = local::read(folder);
        if !local.whole {
            let problems = local.problems.into_iter();
            let problems =
                problems.map(|why| format!("{why}; until it is mended the drop-in files read before stay in force"));
            let problems = problems.collect();
            local = self.local().as_ref().clone();
            local.problems = problems;
        }
        *self.local.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(local);
        let push = self.clone();
        #[allow(clippy::disallowed_methods, reason = "bounded by the time-outs of judging a configuration")]
        tokio::spawn(async move { push.reconsider().await });
    }

    /// What the host configures, as `local` has it, which may not be `complete`.
    async fn target(&self, local: &Document, complete: bool, roles: &RoleTable) -> Target {
        let mut target = Target {
            specs: Vec::new(),
            impossible: Vec::new(),
            resuming: true,
            digest: None,
            plugins: None,
            given_up: BTreeMap::new(),
            complete,
        };
        self.add(&mut target, local, Owner::Local, roles).await;
        target
    }

    async fn add(&self, target: &mut Target, document: &Document, owner: Owner, roles: &RoleTable) {
        // Roles are not asked again: what was accepted is tried, and whoever cannot start says so, and tries again as its policy
        // says. Something that goes wrong meanwhile must not end what runs well.
        for Read { key, spec, mut problems } in plan::read(&self.link.name(), document, owner, roles, |_| false).await {
            match spec.filter(|_| problems.is_empty()) {
                Some(spec) => target.specs.push(spec),
                None => {
                    let problem = problems.swap_remove(0);
                    let loading = self.loading(&problem);
                    if loading.is_none() {
                        tracing::error!(instance = %key, %problem, "cannot run");
                    }
                    let spec = Spec::placeholder(key, owner);
                    target.impossible.push(Impossible { spec, problem, loading });
                }
            }
        }
    }

    /// The plugin whose roles are only about to be known, if that is what is wrong.
    fn loading(&self, problem: &Problem) -> Option<String> {
        let is_missing = problem.code == ProblemCode::MissingRoleFactory;
        self.roles.catalog().filter(|_| is_missing)?.loads(&problem.role)
    }

    /// Remembers which instances of the accepted configuration cannot run.
    fn note_impossible(&self, document: &Document, impossible: &[Impossible]) {
        let specs = impossible.iter().map(|one| &one.spec).filter(|spec| spec.owner == Owner::Fleet);
        let known = specs.filter_map(|spec| {
            let config = document.roles.get(&spec.key.role)?.get(&spec.key.instance)?;
            Some((spec.key.clone(), instance_digest(config)))
        });
        *self.impossible.lock().unwrap_or_else(PoisonError::into_inner) = known.collect();
    }

    /// Remembers which instances of the station are the fleet's.
    fn note_accepted(&self, specs: &[Spec], impossible: &[Impossible]) {
        let all = specs.iter().chain(impossible.iter().map(|one| &one.spec));
        let fleet = all.filter(|spec| spec.owner == Owner::Fleet).map(|spec| spec.key.clone());
        *self.accepted.lock().unwrap_or_else(PoisonError::into_inner) = fleet.collect();
    }

    /// The configuration accepted last.
    pub(crate) fn applied(&self) -> Option<Applied> {
        *self.applied.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The document accepted last, for a manager that adopts what runs here.
    pub(crate) async fn document(&self) -> String {
        let saved = self.saved.lock().await;
        saved.accepted.as_ref().map_or_else(|| Document::default().to_json(), |accepted| accepted.document.clone())
    }

    /// All instances that are configured; no other configuration is accepted while the first is held.
    pub(crate) async fn configured(&self) -> (MutexGuard<'_, Saved>, BTreeSet<Key>) {
        let saved = self.saved.lock().await;
        let (fleet, local) = (saved.document(), self.local());
        let both = fleet.roles.iter().chain(&local.document.roles);
        let keys = both.flat_map(|(role, instances)| {
            instances.keys().map(|instance| Key { role: role.clone(), instance: instance.clone() })
        });
        let keys = keys.collect();
        (saved, keys)
    }

    /// Deletes folders of removed instances for ever, as [`folders::expired`] says.
    pub(crate) async fn sweep_folders(self: Arc<Self>, around: Surroundings, keep: Duration) {
        let shortest = keep.max(SWEEP_INTERVAL_MIN);
        let mut pause = FIRST_SWEEP.min(shortest);
        loop {
            tokio::time::sleep(pause).await;
            pause = SWEEP_INTERVAL.min(shortest);
            let configured = self.configured().await.1;
            let (folder, board) = (around.folder.clone(), around.board.clone());
            let is_used = move |key: &Key| configured.contains(key) || board.get(key).is_some();
            let all = disk::run(move || folders::list(&folder, is_used)).await;
            for key in folders::expired(&all, keep, time::now_ms()) {
                // What cannot be known to be unused is left alone, and tried again.
                if let Err(why) = self.purge(&around, vec![key]).await {
                    tracing::warn!(why, "the folder of a removed instance is not deleted");
                }
            }
        }
    }

    /// Deletes the folders of instances that were removed, and ends what may be left of them; all or none.
    ///
    /// # Errors
    ///
    /// Why nothing was deleted, or what was not.
    pub(crate) async fn purge(&self, around: &Surroundings, keys: Vec<Key>) -> Result<(), String> {
        let (saved, configured) = self.configured().await;
        if saved.damaged || !self.local().whole {
            return Err(
                "it is not known all that should run here; see the station's log for the file that cannot be read"
                    .into(),
            );
        }
        for key in &keys {
            if configured.contains(key) || around.board.get(key).is_some() {
                return Err(format!("{key} is in use; remove it from the configuration first"));
            }
            let folder = instance::instance_dir(&around.folder, key);
            if !disk::run(move || folder.is_dir()).await {
                return Err(format!("there is no folder of {key}"));
            }
        }
        let mut aside = Vec::new();
        for key in keys {
            let ended = instance::abandon(around, &key, FORGOTTEN_STOP).await;
            ended.map_err(|why| format!("what is left of {key} did not end: {why}"))?;
            let path = {
                let (folder, key) = (around.folder.clone(), key.clone());
                disk::run(move || folders::set_aside(&folder, &key)).await
            };
            let path = path.map_err(|error| format!("the folder of {key}: {error}"))?;
            tracing::info!(instance = %key, "the folder of a removed instance is deleted");
            aside.push(path);
        }
        drop(saved);
        let deleted = disk::run(move || aside.iter().try_for_each(std::fs::remove_dir_all)).await;
        deleted.map_err(|error| format!("not all of it could be deleted: {error}"))
    }
}

/// Leaves out what the fleet configures already; returns a remark about each.
fn take_clashes(document: &mut Document, fleet: &Document, local: &Local) -> Vec<String> {
    let mut remarks = Vec::new();
    for (role, instances) in &mut document.roles {
        let theirs = fleet.roles.get(role);
        instances.retain(|instance, _| {
            let clash = theirs.is_some_and(|theirs| theirs.contains_key(instance));
            let key = Key { role: role.clone(), instance: instance.clone() };
            if let Some(file) = local.file_of(&key).filter(|_| clash) {
                let file = file.display();
                remarks.push(format!(
                    "{file}: {key} is in the fleet's configuration too, which runs; rename or remove one, because the next push will \
                     be refused"
                ));
            }
            !clash
        });
    }
    remarks
}
