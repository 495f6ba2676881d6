//! Calls with many responses over real QUIC: all of them or a typed reason, no faster than they are read, and nothing left of those that
//! nobody wants any more.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use kinfolk::error::{CallError, HandlerError, OpenError, ResponsesError, StreamError};
use kinfolk::{Bytes, Code, Failure, Node, NodeEvent, Options, ProtocolName, Responses, Service};
use kinfolk_core::wire::{
    Answer, CALL_MAX_DEFAULT, Control, Goodbye, StreamMode, end_of_responses, response_prefix,
};
use kinfolk_tests::support::events::EventLog;
use kinfolk_tests::support::guest::{Guest, header, hear, hello};
use kinfolk_tests::support::host::{Asked, Dialled, Host};
use kinfolk_tests::support::node::{
    ECHO, Mortal, NEXT, builder, connect, node, node_with, quick_limits,
};
use kinfolk_tests::support::stranger::Stranger;
use kinfolk_tests::support::wait::{eventually, live_tasks, within};
use tokio::sync::mpsc;

const SOON: Duration = Duration::from_secs(10);

/// Served by the test's own handler.
const COUNT: ProtocolName = ProtocolName::from_static("count/1");

const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// Tells when it is dropped, as what holds it is.
struct Told(mpsc::UnboundedSender<&'static str>);

impl Drop for Told {
    fn drop(&mut self) {
        let _ = self.0.send("dropped");
    }
}

async fn hears(told: &mut mpsc::UnboundedReceiver<&'static str>, what: &str) {
    assert_eq!(within(SOON, what, told.recv()).await, Some(what));
}

/// Serves [`COUNT`]: the numbers below the one that is asked for.
async fn serve_count(node: &Node) {
    let service = Service::call_stream(|_peer, to: u64| stream::iter((0..to).map(Ok)));
    node.serve(COUNT, service).await.expect("a new protocol");
}

/// Serves [`COUNT`]: so many numbers, then nothing for ever; tells of each request that came and of each stream that was dropped.
async fn serve_never_ending(node: &Node) -> mpsc::UnboundedReceiver<&'static str> {
    let (tell, told) = mpsc::unbounded_channel();
    let service = Service::call_stream(move |_peer, to: u64| {
        let _ = tell.send("came");
        let told = Told(tell.clone());
        stream::iter((0..to).map(Ok)).chain(stream::once(async move {
            let _told = told;
            std::future::pending().await
        }))
    });
    node.serve(COUNT, service).await.expect("a new protocol");
    told
}

async fn ask(alice: &Node, bob: &Node, to: u64) -> Responses<u64> {
    let asked = alice.call_stream(bob.addr(), COUNT, &to);
    within(SOON, "an answer", asked).await.expect("taken")
}

/// The next response.
async fn next<T>(responses: &mut Responses<T>) -> Result<Option<T>, ResponsesError> {
    within(SOON, "a response", responses.recv()).await
}

/// How many responses came, and how they ended.
async fn rest<T>(responses: &mut Responses<T>) -> (usize, Result<(), ResponsesError>) {
    let mut count = 0;
    loop {
        match next(responses).await {
            Ok(Some(_)) => count += 1,
            end => return (count, end.map(|_| ())),
        }
    }
}

fn cut<T>(error: StreamError) -> Result<T, ResponsesError> {
    Err(ResponsesError::Cut(error))
}

// What comes

#[tokio::test]
async fn all_responses_come_in_their_order_and_then_their_end() {
    let (alice, bob) = (node(1).await, node(2).await);
    serve_count(&bob).await;
    let mut responses = ask(&alice, &bob, 50_000).await;
    assert_eq!(responses.peer(), bob.id());
    for number in 0..50_000 {
        assert_eq!(next(&mut responses).await, Ok(Some(number)));
    }
    for _ in 0..2 {
        assert_eq!(next(&mut responses).await, Ok(None));
    }
    let numbers = async |node: &Node| node.metrics().await.expect("up").protocols["count/1"];
    let (there, here) = (numbers(&bob).await, numbers(&alice).await);
    assert_eq!((here.opened, there.served, there.refused), (1, 1, 0));
    assert_eq!(there.bytes_sent, here.bytes_received);
    assert_eq!(here.bytes_sent, there.bytes_received);
    eventually(SOON, "the stream is over", async || numbers(&bob).await.active == 0).await;
    assert_eq!(alice.metrics().await.expect("up").intents_ended["done"], 1);
}

