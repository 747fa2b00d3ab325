//! Between a station and its manager.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::RolesOf;
use crate::labels::Labels;
use crate::names::{Digest, FleetId, Name, Revision, StationId};

/// A station introduces itself: who it is, what it can run, what it runs.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Registration {
    /// Its identity.
    pub id: StationId,
    /// The name it would like to have; the host name if none is configured.
    pub wished_name: Name,
    /// What is known about its machine.
    pub facts: Facts,
    /// Its own labels.
    pub labels: Labels,
    /// Roles it can run.
    pub roles: Vec<RoleOffer>,
    /// Roles it is told to refuse.
    pub blocked: Vec<Name>,
    /// The configuration it accepted last, if any.
    pub applied: Option<Applied>,
    /// Whether it is still changing instances to match.
    pub applying: bool,
    /// Every instance it has now.
    pub instances: Vec<InstanceReport>,
}

/// Facts about a machine: evidence for people, never a key.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Facts {
    /// Host name.
    pub hostname: String,
    /// MAC address of the interface that routes to the manager, as `02:00:00:00:00:01`; never made up.
    pub mac: Option<String>,
    /// Address of this end of the connection to the manager.
    pub ip: Option<String>,
    /// `/etc/machine-id`.
    pub machine_id: Option<String>,
    /// Changes with every boot.
    pub boot_id: Option<String>,
    /// Version of the station software.
    pub software: String,
    /// Operating system, architecture, cores, memory and the like.
    pub more: Labels,
}

/// A role that a station can run.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RoleOffer {
    /// The role.
    pub role: Name,
    /// Its version.
    pub version: String,
    /// How many instances the station may run; 0 for any number.
    pub instances: u32,
}

/// A configuration that a station accepted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Applied {
    /// The fleet whose manager pushed it.
    pub fleet: FleetId,
    /// The store epoch of that manager at the time.
    pub epoch: u64,
    /// Its number.
    pub revision: Revision,
    /// Hash of its content.
    pub digest: Digest,
}

/// One instance as a station sees it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct InstanceReport {
    /// The role.
    pub role: Name,
    /// The instance.
    pub instance: Name,
    /// Whose configuration it comes from.
    pub owner: Owner,
    /// Hash of its own configuration.
    pub digest: Digest,
    /// Its state.
    pub state: State,
    /// What it waits for, why it failed, and the like.
    pub detail: String,
    /// Main process, if it has one.
    pub pid: Option<u32>,
    /// Restarts by the supervisor since it was configured.
    pub restarts: u32,
    /// When it entered `state`, in milliseconds since 1970.
    pub since_ms: u64,
    /// Published attributes: name to JSON text.
    pub attributes: BTreeMap<String, String>,
    /// Why it runs on as it was although something else was asked for, by the configuration with this digest.
    pub held_back: Option<(Digest, String)>,
}

impl InstanceReport {
    /// The digest that stands for the configuration of an instance that cannot be made: its role is missing or blocked.
    pub fn no_configuration() -> Digest {
        Digest::of(&[])
    }

    /// Whether the instance cannot be made.
    pub fn cannot_run(&self) -> bool {
        self.state == State::Failed && self.digest == Self::no_configuration()
    }
}

/// Who configured an instance.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Owner {
    /// The manager.
    Fleet,
    /// A drop-in file on the host.
    Local,
}

/// The state of a role instance.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// On its way up.
    Starting,
    /// Started, and its ready check passed.
    Active,
    /// Waits for what its detail says.
    Waiting,
    /// Failed, and is tried again at the time its detail says.
    Backoff,
    /// Its work ended well.
    Completed,
    /// On its way down.
    Stopping,
    /// Not running, because an operator stopped it.
    Stopped,
    /// Not running, because it failed too often or cannot start.
    Failed,
    /// The station is away; nothing stale is shown as running.
    Unknown,
}

impl State {
    /// The state's name in output.
    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Active => "active",
            Self::Waiting => "waiting",
            Self::Backoff => "backoff",
            Self::Completed => "completed",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
            Self::Unknown => "unknown",
        }
    }

    /// Whether it works or has done its work.
    pub fn is_healthy(self) -> bool {
        matches!(self, Self::Active | Self::Completed)
    }

    /// Whether something of it runs or is being started.
    pub fn runs(self) -> bool {
        matches!(self, Self::Active | Self::Starting)
    }

    /// Whether an apply that waits may take this for success: it is healthy, or stays stopped because an operator stopped it.
    pub fn is_as_wanted(self) -> bool {
        self.is_healthy() || self == Self::Stopped
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The manager's answer to a registration. The push that follows is a request of its own.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Registered {
    /// The name the manager assigned: unique in the fleet.
    pub name: Name,
    /// Whether the manager knows the station; if not, nothing is pushed until `quiltctl adopt`.
    pub adopted: bool,
    /// Remarks for the station's log, such as a name that was taken.
    pub notes: Vec<String>,
}

