//! What a station does for the roles it runs itself.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use quilt_core::{lines, time};
use quilt_plugin_api::{BoxFuture, CallAnswer, CommandRecord, Handler, Host, LogLevel, Report};
use quilt_protocol::Outcome;
use quilt_protocol::control::bounds::{ATTRIBUTE_MAX, ATTRIBUTE_NAME_MAX};
use quilt_protocol::control::{Emitted, State};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;

use crate::board::{self, Board};
use crate::catch::catch;
use crate::commands::{Commands, NotOffered, Replaced, full_name, limit_reached};
use crate::instance::Surroundings;
use crate::role_events::{self, within, within_now};
use crate::session::Link;
use crate::spec::Key;

/// How many calls of one instance to other targets may be under way: one that forgets to wait must not take all requests that
/// the station's session with its manager bears.
const CALLS_MAX: usize = 256;

/// The host of one run of one instance.
pub(crate) struct InstanceHost {
    key: Key,
    /// Tells this run of the instance from those before and after.
    run: u64,
    /// The plugin that it is of; the role, if that is linked in.
    plugin: String,
    board: Arc<Board>,
    commands: Arc<Commands>,
    link: Arc<Link>,
    /// A place for each call to another target.
    calls: Arc<Semaphore>,
    log: Option<Arc<lines::Appender>>,
    tasks: Mutex<JoinSet<()>>,
    /// Roles may ask from threads of their own.
    runtime: Handle,
    /// The run is over: whatever its role still asks for is not for the next one.
    ended: Mutex<bool>,
    /// Hears of the first panic in a task or command.
    crashed: mpsc::Sender<String>,
    stop_timeout: Mutex<Duration>,
    found_since_ms: Mutex<Option<u64>>,
    how_it_ended: Mutex<String>,
    /// That no more commands are offered is in the log.
    told_limit: AtomicBool,
    /// Whether the role says that it waits for something.
    waits: watch::Sender<bool>,
}

impl InstanceHost {
    pub(crate) fn new(
        key: Key,
        plugin: Option<&str>,
        around: &Surroundings,
        log: Option<Arc<lines::Appender>>,
        crashed: mpsc::Sender<String>,
        stop_timeout: Duration,
    ) -> Self {
        static RUNS: AtomicU64 = AtomicU64::new(1);
        let run = RUNS.fetch_add(1, Ordering::Relaxed);
        around.board.begin_run(&key, run);
        Self {
            plugin: plugin.unwrap_or(key.role.as_str()).to_owned(),
            key,
            run,
            board: around.board.clone(),
            commands: around.commands.clone(),
            link: around.link.clone(),
            calls: Arc::new(Semaphore::new(CALLS_MAX)),
            log,
            tasks: Mutex::default(),
            runtime: Handle::current(),
            ended: Mutex::new(false),
            crashed,
            stop_timeout: Mutex::new(stop_timeout),
            found_since_ms: Mutex::new(None),
            how_it_ended: Mutex::default(),
            told_limit: AtomicBool::new(false),
            waits: watch::Sender::new(false),
        }
    }

    /// Tells this run from all others; for [`crate::role_events`].
    pub(crate) fn run(&self) -> u64 {
        self.run
    }

    /// The plugin that it is of; the role, if that is linked in.
    pub(crate) fn plugin(&self) -> &str {
        &self.plugin
    }

    pub(crate) fn set_stop_timeout(&self, timeout: Duration) {
        *self.stop_timeout.lock().unwrap_or_else(PoisonError::into_inner) = timeout;
    }

