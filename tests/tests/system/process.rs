//! The `process` role: any program, supervised.

use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use quilt_role_process::api::{ProcessStatus, Signal, SignalError, Status, Tail};
use quilt_tests::{Fleet, World, is_alive};
use tokio::io::{AsyncBufReadExt as _, BufReader};

#[tokio::test]
async fn a_program_that_crashes_is_restarted_more_and_more_slowly_then_given_up_and_recovers_when_fixed() {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    let starts = world.folder().join("starts");
    let script = format!("date +%s%N >> {}; echo no camera >&2; exit 3", starts.display());
    let restart = "restart = { policy = \"transient\", delay = \"50ms\", intensity = 4, period = \"60s\" }\n";
    let keys = format!("command = [\"sh\", \"-c\", {script:?}]\n{restart}");
    let file = world.fleet_file("f.toml", Fleet::new().with("cam-1/process/cam", &keys).text());
    world.ctl(&["apply", "-f", &file]).await.with_code(0);
    let failed = world.until_state("cam-1/process/cam", "failed").await;
    assert!(failed.detail.contains("exit code 3") && failed.detail.contains("no camera"), "{}", failed.detail);
    assert_eq!((failed.restarts, failed.pid), (4, None));
    let times: Vec<u64> = std::fs::read_to_string(&starts).unwrap().lines().map(|line| line.parse().unwrap()).collect();
    let gaps: Vec<u64> = times.windows(2).map(|pair| (pair[1] - pair[0]) / 1_000_000).collect();
    assert_eq!(gaps.len(), 4);
    assert!(gaps[0] >= 50 && gaps[3] >= 400 && gaps[3] > gaps[0], "delays do not grow: {gaps:?} ms");

    let fixed = Fleet::new().with("cam-1/process/cam", &format!("command = [\"sleep\", \"1000\"]\n{restart}"));
    world.apply(fixed.text()).await.with_code(0);
    assert_eq!(world.until_state("cam-1/process/cam", "active").await.restarts, 0);
}

#[tokio::test]
async fn stopping_is_a_signal_a_wait_and_a_kill_of_the_whole_group() {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    let children = world.folder().join("children");
    // Neither the program nor its child heeds TERM.
    let script = format!(
        "trap '' TERM; sh -c 'trap \"\" TERM; echo $$ > {}; echo up; while true; do sleep 1; done' & wait; wait",
        children.display()
    );
    let keys =
        format!("command = [\"sh\", \"-c\", {script:?}]\nstop_timeout = \"500ms\"\nready = {{ log = \"up\" }}\n");
    world.apply(Fleet::new().with("cam-1/process/deaf", &keys).text()).await.with_code(0);
    let pid = world.pid("cam-1/process/deaf").await;
    let child: u32 = std::fs::read_to_string(&children).unwrap().trim().parse().unwrap();
    assert!(is_alive(child));
    // A stranger with the same command line.
    let mut decoy = world.command("quiltctl");
    drop(std::mem::replace(&mut decoy, tokio::process::Command::new("sh")));
    let mut decoy = decoy
        .args(["-c", &script.replace(children.to_str().unwrap(), "/dev/null")])
        .kill_on_drop(true)
        .process_group(0)
        .spawn()
        .unwrap();
    let stopping = Instant::now();
    world.apply(Fleet::new().empty_station("cam-1").text()).await.with_code(0);
    assert!(stopping.elapsed() >= Duration::from_millis(500), "it was killed without a wait");
    assert!(!is_alive(pid) && !is_alive(child), "part of the group was left");
    assert!(decoy.try_wait().unwrap().is_none(), "a stranger with the same command line was killed");
    let group = nix::unistd::Pid::from_raw(decoy.id().unwrap() as i32);
    nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL).unwrap();
    decoy.wait().await.unwrap();
}

