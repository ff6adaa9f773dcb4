//! The task that polls the outbox while this node is the master: it carries out the poller's steps.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::{
    sync::watch,
    time::{sleep_until, timeout},
};

use super::{
    Outbox, OutboxError, OutboxRows, RowId,
    poller::{Outcome, Poller, Step},
    row::LIMITS,
};
use crate::{
    clock::now,
    log_limit::{Excerpt, LogLimits, Outage, OutageLine},
    node::Submitter,
    stats::Stats,
};
use ws_cluster_core::{Degraded, Status};

/// Time limit of one call of the outbox.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// Maximum length of the shown reason, in characters.
const REASON_LENGTH: usize = 300;

/// The reason why the rows of the outbox wait, while its database fails; `None` on a node that does not poll. A
/// synchronous lock, held while the text is copied.
#[derive(Debug, Default)]
pub(crate) struct Trouble(Mutex<Option<String>>);

impl Trouble {
    pub(crate) fn get(&self) -> Option<String> {
        self.0.lock().clone()
    }

    fn set(&self, why: Option<&str>) {
        let mut known = self.0.lock();
        if known.as_deref() != why {
            *known = why.map(|why| why.chars().take(REASON_LENGTH).collect());
        }
    }
}

/// Polls the outbox while this node is the master, until the node ends.
pub(crate) async fn run(outbox: Arc<dyn Outbox>, cluster: Submitter, stats: Arc<Stats>, trouble: Arc<Trouble>) {
    let status = cluster.status();
    let task = Task {
        outbox,
        cluster,
        stats,
        trouble,
        poller: Poller::default(),
        read_at: now(),
        outage: Outage::default(),
        logs: LogLimits::default(),
    };
    task.run(status).await;
}

struct Task {
    outbox: Arc<dyn Outbox>,
    cluster: Submitter,
    stats: Arc<Stats>,
    trouble: Arc<Trouble>,
    poller: Poller,
    /// The time of the last read.
    read_at: Instant,
    outage: Outage,
    logs: LogLimits<()>,
}

impl Task {
    async fn run(mut self, mut status: watch::Receiver<Status>) {
        loop {
            if self.poller.is_between_rounds() && !self.leads(&status.borrow_and_update()) {
                self.poller.pause();
                self.note_backlog(&OutboxRows::default());
                // The next master polls.
                self.trouble.set(None);
                // An error means that the node has ended.
                if status.wait_for(|status| self.leads(status)).await.is_err() {
                    return;
                }
            }
            match self.poller.step(now()) {
                Step::Wait(until) => {
                    tokio::select! {
                        () = sleep_until(until.into()) => {}
                        // Another node may be the master now.
                        changed = status.changed() => if changed.is_err() { return },
                    }
                }
                step => {
                    if !self.carry_out(step).await {
                        return;
                    }
                }
            }
        }
    }

    /// Returns true if this node is to poll. A master that may not accept anything would only collect publishes.
    fn leads(&self, status: &Status) -> bool {
        status.master == Some(self.cluster.node()) && status.degraded != Some(Degraded::Isolated)
    }

