//! PeerManager: runs the table of all peers, and the sessions that it asks for.
//!
//! It translates: messages and supervision events into inputs of the [`PeerTable`], and the table's outputs into sessions, orders and
//! replies. It learns a session's end from its supervision event and from nowhere else. It never awaits a peer, a callback or a socket;
//! what it awaits is the local start of a session. What the app gave (addresses, bans, holds) is kept by the node, so that a
//! restart loses none of it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use iroh::{Endpoint, EndpointId};
use kinfolk_core::code::Code;
use kinfolk_core::id::{Incarnation, LinkId};
use kinfolk_core::intent::{Intent, IntentId, Outcome, Priority, Want};
use kinfolk_core::peer_link::{
    Direction, Incoming, Input, Linger, LinkEnd, Output, PeerEvent, Why,
};
use kinfolk_core::peer_table::{PeerSummary, PeerTable};
use ractor::{ActorId, ActorProcessingErr, ActorRef, RpcReplyPort, SupervisionEvent};
use tokio::sync::{Notify, OwnedSemaphorePermit, oneshot, watch};
use tokio::task::JoinSet;
use tracing::debug;

use crate::clock::clock;
use crate::context::{Context, Mailbox};
use crate::events::NodeEvent;
#[cfg(feature = "fault-injection")]
use crate::fault::Point;
use crate::fault::here;
use crate::local_only::local_only;
use crate::metrics::{AddressMetrics, Family, Metrics};
use crate::monitor::PeerStatus;
use crate::peers::link::Link;
use crate::peers::session::{
    Arrived, Session, SessionArguments, SessionFailure, SessionMessage, SessionState, Start,
};
use crate::peers::transport::Dialler;
use crate::supervision::{ChildEnd, OwnedTask, Pulse, child_end, lock};

mod report;

/// How long a session may take to start: local work that awaits nobody.
const SESSION_START: Duration = Duration::from_secs(1);

/// How long a stopping manager waits for its sessions; closing is local work.
const SESSION_STOP: Duration = Duration::from_secs(1);

/// How long a link lingers that was dialled for an errand of the node's own and for nothing else, unless too many do, see
/// [`errands`](kinfolk_core::errands): what it may be wanted for comes within moments (a guess).
pub(crate) const ERRAND_LINGER: Duration = Duration::from_secs(5);

/// The actor.
pub(crate) struct PeerManager;

/// What it is started with.
pub(crate) struct PeerManagerArguments {
    pub(crate) context: Arc<Context>,
    pub(crate) endpoint: Endpoint,
    pub(crate) alpn: Vec<u8>,
    pub(crate) pulse: Arc<Pulse>,
}

/// What a waiting intent gets.
#[derive(Debug)]
pub(crate) enum Grant {
    /// A link to open its stream on.
    Link(Arc<Link>),
    /// The link that it was to have is gone before anybody could use it: to be asked for again.
    Gone,
    /// Its end.
    Ended(Outcome, Option<LinkEnd>),
}

/// What the manager is told and asked.
pub(crate) enum PeerManagerMessage {
    /// An intent wants a link.
    Ask { peer: EndpointId, intent: Intent, reply: oneshot::Sender<Grant> },
    /// The caller of an intent is gone, or a hold was dropped.
    Cancel(IntentId),
    /// A hold was added to what the node keeps.
    Hold(IntentId),
    /// The app gave a new address of a peer.
    AddressNews(EndpointId),
    /// Records came with new addresses; of whom is kept beside the catalog.
    RecordNews,
    /// A link was dialled for errands of the node's own that are over: it closes unless it was used within this time.
    ErrandOver(Arc<Link>, Duration),
    /// The node itself has a new address.
    NetworkNews,
    /// An incoming connection said hello. The permit is its place in this mailbox.
    Arrived(Box<Arrived>, OwnedSemaphorePermit),
    /// A dialling session has its connection.
    Connected { link: Arc<Link> },
    /// A dialling session was welcomed.
    Welcomed { link: LinkId, incarnation: Incarnation, arrival: u64 },
    /// The peer said goodbye.
    Draining { link: LinkId, code: Code },
    /// The table's next timeout is due.
    Tick,
    /// Drain the link with a peer and end what waits for it.
    Disconnect(EndpointId),
    /// A ban was added to what the node keeps.
    Ban { peer: EndpointId, until: Instant },
    /// A ban was lifted.
    Unban(EndpointId),
    /// Take no new work, drain every link, and say when none is left.
    ShutDown(RpcReplyPort<()>),
    /// Why a peer is connected or not.
    Why(EndpointId, RpcReplyPort<Option<Why>>),
    /// All peers.
    Peers(RpcReplyPort<Vec<PeerSummary>>),
    /// The node's numbers.
    Metrics(RpcReplyPort<Metrics>),
    /// Watch a peer.
    Monitor(EndpointId, RpcReplyPort<watch::Receiver<PeerStatus>>),
    /// Is it well?
    Pulse,
    /// Its clock panicked.
    TaskPanicked(String),
    /// Fail, as a test asked; a session's peer if it is a session that is to fail.
    #[cfg(feature = "fault-injection")]
    Crash(Option<EndpointId>, crate::fault::Crash),
}
local_only!(PeerManagerMessage);

