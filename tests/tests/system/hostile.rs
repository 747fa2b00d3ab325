//! Peers that send garbage, announce the impossible, never read or never speak: only their own connection ends.

use std::sync::Arc;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use quilt_net::NoService;
use quilt_protocol::codec::put_frame;
use quilt_protocol::control::{Facts, Registration};
use quilt_protocol::message::{Address, Identity};
use quilt_protocol::version::SPOKEN;
use quilt_protocol::{Encoding, Hello, Labels, Message, Outcome, RequestHead, StationId, Terms};
use quilt_role_counter::api::Increment;
use quilt_tests::{Fleet, World};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

fn greeting() -> Hello {
    Hello {
        versions: SPOKEN,
        software: "hostile".into(),
        fleet: None,
        identity: Identity::Tool("hostile".parse().unwrap()),
        features: vec![],
        extensions: Default::default(),
    }
}

fn hello() -> Vec<u8> {
    let mut bytes = Vec::new();
    put_frame(&mut bytes, &Message::Hello(Box::new(greeting())), &[]);
    bytes
}

fn registration(id: StationId, name: &str) -> Registration {
    Registration {
        id,
        wished_name: name.parse().unwrap(),
        facts: Facts::default(),
        labels: Labels::default(),
        roles: vec![],
        blocked: vec![],
        applied: None,
        applying: false,
        instances: vec![],
    }
}

/// Sends bytes and waits until the manager closes the connection.
async fn is_cut(world: &World, parts: &[&[u8]]) {
    let mut stream = TcpStream::connect(&world.address).await.unwrap();
    for part in parts {
        // Cut in the middle of writing is cut all the same.
        if stream.write_all(part).await.is_err() {
            return;
        }
    }
    let mut rest = Vec::new();
    let closed = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut rest)).await;
    assert!(closed.is_ok(), "the connection stays open after {:?}", &parts.concat()[..parts.concat().len().min(60)]);
}

/// The most memory that a process had so far.
fn memory_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[tokio::test]
async fn hostile_bytes_end_their_own_connection_and_nothing_else() {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    world.apply(Fleet::new().with("cam-1/counter/main", "").text()).await.with_code(0);
    let fleet = world.client().await;
    let pid = world.manager().pid();
    let before = memory_kib(pid);
    let greeting = hello();
    let length = |bytes: u32| bytes.to_le_bytes();
    for _ in 0..5 {
        is_cut(&world, &[b"GET / HTTP/1.1\r\n\r\n"]).await;
        is_cut(&world, &[&[0xff; 4096]]).await;
        is_cut(&world, &[&length(16 * 1024 + 1)]).await;
        is_cut(&world, &[&length(0)]).await;
        // A greeting that is one of another protocol, or comes twice.
        is_cut(&world, &[&frame(&greeting[12..])]).await;
        is_cut(&world, &[&greeting, &greeting]).await;
        assert!(fleet.call("cam-1/counter/main", &Increment { by: 1 }).await.is_ok(), "others notice");
    }
    let after = memory_kib(pid);
    assert!(after < before + 16 * 1024, "memory grew from {before} to {after} KiB");
}

/// A frame of any content.
fn frame(content: &[u8]) -> Vec<u8> {
    [&(content.len() as u32).to_le_bytes()[..], content].concat()
}

