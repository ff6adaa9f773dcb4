//! Searches for a seed whose run goes wrong, and tests of single situations.
//!
//! `WS_CLUSTER_SEED` replays one run and prints its story; `WS_CLUSTER_RUNS` sets how many there are.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use bytes::Bytes;

use super::{
    Limits, World,
    acknowledgements::quick_members_stop,
    random::Random,
    runs::{SECOND, live, settle, storm, suffer_long_stops, suffer_single_faults},
    seeds::{first_wrong, search},
};
use crate::{Body, Core, Degraded, Frame, Join, Lineage, Query, fault::Fault};

fn single_faults(seed: u64, mutant: Option<Fault>, story: bool) {
    let mut world = World::new(seed, 2 + (seed % 3) as usize, mutant, story);
    suffer_single_faults(&mut world);
    if world.checks.deliveries == 0 {
        world.fail("nothing was delivered");
    }
}

#[test]
fn whatever_happens_the_invariants_hold() {
    search(6_000, |seed, story| storm(seed, None, story));
}

#[test]
fn one_fault_at_a_time_loses_nothing() {
    search(3_000, |seed, story| single_faults(seed, None, story));
}

/// A node that stops, or sleeps with its clock, for longer than the others keep entries, proposes nothing that they have
/// delivered already.
#[test]
fn a_node_that_stood_still_for_long_brings_nothing_a_second_time() {
    search(1_500, |seed, story| {
        suffer_long_stops(&mut World::new(seed, 2 + (seed % 3) as usize, None, story));
    });
}

/// A fault that lasts for minutes must not stop the other nodes: a node without the database, a pair of nodes that do
/// not reach each other, or a slow database.
#[test]
fn a_fault_that_stays_leaves_the_others_working() {
    search(1_200, standing_fault);
}

fn standing_fault(seed: u64, story: bool) {
    let size = 1 + (seed % 4) as usize;
    let mut world = World::new(seed, size, None, story);
    live(&mut world, SECOND * 12);
    let one = world.rng.below(size as u64) as usize;
    let other = (one + 1) % size;
    match world.rng.below(4) {
        0 if size > 1 => world.cut_database(one, true),
        1 if size > 1 => world.cut_both(one, other),
        2 if size > 1 => world.stick(one, other),
        _ => {
            let delay = 1_000 + world.rng.below(900);
            world.slow_database(delay);
        }
    }
    if size > 2 {
        // The master hands over, perhaps to the node that has the fault, or dies.
        let dies = world.rng.below(2) == 0;
        if dies {
            live(&mut world, SECOND * 15);
        }
        let place = world.nodes.iter().position(|node| node.core.as_ref().is_some_and(Core::is_serving_master));
        place.into_iter().for_each(|place| if dies { world.crash(place) } else { world.shut_down(place) });
    }
    live(&mut world, SECOND * 60);
    if world.nodes[one].db_cut
        && let Some(core) = world.nodes[one].core.as_ref().filter(|core| core.status().master.is_none())
    {
        let wrong = format!("{} reaches the other nodes and has no master", super::Name(core.id()));
        world.fail(&wrong);
    }
    let before = world.checks.accepted_so_far();
    live(&mut world, SECOND * 10);
    if world.checks.accepted_so_far() == before {
        world.fail("nothing is accepted any more");
    }
    settle(&mut world);
}

/// The master loses the database and then every follower while all of them publish. Later it is killed. The others have
/// elected another master, and they must have everything that the first one accepted.
#[test]
fn an_isolated_master_accepts_nothing_that_its_end_loses() {
    search(1_500, |seed, story| {
        let lost = isolated_master(seed, false, story);
        assert_eq!(lost, 0, "accepted messages were lost with an isolated master");
    });
}

/// With `accept_when_isolated`, an isolated master accepts what only it holds.
#[test]
fn an_isolated_master_accepts_where_that_is_wanted() {
    let accepted = first_wrong(0, 200, |seed| _ = isolated_master(seed, true, false));
    let (_, why) = accepted.expect("a check notices that nobody else holds it");
    assert!(why.contains("nobody else holds"), "{why}");
}

