//! Faults that only a database server can have or cause.

use std::{collections::HashSet, pin::pin, sync::Arc, time::Duration};

use mysql_async::{Conn, Opts, OptsBuilder, prelude::Queryable};
use tests::MariaDb;
use tokio::time::timeout;
use ws_cluster::pool::{self, MySqlPool, Pool, PoolError, PoolView};

use crate::{
    CLUSTER, LEASE, announcement, elect, lease, node, row,
    store::{MySql, Store},
};

/// Repeats `read` until the database answers, as the users of a pool do.
async fn read_again(pool: &Arc<dyn Pool>) -> PoolView {
    let answer = async {
        loop {
            match pool.read(CLUSTER).await {
                Ok(view) => return view,
                Err(error) => assert!(matches!(error, PoolError::Unreachable(_)), "{error}"),
            }
        }
    };
    timeout(Duration::from_secs(30), answer).await.expect("the pool comes back")
}

#[tokio::test]
async fn a_pool_outlives_restarts_and_crashes_of_its_server() {
    let mut server = MariaDb::start().await;
    let pool = pool::open(&server.database().await).await.unwrap();
    let seen = elect(&pool, 1).await;
    for crash in [false, true] {
        if crash {
            server.kill().await
        } else {
            server.stop().await
        }
        let error = pool.renew(CLUSTER, seen.term, node(1), LEASE).await.unwrap_err();
        assert!(matches!(error, PoolError::Unreachable(_)), "{error}");
        assert!(!error.to_string().contains(MariaDb::PASSWORD), "{error}");
        server.start_again().await;
        assert_eq!(read_again(&pool).await.lease.unwrap().term, seen.term);
        assert!(pool.renew(CLUSTER, seen.term, node(1), LEASE).await.unwrap());
    }
}

#[tokio::test]
async fn a_server_that_is_down_at_first_is_no_dead_end() {
    let mut server = MariaDb::start().await;
    let url = server.database().await;
    server.stop().await;
    let pool = pool::open(&url).await.unwrap();
    let error = pool.prepare().await.unwrap_err();
    assert!(matches!(error, PoolError::Unreachable(_)), "{error}");
    server.start_again().await;
    read_again(&pool).await;
    elect(&pool, 1).await;
}

#[tokio::test]
async fn wrong_credentials_and_databases_are_refusals() {
    let server = MariaDb::shared().await;
    for url in [
        server.url(MariaDb::USER, "wr0ng", "mysql"),
        server.url("nobody", MariaDb::PASSWORD, "mysql"),
        server.url(MariaDb::USER, MariaDb::PASSWORD, "missing"),
    ] {
        let error = pool::open(&url).await.unwrap().prepare().await.unwrap_err();
        assert!(matches!(error, PoolError::Unreachable(_)), "{error}");
        assert!(!format!("{error} {error:?}").contains("wr0ng"), "{error:?}");
        assert!(!format!("{error} {error:?}").contains(MariaDb::PASSWORD), "{error:?}");
    }
}

/// Creates an account that may use tables but not create them, in a new database. Returns the URLs of both.
async fn restricted_account(name: &str) -> (MySql, String) {
    let store = MySql::create().await;
    let database = store.url.rsplit('/').next().unwrap();
    store.execute(&format!("CREATE USER '{name}'@'%' IDENTIFIED BY 'pw'")).await;
    store.execute(&format!("GRANT SELECT, INSERT, UPDATE, DELETE ON {database}.* TO '{name}'@'%'")).await;
    let url = MariaDb::shared().await.url(name, "pw", database);
    (store, url)
}

#[tokio::test]
async fn an_account_without_create_uses_tables_that_are_there() {
    let (store, url) = restricted_account("user_of_tables").await;
    for statement in MySqlPool::schema().split(';').filter(|statement| !statement.trim().is_empty()) {
        store.execute(statement).await;
    }
    let pool = pool::open(&url).await.unwrap();
    pool.prepare().await.unwrap();
    elect(&pool, 1).await;
}

#[tokio::test]
async fn an_account_without_create_is_told_what_to_do() {
    let (_store, url) = restricted_account("user_of_none").await;
    let error = pool::open(&url).await.unwrap().prepare().await.unwrap_err();
    assert!(matches!(error, PoolError::Failed(_)), "{error}");
    assert!(error.to_string().contains("ws-server pool --schema"), "{error}");
}

