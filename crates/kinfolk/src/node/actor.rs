//! The root actor: owns the endpoint, starts its parts in order, restarts them, and stops them in reverse.
//!
//! ```text
//! Node
//! ├── PeerManager    first to start, last to stop
//! │   └── Session × link
//! ├── Accept
//! ├── Discovery      only where the app has not switched it off
//! └── Streams        last to start, first to stop
//! ```
//!
//! A part that fails is restarted at once, then with growing delays; the sixth failure within ten seconds ends the node with that
//! failure as its cause. A part that hangs is killed, and so restarted: each is asked twice within [`Limits::unresponsive`] whether it is well. The endpoint lives here, above everything that can be restarted. Its handlers await nothing but the local
//! start of a part; what takes longer runs in tasks.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt;
use iroh::{Endpoint, EndpointAddr, EndpointId};
use kinfolk_core::catalog::Snapshot;
use kinfolk_core::id::ProtocolName;
use kinfolk_core::intensity::{Intensity, Verdict};
use kinfolk_core::intent::Failure;
use kinfolk_core::peer_link::Why;
use kinfolk_core::peer_table::PeerSummary;
use kinfolk_core::record::Topic;
use kinfolk_core::wire::StreamMode;
use ractor::{ActorCell, ActorProcessingErr, ActorRef, RpcReplyPort, SupervisionEvent};
use tokio::sync::{Semaphore, broadcast, watch};
use tokio::task::JoinSet;
use tracing::{info, warn};

use crate::accept::{Accept, AcceptArguments, AcceptMessage, EndpointLost};
use crate::context::Context;
use crate::discovery::exchange::{ExchangeError, ExchangeReport};
use crate::discovery::manager::{Discovery, DiscoveryArguments, DiscoveryMessage};
use crate::error::{OpenError, ServeError, TopicError};
use crate::events::NodeEvent;
#[cfg(feature = "fault-injection")]
use crate::fault::Point;
use crate::fault::here;
use crate::local_only::local_only;
use crate::metrics::{Family, Metrics};
use crate::monitor::PeerStatus;
use crate::node::address::follow_address;
use crate::node::hold::Hold;
use crate::node::terminal::Terminal;
use crate::peers::manager::{PeerManager, PeerManagerArguments, PeerManagerMessage};
use crate::protocol::any;
use crate::protocol::open::{self, Options, Peer};
use crate::protocol::service::Service;
use crate::protocol::stream::{RecvStream, SendStream};
use crate::streams::manager::{Streams, StreamsArguments, StreamsMessage};
use crate::supervision::{ChildEnd, Lost, OwnedTask, Pulse, Restarts, child_end, panic_text};

/// Largest request or answer that may travel in a message; larger ones belong on a stream or in [`Node::call`](crate::Node::call).
pub const MESSAGE_BYTES_MAX: usize = 64 * 1024;

/// How long a part may take to start: local work that awaits nobody.
const PART_START: Duration = Duration::from_secs(2);

/// How long a part may take to stop once its work is done: local work.
const PART_STOP: Duration = Duration::from_secs(2);

/// How long what is kept may take to be written for the last time.
const STORE_CLOSE: Duration = Duration::from_secs(2);

/// How long the endpoint may take to tell its peers that it is closed; iroh's own worst case is about 3 s.
pub(crate) const ENDPOINT_CLOSE: Duration = Duration::from_secs(3);

/// A stream that was opened, both halves of it.
pub type OpenReply = RpcReplyPort<Result<(SendStream, RecvStream), OpenError>>;

