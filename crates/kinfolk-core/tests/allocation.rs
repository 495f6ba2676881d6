//! What a decoder may allocate, whatever it is given: three times the bytes that came, and a kilobyte. Bodies have at most 16 KiB, and are
//! only read after their length was checked; so no frame costs more than 64 KiB, and no claim costs anything.
//!
//! Three times: the list of extensions doubles as it grows, and the frame is encoded again to see whether it was canonical.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a test may fail this way"
)]

use allocation_counter::measure;
use kinfolk_core::id::ProtocolName;
use kinfolk_core::wire::{
    CALL_MAX_DEFAULT, CONTROL_MAX, Control, HEADER_MAX, LENGTH_BYTES, StreamHeader, call_length,
    call_prefix, frame,
};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::FileFailurePersistence;

/// What one frame may cost while it is decoded, its body not counted.
const FRAME_MAX: u64 = 64 * 1024;

fn allowed(body: &[u8]) -> u64 {
    u64::try_from(3 * body.len() + 1024).unwrap().min(FRAME_MAX)
}

/// The most bytes allocated at one time.
fn peak(run: impl FnOnce()) -> u64 {
    measure(run).bytes_max
}

fn peak_of_control(body: &[u8]) -> u64 {
    peak(|| drop(Control::decode(body)))
}

fn peak_of_header(body: &[u8]) -> u64 {
    peak(|| drop(StreamHeader::decode(body)))
}

/// Largest numbers as varints, to be claimed where a count or length is read.
const CLAIMS: [&[u8]; 4] = [
    b"\x80\x80\x01",
    b"\xff\xff\xff\xff\x07",
    b"\x80\x80\x80\x80\x10",
    b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
];

#[test]
fn a_claimed_length_costs_nothing_until_it_was_checked() {
    for claim in [0, 1, 1024, 1025, 16 * 1024, 16 * 1024 + 1, CALL_MAX_DEFAULT, u32::MAX] {
        let prefix: [u8; LENGTH_BYTES] = claim.to_be_bytes();
        let claim = usize::try_from(claim).unwrap();
        let spent = peak(|| {
            let _ = frame::length(prefix, CONTROL_MAX);
            let _ = frame::length(prefix, HEADER_MAX);
            let _ = call_length(prefix, CALL_MAX_DEFAULT);
            let _ = call_prefix(claim, CALL_MAX_DEFAULT);
        });
        assert_eq!(spent, 0, "{claim}");
    }
}

#[test]
fn a_count_or_length_inside_a_frame_costs_nothing_if_the_bytes_do_not_follow() {
    for claim in CLAIMS {
        let dead_links = [&b"\x00\x00\x01\x01"[..], claim].concat();
        assert_eq!(peak_of_control(&dead_links), 0);
        let extension = [&b"\x03\x05"[..], claim].concat();
        assert_eq!(peak_of_control(&extension), 0);
        assert_eq!(peak_of_header(claim), 0);
    }
}

#[test]
fn the_largest_frames_stay_within_their_bounds() {
    let hello = [&b"\x00\x00\x01\x01\x08"[..], &[1; 24]].concat();
    let fields: [&[u8]; 4] = [&hello, b"\x01\x00\x01\x01", b"\x02\x01\x01\x01", b"\x03"];
    for fields in fields {
        // Just above a power of two, a doubling buffer is emptiest.
        for len in [8 * 1024 + 40, CONTROL_MAX] {
            for body in filled(fields, len) {
                assert!(Control::decode(&body).is_ok());
                let spent = peak_of_control(&body);
                assert!((1..=allowed(&body)).contains(&spent), "{spent} for {len} bytes");
            }
        }
    }
    for len in [512 + 40, HEADER_MAX] {
        for body in filled(b"\x06echo/1\x00", len) {
            assert!(StreamHeader::decode(&body).is_ok());
            let spent = peak_of_header(&body);
            assert!((1..=allowed(&body)).contains(&spent), "{spent} for {len} bytes");
        }
    }
}

/// These fields and extensions up to this length: one long one, and as many as fit.
fn filled(fields: &[u8], len: usize) -> [Vec<u8>; 2] {
    let room = len - fields.len();
    let size = u16::try_from(room - 3).unwrap();
    let [low, high] = [size & 0x7f | 0x80, size >> 7].map(|byte| u8::try_from(byte).unwrap());
    let one = [fields, &[0, low, high], &vec![7; room - 3]].concat();
    let mut many = fields.to_vec();
    for kind in 0_u16..0x4000 {
        let [low, high] = [kind & 0x7f, kind >> 7].map(|byte| u8::try_from(byte).unwrap());
        let extension = if high == 0 { vec![low, 0] } else { vec![low | 0x80, high, 0] };
        if many.len() + extension.len() > len {
            break;
        }
        many.extend(extension);
    }
    [one, many]
}

fn config() -> ProptestConfig {
    ProptestConfig {
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..ProptestConfig::default()
    }
}

/// Bytes that get further than random ones: small numbers, and claims.
fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let small = select(vec![0, 1, 2, 3, 4, 8, 9, 0x21, 0x40, 0x7f]).prop_map(|byte| vec![byte]);
    let claim = select(CLAIMS.to_vec()).prop_map(<[u8]>::to_vec);
    let any = vec(any::<u8>(), 0..200);
    vec(prop_oneof![8 => small, 1 => claim, 1 => any], 0..40).prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn no_bytes_make_a_decoder_allocate_more_than_three_times_as_many_and_a_kilobyte(bytes in bytes()) {
        prop_assert!(peak_of_control(&bytes) <= allowed(&bytes));
        prop_assert!(peak_of_header(&bytes) <= allowed(&bytes));
        let name = peak(|| drop(postcard::from_bytes::<ProtocolName>(&bytes)));
        prop_assert!(name <= allowed(&bytes));
    }

    #[test]
    fn what_a_decoder_returns_holds_at_most_twice_the_bytes_that_came_and_half_a_kilobyte(bytes in bytes()) {
        let mut control = None;
        let held = measure(|| control = Control::decode(&bytes).ok()).bytes_current;
        prop_assert!(held <= i64::try_from(2 * bytes.len() + 512).unwrap());
        drop(control);
    }
}
