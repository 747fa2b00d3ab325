//! Supervises any program: argument vector, environment, working directory, user, process group; stopped by a signal,
//! a wait and a kill of its group; output captured; exit code judged.
//!
//! The program runs under a [`keeper`], so that a crash, restart or upgrade of the station leaves it running and the
//! new station takes it back: same pid, no lost line, exit status known. Restart policy, ready checks and ordering are
//! the station's and work the same for every role.
//!
//! This role is linked into stations only: it uses the station's tokio directly for sockets and child processes.

pub mod api;
pub mod check;
mod find;
mod hold;
pub mod keeper;
mod kept;
mod limits;
mod program;
mod shortage;
mod signals;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use api::{OutputLine, ProcessConfig, ProcessStatus, Signal, SignalError, Status, Tail};
use nix::unistd::SysconfVar;
use quilt_core::{disk, lines, time};
use quilt_plugin_api::{Invalid, Items, LogLevel, NoError, RoleContext, RoleError, Streaming, Work, role};

use hold::Hold;
use keeper::{Paths, ending};
use program::{digest, identity, spec};

/// The name of this role.
pub const ROLE: &str = "process";

/// The longest argument or environment variable, closing zero byte included, in pages of memory. Linux fixes this limit.
const ARGUMENT_MAX_PAGES: usize = 32;
/// How many of a failed program's last error lines are shown.
const LAST_LINES: usize = 5;
/// How many characters of each.
const LAST_LINE_MAX: usize = 200;

/// A running program.
pub struct Process {
    config: ProcessConfig,
    /// Exit codes that mean success; `run` looks at them when the program has ended.
    success: Arc<Mutex<Vec<i32>>>,
    hold: Arc<Hold>,
    log: PathBuf,
}

/// Supervises a program.
#[role(name = "process")]
impl Process {
    fn validate(config: &ProcessConfig) -> Result<(), RoleError> {
        let mut wrong = Vec::new();
        let mut invalid = |key: &str, expected: &str, got: &str| wrong.push(Invalid::key(key, expected, got));
        match config.command.first() {
            None => invalid("command", "a program and its arguments", "nothing"),
            Some(program) if program.is_empty() => invalid("command", "a program", "an empty text"),
            Some(_) => {}
        }
        if config.command.iter().any(|argument| argument.contains('\0')) {
            invalid("command", "text without a zero byte", "a zero byte");
        }
        let page = nix::unistd::sysconf(SysconfVar::PAGE_SIZE).ok().flatten().unwrap_or(4096);
        let longest = ARGUMENT_MAX_PAGES * usize::try_from(page).unwrap_or(4096) - 1;
        let too_long = |length: usize| (length > longest).then(|| format!("{length} bytes"));
        let expected = format!("at most {longest} bytes, which is what Linux passes on in one piece");
        for (index, argument) in config.command.iter().enumerate() {
            if let Some(got) = too_long(argument.len()) {
                invalid(&format!("command[{index}]"), &expected, &got);
            }
        }
        for (name, value) in &config.env {
            if let Some(got) = too_long(name.len() + 1 + value.len()) {
                invalid(&format!("env.{name}"), &expected, &got);
            }
        }
        for name in config.env.keys().filter(|name| name.is_empty() || name.contains(['=', '\0'])) {
            invalid("env", "names without `=`", &format!("{name:?}"));
        }
        for (name, _) in config.env.iter().filter(|(_, value)| value.contains('\0')) {
            invalid(&format!("env.{name}"), "a value without a zero byte", "a zero byte");
        }
        if let Some(cwd) = config.cwd.as_ref().filter(|cwd| !cwd.is_absolute()) {
            invalid("cwd", "an absolute path", &format!("{cwd:?}"));
        }
        if signals::number(&config.stop_signal).is_none() {
            invalid("stop_signal", "a signal such as TERM", &format!("{:?}", config.stop_signal));
        }
        wrong.extend(identity(config).err().into_iter().flatten());
        RoleError::unless_empty(wrong)
    }

    async fn start(config: ProcessConfig, cx: &RoleContext) -> Result<Self, RoleError> {
        let hold = Arc::new(Hold::new(Paths::new(cx.state_dir()), digest(&config)));
        hold.set_orphan_timeout(config.orphan_timeout).await;
        let spec = {
            let (config, cx) = (config.clone(), cx.clone());
            move || spec(&config, &cx)
        };
        hold.begin(spec, cx).await?;
        let success = Arc::new(Mutex::new(config.success_exit_codes.clone()));
        Ok(Self { config, success, hold, log: cx.log_dir().to_owned() })
    }

    async fn update(&mut self, config: ProcessConfig, _: &RoleContext) -> Result<(), RoleError> {
        if digest(&config) != self.hold.digest() {
            return Err(RoleError::NeedsRestart);
        }
        // How to judge the end and when to give up can change under a running program.
        *self.success.lock().unwrap_or_else(PoisonError::into_inner) = config.success_exit_codes.clone();
        self.hold.set_orphan_timeout(config.orphan_timeout).await;
        self.config = config;
        Ok(())
    }

