//! A plugin's child process as the station sees it: started when it is needed, asked over a socket pair, and gone with all
//! its instances when it crashes, hangs or falls silent.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::panic::resume_unwind;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use quilt_net::{Answer, AskError, BoxFuture, Handle, Inbound, Service, accept};
use quilt_plugin_api as api;
use quilt_plugin_api::{
    Ended, Handler, Host, Instance, Invalid, LogLevel, RawItems, Report, RoleContext, RoleDescription, RoleError,
    RoleFactory, Work, abi,
};
use quilt_protocol::message::{Hello, NO_DEADLINE, Refusal};
use quilt_protocol::session::Closed;
use quilt_protocol::version::SPOKEN;
use quilt_protocol::{Address, Encoding, FleetId, Limits, Name, Outcome, RequestHead, Welcome};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};
use tokio::process::Command;
use tokio::sync::{Mutex as AsyncMutex, watch};

use super::guest::PLUGIN_HOST;
use super::wire::{self, Done, Told, What};
use super::{LoadError, Manifest, trace};

/// How often the child gives a sign of life; three missed, and it is killed.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// How much longer than loading its greeting may take.
const READY: Duration = Duration::from_secs(5);
/// How long loading a library may take.
const LOAD: Duration = Duration::from_secs(20);
/// How long judging a configuration may take.
const VALIDATE: Duration = Duration::from_secs(5);
/// More than anything that the station bounds itself.
const LONG: Duration = Duration::from_secs(24 * 60 * 60);
/// A call that was given up must have ended after so long; otherwise the plugin hangs.
const CANCEL: Duration = Duration::from_secs(5);
/// How long a process without instances is kept for the next question.
const IDLE: Duration = Duration::from_secs(2);
const NOT_NEEDED: &str = "nobody needs it";
/// How many of its last lines on standard error a crash is reported with.
const LAST_LINES: usize = 5;
/// How many items of a stream wait here.
const WINDOW: u32 = 64;

/// The library that children are made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Library {
    /// The checked private copy.
    pub(crate) path: PathBuf,
    pub(crate) sha256: String,
    /// For people: the plugin's name, or its file until that is known.
    pub(crate) name: String,
    /// Whether its note says that a panic of it ends its process.
    pub(crate) aborts: bool,
}

/// A plugin that runs in a child process; there is none as long as nobody needs it.
pub(crate) struct Keeper {
    library: Library,
    child: AsyncMutex<Option<Arc<Child>>>,
}

impl Keeper {
    pub(crate) fn new(library: Library) -> Arc<Self> {
        Arc::new(Self { library, child: AsyncMutex::default() })
    }

    /// The process, started if there is none.
    pub(crate) async fn child(&self) -> Result<Arc<Child>, LoadError> {
        let mut child = self.child.lock().await;
        if let Some(child) = child.as_ref().filter(|child| child.is_there()) {
            return Ok(child.clone());
        }
        let started = Child::start(&self.library).await?;
        *child = Some(started.clone());
        Ok(started)
    }

    /// What the plugin says of itself.
    pub(crate) async fn describe(&self) -> Result<Manifest, LoadError> {
        self.child().await?.describe().await
    }

    /// Its roles.
    pub(crate) fn roles(self: &Arc<Self>, manifest: &Manifest) -> Vec<Arc<dyn RoleFactory>> {
        let roles = manifest.roles.iter();
        roles
            .map(|role| Arc::new(Remote { keeper: self.clone(), role: role.clone() }) as Arc<dyn RoleFactory>)
            .collect()
    }

    /// The process's id, if there is one.
    pub(crate) async fn pid(&self) -> Option<u32> {
        self.child.lock().await.as_ref().filter(|child| !child.is_over()).map(|child| child.pid)
    }
}

