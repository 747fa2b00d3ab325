//! The life of one role instance, on one task: the only caller of roles.
//!
//! ```text
//!           needs met        start ok, ready         work ends
//! Waiting ------------> Starting ------> Active ---------------> Completed
//!    ^                      |               | fails or panics        |
//!    +------- Backoff <-----+---------------+                        v
//!                 \---- too often ----> Failed     Paused <- update that needs a restart
//! ```

mod last_answer;
mod orders;
mod record;
mod running;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quilt_core::disk::{self, WriteBehind};
use quilt_core::lines::Position;
use quilt_core::{shortage, time};
use quilt_net::Backoff;
use quilt_plugin_api::{Host as _, LogLevel};
use quilt_protocol::control::State;
use tokio::sync::mpsc;

pub(crate) use self::orders::{Ended, ORDERS_MAX, Order, Unwilling, Updated, moves};
pub(crate) use self::running::abandon;

use self::last_answer::LastAnswer;
use self::record::Record;
use self::running::{NotStarted, Started, work_ends};
use crate::board::Board;
use crate::catch::catch;
use crate::commands::Commands;
use crate::ready::{self, Begin};
use crate::restarts::{Next, Restarts};
use crate::role_table::RoleTable;
use crate::session::Link;
use crate::spec::{Key, Spec};

/// What instances share.
#[derive(Clone)]
pub(crate) struct Surroundings {
    pub(crate) folder: PathBuf,
    pub(crate) roles: Arc<RoleTable>,
    pub(crate) board: Arc<Board>,
    pub(crate) commands: Arc<Commands>,
    pub(crate) link: Arc<Link>,
}

/// How a new instance begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Beginning {
    /// The station was restarted: the instance finds again what it left.
    pub(crate) resuming: bool,
    /// An operator stopped it earlier.
    pub(crate) stopped: bool,
}

/// Makes an instance's task. It does nothing before [`Order::Go`].
pub(crate) async fn make(around: Surroundings, spec: Spec, beginning: Beginning) -> mpsc::Sender<Order> {
    let (sender, inbox) = mpsc::channel(ORDERS_MAX);
    around.board.put(&spec);
    let dir = instance_dir(&around.folder, &spec.key);
    let mut record = None;
    if beginning.resuming {
        let (dir, digest) = (dir.clone(), spec.digest);
        record = disk::run(move || Record::read(&dir, digest)).await;
    }
    if let Some(record) = &record {
        around.board.update(&spec.key, |report| report.restarts = record.restarts);
    }
    let runner = Runner {
        key: spec.key.clone(),
        restarts: Restarts::new(&spec.settings.restart),
        around,
        spec,
        inbox,
        pending_order: None,
        may_begin: false,
        record,
        recorder: WriteBehind::new(record::path(&dir)),
        shortages: Backoff::new(SHORTAGE_DELAY.0, SHORTAGE_DELAY.1),
        resuming: beginning.resuming,
        left_over: beginning.resuming,
        survivor: None,
        is_new: !beginning.resuming,
        stopped: beginning.stopped,
    };
    #[allow(clippy::disallowed_methods, reason = "the supervisor owns it by its sender; it ends when told to")]
    tokio::spawn(runner.run());
    sender
}

/// How long to wait before what was told to stop and still runs is told again.
const STOP_AGAIN: Duration = Duration::from_secs(5);

/// The detail of an instance that an operator stopped.
const STOPPED: &str = "stopped by an operator";

/// How long to wait until a start is tried again that the station itself has failed, at first and at most.
const SHORTAGE_DELAY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

struct Runner {
    key: Key,
    around: Surroundings,
    spec: Spec,
    inbox: mpsc::Receiver<Order>,
    /// An order that came while something was under way, and is carried out next.
    pending_order: Option<Order>,
    /// The order to begin came while an update was under way, which may end in a pause.
    may_begin: bool,
    restarts: Restarts,
    /// How it was when an earlier station ended; none once it is so again, or anything new.
    record: Option<Record>,
    recorder: WriteBehind,
    /// The delays of starts that the station itself has failed.
    shortages: Backoff,
    /// The next start is the first after the station's own.
    resuming: bool,
    /// Something may run that no started role holds: left by an earlier station, or by a start that failed.
    left_over: bool,
    /// Why something of it still runs although it was told to end; none if nothing does.
    survivor: Option<String>,
    /// It has not been started yet, in this station or an earlier one.
    is_new: bool,
    /// An operator stopped it: it runs again when one starts it.
    stopped: bool,
}

