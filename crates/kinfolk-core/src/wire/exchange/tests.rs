//! Golden bytes of each message, and bytes that are none.

use super::*;
use crate::reconcile::Version;
use crate::record::Seq;
use crate::wire::LENGTH_BYTES;

fn at(prefix: &[u8]) -> Bound {
    let mut id = [0; 32];
    id[..prefix.len()].copy_from_slice(prefix);
    Bound::At(id)
}

fn listed(tag: u32, seq: u64, is_departure: bool) -> Listed {
    let version = Version { seq: Seq::new(seq), is_departure };
    Listed { tag: Tag::from_hash(u64::from(tag) << 33), version }
}

fn turn() -> Turn {
    let list = vec![listed(0x1234_5678, 300, false), listed(1, 298, true)];
    let range = |upper, said| Range { upper, said };
    Turn {
        ranges: vec![
            range(at(&[0x40]), Said::Skip),
            range(at(&[0x80, 0, 1]), Said::Sum(0x0102_0304_0506_0708)),
            range(at(&[0x81]), Said::List(list)),
            range(Bound::End, Said::List(Vec::new())),
        ],
        wants: vec![0, 1, 300],
        records: vec![Relayed { age_ms: 300, bytes: vec![b'r'; 113] }],
        rest: Rest::More,
        extensions: Extensions::none(),
    }
}

const TURN: &[u8] = b"\x04\
    \x01\x40\x00\
    \x03\x80\x00\x01\x01\x01\x02\x03\x04\x05\x06\x07\x08\
    \x01\x81\x02\x02\x24\x68\xac\xf0\xd8\x04\x00\x00\x00\x03\x03\
    \x00\x02\x00\
    \x03\x00\x00\xaa\x02\
    \x01\xac\x02\x71";

fn turn_bytes() -> Vec<u8> {
    [TURN, &[b'r'; 113], b"\x01"].concat()
}

fn greeting() -> Greeting {
    Greeting { accepts: 1 << 20, tokens: Tokens(vec![[b't'; 16]]) }
}

fn open() -> Message {
    Message::Open { salt: Salt::from_bytes([b's'; 16]), greeting: greeting(), turn: turn() }
}

fn samples() -> [(Message, Vec<u8>); 4] {
    let greeted = [&b"\x80\x80\x40\x01"[..], &[b't'; 16]].concat();
    [
        (open(), [&b"\x00"[..], &[b's'; 16], &greeted, &turn_bytes()].concat()),
        (
            Message::Accept { greeting: greeting(), turn: turn() },
            [&b"\x01"[..], &greeted, &turn_bytes()].concat(),
        ),
        (Message::Turn(turn()), [&b"\x02"[..], &turn_bytes()].concat()),
        (Message::Turn(Turn::default()), b"\x02\x00\x00\x00\x00".to_vec()),
    ]
}

/// A turn with these bytes before its rest.
fn decode_turn(before: &[u8]) -> Result<Message, FrameError> {
    Message::decode(&[b"\x02", before, b"\x00"].concat())
}

#[test]
fn messages_have_exactly_these_bytes() {
    for (message, body) in samples() {
        let frame = message.encode().unwrap();
        let len = u32::try_from(body.len()).unwrap();
        assert_eq!(frame[..LENGTH_BYTES], len.to_be_bytes());
        assert_eq!(frame[LENGTH_BYTES..], body[..]);
        assert_eq!(Message::decode(&body), Ok(message));
    }
}

/// The example in `docs/wire.md`.
#[test]
fn the_documented_turn_has_exactly_these_bytes() {
    let turn = Turn { records: Vec::new(), rest: Rest::Nothing, ..turn() };
    let fields = TURN.strip_suffix(b"\x01\xac\x02\x71").unwrap();
    let expected = [&b"\x00\x00\x00\x2b\x02"[..], fields, b"\x00\x00"].concat();
    assert_eq!(Message::Turn(turn).encode().unwrap(), expected);
}

#[test]
fn extensions_of_a_newer_peer_are_kept() {
    let message = Message::decode(b"\x02\x00\x00\x00\x00\x07\x02hi").unwrap();
    assert_eq!(message.turn().extensions.get(7), Some(&b"hi"[..]));
    assert_eq!(message.encode().unwrap()[LENGTH_BYTES..], *b"\x02\x00\x00\x00\x00\x07\x02hi");
}

#[test]
fn numbers_go_on_from_list_to_list_and_around() {
    let one = |seq| Said::List(vec![listed(7, seq, false)]);
    let seqs = [0, u64::MAX, 1, 1 << 63, 0, 1 << 62];
    let ranges = seqs.iter().zip(1..).map(|(seq, n)| Range { upper: at(&[n]), said: one(*seq) });
    let message = Message::Turn(Turn { ranges: ranges.collect(), ..Turn::default() });
    let frame = message.encode().unwrap();
    assert_eq!(Message::decode(&frame[LENGTH_BYTES..]), Ok(message));
}

#[test]
fn a_flipped_bit_is_refused_or_gives_another_message_with_exactly_these_bytes() {
    for (message, sent) in samples() {
        for bit in 0..sent.len() * 8 {
            let mut flipped = sent.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            if let Ok(other) = Message::decode(&flipped) {
                assert_ne!(other, message);
                assert_eq!(other.encode().unwrap()[LENGTH_BYTES..], flipped[..]);
            }
        }
    }
}

#[test]
fn a_message_cut_anywhere_is_refused() {
    for (_, sent) in samples() {
        for end in 0..sent.len() {
            assert!(Message::decode(&sent[..end]).is_err(), "{end}");
        }
    }
}

