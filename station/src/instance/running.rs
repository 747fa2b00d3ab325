//! Bringing one role up, changing it and ending it; every call of a role's own code is here, bounded and caught.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quilt_core::lines::Position;
use quilt_core::{disk, files, lines, time};
use quilt_plugin_api::{Host as _, Instance, LogLevel, Place, RoleContext, RoleError, RoleFactory, Work};
use quilt_protocol::control::Action;
use tokio::sync::mpsc;

use super::{Ended, Order, Runner, Surroundings, instance_dir};
use crate::catch::{catch, catch_now};
use crate::folders::last_state;
use crate::host::InstanceHost;
use crate::ready::Begin;
use crate::role_events::{self, within};
use crate::spec::{Key, Spec};

/// How long what an order cuts short may take to end by itself.
const FINISH: Duration = Duration::from_millis(500);
/// How long an update in place may take.
const UPDATE_TIMEOUT: Duration = Duration::from_secs(30);
/// How much longer than its stop time-out a role may take before it is abandoned: it may need that time to kill.
const STOP_GRACE: Duration = Duration::from_secs(5);
/// How long a role may look for what it left before its needs are waited for.
const SURVIVES_TIMEOUT: Duration = Duration::from_secs(2);

/// Why the new build of an instance was given up, if it did not fail.
const ORDERED: &str = "another order came first";

/// A role that was started.
pub(super) struct Started {
    pub(super) role: Box<dyn Instance>,
    pub(super) host: Arc<InstanceHost>,
    pub(super) crashed: mpsc::Receiver<String>,
    pub(super) work: Option<Work>,
    /// Where its log ended before it was started.
    pub(super) log_end: Position,
    pub(super) since: Instant,
}

/// Why a role was not started.
pub(super) enum NotStarted {
    /// It failed, for this reason.
    Failed(String),
    /// The station lacks what it takes; the role has no part in that.
    StationFault(String),
    /// An order came first, and waits.
    Ordered,
}

impl From<String> for NotStarted {
    fn from(why: String) -> Self {
        Self::Failed(why)
    }
}

/// Does `work` unless an order comes that cuts it short: that is left in `pending_order`, and `work` has [`FINISH`] to end by itself
/// before it is dropped; then this gives nothing. Leave to begin is left in `may_begin`.
async fn unless_ordered<T>(
    inbox: &mut mpsc::Receiver<Order>,
    pending_order: &mut Option<Order>,
    may_begin: &mut bool,
    work: impl Future<Output = T>,
) -> Option<T> {
    let mut work = std::pin::pin!(work);
    while pending_order.is_none() {
        tokio::select! {
            done = &mut work => return Some(done),
            order = inbox.recv() => match order {
                Some(Order::Go) => *may_begin = true,
                // It is on its way.
                Some(Order::Operator(Action::Start, done)) => drop(done.send(Ok(()))),
                Some(order) => *pending_order = Some(order),
                None => break,
            },
        }
    }
    tokio::time::timeout(FINISH, work).await.ok()
}

impl Runner {
    /// Whether an earlier station left something of this instance that still runs, or has ended unseen.
    pub(super) async fn survives(&self) -> bool {
        let Some(factory) = self.around.roles.factory_of(&self.spec) else { return false };
        survives(&self.around, &self.key, &*factory, self.spec.settings.stop_timeout).await
    }

