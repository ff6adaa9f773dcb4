//! The outbox in MySQL or MariaDB: the tables and the statements.

use std::{fmt, time::Duration};

use async_trait::async_trait;
use mysql_async::{Params, Row};

use super::{Outbox, OutboxError, OutboxRow, OutboxRows, ReadLimits, RowId, RowTexts};
use crate::mysql::{StatementError, Tables, Trouble};

/// InnoDB, because other engines have no transactions. No column that a site gives is short enough for a server without
/// strict mode to shorten it to something that is valid. The statements are split at `;`.
const SCHEMA: &str = "\
CREATE TABLE IF NOT EXISTS ws_outbox (
  id         BIGINT UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY,
  action     VARCHAR(1024) NOT NULL,
  details    LONGTEXT NULL COMMENT 'JSON',
  target     MEDIUMTEXT NOT NULL,
  cluster    VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NULL COMMENT 'NULL: the one that uses the table',
  created    TIMESTAMP(6) NOT NULL DEFAULT CURRENT_TIMESTAMP(6)
) ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

CREATE TABLE IF NOT EXISTS ws_outbox_failed (
  id         BIGINT UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY,
  action     VARCHAR(1024) NOT NULL,
  details    LONGTEXT NULL,
  target     MEDIUMTEXT NOT NULL,
  cluster    VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NULL,
  created    TIMESTAMP(6) NOT NULL DEFAULT CURRENT_TIMESTAMP(6),
  outbox_id  BIGINT UNSIGNED NOT NULL,
  reason     TEXT NOT NULL,
  failed     TIMESTAMP(6) NOT NULL DEFAULT CURRENT_TIMESTAMP(6)
) ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;
";

/// Each changes nothing, and needs the privileges of the statement that it stands for. A read-only server refuses those
/// that write.
const PROBES: [&str; 3] = [
    "SELECT id, action, details, target, cluster, created FROM ws_outbox LIMIT 0",
    "DELETE FROM ws_outbox WHERE id = 0 AND 1 = 0",
    "INSERT INTO ws_outbox_failed (action, details, target, cluster, created, outbox_id, reason) \
     SELECT action, details, target, cluster, created, id, '' FROM ws_outbox WHERE id = 0 AND 1 = 0",
];

/// Returns the table's engine if it has no transactions.
const ENGINE: &str = "\
SELECT t.ENGINE FROM information_schema.TABLES t LEFT JOIN information_schema.ENGINES e ON e.ENGINE = t.ENGINE
WHERE t.TABLE_SCHEMA = DATABASE() AND t.TABLE_NAME = 'ws_outbox' AND t.ENGINE IS NOT NULL
  AND (e.TRANSACTIONS IS NULL OR e.TRANSACTIONS <> 'YES')";

/// Rows of up to this many bytes are read together with their texts. Larger ones are read one by one.
const INLINE: u64 = 8 * 1024;

/// The size of a row's texts. A table that was made by hand may have NULL in any column.
macro_rules! size {
    () => {
        "COALESCE(LENGTH(action), 0) + COALESCE(LENGTH(target), 0) + COALESCE(LENGTH(details), 0)"
    };
}

/// A zero date, which a site may insert, has no difference to others: it counts as 1970, as does NULL. An action that is
/// NULL is not the same as one that is left out because of the size.
const READ: &str = concat!(
    "SELECT id, COALESCE(TIMESTAMPDIFF(MICROSECOND, '1970-01-01', created), 0), \
     COALESCE(TIMESTAMPDIFF(MICROSECOND, created, CURRENT_TIMESTAMP(6)), 0), ",
    size!(),
    ", IF(",
    size!(),
    " <= ?, COALESCE(action, ''), NULL), IF(",
    size!(),
    " <= ?, details, NULL), IF(",
    size!(),
    " <= ?, target, NULL) FROM ws_outbox WHERE cluster IS NULL OR cluster = ? ORDER BY id LIMIT ?",
);
const READ_TEXTS: &str = "SELECT action, details, target FROM ws_outbox WHERE id = ?";
const FAIL: &str = "\
INSERT INTO ws_outbox_failed (action, details, target, cluster, created, outbox_id, reason)
SELECT COALESCE(action, ''), details, COALESCE(target, ''), cluster, COALESCE(created, CURRENT_TIMESTAMP(6)), id, ?
FROM ws_outbox WHERE id = ? AND COALESCE(TIMESTAMPDIFF(MICROSECOND, '1970-01-01', created), 0) = ?";

/// The settings of a session, whatever the server's defaults are. Each statement is its own transaction. It sees what has
/// committed and nothing else; a lower level than this one would show rows of open transactions, and READ COMMITTED
/// forbids writes if the binary log has statements. Texts are UTF-8, and times UTC.
const SESSION: [&str; 3] = [
    "SET autocommit = 1, sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION', innodb_lock_wait_timeout = 2, \
     time_zone = '+00:00'",
    "SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ",
    "SET NAMES utf8mb4",
];

/// An outbox in MySQL 5.6.5 and later or MariaDB 10.2 and later: the tables `ws_outbox` and `ws_outbox_failed`, which it
/// creates if they are missing. Its account needs SELECT and DELETE on `ws_outbox`, SELECT and INSERT on
/// `ws_outbox_failed`, and CREATE unless the tables were created by hand from [`schema`](Self::schema).
///
/// On a replicated database, all nodes have to name the server that takes writes.
#[derive(Clone)]
pub struct MySqlOutbox(Tables);

