//! Discovery: keeps the node's own record true, and runs the walkers and the exchanges.
//!
//! ```text
//! Discovery
//! ├── Walker × n          each walks the network, one exchange at a time
//! ├── Exchange × running  each reconciles the catalog with one peer
//! └── Announcer           spreads what is new over a few neighbours
//! ```
//!
//! The catalog itself is the node's and survives a restart of this actor; records go from an exchange into the catalog without passing a
//! mailbox. What others can cause here is bounded: exchanges that peers open by the places of their protocol and one for each peer,
//! news of peers by one message for all of them. Its handlers await nothing but the local start of a child. Whenever the node asks it whether
//! it is well, it asks its children, and kills those that hang.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use iroh::EndpointId;
use kinfolk_core::bucket::{Bucket, Rate};
use kinfolk_core::catalog;
use kinfolk_core::record::Seq;
use kinfolk_core::walk::Wake;
use ractor::{ActorId, ActorProcessingErr, ActorRef, RpcReplyPort, SupervisionEvent};
use tokio::sync::{Notify, watch};
use tracing::warn;

use crate::clock::clock;
use crate::context::Context;
use crate::discovery::announcer::{Announcer, AnnouncerArguments, AnnouncerMessage};
use crate::discovery::exchange::{EXCHANGE, ExchangeError, ExchangeReply};
use crate::discovery::mdns::Mdns;
use crate::discovery::walker::{Walker, WalkerArguments, WalkerMessage};
use crate::events::NodeEvent;
#[cfg(feature = "fault-injection")]
use crate::fault::Point;
use crate::fault::here;
use crate::local_only::local_only;
use crate::metrics::Family;
use crate::peers::link::Link;
use crate::protocol::service::{Incoming, Service};
use crate::supervision::{self, ChildEnd, Lost, OwnedTask, Pulse, Restarts, Watched, child_end};

mod exchanges;
mod saying;

use exchanges::Running;

/// The longest pause between two visits while there is news, of all walkers but one: they are there for when that one waits for a slow peer. Without it they would open twice
/// the sessions while a node gets to know its network.
const PAUSE_OF_OTHERS: Duration = Duration::from_secs(1);

/// How often walkers are woken since the app looks for somebody: who looks asks again and again.
const SOUGHT_RATE: Rate = Rate::new(1, Duration::from_secs(10));

/// The longest wait before the announcer is started again. It doubles from a second on, the first time there is none, and it never gives up: without it news comes by exchanges.
const ANNOUNCER_PAUSE_MAX: Duration = Duration::from_secs(60);

/// How long after its end discovery on the local network is started again.
const MDNS_PAUSE: Duration = Duration::from_secs(60);

/// The actor.
pub(crate) struct Discovery;

/// What it is started with.
pub(crate) struct DiscoveryArguments {
    pub(crate) context: Arc<Context>,
    pub(crate) pulse: Arc<Pulse>,
}

/// What Discovery is told and asked.
pub(crate) enum DiscoveryMessage {
    /// A record of the catalog may be over.
    Expire,
    /// It is time for a new record of this node.
    Renew,
    /// There is something new about this node.
    OwnNews(OwnNews),
    /// A number for a record of this node is saved where it has to be.
    Numbered(Seq, Saying),
    /// There are peers with a session of which no record is known.
    Met,
    /// The app looks for somebody whom this node does not know.
    Sought,
    /// The node has a new way into the network.
    NetworkNews,
    /// A peer has opened an exchange.
    Answer(Incoming),
    /// A walker wants to visit a peer, of its own choice or one that has shown up.
    Visit { walker: ActorId, peer: EndpointId, is_choice: bool },
    /// The app wants to exchange catalogs with a peer.
    Sync(EndpointId, ExchangeReply),
    /// There are peers in the catalog that were not.
    Found,
    /// A stream of announcements is over that used this link.
    ErrandOver(Arc<Link>),
    /// The node leaves; answered once its neighbours know.
    Depart(RpcReplyPort<()>),
    /// The delay before a walker is started again is over.
    StartWalker,
    /// The delay before the announcer is started again is over.
    StartAnnouncer,
    /// Is it well?
    Pulse,
    /// One of its tasks panicked.
    TaskPanicked(String),
    /// Fail, as a test asked.
    #[cfg(feature = "fault-injection")]
    Crash(crate::fault::Crash),
}
local_only!(DiscoveryMessage);