/// What changed at a station since its last report.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Report {
    /// The configuration it accepted last.
    pub applied: Option<Applied>,
    /// Whether it is still changing instances to match.
    pub applying: bool,
    /// Instances that changed, whole.
    pub changed: Vec<InstanceReport>,
    /// Instances that are gone.
    pub gone: Vec<(Name, Name)>,
    /// What happened since, in order.
    pub events: Vec<StationEvent>,
    /// The roles it can run, if that changed.
    pub roles: Option<Vec<RoleOffer>>,
    /// What is wrong with the files on its host, for people, if that changed; the first report of a session has it.
    pub remarks: Option<Vec<String>>,
}

/// Something that happened at a station.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum StationEvent {
    /// An instance came into a state.
    State(Box<StateChange>),
    /// An instance is gone.
    Gone(Name, Name),
    /// A role emitted an event of its own.
    Emitted(Box<Emitted>),
    /// The station began to change its instances to match its configuration.
    Applying,
    /// It did what was to be done at once; what starts, starts.
    Applied,
}

/// A state that an instance came into.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct StateChange {
    /// The role.
    pub role: Name,
    /// The instance.
    pub instance: Name,
    /// The state.
    pub state: State,
    /// Why, for people.
    pub detail: String,
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
}

/// An event of a role instance's own.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Emitted {
    /// The role.
    pub role: Name,
    /// The instance.
    pub instance: Name,
    /// What kind of event.
    pub topic: String,
    /// JSON text.
    pub body: String,
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
}

/// The manager offers a configuration.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct UpdateConfiguration<'a> {
    /// Who offers it, and its number and digest.
    pub offer: Applied,
    /// The JSON document, byte for byte as hashed. Borrowed by whoever pushes it to thousands.
    pub document: Cow<'a, str>,
}

/// The manager asks what would become of a configuration.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Plan {
    /// The JSON document.
    pub document: String,
}

/// A configuration document whose configurations are read.
pub type Document = DocumentOf<serde_json::Map<String, serde_json::Value>>;

/// A configuration document: every role instance that the fleet wants on one station. Its JSON form, with keys in
/// order, is what digests are made of.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DocumentOf<C> {
    /// Plugins that the station must have, by name, with the hashes of their files; it fetches what it lacks.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub plugins: BTreeMap<Name, Digest>,
    /// Role to instance to configuration.
    #[serde(default = "BTreeMap::new")]
    pub roles: RolesOf<C>,
}

impl<C> Default for DocumentOf<C> {
    fn default() -> Self {
        Self { plugins: BTreeMap::new(), roles: BTreeMap::new() }
    }
}

impl<C: Serialize> DocumentOf<C> {
    /// The bytes that are hashed, stored and pushed.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("maps with text keys serialize")
    }
}

/// The digest of one instance's configuration: over its JSON with keys in order, at every depth.
pub fn instance_digest(config: &serde_json::Map<String, serde_json::Value>) -> Digest {
    fn put(out: &mut String, value: &serde_json::Value) {
        match value {
            serde_json::Value::Object(map) => {
                out.push('{');
                // serde_json keeps keys sorted or as they came, depending on who else is built with it.
                for (key, value) in map.iter().collect::<BTreeMap<_, _>>() {
                    out.push_str(&serde_json::Value::from(key.as_str()).to_string());
                    out.push(':');
                    put(out, value);
                    out.push(',');
                }
                out.push('}');
            }
            serde_json::Value::Array(items) => {
                out.push('[');
                items.iter().for_each(|item| {
                    put(out, item);
                    out.push(',');
                });
                out.push(']');
            }
            plain => out.push_str(&plain.to_string()),
        }
    }
    let mut canonical = String::new();
    put(&mut canonical, &serde_json::Value::Object(config.clone()));
    Digest::of(canonical.as_bytes())
}

/// A station's answer to a push or a plan.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Verdict {
    /// It runs exactly this already; nothing was touched.
    Unchanged,
    /// It is on the station's disk and being applied (push), or would be (plan).
    Accepted,
    /// Nothing was changed.
    Rejected(Box<Rejection>),
}

/// Why a configuration was refused: all problems, not the first.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Rejection {
    /// The gravest class among the problems.
    pub code: ProblemCode,
    /// One line for people.
    pub message: String,
    /// Every problem.
    pub problems: Vec<Problem>,
}