/// The table, and what its names stand for.
pub(crate) struct PeerManagerState {
    me: ActorRef<PeerManagerMessage>,
    context: Arc<Context>,
    dialler: Dialler,
    /// How many messages wait in its mailbox; ractor does not tell.
    depth: Arc<AtomicUsize>,
    incarnation: Incarnation,
    table: PeerTable,
    outputs: Vec<(EndpointId, Output)>,
    sessions: HashMap<LinkId, Running>,
    by_actor: HashMap<ActorId, LinkId>,
    asks: HashMap<IntentId, oneshot::Sender<Grant>>,
    /// Links whose sessions did not start, until the table has heard of it: nobody is told of these.
    stillborn: HashSet<LinkId>,
    /// The incoming connection that the table is deciding about.
    arrived: Option<Box<Arrived>>,
    /// Incoming connections that are being refused; each still counts at the gate.
    refusals: JoinSet<()>,
    /// The text of the latest panic of a session, for the event of a quarantine.
    last_panic: String,
    shut_down: Vec<RpcReplyPort<()>>,
    alarm: watch::Sender<Option<Instant>>,
    /// Tells the clock that its tick was handled.
    ticked: Arc<Notify>,
    pulse: Arc<Pulse>,
    _clock: OwnedTask,
}

struct Running {
    peer: EndpointId,
    actor: ActorRef<SessionMessage>,
    /// A dialled link has none until it is connected.
    link: Option<Arc<Link>>,
}

#[ractor::actor(
    message = PeerManagerMessage,
    state = PeerManagerState,
    arguments = PeerManagerArguments
)]
impl PeerManager {
    async fn pre_start(
        &self,
        myself: ActorRef<PeerManagerMessage>,
        arguments: PeerManagerArguments,
    ) -> Result<PeerManagerState, ActorProcessingErr> {
        let PeerManagerArguments { context, endpoint, alpn, pulse } = arguments;
        let task = here!(context, Point::ManagerClock);
        let depth = Arc::new(AtomicUsize::new(0));
        // A restarted manager knows none of the old links: to its peers it is a restarted node.
        let incarnation = context.draw_incarnation();
        let table = PeerTable::new(context.id, incarnation, &context.limits, rand::random());
        let alarm = watch::Sender::new(None);
        let ticked = Arc::new(Notify::new());
        let (ticked_too, pulse_too) = (Arc::clone(&ticked), Arc::clone(&pulse));
        let tick = || PeerManagerMessage::Tick;
        let ticking = clock(alarm.subscribe(), ticked_too, pulse_too, myself.clone(), tick);
        let clock = OwnedTask::spawn(&myself, task, ticking, PeerManagerMessage::TaskPanicked);
        let dialler = Dialler::new(endpoint, alpn, &context.limits);
        // From here on it is told what the app does; what the app did before, it recalls. Nothing falls in between.
        context.set_manager(Some(Mailbox { actor: myself.clone(), depth: Arc::clone(&depth) }));
        let mut state = PeerManagerState {
            me: myself,
            context,
            dialler,
            depth,
            incarnation,
            table,
            outputs: Vec::new(),
            sessions: HashMap::new(),
            by_actor: HashMap::new(),
            asks: HashMap::new(),
            stillborn: HashSet::new(),
            arrived: None,
            refusals: JoinSet::new(),
            last_panic: String::new(),
            shut_down: Vec::new(),
            alarm,
            ticked,
            pulse,
            _clock: clock,
        };
        state.recall().await;
        here!(state.context, Point::ManagerPreStart).pass().await?;
        Ok(state)
    }

