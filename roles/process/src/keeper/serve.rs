//! The keeper's own work: start the program, copy its output, answer the station, record the end.

use std::fs::OpenOptions;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd as _};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixListener;
use std::os::unix::process::parent_id;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use nix::libc;
use nix::sys::signal::{SigSet, Signal};
use quilt_core::processes::{self, ProcessStat};
use quilt_core::{clean_start, files, lines, time};

use super::children::{self, EndStatus};
use super::copy::copy;
use super::oom::OomWatch;
use super::station::{Station, accept};
use super::{EXEC, EXEC_NAME, Exit, FromKeeper, Paths, Run, Spec, ToKeeper, leftovers};

/// How long output may still come after the program has ended: descendants that left its group hold the pipe open.
const OUTPUT_GRACE: Duration = Duration::from_secs(1);

/// How often the group of a program that has ended is looked at.
const GROUP_LOOK: Duration = Duration::from_millis(20);

pub(super) enum Event {
    Ended(EndStatus),
    Station(ToKeeper),
    Connected,
    Disconnected,
    Terminated,
    /// Make files again that somebody removed.
    Restore,
}

/// Runs as the keeper of one program until it has ended.
pub(super) fn keep(paths: Paths, log: &Path) -> io::Result<()> {
    // Blocked before any thread exists, so that only the waiting thread sees them, and before anybody can find this process.
    let signals: SigSet = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP].into_iter().collect();
    signals.thread_block()?;
    let _ = nix::unistd::setsid();
    // What the program leaves behind becomes this process's child, and is found.
    nix::sys::prctl::set_child_subreaper(true)?;
    std::env::set_current_dir("/")?;
    let mut input = String::new();
    io::stdin().read_to_string(&mut input)?;
    let spec: Spec = serde_json::from_str(&input)?;

    let lock = paths.lock()?;
    // Once the lock is held the next station finds this keeper. Before, it did not, and has started one of its own: a
    // station that died by now must not have its program run by both.
    if parent_id() != spec.station {
        return Err(io::Error::other("the station ended before its program began"));
    }
    if paths.read_run().is_some_and(|run| paths.keeper_of(&run).is_some()) {
        return Err(io::Error::other("another keeper is at work"));
    }
    // From now on its files are where the folder is, wherever that is moved.
    let paths = Paths::new(Path::new(&format!("/proc/self/fd/{}", lock.as_raw_fd())));
    paths.forget()?;
    lines::Position::begin_run(log)?;
    let mut socket = Socket::bind(&paths)?;

    let (events, inbox) = mpsc::channel();
    let signalled = events.clone();
    thread::spawn(move || {
        loop {
            let event = match signals.wait() {
                Ok(Signal::SIGHUP) => Event::Restore,
                Ok(_) => Event::Terminated,
                Err(_) => continue,
            };
            let _ = signalled.send(event);
        }
    });

    let mut stage = clean_start::command(EXEC_NAME, EXEC)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let started_ticks = |pid| ProcessStat::read(pid).map_or(0, |seen| seen.started_ticks);
    let run = Run {
        id: uuid::Uuid::new_v4().to_string(),
        digest: spec.digest.clone(),
        pid: stage.id(),
        keeper: std::process::id(),
        boot_id: processes::boot_id(),
        started_ms: time::now_ms(),
        stop_timeout_ms: spec.stop_timeout_ms,
        started_ticks: started_ticks(stage.id()),
        keeper_started_ticks: started_ticks(std::process::id()),
        pid_namespace: processes::pid_namespace(),
        pipes: [inode(stage.stdout.as_ref()), inode(stage.stderr.as_ref())],
    };
    let copying = [copy("out", stage.stdout.take(), log)?, copy("err", stage.stderr.take(), log)?];
    // The program begins only when it is on record.
    files::write_atomically(&paths.run(), &serde_json::to_vec(&run)?)?;
    let go = serde_json::to_vec(&(&run.id, run.keeper, &spec))?;
    stage.stdin.take().expect("it was piped").write_all(&go)?;

    let station = Arc::new(Station::default());
    let serve = |socket: &mut Socket| {
        let Some(listener) = socket.listener.take() else { return };
        let (station, events, run) = (station.clone(), events.clone(), run.clone());
        thread::spawn(move || accept(&listener, &station, &events, &run));
    };
    serve(&mut socket);
    say_ready(&run);
    let restore = || {
        // What cannot be made again now is asked for again.
        if paths.read_run().is_none() {
            let _ = files::write_atomically(&paths.run(), &serde_json::to_vec(&run).expect("it has text keys"));
        }
        if let Ok(true) = socket.bind_again(&paths) {
            serve(&mut socket);
        }
    };
    let end = supervise(&run, &spec, &events, &inbox, restore);

    let EndStatus { code, signal } = end.ended;
    // One that was told to stop may leave to the keeper what it started; one that ended by itself may have meant to go on.
    let left = if end.kill_at.is_none() { leftovers::count_descendants() } else { 0 };
    let out_of_memory = end.out_of_memory;
    let exit = Exit { run: run.id.clone(), code, signal, at_ms: time::now_ms(), left, out_of_memory };
    // What the program left in its group was asked to stop too, and has its time; then it ends, and lets go of the pipes. The
    // program is a zombie until this process ends: its number is that of its group and of nobody else.
    let is_left = || ProcessStat::all().iter().any(|seen| seen.group == run.pid);
    while let Some(left) = end.kill_at.map(|at| at.saturating_duration_since(Instant::now())) {
        if left.is_zero() || !is_left() {
            break;
        }
        let _ = inbox.recv_timeout(left.min(GROUP_LOOK));
    }
    children::signal_group(run.pid, libc::SIGKILL);
    leftovers::kill_descendants();
    let until = Instant::now() + OUTPUT_GRACE;
    for done in copying {
        let _ = done.recv_timeout(until.saturating_duration_since(Instant::now()));
    }
    let written = files::write_atomically(&paths.exit(), &serde_json::to_vec(&exit)?);
    // A station that is there is told even if the disk is full.
    station.tell_end(&FromKeeper::Exited(exit));
    written
}

