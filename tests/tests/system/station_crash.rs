//! The station dies, restarts or is upgraded: its programs do not notice, and nothing is ever run twice.

use std::collections::BTreeSet;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use quilt_tests::{Fleet, World, clock, copy, is_alive};

/// A program that writes one number a line and appends its own start to a file.
fn counting(world: &World) -> String {
    let starts = world.folder().join("starts");
    format!("echo started >> {}; n=0; while true; do n=$((n+1)); echo line $n; sleep 0.02; done", starts.display())
}

fn starts(world: &World) -> usize {
    std::fs::read_to_string(world.folder().join("starts")).unwrap_or_default().lines().count()
}

#[tokio::test]
async fn programs_outlive_their_station_with_unbroken_logs_and_are_taken_back() {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    let fleet = Fleet::new().shell("cam-1/process/count", &counting(&world));
    world.apply(fleet.text()).await.with_code(0);
    let first = world.until_state("cam-1/process/count", "active").await;
    let pid = first.pid.unwrap();
    for signal in [Signal::SIGKILL, Signal::SIGTERM, Signal::SIGKILL] {
        world.end_station("cam-1", signal).await;
        assert!(is_alive(pid), "the program ended with its station ({signal})");
        world.station("cam-1", &[]).await;
        let view = world.until_state("cam-1/process/count", "active").await;
        assert_eq!((view.pid, view.restarts, &view.since), (Some(pid), 0, &first.since));
    }
    assert_eq!(starts(&world), 1);
    let numbers = async |world: &World| -> Vec<u32> {
        let logs = world.ctl(&["logs", "cam-1/process/count", "-n", "100000"]).await.with_code(0);
        logs.out.lines().filter_map(|line| line.strip_prefix("line ")?.parse().ok()).collect()
    };
    world.eventually("it wrote on", async |world| numbers(world).await.len() > 30).await;
    let numbers = numbers(&world).await;
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "lines are missing or doubled");
}

#[tokio::test]
async fn a_station_killed_again_and_again_at_any_moment_never_runs_a_program_twice() {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    let folder = world.folder().to_owned();
    let starts_of = |name: &str| folder.join(format!("starts-{name}"));
    let script = |name: &str| format!("echo x >> {}; exec sleep 1000", starts_of(name).display());
    for turn in 0..8u32 {
        let name = format!("p{turn}");
        let fleet = (0..=turn).fold(Fleet::new(), |fleet, one| {
            let name = format!("p{one}");
            fleet.shell(&format!("cam-1/process/{name}"), &script(&name))
        });
        let file = world.fleet_file("f.toml", fleet.text());
        world.ctl(&["apply", "-f", &file]).await.with_code(0);
        // At another moment each time: while it is saved, committed, started.
        let mut ticks = tokio::time::interval(std::time::Duration::from_millis(u64::from(turn) * 3 + 1));
        ticks.tick().await;
        ticks.tick().await;
        world.end_station("cam-1", Signal::SIGKILL).await;
        // It is the old one or the new one.
        world.accepted("cam-1");
        world.station("cam-1", &[]).await;
        world.until_state(&format!("cam-1/process/{name}"), "active").await;
        // Active says that it was started, and its shell comes to its first line when it does.
        world.eventually("it has begun", async |_| starts_of(&name).exists()).await;
        let starts = std::fs::read_to_string(starts_of(&name)).unwrap();
        assert_eq!(starts.lines().count(), 1, "{name} ran twice");
    }
}

