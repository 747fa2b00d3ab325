//! `quilt-station`: runs a station until it is told to stop.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Args, Parser, Subcommand};
use quilt_core::files::PidFile;
use quilt_core::{args, clean_start, init, log, runtime, signals};
use quilt_station::{Station, StationArgs, StationConfig, stop};
use tokio::runtime::Builder;
use tokio::sync::mpsc;

/// Hosts role instances on this machine.
#[derive(Parser)]
#[command(name = "quilt-station", version)]
#[command(args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(flatten)]
    station: StationArgs,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Subcommand)]
enum Verb {
    /// Stop the station of a data folder, and wait until it has stopped
    Stop(Stop),
}

#[derive(Args)]
struct Stop {
    #[command(flatten)]
    station: StationArgs,
    /// Stop its role instances too, also those that outlived a station that is gone
    #[arg(long)]
    roles: bool,
}

/// How long disk work that is under way may take when everything else has ended.
const EXIT_GRACE: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    quilt_role_process::keeper::become_keeper_if_asked();
    quilt_station::become_plugin_host_if_asked();
    clean_start::seal_inherited();
    clean_start::create_privately();
    init::become_init_if_pid_1();
    match run(args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody may be there to read it; the exit code says it too.
            let _ = writeln!(std::io::stderr(), "quilt-station: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    // Two at least: a thread that is held up for a moment must not hold up all others on a small machine.
    let threads = std::thread::available_parallelism().map_or(2, usize::from).max(2);
    let runtime = runtime::build_for_daemon(Builder::new_multi_thread().worker_threads(threads))?;
    runtime::run(runtime, EXIT_GRACE, async {
        match cli {
            Cli { verb: Some(Verb::Stop(stop)), .. } => stop_other(stop).await,
            Cli { station, verb: None } => serve(station.clone().resolve()?, station).await,
        }
    })
}

async fn stop_other(stop: Stop) -> anyhow::Result<()> {
    let config = stop.station.resolve()?;
    let done = stop::stop(&config, stop.roles).await?;
    let _ = writeln!(std::io::stdout(), "{done}");
    Ok(())
}

async fn serve(config: StationConfig, args: StationArgs) -> anyhow::Result<()> {
    log::init(config.log_file.as_deref(), &config.log_level).context("the log")?;
    // One that waits to be taken reads all that is there by then.
    let (reload, mut reloads) = mpsc::channel(1);
    let mut stop = std::pin::pin!(signals::stop(move || {
        let _ = reload.try_send(());
    })?);
    let _pid = config.pid_file.as_deref().map(PidFile::take).transpose()?;
    let station = Station::start(config).await?;
    // Whoever started it may have stopped listening.
    let _ = writeln!(std::io::stdout(), "station started");
    let how = loop {
        tokio::select! {
            how = &mut stop => break how,
            why = station.failed() => {
                tracing::error!(why, "the supervisor of the instances is gone; the station ends and leaves the programs running");
                station.stop(signals::Stop::Detach).await;
                bail!("the supervisor of the instances is gone: {why}");
            }
            Some(()) = reloads.recv() => match args.clone().resolve() {
                Ok(config) => {
                    log::reload_level(&config.log_level);
                    station.reload(&config);
                }
                Err(error) => tracing::error!("the configuration stays as it was: {error:#}"),
            },
        }
    };
    tracing::info!(?how, "stopping");
    for late in station.stop(how).await {
        tracing::error!(instance = late, "did not stop in time");
    }
    Ok(())
}
