//! Sixteen messages in one batch over HTTP, beside sixteen publishes in the server's process: what the request adds.

use benches::Result;

use super::Stage;
use crate::{
    load::order::{FanOut, Order},
    peers::Ours,
};

/// Number of clients that get the messages, and of messages at once.
pub(crate) const CLIENTS: usize = 1_000;
pub(crate) const MESSAGES: usize = 16;

/// Number of parts in which the ways are measured in turn, since they are compared.
const PARTS: usize = 5;

/// Microseconds of the server's CPU time for all messages together.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Figures {
    pub(crate) in_process: f64,
    pub(crate) batch: f64,
}

/// Measures with messages to all clients, and with messages that reach nobody.
pub(crate) fn measure(rounds: usize) -> Result<[Figures; 2]> {
    let mut stage = Stage::set(&Ours::default())?;
    stage.connect(CLIENTS)?;
    stage.settle();
    let (control, http) = (stage.server.control, stage.server.publishing);
    let mut figures = [Figures::default(); 2];
    for part in 0..=PARTS {
        for (figures, (target, reached)) in figures.iter_mut().zip([("all", CLIENTS), ("user:nobody", 0)]) {
            let mut cost = |address, publish: String| -> Result<f64> {
                let order = stage.all(publish, MESSAGES, rounds);
                let order = FanOut { publish_to: Some(address), reached, answers: 1, ..order };
                let (cost, _) = stage.cost(&Order::FanOut(order))?;
                Ok(cost.as_secs_f64() * 1e6 / rounds as f64)
            };
            let batch = cost(http, Ours::post_to(target, MESSAGES))?;
            let in_process = cost(control, Ours::publish_to(target, MESSAGES))?;
            // The first part is the warm-up.
            if part > 0 {
                figures.batch += batch / PARTS as f64;
                figures.in_process += in_process / PARTS as f64;
            }
        }
    }
    Ok(figures)
}
