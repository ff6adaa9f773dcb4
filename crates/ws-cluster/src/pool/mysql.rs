//! The pool in MySQL or MariaDB: the statements, and the handling of a session if one of them fails. Statements run one
//! by one in autocommit, because a read in a transaction would show an old beat.

use std::{fmt, time::Duration};

use async_trait::async_trait;
use mysql_async::{Params, Row, Value};

use super::{Announcement, Lease, NodeRow, Pool, PoolError, PoolView, Refusal, stride};
use crate::mysql::{StatementError, StatementResult, Tables, Trouble, code};
use ws_cluster_core::{NodeId, Term};

/// InnoDB, because a MEMORY table is emptied by a restart and replicates badly. The statements are split at `;`.
const SCHEMA: &str = "\
CREATE TABLE IF NOT EXISTS ws_lease (
  cluster    VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL PRIMARY KEY,
  term       BIGINT UNSIGNED NOT NULL,
  master      BINARY(16) NULL,
  beat       BIGINT UNSIGNED NOT NULL,
  expires_at DATETIME(6) NOT NULL COMMENT 'UTC, for people: the election does not read it'
) ENGINE=InnoDB;

CREATE TABLE IF NOT EXISTS ws_node (
  ord        BIGINT UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY,
  cluster    VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  node       BINARY(16) NOT NULL,
  address    VARCHAR(255) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  joined     BIGINT UNSIGNED NULL,
  seen_at    DATETIME(6) NOT NULL COMMENT 'UTC',
  UNIQUE KEY ws_node_node (cluster, node),
  UNIQUE KEY ws_node_address (cluster, address)
) ENGINE=InnoDB;
";

/// Selects every column, so that tables of another version are found at once. Reads no row.
const PROBES: [&str; 2] = [
    "SELECT cluster, term, master, beat, expires_at FROM ws_lease LIMIT 0",
    "SELECT ord, cluster, node, address, joined, seen_at FROM ws_node LIMIT 0",
];

const READ_LEASE: &str = "SELECT term, master, beat FROM ws_lease WHERE cluster = ?";
const READ_NODES: &str = "\
SELECT ord, node, address, joined, TIMESTAMPDIFF(MICROSECOND, '1970-01-01', seen_at),
  TIMESTAMPDIFF(MICROSECOND, seen_at, UTC_TIMESTAMP(6))
FROM ws_node WHERE cluster = ? ORDER BY ord";

// An upsert would use a number of AUTO_INCREMENT at every refresh, so a refresh is an UPDATE. `seen_at` is the stamp
// too: if the clock has not moved past it, `seen_at` moves on by itself, unless the clock was set back by more than a
// second.
const REFRESH_NODE: &str = "\
UPDATE ws_node
SET address = ?, joined = COALESCE(?, joined),
  seen_at = IF(seen_at BETWEEN UTC_TIMESTAMP(6) AND UTC_TIMESTAMP(6) + INTERVAL 1 SECOND,
    seen_at + INTERVAL 1 MICROSECOND, UTC_TIMESTAMP(6))
WHERE cluster = ? AND node = ?";
const INSERT_NODE: &str = "\
INSERT INTO ws_node (address, joined, seen_at, cluster, node)
VALUES (?, ?, UTC_TIMESTAMP(6), ?, ?)";
const DISPLACE_NODE: &str = "DELETE FROM ws_node WHERE cluster = ? AND address = ? AND node <> ?";
const CLEAR_JOINED: &str = "UPDATE ws_node SET joined = NULL WHERE cluster = ? AND node = ?";
const REMOVE_NODE: &str = "DELETE FROM ws_node WHERE cluster = ? AND node = ?";

