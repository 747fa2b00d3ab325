//! The afternoon of somebody who writes a plugin without quilt's sources.

use std::path::Path;

use quilt_tests::{Fleet, World, plugins};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_plugin_builds_passes_its_test_and_its_checks_and_is_called_on_a_station_that_was_running() {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    let folder = world.folder().join("camera");
    let made = world.ctl(&["plugin", "new", "camera", "--dir", folder.to_str().unwrap()]).await.with_code(0);
    assert!(made.out.contains("cargo build --release"), "{}", made.out);
    let again = world.ctl(&["plugin", "new", "camera", "--dir", folder.to_str().unwrap()]).await.with_code(1);
    assert!(again.err.contains("camera") && again.err.contains("--dir"), "{}", again.err);
    for word in ["self", "greet", "greeting", "command", "role-error", "string", "harness"] {
        let refused = world.ctl(&["plugin", "new", word]).await.with_code(1);
        assert!(refused.err.contains(word), "{}", refused.err);
    }
    tokio::task::spawn_blocking({
        let folder = folder.clone();
        move || {
            plugins::build_as_author(&folder, "camera");
        }
    })
    .await
    .unwrap();
    let library = folder.join("target/release/libcamera.so");
    let checked = world.ctl(&["plugin", "check", library.to_str().unwrap(), "-o", "json"]).await.with_code(0).json();
    let results: Vec<_> = checked.as_array().unwrap().iter().map(|finding| &finding["result"]).collect();
    assert!(results.len() == 6 && results.iter().all(|result| *result == "passed"), "{checked}");
    let check = ["plugin", "check", library.to_str().unwrap(), "--config"];
    world.ctl(&[&check[..], &["[]"]].concat()).await.with_code(2);
    let refused = world.ctl(&[&check[..], &[r#"{"greting":"x"}"#]].concat()).await.with_code(4);
    assert!(refused.out.contains("greting"), "{}", refused.out);
    world.plug(&library, "libcamera.so");
    world.until_offered("cam-1", "camera").await;
    world.apply(Fleet::new().with("cam-1/camera/main", "greeting = 'Salut'\n").text()).await.with_code(0);
    let commands = world.ctl(&["commands", "cam-1", "-o", "json"]).await.with_code(0).json();
    assert_eq!((&commands[0]["command"], &commands[0]["doc"]), (&"greet".into(), &"Greets somebody.".into()));
    let greeted = world.ctl(&["call", "cam-1/camera/main", "greet", r#"{"to":"you"}"#]).await.with_code(0).json();
    assert_eq!(greeted, serde_json::json!({ "text": "Salut, you!", "before": 0 }));
    let error = world.ctl(&["call", "cam-1/camera/main", "greet", r#"{"to":""}"#]).await.with_code(4);
    assert!(error.err.contains("somebody must be greeted"), "{}", error.err);
    // And from a tool in Rust, which knows the same types.
    for (to, printed) in [("Ada", "Salut, Ada! (1 before)"), ("", "cam-1/camera/main greets nobody in particular")] {
        let call = tokio::process::Command::new(folder.join("target/release/examples/call"))
            .args(["cam-1/camera/main", to])
            .env("QUILT_MANAGER", &world.address)
            .output();
        let output = call.await.unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!((text.trim(), output.status.success()), (printed, true), "{output:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_examples_pass_their_own_tests_and_are_called_on_a_station() {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    let machine = plugins::root().join("examples/plugins/machine");
    tokio::task::spawn_blocking(move || {
        plugins::cargo(&plugins::building(), &machine, &["test", "--release", "--locked"]);
    })
    .await
    .unwrap();
    let source = "examples/plugins/c/hello.c";
    let text = std::fs::read_to_string(plugins::root().join(source)).unwrap();
    assert!(text.lines().count() <= 150, "it is to fit on a few screens");
    let hello = plugins::c_plugin(world.folder(), source, "hello", &["-Wall", "-Wextra", "-Werror"]);
    let checked = ["plugin", "check", hello.to_str().unwrap(), "--config", r#"{"greeting":"Hello"}"#];
    world.ctl(&checked).await.with_code(0);
    world.ctl(&["plugin", "check", plugins::machine().to_str().unwrap()]).await.with_code(0);
    world.plug(&hello, "libhello.so");
    world.until_offered("cam-1", "hello").await;
    for isolation in ["process", "inproc"] {
        let keys = format!("greeting = 'Hello'\nisolation = '{isolation}'\n");
        world.apply(Fleet::new().with("cam-1/hello/main", &keys).text()).await.with_code(0);
        let greeted = world.ctl(&["call", "cam-1/hello/main", "greet", r#"{"name":"x"}"#]).await.with_code(0);
        assert_eq!(greeted.json(), "Hello, x!");
        let cheers = world.ctl(&["call", "cam-1/hello/main", "cheer", r#"{"name":"x"}"#]).await.with_code(0);
        assert_eq!(cheers.out.lines().count(), 3);
    }
    let refused = world.apply(Fleet::new().with("cam-1/hello/main", "greeting = 3\n").text()).await.with_code(4);
    assert!(refused.err.contains("greeting"), "{}", refused.err);
}

#[tokio::test]
async fn a_plugin_that_was_built_for_a_released_minor_of_the_contract_still_works() {
    let released = plugins::root().join("tests/fixtures/contract");
    let mut minors: Vec<_> = std::fs::read_dir(released).unwrap().map(|minor| minor.unwrap().path()).collect();
    minors.sort();
    let latest = minors.last().unwrap().join("quilt_plugin.h");
    let ours = plugins::root().join("plugin-api/abi/include/quilt_plugin.h");
    let minor = |header: &Path| {
        let text = std::fs::read_to_string(header).unwrap();
        text.lines().find(|line| line.contains("QUILT_MINOR")).unwrap().to_owned()
    };
    // Whoever raises the minor adds its header here, and leaves those before as they are.
    assert_eq!(minor(&latest), minor(&ours));
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    for minor in minors {
        let hello = plugins::c_plugin_with(&minor, world.folder(), "examples/plugins/c/hello.c", "hello", &[]);
        let checked = ["plugin", "check", hello.to_str().unwrap(), "--config", r#"{"greeting":"Hello"}"#];
        world.ctl(&checked).await.with_code(0);
        world.plug(&hello, "libhello.so");
        world.until_offered("cam-1", "hello").await;
        for isolation in ["process", "inproc"] {
            let keys = format!("greeting = 'Hello'\nisolation = '{isolation}'\n");
            world.apply(Fleet::new().with("cam-1/hello/main", &keys).text()).await.with_code(0);
            let greeted = world.ctl(&["call", "cam-1/hello/main", "greet", r#"{"name":"x"}"#]).await.with_code(0);
            assert_eq!(greeted.json(), "Hello, x!");
        }
    }
}

#[tokio::test]
async fn a_check_names_what_is_wrong_with_a_plugin_and_lives_through_it() {
    let world = World::empty();
    for (variant, check) in
        [("abort_at_load", "describe"), ("abort_at_start", "start and stop"), ("abort_at_call", "bad calls")]
    {
        let library = plugins::hostile(world.folder(), variant);
        let checked =
            world.ctl(&["plugin", "check", library.to_str().unwrap(), "-o", "json"]).await.with_code(4).json();
        let failed = checked.as_array().unwrap().iter().filter(|finding| finding["result"] == "failed");
        let failed: Vec<_> = failed.map(|finding| finding["check"].as_str().unwrap()).collect();
        assert!(failed.iter().any(|failed| failed.ends_with(check)), "{variant}: {checked}");
    }
}
