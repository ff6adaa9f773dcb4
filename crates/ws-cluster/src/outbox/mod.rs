//! The transactional outbox: a table in the site's database. The site inserts a row in its own transaction, and the
//! cluster publishes the row once the transaction has committed.
//!
//! [`Outbox`] is the table, as a trait with the rules for every implementation. The rest is private: `row` makes a
//! message of a row, `poller` decides what to do next, and `task` does it.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;

mod memory;
#[cfg(feature = "mysql")]
mod mysql;
mod poller;
mod row;
#[cfg(test)]
mod simulation;
#[cfg(feature = "sqlite-system")]
mod sqlite;
mod task;

pub use memory::{MemoryOutbox, MemoryTransaction};
#[cfg(feature = "mysql")]
pub use mysql::MySqlOutbox;
#[cfg(feature = "sqlite-system")]
pub use sqlite::SqliteOutbox;

pub(crate) use task::{Trouble, run};

/// The reason why an outbox could not answer. The statement may have taken effect or not, so callers read again instead
/// of assuming either.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OutboxError {
    /// The URL or path cannot name an outbox. Another attempt fails in the same way.
    #[error("malformed URL of an outbox: {0}")]
    Url(String),
    /// The store does not answer or refuses this node for now. Callers try again.
    #[error("the outbox's database fails: {0}")]
    Unreachable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The store answered, but not as its tables should. Somebody has to change the tables or the account.
    #[error("the outbox cannot be used: {0}")]
    Failed(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Identifies a row for ever.
///
/// Some databases use the ids of removed rows again after a restart. The stamp tells such rows apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RowId {
    /// The row's number. Rows are published in its order.
    pub id: u64,
    /// When the row was inserted, in a unit of the store's choice.
    pub stamp: u64,
}

/// A committed row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutboxRow {
    /// Which row it is.
    pub id: RowId,
    /// The time since it was inserted, by the store's clock.
    pub age: Duration,
    /// The size of its texts in bytes.
    pub size: u64,
    /// Its texts; `None` if they exceed [`ReadLimits::row_size`].
    pub texts: Option<RowTexts>,
}

/// The answer to a read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OutboxRows {
    /// The rows, lowest ids first.
    pub rows: Vec<OutboxRow>,
    /// True if the limits may have left out rows.
    pub has_more: bool,
}

/// The texts of a row, as they are stored. They may be anything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RowTexts {
    /// The action.
    pub action: Vec<u8>,
    /// The details as JSON; `None` means no arguments.
    pub details: Option<Vec<u8>>,
    /// The target, in its text form or as JSON.
    pub target: Vec<u8>,
}

/// How much one read returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadLimits {
    /// Most rows.
    pub rows: usize,
    /// Most bytes of all rows together. The first row is returned even if it is larger.
    pub size: u64,
    /// Most bytes of one row. The texts of a larger row are not read.
    pub row_size: u64,
}

/// A table of messages that wait to be published, and a table of those that cannot be.
///
/// Rows belong to a cluster by its name, or to any cluster if they name none. Callers put a time limit on each call and
/// drop the future when the time is over. The implementation must then not use a half-used session again.
#[async_trait]
pub trait Outbox: Send + Sync + 'static {
    /// Creates the tables that are missing, and checks that this process may read and remove rows. Several nodes may
    /// call it at once.
    async fn prepare(&self) -> Result<(), OutboxError>;

    /// Reads rows of this cluster whose transactions have committed: those with the lowest ids, in the order of their
    /// ids. It does not wait for transactions that are open.
    async fn read(&self, cluster: &str, limits: ReadLimits) -> Result<OutboxRows, OutboxError>;

    /// Removes rows. A row that is gone already is no error, and a later row with the same number stays. It does not wait
    /// for transactions that have not touched these rows.
    async fn remove(&self, rows: &[RowId]) -> Result<(), OutboxError>;

    /// Moves rows to the table of those that failed, each with the reason, in one transaction. A row that is gone already
    /// is no error.
    async fn fail(&self, rows: &[(RowId, String)]) -> Result<(), OutboxError>;
}