const RENEW: &str = "\
UPDATE ws_lease SET beat = beat + ?, expires_at = UTC_TIMESTAMP(6) + INTERVAL ? MICROSECOND
WHERE cluster = ? AND term = ? AND master = ?";
const TAKE_OVER: &str = "\
UPDATE ws_lease SET term = ?, master = ?, beat = beat + ?, expires_at = UTC_TIMESTAMP(6) + INTERVAL ? MICROSECOND
WHERE cluster = ? AND term = ? AND beat = ? AND master <=> ?";
const HAND_OVER: &str = "\
UPDATE ws_lease
SET term = term + 1, master = ?, beat = beat + ?, expires_at = UTC_TIMESTAMP(6) + INTERVAL ? MICROSECOND
WHERE cluster = ? AND term = ? AND master = ?";
// IGNORE would also hide every other failure.
const RESTORE: &str = "\
INSERT INTO ws_lease (cluster, term, master, beat, expires_at) VALUES (?, ?, ?, ?, UTC_TIMESTAMP(6))
ON DUPLICATE KEY UPDATE cluster = ws_lease.cluster";

/// The settings of a session, whatever the server's defaults are: each statement is its own transaction, nothing is
/// truncated silently, the engine is not replaced, and a statement that waits for a lock ends soon after its caller
/// gave up. A read sees what has committed and nothing else; a lower level than this one would show leases of open
/// transactions, and READ COMMITTED forbids writes if the binary log has statements.
const SESSION: [&str; 2] = [
    "SET autocommit = 1, sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION', innodb_lock_wait_timeout = 2",
    "SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ",
];

/// Number of attempts to announce a node while others announce themselves at the same address. It is enough for twenty
/// first starts at once.
const MAX_ATTEMPTS: usize = 10;

/// A pool in MySQL 5.6.5 and later or MariaDB 10.2 and later. It uses two tables, `ws_lease` and `ws_node`, which it
/// creates whenever they are missing. Its account needs SELECT, INSERT, UPDATE and DELETE on them, and CREATE unless
/// the tables were created by hand from [`schema`](Self::schema).
///
/// A pool survives a server that is down or restarts: each call dials again if it has to. On a replicated database, all
/// nodes of a cluster have to name the server that takes writes.
#[derive(Clone)]
pub struct MySqlPool(Tables);

impl MySqlPool {
    /// Returns a pool at `mysql://user:password@host:port/database`. The default port is 3306. In user and password,
    /// percent-encode everything but letters and digits. `mariadb://` is the same. The server is not dialled yet, so a
    /// database that is down does not cause an error here. The first statement then fails with
    /// [`PoolError::Unreachable`] and may be repeated.
    ///
    /// Options follow the database as `?name=value&name=value`:
    ///
    /// | option | meaning |
    /// |---|---|
    /// | `socket=PATH` | connects to this Unix socket |
    /// | `require_ssl=true` | TLS (feature `mysql-tls`); the server's certificate must name the host and come from a known authority |
    /// | `ssl_ca=PATH` | trusts the authorities in this file (PEM) and no others; `built_in_roots=true` adds those of browsers |
    /// | `ssl_hostname=NAME` | the name that the certificate has, if it is not the host's |
    /// | `ssl_cert=PATH`, `ssl_key=PATH` | the account's own certificate and key (PEM) |
    /// | `verify_ca=false` | accepts every certificate, so an attacker on the network can read everything |
    /// | `enable_cleartext_plugin=true` | sends the password in clear text if the server asks for that (PAM, LDAP); only with TLS |
    /// | `compression` | `fast`, `on`, `best` or `off` (default) |
    /// | `tcp_keepalive` | milliseconds of silence after which TCP probes the server; default 10,000 |
    /// | `max_allowed_packet`, `wait_timeout`, `stmt_cache_size`, `tcp_nodelay` | as in the driver, `mysql_async` |
    ///
    /// Accounts may use `mysql_native_password`, `caching_sha2_password`, `ed25519`, `parsec` and, on a socket,
    /// `unix_socket`. The error names any other plug-in.
    ///
    /// It uses at most 4 connections at a time, and usually one.
    ///
    /// # Errors
    /// Returns [`PoolError::Url`] if the URL is malformed, names no database or has an unknown option, or if a file of
    /// certificates cannot be read. The text never repeats the password.
    pub async fn connect(url: &str) -> Result<Self, PoolError> {
        Ok(Self(Tables::connect(url, SCHEMA, &SESSION).map_err(PoolError::Url)?))
    }

