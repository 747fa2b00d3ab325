//! Brings the instances of the station to what they should be, in a fixed order: stop what vanished, update what
//! changed, start what is new.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use quilt_protocol::control::{Action, Problem, ProblemCode, State};
use tokio::sync::{mpsc, oneshot};

use crate::board::Board;
use crate::commands::Commands;
use crate::instance::{self, Beginning, Ended, Order, Surroundings, Updated};
use crate::plan::RoleTable;
use crate::saved::Stopped;
use crate::session::Link;
use crate::spec::{Key, Spec};

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
    pub(crate) impossible: Vec<(Spec, Problem)>,
    /// The station has just started.
    pub(crate) resuming: bool,
    /// This is all that should run here. Not so when the record of it was damaged and the manager has not pushed yet.
    pub(crate) complete: bool,
}

enum Message {
    Commit(Target),
    Operator(Key, Action, oneshot::Sender<Result<(), String>>),
    ShutDown(bool, oneshot::Sender<Vec<String>>),
}

/// Talks to the supervisor.
#[derive(Clone)]
pub(crate) struct Handle {
    sender: mpsc::Sender<Message>,
}

impl Handle {
    /// Goes for `target`. Returns at once; the board shows progress.
    pub(crate) async fn commit(&self, target: Target) {
        if let Some(place) = self.reserve().await {
            place.commit(target);
        }
    }

    /// A place for one commit, to be taken before something is done that the commit must follow. None once the station
    /// stops.
    pub(crate) async fn reserve(&self) -> Option<Place<'_>> {
        self.sender.reserve().await.ok().map(Place)
    }

    /// Does what an operator wants with one instance.
    pub(crate) async fn operate(&self, key: Key, action: Action) -> Result<(), String> {
        let (reply, answer) = oneshot::channel();
        let _ = self.sender.send(Message::Operator(key, action, reply)).await;
        answer.await.unwrap_or_else(|_| Err("the station is stopping".into()))
    }

    /// Ends every instance in order, or lets go of those that can outlive the station. Names those that were late.
    pub(crate) async fn shut_down(&self, detach: bool) -> Vec<String> {
        let (reply, answer) = oneshot::channel();
        let _ = self.sender.send(Message::ShutDown(detach, reply)).await;
        answer.await.unwrap_or_default()
    }
}

/// See [`Handle::reserve`].
pub(crate) struct Place<'a>(mpsc::Permit<'a, Message>);

impl Place<'_> {
    pub(crate) fn commit(self, target: Target) {
        self.0.send(Message::Commit(target));
    }
}

/// Starts the supervisor, with nothing to supervise yet.
pub(crate) fn start(setup: Setup) -> Handle {
    // Commits and operators' wishes are rare; a sender waits.
    let (sender, inbox) = mpsc::channel(16);
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
        impossible: BTreeSet::new(),
        swept: false,
    };
    #[allow(clippy::disallowed_methods, reason = "it ends with shut_down, which is awaited")]
    tokio::spawn(supervisor.run(inbox));
    Handle { sender }
}

struct Entry {
    spec: Spec,
    orders: mpsc::Sender<Order>,
}

struct Supervisor {
    around: Surroundings,
    stopped: Arc<Stopped>,
    instances: BTreeMap<Key, Entry>,
    /// Shown as failed because their role cannot be had.
    impossible: BTreeSet<Key>,
    /// What an earlier station left of instances that should not be has been ended.
    swept: bool,
}

/// How long what an earlier station left of a forgotten instance may take to stop.
const FORGOTTEN_STOP: Duration = Duration::from_secs(10);

impl Supervisor {
    async fn run(mut self, mut inbox: mpsc::Receiver<Message>) {
        while let Some(message) = inbox.recv().await {
            match message {
                Message::Commit(target) => self.commit(target).await,
                Message::Operator(key, action, reply) => self.operate(&key, action, reply).await,
                Message::ShutDown(detach, reply) => {
                    let all = self.instances.keys().cloned().collect();
                    let late = self.end(&all, detach).await;
                    if !detach {
                        // Nothing is left behind, also of what could not be started in this station.
                        self.sweep(&BTreeSet::new()).await;
                    }
                    let _ = reply.send(late);
                    return;
                }
            }
        }
    }

