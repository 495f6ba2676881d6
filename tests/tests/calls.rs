//! Calls over real QUIC: requests and responses whole or not at all, run once or known not to be, with a typed outcome whatever happens.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use iroh::endpoint::{ReadError, ReadToEndError};
use kinfolk::error::{CallError, HandlerError, OpenError};
use kinfolk::{Bytes, Code, Failure, Node, NodeEvent, Options, ProtocolName, Service};
use kinfolk_core::wire::{Control, Goodbye, StreamMode};
use kinfolk_tests::support::events::EventLog;
use kinfolk_tests::support::guest::{Guest, header, hear, hello};
use kinfolk_tests::support::host::{Dialled, Host};
use kinfolk_tests::support::node::{
    ECHO, Mortal, NEXT, builder, connect, link, never, node, node_with, quick_limits,
};
use kinfolk_tests::support::stranger::Stranger;
use kinfolk_tests::support::wait::{eventually, within};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

const SOON: Duration = Duration::from_secs(10);

/// Served by the test's own handler.
const TASK: ProtocolName = ProtocolName::from_static("task/1");

const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

fn intent<T>(outcome: OpenError) -> Result<T, CallError> {
    Err(CallError::Intent(outcome))
}

/// Serves [`TASK`] with a call that is never answered, and tells of each that came and of each that was dropped.
async fn serve_never(node: &Node) -> mpsc::UnboundedReceiver<&'static str> {
    let (service, told) = never();
    node.serve(TASK, service).await.expect("a new protocol");
    told
}

async fn hears(told: &mut mpsc::UnboundedReceiver<&'static str>, what: &str) {
    assert_eq!(within(SOON, what, told.recv()).await, Some(what));
}

// Requests and responses

/// Serves [`TASK`]: sends the bytes back.
async fn mirror(node: &Node) {
    let service = Service::call_bytes(|_peer, request: Bytes| async move { Ok(request.to_vec()) });
    node.serve(TASK, service).await.expect("a new protocol");
}

#[tokio::test]
async fn a_request_and_a_response_as_large_as_the_limit_travel_whole() {
    let (alice, bob) = (node(1).await, node(2).await);
    mirror(&bob).await;
    let size = usize::try_from(quick_limits().call_bytes).expect("small");
    let request: Vec<u8> = (0..size).map(|place| (place % 251) as u8).collect();
    let asked = alice.call_bytes(bob.addr(), TASK, &request, Options::new());
    let response = within(SOON, "an answer", asked).await.expect("answered");
    assert!(response == request, "{} bytes came back", response.len());
}

#[tokio::test]
async fn a_request_above_the_caller_s_limit_fails_before_anything_is_sent() {
    let alice = node_with(1, |limits| limits.call_bytes = 1000).await;
    let bob = node(2).await;
    mirror(&bob).await;
    let asked = alice.call_bytes(bob.addr(), TASK, &[0; 1001], Options::new());
    let failed = within(SOON, "an outcome", asked).await;
    assert_eq!(failed, Err(OpenError::Failed { failure: Failure::TooLarge, cause: None }));
    assert_eq!(alice.metrics().await.expect("up").dials_started, 0);
}

#[tokio::test]
async fn a_request_above_the_peer_s_limit_fails_here_once_the_peer_has_told_its_limit() {
    let alice = node(1).await;
    let bob = node_with(2, |limits| limits.call_bytes = 1000).await;
    mirror(&bob).await;
    connect(&alice, &bob).await;
    let asked = alice.call_bytes(bob.id(), TASK, &[0; 1001], Options::new());
    let failed = within(SOON, "an outcome", asked).await;
    assert_eq!(failed, Err(OpenError::Failed { failure: Failure::TooLarge, cause: None }));
    assert_eq!(bob.metrics().await.expect("up").protocols["task/1"].served, 0);
}

#[tokio::test]
async fn a_request_above_the_peer_s_limit_on_the_dialled_side_fails_as_too_large() {
    // The peer that dialled is never told a limit; it is the one that says no.
    let alice = node(1).await;
    let bob = node_with(2, |limits| limits.call_bytes = 1000).await;
    mirror(&bob).await;
    connect(&bob, &alice).await;
    let asked = alice.call_bytes(bob.id(), TASK, &[0; 1001], Options::new());
    let failed = within(SOON, "an outcome", asked).await;
    let failure = Failure::Reset(Code::TooLarge);
    assert_eq!(failed, Err(OpenError::Failed { failure, cause: None }));
}

