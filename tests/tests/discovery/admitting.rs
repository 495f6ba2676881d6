//! Services that want to know whom they serve, peers that say that they never do, and peers that are not wanted.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use kinfolk::error::{OpenError, StreamError};
use kinfolk::{
    Code, Direction, EndpointAddr, Metrics, NodeEvent, ProtocolName, Removal, SecretKey, Service,
    Topic,
};
use kinfolk_core::wire::Answer;
use kinfolk_tests::support::events::EventLog;
use kinfolk_tests::support::guest::{Guest, hello};
use kinfolk_tests::support::host::Host;
use kinfolk_tests::support::node::{ECHO, NEXT, builder};
use kinfolk_tests::support::stranger::{Nobody, Stranger};
use kinfolk_tests::support::teller::{EXCHANGE, answer, exchange, key, lore, record};
use kinfolk_tests::support::wait::eventually;
use tokio::task::JoinHandle;

use crate::scene::{
    SOON, all_know_all, alone, count, discovering, from, knows, over, short_silence,
};

const MEMBERS: ProtocolName = ProtocolName::from_static("members/1");

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_is_served_at_the_second_try_and_once() {
    let topic = Topic::from_name("members");
    let node = alone(1).await;
    let served = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&served);
    let service = Service::call(move |_peer, number: u64| {
        counter.fetch_add(1, Ordering::Relaxed);
        async move { Ok(number + 1) }
    });
    let service = service.admit_record(move |record| record.topics().any(|one| one == topic));
    node.serve(MEMBERS, service).await.expect("a new protocol");
    let mut members = Vec::new();
    for key in 10..20 {
        let member = discovering(key).topics([topic]).spawn().await.expect("it starts");
        let answer: u64 = member.call(node.addr(), MEMBERS, &41_u64).await.expect("an answer");
        assert_eq!(answer, 42);
        members.push(member);
    }
    assert_eq!(served.load(Ordering::Relaxed), 10);
    let unknown = count(&node, |metrics| metrics.streams_refused.get("unknown_peer").copied());
    assert!(unknown.await > 0, "none was a stranger");
    // Who is known and no member is not allowed, at once or at the second try.
    let other = alone(2).await;
    let error = other.call::<_, u64>(node.addr(), MEMBERS, &1_u64).await.expect_err("no member");
    assert!(error.to_string().contains("not allowed"), "{error}");
    // Who does not discover stays unknown.
    let quiet = builder(3).spawn().await.expect("it starts");
    let error = quiet.open(node.addr(), MEMBERS).await.expect_err("it is unknown");
    assert!(matches!(error, OpenError::Refused(Code::Violation | Code::UnknownPeer)), "{error}");
    assert_eq!(served.load(Ordering::Relaxed), 10);
    members.extend([node, other, quiet]);
    over(members).await;
}

/// A host that refuses every stream of the app as from an unknown peer, exchanges catalogs if it says so, and counts both.
struct Forgetful {
    asked: Arc<AtomicUsize>,
    exchanged: Arc<AtomicUsize>,
    addr: EndpointAddr,
    _task: JoinHandle<()>,
}

