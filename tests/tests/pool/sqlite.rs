//! Faults that only a file can have.

use std::{fs, os::unix::fs::PermissionsExt};

use ws_cluster::pool::{Pool, PoolError, PoolView, SqlitePool};

use crate::{
    CLUSTER, LEASE, announcement, elect, lease, node,
    store::{Sqlite, Store},
    view,
};

#[tokio::test]
async fn the_file_is_made_with_its_directory_for_its_user_only() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state/ws-cluster/pool.db");
    let pool = SqlitePool::open(&path).await.unwrap();
    pool.announce(CLUSTER, &announcement(1)).await.unwrap();
    for file in fs::read_dir(path.parent().unwrap()).unwrap() {
        let file = file.unwrap();
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{:?}", file.path());
    }
}

#[tokio::test]
async fn a_removed_file_is_made_anew() {
    let store = Sqlite::create().await;
    let pool = store.pool().await;
    elect(&pool, 1).await;
    fs::remove_dir_all(store.0.path()).unwrap();
    assert_eq!(view(&pool).await, PoolView::default());
    // Both are in the present file.
    let other = store.pool().await;
    elect(&other, 2).await;
    assert_eq!(lease(&pool).await, lease(&other).await);
}

#[tokio::test]
async fn a_url_that_names_no_pool_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("letter.txt");
    fs::write(&path, "Dear reader, ".repeat(100)).unwrap();
    let error = SqlitePool::open(&path).await.unwrap_err();
    assert!(matches!(error, PoolError::Failed(_)), "{error}");
    assert!(error.to_string().contains("letter.txt"), "{error}");

    let path = directory.path().join("other.db");
    rusqlite::Connection::open(&path).unwrap().execute_batch("CREATE TABLE ws_lease (id INTEGER)").unwrap();
    let error = SqlitePool::open(&path).await.unwrap_err();
    assert!(matches!(error, PoolError::Failed(_)), "{error}");

    let error = SqlitePool::open(directory.path()).await.unwrap_err();
    assert!(matches!(error, PoolError::Unreachable(_)), "{error}");
}

#[tokio::test]
async fn a_file_that_another_process_holds_is_waited_for() {
    let store = Sqlite::create().await;
    let pool = store.pool().await;
    elect(&pool, 1).await;
    let mut other = rusqlite::Connection::open(store.0.path().join("pool.db")).unwrap();
    let held = other.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate).unwrap();
    let error = pool.renew(CLUSTER, 1, node(1), LEASE).await.unwrap_err();
    assert!(matches!(error, PoolError::Unreachable(_)), "{error}");
    held.commit().unwrap();
    assert!(pool.renew(CLUSTER, 1, node(1), LEASE).await.unwrap());
}
