//! The folders in which instances keep their state and logs. They stay when an instance is removed.

use serde::{Deserialize, Serialize};

use crate::names::Name;

/// The folder of an instance on its station.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct InstanceFolder {
    /// The role.
    pub role: Name,
    /// The instance.
    pub instance: Name,
    /// Whether there is an instance of this name.
    pub used: bool,
    /// The length of all files in it, in bytes.
    pub bytes: u64,
    /// When something in it changed last, in milliseconds since 1970.
    pub changed_ms: u64,
}

/// Removes folders of instances that are not there any more, with all that is in them.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PurgeFolders {
    /// Roles and instances.
    pub instances: Vec<(Name, Name)>,
}
