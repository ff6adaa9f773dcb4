//! Statements on tables of this program's own, which are created if they are missing, and the handling of a session if a
//! statement fails.

use std::{sync::Arc, time::Duration};

use futures_util::FutureExt;
use mysql_async::{
    Conn, Opts, Params, PoolConstraints, PoolOpts, QueryResult, Row,
    prelude::{Protocol, Queryable},
};

use super::{Database, guarded, is_permanent, parse, plain};

/// Maximum number of sessions. A node runs one or two statements at a time; the others replace sessions that hang.
const MAX_SESSIONS: usize = 4;
/// Time after which an idle session beyond the first is closed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// Number of attempts at a statement that other sessions kept from running. It is enough for twenty first starts at
/// once.
const MAX_ATTEMPTS: usize = 10;

/// Error codes of the server, from the manuals of MySQL and MariaDB.
pub(crate) mod code {
    pub(crate) const TABLE_EXISTS: u16 = 1050;
    pub(crate) const DUPLICATE_KEY: u16 = 1062;
    pub(crate) const NO_SUCH_TABLE: u16 = 1146;
    pub(crate) const LOCK_WAIT_TIMEOUT: u16 = 1205;
    pub(crate) const DEADLOCK: u16 = 1213;

    /// Returns true if the server cannot or will not serve this node now, whatever the statement is.
    pub(crate) fn is_refusal(code: u16) -> bool {
        match code {
            // Too many connections, in total or of the user.
            1040 | 1203 | 1226 => true,
            // Shutting down, read-only, session killed or timed out.
            1053 | 1290 | 1317 | 1792 | 1836 | 1927 | 4031 => true,
            // Galera: not part of the primary component, commit refused.
            1047 | 1180 => true,
            code => crate::mysql::is_login_refusal(code),
        }
    }

    /// Returns true if creating a table can fail with this code because another session creates it at the same time.
    /// The table exists, which the storage engine reports in several forms, or is locked.
    pub(crate) fn is_creation_race(code: u16) -> bool {
        matches!(code, 1005 | 1007 | 1412 | 1684 | DUPLICATE_KEY | LOCK_WAIT_TIMEOUT | DEADLOCK)
    }
}

/// Tables in a database, and the sessions for their statements.
#[derive(Clone)]
pub(crate) struct Tables {
    sessions: mysql_async::Pool,
    /// `host:port` or the socket's path, for errors; `None` for a pool of the application's.
    server: Option<Arc<str>>,
    /// The statements that create the tables, separated by `;`.
    schema: &'static str,
    /// True if missing tables are created.
    creates: bool,
}

/// What runs on one session.
#[derive(Clone, Copy)]
enum Work<'a> {
    Statement(&'a str, &'a Params),
    Transaction(&'a [(String, Params)]),
}

impl Tables {
    /// Opens the database that `url` names, without dialling it. Each session begins with the statements of `setup`.
    ///
    /// The error says what is wrong with the URL, and repeats no value of it.
    pub(crate) fn connect(url: &str, schema: &'static str, setup: &[&str]) -> Result<Self, String> {
        let Database { options, server } = parse(url)?;
        let pool = PoolOpts::new()
            // A reset would drop the prepared statements at each return of a connection.
            .with_reset_connection(false)
            .with_constraints(PoolConstraints::new(1, MAX_SESSIONS).expect("1 is at most MAX_SESSIONS"))
            .with_inactive_connection_ttl(IDLE_TIMEOUT);
        let opts: Opts = options.pool_opts(pool).setup(setup.to_vec()).into();
        Ok(Self { sessions: mysql_async::Pool::new(opts), server: Some(server.into()), schema, creates: true })
    }

    /// Uses sessions of the application, which must be in autocommit.
    pub(crate) fn from_pool(sessions: mysql_async::Pool, schema: &'static str) -> Self {
        Self { sessions, server: None, schema, creates: true }
    }

    /// Returns the same tables for a process that creates none.
    pub(crate) fn creating_nothing(self) -> Self {
        Self { creates: false, ..self }
    }

    /// Returns true if missing tables are created.
    pub(crate) fn creates(&self) -> bool {
        self.creates
    }

    /// Returns the server, for errors and debugging.
    pub(crate) fn server(&self) -> Option<&str> {
        self.server.as_deref()
    }

    /// Runs one statement, by the text protocol if it has no parameters. If the tables are missing, it creates them and
    /// tries once more. If the server rolled the statement back because of other sessions, it tries again.
    pub(crate) async fn run(&self, sql: &str, params: Params) -> Result<StatementResult, StatementError> {
        self.repeat(Work::Statement(sql, &params)).await
    }

    /// Runs statements in one transaction, as [`run`](Self::run) runs one. Either all of them take effect or none does.
    pub(crate) async fn transaction(&self, statements: &[(String, Params)]) -> Result<(), StatementError> {
        self.repeat(Work::Transaction(statements)).await.map(drop)
    }

    async fn repeat(&self, work: Work<'_>) -> Result<StatementResult, StatementError> {
        let mut created = false;
        let mut attempt = 1;
        loop {
            let outcome = match work {
                Work::Statement(sql, params) => self.run_once(sql, params.clone()).await,
                Work::Transaction(statements) => self.run_all(statements).await,
            };
            match outcome {
                Err(error) if error.code() == Some(code::NO_SUCH_TABLE) && !created && self.creates => {
                    created = true;
                    self.create(error).await?;
                }
                Err(error) if error.code() == Some(code::DEADLOCK) && attempt < MAX_ATTEMPTS => attempt += 1,
                outcome => return outcome,
            }
        }
    }

