//! Small networks in which something breaks: peers that are dead, silent or empty, partitions, clocks, restarts.

use std::time::Duration;

use kinfolk_core::catalog::{self, Sighting, Source};
use kinfolk_core::id::NetworkId;
use kinfolk_core::record::{Record, Ttl};
use kinfolk_core::walk::Wake;

use super::node::{Manner, Plan, address};
use super::time::{millis, secs};
use super::world::{Links, World};

const MINUTE: Duration = secs(60);

/// So many nodes with one bootstrap peer, number 0, all started.
fn star(links: Links, count: usize, seed: u64) -> (World, Vec<usize>) {
    star_with(links, count, seed, false)
}

fn star_with(links: Links, count: usize, seed: u64, has_neighbours: bool) -> (World, Vec<usize>) {
    let mut world = World::new(links, seed);
    world.has_neighbours = has_neighbours;
    let all: Vec<_> = world.add_many(count).collect();
    for node in &all[1..] {
        world.configure(*node, &[0]);
    }
    for node in &all {
        world.start_node(*node);
    }
    (world, all)
}

#[track_caller]
fn assert_soon(world: &mut World, among: &[usize], most: Duration) -> Duration {
    let begun = world.elapsed();
    let is_done = world.run_until(millis(50), most, |world| world.all_know_all(among));
    let missing: Vec<_> =
        among.iter().map(|node| world.misses(*node, among)).filter(|misses| *misses > 0).collect();
    assert!(is_done, "after {most:?} so many records are missing: {missing:?}");
    world.elapsed() - begun
}

#[test]
fn forty_nodes_on_one_machine_know_each_other_within_a_second_and_a_half() {
    for seed in 0..10 {
        let (mut world, all) = star(Links::LOOPBACK, 40, seed);
        let took = assert_soon(&mut world, &all, millis(1500));
        println!("seed {seed}: {took:?}");
    }
}

#[test]
fn forty_nodes_that_keep_neighbours_know_each_other_as_soon_with_fewer_dials() {
    let dials = |has_neighbours| {
        let mut dials = 0;
        for seed in 0..10 {
            let (mut world, all) = star_with(Links::LOOPBACK, 40, seed, has_neighbours);
            let took = assert_soon(&mut world, &all, millis(1500));
            world.run(secs(3));
            println!("neighbours {has_neighbours}, seed {seed}: {took:?}");
            dials += world.nodes.iter().map(|node| node.figures.dials).sum::<u64>();
        }
        dials
    };
    let (without, with) = (dials(false), dials(true));
    println!("dials of a node: {:.1} and {:.1}", without as f64 / 400.0, with as f64 / 400.0);
    assert!(with * 3 < without * 2, "{with} dials instead of {without}");
}

#[test]
fn a_dead_bootstrap_peer_delays_nobody_who_knows_another() {
    let mut world = World::new(Links::LOOPBACK, 1);
    let all: Vec<_> = world.add_many(30).collect();
    for node in &all[2..] {
        world.configure(*node, &[0, 1]);
    }
    for node in &all[1..] {
        world.start_node(*node);
    }
    let took = assert_soon(&mut world, &all[1..], MINUTE);
    println!("with a dead one: {took:?}");
    // From then on it is worth a dial every quarter of an hour, and no news is waited for it.
    world.refresh(7);
    world.wake(7, Wake::Changed);
    world.run(secs(1));
    let informed = all[1..].iter().filter(|node| world.is_up_to_date(**node, 7)).count();
    assert!(informed >= 2, "{informed}");
}

#[test]
fn a_bootstrap_peer_that_is_down_at_the_start_is_found_when_it_comes_up() {
    let mut world = World::new(Links::WORLD, 1);
    let all: Vec<_> = world.add_many(10).collect();
    for node in &all[1..] {
        world.configure(*node, &[0]);
        world.start_node(*node);
    }
    world.run(5 * MINUTE);
    world.start_node(0);
    let took = assert_soon(&mut world, &all, 6 * MINUTE);
    println!("found after {took:?}");
}

