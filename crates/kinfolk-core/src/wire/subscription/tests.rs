//! Golden bytes of each frame, and bytes that are none.

use bytes::Bytes;

use super::*;
use crate::code::Code;
use crate::id::ProtocolNameError;
use crate::wire::LENGTH_BYTES;

fn subscribe() -> Subscribe {
    Subscribe {
        id: 300,
        name: StreamName::from_static("quotes"),
        schema: Schema::new("quote", 3),
        resume: Some(Resume { epoch: 0x1234, next: 5 }),
        ticket: Some(b"t".to_vec()),
        extensions: Extensions::none(),
    }
}

fn bare() -> Subscribe {
    Subscribe { resume: None, ticket: None, ..subscribe() }
}

fn accepted(channel: Channel) -> Answered {
    let extensions = Extensions::none();
    Answered::Accepted(Accepted { channel, epoch: 0x1234, next: 300, extensions })
}

fn consumer_frames() -> Vec<(ConsumerFrame, &'static [u8])> {
    vec![
        (
            ConsumerFrame::Subscribe(subscribe()),
            b"\x00\xac\x02\x06quotes\x05quote\x03\x01\xb4\x24\x05\x01\x01t",
        ),
        (ConsumerFrame::Subscribe(bare()), b"\x00\xac\x02\x06quotes\x05quote\x03\x00\x00"),
        (ConsumerFrame::Renew { ticket: b"new".to_vec() }, b"\x01\x03new"),
        (ConsumerFrame::Taken { through: 300 }, b"\x02\xac\x02"),
    ]
}

fn answers() -> Vec<(Answered, &'static [u8])> {
    vec![
        (accepted(Channel::Reliable), b"\x00\x00\xb4\x24\xac\x02"),
        (accepted(Channel::Latest), b"\x00\x01\xb4\x24\xac\x02"),
        (accepted(Channel::Datagram), b"\x00\x02\xb4\x24\xac\x02"),
        (Answered::Refused(Refusal::NoSuchStream), b"\x01\x00"),
        (
            Answered::Refused(Refusal::Schema { offered: Schema::new("quote", 4) }),
            b"\x01\x01\x05quote\x04",
        ),
        (Answered::Refused(Refusal::NotAllowed), b"\x01\x02"),
        (Answered::Refused(Refusal::BadTicket), b"\x01\x03"),
        (Answered::Refused(Refusal::NoCapacity), b"\x01\x04"),
        (Answered::Refused(Refusal::UnknownPeer), b"\x01\x05"),
        (Answered::Refused(Refusal::Ended), b"\x01\x06"),
        (Answered::Refused(Refusal::Unchecked), b"\x01\x07"),
    ]
}

fn control_entries() -> Vec<(ControlEntry, &'static [u8])> {
    vec![
        (ControlEntry::Gap { missed: 300 }, b"\x03\x00\x00\x80\x00\xac\x02"),
        (ControlEntry::Skip { superseded: 1 }, b"\x02\x00\x00\x80\x01\x01"),
        (ControlEntry::End(StreamEnd::Finished), b"\x02\x00\x00\x80\x02\x00"),
        (ControlEntry::End(StreamEnd::TooSlow), b"\x02\x00\x00\x80\x02\x01"),
        (ControlEntry::End(StreamEnd::NotAllowed), b"\x02\x00\x00\x80\x02\x02"),
        (ControlEntry::End(StreamEnd::TicketExpired), b"\x02\x00\x00\x80\x02\x03"),
        (ControlEntry::End(StreamEnd::ShuttingDown), b"\x02\x00\x00\x80\x02\x04"),
        (ControlEntry::End(StreamEnd::Misbehaved), b"\x02\x00\x00\x80\x02\x05"),
    ]
}

/// The frame is this body behind its length.
fn check_frame(frame: &[u8], body: &[u8]) {
    let len = u32::try_from(body.len()).unwrap();
    assert_eq!(frame, [&len.to_be_bytes(), body].concat());
}

