//! What a tool needs to talk to a `process` instance, and what the fleet file says of one.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use quilt_plugin_api::Command;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::limits;

/// A program to supervise.
#[derive(Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ProcessConfig {
    /// The program and its arguments; no shell is involved. A program without `/` is looked for in `PATH`.
    // Without one it is not valid; but what else is wrong can be judged.
    #[serde(default)]
    #[schemars(!default)]
    pub command: Vec<String>,
    /// Environment variables, over the station's own without those of quilt and of the service manager. Values may be secret: they are never shown.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Working directory; `/` unless said otherwise.
    #[serde(default)]
    pub cwd: Option<PathBuf>,
    /// User to run as; the station's own unless said otherwise.
    #[serde(default)]
    pub user: Option<String>,
    /// Group to run as; the user's own unless said otherwise.
    #[serde(default)]
    pub group: Option<String>,
    /// Permissions that its new files do not get, in octal such as `"027"`; `"022"` unless said otherwise.
    #[serde(default, deserialize_with = "limits::umask")]
    pub umask: Option<String>,
    /// From -20, which is scheduled first, to 19; 0 unless said otherwise.
    #[serde(default, deserialize_with = "limits::nice")]
    pub nice: Option<i32>,
    /// From -1000, which is never killed when memory is short, to 1000, which is killed first; 0 unless said otherwise.
    #[serde(default, deserialize_with = "limits::oom_score_adj")]
    pub oom_score_adj: Option<i32>,
    /// How many files it may have open; 1024 unless said otherwise, which it may raise itself up to the station's hard limit.
    #[serde(default, deserialize_with = "limits::open_files")]
    pub open_files: Option<u64>,
    /// Exit codes that mean success, from 0 to 255.
    #[serde(default = "only_zero", deserialize_with = "limits::exit_codes")]
    pub success_exit_codes: Vec<i32>,
    /// The signal that asks the program to stop, such as `TERM`, `INT` or `RTMIN+3`.
    #[serde(default = "term")]
    pub stop_signal: String,
    /// How long the program goes on when its station is gone and does not come back; for ever unless said otherwise.
    #[serde(default, with = "humantime_serde")]
    #[schemars(with = "Option<String>")]
    pub orphan_timeout: Option<Duration>,
}

fn only_zero() -> Vec<i32> {
    vec![0]
}

fn term() -> String {
    "TERM".into()
}

/// Replies how the program does.
#[derive(Debug, Serialize, Deserialize, JsonSchema, Command)]
#[command(group = "Process supervision", reply = ProcessStatus)]
#[serde(deny_unknown_fields)]
pub struct Status {}

/// How a program does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ProcessStatus {
    /// Its process; also the number of its process group.
    pub pid: u32,
    /// When it was started, RFC 3339.
    pub started: String,
    /// The keeper's process.
    pub keeper: u32,
    /// How it ended, if it did.
    pub exit: Option<String>,
}

/// Sends a signal to the program's main process.
#[derive(Debug, Serialize, Deserialize, JsonSchema, Command)]
#[command(group = "Process supervision", error = SignalError)]
#[serde(deny_unknown_fields)]
pub struct Signal {
    /// Its name, such as `HUP` or `USR1`, or its number.
    pub signal: String,
}

/// Why a signal was not sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum SignalError {
    /// There is no such signal.
    #[error("{0:?} is not a signal; use a name such as HUP, or a number")]
    Unknown(String),
    /// The program has ended.
    #[error("the program has ended")]
    NotRunning,
    /// The keeper of the program does not answer.
    #[error("the keeper of the program does not answer, so that nobody knows whether the signal arrives")]
    Unanswered,
}

/// Sends the last lines of the program's output, and on request those to come.
#[derive(Debug, Serialize, Deserialize, JsonSchema, Command)]
#[command(group = "Process supervision", reply = OutputLine)]
#[serde(deny_unknown_fields)]
pub struct Tail {
    /// How many lines to begin with.
    #[serde(default = "ten")]
    pub lines: u32,
    /// Whether to go on.
    #[serde(default)]
    pub follow: bool,
}

fn ten() -> u32 {
    10
}

/// A line of a program's output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct OutputLine {
    /// When, RFC 3339.
    pub at: String,
    /// `out` or `err`.
    pub stream: String,
    /// The line, or a piece of it. Bytes that are not UTF-8 appear as U+FFFD.
    pub text: String,
    /// No line break followed: the line goes on in the next item of its stream.
    pub continues: bool,
    /// The bytes, if they are not UTF-8.
    pub bytes: Option<Vec<u8>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schema_says_that_a_command_is_required_although_it_can_be_judged_without() {
        let schema = schemars::schema_for!(ProcessConfig).to_value();
        assert_eq!(schema["required"], serde_json::json!(["command"]), "{schema}");
        assert_eq!(schema["properties"]["command"].get("default"), None);
    }
}
