//! A plugin's tracing events, made the station's own: they obey its filters and appear in its log with their target.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, Once, OnceLock, PoisonError};

use quilt_plugin_api::abi;
use tracing::callsite::{self, Callsite};
use tracing::field::{FieldSet, Value};
use tracing::level_filters::LevelFilter;
use tracing::metadata::Kind;
use tracing::subscriber::Interest;
use tracing::{Event, Level, Metadata, dispatcher};

use tokio::sync::watch;

use super::teller::Teller;
use super::wire::{Told, What};

/// How many targets of plugins are told apart; further ones appear under one name. Each costs a little memory for ever.
const TARGETS_MAX: usize = 1000;
const OTHERS: &str = "plugin";
/// The name of every event of a plugin.
pub(crate) const EVENT: &str = "plugin event";
const FIELDS: &[&str] = &["message", "plugin", "instance", "fields"];

/// A place in a plugin's code, as far as filters know places: a level and a target.
struct Place {
    metadata: OnceLock<Metadata<'static>>,
}

impl Callsite for Place {
    fn set_interest(&self, _: Interest) {}

    fn metadata(&self) -> &Metadata<'_> {
        self.metadata.get().expect("set before it is registered")
    }
}

static PLACES: Mutex<BTreeMap<(u32, String), &'static Place>> = Mutex::new(BTreeMap::new());
static GENERATION: AtomicU64 = AtomicU64::new(1);
/// The highest level that the station takes, for plugins' processes.
static LEVELS: LazyLock<watch::Sender<u32>> = LazyLock::new(|| watch::Sender::new(level()));

/// Hears of other levels.
pub(super) fn levels() -> watch::Receiver<u32> {
    LEVELS.subscribe()
}

/// Makes plugins ask anew what is taken whenever the station's filter changes. Once for a process.
pub(crate) fn follow_the_filter() {
    static FOLLOWED: Once = Once::new();
    FOLLOWED.call_once(|| {
        quilt_core::log::on_change(|| {
            GENERATION.fetch_add(1, Ordering::Release);
            LEVELS.send_replace(level());
        });
    });
}

/// What is said of an event in the fleet's own stream of events: from this level on they are the story an operator tells.
pub(crate) const TOLD: u32 = abi::LOG_INFO;

/// An event as the fleet's stream has it.
pub(crate) fn told(level: u32, target: &str, plugin: &str, fields: &str) -> String {
    let level = ["", "error", "warn", "info"].get(level as usize).copied().unwrap_or_default();
    let fields: serde_json::Value = serde_json::from_str(fields).unwrap_or_default();
    serde_json::json!({ "level": level, "target": target, "plugin": plugin, "fields": fields }).to_string()
}

/// An event as the instance's log has it.
pub(crate) fn line(level: u32, target: &str, fields: &str) -> String {
    let level = ["", "ERROR", "WARN", "INFO", "DEBUG"].get(level as usize).copied().unwrap_or("TRACE");
    let fields: serde_json::Map<String, serde_json::Value> = serde_json::from_str(fields).unwrap_or_default();
    let text = |value: &serde_json::Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let message = fields.get("message").map(text).unwrap_or_default();
    let more = fields.iter().filter(|(name, _)| *name != "message");
    let more: String = more.map(|(name, value)| format!(" {name}={value}")).collect();
    format!("{level} {target}: {message}{more}")
}

pub(super) unsafe extern "C" fn generation() -> u64 {
    GENERATION.load(Ordering::Acquire)
}

