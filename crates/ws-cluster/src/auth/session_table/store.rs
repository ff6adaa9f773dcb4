//! Looks up sessions in the site's MySQL with two prepared statements, within a time limit. The cache decides how long
//! an answer counts.

use std::{sync::Arc, time::Duration};

use mysql_async::{Conn, OptsBuilder, Params, Pool, PoolConstraints, PoolOpts, Row, Statement, prelude::Queryable};
use tokio::time::{Instant, timeout, timeout_at};

use super::{
    cache::{Answer, Outage, SessionQuestion, Store, StoreFailure},
    query::{AddressForm, Query},
    row,
};
use crate::{
    auth::Identity,
    log_limit::{Excerpt, LogLimits},
    mysql::{self, Database, caught, guarded},
};

/// Time to close a connection whose query took too long.
const DISCONNECT_TIMEOUT: Duration = Duration::from_millis(100);

/// The sessions in the site's MySQL.
#[derive(Clone)]
pub(super) struct MySqlSessions {
    options: OptsBuilder,
    pool: Pool,
    pub(super) session: Arc<Query>,
    pub(super) groups: Option<Arc<Query>>,
    pub(super) timeout: Duration,
    /// Limits the log lines about rows that are left out, by the server's code or the fault of the value.
    row_limits: Arc<LogLimits<(u16, &'static str)>>,
}

impl MySqlSessions {
    pub(super) fn new(database: Database, connections: usize, session: Query, timeout: Duration) -> Self {
        // TIMESTAMP is shown in the connection's time zone.
        let options = database.options.init(vec!["SET time_zone = '+00:00'"]);
        let pool = pool(options.clone(), connections);
        Self { options, pool, session: Arc::new(session), groups: None, timeout, row_limits: Arc::default() }
    }

    /// Limits the connections to the database, and so the queries at a time.
    pub(super) fn set_connections(&mut self, connections: usize) {
        self.pool = pool(self.options.clone(), connections);
    }

    async fn ask(&self, database: &mut Conn, question: &SessionQuestion) -> Answer {
        // Both statements are prepared before either is executed, so that a mistake in the second is found at once and
        // not with the first user. A connection prepares each only once.
        let session = prepare(database, &self.session, "session", 2).await?;
        let groups = match &self.groups {
            Some(query) => Some((query, prepare(database, query, "groups", 1).await?)),
            None => None,
        };
        let values = |form| Params::Positional(self.session.values(question, "", form));
        let mut form = AddressForm::Canonical;
        let mut found: Option<Row> = self.rows(database.exec_first(&session, values(form)).await)?;
        if found.is_none() && self.session.has_two_forms(question) {
            form = AddressForm::Mapped;
            found = self.rows(database.exec_first(&session, values(form)).await)?;
        }
        let Some(found) = found else { return Ok(None) };
        let mut columns = found.unwrap().into_iter();
        let user = match columns.next().map_or(Ok(None), row::text) {
            Ok(Some(user)) => user,
            Ok(None) => return Ok(None),
            Err(why) => {
                self.leave_out("session", "user (first column)", why);
                return Ok(None);
            }
        };
        let mut identity = Identity::user(&user).session(&question.session);
        match columns.next().map_or(Ok(None), row::expiry) {
            Ok(expires) => identity.expires = expires,
            Err(why) => {
                self.leave_out("session", "expires (second column)", why);
                return Ok(None);
            }
        }
        if let Some((query, statement)) = groups {
            let values = Params::Positional(query.values(question, &user, form));
            let names: Vec<Row> = self.rows(database.exec(&statement, values).await)?;
            for found in names {
                match found.unwrap().into_iter().next().map_or(Ok(None), row::text) {
                    Ok(name) => identity.groups.extend(name),
                    Err(why) => self.leave_out("groups", "name", why),
                }
            }
        }
        Ok(Some(identity))
    }

    /// Returns the result of a statement. If an error comes from the values in a row, the row is left out, and so the
    /// result is empty.
    fn rows<T: Default>(&self, outcome: mysql_async::Result<T>) -> Result<T, StoreFailure> {
        match outcome {
            Err(mysql_async::Error::Server(error)) if is_of_a_row(&error.state) => {
                if let Some(line) = self.row_limits.due((error.code, ""), std::time::Instant::now()) {
                    tracing::warn!(
                        left_out = line.left_out,
                        "a query of the session table fails on a row, which is left out: {}",
                        Excerpt(&error.to_string())
                    );
                }
                Ok(T::default())
            }
            outcome => outcome.map_err(failure),
        }
    }

