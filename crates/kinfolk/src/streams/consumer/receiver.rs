//! Receiver: reads what one source sends, into the inlet.
//!
//! It is a [job](crate::supervision::job). It reads no further while the inlet has no room, so that
//! the producer learns from QUIC how fast this consumer is. It looks at no item: the app decodes them. While the app waits it may read by itself, see [`tap`](super::tap).

use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use kinfolk_core::code::Code;
use kinfolk_core::stream::{Beginning, Entries, EntryError, Read};
use kinfolk_core::wire::subscription::{
    ANSWERED_MAX, Accepted, Answered, Channel, ConsumerFrame, Refusal, Resume, StreamEnd, Subscribe,
};
use kinfolk_core::wire::{Extensions, StreamMode, frame};
use ractor::ActorRef;
use thiserror::Error;
use tokio::io::AsyncReadExt;
use tokio::sync::watch;

use crate::context::Context;
use crate::error::{OpenError, StreamError};
#[cfg(feature = "fault-injection")]
use crate::fault::{Point, Points};
use crate::peers::datagrams::Subscribed;
use crate::protocol::open::{self, Options, Peer};
use crate::protocol::stream::{RecvStream, SendStream};
use crate::streams::SUBSCRIBE;
use crate::streams::consumer::actor::ConsumerMessage;
use crate::streams::consumer::inlet::{Batch, Content, Flow, Inlet, PART_ROOM, room_of};
use crate::streams::consumer::tap::{Found, READ, Tap};
use crate::supervision::job::Work;

/// The job; see the module page.
pub(crate) struct Receiver {
    pub(crate) context: Arc<Context>,
    pub(crate) consumer: ActorRef<ConsumerMessage>,
    pub(crate) inlet: Arc<Inlet>,
    pub(crate) flow: Arc<Flow>,
    pub(crate) resume: Option<Resume>,
    /// Whether the peer has to be told first who this node is.
    pub(crate) introduce: bool,
}

/// How a subscription ended, seen from the consumer.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ReceiverEnd {
    /// The producer could not be reached.
    #[error(transparent)]
    Open(OpenError),
    /// The producer refused it.
    #[error("the producer refused it: {0}")]
    Refused(Refusal),
    /// The producer ended it.
    #[error("the producer ended it: {}", .0.name())]
    Ended(StreamEnd),
    /// The stream was lost.
    #[error(transparent)]
    Lost(StreamError),
    /// The producer's answer took too long.
    #[error("the producer's answer took too long")]
    TimedOut,
    /// The producer broke the rules.
    #[error("the producer broke the rules: {0}")]
    Misbehaved(Arc<str>),
    /// The part of the node that ran it failed.
    #[error("it failed: {0}")]
    Failed(Arc<str>),
    /// This node wanted nothing more from it.
    #[error("this node wanted nothing more from it")]
    Cut,
}

impl ReceiverEnd {
    /// A word for metrics.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Open(_) => "not_opened",
            Self::Refused(refusal) => refusal.name(),
            Self::Ended(end) => end.name(),
            Self::Lost(_) => "lost",
            Self::TimedOut => "timed_out",
            Self::Misbehaved(_) => "misbehaved",
            Self::Failed(_) => "failed",
            Self::Cut => "cut",
        }
    }
}

impl Work for Receiver {
    type End = ReceiverEnd;
    const NAME: &'static str = "receiver";
    #[cfg(feature = "fault-injection")]
    const POINTS: Points = Points {
        pre_start: Point::ReceiverPreStart,
        task: Point::ReceiverTask,
        done: Point::ReceiverDone,
        panicked: Point::ReceiverTaskPanicked,
    };

    fn context(&self) -> &Arc<Context> {
        &self.context
    }

    async fn run(self) -> ReceiverEnd {
        let end = subscribe(&self).await;
        end.map_or_else(|end| end, |never| match never {})
    }
}

/// Nothing: a subscription only ends for a reason.
enum Never {}