#[test]
fn a_silent_peer_freezes_nobody() {
    let mut world = World::new(Links::WORLD, 3);
    let all: Vec<_> = world.add_many(30).collect();
    world.nodes[0].manner = Manner::Silent;
    for node in &all[2..] {
        world.configure(*node, &[0, 1]);
    }
    for node in &all {
        world.start_node(*node);
    }
    let took = assert_soon(&mut world, &all[1..], 3 * MINUTE);
    println!("with a silent one: {took:?}");
}

#[test]
fn peers_that_answer_with_nothing_are_not_asked_in_a_loop() {
    let mut world = World::new(Links::LOOPBACK, 3);
    let all: Vec<_> = world.add_many(20).collect();
    for node in &all[..10] {
        world.nodes[*node].manner = Manner::Empty;
    }
    for node in &all {
        world.configure(*node, &[0, 10]);
        world.start_node(*node);
    }
    world.run(60 * MINUTE);
    for node in &all[10..] {
        let visits = world.nodes[*node].figures.visits;
        assert!(visits < 400, "{visits} visits in an hour");
        assert_eq!(world.misses(*node, &all[10..]), 0);
    }
}

#[test]
fn walks_at_rest_dial_a_fraction_of_what_they_visit_if_there_are_neighbours() {
    let (mut world, all) = star_with(Links::LOOPBACK, 40, 5, true);
    world.run(15 * MINUTE);
    let sum = |world: &World, of: fn(&super::node::Figures) -> u64| -> u64 {
        all.iter().map(|node| of(&world.nodes[*node].figures)).sum()
    };
    let (visits, dials) = (sum(&world, |f| f.visits), sum(&world, |f| f.dials));
    world.run(10 * MINUTE);
    let visits = sum(&world, |f| f.visits) - visits;
    let dials = sum(&world, |f| f.dials) - dials;
    println!("{visits} visits, {dials} dials");
    assert!(dials > 0 && dials * 2 < visits, "{dials} dials for {visits} visits");
}

#[test]
fn a_network_at_rest_is_nearly_silent() {
    let (mut world, all) = star(Links::LOOPBACK, 40, 5);
    // Long enough that no record has to be signed anew.
    world.run(5 * MINUTE);
    let before: Vec<_> = all.iter().map(|node| world.nodes[*node].figures).collect();
    world.run(5 * MINUTE);
    for node in all {
        let (then, now) = (before[node], world.nodes[node].figures);
        assert!(now.visits - then.visits <= 12, "{} visits", now.visits - then.visits);
        assert!(now.bytes_sent - then.bytes_sent < 16 * 1024);
    }
}

#[test]
fn the_halves_of_a_parted_network_go_on_and_merge_again() {
    for has_neighbours in [false, true] {
        part_and_merge(has_neighbours);
    }
}

fn part_and_merge(has_neighbours: bool) {
    let (mut world, all) = star_with(Links::WORLD, 40, 2, has_neighbours);
    assert_soon(&mut world, &all, MINUTE);
    for node in &all[20..] {
        world.nodes[*node].part = 1;
    }
    world.links.are_parted = true;
    let newcomers: Vec<_> = world.add_many(2).collect();
    world.configure(newcomers[0], &[1]);
    world.configure(newcomers[1], &[21]);
    world.nodes[newcomers[1]].part = 1;
    for node in [newcomers[0], newcomers[1]] {
        world.start_node(node);
    }
    // One on each side has changed as well.
    for node in [3, 23] {
        world.refresh(node);
        world.wake(node, Wake::Changed);
    }
    world.run(8 * MINUTE);
    let one: Vec<_> = (0..20).chain([newcomers[0]]).collect();
    let other: Vec<_> = (20..40).chain([newcomers[1]]).collect();
    assert!(world.all_know_all(&one) && world.all_know_all(&other));
    assert!(!world.knows(newcomers[0], newcomers[1]));
    world.links.are_parted = false;
    let all: Vec<_> = one.into_iter().chain(other).collect();
    let took = assert_soon(&mut world, &all, 20 * MINUTE);
    println!("merged after {took:?}");
}

#[test]
fn a_late_joiner_knows_all_in_seconds_and_is_known_by_all_in_minutes() {
    let (mut world, _) = star(Links::WORLD, 100, 4);
    world.run(10 * MINUTE);
    let late = world.add_many(1).start;
    world.configure(late, &[0]);
    world.start_node(late);
    let all: Vec<_> = (0..=late).collect();
    let knows = world.run_until(millis(50), secs(5), |world| world.misses(late, &all) == 0);
    assert!(knows, "{} missing", world.misses(late, &all));
    let knew = world.elapsed() - 10 * MINUTE;
    let took = assert_soon(&mut world, &all, 15 * MINUTE);
    println!("knows all after {knew:?}, is known by all after {took:?}");
}

