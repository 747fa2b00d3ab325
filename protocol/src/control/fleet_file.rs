//! The content of a fleet file.
//!
//! Each shape is generic over how the configuration of an instance is kept: tools and stations read it as a JSON object, a manager
//! keeps its text.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::names::{Digest, Name};

/// A fleet file whose configurations are read.
pub type FleetFile = FleetFileOf<Map<String, Value>>;

/// The fleet file's shape. Its instances are JSON objects whose meaning the manager does not know.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FleetFileOf<C> {
    /// The file's own name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
    /// Stations by name, `id:<uuid>` or `mac:<address>`.
    pub station: BTreeMap<String, StationEntryOf<C>>,
    /// Groups by name.
    pub group: BTreeMap<Name, GroupEntryOf<C>>,
}

impl<C> Default for FleetFileOf<C> {
    fn default() -> Self {
        Self { name: None, station: BTreeMap::new(), group: BTreeMap::new() }
    }
}

/// Roles of an entry whose configurations are read.
pub type Roles = RolesOf<Map<String, Value>>;

/// Roles of an entry: role to instance to configuration.
pub type RolesOf<C> = BTreeMap<Name, BTreeMap<Name, C>>;

/// An entry for one station whose configurations are read.
pub type StationEntry = StationEntryOf<Map<String, Value>>;

/// What the fleet file says of one station.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StationEntryOf<C> {
    /// Labels; they beat the station's own.
    pub labels: BTreeMap<String, String>,
    /// Plugins that it gets, by name, with the sha256 of their files.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub plugins: BTreeMap<Name, Digest>,
    /// What it runs.
    pub roles: RolesOf<C>,
}

impl<C> Default for StationEntryOf<C> {
    fn default() -> Self {
        Self { labels: BTreeMap::new(), plugins: BTreeMap::new(), roles: BTreeMap::new() }
    }
}

/// An entry for a group whose configurations are read.
pub type GroupEntry = GroupEntryOf<Map<String, Value>>;

/// What the fleet file says of all stations that a selector matches.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupEntryOf<C> {
    /// The selector.
    #[serde(rename = "match")]
    pub selector: String,
    /// Plugins that they get, by name, with the sha256 of their files.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub plugins: BTreeMap<Name, Digest>,
    /// What they run.
    #[serde(default = "BTreeMap::new")]
    pub roles: RolesOf<C>,
}
