//! A manager and stations as real processes in a folder of their own, started again by the driver whenever they end, as a service
//! manager does.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use quilt_client::Client;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::abilities::Abilities;
use crate::fleet::station_name;
use crate::processes;
use crate::schedule::Target;

/// How long after its end a daemon is started again, unless a blow says otherwise.
const RESTART_MS: u64 = 200;
/// How much a data folder of its own may take.
const SPACE: &str = "size=24m,mode=0700";
/// How long the manager may take to say whether it is ready.
const READY_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a client waits for an answer.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(5);
/// Ports are taken from here: below those that the kernel gives to outgoing connections.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// A daemon that is started again whenever it ends.
pub(crate) struct Daemon {
    pub(crate) data: PathBuf,
    /// The control group of it and all that it starts.
    pub(crate) group: Option<PathBuf>,
    /// Says how long each wait for the disk takes, while it is there.
    pub(crate) slow_disk: PathBuf,
    /// Says by how many seconds its time of day is off, while it is there.
    pub(crate) clock: PathBuf,
    pid: watch::Receiver<Option<u32>>,
    down_ms: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Daemon {
    /// Its process, if there is one now.
    pub(crate) fn pid(&self) -> Option<u32> {
        *self.pid.borrow()
    }

    /// Waits until its process has ended. Cancel safe.
    pub(crate) async fn ended(&self) {
        let mut pid = self.pid.clone();
        // Nobody starts it again once its task is gone.
        let _ = pid.wait_for(Option::is_none).await;
    }

    /// Ends it with a signal; it is started again so many milliseconds after its end.
    pub(crate) fn end(&self, signal: Signal, down_ms: u64) {
        self.down_ms.store(down_ms, Ordering::Relaxed);
        if let Some(pid) = self.pid() {
            // It is a child that its task has not waited for yet.
            let _ = kill(Pid::from_raw(pid as i32), signal);
        }
    }
}

/// All of it. What is left of it ends when it is dropped.
pub(crate) struct Site {
    folder: PathBuf,
    groups: Option<PathBuf>,
    pub(crate) manager: Daemon,
    pub(crate) stations: Vec<Daemon>,
    address: String,
    http: String,
    mounts: Vec<PathBuf>,
}

impl Site {
    /// Starts a manager and stations in a new folder.
    pub(crate) fn start(folder: &Path, stations: usize, abilities: &Abilities) -> anyhow::Result<Self> {
        for name in ["config", "logs", "journals", "files"] {
            std::fs::create_dir_all(folder.join(name))?;
        }
        let groups = abilities.groups.as_ref().map(|groups| groups.join(folder.file_name().unwrap_or_default()));
        let (protocol, http) = (free_port()?, free_port()?);
        let address = format!("127.0.0.1:{protocol}");
        let mut mounts = Vec::new();
        let mut daemon = |name: &str, binary: &str, arguments: &[&str]| -> anyhow::Result<Daemon> {
            let data = folder.join("data").join(name);
            std::fs::create_dir_all(&data)?;
            if abilities.space {
                nix::mount::mount(Some("quilt"), &data, Some("tmpfs"), nix::mount::MsFlags::empty(), Some(SPACE))
                    .with_context(|| format!("a tmpfs at {}", data.display()))?;
                mounts.push(data.clone());
            }
            let group = groups.as_ref().map(|groups| groups.join(name));
            if let Some(group) = &group {
                std::fs::create_dir_all(group)?;
            }
            let (slow_disk, clock) = (folder.join(format!("{name}.slow")), folder.join(format!("{name}.clock")));
            let command = {
                let (folder, group, data) = (folder.to_owned(), group.clone(), data.clone());
                let (slow_disk, clock) = (slow_disk.clone(), clock.clone());
                let arguments: Vec<_> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
                let (binary, shim) = (abilities.binary(binary)?, abilities.shim.clone());
                let log = folder.join(format!("logs/{name}"));
                move || -> anyhow::Result<Command> {
                    let log = OpenOptions::new().create(true).append(true).open(&log)?;
                    // It is in its group before it does anything.
                    let enter = "[ -z \"$0\" ] || echo $$ >\"$0/cgroup.procs\" || exit 1; exec \"$@\"";
                    let mut command = Command::new("sh");
                    command.args(["-c", enter]).arg(group.clone().unwrap_or_default()).arg(&binary);
                    command.arg("--data-dir").arg(&data).args(&arguments);
                    command.env("QUILT_CFG_DIR", folder.join("config")).env("PRESSURE_SLOW_DISK", &slow_disk);
                    command.env("PRESSURE_CLOCK", &clock);
                    if let Some(shim) = &shim {
                        command.env("LD_PRELOAD", shim);
                    }
                    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).kill_on_drop(true);
                    Ok(command)
                }
            };
            let (sender, pid) = watch::channel(None);
            let down_ms = Arc::new(AtomicU64::new(RESTART_MS));
            let task = tokio::spawn(keep(command, sender, down_ms.clone()));
            Ok(Daemon { data, group, slow_disk, clock, pid, down_ms, task })
        };
        let http = format!("127.0.0.1:{http}");
        let listen = ["--listen", &address, "--http", &http];
        let manager = daemon("manager", "quilt-manager", &listen)?;
        let stations = (0..stations).map(|number| {
            // Some know the manager by a name, which takes a look-up.
            let host = if number % 2 == 0 { "localhost" } else { "127.0.0.1" };
            let name = station_name(number);
            daemon(&name, "quilt-station", &["--manager", &format!("{host}:{protocol}"), "--name", &name])
        });
        let stations = stations.collect::<anyhow::Result<Vec<_>>>()?;
        Ok(Self { folder: folder.to_owned(), groups, manager, stations, address, http, mounts })
    }

