//! Brings the instances of the station to what they should be, in a fixed order: stop what vanished, update what
//! changed, start what is new.

mod ending;
mod handle;
mod survivors;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use quilt_core::runtime;
use quilt_protocol::Digest;
use quilt_protocol::control::{Owner, Problem, ProblemCode, State};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub(crate) use self::ending::FORGOTTEN_STOP;
pub(crate) use self::handle::Handle;

use self::ending::sweep;
use self::handle::{Message, Needs, Orders, lock};
use self::survivors::Survivors;
use crate::board::Board;
use crate::commands::Commands;
use crate::instance::{self, Beginning, Ended, Order, Surroundings, Unwilling, Updated, moves};
use crate::plugins::Catalog;
use crate::role_table::RoleTable;
use crate::session::Link;
use crate::spec::{Key, Spec};
use crate::stopped::Stopped;

/// What a supervisor is made of.
pub(crate) struct Setup {
    pub(crate) folder: PathBuf,
    pub(crate) roles: Arc<RoleTable>,
    pub(crate) board: Arc<Board>,
    pub(crate) commands: Arc<Commands>,
    pub(crate) link: Arc<Link>,
    pub(crate) stopped: Arc<Stopped>,
}

/// Everything that should be, of all owners.
pub(crate) struct Target {
    pub(crate) specs: Vec<Spec>,
    /// Instances that cannot be, and why: their role was blocked or removed since they were accepted.
    pub(crate) impossible: Vec<Impossible>,
    /// The station has just started.
    pub(crate) resuming: bool,
    /// The digest of the configuration that asks for it; none if no manager does.
    pub(crate) digest: Option<Digest>,
    /// Has the plugins offered that the specifications are made for.
    pub(crate) plugins: Option<Offering>,
    /// Plugins whose newer build the configuration asks for in vain, and why.
    pub(crate) given_up: BTreeMap<String, String>,
    /// This is all that should run here. Not so when the record of it was damaged and the manager has not pushed yet.
    pub(crate) complete: bool,
}

/// An instance that cannot be now.
pub(crate) struct Impossible {
    pub(crate) spec: Spec,
    pub(crate) problem: Problem,
    /// The plugin that says that it has the role, and is still being loaded.
    pub(crate) loading: Option<String>,
}

/// Changes what a catalog offers.
pub(crate) type Offering = Box<dyn FnOnce(&Catalog) + Send>;

/// Starts the supervisor, with nothing to supervise yet.
pub(crate) fn start(setup: Setup) -> Handle {
    // Commits are rare; a sender waits.
    let (sender, inbox) = mpsc::channel(16);
    let (fail, failed) = watch::channel(None);
    let handle = Handle {
        sender,
        orders: Orders::default(),
        needs: Needs::default(),
        board: setup.board.clone(),
        stopped: setup.stopped.clone(),
        stopping: CancellationToken::new(),
        failed,
    };
    let stopped = setup.stopped.clone();
    let supervisor = Supervisor {
        around: Surroundings {
            folder: setup.folder,
            roles: setup.roles,
            board: setup.board,
            commands: setup.commands,
            link: setup.link,
        },
        stopped: setup.stopped,
        instances: BTreeMap::new(),
        orders: handle.orders.clone(),
        needs: handle.needs.clone(),
        ending: Vec::new(),
        late: Vec::new(),
        survivors: Survivors::default(),
        digest: None,
        impossible: BTreeSet::new(),
        sweep: Sweep::NotYet,
        stopping: handle.stopping.clone(),
        began: Instant::now(),
    };
    #[allow(clippy::disallowed_methods, reason = "it ends with shut_down, which is awaited")]
    let supervising = tokio::spawn(supervisor.run(inbox));
    #[allow(clippy::disallowed_methods, reason = "ends with the supervisor")]
    tokio::spawn(async move {
        let recording = runtime::keep_running("what operators stopped", || stopped.clone().keep());
        tokio::select! {
            ended = supervising => drop(fail.send(ended.err().map(|error| error.to_string()))),
            () = recording => {}
        }
    });
    handle
}

