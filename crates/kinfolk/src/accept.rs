//! Accept: takes incoming connections up to their hello and hands them to the PeerManager.
//!
//! The loop runs in a task that the actor owns. It asks the gate about each attempt before any cryptography, and each handshake, hello
//! and admission runs in a task of its own with one deadline, so that a slow stranger delays nobody. At most as many handshakes run
//! and messages wait as the limits allow. Who may connect beyond that is decided by the app's admission and the PeerManager's table.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use iroh::Endpoint;
use iroh::endpoint::{
    ConnectingError, Connection, ConnectionError, Incoming, IncomingAddr, VarInt,
};
use kinfolk_core::code::Code;
use kinfolk_core::gate::{GateReason, Source, Ticket, Verdict};
use kinfolk_core::wire::Control;
use ractor::{ActorProcessingErr, ActorRef};
use thiserror::Error;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tracing::debug;

use crate::admission::Admit;
use crate::context::{Context, ManagerAway};
#[cfg(feature = "fault-injection")]
use crate::fault::Point;
use crate::fault::here;
use crate::local_only::local_only;
use crate::metrics::Family;
use crate::peers::control::{self, ControlError};
use crate::peers::manager::PeerManagerMessage;
use crate::peers::session::{Arrived, is_no_common_protocol};
use crate::protocol::stream::wire_code;
use crate::supervision::{OwnedTask, Pulse, lock};

/// The actor.
pub(crate) struct Accept;

/// What it is started with.
pub(crate) struct AcceptArguments {
    pub(crate) context: Arc<Context>,
    pub(crate) endpoint: Endpoint,
    pub(crate) pulse: Arc<Pulse>,
}

/// Reports of its own loop, and what its parent asks.
pub(crate) enum AcceptMessage {
    /// Is it well?
    Pulse,
    /// The loop ended: the endpoint takes no more connections.
    EndpointClosed,
    /// The loop panicked, with this text.
    LoopPanicked(String),
    /// Fail, as a test asked.
    #[cfg(feature = "fault-injection")]
    Crash(crate::fault::Crash),
}
local_only!(AcceptMessage);

/// The endpoint has ended while the node runs, which iroh's does when it has lost its last socket: with an address that it was bound to and
/// that its host has no more.
#[derive(Debug, Error)]
#[error("the endpoint has ended, as its sockets are gone")]
pub(crate) struct EndpointLost;

/// It owns the loop.
pub(crate) struct AcceptState {
    context: Arc<Context>,
    pulse: Arc<Pulse>,
    _loop: OwnedTask,
}

#[ractor::actor(message = AcceptMessage, state = AcceptState, arguments = AcceptArguments)]
impl Accept {
    async fn pre_start(
        &self,
        myself: ActorRef<AcceptMessage>,
        arguments: AcceptArguments,
    ) -> Result<AcceptState, ActorProcessingErr> {
        here!(arguments.context, Point::AcceptPreStart).pass().await?;
        let context = Arc::clone(&arguments.context);
        let task = here!(context, Point::AcceptTask);
        let (me, pulse) = (myself.clone(), arguments.pulse);
        let accepting = accept(arguments.context, arguments.endpoint, Arc::clone(&pulse));
        let accepting = async move {
            accepting.await;
            let _ = me.send_message(AcceptMessage::EndpointClosed);
        };
        let accepting = OwnedTask::spawn(&myself, task, accepting, AcceptMessage::LoopPanicked);
        Ok(AcceptState { context, pulse, _loop: accepting })
    }

    async fn handle(
        &self,
        _myself: ActorRef<AcceptMessage>,
        message: AcceptMessage,
        state: &mut AcceptState,
    ) -> Result<(), ActorProcessingErr> {
        here!(state.context, message.point()).pass().await?;
        match message {
            AcceptMessage::Pulse => {
                state.pulse.pass_on();
                Ok(())
            }
            AcceptMessage::EndpointClosed => Err(EndpointLost.into()),
            AcceptMessage::LoopPanicked(text) => Err(text.into()),
            #[cfg(feature = "fault-injection")]
            AcceptMessage::Crash(crash) => Ok(crash.strike().await?),
        }
    }
}

/// An accepted connection's place at the gate; dropping it gives the place back.
pub(crate) struct Pass {
    context: Arc<Context>,
    ticket: Ticket,
}

