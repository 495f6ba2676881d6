//! Connections to other machines: who is connected is decided by the manager, carried by sessions.

pub(crate) mod control;
pub(crate) mod datagrams;
pub(crate) mod directory;
pub(crate) mod link;
pub(crate) mod manager;
pub(crate) mod session;
pub(crate) mod transport;
