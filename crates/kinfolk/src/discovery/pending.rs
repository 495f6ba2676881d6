//! Names that wait for an actor: however many are told before it looks, its mailbox holds one message about them.
//!
//! It serves those who learn something by a remote's doing and have to tell an actor, whose mailbox has no bound. It never holds more
//! names than it was made for.

use std::collections::BTreeSet;
use std::sync::Mutex;

use crate::supervision::lock;

/// See the module page.
#[derive(Debug)]
pub(crate) struct Pending<T> {
    names: Mutex<BTreeSet<T>>,
    max: usize,
}

/// What to do after a name was added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Added {
    /// It is the first: the actor has to be told that there are some.
    First,
    /// The actor was told before.
    Further,
    /// There is no room.
    Dropped,
}

impl<T: Ord> Pending<T> {
    pub(crate) fn new(max: usize) -> Self {
        Self { names: Mutex::new(BTreeSet::new()), max }
    }

    pub(crate) fn add(&self, name: T) -> Added {
        let mut names = lock(&self.names);
        if names.len() >= self.max && !names.contains(&name) {
            return Added::Dropped;
        }
        let was_empty = names.is_empty();
        names.insert(name);
        if was_empty { Added::First } else { Added::Further }
    }

    /// All of them, in no order that matters; the next that is added is a first one again.
    pub(crate) fn take(&self) -> BTreeSet<T> {
        std::mem::take(&mut *lock(&self.names))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_message_tells_of_all_that_is_added_before_it_is_read() {
        let pending = Pending::new(2);
        assert_eq!(pending.add(1), Added::First);
        assert_eq!(pending.add(2), Added::Further);
        assert_eq!(pending.add(2), Added::Further);
        assert_eq!(pending.add(3), Added::Dropped);
        assert_eq!(pending.take(), BTreeSet::from([1, 2]));
        assert_eq!(pending.add(3), Added::First);
    }
}
