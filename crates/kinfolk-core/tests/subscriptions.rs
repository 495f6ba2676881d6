//! Properties of all that a consumer and a producer of a stream say, whatever the fields: what is sent comes back, what is
//! cut or turned is refused or is exactly what it says, and no claim costs memory.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a test may fail this way"
)]

use allocation_counter::measure;
use bytes::{Bytes, BytesMut};
use kinfolk_core::stream::{Entries, Read, Schema, StreamName};
use kinfolk_core::wire::subscription::{
    ANSWERED_MAX, Accepted, Answered, Channel, ConsumerFrame, ControlEntry, HEAD_BYTES, Refusal,
    Resume, SUBSCRIBE_MAX, StreamEnd, Subscribe, decode_datagram, encode_datagram, item_head,
};
use kinfolk_core::wire::{Extensions, LENGTH_BYTES, frame};
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::FileFailurePersistence;

fn config() -> ProptestConfig {
    ProptestConfig {
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..ProptestConfig::default()
    }
}

/// Varints change their length with the number's size, so small numbers must be as likely as large ones.
fn number() -> impl Strategy<Value = u64> {
    (any::<u64>(), 0..64_u32).prop_map(|(number, shift)| number >> shift)
}

fn extensions() -> impl Strategy<Value = Extensions> {
    btree_map(any::<u32>(), vec(any::<u8>(), 0..40), 0..4).prop_map(|all| {
        let with = |sum: Extensions, (kind, bytes): (u32, Vec<u8>)| sum.with(kind, &bytes).unwrap();
        all.into_iter().fold(Extensions::none(), with)
    })
}

fn schema() -> impl Strategy<Value = Schema> {
    ("[!-~]{1,64}", any::<u32>()).prop_map(|(name, n)| Schema::try_new(name, n).unwrap())
}

fn consumer_frame() -> impl Strategy<Value = ConsumerFrame> {
    let name = "[!-~]{1,64}".prop_map(|text| StreamName::new(text).unwrap());
    let resume = option::of((number(), number()).prop_map(|(epoch, next)| Resume { epoch, next }));
    let ticket = || vec(any::<u8>(), 0..200);
    let subscribe = (number(), name, schema(), resume, option::of(ticket()), extensions())
        .prop_map(|(id, name, schema, resume, ticket, extensions)| {
            let subscribe = Subscribe { id, name, schema, resume, ticket, extensions };
            ConsumerFrame::Subscribe(subscribe)
        });
    let renew = ticket().prop_map(|ticket| ConsumerFrame::Renew { ticket });
    let taken = number().prop_map(|through| ConsumerFrame::Taken { through });
    prop_oneof![3 => subscribe, 1 => renew, 1 => taken]
}

fn answered() -> impl Strategy<Value = Answered> {
    let channel = select(vec![Channel::Reliable, Channel::Latest, Channel::Datagram]);
    let accepted = (channel, number(), number(), extensions()).prop_map(
        |(channel, epoch, next, extensions)| {
            Answered::Accepted(Accepted { channel, epoch, next, extensions })
        },
    );
    let plain = select(vec![
        Refusal::NoSuchStream,
        Refusal::NotAllowed,
        Refusal::BadTicket,
        Refusal::NoCapacity,
        Refusal::UnknownPeer,
        Refusal::Ended,
        Refusal::Unchecked,
    ]);
    let other = schema().prop_map(|offered| Refusal::Schema { offered });
    let refused = prop_oneof![plain, other].prop_map(Answered::Refused);
    prop_oneof![accepted, refused]
}

fn control_entry() -> impl Strategy<Value = ControlEntry> {
    let ends = select(vec![
        StreamEnd::Finished,
        StreamEnd::TooSlow,
        StreamEnd::NotAllowed,
        StreamEnd::TicketExpired,
        StreamEnd::ShuttingDown,
        StreamEnd::Misbehaved,
    ]);
    prop_oneof![
        number().prop_map(|n| ControlEntry::Gap { missed: n.max(1) }),
        number().prop_map(|n| ControlEntry::Skip { superseded: n.max(1) }),
        ends.prop_map(ControlEntry::End),
    ]
}

/// The body of a frame, after a check that the prefix says how long it is.
fn body(frame: &[u8], max: usize) -> Vec<u8> {
    let (prefix, body) = frame.split_first_chunk::<LENGTH_BYTES>().unwrap();
    assert_eq!(frame::length(*prefix, max), Ok(body.len()));
    body.to_vec()
}

/// These bytes with one bit turned, for each of their bits, and cut at each place.
fn turned_and_cut(bytes: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    let turned = (0..bytes.len() * 8).map(|at| {
        let mut turned = bytes.to_vec();
        turned[at / 8] ^= 1 << (at % 8);
        turned
    });
    turned.chain((0..bytes.len()).map(|end| bytes[..end].to_vec()))
}

