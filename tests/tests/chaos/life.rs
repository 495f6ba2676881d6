//! One node from a start to an end, on a thread of its own, with the app that uses it and what that app counts.

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use kinfolk::{
    Code, EndpointAddr, EndpointId, Hold, Limits, LinkEnd, Metrics, Node, NodeBuilder, NodeEvent,
    Outcome, SecretKey, Terminal,
};
use kinfolk_tests::support::node::{Mortal, builder, quick_limits, real_addr};
use kinfolk_tests::support::wait::{eventually, within};

use tokio::sync::broadcast::{Receiver, error::RecvError};

use super::ledger::{Ledger, Way, lock};
use super::plan::NODES;
use super::traffic::{Bytes, PIPE, TASK, pipe, task};

/// How long a node may take for what costs no more than a few round trips.
const PATIENCE: Duration = Duration::from_secs(15);

/// How long iroh's own tasks may outlast a node where no pause was longer than this: three probe timeouts of its slowest path.
///
/// A probe timeout is the smoothed round trip and four times its variation, neither of which can be more than the longest round trip that was
/// seen. That one is of a packet which went out before a pause and whose answer was read after it: whoever sent it has given up by the idle
/// timeout, or was paused itself. As the sender's estimate begins with it, and its peer may be gone, it is no rare case: three times the
/// timeout are nine times the pause then (seen: 38 s after 4 s), and more after the next few quick answers.
pub fn last_task(longest_pause: Duration) -> Duration {
    3 * (1 + 4) * (limits().idle_timeout + longest_pause)
}

pub fn limits() -> Limits {
    let mut limits = quick_limits();
    limits.linger = Duration::from_secs(1);
    limits.intent_deadline = Duration::from_secs(4);
    limits.drain_deadline = Duration::from_secs(2);
    // A peer that was out of reach for long is to be back soon after the last fault.
    limits.redial_max = Duration::from_secs(8);
    limits
}

/// The key of a node, in all its lives.
pub fn id(index: usize) -> EndpointId {
    SecretKey::from_bytes(&[key(index); 32]).public()
}

fn key(index: usize) -> u8 {
    u8::try_from(index + 1).expect("fewer nodes than bytes")
}

/// What the app of a life has asked for, and what came of it.
#[derive(Debug, Default)]
pub struct Asks {
    begun: AtomicU64,
    ended: Mutex<BTreeMap<&'static str, u64>>,
    /// Tasks of the app that run.
    under_way: AtomicUsize,
    pub bytes: Arc<Bytes>,
}

impl Asks {
    pub fn begin(&self) {
        self.begun.fetch_add(1, Ordering::Relaxed);
    }

    pub fn end(&self, outcome: &Outcome) {
        *lock(&self.ended).entry(outcome.name()).or_default() += 1;
    }

    pub fn ended(&self) -> BTreeMap<&'static str, u64> {
        lock(&self.ended).clone()
    }
}

/// A running node.
pub struct Life {
    index: usize,
    mortal: Mortal,
    pub asks: Arc<Asks>,
    holds: Arc<Mutex<Vec<Hold>>>,
}

impl Life {
    /// Starts the node, which knows where these peers are.
    pub async fn begin(index: usize, peers: Vec<EndpointAddr>, ledger: &Arc<Ledger>) -> Self {
        let known = builder(key(index)).limits(limits());
        let known = peers.into_iter().fold(known, NodeBuilder::peer);
        let mortal = Mortal::spawn(known).await;
        let asks = Arc::new(Asks::default());
        let services = [(TASK, task(ledger)), (PIPE, pipe(ledger, &asks.bytes))];
        for (protocol, service) in services {
            mortal.node.serve(protocol, service).await.expect("a new protocol");
        }
        let events = mortal.node.events().await.expect("the node is up");
        mortal.runtime.spawn(watch(index, events, Arc::clone(ledger)));
        Self { index, mortal, asks, holds: Arc::default() }
    }

    pub fn node(&self) -> &Node {
        &self.mortal.node
    }

    pub fn address(&self) -> SocketAddr {
        real_addr(&self.mortal.node)
    }

    pub fn pause(&self) -> mpsc::Sender<()> {
        self.mortal.pause()
    }

