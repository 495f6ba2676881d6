//! What is counted.

use kinfolk_tests::support::node::{ECHO, connect, node};
use kinfolk_tests::support::wait::{eventually, within};

use crate::scene::{SOON, echoes, open, protocol};

#[tokio::test]
async fn payload_is_counted_byte_by_byte_at_both_ends() {
    let (alice, bob) = (node(1).await, node(2).await);
    let (mut send, mut recv) = open(&alice, bob.addr(), ECHO).await.expect("opened");
    echoes(&mut send, &mut recv, &[7; 1234]).await;
    let (mut eager, mut back) =
        within(SOON, "the open", alice.open_eager(bob.id(), ECHO)).await.expect("opened");
    echoes(&mut eager, &mut back, &[8; 766]).await;
    let (at_alice, at_bob) = (protocol(&alice, "echo/1").await, protocol(&bob, "echo/1").await);
    assert_eq!((at_alice.opened, at_alice.served), (2, 0));
    assert_eq!((at_alice.bytes_sent, at_alice.bytes_received), (2000, 2000));
    assert_eq!((at_bob.opened, at_bob.served, at_bob.active), (0, 2, 2));
    assert_eq!((at_bob.bytes_sent, at_bob.bytes_received), (2000, 2000));
}

#[tokio::test]
async fn requests_and_responses_are_counted_alike_at_both_ends() {
    let (alice, bob) = (node(1).await, node(2).await);
    connect(&alice, &bob).await;
    let (at_alice, at_bob) = (protocol(&alice, "next/1").await, protocol(&bob, "next/1").await);
    assert_eq!(at_alice.bytes_sent, at_bob.bytes_received);
    assert_eq!(at_alice.bytes_received, at_bob.bytes_sent);
    // One is a byte in postcard, and so is two; the length in front of each has four.
    assert_eq!((at_alice.bytes_sent, at_alice.bytes_received), (5, 5));
}

#[tokio::test]
async fn streams_being_served_are_counted_until_their_handlers_end() {
    let (alice, bob) = (node(1).await, node(2).await);
    let (mut send, mut recv) = open(&alice, bob.addr(), ECHO).await.expect("opened");
    let inbound = async || bob.metrics().await.expect("up").streams_inbound;
    assert_eq!((inbound().await, protocol(&bob, "echo/1").await.active), (1, 1));
    send.finish().expect("finished once");
    assert_eq!(within(SOON, "the end", recv.read(&mut [0])).await, Ok(None));
    eventually(SOON, "the handler is gone", async || {
        (inbound().await, protocol(&bob, "echo/1").await.active) == (0, 0)
    })
    .await;
}
