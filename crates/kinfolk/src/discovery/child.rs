//! Tests that need a process, a file system or a network of their own run once more, in a child.

use std::io::Write as _;
use std::process::Command;

/// Set for such a child, and for nobody else.
const VALUE: &str = "KINFOLK_TEST_CHILD";

/// What the parent gave this process, if it is a child.
pub(super) fn value() -> Option<String> {
    std::env::var(VALUE).ok()
}

/// The test of this name (with its module, as `module_path!` says it), to be run by a program that is given its command.
pub(super) fn command(before: &[&str], module: &str, test: &str, value: &str) -> Command {
    let (_crate, module) = module.split_once("::").expect("a module of a crate");
    let program = std::env::current_exe().expect("a test is a program");
    let mut command = match before {
        [] => Command::new(&program),
        [first, rest @ ..] => {
            let mut command = Command::new(first);
            command.args(rest).arg(&program);
            command
        }
    };
    command.args(["--exact", &format!("{module}::{test}"), "--nocapture"]).env(VALUE, value);
    command
}

/// Runs the test as a child where `before` works; where it does not, that is said.
///
/// # Panics
/// If the child's test fails.
pub(super) fn run(before: &[&str], module: &str, test: &str, value: &str) {
    let [first, rest @ ..] = before else { panic!("a program") };
    let obstacle = match Command::new(first).args(rest).arg("true").output() {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => Some(format!("{first}: {error}")),
    };
    if let Some(obstacle) = obstacle {
        // Not by `eprintln`, which nobody sees of a test that passes.
        let _ = writeln!(std::io::stderr(), "{test} is skipped: {obstacle}");
        return;
    }
    let output = command(before, module, test, value).output().expect("the child runs");
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}\n{errors}");
}
