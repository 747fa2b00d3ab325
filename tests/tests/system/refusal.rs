//! A push that cannot be taken changes nothing, and says everything that is wrong with it.

use quilt_protocol::StationId;
use quilt_tests::{Fleet, World, clock};

fn wrong() -> Fleet {
    clock(&["cam-1"])
        .with("cam-1/counter/blocked", "")
        .with("cam-1/nonsense/missing", "")
        .with("cam-1/process/mistyped", "command = \"not a list\"\n")
        .with("cam-1/process/needy", "command = [\"true\"]\nneeds = [\"process/absent\"]\n")
}

async fn session_of(world: &World, name: &str) -> (StationId, u32) {
    (world.show(name).await.id, world.station_pid(name))
}

#[tokio::test]
async fn one_answer_lists_every_problem_and_nothing_changes() {
    let mut world = World::new().await;
    world.station("cam-1", &["--block", "counter"]).await;
    world.apply(clock(&["cam-1"]).text()).await.with_code(0);
    let (pid, before) = (world.pid("cam-1/process/clock").await, session_of(&world, "cam-1").await);
    let revision = world.show("cam-1").await.desired_revision;

    let file = world.fleet_file("wrong.toml", wrong().text());
    let refused = world.ctl(&["apply", "-f", &file, "-o", "json"]).await.with_code(4);
    let reply = refused.json();
    assert_eq!((reply["stored"].as_bool(), reply["rejection"]["code"].as_str()), (Some(false), Some("ROLE_BLOCKED")));
    let problems = reply["rejection"]["problems"].as_array().unwrap();
    let found: Vec<_> = problems
        .iter()
        .map(|problem| {
            for field in ["station", "role", "instance", "key", "expected", "got"] {
                assert!(problem.get(field).is_some(), "{field} is missing in {problem}");
            }
            assert_eq!(problem["station"], "cam-1");
            (problem["code"].as_str().unwrap(), problem["instance"].as_str().unwrap(), problem["key"].as_str())
        })
        .collect();
    assert_eq!(
        found,
        [
            ("ROLE_BLOCKED", "blocked", None),
            ("MISSING_ROLE_FACTORY", "missing", None),
            ("INVALID_CONFIGURATION", "mistyped", Some("command")),
            ("INVALID_CONFIGURATION", "needy", Some("needs")),
        ]
    );
    assert!(refused.err.contains("wrong.toml:"), "the place in the file is missing: {}", refused.err);

    let after = world.show("cam-1").await;
    assert_eq!((after.desired_revision, after.rejected), (revision, None));
    assert_eq!(world.pid("cam-1/process/clock").await, pid);
    assert_eq!(session_of(&world, "cam-1").await, before);
}

#[tokio::test]
async fn what_a_role_itself_finds_wrong_is_among_the_problems() {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    let fleet = Fleet::new().with("cam-1/counter/a", "start = 5\nlimit = 1\n").with("cam-1/counter/b", "strat = 1\n");
    let file = world.fleet_file("f.toml", fleet.text());
    let refused = world.ctl(&["apply", "-f", &file]).await.with_code(4);
    assert!(refused.err.contains("key `start`: expected at most the limit of 1, got 5"), "{}", refused.err);
    assert!(refused.err.contains("key `strat`: expected `start` or `limit`"), "{}", refused.err);
}

#[tokio::test]
async fn all_that_is_wrong_with_one_instance_is_told_at_once_and_no_secret_with_it() {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    let keys = "command = []\nuser = \"nosuch\"\ngroup = \"nosuch\"\nstop_signal = \"FOO\"\ncwd = \"rel\"\n\
                needs = [\"process/none\"]\nstop_timeout = \"soon\"\n";
    let secrets = "command = [\"true\"]\nenv = \"s3cret\"\n";
    let more = "command = [\"true\"]\nenv = { PIN = 424242 }\n";
    let fleet = Fleet::new()
        .with("cam-1/process/bad", keys)
        .with("cam-1/process/text", secrets)
        .with("cam-1/process/number", more);
    let file = world.fleet_file("f.toml", fleet.text());
    let refused = world.ctl(&["apply", "-f", &file, "-o", "json"]).await.with_code(4);
    let reply = refused.json();
    let problems = reply["rejection"]["problems"].as_array().unwrap();
    let keys: std::collections::BTreeSet<_> = problems
        .iter()
        .filter(|problem| problem["instance"] == "bad")
        .map(|problem| problem["key"].as_str().unwrap())
        .collect();
    assert_eq!(Vec::from_iter(keys), ["command", "cwd", "group", "needs", "stop_signal", "stop_timeout", "user"]);
    assert!(!(refused.out + &refused.err).contains("s3cret"), "a secret is shown");
    assert!(!serde_json::to_string(problems).unwrap().contains("424242"), "a secret is shown");
}

