//! The rows about time: items per second, the latency of a lone item, CPU time of a fan-out, and the wait for the first item.

use std::time::{Duration, Instant};

use kinfolk_bench_probe as probe;

use crate::blob::Blob;
use crate::raw::Raw;
use crate::stats::{Spread, Target, median, micros, percentile};
use crate::typed::{Echo, Typed};
use crate::{Flavour, Options};

/// Consumers of the fan-out.
const FAN: usize = 50;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Row {
    /// Items of so many bytes to one consumer.
    Items(usize),
    /// A lone item, to half of a ping-pong.
    Lone,
    /// The same, to one way alone.
    OneWay,
    /// Half of what a lone item needs there and back, to half of a ping-pong.
    Echo,
    Fan,
    First,
}

impl Row {
    const ALL: [Self; 8] = [
        Self::Items(64),
        Self::Items(1024),
        Self::Items(64 * 1024),
        Self::Lone,
        Self::OneWay,
        Self::Echo,
        Self::Fan,
        Self::First,
    ];

    fn name(self) -> String {
        match self {
            Self::Items(size) => format!("items {size}"),
            Self::Lone => "lone 64".to_owned(),
            Self::OneWay => "one way 64".to_owned(),
            Self::Echo => "echo 64".to_owned(),
            Self::Fan => format!("fan {FAN} x 1024"),
            Self::First => "first".to_owned(),
        }
    }

    fn unit(self) -> &'static str {
        match self {
            Self::Items(_) => "k/s",
            Self::Fan => "CPU µs",
            Self::Lone | Self::OneWay | Self::Echo | Self::First => "µs",
        }
    }

    fn target(self) -> Target {
        match self {
            Self::Items(64) => Target::AtLeast(0.50),
            Self::Items(1024) => Target::AtLeast(0.85),
            Self::Items(_) => Target::AtLeast(0.95),
            Self::Lone | Self::OneWay | Self::Echo => Target::AtMost(1.10),
            Self::Fan => Target::AtMost(1.20),
            Self::First => Target::AtMost(2.00),
        }
    }

    fn consumers(self) -> usize {
        if self == Self::Fan { FAN } else { 1 }
    }

    fn blob(self) -> Blob {
        Blob::new(match self {
            Self::Items(size) => size,
            Self::Fan => 1024,
            Self::Lone | Self::OneWay | Self::Echo | Self::First => 64,
        })
    }

    /// How many slices of how many operations each side has in a run.
    fn plan(self, quick: bool) -> (usize, usize) {
        let (slices, operations): (usize, usize) = match self {
            Self::Items(64) => (10, 100_000),
            Self::Items(1024) => (10, 20_000),
            Self::Items(_) => (10, 400),
            Self::Fan => (6, 1000),
            Self::Lone | Self::OneWay | Self::Echo => (20, 200),
            Self::First => (20, 20),
        };
        (if quick { slices.div_ceil(5) } else { slices }, operations)
    }

    /// The value of a run that its ratio is made of, in the row's unit.
    fn value(self, run: &mut Run) -> f64 {
        match self {
            Self::Items(_) => run.operations as f64 / run.elapsed.as_secs_f64() / 1e3,
            Self::Fan => run.cpu_per_operation(),
            Self::Lone | Self::OneWay | Self::Echo | Self::First => {
                micros(percentile(&mut run.samples, 0.5))
            }
        }
    }
}

enum Side {
    Typed(Typed),
    Echo(Echo),
    Raw(Raw),
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
    async fn slice(&mut self, row: Row, side: &mut Side, operations: usize) {
        let (cpu, blob) = (probe::cpu_time(), row.blob());
        self.operations += operations * row.consumers();
        if matches!(row, Row::Items(_) | Row::Fan) {
            self.elapsed += match side {
                Side::Typed(typed) => typed.push(&blob, operations).await,
                Side::Raw(raw) => raw.push(&blob, operations).await,
                Side::Echo(_) => panic!("it has a row of its own"),
            };
        } else {
            for _ in 0..operations {
                let took = match (row, &mut *side) {
                    (Row::Lone | Row::OneWay, Side::Typed(typed)) => typed.lone(&blob).await,
                    (_, Side::Echo(echo)) => echo.half(&blob).await,
                    (Row::Lone | Row::Echo, Side::Raw(raw)) => raw.lone(&blob).await,
                    (Row::OneWay, Side::Raw(raw)) => raw.one_way(&blob).await,
                    (_, Side::Typed(typed)) => typed.first().await,
                    (_, Side::Raw(raw)) => raw.first().await,
                };
                self.samples.push(took);
                self.elapsed += took;
            }
        }
        self.cpu += probe::cpu_time().saturating_sub(cpu);
    }