    /// Returns a pool over connections that the application already has. They must be in autocommit, with the isolation
    /// level REPEATABLE READ (the server's default), and at least two must be free at any time: a lease that cannot be renewed for want of a connection is lost. Connections are
    /// returned unchanged. A connection whose statement was abandoned is closed.
    pub fn from_pool(pool: mysql_async::Pool) -> Self {
        Self(Tables::from_pool(pool, SCHEMA))
    }

    /// Returns the same pool for a process that only reads it: missing tables are read as empty and not created.
    #[must_use]
    pub fn creating_nothing(self) -> Self {
        Self(self.0.creating_nothing())
    }

    /// Returns the statements that create the tables, separated by `;`, for a database whose account may not CREATE.
    pub fn schema() -> &'static str {
        SCHEMA
    }

    async fn run(&self, sql: &str, params: Params) -> Result<StatementResult, StatementError> {
        self.0.run(sql, params).await
    }

    /// Runs a conditional UPDATE of the lease. Returns true if its condition held, since every such UPDATE changes
    /// `beat`.
    async fn change_lease(&self, sql: &str, params: Vec<Value>) -> Result<bool, PoolError> {
        Ok(self.run(sql, Params::Positional(params)).await?.affected > 0)
    }
}

impl fmt::Debug for MySqlPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The driver's `Debug` shows the password.
        f.debug_struct("MySqlPool").field("server", &self.0.server()).finish_non_exhaustive()
    }
}

#[async_trait]
impl Pool for MySqlPool {
    async fn prepare(&self) -> Result<(), PoolError> {
        // CREATE TABLE IF NOT EXISTS fails without the privilege even if the table exists, so the tables are probed
        // first.
        for probe in PROBES {
            self.run(probe, Params::Empty).await?;
        }
        Ok(())
    }

    async fn read(&self, cluster: &str) -> Result<PoolView, PoolError> {
        let read = async {
            let lease = self.run(READ_LEASE, (cluster,).into()).await?;
            Ok::<_, StatementError>((lease, self.run(READ_NODES, (cluster,).into()).await?))
        };
        let (lease, nodes) = match read.await {
            Err(error) if error.code() == Some(code::NO_SUCH_TABLE) && !self.0.creates() => {
                return Ok(PoolView::default());
            }
            read => read?,
        };
        Ok(PoolView {
            lease: lease.rows.into_iter().map(lease_of).next().transpose()?,
            nodes: nodes.rows.into_iter().map(node_of).collect::<Result<_, _>>()?,
        })
    }

