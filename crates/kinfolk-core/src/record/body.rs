//! The signed part of a record as fields, and its bytes.
//!
//! A body is in memory only while a record is made or checked: afterwards its bytes are kept, and where in them each
//! list begins.

use std::collections::BTreeSet;

use iroh_base::{EndpointId, TransportAddr};

use super::address::{self, ADDRESSES_MAX, RELAYS_MAX};
use super::error::RecordError;
use super::seq::Seq;
use super::tag::{Offer, Topic};
use super::time::{Ttl, UnixMillis};
use crate::id::NetworkId;
use crate::wire::extension::Extensions;
use crate::wire::frame::{FrameError, Reader, Writer, check_canonical};

/// Topics in one record: what one node commonly takes part in, at 16 bytes each (a guess).
pub const TOPICS_MAX: usize = 16;

/// Offered streams in one record, at 16 bytes each (a guess).
pub const OFFERS_MAX: usize = 12;

const PRESENT: u8 = 0;
const DEPARTED: u8 = 1;

/// What a record says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Body {
    pub(super) id: EndpointId,
    pub(super) network: NetworkId,
    /// `None` says that the node has departed.
    pub(super) presence: Option<Presence>,
    pub(super) seq: Seq,
    pub(super) issued_at: UnixMillis,
    pub(super) ttl: Ttl,
    pub(super) extensions: Extensions,
}

/// What a node that is there says of itself. Sets, so that the same content has one order of bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Presence {
    pub(super) addresses: BTreeSet<TransportAddr>,
    pub(super) topics: BTreeSet<Topic>,
    pub(super) offers: BTreeSet<Offer>,
}

/// Where the lists of a body begin, as bytes that are left until its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Marks {
    pub(super) addresses: u16,
    pub(super) topics: u16,
    pub(super) offers: u16,
    pub(super) extensions: u16,
}

impl Body {
    pub(super) fn encode(&self) -> Result<Vec<u8>, FrameError> {
        let mut writer = Writer::default();
        writer.field("id", self.id.as_bytes())?;
        writer.field("network", &self.network)?;
        writer.field("kind", if self.presence.is_some() { &PRESENT } else { &DEPARTED })?;
        writer.field("sequence number", &self.seq.get())?;
        writer.field("time of issue", &self.issued_at.get())?;
        writer.field("time to live", &self.ttl.as_secs())?;
        if let Some(Presence { addresses, topics, offers }) = &self.presence {
            writer.field("addresses", &addresses.len())?;
            for addr in addresses {
                address::write(&mut writer, addr)?;
            }
            writer.field("topics", topics)?;
            writer.field("offers", offers)?;
        }
        writer.extensions(&self.extensions);
        Ok(writer.finish())
    }

    /// Reads a body whose id is known already, and refuses one that would be written with other bytes.
    pub(super) fn decode(bytes: &[u8], id: EndpointId) -> Result<(Self, Marks), RecordError> {
        let mut reader = Reader::new(bytes);
        let _: [u8; 32] = reader.field("id")?;
        let network = reader.field("network")?;
        let kind: u8 = reader.field("kind")?;
        let seq = Seq::new(reader.field("sequence number")?);
        let issued_at = UnixMillis::new(reader.field("time of issue")?);
        let secs = reader.field("time to live")?;
        let mut marks = Marks::here(&reader);
        let presence = match kind {
            PRESENT => Some(Presence::read(&mut reader, &mut marks)?),
            DEPARTED => None,
            kind => {
                let expected = "0 (present) or 1 (departed)";
                return Err(FrameError::InvalidField {
                    field: "kind",
                    expected,
                    came: kind.into(),
                })?;
            }
        };
        let extensions = reader.extensions()?;
        let ttl = Ttl::from_secs(secs)?;
        let body = Self { id, network, presence, seq, issued_at, ttl, extensions };
        check_canonical(bytes, &body.encode()?)?;
        Ok((body, marks))
    }
}

impl Marks {
    fn here(reader: &Reader<'_>) -> Self {
        let here = left(reader);
        Self { addresses: here, topics: here, offers: here, extensions: here }
    }
}

/// A record has far fewer bytes than 2^16.
fn left(reader: &Reader<'_>) -> u16 {
    u16::try_from(reader.left()).unwrap_or(u16::MAX)
}

impl Presence {
    fn read(reader: &mut Reader<'_>, marks: &mut Marks) -> Result<Self, FrameError> {
        let addresses = read_addresses(reader)?;
        marks.topics = left(reader);
        let topics = read_tags(reader, "topics", TOPICS_MAX, "at most 16", Topic::from_bytes)?;
        marks.offers = left(reader);
        let offers = read_tags(reader, "offers", OFFERS_MAX, "at most 12", Offer::from_bytes)?;
        marks.extensions = left(reader);
        Ok(Self { addresses, topics, offers })
    }
}

fn read_addresses(reader: &mut Reader<'_>) -> Result<BTreeSet<TransportAddr>, FrameError> {
    let count = reader.count("addresses", ADDRESSES_MAX, "at most 8")?;
    let mut addresses = BTreeSet::new();
    for _ in 0..count {
        addresses.insert(address::read(reader)?);
    }
    let relays = addresses.iter().filter(|addr| addr.is_relay()).count();
    if relays > RELAYS_MAX {
        let came = u64::try_from(relays).unwrap_or(u64::MAX);
        return Err(FrameError::InvalidField { field: "relays", expected: "at most 2", came });
    }
    Ok(addresses)
}

fn read_tags<T: Ord>(
    reader: &mut Reader<'_>,
    field: &'static str,
    max: usize,
    expected: &'static str,
    tag: impl Fn([u8; 16]) -> T,
) -> Result<BTreeSet<T>, FrameError> {
    let count = reader.count(field, max, expected)?;
    (0..count).map(|_| reader.field(field).map(&tag)).collect()
}