/// What decoding may allocate at one time: see `tests/allocation.rs`.
fn allowed(bytes: &[u8]) -> u64 {
    u64::try_from(3 * bytes.len() + 1024).unwrap()
}

fn reader(item_max: usize) -> Entries {
    let (channel, extensions) = (Channel::Reliable, Extensions::none());
    Entries::new(&Accepted { channel, epoch: 1, next: 0, extensions }, item_max)
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn what_a_consumer_sends_comes_back(sent in consumer_frame()) {
        let bytes = body(&sent.encode().unwrap(), SUBSCRIBE_MAX);
        prop_assert_eq!(ConsumerFrame::decode(&bytes), Ok(sent));
    }

    #[test]
    fn what_a_producer_answers_comes_back(sent in answered()) {
        let bytes = body(&sent.encode().unwrap(), ANSWERED_MAX);
        prop_assert_eq!(Answered::decode(&bytes), Ok(sent));
    }

    #[test]
    fn what_a_producer_says_between_items_comes_back(sent in control_entry()) {
        prop_assert_eq!(ControlEntry::decode(&sent.encode()[HEAD_BYTES..]), Ok(sent));
    }

    #[test]
    fn an_item_in_a_datagram_comes_back(id in number(), n in number(), item in vec(any::<u8>(), 0..99)) {
        let datagram = Bytes::from(encode_datagram(id, n, &item));
        prop_assert_eq!(decode_datagram(&datagram), Ok((id, n, Bytes::from(item))));
    }

    #[test]
    fn turned_and_cut_frames_are_refused_or_are_exactly_what_they_say(
        frame in consumer_frame(),
        answer in answered(),
        entry in control_entry(),
    ) {
        for bytes in turned_and_cut(&frame.encode().unwrap()[LENGTH_BYTES..]) {
            if let Ok(other) = ConsumerFrame::decode(&bytes) {
                prop_assert_eq!(body(&other.encode().unwrap(), SUBSCRIBE_MAX), bytes);
            }
        }
        for bytes in turned_and_cut(&answer.encode().unwrap()[LENGTH_BYTES..]) {
            if let Ok(other) = Answered::decode(&bytes) {
                prop_assert_eq!(body(&other.encode().unwrap(), ANSWERED_MAX), bytes);
            }
        }
        for bytes in turned_and_cut(&entry.encode()[HEAD_BYTES..]) {
            if let Ok(other) = ControlEntry::decode(&bytes) {
                prop_assert_eq!(&other.encode()[HEAD_BYTES..], bytes);
            }
        }
    }

    #[test]
    fn no_bytes_make_a_decoder_allocate_more_than_three_times_as_many_and_a_kilobyte(
        kind in 0..3_u8,
        rest in vec(prop_oneof![0..9_u8, Just(0x80), Just(0xff), any::<u8>()], 0..300),
    ) {
        let bytes = [&[kind], &rest[..]].concat();
        let datagram = Bytes::from(bytes.clone());
        let spent = [
            measure(|| drop(ConsumerFrame::decode(&bytes))),
            measure(|| drop(Answered::decode(&bytes))),
            measure(|| drop(ControlEntry::decode(&bytes))),
            measure(|| drop(decode_datagram(&datagram))),
        ];
        for spent in spent {
            prop_assert!(spent.bytes_max <= allowed(&bytes));
        }
    }
}

#[test]
fn a_claimed_length_costs_nothing_if_the_bytes_do_not_follow() {
    for claim in [&b"\xff\xff\xff\xff\x07"[..], b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"] {
        let ticket = [b"\x01", claim].concat();
        assert_eq!(measure(|| drop(ConsumerFrame::decode(&ticket))).bytes_max, 0);
        let name = [b"\x00\x01", claim].concat();
        assert_eq!(measure(|| drop(ConsumerFrame::decode(&name))).bytes_max, 0);
        let schema = [b"\x01\x01", claim].concat();
        assert_eq!(measure(|| drop(Answered::decode(&schema))).bytes_max, 0);
    }
    let mut claim = BytesMut::from(&b"\xff\xff\xff\x7f...."[..]);
    let mut entries = reader(usize::MAX);
    assert_eq!(measure(|| assert_eq!(entries.take(&mut claim), Ok(None))).count_total, 0);
}

#[test]
fn a_run_of_a_thousand_items_is_taken_without_an_allocation_per_item() {
    let item = [&item_head(50, 50).unwrap()[..], &[7; 50]].concat();
    let mut buffer = BytesMut::from(&item.repeat(1000)[..]);
    let mut entries = reader(50);
    let spent = measure(|| {
        let read = entries.take(&mut buffer).unwrap();
        assert!(matches!(read, Some(Read::Items { count: 1000, .. })));
    });
    // The buffer becomes one that is shared.
    assert!(spent.count_total <= 2 && spent.bytes_total <= 256, "{spent:?}");
}
