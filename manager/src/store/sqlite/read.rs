//! Rows, verified before anybody acts upon them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use quilt_protocol::control::FleetEvent;
use quilt_protocol::{Digest, Revision, StationId};
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::mark::Mark;
use crate::store::{Damage, DamagedRow, Desired, Entry, EntryKey, History, Loaded, StationRecord, Trial};

/// What an operator does about rows that no apply writes again.
const WAY_OUT: &str = "restore a backup with `quilt-manager restore`";

/// A text column of a row that verified, as a type of ours.
fn parsed<T: std::str::FromStr>(text: &str) -> rusqlite::Result<T>
where
    T::Err: std::fmt::Display,
{
    text.parse().map_err(|error: T::Err| unreadable(&error))
}

fn from_json<T: serde::de::DeserializeOwned>(text: &str) -> rusqlite::Result<T> {
    serde_json::from_str(text).map_err(|error| unreadable(&error))
}

fn unreadable(error: &dyn std::fmt::Display) -> rusqlite::Error {
    let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT);
    rusqlite::Error::SqliteFailure(code, Some(error.to_string()))
}

/// A value of a row that does not verify, as far as it can be shown.
fn shown(row: &Row<'_>, at: usize) -> String {
    match row.get_ref(at) {
        Ok(ValueRef::Integer(number)) => number.to_string(),
        Ok(ValueRef::Text(bytes) | ValueRef::Blob(bytes)) => {
            String::from_utf8_lossy(bytes).chars().filter(|c| !c.is_control()).take(100).collect()
        }
        _ => "?".into(),
    }
}

fn place(connection: &Connection, table: &str, key: &str) -> String {
    format!("row {key} of table {table} in {}", connection.path().unwrap_or("memory"))
}

/// A number or a name that belongs to the whole store.
pub(super) fn meta<T: std::str::FromStr>(connection: &Connection, key: &str) -> rusqlite::Result<T>
where
    T::Err: std::fmt::Display,
{
    let sql = "SELECT sum IS row_sum('meta', key, value), value FROM meta WHERE key = ?1";
    let mut statement = connection.prepare_cached(sql)?;
    let value =
        statement.query_row([key], |row| if row.get(0)? { row.get::<_, String>(1).map(Some) } else { Ok(None) });
    match value.optional()? {
        Some(Some(value)) => parsed(&value),
        Some(None) => Err(unreadable(&format!("{} is damaged; {WAY_OUT}", place(connection, "meta", key)))),
        None => Err(unreadable(&format!("{} is missing; {WAY_OUT}", place(connection, "meta", key)))),
    }
}

/// How far the store has got.
pub(super) fn mark(connection: &Connection) -> rusqlite::Result<Mark> {
    Ok(Mark {
        fleet: meta(connection, "fleet")?,
        epoch: meta(connection, "epoch")?,
        writes: meta(connection, "writes")?,
        last_revision: meta(connection, "last_revision")?,
    })
}

/// Documents by digest, each read and verified once.
#[derive(Default)]
struct Documents(HashMap<Digest, Arc<str>>);

impl Documents {
    /// A document; none if there is none with this digest, or its content has another.
    fn of(&mut self, connection: &Connection, digest: Digest) -> rusqlite::Result<Option<Arc<str>>> {
        if let Some(known) = self.0.get(&digest) {
            return Ok(Some(known.clone()));
        }
        let mut statement = connection.prepare_cached("SELECT content FROM document WHERE digest = ?1")?;
        let content = statement.query_row(params![digest.0], |row| {
            let bytes = row.get_ref(0)?.as_bytes().unwrap_or_default();
            Ok((Digest::of(bytes) == digest).then(|| Arc::from(String::from_utf8_lossy(bytes))))
        });
        let content: Option<Arc<str>> = content.optional()?.flatten();
        if let Some(content) = &content {
            self.0.insert(digest, content.clone());
        }
        Ok(content)
    }
}

/// Whether a row verifies, and then its values.
macro_rules! desired_columns {
    () => {
        "d.sum IS row_sum('desired', d.station, d.revision, d.digest, d.origin, d.who, d.source, d.at_ms, d.good, d.held), \
         d.station, d.revision, d.digest, d.origin, d.who, d.source, d.at_ms, d.good, d.held"
    };
}