#[tokio::test]
async fn no_response_at_all_is_an_end_like_any_other() {
    let (alice, bob) = (node(1).await, node(2).await);
    serve_count(&bob).await;
    assert_eq!(rest(&mut ask(&alice, &bob, 0).await).await, (0, Ok(())));
}

#[tokio::test]
async fn responses_are_a_stream_that_is_over_after_its_error() {
    let (alice, bob) = (node(1).await, node(2).await);
    let service = Service::call_stream(|_peer, to: u64| {
        stream::iter((0..to).map(Ok).chain([Err(HandlerError::new("not more"))]))
    });
    bob.serve(COUNT, service).await.expect("a new protocol");
    let responses = ask(&alice, &bob, 3).await;
    let all: Vec<_> = within(SOON, "all", responses.collect()).await;
    let failed = cut(StreamError::Reset(Code::HandlerFailed));
    assert_eq!(all, [Ok(0), Ok(1), Ok(2), failed]);
}

#[tokio::test]
async fn responses_of_bytes_as_large_as_the_limit_and_empty_ones_travel_whole() {
    let (alice, bob) = (node(1).await, node(2).await);
    let largest = usize::try_from(quick_limits().call_bytes).expect("small");
    let service = Service::call_stream_bytes(move |_peer, request: Bytes| {
        let sizes = [0, largest, 1, largest - 1, 0];
        stream::iter(sizes.map(|size| Ok(vec![request[0]; size])))
    });
    bob.serve(COUNT, service).await.expect("a new protocol");
    let asked = alice.call_stream_bytes(bob.addr(), COUNT, b"x", Options::new());
    let responses = within(SOON, "an answer", asked).await.expect("taken");
    let all: Vec<Bytes> = within(SOON, "all", responses.try_collect()).await.expect("no cut");
    let sizes: Vec<_> = all.iter().map(Bytes::len).collect();
    assert_eq!(sizes, [0, largest, 1, largest - 1, 0]);
    assert!(all.iter().flatten().all(|byte| *byte == b'x'));
}

#[tokio::test]
async fn a_response_is_there_as_soon_as_it_is_made() {
    let (alice, bob) = (node(1).await, node(2).await);
    let (make, made) = mpsc::unbounded_channel();
    let made = Arc::new(tokio::sync::Mutex::new(made));
    let service = Service::call_stream(move |_peer, (): ()| {
        stream::unfold(Arc::clone(&made), |made| async move {
            let number: u64 = made.lock().await.recv().await?;
            Some((Ok(number), made))
        })
    });
    bob.serve(COUNT, service).await.expect("a new protocol");
    let asked = alice.call_stream(bob.addr(), COUNT, &());
    let mut responses = within(SOON, "an answer", asked).await.expect("taken");
    for number in 0..20_u64 {
        make.send(number).expect("the handler lives");
        assert_eq!(next(&mut responses).await, Ok(Some(number)));
    }
    drop(make);
    assert_eq!(next(&mut responses).await, Ok(None));
}

#[tokio::test]
async fn a_wait_for_a_response_that_is_given_up_loses_none() {
    let (alice, bob) = (node(1).await, node(2).await);
    let largest = usize::try_from(quick_limits().call_bytes).expect("small");
    let service = Service::call_stream_bytes(move |_peer, _request: Bytes| {
        stream::iter((0..20_u8).map(move |n| Ok(vec![n; largest / 2])))
    });
    bob.serve(COUNT, service).await.expect("a new protocol");
    let asked = alice.call_stream_bytes(bob.addr(), COUNT, b"", Options::new());
    let mut responses = within(SOON, "an answer", asked).await.expect("taken");
    let mut given_up = 0;
    for n in 0..20 {
        let response = loop {
            tokio::select! {
                biased;
                response = responses.recv() => break response.expect("no cut").expect("more"),
                () = tokio::task::yield_now() => given_up += 1,
            }
        };
        assert!(response.len() == largest / 2 && response.iter().all(|byte| *byte == n));
    }
    assert!(given_up > 0, "it never had to wait");
    assert_eq!(next(&mut responses).await, Ok(None));
}

// How it fails

#[tokio::test]
async fn what_a_handler_made_before_it_failed_comes_before_its_code() {
    let (alice, bob) = (node(1).await, node(2).await);
    let service = Service::call_stream(|_peer, to: u64| {
        stream::iter((0..to).map(Ok).chain([Err(HandlerError::new("not more"))]))
    });
    bob.serve(COUNT, service).await.expect("a new protocol");
    let mut log = EventLog::of(&bob).await;
    // More than the windows hold: the code has to wait for its turn.
    let mut responses = ask(&alice, &bob, 1_000_000).await;
    let failed = cut(StreamError::Reset(Code::HandlerFailed));
    assert_eq!(rest(&mut responses).await, (1_000_000, failed.clone()));
    assert_eq!(next(&mut responses).await.map(|_| ()), failed);
    let is_told = |event: &NodeEvent| matches!(event, NodeEvent::HandlerFailed { reason, .. } if reason == "not more");
    log.next(SOON, "the event", is_told).await;
    assert_eq!(bob.metrics().await.expect("up").protocols["count/1"].handler_failures, 1);
}

