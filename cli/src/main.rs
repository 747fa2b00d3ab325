//! `quiltctl`: the operator's command. One file per verb; this one holds what they share.

/// Replaces the standard library's macro in every module below. That one panics when nobody reads standard error, and the exit code
/// would be lost.
macro_rules! eprintln {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($text)*);
    }};
}

/// As `eprintln!`, without the line break.
macro_rules! eprint {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _ = write!(std::io::stderr(), $($text)*);
    }};
}

mod adopt;
mod apply;
mod call;
mod clients;
mod complete;
mod control;
mod events;
mod exit;
mod fleetfile;
mod folders;
mod history;
mod json;
mod logs;
mod offers;
mod output;
mod plugin;
mod reference;
mod stations;
mod up;

use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory as _, Parser, Subcommand, ValueEnum as _};
use quilt_client::Client;
use quilt_core::{address, args, runtime, settings};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use exit::Failure;
use output::Format;

/// Operates a quilt fleet.
#[derive(Parser)]
#[command(name = "quiltctl", version, max_term_width = 110)]
struct Cli {
    /// Where the manager listens; 127.0.0.1:7440 unless a configuration file says otherwise
    #[arg(long, global = true, env = "QUILT_MANAGER", value_name = "HOST:PORT", value_parser = manager_address)]
    manager: Option<String>,
    /// How to print results
    #[arg(short, long, global = true, env = "QUILT_OUTPUT", value_enum)]
    output: Option<Format>,
    /// How long to wait for an answer, in seconds (or as 500ms, 2m); 15 s unless a configuration file says otherwise
    #[arg(long, global = true, env = "QUILT_TIMEOUT", value_name = "S", value_parser = timeout)]
    timeout: Option<Duration>,
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
    /// Look at plugins: roles that third parties wrote
    #[command(subcommand)]
    Plugin(plugin::Plugin),
    /// Show what happened in the fleet
    Events(events::Events),
    /// Print a script that completes words in a shell
    Completions(complete::Completions),
}

impl Verb {
    /// Whether the verb does nothing but show something.
    fn only_shows(&self) -> bool {
        match self {
            Self::Stations(_)
            | Self::Station(stations::Station::Show(_))
            | Self::Roles(_)
            | Self::Commands(_)
            | Self::Clients
            | Self::Diff(_)
            | Self::History(_)
            | Self::Logs(_)
            | Self::Events(_)
            | Self::Plugin(plugin::Plugin::Inspect(_) | plugin::Plugin::Check(_) | plugin::Plugin::List(_))
            | Self::Completions(_) => true,
            Self::Up(_)
            | Self::Station(_)
            | Self::Adopt(_)
            | Self::Apply(_)
            | Self::Rollback(_)
            | Self::Start(_)
            | Self::Stop(_)
            | Self::Restart(_)
            | Self::Call(_)
            | Self::Plugin(_) => false,
        }
    }
}

/// What verbs need besides their own arguments.
pub(crate) struct Session {
    manager: String,
    timeout: Duration,
    pub(crate) format: Format,
}

/// `[client]` of a configuration file.
#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct Section {
    #[serde(deserialize_with = "read_address")]
    manager: Option<String>,
    #[serde(deserialize_with = "read_timeout")]
    timeout: Option<Duration>,
    #[serde(deserialize_with = "read_format")]
    output: Option<Format>,
}

/// A line of TOML for each key of [`Section`].
const EXAMPLES: [&str; 3] = ["manager = \"coordinator:7440\"", "timeout = \"15s\"", "output = \"json\""];

fn read_address<'de, D: Deserializer<'de>>(value: D) -> Result<Option<String>, D::Error> {
    manager_address(&String::deserialize(value)?).map(Some).map_err(D::Error::custom)
}

fn read_timeout<'de, D: Deserializer<'de>>(value: D) -> Result<Option<Duration>, D::Error> {
    timeout(&String::deserialize(value)?).map(Some).map_err(D::Error::custom)
}

