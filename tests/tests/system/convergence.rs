//! What is applied runs, and what runs is left alone.

use nix::sys::signal::Signal;
use quilt_tests::{Fleet, World, clock, is_alive};

#[tokio::test]
async fn a_then_b_then_a_again_runs_a_and_a_repeat_touches_nothing() {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    let a = clock(&["cam-1"]).shell("cam-1/process/extra", "exec sleep 1000");
    let b = clock(&["cam-1"]);
    world.apply(a.text()).await.with_code(0);
    let clock_pid = world.pid("cam-1/process/clock").await;
    let extra_pid = world.pid("cam-1/process/extra").await;
    world.apply(b.text()).await.with_code(0);
    assert!(world.instance("cam-1/process/extra").await.is_none());
    assert!(!is_alive(extra_pid), "a removed instance runs on");
    world.apply(a.text()).await.with_code(0);
    let again = world.until_state("cam-1/process/extra", "active").await;
    let revision = world.show("cam-1").await.desired_revision;

    let repeat = world.apply(a.text()).await.with_code(0);
    assert!(repeat.out.contains("no changes"), "{repeat:?}");
    assert_eq!(world.show("cam-1").await.desired_revision, revision);
    assert_eq!(world.pid("cam-1/process/extra").await, again.pid.unwrap());
    assert_eq!(world.pid("cam-1/process/clock").await, clock_pid, "what did not change was touched");
}

#[tokio::test]
async fn a_changed_configuration_is_taken_in_place_where_the_role_can() {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    let fleet = |limit: u32, extra: &str| {
        let program = format!("command = [\"sleep\", \"1000\"]\nsuccess_exit_codes = [0, {limit}]\n{extra}");
        let counter = format!("limit = {limit}\n");
        Fleet::new().with("cam-1/counter/main", &counter).with("cam-1/process/main", &program)
    };
    world.apply(fleet(10, "").text()).await.with_code(0);
    let pid = world.pid("cam-1/process/main").await;
    world.ctl(&["call", "cam-1/counter/main", "increment", "{\"by\":10}"]).await.with_code(0);
    world.apply(fleet(20, "").text()).await.with_code(0);
    let value = world.ctl(&["call", "cam-1/counter/main", "increment", "{\"by\":10}"]).await.with_code(0);
    assert_eq!(value.out.trim(), "20", "the counter was restarted, or its limit was not updated");
    assert_eq!(world.pid("cam-1/process/main").await, pid, "the program was restarted");

    world.apply(fleet(20, "cwd = \"/tmp\"\n").text()).await.with_code(0);
    assert_ne!(world.pid("cam-1/process/main").await, pid, "a program cannot change its folder while it runs");
    assert!(!is_alive(pid), "the old program runs beside the new one");
}

#[tokio::test]
async fn a_removed_instance_has_let_go_of_its_port_before_a_new_one_takes_it() {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    // Programs that hold a port, and take a while to let go of it.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let server = format!(
        "import signal, socket, sys, time\n\
         s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)\n\
         s.bind(('127.0.0.1', {port})); s.listen()\n\
         signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.5), sys.exit(0)))\n\
         print('serving', flush=True)\n\
         while True: time.sleep(1)"
    );
    let keys = format!("command = [\"python3\", \"-c\", '''{server}''']\nready = {{ log = \"serving\" }}\n");
    let one = Fleet::new().with("cam-1/process/one", &keys);
    let two = Fleet::new().with("cam-1/process/two", &keys);
    world.apply(one.text()).await.with_code(0);
    for fleet in [&two, &one, &two] {
        world.apply(fleet.text()).await.with_code(0);
    }
    assert_eq!(world.instance("cam-1/process/two").await.unwrap().restarts, 0, "it found its port taken");
}

