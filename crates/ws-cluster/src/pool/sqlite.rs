//! The pool in an SQLite file, for processes on one machine. They share its clock, and the file's locks make each
//! statement atomic. The file may be removed or replaced while a server runs.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use async_trait::async_trait;
use parking_lot::Mutex;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, TransactionBehavior, params, types::Type};

use super::{Announcement, Lease, NodeRow, Pool, PoolError, PoolView, stride};
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

/// Time for which a statement waits for other processes. It is shorter than the caller's limit of a query.
const BUSY_TIMEOUT: Duration = Duration::from_secs(1);
/// Time for which an open is repeated while other processes open the file, and the pause between attempts. Switching
/// the journal to WAL fails at once, without regard to the time above, if another process does the same.
const OPEN_TIMEOUT: Duration = Duration::from_secs(2);
const OPEN_PAUSE: Duration = Duration::from_millis(10);

/// A pool in an SQLite file. All processes that open it must run on one machine, and the file must be on a local disk
/// (not on NFS). Statements run on Tokio's threads for blocking work, one at a time.
///
/// The next statement creates a file that was removed, and opens a file that was replaced.
#[derive(Clone, Debug)]
pub struct SqlitePool {
    path: Arc<Path>,
    // Locked for one statement by a thread that may block, never across an await. Empty after an error that makes the
    // connection unusable.
    file: Arc<Mutex<Option<File>>>,
    /// True if a missing file or table is created.
    creates: bool,
}

impl SqlitePool {
    /// Opens the pool in the file at `path`. If the file is missing, it is created for its user only (0600), with the
    /// directories above it. An existing file keeps its permissions.
    ///
    /// # Errors
    /// Returns [`PoolError::Unreachable`] if the file can neither be opened nor created, and [`PoolError::Failed`] if
    /// it is no SQLite file or has other tables of these names.
    pub async fn open(path: impl AsRef<Path>) -> Result<Self, PoolError> {
        // Absolute, so that a later change of directory does not matter.
        let path: PathBuf = std::path::absolute(path).map_err(|error| PoolError::Url(error.to_string()))?;
        let pool = Self { path: path.into(), file: Arc::default(), creates: true };
        pool.prepare().await?;
        Ok(pool)
    }

    /// Opens the pool in the file at `path` for a process that only reads it. It never creates anything. Missing tables
    /// are read as empty.
    ///
    /// # Errors
    /// Returns the errors of [`open`](Self::open), and [`PoolError::Unreachable`] if the file is missing.
    pub async fn open_existing(path: impl AsRef<Path>) -> Result<Self, PoolError> {
        let path: PathBuf = std::path::absolute(path).map_err(|error| PoolError::Url(error.to_string()))?;
        let pool = Self { path: path.into(), file: Arc::default(), creates: false };
        pool.read("").await?;
        Ok(pool)
    }