/// Everything that a node can be asked, for apps that drive it as an actor.
///
/// Every reply port gets exactly one answer; one whose port is dropped unanswered means that the node, or the part that had the
/// question, ended. Requests that open a stream or make a call run in tasks of their own, at most as many at once as
/// [`Limits::messages`](kinfolk_core::limits::Limits::messages) allows.
#[derive(Debug)]
#[non_exhaustive]
pub enum NodeMessage {
    /// Opens a stream, acknowledged by the peer.
    Open(Peer, ProtocolName, Options, OpenReply),
    /// Opens a stream whose refusal is seen at the first read.
    OpenEager(Peer, ProtocolName, Options, OpenReply),
    /// Sends a request and waits for the response, each of at most [`MESSAGE_BYTES_MAX`] bytes.
    Call(Peer, ProtocolName, Bytes, Options, RpcReplyPort<Result<Bytes, OpenError>>),
    /// Sends a request to a peer that offers the protocol and waits for the response, each of at most [`MESSAGE_BYTES_MAX`] bytes.
    CallAny(ProtocolName, Bytes, Options, RpcReplyPort<Result<Bytes, OpenError>>),
    /// Keeps a peer connected for as long as the answer lives.
    Hold(Peer, RpcReplyPort<Result<Hold, OpenError>>),
    /// Takes a protocol into service.
    Serve(ProtocolName, Service, RpcReplyPort<Result<(), ServeError>>),
    /// Takes a protocol out of service; the answer says whether it was in service.
    Unserve(ProtocolName, RpcReplyPort<bool>),
    /// Subscribes to events.
    Subscribe(RpcReplyPort<broadcast::Receiver<NodeEvent>>),
    /// Reads the numbers.
    Metrics(RpcReplyPort<Metrics>),
    /// Lists the peers.
    Peers(RpcReplyPort<Vec<PeerSummary>>),
    /// Says why a peer is connected or is not.
    Why(EndpointId, RpcReplyPort<Option<Why>>),
    /// Watches a peer.
    Monitor(EndpointId, RpcReplyPort<watch::Receiver<PeerStatus>>),
    /// Says where the node can be reached.
    Address(RpcReplyPort<EndpointAddr>),
    /// Adds addresses of a peer; the answer says what is wrong with them.
    AddAddress(EndpointAddr, RpcReplyPort<Result<(), kinfolk_core::address_book::BookError>>),
    /// Removes the addresses that the app gave of a peer, these or all; the answer counts them.
    RemoveAddress(EndpointId, Option<EndpointAddr>, RpcReplyPort<usize>),
    /// Takes part in a topic.
    JoinTopic(Topic, RpcReplyPort<Result<(), TopicError>>),
    /// Takes part in a topic no more; the answer says whether it did.
    LeaveTopic(Topic, RpcReplyPort<bool>),
    /// All that the node knows of others.
    Catalog(RpcReplyPort<Snapshot>),
    /// Exchanges catalogs with a peer.
    SyncWith(Peer, RpcReplyPort<Result<ExchangeReport, ExchangeError>>),
    /// Ends what waits for a peer and drains its session.
    Disconnect(EndpointId),
    /// Closes and refuses every session with a peer for this time.
    Ban(EndpointId, Duration),
    /// Lifts a ban.
    Unban(EndpointId),
    /// Takes no new work, lets streams finish, and answers when no session is left.
    Drain(RpcReplyPort<()>),
    /// Shuts the node down, gracefully and within its deadline.
    Shutdown,
    /// For the node itself.
    #[doc(hidden)]
    Internal(Internal),
}
local_only!(NodeMessage);

/// What the node tells itself.
#[derive(Debug)]
pub struct Internal(pub(crate) Note);

/// See [`Internal`].
#[derive(Debug)]
pub(crate) enum Note {
    /// The delay before a restart is over.
    Start(Part),
    /// It is time to ask the parts whether they are well.
    Watch,
    /// A task of the node's own panicked.
    TaskPanicked(String),
    #[cfg(feature = "fault-injection")]
    Crash(crate::fault::Victim, crate::fault::Crash),
}

#[cfg(feature = "fault-injection")]
impl Internal {
    pub(crate) fn crash(victim: crate::fault::Victim, crash: crate::fault::Crash) -> Self {
        Self(Note::Crash(victim, crash))
    }
}

