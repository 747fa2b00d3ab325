//! The child process that a plugin runs in: loads the library as the station would, and passes everything on.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use nix::sys::resource::{Resource, getrlimit};
use quilt_core::clean_start::{self, Scheduling};
use quilt_net::{Handle, Inbound, ItemSink, NoService, Service};
use quilt_plugin_api as api;
use quilt_plugin_api::bridge::Tokens;
use quilt_plugin_api::{
    BoxFuture, CallAnswer, CommandRecord, Ended, Handler, Host, Instance, LogLevel, RawItems, Report, RoleContext,
    RoleError, RoleFactory, Work, abi,
};
use quilt_protocol::message::{Delivered, Hello, Identity, Refusal};
use quilt_protocol::session::Closed;
use quilt_protocol::version::SPOKEN;
use quilt_protocol::{Address, Encoding, Outcome, Welcome};
use smol_str::SmolStr;
use tokio::sync::Mutex as AsyncMutex;

use super::child::Library;
use super::image::Image;
use super::teller::Teller;
use super::wire::{self, Done, Told, What};
use super::{LoadError, Manifest, RUNTIME, trace};
use crate::catch::catch;
use crate::commands::{COMMANDS_MAX, PLUGIN_MAX, RecordLimit, full_name, limit_reached};

/// The first argument that makes a quilt binary a plugin's process.
pub(super) const PLUGIN_HOST: &str = "plugin-host";

/// How long the station may take to hear that this process is ready.
const READY: Duration = Duration::from_secs(30);

/// To be called first thing in `main` of every binary that hosts stations: becomes a plugin's process if it was started as
/// one.
pub fn become_plugin_host_if_asked() {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_none_or(|mode| mode != PLUGIN_HOST) {
        return;
    }
    clean_start::begin(c"quilt-plugin");
    // A plugin has no key for its limits: it may have as many files open as the station may allow.
    let open_files = getrlimit(Resource::RLIMIT_NOFILE).ok().map(|(_, hard)| hard);
    if let Err(error) = (Scheduling { open_files, ..Scheduling::default() }).apply() {
        eprintln!("{error}");
        std::process::exit(1);
    }
    let (Some(path), Some(sha256), level) = (arguments.next(), arguments.next(), arguments.next()) else {
        eprintln!("{PLUGIN_HOST} is what a station starts for a plugin; it is not for people");
        std::process::exit(2);
    };
    let level = level.and_then(|level| level.to_str()?.parse().ok());
    trace::set_level(level.unwrap_or(abi::LOG_INFO));
    // The station's death is ours, also while the plugin hangs.
    let _ = nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let code = match runtime {
        Ok(runtime) => match runtime.block_on(serve(Path::new(&path), &sha256.to_string_lossy())) {
            Ok(()) => 0,
            Err(error) => {
                eprintln!("{error}");
                1
            }
        },
        Err(error) => {
            eprintln!("its runtime: {error}");
            1
        }
    };
    // At once: threads of the plugin may go on otherwise.
    std::process::exit(code);
}

async fn serve(path: &Path, sha256: &str) -> std::io::Result<()> {
    let _ = RUNTIME.set(tokio::runtime::Handle::current());
    let socket = std::io::stdin().as_fd().try_clone_to_owned()?;
    // What the plugin reads from its standard input must not be what the station says.
    let null = std::fs::File::open("/dev/null")?;
    nix::unistd::dup2_stdin(&null)?;
    let socket = std::os::unix::net::UnixStream::from(socket);
    socket.set_nonblocking(true)?;
    let socket = tokio::net::UnixStream::from_std(socket)?;

    let teller = Arc::new(Teller::default());
    trace::pass_on(teller.clone());
    // Before the greeting: a library that crashes while it is loaded is one that never greets.
    let (path, sha) = (path.to_owned(), sha256.to_owned());
    let runtime = tokio::runtime::Handle::current();
    let loading = tokio::task::spawn_blocking(move || {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let image = Image::open(&Library { path, sha256: sha, name, aborts: false, printed: None }, &runtime, false)?;
        let manifest = image.describe()?;
        let roles = image.roles(&manifest).into_iter().map(|role| (role.name().to_owned(), role)).collect();
        Ok::<_, LoadError>((manifest, roles))
    });
    let loaded = loading.await.unwrap_or_else(|error| Err(LoadError::Open(error.to_string())));
    let inner = Inner { loaded, teller: teller.clone(), station: OnceLock::new(), running: Mutex::default() };
    let guest = Arc::new(Guest(Arc::new(inner)));
    let hello = Hello {
        versions: SPOKEN,
        software: concat!("quilt-plugin-host ", env!("CARGO_PKG_VERSION")).into(),
        fleet: None,
        identity: Identity::Tool("plugin".parse().expect("a fixed name is a name")),
        features: Vec::new(),
        extensions: Default::default(),
    };
    let (handle, _) = quilt_net::connect(socket, hello, guest.clone())
        .await
        .map_err(|error| std::io::Error::other(error.to_string()))?;
    let _ = guest.0.station.set(handle.clone());
    let ready = handle.ask::<_, ()>(Address::Manager, wire::READY, Encoding::Bincode, &(), READY).await;
    ready.map_err(|error| std::io::Error::other(error.to_string()))?;
    tokio::select! {
        () = teller.tell(&handle) => {}
        _ = handle.closed() => {}
    }
    Ok(())
}

