//! Case 16 of the cases that quilt is held to: the wall clock jumps.

use std::fs;
use std::os::unix::fs::symlink;

use quilt_client::control::Logs;
use quilt_tests::{Fleet, World};

const DAY: i64 = 86_400;

#[tokio::test]
async fn case_16_no_time_is_over_early_or_late_when_the_wall_clock_jumps_and_logs_are_in_their_order() {
    let mut world = World::empty();
    let (code, library) = (world.folder().join("clock.c"), world.folder().join("clock.so"));
    fs::write(&code, include_str!("clock.c")).unwrap();
    let built = std::process::Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&library, &code]).status();
    assert!(built.expect("a C compiler").success());
    let clock = world.folder().join("clock");
    let script = format!("CLOCK={} LD_PRELOAD={} exec \"$@\"", clock.display(), library.display());
    world.start_manager_from_shell(&script).await;
    world.station_from_shell("cam-1", &script).await;

    let speaks = "i=0; while :; do i=$((i+1)); echo line $i; sleep 0.05; done";
    let fleet = Fleet::new().with("cam-1/counter/c", "start = 1").with(
        "cam-1/process/speaks",
        &format!("command = [\"sh\", \"-c\", {speaks:?}]\nready = {{ log = \"line 2\" }}"),
    );
    world.apply(fleet.text()).await.with_code(0);
    let client = world.client().await;
    let mut followed = client.logs(
        "cam-1".parse().unwrap(),
        &Logs {
            role: "process".parse().unwrap(),
            instance: "speaks".parse().unwrap(),
            lines: 1000,
            follow: true,
            after: None,
        },
    );
    let (mut next, mut last) = (1, String::new());
    for (round, jump) in [-DAY, 3653 * DAY].into_iter().enumerate() {
        // One that is waiting to be started again when the clock jumps.
        let name = format!("cam-1/process/ends-{round}");
        let starts = world.folder().join(format!("starts-{round}"));
        // By a clock that only goes forward.
        let script = format!("cut -d' ' -f1 /proc/uptime >> {}; exit 1", starts.display());
        let keys = format!("command = [\"sh\", \"-c\", {script:?}]\nrestart = {{ delay = \"1s\" }}");
        let path = world.fleet_file("f.toml", fleet.clone().with(&name, &keys).text());
        world.ctl(&["apply", "-f", &path]).await.with_code(0);
        world.until_state(&name, "backoff").await;
        let _ = fs::remove_file(&clock);
        symlink(jump.to_string(), &clock).unwrap();
        let started_at =
            || -> Vec<f64> { fs::read_to_string(&starts).unwrap().lines().map(|line| line.parse().unwrap()).collect() };
        let before = started_at().len();
        world.ctl(&["--timeout", "5s", "call", "cam-1/counter/c", "increment", "{\"by\":1}"]).await.with_code(0);
        assert_eq!(world.show("cam-1").await.state.name(), "connected");
        world.eventually("it is started again", async |_| started_at().len() > before).await;
        let times = started_at();
        assert!(times.windows(2).all(|pair| pair[1] - pair[0] > 0.5), "it began early: {times:?}");
        let started = fleet.clone().shell(&format!("cam-1/process/new-{round}"), "exec sleep 1000");
        world.apply(started.text()).await.with_code(0);
        // All lines, in the order in which they were written, whatever their times, up to one of after the jump.
        loop {
            let line = followed.next().await.expect("the log goes on");
            assert_eq!(line.text, format!("line {next}"));
            next += 1;
            let has_jumped = if jump < 0 { line.at < last } else { line.at.get(..4) > last.get(..4) };
            let was = std::mem::replace(&mut last, line.at);
            if has_jumped && !was.is_empty() {
                break;
            }
        }
    }
    assert_eq!(world.show("cam-1").await.state.name(), "connected");
}
