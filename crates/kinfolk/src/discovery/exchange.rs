//! Exchange: one reconciliation of the catalog with one peer, over a stream of an ordinary session.
//!
//! Here is what it is to Discovery: a [job](crate::supervision::job), who waits for it, what came of it and why it failed. The work is the [`conversation`].

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use iroh::EndpointId;
use kinfolk_core::exchange::ExchangeError as Fault;
use kinfolk_core::id::ProtocolName;
use kinfolk_core::peer_link::Direction;
use kinfolk_core::record::RecordError;
use ractor::RpcReplyPort;
use thiserror::Error;

use crate::context::Context;
use crate::discovery::conversation;
use crate::discovery::manager::DiscoveryMessage;
use crate::error::{NodeClosed, OpenError, StreamError};
#[cfg(feature = "fault-injection")]
use crate::fault::{Point, Points};
use crate::peers::link::Link;
use crate::protocol::service::Incoming;
use crate::supervision::job::Work;
use crate::supervision::lock;

/// The library's own protocol by which two nodes reconcile their catalogs.
pub(crate) const EXCHANGE: ProtocolName = ProtocolName::from_static("kinfolk/exchange/1");

/// Whoever asked for an exchange and waits for what came of it.
pub(crate) type ExchangeReply = RpcReplyPort<Result<ExchangeReport, ExchangeError>>;

/// The job; see the module page.
pub(crate) struct Exchange {
    pub(crate) context: Arc<Context>,
    pub(crate) peer: EndpointId,
    pub(crate) role: Role,
}

/// Who opened the exchange.
pub(crate) enum Role {
    /// This node.
    Initiator,
    /// The peer, by this stream.
    Responder(Box<Incoming>, Heard),
}

/// When the peer was last heard, for whoever may give its place to another; nothing once the exchange awaits nothing more from it.
#[derive(Debug, Clone)]
pub(crate) struct Heard(Arc<Mutex<Option<Instant>>>);

impl Heard {
    pub(crate) fn now() -> Self {
        Self(Arc::new(Mutex::new(Some(Instant::now()))))
    }

    pub(crate) fn again(&self) {
        *lock(&self.0) = Some(Instant::now());
    }

    /// The exchange is over but for what this node has to do by itself.
    pub(crate) fn no_more(&self) {
        *lock(&self.0) = None;
    }

    pub(crate) fn at(&self) -> Option<Instant> {
        *lock(&self.0)
    }
}

impl Role {
    pub(crate) fn direction(&self) -> Direction {
        match self {
            Self::Initiator => Direction::Outbound,
            Self::Responder(..) => Direction::Inbound,
        }
    }
}

/// What came of an exchange, for those who asked and for walkers.
#[derive(Debug)]
pub(crate) struct Exchanged {
    pub(crate) report: ExchangeReport,
    /// Some of the peers whose records it brought.
    pub(crate) brought: Vec<EndpointId>,
    /// Why it did not get to its end, if it did not.
    pub(crate) error: Option<ExchangeError>,
    /// The link that carried it.
    pub(crate) link: Arc<Link>,
}

/// What came of an exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExchangeReport {
    /// Records that it taught this node: new peers, newer records of known ones, and departures.
    pub learnt: usize,
    /// Records that were sent to the peer.
    pub sent: usize,
    /// Bytes sent.
    pub bytes_sent: u64,
    /// Bytes received.
    pub bytes_received: u64,
    /// How long it took, the dial included if there was one.
    pub duration: Duration,
    /// Whether the two catalogs are the same now, as far as each takes what the other has. Otherwise a bound was reached, and the next
    /// exchange goes on.
    pub is_complete: bool,
}

/// Why an exchange failed. What came before is kept.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ExchangeError {
    /// No stream could be opened to the peer.
    #[error(transparent)]
    Open(OpenError),
    /// The stream was lost, or the peer refused it or gave it up.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// The peer broke the rules.
    #[error("the peer broke the rules of the exchange: {0}")]
    Misbehaved(Fault),
    /// The peer handed over bytes that are no record of this network, as whoever passes them on has to know.
    #[error("the peer handed over what is no record: {0}")]
    BadRecord(RecordError),
    /// The peer took too long.
    #[error("the peer took too long")]
    TimedOut,
    /// The peer was silent, or the exchange took long, while another peer wanted its place. What came is kept, and another exchange goes
    /// on with the rest.
    #[error("it made room for the exchange of another peer")]
    Displaced,
    /// As many exchanges run as the limits allow.
    #[error("as many exchanges run as the limits allow")]
    TooMany,
    /// Discovery is switched off in this node.
    #[error("discovery is switched off in this node")]
    Off,
    /// The part of the node that ran it failed and was restarted; asking again is safe.
    #[error("the node's discovery was restarted")]
    Restarted,
    /// The exchange itself failed.
    #[error("the exchange failed: {0}")]
    Failed(Arc<str>),
    /// The node has ended.
    #[error(transparent)]
    Closed(#[from] NodeClosed),
}

impl ExchangeError {
    pub(crate) fn failed(cause: &impl std::fmt::Display) -> Self {
        Self::Failed(cause.to_string().into())
    }

    /// A word for metrics.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Open(_) => "not_opened",
            Self::Stream(_) => "stream",
            Self::Misbehaved(_) | Self::BadRecord(_) => "misbehaved",
            Self::TimedOut => "timed_out",
            Self::Displaced => "displaced",
            Self::TooMany => "too_many",
            Self::Off => "off",
            Self::Restarted => "restarted",
            Self::Failed(_) => "failed",
            Self::Closed(_) => "closed",
        }
    }
}

impl Work for Exchange {
    type End = Result<Exchanged, ExchangeError>;
    const NAME: &'static str = "exchange";
    #[cfg(feature = "fault-injection")]
    const POINTS: Points = Points {
        pre_start: Point::ExchangePreStart,
        task: Point::ExchangeTask,
        done: Point::ExchangeDone,
        panicked: Point::ExchangeTaskPanicked,
    };

    fn context(&self) -> &Arc<Context> {
        &self.context
    }

    async fn run(self) -> Self::End {
        conversation::run(&self.context, self.peer, self.role).await
    }
}

impl Context {
    /// Asks for an exchange with a peer. A reply port that is dropped says that Discovery was restarted over it.
    pub(crate) fn ask_for_sync(&self, peer: EndpointId, reply: ExchangeReply) {
        if self.discovers {
            let _ = self.tell_discovery(DiscoveryMessage::Sync(peer, reply));
        } else {
            let _ = reply.send(Err(ExchangeError::Off));
        }
    }

    /// Exchanges catalogs with a peer. Cancel safe; the exchange goes on.
    pub(crate) async fn sync_with(
        &self,
        peer: EndpointId,
    ) -> Result<ExchangeReport, ExchangeError> {
        let (reply, answer) = ractor::concurrency::oneshot();
        self.ask_for_sync(peer, reply.into());
        match answer.await {
            Ok(result) => result,
            Err(_) => match self.ended() {
                Some(end) => Err(NodeClosed(end).into()),
                None => Err(ExchangeError::Restarted),
            },
        }
    }
}
