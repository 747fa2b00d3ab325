//! A plugin's child process as the station sees it: started when it is needed, asked over a socket pair, and gone with all
//! its instances when it crashes, hangs or falls silent.

mod calls;
mod hearing;
mod printed;
mod remote;

use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use quilt_core::processes::PidFd;
use quilt_core::{clean_start, shortage};
use quilt_net::{AskError, Handle, accept};
use quilt_plugin_api::{Host, Report, RoleFactory};
use quilt_protocol::session::Closed;
use quilt_protocol::{Address, Encoding, Limits, Outcome, RequestHead, Terms};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::process::Command;
use tokio::sync::{Mutex as AsyncMutex, watch};

use self::hearing::Station;
use self::remote::Remote;
use super::guest::{NEVER_BEGAN, PLUGIN_HOST};
use super::kept::Kept;
use super::wire;
use super::{LoadError, Manifest, trace};

/// How often the child gives a sign of life; three missed, and it is killed.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// How much longer than loading its greeting may take.
const READY: Duration = Duration::from_secs(5);
/// How long loading a library may take.
const LOAD: Duration = Duration::from_secs(20);
/// A call that was given up must have ended after so long; otherwise the plugin hangs.
const CANCEL: Duration = Duration::from_secs(5);
/// How long a process without instances is kept for the next question.
const IDLE: Duration = Duration::from_secs(2);
/// How long what it said last may take to be heard once it has ended.
const LAST_WORDS: Duration = Duration::from_millis(200);
const NOT_NEEDED: &str = "nobody needs it";

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
    /// Where the log of what its process prints is kept; without one the lines go to the log of this process.
    pub(crate) printed: Option<PathBuf>,
}

/// A plugin that runs in a child process; there is none as long as nobody needs it.
pub(crate) struct Keeper {
    library: Library,
    quarantine: Option<Arc<Kept<String>>>,
    child: AsyncMutex<Option<Arc<Child>>>,
}

impl Keeper {
    /// What crashes while it is loaded is put into `quarantine`.
    pub(crate) fn new(library: Library, quarantine: Option<Arc<Kept<String>>>) -> Arc<Self> {
        Arc::new(Self { library, quarantine, child: AsyncMutex::default() })
    }

    /// The process, started if there is none.
    pub(crate) async fn child(&self) -> Result<Arc<Child>, LoadError> {
        let mut child = self.child.lock().await;
        if let Some(child) = child.as_ref().filter(|child| child.is_there()) {
            return Ok(child.clone());
        }
        let sha256 = &self.library.sha256;
        if let Some(reason) = self.quarantine.as_ref().and_then(|quarantine| quarantine.get(sha256)) {
            return Err(LoadError::Quarantined(reason));
        }
        let started = Child::start(&self.library, clean_start::command("quilt-plugin-host", PLUGIN_HOST)).await;
        let started = self.judged(started).await;
        *child = started.as_ref().ok().cloned();
        started
    }

    /// What the plugin says of itself.
    pub(crate) async fn describe(&self) -> Result<Manifest, LoadError> {
        let described = self.child().await?.describe().await;
        self.judged(described).await
    }