/// The parts of a node, in the order of their start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    PeerManager,
    Accept,
    Discovery,
    Streams,
}

impl Part {
    fn name(self) -> &'static str {
        match self {
            Self::PeerManager => "peer_manager",
            Self::Accept => "accept",
            Self::Discovery => "discovery",
            Self::Streams => "streams",
        }
    }
}

/// The actor.
pub(crate) struct Root;

/// What it is started with.
pub(crate) struct RootArguments {
    pub(crate) context: Arc<Context>,
    pub(crate) endpoint: Endpoint,
    pub(crate) alpn: Vec<u8>,
}

/// The endpoint and the parts that run on it.
pub(crate) struct RootState {
    myself: ActorRef<NodeMessage>,
    context: Arc<Context>,
    alpn: Vec<u8>,
    parts: Vec<Running>,
    restarts: Restarts,
    /// A part is silent for longer than the period of `restarts`, so these are counted apart.
    silences: Intensity,
    /// The waits before a restart.
    restarting: Vec<(Part, OwnedTask)>,
    /// Opens and calls that were asked for by message.
    requests: JoinSet<()>,
    places: Arc<Semaphore>,
    _address: OwnedTask,
    /// The wait for the next look at the parts.
    watching: Option<OwnedTask>,
    /// Declared last: it outlives everything that uses it.
    endpoint: OwnedEndpoint,
}

/// A part that was started.
struct Running {
    part: Part,
    cell: ActorCell,
    pulse: Arc<Pulse>,
    /// Whether it was silent, and killed for it.
    lost: Lost,
}

/// Silent parts within ten times [`Limits::unresponsive`](kinfolk_core::limits::Limits::unresponsive) that the node tolerates: each took all sessions along.
const SILENCES_MAX: usize = 2;

/// Closes the endpoint, and says that the node is gone, when its owner is gone: killed and failed actors run nothing else.
struct OwnedEndpoint {
    endpoint: Endpoint,
    context: Arc<Context>,
}

impl Drop for OwnedEndpoint {
    fn drop(&mut self) {
        self.context.lose_manager();
        self.context.end(Terminal::Killed);
        // Without a runtime there is nothing left that could send a farewell.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let (endpoint, context) = (self.endpoint.clone(), Arc::clone(&self.context));
            // Of a node that was shut down both are closed already.
            runtime.spawn(async move {
                let closing = tokio::time::timeout(ENDPOINT_CLOSE, endpoint.close());
                let storing = tokio::time::timeout(STORE_CLOSE, context.close_store());
                let _ = tokio::join!(closing, storing);
            });
        }
    }
}

#[ractor::actor(message = NodeMessage, state = RootState, arguments = RootArguments)]
impl Root {
    async fn pre_start(
        &self,
        myself: ActorRef<NodeMessage>,
        arguments: RootArguments,
    ) -> Result<RootState, ActorProcessingErr> {
        let RootArguments { context, endpoint, alpn } = arguments;
        here!(context, Point::NodePreStart).pass().await?;
        if cfg!(panic = "abort") {
            warn!("built with panic=abort: a panic ends the process instead of one actor");
        }
        let following = follow_address(endpoint.clone(), Arc::clone(&context));
        let task = here!(context, Point::NodeFollowsAddress);
        let address = OwnedTask::spawn(&myself, task, following, task_panicked);
        let mut state = RootState {
            myself,
            places: Arc::new(Semaphore::new(context.limits.messages)),
            alpn,
            parts: Vec::new(),
            restarts: Restarts::new(),
            silences: Intensity::new(SILENCES_MAX, context.limits.unresponsive.saturating_mul(10)),
            restarting: Vec::new(),
            requests: JoinSet::new(),
            _address: address,
            watching: None,
            endpoint: OwnedEndpoint { endpoint, context: Arc::clone(&context) },
            context,
        };
        for part in [Part::PeerManager, Part::Accept, Part::Discovery, Part::Streams] {
            if part != Part::Discovery || state.context.discovers {
                state.start(part).await?;
            }
        }
        state.watch_later();
        Ok(state)
    }