/// A running child.
pub(crate) struct Child {
    /// The plugin's.
    name: String,
    pid: u32,
    session: OnceLock<Handle>,
    instances: Mutex<HashMap<u64, Placed>>,
    next: Mutex<u64>,
    /// When it was needed last, and how many questions it works on.
    used: Mutex<(Instant, usize)>,
    /// Why it is to be killed, if the station decided so.
    killed: watch::Sender<Option<String>>,
    /// How it ended.
    over: watch::Sender<Option<String>>,
}

#[derive(Clone)]
struct Placed {
    host: Arc<dyn Host>,
    to: Address,
}

/// A question that the child works on.
struct Asking<'a>(&'a Child);

impl<'a> Asking<'a> {
    fn new(child: &'a Child) -> Self {
        child.used(1);
        Self(child)
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.0.used(-1);
    }
}

impl Placed {
    fn is_called(&self, name: Option<&str>) -> bool {
        let Address::Instance { role, instance, .. } = &self.to else { return false };
        name.and_then(|name| name.split_once('/')) == Some((role.as_str(), instance.as_str()))
    }
}

impl Child {
    async fn start(library: &Library) -> Result<Arc<Self>, LoadError> {
        let failed = |error: std::io::Error| LoadError::Open(format!("a process for it: {error}"));
        let (ours, theirs) = tokio::net::UnixStream::pair().map_err(failed)?;
        let theirs = OwnedFd::from(theirs.into_std().map_err(failed)?);
        let mut command = Command::new("/proc/self/exe");
        command.arg(PLUGIN_HOST).arg(&library.path).arg(&library.sha256).arg(trace::level().to_string());
        command.stdin(Stdio::from(theirs)).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut process = command.spawn().map_err(failed)?;
        // Our copy of its end would keep the socket open after its death.
        drop(command);
        let child = Arc::new(Self {
            name: library.name.clone(),
            pid: process.id().unwrap_or_default(),
            session: OnceLock::new(),
            instances: Mutex::default(),
            next: Mutex::new(1),
            used: Mutex::new((Instant::now(), 0)),
            killed: watch::Sender::new(None),
            over: watch::Sender::new(None),
        });
        let last = Arc::new(Mutex::new(VecDeque::new()));
        let out = process.stdout.take().map(|pipe| read_lines(pipe, library.name.clone(), last.clone()));
        let err = process.stderr.take().map(|pipe| read_lines(pipe, library.name.clone(), last.clone()));

        let (ready, mut readies) = watch::channel(false);
        let service = |handle: Handle| {
            let _ = child.session.set(handle);
            Arc::new(Station { child: child.clone(), ready })
        };
        // It greets once its library is loaded.
        let session = accept(ours, Limits { greeting: LOAD + READY, ..Limits::default() }, service);
        let (name, child_of_task) = (library.name.clone(), child.clone());
        #[allow(clippy::disallowed_methods, reason = "ends with the child, which is killed when it is dropped")]
        tokio::spawn(async move {
            let mut killed = child_of_task.killed.subscribe();
            let why = tokio::select! {
                why = session => why.to_string(),
                why = killed.wait_for(Option::is_some) => why.ok().and_then(|why| why.clone()).unwrap_or_default(),
                why = child_of_task.follow_levels() => why,
                why = child_of_task.idle() => why,
            };
            // What ends the session of a child ends the child; one that ended by itself has its own status.
            let by_itself = tokio::time::timeout(Duration::from_millis(200), process.wait()).await;
            // The reason for which the station let go of it says more than how it took that.
            let reason = child_of_task.killed.borrow().clone();
            let how = match by_itself {
                Ok(Ok(_)) if reason.is_some() => reason.unwrap_or_default(),
                Ok(Ok(status)) if status.success() => format!("{}; {why}", ended(status)),
                Ok(Ok(status)) => ended(status),
                _ => {
                    let _ = process.kill().await;
                    format!("{why}; it was killed")
                }
            };
            for reading in [out, err].into_iter().flatten() {
                let _ = tokio::time::timeout(Duration::from_millis(200), reading).await;
            }
            let last: Vec<String> = last.lock().unwrap_or_else(PoisonError::into_inner).drain(..).collect();
            let how = if last.is_empty() { how } else { format!("{how}; its last lines: {}", last.join(" | ")) };
            match how.starts_with(NOT_NEEDED) {
                true => tracing::debug!(plugin = %name, pid = child_of_task.pid, "the plugin's process is not needed"),
                false => tracing::warn!(plugin = %name, pid = child_of_task.pid, "the plugin's process ended: {how}"),
            }
            child_of_task.end(&how);
        });

        let mut over = child.over.subscribe();
        tokio::select! {
            ready = tokio::time::timeout(LOAD, readies.wait_for(|ready| *ready)) => match ready {
                Ok(Ok(_)) => return Ok(child),
                Ok(Err(_)) => {}
                Err(_) => child.kill(&format!("it did not load within {LOAD:?}")),
            },
            _ = over.wait_for(Option::is_some) => {}
        }
        let over = over.wait_for(Option::is_some).await.ok().and_then(|over| over.clone());
        Err(LoadError::Crashed(over.unwrap_or_default()))
    }

