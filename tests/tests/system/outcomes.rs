//! Every way in which a request can end, through real sockets: a real manager, and a station in this process with a role
//! made for mischief.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{LazyLock, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use nix::sys::signal::Signal;
use quilt_client::{CallError, CallOptions, Client, Delivered, Outcome};
use quilt_core::daemon::DaemonArgs;
use quilt_core::signals::Stop;
use quilt_plugin_api::{Command, Items, NoError, RoleContext, RoleError, Streaming, role};
use quilt_protocol::Address;
use quilt_role_counter::api::{Increment, Value};
use quilt_station::{Station, StationArgs};
use quilt_tests::World;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

macro_rules! commands {
    ($($name:ident { $($field:ident: $type:ty),* } -> $reply:ty;)*) => {
        $(
            #[derive(Serialize, Deserialize, JsonSchema, Command)]
            #[command(group = "Mischief", reply = $reply)]
            struct $name { $($field: $type),* }
        )*
    };
}

commands! {
    Panic {} -> ();
    PanicAtOnce {} -> ();
    PanicLooking {} -> ();
    PanicStreaming {} -> u32;
    Hang { tag: u32 } -> ();
    Echo { text: String } -> String;
    Bounce { times: u32 } -> u32;
    Spam { items: u32 } -> u64;
    Gated { tag: u32 } -> u32;
}

#[derive(Deserialize, JsonSchema)]
struct NoConfig {}

struct Mischief {
    cx: RoleContext,
}

/// Tags of the calls that hang, or did.
static HANGING: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());

/// How often each gated call was carried out.
static CARRIED_OUT: Mutex<BTreeMap<u32, u32>> = Mutex::new(BTreeMap::new());
static GATE: LazyLock<watch::Sender<bool>> = LazyLock::new(|| watch::Sender::new(false));

fn hangs(tag: u32) -> bool {
    HANGING.lock().unwrap().contains(&tag)
}

#[role(name = "mischief")]
impl Mischief {
    async fn start(_: NoConfig, cx: &RoleContext) -> Result<Self, RoleError> {
        Ok(Self { cx: cx.clone() })
    }

    async fn update(&mut self, _: NoConfig, _: &RoleContext) -> Result<(), RoleError> {
        Ok(())
    }

    #[command]
    async fn panic(&self, _: Panic) -> Result<(), NoError> {
        panic!("as it was asked to");
    }

    /// The same where it arrives.
    #[command(inline)]
    async fn panic_at_once(&self, _: PanicAtOnce) -> Result<(), NoError> {
        panic!("as it was asked to");
    }

    #[command(read, inline)]
    async fn panic_looking(&self, _: PanicLooking) -> Result<(), NoError> {
        panic!("as it was asked to");
    }

    /// The same in the midst of a stream.
    #[command(stream)]
    fn panic_streaming(&self, _: PanicStreaming, mut items: Items<u32>) -> Streaming<NoError> {
        Box::pin(async move {
            let _ = items.send(&1).await;
            panic!("as it was asked to");
        })
    }

    #[command]
    async fn hang(&self, request: Hang) -> Result<(), NoError> {
        HANGING.lock().unwrap().insert(request.tag);
        std::future::pending().await
    }

    #[command(read)]
    async fn echo(&self, request: Echo) -> Result<String, NoError> {
        Ok(request.text)
    }

    /// Counts itself, then waits for its gate.
    #[command]
    async fn gated(&self, request: Gated) -> Result<u32, NoError> {
        *CARRIED_OUT.lock().unwrap().entry(request.tag).or_default() += 1;
        GATE.subscribe().wait_for(|open| *open).await.expect("the gate is never dropped");
        Ok(request.tag)
    }

    /// Calls another instance through the manager, on the station's own connection.
    #[command]
    async fn bounce(&self, request: Bounce) -> Result<u32, NoError> {
        let mut answered = 0;
        for _ in 0..request.times {
            let answer = self.cx.call("bench/counter/main", &Increment { by: 1 }, Duration::from_secs(10)).await;
            answered += u32::from(answer.outcome == "reply");
        }
        Ok(answered)
    }

    #[command(stream)]
    fn spam(&self, request: Spam, mut items: Items<u64>) -> Streaming<NoError> {
        Box::pin(async move {
            for number in 0..request.items {
                if items.send(&u64::from(number)).await.is_err() {
                    break;
                }
            }
            Ok(())
        })
    }
}

