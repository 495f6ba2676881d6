//! Shutdown over real QUIC: it ends in time whatever is under way, accounts for every intent, and leaves nothing behind.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use kinfolk::error::{AddressError, CallError, NodeClosed, OpenError, ServeError, StreamError};
use kinfolk::fault::{Crash, Victim};
use kinfolk::{
    Code, Consumer, Item, Node, NodeBuilder, Outcome, PeerStatus, Producer, ProtocolName, Received,
    Schema, SendError, Service, StreamEnd, Terminal,
};
use kinfolk_core::wire::Control;
use kinfolk_tests::support::guest::{Guest, alpn, done, goodbye, hear, hello, knock};
use kinfolk_tests::support::node::{
    ECHO, NEXT, address_to_return_to, builder, builder_at, connect, node, quick_limits, serving,
};
use kinfolk_tests::support::stranger::{Nobody, Stranger, closed_code};
use kinfolk_tests::support::wait::{eventually, live_tasks, within};
use tokio::sync::Mutex;
use tokio::task::JoinSet;

const SOON: Duration = Duration::from_secs(10);

/// More than a shutdown takes that has nothing to wait for, on a busy machine too; less than any deadline of [`patient`].
const AT_ONCE: Duration = Duration::from_secs(4);

const STUCK: ProtocolName = ProtocolName::from_static("stuck/1");

/// A node whose drain deadline is longer than any test waits: what needs it is late.
async fn patient(key: u8) -> Node {
    let mut limits = quick_limits();
    limits.drain_deadline = Duration::from_secs(30);
    limits.shutdown_deadline = Duration::from_secs(30);
    serving(builder_at(key, address_to_return_to()).limits(limits)).await
}

/// A node that gives streams half a second to finish.
async fn hasty(key: u8) -> Node {
    let mut limits = quick_limits();
    limits.drain_deadline = Duration::from_millis(500);
    serving(builder_at(key, address_to_return_to()).limits(limits)).await
}

async fn shut_down(node: &Node, deadline: Duration) {
    assert_eq!(within(deadline, "the shutdown", node.shutdown()).await, Terminal::Shutdown);
}

async fn session_with(node: &Node, peer: &Node) {
    let mut status = node.monitor(peer.id()).await.expect("alive");
    within(SOON, "a session", status.wait_for(PeerStatus::is_up)).await.expect("watched");
}

fn port_of(node: &Node) -> SocketAddr {
    *node.addr().ip_addrs().next().expect("a bound address")
}

async fn port_becomes_free(port: SocketAddr) {
    eventually(SOON, "the port is free", async || UdpSocket::bind(port).is_ok()).await;
}

/// A service that accepts streams and then does nothing, for ever.
fn stuck() -> Service {
    Service::stream(|stream| async move {
        let _kept = stream;
        std::future::pending().await
    })
}

// What is under way

#[tokio::test]
async fn a_node_with_nothing_open_shuts_down_at_once() {
    let alice = patient(1).await;
    shut_down(&alice, AT_ONCE).await;
}

#[tokio::test]
async fn a_node_with_idle_sessions_shuts_down_at_once() {
    let (alice, bob, carol) = (patient(1).await, patient(2).await, patient(3).await);
    connect(&alice, &bob).await;
    connect(&carol, &alice).await;
    shut_down(&alice, AT_ONCE).await;
}

#[tokio::test]
async fn two_connected_nodes_that_shut_down_at_the_same_time_do_so_at_once() {
    let (alice, bob) = (patient(1).await, patient(2).await);
    connect(&alice, &bob).await;
    tokio::join!(shut_down(&alice, AT_ONCE), shut_down(&bob, AT_ONCE));
}

