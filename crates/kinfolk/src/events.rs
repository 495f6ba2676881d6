//! What happens in a node, for whoever subscribes.
//!
//! Events are facts in the past, sent over a tokio broadcast channel: a slow subscriber is told how many it missed and never slows the node.

use std::time::Duration;

use iroh::EndpointId;
use kinfolk_core::catalog::Removal;
use kinfolk_core::code::Code;
use kinfolk_core::id::{LinkId, ProtocolName};
use kinfolk_core::peer_link::{Direction, DownReason, LinkEnd};
use kinfolk_core::stream::StreamName;

use crate::discovery::exchange::{ExchangeError, ExchangeReport};
use crate::node::terminal::Terminal;
use crate::streams::consumer::receiver::ReceiverEnd;
use crate::streams::producer::feed::FeedEnd;

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum NodeEvent {
    /// A session with a peer is live.
    SessionEstablished {
        /// The peer.
        peer: EndpointId,
        /// Its link.
        link: LinkId,
        /// Who opened it.
        direction: Direction,
    },
    /// The live session with a peer is live no more; open streams may still be finishing.
    SessionDown {
        /// The peer.
        peer: EndpointId,
        /// Its link.
        link: LinkId,
        /// Why.
        reason: DownReason,
    },
    /// A session's actor is gone.
    SessionEnded {
        /// The peer.
        peer: EndpointId,
        /// Its link.
        link: LinkId,
        /// How it ended.
        end: LinkEnd,
    },
    /// A session's actor panicked; only its link was lost.
    SessionPanicked {
        /// The peer.
        peer: EndpointId,
        /// Its link.
        link: LinkId,
        /// The panic's text.
        message: String,
    },
    /// A dial failed.
    DialFailed {
        /// The peer.
        peer: EndpointId,
        /// How it failed.
        end: LinkEnd,
        /// When the peer is dialled again, if it is still wanted.
        retry_in: Option<Duration>,
    },
    /// An incoming link was refused after its hello.
    LinkRefused {
        /// The peer.
        peer: EndpointId,
        /// The code that it was given.
        code: Code,
    },
    /// A peer is banned.
    PeerBanned {
        /// The peer.
        peer: EndpointId,
        /// For how long.
        duration: Duration,
    },
    /// A ban was lifted or has run out. Of a peer that nothing else is known of, one that runs out may go without this event.
    PeerUnbanned {
        /// The peer.
        peer: EndpointId,
    },
    /// A peer is left alone because its sessions kept panicking.
    PeerQuarantined {
        /// The peer.
        peer: EndpointId,
        /// For how long.
        duration: Duration,
        /// The text of the last panic.
        cause: String,
    },
    /// A handler returned an error.
    HandlerFailed {
        /// The peer whose stream it served.
        peer: EndpointId,
        /// The protocol.
        protocol: ProtocolName,
        /// What it said.
        reason: String,
    },
    /// A handler panicked; only its stream was lost.
    HandlerPanicked {
        /// The peer whose stream it served.
        peer: EndpointId,
        /// The protocol.
        protocol: ProtocolName,
        /// The panic's text.
        message: String,
    },
    /// A part of the node failed and is being restarted.
    Restarted {
        /// Which part.
        actor: &'static str,
        /// Why it failed.
        cause: String,
    },
    /// A peer is in the catalog that was not.
    PeerDiscovered {
        /// The peer.
        peer: EndpointId,
    },
    /// A peer in the catalog has another record, or more of its addresses may be used.
    PeerUpdated {
        /// The peer.
        peer: EndpointId,
    },
    /// A peer is in the catalog no more.
    PeerDeparted {
        /// The peer.
        peer: EndpointId,
        /// Why.
        reason: Removal,
    },
    /// An exchange of catalogs has begun.
    ExchangeStarted {
        /// The peer.
        peer: EndpointId,
        /// Who opened it.
        direction: Direction,
    },
    /// An exchange of catalogs has ended as it should.
    ExchangeEnded {
        /// The peer.
        peer: EndpointId,
        /// Who opened it.
        direction: Direction,
        /// What came of it.
        report: ExchangeReport,
    },
    /// An exchange of catalogs has failed. What came before is kept.
    ExchangeFailed {
        /// The peer.
        peer: EndpointId,
        /// Who opened it.
        direction: Direction,
        /// Why.
        error: ExchangeError,
        /// What came of it before; `None` if nothing was begun, or that is not known.
        report: Option<ExchangeReport>,
    },
    /// A consumer of another node has subscribed to a producer of this one.
    ConsumerJoined {
        /// The stream.
        stream: StreamName,
        /// The consumer's node.
        peer: EndpointId,
    },
    /// A consumer of another node is subscribed no more.
    ConsumerLeft {
        /// The stream.
        stream: StreamName,
        /// The consumer's node.
        peer: EndpointId,
        /// Why.
        reason: FeedEnd,
    },
    /// A consumer of this node is subscribed to a producer.
    SourceUp {
        /// The stream.
        stream: StreamName,
        /// The producer's node.
        peer: EndpointId,
    },
    /// A consumer of this node has lost a producer that it was subscribed to.
    SourceDown {
        /// The stream.
        stream: StreamName,
        /// The producer's node.
        peer: EndpointId,
        /// Why.
        reason: ReceiverEnd,
    },
    /// The node takes no new work and lets its streams finish.
    Draining,
    /// The node has ended. It is the last event.
    Ended {
        /// Why.
        reason: Terminal,
    },
}
