//! The functions of a station that loaded plugins call: each finds its instance by token and does what any role may.

use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use quilt_plugin_api::abi::{self, Buf, Completion, Slice};
use quilt_plugin_api::bridge::{Tokens, borrowed, complete, text, to_bytes};
use quilt_plugin_api::{CommandRecord, Host, LogLevel, RawItems, Report};
use tokio::runtime::Handle;
use tokio::task::AbortHandle;

use super::image::Image;
use super::trace;
use crate::commands::COMMANDS_MAX;

/// Instances of loaded plugins in this process.
pub(super) static INSTANCES: Tokens<Placed> = Tokens::new();
/// Streams that plugins send items to.
pub(super) static STREAMS: Tokens<Arc<tokio::sync::Mutex<Box<dyn RawItems>>>> = Tokens::new();
/// Calls of plugins to other targets.
static CALLS: Tokens<Option<AbortHandle>> = Tokens::new();

/// An instance of a loaded plugin.
#[derive(Clone)]
pub(super) struct Placed {
    pub(super) host: Arc<dyn Host>,
    pub(super) image: Arc<Image>,
    pub(super) runtime: Handle,
    /// Its own token.
    pub(super) token: u64,
    pub(super) name: Arc<str>,
    pub(super) commands: Arc<Registered>,
}

/// Which commands an instance registered, as far as the limit needs it. A plugin may register any number; what cannot be taken must
/// cost next to nothing, because the plugin's process does not answer its station meanwhile.
#[derive(Default)]
pub(super) struct Registered {
    /// How many are offered, or fewer.
    count: AtomicUsize,
    /// One was refused for their number, and the log says so.
    is_limit_told: AtomicBool,
}

impl Registered {
    /// Whether a further record would be refused and need not be read. The first one is read: its name is in the log.
    fn is_full(&self) -> bool {
        self.count.load(Ordering::Relaxed) >= COMMANDS_MAX && self.is_limit_told.swap(true, Ordering::Relaxed)
    }

    fn added(&self) {
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    /// One was withdrawn, or none of that name was there.
    fn removed(&self) {
        let _ = self.count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| count.checked_sub(1));
    }
}

pub(super) static HOST: abi::Host = abi::Host {
    size: size_of::<abi::Host>() as u32,
    minor: abi::MINOR,
    log: Some(log),
    report: Some(report),
    attribute: Some(attribute),
    emit: Some(emit),
    register: Some(register),
    de_register: Some(de_register),
    call: Some(call),
    cancel: Some(cancel),
    send_item: Some(send_item),
    stop_timeout_ms: Some(stop_timeout_ms),
    trace_enabled: Some(trace_enabled),
    trace: Some(trace_event),
    trace_generation: Some(trace::generation),
    extension: Some(extension),
};

/// The longest text of a log line, state or name that is taken from a plugin, in bytes.
pub(crate) const TEXT_MAX: usize = 64 << 10;
/// The longest name of a group of commands.
const GROUP_MAX: usize = 200;
/// The longest description of a command.
const RECORD_MAX: usize = 1 << 20;

// SAFETY, for every function below: the contract has plugins lend what they lend until the function returns.

/// A text that was lent; what is too long is cut.
unsafe fn short(slice: Slice) -> String {
    // What is longer than memory is no text at all, and is not looked at.
    let len = if slice.len > isize::MAX as u64 { 0 } else { slice.len.min(TEXT_MAX as u64) };
    // SAFETY: see above.
    unsafe { text(Slice { len, ..slice }) }
}

unsafe extern "C" fn log(instance: u64, level: u32, line: Slice) {
    let Some(placed) = INSTANCES.get(instance) else { return };
    let level = match level {
        abi::LOG_ERROR => LogLevel::Error,
        abi::LOG_WARN => LogLevel::Warn,
        abi::LOG_INFO => LogLevel::Info,
        _ => LogLevel::Debug,
    };
    // SAFETY: see above.
    placed.host.log(level, &unsafe { short(line) });
}

unsafe extern "C" fn report(instance: u64, kind: u32, number: u64, detail: Slice) {
    let Some(placed) = INSTANCES.get(instance) else { return };
    // SAFETY: see above.
    let detail = unsafe { short(detail) };
    placed.host.report(match kind {
        abi::REPORT_ACTIVE => Report::Active,
        abi::REPORT_WAITING => Report::Waiting(detail),
        abi::REPORT_PID => Report::Pid(u32::try_from(number).ok().filter(|pid| *pid != 0)),
        abi::REPORT_FOUND_AGAIN => Report::FoundAgain(number),
        abi::REPORT_FAILED => Report::Failed(detail),
        abi::REPORT_ENDED => Report::Ended(detail),
        _ => return,
    });
}

unsafe extern "C" fn attribute(instance: u64, name: Slice, json: Slice) {
    let Some(placed) = INSTANCES.get(instance) else { return };
    // SAFETY: see above.
    let (name, json) = unsafe { (short(name), short(json)) };
    placed.host.attribute(&name, (!json.is_empty()).then_some(json));
}

unsafe extern "C" fn emit(instance: u64, topic: Slice, json: Slice) {
    let Some(placed) = INSTANCES.get(instance) else { return };
    // SAFETY: see above.
    let (topic, json) = unsafe { (short(topic), short(json)) };
    placed.host.emit(&topic, json);
}

