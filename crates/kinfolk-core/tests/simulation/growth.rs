//! How fast a network gets to know itself, and what that costs each node.
//!
//! Nodes start within ten seconds, each with three bootstrap peers out of one node in a hundred. A tenth of the nodes cannot be
//! dialled. One line per checkpoint goes to `target/simulation-<nodes>.csv`, or where `KINFOLK_SIMULATION_CSV` says.

use std::fmt::Write as _;
use std::time::Duration;

use kinfolk_core::catalog::CatalogLimits;

use super::node::Plan;
use super::time::{millis, secs};
use super::world::{Links, World};

struct Network {
    nodes: usize,
    seed: u64,
    unreachable_per_cent: u64,
    joins_within: Duration,
    /// Records that a catalog holds.
    capacity: usize,
    /// Whether each keeps sessions with some neighbours.
    has_neighbours: bool,
}

#[derive(Debug, Clone, Copy)]
struct Milestone {
    share: f64,
    after: Duration,
    visits: f64,
    dials: f64,
    exchanges: f64,
    bytes: f64,
    stale: Duration,
}

struct Outcome {
    milestones: Vec<Milestone>,
    /// Size of all other records.
    bound: f64,
    most_visits: u64,
    failed: f64,
    busiest: f64,
    busiest_bytes: f64,
    heard: f64,
    learnt: f64,
}

const SHARES: [f64; 5] = [0.5, 0.9, 0.99, 0.999, 1.0];

fn grow(plan: &Network) -> Outcome {
    let count = plan.nodes;
    let mut world = World::new(Links::WORLD, plan.seed);
    world.has_neighbours = plan.has_neighbours;
    for number in 0..count {
        let catalog = CatalogLimits { records: plan.capacity, ..CatalogLimits::default() };
        world.add(&Plan { catalog, ..Plan::new(u32::try_from(number).unwrap()) });
    }
    let seeds = (count / 100).max(3);
    let mut joins: Vec<(Duration, usize)> = Vec::new();
    for node in 0..count {
        let within = u64::try_from(plan.joins_within.as_millis()).unwrap();
        let at = if node < seeds { 0 } else { world.below(within + 1) };
        joins.push((millis(at), node));
        let mut chosen: Vec<usize> = Vec::new();
        while chosen.len() < 3.min(seeds) {
            let seed = usize::try_from(world.below(seeds.try_into().unwrap())).unwrap();
            if !chosen.contains(&seed) {
                chosen.push(seed);
            }
        }
        world.configure(node, &chosen);
        world.nodes[node].is_reachable =
            node < seeds || world.below(100) >= plan.unreachable_per_cent;
    }
    joins.sort();
    let mut csv = String::from("ms,known_per_mille,visits,exchanges,bytes_sent\n");
    let mut milestones: Vec<Milestone> = Vec::new();
    let mut joining = joins.iter().peekable();
    while milestones.len() < SHARES.len() && world.elapsed() < secs(600) {
        let next = world.elapsed() + millis(100);
        while let Some((at, node)) = joining.next_if(|(at, _)| *at <= next) {
            world.run(at.saturating_sub(world.elapsed()));
            world.start_node(*node);
        }
        world.run(next - world.elapsed());
        let pairs = (count * (count - 1)) as f64;
        let known: usize = world.nodes.iter().map(|node| node.catalog.known().len()).sum();
        let share = known as f64 / pairs;
        let mean = |of: fn(&super::node::Figures) -> u64| {
            world.nodes.iter().map(|node| of(&node.figures)).sum::<u64>() as f64 / count as f64
        };
        let visits = mean(|figures| figures.visits);
        let dials = mean(|figures| figures.dials);
        let exchanges = mean(|figures| figures.visits - figures.failed + figures.served);
        let bytes = mean(|figures| figures.bytes_sent);
        let ms = world.elapsed().as_millis();
        writeln!(csv, "{ms},{:.0},{visits:.2},{exchanges:.2},{bytes:.0}", share * 1000.0).unwrap();
        while milestones.len() < SHARES.len() && share >= SHARES[milestones.len()] {
            let stale = staleness(&world, &joins);
            let share = SHARES[milestones.len()];
            let after = world.elapsed();
            milestones.push(Milestone { share, after, visits, dials, exchanges, bytes, stale });
        }
    }
    write_csv(count, &csv);
    let size =
        |node: &super::node::Node| node.catalog.known().own().unwrap().record().bytes().len();
    let total: usize = world.nodes.iter().map(size).sum();
    let load = |of: fn(&super::node::Figures) -> u64| {
        let mut loads: Vec<_> = world.nodes.iter().map(|node| of(&node.figures)).collect();
        loads.sort_unstable();
        loads[count - 1] as f64 / loads[count / 2] as f64
    };
    let mean = |of: fn(&super::node::Figures) -> u64| {
        world.nodes.iter().map(|node| of(&node.figures)).sum::<u64>() as f64 / count as f64
    };
    Outcome {
        milestones,
        bound: total as f64 * (count - 1) as f64 / count as f64,
        most_visits: world.nodes.iter().map(|node| node.figures.visits).max().unwrap(),
        failed: mean(|figures| figures.failed),
        busiest: load(|figures| figures.visits - figures.failed + figures.served),
        busiest_bytes: load(|figures| figures.bytes_sent + figures.bytes_received),
        heard: mean(|figures| figures.heard),
        learnt: mean(|figures| figures.learnt),
    }
}

