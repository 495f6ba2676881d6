//! A record of this node before it is signed.
//!
//! A draft refuses what no record can carry when it is added, so that only the size of all together is left to fail
//! when it is signed. A record too large to be announced thus never comes to be.

use std::collections::BTreeSet;

use iroh_base::{SecretKey, TransportAddr};

use super::address::{self, ADDRESSES_MAX, RELAYS_MAX};
use super::body::{Body, OFFERS_MAX, Presence, TOPICS_MAX};
use super::error::DraftError;
use super::seq::Seq;
use super::tag::{Offer, Topic};
use super::time::{Ttl, UnixMillis};
use super::{RECORD_MAX, RECORD_VERSION, Record, SIGNATURE_BYTES, message};
use crate::id::NetworkId;
use crate::wire::extension::Extensions;

/// What a node is about to say of itself. One draft may be signed again and again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft {
    network: NetworkId,
    ttl: Ttl,
    presence: Presence,
    extensions: Extensions,
}

impl Draft {
    /// A draft that names no addresses, topics or offers, and holds for [`Ttl::DEFAULT`].
    pub fn new(network: NetworkId) -> Self {
        let (ttl, presence) = (Ttl::DEFAULT, Presence::default());
        Self { network, ttl, presence, extensions: Extensions::none() }
    }

    /// Adds an address. Adding it twice is adding it once; IPv4 written as IPv6 is IPv4.
    ///
    /// # Errors
    ///
    /// [`DraftError::Address`] or [`DraftError::TooMany`], in which case the draft is as it was.
    pub fn add_address(&mut self, addr: TransportAddr) -> Result<(), DraftError> {
        let addr = address::normal(addr)?;
        let addresses = &mut self.presence.addresses;
        let relays = addresses.iter().filter(|addr| addr.is_relay()).count();
        if addr.is_relay() && relays >= RELAYS_MAX && !addresses.contains(&addr) {
            return Err(DraftError::TooMany { what: "relays", max: RELAYS_MAX });
        }
        add(addresses, addr, "addresses", ADDRESSES_MAX)
    }

    /// Adds a topic.
    ///
    /// # Errors
    ///
    /// [`DraftError::TooMany`], in which case the draft is as it was.
    pub fn add_topic(&mut self, topic: Topic) -> Result<(), DraftError> {
        add(&mut self.presence.topics, topic, "topics", TOPICS_MAX)
    }

    /// Adds an offered stream.
    ///
    /// # Errors
    ///
    /// [`DraftError::TooMany`], in which case the draft is as it was.
    pub fn add_offer(&mut self, offer: Offer) -> Result<(), DraftError> {
        add(&mut self.presence.offers, offer, "offers", OFFERS_MAX)
    }

    /// How long records of this draft hold.
    #[must_use]
    pub fn with_ttl(self, ttl: Ttl) -> Self {
        Self { ttl, ..self }
    }

    /// What later versions add.
    #[must_use]
    pub fn with_extensions(self, extensions: Extensions) -> Self {
        Self { extensions, ..self }
    }

    /// Makes it a record.
    ///
    /// # Errors
    ///
    /// [`DraftError::TooLarge`] if the extensions leave too little room for the rest: all else always fits.
    pub fn sign(
        &self,
        key: &SecretKey,
        seq: Seq,
        issued_at: UnixMillis,
    ) -> Result<Record, DraftError> {
        let presence = Some(self.presence.clone());
        let (network, ttl, extensions) = (self.network, self.ttl, self.extensions.clone());
        sign(key, Body { id: key.public(), network, presence, seq, issued_at, ttl, extensions })
    }
}

impl Record {
    /// Says that the node with this key departs. It holds for [`Ttl::MAX`], since it has to outlive every record that
    /// it takes back.
    ///
    /// # Errors
    ///
    /// [`DraftError::Unencodable`], which is not known to happen.
    pub fn departure(
        network: NetworkId,
        key: &SecretKey,
        seq: Seq,
        issued_at: UnixMillis,
    ) -> Result<Self, DraftError> {
        let (ttl, extensions) = (Ttl::MAX, Extensions::none());
        sign(
            key,
            Body { id: key.public(), network, presence: None, seq, issued_at, ttl, extensions },
        )
    }
}

fn sign(key: &SecretKey, body: Body) -> Result<Record, DraftError> {
    seal(body, |signed| key.sign(&message(RECORD_VERSION, signed)).to_bytes())
}

/// Puts a body and its signature together.
fn seal(
    body: Body,
    signature: impl FnOnce(&[u8]) -> [u8; SIGNATURE_BYTES],
) -> Result<Record, DraftError> {
    let signed = body.encode().map_err(DraftError::Unencodable)?;
    let len = 1_usize.saturating_add(SIGNATURE_BYTES).saturating_add(signed.len());
    if len > RECORD_MAX {
        return Err(DraftError::TooLarge { len });
    }
    let bytes = [&[RECORD_VERSION], &signature(&signed)[..], &signed].concat();
    // Read again, so that what is announced is what others will accept.
    Record::from_body(&bytes, &signed, body.id).map_err(|_| {
        DraftError::Unencodable(crate::wire::FrameError::Unencodable { field: "record" })
    })
}

#[cfg(test)]
impl Draft {
    /// A record of any node, without a signature: for tests that need more of them than can be signed in time.
    pub(crate) fn forge(
        &self,
        id: iroh_base::EndpointId,
        seq: Seq,
        issued_at: UnixMillis,
    ) -> Record {
        let presence = Some(self.presence.clone());
        let (network, ttl, extensions) = (self.network, self.ttl, self.extensions.clone());
        let body = Body { id, network, presence, seq, issued_at, ttl, extensions };
        seal(body, |_| [0; SIGNATURE_BYTES]).unwrap()
    }
}

#[cfg(test)]
impl Record {
    /// A departure of any node, without a signature.
    pub(crate) fn forge_departure(
        network: NetworkId,
        id: iroh_base::EndpointId,
        seq: Seq,
        issued_at: UnixMillis,
    ) -> Self {
        let (ttl, extensions) = (Ttl::MAX, Extensions::none());
        let body = Body { id, network, presence: None, seq, issued_at, ttl, extensions };
        seal(body, |_| [0; SIGNATURE_BYTES]).unwrap()
    }
}

fn add<T: Ord>(
    set: &mut BTreeSet<T>,
    value: T,
    what: &'static str,
    max: usize,
) -> Result<(), DraftError> {
    if set.len() >= max && !set.contains(&value) {
        return Err(DraftError::TooMany { what, max });
    }
    set.insert(value);
    Ok(())
}
