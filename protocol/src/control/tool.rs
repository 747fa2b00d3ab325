//! What a tool asks the manager. The JSON forms are contracts that scripts depend on.

use serde::{Deserialize, Serialize};

use super::{Action, Share};
use crate::names::{Digest, Name, Revision};

/// An empty request or reply.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Empty {}

/// Asks about stations.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Stations {
    /// Which; all if empty.
    pub selector: String,
}

/// Names one station: by name, `id:<uuid>` or `mac:<address>`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OneStation {
    /// Which.
    pub station: String,
}

/// Adopts a station.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Adopt {
    /// Which.
    pub station: String,
    /// Whether to push the manager's configuration over what it runs; otherwise what it runs becomes desired.
    #[serde(default)]
    pub replace: bool,
}

/// A station was adopted.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Adopted {
    /// The fleet files that say something else of the station than what is desired of it now: the next apply of one of them, or of
    /// any other file that concerns the station, replaces that. None if they say the same.
    pub undone_by: Vec<String>,
}

/// Goes back to an earlier configuration.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rollback {
    /// Which station.
    pub station: String,
    /// To which revision; to the last good one before the desired if absent.
    #[serde(default)]
    pub to: Option<Revision>,
}

/// A station went back to an earlier configuration.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RolledBack {
    /// The number under which it is desired again.
    pub revision: Revision,
    /// The number it had before.
    pub to: Revision,
    /// The fleet files that say something else of the station: the next apply of one of them, or of any other file that
    /// concerns the station, undoes the rollback. None if they say the same.
    pub undone_by: Vec<String>,
}

/// One configuration that a station was or is meant to have.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct HistoryEntry {
    /// Its number.
    pub revision: Revision,
    /// Hash of its content.
    pub digest: Digest,
    /// When, RFC 3339.
    pub at: String,
    /// Who.
    pub who: String,
    /// Which fleet file or action.
    pub source: String,
    /// Whether the station ran it well.
    pub good: bool,
    /// `role/instance` of what it configures.
    pub instances: Vec<String>,
}

/// Controls an instance of a station.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ControlInstance {
    /// `station/role/instance`.
    pub target: String,
    /// What to do.
    pub action: Action,
}

/// An instance was started, stopped or restarted.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Operated {
    /// `role/instance` of those that run on although they need the one that was stopped.
    pub dependants: Vec<String>,
}

/// Asks which instances a target means.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resolve {
    /// `station/role/instance`, `station/role` or a selector, whose `role` and `instance` are those of each instance.
    pub target: String,
    /// How many at most.
    #[serde(default)]
    pub limit: Option<Share>,
}

/// An instance that a target means.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct InstanceRef {
    /// The station.
    pub station: Name,
    /// The role.
    pub role: Name,
    /// The instance.
    pub instance: Name,
}

/// What a selector of instances leaves out.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct LeftOut {
    /// Stations that are away and have instances that it means, as far as the manager knows: the first of them, by name.
    pub away: Vec<Name>,
    /// How many such stations there are.
    pub away_count: usize,
    /// Labels in it that no station of the fleet has.
    pub unknown_labels: Vec<String>,
}

/// Asks for events.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Events {
    /// Only those after this number; the last few if absent.
    pub after: Option<u64>,
    /// Whether to go on with events as they come.
    pub follow: bool,
}

/// Something that happened.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct FleetEvent {
    /// Grows by one with every event.
    pub number: u64,
    /// When, RFC 3339.
    pub at: String,
    /// What kind, such as `instance.active` or `push.rejected`.
    pub kind: String,
    /// Which station it is about.
    pub station: Option<String>,
    /// Which instance it is about, as `role/instance`.
    pub instance: Option<String>,
    /// For people.
    pub text: String,
}

/// A connected tool.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ClientView {
    /// Its assigned name.
    pub name: Name,
    /// Its software.
    pub software: String,
    /// Where it connects from.
    pub peer: String,
    /// Since when, RFC 3339.
    pub since: String,
}
