//! Listeners: news for any number of listeners, without the memory for it while nobody has ever listened.
//!
//! It is tokio's broadcast channel, made when the first one subscribes: the channel holds room for all that it keeps from the start on, which
//! for the events of a node alone is 180 KiB, and most nodes have nobody who follows them. What is told before is for nobody.

use std::sync::OnceLock;

use tokio::sync::broadcast;

/// See the module page.
#[derive(Debug)]
pub(crate) struct Listeners<T> {
    /// So much is kept for a listener who is slow.
    kept: usize,
    sender: OnceLock<broadcast::Sender<T>>,
}

impl<T: Clone> Listeners<T> {
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
        let listeners = Listeners::new(2);
        listeners.tell(1);
        let mut listener = listeners.subscribe();
        listeners.tell(2);
        let mut late = listeners.subscribe();
        listeners.tell(3);
        assert_eq!([listener.try_recv(), listener.try_recv()], [Ok(2), Ok(3)]);
        assert_eq!(late.try_recv(), Ok(3));
        assert!(listener.try_recv().is_err());
    }

    #[test]
    fn whoever_listens_hears_the_end() {
        let listeners = Listeners::new(2);
        let mut listener = listeners.subscribe();
        listeners.tell(1);
        drop(listeners);
        assert_eq!(listener.try_recv(), Ok(1));
        assert_eq!(listener.try_recv(), Err(broadcast::error::TryRecvError::Closed));
    }

    #[test]
    fn there_is_no_channel_before_somebody_listens() {
        let listeners = Listeners::new(2);
        listeners.tell(1);
        assert!(listeners.sender.get().is_none());
        let _listener = listeners.subscribe();
        assert!(listeners.sender.get().is_some());
    }
}