/// The socket that the station connects to, as a file.
struct Socket {
    /// `None` once a thread serves it.
    listener: Option<UnixListener>,
    inode: u64,
}

impl Socket {
    fn bind(paths: &Paths) -> io::Result<Self> {
        let (_folder, path) = paths.socket()?;
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&path)?;
        Ok(Self { listener: Some(listener), inode: path.metadata()?.ino() })
    }

    /// Makes the file again if it is not there; returns whether it did.
    fn bind_again(&mut self, paths: &Paths) -> io::Result<bool> {
        let (_folder, path) = paths.socket()?;
        if path.metadata().is_ok_and(|found| found.ino() == self.inode) {
            return Ok(false);
        }
        *self = Self::bind(paths)?;
        Ok(true)
    }
}

/// The inode of a pipe; 0 if there is none.
fn inode(pipe: Option<&impl AsFd>) -> u64 {
    pipe.and_then(|pipe| nix::sys::stat::fstat(pipe.as_fd()).ok()).map_or(0, |stat| stat.st_ino)
}

/// The station waits for this line, unless it was killed meanwhile; a pipe nobody reads must not stay.
fn say_ready(run: &Run) {
    let _ = writeln!(io::stdout(), "ready {}", serde_json::to_string(run).expect("it has text keys"));
    let _ = io::stdout().flush();
    if let Ok(null) = OpenOptions::new().write(true).open("/dev/null") {
        let _ = nix::unistd::dup2_stdout(&null);
        let _ = nix::unistd::dup2_stderr(&null);
    }
}

/// How supervision of a program ended.
struct SupervisionEnd {
    ended: EndStatus,
    /// When its group is killed, if it was asked to stop.
    kill_at: Option<Instant>,
    out_of_memory: bool,
}

/// Waits for the end of the program; meanwhile carries out the station's requests.
fn supervise(
    run: &Run,
    spec: &Spec,
    events: &Sender<Event>,
    inbox: &mpsc::Receiver<Event>,
    mut restore: impl FnMut(),
) -> SupervisionEnd {
    let (program, ends) = (run.pid, events.clone());
    thread::spawn(move || children::wait_for_end(program, &ends));
    let mut kill_at: Option<Instant> = None;
    let mut killed_by_us = false;
    let mut oom = OomWatch::new();
    let mut orphan_timeout = spec.orphan_timeout_ms.map(Duration::from_millis);
    let mut alone_since = Some(Instant::now());
    let begin_stop = |timeout: Duration| {
        // The stage has a group of its own only once it became the program; until then the signal stays pending there.
        if !children::signal_group(program, spec.stop_signal) {
            children::signal(program, spec.stop_signal);
        }
        // A stopped group does not see the signal before it is continued.
        children::signal_group(program, libc::SIGCONT);
        Some(Instant::now() + timeout)
    };
    loop {
        let orphaned_at = alone_since.zip(orphan_timeout).map(|(since, timeout)| since + timeout);
        let due = kill_at.or(orphaned_at);
        let wake_at = due.unwrap_or_else(|| oom.refresh_at()).min(oom.refresh_at());
        match inbox.recv_timeout(wake_at.saturating_duration_since(Instant::now())) {
            Ok(Event::Ended(ended)) => {
                let out_of_memory = ended.signal == Some(libc::SIGKILL) && !killed_by_us && oom.has_grown();
                return SupervisionEnd { ended, kill_at, out_of_memory };
            }
            Ok(Event::Connected) => alone_since = None,
            Ok(Event::Disconnected) => alone_since = Some(Instant::now()),
            Ok(Event::Station(ToKeeper::Signal(number))) => {
                killed_by_us |= number == libc::SIGKILL;
                children::signal(program, number);
            }
            Ok(Event::Station(ToKeeper::OrphanTimeout(ms))) => orphan_timeout = ms.map(Duration::from_millis),
            Ok(Event::Station(ToKeeper::Stop { timeout_ms })) => {
                if kill_at.is_none() {
                    kill_at = begin_stop(Duration::from_millis(timeout_ms.unwrap_or(spec.stop_timeout_ms)));
                }
            }
            Ok(Event::Terminated) if kill_at.is_none() => {
                kill_at = begin_stop(Duration::from_millis(spec.stop_timeout_ms));
            }
            Ok(Event::Terminated) => {}
            Ok(Event::Restore) => restore(),
            Err(RecvTimeoutError::Timeout) if due.is_none_or(|due| Instant::now() < due) => oom.refresh(),
            Err(RecvTimeoutError::Timeout) if kill_at.is_some() => {
                killed_by_us = true;
                children::signal_group(program, libc::SIGKILL);
                kill_at = Some(Instant::now() + Duration::from_secs(1));
            }
            Err(RecvTimeoutError::Timeout) => kill_at = begin_stop(Duration::from_millis(spec.stop_timeout_ms)),
            Err(RecvTimeoutError::Disconnected) => unreachable!("the caller holds a sender"),
        }
    }
}