#[test]
fn bounds_rise_and_nothing_follows_the_end() {
    for bounds in [&b"\x02\x01\x05\x00\x01\x05\x00"[..], b"\x02\x01\x05\x00\x01\x04\x00"] {
        let refused = decode_turn(&[bounds, b"\x00\x00"].concat());
        assert!(matches!(refused, Err(FrameError::InvalidField { field: "bound", .. })));
    }
    let refused = decode_turn(b"\x02\x00\x00\x01\x05\x00\x00\x00");
    assert!(matches!(refused, Err(FrameError::InvalidField { field: "bound", .. })));
}

#[test]
fn a_bound_has_one_encoding() {
    for bound in [&b"\x01\x01\x00"[..], b"\x01\x02\x05\x00"] {
        let needless = decode_turn(&[bound, b"\x00\x00\x00"].concat());
        assert_eq!(needless, Err(FrameError::NonCanonical), "{bound:?}");
    }
    let long = [&b"\x01\x21"[..], &[1; 33], b"\x00\x00\x00"].concat();
    assert!(matches!(decode_turn(&long), Err(FrameError::InvalidField { field: "bound", .. })));
}

#[test]
fn wants_that_no_number_holds_are_refused() {
    let refused = decode_turn(b"\x00\x02\xff\xff\x03\x00\x00");
    assert!(matches!(refused, Err(FrameError::InvalidField { field: "wants", .. })));
    let falling = Message::Turn(Turn { wants: vec![5, 5], ..Turn::default() });
    assert!(falling.encode().is_err());
}

#[test]
fn counts_beyond_their_bounds_are_neither_read_nor_sent() {
    for (claim, field) in [
        (&b"\x81\x04"[..], "ranges"),
        (b"\x00\x81\x40", "wants"),
        (b"\x00\x00\x81\x04", "records"),
        (b"\x01\x00\x02\x21", "list"),
    ] {
        let refused = decode_turn(claim);
        assert!(matches!(refused, Err(FrameError::InvalidField { field: at, .. }) if at == field));
    }
    let said = Said::List(vec![listed(1, 1, false); LIST_MAX + 1]);
    let turn = Turn { ranges: vec![Range { upper: Bound::End, said }], ..Turn::default() };
    assert!(Message::Turn(turn).encode().is_err());
    let ranges = (1..=u16::try_from(LISTED_MAX / LIST_MAX + 1).unwrap()).map(|n| Range {
        upper: at(&n.to_be_bytes()),
        said: Said::List(vec![listed(1, 1, false); LIST_MAX]),
    });
    let turn = Turn { ranges: ranges.collect(), ..Turn::default() };
    let refused = Message::Turn(turn).encode();
    assert!(matches!(refused, Err(FrameError::InvalidField { field: "lists", .. })));
}

#[test]
fn records_are_as_long_and_as_old_as_records_can_be() {
    for len in [0, 112, 113, 1024, 1025] {
        let record = Relayed { age_ms: 0, bytes: vec![0; len] };
        let turn = Turn { records: vec![record], ..Turn::default() };
        assert_eq!(Message::Turn(turn).encode().is_ok(), (113..=1024).contains(&len));
    }
    let day = Duration::from_secs(86_400);
    assert_eq!(Relayed::new(Duration::MAX, &[0; 113]).age(), day);
    assert_eq!(Relayed::new(Duration::from_nanos(1), &[0; 113]).age_ms, 1);
    let old = Relayed { age_ms: 86_400_001, bytes: vec![0; 113] };
    let refused = Message::Turn(Turn { records: vec![old], ..Turn::default() }).encode();
    assert!(matches!(refused, Err(FrameError::InvalidField { field: "age", .. })));
}

#[test]
fn a_peer_has_to_accept_two_full_messages() {
    for (accepts, is_enough) in [(0, false), (ACCEPTS_MIN - 1, false), (ACCEPTS_MIN, true)] {
        let greeting = Greeting { accepts, tokens: Tokens::none() };
        let message = Message::Accept { greeting, turn: Turn::default() };
        assert_eq!(message.encode().is_ok(), is_enough);
    }
}

#[test]
fn at_most_64_tokens_are_taken() {
    assert!(Tokens::try_from(vec![[0; 16]; 64]).is_ok());
    assert_eq!(Tokens::try_from(vec![[0; 16]; 65]), Err(TooManyTokens { count: 65 }));
    let body = [&b"\x01\x80\x80\x40\x41"[..], &[0; 65 * 16], &[0; 4]].concat();
    assert!(matches!(
        Message::decode(&body),
        Err(FrameError::InvalidField { field: "tokens", .. })
    ));
}

#[test]
fn an_unknown_kind_is_refused() {
    for kind in 3..=255 {
        let refused = Message::decode(&[kind, 0, 0, 0, 0]);
        assert!(matches!(refused, Err(FrameError::InvalidField { field: "kind of message", .. })));
    }
}

#[test]
fn what_a_range_and_a_record_take_is_never_more_than_was_reckoned() {
    let empty = Message::Turn(Turn::default()).encode().unwrap().len();
    let worst = Range {
        upper: Bound::At([0xff; 32]),
        said: Said::List((0..32).map(|n| listed(n, u64::from(n % 2) << 62, true)).collect()),
    };
    for range in turn().ranges.into_iter().chain([worst]) {
        let reckoned = range.size();
        let turn = Turn { ranges: vec![range], ..Turn::default() };
        assert!(Message::Turn(turn).encode().unwrap().len() <= empty + reckoned);
    }
    let record = Relayed::new(Duration::MAX, &[0; 1024]);
    let reckoned = record.size();
    let turn = Turn { records: vec![record], ..Turn::default() };
    assert!(Message::Turn(turn).encode().unwrap().len() <= empty + reckoned);
}