#[tokio::test]
async fn what_a_handler_made_before_it_panicked_comes_before_its_code() {
    let (alice, bob) = (node(1).await, node(2).await);
    let service = Service::call_stream(|_peer, to: u64| {
        assert_ne!(to, 0, "on purpose");
        stream::iter(0..=to).map(move |n| {
            assert_ne!(n, to, "on purpose");
            Ok(n)
        })
    });
    bob.serve(COUNT, service).await.expect("a new protocol");
    let panicked = cut(StreamError::Reset(Code::HandlerPanicked));
    assert_eq!(rest(&mut ask(&alice, &bob, 3).await).await, (3, panicked.clone()));
    assert_eq!(rest(&mut ask(&alice, &bob, 0).await).await, (0, panicked));
    assert_eq!(bob.metrics().await.expect("up").protocols["count/1"].handler_panics, 2);
}

#[tokio::test]
async fn a_response_above_the_serving_side_s_limit_is_a_failure_of_its_handler() {
    let alice = node(1).await;
    let bob = node_with(2, |limits| limits.call_bytes = 1000).await;
    let service = Service::call_stream_bytes(|_peer, _request: Bytes| {
        stream::iter([1000, 1001, 1].map(|size| Ok(vec![0; size])))
    });
    bob.serve(COUNT, service).await.expect("a new protocol");
    let asked = alice.call_stream_bytes(bob.addr(), COUNT, b"", Options::new());
    let mut responses = within(SOON, "an answer", asked).await.expect("taken");
    let failed = cut(StreamError::Reset(Code::HandlerFailed));
    assert_eq!(rest(&mut responses).await, (1, failed));
}

#[tokio::test]
async fn a_response_above_the_caller_s_limit_ends_the_call_and_drops_the_handler() {
    let alice = node_with(1, |limits| limits.call_bytes = 1000).await;
    let bob = node(2).await;
    let (tell, mut told) = mpsc::unbounded_channel();
    let service = Service::call_stream_bytes(move |_peer, _request: Bytes| {
        let told = Told(tell.clone());
        stream::iter([1000, 1001].map(|size| Ok(vec![0; size]))).chain(stream::once(async move {
            let _told = told;
            std::future::pending().await
        }))
    });
    bob.serve(COUNT, service).await.expect("a new protocol");
    let asked = alice.call_stream_bytes(bob.addr(), COUNT, b"", Options::new());
    let mut responses = within(SOON, "an answer", asked).await.expect("taken");
    assert_eq!(rest(&mut responses).await, (1, cut(StreamError::TooLarge)));
    hears(&mut told, "dropped").await;
}

#[tokio::test]
async fn a_response_of_another_type_ends_the_call_and_drops_the_handler() {
    let (alice, bob) = (node(1).await, node(2).await);
    let mut told = serve_never_ending(&bob).await;
    let asked = alice.call_stream::<_, (u64, String)>(bob.addr(), COUNT, &3_u64);
    let mut responses = within(SOON, "an answer", asked).await.expect("taken");
    let failed = next(&mut responses).await;
    assert!(matches!(failed, Err(ResponsesError::Response(_))), "{failed:?}");
    hears(&mut told, "came").await;
    hears(&mut told, "dropped").await;
}

#[tokio::test]
async fn a_request_of_another_type_fails_at_the_peer_s_handler() {
    let (alice, bob) = (node(1).await, node(2).await);
    serve_count(&bob).await;
    let asked = alice.call_stream::<_, u64>(bob.addr(), COUNT, &());
    let mut responses = within(SOON, "an answer", asked).await.expect("taken");
    let failed = cut(StreamError::Reset(Code::HandlerFailed));
    assert_eq!(rest(&mut responses).await, (0, failed));
}

