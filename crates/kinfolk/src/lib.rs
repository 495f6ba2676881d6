//! Peer-to-peer networking as a supervision tree.
//!
//! An app spawns one [`Node`] and asks for outcomes: a stream to a peer ([`Node::open`]), a request answered ([`Node::call`]), a peer
//! kept connected ([`Node::hold`]). Connections, duplicate dials, retries, refusals, drains and failures are handled below it by
//! supervised actors, over QUIC between public keys.
//!
//! ```
//! use kinfolk::{Node, ProtocolName, Service};
//!
//! const GREET: ProtocolName = ProtocolName::from_static("greet/1");
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let here = "127.0.0.1:0".parse()?;
//! let alice = Node::builder("my-app").bind_addr(here).spawn().await?;
//! let bob = Node::builder("my-app").bind_addr(here).spawn().await?;
//!
//! bob.serve(GREET, Service::call(|_peer, name: String| async move { Ok(format!("hello {name}")) }))
//!     .await?;
//! let answer: String = alice.call(bob.addr(), GREET, "alice").await?;
//! assert_eq!(answer, "hello alice");
//!
//! alice.shutdown().await;
//! bob.shutdown().await;
//! # Ok(())
//! # }
//! ```
//!
//! # Finding peers
//!
//! A node that is told of one member of its network ([`NodeBuilder::bootstrap`]) finds the others, and they find it. What each says of
//! itself is signed, and kept in a catalog ([`Node::catalog`]); [`Node::find`] and [`Node::find_topic`] tell of peers that are there, that
//! come and that go. Whoever is in the catalog is reached by its id alone. An ask for a peer that is not waits until it is, within its deadline.
//!
//! ```
//! use kinfolk::{Found, Node, ProtocolName, Service, Topic};
//!
//! const MOVE: ProtocolName = ProtocolName::from_static("chess/move/1");
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let here = "127.0.0.1:0".parse()?;
//! let chess = Topic::from_name("chess");
//! let hub = Node::builder("my-app").bind_addr(here).spawn().await?;
//!
//! let bob = Node::builder("my-app").bind_addr(here).bootstrap(hub.addr()).topics([chess]);
//! let bob = bob.spawn().await?;
//! bob.serve(MOVE, Service::call(|_peer, _mine: String| async move { Ok("e7e5") })).await?;
//!
//! let alice = Node::builder("my-app").bind_addr(here).bootstrap(hub.addr()).spawn().await?;
//! let mut players = alice.find_topic(chess);
//! if let Some(Found::Here(player)) = players.next().await {
//!     assert_eq!(player.id(), bob.id());
//!     let answer: String = alice.call(player.id(), MOVE, "e2e4").await?;
//!     assert_eq!(answer, "e7e5");
//! }
//! # for node in [alice, bob, hub] {
//! #     node.shutdown().await;
//! # }
//! # Ok(())
//! # }
//! ```
//!
//! A node says in its record which protocols it serves to whoever looks for them ([`Service::offered`]), and [`Node::call_any`] asks whoever does.
//! [`Node::call_stream`] asks for many responses to one request.
//!
//! A topic can be seen by every member of the network. A [`SecretTopic`] is in no record: only those find each other by it who know it.
//! [`NodeBuilder::discovery`] switches all of it off.

#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        reason = "a test may fail this way"
    )
)]

mod accept;
mod admission;
mod clock;
mod context;
mod discovery;
pub mod error;
mod events;
#[cfg(not(feature = "fault-injection"))]
mod fault;
#[cfg(feature = "fault-injection")]
pub mod fault;
mod listeners;
mod local_only;
mod metrics;
mod monitor;
mod node;
mod peers;
mod protocol;
mod streams;
mod supervision;

pub use admission::{Admission, Admit, SessionBounds};
pub use bytes::Bytes;
pub use discovery::exchange::{ExchangeError, ExchangeReport};
pub use discovery::find::{Find, Found};
pub use discovery::store::StoreError;
pub use events::NodeEvent;
pub use iroh::{EndpointAddr, EndpointId, RelayMode, RelayUrl, SecretKey, TransportAddr};
pub use kinfolk_core::address_book::{AddressLimits, BookError};
pub use kinfolk_core::catalog::{Entry, Removal, Snapshot};
pub use kinfolk_core::code::{Blame, Code};
pub use kinfolk_core::gate::{GateLimits, Rate};
pub use kinfolk_core::id::{Incarnation, LinkId, NetworkId, ProtocolName, ProtocolNameError};
pub use kinfolk_core::intent::{Failure, Outcome, Priority};
pub use kinfolk_core::limits::{Limits, LimitsError, StreamLimits};
pub use kinfolk_core::peer_link::{DialFailure, Direction, DownReason, LinkEnd, PeerState, Why};
pub use kinfolk_core::peer_table::PeerSummary;
pub use kinfolk_core::record::{Offer, Record, Topic};
pub use kinfolk_core::secret_topic::SecretTopic;
pub use kinfolk_core::stream::{
    AppendError, FanoutLimitError, FanoutLimits, KeyError, NameError, Schema, SourceState,
    StreamName, Termination, WhenFull,
};
pub use kinfolk_core::ticket::{Ticket, TicketError};
pub use kinfolk_core::wire::subscription::{Channel, Refusal, StreamEnd};
pub use metrics::{
    AddressMetrics, DiscoveryMetrics, Metrics, PeerMetrics, ProtocolMetrics, SessionMetrics,
    StreamMetrics,
};
pub use monitor::PeerStatus;
pub use node::actor::{MESSAGE_BYTES_MAX, NodeMessage, OpenReply};
pub use node::builder::NodeBuilder;
pub use node::handle::Node;
pub use node::hold::Hold;
pub use node::identity::IdentityError;
pub use node::terminal::Terminal;
pub use protocol::open::{Options, Peer};
pub use protocol::responses::Responses;
pub use protocol::service::{Incoming, Service};
pub use protocol::stream::{RecvStream, SendStream};
pub use streams::consumer::builder::{ConsumerBuilder, ConsumerError};
pub use streams::consumer::forward::{Delivery, Forward};
pub use streams::consumer::handle::{Consumer, Received, SourceStatus};
pub use streams::consumer::receiver::ReceiverEnd;
pub use streams::item::Item;
pub use streams::producer::builder::{ProducerBuilder, ProducerError};
pub use streams::producer::feed::FeedEnd;
pub use streams::producer::handle::{
    ConsumerStatus, Producer, ProducerSink, SendError, TrySendError,
};
pub use streams::producer::outlet::TicketVerdict;