/// Stable classes of problems, gravest first.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ProblemCode {
    /// The station is told to refuse this role.
    RoleBlocked,
    /// The station has no factory for this role.
    MissingRoleFactory,
    /// Anything else that is wrong with the configuration.
    InvalidConfiguration,
    /// The station has trouble of its own, such as a full disk. The configuration may be fine, and is offered again.
    StationFault,
}

impl fmt::Display for ProblemCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::RoleBlocked => "ROLE_BLOCKED",
            Self::MissingRoleFactory => "MISSING_ROLE_FACTORY",
            Self::InvalidConfiguration => "INVALID_CONFIGURATION",
            Self::StationFault => "STATION_FAULT",
        })
    }
}

/// One thing to fix, complete enough to fix it without the station's log.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Problem {
    /// Its class.
    pub code: ProblemCode,
    /// The station's name.
    pub station: String,
    /// The role.
    pub role: String,
    /// The instance, if it is about one.
    pub instance: Option<String>,
    /// The key in the instance's configuration, as a path, if it is about one.
    pub key: Option<String>,
    /// What was expected.
    pub expected: String,
    /// What was found.
    pub got: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}/{}", self.code, self.station, self.role)?;
        if let Some(instance) = &self.instance {
            write!(f, "/{instance}")?;
        }
        if let Some(key) = &self.key {
            write!(f, ": key `{key}`")?;
        }
        write!(f, ": expected {}, got {}", self.expected, self.got)
    }
}

impl Rejection {
    /// Sorts the problems and makes the headline.
    pub fn new(mut problems: Vec<Problem>) -> Self {
        problems.sort();
        problems.dedup();
        let code = problems.first().map_or(ProblemCode::InvalidConfiguration, |problem| problem.code);
        let message = match problems.len() {
            1 => problems[0].to_string(),
            count => format!("{code} and more: {count} problems, nothing was changed"),
        };
        Self { code, message, problems }
    }
}

/// Asks a station to start, stop or restart an instance.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Control {
    /// The role.
    pub role: Name,
    /// The instance.
    pub instance: Name,
    /// What to do.
    pub action: Action,
}

/// What came of a [`Control`].
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Controlled {
    /// The instance as it is now; none if it is gone.
    pub report: Option<InstanceReport>,
    /// Instances that run on although they need the one that was stopped.
    pub dependants: Vec<(Name, Name)>,
}

/// What an operator does to an instance.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Start it if it is stopped, failed or completed.
    Start,
    /// Stop it until it is started again, whatever becomes of its configuration or its station meanwhile.
    Stop,
    /// Stop it if it runs, then start it.
    Restart,
}

/// Asks for an instance's log.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Logs {
    /// The role.
    pub role: Name,
    /// The instance.
    pub instance: Name,
    /// How many of the last lines to begin with.
    #[serde(default = "default_lines")]
    pub lines: u32,
    /// Whether to go on with lines as they come.
    #[serde(default)]
    pub follow: bool,
    /// Instead of the last lines those after a [`LogLine::cursor`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
}

fn default_lines() -> u32 {
    100
}

/// One line of an instance's log.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LogLine {
    /// When, RFC 3339 in UTC with milliseconds.
    pub at: String,
    /// `out`, `err`, or `quilt` for the role's own lines.
    pub stream: String,
    /// The line without its end, or a piece of it. Bytes that are not UTF-8 appear as U+FFFD.
    pub text: String,
    /// No line break followed: the line goes on in the next item of its stream.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub continues: bool,
    /// The bytes, if they are not UTF-8. With these and `continues` the items of a stream can be joined to what was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<Vec<u8>>,
    /// Where the log goes on after this line, for [`Logs::after`]. The last of the lines that were read together has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

/// A role as discovery shows it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct RoleView {
    /// The role.
    pub role: Name,
    /// Its version.
    pub version: String,
    /// How many instances the station may run; 0 for any number.
    pub instances: u32,
    /// Whether the station is told to refuse it.
    pub blocked: bool,
    /// What it is for.
    pub doc: String,
    /// JSON Schema of an instance's configuration.
    pub config_schema: serde_json::Value,
}

/// A command as discovery shows it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct CommandView {
    /// The role.
    pub role: Name,
    /// The instance that answers it; none if the role is offered and has no instance yet.
    pub instance: Option<Name>,
    /// The group its name lives in.
    pub group: String,
    /// Its name.
    pub command: String,
    /// What it does.
    pub doc: String,
    /// Whether it changes nothing.
    pub read: bool,
    /// Whether it answers with a stream of items.
    pub streaming: bool,
    /// JSON Schema of the request.
    pub request_schema: serde_json::Value,
    /// JSON Schema of the reply, or of an item.
    pub reply_schema: serde_json::Value,
    /// JSON Schema of the command's own error.
    pub error_schema: serde_json::Value,
}
