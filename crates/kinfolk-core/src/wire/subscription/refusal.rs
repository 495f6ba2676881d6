//! Why a producer lets a consumer not subscribe, and whether it is worth asking again.

use std::fmt;

use super::{invalid, read_schema, write_schema};
use crate::stream::Schema;
use crate::wire::frame::{FrameError, Reader, Writer};

/// Why a producer lets a consumer not subscribe.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// It does not produce this stream.
    NoSuchStream,
    /// It produces it with other items.
    Schema {
        /// What its items are.
        offered: Schema,
    },
    /// What the consumer's record says does not let it in.
    NotAllowed,
    /// The ticket is missing or is not valid.
    BadTicket,
    /// It has as many subscriptions as it takes, from all or from this consumer.
    NoCapacity,
    /// It goes by records and has none of the consumer: once the two have exchanged, the answer may be another one.
    UnknownPeer,
    /// The stream is over.
    Ended,
    /// It could not check the ticket in time, which is its own fault: another time it may.
    Unchecked,
}

impl Refusal {
    /// Whether asking again gives the same answer, unless something changes at either end.
    pub const fn is_final(&self) -> bool {
        match self {
            Self::NoSuchStream
            | Self::Schema { .. }
            | Self::NotAllowed
            | Self::BadTicket
            | Self::Ended => true,
            Self::NoCapacity | Self::UnknownPeer | Self::Unchecked => false,
        }
    }

    /// What metrics and logs call it.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::NoSuchStream => "no_such_stream",
            Self::Schema { .. } => "schema",
            Self::NotAllowed => "not_allowed",
            Self::BadTicket => "bad_ticket",
            Self::NoCapacity => "no_capacity",
            Self::UnknownPeer => "unknown_peer",
            Self::Ended => "ended",
            Self::Unchecked => "unchecked",
        }
    }

    const fn to_byte(&self) -> u8 {
        match self {
            Self::NoSuchStream => 0,
            Self::Schema { .. } => 1,
            Self::NotAllowed => 2,
            Self::BadTicket => 3,
            Self::NoCapacity => 4,
            Self::UnknownPeer => 5,
            Self::Ended => 6,
            Self::Unchecked => 7,
        }
    }

    pub(super) fn write(&self, writer: &mut Writer) -> Result<(), FrameError> {
        writer.field("refusal", &self.to_byte())?;
        match self {
            Self::Schema { offered } => write_schema(offered, writer),
            _ => Ok(()),
        }
    }

    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, FrameError> {
        match reader.field("refusal")? {
            0 => Ok(Self::NoSuchStream),
            1 => Ok(Self::Schema { offered: read_schema(reader)? }),
            2 => Ok(Self::NotAllowed),
            3 => Ok(Self::BadTicket),
            4 => Ok(Self::NoCapacity),
            5 => Ok(Self::UnknownPeer),
            6 => Ok(Self::Ended),
            7 => Ok(Self::Unchecked),
            other => Err(invalid("refusal", "0 to 7", other)),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSuchStream => f.write_str("it does not produce this stream"),
            Self::Schema { offered } => write!(f, "its items are {offered}"),
            Self::NotAllowed => f.write_str("not allowed by the record"),
            Self::BadTicket => f.write_str("no valid ticket"),
            Self::NoCapacity => f.write_str("too many subscriptions"),
            Self::UnknownPeer => f.write_str("it does not know our record"),
            Self::Ended => f.write_str("the stream is over"),
            Self::Unchecked => f.write_str("it could not check the ticket in time"),
        }
    }
}
