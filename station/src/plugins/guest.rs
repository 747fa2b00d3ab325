//! The child process that a plugin runs in: loads the library as the station would, and passes everything on.

mod host;

use std::collections::HashMap;
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit};
use quilt_core::clean_start::{self, Scheduling};
use quilt_core::runtime;
use quilt_net::{Handle, Inbound, NoService, Service};
use quilt_plugin_api::{BoxFuture, Instance, RoleContext, RoleError, RoleFactory, Work, abi};
use quilt_protocol::message::{Hello, Identity, Refusal};
use quilt_protocol::session::Closed;
use quilt_protocol::version::SPOKEN;
use quilt_protocol::{Address, Encoding, Outcome, Welcome};
use smol_str::SmolStr;
use tokio::sync::{Mutex as AsyncMutex, oneshot};

use self::host::{GuestHost, call};
use super::child::Library;
use super::image::Image;
use super::teller::Teller;
use super::wire::{self, Done};
use super::{LoadError, Manifest, RUNTIME, trace};
use crate::catch::catch;

/// The first argument that makes a quilt binary a plugin's process.
pub(super) const PLUGIN_HOST: &str = "plugin-host";

/// The exit code of a plugin's process that ended before it opened the library, because the system did not give it what it needs. That
/// says nothing about the plugin. (The code that mail programs use for what may go well at another time.)
pub(super) const NEVER_BEGAN: i32 = 75;

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
        never_began(&error);
    }
    let (Some(path), Some(sha256), level) = (arguments.next(), arguments.next(), arguments.next()) else {
        eprintln!("{PLUGIN_HOST} is what a station starts for a plugin; it is not for people");
        std::process::exit(2);
    };
    let level = level.and_then(|level| level.to_str()?.parse().ok());
    trace::set_level(level.unwrap_or(abi::LOG_INFO));
    // The station's death is ours, also while the plugin hangs.
    let _ = nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL);
    let runtime = runtime::build(tokio::runtime::Builder::new_multi_thread().worker_threads(1), NEVER_BEGAN);
    let runtime = runtime.unwrap_or_else(|error| never_began(&error));
    let code = match runtime.block_on(serve(Path::new(&path), &sha256.to_string_lossy())) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("{error}");
            1
        }
    };
    // At once: threads of the plugin may go on otherwise.
    std::process::exit(code);
}

fn never_began(error: &dyn std::fmt::Display) -> ! {
    // Nobody may be there to read it; the exit code says it too.
    let _ = writeln!(std::io::stderr(), "the plugin's process cannot begin: {error}");
    std::process::exit(NEVER_BEGAN)
}

/// The socket to the station, which is this process's standard input.
fn socket() -> std::io::Result<tokio::net::UnixStream> {
    let socket = std::io::stdin().as_fd().try_clone_to_owned()?;
    // What the plugin reads from its standard input must not be what the station says.
    let null = std::fs::File::open("/dev/null")?;
    nix::unistd::dup2_stdin(&null)?;
    let socket = std::os::unix::net::UnixStream::from(socket);
    socket.set_nonblocking(true)?;
    tokio::net::UnixStream::from_std(socket)
}

async fn serve(path: &Path, sha256: &str) -> std::io::Result<()> {
    let _ = RUNTIME.set(tokio::runtime::Handle::current());
    let socket = socket().unwrap_or_else(|error| never_began(&error));
    let teller = Arc::new(Teller::default());
    trace::pass_on(teller.clone());
    // Before the greeting: a library that crashes while it is loaded is one that never greets.
    let (path, sha) = (path.to_owned(), sha256.to_owned());
    let runtime = tokio::runtime::Handle::current();
    let (loaded, loading) = oneshot::channel();
    let load = move || {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let image = Image::open(&Library { path, sha256: sha, name, aborts: false, printed: None }, &runtime, false)?;
        let manifest = image.describe()?;
        let roles = image.roles(&manifest).into_iter().map(|role| (role.name().to_owned(), role)).collect();
        Ok::<_, LoadError>((manifest, roles))
    };
    // Not on the runtime's own threads: it panics if there are none to be had.
    let thread = thread::Builder::new().name("load".into()).spawn(move || drop(loaded.send(load())));
    thread.unwrap_or_else(|error| never_began(&error));
    let loaded = loading.await.unwrap_or_else(|_| Err(LoadError::Open("loading it panicked".into())));
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
        let loaded = self.loaded.as_ref().map_err(|error| RoleError::failed(format!("the plugin {error}")));
        let role = loaded?.1.get(name).cloned();
        role.ok_or_else(|| RoleError::failed(format!("the plugin has no role `{name}`")))
    }

    fn running(&self) -> MutexGuard<'_, HashMap<u64, Arc<Hosted>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hosted(&self, instance: u64) -> Option<Arc<Hosted>> {
        self.running().get(&instance).cloned()
    }

    fn host(&self, instance: u64, stop_timeout_ms: u64) -> Arc<GuestHost> {
        Arc::new(GuestHost::new(instance, &self.teller, self.station.get(), stop_timeout_ms))
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
            factory.validate(&config).await
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
