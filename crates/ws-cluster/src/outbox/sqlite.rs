//! The outbox in an SQLite file: the tables and the statements.

use std::{path::Path, time::Duration};

use async_trait::async_trait;
use rusqlite::{Connection, Row, TransactionBehavior, params};

use super::{Outbox, OutboxError, OutboxRow, OutboxRows, ReadLimits, RowId, RowTexts};
use crate::sqlite::{File, FileError, Missing, natural, now};

/// Times are milliseconds since 1970. The tables are not STRICT, because older programs of the site could not open the file
/// then. AUTOINCREMENT never uses a number again.
const SCHEMA: &str = "\
CREATE TABLE IF NOT EXISTS ws_outbox (
  id         INTEGER PRIMARY KEY AUTOINCREMENT,
  action     TEXT NOT NULL,
  details    TEXT,
  target     TEXT NOT NULL,
  cluster    TEXT,
  created    INTEGER NOT NULL DEFAULT (CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER))
);
CREATE TABLE IF NOT EXISTS ws_outbox_failed (
  id         INTEGER PRIMARY KEY AUTOINCREMENT,
  action     TEXT NOT NULL,
  details    TEXT,
  target     TEXT NOT NULL,
  cluster    TEXT,
  created    INTEGER NOT NULL,
  outbox_id  INTEGER NOT NULL,
  reason     TEXT NOT NULL,
  failed     INTEGER NOT NULL DEFAULT (CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER))
);
";

/// A table that was made by hand may have NULL in any column. In a database in UTF-16, the sizes are those of UTF-16.
const READ: &str = "\
SELECT id, coalesce(CAST(created AS INTEGER), 0), coalesce(length(CAST(action AS BLOB)), 0)
  + coalesce(length(CAST(target AS BLOB)), 0) + coalesce(length(CAST(details AS BLOB)), 0)
FROM ws_outbox WHERE cluster IS NULL OR cluster = ? ORDER BY id LIMIT ?";
/// SQLite returns text as UTF-8, whatever the encoding of the database is. As a BLOB, it would have that encoding.
const READ_TEXTS: &str = "\
SELECT CASE typeof(action) WHEN 'blob' THEN action ELSE CAST(action AS TEXT) END,
  CASE typeof(details) WHEN 'blob' THEN details ELSE CAST(details AS TEXT) END,
  CASE typeof(target) WHEN 'blob' THEN target ELSE CAST(target AS TEXT) END
FROM ws_outbox WHERE id = ?";
const REMOVE: &str = "DELETE FROM ws_outbox WHERE id = ? AND coalesce(CAST(created AS INTEGER), 0) = ?";
const FAIL: &str = "\
INSERT INTO ws_outbox_failed (action, details, target, cluster, created, outbox_id, reason)
SELECT coalesce(action, ''), details, coalesce(target, ''), cluster, coalesce(created, 0), id, ?
FROM ws_outbox WHERE id = ? AND coalesce(CAST(created AS INTEGER), 0) = ?";

/// An outbox in an SQLite file: the tables `ws_outbox` and `ws_outbox_failed`, which it creates if they are missing. The
/// file is the site's, or that of a [`SqlitePool`](crate::SqlitePool). All processes that open it must run on one machine,
/// and the file must be on a local disk.
///
/// While the site has a transaction that writes, other writers wait: rows are then removed later.
#[derive(Clone, Debug)]
pub struct SqliteOutbox(File);

impl SqliteOutbox {
    /// Returns an outbox in the file at `path`, which is not opened yet. The file is not created. Its journal and its other
    /// settings stay as they are.
    ///
    /// # Errors
    /// Returns [`OutboxError::Url`] if the path is empty.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, OutboxError> {
        let file = File::new(path, SCHEMA, Missing::TablesCreated);
        Ok(Self(file.map_err(|error| OutboxError::Url(error.to_string()))?))
    }

    /// Returns the statements that create the tables, for a site that does so itself.
    pub fn schema() -> &'static str {
        SCHEMA
    }

    async fn change(
        &self,
        statements: impl Fn(&Connection) -> rusqlite::Result<()> + Send + 'static,
    ) -> Result<(), OutboxError> {
        let changed = self.0.run(move |connection| {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            statements(&transaction)?;
            transaction.commit()
        });
        Ok(changed.await?)
    }
}

