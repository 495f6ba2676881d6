//! Discovery: how fast nodes of one process get to know each other over loopback, and what it costs them afterwards.
//!
//!     cargo bench -p kinfolk --bench discovery [-- [--runs=5] [--nodes=40] [--minutes=1] [words…]]
//!
//! Every run is a process of its own, so that none finds the garbage of another. Times depend on what else the machine does, counts do
//! not: a row shows both, as the median of its runs with their spread. With words, only rows whose name contains all of them run:
//! `start`, `rest`, `core`, `session`, `gone`. `--minutes` is for how long the row at rest is watched, with a sample every half
//! minute. `docs/performance.md` has the figures and what they mean.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a benchmark may fail this way"
)]

mod child;
mod equal;
mod gone;
mod network;
mod rest;
mod start;
#[path = "../session/stats.rs"]
#[allow(dead_code, reason = "the other benchmark needs more of it")]
mod stats;

#[global_allocator]
static ALLOCATOR: kinfolk_bench_probe::Counting = kinfolk_bench_probe::Counting;

/// What the command line asks for.
#[derive(Debug, Clone)]
pub struct Options {
    /// Runs of a row.
    pub runs: usize,
    /// Sizes of networks; all by default.
    pub nodes: Option<usize>,
    /// For how long nodes at rest are watched.
    pub minutes: u64,
    /// Runs only rows with all of these in their name.
    pub words: Vec<String>,
}

impl Options {
    fn read(arguments: impl Iterator<Item = String>) -> Self {
        let mut options = Self { runs: 5, nodes: None, minutes: 1, words: Vec::new() };
        for argument in arguments {
            match argument.split_once('=') {
                Some(("--runs", count)) => options.runs = count.parse().unwrap(),
                Some(("--nodes", count)) => options.nodes = Some(count.parse().unwrap()),
                Some(("--minutes", count)) => options.minutes = count.parse().unwrap(),
                // cargo says so to every benchmark.
                None if argument == "--bench" => {}
                None if !argument.starts_with('-') => options.words.push(argument),
                _ => {
                    eprintln!("unknown option {argument}");
                    std::process::exit(2);
                }
            }
        }
        options
    }

    /// Whether a row is asked for.
    pub fn wants(&self, row: &str) -> bool {
        self.words.iter().all(|word| row.contains(word.as_str()))
    }
}

fn main() {
    if let Some(role) = child::role() {
        return child::play(&role);
    }
    let options = Options::read(std::env::args().skip(1));
    println!("{}", stats::machine());
    start::run(&options);
    equal::run(&options);
    rest::run(&options);
    gone::run(&options);
    println!("\nafterwards: {}", stats::machine());
}