    // One place to catch a panic of any handler: ractor keeps the cause from whoever holds the root's join handle.
    async fn handle(
        &self,
        _myself: ActorRef<NodeMessage>,
        message: NodeMessage,
        state: &mut RootState,
    ) -> Result<(), ActorProcessingErr> {
        let context = Arc::clone(&state.context);
        let handled = async {
            here!(context, message.point()).pass().await?;
            state.receive(message).await
        };
        publish_failure(&context, handled).await
    }

    async fn handle_supervisor_evt(
        &self,
        _myself: ActorRef<NodeMessage>,
        event: SupervisionEvent,
        state: &mut RootState,
    ) -> Result<(), ActorProcessingErr> {
        let context = Arc::clone(&state.context);
        let supervised = async {
            here!(context, Point::NodeSupervise).pass().await?;
            state.supervise(event).await
        };
        publish_failure(&context, supervised).await
    }

    async fn post_stop(
        &self,
        _myself: ActorRef<NodeMessage>,
        state: &mut RootState,
    ) -> Result<(), ActorProcessingErr> {
        let context = Arc::clone(&state.context);
        let stopping = async {
            here!(context, Point::NodePostStop).pass().await?;
            state.shut_down().await;
            Ok(())
        };
        publish_failure(&context, stopping).await
    }
}

/// Runs a handler; should it fail or panic, everyone who waits for the node gets the cause.
async fn publish_failure(
    context: &Context,
    handler: impl Future<Output = Result<(), ActorProcessingErr>>,
) -> Result<(), ActorProcessingErr> {
    let result = match AssertUnwindSafe(handler).catch_unwind().await {
        Ok(result) => result,
        Err(panic) => {
            context.counters.count(Family::Panicked, "node");
            Err(format!("the node panicked: {}", panic_text(panic.as_ref())).into())
        }
    };
    if let Err(cause) = &result {
        context.lose_manager();
        context.end(Terminal::Failed(cause.to_string().into()));
    }
    result
}

/// A task of the root actor panicked.
fn task_panicked(text: String) -> NodeMessage {
    NodeMessage::Internal(Internal(Note::TaskPanicked(text)))
}

/// A request or an answer that may travel in a message.
fn small_enough(bytes: Bytes) -> Result<Bytes, OpenError> {
    if bytes.len() > MESSAGE_BYTES_MAX {
        return Err(OpenError::Failed { failure: Failure::TooLarge, cause: None });
    }
    Ok(bytes)
}

