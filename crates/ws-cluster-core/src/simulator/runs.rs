//! Runs with random faults from a seed.

use std::time::Duration;

use bytes::Bytes;

use super::{Checks, Clients, World};
use crate::{LogConfig, fault::Fault};

pub(super) const SECOND: Duration = Duration::from_secs(1);

pub(super) fn publish_some(world: &mut World) {
    for _ in 0..world.rng.below(6) {
        let place = world.rng.below(world.nodes.len() as u64) as usize;
        let key = (world.rng.below(8) == 0).then(|| Bytes::from(world.rng.below(40).to_string()));
        let mut content = world.next_publish(place).to_string();
        let size = content.len() + world.rng.below(world.limits.content) as usize;
        content.extend(std::iter::repeat_n(' ', size - content.len()));
        let content = Bytes::from(content);
        world.publish(place, content, key);
    }
}

/// Publishes and lets time pass, in small steps.
pub(super) fn live(world: &mut World, time: Duration) {
    let end = world.now + time;
    while world.now < end {
        publish_some(world);
        world.clients_step(false);
        let step = world.rng.below(150);
        world.run(Duration::from_millis(step + 1));
    }
}

/// Heals all faults and waits until all nodes have the same log.
pub(super) fn settle(world: &mut World) {
    let mut wrong = String::new();
    for _ in 0..40 {
        // It heals again in each round, because a node that was stopped during its shutdown ends only now.
        world.heal();
        world.run(SECOND * 2);
        match world.checks.settled(world.nodes.iter().filter_map(|node| node.core.as_ref())) {
            Ok(()) => return,
            Err(why) => wrong = why,
        }
    }
    world.fail(&wrong);
}

pub(super) fn any_fault(world: &mut World) {
    let size = world.nodes.len() as u64;
    let one = world.rng.below(size) as usize;
    let other = world.rng.below(size) as usize;
    match world.rng.below(20) {
        0 | 1 => world.crash(one),
        2 if world.nodes[one].core.is_none() => world.boot(one),
        3 if world.rng.below(2) == 0 => world.sleep(one),
        3 => world.pause(one),
        4 => world.resume(one),
        5 | 6 if one != other => {
            let both = world.rng.below(2) == 0;
            if both { world.cut_both(one, other) } else { world.cut(one, other) }
        }
        7 => {
            world.heal_cuts();
        }
        8 => {
            let down = !world.db_down;
            world.stop_database(down);
        }
        9 => {
            let cut = world.rng.below(2) == 0;
            world.cut_database(one, cut);
        }
        10 => {
            let percent = world.rng.below(20);
            world.lose_answers(percent);
        }
        11 if one != other => {
            let delay = Duration::from_millis(world.rng.below(800));
            world.slow_down(one, other, delay);
        }
        12 if world.rng.below(3) == 0 => {
            world.empty_tables();
        }
        13 => world.shut_down(one),
        14 if one != other => world.stick(one, other),
        15 => {
            let percent = world.rng.below(20);
            world.delay_statements(percent);
        }
        16 => {
            // Several nodes at once.
            let dying: Vec<usize> = (0..world.nodes.len()).filter(|_| world.rng.below(2) == 0).collect();
            dying.into_iter().for_each(|place| world.crash(place));
        }
        17 => {
            let read_only = !world.db_read_only;
            world.refuse_writes(read_only);
        }
        18 => {
            let (behind, ahead) = (world.rng.below(60), world.rng.below(60));
            let seconds = Duration::from_secs;
            if behind < 30 {
                world.skew_database(one, seconds(behind), seconds(0))
            } else {
                world.skew_database(one, seconds(0), seconds(ahead))
            }
        }
        // Some checks end with a fail-over, so most runs must be without one.
        19 if world.rng.below(2) == 0 => {
            if world.replica.is_none() {
                world.hold_replica_back();
                let lag = Duration::from_millis(world.rng.below(6_000));
                live(world, lag);
            }
            // It fails over now, with a replica that is a little behind, or after other faults.
            if world.rng.below(3) != 0 {
                world.fail_over();
            }
        }
        _ => {}
    }
}

