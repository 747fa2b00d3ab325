//! Between a tool and the manager. The JSON forms are contracts that scripts depend on.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Action, Facts, Owner, Rejection, State};
use crate::labels::Labels;
use crate::names::{Digest, Name, Revision, StationId};

/// An empty request or reply.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Empty {}

/// A station as an operator sees it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct StationView {
    /// Its identity.
    pub id: StationId,
    /// Its name in the fleet.
    pub name: Name,
    /// Host name.
    pub hostname: String,
    /// MAC address; null if it has none.
    pub mac: Option<String>,
    /// Address of its end of the connection.
    pub ip: Option<String>,
    /// How the manager stands with it.
    pub state: StationState,
    /// Labels, the fleet file's over the station's own.
    pub labels: Labels,
    /// Roles it can run.
    pub roles: Vec<Name>,
    /// Number of the configuration it should run.
    pub desired_revision: Option<Revision>,
    /// Digest of the configuration it should run.
    pub desired_digest: Option<Digest>,
    /// Number of the configuration it accepted.
    pub applied_revision: Option<Revision>,
    /// Digest of the configuration it accepted.
    pub applied_digest: Option<Digest>,
    /// The configuration it refused, and why.
    pub rejected: Option<Rejected>,
    /// Whether it is still changing instances to match.
    pub applying: bool,
    /// Its instances.
    pub instances: Vec<InstanceView>,
    /// Facts about its machine.
    pub facts: Facts,
    /// Things to look at: a name or MAC that two stations claim, a cloned identity.
    pub flags: Vec<String>,
    /// When it was last heard of, RFC 3339.
    pub last_seen: Option<String>,
}

/// How the manager stands with a station.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StationState {
    /// Its session is live.
    Connected,
    /// It said goodbye.
    Disconnected,
    /// It was lost.
    Unknown,
    /// Connected, but its configuration is not this manager's; nothing is pushed.
    Unadopted,
    /// A second session of an identity that is live elsewhere.
    Quarantined,
}

impl StationState {
    /// The state's name in output.
    pub fn name(self) -> &'static str {
        match self {
            Self::Connected => "connected",
            Self::Disconnected => "disconnected",
            Self::Unknown => "unknown",
            Self::Unadopted => "unadopted",
            Self::Quarantined => "quarantined",
        }
    }

    /// Whether it can be asked for something.
    pub fn is_here(self) -> bool {
        matches!(self, Self::Connected | Self::Unadopted)
    }
}

/// A refused configuration.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Rejected {
    /// Its number.
    pub revision: Revision,
    /// Why.
    #[serde(flatten)]
    pub rejection: Rejection,
}

/// A role instance as an operator sees it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct InstanceView {
    /// The role.
    pub role: Name,
    /// The instance.
    pub instance: Name,
    /// Whose configuration it comes from.
    pub owner: Owner,
    /// Its state.
    pub state: State,
    /// What it waits for, why it failed, and the like.
    pub detail: String,
    /// Main process, if it has one.
    pub pid: Option<u32>,
    /// Restarts since it was configured.
    pub restarts: u32,
    /// When it entered its state, RFC 3339.
    pub since: String,
    /// Published attributes.
    pub attributes: Map<String, Value>,
}

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

/// The prefix of a pushed plugin's source; the plugin's name follows.
pub const PLUGIN_SOURCE: &str = "plugin:";

/// The source of a file without a name that came through standard input: each time it may be another file.
pub const STDIN_SOURCE: &str = "-";

/// A fleet file as the manager takes it: the TOML document as JSON, with where it came from.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Apply {
    /// Where the file lies; what it is known by if it has no name of its own.
    pub source: String,
    /// Its content.
    pub fleet: FleetFile,
    /// Say what would change and change nothing.
    #[serde(default)]
    pub dry_run: bool,
    /// Store and push even if stations would refuse.
    #[serde(default)]
    pub force: bool,
    /// Follow until every instance is healthy and has stayed so.
    #[serde(default)]
    pub wait: Option<Wait>,
    /// How many stations at a time; all at once if absent.
    #[serde(default)]
    pub batch: Option<Share>,
}

impl Apply {
    /// What identifies the file: its name, or else its source. A file with the same identity replaces it.
    pub fn known_as(&self) -> &str {
        self.fleet.name.as_ref().map_or(&self.source, Name::as_str)
    }
}

/// A number, or a share of all.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Share {
    /// So many.
    Count(u32),
    /// So many of a hundred, at least one.
    Percent(u32),
}

impl Share {
    /// How many of `all` this is: at least one.
    pub fn of(self, all: usize) -> usize {
        match self {
            Self::Count(count) => (count as usize).max(1),
            Self::Percent(percent) => (all * percent as usize).div_ceil(100).max(1),
        }
    }
}

impl std::str::FromStr for Share {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |_| format!("expected a number or a percentage such as 5 or 10%, got {text:?}");
        match text.strip_suffix('%') {
            Some(percent) => match percent.parse().map_err(wrong)? {
                percent @ 1..=100 => Ok(Self::Percent(percent)),
                _ => Err(format!("expected 1% to 100%, got {text:?}")),
            },
            None => match text.parse().map_err(wrong)? {
                0 => Err("expected at least 1, got 0".into()),
                count => Ok(Self::Count(count)),
            },
        }
    }
}

