//! Records the history of a run: a file that clients and publishers write to.

use std::{
    fs::File,
    io::{BufWriter, Write},
    path::{Path, PathBuf},
    time::Instant,
};

use parking_lot::Mutex;
use tempfile::TempDir;

use crate::history::{History, LoadError, Record};

/// The name of the history's file.
const HISTORY: &str = "history.jsonl";

/// Writes records into a directory. When dropped, it removes the directory, unless it is kept.
pub(super) struct Recorder {
    /// The directory, which is removed when dropped, unless it is kept.
    directory: Mutex<TempDir>,
    path: PathBuf,
    // A synchronous lock: a record is some dozens of bytes, and the file is buffered.
    file: Mutex<BufWriter<File>>,
    start: Instant,
}

impl Recorder {
    /// Starts a new history in a temporary directory.
    ///
    /// # Panics
    /// Panics if the directory or the file cannot be created.
    pub(super) fn start() -> Self {
        let directory = tempfile::Builder::new().prefix("faults-").tempdir().expect("a temporary directory");
        let path = directory.path().to_owned();
        let file = File::create(path.join(HISTORY)).expect("a file in it");
        let file = Mutex::new(BufWriter::with_capacity(1 << 20, file));
        Self { directory: Mutex::new(directory), path, file, start: Instant::now() }
    }

    /// Returns the microseconds since the start.
    pub(super) fn now(&self) -> u64 {
        // A run of half a million years is not planned.
        self.start.elapsed().as_micros() as u64
    }

    /// Adds a record.
    ///
    /// # Panics
    /// Panics if the disk is full, because records would be lost.
    pub(super) fn add(&self, record: &Record<'_>) {
        let mut line = serde_json::to_vec(record).expect("a record is JSON");
        line.push(b'\n');
        self.file.lock().write_all(&line).expect("room for the history");
    }

    /// Returns the history until now.
    ///
    /// # Errors
    /// Fails if the file cannot be read.
    pub(super) fn read(&self) -> Result<History, LoadError> {
        self.file.lock().flush().map_err(LoadError::Io)?;
        let mut history = History::default();
        let file = File::open(self.path.join(HISTORY)).map_err(LoadError::Io)?;
        history.read(std::io::BufReader::with_capacity(1 << 20, file))?;
        Ok(history)
    }

    /// Returns the directory for further files about the run.
    pub(super) fn directory(&self) -> &Path {
        &self.path
    }

    /// Keeps the directory when the recorder is dropped, and returns its path.
    pub(super) fn keep(&self) -> PathBuf {
        self.directory.lock().disable_cleanup(true);
        self.path.clone()
    }
}