#[tokio::test]
async fn forced_it_is_stored_shown_as_rejected_and_everything_runs_on() {
    let mut world = World::new().await;
    world.station("cam-1", &["--block", "counter"]).await;
    world.apply(clock(&["cam-1"]).text()).await.with_code(0);
    let pid = world.pid("cam-1/process/clock").await;
    let file = world.fleet_file("wrong.toml", wrong().text());
    world.ctl(&["apply", "-f", &file, "--force"]).await.with_code(4);
    world.eventually("it is rejected", async |world| world.show("cam-1").await.rejected.is_some()).await;
    let view = world.show("cam-1").await;
    let rejected = view.rejected.unwrap();
    assert_eq!(Some(rejected.revision), view.desired_revision);
    assert_ne!(view.applied_revision, view.desired_revision);
    assert_eq!(rejected.rejection.problems.len(), 4);
    assert_eq!(world.pid("cam-1/process/clock").await, pid);
    // The same file again changes nothing in what is desired, and is refused as before: "no changes" would hide it.
    for verb in ["diff", "apply"] {
        let again = world.ctl(&[verb, "-f", &file]).await.with_code(4);
        assert!(again.err.contains("ROLE_BLOCKED: 4 problems, nothing was changed"), "{verb}: {}", again.err);
        assert!(!again.out.contains("no changes"), "{verb}: {}", again.out);
    }
}

#[tokio::test]
async fn one_refusing_station_among_three_keeps_all_three_as_they_are() {
    let mut world = World::new().await;
    for (name, more) in [("cam-1", &[][..]), ("cam-2", &["--block", "counter"]), ("cam-3", &[])] {
        world.station(name, more).await;
    }
    let fleet = ["cam-1", "cam-2", "cam-3"]
        .iter()
        .fold(Fleet::new(), |fleet, name| fleet.with(&format!("{name}/counter/main"), "start = 1\n"));
    let file = world.fleet_file("f.toml", fleet.text());
    world.ctl(&["apply", "-f", &file]).await.with_code(4);
    for station in world.stations().await {
        assert_eq!((station.desired_revision, station.instances.len()), (None, 0), "{}", station.name);
    }
}

#[tokio::test]
async fn the_order_of_a_file_does_not_change_the_outcome() {
    let mut world = World::new().await;
    world.station("cam-1", &["--block", "counter"]).await;
    let parts: Vec<_> = wrong().text().split_inclusive("\n[").map(str::to_owned).collect();
    let text = parts.concat();
    let mut sections: Vec<String> = text.split("\n[").map(|part| part.trim_start_matches('[').to_owned()).collect();
    let mut outcomes = std::collections::BTreeSet::new();
    for turn in 0..50 {
        // Fifty different orders, the same ones in every run.
        let length = sections.len();
        sections.swap(turn % length, (turn * 7 + 3) % length);
        let shuffled: String = sections.iter().map(|section| format!("[{section}\n")).collect();
        let file = world.fleet_file("f.toml", &shuffled);
        let refused = world.ctl(&["apply", "-f", &file, "-o", "json"]).await.with_code(4);
        outcomes.insert(refused.json()["rejection"].to_string());
    }
    assert_eq!(outcomes.len(), 1, "{outcomes:#?}");
}

