//! The rows about streams and calls: latency, opens per second, throughput, first connections.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use iroh::EndpointAddr;
use kinfolk_bench_probe as probe;

use crate::Options;
use crate::arrangement::Arrangement;
use crate::child::{self, Child, Orders, Role};
use crate::node::{self, Kinfolk};
use crate::raw::{self, NetworkThread, Raw};
use crate::side::{CHUNK, Side};
use crate::stats::{Spread, Target, median, micros, percentile};

/// Streams that are opened at once in the row about opens per second.
const IN_FLIGHT: usize = 100;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Row {
    Open,
    Call,
    Eager,
    Flood,
    Bulk,
    Cold,
}

impl Row {
    const ALL: [Self; 6] =
        [Self::Open, Self::Call, Self::Eager, Self::Flood, Self::Bulk, Self::Cold];

    fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Call => "call",
            Self::Eager => "eager",
            Self::Flood => "flood",
            Self::Bulk => "bulk",
            Self::Cold => "cold",
        }
    }

    fn unit(self) -> &'static str {
        match self {
            Self::Flood => "k/s",
            Self::Bulk => "MiB/s",
            _ => "µs",
        }
    }

    fn target(self) -> Target {
        match self {
            Self::Open | Self::Cold => Target::AtMost(1.10),
            Self::Call => Target::AtMost(1.15),
            Self::Eager => Target::AtMost(1.05),
            Self::Flood => Target::AtLeast(0.90),
            Self::Bulk => Target::AtLeast(0.98),
        }
    }

    /// How many slices of how many operations (chunks, for bulk) each side has in a run.
    fn plan(self, quick: bool) -> (usize, usize) {
        let (slices, operations): (usize, usize) = match self {
            Self::Open | Self::Call | Self::Eager => (20, 200),
            Self::Flood => (10, 4000),
            Self::Bulk => (8, 1024),
            Self::Cold => (100, 1),
        };
        (if quick { slices.div_ceil(5) } else { slices }, operations)
    }

    /// The value of a run that its ratio is made of, in the row's unit.
    fn value(self, run: &mut Run) -> f64 {
        let seconds = run.elapsed.as_secs_f64();
        match self {
            Self::Flood => run.operations as f64 / seconds / 1e3,
            Self::Bulk => (run.operations * CHUNK) as f64 / seconds / (1024.0 * 1024.0),
            _ => micros(percentile(&mut run.samples, 0.5)),
        }
    }
}

/// What one side did in one run.
#[derive(Debug, Default)]
struct Run {
    operations: usize,
    samples: Vec<Duration>,
    elapsed: Duration,
    cpu: Duration,
}

impl Run {
    async fn slice<S: Side>(&mut self, row: Row, side: &S, operations: usize) {
        let cpu = probe::cpu_time();
        self.operations += operations;
        match row {
            Row::Flood => self.elapsed += flood(side, operations).await,
            Row::Bulk => self.elapsed += side.push(operations).await,
            _ => {
                for _ in 0..operations {
                    let took = match row {
                        Row::Open => side.open().await,
                        Row::Call => side.call().await,
                        Row::Eager => side.eager().await,
                        _ => side.cold().await,
                    };
                    self.samples.push(took);
                    self.elapsed += took;
                }
            }
        }
        self.cpu += probe::cpu_time().saturating_sub(cpu);
    }

    fn cpu_per_operation(&self) -> f64 {
        micros(self.cpu) / self.operations as f64
    }
}

