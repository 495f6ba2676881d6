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
    Answer, CONTROL_MAX, Control, DEAD_LINKS_MAX, DeadLink, Extensions, Goodbye, HEADER_MAX, Hello,
    LENGTH_BYTES, StreamHeader, StreamMode, Welcome, call_length, call_prefix, frame,
};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use proptest::sample::{Index, select};
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
    let mode = select(vec![StreamMode::Acked, StreamMode::Eager, StreamMode::Call]);
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

fn flip(bytes: &[u8], at: Index) -> Vec<u8> {
    let mut flipped = bytes.to_vec();
    let at = at.index(bytes.len() * 8);
    flipped[at / 8] ^= 1 << (at % 8);
    flipped
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
    fn a_control_frame_with_a_flipped_bit_is_refused_or_another_frame(control in control(), at: Index) {
        let flipped = flip(&control_body(&control), at);
        if let Ok(other) = Control::decode(&flipped) {
            prop_assert_eq!(control_body(&other), flipped);
            prop_assert_ne!(other, control);
        }
    }

    #[test]
    fn a_stream_header_with_a_flipped_bit_is_refused_or_another_header(header in header(), at: Index) {
        let flipped = flip(&header_body(&header), at);
        if let Ok(other) = StreamHeader::decode(&flipped) {
            prop_assert_eq!(header_body(&other), flipped);
            prop_assert_ne!(other, header);
        }
    }

    /// A cut between two extensions is a frame with fewer of them; QUIC delivers whole prefixes of a stream, and the
    /// length in front of the body is what tells a cut frame from a short one.
    #[test]
    fn a_cut_control_frame_is_refused_or_lost_only_extensions(control in control(), at: Index) {
        let sent = control_body(&control);
        let cut = &sent[..at.index(sent.len())];
        if let Ok(shorter) = Control::decode(cut) {
            prop_assert_eq!(control_body(&shorter), cut);
            prop_assert_eq!(without_extensions(shorter), without_extensions(control));
        }
    }

    #[test]
    fn a_cut_stream_header_is_refused_or_lost_only_extensions(header in header(), at: Index) {
        let sent = header_body(&header);
        if let Ok(shorter) = StreamHeader::decode(&sent[..at.index(sent.len())]) {
            prop_assert_eq!((shorter.protocol, shorter.mode), (header.protocol, header.mode));
        }
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

fn without_extensions(control: Control) -> Control {
    let none = Extensions::none();
    match control {
        Control::Hello(hello) => Control::Hello(Hello { extensions: none, ..hello }),
        Control::Welcome(welcome) => Control::Welcome(Welcome { extensions: none, ..welcome }),
        Control::Goodbye(goodbye) => Control::Goodbye(Goodbye { extensions: none, ..goodbye }),
        Control::Done(_) => Control::Done(none),
    }
}
