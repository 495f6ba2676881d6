//! Feed: writes what a producer sends to one subscriber.
//!
//! It is a [job](crate::supervision::job). It takes from the outlet what the stream
//! has room for, so that a subscriber that reads slowly costs its lag in the outlet and no more, and reads what the subscriber says meanwhile. Whatever it does,
//! it harms no other subscriber.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use futures_util::FutureExt;
use kinfolk_core::bucket::Bucket;
use kinfolk_core::code::Code;
use kinfolk_core::stream::Take;
use kinfolk_core::wire::subscription::{
    Accepted, Answered, Channel, ConsumerFrame, Refusal, SUBSCRIBE_MAX, StreamEnd,
};
use kinfolk_core::wire::{Extensions, FrameError, frame};
use ractor::ActorRef;
use thiserror::Error;
use tokio::sync::{Notify, watch};

use crate::context::Context;
use crate::error::StreamError;
#[cfg(feature = "fault-injection")]
use crate::fault::{Point, Points};
use crate::metrics::Family;
use crate::protocol::service::Incoming;
use crate::protocol::stream::RecvStream;
use crate::streams::producer::actor::ProducerMessage;
use crate::streams::producer::line::Line;
use crate::streams::producer::outlet::Seat;
use crate::supervision::job::Work;

/// Writes that found room before the feed looks for what else there is.
const IN_A_ROW: u32 = 16;

/// The job; see the module page.
pub(crate) struct Feed {
    pub(crate) context: Arc<Context>,
    pub(crate) producer: ActorRef<ProducerMessage>,
    pub(crate) seat: Seat,
    /// The number of the first item.
    pub(crate) next: u64,
    /// What its datagrams are named by.
    pub(crate) subscription: u64,
    pub(crate) incoming: Incoming,
    pub(crate) frames: Frames,
    /// Why the subscription is to end.
    pub(crate) ending: watch::Receiver<Option<StreamEnd>>,
    /// Told when the ticket that the subscriber presented was looked at.
    pub(crate) looked: Arc<Notify>,
}

/// How a subscription ended, seen from the producer.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum FeedEnd {
    /// The consumer does not want more.
    #[error("the consumer has left")]
    Left,
    /// The producer ended it.
    #[error("the producer ended it: {}", .0.name())]
    Ended(StreamEnd),
    /// The stream was lost.
    #[error(transparent)]
    Lost(StreamError),
    /// The consumer broke the rules.
    #[error("the consumer broke the rules: {0}")]
    Misbehaved(Arc<str>),
    /// The consumer did not take the last items in time.
    #[error("the consumer did not take the last items in time")]
    Late,
    /// The part of the node that ran it failed.
    #[error("it failed: {0}")]
    Failed(Arc<str>),
}

impl FeedEnd {
    /// A word for metrics.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Left => "left",
            Self::Ended(end) => end.name(),
            Self::Lost(_) => "lost",
            Self::Misbehaved(_) => "misbehaved",
            Self::Late => "late",
            Self::Failed(_) => "failed",
        }
    }

    fn misbehaved(error: &impl ToString) -> Self {
        Self::Misbehaved(error.to_string().into())
    }
}

impl Work for Feed {
    type End = FeedEnd;
    const NAME: &'static str = "feed";
    #[cfg(feature = "fault-injection")]
    const POINTS: Points = Points {
        pre_start: Point::FeedPreStart,
        task: Point::FeedTask,
        done: Point::FeedDone,
        panicked: Point::FeedTaskPanicked,
    };

    fn context(&self) -> &Arc<Context> {
        &self.context
    }

    async fn run(self) -> FeedEnd {
        serve(self).await
    }
}

/// What a consumer says, frame by frame.
#[derive(Debug, Default)]
pub(crate) struct Frames {
    buffer: BytesMut,
}

/// Why there is no further frame.
pub(crate) enum NoFrame {
    /// The consumer has ended its side.
    End,
    Lost(StreamError),
    Broken(FrameError),
}

impl Frames {
    /// The next frame. Cancel safe: what was read is kept.
    pub(crate) async fn next(&mut self, recv: &mut RecvStream) -> Result<ConsumerFrame, NoFrame> {
        // One who says as much as it can has to let the others run all the same.
        tokio::task::coop::consume_budget().await;
        loop {
            let frame = frame::take(&mut self.buffer, SUBSCRIBE_MAX).map_err(NoFrame::Broken)?;
            if let Some(frame) = frame {
                return ConsumerFrame::decode(&frame).map_err(NoFrame::Broken);
            }
            match recv.read_chunk(16 * 1024).await {
                Ok(Some(chunk)) => self.buffer.extend_from_slice(&chunk),
                Ok(None) => return Err(NoFrame::End),
                Err(error) => return Err(NoFrame::Lost(error)),
            }
        }
    }
}

