//! How many bytes of responses to one peer wait for room in QUIC's windows.
//!
//! A peer that does not read must not make this node keep what its handlers answer: while as much waits as is allowed, no
//! further call of that peer is begun, and no handler that answers with many responses is asked for the next. It holds none of the
//! bytes, and cuts nothing: what a handler has made already waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

/// What waits on one link.
#[derive(Debug)]
pub(crate) struct Backlog {
    bytes: AtomicUsize,
    /// So many bytes or more are too many to add to.
    full: usize,
    /// Told when it is full no more.
    room: Notify,
}

impl Backlog {
    pub(crate) fn new(full: usize) -> Arc<Self> {
        Arc::new(Self { bytes: AtomicUsize::new(0), full, room: Notify::new() })
    }

    pub(crate) fn is_full(&self) -> bool {
        self.bytes.load(Ordering::Acquire) >= self.full
    }

    /// Waits until it is not full. Cancel safe.
    pub(crate) async fn room(&self) {
        while self.is_full() {
            let freed = self.room.notified();
            tokio::pin!(freed);
            // Registered before the look, so that a release in between is not missed.
            freed.as_mut().enable();
            if self.is_full() {
                freed.await;
            }
        }
    }

    /// Counts bytes for as long as the answer lives.
    pub(crate) fn wait(self: &Arc<Self>, bytes: usize) -> Waiting {
        let mut waiting = Waiting { backlog: Arc::clone(self), bytes: 0 };
        waiting.add(bytes);
        waiting
    }
}

/// Bytes that wait.
#[derive(Debug)]
pub(crate) struct Waiting {
    backlog: Arc<Backlog>,
    bytes: usize,
}

impl Waiting {
    pub(crate) fn backlog(&self) -> &Backlog {
        &self.backlog
    }

    /// They are more by so many. All that is counted is in memory, so that no sum overflows.
    pub(crate) fn add(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_add(bytes);
        self.backlog.bytes.fetch_add(bytes, Ordering::AcqRel);
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let before = self.backlog.bytes.fetch_sub(self.bytes, Ordering::AcqRel);
        let is_full = before.saturating_sub(self.bytes) >= self.backlog.full;
        if before >= self.backlog.full && !is_full {
            self.backlog.room.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn there_is_room_again_once_enough_of_what_waits_is_gone() {
        let backlog = Backlog::new(10);
        let first = backlog.wait(9);
        assert!(!backlog.is_full());
        assert_eq!(backlog.room().now_or_never(), Some(()));
        let mut second = backlog.wait(0);
        second.add(4);
        assert!(backlog.is_full());
        let mut room = Box::pin(backlog.room());
        assert_eq!(room.as_mut().now_or_never(), None);
        drop(first);
        assert_eq!(room.now_or_never(), Some(()));
        second.add(6);
        assert!(backlog.is_full());
        drop(second);
        assert!(!backlog.is_full());
    }
}
