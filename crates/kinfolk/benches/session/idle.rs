//! The rows about sessions that do nothing: the memory and the CPU time that each costs, at the end that has many and at the ends that
//! have one.
//!
//! A hub and its peers are processes of their own, new in each run, so that both ends are counted apart and no run finds the garbage
//! of another.

use std::time::{Duration, Instant};

use kinfolk_bench_probe as probe;
use tokio::task::JoinSet;

use crate::Options;
use crate::arrangement::Arrangement;
use crate::child::{self, Child, Orders, Role};
use crate::stats::{Spread, Target};
use crate::{node, raw};

/// KiB that a session may cost more than a raw connection, at either end.
const MORE: f64 = 24.0;

/// How long handshakes, path probes and first pings are left to die down.
const CALM: Duration = Duration::from_secs(4);

/// Dials at once.
const DIALS: usize = 16;

/// What one session costs one end.
#[derive(Debug, Clone, Copy, Default)]
struct Cost {
    kib: f64,
    blocks: f64,
    /// µs of CPU time per second.
    cpu: f64,
}

/// Runs the rows if they are asked for and prints them.
pub fn run(options: &Options, arrangement: Arrangement) {
    if !options.wants("idle", &arrangement) || options.only.is_some() {
        return;
    }
    let (sessions, watch) = if options.quick { (100, 3) } else { (500, 10) };
    println!("\n{arrangement}: {sessions} idle sessions of one hub, for {watch} s");
    println!(
        "{:<12} {:>10} {:>22} {:>22} {:>24} {:>13} {:>15}",
        "row", "unit", "kinfolk", "raw", "difference or ratio", "target", "blocks k/r"
    );
    let mut runs = Vec::new();
    for _ in 0..options.runs() {
        let watch = Duration::from_secs(watch);
        let ours = measure("kinfolk", arrangement, sessions, watch);
        let theirs = measure("raw", arrangement, sessions, watch);
        runs.push((ours, theirs));
    }
    for (place, end) in ["hub", "peer"].into_iter().enumerate() {
        let more = runs.iter().map(|(ours, theirs)| ours[place].kib - theirs[place].kib);
        let more = Spread::of(more);
        println!(
            "{:<12} {:>10} {:>22} {:>22} {:>24} {:>13} {:>15}",
            format!("memory {end}"),
            "KiB",
            format!("{:.1}", Spread::of(runs.iter().map(|run| run.0[place].kib))),
            format!("{:.1}", Spread::of(runs.iter().map(|run| run.1[place].kib))),
            format!("+{more:.1}"),
            Target::AtMost(MORE).verdict(more.median),
            format!("{:.0}/{:.0}", runs[0].0[place].blocks, runs[0].1[place].blocks),
        );
    }
    for (place, end) in ["hub", "peer"].into_iter().enumerate() {
        let ratio = runs.iter().map(|(ours, theirs)| ours[place].cpu / theirs[place].cpu);
        println!(
            "{:<12} {:>10} {:>22} {:>22} {:>24} {:>13}",
            format!("cpu {end}"),
            "µs/s",
            format!("{:.1}", Spread::of(runs.iter().map(|run| run.0[place].cpu))),
            format!("{:.1}", Spread::of(runs.iter().map(|run| run.1[place].cpu))),
            format!("{:.2}", Spread::of(ratio)),
            Target::None.verdict(0.0),
        );
    }
}

/// The cost of a session at the hub and at its peers.
fn measure(side: &str, arrangement: Arrangement, count: usize, watch: Duration) -> [Cost; 2] {
    let Arrangement { app, own_thread, .. } = arrangement;
    let role = |task: &str, own_thread| {
        let (task, side) = (task.to_owned(), side.to_owned());
        Role { task, side, app, own_thread, count }
    };
    // A thread for each of hundreds of peers would measure the scheduler.
    let mut spokes = Child::start(&role("spokes", false));
    let mut hub = Child::start(&role("hub", own_thread));
    let addresses = spokes.ask("addresses");
    hub.ask("start");
    let ends = |order: &str, hub: &mut Child, spokes: &mut Child| {
        [hub.ask(order), spokes.ask(order)].map(|answer| {
            let numbers: Vec<f64> = answer.split(' ').map(|word| word.parse().unwrap()).collect();
            numbers
        })
    };
    let empty = ends("heap", &mut hub, &mut spokes);
    hub.ask(&format!("connect {addresses}"));
    std::thread::sleep(CALM);
    let full = ends("heap", &mut hub, &mut spokes);
    let start = Instant::now();
    let before = ends("cpu", &mut hub, &mut spokes);
    std::thread::sleep(watch);
    let after = ends("cpu", &mut hub, &mut spokes);
    let seconds = start.elapsed().as_secs_f64();
    let each = count as f64;
    std::array::from_fn(|end| Cost {
        kib: (full[end][0] - empty[end][0]) / 1024.0 / each,
        blocks: (full[end][1] - empty[end][1]) / each,
        cpu: (after[end][0] - before[end][0]) / seconds / each,
    })
}

/// What the hub and its peers are asked alike.
fn tell(order: &str) {
    match order {
        "heap" => {
            let heap = probe::heap();
            child::answer(&format!("{} {}", heap.bytes, heap.blocks));
        }
        "cpu" => child::answer(&probe::cpu_time().as_micros().to_string()),
        unknown => panic!("unknown order {unknown}"),
    }
}

/// The child with one endpoint and many connections.
pub async fn hub(role: Role, mut orders: Orders) {
    let network = role.own_thread.then(raw::NetworkThread::start);
    let (mut node, mut endpoint) = (None, None);
    let mut connections = Vec::new();
    while let Some(order) = orders.recv().await {
        if order == "start" {
            match role.side.as_str() {
                "kinfolk" => node = Some(node::serve(role.own_thread).await),
                _ => endpoint = Some(raw::serve(&network).await),
            }
            probe::count(true);
            child::answer("started");
        } else if let Some(addresses) = order.strip_prefix("connect ") {
            let mut dials = JoinSet::new();
            for address in child::parse_addresses(addresses) {
                if dials.len() >= DIALS {
                    connections.extend(dials.join_next().await.unwrap().unwrap());
                }
                let (node, endpoint, network) = (node.clone(), endpoint.clone(), network.clone());
                dials.spawn(async move {
                    if let Some(node) = node {
                        node::call(&node, &address).await;
                        return None;
                    }
                    let connection = raw::dial(&endpoint.unwrap(), &network, address).await;
                    raw::call(&connection).await;
                    Some(connection)
                });
            }
            connections.extend(dials.join_all().await.into_iter().flatten());
            child::answer("connected");
        } else {
            tell(&order);
        }
    }
}

/// The child with many endpoints, each of which gets one connection.
pub async fn spokes(role: Role, mut orders: Orders) {
    let (mut nodes, mut endpoints) = (Vec::new(), Vec::new());
    for _ in 0..role.count {
        match role.side.as_str() {
            "kinfolk" => nodes.push(node::serve(false).await),
            _ => endpoints.push(raw::serve(&None).await),
        }
    }
    let addresses = nodes.iter().map(kinfolk::Node::addr);
    let addresses = addresses.chain(endpoints.iter().map(iroh::Endpoint::addr));
    let addresses: Vec<_> = addresses.map(|address| child::format_address(&address)).collect();
    probe::count(true);
    while let Some(order) = orders.recv().await {
        match order.as_str() {
            "addresses" => child::answer(&addresses.join(" ")),
            order => tell(order),
        }
    }
}
