//! What is left of the failures of a hundred rounds: no task and no file descriptor.
//!
//! Descriptors are counted in the whole process, so these tests have a process of their own and run one at a time.

use std::time::{Duration, Instant};

use kinfolk::fault::{Crash, Victim};
use kinfolk::{Item, Node, NodeEvent, ProtocolName, Rate, Received, Schema, Service, Terminal};
use kinfolk_tests::support::events::EventLog;
use kinfolk_tests::support::guest::{Guest, hello};
use kinfolk_tests::support::impair::{Condition, Direction};
use kinfolk_tests::support::node::{Mortal, NEXT, builder, node, quick_limits, relay, serving};
use kinfolk_tests::support::stranger::Stranger;
use kinfolk_tests::support::wait::{eventually, live_tasks, open_fds, own_memory, within};
use tokio::sync::Mutex;
use tokio::task::JoinSet;

const SOON: Duration = Duration::from_secs(10);

const BROKEN: ProtocolName = ProtocolName::from_static("broken/1");

static ALONE: Mutex<()> = Mutex::const_new(());

/// Runs rounds 0 to 4, then 5 to 104, and compares what is held before and after the hundred.
async fn hundred_rounds_leave_nothing(mut rounds: impl AsyncFnMut(std::ops::Range<u64>)) {
    // What is made once and kept is made in these.
    rounds(0..5).await;
    let (mut tasks, mut fds) = (live_tasks(), open_fds());
    eventually(SOON, "the first rounds have settled", async || {
        let before = (tasks, fds);
        (tasks, fds) = (live_tasks(), open_fds());
        before == (tasks, fds)
    })
    .await;
    rounds(5..105).await;
    eventually(SOON, &format!("{tasks} tasks and {fds} descriptors"), async || {
        live_tasks() <= tasks && open_fds() <= fds
    })
    .await;
}

#[tokio::test]
async fn nothing_is_left_of_a_hundred_sessions_that_failed() {
    let _alone = ALONE.lock().await;
    let mut limits = quick_limits();
    limits.gate.peer_rate = Rate::new(1000, Duration::from_millis(1));
    let alice = serving(builder(1).limits(limits)).await;
    let bob = Stranger::bind(2).await;
    let mut log = EventLog::of(&alice).await;
    hundred_rounds_leave_nothing(async |rounds| {
        for n in rounds {
            let guest = Guest::enter(&bob, &alice, hello(1, n)).await;
            let crash = if n % 2 == 0 { Crash::Panic } else { Crash::Error };
            alice.inject(Victim::Session(bob.id()), crash);
            let is_end = |event: &NodeEvent| matches!(event, NodeEvent::SessionEnded { .. });
            log.next(SOON, "the session's end", is_end).await;
            // Else it would be left alone for its panics.
            alice.unban(bob.id()).expect("the node is up");
            drop(guest);
        }
    })
    .await;
}

#[tokio::test]
async fn nothing_is_left_of_a_hundred_restarts_of_the_peer_manager_and_accept() {
    let _alone = ALONE.lock().await;
    hundred_rounds_leave_nothing(async |rounds| {
        // iroh remembers a remote for a minute, so bob's life ends with the round.
        let bob = node(2).await;
        let mut nodes = JoinSet::new();
        // Each node survives five.
        for n in rounds.step_by(5) {
            let bob = bob.addr();
            nodes.spawn(async move {
                let key = u8::try_from(n).expect("small") + 10;
                let alice = serving(builder(key)).await;
                let mut log = EventLog::of(&alice).await;
                for victim in [Victim::PeerManager, Victim::Accept, Victim::PeerManager] {
                    let call = alice.call::<_, u64>(&bob, NEXT, &1_u64);
                    assert_eq!(within(SOON, "an answer", call).await, Ok(2));
                    alice.inject(victim, Crash::Panic);
                    let is_restart =
                        |event: &NodeEvent| matches!(event, NodeEvent::Restarted { .. });
                    log.next(SOON, "the restart", is_restart).await;
                }
                for _ in 0..2 {
                    within(SOON, "the manager", alice.metrics()).await.expect("alive");
                    alice.inject(Victim::PeerManager, Crash::Error);
                }
                within(SOON, "the manager", alice.metrics()).await.expect("alive");
                within(SOON, "the shutdown", alice.shutdown()).await;
            });
        }
        while let Some(done) = within(SOON, "the nodes", nodes.join_next()).await {
            done.expect("all went as it should");
        }
        within(SOON, "bob's shutdown", bob.shutdown()).await;
    })
    .await;
}

#[tokio::test]
async fn nothing_is_left_of_a_hundred_nodes_that_failed_were_killed_or_shut_down() {
    let _alone = ALONE.lock().await;
    hundred_rounds_leave_nothing(async |rounds| {
        for n in rounds {
            let alice = node(1).await;
            let end = end(&alice, n).await;
            let expected = match n % 4 {
                0 => Terminal::Failed("the node panicked: injected panic".into()),
                1 => Terminal::Failed("injected error".into()),
                2 => Terminal::Killed,
                _ => Terminal::Shutdown,
            };
            assert_eq!(end, expected);
        }
    })
    .await;
}