#[tokio::test]
async fn ready_checks_hold_back_active() {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let gate = world.folder().join("gate");
    let serve = format!(
        "while [ ! -e {} ]; do sleep 0.02; done; exec python3 -m http.server --bind 127.0.0.1 {port}",
        gate.display()
    );
    let server = format!("command = [\"sh\", \"-c\", {serve:?}]\n");
    let waits = "command = [\"sleep\", \"1000\"]\n";
    let fleet = Fleet::new()
        .with(
            "cam-1/process/http",
            &format!("{server}ready = {{ http = \"http://127.0.0.1:{port}/\", every = \"50ms\" }}\n"),
        )
        .with("cam-1/process/tcp", &format!("{waits}ready = {{ tcp = \"127.0.0.1:{port}\", every = \"50ms\" }}\n"))
        .with(
            "cam-1/process/never",
            &format!(
                "{waits}ready = {{ log = \"hello\", within = \"300ms\" }}\nrestart = {{ policy = \"temporary\" }}\n"
            ),
        );
    let file = world.fleet_file("f.toml", fleet.text());
    world.ctl(&["apply", "-f", &file]).await.with_code(0);
    let never = world.until_state("cam-1/process/never", "failed").await;
    assert!(never.detail.contains("not ready within 300ms"), "{}", never.detail);
    for name in ["http", "tcp"] {
        assert_eq!(world.until_state(&format!("cam-1/process/{name}"), "starting").await.restarts, 0);
    }
    std::fs::write(gate, "").unwrap();
    for name in ["http", "tcp"] {
        world.until_state(&format!("cam-1/process/{name}"), "active").await;
    }
}

#[tokio::test]
async fn secrets_in_the_environment_are_never_shown() {
    let mut world = World::new().await;
    world
        .station("cam-1", &["--log-level", "trace", "--log-file", world.folder().join("s.log").to_str().unwrap()])
        .await;
    let secret = "hunter2-very-secret";
    let fleet = |value: &str| {
        let keys = format!(
            "command = [\"sh\", \"-c\", \"test -n \\\"$TOKEN\\\" && exec sleep 1000\"]\nenv = {{ TOKEN = \"{value}\" }}\n"
        );
        Fleet::new().with("cam-1/process/main", &keys)
    };
    world.apply(fleet("first").text()).await.with_code(0);
    let file = world.fleet_file("f.toml", fleet(secret).text());
    let mut shown = world.ctl(&["diff", "-f", &file]).await.with_code(3).out;
    assert!(shown.contains("env"), "{shown}");
    world.apply(fleet(secret).text()).await.with_code(0);
    for arguments in [
        &["stations", "-o", "json"][..],
        &["stations", "-o", "wide"],
        &["station", "show", "cam-1"],
        &["history", "cam-1", "-o", "json"],
        &["events", "-o", "json"],
        &["logs", "cam-1/process/main"],
        &["call", "cam-1/process/main", "status"],
    ] {
        let output = world.ctl(arguments).await.with_code(0);
        shown += &output.out;
        shown += &output.err;
    }
    shown += &std::fs::read_to_string(world.folder().join("s.log")).unwrap();
    assert!(!shown.contains(secret), "the secret is shown");
    // Nor is it on the command line of its keeper.
    let status = world.ctl(&["call", "cam-1/process/main", "status"]).await.with_code(0).json();
    let keeper = std::fs::read(format!("/proc/{}/cmdline", status["keeper"])).unwrap();
    assert!(!String::from_utf8_lossy(&keeper).contains(secret));
}

#[tokio::test]
async fn its_commands_tell_signal_and_tail() {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    let script = "trap 'echo hung up' HUP; echo one; echo two >&2; while true; do sleep 0.02; done";
    let keys = format!("command = [\"sh\", \"-c\", {script:?}]\nready = {{ log = \"two\" }}\n");
    world.apply(Fleet::new().with("cam-1/process/main", &keys).text()).await.with_code(0);
    let client = world.client().await;
    let target = "cam-1/process/main";
    let status: ProcessStatus = client.call(target, &Status {}).await.unwrap();
    assert_eq!((Some(status.pid), status.exit), (world.instance(target).await.unwrap().pid, None));

    let mut lines = client.stream(target, &Tail { lines: 10, follow: true }).unwrap();
    let mut first = Vec::new();
    for _ in 0..2 {
        let line = lines.next().await.unwrap().unwrap();
        first.push((line.stream, line.text));
    }
    // Two pipes have no common order.
    first.sort();
    assert_eq!(first, [("err".into(), "two".into()), ("out".into(), "one".into())]);
    client.call(target, &Signal { signal: "hup".into() }).await.unwrap();
    assert_eq!(lines.next().await.unwrap().unwrap().text, "hung up");
    match client.call(target, &Signal { signal: "NONSENSE".into() }).await {
        Err(quilt_client::CallError::Command(SignalError::Unknown(name))) => assert_eq!(name, "NONSENSE"),
        other => panic!("{other:?}"),
    }
    let shown = world.ctl(&["call", target, "tail", "{\"lines\":1}"]).await.with_code(0);
    assert_eq!(shown.json()["text"], "hung up");
}

