//! `quilt-manager`: runs a manager until it is told to stop.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;
use quilt_core::files::PidFile;
use quilt_core::{args, clean_start, log, runtime, signals};
use quilt_manager::{Manager, ManagerArgs};
use tokio::runtime::Builder;

/// Knows the stations of a fleet and drives them.
#[derive(Parser)]
#[command(name = "quilt-manager", version)]
struct Cli {
    #[command(flatten)]
    manager: ManagerArgs,
}

fn main() -> ExitCode {
    clean_start::create_privately();
    match run(args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody may be there to read it; the exit code says it too.
            let _ = writeln!(std::io::stderr(), "quilt-manager: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// How long disk work that is under way may take when everything else has ended.
const EXIT_GRACE: Duration = Duration::from_secs(1);

fn run(cli: Cli) -> anyhow::Result<()> {
    // One thread: callers and connections then never pay for waking another core (measured in docs/performance.md).
    let runtime = runtime::build(&mut Builder::new_current_thread())?;
    runtime::run(runtime, EXIT_GRACE, serve(cli.manager))
}

async fn serve(args: ManagerArgs) -> anyhow::Result<()> {
    let config = args.clone().resolve()?;
    log::init(config.log_file.as_deref(), &config.log_level).context("the log")?;
    let reload = move || match args.clone().resolve() {
        Ok(config) => log::reload_level(&config.log_level),
        Err(error) => tracing::error!("the configuration stays as it was: {error:#}"),
    };
    let stop = signals::stop(reload)?;
    let _pid = config.pid_file.as_deref().map(PidFile::take).transpose()?;
    let manager = Manager::start(&config).await?;
    // Whoever started it may have stopped listening.
    let mut out = std::io::stdout();
    let _ = writeln!(out, "listening protocol {}", manager.protocol_addr());
    let _ = writeln!(out, "listening http {}", manager.http_addr());
    let how = stop.await;
    tracing::info!(?how, "stopping");
    manager.stop().await;
    Ok(())
}
