//! Newer builds of a plugin that are not taken: what goes on, and what the next start of the station makes of it.

use std::collections::BTreeSet;

use nix::sys::signal::Signal;
use quilt_tests::{Fleet, Output, World, plugins};

use crate::imp::{Build, Echo};
use crate::plugins::TARGET;

#[tokio::test]
async fn an_upgrade_that_fails_goes_back_to_the_build_before_on_every_instance() {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    world.plug(&plugins::imp("one"), "libimp.so");
    world.until_offered("cam-1", "imp").await;
    let fleet = Fleet::new()
        .with("cam-1/imp/a", "say = 'a'\n")
        .with("cam-1/imp/b", "say = 'b'\nstart = 'fails'\nonly_build = 'two'\n");
    world.apply(fleet.text()).await.with_code(0);
    world.plug(&plugins::imp("two"), "libimp.so");
    world
        .eventually("the newer file is refused", async |world| {
            let list = world.ctl(&["plugin", "list", "cam-1", "-o", "json"]).await.json();
            list.as_array().unwrap().iter().any(|plugin| plugin["code"] == "UPGRADE_FAILED")
        })
        .await;
    let client = world.client().await;
    for name in ["a", "b"] {
        let target = format!("cam-1/imp/{name}");
        world.eventually("it is back", async |_| client.call(&target, &Build {}).await.unwrap() == "one").await;
        assert_eq!(world.instance(&target).await.unwrap().restarts, 0);
    }
    // Pushed with --wait it says so, and what is stored goes back as well.
    let library = plugins::imp("two");
    let pushed = ["plugin", "push", library.to_str().unwrap(), "--on", "name=*", "--rollback"];
    let pushed = world.ctl(&pushed).await.with_code(4);
    assert!(pushed.err.contains("was not upgraded") && pushed.err.contains("rolled back"), "{}", pushed.err);
    let goes_on = async |_: &World| client.call("cam-1/imp/a", &Build {}).await.unwrap() == "one";
    world.eventually("the one before goes on", goes_on).await;
}

#[tokio::test]
async fn a_station_that_starts_anew_goes_on_with_the_build_that_a_failed_upgrade_went_back_to() {
    let [one, two] = ["one", "two"].map(plugins::imp);
    let codes = async |world: &World| {
        let list = world.ctl(&["plugin", "list", "cam-1", "-o", "json"]).await.with_code(0).json();
        let list = list.as_array().unwrap().iter();
        list.map(|plugin| (plugin["state"].to_string(), plugin["code"].to_string())).collect::<BTreeSet<_>>()
    };
    let quoted = |state: &str, code: &str| (format!("{state:?}"), code.to_owned());
    let as_before = BTreeSet::from([quoted("live", "null"), quoted("refused", "\"UPGRADE_FAILED\"")]);
    for pushed in [false, true] {
        let mut world = World::new().await;
        world.station("cam-1", &[]).await;
        let take = async |world: &World, library: &std::path::Path| match pushed {
            false => world.plug(library, "libimp.so"),
            true => {
                world.ctl(&["plugin", "push", library.to_str().unwrap(), "--on", "name=*"]).await;
            }
        };
        take(&world, &one).await;
        world.until_offered("cam-1", "imp").await;
        let ill = "say = 'x'\nstart = 'fails'\nonly_build = 'two'\n";
        world.apply(Fleet::new().with(TARGET, ill).text()).await.with_code(0);
        take(&world, &two).await;
        world.eventually("it went back", async |world| codes(world).await == as_before).await;
        // Killed at any time, and with no manager to ask.
        for signal in [Signal::SIGTERM, Signal::SIGKILL] {
            world.end_station("cam-1", signal).await;
            world.end_manager(Signal::SIGTERM).await;
            world.start_station("cam-1", &[]).await;
            world.start_manager().await;
            world.until_state(TARGET, "active").await;
            assert_eq!(world.client().await.call(TARGET, &Build {}).await.unwrap(), "one");
            assert_eq!(codes(&world).await, as_before);
        }
        if pushed {
            // Asked for once more, it is as little there as before, and taking it away is not a way out while it is needed.
            let again = ["plugin", "push", two.to_str().unwrap(), "--on", "name=*"];
            let again = world.ctl(&again).await.with_code(4);
            assert!(again.err.contains("start fails"), "{}", again.err);
            let removed = world.ctl(&["plugin", "remove", "imp"]).await.with_code(4);
            assert!(removed.err.contains("imp"), "{}", removed.err);
        }
        // Once it can, an operator's word is enough, and what was taken then is what the next start takes.
        world.apply(Fleet::new().with(TARGET, "say = 'x'\n").text()).await.with_code(0);
        world.ctl(&["plugin", "reload", "cam-1"]).await.with_code(0);
        let client = world.client().await;
        world
            .eventually("it is moved", async |_| client.call(TARGET, &Build {}).await.is_ok_and(|build| build == "two"))
            .await;
        // Its turn comes when that is done.
        world.apply(Fleet::new().with(TARGET, "say = 'y'\n").text()).await.with_code(0);
        world.end_station("cam-1", Signal::SIGKILL).await;
        world.station("cam-1", &[]).await;
        world.until_state(TARGET, "active").await;
        assert_eq!(world.client().await.call(TARGET, &Build {}).await.unwrap(), "two");
        assert_eq!(codes(&world).await, BTreeSet::from([quoted("live", "null")]));
    }
}

