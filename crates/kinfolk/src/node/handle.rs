//! The handle of a node: what an app calls. Every clone is the same node.

use std::cmp::Reverse;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use iroh::{EndpointAddr, EndpointId};
use kinfolk_core::catalog::{Entry, Snapshot};
use kinfolk_core::id::ProtocolName;
use kinfolk_core::peer_link::Why;
use kinfolk_core::peer_table::PeerSummary;
use kinfolk_core::record::{Reach, Topic};
use kinfolk_core::secret_topic::SecretTopic;
use kinfolk_core::ticket::{TICKET_ADDRESSES_MAX, Ticket, TicketError};
use kinfolk_core::wire::StreamMode;
use ractor::ActorRef;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{broadcast, watch};

use crate::context::Context;
use crate::discovery::exchange::{ExchangeError, ExchangeReport};
use crate::discovery::find::Find;
use crate::error::{
    AddressError, CallError, NodeClosed, OpenError, SecretTopicError, ServeError, TopicError,
};
use crate::events::NodeEvent;
use crate::metrics::Metrics;
use crate::monitor::PeerStatus;
use crate::node::actor::NodeMessage;
use crate::node::builder::NodeBuilder;
use crate::node::hold::Hold;
use crate::node::terminal::Terminal;
use crate::peers::manager::PeerManagerMessage;
use crate::protocol::any;
use crate::protocol::open::{self, Options, Peer};
use crate::protocol::responses::{self, Responses};
use crate::protocol::service::Service;
use crate::protocol::stream::{RecvStream, SendStream};
use crate::streams::consumer::builder::ConsumerBuilder;
use crate::streams::item::Item;
use crate::streams::producer::builder::ProducerBuilder;

/// How much longer than its own deadline a shutdown may take before the node is killed.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(10);

/// How long a killed node may take to be gone.
const KILL_GRACE: Duration = Duration::from_secs(1);

/// A running node.
///
/// It is a cheap handle: clone it freely. Dropping handles does not stop the node, as it may be used by messages alone;
/// [`Node::shutdown`] does, or the supervisor that it was linked to.
#[derive(Clone)]
pub struct Node {
    context: Arc<Context>,
    actor: ActorRef<NodeMessage>,
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node").field("id", &self.context.id).finish_non_exhaustive()
    }
}

impl Node {
    pub(crate) fn new(context: Arc<Context>, actor: ActorRef<NodeMessage>) -> Self {
        Self { context, actor }
    }

    /// Starts to build a node of the network with this name; nodes of other networks are refused in the TLS handshake.
    pub fn builder(network: impl Into<String>) -> NodeBuilder {
        NodeBuilder::new(network.into())
    }

    /// The node's id: its public key.
    pub fn id(&self) -> EndpointId {
        self.context.id
    }

    /// Where the node can be reached, as far as it knows now.
    pub fn addr(&self) -> EndpointAddr {
        self.context.address.borrow().clone()
    }

    /// A line of text by which others can reach the node, as far as it knows now how they can. Of a node with more addresses than a ticket
    /// carries it has those that lead farthest.
    ///
    /// # Errors
    ///
    /// While no address of the node is known.
    pub fn ticket(&self) -> Result<Ticket, TicketError> {
        let EndpointAddr { id, addrs } = self.addr();
        let mut addrs: Vec<_> = addrs.into_iter().collect();
        addrs.sort_by_key(|address| Reverse(Reach::of(address)));
        addrs.truncate(TICKET_ADDRESSES_MAX);
        Ticket::new(self.context.network, EndpointAddr::from_parts(id, addrs))
    }

    /// The root actor, for apps that prefer messages.
    pub fn actor(&self) -> ActorRef<NodeMessage> {
        self.actor.clone()
    }

    /// Opens a stream that the peer has acknowledged; the peer is dialled if need be.
    ///
    /// Cancel safe: dropped, the intent is withdrawn and a stream that was opened is reset.
    pub async fn open(
        &self,
        peer: impl Into<Peer>,
        protocol: ProtocolName,
    ) -> Result<(SendStream, RecvStream), OpenError> {
        self.open_with(peer, protocol, Options::new()).await
    }

