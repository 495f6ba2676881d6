//! Properties of the messages of an exchange, whatever they say: what is sent comes back, what comes back is exactly what was sent,
//! and reading one allocates at most eight times its bytes and 72 KiB, which is 584 KiB for the longest.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a test may fail this way"
)]

use std::collections::{BTreeMap, BTreeSet};

use allocation_counter::measure;
use kinfolk_core::reconcile::{Salt, Version};
use kinfolk_core::record::Seq;
use kinfolk_core::wire::exchange::{
    ACCEPTS_MIN, Bound, Greeting, LISTED_MAX, Listed, MESSAGE_MAX, Message, Range, Relayed, Rest,
    Said, TOKENS_MAX, Tag, Tokens, Turn,
};
use kinfolk_core::wire::{Extensions, LENGTH_BYTES, frame};
use proptest::collection::{btree_map, btree_set, vec};
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::FileFailurePersistence;

fn config() -> ProptestConfig {
    ProptestConfig {
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..ProptestConfig::default()
    }
}

fn bound() -> impl Strategy<Value = Bound> {
    let place = (any::<[u8; 32]>(), 1..=32_usize).prop_map(|(bytes, len)| {
        let mut id = [0; 32];
        id[..len].copy_from_slice(&bytes[..len]);
        id[len - 1] |= 1;
        Bound::At(id)
    });
    prop_oneof![8 => place, 1 => Just(Bound::End)]
}

fn listed() -> impl Strategy<Value = Listed> {
    (any::<u64>(), any::<u64>(), 0..64_u32, any::<bool>()).prop_map(|(hash, seq, shift, gone)| {
        let version = Version { seq: Seq::new(seq >> shift), is_departure: gone };
        Listed { tag: Tag::from_hash(hash), version }
    })
}

fn said() -> impl Strategy<Value = Said> {
    prop_oneof![
        Just(Said::Skip),
        any::<u64>().prop_map(Said::Sum),
        vec(listed(), 0..=32).prop_map(Said::List),
    ]
}

fn turn() -> impl Strategy<Value = Turn> {
    let ranges = btree_map(bound(), said(), 0..20).prop_map(|ranges: BTreeMap<Bound, Said>| {
        ranges.into_iter().map(|(upper, said)| Range { upper, said }).collect()
    });
    let most = u16::try_from(LISTED_MAX).unwrap();
    let wants =
        btree_set(0..most, 0..20).prop_map(|wants: BTreeSet<u16>| wants.into_iter().collect());
    let record = (0..=86_400_000_u32, vec(any::<u8>(), 113..=200))
        .prop_map(|(age_ms, bytes)| Relayed { age_ms, bytes });
    let extensions = btree_map(any::<u32>(), vec(any::<u8>(), 0..40), 0..3).prop_map(|all| {
        let with = |sum: Extensions, (kind, bytes): (u32, Vec<u8>)| sum.with(kind, &bytes).unwrap();
        all.into_iter().fold(Extensions::none(), with)
    });
    let rest = select(vec![Rest::Nothing, Rest::More, Rest::Cut]);
    (ranges, wants, vec(record, 0..4), rest, extensions).prop_map(
        |(ranges, wants, records, rest, extensions)| Turn {
            ranges,
            wants,
            records,
            rest,
            extensions,
        },
    )
}

fn message() -> impl Strategy<Value = Message> {
    let tokens = vec(any::<[u8; 16]>(), 0..=TOKENS_MAX);
    let greeting = (ACCEPTS_MIN..=u32::MAX, tokens).prop_map(|(accepts, tokens)| Greeting {
        accepts,
        tokens: Tokens::try_from(tokens).unwrap(),
    });
    (0..3_u8, any::<[u8; 16]>(), greeting, turn()).prop_map(|(kind, salt, greeting, turn)| {
        match kind {
            0 => Message::Open { salt: Salt::from_bytes(salt), greeting, turn },
            1 => Message::Accept { greeting, turn },
            _ => Message::Turn(turn),
        }
    })
}

