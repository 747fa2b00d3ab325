//! What an instance begins with: the program that an earlier station of this machine left, or a new one.

use std::io;
use std::time::Duration;

use quilt_core::disk;
use quilt_plugin_api::{LogLevel, RoleContext, RoleError};

use crate::keeper::{Exit, Look, Paths, Spec, ending, leftovers};
use crate::kept::{Found, Kept};
use crate::shortage::is_shortage;

/// How often, and how long apart, to look whether what was killed of the last run has ended.
const KILLED_LOOKS: usize = 20;
const KILLED_LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// Why an instance does not begin.
pub(crate) enum StartError {
    /// Nothing is wrong with it: the machine is short of something, or it cannot be seen now what runs. To be tried again, however
    /// often.
    NotNow(String),
    /// As the role's own.
    Role(RoleError),
}

impl From<io::Error> for StartError {
    fn from(error: io::Error) -> Self {
        if is_shortage(&error) { Self::NotNow(error.to_string()) } else { Self::Role(error.into()) }
    }
}

impl From<RoleError> for StartError {
    fn from(error: RoleError) -> Self {
        Self::Role(error)
    }
}

/// Finds the program that is configured, or begins it.
pub(crate) async fn find_or_begin(
    paths: &Paths,
    digest: &str,
    spec: impl FnOnce() -> Result<Spec, RoleError> + Send + 'static,
    cx: &RoleContext,
) -> Result<Found, StartError> {
    match find(paths, digest, cx).await? {
        Found::Nothing => {}
        found => {
            let run = match &found {
                Found::Running(kept) => &kept.run,
                Found::Unreachable(run, ..) | Found::Ended(run, _) => run,
                Found::Nothing => unreachable!("see above"),
            };
            cx.found_again(run.started_ms);
            return Ok(found);
        }
    }
    // It looks up users and groups, which can take as long as a disk.
    let spec = disk::run(spec).await?;
    paths.on_disk(Paths::forget).await?;
    let error = match Kept::start(paths, cx.log_dir(), &spec).await {
        Ok(found) => return Ok(found),
        Err(error) => error,
    };
    if !paths.on_disk(Paths::is_kept).await? {
        return Err(error.into());
    }
    // The keeper of a station that was killed this very moment may have been quicker: then that one is looked at.
    match find(paths, digest, cx).await? {
        Found::Nothing => Ok(Kept::start(paths, cx.log_dir(), &spec).await?),
        found => Ok(found),
    }
}

/// Looks at the run of a keeper that cannot be reached, and ends it if it is of another configuration. `None` if it is to end.
async fn find_unreachable(
    paths: &Paths,
    digest: &str,
    error: &io::Error,
    cx: &RoleContext,
) -> Result<Option<Found>, StartError> {
    if !paths.on_disk(Paths::is_kept).await? {
        // It ended between the look and the connection: its exit is on disk by now.
        return Ok(None);
    }
    let recorded = paths.on_disk(|paths| {
        let Some(run) = paths.read_run()? else { return Ok(None) };
        let (keeper, exit) = (paths.keeper_of(&run)?, paths.exit_of(&run)?);
        io::Result::Ok(keeper.map(|keeper| (run, keeper, exit)))
    });
    match recorded.await? {
        Some((_, keeper, Some(_))) => ending::until_gone(Some(&keeper)).await,
        // Its program runs as well without it: that is no reason to end it.
        Some((run, keeper, None)) if run.digest == digest => {
            return Ok(Some(Found::Unreachable(run, keeper, error.to_string())));
        }
        Some((run, keeper, None)) => drop(ending::end(paths, &run, Some(&keeper), None, cx.stop_timeout()).await),
        None => {
            let survivor = paths.on_disk(|paths| paths.survivor(None, Look::Keeper)).await;
            let survivor = survivor.map(|text| format!("; {text}")).unwrap_or_default();
            let text = format!("unreachable: its keeper does not answer: {error}{survivor}");
            return Err(StartError::NotNow(text));
        }
    }
    Ok(None)
}

/// Looks for what an earlier station of this machine left: a program that runs, or one that has ended meanwhile.
async fn find(paths: &Paths, digest: &str, cx: &RoleContext) -> Result<Found, StartError> {
    if paths.on_disk(Paths::is_kept).await? {
        match Kept::connect(paths).await {
            Ok(kept) => {
                if kept.run.digest == digest && paths.on_disk_of(&kept.run, Paths::exit_of).await?.is_none() {
                    return Ok(Found::Running(Box::new(kept)));
                }
                let Kept { run, keeper, mut ears, mut mouth } = kept;
                let connection = Some((&mut ears, &mut mouth));
                ending::end(paths, &run, keeper.as_ref(), connection, cx.stop_timeout()).await;
            }
            Err(error) => {
                if let Some(found) = find_unreachable(paths, digest, &error, cx).await? {
                    return Ok(found);
                }
            }
        }
        if let Some(survivor) = paths.on_disk(|paths| paths.survivor(None, Look::Keeper)).await {
            return Err(RoleError::failed(format!("its last run does not end: {survivor}")).into());
        }
    }
    let Some(run) = paths.on_disk(Paths::read_run).await? else {
        // Somebody removed the whole folder, so the keeper cannot be reached any more.
        if cx.resuming() && paths.on_disk(Paths::forgotten_keeper).await?.is_some() {
            ending::end_left_over(paths, Some(cx.stop_timeout())).await?;
        }
        return Ok(Found::Nothing);
    };
    let exit = paths.on_disk_of(&run, Paths::exit_of).await?;
    if exit.is_none() {
        paths.on_disk_of(&run, |_, run| leftovers::kill(run)).await?;
        for look in 1.. {
            let left = paths.on_disk_of(&run, |_, run| leftovers::of(run)).await?;
            let Some(left) = left.first().copied() else { break };
            if look == KILLED_LOOKS {
                let text = format!("process {} of its last run does not end; end it and try again", left.pid);
                return Err(RoleError::failed(text).into());
            }
            tokio::time::sleep(KILLED_LOOK_INTERVAL).await;
        }
    }
    // An end that nobody saw counts once, now. One before that, or together with the machine or container, does not count.
    if !cx.resuming() || run.digest != digest || !paths.on_disk_of(&run, |_, run| run.is_here()).await? {
        return Ok(Found::Nothing);
    }
    match exit {
        // It did not end by itself: somebody else asked for that, and its configuration has it run.
        Some(exit @ Exit { stopped_by: Some(_), .. }) => {
            let text = format!("its last run ended while no station was there: {exit}; it begins again");
            cx.log(LogLevel::Info, text);
            Ok(Found::Nothing)
        }
        Some(exit) => Ok(Found::Ended(run, exit)),
        None => Ok(Found::Ended(run.clone(), Exit::unseen(&run))),
    }
}
