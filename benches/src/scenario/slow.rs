//! One client that reads nothing, among five thousand that do: what the others feel of it, what it costs the server,
//! and how it ends.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread::{scope, sleep},
    time::Duration,
};

use benches::{Result, control, marked};

use super::Stage;
use crate::{
    load::order::{Order, Pace},
    peers::Ours,
};

const CLIENTS: usize = 5_000;
const PER_SECOND: usize = 20;

/// What only the slow client is sent at each tick, so that it is over its cap within the run.
const EXTRA: usize = 16 * 1024;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Figures {
    /// Milliseconds without and with the slow client.
    pub(crate) p99_without: f64,
    pub(crate) p99_with: f64,
    /// What memory grew by at most, in MB.
    pub(crate) growth: f64,
    pub(crate) closed: bool,
    /// The code, where the close frame came through.
    pub(crate) code: Option<u16>,
}

pub(crate) fn measure(seconds: usize) -> Result<Figures> {
    let mut stage = Stage::set(&Ours::default())?;
    stage.connect(CLIENTS + 1)?;
    stage.settle();
    let pace = |publishes| {
        Order::Pace(Pace {
            control: Some(stage.server.control),
            publishes,
            messages: 1,
            per_second: PER_SECOND,
            ticks: PER_SECOND * seconds,
        })
    };
    let all = Ours::publish_to("all", 1);
    let extra = control::request(&format!("/publish?to=user:u{CLIENTS}"), &marked(EXTRA));
    let (without, with) = (pace(vec![all.clone()]), pace(vec![all, extra]));
    let (_, reading) = stage.cost(&without)?;
    let before = stage.server.memory();
    stage.load.order(&Order::Stall { from: CLIENTS })?;
    let (done, most) = (AtomicBool::new(false), AtomicU64::new(0));
    let (server, load) = (&stage.server, &mut stage.load);
    let report = scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                most.fetch_max(server.memory(), Ordering::Relaxed);
                sleep(Duration::from_millis(200));
            }
        });
        let report = load.order(&with);
        done.store(true, Ordering::Relaxed);
        report
    })?;
    if report.failed > 0 {
        return Err(format!("{} messages are missing", report.failed).into());
    }
    let end = stage.load.order(&Order::Unstall)?;
    Ok(Figures {
        p99_without: reading.p99_micros / 1000.0,
        p99_with: report.p99_micros / 1000.0,
        growth: most.into_inner().saturating_sub(before) as f64 / 1024.0 / 1024.0,
        closed: end.done == 1,
        code: end.closed,
    })
}
