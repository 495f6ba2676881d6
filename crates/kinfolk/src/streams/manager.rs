//! Streams: supervises one actor for each producer and each consumer of the app.
//!
//! ```text
//! Streams
//! ├── Producer × handle
//! │   └── Feed × subscriber
//! └── Consumer × handle
//!     └── Receiver × source
//! ```
//!
//! What the app has made is the node's and survives a restart of this actor; a child that fails is started again for the same producer or consumer, and goes on where it was. Its handlers await
//! nothing but the local start of a child. Whenever the node asks it whether it is well, it asks its children, and kills those that hang.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Instant;

use kinfolk_core::code::Code;
use kinfolk_core::wire::subscription::{ConsumerFrame, Refusal};
use ractor::{ActorId, ActorProcessingErr, ActorRef, SupervisionEvent};
use tracing::warn;

use crate::context::Context;
use crate::error::HandlerError;
use crate::events::NodeEvent;
#[cfg(feature = "fault-injection")]
use crate::fault::Point;
use crate::fault::here;
use crate::local_only::local_only;
use crate::metrics::Family;
use crate::protocol::service::{Incoming, Service};
use crate::streams::SUBSCRIBE;
use crate::streams::consumer::actor::{ConsumerArguments, ConsumerMessage, Consuming};
use crate::streams::consumer::inlet::Inlet;
use crate::streams::producer::actor::{
    AWAY, Asking, ProducerArguments, ProducerMessage, Producing,
};
use crate::streams::producer::feed::{self, Frames, NoFrame};
use crate::streams::producer::outlet::Outlet;
use crate::supervision::{self, ChildEnd, OwnedTask, Pulse, Restarts, Watched, child_end};

/// The actor.
pub(crate) struct Streams;

/// What it is started with.
pub(crate) struct StreamsArguments {
    pub(crate) context: Arc<Context>,
    pub(crate) pulse: Arc<Pulse>,
}

/// What Streams is told.
pub(crate) enum StreamsMessage {
    /// The app has a new producer.
    Produce(Arc<Outlet>),
    /// The app has a new consumer.
    Consume(Arc<Inlet>),
    /// The delay before children are started again is over.
    StartChildren,
    /// Is it well?
    Pulse,
    /// One of its tasks panicked.
    TaskPanicked(String),
    /// Fail, as a test asked.
    #[cfg(feature = "fault-injection")]
    Crash(crate::fault::Crash),
}
local_only!(StreamsMessage);

/// The children.
pub(crate) struct StreamsState {
    me: ActorRef<StreamsMessage>,
    context: Arc<Context>,
    producers: HashMap<ActorId, (Arc<Outlet>, Watched<ProducerMessage>)>,
    consumers: HashMap<ActorId, (Arc<Inlet>, Watched<ConsumerMessage>)>,
    restarts: Restarts,
    /// The waits before children are started again, and when they should be over.
    restarting: Vec<(Instant, OwnedTask)>,
    pulse: Arc<Pulse>,
}

#[ractor::actor(message = StreamsMessage, state = StreamsState, arguments = StreamsArguments)]
impl Streams {
    async fn pre_start(
        &self,
        myself: ActorRef<StreamsMessage>,
        arguments: StreamsArguments,
    ) -> Result<StreamsState, ActorProcessingErr> {
        let StreamsArguments { context, pulse } = arguments;
        here!(context, Point::StreamsPreStart).pass().await?;
        let mut state = StreamsState {
            me: myself,
            producers: HashMap::new(),
            consumers: HashMap::new(),
            restarts: Restarts::new(),
            restarting: Vec::new(),
            pulse,
            context,
        };
        // From here on it is told what is made; what was made before, it looks up. Nothing falls in between.
        state.context.streams.set_actor(Some(state.me.clone()));
        state.start_children().await?;
        let weak = Arc::downgrade(&state.context);
        let service = Service::stream(move |incoming| welcome(Weak::clone(&weak), incoming))
            .concurrency(state.context.limits.protocol_concurrency);
        state.context.serve_own(SUBSCRIBE, service);
        Ok(state)
    }

