//! The stage between keeper and program, and between station and ready check: takes on everything that the program should
//! have, then becomes it.
//!
//! A process of its own rather than code between fork and exec, where almost nothing is allowed: this way there is no
//! unsafe code. The pid stays the same, so its parent knows it before the program exists.

use std::ffi::CString;
use std::io::{self, Read as _};
use std::os::fd::AsFd as _;
use std::os::unix::process::{CommandExt as _, parent_id};
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;

use super::{RUN_VARIABLE, Spec, interpreter};

const PARENT_ENDED: &str = "its parent ended before the program began";

/// Waits for the go-ahead (a [`Spec`] with the run's id and the parent's number, on standard input) and becomes the program.
pub(super) fn become_program() -> ! {
    let error = prepare();
    // Captured with the program's own output, so an operator sees it where they look.
    eprintln!("{error}");
    std::process::exit(if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 });
}

fn prepare() -> io::Error {
    let mut input = String::new();
    if let Err(error) = io::stdin().read_to_string(&mut input) {
        return error;
    }
    // A parent that died before the go-ahead leaves nothing to do.
    let Ok((run, parent, spec)) = serde_json::from_str::<(String, u32, Spec)>(&input) else {
        return io::Error::other(PARENT_ENDED);
    };
    let Some((program, arguments)) = spec.command.split_first() else {
        return io::Error::new(io::ErrorKind::InvalidInput, "an empty command");
    };
    if let Err(error) = take_on(&spec, parent) {
        return error;
    }
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("QUILT_")) {
            command.env_remove(name);
        }
    }
    if let Some(user) = &spec.user {
        command.env("USER", &user.name).env("LOGNAME", &user.name).env("HOME", &user.home);
    }
    command.envs(&spec.env).env(RUN_VARIABLE, run);
    let error = command.exec();
    let missing = interpreter::missing(program, &error).map_or_else(String::new, |missing| format!("; {missing}"));
    io::Error::new(error.kind(), format!("cannot run {program:?}: {error}{missing}"))
}

fn take_on(spec: &Spec, parent: u32) -> io::Result<()> {
    let named = |what: &str| {
        let what = what.to_owned();
        move |error: nix::Error| io::Error::other(format!("{what}: {error}"))
    };
    nix::unistd::setsid().map_err(named("a session of its own"))?;
    // Before the change of user: some of it takes privileges.
    spec.scheduling.apply()?;
    if let Some(gid) = spec.gid {
        match &spec.user {
            Some(user) => {
                let name = CString::new(user.name.as_str()).map_err(io::Error::other)?;
                nix::unistd::initgroups(&name, gid.into()).map_err(named("supplementary groups"))?;
            }
            None => nix::unistd::setgroups(&[gid.into()]).map_err(named("supplementary groups"))?,
        }
        nix::unistd::setgid(gid.into()).map_err(named("the configured group"))?;
    }
    if let Some(uid) = spec.uid {
        // Programs that open /dev/stdout need to own the pipe.
        for pipe in [io::stdout().as_fd(), io::stderr().as_fd()] {
            let _ = nix::unistd::fchown(pipe, Some(uid.into()), None);
        }
        nix::unistd::setuid(uid.into()).map_err(named("the configured user"))?;
    }
    std::env::set_current_dir(&spec.cwd).map_err(|error| io::Error::other(format!("cwd = {:?}: {error}", spec.cwd)))?;
    // After the change of user, which would undo it. If the parent died before, its death signal never comes.
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(named("a death signal"))?;
    if parent_id() != parent {
        return Err(io::Error::other(PARENT_ENDED));
    }
    Ok(())
}