/// Tells a consumer that it is not wanted, and waits until it knows or has had its time.
pub(crate) async fn refuse(mut incoming: Incoming, refusal: Refusal, patience: Duration) {
    let answer = Answered::Refused(refusal).encode();
    let telling = async {
        if let Ok(answer) = answer
            && incoming.send.write_overhead(&answer).await.is_ok()
            && incoming.send.finish().is_ok()
        {
            let _ = incoming.send.acknowledged().await;
        }
    };
    let _ = tokio::time::timeout(patience, telling).await;
    incoming.recv.stop(Code::Ok);
}

/// Serves one subscription to its end.
async fn serve(feed: Feed) -> FeedEnd {
    let Feed { context, producer, seat, next, subscription, incoming, .. } = feed;
    let (mut frames, mut ending, looked) = (feed.frames, feed.ending, feed.looked);
    let Incoming { send, mut recv, .. } = incoming;
    let channel = seat.outlet.channel();
    let (epoch, extensions) = (seat.outlet.epoch, Extensions::none());
    let accepted = Accepted { channel, epoch, next, extensions };
    let answer = match Answered::Accepted(accepted).encode() {
        Ok(answer) => answer,
        Err(error) => return FeedEnd::Failed(error.to_string().into()),
    };
    let mut line = Line::new(send, answer.into());
    let mut listening = Listening::Frames;
    let drain = context.limits.drain_deadline;
    let takes_tickets = seat.outlet.terms.tickets.is_some();
    let (rate, mut renewals) =
        (context.limits.streams.subscribers.renewals, Bucket::full(Instant::now()));
    let mut scatters = channel == Channel::Datagram;
    let mut in_a_row = 0_u32;
    loop {
        let end = *ending.borrow_and_update();
        if let Some(end) = end {
            return finish(line, &seat, recv, end, drain).await;
        }
        let looks = line.is_done();
        if looks && std::mem::take(&mut scatters) {
            // Not before the consumer knows what to make of them.
            seat.scatter_to(Arc::clone(recv.link()), subscription);
        }
        let told = if looks { seat.outlet.more() } else { seat.outlet.overrun() };
        tokio::pin!(told);
        // Registered before the look, so that nothing in between is missed.
        told.as_mut().enable();
        let is_over = if looks {
            line.fill(|budget, pieces| seat.take(budget, pieces)) == Take::Over
        } else {
            seat.outlet.is_over(seat.id)
        };
        if is_over {
            let end = StreamEnd::TooSlow;
            return finish(line, &seat, recv, end, Duration::ZERO).await;
        }
        // As long as there is room for what there is, nothing else is waited for; but now and then it is looked for.
        if !line.is_done() && in_a_row < IN_A_ROW {
            in_a_row = in_a_row.saturating_add(1);
            match line.write().now_or_never() {
                Some(Ok(())) => {
                    tokio::task::coop::consume_budget().await;
                    continue;
                }
                Some(Err(error)) => return lost(error),
                // What it waits to be told is another thing from now on.
                None if looks => continue,
                None => {}
            }
        } else if looks && !line.is_done() {
            continue;
        }
        in_a_row = 0;
        let mut writing = if line.is_done() {
            seat.rest(line);
            None
        } else {
            Some(line)
        };
        let news = tokio::select! {
            biased;
            changed = ending.changed() => News::Ending(changed.is_ok()),
            frame = frames.next(&mut recv), if listening == Listening::Frames => News::Frame(frame),
            () = looked.notified(), if listening == Listening::Ticket => News::Looked,
            written = write(&mut writing) => News::Written(written),
            () = told => News::Told,
        };
        // A line at rest is where it was left.
        let Some(resumed) = writing.or_else(|| seat.resume()) else {
            return FeedEnd::Failed("its stream is gone".into());
        };
        line = resumed;
        match news {
            News::Ending(true) | News::Told | News::Written(Ok(())) => {}
            News::Ending(false) => return FeedEnd::Failed("its producer is gone".into()),
            News::Looked => listening = Listening::Frames,
            News::Written(Err(error)) => return lost(error),
            News::Frame(Ok(ConsumerFrame::Taken { through })) => {
                seat.outlet.taken(seat.id, through);
            }
            // A consumer cannot know that nobody looks at it. As many as would be looked at are ignored.
            News::Frame(Ok(ConsumerFrame::Renew { .. })) if !takes_tickets => {
                if !renewals.take(Instant::now(), rate, rate.burst) {
                    let end = StreamEnd::Misbehaved;
                    return finish(line, &seat, recv, end, Duration::ZERO).await;
                }
                context.counters.count(Family::RenewalIgnored, "not_wanted");
            }
            News::Frame(Ok(ConsumerFrame::Renew { ticket })) => {
                // One at a time: what else the consumer says waits in QUIC.
                listening = Listening::Ticket;
                let presented = ProducerMessage::Presented(seat.id, ticket.into());
                if producer.send_message(presented).is_err() {
                    return FeedEnd::Failed("its producer is gone".into());
                }
            }
            News::Frame(Ok(ConsumerFrame::Subscribe(_))) => {
                line.send.reset(Code::Violation);
                recv.stop(Code::Violation);
                return FeedEnd::misbehaved(&"it subscribed twice on one stream");
            }
            News::Frame(Err(NoFrame::End)) => {
                // It wants nothing more: what is on its way is of no use to it.
                line.send.reset(Code::Ok);
                return FeedEnd::Left;
            }
            News::Frame(Err(NoFrame::Lost(StreamError::Reset(Code::Ok | Code::Cancelled)))) => {
                return FeedEnd::Left;
            }
            News::Frame(Err(NoFrame::Lost(error))) => return FeedEnd::Lost(error),
            News::Frame(Err(NoFrame::Broken(error))) => {
                line.send.reset(error.code());
                recv.stop(error.code());
                return FeedEnd::misbehaved(&error);
            }
        }
    }
}