    /// Tells what the plugin is to blame for from a shortage of the station's. What crashed while it was loaded is not loaded again.
    async fn judged<T>(&self, loaded: Result<T, LoadError>) -> Result<T, LoadError> {
        let error = match loaded {
            Ok(loaded) => return Ok(loaded),
            Err(error @ LoadError::StationFault(_)) => return Err(error),
            Err(error) => error,
        };
        let folder = self.library.path.parent().filter(|_| self.quarantine.is_some());
        if let Some(folder) = folder
            && let Some(shortage) = shortage::look(folder).await
        {
            return Err(LoadError::StationFault(format!("{shortage}; meanwhile it {error}")));
        }
        if let (LoadError::Crashed(how), Some(quarantine)) = (&error, &self.quarantine) {
            quarantine.put(&self.library.sha256, format!("crashed while it was loaded: {how}"));
        }
        Err(error)
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
    /// It ended before it opened the library, for want of something that the system did not give it.
    never_began: AtomicBool,
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
    /// Starts a process for a library by this command, to which arguments are added.
    async fn start(library: &Library, host: std::process::Command) -> Result<Arc<Self>, LoadError> {
        let failed = |error: std::io::Error| LoadError::StationFault(format!("a process for it: {error}"));
        let (ours, theirs) = tokio::net::UnixStream::pair().map_err(failed)?;
        let theirs = OwnedFd::from(theirs.into_std().map_err(failed)?);
        let mut command = Command::from(host);
        command.arg(&library.path).arg(&library.sha256).arg(trace::level().to_string());
        command
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .process_group(0);
        let mut process = command.spawn().map_err(failed)?;
        let pid = process.id().unwrap_or_default();
        let exit = PidFd::open(pid).map_err(failed)?;
        // Our copy of its end would keep the socket open after its death.
        drop(command);
        let child = Arc::new(Self {
            name: library.name.clone(),
            pid,
            session: OnceLock::new(),
            instances: Mutex::default(),
            next: Mutex::new(1),
            used: Mutex::new((Instant::now(), 0)),
            killed: watch::Sender::new(None),
            over: watch::Sender::new(None),
            never_began: AtomicBool::new(false),
        });
        // Loading is being needed.
        let _loading = Asking::new(&child);
        let last = Arc::new(Mutex::new(VecDeque::new()));
        let out = process.stdout.take().map(|pipe| printed::keep("out", pipe, library, last.clone()));
        let err = process.stderr.take().map(|pipe| printed::keep("err", pipe, library, last.clone()));

        let (ready, mut readies) = watch::channel(false);
        let service = |handle: Handle| {
            let _ = child.session.set(handle);
            Arc::new(Station { child: child.clone(), ready })
        };
        // It greets once its library is loaded.
        let limits = Limits { greeting: LOAD + READY, ..Limits::default() };
        let session = accept(ours, limits, Duration::ZERO, service);
        let (name, child_of_task) = (library.name.clone(), child.clone());
        #[allow(clippy::disallowed_methods, reason = "ends with the child, which is killed when it is dropped")]
        tokio::spawn(async move {
            let mut killed = child_of_task.killed.subscribe();
            let why = tokio::select! {
                why = over(session, &exit) => why,
                why = killed.wait_for(Option::is_some) => why.ok().and_then(|why| why.clone()).unwrap_or_default(),
                why = child_of_task.follow_levels() => why,
                why = child_of_task.idle() => why,
            };
            // What ends the session of a child ends the child; one that ended by itself has its own status.
            let by_itself = tokio::time::timeout(Duration::from_millis(200), exit.ended()).await.is_ok();
            if !by_itself {
                exit.kill();
                let _ = exit.ended().await;
            }
            // What it forked goes with it. It is not reaped yet, so that its number is that of its group and of nobody else.
            let _ = killpg(Pid::from_raw(pid as i32), Signal::SIGKILL);
            // The reason for which the station let go of it says more than how it took that.
            let reason = child_of_task.killed.borrow().clone();
            let status = process.wait().await;
            let never_began = by_itself && matches!(&status, Ok(status) if status.code() == Some(NEVER_BEGAN));
            child_of_task.never_began.store(never_began, Ordering::Relaxed);
            let how = match status {
                Ok(_) if by_itself && reason.is_some() => reason.unwrap_or_default(),
                Ok(status) if by_itself && status.success() => format!("{}; {why}", ended(status)),
                Ok(status) if by_itself => ended(status),
                _ => format!("{why}; it was killed"),
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
                Ok(Ok(_)) => return Ok(child.clone()),
                Ok(Err(_)) => {}
                Err(_) => child.kill(&format!("it did not load within {LOAD:?}")),
            },
            _ = over.wait_for(Option::is_some) => {}
        }
        let over = over.wait_for(Option::is_some).await.ok().and_then(|over| over.clone());
        let how = over.unwrap_or_default();
        Err(match child.never_began.load(Ordering::Relaxed) {
            true => LoadError::StationFault(format!("a process for it: {how}")),
            false => LoadError::Crashed(how),
        })
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
        // It is not idle, however long it takes: ended for that it would count as crashed.
        let _asking = Asking::new(self);
        let mut head = RequestHead::new(Terms::new(Address::Manager, wire::DESCRIBE));
        head.remaining_ms = LOAD.as_millis() as u32;
        let answer = session.request(&head, Bytes::new()).await;
        if answer.outcome != Outcome::Reply {
            if answer.outcome == Outcome::TimedOut {
                self.kill(&format!("it did not describe itself within {LOAD:?}"));
            }
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

/// Waits for the end of a child's session, or of the child: that closes the session only if nobody else has its socket, and it
/// may have forked.
async fn over(session: impl Future<Output = Closed>, process: &PidFd) -> String {
    let mut session = std::pin::pin!(session);
    tokio::select! {
        why = &mut session => return why.to_string(),
        _ = process.ended() => {}
    }
    match tokio::time::timeout(LAST_WORDS, session).await {
        Ok(why) => why.to_string(),
        Err(_) => "it ended".to_owned(),
    }
}

fn ended(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt as _;
    match (status.code(), status.signal().and_then(|signal| Signal::try_from(signal).ok())) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("killed by {signal}"),
        (None, None) => status.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_process_that_cannot_be_started_or_never_began_says_nothing_about_its_plugin_and_one_that_crashed_does() {
        let folder = tempfile::tempdir().unwrap();
        let never_began = format!("exit {NEVER_BEGAN}");
        let hosts =
            [("/nowhere", "", false), ("sh", &*never_began, false), ("sh", "exit 1", true), ("sh", "kill -9 $$", true)];
        for (program, script, is_to_blame) in hosts {
            let quarantine = Arc::new(Kept::open(folder.path(), &format!("{script}.json")));
            let path = folder.path().join("plugin.so");
            let library = Library { path, sha256: "a".into(), name: "p".into(), aborts: false, printed: None };
            let keeper = Keeper::new(library, Some(quarantine.clone()));
            let mut host = std::process::Command::new(program);
            host.args(["-c", script]);
            let error = keeper.judged(Child::start(&keeper.library, host).await).await.err().unwrap();
            assert_eq!(matches!(error, LoadError::Crashed(_)), is_to_blame, "{script}: {error}");
            assert_eq!(error.is_station_fault(), !is_to_blame, "{script}: {error}");
            assert_eq!(quarantine.get("a").is_some(), is_to_blame, "{script}: {error}");
        }
    }
}