#[tokio::test]
async fn needs_are_started_after_and_waited_for() {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    let gate = world.folder().join("gate");
    let ready = format!(
        "command = [\"sleep\", \"1000\"]\nready = {{ command = [\"test\", \"-e\", {gate:?}], every = \"50ms\" }}\n"
    );
    let fleet = Fleet::new()
        .with("cam-1/process/db", &ready)
        .with("cam-1/process/app", "command = [\"sleep\", \"1000\"]\nneeds = [\"process/db\"]\n");
    let file = world.fleet_file("f.toml", fleet.text());
    world.ctl(&["apply", "-f", &file]).await.with_code(0);
    let waiting = world.until_state("cam-1/process/app", "waiting").await;
    assert_eq!((waiting.detail.as_str(), waiting.pid), ("process/db", None));
    assert_eq!(world.instance("cam-1/process/db").await.unwrap().state.name(), "starting");
    std::fs::write(&gate, "").unwrap();
    world.until_state("cam-1/process/db", "active").await;
    world.until_state("cam-1/process/app", "active").await;
}

#[tokio::test]
async fn groups_follow_labels_and_a_group_that_goes_takes_its_roles_with_it() {
    let mut world = World::new().await;
    world.station("cam-1", &["--label", "room=b"]).await;
    world.station("cam-2", &["--label", "room=a"]).await;
    let group = "[group.capture]\nmatch = 'room=a'\n[group.capture.roles.counter.shared]\nstart = 3\n";
    let own = "[station.cam-1]\nlabels = { room = 'a' }\n[station.cam-1.roles.counter.own]\nstart = 1\n";
    world.apply(&format!("{own}{group}")).await.with_code(0);
    world.until_state("cam-1/counter/shared", "active").await;
    world.until_state("cam-1/counter/own", "active").await;
    world.until_state("cam-2/counter/shared", "active").await;
    assert_eq!(world.show("cam-1").await.labels["room"], "a", "the file's labels beat the station's own");

    let without = world.apply(own).await.with_code(0);
    assert!(without.err.contains("group `capture` is no longer in"), "{}", without.err);
    world
        .eventually("the group's roles are gone", async |world| {
            world.instance("cam-2/counter/shared").await.is_none()
                && world.instance("cam-1/counter/shared").await.is_none()
        })
        .await;
    assert!(world.instance("cam-1/counter/own").await.is_some());
}

#[tokio::test]
async fn a_file_with_a_name_is_the_same_file_in_another_checkout_and_one_without_is_told_of_what_stays() {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    let group = |name: &str, instance: &str| {
        format!("[group.{name}]\nmatch = 'name=cam-*'\n[group.{name}.roles.counter.{instance}]\n")
    };
    let checkout = |name: &str, text: String| {
        std::fs::create_dir_all(world.folder().join(name)).unwrap();
        world.fleet_file(&format!("{name}/room.toml"), &text)
    };
    let (ours, theirs) = (checkout("ours", group("old", "x")), checkout("theirs", group("new", "y")));
    let instances = async || {
        let view = world.show("cam-1").await;
        view.instances.into_iter().map(|view| view.instance.to_string()).collect::<Vec<_>>()
    };
    let apply = ["apply", "--wait", "20", "--settle", "0"];
    let nameless = world.ctl(&[&apply[..], &["-f", &ours]].concat()).await.with_code(0);
    assert!(nameless.err.contains("the file has no name and is known by where it lies"), "{}", nameless.err);
    let other = world.ctl(&[&apply[..], &["-f", &theirs]].concat()).await.with_code(0);
    assert!(other.err.contains("ours/room.toml also configures cam-1, in group `old`"), "{}", other.err);
    assert_eq!(instances().await, ["x", "y"]);

    // Under one name each is the other, whatever folder it lies in.
    world.ctl(&[&apply[..], &["-f", &ours, "--as", "room"]].concat()).await.with_code(0);
    let named = checkout("theirs", format!("name = 'room'\n{}", group("new", "y")));
    let same = world.ctl(&[&apply[..], &["-f", &named]].concat()).await.with_code(0);
    assert!(same.err.contains("group `old` is no longer in room"), "{}", same.err);
    assert!(!same.err.contains("also configures"), "{}", same.err);
    assert_eq!(instances().await, ["y"]);
    world.ctl(&["diff", "-f", &named]).await.with_code(0);
}

