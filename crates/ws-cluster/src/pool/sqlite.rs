//! The pool in an SQLite file, for processes on one machine. They share its clock, and the file's locks make each
//! statement atomic.

use std::{path::Path, time::Duration};

use async_trait::async_trait;
use rusqlite::{Connection, OptionalExtension, TransactionBehavior, params};

use super::{Announcement, Lease, NodeRow, Pool, PoolError, PoolView, stride};
use crate::sqlite::{File, FileError, Missing, integer, micros, natural, now};
use ws_cluster_core::{NodeId, Term};

/// Times are microseconds since 1970.
const SCHEMA: &str = "\
CREATE TABLE IF NOT EXISTS ws_lease (
  cluster    TEXT NOT NULL PRIMARY KEY,
  term       INTEGER NOT NULL,
  master      BLOB,
  beat       INTEGER NOT NULL,
  expires_at INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS ws_node (
  ord        INTEGER PRIMARY KEY AUTOINCREMENT,
  cluster    TEXT NOT NULL,
  node       BLOB NOT NULL,
  address    TEXT NOT NULL,
  joined     INTEGER,
  seen_at    INTEGER NOT NULL,
  UNIQUE (cluster, node),
  UNIQUE (cluster, address)
) STRICT;
";

const READ_LEASE: &str = "SELECT term, master, beat FROM ws_lease WHERE cluster = ?";
const READ_NODES: &str = "\
SELECT ord, node, address, joined, seen_at FROM ws_node WHERE cluster = ? ORDER BY ord";
const DISPLACE_NODE: &str = "DELETE FROM ws_node WHERE cluster = ? AND address = ? AND node <> ?";
// An upsert would use a number of AUTOINCREMENT at every refresh, so a refresh is an UPDATE. `seen_at` is the stamp
// too: if the clock has not moved past it, `seen_at` moves on by itself, unless the clock was set back by more than a
// second.
const REFRESH_NODE: &str = "\
UPDATE ws_node
SET address = ?1, joined = COALESCE(?2, joined),
  seen_at = CASE WHEN seen_at BETWEEN ?3 AND ?3 + 1000000 THEN seen_at + 1 ELSE ?3 END
WHERE cluster = ?4 AND node = ?5";
const INSERT_NODE: &str = "\
INSERT INTO ws_node (address, joined, seen_at, cluster, node) VALUES (?, ?, ?, ?, ?)";
const CLEAR_JOINED: &str = "UPDATE ws_node SET joined = NULL WHERE cluster = ? AND node = ?";
const REMOVE_NODE: &str = "DELETE FROM ws_node WHERE cluster = ? AND node = ?";
const RENEW: &str = "\
UPDATE ws_lease SET beat = beat + ?, expires_at = ? WHERE cluster = ? AND term = ? AND master = ?";
const TAKE_OVER: &str = "\
UPDATE ws_lease SET term = ?, master = ?, beat = beat + ?, expires_at = ? WHERE cluster = ? AND term = ? AND beat = ?
  AND master IS ?";
const HAND_OVER: &str = "\
UPDATE ws_lease SET term = term + 1, master = ?, beat = beat + ?, expires_at = ?
WHERE cluster = ? AND term = ? AND master = ?";
const RESTORE: &str = "\
INSERT INTO ws_lease (cluster, term, master, beat, expires_at) VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING";

/// A pool in an SQLite file. All processes that open it must run on one machine, and the file must be on a local disk
/// (not on NFS). Statements run on Tokio's threads for blocking work, one at a time.
///
/// The next statement creates a file that was removed, and opens a file that was replaced.
#[derive(Clone, Debug)]
pub struct SqlitePool(File);

