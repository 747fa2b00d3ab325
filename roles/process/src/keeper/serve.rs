//! The keeper's own work: start the program, copy its output, answer the station, record the end.

use std::fs::OpenOptions;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd as _};
use std::os::unix::process::parent_id;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::libc;
use nix::poll::poll;
use quilt_core::processes::{self, ProcessStat};
use quilt_core::{clean_start, files, lines, time};

use super::children::{self, EndStatus};
use super::copy::copy;
use super::events::{Event, Events, Signals, Socket, timeout};
use super::oom::OomWatch;
use super::{EXEC, EXEC_NAME, Exit, FromKeeper, Paths, Run, Spec, StopRequest, ToKeeper, leftovers, place};

/// How long output may still come after the program has ended: descendants that left its group hold the pipe open.
const OUTPUT_GRACE: Duration = Duration::from_secs(1);

/// How often the group of a program that has ended is looked at.
const GROUP_LOOK: Duration = Duration::from_millis(20);

/// How long after its kill a program that is still there is killed again.
const KILL_AGAIN: Duration = Duration::from_secs(1);

/// Runs as the keeper of one program until it has ended.
pub(super) fn keep(paths: Paths, log: &Path) -> io::Result<()> {
    let signals = Signals::block()?;
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
    if let Some(run) = paths.read_run()?
        && paths.keeper_of(&run)?.is_some()
    {
        return Err(io::Error::other("another keeper is at work"));
    }
    // From now on its files are where the folder is, wherever that is moved.
    let log = &place::beside(&lock, paths.folder(), log);
    let paths = Paths::new(Path::new(&format!("/proc/self/fd/{}", lock.as_raw_fd())));
    paths.forget()?;
    lines::Position::begin_run(log)?;
    let socket = Socket::bind(&paths)?;

    let mut stage = clean_start::command(EXEC_NAME, EXEC)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let started_ticks = |pid| io::Result::Ok(ProcessStat::read(pid)?.map_or(0, |seen| seen.started_ticks));
    let run = Run {
        id: uuid::Uuid::new_v4().to_string(),
        digest: spec.digest.clone(),
        pid: stage.id(),
        keeper: std::process::id(),
        boot_id: processes::boot_id()?.to_owned(),
        started_ms: time::now_ms(),
        stop_timeout_ms: spec.stop_timeout_ms,
        started_ticks: started_ticks(stage.id())?,
        keeper_started_ticks: started_ticks(std::process::id())?,
        pid_namespace: processes::pid_namespace()?.to_owned(),
        pipes: [inode(stage.stdout.as_ref()), inode(stage.stderr.as_ref())],
        stop_signal: spec.stop_signal,
    };
    let output = stage.stdout.take().expect("it was piped");
    let errors = stage.stderr.take().expect("it was piped");
    let copied = copy([("out", output.into()), ("err", errors.into())], log)?;
    // The program begins only when it is on record.
    files::write_atomically(&paths.run(), &serde_json::to_vec(&run)?)?;
    let go = serde_json::to_vec(&(&run.id, run.keeper, &spec))?;
    stage.stdin.take().expect("it was piped").write_all(&go)?;

    let mut events = Events::new(signals, socket, run.pid);
    say_ready(&run);
    let end = supervise(&run, &spec, &paths, &mut events);

    let EndStatus { code, signal } = end.ended;
    // One that was told to stop may leave to the keeper what it started; one that ended by itself may have meant to go on.
    let left = if end.kill_at.is_none() { leftovers::count_descendants() } else { 0 };
    let out_of_memory = end.out_of_memory;
    let stopped_by = end.stopped_by;
    let exit = Exit { run: run.id.clone(), code, signal, at_ms: time::now_ms(), left, out_of_memory, stopped_by };
    // What the program left in its group was asked to stop too, and has its time; then it ends, and lets go of the pipes. The
    // program is a zombie until this process ends: its number is that of its group and of nobody else.
    let is_left = || ProcessStat::all().is_ok_and(|all| all.iter().any(|seen| seen.group == run.pid));
    while let Some(left) = end.kill_at.map(|at| at.saturating_duration_since(Instant::now())) {
        if left.is_zero() || !is_left() {
            break;
        }
        let _ = poll(&mut [], timeout(left.min(GROUP_LOOK)));
    }
    children::signal_group(run.pid, libc::SIGKILL);
    leftovers::kill_descendants();
    let _ = copied.recv_timeout(OUTPUT_GRACE);
    let written = files::write_atomically(&paths.exit(), &serde_json::to_vec(&exit)?);
    // A station that is there is told even if the disk is full.
    events.tell(&FromKeeper::Exited(exit));
    written
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
    stopped_by: Option<StopRequest>,
    out_of_memory: bool,
}

