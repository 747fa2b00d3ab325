//! The content of a fleet file.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::names::{Digest, Name};

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
