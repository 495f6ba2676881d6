//! Typed streams: producers and consumers of items that find each other.
//!
//! A producer's items lie encoded in one [`outlet`](producer::outlet), from which one task per subscriber writes; a consumer reads from one task per source
//! into one [`inlet`](consumer::inlet). The actors decide who is subscribed to whom and carry no item.

pub(crate) mod consumer;
pub(crate) mod item;
pub(crate) mod manager;
pub(crate) mod producer;
pub(crate) mod registry;

use kinfolk_core::id::ProtocolName;

/// The library's own protocol by which a consumer subscribes.
pub(crate) const SUBSCRIBE: ProtocolName = ProtocolName::from_static("kinfolk/stream/1");
