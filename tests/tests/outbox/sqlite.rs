//! Files that a site has made in its own way.

use ws_cluster::testing::outbox::{OutboxStore, SiteRow, actions, ids, insert, read};

use crate::store::Sqlite;

#[tokio::test]
async fn a_database_in_utf16_is_read_as_one_in_utf8() {
    for encoding in ["UTF-8", "UTF-16le", "UTF-16be"] {
        let directory = tempfile::tempdir().unwrap();
        let store = Sqlite::over(directory);
        store.connect().execute_batch(&format!("PRAGMA encoding = '{encoding}'; CREATE TABLE article (id)")).unwrap();
        let outbox = store.outbox().await;
        outbox.prepare().await.unwrap();
        let row = SiteRow { details: Some("[\"\u{1f600}\"]"), target: "user:\u{e9}", ..SiteRow::new("caf\u{e9}") };
        insert(&store, &[row]).await;
        // A site that binds its texts as binary, in UTF-8.
        let connection = store.connect();
        let texts = ["caf\u{e9}", "[\"\u{1f600}\"]", "user:\u{e9}"].map(str::as_bytes);
        connection.execute("INSERT INTO ws_outbox (action, details, target) VALUES (?, ?, ?)", texts).unwrap();
        let rows = read(&outbox).await;
        assert_eq!(rows.len(), 2);
        for row in &rows {
            let read = row.texts.as_ref().unwrap();
            let read = [&read.action, read.details.as_ref().unwrap(), &read.target].map(Vec::as_slice);
            assert_eq!(read, texts, "{encoding}");
        }
        outbox.fail(&[(rows[0].id, "caf\u{e9}".to_owned())]).await.unwrap();
        assert_eq!(store.failed().await, [("caf\u{e9}".to_owned(), "caf\u{e9}".to_owned())]);
    }
}

#[tokio::test]
async fn a_row_with_null_in_a_table_that_was_made_by_hand_stops_no_other() {
    let store = Sqlite::create().await;
    store
        .connect()
        .execute_batch("CREATE TABLE ws_outbox (id INTEGER PRIMARY KEY, action, details, target, cluster, created)")
        .unwrap();
    let outbox = store.outbox().await;
    outbox.prepare().await.unwrap();
    let connection = store.connect();
    connection
        .execute_batch("INSERT INTO ws_outbox (action, target) VALUES ('a', NULL), (NULL, 'all'), (NULL, NULL)")
        .unwrap();
    insert(&store, &[SiteRow::new("good")]).await;
    let rows = read(&outbox).await;
    assert_eq!(actions(&rows), ["a", "", "", "good"]);
    assert_eq!(rows[0].texts.as_ref().unwrap().target, b"");
    assert!(rows[..3].iter().all(|row| row.age.is_zero()), "nothing is known of their age");
    // Another node starts, which removes nothing.
    connection.execute_batch("UPDATE ws_outbox SET id = 0 WHERE id = 1").unwrap();
    outbox.prepare().await.unwrap();
    let rows = read(&outbox).await;
    assert_eq!(actions(&rows), ["a", "", "", "good"]);
    let [failing @ .., good] = &*ids(&rows) else { panic!("no rows") };
    let failed: Vec<_> = failing.iter().map(|row| (*row, "for a test".to_owned())).collect();
    outbox.fail(&failed).await.unwrap();
    outbox.remove(&[*good]).await.unwrap();
    assert_eq!(read(&outbox).await, []);
    assert_eq!(store.failed().await.len(), 3);
}
