//! What comes of a call with many responses, and how fast.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::{StreamExt, TryStreamExt, stream};
use kinfolk::error::{HandlerError, StreamError};
use kinfolk::{Bytes, Code, Limits, Node, Options, Service};
use kinfolk_core::wire::StreamMode;
use kinfolk_tests::support::guest::{Guest, header, hello};
use kinfolk_tests::support::node::{connect, node, node_with, quick_limits};
use kinfolk_tests::support::stranger::Stranger;
use kinfolk_tests::support::wait::{eventually, within};
use tokio::sync::{Notify, mpsc};

use crate::scene::*;

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

const HUGE: usize = 200_000;

fn keep_a_megabyte(limits: &mut Limits) {
    limits.connection_window = 1_000_000;
    limits.call_bytes = HUGE as u32;
}

#[tokio::test]
async fn a_peer_that_takes_no_responses_has_no_more_made_for_it_than_a_window_holds() {
    let bob = node_with(2, keep_a_megabyte).await;
    let made = Arc::new(AtomicUsize::new(0));
    let (counting, start) = (Arc::clone(&made), Arc::new(Notify::new()));
    let starting = Arc::clone(&start);
    let service = Service::call_stream_bytes(move |_peer, _request: Bytes| {
        let (made, start) = (Arc::clone(&counting), Arc::clone(&starting));
        let started = stream::once(async move {
            start.notified().await;
            Ok(vec![7; HUGE])
        });
        let made_more = stream::repeat_with(|| Ok(vec![7; HUGE]));
        started.chain(made_more).inspect(move |_| _ = made.fetch_add(1, Ordering::Relaxed))
    });
    bob.serve(COUNT, service).await.expect("a new protocol");
    let stranger = Stranger::builder(66).stream_window(20_000).bind().await;
    let guest = Guest::enter(&stranger, &bob, hello(1, 1)).await;
    let request = [header(COUNT, StreamMode::CallStream), vec![0; 4]].concat();
    let mut streams = Vec::new();
    for _ in 0..20 {
        let (mut send, receive) = guest.ask(&request).await;
        send.finish().expect("finished once");
        streams.push((send, receive));
    }
    let active = async || bob.metrics().await.expect("up").protocols["count/1"].active;
    eventually(SOON, "all are served", async || active().await == 20).await;
    // All handlers that run are ready at the same moment.
    start.notify_waiters();
    eventually(SOON, "a window is full", async || made.load(Ordering::Relaxed) >= 5).await;
    let refused = async || {
        let refused = bob.metrics().await.expect("up").streams_refused;
        refused.get("busy").copied().unwrap_or_default()
    };
    let _late = guest.ask(&request).await;
    eventually(SOON, "a further call is refused", async || refused().await == 1).await;
    assert_eq!(made.load(Ordering::Relaxed), 5);
    // Room that is made by reading is for whoever of the peer's is next.
    let (_, mut receive) = streams.remove(0);
    let mut read = 0;
    within(SOON, "a response", async {
        while read < HUGE {
            read += receive.read_chunk(HUGE).await.expect("no cut").expect("no end").len();
        }
    })
    .await;
    eventually(SOON, "one more", async || made.load(Ordering::Relaxed) == 6).await;
}