    /// Like [`Node::open`], with options. Cancel safe.
    pub async fn open_with(
        &self,
        peer: impl Into<Peer>,
        protocol: ProtocolName,
        options: Options,
    ) -> Result<(SendStream, RecvStream), OpenError> {
        self.check()?;
        open::open(&self.context, peer.into(), protocol, StreamMode::Acked, options).await
    }

    /// Opens a stream without waiting for the peer's answer: the first payload may travel in the same flight. A refusal is seen at
    /// the first read. Cancel safe.
    ///
    /// Once returned, a stream is not opened again on another link by itself: its payload is the caller's. Until the answer was read,
    /// nothing says that the peer took the stream; if the session is closed before that, it may never have. So it
    /// is with a peer that serves only whom it knows, and does not know this node: the first read ends with [`Code::UnknownPeer`](crate::Code::UnknownPeer),
    /// and [`Node::sync_with`] introduces this node before the caller opens again, which [`Node::open`] does by itself.
    pub async fn open_eager(
        &self,
        peer: impl Into<Peer>,
        protocol: ProtocolName,
    ) -> Result<(SendStream, RecvStream), OpenError> {
        self.open_eager_with(peer, protocol, Options::new()).await
    }

    /// Like [`Node::open_eager`], with options. Cancel safe.
    pub async fn open_eager_with(
        &self,
        peer: impl Into<Peer>,
        protocol: ProtocolName,
        options: Options,
    ) -> Result<(SendStream, RecvStream), OpenError> {
        self.check()?;
        open::open(&self.context, peer.into(), protocol, StreamMode::Eager, options).await
    }

    /// Opens a stream like [`Node::open`] if a session is live, and fails with [`OpenError::NotConnected`] at once if not. To a peer that does not know this
    /// node it is introduced as there, by an exchange over that session. Cancel safe.
    pub async fn try_open(
        &self,
        peer: EndpointId,
        protocol: ProtocolName,
    ) -> Result<(SendStream, RecvStream), OpenError> {
        self.check()?;
        open::try_open(&self.context, peer, protocol, Options::new()).await
    }

    /// Sends a typed request and waits for the typed response; both travel as postcard.
    ///
    /// Cancelled, the stream is reset, and the peer's handler is dropped at its next await: it may have run, in whole or in part. When the link is lost after the request was
    /// sent, the call ends as [`OpenError::Unknown`], unless it is idempotent or the peer certainly did not serve it.
    pub async fn call<Req, Res>(
        &self,
        peer: impl Into<Peer>,
        protocol: ProtocolName,
        request: &Req,
    ) -> Result<Res, CallError>
    where
        Req: Serialize + ?Sized,
        Res: DeserializeOwned,
    {
        self.call_with(peer, protocol, request, Options::new()).await
    }

    /// Like [`Node::call`], with options. Cancelled, it is as there.
    pub async fn call_with<Req, Res>(
        &self,
        peer: impl Into<Peer>,
        protocol: ProtocolName,
        request: &Req,
        options: Options,
    ) -> Result<Res, CallError>
    where
        Req: Serialize + ?Sized,
        Res: DeserializeOwned,
    {
        let request = encode(request)?;
        decode(&self.call_bytes(peer, protocol, &request, options).await?)
    }

    /// Sends a request of bytes and waits for the response. Cancelled, it is as [`Node::call`] is.
    pub async fn call_bytes(
        &self,
        peer: impl Into<Peer>,
        protocol: ProtocolName,
        request: &[u8],
        options: Options,
    ) -> Result<Bytes, OpenError> {
        self.check()?;
        open::call(&self.context, peer.into(), protocol, request, options).await
    }

    /// Produces a stream of items of this name: await the builder. Consumers everywhere in the network find it by its name, in this node's record.
    pub fn producer<T: Item>(&self, name: &str) -> ProducerBuilder<T> {
        ProducerBuilder::new(&self.context, name)
    }

    /// Consumes the stream of this name from all other nodes that produce it, now and later: await the builder. A producer of this node itself is no source.
    pub fn consumer<T: Item>(&self, name: &str) -> ConsumerBuilder<T> {
        ConsumerBuilder::new(&self.context, name)
    }