#[tokio::test]
async fn every_intent_that_waits_ends_as_shutting_down() {
    let (alice, bob) = (patient(1).await, patient(2).await);
    connect(&alice, &bob).await;
    let nobody = Nobody::bind();
    let mut opens = JoinSet::new();
    for key in 100..150 {
        let (alice, address) = (alice.clone(), nobody.as_if(key));
        opens.spawn(async move { alice.open(address, ECHO).await.map(|_| ()) });
    }
    let holds = [alice.hold(bob.addr()), alice.hold(nobody.as_if(99))];
    eventually(SOON, "all wait, most for a dial", async || {
        let metrics = alice.metrics().await.expect("alive");
        metrics.intents_waiting == 52 && metrics.sessions.dialling == 16
    })
    .await;

    // iroh says farewell to dead addresses too, for up to three seconds.
    shut_down(&alice, Duration::from_secs(3) + AT_ONCE).await;
    let ends = within(SOON, "all outcomes", opens.join_all()).await;
    assert_eq!(ends, vec![Err(OpenError::ShuttingDown); 50]);
    for hold in holds {
        assert_eq!(hold.outcome(), Some(Outcome::ShuttingDown));
    }
}

#[tokio::test]
async fn a_draining_node_has_no_peer_left_that_it_would_dial() {
    let (alice, nobody) = (patient(1).await, Nobody::bind());
    let _hold = alice.hold(nobody.as_if(99));
    eventually(SOON, "the dial", async || {
        alice.metrics().await.is_ok_and(|metrics| metrics.sessions.dialling == 1)
    })
    .await;
    within(AT_ONCE, "the drain", alice.drain()).await.expect("alive");
    assert_eq!(alice.peers().await.expect("alive"), vec![]);
}

#[tokio::test]
async fn a_handler_that_never_returns_is_cut_at_the_drain_deadline() {
    let (alice, bob) = (patient(1).await, hasty(2).await);
    bob.serve(STUCK, stuck()).await.expect("a new protocol");
    let (_send, mut recv) =
        within(SOON, "the open", alice.open(bob.addr(), STUCK)).await.expect("opened");
    shut_down(&bob, Duration::from_millis(500) + AT_ONCE).await;
    let end = within(SOON, "the end", recv.read_chunk(1)).await;
    assert_eq!(end, Err(StreamError::LinkClosed(Code::DrainDeadline)));
}

#[test]
fn a_shutdown_returns_although_a_handler_blocks_the_only_thread_of_its_node() {
    let mut network = tokio::runtime::Builder::new_multi_thread();
    let network = network.worker_threads(1).enable_all().build().expect("a runtime");
    let (release, blocked) = std::sync::mpsc::channel::<()>();
    let blocked = std::sync::Mutex::new(blocked);
    let (enter, mut entered) = tokio::sync::mpsc::unbounded_channel();
    let bob = network.block_on(async {
        let mut limits = quick_limits();
        limits.shutdown_deadline = Duration::from_millis(500);
        let bob = network.spawn(builder(2).limits(limits).spawn()).await.expect("no panic");
        let bob = bob.expect("the node starts");
        let blocking = Service::stream(move |_stream| {
            let _ = enter.send(());
            let _ = blocked.lock().map(|blocked| blocked.recv());
            async { Ok(()) }
        });
        bob.serve(STUCK, blocking).await.expect("a new protocol");
        bob
    });
    let app = tokio::runtime::Builder::new_current_thread().enable_all().build();
    app.expect("a runtime").block_on(async {
        let alice = node(1).await;
        let _open = tokio::spawn({
            let bob = bob.addr();
            async move { alice.open(bob, STUCK).await.map(|_| ()) }
        });
        within(SOON, "the handler", entered.recv()).await.expect("it is entered");
        // Its own deadline, ten seconds for what should take none, and one for the kill.
        let longest = Duration::from_millis(11_500) + AT_ONCE;
        assert_eq!(within(longest, "the shutdown", bob.shutdown()).await, Terminal::Killed);
    });
    release.send(()).expect("the handler waits");
    network.shutdown_timeout(SOON);
}