enum Phase {
    /// Waits to be told to begin.
    Paused,
    /// Waits for what it needs.
    Needs,
    Starting,
    Active(Started),
    /// Its work ended well; its commands go on.
    Completed(Started),
    Backoff(Duration),
    /// Stopped by an operator, or failed too often.
    Idle,
    Over,
}

impl Runner {
    async fn run(mut self) {
        let mut phase = Phase::Paused;
        while let Err(panic) = catch(self.live(phase)).await {
            tracing::error!(instance = %self.key, panic, "the task of an instance panicked; the instance is started again");
            // Nobody holds what ran of it: the next start takes it back, and an order to end ends it.
            (self.left_over, self.resuming) = (true, true);
            phase = self.failed_to_start(format!("its task in the station {panic}"));
        }
    }

    async fn live(&mut self, mut phase: Phase) {
        loop {
            phase = match phase {
                Phase::Paused => self.paused().await,
                Phase::Needs => self.needs().await,
                Phase::Starting => self.start().await,
                Phase::Active(started) => self.active(started).await,
                Phase::Completed(started) => self.completed(started).await,
                Phase::Backoff(delay) => self.backoff(delay).await,
                Phase::Idle => self.idle().await,
                Phase::Over => return,
            };
        }
    }

    fn show(&mut self, state: State, detail: impl Into<String>) {
        self.around.board.state(&self.key, state, detail);
        self.remember();
    }

    /// Puts on record how the instance does, if that lasts. What an earlier station left as it is now has been so since then.
    fn remember(&mut self) {
        let Some(mut report) = self.around.board.get(&self.key).filter(|report| lasts(report.state)) else { return };
        if let Some(since) = self.record.as_ref().and_then(|record| record.since(report.state)) {
            self.record = None;
            self.around.board.update(&self.key, |report| report.since_ms = since);
            report.since_ms = since;
        }
        Record::new(&report).write(&self.recorder);
    }

    /// Ends what may run of this instance without being held.
    async fn abandon(&mut self) {
        self.resuming = false;
        if std::mem::take(&mut self.left_over) {
            let late = abandon(&self.around, &self.key, self.spec.settings.stop_timeout).await.err();
            self.left_over = late.is_some();
            self.survivor = self.unless_gone(late).await;
        }
    }

    /// Shows it as stopped.
    ///
    /// # Errors
    ///
    /// Something of it still runs: it is shown as failed, with the reason. The next order to stop tries again.
    fn show_stopped(&mut self) -> Result<(), String> {
        let Some(survivor) = self.survivor.clone() else {
            self.show(State::Stopped, STOPPED);
            return Ok(());
        };
        let why = format!("it was told to stop and still runs: {survivor}");
        self.show(State::Failed, why.clone());
        Err(why)
    }

    fn take(&mut self, spec: Spec) {
        self.restarts.change(&spec.settings.restart);
        self.restarts.forgive();
        self.spec = spec;
        self.around.board.put(&self.spec);
        self.around.board.update(&self.key, |report| report.restarts = 0);
        // Of another configuration.
        self.record = None;
    }

    /// Waits for an order. What was told to stop and still runs is told again and again.
    async fn idle(&mut self) -> Phase {
        loop {
            let stops_again = self.stopped && self.survivor.is_some();
            tokio::select! {
                order = self.order() => return match order {
                    None => Phase::Over,
                    Some(order) => self.rest(order).await,
                },
                () = tokio::time::sleep(STOP_AGAIN), if stops_again => {
                    self.abandon().await;
                    let _ = self.show_stopped();
                }
            }
        }
    }

