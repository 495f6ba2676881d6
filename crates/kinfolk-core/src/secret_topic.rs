//! Secret topics: two peers find out which of them they share, and nothing about the others.
//!
//! It decides, for whoever runs an exchange, what to send in place of the topics and which topics an answer means. It never
//! sends, never stores, and never puts a secret topic into a record.
//!
//! A topic is a secret of those who take part in it. Each side sends one token of 16 bytes per topic, keyed with the topic
//! and bound to the connection by its TLS exporter, to the exchange, and to the sender and the receiver in this order:
//!
//! - somebody in the middle with a connection to each of two peers learns no topic, and what it passes on matches nothing;
//! - a peer that sends back what it was sent matches nothing, as the way back has other tokens;
//! - tokens of two exchanges have nothing in common, so that nobody is recognised by them, and what is padding stays hidden;
//! - the number of topics is hidden up to the next of [`PADDED`], whose first step does say that there are none.
//!
//! # What it does not hide
//!
//! A peer can try names. Whoever guesses a topic finds out, without another word to us, whether we take part in it: it computes the
//! token that we would send and looks for it. So a name that can be guessed, such as a word or a place, is kept from those who do
//! not think of it, and from nobody else; a topic is as secret as its bytes are hard to guess, and only 16 random bytes or more
//! keep it secret from everybody. Those who know a topic also see who else takes part in it, whether they say that they do or not.

use std::collections::BTreeSet;
use std::fmt;

use iroh_base::EndpointId;
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use thiserror::Error;

use crate::wire::exchange::{TOKENS_MAX, Token, Tokens};

/// Separates secret topics from every other use of the same hash.
const TOPIC_CONTEXT: &str = "kinfolk secret topic";

/// Comes before what a token is made from.
const TOKEN_CONTEXT: &[u8] = b"kinfolk secret topic token";

/// The numbers of tokens that are sent: the next that holds all topics, filled up with random ones.
pub const PADDED: [usize; 5] = [0, 8, 16, 32, TOKENS_MAX];

/// The most secret topics of a node: as many as a message has tokens.
pub const SECRET_TOPICS_MAX: usize = TOKENS_MAX;

/// A topic that only those know who take part in it. It is printed nowhere.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SecretTopic([u8; 32]);

impl SecretTopic {
    /// The topic with this secret: random bytes, or a name that is hard to guess, see the module page.
    #[must_use]
    pub fn from_secret(secret: &[u8]) -> Self {
        Self(blake3::derive_key(TOPIC_CONTEXT, secret))
    }
}

impl fmt::Debug for SecretTopic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretTopic(..)")
    }
}

/// A node has more secret topics than fit into a message. The app is to blame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("expected at most {SECRET_TOPICS_MAX} secret topics, came {count}")]
pub struct TooManySecretTopics {
    /// How many there were.
    pub count: usize,
}

/// What tokens are bound to: one exchange on one connection between two peers.
#[derive(Clone)]
pub struct Binding {
    exporter: [u8; 32],
    exchange: u64,
    me: EndpointId,
    peer: EndpointId,
}

impl Binding {
    /// Binds to a connection by what its TLS session exports, and to an exchange by a number that both sides know and that no
    /// other exchange on this connection has: that of its stream.
    #[must_use]
    pub const fn new(exporter: [u8; 32], exchange: u64, me: EndpointId, peer: EndpointId) -> Self {
        Self { exporter, exchange, me, peer }
    }

    /// What to send in place of these topics: as many tokens as the next of [`PADDED`] says, in the order of their bytes. The seed
    /// is for the padding, and wants to be a new one for every exchange.
    ///
    /// # Errors
    ///
    /// [`TooManySecretTopics`] if there are more than [`SECRET_TOPICS_MAX`].
    pub fn tokens(
        &self,
        topics: &BTreeSet<SecretTopic>,
        padding_seed: [u8; 32],
    ) -> Result<Tokens, TooManySecretTopics> {
        let count = topics.len();
        let padded = PADDED.into_iter().find(|padded| count <= *padded);
        let padded = padded.ok_or(TooManySecretTopics { count })?;
        let mut tokens: BTreeSet<_> =
            topics.iter().map(|topic| self.token(topic, &self.me, &self.peer)).collect();
        let mut rng = ChaCha20Rng::from_seed(padding_seed);
        while tokens.len() < padded {
            let mut token = [0; 16];
            rng.fill_bytes(&mut token);
            tokens.insert(token);
        }
        let tokens: Vec<_> = tokens.into_iter().collect();
        Tokens::try_from(tokens).map_err(|_| TooManySecretTopics { count })
    }

