//! Process 1 of a container: whatever loses its parent becomes its child, and only it can reap that.

use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use nix::sys::signal::{SigSet, Signal};
use rustix::process::{Pid, WaitOptions, WaitStatus, kill_process, wait};

/// The signals that are passed on to the daemon.
const PASSED_ON: [Signal; 6] =
    [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM, Signal::SIGUSR1, Signal::SIGUSR2];

/// If this is process 1, runs this program again as a child, reaps whatever ends, passes signals on, and exits as the child
/// does. Otherwise returns at once. To be called in `main` of a daemon before it starts anything.
pub fn serve_if_first() {
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
    let signals: SigSet = PASSED_ON.into_iter().chain([Signal::SIGCHLD]).collect();
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
            // It is not reaped yet, so the number is its own.
            Ok(signal) => {
                if let Some(signal) = rustix::process::Signal::from_named_raw(signal as i32) {
                    let _ = kill_process(daemon, signal);
                }
            }
            Err(_) => {}
        }
    }
}

/// Reaps all that have ended: many ends can come as one signal. Answers the daemon's exit code if it is among them.
fn reap(daemon: Pid) -> Option<i32> {
    let mut code = None;
    while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
        if pid == daemon {
            code = Some(exit_code(status));
        }
    }
    code
}

/// As a shell tells it.
fn exit_code(status: WaitStatus) -> i32 {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => code,
        (None, signal) => 128 + signal.unwrap_or(0),
    }
}
