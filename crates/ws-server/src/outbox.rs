//! The site's outbox, as the flags name it.

use std::{sync::Arc, time::Duration};

use ws_cluster::outbox::{self, Outbox, OutboxError};

use crate::{
    Failure, Outcome,
    cli::Run,
    pool::{Kind, Opened},
};

/// Time limit for the first answer of the outbox's database.
const PATIENCE: Duration = Duration::from_secs(5);

/// Finds mistakes in the flags, as far as this is possible without the database.
pub(crate) fn check(run: &Run) -> Outcome {
    match &run.outbox_database {
        Some(_) if !run.outbox => Err(Failure::setup("--outbox-database needs --outbox")),
        Some(url) => named(url).map(drop),
        None => Ok(()),
    }
}

/// Opens the outbox, if the flags ask for one.
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

/// Checks that the tables and privileges exist, before rows need them. If the database does not answer, this only
/// warns.
pub(crate) async fn prepare(outbox: &dyn Outbox) -> Outcome {
    let prepared = tokio::time::timeout(PATIENCE, outbox.prepare()).await;
    match prepared.unwrap_or_else(|_| Err(OutboxError::Unreachable(format!("no answer in {PATIENCE:?}").into()))) {
        Ok(()) => Ok(()),
        Err(error @ OutboxError::Unreachable(_)) => {
            tracing::warn!("{error}; rows wait until the database answers");
            Ok(())
        }
        Err(error) => Err(Failure::setup(format!("{error}; see --outbox"))),
    }
}