impl Drop for Pass {
    fn drop(&mut self) {
        lock(&self.context.gate).depart(self.ticket);
    }
}

async fn accept(context: Arc<Context>, endpoint: Endpoint, pulse: Arc<Pulse>) {
    let pending = context.limits.gate.pending.min(Semaphore::MAX_PERMITS);
    let mailbox = Arc::new(Semaphore::new(pending));
    let mut handshakes = JoinSet::new();
    if here!(context, Point::AcceptLoop).pass().await.is_err() {
        return;
    }
    loop {
        context.counters.handshakes.store(handshakes.len(), Ordering::Relaxed);
        tokio::select! {
            incoming = endpoint.accept() => {
                let Some(incoming) = incoming else { return };
                if let Some((incoming, pass)) = admit(&context, incoming, handshakes.len()) {
                    context.counters.incoming_accepted.fetch_add(1, Ordering::Relaxed);
                    let mailbox = Arc::clone(&mailbox);
                    let handshake = Handshake { context: Arc::clone(&context), pass, mailbox };
                    handshakes.spawn(handshake.run(incoming));
                }
            }
            Some(done) = handshakes.join_next() => {
                if done.is_err_and(|error| error.is_panic()) {
                    // Only the app's admission policy can do that.
                    context.counters.count(Family::Panicked, "admission");
                }
            }
            () = pulse.answer() => {}
        }
    }
}

/// Asks the gate; refuses by itself what may not go on.
fn admit(context: &Arc<Context>, incoming: Incoming, pending: usize) -> Option<(Incoming, Pass)> {
    let source = match incoming.remote_addr() {
        IncomingAddr::Ip(address) => Source::Ip(address.ip()),
        IncomingAddr::Relay { .. } => Source::Relay,
        _ => Source::Other,
    };
    let validated = incoming.remote_addr_validated();
    let verdict = lock(&context.gate).arrive(Instant::now(), source, validated, pending);
    let refused = |reason: GateReason| {
        context.counters.count(Family::IncomingRefused, reason.name());
    };
    match verdict {
        Verdict::Accept(ticket) => {
            return Some((incoming, Pass { context: Arc::clone(context), ticket }));
        }
        Verdict::Retry => {
            context.counters.count(Family::IncomingRefused, "asked_to_retry");
            if let Err(error) = incoming.retry() {
                error.into_incoming().refuse();
            }
        }
        Verdict::Refuse(reason) => {
            refused(reason);
            incoming.refuse();
        }
        Verdict::Ignore(reason) => {
            refused(reason);
            incoming.ignore();
        }
    }
    None
}

/// One incoming connection, from its first packet to the PeerManager.
struct Handshake {
    context: Arc<Context>,
    pass: Pass,
    mailbox: Arc<Semaphore>,
}

/// Closes a connection that nobody took over.
struct Stray {
    context: Arc<Context>,
    connection: Option<Connection>,
    /// Whose fault it is if the time is over now.
    late: Code,
    /// Why it is closed; `None` as long as its task runs. A task that is cut blames nobody but this side.
    code: Option<Code>,
}

impl Drop for Stray {
    fn drop(&mut self) {
        let code = match self.code {
            _ if std::thread::panicking() => Code::Internal,
            Some(code) => code,
            None if self.context.is_draining() => Code::ShuttingDown,
            None => Code::Restarted,
        };
        if let Some(connection) = &self.connection {
            connection.close(wire_code(code), code.name().as_bytes());
        }
    }
}

impl Handshake {
    async fn run(self, incoming: Incoming) {
        let context = Arc::clone(&self.context);
        // Whatever happens below, a panic of the admission policy included, the connection is closed with a code.
        let mut stray = Stray {
            context: Arc::clone(&context),
            connection: None,
            late: Code::HelloTimeout,
            code: None,
        };
        let deadline = context.limits.hello_deadline;
        let result = tokio::time::timeout(deadline, self.greet(incoming, &mut stray)).await;
        let (code, reason) = match result {
            Ok(Ok(())) => return,
            Ok(Err(refusal)) => (refusal.code, refusal.reason),
            Err(_) if stray.connection.is_none() => (stray.late, "handshake_timeout"),
            Err(_) if stray.late == Code::HelloTimeout => (stray.late, "hello_timeout"),
            Err(_) => (stray.late, "admission_timeout"),
        };
        stray.code = Some(code);
        context.counters.count(Family::IncomingRefused, reason);
        debug!(reason, "incoming connection dropped");
    }

