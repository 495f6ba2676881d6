//! A host that the node dials, and that answers the hello with what it should not: it is told why and counted, and what waits for it is
//! asked again once the backoff is over.

use std::time::Duration;

use iroh::endpoint::VarInt;
use kinfolk::error::{CallError, OpenError};
use kinfolk::{Code, Incarnation, LinkEnd, Metrics, NodeEvent, Options, PeerStatus};
use kinfolk_core::wire::{Answer, CALL_MAX_DEFAULT, Control, Extensions, Goodbye, MINOR, Welcome};
use kinfolk_tests::support::events::EventLog;
use kinfolk_tests::support::guest::{bytes, done, goodbye, hear, hello};
use kinfolk_tests::support::host::{Asked, Dialled, Host};
use kinfolk_tests::support::node::{ECHO, NEXT, builder, live, watching};
use kinfolk_tests::support::wait::within;

use crate::scene::{SOON, Scene, closed, framed, limits, one_byte_is_missing};

/// A code that no version of the protocol has given a meaning.
fn unheard_of() -> Code {
    Code::from_wire(200)
}

fn welcome() -> Welcome {
    Welcome {
        minor: MINOR,
        incarnation: Incarnation::new(1),
        call_max: CALL_MAX_DEFAULT,
        extensions: Extensions::none(),
    }
}

/// A scene, and a host that the node knows. The host has so long for its welcome.
async fn hosted(hello_deadline: Duration) -> (Scene, Host) {
    let mut limits = limits();
    limits.hello_deadline = hello_deadline;
    limits.drain_deadline = SOON;
    let (scene, host) = (Scene::around(builder(1).limits(limits)).await, Host::bind(77).await);
    scene.node.add_address(host.addr()).expect("an address");
    (scene, host)
}

/// Whether the host still owes its welcome when it misbehaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    Greeted,
    Welcomed,
}

/// Greets the node up to there.
async fn dialled(scene: &Scene, host: &mut Host, when: When) -> Dialled {
    let mut dialled = host.greeted().await;
    if when == When::Welcomed {
        dialled.welcome().await;
        live(&scene.node, host.id()).await;
    }
    dialled
}

/// Takes the node's next stream, which it opens by itself for what waits.
async fn acknowledged(host: &mut Host) -> (Dialled, Asked) {
    let dialled = host.welcomed().await;
    let mut asked = dialled.stream().await;
    asked.answer(Answer::Ack).await;
    (dialled, asked)
}

/// What a host that misbehaves is told, and as what its link is counted.
struct Verdict {
    code: Code,
    end: &'static str,
}

/// The host breaks the protocol.
const fn blamed(code: Code) -> Verdict {
    Verdict { code, end: "peer_misbehaved" }
}

/// The node opens a stream at a host that misbehaves: the node closes the link with the code, counts it, serves others, and opens the
/// stream on its next dial.
async fn is_dropped_and_dialled_again(
    when: When,
    verdict: Verdict,
    misbehave: impl AsyncFnOnce(&mut Dialled),
) {
    // Only a host that is to be late has little time.
    let is_late = verdict.code == Code::HelloTimeout;
    let (scene, mut host) = hosted(if is_late { limits().hello_deadline } else { SOON }).await;
    let opening = scene.node.open(host.id(), ECHO);
    let hosting = async {
        let mut dialled = dialled(&scene, &mut host, when).await;
        // What waits is opened right behind the hello; never answered, it has not been served.
        let _unanswered = dialled.stream().await;
        misbehave(&mut dialled).await;
        scene.is_well().await;
        assert_eq!(closed(&dialled.connection).await, Some(verdict.code));
        scene.counts(1, verdict.end, |metrics| &metrics.sessions.ended).await;
        let failed = u64::from(when == When::Greeted);
        scene.counts(failed, verdict.end, |metrics| &metrics.dials_failed).await;
        scene.is_well().await;
        acknowledged(&mut host).await
    };
    let both = async { tokio::join!(opening, hosting) };
    let (opened, _kept) = within(2 * SOON, "the open", both).await;
    opened.expect("opened once the host behaves");
    let Metrics { dials_started, sessions, .. } = scene.metrics().await;
    assert_eq!((dials_started, sessions.outbound), (2, 1));
}

/// As [`is_dropped_and_dialled_again`], for bytes that the host writes.
async fn says(when: When, bytes: &[u8], code: Code) {
    is_dropped_and_dialled_again(when, blamed(code), async |dialled| {
        dialled.send.write_all(bytes).await.expect("the node listens");
    })
    .await;
}

// Instead of a welcome