#[tokio::test]
async fn a_shutdown_takes_no_longer_than_its_own_deadline() {
    let mut limits = quick_limits();
    limits.drain_deadline = Duration::from_secs(30);
    limits.shutdown_deadline = Duration::from_millis(500);
    let (alice, bob) = (patient(1).await, serving(builder(2).limits(limits)).await);
    bob.serve(STUCK, stuck()).await.expect("a new protocol");
    let _stream = within(SOON, "the open", alice.open(bob.addr(), STUCK)).await.expect("opened");
    shut_down(&bob, Duration::from_millis(500) + AT_ONCE).await;
}

#[tokio::test]
async fn streams_may_finish_while_a_node_shuts_down() {
    let (alice, bob) = (patient(1).await, patient(2).await);
    let (mut send, mut recv) =
        within(SOON, "the open", alice.open(bob.addr(), ECHO)).await.expect("opened");
    let shutdown = shut_down(&bob, SOON);
    let finish = async {
        let mut status = alice.monitor(bob.id()).await.expect("alive");
        let down = status.wait_for(|status| !status.is_up());
        within(SOON, "the goodbye", down).await.expect("watched");
        send.write_all(b"the rest").await.expect("sent");
        send.finish().expect("finished once");
        within(SOON, "the echo", recv.read_to_end(100)).await.expect("received")
    };
    let ((), echoed) = tokio::join!(shutdown, finish);
    assert_eq!(echoed, b"the rest");
}

#[tokio::test]
async fn a_node_that_is_shutting_down_takes_no_new_work_and_dials_nobody() {
    let (alice, bob, carol) = (patient(1).await, patient(2).await, patient(3).await);
    let stream = within(SOON, "the open", alice.open(bob.addr(), ECHO)).await.expect("opened");
    let shutdown = shut_down(&alice, 3 * SOON);
    let asks = async {
        eventually(SOON, "the shutdown is under way", async || {
            alice.metrics().await.is_ok_and(|metrics| metrics.sessions.closing == 1)
        })
        .await;
        // To a peer that it would have to dial, and to one that it is still connected to.
        for peer in [carol.addr(), bob.addr()] {
            let opened = within(SOON, "an outcome", alice.open(&peer, ECHO)).await;
            assert_eq!(opened.err(), Some(OpenError::ShuttingDown));
            let opened = within(SOON, "an outcome", alice.open_eager(&peer, ECHO)).await;
            assert_eq!(opened.err(), Some(OpenError::ShuttingDown));
            let call = within(SOON, "an outcome", alice.call::<_, u64>(&peer, NEXT, &1_u64)).await;
            assert_eq!(call, Err(CallError::Intent(OpenError::ShuttingDown)));
            let hold = alice.hold(&peer);
            let ended = within(SOON, "the hold's end", hold.ended()).await;
            assert_eq!(ended, Outcome::ShuttingDown);
        }
        let opened = within(SOON, "an outcome", alice.try_open(bob.id(), ECHO)).await;
        assert_eq!(opened.err(), Some(OpenError::ShuttingDown));
        let metrics = alice.metrics().await.expect("still shutting down");
        assert_eq!((metrics.dials_started, metrics.sessions.closing), (1, 1));
        assert_eq!((metrics.intents_waiting, metrics.intents_ended["shutting_down"]), (0, 9));
        drop(stream);
    };
    let ((), ()) = tokio::join!(shutdown, asks);
    assert_eq!(carol.metrics().await.expect("alive").incoming_accepted, 0);
}

#[tokio::test]
async fn a_stranger_in_the_middle_of_its_handshake_does_not_delay_a_shutdown() {
    let (alice, mallory) = (patient(1).await, Stranger::bind(66).await);
    let _silent = mallory.connect(alice.addr(), &alpn()).await.expect("alice is up");
    shut_down(&alice, AT_ONCE).await;
}

