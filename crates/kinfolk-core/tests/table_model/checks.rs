//! What must be true of the table and its model, after each step and of each outcome.

use std::collections::BTreeMap;

use iroh_base::EndpointId;
use kinfolk_core::id::LinkId;
use kinfolk_core::intent::{IntentId, Outcome, Want};
use kinfolk_core::peer_link::{PeerState, Usage, Why};
use kinfolk_core::peer_table::REPLACED_MAX;

use super::{Doing, Node, Open, Session, Stage};

impl Node {
    pub fn check(&self) {
        let totals = self.table.totals(self.now);
        assert!(totals.peers <= self.caps.peers);
        self.check_intents(&totals.usage);
        self.check_sessions(&totals.usage);
        self.check_caps(&totals.usage);
        self.check_bans();
        self.check_progress(&totals.usage);
    }

    fn check_intents(&self, usage: &Usage) {
        for peer in &self.peers {
            let is_hold = |open: &Open| open.peer == *peer && open.want == Want::Hold;
            let holds = self.open.values().filter(|open| is_hold(open)).count();
            let known = self.why(peer).map_or((0, 0), |why| (why.holds, why.waiting));
            assert_eq!(known, (holds, self.open_at(peer) - holds), "open intents of {peer}");
        }
        assert_eq!(usage.intents, self.open.len());
    }

    fn check_sessions(&self, usage: &Usage) {
        let count = |is: &dyn Fn(&LinkId, &Session) -> bool| {
            self.sessions.iter().filter(|(link, session)| is(link, session)).count()
        };
        assert_eq!(usage.inbound, count(&|link, _| link.dialler != self.me));
        assert_eq!(usage.outbound, count(&|link, _| link.dialler == self.me));
        let waits = |session: &Session, stage| session.stage == stage && !session.ending;
        assert_eq!(usage.parked, count(&|_, session| waits(session, Stage::Parked)));
        let is_dial =
            |session: &Session| waits(session, Stage::Dialling) || waits(session, Stage::Greeting);
        assert_eq!(usage.dialling, count(&|_, session| is_dial(session)));
        let is_live = |session: &Session| waits(session, Stage::Welcomed) && !session.goodbye;
        let live: BTreeMap<EndpointId, LinkId> = self
            .sessions
            .iter()
            .filter(|(_, session)| is_live(session))
            .map(|(link, session)| (session.peer, *link))
            .collect();
        assert_eq!(self.published, live);
        assert_eq!(live.len(), count(&|_, session| is_live(session)), "two live links");
        for peer in &self.peers {
            assert_eq!(self.table.live(peer), live.get(peer).copied());
        }
    }

    fn check_caps(&self, usage: &Usage) {
        let caps = &self.caps;
        assert!(usage.inbound <= caps.inbound.min(caps.sessions) + REPLACED_MAX);
        assert!(usage.outbound <= caps.outbound && usage.dialling <= caps.dials);
        // Beyond their cap are only sessions that were told to end.
        let inbound = self.sessions.iter().filter(|(link, _)| link.dialler != self.me);
        let staying = inbound.filter(|(_, session)| !session.ending).count();
        assert!(staying <= caps.inbound && staying + usage.outbound <= caps.sessions);
        assert!(self.open.len() <= caps.intents);
        assert!(self.peers.iter().all(|peer| self.open_at(peer) <= self.intents_per_peer));
    }

    fn check_bans(&self) {
        for peer in &self.peers {
            let is_banned = self.bans.contains_key(peer);
            assert!(is_banned || !self.table.is_banned(peer), "{peer} is not banned");
            let mut own = self.sessions.values().filter(|session| session.peer == *peer);
            assert!(!is_banned || own.all(|session| session.ending), "{peer} is banned");
        }
    }

    /// Whatever waits has a timer, but for those who wait for a slot; and then there is none.
    fn check_progress(&self, usage: &Usage) {
        let ends = |session: &Session| {
            session.ending || session.goodbye || session.stage != Stage::Welcomed
        };
        let mut has_timer = self.sessions.values().any(ends)
            || self.open.values().any(|open| open.deadline.is_some());
        for peer in &self.peers {
            let Some(why) = self.why(peer) else { continue };
            has_timer |= match why.state {
                PeerState::Connected => why.holds == 0,
                PeerState::Waiting => false,
                // Also whoever is only remembered.
                _ => true,
            };
            self.check_peer(peer, &why, usage);
        }
        assert!(!has_timer || self.table.next_timeout().is_some(), "nothing will ever happen");
    }

    fn check_peer(&self, peer: &EndpointId, why: &Why, usage: &Usage) {
        let (caps, wanted) = (&self.caps, self.open_at(peer) > 0);
        match why.state {
            PeerState::Connected => assert_eq!(why.waiting, 0),
            PeerState::Waiting => {
                let inbound = usage.inbound.min(caps.inbound);
                let is_busy = usage.dialling >= caps.dials
                    || usage.outbound >= caps.outbound
                    || inbound + usage.outbound >= caps.sessions;
                assert!(wanted && is_busy, "{peer} waits for a slot that is free");
            }
            PeerState::BackingOff => assert!(why.retry_in.is_some()),
            PeerState::Draining => assert!(!wanted || why.retry_in.is_some()),
            PeerState::Idle | PeerState::Banned => assert!(!wanted, "{peer} is forgotten"),
            PeerState::Connecting | PeerState::Greeting => {}
        }
    }

    /// Whether an intent may end like this, given what the table was just told.
    pub(super) fn check_outcome(&self, id: IntentId, open: &Open, outcome: Outcome) {
        if let Doing::Queueing(queued, refusal) = self.doing
            && queued == id
        {
            assert_eq!(Some(outcome), refusal);
            return;
        }
        let is_right = match outcome {
            Outcome::ShuttingDown => self.shut_down,
            Outcome::Banned => self.bans.contains_key(&open.peer),
            Outcome::TimedOut => open.deadline.is_some_and(|at| at <= self.now),
            Outcome::Cancelled => {
                self.doing == Doing::Cancelling(id) || self.doing == Doing::Disconnecting(open.peer)
            }
            // A hold outlives every failure.
            Outcome::Refused(_) | Outcome::Failed(_) => {
                self.doing == Doing::Ending(open.peer) && open.want == Want::Stream
            }
            Outcome::Done | Outcome::Unknown | Outcome::Restarted => false,
        };
        assert!(is_right, "{id:?} ended as {outcome:?} while {:?}", self.doing);
    }
}
