//! Properties of records, whatever they say: what was signed comes back, nobody but the owner can change a bit of it, and no bytes make
//! the check of a record panic or allocate more than a small multiple of them.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a test may fail this way"
)]

use std::collections::BTreeSet;
use std::net::SocketAddr;

use allocation_counter::measure;
use iroh_base::{SecretKey, TransportAddr};
use kinfolk_core::id::NetworkId;
use kinfolk_core::record::{
    ADDRESSES_MAX, Draft, OFFERS_MAX, Offer, RECORD_MAX, RELAYS_MAX, Record, RecordError, Seq,
    TOPICS_MAX, Topic, Ttl, UnixMillis,
};
use kinfolk_core::wire::Extensions;
use proptest::collection::{btree_map, btree_set, vec};
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

/// Each record is signed, and some are checked thousands of times, so fewer cases than usual.
fn config(share: u32) -> ProptestConfig {
    let cases = ProptestConfig::default().cases / share;
    ProptestConfig {
        cases: cases.max(2),
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..ProptestConfig::default()
    }
}

const NETWORK: NetworkId = NetworkId::from_bytes([5; 16]);

/// Later than any record.
const CLOCK: UnixMillis = UnixMillis::new(u64::MAX);

fn number() -> impl Strategy<Value = u64> {
    (any::<u64>(), 0..64_u32).prop_map(|(number, shift)| number >> shift)
}

fn ip() -> impl Strategy<Value = TransportAddr> {
    let v4 = (1..224_u8, any::<[u8; 3]>(), 1..=u16::MAX)
        .prop_map(|(first, [b, c, d], port)| SocketAddr::from(([first, b, c, d], port)));
    let v6 =
        (0x2000..0xff00_u16, any::<[u16; 7]>(), 1..=u16::MAX).prop_map(|(first, rest, port)| {
            let mut ip = [first; 8];
            ip[1..].copy_from_slice(&rest);
            SocketAddr::from((ip, port))
        });
    prop_oneof![v4, v6].prop_map(TransportAddr::Ip)
}

fn relay() -> impl Strategy<Value = TransportAddr> {
    ("https?://[a-z][a-z0-9]{0,40}\\.[a-z]{2,20}", any::<u16>())
        .prop_map(|(origin, port)| format!("{origin}:{port}/").parse().unwrap())
        .prop_map(TransportAddr::Relay)
}

#[derive(Debug, Clone)]
struct Said {
    key: SecretKey,
    addresses: BTreeSet<TransportAddr>,
    topics: BTreeSet<Topic>,
    offers: BTreeSet<Offer>,
    ttl: Ttl,
    seq: Seq,
    issued_at: UnixMillis,
    extensions: Extensions,
}

fn said() -> impl Strategy<Value = Said> {
    let addresses =
        (btree_set(ip(), 0..=ADDRESSES_MAX - RELAYS_MAX), btree_set(relay(), 0..=RELAYS_MAX))
            .prop_map(|(mut ips, relays)| {
                ips.extend(relays);
                ips
            });
    let topics = btree_set(any::<[u8; 16]>().prop_map(Topic::from_bytes), 0..=TOPICS_MAX);
    let offers = btree_set(any::<[u8; 16]>().prop_map(Offer::from_bytes), 0..=OFFERS_MAX);
    let ttl = (1..=Ttl::MAX.as_secs()).prop_map(|secs| Ttl::from_secs(secs).unwrap());
    let extensions = btree_map(any::<u32>(), vec(any::<u8>(), 0..12), 0..4).prop_map(|all| {
        let with = |sum: Extensions, (kind, bytes): (u32, Vec<u8>)| sum.with(kind, &bytes).unwrap();
        all.into_iter().fold(Extensions::none(), with)
    });
    let head = (any::<[u8; 32]>(), ttl, number(), number());
    (head, addresses, topics, offers, extensions).prop_map(
        |((key, ttl, seq, issued_at), addresses, topics, offers, extensions)| Said {
            key: SecretKey::from_bytes(&key),
            addresses,
            topics,
            offers,
            ttl,
            seq: Seq::new(seq),
            issued_at: UnixMillis::new(issued_at),
            extensions,
        },
    )
}