    /// Lets the app do something, on the node's own thread. One thing at a time happens there, so that what the app sees of a hold
    /// is so until its next await.
    pub fn run<F: Future<Output = ()> + Send + 'static>(
        &self,
        act: impl FnOnce(Node, Arc<Asks>) -> F,
    ) {
        let under_way = UnderWay::enter(&self.asks);
        let act = act(self.mortal.node.clone(), Arc::clone(&self.asks));
        self.mortal.runtime.spawn(async move {
            act.await;
            drop(under_way);
        });
    }

    pub fn hold(&self, peer: usize) {
        let holds = Arc::clone(&self.holds);
        self.run(async move |node, asks| {
            asks.begin();
            lock(&holds).push(node.hold(id(peer)));
        });
    }

    /// Drops one hold.
    pub fn release(&self, which: usize) {
        let holds = Arc::clone(&self.holds);
        self.run(async move |_, asks| {
            let mut holds = lock(&holds);
            if !holds.is_empty() {
                let which = which % holds.len();
                release(holds.swap_remove(which), &asks);
            }
        });
    }

    /// Drops all holds.
    fn release_all(&self) {
        let holds = Arc::clone(&self.holds);
        self.run(async move |_, asks| {
            for hold in lock(&holds).drain(..) {
                release(hold, &asks);
            }
        });
    }

    /// The peers that are held, once for each hold.
    pub fn held(&self) -> Vec<EndpointId> {
        let holds = lock(&self.holds);
        holds.iter().filter(|hold| hold.outcome().is_none()).map(Hold::peer).collect()
    }

    pub fn is_at_rest(&self) -> bool {
        self.asks.under_way.load(Ordering::Relaxed) == 0
    }

    pub async fn metrics(&self) -> Metrics {
        let metrics = within(PATIENCE, &self.says("the numbers"), self.mortal.node.metrics()).await;
        metrics.expect("the node is up")
    }

    /// Ends it without a word.
    pub async fn kill(self) {
        self.mortal.kill().await;
    }

    /// Takes leave, asserts that every ask has its outcome and that nothing is left, and returns the node's last numbers.
    ///
    /// While a peer is silent iroh's own tasks outlast the node by far; only where all are within reach it is worth while to wait for them, and
    /// to say for how long.
    pub async fn end(self, last_task: Option<Duration>) -> Metrics {
        let node = self.mortal.node.clone();
        let drained = within(PATIENCE, &self.says("the drain"), node.drain()).await;
        drained.expect("the node is up");
        self.release_all();
        eventually(PATIENCE, &self.says("all asks have ended"), async || self.is_at_rest()).await;
        eventually(PATIENCE, &self.says("all gauges are zero"), async || {
            is_idle(&self.metrics().await)
        })
        .await;
        let metrics = self.metrics().await;
        self.assert_outcomes(&metrics);
        let deadline = limits().shutdown_deadline + Duration::from_secs(1);
        let end = within(deadline, &self.says("the shutdown"), node.shutdown()).await;
        assert_eq!(end, Terminal::Shutdown, "node {}", self.index);
        if let Some(deadline) = last_task {
            let tasks = || self.mortal.runtime.metrics().num_alive_tasks();
            eventually(deadline, &self.says("no task is left"), async || tasks() == 0).await;
        }
        self.mortal.kill().await;
        metrics
    }

    fn assert_outcomes(&self, metrics: &Metrics) {
        let ended = self.asks.ended();
        let mut counted = metrics.intents_ended.clone();
        counted.retain(|_, count| *count > 0);
        assert_eq!(counted, ended, "node {}: counted by the node, and by its app", self.index);
        let begun = self.asks.begun.load(Ordering::Relaxed);
        assert_eq!(begun, ended.values().sum::<u64>(), "node {}: asked and ended", self.index);
        let load = |bytes: &AtomicU64| bytes.load(Ordering::Relaxed);
        let seen = (load(&self.asks.bytes.sent), load(&self.asks.bytes.received));
        let pipe = metrics.protocols.get(PIPE.as_str()).copied().unwrap_or_default();
        assert_eq!((pipe.bytes_sent, pipe.bytes_received), seen, "node {}: bytes", self.index);
    }

    fn says(&self, what: &str) -> String {
        format!("node {}: {what}", self.index)
    }
}

/// Drops a hold and counts how it ended, which nothing can change meanwhile.
fn release(hold: Hold, asks: &Asks) {
    asks.end(&hold.outcome().unwrap_or(Outcome::Cancelled));
    drop(hold);
}

/// Nothing that is done to a node makes a part of it fail.
async fn watch(index: usize, mut events: Receiver<NodeEvent>, ledger: Arc<Ledger>) {
    let mut established = HashSet::new();
    loop {
        match events.recv().await {
            Ok(
                event @ (NodeEvent::Restarted { .. }
                | NodeEvent::SessionPanicked { .. }
                | NodeEvent::HandlerPanicked { .. }
                | NodeEvent::PeerQuarantined { .. }),
            ) => ledger.blame(format!("node {index}: {event:?}")),
            Ok(NodeEvent::SessionEstablished { link, .. }) => {
                established.insert(link);
            }
            Ok(NodeEvent::SessionEnded { peer, link, end }) => {
                let writer = (0..NODES).find(|node| id(*node) == peer).expect("one of us");
                if let (true, Some(how)) = (established.remove(&link), cut(end)) {
                    ledger.cut(Way { reader: index, writer }, how);
                }
            }
            Ok(_) => {}
            Err(RecvError::Lagged(missed)) => {
                ledger.blame(format!("node {index}: {missed} events were missed"));
            }
            Err(RecvError::Closed) => return,
        }
    }
}

/// How a link was cut, if it did not end in agreement or without ever having served.
fn cut(end: LinkEnd) -> Option<&'static str> {
    match end {
        LinkEnd::Drained => None,
        LinkEnd::Closed(code) | LinkEnd::ClosedByPeer(code) => {
            (!matches!(code, Code::Ok | Code::Idle | Code::Duplicate)).then(|| code.name())
        }
        end => Some(end.name()),
    }
}

fn is_idle(metrics: &Metrics) -> bool {
    let sessions = &metrics.sessions;
    let of_sessions = [
        sessions.live,
        sessions.inbound,
        sessions.outbound,
        sessions.dialling,
        sessions.parked,
        sessions.closing,
    ];
    let others = [
        metrics.intents_waiting,
        metrics.handshakes,
        metrics.manager_queue,
        metrics.streams_inbound,
        metrics.peers.connected,
        metrics.peers.waiting_to_dial,
        metrics.peers.backing_off,
    ];
    let active = metrics.protocols.values().map(|protocol| protocol.active);
    of_sessions.into_iter().chain(others).chain(active).all(|gauge| gauge == 0)
}

struct UnderWay(Arc<Asks>);

impl UnderWay {
    fn enter(asks: &Arc<Asks>) -> Self {
        asks.under_way.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(asks))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}
