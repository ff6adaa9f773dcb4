//! The one place where this crate reads the clock of log limits and of the cluster's core.

use std::time::Instant;

/// Returns the time of Tokio's clock, so that tests may pause it.
pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