    async fn handle(
        &self,
        _myself: ActorRef<PeerManagerMessage>,
        message: PeerManagerMessage,
        state: &mut PeerManagerState,
    ) -> Result<(), ActorProcessingErr> {
        use PeerManagerMessage as M;
        if !matches!(message, M::Tick | M::Pulse | M::TaskPanicked(_)) {
            state.depth.fetch_sub(1, Ordering::Relaxed);
        }
        here!(state.context, message.point()).pass().await?;
        state.receive(message).await
    }

    async fn handle_supervisor_evt(
        &self,
        _myself: ActorRef<PeerManagerMessage>,
        event: SupervisionEvent,
        state: &mut PeerManagerState,
    ) -> Result<(), ActorProcessingErr> {
        let Some((actor, end)) = child_end(event) else { return Ok(()) };
        here!(state.context, Point::ManagerSupervise).pass().await?;
        let Some(link) = state.by_actor.remove(&actor) else { return Ok(()) };
        state.session_ended(link, end).await;
        Ok(())
    }

    async fn post_stop(
        &self,
        _myself: ActorRef<PeerManagerMessage>,
        state: &mut PeerManagerState,
    ) -> Result<(), ActorProcessingErr> {
        here!(state.context, Point::ManagerPostStop).pass().await?;
        state.end_asks(Outcome::ShuttingDown);
        let sessions: Vec<Running> = state.sessions.drain().map(|(_, running)| running).collect();
        for session in &sessions {
            let _ = session.actor.send_message(SessionMessage::Close(Code::DrainDeadline));
        }
        let ended = async {
            for session in &sessions {
                let _ = session.actor.get_cell().wait(None).await;
            }
        };
        // What does not end in time is killed with its parent.
        let _ = tokio::time::timeout(SESSION_STOP, ended).await;
        Ok(())
    }
}

impl PeerManagerState {
    async fn receive(&mut self, message: PeerManagerMessage) -> Result<(), ActorProcessingErr> {
        use PeerManagerMessage as M;
        match message {
            M::Ask { peer, intent, reply } => {
                self.asks.insert(intent.id, reply);
                self.queue(peer, intent).await;
            }
            M::Cancel(id) => {
                self.asks.remove(&id);
                self.table.cancel(Instant::now(), id, &mut self.outputs);
                self.carry_out().await;
            }
            M::Hold(id) => self.hold(id).await,
            M::AddressNews(peer) => self.input(peer, Input::AddressNews).await,
            M::RecordNews => self.record_news().await,
            M::ErrandOver(link, linger) => {
                // What the app holds is not its errand alone any more.
                let is_needed = self.context.is_held(&link.peer) || !link.is_errand();
                if self.table.live(&link.peer) == Some(link.id)
                    && !is_needed
                    && link.close_if_idle(Instant::now(), linger) == Linger::Closed
                {
                    let input = Input::Lingered { link: link.id, linger: Linger::Closed };
                    self.input(link.peer, input).await;
                }
            }
            M::NetworkNews => {
                self.table.network_news(Instant::now(), &mut self.outputs);
                self.carry_out().await;
            }
            M::Arrived(arrived, _place) => self.arrived(arrived).await,
            M::Connected { link } => {
                let (id, peer) = (link.id, link.peer);
                if let Some(running) = self.sessions.get_mut(&id) {
                    running.link = Some(link);
                    self.input(peer, Input::Connected { link: id }).await;
                }
            }
            M::Welcomed { link, incarnation, arrival } => {
                self.about(link, Input::Welcomed { link, incarnation, arrival }).await;
            }
            M::Draining { link, code } => self.about(link, Input::Draining { link, code }).await,
            M::Tick => {
                self.table.handle_timeout(Instant::now(), &mut self.outputs);
                self.carry_out().await;
                self.ticked.notify_one();
            }
            M::Disconnect(peer) => self.input(peer, Input::Disconnect).await,
            M::Ban { peer, until } => self.ban(peer, until).await,
            // Banned again meanwhile.
            M::Unban(peer) if self.context.is_banned(&peer) => {}
            M::Unban(peer) if self.table.is_banned(&peer) => self.input(peer, Input::Unban).await,
            // The table had no room for it.
            M::Unban(peer) => self.report(peer, PeerEvent::Unbanned),
            M::ShutDown(reply) => {
                self.shut_down.push(reply);
                self.table.shut_down(Instant::now(), &mut self.outputs);
                self.carry_out().await;
            }
            M::Why(peer, reply) => {
                let _ = reply.send(self.table.why(Instant::now(), &peer));
            }
            M::Peers(reply) => {
                let _ = reply.send(self.table.peers(Instant::now()));
            }
            M::Metrics(reply) => {
                let totals = self.table.totals(Instant::now());
                let depth = self.depth.load(Ordering::Relaxed);
                let discovery = self.context.discovery_metrics();
                let addresses = AddressMetrics::of(&lock(&self.context.retained).book);
                let asking = self.context.streams.asking();
                let counters = &self.context.counters;
                let _ = reply.send(counters.snapshot(&totals, depth, discovery, addresses, asking));
            }
            M::Monitor(peer, reply) => {
                let live = self.table.live(&peer).and_then(|id| self.sessions.get(&id));
                let status = match live.and_then(|running| running.link.as_ref()) {
                    Some(link) => PeerStatus::Up { link: link.id, direction: link.direction },
                    None => PeerStatus::Down { reason: None },
                };
                let _ = reply.send(self.context.monitors.watch(peer, status));
            }
            M::Pulse => self.pulse.pass_on(),
            M::TaskPanicked(text) => return Err(text.into()),
            #[cfg(feature = "fault-injection")]
            M::Crash(None, crash) => crash.strike().await?,
            #[cfg(feature = "fault-injection")]
            M::Crash(Some(peer), crash) => {
                if let Some(id) = self.table.live(&peer) {
                    self.order(id, SessionMessage::Crash(crash));
                }
            }
        }
        Ok(())
    }

