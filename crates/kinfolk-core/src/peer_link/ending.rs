//! How links end: drained, closed, lost, killed; and what is remembered of them.

use std::time::{Duration, Instant};

use crate::code::Code;
use crate::id::LinkId;
use crate::intensity::Verdict;
use crate::wire::hello::DEAD_LINKS_MAX;

use super::{
    CLOSING_MAX, Closing, Dial, DownReason, END_GRACE, Linger, LinkEnd, Output, PeerEvent,
    PeerLink, after,
};

impl PeerLink {
    pub(super) fn draining(
        &mut self,
        now: Instant,
        link: LinkId,
        code: Code,
        out: &mut Vec<Output>,
    ) {
        if self.live() == Some(link) {
            self.drop_live(now, DownReason::PeerDraining(code), out);
            if code == Code::Idle {
                // A link that nobody used any more is no failed attempt.
                self.retry_at = Some(after(now, self.backoff.pause()));
            } else {
                self.back_off(now, LinkEnd::ClosedByPeer(code));
            }
            // The session answers the goodbye by itself; here only its deadline is kept.
            self.start_closing(now, link, self.rules.drain_deadline, out);
        }
    }

    pub(super) fn ended(
        &mut self,
        now: Instant,
        link: LinkId,
        end: LinkEnd,
        out: &mut Vec<Output>,
    ) {
        let dialled = match &self.dial {
            Some(Dial::Connecting { link: dial, .. } | Dial::Greeting { link: dial, .. }) => {
                *dial == link
            }
            Some(Dial::Ready) | None => false,
        };
        if !dialled && !self.knows(&link) {
            return;
        }
        out.push(Output::Event(PeerEvent::Ended(link, end)));
        if self.closing.remove(&link).is_some() {
            // The peer may not know yet that it is over.
            self.bury(link);
        } else if dialled {
            self.dial = None;
            self.dial_failed(now, link, end, out);
        } else if self.live() == Some(link) {
            self.last_error = Some(end);
            self.bury(link);
            self.drop_live(now, DownReason::Ended(end), out);
            self.back_off(now, end);
        } else {
            self.parked = None;
        }
        if end == LinkEnd::Panicked && self.panics.fail(now) == Verdict::Exceeded {
            self.panics.clear();
            out.push(Output::Event(PeerEvent::Quarantined(self.rules.quarantine)));
            let until = after(now, self.rules.quarantine);
            self.ban(now, self.banned_until.map_or(until, |banned| banned.max(until)), out);
        }
    }

    /// The live link stops being live.
    pub(super) fn drop_live(&mut self, now: Instant, reason: DownReason, out: &mut Vec<Output>) {
        let Some(live) = self.live.take() else { return };
        if now.saturating_duration_since(live.since) >= self.rules.stable_after {
            self.backoff.reset();
            self.may_cut = true;
        }
        out.push(Output::Unpublish(live.link));
        out.push(Output::Event(PeerEvent::Down(live.link, reason)));
    }

    pub(super) fn bury(&mut self, link: LinkId) {
        if self.dead.contains(&link) {
            return;
        }
        self.dead.push_back(link);
        if self.dead.len() > DEAD_LINKS_MAX {
            self.dead.pop_front();
        }
    }

    pub(super) fn start_closing(
        &mut self,
        now: Instant,
        link: LinkId,
        within: Duration,
        out: &mut Vec<Output>,
    ) {
        // A killed one is on its way out and makes room already.
        let open = || self.closing.iter().filter(|(_, closing)| !closing.killed);
        if open().count() >= CLOSING_MAX {
            let oldest = open().min_by_key(|(_, closing)| closing.deadline);
            if let Some(oldest) = oldest.map(|(link, _)| *link) {
                self.kill(now, oldest, out);
            }
        }
        let deadline = after(now, within.saturating_add(END_GRACE));
        self.closing.insert(link, Closing { deadline, killed: false });
    }

    /// Cuts a closing link. Its end still comes from supervision; it is asked for again should that be slow.
    pub(super) fn kill(&mut self, now: Instant, link: LinkId, out: &mut Vec<Output>) {
        let again = Closing { deadline: after(now, END_GRACE), killed: true };
        self.closing.insert(link, again);
        out.push(Output::Kill(link));
    }

    pub(super) fn drain(&mut self, now: Instant, link: LinkId, code: Code, out: &mut Vec<Output>) {
        let within = self.rules.drain_deadline;
        self.start_closing(now, link, within, out);
        out.push(Output::Drain(link, code, within));
    }

    pub(super) fn close(&mut self, now: Instant, link: LinkId, code: Code, out: &mut Vec<Output>) {
        self.start_closing(now, link, Duration::ZERO, out);
        out.push(Output::Close(link, code));
    }

    pub(super) fn drain_live(&mut self, now: Instant, code: Code, out: &mut Vec<Output>) {
        if let Some(link) = self.live() {
            self.drop_live(now, DownReason::Draining(code), out);
            self.drain(now, link, code, out);
        }
    }

    pub(super) fn lingered(
        &mut self,
        now: Instant,
        link: LinkId,
        linger: Linger,
        out: &mut Vec<Output>,
    ) {
        if self.live() != Some(link) {
            return;
        }
        let again = match linger {
            Linger::Closed => {
                self.drain_live(now, Code::Idle, out);
                return;
            }
            Linger::InUse => after(now, self.rules.linger),
            // Never sooner than a moment from now, or a clock that stands still would loop here.
            Linger::UsedAt(at) => {
                after(at, self.rules.linger).max(after(now, Duration::from_millis(10)))
            }
        };
        if let Some(live) = &mut self.live {
            live.linger_at = Some(again);
        }
    }
}
