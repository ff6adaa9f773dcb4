//! Searches and tests of the rule which members acknowledge at once.

use std::time::Duration;

use bytes::Bytes;

use super::{
    Limits, World,
    nodes::Node,
    random::Random,
    runs::{SECOND, live, settle},
    seeds::search,
};
use crate::{Core, TICK, fault::Fault};

/// Maximum time that a frame of a simulated network and its answer take together.
const BOTH_WAYS: Duration = Duration::from_millis(10);

/// Returns the index of the serving master.
fn master_of(world: &World) -> usize {
    let serves = |node: &Node| node.core.as_ref().is_some_and(Core::is_serving_master);
    world.nodes.iter().position(serves).expect("a master serves")
}

/// Returns the indices of the members that acknowledge at once.
fn prompt_members_of(world: &World) -> Vec<usize> {
    let prompt = world.nodes[master_of(world)].core.as_ref().map(Core::prompt_members).unwrap_or_default();
    (0..world.nodes.len()).filter(|place| prompt.contains(&world.nodes[*place].id)).collect()
}

/// Publishes on the master ten times a second.
fn publish_for(world: &mut World, time: Duration) {
    let (master, end) = (master_of(world), world.now + time);
    while world.now < end {
        world.publish(master, Bytes::from_static(b"more"), None);
        world.run(Duration::from_millis(100));
    }
}

/// Returns a world of five nodes after a trial: two of the followers acknowledge at once.
fn settled_world() -> World {
    let mut world = World::steady(5);
    world.run(SECOND * 5);
    publish_for(&mut world, SECOND);
    world
}

/// Returns a world of five nodes after a trial in which the follower with the lowest index was slow. Returns that index,
/// and those of the two members that acknowledge at once.
fn world_with_a_slow_member() -> (World, usize, Vec<usize>) {
    let mut world = World::steady(5);
    world.run(SECOND * 5);
    let master = master_of(&world);
    // Without acknowledgements to compare, its id would be the first.
    let slow = (0..5).find(|place| *place != master).expect("there are five");
    world.slow_down(slow, master, Duration::from_millis(40));
    // Until the next trial, which compares the members anew.
    publish_for(&mut world, SECOND * 40);
    let quick = prompt_members_of(&world);
    assert!(quick.len() == 2 && !quick.contains(&slow), "{quick:?} without {slow}");
    (world, slow, quick)
}

/// Both members that acknowledge at once hang, die or are cut off from the master at the same moment. What the master
/// publishes meanwhile is accepted when the next of the others has its tick.
#[test]
fn a_message_waits_for_one_tick_if_both_quick_members_stop() {
    search(600, |seed, story| quick_members_stop(seed, None, story));
}

pub(super) fn quick_members_stop(seed: u64, mutant: Option<Fault>, story: bool) {
    let mut world = World::new(seed, 4 + (seed % 3) as usize, mutant, story);
    live(&mut world, SECOND * 12);
    // A trial may take place at this moment.
    for _ in 0..20 {
        live(&mut world, Duration::from_millis(300));
        world.run(Duration::from_millis(300));
        if prompt_members_of(&world).len() == 2 {
            break;
        }
    }
    let (master, quick) = (master_of(&world), prompt_members_of(&world));
    if quick.len() != 2 {
        world.fail("a trial does not end");
    }
    let way = world.rng.below(3);
    for place in quick {
        match way {
            0 => world.pause(place),
            1 => world.crash(place),
            _ => world.cut_both(master, place),
        }
    }
    for _ in 0..40 {
        let before = world.checks.accepted_so_far();
        world.publish(master, Bytes::from_static(b"more"), None);
        world.run(TICK + BOTH_WAYS);
        if world.checks.accepted_so_far() == before {
            world.fail("a message waits for longer than a tick");
        }
        let pause = Duration::from_millis(world.rng.below(100));
        world.run(pause);
    }
    settle(&mut world);
}

#[test]
fn two_members_acknowledge_at_once_and_the_others_at_their_next_tick() {
    let mut world = settled_world();
    let master = master_of(&world);
    let prompt = prompt_members_of(&world);
    assert_eq!(prompt.len(), 2);
    world.publish(master, Bytes::from_static(b"one"), None);
    world.run(Duration::from_millis(10));
    let owing = |world: &World| {
        let owing = world.nodes[master].core.as_ref().map(Core::owing_followers).unwrap_or_default();
        (0..5).filter(|place| owing.contains(&world.nodes[*place].id)).collect::<Vec<_>>()
    };
    let others: Vec<_> = (0..5).filter(|place| *place != master && !prompt.contains(place)).collect();
    assert_eq!(owing(&world), others);
    let lags = world.nodes[master].core.as_ref().map(Core::followers).unwrap_or_default();
    assert!(lags.len() == 4 && lags.iter().all(|node| node.lag == 0), "nothing is due yet: {lags:?}");
    world.run(Duration::from_millis(100));
    assert_eq!(owing(&world), []);
}