    async fn announce(&self, cluster: &str, announcement: &Announcement) -> Result<(), PoolError> {
        let Announcement { node, address, joined } = announcement;
        let row = (address, joined, cluster, node.as_bytes());
        for _ in 0..MAX_ATTEMPTS {
            let missing = match self.run(REFRESH_NODE, row.into()).await {
                // The row does not exist: `seen_at` changes in any other case.
                Ok(outcome) if outcome.affected == 0 => true,
                Ok(_) => return Ok(()),
                Err(error) if error.code() == Some(code::DUPLICATE_KEY) => false,
                Err(error) => return Err(error.into()),
            };
            self.run(DISPLACE_NODE, (cluster, address, node.as_bytes()).into()).await?;
            if missing {
                match self.run(INSERT_NODE, row.into()).await {
                    Ok(_) => return Ok(()),
                    Err(error) if error.code() == Some(code::DUPLICATE_KEY) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Err(PoolError::Failed(format!("two nodes announce themselves at {address}").into()))
    }

    async fn renew(&self, cluster: &str, term: Term, master: NodeId, lease: Duration) -> Result<bool, PoolError> {
        let master = master.as_bytes();
        let params = vec![stride().into(), micros(lease).into(), cluster.into(), term.into(), master.into()];
        self.change_lease(RENEW, params).await
    }

    async fn take_over(
        &self,
        cluster: &str,
        seen: &Lease,
        max_seen: Term,
        master: NodeId,
        lease: Duration,
    ) -> Result<Option<Term>, PoolError> {
        // The condition fixes the stored term, so the next one is known here.
        let Some(term) = seen.term.max(max_seen).checked_add(1) else { return Ok(None) };
        let set = [term.into(), master.as_bytes().into(), stride().into(), micros(lease).into()];
        let seen_master = seen.master.map(|node| *node.as_bytes()).into();
        let condition = [cluster.into(), seen.term.into(), seen.beat.into(), seen_master];
        let won = self.change_lease(TAKE_OVER, set.into_iter().chain(condition).collect()).await?;
        Ok(won.then_some(term))
    }

    async fn hand_over(
        &self,
        cluster: &str,
        term: Term,
        master: NodeId,
        successor: Option<NodeId>,
        lease: Duration,
    ) -> Result<bool, PoolError> {
        let set = [successor.map(|node| *node.as_bytes()).into(), stride().into(), micros(lease).into()];
        let condition = [cluster.into(), term.into(), master.as_bytes().into()];
        self.change_lease(HAND_OVER, set.into_iter().chain(condition).collect()).await
    }

    async fn restore(&self, cluster: &str, term: Term, master: Option<NodeId>) -> Result<(), PoolError> {
        self.run(RESTORE, (cluster, term, master.map(|node| *node.as_bytes()), stride()).into()).await?;
        Ok(())
    }

    async fn clear_joined(&self, cluster: &str, node: NodeId) -> Result<(), PoolError> {
        self.run(CLEAR_JOINED, (cluster, node.as_bytes()).into()).await?;
        Ok(())
    }

    async fn remove(&self, cluster: &str, node: NodeId) -> Result<(), PoolError> {
        self.run(REMOVE_NODE, (cluster, node.as_bytes()).into()).await?;
        Ok(())
    }
}

impl From<StatementError> for PoolError {
    fn from(failure: StatementError) -> Self {
        match failure.trouble() {
            Trouble::Refused => Self::Unreachable(Refusal(failure.to_string()).into()),
            Trouble::Unreachable => Self::Unreachable(failure.into()),
            Trouble::Failed => Self::Failed(failure.into()),
        }
    }
}

fn lease_of(row: Row) -> Result<Lease, PoolError> {
    let (term, master, beat): (_, Option<Vec<u8>>, _) = mysql_async::from_row_opt(row).map_err(malformed)?;
    Ok(Lease { term, master: master.map(node_id).transpose()?, beat })
}

fn node_of(row: Row) -> Result<NodeRow, PoolError> {
    let (ord, node, address, joined, stamp, age): (_, _, _, _, i64, i64) =
        mysql_async::from_row_opt(row).map_err(malformed)?;
    // Negative if the server's clock was set back.
    let age = Duration::from_micros(age.try_into().unwrap_or(0));
    Ok(NodeRow { ord, node: node_id(node)?, address, joined, stamp: stamp.cast_unsigned(), age })
}

fn node_id(bytes: Vec<u8>) -> Result<NodeId, PoolError> {
    bytes.try_into().map(NodeId::from_bytes).map_err(|_| PoolError::Failed("a node id is not 16 bytes long".into()))
}

fn malformed(error: mysql_async::FromRowError) -> PoolError {
    PoolError::Failed(Box::new(error))
}

fn micros(duration: Duration) -> u64 {
    // For people only, so an absurd lease need not be exact. It stays in the range of DATETIME.
    duration.as_micros().min(1 << 50) as u64
}
