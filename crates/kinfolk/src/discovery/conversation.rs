//! The conversation of an exchange: carries frames between the stream and the machine of `kinfolk-core`.
//!
//! It opens the stream, or takes the one that the peer opened, has signatures checked within the node's budget, and tells the catalog of each
//! record at once, so that nothing that came is lost with it. It decides nothing: the machine says what is asked and answered,
//! and when it is enough. Every wait ends with a deadline of the machine.

use std::sync::Arc;
use std::time::{Duration, Instant};

use iroh::EndpointId;
use kinfolk_core::catalog::{self, Source};
use kinfolk_core::code::{Blame, Code};
use kinfolk_core::exchange::{
    self as machine, End, Exchange as Machine, ExchangeError as Fault, Input, Output, Summary,
};
use kinfolk_core::intake::{Arrival, IntakeError};
use kinfolk_core::peer_link::Direction;
use kinfolk_core::reconcile::Salt;
use kinfolk_core::record::Reach;
use kinfolk_core::secret_topic::Binding;
use kinfolk_core::walk::TRAIL_MAX;
use kinfolk_core::wire::StreamMode;
use kinfolk_core::wire::exchange::{MESSAGE_MAX, Token, Tokens};
use kinfolk_core::wire::frame::{self, LENGTH_BYTES};
use rand::seq::SliceRandom;

use crate::context::Context;
use crate::discovery::exchange::{EXCHANGE, ExchangeError, ExchangeReport, Exchanged, Heard, Role};
use crate::discovery::own::wall_clock;
use crate::error::StreamError;
use crate::metrics::Family;
use crate::protocol::open::{self, Options};
use crate::protocol::service::Incoming;
use crate::protocol::stream::{RecvStream, SendStream};
use crate::supervision::lock;

/// What the TLS session exports for secret topics.
const EXPORTER_LABEL: &[u8] = b"kinfolk secret topic";

/// Signatures checked before others get a turn of the runtime: about a millisecond.
const CHECKS_AT_ONCE: usize = 16;

/// See the module page.
struct Conversation<'a> {
    context: &'a Arc<Context>,
    peer: EndpointId,
    /// How far away the peer is.
    reach: Reach,
    machine: Machine,
    /// When the whole has taken too long.
    late_at: Instant,
    send: SendStream,
    recv: RecvStream,
    /// Of one that the peer has opened.
    heard: Option<Heard>,
    binding: Option<Binding>,
    /// What the peer has shown of its secret topics.
    tokens: Vec<Token>,
    /// Records that the catalog took, and whose they are.
    brought: Vec<EndpointId>,
    /// Bytes that are no record, if the peer handed over any.
    bad_record: Option<ExchangeError>,
    checked: usize,
}

/// Reconciles the catalog with the peer. It is an error if nothing was begun.
pub(crate) async fn run(
    context: &Arc<Context>,
    peer: EndpointId,
    role: Role,
) -> Result<Exchanged, ExchangeError> {
    let started = Instant::now();
    let direction = role.direction();
    let mut heard = None;
    let (send, recv, role) = match role {
        Role::Initiator => {
            // Long enough for one dial: whom that does not reach, the walk comes back to.
            let options = Options::errand().deadline(context.limits.dial_deadline);
            let opening = open::open(context, peer.into(), EXCHANGE, StreamMode::Eager, options);
            let (send, recv) = opening.await.map_err(ExchangeError::Open)?;
            (send, recv, machine::Role::Initiator { salt: Salt::from_bytes(rand::random()) })
        }
        Role::Responder(stream, heard_at) => {
            let Incoming { send, recv, .. } = *stream;
            heard = Some(heard_at);
            (send, recv, machine::Role::Responder)
        }
    };
    let binding = bind(context, peer, &recv);
    let tokens = binding.as_ref().map_or_else(Tokens::none, |binding| context.tokens(binding));
    let limits = context.limits.exchange.clone();
    let opened = Instant::now();
    let late_at = opened.checked_add(limits.deadline).unwrap_or(opened);
    let machine = Machine::new(role, context.records.snapshot(), tokens, limits);
    let reach = recv.link().reach();
    let (brought, bad_record) = (Vec::new(), None);
    let mut conversation = Conversation {
        context,
        peer,
        reach,
        machine,
        late_at,
        send,
        recv,
        heard,
        binding,
        tokens: Vec::new(),
        brought,
        bad_record,
        checked: 0,
    };
    let (summary, loss) = conversation.hold().await;
    if direction == Direction::Outbound && summary.end == End::Complete {
        conversation.hear_out().await;
    }
    Ok(conversation.conclude(started, summary, loss))
}