    /// Tells the child up to which level events are taken, for ever.
    async fn follow_levels(&self) -> String {
        let mut levels = trace::levels();
        while levels.changed().await.is_ok() {
            let level = *levels.borrow_and_update();
            if self.ask::<_, ()>(wire::LEVEL, &level, CANCEL).await.is_err() {
                break;
            }
        }
        std::future::pending().await
    }

    /// Ready once nobody has needed it for a while.
    async fn idle(&self) -> String {
        loop {
            tokio::time::sleep(IDLE).await;
            let used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
            if self.placed().is_empty() && used.1 == 0 && used.0.elapsed() >= IDLE {
                // Under the lock, so that nobody is given it in this very moment.
                self.kill(NOT_NEEDED);
                return NOT_NEEDED.into();
            }
        }
    }

    /// Notes that it is needed, and that it works on so many questions more.
    fn used(&self, more: isize) {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        *used = (Instant::now(), used.1.saturating_add_signed(more));
    }

    /// Whether it can be used; if so it is for a while.
    fn is_there(&self) -> bool {
        self.used(0);
        !self.is_over()
    }

    fn is_over(&self) -> bool {
        self.over.borrow().is_some() || self.killed.borrow().is_some()
    }

    fn kill(&self, why: &str) {
        self.killed.send_if_modified(|killed| {
            let first = killed.is_none();
            if first {
                *killed = Some(why.to_owned());
            }
            first
        });
    }

    /// Tells every instance in it.
    fn end(&self, how: &str) {
        self.over.send_replace(Some(how.to_owned()));
        if let Some(session) = self.session.get() {
            session.goodbye("the process is over");
        }
        for (_, placed) in self.placed().drain() {
            placed.host.report(Report::Failed(format!("the plugin's process ended: {how}")));
        }
    }

    fn placed(&self) -> MutexGuard<'_, HashMap<u64, Placed>> {
        self.instances.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn ask<Q: Serialize, R: DeserializeOwned>(
        &self,
        command: &str,
        request: &Q,
        time: Duration,
    ) -> Result<R, String> {
        let session = self.session.get().expect("a child that was started has a session");
        let _asking = Asking::new(self);
        let asked = session.ask(Address::Manager, command, Encoding::Bincode, request, time).await;
        match asked {
            Ok(reply) => Ok(reply),
            Err(AskError::Ended { outcome: Outcome::PeerLost(_), .. }) => Err(self.end_in_words().await),
            Err(error) => Err(error.to_string()),
        }
    }

    /// How the process ended, if it has.
    async fn how_it_ended(&self) -> Option<String> {
        let mut over = self.over.subscribe();
        let how = tokio::time::timeout(Duration::from_secs(2), over.wait_for(Option::is_some)).await;
        how.ok().and_then(Result::ok).and_then(|how| how.clone())
    }

    async fn end_in_words(&self) -> String {
        let how = self.how_it_ended().await.unwrap_or_else(|| "nobody knows how".into());
        format!("the plugin's process ended: {how}")
    }

