//! The node that is to fail, its peers, a stream that has to live on, and the count of what was asked.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kinfolk::fault::{Crash, Faults, Point};
use kinfolk::{Limits, Node, NodeEvent, Options, Peer, RecvStream, SecretKey, SendStream};
use kinfolk_tests::support::events::EventLog;
use kinfolk_tests::support::node::{ECHO, NEXT, builder, quick_limits, serving};
use kinfolk_tests::support::wait::{eventually, within};
use tokio::task::JoinSet;

/// For what costs a few round trips, on a busy machine.
pub(crate) const SOON: Duration = Duration::from_secs(15);

/// The deadline of every ask while a fault is under way.
pub(crate) const ASK: Duration = Duration::from_secs(3);

/// The key of the node whose id is the largest of all here: strangers that dial it while it dials them are parked.
pub(crate) fn keys_in_order() -> Vec<u8> {
    let mut keys: Vec<u8> = (1..=6).collect();
    keys.sort_by_key(|key| SecretKey::from_bytes(&[*key; 32]).public());
    keys
}

pub(crate) fn limits() -> Limits {
    let mut limits = quick_limits();
    limits.drain_deadline = Duration::from_millis(500);
    limits.shutdown_deadline = Duration::from_secs(1);
    limits.unresponsive = Duration::from_secs(4);
    limits.gate.peer_rate = kinfolk::Rate::new(10_000, Duration::from_millis(1));
    limits
}

pub(crate) struct Scene {
    pub(crate) faults: Faults,
    /// The node that is to fail.
    pub(crate) alice: Node,
    /// The peer of the session that fails.
    pub(crate) bob: Node,
    /// The peer whose stream has to live on.
    pub(crate) carol: Node,
    pub(crate) log: EventLog,
    kept: (SendStream, RecvStream),
    /// Asks of alice's under way.
    asks: JoinSet<()>,
    asked: Arc<AtomicU64>,
}

impl Scene {
    /// What is armed strikes as soon as alice starts.
    pub(crate) async fn new(armed: &[(Point, Crash)]) -> Self {
        let keys = keys_in_order();
        let faults = Faults::default();
        for (point, crash) in armed {
            faults.arm(*point, *crash);
        }
        let alice = serving(builder(keys[5]).limits(limits()).faults(&faults)).await;
        let (bob, carol) = (serving(builder(keys[4])).await, serving(builder(keys[3])).await);
        let log = EventLog::of(&alice).await;
        let open = alice.open(carol.addr(), ECHO);
        let kept = within(SOON, "the stream that is kept", open).await.expect("opened");
        for peer in [&bob, &carol] {
            peer.add_address(alice.addr()).expect("an address");
            alice.add_address(peer.addr()).expect("an address");
        }
        let asked = Arc::new(AtomicU64::new(1));
        Self { faults, alice, bob, carol, log, kept, asks: JoinSet::new(), asked }
    }

    /// Counts one intent of alice's.
    pub(crate) fn note_ask(&self) {
        self.asked.fetch_add(1, Ordering::Relaxed);
    }

    /// Lets alice open a stream in the background; whatever becomes of it, it has to end by its deadline.
    pub(crate) fn ask(&mut self, peer: impl Into<Peer>) {
        self.note_ask();
        let (alice, peer) = (self.alice.clone(), peer.into());
        self.asks.spawn(async move {
            let options = Options::new().deadline(ASK);
            // The caller gives up half a second after the machine should have.
            let open = alice.open_with(peer, ECHO, options);
            let _ = within(ASK + SOON, "an outcome", open).await;
        });
    }

    /// Runs something of alice's in the background that may never end; it is dropped with the scene.
    pub(crate) fn run(&mut self, what: impl Future<Output = ()> + Send + 'static) {
        self.asks.spawn(async move {
            let _ = tokio::time::timeout(SOON, what).await;
        });
    }

    /// Every ask so far has ended.
    pub(crate) async fn asks_end(&mut self) {
        while let Some(ended) = within(2 * SOON, "all outcomes", self.asks.join_next()).await {
            ended.expect("within its deadline");
        }
    }

    /// Bytes go over the kept stream and come back.
    pub(crate) async fn kept_lives(&mut self) {
        self.kept.0.write_all(b"x").await.expect("the kept stream lives");
        let echoed = within(SOON, "the echo", self.kept.1.read_chunk(1)).await;
        assert_eq!(echoed.expect("the kept stream lives").as_deref(), Some(&b"x"[..]));
    }

    /// Alice is answered by bob, and bob by alice if she takes connections.
    pub(crate) async fn is_usable(&self, takes_connections: bool) {
        let options = || Options::new().deadline(SOON).idempotent();
        self.note_ask();
        let call = self.alice.call_with::<_, u64>(self.bob.addr(), NEXT, &1_u64, options());
        assert_eq!(within(2 * SOON, "bob's answer", call).await, Ok(2));
        if takes_connections {
            // On a session of its own.
            self.end_session_with_bob().await;
            let call = self.bob.call_with::<_, u64>(self.alice.addr(), NEXT, &2_u64, options());
            assert_eq!(within(2 * SOON, "alice's answer", call).await, Ok(3));
        }
    }

    pub(crate) async fn end_session_with_bob(&self) {
        self.alice.disconnect(self.bob.id()).await.expect("alice is up");
        self.only_kept_is_left().await;
    }

    /// No session is left but that of the kept stream.
    pub(crate) async fn only_kept_is_left(&self) {
        eventually(SOON, "alice has no session but carol's", async || {
            let sessions = self.alice.metrics().await.expect("alice is up").sessions;
            sessions.inbound + sessions.outbound <= 1 && sessions.closing == 0
        })
        .await;
    }

    /// Each ask of alice's has exactly one outcome.
    pub(crate) async fn asks_add_up(&self) {
        let asked = self.asked.load(Ordering::Relaxed);
        let metrics = within(SOON, "the numbers", self.alice.metrics()).await.expect("alive");
        let ended: u64 = metrics.intents_ended.values().sum();
        assert_eq!((ended, metrics.intents_waiting), (asked, 0), "{:?}", metrics.intents_ended);
    }

    pub(crate) fn restarts_of(&mut self, part: &str) -> usize {
        self.log
            .count(|event| matches!(event, NodeEvent::Restarted { actor, .. } if *actor == part))
    }

    /// Everyone goes, and nothing is left of them: no task of this runtime.
    pub(crate) async fn over(self) {
        let Self { alice, bob, carol, kept, mut asks, .. } = self;
        drop(kept);
        asks.shutdown().await;
        for node in [&alice, &bob, &carol] {
            within(3 * SOON, "a shutdown", node.shutdown()).await;
        }
        drop((alice, bob, carol));
        nothing_is_left().await;
    }
}

/// No task of this runtime is left.
pub(crate) async fn nothing_is_left() {
    let alive = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    eventually(SOON, "no task is left", async || alive() == 0).await;
}