impl RootState {
    async fn receive(&mut self, message: NodeMessage) -> Result<(), ActorProcessingErr> {
        use NodeMessage as M;
        use PeerManagerMessage as P;
        while self.requests.try_join_next().is_some() {}
        match message {
            M::Open(peer, protocol, options, reply) => {
                self.request(reply, |context| async move {
                    open::open(&context, peer, protocol, StreamMode::Acked, options).await
                });
            }
            M::OpenEager(peer, protocol, options, reply) => {
                self.request(reply, |context| async move {
                    open::open(&context, peer, protocol, StreamMode::Eager, options).await
                });
            }
            M::Call(peer, protocol, request, options, reply) => {
                self.request(reply, |context| async move {
                    let request = small_enough(request)?;
                    let answer = open::call(&context, peer, protocol, &request, options);
                    answer.await.and_then(small_enough)
                });
            }
            M::CallAny(protocol, request, options, reply) => {
                self.request(reply, |context| async move {
                    let request = small_enough(request)?;
                    let answer = any::call_any(&context, protocol, &request, options);
                    answer.await.and_then(small_enough)
                });
            }
            M::Hold(peer, reply) => {
                let held = peer.configure(&self.context).map(|peer| Hold::new(&self.context, peer));
                let _ = reply.send(held);
            }
            M::Serve(protocol, service, reply) => {
                let _ = reply.send(self.context.serve(protocol, service));
            }
            M::Unserve(protocol, reply) => {
                let _ = reply.send(self.context.unserve(&protocol));
            }
            M::Subscribe(reply) => {
                if let Some(events) = self.context.subscribe() {
                    let _ = reply.send(events);
                }
            }
            M::Metrics(reply) => self.pass_on(P::Metrics(reply)),
            M::Peers(reply) => self.pass_on(P::Peers(reply)),
            M::Why(peer, reply) => self.pass_on(P::Why(peer, reply)),
            M::Monitor(peer, reply) => self.pass_on(P::Monitor(peer, reply)),
            M::Address(reply) => {
                let _ = reply.send(self.context.address.borrow().clone());
            }
            M::AddAddress(address, reply) => {
                let _ = reply.send(self.context.configure(address));
            }
            M::RemoveAddress(peer, address, reply) => {
                let _ = reply.send(self.context.unconfigure(&peer, address.as_ref()));
            }
            M::JoinTopic(topic, reply) => {
                let _ = reply.send(self.context.join_topic(topic));
            }
            M::LeaveTopic(topic, reply) => {
                let _ = reply.send(self.context.leave_topic(&topic));
            }
            M::Catalog(reply) => {
                let _ = reply.send(self.context.records.snapshot());
            }
            M::SyncWith(peer, reply) => match peer.name(&self.context) {
                Ok(peer) => self.context.ask_for_sync(peer, reply),
                Err(error) => {
                    let _ = reply.send(Err(ExchangeError::Open(error)));
                }
            },
            M::Disconnect(peer) => {
                self.context.release(&peer);
                self.pass_on(P::Disconnect(peer));
            }
            M::Ban(peer, duration) => self.context.ban(peer, duration),
            M::Unban(peer) => self.context.unban(peer),
            M::Drain(reply) => {
                self.context.start_draining();
                let context = Arc::clone(&self.context);
                self.requests.spawn(async move {
                    context.farewell().await;
                    let _ = context.tell_manager(P::ShutDown(reply));
                });
            }
            M::Shutdown => self.myself.stop(None),
            M::Internal(Internal(Note::Start(part))) => self.restart(part).await?,
            M::Internal(Internal(Note::Watch)) => self.watch()?,
            M::Internal(Internal(Note::TaskPanicked(text))) => return Err(text.into()),
            #[cfg(feature = "fault-injection")]
            M::Internal(Internal(Note::Crash(victim, crash))) => self.crash(victim, crash).await?,
        }
        Ok(())
    }

    /// Passes a question on; if the manager is being restarted, the dropped reply port says so.
    fn pass_on(&self, message: PeerManagerMessage) {
        let _ = self.context.tell_manager(message);
    }