#[tokio::test]
async fn a_response_above_the_caller_s_limit_fails_as_too_large() {
    let alice = node_with(1, |limits| limits.call_bytes = 1000).await;
    let bob = node(2).await;
    let service = Service::call_bytes(|_peer, _request: Bytes| async move { Ok(vec![0; 1001]) });
    bob.serve(TASK, service).await.expect("a new protocol");
    let asked = alice.call_bytes(bob.addr(), TASK, b"", Options::new());
    let failed = within(SOON, "an outcome", asked).await;
    let failure = Failure::Reset(Code::TooLarge);
    assert_eq!(failed, Err(OpenError::Failed { failure, cause: None }));
}

#[tokio::test]
async fn a_response_above_the_answering_side_s_limit_is_a_failure_of_its_handler() {
    let alice = node(1).await;
    let bob = node_with(2, |limits| limits.call_bytes = 1000).await;
    let service = Service::call_bytes(|_peer, _request: Bytes| async move { Ok(vec![0; 1001]) });
    bob.serve(TASK, service).await.expect("a new protocol");
    let mut log = EventLog::of(&bob).await;
    let asked = alice.call_bytes(bob.addr(), TASK, b"", Options::new());
    let failed = within(SOON, "an outcome", asked).await;
    let failure = Failure::Reset(Code::HandlerFailed);
    assert_eq!(failed, Err(OpenError::Failed { failure, cause: None }));
    let is_told = |event: &NodeEvent| matches!(event, NodeEvent::HandlerFailed { reason, .. } if reason.contains("1001 bytes"));
    log.next(SOON, "the event", is_told).await;
}

#[tokio::test]
async fn a_response_of_another_type_is_an_error_of_its_own() {
    let (alice, bob) = (node(1).await, node(2).await);
    let service = Service::call(|_peer, _request: u64| async move { Ok(1_u8) });
    bob.serve(TASK, service).await.expect("a new protocol");
    let asked = alice.call::<_, String>(bob.addr(), TASK, &1_u64);
    let failed = within(SOON, "an outcome", asked).await;
    assert!(matches!(failed, Err(CallError::Response(_))), "{failed:?}");
}

#[tokio::test]
async fn a_request_of_another_type_fails_at_the_peer_s_handler() {
    let (alice, bob) = (node(1).await, node(2).await);
    let service = Service::call(|_peer, request: String| async move { Ok(request.len()) });
    bob.serve(TASK, service).await.expect("a new protocol");
    let asked = alice.call::<_, usize>(bob.addr(), TASK, &200_u8);
    let failed = within(SOON, "an outcome", asked).await;
    let failure = Failure::Reset(Code::HandlerFailed);
    assert_eq!(failed, intent(OpenError::Failed { failure, cause: None }));
}

#[tokio::test]
async fn a_call_to_a_stream_protocol_and_an_open_of_a_call_protocol_are_refused_as_violations() {
    let (alice, bob) = (node(1).await, node(2).await);
    let called = within(SOON, "an outcome", alice.call::<_, u64>(bob.addr(), ECHO, &1_u64)).await;
    assert_eq!(called, intent(OpenError::Refused(Code::Violation)));
    let opened = within(SOON, "an outcome", alice.open(bob.addr(), NEXT)).await;
    assert_eq!(opened.expect_err("a call protocol"), OpenError::Refused(Code::Violation));
}

#[tokio::test]
async fn calls_are_answered_in_parallel_on_one_link() {
    const CALLS: u64 = 50;
    let (alice, bob) = (node(1).await, node(2).await);
    let here = Arc::new(AtomicU64::new(0));
    let all = Arc::new(tokio::sync::Notify::new());
    let service = Service::call(move |_peer, number: u64| {
        let (here, all) = (Arc::clone(&here), Arc::clone(&all));
        async move {
            let everyone = all.notified();
            tokio::pin!(everyone);
            everyone.as_mut().enable();
            if here.fetch_add(1, Ordering::Relaxed) + 1 == CALLS {
                all.notify_waiters();
            }
            everyone.await;
            Ok(number)
        }
    });
    bob.serve(TASK, service).await.expect("a new protocol");
    let mut calls = JoinSet::new();
    for number in 0..CALLS {
        let (alice, address) = (alice.clone(), bob.addr());
        calls.spawn(async move { alice.call::<_, u64>(address, TASK, &number).await });
    }
    let answers = within(SOON, "all answers", calls.join_all()).await;
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    assert_eq!(alice.metrics().await.expect("up").dials_started, 1);
}