impl From<Incoming> for DiscoveryMessage {
    fn from(stream: Incoming) -> Self {
        Self::Answer(stream)
    }
}

/// What is new about this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OwnNews {
    /// What its record says.
    Said,
    /// Nothing: its record is too old to be told as news.
    Aged,
    /// In which secret topics it takes part, which is in no record.
    Secret,
}

/// What a record of this node is to say.
pub(crate) enum Saying {
    /// That it is there.
    Present,
    /// That it leaves; answered once its neighbours know.
    Departed(RpcReplyPort<()>),
}

/// The children, and when the node's record is due.
pub(crate) struct DiscoveryState {
    me: ActorRef<DiscoveryMessage>,
    context: Arc<Context>,
    walkers: HashMap<ActorId, Watched<WalkerMessage>>,
    /// The one that makes no pauses of [`PAUSE_OF_OTHERS`], as long as it is among them.
    first_walker: Option<ActorId>,
    /// How often all walkers were woken.
    wakes: u64,
    announcer: Option<Watched<AnnouncerMessage>>,
    /// It has said farewell, and says nothing more of itself.
    has_departed: bool,
    /// What it says next is new, and worth a visit.
    has_news: bool,
    /// How often walkers may be woken since the app looks for somebody.
    sought: Bucket,
    /// Failures of the announcer in a row, and since when it has been well.
    announcer_failures: u32,
    announcer_since: Option<Instant>,
    exchanges: HashMap<ActorId, Running>,
    restarts: Restarts,
    /// The waits before children are started again, and when each is over.
    restarting: Vec<(Instant, OwnedTask)>,
    /// Links that were dialled for errands and linger, each with the wait for its end.
    lingering: Vec<(Weak<Link>, OwnedTask)>,
    /// Numbers that are being saved.
    saving: Vec<OwnedTask>,
    renewed_at: Option<Instant>,
    renewal: watch::Sender<Option<Instant>>,
    /// Tell the clocks that their ticks were handled.
    expired: Arc<Notify>,
    renewed: Arc<Notify>,
    /// Answered by the clock of [`DiscoveryMessage::Renew`]; the other one answers the node.
    renewing: Arc<Pulse>,
    pulse: Arc<Pulse>,
    _clocks: [OwnedTask; 2],
    /// Saves the peers that were reached, and follows the local network.
    _errands: [OwnedTask; 2],
}

#[ractor::actor(
    message = DiscoveryMessage,
    state = DiscoveryState,
    arguments = DiscoveryArguments
)]
impl Discovery {
    async fn pre_start(
        &self,
        myself: ActorRef<DiscoveryMessage>,
        arguments: DiscoveryArguments,
    ) -> Result<DiscoveryState, ActorProcessingErr> {
        let DiscoveryArguments { context, pulse } = arguments;
        here!(context, Point::DiscoveryPreStart).pass().await?;
        let (expired, renewed) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let renewal = watch::Sender::new(None);
        let renewing_pulse = Arc::new(Pulse::default());
        let expiring = clock(
            context.records.due(),
            Arc::clone(&expired),
            Arc::clone(&pulse),
            myself.clone(),
            || DiscoveryMessage::Expire,
        );
        let renewing = clock(
            renewal.subscribe(),
            Arc::clone(&renewed),
            Arc::clone(&renewing_pulse),
            myself.clone(),
            || DiscoveryMessage::Renew,
        );
        let here = here!(context, Point::DiscoveryClock);
        let expiring = OwnedTask::spawn(&myself, here, expiring, DiscoveryMessage::TaskPanicked);
        let here = here!(context, Point::DiscoveryRenewal);
        let renewing = OwnedTask::spawn(&myself, here, renewing, DiscoveryMessage::TaskPanicked);
        let keeping = {
            let context = Arc::clone(&context);
            async move { context.keep_anchors().await }
        };
        let here = here!(context, Point::DiscoveryKeeps);
        let keeping = OwnedTask::spawn(&myself, here, keeping, DiscoveryMessage::TaskPanicked);
        let looking = look_around(Arc::clone(&context));
        let here = here!(context, Point::DiscoveryLooks);
        let looking = OwnedTask::spawn(&myself, here, looking, DiscoveryMessage::TaskPanicked);
        let mut state = DiscoveryState {
            me: myself,
            walkers: HashMap::new(),
            first_walker: None,
            wakes: 0,
            announcer: None,
            // One that is restarted while the node drains says nothing more.
            has_departed: context.is_draining(),
            has_news: false,
            sought: Bucket::full(Instant::now()),
            announcer_failures: 0,
            announcer_since: None,
            exchanges: HashMap::new(),
            restarts: Restarts::new(),
            restarting: Vec::new(),
            lingering: Vec::new(),
            saving: Vec::new(),
            renewed_at: None,
            renewal,
            expired,
            renewed,
            renewing: renewing_pulse,
            pulse,
            _clocks: [expiring, renewing],
            _errands: [keeping, looking],
            context,
        };
        // From here on it is told what happens; what happened before, it looks up. Nothing falls in between.
        state.context.set_discovery(Some(state.me.clone()));
        state.renew();
        state.bootstrap().await;
        for _ in 0..state.context.limits.walkers {
            state.start_walker().await?;
        }
        state.start_announcer().await;
        // And one that may displace another.
        let places = state.context.limits.exchanges_inbound.saturating_add(1);
        let service = Service::actor(state.me.clone()).concurrency(places);
        state.context.serve_own(EXCHANGE, service);
        state.meet_again();
        state.found();
        // What an earlier one has counted is over.
        state.count_running();
        Ok(state)
    }

