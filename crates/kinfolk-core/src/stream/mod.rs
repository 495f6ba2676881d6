//! Typed streams: what they are called, what a producer keeps for those who consume it, and who is subscribed to whom.
//!
//! [`Fanout`] is the log of a producer, and [`Patience`] says who has held up its senders for too long; [`Subscribers`] decides on a producer's side who may
//! subscribe and for how long, [`Subscriptions`] on a consumer's side with whom to be subscribed and when to try again; [`Entries`] reads what a producer sends.

pub mod entries;
mod fanout;
mod latest;
pub mod patience;
mod schema;
pub mod subscribers;
pub mod subscriptions;

pub use entries::{Beginning, Entries, EntryError, Items, Read};
pub use fanout::{
    AppendError, Appended, DATAGRAM_ITEM_MAX, Fanout, FanoutLimitError, FanoutLimits, Piece,
    Progress, Replay, Take, WhenFull,
};
pub use latest::{KEY_MAX, KeyError};
pub use patience::Patience;
pub use schema::{NameError, Schema, StreamName};
pub use subscribers::{SubscriberId, SubscriberLimits, Subscribers};
pub use subscriptions::{Attempt, SourceState, SubscriptionLimits, Subscriptions, Termination};
