//! A node with an outbox: what reaches its clients, and what does not.

use std::path::Path;

use mysql_async::{Conn, prelude::Queryable};
use serde_json::{Value, json};
use tests::{
    MariaDb, WsServer,
    client::{Client, eventually},
};
use ws_cluster::testing::outbox::OutboxStore;

use crate::store::{MySql, Sqlite};

const KEY: &str = "a key of the tests of thirty-two bytes or more";

async fn start(state: &Path, arguments: &[&str]) -> WsServer {
    let mut all = vec!["--demo", "--key", KEY, "--outbox"];
    all.extend(arguments);
    WsServer::start(state, &all).await
}

/// Returns the next message that came through the outbox.
async fn next(client: &mut Client) -> Value {
    loop {
        let message = client.json().await;
        let action = message["action"].as_str().unwrap();
        if !["demo/", "Client/"].iter().any(|own| action.starts_with(own)) {
            return message;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_are_published_when_their_transaction_commits_and_not_if_it_rolls_back() {
    let (state, store) = (tempfile::tempdir().unwrap(), MySql::create().await);
    let node = start(state.path(), &["--pool", &store.url]).await;
    let mut ann = node.client(Some("ann")).await;
    let mut site = store.connect().await;
    let mut slow = store.connect().await;
    slow.query_drop("START TRANSACTION").await.unwrap();
    slow.query_drop("INSERT INTO ws_outbox (action, details, target) VALUES ('slow', '[1]', 'all')").await.unwrap();
    for end in ["ROLLBACK", "COMMIT"] {
        site.query_drop("START TRANSACTION").await.unwrap();
        for (action, target) in
            [("first", "user:ann"), ("second", r#"{"users":["ann","b,c"]}"#), ("hidden", "user:bob")]
        {
            let row = (action, json!([end, 1.5]).to_string(), target);
            site.exec_drop("INSERT INTO ws_outbox (action, details, target) VALUES (?, ?, ?)", row).await.unwrap();
        }
        site.query_drop(end).await.unwrap();
    }
    assert_eq!(next(&mut ann).await, json!({ "action": "first", "details": ["COMMIT", 1.5] }));
    assert_eq!(next(&mut ann).await, json!({ "action": "second", "details": ["COMMIT", 1.5] }));
    slow.query_drop("COMMIT").await.unwrap();
    assert_eq!(next(&mut ann).await, json!({ "action": "slow", "details": [1] }));
    site.query_drop("INSERT INTO ws_outbox (action, target) VALUES ('last', 'all')").await.unwrap();
    assert_eq!(next(&mut ann).await, json!({ "action": "last", "details": [] }));
    until_empty(&mut site).await;
}

/// Waits until no row waits. The table sends no notice.
async fn until_empty(site: &mut Conn) {
    eventually(async || {
        let rows: Option<u64> = site.query_first("SELECT COUNT(*) FROM ws_outbox").await.unwrap();
        (rows == Some(0)).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_rows_are_moved_with_the_reason_and_stop_no_other() {
    let (state, store) = (tempfile::tempdir().unwrap(), MySql::create().await);
    let node = start(state.path(), &["--pool", &store.url]).await;
    let mut ann = node.client(Some("ann")).await;
    let mut site = store.connect().await;
    let large = format!("[\"{}\"]", "x".repeat(10 * 1024 * 1024));
    let many = format!("users:{}", "1,".repeat(35_000));
    let rows = [
        ("good/1", "[1]", "all", None),
        ("broken", "[1", "all", Some("the details are")),
        ("nowhere", "[1]", "grupe:a", Some("unknown target")),
        ("large", &large, "all", Some("bytes")),
        // The reason quotes the target, and is shorter than the column.
        ("many", "[1]", &many, Some("unknown target")),
        ("", "[1]", "all", Some("an action has 1 to 255 bytes")),
        ("Server/close", "[]", "all", Some("reserved")),
        ("good/2", "[2]", "all", None),
    ];
    site.query_drop("START TRANSACTION").await.unwrap();
    for (action, details, target, _) in rows {
        let insert = "INSERT INTO ws_outbox (action, details, target) VALUES (?, ?, ?)";
        site.exec_drop(insert, (action, details, target)).await.unwrap();
    }
    site.query_drop("COMMIT").await.unwrap();
    assert_eq!(next(&mut ann).await, json!({ "action": "good/1", "details": [1] }));
    assert_eq!(next(&mut ann).await, json!({ "action": "good/2", "details": [2] }));
    until_empty(&mut site).await;
    let failed = store.failed().await;
    let expected: Vec<_> = rows.into_iter().filter_map(|(action, _, _, why)| Some((action, why?))).collect();
    assert_eq!(failed.len(), expected.len(), "{failed:?}");
    for ((action, reason), (given, why)) in failed.iter().zip(expected) {
        assert!(action == given && reason.contains(why), "{action}: {reason}");
    }
    node.logged("a row of the outbox cannot be published").await;
    // A row that was put right is published.
    site.query_drop("START TRANSACTION").await.unwrap();
    site.query_drop(
        "INSERT INTO ws_outbox (action, details, target) \
         SELECT action, details, 'all' FROM ws_outbox_failed WHERE action = 'nowhere'",
    )
    .await
    .unwrap();
    site.query_drop("DELETE FROM ws_outbox_failed WHERE action = 'nowhere'").await.unwrap();
    site.query_drop("COMMIT").await.unwrap();
    assert_eq!(next(&mut ann).await, json!({ "action": "nowhere", "details": [1] }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_with_a_zero_date_stops_no_other() {
    let (state, store) = (tempfile::tempdir().unwrap(), MySql::create().await);
    let node = start(state.path(), &["--pool", &store.url]).await;
    let mut ann = node.client(Some("ann")).await;
    let mut site = store.connect().await;
    site.query_drop("SET sql_mode = ''").await.unwrap();
    for (action, created) in [("zero", "'0000-00-00'"), ("now", "CURRENT_TIMESTAMP(6)")] {
        let columns = "INSERT INTO ws_outbox (action, details, target, created)";
        site.query_drop(format!("{columns} VALUES ('{action}', '[1]', 'all', {created})")).await.unwrap();
    }
    assert_eq!(next(&mut ann).await, json!({ "action": "zero", "details": [1] }));
    assert_eq!(next(&mut ann).await, json!({ "action": "now", "details": [1] }));
    until_empty(&mut site).await;
    // One that cannot be published is moved.
    site.query_drop("INSERT INTO ws_outbox (action, target, created) VALUES ('zero', 'nowhere', 0)").await.unwrap();
    until_empty(&mut site).await;
    assert_eq!(store.failed().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_site_with_sqlite_has_an_outbox_too() {
    let (state, store) = (tempfile::tempdir().unwrap(), Sqlite::create().await);
    let node = start(state.path(), &["--outbox-database", &store.url()]).await;
    let mut ann = node.client(Some("ann")).await;
    let mut site = store.connect();
    for commits in [false, true] {
        let transaction = site.transaction().unwrap();
        let insert = "INSERT INTO ws_outbox (action, details, target) VALUES ('article', ?, 'all')";
        transaction.execute(insert, [json!([commits]).to_string()]).unwrap();
        if commits {
            transaction.commit().unwrap();
        }
    }
    assert_eq!(next(&mut ann).await, json!({ "action": "article", "details": [true] }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_wait_while_the_database_is_away() {
    let (state, mut database) = (tempfile::tempdir().unwrap(), MariaDb::start().await);
    let url = database.database().await;
    let node = start(
        state.path(),
        &["--pool", &format!("sqlite:{}", state.path().join("pool").display()), "--outbox-database", &url],
    )
    .await;
    let mut ann = node.client(Some("ann")).await;
    for round in 0..2 {
        let mut site = Conn::from_url(&url).await.unwrap();
        let row = (json!([round]).to_string(),);
        site.exec_drop("INSERT INTO ws_outbox (action, details, target) VALUES ('a', ?, 'all')", row).await.unwrap();
        assert_eq!(next(&mut ann).await, json!({ "action": "a", "details": [round] }));
        drop(site);
        if round == 0 {
            database.kill().await;
            node.logged("rows of the outbox wait").await;
            database.start_again().await;
            node.logged("the outbox works again").await;
        }
    }
    database.kill().await;
}

#[tokio::test]
async fn flags_that_name_no_outbox_are_refused() {
    let state = tempfile::tempdir().unwrap();
    for (arguments, why) in [
        (&["--pool", "memory:", "--outbox"][..], "give --outbox-database"),
        (&["--outbox-database", "sqlite:x"], "--outbox-database needs --outbox"),
        (&["--outbox", "--outbox-database", "site.db"], "no scheme"),
        (&["--outbox", "--outbox-database", "mysql://site:secret@localhost"], "no database is named"),
    ] {
        let output = WsServer::run(state.path(), &[&["run", "--listen", "127.0.0.1:0"], arguments].concat()).await;
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(2) && told.contains(why) && !told.contains("secret"), "{told}");
    }
    let output = WsServer::run(state.path(), &["pool", "--schema"]).await;
    let schema = String::from_utf8(output.stdout).unwrap();
    for table in ["ws_lease", "ws_node", "ws_outbox", "ws_outbox_failed"] {
        assert!(schema.contains(&format!("CREATE TABLE IF NOT EXISTS {table} (")), "{schema}");
    }
    let output = WsServer::run(state.path(), &["pool", "--schema", "--pool", "sqlite:x"]).await;
    assert!(String::from_utf8(output.stdout).unwrap().contains("AUTOINCREMENT"));
}
