//! An outbox in this process's memory, with transactions that commit in any order.

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{Outbox, OutboxError, OutboxRow, OutboxRows, ReadLimits, RowId, RowTexts};

/// An outbox in memory, for tests and for servers that always are a single process. Clones share one table.
///
/// It never fails. It uses Tokio's clock, so that tests may pause it.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use ws_cluster::{MemoryPool, Server, outbox::MemoryOutbox};
///
/// let outbox = MemoryOutbox::default();
/// let server = Server::builder(MemoryPool::default()).outbox(outbox.clone()).start().await?;
/// let mut transaction = outbox.begin();
/// transaction.insert("news/new", "[7]", "group:editors");
/// transaction.commit();
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, Default)]
pub struct MemoryOutbox(Arc<Mutex<Table>>);

#[derive(Debug, Default)]
struct Table {
    last: u64,
    /// Counts the inserts, so that it tells rows with the same number apart.
    inserts: u64,
    rows: BTreeMap<u64, Stored>,
    failed: Vec<(RowTexts, String)>,
}

#[derive(Debug)]
struct Stored {
    id: RowId,
    cluster: Option<String>,
    texts: RowTexts,
    inserted: Instant,
}

impl Stored {
    fn size(&self) -> u64 {
        let RowTexts { action, details, target } = &self.texts;
        (action.len() + details.as_ref().map_or(0, Vec::len) + target.len()) as u64
    }
}

impl MemoryOutbox {
    /// Begins a transaction. Its rows have their ids from their insert on, and are visible once it has committed.
    pub fn begin(&self) -> MemoryTransaction {
        MemoryTransaction { outbox: self.clone(), rows: Vec::new() }
    }

    /// Returns the number of committed rows that wait.
    pub fn waiting(&self) -> usize {
        self.0.lock().rows.len()
    }

    /// Returns the rows that failed, with the reasons, in the order in which they failed.
    pub fn failed(&self) -> Vec<(RowTexts, String)> {
        self.0.lock().failed.clone()
    }

    /// Lets the next row have the number after the highest one that is there, as some databases do after a restart.
    pub fn reuse_ids(&self) {
        let mut table = self.0.lock();
        table.last = table.rows.last_key_value().map_or(0, |(last, _)| *last);
    }
}

/// A transaction of a [`MemoryOutbox`]. If it is dropped, it is rolled back.
#[derive(Debug)]
#[must_use = "a transaction that is dropped is rolled back"]
pub struct MemoryTransaction {
    outbox: MemoryOutbox,
    rows: Vec<Stored>,
}

impl MemoryTransaction {
    /// Inserts a row for any cluster. `details` is JSON, or `None`.
    pub fn insert<'a>(
        &mut self,
        action: impl Into<Vec<u8>>,
        details: impl Into<Option<&'a str>>,
        target: impl Into<Vec<u8>>,
    ) {
        self.add(None, action.into(), details.into(), target.into());
    }

    /// Inserts a row for the cluster with this name.
    pub fn insert_for<'a>(
        &mut self,
        cluster: impl Into<String>,
        action: impl Into<Vec<u8>>,
        details: impl Into<Option<&'a str>>,
        target: impl Into<Vec<u8>>,
    ) {
        self.add(Some(cluster.into()), action.into(), details.into(), target.into());
    }

    fn add(&mut self, cluster: Option<String>, action: Vec<u8>, details: Option<&str>, target: Vec<u8>) {
        let mut table = self.outbox.0.lock();
        table.last += 1;
        table.inserts += 1;
        let id = RowId { id: table.last, stamp: table.inserts };
        let texts = RowTexts { action, details: details.map(Into::into), target };
        self.rows.push(Stored { id, cluster, texts, inserted: Instant::now() });
    }

    /// Makes the rows visible.
    pub fn commit(self) {
        let mut table = self.outbox.0.lock();
        table.rows.extend(self.rows.into_iter().map(|row| (row.id.id, row)));
    }
}

#[async_trait]
impl Outbox for MemoryOutbox {
    async fn prepare(&self) -> Result<(), OutboxError> {
        Ok(())
    }

    async fn read(&self, cluster: &str, limits: ReadLimits) -> Result<OutboxRows, OutboxError> {
        let table = self.0.lock();
        let own = |row: &&Stored| row.cluster.as_deref().is_none_or(|name| name == cluster);
        let (mut rows, mut size) = (Vec::new(), 0);
        for stored in table.rows.values().filter(own) {
            let is_read = stored.size() <= limits.row_size;
            size += if is_read { stored.size() } else { 0 };
            if rows.len() == limits.rows || size > limits.size && !rows.is_empty() {
                return Ok(OutboxRows { rows, has_more: true });
            }
            let texts = is_read.then(|| stored.texts.clone());
            rows.push(OutboxRow { id: stored.id, age: stored.inserted.elapsed(), size: stored.size(), texts });
        }
        Ok(OutboxRows { rows, has_more: false })
    }

    async fn remove(&self, rows: &[RowId]) -> Result<(), OutboxError> {
        let mut table = self.0.lock();
        for row in rows {
            if table.rows.get(&row.id).is_some_and(|stored| stored.id == *row) {
                table.rows.remove(&row.id);
            }
        }
        Ok(())
    }

    async fn fail(&self, rows: &[(RowId, String)]) -> Result<(), OutboxError> {
        let mut table = self.0.lock();
        for (row, reason) in rows {
            if table.rows.get(&row.id).is_some_and(|stored| stored.id == *row)
                && let Some(stored) = table.rows.remove(&row.id)
            {
                table.failed.push((stored.texts, reason.clone()));
            }
        }
        Ok(())
    }
}
