//! The orders that the load generator reads on its standard input, and the reports that it writes on its standard
//! output, a line of JSON each.

use std::{net::SocketAddr, path::PathBuf};

use serde::{Deserialize, Serialize};

/// The way in which clients of a server connect. In texts, `{n}` is the client's number.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Recipe {
    pub(crate) port: u16,
    /// The file with the certificate of a server that speaks TLS.
    pub(crate) certificate: Option<PathBuf>,
    pub(crate) path: String,
    pub(crate) headers: Vec<(String, String)>,
    /// Frames to send after the upgrade. They are texts unless they have to be binary.
    pub(crate) frames: Vec<String>,
    pub(crate) binary: bool,
    /// Number of frames from the server after which the client counts as connected.
    pub(crate) ready: usize,
    /// Frames of the server that need an answer, each with its answer.
    pub(crate) pings: Vec<(String, String)>,
    /// True if each frame counts as a message, because marks are not visible in compressed frames.
    #[serde(default)]
    pub(crate) frames_only: bool,
}

/// An order to the load generator. It reports when the order is done.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Order {
    /// Opens connections, `in_flight` at a time. The numbers of the clients begin at `first`.
    Connect { recipe: Recipe, first: usize, count: usize, in_flight: usize },
    /// Publishes, waits until all expected messages have come, and repeats that.
    FanOut(FanOut),
    /// Publishes at a fixed rate, without waiting for the messages.
    Pace(Pace),
    /// Lets every client send a message, and again when each has its answer.
    Echo { message: String, clients: usize, answers: usize, rounds: usize },
    /// Connects, sends a message, waits for its answer and closes, over and over.
    Churn { recipe: Recipe, message: String, count: usize, in_flight: usize },
    /// Stops reading on the clients from this number on.
    Stall { from: usize },
    /// Lets the stalled clients read again, until the server has closed them.
    Unstall,
    /// Publishes on several connections, on each again when the answer has come.
    Flood { publish_to: SocketAddr, publish: String, connections: usize, millis: u64 },
    /// Counts messages for this many milliseconds.
    Count { millis: u64 },
    /// Drops all connections.
    Close,
}

/// Rounds of publishing.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct FanOut {
    /// The address to which publishes go, the first bytes on a connection to it, and the publishes, which are written
    /// in turn.
    pub(crate) publish_to: Option<SocketAddr>,
    pub(crate) introduction: String,
    pub(crate) publishes: Vec<String>,
    /// Number of connections on each of which the publish is written, if not one.
    pub(crate) connections: usize,
    /// Number of clients that each publish reaches, and number of messages for each client.
    pub(crate) reached: usize,
    pub(crate) messages: usize,
    /// Number of answers to the publish for which the round also waits. That is necessary if it reaches no client.
    pub(crate) answers: usize,
    pub(crate) rounds: usize,
    /// Pause between rounds.
    pub(crate) pause_micros: u64,
    /// True if the generator polls for messages without sleeping. It then needs a core of its own, and causes no
    /// inter-processor interrupts on the server.
    pub(crate) spin: bool,
}

/// Publishes at a fixed rate.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Pace {
    pub(crate) publish_to: Option<SocketAddr>,
    /// The publishes of each tick.
    pub(crate) publishes: Vec<String>,
    /// Number of messages that each client gets for a tick.
    pub(crate) messages: usize,
    pub(crate) per_second: usize,
    pub(crate) ticks: usize,
}

/// The report of an order.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) seconds: f64,
    /// Number of opened connections, or of messages and answers that came.
    pub(crate) done: usize,
    /// Number of missing ones.
    pub(crate) failed: usize,
    /// Number of bytes that the clients read, with the heads of the frames.
    pub(crate) bytes: u64,
    /// The time from just before the publish is written until its last message has arrived at each client.
    pub(crate) p50_micros: f64,
    pub(crate) p99_micros: f64,
    /// The time from just before the publish is written until its answer.
    pub(crate) accepted_p50_micros: f64,
    pub(crate) accepted_p99_micros: f64,
    /// The close code of a client that was closed.
    pub(crate) closed: Option<u16>,
    /// The first error.
    pub(crate) trouble: Option<String>,
}