#[tokio::test]
async fn a_node_whose_peer_manager_has_just_failed_shuts_down_at_once() {
    let (alice, bob) = (patient(1).await, patient(2).await);
    connect(&alice, &bob).await;
    for _ in 0..3 {
        alice.inject(Victim::PeerManager, Crash::Panic);
    }
    shut_down(&alice, AT_ONCE).await;
}

// Typed streams

#[derive(Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
struct Text(String);

impl Item for Text {
    const SCHEMA: Schema = Schema::new("text", 1);
}

/// A node that discovers, with this drain deadline.
async fn discovering(key: u8, drain_deadline: Duration) -> Node {
    let mut limits = quick_limits();
    limits.drain_deadline = drain_deadline;
    limits.shutdown_deadline = Duration::from_secs(30);
    builder(key).limits(limits).discovery(true).spawn().await.expect("the node starts")
}

/// A stream of one node's to another's, with so much room for what is not read.
async fn stream(from: &Node, to: &Node, name: &str, room: u32) -> (Producer<Text>, Consumer<Text>) {
    let producer = from.producer(name).await.expect("a producer");
    let consumer = to.consumer(name).buffer(room).await.expect("a consumer");
    within(SOON, "an exchange", from.sync_with(to.addr())).await.expect("both discover");
    within(2 * SOON, "a consumer", producer.when_subscribed(1)).await.expect("alive");
    within(SOON, "a source", consumer.when_online(1)).await.expect("alive");
    (producer, consumer)
}

