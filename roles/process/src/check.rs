//! Runs the program of a ready check. It starts as the program of its `process` instance does: with the instance's environment,
//! folder, user and limits, and nothing of the station's.

use std::io;
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::time::Duration;

use quilt_core::processes::PidFd;
use quilt_core::{clean_start, disk};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::pipe;
use tokio::process::Command;

use crate::api::ProcessConfig;
use crate::keeper::{EXEC, EXEC_NAME, children};
use crate::program::program;
use crate::signals;

/// How many bytes of its output are kept, and how many of its last lines are shown.
const OUTPUT_MAX: usize = 4 << 10;
const LINES_SHOWN: usize = 3;
/// How long to read on once the program and its group have ended: a process that left the group may hold the pipe open.
const OUTPUT_GRACE: Duration = Duration::from_millis(100);

/// Runs a program until it ends. `config` is the configuration of the `process` instance that it checks, as JSON; for instances of
/// other roles it is `None`, and the program runs as the station's user in `/`.
///
/// # Errors
///
/// The program cannot be run, or ended otherwise than with exit code 0; the text says how, with its last lines.
///
/// # Cancel safety
///
/// Cancel-safe: the program and its process group are killed when the future is dropped.
pub async fn run(command: &[String], config: Option<&str>) -> Result<(), String> {
    let named = |text: &str| format!("{command:?}: {text}");
    let config = serde_json::from_str::<ProcessConfig>(config.unwrap_or(r#"{"command":[]}"#));
    let mut config = config.map_err(|error| named(&error.to_string()))?;
    config.command = command.to_vec();
    let spec = disk::run(move || program(&config))
        .await
        .map_err(|_| named("its user or group is not known to this machine"))?;
    let go = serde_json::to_vec(&("check", std::process::id(), &spec)).expect("it has text keys");
    let ended = run_stage(&go).await.map_err(|error| named(&error.to_string()))?;
    ended.map_err(|how| named(&how))
}

async fn run_stage(go: &[u8]) -> io::Result<Result<(), String>> {
    let (output, writer) = io::pipe()?;
    let mut stage = Command::from(clean_start::command(EXEC_NAME, EXEC));
    stage.stdin(Stdio::piped()).stdout(writer.try_clone()?).stderr(writer).kill_on_drop(true);
    let mut child = stage.spawn()?;
    // Our copies of its end would keep the pipe open.
    drop(stage);
    let pid = child.id().ok_or_else(|| io::Error::other("it ended before it began"))?;
    let group = Group(pid);
    let process = PidFd::open(pid)?;
    let mut output = pipe::Receiver::from_owned_fd(OwnedFd::from(output))?;
    let mut input = child.stdin.take().expect("it was piped");
    input.write_all(go).await?;
    drop(input);
    let mut last = Vec::new();
    tokio::select! {
        ended = process.ended() => ended?,
        () = read_last(&mut output, &mut last) => process.ended().await?,
    }
    // It is not reaped yet, so that its number is that of its group and of nobody else.
    drop(group);
    let status = child.wait().await?;
    let _ = tokio::time::timeout(OUTPUT_GRACE, read_last(&mut output, &mut last)).await;
    if status.success() {
        return Ok(Ok(()));
    }
    use std::os::unix::process::ExitStatusExt as _;
    let how = match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("killed by {}", signals::name(signal)),
        (None, None) => status.to_string(),
    };
    Ok(Err(how + &last_lines(&String::from_utf8_lossy(&last))))
}

/// Reads until the end and keeps the last of it.
async fn read_last(output: &mut pipe::Receiver, last: &mut Vec<u8>) {
    while let Ok(1..) = output.read_buf(last).await {
        last.drain(..last.len().saturating_sub(OUTPUT_MAX));
    }
}

fn last_lines(output: &str) -> String {
    let lines: Vec<_> = output.lines().filter(|line| !line.trim().is_empty()).collect();
    match &lines[lines.len().saturating_sub(LINES_SHOWN)..] {
        [] => String::new(),
        last => format!("; its last lines: {}", last.join(" | ")),
    }
}

/// Kills the process group of a child when it is dropped. Drop it before the child is reaped.
struct Group(u32);

impl Drop for Group {
    fn drop(&mut self) {
        children::signal_group(self.0, nix::libc::SIGKILL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_that_say_something_are_shown() {
        assert_eq!(last_lines("a\n\nb\nc\nd\n \n"), "; its last lines: b | c | d");
        assert_eq!(last_lines("\n"), "");
    }
}