#[tokio::test]
async fn a_configuration_made_for_a_build_that_is_not_taken_is_not_put_on_the_build_before() {
    let [narrow, two] = ["narrow", "two"].map(plugins::imp);
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    push(&world, &narrow, &[]).await.with_code(0);
    let ill = "start = 'fails'\nonly_build = 'two'\n";
    let fleet = Fleet::new().with(TARGET, &format!("say = 'x'\n{ill}")).with("cam-1/counter/other", "");
    world.apply(fleet.text()).await.with_code(0);
    push(&world, &two, &[]).await.with_code(4);
    // A key that only the newer build knows. It is tried once more, in vain.
    let wider = format!("say = 'y'\nwhisper = true\n{ill}");
    let fleet = Fleet::new().with(TARGET, &wider).with("cam-1/counter/other", "");
    let applied = world.apply(fleet.text()).await.with_code(4);
    assert!(applied.err.contains("was not upgraded"), "{}", applied.err);
    let goes_on = async |world: &World| {
        world.until_state(TARGET, "active").await;
        let client = world.client().await;
        assert_eq!(client.call(TARGET, &Build {}).await.unwrap(), "narrow");
        assert_eq!(client.call(TARGET, &Echo { text: "z".into() }).await.unwrap(), "x z");
        assert_eq!(world.instance(TARGET).await.unwrap().restarts, 0);
    };
    goes_on(&world).await;
    // Whatever comes to pass next: other files, an operator's word, a change elsewhere, a station that starts anew.
    let other = plugins::hostile(world.folder(), "good");
    world.plug(&other, "good.so");
    world.until_offered("cam-1", "good").await;
    goes_on(&world).await;
    world.ctl(&["plugin", "reload", "cam-1"]).await.with_code(0);
    goes_on(&world).await;
    world.apply(Fleet::new().with(TARGET, &wider).text()).await.with_code(4);
    world
        .eventually("the other role's is gone", async |world| world.instance("cam-1/counter/other").await.is_none())
        .await;
    goes_on(&world).await;
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        world.end_station("cam-1", signal).await;
        world.station("cam-1", &[]).await;
        goes_on(&world).await;
    }
    // A configuration that the newer build can start with brings both.
    let well = Fleet::new().with(TARGET, "say = 'y'\nwhisper = true\n");
    world.apply(well.text()).await.with_code(0);
    let client = world.client().await;
    assert_eq!(client.call(TARGET, &Build {}).await.unwrap(), "two");
    world.end_station("cam-1", Signal::SIGKILL).await;
    world.station("cam-1", &[]).await;
    world.until_state(TARGET, "active").await;
    assert_eq!(world.client().await.call(TARGET, &Build {}).await.unwrap(), "two");
    // Nothing is held of it any more: also the one before, pushed again, has what is asked for now.
    world.apply(Fleet::new().with(TARGET, "say = 'w'\n").text()).await.with_code(0);
    push(&world, &narrow, &[]).await.with_code(0);
    let client = world.client().await;
    assert_eq!(client.call(TARGET, &Echo { text: "z".into() }).await.unwrap(), "w z");
}