    /// Runs `statement` on a thread that may block. The statement is finished even if the caller stops waiting, so the
    /// connection is never left half-used.
    async fn run<T: Send + 'static>(
        &self,
        statement: impl Fn(&mut Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, PoolError> {
        let (path, file, creates) = (self.path.clone(), self.file.clone(), self.creates);
        let work = move || {
            let mut slot = file.lock();
            let outcome = run(&path, creates, &mut slot, statement);
            if outcome.as_ref().is_err_and(StatementError::is_fatal) {
                *slot = None;
            }
            outcome.map_err(|failure| failure.into_pool_error(&path))
        };
        match tokio::task::spawn_blocking(work).await {
            Ok(outcome) => outcome,
            Err(error) => Err(PoolError::Failed(Box::new(error))),
        }
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
        let creates = self.creates;
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

/// An open file and its identity.
#[derive(Debug)]
struct File {
    connection: Connection,
    identity: Option<Identity>,
}

impl File {
    /// Opens the file at `path`, creates what is missing, and waits for other processes that do so at the same time.
    fn open(path: &Path, creates: bool) -> Result<Self, StatementError> {
        let start = Instant::now();
        loop {
            match Self::open_once(path, creates) {
                Err(StatementError::Sqlite(error)) if is_busy(&error) && start.elapsed() < OPEN_TIMEOUT => {
                    thread::sleep(OPEN_PAUSE);
                }
                outcome => return outcome,
            }
        }
    }

    fn open_once(path: &Path, creates: bool) -> Result<Self, StatementError> {
        if creates {
            create(path).map_err(StatementError::File)?;
        } else {
            fs::metadata(path).map_err(StatementError::File)?;
        }
        // Read before the open, so that a replacement in between is noticed at the next statement.
        let identity = identity(path);
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        if !creates {
            return Ok(Self { connection, identity });
        }
        // If a file system cannot do WAL, SQLite keeps its default, which is slower and as safe.
        connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
        // A power failure may lose the last writes. It also ends all nodes.
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        connection.execute_batch(SCHEMA)?;
        Ok(Self { connection, identity })
    }
}

fn run<T>(
    path: &Path,
    creates: bool,
    slot: &mut Option<File>,
    statement: impl Fn(&mut Connection) -> rusqlite::Result<T>,
) -> Result<T, StatementError> {
    // Without this check, the process would continue alone in a file that no other process can open, with a lease of
    // its own.
    if slot.as_ref().is_some_and(|file| file.identity.is_none() || file.identity != identity(path)) {
        *slot = None;
    }
    let file = match slot {
        Some(file) => file,
        None => slot.insert(File::open(path, creates)?),
    };
    match statement(&mut file.connection) {
        Err(error) if creates && is_missing_table(&error) => {
            file.connection.execute_batch(SCHEMA)?;
            Ok(statement(&mut file.connection)?)
        }
        outcome => Ok(outcome?),
    }
}

/// Creates the file and the directories above it, for this user only, if they are missing.
fn create(path: &Path) -> io::Result<()> {
    let mut directories = fs::DirBuilder::new();
    let mut options = fs::OpenOptions::new();
    // Not truncated, because the file may exist and others may be writing to it.
    options.append(true).create(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
        directories.mode(0o700);
        options.mode(0o600);
    }
    if let Some(parent) = path.parent() {
        directories.recursive(true).create(parent)?;
    }
    options.open(path).map(|_| ())
}

/// Device and inode, which change when the file is replaced.
type Identity = (u64, u64);

#[cfg(unix)]
fn identity(path: &Path) -> Option<Identity> {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(path).ok().map(|file| (file.dev(), file.ino()))
}

/// On these systems an open file cannot be removed or replaced.
#[cfg(not(unix))]
fn identity(_: &Path) -> Option<Identity> {
    Some((0, 0))
}

/// The reason why a statement failed, before it is converted to a [`PoolError`].
#[derive(Debug, thiserror::Error)]
enum StatementError {
    #[error(transparent)]
    File(io::Error),
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
}

impl StatementError {
    /// Returns true if the file has to be opened again.
    fn is_fatal(&self) -> bool {
        use ErrorCode::{CannotOpen, DatabaseCorrupt, DiskFull, NotADatabase, ReadOnly, SystemIoFailure};
        let Self::Sqlite(error) = self else { return true };
        matches!(
            error.sqlite_error_code(),
            Some(CannotOpen | DatabaseCorrupt | DiskFull | NotADatabase | ReadOnly | SystemIoFailure)
        )
    }

    fn into_pool_error(self, path: &Path) -> PoolError {
        use ErrorCode::{
            CannotOpen, DatabaseBusy, DatabaseLocked, DiskFull, PermissionDenied, ReadOnly, SystemIoFailure,
        };
        let unreachable = match &self {
            Self::File(_) => true,
            Self::Sqlite(error) => matches!(
                error.sqlite_error_code(),
                Some(
                    CannotOpen
                        | DatabaseBusy
                        | DatabaseLocked
                        | DiskFull
                        | PermissionDenied
                        | ReadOnly
                        | SystemIoFailure
                )
            ),
        };
        let text = format!("{}: {self}", path.display());
        if unreachable { PoolError::Unreachable(text.into()) } else { PoolError::Failed(text.into()) }
    }
}

fn is_busy(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
}

/// Returns true if a table is missing. SQLite has no code for this. The driver's versions have different variants for
/// it, but the text always begins in the same way.
fn is_missing_table(error: &rusqlite::Error) -> bool {
    error.to_string().starts_with("no such table")
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

/// Reads a column that is never negative.
fn natural(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<u64> {
    let value: i64 = row.get(column)?;
    u64::try_from(value)
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(column, Type::Integer, Box::new(error)))
}

/// Converts to SQLite's integers, which are signed.
fn integer(value: u64) -> rusqlite::Result<i64> {
    i64::try_from(value).map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))
}

fn micros(duration: Duration) -> i64 {
    duration.as_micros().try_into().unwrap_or(i64::MAX)
}

/// Returns microseconds since 1970, by the clock that all processes on the machine share.
fn now() -> i64 {
    // A machine whose clock was never set may be before 1970. All rows have age zero until the clock is set.
    micros(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}
