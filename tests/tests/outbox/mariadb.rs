//! Tables, accounts and settings that only a database server can have.

use mysql_async::{Conn, OptsBuilder, prelude::Queryable};
use tests::MariaDb;
use ws_cluster::{
    outbox::{self, MySqlOutbox, OutboxError},
    testing::outbox::{OutboxStore, SiteRow, actions, insert, read},
};

use crate::store::MySql;

/// Creates an account with these privileges on the tables in a new database. Returns the URL for it.
async fn restricted_account(name: &str, creates: bool, grants: &[&str]) -> (MySql, String) {
    let store = MySql::create().await;
    let database = store.url.rsplit('/').next().unwrap();
    if creates {
        for statement in MySqlOutbox::schema().split(';').filter(|statement| !statement.trim().is_empty()) {
            store.execute(statement).await;
        }
    }
    store.execute(&format!("CREATE USER '{name}'@'%' IDENTIFIED BY 'pw'")).await;
    store.execute(&format!("GRANT SELECT ON {database}.* TO '{name}'@'%'")).await;
    for grant in grants {
        store.execute(&format!("GRANT {} TO '{name}'@'%'", grant.replace("ws_", &format!("{database}.ws_")))).await;
    }
    let url = MariaDb::shared().await.url(name, "pw", database);
    (store, url)
}

#[tokio::test]
async fn an_account_with_the_documented_privileges_suffices() {
    let grants = ["SELECT, DELETE ON ws_outbox", "SELECT, INSERT ON ws_outbox_failed"];
    let (store, url) = restricted_account("outbox_ok", true, &grants).await;
    let outbox = outbox::open(&url).unwrap();
    outbox.prepare().await.unwrap();
    insert(&store, &["a", "b"].map(SiteRow::new)).await;
    let rows = read(&outbox).await;
    outbox.remove(&[rows[0].id]).await.unwrap();
    outbox.fail(&[(rows[1].id, "for a test".to_owned())]).await.unwrap();
    assert_eq!(read(&outbox).await, []);
}

#[tokio::test]
async fn missing_privileges_and_tables_are_found_before_a_row_is_published() {
    for (name, creates, grants, why) in [
        ("outbox_a", true, &["INSERT ON ws_outbox_failed"][..], "DELETE"),
        ("outbox_b", true, &["DELETE ON ws_outbox"], "INSERT"),
        ("outbox_c", false, &[], "ws-server pool --schema"),
    ] {
        let (_store, url) = restricted_account(name, creates, grants).await;
        let error = outbox::open(&url).unwrap().prepare().await.unwrap_err();
        assert!(matches!(error, OutboxError::Failed(_)), "{error}");
        assert!(error.to_string().contains(why), "{error}");
    }
}

#[tokio::test]
async fn a_table_without_transactions_is_refused() {
    let store = MySql::create().await;
    store.outbox().await.prepare().await.unwrap();
    store.execute("ALTER TABLE ws_outbox ENGINE=MyISAM").await;
    let error = store.outbox().await.prepare().await.unwrap_err();
    assert!(error.to_string().contains("MyISAM, which has no transactions"), "{error}");
}