#[test]
fn a_member_that_becomes_slow_acknowledges_later_than_the_quick_ones() {
    let mut world = settled_world();
    let slow = prompt_members_of(&world)[0];
    world.slow_down(slow, master_of(&world), Duration::from_millis(30));
    publish_for(&mut world, SECOND * 40);
    let prompt = prompt_members_of(&world);
    assert!(prompt.len() == 2 && !prompt.contains(&slow), "{prompt:?} without {slow}");
}

#[test]
fn messages_are_accepted_while_the_members_that_acknowledge_at_once_hang() {
    let mut world = settled_world();
    let hanging = prompt_members_of(&world);
    hanging.iter().for_each(|place| world.pause(*place));
    let before = world.checks.accepted_so_far();
    publish_for(&mut world, Duration::from_millis(200));
    assert!(world.checks.accepted_so_far() > before, "the others acknowledge at their next tick");
    publish_for(&mut world, SECOND);
    let prompt = prompt_members_of(&world);
    assert!(prompt.iter().any(|place| !hanging.contains(place)), "{prompt:?}");
    let lags = world.nodes[master_of(&world)].core.as_ref().map(Core::followers).unwrap_or_default();
    let lagging = lags.iter().filter(|node| node.lag > 0);
    assert!(lagging.map(|node| node.node).eq(hanging.iter().map(|place| world.nodes[*place].id)), "{lags:?}");
    hanging.iter().for_each(|place| world.resume(*place));
    settle(&mut world);
}

/// With a small log, acknowledgements that come later would hold back its trimming.
#[test]
fn a_member_that_acknowledges_later_is_not_cut_for_it() {
    let mut limits = Limits::plain();
    limits.log.count = 5;
    let mut world = World::of(Random(0), true, limits, 5, None, true);
    world.run(SECOND * 5);
    let (links, master) = (world.links, master_of(&world));
    for _ in 0..1_000 {
        world.publish(master, Bytes::from_static(b"more"), None);
        world.run(Duration::from_millis(5));
    }
    assert_eq!(world.links, links, "no node had to dial again");
}

#[test]
fn an_idle_cluster_keeps_its_quick_members() {
    let (mut world, _, quick) = world_with_a_slow_member();
    let master = master_of(&world);
    for _ in 0..100 {
        world.run(SECOND);
        let prompt = prompt_members_of(&world);
        assert!(quick.iter().all(|place| prompt.contains(place)), "{prompt:?} with {quick:?}");
    }
    world.publish(master, Bytes::from_static(b"more"), None);
    world.run(SECOND);
    assert_eq!(prompt_members_of(&world), quick);
}

#[test]
fn a_node_that_joins_an_idle_cluster_displaces_no_quick_member() {
    let (mut world, slow, quick) = world_with_a_slow_member();
    let master = master_of(&world);
    let other = (slow + 1..5).find(|place| *place != master && !quick.contains(place)).expect("two are deferred");
    // Until the next trial, which waits for an entry.
    world.run(SECOND * 70);
    world.crash(other);
    world.boot(other);
    for _ in 0..10 {
        world.run(SECOND);
        let prompt = prompt_members_of(&world);
        assert!(quick.iter().all(|place| prompt.contains(place)), "{prompt:?} with {quick:?}");
    }
}

#[test]
fn a_node_that_joins_again_and_again_does_not_let_all_acknowledge_at_once() {
    let mut world = settled_world();
    let (master, prompt) = (master_of(&world), prompt_members_of(&world));
    let restless = (0..5).find(|place| *place != master && !prompt.contains(place)).expect("two are deferred");
    let (mut joins, mut trials) = (0, 0);
    for _ in 0..100 {
        if let Some(link) = world.nodes[restless].ends.keys().next().copied() {
            joins += 1;
            world.hang_up(restless, link);
        }
        publish_for(&mut world, Duration::from_millis(500));
        // The two, and the one that has just joined.
        trials += usize::from(prompt_members_of(&world).len() > 3);
    }
    assert!(joins > 90 && trials < 25, "{trials} trials at {joins} joins");
}

#[test]
fn the_lag_of_a_member_that_hangs_has_the_entries_for_which_its_window_had_no_room() {
    let mut limits = Limits::plain();
    limits.log.count = 1_000;
    (limits.batch, limits.window) = (500, 1_000);
    let mut world = World::of(Random(0), true, limits, 5, None, true);
    world.run(SECOND * 5);
    publish_for(&mut world, SECOND);
    world.run(Duration::from_millis(200));
    let (master, prompt) = (master_of(&world), prompt_members_of(&world));
    let hanging = (0..5).find(|place| *place != master && !prompt.contains(place)).expect("two are deferred");
    world.pause(hanging);
    for _ in 0..50 {
        world.publish(master, Bytes::from_static(b"more"), None);
        world.run(Duration::from_millis(10));
    }
    let lags = world.nodes[master].core.as_ref().map(Core::followers).unwrap_or_default();
    let of_hanging = lags.iter().find(|node| node.node == world.nodes[hanging].id);
    assert_eq!(of_hanging.map(|node| node.lag), Some(50));
}
