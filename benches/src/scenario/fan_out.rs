//! One message, or several that are published together, to every client: the cost of a delivery, and how long it takes.

use std::fmt;

use benches::Result;

use super::Stage;
use crate::{
    load::order::{FanOut, Order},
    peers::Peer,
    series::Series,
};

/// Number of messages that are published together.
pub(crate) const TOGETHER: usize = 16;

/// Number of messages delivered to warm up the server, in at least one round.
const WARM_UP: usize = 40_000;

/// Minimum number of rounds that are measured.
const ROUNDS: usize = 2;

/// The way in which messages are published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// One message.
    One,
    /// A request for each of several messages, written together on one connection.
    Pipelined,
    /// A request for each of several messages, each on a connection of its own, all at once.
    Connections,
    /// One request with several messages.
    Batch,
}

impl Way {
    pub(crate) const ALL: [Self; 4] = [Self::One, Self::Pipelined, Self::Connections, Self::Batch];

    /// The ways in which a server is measured if all ways to publish several messages cost it the same.
    pub(crate) const USUAL: [Self; 2] = [Self::One, Self::Batch];

    /// The same for a server that has no request with several messages.
    pub(crate) const SEPARATE: [Self; 2] = [Self::One, Self::Pipelined];

    /// The ways in which several messages are published.
    pub(crate) const SEVERAL: [Self; 3] = [Self::Pipelined, Self::Connections, Self::Batch];

    pub(crate) fn messages(self) -> usize {
        if self == Self::One { 1 } else { TOGETHER }
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One => write!(f, "1 message"),
            Self::Pipelined => write!(f, "{TOGETHER} pipelined"),
            Self::Connections => write!(f, "{TOGETHER} from {TOGETHER} connections"),
            Self::Batch => write!(f, "{TOGETHER} in one request"),
        }
    }
}

/// A number of clients, and the way in which they get messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Load {
    pub(crate) clients: usize,
    pub(crate) way: Way,
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} clients, {}", self.clients, self.way)
    }
}

impl Load {
    /// Returns the load with which one send() per socket is compared to this one: one message, or joined messages.
    pub(crate) fn of_one_send(self) -> Self {
        Self { way: if self.way == Way::One { Way::One } else { Way::Batch }, ..self }
    }
}

/// The numbers of clients that are measured, unless others are given.
pub(crate) const CLIENTS: [usize; 3] = [1_000, 5_000, 15_000];

/// Returns the loads of a server that can be told to publish in these ways, so that clients are only ever added.
pub(crate) fn loads(clients: &[usize], ways: &[Way]) -> Vec<Load> {
    let mut clients = clients.to_vec();
    clients.sort_unstable();
    clients.iter().flat_map(|clients| ways.iter().map(|way| Load { clients: *clients, way: *way })).collect()
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Figures {
    /// CPU time of the server per delivery, in microseconds.
    pub(crate) cpu: f64,
    pub(crate) per_second: f64,
    pub(crate) p50: f64,
    pub(crate) p99: f64,
}

/// The figures of a server, a list for each round. It is empty if the round failed.
#[derive(Debug, Default)]
pub(crate) struct Rounds(pub(crate) Vec<Vec<(Load, Figures)>>);

impl Rounds {
    /// Returns a figure of a load in each round.
    pub(crate) fn series(&self, load: Load, of: impl Fn(&Figures) -> f64) -> Series {
        let in_round =
            |round: &Vec<(Load, Figures)>| Some(of(&round.iter().find(|(measured, _)| *measured == load)?.1));
        self.0.iter().map(in_round).collect()
    }
}

/// Measures all loads of a server, each for about `seconds`. The server is started for it.
pub(crate) fn measure_all(peer: &dyn Peer, clients: &[usize], seconds: f64) -> Result<Vec<(Load, Figures)>> {
    let mut stage = Stage::set(peer)?;
    loads(clients, peer.ways()).into_iter().map(|load| Ok((load, measure(&mut stage, peer, load, seconds)?))).collect()
}

/// Measures with the clients that are connected, and with more if necessary.
fn measure(stage: &mut Stage, peer: &dyn Peer, load: Load, seconds: f64) -> Result<Figures> {
    if stage.connect(load.clients)?.done > 0 {
        stage.settle();
    }
    let messages = load.way.messages();
    let (publish, connections) = match load.way {
        Way::One | Way::Batch => (peer.publish(messages), 1),
        Way::Pipelined => (peer.publish(1).repeat(messages), 1),
        Way::Connections => (peer.publish(1), messages),
    };
    let order =
        |stage: &Stage, rounds| Order::FanOut(FanOut { connections, ..stage.all(publish.clone(), messages, rounds) });
    let warm_up = order(stage, (WARM_UP / load.clients / messages).max(1));
    let (_, warm) = stage.cost(&warm_up)?;
    let each = warm.seconds / (warm.done as f64) * (load.clients * messages) as f64;
    let order = order(stage, ((seconds / each) as usize).max(ROUNDS));
    let (cost, report) = stage.cost(&order)?;
    let deliveries = report.done as f64;
    Ok(Figures {
        cpu: cost.as_secs_f64() * 1e6 / deliveries,
        per_second: deliveries / report.seconds,
        p50: report.p50_micros / 1000.0,
        p99: report.p99_micros / 1000.0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loads_add_clients_and_each_has_its_counterpart_of_one_send() {
        let loads = loads(&[5_000, 1_000], &Way::ALL);
        let clients: Vec<usize> = loads.iter().map(|load| load.clients).collect();
        assert_eq!(clients, [1_000, 1_000, 1_000, 1_000, 5_000, 5_000, 5_000, 5_000]);
        let ways: Vec<Way> = loads.iter().take(4).map(|load| load.of_one_send().way).collect();
        assert_eq!(ways, [Way::One, Way::Batch, Way::Batch, Way::Batch]);
    }
}
