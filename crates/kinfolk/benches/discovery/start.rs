//! The rows about a beginning: a network in which all know one node and nobody else, and a newcomer to a network that knows itself.

use std::time::{Duration, Instant};

use kinfolk_bench_probe as probe;

use crate::Options;
use crate::child::{self, spread, tell};
use crate::network::{self, Counts};
use crate::stats::Target;

/// Sizes, and seconds until all know all.
const SIZES: [(usize, f64); 3] = [(10, 0.4), (20, 0.7), (40, 1.5)];

/// Seconds until a newcomer is known by all.
const NEWCOMER: f64 = 1.0;

/// How long the network is left to itself before the newcomer comes.
const SETTLE: Duration = Duration::from_secs(3);

/// Runs the rows that are asked for and prints them.
pub fn run(options: &Options) {
    for (nodes, target) in SIZES {
        let wanted = options.nodes.is_none_or(|wanted| wanted == nodes);
        if !wanted || !options.wants("start") {
            continue;
        }
        let runs: Vec<_> =
            (0..options.runs).map(|_| child::run(&format!("start {nodes}"))).collect();
        println!("\nstart, {nodes} nodes, {} runs", runs.len());
        for (name, unit, target) in [
            ("all know all", "s", Target::AtMost(target)),
            ("of it until all run", "s", Target::None),
            ("cpu until then", "s", Target::None),
            ("newcomer known by all", "s", Target::AtMost(NEWCOMER)),
            ("newcomer knows all", "s", Target::None),
        ] {
            let spread = spread(&runs, name);
            println!("  {name:<34} {unit:>5} {spread:>26.3} {}", target.verdict(spread.median));
        }
        for name in COUNTS {
            let (until, after) = (spread(&runs, name), spread(&runs, &format!("{name}, settled")));
            println!(
                "  {:<34} {:>5} {until:>26.1} and {SETTLE:?} later {after:.1}",
                format!("{name} per node"),
                ""
            );
        }
    }
}

/// What is counted.
const COUNTS: [&str; 10] = [
    "sessions",
    "handshakes",
    "dials",
    "dials failed",
    "exchanges",
    "exchanges complete",
    "signatures",
    "announce streams",
    "exchange bytes",
    "announce bytes",
];

fn tell_counts(counts: &Counts, nodes: usize, suffix: &str) {
    let values = [
        counts.sessions,
        counts.handshakes,
        counts.dials,
        counts.dials_failed,
        counts.exchanges,
        counts.complete,
        counts.signatures,
        counts.announce_streams,
        counts.exchange_bytes,
        counts.announce_bytes,
    ];
    for (name, value) in COUNTS.iter().zip(values) {
        // Names have spaces, so the number comes last.
        tell(&format!("{name}{suffix}"), value / nodes as f64);
    }
}

/// One run.
pub async fn measure(count: usize) {
    let (start, cpu) = (Instant::now(), probe::cpu_time());
    let first = network::first().await;
    let mut nodes = network::others(count - 1, &first.addr()).await;
    nodes.insert(0, first);
    tell("of it until all run", start.elapsed().as_secs_f64());
    assert!(network::all_know(&nodes, count - 1).await, "they do not know each other in time");
    tell("all know all", start.elapsed().as_secs_f64());
    tell("cpu until then", (probe::cpu_time() - cpu).as_secs_f64());
    tell_counts(&Counts::of(&nodes).await, count, "");
    tokio::time::sleep(SETTLE).await;
    tell_counts(&Counts::of(&nodes).await, count, ", settled");

    let start = Instant::now();
    let newcomer = network::builder().bootstrap(nodes[0].addr()).spawn().await.unwrap();
    assert!(network::all_know_one(&nodes, &newcomer).await, "the newcomer is not known in time");
    tell("newcomer known by all", start.elapsed().as_secs_f64());
    assert!(network::all_know(&[newcomer], count).await, "the newcomer does not know all");
    tell("newcomer knows all", start.elapsed().as_secs_f64());
}