    /// Its folder.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where programs keep their journals.
    pub(crate) fn journals(&self) -> PathBuf {
        self.folder.join("journals")
    }

    /// The daemon that something is taken from, if it is one.
    pub(crate) fn daemon(&self, target: &Target) -> Option<&Daemon> {
        match target {
            Target::Manager => Some(&self.manager),
            Target::Station(station) => self.stations.get(*station),
            Target::Keeper(..) => None,
        }
    }

    /// The state folder of an instance.
    pub(crate) fn state_folder(&self, station: usize, instance: &str) -> PathBuf {
        self.stations[station].data.join(format!("station/instances/process/{instance}/state"))
    }

    /// A client of its manager.
    pub(crate) async fn client(&self) -> anyhow::Result<Client> {
        Ok(Client::connect_within(&self.address, "pressure", CLIENT_TIMEOUT).await?)
    }

    /// A command of `quiltctl` to its manager.
    pub(crate) fn ctl(&self, abilities: &Abilities, arguments: &[&str]) -> anyhow::Result<Command> {
        let mut command = Command::new(abilities.binary("quiltctl")?);
        command.args(["--manager", &self.address, "--timeout", "5"]).args(arguments);
        command.env("QUILT_CFG_DIR", self.folder.join("config")).stdin(Stdio::null()).kill_on_drop(true);
        Ok(command)
    }

    /// Whether the manager says that it is ready.
    pub(crate) async fn is_ready(&self) -> bool {
        let asked = async {
            let mut stream = tokio::net::TcpStream::connect(&self.http).await?;
            stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await?;
            std::io::Result::Ok(answer.starts_with(b"HTTP/1.1 200"))
        };
        matches!(tokio::time::timeout(READY_TIMEOUT, asked).await, Ok(Ok(true)))
    }

    /// Ends everything. With `keep`, what is in data folders is kept beside the logs.
    pub(crate) async fn end(mut self, keep: bool) {
        self.end_processes().await;
        if keep && !self.mounts.is_empty() {
            let (data, kept) = (self.folder.join("data"), self.folder.join("kept"));
            let _ = std::process::Command::new("cp").arg("-a").arg(&data).arg(&kept).stderr(Stdio::null()).status();
        }
        self.mounts.drain(..).for_each(unmount);
        if !keep {
            let _ = std::fs::remove_dir_all(&self.folder);
        }
    }

    async fn end_processes(&mut self) {
        for daemon in self.stations.iter_mut().chain([&mut self.manager]) {
            // Killed with it, because it is killed on drop.
            daemon.task.abort();
            let _ = (&mut daemon.task).await;
        }
        kill_all(&self.folder);
        let mut ticks = tokio::time::interval(Duration::from_millis(20));
        for group in self.stations.iter().chain([&self.manager]).filter_map(|daemon| daemon.group.as_ref()) {
            // A group can be removed once the last of its processes is gone.
            for _ in 0..100 {
                if std::fs::remove_dir(group).is_ok() {
                    break;
                }
                ticks.tick().await;
            }
        }
        if let Some(groups) = &self.groups {
            let _ = std::fs::remove_dir(groups);
        }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        for daemon in self.stations.iter().chain([&self.manager]) {
            daemon.task.abort();
        }
        kill_all(&self.folder);
        self.mounts.drain(..).for_each(unmount);
    }
}

#[allow(clippy::needless_pass_by_value, reason = "it is gone afterwards")]
fn unmount(mount: PathBuf) {
    let _ = nix::mount::umount2(&mount, nix::mount::MntFlags::MNT_DETACH);
}

/// Kills all processes of a folder, again and again until none is left: a keeper may be just starting.
fn kill_all(folder: &Path) {
    for _ in 0..100 {
        let left = processes::below(folder);
        if left.is_empty() {
            return;
        }
        for process in left {
            let _ = kill(Pid::from_raw(process.pid as i32), Signal::SIGKILL);
        }
    }
}

/// Keeps a daemon running.
async fn keep(command: impl Fn() -> anyhow::Result<Command>, pid: watch::Sender<Option<u32>>, down_ms: Arc<AtomicU64>) {
    loop {
        if let Ok(mut child) = command().and_then(|mut command| Ok(command.spawn()?)) {
            pid.send_replace(child.id());
            let _ = child.wait().await;
            pid.send_replace(None);
        }
        tokio::time::sleep(Duration::from_millis(down_ms.swap(RESTART_MS, Ordering::Relaxed))).await;
    }
}

/// A port that nobody listens on now, and that the kernel gives to nobody by itself.
fn free_port() -> anyhow::Result<u16> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Another driver on this machine begins elsewhere.
    let begin = u16::try_from(std::process::id() % 97).unwrap_or(0) * 120;
    for _ in PORTS {
        let offset = begin.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % (PORTS.end - PORTS.start);
        let port = PORTS.start + offset;
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    anyhow::bail!("no port of {PORTS:?} is free")
}
