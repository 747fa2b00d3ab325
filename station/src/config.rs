//! What a station is told: built-in values, then files, then environment, then flags.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use quilt_core::daemon::DaemonArgs;
use quilt_core::{address, files, settings};
use quilt_protocol::{Name, labels};
use serde::Deserialize;

use crate::plugins::Trust;

/// Flags of `quilt-station`; each is an environment variable and a key of `[station]` as well.
#[derive(Args, Debug, Clone, Default)]
pub struct StationArgs {
    /// What every daemon takes.
    #[command(flatten)]
    pub daemon: DaemonArgs,
    /// Where the manager listens; several are tried in turn
    #[arg(long, env = "QUILT_MANAGER", value_name = "HOST:PORT", value_delimiter = ',')]
    pub manager: Vec<String>,
    /// The name to ask for; the host name unless given
    #[arg(long, env = "QUILT_NAME")]
    pub name: Option<String>,
    /// A label of this station
    #[arg(long, env = "QUILT_LABEL", value_name = "K=V", value_delimiter = ',')]
    pub label: Vec<String>,
    /// A role that this station refuses
    #[arg(long, env = "QUILT_BLOCK", value_name = "ROLE", value_delimiter = ',')]
    pub block: Vec<String>,
    /// How long the folder of a removed instance is kept, with its log and state; 30 days unless given
    #[arg(long, env = "QUILT_KEEP_REMOVED", value_name = "TIME", value_parser = humantime::parse_duration)]
    pub keep_removed: Option<Duration>,
    /// A folder of plugins, watched; by default `plugins` in the configuration folder
    #[arg(long, env = "QUILT_PLUGIN_DIR", value_name = "DIR", value_delimiter = ',')]
    pub plugin_dir: Vec<PathBuf>,
    /// Which plugins to load: any, owner (only root and this user can change them), or a sha256 of one
    #[arg(long, env = "QUILT_PLUGIN_TRUST", value_name = "any|owner|SHA256", value_delimiter = ',')]
    pub plugin_trust: Vec<String>,
}

/// How long the folder of a removed instance is kept by default.
const KEEP_REMOVED: Duration = Duration::from_secs(30 * 86_400);

/// `[station]` of a configuration file.
#[derive(Deserialize, Debug, Default)]
#[serde(default, deny_unknown_fields)]
struct Section {
    data_dir: Option<PathBuf>,
    manager: Option<OneOrMany>,
    name: Option<Name>,
    label: BTreeMap<String, String>,
    block: Vec<Name>,
    plugin_dir: Vec<PathBuf>,
    plugin_trust: Vec<String>,
    #[serde(with = "humantime_serde")]
    keep_removed: Option<Duration>,
    log_file: Option<PathBuf>,
    pid_file: Option<PathBuf>,
    #[serde(deserialize_with = "quilt_core::log::deserialize_level")]
    log_level: Option<String>,
}

#[derive(Deserialize, Debug)]
#[serde(untagged, expecting = "expected HOST:PORT, or a list of them")]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

/// A line of TOML for each key of [`Section`].
const EXAMPLES: [&str; 10] = [
    "manager = \"coordinator:7440\"",
    "name = \"cam-1\"",
    "label = { room = \"a\" }",
    "block = [\"process\"]",
    "plugin_dir = [\"/etc/quilt/plugins\"]",
    "plugin_trust = [\"owner\"]",
    "data_dir = \"/var/lib/quilt\"",
    "log_file = \"/var/log/quilt/station.log\"",
    "pid_file = \"/run/quilt-station.pid\"",
    "log_level = \"info\"",
];

