//! What quilt's own parts ask each other: the bodies of requests whose command is in the group `quilt`.
//!
//! Between station and manager these travel as bincode (the protocol version governs them); between tools and the
//! manager as JSON, so that `quiltctl call manager stations` and scripts work without our types.

mod apply;
pub mod bounds;
mod fleet_file;
mod folders;
mod plugin;
mod schemas;
mod station;
mod tool;
mod views;

pub use self::apply::*;
pub use self::fleet_file::*;
pub use self::folders::*;
pub use self::plugin::*;
pub use self::schemas::{
    Discover, PAGE_MAX, Page, ReadSchemas, SCHEMAS_MAX, reference as schema_reference,
    reference_to as schema_reference_to, referenced as schema_referenced, text as schema_text,
};
pub use self::station::*;
pub use self::tool::*;
pub use self::views::*;

/// What a station's refusal of a plain call ends with when the command answers with a stream.
pub const ASK_FOR_STREAM: &str = "answers with a stream; ask for one";

/// Command names, so that both ends spell them alike.
pub mod command {
    /// Station to manager: [`Registration`](super::Registration) for [`Registered`](super::Registered).
    pub const REGISTER: &str = "quilt:register";
    /// Station to manager: [`Report`](super::Report).
    pub const REPORT: &str = "quilt:report";
    /// Manager to station: [`UpdateConfiguration`](super::UpdateConfiguration) for [`Verdict`](super::Verdict).
    pub const UPDATE_CONFIGURATION: &str = "quilt:update_configuration";
    /// Manager to station: [`Plan`](super::Plan) for [`Verdict`](super::Verdict). Changes nothing.
    pub const PLAN: &str = "quilt:plan";
    /// Manager to station: start, stop or restart an instance.
    pub const CONTROL: &str = "quilt:control";
    /// The roles a station offers, with schemas: [`Discover`](super::Discover) for [`RoleView`](super::RoleView)s.
    pub const ROLES: &str = "quilt:roles";
    /// The commands a station's instances offer, with schemas: [`Discover`](super::Discover) for
    /// [`CommandView`](super::CommandView)s.
    pub const COMMANDS: &str = "quilt:commands";
    /// Tool to manager: the texts of schemas, [`ReadSchemas`](super::ReadSchemas). Manager to station: hashes for texts.
    pub const SCHEMAS: &str = "quilt:schemas";
    /// Tool to manager: [`BeginFile`](super::BeginFile) for [`FileProgress`](super::FileProgress).
    pub const BEGIN_FILE: &str = "quilt:begin_file";
    /// Tool to manager: [`AddToFile`](super::AddToFile) for [`FileProgress`](super::FileProgress).
    pub const ADD_TO_FILE: &str = "quilt:add_to_file";
    /// Station to manager: [`ReadFile`](super::ReadFile) for [`FilePiece`](super::FilePiece).
    pub const READ_FILE: &str = "quilt:read_file";
    /// A stream of an instance's log lines.
    pub const LOGS: &str = "quilt:logs";
    /// The plugins of a station: [`PluginView`](super::PluginView)s.
    pub const PLUGINS: &str = "quilt:plugins";
    /// Tool to manager: the plugins that entries of the fleet give to stations: [`GivenPlugin`](super::GivenPlugin)s.
    pub const GIVEN_PLUGINS: &str = "quilt:given_plugins";
    /// To a station: lift the quarantine of a plugin, [`AllowPlugin`](super::AllowPlugin).
    pub const ALLOW_PLUGIN: &str = "quilt:allow_plugin";
    /// To a station: look at the files of plugins anew, now.
    pub const RELOAD_PLUGINS: &str = "quilt:reload_plugins";
    /// To a station: the folders of its instances, [`InstanceFolder`](super::InstanceFolder)s.
    pub const FOLDERS: &str = "quilt:folders";
    /// To a station: delete folders of removed instances, [`PurgeFolders`](super::PurgeFolders).
    pub const PURGE_FOLDERS: &str = "quilt:purge_folders";
    /// Manager to station: take a new identity.
    pub const RENEW: &str = "quilt:renew";
    /// Tool to manager: all stations.
    pub const STATIONS: &str = "quilt:stations";
    /// Tool to manager: forget a station that is away.
    pub const FORGET: &str = "quilt:forget";
    /// Tool to manager: let the quarantined newcomer replace the older session.
    pub const REPLACE: &str = "quilt:replace";
    /// Tool to manager: adopt an unadopted station.
    pub const ADOPT: &str = "quilt:adopt";
    /// Tool to manager: apply (or dry-run) a fleet file. Streams progress.
    pub const APPLY: &str = "quilt:apply";
    /// Tool to manager: make an earlier configuration of a station desired again.
    pub const ROLLBACK: &str = "quilt:rollback";
    /// Tool to manager: a station's desired configurations, newest first.
    pub const HISTORY: &str = "quilt:history";
    /// Tool to manager: which instances a target means.
    pub const RESOLVE: &str = "quilt:resolve";
    /// Tool to manager: what a selector of instances leaves out, [`Resolve`](super::Resolve) for [`LeftOut`](super::LeftOut).
    pub const LEFT_OUT: &str = "quilt:left_out";
    /// Tool to manager: what happened, and what happens.
    pub const EVENTS: &str = "quilt:events";
    /// Tool to manager: connected tools.
    pub const CLIENTS: &str = "quilt:clients";
    /// What a tool may ask the manager for without types of its own, as `quiltctl call manager` does; without the group.
    pub const OF_MANAGER: [&str; 12] = [
        "stations", "clients", "resolve", "history", "rollback", "forget", "adopt", "replace", "renew", "control",
        "apply", "events",
    ];
}
