//! Plugins as operators see them.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{Digest, Name};

/// What became of a plugin's file.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PluginState {
    /// Its roles are offered.
    Live,
    /// It is being loaded, and not used yet.
    Loading,
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
            Self::Loading => "loading",
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

/// A plugin that an entry of the fleet gives to stations, whether or not there is one yet.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct GivenPlugin {
    /// Its name.
    pub plugin: Name,
    /// Hash of its file.
    pub sha256: Digest,
    /// To which stations: a selector, or a station's name, `id:<uuid>` or `mac:<address>`.
    pub on: String,
    /// The file that says so, or `plugin:NAME` for a push.
    pub source: String,
    /// The stations that match now.
    pub stations: Vec<Name>,
}

/// Lifts the quarantine of a plugin.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AllowPlugin {
    /// Its name or sha256.
    pub plugin: String,
}

/// A tool is about to store a file at the manager, or wants to know how much of it is there.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BeginFile {
    /// Its hash.
    pub sha256: Digest,
    /// Its size, in bytes.
    pub size: u64,
}

/// A piece of a file for the manager, behind what is there.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AddToFile {
    /// The file's hash.
    pub sha256: Digest,
    /// Where the piece belongs.
    pub offset: u64,
    /// The piece; at most [`PIECE_MAX`] bytes.
    pub piece: Bytes,
}

/// How much of a file the manager has.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FileProgress {
    /// So many bytes.
    pub there: u64,
    /// Whether that is all of it, and checked.
    pub whole: bool,
}

/// A station wants a piece of a file.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ReadFile {
    /// The file's hash.
    pub sha256: Digest,
    /// From where.
    pub offset: u64,
}

/// A piece of a file.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FilePiece {
    /// The size of the whole, in bytes.
    pub size: u64,
    /// The piece; at most [`PIECE_MAX`] bytes.
    pub piece: Bytes,
}

/// The longest piece of a file, in bytes: small beside other traffic, large beside a round trip.
pub const PIECE_MAX: usize = 256 << 10;
/// The longest file that a manager keeps, in bytes.
pub const FILE_MAX: u64 = 256 << 20;
