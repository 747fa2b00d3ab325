//! Pressure: real daemons run short of something at random times under random verbs, and must be well again by themselves.
//!
//! Each round has a manager and a few stations of its own. A seed decides what happens in it ([`schedule`]): descriptors, tasks,
//! space, time of the disk or a processor are taken away for a time, processes are killed, and an operator applies, stops and
//! starts meanwhile. Then everything is given back, nobody helps, and within a minute every desired program must run exactly
//! once, nothing else may run, every acknowledged apply must be in the history, and every station must be connected ([`verdict`]).
//!
//! ```sh
//! tests/pressure/run --rounds 1000             # prints the seed of each round that fails, and keeps its folder
//! tests/pressure/run --seed 4711               # that round again
//! ```
//!
//! What decides takes values and returns values: `fleet`, `schedule`, `draw`, `expected`, `verdict`, `meanwhile`. What acts decides
//! nothing: `abilities`, `site`, `take`, `operator`, `round`. Read [`schedule::Schedule`], [`expected::Expected`] and [`verdict::judge`] first.

mod abilities;
mod draw;
mod expected;
mod fleet;
mod meanwhile;
mod operator;
mod processes;
mod program;
mod round;
mod schedule;
mod site;
mod take;
mod verdict;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use clap::{Args, Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

use abilities::Abilities;
use schedule::{Resource, Schedule};

#[derive(Parser)]
#[command(name = "quilt-pressure", about = "Takes resources away from real daemons and looks whether they recover")]
struct Cli {
    #[command(subcommand)]
    part: Option<Part>,
    #[command(flatten)]
    rounds: Rounds,
}

#[derive(Args)]
struct Rounds {
    /// How many rounds; one with --seed, 20 otherwise
    #[arg(long)]
    rounds: Option<u64>,
    /// The seed of the first round; each further one has the next number
    #[arg(long)]
    seed: Option<u64>,
    /// How many rounds at once
    #[arg(long, default_value_t = 4)]
    at_once: usize,
    /// Take only these
    #[arg(long, value_delimiter = ',')]
    only: Vec<Resource>,
    /// Take nothing; only kill
    #[arg(long, conflicts_with = "only")]
    kills_only: bool,
    /// Where rounds that fail are kept
    #[arg(long, value_name = "DIR", default_value_os_t = std::env::temp_dir())]
    keep: PathBuf,
    /// Only print what would be done
    #[arg(long)]
    dry_run: bool,
}

/// What the driver has stations run.
#[derive(Subcommand)]
enum Part {
    /// A program of a station
    #[command(hide = true)]
    Program { journals: PathBuf, mark: fleet::Mark, kind: String },
    /// What such a program starts
    #[command(hide = true)]
    Child { mark: fleet::Mark, parent: u32, journals: PathBuf },
}

fn main() -> anyhow::Result<ExitCode> {
    let Cli { part, rounds } = Cli::parse();
    match part {
        Some(Part::Program { journals, mark, kind }) => program::run(&journals, &mark, &kind),
        Some(Part::Child { .. }) => program::run_child(),
        None => drive(rounds),
    }
}

fn drive(rounds: Rounds) -> anyhow::Result<ExitCode> {
    let folder = tempfile::Builder::new().prefix("quilt-pressure-").tempdir_in(&rounds.keep)?;
    let abilities = Abilities::find(folder.path())?;
    let (can, cannot) = abilities.resources();
    let is_taken = |one: &Resource| !rounds.kills_only && (rounds.only.is_empty() || rounds.only.contains(one));
    let resources: Vec<_> = can.into_iter().filter(is_taken).collect();
    cannot.iter().for_each(|why| println!("not taken: {why}"));
    let count = rounds.rounds.unwrap_or(if rounds.seed.is_some() { 1 } else { 20 });
    let has_plugin = !abilities.plugins.is_empty();
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    let first = rounds.seed.unwrap_or(now.as_millis() as u64 % 1_000_000_000);
    let schedules: Vec<_> = (first..first + count).map(|seed| draw::draw(seed, &resources, has_plugin)).collect();
    if rounds.dry_run {
        schedules.iter().for_each(|schedule| println!("seed {}\n{schedule}", schedule.seed));
        return Ok(ExitCode::SUCCESS);
    }
    println!("{count} rounds from seed {first}, {} at once: {resources:?}", rounds.at_once);
    let runtime = tokio::runtime::Runtime::new()?;
    let failed = runtime.block_on(async {
        let mut terminated = signal(SignalKind::terminate())?;
        anyhow::Ok(tokio::select! {
            failed = run_all(schedules, Arc::new(abilities), folder.path(), rounds.at_once) => Some(failed),
            _ = tokio::signal::ctrl_c() => None,
            _ = terminated.recv() => None,
        })
    })?;
    // What still runs ends with its site.
    runtime.shutdown_timeout(Duration::from_secs(10));
    let Some(failed) = failed else {
        println!("interrupted; kept: {}", folder.keep().display());
        return Ok(ExitCode::FAILURE);
    };
    println!("{count} rounds, {} failed {failed:?}", failed.len());
    if failed.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    println!("kept: {}", folder.keep().display());
    Ok(ExitCode::FAILURE)
}

/// Runs all rounds, some at once. Answers the seeds of those that failed.
async fn run_all(schedules: Vec<Schedule>, abilities: Arc<Abilities>, folder: &Path, at_once: usize) -> Vec<u64> {
    let (mut running, mut failed) = (JoinSet::new(), Vec::new());
    let mut waiting = schedules.into_iter();
    loop {
        while running.len() < at_once.max(1)
            && let Some(schedule) = waiting.next()
        {
            let (abilities, folder) = (abilities.clone(), folder.join(format!("seed-{}", schedule.seed)));
            running.spawn(async move {
                let done = round::run(&schedule, &abilities, &folder).await;
                (schedule, folder, done)
            });
        }
        match running.join_next().await {
            None => return failed,
            Some(Err(error)) => println!("a round broke off: {error}"),
            Some(Ok((schedule, folder, done))) => {
                let (is_well, text) = describe(&schedule, &folder, &done);
                println!("{text}");
                if !is_well {
                    let _ = std::fs::write(folder.join("report"), text);
                    failed.push(schedule.seed);
                }
            }
        }
    }
}

/// Whether a round was well, and what to print of it.
fn describe(schedule: &Schedule, folder: &Path, done: &anyhow::Result<round::Report>) -> (bool, String) {
    let seed = schedule.seed;
    match done {
        Ok(report) if report.wrong.is_empty() => {
            (true, format!("seed {seed}: well again in {:.1} s", report.recovered_in.as_secs_f64()))
        }
        Ok(report) => {
            let (timeline, wrong) = (report.timeline.join("\n  "), report.wrong.join("\n  "));
            let place = folder.display();
            (false, format!("seed {seed}: FAILED, see {place}\n{schedule}done:\n  {timeline}\nwrong:\n  {wrong}"))
        }
        Err(error) => (false, format!("seed {seed}: could not be carried out: {error:#}, see {}", folder.display())),
    }
}
