//! What a role has of the outside.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::BoxFuture;
use crate::command::{Command, CommandRecord, Handler};

/// How grave a log line is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum LogLevel {
    /// A person must act.
    Error,
    /// Degraded, heals itself.
    Warn,
    /// The story an operator tells.
    Info,
    /// For whoever debugs the role.
    Debug,
}

/// What an instance says of its own state between `start` and `stop`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Report {
    /// It works.
    Active,
    /// It waits, for what the text says.
    Waiting(String),
    /// The main process of its work.
    Pid(Option<u32>),
    /// How its work ended, for people; said before the work returns.
    Ended(String),
    /// It found again what an earlier station left, begun at this time in milliseconds since 1970.
    FoundAgain(u64),
    /// It cannot go on; its supervisor ends it and, as its policy says, starts it again.
    Failed(String),
}

/// How a call from a role to another target ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CallAnswer {
    /// The outcome's name, as in `quiltctl call -o json`.
    pub outcome: String,
    /// The reply or error as JSON, or a text for people.
    pub body: Bytes,
}

/// What a station does for a role. Roles use [`RoleContext`]; stations and test harnesses implement this.
///
/// Every method may be called from any thread, and none waits.
pub trait Host: Send + Sync + 'static {
    /// Runs `work` until it ends or the instance does.
    fn spawn(&self, work: BoxFuture<'static, ()>);
    /// Runs `work` where it may block.
    fn blocking(&self, work: Box<dyn FnOnce() + Send>);
    /// Ends after `time`.
    fn sleep(&self, time: Duration) -> BoxFuture<'static, ()>;
    /// How long the instance may take to stop.
    fn stop_timeout(&self) -> Duration;
    /// Writes a line to the instance's log.
    fn log(&self, level: LogLevel, text: &str);
    /// Writes an event of a loaded library's `tracing` to the instance's log; the host's own log has it already.
    fn trace(&self, _line: &str) {}
    /// Shows a state.
    fn report(&self, report: Report);
    /// Publishes an attribute as JSON text, or takes it back.
    fn attribute(&self, name: &str, json: Option<String>);
    /// Emits an event with JSON text.
    fn emit(&self, topic: &str, json: String);
    /// Makes a command callable; false if the instance offers one of that group and name already, which then stays.
    fn register(&self, record: CommandRecord, handler: Handler) -> bool;
    /// Makes it not callable.
    fn de_register(&self, group: &str, name: &str);
    /// Calls a command of another instance, or the manager, with a JSON body.
    fn call(&self, target: String, command: String, body: Bytes, time: Duration) -> BoxFuture<'static, CallAnswer>;
}

/// An instance's link to its station. Cheap to clone; clones outlive the instance harmlessly.
#[derive(Clone)]
pub struct RoleContext {
    host: Arc<dyn Host>,
    place: Arc<Place>,
}

/// Where an instance is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Place {
    /// The role's name.
    pub role: String,
    /// The instance's name.
    pub instance: String,
    /// A folder of the instance's own; it stays when the instance is restarted or its station upgraded.
    pub state_dir: PathBuf,
    /// The folder of the instance's log; made with the first line of it.
    pub log_dir: PathBuf,
    /// Whether the station was restarted and the instance should find again what it left.
    pub resuming: bool,
}

impl RoleContext {
    /// Makes one; for stations and test harnesses.
    pub fn new(host: Arc<dyn Host>, place: Place) -> Self {
        Self { host, place: Arc::new(place) }
    }

    /// What hosts the instance; for whoever passes a role on to where it runs.
    pub fn host(&self) -> &Arc<dyn Host> {
        &self.host
    }

    /// Where the instance is.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// The instance's name.
    pub fn instance(&self) -> &str {
        &self.place.instance
    }

    /// The role's name.
    pub fn role(&self) -> &str {
        &self.place.role
    }

    /// A folder of the instance's own; it stays when the instance is restarted or its station upgraded.
    pub fn state_dir(&self) -> &Path {
        &self.place.state_dir
    }

    /// The folder of the instance's log; made with the first line of it.
    pub fn log_dir(&self) -> &Path {
        &self.place.log_dir
    }