/// A desired configuration, or the place of its damage. `row` has `desired_columns`.
fn desired(
    connection: &Connection,
    documents: &mut Documents,
    row: &Row<'_>,
) -> rusqlite::Result<Result<Desired, String>> {
    if !row.get::<_, bool>(0)? {
        let key = format!("{}, {}", shown(row, 1), shown(row, 2));
        return Ok(Err(place(connection, "desired", &key)));
    }
    let text = |at: usize| row.get::<_, String>(at);
    let digest = Digest(row.get(3).unwrap_or_default());
    let Some(document) = documents.of(connection, digest)? else {
        return Ok(Err(place(connection, "document", &digest.to_string())));
    };
    Ok(Ok(Desired {
        revision: Revision(row.get::<_, i64>(2)? as u64),
        digest,
        document,
        origin: from_json(&text(4)?)?,
        who: text(5)?.into(),
        source: text(6)?.into(),
        at_ms: row.get::<_, i64>(7)? as u64,
        good: row.get(8)?,
        held: row.get(9)?,
    }))
}

/// Everything that a manager starts from, as it is stored.
pub(super) fn loaded(connection: &Connection) -> rusqlite::Result<Loaded> {
    let Mark { fleet, epoch, last_revision, .. } = mark(connection)?;
    let mut damage = Vec::new();
    let stations = stations(connection, &mut damage)?;
    let desired = newest(connection, &mut damage)?;
    let entries = entries(connection, &mut damage)?;
    let trials = trials(connection, &mut damage)?;
    let last_event = meta(connection, "last_event")?;
    let last_revision = Revision(last_revision);
    Ok(Loaded { fleet, epoch, last_revision, last_event, stations, desired, entries, trials, damage })
}

fn stations(connection: &Connection, damage: &mut Vec<Damage>) -> rusqlite::Result<Vec<StationRecord>> {
    let sql = "SELECT sum IS row_sum('station', id, record), id, record FROM station ORDER BY id";
    let (mut statement, mut stations) = (connection.prepare(sql)?, Vec::new());
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        if row.get(0)? {
            stations.push(from_json(&row.get::<_, String>(2)?)?);
        } else {
            let place = place(connection, "station", &shown(row, 1));
            damage.push(Damage { row: DamagedRow::Station, place });
        }
    }
    Ok(stations)
}

fn entries(connection: &Connection, damage: &mut Vec<Damage>) -> rusqlite::Result<BTreeMap<EntryKey, Entry>> {
    let sql = "SELECT sum IS row_sum('entry', key, source, json), key, source, json, key_sum IS row_sum('entry', key)
               FROM entry";
    let (mut statement, mut entries) = (connection.prepare(sql)?, BTreeMap::new());
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        if row.get(0)? {
            let entry = Entry { source: row.get(2)?, json: row.get(3)? };
            entries.insert(from_json(&row.get::<_, String>(1)?)?, entry);
        } else {
            let key = if row.get(4)? { Some(from_json(&row.get::<_, String>(1)?)?) } else { None };
            let place = format!("{}, from {}", place(connection, "entry", &shown(row, 1)), shown(row, 2));
            damage.push(Damage { row: DamagedRow::Entry(key), place });
        }
    }
    Ok(entries)
}

fn trials(connection: &Connection, damage: &mut Vec<Damage>) -> rusqlite::Result<Vec<Trial>> {
    let sql = "SELECT sum IS row_sum('trial', id, trial), id, trial FROM trial ORDER BY id";
    let (mut statement, mut trials) = (connection.prepare(sql)?, Vec::new());
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        if row.get(0)? {
            trials.push(from_json(&row.get::<_, String>(2)?)?);
        } else {
            damage.push(Damage { row: DamagedRow::Trial, place: place(connection, "trial", &shown(row, 1)) });
        }
    }
    Ok(trials)
}

