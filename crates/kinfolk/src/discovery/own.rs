//! The node's own record: what it says, how it is numbered, and its signature.
//!
//! It serves Discovery, which decides when a new one is signed. What the app wants said of its node is kept here through every restart of
//! Discovery. It never says more than the app and iroh have told: addresses and topics.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::time::{SystemTime, UNIX_EPOCH};

use iroh::{EndpointAddr, SecretKey};
use kinfolk_core::id::NetworkId;
use kinfolk_core::record::{
    ADDRESSES_MAX, Draft, DraftError, RELAYS_MAX, Reach, Record, Seq, SeqExhausted, SeqSource,
    Topic, Ttl, UnixMillis,
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
        Ok(draft)
    }
}
