//! Bans: kept by the node through every restart of the PeerManager, which carries them out.
//!
//! It decides who makes room where there are as many as the limits allow, and nothing else about peers.

use std::time::{Duration, Instant};

use iroh::EndpointId;
use kinfolk_core::catalog;

use crate::context::{Ban, Context};
use crate::events::NodeEvent;
use crate::peers::manager::PeerManagerMessage;
use crate::supervision::lock;

impl Context {
    /// Bans a peer, now or as soon as the PeerManager is back.
    pub(crate) fn ban(&self, peer: EndpointId, duration: Duration) {
        let now = Instant::now();
        let duration = duration.min(kinfolk_core::limits::LONGEST);
        let until = now.checked_add(duration).unwrap_or(now);
        self.note_ban(peer, until);
        if let Some(keep) = &self.keep {
            keep.forget(&peer);
        }
        let _ = self.tell_manager(PeerManagerMessage::Ban { peer, until });
    }

    /// Keeps a ban, and lets the catalog forget the peer. Where there are as many as the limits allow, the one that ends soonest makes room.
    pub(crate) fn note_ban(&self, peer: EndpointId, until: Instant) {
        let now = Instant::now();
        let displaced = {
            let bans = &mut lock(&self.retained).bans;
            bans.retain(|_, ban| ban.until > now);
            let is_full = bans.len() >= self.limits.bans && !bans.contains_key(&peer);
            let soonest = bans.iter().min_by_key(|(_, ban)| ban.until).map(|(peer, _)| *peer);
            let displaced = soonest.filter(|_| is_full);
            if let Some(displaced) = &displaced {
                bans.remove(displaced);
            }
            bans.insert(peer, Ban { until, is_told: false });
            displaced
        };
        self.note(catalog::Input::Forget(peer));
        if let Some(displaced) = displaced {
            let _ = self.tell_manager(PeerManagerMessage::Unban(displaced));
        }
    }

    /// Whether the peer is banned, by the app or in quarantine, for those who meet it before the PeerManager does.
    pub(crate) fn is_banned(&self, peer: &EndpointId) -> bool {
        self.banned_until(peer).is_some_and(|until| until > Instant::now())
    }

    /// When the peer's ban ends, or has ended.
    pub(crate) fn banned_until(&self, peer: &EndpointId) -> Option<Instant> {
        lock(&self.retained).bans.get(peer).map(|ban| ban.until)
    }

    /// Tells the app that a ban is in force, unless it was told before.
    pub(crate) fn tell_ban(&self, peer: EndpointId, until: Instant) {
        let is_told = {
            let bans = &mut lock(&self.retained).bans;
            let ban = bans.get_mut(&peer).filter(|ban| ban.until == until);
            ban.is_some_and(|ban| std::mem::replace(&mut ban.is_told, true))
        };
        if !is_told {
            let duration = until.saturating_duration_since(Instant::now());
            self.emit(NodeEvent::PeerBanned { peer, duration });
        }
    }

    /// Lifts a ban.
    pub(crate) fn unban(&self, peer: EndpointId) {
        let banned = lock(&self.retained).bans.remove(&peer);
        if banned.is_some() {
            let _ = self.tell_manager(PeerManagerMessage::Unban(peer));
        }
    }
}
