//! What a tool needs to talk to a counter.

use quilt_plugin_api::Command;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A counter's configuration.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CounterConfig {
    /// Where it starts.
    #[serde(default)]
    pub start: i64,
    /// What it may not exceed.
    #[serde(default = "no_limit")]
    pub limit: i64,
}

fn no_limit() -> i64 {
    i64::MAX
}

/// Adds to the counter.
#[derive(Debug, Serialize, Deserialize, JsonSchema, Command)]
#[command(group = "Counting", reply = i64, error = CounterError)]
#[serde(deny_unknown_fields)]
pub struct Increment {
    /// How much.
    pub by: i64,
}

/// Divides the counter; an example of a command that can fail.
#[derive(Debug, Serialize, Deserialize, JsonSchema, Command)]
#[command(group = "Counting", reply = i64, error = CounterError)]
#[serde(deny_unknown_fields)]
pub struct Divide {
    /// By how much.
    pub by: i64,
}

/// Reads the counter.
#[derive(Debug, Serialize, Deserialize, JsonSchema, Command)]
#[command(group = "Counting", reply = i64)]
#[serde(deny_unknown_fields)]
pub struct Value {}

/// Counts up from the current value, without changing it; an example of a stream.
#[derive(Debug, Serialize, Deserialize, JsonSchema, Command)]
#[command(group = "Counting", reply = i64)]
#[serde(deny_unknown_fields)]
pub struct Count {
    /// How many numbers.
    pub items: u32,
    /// How long to wait between two, in milliseconds.
    #[serde(default)]
    pub every_ms: u64,
}

/// Why a counter declines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum CounterError {
    /// The result would exceed the configured limit.
    #[error("{would_be} exceeds the limit of {limit}")]
    OverLimit {
        /// What the counter would be.
        would_be: i64,
        /// What it may be.
        limit: i64,
    },
    /// The result is not a number, or does not fit.
    #[error("{0} cannot be divided by {1}")]
    NotDivisible(i64, i64),
}
