//! A station that runs short of tasks, of time of its disk, or of room on it: programs, sessions and records survive that, and what
//! could not be done is done once it is over, without anybody's help.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use quilt_client::control::Logs;
use quilt_tests::{Fleet, World, is_alive, plugins};

/// A control group that bounds how many tasks there are in it, gone when this is dropped.
struct TaskLimit(PathBuf);

impl TaskLimit {
    fn new(world: &World) -> Self {
        let name = world.folder().file_name().unwrap();
        // Version 1 where that is mounted, else version 2.
        let root = [Path::new("/sys/fs/cgroup/pids"), Path::new("/sys/fs/cgroup")];
        let root = root.into_iter().find(|root| root.exists()).expect("control groups");
        let folder = root.join(name);
        fs::create_dir(&folder).unwrap();
        Self(folder)
    }

    /// A line of shell that puts the shell into the group.
    fn enter(&self) -> String {
        format!("echo $$ > {}/cgroup.procs", self.0.display())
    }

    /// No more tasks than there are now.
    fn close(&self) {
        let current = fs::read_to_string(self.0.join("pids.current")).unwrap();
        fs::write(self.0.join("pids.max"), current.trim()).unwrap();
    }

    fn open(&self) {
        fs::write(self.0.join("pids.max"), "max").unwrap();
    }
}

impl Drop for TaskLimit {
    fn drop(&mut self) {
        // The world, which is dropped later, kills what is in it; the folder goes with the last of them.
        self.open();
        let folder = self.0.clone();
        let procs = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
        let parent = folder.parent().unwrap().join("cgroup.procs");
        for pid in procs.lines() {
            let _ = fs::write(&parent, pid);
        }
        let _ = fs::remove_dir(folder);
    }
}

#[tokio::test]
async fn a_station_without_a_task_to_spare_finds_its_manager_by_name_and_starts_programs_when_it_can() {
    let mut world = World::new().await;
    let limit = TaskLimit::new(&world);
    let by_name = "for a; do shift; set -- \"$@\" \"$(echo \"$a\" | sed s/127.0.0.1/localhost/)\"; done";
    world.station_from_shell("cam-1", &format!("{}\n{by_name}\nexec \"$@\"", limit.enter())).await;
    let fleet = Fleet::new().with("cam-1/counter/c", "start = 1");
    world.apply(fleet.text()).await.with_code(0);
    limit.close();
    world.end_manager(Signal::SIGKILL).await;
    world.start_manager().await;
    world.until_state("cam-1/counter/c", "active").await;
    // Whether it can be started now or not, that is no failure of it.
    let once = "command = [\"sleep\", \"1000\"]\nrestart = { policy = \"temporary\" }";
    let path = world.fleet_file("f.toml", fleet.with("cam-1/process/p", once).text());
    world.ctl(&["apply", "-f", &path]).await.with_code(0);
    limit.open();
    world.until_state("cam-1/process/p", "active").await;
}

#[tokio::test]
async fn plugins_that_come_while_there_are_no_tasks_are_loaded_by_themselves_once_there_are() {
    let mut world = World::new().await;
    let limit = TaskLimit::new(&world);
    let (good, other) = (plugins::hostile(world.folder(), "good"), plugins::hostile(world.folder(), "never_releases"));
    // The station is to have one of them before it was ever asked.
    let push = ["plugin", "push", good.to_str().unwrap(), "--on", "name=cam-1", "--wait", "0"];
    world.ctl(&push).await.with_code(0);
    world.end_manager(Signal::SIGKILL).await;
    world.station_from_shell("cam-1", &format!("{}\nexec \"$@\"", limit.enter())).await;
    // Its first threads are there before its first file.
    let folder = world.station_folder("cam-1").join("station");
    world.eventually("the station works", async |_| folder.join("plugins").exists()).await;
    limit.close();
    world.start_manager().await;
    let is_fault = |text: &str| text.contains("STATION_FAULT");
    let refuses = async |world: &World| {
        let stations = world.stations().await;
        stations.iter().any(|view| view.rejected.as_ref().is_some_and(|one| is_fault(&one.rejection.message)))
    };
    world.eventually("the push is refused for trouble of the station", refuses).await;
    world.plug(&other, "other.so");
    let list = async |world: &World| world.ctl(&["plugin", "list", "cam-1", "-o", "json"]).await.out;
    world.eventually("the file is not loaded for that either", async |world| is_fault(&list(world).await)).await;
    limit.open();
    world.until_offered("cam-1", "good").await;
    world.until_offered("cam-1", "never_releases").await;
    let list = list(&world).await;
    assert!(!list.contains("quarantine") && !is_fault(&list), "{list}");
}

