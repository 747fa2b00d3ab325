//! Processes of this machine. A pid alone does not identify a process: the kernel reuses pids, and every pid namespace begins
//! anew. Pid and start time do, within one boot and one namespace. Signals go through a descriptor that stays with its process.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::OnceLock;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A process as `/proc/PID/stat` shows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ProcessStat {
    /// Its number.
    pub pid: u32,
    /// The process that started it, or that took it over.
    pub parent: u32,
    /// Its process group.
    pub group: u32,
    /// Its session.
    pub session: u32,
    /// When it began, in clock ticks since boot.
    pub started_ticks: u64,
    /// A signal or a debugger has stopped it: it does nothing before it is continued.
    pub is_frozen: bool,
}

impl ProcessStat {
    /// Reads one process; `None` if there is none or only a zombie.
    ///
    /// # Errors
    ///
    /// It cannot be looked at now, for want of descriptors or memory: nobody knows whether it is there.
    pub fn read(pid: u32) -> io::Result<Option<Self>> {
        let stat = unless_gone(fs::read_to_string(format!("/proc/{pid}/stat")))?;
        Ok(stat.and_then(|stat| Self::parse(pid, &stat)))
    }

    /// Reads all processes that this one may see, without zombies. Costs about 10 µs for each process.
    ///
    /// # Errors
    ///
    /// Not all of them can be looked at now, for want of descriptors or memory.
    pub fn all() -> io::Result<Vec<Self>> {
        let mut all = Vec::new();
        for entry in fs::read_dir("/proc")? {
            let name = entry?.file_name();
            if let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) {
                all.extend(Self::read(pid)?);
            }
        }
        Ok(all)
    }

    fn parse(pid: u32, stat: &str) -> Option<Self> {
        // The fields begin behind the name, which may contain anything.
        let fields: Vec<_> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        if matches!(fields.first(), None | Some(&"Z" | &"X")) {
            return None;
        }
        let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
        Some(Self {
            pid,
            parent: number(1)? as u32,
            group: number(2)? as u32,
            session: number(3)? as u32,
            started_ticks: number(19)?,
            is_frozen: matches!(fields.first(), Some(&"T" | &"t")),
        })
    }
}

/// `None` if a file is not there; also if it is one of a process that ended before it was read.
///
/// # Errors
///
/// Any other: nobody knows whether it is there.
pub fn unless_gone<T>(looked: io::Result<T>) -> io::Result<Option<T>> {
    match looked {
        Ok(seen) => Ok(Some(seen)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.raw_os_error() == Some(nix::libc::ESRCH) => Ok(None),
        Err(error) => Err(error),
    }
}

/// A descriptor of one process. It never refers to another one, even when the kernel reuses the pid.
#[derive(Debug)]
pub struct PidFd(OwnedFd);

impl PidFd {
    /// Opens the process that has this pid now. Use it only for a child that is not reaped yet, because its pid cannot have been
    /// reused; use [`PidFd::proven`] otherwise.
    ///
    /// # Errors
    ///
    /// There is no such process, or the kernel is older than 5.3.
    pub fn open(pid: u32) -> io::Result<Self> {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
        Ok(Self(pidfd_open(pid, PidfdFlags::empty())?))
    }

    /// Opens a process if it is the one that began at `started_ticks`, in clock ticks since boot; `None` if that has ended.
    ///
    /// # Errors
    ///
    /// It cannot be looked at now, for want of descriptors or memory: nobody knows whether it is there.
    pub fn proven(pid: u32, started_ticks: u64) -> io::Result<Option<Self>> {
        let Some(process) = unless_gone(Self::open(pid))? else { return Ok(None) };
        // Read after it was opened: a process that has the start time now had it when it was opened, because one that came
        // in between would have begun later.
        let stat = ProcessStat::read(pid)?;
        Ok(stat.filter(|stat| stat.started_ticks == started_ticks).map(|_| process))
    }

    /// Kills the process. Does nothing if it has ended.
    pub fn kill(&self) {
        let _ = pidfd_send_signal(&self.0, Signal::KILL);
    }

    /// Sends a signal.
    ///
    /// # Errors
    ///
    /// The process has ended, it may not be signalled, or there is no such signal.
    #[allow(unsafe_code, reason = "the library's function sends only signals that it has a name for")]
    pub fn send(&self, signal: i32) -> io::Result<()> {
        let (process, nothing) = (self.0.as_raw_fd(), std::ptr::null::<nix::libc::siginfo_t>());
        // SAFETY: the descriptor is open as long as `self` is; without a `siginfo_t` the kernel reads no memory.
        match unsafe { nix::libc::syscall(nix::libc::SYS_pidfd_send_signal, process, signal, nothing, 0) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Whether the process has ended. A zombie has.
    pub fn has_ended(&self) -> bool {
        let mut polled = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        matches!(poll(&mut polled, PollTimeout::ZERO), Ok(1..))
    }

    /// Waits for the end of the process. Does not reap a child. Takes no descriptor, so that it works when there are none left.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe: nothing is lost.
    ///
    /// # Errors
    ///
    /// The descriptor cannot be watched.
    pub async fn ended(&self) -> io::Result<()> {
        // SAFETY: `self` is borrowed for as long as the descriptor is registered, and does not close or replace it meanwhile.
        #[allow(unsafe_code, reason = "tokio cannot know that the descriptor stays open")]
        let watched = unsafe { AsyncFd::register_with_interest(self.0.as_fd(), Interest::READABLE) }?;
        watched.readable().await.map(drop)
    }
}

impl AsFd for PidFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Whether a process has this file open. Also false if this process may not look.
pub fn has_open(pid: u32, path: &Path) -> bool {
    let identity = |path: &Path| path.metadata().map(|file| (file.dev(), file.ino())).ok();
    let Some(wanted) = identity(path) else { return false };
    let open = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    open.into_iter().any(|entry| identity(&entry.path()) == Some(wanted))
}

/// The identity of this boot of the machine.
///
/// # Errors
///
/// It cannot be read now, for want of descriptors or memory. Once it was read it is known.
pub fn boot_id() -> io::Result<&'static str> {
    static BOOT: OnceLock<String> = OnceLock::new();
    known(&BOOT, || Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned()))
}

/// The identity of this pid namespace within this boot. The kernel reuses the number of a namespace as soon as it is gone, so
/// the start time of its first process is part of the identity.
///
/// # Errors
///
/// It cannot be read now, for want of descriptors or memory. Once it was read it is known.
pub fn pid_namespace() -> io::Result<&'static str> {
    static NAMESPACE: OnceLock<String> = OnceLock::new();
    known(&NAMESPACE, || {
        let namespace = fs::read_link("/proc/self/ns/pid")?;
        let first = ProcessStat::read(1)?.map_or(0, |first| first.started_ticks);
        Ok(format!("{}@{first}", namespace.display()))
    })
}

