//! Shell completion, also of names that only the running manager knows.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use clap_complete::engine::{ArgValueCompleter, CompletionCandidate};
use clap_complete::env::Shells;
use quilt_client::Client;

use crate::exit::Failure;

/// A completion that takes longer than this is worse than none.
const PATIENCE: Duration = Duration::from_millis(500);

/// Arguments of `completions`.
#[derive(Args)]
pub(crate) struct Completions {
    /// bash, elvish, fish, powershell or zsh
    shell: String,
}

impl Completions {
    pub(crate) fn run(self, command: &mut clap::Command) -> Result<ExitCode, Failure> {
        let shells = Shells::builtins();
        let Some(shell) = shells.completer(&self.shell) else {
            let known: Vec<_> = shells.names().collect();
            return Err(Failure::with_code(2, format!("{:?} is not one of {}", self.shell, known.join(", "))));
        };
        let name = command.get_name().to_owned();
        shell.write_registration("COMPLETE", &name, &name, &name, &mut std::io::stdout())?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Completes station names.
pub(crate) fn stations() -> ArgValueCompleter {
    candidates(async |client| {
        let stations = client.stations("").await.unwrap_or_default();
        stations.into_iter().map(|station| station.name.to_string()).collect()
    })
}

/// Completes `station/role/instance`.
pub(crate) fn instances() -> ArgValueCompleter {
    candidates(async |client| {
        let stations = client.stations("").await.unwrap_or_default();
        let instances = stations.into_iter().flat_map(|station| {
            let name = station.name;
            station.instances.into_iter().map(move |one| format!("{name}/{}/{}", one.role, one.instance))
        });
        instances.collect()
    })
}

/// Completes command names; of the station named earlier on the line if there is one.
pub(crate) fn commands() -> ArgValueCompleter {
    candidates(async |client| {
        let words: Vec<String> = std::env::args().collect();
        let stations = client.stations("state=connected").await.unwrap_or_default();
        let named: Vec<_> = stations
            .iter()
            .filter(|station| words.iter().any(|word| word.split('/').next() == Some(station.name.as_str())))
            .collect();
        let asked = if named.is_empty() { stations.iter().take(3).collect() } else { named };
        let mut names = Vec::new();
        for station in asked {
            let commands = client.commands(&station.name).await.unwrap_or_default();
            let callable = commands.into_iter().filter(|command| command.instance.is_some());
            names.extend(callable.map(|command| command.command));
        }
        names.sort();
        names.dedup();
        names
    })
}

/// Which manager the line that is being completed means.
fn manager() -> String {
    let words: Vec<String> = std::env::args().collect();
    let joined = words.iter().find_map(|word| word.strip_prefix("--manager="));
    let apart = words.iter().position(|word| word == "--manager").and_then(|at| words.get(at + 1));
    let said = joined.or(apart.map(String::as_str)).map(str::to_owned);
    let said = said.or_else(|| std::env::var("QUILT_MANAGER").ok());
    // A wrong configuration file is said when the command runs, not while its words are typed.
    crate::Session::new(said, None, None).map(|session| session.manager).unwrap_or_default()
}

fn candidates(names: impl AsyncFn(Client) -> Vec<String> + Send + Sync + 'static) -> ArgValueCompleter {
    ArgValueCompleter::new(move |current: &std::ffi::OsStr| {
        let current = current.to_string_lossy().into_owned();
        let manager = manager();
        let ask = async {
            let client = Client::connect_within(&manager, "quiltctl-completion", PATIENCE).await.ok()?;
            Some(names(client).await)
        };
        // Completion runs before the program's own runtime exists.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let Ok(runtime) = runtime else { return Vec::new() };
        let found = runtime.block_on(async { tokio::time::timeout(PATIENCE, ask).await.ok().flatten() });
        let found = found.unwrap_or_default().into_iter().filter(|name| name.starts_with(&current));
        found.map(CompletionCandidate::new).collect()
    })
}
