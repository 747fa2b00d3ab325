//! What a station and a plugin's child process say to each other, over quilt's own session on a socket pair.
//!
//! The station asks (`describe`, `validate`, `start`, ..); a call goes under the number of the command, its body as it
//! came. The child tells what its roles do (`TELL`) in batches, in order; nothing is answered before what was told earlier
//! has arrived.

use quilt_plugin_api::{Invalid, Place};
use serde::{Deserialize, Serialize};

pub(super) const DESCRIBE: &str = "plugin:describe";
pub(super) const VALIDATE: &str = "plugin:validate";
pub(super) const START: &str = "plugin:start";
pub(super) const UPDATE: &str = "plugin:update";
pub(super) const RUN: &str = "plugin:run";
pub(super) const STOP: &str = "plugin:stop";
pub(super) const ABANDON: &str = "plugin:abandon";
/// Whether the plugin still turns: answered by a thread of its own.
pub(super) const ALIVE: &str = "plugin:alive";
/// Up to which level tracing events are taken.
pub(super) const LEVEL: &str = "plugin:level";
/// The child has loaded its library, well or not, and can be asked.
pub(super) const READY: &str = "host:ready";
/// The child tells what its roles did.
pub(super) const TELL: &str = "host:tell";
/// A role calls another target.
pub(super) const CALL: &str = "host:call";

#[derive(Serialize, Deserialize)]
pub(super) struct Validate {
    pub(super) role: String,
    pub(super) config: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Start {
    pub(super) instance: u64,
    pub(super) role: String,
    pub(super) place: Place,
    pub(super) config: Vec<u8>,
    pub(super) stop_timeout_ms: u64,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Update {
    pub(super) instance: u64,
    pub(super) config: Vec<u8>,
    pub(super) stop_timeout_ms: u64,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Run {
    pub(super) instance: u64,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Stop {
    pub(super) instance: u64,
    pub(super) detach: bool,
    pub(super) stop_timeout_ms: u64,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Abandon {
    pub(super) role: String,
    pub(super) place: Place,
    pub(super) stop_timeout_ms: u64,
}

/// How something that a role does ended.
#[derive(Serialize, Deserialize)]
pub(super) enum Done<T> {
    Ok(T),
    Invalid(Vec<Invalid>),
    NeedsRestart,
    Failed(String),
    Panicked(String),
}

/// Something that a role did.
#[derive(Serialize, Deserialize)]
pub(super) struct Told {
    /// Its instance; 0 for the plugin itself.
    pub(super) instance: u64,
    pub(super) what: What,
}

#[derive(Serialize, Deserialize)]
pub(super) enum What {
    Log(u32, String),
    Active,
    Waiting(String),
    Pid(Option<u32>),
    FoundAgain(u64),
    Failed(String),
    Ended(String),
    Attribute(String, Option<String>),
    Emit(String, String),
    /// A command, under this number, with its record as JSON.
    Register(u64, String),
    DeRegister(String, String),
    /// A tracing event, with the `role/instance` it belongs to and its fields as JSON.
    Trace {
        level: u32,
        target: String,
        instance: Option<String>,
        fields: String,
    },
}

#[derive(Serialize, Deserialize)]
pub(super) struct Call {
    pub(super) instance: u64,
    pub(super) target: String,
    pub(super) command: String,
    pub(super) body: Vec<u8>,
    pub(super) time_ms: u64,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Called {
    pub(super) outcome: String,
    pub(super) body: Vec<u8>,
}
