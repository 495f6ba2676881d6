//! What goes first, and what waits for nothing.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use kinfolk::fault::{Crash, Victim};
use kinfolk::{Options, Priority};
use kinfolk_tests::support::impair::{Condition, Direction};
use kinfolk_tests::support::node::{ECHO, NEXT, connect, node, node_with, relay};
use kinfolk_tests::support::wait::{eventually, within};

use crate::scene::{SOON, TASK, echoes, given, ms, open, serve_here};

#[tokio::test]
async fn the_bytes_of_a_stream_that_goes_first_overtake_those_of_a_transfer_that_can_wait() {
    // As much of either: streams of one priority take turns, and would end together.
    const SIZE: usize = 512 * 1024;
    let patient = |limits: &mut kinfolk::Limits| limits.idle_timeout = 3 * SOON;
    let (alice, bob) = (node_with(1, patient).await, node_with(2, patient).await);
    let pair = relay(1, &alice, &bob);
    let mut streams = serve_here(&bob).await;
    let mut opened = Vec::new();
    for priority in [Priority::Bulk, Priority::Control] {
        let options = Options::new().priority(priority);
        let opening = alice.open_with(bob.id(), TASK, options);
        let (send, recv) = within(SOON, "the open", opening).await.expect("opened");
        opened.push((send, recv, given(&mut streams).await));
    }
    let (mut urgent, _urgent_recv, urgent_there) = opened.pop().expect("two");
    let (mut bulk, _bulk_recv, bulk_there) = opened.pop().expect("two");

    // Nothing gets through until both have queued everything, the one that can wait first.
    pair.partition();
    within(SOON, "the bulk is queued", bulk.write_all(&[1; SIZE])).await.expect("written");
    within(SOON, "the rest is queued", urgent.write_all(&[2; SIZE])).await.expect("written");
    bulk.finish().expect("finished once");
    urgent.finish().expect("finished once");
    // A second or so for each, with little under way at once.
    let narrow =
        Condition { rate_bytes_per_s: Some(1024 * 1024), queue: 64, ..Condition::default() };
    pair.set(Direction::Both, narrow);

    let bulk_read = AtomicUsize::new(0);
    let urgent_first = async {
        let mut read = 0;
        let mut recv = urgent_there.recv;
        while let Some(chunk) = recv.read_chunk(SIZE).await.expect("nothing is lost") {
            read += chunk.len();
        }
        (read, bulk_read.load(Ordering::Relaxed))
    };
    let bulk_later = async {
        let mut recv = bulk_there.recv;
        while let Some(chunk) = recv.read_chunk(SIZE).await.expect("nothing is lost") {
            bulk_read.fetch_add(chunk.len(), Ordering::Relaxed);
        }
    };
    let both = async { tokio::join!(urgent_first, bulk_later) };
    let ((urgent, bulk_by_then), ()) = within(6 * SOON, "all bytes", both).await;
    assert_eq!((urgent, bulk_read.load(Ordering::Relaxed)), (SIZE, SIZE));
    // What was in flight before the other stream had anything to send, and what is on its way behind it.
    assert!(bulk_by_then < SIZE / 2, "{bulk_by_then} bytes of the transfer came first");
}

#[tokio::test]
async fn a_warm_open_and_a_warm_call_pass_by_a_manager_that_stalls() {
    let (alice, bob) = (node(1).await, node(2).await);
    connect(&alice, &bob).await;
    for node in [&alice, &bob] {
        node.inject(Victim::PeerManager, Crash::Stall(Duration::from_secs(600)));
    }
    eventually(SOON, "the manager answers no more", async || {
        tokio::time::timeout(ms(50), alice.metrics()).await.is_err()
    })
    .await;
    let (mut send, mut recv) = open(&alice, bob.id(), ECHO).await.expect("opened");
    echoes(&mut send, &mut recv, b"x").await;
    let call = alice.call::<_, u64>(bob.id(), NEXT, &1_u64);
    assert_eq!(within(SOON, "an answer", call).await, Ok(2));
}
