//! `quilt-station`: runs a station until it is told to stop.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser;
use quilt_core::files::PidFile;
use quilt_core::{log, signals};
use quilt_station::{Station, StationArgs};

/// Hosts role instances on this machine.
#[derive(Parser)]
#[command(name = "quilt-station", version)]
struct Cli {
    #[command(flatten)]
    station: StationArgs,
}

fn main() -> ExitCode {
    quilt_role_process::keeper::become_keeper_if_asked();
    let cli = Cli::parse();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("quilt-station: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn run(cli: Cli) -> anyhow::Result<()> {
    let config = cli.station.resolve()?;
    log::init(config.log_file.as_deref(), &config.log_level).context("the log")?;
    let stop = signals::stop()?;
    let _pid = config.pid_file.as_deref().map(PidFile::take).transpose()?;
    let station = Station::start(config).await?;
    println!("station started");
    let how = stop.await;
    tracing::info!(?how, "stopping");
    for late in station.stop(how).await {
        tracing::error!(instance = late, "did not stop in time");
    }
    Ok(())
}
