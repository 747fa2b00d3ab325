//! Applying a fleet file: the request, its progress and how it ended. The JSON forms are contracts that scripts depend on.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{FleetFileOf, Rejection};
use crate::names::{Digest, Name, Revision};

/// The prefix of a pushed plugin's source; the plugin's name follows.
pub const PLUGIN_SOURCE: &str = "plugin:";

/// The source of a file without a name that came through standard input: each time it may be another file.
pub const STDIN_SOURCE: &str = "-";

/// A request to apply a fleet file whose configurations are read.
pub type Apply = ApplyOf<Map<String, Value>>;

/// A fleet file as the manager takes it: the TOML document as JSON, with where it came from.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApplyOf<C> {
    /// Where the file lies; what it is known by if it has no name of its own.
    pub source: String,
    /// Its content.
    pub fleet: FleetFileOf<C>,
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

impl<C> ApplyOf<C> {
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
    /// Those of them that something newer took over: it has not what this apply gave (only when waiting).
    #[serde(default)]
    pub superseded: BTreeSet<String>,
    /// How many stations this concerns.
    #[serde(default)]
    pub targets: usize,
    /// Stations that this concerns and that do not have it yet: they are away, or not adopted.
    #[serde(default)]
    pub away: Vec<String>,
    /// Whether the configuration before was made desired again on stations that had been given this one.
    pub rolled_back: bool,
    /// How the rollback changes those stations.
    #[serde(default)]
    pub taken_back: Vec<StationChange>,
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