/// Carries the subscription to its end.
async fn subscribe(receiver: &Receiver) -> Result<Never, ReceiverEnd> {
    let Receiver { context, inlet, flow, resume, introduce, .. } = receiver;
    if *introduce {
        // Whether or not it helps, the producer is asked again.
        let _ = context.sync_with(flow.source).await;
    }
    let mode = StreamMode::Eager;
    let opening = open::open(context, Peer::from(flow.source), SUBSCRIBE, mode, Options::new());
    let (mut send, mut recv) = opening.await.map_err(not_opened)?;
    let id = context.streams.number();
    // Before the producer can send any.
    let _datagrams = follow_datagrams(context, inlet, flow, &recv, id);
    let mut ticket = inlet.ticket();
    let presented = ticket.borrow_and_update().as_ref().map(|ticket| ticket.to_vec());
    let terms = &inlet.terms;
    let asking = Subscribe {
        id,
        name: terms.name.clone(),
        schema: terms.schema.clone(),
        resume: *resume,
        ticket: presented,
        extensions: Extensions::none(),
    };
    say(&mut send, ConsumerFrame::Subscribe(asking)).await?;
    let deadline = context.limits.header_deadline.saturating_mul(ANSWER_FACTOR);
    let mut buffer = BytesMut::with_capacity(READ);
    let answer = tokio::time::timeout(deadline, answer(&mut recv, &mut buffer)).await;
    let accepted = match answer.unwrap_or(Err(ReceiverEnd::TimedOut))? {
        Answered::Accepted(accepted) => accepted,
        Answered::Refused(refusal) => return Err(ReceiverEnd::Refused(refusal)),
    };
    let begun = begin(receiver, &accepted);
    if !begun.map_err(|error| misbehaved(&mut recv, error.code(), &error))? {
        return Err(ReceiverEnd::Cut);
    }
    if receiver.consumer.send_message(ConsumerMessage::Accepted(flow.attempt)).is_err() {
        return Err(ReceiverEnd::Cut);
    }
    let tap = Arc::new(Tap::new(recv, buffer, Entries::new(&accepted, terms.item_max)));
    let _open = inlet.open(flow, &tap);
    loop {
        tokio::select! {
            // What comes most is looked for first; but a source that never pauses keeps no ticket from being presented.
            biased;
            found = tap.next(), if !ticket.has_changed().unwrap_or(true) => {
                let delivering = deliver(receiver, &tap, found);
                tokio::pin!(delivering);
                // An app that reads nothing for a while keeps its ticket good all the same.
                loop {
                    tokio::select! {
                        biased;
                        delivered = &mut delivering => break delivered?,
                        renewal = renewal(&mut ticket) => say(&mut send, renewal?).await?,
                    }
                }
            }
            () = flow.took.notified(), if accepted.channel == Channel::Latest => {
                say(&mut send, ConsumerFrame::Taken { through: flow.taken() }).await?;
            }
            renewal = renewal(&mut ticket) => say(&mut send, renewal?).await?,
        }
    }
}

/// Presents the next ticket that the app has. Cancel safe.
async fn renewal(
    ticket: &mut watch::Receiver<Option<Bytes>>,
) -> Result<ConsumerFrame, ReceiverEnd> {
    ticket.changed().await.map_err(|_| ReceiverEnd::Cut)?;
    let renewed = ticket.borrow_and_update().clone().ok_or(ReceiverEnd::Cut)?;
    Ok(ConsumerFrame::Renew { ticket: renewed.to_vec() })
}

/// Says something to the producer. What is said is small and rare: one that has no room for it reads nothing at all.
async fn say(send: &mut SendStream, frame: ConsumerFrame) -> Result<(), ReceiverEnd> {
    let bytes = frame.encode().map_err(|error| ReceiverEnd::Failed(error.to_string().into()))?;
    let saying = tokio::time::timeout(SAY, send.write_overhead(&bytes)).await;
    match saying {
        Ok(Ok(())) => Ok(()),
        // The reason comes by the other half.
        Ok(Err(StreamError::Reset(_))) => Ok(()),
        Ok(Err(error)) => Err(ReceiverEnd::Lost(error)),
        Err(_) => Err(ReceiverEnd::TimedOut),
    }
}

/// How many header deadlines the producer's answer may take: it reads what is asked in one of them, and has the app look at a ticket.
pub(crate) const ANSWER_FACTOR: u32 = 2;

/// How long a producer may leave no room for what a consumer says.
pub(crate) const SAY: Duration = Duration::from_secs(10);

fn not_opened(error: OpenError) -> ReceiverEnd {
    match error {
        OpenError::Refused(Code::UnknownProtocol) => ReceiverEnd::Refused(Refusal::NoSuchStream),
        error => ReceiverEnd::Open(error),
    }
}

fn misbehaved(recv: &mut RecvStream, code: Code, error: &impl ToString) -> ReceiverEnd {
    recv.stop(code);
    ReceiverEnd::Misbehaved(error.to_string().into())
}

