//! What an instance begins with: the program that an earlier station of this machine left, or a new one.

use std::io;
use std::time::Duration;

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
    spec: impl Fn() -> Result<Spec, RoleError>,
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
    let spec = spec()?;
    paths.forget()?;
    match Kept::start(paths, cx.log_dir(), &spec).await {
        Ok(found) => Ok(found),
        // The keeper of a station that was killed this very moment may have been quicker: then that one is looked at.
        Err(_) if paths.is_kept()? => match find(paths, digest, cx).await? {
            Found::Nothing => Ok(Kept::start(paths, cx.log_dir(), &spec).await?),
            found => Ok(found),
        },
        Err(error) => Err(error.into()),
    }
}

/// Looks for what an earlier station of this machine left: a program that runs, or one that has ended meanwhile.
async fn find(paths: &Paths, digest: &str, cx: &RoleContext) -> Result<Found, StartError> {
    if paths.is_kept()? {
        match Kept::connect(paths).await {
            Ok(kept) if kept.run.digest == digest && paths.exit_of(&kept.run)?.is_none() => {
                return Ok(Found::Running(Box::new(kept)));
            }
            Ok(Kept { run, keeper, mut ears, mut mouth }) => {
                let connection = Some((&mut ears, &mut mouth));
                ending::end(paths, &run, keeper.as_ref(), connection, cx.stop_timeout()).await;
            }
            // It ended between the look and the connection: its exit is on disk by now.
            Err(_) if !paths.is_kept()? => {}
            Err(error) => {
                let recorded = paths.read_run()?;
                let keeper = recorded.as_ref().map(|run| paths.keeper_of(run)).transpose()?.flatten();
                match recorded.zip(keeper) {
                    Some((run, keeper)) if paths.exit_of(&run)?.is_some() => ending::until_gone(Some(&keeper)).await,
                    // Its program runs as well without it: that is no reason to end it.
                    Some((run, keeper)) if run.digest == digest => {
                        return Ok(Found::Unreachable(run, keeper, error.to_string()));
                    }
                    Some((run, keeper)) => {
                        ending::end(paths, &run, Some(&keeper), None, cx.stop_timeout()).await;
                    }
                    None => {
                        let survivor = paths.survivor(None, Look::Keeper).map(|text| format!("; {text}"));
                        let survivor = survivor.unwrap_or_default();
                        let text = format!("unreachable: its keeper does not answer: {error}{survivor}");
                        return Err(StartError::NotNow(text));
                    }
                }
            }
        }
        if let Some(survivor) = paths.survivor(None, Look::Keeper) {
            return Err(RoleError::failed(format!("its last run does not end: {survivor}")).into());
        }
    }
    let Some(run) = paths.read_run()? else {
        // Somebody removed the whole folder, so the keeper cannot be reached any more.
        if cx.resuming() && paths.forgotten_keeper()?.is_some() {
            ending::end_left_over(paths, Some(cx.stop_timeout())).await?;
        }
        return Ok(Found::Nothing);
    };
    let exit = paths.exit_of(&run)?;
    if exit.is_none() {
        leftovers::kill(&run)?;
        for look in 1.. {
            let Some(left) = leftovers::of(&run)?.first().copied() else { break };
            if look == KILLED_LOOKS {
                let text = format!("process {} of its last run does not end; end it and try again", left.pid);
                return Err(RoleError::failed(text).into());
            }
            tokio::time::sleep(KILLED_LOOK_INTERVAL).await;
        }
    }
    // An end that nobody saw counts once, now. One before that, or together with the machine or container, does not count.
    if !cx.resuming() || run.digest != digest || !run.is_here()? {
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
