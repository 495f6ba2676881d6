//! Reads what a producer sends once it has accepted: runs of items, and what is said between them.
//!
//! [`Entries`] takes whole entries from the front of a buffer that the caller fills, as it comes and however it is cut.
//! A run of items is one piece of the buffer's memory, heads included: one pass looks at each head, nothing is copied
//! and nothing allocated per item. [`Items`] walks a run later, wherever the items are decoded. Here, too, a consumer
//! that subscribes again learns [what it missed](Resume::begins). What an item means is never looked at.

use bytes::{Bytes, BytesMut};
use thiserror::Error;

use crate::code::Code;
use crate::wire::FrameError;
use crate::wire::subscription::{
    Accepted, CONTROL_ENTRY_MAX, Channel, ControlEntry, HEAD_BYTES, Head, Resume, StreamEnd,
};

/// The most bytes of a run, heads included, unless its one item is longer: a batch that fits a processor's second-level
/// cache and can be handed on before the next one is looked at.
pub const RUN_MAX: usize = 64 * 1024;

/// What a consumer reads next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Read {
    /// Items, one behind the other. [`Items`] takes them apart.
    Items {
        /// The number of the first.
        first: u64,
        /// How many, at least 1.
        count: u32,
        /// All of them, each behind its head.
        bytes: Bytes,
    },
    /// So many items are lost.
    Gap {
        /// How many.
        missed: u64,
    },
    /// So many items were superseded by those that follow.
    Skip {
        /// How many.
        superseded: u64,
    },
    /// Nothing comes any more.
    End(StreamEnd),
}

/// Why what a producer sent cannot be; it is always the producer's fault.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum EntryError {
    /// An item is longer than this side takes.
    #[error("expected an item of at most {max} bytes, came one of {len}")]
    TooLong {
        /// Its length, as its head claims.
        len: usize,
        /// The longest that is taken.
        max: usize,
    },
    /// A control entry is none.
    #[error("expected a control entry, came another thing")]
    Control(#[from] FrameError),
    /// Something came behind the end.
    #[error("expected nothing behind the end of the stream, came more")]
    BehindEnd,
    /// Something came that does not travel this way on this channel.
    #[error("expected only an end on a channel of datagrams, came {came}")]
    WrongChannel {
        /// What came.
        came: &'static str,
    },
    /// Numbers of items do not reach that far.
    #[error("expected the number of an item, came {by} beyond {next}")]
    OutOfNumbers {
        /// The number of the next item before.
        next: u64,
        /// How many items came, or were left out.
        by: u64,
    },
    /// The producer would send again what it has sent.
    #[error("expected items from {expected} on, came an offer of those from {came} on")]
    Again {
        /// The first that was not received.
        expected: u64,
        /// The first that would come.
        came: u64,
    },
}

impl EntryError {
    /// What to tell the producer.
    pub const fn code(&self) -> Code {
        match self {
            Self::TooLong { .. } => Code::TooLarge,
            Self::Control(error) => error.code(),
            Self::OutOfNumbers { .. } => Code::Malformed,
            Self::BehindEnd | Self::WrongChannel { .. } | Self::Again { .. } => Code::Violation,
        }
    }
}

/// The entries of one subscription.
#[derive(Debug)]
pub struct Entries {
    /// The number of the next item.
    next: u64,
    /// The longest item that is taken; none where items come as datagrams.
    item_max: Option<usize>,
    /// What the last look at the buffer showed to be missing.
    needs: usize,
    has_ended: bool,
}

impl Entries {
    /// The entries that follow this answer, with items of at most so many bytes. Items have no limit but this one.
    pub fn new(accepted: &Accepted, item_max: usize) -> Self {
        let item_max = match accepted.channel {
            Channel::Reliable | Channel::Latest => Some(item_max),
            Channel::Datagram => None,
        };
        Self { next: accepted.next, item_max, needs: HEAD_BYTES, has_ended: false }
    }

    /// The number of the first item that did not come yet.
    pub const fn next(&self) -> u64 {
        self.next
    }

    /// Whether the end was read, so that the end of the bytes is no loss.
    pub const fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// How many more bytes to make room for: what the entry at the front lacks, as far as that was seen, but no more
    /// than came of it already or [`RUN_MAX`], whichever is more. So a head that claims a long item costs nothing before the
    /// item comes.
    pub const fn needs(&self) -> usize {
        self.needs
    }

    /// Takes what can be read next from the front of `buffer`: as many whole items as are there, up to [`RUN_MAX`] bytes, or
    /// one control entry. `None` leaves the buffer as it is and needs more bytes.
    ///
    /// # Errors
    ///
    /// [`EntryError`] says what the producer did wrong. What came before was taken; the same error comes again from then on.
    pub fn take(&mut self, buffer: &mut BytesMut) -> Result<Option<Read>, EntryError> {
        if self.has_ended {
            return if buffer.is_empty() { Ok(None) } else { Err(EntryError::BehindEnd) };
        }
        if let Some((count, len)) = self.whole_items(buffer) {
            let first = self.next;
            self.next = self.beyond(count.into())?;
            let bytes = buffer.split_to(len).freeze();
            return Ok(Some(Read::Items { first, count, bytes }));
        }
        let Some((head, body)) = buffer.split_first_chunk() else {
            self.needs = HEAD_BYTES.saturating_sub(buffer.len());
            return Ok(None);
        };
        let len = match Head::from_bytes(*head) {
            Head::Item(len) => {
                self.check_item(len)?;
                len
            }
            Head::Control(len) => {
                if len > CONTROL_ENTRY_MAX {
                    return Err(FrameError::TooLarge { len, max: CONTROL_ENTRY_MAX }.into());
                }
                if let Some(body) = body.get(..len) {
                    let read = self.control(ControlEntry::decode(body)?)?;
                    let _entry = buffer.split_to(HEAD_BYTES.saturating_add(len));
                    return Ok(Some(read));
                }
                len
            }
        };
        let missing = len.saturating_sub(body.len());
        self.needs = missing.min(buffer.len().max(RUN_MAX));
        Ok(None)
    }

