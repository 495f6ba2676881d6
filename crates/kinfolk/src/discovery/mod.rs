//! Who is in the network: the catalog of the running node, the node's own record, and the actors that keep both true.
//!
//! The decisions that need no runtime are in `kinfolk-core`; here are the actors, and what stands on crates that bring one.

pub(crate) mod announce;
pub(crate) mod announcer;
#[cfg(test)]
mod child;
pub(crate) mod conversation;
pub(crate) mod exchange;
pub(crate) mod find;
pub(crate) mod keep;
pub(crate) mod manager;
pub(crate) mod mdns;
pub(crate) mod own;
pub(crate) mod pending;
pub(crate) mod records;
pub(crate) mod store;
pub(crate) mod walker;
