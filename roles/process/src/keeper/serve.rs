//! The keeper's own work: start the program, copy its output, answer the station, record the end.

use std::fs::OpenOptions;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::parent_id;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal, kill, killpg};
use nix::sys::wait::{self, WaitStatus};
use nix::unistd::Pid;
use quilt_core::{files, lines, time};

use super::copy::copy;
use super::{EXEC, Exit, FromKeeper, Paths, Run, Spec, ToKeeper, boot_id, leftovers};

/// How long output may still come after the program has ended: descendants that left its group hold the pipe open.
const OUTPUT_GRACE: Duration = Duration::from_secs(1);

/// How often the group of a program that has ended is looked at.
const GROUP_LOOK: Duration = Duration::from_millis(20);

/// How the program ended.
#[derive(Clone, Copy)]
struct Ended {
    code: Option<i32>,
    signal: Option<i32>,
}

enum Event {
    Ended(Ended),
    Station(ToKeeper),
    Connected,
    Disconnected,
    Terminated,
}

/// Runs as the keeper of one program until it has ended.
pub(super) fn keep(paths: Paths, log: &Path) -> io::Result<()> {
    let _ = nix::unistd::setsid();
    // What the program leaves behind becomes this process's child, and is found.
    nix::sys::prctl::set_child_subreaper(true)?;
    std::env::set_current_dir("/")?;
    let mut input = String::new();
    io::stdin().read_to_string(&mut input)?;
    let spec: Spec = serde_json::from_str(&input)?;

    let lock = OpenOptions::new().write(true).create(true).truncate(false).open(paths.lock())?;
    files::lock_whole(&lock).map_err(|_| io::Error::other("another keeper is at work"))?;
    // Once the lock is held the next station finds this keeper. Before, it did not, and has started one of its own: a
    // station that died by now must not have its program run by both.
    if parent_id() != spec.station {
        return Err(io::Error::other("the station ended before its program began"));
    }
    paths.forget()?;
    lines::Position::begin_run(log)?;
    let (_folder, socket) = paths.socket()?;
    match std::fs::remove_file(&socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&socket)?;

    // Blocked before any thread exists, so that only the waiting thread sees them.
    let signals: SigSet = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP].into_iter().collect();
    signals.thread_block()?;
    let (events, inbox) = mpsc::channel();
    let terminated = events.clone();
    thread::spawn(move || {
        while signals.wait().is_ok() {
            let _ = terminated.send(Event::Terminated);
        }
    });

    let mut stage = Command::new("/proc/self/exe")
        .arg(EXEC)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let run = Run {
        id: uuid::Uuid::new_v4().to_string(),
        digest: spec.digest.clone(),
        pid: stage.id(),
        keeper: std::process::id(),
        boot_id: boot_id(),
        started_ms: time::now_ms(),
        stop_timeout_ms: spec.stop_timeout_ms,
        started_ticks: leftovers::started_ticks(stage.id()),
    };
    let copying = [copy("out", stage.stdout.take(), log)?, copy("err", stage.stderr.take(), log)?];
    // The program begins only when it is on record.
    files::write_atomically(&paths.run(), &serde_json::to_vec(&run)?)?;
    let go = serde_json::to_vec(&(&run.id, run.keeper, &spec))?;
    stage.stdin.take().expect("it was piped").write_all(&go)?;

    let station: Station = Arc::default();
    let announced = (station.clone(), events.clone(), run.clone());
    thread::spawn(move || accept(&listener, &announced.0, &announced.1, &announced.2));
    say_ready(&run);
    let (ended, kill_at) = supervise(&run, &spec, events, &inbox);

    let Ended { code, signal } = ended;
    // One that was told to stop may leave to the keeper what it started; one that ended by itself may have meant to go on.
    let left = if kill_at.is_none() { leftovers::descendants() } else { 0 };
    let exit = Exit { run: run.id.clone(), code, signal, at_ms: time::now_ms(), left };
    // What the program left in its group was asked to stop too, and has its time; then it ends, and lets go of the pipes.
    let group = Pid::from_raw(run.pid as i32);
    while let Some(left) = kill_at.map(|at| at.saturating_duration_since(Instant::now())) {
        if left.is_zero() || killpg(group, None).is_err() {
            break;
        }
        let _ = inbox.recv_timeout(left.min(GROUP_LOOK));
    }
    let _ = killpg(group, Signal::SIGKILL);
    leftovers::kill_descendants();
    let until = Instant::now() + OUTPUT_GRACE;
    for done in copying {
        let _ = done.recv_timeout(until.saturating_duration_since(Instant::now()));
    }
    let written = files::write_atomically(&paths.exit(), &serde_json::to_vec(&exit)?);
    // A station that is there is told even if the disk is full.
    tell(&station, &FromKeeper::Exited(exit));
    written
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

