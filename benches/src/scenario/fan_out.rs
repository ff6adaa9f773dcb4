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

/// Number of messages delivered to warm up the server, in at least one publish.
const WARM_UP: usize = 40_000;

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

/// The figures of a server, a list for each slice. It lacks the loads that failed.
#[derive(Debug, Default)]
pub(crate) struct Slices(Vec<Vec<(Load, Figures)>>);

impl Slices {
    /// Returns a figure of a load in each slice.
    pub(crate) fn series(&self, load: Load, of: impl Fn(&Figures) -> f64) -> Series {
        let in_slice =
            |slice: &Vec<(Load, Figures)>| Some(of(&slice.iter().find(|(measured, _)| *measured == load)?.1));
        self.0.iter().map(in_slice).collect()
    }

    /// Returns how many slices lack some of the loads of a server, and the number of all slices.
    pub(crate) fn lacking(&self, clients: &[usize], peer: &dyn Peer) -> (usize, usize) {
        let loads = loads(clients, peer.ways());
        let lacks = |slice: &&Vec<(Load, Figures)>| slice.len() < loads.len();
        (self.0.iter().filter(lacks).count(), self.0.len())
    }

    /// Adds the slices of another round.
    pub(crate) fn extend(&mut self, round: Self) {
        self.0.extend(round.0);
    }
}

/// How long, and how often, servers that run side by side are measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// Number of slices of each load.
    pub(crate) slices: usize,
    /// Length of a slice, which has at least one publish.
    pub(crate) seconds: f64,
}

/// A server that runs beside others.
struct Side<'a> {
    peer: &'a dyn Peer,
    /// `None` once something has failed.
    stage: Option<Stage>,
    slices: Slices,
}

/// Measures the loads of servers that run at the same time on the same core. The servers take turns: each load is
/// measured for a slice on one server while the others are idle, then on the next, and back in the other order. So the
/// figures of a slice are parts of a second apart, and what slows the machine down slows all of them. Returns the slices
/// of each server.
pub(crate) fn measure_beside(peers: &[&dyn Peer], clients: &[usize], pace: Pace) -> Vec<Slices> {
    let mut sides: Vec<Side<'_>> = peers.iter().map(|peer| Side::start(*peer, pace.slices)).collect();
    let mut clients = clients.to_vec();
    clients.sort_unstable();
    for clients in clients {
        let loads = Way::ALL.map(|way| Load { clients, way });
        let orders: Vec<_> = sides.iter_mut().map(|side| side.prepare(clients, pace.seconds)).collect();
        for slice in 0..pace.slices {
            for load in loads {
                let mut turns: Vec<_> = sides.iter_mut().zip(&orders).collect();
                if slice % 2 == 1 {
                    turns.reverse();
                }
                for (side, orders) in turns {
                    let order = orders.iter().find(|(way, _)| *way == load.way);
                    order.into_iter().for_each(|(_, order)| side.measure(slice, load, order));
                }
            }
        }
    }
    sides.into_iter().map(|side| side.slices).collect()
}

impl<'a> Side<'a> {
    fn start(peer: &'a dyn Peer, slices: usize) -> Self {
        let stage = Stage::set(peer).inspect_err(|error| failed(peer, error)).ok();
        Self { peer, stage, slices: Slices((0..slices).map(|_| Vec::new()).collect()) }
    }

    /// Uses the server. After a failure nothing more is measured.
    fn attempt<T>(&mut self, action: impl FnOnce(&mut Stage, &dyn Peer) -> Result<T>) -> Option<T> {
        let outcome = action(self.stage.as_mut()?, self.peer);
        if let Err(error) = &outcome {
            failed(self.peer, error);
            self.stage = None;
        }
        outcome.ok()
    }

    /// Connects the clients that are missing, and warms the server up. Returns the order of a slice in each way.
    fn prepare(&mut self, clients: usize, seconds: f64) -> Vec<(Way, Order)> {
        let orders = self.attempt(|stage, peer| {
            stage.connect(clients)?;
            stage.settle();
            let ways = Way::ALL.into_iter().filter(|way| peer.ways().contains(way));
            ways.map(|way| Ok((way, slice(stage, peer, Load { clients, way }, seconds)?))).collect()
        });
        orders.unwrap_or_default()
    }

    fn measure(&mut self, slice: usize, load: Load, order: &Order) {
        let figures = self.attempt(|stage, _| {
            let (cost, report) = stage.cost(order)?;
            let deliveries = report.done as f64;
            Ok(Figures {
                cpu: cost.as_secs_f64() * 1e6 / deliveries,
                per_second: deliveries / report.seconds,
                p50: report.p50_micros / 1000.0,
                p99: report.p99_micros / 1000.0,
            })
        });
        self.slices.0[slice].extend(figures.map(|figures| (load, figures)));
    }
}

fn failed(peer: &dyn Peer, error: impl fmt::Display) {
    eprintln!("        {} failed: {error}", peer.name());
}

/// Publishes to warm the server up, and returns an order that takes about `seconds`.
fn slice(stage: &mut Stage, peer: &dyn Peer, load: Load, seconds: f64) -> Result<Order> {
    let messages = load.way.messages();
    let (publish, connections) = match load.way {
        Way::One | Way::Batch => (peer.publish(messages), 1),
        Way::Pipelined => (peer.publish(1).repeat(messages), 1),
        Way::Connections => (peer.publish(1), messages),
    };
    let order =
        |stage: &Stage, rounds| Order::FanOut(FanOut { connections, ..stage.all(publish.clone(), messages, rounds) });
    let warm_up = (WARM_UP / load.clients / messages).max(1);
    let (_, warm) = stage.cost(&order(stage, warm_up))?;
    let each = warm.seconds / warm_up as f64;
    Ok(order(stage, ((seconds / each) as usize).max(1)))
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