/// Returns the number of accepted messages that ended with the master.
fn isolated_master(seed: u64, accepts: bool, story: bool) -> usize {
    let size = 2 + (seed % 3) as usize;
    let mut world = World::new(seed, size, None, story);
    if accepts {
        world.accept_when_isolated = true;
        (0..size).for_each(|place| {
            world.crash(place);
            world.boot(place);
        });
    }
    live(&mut world, SECOND * 12);
    let Some(master) = world.nodes.iter().position(|node| node.core.as_ref().is_some_and(Core::is_serving_master))
    else {
        world.fail("no master after a quiet beginning");
    };
    let wait = |world: &mut World, limit| {
        let time = Duration::from_millis(world.rng.below(limit));
        live(world, time);
    };
    // Either the master no longer reaches the database, or no node does for a while.
    let outage = world.rng.below(2) == 0;
    if outage {
        world.stop_database(true)
    } else {
        world.cut_database(master, true)
    }
    wait(&mut world, 3_000);
    for place in (0..size).filter(|place| *place != master) {
        world.cut_both(master, place);
    }
    wait(&mut world, 8_000);
    if outage {
        world.cut_database(master, true);
        world.stop_database(false);
    }
    wait(&mut world, 25_000);
    world.crash(master);
    settle(&mut world);
    world.checks.extinct.len()
}

/// The database fails over to a replica without the last writes, and a candidate has read the lease before. The master
/// renews the lease as often as it was renewed before. The candidate must not take the new lease for the old one.
#[test]
fn a_lease_that_falls_back_and_is_renewed_is_not_the_one_that_a_candidate_saw() {
    for counts_beats in [false, true] {
        let mut world = World::steady(2);
        world.run(SECOND * 5);
        world.counts_beats = counts_beats;
        world.hold_replica_back();
        let (master, candidate) = (world.nodes[0].id, world.nodes[1].id);
        let renew = Query::Renew { term: 1, master };
        world.take_effect(master, renew.clone());
        let seen = world.tables.read(world.now).lease.expect("it was renewed");
        world.fail_over();
        let wrong = catch_unwind(AssertUnwindSafe(|| world.take_effect(master, renew)));
        assert_eq!(wrong.is_err(), counts_beats, "the checks notice a lease that comes twice");
        let take_over = world.tables.take_over(&seen, 1, candidate, 1);
        assert_eq!(take_over.is_some(), counts_beats);
    }
}

/// A database that became read-only answers every read, and no node can renew the lease, take it over or announce
/// itself.
#[test]
fn a_database_that_refuses_writes_degrades_the_nodes_and_stops_nothing() {
    let mut world = World::steady(3);
    world.run(SECOND * 5);
    world.refuse_writes(true);
    world.run(SECOND * 4);
    for node in &world.nodes {
        let status = node.core.as_ref().map(Core::status).unwrap_or_default();
        assert_eq!(status.degraded, Some(Degraded::PoolReadOnly));
    }
    let before = world.checks.accepted_so_far();
    world.publish(1, Bytes::from_static(b"one"), None);
    world.run(SECOND);
    assert_eq!(world.checks.accepted_so_far(), before + 1, "two nodes hold it");
    world.crash(1);
    world.crash(2);
    world.run(SECOND * 6);
    world.publish(0, Bytes::from_static(b"two"), None);
    world.run(SECOND * 6);
    assert_eq!(world.checks.accepted_so_far(), before + 1, "nothing shows that this master is alone");
    world.refuse_writes(false);
    world.run(SECOND * 4);
    assert_eq!(world.checks.accepted_so_far(), before + 2);
    assert_eq!(world.nodes[0].core.as_ref().and_then(|core| core.status().degraded), Some(Degraded::NoFollowerLinked));
}

