//! Changes, as statements within one transaction.

use std::collections::BTreeSet;

use quilt_protocol::Digest;
use rusqlite::{Transaction, params};

use super::mark::Mark;
use super::read;
use crate::store::{Change, EVENTS_MAX, HISTORY_MAX};

/// What the changes of one transaction add up to: noted once, not for each.
#[derive(Default)]
pub(super) struct Totals {
    revision: Option<u64>,
    event: Option<u64>,
    /// Whether somebody acts upon the acknowledgement of a change, so that losing it must be noticed.
    is_marked: bool,
    /// Documents that were put, each written once.
    put: BTreeSet<Digest>,
    /// Documents that a deleted row referred to: those that no other refers to are deleted too.
    released: BTreeSet<[u8; 32]>,
}

impl Totals {
    /// Writes them down. Gives the mark for after the commit, if this transaction needs one.
    pub(super) fn note(self, transaction: &Transaction<'_>) -> rusqlite::Result<Option<Mark>> {
        for digest in self.released {
            let sql = "DELETE FROM document WHERE digest = ?1 AND NOT EXISTS (SELECT 1 FROM desired WHERE digest = ?1)";
            transaction.prepare_cached(sql)?.execute(params![digest])?;
        }
        if let Some(revision) = self.revision {
            raise(transaction, "last_revision", revision)?;
        }
        if let Some(event) = self.event {
            let gone = event.saturating_sub(EVENTS_MAX);
            transaction.prepare_cached("DELETE FROM event WHERE number <= ?1")?.execute(params![gone as i64])?;
            raise(transaction, "last_event", event)?;
        }
        if !self.is_marked {
            return Ok(None);
        }
        let mark = read::mark(transaction)?;
        raise(transaction, "writes", mark.writes + 1)?;
        Ok(Some(Mark { writes: mark.writes + 1, ..mark }))
    }

    /// Raises the epoch to at least this.
    pub(super) fn raise_epoch(&mut self, transaction: &Transaction<'_>, epoch: u64) -> rusqlite::Result<()> {
        self.is_marked = true;
        raise(transaction, "epoch", epoch)
    }
}

/// Changes a row that nobody reads, to see whether the disk takes it.
pub(super) fn probe(transaction: &Transaction<'_>) -> rusqlite::Result<()> {
    let sql = "INSERT INTO meta VALUES ('probe', '0', 0) ON CONFLICT (key) DO UPDATE SET sum = sum + 1";
    transaction.prepare_cached(sql)?.execute([]).map(drop)
}

fn text<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("store types have text keys")
}

