//! Many who come at once, and many who come and go: how quickly they are let in, and whether memory stays what it was.

use std::{thread::sleep, time::Duration};

use benches::Result;

use super::Stage;
use crate::{
    load::order::{Order, Recipe},
    peers::{Ours, Peer},
};

pub(crate) const CLIENTS: usize = 15_000;
pub(crate) const IN_FLIGHT: usize = 512;

/// Time for a server to part with clients that are gone.
const REST: Duration = Duration::from_secs(3);

#[derive(Clone, Copy, Debug)]
pub(crate) struct Rush {
    pub(crate) per_second: f64,
    /// Memory with all clients there, the first and the last time, in MB.
    pub(crate) first: f64,
    pub(crate) last: f64,
}

/// All of them come, go, and come again, a few times over.
pub(crate) fn rush(times: usize) -> Result<Rush> {
    let mut stage = Stage::set(&Ours::default())?;
    let (mut rates, mut memory) = (Vec::new(), Vec::new());
    for _ in 0..times {
        let report = stage.connect_by(CLIENTS, IN_FLIGHT)?;
        rates.push(report.done as f64 / report.seconds);
        sleep(REST);
        memory.push(megabytes(&stage));
        stage.disconnect()?;
        sleep(REST);
    }
    let per_second = super::median(rates).unwrap_or_default();
    Ok(Rush { per_second, first: memory[0], last: memory[memory.len() - 1] })
}

/// Memory after a tenth of so many connections and at their end, in MB, and connections a second.
pub(crate) fn churn(connections: usize) -> Result<(f64, f64, f64)> {
    let mut stage = Stage::set(&Ours::default())?;
    // Sessions are those of the cache again and again.
    let recipe = Recipe { port: stage.server.port, ..Ours::default().recipe() };
    let part = connections / 10;
    let order = Order::Churn { recipe, message: Ours::action("echo"), count: part, in_flight: IN_FLIGHT };
    let (mut seconds, mut memory) = (0.0, Vec::new());
    for _ in 0..10 {
        let (_, report) = stage.cost(&order)?;
        seconds += report.seconds;
        sleep(REST);
        memory.push(megabytes(&stage));
    }
    Ok((memory[0], memory[9], connections as f64 / seconds))
}

fn megabytes(stage: &Stage) -> f64 {
    stage.server.memory() as f64 / 1024.0 / 1024.0
}
