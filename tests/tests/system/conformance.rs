//! A role is a role, wherever it runs: the same script against one that is linked in, one that is loaded into the
//! station, and one in a child process. What callers and operators see must be the same, in the same order.

use std::time::Duration;

use bytes::Bytes;
use quilt_client::{CallOptions, Client};
use quilt_core::daemon::DaemonArgs;
use quilt_core::signals::Stop;
use quilt_station::{Station, StationArgs};
use quilt_tests::{Fleet, World, plugins};

const TARGET: &str = "cam-1/imp/main";

/// Everything that was seen, in order.
struct Transcript {
    world: World,
    client: Client,
    isolation: &'static str,
    seen: Vec<String>,
}

impl Transcript {
    fn note(&mut self, what: &str, seen: impl std::fmt::Display) {
        let seen = seen.to_string().replace(self.world.folder().to_str().unwrap(), "");
        self.seen.push(format!("{what}: {seen}"));
    }

    async fn apply(&mut self, keys: &str) {
        let isolation = self.isolation;
        let applied = self.world.apply(Fleet::new().with(TARGET, &format!("{keys}{isolation}")).text()).await;
        // Which steps of the way are shown is a matter of moments.
        let is_end = |line: &&str| {
            line.contains("imp/main") && ![": applying", ": settled"].iter().any(|step| line.contains(step))
        };
        let problems: Vec<_> = applied.err.lines().filter(is_end).collect();
        self.note(keys, format!("code {} {problems:?}", applied.code));
    }

    async fn call(&mut self, command: &str, body: &str) {
        let options = CallOptions { timeout: Duration::from_millis(1500), idempotent: false, retry: false };
        let body_bytes = Bytes::copy_from_slice(body.as_bytes());
        let answer = self.client.call_json(&TARGET.parse().unwrap(), command, body_bytes, &options).await;
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        self.note(&format!("{command} {body}"), format!("{:?} {text}", answer.outcome));
    }

    async fn stream(&mut self, command: &str, body: &str) {
        let mut items =
            self.client.stream_json(&TARGET.parse().unwrap(), command, Bytes::copy_from_slice(body.as_bytes()));
        let mut all = Vec::new();
        while let Some(item) = items.next().await {
            all.push(String::from_utf8_lossy(&item).into_owned());
        }
        let answer = items.end().await;
        self.note(&format!("{command} {body}"), format!("{all:?} {:?}", answer.outcome));
    }

    async fn until(&mut self, state: &str) {
        let view = self.world.until_state(TARGET, state).await;
        self.note("state", format!("{state} {:?} {:?}", view.detail, view.attributes));
    }

    async fn commands(&mut self) {
        let mut commands = self.client.commands(&"cam-1".parse().unwrap()).await.unwrap();
        commands.retain(|command| command.role.as_str() == "imp");
        self.note("commands", serde_json::to_string(&commands).unwrap());
    }

    async fn role(&mut self) {
        let roles = self.client.roles(&"cam-1".parse().unwrap()).await.unwrap();
        let imp = roles.into_iter().find(|role| role.role.as_str() == "imp").unwrap();
        self.note("role", format!("{} {} {} {}", imp.version, imp.instances, imp.doc, imp.config_schema));
    }

    /// What the fleet heard of the instance. A plugin's traces are events as well; a linked role's are in the log only.
    async fn events(&mut self) {
        let events = self.world.ctl(&["events", "--after", "0", "-o", "jsonl"]).await.with_code(0).out;
        for line in events.lines() {
            let event: serde_json::Value = serde_json::from_str(line).unwrap();
            // That it was asked for is the manager's own, and finds its place beside the station's reports by chance.
            let is_told = event["kind"] != "role.trace" && event["kind"] != "instance.operated";
            if event["instance"] == "imp/main" && is_told {
                self.note("event", format!("{} {}", event["kind"], event["text"]));
            }
        }
    }

    async fn logs(&mut self) {
        let logs = self.world.ctl(&["logs", "cam-1/imp/main", "-n", "1000"]).await.with_code(0).out;
        let says = |line: &&str| line.contains("starting ") || line.contains("stopping ");
        let lines: Vec<_> =
            logs.lines().filter(says).map(|line| line.rsplit("  ").next().unwrap().to_owned()).collect();
        self.note("log", format!("{lines:?}"));
    }

