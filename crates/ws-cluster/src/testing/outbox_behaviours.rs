//! The behaviours that every outbox has, each as a function of an empty store.

use std::{sync::Arc, time::Duration};

use super::outbox::{CLUSTER, LIMITS, OutboxStore, SiteRow, SiteTransaction, actions, ids, insert, read};
use crate::outbox::{Outbox, OutboxRow, ReadLimits, RowId};

async fn prepared(store: &impl OutboxStore) -> Arc<dyn Outbox> {
    let outbox = store.outbox().await;
    outbox.prepare().await.unwrap();
    outbox
}

pub async fn an_empty_outbox_has_no_rows(store: impl OutboxStore) {
    let outbox = prepared(&store).await;
    outbox.prepare().await.unwrap();
    assert_eq!(read(&outbox).await, []);
    outbox.remove(&[]).await.unwrap();
    outbox.fail(&[]).await.unwrap();
    assert_eq!(store.failed().await, []);
}

pub async fn committed_rows_are_read_in_the_order_of_their_ids(store: impl OutboxStore) {
    let outbox = prepared(&store).await;
    let mut transaction = store.begin().await;
    transaction.insert(SiteRow { details: Some("[1]"), target: "user:ann", ..SiteRow::new("first") }).await;
    transaction.insert(SiteRow::new("second")).await;
    transaction.commit().await;
    insert(&store, &[SiteRow::new("third")]).await;
    let rows = read(&outbox).await;
    assert_eq!(actions(&rows), ["first", "second", "third"]);
    assert!(rows.is_sorted_by(|one, next| one.id.id < next.id.id), "{rows:?}");
    let texts = rows[0].texts.as_ref().unwrap();
    assert_eq!((texts.details.as_deref(), &*texts.target), (Some(&b"[1]"[..]), &b"user:ann"[..]));
    assert_eq!(rows[1].texts.as_ref().unwrap().details, None);
    assert_eq!(rows[0].size, 5 + 3 + 8);
    assert!(rows.iter().all(|row| row.age < Duration::from_secs(60)), "{rows:?}");
    // Reading changes nothing.
    assert_eq!(ids(&read(&outbox).await), ids(&rows));
}

pub async fn rows_of_open_and_rolled_back_transactions_are_not_read(store: impl OutboxStore) {
    let outbox = prepared(&store).await;
    let mut transaction = store.begin().await;
    transaction.insert(SiteRow::new("open")).await;
    assert_eq!(read(&outbox).await, []);
    transaction.roll_back().await;
    assert_eq!(read(&outbox).await, []);
    let mut transaction = store.begin().await;
    transaction.insert(SiteRow::new("later")).await;
    assert_eq!(read(&outbox).await, []);
    transaction.commit().await;
    assert_eq!(actions(&read(&outbox).await), ["later"]);
}

pub async fn a_transaction_that_commits_late_is_read_with_its_lower_ids<S: OutboxStore>(store: S) {
    if !S::IS_PARALLEL {
        return;
    }
    let outbox = prepared(&store).await;
    let mut slow = store.begin().await;
    slow.insert(SiteRow::new("slow")).await;
    insert(&store, &[SiteRow::new("quick")]).await;
    let quick = read(&outbox).await;
    assert_eq!(actions(&quick), ["quick"]);
    outbox.remove(&ids(&quick)).await.unwrap();
    insert(&store, &[SiteRow::new("next")]).await;
    slow.commit().await;
    let rows = read(&outbox).await;
    assert_eq!(actions(&rows), ["slow", "next"]);
    assert!(rows[0].id.id < quick[0].id.id);
}

pub async fn removed_rows_are_gone_and_the_others_stay(store: impl OutboxStore) {
    let outbox = prepared(&store).await;
    insert(&store, &["a", "b", "c", "d"].map(SiteRow::new)).await;
    let rows = ids(&read(&outbox).await);
    outbox.remove(&[rows[0], rows[2]]).await.unwrap();
    assert_eq!(actions(&read(&outbox).await), ["b", "d"]);
    outbox.remove(&rows[..3]).await.unwrap();
    assert_eq!(actions(&read(&outbox).await), ["d"]);
    insert(&store, &[SiteRow::new("e")]).await;
    assert_eq!(actions(&read(&outbox).await), ["d", "e"]);
    assert_eq!(store.failed().await, []);
}

pub async fn a_removal_does_not_wait_for_open_transactions<S: OutboxStore>(store: S) {
    if !S::IS_PARALLEL {
        return;
    }
    let outbox = prepared(&store).await;
    let mut before = store.begin().await;
    before.insert(SiteRow::new("before")).await;
    insert(&store, &["a", "b", "c", "d"].map(SiteRow::new)).await;
    let mut after = store.begin().await;
    after.insert(SiteRow::new("after")).await;
    let rows = ids(&read(&outbox).await);
    outbox.remove(&rows[..3]).await.unwrap();
    outbox.fail(&[(rows[3], "for a test".to_owned())]).await.unwrap();
    before.commit().await;
    after.commit().await;
    assert_eq!(actions(&read(&outbox).await), ["before", "after"]);
}

pub async fn a_row_with_another_stamp_is_not_removed(store: impl OutboxStore) {
    let outbox = prepared(&store).await;
    insert(&store, &[SiteRow::new("a")]).await;
    let row = read(&outbox).await[0].id;
    // A removed row had the same number, before the database was started again.
    let former = RowId { stamp: row.stamp - 1, ..row };
    outbox.remove(&[former]).await.unwrap();
    outbox.fail(&[(former, "for a test".to_owned())]).await.unwrap();
    assert_eq!(actions(&read(&outbox).await), ["a"]);
    assert_eq!(store.failed().await, []);
}