#[tokio::test]
async fn a_station_that_ends_in_the_middle_of_an_upgrade_begins_with_the_build_before() {
    let [one, two, narrow] = ["one", "two", "narrow"].map(plugins::imp);
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    // What runs was pushed over what is in the folder.
    world.plug(&narrow, "libimp.so");
    world.until_offered("cam-1", "imp").await;
    world.ctl(&["plugin", "push", one.to_str().unwrap(), "--on", "name=*"]).await.with_code(0);
    let ill = "say = 'x'\nstart = 'hangs'\nonly_build = 'two'\n";
    world.apply(Fleet::new().with(TARGET, ill).text()).await.with_code(0);
    let push = ["plugin", "push", two.to_str().unwrap(), "--on", "name=*", "--wait", "0"];
    world.ctl(&push).await.with_code(0);
    let newer = quilt_station::inspect_plugin(&two).unwrap().sha256;
    let state = async |world: &World| {
        let list = world.ctl(&["plugin", "list", "cam-1", "-o", "json"]).await.json();
        let newer = list.as_array().unwrap().iter().find(|plugin| plugin["sha256"] == *newer).cloned();
        newer.unwrap_or_default()
    };
    // It is shown as live a moment before it is on record as being tried, and only then is it.
    let record = world.station_folder("cam-1").join("station/plugins/settled.json");
    let is_on_record = || std::fs::read_to_string(&record).is_ok_and(|json| json.contains(&newer));
    world.eventually("it is tried", async |world| state(world).await["state"] == "live" && is_on_record()).await;
    world.end_station("cam-1", Signal::SIGKILL).await;
    world.station("cam-1", &[]).await;
    world.until_state(TARGET, "active").await;
    assert_eq!(world.client().await.call(TARGET, &Build {}).await.unwrap(), "one");
    let detail = state(&world).await["detail"].to_string();
    assert!(detail.contains("in the middle of the upgrade"), "{detail}");
}

#[tokio::test]
async fn a_build_that_was_taken_away_does_not_come_back_for_another_that_is_not_usable() {
    let [one, two] = ["one", "two"].map(plugins::imp);
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    world.plug(&one, "libimp.so");
    world.until_offered("cam-1", "imp").await;
    let ill = "say = 'x'\nstart = 'fails'\nonly_build = 'two'\n";
    world.apply(Fleet::new().with(TARGET, ill).text()).await.with_code(0);
    world.plug(&two, "libimp.so");
    let list = async |world: &World| world.ctl(&["plugin", "list", "cam-1", "-o", "json"]).await.with_code(0).json();
    world.eventually("it went back", async |world| list(world).await.as_array().unwrap().len() == 2).await;
    world.apply("[station.cam-1]\n").await.with_code(0);
    std::fs::remove_file(world.folder().join("config/plugins/libimp.so")).unwrap();
    world.eventually("there is none", async |world| list(world).await.as_array().unwrap().is_empty()).await;
    world.plug(&two, "libimp.so");
    world.eventually("there is one again", async |world| !list(world).await.as_array().unwrap().is_empty()).await;
    let list = list(&world).await;
    let newer = quilt_station::inspect_plugin(&two).unwrap().sha256;
    assert_eq!((list.as_array().unwrap().len(), &list[0]["sha256"]), (1, &newer.into()));
}

#[tokio::test]
async fn after_a_newer_build_that_ended_the_station_the_next_one_goes_on_with_the_build_before() {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    let [good, deadly] = ["good", "abort_at_start"].map(|variant| {
        let flags = [format!("-DVARIANT={variant}"), "-DPLUGIN=\"mixed\"".into(), "-DROLE=\"mixed\"".into()];
        let flags = flags.each_ref().map(String::as_str);
        plugins::c_plugin(world.folder(), "tests/fixtures/hostile.c", variant, &flags)
    });
    world.plug(&good, "mixed.so");
    world.until_offered("cam-1", "mixed").await;
    let target = "cam-1/mixed/main";
    world.apply(Fleet::new().with(target, "isolation = 'inproc'\n").text()).await.with_code(0);
    world.plug(&deadly, "mixed.so");
    world.eventually("the station is dead", async |world| world.show("cam-1").await.state.name() == "unknown").await;
    world.end_station("cam-1", Signal::SIGKILL).await;
    world.station("cam-1", &[]).await;
    world.until_state(target, "active").await;
    let list = world.ctl(&["plugin", "list", "cam-1", "-o", "json"]).await.with_code(0).json();
    let [before, newer] = [&good, &deadly].map(|file| quilt_station::inspect_plugin(file).unwrap().sha256);
    let state = |sha256: &str| list.as_array().unwrap().iter().find(|plugin| plugin["sha256"] == *sha256).unwrap();
    assert_eq!(state(&before)["state"], "live");
    assert_eq!(state(&newer)["code"], "QUARANTINED");
}