    /// Sends a typed request to a peer that offers the protocol, whoever it is, and waits for the typed response. Who offers it says its
    /// record, see [`Service::offered`]; where nobody does, one that appears within the deadline is asked. This node itself is never asked.
    ///
    /// The nearest by round-trip time is asked that has few calls of this node and was not busy, failing or silent of late; equals share the calls at
    /// random. One that cannot be reached gets a share of the time alone, and another one is asked instead. So it is where a provider refuses. Once the request is sent
    /// to one, it is sent to no other, unless the first certainly did not act on it: when the link is lost meanwhile, the call ends as [`OpenError::Unknown`]. A
    /// request that is [`Options::idempotent`] is sent to another one then, and to another one beside the first where that takes long, to three at
    /// most at once. What a handler says is an answer, also where it says that it failed.
    ///
    /// Anybody can make up providers. Those that this node has had a session with, that have told it of themselves, or whose address the app has given, are asked before
    /// those of which only others told, unless they are in trouble; of the latter a call tries at most [eight](kinfolk_core::provider::HEARSAY_MAX) in vain.
    ///
    /// ```
    /// use kinfolk::{Node, ProtocolName, Service};
    ///
    /// const SUM: ProtocolName = ProtocolName::from_static("sum/1");
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let here = "127.0.0.1:0".parse()?;
    /// let hub = Node::builder("my-app").bind_addr(here).spawn().await?;
    /// let worker = Node::builder("my-app").bind_addr(here).bootstrap(hub.addr()).spawn().await?;
    /// let sum = Service::call(|_peer, terms: Vec<u64>| async move { Ok(terms.iter().sum::<u64>()) });
    /// worker.serve(SUM, sum.offered()).await?;
    ///
    /// let alice = Node::builder("my-app").bind_addr(here).bootstrap(hub.addr()).spawn().await?;
    /// let sum: u64 = alice.call_any(SUM, &vec![1_u64, 2, 3]).await?;
    /// assert_eq!(sum, 6);
    /// # for node in [alice, worker, hub] {
    /// #     node.shutdown().await;
    /// # }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// At the deadline [`Failure::NoProvider`](crate::Failure::NoProvider) if nobody offered the protocol, else what the last provider that was asked ended
    /// with. Without waiting where a provider's handler failed, where the outcome at one is unknown, and where all providers refuse this node for what it is.
    ///
    /// Cancelled, it is as [`Node::call`] is, with each provider that has the request.
    pub async fn call_any<Req, Res>(
        &self,
        protocol: ProtocolName,
        request: &Req,
    ) -> Result<Res, CallError>
    where
        Req: Serialize + ?Sized,
        Res: DeserializeOwned,
    {
        self.call_any_with(protocol, request, Options::new()).await
    }

    /// Like [`Node::call_any`], with options. Cancelled, it is as there.
    pub async fn call_any_with<Req, Res>(
        &self,
        protocol: ProtocolName,
        request: &Req,
        options: Options,
    ) -> Result<Res, CallError>
    where
        Req: Serialize + ?Sized,
        Res: DeserializeOwned,
    {
        let request = encode(request)?;
        decode(&self.call_any_bytes(protocol, &request, options).await?)
    }

    /// Sends a request of bytes to a peer that offers the protocol, as [`Node::call_any`] does, and waits for the response.
    pub async fn call_any_bytes(
        &self,
        protocol: ProtocolName,
        request: &[u8],
        options: Options,
    ) -> Result<Bytes, OpenError> {
        self.check()?;
        any::call_any(&self.context, protocol, request, options).await
    }