    /// Since when that runs which the instance found again, if it did.
    pub(crate) fn found_since_ms(&self) -> Option<u64> {
        *self.found_since_ms.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the role does not say that it waits for something. Returns at once unless it says so.
    pub(crate) async fn until_it_waits_no_more(&self) {
        // The sender lives as long as this.
        let _ = self.waits.subscribe().wait_for(|waits| !waits).await;
    }

    /// Makes what the run offers not callable any more, and ends its calls.
    pub(crate) fn withdraw(&self) {
        self.commands.remove(&self.key, self.run);
    }

    /// Takes over from the run before: calls go to this one, and what it says of itself is shown.
    pub(crate) fn take_over(&self) -> Option<Replaced> {
        self.board.take_over(&self.key, self.run);
        self.commands.take_over(&self.key, self.run)
    }

    /// How its work ended, if it said so.
    pub(crate) fn how_it_ended(&self) -> String {
        self.how_it_ended.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether the run is over; it does not end while this is held.
    fn ended(&self) -> MutexGuard<'_, bool> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends what the instance still has going.
    pub(crate) fn end(&self) {
        let mut ended = self.ended();
        *ended = true;
        role_events::end(self.run);
        self.commands.remove(&self.key, self.run);
        self.board.end_run(&self.key, self.run);
        drop(ended);
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
    }
}

impl Host for InstanceHost {
    fn spawn(&self, work: BoxFuture<'static, ()>) {
        if *self.ended() {
            return;
        }
        let (run, crashed) = (self.run, self.crashed.clone());
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        let work = async move {
            if let Err(panic) = catch(within(run, work)).await {
                let _ = crashed.try_send(panic);
            }
        };
        tasks.spawn_on(work, &self.runtime);
    }

    #[allow(clippy::disallowed_methods, reason = "a blocking thread cannot be aborted, so nobody need own it")]
    fn blocking(&self, work: Box<dyn FnOnce() + Send>) {
        let run = self.run;
        self.runtime.spawn_blocking(move || within_now(run, work));
    }

    fn sleep(&self, time: Duration) -> BoxFuture<'static, ()> {
        let _inside = self.runtime.enter();
        Box::pin(tokio::time::sleep(time))
    }

    fn stop_timeout(&self) -> Duration {
        *self.stop_timeout.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn log(&self, level: LogLevel, text: &str) {
        match level {
            LogLevel::Error => tracing::error!(instance = %self.key, "{text}"),
            LogLevel::Warn => tracing::warn!(instance = %self.key, "{text}"),
            LogLevel::Info => tracing::info!(instance = %self.key, "{text}"),
            LogLevel::Debug => tracing::debug!(instance = %self.key, "{text}"),
        }
        self.trace(text);
    }

    fn trace(&self, line: &str) {
        if let Some(log) = &self.log {
            log.append("quilt", line);
        }
    }

    fn report(&self, report: Report) {
        let ended = self.ended();
        if *ended {
            return;
        }
        if let Report::Ended(how) = &report {
            self.how_it_ended.lock().unwrap_or_else(PoisonError::into_inner).clone_from(how);
        }
        if let Report::FoundAgain(since_ms) = report {
            *self.found_since_ms.lock().unwrap_or_else(PoisonError::into_inner) = Some(since_ms);
        }
        match &report {
            Report::Waiting(_) => drop(self.waits.send_replace(true)),
            Report::Active => drop(self.waits.send_replace(false)),
            _ => {}
        }
        if let Report::Failed(why) = &report {
            let _ = self.crashed.try_send(why.clone());
        }
        if let Report::Pid(pid) = report {
            self.board.pid(&self.key, self.run, pid);
            return;
        }
        self.board.update_run(&self.key, self.run, |instance| match report {
            // Reports of a run that is on its way down, or not up yet, change nothing.
            Report::Active if instance.state == State::Waiting => {
                (instance.state, instance.detail) = (State::Active, String::new());
            }
            Report::Waiting(on) if matches!(instance.state, State::Active | State::Waiting) => {
                (instance.state, instance.detail) = (State::Waiting, on);
            }
            Report::Waiting(on) if instance.state == State::Starting => instance.detail = on,
            // Why it is not gone yet.
            Report::Ended(how) if instance.state == State::Stopping => instance.detail = how,
            Report::Active | Report::Waiting(_) | Report::FoundAgain(_) | Report::Failed(_) => {}
            Report::Pid(_) | Report::Ended(_) => {}
        });
    }

    fn attribute(&self, name: &str, json: Option<String>) {
        let ended = self.ended();
        if *ended {
            return;
        }
        match json {
            Some(json) if json.len() > ATTRIBUTE_MAX => {
                self.log(
                    LogLevel::Warn,
                    &format!("the value of attribute `{name}` is longer than {ATTRIBUTE_MAX} bytes; not published"),
                );
            }
            Some(_) if name.len() > ATTRIBUTE_NAME_MAX => {
                let text = format!("an attribute's name is longer than {ATTRIBUTE_NAME_MAX} bytes; not published");
                self.log(LogLevel::Warn, &text);
            }
            json => {
                if !self.board.attribute(&self.key, self.run, name, json) {
                    let text = format!("attribute `{name}` is not published: {}", board::attribute_limits());
                    self.log(LogLevel::Warn, &text);
                }
            }
        }
    }

    fn emit(&self, topic: &str, body: String) {
        if topic.len() > ATTRIBUTE_NAME_MAX {
            let text = format!("an event's topic is longer than {ATTRIBUTE_NAME_MAX} bytes; not sent");
            return self.log(LogLevel::Warn, &text);
        }
        if body.len() > ATTRIBUTE_MAX {
            self.log(
                LogLevel::Warn,
                &format!("the body of event `{topic}` is longer than {ATTRIBUTE_MAX} bytes; not sent"),
            );
            return;
        }
        let Key { role, instance } = self.key.clone();
        self.board.emit(Emitted { role, instance, topic: topic.to_owned(), body, at_ms: time::now_ms() });
    }

    fn register(&self, record: CommandRecord, handler: Handler) -> bool {
        let name = full_name(&record.group, &record.name);
        let ended = self.ended();
        if *ended {
            return false;
        }
        let carried_out_by = (handler, self.crashed.clone());
        let offered = self.commands.register(&self.key, self.run, &self.plugin, record, carried_out_by);
        if let Err(why @ (NotOffered::TooMany | NotOffered::TooLong(_))) = offered
            && !self.told_limit.swap(true, Ordering::Relaxed)
        {
            self.log(LogLevel::Warn, &limit_reached(&name, &why));
        }
        offered.is_ok()
    }

    fn de_register(&self, group: &str, name: &str) {
        let ended = self.ended();
        if !*ended {
            self.commands.de_register(&self.key, self.run, group, name);
        }
    }

    fn call(&self, target: String, command: String, body: Bytes, time: Duration) -> BoxFuture<'static, CallAnswer> {
        let link = self.link.clone();
        let Ok(place) = self.calls.clone().try_acquire_owned() else {
            let text =
                format!("{CALLS_MAX} calls of {} to others are under way, which is the limit; wait for one", self.key);
            return Box::pin(
                async move { CallAnswer { outcome: Outcome::Overloaded.name().into(), body: text.into() } },
            );
        };
        Box::pin(async move {
            let answer = link.call(&target, command, body, time).await;
            drop(place);
            answer
        })
    }
}
