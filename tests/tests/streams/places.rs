//! Who is served, and how many at once.

use kinfolk::error::OpenError;
use kinfolk::{Code, EndpointAddr, Limits, Node, RecvStream, SendStream};
use kinfolk_tests::support::node::{ECHO, NEXT, connect, echo, node, node_with};
use kinfolk_tests::support::wait::{eventually, within};
use tokio::task::JoinSet;

use crate::scene::{SOON, TASK, echoes, open, protocol, refusal};

#[tokio::test]
async fn a_protocol_out_of_service_is_refused_and_its_running_streams_go_on() {
    let (alice, bob) = (node(1).await, node(2).await);
    let (mut send, mut recv) = open(&alice, bob.addr(), ECHO).await.expect("opened");
    assert_eq!(bob.unserve(&ECHO), Ok(true));
    assert_eq!(bob.unserve(&ECHO), Ok(false));
    let refused = refusal(open(&alice, bob.id(), ECHO).await);
    assert_eq!(refused, OpenError::Refused(Code::UnknownProtocol));
    echoes(&mut send, &mut recv, b"still here").await;
    bob.serve(ECHO, echo()).await.expect("free again");
    open(&alice, bob.id(), ECHO).await.expect("opened");
}

#[tokio::test]
async fn a_stream_beyond_a_protocol_s_concurrency_is_refused_as_busy_until_one_ends() {
    let (alice, bob) = (node(1).await, node(2).await);
    bob.serve(TASK, echo().concurrency(2)).await.expect("a new protocol");
    let (mut send, mut recv) = open(&alice, bob.addr(), TASK).await.expect("opened");
    let _second = open(&alice, bob.id(), TASK).await.expect("opened");
    let refused = refusal(open(&alice, bob.id(), TASK).await);
    assert_eq!(refused, OpenError::Refused(Code::Busy));
    open(&alice, bob.id(), ECHO).await.expect("another protocol has room");
    send.finish().expect("finished once");
    assert_eq!(within(SOON, "the end", recv.read(&mut [0])).await, Ok(None));
    eventually(SOON, "room for one more", async || open(&alice, bob.id(), TASK).await.is_ok())
        .await;
    assert!(protocol(&bob, "task/1").await.refused >= 1);
}

#[tokio::test]
async fn a_protocol_s_door_lets_some_peers_in_and_refuses_others_on_their_streams_alone() {
    let (alice, bob, carol) = (node(1).await, node(2).await, node(3).await);
    let friend = alice.id();
    let service = echo().admit(move |peer| *peer == friend);
    bob.serve(TASK, service).await.expect("a new protocol");
    open(&alice, bob.addr(), TASK).await.expect("opened");
    let refused = refusal(open(&carol, bob.addr(), TASK).await);
    assert_eq!(refused, OpenError::Refused(Code::NotAllowed));
    open(&carol, bob.id(), ECHO).await.expect("another protocol has no door");
    assert_eq!(carol.metrics().await.expect("up").dials_started, 1);
}

#[tokio::test]
async fn a_stream_beyond_what_a_node_serves_of_all_its_peers_is_refused_as_busy_on_that_stream_alone()
 {
    let alice = node_with(1, |limits| limits.streams_inbound = 2).await;
    let (bob, carol) = (node(2).await, node(3).await);
    let (mut send, mut recv) = open(&bob, alice.addr(), ECHO).await.expect("opened");
    let (mut other_send, mut other_recv) = open(&carol, alice.addr(), ECHO).await.expect("opened");
    for node in [&bob, &carol] {
        let refused = refusal(open(node, alice.id(), ECHO).await);
        assert_eq!(refused, OpenError::Refused(Code::Busy));
    }
    let counted = alice.metrics().await.expect("up");
    assert_eq!((counted.streams_inbound, counted.streams_refused["busy"]), (2, 2));
    echoes(&mut send, &mut recv, b"still here").await;
    echoes(&mut other_send, &mut other_recv, b"so am I").await;
    // What the node opens itself takes none of these places.
    let (mut own_send, mut own_recv) = open(&alice, bob.id(), ECHO).await.expect("opened");
    echoes(&mut own_send, &mut own_recv, b"and I").await;

    drop((send, recv));
    eventually(SOON, "room for one more", async || open(&carol, alice.id(), ECHO).await.is_ok())
        .await;
    for node in [&bob, &carol] {
        assert_eq!(node.metrics().await.expect("up").dials_started, 1);
    }
}

/// Opens streams until one is refused as busy.
async fn open_all(alice: &Node, peer: EndpointAddr) -> Vec<(SendStream, RecvStream)> {
    let mut streams = Vec::new();
    loop {
        match open(alice, peer.clone(), ECHO).await {
            Ok(stream) => streams.push(stream),
            Err(error) => {
                assert_eq!(error, OpenError::Refused(Code::Busy));
                return streams;
            }
        }
    }
}

async fn one_peer_leaves_a_fifth_of_forty_places(change: impl FnOnce(&mut Limits)) {
    let alice = node_with(1, change).await;
    let (bob, carol) = (node(2).await, node(3).await);
    let of_bob = open_all(&bob, alice.addr()).await;
    assert_eq!(of_bob.len(), 32);
    let mut of_carol = Vec::new();
    for _ in 0..8 {
        of_carol.push(open(&carol, alice.addr(), ECHO).await.expect("opened"));
    }
    let refused = refusal(open(&carol, alice.id(), ECHO).await);
    assert_eq!(refused, OpenError::Refused(Code::Busy));
    drop(of_bob);
    eventually(SOON, "room for more", async || open(&carol, alice.id(), ECHO).await.is_ok()).await;
}

#[tokio::test]
async fn one_peer_cannot_take_all_places_of_a_node() {
    one_peer_leaves_a_fifth_of_forty_places(|limits| limits.streams_inbound = 40).await;
}

#[tokio::test]
async fn one_peer_cannot_take_all_places_of_a_protocol() {
    one_peer_leaves_a_fifth_of_forty_places(|limits| limits.protocol_concurrency = 40).await;
}

#[tokio::test]
async fn a_burst_of_streams_is_served_however_few_may_be_negotiated_at_once() {
    let alice = node(1).await;
    let bob = node_with(2, |limits| limits.negotiating_per_peer = 8).await;
    connect(&alice, &bob).await;
    let mut calls = JoinSet::new();
    for number in 0..300_u64 {
        let (alice, bob) = (alice.clone(), bob.id());
        calls.spawn(async move { alice.call::<_, u64>(bob, NEXT, &number).await });
    }
    let answers = within(SOON, "all answers", calls.join_all()).await;
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
}

#[tokio::test]
async fn more_streams_at_once_than_the_peer_allows_wait_and_none_is_lost() {
    let alice = node(1).await;
    let bob = node_with(2, |limits| limits.streams_per_peer = 10).await;
    let mut calls = JoinSet::new();
    for number in 0..200_u64 {
        let (alice, address) = (alice.clone(), bob.addr());
        calls.spawn(async move { alice.call::<_, u64>(address, NEXT, &number).await });
    }
    let answers = within(SOON, "all answers", calls.join_all()).await;
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
}
