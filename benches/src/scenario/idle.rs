//! The cost of an idle connection: anonymous memory of the server, before and after clients have connected.

use std::{thread::sleep, time::Duration};

use benches::Result;

use super::Stage;
use crate::{
    load::order::Order,
    peers::{Ours, Peer},
};

/// Time for a server to return memory that only its handshakes needed. Allocators wait for ten seconds.
const REST: Duration = Duration::from_secs(12);

/// Time after a burst after which memory should be as before.
const AFTER_BURST: Duration = Duration::from_secs(30);

/// Number of rounds of sixteen messages to every client.
const BURST: usize = 50;

/// Returns the kilobytes (1024 bytes) per connection. The clients must not be connected yet.
pub(crate) fn measure(stage: &mut Stage, clients: usize) -> Result<f64> {
    let before = stage.server.memory()?;
    stage.connect(clients)?;
    sleep(REST);
    per_connection(stage, before, clients)
}

/// Returns the same figure, and again some time after all clients got and sent many messages at once.
pub(crate) fn measure_burst(clients: usize) -> Result<(f64, f64)> {
    let ours = Ours::default();
    let mut stage = Stage::set(&ours)?;
    let before = stage.server.memory()?;
    let idle = measure(&mut stage, clients)?;
    let publishes = stage.all(ours.publish(16), 16, BURST);
    stage.cost(&Order::FanOut(publishes))?;
    let message = Ours::action("echo");
    stage.cost(&Order::Echo { message, clients, answers: 1, rounds: 10 })?;
    sleep(AFTER_BURST);
    Ok((idle, per_connection(&stage, before, clients)?))
}

/// Returns the memory per connection of a server that needed `before` without any.
fn per_connection(stage: &Stage, before: u64, clients: usize) -> Result<f64> {
    Ok((stage.server.memory()? as f64 - before as f64) / 1024.0 / clients as f64)
}