    /// Carries out a step. Returns false if the node has ended.
    async fn carry_out(&mut self, step: Step) -> bool {
        let outbox = self.outbox.clone();
        let succeeded = match step {
            Step::Wait(_) => true,
            Step::Prepare => {
                let prepared = self.call(async move { outbox.prepare().await }).await;
                prepared.map(|()| self.poller.prepared()).is_some()
            }
            Step::Read => {
                let cluster = self.cluster.name().to_owned();
                let read = self.call(async move { outbox.read(&cluster, LIMITS).await }).await;
                read.map(|read| {
                    self.note_backlog(&read);
                    self.read_at = now();
                    self.poller.read(self.read_at, &read, |key| self.cluster.has_delivered(key));
                })
                .is_some()
            }
            Step::Publish { publishes, not_after } => {
                let ages: Vec<Duration> = publishes.iter().map(|publish| publish.age).collect();
                let items = publishes.into_iter().map(|publish| (publish.content, publish.key)).collect();
                let Some(acceptances) = self.cluster.submit_all(items, not_after).await else { return false };
                let mut outcomes = Vec::with_capacity(acceptances.len());
                for (acceptance, age) in acceptances.into_iter().zip(ages) {
                    // A dropped sender means that the time is over.
                    let accepted = matches!(acceptance.await, Ok(Ok(())));
                    outcomes.push(if accepted { Outcome::Accepted } else { Outcome::Open });
                    if accepted {
                        self.note_accepted(age);
                    }
                }
                self.poller.published(now(), &outcomes);
                true
            }
            Step::Remove(rows) => {
                let removed = self.call(async move { outbox.remove(&rows).await }).await;
                removed.map(|()| self.poller.removed(now())).is_some()
            }
            Step::Fail(rows) => {
                let failed = rows.clone();
                let moved = self.call(async move { outbox.fail(&failed).await }).await;
                moved
                    .map(|()| {
                        self.note_failed(&rows);
                        self.poller.moved(now());
                    })
                    .is_some()
            }
        };
        if !succeeded {
            self.poller.failed(now());
        }
        true
    }

    /// Makes one call of the outbox. Returns `None` if it failed. It runs in a task of its own, so that a panic counts as
    /// a failure.
    async fn call<T: Send + 'static>(
        &self,
        call: impl Future<Output = Result<T, OutboxError>> + Send + 'static,
    ) -> Option<T> {
        let (why, lasts) = match tokio::spawn(timeout(CALL_TIMEOUT, call)).await {
            Ok(Ok(Ok(answer))) => {
                self.trouble.set(None);
                if let Some(OutageLine::Over { failures, lasted }) = self.outage.succeeded(now()) {
                    tracing::info!(failures, ?lasted, "the outbox works again");
                }
                return Some(answer);
            }
            Ok(Ok(Err(error))) => (error.to_string(), !matches!(error, OutboxError::Unreachable(_))),
            Ok(Err(_)) => ("the outbox's database does not answer in time".to_owned(), false),
            Err(panic) => (panic.to_string(), true),
        };
        self.stats.metered.note(|counts| counts.outbox_errors.add(1));
        self.trouble.set(Some(&why));
        if let Some(OutageLine::Failing { failures }) = self.outage.failed(now()) {
            let why = Excerpt(&why);
            match lasts {
                true => tracing::error!(failures, "rows of the outbox wait, and it is tried again: {why}"),
                false => tracing::warn!(failures, "rows of the outbox wait, and it is tried again: {why}"),
            }
        }
        None
    }

    fn note_backlog(&self, read: &OutboxRows) {
        self.stats.metered.note(|counts| {
            let oldest = read.rows.iter().map(|row| row.age).max().unwrap_or_default();
            counts.outbox_backlog.store(read.rows.len() as u64, Ordering::Relaxed);
            counts.outbox_oldest.store(oldest.as_micros() as u64, Ordering::Relaxed);
        });
    }

    fn note_accepted(&self, age: Duration) {
        self.stats.metered.note(|counts| {
            counts.outbox_published.add(1);
            counts.outbox_delays.observe(age + now().saturating_duration_since(self.read_at));
        });
    }

    fn note_failed(&self, rows: &[(RowId, String)]) {
        self.stats.metered.note(|counts| counts.outbox_failed.add(rows.len() as u64));
        for (row, why) in rows {
            if let Some(line) = self.logs.due((), now()) {
                let (row, left_out) = (row.id, line.left_out);
                let why = Excerpt(why);
                tracing::warn!(
                    row,
                    left_out,
                    "a row of the outbox cannot be published, and is in ws_outbox_failed: {why}"
                );
            }
        }
    }
}
