//! JSON of 2 KB to clients that negotiate compression (permessage-deflate): what a delivery costs, and how many bytes go
//! over the wire. The marks of other scenarios are not visible in compressed frames, so frames are counted.

use std::{fmt::Write, process::Command};

use benches::{Result, control, marked};

use super::Stage;
use crate::{
    load::order::{FanOut, Order, Recipe},
    peers::{Ours, Peer, Place},
};

pub(crate) const CLIENTS: usize = 1_000;

/// Size of a message in bytes, as its client sees it.
const SIZE: usize = 2_000;

/// Number of different messages. They are larger together than the window of a compressor (32 KB), so that one which
/// takes its context over does not find a message in there.
const DIFFERENT: u64 = 64;

/// Number of rounds to warm up the server.
const WARM_UP_ROUNDS: usize = 20;

/// The offer of browsers.
const OFFER: &str = "permessage-deflate; client_max_window_bits";

/// The figures of a server.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figures {
    /// CPU time of the server per delivery, in microseconds.
    pub(crate) cpu: f64,
    /// Bytes that a client reads for one message.
    pub(crate) bytes: f64,
}

/// A server whose clients count frames, with what is published.
struct Counting<'a> {
    peer: &'a dyn Peer,
    publishes: Vec<String>,
    compressed: bool,
}

impl Peer for Counting<'_> {
    fn name(&self) -> &'static str {
        self.peer.name()
    }

    fn command(&self, place: &Place) -> Result<Command> {
        let mut command = self.peer.command(place)?;
        // Our server compresses for all who offer it; the others need to be told.
        command.env("DEFLATE", if self.compressed { "1" } else { "0" });
        Ok(command)
    }

    fn recipe(&self) -> Recipe {
        let mut recipe = Recipe { frames_only: true, ..self.peer.recipe() };
        recipe.headers.extend(self.compressed.then(|| ("Sec-WebSocket-Extensions".to_owned(), OFFER.to_owned())));
        recipe
    }

    fn one_port(&self) -> bool {
        self.peer.one_port()
    }
}

/// Returns a JSON array of at most `size` bytes with records, as sites send them: their members repeat, and most of their
/// values differ.
fn records(seed: u64, size: usize) -> String {
    let mut json = "[[".to_owned();
    let mut state = seed;
    while json.len() < size - 90 {
        // Knuth's MMIX.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let (id, price, minute) = (state >> 40, state >> 33 & 0xffff, state >> 50 & 31);
        let comma = if json.len() > 2 { "," } else { "" };
        // Writing to a text cannot fail.
        let _ = write!(
            json,
            "{comma}{{\"id\":{id},\"price\":{price},\"user\":\"u{}\",\"at\":\"2026-11-28T15:{minute:02}:00Z\"}}",
            price % 977
        );
    }
    json + "]]"
}

/// Measures a server that compresses, for about `seconds`.
pub(crate) fn compressing(peer: &dyn Peer, seconds: f64) -> Result<Figures> {
    let publishes = (0..DIFFERENT).map(|seed| control::request("/publish?count=1", &records(seed, SIZE))).collect();
    measure(&Counting { peer, publishes, compressed: true }, seconds)
}

/// Measures ours with clients that compress, or with others.
pub(crate) fn ours(compressed: bool, seconds: f64) -> Result<Figures> {
    let publishes = (0..DIFFERENT).map(|seed| Ours::post_details(&records(seed, SIZE - Ours::AROUND))).collect();
    measure(&Counting { peer: &Ours::default(), publishes, compressed }, seconds)
}

/// Measures ours with plain messages that take so many bytes on the wire.
pub(crate) fn plain(bytes: f64, seconds: f64) -> Result<Figures> {
    // The frame's head has four bytes.
    let text = marked((bytes as usize).saturating_sub(Ours::AROUND + 4));
    let publishes = vec![Ours::post_details(&format!("[\"{text}\"]"))];
    measure(&Counting { peer: &Ours::default(), publishes, compressed: false }, seconds)
}

fn measure(peer: &Counting<'_>, seconds: f64) -> Result<Figures> {
    let mut stage = Stage::set(peer)?;
    stage.connect(CLIENTS)?;
    stage.settle();
    let order = |stage: &Stage, rounds| {
        Order::FanOut(FanOut { publishes: peer.publishes.clone(), ..stage.all(String::new(), 1, rounds) })
    };
    let warm_up = order(&stage, WARM_UP_ROUNDS);
    let (_, warm) = stage.cost(&warm_up)?;
    let each = warm.seconds / WARM_UP_ROUNDS as f64;
    let order = order(&stage, ((seconds / each) as usize).max(WARM_UP_ROUNDS));
    let (cost, report) = stage.cost(&order)?;
    let deliveries = report.done as f64;
    Ok(Figures { cpu: cost.as_secs_f64() * 1e6 / deliveries, bytes: report.bytes as f64 / deliveries })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_records_are_json_of_the_size() {
        let records = records(1, SIZE);
        assert!((SIZE - 100..=SIZE).contains(&records.len()), "{}", records.len());
        let values: serde_json::Value = serde_json::from_str(&records).unwrap();
        assert!(values[0].as_array().unwrap().len() > 20);
    }
}
