//! Plugins as operators see them.

use serde::{Deserialize, Serialize};

/// What became of a plugin's file.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PluginState {
    /// Its roles are offered.
    Live,
    /// It is not used; `detail` says why.
    Refused,
    /// It crashed while it was loaded or started, and is not loaded again.
    Quarantined,
}

impl PluginState {
    /// The state's name in output.
    pub fn name(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Refused => "refused",
            Self::Quarantined => "quarantined",
        }
    }
}

/// A plugin of a station.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PluginView {
    /// Its name; empty if its file does not say.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Whether it is used.
    pub state: PluginState,
    /// Its roles.
    pub roles: Vec<String>,
    /// Hash of its file; empty if that could not be read.
    pub sha256: String,
    /// Where it came from.
    pub file: String,
    /// Why it is not used, for scripts.
    pub code: Option<String>,
    /// Why it is not used, for people.
    pub detail: String,
    /// The process that its instances run in, if there is one now.
    pub pid: Option<u32>,
}

/// Lifts the quarantine of a plugin.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AllowPlugin {
    /// Its name or sha256.
    pub plugin: String,
}
