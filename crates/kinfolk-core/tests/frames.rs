//! Properties of every frame, whatever its fields: what is sent comes back, what comes back is exactly what was sent,
//! and no bytes make a decoder panic.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a test may fail this way"
)]

use std::time::Duration;

use iroh_base::SecretKey;
use kinfolk_core::code::Code;
use kinfolk_core::id::{Incarnation, LinkId, ProtocolName};
use kinfolk_core::wire::{
    Answer, CALL_MAX_DEFAULT, CONTROL_MAX, Control, DEAD_LINKS_MAX, DeadLink, Extensions, Goodbye,
    HEADER_MAX, Hello, LENGTH_BYTES, StreamHeader, StreamMode, Welcome, call_length, call_prefix,
    frame,
};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::FileFailurePersistence;

/// Failures are kept beside this file, so that they are tried first by everyone from then on.
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

fn incarnation() -> impl Strategy<Value = Incarnation> {
    number().prop_map(Incarnation::new)
}

fn extensions() -> impl Strategy<Value = Extensions> {
    btree_map(any::<u32>(), vec(any::<u8>(), 0..40), 0..4).prop_map(|all| {
        let with = |sum: Extensions, (kind, bytes): (u32, Vec<u8>)| sum.with(kind, &bytes).unwrap();
        all.into_iter().fold(Extensions::none(), with)
    })
}

fn code() -> impl Strategy<Value = Code> {
    (1..=255_u64).prop_map(Code::from_wire)
}

fn dead_link() -> impl Strategy<Value = DeadLink> {
    (any::<bool>(), incarnation(), number()).prop_map(|(mine, incarnation, n)| DeadLink {
        mine,
        incarnation,
        n,
    })
}

fn control() -> impl Strategy<Value = Control> {
    let dead = vec(dead_link(), 0..=DEAD_LINKS_MAX);
    let hello = (any::<u16>(), incarnation(), number(), dead, extensions()).prop_map(
        |(minor, incarnation, n, dead, extensions)| {
            Control::Hello(Hello { minor, incarnation, n, dead, extensions })
        },
    );
    let welcome = (any::<u16>(), incarnation(), any::<u32>(), extensions()).prop_map(
        |(minor, incarnation, call_max, extensions)| {
            Control::Welcome(Welcome { minor, incarnation, call_max, extensions })
        },
    );
    let goodbye = (code(), number(), any::<u32>(), extensions()).prop_map(
        |(code, served, within_ms, extensions)| {
            Control::Goodbye(Goodbye { code, served, within_ms, extensions })
        },
    );
    let done = extensions().prop_map(Control::Done);
    prop_oneof![4 => hello, 2 => welcome, 2 => goodbye, 1 => done]
}

fn header() -> impl Strategy<Value = StreamHeader> {
    let protocol = "[!-~]{1,64}".prop_map(|text| ProtocolName::new(text).unwrap());
    let mode = select(vec![
        StreamMode::Acked,
        StreamMode::Eager,
        StreamMode::Call,
        StreamMode::CallStream,
    ]);
    (protocol, mode, extensions()).prop_map(|(protocol, mode, extensions)| StreamHeader {
        protocol,
        mode,
        extensions,
    })
}

/// The body of a frame, after a check that the prefix says how long it is.
fn body(frame: &[u8], max: usize) -> Vec<u8> {
    let (prefix, body) = frame.split_first_chunk::<LENGTH_BYTES>().unwrap();
    assert_eq!(frame::length(*prefix, max), Ok(body.len()));
    body.to_vec()
}

fn control_body(control: &Control) -> Vec<u8> {
    body(&control.encode().unwrap(), CONTROL_MAX)
}

fn header_body(header: &StreamHeader) -> Vec<u8> {
    body(&header.encode().unwrap(), HEADER_MAX)
}

/// These bytes with one bit turned, for each of their bits.
fn flips(bytes: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    (0..bytes.len() * 8).map(|at| {
        let mut flipped = bytes.to_vec();
        flipped[at / 8] ^= 1 << (at % 8);
        flipped
    })
}

/// These bytes cut at each place.
fn cuts(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    (0..bytes.len()).map(|end| &bytes[..end])
}

