//! Keepers: whatever becomes of their files, connections and programs, a program runs once and in hand.

use std::io::Read as _;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use quilt_tests::{Fleet, World, is_alive};

pub(crate) const MAIN: &str = "cam-1/process/main";

/// A station with a program that notes its starts.
pub(crate) async fn world() -> World {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    let script = format!("echo x >> {}; exec sleep 1000", world.folder().join("starts").display());
    world.apply(Fleet::new().shell(MAIN, &script).text()).await.with_code(0);
    world
}

pub(crate) fn starts(world: &World) -> usize {
    std::fs::read_to_string(world.folder().join("starts")).unwrap().lines().count()
}

pub(crate) fn state_folder(world: &World) -> PathBuf {
    world.station_folder("cam-1").join("station/instances/process/main/state")
}

pub(crate) async fn keeper(world: &World) -> u32 {
    let status = world.ctl(&["call", MAIN, "status"]).await.with_code(0).json();
    status["keeper"].as_u64().unwrap() as u32
}

/// As a cleaner of old files does.
fn remove_files(world: &World) {
    for entry in std::fs::read_dir(state_folder(world)).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
}

pub(crate) async fn restart_station(world: &mut World) {
    world.end_station("cam-1", Signal::SIGKILL).await;
    world.station("cam-1", &[]).await;
    world.until_state(MAIN, "active").await;
}

#[tokio::test]
async fn a_program_whose_keepers_files_are_removed_is_neither_run_twice_nor_out_of_hand() {
    let mut world = world().await;
    let pid = world.pid(MAIN).await;
    let keeper = keeper(&world).await;
    assert_eq!(std::fs::read_to_string(format!("/proc/{keeper}/comm")).unwrap(), "quilt-keeper\n");
    kill(Pid::from_raw(keeper as i32), Signal::SIGHUP).unwrap();
    remove_files(&world);
    restart_station(&mut world).await;
    assert_eq!((world.pid(MAIN).await, starts(&world)), (pid, 1));
    // Twice: what was made again is as good as what was there first.
    remove_files(&world);
    restart_station(&mut world).await;
    assert_eq!((world.pid(MAIN).await, starts(&world)), (pid, 1));
    remove_files(&world);
    world.ctl(&["restart", MAIN]).await.with_code(0);
    let view = world.until_state(MAIN, "active").await;
    assert!(!is_alive(pid), "the run before the restart goes on");
    assert_eq!((view.restarts, starts(&world)), (0, 2));

    // Even the folder can go: nobody reaches that run any more, so it is ended.
    let pid = world.pid(MAIN).await;
    std::fs::remove_dir_all(state_folder(&world)).unwrap();
    restart_station(&mut world).await;
    assert!(!is_alive(pid), "a run that nobody knows goes on beside the next");
    let pid = world.pid(MAIN).await;
    std::fs::remove_dir_all(state_folder(&world)).unwrap();
    world.ctl(&["stop", MAIN]).await.with_code(0);
    assert!(!is_alive(pid), "stopped, and its program runs");

    // The same folder by another name is the same folder.
    world.ctl(&["start", MAIN]).await.with_code(0);
    world.until_state(MAIN, "active").await;
    let pid = world.pid(MAIN).await;
    world.end_station("cam-1", Signal::SIGKILL).await;
    let (folder, moved) = (world.station_folder("cam-1"), world.folder().join("moved"));
    remove_files(&world);
    std::fs::rename(&folder, &moved).unwrap();
    std::os::unix::fs::symlink(&moved, &folder).unwrap();
    // In place of the name that all stations of these tests are given.
    let by_moved = format!("program=$1; shift 3; exec \"$program\" --data-dir {} \"$@\"", moved.display());
    world.station_from_shell("cam-1", &by_moved).await;
    world.until_state(MAIN, "active").await;
    assert_eq!(world.pid(MAIN).await, pid);
    world.end_station("cam-1", Signal::SIGKILL).await;
    std::fs::remove_dir_all(state_folder(&world)).unwrap();
    world.station_from_shell("cam-1", &by_moved).await;
    world.eventually_other_pid(MAIN, pid).await;
    assert!(!is_alive(pid), "a run that nobody knows goes on beside the next");
    let pid = world.pid(MAIN).await;
    std::fs::remove_file(state_folder(&world).join("keeper.sock")).unwrap();
    restart_station(&mut world).await;
    assert_eq!(world.pid(MAIN).await, pid);
    world.ctl(&["stop", MAIN]).await.with_code(0);
    assert!(!is_alive(pid), "stopped, and its program runs");
}