    async fn handle(
        &self,
        _myself: ActorRef<StreamsMessage>,
        message: StreamsMessage,
        state: &mut StreamsState,
    ) -> Result<(), ActorProcessingErr> {
        here!(state.context, message.point()).pass().await?;
        match message {
            StreamsMessage::Produce(outlet) => state.start_producer(outlet).await,
            StreamsMessage::Consume(inlet) => state.start_consumer(inlet).await,
            StreamsMessage::StartChildren => state.start_children().await,
            StreamsMessage::Pulse => state.watch(),
            StreamsMessage::TaskPanicked(text) => Err(text.into()),
            #[cfg(feature = "fault-injection")]
            StreamsMessage::Crash(crash) => Ok(crash.strike().await?),
        }
    }

    async fn handle_supervisor_evt(
        &self,
        _myself: ActorRef<StreamsMessage>,
        event: SupervisionEvent,
        state: &mut StreamsState,
    ) -> Result<(), ActorProcessingErr> {
        let Some((actor, end)) = child_end(event) else { return Ok(()) };
        here!(state.context, Point::StreamsSupervise).pass().await?;
        state.child_ended(actor, end)
    }

    async fn post_stop(
        &self,
        _myself: ActorRef<StreamsMessage>,
        state: &mut StreamsState,
    ) -> Result<(), ActorProcessingErr> {
        here!(state.context, Point::StreamsPostStop).pass().await?;
        state.context.streams.set_actor(None);
        Ok(())
    }
}

/// Reads what a consumer asks for, and hands it to the producer of that name.
async fn welcome(context: Weak<Context>, mut incoming: Incoming) -> Result<(), HandlerError> {
    let Some(context) = context.upgrade() else { return Ok(()) };
    let deadline = context.limits.header_deadline;
    let mut frames = Frames::default();
    let asked = tokio::time::timeout(deadline, frames.next(&mut incoming.recv)).await;
    let code = match asked {
        Ok(Ok(ConsumerFrame::Subscribe(subscribe))) => {
            let Some(outlet) = context.streams.producer(&subscribe.name) else {
                context.counters.count(Family::SubscriptionRefused, Refusal::NoSuchStream.name());
                feed::refuse(incoming, Refusal::NoSuchStream, deadline).await;
                return Ok(());
            };
            let refusal = match outlet.place() {
                // Whoever asks while it is being started, or started again, waits for it.
                Some(place) => match tokio::time::timeout(deadline, outlet.up()).await {
                    Ok(true) => {
                        let asking = Box::new(Asking { incoming, subscribe, frames, place });
                        if outlet.tell(ProducerMessage::Asked(asking)).is_err() {
                            // It has failed just now, and the stream is dropped: the consumer comes again.
                            context.counters.count(Family::SubscriptionRefused, AWAY);
                        }
                        return Ok(());
                    }
                    Ok(false) => Refusal::Ended,
                    Err(_) => Refusal::NoCapacity,
                },
                None => Refusal::NoCapacity,
            };
            context.counters.count(Family::SubscriptionRefused, refusal.name());
            feed::refuse(incoming, refusal, deadline).await;
            return Ok(());
        }
        Ok(Ok(_)) => Code::Violation,
        Ok(Err(NoFrame::Broken(error))) => error.code(),
        Ok(Err(NoFrame::End)) => Code::Malformed,
        Ok(Err(NoFrame::Lost(_))) => return Ok(()),
        Err(_) => Code::HeaderTimeout,
    };
    context.counters.count(Family::SubscriptionRefused, code.name());
    incoming.send.reset(code);
    incoming.recv.stop(code);
    Ok(())
}

impl StreamsState {
    /// Starts those that are not there.
    async fn start_children(&mut self) -> Result<(), ActorProcessingErr> {
        self.restarting.retain(|(_, wait)| !wait.is_over());
        for outlet in self.context.streams.producers() {
            self.start_producer(outlet).await?;
        }
        for inlet in self.context.streams.consumers() {
            self.start_consumer(inlet).await?;
        }
        Ok(())
    }

