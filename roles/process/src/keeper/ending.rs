//! The end of a run, asked for by a station: by its keeper, or without it if that does not answer. A run has ended when it was seen
//! to be gone: an error of looking is no such sight.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use nix::libc;
use quilt_core::disk;
use quilt_core::processes::{PidFd, ProcessStat};
use tokio::net::unix::OwnedWriteHalf;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::paths::Look;
use super::{Exit, FromKeeper, Paths, Run, ToKeeper, leftovers};
use crate::kept::{Ears, FIRST_WORD, Kept, say};
use crate::shortage::is_shortage;

/// How long a keeper may take to end once it has told the end of its program.
const LINGER_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a killed keeper may take to be gone.
const KILLED: Duration = Duration::from_secs(2);
/// How long to wait before an end that was forced in vain is forced again.
const FORCE_INTERVAL: Duration = Duration::from_secs(1);
/// How much longer than the stop time-out a keeper may take to say that its program ended.
const STOP_GRACE: Duration = Duration::from_secs(2);
/// How often to look whether a program has ended that this process has asked to stop.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// How often a connection that was lost while a keeper stops its program is made again.
const ASK_ATTEMPTS: usize = 3;

/// A connection to a keeper, to ask it to stop its program.
pub(crate) type Connection<'a> = (&'a mut Ears, &'a mut OwnedWriteHalf);

/// How a keeper took the order to stop its program.
enum Asked {
    Exited(Exit),
    /// The connection is lost, or there was none.
    Lost,
    /// It does not answer. `stopping`: it did at first, so that the program has been asked to stop and has had its time.
    Silent {
        stopping: bool,
    },
}

/// Ends a run: the program is asked to stop and has `stop_timeout` for it, then all of it is killed. Its keeper does both; if that
/// cannot be reached, this process does. Says how the run ended, as far as anybody saw it.
///
/// What cannot be killed may be there still: [`until_free`] waits for it.
pub(crate) async fn end(
    paths: &Paths,
    run: &Run,
    keeper: Option<&PidFd>,
    connection: Option<Connection<'_>>,
    stop_timeout: Duration,
) -> Exit {
    let mut asked = match connection {
        Some(connection) => ask(connection, stop_timeout).await,
        None => Asked::Lost,
    };
    let found = match keeper {
        Some(_) => None,
        None => paths.on_disk_of(run, Paths::keeper_of).await.ok().flatten(),
    };
    let keeper = keeper.or(found.as_ref());
    let on_record = async || paths.on_disk_of(run, Paths::exit_of).await.ok().flatten();
    for _ in 0..ASK_ATTEMPTS {
        // Without one that is alive, and is this run's, there is nobody to ask.
        let is_gone = keeper.is_none_or(PidFd::has_ended);
        if !matches!(asked, Asked::Lost) || is_gone || on_record().await.is_some() {
            break;
        }
        asked = match Kept::connect(paths).await {
            Ok(mut kept) if kept.run.id == run.id => ask((&mut kept.ears, &mut kept.mouth), stop_timeout).await,
            Err(error) if is_shortage(&error) => ask_by_signal(keeper, stop_timeout).await,
            _ => Asked::Silent { stopping: false },
        };
    }
    match asked {
        Asked::Exited(exit) => {
            until_gone(keeper).await;
            return exit;
        }
        Asked::Silent { stopping: false } => {
            if let Some(keeper) = keeper {
                stop_by_hand(keeper, run.keeper, Some(run), stop_timeout).await;
            }
        }
        Asked::Lost | Asked::Silent { stopping: true } => {}
    }
    match on_record().await {
        Some(exit) => {
            until_gone(keeper).await;
            exit
        }
        None => {
            force_end(paths, Some(run), keeper).await;
            on_record().await.unwrap_or_else(|| Exit::unseen(run))
        }
    }
}

