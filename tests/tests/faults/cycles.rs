//! Many failures: memory stays where it is, and too many at once end the node with the first cause.

use std::time::Duration;

use kinfolk::fault::{Crash, Faults, Point, Victim};
use kinfolk::{ExchangeError, Node, NodeEvent, Rate, Terminal};
use kinfolk_tests::support::events::EventLog;
use kinfolk_tests::support::guest::{Guest, hello};
use kinfolk_tests::support::node::{builder, quick_limits, serving};
use kinfolk_tests::support::stranger::Stranger;
use kinfolk_tests::support::wait::{eventually, own_memory, within};
use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::sync::mpsc;

use crate::flows::Number;
use crate::scene::{SOON, Scene};

const GROWTH_MAX: u64 = 5 * 1024 * 1024;

/// Set for the test below that measures, which needs a process of its own, and for nobody else.
const CYCLES: &str = "KINFOLK_FAULT_CYCLES";

#[test]
fn failures_of_sessions_leave_no_memory_behind() {
    alone("cycles::failures_of_sessions_leave_no_memory_behind", sessions_fail);
}

#[test]
fn failures_of_exchanges_and_of_sessions_beside_them_leave_no_memory_behind() {
    let test = "cycles::failures_of_exchanges_and_of_sessions_beside_them_leave_no_memory_behind";
    alone(test, exchanges_fail);
}

#[test]
fn failures_of_subscriptions_on_both_sides_leave_no_memory_behind() {
    let test = "cycles::failures_of_subscriptions_on_both_sides_leave_no_memory_behind";
    alone(test, subscriptions_fail);
}

/// Runs the test of this name in a process of its own, and there its body.
fn alone<F: Future<Output = ()>>(test: &str, body: fn() -> F) {
    if std::env::var_os("KINFOLK_FAULT_CHILD").is_some() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(body());
        return;
    }
    let child = std::process::Command::new(std::env::current_exe().expect("a test is a program"))
        .args(["--exact", test, "--nocapture"])
        .env("KINFOLK_FAULT_CHILD", "1")
        .output()
        .expect("the child runs");
    let said = String::from_utf8_lossy(&child.stdout);
    let failed = String::from_utf8_lossy(&child.stderr);
    assert!(child.status.success() && said.contains("1 passed"), "{said}\n{failed}");
    println!("{said}");
}

async fn sessions_fail() {
    let mut limits = quick_limits();
    limits.gate.peer_rate = Rate::new(1000, Duration::from_millis(1));
    let alice = serving(builder(1).limits(limits)).await;
    let bob = Stranger::bind(2).await;
    cycles(250, async |n, crash| session_fails(&alice, &bob, n, crash).await).await;
}

/// Beside the sessions, exchanges with a node that discovers fail, in turn by their task and by their actor.
async fn exchanges_fail() {
    let faults = Faults::default();
    let mut limits = crate::scene::limits();
    // Walkers would make the memory depend on when they go.
    limits.walk.longest_wait = Duration::from_secs(3600);
    limits.walk.revisit = Duration::from_secs(3600);
    let alice = builder(1).limits(limits).faults(&faults).discovery(true);
    let alice = serving(alice).await;
    let dave = Scene::dave_builder().spawn().await.expect("it starts");
    let bob = Stranger::bind(2).await;
    cycles(100, async |n, crash| {
        session_fails(&alice, &bob, n, crash).await;
        let point = if crash == Crash::Panic { Point::ExchangeTask } else { Point::ExchangeDone };
        faults.arm(point, crash);
        // Another one may have been struck, as that of a walker.
        eventually(SOON, "an exchange that fails", async || {
            let synced = alice.sync_with(dave.addr()).await;
            matches!(synced, Err(ExchangeError::Failed(_))) || faults.strikes(point) as u64 > n / 2
        })
        .await;
    })
    .await;
    let metrics = alice.metrics().await.expect("alive");
    assert!(metrics.restarts.is_empty(), "{:?}", metrics.restarts);
}

/// Feeds and receivers of the same two streams fail, in turn by their task and by their actor.
async fn subscriptions_fail() {
    let faults = Faults::default();
    let mut limits = crate::scene::limits();
    limits.walk.longest_wait = Duration::from_secs(3600);
    limits.walk.revisit = Duration::from_secs(3600);
    let alice = builder(1).limits(limits).faults(&faults).discovery(true);
    let alice = alice.spawn().await.expect("it starts");
    let dave = Scene::dave_builder().spawn().await.expect("it starts");
    let out = alice.producer::<Number>("out").await.expect("a producer");
    let inward = dave.producer::<Number>("in").await.expect("a producer");
    within(SOON, "an exchange", alice.sync_with(dave.addr())).await.expect("both discover");
    cycles(30, async |_, crash| {
        let by_task = crash == Crash::Panic;
        let ways = if by_task {
            [(Point::FeedTask, &out, &dave, "out"), (Point::ReceiverTask, &inward, &alice, "in")]
        } else {
            [(Point::FeedDone, &out, &dave, "out"), (Point::ReceiverDone, &inward, &alice, "in")]
        };
        for (point, producer, consuming, name) in ways {
            let before = faults.strikes(point);
            if by_task {
                faults.arm(point, crash);
            }
            let consumer = consuming.consumer::<Number>(name).await.expect("a consumer");
            within(2 * SOON, "a subscription", producer.when_subscribed(1)).await.expect("up");
            match point {
                Point::FeedDone => {
                    within(SOON, "a source", consumer.when_online(1)).await.expect("up");
                    faults.arm(point, crash);
                }
                // It ends with its session.
                Point::ReceiverDone => {
                    within(SOON, "a source", consumer.when_online(1)).await.expect("up");
                    faults.arm(point, crash);
                    alice.disconnect(dave.id()).await.expect("up");
                }
                _ => {}
            }
            if point == Point::FeedDone {
                drop(consumer);
                eventually(SOON, "the strike", async || faults.strikes(point) > before).await;
            } else {
                eventually(SOON, "the strike", async || faults.strikes(point) > before).await;
                drop(consumer);
            }
            eventually(SOON, "the end", async || producer.consumers().is_empty()).await;
        }
    })
    .await;
    let metrics = alice.metrics().await.expect("alive");
    assert!(metrics.restarts.is_empty(), "{:?}", metrics.restarts);
}

/// One session fails.
async fn session_fails(alice: &Node, bob: &Stranger, n: u64, crash: Crash) {
    let mut log = EventLog::of(alice).await;
    let guest = Guest::enter(bob, alice, hello(1, n)).await;
    alice.inject(Victim::Session(bob.id()), crash);
    let bob_id = bob.id();
    let is_end = |event: &NodeEvent| matches!(event, NodeEvent::SessionEnded { peer, .. } if *peer == bob_id);
    log.next(SOON, "the session's end", is_end).await;
    // Else it would be left alone for its panics.
    alice.unban(bob.id()).expect("the node is up");
    drop(guest);
}

/// Lets something fail again and again, in turn by an error and by a panic, and looks at the memory.
async fn cycles(short: u64, mut fail: impl AsyncFnMut(u64, Crash)) {
    let cycles = std::env::var(CYCLES).ok().and_then(|cycles| cycles.parse().ok()).unwrap_or(short);
    let mut after_first = 0;
    for n in 1..=cycles {
        fail(n, if n % 2 == 0 { Crash::Panic } else { Crash::Error }).await;
        if n == cycles / 5 {
            after_first = own_memory();
        }
    }
    let after_last = own_memory();
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
