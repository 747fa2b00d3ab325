//! What only a store on disk must do: notice damage, older copies and files that are gone.

use std::fs;
use std::path::{Path, PathBuf};

use quilt_protocol::control::Facts;
use quilt_protocol::{Revision, StationId};
use rusqlite::Connection;
use tempfile::TempDir;

use super::super::conformance::{desired, event, record};
use super::super::{DamagedRow, Desired, Entry, EntryKey, StationRecord};
use super::*;

fn place() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fleet.db");
    (folder, path)
}

fn refusal(path: &Path) -> String {
    SqliteStore::open(path).err().expect("it is refused").to_string()
}

fn entry(json: &str) -> Entry {
    Entry { source: "fleet.toml".into(), json: json.into() }
}

fn group(name: &str) -> EntryKey {
    EntryKey::Group(name.parse().unwrap())
}

fn put(id: StationId, revision: u64) -> Change {
    Change::PutDesired(id, Box::new(desired(revision)))
}

/// Two stations with two desired configurations each, two entries, two events. The store is closed again.
async fn filled(path: &Path) -> [StationRecord; 2] {
    let store = SqliteStore::open(path).unwrap();
    store.load().await.unwrap();
    let records = ["one", "two"].map(record);
    let mut changes: Vec<_> = records.iter().map(|record| Change::PutStation(Box::new(record.clone()))).collect();
    let [one, two] = records.each_ref().map(|record| record.id);
    changes.extend([put(one, 1), put(two, 2), put(one, 3), put(two, 4)]);
    changes.extend(["a", "b"].map(|name| Change::PutEntry(group(name), entry("{}"))));
    changes.extend([1, 2].map(|number| Change::AddEvent(event(number))));
    store.commit(changes).await.unwrap();
    store.close().await.unwrap();
    records
}

#[tokio::test]
async fn a_row_that_does_not_verify_is_left_out_and_named_and_no_other_is_concerned() {
    let (whole, path) = place();
    let [one, two] = filled(&path).await;
    let id = one.id;
    let of_one = DamagedRow::Desired(one.id);
    let cases = [
        (format!("UPDATE desired SET source = 'x' WHERE station = '{id}' AND revision = 3"), of_one.clone(), "desired"),
        (format!("UPDATE desired SET held = 1 WHERE station = '{id}' AND revision = 3"), of_one.clone(), "desired"),
        (format!("UPDATE desired SET revision = 2 WHERE station = '{id}' AND revision = 3"), of_one.clone(), "missing"),
        (format!("UPDATE newest SET revision = 1 WHERE station = '{id}'"), of_one.clone(), "newest"),
        (format!("UPDATE newest SET station = 'x' WHERE station = '{id}'"), of_one.clone(), "newest"),
        (format!("UPDATE document SET content = '{{}}' WHERE digest = x'{}'", desired(3).digest), of_one, "document"),
        ("UPDATE entry SET json = '{ }' WHERE key LIKE '%a%'".into(), DamagedRow::Entry(Some(group("a"))), "entry"),
        (
            "UPDATE entry SET key = '{\"group\":\"c\"}' WHERE key LIKE '%\"a\"%'".into(),
            DamagedRow::Entry(None),
            "entry",
        ),
        (
            format!("UPDATE station SET record = replace(record, 'true', 'false') WHERE id = '{id}'"),
            DamagedRow::Station,
            "station",
        ),
    ];
    for (sql, row, table) in cases {
        let (_folder, path) = place();
        for file in ["fleet.db", "fleet.mark.0", "fleet.mark.1"] {
            fs::copy(whole.path().join(file), path.with_file_name(file)).unwrap();
        }
        assert!(Connection::open(&path).unwrap().execute(&sql, []).unwrap() > 0, "{sql}");
        let store = SqliteStore::open(&path).unwrap();
        let loaded = store.load().await.unwrap();
        assert!(loaded.damage.iter().all(|damage| damage.row == row), "{sql}: {:?}", loaded.damage);
        let place = &loaded.damage[0].place;
        assert!(place.contains(table) && place.contains(path.to_str().unwrap()), "{sql}: {place}");
        assert_eq!(loaded.desired[&two.id], desired(4), "{sql}");
        assert!(loaded.stations.contains(&two) && loaded.entries.contains_key(&group("b")), "{sql}");
        match row {
            DamagedRow::Station => assert!(!loaded.stations.contains(&one)),
            DamagedRow::Desired(_) => assert!(!loaded.desired.contains_key(&one.id), "{sql}"),
            DamagedRow::Trial => unreachable!("there is none"),
            DamagedRow::Entry(_) => assert_eq!(loaded.entries.len(), 1),
        }
        // A note about a damaged row does not make it whole again; what is put again does.
        store.commit(vec![Change::MarkGood(one.id, Revision(3), true)]).await.unwrap();
        assert!(!store.load().await.unwrap().damage.is_empty(), "{sql}");
        let again =
            vec![put(one.id, 5), Change::PutStation(Box::new(one.clone())), Change::PutEntry(group("a"), entry("{}"))];
        store.commit(again).await.unwrap();
        if row != DamagedRow::Entry(None) && !sql.contains("'x' WHERE station") {
            assert_eq!(store.load().await.unwrap().damage, [], "{sql}");
        }
        store.close().await.unwrap();
    }
}