#[tokio::test]
async fn a_rollout_that_fails_goes_back_and_one_in_batches_stops_at_the_first_failure() {
    let mut world = World::new().await;
    for name in ["cam-1", "cam-2"] {
        world.station(name, &[]).await;
    }
    world.apply(clock(&["cam-1", "cam-2"]).text()).await.with_code(0);
    let pid = world.pid("cam-2/process/clock").await;
    let failing = "command = [\"sh\", \"-c\", \"echo no disk >&2; exit 3\"]\nrestart = { policy = \"temporary\" }\n";
    let bad = clock(&["cam-1", "cam-2"]).with("cam-1/process/bad", failing).with("cam-2/process/bad", failing);
    let file = world.fleet_file("bad.toml", bad.text());
    let failed = world.ctl(&["apply", "-f", &file, "--batch", "1", "--rollback", "--wait", "20"]).await.with_code(4);
    assert!(failed.err.contains("exit code 3") && failed.err.contains("no disk"), "{}", failed.err);
    assert!(failed.err.contains("cam-1: rolled back"), "{}", failed.err);
    assert!(!failed.err.contains("cam-2: rolled back"), "its batch was not reached: {}", failed.err);
    assert!(failed.err.contains("halted: cam-2 never got it"), "{}", failed.err);
    world
        .eventually("the failing instance is gone", async |world| world.instance("cam-1/process/bad").await.is_none())
        .await;
    assert_eq!(world.pid("cam-2/process/clock").await, pid);
    let history = world.ctl(&["history", "cam-2", "-o", "json"]).await.with_code(0).json();
    assert_eq!(history.as_array().unwrap()[0]["instances"], serde_json::json!(["process/clock"]));
}

/// A station whose counter has run well for a while.
async fn counter_that_ran_well() -> World {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    world.apply(Fleet::new().with("cam-1/counter/one", "").text()).await.with_code(0);
    let good = async |world: &World| {
        world.ctl(&["history", "cam-1", "-o", "json"]).await.with_code(0).json()[0]["good"] == true
    };
    world.eventually("it has run well for a while", good).await;
    world
}

#[tokio::test]
async fn rollback_makes_the_last_good_configuration_desired_again() {
    let world = counter_that_ran_well().await;
    // One that flaps is never good.
    let flapping = "command = [\"sh\", \"-c\", \"sleep 0.05; exit 3\"]\nrestart = { delay = \"10ms\", max_delay = \"10ms\", intensity = 0 }\n";
    let file = world.fleet_file("f.toml", Fleet::new().with("cam-1/process/flaps", flapping).text());
    // Nor does an operator make it good who does not want to see it settle.
    world.ctl(&["apply", "-f", &file, "--wait", "20", "--settle", "0"]).await.with_code(0);
    world.apply(Fleet::new().with("cam-1/counter/two", "").text()).await.with_code(0);
    let back = world.ctl(&["rollback", "cam-1"]).await.with_code(0);
    assert!(back.out.contains("the next apply undoes this unless it is changed in /"), "{}", back.out);
    world.until_state("cam-1/counter/one", "active").await;
    assert!(world.instance("cam-1/counter/two").await.is_none());
    let file = world.fleet_file("fleet.toml", Fleet::new().with("cam-1/counter/two", "").text());
    let undoes = world.ctl(&["diff", "-f", &file]).await.with_code(3);
    assert!(undoes.err.contains("cam-1: the rollback to revision 1 ends with this apply"), "{}", undoes.err);
    let history = world.ctl(&["history", "cam-1", "-o", "json"]).await.with_code(0).json();
    let sources: Vec<_> = history.as_array().unwrap().iter().map(|entry| entry["source"].as_str().unwrap()).collect();
    assert!(sources[0].starts_with("rollback to revision") && sources.len() == 4, "{sources:?}");
}

