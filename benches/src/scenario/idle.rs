//! What a connection that says nothing takes: anonymous memory of the server, before and after clients have come.

use std::{thread::sleep, time::Duration};

use benches::Result;

use super::Stage;

/// Time for a server to return what only its handshakes took.
const REST: Duration = Duration::from_secs(2);

/// Kilobytes (1024 bytes) per connection. The clients must not have come yet.
pub(crate) fn measure(stage: &mut Stage, clients: usize) -> Result<f64> {
    let before = stage.server.memory();
    stage.connect(clients)?;
    sleep(REST);
    Ok(per_connection(stage, before, clients))
}

/// The same, of a server that had `before` without any.
pub(crate) fn per_connection(stage: &Stage, before: u64, clients: usize) -> f64 {
    (stage.server.memory() as f64 - before as f64) / 1024.0 / clients as f64
}
