//! kinfolk beside raw iroh, in the same run.
//!
//!     cargo bench -p kinfolk --bench session [-- [--quick] [--two-processes] [words…]]
//!
//! Each row does the same work through kinfolk and through iroh alone, with the same QUIC parameters, in slices of some milliseconds
//! that take turns, so that a busy machine slows both. A run yields one ratio; a row shows the median of five runs and their spread.
//! With words, only cells whose name contains all of them run: `call current` or `cold own`. `--two-processes` puts the
//! peer into a process of its own. `docs/performance.md` has the figures and what they mean.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a benchmark may fail this way"
)]

mod arrangement;
mod bare;
mod child;
mod idle;
mod node;
mod raw;
mod side;
mod stats;
mod traffic;

use arrangement::{Arrangement, Flavour};

#[global_allocator]
static ALLOCATOR: kinfolk_bench_probe::Counting = kinfolk_bench_probe::Counting;

/// What the command line asks for.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Fewer and shorter runs, to develop with.
    pub quick: bool,
    /// The peer is a process of its own.
    pub two_processes: bool,
    /// Runs only what has all of these in its name.
    pub words: Vec<String>,
    /// Repeats one side's work for a profiler: `kinfolk` or `raw`.
    pub only: Option<String>,
}

impl Options {
    fn read(arguments: impl Iterator<Item = String>) -> Self {
        let mut options = Self::default();
        for argument in arguments {
            match argument.as_str() {
                "--quick" => options.quick = true,
                "--two-processes" => options.two_processes = true,
                // cargo says so to every benchmark.
                "--bench" => {}
                only if only.starts_with("--only=") => {
                    options.only = only.strip_prefix("--only=").map(str::to_owned);
                }
                unknown if unknown.starts_with('-') => {
                    eprintln!("unknown option {unknown}");
                    std::process::exit(2);
                }
                word => options.words.push(word.to_owned()),
            }
        }
        options
    }

    /// Whether a cell of the table is asked for.
    pub fn wants(&self, row: &str, arrangement: &Arrangement) -> bool {
        let name = format!("{row} {arrangement}");
        self.words.iter().all(|word| name.contains(word.as_str()))
    }

    /// How many runs a row has.
    pub fn runs(&self) -> usize {
        if self.quick { 3 } else { 5 }
    }
}

fn main() {
    if let Some(role) = child::role() {
        return child::run(role);
    }
    let options = Options::read(std::env::args().skip(1));
    println!("{}", stats::machine());
    for app in [Flavour::MultiThread, Flavour::CurrentThread] {
        for own_thread in [false, true] {
            let arrangement = Arrangement { app, own_thread, two_processes: options.two_processes };
            traffic::run(&options, arrangement);
            idle::run(&options, arrangement);
        }
    }
}