async fn forgetful(exchanges: bool) -> Forgetful {
    let mut host = Host::bind(66).await;
    let addr = host.addr();
    let (asked, exchanged) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    let counters = (Arc::clone(&asked), Arc::clone(&exchanged));
    let task = tokio::spawn(async move {
        let own = record(&SecretKey::from_bytes(&[66; 32]), 1, None);
        let known = lore(host.id(), [own]);
        let dialled = host.welcomed().await;
        loop {
            let mut stream = dialled.stream().await;
            if stream.header.protocol == NEXT {
                counters.0.fetch_add(1, Ordering::Relaxed);
                stream.answer(Answer::Refuse(Code::UnknownPeer)).await;
            } else if stream.header.protocol == EXCHANGE && exchanges {
                counters.1.fetch_add(1, Ordering::Relaxed);
                answer(&mut stream.send, &mut stream.receive, known.clone()).await;
            } else {
                stream.answer(Answer::Refuse(Code::UnknownPeer)).await;
            }
        }
    });
    Forgetful { asked, exchanged, addr, _task: task }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_never_knows_anybody_is_asked_twice_and_no_more() {
    let host = forgetful(true).await;
    let node = discovering(1).limits(short_silence()).spawn().await.expect("it starts");
    for round in 1..=3 {
        let error = node.call::<_, u64>(host.addr.clone(), NEXT, &1_u64).await.expect_err("never");
        assert!(error.to_string().contains("unknown"), "{error}");
        assert_eq!(host.asked.load(Ordering::Relaxed), 2 * round);
        // One for each call, and what the walkers did when they met it.
        assert!(host.exchanged.load(Ordering::Relaxed) <= round + 2);
    }
    over([node]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_refuses_exchanges_as_unknown_too_is_asked_once() {
    let host = forgetful(false).await;
    let node = discovering(1).limits(short_silence()).spawn().await.expect("it starts");
    let error = node.call::<_, u64>(host.addr.clone(), NEXT, &1_u64).await.expect_err("never");
    assert!(error.to_string().contains("unknown"), "{error}");
    assert_eq!(host.asked.load(Ordering::Relaxed), 1);
    over([node]).await;
}

/// A host that takes every second stream of the app, and none before it has exchanged catalogs with the node. (Since when does not count: the exchange that a refused node waits for may be one of
/// its walkers that had begun before.)
async fn reserved() -> (EndpointAddr, JoinHandle<()>) {
    let mut host = Host::bind(66).await;
    let addr = host.addr();
    let task = tokio::spawn(async move {
        let known = lore(host.id(), [record(&SecretKey::from_bytes(&[66; 32]), 1, None)]);
        let dialled = host.welcomed().await;
        let (mut is_refused, mut is_known, mut taken) = (false, false, Vec::new());
        loop {
            let mut stream = dialled.stream().await;
            if stream.header.protocol == EXCHANGE {
                answer(&mut stream.send, &mut stream.receive, known.clone()).await;
                is_known = true;
            } else if stream.header.protocol == ECHO && is_refused && is_known {
                is_refused = false;
                stream.answer(Answer::Ack).await;
                taken.push(stream);
            } else {
                is_refused |= stream.header.protocol == ECHO;
                stream.answer(Answer::Refuse(Code::UnknownPeer)).await;
            }
        }
    });
    (addr, task)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_opened_only_on_a_live_session_is_introduced_too_and_what_is_opened_eagerly_is_not()
{
    let (addr, _task) = reserved().await;
    let node = discovering(1).limits(short_silence()).spawn().await.expect("it starts");
    drop(node.open(addr.clone(), ECHO).await.expect("at the second try"));
    drop(node.try_open(addr.id, ECHO).await.expect("at the second try, on the same session"));
    let (_send, mut recv) = node.open_eager(addr.id, ECHO).await.expect("nobody was asked yet");
    let read = recv.read_chunk(1).await;
    assert_eq!(read.err(), Some(StreamError::Refused(Code::UnknownPeer)));
    node.sync_with(addr.id).await.expect("an exchange");
    let (_send, mut recv) = node.open_eager(addr.id, ECHO).await.expect("nobody was asked yet");
    recv.answered().await.expect("it is known by now");
    over([node]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bootstrap_that_is_alive_and_silent_keeps_nobody_from_the_others() {
    let mut silent = Host::bind(66).await;
    let addr = silent.addr();
    let hub = alone(1).await;
    let bob = from(2, hub.addr()).await;
    // It is silent for longer than this test may take.
    let mut limits = short_silence();
    limits.exchange.silence = SOON * 2;
    limits.exchange.deadline = SOON * 2;
    let alice = discovering(3).limits(limits).bootstrap(addr).bootstrap(hub.addr());
    let alice = alice.spawn().await.expect("it starts");
    let _link = silent.welcomed().await;
    all_know_all(&[hub.clone(), bob.clone(), alice.clone()]).await;
    over([hub, bob, alice]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bootstrap_that_knows_nothing_is_asked_less_and_less() {
    let mut host = Host::bind(66).await;
    let known = lore(host.id(), []);
    let node = discovering(1).limits(short_silence()).bootstrap(host.addr());
    let node = node.spawn().await.expect("it starts");
    let dialled = host.welcomed().await;
    let mut asked = 0;
    // Until it is quiet for a while.
    let pause = Duration::from_secs(1);
    while let Ok(mut stream) = tokio::time::timeout(pause, dialled.stream()).await {
        assert_eq!(stream.header.protocol, EXCHANGE);
        let told = answer(&mut stream.send, &mut stream.receive, known.clone()).await;
        assert!(told.is_complete(), "{told:?}");
        asked += 1;
        assert!(asked < 32, "it is asked for ever");
    }
    over([node]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_banned_peer_is_forgotten_and_not_visited_while_the_ban_lasts() {
    let bob = alone(2).await;
    let alice = from(3, bob.addr()).await;
    let hub = discovering(1).bootstrap(bob.addr()).bootstrap(alice.addr());
    let hub = hub.spawn().await.expect("it starts");
    all_know_all(&[hub.clone(), alice.clone(), bob.clone()]).await;
    let mut log = EventLog::of(&hub).await;
    hub.ban(bob.id(), SOON * 10).expect("it runs");
    let forgotten = NodeEvent::PeerDeparted { peer: bob.id(), reason: Removal::Forgotten };
    log.next(SOON, "bob is forgotten", |event| *event == forgotten).await;
    // Others go on telling of him, and something new at that.
    bob.join_topic(Topic::from_name("news")).expect("room for it");
    eventually(SOON, "alice knows the news", async || {
        alice.catalog().with_topic(&Topic::from_name("news")).next().is_some()
    })
    .await;
    let ignored = |metrics: &Metrics| metrics.discovery.ignored.get("banned").copied();
    hub.sync_with(alice.id()).await.expect("an exchange");
    eventually(SOON, "alice tells of bob", async || count(&hub, ignored).await > 0).await;
    // Whatever wakes the walkers, they leave him alone. Visits that had begun, his and theirs, began before that exchange.
    let mut log = EventLog::of(&hub).await;
    hub.join_topic(Topic::from_name("here")).expect("room for it");
    let again = |event: &NodeEvent| {
        let visit = (alice.id(), Direction::Outbound);
        matches!(event, NodeEvent::ExchangeStarted { peer, direction } if (*peer, *direction) == visit)
    };
    log.next(SOON, "a walker visits alice", again).await;
    assert!(!knows(&hub, bob.id()));
    let visited = |event: &NodeEvent| match event {
        NodeEvent::ExchangeStarted { peer, .. } | NodeEvent::PeerDiscovered { peer } => {
            *peer == bob.id()
        }
        _ => false,
    };
    assert_eq!(log.count(visited), 0);
    hub.unban(bob.id()).expect("it runs");
    bob.join_topic(Topic::from_name("more news")).expect("room for it");
    eventually(SOON, "bob is known again", async || knows(&hub, bob.id())).await;
    over([hub, alice, bob]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_point_at_a_victim_make_few_dials() {
    let mut limits = short_silence();
    limits.dial_deadline = Duration::from_millis(300);
    let node = discovering(1).limits(limits).spawn().await.expect("it starts");
    let victim = Nobody::bind();
    let target = victim.as_if(66).addrs.into_iter().next();
    let stranger = Stranger::bind(66).await;
    let guest = Guest::enter(&stranger, &node, hello(1, 1)).await;
    let known = lore(stranger.id(), (0..200).map(|n| record(&key(n), 1, target.clone())));
    assert!(exchange(&guest, known).await.is_complete());
    let dials = async || count(&node, |metrics| Some(metrics.dials_started)).await;
    // Until there were none for a while.
    let mut last = dials().await;
    loop {
        let more = async {
            eventually(SOON, "another dial", async || dials().await > last).await;
        };
        if tokio::time::timeout(Duration::from_secs(2), more).await.is_err() {
            break;
        }
        last = dials().await;
        // Each walker may fail four times, and a node without neighbours asks three.
        assert!(last <= 16, "{last} dials of a victim");
    }
    over([node]).await;
}