/// What a station is told, checked and complete.
#[derive(Debug, Clone)]
pub struct StationConfig {
    /// Folder for everything that must survive a restart; the station's own is `station` in it.
    pub data_dir: PathBuf,
    /// Folder of drop-in files with local instances.
    pub roles_dir: PathBuf,
    /// Where the manager listens.
    pub managers: Vec<String>,
    /// The name to ask for.
    pub name: Name,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Roles to refuse.
    pub blocked: Vec<Name>,
    /// Folders of plugins.
    pub plugin_dirs: Vec<PathBuf>,
    /// Which plugins are loaded.
    pub trust: Trust,
    /// How long the folder of a removed instance is kept.
    pub keep_removed: Duration,
    /// File for the log.
    pub log_file: Option<PathBuf>,
    /// File for the process id.
    pub pid_file: Option<PathBuf>,
    /// What to log.
    pub log_level: String,
}

impl StationArgs {
    /// Adds what the files say and checks everything.
    ///
    /// # Errors
    ///
    /// A file cannot be read or has an unknown key; a name, label or role is malformed.
    pub fn resolve(self) -> anyhow::Result<StationConfig> {
        let file: Section = settings::read(self.daemon.config.as_deref(), "station", &EXAMPLES)?;
        let or = |flags: Vec<String>, file: Vec<String>| if flags.is_empty() { file } else { flags };
        let managers = match file.manager {
            Some(OneOrMany::One(manager)) => manager.split(',').map(str::to_owned).collect(),
            Some(OneOrMany::Many(managers)) => managers,
            None => Vec::new(),
        };
        let mut managers = or(self.manager, managers);
        managers.retain(|manager| !manager.trim().is_empty());
        if managers.is_empty() {
            managers.push("127.0.0.1".into());
        }
        let managers: Result<Vec<_>, _> =
            managers.iter().map(|manager| address::complete(manager, address::PROTOCOL_PORT)).collect();
        let mut labels = file.label;
        for label in &self.label {
            let Some((key, value)) = label.split_once('=') else {
                bail!("--label {label:?}: expected KEY=VALUE, for example room=a");
            };
            labels.insert(key.into(), value.into());
        }
        labels.keys().try_for_each(|key| labels::check_key(key)).map_err(anyhow::Error::msg).context("a label")?;
        let table = labels.iter().map(|(key, value)| (key.as_str(), value.as_str()));
        labels::check_table("label", table).map_err(anyhow::Error::msg)?;
        let name = match self.name {
            Some(name) => name.parse().context("the station's name")?,
            None => file.name.unwrap_or_else(host_name),
        };
        let blocked: Result<Vec<Name>, _> = self.block.iter().map(|role| role.parse()).collect();
        let blocked = blocked.context("a role to block")?;
        let trust = or(self.plugin_trust, file.plugin_trust);
        let mut plugin_dirs = if self.plugin_dir.is_empty() { file.plugin_dir } else { self.plugin_dir };
        if plugin_dirs.is_empty() {
            plugin_dirs.push(settings::default_plugin_dir());
        }
        let data_dir = self.daemon.data_dir.or(file.data_dir).unwrap_or_else(files::default_data_dir);
        Ok(StationConfig {
            // Keepers leave the folder that the station was started in.
            data_dir: std::path::absolute(&data_dir).with_context(|| data_dir.display().to_string())?,
            roles_dir: settings::config_dir().join("roles.d"),
            managers: managers.map_err(anyhow::Error::msg).context("a manager's address")?,
            name,
            labels,
            blocked: if blocked.is_empty() { file.block } else { blocked },
            plugin_dirs,
            trust: Trust::read(&trust)?,
            keep_removed: self.keep_removed.or(file.keep_removed).unwrap_or(KEEP_REMOVED),
            log_file: self.daemon.log_file.or(file.log_file),
            pid_file: self.daemon.pid_file.or(file.pid_file),
            log_level: self.daemon.log_level.or(file.log_level).unwrap_or_else(|| "info".into()),
        })
    }
}

/// The host name as far as it makes a name; characters that do not fit become `-`.
fn host_name() -> Name {
    let host = hostname::get().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let fits = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
    let host: String = host.chars().map(fits).take(quilt_protocol::names::NAME_MAX).collect();
    let host = host.trim_start_matches(['.', '-']);
    host.parse().unwrap_or_else(|_| "station".parse().expect("a fixed name is a name"))
}
