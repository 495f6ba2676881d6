//! What spans peers: caps, fairness, memory and the end of everything.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a test may fail this way"
)]

use std::collections::BTreeSet;
use std::time::Instant;

use iroh_base::{EndpointId, SecretKey};
use kinfolk_core::code::Code;
use kinfolk_core::id::{Incarnation, LinkId};
use kinfolk_core::intent::{Failure, Intent, IntentId, Outcome, Priority, Want};
use kinfolk_core::limits::Limits;
use kinfolk_core::peer_link::{DialFailure, Incoming, Input, LinkEnd, Output};
use kinfolk_core::peer_table::PeerTable;

type Told = Vec<(EndpointId, Output)>;

fn id(n: u32) -> EndpointId {
    let mut bytes = [0; 32];
    bytes[..4].copy_from_slice(&n.to_be_bytes());
    SecretKey::from_bytes(&bytes).public()
}

struct Bench {
    table: PeerTable,
    now: Instant,
    arrivals: u64,
}

impl Bench {
    fn new(change: impl FnOnce(&mut Limits)) -> Self {
        let mut limits = Limits::default();
        change(&mut limits);
        let table = PeerTable::new(id(0), Incarnation::new(1), &limits, 7);
        Self { table, now: Instant::now(), arrivals: 0 }
    }

    fn tell(&mut self, peer: u32, input: Input) -> Told {
        let mut out = Vec::new();
        self.table.handle(self.now, id(peer), input, &mut out);
        out
    }

    fn want(&mut self, peer: u32, intent: u64, want: Want) -> Told {
        let (priority, deadline) = (Priority::default(), None);
        let intent = Intent { id: IntentId(intent), want, priority, deadline };
        self.tell(peer, Input::Queue(intent))
    }

    fn arrive(&mut self, peer: u32, n: u64) -> Told {
        self.arrivals += 1;
        let link = LinkId { dialler: id(peer), incarnation: Incarnation::new(9), n };
        let incoming = Incoming { link, dead: vec![], arrival: self.arrivals };
        self.tell(peer, Input::Incoming { incoming, room: true })
    }

    fn fail(&mut self, peer: u32, link: LinkId) -> Told {
        let end = LinkEnd::DialFailed(DialFailure::TimedOut);
        self.tell(peer, Input::Ended { link, end })
    }
}

fn dials(told: &Told) -> Vec<(EndpointId, LinkId)> {
    let dial = |(peer, output): &(EndpointId, Output)| match output {
        Output::Dial(link) => Some((*peer, *link)),
        _ => None,
    };
    told.iter().filter_map(dial).collect()
}

fn ends(told: &Told) -> Vec<(u64, Outcome)> {
    let end = |(_, output): &(EndpointId, Output)| match output {
        Output::End(id, outcome, _) => Some((id.0, *outcome)),
        _ => None,
    };
    told.iter().filter_map(end).collect()
}

fn is_refused(told: &Told, code: Code) -> bool {
    told.iter().any(|(_, output)| matches!(output, Output::Refuse(_, refused) if *refused == code))
}

#[test]
fn many_intents_for_one_peer_cost_one_dial() {
    let mut bench = Bench::new(|_| {});
    let mut all = 0;
    for intent in 0..50 {
        all += dials(&bench.want(1, intent, Want::Stream)).len();
    }
    assert_eq!(all, 1);
}

#[test]
fn dials_are_numbered_and_granted_in_the_order_in_which_peers_came() {
    let mut bench = Bench::new(|limits| limits.dials = 2);
    let mut started = Vec::new();
    for peer in 1..=4 {
        // A peer that wants much more than the others gets no more of the slots.
        for intent in 0..10 {
            started.extend(dials(&bench.want(peer, u64::from(peer) * 100 + intent, Want::Stream)));
        }
    }
    assert_eq!(started.iter().map(|(peer, _)| *peer).collect::<Vec<_>>(), [id(1), id(2)]);
    let told = bench.fail(1, started[0].1);
    assert_eq!(dials(&told), [(id(3), LinkId { n: 3, ..started[0].1 })]);
    let told = bench.fail(2, started[1].1);
    assert_eq!(dials(&told).first().map(|(peer, _)| *peer), Some(id(4)));
}

#[test]
fn more_sessions_than_allowed_are_refused_as_busy() {
    let mut bench = Bench::new(|limits| limits.sessions_inbound = 2);
    assert!(!is_refused(&bench.arrive(1, 1), Code::Busy));
    assert!(!is_refused(&bench.arrive(2, 1), Code::Busy));
    assert!(is_refused(&bench.arrive(3, 1), Code::Busy));
}

#[test]
fn a_peer_that_is_connected_may_replace_its_link_though_no_more_fit() {
    let mut bench = Bench::new(|limits| limits.sessions_inbound = 1);
    bench.arrive(1, 1);
    assert!(!is_refused(&bench.arrive(1, 2), Code::Busy));
}

#[test]
fn inbound_sessions_leave_room_for_dials_of_our_own() {
    let mut bench = Bench::new(|limits| {
        limits.sessions = 3;
        limits.sessions_inbound = 2;
    });
    for peer in 1..=5 {
        bench.arrive(peer, 1);
    }
    assert_eq!(dials(&bench.want(9, 1, Want::Hold)).len(), 1);
}