#[tokio::test]
async fn damage_in_history_and_events_is_shown_where_it_is_and_hides_nothing_else() {
    let (_folder, path) = place();
    let [one, _] = filled(&path).await;
    let raw = Connection::open(&path).unwrap();
    raw.execute("UPDATE desired SET good = 1 WHERE revision = 1", []).unwrap();
    raw.execute("UPDATE event SET event = replace(event, 'x', 'y') WHERE number = 1", []).unwrap();
    raw.close().unwrap();
    let store = SqliteStore::open(&path).unwrap();
    let history = store.history(one.id).await.unwrap();
    assert_eq!((history.desired, history.damaged[0].0), (vec![desired(3)], Revision(1)));
    assert!(history.damaged[0].1.contains("table desired"), "{:?}", history.damaged);
    let events = store.events(0, 10).await.unwrap();
    assert_eq!((events[0].number, events[0].kind.as_str(), &events[1]), (1, "event.damaged", &event(2)));
}

#[tokio::test]
async fn a_number_of_the_whole_store_that_does_not_verify_keeps_it_from_being_used() {
    let (_folder, path) = place();
    filled(&path).await;
    Connection::open(&path).unwrap().execute("UPDATE meta SET value = '9' WHERE key = 'last_revision'", []).unwrap();
    let text = refusal(&path);
    assert!(text.contains("row last_revision of table meta") && text.contains("restore a backup"), "{text}");
}

#[tokio::test]
async fn one_flipped_bit_in_a_document_keeps_it_from_being_pushed() {
    let (_folder, path) = place();
    let [one, two] = filled(&path).await;
    let document = desired(3).document;
    let mut bytes = fs::read(&path).unwrap();
    let at = bytes.windows(document.len()).position(|window| window == document.as_bytes()).unwrap();
    bytes[at + 3] ^= 1;
    fs::write(&path, bytes).unwrap();
    let loaded = SqliteStore::open(&path).unwrap().load().await.unwrap();
    assert_eq!(loaded.damage[0].row, DamagedRow::Desired(one.id));
    assert_eq!(loaded.desired.keys().collect::<Vec<_>>(), [&two.id]);
}

#[tokio::test]
async fn a_document_is_stored_once_however_many_stations_and_revisions_have_it() {
    let (_folder, path) = place();
    let store = SqliteStore::open(&path).unwrap();
    let same = |revision| Desired { revision: Revision(revision), ..desired(1) };
    let stations: Vec<_> = (0..10).map(|_| StationId::random()).collect();
    for revision in 1..=60 {
        let changes = stations.iter().map(|id| Change::PutDesired(*id, Box::new(same(revision))));
        store.commit(changes.collect()).await.unwrap();
    }
    let documents = || {
        let raw = Connection::open(&path).unwrap();
        raw.query_row("SELECT COUNT(*) FROM document", [], |row| row.get::<_, i64>(0)).unwrap()
    };
    assert_eq!(documents(), 1);
    let loaded = store.load().await.unwrap();
    let shared = &loaded.desired[&stations[0]].document;
    assert!(loaded.desired.values().all(|desired| Arc::ptr_eq(&desired.document, shared)));
    let history = store.history(stations[0]).await.unwrap().desired;
    assert!(history.iter().all(|desired| Arc::ptr_eq(&desired.document, &history[0].document)));
    // It goes with the last that has it.
    store.commit(stations.iter().skip(1).map(|id| Change::ForgetStation(*id)).collect()).await.unwrap();
    assert_eq!(documents(), 1);
    for revision in 61..=111 {
        store.commit(vec![put(stations[0], revision)]).await.unwrap();
    }
    assert_eq!(documents(), 51);
}

