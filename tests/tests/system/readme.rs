//! Every command of the README, in its order, as a reader types them: on a coordinator and on two stations, each with a network, a
//! host name, processes, `/etc` and `/var/lib` of its own. What is read is the README itself.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use quilt_tests::{Daemon, World, plugins};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

const README: &str = include_str!("../../../README.md");
const COORDINATOR: &str = "coordinator";
const STATIONS: [&str; 2] = ["cam-1", "cam-2"];

/// What is not run: the command is how this test is run.
const NOT_RUN: &str = "cargo test --workspace";

/// How long a command may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A fenced block.
struct Block {
    language: &'static str,
    chapter: &'static str,
    text: String,
}

fn blocks() -> Vec<Block> {
    let (mut blocks, mut chapter, mut open) = (Vec::new(), "", None::<Block>);
    for line in README.lines() {
        match (&mut open, line.strip_prefix("```")) {
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (Some(block), None) => block.text += &format!("{line}\n"),
            (None, Some(language)) => open = Some(Block { language, chapter, text: String::new() }),
            (None, None) => chapter = line.strip_prefix("## ").unwrap_or(chapter),
        }
    }
    blocks
}

/// A machine of its own, gone with everything that runs on it when this is dropped, or when the test is killed.
struct Host {
    name: &'static str,
    init: Child,
    /// Its first process.
    pid: String,
}

impl Host {
    async fn start(folder: &Path, name: &'static str, hosts: &str) -> Self {
        let folder = folder.join("hosts").join(name);
        fs::create_dir_all(folder.join("var")).unwrap();
        quilt_tests::copy(Path::new("/etc"), &folder.join("etc"));
        let _ = fs::remove_dir_all(folder.join("etc/quilt"));
        fs::write(folder.join("etc/hosts"), hosts).unwrap();
        let begin = "read -r pid rest < /proc/self/stat && mount --bind \"$1/etc\" /etc && mount --bind \"$1/var\" /var/lib \
                     && mount -t proc proc /proc && hostname \"$2\" && ip link set lo up && echo \"pid $pid\" && cat";
        // Ends when its input does.
        let mut init = Command::new("unshare")
            .args(["--net", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private"])
            .args(["sh", "-c", begin, "sh"])
            .arg(&folder)
            .arg(name)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("`unshare`, of util-linux");
        let mut lines = BufReader::new(init.stdout.take().unwrap()).lines();
        let line = lines.next_line().await.unwrap().unwrap_or_default();
        let pid = line.strip_prefix("pid ").unwrap_or_else(|| panic!("no namespaces for {name}; this test needs root"));
        Self { name, pid: pid.to_owned(), init }
    }

    /// Ends it. Nothing of it runs any more afterwards.
    async fn end(mut self) {
        drop(self.init.stdin.take());
        let ended = tokio::time::timeout(PATIENCE, self.init.wait()).await;
        ended.expect("it ends with its input").unwrap();
    }

    /// A command line there, of a shell that has found the binaries under test.
    fn shell(&self, folder: &Path, line: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--net", "--uts", "--mount", "--pid", "--target", &self.pid, "sh", "-c"]);
        command.arg("cd \"$1\" && eval \"$2\"").arg("sh").arg(folder).arg(line);
        let here = std::env::current_exe().unwrap();
        let binaries = here.parent().and_then(Path::parent).unwrap();
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:{path}", binaries.display())).stdin(Stdio::null()).kill_on_drop(true);
        for (variable, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"QUILT_")) {
            command.env_remove(variable);
        }
        command
    }

    /// Changes its network.
    async fn ip(&self, arguments: &str) {
        let mut command = Command::new("nsenter");
        command.args(["--net", "--target", &self.pid, "ip"]).args(arguments.split_whitespace());
        let done = command.output().await.expect("`nsenter`, of util-linux");
        assert!(done.status.success(), "ip {arguments} on {}: {done:?}", self.name);
    }
}

/// The README's reader.
struct Reader {
    /// What goes on in other terminals.
    running: Vec<Daemon>,
    hosts: Vec<Host>,
    /// Where the next command is typed.
    folder: PathBuf,
    fleet_file: PathBuf,
    typed: usize,
    /// The last to be dropped: its folder holds all that the hosts write.
    world: World,
}

impl Reader {
    async fn new() -> Self {
        let world = World::empty();
        let addresses = [COORDINATOR].iter().chain(&STATIONS).zip(1..);
        let lines: Vec<_> = addresses.map(|(name, number)| format!("10.0.0.{number} {name}\n")).collect();
        let mut hosts = Vec::new();
        for name in [COORDINATOR].into_iter().chain(STATIONS) {
            hosts.push(Host::start(world.folder(), name, &format!("127.0.0.1 localhost\n{}", lines.concat())).await);
        }
        let [coordinator, stations @ ..] = &hosts[..] else { unreachable!("there are three") };
        coordinator.ip("link add switch type bridge").await;
        coordinator.ip("addr add 10.0.0.1/24 dev switch").await;
        coordinator.ip("link set switch up").await;
        for (station, number) in stations.iter().zip(2..) {
            let Host { name, pid, .. } = station;
            coordinator.ip(&format!("link add {name} type veth peer name eth0 netns {pid}")).await;
            coordinator.ip(&format!("link set {name} master switch up")).await;
            station.ip(&format!("addr add 10.0.0.{number}/24 dev eth0")).await;
            station.ip("link set eth0 up").await;
        }
        // The README is read in quilt's own tree first.
        let folder = plugins::root().to_owned();
        let fleet_file = world.folder().join("fleet.toml");
        Self { world, hosts, folder, fleet_file, running: Vec::new(), typed: 0 }
    }

