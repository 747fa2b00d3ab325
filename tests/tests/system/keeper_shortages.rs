//! Keepers and stations that run short of something, or cannot be reached: a program is neither lost, nor run twice, nor killed for
//! a trouble that is not its own.

use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use quilt_tests::{Fleet, World, is_alive};
use tokio::process::Command;

use super::keepers::{MAIN, daemonizing, keeper, pid_in, restart_station, starts, state_folder, world};

fn send(pid: u32, signal: Signal) {
    kill(Pid::from_raw(pid as i32), signal).unwrap();
}

/// A station with a program that notes its starts, and each of these signals in a file of its name.
async fn noting(signals: &[&str], keys: &str) -> World {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    let folder = world.folder().display().to_string();
    let traps: String = signals.iter().map(|name| format!("trap 'echo x >> {folder}/{name}' {name}; ")).collect();
    let end = if signals.contains(&"TERM") { "test -e TERM && exit 0; " } else { "" };
    let script =
        format!("cd {folder}; rm -f TERM; {traps}echo x >> starts; echo up; while :; do {end}sleep 0.02; done");
    let keys = format!("command = [\"sh\", \"-c\", {script:?}]\nready = {{ log = \"up\" }}\n{keys}");
    world.apply(Fleet::new().with(MAIN, &keys).text()).await.with_code(0);
    world
}

fn noted(world: &World, name: &str) -> bool {
    world.folder().join(name).exists()
}

/// Sets the soft limit of a station's descriptors, as a shell spells it.
async fn limit_descriptors(world: &World, limit: &str) {
    let command = format!("prlimit --pid {} --nofile={limit}:", world.station_pid("cam-1"));
    assert!(Command::new("sh").args(["-c", &command]).status().await.unwrap().success());
}

#[tokio::test]
async fn a_station_without_descriptors_ends_what_is_to_go_and_shows_what_it_cannot_look_at() {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    // They take their time to end.
    let leave = world.folder().join("leave");
    let script = format!("trap '' TERM; while ! test -e {}; do sleep 0.02; done", leave.display());
    let fleet = Fleet::new().shell("cam-1/process/a", &script).shell("cam-1/process/b", &script);
    world.apply(fleet.text()).await.with_code(0);
    let pids = [world.pid("cam-1/process/a").await, world.pid("cam-1/process/b").await];
    // One of them has no files any more.
    std::fs::remove_dir_all(world.station_folder("cam-1").join("station/instances/process/b/state")).unwrap();
    let file = world.fleet_file("none.toml", Fleet::new().empty_station("cam-1").text());
    let mut apply = world.command("quiltctl");
    apply.args(["--manager", &world.address, "apply", "-f", &file, "--yes", "--wait", "20", "--settle", "0"]);
    let mut apply = apply.spawn().unwrap();
    for path in ["cam-1/process/a", "cam-1/process/b"] {
        world.until_state(path, "stopping").await;
    }
    limit_descriptors(&world, "3").await;
    std::fs::write(leave, "").unwrap();
    world.eventually("the programs are ended", async |_| pids.iter().all(|pid| !is_alive(*pid))).await;
    let shown = async |world: &World| {
        let a = world.instance("cam-1/process/a").await;
        a.is_some_and(|a| a.state.name() == "stopping" && a.detail.contains("cannot be looked at"))
    };
    world.eventually("it is shown that nobody can look", shown).await;
    assert!(apply.try_wait().unwrap().is_none(), "it did not wait until they were seen to be gone");
    limit_descriptors(&world, "$(ulimit -Hn)").await;
    assert!(apply.wait().await.unwrap().success());
    assert!(world.show("cam-1").await.instances.is_empty());
}

#[tokio::test]
async fn a_program_that_was_told_to_stop_while_no_station_was_there_begins_again() {
    let mut world = noting(&["TERM"], "orphan_timeout = \"100ms\"\n").await;
    let pid = world.pid(MAIN).await;
    world.end_station("cam-1", Signal::SIGKILL).await;
    world.eventually("its keeper has ended it", async |_| !is_alive(pid)).await;
    assert!(noted(&world, "TERM"));
    world.station("cam-1", &[]).await;
    let view = world.until_state(MAIN, "active").await;
    assert_eq!((view.restarts, starts(&world)), (0, 2));
    // Somebody else ends it under its station: that is an end that is counted, and no work that is done.
    send(keeper(&world).await, Signal::SIGTERM);
    world.eventually_other_pid(MAIN, view.pid.unwrap()).await;
    let logs = world.ctl(&["logs", MAIN, "-n", "50"]).await.with_code(0).out;
    assert!(logs.contains("exit code 0; its keeper told it to stop"), "{logs}");
}