    async fn script(&mut self) {
        let once = "restart = { policy = 'temporary' }\n";
        self.role().await;
        self.apply("say = 'a'\nvalidate = 'refuses'\n").await;
        self.apply("say = 'a'\nvalidate = 'panics'\n").await;
        self.apply("say = 3\n").await;
        self.apply("said = 'a'\n").await;
        self.apply("say = 'a'\n").await;
        self.commands().await;
        self.call("echo", r#"{"text":"x"}"#).await;
        self.call("echo", r#"{"text":3}"#).await;
        self.call("echo", "not JSON").await;
        self.call("echo", "{}").await;
        self.call("sing", "{}").await;
        self.call("decline", r#"{"why":"tired"}"#).await;
        self.call("crowd", r#"{"target":"cam-1/imp/main","calls":257}"#).await;
        self.call("hang", "{}").await;
        // Given up, and panics at that.
        self.call("hang_and_bomb", "{}").await;
        self.stream("count", r#"{"items":1000}"#).await;
        self.stream("count", r#"{"items":0}"#).await;
        self.stream("count", r#"{"items":-1}"#).await;
        // In place, then by a restart.
        self.apply("say = 'b'\n").await;
        self.call("echo", r#"{"text":"x"}"#).await;
        self.apply("say = 'c'\nupdate = 'restarts'\n").await;
        self.call("echo", r#"{"text":"x"}"#).await;
        self.apply(&format!("say = 'd'\nupdate = 'fails'\n{once}")).await;
        self.call("echo", r#"{"text":"x"}"#).await;
        // A panic ends the instance.
        self.call("panic", r#"{"bomb":false}"#).await;
        self.until("failed").await;
        self.call("echo", r#"{"text":"x"}"#).await;
        self.apply(&format!("say = 'e'\n{once}")).await;
        self.call("panic", r#"{"bomb":true}"#).await;
        self.until("failed").await;
        for how in ["fails", "panics", "bombs"] {
            self.apply(&format!("say = 'f'\nstart = '{how}'\n{once}")).await;
            self.apply(&format!("say = 'calm'\n{once}")).await;
            // Not waited for: whether it is seen to be healthy before is a matter of moments.
            let keys = format!("say = 'g'\nwork = '{how}'\nupdate = 'restarts'\n{once}{}", self.isolation);
            let path = self.world.fleet_file("fleet.toml", Fleet::new().with(TARGET, &keys).text());
            self.world.ctl(&["apply", "-f", &path]).await.with_code(0);
            self.until("failed").await;
        }
        self.apply("say = 'h'\nwork = 'ends'\n").await;
        self.until("completed").await;
        for command in [r#"decode {"odd":1}"#, "encode {}"] {
            let (command, body) = command.split_once(' ').unwrap();
            self.apply(&format!("say = '{command}'\n{once}")).await;
            self.call(command, body).await;
            self.until("failed").await;
        }
        self.apply("say = 'j'\ndrop = 'panics'\n").await;
        self.world.ctl(&["restart", TARGET]).await.with_code(0);
        self.until("active").await;
        self.call("echo", r#"{"text":"x"}"#).await;
        self.apply("say = 'i'\nstop = 'panics'\n").await;
        self.world.ctl(&["stop", TARGET]).await.with_code(0);
        self.until("stopped").await;
        self.world.ctl(&["start", TARGET]).await.with_code(0);
        self.until("active").await;
        self.world.apply(Fleet::new().empty_station("cam-1").text()).await.with_code(0);
        self.commands().await;
        self.logs().await;
        self.events().await;
    }
}

async fn transcript(isolation: Option<&str>) -> Vec<String> {
    let mut world = World::new().await;
    let mut here = None;
    if isolation.is_some() {
        world.station("cam-1", &[]).await;
        world.plug(&plugins::imp("one"), "libimp.so");
    } else {
        let arguments = StationArgs {
            daemon: DaemonArgs::with_data_dir(world.station_folder("cam-1")),
            manager: vec![world.address.clone()],
            name: Some("cam-1".into()),
            ..StationArgs::default()
        };
        here = Some(Station::start(arguments.resolve().unwrap()).await.unwrap());
    }
    world.until_offered("cam-1", "imp").await;
    let isolation = match isolation {
        Some("inproc") => "isolation = 'inproc'\n",
        _ => "",
    };
    let client = world.client().await;
    let mut transcript = Transcript { world, client, isolation, seen: Vec::new() };
    transcript.script().await;
    if let Some(station) = here {
        assert!(station.stop(Stop::All).await.is_empty());
    }
    transcript.seen
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_that_is_linked_in_one_in_the_station_and_one_in_a_child_cannot_be_told_apart() {
    // Before anything runs in this process that a build would hold up.
    plugins::imp("one");
    let (linked, inproc, child) =
        tokio::join!(transcript(None), transcript(Some("inproc")), transcript(Some("process")));
    for (name, other) in [("in the station", inproc), ("in a child", child)] {
        for (number, (expected, got)) in linked.iter().zip(&other).enumerate() {
            assert_eq!(expected, got, "{name}, number {number} of what was seen");
        }
        assert_eq!(linked.len(), other.len(), "{name}: {:?}", other.last());
    }
    assert!(linked.len() > 80, "{}", linked.len());
    let crowded = "256 calls of imp/main to others are under way, which is the limit; wait for one";
    assert!(linked.iter().any(|seen| seen.ends_with(&format!("Reply [\"overloaded\",\"{crowded}\"]"))), "{linked:#?}");
    let declined = "Error \"tired\"\n\"no: tired\"";
    assert!(linked.iter().any(|seen| seen.ends_with(declined)), "{linked:#?}");
}
