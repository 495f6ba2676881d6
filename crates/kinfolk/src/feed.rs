//! Feed: news for any number of listeners, without the memory for it while nobody has ever listened.
//!
//! It is tokio's broadcast channel, made when the first one subscribes: the channel holds room for all that it keeps from the start on, which
//! for the events of a node alone is 180 KiB, and most nodes have nobody who follows them. What is told before is for nobody.

use std::sync::OnceLock;

use tokio::sync::broadcast;

/// The feed; see the module page.
#[derive(Debug)]
pub(crate) struct Feed<T> {
    /// So much is kept for a listener who is slow.
    kept: usize,
    sender: OnceLock<broadcast::Sender<T>>,
}

impl<T: Clone> Feed<T> {
    pub(crate) const fn new(kept: usize) -> Self {
        Self { kept, sender: OnceLock::new() }
    }

    /// Tells whoever listens; nobody may.
    pub(crate) fn tell(&self, news: T) {
        if let Some(sender) = self.sender.get() {
            let _ = sender.send(news);
        }
    }

    /// What is told from now on.
    pub(crate) fn subscribe(&self) -> broadcast::Receiver<T> {
        self.sender.get_or_init(|| broadcast::Sender::new(self.kept)).subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_hears_what_is_told_after_it_came_and_no_more() {
        let feed = Feed::new(2);
        feed.tell(1);
        let mut listener = feed.subscribe();
        feed.tell(2);
        let mut late = feed.subscribe();
        feed.tell(3);
        assert_eq!([listener.try_recv(), listener.try_recv()], [Ok(2), Ok(3)]);
        assert_eq!(late.try_recv(), Ok(3));
        assert!(listener.try_recv().is_err());
    }

    #[test]
    fn a_feed_that_is_gone_ends_its_listeners() {
        let feed = Feed::new(2);
        let mut listener = feed.subscribe();
        feed.tell(1);
        drop(feed);
        assert_eq!(listener.try_recv(), Ok(1));
        assert_eq!(listener.try_recv(), Err(broadcast::error::TryRecvError::Closed));
    }

    #[test]
    fn a_feed_makes_no_channel_before_somebody_listens() {
        let feed = Feed::new(2);
        feed.tell(1);
        assert!(feed.sender.get().is_none());
        let _listener = feed.subscribe();
        assert!(feed.sender.get().is_some());
    }
}
