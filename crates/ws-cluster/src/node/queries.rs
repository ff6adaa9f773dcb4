//! The driver's queries to the pool.

use tokio::time::timeout;

use super::{
    Shared,
    driver::{Driver, Event},
    link::LinkIdentity,
};
use crate::{
    clock::now,
    pool::{Pool, PoolError},
};
use ws_cluster_core::{Answer, Query};

impl Driver {
    pub(super) fn ask(&self, query: Query) {
        let pool = self.pool.clone();
        let shared = self.shared.clone();
        self.report(async move {
            let limit = shared.config.cluster.query_timeout;
            let asked = query.clone();
            let (stats, start) = (shared.stats.clone(), now());
            // The query runs in a task of its own, so that a panic of the pool counts as a failure.
            let answer = tokio::spawn(async move { timeout(limit, ask(&*pool, &shared, &asked)).await }).await;
            let why = match answer {
                Ok(Ok(Ok(answer))) => {
                    stats.pool_queries.observe(now().saturating_duration_since(start));
                    return Event::Answer(answer, None);
                }
                Ok(Ok(Err(error))) => error.to_string(),
                Ok(Err(_)) => "no answer in time".to_owned(),
                Err(panic) => panic.to_string(),
            };
            stats.metered.note(|counts| counts.pool_errors.add(1));
            tracing::debug!(why, ?query, "the pool failed");
            Event::Answer(Answer::Failed, Some(shortened(why)))
        });
    }

    /// Removes this node's row from the pool, if the database answers.
    pub(super) async fn leave_pool(&self) {
        let LinkIdentity { node, cluster, .. } = &self.shared.identity;
        let removed = timeout(self.shared.config.cluster.query_timeout, self.pool.remove(cluster, *node)).await;
        if !matches!(removed, Ok(Ok(()))) {
            tracing::warn!("this node's row stays in the pool until the master removes it");
        }
    }
}

async fn ask(pool: &dyn Pool, shared: &Shared, query: &Query) -> Result<Answer, PoolError> {
    let LinkIdentity { node, cluster, .. } = &shared.identity;
    let lease = shared.config.cluster.lease;
    Ok(match query {
        Query::Read => {
            let view = pool.read(cluster).await?;
            shared.greetings.list(view.nodes.iter().map(|row| &*row.address));
            Answer::View(view)
        }
        Query::Announce(announcement) => {
            pool.announce(cluster, announcement).await?;
            Answer::Done
        }
        Query::Renew { term, master } => Answer::Applied(pool.renew(cluster, *term, *master, lease).await?),
        Query::TakeOver { seen, max_seen } => {
            Answer::Term(pool.take_over(cluster, seen, *max_seen, *node, lease).await?)
        }
        Query::HandOver { term, successor } => {
            Answer::Applied(pool.hand_over(cluster, *term, *node, *successor, lease).await?)
        }
        Query::Restore { term, master } => {
            pool.restore(cluster, *term, *master).await?;
            Answer::Done
        }
        Query::ClearJoined(lost) => {
            pool.clear_joined(cluster, *lost).await?;
            Answer::Done
        }
        Query::Remove(dead) => {
            pool.remove(cluster, *dead).await?;
            Answer::Done
        }
    })
}

/// Shortens a database's text for a log line and the status page.
fn shortened(mut text: String) -> String {
    const MAX_LENGTH: usize = 300;
    text.truncate(text.floor_char_boundary(MAX_LENGTH));
    text
}
