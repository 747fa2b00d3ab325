//! The flags that every daemon has.

use std::path::PathBuf;

use clap::Args;

use crate::log;

/// Flags of a daemon, whichever it is; each is an environment variable and a key of its section as well.
#[derive(Args, Debug, Clone, Default)]
pub struct DaemonArgs {
    /// Configuration file, instead of quilt.toml in /etc/quilt or $QUILT_CFG_DIR
    #[arg(long, env = "QUILT_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Folder for everything that must survive a restart
    #[arg(long, env = "QUILT_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// File for the log, instead of standard error
    #[arg(long, env = "QUILT_LOG_FILE", value_name = "FILE")]
    pub log_file: Option<PathBuf>,
    /// File that holds the process id while the daemon runs
    #[arg(long, env = "QUILT_PID_FILE", value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// What to log: off, error, warn, info, debug, trace, or a filter such as quilt_net=debug,info
    #[arg(long, env = "QUILT_LOG_LEVEL", value_name = "LEVEL", value_parser = log::check_level)]
    pub log_level: Option<String>,
}

impl DaemonArgs {
    /// Only a data folder.
    pub fn with_data_dir(data_dir: impl Into<PathBuf>) -> Self {
        Self { data_dir: Some(data_dir.into()), ..Self::default() }
    }
}