/// What does not change while this process lives, read once.
fn known(cell: &'static OnceLock<String>, read: impl FnOnce() -> io::Result<String>) -> io::Result<&'static str> {
    match cell.get() {
        Some(known) => Ok(known),
        None => {
            let read = read()?;
            Ok(cell.get_or_init(|| read))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_read_whatever_its_name_contains() {
        let stat = "7 (a) Z 1 (b) S 3 5 6 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4711 1 1";
        let read = ProcessStat::parse(7, stat).unwrap();
        let running = ProcessStat { pid: 7, parent: 3, group: 5, session: 6, started_ticks: 4711, is_frozen: false };
        assert_eq!(read, running);
        let frozen = ProcessStat::parse(7, &stat.replace(" S 3", " T 3")).unwrap();
        assert_eq!(frozen, ProcessStat { is_frozen: true, ..running });
        assert_eq!(ProcessStat::parse(7, &stat.replace(" S 3", " Z 3")), None);
        assert_eq!(ProcessStat::parse(7, "7 (cut"), None);
    }

    #[test]
    fn a_number_that_was_given_to_a_later_process_proves_nothing() {
        let own = ProcessStat::read(std::process::id()).unwrap().unwrap();
        let is_proven = |ticks| PidFd::proven(own.pid, ticks).unwrap().is_some();
        assert!(is_proven(own.started_ticks));
        assert!(!is_proven(own.started_ticks - 1) && !is_proven(0));
    }

    #[test]
    fn a_process_that_has_a_file_open_is_told_from_one_that_has_not() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut child = std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        assert!(has_open(std::process::id(), file.path()));
        assert!(!has_open(child.id(), file.path()) && !has_open(child.id(), Path::new("/no/such/file")));
        drop(child.stdin.take());
        child.wait().unwrap();
    }

    #[tokio::test]
    async fn the_end_of_a_child_is_seen_before_it_is_reaped_and_its_descriptor_never_means_another() {
        let mut child = std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let process = PidFd::open(child.id()).unwrap();
        assert!(!process.has_ended());
        drop(child.stdin.take());
        process.ended().await.unwrap();
        assert!(process.has_ended());
        assert!(child.wait().unwrap().success());
        assert!(process.send(nix::libc::SIGTERM).is_err(), "it has ended and is reaped");
    }
}