#[tokio::test]
async fn a_keeper_writes_its_log_where_its_folder_was_moved_to_and_makes_nothing_of_the_old_name() {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    let script = "trap 'echo heard' USR1; echo up; while :; do sleep 0.05; done";
    let keys = format!("command = [\"sh\", \"-c\", {script:?}]\nready = {{ log = \"up\" }}");
    let fleet = Fleet::new().with(MAIN, &keys);
    world.apply(fleet.text()).await.with_code(0);
    let pid = world.pid(MAIN).await;
    world.end_station("cam-1", Signal::SIGKILL).await;
    let (folder, moved) = (world.station_folder("cam-1"), world.folder().join("moved"));
    std::fs::rename(&folder, &moved).unwrap();
    kill(Pid::from_raw(pid as i32), Signal::SIGUSR1).unwrap();
    let log = moved.join("station/instances/process/main/log/log");
    let heard = || std::fs::read_to_string(&log).unwrap().contains("heard");
    world.eventually("the line is in the log", async |_| heard()).await;
    kill(Pid::from_raw(pid as i32), Signal::SIGKILL).unwrap();
    let exit = moved.join("station/instances/process/main/state/exit.json");
    world.eventually("its end is on record", async |_| exit.exists()).await;
    assert!(!folder.exists(), "the old path was made again");
}

#[tokio::test]
async fn a_lost_connection_with_a_keeper_is_not_the_end_of_its_program() {
    let world = world().await;
    let pid = world.pid(MAIN).await;
    // The keeper serves the newest connection, so that this one takes the station's place.
    let mut connection = UnixStream::connect(state_folder(&world).join("keeper.sock")).unwrap();
    connection.set_read_timeout(Some(std::time::Duration::from_secs(30))).unwrap();
    // Until the station has taken it back.
    let mut greeting = String::new();
    connection.read_to_string(&mut greeting).unwrap();
    let view = world.until_state(MAIN, "active").await;
    assert_eq!((view.pid, view.restarts, starts(&world)), (Some(pid), 0, 1));
    world.ctl(&["call", MAIN, "signal", "{\"signal\":\"KILL\"}"]).await.with_code(0);
    let view = world.eventually_other_pid(MAIN, pid).await;
    assert_eq!(view.restarts, 1);
}

#[tokio::test]
async fn a_program_that_a_nameless_signal_ends_is_known_to_have_ended() {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    let once = "restart = { policy = \"temporary\" }\n";
    let fleet = Fleet::new().with(MAIN, &format!("command = [\"sh\", \"-c\", \"kill -37 $$\"]\n{once}")).with(
        "cam-1/process/asked",
        &format!("command = [\"sleep\", \"1000\"]\nstop_signal = \"RTMIN+3\"\nstop_timeout = \"60s\"\n{once}"),
    );
    let file = world.fleet_file("f.toml", fleet.text());
    world.ctl(&["apply", "-f", &file]).await.with_code(0);
    let failed = world.until_state(MAIN, "failed").await;
    assert!(failed.detail.contains("killed by SIGRTMIN+3"), "{}", failed.detail);
    world.until_state("cam-1/process/asked", "active").await;
    // It would take a minute if the signal were not sent.
    world.ctl(&["stop", "cam-1/process/asked"]).await.with_code(0);
    assert_eq!(world.until_state("cam-1/process/asked", "stopped").await.pid, None);
}

/// All zombies of the machine, with their parents.
fn zombies() -> Vec<(u32, u32)> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let stat = processes.filter_map(|entry| std::fs::read_to_string(entry.path().join("stat")).ok());
    stat.filter_map(|stat| {
        let pid = stat.split(' ').next()?.parse().ok()?;
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
        (fields.next()? == "Z").then_some(())?;
        Some((pid, fields.next()?.parse().ok()?))
    })
    .collect()
}

#[tokio::test]
async fn a_station_that_is_process_1_reaps_what_loses_its_parent_and_stops_as_it_is_told() {
    // A pid namespace of one's own is root's to make.
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let mut world = World::new().await;
    world.station_from_shell("cam-1", "exec unshare --pid --fork --kill-child --mount-proc \"$@\"").await;
    let unshare = world.station_pid("cam-1");
    let children = std::fs::read_to_string(format!("/proc/{unshare}/task/{unshare}/children")).unwrap();
    let first: u32 = children.trim().parse().unwrap();
    // What these leave is killed by their keepers, which are gone before they could reap it.
    let leaves = "command = [\"sh\", \"-c\", \"setsid sleep 1000 & exit 0\"]\nrestart = { policy = \"temporary\" }\n";
    let fleet = (0..4).fold(Fleet::new(), |fleet, number| fleet.with(&format!("cam-1/process/p{number}"), leaves));
    let file = world.fleet_file("f.toml", fleet.text());
    world.ctl(&["apply", "-f", &file]).await.with_code(0);
    for number in 0..4 {
        world.until_state(&format!("cam-1/process/p{number}"), "completed").await;
    }
    world.eventually("no zombie is left", async |_| zombies().iter().all(|(_, parent)| *parent != first)).await;
    kill(Pid::from_raw(first as i32), Signal::SIGTERM).unwrap();
    world.eventually("it has stopped", async |_| !is_alive(first)).await;
    assert_eq!(world.show("cam-1").await.state.name(), "disconnected");
}

