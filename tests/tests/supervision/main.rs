//! The supervision tree over real QUIC: what fails is contained, reported once and recovered, or ends the node with its cause.

mod discovery;
mod handlers;
mod parts;
mod scene;
mod sessions;
mod streams;
mod whole;