    async fn describe(&self) -> Result<Manifest, LoadError> {
        let session = self.session.get().expect("a child that was started has a session");
        let mut head = RequestHead::new(Address::Manager, wire::DESCRIBE);
        head.remaining_ms = LOAD.as_millis() as u32;
        let answer = session.request(head, Bytes::new()).await;
        if answer.outcome != Outcome::Reply {
            return Err(match self.how_it_ended().await {
                Some(how) => LoadError::Crashed(how),
                None => LoadError::Describe(format!("it gave no answer: {}", answer.outcome.name())),
            });
        }
        let described = serde_json::from_slice::<Result<Manifest, LoadError>>(&answer.body);
        let manifest = described.map_err(|error| LoadError::Describe(error.to_string()))??;
        // Checked on this side too: what comes from there is a stranger's.
        Manifest::read(&serde_json::to_vec(&manifest).expect("it was JSON"))
    }
}

fn ended(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt as _;
    match (status.code(), status.signal().and_then(|signal| nix::sys::signal::Signal::try_from(signal).ok())) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("killed by {signal}"),
        (None, None) => status.to_string(),
    }
}

/// Puts what a plugin prints into the station's log, and keeps the last lines.
#[allow(clippy::disallowed_methods, reason = "ends with the pipe, which ends with the child")]
fn read_lines(
    pipe: impl AsyncRead + Send + Unpin + 'static,
    plugin: String,
    last: Arc<Mutex<VecDeque<String>>>,
) -> tokio::task::JoinHandle<()> {
    /// A line longer than this is cut in pieces.
    const LINE_MAX: u64 = 8 << 10;
    tokio::spawn(async move {
        use tokio::io::AsyncReadExt as _;
        let mut pipe = BufReader::new(pipe);
        let mut line = Vec::new();
        loop {
            line.clear();
            match (&mut pipe).take(LINE_MAX).read_until(b'\n', &mut line).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            tracing::info!(plugin, "{text}");
            let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
            if last.len() == LAST_LINES {
                last.pop_front();
            }
            last.push_back(text);
        }
    })
}

/// Answers what the child asks and hears what it tells.
struct Station {
    child: Arc<Child>,
    ready: watch::Sender<bool>,
}

impl Service for Station {
    fn hello(&self, hello: Hello) -> Result<Welcome, Refusal> {
        tracing::trace!(software = hello.software, "a plugin's process greets");
        Ok(Welcome {
            version: SPOKEN.highest,
            software: concat!("quilt-station ", env!("CARGO_PKG_VERSION")).into(),
            fleet: FleetId(uuid::Uuid::nil()),
            assigned: None,
            heartbeat_ms: HEARTBEAT.as_millis() as u32,
            features: Vec::new(),
            extensions: BTreeMap::new(),
        })
    }

    fn request(&self, inbound: Inbound) -> BoxFuture<'static, ()> {
        let child = self.child.clone();
        match inbound.head.command.as_str() {
            // In order: done before the connection's next frame is looked at.
            wire::READY => {
                self.ready.send_replace(true);
                inbound.answer(|(): ()| std::future::ready(Ok(())))
            }
            wire::TELL => inbound.answer(move |told: Vec<Told>| {
                told.into_iter().for_each(|told| hear(&child, told));
                std::future::ready(Ok(()))
            }),
            wire::CALL => inbound.answer(move |wire::Call { instance, target, command, body, time_ms }| {
                let placed = child.placed().get(&instance).cloned();
                async move {
                    let Some(placed) = placed else { return Err((Outcome::NoTarget, "it is gone".into())) };
                    let time = Duration::from_millis(time_ms);
                    let answer = placed.host.call(target, command, body.into(), time).await;
                    Ok(wire::Called { outcome: answer.outcome, body: answer.body.into() })
                }
            }),
            other => {
                inbound.responder.fail(Outcome::NoCommand, &format!("a station has no command {other:?} for plugins"));
                Box::pin(async {})
            }
        }
    }

    fn closed(&self, _: &Closed) {}
}

