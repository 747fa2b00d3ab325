//! How the rest of the station talks to the supervisor, and to instances past it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use quilt_protocol::control::{Action, State};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::Target;
use crate::board::Board;
use crate::instance::{ORDERS_MAX, Order};
use crate::saved::Stopped;
use crate::spec::Key;

pub(super) enum Message {
    Commit(Target),
    ShutDown(bool, oneshot::Sender<Vec<String>>),
}

/// Where each instance takes its orders.
pub(super) type Orders = Arc<Mutex<BTreeMap<Key, mpsc::Sender<Order>>>>;

/// Talks to the supervisor, and to instances past it: what it waits for is no affair of theirs.
#[derive(Clone)]
pub(crate) struct Handle {
    pub(super) sender: mpsc::Sender<Message>,
    pub(super) orders: Orders,
    pub(super) board: Arc<Board>,
    pub(super) stopped: Arc<Stopped>,
    /// The station stops: nothing else is waited for.
    pub(super) stopping: CancellationToken,
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

    /// Does what an operator wants with one instance.
    pub(crate) async fn operate(&self, key: Key, action: Action) -> Result<(), String> {
        let orders = lock(&self.orders).get(&key).cloned();
        let Some(orders) = orders else {
            return Err(match self.board.get(&key) {
                Some(report) if report.state == State::Failed => format!("{key} cannot run here: {}", report.detail),
                Some(report) => format!("{key} is {}", report.state),
                None => format!("this station has no instance {key}"),
            });
        };
        self.stopped
            .set(&key.to_string(), action == Action::Stop)
            .map_err(|error| format!("cannot record on the station's disk what is stopped: {error}"))?;
        let (done, answer) = oneshot::channel();
        orders.try_send(Order::Operator(action, done)).map_err(|error| match error {
            TrySendError::Full(_) => {
                format!("{key} has {ORDERS_MAX} orders waiting, which is the limit; it is slow to start or stop")
            }
            TrySendError::Closed(_) => format!("{key} is ending"),
        })?;
        answer.await.map_err(|_| "the station is stopping".to_owned())?
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
