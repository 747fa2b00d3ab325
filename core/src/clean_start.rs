//! A clean start: a process that quilt starts has what quilt gives it, and nothing of whoever started quilt.
//!
//! What a process inherits, it passes on: open descriptors with their locks and pipes, ignored and blocked signals, umask,
//! priorities, and the variables with which a service manager talks to its service. Programs, ready checks, keepers and
//! plugin hosts all begin with [`command`] in the process that starts them and [`begin`] in the one that is started.

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

/// What a service manager tells its service only.
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

/// The umask of a process that has no other configured.
pub const UMASK: u32 = 0o022;
/// The soft limit of open files of a process that has no other configured: more breaks programs that use `select`, and a
/// program that can use more may raise it up to the hard limit, which stays the station's.
pub const OPEN_FILES: u64 = 1024;

/// What a process begins with. Each that is `None` has its default, as far as this process may set it; one that is given
/// is set, or the start fails.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Scheduling {
    /// Permissions that new files do not get; [`UMASK`] by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub umask: Option<u32>,
    /// From -20, which is first, to 19; 0 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nice: Option<i32>,
    /// From -1000, which is never killed when memory is short, to 1000, which is killed first; 0 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oom_score_adj: Option<i32>,
    /// Soft limit of open files, and the hard one if that is lower; [`OPEN_FILES`] and the hard limit of this process by
    /// default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open_files: Option<u64>,
}

/// A command that starts this program again, as `name` in lists of processes and with `mode` as its first argument.
pub fn command(name: &str, mode: &str) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg0(name).arg(mode);
    for variable in SERVICE_VARIABLES {
        command.env_remove(variable);
    }
    command
}

/// Lets go of what this process inherited: descriptors above 2, ignored and blocked signals. `name`, of at most 15 bytes,
/// is what `top` shows.
///
/// To be called first thing in `main`, before anything was opened: every descriptor above 2 is closed, whoever owns it.
pub fn begin(name: &CStr) {
    close_range(0);
    reset_signals();
    // Only for people.
    let _ = nix::sys::prctl::set_name(name);
}

/// Keeps what a daemon inherited from whatever it starts itself, and resets the signals that it ignores or blocks. For
/// `main` of a daemon, before anything is started; the descriptors stay open here, with the locks and pipes they stand for.
pub fn keep_inherited() {
    close_range(libc::CLOSE_RANGE_CLOEXEC);
    reset_signals();
}

impl Scheduling {
    /// Sets all of it for this process. Call it before privileges are given up.
    ///
    /// # Errors
    ///
    /// A value that was configured cannot be set; the text names its key.
    pub fn apply(&self) -> io::Result<()> {
        umask(Mode::from_bits_truncate(self.umask.unwrap_or(UMASK)));
        let nice = rustix::process::setpriority_process(None, self.nice.unwrap_or(0));
        check("nice", self.nice, nice.map_err(io::Error::from))?;
        let score = fs::write("/proc/self/oom_score_adj", self.oom_score_adj.unwrap_or(0).to_string());
        check("oom_score_adj", self.oom_score_adj, score)?;
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        let soft = self.open_files.unwrap_or(OPEN_FILES.min(hard));
        let limit = setrlimit(Resource::RLIMIT_NOFILE, soft, hard.max(soft));
        check("open_files", self.open_files, limit.map_err(io::Error::from))
    }
}

/// A default that may not be set is left as it is.
fn check<T: std::fmt::Display>(key: &str, configured: Option<T>, set: io::Result<()>) -> io::Result<()> {
    match (configured, set) {
        (Some(value), Err(error)) => {
            Err(io::Error::new(error.kind(), format!("{key} = {value}: {error}; use a value that the station may set")))
        }
        _ => Ok(()),
    }
}

/// Closes all descriptors above 2, or does with them what `flags` say.
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