#[tokio::test]
async fn the_settings_of_the_server_do_not_matter() {
    let mut server = MariaDb::start_with(|_| {
        [
            "--transaction-isolation=READ-UNCOMMITTED",
            "--autocommit=0",
            "--sql-mode=ANSI,NO_BACKSLASH_ESCAPES",
            "--default-time-zone=+05:00",
            "--skip-character-set-client-handshake",
            "--character-set-server=latin1",
            "--collation-server=latin1_swedish_ci",
        ]
        .map(str::to_owned)
        .to_vec()
    })
    .await;
    let url = server.database().await;
    let outbox = outbox::open(&url).unwrap();
    outbox.prepare().await.unwrap();
    let mut site = Conn::from_url(&url).await.unwrap();
    site.query_drop("SET NAMES utf8mb4, autocommit = 0").await.unwrap();
    let insert = "INSERT INTO ws_outbox (action, details, target) VALUES (?, ?, ?)";
    site.exec_drop(insert, ("a", "[\"\u{1f600}\"]", "all")).await.unwrap();
    assert_eq!(read(&outbox).await, [], "the transaction is open");
    site.query_drop("COMMIT").await.unwrap();
    let rows = read(&outbox).await;
    let texts = rows[0].texts.as_ref().unwrap();
    assert_eq!(texts.details.as_deref(), Some("[\"\u{1f600}\"]".as_bytes()));
    assert!(rows[0].age.as_secs() < 60, "{rows:?}");
    outbox.remove(&[rows[0].id]).await.unwrap();
    // Another session sees it.
    site.query_drop("ROLLBACK").await.unwrap();
    let left: Option<u64> = site.query_first("SELECT COUNT(*) FROM ws_outbox").await.unwrap();
    assert_eq!(left, Some(0));
    site.disconnect().await.unwrap();
    server.kill().await;
}

#[tokio::test]
async fn a_site_may_use_another_encoding_and_no_strict_mode() {
    let store = MySql::create().await;
    let outbox = store.outbox().await;
    outbox.prepare().await.unwrap();
    let opts = OptsBuilder::from_opts(mysql_async::Opts::from_url(&store.url).unwrap());
    let setup = ["SET NAMES latin1, sql_mode = ''"];
    let mut site = Conn::new(opts.setup(setup.to_vec())).await.unwrap();
    // What a site in Latin-1 sends.
    let sql = b"INSERT INTO ws_outbox (action, details, target) VALUES ('caf\xe9', '[\"\xfcber\"]', 'user:Andr\xe9')";
    site.query_drop(&sql[..]).await.unwrap();
    // Without strict mode, the server shortens what is too long. It is still too long for a message.
    let long = "x".repeat(2_000);
    site.query_drop(format!("INSERT INTO ws_outbox (action, target) VALUES ('{long}', 'all')")).await.unwrap();
    site.query_drop("INSERT INTO ws_outbox (action) VALUES ('nobody')").await.unwrap();
    let rows = read(&outbox).await;
    let texts = rows[0].texts.as_ref().unwrap();
    assert_eq!((&*texts.action, &*texts.target), ("caf\u{e9}".as_bytes(), "user:Andr\u{e9}".as_bytes()));
    assert_eq!(texts.details.as_deref(), Some("[\"\u{fc}ber\"]".as_bytes()));
    assert_eq!(actions(&rows)[1].len(), 1_024);
    assert_eq!(rows[2].texts.as_ref().unwrap().target, b"");
    site.disconnect().await.unwrap();
}

#[tokio::test]
async fn a_row_with_null_in_a_table_that_was_made_by_hand_stops_no_other() {
    let store = MySql::create().await;
    let outbox = store.outbox().await;
    outbox.prepare().await.unwrap();
    store
        .execute(
            "ALTER TABLE ws_outbox MODIFY action VARCHAR(1024) NULL, MODIFY target MEDIUMTEXT NULL, \
             MODIFY created TIMESTAMP(6) NULL",
        )
        .await;
    let rows = "('a', NULL, NULL), (NULL, 'all', NULL), (NULL, NULL, NULL), ('good', 'all', NULL)";
    store.execute(&format!("INSERT INTO ws_outbox (action, target, created) VALUES {rows}")).await;
    let rows = read(&outbox).await;
    assert_eq!(actions(&rows), ["a", "", "", "good"]);
    assert_eq!(rows[0].texts.as_ref().unwrap().target, b"");
    let failed: Vec<_> = rows[..3].iter().map(|row| (row.id, "for a test".to_owned())).collect();
    outbox.fail(&failed).await.unwrap();
    outbox.remove(&[rows[3].id]).await.unwrap();
    assert_eq!(read(&outbox).await, []);
    assert_eq!(store.failed().await.len(), 3);
}
