//! The exchanges of Discovery: which run, who waits for each, and what becomes of those that peers open.

use std::sync::Arc;
use std::time::{Duration, Instant};

use iroh::EndpointId;
use kinfolk_core::code::Code;
use kinfolk_core::errands;
use kinfolk_core::peer_link::Direction;
use kinfolk_core::quota::{self, Room};
use kinfolk_core::walk::Wake;
use ractor::{ActorCell, ActorId};
use tracing::debug;

use super::{DiscoveryMessage, DiscoveryState};
use crate::discovery::exchange::{Exchange, ExchangeError, ExchangeReply, Exchanged, Heard, Role};
use crate::discovery::records::UnderWay;
use crate::discovery::walker::{Visited, WalkerMessage};
use crate::error::OpenError;
use crate::events::NodeEvent;
#[cfg(feature = "fault-injection")]
use crate::fault::Point;
use crate::fault::here;
use crate::metrics::Family;
use crate::peers::link::{LettingGo, Link};
use crate::peers::manager::{ERRAND_LINGER, PeerManagerMessage};
use crate::protocol::service::Incoming;
use crate::supervision::job::{self, Unfinished};
use crate::supervision::{ChildEnd, Lost, OwnedTask, lock};

/// Peers to start from that are asked at once; the walkers go to the others.
const BOOTSTRAP_AT_ONCE: usize = 8;

/// An exchange under way.
pub(super) struct Running {
    pub(super) exchange: ActorCell,
    /// When it has ended, or hangs.
    pub(super) latest: Instant,
    pub(super) lost: Lost,
    pub(super) wanted: Wanted,
    /// Of one that the peer has opened.
    pub(super) place: Option<Place>,
}

/// What an exchange is, and who waits for it.
pub(super) struct Wanted {
    pub(super) peer: EndpointId,
    pub(super) direction: Direction,
    /// How often the walkers had been woken when it began: what they were woken for later is not in it.
    wakes: u64,
    /// The walkers that visit the peer by it.
    pub(super) walkers: Vec<ActorId>,
    /// Those of them that have chosen the peer by themselves.
    choosers: Vec<ActorId>,
    /// Those of them that may have been woken after it began.
    late: Vec<ActorId>,
    pub(super) waiting: Vec<ExchangeReply>,
}

/// One of the places for exchanges that peers open.
pub(super) struct Place {
    since: Instant,
    heard: Heard,
    /// It is being stopped, since another one needs the place.
    is_displaced: bool,
}

impl DiscoveryState {
    /// Asks the peers to start from, all at once: of several, one that is dead keeps nobody waiting for the others.
    pub(super) async fn bootstrap(&mut self) {
        let context = Arc::clone(&self.context);
        for peer in context.bootstrap.iter().take(BOOTSTRAP_AT_ONCE) {
            if self.has_departed {
                return;
            }
            if self.under_way(*peer).is_none() {
                self.start_exchange(*peer, Role::Initiator, None, None).await;
            }
        }
    }

    pub(super) async fn visit(&mut self, walker: ActorId, peer: EndpointId, is_choice: bool) {
        if self.has_departed {
            return;
        }
        if self.context.is_banned(&peer) {
            if let Some(walker) = self.walkers.get(&walker) {
                walker.tell(WalkerMessage::Visited(peer, Visited::Failed));
            }
            return;
        }
        let wakes = self.wakes;
        match self.under_way(peer) {
            Some(wanted) => {
                wanted.walkers.push(walker);
                if wanted.wakes != wakes {
                    wanted.late.push(walker);
                }
                self.count_running();
            }
            None => self.start_exchange(peer, Role::Initiator, Some(walker), None).await,
        }
        if let Some(wanted) = self.under_way(peer).filter(|_| is_choice) {
            wanted.choosers.push(walker);
        }
    }

    /// The exchange with a peer that this node has opened.
    pub(super) fn under_way(&mut self, peer: EndpointId) -> Option<&mut Wanted> {
        let mut wanted = self.exchanges.values_mut().map(|running| &mut running.wanted);
        wanted.find(|wanted| wanted.peer == peer && wanted.is_ours())
    }

    pub(super) async fn sync(&mut self, peer: EndpointId, reply: ExchangeReply) {
        if self.has_departed {
            let _ = reply.send(Err(ExchangeError::Open(OpenError::ShuttingDown)));
            return;
        }
        if let Some(wanted) = self.under_way(peer) {
            wanted.waiting.push(reply);
            return;
        }
        let synced = self.exchanges.values().filter(|running| running.wanted.is_synced()).count();
        if synced >= self.context.limits.exchanges_outbound {
            let _ = reply.send(Err(ExchangeError::TooMany));
            return;
        }
        self.start_exchange(peer, Role::Initiator, None, Some(reply)).await;
    }

