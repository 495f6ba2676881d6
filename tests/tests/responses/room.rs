//! How long a request counts among the bytes that its peer may have here.

use std::sync::{Arc, Mutex};

use futures_util::stream;
use kinfolk::error::OpenError;
use kinfolk::{Bytes, Code, Node, Responses, Service};
use kinfolk_tests::support::node::{node, node_with};
use kinfolk_tests::support::wait::{eventually, within};

use crate::scene::*;

/// Of a request; a node that [`serves`](serving) has room for two.
const LARGE: usize = 100_000;

async fn serving(key: u8) -> Node {
    node_with(key, |limits| {
        limits.stream_window = 128 * 1024;
        limits.connection_window = 256 * 1024;
        limits.call_bytes = 128 * 1024;
    })
    .await
}

async fn ask_large(alice: &Node, bob: &Node) -> Result<Responses<Bytes>, OpenError> {
    let asked = alice.call_stream_bytes(bob.addr(), COUNT, &[7; LARGE], Default::default());
    within(SOON, "an answer", asked).await
}

#[tokio::test]
async fn large_requests_whose_responses_go_on_for_long_keep_no_others_out() {
    let (alice, bob) = (node(1).await, serving(2).await);
    let service = Service::call_stream(|_peer, request: Vec<u8>| {
        let length = request.len();
        drop(request);
        stream::unfold(0, move |n| async move {
            if n > 0 {
                std::future::pending::<()>().await;
            }
            Some((Ok(length), 1))
        })
    });
    bob.serve(COUNT, service).await.expect("a new protocol");
    let mut open = Vec::new();
    for _ in 0..10 {
        let request = vec![7_u8; LARGE];
        let asked = alice.call_stream(bob.addr(), COUNT, &request);
        let mut responses = within(SOON, "an answer", asked).await.expect("there is room");
        assert_eq!(next(&mut responses).await, Ok(Some(LARGE)));
        open.push(responses);
    }
    assert_eq!(bob.metrics().await.expect("up").protocols["count/1"].active, 10);
}

/// Serves [`COUNT`]: never ends, and keeps the bytes of the request in the stream or beyond it.
async fn serve_keeping(bob: &Node, beyond: Option<Arc<Mutex<Vec<Bytes>>>>) {
    let service = Service::call_stream_bytes(move |_peer, request: Bytes| {
        // A part of them is as good as all.
        let part = request.slice(..1);
        if let Some(beyond) = &beyond {
            beyond.lock().expect("whole").push(part.clone());
        }
        stream::unfold(part, |part| async move {
            let _part = part;
            std::future::pending().await
        })
    });
    bob.serve(COUNT, service).await.expect("a new protocol");
}

#[tokio::test]
async fn requests_whose_bytes_a_handler_keeps_count_until_it_is_dropped_and_beyond_that_no_more() {
    for beyond in [None, Some(Arc::default())] {
        let (alice, bob) = (node(1).await, serving(2).await);
        serve_keeping(&bob, beyond).await;
        let first = ask_large(&alice, &bob).await.expect("there is room");
        let _second = ask_large(&alice, &bob).await.expect("there is room");
        let third = ask_large(&alice, &bob).await.map(|_| ());
        assert_eq!(third, Err(OpenError::Refused(Code::Busy)));
        drop(first);
        eventually(SOON, "there is room again", async || ask_large(&alice, &bob).await.is_ok())
            .await;
    }
}
