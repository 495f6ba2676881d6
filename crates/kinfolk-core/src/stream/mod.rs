//! Typed streams without I/O: what a producer and its consumers decide, and what stands between an item and the wire.
//!
//! [`schema`] says what a stream and its items are called; [`entries`] reads what a producer sends once it has accepted.
//! The frames are in [`wire::subscription`](crate::wire::subscription). Nothing here knows the type of an item: an item
//! is its bytes.

pub mod entries;
pub mod schema;
pub mod subscribers;
pub mod subscriptions;

pub use entries::{Beginning, Entries, EntryError, Items, Read};
pub use schema::{NameError, Schema, StreamName};