    async fn commit(&mut self, target: Target) {
        self.around.board.applying(true);
        let Target { specs, impossible, resuming, complete } = target;
        let wanted: BTreeMap<Key, Spec> = specs.into_iter().map(|spec| (spec.key.clone(), spec)).collect();
        let vanished: BTreeSet<Key> = self.instances.keys().filter(|key| !wanted.contains_key(*key)).cloned().collect();
        // First: a station that dies while it stops them must not take them for stopped by an operator.
        let known: BTreeSet<Key> = wanted.keys().chain(impossible.iter().map(|(spec, _)| &spec.key)).cloned().collect();
        if complete {
            self.stopped.retain(|key| key.parse().is_ok_and(|key: Key| known.contains(&key)));
        }
        // As long as it is not known what should run here, what is found belongs to whoever is configured next.
        let resuming = resuming || !self.swept;
        self.end(&vanished, false).await;
        self.show_impossible(&impossible);
        if complete && !std::mem::replace(&mut self.swept, true) {
            // What cannot be judged now may be again; what is blocked may not run on.
            let blocked = |problem: &Problem| problem.code == ProblemCode::RoleBlocked;
            let blocked = impossible.iter().filter(|(_, problem)| blocked(problem)).map(|(spec, _)| &spec.key);
            let blocked: BTreeSet<_> = blocked.cloned().collect();
            self.sweep(&known.difference(&blocked).cloned().collect()).await;
        }

        let mut begin = self.update(&wanted).await;
        for (key, spec) in wanted {
            if !self.instances.contains_key(&key) {
                let beginning = Beginning { resuming, stopped: self.stopped.contains(&key.to_string()) };
                let orders = instance::make(self.around.clone(), spec.clone(), beginning);
                self.instances.insert(key.clone(), Entry { spec, orders });
                begin.insert(key);
            }
        }
        for key in begin {
            let _ = self.instances[&key].orders.send(Order::Go).await;
        }
        self.around.board.applying(false);
    }

    /// Ends what an earlier station left of instances other than these.
    async fn sweep(&self, keep: &BTreeSet<Key>) {
        let folders = |path: &Path| std::fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
        for instance in folders(&self.around.folder).flat_map(|role| folders(&role).collect::<Vec<_>>()) {
            let name = |path: &Path| path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
            let role = instance.parent().map(name).unwrap_or_default();
            let Ok(key) = format!("{role}/{}", name(&instance)).parse::<Key>() else { continue };
            if !keep.contains(&key) && !self.instances.contains_key(&key) {
                instance::abandon(&self.around, &key, FORGOTTEN_STOP).await;
            }
        }
    }

    fn show_impossible(&mut self, impossible: &[(Spec, Problem)]) {
        let before = std::mem::take(&mut self.impossible);
        self.impossible = impossible.iter().map(|(spec, _)| spec.key.clone()).collect();
        before.difference(&self.impossible).for_each(|key| self.around.board.remove(key));
        for (spec, problem) in impossible {
            self.around.board.put(spec);
            self.around.board.state(&spec.key, State::Failed, problem.to_string());
        }
    }

    /// Hands changed specifications over, all at once. Names the instances that were stopped for theirs: they begin
    /// again only when all have let go of what they had, so that two can swap a port.
    async fn update(&mut self, wanted: &BTreeMap<Key, Spec>) -> BTreeSet<Key> {
        let mut answers = Vec::new();
        for (key, entry) in &mut self.instances {
            let spec = &wanted[key];
            if *spec != entry.spec {
                let (done, answer) = oneshot::channel();
                // A changed configuration starts what an operator stopped.
                self.stopped.set(&key.to_string(), false);
                let _ = entry.orders.send(Order::Update(Box::new(spec.clone()), done)).await;
                entry.spec = spec.clone();
                answers.push((key.clone(), answer));
            }
        }
        let mut paused = BTreeSet::new();
        for (key, answer) in answers {
            if answer.await != Ok(Updated::InPlace) {
                paused.insert(key);
            }
        }
        paused
    }

    /// Ends instances, those that need others before those they need. Names those that were late.
    async fn end(&mut self, keys: &BTreeSet<Key>, detach: bool) -> Vec<String> {
        let mut late = Vec::new();
        let mut left = keys.clone();
        while !left.is_empty() {
            let needed: BTreeSet<Key> = left
                .iter()
                .flat_map(|key| self.instances[key].spec.settings.needs.iter())
                .filter_map(|need| need.parse().ok())
                .collect();
            let mut level: BTreeSet<Key> = left.difference(&needed).cloned().collect();
            if level.is_empty() {
                // A circle cannot be planned, but must not hang a shutdown either.
                level.clone_from(&left);
            }
            let mut answers = Vec::new();
            for key in &level {
                let entry = self.instances.remove(key).expect("left holds only instances that are there");
                let (done, answer) = oneshot::channel();
                let _ = entry.orders.send(Order::End { detach, done }).await;
                answers.push((key, answer));
            }
            for (key, answer) in answers {
                if answer.await == Ok(Ended::Late) {
                    late.push(key.to_string());
                }
                if !detach {
                    self.around.board.remove(key);
                }
            }
            left = left.difference(&level).cloned().collect();
        }
        late
    }

    async fn operate(&mut self, key: &Key, action: Action, reply: oneshot::Sender<Result<(), String>>) {
        let Some(entry) = self.instances.get(key) else {
            let text = match self.around.board.get(key) {
                Some(report) => format!("{key} cannot run here: {}", report.detail),
                None => format!("this station has no instance {key}"),
            };
            let _ = reply.send(Err(text));
            return;
        };
        self.stopped.set(&key.to_string(), action == Action::Stop);
        let (done, answer) = oneshot::channel();
        let _ = entry.orders.send(Order::Operator(action, done)).await;
        // One that is slow to stop must not hold up the others.
        #[allow(clippy::disallowed_methods, reason = "ends with the instance's answer, which is bounded")]
        tokio::spawn(async move {
            let _ = reply.send(answer.await.map_err(|_| "the station is stopping".to_owned()));
        });
    }
}
