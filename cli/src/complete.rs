//! Shell completion, also of names that only the running manager knows.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, CommandFactory as _};
use clap_complete::engine::{ArgValueCompleter, CompletionCandidate};
use clap_complete::env::{Elvish, EnvCompleter, Fish, Powershell, Shells, Zsh};
use quilt_client::Client;
use quilt_client::control::{InstanceRef, command};
use quilt_protocol::Address;

use crate::exit::Failure;
use crate::output;

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
        let Some(shell) = SHELLS.completer(&self.shell) else {
            let known: Vec<_> = SHELLS.names().collect();
            return Err(Failure::with_code(2, format!("{:?} is not one of {}", self.shell, known.join(", "))));
        };
        let name = command.get_name().to_owned();
        let mut script = Vec::new();
        shell.write_registration("COMPLETE", &name, &name, &name, &mut script)?;
        output::text(&String::from_utf8_lossy(&script));
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

/// Completes the names of the commands that the target named earlier on the line offers.
pub(crate) fn commands() -> ArgValueCompleter {
    candidates(async |client| {
        let target = typed().and_then(|typed| {
            let (_, call) = typed.subcommand()?;
            call.try_get_one::<String>("target").ok().flatten().cloned()
        });
        let Some(target) = target else { return Vec::new() };
        match target.parse() {
            Ok(Address::Manager) => command::OF_MANAGER.map(str::to_owned).to_vec(),
            Ok(Address::Client(_)) => Vec::new(),
            _ => offered(&client, &target).await,
        }
    })
}

/// The commands of the instances that a target means. Of many stations the first few are asked: there is little time.
async fn offered(client: &Client, target: &str) -> Vec<String> {
    const STATIONS_MAX: usize = 3;
    let meant = client.resolve(target, None).await.unwrap_or_default();
    let stations: BTreeSet<_> = meant.iter().map(|one| &one.station).collect();
    let mut names = BTreeSet::new();
    for station in stations.into_iter().take(STATIONS_MAX) {
        for offer in client.commands(station).await.unwrap_or_default() {
            let is_meant = |one: &InstanceRef| {
                one.station == *station && one.role == offer.role && Some(&one.instance) == offer.instance.as_ref()
            };
            if meant.iter().any(is_meant) {
                names.insert(offer.command);
            }
        }
    }
    names.into_iter().collect()
}

/// What is understood of the line so far.
fn typed() -> Option<clap::ArgMatches> {
    crate::Cli::command().ignore_errors(true).try_get_matches_from(words()).ok()
}

/// Which manager the line that is being completed means.
fn manager() -> String {
    let said = typed().and_then(|typed| typed.try_get_one::<String>("manager").ok().flatten().cloned());
    // A wrong configuration file is said when the command runs, not while its words are typed.
    crate::Session::new(said, None, None).map(|session| session.manager).unwrap_or_default()
}

/// The words of the line that is being completed, up to the one under way.
fn words() -> Vec<String> {
    match std::env::var(LINE) {
        Ok(line) => split(&line),
        Err(_) => std::env::args().skip_while(|word| word != "--").skip(1).collect(),
    }
}

/// The shells that words can be completed in.
pub(crate) const SHELLS: Shells<'static> = Shells(&[&Bash, &Elvish, &Fish, &Powershell, &Zsh]);

/// The line up to the cursor, as bash has it.
const LINE: &str = "QUILT_COMPLETE_LINE";

/// bash takes words apart at `:` and `=` before anybody completes them, so that `--manager host:7440` is three words, and `:`
/// looks like a verb. So the line is given as it is and taken apart here.
struct Bash;

impl EnvCompleter for Bash {
    fn name(&self) -> &'static str {
        clap_complete::env::Bash.name()
    }

    fn is(&self, name: &str) -> bool {
        clap_complete::env::Bash.is(name)
    }

    fn write_registration(
        &self,
        var: &str,
        name: &str,
        bin: &str,
        completer: &str,
        buf: &mut dyn io::Write,
    ) -> io::Result<()> {
        let mut script = Vec::new();
        clap_complete::env::Bash.write_registration(var, name, bin, completer, &mut script)?;
        let script = String::from_utf8_lossy(&script);
        let line = format!("{LINE}=\"${{COMP_LINE:0:COMP_POINT}}\" \\\n        {var}=\"bash\"");
        buf.write_all(script.replace(&format!("{var}=\"bash\""), &line).as_bytes())
    }

    fn write_complete(
        &self,
        command: &mut clap::Command,
        words: Vec<OsString>,
        folder: Option<&Path>,
        buf: &mut dyn io::Write,
    ) -> io::Result<()> {
        let Ok(line) = std::env::var(LINE) else {
            return clap_complete::env::Bash.write_complete(command, words, folder, buf);
        };
        let whole = split(&line);
        let index = whole.len().saturating_sub(1);
        // bash replaces what it takes for the word under way, which may be the end of the word only.
        let number = std::env::var("_CLAP_COMPLETE_INDEX").ok().and_then(|number| number.parse::<usize>().ok());
        let end = number.and_then(|number| words.get(number)).map(|word| word.to_string_lossy().into_owned());
        let start = whole.last().and_then(|word| word.strip_suffix(end.as_deref()?)).unwrap_or_default().to_owned();
        let whole = whole.into_iter().map(OsString::from).collect();
        let found = clap_complete::engine::complete(command, whole, index, folder)?;
        let found: Vec<_> = found.iter().map(|candidate| candidate.get_value().to_string_lossy()).collect();
        let found = found.iter().map(|value| value.strip_prefix(&start).unwrap_or(value)).collect::<Vec<_>>();
        let between = std::env::var("_CLAP_IFS").unwrap_or_else(|_| "\n".into());
        buf.write_all(found.join(&between).as_bytes())
    }
}

/// Takes a line apart as a shell does, without expanding anything. The last word is the one under way: empty behind a space.
fn split(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    let mut signs = line.chars();
    while let Some(c) = signs.next() {
        match (c, quote) {
            (c, Some(open)) if c == open => quote = None,
            ('\\', None | Some('"')) => word.get_or_insert_default().extend(signs.next()),
            (c, Some(_)) => word.get_or_insert_default().push(c),
            ('"' | '\'', None) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (c, None) if c.is_whitespace() => words.extend(word.take()),
            (c, None) => word.get_or_insert_default().push(c),
        }
    }
    words.push(word.unwrap_or_default());
    words
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_taken_apart_as_a_shell_does() {
        for (line, words) in [
            ("quiltctl --manager host:7440 sta", &["quiltctl", "--manager", "host:7440", "sta"][..]),
            ("quiltctl call ", &["quiltctl", "call", ""]),
            ("quiltctl call 'room=a and role=x'  st", &["quiltctl", "call", "room=a and role=x", "st"]),
            (r#"quiltctl call "a \"b\" c" d\ e"#, &["quiltctl", "call", "a \"b\" c", "d e"]),
            ("quiltctl call \"room=a a", &["quiltctl", "call", "room=a a"]),
            ("quiltctl call ''", &["quiltctl", "call", ""]),
        ] {
            assert_eq!(split(line), words, "{line}");
        }
    }
}
