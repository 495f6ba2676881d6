//! Nodes for tests: on loopback, with times short enough to wait for, and the services that most tests use.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Once, mpsc};
use std::time::Duration;

use kinfolk::error::HandlerError;
use kinfolk::{
    DownReason, EndpointAddr, EndpointId, Limits, LinkId, Node, NodeBuilder, PeerStatus,
    ProtocolName, SecretKey, Service,
};
use tokio::runtime::Handle;
use tokio::sync::{mpsc as unbounded, oneshot, watch};

use super::impair::{Impairment, Pair};
use super::wait::within;

/// The network that all test nodes are of, unless a test says otherwise.
pub const NETWORK: &str = "kinfolk-tests";

/// Sends back what it gets, to the end.
pub const ECHO: ProtocolName = ProtocolName::from_static("echo/1");

/// Answers a number with its successor.
pub const NEXT: ProtocolName = ProtocolName::from_static("next/1");

/// Limits with short times. Counts are the defaults.
pub fn quick_limits() -> Limits {
    let mut limits = Limits::default();
    limits.dial_deadline = Duration::from_secs(2);
    limits.hello_deadline = Duration::from_secs(2);
    limits.idle_timeout = Duration::from_secs(2);
    limits.keep_alive = Duration::from_millis(500);
    limits.header_deadline = Duration::from_secs(1);
    limits.linger = Duration::from_secs(5);
    limits.drain_deadline = Duration::from_secs(3);
    limits.shutdown_deadline = Duration::from_secs(5);
    limits.intent_deadline = Duration::from_secs(10);
    limits
}

/// A builder of a node with this key on a free loopback port, with [`quick_limits`] and without discovery: so that all that happens is the
/// test's doing.
pub fn builder(key: u8) -> NodeBuilder {
    builder_at(key, ([127, 0, 0, 1], 0).into())
}

/// Has panics tell what and where, and nothing else. The first backtrace of a process reads all symbols, which takes seconds on a busy machine:
/// in a test that wants a panic it would stop the nodes on that thread for longer than a connection may be silent.
fn shorten_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| std::panic::set_hook(Box::new(|panic| eprintln!("{panic}"))));
}

/// As [`builder`], bound to this address.
pub fn builder_at(key: u8, address: SocketAddr) -> NodeBuilder {
    shorten_panics();
    Node::builder(NETWORK)
        .secret_key(SecretKey::from_bytes(&[key; 32]))
        .bind_addr(address)
        .limits(quick_limits())
        .discovery(false)
}

/// An address that a node which ended finds free again, whatever else binds ports meanwhile.
///
/// A port that the kernel chose is free for others once its node is gone. This one is below those that it chooses from, and of a loopback
/// address that belongs to this process.
///
/// # Panics
/// When it has given out twelve thousand.
pub fn address_to_return_to() -> SocketAddr {
    static NEXT_PORT: AtomicU16 = AtomicU16::new(20_000);
    let port = NEXT_PORT.fetch_add(1, Ordering::Relaxed);
    assert!(port < 32_000, "the ports from which the kernel chooses begin soon");
    let [.., high, low] = std::process::id().to_be_bytes();
    // 127.77.0.0/16 is the relays'.
    SocketAddr::from(([127, 78, high, low], port))
}

/// A node with this key that serves [`ECHO`] and [`NEXT`].
pub async fn node(key: u8) -> Node {
    serving(builder(key)).await
}

/// As [`node`], with other limits.
pub async fn node_with(key: u8, change: impl FnOnce(&mut Limits)) -> Node {
    let mut limits = quick_limits();
    change(&mut limits);
    serving(builder(key).limits(limits)).await
}

/// Spawns the node and lets it serve [`ECHO`] and [`NEXT`].
pub async fn serving(builder: NodeBuilder) -> Node {
    let node = builder.spawn().await.expect("the node starts");
    node.serve(ECHO, echo()).await.expect("a new protocol");
    node.serve(NEXT, next()).await.expect("a new protocol");
    node
}

/// The service behind [`ECHO`].
pub fn echo() -> Service {
    Service::stream(|mut stream| async move {
        while let Some(chunk) = stream.recv.read_chunk(64 * 1024).await? {
            stream.send.write_chunk(chunk).await?;
        }
        stream.send.finish()?;
        Ok(())
    })
}

/// The service behind [`NEXT`].
pub fn next() -> Service {
    Service::call(|_peer, number: u64| async move { Ok(number.wrapping_add(1)) })
}