const TARGET: &str = "bench/mischief/main";

struct Mischievous {
    world: World,
    station: Station,
    client: Client,
}

async fn mischievous() -> Mischievous {
    let world = World::new().await;
    let args = StationArgs {
        daemon: DaemonArgs::with_data_dir(world.folder().join("inproc")),
        manager: vec![world.address.clone()],
        name: Some("bench".into()),
        ..StationArgs::default()
    };
    let station = Station::start(args.resolve().unwrap()).await.unwrap();
    let registered = async |world: &World| world.stations().await.iter().any(|one| one.state.name() == "connected");
    world.eventually("the station is there", registered).await;
    world.apply("[station.bench.roles.mischief.main]\n[station.bench.roles.counter.main]\n").await.with_code(0);
    let client = world.client().await;
    Mischievous { world, station, client }
}

impl Mischievous {
    async fn outcome(&self, command: &str, body: &str, time: Duration) -> (Outcome, String) {
        let options = CallOptions { timeout: time, idempotent: false, retry: false };
        let to: Address = TARGET.parse().unwrap();
        let answer = self.client.call_json(&to, command, Bytes::copy_from_slice(body.as_bytes()), &options).await;
        (answer.outcome, answer.text())
    }

    async fn end(self) {
        self.client.close();
        self.station.stop(Stop::All).await;
    }
}

