//! The manager's store is damaged, old, gone, or on a disk that is full, slow or broken: nothing acknowledged is lost without a word, and
//! stations do not care.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use nix::sys::signal::Signal;
use quilt_tests::{Fleet, Output, World, clock};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use crate::station_pressure::hanging_disk;

fn store(world: &World) -> PathBuf {
    world.folder().join("manager/manager/fleet.db")
}

/// `quilt-manager` with a verb or without, on the world's data folder, until it ends.
async fn manager(world: &World, arguments: &[&str]) -> Output {
    let mut command = world.command("quilt-manager");
    command.args(arguments).arg("--data-dir").arg(world.folder().join("manager"));
    if arguments.is_empty() {
        command.args(["--listen", &world.address, "--http", &world.http]);
    }
    let output = tokio::time::timeout(std::time::Duration::from_secs(30), command.output()).await;
    let output = output.expect("it ends").unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Output { code: output.status.code().unwrap_or(-1), out: text(output.stdout), err: text(output.stderr) }
}

/// Changes a database as a disk does: behind the back of its program.
fn damage(database: &Path, sql: &str) {
    let script = "import sqlite3, sys\ndb = sqlite3.connect(sys.argv[1])\nassert db.execute(sys.argv[2]).rowcount > 0\ndb.commit()";
    let done = std::process::Command::new("python3").args(["-c", script]).arg(database).arg(sql).status().unwrap();
    assert!(done.success(), "{sql}");
}

#[tokio::test]
async fn a_damaged_configuration_is_never_pushed_and_other_stations_are_not_disturbed() {
    let mut world = World::new().await;
    for name in ["cam-1", "cam-2"] {
        world.station(name, &[]).await;
    }
    let fleet = clock(&["cam-1", "cam-2"]).with("cam-1/counter/main", "start = 41\n");
    world.apply(fleet.text()).await.with_code(0);
    let pid = world.pid("cam-1/process/clock").await;
    world.end_manager(Signal::SIGTERM).await;
    damage(&store(&world), "UPDATE document SET content = replace(content, '41', '40') WHERE content LIKE '%41%'");
    world.start_manager().await;
    world
        .eventually("both are back", async |world| {
            world.stations().await.iter().filter(|station| station.state.name() == "connected").count() == 2
        })
        .await;
    let flags = world.show("cam-1").await.flags;
    assert!(flags.iter().any(|flag| flag.contains("table document") && flag.contains("fleet.db")), "{flags:?}");
    assert_eq!(world.show("cam-2").await.flags.len(), 1, "it has the same MAC, and no other trouble");
    let events = world.ctl(&["events", "-o", "jsonl"]).await.with_code(0).out;
    assert!(events.contains("store.damaged"), "{events}");
    // Other stations go on as ever.
    let other = world.fleet_file("other.toml", Fleet::new().with("cam-2/counter/more", "").text());
    world.ctl(&["apply", "-f", &other, "--wait", "20", "--settle", "0"]).await.with_code(0);
    // Nothing was pushed: it runs what it ran.
    assert_eq!(world.pid("cam-1/process/clock").await, pid);
    let value = world.ctl(&["call", "cam-1/counter/main", "value"]).await.with_code(0).out;
    assert!(value.contains("41"), "{value}");
    // Applied again, it is whole again.
    world.apply(fleet.text()).await.with_code(0);
    assert_eq!(world.show("cam-1").await.flags.len(), 1);
    assert_eq!(world.pid("cam-1/process/clock").await, pid);

    // A damaged entry: what other entries say is not taken for the whole.
    world.end_manager(Signal::SIGTERM).await;
    damage(&store(&world), "UPDATE entry SET json = replace(json, '41', '40') WHERE json LIKE '%41%'");
    world.start_manager().await;
    world
        .eventually("both are back", async |world| {
            world.stations().await.iter().filter(|station| station.state.name() == "connected").count() == 2
        })
        .await;
    let refused = world.ctl(&["apply", "-f", &other]).await.with_code(4).err;
    assert!(refused.contains("table entry") && refused.contains("fleet.toml"), "{refused}");
    assert_eq!(world.pid("cam-1/process/clock").await, pid);
    world.apply(fleet.text()).await.with_code(0);
    world.ctl(&["apply", "-f", &other]).await.with_code(0);
    assert_eq!(world.pid("cam-1/process/clock").await, pid);
}

