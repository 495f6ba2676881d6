//! A dial, from the table's permission to its welcome or its failure.

use std::time::{Duration, Instant};

use crate::code::Code;
use crate::id::{Incarnation, LinkId};
use crate::intent::Outcome;
use crate::wire::hello::DEAD_LINKS_MAX;

use super::{Dial, LinkEnd, Output, PeerEvent, PeerLink, after};

impl PeerLink {
    pub(super) fn granted(&mut self, now: Instant, n: u64, out: &mut Vec<Output>) {
        if self.dial != Some(Dial::Ready) {
            return;
        }
        let link = LinkId { dialler: self.me, incarnation: self.incarnation, n };
        self.dial = Some(Dial::Connecting { link, deadline: after(now, self.rules.dial_deadline) });
        self.has_news = false;
        out.push(Output::Dial(link));
    }

    pub(super) fn connected(&mut self, now: Instant, link: LinkId, out: &mut Vec<Output>) {
        match &self.dial {
            Some(Dial::Connecting { link: dial, .. }) if *dial == link => {}
            _ => return,
        }
        self.dial = Some(Dial::Greeting { link, deadline: after(now, self.rules.hello_deadline) });
        // What still drains counts as newest: it is what the peer is most likely to believe alive.
        let buried = self.dead.iter().filter(|dead| !self.closing.contains_key(dead));
        let mut dead: Vec<LinkId> = buried.chain(self.closing.keys()).copied().collect();
        dead.drain(..dead.len().saturating_sub(DEAD_LINKS_MAX));
        out.push(Output::Greet(link, dead));
    }

    pub(super) fn welcomed(
        &mut self,
        now: Instant,
        link: LinkId,
        incarnation: Incarnation,
        arrival: u64,
        out: &mut Vec<Output>,
    ) {
        match &self.dial {
            Some(Dial::Greeting { link: dial, .. }) if *dial == link => {}
            _ => return,
        }
        self.dial = None;
        if self.is_outdated(incarnation, arrival) {
            self.close(now, link, Code::Duplicate, out);
            self.dial_failed(now, link, LinkEnd::Closed(Code::Duplicate), out);
            return;
        }
        self.saw(incarnation, arrival, 0);
        self.unpark(now, Code::Duplicate, out);
        // The peer welcomes a dial that it had to refuse only if it holds its own link dead.
        if let Some(live) = self.take_replaced(out) {
            self.drain(now, live.link, Code::Replaced, out);
        }
        self.go_live(now, link, incarnation, arrival, out);
    }

    pub(super) fn dial_failed(
        &mut self,
        now: Instant,
        link: LinkId,
        end: LinkEnd,
        out: &mut Vec<Output>,
    ) {
        self.bury(link);
        self.last_error = Some(end);
        if let Some(parked) = self.parked.take() {
            let incarnation = parked.link.incarnation;
            out.push(Output::Welcome(parked.link));
            out.push(Output::Event(PeerEvent::DialFailed(link, end, None)));
            self.go_live(now, parked.link, incarnation, parked.arrival, out);
            return;
        }
        if self.live.is_some() {
            // The dial had yielded; its end was expected.
            return;
        }
        match end {
            LinkEnd::DialFailed(failure) => {
                if let Some(failure) = failure.is_final() {
                    self.end_streams(Outcome::Failed(failure), out);
                }
            }
            LinkEnd::ClosedByPeer(code) if is_final_refusal(code) => {
                self.end_streams(Outcome::Refused(code), out);
            }
            _ => {}
        }
        let delay = self.back_off(now, end);
        out.push(Output::Event(PeerEvent::DialFailed(link, end, Some(delay))));
    }

    pub(super) fn back_off(&mut self, now: Instant, end: LinkEnd) -> Duration {
        let delay = match end {
            // What failed was begun before there was something new to try.
            _ if std::mem::take(&mut self.has_news) => self.backoff.pause(),
            LinkEnd::ClosedByPeer(code) if is_away_for_a_moment(code) => {
                self.backoff.fail_briefly()
            }
            _ => self.backoff.fail(),
        };
        self.retry_at = Some(after(now, delay));
        delay
    }
}

/// What a peer says that stops, and that may be back in a moment. Not `Restarted`: that is also the word of a session that fails.
fn is_away_for_a_moment(code: Code) -> bool {
    matches!(code, Code::ShuttingDown | Code::Draining)
}

/// Refusals of a link that asking again soon would only repeat.
fn is_final_refusal(code: Code) -> bool {
    matches!(code, Code::Banned | Code::NotAdmitted | Code::Violation | Code::Malformed)
}
