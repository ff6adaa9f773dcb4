//! One client that reads nothing, among five thousand that read: its effect on the others, its cost for the server, and
//! how it ends.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread::{scope, sleep},
    time::Duration,
};

use benches::{Result, control, marked};

use super::Stage;
use crate::{
    load::order::{Order, Pace, Report},
    peers::Ours,
};

const CLIENTS: usize = 5_000;
const PER_SECOND: usize = 20;

/// Size of the message that only the slow client gets at each tick, so that it exceeds its cap within the run: some MB
/// more than the kernel buffers for it.
const EXTRA: usize = 64 * 1024;

/// Time between two looks at the memory.
const LOOK: Duration = Duration::from_millis(200);

#[derive(Clone, Copy, Debug)]
pub(crate) struct Figures {
    /// Milliseconds without and with the slow client.
    pub(crate) p99_without: f64,
    pub(crate) p99_with: f64,
    /// Maximum growth of the memory, in MB. The server keeps the published messages in both cases.
    pub(crate) growth_without: f64,
    pub(crate) growth_with: f64,
    pub(crate) closed: bool,
    /// The code, if the close frame arrived.
    pub(crate) code: Option<u16>,
}

pub(crate) fn measure(seconds: usize) -> Result<Figures> {
    let mut stage = Stage::set(&Ours::default())?;
    stage.connect(CLIENTS + 1)?;
    stage.settle();
    let extra = control::request(&format!("/publish?to=user:u{CLIENTS}"), &marked(EXTRA));
    let order = Order::Pace(Pace {
        publish_to: Some(stage.server.control),
        publishes: vec![Ours::publish_to("all", 1), extra],
        messages: 1,
        per_second: PER_SECOND,
        ticks: PER_SECOND * seconds,
    });
    let (growth_without, reading) = growth(&mut stage, &order)?;
    stage.load.order(&Order::Stall { from: CLIENTS })?;
    let (growth_with, stalled) = growth(&mut stage, &order)?;
    let end = stage.load.order(&Order::Unstall)?;
    Ok(Figures {
        p99_without: reading.p99_micros / 1000.0,
        p99_with: stalled.p99_micros / 1000.0,
        growth_without,
        growth_with,
        closed: end.done == 1,
        code: end.closed,
    })
}

/// Carries out an order and watches the server's memory. Returns its maximum growth, in MB.
fn growth(stage: &mut Stage, order: &Order) -> Result<(f64, Report)> {
    let before = stage.server.memory()?;
    let (done, most) = (AtomicBool::new(false), AtomicU64::new(0));
    let (server, load) = (&stage.server, &mut stage.load);
    let report = scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                // A look that fails is made up for by the next one.
                most.fetch_max(server.memory().unwrap_or(0), Ordering::Relaxed);
                sleep(LOOK);
            }
        });
        let report = load.order(order);
        done.store(true, Ordering::Relaxed);
        report
    })?;
    match report.failed {
        0 => Ok((most.into_inner().saturating_sub(before) as f64 / 1024.0 / 1024.0, report)),
        missing => Err(format!("{missing} messages are missing").into()),
    }
}
