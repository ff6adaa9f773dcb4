//! The history of a run while it comes about: a file that clients and publishers write to.

use std::{
    fs::File,
    io::{BufWriter, Write},
    path::{Path, PathBuf},
    time::Instant,
};

use parking_lot::Mutex;
use tempfile::TempDir;

use crate::history::{History, LoadError, Record};

/// The history's file.
const HISTORY: &str = "history.jsonl";

/// Writes records, in a directory that is gone with it unless it is kept.
pub(super) struct Recorder {
    /// Removed with this, unless it is kept.
    directory: Mutex<TempDir>,
    path: PathBuf,
    // A plain lock: a record is some dozens of bytes, and the file is buffered.
    file: Mutex<BufWriter<File>>,
    start: Instant,
}

impl Recorder {
    /// A new history in a temporary directory.
    ///
    /// # Panics
    /// There is no room for it.
    pub(super) fn start() -> Self {
        let directory = tempfile::Builder::new().prefix("faults-").tempdir().expect("a temporary directory");
        let path = directory.path().to_owned();
        let file = File::create(path.join(HISTORY)).expect("a file in it");
        let file = Mutex::new(BufWriter::with_capacity(1 << 20, file));
        Self { directory: Mutex::new(directory), path, file, start: Instant::now() }
    }

    /// Microseconds since the start.
    pub(super) fn now(&self) -> u64 {
        // A run of half a million years is not planned.
        self.start.elapsed().as_micros() as u64
    }

    /// Adds a record.
    ///
    /// # Panics
    /// The disk is full: what was seen would be lost.
    pub(super) fn add(&self, record: &Record<'_>) {
        let mut line = serde_json::to_vec(record).expect("a record is JSON");
        line.push(b'\n');
        self.file.lock().write_all(&line).expect("room for the history");
    }

    /// The history until now.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(super) fn read(&self) -> Result<History, LoadError> {
        self.file.lock().flush().map_err(LoadError::Io)?;
        let mut history = History::default();
        let file = File::open(self.path.join(HISTORY)).map_err(LoadError::Io)?;
        history.read(std::io::BufReader::with_capacity(1 << 20, file))?;
        Ok(history)
    }

    /// Where further files about the run go.
    pub(super) fn directory(&self) -> &Path {
        &self.path
    }

    /// Leaves the directory where it is when the recorder is gone.
    pub(super) fn keep(&self) -> PathBuf {
        self.directory.lock().disable_cleanup(true);
        self.path.clone()
    }
}
