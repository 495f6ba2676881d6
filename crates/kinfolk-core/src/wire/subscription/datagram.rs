//! One item in one datagram: the subscription that it is for, its number, and its bytes.
//!
//! The subscription comes first, so that a datagram for one that is over costs a look at its first bytes. Datagrams are
//! lost, doubled and reordered on the way; what a number means for a consumer is not decided here.

use bytes::{Buf, Bytes};

use super::entry::put_varint;
use crate::wire::frame::{self, FrameError, Reader};

/// The most bytes before the item: two numbers of ten bytes.
pub const DATAGRAM_PREFIX_MAX: usize = 20;

/// The datagram that brings this item to the subscription of this id.
pub fn encode_datagram(id: u64, number: u64, item: &[u8]) -> Vec<u8> {
    let mut datagram = Vec::with_capacity(DATAGRAM_PREFIX_MAX.saturating_add(item.len()));
    put_varint(id, &mut datagram);
    put_varint(number, &mut datagram);
    datagram.extend_from_slice(item);
    datagram
}

/// The id of the subscription, the number of the item, and the item, which shares the memory of the datagram.
///
/// # Errors
///
/// [`FrameError`] says what is wrong with the bytes.
pub fn decode_datagram(datagram: &Bytes) -> Result<(u64, u64, Bytes), FrameError> {
    let mut reader = Reader::new(datagram);
    let id = reader.field("subscription")?;
    let number = reader.field("item number")?;
    let prefix = datagram.len().saturating_sub(reader.left());
    let mut canonical = Vec::with_capacity(DATAGRAM_PREFIX_MAX);
    put_varint(id, &mut canonical);
    put_varint(number, &mut canonical);
    frame::check_canonical(datagram.get(..prefix).unwrap_or_default(), &canonical)?;
    let mut item = datagram.clone();
    item.advance(prefix);
    Ok((id, number, item))
}
