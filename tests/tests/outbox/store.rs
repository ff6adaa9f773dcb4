//! The databases on which the contract runs.

use std::{sync::Arc, time::Duration};

use mysql_async::{Conn, prelude::Queryable};
use rusqlite::Connection;
use tempfile::TempDir;
use tests::MariaDb;
use ws_cluster::{
    outbox::{self, MemoryOutbox, MemoryTransaction, Outbox},
    testing::outbox::{OutboxStore, SiteRow, SiteTransaction},
};

pub(crate) struct Memory(MemoryOutbox);

impl OutboxStore for Memory {
    type Transaction = InMemory;
    const IS_PARALLEL: bool = true;

    async fn create() -> Self {
        Self(MemoryOutbox::default())
    }

    async fn outbox(&self) -> Arc<dyn Outbox> {
        Arc::new(self.0.clone())
    }

    async fn begin(&self) -> InMemory {
        InMemory(self.0.begin())
    }

    async fn failed(&self) -> Vec<(String, String)> {
        let action = |action: Vec<u8>| String::from_utf8(action).unwrap();
        self.0.failed().into_iter().map(|(texts, why)| (action(texts.action), why)).collect()
    }

    async fn drop_tables(&self) {}
}

pub(crate) struct InMemory(MemoryTransaction);

impl SiteTransaction for InMemory {
    async fn insert(&mut self, SiteRow { action, details, target, cluster }: SiteRow<'_>) {
        match cluster {
            Some(cluster) => self.0.insert_for(cluster, action, details, target),
            None => self.0.insert(action, details, target),
        }
    }

    async fn commit(self) {
        self.0.commit();
    }

    async fn roll_back(self) {}
}

pub(crate) struct Sqlite(TempDir);

impl Sqlite {
    /// The file of a site that has not made it yet.
    pub(crate) fn over(directory: TempDir) -> Self {
        Self(directory)
    }

    pub(crate) fn url(&self) -> String {
        format!("sqlite:{}", self.0.path().join("site.db").display())
    }

    pub(crate) fn connect(&self) -> Connection {
        let connection = Connection::open(self.0.path().join("site.db")).unwrap();
        connection.busy_timeout(Duration::from_secs(5)).unwrap();
        connection
    }
}

impl OutboxStore for Sqlite {
    type Transaction = InFile;
    const IS_PARALLEL: bool = false;

    async fn create() -> Self {
        let store = Self(tempfile::tempdir().unwrap());
        // The site makes its file.
        store.connect().execute_batch("CREATE TABLE article (id INTEGER)").unwrap();
        store
    }

    async fn outbox(&self) -> Arc<dyn Outbox> {
        outbox::open(&self.url()).unwrap()
    }

    async fn begin(&self) -> InFile {
        let connection = self.connect();
        connection.execute_batch("BEGIN IMMEDIATE").unwrap();
        InFile(connection)
    }

    async fn failed(&self) -> Vec<(String, String)> {
        let connection = self.connect();
        let mut failed = connection.prepare("SELECT action, reason FROM ws_outbox_failed ORDER BY id").unwrap();
        let failed = failed.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
        failed.collect::<Result<_, _>>().unwrap()
    }

    async fn drop_tables(&self) {
        self.connect().execute_batch("DROP TABLE ws_outbox; DROP TABLE ws_outbox_failed").unwrap();
    }
}

pub(crate) struct InFile(Connection);

impl SiteTransaction for InFile {
    async fn insert(&mut self, SiteRow { action, details, target, cluster }: SiteRow<'_>) {
        let plain = "INSERT INTO ws_outbox (action, details, target) VALUES (?, ?, ?)";
        let named = "INSERT INTO ws_outbox (action, details, target, cluster) VALUES (?, ?, ?, ?)";
        match cluster {
            Some(cluster) => self.0.execute(named, rusqlite::params![action, details, target, cluster]),
            None => self.0.execute(plain, rusqlite::params![action, details, target]),
        }
        .unwrap();
    }

    async fn commit(self) {
        self.0.execute_batch("COMMIT").unwrap();
    }

    async fn roll_back(self) {
        self.0.execute_batch("ROLLBACK").unwrap();
    }
}

pub(crate) struct MySql {
    pub(crate) url: String,
}

impl MySql {
    pub(crate) async fn connect(&self) -> Conn {
        Conn::from_url(&self.url).await.unwrap()
    }

    pub(crate) async fn execute(&self, sql: &str) {
        let mut conn = self.connect().await;
        conn.query_drop(sql).await.unwrap();
        conn.disconnect().await.unwrap();
    }
}

impl OutboxStore for MySql {
    type Transaction = InMySql;
    const IS_PARALLEL: bool = true;

    async fn create() -> Self {
        Self { url: MariaDb::shared().await.database().await }
    }

    async fn outbox(&self) -> Arc<dyn Outbox> {
        outbox::open(&self.url).unwrap()
    }

    async fn begin(&self) -> InMySql {
        let mut conn = self.connect().await;
        conn.query_drop("START TRANSACTION").await.unwrap();
        InMySql(conn)
    }

    async fn failed(&self) -> Vec<(String, String)> {
        self.connect().await.query("SELECT action, reason FROM ws_outbox_failed ORDER BY id").await.unwrap()
    }

    async fn drop_tables(&self) {
        self.execute("DROP TABLE ws_outbox, ws_outbox_failed").await;
    }
}

pub(crate) struct InMySql(Conn);

impl SiteTransaction for InMySql {
    async fn insert(&mut self, SiteRow { action, details, target, cluster }: SiteRow<'_>) {
        let plain = "INSERT INTO ws_outbox (action, details, target) VALUES (?, ?, ?)";
        let named = "INSERT INTO ws_outbox (action, details, target, cluster) VALUES (?, ?, ?, ?)";
        match cluster {
            Some(cluster) => self.0.exec_drop(named, (action, details, target, cluster)).await,
            None => self.0.exec_drop(plain, (action, details, target)).await,
        }
        .unwrap();
    }

    async fn commit(mut self) {
        self.0.query_drop("COMMIT").await.unwrap();
        self.0.disconnect().await.unwrap();
    }

    async fn roll_back(mut self) {
        self.0.query_drop("ROLLBACK").await.unwrap();
        self.0.disconnect().await.unwrap();
    }
}