    async fn greet(self, incoming: Incoming, stray: &mut Stray) -> Result<(), Refusal> {
        let here = here!(self.context, Point::AcceptHandshake);
        here.pass().await.map_err(|_| Refusal::new(Code::Internal, "injected"))?;
        let accepting = incoming.accept().map_err(|error| Refusal::handshake(&error))?;
        let connection = accepting.await.map_err(|error| match error {
            ConnectingError::ConnectionError { source, .. } => Refusal::handshake(&source),
            _ => Refusal::new(Code::Malformed, "handshake_failed"),
        })?;
        let peer = connection.remote_id();
        stray.connection = Some(connection.clone());

        let greeted = lock(&self.context.gate).greet(Instant::now(), peer);
        greeted.map_err(|reason| Refusal::new(Code::Busy, reason.name()))?;
        if self.context.is_banned(&peer) {
            return Err(Refusal::new(Code::Banned, "banned"));
        }
        let gone = |_| Refusal::new(Code::Unspecified, "lost_before_hello");
        let (send, mut recv) = connection.accept_bi().await.map_err(gone)?;
        let hello = match control::read(&mut recv).await {
            Ok(Control::Hello(hello)) => hello,
            Ok(_) => return Err(Refusal::new(Code::Violation, "no_hello")),
            Err(ControlError::Malformed(error)) => {
                return Err(Refusal::new(error.code(), "malformed_hello"));
            }
            Err(ControlError::Ended | ControlError::OutOfTurn(_)) => {
                return Err(Refusal::new(Code::Violation, "no_hello"));
            }
            Err(ControlError::Lost) => {
                return Err(Refusal::new(Code::Unspecified, "lost_before_hello"));
            }
        };
        // Stamped before the app is asked, so that a slow answer never makes an old hello look new.
        let arrival = self.context.arrival();

        // From here on it is this side that is slow.
        stray.late = Code::DeadlineExceeded;
        let admitted = tokio::select! {
            biased;
            admitted = self.context.admission.admit(peer) => admitted,
            // Whatever the app says, the answer is no; the endpoint would close without a word for it.
            () = self.context.drains() => {
                return Err(Refusal::new(Code::ShuttingDown, "shutting_down"));
            }
            _ = connection.closed() => {
                return Err(Refusal::new(Code::Unspecified, "lost_before_admission"));
            }
        };
        let streams = match admitted {
            Admit::Yes => None,
            Admit::With(bounds) => {
                if let Some(streams) = bounds.streams {
                    // More than others have takes more credit than the handshake granted: for these, the control stream and a hold.
                    let credit = VarInt::from_u32(streams.saturating_add(2));
                    connection.set_max_concurrent_bi_streams(credit);
                }
                if let Some(window) = bounds.connection_window {
                    connection.set_receive_window(VarInt::from_u32(window));
                }
                bounds.streams
            }
            Admit::No => return Err(Refusal::new(Code::NotAdmitted, "not_admitted")),
        };

        stray.late = Code::Busy;
        let permit = self.mailbox.acquire_owned().await;
        let permit = permit.map_err(|_| Refusal::new(Code::Restarted, "restarting"))?;
        let pass = self.pass;
        let arrived = Arrived { connection, send, recv, hello, arrival, streams, pass };
        self.context
            .tell_manager(PeerManagerMessage::Arrived(Box::new(arrived), permit))
            .map_err(|ManagerAway| Refusal::new(Code::Restarted, "restarting"))?;
        stray.connection = None;
        Ok(())
    }
}

/// Why an incoming connection went no further.
struct Refusal {
    code: Code,
    /// A word for metrics.
    reason: &'static str,
}

impl Refusal {
    fn new(code: Code, reason: &'static str) -> Self {
        Self { code, reason }
    }

    fn handshake(error: &ConnectionError) -> Self {
        let reason = match error {
            error if is_no_common_protocol(error) => "no_common_protocol",
            ConnectionError::TimedOut => "handshake_timeout",
            _ => "handshake_failed",
        };
        Self::new(Code::Malformed, reason)
    }
}