#[tokio::test]
async fn an_exit_while_the_station_was_away_is_known_with_its_code() {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    let gate = world.folder().join("gate");
    let ends = |code: u32| {
        let script =
            format!("while [ ! -e {0} ]; do sleep 0.02; done; echo x >> {0}.ends; exit {code}", gate.display());
        format!("command = [\"sh\", \"-c\", {script:?}]\nrestart = {{ policy = \"temporary\" }}\n")
    };
    let fleet = Fleet::new().with("cam-1/process/well", &ends(0)).with("cam-1/process/badly", &ends(7));
    world.apply(fleet.text()).await.with_code(0);
    let pids = [world.pid("cam-1/process/well").await, world.pid("cam-1/process/badly").await];
    world.end_station("cam-1", Signal::SIGKILL).await;
    std::fs::write(&gate, "").unwrap();
    world.eventually("both have ended", async |_| !pids.into_iter().any(is_alive)).await;
    world.station("cam-1", &[]).await;
    world.until_state("cam-1/process/well", "completed").await;
    let failed = world.until_state("cam-1/process/badly", "failed").await;
    assert!(failed.detail.contains("exit code 7"), "{}", failed.detail);
    // What has ended stays so across more restarts: nothing is run twice.
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        world.end_station("cam-1", signal).await;
        world.station("cam-1", &[]).await;
        world.until_state("cam-1/process/well", "completed").await;
        let failed = world.until_state("cam-1/process/badly", "failed").await;
        assert!(failed.detail.contains("exit code 7"), "{}", failed.detail);
    }
    assert_eq!(std::fs::read_to_string(gate.with_extension("ends")).unwrap().lines().count(), 2);
}

#[tokio::test]
async fn a_killed_keeper_takes_its_program_with_it_and_both_are_started_once_more() {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    let fleet = Fleet::new().shell("cam-1/process/count", &counting(&world));
    world.apply(fleet.text()).await.with_code(0);
    let pid = world.pid("cam-1/process/count").await;
    let status = world.ctl(&["call", "cam-1/process/count", "status"]).await.with_code(0).json();
    kill(Pid::from_raw(status["keeper"].as_i64().unwrap() as i32), Signal::SIGKILL).unwrap();
    world.eventually("the program is gone", async |_| !is_alive(pid)).await;
    world
        .eventually("it runs again", async |world| {
            world.instance("cam-1/process/count").await.is_some_and(|view| view.pid.is_some_and(|new| new != pid))
        })
        .await;
    assert_eq!(starts(&world), 2);
}

#[tokio::test]
async fn an_interrupt_stops_everything_in_order() {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    let note = |name: &str, needs: &str| {
        let order = world.folder().join("order");
        let script =
            format!("trap 'echo {name} >> {}; exit 0' TERM; echo up; while true; do sleep 0.02; done", order.display());
        format!("command = [\"sh\", \"-c\", {script:?}]\nneeds = [{needs}]\nready = {{ log = \"up\" }}\n")
    };
    let fleet = Fleet::new()
        .with("cam-1/process/db", &note("db", ""))
        .with("cam-1/process/app", &note("app", "\"process/db\""))
        .with("cam-1/process/web", &note("web", "\"process/app\""));
    world.apply(fleet.text()).await.with_code(0);
    let mut pids = BTreeSet::new();
    for name in ["db", "app", "web"] {
        pids.insert(world.pid(&format!("cam-1/process/{name}")).await);
    }
    world.end_station("cam-1", Signal::SIGINT).await;
    assert!(!pids.into_iter().any(is_alive), "a program was left behind");
    assert_eq!(std::fs::read_to_string(world.folder().join("order")).unwrap(), "web\napp\ndb\n");
    world
        .eventually("the manager knows it left", async |world| world.show("cam-1").await.state.name() == "disconnected")
        .await;
}

#[tokio::test]
async fn without_a_manager_a_station_runs_what_it_has() {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    let marker = world.folder().join("marker");
    let fleet =
        clock(&["cam-1"]).shell("cam-1/process/mark", &format!("echo x >> {}; exec sleep 1000", marker.display()));
    world.apply(fleet.text()).await.with_code(0);
    world.end_station("cam-1", Signal::SIGINT).await;
    world.end_manager(Signal::SIGKILL).await;
    world.start_station("cam-1", &[]).await;
    let started = std::time::Instant::now();
    world
        .eventually("the program runs", async |_| {
            std::fs::read_to_string(&marker).unwrap_or_default().lines().count() == 2
        })
        .await;
    assert!(started.elapsed() < std::time::Duration::from_secs(2), "{:?}", started.elapsed());

    // A deletion made while the station cannot hear of it holds when it returns.
    world.end_station("cam-1", Signal::SIGTERM).await;
    world.start_manager().await;
    let file = world.fleet_file("none.toml", Fleet::new().empty_station("cam-1").text());
    world.ctl(&["apply", "-f", &file]).await.with_code(0);
    world.station("cam-1", &[]).await;
    world.eventually("all is gone", async |world| world.show("cam-1").await.instances.is_empty()).await;
}