async fn end(node: &Node, n: u64) -> Terminal {
    match n % 4 {
        0 => node.inject(Victim::Node, Crash::Panic),
        1 => node.inject(Victim::Node, Crash::Error),
        2 => node.actor().kill(),
        _ => {
            within(SOON, "the shutdown", node.shutdown()).await;
        }
    }
    within(SOON, "the end", node.closed()).await
}

#[tokio::test]
async fn nothing_is_left_of_a_hundred_handlers_that_failed() {
    let _alone = ALONE.lock().await;
    let (alice, bob) = (node(1).await, node(2).await);
    let service = Service::stream(|mut stream| async move {
        let first = stream.recv.read_chunk(1).await?;
        assert_ne!(first.as_deref(), Some(&[0][..]), "on purpose");
        Err(kinfolk::error::HandlerError::new("on purpose"))
    });
    bob.serve(BROKEN, service).await.expect("a new protocol");
    hundred_rounds_leave_nothing(async |rounds| {
        for n in rounds {
            let open = alice.open(bob.addr(), BROKEN);
            let (mut send, mut recv) = within(SOON, "the open", open).await.expect("opened");
            send.write_all(&[u8::from(n % 2 == 0)]).await.expect("sent");
            within(SOON, "the end", recv.read_chunk(1)).await.expect_err("the handler fails");
        }
    })
    .await;
}

/// The node gives `Endpoint::close` 3 s. iroh waits in it for three times the probe timeout of its slowest path, which a long pause or a
/// long way makes as long as it likes; and once that wait has begun, iroh 1.4.1 aborts nothing when it is given up and the last
/// handle is dropped (`EndpointInner::abort` returns early). Its tasks go on until the time is over, here some 6 s.
#[tokio::test]
async fn a_shutdown_waits_no_longer_than_it_may_for_a_distant_silent_peer_and_iroh_s_tasks_end_too()
{
    let _alone = ALONE.lock().await;
    let mut limits = quick_limits();
    limits.idle_timeout = Duration::from_secs(30);
    limits.drain_deadline = Duration::from_millis(500);
    let alice = Mortal::spawn(builder(1).limits(limits.clone())).await;
    let bob = Mortal::spawn(builder(2).limits(limits.clone())).await;
    let pair = relay(7, &alice.node, &bob.node);
    pair.set(Direction::Both, Condition::delayed(Duration::from_millis(300)));
    for _ in 0..3 {
        let asked = alice.node.call::<_, u64>(bob.node.id(), NEXT, &1_u64);
        assert_eq!(within(SOON, "an answer", asked).await, Ok(2));
    }
    pair.partition();
    let begun = Instant::now();
    within(SOON, "the shutdown", alice.node.shutdown()).await;
    // The drain, a moment for the parts, the endpoint.
    let latest = limits.drain_deadline + Duration::from_secs(1 + 3 + 1);
    assert!(begun.elapsed() < latest, "{:?}", begun.elapsed());
    let tasks = || alice.runtime.metrics().num_alive_tasks();
    eventually(2 * SOON, "no task is left", async || tasks() == 0).await;
}

/// What the streams below carry.
#[derive(serde::Serialize, serde::Deserialize)]
struct Tick(u64);

impl Item for Tick {
    const SCHEMA: Schema = Schema::new("tick", 1);
}

#[tokio::test]
async fn nothing_is_left_of_a_thousand_subscriptions() {
    const MEMORY: u64 = 5 * 1024 * 1024;
    let _alone = ALONE.lock().await;
    let alice = builder(1).discovery(true).spawn().await.expect("it starts");
    let bob = builder(2).discovery(true).bootstrap(alice.addr());
    let bob = bob.spawn().await.expect("it starts");
    let producer = alice.producer::<Tick>("ticks").await.expect("a producer");
    let round = async |n: u64| {
        let mut consumer = bob.consumer::<Tick>("ticks").await.expect("a consumer");
        within(SOON, "a subscriber", producer.when_subscribed(1)).await.expect("it is up");
        producer.send(&Tick(n)).await.expect("sent");
        match within(SOON, "the item", consumer.recv()).await {
            Some(Received::Item { item, .. }) => assert_eq!(item.0, n),
            other => panic!("{:?}", other.is_some()),
        }
        drop(consumer);
        let gone = eventually(SOON, "it is gone", async || producer.consumers().is_empty());
        gone.await;
    };
    for n in 0..200 {
        round(n).await;
    }
    let (mut tasks, mut fds) = (live_tasks(), open_fds());
    eventually(SOON, "the first rounds have settled", async || {
        let before = (tasks, fds);
        (tasks, fds) = (live_tasks(), open_fds());
        before == (tasks, fds)
    })
    .await;
    let memory = own_memory();
    for n in 200..1_200 {
        round(n).await;
    }
    eventually(SOON, &format!("{tasks} tasks and {fds} descriptors"), async || {
        live_tasks() <= tasks && open_fds() <= fds
    })
    .await;
    let more = own_memory().saturating_sub(memory);
    assert!(more < MEMORY, "{more} bytes more");
    for node in [alice, bob] {
        within(SOON, "the shutdown", node.shutdown()).await;
    }
}