#[tokio::test]
async fn a_program_that_cannot_run_says_why() {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    let once = "restart = { policy = \"temporary\" }\n";
    let script = world.folder().join("script");
    std::fs::write(&script, "#!/no/such/interpreter\n").unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let fleet = Fleet::new()
        .with("cam-1/process/missing", &format!("command = [\"/no/such/program\"]\n{once}"))
        .with("cam-1/process/script", &format!("command = [{:?}]\n{once}", script.to_str().unwrap()))
        .with("cam-1/process/homeless", &format!("command = [\"true\"]\ncwd = \"/no/such/folder\"\n{once}"));
    let file = world.fleet_file("f.toml", fleet.text());
    world.ctl(&["apply", "-f", &file]).await.with_code(0);
    let missing = world.until_state("cam-1/process/missing", "failed").await;
    assert!(
        missing.detail.contains("/no/such/program") && missing.detail.contains("No such file"),
        "{}",
        missing.detail
    );
    let script = world.until_state("cam-1/process/script", "failed").await;
    assert!(script.detail.contains("/no/such/interpreter"), "{}", script.detail);
    let homeless = world.until_state("cam-1/process/homeless", "failed").await;
    assert!(homeless.detail.contains("/no/such/folder"), "{}", homeless.detail);
}

#[tokio::test]
async fn what_the_plan_can_see_is_refused_in_the_plan() {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    for (keys, expected) in [
        ("command = []\n", "key `command`: expected a program"),
        ("command = ['x']\ncwd = 'here'\n", "key `cwd`: expected an absolute path"),
        ("command = ['x']\nuser = 'nobody-by-that-name'\n", "key `user`"),
        ("command = ['x']\nstop_signal = 'LOUD'\n", "key `stop_signal`"),
        ("command = ['x']\nrestart = { policy = 'sometimes' }\n", "key `restart.policy`"),
        ("command = ['x']\nready = { tcp = 'x:1', log = 'y' }\n", "key `ready`"),
        ("command = ['x']\nready = { }\n", "key `ready`"),
        ("command = ['x']\nready = { tcp = 'localhost' }\n", "key `ready.tcp`: expected HOST:PORT"),
        ("command = ['x']\nready = { http = 'http://h:99999/' }\n", "key `ready.http`: expected a port"),
        ("command = ['x']\nstop_timeout = 5\n", "key `stop_timeout`"),
        ("command = ['x']\nneeds = ['process/main']\n", "key `needs`: expected needs without a circle"),
        ("command = ['x']\nneeds = [{ completed = 'main' }]\n", "key `needs[0]`: expected \"role/instance\" or"),
        ("command = ['x']\nnice = 'high'\n", "key `nice`: expected a whole number from -20 to 19, got text"),
        ("command = ['x']\numask = 22\n", "key `umask`: expected octal digits in quotes"),
        ("command = ['x']\nisolation = 'inproc'\n", "key `isolation`: expected no such key"),
        ("comand = ['x']\n", "key `comand`"),
    ] {
        let refused = world.apply(Fleet::new().with("cam-1/process/main", keys).text()).await.with_code(4);
        assert!(refused.err.contains(expected), "{keys} gave {}", refused.err);
    }
}

#[tokio::test]
async fn programs_that_end_at_once_run_once_and_their_exit_is_known() {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    let ran = world.folder().join("ran");
    let script = |number: u32| format!("echo {number} >> {}; exit {}", ran.display(), number % 2);
    let once = "restart = { policy = \"temporary\" }\n";
    let fleet = (0..40).fold(Fleet::new(), |fleet, number| {
        let keys = format!("command = [\"sh\", \"-c\", {:?}]\n{once}", script(number));
        fleet.with(&format!("cam-1/process/p{number}"), &keys)
    });
    let file = world.fleet_file("f.toml", fleet.text());
    world.ctl(&["apply", "-f", &file]).await.with_code(0);
    for number in 0..40 {
        let state = if number % 2 == 0 { "completed" } else { "failed" };
        let view = world.until_state(&format!("cam-1/process/p{number}"), state).await;
        assert!(number % 2 == 0 || view.detail.contains("exit code 1"), "{}", view.detail);
    }
    let mut numbers: Vec<u32> =
        std::fs::read_to_string(&ran).unwrap().lines().map(|line| line.parse().unwrap()).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (0..40).collect::<Vec<_>>(), "some ran twice or not at all");
}