/// A program that leaves a child in a session of its own, which writes its pid.
pub(crate) fn daemonizing(world: &World, name: &str) -> (String, std::path::PathBuf) {
    let pid = world.folder().join(name);
    let daemon = format!(
        "import os, time\nif os.fork() == 0:\n  os.setsid()\n  if os.fork() == 0:\n    open({:?}, 'w').write(str(os.getpid()))\n    time.sleep(1000)\n  os._exit(0)\nprint('up', flush=True)\ntime.sleep(1000)\n",
        pid.display()
    );
    let keys = format!("command = [\"python3\", \"-c\", {daemon:?}]\nready = {{ log = \"up\" }}\n");
    (keys, pid)
}

#[tokio::test]
async fn what_a_program_leaves_in_the_background_is_counted_and_told_to_whoever_waits() {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    let keys = "command = [\"sh\", \"-c\", \"setsid sleep 1000 & sleep 1000 & exit 0\"]\n";
    let fleet = Fleet::new().with("cam-1/process/main", keys);
    world.apply(fleet.text()).await.with_code(0);
    let hint = "exit code 0; it left 2 processes running, which were ended";
    let completed = world.until_state("cam-1/process/main", "completed").await;
    assert!(completed.detail.contains(hint), "{}", completed.detail);
    let waited = world.apply(fleet.text()).await.with_code(0);
    assert!(waited.err.contains(hint), "{}", waited.err);
}

pub(crate) async fn pid_in(world: &World, file: &std::path::Path) -> u32 {
    let read = || std::fs::read_to_string(file).ok().and_then(|text| text.parse().ok());
    world.eventually("the pid is written", async |_| read().is_some()).await;
    read().unwrap()
}

#[tokio::test]
async fn what_a_program_leaves_in_sessions_of_its_own_ends_with_it() {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    let (keys, file) = daemonizing(&world, "daemon");
    world.apply(Fleet::new().with("cam-1/process/main", &keys).text()).await.with_code(0);
    let daemon = pid_in(&world, &file).await;
    assert!(is_alive(daemon));
    world.ctl(&["stop", "cam-1/process/main"]).await.with_code(0);
    assert!(!is_alive(daemon), "a daemon outlived the stop of its program");

    world.ctl(&["start", "cam-1/process/main"]).await.with_code(0);
    world.until_state("cam-1/process/main", "active").await;
    let (daemon, before) = (pid_in(&world, &file).await, world.pid("cam-1/process/main").await);
    let status = world.ctl(&["call", "cam-1/process/main", "status"]).await.with_code(0).json();
    let keeper = nix::unistd::Pid::from_raw(status["keeper"].as_i64().unwrap() as i32);
    nix::sys::signal::kill(keeper, nix::sys::signal::Signal::SIGKILL).unwrap();
    world
        .eventually("another run is up", async |world| {
            world.instance("cam-1/process/main").await.is_some_and(|view| view.pid.is_some_and(|pid| pid != before))
        })
        .await;
    assert!(!is_alive(daemon) && !is_alive(before), "part of a killed keeper's run goes on beside the next");
}

#[tokio::test]
async fn a_program_that_clears_its_environment_is_not_run_twice_when_its_keeper_is_killed() {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    let script = "sleep 1000 & echo up; wait";
    let keys = format!("command = [\"env\", \"-i\", \"/bin/sh\", \"-c\", {script:?}]\nready = {{ log = \"up\" }}\n");
    world.apply(Fleet::new().with("cam-1/process/main", &keys).text()).await.with_code(0);
    let before = world.pid("cam-1/process/main").await;
    let children = std::fs::read_to_string(format!("/proc/{before}/task/{before}/children")).unwrap();
    let child: u32 = children.split_whitespace().next().unwrap().parse().unwrap();
    let status = world.ctl(&["call", "cam-1/process/main", "status"]).await.with_code(0).json();
    let keeper = nix::unistd::Pid::from_raw(status["keeper"].as_i64().unwrap() as i32);
    nix::sys::signal::kill(keeper, nix::sys::signal::Signal::SIGKILL).unwrap();
    world
        .eventually("another run is up", async |world| {
            world.instance("cam-1/process/main").await.is_some_and(|view| view.pid.is_some_and(|pid| pid != before))
        })
        .await;
    assert!(!is_alive(child), "a child without the mark goes on beside the next run");
    // Nobody could find what the next run began, either.
    world.ctl(&["stop", "cam-1/process/main"]).await.with_code(0);
}