/// The body of a message, after a check that the prefix says how long it is.
fn body(message: &Message) -> Vec<u8> {
    let frame = message.encode().unwrap();
    let (prefix, body) = frame.split_first_chunk::<LENGTH_BYTES>().unwrap();
    assert_eq!(frame::length(*prefix, MESSAGE_MAX), Ok(body.len()));
    body.to_vec()
}

fn allowed(body: &[u8]) -> u64 {
    u64::try_from(8 * body.len() + 72 * 1024).unwrap()
}

/// The most bytes allocated at one time while a message is read.
fn peak(body: &[u8]) -> u64 {
    measure(|| drop(Message::decode(body))).bytes_max
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_message_comes_back_as_it_was_sent_and_costs_little(message in message()) {
        let body = body(&message);
        prop_assert!(peak(&body) <= allowed(&body));
        prop_assert_eq!(Message::decode(&body), Ok(message));
    }

    #[test]
    fn small_bytes_are_refused_or_encode_to_themselves(
        bytes in vec(select(vec![0, 1, 2, 3, 4, 8, 0x20, 0x21, 0x71, 0x7f, 0x80, 0x81, 0xff]), 0..60),
    ) {
        prop_assert!(peak(&bytes) <= allowed(&bytes));
        if let Ok(message) = Message::decode(&bytes) {
            prop_assert_eq!(body(&message), bytes);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: config().cases / 32, ..config() })]

    #[test]
    fn a_message_with_any_bit_flipped_is_refused_or_another_message(message in message()) {
        let sent = body(&message);
        for at in 0..sent.len() * 8 {
            let mut flipped = sent.clone();
            flipped[at / 8] ^= 1 << (at % 8);
            if let Ok(other) = Message::decode(&flipped) {
                prop_assert_ne!(&other, &message);
                prop_assert_eq!(body(&other), flipped);
            }
        }
    }

    #[test]
    fn a_message_cut_anywhere_is_refused_or_lost_only_extensions(message in message()) {
        let sent = body(&message);
        for end in 0..sent.len() {
            if let Ok(shorter) = Message::decode(&sent[..end]) {
                prop_assert_eq!(&body(&shorter), &sent[..end]);
                prop_assert_eq!(&shorter.turn().records, &message.turn().records);
                prop_assert_eq!(shorter.turn().rest, message.turn().rest);
            }
        }
    }
}

#[test]
fn the_fullest_messages_stay_within_their_bounds() {
    let at = |n: u16| {
        let mut id = [0; 32];
        id[..2].copy_from_slice(&n.to_be_bytes());
        Bound::At(id)
    };
    let ranges = |count: u16, said: &dyn Fn() -> Said| Turn {
        ranges: (1..=count).map(|n| Range { upper: at(n), said: said() }).collect(),
        ..Turn::default()
    };
    let version = Version { seq: Seq::new(0), is_departure: false };
    let listed = Listed { tag: Tag::from_hash(0), version };
    let record = Relayed { age_ms: 0, bytes: vec![0; 113] };
    for turn in [
        ranges(512, &|| Said::Skip),
        ranges(512, &|| Said::Sum(1)),
        ranges(512, &|| Said::List(vec![listed; 16])),
        ranges(256, &|| Said::List(vec![listed; 32])),
        Turn { wants: (0..u16::try_from(LISTED_MAX).unwrap()).collect(), ..Turn::default() },
        Turn { records: vec![record; 512], ..Turn::default() },
        Turn { extensions: Extensions::none().with(1, &[7; 65_000]).unwrap(), ..Turn::default() },
    ] {
        let body = body(&Message::Turn(turn));
        let spent = peak(&body);
        assert!(spent <= allowed(&body), "{spent} for {}", body.len());
    }
}

#[test]
fn a_count_or_length_costs_no_more_than_what_can_follow() {
    for claim in [&b"\x80\x04"[..], b"\xff\x3f", b"\xff\xff\xff\xff\x0f"] {
        for before in [&b"\x02"[..], b"\x02\x00", b"\x02\x00\x00", b"\x02\x01\x00\x02"] {
            assert!(peak(&[before, claim].concat()) <= 64);
        }
    }
}