    /// Takes up what the app gave to an earlier manager.
    async fn recall(&mut self) {
        if self.context.is_draining() {
            self.table.shut_down(Instant::now(), &mut self.outputs);
        }
        let (bans, holds) = {
            let retained = lock(&self.context.retained);
            let bans: Vec<_> = retained.bans.iter().map(|(peer, ban)| (*peer, ban.until)).collect();
            (bans, retained.holds.keys().copied().collect::<Vec<_>>())
        };
        for (peer, until) in bans {
            self.ban(peer, until).await;
        }
        for id in holds {
            self.hold(id).await;
        }
        // What came while there was no manager: it is told of the first only.
        self.record_news().await;
    }

    /// Lets dials that wait know of the addresses that records brought.
    async fn record_news(&mut self) {
        for peer in self.context.records.moved.take() {
            // They were the ids of records: they are valid.
            if let Ok(peer) = EndpointId::from_bytes(&peer) {
                self.table.handle(Instant::now(), peer, Input::AddressNews, &mut self.outputs);
            }
        }
        self.carry_out().await;
    }

    async fn hold(&mut self, id: IntentId) {
        let held = lock(&self.context.retained).holds.get(&id).cloned();
        // Dropped before the message was read.
        let Some(held) = held else { return };
        let priority = Priority::default();
        let intent = Intent { id, want: Want::Hold, priority, deadline: None };
        self.queue(held.peer, intent).await;
    }

    /// Tells the table of a ban, unless the node has lifted or changed it since.
    async fn ban(&mut self, peer: EndpointId, until: Instant) {
        if self.context.banned_until(&peer) == Some(until) {
            self.input(peer, Input::Ban { until }).await;
        }
    }

    async fn queue(&mut self, peer: EndpointId, intent: Intent) {
        if self.is_banned_elsewhere(&peer) {
            self.end_intent(intent.id, Outcome::Banned, None);
        } else {
            self.input(peer, Input::Queue(intent)).await;
        }
    }

    /// Whether the peer is banned and the table, which had no room or gave it to others, does not know it.
    fn is_banned_elsewhere(&self, peer: &EndpointId) -> bool {
        !self.table.is_banned(peer) && self.context.is_banned(peer)
    }