#[tokio::test]
async fn case_14_a_store_that_is_cut_or_gone_is_refused_by_name_and_a_backup_brings_it_back() {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    world.apply(Fleet::new().with("cam-1/counter/one", "").text()).await.with_code(0);
    let backup = world.folder().join("backup.db").to_str().unwrap().to_owned();
    let made = manager(&world, &["backup", &backup]).await.with_code(0);
    assert!(made.out.contains("1 station, up to revision 1"), "{made:?}");
    manager(&world, &["backup", &backup]).await.with_code(1);
    let held = manager(&world, &["restore", &backup]).await.with_code(1);
    assert!(held.err.contains("in use by process"), "{held:?}");
    world.apply(Fleet::new().with("cam-1/counter/two", "").text()).await.with_code(0);
    world.end_manager(Signal::SIGKILL).await;

    let (database, log) = (store(&world), store(&world).with_extension("db-wal"));
    let whole = fs::read(&log).unwrap();
    fs::write(&log, &whole[..whole.len() / 3]).unwrap();
    let refused = manager(&world, &[]).await.with_code(1);
    for part in ["older than what was acknowledged", "fleet.db-wal", "revision 2", "quilt-manager restore"] {
        assert!(refused.err.contains(part), "{refused:?}");
    }
    // Only copied whole is it whole.
    fs::write(&log, &whole).unwrap();
    world.start_manager().await;
    world.until_state("cam-1/counter/two", "active").await;
    world.end_manager(Signal::SIGTERM).await;
    let bytes = fs::read(&database).unwrap();
    fs::write(&database, &bytes[..bytes.len() / 2]).unwrap();
    let refused = manager(&world, &[]).await.with_code(1);
    assert!(refused.err.contains("fleet.db") && refused.err.contains("restore"), "{refused:?}");
    fs::remove_file(&database).unwrap();
    let refused = manager(&world, &[]).await.with_code(1);
    assert!(refused.err.contains("it is gone") && refused.err.contains("up to revision 2"), "{refused:?}");

    let restored = manager(&world, &["restore", &backup]).await.with_code(0);
    assert!(restored.err.contains("revisions 2 to 2 are not in it"), "{restored:?}");
    world.start_manager().await;
    // What was applied after the backup runs on, and is not undone by it.
    world
        .eventually("cam-1 is unadopted", async |world| {
            world.stations().await.iter().any(|station| station.state.name() == "unadopted")
        })
        .await;
    assert!(world.instance("cam-1/counter/two").await.is_some());
    let adopted = world.ctl(&["adopt", "cam-1"]).await.with_code(0);
    assert!(adopted.err.contains("undoes this unless it is changed in /"), "{adopted:?}");
    world.apply(Fleet::new().with("cam-1/counter/three", "").text()).await.with_code(0);
}

#[tokio::test]
async fn a_store_that_is_deleted_under_its_manager_acknowledges_nothing_more() {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    world.apply(Fleet::new().with("cam-1/counter/one", "").text()).await.with_code(0);
    let (folder, aside) = (world.folder().join("manager/manager"), world.folder().join("aside"));
    fs::rename(&folder, &aside).unwrap();
    let file = world.fleet_file("two.toml", Fleet::new().with("cam-1/counter/two", "").text());
    let refused = world.ctl(&["apply", "-f", &file]).await.with_code(4);
    assert!(refused.err.contains("fleet.db: it was removed while the manager runs"), "{refused:?}");
    assert!(world.get("/readyz").await.starts_with("HTTP/1.1 503"));
    // A station that comes back is taken in, and runs what it has.
    world.end_station("cam-1", Signal::SIGTERM).await;
    world.station("cam-1", &[]).await;
    world.until_state("cam-1/counter/one", "active").await;
    // So is a new one.
    world.station("cam-2", &[]).await;
    fs::rename(&aside, &folder).unwrap();
    world.eventually("it is ready again", async |world| world.get("/readyz").await.starts_with("HTTP/1.1 200")).await;
    world.ctl(&["apply", "-f", &file]).await.with_code(0);
    world.until_state("cam-1/counter/two", "active").await;
    // What was not stored when it came is stored since, without anybody's help.
    world
        .eventually("cam-2 is stored", async |world| {
            let backup = world.folder().join("backup.db");
            let made = manager(world, &["backup", backup.to_str().unwrap()]).await.with_code(0);
            fs::remove_file(backup).unwrap();
            made.out.contains("2 stations")
        })
        .await;
}

