//! The latest item of each key: what a newer one of the same key takes the place of.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use thiserror::Error;

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
}

/// See the module page.
#[derive(Debug)]
pub(super) struct Latest {
    max: usize,
    numbers: HashMap<Box<[u8]>, u64>,
    items: BTreeMap<u64, Bytes>,
}

impl Latest {
    pub(super) fn new(max: usize) -> Self {
        Self { max, numbers: HashMap::new(), items: BTreeMap::new() }
    }

    /// Puts an item in the place of the one with the same key, if there is one. Its number is larger than all before.
    pub(super) fn put(&mut self, number: u64, key: &[u8], entry: &[u8]) -> Result<(), KeyError> {
        if let Some(known) = self.numbers.get_mut(key) {
            let before = std::mem::replace(known, number);
            self.items.remove(&before);
        } else {
            if key.len() > KEY_MAX {
                return Err(KeyError::TooLong(key.len()));
            }
            if self.numbers.len() >= self.max {
                return Err(KeyError::TooMany(self.max));
            }
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
