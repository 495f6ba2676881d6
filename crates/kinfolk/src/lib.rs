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
mod context;
pub mod error;
mod events;
#[cfg(not(feature = "fault-injection"))]
mod fault;
#[cfg(feature = "fault-injection")]
pub mod fault;
mod local_only;
mod metrics;
mod monitor;
mod node;
mod peers;
mod protocol;
mod supervision;

pub use admission::{Admission, Admit, SessionBounds};
pub use bytes::Bytes;
pub use events::NodeEvent;
pub use iroh::{EndpointAddr, EndpointId, RelayMode, RelayUrl, SecretKey, TransportAddr};
pub use kinfolk_core::address_book::{AddressLimits, BookError};
pub use kinfolk_core::code::{Blame, Code};
pub use kinfolk_core::gate::{GateLimits, Rate};
pub use kinfolk_core::id::{Incarnation, LinkId, NetworkId, ProtocolName, ProtocolNameError};
pub use kinfolk_core::intent::{Failure, Outcome, Priority};
pub use kinfolk_core::limits::{Limits, LimitsError};
pub use kinfolk_core::peer_link::{DialFailure, Direction, DownReason, LinkEnd, PeerState, Why};
pub use kinfolk_core::peer_table::PeerSummary;
pub use kinfolk_core::ticket::{Ticket, TicketError};
pub use metrics::{Metrics, PeerMetrics, ProtocolMetrics, SessionMetrics};
pub use monitor::PeerStatus;
pub use node::actor::{MESSAGE_BYTES_MAX, NodeMessage, OpenReply};
pub use node::builder::NodeBuilder;
pub use node::handle::Node;
pub use node::hold::Hold;
pub use node::identity::IdentityError;
pub use node::terminal::Terminal;
pub use protocol::open::{Options, Peer};
pub use protocol::service::{Incoming, Service};
pub use protocol::stream::{RecvStream, SendStream};
