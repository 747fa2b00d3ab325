//! `quilt-manager`: runs a manager until it is told to stop.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use quilt_core::files::PidFile;
use quilt_core::{args, clean_start, log, runtime, signals};
use quilt_manager::{Manager, ManagerArgs, backup};
use tokio::runtime::Builder;

/// Knows the stations of a fleet and drives them.
#[derive(Parser)]
#[command(name = "quilt-manager", version)]
#[command(args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(flatten)]
    manager: ManagerArgs,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Subcommand)]
enum Verb {
    /// Copy what the manager of a data folder remembers to one file, also while it runs
    ///
    /// The copy is the fleet's state at one moment: stations, fleet entries, configurations, events. Plugin files that were
    /// pushed are not in it; copy the folder manager/files beside it, or push them again.
    Backup(Backup),
    /// Make what a stopped manager remembers from a backup; what was there before is kept as fleet.db.replaced
    ///
    /// SOURCE may also be the database of the data folder itself: the manager then goes on with what is left of it.
    Restore(Restore),
}

#[derive(Args)]
struct Backup {
    /// File to write; it must not exist
    #[arg(value_name = "TARGET")]
    target: PathBuf,
    #[command(flatten)]
    manager: ManagerArgs,
}

#[derive(Args)]
struct Restore {
    /// File that `backup` wrote
    #[arg(value_name = "SOURCE")]
    source: PathBuf,
    #[command(flatten)]
    manager: ManagerArgs,
}

fn main() -> ExitCode {
    clean_start::create_privately();
    let done = match args::parse() {
        Cli { verb: Some(Verb::Backup(Backup { target, manager })), .. } => {
            manager.resolve().and_then(|config| backup::back_up(&config, &target)).map(|done| show(&done))
        }
        Cli { verb: Some(Verb::Restore(Restore { source, manager })), .. } => {
            manager.resolve().and_then(|config| backup::restore(&config, &source)).map(|done| show(&done))
        }
        Cli { manager, verb: None } => run(manager),
    };
    match done {
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

fn run(manager: ManagerArgs) -> anyhow::Result<()> {
    // One thread: callers and connections then never pay for waking another core (measured in benches/NOTEBOOK.md).
    let runtime = runtime::build_for_daemon(&mut Builder::new_current_thread())?;
    runtime::run(runtime, EXIT_GRACE, serve(manager))
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

/// Says what a verb did. Nobody may be there to read it.
fn show(done: &backup::Done) {
    for note in &done.notes {
        let _ = writeln!(std::io::stderr(), "note: {note}");
    }
    let _ = writeln!(std::io::stdout(), "{}", done.text);
}
