//! The rows about nodes at rest: what they cost that know each other and have nothing to do, beside nodes without discovery and
//! endpoints alone.

use std::time::{Duration, Instant};

use kinfolk_bench_probe as probe;

use crate::Options;
use crate::child::{self, tell};
use crate::network::{self, Counts};
use crate::stats::Target;

/// How many nodes rest, unless the command line says otherwise.
const NODES: usize = 40;

/// Sessions linger for half a minute; then they close.
const LINGER: Duration = Duration::from_secs(35);

/// Between two samples.
const SAMPLE: Duration = Duration::from_secs(30);

/// What rests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Nodes that found each other.
    Found,
    /// Nodes without discovery and without sessions.
    Quiet,
    /// iroh's endpoints alone.
    Raw,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Found => "found",
            Self::Quiet => "quiet",
            Self::Raw => "raw",
        }
    }

    /// The kind of this name.
    pub fn parse(name: &str) -> Self {
        let kinds = [Self::Found, Self::Quiet, Self::Raw];
        kinds.into_iter().find(|kind| kind.name() == name).unwrap()
    }
}

/// Runs the rows if they are asked for and prints them.
pub fn run(options: &Options) {
    if !options.wants("rest") {
        return;
    }
    let (nodes, minutes) = (options.nodes.unwrap_or(NODES), options.minutes);
    println!("\nrest, {nodes} nodes, one run, watched for {minutes} min after {LINGER:?}");
    println!("  samples of nodes that found each other:");
    let found = child::run(&format!("rest {nodes} found {minutes}"));
    let quiet = child::run(&format!("rest {nodes} quiet 1"));
    let raw = child::run(&format!("rest {nodes} raw 1"));
    for (name, target) in [
        ("cpu, % of a core", Target::AtMost(2.0)),
        ("own memory per node, KiB", Target::AtMost(2048.0)),
        ("heap per node, KiB", Target::None),
        ("threads beside the runtime's", Target::AtMost(0.0)),
    ] {
        let verdict = target.verdict(found[name]);
        let (found, quiet, raw) = (found[name], quiet[name], raw[name]);
        println!(
            "  {name:<34} {found:>9.2}  without discovery {quiet:.2}, endpoints {raw:.2}  {verdict}"
        );
    }
    for (name, target) in [
        ("sessions, most of a node", Target::AtMost(8.0)),
        ("sessions, mean", Target::None),
        ("neighbours, mean", Target::None),
        ("exchanges per node and minute", Target::None),
        ("handshakes per node and minute", Target::None),
        ("announce bytes per node and s", Target::None),
        ("newcomer known by all, s", Target::AtMost(1.0)),
    ] {
        println!("  {name:<34} {:>9.2}  {}", found[name], target.verdict(found[name]));
    }
}

/// KiB of memory of this process that are resident and its own: not the pages of its program, which are read as it goes.
fn own_memory() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let number = line.and_then(|line| line.trim().strip_suffix("kB"));
    number.and_then(|number| number.trim().parse().ok()).unwrap_or(f64::NAN)
}

fn threads() -> f64 {
    std::fs::read_dir("/proc/self/task").map_or(f64::NAN, |tasks| tasks.count() as f64)
}

fn heap() -> f64 {
    probe::heap().bytes as f64 / 1024.0
}

/// One run.
pub async fn measure(kind: Kind, count: usize, minutes: u64) {
    probe::count(true);
    // One to begin with, so that what a process has once is not counted. It stays: glibc takes the freeing of a mapped block, as an
    // endpoint's receive buffer of 3 MiB is, as a sign that such blocks come and go, and carves those of all later nodes from its heap.
    let _warm = network::builder().discovery(false).spawn().await.unwrap();
    let (memory_before, heap_before, threads_before) = (own_memory(), heap(), threads());
    let (mut nodes, mut endpoints) = (Vec::new(), Vec::new());
    match kind {
        Kind::Found => {
            let first = network::first().await;
            nodes = network::others(count - 1, &first.addr()).await;
            nodes.insert(0, first);
            assert!(network::all_know(&nodes, count - 1).await, "they do not know each other");
            tokio::time::sleep(LINGER).await;
        }
        Kind::Quiet => {
            for _ in 0..count {
                nodes.push(network::builder().discovery(false).spawn().await.unwrap());
            }
        }
        Kind::Raw => {
            for _ in 0..count {
                endpoints.push(network::endpoint().bind().await.unwrap());
            }
        }
    }
    if kind != Kind::Found {
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
    let each = count as f64;
    tell("threads beside the runtime's", threads() - threads_before);
    let before = Counts::of(&nodes).await;
    let (start, cpu) = (Instant::now(), probe::cpu_time());
    for sample in 1..=minutes * 2 {
        let (sample_start, sample_cpu) = (Instant::now(), probe::cpu_time());
        tokio::time::sleep(SAMPLE).await;
        if kind == Kind::Found {
            let cpu = (probe::cpu_time() - sample_cpu).as_secs_f64();
            let percent = cpu / sample_start.elapsed().as_secs_f64() * 100.0;
            let counts = Counts::of(&nodes).await;
            println!(
                "{:>4} s: cpu {percent:.2} %, own memory {:.0} KiB, heap {:.0} KiB per node, sessions {:.1} (most {}), neighbours {:.1}",
                sample * SAMPLE.as_secs(),
                own_memory(),
                (heap() - heap_before) / each,
                counts.sessions / each,
                counts.sessions_most,
                counts.neighbours / each,
            );
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    tell("cpu, % of a core", (probe::cpu_time() - cpu).as_secs_f64() / seconds * 100.0);
    tell("own memory per node, KiB", (own_memory() - memory_before) / each);
    tell("heap per node, KiB", (heap() - heap_before) / each);
    if kind != Kind::Found {
        return;
    }
    let counts = Counts::of(&nodes).await;
    let more = counts.since(&before);
    tell("sessions, most of a node", counts.sessions_most);
    tell("sessions, mean", counts.sessions / each);
    tell("neighbours, mean", counts.neighbours / each);
    tell("exchanges per node and minute", more.exchanges / each / seconds * 60.0);
    tell("handshakes per node and minute", more.handshakes / each / seconds * 60.0);
    tell("announce bytes per node and s", more.announce_bytes / each / seconds);
    let start = Instant::now();
    let newcomer = network::builder().bootstrap(nodes[0].addr()).spawn().await.unwrap();
    assert!(network::all_know_one(&nodes, &newcomer).await, "the newcomer is not known in time");
    tell("newcomer known by all, s", start.elapsed().as_secs_f64());
}
