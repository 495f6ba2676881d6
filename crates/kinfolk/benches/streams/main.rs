//! Typed streams beside raw iroh, in the same run.
//!
//!     cargo bench -p kinfolk --bench streams [-- [--quick] [--only=kinfolk|raw] [words…]]
//!
//! Each row does the same work through a producer with its consumers and through streams of iroh alone, with the same QUIC parameters, in slices of some milliseconds
//! that take turns, so that a busy machine slows both. A run yields one ratio; a row shows the median of five runs and their spread. All is in one process but for the row
//! about memory, whose consumers are in another. With words, only cells whose name contains all of them run: `items current`. `docs/performance.md` has the figures and
//! what they mean.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a benchmark may fail this way"
)]

#[path = "../session/bare.rs"]
mod bare;
mod blob;
mod memory;
mod raw;
mod rows;
#[path = "../session/stats.rs"]
mod stats;
mod typed;

use std::fmt;

use tokio::runtime::{Builder, Runtime};

#[global_allocator]
static ALLOCATOR: kinfolk_bench_probe::Counting = kinfolk_bench_probe::Counting;

/// What the command line asks for.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Fewer and shorter runs, to develop with.
    pub quick: bool,
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
    pub fn wants(&self, row: &str, flavour: Flavour) -> bool {
        let name = format!("{row} {flavour}");
        self.words.iter().all(|word| name.contains(word.as_str()))
    }

    /// How many runs a row has.
    pub fn runs(&self) -> usize {
        if self.quick { 3 } else { 5 }
    }
}

/// The flavour of the runtime on which all runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flavour {
    /// Two workers.
    MultiThread,
    /// One thread.
    CurrentThread,
}

impl Flavour {
    /// A new runtime of this flavour.
    pub fn runtime(self) -> Runtime {
        let mut builder = match self {
            Self::MultiThread => Builder::new_multi_thread(),
            Self::CurrentThread => Builder::new_current_thread(),
        };
        builder.worker_threads(2).enable_all().build().unwrap()
    }
}

impl fmt::Display for Flavour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::MultiThread => "multi_thread",
            Self::CurrentThread => "current_thread",
        })
    }
}

fn main() {
    if let Some(producer) = memory::role() {
        return memory::consume(producer);
    }
    let options = Options::read(std::env::args().skip(1));
    println!("{}", stats::machine());
    for flavour in [Flavour::MultiThread, Flavour::CurrentThread] {
        rows::run(&options, flavour);
    }
    memory::run(&options);
}