fn read_format<'de, D: Deserializer<'de>>(value: D) -> Result<Option<Format>, D::Error> {
    let name = String::deserialize(value)?;
    let wrong = |_| D::Error::custom(format!("{name:?} is no way to print; expected table, wide, json, jsonl or yaml"));
    Format::from_str(&name, true).map(Some).map_err(wrong)
}

impl Session {
    /// What flags and environment say, over what the files say.
    fn new(manager: Option<String>, timeout: Option<Duration>, format: Option<Format>) -> Result<Self, Failure> {
        let file: Section =
            settings::read(None, "client", &EXAMPLES).map_err(|error| Failure::new(error.to_string()))?;
        Ok(Self {
            manager: manager.or(file.manager).unwrap_or_else(|| "127.0.0.1:7440".into()),
            timeout: timeout.or(file.timeout).unwrap_or(Duration::from_secs(15)),
            format: format.or(file.output).unwrap_or(Format::Table),
        })
    }

    /// How long a stream may be silent; one that is followed may be so for ever.
    pub(crate) fn patience(&self, follow: bool) -> Option<Duration> {
        (!follow).then_some(self.timeout)
    }

    /// Connects to the manager.
    pub(crate) async fn connect(&self) -> Result<Client, Failure> {
        Ok(Client::connect_within(&self.manager, "quiltctl", self.timeout).await?)
    }
}

fn manager_address(text: &str) -> Result<String, String> {
    address::complete(text, address::PROTOCOL_PORT)
}

/// The longest time that is accepted. A much longer one would overflow clocks.
const TIME_MAX: Duration = Duration::from_secs(365 * 24 * 60 * 60);

fn seconds(text: &str) -> Result<Duration, String> {
    let duration = match text.parse::<f64>() {
        Ok(seconds) => Duration::try_from_secs_f64(seconds).ok(),
        Err(_) => humantime::parse_duration(text).ok(),
    };
    let in_reach = duration.filter(|duration| *duration <= TIME_MAX);
    in_reach.ok_or_else(|| format!("expected a time such as 15 (seconds), 500ms or 2m, at most a year, got {text:?}"))
}

/// A time-out: a time that is not zero.
fn timeout(text: &str) -> Result<Duration, String> {
    match seconds(text)? {
        Duration::ZERO => {
            Err(format!("expected a time such as 15 (seconds), 500ms or 2m, got {text:?}, in which nobody can answer"))
        }
        some => Ok(some),
    }
}

fn main() -> ExitCode {
    quilt_role_process::keeper::become_keeper_if_asked();
    quilt_station::become_plugin_host_if_asked();
    clap_complete::CompleteEnv::with_factory(Cli::command).shells(complete::SHELLS).complete();
    let Cli { manager, output, timeout, verb } = args::parse();
    let only_shows = verb.only_shows();
    let ran = Session::new(manager, timeout, output).and_then(|session| {
        let runtime = runtime::build(tokio::runtime::Builder::new_multi_thread().worker_threads(2), 1)?;
        runtime::run(runtime, Duration::ZERO, run(session, verb))
    });
    let code = ran.unwrap_or_else(|failure| {
        eprintln!("quiltctl: {failure}");
        failure.code()
    });
    // What a verb did in the fleet is done, whether or not its output was written; one that only shows something did not do it.
    if only_shows && code == ExitCode::SUCCESS && output::is_incomplete() { ExitCode::FAILURE } else { code }
}

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
        Verb::Logs(logs) => output::while_read(logs.run(&session)).await,
        Verb::Plugin(plugin) => plugin.run(&session).await,
        Verb::Events(events) => output::while_read(events.run(&session)).await,
        Verb::Completions(completions) => completions.run(&mut Cli::command()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_that_no_clock_holds_is_refused() {
        for text in ["18446744073709551615s", "1e19", "1e300", "inf", "nan", "-1", "", "366d"] {
            assert!(seconds(text).is_err(), "{text:?}");
        }
        assert_eq!(seconds("1.5"), Ok(Duration::from_millis(1500)));
        assert_eq!(seconds("365d"), Ok(TIME_MAX));
    }
}