/// After a fail-over to a database server whose clock is behind, every row looks old although the nodes are alive.
#[test]
fn a_clock_that_is_behind_hides_no_member() {
    let mut world = World::steady(3);
    world.run(SECOND * 5);
    (0..3).for_each(|place| world.skew_database(place, SECOND * 40, Duration::ZERO));
    world.run(SECOND * 30);
    for node in &world.nodes {
        let status = node.core.as_ref().map(Core::status).unwrap_or_default();
        assert_eq!((status.nodes.len(), status.degraded), (3, None));
    }
    world.crash(0);
    world.run(SECOND);
    let masters = world.nodes.iter().filter_map(|node| node.core.as_ref()).filter(|core| core.is_serving_master());
    assert_eq!(masters.count(), 1, "the others agree at once on one of them");
}

/// A node that was away for longer than the others keep their entries becomes the master, with its old log. What the
/// others delivered at that time must not be delivered again.
#[test]
fn a_master_that_was_away_for_long_brings_no_old_messages_back() {
    let mut limits = Limits::plain();
    limits.log.age = SECOND * 10;
    let mut world = World::of(Random(0), true, limits, 3, None, true);
    world.run(SECOND * 5);
    world.publish(1, Bytes::from_static(b"one"), None);
    world.run(SECOND);
    (0..3).filter(|place| *place != 1).for_each(|place| world.cut_both(1, place));
    (1..3).for_each(|place| world.cut_database(place, true));
    for _ in 0..40 {
        world.publish(2, Bytes::from_static(b"more"), None);
        world.run(SECOND);
    }
    let before = world.checks.deliveries;
    world.crash(0);
    world.heal_cuts();
    world.cut_database(1, false);
    world.run(SECOND * 8);
    assert!(world.nodes[1].core.as_ref().is_some_and(Core::is_serving_master));
    world.cut_database(2, false);
    world.run(SECOND * 5);
    let cores = world.nodes.iter().filter_map(|node| node.core.as_ref());
    assert_eq!(world.checks.settled(cores), Ok(()));
    assert!(world.checks.deliveries > before, "what c had published lately comes again to both");
}

/// Two masters take publishes with one key. The clients of the master that is given up have got its publish, and the
/// other master forgets its own publish sooner.
#[test]
fn a_key_that_another_master_knew_longer_ago_is_not_delivered_twice() {
    let mut limits = Limits::plain();
    (limits.log.age, limits.log.count) = (SECOND * 10, 5);
    let mut world = World::of(Random(0), true, limits, 3, None, true);
    let publish = |world: &mut World, place, text: &'static str, key: Option<&'static str>| {
        let bytes = |text: &'static str| Bytes::from_static(text.as_bytes());
        world.publish(place, bytes(text), key.map(bytes));
    };
    world.run(SECOND * 5);
    [0, 2].into_iter().for_each(|place| {
        world.cut_both(1, place);
        world.cut_database(place, true);
    });
    world.run(SECOND * 12);
    assert!(world.nodes[1].core.as_ref().is_some_and(Core::is_serving_master));
    publish(&mut world, 1, "one", Some("key"));
    world.run(SECOND * 8);
    publish(&mut world, 2, "two", Some("key"));
    for _ in 0..10 {
        publish(&mut world, 1, "more", None);
        publish(&mut world, 2, "more", None);
        world.run(Duration::from_millis(400));
    }
    world.heal_cuts();
    [0, 2].into_iter().for_each(|place| world.cut_database(place, false));
    world.run(SECOND * 9);
    // This is 21 seconds after the first publish and 13 seconds after the second.
    publish(&mut world, 1, "three", Some("key"));
    world.run(SECOND * 5);
    let cores = world.nodes.iter().filter_map(|node| node.core.as_ref());
    assert_eq!(world.checks.settled(cores), Ok(()));
}