    /// Sends a typed request of which many typed responses are expected, and returns once the peer has taken it; they travel as postcard.
    ///
    /// The peer's handler runs as far ahead of the reader as QUIC's windows have room, and not further. See [`Responses`] for how they end.
    /// [`Options::deadline`] is for the time until the request is taken; for all of it there is [`Options::total`].
    ///
    /// ```
    /// use futures_util::stream;
    /// use kinfolk::{Node, ProtocolName, Responses, Service};
    ///
    /// const COUNT: ProtocolName = ProtocolName::from_static("count/1");
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let here = "127.0.0.1:0".parse()?;
    /// let alice = Node::builder("my-app").bind_addr(here).discovery(false).spawn().await?;
    /// let bob = Node::builder("my-app").bind_addr(here).discovery(false).spawn().await?;
    ///
    /// bob.serve(COUNT, Service::call_stream(|_peer, to: u64| stream::iter((0..to).map(Ok)))).await?;
    /// let mut counted: Responses<u64> = alice.call_stream(bob.addr(), COUNT, &3_u64).await?;
    /// let mut sum = 0;
    /// while let Some(number) = counted.recv().await? {
    ///     sum += number;
    /// }
    /// assert_eq!(sum, 3);
    /// # for node in [alice, bob] {
    /// #     node.shutdown().await;
    /// # }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As a call's until the peer has taken the request, and under the same rule is it sent again on another link: not where the peer may have acted on it.
    /// Later errors are those of [`Responses::recv`].
    ///
    /// Cancelled, the stream is reset; the peer's handler may have begun, and is dropped at its next await.
    pub async fn call_stream<Req, Res>(
        &self,
        peer: impl Into<Peer>,
        protocol: ProtocolName,
        request: &Req,
    ) -> Result<Responses<Res>, CallError>
    where
        Req: Serialize + ?Sized,
        Res: DeserializeOwned,
    {
        self.call_stream_with(peer, protocol, request, Options::new()).await
    }

    /// Like [`Node::call_stream`], with options. Cancelled, it is as there.
    pub async fn call_stream_with<Req, Res>(
        &self,
        peer: impl Into<Peer>,
        protocol: ProtocolName,
        request: &Req,
        options: Options,
    ) -> Result<Responses<Res>, CallError>
    where
        Req: Serialize + ?Sized,
        Res: DeserializeOwned,
    {
        self.check()?;
        let request = encode(request)?;
        let typed = responses::typed::<Res>;
        let call = responses::call(&self.context, peer.into(), protocol, &request, options, typed);
        Ok(call.await?)
    }

    /// Sends a request of bytes of which many responses of bytes are expected, as [`Node::call_stream`] does.
    pub async fn call_stream_bytes(
        &self,
        peer: impl Into<Peer>,
        protocol: ProtocolName,
        request: &[u8],
        options: Options,
    ) -> Result<Responses<Bytes>, OpenError> {
        self.check()?;
        responses::call(&self.context, peer.into(), protocol, request, options, Ok).await
    }

    /// Keeps a peer connected until the answer is dropped.
    ///
    /// Addresses that come with the peer are added as by [`Node::add_address`], and are kept when the hold is dropped. Those that do not fit into the
    /// address book are left out; [`Node::add_address`] tells.
    pub fn hold(&self, peer: impl Into<Peer>) -> Hold {
        let peer = peer.into();
        let id = peer.id();
        let _ = peer.configure(&self.context);
        Hold::new(&self.context, id)
    }

    /// Takes a protocol into service.
    ///
    /// It waits for nothing; it is async for symmetry with what it is the same as: [`NodeMessage::Serve`].
    pub async fn serve(&self, protocol: ProtocolName, service: Service) -> Result<(), ServeError> {
        self.alive()?;
        self.context.serve(protocol, service)
    }

    /// Takes a protocol out of service, and its offer out of the node's record, and says whether it was in service. Streams that are being served go on.
    pub fn unserve(&self, protocol: &ProtocolName) -> Result<bool, NodeClosed> {
        self.alive()?;
        Ok(self.context.unserve(protocol))
    }

    /// Subscribes to what happens from now on. A subscriber that falls behind gets `Lagged(n)` and goes on with the newest; the last
    /// event is [`NodeEvent::Ended`]. It waits for nothing.
    pub async fn events(&self) -> Result<broadcast::Receiver<NodeEvent>, NodeClosed> {
        let ended = || NodeClosed(self.context.ended().unwrap_or(Terminal::Shutdown));
        self.context.subscribe().ok_or_else(ended)
    }

    /// One consistent look at the node's numbers. Cancel safe.
    pub async fn metrics(&self) -> Result<Metrics, NodeClosed> {
        self.context.ask_manager(PeerManagerMessage::Metrics).await
    }