impl MySqlOutbox {
    /// Returns an outbox at `mysql://user:password@host:port/database`, with the options of
    /// [`MySqlPool::connect`](crate::MySqlPool::connect). The server is not dialled yet.
    ///
    /// # Errors
    /// Returns [`OutboxError::Url`] if the URL is malformed. The text never repeats the password.
    pub fn connect(url: &str) -> Result<Self, OutboxError> {
        Ok(Self(Tables::connect(url, SCHEMA, &SESSION).map_err(OutboxError::Url)?))
    }

    /// Returns the statements that create the tables, separated by `;`, for a database whose account may not CREATE.
    pub fn schema() -> &'static str {
        SCHEMA
    }
}

impl fmt::Debug for MySqlOutbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The driver's `Debug` shows the password.
        f.debug_struct("MySqlOutbox").field("server", &self.0.server()).finish_non_exhaustive()
    }
}

#[async_trait]
impl Outbox for MySqlOutbox {
    async fn prepare(&self) -> Result<(), OutboxError> {
        for probe in PROBES {
            self.0.run(probe, Params::Empty).await?;
        }
        if let Some(row) = self.0.run(ENGINE, Params::Empty).await?.rows.into_iter().next() {
            let (engine,): (String,) = mysql_async::from_row_opt(row).map_err(malformed)?;
            let why = "which has no transactions: ALTER TABLE ws_outbox ENGINE=InnoDB";
            return Err(OutboxError::Failed(format!("the engine of ws_outbox is {engine}, {why}").into()));
        }
        Ok(())
    }

    async fn read(&self, cluster: &str, limits: ReadLimits) -> Result<OutboxRows, OutboxError> {
        let inline = INLINE.min(limits.row_size);
        let params = (inline, inline, inline, cluster, limits.rows as u64);
        let found = self.0.run(READ, params.into()).await?;
        let mut has_more = found.rows.len() == limits.rows;
        let (mut rows, mut total) = (Vec::with_capacity(found.rows.len()), 0);
        for row in found.rows {
            let mut row = row_of(row)?;
            let is_read = row.size <= limits.row_size;
            total += if is_read { row.size } else { 0 };
            if total > limits.size && !rows.is_empty() {
                has_more = true;
                break;
            }
            if is_read && row.texts.is_none() {
                let found = self.0.run(READ_TEXTS, (row.id.id,).into()).await?;
                // It may have been removed meanwhile.
                let Some(found) = found.rows.into_iter().next() else { continue };
                row.texts = Some(texts_of(mysql_async::from_row_opt(found).map_err(malformed)?));
            }
            rows.push(row);
        }
        Ok(OutboxRows { rows, has_more })
    }

    async fn remove(&self, rows: &[RowId]) -> Result<(), OutboxError> {
        if let Some(removal) = removal(rows) {
            self.0.run(&removal, Params::Empty).await?;
        }
        Ok(())
    }

    async fn fail(&self, rows: &[(RowId, String)]) -> Result<(), OutboxError> {
        let ids: Vec<RowId> = rows.iter().map(|(row, _)| *row).collect();
        let Some(removal) = removal(&ids) else { return Ok(()) };
        // The locks are taken first, and all at once: two nodes that lock one row after the other could block each other.
        let locks = format!("SELECT id FROM ws_outbox FORCE INDEX (PRIMARY) WHERE id IN ({}) FOR UPDATE", list(&ids));
        let mut statements = vec![(locks, Params::Empty)];
        statements.extend(rows.iter().map(|(row, why)| (FAIL.to_owned(), (why.as_str(), row.id, row.stamp).into())));
        statements.push((removal, Params::Empty));
        Ok(self.0.transaction(&statements).await?)
    }
}

/// Returns the statement that removes rows; `None` if there are none.
///
/// With a scan of the table, which the server may prefer for a short one, it would wait for the open transactions of
/// others. So the index is forced, which takes the form of a statement about several tables.
fn removal(rows: &[RowId]) -> Option<String> {
    let stamps = || rows.iter().map(|row| row.stamp);
    // A row that has got the number of one of these later is newer than all of them.
    let (first, last) = (stamps().min()?, stamps().max()?);
    Some(format!(
        "DELETE ws_outbox FROM ws_outbox FORCE INDEX (PRIMARY) WHERE id IN ({}) \
         AND COALESCE(TIMESTAMPDIFF(MICROSECOND, '1970-01-01', created), 0) BETWEEN {first} AND {last}",
        list(rows)
    ))
}

fn list(rows: &[RowId]) -> String {
    rows.iter().map(|row| row.id.to_string()).collect::<Vec<_>>().join(",")
}

type Texts = (Option<Vec<u8>>, Option<Vec<u8>>, Option<Vec<u8>>);

/// Reads a row. A row whose texts were left out has no action.
fn row_of(row: Row) -> Result<OutboxRow, OutboxError> {
    let (id, stamp, age, size, action, details, target): (u64, i64, i64, u64, _, _, _) =
        mysql_async::from_row_opt(row).map_err(malformed)?;
    let texts = |action: Option<Vec<u8>>| action.map(|action| texts_of((Some(action), details, target)));
    // Negative if the server's clock was set back.
    let age = Duration::from_micros(age.try_into().unwrap_or(0));
    Ok(OutboxRow { id: RowId { id, stamp: stamp.cast_unsigned() }, age, size, texts: texts(action) })
}

fn texts_of((action, details, target): Texts) -> RowTexts {
    RowTexts { action: action.unwrap_or_default(), details, target: target.unwrap_or_default() }
}

fn malformed(error: mysql_async::FromRowError) -> OutboxError {
    OutboxError::Failed(Box::new(error))
}

impl From<StatementError> for OutboxError {
    fn from(failure: StatementError) -> Self {
        match failure.trouble() {
            Trouble::Refused | Trouble::Unreachable => Self::Unreachable(failure.into()),
            Trouble::Failed => Self::Failed(failure.into()),
        }
    }
}
