//! What can go wrong with a store, and what became of a file that was in its place.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use iroh::EndpointId;
use kinfolk_core::id::NetworkId;
use thiserror::Error;

/// Why a node's state directory cannot be used. The app or its machine is to blame.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Another node that runs uses the directory. Each node needs one of its own.
    #[error(
        "{directory}: another running node uses this state directory; each node needs one of its own"
    )]
    InUse {
        /// The directory.
        directory: PathBuf,
    },
    /// Nothing can be kept in the directory: its parent is missing, it may not be written, or the disk is full.
    #[error("{path}: the node's state cannot be kept here: {source}")]
    Unusable {
        /// The directory, or the file in it.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The runtime is shutting down.
    #[error("the runtime is shutting down")]
    Stopped,
}

/// Why something was not saved.
#[derive(Debug, Clone, Error)]
pub enum SaveError {
    /// The file could not be written. What was to be saved is kept for the next try.
    #[error("{path}: the node's state could not be written: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// The store is closed, or its runtime is shutting down.
    #[error("the store is closed")]
    Closed,
}

/// A file that was in the place of this node's store and had to make room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetAside {
    /// What was wrong with it.
    pub reason: AsideReason,
    /// Where it is now. `None` if it was deleted, as too many had been set aside before.
    pub kept: Option<PathBuf>,
}

/// Why a file is not this node's store.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum AsideReason {
    /// It is damaged, or no store at all.
    Unreadable(String),
    /// It is that of a node with another key.
    OtherNode(EndpointId),
    /// It is that of this node in another network.
    OtherNetwork(NetworkId),
    /// A later version of this library has written it.
    NewerSchema(u64),
}

impl fmt::Display for AsideReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable(what) => write!(f, "the file cannot be read ({what})"),
            Self::OtherNode(id) => write!(f, "the file is that of node {}", id.fmt_short()),
            Self::OtherNetwork(network) => write!(f, "the file is of network {network}"),
            Self::NewerSchema(schema) => write!(f, "the file has the newer schema {schema}"),
        }
    }
}

impl fmt::Display for SetAside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kept {
            Some(path) => write!(f, "{}; it is kept as {}", self.reason, path.display()),
            None => write!(f, "{}; it was deleted, as enough are kept already", self.reason),
        }
    }
}