#[tokio::test]
async fn garbage_instead_of_a_welcome_is_malformed() {
    says(When::Greeted, &framed(&[0xff; 40]), Code::Malformed).await;
}

#[tokio::test]
async fn an_empty_frame_instead_of_a_welcome_is_malformed() {
    says(When::Greeted, &[0; 4], Code::Malformed).await;
}

#[tokio::test]
async fn a_welcome_that_claims_to_be_too_long_is_too_large() {
    says(When::Greeted, &[0xff; 4], Code::TooLarge).await;
}

#[tokio::test]
async fn a_hello_instead_of_a_welcome_breaks_the_protocol() {
    says(When::Greeted, &bytes(&Control::Hello(hello(1, 1))), Code::Violation).await;
}

#[tokio::test]
async fn a_done_instead_of_a_welcome_breaks_the_protocol() {
    says(When::Greeted, &bytes(&done()), Code::Violation).await;
}

#[tokio::test]
async fn a_welcome_that_ends_too_early_breaks_the_protocol() {
    let half = one_byte_is_missing(bytes(&Control::Welcome(welcome())));
    is_dropped_and_dialled_again(When::Greeted, blamed(Code::Violation), async |dialled| {
        dialled.send.write_all(&half).await.expect("the node listens");
        dialled.send.finish().expect("finished once");
    })
    .await;
}

#[tokio::test]
async fn a_reset_instead_of_a_welcome_breaks_the_protocol() {
    is_dropped_and_dialled_again(When::Greeted, blamed(Code::Violation), async |dialled| {
        dialled.send.reset(VarInt::MAX).expect("reset once");
    })
    .await;
}

#[tokio::test]
async fn a_welcome_that_stops_coming_is_late() {
    let half = one_byte_is_missing(bytes(&Control::Welcome(welcome())));
    let late = Verdict { code: Code::HelloTimeout, end: "closed" };
    is_dropped_and_dialled_again(When::Greeted, late, async |dialled| {
        dialled.send.write_all(&half).await.expect("the node listens");
    })
    .await;
}

#[tokio::test]
async fn a_goodbye_instead_of_a_welcome_with_a_code_unheard_of_is_a_refusal_and_nobody_s_fault() {
    let refused = Verdict { code: unheard_of(), end: "closed_by_peer" };
    is_dropped_and_dialled_again(When::Greeted, refused, async |dialled| {
        dialled.say(&[goodbye(unheard_of())]).await;
    })
    .await;
}

// After the welcome

#[tokio::test]
async fn a_second_welcome_breaks_the_protocol() {
    says(When::Welcomed, &bytes(&Control::Welcome(welcome())), Code::Violation).await;
}

#[tokio::test]
async fn a_hello_of_the_acceptor_breaks_the_protocol() {
    says(When::Welcomed, &bytes(&Control::Hello(hello(1, 1))), Code::Violation).await;
}

#[tokio::test]
async fn a_done_of_the_acceptor_before_its_goodbye_breaks_the_protocol() {
    says(When::Welcomed, &bytes(&done()), Code::Violation).await;
}

#[tokio::test]
async fn garbage_behind_a_welcome_is_malformed() {
    says(When::Welcomed, &framed(b"\xffgarbage"), Code::Malformed).await;
}

#[tokio::test]
async fn a_control_stream_that_the_acceptor_ends_breaks_the_protocol() {
    is_dropped_and_dialled_again(When::Welcomed, blamed(Code::Violation), async |dialled| {
        dialled.send.finish().expect("finished once");
    })
    .await;
}

#[tokio::test]
async fn a_control_stream_that_the_acceptor_resets_breaks_the_protocol() {
    is_dropped_and_dialled_again(When::Welcomed, blamed(Code::Violation), async |dialled| {
        dialled.send.reset(VarInt::MAX).expect("reset once");
    })
    .await;
}

#[tokio::test]
async fn a_goodbye_of_the_acceptor_with_a_code_unheard_of_is_answered_and_what_waits_moves_on() {
    let (scene, mut host) = hosted(SOON).await;
    let opening = scene.node.open(host.id(), ECHO);
    let hosting = async {
        let mut dialled = dialled(&scene, &mut host, When::Welcomed).await;
        let mut asked = dialled.stream().await;
        dialled.say(&[Control::Goodbye(Goodbye::new(unheard_of(), 0, SOON))]).await;
        let answered = hear(&mut dialled.receive).await;
        assert!(matches!(answered, Some(Control::Goodbye(_))), "{answered:?}");
        asked.answer(Answer::Refuse(Code::Draining)).await;
        asked.send.finish().expect("finished once");
        assert_eq!(hear(&mut dialled.receive).await, Some(done()));
        dialled.say(&[done()]).await;
        assert_eq!(closed(&dialled.connection).await, Some(Code::Ok));
        scene.counts(1, "drained", |metrics| &metrics.sessions.ended).await;
        acknowledged(&mut host).await
    };
    let both = async { tokio::join!(opening, hosting) };
    let (opened, _kept) = within(2 * SOON, "the open", both).await;
    opened.expect("opened on the next link");
    scene.is_well().await;
}

