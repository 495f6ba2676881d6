//! The latest item of each key: what a newer one of the same key takes the place of.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use thiserror::Error;

use super::fanout::to_u64;

/// The longest key, in bytes. It is the app's own; a guard against a key that is the item.
pub const KEY_MAX: usize = 256;

/// Why a key cannot be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum KeyError {
    /// It is too long.
    #[error("expected a key of at most {KEY_MAX} bytes, came one of {0}")]
    TooLong(usize),
    /// It is one more than the producer keeps.
    #[error("expected at most {0} keys, came one more")]
    TooMany(usize),
    /// With its item, the latest items of all keys would take more than the producer keeps.
    #[error("expected the latest items of all keys within {0} bytes, came one that has no room")]
    NoRoom(u64),
}

/// What a key costs besides its bytes and those of its item, in bytes: its place in two maps, and two allocations (counted by hand).
pub(super) const KEY_COST: u64 = 200;

/// See the module page.
#[derive(Debug)]
pub(super) struct Latest {
    keys_max: usize,
    bytes_max: u64,
    /// What all keys and items cost.
    bytes: u64,
    numbers: HashMap<Box<[u8]>, u64>,
    items: BTreeMap<u64, Bytes>,
}

impl Latest {
    pub(super) fn new(keys_max: usize, bytes_max: u64) -> Self {
        Self { keys_max, bytes_max, bytes: 0, numbers: HashMap::new(), items: BTreeMap::new() }
    }

    /// Puts an item in the place of the one with the same key, if there is one. Its number is larger than all before. What has no room changes nothing.
    pub(super) fn put(&mut self, number: u64, key: &[u8], entry: &[u8]) -> Result<(), KeyError> {
        let room = self.bytes_max;
        let check = |bytes: u64| if bytes > room { Err(KeyError::NoRoom(room)) } else { Ok(bytes) };
        let length = to_u64(entry.len());
        if let Some(known) = self.numbers.get_mut(key) {
            let before = self.items.get(known).map_or(0, |item| to_u64(item.len()));
            self.bytes = check(self.bytes.saturating_sub(before).saturating_add(length))?;
            self.items.remove(&std::mem::replace(known, number));
        } else {
            if key.len() > KEY_MAX {
                return Err(KeyError::TooLong(key.len()));
            }
            if self.numbers.len() >= self.keys_max {
                return Err(KeyError::TooMany(self.keys_max));
            }
            let cost = length.saturating_add(to_u64(key.len())).saturating_add(KEY_COST);
            self.bytes = check(self.bytes.saturating_add(cost))?;
            self.numbers.insert(key.into(), number);
        }
        // A copy of its own: it may outlive everything around it.
        self.items.insert(number, Bytes::copy_from_slice(entry));
        Ok(())
    }

    /// The number of the oldest item.
    pub(super) fn first(&self) -> Option<u64> {
        self.items.keys().next().copied()
    }

    /// The items with numbers from `first` to below `end`, in their order.
    pub(super) fn from(&self, first: u64, end: u64) -> impl Iterator<Item = (u64, Bytes)> {
        let items = self.items.range(first..end.max(first));
        items.map(|(number, bytes)| (*number, bytes.clone()))
    }
}