/// Asks a keeper to stop its program and waits until that has ended. A keeper answers the order at once; one that does not is frozen.
async fn ask((ears, mouth): Connection<'_>, stop_timeout: Duration) -> Asked {
    let timeout_ms = u64::try_from(stop_timeout.as_millis()).unwrap_or(u64::MAX);
    say(mouth, &ToKeeper::Stop { timeout_ms: Some(timeout_ms) }).await;
    let mut until = Instant::now() + FIRST_WORD;
    let mut stopping = false;
    loop {
        match timeout_at(until, ears.next()).await {
            Ok(Some(FromKeeper::Exited(exit))) => return Asked::Exited(exit),
            Ok(Some(FromKeeper::Stopping)) => {
                stopping = true;
                until = Instant::now() + stop_timeout.saturating_add(STOP_GRACE);
            }
            Ok(Some(FromKeeper::Running(_) | FromKeeper::Signalled)) => {}
            Ok(None) => return Asked::Lost,
            Err(_) => return Asked::Silent { stopping },
        }
    }
}

/// Asks a keeper to stop its program when there is no descriptor left for a connection.
async fn ask_by_signal(keeper: Option<&PidFd>, stop_timeout: Duration) -> Asked {
    let Some(keeper) = keeper.filter(|keeper| keeper.send(libc::SIGTERM).is_ok()) else { return Asked::Lost };
    match timeout(stop_timeout.saturating_add(STOP_GRACE), keeper.ended()).await {
        Ok(_) => Asked::Lost,
        Err(_) => Asked::Silent { stopping: true },
    }
}

/// Asks a program to stop in the place of its keeper, and waits until it has ended, for `stop_timeout` at most. Without a run it is
/// whatever the keeper has below it.
async fn stop_by_hand(keeper: &PidFd, pid: u32, run: Option<&Run>, stop_timeout: Duration) {
    let until = Instant::now() + stop_timeout;
    let program = async || {
        let all = below(keeper, pid).await?.into_iter();
        io::Result::Ok(all.filter(|seen| run.is_none_or(|run| seen.group == run.pid)).collect::<Vec<_>>())
    };
    let signal = run.map_or(libc::SIGTERM, |run| run.stop_signal);
    let mut is_asked = false;
    loop {
        // What cannot be looked at now is looked at again.
        if let Ok(left) = program().await {
            if left.is_empty() {
                return;
            }
            if !is_asked {
                // What is stopped does not see the signal before it is continued.
                is_asked = leftovers::signal_all(&left, signal).is_ok();
                let _ = leftovers::signal_all(&left, libc::SIGCONT);
            }
        }
        if Instant::now() >= until {
            return;
        }
        sleep(LOOK_INTERVAL).await;
    }
}

/// Waits until a keeper that has told the end of its program is gone, and kills it if it stays. While it is there, the next start
/// would take it for the keeper of its own run.
pub(crate) async fn until_gone(keeper: Option<&PidFd>) {
    if let Some(keeper) = keeper
        && timeout(LINGER_TIMEOUT, keeper.ended()).await.is_err()
    {
        keeper.kill();
        let _ = timeout(KILLED, keeper.ended()).await;
    }
}

/// Kills a keeper that does not answer, and its program with it. Pass the run and the keeper if the station knows them: the record on
/// disk may have been removed.
pub(crate) async fn force_end(paths: &Paths, run: Option<&Run>, keeper: Option<&PidFd>) {
    let recorded = paths.on_disk(Paths::read_run).await.ok().flatten();
    let run = run.or(recorded.as_ref());
    match (keeper, run) {
        (Some(keeper), Some(run)) => kill(keeper, run.keeper).await,
        _ => {
            let run = run.cloned();
            if let Some(seen) = paths.on_disk(move |paths| recorded_or_seen(paths, run.as_ref())).await
                && let Ok(Some(keeper)) = PidFd::proven(seen.pid, seen.started_ticks)
            {
                kill(&keeper, seen.pid).await;
            }
        }
    }
    if let Some(run) = run {
        // What could not be looked at is still to be seen, and this is done again.
        let _ = paths.on_disk_of(run, |_, run| leftovers::kill(run)).await;
    }
}