#[tokio::test]
async fn a_rollback_goes_back_to_what_was_just_applied_and_no_further() {
    let world = counter_that_ran_well().await;
    // Nobody has had the time to see the next one run well.
    let next = || Fleet::new().with("cam-1/counter/one", "").with("cam-1/counter/two", "");
    let file = world.fleet_file("fleet.toml", next().text());
    world.ctl(&["apply", "-f", &file]).await.with_code(0);
    let fails = "command = [\"false\"]\nrestart = { policy = \"temporary\" }\n";
    let failing = world.fleet_file("fleet.toml", next().with("cam-1/process/fails", fails).text());
    let rolled = world.ctl(&["apply", "-f", &failing, "--wait", "20", "--rollback"]).await.with_code(4);
    assert!(rolled.err.contains("cam-1: rolled back"), "{}", rolled.err);
    // It says so when the station runs it again.
    assert_eq!(world.instance("cam-1/counter/two").await.unwrap().state.name(), "active");
    assert!(world.instance("cam-1/process/fails").await.is_none());
    let file = world.fleet_file("fleet.toml", next().text());
    world.ctl(&["diff", "-f", &file]).await.with_code(0);
    // What was taken back is not what somebody goes back to.
    let history = world.ctl(&["history", "cam-1", "-o", "json"]).await.with_code(0).json();
    assert_eq!(history[1]["good"], false, "{history}");
}

#[tokio::test]
async fn an_apply_answers_for_what_it_changes_and_neither_fails_for_nor_takes_back_what_other_files_gave() {
    let world = counter_that_ran_well().await;
    let others = format!(
        "name = 'others'\n[group.others]\nmatch = 'name=cam-1'\n[group.others.roles.counter.other]\n\
         [group.others.roles.process.bad]\n{FAILING}"
    );
    let others = world.fleet_file("others.toml", &others);
    world.ctl(&["apply", "-f", &others]).await.with_code(0);
    world.until_state("cam-1/process/bad", "failed").await;
    // Active now and then, also at the moment when an apply begins.
    let flapping = "command = [\"sh\", \"-c\", \"sleep 0.05; exit 3\"]\nrestart = { delay = \"10ms\", max_delay = \"10ms\", intensity = 0 }\n";
    let flapping =
        format!("name = 'flaps'\n[group.flaps]\nmatch = 'name=cam-1'\n[group.flaps.roles.process.flaps]\n{flapping}");
    let flapping = world.fleet_file("flaps.toml", &flapping);
    world.ctl(&["apply", "-f", &flapping]).await.with_code(0);
    world
        .eventually("it flaps", async |world| {
            world.instance("cam-1/process/flaps").await.is_some_and(|instance| instance.restarts > 1)
        })
        .await;
    // These are other files'.
    let next = || Fleet::new().with("cam-1/counter/one", "").with("cam-1/counter/two", "");
    let file = world.fleet_file("fleet.toml", next().text());
    let waits = ["--wait", "20", "--settle", "0.5"];
    let applied = world.ctl(&[&["apply", "-f", &file, "--rollback"], &waits[..]].concat()).await.with_code(0);
    let is_note = |line: &&str| line.starts_with("note: cam-1: process/bad is failed (exit code 3");
    let note = applied.err.lines().find(is_note).unwrap_or_else(|| panic!("no note in {}", applied.err));
    assert!(note.ends_with("it was not healthy before this apply either"), "{note}");
    // For the file that configures it, it is a failure also the second time, and no reason to go back.
    let again = world.ctl(&[&["apply", "-f", &others, "--rollback"], &waits[..]].concat()).await.with_code(4);
    assert!(again.err.contains("as before this apply") && !again.err.contains("cam-1: rolled back"), "{}", again.err);
    assert!(again.err.contains("note: nothing was rolled back: this apply is not to blame"), "{}", again.err);
    // An apply that fails takes back what it gave, and not what came since the station ran well.
    let failing = world.fleet_file("fleet.toml", next().with("cam-1/process/fails", FAILING).text());
    // It is active for a moment before it fails, which must not settle it.
    let settles = ["--wait", "20", "--settle", "2"];
    let rolled = world.ctl(&[&["apply", "-f", &failing, "--rollback"], &settles[..]].concat()).await.with_code(4);
    assert!(rolled.err.contains("rolled back") && rolled.err.contains("  - process/fails"), "{}", rolled.err);
    world.eventually("the failing one goes", async |world| world.instance("cam-1/process/fails").await.is_none()).await;
    for instance in ["one", "two", "other"] {
        world.until_state(&format!("cam-1/counter/{instance}"), "active").await;
    }
}