    async fn paused(&mut self) -> Phase {
        loop {
            let begins = self.pending_order.is_none() && std::mem::take(&mut self.may_begin);
            let order = if begins { Some(Order::Go) } else { self.order().await };
            let is_given_up = !self.stopped && self.gave_up().is_some();
            // What runs although it was given up is found again: the configuration has it run.
            if is_given_up && matches!(order, Some(Order::Go)) && self.survives().await {
                return Phase::Needs;
            }
            match order {
                None => return Phase::Over,
                Some(Order::Go) if is_given_up => {
                    // It is not tried again by itself.
                    let why = self.gave_up().unwrap_or_default();
                    self.abandon().await;
                    self.show(State::Failed, why);
                    return Phase::Idle;
                }
                Some(order) => match self.rest(order).await {
                    Phase::Paused => {}
                    next => return next,
                },
            }
        }
    }

    async fn needs(&mut self) -> Phase {
        // Needs order starts, and what outlived an earlier station has started: nothing else takes it back.
        if self.resuming && self.survives().await {
            return Phase::Starting;
        }
        let mut changes = self.around.board.subscribe();
        let mut shown = None;
        loop {
            let needs = &self.spec.settings.needs;
            let unmet = needs.iter().find_map(|need| need.unmet(self.around.board.get(&need.key).as_ref()));
            let Some(unmet) = unmet else { return Phase::Starting };
            if shown.as_ref() != Some(&unmet) {
                self.show(State::Waiting, &*unmet);
                shown = Some(unmet);
            }
            tokio::select! {
                _ = changes.changed() => {}
                order = self.order() => return match order {
                    Some(order) => self.rest(order).await,
                    None => Phase::Over,
                },
            }
        }
    }

    async fn start(&mut self) -> Phase {
        self.show(State::Starting, "");
        let mut started = match self.start_role().await {
            Ok(started) => started,
            Err(NotStarted::Failed(text)) => {
                return match self.shortage().await {
                    Some(shortage) => self.wait_out(&format!("{shortage} ({text})")),
                    None => self.failed_to_start(text),
                };
            }
            Err(NotStarted::StationFault(text)) => return self.wait_out(&text),
            Err(NotStarted::Ordered) => return self.start_given_up().await,
        };
        started.host.take_over();
        let found = started.host.found_since_ms();
        let log = self.log_dir();
        let begin = Begin { otherwise: if found.is_some() { Position::START } else { started.log_end } };
        let last_answer = LastAnswer::new(&self.around.board, &self.key);
        while let Some(ready) = self.spec.settings.ready.clone() {
            let spec = self.spec.clone();
            let host = started.host.clone();
            let checking = async {
                // A program that waits to begin, for want of room or tasks, has printed nothing yet: the log is of an earlier run.
                if found.is_none() {
                    host.until_it_waits_no_more().await;
                }
                ready::wait(&ready, &spec, &log, begin, |answer| last_answer.show(answer)).await
            };
            let outcome = tokio::select! {
                // The work first, which says that it waits.
                biased;
                result = work_ends(&mut started.work) => match result {
                    // It ended while nobody watched; whether it had been ready does not matter any more.
                    result if found.is_some() => return self.ended(started, result).await,
                    Ok(()) => Err(last_answer.after("it ended")),
                    Err(text) => Err(last_answer.after(&text)),
                },
                Some(panic) = started.crashed.recv() => Err(panic),
                outcome = checking => outcome,
                order = self.order() => match self.interrupt(started, order).await {
                    // What does not stop it does not make it ready either.
                    Phase::Active(goes_on) => {
                        started = goes_on;
                        continue;
                    }
                    next => return next,
                },
            };
            match outcome {
                Ok(()) => break,
                Err(text) => {
                    self.stop_role(started, false).await;
                    return self.failed_to_start(text);
                }
            }
        }
        if found.is_none() {
            // What was known is of an earlier run.
            self.record = None;
        }
        started.since = Instant::now();
        self.shortages.reset();
        self.show(State::Active, "");
        Phase::Active(started)
    }

    fn log_dir(&self) -> PathBuf {
        log_dir(&self.around.folder, &self.key)
    }

