//! The station's side of a keeper: start one, find one again, talk to it.

use std::io;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use quilt_core::clean_start;
use quilt_core::processes::PidFd;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::Command;
use tokio::sync::Mutex;

use crate::keeper::{self, Exit, FromKeeper, KEEPER, KEEPER_NAME, Paths, Run, Spec, ToKeeper};

/// How long a keeper may take to say what it keeps. One that is frozen never does.
const FIRST_WORD: Duration = Duration::from_secs(2);
/// How often to try to connect to a keeper, and how long to wait between two attempts.
const CONNECT_ATTEMPTS: u32 = 200;
const CONNECT_INTERVAL: Duration = Duration::from_millis(10);
/// After so many attempts the keeper's files are missing rather than not made yet; it is asked to make them again.
const RESTORE_AFTER_ATTEMPTS: u32 = 20;
/// How long to wait for the end of a keeper that cannot be reached before the next attempt.
const RECONNECT_INTERVAL: Duration = Duration::from_secs(1);
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
        let exit = paths.exit_of(&run).unwrap_or_else(|| Exit::unseen(&run));
        Self::Ended(run, exit)
    }
}

/// The half that hears of the end.
pub(crate) struct Ears(Lines<BufReader<OwnedReadHalf>>);

/// The connection to the keeper for writing; `None` once the program is known to have ended.
pub(crate) type SharedWriter = Arc<Mutex<Option<OwnedWriteHalf>>>;

impl Ears {
    /// Waits for the end of the run. If the connection is lost while the keeper lives, connects again and replaces `mouth`. If the
    /// keeper is gone, it has left the exit on disk, or it was killed and nobody saw the exit.
    pub(crate) async fn exit(mut self, paths: &Paths, run: &Run, mouth: &SharedWriter) -> Exit {
        loop {
            while let Ok(Some(line)) = self.0.next_line().await {
                if let Ok(FromKeeper::Exited(exit)) = serde_json::from_str(&line) {
                    return exit;
                }
            }
            let Some(process) = paths.keeper_of(run) else {
                return paths.exit_of(run).unwrap_or_else(|| Exit::unseen(run));
            };
            match Kept::connect(paths).await {
                Ok(kept) if kept.run.id == run.id => {
                    self = kept.ears;
                    *mouth.lock().await = Some(kept.mouth);
                }
                _ => drop(tokio::time::timeout(RECONNECT_INTERVAL, process.ended()).await),
            }
        }
    }
}

/// Kills a keeper, and its program with it, if its start is dropped before the keeper has reported that it is at work: a start that
/// was given up leaves nothing running.
struct StartGuard(Option<PidFd>);

impl StartGuard {
    fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for StartGuard {
    fn drop(&mut self) {
        if let Some(keeper) = &self.0 {
            keeper.kill();
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
        let mut keeper = Command::from(clean_start::command(KEEPER_NAME, KEEPER))
            .arg(paths.folder())
            .arg(log)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let guard = StartGuard(keeper.id().and_then(|pid| PidFd::open(pid).ok()));
        let mut input = keeper.stdin.take().expect("it was piped");
        input.write_all(&serde_json::to_vec(spec)?).await?;
        drop(input);
        let mut output = BufReader::new(keeper.stdout.take().expect("it was piped")).lines();
        let line = output.next_line().await?.unwrap_or_else(|| "it ended at once".into());
        guard.disarm();
        let run = line.strip_prefix("ready ").and_then(|run| serde_json::from_str::<Run>(run).ok());
        let Some(run) = run else { return Err(io::Error::other(format!("the keeper: {line}"))) };
        match Self::connect(paths).await {
            Ok(kept) => Ok(Found::Running(kept)),
            // A program can be quicker than this: then its end is on disk, or its keeper is gone.
            Err(_) if paths.exit_of(&run).is_some() || !paths.is_kept()? => Ok(Found::ended(paths, run)),
            Err(error) => Err(error),
        }
    }

    /// Connects to the keeper that is at work. Tries for about 2 s, because the keeper may be just starting. If a cleaner of old
    /// files removed its socket, asks it to make another.
    pub(crate) async fn connect(paths: &Paths) -> io::Result<Self> {
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        for tried in 0..CONNECT_ATTEMPTS {
            match Self::try_connect(paths).await {
                Ok(kept) => return Ok(kept),
                Err(error) if error.kind() == io::ErrorKind::TimedOut => return Err(error),
                Err(error) => last = error,
            }
            if !paths.is_kept()? {
                break;
            }
            if tried == RESTORE_AFTER_ATTEMPTS {
                paths.ask_for_files();
            }
            tokio::time::sleep(CONNECT_INTERVAL).await;
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

    /// Stops the program and waits until it and its keeper are gone. Kills both if the keeper does not stop the program in time.
    /// Without `timeout`, the stop time-out of the program's configuration applies.
    pub(crate) async fn stop(self, paths: &Paths, timeout: Option<Duration>) -> Exit {
        let Self { run, ears, mut mouth } = self;
        let timeout_ms = timeout.map(|timeout| u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX));
        say(&mut mouth, &ToKeeper::Stop { timeout_ms }).await;
        let limit = timeout.unwrap_or(Duration::from_millis(run.stop_timeout_ms)).saturating_add(STOP_GRACE);
        let mouth = Arc::new(Mutex::new(Some(mouth)));
        match tokio::time::timeout(limit, ears.exit(paths, &run, &mouth)).await {
            Ok(exit) => {
                keeper::until_gone(paths, &run).await;
                exit
            }
            Err(_) => {
                keeper::force_end(paths, Some(&run)).await;
                Exit::unseen(&run)
            }
        }
    }
}