/// A small disk that is mounted at a folder, for processes that enter it. Gone when this is dropped or the test is killed.
struct Disk {
    folder: PathBuf,
    /// Ends when its input does.
    _mounter: Child,
    pid: String,
}

impl Disk {
    async fn mount(folder: &Path) -> Self {
        fs::create_dir_all(folder).unwrap();
        let script = "read -r pid rest < /proc/self/stat && mount -t tmpfs -o size=2m,mode=700 disk \"$0\" && echo \"$pid\" && exec cat";
        let mut mounter = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", script])
            .arg(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("`unshare`, of util-linux");
        let mut lines = BufReader::new(mounter.stdout.take().unwrap()).lines();
        let pid = lines.next_line().await.unwrap().expect("a disk is mounted; this test needs root");
        Self { folder: folder.to_owned(), _mounter: mounter, pid }
    }

    /// A shell script that runs its arguments where the disk is.
    fn script(&self) -> String {
        format!("exec nsenter --mount --target {} \"$@\"", self.pid)
    }

    /// The folder as it is seen from here.
    fn seen(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root", self.pid)).join(self.folder.strip_prefix("/").unwrap())
    }

    fn fill(&self) {
        let mut filler = fs::OpenOptions::new().append(true).create(true).open(self.seen().join("filler")).unwrap();
        assert_eq!(filler.write_all(&[1; 4 << 20]).unwrap_err().kind(), std::io::ErrorKind::StorageFull);
    }

    fn free(&self) {
        fs::remove_file(self.seen().join("filler")).unwrap();
    }
}

async fn until_connected(world: &World, stations: usize) {
    world
        .eventually("the stations are connected", async |world| {
            world.stations().await.iter().filter(|station| station.state.name() == "connected").count() == stations
        })
        .await;
}

#[tokio::test]
async fn case_13_a_manager_on_a_full_disk_takes_stations_in_refuses_changes_and_recovers_by_itself() {
    let mut world = World::empty();
    let disk = Disk::mount(&world.folder().join("manager")).await;
    world.start_manager_from_shell(&disk.script()).await;
    world.station("cam-1", &[]).await;
    let fleet = Fleet::new().with("cam-1/counter/one", "start = 1\n");
    world.apply(fleet.text()).await.with_code(0);
    disk.fill();
    // More than may still fit into the write-ahead log as it is.
    let much = "x".repeat(100_000);
    let much = format!("command = [\"true\"]\nenv = {{ MUCH = {much:?}, MORE = {much:?} }}");
    let much = world.fleet_file("much.toml", fleet.with("cam-1/process/much", &much).text());
    let is_refused = async |world: &World| {
        let refused = world.ctl(&["apply", "-f", &much]).await.with_code(4);
        assert!(refused.err.contains("fleet.db: database or disk is full"), "{refused:?}");
    };
    is_refused(&world).await;
    // Stations that come back are taken in and run what they have, and so are new ones.
    world.end_station("cam-1", Signal::SIGTERM).await;
    world.station("cam-1", &[]).await;
    world.station("cam-2", &[]).await;
    world.until_state("cam-1/counter/one", "active").await;
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        world.end_manager(signal).await;
        disk.fill();
        world.start_manager_from_shell(&disk.script()).await;
        until_connected(&world, 2).await;
        world.ctl(&["call", "cam-1/counter/one", "increment", "{\"by\":1}"]).await.with_code(0);
        is_refused(&world).await;
    }
    let not_ready = world.get("/readyz").await;
    assert!(not_ready.starts_with("HTTP/1.1 503") && not_ready.contains("fleet.db: "), "{not_ready}");
    world.ctl(&["rollback", "cam-1"]).await.with_code(4);
    let value = world.ctl(&["call", "cam-1/counter/one", "value"]).await.with_code(0).out;
    assert!(value.contains('3'), "it was restarted: {value}");