fn place(level: u32, target: &str) -> &'static Place {
    let mut places = PLACES.lock().unwrap_or_else(PoisonError::into_inner);
    let target = if places.len() < TARGETS_MAX { target } else { OTHERS };
    if let Some(place) = places.get(&(level, target.to_owned())) {
        return place;
    }
    // Kept for ever, as tracing wants it; bounded above.
    let name: &'static str = String::leak(target.to_owned());
    let place: &'static Place = Box::leak(Box::new(Place { metadata: OnceLock::new() }));
    let level_ = match level {
        abi::LOG_ERROR => Level::ERROR,
        abi::LOG_WARN => Level::WARN,
        abi::LOG_INFO => Level::INFO,
        abi::LOG_DEBUG => Level::DEBUG,
        _ => Level::TRACE,
    };
    let fields = FieldSet::new(FIELDS, callsite::Identifier(place));
    let metadata = Metadata::new(EVENT, name, level_, None, None, None, fields, Kind::EVENT);
    let _ = place.metadata.set(metadata);
    callsite::register(place);
    places.insert((level, target.to_owned()), place);
    place
}

/// In a plugin's process events are told to the station, which filters them.
static PASSED_ON: OnceLock<Arc<Teller>> = OnceLock::new();
/// The highest level that the station takes at all, as told to this plugin's process.
static LEVEL: AtomicU32 = AtomicU32::new(abi::LOG_INFO);

/// The highest level that this process takes at all.
pub(super) fn level() -> u32 {
    match LevelFilter::current().into_level() {
        None => 0,
        Some(Level::ERROR) => abi::LOG_ERROR,
        Some(Level::WARN) => abi::LOG_WARN,
        Some(Level::INFO) => abi::LOG_INFO,
        Some(Level::DEBUG) => abi::LOG_DEBUG,
        Some(Level::TRACE) => abi::LOG_TRACE,
    }
}

/// The station takes events up to this level now.
pub(super) fn set_level(level: u32) {
    LEVEL.store(level, Ordering::Relaxed);
    GENERATION.fetch_add(1, Ordering::Release);
}

/// From here on events are told to the station.
pub(super) fn pass_on(teller: Arc<Teller>) {
    let _ = PASSED_ON.set(teller);
}

/// Whether the station's filter takes events of this level and target.
pub(super) fn is_enabled(level: u32, target: &str) -> bool {
    if PASSED_ON.get().is_some() {
        return level <= LEVEL.load(Ordering::Relaxed);
    }
    let place = place(level, target);
    dispatcher::get_default(|dispatch| dispatch.enabled(place.metadata()))
}

/// Takes an event; `fields` is a JSON object. Answers whether the station's filter took it.
pub(super) fn event(level: u32, target: &str, plugin: &str, instance: Option<&str>, fields: &str) -> bool {
    if let Some(teller) = PASSED_ON.get() {
        let (target, fields) = (target.to_owned(), fields.to_owned());
        let what = What::Trace { level, target, instance: instance.map(str::to_owned), fields };
        teller.add(Told { instance: 0, what });
        return false;
    }
    let place = place(level, target);
    let mut fields: serde_json::Map<String, serde_json::Value> = serde_json::from_str(fields).unwrap_or_default();
    let message = fields.remove("message").unwrap_or_default();
    let message = message.as_str().map_or_else(|| message.to_string(), str::to_owned);
    let more = (!fields.is_empty()).then(|| serde_json::Value::Object(fields).to_string());
    dispatcher::get_default(|dispatch| {
        let metadata = place.metadata();
        if !dispatch.enabled(metadata) {
            return false;
        }
        let set = metadata.fields();
        let names = FIELDS.iter().map(|name| set.field(name).expect("it is one of them"));
        let [a, b, c, d]: [_; 4] = names.collect::<Vec<_>>().try_into().expect("there are four");
        let values: [Option<&dyn Value>; 4] = [
            Some(&message as &dyn Value),
            Some(&plugin as &dyn Value),
            instance.as_ref().map(|instance| instance as &dyn Value),
            more.as_ref().map(|more| more as &dyn Value),
        ];
        let pairs = [(&a, values[0]), (&b, values[1]), (&c, values[2]), (&d, values[3])];
        dispatch.event(&Event::new(place.metadata.get().expect("set when it was made"), &set.value_set(&pairs)));
        true
    })
}