    async fn handle(
        &self,
        _myself: ActorRef<DiscoveryMessage>,
        message: DiscoveryMessage,
        state: &mut DiscoveryState,
    ) -> Result<(), ActorProcessingErr> {
        here!(state.context, message.point()).pass().await?;
        state.receive(message).await
    }

    async fn handle_supervisor_evt(
        &self,
        _myself: ActorRef<DiscoveryMessage>,
        event: SupervisionEvent,
        state: &mut DiscoveryState,
    ) -> Result<(), ActorProcessingErr> {
        let Some((actor, end)) = child_end(event) else { return Ok(()) };
        here!(state.context, Point::DiscoverySupervise).pass().await?;
        if let Some(walker) = state.walkers.remove(&actor) {
            state.count_running();
            return state.walker_failed(&state.cause(end, &walker.lost));
        }
        if let Some(announcer) = state.announcer.take_if(|own| own.actor.get_id() == actor) {
            let cause = state.cause(end, &announcer.lost);
            state.announcer_failed(&cause);
            return Ok(());
        }
        state.exchange_ended(actor, end);
        Ok(())
    }

    async fn post_stop(
        &self,
        _myself: ActorRef<DiscoveryMessage>,
        state: &mut DiscoveryState,
    ) -> Result<(), ActorProcessingErr> {
        here!(state.context, Point::DiscoveryPostStop).pass().await?;
        state.context.set_discovery(None);
        for (_, running) in state.exchanges.drain() {
            for reply in running.wanted.waiting {
                let _ = reply.send(Err(ExchangeError::Restarted));
            }
        }
        Ok(())
    }
}

impl DiscoveryState {
    async fn receive(&mut self, message: DiscoveryMessage) -> Result<(), ActorProcessingErr> {
        use DiscoveryMessage as M;
        match message {
            M::Expire => {
                self.context.note(catalog::Input::Timeout);
                self.expired.notify_one();
            }
            M::Renew => {
                self.renew();
                self.renewed.notify_one();
            }
            M::OwnNews(news) => self.own_news(news),
            M::Numbered(seq, Saying::Present) => self.say_present(seq),
            M::Numbered(seq, Saying::Departed(reply)) => self.say_departed(seq, reply),
            M::Met => self.met(),
            M::Sought => self.sought(),
            M::NetworkNews => {
                // First, so that whoever is woken may visit those that were missed.
                self.context.note(catalog::Input::Online);
                self.wake(Wake::Online);
            }
            M::Answer(stream) => self.answer(stream).await,
            M::Visit { walker, peer, is_choice } => self.visit(walker, peer, is_choice).await,
            M::Sync(peer, reply) => self.sync(peer, reply).await,
            M::Found => self.found(),
            M::ErrandOver(link) => self.let_go(link),
            M::Depart(reply) => self.depart(reply),
            M::StartWalker => {
                self.start_walker().await?;
                self.meet_again();
            }
            M::StartAnnouncer => self.start_announcer().await,
            M::Pulse => self.watch()?,
            M::TaskPanicked(text) => return Err(text.into()),
            #[cfg(feature = "fault-injection")]
            M::Crash(crash) => crash.strike().await?,
        }
        Ok(())
    }
}

