//! What goes into an exchange and what comes out of it.

use std::time::Duration;

use thiserror::Error;

use crate::code::Code;
use crate::reconcile::Salt;
use crate::wire::FrameError;
use crate::wire::exchange::Token;

/// Which side of an exchange this node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It began the exchange, and speaks first.
    Initiator {
        /// Freshly drawn random bytes, from the seeded generator of whoever drives the machine or from the operating system.
        salt: Salt,
    },
    /// The peer began it.
    Responder,
}

/// What an exchange is told.
#[derive(Debug, Clone, Copy)]
pub enum Input<'a> {
    /// The stream is open: the deadlines begin, and the initiator speaks. Once, before all else; again it changes nothing.
    Start,
    /// The peer sent this message: the body of its frame, whose length was checked against
    /// [`MESSAGE_MAX`](crate::wire::exchange::MESSAGE_MAX) before it was read. It comes without its prefix.
    Received(&'a [u8]),
    /// This node wants it to end.
    Stop,
    /// The peer ended or reset the stream, or the link is lost.
    Closed,
    /// The time of [`next_timeout`](super::Exchange::next_timeout) has come.
    Timeout,
}

/// What an exchange has to say.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Output {
    /// Write these bytes to the stream: a whole frame, its prefix included. At most one for each input.
    Send(Vec<u8>),
    /// The tokens of the peer, once, before any record: as many as [`TOKENS_MAX`](crate::wire::exchange::TOKENS_MAX), maybe none.
    Tokens(Vec<Token>),
    /// Bytes that the peer says are a record. *Nothing about them was verified*, but that they claim to be of a node about
    /// which we asked. The same may come twice.
    Learned {
        /// The bytes, at most [`RECORD_MAX`](crate::record::RECORD_MAX).
        bytes: Vec<u8>,
        /// How old it is, as the peer says.
        age: Duration,
    },
    /// The exchange is over. The last output; what comes in from then on changes nothing.
    Ended(Summary),
}

/// How an exchange went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Why it is over.
    pub end: End,
    /// What this node sent.
    pub sent: Traffic,
    /// What the peer sent.
    pub received: Traffic,
}

/// What one side sent in an exchange.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Messages.
    pub messages: u32,
    /// Bytes of messages, prefixes included.
    pub bytes: u64,
    /// Records.
    pub records: u32,
}

/// Why an exchange is over.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum End {
    /// Each side has told the other all that differed.
    Complete,
    /// Each side has told the other what a budget allowed. Another exchange goes on with the rest.
    Cut,
    /// This node wanted it.
    Stopped,
    /// The peer went away.
    Closed,
    /// The peer was silent for too long when it was its turn.
    Silent,
    /// The whole took too long.
    Late,
    /// Something was wrong.
    Failed(ExchangeError),
}

impl End {
    /// The reason's name in metrics.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Cut => "cut",
            Self::Stopped => "stopped",
            Self::Closed => "closed",
            Self::Silent => "silent",
            Self::Late => "late",
            Self::Failed(error) if error.blames_peer() => "violation",
            Self::Failed(_) => "internal",
        }
    }

    /// What to reset the stream with; `None` if it ended as it should, or by the peer.
    pub const fn code(&self) -> Option<Code> {
        match self {
            Self::Complete | Self::Cut | Self::Closed => None,
            Self::Stopped => Some(Code::Cancelled),
            Self::Silent | Self::Late => Some(Code::DeadlineExceeded),
            Self::Failed(error) => Some(error.code()),
        }
    }
}

/// What was wrong with an exchange. All but [`ExchangeError::Internal`] is the fault of the peer.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ExchangeError {
    /// The peer's bytes are no message.
    #[error(transparent)]
    Malformed(FrameError),
    /// The peer sent a message of a kind that was not its turn.
    #[error("expected another kind of message at this point")]
    OutOfTurn,
    /// The peer sent more bytes than it was told that it may.
    #[error("expected at most {max} bytes in all, came {came}")]
    OverBudget {
        /// How many it was allowed.
        max: u64,
        /// How many came.
        came: u64,
    },
    /// The peer asked in the last message that it may send.
    #[error("expected a last message that asks for nothing")]
    AskedTooLate,
    /// The peer wants what our last message did not list.
    #[error("expected a want below {listed}, came {want}")]
    UnknownWant {
        /// How many our last message listed.
        listed: usize,
        /// What it wants.
        want: u16,
    },
    /// The peer sent bytes as a record that are none, or one of a node about which nothing was asked.
    #[error("expected records that were asked for, came others")]
    Unasked,
    /// This node could not write its message.
    #[error("expected a message that can be sent")]
    Internal(#[source] FrameError),
}

impl ExchangeError {
    /// Whether it is the fault of the peer.
    pub const fn blames_peer(&self) -> bool {
        !matches!(self, Self::Internal(_))
    }

    /// What to reset the stream with.
    pub const fn code(&self) -> Code {
        match self {
            Self::Malformed(error) => error.code(),
            Self::OutOfTurn
            | Self::OverBudget { .. }
            | Self::AskedTooLate
            | Self::UnknownWant { .. }
            | Self::Unasked => Code::Violation,
            Self::Internal(_) => Code::Internal,
        }
    }
}