fn prefix_of(bytes: &[u8]) -> [u8; LENGTH_BYTES] {
    *bytes.first_chunk().unwrap()
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_control_frame_comes_back_as_it_was_sent(control in control()) {
        prop_assert_eq!(Control::decode(&control_body(&control)), Ok(control));
    }

    #[test]
    fn a_stream_header_comes_back_as_it_was_sent(header in header()) {
        prop_assert_eq!(StreamHeader::decode(&header_body(&header)), Ok(header));
    }

    #[test]
    fn arbitrary_bytes_are_refused_or_encode_to_themselves(bytes in vec(any::<u8>(), 0..2048)) {
        if let Ok(control) = Control::decode(&bytes) {
            prop_assert_eq!(control_body(&control), bytes.as_slice());
        }
        if let Ok(header) = StreamHeader::decode(&bytes) {
            prop_assert_eq!(header_body(&header), bytes.as_slice());
        }
    }

    /// Random bytes rarely get past the first fields; few and small bytes get further.
    #[test]
    fn small_bytes_are_refused_or_encode_to_themselves(
        bytes in vec(select(vec![0, 1, 2, 3, 4, 8, 9, 0x21, 0x7f, 0x80, 0x81, 0xff]), 0..24),
    ) {
        if let Ok(control) = Control::decode(&bytes) {
            prop_assert_eq!(control_body(&control), bytes.as_slice());
        }
        if let Ok(header) = StreamHeader::decode(&bytes) {
            prop_assert_eq!(header_body(&header), bytes.as_slice());
        }
    }

    #[test]
    fn a_list_of_extensions_comes_back_as_it_was_sent(all in btree_map(any::<u32>(), vec(any::<u8>(), 0..300), 0..40)) {
        let with = |sum: Extensions, (kind, bytes): (&u32, &Vec<u8>)| sum.with(*kind, bytes).unwrap();
        let sent = all.iter().fold(Extensions::none(), with);
        let came = match Control::decode(&control_body(&Control::Done(sent))) {
            Ok(Control::Done(extensions)) => extensions,
            other => return Err(TestCaseError::fail(format!("{other:?}"))),
        };
        let read: Vec<(u32, Vec<u8>)> = came.iter().map(|(kind, bytes)| (kind, bytes.to_vec())).collect();
        prop_assert_eq!(read, all.clone().into_iter().collect::<Vec<_>>());
        prop_assert!(all.iter().all(|(kind, bytes)| came.get(*kind) == Some(bytes)));
    }

    /// One byte more than fits is refused by the sender and, from one who does not care, by the receiver.
    #[test]
    fn a_frame_may_be_as_long_as_its_limit_and_no_longer(control in control(), header in header()) {
        let control = without_extensions(control);
        let fields = control_body(&control).len();
        for (room, fits) in [(CONTROL_MAX - fields, true), (CONTROL_MAX - fields + 1, false)] {
            let long = with_extensions(control.clone(), filling(room));
            prop_assert_eq!(long.encode().is_ok(), fits);
            let body = [control_body(&control), filling_bytes(room)].concat();
            prop_assert_eq!(Control::decode(&body).is_ok(), fits);
        }
        let header = StreamHeader { extensions: Extensions::none(), ..header };
        let fields = header_body(&header).len();
        for (room, fits) in [(HEADER_MAX - fields, true), (HEADER_MAX - fields + 1, false)] {
            let long = StreamHeader { extensions: filling(room), ..header.clone() };
            prop_assert_eq!(long.encode().is_ok(), fits);
            let body = [header_body(&header), filling_bytes(room)].concat();
            prop_assert_eq!(StreamHeader::decode(&body).is_ok(), fits);
        }
    }

    #[test]
    fn a_text_is_a_protocol_name_if_it_is_short_graphic_ascii(text in prop_oneof!["\\PC{0,70}", "[ -~]{0,70}", "[!-~]{60,68}"]) {
        let is_valid = (1..=64).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
        let name = ProtocolName::new(&text);
        prop_assert_eq!(name.is_ok(), is_valid);
        prop_assert!(name.is_ok_and(|name| name.as_str() == text) == is_valid);
    }

    #[test]
    fn no_length_passes_that_is_empty_or_above_the_limit(prefix: [u8; LENGTH_BYTES], max in 1..100_000_usize) {
        if let Ok(len) = frame::length(prefix, max) {
            prop_assert!((1..=max).contains(&len));
        }
    }

    #[test]
    fn a_call_prefix_says_the_length_that_was_sent(len in 0..200_000_usize, max in 0..200_000_u32) {
        match call_prefix(len, max) {
            Ok(prefix) => prop_assert_eq!(call_length(prefix, max), Ok(len)),
            Err(error) => prop_assert_eq!(call_length(u32::try_from(len).unwrap().to_be_bytes(), max), Err(error)),
        }
    }

    #[test]
    fn every_code_number_is_kept_or_says_nothing(number: u64) {
        let code = Code::from_wire(number);
        let kept = u64::from(code.to_wire()) == number;
        prop_assert!(kept || code == Code::Unspecified);
        prop_assert_ne!(Answer::Refuse(code).to_byte(), Answer::Ack.to_byte());
    }

    #[test]
    fn a_drain_time_survives_up_to_its_limit(ms in 0..10_000_000_u64) {
        let within = Duration::from_millis(ms);
        prop_assert_eq!(Goodbye::new(Code::Ok, 0, within).within(), within.min(Goodbye::WITHIN_MAX));
    }

    #[test]
    fn a_dead_link_means_the_same_link_on_both_ends(
        keys in [any::<[u8; 32]>(), any::<[u8; 32]>()],
        mine: bool,
        incarnation in incarnation(),
        n: u64,
    ) {
        let [sender, receiver] = keys.map(|key| SecretKey::from_bytes(&key).public());
        let dialler = if mine { sender } else { receiver };
        let link = LinkId { dialler, incarnation, n };
        prop_assert_eq!(DeadLink::of(&link, &sender).link(sender, receiver), link);
    }
}

