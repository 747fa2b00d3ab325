//! Process 1 of a container: every orphan becomes its child, and only it can reap them.

use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use nix::sys::signal::{SigSet, Signal};
use rustix::process::{Pid, WaitOptions, WaitStatus, kill_process, wait};

/// The signals that process 1 forwards to the daemon.
const FORWARDED: [Signal; 6] =
    [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM, Signal::SIGUSR1, Signal::SIGUSR2];

/// If this is process 1, never returns: runs this program again as a child, forwards signals to it, reaps orphans, and exits
/// with the child's exit code. Otherwise returns at once. Call it in `main` of a daemon before it starts anything.
pub fn become_init_if_pid_1() {
    if std::process::id() != 1 {
        return;
    }
    let code = serve().unwrap_or_else(|error| {
        eprintln!("the daemon cannot be run below process 1: {error}");
        1
    });
    std::process::exit(code);
}

fn serve() -> io::Result<i32> {
    // Blocked before there is a child, so that none is missed.
    let signals: SigSet = FORWARDED.into_iter().chain([Signal::SIGCHLD]).collect();
    signals.thread_block()?;
    let mut arguments = std::env::args_os();
    let mut command = Command::new("/proc/self/exe");
    command.arg0(arguments.next().unwrap_or_else(|| "quilt".into())).args(arguments);
    let daemon = Pid::from_child(&command.spawn()?);
    loop {
        match signals.wait() {
            Ok(Signal::SIGCHLD) => {
                if let Some(code) = reap(daemon) {
                    return Ok(code);
                }
            }
            // The daemon is not reaped yet, so the number is still its own.
            Ok(signal) => {
                if let Some(signal) = rustix::process::Signal::from_named_raw(signal as i32) {
                    let _ = kill_process(daemon, signal);
                }
            }
            Err(_) => {}
        }
    }
}

/// Reaps all children that have ended, because several ends can arrive as one signal. Returns the daemon's exit code if it is
/// among them.
fn reap(daemon: Pid) -> Option<i32> {
    let mut code = None;
    while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
        if pid == daemon {
            code = Some(exit_code(status));
        }
    }
    code
}

/// The exit code as a shell reports it.
fn exit_code(status: WaitStatus) -> i32 {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => code,
        (None, signal) => 128 + signal.unwrap_or(0),
    }
}