/// A library that makes `fsync` and the like hang as long as the file in `HANG` exists, and fail as long as there is one with the
/// suffix `.fails`. With one with the suffix `.all`, everything hangs that is done with files below the folder in `HANG_UNDER`. A file
/// with the suffix `.hangs` has a line for each call that waits, with its name.
pub(super) fn hanging_disk(world: &World) -> (PathBuf, PathBuf) {
    let source = include_str!("hanging_disk.c");
    let (code, library) = (world.folder().join("hang.c"), world.folder().join("hang.so"));
    fs::write(&code, source).unwrap();
    let built = std::process::Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&library, &code]).status();
    assert!(built.expect("a C compiler").success());
    (library, world.folder().join("hang"))
}

#[tokio::test]
async fn calls_go_on_while_everything_that_is_done_with_files_hangs() {
    let mut world = World::new().await;
    let (library, hang) = hanging_disk(&world);
    let (under, library) = (world.station_folder("cam-1"), library.display());
    let (under, control) = (under.display(), hang.display());
    let script = format!("HANG={control} HANG_UNDER={under} LD_PRELOAD={library} exec taskset -c 0 \"$@\"");
    world.station_from_shell("cam-1", &script).await;
    let programs = ["a", "b", "c"].map(|name| format!("cam-1/process/{name}"));
    let counter = "cam-1/counter/c";
    let fleet = programs.iter().fold(Fleet::new().with(counter, "start = 1"), |fleet, path| {
        let keys = "command = [\"sh\", \"-c\", \"echo up; exec sleep 1000\"]\nready = { log = \"up\" }";
        fleet.with(path, &format!("{keys}\nrestart = {{ delay = \"10ms\" }}"))
    });
    world.apply(fleet.text()).await.with_code(0);
    let client = world.client().await;
    let mut followed = client.logs(
        "cam-1".parse().unwrap(),
        &Logs {
            role: "process".parse().unwrap(),
            instance: "a".parse().unwrap(),
            lines: 10,
            follow: true,
            after: None,
        },
    );
    followed.next().await.expect("what is there");

    let (mut keepers, mut pids) = (Vec::new(), Vec::new());
    for path in &programs {
        let status = world.ctl(&["call", path, "status"]).await.with_code(0).json();
        keepers.push(status["keeper"].as_i64().unwrap() as i32);
        pids.push(world.pid(path).await);
    }
    fs::write(hang.with_extension("all"), "").unwrap();
    fs::write(&hang, "").unwrap();
    // Each of these has the station do something with its files.
    for keeper in keepers {
        kill(Pid::from_raw(keeper), Signal::SIGKILL).unwrap();
    }
    let path = world.fleet_file("f.toml", fleet.with("cam-1/counter/later", "start = 1").text());
    world.ctl(&["apply", "-f", &path]).await.with_code(0);
    let hangs = || fs::read_to_string(hang.with_extension("hangs")).unwrap_or_default().lines().count();
    world.eventually("all disk work hangs", async |_| hangs() >= 4).await;
    for _ in 0..5 {
        world.ctl(&["--timeout", "5s", "call", counter, "increment", "{\"by\":1}"]).await.with_code(0);
    }
    assert_eq!(world.show("cam-1").await.state.name(), "connected");

    fs::remove_file(&hang).unwrap();
    for (path, pid) in programs.iter().zip(pids) {
        world.eventually_other_pid(path, pid).await;
        world.until_state(path, "active").await;
    }
    world.until_state("cam-1/counter/later", "active").await;
}

