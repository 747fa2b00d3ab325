//! What every store must do, told once and run against each.

use std::collections::BTreeMap;
use std::fs;

use quilt_protocol::control::{FleetEvent, Wait};
use quilt_protocol::{Digest, Revision, StationId};

use super::*;

pub(super) fn record(name: &str) -> StationRecord {
    StationRecord {
        id: StationId::random(),
        name: name.parse().unwrap(),
        adopted: true,
        labels: [("room", "a")].into_iter().collect(),
        facts: Facts { hostname: name.into(), ..Facts::default() },
        roles: vec!["process".parse().unwrap()],
        last_seen_ms: 1,
        said_goodbye: false,
    }
}

pub(super) fn desired(revision: u64) -> Desired {
    let document = format!("{{\"roles\":{{}},\"n\":{revision}}}");
    Desired {
        revision: Revision(revision),
        digest: Digest::of(document.as_bytes()),
        document: document.into(),
        origin: Origin::Fleet,
        who: "tool:test".into(),
        source: "fleet.toml".into(),
        at_ms: revision,
        good: false,
        held: false,
    }
}

pub(super) fn event(number: u64) -> FleetEvent {
    FleetEvent {
        number,
        at: "2026-01-01T00:00:00.000Z".into(),
        kind: "test".into(),
        station: None,
        instance: None,
        text: "x".into(),
    }
}

/// `open` gives the store as a manager finds it on each start.
async fn suite<S: Store>(open: impl Fn() -> S) {
    let store = open();
    let first = store.load().await.unwrap();
    assert_eq!((first.stations.len(), first.last_revision, first.last_event), (0, Revision(0), 0));

    let (one, two) = (record("one"), record("two"));
    let group = EntryKey::Group("capture".parse().unwrap());
    let entry = Entry { source: "fleet.toml".into(), json: "{}".into() };
    store
        .commit(vec![
            Change::PutStation(Box::new(one.clone())),
            Change::PutStation(Box::new(two.clone())),
            Change::PutDesired(one.id, Box::new(desired(1))),
            Change::PutDesired(one.id, Box::new(desired(2))),
            Change::PutEntry(group.clone(), entry.clone()),
            Change::PutEntry(EntryKey::Station("one".into()), entry.clone()),
            Change::RemoveEntry(EntryKey::Station("one".into())),
            Change::MarkGood(one.id, Revision(1), true),
            Change::MarkGood(one.id, Revision(1), false),
            Change::MarkGood(one.id, Revision(2), true),
        ])
        .await
        .unwrap();
    let second = store.load().await.unwrap();
    assert_eq!(second.fleet, first.fleet, "a fleet keeps its identity");
    assert!(second.epoch > first.epoch, "each start raises the epoch");
    assert_eq!(second.stations, [one.clone(), two.clone()]);
    assert_eq!(second.desired, BTreeMap::from([(one.id, Desired { good: true, ..desired(2) })]));
    assert_eq!(second.entries, BTreeMap::from([(group, entry.clone())]));
    assert_eq!(second.last_revision, Revision(2));

    for revision in 3..100 {
        store.commit(vec![Change::PutDesired(one.id, Box::new(desired(revision)))]).await.unwrap();
    }
    let history = store.history(one.id).await.unwrap().desired;
    assert_eq!(history.len(), HISTORY_MAX + 1);
    assert_eq!((history[0].clone(), history[1].revision), (desired(99), Revision(98)));

    store.commit((1..=20).map(|number| Change::AddEvent(event(number))).collect()).await.unwrap();
    let events = store.events(5, 3).await.unwrap();
    assert_eq!(events.iter().map(|event| event.number).collect::<Vec<_>>(), [6, 7, 8]);
    assert!(store.events(u64::MAX, 3).await.unwrap().is_empty());

    let trial = |id| Trial {
        id: Revision(id),
        who: "tool:test".into(),
        source: "fleet.toml".into(),
        wait: Wait { within_ms: 1, settle_ms: 2, rollback: true },
        batch: None,
        entries: vec![TrialEntry { key: EntryKey::Station("one".into()), before: None, after: Some(entry.clone()) }],
        targets: Vec::new(),
    };
    store.commit([1, 2].map(|id| Change::PutTrial(Box::new(trial(id)))).into()).await.unwrap();
    store.commit(vec![Change::EndTrial(Revision(1))]).await.unwrap();

    store.commit(vec![Change::ForgetStation(one.id), Change::RaiseEpoch(70)]).await.unwrap();
    let third = store.load().await.unwrap();
    assert_eq!((third.stations.len(), third.desired.len(), third.last_event), (1, 0, 20));
    assert_eq!(third.last_revision, Revision(99), "a number is never given twice");
    assert_eq!(third.epoch, 71);
    assert_eq!(store.history(one.id).await.unwrap(), History::default());
    assert_eq!(third.trials, [trial(2)], "what was promised is kept until it is carried out");
    assert!(third.damage.is_empty() && store.trouble().is_none());
}

#[tokio::test]
async fn memory_conforms() {
    suite(MemoryStore::default).await;
}

#[tokio::test]
async fn sqlite_conforms_and_remembers() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fleet.db");
    suite(|| SqliteStore::open(&path).unwrap()).await;
    let again = SqliteStore::open(&path).unwrap().load().await.unwrap();
    assert_eq!((again.stations.len(), again.last_revision), (1, Revision(99)));
}

#[tokio::test]
async fn a_commit_that_fails_changes_nothing_and_harms_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(&folder.path().join("fleet.db")).unwrap();
    let one = record("one");
    store.commit(vec![Change::PutDesired(one.id, Box::new(desired(1)))]).await.unwrap();
    // The same revision twice is refused by the table; what came with it must not stay.
    let bad = vec![Change::PutStation(Box::new(one.clone())), Change::PutDesired(one.id, Box::new(desired(1)))];
    let good = vec![Change::PutStation(Box::new(record("two")))];
    let (bad, good) = (store.commit(bad), store.commit(good));
    assert!(bad.await.is_err());
    good.await.unwrap();
    let names: Vec<_> = store.load().await.unwrap().stations.into_iter().map(|station| station.name).collect();
    assert_eq!(names, ["two"]);
}

#[tokio::test]
async fn a_damaged_file_is_named_and_never_taken_for_an_empty_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fleet.db");
    fs::write(&path, "this was a database once, before the disk got full of something else".repeat(100)).unwrap();
    let error = SqliteStore::open(&path).err().unwrap().to_string();
    assert!(error.contains("fleet.db") && error.contains("restore"), "{error}");
}
