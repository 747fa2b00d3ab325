//! `quiltctl`: the operator's command. One file per verb; this one holds what they share.

mod adopt;
mod apply;
mod call;
mod clients;
mod complete;
mod control;
mod events;
mod exit;
mod fleetfile;
mod history;
mod logs;
mod offers;
mod output;
mod reference;
mod stations;
mod up;

use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory as _, Parser, Subcommand};
use quilt_client::Client;

use exit::Failure;
use output::Format;

/// Operates a quilt fleet.
#[derive(Parser)]
#[command(name = "quiltctl", version, max_term_width = 110)]
struct Cli {
    /// Where the manager listens
    #[arg(long, global = true, env = "QUILT_MANAGER", value_name = "HOST:PORT", default_value = "127.0.0.1:7440")]
    manager: String,
    /// How to print results
    #[arg(short, long, global = true, env = "QUILT_OUTPUT", value_enum, default_value_t = Format::Table)]
    output: Format,
    /// How long to wait for an answer, in seconds (or as 500ms, 2m)
    #[arg(long, global = true, env = "QUILT_TIMEOUT", value_name = "S", default_value = "15", value_parser = seconds)]
    timeout: Duration,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Run a manager and one station here, apply a fleet file, and follow
    Up(up::Up),
    /// List stations
    Stations(stations::Stations),
    /// Look at one station, or decide about it
    #[command(subcommand)]
    Station(stations::Station),
    /// Take over a station that runs another manager's configuration
    Adopt(adopt::Adopt),
    /// List the roles that a station can run
    Roles(offers::Roles),
    /// List the commands that a station's instances offer
    Commands(offers::Commands),
    /// List connected tools
    Clients,
    /// Make a fleet file desired, and push it
    Apply(apply::Apply),
    /// Show what applying a fleet file would change
    Diff(apply::Diff),
    /// Go back to an earlier configuration of a station
    Rollback(history::Rollback),
    /// List the configurations a station had
    History(history::History),
    /// Start an instance that is stopped, failed or completed
    Start(control::Target),
    /// Stop an instance until it is started again
    Stop(control::Target),
    /// Stop and start an instance
    Restart(control::Target),
    /// Call a command of role instances, or of the manager
    Call(call::Call),
    /// Show the log of an instance
    Logs(logs::Logs),
    /// Show what happened in the fleet
    Events(events::Events),
    /// Print a script that completes words in a shell
    Completions(complete::Completions),
}

/// What verbs need besides their own arguments.
pub(crate) struct Session {
    manager: String,
    timeout: Duration,
    pub(crate) format: Format,
}

impl Session {
    /// Connects to the manager.
    pub(crate) async fn connect(&self) -> Result<Client, Failure> {
        Ok(Client::connect_within(&self.manager, "quiltctl", self.timeout).await?)
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds) => Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string()),
        Err(_) => humantime::parse_duration(text).map_err(|error| error.to_string()),
    }
}

fn main() -> ExitCode {
    quilt_role_process::keeper::become_keeper_if_asked();
    clap_complete::CompleteEnv::with_factory(Cli::command).complete();
    let Cli { manager, output, timeout, verb } = Cli::parse();
    let session = Session { manager, timeout, format: output };
    match run(session, verb) {
        Ok(code) => code,
        Err(failure) => {
            eprintln!("quiltctl: {failure}");
            failure.code()
        }
    }
}

#[tokio::main(worker_threads = 2)]
async fn run(session: Session, verb: Verb) -> Result<ExitCode, Failure> {
    match verb {
        Verb::Up(up) => up.run().await,
        Verb::Stations(stations) => stations.run(&session).await,
        Verb::Station(station) => station.run(&session).await,
        Verb::Adopt(adopt) => adopt.run(&session).await,
        Verb::Roles(roles) => roles.run(&session).await,
        Verb::Commands(commands) => commands.run(&session).await,
        Verb::Clients => clients::run(&session).await,
        Verb::Apply(apply) => apply.run(&session).await,
        Verb::Diff(diff) => diff.run(&session).await,
        Verb::Rollback(rollback) => rollback.run(&session).await,
        Verb::History(history) => history.run(&session).await,
        Verb::Start(target) => target.run(&session, quilt_client::control::Action::Start).await,
        Verb::Stop(target) => target.run(&session, quilt_client::control::Action::Stop).await,
        Verb::Restart(target) => target.run(&session, quilt_client::control::Action::Restart).await,
        Verb::Call(call) => call.run(&session).await,
        Verb::Logs(logs) => logs.run(&session).await,
        Verb::Events(events) => events.run(&session).await,
        Verb::Completions(completions) => completions.run(&mut Cli::command()),
    }
}