fn recorded_or_seen(paths: &Paths, run: Option<&Run>) -> Option<ProcessStat> {
    let recorded = run.filter(|run| paths.keeper_of(run).ok().flatten().is_some());
    let recorded = recorded.and_then(|run| ProcessStat::read(run.keeper).ok().flatten());
    recorded.or_else(|| paths.find_keeper().ok().flatten())
}

/// What is below a keeper; nothing if that has ended, because its number may be another's by now.
async fn below(keeper: &PidFd, pid: u32) -> io::Result<Vec<ProcessStat>> {
    let seen = disk::run(move || leftovers::descendants(pid)).await?;
    // After the look: then the number was the keeper's while it was looked at.
    Ok(if keeper.has_ended() { Vec::new() } else { seen })
}

/// Kills a keeper, and what is below it: nobody could say later whose that was.
async fn kill(keeper: &PidFd, pid: u32) {
    let below = below(keeper, pid).await.unwrap_or_default();
    keeper.kill();
    let _ = timeout(KILLED, keeper.ended()).await;
    let _ = leftovers::kill_all(&below);
}

/// Waits until nothing is at work after an end, which is forced again until then. Passes on what is at work.
pub(crate) async fn until_free(
    paths: &Paths,
    run: Option<&Run>,
    keeper: Option<&PidFd>,
    look: Look,
    mut tell: impl FnMut(String),
) {
    let survivor = async || {
        let run = run.cloned();
        paths.on_disk(move |paths| paths.survivor(run.as_ref(), look)).await
    };
    while let Some(survivor) = survivor().await {
        tell(survivor);
        sleep(FORCE_INTERVAL).await;
        force_end(paths, run, keeper).await;
    }
}

/// Ends a keeper of which nothing but its process is known, with its program: the keeper is asked to, then all is killed.
async fn end_unrecorded(seen: &ProcessStat, stop_timeout: Duration) -> io::Result<()> {
    let Some(keeper) = PidFd::proven(seen.pid, seen.started_ticks)? else { return Ok(()) };
    let is_frozen = ProcessStat::read(seen.pid)?.is_some_and(|now| now.is_frozen);
    if is_frozen {
        stop_by_hand(&keeper, seen.pid, None, stop_timeout).await;
    } else {
        keeper.send(libc::SIGTERM)?;
        let _ = timeout(stop_timeout.saturating_add(STOP_GRACE), keeper.ended()).await;
    }
    if !keeper.has_ended() {
        kill(&keeper, seen.pid).await;
    }
    Ok(())
}

/// Ends what an earlier station left of an instance, within the time that its keeper knows if no other is given. Answers
/// whether a program ran and was ended.
///
/// # Errors
///
/// This process cannot look now: nobody knows what runs.
pub(crate) async fn end_left_over(paths: &Paths, stop_timeout: Option<Duration>) -> io::Result<bool> {
    let recorded = paths.on_disk(Paths::read_run).await?;
    let time = |run: Option<&Run>| stop_timeout.or(run.map(Run::stop_timeout)).unwrap_or(UNKNOWN_STOP_TIMEOUT);
    let mut ran = true;
    let keeper = match &recorded {
        Some(run) => paths.on_disk_of(run, Paths::keeper_of).await?,
        None => None,
    };
    if let Some((run, keeper)) = recorded.as_ref().zip(keeper) {
        end(paths, run, Some(&keeper), None, time(Some(run))).await;
    } else if paths.on_disk(Paths::is_kept).await? {
        // Its record was removed, or damaged.
        match Kept::connect(paths).await {
            Ok(Kept { run, keeper, mut ears, mut mouth }) => {
                end(paths, &run, keeper.as_ref(), Some((&mut ears, &mut mouth)), time(Some(&run))).await;
            }
            Err(_) => {
                if let Some(seen) = paths.on_disk(Paths::find_keeper).await? {
                    end_unrecorded(&seen, time(None)).await?;
                }
            }
        }
    } else if let Some(seen) = paths.on_disk(Paths::forgotten_keeper).await? {
        end_unrecorded(&seen, time(None)).await?;
    } else {
        ran = false;
        if let Some(run) = &recorded {
            paths.on_disk_of(run, |_, run| leftovers::kill(run)).await?;
        }
    }
    let is_gone = paths.on_disk(|paths| {
        let is_gone = paths.survivor(None, Look::Everything).is_none();
        if is_gone {
            let _ = paths.forget();
        }
        is_gone
    });
    Ok(is_gone.await && ran)
}