/// The same as values: `protocol/tests/bombs.rs`, and for the types of commands `plugin-api/src/body.rs`.
#[tokio::test]
async fn case_19_decode_bombs_are_errors_within_bounds() {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    world.apply(Fleet::new().with("cam-1/counter/main", "").text()).await.with_code(0);
    let fleet = world.client().await;
    let pid = world.manager().pid();
    let before = memory_kib(pid);
    // Headers: they end their connection.
    let headers: [(&str, Vec<u8>); 9] = [
        ("a length that claims gigabytes", frame(&[3, 0, 253, 255, 255, 255, 255, 255, 255, 255, 127])),
        ("lengths in lengths", frame(&[0xff; 64])),
        ("deep nesting", frame(&[3; 60_000])),
        ("an announced body of gigabytes", frame(&[11, 253, 0, 0, 0, 0, 4, 0, 0, 0])),
        ("bytes behind a message without a body", frame(&[9, 1, 0, 0, 0, 0, 0, 0, 0])),
        ("an unknown tag", frame(&[200])),
        ("an empty frame", frame(&[])),
        ("a frame of 4 GiB", u32::MAX.to_le_bytes().to_vec()),
        ("a frame of one byte too many", (1024 * 1024 + 1_u32).to_le_bytes().to_vec()),
    ];
    for (_, bomb) in &headers {
        is_cut(&world, &[&hello(), bomb]).await;
    }
    // Bodies: the session lives on.
    let deep =
        |open: &str| format!("{{\"source\":\"x\",\"fleet\":{{\"station\":{}", open.repeat(1_000_000 / open.len()));
    let stream = TcpStream::connect(&world.address).await.unwrap();
    let (session, _) = quilt_net::connect(stream, greeting(), Arc::new(NoService)).await.unwrap();
    let bodies: [(&str, Encoding, &str, Vec<u8>); 8] = [
        ("a text of gigabytes", Encoding::Bincode, "quilt:stations", vec![253, 255, 255, 255, 255, 255, 255, 255, 127]),
        ("bytes left over", Encoding::Bincode, "quilt:stations", vec![0, 0]),
        ("an unknown tag", Encoding::Bincode, "quilt:rollback", vec![1, b'x', 2]),
        ("too short", Encoding::Bincode, "quilt:rollback", vec![]),
        ("lists in lists", Encoding::Json, "quilt:apply", deep("[").into_bytes()),
        ("tables in tables", Encoding::Json, "quilt:apply", deep("{\"a\":").into_bytes()),
        ("two documents", Encoding::Json, "quilt:stations", b"{}{}".to_vec()),
        ("the wrong kind", Encoding::Json, "quilt:stations", b"[[[[]]]]".to_vec()),
    ];
    for (what, encoding, command, body) in bodies {
        let mut terms = Terms::new(Address::Manager, command);
        terms.encoding = encoding;
        let answer = session.request(&RequestHead::new(terms), body.into()).await;
        assert_eq!(answer.outcome, Outcome::SchemaMismatch, "{what}: {}", answer.text());
    }
    assert!(fleet.call("cam-1/counter/main", &Increment { by: 1 }).await.is_ok(), "others notice");
    let after = memory_kib(pid);
    assert!(after < before + 16 * 1024, "memory grew from {before} to {after} KiB");
}

/// How much time of a processor a process has taken.
fn processor_time(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let ticks = stat.rsplit(')').next().unwrap().split_whitespace().skip(11).take(2);
    // A hundred ticks a second on every Linux that runs here.
    ticks.map(|ticks| Duration::from_millis(10 * ticks.parse::<u64>().unwrap())).sum()
}

#[tokio::test]
async fn case_15_a_manager_short_of_descriptors_keeps_its_sessions_lets_new_ones_wait_and_recovers() {
    const LIMIT: usize = 160;
    const RESERVED: usize = 64;
    let mut world = World::empty();
    let log = world.folder().join("manager.log");
    world.start_manager_from_shell(&format!("ulimit -n {LIMIT}; exec \"$@\" 2> {}", log.display())).await;
    world.station("cam-1", &[]).await;
    world.apply(Fleet::new().with("cam-1/counter/main", "").text()).await.with_code(0);
    let (fleet, pid) = (world.client().await, world.manager().pid());
    let descriptors = || std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let mut tools = Vec::new();
    for _ in 0..LIMIT {
        let mut tool = TcpStream::connect(&world.address).await.unwrap();
        tool.write_all(&hello()).await.unwrap();
        tools.push(tool);
    }
    world.eventually("only its reserve is left", async |_| descriptors() >= LIMIT - RESERVED).await;
    let (began, before) = (tokio::time::Instant::now(), processor_time(pid));
    tokio::time::sleep(Duration::from_secs(1)).await;
    let taken = processor_time(pid) - before;
    assert!(taken < began.elapsed() / 10, "it took {taken:?} of the processor in {:?}", began.elapsed());
    // A few more for its own work, and no connections.
    assert!(descriptors() < LIMIT - RESERVED + 16, "{} descriptors", descriptors());
    assert!(fleet.call("cam-1/counter/main", &Increment { by: 1 }).await.is_ok(), "a live session is harmed");
    assert!(std::fs::read_to_string(&log).unwrap().contains("64 descriptors are left"));
    let is_answered = |tool: &TcpStream| tool.try_read(&mut [0; 1]).is_ok_and(|read| read > 0);
    let (answered, waiting): (Vec<_>, Vec<_>) = tools.into_iter().partition(is_answered);
    assert!(!answered.is_empty() && waiting.len() >= RESERVED, "{} wait", waiting.len());
    drop(answered);
    let welcomed = async |_: &World| waiting.iter().filter(|tool| is_answered(tool)).count() > 0;
    world.eventually("one that waited gets in", welcomed).await;
    assert!(fleet.call("cam-1/counter/main", &Increment { by: 1 }).await.is_ok());
}