/// A store of an earlier format, as managers of that time made it.
fn earlier(path: &Path, version: i64, id: StationId) {
    let held = if version == 2 { ", held INTEGER NOT NULL" } else { "" };
    let zero = if version == 2 { ", 0" } else { "" };
    let raw = Connection::open(path).unwrap();
    raw.pragma_update(None, "journal_mode", "WAL").unwrap();
    raw.pragma_update(None, "user_version", version).unwrap();
    let record = serde_json::to_string(&StationRecord { id, facts: Facts::default(), ..record("one") }).unwrap();
    let (old, new) = (desired(6), desired(7));
    raw.execute_batch(&format!(
        "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
         CREATE TABLE station (id TEXT PRIMARY KEY, record TEXT NOT NULL) STRICT;
         CREATE TABLE desired (
             station TEXT NOT NULL, revision INTEGER NOT NULL, digest TEXT NOT NULL, document TEXT NOT NULL,
             origin TEXT NOT NULL, who TEXT NOT NULL, source TEXT NOT NULL, at_ms INTEGER NOT NULL, good INTEGER NOT NULL
             {held}, PRIMARY KEY (station, revision)
         ) STRICT, WITHOUT ROWID;
         CREATE TABLE entry (key TEXT PRIMARY KEY, source TEXT NOT NULL, json TEXT NOT NULL) STRICT;
         CREATE TABLE event (number INTEGER PRIMARY KEY, event TEXT NOT NULL) STRICT;
         INSERT INTO meta VALUES ('fleet', '018f0000-0000-7000-8000-000000000001'), ('epoch', '5'), ('last_revision', '7'),
             ('last_event', '1');
         INSERT INTO station VALUES ('{id}', '{record}');
         INSERT INTO desired VALUES
             ('{id}', 6, '{}', '{}', '\"fleet\"', 'tool:test', 'fleet.toml', 6, 0{zero}),
             ('{id}', 7, '{}', '{}', '\"fleet\"', 'tool:test', 'fleet.toml', 7, 0{zero});
         INSERT INTO entry VALUES ('{{\"group\":\"a\"}}', 'fleet.toml', '{{}}');
         INSERT INTO event VALUES (1, '{}');",
        old.digest,
        old.document,
        new.digest,
        new.document,
        serde_json::to_string(&event(1)).unwrap()
    ))
    .unwrap();
}

#[tokio::test]
async fn a_store_of_an_earlier_format_opens_with_all_it_has() {
    for version in [1, 2] {
        let (_folder, path) = place();
        let id = StationId::random();
        earlier(&path, version, id);
        let store = SqliteStore::open(&path).unwrap();
        let loaded = store.load().await.unwrap();
        assert_eq!((loaded.epoch, loaded.last_revision, loaded.last_event), (6, Revision(7), 1));
        assert_eq!((loaded.stations.len(), loaded.damage), (1, vec![]));
        assert_eq!(loaded.desired[&id], desired(7));
        assert_eq!(loaded.entries[&group("a")], entry("{}"));
        assert_eq!(store.history(id).await.unwrap().desired, [desired(7), desired(6)]);
        assert_eq!(store.events(0, 9).await.unwrap(), [event(1)]);
        store.commit(vec![put(id, 8)]).await.unwrap();
        store.close().await.unwrap();
        drop(store);
        assert_eq!(SqliteStore::open(&path).unwrap().load().await.unwrap().desired[&id], desired(8));
    }
}

#[tokio::test]
async fn a_document_of_an_earlier_format_that_has_not_its_digest_is_damage() {
    let (_folder, path) = place();
    let id = StationId::random();
    earlier(&path, 2, id);
    Connection::open(&path).unwrap().execute("UPDATE desired SET document = '{}' WHERE revision = 7", []).unwrap();
    let loaded = SqliteStore::open(&path).unwrap().load().await.unwrap();
    assert_eq!((loaded.damage.len(), loaded.desired.len()), (1, 0));
}

