//! Orders to an instance: what they are, and what becomes of the instance by each.

use quilt_protocol::control::{Action, State};
use tokio::sync::oneshot;

use super::running::Started;
use super::{Phase, Runner};
use crate::spec::Spec;

/// What an instance is told.
pub(crate) enum Order {
    /// Take this specification.
    Update(Box<Spec>, Unwilling, oneshot::Sender<Updated>),
    /// Begin, after having been made or paused.
    Go,
    /// End for good.
    End { detach: bool, done: oneshot::Sender<Ended> },
    /// An operator's wish.
    Operator(Action, oneshot::Sender<Result<(), String>>),
}

/// What becomes of an instance that cannot be moved to another build of its plugin.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Unwilling {
    /// It refuses.
    GoesOn,
    /// It stops, and begins anew there when told to: the build that it is on is not offered any more.
    Stops,
}

/// How an update went.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Updated {
    /// Taken, nothing was interrupted.
    InPlace,
    /// Stopped; it begins again when told to.
    Paused,
    /// Not taken, for this reason; it goes on as it was.
    Refused(String),
}

/// Whether an instance ended in time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Ended {
    InTime,
    /// Its role took too long, and nothing is known to be left of it.
    Late,
    /// Something of it still runs, which this says.
    Survives(String),
}

/// How many orders may wait for an instance: a few at most are under way, since the supervisor waits for each.
pub(crate) const ORDERS_MAX: usize = 8;

impl Runner {
    /// Waits for the next order; none once the supervisor is gone.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe: an order that this did not return stays in the queue.
    pub(super) async fn order(&mut self) -> Option<Order> {
        match self.pending_order.take() {
            Some(order) => Some(order),
            None => self.inbox.recv().await,
        }
    }

    /// What an order means to an instance that has nothing running.
    pub(super) async fn rest(&mut self, order: Order) -> Phase {
        match order {
            Order::Update(spec, _, done) if self.stopped => {
                // A configuration says what the instance is, an operator whether it runs.
                self.take(*spec);
                self.remember();
                let _ = done.send(Updated::InPlace);
                Phase::Idle
            }
            Order::Update(spec, _, done) => {
                self.may_begin = false;
                self.abandon().await;
                // A failure of the old configuration is not one of the new.
                self.show(State::Waiting, "");
                self.take(*spec);
                let _ = done.send(Updated::Paused);
                Phase::Paused
            }
            Order::Go if self.stopped => {
                // Its stop may have been cut short by the end of the earlier station.
                self.abandon().await;
                let _ = self.show_stopped();
                Phase::Idle
            }
            Order::Go => Phase::Needs,
            Order::End { detach, done } => {
                if !detach {
                    self.abandon().await;
                }
                let _ = done.send(self.survivor.clone().map_or(Ended::InTime, Ended::Survives));
                Phase::Over
            }
            Order::Operator(Action::Stop, done) => {
                self.stopped = true;
                self.abandon().await;
                let _ = done.send(self.show_stopped());
                Phase::Idle
            }
            Order::Operator(Action::Start | Action::Restart, done) => {
                self.stopped = false;
                self.restarts.forgive();
                if self.state() == Some(State::Failed) {
                    // A station that dies before the next state that lasts has not given it up.
                    self.recorder.remove();
                }
                let _ = done.send(Ok(()));
                Phase::Needs
            }
        }
    }

    /// An order came before the start was over, which was dropped half-way.
    pub(super) async fn start_given_up(&mut self) -> Phase {
        let Some(order) = self.order().await else { return Phase::Over };
        if !matches!(order, Order::End { detach: true, .. }) {
            self.show(State::Stopping, "its start is given up");
            self.abandon().await;
        }
        self.rest(order).await
    }

    /// What an order means to an instance that has something running.
    pub(super) async fn interrupt(&mut self, mut started: Started, order: Option<Order>) -> Phase {
        match order {
            None => {
                self.stop_role(started, true).await;
                Phase::Over
            }
            Some(Order::Go) => Phase::Active(started),
            Some(Order::Update(spec, unwilling, done)) if moves(&self.spec, &spec) => {
                match self.move_role(started, &spec).await {
                    Ok(moved) => {
                        self.take(*spec);
                        let _ = done.send(Updated::InPlace);
                        self.show(State::Active, "");
                        Phase::Active(moved)
                    }
                    Err((old, why)) if unwilling == Unwilling::Stops => {
                        self.show(State::Stopping, format!("to go back to the build before: {why}"));
                        self.stop_role(old, false).await;
                        self.take(*spec);
                        let _ = done.send(Updated::Paused);
                        Phase::Paused
                    }
                    Err((old, _)) if matches!(self.pending_order, Some(Order::Operator(..))) => {
                        // That is no fault of the new build: it is the one to begin with again.
                        self.show(State::Stopping, "");
                        self.stop_role(old, false).await;
                        self.take(*spec);
                        let _ = done.send(Updated::Paused);
                        Phase::Paused
                    }
                    Err((old, why)) => {
                        let _ = done.send(Updated::Refused(why));
                        Phase::Active(old)
                    }
                }
            }
            Some(Order::Update(spec, _, done)) => {
                self.may_begin = false;
                let in_place = started.work.is_some() || self.state() == Some(State::Active);
                match in_place {
                    true if self.update_role(&mut started, &spec).await => {
                        let restarts = self.around.board.get(&self.key).map_or(0, |report| report.restarts);
                        self.take(*spec);
                        self.around.board.update(&self.key, |report| report.restarts = restarts);
                        self.remember();
                        let _ = done.send(Updated::InPlace);
                        Phase::Active(started)
                    }
                    _ => {
                        self.show(State::Stopping, "to take a new configuration");
                        self.stop_role(started, false).await;
                        self.take(*spec);
                        let _ = done.send(Updated::Paused);
                        Phase::Paused
                    }
                }
            }
            Some(Order::End { detach, done }) => {
                self.show(State::Stopping, "");
                let ended = self.stop_role(started, detach).await;
                let _ = done.send(self.survivor.clone().map_or(ended, Ended::Survives));
                Phase::Over
            }
            Some(Order::Operator(Action::Start, done)) => {
                let _ = done.send(Ok(()));
                match self.state() {
                    Some(State::Completed) => {
                        self.stop_role(started, false).await;
                        Phase::Needs
                    }
                    _ => Phase::Active(started),
                }
            }
            Some(Order::Operator(Action::Restart, done)) => {
                self.show(State::Stopping, "to be restarted by an operator");
                self.stop_role(started, false).await;
                self.restarts.forgive();
                let _ = done.send(Ok(()));
                Phase::Needs
            }
            Some(Order::Operator(Action::Stop, done)) => {
                self.stopped = true;
                self.show(State::Stopping, "");
                self.stop_role(started, false).await;
                let _ = done.send(self.show_stopped());
                Phase::Idle
            }
        }
    }
}

/// Whether a specification asks for the same role from another build of its plugin.
pub(crate) fn moves(from: &Spec, to: &Spec) -> bool {
    from.carrier.is_some()
        && to.carrier.is_some()
        && from.carrier != to.carrier
        && from.settings.isolation == to.settings.isolation
}
