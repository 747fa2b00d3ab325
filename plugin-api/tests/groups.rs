//! Groups of commands known only at run time, and what must never happen with them.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::path::Path;
use std::sync::{Arc, Mutex};

use quilt_plugin_api::testing::{Harness, Outcome};
use quilt_plugin_api::{Command, CommandGroup, NoError, RoleContext, RoleError, role};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

#[derive(Serialize, Deserialize, JsonSchema, Command)]
#[command(group = "Lamps, all of them: even ours", reply = String)]
struct Switch {
    on: bool,
}

#[derive(Serialize, Deserialize, JsonSchema, Command)]
#[command(group = "Lamps, all of them: even ours", name = "colour", reply = String)]
struct SetColour {
    red: u8,
}

#[derive(Deserialize, JsonSchema)]
struct NoConfig {}

/// A role that hands its groups to the test.
struct Lamps {
    _groups: Arc<Mutex<Vec<CommandGroup>>>,
}

thread_local! {
    static GROUPS: Arc<Mutex<Vec<CommandGroup>>> = Arc::default();
}

#[role(name = "lamps")]
impl Lamps {
    async fn start(_: NoConfig, cx: &RoleContext) -> Result<Self, RoleError> {
        let groups = GROUPS.with(Arc::clone);
        groups.lock().unwrap().push(CommandGroup::new(Switch::GROUP, cx));
        groups.lock().unwrap().push(CommandGroup::new(Switch::GROUP, cx));
        Ok(Self { _groups: groups })
    }
}

struct World {
    lamps: Harness,
    first: CommandGroup,
    other: CommandGroup,
}

async fn world() -> World {
    let lamps = Harness::start::<Lamps>(json!({}), Path::new(env!("CARGO_TARGET_TMPDIR"))).await.unwrap();
    let mut groups = GROUPS.with(Arc::clone).lock().unwrap().drain(..).collect::<Vec<_>>();
    let other = groups.pop().unwrap();
    World { lamps, first: groups.pop().unwrap(), other }
}

async fn switch(world: &World) -> Outcome<String, NoError> {
    world.lamps.call(Switch { on: true }).await
}

fn says(text: &'static str) -> impl Fn(Switch) -> std::future::Ready<Result<String, NoError>> + Send + Sync {
    move |request| std::future::ready(Ok(format!("{text} {}", request.on)))
}

fn reply(text: &str) -> Outcome<String, NoError> {
    Outcome::Reply(text.to_owned())
}

#[tokio::test]
async fn a_group_is_callable_exactly_while_it_is_registered() {
    let world = world().await;
    world.first.responder(says("lamp"));
    assert_eq!(switch(&world).await, Outcome::NoCommand, "a responder alone makes nothing callable");
    world.first.register();
    world.first.register();
    assert_eq!(switch(&world).await, reply("lamp true"));
    world.first.de_register();
    world.first.de_register();
    assert_eq!(switch(&world).await, Outcome::NoCommand);
    world.first.register();
    assert_eq!(switch(&world).await, reply("lamp true"), "the pairs stay remembered");
}

#[tokio::test]
async fn a_responder_added_to_a_registered_group_is_live_at_once() {
    let world = world().await;
    world.first.register();
    world.first.responder(says("late"));
    assert_eq!(switch(&world).await, reply("late true"));
    world.first.responder(|request: SetColour| async move { Ok::<_, NoError>(format!("red {}", request.red)) });
    assert_eq!(world.lamps.call(SetColour { red: 7 }).await, Outcome::Reply("red 7".to_owned()));
}

// Defect 7 of the original: removing a pair never removed it, and it came back with the next register.
#[tokio::test]
async fn a_removed_responder_is_gone_without_a_trace() {
    let world = world().await;
    world.first.responder(says("lamp"));
    world.first.register();
    assert!(world.first.remove_responder::<Switch>());
    assert!(!world.first.remove_responder::<Switch>());
    assert_eq!(switch(&world).await, Outcome::NoCommand);
    world.first.de_register();
    world.first.register();
    assert_eq!(switch(&world).await, Outcome::NoCommand, "it came back");
}

// Defect 8 of the original: a second helper of the same name de-registered the first.
#[tokio::test]
async fn another_group_does_not_disturb_the_first() {
    let world = world().await;
    world.first.responder(says("first"));
    world.first.register();
    world.other.responder(says("second"));
    world.other.register();
    assert_eq!(switch(&world).await, reply("first true"));
    world.other.de_register();
    assert_eq!(switch(&world).await, reply("first true"));
    world.other.register();
    drop(world.other);
    assert_eq!(world.lamps.call(Switch { on: true }).await, reply("first true"));
    assert!(
        world.lamps.seen().logs[0].contains("offers one of that group and name already"),
        "{:?}",
        world.lamps.seen().logs
    );
}

#[tokio::test]
async fn a_dropped_group_leaves_nothing_callable() {
    let world = world().await;
    world.first.responder(says("lamp"));
    world.first.register();
    drop(world.first);
    assert_eq!(world.lamps.call(Switch { on: true }).await, Outcome::NoCommand);
}

#[derive(Serialize, Deserialize, JsonSchema, Debug, PartialEq)]
struct Lamp {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    colour: Option<u8>,
    on: bool,
    rest: serde_json::Value,
}

#[derive(Serialize, Deserialize, JsonSchema, Command)]
#[command(group = "Lamps, all of them: even ours", reply = Lamp)]
struct Look {}

// It was carried out, and the caller was told that it was not.
#[tokio::test]
async fn a_reply_that_bincode_cannot_carry_arrives_as_json() {
    let world = world().await;
    assert_eq!(Look::fingerprint(), quilt_plugin_api::JSON_ONLY);
    assert_ne!(Switch::fingerprint(), quilt_plugin_api::JSON_ONLY);
    let lamp = || Lamp { colour: None, on: true, rest: json!({ "watts": [5, null] }) };
    world.first.responder(move |_: Look| async move { Ok::<_, NoError>(lamp()) });
    world.first.register();
    assert_eq!(world.lamps.call(Look {}).await, Outcome::Reply(lamp()));
}
