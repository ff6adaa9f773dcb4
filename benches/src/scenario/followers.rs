//! What followers cost their master: the CPU time of its process for each message, with publishes one at a time and many
//! at once.

use std::{
    io::{Read, Write},
    net::TcpStream,
    thread::sleep,
    time::{Duration, Instant},
};

use benches::{Result, control::DONE};

use super::relay::Cluster;
use crate::peers::Ours;

/// Number of messages that are published at once.
pub(crate) const TOGETHER: usize = 64;

/// Time between two publishes of one message, and of many at once. All nodes are idle before each.
const PAUSE: Duration = Duration::from_millis(2);
const LONG_PAUSE: Duration = Duration::from_millis(8);

/// Time in which a cluster without messages is measured.
const IDLE: Duration = Duration::from_secs(2);

/// CPU time of the master for each message, in microseconds.
pub(crate) struct Costs {
    pub(crate) single: f64,
    pub(crate) together: f64,
}

/// Measures a master with this number of followers. What it does without messages does not count.
pub(crate) fn measure(followers: usize, messages: usize, build: Ours) -> Result<Costs> {
    let cluster = Cluster::start_as(followers + 1, build)?;
    let master = &cluster.nodes[0];
    let (began, before) = (Instant::now(), master.cpu()?);
    sleep(IDLE);
    let idle = (master.cpu()? - before).as_secs_f64() / began.elapsed().as_secs_f64();
    let mut control = TcpStream::connect(master.control)?;
    control.set_nodelay(true)?;
    let mut cost = |at_once: usize, rounds: usize, pause: Duration| -> Result<f64> {
        // What is allocated at first does not count.
        publish(&mut control, at_once, rounds / 10 + 1, pause)?;
        let (began, before) = (Instant::now(), master.cpu()?);
        publish(&mut control, at_once, rounds, pause)?;
        let cost = (master.cpu()? - before).as_secs_f64() - idle * began.elapsed().as_secs_f64();
        Ok(cost * 1e6 / (rounds * at_once) as f64)
    };
    let single = cost(1, messages, PAUSE)?;
    let together = cost(TOGETHER, 8 * messages / TOGETHER, LONG_PAUSE)?;
    Ok(Costs { single, together })
}

/// Publishes on the master, at fixed times if the machine keeps up.
fn publish(control: &mut TcpStream, at_once: usize, rounds: usize, pause: Duration) -> Result<()> {
    let request = Ours::publish_to("all", at_once);
    let mut answer = [0; DONE.len()];
    let mut next = Instant::now();
    for _ in 0..rounds {
        control.write_all(request.as_bytes())?;
        control.read_exact(&mut answer)?;
        if answer != DONE {
            return Err(format!("a publish was answered by {:?}", String::from_utf8_lossy(&answer)).into());
        }
        next += pause;
        sleep(next.saturating_duration_since(Instant::now()));
    }
    Ok(())
}