    async fn active(&mut self, mut started: Started) -> Phase {
        tokio::select! {
            result = work_ends(&mut started.work) => self.ended(started, result).await,
            Some(panic) = started.crashed.recv() => self.end_failed(started, panic).await,
            order = self.order() => self.interrupt(started, order).await,
        }
    }

    /// The work of an instance ended.
    async fn ended(&mut self, started: Started, result: Result<(), String>) -> Phase {
        let how = started.host.how_it_ended();
        match result {
            Err(text) => self.end_failed(started, text).await,
            Ok(()) => match self.restarts.completed() {
                Next::Again(delay) => {
                    self.stop_role(started, false).await;
                    self.back_off(delay, if how.is_empty() { "it ended" } else { &how })
                }
                Next::Rest | Next::GiveUp => {
                    self.show(State::Completed, how);
                    Phase::Completed(started)
                }
            },
        }
    }

    async fn completed(&mut self, mut started: Started) -> Phase {
        tokio::select! {
            Some(panic) = started.crashed.recv() => self.end_failed(started, panic).await,
            order = self.order() => self.interrupt(started, order).await,
        }
    }

    async fn end_failed(&mut self, started: Started, text: String) -> Phase {
        let next = self.restarts.failed(started.since.elapsed(), Instant::now());
        started.host.log(LogLevel::Warn, &text);
        self.stop_role(started, false).await;
        self.after_failure(next, text)
    }

    fn failed_to_start(&mut self, text: String) -> Phase {
        let next = self.restarts.failed(Duration::ZERO, Instant::now());
        self.after_failure(next, text)
    }

    /// What the station is short of, which may have failed a start that is fine.
    async fn shortage(&self) -> Option<String> {
        shortage::look(self.around.folder.parent().unwrap_or(&self.around.folder)).await
    }

    /// It is tried again until the station has what it needs. That is no failure of the instance, so its policy has no say.
    fn wait_out(&mut self, why: &str) -> Phase {
        let delay = self.shortages.next_delay();
        self.show(State::Backoff, until(delay, why));
        Phase::Backoff(delay)
    }

    fn after_failure(&mut self, next: Next, text: String) -> Phase {
        match next {
            Next::Again(delay) => self.back_off(delay, &text),
            Next::GiveUp | Next::Rest => {
                self.show(State::Failed, text);
                Phase::Idle
            }
        }
    }

    /// It is started again after `delay`. Also an end that was no failure counts as a restart: it is not what was asked for.
    fn back_off(&mut self, delay: Duration, why: &str) -> Phase {
        self.around.board.update(&self.key, |report| report.restarts += 1);
        self.show(State::Backoff, until(delay, why));
        Phase::Backoff(delay)
    }

    /// Why an earlier station gave it up with this configuration, if it did.
    fn gave_up(&self) -> Option<String> {
        self.record.as_ref()?.given_up().map(str::to_owned)
    }

    async fn backoff(&mut self, delay: Duration) -> Phase {
        tokio::select! {
            () = tokio::time::sleep(delay) => Phase::Needs,
            order = self.order() => match order {
                Some(order) => self.rest(order).await,
                None => Phase::Over,
            },
        }
    }

    fn state(&self) -> Option<State> {
        self.around.board.get(&self.key).map(|report| report.state)
    }
}

/// Whether a state is more than a step to another.
fn lasts(state: State) -> bool {
    match state {
        State::Active | State::Completed | State::Stopped | State::Failed | State::Backoff => true,
        State::Starting | State::Waiting | State::Stopping | State::Unknown => false,
    }
}

fn until(delay: Duration, why: &str) -> String {
    format!("{why}; again at {}", time::ms_text(time::now_ms() + delay.as_millis() as u64))
}

/// The folder of an instance.
pub(crate) fn instance_dir(folder: &std::path::Path, key: &Key) -> PathBuf {
    folder.join(key.role.as_str()).join(key.instance.as_str())
}

/// The folder of an instance's log.
pub(crate) fn log_dir(folder: &std::path::Path, key: &Key) -> PathBuf {
    instance_dir(folder, key).join("log")
}