    /// Whether this start follows a restart of the station, not of the instance: what the instance let go of in
    /// [`Role::detach`](crate::Role::detach), or lost with a crash of the station, is to be found again.
    pub fn resuming(&self) -> bool {
        self.place.resuming
    }

    /// How long the instance may take to stop, as configured; what takes longer is abandoned.
    pub fn stop_timeout(&self) -> Duration {
        self.host.stop_timeout()
    }

    /// Runs `work` beside the instance; it is dropped when the instance ends.
    pub fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.host.spawn(Box::pin(work));
    }

    /// Runs `work` where it may block, and gives its result; `None` if it panicked.
    pub async fn blocking<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        self.host.blocking(Box::new(move || drop(sender.send(work()))));
        receiver.await.ok()
    }

    /// Waits for `time`.
    pub async fn sleep(&self, time: Duration) {
        self.host.sleep(time).await;
    }

    /// Ends `work` after `time`; `None` if it was not ready by then.
    pub async fn timeout<T>(&self, time: Duration, work: impl Future<Output = T>) -> Option<T> {
        let (mut work, mut sleep) = (std::pin::pin!(work), self.host.sleep(time));
        std::future::poll_fn(|cx| match work.as_mut().poll(cx) {
            std::task::Poll::Ready(done) => std::task::Poll::Ready(Some(done)),
            std::task::Poll::Pending => sleep.as_mut().poll(cx).map(|()| None),
        })
        .await
    }

    /// Writes a line to the instance's log.
    pub fn log(&self, level: LogLevel, text: impl AsRef<str>) {
        self.host.log(level, text.as_ref());
    }

    /// Shows the instance as waiting, and for what.
    pub fn waiting(&self, on: impl Into<String>) {
        self.host.report(Report::Waiting(on.into()));
    }

    /// Says how the instance's work ended, to be shown beside `completed`; before the work returns.
    pub fn ended(&self, how: impl Into<String>) {
        self.host.report(Report::Ended(how.into()));
    }

    /// Shows the instance as active again.
    pub fn active(&self) {
        self.host.report(Report::Active);
    }

    /// Ends the instance as a failure, for this reason; it is started again as its restart policy says.
    pub fn fail(&self, why: impl Into<String>) {
        self.host.report(Report::Failed(why.into()));
    }

    /// Shows the process that does the instance's work.
    pub fn pid(&self, pid: Option<u32>) {
        self.host.report(Report::Pid(pid));
    }

    /// Says that this start found again what an earlier station left, and since when that runs: a ready check then
    /// counts what happened since.
    pub fn found_again(&self, since_ms: u64) {
        self.host.report(Report::FoundAgain(since_ms));
    }

    /// Publishes an attribute for operators, tools and boot plans.
    pub fn set_attribute(&self, name: &str, value: &impl Serialize) {
        match serde_json::to_string(value) {
            Ok(json) => self.host.attribute(name, Some(json)),
            Err(error) => self.log(LogLevel::Warn, format!("attribute `{name}` is not JSON: {error}")),
        }
    }

    /// Takes an attribute back.
    pub fn remove_attribute(&self, name: &str) {
        self.host.attribute(name, None);
    }

    /// Emits an event into the fleet's event stream.
    pub fn emit(&self, topic: &str, body: &impl Serialize) {
        match serde_json::to_string(body) {
            Ok(json) => self.host.emit(topic, json),
            Err(error) => self.log(LogLevel::Warn, format!("event `{topic}` is not JSON: {error}")),
        }
    }

    /// Calls a command of another instance (`station/role/instance`) or the manager (`manager`).
    pub async fn call<C: Command>(&self, target: &str, request: &C, time: Duration) -> CallAnswer {
        let command = format!("{}:{}", C::GROUP, C::NAME);
        match crate::body::encode(crate::Encoding::Json, request) {
            Ok(body) => self.host.call(target.into(), command, body, time).await,
            Err(error) => CallAnswer { outcome: "schema_mismatch".into(), body: error.into() },
        }
    }

    pub(crate) fn register_command(&self, record: CommandRecord, handler: Handler) -> bool {
        self.host.register(record, handler)
    }

    pub(crate) fn de_register_command(&self, group: &str, name: &str) {
        self.host.de_register(group, name);
    }
}