#[tokio::test]
async fn a_station_that_ends_while_changes_wait_for_their_turn_comes_back_as_it_was() {
    let [one, two, narrow] = ["one", "two", "narrow"].map(plugins::imp);
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        let mut world = World::new().await;
        world.station("cam-1", &[]).await;
        push(&world, &one, &[]).await.with_code(0);
        let fleet = Fleet::new()
            .with("cam-1/imp/a", "say = 'x'\nstart = 'hangs'\nonly_build = 'two'\n")
            .with("cam-1/imp/b", "say = 'x'\nstart = 'fails'\nonly_build = 'narrow'\n");
        world.apply(fleet.text()).await.with_code(0);
        push(&world, &two, &["--wait", "0"]).await.with_code(0);
        world.eventually("it is tried", async |world| is_live(world, &two).await).await;
        // Accepted, and behind the other.
        push(&world, &narrow, &["--wait", "0"]).await.with_code(0);
        let accepted = async |world: &World| {
            let view = world.show("cam-1").await;
            view.applied_digest == view.desired_digest
        };
        world.eventually("it is accepted", accepted).await;
        world.end_station("cam-1", signal).await;
        world.station("cam-1", &[]).await;
        world.eventually("what was asked for last was tried", async |world| failed(world, &narrow).await).await;
        for name in ["a", "b"] {
            let target = format!("cam-1/imp/{name}");
            until_answers(&world, &target, "one").await;
            assert_eq!(world.instance(&target).await.unwrap().restarts, 0);
        }
    }
}

#[tokio::test]
async fn what_is_put_into_a_folder_while_the_station_is_down_is_tried_in_the_place_of_what_ran() {
    let [one, two] = ["one", "two"].map(plugins::imp);
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    world.plug(&one, "libimp.so");
    world.until_offered("cam-1", "imp").await;
    let fleet = Fleet::new()
        .with("cam-1/imp/a", "say = 'x'\n")
        .with("cam-1/imp/b", "say = 'x'\nstart = 'fails'\nonly_build = 'two'\nneeds = ['process/slow']\n")
        // What does not run yet can refuse nothing: it is waited for.
        .with("cam-1/process/slow", "command = ['sleep', '1000']\nready = { command = ['sleep', '1'] }\n");
    world.apply(fleet.text()).await.with_code(0);
    world.end_station("cam-1", Signal::SIGTERM).await;
    world.plug(&two, "libimp.so");
    world.station("cam-1", &[]).await;
    world.eventually("it was tried", async |world| failed(world, &two).await).await;
    for name in ["a", "b"] {
        let target = format!("cam-1/imp/{name}");
        until_answers(&world, &target, "one").await;
    }
    // With nothing in its way it is taken.
    world.end_station("cam-1", Signal::SIGTERM).await;
    world.start_station("cam-1", &[]).await;
    let fleet = Fleet::new().with("cam-1/imp/a", "say = 'x'\n");
    world.eventually("it is connected", async |world| world.show("cam-1").await.state.name() == "connected").await;
    world.apply(fleet.text()).await.with_code(0);
    world.ctl(&["plugin", "reload", "cam-1"]).await.with_code(0);
    let client = world.client().await;
    let is_two = async |_: &World| client.call("cam-1/imp/a", &Build {}).await.is_ok_and(|build| build == "two");
    world.eventually("it is taken", is_two).await;
}

#[tokio::test]
async fn a_build_before_that_is_lost_does_not_leave_its_role_without_any() {
    let [one, two] = ["one", "two"].map(plugins::imp);
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    push(&world, &one, &[]).await.with_code(0);
    let ill = "say = 'x'\nstart = 'fails'\nonly_build = 'two'\n";
    world.apply(Fleet::new().with(TARGET, ill).text()).await.with_code(0);
    push(&world, &two, &[]).await.with_code(4);
    world.end_station("cam-1", Signal::SIGKILL).await;
    let sha256 = quilt_station::inspect_plugin(&one).unwrap().sha256;
    std::fs::remove_file(world.station_folder("cam-1").join(format!("station/plugins/{sha256}.so"))).unwrap();
    world.station("cam-1", &[]).await;
    world.eventually("the newer one is all there is", async |world| is_live(world, &two).await).await;
    world.apply(Fleet::new().with(TARGET, "say = 'x'\n").text()).await.with_code(0);
    until_answers(&world, TARGET, "two").await;
}