// What becomes of a call in flight when its session ends

#[tokio::test]
async fn a_call_in_flight_when_its_peer_dies_is_unknown() {
    let alice = node_with(1, |limits| limits.idle_timeout = ms(800)).await;
    let bob = Mortal::spawn(builder(2)).await;
    let mut told = serve_never(&bob.node).await;
    let asking = alice.call::<_, u64>(bob.node.addr(), TASK, &1_u64);
    let dying = async {
        hears(&mut told, "came").await;
        bob.kill().await;
    };
    let (outcome, ()) = within(SOON, "both", async { tokio::join!(asking, dying) }).await;
    assert_eq!(outcome, intent(OpenError::Unknown));
}

/// The outcome of a call in flight when one side bans the other.
async fn banned_in_flight(by_caller: bool, options: Options) -> Result<u64, CallError> {
    let (alice, bob) = (node(1).await, node(2).await);
    let mut told = serve_never(&bob).await;
    connect(&alice, &bob).await;
    let asking = alice.call_with::<_, u64>(bob.id(), TASK, &1_u64, options);
    let banning = async {
        hears(&mut told, "came").await;
        let (banning, banned) = if by_caller { (&alice, &bob) } else { (&bob, &alice) };
        banning.ban(banned.id(), SOON).expect("the node is up");
    };
    let (outcome, ()) = within(SOON, "both", async { tokio::join!(asking, banning) }).await;
    outcome
}

#[tokio::test]
async fn a_call_in_flight_when_either_side_bans_the_other_is_unknown() {
    for by_caller in [true, false] {
        let outcome = banned_in_flight(by_caller, Options::new()).await;
        assert_eq!(outcome, intent(OpenError::Unknown));
    }
}

#[tokio::test]
async fn an_idempotent_call_in_flight_when_its_peer_bans_us_is_refused_as_banned() {
    let outcome = banned_in_flight(false, Options::new().idempotent()).await;
    assert_eq!(outcome, intent(OpenError::Refused(Code::Banned)));
}

#[tokio::test]
async fn an_idempotent_call_in_flight_when_the_app_bans_its_peer_ends_as_banned() {
    let outcome = banned_in_flight(true, Options::new().idempotent()).await;
    assert_eq!(outcome, intent(OpenError::Banned));
}

#[tokio::test]
async fn a_call_in_flight_when_either_side_disconnects_is_still_answered() {
    for at_caller in [true, false] {
        let (alice, bob) = (node(1).await, node(2).await);
        let (came, mut asked) = mpsc::unbounded_channel();
        let release = Arc::new(tokio::sync::Notify::new());
        let waiting = Arc::clone(&release);
        let service = Service::call(move |_peer, number: u64| {
            let _ = came.send(());
            let waiting = Arc::clone(&waiting);
            async move {
                waiting.notified().await;
                Ok(number + 1)
            }
        });
        bob.serve(TASK, service).await.expect("a new protocol");
        connect(&alice, &bob).await;
        let asking = alice.call::<_, u64>(bob.id(), TASK, &1_u64);
        let ending = async {
            within(SOON, "the request", asked.recv()).await.expect("asked");
            let (ender, other) = if at_caller { (&alice, &bob) } else { (&bob, &alice) };
            ender.disconnect(other.id()).await.expect("up");
            eventually(SOON, "both drain", async || {
                link(&alice, bob.id()).await.is_none() && link(&bob, alice.id()).await.is_none()
            })
            .await;
            release.notify_one();
        };
        let (outcome, ()) = within(SOON, "both", async { tokio::join!(asking, ending) }).await;
        assert_eq!(outcome, Ok(2));
    }
}

// Whether to ask again

/// Lets a host take a call, and then end the link like this; tells what came next.
async fn after_a_call(
    idempotent: bool,
    end: impl AsyncFnOnce(&mut Dialled),
) -> (Result<u64, CallError>, bool) {
    let (alice, mut host) = (node(1).await, Host::bind(2).await);
    let mut options = Options::new().deadline(Duration::from_secs(4));
    if idempotent {
        options = options.idempotent();
    }
    let address = host.addr();
    let answering = async {
        let mut first = host.welcomed().await;
        let _asked = first.stream().await;
        end(&mut first).await;
        let again = host.welcomed().await;
        again.stream().await.respond(&[2]).await;
        std::future::pending::<()>().await;
    };
    let asking = alice.call_with::<_, u64>(address, NEXT, &1_u64, options);
    let answer = within(SOON, "an outcome", async {
        tokio::select! {
            answer = asking => answer,
            () = answering => unreachable!("it never ends"),
        }
    });
    let answer = answer.await;
    let dials = alice.metrics().await.expect("up").dials_started;
    (answer, dials > 1)
}