/// A file that gives a station some instances through a group named as itself.
fn group(name: &str, instances: &str) -> String {
    format!("name = '{name}'\n[group.{name}]\nmatch = 'name=cam-1'\n{instances}")
}

/// An instance that is starting until the file `up` is there, and fails once `down` is.
fn gated(world: &World) -> String {
    let until = |file: &str| format!("until [ -e {} ]; do sleep 0.05; done", world.folder().join(file).display());
    let script = format!("{}; echo up; {}; exit 3", until("up"), until("down"));
    format!(
        "[group.ours.roles.process.gated]\ncommand = [\"sh\", \"-c\", {script:?}]\n\
         restart = {{ policy = \"temporary\" }}\nready = {{ log = \"up\", within = \"60s\" }}\n"
    )
}

#[tokio::test]
async fn an_apply_is_followed_in_what_another_file_gives_meanwhile() {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    let one = "[group.ours.roles.counter.one]\n";
    let first = world.fleet_file("first.toml", &group("ours", one));
    let second = world.fleet_file("second.toml", &group("ours", &format!("{one}{}", gated(&world))));
    let theirs = world.fleet_file("theirs.toml", &group("theirs", "[group.theirs.roles.counter.other]\n"));
    world.ctl(&["apply", "-f", &first, "--wait", "--settle", "0"]).await.with_code(0);
    let apply = ["apply", "-f", &second, "--rollback", "--wait", "60", "--settle", "0"];
    let meanwhile = async |file: &str| {
        world.until_state("cam-1/process/gated", "starting").await;
        world.ctl(&["apply", "-f", file, "--wait", "--settle", "0"]).await.with_code(0);
    };
    // The same file again takes over.
    let (superseded, ()) = tokio::join!(world.ctl(&apply), meanwhile(&first));
    let superseded = superseded.with_code(4).err;
    assert!(superseded.contains("took over meanwhile: it does not have process/gated"), "{superseded}");
    assert!(superseded.contains("the configuration was stored, but 1 station got another one"), "{superseded}");
    world.ctl(&["diff", "-f", &first]).await.with_code(0);
    // Another file does not.
    let (applied, ()) = tokio::join!(world.ctl(&apply), async {
        meanwhile(&theirs).await;
        std::fs::write(world.folder().join("up"), "").unwrap();
    });
    let applied = applied.with_code(0).err;
    assert!(applied.contains("cam-1: settled 2 instances"), "{applied}");
    world.until_state("cam-1/counter/other", "active").await;
}

#[tokio::test]
async fn a_rollback_also_takes_its_part_from_what_another_file_gave_meanwhile() {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    let one = "[group.ours.roles.counter.one]\n";
    let first = world.fleet_file("first.toml", &group("ours", one));
    let second = world.fleet_file("second.toml", &group("ours", &format!("{one}{}", gated(&world))));
    let theirs = world.fleet_file("theirs.toml", &group("theirs", "[group.theirs.roles.counter.other]\n"));
    world.ctl(&["apply", "-f", &first, "--wait"]).await.with_code(0);
    let ours = ["apply", "-f", &second, "--rollback", "--wait", "60", "--settle", "50"];
    let (rolled, ()) = tokio::join!(world.ctl(&ours), async {
        world.until_state("cam-1/process/gated", "starting").await;
        world.ctl(&["apply", "-f", &theirs]).await.with_code(0);
        std::fs::write(world.folder().join("down"), "").unwrap();
        std::fs::write(world.folder().join("up"), "").unwrap();
    });
    let rolled = rolled.with_code(4).err;
    assert!(
        rolled.contains("rolled back") && rolled.contains("meanwhile and stays, without what this apply gave"),
        "{rolled}"
    );
    world.eventually("our part goes", async |world| world.instance("cam-1/process/gated").await.is_none()).await;
    world.until_state("cam-1/counter/other", "active").await;
    for file in [&first, &theirs] {
        world.ctl(&["diff", "-f", file]).await.with_code(0);
    }
}

