//! Handles of a node, in apps that keep them too long, drop them too early, or use them from elsewhere.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::Duration;

use kinfolk::fault::{Crash, Victim};
use kinfolk::{Code, EndpointAddr, NodeEvent, Outcome, ProtocolName, Service, Terminal};
use kinfolk_core::wire::Answer;
use kinfolk_tests::support::host::Host;
use kinfolk_tests::support::node::{NEXT, builder, connect, node, serving};
use kinfolk_tests::support::wait::{eventually, within};
use tokio::sync::broadcast::error::RecvError;

const SOON: Duration = Duration::from_secs(10);

const OWN: ProtocolName = ProtocolName::from_static("own/1");

/// Runs a future on this thread alone: no runtime is in reach.
fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut future = std::pin::pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park(),
        }
    }
}

#[tokio::test]
async fn a_node_with_a_thread_of_its_own_can_be_used_where_there_is_no_runtime() {
    let alice = serving(builder(1).network_thread()).await;
    let bob = serving(builder(2).network_thread()).await;
    let (node, address) = (alice.clone(), bob.addr());
    let elsewhere = tokio::task::spawn_blocking(move || {
        std::thread::spawn(move || {
            block_on(async {
                let answer = node.call::<_, u64>(address, NEXT, &1_u64).await;
                assert_eq!(answer, Ok(2));
                node.shutdown().await
            })
        })
        .join()
    });
    let ended = within(SOON, "the end", elsewhere).await.expect("it runs");
    assert_eq!(ended.expect("no panic"), Terminal::Shutdown);
}

#[tokio::test]
async fn who_listens_gets_to_the_end_although_handles_are_left() {
    let alice = node(1).await;
    let mut events = alice.events().await.expect("up");
    within(SOON, "the shutdown", alice.shutdown()).await;
    let mut last = None;
    let end = loop {
        match within(SOON, "an event or the end", events.recv()).await {
            Ok(event) => last = Some(event),
            Err(end) => break end,
        }
    };
    assert_eq!(end, RecvError::Closed);
    assert_eq!(last, Some(NodeEvent::Ended { reason: Terminal::Shutdown }));
    assert!(alice.events().await.is_err());
}

#[tokio::test]
async fn a_handler_that_holds_its_own_node_goes_when_the_node_ends() {
    let alice = node(1).await;
    let kept = Arc::new(());
    let (node, keeps) = (alice.clone(), Arc::clone(&kept));
    let service = Service::call(move |_peer, number: u64| {
        let (_node, _keeps) = (node.clone(), Arc::clone(&keeps));
        async move { Ok(number) }
    });
    alice.serve(OWN, service).await.expect("a new protocol");
    assert_eq!(Arc::strong_count(&kept), 2);
    within(SOON, "the shutdown", alice.shutdown()).await;
    assert_eq!(Arc::strong_count(&kept), 1);
}

#[tokio::test]
async fn a_peer_can_be_called_at_more_addresses_over_time_than_the_book_keeps() {
    let (alice, bob) = (node(1).await, node(2).await);
    for port in 1..=40 {
        let stale = EndpointAddr::new(bob.id()).with_ip_addr((Ipv4Addr::LOCALHOST, port).into());
        let _ = alice.add_address(stale);
    }
    let call = alice.call::<_, u64>(bob.addr(), NEXT, &1_u64);
    assert_eq!(within(SOON, "an answer", call).await, Ok(2));
    // The newest is kept for the next dial, too.
    within(SOON, "the parting", alice.disconnect(bob.id())).await.expect("up");
    let call = alice.call::<_, u64>(bob.id(), NEXT, &2_u64);
    assert_eq!(within(SOON, "an answer", call).await, Ok(3));
}

#[tokio::test]
async fn a_peer_that_is_disconnected_while_the_manager_is_away_is_held_no_more() {
    let (alice, bob) = (node(1).await, node(2).await);
    connect(&alice, &bob).await;
    let hold = alice.hold(bob.id());
    // The manager is away for a moment after its second failure.
    for _ in 0..2 {
        alice.inject(Victim::PeerManager, Crash::Panic);
    }
    within(SOON, "the parting", alice.disconnect(bob.id())).await.expect("up");
    assert_eq!(within(SOON, "the hold's end", hold.ended()).await, Outcome::Cancelled);
    eventually(SOON, "nothing holds the peer", async || {
        alice.why(bob.id()).await.expect("up").is_none_or(|why| why.holds == 0)
    })
    .await;
}

#[tokio::test]
async fn a_hold_that_the_peer_refused_for_a_moment_is_told_again() {
    let (alice, mut host) = (node(1).await, Host::bind(2).await);
    let _hold = alice.hold(host.addr());
    let link = host.welcomed().await;
    let mut first = link.stream().await;
    assert_eq!(first.header.protocol.as_str(), "kinfolk/hold/1");
    first.answer(Answer::Refuse(Code::Busy)).await;
    first.send.finish().expect("finished once");
    let mut second = link.stream().await;
    assert_eq!(second.header.protocol.as_str(), "kinfolk/hold/1");
    second.answer(Answer::Ack).await;
}
