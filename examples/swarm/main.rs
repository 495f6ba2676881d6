//! Many nodes in one process, over real QUIC on loopback, and what can happen to them.
//!
//!     cargo run --release --example swarm
//!     cargo run --release --example swarm -- --nodes 30 --seconds 120
//!
//! All nodes start from the address of one of them, and find each other. Then every node connects with every other by its id alone, and
//! one joins a topic, of which all others hear. Each calls and streams to each; one vanishes without a word and comes back with the same
//! key on another port while the others are calling it; another is drained while streams are open, which all others hear, and comes back
//! on the same port. A table shows what the nodes say of themselves meanwhile. At the end come the counters of all nodes and the
//! supervision tree of one.
//!
//! It exits with 0 only if every call, stream and hold had exactly the outcome that it should have, and all nodes know all others and
//! are connected with them at the end.
//! `RUST_LOG=kinfolk=info` shows the logs of the nodes; redirect standard error then.

mod member;
mod report;
mod screen;
mod story;

use std::process::ExitCode;
use std::time::Duration;

use kinfolk_examples::{Error, arguments, init_logs, usage_error, with_causes};

use crate::screen::Screen;
use crate::story::Swarm;

const USAGE: &str = "\
usage: swarm [--nodes N] [--seconds S]

  --nodes N     how many nodes, 3 to 50 (default 8)
  --seconds S   how long the whole run may take, 1 to 3600 (default 90)";

/// How long it may take to find out what went wrong.
const INQUEST: Duration = Duration::from_secs(5);

/// What the command line says.
struct Options {
    nodes: usize,
    limit: Duration,
}

impl Options {
    /// The options, or `None` if the usage was asked for.
    fn parse(arguments: Vec<String>) -> Result<Option<Self>, String> {
        let mut options = Self { nodes: 8, limit: Duration::from_secs(90) };
        let mut arguments = arguments.into_iter();
        while let Some(flag) = arguments.next() {
            // Both `--nodes 30` and `--nodes=30`.
            let (flag, value) = match flag.split_once('=') {
                Some((flag, value)) => (flag.to_owned(), Some(value.to_owned())),
                None => (flag, None),
            };
            let mut number = |least: usize, most: usize| {
                let value = value.clone().or_else(|| arguments.next());
                let value = value.ok_or_else(|| format!("{flag} needs a number"))?;
                match value.parse() {
                    Ok(number) if (least..=most).contains(&number) => Ok(number),
                    _ => {
                        Err(format!("{flag} needs a number from {least} to {most}, not `{value}`"))
                    }
                }
            };
            match flag.as_str() {
                "--nodes" => options.nodes = number(3, 50)?,
                "--seconds" => options.limit = Duration::from_secs(number(1, 3600)? as u64),
                "--help" | "-h" => return Ok(None),
                _ => return Err(format!("`{flag}` is not known")),
            }
        }
        Ok(Some(options))
    }
}

fn main() -> ExitCode {
    let options = match Options::parse(arguments()) {
        Ok(Some(options)) => options,
        Ok(None) => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Err(problem) => return usage_error(&problem, USAGE),
    };
    match start(options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {}", with_causes(&*error));
            ExitCode::FAILURE
        }
    }
}

fn start(options: Options) -> Result<bool, Error> {
    init_logs()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let passed = runtime.block_on(run(options));
    // A node that did not stop in time must not keep the program.
    runtime.shutdown_timeout(Duration::from_secs(1));
    Ok(passed)
}

/// Tells the story within the limit, then what came of it; whether all was well.
async fn run(options: Options) -> bool {
    let screen = Screen::new(options.nodes);
    let watching = tokio::spawn(screen.clone().watch());
    let mut swarm = Swarm::new(options.nodes, screen.clone());
    let phase = || screen.phase();
    let fault = match tokio::time::timeout(options.limit, swarm.tell()).await {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(format!("`{}` failed: {}", phase(), with_causes(&*error))),
        Err(_) => Some(format!("`{}` was not done when {:?} were over", phase(), options.limit)),
    };
    if let Some(fault) = fault {
        swarm.blame(fault);
        if tokio::time::timeout(INQUEST, swarm.inquire()).await.is_err() {
            swarm.blame("the nodes do not answer".to_owned());
        }
    }
    watching.abort();
    screen.finish();
    for line in swarm.report() {
        screen.say(&line);
    }
    swarm.faults().is_empty()
}