/// Opens so many streams, [`IN_FLIGHT`] at a time.
async fn flood<S: Side>(side: &S, operations: usize) -> Duration {
    let left = Arc::new(AtomicUsize::new(operations));
    let start = Instant::now();
    let tasks: Vec<_> = (0..IN_FLIGHT)
        .map(|_| {
            let (side, left) = (side.clone(), Arc::clone(&left));
            tokio::spawn(async move {
                let one_more = |left: usize| left.checked_sub(1);
                while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_ok() {
                    side.open().await;
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    start.elapsed()
}

/// Heap allocations per operation.
async fn allocations<S: Side>(row: Row, side: &S) -> f64 {
    let operations = match row {
        Row::Bulk => 1024,
        Row::Cold => 5,
        Row::Flood => 2000,
        _ => 500,
    };
    probe::count(true);
    let before = probe::heap().allocations;
    Run::default().slice(row, side, operations).await;
    let made = probe::heap().allocations - before;
    probe::count(false);
    made as f64 / operations as f64
}

/// Runs the rows that are asked for and prints them.
pub fn run(options: &Options, arrangement: Arrangement) {
    let rows: Vec<Row> =
        Row::ALL.into_iter().filter(|row| options.wants(row.name(), &arrangement)).collect();
    if rows.is_empty() {
        return;
    }
    let remote = arrangement.two_processes.then(|| {
        let side = "both".to_owned();
        let Arrangement { app, own_thread, .. } = arrangement;
        let mut child =
            Child::start(&Role { task: "serve".into(), side, app, own_thread, count: 1 });
        let addresses = child::parse_addresses(&child.ask("addresses"));
        (child, addresses)
    });
    let runtime = arrangement.app.runtime();
    let addresses = remote.as_ref().map(|(_, addresses)| addresses.clone());
    let measuring = measure(options.clone(), arrangement, rows, addresses);
    // In a task, as an app's code is: the thread that blocks on a runtime is none of its workers.
    runtime.block_on(async { tokio::spawn(measuring).await.unwrap() });
    runtime.shutdown_timeout(Duration::from_secs(1));
}

async fn measure(
    options: Options,
    arrangement: Arrangement,
    rows: Vec<Row>,
    peers: Option<Vec<EndpointAddr>>,
) {
    let own_thread = arrangement.own_thread;
    let network = || own_thread.then(NetworkThread::start);
    // What serves in this process, kept until the end.
    let mut served = None;
    let peers = match peers {
        Some(peers) => peers,
        None => {
            let node = node::serve(own_thread).await;
            let endpoint = raw::serve(&network()).await;
            let peers = vec![node.addr(), endpoint.addr()];
            served = Some((node, endpoint));
            peers
        }
    };
    let kinfolk = Kinfolk::connect(own_thread, peers[0].clone()).await;
    let raw = Raw::connect(network(), peers[1].clone()).await;
    if options.only.is_some() {
        repeat(&options, &rows, &kinfolk, &raw).await;
    } else {
        table(&options, arrangement, &rows, &kinfolk, &raw).await;
    }
    kinfolk.shut_down().await;
    raw.shut_down().await;
    if let Some((node, endpoint)) = served {
        node.shutdown().await;
        endpoint.close().await;
    }
}

async fn table(
    options: &Options,
    arrangement: Arrangement,
    rows: &[Row],
    kinfolk: &Kinfolk,
    raw: &Raw,
) {
    println!("\n{arrangement}");
    println!(
        "{:<6} {:>6} {:>10} {:>9} {:>10} {:>9} {:>18} {:>13} {:>17} {:>15}",
        "row",
        "unit",
        "kinfolk",
        "p99",
        "raw",
        "p99",
        "ratio (min..max)",
        "target",
        "cpu µs/op k/r",
        "allocs/op k/r"
    );
    for row in rows {
        compare(options, *row, kinfolk, raw).await;
    }
}

async fn compare(options: &Options, row: Row, kinfolk: &Kinfolk, raw: &Raw) {
    let (slices, operations) = row.plan(options.quick);
    // Both sides warm up.
    Run::default().slice(row, kinfolk, operations.min(500)).await;
    Run::default().slice(row, raw, operations.min(500)).await;
    let mut runs = Vec::new();
    for _ in 0..options.runs() {
        let (mut ours, mut theirs) = (Run::default(), Run::default());
        for _ in 0..slices {
            ours.slice(row, kinfolk, operations).await;
            theirs.slice(row, raw, operations).await;
        }
        runs.push((ours, theirs));
    }
    let values: Vec<(f64, f64)> =
        runs.iter_mut().map(|(ours, theirs)| (row.value(ours), row.value(theirs))).collect();
    let ratio = Spread::of(values.iter().map(|(ours, theirs)| ours / theirs));
    let middle = |values: Vec<f64>| median(&values);
    let ours = middle(values.iter().map(|value| value.0).collect());
    let theirs = middle(values.iter().map(|value| value.1).collect());
    let tail = |run: &mut Run| micros(percentile(&mut run.samples, 0.99));
    let our_tail = middle(runs.iter_mut().map(|run| tail(&mut run.0)).collect());
    let their_tail = middle(runs.iter_mut().map(|run| tail(&mut run.1)).collect());
    let our_cpu = middle(runs.iter().map(|run| run.0.cpu_per_operation()).collect());
    let their_cpu = middle(runs.iter().map(|run| run.1.cpu_per_operation()).collect());
    let our_allocations = allocations(row, kinfolk).await;
    let their_allocations = allocations(row, raw).await;
    let tails = !runs[0].0.samples.is_empty();
    let tail = |tail: f64| if tails { format!("{tail:.0}") } else { "–".to_owned() };
    println!(
        "{:<6} {:>6} {:>10.1} {:>9} {:>10.1} {:>9} {:>18} {:>13} {:>17} {:>15}",
        row.name(),
        row.unit(),
        ours,
        tail(our_tail),
        theirs,
        tail(their_tail),
        format!("{ratio:.3}"),
        row.target().verdict(ratio.median),
        format!("{our_cpu:.1}/{their_cpu:.1}"),
        format!("{our_allocations:.1}/{their_allocations:.1}"),
    );
}

/// Repeats the work of one side for ten seconds, for a profiler.
async fn repeat(options: &Options, rows: &[Row], kinfolk: &Kinfolk, raw: &Raw) {
    for row in rows {
        let (_, operations) = row.plan(options.quick);
        let (start, mut run) = (Instant::now(), Run::default());
        while start.elapsed() < Duration::from_secs(10) {
            match options.only.as_deref() {
                Some("raw") => run.slice(*row, raw, operations).await,
                _ => run.slice(*row, kinfolk, operations).await,
            }
        }
        let (count, cpu) = (run.operations, run.cpu_per_operation());
        println!(
            "{}: {count} operations, {:.2} {}, {cpu:.2} µs CPU each",
            row.name(),
            row.value(&mut run),
            row.unit()
        );
    }
}

/// The child that serves both sides.
pub async fn serve(role: Role, mut orders: Orders) {
    let node = node::serve(role.own_thread).await;
    let endpoint = raw::serve(&role.own_thread.then(NetworkThread::start)).await;
    while orders.recv().await.is_some() {
        let addresses = [node.addr(), endpoint.addr()];
        child::answer(&addresses.map(|address| child::format_address(&address)).join(" "));
    }
}