    /// Runs an open or a call in a task, if there is room for one more.
    fn request<T, Fut>(
        &mut self,
        reply: RpcReplyPort<Result<T, OpenError>>,
        ask: impl FnOnce(Arc<Context>) -> Fut,
    ) where
        T: Send + 'static,
        Fut: Future<Output = Result<T, OpenError>> + Send + 'static,
    {
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            let failure = Failure::QueueFull;
            let _ = reply.send(Err(OpenError::Failed { failure, cause: None }));
            return;
        };
        let asking = ask(Arc::clone(&self.context));
        let here = here!(self.context, Point::NodeRequest);
        self.requests.spawn(async move {
            if here.pass().await.is_ok() {
                let _ = reply.send(asking.await);
            }
            drop(place);
        });
    }

    async fn start(&mut self, part: Part) -> Result<(), ractor::SpawnErr> {
        // Given up, a half-started part is gone with all that it has started.
        let started = tokio::time::timeout(PART_START, self.launch(part)).await;
        let late = || format!("{} did not start within {PART_START:?}", part.name());
        started.unwrap_or_else(|_| Err(ractor::SpawnErr::StartupFailed(late().into())))
    }

    async fn launch(&mut self, part: Part) -> Result<(), ractor::SpawnErr> {
        let supervisor = self.myself.get_cell();
        let context = Arc::clone(&self.context);
        let endpoint = self.endpoint.endpoint.clone();
        let pulse = Arc::new(Pulse::default());
        let pulse_too = Arc::clone(&pulse);
        let cell = match part {
            Part::PeerManager => {
                let alpn = self.alpn.clone();
                let arguments = PeerManagerArguments { context, endpoint, alpn, pulse: pulse_too };
                let spawned = ractor::Actor::spawn_linked(None, PeerManager, arguments, supervisor);
                spawned.await?.0.get_cell()
            }
            Part::Accept => {
                let arguments = AcceptArguments { context, endpoint, pulse: pulse_too };
                ractor::Actor::spawn_linked(None, Accept, arguments, supervisor).await?.0.get_cell()
            }
            Part::Discovery => {
                let arguments = DiscoveryArguments { context, pulse: pulse_too };
                let spawned = ractor::Actor::spawn_linked(None, Discovery, arguments, supervisor);
                spawned.await?.0.get_cell()
            }
            Part::Streams => {
                let arguments = StreamsArguments { context, pulse: pulse_too };
                let spawned = ractor::Actor::spawn_linked(None, Streams, arguments, supervisor);
                spawned.await?.0.get_cell()
            }
        };
        self.parts.push(Running { part, cell, pulse, lost: Lost::default() });
        Ok(())
    }

    /// Asks the parts whether they are well, and kills those that have not said so for long. Their end, as any other, comes by its event.
    fn watch(&mut self) -> Result<(), ActorProcessingErr> {
        for Running { part, cell, pulse, lost } in &mut self.parts {
            if !pulse.ask() {
                lost.kill(cell, part.name())?;
                continue;
            }
            // A part that is gone already tells so by its supervision event.
            let _ = match part {
                Part::PeerManager => cell.send_message(PeerManagerMessage::Pulse).is_ok(),
                Part::Accept => cell.send_message(AcceptMessage::Pulse).is_ok(),
                Part::Discovery => cell.send_message(DiscoveryMessage::Pulse).is_ok(),
                Part::Streams => cell.send_message(StreamsMessage::Pulse).is_ok(),
            };
        }
        self.watch_later();
        Ok(())
    }

    fn watch_later(&mut self) {
        let (myself, wait) = (self.myself.clone(), self.context.limits.unresponsive.mul_f64(0.5));
        let waiting = async move {
            tokio::time::sleep(wait).await;
            let _ = myself.send_message(NodeMessage::Internal(Internal(Note::Watch)));
        };
        let here = here!(self.context, Point::NodeWatches);
        self.watching = Some(OwnedTask::spawn(&self.myself, here, waiting, task_panicked));
    }

    async fn supervise(&mut self, event: SupervisionEvent) -> Result<(), ActorProcessingErr> {
        let Some((actor, end)) = child_end(event) else { return Ok(()) };
        let Some(place) = self.parts.iter().position(|running| running.cell.get_id() == actor)
        else {
            return Ok(());
        };
        let Running { part, lost, .. } = self.parts.swap_remove(place);
        let cause = match end {
            // The next one would find the same.
            ChildEnd::Failed(error) if error.is::<EndpointLost>() => return Err(error),
            // Its state goes first: it may hold what the next one needs.
            ChildEnd::Stopped(state) => {
                drop(state);
                "it stopped while the node was running".to_owned()
            }
            ChildEnd::Killed if lost.is_so() => {
                let cause = format!("it was silent for {:?}", self.context.limits.unresponsive);
                if self.silences.fail(Instant::now()) == Verdict::Exceeded {
                    return Err(format!("{}: {cause}, again and again", part.name()).into());
                }
                cause
            }
            ChildEnd::Killed => "it was killed".to_owned(),
            ChildEnd::Failed(error) => error.to_string(),
        };
        self.failed(part, cause)
    }

    fn failed(&mut self, part: Part, cause: String) -> Result<(), ActorProcessingErr> {
        warn!(actor = part.name(), %cause, "a part of the node failed");
        match part {
            Part::PeerManager => self.context.lose_manager(),
            Part::Discovery => self.context.set_discovery(None),
            Part::Streams => self.context.streams.set_actor(None),
            Part::Accept => {}
        }
        let child = part.name();
        let delay = self.restarts.fail(Instant::now(), child, &cause)?;
        self.context.counters.count(Family::Restarted, child);
        self.context.emit(NodeEvent::Restarted { actor: child, cause });
        let myself = self.myself.clone();
        let waiting = async move {
            tokio::time::sleep(delay).await;
            let _ = myself.send_message(NodeMessage::Internal(Internal(Note::Start(part))));
        };
        let here = here!(self.context, Point::NodeRestart);
        self.restarting.push((part, OwnedTask::spawn(&self.myself, here, waiting, task_panicked)));
        Ok(())
    }

    async fn restart(&mut self, part: Part) -> Result<(), ActorProcessingErr> {
        self.restarting.retain(|(waiting, _)| *waiting != part);
        match self.start(part).await {
            Ok(()) => Ok(()),
            Err(error) => self.failed(part, error.to_string()),
        }
    }

    #[cfg(feature = "fault-injection")]
    async fn crash(
        &mut self,
        victim: crate::fault::Victim,
        crash: crate::fault::Crash,
    ) -> Result<(), ActorProcessingErr> {
        use crate::fault::Victim;
        match victim {
            Victim::Node => crash.strike().await?,
            Victim::PeerManager => self.pass_on(PeerManagerMessage::Crash(None, crash)),
            Victim::Session(peer) => self.pass_on(PeerManagerMessage::Crash(Some(peer), crash)),
            Victim::Accept => {
                for Running { part, cell, .. } in &self.parts {
                    if *part == Part::Accept {
                        let _ = cell.send_message(AcceptMessage::Crash(crash));
                    }
                }
            }
            Victim::Discovery => {
                let _ = self.context.tell_discovery(DiscoveryMessage::Crash(crash));
            }
            Victim::Streams => {
                self.context.streams.tell(StreamsMessage::Crash(crash));
            }
        }
        Ok(())
    }

    /// Drains what can be drained within the deadline, then stops the parts in reverse order and closes the endpoint.
    async fn shut_down(&mut self) {
        info!("node is shutting down");
        self.context.start_draining();
        self.context.farewell().await;
        let (reply, drained) = ractor::concurrency::oneshot();
        if self.context.tell_manager(PeerManagerMessage::ShutDown(reply.into())).is_ok() {
            // Late or answered, the parts are stopped next.
            let _ = tokio::time::timeout(self.context.limits.shutdown_deadline, drained).await;
        }
        self.requests.shutdown().await;
        for part in [Part::Streams, Part::Discovery, Part::Accept, Part::PeerManager] {
            for Running { cell, .. } in self.parts.iter().filter(|running| running.part == part) {
                cell.stop(None);
                let stopped = tokio::time::timeout(PART_STOP, cell.wait(None)).await;
                if stopped.is_err() {
                    // Its parent's end would not do it: ractor leaves a child alone that is stopping already.
                    cell.kill();
                }
            }
        }
        // Whoever still asks waits for the node's end instead of trying again and again.
        self.context.lose_manager();
        let endpoint = &self.endpoint.endpoint;
        let closing = tokio::time::timeout(ENDPOINT_CLOSE, endpoint.close());
        let _ =
            tokio::join!(closing, tokio::time::timeout(STORE_CLOSE, self.context.close_store()));
        self.context.end(Terminal::Shutdown);
    }
}