/// The first of each are the examples in `docs/wire.md`.
#[test]
fn frames_have_exactly_these_bytes() {
    for (frame, body) in consumer_frames() {
        check_frame(&frame.encode().unwrap(), body);
        assert_eq!(ConsumerFrame::decode(body), Ok(frame));
    }
    for (answered, body) in answers() {
        check_frame(&answered.encode().unwrap(), body);
        assert_eq!(Answered::decode(body), Ok(answered));
    }
}

#[test]
fn entries_and_datagrams_have_exactly_these_bytes() {
    for (entry, bytes) in control_entries() {
        assert_eq!(entry.encode(), bytes);
        let (head, body) = bytes.split_first_chunk().unwrap();
        assert_eq!(Head::from_bytes(*head), Head::Control(body.len()));
        assert_eq!(ControlEntry::decode(body), Ok(entry));
    }
    assert_eq!(item_head(0x1_0203, ITEM_MAX), Ok([3, 2, 1, 0]));
    assert_eq!(Head::from_bytes([3, 2, 1, 0]), Head::Item(0x1_0203));
    let datagram = Bytes::from(encode_datagram(300, 5, b"item"));
    assert_eq!(datagram, &b"\xac\x02\x05item"[..]);
    assert_eq!(decode_datagram(&datagram), Ok((300, 5, Bytes::from_static(b"item"))));
}

#[test]
fn a_flipped_bit_is_refused_or_gives_another_frame_with_exactly_these_bytes() {
    let flips = |bytes: &[u8]| -> Vec<Vec<u8>> {
        let flip = |at: usize| {
            let mut flipped = bytes.to_vec();
            flipped[at / 8] ^= 1 << (at % 8);
            flipped
        };
        (0..bytes.len() * 8).map(flip).collect()
    };
    for (frame, body) in consumer_frames() {
        for flipped in flips(body) {
            if let Ok(other) = ConsumerFrame::decode(&flipped) {
                assert_ne!(other, frame);
                check_frame(&other.encode().unwrap(), &flipped);
            }
        }
    }
    for (answered, body) in answers() {
        for flipped in flips(body) {
            if let Ok(other) = Answered::decode(&flipped) {
                assert_ne!(other, answered);
                check_frame(&other.encode().unwrap(), &flipped);
            }
        }
    }
    for (entry, bytes) in control_entries() {
        for flipped in flips(&bytes[HEAD_BYTES..]) {
            if let Ok(other) = ControlEntry::decode(&flipped) {
                assert_ne!(other, entry);
                assert_eq!(other.encode()[HEAD_BYTES..], flipped);
            }
        }
    }
}

#[test]
fn a_frame_cut_anywhere_is_refused() {
    for (_, body) in consumer_frames() {
        for end in 0..body.len() {
            assert!(ConsumerFrame::decode(&body[..end]).is_err(), "{body:?} {end}");
        }
    }
    for (_, body) in answers() {
        for end in 0..body.len() {
            assert!(Answered::decode(&body[..end]).is_err(), "{body:?} {end}");
        }
    }
    for (_, bytes) in control_entries() {
        for end in HEAD_BYTES..bytes.len() {
            assert!(ControlEntry::decode(&bytes[HEAD_BYTES..end]).is_err(), "{bytes:?} {end}");
        }
    }
}

