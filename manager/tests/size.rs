#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

//! A manager bears what is large or slow: fleets of many instances, stations that say much of themselves, stations that never answer.

mod common;

use common::{Manner, TIME, World, instance, registration};
use quilt_client::Client;
use quilt_net::AskError;
use quilt_protocol::control::bounds::ATTRIBUTE_MAX;
use quilt_protocol::control::{Apply, FleetFile, InstanceReport, Report, StationView, Stations, command};
use quilt_protocol::{Address, Encoding, Limits, Outcome};

fn refusal<T: std::fmt::Debug>(answer: Result<T, AskError>) -> String {
    match answer.unwrap_err() {
        AskError::Ended { outcome: Outcome::Refused, text } => text,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_fleet_that_is_too_long_for_one_reply_is_listed_all_the_same() {
    let world = World::new().await;
    // Names sort otherwise than they come.
    let names = ["e", "b", "a", "d", "c", "f"];
    let attributes =
        |_| (0..7).map(|number| (number.to_string(), format!("\"{}\"", "x".repeat(ATTRIBUTE_MAX - 2)))).collect();
    for name in names {
        let instances = (0..100).map(|number| InstanceReport { attributes: attributes(number), ..instance(number) });
        let registration =
            quilt_protocol::control::Registration { instances: instances.collect(), ..registration(name) };
        world.register(&registration, Manner::Accepts).await.unwrap();
    }
    let stations = world.client().await.stations("").await.unwrap();
    let found: Vec<_> = stations.iter().map(|view| (view.name.as_str(), view.instances.len())).collect();
    assert_eq!(found, ["a", "b", "c", "d", "e", "f"].map(|name| (name, 100)));
    let text: usize =
        stations[0].instances.iter().flat_map(|one| one.attributes.values()).map(|json| json.to_string().len()).sum();
    assert!(6 * text > Limits::default().body, "{text}");

    // Whoever cannot take a stream hears what to do; a part of the fleet fits.
    let tool = world.tool().await;
    let plainly = async |selector: &str| {
        let request = Stations { selector: selector.into() };
        tool.ask::<_, Vec<StationView>>(Address::Manager, command::STATIONS, Encoding::Json, &request, TIME).await
    };
    let text = refusal(plainly("").await);
    assert!(text.contains("64 MiB") && text.contains("ask for a stream"), "{text}");
    assert_eq!(plainly("name=a").await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_station_that_says_too_much_of_itself_is_told_the_limit_and_the_others_are_listed() {
    let world = World::new().await;
    let honest = world.register(&registration("honest"), Manner::Accepts).await.unwrap();
    let mut boasts = registration("boasts");
    boasts.labels = [("k", "x".repeat(40 << 20))].into_iter().collect();
    let text = refusal(world.register(&boasts, Manner::Accepts).await);
    assert_eq!(text, "label `k` has a value of 41943040 bytes; at most 1024 are taken");

    // Nor does it get there in reports.
    let changed = vec![InstanceReport { detail: "x".repeat(9000), ..instance(0) }];
    let report = Report {
        applied: None,
        applying: false,
        changed,
        gone: Vec::new(),
        events: Vec::new(),
        roles: None,
        remarks: None,
    };
    let told = honest.ask::<_, ()>(Address::Manager, command::REPORT, Encoding::Bincode, &report, TIME).await;
    let text = refusal(told);
    assert!(text.contains("9000 bytes of the detail of counter/i0; at most 8192"), "{text}");
    let stations = world.client().await.stations("").await.unwrap();
    assert_eq!(
        stations.iter().map(|view| (view.name.as_str(), view.instances.len())).collect::<Vec<_>>(),
        [("honest", 0)]
    );
}

#[tokio::test]
async fn a_station_that_beats_and_never_answers_is_told_of_and_the_others_go_on() {
    let world = World::new().await;
    for name in ["a", "b"] {
        world.register(&registration(name), Manner::Accepts).await.unwrap();
    }
    let silent = world.register(&registration("c"), Manner::Silent).await.unwrap();
    let client = world.client().await;
    let roles = serde_json::json!({ "counter": { "main": {} } });
    let fleet = serde_json::json!({ "group": { "all": { "match": "name=*", "roles": roles } } });
    let fleet: FleetFile = serde_json::from_value(fleet).unwrap();
    let apply = Apply { source: "f".into(), fleet, dry_run: false, force: false, wait: None, batch: None };
    // Nothing happens while it is waited for, so that the time passes at once.
    tokio::time::pause();
    let reply = client.apply(&apply).reply().await.unwrap();
    tokio::time::resume();
    assert!(reply.stored, "{reply:?}");
    let text =
        "station c did not answer within 5 s whether it can take this; it is offered the configuration all the same";
    assert_eq!(reply.notes, [text]);
    let applied = async || {
        let stations = client.stations("").await.unwrap();
        stations.iter().map(|view| view.applied_revision.is_some()).collect::<Vec<_>>()
    };
    while applied().await != [true, true, false] {
        tokio::task::yield_now().await;
    }
    assert!(!silent.is_closed());
}

#[tokio::test]
async fn a_tool_that_drops_its_client_is_gone() {
    let world = World::new().await;
    let address = world.manager.protocol_addr().to_string();
    let tool = Client::connect(&address, "tool").await.unwrap();
    let copy = tool.clone();
    drop(tool);
    let names = async |client: &Client| {
        let clients = client.clients().await.unwrap();
        clients.iter().map(|view| view.name.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(names(&copy).await, ["tool"], "a clone is left");
    drop(copy);
    let other = Client::connect(&address, "other").await.unwrap();
    while names(&other).await != ["other"] {
        tokio::task::yield_now().await;
    }
}