/// Opens the outbox in the database that `url` names: `sqlite:PATH` (feature `sqlite`), or
/// `mysql://user:password@host:port/database` (feature `mysql`; `mariadb://` is the same), as
/// [`pool::open`](crate::pool::open). No database is dialled yet.
///
/// # Errors
/// Returns [`OutboxError::Url`] if the URL is malformed or its feature is not compiled in. The text never repeats a
/// password.
pub fn open(url: &str) -> Result<Arc<dyn Outbox>, OutboxError> {
    let parts = url.split_once(':').map(|(scheme, rest)| (scheme.to_ascii_lowercase(), rest));
    match parts.as_ref().map(|(scheme, rest)| (scheme.as_str(), *rest)) {
        #[cfg(feature = "sqlite-system")]
        Some(("sqlite", path)) => match path.strip_prefix("//").unwrap_or(path) {
            "" | ":memory:" => Err(OutboxError::Url("the path of a file has to follow `sqlite:`".into())),
            path => Ok(Arc::new(SqliteOutbox::open(path)?)),
        },
        #[cfg(feature = "mysql")]
        Some(("mysql" | "mariadb", _)) => Ok(Arc::new(MySqlOutbox::connect(url)?)),
        #[cfg(not(feature = "sqlite-system"))]
        Some(("sqlite", _)) => Err(OutboxError::Url("`sqlite:` needs a build with the feature `sqlite`".into())),
        #[cfg(not(feature = "mysql"))]
        Some(("mysql" | "mariadb", _)) => {
            Err(OutboxError::Url("`mysql:` needs a build with the feature `mysql`".into()))
        }
        // The text before the colon may be a user's name, but not a password.
        Some((scheme, _)) => Err(OutboxError::Url(format!("unknown scheme `{scheme}:`; give {FORMS}"))),
        None => Err(OutboxError::Url(format!("no scheme; give {FORMS}"))),
    }
}

/// The forms of an outbox's URL, for errors.
const FORMS: &str = "sqlite:PATH or mysql://user:password@host:port/database";

/// The argument of [`ServerBuilder::outbox`](crate::ServerBuilder::outbox): any [`Outbox`], or a shared one.
pub trait IntoOutbox: sealed::Sealed {
    /// Returns the outbox, shared.
    fn into_outbox(self) -> Arc<dyn Outbox>;
}

impl<O: Outbox> IntoOutbox for O {
    fn into_outbox(self) -> Arc<dyn Outbox> {
        Arc::new(self)
    }
}

impl IntoOutbox for Arc<dyn Outbox> {
    fn into_outbox(self) -> Arc<dyn Outbox> {
        self
    }
}

/// Keeps other crates from implementing [`IntoOutbox`].
mod sealed {
    use std::sync::Arc;

    use super::Outbox;

    pub trait Sealed {}

    impl<O: Outbox> Sealed for O {}

    impl Sealed for Arc<dyn Outbox> {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn malformed_urls_are_distinguished_and_no_password_is_shown() {
        for (url, why) in [
            ("", "no scheme"),
            ("/var/lib/site.db", "no scheme"),
            ("memory:", "unknown scheme `memory:`"),
            ("postgres://user:secret@localhost/site", "unknown scheme `postgres:`"),
            #[cfg(feature = "sqlite-system")]
            ("sqlite:", "the path of a file"),
            #[cfg(feature = "sqlite-system")]
            ("sqlite::memory:", "the path of a file"),
            #[cfg(feature = "mysql")]
            ("mysql://user:secret@localhost", "no database"),
            #[cfg(feature = "mysql")]
            ("mysql://user:12/secret@localhost/site", "percent-encode"),
        ] {
            let text = open(url).err().expect(url).to_string();
            assert!(text.contains(why), "{url}: {text}");
            assert!(!text.contains("cret"), "{url}: {text}");
        }
    }
}