    fn host(&self, name: &str) -> &Host {
        self.hosts.iter().find(|host| host.name == name).unwrap_or_else(|| panic!("there is no host {name}"))
    }

    /// Types a line of the README. Its comment says where, and which exit code to expect.
    async fn types(&mut self, line: &str) {
        let (command, comment) = line.split_once(" # ").unwrap_or((line, ""));
        let command = command.trim().replace("cargo run --release --bin quiltctl --", "quiltctl");
        self.typed += 1;
        if let Some(folder) = command.strip_prefix("cd ") {
            self.folder.push(folder);
            return;
        }
        // Instead of building here: what is built is shared with another test.
        let is_built = matches!(&*command, "cargo test" | "cargo build --release") && self.folder.ends_with("camera");
        if is_built {
            let folder = self.folder.clone();
            tokio::task::spawn_blocking(move || plugins::build_as_author(&folder, "camera")).await.unwrap();
            return;
        }
        let command = command.replace("cargo run --example call --", "target/release/examples/call");
        let places: Vec<_> = match comment.rsplit_once("on ") {
            Some((_, "every host")) => STATIONS.to_vec(),
            Some((_, "the coordinator")) => vec![COORDINATOR],
            Some((_, host)) if STATIONS.contains(&host) => vec![host],
            _ => vec![COORDINATOR],
        };
        for place in places {
            let mut shell = self.host(place).shell(&self.folder, &command);
            let ready = [
                ("quilt-manager", "listening protocol "),
                ("quilt-station", "station started"),
                ("quiltctl up", "Ctrl-C"),
            ];
            if let Some((_, ready)) = ready.iter().find(|(program, _)| command.starts_with(program)) {
                let mut daemon = Daemon::start(shell).await;
                daemon.line_after(ready).await;
                self.running.push(daemon);
            } else if command.ends_with(" -f") {
                let mut following = shell.stdout(Stdio::piped()).spawn().unwrap();
                let mut lines = BufReader::new(following.stdout.take().unwrap()).lines();
                let line = tokio::time::timeout(PATIENCE, lines.next_line()).await.expect("there is a line").unwrap();
                assert!(line.is_some(), "{command} shows nothing");
                drop(lines);
                assert!(following.wait().await.unwrap().success(), "{command}");
            } else {
                let expected = comment.split_once("exit code ").map_or(0, |(_, code)| code[..1].parse().unwrap());
                let output = tokio::time::timeout(PATIENCE, shell.output()).await.expect("it ends").unwrap();
                assert_eq!(output.status.code(), Some(expected), "{command} on {place}: {output:?}");
                if command.starts_with("cp ") {
                    self.until_offered("camera").await;
                }
            }
        }
    }