#[tokio::test]
async fn a_node_with_producers_and_consumers_shuts_down_at_once_and_both_learn_it() {
    const LATE: Duration = Duration::from_secs(30);
    let (alice, bob) = (discovering(1, LATE).await, discovering(2, LATE).await);
    let (out, mut at_bob) = stream(&alice, &bob, "out", 1024).await;
    let (inward, mut at_alice) = stream(&bob, &alice, "in", 1024).await;
    for producer in [&out, &inward] {
        producer.send(&Text("last".to_owned())).await.expect("sent");
    }
    let last = |received| matches!(received, Some(Received::Item { number: 0, .. }));
    assert!(last(within(SOON, "an item", at_alice.recv()).await));
    shut_down(&alice, AT_ONCE).await;
    assert!(last(within(SOON, "what was sent before", at_bob.recv()).await));
    assert_eq!(within(SOON, "the end", at_alice.recv()).await, None);
    let sent = within(SOON, "the end", out.send(&Text(String::new()))).await;
    assert_eq!(sent, Err(SendError::Ended(StreamEnd::ShuttingDown)));
    within(SOON, "the end", out.finish()).await;
    within(SOON, "alice has left", async {
        while !inward.consumers().is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_node_whose_app_reads_nothing_that_it_consumes_shuts_down_at_once() {
    const LATE: Duration = Duration::from_secs(30);
    let (alice, bob) = (discovering(1, LATE).await, discovering(2, LATE).await);
    let (inward, at_alice) = stream(&bob, &alice, "in", 1).await;
    fill(&inward).await;
    shut_down(&alice, AT_ONCE).await;
    drop(at_alice);
}

#[tokio::test]
async fn a_consumer_that_reads_nothing_delays_the_shutdown_of_its_producer_to_the_drain_deadline() {
    let drain = Duration::from_millis(500);
    let (alice, bob) = (discovering(1, drain).await, discovering(2, drain).await);
    let (out, at_bob) = stream(&alice, &bob, "out", 1).await;
    fill(&out).await;
    let begun = Instant::now();
    shut_down(&alice, drain + AT_ONCE).await;
    assert!(begun.elapsed() >= drain, "{:?}", begun.elapsed());
    drop(at_bob);
}

/// Sends until nothing more finds room.
async fn fill(producer: &Producer<Text>) {
    let item = Text("x".repeat(100_000));
    while let Ok(sent) =
        tokio::time::timeout(Duration::from_millis(500), producer.send(&item)).await
    {
        sent.expect("alive");
    }
}

// What the peer sees

#[tokio::test]
async fn a_peer_is_told_goodbye_and_who_answers_is_let_go_in_agreement() {
    let (alice, bob) = (patient(1).await, Stranger::bind(2).await);
    let mut guest = Guest::enter(&bob, &alice, hello(1, 1)).await;
    let shutdown = shut_down(&alice, AT_ONCE);
    let answer = async {
        let frame = hear(&mut guest.receive).await;
        let Some(Control::Goodbye(heard)) = frame else { panic!("{frame:?}") };
        assert_eq!((heard.code, heard.served), (Code::ShuttingDown, 0));
        assert_eq!(hear(&mut guest.receive).await, Some(done()));
        guest.say(&[goodbye(Code::Draining), done()]).await;
        closed_code(&guest.connection, SOON).await
    };
    let ((), code) = tokio::join!(shutdown, answer);
    assert_eq!(code, Some(u64::from(Code::Ok.to_wire())));
}

#[tokio::test]
async fn a_peer_that_never_answers_the_goodbye_is_cut_at_the_drain_deadline() {
    let (alice, mallory) = (hasty(1).await, Stranger::bind(66).await);
    let guest = Guest::enter(&mallory, &alice, hello(1, 1)).await;
    shut_down(&alice, Duration::from_millis(500) + AT_ONCE).await;
    let code = closed_code(&guest.connection, SOON).await;
    assert_eq!(code, Some(u64::from(Code::DrainDeadline.to_wire())));
}

#[tokio::test]
async fn who_comes_while_a_node_drains_is_told_so() {
    let (alice, bob, carol) = (patient(1).await, patient(2).await, Stranger::bind(3).await);
    let stream = within(SOON, "the open", bob.open(alice.addr(), ECHO)).await.expect("opened");
    let drain = within(SOON, "the drain", alice.drain());
    let come = async {
        eventually(SOON, "the drain begins", async || {
            alice.metrics().await.is_ok_and(|metrics| metrics.sessions.closing == 1)
        })
        .await;
        let (connection, ..) = knock(&carol, &alice, hello(1, 1)).await;
        let code = closed_code(&connection, SOON).await;
        let own = within(SOON, "an outcome", alice.open(carol.addr(), ECHO)).await;
        drop(stream);
        (code, own.map(|_| ()))
    };
    let (drained, (code, own)) = tokio::join!(drain, come);
    drained.expect("alive");
    assert_eq!(code, Some(u64::from(Code::ShuttingDown.to_wire())));
    assert_eq!(own, Err(OpenError::ShuttingDown));
}

// Who asks

#[tokio::test]
async fn clones_that_shut_down_at_the_same_time_all_learn_the_end() {
    let (alice, bob) = (patient(1).await, patient(2).await);
    connect(&alice, &bob).await;
    let mut asks = JoinSet::new();
    for _ in 0..10 {
        let alice = alice.clone();
        asks.spawn(async move { alice.shutdown().await });
    }
    let ends = within(AT_ONCE, "the shutdown", asks.join_all()).await;
    assert_eq!(ends, vec![Terminal::Shutdown; 10]);
    shut_down(&alice, AT_ONCE).await;
    assert_eq!(within(AT_ONCE, "the end", alice.closed()).await, Terminal::Shutdown);
}

#[tokio::test]
async fn a_shutdown_goes_on_when_who_asked_for_it_is_gone() {
    let alice = patient(1).await;
    let asked = {
        let alice = alice.clone();
        tokio::spawn(async move { alice.shutdown().await })
    };
    let closed = alice.closed();
    tokio::task::yield_now().await;
    asked.abort();
    assert_eq!(within(AT_ONCE, "the end", closed).await, Terminal::Shutdown);
}

#[tokio::test]
async fn a_node_that_has_ended_answers_everything_with_its_end() {
    let (alice, bob) = (patient(1).await, patient(2).await);
    connect(&alice, &bob).await;
    let (id, to_bob) = (alice.id(), bob.addr());
    shut_down(&alice, AT_ONCE).await;

    let ended = NodeClosed(Terminal::Shutdown);
    let closed = Some(OpenError::Closed(ended.clone()));
    assert_eq!(alice.open(&to_bob, ECHO).await.err(), closed);
    assert_eq!(alice.open_eager(&to_bob, ECHO).await.err(), closed);
    assert_eq!(alice.try_open(bob.id(), ECHO).await.err(), closed);
    let call = alice.call::<_, u64>(&to_bob, NEXT, &1_u64).await;
    assert_eq!(call, Err(CallError::Intent(OpenError::Closed(ended.clone()))));
    let hold = alice.hold(&to_bob);
    assert_eq!(hold.outcome(), Some(Outcome::ShuttingDown));
    assert_eq!(within(AT_ONCE, "the hold's end", hold.ended()).await, Outcome::ShuttingDown);
    let serve = alice.serve(STUCK, stuck()).await;
    assert_eq!(serve, Err(ServeError::Closed(ended.clone())));
    assert_eq!(alice.add_address(to_bob), Err(AddressError::Closed(ended.clone())));
    let asks = async {
        assert_eq!(alice.events().await.err(), Some(ended.clone()));
        assert_eq!(alice.metrics().await.err(), Some(ended.clone()));
        assert_eq!(alice.peers().await.err(), Some(ended.clone()));
        assert_eq!(alice.why(bob.id()).await.err(), Some(ended.clone()));
        assert_eq!(alice.monitor(bob.id()).await.err(), Some(ended.clone()));
        assert_eq!(alice.disconnect(bob.id()).await.err(), Some(ended.clone()));
        assert_eq!(alice.drain().await.err(), Some(ended.clone()));
    };
    within(AT_ONCE, "all answers", asks).await;
    assert_eq!(alice.unserve(&ECHO), Err(ended.clone()));
    assert_eq!(alice.ban(bob.id(), Duration::from_secs(1)), Err(ended.clone()));
    assert_eq!(alice.unban(bob.id()), Err(ended.clone()));
    assert_eq!(alice.remove_address(bob.id(), None), Err(ended));
    assert_eq!(alice.id(), id);
}

#[tokio::test]
async fn who_asks_while_a_node_shuts_down_gets_an_answer_or_its_end() {
    let (alice, bob) = (hasty(1).await, patient(2).await);
    bob.serve(STUCK, stuck()).await.expect("a new protocol");
    let _stream = within(SOON, "the open", alice.open(bob.addr(), STUCK)).await.expect("opened");
    let ask = async {
        let mut answers = 0;
        while alice.metrics().await.is_ok() {
            answers += 1;
        }
        answers
    };
    let ask = within(SOON, "the end of the asking", ask);
    let (answers, ()) = tokio::join!(ask, shut_down(&alice, SOON));
    assert!(answers > 0);
}

// What is left

#[tokio::test]
async fn the_port_is_free_after_a_shutdown_while_handles_still_exist() {
    let (alice, bob) = (patient(1).await, patient(2).await);
    connect(&alice, &bob).await;
    let hold = alice.hold(bob.id());
    let events = alice.events().await.expect("alive");
    let status = alice.monitor(bob.id()).await.expect("alive");
    let port = port_of(&alice);
    UdpSocket::bind(port).expect_err("the port is taken while the node is up");
    shut_down(&alice, SOON).await;
    port_becomes_free(port).await;
    drop((alice, hold, events, status));
}

#[tokio::test]
async fn the_port_is_free_after_a_shutdown_as_soon_as_the_app_drops_its_streams() {
    let (alice, bob) = (hasty(1).await, patient(2).await);
    let stream = within(SOON, "the open", alice.open(bob.addr(), ECHO)).await.expect("opened");
    shut_down(&alice, SOON).await;
    drop(stream);
    port_becomes_free(port_of(&alice)).await;
}

#[tokio::test]
async fn a_node_starts_anew_with_the_key_and_the_port_of_one_that_was_shut_down() {
    let (alice, bob) = (patient(1).await, patient(2).await);
    connect(&bob, &alice).await;
    let port = port_of(&alice);
    shut_down(&alice, SOON).await;
    port_becomes_free(port).await;
    let alice = serving(builder_at(1, port)).await;
    let three: u64 =
        within(SOON, "an answer", bob.call(alice.id(), NEXT, &2_u64)).await.expect("answered");
    assert_eq!(three, 3);
}

#[tokio::test]
async fn a_node_outlives_the_shutdown_of_another_one_of_the_process() {
    let (alice, bob, carol) = (patient(1).await, patient(2).await, patient(3).await);
    connect(&alice, &bob).await;
    connect(&carol, &bob).await;
    let (mut send, mut recv) =
        within(SOON, "the open", carol.open(bob.id(), ECHO)).await.expect("opened");
    shut_down(&alice, AT_ONCE).await;
    send.write_all(b"still here").await.expect("sent");
    send.finish().expect("finished once");
    let echoed = within(SOON, "the echo", recv.read_to_end(100)).await.expect("received");
    assert_eq!(echoed, b"still here");
    connect(&carol, &bob).await;
}

#[test]
fn a_node_whose_runtime_ends_was_killed() {
    let network = tokio::runtime::Runtime::new().expect("a runtime");
    let (alice, bob) = network.block_on(async {
        let (alice, bob) = (node(1).await, node(2).await);
        connect(&alice, &bob).await;
        (alice, bob)
    });
    network.shutdown_timeout(SOON);
    let app = tokio::runtime::Builder::new_current_thread().enable_all().build();
    app.expect("a runtime").block_on(async {
        assert_eq!(within(SOON, "the end", alice.closed()).await, Terminal::Killed);
        assert_eq!(within(SOON, "the end", bob.shutdown()).await, Terminal::Killed);
        let open = within(SOON, "an outcome", alice.open(bob.addr(), ECHO)).await;
        assert_eq!(open.err(), Some(OpenError::Closed(NodeClosed(Terminal::Killed))));
    });
}

// A thread of its own

/// Held by each test that starts network threads, as they are counted in the whole process.
static NETWORK_THREADS: Mutex<()> = Mutex::const_new(());

fn network_threads() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").expect("/proc/self/task can be listed");
    // A thread that ends meanwhile has no name any more.
    let names =
        tasks.flatten().filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
    names.filter(|name| name.trim() == "kinfolk-network").count()
}

async fn threaded(key: u8) -> Node {
    serving(builder_at(key, address_to_return_to()).network_thread()).await
}

#[tokio::test]
async fn a_node_with_a_thread_of_its_own_is_used_like_any_other_and_the_thread_ends_with_it() {
    let _alone = NETWORK_THREADS.lock().await;
    let (alice, bob) = (threaded(1).await, node(2).await);
    eventually(SOON, "the thread runs", async || network_threads() == 1).await;
    connect(&alice, &bob).await;
    let (mut send, mut recv) =
        within(SOON, "the open", bob.open(alice.id(), ECHO)).await.expect("opened");
    send.write_all(b"hello").await.expect("sent");
    send.finish().expect("finished once");
    let echoed = within(SOON, "the echo", recv.read_to_end(100)).await.expect("received");
    assert_eq!(echoed, b"hello");
    let hold = alice.hold(bob.id());
    session_with(&alice, &bob).await;
    assert_eq!(alice.metrics().await.expect("alive").sessions.live, 1);

    shut_down(&alice, SOON).await;
    assert_eq!(hold.outcome(), Some(Outcome::ShuttingDown));
    eventually(SOON, "the thread has ended", async || network_threads() == 0).await;
    port_becomes_free(port_of(&alice)).await;
}

#[tokio::test]
async fn handlers_of_a_node_with_a_thread_of_its_own_run_there() {
    let _alone = NETWORK_THREADS.lock().await;
    let (alice, bob) = (threaded(1).await, node(2).await);
    let service = Service::call(|_peer, (): ()| async {
        Ok(std::thread::current().name().unwrap_or_default().to_owned())
    });
    alice.serve(STUCK, service).await.expect("a new protocol");
    let name: String =
        within(SOON, "an answer", bob.call(alice.addr(), STUCK, &())).await.expect("answered");
    assert_eq!(name, "kinfolk-network");
    shut_down(&alice, SOON).await;
    eventually(SOON, "the thread has ended", async || network_threads() == 0).await;
}

#[tokio::test]
async fn the_thread_of_a_node_that_panicked_ends_and_streams_of_the_app_with_it() {
    let _alone = NETWORK_THREADS.lock().await;
    let (alice, bob) = (threaded(1).await, node(2).await);
    let (_send, mut recv) =
        within(SOON, "the open", alice.open(bob.addr(), ECHO)).await.expect("opened");
    alice.inject(Victim::Node, Crash::Panic);
    let end = within(SOON, "the end", alice.closed()).await;
    assert!(matches!(end, Terminal::Failed(_)), "{end:?}");
    within(SOON, "the stream's end", recv.read_chunk(1)).await.expect_err("the node is gone");
    eventually(SOON, "the thread has ended", async || network_threads() == 0).await;
}

#[tokio::test]
async fn the_thread_of_a_node_that_was_killed_ends_and_frees_its_port() {
    let _alone = NETWORK_THREADS.lock().await;
    let (alice, bob) = (threaded(1).await, node(2).await);
    let (send, mut recv) =
        within(SOON, "the open", alice.open(bob.addr(), ECHO)).await.expect("opened");
    alice.actor().kill();
    assert_eq!(within(SOON, "the end", alice.closed()).await, Terminal::Killed);
    within(SOON, "the stream's end", recv.read_chunk(1)).await.expect_err("the node is gone");
    drop((send, recv));
    eventually(SOON, "the thread has ended", async || network_threads() == 0).await;
    port_becomes_free(port_of(&alice)).await;
}

#[tokio::test]
async fn a_node_whose_start_is_given_up_at_any_point_leaves_no_thread() {
    let _alone = NETWORK_THREADS.lock().await;
    give_up_starts(|| builder(1).network_thread()).await;
    eventually(SOON, "the threads have ended", async || network_threads() == 0).await;
}

#[tokio::test]
async fn a_node_whose_start_is_given_up_at_any_point_leaves_no_task() {
    let before = live_tasks();
    give_up_starts(|| builder(1)).await;
    eventually(SOON, "the tasks have ended", async || live_tasks() <= before).await;
}

/// Starts nodes and gives each up a little later than the one before.
async fn give_up_starts(builder: impl Fn() -> NodeBuilder) {
    for patience in 0..50 {
        let start = builder().spawn();
        let patience = Duration::from_micros(patience * 100);
        if let Ok(node) = tokio::time::timeout(patience, start).await {
            shut_down(&node.expect("the node starts"), SOON).await;
        }
    }
}

#[tokio::test]
async fn a_start_that_fails_leaves_no_thread() {
    let _alone = NETWORK_THREADS.lock().await;
    let taken = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("bound");
    let node = Node::builder("taken").bind_addr(address).network_thread().spawn().await;
    assert!(matches!(node, Err(kinfolk::error::SpawnError::Bind(_))), "{node:?}");
    eventually(SOON, "the thread has ended", async || network_threads() == 0).await;
}
