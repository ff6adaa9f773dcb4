//! The stores on which the contract runs, and the faults that can happen to them.

use std::{sync::Arc, time::Duration};

use mysql_async::prelude::Queryable;
use tempfile::TempDir;
use tests::MariaDb;
use ws_cluster::pool::{self, Lease, MemoryPool, Pool};

use ws_cluster::testing::pool::CLUSTER;
pub(crate) use ws_cluster::testing::pool::Store;

pub(crate) struct Memory(MemoryPool);

impl Store for Memory {
    async fn create() -> Self {
        Self(MemoryPool::default())
    }

    async fn pool(&self) -> Arc<dyn Pool> {
        Arc::new(self.0.clone())
    }

    async fn empty(&self) {
        self.0.clear();
    }

    async fn drop_tables(&self) {
        self.0.clear();
    }

    async fn rewind(&self, lease: Lease) {
        self.0.set_lease(CLUSTER, Some(lease));
    }
}

pub(crate) struct Sqlite(pub(crate) TempDir);

impl Sqlite {
    fn execute(&self, sql: &str) {
        let connection = rusqlite::Connection::open(self.0.path().join("pool.db")).unwrap();
        connection.busy_timeout(Duration::from_secs(5)).unwrap();
        connection.execute_batch(sql).unwrap();
    }
}

impl Store for Sqlite {
    async fn create() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    async fn pool(&self) -> Arc<dyn Pool> {
        let path = self.0.path().join("pool.db");
        pool::open(&format!("sqlite:{}", path.display())).await.unwrap()
    }

    async fn empty(&self) {
        self.execute("DELETE FROM ws_lease; DELETE FROM ws_node");
    }

    async fn drop_tables(&self) {
        self.execute("DROP TABLE ws_lease; DROP TABLE ws_node");
    }

    async fn rewind(&self, Lease { term, master, beat }: Lease) {
        let master = master.map_or("NULL".into(), |node| format!("x'{node}'"));
        self.execute(&format!("UPDATE ws_lease SET term = {term}, master = {master}, beat = {beat}"));
    }
}

pub(crate) struct MySql {
    pub(crate) url: String,
}

impl MySql {
    pub(crate) async fn execute(&self, sql: &str) {
        let mut conn = mysql_async::Conn::from_url(&self.url).await.unwrap();
        conn.query_drop(sql).await.unwrap();
        conn.disconnect().await.unwrap();
    }
}

impl Store for MySql {
    async fn create() -> Self {
        Self { url: MariaDb::shared().await.database().await }
    }

    async fn pool(&self) -> Arc<dyn Pool> {
        pool::open(&self.url).await.unwrap()
    }

    async fn empty(&self) {
        self.execute("TRUNCATE ws_lease").await;
        self.execute("TRUNCATE ws_node").await;
    }

    async fn drop_tables(&self) {
        self.execute("DROP TABLE ws_lease, ws_node").await;
    }

    async fn rewind(&self, Lease { term, master, beat }: Lease) {
        let master = master.map_or("NULL".into(), |node| format!("x'{node}'"));
        self.execute(&format!("UPDATE ws_lease SET term = {term}, master = {master}, beat = {beat}")).await;
    }
}