#[tokio::test]
async fn a_call_whose_link_is_lost_after_its_request_was_sent_is_unknown_and_not_sent_again() {
    let lose = async |dialled: &mut Dialled| dialled.close(Code::Internal);
    assert_eq!(after_a_call(false, lose).await, (intent(OpenError::Unknown), false));
}

#[tokio::test]
async fn an_idempotent_call_whose_link_is_lost_after_its_request_was_sent_is_sent_again() {
    let lose = async |dialled: &mut Dialled| dialled.close(Code::Internal);
    assert_eq!(after_a_call(true, lose).await, (Ok(2), true));
}

#[tokio::test]
async fn a_call_that_the_goodbye_says_was_never_served_is_sent_again() {
    let leave = async |dialled: &mut Dialled| {
        dialled.say(&[Control::Goodbye(Goodbye::new(Code::Ok, 0, SOON))]).await;
        let heard = hear(&mut dialled.receive).await;
        assert!(matches!(heard, Some(Control::Goodbye(_))), "{heard:?}");
        dialled.close(Code::Ok);
    };
    assert_eq!(after_a_call(false, leave).await, (Ok(2), true));
}

#[tokio::test]
async fn a_call_that_the_goodbye_says_was_taken_is_not_sent_again() {
    let leave = async |dialled: &mut Dialled| {
        dialled.say(&[Control::Goodbye(Goodbye::new(Code::Ok, 1, SOON))]).await;
        let heard = hear(&mut dialled.receive).await;
        assert!(matches!(heard, Some(Control::Goodbye(_))), "{heard:?}");
        dialled.close(Code::Ok);
    };
    assert_eq!(after_a_call(false, leave).await, (intent(OpenError::Unknown), false));
}

#[tokio::test]
async fn a_call_cut_by_the_drain_deadline_fails_as_such() {
    let cut = async |dialled: &mut Dialled| {
        dialled.say(&[Control::Goodbye(Goodbye::new(Code::Ok, 1, SOON))]).await;
        let heard = hear(&mut dialled.receive).await;
        assert!(matches!(heard, Some(Control::Goodbye(_))), "{heard:?}");
        dialled.close(Code::DrainDeadline);
    };
    let failure = Failure::DrainDeadline;
    let failed = intent(OpenError::Failed { failure, cause: None });
    assert_eq!(after_a_call(true, cut).await, (failed, false));
}

// Deadline and cancellation

#[tokio::test]
async fn a_call_that_is_dropped_drops_the_handler_of_the_peer() {
    let (alice, bob) = (node(1).await, node(2).await);
    let mut told = serve_never(&bob).await;
    let calling = {
        let (alice, address) = (alice.clone(), bob.addr());
        tokio::spawn(async move { alice.call::<_, u64>(address, TASK, &1_u64).await })
    };
    hears(&mut told, "came").await;
    calling.abort();
    hears(&mut told, "dropped").await;
    let outcomes = alice.metrics().await.expect("up").intents_ended;
    assert_eq!(outcomes["cancelled"], 1);
}

#[tokio::test]
async fn a_call_whose_deadline_passes_ends_then_and_drops_the_handler_of_the_peer() {
    let (alice, bob) = (node(1).await, node(2).await);
    let mut told = serve_never(&bob).await;
    connect(&alice, &bob).await;
    let start = Instant::now();
    let options = Options::new().deadline(ms(1000));
    let asked = alice.call_with::<_, u64>(bob.id(), TASK, &1_u64, options);
    let outcome = within(SOON, "an outcome", asked).await;
    assert!(matches!(outcome, Err(CallError::Intent(OpenError::TimedOut { .. }))), "{outcome:?}");
    assert!((ms(1000)..ms(5000)).contains(&start.elapsed()), "{:?}", start.elapsed());
    hears(&mut told, "came").await;
    hears(&mut told, "dropped").await;
}

// Numbers

