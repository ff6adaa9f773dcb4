//! An SQLite file with tables of this program's own, for processes on one machine. The file may be removed or replaced
//! while a server runs.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use parking_lot::Mutex;
use rusqlite::{Connection, ErrorCode, OpenFlags, types::Type};

/// Time for which a statement waits for other processes. It is shorter than the caller's limit of a query.
const BUSY_TIMEOUT: Duration = Duration::from_secs(1);
/// Time for which an open is repeated while other processes open the file, and the pause between attempts. Switching
/// the journal to WAL fails at once, without regard to the time above, if another process does the same.
const OPEN_TIMEOUT: Duration = Duration::from_secs(2);
const OPEN_PAUSE: Duration = Duration::from_millis(10);

/// What is created if it is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Missing {
    /// The file, the directories above it and the tables.
    Created,
    /// The tables. The file is somebody else's, and keeps its settings.
    TablesCreated,
    /// Nothing.
    Refused,
}

/// A file, which is opened when it is needed. Clones share the connection.
#[derive(Clone, Debug)]
pub(crate) struct File {
    path: Arc<Path>,
    /// The statements that create the tables.
    schema: &'static str,
    missing: Missing,
    // Locked for one statement by a thread that may block, never across an await. Empty after an error that makes the
    // connection unusable.
    slot: Arc<Mutex<Option<OpenFile>>>,
}

impl File {
    /// Names a file, without opening it.
    pub(crate) fn new(path: impl AsRef<Path>, schema: &'static str, missing: Missing) -> io::Result<Self> {
        // Absolute, so that a later change of directory does not matter.
        let path: PathBuf = std::path::absolute(path)?;
        Ok(Self { path: path.into(), schema, missing, slot: Arc::default() })
    }

    /// Returns true if missing tables are created.
    pub(crate) fn creates(&self) -> bool {
        self.missing != Missing::Refused
    }

    /// Runs `statement` on a thread that may block. The statement is finished even if the caller stops waiting, so the
    /// connection is never left half-used.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        statement: impl Fn(&mut Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, FileError> {
        let file = self.clone();
        let work = move || {
            let mut slot = file.slot.lock();
            let outcome = file.run_in(&mut slot, statement);
            if outcome.as_ref().is_err_and(StatementError::is_fatal) {
                *slot = None;
            }
            outcome.map_err(|failure| failure.of(&file.path))
        };
        match tokio::task::spawn_blocking(work).await {
            Ok(outcome) => outcome,
            Err(error) => Err(FileError { text: error.to_string(), is_passing: false }),
        }
    }

    fn run_in<T>(
        &self,
        slot: &mut Option<OpenFile>,
        statement: impl Fn(&mut Connection) -> rusqlite::Result<T>,
    ) -> Result<T, StatementError> {
        // Without this check, the process would continue alone in a file that no other process can open, with a lease of
        // its own.
        if slot.as_ref().is_some_and(|file| file.identity.is_none() || file.identity != identity(&self.path)) {
            *slot = None;
        }
        let file = match slot {
            Some(file) => file,
            None => slot.insert(OpenFile::open(self)?),
        };
        match statement(&mut file.connection) {
            Err(error) if self.creates() && is_missing_table(&error) => {
                file.connection.execute_batch(self.schema)?;
                Ok(statement(&mut file.connection)?)
            }
            outcome => Ok(outcome?),
        }
    }
}

/// The reason why a statement failed.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub(crate) struct FileError {
    text: String,
    /// True if the same statement may succeed later.
    pub(crate) is_passing: bool,
}

/// An open file and its identity.
#[derive(Debug)]
struct OpenFile {
    connection: Connection,
    identity: Option<Identity>,
}

impl OpenFile {
    /// Opens the file, creates what is missing, and waits for other processes that do so at the same time.
    fn open(file: &File) -> Result<Self, StatementError> {
        let start = Instant::now();
        loop {
            match Self::open_once(file) {
                Err(StatementError::Sqlite(error)) if is_busy(&error) && start.elapsed() < OPEN_TIMEOUT => {
                    thread::sleep(OPEN_PAUSE);
                }
                outcome => return outcome,
            }
        }
    }

    fn open_once(file: &File) -> Result<Self, StatementError> {
        let path = &file.path;
        if file.missing == Missing::Created {
            create(path).map_err(StatementError::File)?;
        } else {
            fs::metadata(path).map_err(StatementError::File)?;
        }
        // Read before the open, so that a replacement in between is noticed at the next statement.
        let identity = identity(path);
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        if file.missing == Missing::Created {
            // If a file system cannot do WAL, SQLite keeps its default, which is slower and as safe.
            connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
            // A power failure may lose the last writes. It also ends all nodes.
            connection.pragma_update(None, "synchronous", "NORMAL")?;
            connection.execute_batch(file.schema)?;
        }
        Ok(Self { connection, identity })
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

/// The reason why a statement failed, before its file is named.
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

    fn of(self, path: &Path) -> FileError {
        use ErrorCode::{
            CannotOpen, DatabaseBusy, DatabaseLocked, DiskFull, PermissionDenied, ReadOnly, SystemIoFailure,
        };
        let is_passing = match &self {
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
        FileError { text: format!("{}: {self}", path.display()), is_passing }
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

/// Reads a column that is never negative.
pub(crate) fn natural(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<u64> {
    let value: i64 = row.get(column)?;
    u64::try_from(value)
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(column, Type::Integer, Box::new(error)))
}

/// Converts to SQLite's integers, which are signed.
pub(crate) fn integer(value: u64) -> rusqlite::Result<i64> {
    i64::try_from(value).map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))
}

pub(crate) fn micros(duration: Duration) -> i64 {
    duration.as_micros().try_into().unwrap_or(i64::MAX)
}

/// Returns microseconds since 1970, by the clock that all processes on the machine share.
pub(crate) fn now() -> i64 {
    // A machine whose clock was never set may be before 1970. All rows have age zero until the clock is set.
    micros(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}