    /// Answers an exchange that a peer has opened: one at a time, and not more often than is good for both.
    pub(super) async fn answer(&mut self, mut stream: Incoming) {
        let (peer, now) = (stream.peer, Instant::now());
        let is_answered = self.answered().any(|(other, ..)| other == peer);
        let room = self.room(now);
        let may = !is_answered && room != Room::None && lock(&self.context.quota).start(now, peer);
        if !may {
            self.context.counters.count(Family::ExchangeEnded, "refused");
            stream.send.reset(Code::Busy);
            stream.recv.stop(Code::Busy);
            return;
        }
        if let Room::Of(actor) = room {
            self.displace(actor);
        }
        let role = Role::Responder(Box::new(stream), Heard::now());
        self.start_exchange(peer, role, None, None).await;
    }

    /// The exchanges that take the places for peers, and whose they are. One that is being displaced, or awaits nothing more from its peer, takes none: it ends by itself.
    fn answered(&self) -> impl Iterator<Item = (EndpointId, ActorId, quota::Place)> {
        self.exchanges.iter().filter_map(|(actor, running)| {
            let place = running.place.as_ref().filter(|place| !place.is_displaced)?;
            let place = quota::Place { since: place.since, heard: place.heard.at()? };
            Some((running.wanted.peer, *actor, place))
        })
    }

    /// What place there is for another exchange of a peer.
    fn room(&self, now: Instant) -> Room<ActorId> {
        let taken = self.answered().map(|(_, actor, place)| (actor, place));
        quota::room(now, self.context.limits.exchanges_inbound, taken)
    }

    fn displace(&mut self, actor: ActorId) {
        let Some(running) = self.exchanges.get_mut(&actor) else { return };
        if let Some(place) = &mut running.place {
            place.is_displaced = true;
            running.exchange.stop(None);
        }
    }

    pub(super) async fn start_exchange(
        &mut self,
        peer: EndpointId,
        role: Role,
        walker: Option<ActorId>,
        reply: Option<ExchangeReply>,
    ) {
        let direction = role.direction();
        let heard = match &role {
            Role::Initiator => None,
            Role::Responder(_, heard) => Some(heard.clone()),
        };
        let exchange = Exchange { context: Arc::clone(&self.context), peer, role };
        let started = job::start(exchange, self.me.get_cell()).await;
        let (walkers, waiting) = (walker.into_iter().collect(), reply.into_iter().collect());
        let (choosers, late) = (Vec::new(), Vec::new());
        let wanted =
            Wanted { peer, direction, wakes: self.wakes, walkers, choosers, late, waiting };
        match started {
            Ok(actor) => {
                let now = Instant::now();
                let place = heard.map(|heard| Place { since: now, heard, is_displaced: false });
                self.context.emit(NodeEvent::ExchangeStarted { peer, direction });
                let limits = &self.context.limits;
                let longest = limits.dial_deadline.saturating_add(limits.exchange.deadline);
                // Where this process has no time to end it at once, that is no reason to kill it.
                let latest = now.checked_add(longest.saturating_add(limits.unresponsive));
                let (exchange, latest) = (actor.get_cell(), latest.unwrap_or(now));
                let running = Running { exchange, latest, lost: Lost::default(), wanted, place };
                self.exchanges.insert(actor.get_id(), running);
                self.count_running();
            }
            Err(error) => self.exchange_over(wanted, Err(ExchangeError::failed(&error))),
        }
    }

    pub(super) fn exchange_ended(&mut self, actor: ActorId, end: ChildEnd) {
        let Some(Running { lost, wanted, place, .. }) = self.exchanges.remove(&actor) else {
            return;
        };
        self.count_running();
        let is_displaced = place.is_some_and(|place| place.is_displaced);
        let result = match job::end_of::<Exchange>(&self.context, end) {
            Ok(result) => result,
            Err(Unfinished::Stopped) if is_displaced => Err(ExchangeError::Displaced),
            Err(Unfinished::Killed) if lost.is_so() => {
                Err(ExchangeError::failed(&"it did not end by its deadline"))
            }
            Err(unfinished) => Err(ExchangeError::failed(&unfinished)),
        };
        self.exchange_over(wanted, result);
    }

    pub(super) fn count_running(&self) {
        let ours = self.exchanges.values().filter(|running| running.wanted.is_ours()).count();
        let visits = self.exchanges.values().flat_map(|running| &running.wanted.walkers);
        let visiting = visits.filter(|walker| self.walkers.contains_key(walker)).count();
        self.context.note_under_way(UnderWay {
            outbound: ours,
            inbound: self.exchanges.len().saturating_sub(ours),
            visiting,
            resting: self.walkers.len().saturating_sub(visiting),
        });
    }