    pub(super) async fn start_role(&mut self) -> Result<Started, NotStarted> {
        let resuming = self.resuming;
        self.left_over = true;
        let factory = self.around.roles.factory_of(&self.spec);
        let factory = factory.ok_or_else(|| format!("this station has no role `{}`", self.key.role))?;
        let folder = instance_dir(&self.around.folder, &self.key);
        let is_new = std::mem::take(&mut self.is_new);
        let log = self.log_dir();
        let prepared = {
            let (instances, key, state, log) =
                (self.around.folder.clone(), self.key.clone(), folder.join("state"), log.clone());
            async move {
                // What an earlier run logged lies before the position.
                lines::flush(&log).await;
                let prepare = move || {
                    let old_state = last_state(&instances, &key).filter(|_| is_new);
                    files::create_private_dir(&state)?;
                    Ok((old_state, Position::end(&log).unwrap_or_default()))
                };
                disk::run(prepare).await
            }
        };
        let prepared = unless_ordered(&mut self.inbox, &mut self.pending_order, &mut self.may_begin, prepared).await;
        let prepared: io::Result<_> = prepared.ok_or(NotStarted::Ordered)?;
        let (old_state, log_end) = prepared.map_err(|error| format!("{}: {error}", folder.display()))?;
        let (crash, crashed) = mpsc::channel(1);
        let host = Arc::new(InstanceHost::new(
            self.key.clone(),
            self.spec.carrier.as_ref().map(|carrier| &*carrier.plugin),
            &self.around,
            Some(lines::Appender::of(&log)),
            crash,
            self.spec.settings.stop_timeout,
        ));
        if let Some(changed) = old_state {
            let changed = time::rfc3339(changed);
            host.log(
                LogLevel::Info,
                &format!("begins with the state of an earlier instance of this name, last changed {changed}"),
            );
        }
        let cx = RoleContext::new(host.clone(), place(&self.around, &self.key, resuming));
        let limit = self.spec.settings.start_timeout;
        if self.spec.carrier.is_none() {
            role_events::begin(host.run(), Arc::downgrade(&host));
        }
        let run = host.run();
        let starting = within(run, async {
            if let Some(lack) = factory.lacks().await {
                return Err(NotStarted::StationFault(lack));
            }
            let started = factory.start(self.spec.config.as_bytes(), cx).await;
            let mut role = started.map_err(|error| NotStarted::Failed(error.to_string()))?;
            let work = role.run().await;
            let work = work.map(|work| Box::pin(within(run, work)) as Work);
            Ok((role, work))
        });
        let starting = tokio::time::timeout(limit, catch(starting));
        let started =
            match unless_ordered(&mut self.inbox, &mut self.pending_order, &mut self.may_begin, starting).await {
                Some(Ok(Ok(Ok(started)))) => Ok(started),
                Some(Ok(Ok(Err(why)))) => Err(why),
                Some(Ok(Err(panic))) => Err(NotStarted::Failed(panic)),
                Some(Err(_)) => Err(NotStarted::Failed(format!(
                    "its start took longer than `start_timeout`, {}",
                    humantime::format_duration(limit)
                ))),
                None => Err(NotStarted::Ordered),
            };
        match started {
            Ok((role, work)) => {
                self.resuming = false;
                Ok(Started { role, host, crashed, work, log_end, since: Instant::now() })
            }
            Err(why) => {
                match &why {
                    NotStarted::Failed(text) => host.log(LogLevel::Error, text),
                    NotStarted::StationFault(text) => host.log(LogLevel::Warn, text),
                    NotStarted::Ordered => {}
                }
                host.end();
                Err(why)
            }
        }
    }

    /// Tries to update in place; false if the role must be restarted.
    pub(super) async fn update_role(&mut self, started: &mut Started, spec: &Spec) -> bool {
        started.host.set_stop_timeout(spec.settings.stop_timeout);
        if spec.settings.isolation != self.spec.settings.isolation {
            // It runs elsewhere from now on.
            return false;
        }
        if spec.config == self.spec.config {
            // Only quilt's own keys changed; the role need not know.
            return true;
        }
        self.around.commands.cancel_calls(&self.key);
        let updating = catch(within(started.host.run(), started.role.update(spec.config.as_bytes())));
        let updating = tokio::time::timeout(UPDATE_TIMEOUT, updating);
        let updated = unless_ordered(&mut self.inbox, &mut self.pending_order, &mut self.may_begin, updating).await;
        // What is cut short may be half done: it does not go on with that.
        let Some(updated) = updated else { return false };
        match updated {
            Ok(Ok(Ok(()))) => true,
            Ok(Ok(Err(RoleError::NeedsRestart))) => false,
            Ok(Ok(Err(error))) => {
                started.host.log(LogLevel::Warn, &format!("the update in place failed, restarting: {error}"));
                false
            }
            Ok(Err(panic)) => {
                started.host.log(LogLevel::Error, &format!("the update in place failed, restarting: {panic}"));
                false
            }
            Err(_) => {
                let text = format!("the update in place took longer than {UPDATE_TIMEOUT:?}, restarting");
                started.host.log(LogLevel::Error, &text);
                false
            }
        }
    }

    /// Ends work, commands and tasks, then the role; abandons a role that takes too long.
    pub(super) async fn stop_role(&mut self, started: Started, detach: bool) -> Ended {
        let host = started.host.clone();
        let ended = end_role(started, detach).await;
        self.left_over = ended != Ended::InTime;
        let late = (self.left_over && !detach).then(|| host.how_it_ended());
        self.survivor = self.unless_gone(late).await;
        ended
    }

    /// What a role that did not end in time said of that, if something of it still runs.
    pub(super) async fn unless_gone(&self, late: Option<String>) -> Option<String> {
        let late = late?;
        let text = if late.is_empty() { "it did not end in time".to_owned() } else { late };
        self.survives().await.then_some(text)
    }

    /// Moves the instance to another build of its plugin: started beside the one that runs, and given its place only when it
    /// works. Calls that were begun end in the old one, those that come later reach the new one; none reaches both.
    ///
    /// # Errors
    ///
    /// The new one does not work, and the old one goes on: it comes back, with the reason.
    pub(super) async fn move_role(&mut self, mut old: Started, spec: &Spec) -> Result<Started, (Started, String)> {
        let before = std::mem::replace(&mut self.spec, spec.clone());
        let mut new = match self.start_ready().await {
            Ok(new) => new,
            Err(why) => {
                self.spec = before;
                return Err((old, why));
            }
        };
        let replaced = new.host.take_over();
        if let Err(panic) = catch_now(|| drop(old.work.take())) {
            old.host.log(LogLevel::Error, &format!("while its work was ended: {panic}"));
        }
        if let Some(replaced) = replaced {
            replaced.drain(old.host.stop_timeout()).await;
        }
        end_role(old, false).await;
        new.since = Instant::now();
        Ok(new)
    }