    /// All peers with which something is going on. Cancel safe.
    pub async fn peers(&self) -> Result<Vec<PeerSummary>, NodeClosed> {
        self.context.ask_manager(PeerManagerMessage::Peers).await
    }

    /// Why a peer is connected or is not; `None` if nothing is known of it. Cancel safe.
    pub async fn why(&self, peer: EndpointId) -> Result<Option<Why>, NodeClosed> {
        self.context.ask_manager(|reply| PeerManagerMessage::Why(peer, reply)).await
    }

    /// Watches whether a session with a peer is live, and why not. Cancel safe.
    pub async fn monitor(
        &self,
        peer: EndpointId,
    ) -> Result<watch::Receiver<PeerStatus>, NodeClosed> {
        self.context.ask_manager(|reply| PeerManagerMessage::Monitor(peer, reply)).await
    }

    /// Adds addresses of a peer to those that it is dialled at.
    pub fn add_address(&self, address: EndpointAddr) -> Result<(), AddressError> {
        self.alive()?;
        Ok(self.context.configure(address)?)
    }

    /// Removes addresses that the app gave of a peer: these, or all. Returns how many there were.
    pub fn remove_address(
        &self,
        peer: EndpointId,
        addresses: Option<&EndpointAddr>,
    ) -> Result<usize, NodeClosed> {
        self.alive()?;
        Ok(self.context.unconfigure(&peer, addresses))
    }

    /// Takes part in a topic, which everybody in the network can see. Joining it twice is joining it once. It waits for nothing: others
    /// learn of it as news spreads.
    ///
    /// # Errors
    ///
    /// If the node's record has no room for one more.
    pub fn join_topic(&self, topic: Topic) -> Result<(), TopicError> {
        self.alive()?;
        self.context.join_topic(topic)
    }

    /// Takes part in a topic no more, and says whether it did.
    pub fn leave_topic(&self, topic: &Topic) -> Result<bool, NodeClosed> {
        self.alive()?;
        Ok(self.context.leave_topic(topic))
    }

    /// All that the node knows of others at this moment. It costs next to nothing, and never changes.
    pub fn catalog(&self) -> Snapshot {
        self.context.records.snapshot()
    }

    /// Looks for peers of which this is true: those that are known, and from then on those that come, change or go.
    pub fn find(&self, wanted: impl Fn(&Entry) -> bool + Send + Sync + 'static) -> Find {
        Find::new(&self.context, Box::new(wanted))
    }

    /// Looks for the peers that take part in a topic.
    pub fn find_topic(&self, topic: Topic) -> Find {
        self.find(move |entry| entry.record().topics().any(|named| named == topic))
    }

    /// Takes part in a secret topic. It is in no record: a peer learns of it only in an exchange, and only if it takes part itself. What it
    /// hides, and what not, says [`SecretTopic`].
    ///
    /// # Errors
    ///
    /// If the node takes part in as many as it may.
    pub fn join_secret_topic(&self, topic: SecretTopic) -> Result<(), SecretTopicError> {
        self.alive()?;
        Ok(self.context.join_secret_topic(topic)?)
    }

    /// Takes part in a secret topic no more, and says whether it did.
    pub fn leave_secret_topic(&self, topic: &SecretTopic) -> Result<bool, NodeClosed> {
        self.alive()?;
        Ok(self.context.leave_secret_topic(topic))
    }

    /// Looks for the peers that take part in a secret topic, as this node has to do itself. A peer is found once the two have exchanged.
    pub fn find_secret_topic(&self, topic: SecretTopic) -> Find {
        let context = Arc::clone(&self.context);
        self.find(move |entry| context.records.shares(&entry.id(), &topic))
    }

    /// Exchanges catalogs with a peer now, and says what came of it. An exchange with it that the node has opened already is waited for
    /// instead. Cancel safe; the exchange goes on.
    ///
    /// A peer that there is no session with is dialled for it, each time anew: whoever exchanges often has a [`Node::hold`] on it, or is refused as busy by
    /// the peer's limit of connections.
    pub async fn sync_with(&self, peer: impl Into<Peer>) -> Result<ExchangeReport, ExchangeError> {
        let peer = peer.into().name(&self.context).map_err(ExchangeError::Open)?;
        self.context.sync_with(peer).await
    }

