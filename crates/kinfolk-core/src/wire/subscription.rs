//! What a consumer and a producer of a stream say on the protocol `kinfolk/stream/1`, and in datagrams beside it.
//!
//! The consumer opens eagerly and begins with [`Subscribe`]; the producer answers with [`Answered`]. If it accepts,
//! [`entry`]s follow until one says that the stream ends, while the consumer may send further [`ConsumerFrame`]s. The end
//! of the consumer's half ends the subscription. Who may subscribe, and for how long, is decided by the machines of
//! [`stream`](crate::stream); this module holds what the bytes may look like, and how many there may be.
//!
//! Frames are framed as all are: a kind byte and the fields in postcard, and extensions where a frame may grow. Items
//! are not frames: they have a head of four bytes and are never decoded here.

use super::extension::Extensions;
use super::frame::{self, FrameError, Reader, Writer};
use crate::id::ProtocolName;
use crate::stream::{Schema, StreamName};

pub mod datagram;
pub mod entry;
mod refusal;
#[cfg(test)]
mod tests;

pub use datagram::{DATAGRAM_PREFIX_MAX, decode_datagram, encode_datagram};
pub use entry::{
    CONTROL_ENTRY_MAX, ControlEntry, HEAD_BYTES, Head, ITEM_MAX, StreamEnd, item_head,
};
pub use refusal::Refusal;

/// The protocol of subscriptions.
pub const PROTOCOL: ProtocolName = ProtocolName::from_static("kinfolk/stream/1");

/// The longest body of what a consumer sends: a ticket of [`TICKET_MAX`], two names, and as much again for extensions.
pub const SUBSCRIBE_MAX: usize = 8 * 1024;

/// The longest body of an answer. One of this version has about 90 bytes; the rest is room for extensions.
pub const ANSWERED_MAX: usize = 1024;

/// The longest ticket. Signed tokens with a few claims have 200 to 1 000 bytes.
pub const TICKET_MAX: usize = 4096;

const KIND: &str = "kind";
const EPOCH: &str = "epoch";
const NEXT: &str = "next item";
const TICKET: &str = "ticket";

/// In which way items travel. The producer chooses, one way for all consumers of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Channel {
    /// As entries, in order and each once.
    Reliable,
    /// As entries of which a newer one may take the place of those before it.
    Latest,
    /// As datagrams, which may be lost, doubled and out of order.
    Datagram,
}

/// Where a consumer was when it lost a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Resume {
    /// The epoch of the producer then.
    pub epoch: u64,
    /// The number of the first item that it has not received.
    pub next: u64,
}

/// The consumer's first frame.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Subscribe {
    /// Names the subscription in datagrams. The consumer chooses it, unlike all others on its link.
    pub id: u64,
    /// The stream.
    pub name: StreamName,
    /// What the consumer takes its items for.
    pub schema: Schema,
    /// Where it was, if it was subscribed before.
    pub resume: Option<Resume>,
    /// What lets it in, opaque here; at most [`TICKET_MAX`] bytes.
    pub ticket: Option<Vec<u8>>,
    /// What later versions add.
    pub extensions: Extensions,
}

/// What a consumer sends.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ConsumerFrame {
    /// First, and once.
    Subscribe(Subscribe),
    /// Another ticket in place of the one before, which holds until this one is accepted.
    Renew {
        /// The ticket, at most [`TICKET_MAX`] bytes.
        ticket: Vec<u8>,
    },
    /// The consumer's app took all items below this number.
    Taken {
        /// The number of the item.
        through: u64,
    },
}

/// The producer's first frame: the answer to [`Subscribe`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Answered {
    /// Entries follow.
    Accepted(Accepted),
    /// Nothing follows.
    Refused(Refusal),
}

/// A subscription begins.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Accepted {
    /// In which way items come.
    pub channel: Channel,
    /// Drawn at random when the producer started. Numbers of different epochs have nothing in common.
    pub epoch: u64,
    /// The number of the first item to come.
    pub next: u64,
    /// What later versions add.
    pub extensions: Extensions,
}

impl Channel {
    const fn to_byte(self) -> u8 {
        match self {
            Self::Reliable => 0,
            Self::Latest => 1,
            Self::Datagram => 2,
        }
    }

    fn from_byte(byte: u8) -> Result<Self, FrameError> {
        match byte {
            0 => Ok(Self::Reliable),
            1 => Ok(Self::Latest),
            2 => Ok(Self::Datagram),
            other => Err(invalid("channel", "0, 1 or 2", other)),
        }
    }
}

impl Subscribe {
    fn write(&self, writer: &mut Writer) -> Result<(), FrameError> {
        writer.field("id", &self.id)?;
        writer.field("stream", self.name.as_str())?;
        write_schema(&self.schema, writer)?;
        writer.field("resume", &self.resume.is_some())?;
        if let Some(resume) = &self.resume {
            writer.field(EPOCH, &resume.epoch)?;
            writer.field(NEXT, &resume.next)?;
        }
        writer.field(TICKET, &self.ticket.is_some())?;
        if let Some(ticket) = &self.ticket {
            write_ticket(ticket, writer)?;
        }
        writer.extensions(&self.extensions);
        Ok(())
    }

    fn read(mut reader: Reader<'_>) -> Result<Self, FrameError> {
        let id = reader.field("id")?;
        let name = StreamName::new(reader.field::<&str>("stream")?)
            .map_err(|source| FrameError::InvalidName { field: "stream", source })?;
        let schema = read_schema(&mut reader)?;
        let resume = match reader.field("resume")? {
            true => Some(Resume { epoch: reader.field(EPOCH)?, next: reader.field(NEXT)? }),
            false => None,
        };
        let ticket = match reader.field(TICKET)? {
            true => Some(read_ticket(&mut reader)?),
            false => None,
        };
        let extensions = reader.extensions()?;
        Ok(Self { id, name, schema, resume, ticket, extensions })
    }
}

