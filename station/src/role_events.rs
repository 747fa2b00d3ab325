//! The tracing events of roles that are linked into the station: those of an instance go into its log, as those of loaded roles do.
//!
//! Work of a run is polled [`within`] it. Tasks that a role spawns with `RoleContext::spawn` and `blocking` belong to its run too; a
//! task that it spawns in another way does not, and is in the station's log only.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Mutex, MutexGuard, PoisonError, Weak};

use quilt_plugin_api::{Host as _, abi};
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Level};

use crate::host::InstanceHost;
use crate::plugins::trace;

thread_local! {
    /// The run whose work this thread does; 0 for none.
    static RUN: Cell<u64> = const { Cell::new(0) };
}

/// The runs of linked roles.
static RUNS: Mutex<BTreeMap<u64, Weak<InstanceHost>>> = Mutex::new(BTreeMap::new());

fn runs() -> MutexGuard<'static, BTreeMap<u64, Weak<InstanceHost>>> {
    RUNS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// From here on the events of a run go into its log.
pub(crate) fn begin(run: u64, host: Weak<InstanceHost>) {
    quilt_core::log::observe(observe);
    runs().insert(run, host);
}

/// The run is over.
pub(crate) fn end(run: u64) {
    runs().remove(&run);
}

/// Does `work` as that of a run.
pub(crate) fn within_now<T>(run: u64, work: impl FnOnce() -> T) -> T {
    struct Restore(u64);
    impl Drop for Restore {
        fn drop(&mut self) {
            RUN.set(self.0);
        }
    }
    let _restore = Restore(RUN.replace(run));
    work()
}

/// As [`within_now`], for every poll of `work`.
pub(crate) async fn within<T>(run: u64, work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    poll_fn(|cx| within_now(run, || work.as_mut().poll(cx))).await
}

fn observe(event: &Event<'_>) {
    let run = RUN.get();
    let (metadata, station) = (event.metadata(), env!("CARGO_CRATE_NAME"));
    // What the station itself says of an instance is in the log already, or not meant for it.
    if run == 0 || metadata.target().starts_with(station) || metadata.name() == trace::EVENT {
        return;
    }
    let Some(host) = runs().get(&run).and_then(Weak::upgrade) else { return };
    let level = match *metadata.level() {
        Level::ERROR => abi::LOG_ERROR,
        Level::WARN => abi::LOG_WARN,
        Level::INFO => abi::LOG_INFO,
        Level::DEBUG => abi::LOG_DEBUG,
        Level::TRACE => abi::LOG_TRACE,
    };
    let mut fields = Fields(Map::new());
    event.record(&mut fields);
    let fields = Value::Object(fields.0).to_string();
    // What the log and the fleet do with it is not the role's work.
    within_now(0, || {
        let mut line = trace::line(level, metadata.target(), &fields);
        line.truncate(line.floor_char_boundary(TEXT_MAX));
        host.trace(&line);
        if level <= trace::TOLD {
            host.emit("trace", trace::told(level, metadata.target(), host.plugin(), &fields));
        }
    });
}

/// The longest line of an event, in bytes: as of a loaded role.
const TEXT_MAX: usize = crate::plugins::TEXT_MAX;

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
