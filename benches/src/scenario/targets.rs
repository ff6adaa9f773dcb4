//! One user, or a group of a hundred, among ten thousand connections: the cost of a delivery beyond that of a publish
//! without recipients. The difference is the cost of finding and writing to those few.

use std::time::Duration;

use benches::{Result, control, marked};

use super::Stage;
use crate::{
    load::order::{FanOut, Order},
    peers::{MESSAGE, OneSend, Ours},
};

const CLIENTS: usize = 10_000;

/// Number of users in one group of our server.
const GROUP: usize = 100;

/// Microseconds per delivery to a user and to a group, beyond a publish without recipients.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figures {
    pub(crate) user: f64,
    pub(crate) group: f64,
    /// A publish without recipients.
    pub(crate) nobody: f64,
}

pub(crate) fn one_send(rounds: usize) -> Result<Figures> {
    let publish = |some: usize| control::request(&format!("/publish?to=some:{some}"), &marked(MESSAGE));
    measure(&mut Stage::set(&OneSend)?, rounds, vec![publish(0)], vec![publish(1)], vec![publish(GROUP)])
}

pub(crate) fn ours(server: &Ours, rounds: usize) -> Result<Figures> {
    // Strides that are no divisors reach all of them in turn, and none again soon.
    let users = (0..CLIENTS).map(|turn| Ours::publish_to(&format!("user:u{}", turn * 7_919 % CLIENTS), 1)).collect();
    let groups = (0..CLIENTS / GROUP).map(|turn| format!("group:g{}", turn * 37 % (CLIENTS / GROUP)));
    let groups = groups.map(|group| Ours::publish_to(&group, 1)).collect();
    let nobody = vec![Ours::publish_to("user:nobody", 1)];
    measure(&mut Stage::set(server)?, rounds, nobody, users, groups)
}

fn measure(
    stage: &mut Stage,
    rounds: usize,
    nobody: Vec<String>,
    user: Vec<String>,
    group: Vec<String>,
) -> Result<Figures> {
    stage.connect(CLIENTS)?;
    stage.settle();
    let mut cost = |publishes: &Vec<String>, reached: usize, rounds: usize| -> Result<f64> {
        let order = FanOut {
            publish_to: Some(stage.server.control),
            publishes: publishes.clone(),
            reached,
            answers: 1,
            pause_micros: 0,
            ..stage.all(String::new(), 1, rounds)
        };
        let (cost, _) = stage.cost(&Order::FanOut(order))?;
        Ok(micros(cost) / rounds as f64)
    };
    // After a warm-up, and in turn, since differences are measured.
    cost(&group, GROUP, rounds / 10 + 1)?;
    let (mut none, mut one, mut many) = (0.0, 0.0, 0.0);
    const PARTS: usize = 5;
    for _ in 0..PARTS {
        none += cost(&nobody, 0, rounds / PARTS)?;
        one += cost(&user, 1, rounds / PARTS)?;
        many += cost(&group, GROUP, rounds / PARTS / 10 + 1)?;
    }
    let parts = PARTS as f64;
    Ok(Figures { user: (one - none) / parts, group: (many - none) / parts / GROUP as f64, nobody: none / parts })
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}