    async fn start_producer(&mut self, outlet: Arc<Outlet>) -> Result<(), ActorProcessingErr> {
        if self.producers.values().any(|(own, _)| Arc::ptr_eq(own, &outlet)) {
            return Ok(());
        }
        let (context, pulse) = (Arc::clone(&self.context), Arc::new(Pulse::default()));
        let (own, own_pulse) = (Arc::clone(&outlet), Arc::clone(&pulse));
        let arguments = ProducerArguments { context, outlet: own, pulse: own_pulse };
        match supervision::start(Producing, arguments, self.me.get_cell()).await {
            Ok(actor) => {
                self.producers.insert(actor.get_id(), (outlet, Watched::new(actor, pulse)));
                Ok(())
            }
            Err(error) => self.failed("producer", &error.to_string()),
        }
    }

    async fn start_consumer(&mut self, inlet: Arc<Inlet>) -> Result<(), ActorProcessingErr> {
        if self.consumers.values().any(|(own, _)| Arc::ptr_eq(own, &inlet)) {
            return Ok(());
        }
        let (context, pulse) = (Arc::clone(&self.context), Arc::new(Pulse::default()));
        let (own, own_pulse) = (Arc::clone(&inlet), Arc::clone(&pulse));
        let arguments = ConsumerArguments { context, inlet: own, pulse: own_pulse };
        match supervision::start(Consuming, arguments, self.me.get_cell()).await {
            Ok(actor) => {
                self.consumers.insert(actor.get_id(), (inlet, Watched::new(actor, pulse)));
                Ok(())
            }
            Err(error) => self.failed("consumer", &error.to_string()),
        }
    }

    fn child_ended(&mut self, actor: ActorId, end: ChildEnd) -> Result<(), ActorProcessingErr> {
        let (name, is_over) = if let Some((outlet, _)) = self.producers.remove(&actor) {
            ("producer", outlet.ended().is_some())
        } else if let Some((inlet, _)) = self.consumers.remove(&actor) {
            ("consumer", inlet.is_closed())
        } else {
            return Ok(());
        };
        let cause = match end {
            ChildEnd::Stopped(_) if is_over => return Ok(()),
            ChildEnd::Stopped(_) => "it stopped although the app wants it".to_owned(),
            ChildEnd::Killed => "it was killed".to_owned(),
            ChildEnd::Failed(error) => error.to_string(),
        };
        self.failed(name, &cause)
    }

    /// Has the children started again that are not there.
    fn failed(&mut self, child: &'static str, cause: &str) -> Result<(), ActorProcessingErr> {
        warn!(actor = child, %cause, "a part of the streams failed");
        let now = Instant::now();
        let delay = self.restarts.fail(now, child, cause)?;
        self.context.counters.count(Family::Restarted, child);
        self.context.emit(NodeEvent::Restarted { actor: child, cause: cause.to_owned() });
        let me = self.me.clone();
        let waiting = async move {
            tokio::time::sleep(delay).await;
            let _ = me.send_message(StreamsMessage::StartChildren);
        };
        let here = here!(self.context, Point::StreamsRestart);
        let task = OwnedTask::spawn(&self.me, here, waiting, StreamsMessage::TaskPanicked);
        self.restarting.push((now.checked_add(delay).unwrap_or(now), task));
        Ok(())
    }

    /// Looks for what hangs, here and below.
    fn watch(&mut self) -> Result<(), ActorProcessingErr> {
        for (_, producer) in self.producers.values_mut() {
            producer.ask("producer", ProducerMessage::Pulse)?;
        }
        for (_, consumer) in self.consumers.values_mut() {
            consumer.ask("consumer", ConsumerMessage::Pulse)?;
        }
        let (now, late) = (Instant::now(), self.context.limits.unresponsive);
        let is_late = |due: &Instant| now.saturating_duration_since(*due) >= late;
        if self.restarting.iter().any(|(due, wait)| is_late(due) && !wait.is_over()) {
            return Err("the wait before a restart hangs".into());
        }
        self.pulse.answer_now();
        Ok(())
    }
}