    /// Ctrl-C in the other terminals.
    async fn interrupts(&mut self) {
        for host in &self.hosts {
            let _ = host.shell(Path::new("/"), "pkill -INT -x quiltctl").status().await;
        }
        for daemon in self.running.drain(..) {
            assert!(daemon.wait().await.success());
        }
    }

    /// Makes the janitor of the README a plugin of `cam-1`, as the README says.
    async fn ships_the_janitor(&self, source: &str) {
        let export = "quilt_plugin_api::export_plugin!(Janitor);";
        assert!(README.contains(export));
        let source = format!("{source}\n{export}\n");
        let building = tokio::task::spawn_blocking(move || plugins::from_source("janitor", &source));
        let library = building.await.unwrap();
        let ship = "mkdir -p /etc/quilt/plugins /var/lib/recordings && touch -d 2001-01-01 /var/lib/recordings/old \
                    && cp libjanitor.so /etc/quilt/plugins/";
        assert!(self.host("cam-1").shell(library.parent().unwrap(), ship).status().await.unwrap().success());
        self.until_offered("janitor").await;
    }

    /// A plugin that was copied into a folder is offered within two seconds.
    async fn until_offered(&self, role: &str) {
        let looking = async {
            let mut ticks = tokio::time::interval(Duration::from_millis(100));
            loop {
                ticks.tick().await;
                let mut roles = self.host(COORDINATOR).shell(Path::new("/"), "quiltctl roles cam-1 -o json");
                let roles = roles.output().await.unwrap();
                if String::from_utf8_lossy(&roles.stdout).contains(&format!("{role:?}")) {
                    return;
                }
            }
        };
        tokio::time::timeout(PATIENCE, looking).await.unwrap_or_else(|_| panic!("{role} is not offered"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_command_of_the_readme_works_in_its_order_on_three_hosts() {
    let mut reader = Reader::new().await;
    let mut chapter = "";
    let mut janitor = String::new();
    for block in blocks() {
        if block.chapter == "A fleet" && chapter != block.chapter {
            reader.interrupts().await;
            reader.folder = reader.world.folder().to_owned();
        }
        chapter = block.chapter;
        match block.language {
            "toml" => {
                // What comes later is added to the file.
                let before = fs::read_to_string(&reader.fleet_file).unwrap_or_default();
                fs::write(&reader.fleet_file, format!("{before}\n{}", block.text)).unwrap();
            }
            "sh" => {
                if block.text.contains("janitor") {
                    reader.ships_the_janitor(&janitor).await;
                }
                for line in block.text.lines().filter(|line| !line.is_empty() && *line != NOT_RUN) {
                    reader.types(line).await;
                }
            }
            "rust" if block.text.contains("Sweep") => janitor = block.text,
            _ => {}
        }
    }
    assert!(README.contains(NOT_RUN) && reader.typed > 20, "{} commands", reader.typed);
    let coordinator = reader.host(COORDINATOR);
    let stations = coordinator.shell(Path::new("/"), "quiltctl stations name=cam-* -o json").output().await.unwrap();
    let stations: serde_json::Value = serde_json::from_slice(&stations.stdout).unwrap();
    for station in STATIONS {
        let view = stations.as_array().unwrap().iter().find(|view| view["name"] == station).unwrap();
        assert_eq!((&view["state"], &view["hostname"]), (&"connected".into(), &station.into()));
        let count = view["instances"].as_array().unwrap().len();
        assert_eq!(count, if station == "cam-1" { 5 } else { 2 }, "{view}");
    }
    let camera = coordinator.shell(Path::new("/"), "quiltctl plugin list cam-2").output().await.unwrap();
    assert!(String::from_utf8_lossy(&camera.stdout).contains("camera"), "it was pushed: {camera:?}");
    for host in reader.hosts.drain(..) {
        host.end().await;
    }
}