#[tokio::test]
async fn what_changes_under_a_running_program_counts_when_it_ends() {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    let gate = world.folder().join("gate");
    let script = format!("while [ ! -e {} ]; do sleep 0.02; done; exit 3", gate.display());
    let fleet = |codes: &str| {
        let keys = format!("command = [\"sh\", \"-c\", {script:?}]\nsuccess_exit_codes = [{codes}]\n");
        Fleet::new().with("cam-1/process/main", &keys)
    };
    world.apply(fleet("0").text()).await.with_code(0);
    let pid = world.pid("cam-1/process/main").await;
    world.apply(fleet("0, 3").text()).await.with_code(0);
    assert_eq!(world.pid("cam-1/process/main").await, pid);
    std::fs::write(gate, "").unwrap();
    world.until_state("cam-1/process/main", "completed").await;
}

#[tokio::test]
async fn an_order_during_the_ready_check_does_not_end_the_check() {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    let gate = world.folder().join("gate");
    let fleet = |timeout: u32| {
        let ready = format!(
            "ready = {{ command = [\"test\", \"-e\", {gate:?}], every = \"50ms\" }}\nstop_timeout = \"{timeout}s\"\n"
        );
        Fleet::new().with("cam-1/process/main", &format!("command = [\"sleep\", \"1000\"]\n{ready}"))
    };
    let file = world.fleet_file("f.toml", fleet(5).text());
    world.ctl(&["apply", "-f", &file]).await.with_code(0);
    world.until_state("cam-1/process/main", "starting").await;
    world.ctl(&["start", "cam-1/process/main"]).await.with_code(0);
    let file = world.fleet_file("f.toml", fleet(6).text());
    world.ctl(&["apply", "-f", &file]).await.with_code(0);
    assert_eq!(world.instance("cam-1/process/main").await.unwrap().state.name(), "starting");
    std::fs::write(gate, "").unwrap();
    world.until_state("cam-1/process/main", "active").await;
}

#[tokio::test]
async fn a_ready_check_that_hangs_leaves_nothing_behind() {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    let marker = format!("{}", 100_000 + std::process::id());
    let check = format!("sleep {marker}; true");
    let keys = format!(
        "command = [\"sleep\", \"1000\"]\nready = {{ command = [\"sh\", \"-c\", {check:?}], within = \"300ms\" }}\n\
         restart = {{ policy = \"temporary\" }}\n"
    );
    let file = world.fleet_file("f.toml", Fleet::new().with("cam-1/process/main", &keys).text());
    world.ctl(&["apply", "-f", &file]).await.with_code(0);
    world.until_state("cam-1/process/main", "failed").await;
    let left = || {
        let processes = std::fs::read_dir("/proc").unwrap().flatten();
        processes
            .filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok())
            .any(|command| command.split(|byte| *byte == 0).eq([&b"sleep"[..], marker.as_bytes(), b""]))
    };
    world.eventually("its child is gone", async |_| !left()).await;
}

#[tokio::test]
async fn output_is_a_stream_in_which_a_ready_text_is_found_and_from_which_it_can_be_had_again() {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    let bytes = world.folder().join("bytes");
    // In colour, over a pause without a line break, behind a long line, and not all of it text.
    std::fs::write(&bytes, [&b"\xff\r\n"[..], "\u{20ac}".repeat(20_000).as_bytes(), b" is \x1b[32mLIS"].concat())
        .unwrap();
    let script = format!("cat {}; sleep 0.6; printf 'TE\\033[0mNING'; exec sleep 1000", bytes.display());
    let keys = format!("command = [\"sh\", \"-c\", {script:?}]\nready = {{ log = \"is LISTENING\" }}\n");
    world.apply(Fleet::new().with("cam-1/process/main", &keys).text()).await.with_code(0);
    let records = world.ctl(&["logs", "cam-1/process/main", "-o", "jsonl"]).await.with_code(0).out;
    let mut joined = Vec::new();
    for record in records.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()) {
        assert_eq!(record["instance"], "main", "{record}");
        let bytes =
            record["bytes"].as_array().map(|bytes| bytes.iter().map(|byte| byte.as_u64().unwrap() as u8).collect());
        joined.extend(bytes.unwrap_or_else(|| record["text"].as_str().unwrap().as_bytes().to_vec()));
        joined.extend((record["continues"] != true).then_some(b'\n'));
    }
    assert!(joined == [&std::fs::read(&bytes).unwrap()[..], b"TE\x1b[0mNING"].concat());
    // People see whole lines.
    let shown = world.ctl(&["logs", "cam-1/process", "-n", "1"]).await.with_code(0).out;
    let (shown, long) = (shown.trim_end(), "\u{20ac}".repeat(20_000));
    assert!(shown.starts_with(&long) && shown.ends_with("NING") && !shown.contains('\n'), "{} bytes", shown.len());
    let timed = world.ctl(&["logs", "cam-1", "-n", "1", "--timestamps"]).await.with_code(0).out;
    assert!(timed.starts_with("20") && timed[24..].trim_start().starts_with('\u{20ac}'));
}

