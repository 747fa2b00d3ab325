//! What a loaded role has of the outside: the station's functions, and the library's own runtime.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use quilt_plugin_abi as abi;
use serde::Deserialize;
use tokio::task::JoinSet;

use super::calls::{catch, caught};
use super::state::state;
use crate::BoxFuture;
use crate::bridge::{Tokens, Waiting, lend, to_buf};
use crate::command::{CommandRecord, Handler, RawItems};
use crate::context::{CallAnswer, Host, LogLevel, Report};

/// Every callable command of the library, by the number that the station knows it under.
pub(super) static COMMANDS: Tokens<Arc<Registered>> = Tokens::new();

/// A command that was registered.
pub(super) struct Registered {
    pub(super) handler: Handler,
    /// Whether it may run on the caller's thread; taken back from one that does not keep its promise.
    pub(super) inline: std::sync::atomic::AtomicBool,
    /// How often it was slow there.
    pub(super) slow: std::sync::atomic::AtomicU32,
}

/// The host of one instance.
pub(super) struct StationHost {
    host: &'static abi::Host,
    pub(super) instance: u64,
    tasks: Mutex<JoinSet<()>>,
    commands: Mutex<HashMap<(String, String), u64>>,
}

impl StationHost {
    pub(super) fn new(instance: u64) -> Self {
        Self { host: state().host, instance, tasks: Mutex::default(), commands: Mutex::default() }
    }

    /// Ends what the instance still has going.
    pub(super) fn end(&self) {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
        for (_, command) in self.commands.lock().unwrap_or_else(PoisonError::into_inner).drain() {
            COMMANDS.take(command);
        }
    }
}

/// What the station says of a call to another target.
#[derive(Deserialize)]
struct Called {
    outcome: String,
    #[serde(default)]
    body: serde_json::Value,
}

// SAFETY, for every call below: the function comes from the station's table, which stays valid for ever; what is lent
// lives until it returns; what changes hands is made by `to_buf`.
impl Host for StationHost {
    fn spawn(&self, work: BoxFuture<'static, ()>) {
        let (host, instance) = (self.host, self.instance);
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        let work = async move {
            if let Err(panic) = catch(work).await {
                report(host, instance, &Report::Failed(panic));
            }
        };
        tasks.spawn_on(super::trace::within(instance, work), state().runtime.handle());
    }

    #[allow(clippy::disallowed_methods, reason = "a blocking thread cannot be aborted, so nobody need own it")]
    fn blocking(&self, work: Box<dyn FnOnce() + Send>) {
        // A panic is told by the result that does not come.
        state().runtime.spawn_blocking(move || drop(caught(work)));
    }