#[test]
fn a_dial_waits_while_every_session_is_taken_and_starts_when_one_ends() {
    let mut bench = Bench::new(|limits| limits.sessions = 1);
    bench.arrive(1, 1);
    assert_eq!(dials(&bench.want(2, 1, Want::Stream)), []);
    let link = LinkId { dialler: id(1), incarnation: Incarnation::new(9), n: 1 };
    let told = bench.tell(1, Input::Ended { link, end: LinkEnd::Lost });
    assert_eq!(dials(&told).first().map(|(peer, _)| *peer), Some(id(2)));
}

#[test]
fn intents_beyond_the_total_are_refused_at_once() {
    let mut bench = Bench::new(|limits| limits.intents = 3);
    for peer in 1..=3 {
        assert_eq!(ends(&bench.want(peer, u64::from(peer), Want::Stream)), []);
    }
    let told = bench.want(4, 4, Want::Stream);
    assert_eq!(ends(&told), [(4, Outcome::Failed(Failure::QueueFull))]);
}

#[test]
fn a_hold_that_is_told_again_is_still_one_hold() {
    let mut bench = Bench::new(|_| {});
    bench.want(1, 1, Want::Hold);
    assert_eq!(bench.want(1, 1, Want::Hold), []);
    assert_eq!(bench.table.why(bench.now, &id(1)).map(|why| why.holds), Some(1));
}

#[test]
fn only_memories_are_evicted_when_the_table_is_full() {
    let mut bench = Bench::new(|limits| limits.peers = 2);
    bench.arrive(1, 1);
    bench.arrive(2, 1);
    assert!(is_refused(&bench.arrive(3, 1), Code::Busy));
    assert_eq!(
        ends(&bench.want(4, 1, Want::Stream)),
        [(1, Outcome::Failed(Failure::TooManyPeers))]
    );
    let link = LinkId { dialler: id(1), incarnation: Incarnation::new(9), n: 1 };
    bench.tell(1, Input::Ended { link, end: LinkEnd::Lost });
    assert!(!is_refused(&bench.arrive(3, 1), Code::Busy));
    assert!(bench.table.why(bench.now, &id(1)).is_none());
    assert!(bench.table.live(&id(2)).is_some());
}

#[test]
fn a_peer_that_was_forgotten_waits_for_no_dial_slot() {
    let mut bench = Bench::new(|limits| limits.sessions = 1);
    bench.arrive(1, 1);
    for intent in 0..1000 {
        bench.want(2, intent, Want::Stream);
        let mut out = Vec::new();
        bench.table.cancel(bench.now, IntentId(intent), &mut out);
        assert_eq!(ends(&out), [(intent, Outcome::Cancelled)]);
    }
    let link = LinkId { dialler: id(1), incarnation: Incarnation::new(9), n: 1 };
    let told = bench.tell(1, Input::Ended { link, end: LinkEnd::Lost });
    assert_eq!(dials(&told), []);
    assert_eq!(dials(&bench.want(3, 5000, Want::Stream)).len(), 1);
}

#[test]
fn timeouts_always_move_on() {
    let mut bench = Bench::new(|_| {});
    for peer in 1..200 {
        bench.want(peer, u64::from(peer), Want::Hold);
    }
    for _ in 0..2000 {
        let Some(due) = bench.table.next_timeout() else { return };
        bench.now = bench.now.max(due);
        let mut out = Vec::new();
        bench.table.handle_timeout(bench.now, &mut out);
        assert!(bench.table.next_timeout().is_none_or(|next| next > bench.now));
        // Every session that is told to end does.
        let ended: BTreeSet<(EndpointId, LinkId)> = out
            .iter()
            .filter_map(|(peer, output)| match output {
                Output::Close(link, _) | Output::Kill(link) => Some((*peer, *link)),
                _ => None,
            })
            .collect();
        for (peer, link) in ended {
            let mut out = Vec::new();
            let end = LinkEnd::Closed(Code::DeadlineExceeded);
            bench.table.handle(bench.now, peer, Input::Ended { link, end }, &mut out);
        }
    }
}

#[test]
fn after_a_shutdown_every_intent_has_ended_and_no_session_is_left() {
    let mut bench = Bench::new(|limits| limits.dials = 2);
    let mut sessions = Vec::new();
    for peer in 1..=6 {
        sessions.extend(dials(&bench.want(peer, u64::from(peer), Want::Stream)));
        bench.want(peer, u64::from(peer) + 100, Want::Hold);
    }
    bench.arrive(7, 1);
    let mut out = Vec::new();
    bench.table.shut_down(bench.now, &mut out);
    let mut ended = ends(&out);
    ended.sort_by_key(|(id, _)| *id);
    assert_eq!(ended.len(), 12);
    assert!(ended.iter().all(|(_, outcome)| *outcome == Outcome::ShuttingDown));
    assert_eq!(dials(&out), []);

    let end = LinkEnd::Closed(Code::ShuttingDown);
    for (peer, link) in sessions {
        bench.table.handle(bench.now, peer, Input::Ended { link, end }, &mut out);
    }
    let link = LinkId { dialler: id(7), incarnation: Incarnation::new(9), n: 1 };
    bench.tell(7, Input::Ended { link, end: LinkEnd::Drained });
    assert!(bench.table.is_empty());
    assert_eq!(ends(&bench.want(8, 8, Want::Stream)), [(8, Outcome::ShuttingDown)]);
    assert!(is_refused(&bench.arrive(9, 1), Code::ShuttingDown));
}
