//! What a manager is told: built-in values, then files, then environment, then flags.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use quilt_core::daemon::DaemonArgs;
use quilt_core::{address, files, settings};
use serde::Deserialize;

/// Flags of `quilt-manager`; each is an environment variable and a key of `[manager]` as well.
#[derive(Args, Debug, Clone, Default)]
pub struct ManagerArgs {
    /// What every daemon takes.
    #[command(flatten)]
    pub daemon: DaemonArgs,
    /// Where stations and tools connect; port 0 for any
    #[arg(long, env = "QUILT_LISTEN", value_name = "HOST:PORT")]
    pub listen: Option<String>,
    /// Where health, readiness and metrics are served
    #[arg(long, env = "QUILT_HTTP", value_name = "HOST:PORT")]
    pub http: Option<String>,
}

/// The manager's own folder in the data folder.
pub(crate) const FOLDER: &str = "manager";

/// `[manager]` of a configuration file.
#[derive(Deserialize, Debug, Default)]
#[serde(default, deny_unknown_fields)]
struct Section {
    data_dir: Option<PathBuf>,
    listen: Option<String>,
    http: Option<String>,
    log_file: Option<PathBuf>,
    pid_file: Option<PathBuf>,
    #[serde(deserialize_with = "quilt_core::log::deserialize_level")]
    log_level: Option<String>,
}

/// A line of TOML for each key of [`Section`].
const EXAMPLES: [&str; 6] = [
    "listen = \"0.0.0.0:7440\"",
    "http = \"127.0.0.1:7441\"",
    "data_dir = \"/var/lib/quilt\"",
    "log_file = \"/var/log/quilt/manager.log\"",
    "pid_file = \"/run/quilt-manager.pid\"",
    "log_level = \"info\"",
];

/// What a manager is told, complete.
#[derive(Debug, Clone)]
pub struct ManagerConfig {
    /// Folder for everything that must survive a restart; the manager's own is `manager` in it.
    pub data_dir: PathBuf,
    /// Where stations and tools connect.
    pub listen: String,
    /// Where health, readiness and metrics are served.
    pub http: String,
    /// File for the log.
    pub log_file: Option<PathBuf>,
    /// File for the process id.
    pub pid_file: Option<PathBuf>,
    /// What to log.
    pub log_level: String,
}

impl ManagerConfig {
    /// The manager's own folder.
    pub fn folder(&self) -> PathBuf {
        self.data_dir.join(FOLDER)
    }
}

impl ManagerArgs {
    /// Adds what the files say.
    ///
    /// # Errors
    ///
    /// A file cannot be read or has an unknown key; an address is malformed.
    pub fn resolve(self) -> anyhow::Result<ManagerConfig> {
        let file: Section = settings::read(self.daemon.config.as_deref(), "manager", &EXAMPLES)?;
        Ok(ManagerConfig {
            data_dir: self.daemon.data_dir.or(file.data_dir).unwrap_or_else(files::default_data_dir),
            listen: complete("--listen", self.listen.or(file.listen), address::PROTOCOL_PORT)?,
            http: complete("--http", self.http.or(file.http), address::HTTP_PORT)?,
            log_file: self.daemon.log_file.or(file.log_file),
            pid_file: self.daemon.pid_file.or(file.pid_file),
            log_level: self.daemon.log_level.or(file.log_level).unwrap_or_else(|| "info".into()),
        })
    }
}

fn complete(flag: &'static str, address: Option<String>, port: u16) -> anyhow::Result<String> {
    let address = address.as_deref().unwrap_or("127.0.0.1");
    address::complete(address, port).map_err(anyhow::Error::msg).context(flag)
}