struct Entry {
    spec: Spec,
    orders: mpsc::Sender<Order>,
}

struct Supervisor {
    around: Surroundings,
    stopped: Arc<Stopped>,
    instances: BTreeMap<Key, Entry>,
    orders: Orders,
    needs: Needs,
    /// Told to end, and not waited for yet.
    ending: Vec<(Key, Duration, oneshot::Receiver<Ended>)>,
    /// Took too long to end.
    late: Vec<String>,
    /// Told to end, and still running in part.
    survivors: Survivors,
    /// Of the configuration that is being gone for.
    digest: Option<Digest>,
    /// Shown as failed because their role cannot be had.
    impossible: BTreeSet<Key>,
    sweep: Sweep,
    stopping: CancellationToken,
    /// When the station started.
    began: Instant,
}

/// How long after its start the instances of a station are given to begin, before they are moved to other builds: a start may take
/// as long.
const BEGINNING: Duration = Duration::from_secs(60);

/// How long the rest of a commit waits for instances that take a configuration in place.
const UPDATE_WAIT: Duration = Duration::from_secs(1);

/// The end of what an earlier station left of instances that should not be.
enum Sweep {
    NotYet,
    UnderWay(tokio::task::JoinHandle<()>),
    Done,
}

/// The station stops; what was being done is left to that.
struct Stopping;

impl Supervisor {
    async fn run(mut self, mut inbox: mpsc::Receiver<Message>) {
        while let Some(message) = inbox.recv().await {
            match message {
                Message::Commit(target) => {
                    // A station that stops begins with what was being tried, and with what waited behind it, once it starts anew.
                    if !self.stopping.is_cancelled() {
                        let _ = self.commit(target).await;
                    }
                    self.around.board.end_applying();
                }
                Message::ShutDown(detach, reply) => {
                    self.shut_down(detach).await;
                    let _ = reply.send(self.late);
                    return;
                }
            }
        }
    }

    async fn shut_down(&mut self, detach: bool) {
        // The end of this station is the last time that they are told, or the next station tells them.
        self.survivors.let_go();
        if !detach {
            // Those that were ending already.
            self.ended(false, None).await;
        }
        let all: BTreeSet<Key> = self.instances.keys().cloned().collect();
        for level in self.levels(&all) {
            self.tell_to_end(&level, detach).await;
            self.ended(detach, None).await;
        }
        if !detach {
            // Nothing is left behind, also of what could not be started in this station.
            if let Sweep::UnderWay(sweeping) = std::mem::replace(&mut self.sweep, Sweep::Done) {
                let _ = sweeping.await;
            }
            let survivors = sweep(self.around.clone(), BTreeSet::new()).await;
            self.late.extend(survivors.into_iter().map(|(key, _)| key.to_string()));
            self.late.sort();
            self.late.dedup();
        }
    }

