//! What a producer's app says of its log: how much it holds, what becomes of whoever is too far behind, what newcomers get.

use thiserror::Error;

use super::{BLOCK_COST, to_u64};
use crate::stream::latest::{KEY_COST, KEY_MAX};
use crate::wire::subscription::{Channel, ITEM_MAX};

/// The longest item of a datagram, in bytes: what the smallest packet of QUIC leaves beside the numbers of the datagram, rounded down.
pub const DATAGRAM_ITEM_MAX: usize = 1000;

/// What a producer does when a subscriber is as far behind as the log reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WhenFull {
    /// The sender waits until the slowest subscriber has caught up a little: nothing is lost while its link lives, and the slowest sets the pace of all.
    #[default]
    Wait,
    /// The subscriber loses its oldest items and is told how many.
    DropOldest,
    /// The subscriber is disconnected as too slow. It may come back, and learns how many items it has missed.
    Disconnect,
}

/// What a new subscriber gets first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Replay {
    /// Nothing: what is sent from now on.
    #[default]
    Nothing,
    /// At most so many of the latest items, as far as the log reaches.
    Last(u64),
    /// The latest item of each key.
    Keyed,
}

/// The bounds of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FanoutLimits {
    /// Bytes of items that are kept, and by which a subscriber may be behind. One block more may be in memory.
    pub bytes: u64,
    /// Items that are kept, and by which a subscriber may be behind.
    pub items: u64,
    /// The longest item, in bytes.
    pub item_max: usize,
    /// Keys of which the latest item is kept.
    pub keys: usize,
    /// Bytes of these items and their keys, with what they cost. They come on top of [`bytes`](Self::bytes) where items are kept in the log too.
    pub key_bytes: u64,
}

impl Default for FanoutLimits {
    /// 1 MiB, which is a second of 8 Mbit/s; as many items as fit; items of 256 KiB; 4 096 keys, in 4 MiB. All but the second are guesses.
    fn default() -> Self {
        Self {
            bytes: 1024 * 1024,
            items: u64::MAX,
            item_max: 256 * 1024,
            keys: 4096,
            key_bytes: 4 * 1024 * 1024,
        }
    }
}

/// Why bounds cannot be those of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum FanoutLimitError {
    /// The longest item would not fit into the log.
    #[error("expected a log of at least one longest item of {item_max} bytes, came one of {bytes}")]
    TooSmall {
        /// The bytes of the log.
        bytes: u64,
        /// The longest item.
        item_max: usize,
    },
    /// The longest item would not fit as the latest of its key.
    #[error(
        "expected room for the latest item of one key, {item_max} bytes at most, came room for {bytes} bytes"
    )]
    KeysTooSmall {
        /// The bytes of all keys.
        bytes: u64,
        /// The longest item.
        item_max: usize,
    },
    /// No item could be kept.
    #[error("expected room for at least one item and one key, came room for {items} and {keys}")]
    Empty {
        /// The items.
        items: u64,
        /// The keys.
        keys: usize,
    },
    /// No item could be sent, or one longer than the wire allows.
    #[error("expected items of 1 to {max} bytes, came {item_max}")]
    ItemMax {
        /// The longest item.
        item_max: usize,
        /// What the wire allows.
        max: usize,
    },
    /// Datagrams hold less.
    #[error("expected items of at most {max} bytes on a channel of datagrams, came {item_max}")]
    Datagram {
        /// The longest item.
        item_max: usize,
        /// What a datagram holds.
        max: usize,
    },
}

impl FanoutLimits {
    /// Whether a log with these bounds can hold anything; where it `is_keyed`, the latest item of a key too.
    ///
    /// # Errors
    ///
    /// If it cannot.
    pub fn validate(&self, channel: Channel, is_keyed: bool) -> Result<(), FanoutLimitError> {
        let Self { bytes, items, item_max, keys, key_bytes } = *self;
        if item_max == 0 || item_max > ITEM_MAX {
            return Err(FanoutLimitError::ItemMax { item_max, max: ITEM_MAX });
        }
        if channel == Channel::Datagram && item_max > DATAGRAM_ITEM_MAX {
            return Err(FanoutLimitError::Datagram { item_max, max: DATAGRAM_ITEM_MAX });
        }
        if items == 0 || keys == 0 {
            return Err(FanoutLimitError::Empty { items, keys });
        }
        if bytes < entry_cost(item_max) {
            return Err(FanoutLimitError::TooSmall { bytes, item_max });
        }
        let key = entry_cost(item_max).saturating_add(to_u64(KEY_MAX)).saturating_add(KEY_COST);
        if is_keyed && key_bytes < key {
            return Err(FanoutLimitError::KeysTooSmall { bytes: key_bytes, item_max });
        }
        Ok(())
    }
}

/// An item of this length with all that it may cost.
fn entry_cost(length: usize) -> u64 {
    to_u64(length).saturating_add(BLOCK_COST).saturating_add(8)
}
