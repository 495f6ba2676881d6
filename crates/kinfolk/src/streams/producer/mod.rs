//! The sending side of typed streams.

pub(crate) mod actor;
pub(crate) mod builder;
pub(crate) mod feed;
pub(crate) mod handle;
mod line;
pub(crate) mod outlet;