/// A control group for tasks, gone when it is dropped.
struct TaskGroup(PathBuf);

impl TaskGroup {
    /// `None` where this user or machine has none.
    fn new(world: &World) -> Option<Self> {
        let name = world.folder().file_name()?;
        let path = Path::new("/sys/fs/cgroup/pids").join(name);
        std::fs::create_dir(&path).ok()?;
        Some(Self(path))
    }

    /// Allows this process no task beside those that it has.
    fn close_around(&self, pid: u32) {
        std::fs::write(self.0.join("cgroup.procs"), pid.to_string()).unwrap();
        std::fs::write(self.0.join("pids.max"), "0").unwrap();
    }
}

impl Drop for TaskGroup {
    fn drop(&mut self) {
        // A test that failed has left its keeper in it. It is empty a moment after its last process has ended.
        while std::fs::remove_dir(&self.0).is_err_and(|error| error.kind() != std::io::ErrorKind::NotFound) {
            let left = std::fs::read_to_string(self.0.join("cgroup.procs")).unwrap_or_default();
            for pid in left.lines().filter_map(|pid| pid.parse().ok()) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            std::thread::yield_now();
        }
    }
}

#[tokio::test]
async fn a_keeper_that_is_refused_another_thread_serves_the_next_station_as_before() {
    let mut world = noting(&["USR1", "TERM"], "").await;
    let Some(group) = TaskGroup::new(&world) else { return };
    let pid = world.pid(MAIN).await;
    group.close_around(keeper(&world).await);
    restart_station(&mut world).await;
    assert_eq!((world.pid(MAIN).await, starts(&world)), (pid, 1));
    world.ctl(&["call", MAIN, "signal", "{\"signal\":\"USR1\"}"]).await.with_code(0);
    world.eventually("the signal arrives", async |world| noted(world, "USR1")).await;
    // Also a socket that is made again.
    std::fs::remove_file(state_folder(&world).join("keeper.sock")).unwrap();
    restart_station(&mut world).await;
    world.ctl(&["stop", MAIN]).await.with_code(0);
    assert!(!is_alive(pid) && noted(&world, "TERM"));
    drop(group);
}

#[tokio::test]
async fn a_keeper_that_does_not_answer_is_shown_and_its_program_goes_on_however_often_the_station_restarts() {
    let mut world = noting(&["TERM"], "").await;
    let (pid, keeper) = (world.pid(MAIN).await, keeper(&world).await);
    send(keeper, Signal::SIGSTOP);
    for _ in 0..2 {
        world.end_station("cam-1", Signal::SIGKILL).await;
        world.station("cam-1", &[]).await;
        let view = world.until_state(MAIN, "waiting").await;
        assert!(view.detail.contains("unreachable: its keeper, process"), "{}", view.detail);
        assert_eq!((view.pid, view.restarts), (Some(pid), 0));
    }
    send(keeper, Signal::SIGCONT);
    let view = world.until_state(MAIN, "active").await;
    assert_eq!((view.pid, view.restarts, starts(&world)), (Some(pid), 0, 1));
    // An operator's stop asks the program itself.
    send(keeper, Signal::SIGSTOP);
    world.ctl(&["stop", MAIN]).await.with_code(0);
    assert_eq!(world.until_state(MAIN, "stopped").await.pid, None);
    assert!(!is_alive(pid) && !is_alive(keeper) && noted(&world, "TERM"), "it was killed rather than asked");
}

#[tokio::test]
async fn a_frozen_keeper_keeps_no_program_alive_beyond_its_stop_timeout() {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    let keys = "command = [\"sh\", \"-c\", \"trap '' TERM; echo up; while :; do sleep 1; done\"]\nready = { log = \"up\" }\nstop_timeout = \"200ms\"\n";
    world.apply(Fleet::new().with(MAIN, keys).text()).await.with_code(0);
    let (pid, keeper) = (world.pid(MAIN).await, keeper(&world).await);
    send(keeper, Signal::SIGSTOP);
    let signalled = world.ctl(&["call", MAIN, "signal", "{\"signal\":\"USR1\"}"]).await.with_code(4);
    assert!(signalled.err.contains("does not answer"), "{signalled:?}");
    world.ctl(&["stop", MAIN]).await.with_code(0);
    assert!(!is_alive(pid) && !is_alive(keeper));
}

