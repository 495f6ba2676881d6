//! What a consumer and a producer of a stream may be sent: frames, control entries, datagrams, and entries however they are cut.

use bytes::{Bytes, BytesMut};

use kinfolk_core::code::Code;
use kinfolk_core::stream::entries::RUN_MAX;
use kinfolk_core::stream::{Beginning, Entries, EntryError, Items, Read};
use kinfolk_core::wire::Extensions;
use kinfolk_core::wire::subscription::{
    ANSWERED_MAX, Accepted, Answered, CONTROL_ENTRY_MAX, Channel, ConsumerFrame, ControlEntry,
    HEAD_BYTES, Head, Resume, SUBSCRIBE_MAX, TICKET_MAX, decode_datagram, encode_datagram,
    item_head,
};

use super::{blames_the_peer, body, is_name, rebuild};

/// What a consumer sends.
pub fn consumer_frame(bytes: &[u8]) {
    match ConsumerFrame::decode(bytes) {
        Ok(frame) => {
            assert_eq!(body(&frame.encode().unwrap(), SUBSCRIBE_MAX), bytes);
            match frame {
                ConsumerFrame::Subscribe(subscribe) => {
                    assert!(is_name(subscribe.name.as_str().as_bytes()));
                    assert!(is_name(subscribe.schema.name().as_bytes()));
                    assert!(subscribe.ticket.is_none_or(|ticket| ticket.len() <= TICKET_MAX));
                    rebuild(&subscribe.extensions);
                }
                ConsumerFrame::Renew { ticket } => assert!(ticket.len() <= TICKET_MAX),
                ConsumerFrame::Taken { .. } => {}
            }
        }
        Err(error) => blames_the_peer(&error),
    }
}

/// What a producer answers.
pub fn answered(bytes: &[u8]) {
    match Answered::decode(bytes) {
        Ok(answered) => {
            assert_eq!(body(&answered.encode().unwrap(), ANSWERED_MAX), bytes);
            if let Answered::Accepted(accepted) = answered {
                rebuild(&accepted.extensions);
                begins(&accepted);
            }
        }
        Err(error) => blames_the_peer(&error),
    }
}

/// Wherever a consumer was, it either learns how items go on, or blames the producer.
fn begins(accepted: &Accepted) {
    for next in [0, accepted.next.saturating_sub(1), accepted.next, u64::MAX] {
        let resume = Resume { epoch: accepted.epoch, next };
        match resume.begins(accepted) {
            Ok(Beginning::Missed(missed)) => assert_eq!(next + missed, accepted.next),
            Ok(Beginning::Continues) => {
                assert!(next == accepted.next || accepted.channel == Channel::Latest);
            }
            Ok(Beginning::Anew) => panic!("the epoch is the same"),
            Err(error) => assert!(error.code() == Code::Violation && next > accepted.next),
        }
        let other = Resume { epoch: !accepted.epoch, next };
        assert_eq!(other.begins(accepted), Ok(Beginning::Anew));
    }
}

/// What a producer says between items, without its head.
pub fn control_entry(bytes: &[u8]) {
    match ControlEntry::decode(bytes) {
        Ok(entry) => {
            let encoded = entry.encode();
            let (head, body) = encoded.split_first_chunk::<HEAD_BYTES>().unwrap();
            assert_eq!(Head::from_bytes(*head), Head::Control(bytes.len()));
            assert_eq!(body, bytes);
        }
        Err(error) => blames_the_peer(&error),
    }
}

/// A datagram of a stream.
pub fn datagram(bytes: &[u8]) {
    match decode_datagram(&Bytes::copy_from_slice(bytes)) {
        Ok((id, number, item)) => assert_eq!(encode_datagram(id, number, &item), bytes),
        Err(error) => blames_the_peer(&error),
    }
}

/// What follows an answer. The first byte says how long items may be and on which channel they come, and the second in what pieces all
/// is read.
pub fn entries(bytes: &[u8]) {
    let Some(([how, piece], bytes)) = bytes.split_first_chunk() else { return };
    let channel = match how % 8 {
        0 => Channel::Datagram,
        1 => Channel::Latest,
        _ => Channel::Reliable,
    };
    let next = if how % 3 == 0 { u64::MAX - 2 } else { 1 };
    let accepted = Accepted { channel, epoch: 1, next, extensions: Extensions::none() };
    let item_max = usize::from(how / 8) * 2500;
    let whole = read(bytes, usize::MAX, &accepted, item_max);
    assert_eq!(read(bytes, usize::from(*piece).max(1), &accepted, item_max), whole);
    let (said, _) = whole;
    assert!(bytes.starts_with(&said.concat()));
}

/// What a reader says of these bytes, entry by entry as a producer would have sent them, and how it ends.
fn read(
    bytes: &[u8],
    piece: usize,
    accepted: &Accepted,
    item_max: usize,
) -> (Vec<Vec<u8>>, Option<EntryError>) {
    let mut reader = Entries::new(accepted, item_max);
    let (mut said, mut buffer, mut next) = (Vec::new(), BytesMut::new(), accepted.next);
    for piece in bytes.chunks(piece) {
        buffer.extend_from_slice(piece);
        loop {
            let entry = match reader.take(&mut buffer) {
                Err(error) => {
                    let code = error.code();
                    assert!(matches!(code, Code::Malformed | Code::TooLarge | Code::Violation));
                    return (said, Some(error));
                }
                Ok(None) => break,
                Ok(Some(Read::Items { first, count, bytes })) => {
                    assert!(first == next && count > 0 && accepted.channel != Channel::Datagram);
                    assert!(bytes.len() <= RUN_MAX || count == 1);
                    next += u64::from(count);
                    let before = said.len();
                    let mut slices = Items::new(bytes.clone());
                    for item in Items::new(bytes) {
                        assert_eq!(slices.next_slice(), Some(&item[..]));
                        let head = item_head(item.len(), item_max).unwrap();
                        said.push([&head, &item[..]].concat());
                    }
                    assert_eq!(said.len() - before, usize::try_from(count).unwrap());
                    continue;
                }
                Ok(Some(Read::Gap { missed })) => {
                    next += missed;
                    ControlEntry::Gap { missed }
                }
                Ok(Some(Read::Skip { superseded })) => {
                    next += superseded;
                    ControlEntry::Skip { superseded }
                }
                Ok(Some(Read::End(end))) => {
                    assert!(reader.has_ended());
                    ControlEntry::End(end)
                }
            };
            said.push(entry.encode());
            assert_eq!(reader.next(), next);
        }
        // What it asks room for is what an entry can lack, and little if little came.
        assert!(reader.needs() <= item_max.max(CONTROL_ENTRY_MAX) + HEAD_BYTES);
        assert!(reader.needs() <= buffer.len().max(RUN_MAX));
        assert!(reader.has_ended() || reader.needs() > 0);
    }
    (said, None)
}