    /// Tells all who wait for an exchange what came of it.
    pub(super) fn exchange_over(
        &mut self,
        wanted: Wanted,
        result: Result<Exchanged, ExchangeError>,
    ) {
        let Wanted { peer, direction, walkers, choosers, late, waiting, .. } = wanted;
        let name = match &result {
            Ok(Exchanged { error: Some(error), .. }) | Err(error) => error.name(),
            Ok(exchanged) if exchanged.report.is_complete => "complete",
            Ok(_) => "cut",
        };
        self.context.counters.count(Family::ExchangeEnded, name);
        for walker in walkers.iter().filter_map(|walker| self.walkers.get(walker)) {
            walker.tell(WalkerMessage::Visited(peer, Visited::of(&result)));
        }
        let (report, error) = match result {
            Ok(Exchanged { report, error, link, .. }) => {
                self.let_go(link);
                (Some(report), error)
            }
            Err(error) => (None, Some(error)),
        };
        let learnt = report.map_or(0, |report| report.learnt);
        let caller = (direction == Direction::Inbound && error.is_none()).then_some(peer);
        let is_choice = choosers.iter().any(|walker| self.walkers.contains_key(walker));
        let tells = learnt > 0 || (is_choice && error.is_none());
        for (id, walker) in &self.walkers {
            // Whose visit it was knows already; but one whose visit failed hears of what came before as of any other news.
            let has_heard = error.is_none() && walkers.contains(id);
            if caller.is_some() || (tells && !has_heard) {
                walker.tell(WalkerMessage::Told(caller, learnt));
            }
            // This one has told the peer nothing of what it was woken for.
            if late.contains(id) {
                walker.tell(WalkerMessage::Wake(Wake::Changed));
            }
        }
        debug!(peer = %peer.fmt_short(), ?report, ?error, "exchange over");
        let ended = || report.ok_or(ExchangeError::Restarted);
        for reply in waiting {
            let _ = reply.send(error.clone().map_or_else(ended, Err));
        }
        self.context.emit(match (report, error) {
            (Some(report), None) => NodeEvent::ExchangeEnded { peer, direction, report },
            (report, error) => {
                let error = error.unwrap_or(ExchangeError::Restarted);
                NodeEvent::ExchangeFailed { peer, direction, error, report }
            }
        });
    }

    /// An errand is over that used this link. If it was dialled for errands, and no app has found another use for it, it closes
    /// once there was none for a moment, or at once where too many linger.
    pub(super) fn let_go(&mut self, link: Arc<Link>) {
        if !link.is_errand() {
            return;
        }
        self.lingering.retain(|(_, wait)| !wait.is_over());
        // Of a wait that goes with this actor nothing is left: the next errand over this link begins another.
        if let Some(letting_go) = LettingGo::begin(&link) {
            let wait = self.linger(Arc::clone(&link), letting_go);
            // What is closed goes at once: its connection keeps its memory as long as anybody has the link.
            self.lingering.push((Arc::downgrade(&link), wait));
        }
        let links = self.lingering.iter().filter_map(|(link, _)| link.upgrade());
        let idle = links.filter(|link| link.is_errand());
        let idle = idle.filter_map(|link| link.idle_since().map(|since| (link, since)));
        let records = &self.context.records;
        let (neighbours, known) = (records.neighbours().len(), records.snapshot().len());
        let lingering = errands::lingering(self.context.limits.errand_links, neighbours, known);
        for link in errands::surplus(idle, lingering) {
            // A manager that is being restarted has no links.
            let _ = self.context.tell_manager(PeerManagerMessage::ErrandOver(link, Duration::ZERO));
        }
    }

    /// Waits until the link is idle for long enough, and has it closed.
    fn linger(&self, link: Arc<Link>, mut letting_go: LettingGo) -> OwnedTask {
        let context = Arc::clone(&self.context);
        let waiting = async move {
            let mut wait = ERRAND_LINGER;
            loop {
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    () = link.retired() => return,
                }
                drop(letting_go);
                // Whatever uses it now lets go of it by itself.
                let Some(since) = link.idle_since().filter(|_| link.is_errand()) else { return };
                wait = ERRAND_LINGER.saturating_sub(since.elapsed());
                if wait.is_zero() {
                    // A manager that is being restarted has no links.
                    let over = PeerManagerMessage::ErrandOver(link, ERRAND_LINGER);
                    let _ = context.tell_manager(over);
                    return;
                }
                let Some(again) = LettingGo::begin(&link) else { return };
                letting_go = again;
            }
        };
        let here = here!(self.context, Point::DiscoveryLetsGo);
        OwnedTask::spawn(&self.me, here, waiting, DiscoveryMessage::TaskPanicked)
    }
}

impl Wanted {
    /// Whether this node opened it.
    pub(super) fn is_ours(&self) -> bool {
        self.direction == Direction::Outbound
    }

    /// Whether it was the app's wish.
    fn is_synced(&self) -> bool {
        self.is_ours() && self.walkers.is_empty() && !self.waiting.is_empty()
    }
}
