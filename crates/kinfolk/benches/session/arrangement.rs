//! Which runtime the app and the network run on, and where the peer is.

use std::fmt;

use tokio::runtime::Runtime;

/// The flavour of the app's runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flavour {
    /// tokio's default: one worker per core.
    MultiThread,
    /// One thread.
    CurrentThread,
}

impl Flavour {
    /// A new runtime of this flavour.
    pub fn runtime(self) -> Runtime {
        let mut builder = match self {
            Self::MultiThread => tokio::runtime::Builder::new_multi_thread(),
            Self::CurrentThread => tokio::runtime::Builder::new_current_thread(),
        };
        builder.enable_all().build().unwrap()
    }

    /// Its name, which [`Flavour::parse`] reads.
    pub fn name(self) -> &'static str {
        match self {
            Self::MultiThread => "multi_thread",
            Self::CurrentThread => "current_thread",
        }
    }

    /// The flavour with this name.
    pub fn parse(name: &str) -> Self {
        if name == Self::MultiThread.name() { Self::MultiThread } else { Self::CurrentThread }
    }
}

/// One block of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrangement {
    /// The runtime that asks.
    pub app: Flavour,
    /// The network of each end, kinfolk's and raw alike, has a thread of its own with a single-threaded runtime.
    pub own_thread: bool,
    /// The peer is another process, in the same arrangement.
    pub two_processes: bool,
}

impl fmt::Display for Arrangement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let network = if self.own_thread { "own thread" } else { "app's runtime" };
        let peer = if self.two_processes { "two processes" } else { "one process" };
        write!(f, "app {}, network on {network}, {peer}", self.app.name())
    }
}