    async fn commit(&mut self, target: Target) -> Result<(), Stopping> {
        let Target { specs, impossible, resuming, digest, plugins, given_up, complete } = target;
        // Not before: what an earlier commit moves is made of what was offered then.
        if let (Some(offer), Some(catalog)) = (plugins, self.around.roles.catalog()) {
            offer(catalog);
        }
        self.digest = digest;
        self.around.board.forget_held_back(digest);
        let mut wanted: BTreeMap<Key, Spec> = specs.into_iter().map(|spec| (spec.key.clone(), spec)).collect();
        self.hold(&mut wanted);
        let vanished: BTreeSet<Key> = self.instances.keys().filter(|key| !wanted.contains_key(*key)).cloned().collect();
        // First: a station that dies while it stops them must not take them for stopped by an operator.
        let known: BTreeSet<Key> = wanted.keys().chain(impossible.iter().map(|one| &one.spec.key)).cloned().collect();
        if complete {
            self.stopped.retain(|key| key.parse().is_ok_and(|key: Key| known.contains(&key)));
        }
        // As long as it is not known what should run here, what is found belongs to whoever is configured next.
        let resuming = resuming || matches!(self.sweep, Sweep::NotYet);
        for level in self.levels(&vanished) {
            self.tell_to_end(&level, false).await;
            self.wait_until_ended().await?;
        }
        self.show_impossible(&impossible);
        self.sweep_once(complete, known, &impossible).await?;

        let mut begin = self.update(&wanted).await?;
        // An upgrade may have failed: then this is what goes on without it.
        wanted.retain(|key, _| !self.instances.contains_key(key));
        self.hold(&mut wanted);
        self.show_held(&mut wanted);
        for (key, spec) in wanted {
            // What is left of an instance that was to go belongs to the one that is to be again.
            let resuming = self.survivors.take(&key) || resuming;
            let beginning = Beginning { resuming, stopped: self.stopped.contains(&key.to_string()) };
            let orders = instance::make(self.around.clone(), spec.clone(), beginning).await;
            lock(&self.orders).insert(key.clone(), orders.clone());
            self.instances.insert(key.clone(), Entry { spec, orders });
            begin.insert(key);
        }
        let needs = self.instances.iter().map(|(key, entry)| (key.clone(), entry.spec.settings.needs.clone()));
        *lock(&self.needs) = needs.collect();
        for key in begin {
            let _ = self.instances[&key].orders.send(Order::Go).await;
        }
        for (key, entry) in &self.instances {
            let why = entry.spec.carrier.as_ref().and_then(|carrier| given_up.get(&carrier.plugin));
            if let (Some(why), Some(digest)) = (why, digest) {
                self.around.board.update(key, |report| report.held_back = Some((digest, why.clone())));
            }
        }
        self.is_done(None);
        Ok(())
    }

    /// Has it on record what is in use, of one plugin or of all.
    fn is_done(&self, plugin: Option<&str>) {
        if let Some(catalog) = self.around.roles.catalog() {
            let running: Vec<&Spec> = self.instances.values().map(|entry| &entry.spec).collect();
            catalog.is_done(plugin, &running);
        }
    }

    /// Puts the specification that goes on in the place of one that is meant for another build of its plugin.
    fn hold(&self, wanted: &mut BTreeMap<Key, Spec>) {
        let Some(catalog) = self.around.roles.catalog() else { return };
        let mut held = catalog.held();
        let all: BTreeSet<Key> = wanted.keys().chain(self.instances.keys()).cloned().collect();
        for spec in wanted.values_mut() {
            // An upgrade that was under way while this was put together may have been given up since.
            let carrier = self.around.roles.carrier(&spec.key.role).or(spec.carrier.take());
            if let Some(mut held) = held.running.remove(&spec.key).filter(|held| held.owner == spec.owner) {
                // It may have needed what is gone.
                held.settings.needs.retain(|need| all.contains(&need.key));
                *spec = held;
            }
            spec.carrier = carrier;
        }
    }

    /// Takes out what would begin with a configuration that is meant for another build of its plugin, and says so.
    fn show_held(&mut self, wanted: &mut BTreeMap<Key, Spec>) {
        let Some(held) = self.around.roles.catalog().map(|catalog| catalog.held()) else { return };
        let is_held = |spec: &Spec| {
            let plugin = spec.carrier.as_ref().map(|carrier| &carrier.plugin)?;
            let waits = spec.owner == Owner::Fleet && !held.running.contains_key(&spec.key);
            held.plugins.get(plugin).filter(|_| waits).cloned()
        };
        wanted.retain(|key, spec| {
            let Some(plugin) = is_held(spec) else { return true };
            let why = format!("it is meant for a build of plugin {plugin} that was not taken");
            self.around.board.put(spec);
            self.around.board.state(key, State::Failed, why);
            self.impossible.insert(key.clone());
            false
        });
    }