#[tokio::test]
async fn an_abandoned_statement_does_not_spoil_the_next() {
    let store = MySql::create().await;
    let pool = store.pool().await;
    let seen = elect(&pool, 1).await;
    let mut other = Conn::from_url(&store.url).await.unwrap();
    // More often than the pool has connections, because none may be lost.
    for _ in 0..10 {
        other.query_drop("LOCK TABLES ws_lease WRITE").await.unwrap();
        let renewal = pool.renew(CLUSTER, seen.term, node(1), LEASE);
        assert!(timeout(Duration::from_millis(20), renewal).await.is_err(), "the table is locked");
        // Sent before the renewal is answered. On the same connection it would read that answer as its own.
        let mut read = pin!(lease(&pool));
        assert!(timeout(Duration::from_millis(20), &mut read).await.is_err(), "the table is locked");
        other.query_drop("UNLOCK TABLES").await.unwrap();
        assert_eq!(read.await.master, Some(node(1)));
    }
    // The last of them may have taken effect or may do so now.
    assert!(pool.renew(CLUSTER, seen.term, node(1), LEASE).await.unwrap());
    assert!(lease(&pool).await.beat > seen.beat);
}

#[tokio::test]
async fn a_locked_row_is_given_up() {
    let store = MySql::create().await;
    let pool = store.pool().await;
    let seen = elect(&pool, 1).await;
    let mut other = Conn::from_url(&store.url).await.unwrap();
    other.query_drop("BEGIN").await.unwrap();
    other.query_drop("SELECT * FROM ws_lease FOR UPDATE").await.unwrap();
    let error = pool.renew(CLUSTER, seen.term, node(1), LEASE).await.unwrap_err();
    assert!(matches!(error, PoolError::Unreachable(_)), "{error}");
    // A plain read does not wait for the lock, and shows what is committed.
    assert_eq!(lease(&pool).await, seen);
}

#[tokio::test]
async fn statements_take_effect_on_a_server_without_autocommit() {
    let mut server = MariaDb::start().await;
    let mut admin = server.connect().await;
    admin.query_drop("SET GLOBAL autocommit = 0").await.unwrap();
    admin.query_drop("SET GLOBAL sql_mode = 'ANSI_QUOTES'").await.unwrap();
    drop(admin);
    let url = server.database().await;
    let (one, other) = (pool::open(&url).await.unwrap(), pool::open(&url).await.unwrap());
    elect(&one, 1).await;
    assert_eq!(lease(&other).await.master, Some(node(1)));
    server.stop().await;
}

#[tokio::test]
async fn a_read_shows_only_what_has_committed_whatever_the_servers_isolation_level_is() {
    let mut server = MariaDb::start().await;
    let mut admin = server.connect().await;
    admin.query_drop("SET GLOBAL TRANSACTION ISOLATION LEVEL READ UNCOMMITTED").await.unwrap();
    drop(admin);
    let url = server.database().await;
    let pool = pool::open(&url).await.unwrap();
    let seen = elect(&pool, 1).await;
    let mut other = Conn::from_url(&url).await.unwrap();
    other.query_drop("BEGIN").await.unwrap();
    other.query_drop("UPDATE ws_lease SET beat = beat + 1").await.unwrap();
    assert_eq!(lease(&pool).await, seen);
    drop(other);
    server.stop().await;
}

#[tokio::test]
async fn an_applications_own_pool_serves_as_well() {
    let url = MariaDb::shared().await.database().await;
    let sessions = mysql_async::Pool::from_url(&url).unwrap();
    let pool: Arc<dyn Pool> = Arc::new(MySqlPool::from_pool(sessions.clone()));
    elect(&pool, 1).await;
    drop(pool);
    sessions.disconnect().await.unwrap();
}

#[tokio::test]
async fn announcements_change_the_stamp_although_the_clock_stands_still_or_goes_back() {
    let url = MariaDb::shared().await.database().await;
    let mut stamps = HashSet::new();
    // The clocks of three servers, of which the second and the third are behind. None of them moves.
    for clock in ["1700000000.5", "1700000000.4", "1600000000.5"] {
        let opts =
            OptsBuilder::from_opts(Opts::from_url(&url).unwrap()).setup(vec![format!("SET timestamp = {clock}")]);
        let sessions = mysql_async::Pool::new(opts);
        let pool: Arc<dyn Pool> = Arc::new(MySqlPool::from_pool(sessions.clone()));
        for _ in 0..10 {
            pool.announce(CLUSTER, &announcement(1)).await.unwrap();
            assert!(stamps.insert(row(&pool, 1).await.stamp), "{clock}");
        }
        assert!(row(&pool, 1).await.age < Duration::from_millis(1), "{clock}");
        sessions.disconnect().await.unwrap();
    }
}

#[tokio::test]
async fn the_password_does_not_show() {
    let pool = MySqlPool::connect(&MariaDb::shared().await.database().await).await.unwrap();
    pool.prepare().await.unwrap();
    let shown = format!("{pool:?}");
    assert!(!shown.contains("s3cret"), "{shown}");
}