#[tokio::test]
async fn operators_stop_start_and_restart_instances() {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    world.apply(clock(&["cam-1"]).text()).await.with_code(0);
    let pid = world.pid("cam-1/process/clock").await;
    world.ctl(&["stop", "cam-1/process/clock"]).await.with_code(0);
    world.until_state("cam-1/process/clock", "stopped").await;
    assert!(!is_alive(pid));
    // Stopped is stopped, whatever it is configured to be, and no failure of what is applied.
    let slower = Fleet::new().shell("cam-1/process/clock", "while date; do sleep 2; done");
    let applied = world.apply(slower.text()).await.with_code(0);
    assert!(applied.err.contains("process/clock is stopped (stopped by an operator)"), "{}", applied.err);
    // Also for a station that starts anew.
    world.end_station("cam-1", nix::sys::signal::Signal::SIGTERM).await;
    world.station("cam-1", &[]).await;
    world.until_state("cam-1/process/clock", "stopped").await;
    world.ctl(&["start", "cam-1/process/clock"]).await.with_code(0);
    world.until_state("cam-1/process/clock", "active").await;
    let pid = world.pid("cam-1/process/clock").await;
    world.ctl(&["restart", "cam-1/process/clock"]).await.with_code(0);
    world.until_state("cam-1/process/clock", "active").await;
    assert_ne!(world.pid("cam-1/process/clock").await, pid);
    world.ctl(&["restart", "cam-1/process/nothing"]).await.with_code(4);
}

const FAILING: &str =
    "command = [\"sh\", \"-c\", \"echo no disk >&2; exit 3\"]\nrestart = { policy = \"temporary\" }\n";

#[tokio::test]
async fn a_failing_rollout_in_batches_halts_and_spares_the_rest() {
    let mut world = World::new().await;
    let names = ["cam-1", "cam-2", "cam-3"];
    for name in names {
        world.station(name, &[]).await;
    }
    world.apply(clock(&names).text()).await.with_code(0);
    let bad = names.iter().fold(clock(&names), |fleet, name| fleet.with(&format!("{name}/process/bad"), FAILING));
    let file = world.fleet_file("bad.toml", bad.text());
    let failed = world.ctl(&["apply", "-f", &file, "--batch", "1", "--wait", "20"]).await.with_code(4);
    assert!(failed.err.contains("halted: cam-2, cam-3"), "{}", failed.err);
    world.until_state("cam-1/process/bad", "failed").await;
    for name in ["cam-2", "cam-3"] {
        assert!(world.instance(&format!("{name}/process/bad")).await.is_none(), "{name} was not spared");
        world.until_state(&format!("{name}/process/clock"), "active").await;
    }
}

#[tokio::test]
async fn an_apply_that_waits_names_every_station_that_failed_and_who_is_away_is_told_without_waiting() {
    let mut world = World::new().await;
    let names = ["cam-1", "cam-2", "cam-3"];
    for name in names {
        world.station(name, &[]).await;
    }
    // It never becomes healthy before it fails.
    let slowly = FAILING.replace("echo", "sleep 0.3; echo") + "ready = { log = \"never\" }\n";
    let bad = clock(&names).with("cam-1/process/bad", FAILING).with("cam-2/process/bad", &slowly);
    let file = world.fleet_file("bad.toml", bad.text());
    let failed = world.ctl(&["apply", "-f", &file, "--wait", "20", "-o", "json"]).await.with_code(4);
    let failures = failed.json()["failures"].clone();
    let failures: Vec<_> = failures.as_object().unwrap().keys().cloned().collect();
    assert_eq!(failures, ["cam-1", "cam-2"], "{}", failed.err);

    world.end_station("cam-3", nix::sys::signal::Signal::SIGTERM).await;
    world.eventually("it is gone", async |world| world.show("cam-3").await.state.name() == "disconnected").await;
    let file = world.fleet_file("fleet.toml", clock(&["cam-1", "cam-3"]).with("cam-3/counter/main", "").text());
    for verb in ["diff", "apply"] {
        let told = world.ctl(&[verb, "-f", &file]).await;
        assert!(told.err.contains("not connected: cam-3;"), "{verb}: {told:?}");
    }
}