    async fn run_all(&self, statements: &[(String, Params)]) -> Result<StatementResult, StatementError> {
        let mut session = Session::open(self).await?;
        let all = async {
            session.run("START TRANSACTION", Params::Empty).await?;
            for (sql, params) in statements {
                session.run(sql, params.clone()).await?;
            }
            session.run("COMMIT", Params::Empty).await
        };
        // A session whose transaction is open is cut, which rolls the transaction back.
        let done = guarded(all).await.map_err(|error| StatementError::of(self, error))?;
        session.close();
        Ok(done)
    }

    async fn run_once(&self, sql: &str, params: Params) -> Result<StatementResult, StatementError> {
        let mut session = Session::open(self).await?;
        let outcome = guarded(session.run(sql, params)).await.map_err(|error| StatementError::of(self, error));
        // After an answer of the server, even an error of the statement, the session can be used again.
        match &outcome {
            Ok(_) => session.close(),
            Err(error) if error.code().is_some_and(|code| !code::is_refusal(code)) => session.close(),
            Err(_) => {}
        }
        outcome
    }

    /// Creates the tables. `missing` is the error that reported them missing.
    async fn create(&self, missing: StatementError) -> Result<(), StatementError> {
        for statement in self.schema.split(';').map(str::trim).filter(|statement| !statement.is_empty()) {
            let mut attempt = 1;
            while let Err(error) = self.run_once(statement, Params::Empty).await {
                match error.code() {
                    Some(code::TABLE_EXISTS) => break,
                    Some(code) if code::is_creation_race(code) && attempt < MAX_ATTEMPTS => attempt += 1,
                    Some(code) if !code::is_refusal(code) => {
                        return Err(StatementError::Tables { missing: Box::new(missing), cause: Box::new(error) });
                    }
                    _ => return Err(error),
                }
            }
        }
        Ok(())
    }
}

/// The result of a statement.
pub(crate) struct StatementResult {
    pub(crate) rows: Vec<Row>,
    pub(crate) affected: u64,
}

/// A connection while a statement runs on it. If it is dropped before [`close`](Self::close), by an error or because
/// the caller's time is over, the connection is cut at once. The driver only does so before the answer begins. Within
/// an answer the driver reads the rest first, without a limit, and a server that falls silent there would use up the
/// pool.
struct Session(Option<Conn>);

impl Session {
    async fn open(tables: &Tables) -> Result<Self, StatementError> {
        let mut conn = guarded(tables.sessions.get_conn()).await.map_err(|error| StatementError::of(tables, error))?;
        // This pool changes nothing in a session, and a reset would drop the prepared statements.
        conn.reset_connection(false);
        Ok(Self(Some(conn)))
    }

    async fn run(&mut self, sql: &str, params: Params) -> mysql_async::Result<StatementResult> {
        let Some(conn) = &mut self.0 else { unreachable!("only `close` takes the connection, and it takes `self`") };
        // A statement that is different each time would push others out of the cache of prepared ones.
        if matches!(params, Params::Empty) {
            return collected(conn.query_iter(sql).await?).await;
        }
        collected(conn.exec_iter(sql, params).await?).await
    }

    /// Returns the connection to the driver's pool.
    fn close(mut self) {
        drop(self.0.take());
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(conn) = self.0.take() {
            // The first poll marks the connection as disconnected, which keeps it out of the pool even if the driver's
            // quit message cannot be sent at once.
            let _ = guarded(conn.disconnect()).now_or_never();
        }
    }
}

async fn collected<P: Protocol>(mut result: QueryResult<'_, '_, P>) -> mysql_async::Result<StatementResult> {
    let affected = result.affected_rows();
    let rows = result.collect().await?;
    result.drop_result().await?;
    Ok(StatementResult { rows, affected })
}

/// The reason why a statement failed, before it is converted to an error of the caller.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StatementError {
    #[error("{server}: {}", plain(.cause))]
    Statement { server: Arc<str>, cause: mysql_async::Error },
    #[error(
        "{missing}, and creating it failed: {cause}; create the tables by hand from the schema that \
         `ws-server pool --schema` prints"
    )]
    Tables { missing: Box<StatementError>, cause: Box<StatementError> },
}

impl StatementError {
    fn of(tables: &Tables, cause: mysql_async::Error) -> Self {
        Self::Statement { server: tables.server.clone().unwrap_or_else(|| "MySQL".into()), cause }
    }

    /// Returns the server's code, if the server answered with an error.
    pub(crate) fn code(&self) -> Option<u16> {
        match self {
            Self::Statement { cause: mysql_async::Error::Server(error), .. } => Some(error.code),
            _ => None,
        }
    }

    /// Returns what the failure means for the caller.
    pub(crate) fn trouble(&self) -> Trouble {
        use mysql_async::Error;
        match self {
            Self::Statement { cause: Error::Server(error), .. } if code::is_refusal(error.code) => Trouble::Refused,
            Self::Statement { cause: Error::Server(error), .. }
                if [code::LOCK_WAIT_TIMEOUT, code::DEADLOCK].contains(&error.code) =>
            {
                Trouble::Unreachable
            }
            Self::Statement { cause, .. } if is_permanent(cause) => Trouble::Refused,
            Self::Statement { cause: Error::Io(_) | Error::Driver(_), .. } => Trouble::Unreachable,
            Self::Statement { .. } | Self::Tables { .. } => Trouble::Failed,
        }
    }
}

/// What a failed statement means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// The server answers and refuses this process for now.
    Refused,
    /// The server does not answer, or the statement could not run because of others.
    Unreachable,
    /// The server answered, but not as the tables should.
    Failed,
}
