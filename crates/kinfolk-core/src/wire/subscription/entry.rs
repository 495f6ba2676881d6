//! What a producer sends once it has accepted, one after the other: items, and control entries between them.
//!
//! An entry is a little-endian `u32`, its head, and a body. With the top bit of the head 0 the body is an item, and the
//! rest of the head its length; with the top bit 1 it is a [`ControlEntry`]. Items carry no number: each is one more than
//! the one before, and control entries say what was left out. They are read by
//! [`stream::entries`](crate::stream::entries).

use std::fmt;

use super::invalid;
use crate::wire::frame::{self, FrameError, Reader};

/// The bytes before an item or a control entry.
pub const HEAD_BYTES: usize = 4;

/// The longest item that a head can tell of. Readers take less.
pub const ITEM_MAX: usize = 0x7fff_ffff;

/// The longest body of a control entry. One of this version has at most 11 bytes.
pub const CONTROL_ENTRY_MAX: usize = 1024;

/// Tells control entries from items.
const CONTROL: u32 = 0x8000_0000;

/// What follows a head, and how many bytes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Head {
    /// An item.
    Item(usize),
    /// A control entry.
    Control(usize),
}

impl Head {
    /// What these bytes tell of. Every four bytes are a head; whether the length is allowed is for the reader to say.
    #[inline]
    pub const fn from_bytes(bytes: [u8; HEAD_BYTES]) -> Self {
        let head = u32::from_le_bytes(bytes);
        // A `usize` holds 31 bits wherever this runs.
        let len = (head & !CONTROL) as usize;
        if head & CONTROL == 0 { Self::Item(len) } else { Self::Control(len) }
    }
}

/// The head of an item of `len` bytes, of which there may be at most `max`. An item may be empty.
///
/// # Errors
///
/// [`FrameError::TooLarge`] if there are more, or more than [`ITEM_MAX`].
#[inline]
pub fn item_head(len: usize, max: usize) -> Result<[u8; HEAD_BYTES], FrameError> {
    match u32::try_from(len) {
        Ok(head) if len <= max && head & CONTROL == 0 => Ok(head.to_le_bytes()),
        _ => Err(FrameError::TooLarge { len, max: max.min(ITEM_MAX) }),
    }
}

/// What a producer says between items.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ControlEntry {
    /// The next items are lost: the producer dropped them, as the consumer was too slow or came too late.
    Gap {
        /// How many; not 0.
        missed: u64,
    },
    /// The next items do not come since newer ones took their place, which is no loss.
    Skip {
        /// How many; not 0.
        superseded: u64,
    },
    /// Nothing comes any more.
    End(StreamEnd),
}

impl ControlEntry {
    const GAP: u8 = 0;
    const SKIP: u8 = 1;
    const END: u8 = 2;

    /// The whole entry, head included. A gap or skip of nothing is nothing to be said: no bytes.
    pub fn encode(&self) -> Vec<u8> {
        let body = self.encode_body();
        if body.is_empty() {
            return body;
        }
        // At most 11 bytes.
        let head = CONTROL | u32::try_from(body.len()).unwrap_or(0);
        [&head.to_le_bytes(), body.as_slice()].concat()
    }

    /// The control entry with this body, which comes without its head.
    ///
    /// # Errors
    ///
    /// [`FrameError`] says what is wrong with the bytes.
    pub fn decode(body: &[u8]) -> Result<Self, FrameError> {
        frame::check_body(body, CONTROL_ENTRY_MAX)?;
        let mut reader = Reader::new(body);
        let entry = match reader.field("kind")? {
            Self::GAP => Self::Gap { missed: read_count(&mut reader, "missed items")? },
            Self::SKIP => Self::Skip { superseded: read_count(&mut reader, "superseded items")? },
            Self::END => Self::End(StreamEnd::from_byte(reader.field("end")?)?),
            kind => return Err(invalid("kind of control entry", "0, 1 or 2", kind)),
        };
        frame::check_canonical(body, &entry.encode_body())?;
        Ok(entry)
    }

    fn encode_body(&self) -> Vec<u8> {
        let counted = |kind, count: u64| {
            let mut body = Vec::new();
            if count > 0 {
                body.push(kind);
                put_varint(count, &mut body);
            }
            body
        };
        match self {
            Self::Gap { missed } => counted(Self::GAP, *missed),
            Self::Skip { superseded } => counted(Self::SKIP, *superseded),
            Self::End(end) => vec![Self::END, end.to_byte()],
        }
    }
}

fn read_count(reader: &mut Reader<'_>, field: &'static str) -> Result<u64, FrameError> {
    match reader.field(field)? {
        0 => Err(invalid(field, "at least 1", 0)),
        count => Ok(count),
    }
}

/// Appends a number as postcard does: seven bits a byte, the lowest first. Unlike postcard's it cannot fail.
pub(super) fn put_varint(number: u64, to: &mut Vec<u8>) {
    let mut rest = number;
    while rest >= 0x80 {
        let [low, ..] = rest.to_le_bytes();
        to.push(low | 0x80);
        rest >>= 7;
    }
    let [low, ..] = rest.to_le_bytes();
    to.push(low);
}

/// Why a producer ends a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StreamEnd {
    /// The stream is over: all items were sent.
    Finished,
    /// The consumer did not keep up, and the producer's policy is to let go of such a one.
    TooSlow,
    /// What the consumer's record says now does not let it in any more.
    NotAllowed,
    /// The time that the ticket was valid for is over.
    TicketExpired,
    /// The producer's node is shutting down.
    ShuttingDown,
    /// The consumer sent what it may not.
    Misbehaved,
}

impl StreamEnd {
    /// Whether subscribing again is of no use, unless something changes at either end.
    pub const fn is_final(self) -> bool {
        match self {
            Self::Finished | Self::NotAllowed | Self::TicketExpired => true,
            Self::TooSlow | Self::ShuttingDown | Self::Misbehaved => false,
        }
    }

    /// What metrics and logs call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Finished => "finished",
            Self::TooSlow => "too_slow",
            Self::NotAllowed => "not_allowed",
            Self::TicketExpired => "ticket_expired",
            Self::ShuttingDown => "shutting_down",
            Self::Misbehaved => "misbehaved",
        }
    }

    const fn to_byte(self) -> u8 {
        match self {
            Self::Finished => 0,
            Self::TooSlow => 1,
            Self::NotAllowed => 2,
            Self::TicketExpired => 3,
            Self::ShuttingDown => 4,
            Self::Misbehaved => 5,
        }
    }

    fn from_byte(byte: u8) -> Result<Self, FrameError> {
        match byte {
            0 => Ok(Self::Finished),
            1 => Ok(Self::TooSlow),
            2 => Ok(Self::NotAllowed),
            3 => Ok(Self::TicketExpired),
            4 => Ok(Self::ShuttingDown),
            5 => Ok(Self::Misbehaved),
            other => Err(invalid("end", "0 to 5", other)),
        }
    }
}

impl fmt::Display for StreamEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Finished => "the stream is over",
            Self::TooSlow => "the consumer was too slow",
            Self::NotAllowed => "no longer allowed by the record",
            Self::TicketExpired => "the ticket expired",
            Self::ShuttingDown => "the producer is shutting down",
            Self::Misbehaved => "the consumer broke the protocol",
        })
    }
}
