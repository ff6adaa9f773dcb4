//! The pool: the shared list of the cluster's nodes and the master's lease, as a trait with the rules for every
//! implementation. The core decides what to do with it; the pool decides nothing.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;

use ws_cluster_core::{NodeId, Term};

pub use ws_cluster_core::{Announcement, Lease, NodeRow, PoolView};

pub(crate) mod memory;
#[cfg(feature = "mysql")]
mod mysql;
#[cfg(feature = "sqlite-system")]
mod sqlite;

pub use memory::MemoryPool;
#[cfg(feature = "mysql")]
pub use mysql::MySqlPool;
#[cfg(feature = "sqlite-system")]
pub use sqlite::SqlitePool;

/// The reason why a pool could not answer. The statement may have taken effect or not, so callers read again instead of
/// assuming either.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PoolError {
    /// The URL or path cannot name a pool. Another attempt fails in the same way.
    #[error("malformed pool URL: {0}")]
    Url(String),
    /// The store does not answer or refuses this node. Callers try again.
    #[error("the pool's database {verb}: {0}", verb = verb(.0.as_ref()))]
    Unreachable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The store answered, but not as its tables should.
    #[error("the pool's database failed: {0}")]
    Failed(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Returns the verb for an unreachable store.
fn verb(cause: &(dyn std::error::Error + Send + Sync + 'static)) -> &'static str {
    if cause.is::<Refusal>() { "refuses" } else { "does not answer" }
}

/// The reason why a store that answers refuses this node for now, such as a read-only database or a refused account.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refusal(String);

/// The store that a cluster shares. Every method is atomic: it takes effect completely or not at all. A conditional
/// method returns true if its condition was met. Callers put a time limit on each call, and drop the future when the
/// time is over. The implementation must then not use that session again.
///
/// `cluster` names the cluster, 1 to 64 bytes of ASCII. Several clusters can share one store.
///
/// # Errors
/// Each method returns [`PoolError::Unreachable`] if the store does not answer or refuses, and [`PoolError::Failed`] if its
/// tables are not as they should be. The caller then tries again later. If [`prepare`](Self::prepare) returns
/// [`PoolError::Url`], the node does not start.
#[async_trait]
pub trait Pool: Send + Sync + 'static {
    /// Returns true if other processes can use the store. A cluster then needs a key, and an address for each node.
    fn is_shared(&self) -> bool {
        true
    }

    /// Creates the tables that are missing. Several nodes may call it at once. It is called again if the store has lost
    /// its tables.
    async fn prepare(&self) -> Result<(), PoolError>;

    /// Reads the lease and all nodes of `cluster`.
    async fn read(&self, cluster: &str) -> Result<PoolView, PoolError>;

    /// Inserts the node's row, or updates its `seen_at`, address and `joined`; the row keeps its `ord`.
    /// Gives the row a new [`stamp`](NodeRow::stamp), even if the clock stood still or went back. Removes the row of
    /// another node with the same address, because the process of that node is gone.
    async fn announce(&self, cluster: &str, announcement: &Announcement) -> Result<(), PoolError>;

    /// Moves the [`beat`](Lease::beat) by a random stride if the lease has this term and master. Returns false
    /// otherwise, which means that the master is fenced.
    async fn renew(&self, cluster: &str, term: Term, master: NodeId, lease: Duration) -> Result<bool, PoolError>;

    /// Takes over the lease by compare-and-set: if it has exactly `seen.term`, `seen.beat` and `seen.master`, sets
    /// `term = max(term, max_seen) + 1` and `master`, moves the beat by a random stride and returns the new term.
    /// Returns `None` otherwise. The master is compared because a database that failed over to a replica can reach the
    /// same term twice.
    async fn take_over(
        &self,
        cluster: &str,
        seen: &Lease,
        max_seen: Term,
        master: NodeId,
        lease: Duration,
    ) -> Result<Option<Term>, PoolError>;

    /// Passes the lease on: if it has this term and master, sets `term + 1` and the successor (`None` releases the
    /// lease) and moves the beat by a random stride. Returns false otherwise.
    async fn hand_over(
        &self,
        cluster: &str,
        term: Term,
        master: NodeId,
        successor: Option<NodeId>,
        lease: Duration,
    ) -> Result<bool, PoolError>;

    /// Inserts a lease row with this term and master and a random `beat`, if there is none. An existing row stays.
    async fn restore(&self, cluster: &str, term: Term, master: Option<NodeId>) -> Result<(), PoolError>;

    /// Clears the node's `joined`, because its link to the master was lost.
    async fn clear_joined(&self, cluster: &str, node: NodeId) -> Result<(), PoolError>;

    /// Removes the node's row.
    async fn remove(&self, cluster: &str, node: NodeId) -> Result<(), PoolError>;
}

/// Returns the number by which a write of the lease moves its beat. It is random each time, so that a row that fell
/// back to an older state does not reach a beat that a node has read already. A signed column of 64 bits overflows
/// after two centuries of renewals, one a second.
fn stride() -> u64 {
    // Without randomness the beat is a counter.
    1 + u64::from(getrandom::u32().unwrap_or_default() >> 2)
}

/// Opens the pool that `url` names:
///
/// - `memory:`, a new pool in this process, for a cluster of one node;
/// - `sqlite:PATH`, a file, which is created if it is missing, for processes on one machine (feature `sqlite`);
/// - `mysql://user:password@host:port/database`, for MySQL and MariaDB (feature `mysql`); `mariadb://` is the same. It
///   is not dialled yet. See [`MySqlPool::connect`].
///
/// # Errors
/// Returns [`PoolError::Url`] if the URL is malformed or its feature is not compiled in. The text says what to give and
/// never repeats a password. An SQLite file is opened here, so it can also return the other errors.
pub async fn open(url: &str) -> Result<Arc<dyn Pool>, PoolError> {
    open_as(url, true).await
}

/// Opens the pool that `url` names for a process that only reads it. It works like [`open`] but never creates a file or
/// a table. Missing tables are read as empty.
///
/// # Errors
/// Returns the errors of [`open`], and [`PoolError::Unreachable`] if an SQLite file is missing.
pub async fn open_existing(url: &str) -> Result<Arc<dyn Pool>, PoolError> {
    open_as(url, false).await
}

async fn open_as(url: &str, creates: bool) -> Result<Arc<dyn Pool>, PoolError> {
    #[cfg(not(any(feature = "mysql", feature = "sqlite-system")))]
    let _ = creates;
    let parts = url.split_once(':').map(|(scheme, rest)| (scheme.to_ascii_lowercase(), rest));
    match parts.as_ref().map(|(scheme, rest)| (scheme.as_str(), *rest)) {
        Some(("memory", "")) => Ok(Arc::new(MemoryPool::default())),
        Some(("memory", _)) => Err(PoolError::Url("remove what follows `memory:`".into())),
        #[cfg(feature = "sqlite-system")]
        Some(("sqlite", path)) => {
            // Other tools' URLs have two slashes before a path.
            let path = path.strip_prefix("//").unwrap_or(path);
            match path {
                "" => Err(PoolError::Url("a path has to follow `sqlite:`".into())),
                ":memory:" => Err(PoolError::Url("for a pool in memory, give `memory:`".into())),
                path if creates => Ok(Arc::new(SqlitePool::open(path).await?)),
                path => Ok(Arc::new(SqlitePool::open_existing(path).await?)),
            }
        }
        #[cfg(feature = "mysql")]
        Some(("mysql" | "mariadb", _)) => {
            let pool = MySqlPool::connect(url).await?;
            Ok(Arc::new(if creates { pool } else { pool.creating_nothing() }))
        }
        #[cfg(not(feature = "sqlite-system"))]
        Some(("sqlite", _)) => Err(PoolError::Url("`sqlite:` needs a build with the feature `sqlite`".into())),
        #[cfg(not(feature = "mysql"))]
        Some(("mysql" | "mariadb", _)) => Err(PoolError::Url("`mysql:` needs a build with the feature `mysql`".into())),
        // The text before the colon may be a user's name, but not a password.
        Some((scheme, _)) => Err(PoolError::Url(format!("unknown scheme `{scheme}:`; give {FORMS}"))),
        None => Err(PoolError::Url(format!("no scheme; give {FORMS}"))),
    }
}

/// The forms of a pool's URL, for errors.
const FORMS: &str = "memory:, sqlite:PATH or mysql://user:password@host:port/database";

/// The argument of [`Server::builder`](crate::Server::builder): any [`Pool`], or a shared one.
pub trait IntoPool: sealed::Sealed {
    /// Returns the pool, shared.
    fn into_pool(self) -> Arc<dyn Pool>;
}

impl<P: Pool> IntoPool for P {
    fn into_pool(self) -> Arc<dyn Pool> {
        Arc::new(self)
    }
}

impl IntoPool for Arc<dyn Pool> {
    fn into_pool(self) -> Arc<dyn Pool> {
        self
    }
}

/// Keeps other crates from implementing [`IntoPool`].
mod sealed {
    use std::sync::Arc;

    use super::Pool;

    pub trait Sealed {}

    impl<P: Pool> Sealed for P {}

    impl Sealed for Arc<dyn Pool> {}
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn refusal(url: &str) -> String {
        match open(url).await {
            Err(error @ PoolError::Url(_)) => error.to_string(),
            Err(error) => panic!("{url} is malformed, but: {error}"),
            Ok(_) => panic!("{url} is malformed, but was opened"),
        }
    }

    #[tokio::test]
    async fn malformed_urls_are_distinguished() {
        for (url, why) in [
            ("", "no scheme"),
            ("/var/lib/pool.db", "no scheme"),
            ("postgres://localhost/site", "unknown scheme `postgres:`"),
            ("memory:shared", "remove what follows"),
        ] {
            let text = refusal(url).await;
            assert!(text.contains(why), "{url}: {text}");
        }
        assert!(open("memory:").await.is_ok());
    }

    #[cfg(feature = "sqlite-system")]
    #[tokio::test]
    async fn malformed_sqlite_urls_are_distinguished() {
        for (url, why) in [("sqlite:", "a path"), ("sqlite://", "a path"), ("sqlite::memory:", "give `memory:`")] {
            let text = refusal(url).await;
            assert!(text.contains(why), "{url}: {text}");
        }
    }

    #[cfg(feature = "mysql")]
    #[tokio::test]
    async fn malformed_mysql_urls_are_distinguished_and_no_password_is_shown() {
        for (url, why) in [
            ("mysql:site", "two slashes"),
            ("mysql://user:secret@localhost", "no database"),
            ("mysql://user:secret@localhost/site/", "a slash follows"),
            ("mariadb://user:secret@localhost/site?pace=fast", "pace"),
            ("mysql://user:12/secret@localhost/site", "percent-encode"),
        ] {
            let text = refusal(url).await;
            assert!(text.contains(why), "{url}: {text}");
            assert!(!text.contains("cret"), "{url}: {text}");
        }
    }

    #[cfg(feature = "mysql")]
    #[tokio::test]
    async fn a_mysql_pool_does_not_show_its_password() {
        let pool = MySqlPool::connect("mysql://user:s%40cret@[::1]/site").await.unwrap();
        assert_eq!(format!("{pool:?}"), r#"MySqlPool { server: Some("[::1]:3306"), .. }"#);
    }

    #[cfg(not(feature = "sqlite-system"))]
    #[tokio::test]
    async fn a_missing_feature_is_named() {
        assert!(refusal("sqlite:pool.db").await.contains("feature `sqlite`"));
    }
}