struct Guest(Arc<Inner>);

/// What a plugin says about itself, and its roles by name.
type Loaded = (Manifest, HashMap<String, Arc<dyn RoleFactory>>);

struct Inner {
    loaded: Result<Loaded, LoadError>,
    teller: Arc<Teller>,
    station: OnceLock<Handle>,
    running: Mutex<HashMap<u64, Arc<Hosted>>>,
}

/// An instance in this process.
struct Hosted {
    host: Arc<GuestHost>,
    role: AsyncMutex<Option<Box<dyn Instance>>>,
    work: Mutex<Option<Work>>,
}

impl Service for Guest {
    fn hello(&self, hello: Hello) -> Result<(Welcome, SmolStr), Refusal> {
        NoService.hello(hello)
    }

    fn request(&self, inbound: Inbound) -> BoxFuture<'static, ()> {
        let inner = self.0.clone();
        if let Address::Instance { .. } = inbound.head.terms.to {
            return call(inbound);
        }
        match inbound.head.terms.command.as_str() {
            wire::ALIVE => inbound.answer(|(): ()| async move {
                inner.turn().await;
                Ok(())
            }),
            wire::LEVEL => inbound.answer(|level: u32| async move {
                trace::set_level(level);
                Ok(())
            }),
            wire::DESCRIBE => {
                let described = inner.loaded.as_ref().map(|(manifest, _)| manifest);
                let body = serde_json::to_vec(&described).expect("descriptions have text keys");
                inbound.responder.respond(Outcome::Reply, Encoding::Json, body.into());
                Box::pin(async {})
            }
            wire::VALIDATE => {
                inbound.answer(|request: wire::Validate| async move { Ok(inner.validate(request).await) })
            }
            wire::START => inbound.answer(|request: wire::Start| async move { Ok(inner.start(request).await) }),
            wire::UPDATE => inbound.answer(|request: wire::Update| async move { Ok(inner.update(request).await) }),
            wire::RUN => inbound.answer(|request: wire::Run| async move { Ok(inner.run(&request).await) }),
            wire::STOP => inbound.answer(|request: wire::Stop| async move { Ok(inner.stop(&request).await) }),
            wire::ABANDON => inbound.answer(|request: wire::Abandon| async move { Ok(inner.abandon(request).await) }),
            other => {
                inbound.responder.fail(Outcome::NoCommand, &format!("a plugin's process has no command {other:?}"));
                Box::pin(async {})
            }
        }
    }

    fn closed(&self, _: &Closed) {
        // Nothing of the plugin may go on without its station.
        std::process::exit(0);
    }
}

fn done<T>(result: Result<Result<T, RoleError>, String>) -> Done<T> {
    match result {
        Ok(Ok(value)) => Done::Ok(value),
        Ok(Err(RoleError::Rejected(invalid))) => Done::Invalid(invalid),
        Ok(Err(RoleError::NeedsRestart)) => Done::NeedsRestart,
        Ok(Err(RoleError::Failed(text))) => Done::Failed(text),
        Err(panic) => Done::Panicked(panic),
    }
}

fn gone<T>() -> Done<T> {
    Done::Failed("the plugin's process does not know the instance".into())
}

impl Inner {
    fn role(&self, name: &str) -> Result<Arc<dyn RoleFactory>, RoleError> {
        let role = self.loaded.as_ref().ok().and_then(|(_, roles)| roles.get(name));
        role.cloned().ok_or_else(|| RoleError::failed(format!("the plugin has no role `{name}`")))
    }

