//! What bounds an actor that never returns.

use std::time::{Duration, Instant};

use kinfolk::error::OpenError;
use kinfolk::fault::{Crash, Faults, Point};
use kinfolk::{Direction, ExchangeError, LinkEnd, NodeEvent, Options, Terminal};
use kinfolk_tests::support::events::EventLog;
use kinfolk_tests::support::node::{ECHO, Mortal, builder, connect};
use kinfolk_tests::support::wait::{eventually, within};

use crate::scene::{SOON, Scene, limits};

/// How long after its deadline a link that does not close is killed.
const KILL: Duration = Duration::from_secs(2);

/// What a busy machine may add.
const SLACK: Duration = Duration::from_secs(4);

#[tokio::test]
async fn a_session_that_never_returns_is_killed_two_seconds_after_its_drain_deadline() {
    let mut scene = Scene::new(&[]).await;
    let link = connect(&scene.alice, &scene.bob).await;
    scene.faults.arm(Point::SessionDrain, Crash::Never);
    let begun = Instant::now();
    scene.alice.disconnect(scene.bob.id()).await.expect("alice is up");
    let ended = NodeEvent::SessionEnded { peer: scene.bob.id(), link, end: LinkEnd::Failed };
    scene.log.next(SOON, "the session's end", |event| *event == ended).await;
    let (took, deadline) = (begun.elapsed(), limits().drain_deadline + KILL);
    assert!(deadline <= took && took < deadline + SLACK, "{took:?}");
    scene.kept_lives().await;
    scene.over().await;
}

#[tokio::test]
async fn a_session_that_never_answers_its_dial_is_given_up_and_the_peer_is_dialled_again() {
    let mut scene = Scene::new(&[]).await;
    scene.faults.arm(Point::SessionDialled, Crash::Never);
    let options = Options::new().deadline(SOON);
    let open = scene.alice.open_with(scene.bob.addr(), ECHO, options);
    within(SOON, "a stream, at the second attempt", open).await.expect("opened");
    assert_eq!(scene.faults.strikes(Point::SessionDialled), 1);
    scene.kept_lives().await;
    scene.over().await;
}

#[tokio::test]
async fn a_manager_that_never_returns_is_restarted_and_questions_are_answered_by_the_next() {
    let mut scene = Scene::new(&[]).await;
    scene.faults.arm(Point::ManagerPeers, Crash::Never);
    let alice = scene.alice.clone();
    let question = tokio::spawn(async move { alice.peers().await });
    within(SOON, "the strike", scene.faults.struck(Point::ManagerPeers)).await;
    // Streams of live sessions know nothing of it until it is killed.
    scene.kept_lives().await;

    let (begun, deadline) = (Instant::now(), Duration::from_secs(1));
    let options = Options::new().deadline(deadline);
    let opened = scene.alice.open_with(scene.bob.addr(), ECHO, options).await;
    assert_eq!(opened.expect_err("nobody dials"), OpenError::TimedOut { cause: None });
    assert!(begun.elapsed() < deadline + SLACK, "{:?}", begun.elapsed());

    let restarted = |event: &NodeEvent| matches!(event, NodeEvent::Restarted { .. });
    let event = scene.log.next(SOON, "the restart", restarted).await;
    let took = begun.elapsed();
    let NodeEvent::Restarted { actor, cause } = event else { panic!("{event:?}") };
    let unresponsive = limits().unresponsive;
    assert_eq!((actor, cause), ("peer_manager", format!("it was silent for {unresponsive:?}")));
    // A little of it had passed before the strike.
    assert!(took < unresponsive.mul_f64(1.5) + SLACK, "{took:?}");
    within(SOON, "the answer", question).await.expect("no panic").expect("the node lives");
    scene.over().await;
}

#[tokio::test]
async fn an_exchange_that_never_returns_is_killed_after_its_deadlines_and_ends_for_all_who_wait() {
    let mut scene = Scene::with(&[], true, false).await;
    let dave = scene.dave().await;
    scene.faults.arm(Point::ExchangeTask, Crash::Never);
    let begun = Instant::now();
    let ask = || within(2 * SOON, "the end of an exchange", scene.alice.sync_with(dave.addr()));
    let (first, second) = tokio::join!(ask(), ask());
    let late = ExchangeError::Failed("it did not end by its deadline".into());
    assert_eq!((first, second), (Err(late.clone()), Err(late.clone())));
    let limits = limits();
    let deadline = limits.dial_deadline + limits.exchange.deadline + limits.unresponsive;
    let took = begun.elapsed();
    // It is looked for now and then.
    let latest = deadline + limits.unresponsive.mul_f64(0.5) + SLACK;
    assert!(deadline <= took && took < latest, "{took:?}");
    let failed = NodeEvent::ExchangeFailed {
        peer: dave.id(),
        direction: Direction::Outbound,
        error: late,
        report: None,
    };
    scene.log.next(SOON, "the event", |event| *event == failed).await;
    let restarted = |event: &NodeEvent| matches!(event, NodeEvent::Restarted { .. });
    assert_eq!(scene.log.count(restarted), 0);
    drop(dave);
    scene.discovers_on().await;
    scene.kept_lives().await;
    scene.over().await;
}

#[tokio::test]
async fn a_part_that_hangs_again_and_again_ends_the_node() {
    let faults = Faults::default();
    let mut limits = limits();
    limits.unresponsive = Duration::from_secs(2);
    let alice = builder(1).limits(limits).faults(&faults).spawn().await.expect("it starts");
    for _ in 0..3 {
        faults.arm(Point::AcceptPulse, Crash::Never);
    }
    let end = within(2 * SOON, "the end", alice.closed()).await;
    let Terminal::Failed(cause) = &end else { panic!("{end:?}") };
    assert_eq!(&**cause, "accept: it was silent for 2s, again and again");
}

/// As a laptop that sleeps: nothing runs, and then everything is late at once.
#[tokio::test]
async fn a_node_that_was_stopped_for_longer_than_its_parts_may_be_silent_restarts_none() {
    let mut limits = limits();
    limits.unresponsive = Duration::from_secs(2);
    for round in 0..2 {
        let faults = Faults::default();
        let mortal = Mortal::spawn(builder(1).limits(limits.clone()).faults(&faults)).await;
        let mut log = EventLog::of(&mortal.node).await;
        let pause = mortal.pause();
        let stopped = Duration::from_millis(3500 + 500 * round);
        tokio::task::spawn_blocking(move || std::thread::sleep(stopped)).await.expect("slept");
        drop(pause);
        // Twice as many looks at the parts as it takes to give one up.
        const LOOKS: usize = 6;
        for _ in 0..LOOKS {
            faults.arm(Point::NodeWatch, Crash::Stall(Duration::ZERO));
        }
        eventually(SOON, "the looks", async || faults.strikes(Point::NodeWatch) == LOOKS).await;
        assert_eq!(log.count(|event| matches!(event, NodeEvent::Restarted { .. })), 0);
        within(SOON, "an answer", mortal.node.peers()).await.expect("it is well");
        mortal.kill().await;
    }
}