#[tokio::test]
async fn calls_and_stops_go_on_while_the_disk_hangs_and_what_waited_for_it_is_done_afterwards() {
    let mut world = World::new().await;
    let (library, hang) = hanging_disk(&world);
    let hangs = hang.with_extension("hangs");
    let script = format!("HANG={} LD_PRELOAD={} exec taskset -c 0 \"$@\"", hang.display(), library.display());
    world.station_from_shell("cam-1", &script).await;
    let counters = ["a", "b", "c", "d"].map(|name| format!("cam-1/counter/{name}"));
    let fleet = counters.iter().fold(Fleet::new(), |fleet, path| fleet.with(path, "start = 1"));
    world.apply(fleet.text()).await.with_code(0);

    fs::write(&hang, "").unwrap();
    let path = world.fleet_file("f.toml", fleet.with("cam-1/counter/later", "start = 1").text());
    world.ctl(&["apply", "-f", &path]).await.with_code(0);
    world.eventually("the push hangs in the disk", async |_| hangs.exists()).await;
    // Each of these asks the disk for something too.
    let [_, b, c, d] = &counters;
    let stop = async |path: &str| world.ctl(&["stop", path]).await.with_code(0);
    tokio::join!(stop(b), stop(c), stop(d));
    world
        .eventually("it is told that the record is missing", async |world| {
            let shown = world.instance(d).await.unwrap();
            shown.state.name() == "stopped" && shown.detail.contains("the disk does not answer")
        })
        .await;
    let call = ["--timeout", "5s", "call", &counters[0], "increment", "{\"by\":1}"];
    world.ctl(&call).await.with_code(0);
    assert!(world.instance("cam-1/counter/later").await.is_none(), "it is not accepted before it is on disk");

    fs::remove_file(&hang).unwrap();
    world.until_state("cam-1/counter/later", "active").await;
    let record = world.station_folder("cam-1").join("station");
    world
        .eventually("all stops are on record", async |_| {
            let written =
                ["stopped.0", "stopped.1"].map(|slot| fs::read_to_string(record.join(slot)).unwrap_or_default());
            written.iter().any(|text| ["b", "c", "d"].iter().all(|name| text.contains(&format!("counter/{name}"))))
        })
        .await;
    world
        .eventually("the note is gone", async |world| {
            world.instance(d).await.unwrap().detail == "stopped by an operator"
        })
        .await;
}

#[tokio::test]
async fn on_a_full_disk_a_stop_works_and_what_had_no_room_is_taken_once_there_is_some() {
    let mut world = World::new().await;
    let folder = world.station_folder("cam-1");
    fs::create_dir_all(&folder).unwrap();
    let disk = "mount -t tmpfs -o size=2m,mode=700 disk \"$0\" && exec \"$@\"";
    let folder_text = folder.display();
    let script = format!("exec unshare --mount --propagation private sh -c '{disk}' {folder_text} \"$@\"");
    world.station_from_shell("cam-1", &script).await;
    let small = Fleet::new().shell("cam-1/process/old", "exec sleep 1000");
    world.apply(small.text()).await.with_code(0);
    let pid = world.pid("cam-1/process/old").await;

    // The disk as the station sees it.
    let disk =
        PathBuf::from(format!("/proc/{}/root", world.station_pid("cam-1"))).join(folder.strip_prefix("/").unwrap());
    let filler = disk.join("filler");
    let fill = || {
        let mut filler = fs::OpenOptions::new().append(true).create(true).open(&filler).unwrap();
        assert_eq!(filler.write_all(&[1; 4 << 20]).unwrap_err().kind(), std::io::ErrorKind::StorageFull);
    };
    fill();

    world.ctl(&["stop", "cam-1/process/old"]).await.with_code(0);
    assert!(!is_alive(pid));
    // The record has room of its own: a station that is restarted now does not start it.
    assert_eq!(world.until_state("cam-1/process/old", "stopped").await.detail, "stopped by an operator");
    let record = ["stopped.0", "stopped.1"].map(|slot| fs::read_to_string(disk.join("station").join(slot)).unwrap());
    assert!(record.iter().any(|text| text.contains("process/old")), "{record:?}");

    // It fits where the one before is, and whether its program finds room or not, that is no failure of it.
    let once = "command = [\"sleep\", \"1000\"]\nrestart = { policy = \"temporary\" }";
    let more = small.with("cam-1/process/new", once);
    let path = world.fleet_file("f.toml", more.text());
    world.ctl(&["apply", "-f", &path]).await.with_code(0);
    // This one does not fit.
    let keys = format!("command = [\"sleep\", \"1000\"]\nenv = {{ MUCH = {:?} }}", "x".repeat(100_000));
    let path = world.fleet_file("f.toml", more.with("cam-1/process/much", &keys).text());
    fill();
    world.ctl(&["apply", "-f", &path]).await.with_code(0);
    world
        .eventually("the push is refused", async |world| {
            let refused = world.show("cam-1").await.rejected;
            refused.is_some_and(|refused| refused.rejection.code.to_string() == "STATION_FAULT")
        })
        .await;

    fs::remove_file(&filler).unwrap();
    world.until_state("cam-1/process/much", "active").await;
    world.until_state("cam-1/process/new", "active").await;
    assert!(world.show("cam-1").await.rejected.is_none());
}