/// Each frame is changed in hundreds of ways, so fewer frames will do.
fn few() -> ProptestConfig {
    ProptestConfig { cases: config().cases / 8, ..config() }
}

proptest! {
    #![proptest_config(few())]

    #[test]
    fn a_control_frame_with_any_bit_flipped_is_refused_or_another_frame(control in control()) {
        for flipped in flips(&control_body(&control)) {
            if let Ok(other) = Control::decode(&flipped) {
                prop_assert_eq!(control_body(&other), flipped);
                prop_assert_ne!(&other, &control);
            }
        }
    }

    #[test]
    fn a_stream_header_with_any_bit_flipped_is_refused_or_another_header(header in header()) {
        for flipped in flips(&header_body(&header)) {
            if let Ok(other) = StreamHeader::decode(&flipped) {
                prop_assert_eq!(header_body(&other), flipped);
                prop_assert_ne!(&other, &header);
            }
        }
    }

    /// A cut between two extensions is a frame with fewer of them; QUIC delivers whole prefixes of a stream, and the
    /// length in front of the body is what tells a cut frame from a short one.
    #[test]
    fn a_control_frame_cut_anywhere_is_refused_or_lost_only_extensions(control in control()) {
        for cut in cuts(&control_body(&control)) {
            if let Ok(shorter) = Control::decode(cut) {
                prop_assert_eq!(control_body(&shorter), cut);
                prop_assert_eq!(without_extensions(shorter), without_extensions(control.clone()));
            }
        }
    }

    #[test]
    fn a_stream_header_cut_anywhere_is_refused_or_lost_only_extensions(header in header()) {
        for cut in cuts(&header_body(&header)) {
            if let Ok(shorter) = StreamHeader::decode(cut) {
                prop_assert_eq!(header_body(&shorter), cut);
                prop_assert_eq!((&shorter.protocol, shorter.mode), (&header.protocol, header.mode));
            }
        }
    }

    #[test]
    fn a_call_length_with_any_bit_flipped_is_refused_or_another_length(len in 0..=CALL_MAX_DEFAULT) {
        let sent = call_prefix(len.try_into().unwrap(), CALL_MAX_DEFAULT).unwrap();
        for flipped in flips(&sent) {
            if let Ok(other) = call_length(prefix_of(&flipped), CALL_MAX_DEFAULT) {
                prop_assert_ne!(Ok(other), len.try_into());
                prop_assert_eq!(call_prefix(other, CALL_MAX_DEFAULT), Ok(prefix_of(&flipped)));
            }
        }
    }

    #[test]
    fn a_frame_length_with_any_bit_flipped_is_refused_or_another_length(len in 1..=CONTROL_MAX) {
        let sent = frame::encode_frame(&vec![0; len], CONTROL_MAX).unwrap();
        for flipped in flips(&prefix_of(&sent)) {
            if let Ok(other) = frame::length(prefix_of(&flipped), CONTROL_MAX) {
                prop_assert_ne!(other, len);
                let encoded = frame::encode_frame(&vec![0; other], CONTROL_MAX).unwrap();
                prop_assert_eq!(prefix_of(&encoded), prefix_of(&flipped));
            }
        }
    }
}

fn with_extensions(control: Control, extensions: Extensions) -> Control {
    match control {
        Control::Hello(hello) => Control::Hello(Hello { extensions, ..hello }),
        Control::Welcome(welcome) => Control::Welcome(Welcome { extensions, ..welcome }),
        Control::Goodbye(goodbye) => Control::Goodbye(Goodbye { extensions, ..goodbye }),
        Control::Done(_) => Control::Done(extensions),
    }
}

fn without_extensions(control: Control) -> Control {
    with_extensions(control, Extensions::none())
}

/// One extension of exactly this many bytes: kind 0, a length that takes two bytes in these sizes, and what it holds.
fn filling(room: usize) -> Extensions {
    Extensions::none().with(0, &vec![7; room - 3]).unwrap()
}

/// The same as a peer would write it that respects no limit.
fn filling_bytes(room: usize) -> Vec<u8> {
    let len = u16::try_from(room - 3).unwrap();
    let [low, high] = [len & 0x7f | 0x80, len >> 7].map(|byte| u8::try_from(byte).unwrap());
    [vec![0, low, high], vec![7; len.into()]].concat()
}
