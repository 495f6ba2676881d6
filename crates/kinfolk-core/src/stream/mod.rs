//! Typed streams without I/O: what a producer and its consumers decide, and what stands between an item and the wire.
//!
//! [`schema`] says what a stream and its items are called; [`entries`] reads what a producer sends once it has accepted.
//! [`subscribers`] decides who that is, and [`subscriptions`] whom a consumer asks, and when again.
//! The frames are in [`wire::subscription`](crate::wire::subscription). Nothing here knows the type of an item: an item
//! is its bytes.

pub mod entries;
pub mod schema;
pub mod subscribers;
pub mod subscriptions;

pub use entries::{Beginning, Entries, EntryError, Items, Read};
pub use schema::{NameError, Schema, StreamName};