#[tokio::test]
async fn a_peer_that_never_greets_is_cut_and_half_a_frame_holds_nobody_up() {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    let greeting = hello();
    let silent = is_cut(&world, &[]);
    let half = [&greeting[..greeting.len() / 2]];
    let half = is_cut(&world, &half);
    let others = async {
        for _ in 0..20 {
            world.ctl(&["stations"]).await.with_code(0);
        }
    };
    tokio::join!(silent, half, others);
}

#[tokio::test]
async fn connections_that_do_not_greet_make_room_for_newer_ones() {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, soft.max(hard.min(4096)), hard).unwrap();
    let world = World::new().await;
    let mut silent = Vec::new();
    for _ in 0..1100 {
        silent.push(TcpStream::connect(&world.address).await.unwrap());
    }
    for stream in &mut silent[..1100 - 1024] {
        // Long before they would be for their silence.
        let read = tokio::time::timeout(Duration::from_secs(2), stream.read(&mut [0; 64])).await;
        assert!(matches!(read, Ok(Ok(0))), "the oldest are closed: {read:?}");
    }
    let last = &mut silent[1099];
    last.write_all(&hello()).await.unwrap();
    assert!(last.read(&mut [0; 64]).await.unwrap() > 0, "a newer one is answered");
    world.client().await.close();
}

#[tokio::test]
async fn a_peer_that_never_reads_costs_bounded_memory_and_is_cut() {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    world.apply(Fleet::new().with("cam-1/counter/main", "").text()).await.with_code(0);
    let fleet = world.client().await;
    let pid = world.manager().pid();
    let before = memory_kib(pid);
    let mut stream = TcpStream::connect(&world.address).await.unwrap();
    stream.write_all(&hello()).await.unwrap();
    let flood = async {
        let mut frames = Vec::new();
        for number in 0u64.. {
            let head = RequestHead::new(Terms::new(Address::Manager, "quilt:stations"));
            put_frame(&mut frames, &Message::request(number, &head, 0), &[]);
            if number % 64 == 63 {
                if stream.write_all(&frames).await.is_err() {
                    return number;
                }
                frames.clear();
            }
        }
        unreachable!("it is cut before the numbers run out")
    };
    let asked = tokio::time::timeout(Duration::from_secs(60), flood).await.expect("it is cut");
    let after = memory_kib(pid);
    assert!(after < before + 64 * 1024, "after {asked} requests memory grew from {before} to {after} KiB");
    assert!(fleet.call("cam-1/counter/main", &Increment { by: 1 }).await.is_ok(), "others notice");
}

#[tokio::test]
async fn tools_may_not_do_what_only_the_manager_may() {
    let mut world = World::new().await;
    world.station("cam-1", &[]).await;
    let fleet = world.client().await;
    let options = quilt_client::CallOptions { timeout: Duration::from_secs(5), idempotent: false, retry: false };
    for command in ["quilt:update_configuration", "quilt:control", "quilt:renew", "quilt:adopt", "quilt:plan"] {
        let to = Address::Station("cam-1".parse().unwrap());
        let answer = fleet.call_json(&to, command, bytes::Bytes::from_static(b"{}"), &options).await;
        assert_eq!(answer.outcome, quilt_client::Outcome::Denied, "{command}");
    }
}