    /// Ends what an earlier station left, beside what goes on: it can take its time. Commits that come later wait for it, since
    /// they may want what is just being ended.
    async fn sweep_once(
        &mut self,
        complete: bool,
        known: BTreeSet<Key>,
        impossible: &[Impossible],
    ) -> Result<(), Stopping> {
        match &mut self.sweep {
            Sweep::NotYet if complete => {
                // What cannot be judged now may be again; what is blocked may not run on.
                let blocked = impossible.iter().filter(|one| one.problem.code == ProblemCode::RoleBlocked);
                let blocked = blocked.map(|one| &one.spec.key);
                let blocked: BTreeSet<_> = blocked.cloned().collect();
                let mut keep: BTreeSet<_> = known.difference(&blocked).cloned().collect();
                keep.extend(self.instances.keys().cloned());
                #[allow(clippy::disallowed_methods, reason = "owned by the supervisor, bounded by the stop time-outs")]
                let sweeping = tokio::spawn({
                    let (around, survivors) = (self.around.clone(), self.survivors.clone());
                    async move {
                        for (key, why) in sweep(around.clone(), keep).await {
                            survivors.end(&around, &key, FORGOTTEN_STOP, why);
                        }
                    }
                });
                self.sweep = Sweep::UnderWay(sweeping);
            }
            Sweep::UnderWay(sweeping) => {
                tokio::select! {
                    _ = sweeping => self.sweep = Sweep::Done,
                    () = self.stopping.cancelled() => return Err(Stopping),
                }
            }
            Sweep::NotYet | Sweep::Done => {}
        }
        Ok(())
    }

    fn show_impossible(&mut self, impossible: &[Impossible]) {
        let before = std::mem::take(&mut self.impossible);
        self.impossible = impossible.iter().map(|one| one.spec.key.clone()).collect();
        before.difference(&self.impossible).for_each(|key| self.around.board.remove(key));
        for Impossible { spec, problem, loading } in impossible {
            self.around.board.put(spec);
            let (state, detail) = match loading {
                Some(plugin) => (State::Waiting, format!("plugin {plugin} is being loaded")),
                None => (State::Failed, problem.to_string()),
            };
            self.around.board.state(&spec.key, state, detail);
        }
    }

    /// Hands changed specifications over, to those that need others first. Names the instances that were stopped for theirs:
    /// they begin again only when all have let go of what they had, so that two can swap a port.
    async fn update(&mut self, wanted: &BTreeMap<Key, Spec>) -> Result<BTreeSet<Key>, Stopping> {
        let changed = self.instances.iter().filter(|(key, entry)| entry.spec != wanted[*key]);
        let (moved, changed): (Vec<_>, Vec<_>) =
            changed.partition(|(key, entry)| entry.spec.carrier != wanted[*key].carrier);
        let changed: BTreeSet<Key> = changed.into_iter().map(|(key, _)| key.clone()).collect();
        let mut plugins = BTreeMap::<String, Vec<Key>>::new();
        for (key, entry) in moved {
            let carrier = wanted[key].carrier.as_ref().or(entry.spec.carrier.as_ref());
            plugins.entry(carrier.map_or_else(String::new, |one| one.plugin.clone())).or_default().push(key.clone());
        }
        let mut paused = BTreeSet::new();
        for (plugin, keys) in plugins {
            paused.extend(self.upgrade(&plugin, keys, wanted).await?);
        }
        for level in self.levels(&changed) {
            let mut answers = Vec::new();
            for key in level {
                let answer = self.order(&key, wanted[&key].clone(), Unwilling::GoesOn).await;
                answers.push((key, answer));
            }
            let until = Instant::now() + UPDATE_WAIT;
            for (key, answer) in answers {
                let answer = tokio::select! {
                    answer = self.answered(answer) => answer?,
                    // It is ordered to begin in any case; an instance that goes on ignores that.
                    () = self.until_not_stopping(&key, until) => None,
                };
                if answer != Some(Updated::InPlace) {
                    paused.insert(key);
                }
            }
        }
        Ok(paused)
    }

