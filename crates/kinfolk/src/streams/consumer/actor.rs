//! Consumer: decides which producers to be subscribed to and when to try again, and supervises one receiver per source.
//!
//! It translates between its machine, [`Subscriptions`], and what happens: records that come, change and go, subscriptions that end. Items never pass it. Its handlers
//! await nothing but the local start of a receiver.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use iroh::EndpointId;
use kinfolk_core::catalog::Entry;
use kinfolk_core::record::{Offer, Seq};
use kinfolk_core::stream::{Attempt, SourceState, Subscriptions, Termination, subscriptions};
use kinfolk_core::wire::subscription::{Refusal, Resume, StreamEnd};
use ractor::{ActorId, ActorProcessingErr, ActorRef, SupervisionEvent};
use subscriptions::{Input, Output, Withdrawal};
use tokio::sync::{Notify, watch};
use tracing::debug;

use crate::clock::clock;
use crate::context::Context;
use crate::discovery::find::{Find, Found};
use crate::events::NodeEvent;
#[cfg(feature = "fault-injection")]
use crate::fault::Point;
use crate::fault::here;
use crate::local_only::local_only;
use crate::metrics::Family;
use crate::streams::consumer::inlet::{Flow, Inlet};
use crate::streams::consumer::receiver::{ANSWER_FACTOR, Receiver, ReceiverEnd, SAY};
use crate::supervision::job::{self, JobRef, Unfinished};
use crate::supervision::{ChildEnd, OwnedTask, Pulse, child_end};

/// The actor.
pub(crate) struct Consuming;

/// What it is started with.
pub(crate) struct ConsumerArguments {
    pub(crate) context: Arc<Context>,
    pub(crate) inlet: Arc<Inlet>,
    pub(crate) pulse: Arc<Pulse>,
}

/// What a consumer is told.
pub(crate) enum ConsumerMessage {
    /// A peer offers the stream, by this record.
    Offered(EndpointId, Seq),
    /// A peer is no source any more.
    Withdrawn(EndpointId, Withdrawal),
    /// A producer has accepted.
    Accepted(Attempt),
    /// The app cannot read what a source sends.
    Poisoned(Attempt, Arc<str>),
    /// The app has a new ticket.
    NewTicket,
    /// The app wants nothing more: its inlet is closed.
    Close,
    /// It is time for what its machine waits for.
    Tick,
    /// Is it well?
    Pulse,
    /// One of its tasks panicked.
    TaskPanicked(String),
}
local_only!(ConsumerMessage);

/// The machine, and the receivers.
pub(crate) struct ConsumerState {
    me: ActorRef<ConsumerMessage>,
    context: Arc<Context>,
    inlet: Arc<Inlet>,
    machine: Subscriptions,
    receivers: HashMap<ActorId, Receiving>,
    alarm: watch::Sender<Option<Instant>>,
    ticked: Arc<Notify>,
    /// Told when a change of the catalog was taken in.
    noted: Arc<Notify>,
    pulse: Arc<Pulse>,
    _clock: OwnedTask,
    _following: OwnedTask,
}

/// A subscription.
struct Receiving {
    actor: JobRef<Receiver>,
    flow: Arc<Flow>,
    /// It was told to end: what it says of its end is of no interest.
    is_cut: bool,
    is_up: bool,
    since: Instant,
    /// The ticket of that time.
    ticket: Option<Bytes>,
}

#[ractor::actor(message = ConsumerMessage, state = ConsumerState, arguments = ConsumerArguments)]
impl Consuming {
    async fn pre_start(
        &self,
        myself: ActorRef<ConsumerMessage>,
        arguments: ConsumerArguments,
    ) -> Result<ConsumerState, ActorProcessingErr> {
        let ConsumerArguments { context, inlet, pulse } = arguments;
        here!(context, Point::ConsumerPreStart).pass().await?;
        let alarm = watch::Sender::new(None);
        let ticked = Arc::new(Notify::new());
        let ticking = clock(
            alarm.subscribe(),
            Arc::clone(&ticked),
            Arc::clone(&pulse),
            myself.clone(),
            || ConsumerMessage::Tick,
        );
        let here = here!(context, Point::ConsumerClock);
        let ticking = OwnedTask::spawn(&myself, here, ticking, ConsumerMessage::TaskPanicked);
        let noted = Arc::new(Notify::new());
        let following =
            follow(Arc::clone(&context), Arc::clone(&inlet), myself.clone(), Arc::clone(&noted));
        let here = here!(context, Point::ConsumerFollows);
        let following = OwnedTask::spawn(&myself, here, following, ConsumerMessage::TaskPanicked);
        let mut limits = context.limits.streams.subscriptions.clone();
        limits.sources = inlet.terms.sources;
        let machine = Subscriptions::new(limits, rand::random());
        let mut state = ConsumerState {
            me: myself,
            machine,
            receivers: HashMap::new(),
            alarm,
            ticked,
            noted,
            pulse,
            _clock: ticking,
            _following: following,
            inlet,
            context,
        };
        // From here on it is told; what happened before, it looks up.
        state.inlet.set_actor(Some(state.me.clone()));
        state.inlet.start_anew();
        state.close().await;
        Ok(state)
    }