#[tokio::test]
async fn mistakes_in_the_file_itself_name_line_and_column() {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    for (text, place) in [
        ("[station.cam-1]\nlables = { room = 'a' }\n", "f.toml:2:1"),
        ("[station.cam-1.roles.process.a]\nx = \n", "f.toml:2:"),
        ("[station.cam-1.roles.process.a]\n[station.cam-1.roles.process.a]\n", "f.toml:2:"),
        ("[group.g]\nmatch = 'room=='\n", "f.toml:2:1"),
        ("[station.'id:7']\n[group.g]\nmatch = 'state=connected'\n", "f.toml:3:1"),
        ("[station.'id:7']\n[group.g]\nmatch = 'state=connected'\n", "f.toml:1:10"),
    ] {
        let file = world.fleet_file("f.toml", text);
        let error = world.ctl(&["apply", "-f", &file]).await.with_code(1).err;
        assert!(error.contains(place), "{place} is not in {error}");
    }
    // The same instance with different settings from two entries, and a group that matches nothing.
    let text = "[station.cam-1.roles.counter.x]\nstart = 1\n[group.g]\nmatch = 'name=cam-*'\n\
                [group.g.roles.counter.x]\nstart = 2\n[group.none]\nmatch = 'room=nowhere'\n";
    let file = world.fleet_file("f.toml", text);
    let refused = world.ctl(&["apply", "-f", &file]).await.with_code(4);
    assert!(refused.err.contains("group `g`") && refused.err.contains("f.toml:1:"), "{}", refused.err);
    assert!(refused.err.contains("warning: ") && refused.err.contains("f.toml:8:1"), "{}", refused.err);
}

#[tokio::test]
async fn all_that_is_wrong_with_one_instance_is_listed_at_once() {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    let keys = "command = []\nneeds = 'x'\nrestart = { policy = 'sometimes', delay = 5 }\nstop_timeout = '5000000000s'\n\
                ready = 'now'\n";
    let own = "env = ['A=1']\nsuccess_exit_codes = ['0', 1, 'x']\nstop_signal = 'SIGTREM'\norphan_timeout = 7\n";
    let fleet = Fleet::new().with("cam-1/process/main", keys).with("cam-1/process/own", own);
    let refused = world.apply(fleet.text()).await.with_code(4).err;
    for problem in [
        "main: key `command`: expected a program and its arguments, got nothing",
        "main: key `needs`: expected a list, got text",
        "main: key `ready`: expected a table, got text",
        "main: key `restart.policy`: expected one of `permanent`, `transient`, `temporary`, got `sometimes`",
        "main: key `restart.delay`: expected a time such as \"10s\" or \"1m 30s\", got a whole number",
        "main: key `stop_timeout`: expected times of at most 365 days",
        "own: key `command`: expected a program and its arguments, got nothing",
        "own: key `env`: expected a table, got a list",
        "own: key `success_exit_codes[0]`: expected a whole number from 0 to 255, got text (",
        "fleet.toml:10:1",
        "own: key `success_exit_codes[2]`: expected a whole number",
        "own: key `stop_signal`: expected a signal such as TERM, got \"SIGTREM\"",
        "own: key `orphan_timeout`: expected a time such as \"10s\" or \"1m 30s\", got a whole number",
    ] {
        assert!(refused.contains(problem), "{problem} is missing in {refused}");
    }
    assert!(refused.contains(": 12 problems"), "{refused}");
}

#[tokio::test]
async fn a_reference_must_mean_one_station_and_one_station_has_one_entry() {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    world.station("cam-2", &[]).await;
    let view = world.show("cam-1").await;
    if let Some(mac) = &view.mac {
        let refused = world.apply(&format!("[station.\"mac:{mac}\".roles.counter.x]\n")).await;
        assert_ne!(refused.code, 0);
        assert!(refused.err.contains("must mean one"), "{}", refused.err);
    }
    world.apply(Fleet::new().with("cam-1/counter/old", "").text()).await.with_code(0);
    let renamed = world.apply(&format!("[station.\"id:{}\".roles.counter.new]\n", view.id)).await.with_code(0);
    assert!(renamed.err.contains("under another name"), "{}", renamed.err);
    let instances: Vec<_> =
        world.show("cam-1").await.instances.into_iter().map(|one| one.instance.to_string()).collect();
    assert_eq!(instances, ["new"]);
}
