//! The station's side of a keeper: start one, find one again, talk to it.

use std::io;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::Command;

use crate::keeper::{self, Exit, FromKeeper, KEEPER, Paths, Run, Spec, ToKeeper};

/// How long a keeper may take to say what it keeps. One that is frozen never does.
const FIRST_WORD: Duration = Duration::from_secs(2);
/// How much longer than the stop time-out a keeper may take to say that its program ended.
const STOP_GRACE: Duration = Duration::from_secs(3);

/// A connection to the keeper of a run.
pub(crate) struct Kept {
    pub(crate) run: Run,
    pub(crate) ears: Ears,
    pub(crate) mouth: OwnedWriteHalf,
}

/// What there is of an instance's program.
pub(crate) enum Found {
    /// It runs.
    Running(Kept),
    /// It has ended, and nobody was told yet.
    Ended(Run, Exit),
    /// Nothing.
    Nothing,
}

impl Found {
    /// A run whose keeper is gone.
    pub(crate) fn ended(paths: &Paths, run: Run) -> Self {
        let unknown =
            || Exit { run: run.id.clone(), code: None, signal: None, at_ms: quilt_core::time::now_ms(), left: 0 };
        let exit = paths.read_exit().filter(|exit| exit.run == run.id).unwrap_or_else(unknown);
        Self::Ended(run, exit)
    }
}

/// The half that hears of the end.
pub(crate) struct Ears(Lines<BufReader<OwnedReadHalf>>);

impl Ears {
    /// Waits for the end of the run. A keeper that goes without saying how has left it on disk, or was killed.
    pub(crate) async fn exit(mut self, paths: &Paths, run: &Run) -> Exit {
        while let Ok(Some(line)) = self.0.next_line().await {
            if let Ok(FromKeeper::Exited(exit)) = serde_json::from_str(&line) {
                return exit;
            }
        }
        match paths.read_exit() {
            Some(exit) if exit.run == run.id => exit,
            _ => Exit { run: run.id.clone(), code: None, signal: None, at_ms: quilt_core::time::now_ms(), left: 0 },
        }
    }
}

/// A keeper that has not said yet that it is at work. Killed, and its program with it, if nobody waits for that any more: a
/// start that was given up leaves nothing running.
struct Unheard(Option<Pid>);

impl Unheard {
    fn heard(mut self) {
        self.0 = None;
    }
}

impl Drop for Unheard {
    fn drop(&mut self) {
        if let Some(keeper) = self.0 {
            let _ = kill(keeper, Signal::SIGKILL);
        }
    }
}

/// Says something to the keeper; one that is gone does not hear it, and its program is gone with it.
pub(crate) async fn say(mouth: &mut OwnedWriteHalf, message: &ToKeeper) {
    let mut line = serde_json::to_vec(message).expect("it has text keys");
    line.push(b'\n');
    let _ = mouth.write_all(&line).await;
}

impl Kept {
    /// Starts a keeper with its program.
    pub(crate) async fn start(paths: &Paths, log: &Path, spec: &Spec) -> io::Result<Found> {
        quilt_core::files::create_private_dir(paths.folder())?;
        let mut keeper = Command::new("/proc/self/exe")
            .arg0("quilt-keeper")
            .arg(KEEPER)
            .arg(paths.folder())
            .arg(log)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let unheard = Unheard(keeper.id().map(|pid| Pid::from_raw(pid as i32)));
        let mut input = keeper.stdin.take().expect("it was piped");
        input.write_all(&serde_json::to_vec(spec)?).await?;
        drop(input);
        let mut output = BufReader::new(keeper.stdout.take().expect("it was piped")).lines();
        let line = output.next_line().await?.unwrap_or_else(|| "it ended at once".into());
        unheard.heard();
        let run = line.strip_prefix("ready ").and_then(|run| serde_json::from_str::<Run>(run).ok());
        let Some(run) = run else { return Err(io::Error::other(format!("the keeper: {line}"))) };
        match Self::connect(paths).await {
            Ok(kept) => Ok(Found::Running(kept)),
            // A program can be quicker than this: then its end is on disk, and its keeper gone.
            Err(_) if !paths.is_kept()? => Ok(Found::ended(paths, run)),
            Err(error) => Err(error),
        }
    }

    /// Finds the keeper that is at work. It may be just starting: waits for it a little.
    pub(crate) async fn connect(paths: &Paths) -> io::Result<Self> {
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        for _ in 0..200 {
            match Self::try_connect(paths).await {
                Ok(kept) => return Ok(kept),
                Err(error) if error.kind() == io::ErrorKind::TimedOut => return Err(error),
                Err(error) => last = error,
            }
            if !paths.is_kept()? {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Err(last)
    }

    async fn try_connect(paths: &Paths) -> io::Result<Self> {
        let (_folder, socket) = paths.socket()?;
        let (ears, mouth) = UnixStream::connect(socket).await?.into_split();
        let mut ears = Ears(BufReader::new(ears).lines());
        let first = tokio::time::timeout(FIRST_WORD, ears.0.next_line()).await??.unwrap_or_default();
        match serde_json::from_str(&first) {
            Ok(FromKeeper::Running(run)) => Ok(Self { run, ears, mouth }),
            _ => Err(io::Error::other("the keeper does not say what it keeps")),
        }
    }

    /// Stops the program and waits for its end, by force if its keeper does not see to it. Without `timeout` it is the one of
    /// the program's configuration.
    pub(crate) async fn stop(mut self, paths: &Paths, timeout: Option<Duration>) -> Exit {
        let timeout_ms = timeout.map(|timeout| u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX));
        say(&mut self.mouth, &ToKeeper::Stop { timeout_ms }).await;
        let limit = timeout.unwrap_or(Duration::from_millis(self.run.stop_timeout_ms)).saturating_add(STOP_GRACE);
        let run = self.run.clone();
        match tokio::time::timeout(limit, self.ears.exit(paths, &run)).await {
            Ok(exit) => exit,
            Err(_) => {
                keeper::force_end(paths).await;
                Exit { run: run.id, code: None, signal: None, at_ms: quilt_core::time::now_ms(), left: 0 }
            }
        }
    }
}