#[test]
fn frames_that_may_grow_keep_what_a_newer_peer_adds_and_others_have_nothing_behind() {
    let body = b"\x00\x01\x01q\x01q\x01\x00\x00\x07\x02hi";
    let Ok(ConsumerFrame::Subscribe(subscribe)) = ConsumerFrame::decode(body) else { panic!() };
    assert_eq!(subscribe.extensions.get(7), Some(&b"hi"[..]));
    let Ok(Answered::Accepted(accepted)) = Answered::decode(b"\x00\x00\x01\x01\x07\x02hi") else {
        panic!()
    };
    assert_eq!(accepted.extensions.get(7), Some(&b"hi"[..]));
    for body in [&b"\x01\x01t\x07\x00"[..], b"\x02\x01\x07\x00"] {
        assert_eq!(ConsumerFrame::decode(body), Err(FrameError::NonCanonical));
    }
    assert_eq!(Answered::decode(b"\x01\x02\x07\x00"), Err(FrameError::NonCanonical));
    assert_eq!(ControlEntry::decode(b"\x00\x01\x00"), Err(FrameError::NonCanonical));
}

#[test]
fn needless_bytes_in_a_number_are_refused() {
    assert_eq!(ConsumerFrame::decode(b"\x02\x81\x00"), Err(FrameError::NonCanonical));
    assert_eq!(Answered::decode(b"\x00\x00\x81\x00\x01"), Err(FrameError::NonCanonical));
    assert_eq!(ControlEntry::decode(b"\x00\x81\x00"), Err(FrameError::NonCanonical));
    for datagram in [&b"\x81\x00\x01item"[..], b"\x01\x81\x00item"] {
        let refused = decode_datagram(&Bytes::from_static(datagram));
        assert_eq!(refused, Err(FrameError::NonCanonical));
    }
}

#[test]
fn names_are_checked() {
    let source = ProtocolNameError::NotGraphic { byte: b' ' };
    let refused = ConsumerFrame::decode(b"\x00\x01\x01 \x01q\x01\x00\x00").unwrap_err();
    assert_eq!(refused, FrameError::InvalidName { field: "stream", source });
    assert_eq!(refused.code(), Code::Malformed);
    let refused = ConsumerFrame::decode(b"\x00\x01\x01q\x01 \x01\x00\x00");
    assert_eq!(refused, Err(FrameError::InvalidName { field: "schema", source }));
    let source = ProtocolNameError::Empty;
    let refused = Answered::decode(b"\x01\x01\x00\x01");
    assert_eq!(refused, Err(FrameError::InvalidName { field: "schema", source }));
}

#[test]
fn a_ticket_has_at_most_4096_bytes() {
    for (len, passes) in [(0, true), (TICKET_MAX, true), (TICKET_MAX + 1, false)] {
        let ticket = vec![7; len];
        let renew = ConsumerFrame::Renew { ticket: ticket.clone() };
        let subscribe = Subscribe { ticket: Some(ticket.clone()), ..subscribe() };
        for frame in [renew, ConsumerFrame::Subscribe(subscribe)] {
            assert_eq!(frame.encode().is_ok(), passes);
            if passes {
                assert_eq!(
                    ConsumerFrame::decode(&frame.encode().unwrap()[LENGTH_BYTES..]),
                    Ok(frame)
                );
            }
        }
        let mut body = postcard::to_allocvec(&(1_u8, ticket.as_slice())).unwrap();
        assert_eq!(ConsumerFrame::decode(&body).is_ok(), passes);
        body.truncate(3);
        assert!(ConsumerFrame::decode(&body).is_err() || len == 0);
    }
}

#[test]
fn the_largest_frames_fit() {
    let name = "n".repeat(64);
    let schema = Schema::try_new(&name, u32::MAX).unwrap();
    let largest = ConsumerFrame::Subscribe(Subscribe {
        id: u64::MAX,
        name: StreamName::new(&name).unwrap(),
        schema: schema.clone(),
        resume: Some(Resume { epoch: u64::MAX, next: u64::MAX }),
        ticket: Some(vec![7; TICKET_MAX]),
        extensions: Extensions::none(),
    });
    assert!(largest.encode().unwrap().len() < SUBSCRIBE_MAX - 3000);
    let refused = Answered::Refused(Refusal::Schema { offered: schema });
    assert!(refused.encode().unwrap().len() < ANSWERED_MAX - 900);
}

