//! What can go wrong, one enum per operation, each variant something that a caller would treat differently.
//!
//! Messages say whose doing it was: the app's, the peer's, the network's, or the node's own.

use std::sync::Arc;

use kinfolk_core::code::Code;
use kinfolk_core::intent::{Failure, Outcome};
use kinfolk_core::limits::LimitsError;
use kinfolk_core::peer_link::LinkEnd;
use thiserror::Error;

use crate::node::terminal::Terminal;

/// Why a node could not be started. The app or its machine is to blame.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SpawnError {
    /// A limit is not usable.
    #[error("the limits are not usable: {0}")]
    Limits(#[from] LimitsError),
    /// The network name is empty.
    #[error("the network name is empty")]
    EmptyNetworkName,
    /// The identity could not be read or created.
    #[error("the identity could not be loaded: {0}")]
    Identity(#[from] crate::node::identity::IdentityError),
    /// A ticket to start from is of another network.
    #[error("a ticket to bootstrap from is of another network")]
    ForeignTicket,
    /// There are more topics than a node can take part in.
    #[error("the topics do not fit into the node's record: {0}")]
    Topics(#[from] kinfolk_core::record::DraftError),
    /// The state directory cannot be used.
    #[error("the state directory cannot be used: {0}")]
    Store(#[from] crate::discovery::store::StoreError),
    /// Addresses of a peer were not taken.
    #[error("the addresses of a peer were not taken: {0}")]
    Peer(#[from] kinfolk_core::address_book::BookError),
    /// The address to bind is not valid.
    #[error("the address {address} cannot be bound: {reason}")]
    Address {
        /// The address that was asked for.
        address: std::net::SocketAddr,
        /// What iroh says of it.
        reason: String,
    },
    /// The endpoint could not be bound, for example because the port is taken.
    #[error("the endpoint could not be bound: {0}")]
    Bind(#[source] Box<iroh::endpoint::BindError>),
    /// The root actor could not be started, for example because its supervisor is stopping.
    #[error("the root actor could not be started: {0}")]
    Actor(#[from] ractor::SpawnErr),
    /// The thread for the node's network could not be started.
    #[error("the network thread could not be started: {0}")]
    Thread(#[source] std::io::Error),
    /// The thread for the node's network ended before the node was up.
    #[error("the network thread ended before the node was up")]
    ThreadEnded,
    /// The node was started outside a tokio runtime.
    #[error("a node needs a tokio runtime to start in")]
    NoRuntime,
}

/// Why the node cannot answer: it has ended.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("the node has ended: {0}")]
pub struct NodeClosed(pub Terminal);

/// Why the node did not take an address.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum AddressError {
    /// The app gave no transport address, or too many.
    #[error(transparent)]
    Book(#[from] kinfolk_core::address_book::BookError),
    /// The node has ended.
    #[error(transparent)]
    Closed(#[from] NodeClosed),
}

/// Why the node does not take part in a topic.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum TopicError {
    /// The node's record has no room for one more.
    #[error(transparent)]
    Full(#[from] kinfolk_core::record::DraftError),
    /// The node has ended.
    #[error(transparent)]
    Closed(#[from] NodeClosed),
}

/// Why the node does not take part in a secret topic.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SecretTopicError {
    /// It takes part in as many as it may.
    #[error(transparent)]
    Full(#[from] kinfolk_core::secret_topic::TooManySecretTopics),
    /// The node has ended.
    #[error(transparent)]
    Closed(#[from] NodeClosed),
}

/// Why the node does not say that it offers something.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum OfferError {
    /// The node's record has no room for one more.
    #[error(transparent)]
    Full(#[from] kinfolk_core::record::DraftError),
    /// The app has switched discovery off: nobody would ever hear of the offer.
    #[error("nobody can be told of an offer, as discovery is switched off")]
    NoDiscovery,
}

/// How an open or a call ended when it did not succeed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The peer refused.
    #[error("the peer refused: {0}")]
    Refused(Code),
    /// It cannot succeed.
    #[error("{failure}{}", because(.cause))]
    Failed {
        /// Why.
        failure: Failure,
        /// What was last wrong with a link to the peer.
        cause: Option<LinkEnd>,
    },
    /// Payload was sent and the link was lost before the answer; the peer may or may not have acted on it.
    #[error("the link was lost after the payload was sent; the peer may have acted on it")]
    Unknown,
    /// The deadline passed.
    #[error("the deadline passed{}", because(.cause))]
    TimedOut {
        /// What was last wrong with a link to the peer.
        cause: Option<LinkEnd>,
    },
    /// No session with the peer is live, and the caller did not want to wait for one.
    #[error("no session with the peer is live")]
    NotConnected,
    /// The app disconnected the peer meanwhile.
    #[error("the app disconnected the peer")]
    Cancelled,
    /// The app banned the peer.
    #[error("the peer is banned")]
    Banned,
    /// The part of the node that kept the intent failed and was restarted; asking again is safe.
    #[error("the node's peer manager was restarted")]
    Restarted,
    /// The node is shutting down.
    #[error("the node is shutting down")]
    ShuttingDown,
    /// The node has ended.
    #[error(transparent)]
    Closed(NodeClosed),
}

impl OpenError {
    pub(crate) fn from_outcome(outcome: Outcome, cause: Option<LinkEnd>) -> Self {
        match outcome {
            Outcome::Refused(code) => Self::Refused(code),
            Outcome::Failed(failure) => Self::Failed { failure, cause },
            Outcome::Unknown => Self::Unknown,
            Outcome::TimedOut => Self::TimedOut { cause },
            Outcome::Cancelled => Self::Cancelled,
            Outcome::Banned => Self::Banned,
            Outcome::ShuttingDown => Self::ShuttingDown,
            // No error is made of a success; should one come, the asker can safely ask again.
            Outcome::Restarted | Outcome::Done => Self::Restarted,
        }
    }

    /// The outcome that metrics count this as.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Refused(code) => Outcome::Refused(*code),
            Self::Failed { failure, .. } => Outcome::Failed(*failure),
            Self::Unknown => Outcome::Unknown,
            Self::TimedOut { .. } => Outcome::TimedOut,
            Self::NotConnected => Outcome::Failed(Failure::NoLink),
            Self::Cancelled => Outcome::Cancelled,
            Self::Banned => Outcome::Banned,
            Self::Restarted => Outcome::Restarted,
            Self::ShuttingDown | Self::Closed(_) => Outcome::ShuttingDown,
        }
    }
}

fn because(cause: &Option<LinkEnd>) -> String {
    cause.map_or_else(String::new, |cause| format!(" (last link: {cause})"))
}

/// How a call ended when it got no response.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum CallError {
    /// The intent did not succeed.
    #[error(transparent)]
    Intent(#[from] OpenError),
    /// The request could not be encoded. The app is to blame.
    #[error("the request could not be encoded: {0}")]
    Request(Arc<str>),
    /// The response is not what the caller's type says. The peer, or a difference of versions, is to blame.
    #[error("the response could not be decoded: {0}")]
    Response(Arc<str>),
}

/// Why no more responses come of a call with many, though the peer has not said that these were all.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ResponsesError {
    /// They were cut. [`StreamError::Reset`] has the reason that the peer gave, such as `HandlerFailed`; all responses that its handler made before came first.
    /// Of one that is [`StreamError::TooLarge`], this side did not read more.
    #[error(transparent)]
    Cut(#[from] StreamError),
    /// A response is not what the caller's type says. The peer, or a difference of versions, is to blame.
    #[error("a response could not be decoded: {0}")]
    Response(Arc<str>),
    /// The time that the caller gave for all of them is over.
    #[error("the time for all responses is over")]
    TimedOut,
}

/// Why a protocol was not taken into service. The app is to blame.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The protocol has a handler already.
    #[error("protocol {0} has a handler already")]
    AlreadyServed(kinfolk_core::id::ProtocolName),
    /// Names that begin with `kinfolk/` are the library's own.
    #[error("protocol {0} is reserved")]
    Reserved(kinfolk_core::id::ProtocolName),
    /// A concurrency of zero would refuse every stream.
    #[error("the concurrency of a protocol must be larger than zero")]
    ZeroConcurrency,
    /// As many protocols are served as the limits allow.
    #[error("{0} protocols are served already, as many as the limits allow")]
    TooMany(usize),
    /// The protocol cannot be offered to the network.
    #[error("the protocol cannot be offered: {0}")]
    Offer(#[from] OfferError),
    /// The node has ended.
    #[error(transparent)]
    Closed(#[from] NodeClosed),
}

/// What a stream ended with instead of data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum StreamError {
    /// The peer refused the eagerly opened stream; nothing of it was served.
    #[error("the peer refused the stream: {0}")]
    Refused(Code),
    /// The peer gave the stream up.
    #[error("the peer gave the stream up: {0}")]
    Reset(Code),
    /// The link was closed with this code before the stream ended.
    #[error("the link was closed: {0}")]
    LinkClosed(Code),
    /// The link was lost before the stream ended.
    #[error("the link was lost")]
    LinkLost,
    /// The peer ended the stream where more had to come.
    #[error("the peer ended the stream too early")]
    Truncated,
    /// There is more than the reader takes.
    #[error("there is more on the stream than the reader takes")]
    TooLarge,
    /// This side ended the stream already.
    #[error("this side ended the stream already")]
    Finished,
}

impl StreamError {
    /// What an error of tokio's traits stands for.
    pub(crate) fn from_io(error: &std::io::Error) -> Self {
        let own = error.get_ref().and_then(|error| error.downcast_ref::<Self>());
        own.cloned().unwrap_or(Self::LinkLost)
    }
}

impl From<StreamError> for std::io::Error {
    fn from(error: StreamError) -> Self {
        use std::io::ErrorKind;
        let kind = match error {
            StreamError::Refused(_) => ErrorKind::ConnectionRefused,
            StreamError::Reset(_) => ErrorKind::ConnectionReset,
            StreamError::LinkClosed(_) | StreamError::LinkLost => ErrorKind::NotConnected,
            StreamError::Truncated => ErrorKind::UnexpectedEof,
            StreamError::TooLarge => ErrorKind::InvalidData,
            StreamError::Finished => ErrorKind::BrokenPipe,
        };
        Self::new(kind, error)
    }
}

/// What a handler says when it cannot serve a stream; the peer sees the code `HandlerFailed`.
#[derive(Debug, Error)]
#[error("{0}")]
pub struct HandlerError(pub String);

impl HandlerError {
    /// From anything that has a text.
    pub fn new(reason: impl std::fmt::Display) -> Self {
        Self(reason.to_string())
    }
}

impl From<std::io::Error> for HandlerError {
    fn from(error: std::io::Error) -> Self {
        Self::new(error)
    }
}

impl From<StreamError> for HandlerError {
    fn from(error: StreamError) -> Self {
        Self::new(error)
    }
}
