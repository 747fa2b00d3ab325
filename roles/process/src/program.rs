//! What a program begins with, from the configuration of its instance.

use nix::unistd::{Group, User};
use quilt_core::clean_start::Scheduling;
use quilt_plugin_api::{Invalid, RoleContext, RoleError};
use sha2::{Digest as _, Sha256};

use crate::api::ProcessConfig;
use crate::keeper::{Spec, SpecUser};
use crate::signals;

/// Identifies a program's configuration, to tell whether the running program is the configured one. User and group count by name, so
/// a running program is found again while a directory service is away and cannot resolve its user.
pub(crate) fn digest(config: &ProcessConfig) -> String {
    let ProcessConfig { command, env, cwd, user, group, stop_signal, .. } = config;
    let parts = serde_json::to_vec(&(command, env, cwd, user, group, signals::number(stop_signal), scheduling(config)));
    let digest = Sha256::digest(parts.expect("a configuration has text keys"));
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What a program needs to begin.
pub(crate) fn spec(config: &ProcessConfig, cx: &RoleContext) -> Result<Spec, RoleError> {
    let mut spec = program(config).map_err(RoleError::Rejected)?;
    spec.digest = digest(config);
    spec.station = std::process::id();
    spec.orphan_timeout_ms = config.orphan_timeout.map(|timeout| timeout.as_millis() as u64);
    spec.stop_timeout_ms = cx.stop_timeout().as_millis() as u64;
    Ok(spec)
}

/// What a program with this configuration needs to begin, without what only a keeper needs.
pub(crate) fn program(config: &ProcessConfig) -> Result<Spec, Vec<Invalid>> {
    let (user, uid, gid) = identity(config)?;
    Ok(Spec {
        user,
        command: config.command.clone(),
        env: config.env.clone(),
        cwd: config.cwd.clone().unwrap_or_else(|| "/".into()),
        uid,
        gid,
        scheduling: scheduling(config),
        stop_signal: signals::number(&config.stop_signal).unwrap_or(nix::libc::SIGTERM),
        digest: String::new(),
        station: 0,
        orphan_timeout_ms: None,
        stop_timeout_ms: 0,
    })
}

fn scheduling(config: &ProcessConfig) -> Scheduling {
    let umask = config.umask.as_deref().and_then(octal);
    let ProcessConfig { nice, oom_score_adj, open_files, .. } = *config;
    Scheduling { umask, nice, oom_score_adj, open_files }
}

/// Permissions as octal digits.
pub(crate) fn octal(text: &str) -> Option<u32> {
    u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777 && !text.starts_with('+'))
}

/// The user and group to run as.
#[allow(clippy::type_complexity, reason = "one caller takes it apart at once")]
pub(crate) fn identity(config: &ProcessConfig) -> Result<(Option<SpecUser>, Option<u32>, Option<u32>), Vec<Invalid>> {
    let mut wrong = Vec::new();
    let user = config.user.as_ref().and_then(|name| known("user", name, User::from_name(name), &mut wrong));
    let group = config.group.as_ref().and_then(|name| known("group", name, Group::from_name(name), &mut wrong));
    let group = group.map(|group| group.gid);
    let group = group.or(user.as_ref().map(|user| user.gid));
    if (config.user.is_some() || config.group.is_some()) && !nix::unistd::geteuid().is_root() {
        let key = if config.user.is_some() { "user" } else { "group" };
        wrong.push(Invalid::key(key, "a station that runs as root", "one that does not"));
    }
    if !wrong.is_empty() {
        return Err(wrong);
    }
    let uid = user.as_ref().map(|user| user.uid.as_raw());
    Ok((user.map(|user| SpecUser { name: user.name, home: user.dir }), uid, group.map(|group| group.as_raw())))
}

/// Resolves a name. If it cannot, adds the problem to `wrong`.
pub(crate) fn known<T>(key: &str, name: &str, found: nix::Result<Option<T>>, wrong: &mut Vec<Invalid>) -> Option<T> {
    let got = match found {
        Ok(Some(found)) => return Some(found),
        Ok(None) => format!("{name:?}"),
        Err(error) => format!("{name:?}, which cannot be looked up now: {error}"),
    };
    wrong.push(Invalid::key(key, "a name known to this machine", got));
    None
}