fn signed(said: &Said) -> Record {
    let extensions = said.extensions.clone();
    let mut draft = Draft::new(NETWORK).with_ttl(said.ttl).with_extensions(extensions);
    said.addresses.iter().for_each(|addr| draft.add_address(addr.clone()).unwrap());
    said.topics.iter().for_each(|topic| draft.add_topic(*topic).unwrap());
    said.offers.iter().for_each(|offer| draft.add_offer(*offer).unwrap());
    draft.sign(&said.key, said.seq, said.issued_at).unwrap()
}

fn verify(bytes: &[u8]) -> Result<Record, RecordError> {
    Record::verify(bytes, NETWORK, CLOCK)
}

proptest! {
    #![proptest_config(config(1))]

    #[test]
    fn a_record_comes_back_as_it_was_signed(said in said()) {
        let sent = signed(&said);
        prop_assert!(sent.bytes().len() <= RECORD_MAX);
        let came = verify(sent.bytes()).unwrap();
        prop_assert_eq!(came.bytes(), sent.bytes());
        prop_assert_eq!(came.id(), said.key.public());
        prop_assert_eq!((came.seq(), came.ttl()), (said.seq, said.ttl));
        prop_assert_eq!(came.issued_at(), said.issued_at);
        prop_assert!(came.addresses().eq(said.addresses.iter().cloned()));
        prop_assert!(came.topics().eq(said.topics.iter().copied()));
        prop_assert!(came.offers().eq(said.offers.iter().copied()));
        prop_assert_eq!(came.extensions(), said.extensions);
    }

    #[test]
    fn a_departure_comes_back_as_it_was_signed(key: [u8; 32], seq in number(), issued_at in number()) {
        let key = SecretKey::from_bytes(&key);
        let (seq, issued_at) = (Seq::new(seq), UnixMillis::new(issued_at));
        let sent = Record::departure(NETWORK, &key, seq, issued_at).unwrap();
        prop_assert_eq!(verify(sent.bytes()), Ok(sent));
    }

    /// A forged body gets further than random bytes: its owner signed it.
    #[test]
    fn a_signed_body_is_refused_or_canonical(
        fields in vec(prop_oneof![Just(0_u8), Just(1), Just(2), Just(0x80), any::<u8>()], 0..60),
    ) {
        let key = SecretKey::from_bytes(&[3; 32]);
        let body = [&key.public().as_bytes()[..], NETWORK.as_bytes(), &fields].concat();
        let message = [&b"kinfolk record signature\x01"[..], &body].concat();
        let bytes = [&[1][..], &key.sign(&message).to_bytes(), &body].concat();
        if let Ok(record) = verify(&bytes) {
            prop_assert_eq!(record.bytes(), bytes.as_slice());
            prop_assert!(record.addresses().count() <= ADDRESSES_MAX);
        }
    }

    #[test]
    fn no_bytes_make_the_check_allocate_more_than_a_small_multiple_of_them(
        said in said(),
        bytes in vec(any::<u8>(), 0..2000),
    ) {
        let allowed = |bytes: &[u8]| u64::try_from(6 * bytes.len() + 2048).unwrap();
        let record = signed(&said);
        for bytes in [&bytes, record.bytes()] {
            let spent = measure(|| drop(verify(bytes))).bytes_max;
            prop_assert!(spent <= allowed(bytes), "{spent} for {} bytes", bytes.len());
        }
    }
}

proptest! {
    #![proptest_config(config(64))]

    #[test]
    fn a_record_with_any_bit_flipped_is_refused(said in said()) {
        let sent = signed(&said);
        for at in 0..sent.bytes().len() * 8 {
            let mut flipped = sent.bytes().to_vec();
            flipped[at / 8] ^= 1 << (at % 8);
            prop_assert!(verify(&flipped).is_err(), "{at}");
        }
    }

    #[test]
    fn a_record_cut_anywhere_is_refused(said in said()) {
        let sent = signed(&said);
        for end in 0..sent.bytes().len() {
            prop_assert!(verify(&sent.bytes()[..end]).is_err(), "{end}");
        }
        let longer = [sent.bytes(), &[0]].concat();
        prop_assert!(verify(&longer).is_err());
    }
}
