//! Too many, too fast.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use iroh::endpoint::VarInt;
use kinfolk::fault::{Crash, Faults, Point};
use kinfolk::{Code, Metrics, Node, Rate};
use kinfolk_core::wire::Control;
use kinfolk_tests::support::guest::{Guest, alpn, bytes, hello, knock};
use kinfolk_tests::support::node::{
    NETWORK, NEXT, builder, connect, down, quick_limits, serving, watching,
};
use kinfolk_tests::support::stranger::{Stranger, say};
use kinfolk_tests::support::wait::{eventually, within};
use tokio::task::JoinSet;

use crate::scene::{HONEST, SOON, closed, limits};

#[tokio::test]
async fn a_reconnect_loop_of_one_id_is_refused_before_any_actor_hears_of_it() {
    let mut limits = limits();
    limits.gate.peer_rate = Rate::new(10, Duration::from_secs(60));
    let faults = Faults::default();
    let node = serving(builder(1).limits(limits).faults(&faults)).await;
    let mallory = Stranger::bind(66).await;
    for n in 1..=10 {
        let guest = Guest::enter(&mallory, &node, hello(1, n)).await;
        guest.connection.close(VarInt::from_u32(0), b"");
    }
    // A stall of no time harms nothing, and tells that somebody came by: at the manager, or at a session's start.
    let points = [Point::ManagerArrived, Point::SessionPreStart];
    for point in points {
        faults.arm(point, Crash::Stall(Duration::ZERO));
    }
    for n in 11..=110 {
        let (connection, ..) = knock(&mallory, &node, hello(1, n)).await;
        assert_eq!(closed(&connection).await, Some(Code::Busy));
    }
    assert_eq!(points.map(|point| faults.strikes(point)), [0, 0]);
    assert_eq!(node.metrics().await.expect("alive").sessions.established, 10);
    let honest = serving(builder(2)).await;
    let call = honest.call::<_, u64>(node.addr(), NEXT, &1_u64);
    assert_eq!(within(HONEST, "the honest peer's answer", call).await, Ok(2));
    let metrics = node.metrics().await.expect("alive");
    assert_eq!(metrics.incoming_refused.get("peer_rate"), Some(&100));
    assert_eq!(points.map(|point| faults.strikes(point)), [1, 1], "the honest peer comes by");
}

/// Strangers of one address that dial as fast as they can, until it is dropped.
struct Flood {
    over: Arc<AtomicBool>,
    attackers: JoinSet<()>,
}

impl Flood {
    async fn of(node: &Node, strangers: u8) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let mut attackers = JoinSet::new();
        for key in 0..strangers {
            let stranger = Stranger::builder(100 + key)
                .handshake_deadline(Duration::from_millis(500))
                .bind()
                .await;
            let (node, over) = (node.addr(), Arc::clone(&over));
            attackers.spawn(async move {
                let mut held = Vec::new();
                for n in 1.. {
                    if over.load(Ordering::Relaxed) {
                        break;
                    }
                    // Half of them never say hello.
                    if let Ok(connection) = stranger.connect(node.clone(), &alpn()).await {
                        let hello = bytes(&Control::Hello(hello(1, n)));
                        let words = if n % 2 == 0 { &hello[..] } else { b"" };
                        let stream = say(&connection, words).await;
                        held.push((connection, stream));
                    }
                }
                drop(held);
                stranger.close().await;
            });
        }
        Self { over, attackers }
    }

    async fn ends(mut self) {
        self.over.store(true, Ordering::Relaxed);
        within(SOON, "the attackers leave", async {
            while self.attackers.join_next().await.is_some() {}
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_from_one_address_takes_its_share_and_no_more() {
    let mut limits = limits();
    limits.gate.exempt_loopback = false;
    let node = serving(builder(1).limits(limits)).await;
    let flood = Flood::of(&node, 32).await;
    let is_pushed_back = |metrics: &Metrics| {
        let refused = &metrics.incoming_refused;
        ["address_rate", "address_live"].iter().any(|reason| refused.contains_key(reason))
    };
    eventually(SOON, "the flood is pushed back", async || {
        is_pushed_back(&node.metrics().await.expect("alive"))
    })
    .await;

    // A new peer of another address gets in with its first dial, however long a busy machine takes over it.
    let elsewhere = (Ipv4Addr::new(127, 0, 0, 2), 0).into();
    let mut patient = quick_limits();
    patient.dial_deadline = SOON;
    patient.hello_deadline = SOON;
    let honest = Node::builder(NETWORK).bind_addr(elsewhere).limits(patient);
    let honest = serving(honest).await;
    let call = honest.call::<_, u64>(node.addr(), NEXT, &1_u64);
    assert_eq!(within(SOON, "the honest answer", call).await, Ok(2));
    assert_eq!(honest.metrics().await.expect("alive").dials_started, 1);

    for _ in 0..20 {
        let metrics = node.metrics().await.expect("alive");
        // Eight each address may have; one of those counted here is the honest peer's.
        assert!(metrics.sessions.inbound <= 8 + 1, "{metrics:?}");
        // A handshake that is over is counted until the accept loop has seen that.
        assert!(metrics.handshakes <= 2 * 8, "{metrics:?}");
        let call = honest.call::<_, u64>(node.id(), NEXT, &1_u64);
        assert_eq!(within(HONEST, "the honest answer", call).await, Ok(2));
    }
    flood.ends().await;
    eventually(SOON, "nothing is left of them", async || {
        let metrics = node.metrics().await.expect("alive");
        metrics.handshakes == 0 && metrics.sessions.inbound == 1
    })
    .await;
}

#[tokio::test]
async fn strangers_that_call_push_nobody_out_of_the_address_book_whom_the_node_has_reached() {
    let mut limits = limits();
    limits.addresses.peers = 4;
    let node = serving(builder(1).limits(limits)).await;
    let friend = serving(builder(2)).await;
    let mut status = watching(&node, friend.id()).await;
    let call_friend = async |number: u64| {
        let call = node.call::<_, u64>(friend.id(), NEXT, &number);
        assert_eq!(within(HONEST, "the friend's answer", call).await, Ok(number + 1));
    };
    let part = async |status: &mut _| {
        within(HONEST, "the parting", node.disconnect(friend.id())).await.expect("alive");
        down(status).await;
    };
    // The friend calls first: that is how the node knows where it is. Then it is dialled there.
    connect(&friend, &node).await;
    part(&mut status).await;
    call_friend(1).await;
    for key in 100..110 {
        let stranger = Stranger::bind(key).await;
        let guest = Guest::enter(&stranger, &node, hello(1, 1)).await;
        guest.connection.close(VarInt::from_u32(0), b"");
    }
    part(&mut status).await;
    call_friend(2).await;
    let addresses = node.metrics().await.expect("alive").addresses;
    assert_eq!((addresses.peers, addresses.evicted, addresses.refused), (4, 7, 0));
}