    disk.free();
    world.eventually("it is ready again", async |world| world.get("/readyz").await.starts_with("HTTP/1.1 200")).await;
    world.ctl(&["apply", "-f", &much]).await.with_code(0);
    let more = world.fleet_file("more.toml", Fleet::new().with("cam-2/counter/two", "").text());
    world.ctl(&["apply", "-f", &more, "--wait", "20", "--settle", "0"]).await.with_code(0);
    // Others can read it again too.
    let backup = world.folder().join("backup.db");
    let mut command = Command::new("nsenter");
    command.args(["--mount", "--target", &disk.pid]).arg(world.binary("quilt-manager"));
    let made = command.arg("backup").arg(&backup).arg("--data-dir").arg(&disk.folder).output().await.unwrap();
    assert!(made.status.success(), "{made:?}");
    // Nothing is damaged.
    world.end_manager(Signal::SIGKILL).await;
    world.start_manager_from_shell(&disk.script()).await;
    until_connected(&world, 2).await;
    world.until_state("cam-2/counter/two", "active").await;
}

#[tokio::test]
async fn a_manager_whose_disk_hangs_or_fails_goes_on_with_all_that_needs_no_disk() {
    let mut world = World::empty();
    let (library, hang) = hanging_disk(&world);
    let script = format!("HANG={} LD_PRELOAD={} exec \"$@\"", hang.display(), library.display());
    world.start_manager_from_shell(&script).await;
    for name in ["cam-1", "cam-2"] {
        world.station(name, &[]).await;
    }
    let fleet = Fleet::new().with("cam-1/counter/one", "start = 1\n");
    world.apply(fleet.text()).await.with_code(0);

    fs::write(&hang, "").unwrap();
    let file = world.fleet_file("two.toml", fleet.clone().with("cam-1/counter/two", "").text());
    let mut apply = world.command("quiltctl");
    apply.args(["--manager", &world.address, "apply", "-f", &file]).stderr(Stdio::null());
    let mut apply = apply.spawn().unwrap();
    world.eventually("the apply hangs in the disk", async |_| hang.with_extension("hangs").exists()).await;
    world.ctl(&["--timeout", "5s", "call", "cam-1/counter/one", "increment", "{\"by\":1}"]).await.with_code(0);
    world.ctl(&["stop", "cam-1/counter/one"]).await.with_code(0);
    // A station that comes back is taken in, and so is a new one.
    world.end_station("cam-2", Signal::SIGKILL).await;
    for name in ["cam-2", "cam-3"] {
        world.station(name, &[]).await;
    }
    until_connected(&world, 3).await;
    assert!(apply.try_wait().unwrap().is_none(), "it is acknowledged before it is on disk");
    assert!(world.instance("cam-1/counter/two").await.is_none(), "it is pushed before it is on disk");
    fs::remove_file(&hang).unwrap();
    assert!(apply.wait().await.unwrap().success());
    world.until_state("cam-1/counter/two", "active").await;

    let fails = hang.with_extension("fails");
    fs::write(&fails, "").unwrap();
    let file = world.fleet_file("three.toml", fleet.with("cam-1/counter/three", "").text());
    let refused = world.ctl(&["apply", "-f", &file]).await.with_code(4);
    assert!(refused.err.contains("fleet.db: disk I/O error"), "{refused:?}");
    assert!(world.get("/readyz").await.starts_with("HTTP/1.1 503"));
    fs::remove_file(&fails).unwrap();
    world.eventually("it is ready again", async |world| world.get("/readyz").await.starts_with("HTTP/1.1 200")).await;
    world.ctl(&["apply", "-f", &file, "--wait", "20", "--settle", "0"]).await.with_code(0);
}