/// What a feed has waited for.
enum News {
    /// It is to end, or its producer is gone.
    Ending(bool),
    Frame(Result<ConsumerFrame, NoFrame>),
    /// The ticket was looked at.
    Looked,
    Written(Result<(), StreamError>),
    /// There is more, or the subscriber gets nothing more.
    Told,
}

/// Writes on a line that is not at rest. Cancel safe.
async fn write(line: &mut Option<Line>) -> Result<(), StreamError> {
    match line {
        Some(line) => line.write().await,
        None => std::future::pending().await,
    }
}

/// What the feed waits for from the consumer's side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Listening {
    Frames,
    /// That its ticket was looked at.
    Ticket,
}

fn lost(error: StreamError) -> FeedEnd {
    match error {
        // The consumer stopped the stream.
        StreamError::Reset(Code::Ok | Code::Cancelled) => FeedEnd::Left,
        error => FeedEnd::Lost(error),
    }
}

/// Says why the subscription ends: behind all items if that is what the end is, otherwise behind those that have begun to go out.
async fn finish(
    mut line: Line,
    seat: &Seat,
    mut recv: RecvStream,
    end: StreamEnd,
    patience: Duration,
) -> FeedEnd {
    let delivers = matches!(end, StreamEnd::Finished | StreamEnd::ShuttingDown);
    let patience = if delivers {
        seat.outlet.hurry(seat.id);
        patience
    } else {
        // Whoever is cut off holds up nobody meanwhile.
        seat.outlet.give_up(seat.id);
        Duration::ZERO
    };
    let ending = async {
        loop {
            while !line.is_done() {
                line.write().await.map_err(lost)?;
            }
            if !delivers || line.is_over() {
                break;
            }
            if line.fill(|budget, pieces| seat.take(budget, pieces)) != Take::Pieces {
                break;
            }
        }
        line.end(end);
        while !line.is_done() {
            line.write().await.map_err(lost)?;
        }
        let _ = line.send.finish();
        line.send.acknowledged().await.map_err(lost)
    };
    let ended = tokio::time::timeout(patience.max(LAST_WORD), ending).await;
    let (ended, code) = match ended {
        Ok(Ok(())) => (FeedEnd::Ended(end), Code::Ok),
        Ok(Err(error)) => (error, Code::Ok),
        Err(_) if delivers => (FeedEnd::Late, Code::DrainDeadline),
        Err(_) => (FeedEnd::Ended(end), Code::DeadlineExceeded),
    };
    line.send.reset(code);
    recv.stop(code);
    ended
}

/// How long a consumer that is cut off has to take the reason: it may be no further than what is on its way.
pub(crate) const LAST_WORD: Duration = Duration::from_secs(1);
