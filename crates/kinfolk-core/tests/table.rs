//! What spans peers: caps, fairness, memory and the end of everything.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a test may fail this way"
)]

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use iroh_base::{EndpointId, SecretKey};
use kinfolk_core::code::Code;
use kinfolk_core::id::{Incarnation, LinkId};
use kinfolk_core::intent::{Failure, Intent, IntentId, Outcome, Priority, Want};
use kinfolk_core::limits::Limits;
use kinfolk_core::peer_link::{
    DialFailure, Incoming, Input, LinkEnd, Output, PeerEvent, PeerState,
};
use kinfolk_core::peer_table::{PeerTable, REPLACED_MAX};
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

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
        self.arrive_of(peer, 9, n, vec![])
    }

    fn arrive_of(&mut self, peer: u32, life: u64, n: u64, dead: Vec<LinkId>) -> Told {
        self.arrivals += 1;
        let link = LinkId { dialler: id(peer), incarnation: Incarnation::new(life), n };
        let incoming = Incoming { link, dead, arrival: self.arrivals };
        self.tell(peer, Input::Incoming { incoming, room: true })
    }

    fn inbound(&self) -> usize {
        self.table.totals(self.now).usage.inbound
    }

    /// A live link of our own with the peer.
    fn dial(&mut self, peer: u32) -> LinkId {
        let link = dials(&self.want(peer, u64::from(peer) + 10_000, Want::Hold))[0].1;
        self.tell(peer, Input::Connected { link });
        self.arrivals += 1;
        let incarnation = Incarnation::new(9);
        self.tell(peer, Input::Welcomed { link, incarnation, arrival: self.arrivals });
        assert_eq!(self.table.live(&id(peer)), Some(link));
        link
    }

    fn ban(&mut self, peer: u32) -> Told {
        let until = self.now + Duration::from_secs(3600);
        self.tell(peer, Input::Ban { until })
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
fn a_new_address_of_the_node_ends_every_backoff_within_a_second_as_far_as_dials_may_run() {
    let mut bench = Bench::new(|limits| limits.dials = 2);
    for peer in 1..=3 {
        let link = dials(&bench.want(peer, u64::from(peer), Want::Hold))[0].1;
        assert_eq!(dials(&bench.fail(peer, link)), []);
    }
    // One that nobody wants any more, and that has used up its one chance to be dialled before its time.
    let link = dials(&bench.want(4, 4, Want::Hold))[0].1;
    bench.fail(4, link);
    bench.tell(4, Input::Cancel(IntentId(4)));
    let link = dials(&bench.want(4, 5, Want::Hold))[0].1;
    bench.fail(4, link);
    bench.tell(4, Input::Cancel(IntentId(5)));
    let mut told = Vec::new();
    bench.table.network_news(bench.now, &mut told);
    assert_eq!(dials(&told), [], "others have the news in the same instant");
    bench.now += Duration::from_secs(1);
    bench.table.handle_timeout(bench.now, &mut told);
    let dialled: BTreeSet<_> = dials(&told).into_iter().map(|(peer, _)| peer).collect();
    assert_eq!(dialled.len(), 2);
    assert!(dialled.is_subset(&(1..=3).map(id).collect()));
    assert_eq!(bench.table.totals(bench.now).waiting, 1);
    // It waits for a dial, and for no backoff.
    bench.want(4, 6, Want::Hold);
    assert_eq!(bench.table.why(bench.now, &id(4)).unwrap().state, PeerState::Waiting);
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

/// Which link of the peer is told to end, and whether it may drain.
fn endings(told: &Told) -> Vec<(LinkId, bool)> {
    let ending = |(_, output): &(EndpointId, Output)| match output {
        Output::Drain(link, ..) => Some((*link, true)),
        Output::Close(link, _) | Output::Kill(link) => Some((*link, false)),
        _ => None,
    };
    told.iter().filter_map(ending).collect()
}

#[test]
fn a_link_that_its_peer_replaced_drains_once_and_then_the_next_is_closed_at_once() {
    let mut bench = Bench::new(|_| {});
    let link = |n| LinkId { dialler: id(1), incarnation: Incarnation::new(9), n };
    bench.arrive(1, 1);
    assert_eq!(endings(&bench.arrive(1, 2)), [(link(1), true)]);
    for n in 3..20 {
        assert_eq!(endings(&bench.arrive(1, n)), [(link(n - 1), false)]);
        let end = LinkEnd::Closed(Code::Replaced);
        bench.tell(1, Input::Ended { link: link(n - 1), end });
    }
    assert_eq!(bench.inbound(), 2);
}

#[test]
fn a_link_that_its_peer_replaced_is_closed_at_once_when_no_more_fit() {
    let mut bench = Bench::new(|limits| limits.sessions_inbound = 1);
    bench.arrive(1, 1);
    let link = LinkId { dialler: id(1), incarnation: Incarnation::new(9), n: 1 };
    assert_eq!(endings(&bench.arrive(1, 2)), [(link, false)]);
}

#[test]
fn a_peer_may_not_turn_a_dial_of_ours_into_a_link_of_its_own_when_no_more_fit() {
    let mut bench = Bench::new(|limits| limits.sessions_inbound = 1);
    let ours = bench.dial(1);
    bench.arrive(2, 1);
    assert!(is_refused(&bench.arrive_of(1, 9, 1, vec![ours]), Code::Busy));
    assert_eq!(bench.table.live(&id(1)), Some(ours));
    let link = LinkId { dialler: id(2), incarnation: Incarnation::new(9), n: 1 };
    bench.tell(2, Input::Ended { link, end: LinkEnd::Lost });
    assert!(!is_refused(&bench.arrive_of(1, 9, 2, vec![ours]), Code::Busy));
}

#[test]
fn peers_that_replace_their_links_for_ever_stop_at_the_cap_and_never_stop_a_dial_of_ours() {
    let mut bench = Bench::new(|limits| {
        limits.sessions = 5;
        limits.sessions_inbound = 4;
    });
    for n in 1..=100 {
        for peer in 1..=8 {
            bench.arrive(peer, n);
        }
    }
    assert_eq!(bench.inbound(), 4 + REPLACED_MAX);
    assert!(is_refused(&bench.arrive(1, 1000), Code::Busy));
    assert_eq!(dials(&bench.want(9, 1, Want::Hold)).len(), 1);
}

fn config() -> ProptestConfig {
    let regressions = FileFailurePersistence::WithSource("regressions");
    ProptestConfig {
        cases: 64,
        failure_persistence: Some(Box::new(regressions)),
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config())]

    /// Peers dial, restart, list our links as dead and say goodbye as they like, and not one session is reported to have ended.
    #[test]
    fn nothing_that_others_do_makes_inbound_sessions_exceed_their_cap_by_more_than_the_replaced(
        steps in prop::collection::vec((1_u32..=6, 0_u8..8, 1_u64..=2), 1..200),
    ) {
        const CAP: usize = 3;
        let mut bench = Bench::new(|limits| limits.sessions_inbound = CAP);
        for peer in [1, 2] {
            bench.dial(peer);
        }
        let mut ending = BTreeSet::new();
        for (n, (peer, action, life)) in (1..).zip(steps) {
            let live = bench.table.live(&id(peer));
            let told = match (action, live) {
                (0, Some(link)) => {
                    ending.insert((id(peer), link));
                    bench.tell(peer, Input::Draining { link, code: Code::Ok })
                }
                (1, _) => {
                    bench.now += Duration::from_secs(1);
                    let mut out = Vec::new();
                    bench.table.handle_timeout(bench.now, &mut out);
                    out
                }
                (2..4, Some(link)) => bench.arrive_of(peer, life, n, vec![link]),
                _ => bench.arrive_of(peer, life, n, vec![]),
            };
            for (peer, output) in &told {
                if let Output::Close(link, _) | Output::Drain(link, ..) | Output::Kill(link) = output {
                    ending.insert((*peer, *link));
                }
            }
            prop_assert!(bench.inbound() <= CAP + REPLACED_MAX);
        }
        prop_assert_eq!(dials(&bench.want(9, 1, Want::Hold)).len(), 1);
        // Once all that was told to end has ended, the cap itself holds again.
        for (peer, link) in ending {
            let input = Input::Ended { link, end: LinkEnd::Lost };
            bench.table.handle(bench.now, peer, input, &mut Vec::new());
        }
        prop_assert!(bench.inbound() <= CAP, "{} are left", bench.inbound());
    }
}

// Bans

#[test]
fn bans_leave_the_table_to_those_who_are_wanted() {
    let mut bench = Bench::new(|limits| limits.peers = 3);
    for peer in 1..=100 {
        bench.ban(peer);
    }
    assert!(!is_refused(&bench.arrive(201, 1), Code::Busy));
    assert_eq!(ends(&bench.want(202, 1, Want::Stream)), []);
    assert_eq!(bench.table.totals(bench.now).peers, 3);
}

#[test]
fn a_ban_that_was_evicted_holds_again_once_it_is_told_again() {
    let mut bench = Bench::new(|limits| limits.peers = 1);
    bench.ban(1);
    assert!(bench.table.is_banned(&id(1)));
    bench.ban(2);
    assert!(!bench.table.is_banned(&id(1)));
    bench.ban(1);
    assert!(bench.table.is_banned(&id(1)));
    assert_eq!(ends(&bench.want(1, 1, Want::Stream)), [(1, Outcome::Banned)]);
    assert!(is_refused(&bench.arrive(1, 1), Code::Banned));
}

#[test]
fn a_ban_that_finds_no_room_is_reported_and_evicts_nobody() {
    let mut bench = Bench::new(|limits| limits.peers = 2);
    bench.arrive(1, 1);
    bench.want(2, 1, Want::Hold);
    let told = bench.ban(3);
    let until = bench.now + Duration::from_secs(3600);
    assert_eq!(told, [(id(3), Output::Event(PeerEvent::Banned(until)))]);
    assert!(!bench.table.is_banned(&id(3)));
    assert!(bench.table.live(&id(1)).is_some());
    assert_eq!(bench.table.why(bench.now, &id(2)).map(|why| why.holds), Some(1));
}

#[test]
fn a_peer_that_is_banned_while_connected_is_evicted_only_after_its_session_has_ended() {
    let mut bench = Bench::new(|limits| limits.peers = 1);
    bench.arrive(1, 1);
    let link = endings(&bench.ban(1))[0].0;
    assert!(is_refused(&bench.arrive(2, 1), Code::Busy));
    bench.tell(1, Input::Ended { link, end: LinkEnd::Closed(Code::Banned) });
    assert!(!is_refused(&bench.arrive(2, 1), Code::Busy));
}

#[test]
fn banned_peers_are_listed_until_the_ban_is_over() {
    let mut bench = Bench::new(|_| {});
    bench.ban(1);
    let states: Vec<_> =
        bench.table.peers(bench.now).iter().map(|summary| summary.why.state).collect();
    assert_eq!(states, [PeerState::Banned]);
    bench.now = bench.table.next_timeout().unwrap();
    let mut out = Vec::new();
    bench.table.handle_timeout(bench.now, &mut out);
    assert_eq!(out, [(id(1), Output::Event(PeerEvent::Unbanned))]);
    assert_eq!(bench.table.peers(bench.now), []);
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
        // The holds are never satisfied, so there is always something to wait for.
        let due = bench.table.next_timeout().unwrap();
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
