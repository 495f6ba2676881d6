//! The node: how it is built, its root actor, and the handle that apps hold.

pub(crate) mod actor;
pub(crate) mod address;
pub(crate) mod bans;
pub(crate) mod builder;
pub(crate) mod handle;
pub(crate) mod hold;
pub(crate) mod identity;
pub(crate) mod terminal;
pub(crate) mod thread;