#[tokio::test]
async fn a_write_ahead_log_that_is_cut_damaged_or_missing_is_noticed() {
    let (folder, path) = place();
    let store = SqliteStore::open(&path).unwrap();
    store.load().await.unwrap();
    for revision in 1..4 {
        store.commit(vec![put(StationId::random(), revision)]).await.unwrap();
    }
    // Also what has no revision.
    store.commit(vec![Change::PutEntry(group("a"), entry("{}"))]).await.unwrap();
    let log = fs::read(folder.path().join("fleet.db-wal")).unwrap();
    let copies = tempfile::tempdir().unwrap();
    let copy = |name: &str, log: Option<&[u8]>| {
        let copy = copies.path().join(name);
        fs::create_dir(&copy).unwrap();
        for file in ["fleet.db", "fleet.mark.0", "fleet.mark.1"] {
            fs::copy(folder.path().join(file), copy.join(file)).unwrap();
        }
        if let Some(log) = log {
            fs::write(copy.join("fleet.db-wal"), log).unwrap();
        }
        copy.join("fleet.db")
    };
    assert_eq!(SqliteStore::open(&copy("whole", Some(&log))).unwrap().load().await.unwrap().last_revision, Revision(3));
    let mut flipped = log.clone();
    flipped[log.len() / 2] ^= 1;
    // The last transaction changes a page of 4 KiB at least.
    let cut = &log[..log.len() - 4096];
    for (name, log) in [("cut", Some(cut)), ("flipped", Some(&flipped)), ("missing", None), ("empty", Some(&[][..]))] {
        let path = copy(name, log);
        for _ in 0..2 {
            let text = refusal(&path);
            assert!(text.contains("older than what was acknowledged") && text.contains("revision 3"), "{name}: {text}");
            assert!(text.contains("fleet.db-wal") && text.contains("quilt-manager restore"), "{name}: {text}");
        }
        // What is left stays as it is for whoever repairs it: the log that was missing is there again.
        if let Some(log) = log {
            assert_eq!(fs::read(path.with_file_name("fleet.db-wal")).unwrap(), log, "{name}");
        }
        fs::write(path.with_file_name("fleet.db-wal"), log.map_or_else(Vec::new, <[u8]>::to_vec)).unwrap();
    }
}

#[tokio::test]
async fn a_database_that_is_copied_alone_is_no_new_fleet() {
    let (folder, path) = place();
    let store = SqliteStore::open(&path).unwrap();
    let fleet = store.load().await.unwrap().fleet;
    store.commit(vec![put(StationId::random(), 1)]).await.unwrap();
    let copies = tempfile::tempdir().unwrap();
    let copy = copies.path().join("fleet.db");
    fs::copy(folder.path().join("fleet.db"), &copy).unwrap();
    let text = refusal(&copy);
    assert!(text.contains("fleet.mark.0 is missing") && text.contains("quilt-manager restore"), "{text}");
    // Whoever goes on with it does so with the same fleet.
    restore(&copy, &copy).unwrap();
    assert_eq!(SqliteStore::open(&copy).unwrap().load().await.unwrap().fleet, fleet);
    // The log alone is nothing either.
    let (log, path) = place();
    fs::copy(folder.path().join("fleet.db-wal"), log.path().join("fleet.db-wal")).unwrap();
    assert!(refusal(&path).contains("fleet.db-wal is there"));
}

#[tokio::test]
async fn where_a_store_was_none_begins_anew() {
    let (_folder, path) = place();
    filled(&path).await;
    fs::remove_file(&path).unwrap();
    let text = refusal(&path);
    assert!(text.contains("it is gone") && text.contains("up to revision 4"), "{text}");
    for content in ["", "this was a database once, before the disk got full of something else"] {
        fs::write(&path, content.repeat(100)).unwrap();
        assert!(refusal(&path).contains("restore"));
    }
    // One without tables, as a copy of a database whose log was not copied.
    fs::remove_file(&path).unwrap();
    let raw = Connection::open(&path).unwrap();
    raw.execute_batch("CREATE TABLE x (y); DROP TABLE x").unwrap();
    raw.close().unwrap();
    assert!(refusal(&path).contains("it holds no fleet"));
}