fn hear(child: &Arc<Child>, Told { instance, what }: Told) {
    if let What::Trace { level, target, instance, fields } = what {
        let taken = trace::event(level, &target, &child.name, instance.as_deref(), &fields);
        if taken && level <= trace::TOLD {
            let host = child.placed().values().find(|placed| placed.is_called(instance.as_deref())).cloned();
            if let Some(placed) = host {
                placed.host.emit("trace", trace::told(level, &target, &child.name, &fields));
            }
        }
        return;
    }
    let Some(Placed { host, to }) = child.placed().get(&instance).cloned() else { return };
    match what {
        What::Log(level, text) => host.log(
            match level {
                abi::LOG_ERROR => LogLevel::Error,
                abi::LOG_WARN => LogLevel::Warn,
                abi::LOG_INFO => LogLevel::Info,
                _ => LogLevel::Debug,
            },
            &text,
        ),
        What::Active => host.report(Report::Active),
        What::Waiting(on) => host.report(Report::Waiting(on)),
        What::Pid(pid) => host.report(Report::Pid(pid)),
        What::FoundAgain(since_ms) => host.report(Report::FoundAgain(since_ms)),
        What::Failed(why) => host.report(Report::Failed(why)),
        What::Ended(how) => host.report(Report::Ended(how)),
        What::Attribute(name, json) => host.attribute(&name, json),
        What::Emit(topic, json) => host.emit(&topic, json),
        What::Register(command, record) => match serde_json::from_str(&record) {
            Ok(record) => drop(host.register(record, handler(child.clone(), to, command))),
            Err(error) => host.log(LogLevel::Error, &format!("a command's record: {error}")),
        },
        What::DeRegister(group, name) => host.de_register(&group, &name),
        What::Trace { .. } => unreachable!("told above"),
    }
}

/// What carries out calls of a command in a child.
fn handler(child: Arc<Child>, to: Address, command: u64) -> Handler {
    Arc::new(move |call| Box::pin(carry_out(child.clone(), to.clone(), command, call)))
}

async fn carry_out(child: Arc<Child>, to: Address, command: u64, call: api::Call) -> Ended {
    let session = child.session.get().expect("a child that was started has a session");
    let mut head = RequestHead::new(to, command.to_string());
    head.encoding = match call.encoding {
        api::Encoding::Json => Encoding::Json,
        api::Encoding::Bincode => Encoding::Bincode,
    };
    // Whoever calls keeps the time, and drops this when it is over.
    head.remaining_ms = NO_DEADLINE;
    let answer = match call.items {
        None => {
            let asked = session.request(head, call.body);
            let watch = Watch { child: child.clone(), done: false };
            let answer = asked.await;
            watch.done();
            answer
        }
        Some(sink) => {
            let watch = Watch { child: child.clone(), done: false };
            let answer = stream(session, head, call.body, sink).await;
            watch.done();
            answer
        }
    };
    let Answer { outcome, body, .. } = &answer;
    match outcome {
        Outcome::Reply => Ended::Reply(body.clone()),
        Outcome::Error => Ended::Error(body.clone()),
        Outcome::SchemaMismatch => Ended::SchemaMismatch(answer.text()),
        Outcome::Panicked => resume_unwind(Box::new(answer.text())),
        Outcome::TimedOut => Ended::TimedOut,
        Outcome::PeerLost(_) => Ended::Lost(child.end_in_words().await),
        _ => Ended::Refused(answer.text()),
    }
}

async fn stream(session: &Handle, head: RequestHead, body: Bytes, mut sink: Box<dyn RawItems>) -> Answer {
    let mut items = session.stream(head, body, WINDOW);
    while let Some(item) = items.next().await {
        if !sink.send(item).await {
            break;
        }
    }
    items.end().await
}