    /// Moves the instances of a plugin to its other build, one by one; all of them back to the one before if any cannot.
    async fn upgrade(
        &mut self,
        plugin: &str,
        keys: Vec<Key>,
        wanted: &BTreeMap<Key, Spec>,
    ) -> Result<BTreeSet<Key>, Stopping> {
        self.until_begun(&keys).await?;
        // What runs comes first, since only that can say no: the rest is not touched before all of it has moved.
        let runs = |key: &Key| self.around.board.get(key).is_some_and(|report| report.state.is_healthy());
        let (first, last): (Vec<Key>, Vec<Key>) =
            keys.into_iter().partition(|key| runs(key) && moves(&self.instances[key].spec, &wanted[key]));
        let (mut paused, mut ordered) = (BTreeSet::new(), Vec::new());
        for key in first.iter().chain(&last) {
            let before = self.instances[key].spec.clone();
            let answer = self.order(key, wanted[key].clone(), Unwilling::GoesOn).await;
            match self.answered(answer).await? {
                Some(Updated::Refused(why)) => {
                    self.entry(key).spec = before;
                    let why = format!("{key}: {why}");
                    let text = self.around.roles.catalog().and_then(|catalog| catalog.revert(plugin, &why));
                    let text = text.unwrap_or(why);
                    for (key, before) in ordered.into_iter().rev() {
                        let answer = self.order(&key, before, Unwilling::Stops).await;
                        if self.answered(answer).await? != Some(Updated::InPlace) {
                            paused.insert(key);
                        }
                    }
                    let digest = self.digest;
                    for key in first.iter().chain(&last) {
                        let held_back = digest.map(|digest| (digest, text.clone()));
                        self.around.board.update(key, |report| report.held_back = held_back);
                    }
                    return Ok(paused);
                }
                Some(Updated::InPlace) => {}
                Some(Updated::Paused) | None => drop(paused.insert(key.clone())),
            }
            ordered.push((key.clone(), before));
        }
        for (key, _) in ordered {
            self.around.board.update(&key, |report| report.held_back = None);
        }
        self.is_done(Some(plugin));
        Ok(paused)
    }

    /// Waits, not long after the start of the station, until these have begun: what does not run can refuse nothing.
    async fn until_begun(&self, keys: &[Key]) -> Result<(), Stopping> {
        let mut changes = self.around.board.subscribe();
        loop {
            let begins = |key: &Key| {
                let report = self.around.board.get(key);
                report.is_some_and(|report| matches!(report.state, State::Waiting | State::Starting))
            };
            if !keys.iter().any(begins) {
                return Ok(());
            }
            tokio::select! {
                _ = changes.changed() => {}
                () = tokio::time::sleep_until(self.began + BEGINNING) => return Ok(()),
                () = self.stopping.cancelled() => return Err(Stopping),
            }
        }
    }

    /// Waits until the time `until`, and then while the instance is stopping. Whatever else the instance does holds up no other one.
    async fn until_not_stopping(&self, key: &Key, until: Instant) {
        tokio::time::sleep_until(until).await;
        let mut changes = self.around.board.subscribe();
        let stops = || self.around.board.get(key).is_some_and(|report| report.state == State::Stopping);
        while stops() && changes.changed().await.is_ok() {}
    }

    fn entry(&mut self, key: &Key) -> &mut Entry {
        self.instances.get_mut(key).expect("orders go to instances that are there")
    }

    /// Hands an instance another specification.
    async fn order(&mut self, key: &Key, spec: Spec, unwilling: Unwilling) -> oneshot::Receiver<Updated> {
        let (done, answer) = oneshot::channel();
        let entry = self.entry(key);
        let _ = entry.orders.send(Order::Update(Box::new(spec.clone()), unwilling, done)).await;
        entry.spec = spec;
        answer
    }

    async fn answered(&self, answer: oneshot::Receiver<Updated>) -> Result<Option<Updated>, Stopping> {
        tokio::select! {
            answer = answer => Ok(answer.ok()),
            () = self.stopping.cancelled() => Err(Stopping),
        }
    }
}

#[cfg(test)]
mod tests;