pub async fn failed_rows_move_once_with_their_reasons(store: impl OutboxStore) {
    let outbox = prepared(&store).await;
    let long = "why? ".repeat(1_000);
    insert(&store, &["a", "b", "c"].map(SiteRow::new)).await;
    let rows = ids(&read(&outbox).await);
    let failed = [(rows[0], "it's \"wrong\" \u{1f600}".to_owned()), (rows[2], long.clone())];
    for _ in 0..2 {
        outbox.fail(&failed).await.unwrap();
        assert_eq!(actions(&read(&outbox).await), ["b"]);
        let moved = [("a".to_owned(), failed[0].1.clone()), ("c".to_owned(), long.clone())];
        assert_eq!(store.failed().await, moved);
    }
}

pub async fn two_nodes_may_move_and_remove_the_same_rows(store: impl OutboxStore) {
    let [one, other] = [prepared(&store).await, prepared(&store).await];
    for round in 0..10 {
        insert(&store, &["a", "b", "c", "d"].map(SiteRow::new)).await;
        let rows = ids(&read(&one).await);
        let failed: Vec<_> = rows[..2].iter().map(|row| (*row, "for a test".to_owned())).collect();
        let (ahead, behind) = (failed.clone(), failed.into_iter().rev().collect::<Vec<_>>());
        let (first, second) = tokio::join!(one.fail(&ahead), other.fail(&behind));
        first.and(second).unwrap();
        let (first, second) = tokio::join!(one.remove(&rows), other.remove(&rows[1..]));
        first.and(second).unwrap();
        assert_eq!(read(&one).await, []);
        assert_eq!(store.failed().await.len(), 2 * (round + 1));
    }
}

pub async fn rows_of_other_clusters_stay(store: impl OutboxStore) {
    let outbox = prepared(&store).await;
    let of = |action, cluster| SiteRow { cluster: Some(cluster), ..SiteRow::new(action) };
    insert(&store, &[of("own", CLUSTER), of("other", "shop"), SiteRow::new("any")]).await;
    let rows = read(&outbox).await;
    assert_eq!(actions(&rows), ["own", "any"]);
    outbox.remove(&ids(&rows)).await.unwrap();
    assert_eq!(actions(&outbox.read("shop", LIMITS).await.unwrap().rows), ["other"]);
}

pub async fn a_read_is_bounded_by_the_number_and_the_size_of_rows(store: impl OutboxStore) {
    let outbox = prepared(&store).await;
    let text = |size: usize| format!("[\"{}\"]", "x".repeat(size - 4));
    let (small, medium, large) = (text(100), text(20_000), text(60_000));
    let row = |details| SiteRow { details: Some(details), ..SiteRow::new("abcdefg") };
    insert(&store, &[row(&medium), row(&small), row(&large), row(&medium), row(&small)]).await;
    let overhead = 10;
    let sizes = |rows: &[OutboxRow]| {
        rows.iter()
            .map(|row| (row.size - overhead, row.texts.as_ref().map(|texts| texts.details.as_ref().unwrap().len())))
            .collect::<Vec<_>>()
    };
    let all =
        [(20_000, Some(20_000)), (100, Some(100)), (60_000, Some(60_000)), (20_000, Some(20_000)), (100, Some(100))];
    let read = async |limits| {
        let read = outbox.read(CLUSTER, limits).await.unwrap();
        (sizes(&read.rows), read.has_more)
    };
    assert_eq!(read(LIMITS).await, (all.to_vec(), false));
    assert_eq!(read(ReadLimits { rows: 2, ..LIMITS }).await, (all[..2].to_vec(), true));
    assert_eq!(read(ReadLimits { size: 1, ..LIMITS }).await, (all[..1].to_vec(), true), "the first row is returned");
    assert_eq!(read(ReadLimits { size: 50_000, ..LIMITS }).await, (all[..2].to_vec(), true));
    // The texts of a row that is too large are not read, and count nothing.
    let mut unread = all.to_vec();
    unread[2].1 = None;
    let limits = ReadLimits { size: 50_000, row_size: 50_000, ..LIMITS };
    assert_eq!(read(limits).await, (unread, false));
}

pub async fn texts_are_kept_as_they_are(store: impl OutboxStore) {
    let outbox = prepared(&store).await;
    let details = format!("[\"{}\\u0000'\\\"\u{1f600}\u{e9}\",1.0,12345678901234567890] ", "\u{df}".repeat(150_000));
    let target = "property:na%20me=\u{65e5}\u{672c} '\"\\%";
    insert(&store, &[SiteRow { details: Some(&details), target, ..SiteRow::new("\u{e4}/\u{1f44b} ") }]).await;
    let rows = read(&outbox).await;
    let texts = rows[0].texts.as_ref().unwrap();
    assert!(texts.details.as_deref() == Some(details.as_bytes()), "the details have changed");
    assert_eq!(texts.target, target.as_bytes());
    assert_eq!(texts.action, "\u{e4}/\u{1f44b} ".as_bytes());
}

pub async fn every_call_survives_dropped_tables(store: impl OutboxStore) {
    let outbox = prepared(&store).await;
    let row = RowId { id: 1, stamp: 1 };
    store.drop_tables().await;
    outbox.prepare().await.unwrap();
    store.drop_tables().await;
    assert_eq!(read(&outbox).await, []);
    store.drop_tables().await;
    outbox.remove(&[row]).await.unwrap();
    store.drop_tables().await;
    outbox.fail(&[(row, "for a test".to_owned())]).await.unwrap();
    insert(&store, &[SiteRow::new("a")]).await;
    assert_eq!(actions(&read(&outbox).await), ["a"]);
}
