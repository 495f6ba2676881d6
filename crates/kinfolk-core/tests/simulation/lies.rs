//! Small networks in which somebody lies: makes up nodes, points at a victim, replays, or surrounds a node that restarts.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use kinfolk_core::catalog::{CatalogLimits, Input, SHARES, Sighting, Source};
use kinfolk_core::record::{Record, Seq, Ttl, UnixMillis};

use super::mint;
use super::node::{Manner, Plan, key};
use super::time::{CLOCK, millis, secs};
use super::world::{Links, World};

const MINUTE: Duration = secs(60);

/// The first number of nodes that do not exist.
const MADE_UP: u32 = 1_000_000;

/// Records of made-up nodes at this address.
fn sybils(count: u32, at: SocketAddr) -> impl Iterator<Item = Record> {
    let sign = move |n| {
        let clock = UnixMillis::new(CLOCK);
        mint::present(mint::network(), &key(MADE_UP + n), at, Ttl::MAX, Seq::new(1), clock)
    };
    (0..count).map(sign)
}

/// A node that tells these records and learns nothing.
fn liar(world: &mut World, number: u32, records: impl Iterator<Item = Record>) -> usize {
    let catalog = CatalogLimits { records: 1 << 18, ..CatalogLimits::default() };
    let node = world.add(&Plan { catalog, ..Plan::new(number) });
    world.nodes[node].manner = Manner::Stubborn;
    let clock = world.nodes[node].clock(world.elapsed());
    for record in records {
        world.mint.keep(&record);
        let sighting = Sighting::new(record, world.now, clock, Duration::ZERO);
        let now = world.now;
        world.nodes[node].tell(now, Input::Heard { sighting, source: Source::Store });
    }
    node
}

fn victim() -> SocketAddr {
    SocketAddr::from(([203, 0, 113, 99], 443))
}

/// What sixty honest nodes know, half an hour after a liar came among them.
struct Siege {
    /// Of the 59 others, at the node that knows, or has proven, the fewest.
    fewest_known: usize,
    fewest_proven: usize,
    /// Honest nodes that can be reached from the first one by way of proven peers.
    reached: usize,
    proven_lies: usize,
    /// Records that the liar itself accounts for at a node.
    most_of_liar: usize,
}

/// `head_start` is for how long the honest nodes are alone.
fn besiege(head_start: Duration) -> Siege {
    let count = if cfg!(debug_assertions) { 5_000 } else { 100_000 };
    let mut world = World::new(Links::WORLD, 1);
    let catalog = CatalogLimits { records: CAPACITY, ..CatalogLimits::default() };
    for number in 0..60 {
        world.add(&Plan { catalog: catalog.clone(), ..Plan::new(number) });
    }
    let honest: Vec<_> = (0..60).collect();
    for node in &honest {
        world.configure(*node, &[0]);
        world.start_node(*node);
    }
    world.run(head_start);
    let liar = liar(&mut world, 99, sybils(count, victim()));
    world.configure(liar, &[0]);
    world.start_node(liar);
    world.run(30 * MINUTE);
    let liar = world.nodes[liar].id;
    let honest_ids: BTreeSet<_> = honest.iter().map(|node| world.nodes[*node].id).collect();
    let mut siege = Siege {
        fewest_known: usize::MAX,
        fewest_proven: usize::MAX,
        reached: 0,
        proven_lies: 0,
        most_of_liar: 0,
    };
    for node in &honest {
        let catalog = &world.nodes[*node].catalog;
        assert!(catalog.known().len() <= CAPACITY);
        let proven: BTreeSet<_> = catalog
            .known()
            .iter()
            .filter(|entry| entry.is_proven())
            .map(|entry| entry.id())
            .filter(|id| *id != liar)
            .collect();
        siege.proven_lies += proven.difference(&honest_ids).count();
        siege.fewest_proven = siege.fewest_proven.min(proven.len());
        siege.fewest_known = siege.fewest_known.min(59 - world.misses(*node, &honest));
        siege.most_of_liar = siege.most_of_liar.max(catalog.loose_records_of(&liar));
    }
    let mut reached = BTreeSet::from([0]);
    let mut ahead = vec![0];
    while let Some(node) = ahead.pop() {
        for other in honest.iter().copied() {
            let entry = world.nodes[node].catalog.known().get(&world.nodes[other].id);
            if entry.is_some_and(|entry| entry.is_proven()) && reached.insert(other) {
                ahead.push(other);
            }
        }
    }
    siege.reached = reached.len();
    println!(
        "alone for {head_start:?}: each knows at least {} of 59 and has proven {}; {} reached by proven peers; {} lies proven, at most {} by the liar itself",
        siege.fewest_known,
        siege.fewest_proven,
        siege.reached,
        siege.proven_lies,
        siege.most_of_liar
    );
    siege
}

