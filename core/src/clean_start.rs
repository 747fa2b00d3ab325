//! A clean start: a process that quilt starts inherits nothing from the process that started quilt.
//!
//! Without this it would inherit open descriptors with their locks and pipes, ignored and blocked signals, umask, priorities,
//! and the variables with which a service manager talks to its service. The parent of a program, ready check, keeper or
//! plugin host builds it with [`command`]; the new process calls [`begin`] first.

use std::ffi::CStr;
use std::fs;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use nix::libc;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::SigSet;
use nix::sys::stat::{Mode, umask};
use serde::{Deserialize, Serialize};

/// Variables that a service manager means for its service only.
const SERVICE_VARIABLES: [&str; 24] = [
    "CACHE_DIRECTORY",
    "CONFIGURATION_DIRECTORY",
    "CREDENTIALS_DIRECTORY",
    "FDSTORE",
    "INVOCATION_ID",
    "JOURNAL_STREAM",
    "LISTEN_FDNAMES",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_PIDFDID",
    "LOGS_DIRECTORY",
    "MAINPID",
    "MANAGERPID",
    "MANAGERPIDFDID",
    "MEMORY_PRESSURE_WATCH",
    "MEMORY_PRESSURE_WRITE",
    "NOTIFY_SOCKET",
    "PIDFILE",
    "RUNTIME_DIRECTORY",
    "STATE_DIRECTORY",
    "SYSTEMD_EXEC_PID",
    "SYSTEMD_NSS_BYPASS_BUS",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
];

/// The highest signal number of the kernel.
const SIGNAL_MAX: libc::c_int = 64;

/// The umask of a process whose configuration has none.
pub const DEFAULT_UMASK: u32 = 0o022;
/// The soft limit of open files of a process whose configuration has none. More breaks programs that use `select`; a program
/// that can use more raises it itself, up to the hard limit, which stays the station's.
pub const DEFAULT_OPEN_FILES: u64 = 1024;

/// Priorities and limits of a process. A value that is given must be settable, or the start fails. `None` means the default;
/// if this process may not set that, the inherited value stays.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Scheduling {
    /// Permissions that new files do not get; [`DEFAULT_UMASK`] by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub umask: Option<u32>,
    /// Niceness from -20, which is scheduled first, to 19; 0 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nice: Option<i32>,
    /// From -1000, which is never killed when memory is short, to 1000, which is killed first; 0 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oom_score_adj: Option<i32>,
    /// Soft limit of open files, and the hard one if that is lower; [`DEFAULT_OPEN_FILES`] and the hard limit of this process by
    /// default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open_files: Option<u64>,
}

/// A command that starts this program again: as `name` in process lists, with `mode` as its first argument and without the
/// variables of a service manager.
pub fn command(name: &str, mode: &str) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg0(name).arg(mode);
    for variable in SERVICE_VARIABLES {
        command.env_remove(variable);
    }
    command
}

/// Drops what this process inherited: closes all descriptors above 2 and resets ignored and blocked signals. `name`, of at
/// most 15 bytes, is what `top` shows.
///
/// Call it first in `main`, before anything is opened: it closes every descriptor above 2, even one that is in use.
pub fn begin(name: &CStr) {
    close_range(0);
    reset_signals();
    // Only for people.
    let _ = nix::sys::prctl::set_name(name);
}

/// Makes what this process creates its own user's alone, whatever umask it inherited. Call it in `main` of a daemon.
pub fn create_privately() {
    umask(Mode::from_bits_truncate(0o077));
}

/// Makes sure that a daemon does not pass on what it inherited: marks all descriptors above 2 close-on-exec and resets ignored
/// and blocked signals. The descriptors stay open in the daemon itself, with their locks and pipes.
///
/// Call it in `main` of a daemon before it starts anything.
pub fn seal_inherited() {
    close_range(libc::CLOSE_RANGE_CLOEXEC);
    reset_signals();
}

