//! The receiving side of typed streams.

pub(crate) mod actor;
pub(crate) mod builder;
pub(crate) mod forward;
pub(crate) mod handle;
pub(crate) mod inlet;
pub(crate) mod receiver;
pub(crate) mod tap;
