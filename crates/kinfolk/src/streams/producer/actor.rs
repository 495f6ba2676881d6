//! Producer: decides who may subscribe and for how long, and supervises one feed per subscriber.
//!
//! It translates between its machine, [`Subscribers`], and what happens: streams on which consumers ask, tickets that the app looks at, records that change. Items never pass it. Its
//! handlers await nothing but the local start of a feed; what asks the app or waits for a peer runs in tasks.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt;
use iroh::EndpointId;
use kinfolk_core::stream::{SubscriberId, Subscribers, subscribers};
use kinfolk_core::wire::subscription::{Refusal, StreamEnd, Subscribe};
use ractor::{ActorId, ActorProcessingErr, ActorRef, SupervisionEvent};
use subscribers::{Ask, Eligible, Input, Output};
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::sync::{Notify, OwnedSemaphorePermit, watch};
use tracing::debug;

use crate::clock::clock;
use crate::context::Context;
use crate::discovery::records::Change;
use crate::events::NodeEvent;
#[cfg(feature = "fault-injection")]
use crate::fault::Point;
use crate::fault::here;
use crate::local_only::local_only;
use crate::metrics::Family;
use crate::protocol::service::Incoming;
use crate::streams::producer::feed::{self, Feed, FeedEnd, Frames};
use crate::streams::producer::outlet::{Outlet, TicketVerdict};
use crate::supervision::job::{self, JobRef};
use crate::supervision::{ChildEnd, OwnedTask, Pulse, child_end};

/// Peers whose records changed that are judged at once; the others wait for the next time.
const JUDGED_AT_ONCE: usize = 256;

/// Under which name those are counted who asked, and have no answer, as the actor has failed.
pub(crate) const AWAY: &str = "restarting";

/// The actor.
pub(crate) struct Producing;

/// What it is started with.
pub(crate) struct ProducerArguments {
    pub(crate) context: Arc<Context>,
    pub(crate) outlet: Arc<Outlet>,
    pub(crate) pulse: Arc<Pulse>,
}

/// What a producer is told and asked.
pub(crate) enum ProducerMessage {
    /// A consumer asks to subscribe.
    Asked(Box<Asking>),
    /// A subscriber presents a new ticket.
    Presented(SubscriberId, Bytes),
    /// The app has looked at a ticket; `None` if it is late.
    Looked(SubscriberId, subscribers::Generation, Option<Result<Option<Duration>, ()>>),
    /// The records of these peers have changed.
    Records(Vec<EndpointId>),
    /// Any record may have changed.
    AllRecords,
    /// The producer has ended: its outlet says why. Said again when somebody who was refused has heard it, as that may have been the last thing to do.
    End,
    /// It is time for what its machine waits for.
    Tick,
    /// Is it well?
    Pulse,
    /// One of its tasks panicked.
    TaskPanicked(String),
}
local_only!(ProducerMessage);

/// A consumer that asks to subscribe, with the stream that it asks on.
pub(crate) struct Asking {
    pub(crate) incoming: Incoming,
    pub(crate) subscribe: Subscribe,
    pub(crate) frames: Frames,
    /// Its place among those that wait for an answer.
    pub(crate) place: OwnedSemaphorePermit,
}

/// The machine, and those that it decides about.
pub(crate) struct ProducerState {
    me: ActorRef<ProducerMessage>,
    context: Arc<Context>,
    outlet: Arc<Outlet>,
    machine: Subscribers,
    /// Those that have no answer yet.
    asking: HashMap<SubscriberId, Asking>,
    /// Those that are subscribed.
    feeds: HashMap<SubscriberId, Fed>,
    /// Looks at tickets.
    looks: Vec<OwnedTask>,
    /// Those that were refused are being told so.
    refusals: Vec<OwnedTask>,
    /// Held by each of these until it is done.
    telling: Arc<()>,
    /// When all of them have had their time.
    told_by: Instant,
    ticked: Arc<Notify>,
    /// Told when changed records were judged.
    judged: Arc<Notify>,
    pulse: Arc<Pulse>,
    _clock: OwnedTask,
    _following: Option<OwnedTask>,
}