/// Looks whether a plugin lets go of a call that was given up: one that does not hangs, and is killed.
struct Watch {
    child: Arc<Child>,
    done: bool,
}

impl Watch {
    fn done(mut self) {
        self.done = true;
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if self.done || self.child.is_over() {
            return;
        }
        let child = self.child.clone();
        #[allow(clippy::disallowed_methods, reason = "bounded by CANCEL")]
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                // The plugin's own threads must still turn: that is what a hang in a command stops.
                if child.ask::<_, ()>(wire::ALIVE, &(), CANCEL).await.is_err() && !child.is_over() {
                    child.kill(&format!("it did not answer {CANCEL:?} after a call was given up: it hangs"));
                }
            });
        }
    }
}

/// A role of a plugin in a child process.
struct Remote {
    keeper: Arc<Keeper>,
    role: RoleDescription,
}

fn outcome<T>(done: Result<Done<T>, String>) -> Result<T, RoleError> {
    match done {
        Ok(Done::Ok(value)) => Ok(value),
        Ok(Done::Invalid(invalid)) => Err(RoleError::Rejected(invalid)),
        Ok(Done::NeedsRestart) => Err(RoleError::NeedsRestart),
        Ok(Done::Failed(text)) | Err(text) => Err(RoleError::Failed(text)),
        Ok(Done::Panicked(panic)) => resume_unwind(Box::new(panic)),
    }
}

impl RoleFactory for Remote {
    fn name(&self) -> &str {
        &self.role.name
    }

    fn instances(&self) -> u32 {
        self.role.instances
    }

    fn version(&self) -> &str {
        &self.role.version
    }

    fn describe(&self) -> RoleDescription {
        self.role.clone()
    }

    fn validate(&self, config: &[u8]) -> BoxFuture<'static, Result<(), Vec<Invalid>>> {
        let (keeper, config, role) = (self.keeper.clone(), config.to_vec(), self.role.name.clone());
        Box::pin(async move {
            let unable = |got: String| vec![Invalid { key: None, expected: "a plugin that can judge it".into(), got }];
            let child = keeper.child().await.map_err(|error| unable(error.to_string()))?;
            let asked = child.ask(wire::VALIDATE, &wire::Validate { role, config }, VALIDATE).await;
            outcome(asked).map_err(|error| match error {
                RoleError::Rejected(invalid) => invalid,
                other => unable(other.to_string()),
            })
        })
    }

    fn start(&self, config: &[u8], cx: RoleContext) -> BoxFuture<'static, Result<Box<dyn Instance>, RoleError>> {
        let (keeper, config, role) = (self.keeper.clone(), config.to_vec(), self.role.name.clone());
        Box::pin(async move {
            let child = keeper.child().await.map_err(|error| RoleError::failed(error.to_string()))?;
            let place = Place::new(child.clone(), &cx);
            let stop_timeout_ms = cx.stop_timeout().as_millis() as u64;
            let instance = place.instance;
            cx.host().report(Report::Pid(Some(child.pid)));
            // A start that is given up leaves something half done, and nobody to end it.
            let mut given_up = KillUnlessDone { child: child.clone(), what: "a start that was given up", done: false };
            let request = wire::Start { instance, role, place: cx.place().clone(), config, stop_timeout_ms };
            let started = child.ask(wire::START, &request, LONG).await;
            given_up.done = true;
            let work = outcome(started)?;
            Ok(Box::new(Running { place, work }) as Box<dyn Instance>)
        })
    }

    fn abandon(&self, cx: RoleContext) -> BoxFuture<'static, ()> {
        let (keeper, role) = (self.keeper.clone(), self.role.name.clone());
        Box::pin(async move {
            let Ok(child) = keeper.child().await else { return };
            let stop_timeout_ms = cx.stop_timeout().as_millis() as u64;
            let request = wire::Abandon { role, place: cx.place().clone(), stop_timeout_ms };
            let _ = child.ask::<_, Done<()>>(wire::ABANDON, &request, LONG).await;
        })
    }
}

