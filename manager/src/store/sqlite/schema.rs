//! The tables, how those of earlier formats become them, and the checksum that each row carries.
//!
//! SQLite notices a page whose structure is damaged and not a bit that flips in a value. Each row therefore has a sum over
//! its table, its key and its values; a document verifies by its digest, which is also its key.

use rusqlite::functions::{Context, FunctionFlags};
use rusqlite::types::ValueRef;
use rusqlite::{Connection, Transaction};

use quilt_protocol::{Digest, FleetId};

/// The format of the tables.
pub(super) const VERSION: i64 = 3;

const TABLES: &str = "
    CREATE TABLE document (digest BLOB PRIMARY KEY, content TEXT NOT NULL) STRICT;
    CREATE TABLE desired (
        station TEXT NOT NULL, revision INTEGER NOT NULL, digest BLOB NOT NULL, origin TEXT NOT NULL, who TEXT NOT NULL,
        source TEXT NOT NULL, at_ms INTEGER NOT NULL, good INTEGER NOT NULL, held INTEGER NOT NULL, sum INTEGER NOT NULL,
        PRIMARY KEY (station, revision)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX desired_by_digest ON desired (digest);
    -- Which desired configuration of a station is the newest: a damaged key would otherwise make the one before it the newest.
    CREATE TABLE newest (station TEXT PRIMARY KEY, revision INTEGER NOT NULL, sum INTEGER NOT NULL) STRICT, WITHOUT ROWID;
    CREATE TABLE trial (id INTEGER PRIMARY KEY, trial TEXT NOT NULL, sum INTEGER NOT NULL) STRICT;
";
const NEW_TABLES: &str = "
    CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL, sum INTEGER NOT NULL) STRICT;
    CREATE TABLE station (id TEXT PRIMARY KEY, record TEXT NOT NULL, sum INTEGER NOT NULL) STRICT;
    -- The key has a sum of its own: whoever puts a damaged entry again must know which it was.
    CREATE TABLE entry (
        key TEXT PRIMARY KEY, source TEXT NOT NULL, json TEXT NOT NULL, key_sum INTEGER NOT NULL, sum INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE event (number INTEGER PRIMARY KEY, event TEXT NOT NULL, sum INTEGER NOT NULL) STRICT;
";

/// Makes the tables of a new fleet.
pub(super) fn create(transaction: &Transaction<'_>) -> rusqlite::Result<()> {
    transaction.execute_batch(NEW_TABLES)?;
    transaction.execute_batch(TABLES)?;
    let fleet = FleetId::random().to_string();
    for (key, value) in
        [("fleet", fleet.as_str()), ("epoch", "0"), ("writes", "0"), ("last_revision", "0"), ("last_event", "0")]
    {
        transaction.execute("INSERT INTO meta VALUES (?1, ?2, row_sum('meta', ?1, ?2))", [key, value])?;
    }
    transaction.pragma_update(None, "user_version", VERSION)
}

/// Makes the tables of an earlier format into these. Documents that do not have their digest are left out, and missed when
/// what refers to them is read.
pub(super) fn migrate(transaction: &Transaction<'_>, from: i64) -> rusqlite::Result<()> {
    if from == 1 {
        transaction.execute_batch("ALTER TABLE desired ADD COLUMN held INTEGER NOT NULL DEFAULT 0")?;
    }
    transaction.execute_batch("ALTER TABLE desired RENAME TO earlier")?;
    transaction.execute_batch(TABLES)?;
    transaction.execute_batch(
        "
        INSERT OR IGNORE INTO document SELECT unhex(digest), document FROM earlier
            WHERE document_digest(document) = unhex(digest);
        INSERT INTO desired
            SELECT station, revision, COALESCE(unhex(digest), x''), origin, who, source, at_ms, good, held,
                row_sum('desired', station, revision, COALESCE(unhex(digest), x''), origin, who, source, at_ms, good,
                    held)
            FROM earlier;
        INSERT INTO newest
            SELECT station, MAX(revision), row_sum('newest', station, MAX(revision)) FROM earlier GROUP BY station;
        DROP TABLE earlier;
        ALTER TABLE meta ADD COLUMN sum INTEGER NOT NULL DEFAULT 0;
        INSERT INTO meta (key, value) VALUES ('writes', '0');
        UPDATE meta SET sum = row_sum('meta', key, value);
        ALTER TABLE station ADD COLUMN sum INTEGER NOT NULL DEFAULT 0;
        UPDATE station SET sum = row_sum('station', id, record);
        ALTER TABLE entry ADD COLUMN key_sum INTEGER NOT NULL DEFAULT 0;
        ALTER TABLE entry ADD COLUMN sum INTEGER NOT NULL DEFAULT 0;
        UPDATE entry SET key_sum = row_sum('entry', key), sum = row_sum('entry', key, source, json);
        ALTER TABLE event ADD COLUMN sum INTEGER NOT NULL DEFAULT 0;
        UPDATE event SET sum = row_sum('event', number, event);
        ",
    )?;
    transaction.pragma_update(None, "user_version", VERSION)
}

/// Lets statements of a connection say `row_sum(TABLE, VALUE, ..)`, the checksum of a row, and `document_digest(TEXT)`.
pub(super) fn add_functions(connection: &Connection) -> rusqlite::Result<()> {
    let flags = FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_DETERMINISTIC | FunctionFlags::SQLITE_DIRECTONLY;
    connection.create_scalar_function("row_sum", -1, flags, |context| Ok(row_sum(context)))?;
    connection.create_scalar_function("document_digest", 1, flags, |context| {
        let document = context.get_raw(0).as_bytes()?;
        Ok(Digest::of(document).0.to_vec())
    })
}

/// The first eight bytes of the SHA-256 of all values, each with its type and length.
fn row_sum(context: &Context<'_>) -> i64 {
    let mut bytes = Vec::with_capacity(512);
    for at in 0..context.len() {
        let number;
        let (kind, value): (u8, &[u8]) = match context.get_raw(at) {
            ValueRef::Null => (0, &[]),
            ValueRef::Integer(value) => {
                number = value.to_le_bytes();
                (1, &number)
            }
            ValueRef::Real(value) => {
                number = value.to_le_bytes();
                (2, &number)
            }
            ValueRef::Text(value) => (3, value),
            ValueRef::Blob(value) => (4, value),
        };
        bytes.push(kind);
        bytes.extend_from_slice(&(value.len() as u64).to_le_bytes());
        bytes.extend_from_slice(value);
    }
    let [a, b, c, d, e, f, g, h, ..] = Digest::of(&bytes).0;
    i64::from_le_bytes([a, b, c, d, e, f, g, h])
}