impl SqlitePool {
    /// Opens the pool in the file at `path`. If the file is missing, it is created for its user only (0600), with the
    /// directories above it. An existing file keeps its permissions.
    ///
    /// # Errors
    /// Returns [`PoolError::Unreachable`] if the file can neither be opened nor created, and [`PoolError::Failed`] if
    /// it is no SQLite file or has other tables of these names.
    pub async fn open(path: impl AsRef<Path>) -> Result<Self, PoolError> {
        let pool = Self(Self::file(path, Missing::Created)?);
        pool.prepare().await?;
        Ok(pool)
    }

    /// Opens the pool in the file at `path` for a process that only reads it. It never creates anything. Missing tables
    /// are read as empty.
    ///
    /// # Errors
    /// Returns the errors of [`open`](Self::open), and [`PoolError::Unreachable`] if the file is missing.
    pub async fn open_existing(path: impl AsRef<Path>) -> Result<Self, PoolError> {
        let pool = Self(Self::file(path, Missing::Refused)?);
        pool.read("").await?;
        Ok(pool)
    }

    fn file(path: impl AsRef<Path>, missing: Missing) -> Result<File, PoolError> {
        File::new(path, SCHEMA, missing).map_err(|error| PoolError::Url(error.to_string()))
    }

    async fn run<T: Send + 'static>(
        &self,
        statement: impl Fn(&mut Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, PoolError> {
        Ok(self.0.run(statement).await?)
    }

    async fn change_lease(
        &self,
        statement: impl Fn(&mut Connection) -> rusqlite::Result<usize> + Send + 'static,
    ) -> Result<bool, PoolError> {
        Ok(self.run(statement).await? > 0)
    }
}

#[async_trait]
impl Pool for SqlitePool {
    async fn prepare(&self) -> Result<(), PoolError> {
        self.run(|connection| {
            connection.execute_batch(SCHEMA)?;
            // These statements fail if tables that existed before have other columns.
            connection.prepare(RESTORE)?;
            connection.prepare(INSERT_NODE).map(|_| ())
        })
        .await
    }

    async fn read(&self, cluster: &str) -> Result<PoolView, PoolError> {
        let cluster = cluster.to_owned();
        let creates = self.0.creates();
        self.run(move |connection| {
            let tables = "SELECT COUNT(*) FROM sqlite_schema WHERE name IN ('ws_lease', 'ws_node')";
            if !creates && connection.query_row(tables, [], |row| row.get(0)) != Ok(2) {
                return Ok(PoolView::default());
            }
            let now = now();
            let lease = connection.prepare_cached(READ_LEASE)?.query_row([&cluster], lease_of).optional()?;
            let mut nodes = connection.prepare_cached(READ_NODES)?;
            let nodes = nodes.query_map([&cluster], |row| node_of(row, now))?.collect::<Result<_, _>>()?;
            Ok(PoolView { lease, nodes })
        })
        .await
    }

    async fn announce(&self, cluster: &str, announcement: &Announcement) -> Result<(), PoolError> {
        let (cluster, announcement) = (cluster.to_owned(), announcement.clone());
        self.run(move |connection| {
            let Announcement { node, address, joined } = &announcement;
            let row = params![address, joined.map(integer).transpose()?, now(), cluster, node.as_bytes()];
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            transaction.prepare_cached(DISPLACE_NODE)?.execute(params![cluster, address, node.as_bytes()])?;
            if transaction.prepare_cached(REFRESH_NODE)?.execute(row)? == 0 {
                transaction.prepare_cached(INSERT_NODE)?.execute(row)?;
            }
            transaction.commit()
        })
        .await
    }

    async fn renew(&self, cluster: &str, term: Term, master: NodeId, lease: Duration) -> Result<bool, PoolError> {
        let cluster = cluster.to_owned();
        self.change_lease(move |connection| {
            let (stride, expires_at) = (integer(stride())?, now().saturating_add(micros(lease)));
            let mut renew = connection.prepare_cached(RENEW)?;
            renew.execute(params![stride, expires_at, cluster, integer(term)?, master.as_bytes()])
        })
        .await
    }