#[tokio::test]
async fn a_service_of_one_kind_asked_in_another_mode_refuses_as_a_violation() {
    let (alice, bob) = (node(1).await, node(2).await);
    serve_count(&bob).await;
    let refused = OpenError::Refused(Code::Violation);
    for protocol in [ECHO, NEXT] {
        let asked = alice.call_stream::<_, u64>(bob.addr(), protocol, &1_u64);
        let outcome = within(SOON, "an outcome", asked).await.expect_err("of another kind");
        assert_eq!(outcome, CallError::Intent(refused.clone()));
    }
    let called = alice.call::<_, u64>(bob.addr(), COUNT, &1_u64);
    let called = within(SOON, "an outcome", called).await;
    assert_eq!(called, Err(CallError::Intent(refused.clone())));
    let opened = within(SOON, "an outcome", alice.open(bob.addr(), COUNT)).await;
    assert_eq!(opened.expect_err("of another kind"), refused);
}

#[tokio::test]
async fn a_service_without_a_place_refuses_and_has_one_again_when_a_stream_is_over() {
    let (alice, bob) = (node(1).await, node(2).await);
    let service = Service::call_stream(|_peer, to: u64| {
        stream::iter((0..to).map(Ok)).chain(stream::pending())
    });
    bob.serve(COUNT, service.concurrency(1)).await.expect("a new protocol");
    let mut first = ask(&alice, &bob, 1).await;
    assert_eq!(next(&mut first).await, Ok(Some(0)));
    let second = alice.call_stream::<_, u64>(bob.addr(), COUNT, &1_u64);
    let second = within(SOON, "an outcome", second).await.expect_err("no place");
    assert_eq!(second, CallError::Intent(OpenError::Refused(Code::Busy)));
    drop(first);
    eventually(SOON, "a place", async || {
        alice.call_stream::<_, u64>(bob.addr(), COUNT, &1_u64).await.is_ok()
    })
    .await;
}

// Who gives up

#[tokio::test]
async fn responses_that_are_dropped_drop_the_handler_of_the_peer_which_waits() {
    let (alice, bob) = (node(1).await, node(2).await);
    let mut told = serve_never_ending(&bob).await;
    let mut responses = ask(&alice, &bob, 3).await;
    assert_eq!(next(&mut responses).await, Ok(Some(0)));
    hears(&mut told, "came").await;
    drop(responses);
    hears(&mut told, "dropped").await;
}

#[tokio::test]
async fn responses_that_are_dropped_drop_the_handler_of_the_peer_whose_window_is_full() {
    let (alice, bob) = (node(1).await, node(2).await);
    let made = Arc::new(AtomicU64::new(0));
    let (tell, mut told) = mpsc::unbounded_channel();
    let counting = Arc::clone(&made);
    let service = Service::call_stream(move |_peer, (): ()| {
        let (made, told) = (Arc::clone(&counting), Told(tell.clone()));
        stream::repeat_with(move || {
            let _told = &told;
            made.fetch_add(1, Ordering::Relaxed);
            Ok([7_u8; 32])
        })
    });
    bob.serve(COUNT, service).await.expect("a new protocol");
    let asked = alice.call_stream::<_, [u8; 32]>(bob.addr(), COUNT, &());
    let responses = within(SOON, "an answer", asked).await.expect("taken");
    let window = u64::from(quick_limits().stream_window);
    eventually(SOON, "the window is full", async || made.load(Ordering::Relaxed) * 36 >= window)
        .await;
    drop(responses);
    hears(&mut told, "dropped").await;
}

#[tokio::test]
async fn a_call_that_is_given_up_before_its_answer_drops_the_handler_of_the_peer() {
    let (alice, mut host) = (node(1).await, Host::bind(2).await);
    let address = host.addr();
    let calling = {
        let alice = alice.clone();
        tokio::spawn(async move { alice.call_stream::<_, u64>(address, COUNT, &1_u64).await })
    };
    let dialled = host.welcomed().await;
    let mut asked = dialled.stream().await;
    assert_eq!(asked.header.mode, StreamMode::CallStream);
    calling.abort();
    let stopped = within(SOON, "the stop", asked.send.stopped()).await.expect("connected");
    assert_eq!(stopped.map(u64::from), Some(Code::Cancelled.to_wire().into()));
    asked.receive.read_to_end(100).await.expect("the request came whole");
    assert_eq!(alice.metrics().await.expect("up").intents_ended["cancelled"], 1);
}

#[tokio::test]
async fn a_peer_that_does_not_answer_is_given_up_at_the_deadline() {
    let (alice, mut host) = (node(1).await, Host::bind(2).await);
    let address = host.addr();
    let options = Options::new().deadline(ms(500));
    let asking = alice.call_stream_with::<_, u64>(address, COUNT, &1_u64, options);
    let silent = async {
        let dialled = host.welcomed().await;
        let _asked = dialled.stream().await;
        std::future::pending::<()>().await;
    };
    let outcome = within(SOON, "an outcome", async {
        tokio::select! {
            outcome = asking => outcome,
            () = silent => unreachable!("it never ends"),
        }
    });
    let outcome = outcome.await.expect_err("no answer");
    assert!(matches!(outcome, CallError::Intent(OpenError::TimedOut { .. })), "{outcome:?}");
}