/// Makes one change.
pub(super) fn make(transaction: &Transaction<'_>, change: &Change, totals: &mut Totals) -> rusqlite::Result<()> {
    let run = |sql: &str, values: &[&dyn rusqlite::ToSql]| transaction.prepare_cached(sql)?.execute(values).map(drop);
    match change {
        Change::PutStation(record) => {
            let sql = "INSERT OR REPLACE INTO station VALUES (?1, ?2, row_sum('station', ?1, ?2))";
            run(sql, &[&record.id.to_string(), &text(record)])?;
        }
        Change::ForgetStation(id) => {
            let id = id.to_string();
            run("DELETE FROM station WHERE id = ?1", &[&id])?;
            run("DELETE FROM newest WHERE station = ?1", &[&id])?;
            delete_desired(
                transaction,
                "DELETE FROM desired WHERE station = ?1 RETURNING digest",
                params![id],
                totals,
            )?;
            totals.is_marked = true;
        }
        Change::PutDesired(id, desired) => {
            let id = id.to_string();
            if totals.put.insert(desired.digest) {
                run(
                    "INSERT INTO document VALUES (?1, ?2)
                     ON CONFLICT (digest) DO UPDATE SET content = excluded.content WHERE content <> excluded.content",
                    params![desired.digest.0, desired.document],
                )?;
            }
            run(
                "INSERT INTO desired VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9,
                 row_sum('desired', ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9))",
                params![
                    id,
                    desired.revision.0 as i64,
                    desired.digest.0,
                    text(&desired.origin),
                    desired.who.as_str(),
                    desired.source.as_str(),
                    desired.at_ms as i64,
                    desired.good,
                    desired.held
                ],
            )?;
            run(
                "INSERT OR REPLACE INTO newest VALUES (?1, ?2, row_sum('newest', ?1, ?2))",
                params![id, desired.revision.0 as i64],
            )?;
            let too_old = "DELETE FROM desired WHERE station = ?1 AND revision <
                 (SELECT revision FROM desired WHERE station = ?1 ORDER BY revision DESC LIMIT 1 OFFSET ?2)
                 RETURNING digest";
            delete_desired(transaction, too_old, params![id, HISTORY_MAX as i64], totals)?;
            totals.revision = totals.revision.max(Some(desired.revision.0));
            totals.is_marked = true;
        }
        // A row that does not verify stays as it is: a new sum would make the damage look as if it had been written.
        Change::MarkGood(id, revision, good) => run(
            "UPDATE desired SET good = ?3,
                 sum = row_sum('desired', station, revision, digest, origin, who, source, at_ms, ?3, held)
             WHERE station = ?1 AND revision = ?2
                 AND sum = row_sum('desired', station, revision, digest, origin, who, source, at_ms, good, held)",
            params![id.to_string(), revision.0 as i64, good],
        )?,
        Change::Release(id, revision) => run(
            "UPDATE desired SET held = 0,
                 sum = row_sum('desired', station, revision, digest, origin, who, source, at_ms, good, 0)
             WHERE station = ?1 AND revision = ?2
                 AND sum = row_sum('desired', station, revision, digest, origin, who, source, at_ms, good, held)",
            params![id.to_string(), revision.0 as i64],
        )?,
        Change::PutEntry(key, entry) => {
            let sql = "INSERT OR REPLACE INTO entry VALUES
                 (?1, ?2, ?3, row_sum('entry', ?1), row_sum('entry', ?1, ?2, ?3))";
            run(sql, params![text(key), entry.source, entry.json])?;
            totals.is_marked = true;
        }
        Change::RemoveEntry(key) => {
            run("DELETE FROM entry WHERE key = ?1", &[&text(key)])?;
            totals.is_marked = true;
        }
        Change::PutTrial(trial) => {
            let sql = "INSERT INTO trial VALUES (?1, ?2, row_sum('trial', ?1, ?2))";
            run(sql, params![trial.id.0 as i64, text(trial)])?;
        }
        Change::EndTrial(id) => run("DELETE FROM trial WHERE id = ?1", params![id.0 as i64])?,
        Change::RaiseEpoch(epoch) => totals.raise_epoch(transaction, *epoch)?,
        Change::AddEvent(event) => {
            let sql = "INSERT INTO event VALUES (?1, ?2, row_sum('event', ?1, ?2))";
            run(sql, params![event.number as i64, text(event)])?;
            totals.event = totals.event.max(Some(event.number));
        }
    }
    Ok(())
}

fn delete_desired(
    transaction: &Transaction<'_>,
    sql: &str,
    values: &[&dyn rusqlite::ToSql],
    totals: &mut Totals,
) -> rusqlite::Result<()> {
    let mut statement = transaction.prepare_cached(sql)?;
    let mut deleted = statement.query(values)?;
    while let Some(row) = deleted.next()? {
        // A digest that is damaged refers to no document.
        if let Ok(digest) = row.get(0) {
            totals.released.insert(digest);
        }
    }
    Ok(())
}

/// Raises a number to at least this.
pub(super) fn raise(transaction: &Transaction<'_>, key: &str, to: u64) -> rusqlite::Result<()> {
    let sql =
        "UPDATE meta SET value = ?2, sum = row_sum('meta', key, ?2) WHERE key = ?1 AND CAST(value AS INTEGER) < ?3";
    transaction.prepare_cached(sql)?.execute(params![key, to.to_string(), to as i64]).map(drop)
}