const CAPACITY: usize = 640;

#[test]
fn a_source_of_made_up_nodes_takes_its_share_and_does_not_part_those_who_have_met() {
    let siege = besiege(3 * MINUTE);
    assert_eq!(siege.proven_lies, 0);
    assert!(siege.most_of_liar <= CAPACITY / SHARES, "{}", siege.most_of_liar);
    assert_eq!(siege.reached, 60, "honest nodes are connected by proven peers");
    assert!(siege.fewest_proven >= 8, "{}", siege.fewest_proven);
    assert!(siege.fewest_known >= 16, "{}", siege.fewest_known);
}

#[test]
fn a_source_of_made_up_nodes_that_is_there_from_the_start_is_believed_in_nothing() {
    let siege = besiege(Duration::ZERO);
    assert_eq!(siege.proven_lies, 0);
    assert!(siege.most_of_liar <= CAPACITY / 2, "{}", siege.most_of_liar);
    assert!(siege.fewest_proven >= 1, "{}", siege.fewest_proven);
}

/// Dials of the victim in each minute.
fn dials_per_minute(world: &World, minutes: usize) -> Vec<usize> {
    let mut dials = vec![0; minutes];
    for at in world.stray_dials.get(&victim()).into_iter().flatten() {
        let minute = usize::try_from(at.as_secs() / 60).unwrap();
        if let Some(count) = dials.get_mut(minute) {
            *count += 1;
        }
    }
    dials
}

/// A network at rest is fed so many records that point at a victim, and dials it so often per minute.
fn feed(nodes: usize, records: u32, minutes: usize) -> Vec<usize> {
    let mut world = World::new(Links::WORLD, 2);
    let all: Vec<_> = world.add_many(nodes).collect();
    for node in &all {
        let bootstrap = usize::try_from(world.below(3)).unwrap();
        world.configure(*node, &[bootstrap]);
        world.start_node(*node);
    }
    world.run(10 * MINUTE);
    let liar = liar(&mut world, 999_999, sybils(records, victim()));
    world.configure(liar, &[0]);
    world.start_node(liar);
    world.run(secs(60) * u32::try_from(minutes).unwrap());
    let dials = dials_per_minute(&world, 10 + minutes);
    println!("{nodes} nodes, {records} records: {:?} dials per minute", &dials[10..]);
    dials[10..].to_vec()
}

#[test]
fn a_record_that_points_at_a_victim_brings_it_few_dials() {
    let nodes = if cfg!(debug_assertions) { 100 } else { 300 };
    let dials = feed(nodes, 1, 20);
    let most = nodes.div_ceil(60);
    assert!(dials.iter().all(|count| *count <= most), "more than {most} in a minute: {dials:?}");
}

#[test]
fn many_records_that_point_at_a_victim_bring_it_no_more_than_the_budget() {
    let nodes = if cfg!(debug_assertions) { 60 } else { 200 };
    let dials = feed(nodes, u32::try_from(nodes).unwrap(), 60);
    let total: usize = dials.iter().sum();
    assert!(total <= nodes * 5, "{total} dials by {nodes} nodes in an hour");
    let late: usize = dials[30..].iter().sum();
    assert!(late <= nodes, "{late} in the second half of the hour");
}

#[test]
fn a_walker_that_restarts_among_lies_meets_an_honest_peer_within_half_a_minute() {
    let seeds = 300_u32;
    let mut lost = 0;
    for seed in 0..seeds {
        let mut world = World::new(Links::WORLD, u64::from(seed));
        let all: Vec<_> = world.add_many(20).collect();
        for node in &all[1..] {
            world.configure(*node, &[0]);
            world.start_node(*node);
        }
        world.start_node(0);
        world.run(MINUTE);
        // What it has stored: nine lies for each honest record, and as proven ten peers of which three are gone.
        let node = world.add_many(1).start;
        let clock = world.nodes[node].clock(world.elapsed());
        for record in sybils(180, victim()) {
            let sighting = Sighting::new(record, world.now, clock, Duration::ZERO);
            let now = world.now;
            world.nodes[node].tell(now, Input::Heard { sighting, source: Source::Store });
        }
        for gone in [2, 5, 9] {
            world.crash(gone);
        }
        world.configure(node, &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
        world.start_node(node);
        let found = world.run_until(millis(100), secs(30), |world| {
            world.nodes[node].catalog.known().iter().any(|entry| entry.is_proven())
        });
        lost += u32::from(!found);
    }
    println!("{lost} of {seeds} walkers had met nobody after 30 s");
    // Of two walkers of one node, which choose independently, both fail in at most one of a thousand: visits that fail slow down no other walker.
    assert!(f64::from(lost) / f64::from(seeds) < 0.001_f64.sqrt(), "{lost} of {seeds}");
}