#[tokio::test]
async fn drop_in_files_on_the_host_run_beside_the_fleets_and_a_push_leaves_them_alone() {
    let mut world = World::new().await;
    let folder = world.folder().join("config/roles.d");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(
        folder.join("10-local.toml"),
        "[counter.mine]\nstart = 7\n[counter.needy]\nneeds = ['counter/base']\n",
    )
    .unwrap();
    world.station("cam-1", &[]).await;
    let mine = world.until_state("cam-1/counter/mine", "active").await;
    assert_eq!(serde_json::to_value(mine.owner).unwrap(), "local");
    world.apply(Fleet::new().with("cam-1/counter/theirs", "").text()).await.with_code(0);
    world.apply(Fleet::new().empty_station("cam-1").text()).await.with_code(0);
    assert_eq!(world.instance("cam-1/counter/mine").await.unwrap().attributes["value"], 7);
    let clash = world.apply(Fleet::new().with("cam-1/counter/mine", "").text()).await.with_code(4);
    assert!(clash.err.contains("drop-in file") && clash.err.contains("roles.d/10-local.toml"), "{}", clash.err);
    // What the host's own need is not taken from it, also after a restart of the station.
    world.apply(Fleet::new().with("cam-1/counter/base", "").text()).await.with_code(0);
    world.until_state("cam-1/counter/needy", "active").await;
    world.end_station("cam-1", Signal::SIGTERM).await;
    world.station("cam-1", &[]).await;
    let taken = world.apply(Fleet::new().empty_station("cam-1").text()).await.with_code(4);
    assert!(taken.err.contains("counter/base: expected it to stay as long as `counter/needy`"), "{}", taken.err);
}

#[tokio::test]
async fn a_drop_in_file_that_is_wrong_or_clashes_ends_nothing_and_keeps_the_station_from_nothing() {
    let mut world = World::new().await;
    let folder = world.folder().join("config/roles.d");
    std::fs::create_dir_all(&folder).unwrap();
    let mine = "[process.mine]\ncommand = ['sleep', '1000']\n";
    std::fs::write(folder.join("10-mine.toml"), mine).unwrap();
    world.station("cam-1", &[]).await;
    world.apply(Fleet::new().with("cam-1/counter/theirs", "start = 1\n").text()).await.with_code(0);
    let pid = world.until_state("cam-1/process/mine", "active").await.pid.unwrap();

    world.end_station("cam-1", Signal::SIGTERM).await;
    std::fs::write(folder.join("10-mine.toml"), "[process.mine\n").unwrap();
    std::fs::write(folder.join("20-clash.toml"), "[counter.theirs]\nstart = 2\n").unwrap();
    world.station("cam-1", &[]).await;
    assert_eq!(world.until_state("cam-1/counter/theirs", "active").await.attributes["value"], 1);
    assert!(is_alive(pid), "what the broken file configures runs on until it says something else");
    let told = async |world: &World| {
        let notes = world.ctl(&["station", "show", "cam-1"]).await.out;
        notes.contains("10-mine.toml:1")
            && notes.contains("20-clash.toml: counter/theirs is in the fleet's configuration")
    };
    world.eventually("the fleet sees what is wrong with the files", told).await;

    world.end_station("cam-1", Signal::SIGTERM).await;
    std::fs::write(folder.join("10-mine.toml"), mine).unwrap();
    world.station("cam-1", &[]).await;
    assert_eq!(world.until_state("cam-1/process/mine", "active").await.pid, Some(pid));
}