/// Only a node that has just joined holds the last entry when the master dies. The other member has not read in the pool
/// that this node is a member, and must not take the lease before it does.
#[test]
fn a_candidate_reads_who_has_joined_before_it_takes_the_lease() {
    for moment in 0..10 {
        let mut world = World::steady(3);
        world.run(SECOND * 5);
        world.crash(1);
        // Views are read twice a second.
        world.run(SECOND * 5 + Duration::from_millis(50) * moment);
        world.slow_database(200);
        world.boot(1);
        let joiner = world.nodes[1].id;
        while !world.tables.read(world.now).nodes.iter().any(|row| row.node == joiner && row.joined.is_some()) {
            world.run(Duration::from_millis(1));
        }
        world.cut(0, 2);
        world.publish(0, Bytes::from_static(b"one"), None);
        world.run(Duration::from_millis(3));
        assert_eq!(world.checks.accepted_so_far(), 1);
        let rewrites = |world: &World| world.nodes[1].core.as_ref().map(Core::rewrites);
        let before = rewrites(&world);
        world.crash(0);
        world.heal_cuts();
        let lost = world.nodes[2].ends.iter().find(|(_, end)| end.peer == 0).map(|(&link, _)| link);
        world.hang_up(2, lost.expect("it had joined"));
        world.run(SECOND * 8);
        let cores = world.nodes.iter().filter_map(|node| node.core.as_ref());
        assert_eq!(world.checks.settled(cores), Ok(()));
        assert_eq!(rewrites(&world), before, "what it has delivered keeps its position");
    }
}

/// A follower has not caught up, because its window is small, when the master shuts down.
#[test]
fn a_master_that_shuts_down_waits_for_a_follower_that_catches_up() {
    let mut limits = Limits::plain();
    (limits.window, limits.batch) = (400, 400);
    let mut world = World::of(Random(0), true, limits, 2, None, true);
    world.run(SECOND * 5);
    world.crash(1);
    world.run(SECOND * 5);
    (0..20).for_each(|_| world.publish(0, Bytes::from_static(b"one"), None));
    world.run(SECOND);
    assert_eq!(world.checks.accepted_so_far(), 20, "it is alone");
    world.boot(1);
    world.slow_down(0, 1, Duration::from_millis(50));
    let follows = |world: &World| world.nodes[0].core.as_ref().is_some_and(|core| !core.followers().is_empty());
    while !follows(&world) {
        world.run(Duration::from_millis(1));
    }
    world.shut_down(0);
    world.run(SECOND * 5);
    assert!(world.nodes[0].core.is_none(), "it has ended");
    let core = world.nodes[1].core.as_ref().expect("it lives");
    assert!(core.is_serving_master());
    assert_eq!(core.entries_after(0).filter(|entry| entry.proposal.content.is_some()).count(), 20);
}

/// A publish with a key waits on a node that sleeps. Another node publishes with the same key, before or after the first
/// one falls asleep, and the others forget the key.
#[test]
fn what_waits_on_a_sleeper_is_not_delivered_beside_another_publish_with_its_key() {
    let key = || Some(Bytes::from_static(b"key"));
    for other_is_first in [true, false] {
        let mut limits = Limits::plain();
        limits.log.age = SECOND * 10;
        let mut world = World::of(Random(0), true, limits, 3, None, true);
        world.run(SECOND * 5);
        world.slow_down(1, 0, SECOND * 60);
        if other_is_first {
            world.publish(2, Bytes::from_static(b"one"), key());
            world.run(SECOND);
        }
        world.publish(1, Bytes::from_static(b"two"), key());
        world.sleep(1);
        world.publish(2, Bytes::from_static(b"one again"), key());
        for _ in 0..30 {
            world.publish(2, Bytes::from_static(b"more"), None);
            world.run(SECOND);
        }
        world.slow.clear();
        world.resume(1);
        world.run(SECOND * 5);
        let cores = world.nodes.iter().filter_map(|node| node.core.as_ref());
        assert_eq!(world.checks.settled(cores), Ok(()));
        let master = world.nodes[0].core.as_ref().expect("it lives");
        let entries = master.entries_after(master.place_of_base());
        let with_key = entries.filter(|entry| entry.proposal.key.is_some() && entry.proposal.content.is_some());
        assert_eq!(with_key.count(), 0, "the key was there {}", if other_is_first { "before" } else { "meanwhile" });
    }
}

