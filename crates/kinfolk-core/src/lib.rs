//! The decisions of kinfolk, without I/O: who is connected to whom, which of two links stays, when to dial
//! again, what a frame may look like, and what an intent ends as.
//!
//! Everything here is a value or a state machine. A machine takes an input and the time, and writes what has to
//! happen into an outbox; it never opens a socket, reads a clock or draws a random number of its own, so that every
//! interleaving can be replayed. The `kinfolk` crate turns the outputs into actors, tasks and QUIC.
//!
//! Read [`peer_link`] first: it holds the lifecycle of one peer, and its module page lists every state and input.

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

pub mod address_book;
pub mod anchors;
pub mod backoff;
pub mod bucket;
pub mod catalog;
pub mod code;
pub mod errands;
pub mod exchange;
pub mod gate;
pub mod hints;
pub mod id;
pub mod intake;
pub mod intensity;
pub mod intent;
pub mod limits;
pub mod liveness;
pub mod news;
pub mod peer_link;
pub mod peer_table;
pub mod provider;
pub mod quota;
pub mod reconcile;
pub mod record;
pub mod secret_topic;
pub mod shares;
pub mod stream;
pub mod ticket;
pub mod walk;
pub mod wire;

pub use iroh_base::{EndpointAddr, EndpointId, TransportAddr};
