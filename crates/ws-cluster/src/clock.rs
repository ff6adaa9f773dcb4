//! The clock of log limits and of the cluster's core. This crate reads it only here.

use std::time::Instant;

/// Returns the time of Tokio's clock, so that tests may pause it.
pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