    /// Logs a value that cannot be used, once per interval and cause. The row is not named, because the session's id is
    /// a secret.
    fn leave_out(&self, query: &'static str, column: &'static str, why: &'static str) {
        if let Some(line) = self.row_limits.due((0, why), std::time::Instant::now()) {
            tracing::warn!(
                left_out = line.left_out,
                "a row of the {query} query is left out, as if it were not there: its {column} {why}"
            );
        }
    }
}

impl Store for MySqlSessions {
    async fn look_up(&self, question: &SessionQuestion) -> Answer {
        let deadline = Instant::now() + self.timeout;
        let timed_out = |_| StoreFailure::from(Outage::TimedOut(self.timeout));
        let mut database =
            timeout_at(deadline, guarded(self.pool.get_conn())).await.map_err(timed_out)?.map_err(failure)?;
        let failure = match timeout_at(deadline, caught(self.ask(&mut database, question))).await {
            Ok(Ok(answer)) => return answer,
            Ok(Err(panicked)) => failure(panicked),
            Err(elapsed) => timed_out(elapsed),
        };
        // A connection that goes back to the pool would wait there for the rest of its answer. It is closed instead,
        // and the result does not matter.
        let _ = timeout(DISCONNECT_TIMEOUT, guarded(database.disconnect())).await;
        Err(failure)
    }
}

fn pool(options: OptsBuilder, connections: usize) -> Pool {
    // At least one, of which one is kept open.
    let constraints = PoolConstraints::new(1, connections.max(1)).unwrap_or_default();
    // A reset at every return would forget the prepared statements and the time zone.
    let pool = PoolOpts::default().with_constraints(constraints).with_reset_connection(false);
    Pool::new(options.pool_opts(pool))
}

/// Prepares `query`, which must have one to `columns` columns and the expected number of parameters.
async fn prepare(
    database: &mut Conn,
    query: &Query,
    name: &'static str,
    columns: usize,
) -> Result<Statement, StoreFailure> {
    let statement = database.prep(query.sql.as_str()).await.map_err(failure)?;
    let (found, meant) = (usize::from(statement.num_params()), query.parameters.len());
    if found != meant {
        return Err(StoreFailure::Misconfigured(format!(
            "the {name} query has {found} parameters where {meant} is meant: write one ?, or :names"
        )));
    }
    let found = usize::from(statement.num_columns());
    if !(1..=columns).contains(&found) {
        let meant = if columns == 1 { "one, the group's name," } else { "user, or user and expires," };
        return Err(StoreFailure::Misconfigured(format!(
            "the {name} query gives {found} columns where {meant} is meant"
        )));
    }
    Ok(statement)
}

/// Classifies an error: a fault of the database is temporary, and a fault of the configuration is not.
fn failure(error: mysql_async::Error) -> StoreFailure {
    match error {
        mysql_async::Error::Server(error) if is_permanent(error.code, &error.state) => {
            StoreFailure::Misconfigured(error.to_string())
        }
        error if mysql::is_permanent(&error) => StoreFailure::Misconfigured(mysql::plain(&error).to_string()),
        error => Outage::Database(error).into(),
    }
}

fn is_permanent(code: u16, state: &str) -> bool {
    /// Too many connections of this user, or too many queries in an hour. These are of class 42, but temporary.
    const PASSING: [u16; 2] = [1203, 1226];
    // Classes of SQLSTATE: not supported, cardinality, value, password, database, syntax or privilege.
    const PERMANENT: [&str; 6] = ["0A", "21", "22", "28", "3D", "42"];
    !PASSING.contains(&code) && PERMANENT.iter().any(|class| state.starts_with(class))
}

/// Returns true if a prepared statement fails because of the values in a row: a number out of range, invalid JSON, a
/// subquery that gives two rows.
fn is_of_a_row(state: &str) -> bool {
    state.starts_with("21") || state.starts_with("22")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_of_the_query_do_not_pass_and_those_of_the_database_do() {
        for (code, state) in [(1064, "42000"), (1146, "42S02"), (1054, "42S22"), (1045, "28000"), (1049, "42000")] {
            assert!(is_permanent(code, state), "{code}");
        }
        for (code, state) in [(1040, "08004"), (1203, "42000"), (1053, "08S01"), (1205, "HY000"), (1213, "40001")] {
            assert!(!is_permanent(code, state), "{code}");
        }
    }
}