#[tokio::test]
async fn hangup_opens_the_log_anew_and_ends_nothing() {
    let mut world = World::new().await;
    let log = world.folder().join("station.log");
    world.station("cam-1", &["--log-file", log.to_str().unwrap()]).await;
    world.apply(clock(&["cam-1"]).text()).await.with_code(0);
    let moved = log.with_extension("1");
    std::fs::rename(&log, &moved).unwrap();
    kill(Pid::from_raw(world.station_pid("cam-1") as i32), Signal::SIGHUP).unwrap();
    world.eventually("the log is there again", async |_| log.exists()).await;
    world.apply(Fleet::new().empty_station("cam-1").text()).await.with_code(0);
    assert!(std::fs::read_to_string(&log).unwrap().contains("accepted a configuration"));
    assert!(!std::fs::read_to_string(&moved).unwrap().is_empty());
}

#[tokio::test]
async fn hangup_reads_the_drop_in_files_again_and_a_broken_one_changes_nothing() {
    let mut world = World::new().await;
    let (folder, log) = (world.folder().join("config/roles.d"), world.folder().join("station.log"));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("10-one.toml"), "[counter.one]\n").unwrap();
    world.station("cam-1", &["--log-file", log.to_str().unwrap()]).await;
    world.until_state("cam-1/counter/one", "active").await;
    let station = Pid::from_raw(world.station_pid("cam-1") as i32);

    std::fs::write(folder.join("20-two.toml"), "[counter.two]\nstart = 2\n").unwrap();
    kill(station, Signal::SIGHUP).unwrap();
    world.until_state("cam-1/counter/two", "active").await;

    std::fs::write(folder.join("20-two.toml"), "[counter.two\n").unwrap();
    std::fs::remove_file(folder.join("10-one.toml")).unwrap();
    kill(station, Signal::SIGHUP).unwrap();
    let told = async |world: &World| {
        let why = "until it is mended the drop-in files read before stay in force";
        let show = world.ctl(&["station", "show", "cam-1"]).await.out;
        std::fs::read_to_string(&log).unwrap().contains(why) && show.contains("20-two.toml") && show.contains(why)
    };
    world.eventually("the log and the fleet say why", told).await;

    std::fs::write(folder.join("20-two.toml"), "[counter.two]\nstart = 3\n").unwrap();
    kill(station, Signal::SIGHUP).unwrap();
    let gone = async |world: &World| world.instance("cam-1/counter/one").await.is_none();
    world.eventually("the one whose file is gone has gone", gone).await;
    assert_eq!(world.instance("cam-1/counter/two").await.unwrap().restarts, 0);
    let forgotten = async |world: &World| world.show("cam-1").await.flags.is_empty();
    world.eventually("nothing is wrong any more", forgotten).await;

    std::fs::write(folder.join("30-three.toml"), "[counter.three]\nstrat = 3\n").unwrap();
    kill(station, Signal::SIGHUP).unwrap();
    let told = async |world: &World| {
        let flags = world.show("cam-1").await.flags;
        flags.iter().any(|flag| flag.contains("30-three.toml: INVALID_CONFIGURATION") && flag.contains("strat"))
    };
    world.eventually("a key that a role does not have is told as a mistake", told).await;
}

#[tokio::test]
async fn a_damaged_file_is_set_aside_and_the_manager_pushes_again() {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    world.apply(clock(&["cam-1"]).with("cam-1/counter/main", "").text()).await.with_code(0);
    let pid = world.pid("cam-1/process/clock").await;
    world.end_station("cam-1", Signal::SIGTERM).await;
    let [saved, _] = world.accepted_slots("cam-1");
    std::fs::write(&saved, "{ half a fi").unwrap();
    // Nobody knows what should run here until the manager says: what runs goes on, however often the station starts.
    world.end_manager(Signal::SIGTERM).await;
    for _ in 0..3 {
        world.start_station("cam-1", &[]).await;
        world.end_station("cam-1", Signal::SIGTERM).await;
        assert!(is_alive(pid));
    }
    world.start_manager().await;
    world.station("cam-1", &[]).await;
    world.until_state("cam-1/counter/main", "active").await;
    assert_eq!(world.until_state("cam-1/process/clock", "active").await.pid, Some(pid));
    assert!(saved.with_extension("0.damaged").exists());
}