#[tokio::test]
async fn a_first_start_that_was_cut_short_is_no_obstacle() {
    let (folder, path) = place();
    drop(SqliteStore::open(&path).unwrap());
    for number in 0..2 {
        fs::remove_file(folder.path().join(format!("fleet.mark.{number}"))).unwrap();
    }
    SqliteStore::open(&path).unwrap().load().await.unwrap();
}

#[tokio::test]
async fn a_commit_whose_file_is_gone_is_refused_until_it_is_back() {
    let (folder, path) = place();
    let store = SqliteStore::open(&path).unwrap();
    store.load().await.unwrap();
    let id = StationId::random();
    store.commit(vec![put(id, 1)]).await.unwrap();
    let aside = folder.path().join("aside");
    for file in ["fleet.db", "fleet.db-wal"] {
        fs::rename(folder.path().join(file), &aside).unwrap();
        let error = store.commit(vec![put(id, 2)]).await.unwrap_err().to_string();
        assert!(error.contains(file) && error.contains("was removed"), "{error}");
        assert!(store.trouble().unwrap().contains("was removed"));
        fs::write(folder.path().join(file), "another").unwrap();
        assert!(store.commit(vec![put(id, 2)]).await.unwrap_err().to_string().contains("was replaced"));
        fs::rename(&aside, folder.path().join(file)).unwrap();
        // Found out without a commit, also while others read.
        while store.trouble().is_some() {
            drop(store.history(id).await);
        }
    }
    store.commit(vec![put(id, 2)]).await.unwrap();
    assert_eq!(store.history(id).await.unwrap().desired.len(), 2);
}

#[tokio::test]
async fn a_backup_of_a_store_in_use_restores_with_numbers_that_go_on() {
    let (folder, path) = place();
    let store = SqliteStore::open(&path).unwrap();
    let first = store.load().await.unwrap();
    let one = record("one");
    store.commit(vec![Change::PutStation(Box::new(one.clone())), put(one.id, 1)]).await.unwrap();
    let backup = folder.path().join("backup.db");
    let summary = back_up(&path, &backup).unwrap();
    assert!(summary.content.contains("1 station, up to revision 1"), "{summary}");
    assert!(back_up(&path, &backup).unwrap_err().to_string().contains("exists"));
    assert_eq!(
        fs::read_dir(folder.path()).unwrap().flatten().filter(|file| file.file_name() == "backup.db.part").count(),
        0
    );
    store.commit(vec![put(one.id, 2)]).await.unwrap();
    store.close().await.unwrap();
    drop(store);

    let restored = restore(&path, &backup).unwrap();
    let lacks_log = |note: &String| note.contains("is no backup but the database of a manager");
    assert!(!restored.notes.iter().any(lacks_log), "{restored:?}");
    assert!(restored.notes.iter().any(|note| note.contains("revisions 2 to 2 are not in it")), "{restored:?}");
    let store = SqliteStore::open(&path).unwrap();
    let loaded = store.load().await.unwrap();
    assert_eq!((loaded.fleet, &loaded.desired[&one.id]), (first.fleet, &desired(1)));
    assert_eq!(loaded.last_revision, Revision(2), "a number is never given twice");
    assert!(loaded.epoch > first.epoch + 1);
    drop(store);

    // To a folder that never had one; and what was there before is there still.
    let (_other, other) = place();
    let alone = restore(&other, &path.with_file_name("fleet.db.replaced")).unwrap();
    assert!(alone.notes.iter().any(lacks_log), "{alone:?}");
    assert_eq!(SqliteStore::open(&other).unwrap().load().await.unwrap().desired[&one.id], desired(2));
}

#[tokio::test]
async fn what_is_no_whole_store_is_not_restored_and_changes_nothing() {
    let (folder, path) = place();
    filled(&path).await;
    let before = fs::read(&path).unwrap();
    let source = folder.path().join("source");
    let mut cut = before.clone();
    cut.truncate(before.len() / 2);
    for content in [&b""[..], b"no database", &cut] {
        fs::write(&source, content).unwrap();
        restore(&path, &source).unwrap_err();
        assert!(!path.with_file_name("fleet.db.new").exists());
    }
    restore(&path, &folder.path().join("nothing")).unwrap_err();
    assert_eq!(fs::read(&path).unwrap(), before);
    assert!(SqliteStore::open(&path).unwrap().load().await.is_ok());
}