/// A service that never answers, and tells of each request that came and was dropped.
pub fn never() -> (Service, unbounded::UnboundedReceiver<&'static str>) {
    struct Told(unbounded::UnboundedSender<&'static str>);
    impl Drop for Told {
        fn drop(&mut self) {
            let _ = self.0.send("dropped");
        }
    }
    let (tell, told) = unbounded::unbounded_channel();
    let service = Service::call(move |_peer, _request: u64| {
        let _ = tell.send("came");
        let told = Told(tell.clone());
        async move {
            let _told = told;
            std::future::pending::<Result<u64, HandlerError>>().await
        }
    });
    (service, told)
}

/// How long a node may take for what costs no more than a few round trips, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where the node's socket is bound.
pub fn real_addr(node: &Node) -> SocketAddr {
    *node.addr().ip_addrs().next().expect("a node is bound to an address")
}

/// Asks for the successor of 1, which makes a link if there is none, and returns the link.
pub async fn connect(node: &Node, other: &Node) -> LinkId {
    let mut status = watching(node, other.id()).await;
    let asked = node.call::<_, u64>(other.addr(), NEXT, &1_u64);
    assert_eq!(within(PATIENCE, "an answer", asked).await, Ok(2));
    // The answer may overtake the news of the session.
    up(&mut status).await
}

/// The link that is live now.
pub async fn link(node: &Node, peer: EndpointId) -> Option<LinkId> {
    let why = within(PATIENCE, "why", node.why(peer)).await.expect("the node is up");
    why.and_then(|why| why.link)
}

/// Waits until a link with the peer is live, and returns it.
pub async fn live(node: &Node, peer: EndpointId) -> LinkId {
    up(&mut watching(node, peer).await).await
}

/// Waits until a link with a watched peer is live, and returns it.
pub async fn up(status: &mut watch::Receiver<PeerStatus>) -> LinkId {
    let status = within(PATIENCE, "a session", status.wait_for(PeerStatus::is_up)).await;
    match *status.expect("the node is up") {
        PeerStatus::Up { link, .. } => link,
        PeerStatus::Down { .. } => panic!("waited for a session"),
    }
}

/// Watches a peer.
pub async fn watching(node: &Node, peer: EndpointId) -> watch::Receiver<PeerStatus> {
    within(PATIENCE, "a watch", node.monitor(peer)).await.expect("the node is up")
}

/// Waits until no link with a watched peer is live, and says why.
pub async fn down(status: &mut watch::Receiver<PeerStatus>) -> Option<DownReason> {
    let status = within(PATIENCE, "the end", status.wait_for(|status| !status.is_up())).await;
    match *status.expect("the node is up") {
        PeerStatus::Down { reason } => reason,
        PeerStatus::Up { .. } => panic!("waited for the end of a session"),
    }
}

/// Puts a relay between two nodes, and tells each that the other one is there.
///
/// # Panics
/// When a node is not bound to IPv4 loopback.
pub fn relay(seed: u64, a: &Node, b: &Node) -> Pair {
    let pair = Impairment::new(seed).link(real_addr(a), real_addr(b)).expect("on loopback");
    for (node, peer, address) in [(a, b, pair.addr_of_b()), (b, a, pair.addr_of_a())] {
        let address = EndpointAddr::new(peer.id()).with_ip_addr(address);
        node.add_address(address).expect("the node is up");
    }
    pair
}

/// A node on a thread and a runtime of its own, so that it can die without a word to anyone: when this is dropped.
#[derive(Debug)]
pub struct Mortal {
    /// The node.
    pub node: Node,
    /// Its runtime, which runs nothing else. What is spawned here dies with the node, as an app would.
    pub runtime: Handle,
    thread: std::thread::JoinHandle<()>,
    life: oneshot::Sender<()>,
}

impl Mortal {
    /// As [`serving`].
    ///
    /// # Panics
    /// When the node does not start.
    pub async fn spawn(builder: NodeBuilder) -> Self {
        let (ready, started) = oneshot::channel();
        let (life, mut death) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.expect("a runtime");
            runtime.block_on(async move {
                let _ = ready.send((serving(builder).await, Handle::current()));
                let _ = (&mut death).await;
            });
            // What the node would still say goes with its tasks.
            drop(runtime);
        });
        let started = within(PATIENCE, "a node", started).await;
        let (node, runtime) = started.expect("the node starts");
        Self { node, runtime, thread, life }
    }

    /// Blocks the node's only thread, so that nothing of it is polled, until the answer is dropped.
    #[must_use = "the node goes on when this is dropped"]
    pub fn pause(&self) -> mpsc::Sender<()> {
        let (paused, goes_on) = mpsc::channel();
        self.runtime.spawn(async move { _ = goes_on.recv() });
        paused
    }

    /// Returns when nothing of the node is left.
    ///
    /// # Panics
    /// When its thread has panicked.
    pub async fn kill(self) {
        drop(self.life);
        let gone = tokio::task::spawn_blocking(|| self.thread.join());
        let gone = within(PATIENCE, "the end of the node's thread", gone).await;
        gone.expect("the join runs").expect("the thread ends well");
    }
}