    async fn arrived(&mut self, arrived: Box<Arrived>) {
        let peer = arrived.connection.remote_id();
        let me = self.context.id;
        let incoming = Incoming {
            link: arrived.hello.link_id(peer),
            dead: arrived.hello.dead.iter().map(|dead| dead.link(peer, me)).collect(),
            arrival: arrived.arrival,
        };
        self.arrived = Some(arrived);
        if self.is_banned_elsewhere(&peer) {
            let link = incoming.link;
            self.perform(peer, Output::Refuse(link, Code::Banned)).await;
            self.report(peer, PeerEvent::Refused(link, Code::Banned));
            return;
        }
        self.input(peer, Input::Incoming { incoming, room: true }).await;
        self.arrived = None;
    }

    async fn session_ended(&mut self, link: LinkId, end: ChildEnd) {
        let Some(running) = self.sessions.remove(&link) else { return };
        if let Some(link) = &running.link {
            link.retire();
        }
        let end = match end {
            ChildEnd::Stopped(state) => {
                let state = state.and_then(|mut state| state.take::<SessionState>().ok());
                // The state goes here, and with it the connection and its place at the gate.
                state.and_then(|state| state.end).unwrap_or(LinkEnd::Failed)
            }
            ChildEnd::Killed => LinkEnd::Failed,
            ChildEnd::Failed(error) if error.is::<SessionFailure>() => LinkEnd::Failed,
            ChildEnd::Failed(error) => self.session_panicked(running.peer, link, error.to_string()),
        };
        self.input(running.peer, Input::Ended { link, end }).await;
    }

    /// Reports a panic that a session ended with, at its start or later.
    fn session_panicked(&mut self, peer: EndpointId, link: LinkId, message: String) -> LinkEnd {
        self.context.counters.count(Family::Panicked, "session");
        self.last_panic.clone_from(&message);
        self.context.emit(NodeEvent::SessionPanicked { peer, link, message });
        LinkEnd::Panicked
    }

    /// Passes on what a session says of its link, if the session is still known.
    async fn about(&mut self, link: LinkId, input: Input) {
        if let Some(peer) = self.sessions.get(&link).map(|running| running.peer) {
            self.input(peer, input).await;
        }
    }

    async fn input(&mut self, peer: EndpointId, input: Input) {
        self.table.handle(Instant::now(), peer, input, &mut self.outputs);
        self.carry_out().await;
    }

    /// Carries out what the table wants, and what follows from that.
    async fn carry_out(&mut self) {
        while !self.outputs.is_empty() {
            for (peer, output) in std::mem::take(&mut self.outputs) {
                self.perform(peer, output).await;
            }
        }
        let due = self.table.next_timeout();
        self.alarm.send_if_modified(|alarm| std::mem::replace(alarm, due) != due);
        if !self.shut_down.is_empty() && self.sessions.is_empty() {
            for reply in self.shut_down.drain(..) {
                let _ = reply.send(());
            }
        }
    }

    async fn perform(&mut self, peer: EndpointId, output: Output) {
        match output {
            Output::Dial(link) => {
                let address = lock(&self.context.retained).book.addresses(&peer);
                let start = Start::Dial { dialler: self.dialler.clone(), address };
                self.start(peer, link, None, start).await;
            }
            Output::Admit(link) => self.take_over(peer, link, true).await,
            Output::Park(link) => self.take_over(peer, link, false).await,
            Output::Refuse(_, code) => {
                if let Some(arrived) = self.arrived.take() {
                    while self.refusals.try_join_next().is_some() {}
                    let here = here!(self.context, Point::ManagerRefusal);
                    self.refusals.spawn(async move {
                        if here.pass().await.is_ok() {
                            arrived.refuse(code).await;
                        }
                    });
                }
            }
            Output::Greet(link, dead) => self.order(link, SessionMessage::Greet(dead)),
            Output::Welcome(link) => self.order(link, SessionMessage::Welcome),
            Output::Keep(link, keep) => self.order(link, SessionMessage::Keep(keep)),
            Output::Drain(link, code, within) => {
                self.retire(link);
                self.order(link, SessionMessage::Drain(code, within));
            }
            Output::Close(link, code) => {
                self.retire(link);
                self.order(link, SessionMessage::Close(code));
            }
            Output::Kill(link) => {
                self.retire(link);
                if let Some(running) = self.sessions.get(&link) {
                    running.actor.get_cell().kill();
                }
            }
            Output::Publish(link) => {
                if let Some(link) = self.link(link) {
                    self.context.directory.publish(link);
                }
            }
            Output::Unpublish(link) => {
                self.context.directory.unpublish(&peer, link);
                self.retire(link);
            }
            Output::CloseIfIdle(id, linger) => {
                let now = Instant::now();
                if let Some(link) = self.link(id) {
                    let linger = link.close_if_idle(now, linger);
                    let input = Input::Lingered { link: id, linger };
                    self.table.handle(now, peer, input, &mut self.outputs);
                }
            }
            Output::Hand(link, id) => {
                // A session that did not start has none.
                let grant = self.link(link).map_or(Grant::Gone, Grant::Link);
                // A caller that left meanwhile takes nothing with it: the link lingers out.
                if let Some(reply) = self.asks.remove(&id) {
                    let _ = reply.send(grant);
                }
            }
            Output::End(id, outcome, cause) => self.end_intent(id, outcome, cause),
            // The table takes a link for live before its session has started.
            Output::Event(PeerEvent::Up(link, _)) if self.link(link).is_none() => {
                self.stillborn.insert(link);
            }
            Output::Event(PeerEvent::Down(link, _)) if self.stillborn.remove(&link) => {}
            Output::Event(event) => self.report(peer, event),
            // The table carries these out itself.
            Output::WantDial | Output::Forget => {}
        }
    }