#[tokio::test]
async fn a_rollout_goes_on_when_whoever_asked_for_it_is_gone() {
    let mut world = World::new().await;
    for name in ["cam-1", "cam-2", "cam-3"] {
        world.station(name, &[]).await;
    }
    let file = world.fleet_file("f.toml", clock(&["cam-1", "cam-2", "cam-3"]).text());
    let mut command = world.command("quiltctl");
    command.args(["--manager", &world.address, "apply", "-f", &file, "--batch", "1", "--settle", "1", "--wait", "60"]);
    let mut apply = command.stderr(std::process::Stdio::null()).spawn().unwrap();
    world.until_state("cam-1/process/clock", "active").await;
    apply.kill().await.unwrap();
    world.until_state("cam-2/process/clock", "active").await;
    world.until_state("cam-3/process/clock", "active").await;
}

#[tokio::test]
async fn an_apply_that_loses_its_asker_is_whole_or_not_at_all() {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    for turn in 1..=12u64 {
        let text = Fleet::new().with("cam-1/counter/main", &format!("start = {turn}\n"));
        let file = world.fleet_file("f.toml", text.text());
        let mut command = world.command("quiltctl");
        command.args(["--manager", &world.address, "apply", "-f", &file]);
        let mut apply = command.stdout(std::process::Stdio::null()).spawn().unwrap();
        let mut ticks = tokio::time::interval(std::time::Duration::from_millis(turn));
        ticks.tick().await;
        ticks.tick().await;
        apply.kill().await.unwrap();
        world
            .eventually("memory and store agree", async |world| {
                let history = world.ctl(&["history", "cam-1", "-o", "json"]).await.with_code(0).json();
                let stored = history[0]["revision"].as_u64();
                let shown = world.show("cam-1").await;
                stored == shown.desired_revision.map(|revision| revision.0)
                    && shown.applied_revision == shown.desired_revision
            })
            .await;
    }
}

#[tokio::test]
async fn a_station_lost_while_an_apply_waits_is_not_taken_for_healthy() {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    let slow = "command = [\"sleep\", \"1000\"]\nready = { log = \"never\", within = \"60s\" }\n";
    let file = world.fleet_file("f.toml", Fleet::new().with("cam-1/process/slow", slow).text());
    let arguments = ["apply", "-f", &file, "--wait", "2"];
    let waiting = world.ctl(&arguments);
    let pid = nix::unistd::Pid::from_raw(world.station_pid("cam-1") as i32);
    let losing = async {
        world.until_state("cam-1/process/slow", "starting").await;
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    };
    let (waited, ()) = tokio::join!(waiting, losing);
    assert!(waited.with_code(5).err.contains("it was lost"));
}

#[tokio::test]
async fn a_station_that_comes_while_an_apply_is_planned_gets_its_part() {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    let pid = nix::unistd::Pid::from_raw(world.station_pid("cam-1") as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP).unwrap();
    let fleet = Fleet::new().with("cam-1/counter/main", "").with("cam-2/counter/main", "");
    let file = world.fleet_file("f.toml", fleet.text());
    let mut command = world.command("quiltctl");
    command.args(["--manager", &world.address, "apply", "-f", &file]);
    let mut applying = command.stderr(std::process::Stdio::null()).spawn().unwrap();
    world.station("cam-2", &[]).await;
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGCONT).unwrap();
    assert!(applying.wait().await.unwrap().success());
    world.until_state("cam-1/counter/main", "active").await;
    world.until_state("cam-2/counter/main", "active").await;
}

