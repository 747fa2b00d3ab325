//! The station's side of a keeper: start one, find one again, talk to it.

use std::io;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use quilt_core::clean_start;
use quilt_core::processes::PidFd;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::Command;

use crate::keeper::{Exit, FromKeeper, KEEPER, KEEPER_NAME, Paths, Run, Spec, ToKeeper};

/// How long a keeper may take to say what it keeps, or that it does what it is asked. One that is frozen never does.
pub(crate) const FIRST_WORD: Duration = Duration::from_secs(1);
/// How often to try to connect to a keeper, and how long to wait between two attempts.
const CONNECT_ATTEMPTS: u32 = 200;
const CONNECT_INTERVAL: Duration = Duration::from_millis(10);
/// After so many attempts the keeper's files are missing rather than not made yet; it is asked to make them again.
const RESTORE_AFTER_ATTEMPTS: u32 = 20;
/// How long a write to a keeper may take: one that is frozen does not read.
const WRITE_TIMEOUT: Duration = Duration::from_secs(1);

/// A connection to the keeper of a run.
pub(crate) struct Kept {
    pub(crate) run: Run,
    /// Its process, if it is proven to be this instance's keeper. Held open, so that it can be killed and watched when the station
    /// has no descriptors left.
    pub(crate) keeper: Option<PidFd>,
    pub(crate) ears: Ears,
    pub(crate) mouth: OwnedWriteHalf,
}

/// What there is of an instance's program.
pub(crate) enum Found {
    /// It runs.
    Running(Box<Kept>),
    /// It runs as far as can be seen, and its keeper cannot be reached: frozen, or out of this station's reach for want of something.
    Unreachable(Run, PidFd, String),
    /// It has ended, and nobody was told yet.
    Ended(Run, Exit),
    /// Nothing.
    Nothing,
}

/// The half of a connection that hears the keeper.
pub(crate) struct Ears(Lines<BufReader<OwnedReadHalf>>);

impl Ears {
    /// The next thing that the keeper says; `None` once the connection is lost.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe: nothing is lost.
    pub(crate) async fn next(&mut self) -> Option<FromKeeper> {
        while let Ok(Some(line)) = self.0.next_line().await {
            if let Ok(message) = serde_json::from_str(&line) {
                return Some(message);
            }
        }
        None
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
    let _ = tokio::time::timeout(WRITE_TIMEOUT, mouth.write_all(&line)).await;
}

impl Kept {
    /// Starts a keeper with its program.
    pub(crate) async fn start(paths: &Paths, log: &Path, spec: &Spec) -> io::Result<Found> {
        paths.on_disk(|paths| quilt_core::files::create_private_dir(paths.folder())).await?;
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
        let run = run.ok_or_else(|| refusal(&line))?;
        match Self::connect(paths).await {
            Ok(kept) => Ok(Found::Running(Box::new(kept))),
            Err(error) => match paths.on_disk_of(&run, Paths::keeper_of).await? {
                Some(keeper) => Ok(Found::Unreachable(run, keeper, error.to_string())),
                // A program can be quicker than this: then its end is on disk, or its keeper is gone.
                None => {
                    let exit = paths.on_disk_of(&run, Paths::exit_of).await?.unwrap_or_else(|| Exit::unseen(&run));
                    Ok(Found::Ended(run, exit))
                }
            },
        }
    }

    /// Connects to the keeper that is at work. Tries for about 2 s, because the keeper may be just starting. If a cleaner of old
    /// files removed its socket, asks it to make another.
    ///
    /// # Errors
    ///
    /// It cannot be reached, which does not mean that it is gone.
    pub(crate) async fn connect(paths: &Paths) -> io::Result<Self> {
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        for tried in 0..CONNECT_ATTEMPTS {
            match Self::try_connect(paths).await {
                Ok(kept) => return Ok(kept),
                Err(error) if error.kind() == io::ErrorKind::TimedOut => return Err(error),
                Err(error) => last = error,
            }
            if !paths.on_disk(Paths::is_kept).await? {
                break;
            }
            if tried == RESTORE_AFTER_ATTEMPTS {
                paths.on_disk(Paths::ask_for_files).await?;
            }
            tokio::time::sleep(CONNECT_INTERVAL).await;
        }
        Err(last)
    }

    async fn try_connect(paths: &Paths) -> io::Result<Self> {
        let (ears, mouth) = UnixStream::from_std(paths.on_disk(Paths::connect).await?)?.into_split();
        let mut ears = Ears(BufReader::new(ears).lines());
        let silent = |_| io::Error::new(io::ErrorKind::TimedOut, format!("it said nothing for {FIRST_WORD:?}"));
        match tokio::time::timeout(FIRST_WORD, ears.next()).await.map_err(silent)? {
            Some(FromKeeper::Running(run)) => {
                let keeper = paths.on_disk_of(&run, Paths::keeper_of).await.ok().flatten();
                Ok(Self { run, keeper, ears, mouth })
            }
            _ => Err(io::Error::other("the keeper does not say what it keeps")),
        }
    }
}

/// Why a keeper did not begin, as it said: `error NUMBER TEXT`, with the number of the operating system's error or 0.
fn refusal(line: &str) -> io::Error {
    let parsed = line.strip_prefix("error ").and_then(|line| line.split_once(' '));
    let Some((number, text)) = parsed else { return io::Error::other(format!("the keeper: {line}")) };
    let kind = match number.parse() {
        Ok(0) | Err(_) => io::ErrorKind::Other,
        Ok(number) => io::Error::from_raw_os_error(number).kind(),
    };
    io::Error::new(
        kind,
        crate::shortage::Described { number: number.parse().unwrap_or_default(), text: format!("the keeper: {text}") },
    )
}