#[test]
fn a_departure_spreads_and_nothing_brings_the_departed_back() {
    let (mut world, all) = star(Links::WORLD, 40, 6);
    world.revived = Some(0);
    assert_soon(&mut world, &all, MINUTE);
    // Four in forty go on telling what they knew then, and learn nothing any more.
    for node in [9, 19, 29, 39] {
        world.nodes[node].manner = Manner::Stubborn;
    }
    let gone = 7;
    let (now, elapsed) = (world.now, world.elapsed());
    let node = &mut world.nodes[gone];
    let clock = node.clock(elapsed);
    let seq = node.seqs.next(clock).unwrap();
    let departure = Record::departure(node.network, &node.key, seq, clock).unwrap();
    let id = node.id;
    node.tell(now, catalog::Input::Own(departure.clone()));
    world.mint.keep(&departure);
    world.wake(gone, Wake::Changed);
    world.run(secs(10));
    world.crash(gone);
    let honest: Vec<_> = all
        .into_iter()
        .filter(|node| *node != gone && world.nodes[*node].manner == Manner::Honest)
        .collect();
    let is_gone = world.run_until(secs(1), 15 * MINUTE, |world| {
        honest.iter().all(|node| !world.knows(*node, gone))
    });
    assert!(is_gone);
    println!("the departure was everywhere after {:?}", world.elapsed() - elapsed);
    // Everybody signs anew, twice; those four go on with what was.
    for _ in 0..2 {
        world.run(15 * MINUTE);
        for node in &honest {
            world.refresh(*node);
        }
    }
    world.run(15 * MINUTE);
    assert_eq!(world.revived, Some(0));
    for node in &honest {
        assert!(world.nodes[*node].catalog.known().get(&id).is_none(), "it is back");
        assert_eq!(world.misses(*node, &honest), 0);
    }
}

#[test]
fn a_vanished_node_is_forgotten_after_its_ttl_however_much_it_is_talked_of() {
    let mut world = World::new(Links::LOOPBACK, 6);
    let ttl = Ttl::from_secs(120).unwrap();
    for number in 0..30 {
        world.add(&Plan { ttl, ..Plan::new(number) });
        world.configure(usize::try_from(number).unwrap(), &[0]);
    }
    let all: Vec<_> = (0..30).collect();
    all.iter().for_each(|node| world.start_node(*node));
    assert_soon(&mut world, &all, secs(2));
    let vanished = world.known_record(0, 13).unwrap().clone();
    world.crash(13);
    world.run(secs(100));
    assert!(all.iter().filter(|node| world.knows(**node, 13)).count() > 20);
    world.run(secs(21));
    for node in all.iter().filter(|node| **node != 13) {
        assert!(!world.knows(*node, 13), "{node} still knows it");
    }
    // Somebody goes on, says that it is as new as when it was signed, and a newcomer remembers nothing.
    let forger = world.add(&Plan { ttl, ..Plan::new(90) });
    let issued_at = vanished.issued_at();
    let sighting = Sighting::new(vanished, world.now, issued_at, Duration::ZERO);
    let now = world.now;
    world.nodes[forger].tell(now, catalog::Input::Heard { sighting, source: Source::Store });
    world.nodes[forger].manner = Manner::Stubborn;
    let newcomer = world.add(&Plan { ttl, ..Plan::new(91) });
    for node in [forger, newcomer] {
        world.configure(node, &[0]);
        world.start_node(node);
    }
    assert!(world.knows(forger, 13));
    for _ in 0..100 {
        world.run(secs(1));
        world.wake(forger, Wake::Changed);
        assert!(all.iter().all(|node| *node == 13 || !world.knows(*node, 13)));
        assert!(!world.knows(newcomer, 13));
    }
    assert!(world.nodes[forger].figures.visits > 50);
}

