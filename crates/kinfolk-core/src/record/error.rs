//! Why bytes are no record, and why no record could be made.

use std::time::Duration;

use thiserror::Error;

use super::address::AddressError;
use super::time::TtlError;
use crate::id::NetworkId;
use crate::wire::frame::FrameError;

/// Why bytes that came are no record of this network. Whoever signed them is to blame, or whoever passed them on: with
/// a bad signature nobody can say who made them.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum RecordError {
    /// There are more than a record may have.
    #[error("expected a record of at most {} bytes, came {len}", super::RECORD_MAX)]
    TooLarge {
        /// How many came.
        len: usize,
    },
    /// The record is of another major version, which this node cannot read.
    #[error("expected a record of version {version}, came one of version {0}", version = super::RECORD_VERSION)]
    UnknownVersion(u8),
    /// The record is of another network.
    #[error("expected a record of this network, came one of {0}")]
    WrongNetwork(NetworkId),
    /// The id is no public key.
    #[error("expected the id to be a public key, it is none")]
    InvalidKey,
    /// The signature is not that of the key.
    #[error("expected a signature by the record's own key, came another one")]
    BadSignature,
    /// The signed bytes cannot be read.
    #[error("the record is malformed")]
    Malformed(#[source] FrameError),
    /// The signed bytes can be read, yet the same content has other bytes, and only those are allowed.
    #[error("expected the canonical encoding of the record, came another one")]
    NonCanonical,
    /// The record says that it was signed in the future, by more than [`CLOCK_SKEW_MAX`](super::CLOCK_SKEW_MAX).
    #[error("expected a record that is signed by now, came one from {ahead:?} ahead")]
    FromFuture {
        /// How far ahead.
        ahead: Duration,
    },
    /// The record claims to hold for no time at all, or for longer than [`Ttl::MAX`](super::Ttl::MAX).
    #[error(transparent)]
    InvalidTtl(#[from] TtlError),
}

impl From<FrameError> for RecordError {
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::NonCanonical => Self::NonCanonical,
            error => Self::Malformed(error),
        }
    }
}

impl RecordError {
    /// The reason alone, without what came.
    pub const fn reason(&self) -> Rejection {
        match self {
            Self::TooLarge { .. } => Rejection::TooLarge,
            Self::UnknownVersion(_) => Rejection::UnknownVersion,
            Self::WrongNetwork(_) => Rejection::WrongNetwork,
            Self::InvalidKey => Rejection::InvalidKey,
            Self::BadSignature => Rejection::BadSignature,
            Self::Malformed(_) => Rejection::Malformed,
            Self::NonCanonical => Rejection::NonCanonical,
            Self::FromFuture { .. } => Rejection::FromFuture,
            Self::InvalidTtl(_) => Rejection::InvalidTtl,
        }
    }
}

/// The reasons of [`RecordError`], for metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Rejection {
    /// [`RecordError::TooLarge`]
    TooLarge,
    /// [`RecordError::UnknownVersion`]
    UnknownVersion,
    /// [`RecordError::WrongNetwork`]
    WrongNetwork,
    /// [`RecordError::InvalidKey`]
    InvalidKey,
    /// [`RecordError::BadSignature`]
    BadSignature,
    /// [`RecordError::Malformed`]
    Malformed,
    /// [`RecordError::NonCanonical`]
    NonCanonical,
    /// [`RecordError::FromFuture`]
    FromFuture,
    /// [`RecordError::InvalidTtl`]
    InvalidTtl,
}

impl Rejection {
    /// Every reason, for metrics that list them all.
    pub const ALL: [Self; 9] = [
        Self::TooLarge,
        Self::UnknownVersion,
        Self::WrongNetwork,
        Self::InvalidKey,
        Self::BadSignature,
        Self::Malformed,
        Self::NonCanonical,
        Self::FromFuture,
        Self::InvalidTtl,
    ];

    /// The reason's name in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::TooLarge => "too_large",
            Self::UnknownVersion => "unknown_version",
            Self::WrongNetwork => "wrong_network",
            Self::InvalidKey => "invalid_key",
            Self::BadSignature => "bad_signature",
            Self::Malformed => "malformed",
            Self::NonCanonical => "non_canonical",
            Self::FromFuture => "from_future",
            Self::InvalidTtl => "invalid_ttl",
        }
    }
}

/// Why a record cannot be made. The app is to blame, or what it configured.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum DraftError {
    /// The record would have more bytes than can be announced.
    #[error("expected a record of at most {} bytes, it would have {len}", super::RECORD_MAX)]
    TooLarge {
        /// How many it would have.
        len: usize,
    },
    /// It names more of something than a record may.
    #[error("expected at most {max} {what} in a record")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many it may name.
        max: usize,
    },
    /// No record can carry the address.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// A field could not be written. No value of this version is known to do that.
    #[error("the record cannot be encoded")]
    Unencodable(#[source] FrameError),
}
