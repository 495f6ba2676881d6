//! Negotiated streams: opening them from the caller's own future, serving them with the app's handlers.
//!
//! Payload flows between the app and QUIC directly; no actor is in between.

pub(crate) mod any;
pub(crate) mod backlog;
pub(crate) mod handle;
pub(crate) mod open;
pub(crate) mod places;
pub(crate) mod respond;
pub(crate) mod responses;
pub(crate) mod serve;
pub(crate) mod service;
pub(crate) mod stream;