    async fn handle(
        &self,
        _myself: ActorRef<ConsumerMessage>,
        message: ConsumerMessage,
        state: &mut ConsumerState,
    ) -> Result<(), ActorProcessingErr> {
        here!(state.context, message.point()).pass().await?;
        state.receive(message).await
    }

    async fn handle_supervisor_evt(
        &self,
        _myself: ActorRef<ConsumerMessage>,
        event: SupervisionEvent,
        state: &mut ConsumerState,
    ) -> Result<(), ActorProcessingErr> {
        let Some((actor, end)) = child_end(event) else { return Ok(()) };
        here!(state.context, Point::ConsumerSupervise).pass().await?;
        state.receiver_ended(actor, end).await;
        Ok(())
    }
}

impl Drop for ConsumerState {
    fn drop(&mut self) {
        if self.inlet.clear_actor(self.me.get_id()) {
            for receiving in self.receivers.values() {
                self.inlet.known(&receiving.flow.source, |source| {
                    source.state = SourceState::Connecting;
                    source.connected_since = None;
                });
            }
        }
        // Its receivers go with it.
        for receiving in self.receivers.values() {
            let reason = match receiving.is_cut {
                true => ReceiverEnd::Cut,
                false => ReceiverEnd::Failed("its consumer is gone".into()),
            };
            if !receiving.is_cut {
                self.context.counters.count(Family::SourceEnded, reason.name());
            }
            if receiving.is_up {
                let (stream, peer) = (self.inlet.terms.name.clone(), receiving.flow.source);
                self.context.emit(NodeEvent::SourceDown { stream, peer, reason });
            }
        }
    }
}

/// Says which peers offer the stream and which do not any more, one at a time.
async fn follow(
    context: Arc<Context>,
    inlet: Arc<Inlet>,
    consumer: ActorRef<ConsumerMessage>,
    noted: Arc<Notify>,
) {
    let offer = Offer::stream(&inlet.terms.name);
    let own = Arc::clone(&inlet);
    let counting = Arc::clone(&context);
    let wanted = move |entry: &Entry| {
        let offers = entry.record().offers().any(|other| other == offer);
        offers
            && own.terms.wants.as_ref().is_none_or(|wants| {
                // It is the app's: it may panic, and then wants nobody.
                let wanted = catch_unwind(AssertUnwindSafe(|| wants(entry.record())));
                wanted.unwrap_or_else(|_| {
                    counting.counters.count(Family::Panicked, "stream_selection");
                    false
                })
            })
    };
    let mut find = Find::new(&context, Box::new(wanted));
    // Before the consumer is told of any: of these alone it will hear that they are gone.
    inlet.keep(|peer| find.has_told(peer));
    while let Some(found) = find.next().await {
        let message = match found {
            Found::Here(entry) | Found::Changed(entry) => {
                ConsumerMessage::Offered(entry.id(), entry.record().seq())
            }
            Found::Gone(peer) => {
                let known = context.records.snapshot();
                let why = match known.get(&peer) {
                    None => Withdrawal::Gone,
                    Some(entry) if entry.record().offers().any(|other| other == offer) => {
                        Withdrawal::NotWanted
                    }
                    Some(_) => Withdrawal::NotOffered,
                };
                ConsumerMessage::Withdrawn(peer, why)
            }
        };
        if consumer.send_message(message).is_err() {
            return;
        }
        noted.notified().await;
    }
}

