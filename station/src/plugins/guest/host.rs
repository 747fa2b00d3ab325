//! What an instance in a plugin's process has of its station, and the calls of its commands.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use quilt_net::{Handle, Inbound, ItemSink};
use quilt_plugin_api as api;
use quilt_plugin_api::bridge::Tokens;
use quilt_plugin_api::{BoxFuture, CallAnswer, CommandRecord, Ended, Handler, Host, LogLevel, RawItems, Report, abi};
use quilt_protocol::message::Delivered;
use quilt_protocol::{Address, Encoding, Outcome};

use crate::catch::catch;
use crate::commands::{COMMANDS_MAX, NotOffered, PLUGIN_MAX, RecordLimit, full_name, limit_reached};
use crate::plugins::teller::Teller;
use crate::plugins::wire::{self, Told, What};

/// Commands that roles registered, by the number that the station knows them under.
static COMMANDS: Tokens<Handler> = Tokens::new();

/// Carries out a call of a command.
pub(super) fn call(inbound: Inbound) -> BoxFuture<'static, ()> {
    let Inbound { head, body, responder } = inbound;
    let handler = head.terms.command.parse().ok().and_then(|number| COMMANDS.get(number));
    let Some(handler) = handler else {
        responder.fail(Outcome::Refused, "the instance is stopping");
        return Box::pin(async {});
    };
    let encoding = match head.terms.encoding {
        Encoding::Json => api::Encoding::Json,
        Encoding::Bincode => api::Encoding::Bincode,
    };
    let items = (head.terms.credit > 0).then(|| Box::new(Sink(responder.items())) as Box<dyn RawItems>);
    let calling = catch(async move { handler(api::Call { encoding, body: body.keep(), items }).await });
    Box::pin(async move {
        let text = |outcome, text: String| (outcome, Encoding::Json, Bytes::from(text));
        let (outcome, encoding, body) = match calling.await {
            Ok(Ended::Reply(body)) => (Outcome::Reply, head.terms.encoding, body),
            Ok(Ended::Error(body)) => (Outcome::Error, head.terms.encoding, body),
            Ok(Ended::SchemaMismatch(why)) => text(Outcome::SchemaMismatch, why),
            Ok(Ended::Refused(why)) => text(Outcome::Refused, why),
            Ok(Ended::Overloaded(why)) => text(Outcome::Overloaded, why),
            Ok(Ended::Lost(why)) => text(Outcome::PeerLost(Delivered::Unknown), why),
            Ok(Ended::TimedOut) => text(Outcome::TimedOut, String::new()),
            Err(panic) => text(Outcome::Panicked, panic),
        };
        responder.respond(outcome, encoding, body);
    })
}

struct Sink(ItemSink);

impl RawItems for Sink {
    fn send(&mut self, item: Bytes) -> BoxFuture<'_, bool> {
        Box::pin(async move { self.0.send(item).await.is_ok() })
    }
}

/// What an instance in this process has of its station.
pub(super) struct GuestHost {
    instance: u64,
    teller: Arc<Teller>,
    station: Option<Handle>,
    pub(super) stop_timeout_ms: AtomicU64,
    /// By group and name: the number of a command, and how long its record is.
    commands: Mutex<HashMap<(String, String), (u64, usize)>>,
    /// That no more commands are offered is in the log.
    told_limit: AtomicBool,
}

impl GuestHost {
    pub(super) fn new(instance: u64, teller: &Arc<Teller>, station: Option<&Handle>, stop_timeout_ms: u64) -> Self {
        Self {
            instance,
            teller: teller.clone(),
            station: station.cloned(),
            stop_timeout_ms: stop_timeout_ms.into(),
            commands: Mutex::default(),
            told_limit: AtomicBool::new(false),
        }
    }

    fn tell(&self, what: What) {
        self.teller.add(Told { instance: self.instance, what });
    }

