//! What the examples share: logs for whoever asks for them, the command line, and what to say when it is wrong.

use std::process::ExitCode;

use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// Any error, as a program's `main` sees it.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// Prints logs to standard error if the variable `RUST_LOG` asks for them, as in `RUST_LOG=kinfolk=info`.
pub fn init_logs() -> Result<(), Error> {
    let Ok(wanted) = std::env::var("RUST_LOG") else { return Ok(()) };
    let targets: Targets = wanted.parse().map_err(|error| format!("RUST_LOG: {error}"))?;
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    tracing_subscriber::registry().with(lines).with(targets).try_init()?;
    Ok(())
}

/// The arguments behind the program's name. Bytes that are no UTF-8 are replaced, so that they fail where they are read.
pub fn arguments() -> Vec<String> {
    std::env::args_os().skip(1).map(|argument| argument.to_string_lossy().into_owned()).collect()
}

/// Says what is wrong with the command line and what would be right.
pub fn usage_error(problem: &str, usage: &str) -> ExitCode {
    eprintln!("error: {problem}\n\n{usage}");
    ExitCode::from(2)
}

/// An error with everything that caused it, in one line. Some errors repeat their cause in their own words; it is said once.
pub fn with_causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.ends_with(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}