#[tokio::test]
async fn a_rollback_leaves_alone_what_others_applied_meanwhile() {
    let mut world = World::new().await;
    for name in ["cam-1", "cam-2"] {
        world.station(name, &[]).await;
    }
    world.apply(clock(&["cam-1"]).text()).await.with_code(0);
    let gate = world.folder().join("gate");
    let script = format!("while [ ! -e {} ]; do sleep 0.02; done; exit 3", gate.display());
    let keys = format!("command = [\"sh\", \"-c\", {script:?}]\nrestart = {{ policy = \"temporary\" }}\n");
    let failing = world.fleet_file("failing.toml", clock(&["cam-1"]).with("cam-1/process/fails", &keys).text());
    let arguments = ["apply", "-f", &failing, "--wait", "20", "--settle", "15", "--rollback"];
    let rolling = world.ctl(&arguments);
    let meanwhile = async {
        world.until_state("cam-1/process/fails", "active").await;
        let other = world.fleet_file("other.toml", Fleet::new().with("cam-2/counter/other", "").text());
        world.ctl(&["apply", "-f", &other, "--wait", "--settle", "0"]).await.with_code(0);
        std::fs::write(&gate, "").unwrap();
    };
    let (rolled, ()) = tokio::join!(rolling, meanwhile);
    assert!(rolled.with_code(4).err.contains("rolled back"));
    let gone = async |world: &World| world.instance("cam-1/process/fails").await.is_none();
    world.eventually("the failing instance is gone", gone).await;
    assert!(world.instance("cam-2/counter/other").await.is_some(), "another's apply was taken back too");
    // Also in the store: what is desired is the same after a restart.
    world.end_manager(nix::sys::signal::Signal::SIGKILL).await;
    world.start_manager().await;
    world.until_state("cam-2/counter/other", "active").await;
    world.until_state("cam-1/process/clock", "active").await;
}

#[tokio::test]
async fn a_program_that_ends_again_and_again_is_not_settled_however_it_ends() {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    for script in ["exit 0", "sleep 0.02; exit 0"] {
        let restart = "restart = { policy = \"permanent\", delay = \"20ms\", intensity = 0 }\n";
        let keys = format!("command = [\"sh\", \"-c\", {script:?}]\n{restart}");
        let file = world.fleet_file("f.toml", Fleet::new().with("cam-1/process/flaps", &keys).text());
        let waited = world.ctl(&["apply", "-f", &file, "--wait", "1", "--settle", "1"]).await.with_code(5);
        assert!(waited.err.contains("not healthy in time: process/flaps"), "{}", waited.err);
    }
    let is_restarted =
        async |world: &World| world.instance("cam-1/process/flaps").await.is_some_and(|one| one.restarts > 1);
    world.eventually("it is restarted again and again", is_restarted).await;
}

#[tokio::test]
async fn groups_that_match_by_role_hold_while_a_station_is_away() {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    let text = "[station.cam-1]\n[group.all]\nmatch = \"role=process\"\n\
                [group.all.roles.process.clock]\ncommand = [\"sleep\", \"1000\"]\n";
    world.apply(text).await.with_code(0);
    let pid = world.pid("cam-1/process/clock").await;
    world.end_station("cam-1", Signal::SIGTERM).await;
    let file = world.fleet_file("fleet.toml", text);
    let again = world.ctl(&["apply", "-f", &file, "-o", "json"]).await.with_code(0).json();
    assert_eq!(again["changes"].as_array().unwrap().len(), 0, "the group lost the station");
    world.end_manager(Signal::SIGTERM).await;
    world.start_manager().await;
    world.ctl(&["apply", "-f", &file]).await.with_code(0);
    world.station("cam-1", &[]).await;
    assert_eq!(world.until_state("cam-1/process/clock", "active").await.pid, Some(pid));
}