    fn link(&self, id: LinkId) -> Option<Arc<Link>> {
        self.sessions.get(&id).and_then(|running| running.link.clone())
    }

    fn retire(&self, link: LinkId) {
        if let Some(link) = self.link(link) {
            link.retire();
        }
    }

    fn order(&self, link: LinkId, message: SessionMessage) {
        if let Some(running) = self.sessions.get(&link) {
            // A session that is gone already tells so by its supervision event.
            let _ = running.actor.send_message(message);
        }
    }

    async fn take_over(&mut self, peer: EndpointId, id: LinkId, welcome: bool) {
        let Some(arrived) = self.arrived.take() else { return };
        let connection = arrived.connection.clone();
        let link = Link::new(
            id,
            peer,
            Direction::Inbound,
            connection,
            self.context.limits.connection_window,
        );
        let link = match arrived.streams {
            Some(streams) => Arc::new(link.with_places(streams)),
            None => Arc::new(link),
        };
        let start = Start::TakeOver { arrived, link: Arc::clone(&link), welcome };
        self.start(peer, id, Some(link), start).await;
    }

    async fn start(
        &mut self,
        peer: EndpointId,
        link: LinkId,
        published: Option<Arc<Link>>,
        start: Start,
    ) {
        let arguments = SessionArguments {
            context: Arc::clone(&self.context),
            manager: Mailbox { actor: self.me.clone(), depth: Arc::clone(&self.depth) },
            link,
            peer,
            incarnation: self.incarnation,
            start,
        };
        let supervisor = self.me.get_cell();
        let starting = ractor::Actor::spawn_linked(None, Session, arguments, supervisor);
        let started = tokio::time::timeout(SESSION_START, starting).await;
        let late = || format!("it did not start within {SESSION_START:?}");
        let late = || ractor::SpawnErr::StartupFailed(SessionFailure(late()).into());
        match started.unwrap_or_else(|_| Err(late())) {
            Ok((actor, _)) => {
                self.by_actor.insert(actor.get_id(), link);
                self.sessions.insert(link, Running { peer, actor, link: published });
            }
            Err(error) => {
                debug!(peer = %peer.fmt_short(), %link, %error, "session did not start");
                let end = match error {
                    ractor::SpawnErr::StartupFailed(error) if !error.is::<SessionFailure>() => {
                        self.session_panicked(peer, link, error.to_string())
                    }
                    _ => LinkEnd::Failed,
                };
                let input = Input::Ended { link, end };
                self.table.handle(Instant::now(), peer, input, &mut self.outputs);
            }
        }
    }

    fn end_intent(&mut self, id: IntentId, outcome: Outcome, cause: Option<LinkEnd>) {
        if let Some(reply) = self.asks.remove(&id) {
            let _ = reply.send(Grant::Ended(outcome, cause));
            return;
        }
        if let Some(held) = self.context.take_hold(id) {
            held.ended.send_replace(Some(outcome));
            self.context.counters.outcome(&outcome);
        }
    }

    fn end_asks(&mut self, outcome: Outcome) {
        for (_, reply) in self.asks.drain() {
            let _ = reply.send(Grant::Ended(outcome, None));
        }
    }
}