#[tokio::test]
async fn while_a_build_is_tried_what_restarts_does_so_on_the_one_before_and_a_configuration_must_fit_both() {
    let [narrow, two] = ["narrow", "two"].map(plugins::imp);
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    world.plug(&narrow, "libimp.so");
    world.until_offered("cam-1", "imp").await;
    let go = world.folder().join("go");
    let slow = format!("only_build = 'two'\nwait_for = '{}'\n", go.display());
    let fleet = |more: &str| {
        Fleet::new()
            .with("cam-1/imp/a", &format!("say = 'x'\n{slow}{more}"))
            .with("cam-1/imp/b", &format!("say = 'x'\nstart = 'fails'\nonly_build = 'two'\n{more}"))
            .with("cam-1/imp/c", &format!("say = 'x'\n{more}"))
    };
    world.apply(fleet("").text()).await.with_code(0);
    world.plug(&two, "libimp.so");
    world.eventually("it is tried", async |world| is_live(world, &two).await).await;
    let refused = world.apply(fleet("whisper = true\n").text()).await.with_code(4);
    assert!(refused.err.contains("whisper"), "{}", refused.err);
    world.ctl(&["restart", "cam-1/imp/c"]).await.with_code(0);
    let client = world.client().await;
    world.until_state("cam-1/imp/c", "active").await;
    assert_eq!(client.call("cam-1/imp/c", &Build {}).await.unwrap(), "narrow");
    std::fs::write(&go, "").unwrap();
    world.eventually("it is given up", async |world| failed(world, &two).await).await;
    for name in ["a", "b", "c"] {
        let target = format!("cam-1/imp/{name}");
        until_answers(&world, &target, "narrow").await;
        assert_eq!(world.instance(&target).await.unwrap().restarts, 0);
    }
}

#[tokio::test]
async fn a_change_whose_build_is_not_taken_begins_nothing_new_and_moves_nothing_elsewhere() {
    let [narrow, two] = ["narrow", "two"].map(plugins::imp);
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    push(&world, &narrow, &[]).await.with_code(0);
    let ill = "start = 'fails'\nonly_build = 'two'\n";
    let fleet = Fleet::new().with("cam-1/imp/a", "say = 'x'\n").with("cam-1/imp/z", &format!("say = 'x'\n{ill}"));
    world.apply(fleet.text()).await.with_code(0);
    push(&world, &two, &[]).await.with_code(4);
    let fleet = |ill: &str| {
        Fleet::new()
            .with("cam-1/imp/a", "say = 'y'\nwhisper = true\nisolation = 'inproc'\n")
            .with("cam-1/imp/b", "say = 'y'\nwhisper = true\n")
            .with("cam-1/imp/z", &format!("say = 'y'\n{ill}"))
    };
    let applied = world.apply(fleet(ill).text()).await.with_code(4);
    assert!(applied.err.contains("was not upgraded"), "{}", applied.err);
    let client = world.client().await;
    for _ in 0..2 {
        assert_eq!(client.call("cam-1/imp/a", &Echo { text: "z".into() }).await.unwrap(), "x z");
        // One failure ends the wait of `apply`; the station's report on the other instances may come later.
        let b = world.until_state("cam-1/imp/b", "failed").await;
        let a = world.until_state("cam-1/imp/a", "active").await;
        assert_eq!((a.restarts, b.restarts), (0, 0));
        assert!(b.detail.contains("plugin imp that was not taken"), "{}", b.detail);
        world.ctl(&["plugin", "reload", "cam-1"]).await.with_code(0);
        world.eventually("it is given up again", async |world| failed(world, &two).await).await;
    }
    world.apply(fleet("").text()).await.with_code(0);
    for name in ["a", "b", "z"] {
        assert_eq!(client.call(&format!("cam-1/imp/{name}"), &Build {}).await.unwrap(), "two");
    }
}

/// Pushes a plugin to every station.
async fn push(world: &World, library: &std::path::Path, more: &[&str]) -> Output {
    let push = ["plugin", "push", library.to_str().unwrap(), "--on", "name=*"];
    world.ctl(&[&push, more].concat()).await
}

/// Waits until this build of an instance answers: what had moved goes back one by one.
async fn until_answers(world: &World, target: &str, build: &str) {
    let client = world.client().await;
    let answers = async |_: &World| client.call(target, &Build {}).await.is_ok_and(|answer| answer == build);
    world.eventually("it answers", answers).await;
}

/// What the station says of a build.
async fn listed(world: &World, library: &std::path::Path) -> serde_json::Value {
    let sha256 = quilt_station::inspect_plugin(library).unwrap().sha256;
    let list = world.ctl(&["plugin", "list", "cam-1", "-o", "json"]).await.json();
    list.as_array().unwrap().iter().find(|plugin| plugin["sha256"] == *sha256).cloned().unwrap_or_default()
}

async fn is_live(world: &World, library: &std::path::Path) -> bool {
    listed(world, library).await["state"] == "live"
}

async fn failed(world: &World, library: &std::path::Path) -> bool {
    listed(world, library).await["code"] == "UPGRADE_FAILED"
}