#[tokio::test]
async fn a_program_whose_folders_are_removed_while_no_station_is_there_is_asked_to_stop_and_not_left() {
    let mut world = noting(&["TERM"], "").await;
    let pid = world.pid(MAIN).await;
    world.end_station("cam-1", Signal::SIGKILL).await;
    // The next station knows nothing of it, not even that there was an instance.
    std::fs::remove_dir_all(world.station_folder("cam-1")).unwrap();
    world.start_station("cam-1", &[]).await;
    world.eventually("it has ended", async |_| !is_alive(pid)).await;
    assert!(noted(&world, "TERM"), "it was killed rather than asked");
    world.end_station("cam-1", Signal::SIGKILL).await;

    let mut world = self::world().await;
    let pid = world.pid(MAIN).await;
    world.end_station("cam-1", Signal::SIGKILL).await;
    std::fs::remove_dir_all(state_folder(&world).parent().unwrap()).unwrap();
    world.station("cam-1", &[]).await;
    world.eventually_other_pid(MAIN, pid).await;
    assert!(!is_alive(pid) && starts(&world) == 2);
}

#[tokio::test]
async fn what_a_program_has_in_sessions_of_its_own_does_not_outlive_a_keeper_that_is_killed_while_no_station_is_there()
{
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    let (keys, file) = daemonizing(&world, "daemon");
    world.apply(Fleet::new().with(MAIN, &keys).text()).await.with_code(0);
    let (pid, daemon, keeper) = (world.pid(MAIN).await, pid_in(&world, &file).await, keeper(&world).await);
    world.end_station("cam-1", Signal::SIGKILL).await;
    send(keeper, Signal::SIGKILL);
    world.eventually("the kernel has killed the program", async |_| !is_alive(pid)).await;
    assert!(is_alive(daemon));
    world.station("cam-1", &[]).await;
    world.eventually_other_pid(MAIN, pid).await;
    assert!(!is_alive(daemon));
}

#[tokio::test]
async fn a_flood_of_output_is_cut_and_the_log_says_how_much_is_left_out() {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    let flood = "yes yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy | head -n 500000; echo the end >&2; sleep 1000";
    world.apply(Fleet::new().shell(MAIN, flood).text()).await.with_code(0);
    world
        .eventually("the log says so", async |world| {
            let logs = world.ctl(&["logs", MAIN, "-n", "100000"]).await.out;
            logs.contains("lines were lost here: the program writes more than 256 KiB in a second")
        })
        .await;
    let log = state_folder(&world).with_file_name("log");
    let size: u64 = std::fs::read_dir(log).unwrap().map(|file| file.unwrap().metadata().unwrap().len()).sum();
    assert!(size < 12 << 20, "{size} bytes of a flood of 24 MiB");
}

#[tokio::test]
async fn a_program_of_ours_that_gets_too_few_threads_at_its_start_says_so_and_ends() {
    let world = World::empty();
    let Some(group) = TaskGroup::new(&world) else { return };
    let nowhere = world.folder().join("file");
    std::fs::write(&nowhere, "").unwrap();
    let nowhere = nowhere.to_str().unwrap();
    // Each ends by itself soon, also where it gets all threads.
    let commands: [(&str, &[&str]); 3] = [
        ("quiltctl", &["--manager", "127.0.0.1:1", "--timeout", "100ms", "stations"]),
        ("quilt-station", &["stop", "--data-dir", nowhere]),
        ("quilt-manager", &["--data-dir", nowhere, "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]),
    ];
    for (binary, arguments) in commands {
        let mut were_refused = 0;
        for tasks in 1..12 {
            std::fs::write(group.0.join("pids.max"), tasks.to_string()).unwrap();
            let mut command = Command::new("sh");
            let enter = format!("echo $$ > {}/cgroup.procs && exec \"$0\" \"$@\"", group.0.display());
            command.args(["-c", &enter]).arg(world.binary(binary)).args(arguments).kill_on_drop(true);
            let ended = tokio::time::timeout(std::time::Duration::from_secs(20), command.output()).await;
            let output = ended.unwrap_or_else(|_| panic!("{binary} with {tasks} tasks does not end")).unwrap();
            let text = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.code().is_some_and(|code| code != 0 && code != 101), "{binary}, {tasks}: {text}");
            were_refused += u32::from(text.contains("cannot start the threads"));
        }
        assert!(were_refused > 0, "{binary} had what it needs with any limit");
    }
}
