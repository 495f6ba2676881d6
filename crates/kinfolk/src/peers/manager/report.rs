//! What the table says has happened, told to all whom it concerns: events, numbers, monitors, the address book, the catalog.
//!
//! It decides nothing.

use std::sync::atomic::Ordering;
use std::time::Instant;

use iroh::EndpointId;
use kinfolk_core::address_book::AttemptFailure;
use kinfolk_core::catalog;
use kinfolk_core::id::LinkId;
use kinfolk_core::peer_link::{DialFailure, Direction, LinkEnd, PeerEvent};
use tracing::{debug, info};

use super::PeerManagerState;
use crate::events::NodeEvent;
use crate::metrics::Family;
use crate::monitor::PeerStatus;
use crate::supervision::lock;

impl PeerManagerState {
    pub(super) fn report(&mut self, peer: EndpointId, event: PeerEvent) {
        let context = &self.context;
        match event {
            PeerEvent::Up(link, direction) => {
                info!(peer = %peer.fmt_short(), %link, ?direction, "session established");
                context.counters.sessions_established.fetch_add(1, Ordering::Relaxed);
                context.monitors.note(&peer, PeerStatus::Up { link, direction });
                self.learn_address(peer, link, direction);
                self.context.note_up(peer, direction);
                self.context.emit(NodeEvent::SessionEstablished { peer, link, direction });
            }
            PeerEvent::Down(link, reason) => {
                info!(peer = %peer.fmt_short(), %link, ?reason, "session down");
                context.note(catalog::Input::Disconnected(peer));
                context.monitors.note(&peer, PeerStatus::Down { reason: Some(reason) });
                context.emit(NodeEvent::SessionDown { peer, link, reason });
            }
            PeerEvent::DialFailed(_, end, retry_in) => {
                debug!(peer = %peer.fmt_short(), %end, ?retry_in, "dial failed");
                context.counters.count(Family::DialFailed, end.name());
                let failure = attempt_failure(end);
                let mut retained = lock(&context.retained);
                retained.book.failed(Instant::now(), &peer, failure);
                drop(retained);
                context.note_dial_failed(peer, end);
                context.emit(NodeEvent::DialFailed { peer, end, retry_in });
            }
            PeerEvent::Refused(_, code) => {
                context.counters.count(Family::LinkRefused, code.name());
                context.emit(NodeEvent::LinkRefused { peer, code });
            }
            PeerEvent::Ended(link, end) => {
                context.counters.count(Family::SessionEnded, end.name());
                context.emit(NodeEvent::SessionEnded { peer, link, end });
            }
            PeerEvent::Quarantined(duration) => {
                let cause = self.last_panic.clone();
                context.emit(NodeEvent::PeerQuarantined { peer, duration, cause });
            }
            PeerEvent::Banned(until) => {
                // The app's are noted already; a quarantine is not.
                if context.banned_until(&peer).is_none_or(|noted| noted < until) {
                    context.note_ban(peer, until);
                }
                context.tell_ban(peer, until);
            }
            PeerEvent::Unbanned => {
                // One that the app has made longer meanwhile is kept; it is on its way here.
                let now = Instant::now();
                lock(&context.retained)
                    .bans
                    .retain(|banned, ban| *banned != peer || ban.until > now);
                context.emit(NodeEvent::PeerUnbanned { peer });
            }
        }
    }

    /// Remembers where the peer was reached. iroh may have several paths; the one in use is the one worth dialling.
    fn learn_address(&self, peer: EndpointId, id: LinkId, direction: Direction) {
        let Some(link) = self.link(id) else { return };
        let paths = link.connection.paths();
        let selected = paths.iter().find(|path| path.is_selected());
        let Some(address) = selected.map(|path| path.remote_addr().clone()) else { return };
        let now = Instant::now();
        let book = &mut lock(&self.context.retained).book;
        // The book counts what finds no room.
        match direction {
            Direction::Outbound => book.reached(now, peer, address),
            Direction::Inbound => book.learned(now, peer, address),
        };
    }
}

/// Whose fault a failed dial is, for the address book.
fn attempt_failure(end: LinkEnd) -> AttemptFailure {
    match end {
        LinkEnd::DialFailed(
            DialFailure::TimedOut | DialFailure::Refused | DialFailure::WrongIdentity,
        )
        | LinkEnd::Lost => AttemptFailure::Unreached,
        LinkEnd::ClosedByPeer(_) | LinkEnd::PeerMisbehaved(_) => AttemptFailure::Rejected,
        _ => AttemptFailure::Local,
    }
}