    fn running(&self) -> MutexGuard<'_, HashMap<u64, Arc<Hosted>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hosted(&self, instance: u64) -> Option<Arc<Hosted>> {
        self.running().get(&instance).cloned()
    }

    fn host(&self, instance: u64, stop_timeout_ms: u64) -> Arc<GuestHost> {
        Arc::new(GuestHost {
            instance,
            teller: self.teller.clone(),
            station: self.station.get().cloned(),
            stop_timeout_ms: stop_timeout_ms.into(),
            commands: Mutex::default(),
            told_limit: AtomicBool::new(false),
        })
    }

    /// Has the plugin's own threads do something.
    async fn turn(&self) {
        let role = self.loaded.as_ref().ok().and_then(|(_, roles)| roles.values().next());
        if let Some(role) = role {
            let _ = catch(role.validate(b"null")).await;
        }
    }

    async fn validate(&self, wire::Validate { role, config }: wire::Validate) -> Done<()> {
        let validating = async {
            let factory = self.role(&role)?;
            factory.validate(&config).await.map_err(RoleError::Rejected)
        };
        done(catch(validating).await)
    }

    /// The answer says whether the instance has work of its own.
    async fn start(&self, wire::Start { instance, role, place, config, stop_timeout_ms }: wire::Start) -> Done<bool> {
        let host = self.host(instance, stop_timeout_ms);
        let starting = async {
            let factory = self.role(&role)?;
            let mut role = factory.start(&config, RoleContext::new(host.clone(), place)).await?;
            let work = role.run().await;
            Ok((role, work))
        };
        let started = match done(catch(starting).await) {
            Done::Ok((role, work)) => {
                let has_work = work.is_some();
                let hosted = Hosted { host, role: AsyncMutex::new(Some(role)), work: Mutex::new(work) };
                self.running().insert(instance, Arc::new(hosted));
                Done::Ok(has_work)
            }
            Done::Invalid(invalid) => Done::Invalid(invalid),
            Done::NeedsRestart => Done::NeedsRestart,
            Done::Failed(text) => Done::Failed(text),
            Done::Panicked(panic) => Done::Panicked(panic),
        };
        self.teller.flush().await;
        started
    }

    async fn update(&self, wire::Update { instance, config, stop_timeout_ms }: wire::Update) -> Done<()> {
        let Some(hosted) = self.hosted(instance) else { return gone() };
        hosted.host.stop_timeout_ms.store(stop_timeout_ms, Ordering::Relaxed);
        let mut role = hosted.role.lock().await;
        let Some(role) = role.as_mut() else { return gone() };
        let updated = done(catch(role.update(&config)).await);
        self.teller.flush().await;
        updated
    }

    /// Begins the instance's work; how it ends is told.
    async fn run(&self, wire::Run { instance }: &wire::Run) -> Done<()> {
        let Some(hosted) = self.hosted(*instance) else { return gone() };
        let work = hosted.work.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(work) = work else { return gone() };
        let ended = done(catch(work).await);
        self.teller.flush().await;
        ended
    }

    async fn stop(&self, wire::Stop { instance, detach, stop_timeout_ms }: &wire::Stop) -> Done<()> {
        let Some(hosted) = self.hosted(*instance) else { return gone() };
        hosted.host.stop_timeout_ms.store(*stop_timeout_ms, Ordering::Relaxed);
        hosted.work.lock().unwrap_or_else(PoisonError::into_inner).take();
        let role = hosted.role.lock().await.take();
        let stopped = match role {
            None => Done::Ok(()),
            Some(role) => {
                let stopping = async {
                    if *detach { role.detach() } else { role.stop() }.await;
                    Ok(())
                };
                done(catch(stopping).await)
            }
        };
        self.running().remove(instance);
        hosted.host.end();
        self.teller.flush().await;
        stopped
    }

    async fn abandon(&self, wire::Abandon { role, place, stop_timeout_ms }: wire::Abandon) -> Done<()> {
        let host = self.host(0, stop_timeout_ms);
        let abandoning = async {
            self.role(&role)?.abandon(RoleContext::new(host, place)).await;
            Ok(())
        };
        let abandoned = done(catch(abandoning).await);
        self.teller.flush().await;
        abandoned
    }
}

/// Commands that roles registered, by the number that the station knows them under.
static COMMANDS: Tokens<Handler> = Tokens::new();

fn call(inbound: Inbound) -> BoxFuture<'static, ()> {
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
struct GuestHost {
    instance: u64,
    teller: Arc<Teller>,
    station: Option<Handle>,
    stop_timeout_ms: AtomicU64,
    /// By group and name: the number of a command, and how long its record is.
    commands: Mutex<HashMap<(String, String), (u64, usize)>>,
    /// That no more commands are offered is in the log.
    told_limit: AtomicBool,
}

impl GuestHost {
    fn tell(&self, what: What) {
        self.teller.add(Told { instance: self.instance, what });
    }

    fn end(&self) {
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
        // As a station does: no more than these, and the first that registers a name keeps it.
        if commands.len() >= COMMANDS_MAX {
            return false;
        }
        let json = serde_json::to_string(&record).expect("records have text keys");
        // What the station would refuse need not be told.
        if commands.values().map(|(_, length)| length).sum::<usize>() + json.len() > PLUGIN_MAX {
            if !self.told_limit.swap(true, Ordering::Relaxed) {
                let name = full_name(&record.group, &record.name);
                self.log(LogLevel::Warn, &limit_reached(&name, &RecordLimit::Plugin.into()));
            }
            return false;
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