#[tokio::test]
async fn the_deadline_is_over_with_the_answer_and_the_time_for_all_responses_is_not() {
    let (alice, bob) = (node(1).await, node(2).await);
    let mut told = serve_never_ending(&bob).await;
    let options = Options::new().deadline(Duration::from_secs(2)).total(ms(2500));
    let asked = alice.call_stream_with::<_, u64>(bob.addr(), COUNT, &1_u64, options);
    let mut responses = within(SOON, "an answer", asked).await.expect("taken");
    assert_eq!(next(&mut responses).await, Ok(Some(0)));
    let begun = std::time::Instant::now();
    assert_eq!(next(&mut responses).await, Err(ResponsesError::TimedOut));
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    hears(&mut told, "came").await;
    hears(&mut told, "dropped").await;
}

// Pace

#[tokio::test]
async fn a_handler_runs_ahead_of_its_reader_by_a_window_and_a_batch_and_not_further() {
    const SIZE: usize = 1000;
    const WINDOW: usize = 100_000;
    let alice = node_with(1, |limits| limits.stream_window = WINDOW as u32).await;
    let bob = node(2).await;
    let made = Arc::new(AtomicUsize::new(0));
    let counting = Arc::clone(&made);
    let service = Service::call_stream_bytes(move |_peer, _request: Bytes| {
        let made = Arc::clone(&counting);
        stream::repeat_with(move || {
            made.fetch_add(1, Ordering::Relaxed);
            Ok(vec![7; SIZE])
        })
    });
    bob.serve(COUNT, service).await.expect("a new protocol");
    let asked = alice.call_stream_bytes(bob.addr(), COUNT, b"", Options::new());
    let mut responses = within(SOON, "an answer", asked).await.expect("taken");
    let most = (WINDOW + 2 * 64 * 1024) / SIZE;
    for read in 0..500 {
        if read % 100 == 0 {
            eventually(SOON, "it runs ahead", async || {
                made.load(Ordering::Relaxed) >= read + WINDOW / (SIZE + 4) - 64
            })
            .await;
            // Time for it to go too far.
            for _ in 0..5 {
                connect(&alice, &bob).await;
            }
        }
        let ahead = made.load(Ordering::Relaxed) - read;
        assert!(ahead <= most, "{ahead} responses ahead after {read}");
        assert!(next(&mut responses).await.expect("no cut").is_some());
    }
}

#[tokio::test]
async fn a_caller_that_never_reads_keeps_its_handler_waiting_and_lets_it_go_with_its_link() {
    let bob = node(2).await;
    let made = Arc::new(AtomicUsize::new(0));
    let (tell, mut told) = mpsc::unbounded_channel();
    let counting = Arc::clone(&made);
    let service = Service::call_stream_bytes(move |_peer, _request: Bytes| {
        let (made, told) = (Arc::clone(&counting), Told(tell.clone()));
        stream::repeat_with(move || {
            let _told = &told;
            made.fetch_add(1, Ordering::Relaxed);
            Ok(vec![7; 1000])
        })
    });
    bob.serve(COUNT, service).await.expect("a new protocol");
    let stranger = Stranger::builder(66).stream_window(20_000).bind().await;
    let guest = Guest::enter(&stranger, &bob, hello(1, 1)).await;
    let request = [header(COUNT, StreamMode::CallStream), vec![0; 4]].concat();
    let mut streams = Vec::new();
    for _ in 0..10 {
        let (mut send, receive) = guest.ask(&request).await;
        send.finish().expect("finished once");
        streams.push((send, receive));
    }
    let active = async || bob.metrics().await.expect("up").protocols["count/1"].active;
    eventually(SOON, "all are served", async || active().await == 10).await;
    let alice = node(1).await;
    for _ in 0..5 {
        connect(&alice, &bob).await;
    }
    assert!(made.load(Ordering::Relaxed) <= 10 * 90, "{made:?}");
    guest.connection.close(1_u32.into(), b"ok");
    for _ in 0..10 {
        hears(&mut told, "dropped").await;
    }
    eventually(SOON, "none is left", async || active().await == 0).await;
}

// Links

