//! What bounds an actor that never returns.

use std::time::{Duration, Instant};

use kinfolk::error::OpenError;
use kinfolk::fault::{Crash, Point};
use kinfolk::{LinkEnd, NodeEvent, Options, Terminal};
use kinfolk_tests::support::node::{ECHO, connect};
use kinfolk_tests::support::wait::within;

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
async fn a_manager_that_never_returns_lets_asks_end_by_their_deadlines_and_questions_with_the_node()
{
    let mut scene = Scene::new(&[]).await;
    scene.faults.arm(Point::ManagerPeers, Crash::Never);
    let alice = scene.alice.clone();
    let question = tokio::spawn(async move { alice.peers().await });
    within(SOON, "the strike", scene.faults.struck(Point::ManagerPeers)).await;

    let (begun, deadline) = (Instant::now(), Duration::from_secs(1));
    let options = Options::new().deadline(deadline);
    let opened = scene.alice.open_with(scene.bob.addr(), ECHO, options).await;
    assert_eq!(opened.expect_err("nobody dials"), OpenError::TimedOut { cause: None });
    assert!(begun.elapsed() < deadline + SLACK, "{:?}", begun.elapsed());
    // Streams of live sessions know nothing of it, and the question waits.
    scene.kept_lives().await;
    assert!(!question.is_finished());

    let begun = Instant::now();
    assert_eq!(scene.alice.shutdown().await, Terminal::Shutdown);
    // Its own deadline, a manager that does not stop, the endpoint.
    let bound = limits().shutdown_deadline + KILL + Duration::from_secs(3);
    assert!(begun.elapsed() < bound + SLACK, "{:?}", begun.elapsed());
    let answer = within(SOON, "the question's end", question).await.expect("no panic");
    assert_eq!(answer.expect_err("the node has ended").0, Terminal::Shutdown);
    scene.over().await;
}
