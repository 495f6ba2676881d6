//! Records: what a node says of itself, signed with its own key.
//!
//! This module decides, for whoever receives bytes from a stranger, whether they are a record of this network: who signed
//! them, whether they are well-formed, and whether they may be believed at this time. A [`Record`] that exists was
//! verified or made here; it holds the exact signed bytes, which are what is passed on. It never decides whether a record
//! is *kept* (the [`catalog`](crate::catalog) does), never reads a clock, and never draws a random number.
//!
//! # Bytes
//!
//! A record is at most [`RECORD_MAX`] bytes: the version, the signature, and the body in postcard. The body begins with
//! the id of the node, so that a record cannot speak of another node than the one that signed it: there is one field for
//! both.
//!
//! | bytes | what |
//! |---|---|
//! | 1 | version: [`RECORD_VERSION`] |
//! | 64 | ed25519 signature over `kinfolk record signature`, the version and the body |
//! | rest | body: id, network, kind, seq, issued at, ttl; of one that is present addresses, topics, offers; extensions |
//!
//! What is cheap is checked first: the size, the version, the network; then the key and the signature; and only what is
//! signed is parsed. Decoding is canonical: a record has exactly one encoding per signature, so that nobody but its owner can
//! make another one of the same content. The bounds on every list are chosen such that whatever they allow fits; only
//! extensions can make a record too large, and it is then refused when it is made.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use iroh_base::{EndpointAddr, EndpointId, Signature, TransportAddr};

use crate::id::NetworkId;
use crate::wire::extension::Extensions;
use crate::wire::frame::{FrameError, Reader};

mod address;
mod body;
mod draft;
mod error;
mod reach;
mod seq;
mod tag;
#[cfg(test)]
mod tests;
mod time;

pub use address::{ADDRESSES_MAX, AddressError, RELAY_URL_MAX, RELAYS_MAX};
use body::{Body, Marks};
pub use body::{OFFERS_MAX, TOPICS_MAX};
pub use draft::Draft;
pub use error::{DraftError, RecordError, Rejection};
pub use reach::Reach;
pub use seq::{Seq, SeqExhausted, SeqSource};
pub use tag::{Offer, Topic};
pub use time::{Ttl, TtlError, UnixMillis};

/// The most bytes of a record, its signature included. It fits into one QUIC packet, and four of them into one gossip
/// message of the usual size.
pub const RECORD_MAX: usize = 1024;

/// The version of records that this crate makes and reads. What minor versions add goes into extensions.
pub const RECORD_VERSION: u8 = 1;

/// How far ahead of our clock a record may have been signed: what clocks that are set by hand or by the phone network
/// differ by (as in hyperdht).
pub const CLOCK_SKEW_MAX: Duration = Duration::from_secs(60);

/// Comes before what is signed, so that a signature on a record is one on nothing else.
const SIGNATURE_CONTEXT: &[u8] = b"kinfolk record signature";

const SIGNATURE_BYTES: usize = 64;

/// A record whose signature was verified. Cloning it copies a pointer.
#[derive(Clone)]
pub struct Record(Arc<Verified>);

/// What is read of a record once, so that nobody who has it reads it again, with its bytes.
struct Verified {
    bytes: Box<[u8]>,
    id: EndpointId,
    seq: Seq,
    issued_at: UnixMillis,
    ttl: Ttl,
    kind: Kind,
    marks: Marks,
}

/// What a record says of its node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// It is there.
    Present,
    /// It has left: a tombstone.
    Departed,
}

impl Record {
    /// The record with these bytes, if they are one of `network` and its owner signed them. `clock` is the wall clock.
    ///
    /// It costs one check of a signature (some 50 µs) unless the size, the version or the network is wrong.
    ///
    /// # Errors
    ///
    /// [`RecordError`] says what is wrong with the bytes.
    pub fn verify(
        bytes: &[u8],
        network: NetworkId,
        clock: UnixMillis,
    ) -> Result<Self, RecordError> {
        let head = Head::of(bytes, network)?;
        let id = EndpointId::from_bytes(head.id).map_err(|_| RecordError::InvalidKey)?;
        let signature = Signature::from_bytes(head.signature);
        id.verify(&message(RECORD_VERSION, head.body), &signature)
            .map_err(|_| RecordError::BadSignature)?;
        let record = Self::from_body(bytes, head.body, id)?;
        let ahead = record.issued_at().since(clock);
        if ahead > CLOCK_SKEW_MAX {
            return Err(RecordError::FromFuture { ahead });
        }
        Ok(record)
    }

    /// Checks what costs nothing to check: the size, the version and the network.
    ///
    /// # Errors
    ///
    /// What [`verify`](Self::verify) would say of them first.
    pub fn precheck(bytes: &[u8], network: NetworkId) -> Result<(), RecordError> {
        Head::of(bytes, network).map(drop)
    }

    /// Whose record these bytes claim to be, without any check: for looking up whether they are known already, before a
    /// signature is checked.
    pub fn claimed_id(bytes: &[u8]) -> Option<&[u8; 32]> {
        Head::split(bytes).ok().map(|head| head.id)
    }

    fn from_body(bytes: &[u8], signed: &[u8], id: EndpointId) -> Result<Self, RecordError> {
        let (body, marks) = Body::decode(signed, id)?;
        let Body { seq, issued_at, ttl, presence, .. } = body;
        let kind = if presence.is_some() { Kind::Present } else { Kind::Departed };
        let bytes = Box::from(bytes);
        Ok(Self(Arc::new(Verified { bytes, id, seq, issued_at, ttl, kind, marks })))
    }