/// A subscriber.
struct Fed {
    actor: JobRef<Feed>,
    peer: EndpointId,
    ending: watch::Sender<Option<StreamEnd>>,
    /// When it was told to end.
    ended_at: Option<Instant>,
    looked: Arc<Notify>,
}

#[ractor::actor(message = ProducerMessage, state = ProducerState, arguments = ProducerArguments)]
impl Producing {
    async fn pre_start(
        &self,
        myself: ActorRef<ProducerMessage>,
        arguments: ProducerArguments,
    ) -> Result<ProducerState, ActorProcessingErr> {
        let ProducerArguments { context, outlet, pulse } = arguments;
        here!(context, Point::ProducerPreStart).pass().await?;
        let ticked = Arc::new(Notify::new());
        let ticking =
            clock(outlet.alarm(), Arc::clone(&ticked), Arc::clone(&pulse), myself.clone(), || {
                ProducerMessage::Tick
            });
        let here = here!(context, Point::ProducerClock);
        let ticking = OwnedTask::spawn(&myself, here, ticking, ProducerMessage::TaskPanicked);
        let judged = Arc::new(Notify::new());
        let following = outlet.terms.admits.is_some().then(|| {
            let following = follow(Arc::clone(&context), myself.clone(), Arc::clone(&judged));
            let here = here!(context, Point::ProducerFollows);
            OwnedTask::spawn(&myself, here, following, ProducerMessage::TaskPanicked)
        });
        let mut limits = context.limits.streams.subscribers.clone();
        limits.total = outlet.terms.subscribers;
        let schema = outlet.terms.schema.clone();
        let machine = Subscribers::new(limits, schema, outlet.terms.tickets.is_some());
        let mut state = ProducerState {
            me: myself,
            machine,
            asking: HashMap::new(),
            feeds: HashMap::new(),
            looks: Vec::new(),
            refusals: Vec::new(),
            telling: Arc::default(),
            told_by: Instant::now(),
            ticked,
            judged,
            pulse,
            _clock: ticking,
            _following: following,
            outlet,
            context,
        };
        // From here on it is told; what happened before, it looks up.
        state.outlet.set_actor(Some(state.me.clone()));
        state.end().await;
        Ok(state)
    }

    async fn handle(
        &self,
        _myself: ActorRef<ProducerMessage>,
        message: ProducerMessage,
        state: &mut ProducerState,
    ) -> Result<(), ActorProcessingErr> {
        here!(state.context, message.point()).pass().await?;
        state.receive(message).await
    }

    async fn handle_supervisor_evt(
        &self,
        _myself: ActorRef<ProducerMessage>,
        event: SupervisionEvent,
        state: &mut ProducerState,
    ) -> Result<(), ActorProcessingErr> {
        let Some((actor, end)) = child_end(event) else { return Ok(()) };
        here!(state.context, Point::ProducerSupervise).pass().await?;
        state.feed_ended(actor, end).await;
        Ok(())
    }
}

impl Drop for ProducerState {
    fn drop(&mut self) {
        self.outlet.clear_actor(self.me.get_id());
        // Their streams go with it too, and they come again.
        for _ in 0..self.asking.len() {
            self.context.counters.count(Family::SubscriptionRefused, AWAY);
        }
        // Its feeds go with it.
        for fed in self.feeds.values() {
            let reason = FeedEnd::Failed("its producer is gone".into());
            self.context.counters.count(Family::SubscriptionEnded, reason.name());
            let stream = self.outlet.terms.name.clone();
            self.context.emit(NodeEvent::ConsumerLeft { stream, peer: fed.peer, reason });
        }
    }
}