    /// Starts the role and waits until it is ready.
    async fn start_ready(&mut self) -> Result<Started, String> {
        let log = self.log_dir();
        let resuming = std::mem::take(&mut self.resuming);
        let started = self.start_role().await;
        self.resuming = resuming;
        let mut started = started.map_err(|why| match why {
            NotStarted::Failed(text) | NotStarted::StationFault(text) => text,
            NotStarted::Ordered => ORDERED.to_owned(),
        })?;
        if let Some(check) = self.spec.settings.ready.clone() {
            let begin = Begin { otherwise: started.log_end };
            let crashed = &mut started.crashed;
            let checking = async {
                tokio::select! {
                    outcome = crate::ready::wait(&check, &self.spec, &log, begin, |_| {}) => outcome,
                    Some(panic) = crashed.recv() => Err(panic),
                }
            };
            let outcome = unless_ordered(&mut self.inbox, &mut self.pending_order, &mut self.may_begin, checking).await;
            if let Err(why) = outcome.unwrap_or_else(|| Err(ORDERED.to_owned())) {
                end_role(started, false).await;
                return Err(why);
            }
        }
        Ok(started)
    }
}

/// Ends a run of a role: its work, its commands, itself, its tasks.
async fn end_role(started: Started, detach: bool) -> Ended {
    let Started { role, host, work, .. } = started;
    host.withdraw();
    if let Err(panic) = catch_now(|| drop(work)) {
        host.log(LogLevel::Error, &format!("while its work was ended: {panic}"));
    }
    let limit = host.stop_timeout().saturating_add(STOP_GRACE);
    let stopping = catch(within(host.run(), async { if detach { role.detach().await } else { role.stop().await } }));
    let ended = match tokio::time::timeout(limit, stopping).await {
        Ok(Ok(())) => Ended::InTime,
        Ok(Err(panic)) => {
            host.log(LogLevel::Error, &format!("while stopping: {panic}"));
            Ended::InTime
        }
        Err(_) => {
            host.log(LogLevel::Error, &format!("it did not stop within {limit:?}; abandoned"));
            Ended::Late
        }
    };
    host.end();
    ended
}

fn place(around: &Surroundings, key: &Key, resuming: bool) -> Place {
    Place {
        role: key.role.to_string(),
        instance: key.instance.to_string(),
        state_dir: instance_dir(&around.folder, key).join("state"),
        log_dir: super::log_dir(&around.folder, key),
        resuming,
    }
}

/// Whether something of an instance that no started role holds still runs.
async fn survives(around: &Surroundings, key: &Key, factory: &dyn RoleFactory, stop_timeout: Duration) -> bool {
    let (crash, _) = mpsc::channel(1);
    let host = Arc::new(InstanceHost::new(key.clone(), None, around, None, crash, stop_timeout));
    let cx = RoleContext::new(host.clone(), place(around, key, true));
    let looking = catch(async { factory.survives(cx).await });
    // What cannot be looked at in time was not seen to be gone.
    let survives = !matches!(tokio::time::timeout(SURVIVES_TIMEOUT, looking).await, Ok(Ok(false) | Err(_)));
    host.end();
    survives
}

/// Ends what an earlier station may have left of an instance that is not started again.
///
/// # Errors
///
/// It did not end in time and may still run; the text is what the role said of that.
pub(crate) async fn abandon(around: &Surroundings, key: &Key, stop_timeout: Duration) -> Result<(), String> {
    let Some(factory) = around.roles.factory(&key.role, None) else { return Ok(()) };
    // A program can outlive the folder that its instance had; other roles have nothing without one.
    let state = instance_dir(&around.folder, key).join("state");
    if key.role.as_str() != quilt_role_process::ROLE && !disk::run(move || state.exists()).await {
        return Ok(());
    }
    let (crash, _) = mpsc::channel(1);
    let host = Arc::new(InstanceHost::new(key.clone(), None, around, None, crash, stop_timeout));
    let cx = RoleContext::new(host.clone(), place(around, key, true));
    let limit = stop_timeout.saturating_add(STOP_GRACE);
    let ended = match tokio::time::timeout(limit, catch(async { factory.abandon(cx).await })).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(panic)) => {
            host.log(LogLevel::Error, &format!("while ending what was left of it: {panic}"));
            Ok(())
        }
        Err(_) => {
            host.log(LogLevel::Error, &format!("what was left of it did not end within {limit:?}"));
            Err(host.how_it_ended())
        }
    };
    host.end();
    ended
}

/// Waits for the end of an instance's work; for ever if it has none. A panic is a failure.
pub(super) async fn work_ends(work: &mut Option<Work>) -> Result<(), String> {
    let Some(running) = work.as_mut() else { return std::future::pending().await };
    let result = match catch(running).await {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(panic) => Err(panic),
    };
    *work = None;
    result
}