unsafe extern "C" fn register(instance: u64, command: u64, record: Slice) -> u32 {
    let Some(placed) = INSTANCES.get(instance) else { return abi::STALE };
    let invalid = |why: String| {
        placed.host.log(LogLevel::Warn, &format!("a command is not offered: {why}"));
        abi::INVALID
    };
    if placed.commands.is_full() {
        return abi::BUSY;
    }
    if record.len > RECORD_MAX as u64 {
        return invalid(format!("its description of {} bytes is longer than {RECORD_MAX}", record.len));
    }
    // SAFETY: see above.
    let record = match serde_json::from_slice::<CommandRecord>(unsafe { borrowed(record) }) {
        Ok(record) => record,
        Err(error) => return invalid(format!("its description: {error}")),
    };
    if let Err(error) = record.name.parse::<quilt_protocol::Name>() {
        return invalid(error.to_string());
    }
    if !is_group(&record.group) {
        return invalid(format!("its group has 1 to {GROUP_MAX} bytes, without control characters"));
    }
    let handler = placed.image.handler(instance, command);
    if !placed.host.register(record, handler) {
        return abi::BUSY;
    }
    placed.commands.added();
    abi::OK
}

/// Whether a text can be the name of a group of commands.
fn is_group(text: &str) -> bool {
    !text.is_empty() && text.len() <= GROUP_MAX && !text.contains(char::is_control)
}

unsafe extern "C" fn de_register(instance: u64, group: Slice, name: Slice) {
    let Some(placed) = INSTANCES.get(instance) else { return };
    // SAFETY: see above.
    let (group, name) = unsafe { (short(group), short(name)) };
    placed.commands.removed();
    placed.host.de_register(&group, &name);
}

unsafe extern "C" fn call(
    instance: u64,
    target: Slice,
    command: Slice,
    body: Slice,
    time_ms: u64,
    done: Completion,
) -> u64 {
    let Some(placed) = INSTANCES.get(instance) else {
        complete(done, abi::STALE, Bytes::new());
        return 0;
    };
    // SAFETY: see above.
    let (target, command, body) = unsafe { (short(target), short(command), Bytes::copy_from_slice(borrowed(body))) };
    let calling = placed.host.call(target, command, body, Duration::from_millis(time_ms));
    let handle = CALLS.insert(None);
    let guard = CancelledUnlessDone(Some(done));
    let task = placed.runtime.spawn(async move {
        let answer = calling.await;
        CALLS.take(handle);
        let body = serde_json::from_slice::<serde_json::Value>(&answer.body);
        let body = body.unwrap_or_else(|_| String::from_utf8_lossy(&answer.body).into());
        let json = serde_json::json!({ "outcome": answer.outcome, "body": body });
        guard.done(json.to_string().into());
    });
    CALLS.with(handle, |abort| *abort = Some(task.abort_handle()));
    handle
}

struct CancelledUnlessDone(Option<Completion>);

impl CancelledUnlessDone {
    fn done(mut self, body: Bytes) {
        if let Some(done) = self.0.take() {
            complete(done, abi::OK, body);
        }
    }
}

impl Drop for CancelledUnlessDone {
    fn drop(&mut self) {
        if let Some(done) = self.0.take() {
            complete(done, abi::CANCELLED, Bytes::new());
        }
    }
}

unsafe extern "C" fn cancel(handle: u64) {
    if let Some(Some(task)) = CALLS.take(handle) {
        task.abort();
    }
}

unsafe extern "C" fn send_item(stream: u64, item: Buf, done: Completion) {
    // SAFETY: the item is ours now.
    let item = unsafe { to_bytes(item) };
    let (Some(sink), Ok(item)) = (STREAMS.get(stream), item) else {
        return complete(done, abi::CANCELLED, Bytes::new());
    };
    let Some(runtime) = super::runtime() else { return complete(done, abi::CANCELLED, Bytes::new()) };
    // Ends when the stream does: its owner's side lets go of waiting senders then.
    runtime.spawn(async move {
        let more = sink.lock().await.send(item).await;
        complete(done, if more { abi::OK } else { abi::CANCELLED }, Bytes::new());
    });
}

unsafe extern "C" fn stop_timeout_ms(instance: u64) -> u64 {
    INSTANCES.get(instance).map_or(0, |placed| placed.host.stop_timeout().as_millis() as u64)
}

unsafe extern "C" fn trace_enabled(level: u32, target: Slice) -> u32 {
    // SAFETY: see above.
    u32::from(trace::is_enabled(level, &unsafe { short(target) }))
}

unsafe extern "C" fn trace_event(instance: u64, level: u32, target: Slice, fields: Slice) {
    let placed = INSTANCES.get(instance);
    // SAFETY: see above.
    let (target, fields) = unsafe { (short(target), short(fields)) };
    let (name, plugin) =
        (placed.as_ref().map(|placed| &*placed.name), placed.as_ref().map(|placed| placed.image.name()));
    let plugin = plugin.unwrap_or_default();
    if let (true, Some(placed)) = (trace::event(level, &target, plugin, name, &fields), &placed) {
        placed.host.trace(&trace::line(level, &target, &fields));
        if level <= trace::TOLD {
            placed.host.emit("trace", trace::told(level, &target, plugin, &fields));
        }
    }
}

unsafe extern "C" fn extension(_: Slice) -> *const c_void {
    std::ptr::null()
}