#[tokio::test]
async fn registrations_that_are_given_up_or_repeated_keep_nobody_from_having_a_turn() {
    let mut world = World::new().await;
    let head = RequestHead::new(Terms {
        encoding: Encoding::Bincode,
        ..Terms::new(Address::Manager, quilt_protocol::control::command::REGISTER)
    });
    let (mut sessions, mut wanted) = (Vec::new(), Vec::new());
    // More than are taken at a time.
    for number in 0..400 {
        let id = StationId::random();
        let stream = TcpStream::connect(&world.address).await.unwrap();
        let hello = Hello { identity: Identity::Station(id), ..greeting() };
        let (session, _) = quilt_net::connect(stream, hello, Arc::new(NoService)).await.unwrap();
        let registration = registration(id, &format!("hostile-{number}"));
        let asked = session.request(&head, quilt_net::encode(Encoding::Bincode, &registration));
        match number % 4 {
            0 => wanted.push((session.clone(), asked)),
            1 => session.goodbye("not interested"),
            _ => drop(asked),
        }
        sessions.push(session);
    }
    for (session, asked) in wanted {
        let answer = asked.await;
        assert_eq!(answer.outcome, Outcome::Reply, "{}", answer.text());
        let again = session.request(&head, bytes::Bytes::new()).await;
        assert_eq!(again.outcome, Outcome::Refused, "{}", again.text());
    }
    world.station("cam-1", &[]).await;
}

#[tokio::test]
async fn stations_that_say_too_much_of_themselves_are_told_the_limit_and_spoil_no_listing() {
    let mut world = World::new().await;
    world.station("cam-1", &["--label", "room=a"]).await;
    let id = StationId::random();
    let stream = TcpStream::connect(&world.address).await.unwrap();
    let hello = Hello { identity: Identity::Station(id), ..greeting() };
    let (session, _) = quilt_net::connect(stream, hello, Arc::new(NoService)).await.unwrap();
    let labels = [("k", "x".repeat(20 << 20))].into_iter().collect();
    let boasts = Registration { labels, ..registration(id, "boasts") };
    let command = quilt_protocol::control::command::REGISTER;
    let time = Duration::from_secs(30);
    let asked = session.ask::<_, ()>(Address::Manager, command, Encoding::Bincode, &boasts, time).await;
    let text = asked.unwrap_err().to_string();
    assert!(text.contains("label `k` has a value of 20971520 bytes; at most 1024 are taken"), "{text}");
    let listed = world.ctl(&["stations", "-o", "json"]).await.with_code(0).json();
    let names: Vec<_> = listed.as_array().unwrap().iter().map(|station| station["name"].clone()).collect();
    assert_eq!(names, ["cam-1"]);

    // An honest station hears of it where it is configured.
    let mut station = world.command("quilt-station");
    station.arg("--data-dir").arg(world.station_folder("cam-2")).args(["--label", &format!("k={}", "x".repeat(2000))]);
    let output = station.output().await.unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(
        (output.status.code(), text.contains("label `k` has a value of 2000 bytes; at most 1024")),
        (Some(1), true),
        "{text}"
    );
}

#[tokio::test]
async fn probes_are_answered_while_hundreds_of_half_requests_hold_connections() {
    use tokio::io::AsyncWriteExt as _;
    let world = World::new().await;
    let mut halves = Vec::new();
    for _ in 0..300 {
        let mut half = tokio::net::TcpStream::connect(&world.http).await.unwrap();
        half.write_all(b"GET /healthz HTTP/1.1\r\n").await.unwrap();
        halves.push(half);
    }
    let asked = tokio::time::Instant::now();
    for _ in 0..10 {
        assert!(world.get("/healthz").await.starts_with("HTTP/1.1 200"));
    }
    // A half request is given 2 s.
    assert!(asked.elapsed() < std::time::Duration::from_secs(1), "{:?}", asked.elapsed());
}