    /// How many whole items are at the front, and how many bytes they take, if there are any: those before the first entry that
    /// is another thing, not whole, too long, beyond a run, or beyond all numbers.
    #[inline]
    fn whole_items(&self, buffer: &[u8]) -> Option<(u32, usize)> {
        let item_max = self.item_max?;
        let numbers = u32::try_from(u64::MAX.saturating_sub(self.next)).unwrap_or(u32::MAX);
        let (mut count, mut len) = (0_u32, 0_usize);
        let mut rest = buffer;
        while count < numbers
            && let Some((head, behind)) = rest.split_first_chunk()
        {
            let Head::Item(item) = Head::from_bytes(*head) else { break };
            let Some((_, next)) = behind.split_at_checked(item) else { break };
            let sum = buffer.len().saturating_sub(next.len());
            if item > item_max || (sum > RUN_MAX && count > 0) {
                break;
            }
            count = count.saturating_add(1);
            len = sum;
            rest = next;
        }
        (count > 0).then_some((count, len))
    }

    fn check_item(&self, len: usize) -> Result<(), EntryError> {
        match self.item_max {
            Some(max) if len <= max => self.beyond(1).map(drop),
            Some(max) => Err(EntryError::TooLong { len, max }),
            None => Err(EntryError::WrongChannel { came: "an item" }),
        }
    }

    fn control(&mut self, entry: ControlEntry) -> Result<Read, EntryError> {
        match entry {
            ControlEntry::Gap { missed } => {
                self.leave_out(missed)?;
                Ok(Read::Gap { missed })
            }
            ControlEntry::Skip { superseded } => {
                self.leave_out(superseded)?;
                Ok(Read::Skip { superseded })
            }
            ControlEntry::End(end) => {
                self.has_ended = true;
                self.needs = 0;
                Ok(Read::End(end))
            }
        }
    }

    fn leave_out(&mut self, count: u64) -> Result<(), EntryError> {
        if self.item_max.is_none() {
            return Err(EntryError::WrongChannel { came: "what became of items" });
        }
        self.next = self.beyond(count)?;
        Ok(())
    }

    fn beyond(&self, by: u64) -> Result<u64, EntryError> {
        let next = self.next;
        next.checked_add(by).ok_or(EntryError::OutOfNumbers { next, by })
    }
}

/// The items of a run.
///
/// As an iterator it gives each as [`Bytes`] that share the memory of the run, which all of it stays in use for. Whoever decodes
/// items at once takes [`Items::next_slice`], which costs less.
#[derive(Debug, Clone)]
pub struct Items {
    bytes: Bytes,
    /// Where the next head is.
    at: usize,
}

impl Items {
    /// The items of [`Read::Items`]. Of other bytes, it gives those up to the first that is not whole.
    pub const fn new(bytes: Bytes) -> Self {
        Self { bytes, at: 0 }
    }

    /// The next item.
    #[inline]
    pub fn next_slice(&mut self) -> Option<&[u8]> {
        let range = self.advance()?;
        self.bytes.get(range)
    }

    /// How many bytes are left, heads included.
    pub fn left(&self) -> usize {
        self.bytes.len().saturating_sub(self.at)
    }

    /// Where the next item is, if it is there as a whole.
    #[inline]
    fn advance(&mut self) -> Option<std::ops::Range<usize>> {
        let (head, behind) = self.bytes.get(self.at..)?.split_first_chunk()?;
        let Head::Item(len) = Head::from_bytes(*head) else { return None };
        let (_, next) = behind.split_at_checked(len)?;
        let end = self.bytes.len().saturating_sub(next.len());
        self.at = end;
        Some(end.saturating_sub(len)..end)
    }
}

impl Iterator for Items {
    type Item = Bytes;

    #[inline]
    fn next(&mut self) -> Option<Bytes> {
        let range = self.advance()?;
        Some(self.bytes.slice(range))
    }
}

/// How what comes goes on from what came before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Beginning {
    /// Where it was left.
    Continues,
    /// So many items later; they are lost. At least 1.
    Missed(u64),
    /// The producer started anew: its numbers have nothing to do with those before.
    Anew,
}

impl Resume {
    /// How the items that this answer promises go on from here. On [`Channel::Latest`] nothing is missed, as what comes takes
    /// the place of what did not.
    ///
    /// # Errors
    ///
    /// [`EntryError::Again`] if items would come that were received, unless the channel is [`Channel::Latest`]: there the
    /// producer repeats what holds.
    pub fn begins(&self, accepted: &Accepted) -> Result<Beginning, EntryError> {
        if accepted.epoch != self.epoch {
            return Ok(Beginning::Anew);
        }
        match (accepted.channel, accepted.next.checked_sub(self.next)) {
            (Channel::Latest, _) | (_, Some(0)) => Ok(Beginning::Continues),
            (_, Some(missed)) => Ok(Beginning::Missed(missed)),
            (_, None) => Err(EntryError::Again { expected: self.next, came: accepted.next }),
        }
    }
}

#[cfg(test)]
mod tests;