    pub(super) fn end(&self) {
        for (_, (command, _)) in self.commands.lock().unwrap_or_else(PoisonError::into_inner).drain() {
            COMMANDS.take(command);
        }
    }
}

#[allow(clippy::disallowed_methods, reason = "a loaded role spawns on the runtime of its own library, not here")]
impl Host for GuestHost {
    fn spawn(&self, work: BoxFuture<'static, ()>) {
        tokio::spawn(work);
    }
    fn blocking(&self, work: Box<dyn FnOnce() + Send>) {
        tokio::task::spawn_blocking(work);
    }
    fn sleep(&self, time: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(time))
    }
    fn stop_timeout(&self) -> Duration {
        Duration::from_millis(self.stop_timeout_ms.load(Ordering::Relaxed))
    }
    fn log(&self, level: LogLevel, text: &str) {
        let level = match level {
            LogLevel::Error => abi::LOG_ERROR,
            LogLevel::Warn => abi::LOG_WARN,
            LogLevel::Info => abi::LOG_INFO,
            LogLevel::Debug => abi::LOG_DEBUG,
        };
        self.tell(What::Log(level, text.into()));
    }
    fn report(&self, report: Report) {
        self.tell(match report {
            Report::Active => What::Active,
            Report::Waiting(on) => What::Waiting(on),
            Report::Pid(pid) => What::Pid(pid),
            Report::FoundAgain(since_ms) => What::FoundAgain(since_ms),
            Report::Failed(why) => What::Failed(why),
            Report::Ended(how) => What::Ended(how),
        });
    }
    fn attribute(&self, name: &str, json: Option<String>) {
        self.tell(What::Attribute(name.into(), json));
    }
    fn emit(&self, topic: &str, json: String) {
        self.tell(What::Emit(topic.into(), json));
    }
    fn register(&self, record: CommandRecord, handler: Handler) -> bool {
        let mut commands = self.commands.lock().unwrap_or_else(PoisonError::into_inner);
        let name = full_name(&record.group, &record.name);
        let refuse = |why: NotOffered| {
            if !self.told_limit.swap(true, Ordering::Relaxed) {
                self.log(LogLevel::Warn, &limit_reached(&name, &why));
            }
            false
        };
        // As a station does: no more than these, and the first that registers a name keeps it.
        if commands.len() >= COMMANDS_MAX {
            return refuse(NotOffered::TooMany);
        }
        let json = serde_json::to_string(&record).expect("records have text keys");
        // What the station would refuse need not be told.
        if commands.values().map(|(_, length)| length).sum::<usize>() + json.len() > PLUGIN_MAX {
            return refuse(RecordLimit::Plugin.into());
        }
        if let Entry::Vacant(free) = commands.entry((record.group, record.name)) {
            let (command, _) = *free.insert((COMMANDS.insert(handler), json.len()));
            self.tell(What::Register(command, json));
            return true;
        }
        false
    }
    fn de_register(&self, group: &str, name: &str) {
        let mut commands = self.commands.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((command, _)) = commands.remove(&(group.to_owned(), name.to_owned())) {
            COMMANDS.take(command);
            self.tell(What::DeRegister(group.into(), name.into()));
        }
    }
    fn call(&self, target: String, command: String, body: Bytes, time: Duration) -> BoxFuture<'static, CallAnswer> {
        let (station, instance) = (self.station.clone(), self.instance);
        let time_ms = time.as_millis() as u64;
        let request = wire::Call { instance, target, command, body: body.into(), time_ms };
        Box::pin(async move {
            let lost = |text: String| CallAnswer { outcome: "peer_lost".into(), body: text.into() };
            let Some(station) = station else { return lost("there is no station yet".into()) };
            let asked = station.ask(Address::Manager, wire::CALL, Encoding::Bincode, &request, time).await;
            match asked {
                Ok(wire::Called { outcome, body }) => CallAnswer { outcome, body: body.into() },
                Err(error) => CallAnswer { outcome: error.outcome().name().into(), body: error.to_string().into() },
            }
        })
    }
}