impl DiscoveryState {
    /// Has peers visited that have a session and no record, unless an exchange with them is under way already. One visit is enough; they are
    /// dealt out in turn, to walkers that have none under way first.
    fn met(&mut self) {
        if self.walkers.is_empty() {
            // They wait for the next one.
            return;
        }
        let is_busy = |walker: &ActorId| {
            self.exchanges.values().any(|running| running.wanted.walkers.contains(walker))
        };
        let mut walkers: Vec<_> = self.walkers.iter().collect();
        walkers.sort_by_key(|(walker, _)| is_busy(walker));
        let mut turns = walkers.iter().cycle();
        let known = self.context.records.snapshot();
        for peer in self.context.records.met.take() {
            // The keys are of sessions: they are valid.
            let Ok(peer) = EndpointId::from_bytes(&peer) else { continue };
            let is_asked = self.exchanges.values().any(|running| running.wanted.peer == peer);
            if is_asked || known.get(&peer).is_some() {
                continue;
            }
            if let Some((_, walker)) = turns.next() {
                walker.tell(WalkerMessage::Wake(Wake::Appeared(peer)));
            }
        }
    }

    /// The same for all of them: who was told of them before may have failed.
    fn meet_again(&mut self) {
        self.context.note_strangers();
        self.met();
    }

    /// Has the walkers look around for somebody whom the app wants and this node does not know, at a bounded rate: an app may want many.
    fn sought(&mut self) {
        if self.sought.take(Instant::now(), SOUGHT_RATE, SOUGHT_RATE.burst) {
            self.wake(Wake::Changed);
        }
    }

    /// Tells all walkers of news.
    fn wake(&mut self, wake: Wake) {
        self.wakes = self.wakes.saturating_add(1);
        for walker in self.walkers.values() {
            walker.tell(WalkerMessage::Wake(wake));
        }
    }
}

impl DiscoveryState {
    /// Looks for what hangs, here and below.
    fn watch(&mut self) -> Result<(), ActorProcessingErr> {
        let now = Instant::now();
        for walker in self.walkers.values_mut() {
            walker.ask("walker", WalkerMessage::Pulse)?;
        }
        if let Some(announcer) = &mut self.announcer {
            announcer.ask("announcer", AnnouncerMessage::Pulse)?;
        }
        for running in self.exchanges.values_mut().filter(|running| running.latest <= now) {
            running.lost.kill(&running.exchange, "exchange")?;
        }
        if !self.renewing.ask() {
            return Err("the clock of its record hangs".into());
        }
        self.renewing.pass_on();
        let unresponsive = self.context.limits.unresponsive;
        let is_late = |due: &Instant| now.saturating_duration_since(*due) > unresponsive;
        if self.restarting.iter().any(|(due, wait)| is_late(due) && !wait.is_over()) {
            return Err("the wait before a restart hangs".into());
        }
        self.pulse.pass_on();
        Ok(())
    }

    /// Why a child ended that should not have.
    fn cause(&self, end: ChildEnd, lost: &Lost) -> String {
        match end {
            ChildEnd::Stopped(_) => "it stopped while discovery was running".to_owned(),
            ChildEnd::Killed if lost.is_so() => {
                format!("it was silent for {:?}", self.context.limits.unresponsive)
            }
            ChildEnd::Killed => "it was killed".to_owned(),
            ChildEnd::Failed(error) => error.to_string(),
        }
    }
}