#[tokio::test]
async fn a_call_that_finds_no_place_counts_as_refused_and_not_as_served() {
    let (alice, bob) = (node(1).await, node(2).await);
    let service =
        Service::call(|_peer, _request: u64| std::future::pending::<Result<u64, HandlerError>>())
            .concurrency(1);
    bob.serve(TASK, service).await.expect("a new protocol");
    let numbers = async || bob.metrics().await.expect("up").protocols["task/1"];
    let first = {
        let (alice, address) = (alice.clone(), bob.addr());
        tokio::spawn(async move { alice.call::<_, u64>(address, TASK, &1_u64).await })
    };
    eventually(SOON, "the first is served", async || numbers().await.active == 1).await;
    let second = alice.call::<_, u64>(bob.id(), TASK, &2_u64);
    let second = within(SOON, "an outcome", second).await;
    assert_eq!(second, intent(OpenError::Refused(Code::Busy)));
    let numbers = numbers().await;
    assert_eq!((numbers.served, numbers.active, numbers.refused), (1, 1, 1));
    first.abort();
}

#[tokio::test]
async fn a_call_whose_handler_fails_counts_as_served_and_not_as_refused() {
    let (alice, bob) = (node(1).await, node(2).await);
    let service = Service::call(|_peer, _request: u64| async {
        Err::<u64, _>(HandlerError::new("not today"))
    });
    bob.serve(TASK, service).await.expect("a new protocol");
    let failed = alice.call::<_, u64>(bob.addr(), TASK, &1_u64);
    let failed = within(SOON, "an outcome", failed).await;
    let failure = Failure::Reset(Code::HandlerFailed);
    assert_eq!(failed, intent(OpenError::Failed { failure, cause: None }));
    let metrics = bob.metrics().await.expect("up");
    let numbers = &metrics.protocols["task/1"];
    assert_eq!((numbers.served, numbers.refused, numbers.handler_failures), (1, 0, 1));
    assert_eq!(metrics.streams_refused, BTreeMap::new());
}

#[tokio::test]
async fn a_peer_that_takes_no_response_is_refused_once_a_window_of_them_waits_and_served_when_it_has_read()
 {
    const SIZE: usize = 200_000;
    let bob = node_with(2, |limits| {
        limits.connection_window = 1_000_000;
        limits.call_bytes = SIZE as u32;
    })
    .await;
    let service = Service::call_bytes(|_peer, _request: Bytes| async { Ok(vec![7; SIZE]) });
    bob.serve(TASK, service).await.expect("a new protocol");
    let stranger = Stranger::builder(66).stream_window(20_000).bind().await;
    let guest = Guest::enter(&stranger, &bob, hello(1, 1)).await;
    let request = [header(TASK, StreamMode::Call), vec![0; 4]].concat();
    let numbers = async || bob.metrics().await.expect("up").protocols["task/1"];
    let mut answers = Vec::new();
    let mut ask = async |served: u64, refused: u64| {
        let (mut send, receive) = guest.ask(&request).await;
        send.finish().expect("finished once");
        answers.push(receive);
        eventually(SOON, "it is served or refused", async || {
            let numbers = numbers().await;
            (numbers.served, numbers.refused) == (served, refused)
        })
        .await;
    };
    for served in 1..=5 {
        ask(served, 0).await;
    }
    ask(5, 1).await;
    let first = within(SOON, "a response", answers.remove(0).read_to_end(2 * SIZE)).await;
    assert_eq!(first.expect("whole").len(), 1 + 4 + SIZE);
    let mut ask = async || {
        let (mut send, receive) = guest.ask(&request).await;
        send.finish().expect("finished once");
        answers.push(receive);
    };
    eventually(SOON, "one more is served", async || {
        ask().await;
        numbers().await.served >= 6
    })
    .await;
}

#[tokio::test]
async fn a_response_that_is_not_taken_in_time_is_given_up_with_a_code_and_counted() {
    let bob = node_with(2, |limits| limits.call_deadline = ms(500)).await;
    let service = Service::call_bytes(|_peer, _request: Bytes| async { Ok(vec![7; 200_000]) });
    bob.serve(TASK, service).await.expect("a new protocol");
    let stranger = Stranger::builder(66).stream_window(20_000).bind().await;
    let guest = Guest::enter(&stranger, &bob, hello(1, 1)).await;
    let request = [header(TASK, StreamMode::Call), vec![0; 4]].concat();
    let (mut send, mut receive) = guest.ask(&request).await;
    send.finish().expect("finished once");
    eventually(SOON, "it is given up", async || {
        bob.metrics().await.expect("up").protocols["task/1"].responses_untaken == 1
    })
    .await;
    let end = within(SOON, "the end", receive.read_to_end(usize::MAX)).await;
    let late = u32::from(Code::DeadlineExceeded.to_wire()).into();
    assert_eq!(end, Err(ReadToEndError::Read(ReadError::Reset(late))));
}