impl ConsumerFrame {
    const SUBSCRIBE: u8 = 0;
    const RENEW: u8 = 1;
    const TAKEN: u8 = 2;

    /// The whole frame, prefix included.
    ///
    /// # Errors
    ///
    /// [`FrameError`] names what is beyond its bounds.
    pub fn encode(&self) -> Result<Vec<u8>, FrameError> {
        frame::encode_frame(&self.encode_body()?, SUBSCRIBE_MAX)
    }

    /// The frame with this body, which comes without its prefix. Whether it is its turn is not checked here.
    ///
    /// # Errors
    ///
    /// [`FrameError`] says what is wrong with the bytes.
    pub fn decode(body: &[u8]) -> Result<Self, FrameError> {
        frame::check_body(body, SUBSCRIBE_MAX)?;
        let mut reader = Reader::new(body);
        let frame = match reader.field(KIND)? {
            Self::SUBSCRIBE => Self::Subscribe(Subscribe::read(reader)?),
            Self::RENEW => Self::Renew { ticket: read_ticket(&mut reader)? },
            Self::TAKEN => Self::Taken { through: reader.field("taken")? },
            kind => return Err(invalid("kind of consumer frame", "0, 1 or 2", kind)),
        };
        frame::check_canonical(body, &frame.encode_body()?)?;
        Ok(frame)
    }

    fn encode_body(&self) -> Result<Vec<u8>, FrameError> {
        let mut writer = Writer::default();
        match self {
            Self::Subscribe(subscribe) => {
                writer.field(KIND, &Self::SUBSCRIBE)?;
                subscribe.write(&mut writer)?;
            }
            Self::Renew { ticket } => {
                writer.field(KIND, &Self::RENEW)?;
                write_ticket(ticket, &mut writer)?;
            }
            Self::Taken { through } => {
                writer.field(KIND, &Self::TAKEN)?;
                writer.field("taken", through)?;
            }
        }
        Ok(writer.finish())
    }
}

impl Answered {
    const ACCEPTED: u8 = 0;
    const REFUSED: u8 = 1;

    /// The whole frame, prefix included.
    ///
    /// # Errors
    ///
    /// [`FrameError`] names what is beyond its bounds.
    pub fn encode(&self) -> Result<Vec<u8>, FrameError> {
        frame::encode_frame(&self.encode_body()?, ANSWERED_MAX)
    }

    /// The answer with this body, which comes without its prefix.
    ///
    /// # Errors
    ///
    /// [`FrameError`] says what is wrong with the bytes.
    pub fn decode(body: &[u8]) -> Result<Self, FrameError> {
        frame::check_body(body, ANSWERED_MAX)?;
        let mut reader = Reader::new(body);
        let answered = match reader.field(KIND)? {
            Self::ACCEPTED => Self::Accepted(Accepted {
                channel: Channel::from_byte(reader.field("channel")?)?,
                epoch: reader.field(EPOCH)?,
                next: reader.field(NEXT)?,
                extensions: reader.extensions()?,
            }),
            Self::REFUSED => Self::Refused(Refusal::read(&mut reader)?),
            kind => return Err(invalid("kind of answer", "0 or 1", kind)),
        };
        frame::check_canonical(body, &answered.encode_body()?)?;
        Ok(answered)
    }

    fn encode_body(&self) -> Result<Vec<u8>, FrameError> {
        let mut writer = Writer::default();
        match self {
            Self::Accepted(accepted) => {
                writer.field(KIND, &Self::ACCEPTED)?;
                writer.field("channel", &accepted.channel.to_byte())?;
                writer.field(EPOCH, &accepted.epoch)?;
                writer.field(NEXT, &accepted.next)?;
                writer.extensions(&accepted.extensions);
            }
            Self::Refused(refusal) => {
                writer.field(KIND, &Self::REFUSED)?;
                refusal.write(&mut writer)?;
            }
        }
        Ok(writer.finish())
    }
}

fn write_schema(schema: &Schema, writer: &mut Writer) -> Result<(), FrameError> {
    writer.field("schema", schema.name())?;
    writer.field("schema version", &schema.version())
}

fn read_schema(reader: &mut Reader<'_>) -> Result<Schema, FrameError> {
    let name: &str = reader.field("schema")?;
    let version = reader.field("schema version")?;
    Schema::try_new(name, version)
        .map_err(|source| FrameError::InvalidName { field: "schema", source })
}

fn write_ticket(ticket: &[u8], writer: &mut Writer) -> Result<(), FrameError> {
    check_ticket(ticket)?;
    writer.field(TICKET, ticket)
}

fn read_ticket(reader: &mut Reader<'_>) -> Result<Vec<u8>, FrameError> {
    let ticket: &[u8] = reader.field(TICKET)?;
    check_ticket(ticket)?;
    Ok(ticket.to_vec())
}

fn check_ticket(ticket: &[u8]) -> Result<(), FrameError> {
    let len = ticket.len();
    if len > TICKET_MAX {
        let came = u64::try_from(len).unwrap_or(u64::MAX);
        return Err(FrameError::InvalidField {
            field: TICKET,
            expected: "at most 4096 bytes",
            came,
        });
    }
    Ok(())
}

fn invalid(field: &'static str, expected: &'static str, came: u8) -> FrameError {
    FrameError::InvalidField { field, expected, came: came.into() }
}