/// Says whose records have changed, some at a time, and goes on when these were judged.
async fn follow(context: Arc<Context>, producer: ActorRef<ProducerMessage>, judged: Arc<Notify>) {
    let (_, mut changes) = context.records.follow();
    // Before it followed, records may have changed too.
    let mut told = ProducerMessage::AllRecords;
    loop {
        if producer.send_message(told).is_err() {
            return;
        }
        judged.notified().await;
        let of = |change: Change| match change {
            Change::Present(entry) => entry.id(),
            Change::Gone(peer) => peer,
        };
        let mut peers = match changes.recv().await {
            Ok(change) => vec![of(change)],
            Err(RecvError::Lagged(_)) => {
                told = ProducerMessage::AllRecords;
                continue;
            }
            Err(RecvError::Closed) => return,
        };
        told = loop {
            match changes.try_recv() {
                Ok(change) if peers.len() < JUDGED_AT_ONCE => peers.push(of(change)),
                Ok(_) | Err(TryRecvError::Lagged(_)) => break ProducerMessage::AllRecords,
                Err(TryRecvError::Empty | TryRecvError::Closed) => {
                    break ProducerMessage::Records(peers);
                }
            }
        };
    }
}

impl ProducerState {
    async fn receive(&mut self, message: ProducerMessage) -> Result<(), ActorProcessingErr> {
        match message {
            ProducerMessage::Asked(asking) => self.asked(*asking).await,
            ProducerMessage::Presented(id, ticket) => self.presented(id, ticket).await,
            ProducerMessage::Looked(id, generation, verdict) => {
                let is_in = self.feeds.contains_key(&id);
                // What is late by the clock of a look is late by the machine's, which began before it.
                let checked = |verdict| Input::TicketChecked { id, generation, verdict };
                self.input(verdict.map_or(Input::Timeout, checked)).await;
                // One that has just come in waits for no look.
                if is_in && let Some(fed) = self.feeds.get(&id) {
                    fed.looked.notify_one();
                }
            }
            ProducerMessage::Records(peers) => {
                for peer in peers {
                    self.judge(peer).await;
                }
                self.judged.notify_one();
            }
            ProducerMessage::AllRecords => {
                let mut peers: Vec<_> = self.feeds.values().map(|fed| fed.peer).collect();
                peers.extend(self.asking.values().map(|asking| asking.incoming.peer));
                for peer in peers {
                    self.judge(peer).await;
                }
                self.judged.notify_one();
            }
            ProducerMessage::End => self.end().await,
            ProducerMessage::Tick => {
                self.outlet.lose_patience();
                self.input(Input::Timeout).await;
                self.ticked.notify_one();
            }
            ProducerMessage::Pulse => {
                self.look_at_feeds();
                self.stop_if_over();
                self.pulse.pass_on();
            }
            ProducerMessage::TaskPanicked(text) => return Err(text.into()),
        }
        self.looks.retain(|task| !task.is_over());
        self.refusals.retain(|task| !task.is_over());
        Ok(())
    }

    async fn asked(&mut self, asking: Asking) {
        let (id, peer) = (self.outlet.next_subscriber(), asking.incoming.peer);
        let ask = Ask {
            peer,
            schema: asking.subscribe.schema.clone(),
            eligible: self.eligible(peer),
            has_ticket: asking.subscribe.ticket.is_some(),
        };
        self.asking.insert(id, asking);
        self.input(Input::Asked { id, ask }).await;
    }

    async fn presented(&mut self, id: SubscriberId, ticket: Bytes) {
        let Some(fed) = self.feeds.get(&id) else { return };
        let peer = fed.peer;
        let mut outputs = Vec::new();
        self.machine.handle(Instant::now(), Input::Renewed { id }, &mut outputs);
        if !outputs.iter().any(|output| matches!(output, Output::Check { .. })) {
            fed.looked.notify_one();
        }
        for output in outputs {
            match output {
                Output::Check { id, generation } => {
                    self.look_at(id, generation, peer, ticket.clone());
                }
                other => self.perform(other).await,
            }
        }
        self.set_alarm();
    }

