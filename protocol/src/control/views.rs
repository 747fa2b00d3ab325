//! Stations and instances as an operator sees them. The JSON forms are contracts that scripts depend on.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Facts, Owner, Rejection, State};
use crate::labels::Labels;
use crate::names::{Digest, Name, Revision, StationId};

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