/// Two nodes accept messages, and the third, which reaches the database, has become another master. They come together
/// after longer than a log reaches back.
#[test]
fn what_a_rejoining_node_has_trimmed_counts_as_dropped() {
    let mut limits = Limits::plain();
    limits.log.age = SECOND * 10;
    let mut world = World::of(Random(0), true, limits, 3, None, true);
    world.run(SECOND * 5);
    [0, 2].into_iter().for_each(|place| {
        world.cut_both(1, place);
        world.cut_database(place, true);
    });
    let before = world.checks.accepted_so_far();
    for _ in 0..40 {
        world.publish(0, Bytes::from_static(b"one side's"), None);
        world.run(SECOND);
    }
    let accepted = world.checks.accepted_so_far() - before;
    assert_eq!(accepted, 40);
    world.heal_cuts();
    [0, 2].into_iter().for_each(|place| world.cut_database(place, false));
    world.run(SECOND * 8);
    let cores = world.nodes.iter().filter_map(|node| node.core.as_ref());
    assert_eq!(world.checks.settled(cores.clone()), Ok(()));
    for core in cores.filter(|core| !core.is_serving_master()) {
        let again = core.entries_after(1).count();
        assert!((5..15).contains(&again), "the log keeps ten seconds, and {again} came again");
        assert_eq!(core.status().dropped, (accepted - again) as u64);
    }
}

/// The simulator notices each rule that is missing.
#[test]
fn a_core_that_lacks_a_rule_is_caught() {
    let mutants =
        [Fault::ForgetsCut, Fault::ShufflesCut, Fault::AcceptsAlone, Fault::IgnoresKeys, Fault::DefersForEver];
    for mutant in mutants {
        let caught = first_wrong(0, 2000, |seed| {
            storm(seed, Some(mutant), false);
            single_faults(seed, Some(mutant), false);
            quick_members_stop(seed, Some(mutant), false);
        });
        let Some((seed, why)) = caught else { panic!("{mutant:?} was not caught") };
        println!("{mutant:?} is caught by seed {seed}: {why}");
    }
}

#[test]
fn a_single_node_is_master_at_once_and_alone() {
    let mut world = World::new(1, 1, None, false);
    live(&mut world, SECOND);
    assert!(world.nodes[0].core.as_ref().is_some_and(Core::is_serving_master));
    settle(&mut world);
    assert!(world.checks.deliveries > 0);
}

/// Two nodes that dial each other at the same time have two links, and the link of the join may end first.
#[test]
fn a_node_that_lost_its_link_joins_again_over_another_that_stands() {
    let mut world = World::steady(2);
    world.run(SECOND * 5);
    world.crash(1);
    world.boot(1);
    world.run(Duration::from_millis(50));
    let (id, address) = (world.nodes[1].id, world.nodes[1].address.clone());
    let first = world.nodes[1].ends.keys().next().copied().expect("it has joined");
    world.dial(0, id, &address);
    world.run(Duration::from_millis(10));
    world.hang_up(1, first);
    world.run(SECOND * 2);
    let cores = world.nodes.iter().filter_map(|node| node.core.as_ref());
    assert_eq!(world.checks.settled(cores), Ok(()));
}

/// A link may deliver a delayed join after its sender has joined over another link.
#[test]
fn a_join_that_comes_late_does_not_undo_a_later_one() {
    let mut world = World::steady(2);
    world.run(SECOND * 5);
    let (id, address) = (world.nodes[1].id, world.nodes[1].address.clone());
    world.dial(0, id, &address);
    world.run(Duration::from_millis(10));
    let second = world.nodes[0].ends.keys().next_back().copied().expect("there are two links");
    let term = world.nodes[0].core.as_ref().map_or(0, Core::term);
    let join = Join { attempt: 0, base: 0, last: 0, last_term: 0, lineage: Lineage::default() };
    world.frame_arrived(0, second, Frame { term, body: Body::Join(join) });
    world.hang_up(0, second);
    world.run(SECOND * 10);
    let cores = world.nodes.iter().filter_map(|node| node.core.as_ref());
    assert_eq!(world.checks.settled(cores), Ok(()));
    assert!(world.nodes[0].core.as_ref().is_some_and(|master| !master.believes_alone()));
}
