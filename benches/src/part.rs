//! The processes a measurement is made of: started as children of this program, known by one line they print.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context as _;
use quilt_core::daemon::DaemonArgs;
use quilt_manager::{Manager, ManagerArgs};
use quilt_station::{Station, StationArgs};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

/// A child that is this program in another part. Ends when dropped.
pub(crate) struct Part {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    input: ChildStdin,
}

impl Part {
    /// Starts a part.
    pub(crate) fn start(arguments: &[&str]) -> anyhow::Result<Self> {
        Self::of(&std::env::current_exe()?, arguments)
    }

    fn of(program: &Path, arguments: &[&str]) -> anyhow::Result<Self> {
        let mut command = Command::new(program);
        // Its standard input tells a part when to end, also if this program is killed.
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        command.env("QUILT_CFG_DIR", "/nonexistent");
        let mut child = command.spawn()?;
        let lines = BufReader::new(child.stdout.take().context("it was piped")?).lines();
        let input = child.stdin.take().context("it was piped")?;
        Ok(Self { child, lines, input })
    }

    /// Tells it something, in one line.
    pub(crate) async fn tell(&mut self, line: &str) -> anyhow::Result<()> {
        Ok(self.input.write_all(format!("{line}\n").as_bytes()).await?)
    }

    fn pid(&self) -> anyhow::Result<u32> {
        self.child.id().context("a part of the measurement ended early")
    }

    /// How long its threads have run, as the scheduler counts it.
    pub(crate) fn cpu(&self) -> anyhow::Result<Duration> {
        let mut ran = 0;
        for task in std::fs::read_dir(format!("/proc/{}/task", self.pid()?))? {
            // A thread may end meanwhile.
            let Ok(figures) = std::fs::read_to_string(task?.path().join("schedstat")) else { continue };
            ran += figures.split_whitespace().next().context("schedstat has three figures")?.parse::<u64>()?;
        }
        Ok(Duration::from_nanos(ran))
    }

    /// Waits until it does little: less than a twentieth of a core for 3 s, which is longer than anything waits that a change
    /// leaves to do.
    pub(crate) async fn until_calm(&self) -> anyhow::Result<()> {
        const LOOK: Duration = Duration::from_secs(3);
        for _ in 0..20 {
            let before = self.cpu()?;
            tokio::time::sleep(LOOK).await;
            if self.cpu()? - before < LOOK / 20 {
                return Ok(());
            }
        }
        anyhow::bail!("a part of the measurement does not come to rest")
    }

    /// The next line it prints.
    pub(crate) async fn line(&mut self) -> anyhow::Result<String> {
        self.lines.next_line().await?.context("a part of the measurement ended early")
    }

    /// The next line that is this one.
    pub(crate) async fn until(&mut self, wanted: &str) -> anyhow::Result<()> {
        while self.line().await? != wanted {}
        Ok(())
    }

    /// Its resident memory in KiB.
    pub(crate) fn memory_kib(&self) -> anyhow::Result<f64> {
        memory_kib(self.pid()?)
    }

    /// The most resident memory that it had so far, in KiB.
    pub(crate) fn peak_memory_kib(&self) -> anyhow::Result<f64> {
        status_kib(self.pid()?, "VmHWM:")
    }

    /// Ends it at once.
    pub(crate) async fn kill(mut self) -> anyhow::Result<()> {
        Ok(self.child.kill().await?)
    }
}

/// A process's resident memory in KiB.
pub(crate) fn memory_kib(pid: u32) -> anyhow::Result<f64> {
    status_kib(pid, "VmRSS:")
}

fn status_kib(pid: u32, field: &'static str) -> anyhow::Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)).context(field)?;
    Ok(line.trim().trim_end_matches("kB").trim().parse()?)
}

/// tarpc and NATS, in a program of their own.
pub(crate) struct Peers {
    program: PathBuf,
}

impl Peers {
    /// Builds the program of the peers, which nothing else needs.
    pub(crate) fn build() -> anyhow::Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let target = root.join("../target/peers");
        let built = std::process::Command::new("cargo")
            .args(["build", "--release", "--locked", "--quiet", "--manifest-path"])
            .arg(root.join("peers/Cargo.toml"))
            .arg("--target-dir")
            .arg(&target)
            .status()?;
        anyhow::ensure!(built.success(), "the peers do not build; --no-peers does without them");
        Ok(Self { program: target.join("release/quilt-peers") })
    }

    pub(crate) fn start(&self, arguments: &[&str]) -> anyhow::Result<Part> {
        Part::of(&self.program, arguments)
    }

    /// A NATS server, whoever answers, and whoever asks.
    pub(crate) async fn nats(&self) -> anyhow::Result<(Part, Part, Part)> {
        // It takes no port of its own choice and prints nothing that is made for programs.
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port().to_string();
        let server = Part::of(Path::new("nats-server"), &["-a", "127.0.0.1", "-p", &port, "-l", "/dev/null"]);
        let server = server.context("nats-server, from the distribution's package; --no-peers does without")?;
        let url = format!("nats://127.0.0.1:{port}");
        while tokio::net::TcpStream::connect(&url[7..]).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let mut responder = self.start(&["nats-serve", &url])?;
        responder.line().await?;
        let mut caller = self.start(&["nats-call", &url])?;
        caller.line().await?;
        Ok((server, responder, caller))
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
    Ok((hosted(folder.path(), "127.0.0.1:0").await?, folder))
}

async fn hosted(folder: &Path, listen: &str) -> anyhow::Result<Manager> {
    let args = ManagerArgs {
        daemon: DaemonArgs::with_data_dir(folder),
        listen: Some(listen.into()),
        http: Some("127.0.0.1:0".into()),
    };
    Manager::start(&args.resolve()?).await
}

/// A manager; prints where it listens. Its data goes away with it unless it is given a folder.
pub(crate) async fn manager(listen: &str, data_dir: Option<PathBuf>) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let manager = hosted(data_dir.as_deref().unwrap_or(folder.path()), listen).await?;
    println!("{}", manager.protocol_addr());
    until_told().await
}

/// Real stations with the built-in roles, in one process; prints when they have started.
pub(crate) async fn stations(manager: &str, numbers: Range<usize>, plugin_dir: Vec<PathBuf>) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let mut stations = Vec::new();
    for number in numbers {
        let args = StationArgs {
            daemon: DaemonArgs::with_data_dir(folder.path().join(number.to_string())),
            manager: vec![manager.into()],
            name: Some(format!("bench-{number}")),
            plugin_dir: plugin_dir.clone(),
            ..StationArgs::default()
        };
        stations.push(Station::start(args.resolve()?).await?);
    }
    println!("started");
    until_told().await
}
