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
/// How often a keeper is tried that does not let anybody connect, and how long between two tries.
const TRIES: u32 = 200;
const PAUSE: Duration = Duration::from_millis(10);
/// After so many tries its files are missing rather than not made yet.
const ASK_AFTER: u32 = 20;
/// How long to wait for the end of a keeper that cannot be reached, before it is tried again.
const UNREACHABLE: Duration = Duration::from_secs(1);
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

/// Where to speak to the keeper; `None` once the program is known to have ended.
pub(crate) type Mouth = Arc<Mutex<Option<OwnedWriteHalf>>>;

impl Ears {
    /// Waits for the end of the run. A keeper that goes without saying how has left it on disk, or was killed; one that is
    /// there is connected to again, whatever became of the connection, and `mouth` with it.
    pub(crate) async fn exit(mut self, paths: &Paths, run: &Run, mouth: &Mouth) -> Exit {
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
                _ => drop(tokio::time::timeout(UNREACHABLE, process.ended()).await),
            }
        }
    }
}

/// A keeper that has not said yet that it is at work. Killed, and its program with it, if nobody waits for that any more: a
/// start that was given up leaves nothing running.
struct Unheard(Option<PidFd>);

impl Unheard {
    fn heard(mut self) {
        self.0 = None;
    }
}

impl Drop for Unheard {
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
        let unheard = Unheard(keeper.id().and_then(|pid| PidFd::open(pid).ok()));
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
            // A program can be quicker than this: then its end is on disk, or its keeper is gone.
            Err(_) if paths.exit_of(&run).is_some() || !paths.is_kept()? => Ok(Found::ended(paths, run)),
            Err(error) => Err(error),
        }
    }

    /// Finds the keeper that is at work. It may be just starting: waits for it a little. It may have lost its socket to
    /// somebody who removes old files: asks it for another.
    pub(crate) async fn connect(paths: &Paths) -> io::Result<Self> {
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        for tried in 0..TRIES {
            match Self::try_connect(paths).await {
                Ok(kept) => return Ok(kept),
                Err(error) if error.kind() == io::ErrorKind::TimedOut => return Err(error),
                Err(error) => last = error,
            }
            if !paths.is_kept()? {
                break;
            }
            if tried == ASK_AFTER {
                paths.ask_for_files();
            }
            tokio::time::sleep(PAUSE).await;
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

    /// Stops the program and waits for its end and its keeper's, by force if its keeper does not see to it. Without `timeout` it
    /// is the one of the program's configuration.
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