    async fn take_over(
        &self,
        cluster: &str,
        seen: &Lease,
        max_seen: Term,
        master: NodeId,
        lease: Duration,
    ) -> Result<Option<Term>, PoolError> {
        let (cluster, seen) = (cluster.to_owned(), *seen);
        // The condition fixes the stored term, so the next one is known here.
        let Some(term) = seen.term.max(max_seen).checked_add(1) else { return Ok(None) };
        let won = self.change_lease(move |connection| {
            let (stride, expires_at) = (integer(stride())?, now().saturating_add(micros(lease)));
            let mut take_over = connection.prepare_cached(TAKE_OVER)?;
            take_over.execute(params![
                integer(term)?,
                master.as_bytes(),
                stride,
                expires_at,
                cluster,
                integer(seen.term)?,
                integer(seen.beat)?,
                seen.master.as_ref().map(NodeId::as_bytes)
            ])
        });
        Ok(won.await?.then_some(term))
    }

    async fn hand_over(
        &self,
        cluster: &str,
        term: Term,
        master: NodeId,
        successor: Option<NodeId>,
        lease: Duration,
    ) -> Result<bool, PoolError> {
        let cluster = cluster.to_owned();
        self.change_lease(move |connection| {
            let successor = successor.as_ref().map(NodeId::as_bytes);
            let (stride, expires_at) = (integer(stride())?, now().saturating_add(micros(lease)));
            let mut hand_over = connection.prepare_cached(HAND_OVER)?;
            hand_over.execute(params![successor, stride, expires_at, cluster, integer(term)?, master.as_bytes()])
        })
        .await
    }

    async fn restore(&self, cluster: &str, term: Term, master: Option<NodeId>) -> Result<(), PoolError> {
        let cluster = cluster.to_owned();
        self.run(move |connection| {
            let master = master.as_ref().map(NodeId::as_bytes);
            let stride = integer(stride())?;
            connection.prepare_cached(RESTORE)?.execute(params![cluster, integer(term)?, master, stride, now()])
        })
        .await
        .map(|_| ())
    }

    async fn clear_joined(&self, cluster: &str, node: NodeId) -> Result<(), PoolError> {
        let cluster = cluster.to_owned();
        self.run(move |connection| connection.prepare_cached(CLEAR_JOINED)?.execute(params![cluster, node.as_bytes()]))
            .await
            .map(|_| ())
    }

    async fn remove(&self, cluster: &str, node: NodeId) -> Result<(), PoolError> {
        let cluster = cluster.to_owned();
        self.run(move |connection| connection.prepare_cached(REMOVE_NODE)?.execute(params![cluster, node.as_bytes()]))
            .await
            .map(|_| ())
    }
}

impl From<FileError> for PoolError {
    fn from(failure: FileError) -> Self {
        match failure.is_passing {
            true => Self::Unreachable(failure.into()),
            false => Self::Failed(failure.into()),
        }
    }
}

fn lease_of(row: &rusqlite::Row<'_>) -> rusqlite::Result<Lease> {
    let master: Option<[u8; 16]> = row.get(1)?;
    Ok(Lease { term: natural(row, 0)?, master: master.map(NodeId::from_bytes), beat: natural(row, 2)? })
}

fn node_of(row: &rusqlite::Row<'_>, now: i64) -> rusqlite::Result<NodeRow> {
    let joined: Option<i64> = row.get(3)?;
    let seen_at: i64 = row.get(4)?;
    Ok(NodeRow {
        ord: natural(row, 0)?,
        node: NodeId::from_bytes(row.get(1)?),
        address: row.get(2)?,
        joined: joined.map(|_| natural(row, 3)).transpose()?,
        stamp: seen_at.cast_unsigned(),
        // Negative if the clock was set back.
        age: Duration::from_micros(now.saturating_sub(seen_at).try_into().unwrap_or(0)),
    })
}