    /// Ends everything that waits for a peer, its holds included, as `Cancelled`, and drains its session. It waits for nothing.
    pub async fn disconnect(&self, peer: EndpointId) -> Result<(), NodeClosed> {
        self.context.release(&peer);
        // One that fails before it reads this has lost every link and what waited; one that is away knows of none.
        let _ = self.context.tell_manager(PeerManagerMessage::Disconnect(peer));
        self.alive()
    }

    /// Closes the session with a peer at once and refuses new ones for this time, at most 30 days. Of more bans than
    /// [`Limits::bans`](kinfolk_core::limits::Limits::bans) the one that ends soonest is lifted.
    pub fn ban(&self, peer: EndpointId, duration: Duration) -> Result<(), NodeClosed> {
        self.alive()?;
        self.context.ban(peer, duration);
        Ok(())
    }

    /// Lifts a ban.
    pub fn unban(&self, peer: EndpointId) -> Result<(), NodeClosed> {
        self.alive()?;
        self.context.unban(peer);
        Ok(())
    }

    /// Tells the network that it leaves, takes no new work, lets streams finish within the drain deadline, and returns when no session is
    /// left. The node stays up and can be asked; shut it down next. Cancel safe; the draining goes on.
    pub async fn drain(&self) -> Result<(), NodeClosed> {
        // From this moment on nothing new is taken.
        self.context.start_draining();
        // The rest is for a task of the node's own, which goes on when this future is dropped.
        let (reply, drained) = ractor::concurrency::oneshot();
        let asked = self.actor.send_message(NodeMessage::Drain(reply.into()));
        if asked.is_ok() && drained.await.is_ok() {
            return Ok(());
        }
        // The PeerManager failed over it, and the next one drains already; or the node has ended.
        self.context.ask_manager(PeerManagerMessage::ShutDown).await
    }

    /// Drains, stops every part, closes the endpoint, and says why the node has ended. It takes at most the shutdown deadline and a
    /// few seconds; what is left by then is killed. Its UDP port is free once the app has dropped the streams that it still holds.
    ///
    /// Idempotent, and callable from any clone. Cancel safe; the shutdown goes on.
    pub async fn shutdown(&self) -> Terminal {
        self.actor.stop(None);
        let latest = self.context.limits.shutdown_deadline.saturating_add(SHUTDOWN_GRACE);
        let ended = {
            let _timers = self.context.timers();
            tokio::time::timeout(latest, self.context.closed())
        };
        match ended.await {
            Ok(terminal) => terminal,
            Err(_) => {
                self.actor.kill();
                // A handler that blocks the runtime's only thread keeps even that from happening.
                let killed = {
                    let _timers = self.context.timers();
                    tokio::time::timeout(KILL_GRACE, self.context.closed())
                };
                let killed = killed.await;
                self.context.end(Terminal::Killed);
                killed.unwrap_or(Terminal::Killed)
            }
        }
    }

    /// Waits until the node has ended, and says why: the text of a panic included. Cancel safe.
    pub async fn closed(&self) -> Terminal {
        self.context.closed().await
    }

    /// Makes an actor of the node fail.
    #[cfg(feature = "fault-injection")]
    pub fn inject(&self, victim: crate::fault::Victim, crash: crate::fault::Crash) {
        let internal = crate::node::actor::Internal::crash(victim, crash);
        let _ = self.actor.send_message(NodeMessage::Internal(internal));
    }

    fn alive(&self) -> Result<(), NodeClosed> {
        self.context.ended().map_or(Ok(()), |end| Err(NodeClosed(end)))
    }

    fn check(&self) -> Result<(), OpenError> {
        self.alive().map_err(OpenError::Closed)
    }
}

fn encode(request: &(impl Serialize + ?Sized)) -> Result<Vec<u8>, CallError> {
    postcard::to_allocvec(request).map_err(|error| CallError::Request(error.to_string().into()))
}

fn decode<Res: DeserializeOwned>(response: &[u8]) -> Result<Res, CallError> {
    postcard::from_bytes(response).map_err(|error| CallError::Response(error.to_string().into()))
}
