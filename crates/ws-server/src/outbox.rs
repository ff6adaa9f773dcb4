//! The site's outbox, as the flags name it.

use std::{sync::Arc, time::Duration};

use ws_cluster::outbox::{self, Outbox, OutboxError};

use crate::{
    Failure, Outcome,
    cli::Run,
    pool::{Kind, Opened},
};

/// Time for the outbox's database to answer at the start.
const PATIENCE: Duration = Duration::from_secs(5);

/// Finds mistakes in the flags that show without a database.
pub(crate) fn check(run: &Run) -> Outcome {
    match &run.outbox_database {
        Some(_) if !run.outbox => Err(Failure::setup("--outbox-database needs --outbox")),
        Some(url) => named(url).map(drop),
        None => Ok(()),
    }
}

/// The outbox, if the flags want one.
pub(crate) fn open(run: &Run, opened: &Opened) -> Outcome<Option<Arc<dyn Outbox>>> {
    if !run.outbox {
        return Ok(None);
    }
    match &run.outbox_database {
        Some(url) => named(url).map(Some),
        None if opened.kind == Kind::Memory => {
            Err(Failure::setup("--outbox needs a database: give --outbox-database, or a --pool in MySQL or SQLite"))
        }
        None => named(&opened.url).map(Some),
    }
}

fn named(url: &str) -> Outcome<Arc<dyn Outbox>> {
    outbox::open(url).map_err(|error| Failure::setup(format!("--outbox-database: {error}")))
}

/// Finds tables and privileges that are missing before a row waits for them. A database that is down comes back.
pub(crate) async fn prepare(outbox: &dyn Outbox) -> Outcome {
    let prepared = tokio::time::timeout(PATIENCE, outbox.prepare()).await;
    match prepared.unwrap_or_else(|_| Err(OutboxError::Unreachable(format!("no answer in {PATIENCE:?}").into()))) {
        Ok(()) => Ok(()),
        Err(error @ OutboxError::Unreachable(_)) => {
            tracing::warn!("{error}; rows wait until it does not");
            Ok(())
        }
        Err(error) => Err(Failure::setup(format!("{error}; see --outbox"))),
    }
}
