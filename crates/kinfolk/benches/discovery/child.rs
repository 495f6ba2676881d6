//! A run in a process of its own: this program again, told its role by the environment. It answers with named numbers.

use std::collections::BTreeMap;
use std::process::Command;

use crate::stats::Spread;
use crate::{equal, gone, rest, start};

const ROLE: &str = "KINFOLK_BENCH_DISCOVERY";

/// Begins a line with a number of the row.
const NUMBER: &str = "number";

/// The words of this process's role, if it is a child.
pub fn role() -> Option<Vec<String>> {
    let role = std::env::var(ROLE).ok()?;
    Some(role.split(' ').map(str::to_owned).collect())
}

/// Plays a role to its end.
pub fn play(role: &[String]) {
    let number = |place: usize| -> u64 { role[place].parse().unwrap() };
    let count = || usize::try_from(number(1)).unwrap();
    // What an app has that says nothing of it.
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        match role[0].as_str() {
            "start" => start::measure(count()).await,
            "core" => equal::measure_core(count()),
            "session" => equal::measure_session(count()).await,
            "rest" => rest::measure(rest::Kind::parse(&role[2]), count(), number(3)).await,
            "gone" => gone::measure(&role[1]).await,
            unknown => panic!("unknown role {unknown}"),
        }
    });
    // Whatever still runs is of no use to anybody.
    std::process::exit(0);
}

/// Tells a number of the row.
pub fn tell(name: &str, value: f64) {
    println!("{NUMBER} {name} {value}");
}

/// The numbers of one run.
pub type Numbers = BTreeMap<String, f64>;

/// Runs a role once, and passes on whatever else it says.
pub fn run(role: &str) -> Numbers {
    let program = std::env::current_exe().unwrap();
    let output = Command::new(program).env(ROLE, role).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{role}: {errors}");
    let mut numbers = Numbers::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        match line.strip_prefix(NUMBER).and_then(|line| line.trim().rsplit_once(' ')) {
            Some((name, value)) => drop(numbers.insert(name.to_owned(), value.parse().unwrap())),
            None => println!("    {line}"),
        }
    }
    numbers
}

/// The spread of one number.
pub fn spread(runs: &[Numbers], name: &str) -> Spread {
    Spread::of(runs.iter().map(|run| run.get(name).copied().unwrap_or(f64::NAN)))
}