/// Kills a child that is left with something it does not finish.
struct KillUnlessDone {
    child: Arc<Child>,
    what: &'static str,
    done: bool,
}

impl Drop for KillUnlessDone {
    fn drop(&mut self) {
        if !self.done {
            self.child.kill(&format!("it hangs in {}", self.what));
        }
    }
}

/// An instance's place in a child; over when this is dropped.
struct Place {
    child: Arc<Child>,
    instance: u64,
    host: Arc<dyn Host>,
}

impl Place {
    fn new(child: Arc<Child>, cx: &RoleContext) -> Self {
        let name = |text: &str| text.parse::<Name>().expect("the station made it from a name");
        // The station part is not used: a session with a child has one station.
        let to = Address::Instance { station: name("here"), role: name(cx.role()), instance: name(cx.instance()) };
        let instance = {
            let mut next = child.next.lock().unwrap_or_else(PoisonError::into_inner);
            *next += 1;
            *next
        };
        child.placed().insert(instance, Placed { host: cx.host().clone(), to });
        Self { child, instance, host: cx.host().clone() }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.child.placed().remove(&self.instance);
    }
}

struct Running {
    place: Place,
    /// Has work of its own that is not begun yet.
    work: bool,
}

impl Running {
    async fn end(self, detach: bool) {
        let Place { child, instance, host } = &self.place;
        if child.is_over() {
            return;
        }
        let mut given_up = KillUnlessDone { child: child.clone(), what: "stop", done: false };
        let stop_timeout_ms = host.stop_timeout().as_millis() as u64;
        let stop = wire::Stop { instance: *instance, detach, stop_timeout_ms };
        let stopped = child.ask::<_, Done<()>>(wire::STOP, &stop, LONG).await;
        given_up.done = true;
        if let Err(RoleError::Failed(text)) = outcome(stopped) {
            host.log(LogLevel::Error, &format!("while stopping: {text}"));
        }
    }
}

impl Instance for Running {
    fn update(&mut self, config: &[u8]) -> BoxFuture<'_, Result<(), RoleError>> {
        let config = config.to_vec();
        Box::pin(async move {
            let Place { child, instance, host } = &self.place;
            let stop_timeout_ms = host.stop_timeout().as_millis() as u64;
            let mut given_up = KillUnlessDone { child: child.clone(), what: "update", done: false };
            let update = wire::Update { instance: *instance, config, stop_timeout_ms };
            let updated = child.ask(wire::UPDATE, &update, LONG).await;
            given_up.done = true;
            outcome(updated)
        })
    }

    fn run(&mut self) -> BoxFuture<'_, Option<Work>> {
        let work = std::mem::take(&mut self.work).then(|| {
            let (child, instance) = (self.place.child.clone(), self.place.instance);
            Box::pin(async move { outcome(child.run(instance).await) }) as Work
        });
        Box::pin(async move { work })
    }

    fn stop(self: Box<Self>) -> BoxFuture<'static, ()> {
        Box::pin(self.end(false))
    }

    fn detach(self: Box<Self>) -> BoxFuture<'static, ()> {
        Box::pin(self.end(true))
    }
}

impl Child {
    /// Runs an instance's work; without a deadline, so it is a stream that has no items.
    async fn run(&self, instance: u64) -> Result<Done<()>, String> {
        let session = self.session.get().expect("a child that was started has a session");
        let mut head = RequestHead::new(Address::Manager, wire::RUN);
        (head.remaining_ms, head.encoding) = (NO_DEADLINE, Encoding::Bincode);
        let request = quilt_net::encode(Encoding::Bincode, &wire::Run { instance });
        let answer = session.stream(head, request, 1).end().await;
        match answer.outcome {
            Outcome::Reply => {
                quilt_net::decode("how work ended", answer.encoding, &answer.body).map_err(|error| error.to_string())
            }
            Outcome::PeerLost(_) => Err(self.end_in_words().await),
            _ => Err(answer.text()),
        }
    }
}