#[tokio::test]
async fn whoever_follows_a_log_misses_nothing_while_its_station_restarts_and_is_told_when_its_instance_is_removed() {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    let go = world.folder().join("go");
    let (one, two) = (format!("{}1", go.display()), format!("{}2", go.display()));
    let wait = |file: &str| format!("until [ -e {file} ]; do sleep 0.02; done");
    let script = format!("echo hello; {}; echo away; {}; echo back; exec sleep 1000", wait(&one), wait(&two));
    let fleet = Fleet::new().with("cam-1/process/main", &format!("command = [\"sh\", \"-c\", \"{script}\"]\n"));
    world.apply(fleet.text()).await.with_code(0);
    let mut command = world.command("quiltctl");
    command
        .args(["--manager", &world.address, "logs", "cam-1/process/main", "-f"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped());
    let mut following = command.spawn().unwrap();
    let mut notes = BufReader::new(following.stderr.take().unwrap()).lines();
    let mut lines = BufReader::new(following.stdout.take().unwrap()).lines();
    assert_eq!(lines.next_line().await.unwrap().as_deref(), Some("hello"));
    world.end_station("cam-1", nix::sys::signal::Signal::SIGTERM).await;
    let note = notes.next_line().await.unwrap();
    assert_eq!(note.as_deref(), Some("quiltctl: station cam-1 is away; its logs go on here when it is back"));
    // What is written while it is away comes when it is back, and nothing comes twice.
    std::fs::write(&one, "").unwrap();
    world.station("cam-1", &[]).await;
    assert_eq!(lines.next_line().await.unwrap().as_deref(), Some("away"));
    world.end_manager(nix::sys::signal::Signal::SIGKILL).await;
    world.start_manager().await;
    std::fs::write(&two, "").unwrap();
    assert_eq!(lines.next_line().await.unwrap().as_deref(), Some("back"));
    world.eventually("the station is back", async |world| world.show("cam-1").await.state.is_here()).await;
    world.apply("[station.cam-1]\n").await.with_code(0);
    let mut last = String::new();
    while let Some(line) = lines.next_line().await.unwrap() {
        last = line;
    }
    assert_eq!(last, "process/main is removed from this station; its log ends here");
    assert!(following.wait().await.unwrap().success());
    // What it wrote can still be read.
    assert!(world.ctl(&["logs", "cam-1/process/main"]).await.with_code(0).out.contains("hello"));
}

#[tokio::test]
async fn what_was_given_up_is_not_tried_again_by_the_next_station() {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    let starts = world.folder().join("starts");
    let script = format!("echo x >> {}; exit 1", starts.display());
    let keys = format!(
        "command = [\"sh\", \"-c\", {script:?}]\nrestart = {{ intensity = 1, delay = \"20ms\", max_delay = \"20ms\" }}\n"
    );
    let file = world.fleet_file("f.toml", Fleet::new().with("cam-1/process/main", &keys).text());
    world.ctl(&["apply", "-f", &file]).await.with_code(0);
    let detail = world.until_state("cam-1/process/main", "failed").await.detail;
    let count = || std::fs::read_to_string(&starts).unwrap().lines().count();
    let before = count();
    world.end_station("cam-1", nix::sys::signal::Signal::SIGTERM).await;
    world.station("cam-1", &[]).await;
    assert_eq!(world.until_state("cam-1/process/main", "failed").await.detail, detail);
    assert_eq!(count(), before);
    // An operator may have it tried again.
    world.ctl(&["start", "cam-1/process/main"]).await.with_code(0);
    world.eventually("it was tried", async |_| count() > before).await;
}
