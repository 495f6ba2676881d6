//! Watching one peer: up, or down and why.
//!
//! The PeerManager notes every change; each watcher sees the latest. Peers that nobody watches cost nothing.

use std::collections::BTreeMap;
use std::sync::Mutex;

use iroh::EndpointId;
use kinfolk_core::id::LinkId;
use kinfolk_core::peer_link::{Direction, DownReason};
use tokio::sync::watch;

use crate::supervision::lock;

/// Whether a session with a peer is live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerStatus {
    /// A session is live.
    Up {
        /// Its link.
        link: LinkId,
        /// Who opened it.
        direction: Direction,
    },
    /// No session is live.
    Down {
        /// Why the last one is not; `None` if there was none since the watch began.
        reason: Option<DownReason>,
    },
}

impl PeerStatus {
    /// Whether a session is live.
    pub fn is_up(&self) -> bool {
        matches!(self, Self::Up { .. })
    }
}

/// All watched peers; as many as the app watches.
#[derive(Debug, Default)]
pub(crate) struct Monitors(Mutex<BTreeMap<EndpointId, watch::Sender<PeerStatus>>>);

impl Monitors {
    /// Watches a peer whose status is `now` at this moment.
    pub(crate) fn watch(&self, peer: EndpointId, now: PeerStatus) -> watch::Receiver<PeerStatus> {
        let mut monitors = lock(&self.0);
        monitors.retain(|_, sender| sender.receiver_count() > 0);
        monitors.entry(peer).or_insert_with(|| watch::Sender::new(now)).subscribe()
    }

    pub(crate) fn note(&self, peer: &EndpointId, status: PeerStatus) {
        if let Some(sender) = lock(&self.0).get(peer) {
            sender.send_replace(status);
        }
    }

    /// Every live link was lost at once.
    pub(crate) fn note_all_down(&self, reason: DownReason) {
        for sender in lock(&self.0).values() {
            sender.send_if_modified(|status| {
                let was_up = status.is_up();
                if was_up {
                    *status = PeerStatus::Down { reason: Some(reason) };
                }
                was_up
            });
        }
    }
}
