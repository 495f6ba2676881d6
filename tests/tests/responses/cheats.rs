//! Servers and callers that break the rules of responses.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::{StreamExt, stream};
use kinfolk::error::{OpenError, ResponsesError, StreamError};
use kinfolk::{Code, Failure, Options, Service};
use kinfolk_core::wire::{Answer, CALL_MAX_DEFAULT, StreamMode, end_of_responses, response_prefix};
use kinfolk_tests::support::guest::{Guest, header, hello};
use kinfolk_tests::support::host::{Asked, Host};
use kinfolk_tests::support::node::{connect, node, node_with};
use kinfolk_tests::support::stranger::Stranger;
use kinfolk_tests::support::wait::{eventually, live_tasks, within};

use crate::scene::*;

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