/// How long a program may take to stop of which nobody knows how long it may.
const UNKNOWN_STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// Ends what an earlier station left of an instance, and does not return before it is seen to be gone. Passes on what is not.
pub(crate) async fn end_all_left_over(paths: &Paths, stop_timeout: Duration, mut tell: impl FnMut(String)) {
    let mut time = stop_timeout;
    loop {
        let survivor = match end_left_over(paths, Some(time)).await {
            Ok(_) => {
                // It has had its time.
                time = Duration::ZERO;
                let look = |paths: &Paths| {
                    let survivor = || paths.survivor(None, Look::Everything);
                    let is_left = left_over(paths)?;
                    io::Result::Ok(is_left.then(|| survivor().unwrap_or_else(|| "its keeper does not end".to_owned())))
                };
                match paths.on_disk(look).await {
                    Ok(None) => return,
                    Ok(Some(survivor)) => survivor,
                    Err(error) => format!("what runs of it cannot be looked at: {error}"),
                }
            }
            Err(error) => format!("what runs of it cannot be looked at: {error}"),
        };
        tell(survivor);
        sleep(FORCE_INTERVAL).await;
    }
}

/// Whether an earlier station left something of an instance that is still at work.
///
/// # Errors
///
/// This process cannot look now: nobody knows what runs.
pub(crate) fn left_over(paths: &Paths) -> io::Result<bool> {
    if paths.is_kept()? || paths.forgotten_keeper()?.is_some() {
        return Ok(true);
    }
    let recorded = paths.read_run()?;
    Ok(recorded.map(|run| leftovers::of(&run)).transpose()?.is_some_and(|left| !left.is_empty()))
}

/// What [`stop_all`] did.
#[derive(Debug, Default)]
pub struct Stopped {
    /// How many programs it stopped.
    pub count: usize,
    /// What is still at work, for people.
    pub survivors: Vec<String>,
}

/// Stops the programs of all keepers below a station's folder of instances, as far as they still run, each within its own
/// stop time-out and all at once; also those whose folders are gone.
pub async fn stop_all(instances: &Path) -> Stopped {
    let folder = instances.to_owned();
    let looking = disk::run(move || {
        let folders = |path: &Path| fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
        let all: Vec<_> = folders(&folder).flat_map(|role| folders(&role).collect::<Vec<_>>()).collect();
        (all, super::instances_with_keepers(&folder))
    });
    let (mut all, kept) = looking.await;
    let mut stopped = Stopped::default();
    match kept {
        Ok(kept) => all.extend(kept.iter().map(|[role, instance]| instances.join(role).join(instance))),
        Err(error) => stopped.survivors.push(format!("what runs here cannot be looked at: {error}")),
    }
    all.sort();
    all.dedup();
    let mut stopping = tokio::task::JoinSet::new();
    for instance in all {
        stopping.spawn(async move {
            let paths = Paths::new(&instance.join("state"));
            let ended = end_left_over(&paths, None).await;
            let look = |error: io::Error| format!("{}: what runs cannot be looked at: {error}", instance.display());
            let survivor = paths.on_disk(|paths| paths.survivor(None, Look::Everything)).await;
            (ended.as_ref().is_ok_and(|ended| *ended), ended.err().map(look).or(survivor))
        });
    }
    for (ended, survivor) in stopping.join_all().await {
        stopped.count += usize::from(ended);
        stopped.survivors.extend(survivor);
    }
    stopped
}
