//! The cost of TLS: of our own, and of nginx in front of a server without. The CPU time of nginx and of the node count
//! together.

use benches::Result;

use super::{
    failures,
    line::{Goal, Line},
};
use crate::{
    Goals,
    peers::{Certificate, Encrypted, Front, Peer},
    scenario::{
        Stage,
        fan_out::{self, Pace, Slices, Way},
        idle,
    },
    series::Series,
};

/// Number of clients that get messages, and of idle connections.
const CLIENTS: usize = 1_000;
const IDLE: usize = 5_000;

/// The slices of each round.
const PACE: Pace = Pace { slices: 10, seconds: 0.1 };

pub(super) fn tls(options: &Goals) -> Result<Vec<Line>> {
    let certificate = Certificate::make()?;
    let servers = [Front::None, Front::Own, Front::Nginx].map(|front| Encrypted { front, certificate: &certificate });
    if let Some(how) = servers.iter().find_map(|server| server.missing()) {
        return Err(format!("nginx is not installed: {how}").into());
    }
    let peers = servers.each_ref().map(|server| server as &dyn Peer);
    let mut slices = [(); 3].map(|()| Slices::default());
    for _ in 0..options.rounds() {
        let measured = fan_out::measure_beside(&peers, &[CLIENTS], PACE);
        slices.iter_mut().zip(measured).for_each(|(slices, round)| slices.extend(round));
    }
    // Memory does not depend on the machine's speed.
    let mut memory = servers.iter().map(|server| idle::measure(&mut Stage::set(server)?, IDLE).map(Series::one));
    let mut next = || memory.next().ok_or("three servers are measured")?;
    let (plain_memory, own_memory, nginx_memory) = (next()?, next()?, next()?);
    let [plain, own, nginx] = &slices;
    let mut lines = failures(peers.iter().zip(&slices), &[CLIENTS]);
    for load in fan_out::loads(&[CLIENTS], &Way::USUAL) {
        let cpu = |slices: &Slices| slices.series(load, |figures| figures.cpu);
        let line = |reference: &Slices, of| {
            Line::ratio(format!("CPU per delivery over TLS, {load}"), &cpu(own), "µs", &cpu(reference), of, Goal::None)
        };
        lines.push(line(nginx, "nginx with TLS and a node"));
        lines.push(line(plain, "without TLS"));
    }
    let what = format!("an idle connection of {IDLE} over TLS");
    let beside = |reference, of| Line::ratio(what.clone(), &own_memory, "KB", reference, of, Goal::None);
    lines.push(Line::at_most(what.clone(), &own_memory, "KB", 12.0));
    lines.push(beside(&nginx_memory, "nginx with TLS and a node"));
    lines.push(beside(&plain_memory, "without TLS"));
    Ok(lines)
}