/// What the tokens of this exchange are bound to; `None` if the connection exports nothing, which leaves secret topics out.
fn bind(context: &Context, peer: EndpointId, recv: &RecvStream) -> Option<Binding> {
    let mut exporter = [0; 32];
    let connection = &recv.link().connection;
    connection.export_keying_material(&mut exporter, EXPORTER_LABEL, &[]).ok()?;
    Some(Binding::new(exporter, recv.index(), context.id, peer))
}

impl Conversation<'_> {
    /// Charges a peer that has opened the exchange for its bytes as they come and go: one that leaves before the end, or has to make room,
    /// has had them all the same.
    fn charge(&self, bytes: usize) {
        if self.heard.is_some() {
            let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
            lock(&self.context.quota).spend(Instant::now(), self.peer, bytes);
        }
    }

    /// Talks until the machine says that it is over. Also says how the stream was lost, if it was.
    async fn hold(&mut self) -> (Summary, Option<ExchangeError>) {
        let mut outputs = Vec::new();
        let mut body = Vec::new();
        let mut loss = None;
        self.machine.handle(Instant::now(), Input::Start, &mut outputs);
        loop {
            let ended = self.perform(&mut outputs, &mut loss).await;
            if let Some(summary) = ended {
                return (summary, loss);
            }
            let now = Instant::now();
            if loss.is_some() {
                self.machine.handle(now, Input::Closed, &mut outputs);
                continue;
            }
            let due = self.machine.next_timeout().unwrap_or(now);
            match tokio::time::timeout_at(due.into(), read(&mut self.recv, &mut body)).await {
                Ok(Ok(())) => {
                    if let Some(heard) = &self.heard {
                        heard.again();
                    }
                    self.charge(body.len());
                    let input = Input::Received(&body);
                    self.machine.handle(Instant::now(), input, &mut outputs);
                }
                Ok(Err(error)) => loss = Some(error),
                // What was read of a frame is lost, and the machine is at its end.
                Err(_) => self.machine.handle(Instant::now(), Input::Timeout, &mut outputs),
            }
        }
    }

    /// Carries out what the machine wants; the summary once it is over. The answer goes first, so that the peer works beside this node.
    async fn perform(
        &mut self,
        outputs: &mut Vec<Output>,
        loss: &mut Option<ExchangeError>,
    ) -> Option<Summary> {
        outputs.sort_by_key(|output| !matches!(output, Output::Send(_)));
        let mut ended = None;
        let mut extra = Vec::new();
        for output in outputs.drain(..) {
            match output {
                Output::Send(frame) => {
                    self.charge(frame.len());
                    // With its last message the machine is over, and waits for nothing.
                    let due = self.machine.next_timeout().unwrap_or(self.late_at);
                    let writing = self.send.write_all(&frame);
                    match tokio::time::timeout_at(due.into(), writing).await {
                        Ok(Ok(())) => {}
                        Ok(Err(error)) => *loss = Some(error.into()),
                        Err(_) if self.machine.is_over() => *loss = Some(ExchangeError::TimedOut),
                        Err(_) => self.machine.handle(Instant::now(), Input::Timeout, &mut extra),
                    }
                }
                Output::Tokens(tokens) => self.tokens = tokens,
                Output::Learned { bytes, age } => self.learn(&bytes, age).await,
                Output::Ended(summary) => ended = Some(summary),
                _ => {}
            }
            if self.bad_record.is_some() && ended.is_none() {
                self.machine.handle(Instant::now(), Input::Stop, &mut extra);
            }
        }
        outputs.append(&mut extra);
        ended
    }

    /// Has a record checked, and tells the catalog. Where the budget for that is used up, it waits, and with it the peer.
    async fn learn(&mut self, bytes: &[u8], age: Duration) {
        if self.bad_record.is_some() {
            return;
        }
        self.checked = self.checked.saturating_add(1);
        if self.checked.is_multiple_of(CHECKS_AT_ONCE) {
            tokio::task::yield_now().await;
        }
        let (context, came) = (self.context, Instant::now());
        loop {
            let (now, known) = (Instant::now(), context.records.snapshot());
            let source = self.peer;
            // It has grown older while it waited for its check.
            let carried = age.saturating_add(now.saturating_duration_since(came));
            let arrival = Arrival { bytes, source, carried, clock: wall_clock() };
            let admitted = lock(&context.intake).admit(now, arrival, &known);
            match admitted {
                Ok(sighting) => {
                    let id = sighting.record().id();
                    let source = Source::Peer { peer: self.peer, reach: self.reach };
                    if context.note(catalog::Input::Heard { sighting, source }) {
                        self.brought.push(id);
                    }
                    return;
                }
                Err(IntakeError::Busy { retry_at } | IntakeError::Crowded { retry_at }) => {
                    // After its last message the machine waits for nothing any more.
                    let end = self.machine.next_timeout().unwrap_or(self.late_at);
                    if retry_at >= end {
                        context.counters.count(Family::RecordRejected, "busy");
                        return;
                    }
                    tokio::time::sleep_until(retry_at.into()).await;
                }
                Err(error) => {
                    context.counters.count(Family::RecordRejected, error.refusal().name());
                    if error.blame() == Blame::Sender
                        && let IntakeError::Record(error) = error
                    {
                        self.bad_record = Some(ExchangeError::BadRecord(error));
                    }
                    return;
                }
            }
        }
    }

    /// Waits until the peer ends its half, which it does once its catalog has what was sent last: whoever asks it for something next is
    /// known to it. One that does not is no reason to fail.
    async fn hear_out(&mut self) {
        if self.send.finish().is_ok() {
            let mut none = [0];
            let ending = self.recv.read(&mut none);
            let silence = Instant::now().checked_add(self.context.limits.exchange.silence);
            let latest = silence.map_or(self.late_at, |silence| silence.min(self.late_at));
            let _ = tokio::time::timeout_at(latest.into(), ending).await;
        }
    }

    /// Ends the stream as the exchange has ended.
    fn conclude(
        mut self,
        started: Instant,
        summary: Summary,
        loss: Option<ExchangeError>,
    ) -> Exchanged {
        // What the machine ended with counts, unless it could not say its last word.
        let is_loss =
            |loss: &ExchangeError| summary.end == End::Closed || *loss == ExchangeError::TimedOut;
        let loss = loss.filter(is_loss);
        let code = match (&self.bad_record, &loss) {
            (Some(_), _) => Some(Code::Violation),
            (None, Some(ExchangeError::Misbehaved(fault))) => Some(fault.code()),
            (None, _) => summary.end.code(),
        };
        if let Some(heard) = &self.heard {
            // Before the peer sees the end, from which on it may open another.
            heard.no_more();
        }
        match code {
            None => {
                // The peer may have left before.
                let _ = self.send.finish();
                self.recv.notice_end();
            }
            Some(code) => {
                self.send.reset(code);
                self.recv.stop(code);
            }
        }
        let (is_complete, error) = match (self.bad_record.or(loss), summary.end) {
            (Some(error), _) => (false, Some(error)),
            (None, End::Complete) => (true, None),
            (None, End::Cut) => (false, None),
            (None, End::Silent | End::Late) => (false, Some(ExchangeError::TimedOut)),
            (None, End::Failed(fault)) if fault.blames_peer() => {
                (false, Some(ExchangeError::Misbehaved(fault)))
            }
            (None, End::Failed(fault)) => (false, Some(ExchangeError::failed(&fault))),
            (None, _) => (false, Some(StreamError::Truncated.into())),
        };
        if let (None, Some(binding)) = (&error, &self.binding) {
            self.context.note_tokens(binding, self.peer, &self.tokens);
        }
        let report = ExchangeReport {
            learnt: self.brought.len(),
            sent: usize::try_from(summary.sent.records).unwrap_or(usize::MAX),
            bytes_sent: summary.sent.bytes,
            bytes_received: summary.received.bytes,
            duration: started.elapsed(),
            is_complete,
        };
        let link = Arc::clone(self.recv.link());
        let (brought, _) = self.brought.partial_shuffle(&mut rand::rng(), TRAIL_MAX);
        Exchanged { report, brought: brought.to_vec(), error, link }
    }
}

/// Reads the body of one frame. Not cancel safe.
async fn read(recv: &mut RecvStream, body: &mut Vec<u8>) -> Result<(), ExchangeError> {
    let mut prefix = [0; LENGTH_BYTES];
    recv.read_exact(&mut prefix).await?;
    let length = frame::length(prefix, MESSAGE_MAX)
        .map_err(|error| ExchangeError::Misbehaved(Fault::Malformed(error)))?;
    body.clear();
    body.resize(length, 0);
    Ok(recv.read_exact(body).await?)
}
