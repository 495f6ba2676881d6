//! Many failures: memory stays where it is, and too many at once end the node with the first cause.

use std::time::Duration;

use kinfolk::fault::{Crash, Faults, Point, Victim};
use kinfolk::{NodeEvent, Rate, Terminal};
use kinfolk_tests::support::events::EventLog;
use kinfolk_tests::support::guest::{Guest, hello};
use kinfolk_tests::support::node::{builder, quick_limits, serving};
use kinfolk_tests::support::stranger::Stranger;
use kinfolk_tests::support::wait::{resident_bytes, within};
use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::sync::mpsc;

use crate::scene::SOON;

const GROWTH_MAX: u64 = 5 * 1024 * 1024;

/// Set for the test below that measures, which needs a process of its own, and for nobody else.
const CYCLES: &str = "KINFOLK_FAULT_CYCLES";

#[test]
fn failures_of_sessions_leave_no_memory_behind() {
    if std::env::var_os("KINFOLK_FAULT_CHILD").is_some() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(cycles());
        return;
    }
    let child = std::process::Command::new(std::env::current_exe().expect("a test is a program"))
        .args(["--exact", "cycles::failures_of_sessions_leave_no_memory_behind", "--nocapture"])
        .env("KINFOLK_FAULT_CHILD", "1")
        .output()
        .expect("the child runs");
    let said = String::from_utf8_lossy(&child.stdout);
    let failed = String::from_utf8_lossy(&child.stderr);
    assert!(child.status.success() && said.contains("1 passed"), "{said}\n{failed}");
    println!("{said}");
}

async fn cycles() {
    let cycles = std::env::var(CYCLES).ok().and_then(|cycles| cycles.parse().ok()).unwrap_or(250);
    let mut limits = quick_limits();
    limits.gate.peer_rate = Rate::new(1000, Duration::from_millis(1));
    let alice = serving(builder(1).limits(limits)).await;
    let bob = Stranger::bind(2).await;
    let mut after_first = 0;
    for n in 1..=cycles {
        let mut log = EventLog::of(&alice).await;
        let guest = Guest::enter(&bob, &alice, hello(1, n)).await;
        let crash = if n % 2 == 0 { Crash::Panic } else { Crash::Error };
        alice.inject(Victim::Session(bob.id()), crash);
        let is_end = |event: &NodeEvent| matches!(event, NodeEvent::SessionEnded { .. });
        log.next(SOON, "the session's end", is_end).await;
        // Else it would be left alone for its panics.
        alice.unban(bob.id()).expect("the node is up");
        drop(guest);
        if n == cycles / 5 {
            after_first = resident_bytes();
        }
    }
    let after_last = resident_bytes();
    println!("{cycles} failures: {after_first} bytes after a fifth, {after_last} after the last");
    let growth = after_last.saturating_sub(after_first);
    assert!(growth <= GROWTH_MAX, "{growth} bytes more after the last than after a fifth");
}

/// A supervisor of the app: it reports how its children failed.
struct Supervisor;

impl Actor for Supervisor {
    type Msg = ();
    type State = mpsc::UnboundedSender<String>;
    type Arguments = mpsc::UnboundedSender<String>;

    async fn pre_start(
        &self,
        _myself: ActorRef<()>,
        reports: Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        Ok(reports)
    }

    async fn handle_supervisor_evt(
        &self,
        _myself: ActorRef<()>,
        event: SupervisionEvent,
        reports: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        if let SupervisionEvent::ActorFailed(_, error) = event {
            reports.send(error.to_string())?;
        }
        Ok(())
    }
}

#[tokio::test]
async fn the_sixth_failure_ends_the_node_with_the_first_cause_at_its_supervisor_and_at_closed() {
    let (reports, mut ends) = mpsc::unbounded_channel();
    let (supervisor, _) = Actor::spawn(None, Supervisor, reports).await.expect("it starts");
    let faults = Faults::default();
    let builder = builder(1).faults(&faults);
    let alice = builder.spawn_linked(supervisor.get_cell()).await.expect("it starts");
    let mut log = EventLog::of(&alice).await;
    let is_restart = |event: &NodeEvent| matches!(event, NodeEvent::Restarted { .. });
    // The first is Accept's, by an error; all later ones are the PeerManager's, by a panic.
    alice.inject(Victim::Accept, Crash::Error);
    log.next(SOON, "the first restart", is_restart).await;
    for _ in 0..5 {
        let _ =
            within(SOON, "the manager", alice.metrics()).await.expect("up to five are survived");
        faults.arm(Point::ManagerPeers, Crash::Panic);
        let _ = within(SOON, "an answer by the next one, or the end", alice.peers()).await;
    }
    let end = within(SOON, "the end", alice.closed()).await;
    let Terminal::Failed(cause) = end else { panic!("{end:?}") };
    assert!(cause.contains("the first: accept: injected error"), "{cause}");
    assert!(cause.contains("the last: peer_manager: injected panic"), "{cause}");
    let report = within(SOON, "the supervision event", ends.recv()).await.expect("reported");
    assert_eq!(*report, *cause);
    assert_eq!(log.count(is_restart), 5);
    assert_eq!(log.count(|event| matches!(event, NodeEvent::Ended { .. })), 1);
    supervisor.stop(None);
}

#[tokio::test]
async fn a_panic_while_the_node_stops_is_its_end_at_its_supervisor_and_at_closed() {
    let (reports, mut ends) = mpsc::unbounded_channel();
    let (supervisor, _) = Actor::spawn(None, Supervisor, reports).await.expect("it starts");
    let faults = Faults::default();
    faults.arm(Point::NodePostStop, Crash::Panic);
    let builder = builder(1).faults(&faults);
    let alice = builder.spawn_linked(supervisor.get_cell()).await.expect("it starts");
    let end = within(SOON, "the end", alice.shutdown()).await;
    assert_eq!(end, Terminal::Failed("the node panicked: injected panic".into()));
    let report = within(SOON, "the supervision event", ends.recv()).await.expect("reported");
    assert_eq!(report, "the node panicked: injected panic");
    supervisor.stop(None);
}