    async fn judge(&mut self, peer: EndpointId) {
        let eligible = self.eligible(peer);
        self.input(Input::Judged { peer, eligible }).await;
    }

    /// Whether the app wants this peer, as far as its record is known.
    fn eligible(&self, peer: EndpointId) -> Eligible {
        let Some(admits) = &self.outlet.terms.admits else { return Eligible::Yes };
        let known = self.context.records.snapshot();
        let Some(entry) = known.get(&peer) else { return Eligible::Unknown };
        // It is the app's: it may panic, and then wants nobody.
        match catch_unwind(AssertUnwindSafe(|| admits(entry.record()))) {
            Ok(true) => Eligible::Yes,
            Ok(false) => Eligible::No,
            Err(_) => {
                self.context.counters.count(Family::Panicked, "stream_admission");
                Eligible::No
            }
        }
    }

    async fn end(&mut self) {
        if let Some(end) = self.outlet.ended() {
            self.input(Input::End(end)).await;
            self.stop_if_over();
        }
    }

    async fn input(&mut self, input: Input) {
        let mut outputs = Vec::new();
        self.machine.handle(Instant::now(), input, &mut outputs);
        for output in outputs {
            self.perform(output).await;
        }
        self.set_alarm();
    }

    fn set_alarm(&self) {
        self.outlet.set_alarm(self.machine.next_timeout());
    }

    async fn perform(&mut self, output: Output) {
        match output {
            Output::Check { id, generation } => {
                let Some(asking) = self.asking.get(&id) else { return };
                let peer = asking.incoming.peer;
                let ticket = asking.subscribe.ticket.clone().unwrap_or_default();
                self.look_at(id, generation, peer, ticket.into());
            }
            Output::Accept { id } => {
                if let Some(asking) = self.asking.remove(&id) {
                    self.accept(id, asking).await;
                }
            }
            Output::Refuse { id, refusal } => {
                if let Some(asking) = self.asking.remove(&id) {
                    self.refuse(asking, refusal);
                }
            }
            Output::End { id, end } => {
                if let Some(fed) = self.feeds.get_mut(&id) {
                    fed.ended_at = Some(Instant::now());
                    fed.ending.send_replace(Some(end));
                }
            }
        }
    }

    /// Has the app look at a ticket.
    fn look_at(
        &mut self,
        id: SubscriberId,
        generation: subscribers::Generation,
        peer: EndpointId,
        ticket: Bytes,
    ) {
        let (me, outlet, context) =
            (self.me.clone(), Arc::clone(&self.outlet), Arc::clone(&self.context));
        let looking = async move {
            let Some(check) = &outlet.terms.tickets else { return };
            let looking = AssertUnwindSafe(async { check(peer, ticket).await }).catch_unwind();
            // One that is never done would keep its subscriber waiting for ever.
            let deadline = context.limits.streams.subscribers.ticket_check;
            let verdict = match tokio::time::timeout(deadline, looking).await {
                Ok(Ok(TicketVerdict::Valid)) => Some(Ok(None)),
                Ok(Ok(TicketVerdict::ValidFor(time))) => Some(Ok(Some(time))),
                Ok(Ok(TicketVerdict::Invalid)) => Some(Err(())),
                Ok(Err(_)) => {
                    context.counters.count(Family::Panicked, "stream_ticket");
                    Some(Err(()))
                }
                Err(_) => None,
            };
            let _ = me.send_message(ProducerMessage::Looked(id, generation, verdict));
        };
        let here = here!(self.context, Point::ProducerLooks);
        let task = OwnedTask::spawn(&self.me, here, looking, ProducerMessage::TaskPanicked);
        self.looks.push(task);
    }