#[test]
fn a_clock_that_is_ten_years_ahead_harms_nobody_and_heals() {
    const TEN_YEARS: i64 = 10 * 365 * 24 * 3600 * 1000;
    let mut world = World::new(Links::WORLD, 8);
    let all: Vec<_> = world.add_many(30).collect();
    for node in &all[1..] {
        world.configure(*node, &[0]);
    }
    world.nodes[5].skew = TEN_YEARS;
    all.iter().for_each(|node| world.start_node(*node));
    world.run(5 * MINUTE);
    let others: Vec<_> = all.iter().copied().filter(|node| *node != 5).collect();
    assert!(world.all_know_all(&others));
    assert!(others.iter().all(|node| !world.knows(*node, 5)));
    world.nodes[5].skew = 0;
    world.refresh(5);
    world.wake(5, Wake::Changed);
    let took = assert_soon(&mut world, &all, 15 * MINUTE);
    println!("healed after {took:?}");
}

#[test]
fn a_node_whose_clock_is_an_hour_behind_can_be_used_by_those_it_talks_to() {
    let mut world = World::new(Links::WORLD, 8);
    let all: Vec<_> = world.add_many(20).collect();
    for node in &all[1..] {
        world.configure(*node, &[0]);
    }
    world.nodes[5].skew = -3600 * 1000;
    all.iter().for_each(|node| world.start_node(*node));
    world.run(2 * MINUTE);
    let entry = world.nodes[0].catalog.known().get(&world.nodes[5].id).expect("it is known");
    assert_eq!(entry.addresses().count(), 1);
}

/// A node restarts elsewhere, without memory, its clock ahead by so much, and is found there by all others.
fn restarts_elsewhere(skew: i64) {
    let (mut world, all) = star(Links::WORLD, 40, 9);
    assert_soon(&mut world, &all, MINUTE);
    world.crash(11);
    world.run(secs(40));
    world.nodes[11].address = address(11, 1);
    world.forget_all(11, &Plan::new(11));
    world.nodes[11].skew = skew;
    world.start_node(11);
    let (begun, others) = (world.elapsed(), all.iter().filter(|node| **node != 11));
    let is_found = world.run_until(millis(50), MINUTE, |world| {
        others.clone().all(|node| world.misses(*node, &all) == 0)
    });
    assert!(is_found);
    println!("found after {:?}", world.elapsed() - begun);
}

#[test]
fn a_node_that_restarts_elsewhere_without_memory_is_found_there() {
    restarts_elsewhere(0);
}

#[test]
fn a_node_that_restarts_elsewhere_without_memory_and_with_its_clock_behind_is_found_there() {
    // It can say nothing newer than what the others know until it has heard of that.
    restarts_elsewhere(-10 * 60 * 1000);
}

#[test]
fn two_networks_that_share_their_bootstrap_hosts_never_mix() {
    let mut world = World::new(Links::WORLD, 10);
    let networks = [NetworkId::from_name("one"), NetworkId::from_name("other")];
    for number in 0..40 {
        let network = networks[usize::try_from(number).unwrap() % 2];
        world.add(&Plan { network, ..Plan::new(number) });
    }
    let all: Vec<_> = (0..40).collect();
    for node in &all {
        world.configure(*node, &[0, 1]);
        world.start_node(*node);
    }
    world.run(5 * MINUTE);
    let (one, other): (Vec<_>, Vec<_>) = all.iter().partition(|node| **node % 2 == 0);
    assert!(world.all_know_all(&one) && world.all_know_all(&other));
    for node in one {
        assert!(other.iter().all(|stranger| !world.knows(node, *stranger)));
        assert!(other.iter().all(|stranger| !world.knows(*stranger, node)));
    }
}

#[test]
fn churn_is_followed() {
    let (mut world, all) = star(Links::WORLD, 60, 12);
    world.run(MINUTE);
    for round in 0_u32..30 {
        let node = 1 + usize::try_from(world.below(59)).unwrap();
        if world.nodes[node].is_up {
            world.crash(node);
        } else {
            let moves = u8::try_from(round + 1).unwrap();
            let number = u32::try_from(node).unwrap();
            world.nodes[node].address = address(number, moves);
            world.forget_all(node, &Plan::new(number));
            world.start_node(node);
        }
        world.run(secs(20));
    }
    let took = assert_soon(&mut world, &all, 10 * MINUTE);
    println!("all know all {took:?} after the last change");
}