/// Runs with faults of every kind, several at once, and then without faults.
pub(super) fn storm(seed: u64, mutant: Option<Fault>, story: bool) {
    rage(&mut World::new(seed, 2 + (seed % 4) as usize, mutant, story));
}

/// Runs a storm of faults with clients that move from node to node. With `story`, prints what happened.
///
/// # Panics
/// If an invariant does not hold, or a client gets what it must not get.
pub fn storm_with_clients(seed: u64, story: bool, clients: impl FnOnce(&LogConfig) -> Box<dyn Clients>) {
    let world = World::new(seed, 2 + (seed % 4) as usize, None, story);
    let clients = clients(&world.limits.log);
    let mut world = world.with_clients(clients);
    rage(&mut world);
    world.clients_settle();
}

pub(super) fn rage(world: &mut World) {
    live(world, SECOND * 5);
    for _ in 0..world.rng.below(12) {
        any_fault(world);
        let time = Duration::from_millis(world.rng.below(9000));
        live(world, time);
    }
    settle(world);
}

/// Runs single faults with clients. With `story`, prints what happened.
///
/// # Panics
/// If an invariant does not hold, a message is lost, or a client gets what it must not get.
pub fn single_faults_with_clients(seed: u64, story: bool, clients: impl FnOnce(&LogConfig) -> Box<dyn Clients>) {
    let world = World::new(seed, 2 + (seed % 3) as usize, None, story);
    let clients = clients(&world.limits.log);
    let mut world = world.with_clients(clients);
    suffer_single_faults(&mut world);
    world.clients_settle();
}

/// One node at a time crashes, stops or leaves, and comes back before the next one; or the database fails over to a
/// replica without the last writes.
pub(super) fn suffer_single_faults(world: &mut World) {
    live(world, SECOND * 12);
    for _ in 0..3 {
        let one = world.rng.below(world.nodes.len() as u64) as usize;
        match world.rng.below(9) {
            0..4 => world.crash(one),
            4 => world.pause(one),
            5 => world.sleep(one),
            6 | 7 => world.shut_down(one),
            _ => {
                world.hold_replica_back();
                let lag = Duration::from_millis(world.rng.below(4_000));
                live(world, lag);
                world.fail_over();
            }
        }
        live(world, SECOND * 12);
        settle(world);
        live(world, SECOND * 2);
    }
    settle(world);
    if !world.checks.extinct.is_empty() {
        let lost = world.checks.extinct.len();
        world.fail(&format!("{lost} accepted messages were lost with one node"));
    }
}

/// One node at a time stops or falls asleep, for up to four times as long as the logs keep entries, and then goes on.
/// The nodes publish little meanwhile, so that a log may forget all that it knew of a node.
pub(super) fn suffer_long_stops(world: &mut World) {
    world.limits.log.age = SECOND * 5 + Duration::from_millis(world.rng.below(5_000));
    for place in 0..world.nodes.len() {
        world.crash(place);
        world.boot(place);
    }
    world.checks = Checks::new(&world.limits.log);
    live(world, SECOND * 12);
    for _ in 0..3 {
        let size = world.nodes.len();
        let (one, other) = (world.rng.below(size as u64) as usize, world.rng.below(size as u64) as usize);
        // What it publishes may get no answer before it stops.
        let slow = Duration::from_millis(world.rng.below(400));
        if one != other {
            world.slow_down(other, one, slow);
        }
        for _ in 0..world.rng.below(4) {
            publish_some(world);
        }
        let moment = Duration::from_millis(world.rng.below(20));
        world.run(moment);
        if world.rng.below(2) == 0 {
            world.sleep(one)
        } else {
            world.pause(one)
        }
        let stop = Duration::from_millis(world.rng.below(1 + 4 * world.limits.log.age.as_millis() as u64));
        if world.rng.below(2) == 0 {
            live(world, stop);
        } else {
            world.run(stop);
        }
        world.slow.clear();
        if world.rng.below(3) == 0 {
            // The one that knew most may be gone when it goes on.
            let third = world.rng.below(size as u64) as usize;
            world.crash(third);
        }
        if world.nodes[one].core.is_some() {
            world.resume(one);
        }
        live(world, SECOND * 3);
        settle(world);
    }
}