    /// Which of our topics the peer takes part in, by the tokens that it sent. No more than [`SECRET_TOPICS_MAX`] of them are
    /// looked at.
    #[must_use]
    pub fn matches(
        &self,
        topics: &BTreeSet<SecretTopic>,
        theirs: &[Token],
    ) -> BTreeSet<SecretTopic> {
        let theirs: BTreeSet<_> = theirs.iter().take(SECRET_TOPICS_MAX).collect();
        let is_theirs =
            |topic: &&SecretTopic| theirs.contains(&self.token(topic, &self.peer, &self.me));
        topics.iter().filter(is_theirs).cloned().collect()
    }

    fn token(&self, topic: &SecretTopic, from: &EndpointId, to: &EndpointId) -> Token {
        let mut token = [0; 16];
        blake3::Hasher::new_keyed(&topic.0)
            .update(TOKEN_CONTEXT)
            .update(&self.exporter)
            .update(&self.exchange.to_be_bytes())
            .update(from.as_bytes())
            .update(to.as_bytes())
            .finalize_xof()
            .fill(&mut token);
        token
    }
}

impl fmt::Debug for Binding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Binding")
            .field("exchange", &self.exchange)
            .field("me", &format_args!("{}", self.me.fmt_short()))
            .field("peer", &format_args!("{}", self.peer.fmt_short()))
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use data_encoding::HEXLOWER;
    use iroh_base::SecretKey;
    use proptest::prelude::*;

    use super::*;

    fn peer(seed: u8) -> EndpointId {
        SecretKey::from_bytes(&[seed; 32]).public()
    }

    fn topics(names: impl IntoIterator<Item = u8>) -> BTreeSet<SecretTopic> {
        names.into_iter().map(|name| SecretTopic::from_secret(&[name])).collect()
    }

    /// The two ends of one exchange between peers 1 and 2.
    fn ends(exporter: u8, exchange: u64) -> (Binding, Binding) {
        let exporter = [exporter; 32];
        (
            Binding::new(exporter, exchange, peer(1), peer(2)),
            Binding::new(exporter, exchange, peer(2), peer(1)),
        )
    }

    #[test]
    fn the_token_of_a_topic_is_these_bytes() {
        let topic = SecretTopic::from_secret(b"the cellar door");
        assert_eq!(
            HEXLOWER.encode(&topic.0),
            "16e4d2c11c8a8840fb2f7460d83c48eb54ac914b7db2812ba865f188d73d4901"
        );
        let binding = Binding::new([9; 32], 4, peer(1), peer(2));
        let there = binding.token(&topic, &peer(1), &peer(2));
        let back = binding.token(&topic, &peer(2), &peer(1));
        assert_eq!(HEXLOWER.encode(&there), "57e9342939d7e3781ca8a8ac8d442703");
        assert_eq!(HEXLOWER.encode(&back), "feaf934c4cbbe7d762b82768d8257ce9");
    }

    #[test]
    fn a_secret_is_printed_nowhere() {
        let topic = SecretTopic::from_secret(b"hush");
        assert_eq!(format!("{topic:?}"), "SecretTopic(..)");
        let binding = Binding::new([0xab; 32], 4, peer(1), peer(2));
        let text = format!("{binding:?}");
        assert!(!text.contains("171") && !text.contains("abab"), "{text}");
    }

    #[test]
    fn the_number_of_topics_is_hidden_up_to_the_next_step() {
        let (here, _) = ends(9, 4);
        for count in 0..=64 {
            let sent = here.tokens(&topics(0..count), [count; 32]).unwrap().into_inner().len();
            let count = usize::from(count);
            let step = PADDED.into_iter().find(|step| *step >= count).unwrap();
            assert_eq!(sent, step);
        }
    }

    #[test]
    fn more_topics_than_fit_are_refused() {
        let (here, _) = ends(9, 4);
        let refused = here.tokens(&topics(0..65), [0; 32]);
        assert_eq!(refused, Err(TooManySecretTopics { count: 65 }));
    }

    #[test]
    fn tokens_beyond_the_most_are_not_looked_at() {
        let (here, there) = ends(9, 4);
        let ours = topics([1]);
        let token = here.tokens(&ours, [0; 32]).unwrap().into_inner();
        let flood: Vec<_> = std::iter::repeat_n([0; 16], 64).chain(token).collect();
        assert_eq!(there.matches(&ours, &flood), BTreeSet::new());
    }

    #[test]
    fn two_exchanges_have_no_token_in_common_not_even_on_one_connection() {
        let ours = topics(0..3);
        let (first, _) = ends(9, 4);
        let (second, _) = ends(9, 8);
        let first: BTreeSet<_> =
            first.tokens(&ours, [1; 32]).unwrap().into_inner().into_iter().collect();
        let second: BTreeSet<_> =
            second.tokens(&ours, [2; 32]).unwrap().into_inner().into_iter().collect();
        assert!(first.is_disjoint(&second));
    }

    fn some() -> impl Strategy<Value = BTreeSet<SecretTopic>> {
        proptest::collection::btree_set(0_u8..80, 0..64).prop_map(topics)
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            failure_persistence: Some(Box::new(
                proptest::test_runner::FileFailurePersistence::Direct("src/secret_topic.regressions"),
            )),
            ..ProptestConfig::default()
        })]

        #[test]
        fn both_sides_find_exactly_the_topics_that_they_share(
            ours in some(), theirs in some(), exporter: u8, exchange: u64,
            seeds: ([u8; 32], [u8; 32]),
        ) {
            let (here, there) = ends(exporter, exchange);
            let shared: BTreeSet<_> = ours.intersection(&theirs).cloned().collect();
            let sent = here.tokens(&ours, seeds.0).unwrap().into_inner();
            let answered = there.tokens(&theirs, seeds.1).unwrap().into_inner();
            prop_assert!(sent.is_sorted() && answered.is_sorted());
            prop_assert_eq!(&there.matches(&theirs, &sent), &shared);
            prop_assert_eq!(&here.matches(&ours, &answered), &shared);
        }

        #[test]
        fn a_peer_that_sends_back_what_it_was_sent_matches_nothing(ours in some(), seed: [u8; 32]) {
            let (here, _) = ends(9, 4);
            let sent = here.tokens(&ours, seed).unwrap().into_inner();
            prop_assert_eq!(here.matches(&ours, &sent), BTreeSet::new());
        }

        /// Peer 3 has a connection to 1 and another to 2 and passes on what each says, in either role.
        #[test]
        fn what_somebody_in_the_middle_passes_on_matches_nothing(
            ours in some(), seed: [u8; 32], exporters: ([u8; 32], [u8; 32]), exchange: u64,
        ) {
            let at_first = Binding::new(exporters.0, exchange, peer(1), peer(3));
            let at_second = Binding::new(exporters.1, exchange, peer(2), peer(3));
            let sent = at_first.tokens(&ours, seed).unwrap().into_inner();
            prop_assert_eq!(at_second.matches(&ours, &sent), BTreeSet::new());
            // Not even with the same exporter, which nobody in the middle can bring about.
            let same = Binding::new(exporters.0, exchange, peer(2), peer(3));
            prop_assert_eq!(same.matches(&ours, &sent), BTreeSet::new());
            // Nor on another connection between the two themselves.
            let claimed = Binding::new(exporters.0, exchange, peer(1), peer(2));
            let real = Binding::new(exporters.1, exchange, peer(2), peer(1));
            let replayed = claimed.tokens(&ours, seed).unwrap().into_inner();
            prop_assume!(exporters.0 != exporters.1);
            prop_assert_eq!(real.matches(&ours, &replayed), BTreeSet::new());
        }
    }
}