/// Waits for the end, doing meanwhile what the station asks. Also says until when its group may take to stop.
fn supervise(run: &Run, spec: &Spec, events: Sender<Event>, inbox: &mpsc::Receiver<Event>) -> (Ended, Option<Instant>) {
    let program = run.pid;
    thread::spawn(move || wait_for_all(program, &events));
    let (main, group) = (Pid::from_raw(run.pid as i32), Pid::from_raw(run.pid as i32));
    let stop_signal = Signal::try_from(spec.stop_signal).unwrap_or(Signal::SIGTERM);
    let mut kill_at: Option<Instant> = None;
    let mut orphan_timeout = spec.orphan_timeout_ms.map(Duration::from_millis);
    let mut alone_since = Some(Instant::now());
    let begin_stop = |timeout: Duration| {
        // The stage has a group of its own only once it became the program; until then the signal stays pending there.
        if killpg(group, stop_signal).is_err() {
            let _ = kill(main, stop_signal);
        }
        // A stopped group does not see the signal before it is continued.
        let _ = killpg(group, Signal::SIGCONT);
        Some(Instant::now() + timeout)
    };
    loop {
        let orphaned_at = alone_since.zip(orphan_timeout).map(|(since, timeout)| since + timeout);
        let due = kill_at.or(orphaned_at);
        let event = match due {
            Some(due) => inbox.recv_timeout(due.saturating_duration_since(Instant::now())),
            None => inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match event {
            Ok(Event::Ended(status)) => return (status, kill_at),
            Ok(Event::Connected) => alone_since = None,
            Ok(Event::Disconnected) => alone_since = Some(Instant::now()),
            Ok(Event::Station(ToKeeper::Signal(number))) => {
                if let Ok(signal) = Signal::try_from(number) {
                    let _ = kill(main, signal);
                }
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
            Err(RecvTimeoutError::Timeout) if kill_at.is_some() => {
                let _ = killpg(group, Signal::SIGKILL);
                kill_at = Some(Instant::now() + Duration::from_secs(1));
            }
            Err(RecvTimeoutError::Timeout) => kill_at = begin_stop(Duration::from_millis(spec.stop_timeout_ms)),
            Err(RecvTimeoutError::Disconnected) => unreachable!("this function's thread holds a sender"),
        }
    }
}

/// Waits for children for ever and says how the program ended. What it has left behind is waited for as well, so that no
/// zombies gather.
fn wait_for_all(program: u32, events: &Sender<Event>) {
    loop {
        let (pid, ended) = match wait::waitpid(None, None) {
            Ok(WaitStatus::Exited(pid, code)) => (pid, Ended { code: Some(code), signal: None }),
            Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, Ended { code: None, signal: Some(signal as i32) }),
            Ok(_) | Err(nix::Error::EINTR) => continue,
            // No child is left.
            Err(_) => return,
        };
        if pid.as_raw() == program as i32 {
            let _ = events.send(Event::Ended(ended));
        }
    }
}

/// The one station that is connected, if any.
type Station = Arc<Mutex<Option<UnixStream>>>;

fn tell(station: &Station, message: &FromKeeper) {
    let mut line = serde_json::to_vec(message).expect("it has text keys");
    line.push(b'\n');
    if let Some(stream) = station.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
        let _ = stream.write_all(&line);
    }
}

fn accept(listener: &UnixListener, station: &Station, events: &Sender<Event>, run: &Run) {
    for stream in listener.incoming() {
        let Ok(stream) = stream else { continue };
        // A station that does not read must not hold up the end of the program.
        let _ = stream.set_write_timeout(Some(Duration::from_secs(1)));
        let Ok(reading) = stream.try_clone() else { continue };
        // The newest station is the one: an older connection belongs to a station that is gone or going.
        let older = station.lock().unwrap_or_else(PoisonError::into_inner).replace(stream);
        if let Some(older) = older {
            let _ = older.shutdown(std::net::Shutdown::Both);
        }
        let _ = events.send(Event::Connected);
        tell(station, &FromKeeper::Running(run.clone()));
        let events = events.clone();
        let newest = station.clone();
        thread::spawn(move || {
            for line in BufReader::new(&reading).lines() {
                let Ok(line) = line else { break };
                if let Ok(message) = serde_json::from_str(&line) {
                    let _ = events.send(Event::Station(message));
                }
            }
            let newest = newest.lock().unwrap_or_else(PoisonError::into_inner);
            let is_newest = newest.as_ref().is_some_and(|newest| same_peer(newest, &reading));
            if is_newest {
                let _ = events.send(Event::Disconnected);
            }
        });
    }
}

/// Whether two descriptors are of one socket.
fn same_peer(one: &UnixStream, other: &UnixStream) -> bool {
    let inode = |stream: &UnixStream| nix::sys::stat::fstat(stream).map(|stat| stat.st_ino).ok();
    inode(one) == inode(other)
}