impl ConsumerState {
    async fn receive(&mut self, message: ConsumerMessage) -> Result<(), ActorProcessingErr> {
        match message {
            ConsumerMessage::Offered(peer, record) => {
                let rtt = self.context.directory.get(&peer).and_then(|link| link.rtt());
                self.input(Input::Offered { peer, record, rtt }).await;
                self.noted.notify_one();
            }
            ConsumerMessage::Withdrawn(peer, why) => {
                self.input(Input::Withdrawn { peer, why }).await;
                self.noted.notify_one();
            }
            ConsumerMessage::Accepted(attempt) => self.accepted(attempt).await,
            ConsumerMessage::Poisoned(attempt, reason) => {
                let mut resume = None;
                if let Some(peer) = self.peer_of(attempt) {
                    self.note_error(&peer, reason);
                    self.context.counters.count(Family::SourceEnded, "poisoned");
                    resume = self.inlet.known(&peer, |source| source.resume).flatten();
                }
                // Of no use any more, whatever it still brings.
                self.cut(attempt);
                self.input(Input::Poisoned { attempt, resume }).await;
            }
            ConsumerMessage::NewTicket => self.input(Input::NewTicket).await,
            ConsumerMessage::Close => self.close().await,
            ConsumerMessage::Tick => {
                self.input(Input::Timeout).await;
                self.ticked.notify_one();
            }
            ConsumerMessage::Pulse => {
                self.look_at_receivers();
                self.pulse.pass_on();
            }
            ConsumerMessage::TaskPanicked(text) => return Err(text.into()),
        }
        Ok(())
    }

    fn peer_of(&self, attempt: Attempt) -> Option<EndpointId> {
        let mut receivers = self.receivers.values();
        receivers
            .find(|receiving| receiving.flow.attempt == attempt)
            .map(|receiving| receiving.flow.source)
    }

    fn note_error(&self, peer: &EndpointId, reason: Arc<str>) {
        self.inlet.known(peer, |source| source.last_error = Some(reason));
    }

    /// Takes note that a producer has accepted, if that is so and not known yet.
    async fn accepted(&mut self, attempt: Attempt) {
        let mut receivers = self.receivers.values_mut();
        let Some(receiving) = receivers.find(|receiving| receiving.flow.attempt == attempt) else {
            return;
        };
        if receiving.is_up || receiving.flow.accepted.get().is_none() {
            return;
        }
        receiving.is_up = true;
        let peer = receiving.flow.source;
        let stream = self.inlet.terms.name.clone();
        self.context.emit(NodeEvent::SourceUp { stream, peer });
        self.input(Input::Accepted { attempt }).await;
    }

    async fn close(&mut self) {
        if self.inlet.is_closed() {
            self.input(Input::Close).await;
            self.stop_if_over();
        }
    }

    async fn input(&mut self, input: Input) {
        let mut outputs = Vec::new();
        self.machine.handle(Instant::now(), input, &mut outputs);
        for output in outputs {
            self.perform(output).await;
        }
        let due = self.machine.next_timeout();
        self.alarm.send_if_modified(|alarm| std::mem::replace(alarm, due) != due);
    }

    async fn perform(&mut self, output: Output) {
        match output {
            Output::Connect { attempt, peer, resume, introduce } => {
                self.connect(attempt, peer, resume, introduce).await;
            }
            Output::Cut { attempt, .. } => self.cut(attempt),
            Output::Changed { peer, state } => {
                let now = Instant::now();
                self.inlet.source(&peer, |source| {
                    source.connected_since = match state {
                        SourceState::Connected => source.connected_since.or(Some(now)),
                        _ => None,
                    };
                    if state == SourceState::Terminated(Termination::Misbehaved) {
                        // What came last is at fault, and would come again.
                        source.resume = None;
                    }
                    source.state = state;
                });
            }
            Output::Forgotten { peer } => self.inlet.forget(&peer),
        }
    }

    fn cut(&mut self, attempt: Attempt) {
        for receiving in self.receivers.values_mut() {
            if receiving.flow.attempt == attempt {
                receiving.is_cut = true;
                receiving.actor.stop(None);
            }
        }
    }