    /// Whose record it is: the key that signed it.
    pub fn id(&self) -> EndpointId {
        self.0.id
    }

    /// The bytes of that id.
    pub(crate) fn id_bytes(&self) -> &[u8; 32] {
        self.0.id.as_bytes()
    }

    /// Which of this node's records it is.
    pub fn seq(&self) -> Seq {
        self.0.seq
    }

    /// The signed bytes, to be stored and passed on as they are.
    pub fn bytes(&self) -> &[u8] {
        &self.0.bytes
    }

    /// Whether the node is there or has left.
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// Whether it says that the node has left.
    pub fn is_departure(&self) -> bool {
        matches!(self.0.kind, Kind::Departed)
    }

    /// When it was signed, by the signer's clock.
    pub fn issued_at(&self) -> UnixMillis {
        self.0.issued_at
    }

    /// For how long it holds from then on.
    pub fn ttl(&self) -> Ttl {
        self.0.ttl
    }

    /// Where the node says that it can be reached, in the order of their bytes. Which of these may be dialled depends on
    /// where the record came from, see [`Record::addresses_from`].
    pub fn addresses(&self) -> impl Iterator<Item = TransportAddr> + '_ {
        self.list(self.0.marks.addresses, address::read)
    }

    /// The addresses that may be dialled if the record came from somebody at this distance. The owner of a record is no
    /// exception: whoever can reach a node from far away could otherwise point it at its own network.
    pub fn addresses_from(&self, source: Reach) -> impl Iterator<Item = TransportAddr> + '_ {
        self.addresses().filter(move |addr| Reach::of(addr).is_usable_from(source))
    }

    /// The id and those addresses together, as a dial takes them.
    pub fn endpoint_addr(&self, source: Reach) -> EndpointAddr {
        EndpointAddr::from_parts(self.id(), self.addresses_from(source))
    }

    /// The topics that the node takes part in, smallest first.
    pub fn topics(&self) -> impl Iterator<Item = Topic> + '_ {
        self.list(self.0.marks.topics, |reader| reader.field("topic").map(Topic::from_bytes))
    }

    /// The streams that the node offers, smallest first.
    pub fn offers(&self) -> impl Iterator<Item = Offer> + '_ {
        self.list(self.0.marks.offers, |reader| reader.field("offer").map(Offer::from_bytes))
    }

    /// What later versions added.
    pub fn extensions(&self) -> Extensions {
        // The bytes were checked when they came in.
        Extensions::parse(self.tail(self.0.marks.extensions)).unwrap_or_default()
    }

    /// The elements of a list of the body. Its bytes were checked when they came in, so that an error cannot be.
    fn list<'a, T, F>(&'a self, mark: u16, read: F) -> impl Iterator<Item = T> + 'a
    where
        F: Fn(&mut Reader<'a>) -> Result<T, FrameError> + 'a,
    {
        let mut reader = Reader::new(self.tail(mark));
        let count = match self.kind() {
            Kind::Present => reader.field::<u64>("count").unwrap_or_default(),
            Kind::Departed => 0,
        };
        (0..count).map_while(move |_| read(&mut reader).ok())
    }

    fn tail(&self, mark: u16) -> &[u8] {
        let at = self.bytes().len().saturating_sub(mark.into());
        self.bytes().get(at..).unwrap_or_default()
    }
}

/// Two records are the same if their bytes are: everything else follows from these.
impl PartialEq for Record {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.bytes() == other.bytes()
    }
}

impl Eq for Record {}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Record")
            .field("id", &format_args!("{}", self.id().fmt_short()))
            .field("kind", &self.kind())
            .field("seq", &self.seq().get())
            .field("issued_at", &self.issued_at().get())
            .field("ttl", &self.ttl().as_secs())
            .finish_non_exhaustive()
    }
}

/// The parts of a record that lie at fixed places, unverified.
struct Head<'a> {
    signature: &'a [u8; SIGNATURE_BYTES],
    body: &'a [u8],
    id: &'a [u8; 32],
    network: NetworkId,
}

impl<'a> Head<'a> {
    fn of(bytes: &'a [u8], network: NetworkId) -> Result<Self, RecordError> {
        let head = Self::split(bytes)?;
        if head.network != network {
            return Err(RecordError::WrongNetwork(head.network));
        }
        Ok(head)
    }

    fn split(bytes: &'a [u8]) -> Result<Self, RecordError> {
        let len = bytes.len();
        if len > RECORD_MAX {
            return Err(RecordError::TooLarge { len });
        }
        let truncated = |field| RecordError::Malformed(FrameError::Truncated { field });
        let (version, rest) = bytes.split_first().ok_or(truncated("version"))?;
        if *version != RECORD_VERSION {
            return Err(RecordError::UnknownVersion(*version));
        }
        let (signature, body) = rest.split_first_chunk().ok_or(truncated("signature"))?;
        let (id, rest) = body.split_first_chunk().ok_or(truncated("id"))?;
        let network = rest.first_chunk().ok_or(truncated("network"))?;
        Ok(Self { signature, body, id, network: NetworkId::from_bytes(*network) })
    }
}

/// What is signed.
fn message(version: u8, body: &[u8]) -> Vec<u8> {
    [SIGNATURE_CONTEXT, &[version], body].concat()
}