/// How an apply that waits does so.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Wait {
    /// For how long at most, in milliseconds.
    pub within_ms: u64,
    /// How long every instance must stay healthy, in milliseconds.
    pub settle_ms: u64,
    /// Whether a failure makes the configuration before this one desired again.
    pub rollback: bool,
}

/// The fleet file's shape. Its instances are JSON objects whose meaning the manager does not know.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FleetFile {
    /// The file's own name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
    /// Stations by name, `id:<uuid>` or `mac:<address>`.
    pub station: BTreeMap<String, StationEntry>,
    /// Groups by name.
    pub group: BTreeMap<Name, GroupEntry>,
}

/// Roles of an entry: role to instance to configuration.
pub type Roles = BTreeMap<Name, BTreeMap<Name, Map<String, Value>>>;

/// What the fleet file says of one station.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StationEntry {
    /// Labels; they beat the station's own.
    pub labels: BTreeMap<String, String>,
    /// Plugins that it gets, by name, with the sha256 of their files.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub plugins: BTreeMap<Name, Digest>,
    /// What it runs.
    pub roles: Roles,
}

/// What the fleet file says of all stations that a selector matches.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupEntry {
    /// The selector.
    #[serde(rename = "match")]
    pub selector: String,
    /// Plugins that they get, by name, with the sha256 of their files.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub plugins: BTreeMap<Name, Digest>,
    /// What they run.
    #[serde(default)]
    pub roles: Roles,
}

/// Progress of an apply, one per change of a station.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Progress {
    /// The station.
    pub station: String,
    /// How far it is.
    pub phase: Phase,
    /// More about it.
    pub detail: String,
}

/// How far one station is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Stored, to be pushed.
    Stored,
    /// The station is away; it gets its configuration when it registers.
    Away,
    /// The station accepted and is changing.
    Applying,
    /// Every instance is healthy.
    Healthy,
    /// Every instance stayed healthy.
    Settled,
    /// The station refused.
    Rejected,
    /// An instance failed, or the time is over.
    Failed,
    /// The configuration before is desired again.
    RolledBack,
}

impl Phase {
    /// The phase's name in output.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stored => "stored",
            Self::Away => "away",
            Self::Applying => "applying",
            Self::Healthy => "healthy",
            Self::Settled => "settled",
            Self::Rejected => "rejected",
            Self::Failed => "failed",
            Self::RolledBack => "rolled back",
        }
    }
}

/// How an apply ended.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ApplyReply {
    /// Whether anything was stored.
    pub stored: bool,
    /// What changes, or would. In a very large fleet the first of them; a note says how many more there are.
    pub changes: Vec<StationChange>,
    /// Entries that are added, changed or removed, such as "group `capture`", even if no station changes now.
    pub entries: Vec<String>,
    /// Remarks: entries taken over from another file, stations not known yet.
    pub notes: Vec<String>,
    /// Selectors that match nothing and the like.
    pub warnings: Vec<Remark>,
    /// What is wrong with the file whatever stations say; nothing was changed.
    pub mistakes: Vec<Remark>,
    /// What stations refused. With `force` it was stored all the same.
    pub rejection: Option<Rejection>,
    /// Stations that did not become healthy, and why (only when waiting).
    pub failures: BTreeMap<String, String>,
    /// How many stations this concerns.
    #[serde(default)]
    pub targets: usize,
    /// Stations that this concerns and that do not have it yet: they are away, or not adopted.
    #[serde(default)]
    pub away: Vec<String>,
    /// Whether the configuration before was made desired again on stations that had been given this one.
    pub rolled_back: bool,
    /// Whether all `failures` are stations that were not healthy in time and may still become so (only when waiting).
    pub timed_out: bool,
}

/// Something about a place in a fleet file.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Remark {
    /// Keys that lead to it in the file.
    pub at: Vec<String>,
    /// For people.
    pub text: String,
}

/// What changes for one station.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct StationChange {
    /// The station.
    pub station: String,
    /// The revision it gets; null in a dry run.
    pub revision: Option<Revision>,
    /// One line per instance, in order.
    pub instances: Vec<InstanceChange>,
    /// Plugins that come, go or are replaced.
    #[serde(default)]
    pub plugins: Vec<PluginChange>,
}

/// What changes for one plugin of a station.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct PluginChange {
    /// Its name.
    pub plugin: Name,
    /// The hash of the file that it was; none if it comes.
    pub before: Option<Digest>,
    /// That it becomes; none if it goes.
    pub after: Option<Digest>,
}

/// What changes for one instance.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct InstanceChange {
    /// The role.
    pub role: Name,
    /// The instance.
    pub instance: Name,
    /// Added, removed or changed.
    pub change: ChangeKind,
    /// Keys that differ; values are not shown, they may be secret.
    pub keys: Vec<String>,
}

/// Kinds of change.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChangeKind {
    /// New.
    Added,
    /// Gone.
    Removed,
    /// Configured differently.
    Changed,
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

/// Asks which instances a target means.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resolve {
    /// `station/role/instance`, `station/role` or a selector.
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
