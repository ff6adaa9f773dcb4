//! The CPU time of a delivery beside one send() per socket and beside Bun, the fastest other server, all published over
//! HTTP. The servers run side by side, and are started anew in each round.

use benches::Result;

use super::{
    failures,
    line::{Goal, Line},
};
use crate::{
    Goals,
    peers::{Bun, OneSend, Ours, Peer},
    scenario::fan_out::{self, Load, Pace, Slices, Way},
};

/// The reference of a delivery.
pub(super) const ONE_SEND: &str = "one send() per socket";

/// The slices of each round.
const PACE: Pace = Pace { slices: 10, seconds: 0.1 };
const QUICK_PACE: Pace = Pace { slices: 4, ..PACE };

pub(super) fn speed(options: &Goals) -> Result<Vec<Line>> {
    let (one_send, ours, bun) = (OneSend, Ours::default(), Bun);
    let before = options.before();
    let missing = bun.missing();
    let mut peers: Vec<&dyn Peer> = vec![&one_send, &ours];
    peers.extend(missing.is_none().then_some(&bun as &dyn Peer));
    peers.extend(before.as_ref().map(|before| before as &dyn Peer));
    let mut servers: Vec<Slices> = peers.iter().map(|_| Slices::default()).collect();
    let pace = if options.quick { QUICK_PACE } else { PACE };
    for round in 1..=options.rounds {
        eprintln!("    round {round} of {}", options.rounds);
        let measured = fan_out::measure_beside(&peers, &options.clients, pace);
        servers.iter_mut().zip(measured).for_each(|(slices, round)| slices.extend(round));
    }
    let mut lines = failures(peers.iter().zip(&servers), &options.clients);
    let mut servers = servers.into_iter();
    let (one_send, ours) = (servers.next().unwrap_or_default(), servers.next().unwrap_or_default());
    let bun = missing.is_none().then(|| servers.next()).flatten();
    let before = servers.next();
    for load in fan_out::loads(&options.clients, &Way::ALL) {
        let what = format!("CPU per delivery, {load}");
        let cpu = |slices: &Slices, load: Load| slices.series(load, |figures| figures.cpu);
        let value = cpu(&ours, load);
        let line = |reference: &Slices, load, of, goal| {
            Line::ratio(what.clone(), &value, "µs", &cpu(reference, load), of, goal)
        };
        let [of_one_send, of_bun] = goals(load);
        lines.push(line(&one_send, load.of_one_send(), ONE_SEND, of_one_send));
        lines.extend(bun.as_ref().map(|bun| line(bun, load, "Bun", of_bun)));
        lines.extend(before.as_ref().map(|before| line(before, load, "the build before", Goal::None)));
    }
    for load in fan_out::loads(&options.clients, &[Way::One]) {
        let p99 = |slices: &Slices| slices.series(load, |figures| figures.p99);
        let what = format!("p99 of the fan-out, {load}");
        let goal = if load.clients == 5_000 { Goal::Below(1.0) } else { Goal::None };
        lines.extend(bun.as_ref().map(|bun| Line::ratio(what, &p99(&ours), "ms", &p99(bun), "Bun", goal)));
    }
    if let Some(how) = missing {
        eprintln!("    Bun is not installed: {how}");
    }
    Ok(lines)
}

/// Returns the goals of a load: the ratio to one send() per socket, and the ratio to Bun.
fn goals(load: Load) -> [Goal; 2] {
    match load.way {
        Way::One if load.clients <= 1_000 => [Goal::AtMost(1.12), Goal::Below(1.0)],
        Way::One => [Goal::AtMost(1.2), Goal::AtMost(0.9)],
        _ => [Goal::AtMost(1.5), Goal::Below(1.0)],
    }
}