#[tokio::test]
async fn what_was_accepted_last_and_is_damaged_gives_way_to_what_was_before_and_nothing_is_ended_for_it() {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    world.apply(Fleet::new().with("cam-1/counter/main", "").text()).await.with_code(0);
    world.apply(clock(&["cam-1"]).with("cam-1/counter/main", "").text()).await.with_code(0);
    let pid = world.pid("cam-1/process/clock").await;
    world.end_station("cam-1", Signal::SIGTERM).await;
    world.end_manager(Signal::SIGTERM).await;
    let [_, last] = world.accepted_slots("cam-1");
    // As when the power fails in the middle of a write.
    let mut bytes = std::fs::read(&last).unwrap();
    bytes[200..].fill(b'?');
    std::fs::write(&last, bytes).unwrap();

    let log = world.folder().join("station.log");
    let log = log.to_str().unwrap();
    world.start_station("cam-1", &["--log-file", log]).await;
    world
        .eventually("the counter of the configuration before runs", async |_| {
            let log = std::fs::read_to_string(log).unwrap_or_default();
            log.contains("the record of the configuration accepted last is damaged")
                && log.contains("instance=counter/main state=active")
        })
        .await;
    assert!(is_alive(pid), "nobody knows that it should end");
    world.start_manager().await;
    assert_eq!(world.until_state("cam-1/process/clock", "active").await.pid, Some(pid));
    assert!(world.accepted("cam-1").unwrap()["document"].as_str().unwrap().contains("clock"));
}

