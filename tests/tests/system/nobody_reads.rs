//! Output that nobody reads, or that a full disk does not take.

use std::fs::File;
use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use quilt_tests::{World, clock, is_alive};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

/// A pipe without a reader.
fn unread() -> Stdio {
    std::io::pipe().unwrap().1.into()
}

fn full() -> Stdio {
    File::options().write(true).open("/dev/full").unwrap().into()
}

#[tokio::test]
async fn every_verb_keeps_its_exit_code() {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    world.apply(clock(&["cam-1"]).text()).await.with_code(0);
    let changed = world.fleet_file("changed.toml", clock(&["cam-1"]).with("cam-1/counter/main", "").text());
    let wrong = world.fleet_file("wrong.toml", clock(&["cam-1"]).with("cam-1/counter/main", "by = 'x'\n").text());
    // What only shows something has failed if that could not be written.
    let shows = [
        (&["stations"][..], 0),
        (&["station", "show", "cam-1", "-o", "json"], 0),
        (&["commands", "cam-1", "-o", "yaml"], 0),
        (&["logs", "cam-1"], 0),
        (&["plugin", "list"], 0),
        (&["events", "-o", "jsonl"], 0),
        (&["diff", "-f", &changed], 3),
        (&["diff", "-f", &wrong], 4),
    ];
    let does = [
        (&["call", "cam-1/process/clock", "status"][..], 0),
        (&["call", "cam-1/process/clock", "nothing"], 4),
        (&["call", "cam-1/process/clock", "tail", "-o", "jsonl"], 0),
        (&["stop", "cam-1/process/none"], 4),
        (&["stations", "--nonsense"], 2),
        (&["apply", "-f", &wrong], 4),
        (&["apply", "-f", &changed, "--wait", "20", "--settle", "0"], 0),
    ];
    for (number, (arguments, code)) in shows.iter().chain(&does).enumerate() {
        let on_full = if *code == 0 && number < shows.len() { 1 } else { *code };
        for (out, err, expected) in [(unread(), unread(), *code), (full(), full(), on_full)] {
            let mut command = world.command("quiltctl");
            command.args(["--manager", &world.address]).args(*arguments).stdout(out).stderr(err);
            let status = command.status().await.unwrap();
            assert_eq!(status.code(), Some(expected), "{arguments:?}");
        }
    }
    world.until_state("cam-1/counter/main", "active").await;
}

#[tokio::test]
async fn whoever_follows_ends_when_its_reader_has_gone() {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    world.apply(clock(&["cam-1"]).with("cam-1/counter/main", "").text()).await.with_code(0);
    // The counter says nothing: there is no write that could fail.
    let tail = ["call", "cam-1/process/clock", "tail", r#"{"lines":0,"follow":true}"#];
    for arguments in [&["logs", "cam-1/counter/main", "-f"][..], &["events", "-f"], &tail] {
        let mut command = world.command("quiltctl");
        command.args(["--manager", &world.address]).args(arguments).stdout(Stdio::piped());
        let mut following = command.spawn().unwrap();
        drop(following.stdout.take());
        assert!(following.wait().await.unwrap().success(), "{arguments:?}");
    }
}

/// `quiltctl up` with a program, and the program's pid.
async fn up(world: &mut World) -> (Child, BufReader<tokio::process::ChildStdout>, u32) {
    let file = world.fleet_file("fleet.toml", clock(&["local"]).text());
    // Whoever runs the tests may ignore HUP, which `up` would respect.
    let mut command = Command::new("env");
    command.env("QUILT_CFG_DIR", world.folder().join("config")).stdin(Stdio::null()).kill_on_drop(true);
    command.arg("--default-signal=HUP").arg(world.binary("quiltctl")).args([
        "up",
        &file,
        "--listen",
        "127.0.0.1:0",
        "--http",
        "127.0.0.1:0",
        "--data-dir",
    ]);
    let mut up = command.arg(world.folder().join("data")).stdout(Stdio::piped()).spawn().unwrap();
    let mut out = BufReader::new(up.stdout.take().unwrap());
    let mut line = String::new();
    while !line.starts_with("Ctrl-C") {
        line.clear();
        assert!(out.read_line(&mut line).await.unwrap() > 0, "it ended");
        if let Some(address) = line.strip_prefix("listening protocol ") {
            world.address = address.trim_end().to_owned();
        }
    }
    let pid = world.pid("local/process/clock").await;
    (up, out, pid)
}

#[tokio::test]
async fn up_stops_what_it_started_when_its_reader_ends_or_its_terminal_closes() {
    let mut world = World::empty();
    let (mut running, out, pid) = up(&mut world).await;
    drop(out);
    assert!(running.wait().await.unwrap().success());
    assert!(!is_alive(pid));
    let (mut running, _out, pid) = up(&mut world).await;
    kill(Pid::from_raw(running.id().unwrap() as i32), Signal::SIGHUP).unwrap();
    assert!(running.wait().await.unwrap().success());
    assert!(!is_alive(pid));
}