// What waits besides opens

/// The outcome of a call to a host that breaks the protocol once it has the request, and whether the call was asked again.
async fn called(when: When, options: Options) -> (Result<u64, CallError>, bool) {
    let (scene, mut host) = hosted(SOON).await;
    let id = host.id();
    let hosting = async {
        let mut dialled = dialled(&scene, &mut host, when).await;
        let _asked = dialled.stream().await;
        dialled.say(&[done()]).await;
        assert_eq!(closed(&dialled.connection).await, Some(Code::Violation));
        let again = host.welcomed().await;
        again.stream().await.respond(&[2]).await;
        std::future::pending::<()>().await;
    };
    let outcome = within(2 * SOON, "an outcome", async {
        tokio::select! {
            outcome = scene.node.call_with(id, NEXT, &1_u64, options) => outcome,
            () = hosting => unreachable!("it never ends"),
        }
    });
    let outcome = outcome.await;
    scene.is_well().await;
    (outcome, scene.metrics().await.dials_started > 1)
}

#[tokio::test]
async fn a_call_that_a_misbehaving_host_may_have_run_is_unknown_and_not_sent_again() {
    for when in [When::Greeted, When::Welcomed] {
        let unknown = Err(CallError::Intent(OpenError::Unknown));
        assert_eq!(called(when, Options::new()).await, (unknown, false), "{when:?}");
    }
}

#[tokio::test]
async fn an_idempotent_call_to_a_misbehaving_host_is_answered_once_the_host_behaves() {
    for when in [When::Greeted, When::Welcomed] {
        let answer = called(when, Options::new().idempotent()).await;
        assert_eq!(answer, (Ok(2), true), "{when:?}");
    }
}

#[tokio::test]
async fn a_hold_outlives_a_misbehaving_host() {
    for when in [When::Greeted, When::Welcomed] {
        let (scene, mut host) = hosted(SOON).await;
        let mut log = EventLog::of(&scene.node).await;
        let hold = scene.node.hold(host.id());
        let mut dialled = dialled(&scene, &mut host, when).await;
        dialled.say(&[done()]).await;
        assert_eq!(closed(&dialled.connection).await, Some(Code::Violation));
        let misbehaved = LinkEnd::PeerMisbehaved(Code::Violation);
        let is_end = |event: &NodeEvent| matches!(event, NodeEvent::SessionEnded { end, .. } if *end == misbehaved);
        log.next(SOON, "the end of the first link", is_end).await;
        let mut status = watching(&scene.node, host.id()).await;
        let _again = host.welcomed().await;
        let up = status.wait_for(PeerStatus::is_up);
        within(SOON, "a session", up).await.expect("the node is up");
        assert_eq!(hold.outcome(), None);
        scene.is_well().await;
    }
}

// Unusual welcomes that must be served

#[tokio::test]
async fn the_largest_numbers_and_unknown_extensions_that_a_welcome_can_carry_are_served() {
    let (scene, mut host) = hosted(SOON).await;
    let extensions = Extensions::none()
        .with(7, b"from the future")
        .and_then(|extensions| extensions.with(u32::MAX, b""));
    let largest = Welcome {
        minor: u16::MAX,
        incarnation: Incarnation::new(u64::MAX),
        call_max: u32::MAX,
        extensions: extensions.expect("rising kinds"),
    };
    let calling = scene.node.call::<_, u64>(host.id(), NEXT, &1_u64);
    let hosting = async {
        let mut dialled = host.greeted().await;
        dialled.say(&[Control::Welcome(largest)]).await;
        dialled.stream().await.respond(&[2]).await;
        dialled
    };
    let both = async { tokio::join!(calling, hosting) };
    let (answer, _dialled) = within(SOON, "the answer", both).await;
    assert_eq!(answer, Ok(2));
    live(&scene.node, host.id()).await;
    let why = scene.node.why(host.id()).await.expect("alive").expect("connected");
    assert_eq!(why.incarnation, Some(Incarnation::new(u64::MAX)));
    assert_eq!(scene.metrics().await.dials_started, 1);
    scene.is_well().await;
}