#[tokio::test]
async fn stop_leaves_programs_running_and_stop_with_roles_leaves_nothing() {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    world.apply(clock(&["cam-1"]).text()).await.with_code(0);
    let pid = world.pid("cam-1/process/clock").await;
    let stop = async |world: &World, more: &[&str]| {
        let mut command = world.command("quilt-station");
        command.arg("stop").args(more).arg("--data-dir").arg(world.station_folder("cam-1"));
        let output = command.output().await.unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(stop(&world, &[]).await.starts_with("stopped process"));
    assert!(is_alive(pid));
    // Also what an earlier station left.
    assert!(stop(&world, &["--roles"]).await.contains("1 program of an earlier station"));
    assert!(!is_alive(pid));

    world.station("cam-1", &[]).await;
    world.until_state("cam-1/process/clock", "active").await;
    let pid = world.pid("cam-1/process/clock").await;
    assert!(stop(&world, &["--roles"]).await.starts_with("stopped process"));
    assert!(!is_alive(pid));
}

#[tokio::test]
async fn an_upgraded_station_takes_back_what_the_old_one_ran() {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    world.apply(clock(&["cam-1"]).text()).await.with_code(0);
    let pid = world.pid("cam-1/process/clock").await;
    world.end_station("cam-1", Signal::SIGTERM).await;
    // The new version is another file; the old keeper goes on with the old one.
    let upgraded = world.folder().join("quilt-station-new");
    // By another process: a child that another test forks now would hold a copy of ours open for writing, and what is open
    // for writing cannot be run.
    copy(&world.binary("quilt-station"), &upgraded);
    let mut command = tokio::process::Command::new(&upgraded);
    command.env("QUILT_CFG_DIR", world.folder()).kill_on_drop(true);
    command.arg("--data-dir").arg(world.station_folder("cam-1"));
    command.args(["--manager", &world.address, "--name", "cam-1"]).stdout(std::process::Stdio::null());
    let _station = command.spawn().unwrap();
    world.eventually("it is back", async |world| world.show("cam-1").await.state.name() == "connected").await;
    assert_eq!(world.until_state("cam-1/process/clock", "active").await.pid, Some(pid));
}

#[tokio::test]
async fn a_program_with_a_ready_check_is_taken_back_as_it_is() {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    let gate = world.folder().join("gate");
    let ends = format!("echo up; while [ ! -e {} ]; do sleep 0.02; done; echo done >> {0}.ran", gate.display());
    let ready = "ready = { log = \"up\", within = \"3s\" }\n";
    let fleet = Fleet::new()
        .with("cam-1/process/lives", &format!("command = [\"sh\", \"-c\", \"echo up; exec sleep 1000\"]\n{ready}"))
        .with("cam-1/process/ends", &format!("command = [\"sh\", \"-c\", {ends:?}]\n{ready}"));
    world.apply(fleet.text()).await.with_code(0);
    let (lives, ends) = (world.pid("cam-1/process/lives").await, world.pid("cam-1/process/ends").await);
    world.end_station("cam-1", Signal::SIGTERM).await;
    std::fs::write(&gate, "").unwrap();
    world.eventually("one has ended", async |_| !is_alive(ends)).await;
    world.station("cam-1", &[]).await;
    assert_eq!(world.until_state("cam-1/process/lives", "active").await.pid, Some(lives));
    assert_eq!(world.until_state("cam-1/process/ends", "completed").await.restarts, 0);
    assert_eq!(std::fs::read_to_string(gate.with_extension("ran")).unwrap(), "done\n");
}

#[tokio::test]
async fn what_no_instance_holds_any_more_is_ended() {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    let sleeping = "command = [\"sleep\", \"1000\"]\n";
    let fleet = Fleet::new()
        .with("cam-1/process/db", sleeping)
        .with("cam-1/process/app", &format!("{sleeping}needs = [\"process/db\"]\n"));
    world.apply(fleet.text()).await.with_code(0);
    let (db, app) = (world.pid("cam-1/process/db").await, world.pid("cam-1/process/app").await);

    // One whose need is stopped is held again after the restart, and really stopped.
    world.ctl(&["stop", "cam-1/process/db"]).await.with_code(0);
    assert!(!is_alive(db));
    world.end_station("cam-1", Signal::SIGKILL).await;
    world.station("cam-1", &[]).await;
    world.until_state("cam-1/process/app", "active").await;
    assert!(is_alive(app));
    world.ctl(&["stop", "cam-1/process/app"]).await.with_code(0);
    assert!(!is_alive(app), "stopped, and its program runs");
    world.ctl(&["start", "cam-1/process/db"]).await.with_code(0);
    world.ctl(&["start", "cam-1/process/app"]).await.with_code(0);
    world.until_state("cam-1/process/app", "active").await;
    let (db, app) = (world.pid("cam-1/process/db").await, world.pid("cam-1/process/app").await);

    // Removed from the record while the station was dead: swept up when it starts.
    world.end_station("cam-1", Signal::SIGKILL).await;
    world.accepted_slots("cam-1").iter().for_each(|slot| std::fs::remove_file(slot).unwrap());
    world.end_manager(Signal::SIGTERM).await;
    world.start_station("cam-1", &[]).await;
    world.eventually("both are gone", async |_| !is_alive(db) && !is_alive(app)).await;
}

#[tokio::test]
async fn a_program_is_taken_back_also_when_what_it_needs_was_stopped() {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    let fleet = Fleet::new()
        .shell("cam-1/process/db", "exec sleep 1000")
        .with("cam-1/process/web", "command = [\"sh\", \"-c\", \"sleep 1000\"]\nneeds = [\"process/db\"]\n");
    world.apply(fleet.text()).await.with_code(0);
    let pid = world.pid("cam-1/process/web").await;
    let stopped = world.ctl(&["stop", "cam-1/process/db"]).await.with_code(0);
    assert!(stopped.err.contains("note: process/web needs cam-1/process/db and runs on"), "{}", stopped.err);
    world.end_station("cam-1", Signal::SIGTERM).await;
    world.station("cam-1", &[]).await;
    let web = world.until_state("cam-1/process/web", "active").await;
    assert_eq!((web.pid, web.restarts), (Some(pid), 0));
    world.until_state("cam-1/process/db", "stopped").await;
    // Held again: its end is noticed, and its next start waits.
    kill(Pid::from_raw(pid as i32), Signal::SIGKILL).unwrap();
    let web = world.until_state("cam-1/process/web", "waiting").await;
    assert_eq!((web.pid, web.restarts), (None, 1));
}