#[async_trait]
impl Outbox for SqliteOutbox {
    async fn prepare(&self) -> Result<(), OutboxError> {
        let prepared = self.0.run(|connection| {
            connection.execute_batch(SCHEMA)?;
            // These statements fail if tables that existed before have other columns, or if the file is read-only.
            connection.prepare(READ_TEXTS)?;
            connection.prepare(FAIL)?;
            // The highest number is given to no row.
            connection.execute(REMOVE, [i64::MAX, i64::MIN]).map(drop)
        });
        Ok(prepared.await?)
    }

    async fn read(&self, cluster: &str, limits: ReadLimits) -> Result<OutboxRows, OutboxError> {
        let cluster = cluster.to_owned();
        let read = self.0.run(move |connection| {
            // One transaction, so that no row changes between the statements.
            let transaction = connection.transaction()?;
            let now = now();
            let mut found = transaction.prepare_cached(READ)?;
            let found = found.query_map(params![cluster, limits.rows as i64], |row| row_of(row, now))?;
            let found: Vec<OutboxRow> = found.collect::<Result<_, _>>()?;
            let mut texts = transaction.prepare_cached(READ_TEXTS)?;
            let mut read = OutboxRows { has_more: found.len() == limits.rows, ..OutboxRows::default() };
            let mut size = 0;
            for mut row in found {
                if row.size <= limits.row_size {
                    size += row.size;
                    if size > limits.size && !read.rows.is_empty() {
                        read.has_more = true;
                        break;
                    }
                    row.texts = Some(texts.query_row([row.id.id.cast_signed()], texts_of)?);
                }
                read.rows.push(row);
            }
            Ok(read)
        });
        Ok(read.await?)
    }

    async fn remove(&self, rows: &[RowId]) -> Result<(), OutboxError> {
        let rows = rows.to_vec();
        self.change(move |connection| rows.iter().try_for_each(|row| remove(connection, *row))).await
    }

    async fn fail(&self, rows: &[(RowId, String)]) -> Result<(), OutboxError> {
        let rows = rows.to_vec();
        self.change(move |connection| {
            rows.iter().try_for_each(|(row, why)| {
                let mut fail = connection.prepare_cached(FAIL)?;
                fail.execute(params![why, row.id.cast_signed(), row.stamp.cast_signed()])?;
                remove(connection, *row)
            })
        })
        .await
    }
}

fn remove(connection: &Connection, row: RowId) -> rusqlite::Result<()> {
    connection.prepare_cached(REMOVE)?.execute(params![row.id.cast_signed(), row.stamp.cast_signed()]).map(drop)
}

/// Reads a row without its texts.
fn row_of(row: &Row<'_>, now: i64) -> rusqlite::Result<OutboxRow> {
    let created: i64 = row.get(1)?;
    // A row without the time of its creation has no age.
    let age = if created == 0 { 0 } else { (now / 1000).saturating_sub(created) };
    Ok(OutboxRow {
        id: RowId { id: row.get::<_, i64>(0)?.cast_unsigned(), stamp: created.cast_unsigned() },
        // Negative if the clock was set back.
        age: Duration::from_millis(age.try_into().unwrap_or(0)),
        size: natural(row, 2)?,
        texts: None,
    })
}

fn texts_of(row: &Row<'_>) -> rusqlite::Result<RowTexts> {
    let text = |column: usize| -> rusqlite::Result<Option<Vec<u8>>> {
        Ok(row.get_ref(column)?.as_bytes_or_null()?.map(Vec::from))
    };
    let (action, details, target) = (text(0)?, text(1)?, text(2)?);
    Ok(RowTexts { action: action.unwrap_or_default(), details, target: target.unwrap_or_default() })
}

impl From<FileError> for OutboxError {
    fn from(failure: FileError) -> Self {
        match failure.is_passing {
            true => Self::Unreachable(failure.into()),
            false => Self::Failed(failure.into()),
        }
    }
}
