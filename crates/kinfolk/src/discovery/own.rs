//! The node's own record: what it says, how it is numbered, and its signature.
//!
//! It serves Discovery, which decides when a new one is signed. What the app wants said of its node is kept here through every restart of
//! Discovery. It never says more than the app and iroh have told: addresses, topics and offers.

use std::cmp::Reverse;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{SystemTime, UNIX_EPOCH};

use iroh::{EndpointAddr, SecretKey};
use kinfolk_core::id::NetworkId;
use kinfolk_core::record::{
    ADDRESSES_MAX, Draft, DraftError, Offer, RELAYS_MAX, Reach, Record, Seq, SeqExhausted,
    SeqSource, Topic, Ttl, UnixMillis,
};
use kinfolk_core::secret_topic::{SECRET_TOPICS_MAX, SecretTopic, TooManySecretTopics};
use thiserror::Error;

/// See the module page.
pub(crate) struct Own {
    key: SecretKey,
    network: NetworkId,
    ttl: Ttl,
    pub(crate) seq: SeqSource,
    topics: BTreeSet<Topic>,
    /// How many parts of the node make each offer: it stands for as long as one does.
    offers: BTreeMap<Offer, usize>,
    /// In no record: told in exchanges to those who know them already.
    pub(crate) secrets: BTreeSet<SecretTopic>,
}

impl std::fmt::Debug for Own {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Own").field("seq", &self.seq).finish_non_exhaustive()
    }
}

/// Why the node cannot say anything of itself.
#[derive(Debug, Error)]
pub(crate) enum OwnError {
    #[error(transparent)]
    Seq(#[from] SeqExhausted),
    #[error(transparent)]
    Draft(#[from] DraftError),
}

/// The wall clock, for records alone.
pub(crate) fn wall_clock() -> UnixMillis {
    // A clock before 1970 says nothing worth comparing.
    UnixMillis::from_unix(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

impl Own {
    pub(crate) fn new(key: SecretKey, network: NetworkId, ttl: Ttl) -> Self {
        Self {
            key,
            network,
            ttl,
            seq: SeqSource::default(),
            topics: BTreeSet::new(),
            offers: BTreeMap::new(),
            secrets: BTreeSet::new(),
        }
    }

    /// Takes part in a topic; whether it did not before.
    ///
    /// # Errors
    ///
    /// If the record has no room for one more.
    pub(crate) fn join(&mut self, topic: Topic) -> Result<bool, DraftError> {
        let mut draft = self.draft()?;
        draft.add_topic(topic)?;
        Ok(self.topics.insert(topic))
    }

    /// Takes part in a topic no more; whether it did before.
    pub(crate) fn leave(&mut self, topic: &Topic) -> bool {
        self.topics.remove(topic)
    }

    /// Makes an offer, once more if it stands already; whether it did not before.
    ///
    /// # Errors
    ///
    /// If the record has no room for one more.
    pub(crate) fn offer(&mut self, offer: Offer) -> Result<bool, DraftError> {
        let mut draft = self.draft()?;
        draft.add_offer(offer)?;
        let holders = self.offers.entry(offer).or_default();
        *holders = holders.saturating_add(1);
        Ok(*holders == 1)
    }

    /// Takes an offer back, once; whether it does not stand any more now.
    pub(crate) fn withdraw(&mut self, offer: Offer) -> bool {
        let Entry::Occupied(mut holders) = self.offers.entry(offer) else { return false };
        *holders.get_mut() = holders.get().saturating_sub(1);
        let is_last = *holders.get() == 0;
        if is_last {
            holders.remove();
        }
        is_last
    }

    /// Takes part in a secret topic; whether it did not before.
    pub(crate) fn join_secret(&mut self, topic: SecretTopic) -> Result<bool, TooManySecretTopics> {
        let count = self.secrets.len().saturating_add(1);
        if count > SECRET_TOPICS_MAX && !self.secrets.contains(&topic) {
            return Err(TooManySecretTopics { count });
        }
        Ok(self.secrets.insert(topic))
    }

    /// The number of the next record. Where a store is configured, it is saved before [`Own::sign`] uses it.
    pub(crate) fn number(&mut self) -> Result<Seq, SeqExhausted> {
        self.seq.next(wall_clock())
    }

    /// The node's record with this number: it says that the node is at this address.
    ///
    /// Of an address with more ways than a record names, those that lead farthest are said.
    pub(crate) fn sign(&self, seq: Seq, address: &EndpointAddr) -> Result<Record, OwnError> {
        let mut draft = self.draft()?;
        let (mut relays, mut others): (Vec<_>, Vec<_>) =
            address.addrs.iter().partition(|addr| addr.is_relay());
        others.sort_by_key(|addr| Reverse(Reach::of(addr)));
        relays.truncate(RELAYS_MAX);
        others.truncate(ADDRESSES_MAX.saturating_sub(relays.len()));
        for addr in relays.into_iter().chain(others) {
            // One that no record may carry, as of a relay with a long name, is left out: the others still help.
            let _ = draft.add_address(addr.clone());
        }
        Ok(draft.sign(&self.key, seq, wall_clock())?)
    }

    /// The tombstone of the node.
    pub(crate) fn sign_departure(&self, seq: Seq) -> Result<Record, OwnError> {
        Ok(Record::departure(self.network, &self.key, seq, wall_clock())?)
    }

    fn draft(&self) -> Result<Draft, DraftError> {
        let mut draft = Draft::new(self.network).with_ttl(self.ttl);
        for topic in &self.topics {
            draft.add_topic(*topic)?;
        }
        for offer in self.offers.keys() {
            draft.add_offer(*offer)?;
        }
        Ok(draft)
    }
}

#[cfg(test)]
mod tests {
    use kinfolk_core::record::OFFERS_MAX;

    use super::*;

    fn own() -> Own {
        let key = SecretKey::from_bytes(&[7; 32]);
        Own::new(key, NetworkId::from_name("own"), Ttl::DEFAULT)
    }

    fn offers(own: &mut Own) -> Vec<Offer> {
        let seq = own.number().unwrap();
        let here = EndpointAddr::new(own.key.public());
        own.sign(seq, &here).unwrap().offers().collect()
    }

    #[test]
    fn an_offer_of_two_stands_until_both_have_taken_it_back() {
        let (mut own, offer) = (own(), Offer::from_name("readings"));
        assert_eq!(own.offer(offer), Ok(true));
        assert_eq!(own.offer(offer), Ok(false));
        assert!(!own.withdraw(offer));
        assert_eq!(offers(&mut own), [offer]);
        assert!(own.withdraw(offer));
        assert_eq!(offers(&mut own), []);
    }

    #[test]
    fn an_offer_that_nobody_makes_is_not_taken_back() {
        assert!(!own().withdraw(Offer::from_name("readings")));
    }

    #[test]
    fn an_offer_too_many_is_refused_and_those_before_it_stand() {
        let mut own = own();
        let named = |n: usize| Offer::from_name(&n.to_string());
        for n in 0..OFFERS_MAX {
            assert_eq!(own.offer(named(n)), Ok(true));
        }
        assert!(matches!(own.offer(named(OFFERS_MAX)), Err(DraftError::TooMany { .. })));
        assert_eq!(own.offer(named(0)), Ok(false));
        assert_eq!(offers(&mut own).len(), OFFERS_MAX);
    }
}
