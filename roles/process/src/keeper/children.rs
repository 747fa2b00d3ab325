//! The keeper's children and how they end, in the kernel's own numbers.

use std::io;

use nix::libc;

/// How a process ended. Both are `None` only if the kernel did not say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct EndStatus {
    pub(super) code: Option<i32>,
    pub(super) signal: Option<i32>,
}

/// Reaps orphans of the program that have ended, so that no zombies gather, until the program itself has ended. Does not reap the
/// program: while its zombie exists, the kernel gives neither its pid nor its group's number to another process.
pub(super) fn reap_orphans(program: u32) {
    loop {
        match wait(libc::P_ALL, 0, libc::WNOWAIT | libc::WNOHANG) {
            Ok(Some((pid, _))) if pid != program => drop(wait(libc::P_PID, pid, libc::WNOHANG)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            _ => return,
        }
    }
}

/// How a child ended; `None` if it has not. Does not reap it.
pub(super) fn ended(child: u32) -> Option<EndStatus> {
    loop {
        match wait(libc::P_PID, child, libc::WNOWAIT | libc::WNOHANG) {
            Ok(ended) => return ended.map(|(_, ended)| ended),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // It is not among the children, so it has ended.
            Err(_) => return Some(EndStatus { code: None, signal: None }),
        }
    }
}

/// Waits for the end of a child; `None` if there is none to be had without waiting. nix's wait would return an error for a signal
/// that it has no name for.
#[allow(unsafe_code, reason = "no safe wrapper tells which child it was")]
fn wait(which: libc::idtype_t, pid: u32, more: libc::c_int) -> io::Result<Option<(u32, EndStatus)>> {
    // SAFETY: all zeros are a valid `siginfo_t`, which is plain numbers to those who do not ask for more.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes one `siginfo_t` to where the pointer says, which lives for the call.
    if unsafe { libc::waitid(which, pid, &raw mut info, libc::WEXITED | more) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: after a wait that succeeded both fields are set, or still zero if there was nothing to be had.
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    if pid == 0 {
        return Ok(None);
    }
    let ended = match info.si_code {
        libc::CLD_EXITED => EndStatus { code: Some(status), signal: None },
        // Killed, with or without a core dump.
        _ => EndStatus { code: None, signal: Some(status) },
    };
    Ok(Some((pid as u32, ended)))
}

/// Sends a signal to a child that is not reaped yet. Returns whether it was sent.
pub(super) fn signal(child: u32, signal: i32) -> bool {
    send(child as libc::pid_t, signal)
}

/// Sends a signal to the process group of a child that is not reaped yet. Returns whether there is such a group.
pub(crate) fn signal_group(child: u32, signal: i32) -> bool {
    send(-(child as libc::pid_t), signal)
}

#[allow(unsafe_code, reason = "the library's function sends only signals that it has a name for")]
fn send(target: libc::pid_t, signal: i32) -> bool {
    // SAFETY: two numbers are passed and no memory is touched.
    unsafe { libc::kill(target, signal) == 0 }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn every_way_to_end_is_told() {
        // A child ignores what whoever started the test had it ignore, such as HUP below nohup.
        quilt_core::clean_start::seal_inherited();
        let signals = (1..32).chain(libc::SIGRTMIN()..=libc::SIGRTMAX());
        // These do not end a process.
        let harmless = [libc::SIGCHLD, libc::SIGCONT, libc::SIGSTOP, libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU];
        let harmless = [&harmless[..], &[libc::SIGURG, libc::SIGWINCH]].concat();
        for number in signals.filter(|number| !harmless.contains(number)) {
            let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
            assert!(signal(child.id(), number));
            let seen = wait(libc::P_PID, child.id(), libc::WNOWAIT).unwrap();
            assert_eq!(seen, Some((child.id(), EndStatus { code: None, signal: Some(number) })));
            // It is a zombie still, whose number is nobody else's.
            assert!(signal(child.id(), 0));
            child.wait().unwrap();
        }
        let mut child = Command::new("sh").args(["-c", "exit 255"]).spawn().unwrap();
        let seen = wait(libc::P_PID, child.id(), libc::WNOWAIT).unwrap().unwrap();
        assert_eq!(seen.1, EndStatus { code: Some(255), signal: None });
        assert_eq!(ended(child.id()), Some(seen.1));
        child.wait().unwrap();
    }
}