/// A stop that is under way.
#[derive(Clone, Copy)]
struct Stop {
    requested_by: StopRequest,
    kill_at: Instant,
}

/// Waits for the end of the program; meanwhile carries out the station's requests.
fn supervise(run: &Run, spec: &Spec, paths: &Paths, events: &mut Events) -> SupervisionEnd {
    let program = run.pid;
    let mut stop: Option<Stop> = None;
    let mut killed_by_us = false;
    let mut oom = OomWatch::new();
    let mut orphan_timeout = spec.orphan_timeout_ms.map(Duration::from_millis);
    let mut alone_since = Some(Instant::now());
    let begin_stop = |requested_by, timeout_ms| {
        // The stage has a group of its own only once it became the program; until then the signal stays pending there.
        if !children::signal_group(program, spec.stop_signal) {
            children::signal(program, spec.stop_signal);
        }
        // A stopped group does not see the signal before it is continued.
        children::signal_group(program, libc::SIGCONT);
        Stop { requested_by, kill_at: Instant::now() + Duration::from_millis(timeout_ms) }
    };
    loop {
        let orphaned_at = alone_since.zip(orphan_timeout).map(|(since, timeout)| since + timeout);
        let due = stop.map(|stop| stop.kill_at).or(orphaned_at);
        let wake_at = due.map_or(oom.refresh_at(), |due| due.min(oom.refresh_at()));
        let happened = events.wait(wake_at, run);
        children::reap_orphans(program);
        for event in happened {
            match event {
                Event::Ended(ended) => {
                    let out_of_memory = ended.signal == Some(libc::SIGKILL) && !killed_by_us && oom.has_grown();
                    let (kill_at, stopped_by) = stop.map(|stop| (stop.kill_at, stop.requested_by)).unzip();
                    return SupervisionEnd { ended, kill_at, stopped_by, out_of_memory };
                }
                Event::Connected => alone_since = None,
                Event::Disconnected => alone_since = Some(Instant::now()),
                Event::Station(ToKeeper::Signal(number)) => {
                    killed_by_us |= number == libc::SIGKILL;
                    children::signal(program, number);
                    events.tell(&FromKeeper::Signalled);
                }
                Event::Station(ToKeeper::OrphanTimeout(ms)) => orphan_timeout = ms.map(Duration::from_millis),
                Event::Station(ToKeeper::Stop { timeout_ms }) => {
                    let timeout_ms = timeout_ms.unwrap_or(spec.stop_timeout_ms);
                    stop.get_or_insert_with(|| begin_stop(StopRequest::Station, timeout_ms));
                    events.tell(&FromKeeper::Stopping);
                }
                Event::Terminated => {
                    stop.get_or_insert_with(|| begin_stop(StopRequest::Signal, spec.stop_timeout_ms));
                }
                Event::Restore => {
                    // What cannot be made again now is asked for again.
                    if let Ok(None) = paths.read_run() {
                        let record = serde_json::to_vec(run).expect("it has text keys");
                        let _ = files::write_atomically(&paths.run(), &record);
                    }
                    events.restore_socket(paths);
                }
            }
        }
        oom.refresh();
        let now = Instant::now();
        match &mut stop {
            Some(stop) if now >= stop.kill_at => {
                killed_by_us = true;
                children::signal_group(program, libc::SIGKILL);
                stop.kill_at = now + KILL_AGAIN;
            }
            Some(_) => {}
            // What came meanwhile counts: a station may have connected, or changed the time.
            None => {
                if let Some((since, timeout)) = alone_since.zip(orphan_timeout)
                    && now >= since + timeout
                {
                    stop = Some(begin_stop(StopRequest::OrphanTimeout, spec.stop_timeout_ms));
                }
            }
        }
    }
}
