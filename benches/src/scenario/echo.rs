//! Messages of clients that the server answers: the cost of one, from the socket to the handler and back.

use benches::Result;

use super::Stage;
use crate::load::order::Order;

const CLIENTS: usize = 1_000;
const WARM_UP: usize = 20;
const ROUNDS: usize = 200;

/// Returns the microseconds of the server's CPU time for each message.
pub(crate) fn measure(stage: &mut Stage, message: &str) -> Result<f64> {
    stage.connect(CLIENTS)?;
    stage.settle();
    let order = |rounds| Order::Echo { message: message.to_owned(), clients: CLIENTS, answers: 1, rounds };
    stage.cost(&order(WARM_UP))?;
    let (cost, report) = stage.cost(&order(ROUNDS))?;
    Ok(cost.as_secs_f64() * 1e6 / report.done as f64)
}