/// Reads the producer's answer; what came behind it stays in the buffer.
async fn answer(recv: &mut RecvStream, buffer: &mut BytesMut) -> Result<Answered, ReceiverEnd> {
    let refused = |error: StreamError| match error {
        StreamError::Refused(Code::UnknownPeer) => ReceiverEnd::Refused(Refusal::UnknownPeer),
        StreamError::Refused(Code::UnknownProtocol) => ReceiverEnd::Refused(Refusal::NoSuchStream),
        error => ReceiverEnd::Lost(error),
    };
    recv.answered().await.map_err(refused)?;
    loop {
        let body = frame::take(buffer, ANSWERED_MAX);
        let answer = body.and_then(|body| body.map(|body| Answered::decode(&body)).transpose());
        match answer {
            Ok(Some(answer)) => return Ok(answer),
            Ok(None) => {}
            Err(error) => return Err(misbehaved(recv, error.code(), &error)),
        }
        match recv.read_buf(buffer).await {
            Ok(0) => return Err(misbehaved(recv, Code::Malformed, &"it ended without an answer")),
            Ok(_) => {}
            Err(error) => return Err(refused(StreamError::from_io(&error))),
        }
    }
}

/// Says to the app what it has missed before the first item; false if this subscription is wanted no more.
fn begin(receiver: &Receiver, accepted: &Accepted) -> Result<bool, EntryError> {
    let Receiver { inlet, flow, resume, .. } = receiver;
    let content = match resume.map(|resume| resume.begins(accepted)).transpose()? {
        None | Some(Beginning::Continues) => None,
        Some(Beginning::Missed(missed)) => {
            flow.numbers.miss(missed);
            Some(Content::Missed(missed))
        }
        Some(Beginning::Anew) => Some(Content::Restarted),
    };
    let batch = content.map(|content| Batch { flow: Arc::clone(flow), content, _room: None });
    let resume = Resume { epoch: accepted.epoch, next: accepted.next };
    let is_current = inlet.advance(flow, resume, batch);
    if is_current {
        // Known before the first item is: the app may look when it has that.
        inlet.known(&flow.source, |source| {
            source.channel = Some(accepted.channel);
            source.numbers.subscribed.fetch_add(1, Ordering::Relaxed);
        });
        // It is the first time that this flow begins.
        let _ = flow.accepted.set(accepted.clone());
    }
    Ok(is_current)
}

/// Puts what was found into the inlet, once it has room.
async fn deliver(receiver: &Receiver, tap: &Tap, found: Found) -> Result<(), ReceiverEnd> {
    let Receiver { inlet, flow, .. } = receiver;
    let misbehaved = |code, error: &dyn Display| {
        tap.stop(code);
        Err(ReceiverEnd::Misbehaved(error.to_string().into()))
    };
    let (read, next) = match found {
        Found::Read(read, next) => (read, next),
        Found::Broken(error) => return misbehaved(error.code(), &error),
        Found::Ended => return misbehaved(Code::Malformed, &"it ended without a word"),
        Found::Lost(error) => return Err(ReceiverEnd::Lost(error)),
        Found::Stale => return Err(ReceiverEnd::Cut),
    };
    let room = match &read {
        Read::End(end) => return Err(ReceiverEnd::Ended(*end)),
        Read::Skip { .. } => None,
        Read::Items { .. } | Read::Gap { .. } => {
            Some(inlet.room(room_of(&read)).await.ok_or(ReceiverEnd::Cut)?)
        }
    };
    if inlet.put_read(flow, read, next, room) { Ok(()) } else { Err(ReceiverEnd::Cut) }
}

/// Puts datagrams of this subscription into the inlet as long as the answer lives; what finds no room is lost.
fn follow_datagrams(
    context: &Arc<Context>,
    inlet: &Arc<Inlet>,
    flow: &Arc<Flow>,
    recv: &RecvStream,
    id: u64,
) -> Subscribed {
    let (inlet, flow) = (Arc::clone(inlet), Arc::clone(flow));
    // The numbers below this one have come or are lost, as far as anybody knows.
    let mut next = None;
    recv.link().follow_datagrams(context, id, move |number, bytes| {
        let numbers = &flow.numbers;
        // A producer that sends no datagrams, or has not answered, has no business to send any.
        let accepted = flow.accepted.get();
        let accepted = accepted.filter(|accepted| accepted.channel == Channel::Datagram);
        let Some(&Accepted { epoch, next: first, .. }) = accepted else { return false };
        if bytes.len() > inlet.terms.item_max || !inlet.is_current(&flow) {
            return false;
        }
        let expected = next.unwrap_or(first);
        if number >= expected {
            numbers.miss(number.saturating_sub(expected));
        } else {
            // It was overtaken, and counted as missed.
            numbers.miss_one_less();
        }
        let after = number.saturating_add(1).max(expected);
        next = Some(after);
        let resume = Resume { epoch, next: after };
        let Some(room) = inlet.try_room(bytes.len().saturating_add(PART_ROOM)) else {
            inlet.advance(&flow, resume, None);
            numbers.miss(1);
            return false;
        };
        numbers.came(1, bytes.len());
        let content = Content::Datagram(number, bytes);
        let batch = Batch { flow: Arc::clone(&flow), content, _room: Some(room) };
        inlet.advance(&flow, resume, Some(batch))
    })
}