#[tokio::test]
async fn responses_of_a_peer_that_dies_are_cut_and_not_over() {
    let alice = node_with(1, |limits| limits.idle_timeout = ms(800)).await;
    let bob = Mortal::spawn(builder(2)).await;
    let mut told = serve_never_ending(&bob.node).await;
    let mut responses = ask(&alice, &bob.node, 2).await;
    assert_eq!(next(&mut responses).await, Ok(Some(0)));
    hears(&mut told, "came").await;
    bob.kill().await;
    assert_eq!(rest(&mut responses).await, (1, cut(StreamError::LinkLost)));
}

#[tokio::test]
async fn responses_that_come_while_the_link_drains_come_to_their_end() {
    for at_caller in [true, false] {
        let (alice, bob) = (node(1).await, node(2).await);
        let (make, made) = mpsc::unbounded_channel();
        let made = Arc::new(tokio::sync::Mutex::new(made));
        let service = Service::call_stream(move |_peer, (): ()| {
            stream::unfold(Arc::clone(&made), |made| async move {
                let number: u64 = made.lock().await.recv().await?;
                Some((Ok(number), made))
            })
        });
        bob.serve(COUNT, service).await.expect("a new protocol");
        let asked = alice.call_stream::<_, u64>(bob.addr(), COUNT, &());
        let mut responses = within(SOON, "an answer", asked).await.expect("taken");
        let (ender, other) = if at_caller { (&alice, &bob) } else { (&bob, &alice) };
        ender.disconnect(other.id()).await.expect("up");
        eventually(SOON, "it drains", async || {
            ender.metrics().await.expect("up").sessions.closing == 1
        })
        .await;
        make.send(7).expect("the handler lives");
        assert_eq!(next(&mut responses).await, Ok(Some(7)));
        drop(make);
        assert_eq!(next(&mut responses).await, Ok(None));
    }
}

#[tokio::test]
async fn responses_that_are_not_over_by_the_drain_deadline_are_cut_with_its_code() {
    let alice = node(1).await;
    let bob = node_with(2, |limits| limits.drain_deadline = ms(500)).await;
    let mut told = serve_never_ending(&bob).await;
    let mut responses = ask(&alice, &bob, 1).await;
    assert_eq!(next(&mut responses).await, Ok(Some(0)));
    bob.disconnect(alice.id()).await.expect("up");
    let cut_off = cut(StreamError::LinkClosed(Code::DrainDeadline));
    assert_eq!(next(&mut responses).await, cut_off);
    hears(&mut told, "came").await;
    hears(&mut told, "dropped").await;
}

/// Lets a host take a request, and then end the link like this; the outcome, and whether the request came again.
async fn after_a_request(
    idempotent: bool,
    end: impl AsyncFnOnce(&mut Dialled),
) -> (Result<(), CallError>, bool) {
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
        again.stream().await.answer(Answer::Ack).await;
        std::future::pending::<()>().await;
    };
    let asking = alice.call_stream_with::<_, u64>(address, COUNT, &1_u64, options);
    let outcome = within(SOON, "an outcome", async {
        tokio::select! {
            outcome = asking => outcome.map(drop),
            () = answering => unreachable!("it never ends"),
        }
    });
    let outcome = outcome.await;
    let dials = alice.metrics().await.expect("up").dials_started;
    (outcome, dials > 1)
}

#[tokio::test]
async fn a_request_whose_link_is_lost_before_its_answer_is_sent_again_only_if_that_is_safe() {
    let lose = async |dialled: &mut Dialled| dialled.close(Code::Internal);
    let unknown = Err(CallError::Intent(OpenError::Unknown));
    assert_eq!(after_a_request(false, lose).await, (unknown, false));
    assert_eq!(after_a_request(true, lose).await, (Ok(()), true));
    let leave = async |dialled: &mut Dialled| {
        dialled.say(&[Control::Goodbye(Goodbye::new(Code::Ok, 0, SOON))]).await;
        let heard = hear(&mut dialled.receive).await;
        assert!(matches!(heard, Some(Control::Goodbye(_))), "{heard:?}");
        dialled.close(Code::Ok);
    };
    assert_eq!(after_a_request(false, leave).await, (Ok(()), true));
}

// A hostile server