#[tokio::test]
async fn logs_leave_a_station_the_descriptors_that_its_programs_need_and_one_that_many_follow_takes_two() {
    let mut world = World::new().await;
    // As a service manager sets it; the soft limit is raised to the hard one.
    world.station_from_shell("cam-1", "ulimit -Sn 80; ulimit -Hn 140; exec \"$@\"").await;
    let counters: Vec<_> = (0..80).map(|number| format!("c{number}")).collect();
    let fleet = counters.iter().fold(Fleet::new().shell("cam-1/process/p", "exec sleep 1000"), |fleet, name| {
        fleet.with(&format!("cam-1/counter/{name}"), "start = 1")
    });
    world.apply(fleet.text()).await.with_code(0);
    for name in &counters {
        let log = world.station_folder("cam-1").join(format!("station/instances/counter/{name}/log"));
        fs::create_dir_all(&log).unwrap();
        fs::write(log.join("log"), "2026-01-01T00:00:00.000Z out a line\n").unwrap();
    }
    let station = world.station_pid("cam-1");
    let open = || fs::read_dir(format!("/proc/{station}/fd")).unwrap().count();
    let client = world.client().await;
    let follow = |instance: &str| {
        let (role, instance) = ("counter".parse().unwrap(), instance.parse().unwrap());
        client.logs("cam-1".parse().unwrap(), &Logs { role, instance, lines: 1, follow: true, after: None })
    };

    let before = open();
    let mut same: Vec<_> = (0..40).map(|_| follow("c0")).collect();
    for stream in &mut same {
        stream.next().await.expect("the line that is there");
    }
    assert!(open() < before + 10, "{before} descriptors, and {} with 40 followers of one log", open());
    drop(same);

    let (mut followed, mut refused) = (Vec::new(), Vec::new());
    for name in &counters {
        let mut stream = follow(name);
        match stream.next().await {
            Some(_) => followed.push(stream),
            None => refused.push(stream.end().await.unwrap_err().to_string()),
        }
    }
    let limit = refused.first().expect("there are more logs than descriptors");
    assert!(limit.contains("64 descriptors left, which are kept for its programs"), "{limit}");
    assert!(open() <= 140 - 60, "{} are open", open());
    let pid = world.pid("cam-1/process/p").await;
    world.ctl(&["restart", "cam-1/process/p"]).await.with_code(0);
    world.eventually_other_pid("cam-1/process/p", pid).await;
    world.until_state("cam-1/process/p", "active").await;
}

#[tokio::test]
async fn a_station_whose_disk_can_only_be_read_starts_and_runs_what_it_can() {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    world.apply(Fleet::new().with("cam-1/counter/c", "start = 1").text()).await.with_code(0);
    world.end_station("cam-1", Signal::SIGTERM).await;
    let folder = world.station_folder("cam-1");
    let disk = "mount --bind \"$0\" \"$0\" && mount -o remount,bind,ro \"$0\" && exec \"$@\"";
    let folder = folder.display();
    let script = format!("exec unshare --mount --propagation private sh -c '{disk}' {folder} \"$@\"");
    world.station_from_shell("cam-1", &script).await;
    world.until_state("cam-1/counter/c", "active").await;
    let more = Fleet::new().with("cam-1/counter/c", "start = 1").shell("cam-1/process/p", "exec sleep 1000");
    let path = world.fleet_file("f.toml", more.text());
    world.ctl(&["apply", "-f", &path]).await.with_code(0);
    world
        .eventually("it says why it takes nothing", async |world| {
            let refused = world.show("cam-1").await.rejected;
            refused.is_some_and(|refused| refused.rejection.message.contains("Read-only file system"))
        })
        .await;
}
