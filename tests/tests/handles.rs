//! Handles of a node, in apps that keep them too long, drop them too early, or use them from elsewhere.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use kinfolk::error::{CallError, OpenError, ResponsesError};
use kinfolk::fault::{Crash, Victim};
use kinfolk::{
    Code, EndpointAddr, Failure, NodeEvent, Options, Outcome, ProtocolName, SecretKey, Service,
    Terminal,
};
use kinfolk_core::wire::Answer;
use kinfolk_tests::support::host::Host;
use kinfolk_tests::support::node::{Mortal, NEXT, builder, connect, node, node_with, serving};
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

/// Runs a future on a thread where there is no runtime.
async fn elsewhere<F>(future: F) -> F::Output
where
    F: Future<Output: Send> + Send + 'static,
{
    let thread = std::thread::spawn(move || block_on(future));
    let joined = within(SOON, "the thread", tokio::task::spawn_blocking(|| thread.join())).await;
    joined.expect("it runs").expect("no panic")
}

#[tokio::test]
async fn a_node_with_a_thread_of_its_own_can_be_used_where_there_is_no_runtime() {
    let alice = serving(builder(1).network_thread()).await;
    let bob = serving(builder(2).network_thread()).await;
    let (node, address) = (alice.clone(), bob.addr());
    let ended = elsewhere(async move {
        let answer = node.call::<_, u64>(address, NEXT, &1_u64).await;
        assert_eq!(answer, Ok(2));
        node.shutdown().await
    });
    assert_eq!(ended.await, Terminal::Shutdown);
}

#[tokio::test]
async fn a_peer_that_nobody_knows_is_looked_for_where_there_is_no_runtime() {
    let alice = serving(builder(1).network_thread().discovery(true)).await;
    let nobody = SecretKey::from_bytes(&[3; 32]).public();
    let answer = elsewhere(async move {
        // Longer than it takes to look once more.
        let options = Options::new().deadline(Duration::from_secs(1));
        alice.call_with::<_, u64>(nobody, NEXT, &1_u64, options).await
    });
    let nowhere = OpenError::Failed { failure: Failure::NoAddress, cause: None };
    assert_eq!(answer.await, Err(CallError::Intent(nowhere)));
}

#[tokio::test]
async fn responses_with_a_time_for_all_of_them_are_cut_and_do_not_panic_when_the_runtime_of_their_node_is_gone()
 {
    let (alice, bob) = (Mortal::spawn(builder(1)).await, node(2).await);
    let service = Service::call_stream(|_peer, first: u64| {
        stream::iter([Ok(first)]).chain(stream::pending())
    });
    bob.serve(OWN, service).await.expect("a new protocol");
    let (node, address) = (alice.node.clone(), bob.addr());
    let mut responses = elsewhere(async move {
        let options = Options::new().total(Duration::from_secs(3600));
        let asked = node.call_stream_with::<_, u64>(address, OWN, &1_u64, options).await;
        let mut responses = asked.expect("taken");
        assert_eq!(responses.recv().await, Ok(Some(1)));
        responses
    })
    .await;
    within(SOON, "the shutdown", alice.node.shutdown()).await;
    alice.kill().await;
    let end = elsewhere(async move { responses.recv().await }).await;
    assert!(matches!(end, Err(ResponsesError::Cut(_))), "{end:?}");
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
async fn more_peers_can_be_called_at_addresses_over_time_than_the_book_keeps() {
    let alice = node_with(1, |limits| limits.addresses.peers = 2).await;
    for key in 2..6 {
        let other = node(key).await;
        let call = alice.call::<_, u64>(other.addr(), NEXT, &1_u64);
        assert_eq!(within(SOON, "an answer", call).await, Ok(2));
    }
    assert_eq!(alice.metrics().await.expect("up").addresses.evicted, 2);
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