    async fn connect(
        &mut self,
        attempt: Attempt,
        peer: EndpointId,
        resume: Option<Resume>,
        introduce: bool,
    ) {
        let me = self.me.clone();
        // The machine does not know how far a subscription was that it gave up, or one before it was started anew.
        let (flow, kept) = self.inlet.source(&peer, |source| {
            let flow = Flow::new(peer, attempt, Arc::clone(&source.numbers), me);
            source.flow = Arc::downgrade(&flow);
            (flow, source.resume)
        });
        let receiver = Receiver {
            context: Arc::clone(&self.context),
            consumer: self.me.clone(),
            inlet: Arc::clone(&self.inlet),
            flow: Arc::clone(&flow),
            // A machine that was started anew, or has forgotten the source meanwhile, does not know how far it was.
            resume: kept.or(resume),
            introduce,
        };
        let ticket = self.inlet.ticket().borrow().clone();
        match job::start(receiver, self.me.get_cell()).await {
            Ok(actor) => {
                let (is_cut, is_up, since) = (false, false, Instant::now());
                let receiving = Receiving { actor, flow, is_cut, is_up, since, ticket };
                self.receivers.insert(receiving.actor.get_id(), receiving);
            }
            Err(_) => {
                self.context.counters.count(Family::SourceEnded, "failed");
                self.note_error(&peer, "its receiver did not start".into());
                let lost = Input::Lost { attempt, resume };
                // In a box, as it may lead here again.
                Box::pin(self.input(lost)).await;
            }
        }
    }

    async fn receiver_ended(&mut self, actor: ActorId, end: ChildEnd) {
        if let Some(receiving) = self.receivers.get(&actor) {
            // That a child has ended is heard before all that it has said.
            self.accepted(receiving.flow.attempt).await;
        }
        let Some(receiving) = self.receivers.remove(&actor) else { return };
        let Receiving { flow, is_cut, is_up, ticket, .. } = receiving;
        let (peer, attempt) = (flow.source, flow.attempt);
        let end = match job::end_of::<Receiver>(&self.context, end) {
            Ok(end) => end,
            Err(Unfinished::Stopped) if is_cut => ReceiverEnd::Cut,
            Err(unfinished) => ReceiverEnd::Failed(unfinished.to_string().into()),
        };
        debug!(peer = %peer.fmt_short(), %end, "source over");
        if !is_cut {
            self.context.counters.count(Family::SourceEnded, end.name());
            self.note_error(&peer, end.to_string().into());
        }
        if is_up {
            let stream = self.inlet.terms.name.clone();
            self.context.emit(NodeEvent::SourceDown { stream, peer, reason: end.clone() });
        }
        let resume = self.inlet.known(&peer, |source| source.resume).flatten();
        // A newer ticket may have come too late for this subscription: the next one presents it.
        let is_old = *self.inlet.ticket().borrow() != ticket;
        self.input(match end {
            ReceiverEnd::Refused(Refusal::BadTicket)
            | ReceiverEnd::Ended(StreamEnd::TicketExpired)
                if is_old =>
            {
                Input::Lost { attempt, resume }
            }
            ReceiverEnd::Refused(refusal) => Input::Refused { attempt, refusal },
            ReceiverEnd::Ended(end) => Input::Ended { attempt, end, resume },
            ReceiverEnd::Misbehaved(_) => Input::Misbehaved { attempt },
            ReceiverEnd::Open(_)
            | ReceiverEnd::Lost(_)
            | ReceiverEnd::TimedOut
            | ReceiverEnd::Failed(_)
            | ReceiverEnd::Cut => Input::Lost { attempt, resume },
        })
        .await;
        self.stop_if_over();
    }

    /// A receiver has a deadline for each of its steps until it is up; one that takes longer than all of them hangs, and its source would never be asked again.
    fn look_at_receivers(&self) {
        let limits = &self.context.limits;
        let steps = [
            limits.dial_deadline,
            limits.exchange.deadline,
            limits.intent_deadline,
            SAY,
            limits.header_deadline.saturating_mul(ANSWER_FACTOR),
            limits.unresponsive,
        ];
        let latest = steps.into_iter().fold(Duration::ZERO, Duration::saturating_add);
        let now = Instant::now();
        for receiving in self.receivers.values() {
            let is_late = now.saturating_duration_since(receiving.since) >= latest;
            if is_late && !receiving.is_up {
                receiving.actor.kill();
            }
        }
    }

    fn stop_if_over(&self) {
        if self.inlet.is_closed() && self.receivers.is_empty() {
            self.me.stop(None);
        }
    }
}