#[test]
fn unknown_kinds_and_values_are_refused() {
    for kind in 3..=255 {
        assert!(ConsumerFrame::decode(&[kind, 1, 1]).is_err());
        assert!(ControlEntry::decode(&[kind, 1]).is_err());
        assert!(Answered::decode(&[0, kind, 1, 1]).is_err());
    }
    for value in 8..=255 {
        assert!(Answered::decode(&[1, value]).is_err());
        assert!(ControlEntry::decode(&[2, value]).is_err());
    }
    assert!(Answered::decode(&[2, 0]).is_err());
    assert!(ControlEntry::decode(&[2, 6]).is_err() && ControlEntry::decode(&[2, 7]).is_err());
}

#[test]
fn an_item_as_long_as_allowed_has_a_head_and_a_longer_one_has_none() {
    assert_eq!(item_head(0, 0), Ok([0; 4]));
    assert_eq!(item_head(10, 10), Ok([10, 0, 0, 0]));
    assert_eq!(item_head(11, 10), Err(FrameError::TooLarge { len: 11, max: 10 }));
    assert_eq!(item_head(ITEM_MAX, usize::MAX), Ok([0xff, 0xff, 0xff, 0x7f]));
    let (len, max) = (ITEM_MAX + 1, ITEM_MAX);
    assert_eq!(item_head(len, usize::MAX), Err(FrameError::TooLarge { len, max }));
}

#[test]
fn a_gap_or_skip_of_nothing_is_not_said() {
    for nothing in [ControlEntry::Gap { missed: 0 }, ControlEntry::Skip { superseded: 0 }] {
        assert_eq!(nothing.encode(), b"");
    }
    for body in [b"\x00\x00", b"\x01\x00"] {
        let refused = ControlEntry::decode(body);
        assert!(matches!(refused, Err(FrameError::InvalidField { came: 0, .. })));
    }
}

#[test]
fn an_item_in_a_datagram_may_be_empty_and_shares_its_memory() {
    let longest = encode_datagram(u64::MAX, u64::MAX, b"");
    assert_eq!(longest.len(), DATAGRAM_PREFIX_MAX);
    assert_eq!(decode_datagram(&longest.into()), Ok((u64::MAX, u64::MAX, Bytes::new())));
    let datagram = Bytes::from(encode_datagram(1, 2, b"item"));
    let (_, _, item) = decode_datagram(&datagram).unwrap();
    assert_eq!(item.as_ptr(), datagram[2..].as_ptr());
    for cut in [&b""[..], b"\xac", b"\xac\x02", b"\xac\x02\x80"] {
        let refused = decode_datagram(&Bytes::from_static(cut));
        assert!(matches!(refused, Err(FrameError::Truncated { .. })), "{cut:?}");
    }
}

#[test]
fn names_for_metrics_are_told_apart_and_finals_are_those_that_only_a_change_heals() {
    let refusals = answers().into_iter().filter_map(|(answered, _)| match answered {
        Answered::Refused(refusal) => Some(refusal),
        Answered::Accepted(_) => None,
    });
    let (finals, others): (Vec<_>, Vec<_>) = refusals.partition(Refusal::is_final);
    assert_eq!(others, [Refusal::NoCapacity, Refusal::UnknownPeer, Refusal::Unchecked]);
    let names: std::collections::BTreeSet<_> =
        finals.iter().chain(&others).map(Refusal::name).collect();
    assert_eq!(names.len(), 8);
    let ends = control_entries().into_iter().filter_map(|(entry, _)| match entry {
        ControlEntry::End(end) => Some(end),
        _ => None,
    });
    let (finals, others): (Vec<_>, Vec<_>) = ends.partition(|end| end.is_final());
    assert_eq!(finals, [StreamEnd::Finished, StreamEnd::NotAllowed, StreamEnd::TicketExpired]);
    assert_eq!(others.iter().map(|end| end.name()).collect::<Vec<_>>().len(), 3);
}
