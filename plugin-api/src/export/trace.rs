//! The library's own tracing events, passed on to the station: a loaded library has a tracing of its own, whose events
//! nobody would see.

use std::cell::Cell;
use std::collections::HashMap;
use std::fmt::Debug;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll};

use quilt_plugin_abi as abi;
use serde_json::{Map, Value};
use tracing_core::callsite::Identifier;
use tracing_core::field::{Field, Visit};
use tracing_core::span::{Attributes, Id, Record};
use tracing_core::subscriber::Interest;
use tracing_core::{Dispatch, Event, Level, Metadata, Subscriber, dispatcher};

use crate::bridge::lend;

thread_local! {
    /// Whose work runs on this thread.
    static INSTANCE: Cell<u64> = const { Cell::new(0) };
}

/// Runs `work` as that of an instance, so that its events are known as the instance's.
pub(super) fn within<F: Future>(instance: u64, work: F) -> impl Future<Output = F::Output> {
    Within { instance, work: Box::pin(work) }
}

struct Within<F> {
    instance: u64,
    work: Pin<Box<F>>,
}

impl<F: Future> Future for Within<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let outer = INSTANCE.replace(self.instance);
        let polled = self.work.as_mut().poll(cx);
        INSTANCE.set(outer);
        polled
    }
}

/// Makes the station hear of this library's events and panics. Once; a library that has set a subscriber of its own keeps it.
pub(super) fn install(host: &'static abi::Host) {
    // Each library has a hook of its own; the one it comes with writes to the station's standard error.
    std::panic::set_hook(Box::new(|panic| {
        if let Some(trace) = host.trace {
            let json = serde_json::json!({ "message": panic.to_string() }).to_string();
            // SAFETY: of the station's table; what is lent lives until it returns.
            unsafe { trace(INSTANCE.get(), abi::LOG_ERROR, lend(b"panic"), lend(json.as_bytes())) }
        }
    }));
    let passing_on = PassingOn { host, known: Mutex::default(), spans: AtomicU64::new(1) };
    let _ = dispatcher::set_global_default(Dispatch::new(passing_on));
}

struct PassingOn {
    host: &'static abi::Host,
    /// What the station said of each place in the code, and at which generation of its filter.
    known: Mutex<HashMap<Identifier, (u64, bool)>>,
    spans: AtomicU64,
}

fn level(metadata: &Metadata<'_>) -> u32 {
    match *metadata.level() {
        Level::ERROR => abi::LOG_ERROR,
        Level::WARN => abi::LOG_WARN,
        Level::INFO => abi::LOG_INFO,
        Level::DEBUG => abi::LOG_DEBUG,
        Level::TRACE => abi::LOG_TRACE,
    }
}

// SAFETY, for the calls below: of the station's table, which is valid for ever; what is lent lives until they return.
impl Subscriber for PassingOn {
    fn register_callsite(&self, _: &'static Metadata<'static>) -> Interest {
        // Asked every time: the station's filter may change.
        Interest::sometimes()
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let (Some(enabled), Some(generation)) = (self.host.trace_enabled, self.host.trace_generation) else {
            return false;
        };
        // SAFETY: see above.
        let generation = unsafe { generation() };
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let known = known.entry(metadata.callsite()).or_insert((generation.wrapping_sub(1), false));
        if known.0 != generation {
            // SAFETY: see above.
            *known = (generation, unsafe { enabled(level(metadata), lend(metadata.target().as_bytes())) } != 0);
        }
        known.1
    }

    fn event(&self, event: &Event<'_>) {
        let Some(trace) = self.host.trace else { return };
        let (metadata, mut fields) = (event.metadata(), Fields(Map::new()));
        event.record(&mut fields);
        let json = Value::Object(fields.0).to_string();
        let target = lend(metadata.target().as_bytes());
        // SAFETY: see above.
        unsafe { trace(INSTANCE.get(), level(metadata), target, lend(json.as_bytes())) }
    }

    // Spans are not passed on: the station names plugin, role and instance itself.
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(self.spans.fetch_add(1, Ordering::Relaxed))
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

/// An event's fields as JSON.
struct Fields(Map<String, Value>);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.insert(field.name().into(), format!("{value:?}").into());
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name().into(), value.into());
    }
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.0.insert(field.name().into(), value.into());
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.0.insert(field.name().into(), value.into());
    }
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.0.insert(field.name().into(), value.into());
    }
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.0.insert(field.name().into(), value.into());
    }
}
