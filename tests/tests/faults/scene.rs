//! The node that is to fail, its peers, a stream that has to live on, and the count of what was asked.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kinfolk::fault::{Crash, Faults, Point};
use kinfolk::{
    ExchangeError, ExchangeReport, Limits, Node, NodeBuilder, NodeEvent, Options, Peer, RecvStream,
    SecretKey, SendStream,
};
use kinfolk_tests::support::events::EventLog;
use kinfolk_tests::support::node::{ECHO, NEXT, builder, quick_limits, serving};
use kinfolk_tests::support::wait::{eventually, within};
use tokio::task::JoinSet;

use crate::flows::Flows;

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
    // For nodes that discover: one walker, so that what happens is what was provoked.
    limits.walkers = 1;
    limits.errand_links = 1;
    limits.walk.longest_wait = Duration::from_secs(1);
    limits.walk.revisit = Duration::from_secs(1);
    limits.exchange.deadline = Duration::from_secs(1);
    limits.exchange.silence = Duration::from_secs(1);
    limits
}

/// A directory that is gone with the scene.
pub(crate) struct Scratch(pub(crate) PathBuf);

impl Scratch {
    pub(crate) fn new() -> Self {
        static MADE: AtomicU64 = AtomicU64::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let name = format!("kinfolk-faults-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).expect("a directory");
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub(crate) struct Scene {
    _store: Option<Scratch>,
    pub(crate) faults: Faults,
    /// The node that is to fail.
    pub(crate) alice: Node,
    /// The peer of the session that fails.
    pub(crate) bob: Node,
    /// The peer whose stream has to live on.
    pub(crate) carol: Node,
    /// A peer that discovers, once it is needed.
    dave: Option<Node>,
    /// Typed streams between alice and dave, once they are needed.
    pub(crate) flows: Option<Flows>,
    pub(crate) log: EventLog,
    /// Whether alice discovers.
    discovers: bool,
    /// What came of the exchange that alice asked for.
    synced: Arc<Mutex<Option<Result<ExchangeReport, ExchangeError>>>>,
    kept: (SendStream, RecvStream),
    /// Asks of alice's under way.
    asks: JoinSet<()>,
    asked: Arc<AtomicU64>,
}

impl Scene {
    /// What is armed strikes as soon as alice starts.
    pub(crate) async fn new(armed: &[(Point, Crash)]) -> Self {
        Self::with(armed, false, false).await
    }

    /// As [`new`](Self::new); alice discovers, and keeps something on the disk, if she is to. Bob and carol never do.
    pub(crate) async fn with(armed: &[(Point, Crash)], discovers: bool, keeps: bool) -> Self {
        let keys = keys_in_order();
        let faults = Faults::default();
        for (point, crash) in armed {
            faults.arm(*point, *crash);
        }
        let alice = builder(keys[5]).limits(limits()).faults(&faults).discovery(discovers);
        let store = keeps.then(Scratch::new);
        let alice = match &store {
            Some(store) => alice.state_dir(store.0.join("alice")),
            None => alice,
        };
        let alice = serving(alice).await;
        let (bob, carol) = (serving(builder(keys[4])).await, serving(builder(keys[3])).await);
        let log = EventLog::of(&alice).await;
        let open = alice.open(carol.addr(), ECHO);
        let kept = within(SOON, "the stream that is kept", open).await.expect("opened");
        for peer in [&bob, &carol] {
            peer.add_address(alice.addr()).expect("an address");
            alice.add_address(peer.addr()).expect("an address");
        }
        let asked = Arc::new(AtomicU64::new(1));
        if discovers {
            eventually(SOON, "carol was asked who she is", async || {
                let metrics = alice.metrics().await.expect("alice is up");
                !metrics.discovery.exchanges.is_empty()
            })
            .await;
        }
        let (asks, dave, synced) = (JoinSet::new(), None, Arc::default());
        Self {
            _store: store,
            faults,
            alice,
            bob,
            carol,
            dave,
            flows: None,
            log,
            discovers,
            synced,
            kept,
            asks,
            asked,
        }
    }

    /// A builder of the peer that discovers.
    pub(crate) fn dave_builder() -> NodeBuilder {
        builder(keys_in_order()[2]).limits(limits()).discovery(true)
    }

    /// The peer that discovers.
    pub(crate) async fn dave(&mut self) -> Node {
        if self.dave.is_none() {
            self.start_dave(Self::dave_builder()).await;
        }
        self.dave.clone().expect("it is there")
    }

    /// Starts that peer, with something of its own.
    pub(crate) async fn start_dave(&mut self, builder: NodeBuilder) {
        self.dave = Some(builder.spawn().await.expect("it starts"));
    }

    /// Dave goes; the next one is another.
    pub(crate) async fn lose_dave(&mut self) {
        let dave = self.dave.take().expect("it is there");
        within(3 * SOON, "a shutdown", dave.shutdown()).await;
    }

    /// Lets alice and dave meet by an exchange, in the background; it has to end, whatever becomes of it.
    pub(crate) async fn meet(&mut self) {
        let (alice, dave, synced) = (self.alice.clone(), self.dave().await, self.synced.clone());
        self.asks.spawn(async move {
            let result = within(SOON, "the end of an exchange", alice.sync_with(dave.addr())).await;
            *synced.lock().expect("whole") = Some(result);
        });
    }

    /// What came of the exchange.
    pub(crate) fn synced(&self) -> Option<Result<ExchangeReport, ExchangeError>> {
        self.synced.lock().expect("whole").clone()
    }

    /// Alice learns of dave, if she discovers.
    pub(crate) async fn discovers_on(&mut self) {
        if !self.discovers {
            return;
        }
        let dave = self.dave().await;
        eventually(SOON, "an exchange", async || self.alice.sync_with(dave.addr()).await.is_ok())
            .await;
        assert!(self.alice.catalog().get(&dave.id()).is_some());
        let alice = self.alice.id();
        eventually(SOON, "dave's half of it", async || dave.catalog().get(&alice).is_some()).await;
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

    /// No session is left but that of the kept stream; of a node that discovers, none with bob.
    pub(crate) async fn only_kept_is_left(&self) {
        if self.discovers {
            let bob = self.bob.id();
            return eventually(SOON, "alice has no session with bob", async || {
                let why = self.alice.why(bob).await.expect("alice is up");
                why.is_none_or(|why| why.link.is_none())
            })
            .await;
        }
        eventually(SOON, "alice has no session but carol's", async || {
            let sessions = self.alice.metrics().await.expect("alice is up").sessions;
            sessions.inbound + sessions.outbound <= 1 && sessions.closing == 0
        })
        .await;
    }

    /// Each ask of alice's has exactly one outcome. Exchanges and announcements ask too, for streams of their own.
    pub(crate) async fn asks_add_up(&self) {
        let asked = self.asked.load(Ordering::Relaxed);
        if self.discovers {
            return eventually(SOON, "nothing waits", async || {
                let metrics = self.alice.metrics().await.expect("alive");
                let ended: u64 = metrics.intents_ended.values().sum();
                ended >= asked && metrics.intents_waiting == 0
            })
            .await;
        }
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
        let Self { alice, bob, carol, dave, flows, kept, mut asks, .. } = self;
        drop((kept, flows));
        asks.shutdown().await;
        for node in [&alice, &bob, &carol].into_iter().chain(&dave) {
            within(3 * SOON, "a shutdown", node.shutdown()).await;
        }
        drop((alice, bob, carol, dave));
        nothing_is_left().await;
    }
}

/// No task of this runtime is left.
pub(crate) async fn nothing_is_left() {
    let alive = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    eventually(SOON, "no task is left", async || alive() == 0).await;
}