    fn refuse(&mut self, asking: Asking, refusal: Refusal) {
        let Asking { incoming, place, .. } = asking;
        debug!(peer = %incoming.peer.fmt_short(), refusal = refusal.name(), "subscription refused");
        self.context.counters.count(Family::SubscriptionRefused, refusal.name());
        let patience = self.context.limits.header_deadline;
        // How long it takes to hear that is its own affair.
        drop(place);
        let (me, outlet, told) =
            (self.me.clone(), Arc::clone(&self.outlet), Arc::clone(&self.telling));
        let telling = async move {
            feed::refuse(incoming, refusal, patience).await;
            drop(told);
            // One that has ended waits for this.
            if outlet.ended().is_some() {
                let _ = me.send_message(ProducerMessage::End);
            }
        };
        let now = Instant::now();
        self.told_by = self.told_by.max(now.checked_add(patience).unwrap_or(now));
        let here = here!(self.context, Point::ProducerRefuses);
        let task = OwnedTask::spawn(&self.me, here, telling, ProducerMessage::TaskPanicked);
        self.refusals.push(task);
    }

    async fn accept(&mut self, id: SubscriberId, asking: Asking) {
        let Asking { incoming, subscribe, frames, .. } = asking;
        let peer = incoming.peer;
        let (seat, next) = self.outlet.seat(id, peer, subscribe.resume);
        let (ending, looked) = (watch::Sender::new(None), Arc::new(Notify::new()));
        let feed = Feed {
            context: Arc::clone(&self.context),
            producer: self.me.clone(),
            seat,
            next,
            subscription: subscribe.id,
            incoming,
            frames,
            ending: ending.subscribe(),
            looked: Arc::clone(&looked),
        };
        match job::start(feed, self.me.get_cell()).await {
            Ok(actor) => {
                self.feeds.insert(id, Fed { actor, peer, ending, ended_at: None, looked });
                let stream = self.outlet.terms.name.clone();
                self.context.emit(NodeEvent::ConsumerJoined { stream, peer });
            }
            // Its streams were dropped with it: the consumer tries again.
            Err(_) => {
                self.context.counters.count(Family::SubscriptionEnded, "failed");
                self.left(id);
            }
        }
    }

    /// A feed that was told to end and is there long after its deadline hangs: whoever waits for its end would wait for ever.
    fn look_at_feeds(&self) {
        let limits = &self.context.limits;
        let latest = limits.drain_deadline.max(feed::LAST_WORD).saturating_add(limits.unresponsive);
        let now = Instant::now();
        for fed in self.feeds.values() {
            if fed.ended_at.is_some_and(|at| now.saturating_duration_since(at) >= latest) {
                fed.actor.kill();
            }
        }
    }

    /// The machine knows no more of a subscriber.
    fn left(&mut self, id: SubscriberId) {
        let mut outputs = Vec::new();
        self.machine.handle(Instant::now(), Input::Left { id }, &mut outputs);
        self.set_alarm();
    }

    async fn feed_ended(&mut self, actor: ActorId, end: ChildEnd) {
        let found = self.feeds.iter().find(|(_, fed)| fed.actor.get_id() == actor);
        let Some(id) = found.map(|(id, _)| *id) else { return };
        let Some(fed) = self.feeds.remove(&id) else { return };
        let reason = job::end_of::<Feed>(&self.context, end)
            .unwrap_or_else(|unfinished| FeedEnd::Failed(unfinished.to_string().into()));
        debug!(peer = %fed.peer.fmt_short(), %reason, "subscription over");
        self.context.counters.count(Family::SubscriptionEnded, reason.name());
        let stream = self.outlet.terms.name.clone();
        self.context.emit(NodeEvent::ConsumerLeft { stream, peer: fed.peer, reason });
        self.left(id);
        self.stop_if_over();
    }

    /// An ended producer whose subscribers all have got what was sent, and where all who were refused know why or have had their time, has nothing more to do.
    fn stop_if_over(&self) {
        let is_told = Arc::strong_count(&self.telling) == 1 || self.told_by <= Instant::now();
        if self.outlet.ended().is_some() && self.feeds.is_empty() && is_told {
            self.me.stop(None);
        }
    }
}
