//! One message, or several at once, to every client: the cost of a delivery, and how long it takes.

use std::fmt;

use benches::Result;

use super::Stage;
use crate::{load::order::Order, peers::Peer};

/// Number of messages delivered to warm up the server, and to measure it.
const WARM_UP: usize = 20_000;
const MEASURED: usize = 200_000;

/// A number of clients, and of messages at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Load {
    pub(crate) clients: usize,
    pub(crate) messages: usize,
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} × {}", self.clients, self.messages)
    }
}

/// The loads of the table.
pub(crate) const LOADS: [Load; 4] = [
    Load { clients: 1_000, messages: 1 },
    Load { clients: 1_000, messages: 16 },
    Load { clients: 5_000, messages: 1 },
    Load { clients: 5_000, messages: 16 },
];

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Figures {
    /// CPU time of the server per delivery, in microseconds.
    pub(crate) cpu: f64,
    pub(crate) per_second: f64,
    pub(crate) p50: f64,
    pub(crate) p99: f64,
}

/// Measures with the clients that are connected.
pub(crate) fn measure(stage: &mut Stage, peer: &dyn Peer, load: Load) -> Result<Figures> {
    stage.connect(load.clients)?;
    stage.settle();
    let rounds = |deliveries: usize| (deliveries / load.clients).max(5);
    let publish = || peer.publish(load.messages);
    stage.cost(&Order::FanOut(stage.all(publish(), load.messages, rounds(WARM_UP))))?;
    let order = Order::FanOut(stage.all(publish(), load.messages, rounds(MEASURED)));
    let (cost, report) = stage.cost(&order)?;
    let deliveries = report.done as f64;
    Ok(Figures {
        cpu: cost.as_secs_f64() * 1e6 / deliveries,
        per_second: deliveries / report.seconds,
        p50: report.p50_micros / 1000.0,
        p99: report.p99_micros / 1000.0,
    })
}