const LONG: Duration = Duration::from_secs(15);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_ends_the_instance_wherever_its_command_is_carried_out() {
    let m = mischievous().await;
    for (number, command) in ["panic_at_once", "panic_looking", "panic_streaming"].into_iter().enumerate() {
        let to: Address = TARGET.parse().unwrap();
        let (outcome, text) = match command {
            "panic_streaming" => {
                let mut items = m.client.stream_json(&to, command, Bytes::from_static(b"{}"));
                assert_eq!(items.next().await.as_deref(), Some(&b"1"[..]));
                let answer = items.end().await;
                (answer.outcome, answer.text())
            }
            _ => m.outcome(command, "{}", LONG).await,
        };
        assert_eq!((outcome, text.as_str()), (Outcome::Panicked, "as it was asked to"), "{command}");
        let back = async |world: &World| {
            let view = world.instance(TARGET).await;
            view.is_some_and(|view| view.restarts as usize == number + 1 && view.state.name() == "active")
        };
        m.world.eventually("it was restarted", back).await;
    }
    m.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn panics_timeouts_refusals_and_cancellations_are_what_the_caller_gets() {
    let m = mischievous().await;
    assert_eq!(m.outcome("echo", "{\"text\":\"x\"}", LONG).await, (Outcome::Reply, "\"x\"".into()));
    let (outcome, text) = m.outcome("panic", "{}", LONG).await;
    assert_eq!((outcome, text.as_str()), (Outcome::Panicked, "as it was asked to"));
    // The instance failed with it, its station did not, and it is back after its back-off.
    let back = async |world: &World| {
        world.instance(TARGET).await.is_some_and(|view| view.restarts == 1 && view.state.name() == "active")
    };
    m.world.eventually("it was restarted", back).await;

    assert_eq!(m.outcome("hang", "{\"tag\":1}", Duration::from_millis(200)).await.0, Outcome::TimedOut);
    assert_eq!(m.outcome("spam", "{\"items\":1}", LONG).await.0, Outcome::Refused);
    assert_eq!(m.outcome("echo", "{\"text\":1}", LONG).await.0, Outcome::SchemaMismatch);
    assert_eq!(m.outcome("nothing", "{}", LONG).await.0, Outcome::NoCommand);

    // An update ends the calls that run.
    let update = async {
        while !hangs(2) {
            tokio::task::yield_now().await;
        }
        m.world
            .apply("[station.bench.roles.mischief.main]\nx = 1\n[station.bench.roles.counter.main]\n")
            .await
            .with_code(0);
    };
    let (hung, ()) = tokio::join!(m.outcome("hang", "{\"tag\":2}", LONG), update);
    assert_eq!(hung.0, Outcome::Cancelled);
    m.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_many_at_once_is_overloaded_and_a_lost_manager_is_peer_lost() {
    let mut m = mischievous().await;
    let hanging: Vec<_> = (0..1024).map(|_| Box::pin(m.outcome("hang", "{\"tag\":3}", LONG))).collect();
    let mut hanging = hanging;
    // All are on their way once polled.
    std::future::poll_fn(|cx| {
        hanging.iter_mut().for_each(|call| assert!(call.as_mut().poll(cx).is_pending()));
        std::task::Poll::Ready(())
    })
    .await;
    assert_eq!(m.outcome("echo", "{\"text\":\"x\"}", LONG).await.0, Outcome::Overloaded);
    drop(hanging);
    // Cancelling travels too: the places are free a moment later.
    let free = async |_: &World| m.outcome("echo", "{\"text\":\"x\"}", LONG).await.0 == Outcome::Reply;
    m.world.eventually("there is room again", free).await;

    let client = m.client.clone();
    let lost = tokio::spawn(async move {
        let options = CallOptions { timeout: LONG, idempotent: false, retry: false };
        let to: Address = TARGET.parse().unwrap();
        client.call_json(&to, "hang", Bytes::from_static(b"{\"tag\":4}"), &options).await.outcome
    });
    m.world.eventually("it hangs", async |_| hangs(4)).await;
    m.world.end_manager(Signal::SIGKILL).await;
    assert_eq!(lost.await.unwrap(), Outcome::PeerLost(Delivered::Unknown));
    assert_eq!(m.outcome("echo", "{}", LONG).await.0, Outcome::PeerLost(Delivered::No));
    m.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_of_16_mib_arrives_whole_beside_small_ones_that_are_not_held_up() {
    let m = mischievous().await;
    let large = "x".repeat(16 << 20);
    let (client, request) = (m.client.clone(), Echo { text: large.clone() });
    let mut large_call = Box::pin(async move { client.call(TARGET, &request).await });
    let (mut small, mut longest) = (0, Duration::ZERO);
    let began = Instant::now();
    let echoed = loop {
        let asked = Instant::now();
        tokio::select! {
            biased;
            echoed = &mut large_call => break echoed.unwrap(),
            value = m.client.call("bench/counter/main", &Value {}) => {
                value.unwrap();
                small += 1;
                longest = longest.max(asked.elapsed());
            }
        }
    };
    assert!(echoed == large, "the body was changed on the way");
    assert!(small >= 3, "{small} small calls during {:?}, the longest took {longest:?}", began.elapsed());
    assert!(longest < began.elapsed() / 2, "a small call waited for the large one: {longest:?}");
    m.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_calls_go_both_ways_on_one_connection() {
    let m = mischievous().await;
    // Each of these comes to the station, and makes it ask ten times back on the same connection.
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let client = m.client.clone();
        calls.spawn(async move { client.call(TARGET, &Bounce { times: 10 }).await.unwrap() });
    }
    for _ in 0..500 {
        let client = m.client.clone();
        calls.spawn(async move { client.call(TARGET, &Echo { text: "x".into() }).await.map(|_| 0).unwrap() });
    }
    assert_eq!(calls.join_all().await.into_iter().sum::<u32>(), 500);
    assert_eq!(m.client.call("bench/counter/main", &Value {}).await.unwrap(), 500);
    m.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_stream_is_taken_at_its_readers_pace() {
    let m = mischievous().await;
    let mut items = m.client.stream(TARGET, &Spam { items: 20_000 }).unwrap();
    for expected in 0..20_000u64 {
        assert_eq!(items.next().await.unwrap().unwrap(), expected);
    }
    items.end().await.unwrap();
    m.end().await;
}

/// A tool with an older idea of a command's types.
#[derive(Serialize, Deserialize, JsonSchema, Command)]
#[command(group = "Mischief", name = "echo", reply = String)]
struct OldEcho {
    text: String,
    loudness: Option<u32>,
}

/// A tool that expects another reply.
#[derive(Serialize, Deserialize, JsonSchema, Command)]
#[command(group = "Mischief", name = "echo", reply = u32)]
struct CountedEcho {
    text: String,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_with_other_types_are_understood_through_json() {
    let m = mischievous().await;
    let reply = m.client.call(TARGET, &OldEcho { text: "hello".into(), loudness: Some(11) }).await.unwrap();
    assert_eq!(reply, "hello");
    // An answer that the caller cannot read is no mismatch: that would say that nothing was carried out.
    let answer = m.client.call(TARGET, &CountedEcho { text: "hello".into() }).await;
    assert!(matches!(answer, Err(CallError::Answer(_))), "{answer:?}");
    m.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_whose_connections_were_lost_after_it_was_begun_is_carried_out_once_and_its_retry_gets_the_answer() {
    let mut m = mischievous().await;
    let options = CallOptions { timeout: Duration::from_secs(30), idempotent: false, retry: true };
    let client = m.client.clone();
    let call = tokio::spawn(async move { client.call_with(TARGET, &Gated { tag: 7 }, &options).await });
    let begun = async |_: &World| CARRIED_OUT.lock().unwrap().get(&7) == Some(&1);
    m.world.eventually("it is carried out", begun).await;
    m.world.end_manager(Signal::SIGKILL).await;
    m.world.start_manager().await;
    let back = async |world: &World| world.stations().await.iter().any(|one| one.state.name() == "connected");
    m.world.eventually("the station is back", back).await;
    GATE.send_replace(true);
    assert_eq!(call.await.unwrap().unwrap(), 7);
    assert_eq!(CARRIED_OUT.lock().unwrap()[&7], 1);
    m.end().await;
}

/// At most one on a station.
struct Single;

#[role(name = "single", instances = 1)]
impl Single {
    async fn start(_: NoConfig, _: &RoleContext) -> Result<Self, RoleError> {
        Ok(Self)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blocked_missing_over_limit_and_mistyped_are_told_in_one_answer() {
    let world = World::new().await;
    let args = StationArgs {
        daemon: DaemonArgs::with_data_dir(world.folder().join("inproc")),
        manager: vec![world.address.clone()],
        name: Some("bench".into()),
        block: vec!["mischief".into()],
        ..StationArgs::default()
    };
    let station = Station::start(args.resolve().unwrap()).await.unwrap();
    let registered = async |world: &World| world.stations().await.iter().any(|one| one.state.name() == "connected");
    world.eventually("the station is there", registered).await;
    world.apply("[station.bench.roles.single.one]\n[station.bench.roles.counter.main]\n").await.with_code(0);
    let client = world.client().await;
    client.call("bench/counter/main", &Increment { by: 3 }).await.unwrap();
    let before = world.show("bench").await;

    let wrong = "[station.bench.roles.single.one]\n[station.bench.roles.single.two]\n\
                 [station.bench.roles.mischief.main]\n[station.bench.roles.nonsense.main]\n\
                 [station.bench.roles.counter.main]\nstart = 'x'\n";
    let file = world.fleet_file("wrong.toml", wrong);
    let refused = world.ctl(&["apply", "-f", &file, "-o", "json"]).await.with_code(4).json();
    assert_eq!(refused["rejection"]["code"], "ROLE_BLOCKED");
    let told = |problem: &serde_json::Value| {
        let text = |field: &str| problem[field].as_str().unwrap_or("-").to_owned();
        [text("station"), text("role"), text("instance"), text("key"), text("expected"), text("got")].join(" | ")
    };
    let told: Vec<_> = refused["rejection"]["problems"].as_array().unwrap().iter().map(told).collect();
    assert_eq!(
        told,
        [
            "bench | mischief | main | - | a role that this station does not block | `mischief`, which it is told to \
             refuse (--block)",
            "bench | nonsense | main | - | one of the station's roles: `counter`, `imp`, `mischief`, `process`, `single` | \
             `nonsense`",
            "bench | counter | main | start | a whole number | text",
            "bench | single | two | - | at most 1 instance of it on a station | 2",
        ]
    );
    let after = world.show("bench").await;
    // Not even a moment of theirs: each is in its state since the same time.
    let since = |view: &quilt_client::control::StationView| -> Vec<_> {
        view.instances.iter().map(|one| (one.instance.clone(), one.state, one.since.clone(), one.restarts)).collect()
    };
    assert_eq!((after.desired_revision, &after.rejected), (before.desired_revision, &None));
    assert_eq!(since(&after), since(&before));
    assert_eq!(client.call("bench/counter/main", &Value {}).await.unwrap(), 3, "the instance was touched");

    world.ctl(&["apply", "-f", &file, "--force"]).await.with_code(4);
    world.eventually("it shows as rejected", async |world| world.show("bench").await.rejected.is_some()).await;
    assert_eq!(client.call("bench/counter/main", &Value {}).await.unwrap(), 3);
    client.close();
    station.stop(Stop::All).await;
}
