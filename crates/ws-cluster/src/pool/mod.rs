//! The pool: the shared list of the cluster's nodes and the lease of its master, as a trait, with the rules that
//! every implementation keeps. What is read from it is decided upon in `cluster`; nothing here decides.

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

/// Why a pool could not answer. After an error the outcome of the statement is unknown: it may have taken effect.
/// Callers read again instead of assuming either.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PoolError {
    /// The URL or path cannot name a pool; trying again will not help.
    #[error("malformed pool URL: {0}")]
    Url(String),
    /// The store does not answer or refuses us. It is tried again by whoever runs the pool.
    #[error("the pool's database {verb}: {0}", verb = verb(.0.as_ref()))]
    Unreachable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The store answered, but not as its tables should.
    #[error("the pool's database failed: {0}")]
    Failed(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// What an unreachable store does.
fn verb(cause: &(dyn std::error::Error + Send + Sync + 'static)) -> &'static str {
    if cause.is::<Refusal>() { "refuses" } else { "does not answer" }
}

/// Why a store that answers does not serve us now: it is read-only, lets the account not in, and the like.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refusal(String);

/// The store that a cluster shares. Every method is one statement (or one that is as good as one): it took effect
/// wholly or not at all, and a conditional one says whether its condition held. Callers put a time limit on each
/// call and drop the future when it passes; an implementation then makes sure that a half-used session is not used
/// again.
///
/// `cluster` names the cluster, 1 to 64 bytes of ASCII: several clusters can share one store.
#[async_trait]
pub trait Pool: Send + Sync + 'static {
    /// Whether other processes can take part. Then a cluster needs an address for each node, and a key.
    fn is_shared(&self) -> bool {
        true
    }

    /// Makes the tables where they are missing. Safe when several nodes start at once. Called again whenever the
    /// store lost them.
    async fn prepare(&self) -> Result<(), PoolError>;

    /// Reads the lease and all nodes of `cluster`.
    async fn read(&self, cluster: &str) -> Result<PoolView, PoolError>;

    /// Inserts the node's row, or refreshes its `seen_at`, address, protocols and `joined` where it stands (keeping
    /// its `ord`). Gives the row another [`stamp`](NodeRow::stamp), even if the clock stood still or went back. A row of another node with the same address is removed: its process is gone.
    async fn announce(&self, cluster: &str, announcement: &Announcement) -> Result<(), PoolError>;

    /// Moves the [`beat`](Lease::beat) by a random stride where the lease has this term and owner; `false` where it has
    /// not (the owner is fenced).
    async fn renew(&self, cluster: &str, term: Term, owner: NodeId, lease: Duration) -> Result<bool, PoolError>;

    /// Compare and set: if the lease stands at exactly `seen.term`, `seen.beat` and `seen.master`, sets
    /// `term = max(term, max_seen) + 1` and `owner`, moves the beat by a random stride and returns the new term; `None` if
    /// the lease moved on. The owner counts because a database that failed over to a replica can come to the same term a
    /// second time.
    async fn take_over(
        &self,
        cluster: &str,
        seen: &Lease,
        max_seen: Term,
        owner: NodeId,
        lease: Duration,
    ) -> Result<Option<Term>, PoolError>;

    /// The owner passes the lease on: where it has this term and owner, sets `term + 1` and the successor (`None` releases
    /// it) and moves the beat by a random stride. `false` where it has not.
    async fn hand_over(
        &self,
        cluster: &str,
        term: Term,
        owner: NodeId,
        successor: Option<NodeId>,
        lease: Duration,
    ) -> Result<bool, PoolError>;

    /// Puts a lease row in place where there is none, with this term and owner and a random `beat`; an existing row
    /// stays.
    async fn restore(&self, cluster: &str, term: Term, owner: Option<NodeId>) -> Result<(), PoolError>;

    /// Forgets that the node is joined: its link to the master was lost.
    async fn clear_joined(&self, cluster: &str, node: NodeId) -> Result<(), PoolError>;

    /// Removes the node's row.
    async fn remove(&self, cluster: &str, node: NodeId) -> Result<(), PoolError>;
}

/// How far a write of the lease moves its beat: a number that is drawn anew each time, so that a row that fell back to an
/// older state does not come to a beat that somebody has read. A signed column of 64 bits overflows after two centuries
/// of renewals, one a second.
fn stride() -> u64 {
    // A counter is what is left without randomness.
    1 + u64::from(getrandom::u32().unwrap_or_default() >> 2)
}

/// Opens the pool that `url` names:
///
/// - `memory:`, a new one in this process, for a cluster of one;
/// - `sqlite:PATH`, a file that is made where it is missing, for processes on one machine (feature `sqlite`);
/// - `mysql://user:password@host:port/database`, for MySQL and MariaDB (feature `mysql`); `mariadb://` is the same. It
///   is not dialled yet. [`MySqlPool::connect`] tells more.
///
/// # Errors
/// [`PoolError::Url`] where the URL is malformed or its feature is not compiled in; the text says what to give and
/// never repeats a password. For SQLite, whose file is opened here, also the other errors.
pub async fn open(url: &str) -> Result<Arc<dyn Pool>, PoolError> {
    open_as(url, true).await
}

/// Opens the pool that `url` names for a process that only reads it: like [`open`], but it creates no file and no table,
/// now or later. Missing tables are read as empty.
///
/// # Errors
/// As for [`open`], and [`PoolError::Unreachable`] if an SQLite file is missing.
pub async fn open_existing(url: &str) -> Result<Arc<dyn Pool>, PoolError> {
    open_as(url, false).await
}

async fn open_as(url: &str, creates: bool) -> Result<Arc<dyn Pool>, PoolError> {
    #[cfg(not(any(feature = "mysql", feature = "sqlite-system")))]
    let _ = creates;
    let parts = url.split_once(':').map(|(scheme, rest)| (scheme.to_ascii_lowercase(), rest));
    match parts.as_ref().map(|(scheme, rest)| (scheme.as_str(), *rest)) {
        Some(("memory", "")) => Ok(Arc::new(MemoryPool::default())),
        Some(("memory", _)) => Err(PoolError::Url("nothing follows `memory:`".into())),
        #[cfg(feature = "sqlite-system")]
        Some(("sqlite", path)) => {
            // Two slashes may stand before a path, as in other tools' URLs.
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
        // What stands before the colon may be a user's name, but not a password.
        Some((scheme, _)) => Err(PoolError::Url(format!("unknown scheme `{scheme}:`; give {FORMS}"))),
        None => Err(PoolError::Url(format!("no scheme; give {FORMS}"))),
    }
}

/// The forms of a pool's URL, for errors.
const FORMS: &str = "memory:, sqlite:PATH or mysql://user:password@host:port/database";

/// What [`Server::builder`](crate::Server::builder) takes: any [`Pool`], or one that is shared already. Not to be implemented elsewhere.
pub trait IntoPool {
    /// The pool, shared.
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
    async fn malformed_urls_are_told_apart() {
        for (url, why) in [
            ("", "no scheme"),
            ("/var/lib/pool.db", "no scheme"),
            ("postgres://localhost/site", "unknown scheme `postgres:`"),
            ("memory:shared", "nothing follows"),
        ] {
            let text = refusal(url).await;
            assert!(text.contains(why), "{url}: {text}");
        }
        assert!(open("memory:").await.is_ok());
    }

    #[cfg(feature = "sqlite-system")]
    #[tokio::test]
    async fn malformed_sqlite_urls_are_told_apart() {
        for (url, why) in [("sqlite:", "a path"), ("sqlite://", "a path"), ("sqlite::memory:", "give `memory:`")] {
            let text = refusal(url).await;
            assert!(text.contains(why), "{url}: {text}");
        }
    }

    #[cfg(feature = "mysql")]
    #[tokio::test]
    async fn malformed_mysql_urls_are_told_apart_and_do_not_tell_the_password() {
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
