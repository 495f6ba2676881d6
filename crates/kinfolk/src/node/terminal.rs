//! Why a node has ended: published once, to whoever waits.

use std::fmt;
use std::sync::Arc;

/// Why a node has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Terminal {
    /// It was shut down, by the app or by its supervisor.
    Shutdown,
    /// It failed, with this cause: an error, or the text of a panic.
    Failed(Arc<str>),
    /// It was killed, or its runtime ended.
    Killed,
}

impl fmt::Display for Terminal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shutdown => f.write_str("it was shut down"),
            Self::Failed(cause) => write!(f, "it failed: {cause}"),
            Self::Killed => f.write_str("it was killed"),
        }
    }
}
