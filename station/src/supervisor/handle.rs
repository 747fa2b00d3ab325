//! How the rest of the station talks to the supervisor, and to instances past it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quilt_protocol::control::{Action, State};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::Target;
use crate::board::Board;
use crate::instance::{ORDERS_MAX, Order};
use crate::needs::Need;
use crate::spec::Key;
use crate::stopped::Stopped;

pub(super) enum Message {
    Commit(Target),
    ShutDown(bool, oneshot::Sender<Vec<String>>),
}

/// Where each instance takes its orders.
pub(super) type Orders = Arc<Mutex<BTreeMap<Key, mpsc::Sender<Order>>>>;

/// What each instance needs.
pub(super) type Needs = Arc<Mutex<BTreeMap<Key, Vec<Need>>>>;

/// How long a stop waits for its record, beside the end itself.
const RECORD_WAIT: Duration = Duration::from_secs(1);

/// Talks to the supervisor, and to instances past it: what it waits for is no affair of theirs.
#[derive(Clone)]
pub(crate) struct Handle {
    pub(super) sender: mpsc::Sender<Message>,
    pub(super) orders: Orders,
    pub(super) needs: Needs,
    pub(super) board: Arc<Board>,
    pub(super) stopped: Arc<Stopped>,
    /// The station stops: nothing else is waited for.
    pub(super) stopping: CancellationToken,
    /// Why the supervisor is gone, if it panicked.
    pub(super) failed: watch::Receiver<Option<String>>,
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
        let permit = self.sender.reserve().await.ok().filter(|_| !self.stopping.is_cancelled())?;
        Some(Place { permit, board: &self.board })
    }

    /// Waits until the supervisor is gone without having been told to end: it panicked, and nobody is left who knows what should run.
    pub(crate) async fn failed(&self) -> String {
        let mut failed = self.failed.clone();
        match failed.wait_for(Option::is_some).await {
            Ok(why) => why.clone().unwrap_or_default(),
            Err(_) => std::future::pending().await,
        }
    }

    /// Does what an operator wants with one instance. What ends something waits for no disk, which may be full of it: the record of a
    /// stop follows as soon as it can. A start is on record first.
    pub(crate) async fn operate(&self, key: Key, action: Action) -> Result<(), String> {
        let orders = lock(&self.orders).get(&key).cloned();
        let Some(orders) = orders else {
            return Err(match self.board.get(&key) {
                Some(report) if report.state == State::Failed => format!("{key} cannot run here: {}", report.detail),
                Some(report) => format!("{key} is {}", report.state),
                None => format!("this station has no instance {key}"),
            });
        };
        let name = key.to_string();
        let stops = action == Action::Stop;
        let was_stopped = self.stopped.contains(&name);
        self.stopped.set(&name, stops);
        if !stops
            && was_stopped
            && let Err(error) = self.stopped.recorded().await
        {
            self.stopped.set(&name, true);
            return Err(format!("cannot record on the station's disk that {key} is not stopped any more: {error}"));
        }
        let (done, answer) = oneshot::channel();
        orders.try_send(Order::Operator(action, done)).map_err(|error| match error {
            TrySendError::Full(_) => {
                format!("{key} has {ORDERS_MAX} orders waiting, which is the limit; it is slow to start or stop")
            }
            TrySendError::Closed(_) => format!("{key} is ending"),
        })?;
        let recording = async {
            if stops { tokio::time::timeout(RECORD_WAIT, self.stopped.recorded()).await.ok() } else { Some(Ok(())) }
        };
        let (done, recorded) = tokio::join!(answer, recording);
        done.map_err(|_| "the station is stopping".to_owned())??;
        let why = match recorded {
            Some(Ok(())) => return Ok(()),
            Some(Err(error)) => error,
            None => "the disk does not answer".to_owned(),
        };
        tracing::warn!(instance = %key, why, "stopped, which is not on record yet; a restart of the station would start it");
        self.show_until_recorded(
            key,
            format!("a restart of the station before that is on its disk would start it: {why}"),
        );
        Ok(())
    }

    /// Shows `note` beside a stopped instance until the disk has the record of that.
    fn show_until_recorded(&self, key: Key, note: String) {
        let (board, stopped) = (self.board.clone(), self.stopped.clone());
        let before = board.get(&key).map(|report| report.detail).unwrap_or_default();
        let with_note = format!("{before}; {note}");
        let change = move |from: &str, to: &str| {
            board.update(&key, |report| {
                if report.state == State::Stopped && report.detail == from {
                    to.clone_into(&mut report.detail);
                }
            });
        };
        change(&before, &with_note);
        #[allow(clippy::disallowed_methods, reason = "ends with the station, or when the disk works again")]
        tokio::spawn(async move {
            stopped.on_disk().await;
            change(&with_note, &before);
        });
    }

    /// The instances that run and need this one to be active: a stop of it leaves them running.
    pub(crate) fn running_dependants(&self, key: &Key) -> Vec<Key> {
        let needs = lock(&self.needs);
        let needs_it = needs.iter().filter(|(_, needs)| needs.iter().any(|need| need.key == *key && !need.completed));
        let runs = |key: &Key| self.board.get(key).is_some_and(|report| report.state.runs());
        needs_it.map(|(key, _)| key.clone()).filter(|key| runs(key)).collect()
    }

    /// Ends every instance in order, or lets go of those that can outlive the station. Names those that were late.
    pub(crate) async fn shut_down(&self, detach: bool) -> Vec<String> {
        self.stopping.cancel();
        let (reply, answer) = oneshot::channel();
        let _ = self.sender.send(Message::ShutDown(detach, reply)).await;
        answer.await.unwrap_or_default()
    }
}

/// See [`Handle::reserve`].
pub(crate) struct Place<'a> {
    permit: mpsc::Permit<'a, Message>,
    board: &'a Board,
}

impl Place<'_> {
    pub(crate) fn commit(self, target: Target) {
        self.board.begin_applying();
        self.permit.send(Message::Commit(target));
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
