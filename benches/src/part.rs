//! The processes a measurement is made of: started as children of this program, known by one line they print.

use std::path::PathBuf;
use std::process::Stdio;

use anyhow::Context as _;
use quilt_core::daemon::DaemonArgs;
use quilt_manager::{Manager, ManagerArgs};
use quilt_station::{Station, StationArgs};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

/// A child that is this program in another part. Ends when dropped.
pub(crate) struct Part {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Part {
    /// Starts a part.
    pub(crate) fn start(arguments: &[&str]) -> anyhow::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        // Its standard input tells a part when to end, also if this program is killed.
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        command.env("QUILT_CFG_DIR", "/nonexistent");
        let mut child = command.spawn()?;
        let lines = BufReader::new(child.stdout.take().context("it was piped")?).lines();
        Ok(Self { child, lines })
    }

    /// The next line it prints.
    pub(crate) async fn line(&mut self) -> anyhow::Result<String> {
        self.lines.next_line().await?.context("a part of the measurement ended early")
    }

    /// Its resident memory in KiB.
    pub(crate) fn memory_kib(&self) -> anyhow::Result<f64> {
        let pid = self.child.id().context("a part of the measurement ended early")?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
        Ok(line.trim().trim_end_matches("kB").trim().parse()?)
    }
}

/// Waits until whoever started this part ends.
pub(crate) async fn until_told() -> anyhow::Result<()> {
    tokio::io::stdin().read_to_end(&mut Vec::new()).await?;
    Ok(())
}

/// A manager in this process, and the folder that it lives in.
pub(crate) async fn host() -> anyhow::Result<(Manager, tempfile::TempDir)> {
    let folder = tempfile::tempdir()?;
    let args = ManagerArgs {
        daemon: DaemonArgs::with_data_dir(folder.path()),
        listen: Some("127.0.0.1:0".into()),
        http: Some("127.0.0.1:0".into()),
    };
    Ok((Manager::start(&args.resolve()?).await?, folder))
}

/// A manager; prints where it listens.
pub(crate) async fn manager() -> anyhow::Result<()> {
    let (manager, _folder) = host().await?;
    println!("{}", manager.protocol_addr());
    until_told().await
}

/// A real station with the built-in roles; prints when it has started.
pub(crate) async fn station(manager: &str, plugin_dir: Vec<PathBuf>) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let args = StationArgs {
        daemon: DaemonArgs::with_data_dir(folder.path()),
        manager: vec![manager.into()],
        name: Some("bench".into()),
        plugin_dir,
        ..StationArgs::default()
    };
    let _station = Station::start(args.resolve()?).await?;
    println!("started");
    until_told().await
}