/// What a caller makes of these bytes behind the answer, after which the host ends its half like this.
async fn reads(
    bytes: &[u8],
    end: impl AsyncFnOnce(&mut Asked),
) -> (usize, Result<(), ResponsesError>) {
    let (alice, mut host) = (node(1).await, Host::bind(2).await);
    let address = host.addr();
    let asking = alice.call_stream::<_, u64>(address, COUNT, &1_u64);
    let serving = async {
        let dialled = host.welcomed().await;
        let mut asked = dialled.stream().await;
        asked.answer(Answer::Ack).await;
        asked.send.write_all(bytes).await.expect("the caller reads");
        end(&mut asked).await;
        (dialled, asked)
    };
    let both = within(SOON, "both", async { tokio::join!(asking, serving) });
    let (responses, _link) = both.await;
    rest(&mut responses.expect("taken")).await
}

fn framed(bodies: &[&[u8]]) -> Vec<u8> {
    let prefix = |body: &[u8]| response_prefix(body.len(), CALL_MAX_DEFAULT).expect("small");
    bodies.iter().flat_map(|body| [&prefix(body)[..], body].concat()).collect()
}

async fn stays(_asked: &mut Asked) {}

async fn finishes(asked: &mut Asked) {
    asked.send.finish().expect("finished once");
}

#[tokio::test]
async fn responses_that_end_without_saying_so_are_cut() {
    let one = framed(&[&[1]]);
    assert_eq!(reads(&one, finishes).await, (1, cut(StreamError::Truncated)));
    assert_eq!(reads(&one[..4], finishes).await, (0, cut(StreamError::Truncated)));
    let no_code = [&one[..], &[255; 4], &[0]].concat();
    assert_eq!(reads(&no_code, stays).await, (1, cut(StreamError::Truncated)));
    assert_eq!(reads(&[255; 4], finishes).await, (0, cut(StreamError::Truncated)));
}

#[tokio::test]
async fn a_response_that_claims_to_be_too_large_is_not_waited_for() {
    let claim = [&framed(&[&[1]])[..], &(CALL_MAX_DEFAULT + 1).to_be_bytes()].concat();
    let stops = async |asked: &mut Asked| {
        let stopped = within(SOON, "the stop", asked.send.stopped()).await.expect("connected");
        assert_eq!(stopped.map(u64::from), Some(Code::TooLarge.to_wire().into()));
    };
    // The stop comes only once the responses are read.
    let (alice, mut host) = (node(1).await, Host::bind(2).await);
    let address = host.addr();
    let asking = async {
        let asked = alice.call_stream::<_, u64>(address, COUNT, &1_u64).await;
        rest(&mut asked.expect("taken")).await
    };
    let serving = async {
        let dialled = host.welcomed().await;
        let mut asked = dialled.stream().await;
        asked.answer(Answer::Ack).await;
        asked.send.write_all(&claim).await.expect("the caller reads");
        stops(&mut asked).await;
    };
    let (read, ()) = within(SOON, "both", async { tokio::join!(asking, serving) }).await;
    assert_eq!(read, (1, cut(StreamError::TooLarge)));
}

#[tokio::test]
async fn garbage_in_a_response_is_an_error_of_its_own() {
    let (count, end) = reads(&framed(&[&[1], &[0xff; 20]]), stays).await;
    assert_eq!(count, 1);
    assert!(matches!(end, Err(ResponsesError::Response(_))), "{end:?}");
}

#[tokio::test]
async fn a_reset_is_told_with_its_code_and_what_comes_behind_the_end_is_not_read() {
    let (alice, mut host) = (node(1).await, Host::bind(2).await);
    let asking = alice.call_stream::<_, u64>(host.addr(), COUNT, &1_u64);
    let serving = async {
        let dialled = host.welcomed().await;
        let mut asked = dialled.stream().await;
        asked.answer(Answer::Ack).await;
        (dialled, asked)
    };
    let both = within(SOON, "both", async { tokio::join!(asking, serving) });
    let (responses, (_link, mut asked)) = both.await;
    // Only now, as it would overtake the answer.
    asked.send.reset(u32::from(Code::Restarted.to_wire()).into()).expect("open");
    let end = rest(&mut responses.expect("taken")).await;
    assert_eq!(end, (0, cut(StreamError::Reset(Code::Restarted))));
    let ended = [&framed(&[&[1]])[..], &end_of_responses(Code::Ok), &[0xff; 100]].concat();
    assert_eq!(reads(&ended, stays).await, (1, Ok(())));
}

