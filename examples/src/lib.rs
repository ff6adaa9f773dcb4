//! What `chat` and `publish` must agree on to be in one cluster: the pool and the key. Both are fit for an example
//! only; a cluster of several machines has its pool in MySQL, and its key is random and in no source.

use ws_cluster::{PoolError, SqlitePool};

/// What nodes and publishers prove to each other. At least 32 bytes.
pub const KEY: &str = "for the examples only, since all know it";

/// The pool that processes on one machine share.
pub async fn pool() -> Result<SqlitePool, PoolError> {
    SqlitePool::open(std::env::temp_dir().join("ws-cluster-examples.db")).await
}

/// The Rust of the pages, compiled and run as doctests.
#[cfg(doctest)]
mod pages {
    #[doc = include_str!("../../README.md")]
    struct Readme;

    #[doc = include_str!("../../docs/rust.md")]
    struct RustMd;
}