    fn cpu_per_operation(&self) -> f64 {
        micros(self.cpu) / self.operations as f64
    }
}

/// Runs the rows that are asked for and prints them.
pub fn run(options: &Options, flavour: Flavour) {
    let rows: Vec<Row> =
        Row::ALL.into_iter().filter(|row| options.wants(&row.name(), flavour)).collect();
    if rows.is_empty() {
        return;
    }
    println!(
        "\n{flavour}\n{:<14} {:>7} {:>10} {:>8} {:>10} {:>8} {:>22} {:>13} {:>17} {:>15}",
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
        let runtime = flavour.runtime();
        let options = options.clone();
        // In a task, as an app's code is: the thread that blocks on a runtime is none of its workers.
        runtime.block_on(async move { tokio::spawn(measure(options, row)).await.unwrap() });
        runtime.shutdown_timeout(Duration::from_secs(1));
    }
}

async fn measure(options: Options, row: Row) {
    let mut typed = match row {
        Row::Echo => Side::Echo(Echo::start().await),
        _ => Side::Typed(Typed::start(row.consumers()).await),
    };
    let mut raw = Side::Raw(Raw::start(row.consumers()).await);
    if row == Row::First {
        // There has to be one.
        Run::default().slice(Row::Lone, &mut typed, 1).await;
    }
    match options.only.as_deref() {
        Some("raw") => repeat(&options, row, &mut raw).await,
        Some(_) => repeat(&options, row, &mut typed).await,
        None => compare(&options, row, &mut typed, &mut raw).await,
    }
    for side in [typed, raw] {
        match side {
            Side::Typed(typed) => typed.shut_down().await,
            Side::Echo(echo) => echo.shut_down().await,
            Side::Raw(raw) => raw.shut_down().await,
        }
    }
}

async fn compare(options: &Options, row: Row, typed: &mut Side, raw: &mut Side) {
    let (slices, operations) = row.plan(options.quick);
    // Both sides warm up.
    Run::default().slice(row, typed, operations).await;
    Run::default().slice(row, raw, operations).await;
    let mut runs = Vec::new();
    for _ in 0..options.runs() {
        let (mut ours, mut theirs) = (Run::default(), Run::default());
        for _ in 0..slices {
            ours.slice(row, typed, operations).await;
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
    let our_allocations = allocations(row, typed, operations).await;
    let their_allocations = allocations(row, raw, operations).await;
    let tails = !runs[0].0.samples.is_empty();
    let tail = |tail: f64| if tails { format!("{tail:.0}") } else { "–".to_owned() };
    println!(
        "{:<14} {:>7} {:>10.1} {:>8} {:>10.1} {:>8} {:>22} {:>13} {:>17} {:>15}",
        row.name(),
        row.unit(),
        ours,
        tail(our_tail),
        theirs,
        tail(their_tail),
        format!("{ratio:.3}"),
        row.target().verdict(ratio.median),
        format!("{our_cpu:.2}/{their_cpu:.2}"),
        format!("{our_allocations:.2}/{their_allocations:.2}"),
    );
}

/// Heap allocations per operation.
async fn allocations(row: Row, side: &mut Side, operations: usize) -> f64 {
    let operations = operations.div_ceil(4);
    probe::count(true);
    let before = probe::heap().allocations;
    Run::default().slice(row, side, operations).await;
    let made = probe::heap().allocations - before;
    probe::count(false);
    made as f64 / (operations * row.consumers()) as f64
}

/// Repeats the work of one side for ten seconds, for a profiler.
async fn repeat(options: &Options, row: Row, side: &mut Side) {
    let (_, operations) = row.plan(options.quick);
    let (start, mut run) = (Instant::now(), Run::default());
    while start.elapsed() < Duration::from_secs(10) {
        run.slice(row, side, operations).await;
    }
    let (count, cpu) = (run.operations, run.cpu_per_operation());
    let value = row.value(&mut run);
    println!("{}: {count} operations, {value:.2} {}, {cpu:.2} µs CPU each", row.name(), row.unit());
}