    fn sleep(&self, time: Duration) -> BoxFuture<'static, ()> {
        let _here = state().runtime.enter();
        Box::pin(tokio::time::sleep(time))
    }

    fn stop_timeout(&self) -> Duration {
        // SAFETY: see above.
        let ms = self.host.stop_timeout_ms.map(|stop_timeout| unsafe { stop_timeout(self.instance) });
        Duration::from_millis(ms.unwrap_or(10_000))
    }

    fn log(&self, level: LogLevel, text: &str) {
        let level = match level {
            LogLevel::Error => abi::LOG_ERROR,
            LogLevel::Warn => abi::LOG_WARN,
            LogLevel::Info => abi::LOG_INFO,
            LogLevel::Debug => abi::LOG_DEBUG,
        };
        if let Some(log) = self.host.log {
            // SAFETY: see above.
            unsafe { log(self.instance, level, lend(text.as_bytes())) }
        }
    }

    fn report(&self, report_: Report) {
        report(self.host, self.instance, &report_);
    }

    fn attribute(&self, name: &str, json: Option<String>) {
        if let Some(attribute) = self.host.attribute {
            let json = json.unwrap_or_default();
            // SAFETY: see above.
            unsafe { attribute(self.instance, lend(name.as_bytes()), lend(json.as_bytes())) }
        }
    }

    fn emit(&self, topic: &str, json: String) {
        if let Some(emit) = self.host.emit {
            // SAFETY: see above.
            unsafe { emit(self.instance, lend(topic.as_bytes()), lend(json.as_bytes())) }
        }
    }

    fn register(&self, record: CommandRecord, handler: Handler) -> bool {
        let Some(register) = self.host.register else { return false };
        let json = serde_json::to_string(&record).expect("records have text keys");
        let registered = Registered { handler, inline: record.inline.into(), slow: 0.into() };
        let command = COMMANDS.insert(Arc::new(registered));
        let mut commands = self.commands.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: see above.
        let status = unsafe { register(self.instance, command, lend(json.as_bytes())) };
        if status == abi::OK {
            commands.insert((record.group, record.name), command);
        } else {
            COMMANDS.take(command);
        }
        status == abi::OK
    }

    fn de_register(&self, group: &str, name: &str) {
        if let Some(de_register) = self.host.de_register {
            // SAFETY: see above.
            unsafe { de_register(self.instance, lend(group.as_bytes()), lend(name.as_bytes())) }
        }
        let mut commands = self.commands.lock().unwrap_or_else(PoisonError::into_inner);
        commands.remove(&(group.to_owned(), name.to_owned())).and_then(|command| COMMANDS.take(command));
    }

    fn call(&self, target: String, command: String, body: Bytes, time: Duration) -> BoxFuture<'static, CallAnswer> {
        let answer = |outcome: &str, body: Bytes| CallAnswer { outcome: outcome.into(), body };
        let Some(call) = self.host.call else {
            return Box::pin(async move { answer("refused", Bytes::from_static(b"this station passes no calls on")) });
        };
        let (completion, waiting) = Waiting::new();
        let time = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let (target, command, body) = (lend(target.as_bytes()), lend(command.as_bytes()), lend(&body));
        // SAFETY: see above.
        let handle = unsafe { call(self.instance, target, command, body, time, completion) };
        let cancel = Cancel { host: self.host, handle };
        Box::pin(async move {
            let (status, body) = waiting.await;
            drop(cancel);
            match (status, serde_json::from_slice::<Called>(&body)) {
                (abi::OK, Ok(Called { outcome, body: serde_json::Value::String(text) })) => {
                    answer(&outcome, if outcome == "reply" { quoted(&text) } else { text.into() })
                }
                (abi::OK, Ok(Called { outcome, body })) => answer(&outcome, body.to_string().into()),
                (abi::OK, Err(error)) => answer("refused", format!("the station's answer: {error}").into()),
                (abi::BUSY, _) => answer("overloaded", body),
                (abi::STALE, _) => answer("cancelled", Bytes::from_static(b"the instance is stopping")),
                _ => answer("cancelled", Bytes::from_static(b"the station or the instance is stopping")),
            }
        })
    }
}

fn quoted(text: &str) -> Bytes {
    serde_json::Value::from(text).to_string().into()
}

/// Ends a call that nobody waits for any more.
struct Cancel {
    host: &'static abi::Host,
    handle: u64,
}

impl Drop for Cancel {
    fn drop(&mut self) {
        if let Some(cancel) = self.host.cancel {
            // SAFETY: of the station's table; a handle that is over is ignored.
            unsafe { cancel(self.handle) }
        }
    }
}

pub(super) fn report(host: &abi::Host, instance: u64, report: &Report) {
    let (kind, number, text) = match report {
        Report::Active => (abi::REPORT_ACTIVE, 0, ""),
        Report::Waiting(on) => (abi::REPORT_WAITING, 0, on.as_str()),
        Report::Pid(pid) => (abi::REPORT_PID, pid.unwrap_or(0).into(), ""),
        Report::FoundAgain(since_ms) => (abi::REPORT_FOUND_AGAIN, *since_ms, ""),
        Report::Failed(why) => (abi::REPORT_FAILED, 0, why.as_str()),
        Report::Ended(how) => (abi::REPORT_ENDED, 0, how.as_str()),
    };
    if let Some(report) = host.report {
        // SAFETY: of the station's table; the text lives until it returns.
        unsafe { report(instance, kind, number, lend(text.as_bytes())) }
    }
}

/// Sends the items of a streaming command.
pub(super) struct StationItems {
    pub(super) host: &'static abi::Host,
    pub(super) stream: u64,
}

impl RawItems for StationItems {
    fn send(&mut self, item: Bytes) -> BoxFuture<'_, bool> {
        let Some(send_item) = self.host.send_item else { return Box::pin(async { false }) };
        let (completion, waiting) = Waiting::new();
        // SAFETY: of the station's table; the item changes hands.
        unsafe { send_item(self.stream, to_buf(item), completion) }
        Box::pin(async move { waiting.await.0 == abi::OK })
    }
}
