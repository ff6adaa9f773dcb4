//! What the load generator is told on its standard input and says on its standard output, a line of JSON each.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// How a client of some server connects. In texts, `{n}` is the client's number.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Recipe {
    pub(crate) port: u16,
    pub(crate) path: String,
    pub(crate) headers: Vec<(String, String)>,
    /// Frames to send after the upgrade; texts, where they are not to be binary.
    pub(crate) frames: Vec<String>,
    pub(crate) binary: bool,
    /// Frames of the server to wait for before the client counts as connected.
    pub(crate) ready: usize,
    /// Frames of the server that ask for an answer, each with it.
    pub(crate) pings: Vec<(String, String)>,
}

/// Something to do; the answer comes when it is done.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Order {
    /// Opens connections, `in_flight` at a time. The numbers of the clients begin at `first`.
    Connect { recipe: Recipe, first: usize, count: usize, in_flight: usize },
    /// Publishes, waits until all that is expected has come, and so on.
    FanOut(FanOut),
    /// Publishes at a fixed pace, whether or not it has come.
    Pace(Pace),
    /// Every client sends a message, and when each has its answer, again.
    Echo { message: String, clients: usize, answers: usize, rounds: usize },
    /// Connects, sends a message, waits for its answer and closes, over and over.
    Churn { recipe: Recipe, message: String, count: usize, in_flight: usize },
    /// The clients from this number on read nothing any more.
    Stall { from: usize },
    /// The stalled clients read again, until the server is done with them.
    Unstall,
    /// Counts what comes for so many milliseconds.
    Count { millis: u64 },
    /// Drops all connections.
    Close,
}

/// Rounds of publishing.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct FanOut {
    /// Where to publish, what that connection begins with, and what is written there, one after the other in turn.
    pub(crate) control: Option<SocketAddr>,
    pub(crate) introduction: String,
    pub(crate) publishes: Vec<String>,
    /// How many clients each reaches, with how many messages.
    pub(crate) reached: usize,
    pub(crate) messages: usize,
    /// Whether the answer to the publish is waited for as well, as it must be where nobody is reached.
    pub(crate) answered: bool,
    pub(crate) rounds: usize,
    /// Pause between rounds.
    pub(crate) pause_micros: u64,
    /// Whether the generator waits for messages by looking again and again. It has to have a core of its own, and
    /// costs the server no inter-processor interrupts then.
    pub(crate) spin: bool,
}

/// Publishing at a fixed pace.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Pace {
    pub(crate) control: Option<SocketAddr>,
    /// All of them at each tick.
    pub(crate) publishes: Vec<String>,
    /// Messages each client gets for a tick.
    pub(crate) messages: usize,
    pub(crate) per_second: usize,
    pub(crate) ticks: usize,
}

/// What came of an order.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) seconds: f64,
    /// Connections opened, or messages and answers that came.
    pub(crate) done: usize,
    /// Those that did not.
    pub(crate) failed: usize,
    /// From just before the publish is written to the arrival of its last message at each client.
    pub(crate) p50_micros: f64,
    pub(crate) p99_micros: f64,
    /// The close code of a client that was closed.
    pub(crate) closed: Option<u16>,
    /// The first thing that went wrong.
    pub(crate) trouble: Option<String>,
}