impl DiscoveryState {
    async fn start_walker(&mut self) -> Result<(), ActorProcessingErr> {
        if self.has_departed {
            return Ok(());
        }
        let (context, discovery) = (Arc::clone(&self.context), self.me.clone());
        let pulse = Arc::new(Pulse::default());
        let mut limits = context.limits.walk.clone();
        let has_first = self.first_walker.is_some_and(|first| self.walkers.contains_key(&first));
        if has_first {
            limits.pause = limits.pause.max(PAUSE_OF_OTHERS);
        }
        let arguments = WalkerArguments { context, discovery, limits, pulse: Arc::clone(&pulse) };
        match supervision::start(Walker, arguments, self.me.get_cell()).await {
            Ok(walker) => {
                if !has_first {
                    self.first_walker = Some(walker.get_id());
                }
                self.walkers.insert(walker.get_id(), Watched::new(walker, pulse));
                self.count_running();
                Ok(())
            }
            Err(error) => self.walker_failed(&error.to_string()),
        }
    }

    async fn start_announcer(&mut self) {
        if self.has_departed {
            return;
        }
        let (context, pulse) = (Arc::clone(&self.context), Arc::new(Pulse::default()));
        let arguments = AnnouncerArguments { context, pulse: Arc::clone(&pulse) };
        match supervision::start(Announcer, arguments, self.me.get_cell()).await {
            Ok(announcer) => {
                self.announcer = Some(Watched::new(announcer, pulse));
                self.announcer_since = Some(Instant::now());
                let own = self.context.records.snapshot().own().map(|own| own.record().clone());
                if let Some(own) = own {
                    self.tell_announcer(AnnouncerMessage::Own(own));
                }
                self.tell_announcer(AnnouncerMessage::Found);
            }
            Err(error) => self.announcer_failed(&error.to_string()),
        }
    }

    fn tell_announcer(&self, message: AnnouncerMessage) {
        if let Some(announcer) = &self.announcer {
            announcer.tell(message);
        }
    }

    fn found(&self) {
        self.tell_announcer(AnnouncerMessage::Found);
    }

    fn walker_failed(&mut self, cause: &str) -> Result<(), ActorProcessingErr> {
        let delay = self.restarts.fail(Instant::now(), "walker", cause)?;
        self.start_later("walker", cause, delay, || DiscoveryMessage::StartWalker);
        Ok(())
    }

    fn announcer_failed(&mut self, cause: &str) {
        // It reads what strangers send: whatever these make of it is no reason for more to fail than itself.
        let lived = self.announcer_since.take().map(|since| since.elapsed());
        if lived.is_some_and(|lived| lived > ANNOUNCER_PAUSE_MAX) {
            self.announcer_failures = 0;
        }
        let doublings = self.announcer_failures.min(10);
        self.announcer_failures = self.announcer_failures.saturating_add(1);
        let pause = Duration::from_secs(1)
            .saturating_mul(2_u32.saturating_pow(doublings.saturating_sub(1)));
        let delay = if doublings == 0 { Duration::ZERO } else { pause.min(ANNOUNCER_PAUSE_MAX) };
        self.start_later("announcer", cause, delay, || DiscoveryMessage::StartAnnouncer);
    }

    /// Starts a child again after a while.
    fn start_later(
        &mut self,
        actor: &'static str,
        cause: &str,
        delay: Duration,
        start: fn() -> DiscoveryMessage,
    ) {
        warn!(actor, %cause, "a part of discovery failed");
        let now = Instant::now();
        self.context.counters.count(Family::Restarted, actor);
        self.context.emit(NodeEvent::Restarted { actor, cause: cause.to_owned() });
        let me = self.me.clone();
        let waiting = async move {
            tokio::time::sleep(delay).await;
            let _ = me.send_message(start());
        };
        let here = here!(self.context, Point::DiscoveryRestart);
        let waiting = OwnedTask::spawn(&self.me, here, waiting, DiscoveryMessage::TaskPanicked);
        self.restarting.retain(|(_, wait)| !wait.is_over());
        self.restarting.push((now.checked_add(delay).unwrap_or(now), waiting));
    }
}

/// Follows what the local network tells, if the app wants that: a peer that may be there is asked.
async fn look_around(context: Arc<Context>) {
    if !context.mdns {
        return;
    }
    loop {
        let mut mdns = Mdns::start(Arc::clone(&context), rand::random());
        while let Some(hint) = mdns.next().await {
            context.note_hint(hint);
        }
        // Its task has panicked.
        context.counters.count(Family::MdnsFailed, "panicked");
        tokio::time::sleep(MDNS_PAUSE).await;
    }
}