impl Scheduling {
    /// Applies all values to this process. Call it before giving up privileges: some need them.
    ///
    /// # Errors
    ///
    /// A configured value cannot be set; the text names its key.
    pub fn apply(&self) -> io::Result<()> {
        umask(Mode::from_bits_truncate(self.umask.unwrap_or(DEFAULT_UMASK)));
        let nice = rustix::process::setpriority_process(None, self.nice.unwrap_or(0));
        check("nice", self.nice, nice.map_err(io::Error::from))?;
        let score = fs::write("/proc/self/oom_score_adj", self.oom_score_adj.unwrap_or(0).to_string());
        check("oom_score_adj", self.oom_score_adj, score)?;
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        let soft = self.open_files.unwrap_or(DEFAULT_OPEN_FILES.min(hard));
        let limit = setrlimit(Resource::RLIMIT_NOFILE, soft, hard.max(soft));
        check("open_files", self.open_files, limit.map_err(io::Error::from))
    }
}

/// Passes on the error of a configured value; ignores that of a default.
fn check<T: std::fmt::Display>(key: &str, configured: Option<T>, set: io::Result<()>) -> io::Result<()> {
    match (configured, set) {
        (Some(value), Err(error)) => {
            Err(io::Error::new(error.kind(), format!("{key} = {value}: {error}; use a value that the station may set")))
        }
        _ => Ok(()),
    }
}

/// Closes all descriptors above 2, or does to them what `flags` say.
#[allow(unsafe_code, reason = "no safe wrapper")]
fn close_range(flags: u32) {
    // SAFETY: three numbers are passed and no memory is touched. Without flags it is called by `begin` only, first thing in
    // `main`: what is open then was inherited, and nothing in this program owns it.
    let done = unsafe { libc::syscall(libc::SYS_close_range, 3 as libc::c_uint, libc::c_uint::MAX, flags) };
    if done == 0 {
        return;
    }
    // A kernel before 5.11: one by one, and all the names before the first is closed, because reading them takes a descriptor.
    let names = fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    let open: Vec<libc::c_int> = names.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    for descriptor in open.into_iter().filter(|descriptor| *descriptor > 2) {
        // SAFETY: as above; a number that is closed by now gives an error and changes nothing.
        unsafe {
            match flags {
                0 => libc::close(descriptor),
                _ => libc::fcntl(descriptor, libc::F_SETFD, libc::FD_CLOEXEC),
            };
        }
    }
}

/// Gives every signal that is ignored its default action, and lets all through. Handlers stay: they are this program's own.
#[allow(unsafe_code, reason = "no safe wrapper, and none that knows all signals")]
fn reset_signals() {
    /// More than the kernel's `struct sigaction` takes on any platform. All zeros mean the default action.
    type Action = [u64; 8];
    for signal in 1..=SIGNAL_MAX {
        // The standard library ignores it in this process and resets it in every other.
        if signal == libc::SIGPIPE {
            continue;
        }
        let (default, mut current): (Action, Action) = ([0; 8], [0; 8]);
        // The system call rather than the function: the C library refuses signals that it keeps for itself.
        let set_size = size_of::<u64>();
        // SAFETY: both point to memory that is larger than what the kernel reads or writes there, and live for the call. The
        // default action of a signal that was ignored runs no code of this process.
        unsafe {
            let nothing = std::ptr::null::<Action>();
            let read = libc::syscall(libc::SYS_rt_sigaction, signal, nothing, &raw mut current, set_size);
            // The first word of the structure is the handler.
            if read == 0 && current[0] as usize == libc::SIG_IGN {
                let nothing = std::ptr::null_mut::<Action>();
                libc::syscall(libc::SYS_rt_sigaction, signal, &raw const default, nothing, set_size);
            }
        }
    }
    // It fails for no set of signals.
    let _ = SigSet::empty().thread_set_mask();
}
