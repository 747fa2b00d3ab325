//! Command lines. An environment variable that is set but empty counts as not set: `${NAME:-}` in a compose file and
//! `EnvironmentFile=` leave such variables behind.

use std::ffi::OsStr;
use std::io::{self, Write as _};

use clap::{Command, Parser};

/// Reads the command line and the environment of this process; ends it with a message if they are wrong.
pub fn parse<T: Parser>() -> T {
    let command = ignore_empty(T::command(), &|name| std::env::var_os(name).is_some_and(|value| value.is_empty()));
    let matches = command.try_get_matches().unwrap_or_else(|error| exit(&error));
    T::from_arg_matches(&matches).unwrap_or_else(|error| exit(&error))
}

/// Ends the process with what clap has to say. As clap does, except that help which cannot be written is an error, unless its reader
/// left.
fn exit(message: &clap::Error) -> ! {
    let written = message.print().and_then(|()| io::stdout().flush());
    let is_lost = written.is_err_and(|error| error.kind() != io::ErrorKind::BrokenPipe);
    std::process::exit(if is_lost && message.exit_code() == 0 { 1 } else { message.exit_code() })
}

/// Removes the variables for which `is_empty` holds from a command and its subcommands.
fn ignore_empty(command: Command, is_empty: &impl Fn(&OsStr) -> bool) -> Command {
    let command = command.mut_args(|argument| match argument.get_env() {
        Some(name) if is_empty(name) => argument.env(None::<&'static str>),
        _ => argument,
    });
    command.mut_subcommands(|verb| ignore_empty(verb, is_empty))
}

#[cfg(test)]
mod tests {
    use clap::Arg;

    use super::*;

    #[test]
    fn an_environment_variable_that_is_set_and_empty_is_not_read() {
        let argument = |id: &'static str, name: &'static str| Arg::new(id).long(id).env(name);
        let command = Command::new("quilt-station")
            .arg(argument("name", "QUILT_NAME"))
            .arg(argument("label", "QUILT_LABEL"))
            .subcommand(Command::new("stop").arg(argument("log-file", "QUILT_LOG_FILE")));
        let command = ignore_empty(command, &|name| name != "QUILT_LABEL");
        let read = |command: &Command| -> Vec<String> {
            command.get_arguments().filter_map(|one| Some(one.get_env()?.to_str()?.to_owned())).collect()
        };
        assert_eq!(read(&command), ["QUILT_LABEL"]);
        assert_eq!(read(command.find_subcommand("stop").unwrap()), Vec::<String>::new());
    }
}