    fn run(&mut self, cx: &RoleContext) -> Option<Work> {
        let (hold, log, config) = (self.hold.clone(), self.log.clone(), self.config.clone());
        let (success, cx) = (self.success.clone(), cx.clone());
        Some(Box::pin(async move {
            let spec = {
                let cx = cx.clone();
                move || spec(&config, &cx)
            };
            let exit = hold.until_ended(spec, &cx).await?;
            cx.pid(None);
            cx.ended(exit.to_string());
            let success = success.lock().unwrap_or_else(PoisonError::into_inner).clone();
            if exit.is_success(&success) {
                return Ok(());
            }
            let errors = disk::run(move || last_error_lines(&log)).await;
            Err(RoleError::failed(format!("{exit}{errors}")))
        }))
    }

    async fn stop(self, cx: &RoleContext) {
        // As long as it runs it is not stopped; the station says so when the time is over.
        self.hold.end(cx.stop_timeout(), |survivor| cx.ended(survivor)).await;
        if let Err(error) = self.hold.paths.on_disk(Paths::forget).await {
            cx.log(LogLevel::Warn, format!("the record of the last run cannot be removed: {error}"));
        }
        cx.pid(None);
    }

    /// The keeper goes on; its record lets the next station find it.
    async fn detach(self, _: &RoleContext) {}

    async fn abandon(cx: &RoleContext) {
        let paths = Paths::new(cx.state_dir());
        ending::end_all_left_over(&paths, cx.stop_timeout(), |survivor| cx.ended(survivor)).await;
    }

    async fn survives(cx: &RoleContext) -> bool {
        let paths = Paths::new(cx.state_dir());
        // One that ended unseen is judged by its exit, which begins nothing either.
        let look = |paths: &Paths| {
            let is_on_record = || paths.read_run()?.map_or(Ok(false), |run| run.is_here());
            Ok::<_, std::io::Error>(ending::left_over(paths)? || is_on_record()?)
        };
        // What cannot be looked at was not seen to be gone.
        paths.on_disk(look).await.unwrap_or(true)
    }

    /// Replies how the program does.
    #[command(read)]
    async fn status(&self, _: Status) -> Result<ProcessStatus, NoError> {
        let run = self.hold.run();
        let (pid, keeper) = run.as_ref().map_or((0, 0), |run| (run.pid, run.keeper));
        Ok(ProcessStatus {
            pid,
            started: run.map(|run| time::ms_text(run.started_ms)).unwrap_or_default(),
            keeper,
            exit: self.hold.exit().as_ref().map(ToString::to_string),
        })
    }

    /// Sends a signal to the program's main process.
    #[command]
    async fn signal(&self, request: Signal) -> Result<(), SignalError> {
        let number = signals::number(&request.signal).ok_or(SignalError::Unknown(request.signal))?;
        self.hold.signal(number).await
    }

    /// Sends the last lines of the program's output, and on request those to come.
    #[command(read, stream)]
    fn tail(&self, request: Tail, mut items: Items<OutputLine>) -> Streaming<NoError> {
        let log = self.log.clone();
        Box::pin(async move {
            let count = request.lines as usize;
            let Ok(mut follower) = lines::Follower::open(&log, move |log| lines::Reader::open(log, count)).await else {
                return Ok(());
            };
            loop {
                let lines = if request.follow { follower.next().await } else { follower.more().await };
                let Some(lines) = lines.ok().filter(|lines| !lines.is_empty()) else { return Ok(()) };
                for line in lines {
                    let (text, bytes) = (line.text().into_owned(), line.raw().map(<[u8]>::to_vec));
                    let lines::Line { at, stream, continues, .. } = line;
                    if items.send(&OutputLine { at, stream, text, continues, bytes }).await.is_err() {
                        return Ok(());
                    }
                }
            }
        })
    }
}

/// The last lines on standard error of the run that ended, for its reason. The run begins at a position in the log, not at a time,
/// because the clock may have been set back.
fn last_error_lines(log: &std::path::Path) -> String {
    let begin = lines::Position::of_run(log).unwrap_or(lines::Position::START);
    let mut errors = Vec::new();
    if let Ok(mut reader) = lines::Reader::open_since(log, 200, begin) {
        let mut line = Vec::new();
        while let Ok(more) = reader.more()
            && !more.is_empty()
        {
            for piece in more.iter().filter(|piece| piece.stream == "err") {
                line.extend_from_slice(&piece.bytes);
                if !piece.continues {
                    errors.push(std::mem::take(&mut line));
                }
            }
        }
        if !line.is_empty() {
            errors.push(line);
        }
    }
    match &errors[errors.len().saturating_sub(LAST_LINES)..] {
        [] => String::new(),
        last => {
            let cut = |line: &Vec<u8>| {
                String::from_utf8_lossy(line).trim_end().chars().take(LAST_LINE_MAX).collect::<String>()
            };
            format!("; last lines of its errors: {}", last.iter().map(cut).collect::<Vec<_>>().join(" | "))
        }
    }
}

#[cfg(test)]
mod tests;