#[tokio::test]
async fn a_peer_without_an_end_is_read_as_long_as_somebody_wants_it() {
    let (alice, mut host) = (node(1).await, Host::bind(2).await);
    let address = host.addr();
    let asking = async {
        let asked = alice.call_stream::<_, u64>(address, COUNT, &1_u64).await;
        let mut responses = asked.expect("taken");
        for _ in 0..100_000 {
            assert_eq!(next(&mut responses).await, Ok(Some(1)));
        }
    };
    let serving = async {
        let dialled = host.welcomed().await;
        let mut asked = dialled.stream().await;
        asked.answer(Answer::Ack).await;
        let many = framed(&[&[1]]).repeat(10_000);
        while asked.send.write_all(&many).await.is_ok() {}
        asked.send.stopped().await.expect("connected")
    };
    let ((), stopped) = within(SOON, "both", async { tokio::join!(asking, serving) }).await;
    assert_eq!(stopped.map(u64::from), Some(Code::Cancelled.to_wire().into()));
}

// A hostile caller

#[tokio::test]
async fn a_request_that_is_too_large_never_comes_or_is_refused_gets_no_handler() {
    let bob = node_with(2, |limits| limits.call_deadline = ms(500)).await;
    serve_count(&bob).await;
    let stranger = Stranger::bind(66).await;
    let guest = Guest::enter(&stranger, &bob, hello(1, 1)).await;
    let begin = header(COUNT, StreamMode::CallStream);
    for (request, code) in [
        (vec![0xff; 4], Code::TooLarge),
        (vec![0, 0, 0, 9, 1], Code::HeaderTimeout),
        (vec![], Code::HeaderTimeout),
    ] {
        let (_send, mut receive) = guest.ask(&[&begin[..], &request].concat()).await;
        let ended = within(SOON, "the reset", receive.read_to_end(10)).await;
        let ended = ended.expect_err("no answer").to_string();
        let number = code.to_wire().to_string();
        assert!(ended.contains(&number), "{ended} has no {number}");
    }
    let numbers = bob.metrics().await.expect("up").protocols["count/1"];
    assert_eq!((numbers.served, numbers.refused, numbers.active), (0, 3, 0));
}

#[tokio::test]
async fn nothing_is_left_of_a_thousand_calls_that_were_given_up() {
    let (alice, bob) = (node(1).await, node(2).await);
    let dropped = Arc::new(AtomicUsize::new(0));
    struct Counted(Arc<AtomicUsize>);
    impl Drop for Counted {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    let counting = Arc::clone(&dropped);
    let service = Service::call_stream(move |_peer, to: u64| {
        let counted = Counted(Arc::clone(&counting));
        stream::iter((0..to).map(Ok)).chain(stream::once(async move {
            let _counted = counted;
            std::future::pending().await
        }))
    });
    bob.serve(COUNT, service).await.expect("a new protocol");
    connect(&alice, &bob).await;
    let tasks = live_tasks();
    for round in 0..20_u64 {
        let mut all = Vec::new();
        for n in 0..50 {
            // Some have windows to fill, as many as the connection's has room for, some nothing to say.
            let count = if n < 4 { 1_000_000 } else { n % 3 };
            let mut responses = ask(&alice, &bob, count).await;
            if count > 0 && n % 2 == 0 {
                assert_eq!(next(&mut responses).await, Ok(Some(0)));
            }
            all.push(responses);
        }
        drop(all);
        let so_far = usize::try_from((round + 1) * 50).expect("small");
        eventually(SOON, "all handlers are dropped", async || {
            dropped.load(Ordering::Relaxed) == so_far
        })
        .await;
    }
    eventually(SOON, "nothing is left", async || {
        let metrics = bob.metrics().await.expect("up");
        metrics.protocols["count/1"].active == 0 && metrics.streams_inbound == 0
    })
    .await;
    eventually(SOON, "no task is left", async || live_tasks() <= tasks).await;
    let numbers = bob.metrics().await.expect("up").protocols["count/1"];
    assert_eq!((numbers.served, numbers.refused), (1000, 0));
    assert_eq!(alice.metrics().await.expect("up").dials_started, 1);
    // No lease is left either: the link can drain at once.
    alice.disconnect(bob.id()).await.expect("up");
    eventually(ms(1500), "the session is over", async || {
        alice.metrics().await.expect("up").sessions.closing == 0
            && alice.metrics().await.expect("up").sessions.live == 0
    })
    .await;
}

#[tokio::test]
async fn a_request_above_the_caller_s_limit_fails_before_anything_is_sent() {
    let alice = node_with(1, |limits| limits.call_bytes = 1000).await;
    let bob = node(2).await;
    let asked = alice.call_stream_bytes(bob.addr(), COUNT, &[0; 1001], Options::new());
    let failed = within(SOON, "an outcome", asked).await.expect_err("too large");
    assert_eq!(failed, OpenError::Failed { failure: Failure::TooLarge, cause: None });
    assert_eq!(alice.metrics().await.expect("up").dials_started, 0);
}
