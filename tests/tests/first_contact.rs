//! The first things that an app does, over real QUIC.

use std::time::Duration;

use kinfolk_tests::support::node::{ECHO, NEXT, node};
use kinfolk_tests::support::wait::within;

const SOON: Duration = Duration::from_secs(10);

#[tokio::test]
async fn a_call_to_an_address_is_answered_and_the_next_needs_only_the_id() {
    let (alice, bob) = (node(1).await, node(2).await);
    let two: u64 = within(SOON, "the cold call", alice.call(bob.addr(), NEXT, &1_u64))
        .await
        .expect("answered");
    assert_eq!(two, 2);
    let three: u64 =
        within(SOON, "the warm call", alice.call(bob.id(), NEXT, &2_u64)).await.expect("answered");
    assert_eq!(three, 3);
    let metrics = alice.metrics().await.expect("alive");
    assert_eq!(metrics.dials_started, 1);
    alice.shutdown().await;
    bob.shutdown().await;
}

#[tokio::test]
async fn an_opened_stream_carries_bytes_both_ways_to_its_clean_end() {
    let (alice, bob) = (node(1).await, node(2).await);
    let (mut send, mut recv) =
        within(SOON, "the open", alice.open(bob.addr(), ECHO)).await.expect("opened");
    send.write_all(b"hello").await.expect("sent");
    send.finish().expect("finished once");
    let echoed = within(SOON, "the echo", recv.read_to_end(100)).await.expect("received");
    assert_eq!(echoed, b"hello");
    alice.shutdown().await;
    bob.shutdown().await;
}

#[tokio::test]
async fn an_eager_stream_carries_payload_before_the_answer() {
    let (alice, bob) = (node(1).await, node(2).await);
    let (mut send, mut recv) =
        within(SOON, "the open", alice.open_eager(bob.addr(), ECHO)).await.expect("opened");
    send.write_all(b"hello").await.expect("sent");
    send.finish().expect("finished once");
    let echoed = within(SOON, "the echo", recv.read_to_end(100)).await.expect("received");
    assert_eq!(echoed, b"hello");
    alice.shutdown().await;
    bob.shutdown().await;
}

#[tokio::test]
async fn a_held_peer_is_connected_and_both_can_use_the_session() {
    let (alice, bob) = (node(1).await, node(2).await);
    let mut up = alice.monitor(bob.id()).await.expect("alive");
    let _hold = alice.hold(bob.addr());
    within(SOON, "the session", up.wait_for(kinfolk::PeerStatus::is_up)).await.expect("watched");
    let answer: u64 =
        within(SOON, "bob's call", bob.call(alice.id(), NEXT, &7_u64)).await.expect("answered");
    assert_eq!(answer, 8);
    alice.shutdown().await;
    bob.shutdown().await;
}
