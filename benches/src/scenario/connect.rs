//! Many clients that come at once, and many that come and go: how quickly they are accepted, and whether the memory
//! stays the same.

use std::{thread::sleep, time::Duration};

use benches::Result;

use super::Stage;
use crate::{
    load::order::{Order, Recipe},
    peers::{Ours, Peer},
};

pub(crate) const CLIENTS: usize = 15_000;
pub(crate) const IN_FLIGHT: usize = 512;

/// Time for a server to drop clients that are gone.
const REST: Duration = Duration::from_secs(3);

/// Time for a server to return memory that only its handshakes needed. Allocators wait for ten seconds.
const LONG_REST: Duration = Duration::from_secs(12);

#[derive(Clone, Copy, Debug)]
pub(crate) struct Rush {
    pub(crate) per_second: f64,
    /// Memory with all clients connected, the first and the second time, in MB.
    pub(crate) first: f64,
    pub(crate) last: f64,
}

/// Connects all clients, disconnects them, and connects them again.
pub(crate) fn rush(server: &Ours) -> Result<Rush> {
    let mut stage = Stage::set(server)?;
    let (mut seconds, mut memory) = (0.0, [0.0; 2]);
    for memory in &mut memory {
        seconds += stage.connect_by(CLIENTS, IN_FLIGHT)?.seconds;
        sleep(LONG_REST);
        *memory = megabytes(&stage)?;
        stage.disconnect()?;
        sleep(REST);
    }
    let [first, last] = memory;
    Ok(Rush { per_second: (memory.len() * CLIENTS) as f64 / seconds, first, last })
}

/// Returns the memory after a tenth of the connections and at their end, in MB, and the connections per second.
pub(crate) fn churn(connections: usize) -> Result<(f64, f64, f64)> {
    let mut stage = Stage::set(&Ours::default())?;
    // The sessions of the cache are used again and again.
    let recipe = Recipe { port: stage.server.port, ..Ours::default().recipe() };
    let part = connections / 10;
    let order = Order::Churn { recipe, message: Ours::action("echo"), count: part, in_flight: IN_FLIGHT };
    let (mut seconds, mut memory) = (0.0, Vec::new());
    for _ in 0..10 {
        let (_, report) = stage.cost(&order)?;
        seconds += report.seconds;
        sleep(REST);
        memory.push(megabytes(&stage)?);
    }
    Ok((memory[0], memory[9], connections as f64 / seconds))
}

fn megabytes(stage: &Stage) -> Result<f64> {
    Ok(stage.server.memory()? as f64 / 1024.0 / 1024.0)
}