/// The newest desired configuration of each station.
fn newest(connection: &Connection, damage: &mut Vec<Damage>) -> rusqlite::Result<BTreeMap<StationId, Desired>> {
    // Also where only one of both tables has a row: then the other's was damaged.
    let sql = concat!(
        "SELECT ",
        desired_columns!(),
        ", n.sum IS row_sum('newest', n.station, n.revision), n.station, n.revision
         FROM newest AS n LEFT JOIN desired AS d ON d.station = n.station AND d.revision = n.revision
         UNION ALL SELECT 0, station, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 0, station, '?' FROM
         (SELECT DISTINCT station FROM desired WHERE station NOT IN (SELECT station FROM newest))"
    );
    let (mut statement, mut documents) = (connection.prepare(sql)?, Documents::default());
    let (mut found, mut rows) = (BTreeMap::new(), statement.query([])?);
    while let Some(row) = rows.next()? {
        let station = row.get::<_, String>(11).ok().and_then(|station| station.parse().ok());
        let place = match row.get(10)? {
            true => match desired(connection, &mut documents, row)? {
                Ok(desired) => {
                    found.insert(station.ok_or_else(|| unreadable(&"a station's id"))?, desired);
                    continue;
                }
                Err(_) if matches!(row.get_ref(1)?, ValueRef::Null) => {
                    let key = format!("{}, {} (missing)", shown(row, 11), shown(row, 12));
                    place(connection, "desired", &key)
                }
                Err(place) => place,
            },
            false => place(connection, "newest", &shown(row, 11)),
        };
        // A station that cannot be told from the row has no other newest configuration, and is found the other way around.
        if let Some(station) = station {
            damage.push(Damage { row: DamagedRow::Desired(station), place });
        }
    }
    Ok(found)
}

/// A station's desired configurations.
pub(super) fn history(connection: &Connection, station: StationId) -> rusqlite::Result<History> {
    let sql =
        concat!("SELECT ", desired_columns!(), " FROM desired AS d WHERE d.station = ?1 ORDER BY d.revision DESC");
    let (mut statement, mut documents) = (connection.prepare_cached(sql)?, Documents::default());
    let (mut history, mut rows) = (History::default(), statement.query([station.to_string()])?);
    while let Some(row) = rows.next()? {
        match desired(connection, &mut documents, row)? {
            Ok(desired) => history.desired.push(desired),
            Err(place) => history.damaged.push((Revision(row.get::<_, i64>(2).unwrap_or_default() as u64), place)),
        }
    }
    Ok(history)
}

/// At most `limit` events after number `after`.
pub(super) fn events(connection: &Connection, after: u64, limit: usize) -> rusqlite::Result<Vec<FleetEvent>> {
    let sql = "SELECT sum IS row_sum('event', number, event), number, event FROM event
               WHERE number > ?1 ORDER BY number LIMIT ?2";
    let mut statement = connection.prepare_cached(sql)?;
    let after = i64::try_from(after).unwrap_or(i64::MAX);
    let rows = statement.query_map(params![after, limit as i64], |row| {
        if row.get(0)? {
            return from_json(&row.get::<_, String>(2)?);
        }
        let number = row.get::<_, i64>(1)?;
        let text = format!("{} is damaged and cannot be shown", place(connection, "event", &number.to_string()));
        let (at, kind) = (String::new(), "event.damaged".into());
        Ok(FleetEvent { number: number as u64, at, kind, station: None, instance: None, text })
    })?;
    rows.collect()
}

/// The place of every row that does not verify, wherever it is.
pub(super) fn all_damage(connection: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut damage: Vec<_> = loaded(connection)?.damage.into_iter().map(|damage| damage.place).collect();
    let sql = concat!("SELECT ", desired_columns!(), " FROM desired AS d");
    let (mut statement, mut documents) = (connection.prepare(sql)?, Documents::default());
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        damage.extend(desired(connection, &mut documents, row)?.err());
    }
    let sql = "SELECT number FROM event WHERE sum IS NOT row_sum('event', number, event)";
    let mut statement = connection.prepare(sql)?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        damage.push(place(connection, "event", &shown(row, 0)));
    }
    damage.sort_unstable();
    damage.dedup();
    Ok(damage)
}

/// How far a store of an earlier format has got, whose rows have no checksums.
pub(super) fn earlier_mark(connection: &Connection) -> rusqlite::Result<Mark> {
    let meta = |key: &str| -> rusqlite::Result<String> {
        connection.query_row("SELECT value FROM meta WHERE key = ?1", [key], |row| row.get(0))
    };
    let (fleet, epoch, last_revision) = (meta("fleet")?, meta("epoch")?, meta("last_revision")?);
    Ok(Mark { fleet: parsed(&fleet)?, epoch: parsed(&epoch)?, writes: 0, last_revision: parsed(&last_revision)? })
}