/// The mean age of what is missing somewhere, for as long as its node and the one that misses it are both there.
fn staleness(world: &World, joins: &[(Duration, usize)]) -> Duration {
    // By id, as catalogs are: a look into a catalog for each pair would take longer than the network does to grow.
    let up = joins.iter().filter(|(_, node)| world.nodes[*node].is_up);
    let mut joined: Vec<_> = up.map(|(at, node)| (world.nodes[*node].id, *node, *at)).collect();
    joined.sort();
    let (mut ages, mut count) = (Duration::ZERO, 0_u32);
    for (_, node, here) in &joined {
        let mut known =
            world.nodes[*node].catalog.known().iter().map(|entry| entry.id()).peekable();
        for (id, other, there) in &joined {
            while known.next_if(|known| known < id).is_some() {}
            if node != other && known.peek() != Some(id) {
                ages += world.elapsed() - *here.max(there);
                count += 1;
            }
        }
    }
    ages.checked_div(count).unwrap_or_default()
}

fn write_csv(nodes: usize, csv: &str) {
    let path = std::env::var("KINFOLK_SIMULATION_CSV").unwrap_or_else(|_| {
        let target = env!("CARGO_TARGET_TMPDIR");
        format!("{target}/../simulation-{nodes}.csv")
    });
    std::fs::write(&path, csv).unwrap_or_else(|error| panic!("{path}: {error}"));
}

fn print(plan: &Network, outcome: &Outcome) {
    println!(
        "{} nodes, neighbours {}, seed {}, {} % unreachable, room for {} records; bound {:.0} B",
        plan.nodes,
        plan.has_neighbours,
        plan.seed,
        plan.unreachable_per_cent,
        plan.capacity,
        outcome.bound
    );
    for at in &outcome.milestones {
        println!(
            "{:5.1} % known after {:6.2} s: {:5.1} visits, {:4.1} of them with a dial, {:5.1} exchanges, {:9.0} B sent per node ({:.2} × bound); missing news is {:?} old",
            at.share * 100.0,
            at.after.as_secs_f64(),
            at.visits,
            at.dials,
            at.exchanges,
            at.bytes,
            at.bytes / outcome.bound,
            at.stale,
        );
    }
    println!(
        "most visits of a node {}, failed {:.2} per node; busiest node {:.1} × median by exchanges, {:.1} × by bytes; records heard {:.0}, learnt {:.0} per node",
        outcome.most_visits,
        outcome.failed,
        outcome.busiest,
        outcome.busiest_bytes,
        outcome.heard,
        outcome.learnt,
    );
}

/// What is demanded of a network of any size.
fn judge(outcome: &Outcome) {
    let nearly_all = outcome.milestones.iter().find(|at| at.share == 0.99).expect("99 % are known");
    assert!(nearly_all.visits <= 20.0, "{} visits per node", nearly_all.visits);
    assert!(nearly_all.bytes <= 3.0 * outcome.bound, "{} bytes per node", nearly_all.bytes);
    assert!(outcome.busiest <= 20.0, "the busiest node has {} × the median", outcome.busiest);
}

#[test]
fn nodes_know_each_other_within_twenty_visits_and_thrice_the_bytes() {
    let nodes = if cfg!(debug_assertions) { 250 } else { 1000 };
    let capacity = CatalogLimits::default().records;
    let mut dials = Vec::new();
    for has_neighbours in [false, true] {
        let plan = Network {
            nodes,
            seed: 1,
            unreachable_per_cent: 10,
            joins_within: secs(10),
            capacity,
            has_neighbours,
        };
        let outcome = grow(&plan);
        print(&plan, &outcome);
        judge(&outcome);
        assert_eq!(outcome.milestones.len(), SHARES.len(), "all are known in the end");
        dials.push(outcome.milestones[2].dials);
    }
    assert!(dials[1] < dials[0], "neighbours spare dials: {dials:?}");
}

#[test]
#[ignore = "takes minutes and, for 10 000 nodes, some 14 GB of memory, in release; the command is in docs/testing.md"]
fn as_many_nodes_as_one_likes() {
    let number =
        |name, default| std::env::var(name).map_or(default, |text| text.parse().expect("a number"));
    let plan = Network {
        nodes: usize::try_from(number("KINFOLK_SIMULATION_NODES", 10_000)).unwrap(),
        seed: number("KINFOLK_SEED", 1),
        unreachable_per_cent: number("KINFOLK_SIMULATION_UNREACHABLE", 10),
        joins_within: secs(number("KINFOLK_SIMULATION_JOIN_SECONDS", 10)),
        capacity: usize::try_from(number("KINFOLK_SIMULATION_CAPACITY", 20_000)).unwrap(),
        has_neighbours: number("KINFOLK_SIMULATION_NEIGHBOURS", 0) > 0,
    };
    let outcome = grow(&plan);
    print(&plan, &outcome);
    judge(&outcome);
}
