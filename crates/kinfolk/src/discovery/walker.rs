//! Walker: walks the network at random, one exchange at a time.
//!
//! It translates between its machine, [`Walk`], and Discovery, which runs the exchanges: the machine decides whom to visit and when. Its
//! handlers await nothing. Discovery asks it now and then whether it is well; its clock answers.

use std::sync::Arc;
use std::time::Instant;

use iroh::EndpointId;
use kinfolk_core::code::Code;
use kinfolk_core::walk::{Input, Output, View, Visit, Wake, Walk, WalkLimits};
use ractor::{ActorProcessingErr, ActorRef};
use tokio::sync::{Notify, watch};

use crate::clock::clock;
use crate::context::Context;
use crate::discovery::exchange::{ExchangeError, Exchanged};
use crate::discovery::manager::DiscoveryMessage;
use crate::error::{OpenError, StreamError};
#[cfg(feature = "fault-injection")]
use crate::fault::Point;
use crate::fault::here;
use crate::local_only::local_only;
use crate::metrics::Family;
use crate::supervision::{OwnedTask, Pulse};

/// The actor.
pub(crate) struct Walker;

/// What it is started with.
pub(crate) struct WalkerArguments {
    pub(crate) context: Arc<Context>,
    /// The Discovery that started it, and no later one, runs its visits.
    pub(crate) discovery: ActorRef<DiscoveryMessage>,
    pub(crate) limits: WalkLimits,
    pub(crate) pulse: Arc<Pulse>,
}

/// What a walker is told.
pub(crate) enum WalkerMessage {
    /// There is news.
    Wake(Wake),
    /// Its visit is over.
    Visited(EndpointId, Visited),
    /// An exchange that was no visit of its own, or one that failed, has taught so many records; and who opened it, if it went well. Nobody and nothing: a visit of another
    /// walker's own choice, in vain.
    Told(Option<EndpointId>, usize),
    /// It is time for its next step.
    Tick,
    /// Is it well?
    Pulse,
    /// Its clock panicked.
    TaskPanicked(String),
}
local_only!(WalkerMessage);

/// What came of a visit.
pub(crate) enum Visited {
    /// There was an exchange.
    Exchanged { learnt: usize, brought: Vec<EndpointId> },
    /// The peer has no time for one.
    Refused,
    /// There was none, or it failed.
    Failed,
}

impl Visited {
    pub(crate) fn of(result: &Result<Exchanged, ExchangeError>) -> Self {
        use ExchangeError::{Open, Stream};
        let error = match result {
            Ok(Exchanged { report, brought, error: None, .. }) => {
                return Self::Exchanged { learnt: report.learnt, brought: brought.clone() };
            }
            Ok(Exchanged { error: Some(error), .. }) | Err(error) => error,
        };
        match error {
            Open(OpenError::Refused(Code::Busy))
            | Stream(StreamError::Refused(Code::Busy) | StreamError::Reset(Code::Busy)) => {
                Self::Refused
            }
            _ => Self::Failed,
        }
    }
}

/// The machine, and its clock.
pub(crate) struct WalkerState {
    me: ActorRef<WalkerMessage>,
    context: Arc<Context>,
    discovery: ActorRef<DiscoveryMessage>,
    walk: Walk,
    /// How many of those whom its machine has not visited are counted.
    unvisited: u64,
    alarm: watch::Sender<Option<Instant>>,
    ticked: Arc<Notify>,
    pulse: Arc<Pulse>,
    _clock: OwnedTask,
}

#[ractor::actor(message = WalkerMessage, state = WalkerState, arguments = WalkerArguments)]
impl Walker {
    async fn pre_start(
        &self,
        myself: ActorRef<WalkerMessage>,
        arguments: WalkerArguments,
    ) -> Result<WalkerState, ActorProcessingErr> {
        let WalkerArguments { context, discovery, limits, pulse } = arguments;
        here!(context, Point::WalkerPreStart).pass().await?;
        let walk = Walk::new(context.id, limits, rand::random());
        let alarm = watch::Sender::new(None);
        let ticked = Arc::new(Notify::new());
        let here = here!(context, Point::WalkerClock);
        let ticking = clock(
            alarm.subscribe(),
            Arc::clone(&ticked),
            Arc::clone(&pulse),
            myself.clone(),
            || WalkerMessage::Tick,
        );
        let clock = OwnedTask::spawn(&myself, here, ticking, WalkerMessage::TaskPanicked);
        let me = myself;
        let mut state = WalkerState {
            me,
            context,
            discovery,
            walk,
            unvisited: 0,
            alarm,
            ticked,
            pulse,
            _clock: clock,
        };
        state.input(Input::Wake(Wake::Started));
        Ok(state)
    }

    async fn handle(
        &self,
        _myself: ActorRef<WalkerMessage>,
        message: WalkerMessage,
        state: &mut WalkerState,
    ) -> Result<(), ActorProcessingErr> {
        here!(state.context, message.point()).pass().await?;
        match message {
            WalkerMessage::Wake(wake) => state.input(Input::Wake(wake)),
            WalkerMessage::Visited(peer, visited) => {
                let visit = match &visited {
                    Visited::Exchanged { learnt, brought } => {
                        Visit::Exchanged { learnt: *learnt, brought }
                    }
                    Visited::Refused => Visit::Refused,
                    Visited::Failed => Visit::Failed,
                };
                state.input(Input::Ended { peer, visit });
            }
            WalkerMessage::Told(by, learnt) => state.input(Input::Told { by, learnt }),
            WalkerMessage::Tick => {
                state.input(Input::Timeout);
                state.ticked.notify_one();
            }
            WalkerMessage::Pulse => state.pulse.pass_on(),
            WalkerMessage::TaskPanicked(text) => return Err(text.into()),
        }
        Ok(())
    }
}

impl WalkerState {
    fn input(&mut self, input: Input<'_>) {
        let records = &self.context.records;
        let (known, neighbours) = (records.snapshot(), records.neighbours());
        let bootstrap = &self.context.bootstrap;
        let is_connected = |peer: &EndpointId| self.context.directory.get(peer).is_some();
        let is_connected = &is_connected;
        let view = View { known: &known, bootstrap, neighbours: &neighbours, is_connected };
        let mut outputs = Vec::new();
        self.walk.handle(Instant::now(), input, view, &mut outputs);
        for Output::Visit(peer) in outputs {
            let (walker, is_choice) = (self.me.get_id(), self.walk.has_chosen());
            // A Discovery that is gone takes this walker with it.
            let visit = DiscoveryMessage::Visit { walker, peer, is_choice };
            let _ = self.discovery.send_message(visit);
        }
        while self.unvisited < self.walk.dropped_hints() {
            self.unvisited = self.unvisited.saturating_add(1);
            self.context.counters.count(Family::NewsDropped, "visit");
        }
        let due = self.walk.next_timeout();
        self.alarm.send_if_modified(|alarm| std::mem::replace(alarm, due) != due);
    }
}
