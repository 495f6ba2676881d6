//! Tests of the walk: each sentence of its page, and each way in which its predecessors failed.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::catalog::{Catalog, CatalogLimits, Input as Told, Sighting, Source};
use crate::gate::Rate;
use crate::id::NetworkId;
use crate::liveness::DISTANCES;
use crate::peer_link::Direction;
use crate::record::{Draft, Reach, Seq, UnixMillis};

mod hearsay;
mod hints;
mod neighbours;
mod online;

/// Ids without secret keys.
fn id(n: u32) -> EndpointId {
    let mut bytes = *blake3::hash(&n.to_be_bytes()).as_bytes();
    loop {
        if let Ok(id) = EndpointId::from_bytes(&bytes) {
            return id;
        }
        bytes = *blake3::hash(&bytes).as_bytes();
    }
}

const ME: u32 = u32::MAX;
const TELLER: u32 = u32::MAX - 1;
const MILLI: Duration = Duration::from_millis(1);
const HOUR: Duration = Duration::from_secs(3600);

/// One walk beside the catalog of its node.
struct Scene {
    catalog: Catalog,
    walk: Walk,
    bootstrap: Vec<EndpointId>,
    neighbours: Vec<EndpointId>,
    /// With whom there is a session, beside the neighbours.
    connected: BTreeSet<EndpointId>,
    start: Instant,
    now: Instant,
}

impl Scene {
    fn new(bootstrap: &[u32]) -> Self {
        Self::with(WalkLimits::default(), 7, bootstrap)
    }

    fn with(limits: WalkLimits, seed: u8, bootstrap: &[u32]) -> Self {
        let start = Instant::now();
        Self {
            catalog: Catalog::new(id(ME), CatalogLimits::default()),
            walk: Walk::new(id(ME), limits, [seed; 32]),
            bootstrap: bootstrap.iter().copied().map(id).collect(),
            neighbours: Vec::new(),
            connected: BTreeSet::new(),
            start,
            now: start,
        }
    }

    /// Any number of failed visits may be followed by another: for tests that are about something else.
    fn careless(bootstrap: &[u32]) -> Self {
        let hearsay = Rate::new(10_000, MILLI);
        Self::with(WalkLimits { hearsay, ..WalkLimits::default() }, 7, bootstrap)
    }

    /// The record that is known of a peer comes again, from the peer itself.
    fn hear_owner(&mut self, n: u32) {
        let record = self.catalog.known().get(&id(n)).unwrap().record().clone();
        let clock = UnixMillis::new(1_700_000_000_000);
        let sighting = Sighting::new(record, self.now, clock, Duration::ZERO);
        let source = Source::Peer { peer: id(n), reach: Reach::World };
        self.tell(Told::Heard { sighting, source });
    }

    fn tell(&mut self, input: Told) {
        self.catalog.handle(self.now, input, &mut Vec::new());
    }

    fn know(&mut self, peers: impl IntoIterator<Item = u32>) {
        let clock = UnixMillis::new(1_700_000_000_000);
        let draft = Draft::new(NetworkId::from_name("my-app")).with_ttl(crate::record::Ttl::MAX);
        for n in peers {
            let record = draft.forge(id(n), Seq::new(1), clock);
            let sighting = Sighting::new(record, self.now, clock, Duration::ZERO);
            let source = Source::Peer { peer: id(TELLER), reach: Reach::World };
            self.tell(Told::Heard { sighting, source });
        }
    }

    fn prove(&mut self, peers: impl IntoIterator<Item = u32>) {
        for n in peers {
            self.tell(Told::Connected { peer: id(n), direction: Direction::Outbound });
        }
    }

    fn say(&mut self, input: Input<'_>) -> Option<EndpointId> {
        let (known, bootstrap) = (self.catalog.known(), &self.bootstrap);
        let (neighbours, connected) = (&self.neighbours, &self.connected);
        let is_connected = |peer: &_| neighbours.contains(peer) || connected.contains(peer);
        let view = View { known, bootstrap, neighbours, is_connected: &is_connected };
        let mut out = Vec::new();
        self.walk.handle(self.now, input, view, &mut out);
        assert!(out.len() <= 1);
        let visit = out.first().map(|Output::Visit(peer)| *peer);
        if let Some(peer) = visit {
            assert_eq!(self.walk.visiting(), Some(peer));
            assert_ne!(peer, id(ME));
        }
        visit
    }

    fn wake(&mut self, reason: Wake) -> Option<EndpointId> {
        self.say(Input::Wake(reason))
    }

    /// The visit ends with so much learnt and these peers brought.
    fn end(
        &mut self,
        peer: EndpointId,
        learnt: usize,
        brought: &[EndpointId],
    ) -> Option<EndpointId> {
        self.say(Input::Ended { peer, visit: Visit::Exchanged { learnt, brought } })
    }

    fn fail(&mut self, peer: EndpointId) -> Option<EndpointId> {
        self.tell(Told::Missed(peer));
        self.say(Input::Ended { peer, visit: Visit::Failed })
    }

    /// Lets time pass until the walk visits somebody.
    fn wait(&mut self) -> EndpointId {
        for _ in 0..10_000 {
            self.now = self.now.max(self.walk.next_timeout().expect("the walk rests for ever"));
            if let Some(peer) = self.say(Input::Timeout) {
                return peer;
            }
        }
        panic!("the walk visits nobody");
    }

    /// All visits until `until`, each of which ends as told at once.
    fn visits(
        &mut self,
        mut next: Option<EndpointId>,
        until: Instant,
        mut end: impl FnMut(&mut Self, EndpointId) -> Option<EndpointId>,
    ) -> Vec<(Instant, EndpointId)> {
        let mut visits = Vec::new();
        loop {
            while let Some(peer) = next {
                visits.push((self.now, peer));
                assert!(visits.len() < 100_000, "the walk never rests");
                next = end(self, peer);
            }
            match self.walk.next_timeout() {
                Some(at) if at <= until => self.now = self.now.max(at),
                _ => return visits,
            }
            next = self.say(Input::Timeout);
        }
    }
}

/// An exchange that brought nothing to either side.
fn useless(scene: &mut Scene, peer: EndpointId) -> Option<EndpointId> {
    scene.end(peer, 0, &[])
}

#[test]
fn a_walk_rests_until_it_is_woken() {
    let mut scene = Scene::new(&[1]);
    assert_eq!(scene.walk.next_timeout(), None);
    assert_eq!(scene.say(Input::Timeout), None);
    assert_eq!(scene.wake(Wake::Started), Some(id(1)));
}

#[test]
fn the_next_peer_is_one_of_those_that_the_last_visit_brought() {
    let mut from_trail = 0;
    for seed in 0..200 {
        let mut scene = Scene::with(WalkLimits::default(), seed, &[1]);
        scene.know(2..1000);
        scene.wake(Wake::Appeared(id(1)));
        scene.end(id(1), 500, &[id(500), id(501), id(502)]);
        let next = scene.wait();
        from_trail += usize::from([id(500), id(501), id(502)].contains(&next));
    }
    assert!((150..200).contains(&from_trail), "{from_trail} of 200");
}

#[test]
fn a_walk_that_was_brought_nowhere_begins_anew() {
    let mut scene = Scene::new(&[1]);
    scene.know(2..100);
    scene.wake(Wake::Started);
    let first = scene.walk.visiting().unwrap();
    scene.end(first, 0, &[]);
    assert_ne!(scene.wait(), first);
}

#[test]
fn peers_that_were_not_visited_and_such_as_are_proven_are_preferred() {
    let mut scene = Scene::new(&[]);
    scene.know(0..16);
    scene.prove(0..8);
    let mut proven_first = 0;
    for seed in 0..200 {
        scene.walk = Walk::new(id(ME), WalkLimits::default(), [seed; 32]);
        let first = scene.wake(Wake::Started).unwrap();
        proven_first += usize::from((0..8).any(|n| id(n) == first));
        scene.end(first, 0, &[]);
        scene.now += HOUR;
        let second = scene.say(Input::Timeout).unwrap();
        scene.end(second, 0, &[]);
    }
    assert!((115..150).contains(&proven_first), "{proven_first} of 200");
    // Sixteen peers, visited at any pace: the first eight visits go to nearly eight of them.
    scene.walk = Walk::new(id(ME), WalkLimits::default(), [9; 32]);
    let mut next = scene.wake(Wake::Started);
    let mut seen = BTreeSet::new();
    for _ in 0..8 {
        let peer = next.unwrap();
        seen.insert(peer);
        scene.end(peer, 0, &[]);
        scene.now += HOUR;
        next = scene.say(Input::Timeout);
    }
    assert!(seen.len() >= 7, "{}", seen.len());
}

#[test]
fn a_dead_bootstrap_peer_never_blocks_live_known_ones() {
    let mut scene = Scene::new(&[1]);
    scene.know(2..10);
    let first = scene.wake(Wake::Started);
    let until = scene.now + Duration::from_secs(45);
    let visits = scene.visits(first, until, |scene, peer| {
        if peer == id(1) { scene.fail(peer) } else { useless(scene, peer) }
    });
    let dead = visits.iter().filter(|(_, peer)| *peer == id(1)).count();
    let live: BTreeSet<_> = visits.iter().map(|(_, peer)| *peer).filter(|p| *p != id(1)).collect();
    assert!(dead <= 3, "{dead} dials to the dead one");
    assert!(live.len() >= 6, "{} of 8 live ones", live.len());
}

#[test]
fn a_dead_bootstrap_peer_is_tried_again_when_nobody_else_is_known() {
    let mut scene = Scene::new(&[1]);
    let first = scene.wake(Wake::Started);
    let until = scene.now + Duration::from_secs(5);
    let visits = scene.visits(first, until, Scene::fail);
    assert!((3..20).contains(&visits.len()), "{}", visits.len());
    let until = scene.now + 24 * HOUR;
    let visits = scene.visits(None, until, Scene::fail);
    // Every fifteen seconds on average.
    assert!((5000..6500).contains(&visits.len()), "{}", visits.len());
}

#[test]
fn a_busy_bootstrap_peer_is_no_missed_one() {
    let mut scene = Scene::new(&[1]);
    scene.know([2]);
    let mut next = scene.wake(Wake::Started);
    let mut visits = Vec::new();
    for _ in 0..4 {
        let peer = next.take().unwrap_or_else(|| scene.wait());
        visits.extend((peer == id(1)).then_some(scene.now));
        next = scene.say(Input::Ended { peer, visit: Visit::Refused });
    }
    // One that was missed is left alone for half a minute.
    assert!(visits.len() >= 2 && visits[1] - visits[0] < Duration::from_secs(30), "{visits:?}");
}

#[test]
fn with_several_bootstrap_peers_the_dead_ones_give_way_to_the_live_one() {
    let mut scene = Scene::new(&[1, 2, 3]);
    let mut next = scene.wake(Wake::Started).unwrap();
    for _ in 0..3 {
        if next == id(3) {
            return;
        }
        scene.fail(next);
        next = scene.wait();
    }
    panic!("three dials and the live one was not among them");
}

#[test]
fn the_first_three_visits_are_to_bootstrap_peers_and_the_next_to_known_ones_if_they_are_dead() {
    let mut scene = Scene::new(&[1, 2, 3, 4, 5, 6, 7, 8]);
    scene.know(100..1000);
    let first = scene.wake(Wake::Started);
    let until = scene.now + Duration::from_secs(1);
    let visits = scene.visits(first, until, Scene::fail);
    let is_bootstrap: Vec<_> =
        visits.iter().map(|(_, peer)| scene.bootstrap.contains(peer)).collect();
    assert!(is_bootstrap.starts_with(&[true, true, true]));
    assert!(is_bootstrap[3..].contains(&false));
}

#[test]
fn a_walk_that_has_met_enough_peers_tries_hearsay_once_an_hour() {
    let mut scene = Scene::new(&[]);
    scene.know(0..1000);
    let mut next = scene.wake(Wake::Started);
    let mut met = BTreeSet::new();
    for _ in 0..ENOUGH {
        let peer = next.unwrap_or_else(|| scene.wait());
        scene.tell(Told::Connected { peer, direction: Direction::Outbound });
        scene.tell(Told::Disconnected(peer));
        met.insert(peer);
        next = scene.end(peer, 100, &[]);
    }
    let until = scene.now + 10 * HOUR;
    let visits = scene.visits(next, until, useless);
    let strangers: Vec<_> = visits.iter().filter(|(_, peer)| !met.contains(peer)).collect();
    assert!((8..=12).contains(&strangers.len()), "{} of {}", strangers.len(), visits.len());
    assert!(visits.len() > 100);
}

#[test]
fn a_single_newcomer_is_not_visited_by_everybody_who_hears_of_it() {
    let mut visited = 0;
    for seed in 0..100 {
        let mut scene = Scene::with(WalkLimits::default(), seed, &[]);
        scene.know(0..200);
        let peer = scene.wake(Wake::Started).unwrap();
        scene.end(peer, 1, &[id(100)]);
        visited += usize::from(scene.wait() == id(100));
    }
    assert!(visited <= 5, "{visited} of 100");
}

#[test]
fn a_missed_peer_is_visited_again_when_it_is_due() {
    let mut scene = Scene::careless(&[]);
    scene.know([1]);
    let mut peer = scene.wake(Wake::Started).unwrap();
    for distance in DISTANCES {
        let missed = scene.now;
        scene.fail(peer);
        peer = scene.wait();
        assert!(scene.now - missed >= distance);
        assert!(scene.now - missed <= distance + WalkLimits::default().longest_wait);
    }
    scene.end(peer, 1, &[]);
    scene.tell(Told::Connected { peer, direction: Direction::Outbound });
    scene.wait();
}

#[test]
fn a_silent_peer_stops_no_walk() {
    let mut scene = Scene::careless(&[]);
    scene.know(1..3);
    let silent = scene.wake(Wake::Started).unwrap();
    scene.now = scene.walk.next_timeout().unwrap();
    scene.tell(Told::Missed(silent));
    assert_eq!(scene.say(Input::Timeout), None);
    let next = scene.wait();
    assert_ne!(next, silent);
    // What comes of it after all is no news of the visit that is under way.
    assert_eq!(scene.end(silent, 9, &[]), None);
    assert_eq!(scene.walk.visiting(), Some(next));
}

#[test]
fn empty_replies_lead_to_near_silence() {
    for peers in [1, 2, 50] {
        let mut scene = Scene::new(&[1000]);
        scene.know(0..peers);
        let first = scene.wake(Wake::Started);
        let until = scene.now + 2 * HOUR;
        let visits = scene.visits(first, until, useless);
        let late = visits.iter().filter(|(at, _)| *at > scene.start + HOUR).count();
        assert!(visits.len() < 100, "{} visits", visits.len());
        assert!((8..60).contains(&late), "{late} visits in an hour at rest");
    }
}

#[test]
fn the_wait_is_short_at_first_and_doubles() {
    let mut bounds = Vec::new();
    let mut scene = Scene::new(&[1]);
    for _ in 0..20 {
        bounds.push(scene.walk.doubled());
        scene.walk.slow_down();
    }
    assert_eq!(bounds[..3], [Duration::ZERO, 50 * MILLI, 100 * MILLI]);
    assert!(
        bounds[1..14].windows(2).all(|pair| pair[1] == pair[0] * 2 || pair[1] == 5 * HOUR / 60)
    );
    assert_eq!(bounds[19], Duration::from_secs(300));
}

#[test]
fn while_there_is_news_the_next_visit_follows_within_milliseconds() {
    let mut scene = Scene::new(&[1]);
    scene.know(2..40);
    scene.prove(2..40);
    let mut peer = scene.wake(Wake::Started).unwrap();
    for _ in 0..20 {
        let ended = scene.now;
        scene.end(peer, 5, &[]);
        peer = scene.wait();
        assert!(scene.now - ended <= 10 * MILLI);
    }
}

#[test]
fn a_little_news_halves_the_wait_and_does_not_end_it() {
    let mut scene = Scene::new(&[]);
    scene.know(0..200);
    scene.wake(Wake::Started);
    scene.walk.level = 8;
    let peer = scene.walk.visiting().unwrap();
    scene.end(peer, 1, &[]);
    assert_eq!(scene.walk.level, 7);
    let peer = scene.wait();
    scene.end(peer, 50, &[]);
    assert_eq!(scene.walk.level, 0);
}

#[test]
fn news_without_end_gets_no_more_than_the_pace_of_visits() {
    let mut scene = Scene::new(&[]);
    scene.know(0..2000);
    scene.prove(0..2000);
    let first = scene.wake(Wake::Started);
    let until = scene.now + Duration::from_secs(1000);
    let visits = scene.visits(first, until, |scene, peer| scene.end(peer, 1_000_000, &[]));
    assert!((130..=134).contains(&visits.len()), "{}", visits.len());
}

#[test]
fn nobody_is_visited_twice_within_ten_seconds_whatever_the_news() {
    let mut scene = Scene::new(&[1, 2]);
    scene.know(3..6);
    let first = scene.wake(Wake::Started);
    let until = scene.now + 100 * Duration::from_secs(10);
    let visits = scene.visits(first, until, |scene, peer| scene.end(peer, 100, &[id(3)]));
    for (index, (at, peer)) in visits.iter().enumerate() {
        let before = visits[..index].iter().rev().find(|(_, other)| other == peer);
        assert!(before.is_none_or(|(before, _)| *at - *before >= Duration::from_secs(10)));
    }
    assert!(visits.len() > 50);
}

#[test]
fn a_walk_that_can_remember_no_more_visits_waits() {
    let visits = Rate::new(1000, MILLI);
    let limits = WalkLimits { visited: 4, visits, ..WalkLimits::default() };
    let mut scene = Scene::with(limits, 3, &[]);
    scene.know(0..50);
    let first = scene.wake(Wake::Started);
    let until = scene.now + Duration::from_secs(9);
    let visits = scene.visits(first, until, |scene, peer| scene.end(peer, 100, &[]));
    assert_eq!(visits.len(), 4);
}

#[test]
fn a_change_of_our_own_wakes_at_once_and_visits_whoever_was_just_visited() {
    for reason in [Wake::Changed, Wake::Online, Wake::Started] {
        let mut scene = Scene::new(&[1]);
        let peer = scene.wake(Wake::Started).unwrap();
        scene.end(peer, 0, &[]);
        assert_eq!(scene.wake(reason), Some(id(1)));
    }
}

#[test]
fn a_peer_that_shows_up_is_visited_at_once() {
    let mut scene = Scene::new(&[1]);
    scene.know(2..50);
    let peer = scene.wake(Wake::Started).unwrap();
    scene.end(peer, 0, &[]);
    assert_eq!(scene.wake(Wake::Appeared(id(99))), Some(id(99)));
    assert_eq!(scene.wake(Wake::Appeared(id(ME))), None);
}

#[test]
fn a_wake_up_during_a_visit_runs_right_after_it() {
    let mut scene = Scene::new(&[1]);
    let peer = scene.wake(Wake::Started).unwrap();
    assert_eq!(scene.wake(Wake::Changed), None);
    assert_eq!(scene.end(peer, 0, &[]), Some(id(1)));
    // It is not run twice.
    assert_eq!(scene.end(id(1), 0, &[]), None);
    scene.wait();
    assert_eq!(scene.wake(Wake::Appeared(id(50))), None);
    assert_eq!(scene.wake(Wake::Appeared(id(51))), None);
    assert_eq!(scene.wake(Wake::Appeared(id(50))), None);
    assert_eq!(scene.fail(id(1)), Some(id(50)));
    assert_eq!(scene.end(id(50), 0, &[]), Some(id(51)));
    assert_eq!(scene.end(id(51), 0, &[]), None);
}

#[test]
fn what_peers_told_us_of_their_own_accord_wakes_if_it_is_much_and_shortens_the_wait_if_not() {
    let mut scene = Scene::new(&[1]);
    let peer = scene.wake(Wake::Started).unwrap();
    scene.end(peer, 0, &[]);
    scene.walk.level = 10;
    scene.know(2..500);
    let told = scene.now;
    assert_eq!(scene.say(Input::Told { by: None, learnt: 3 }), None);
    assert_eq!(scene.walk.level, 9);
    scene.say(Input::Told { by: None, learnt: 498 });
    if scene.walk.visiting().is_none() {
        scene.wait();
    }
    assert!(scene.now - told <= 10 * MILLI);
}

#[test]
fn a_visit_of_another_walk_in_vain_slows_down_and_a_call_in_vain_does_not() {
    let mut scene = Scene::new(&[1]);
    let peer = scene.wake(Wake::Started).unwrap();
    scene.end(peer, 0, &[]);
    scene.know(2..500);
    scene.walk.level = 10;
    let due = scene.walk.next_timeout();
    assert_eq!(scene.say(Input::Told { by: None, learnt: 0 }), None);
    assert_eq!(scene.walk.level, 11);
    assert_eq!(scene.walk.next_timeout(), due, "the wait that has begun stays");
    assert_eq!(scene.say(Input::Told { by: Some(id(7)), learnt: 0 }), None);
    assert_eq!(scene.walk.level, 11);
    for _ in 0..100 {
        scene.say(Input::Told { by: None, learnt: 0 });
    }
    assert_eq!(scene.walk.doubled(), scene.walk.limits.longest_wait);
    assert!(scene.walk.level < 32);
}

#[test]
fn no_wait_is_bounded_by_less_than_the_pause_and_the_bound_grows_all_the_same() {
    let mut scene = Scene::new(&[1]);
    scene.know(0..100);
    scene.walk.limits.pause = Duration::from_secs(1);
    let mut longest = |level| {
        scene.walk.level = level;
        let (known, bootstrap) = (scene.catalog.known(), &scene.bootstrap);
        let is_connected = &|_: &EndpointId| false;
        let view = View { known, bootstrap, neighbours: &[], is_connected };
        (0..200).map(|_| scene.walk.draw_wait(view)).max().unwrap()
    };
    for (level, bound) in [(0, 1000), (1, 1000), (5, 1000), (7, 3200)] {
        let longest = longest(level).as_millis();
        assert!((bound * 9 / 10..=bound).contains(&longest), "{longest} of {bound} ms");
    }
    // Where all waits are this short, news and visits in vain are told apart nevertheless.
    scene.walk.limits.longest_wait = Duration::from_secs(1);
    scene.walk.level = 0;
    scene.walk.slow_down();
    assert_eq!(scene.walk.level, 1);
}

#[test]
fn a_visit_to_a_peer_that_has_shown_up_is_not_of_the_walks_own_choice() {
    let mut scene = Scene::new(&[1]);
    assert_eq!(scene.wake(Wake::Started), Some(id(1)));
    assert!(scene.walk.has_chosen());
    scene.wake(Wake::Appeared(id(50)));
    assert_eq!(scene.end(id(1), 0, &[]), Some(id(50)));
    assert!(!scene.walk.has_chosen());
}

#[test]
fn a_peer_that_wakes_again_and_again_pays_from_the_pace_of_visits() {
    let mut scene = Scene::careless(&[]);
    let mut visits = 0;
    for n in 0..1000 {
        let mut next = scene.wake(Wake::Appeared(id(n)));
        while let Some(peer) = next {
            visits += 1;
            next = scene.end(peer, 1, &[]);
        }
    }
    assert_eq!(visits, 32);
    assert_eq!(scene.walk.hints.len(), HINTS_MAX);
    assert_eq!(scene.walk.dropped_hints(), 1000 - 32 - 16);
}

#[test]
fn two_walkers_that_live_through_the_same_do_not_go_in_step() {
    let mut stories = BTreeSet::new();
    for seed in 0..50 {
        let mut scene = Scene::with(WalkLimits::default(), seed, &[1]);
        scene.know(2..100);
        let first = scene.wake(Wake::Started);
        let until = scene.now + HOUR;
        let start = scene.now;
        let visits = scene.visits(first, until, useless);
        let story: Vec<_> = visits.iter().map(|(at, peer)| (*at - start, *peer)).collect();
        assert!(stories.insert(story));
    }
    // The same seed is the same walk.
    let times = |seed| {
        let mut scene = Scene::with(WalkLimits::default(), seed, &[1]);
        scene.wake(Wake::Started);
        scene.end(id(1), 0, &[]);
        scene.walk.next_timeout().unwrap() - scene.now
    };
    assert_eq!(times(1), times(1));
}

#[test]
fn known_peers_are_visited_about_equally_often_wherever_their_ids_lie() {
    let mut scene = Scene::careless(&[]);
    scene.know(0..300);
    let mut counts: BTreeMap<EndpointId, u32> = BTreeMap::new();
    let known = scene.catalog.known();
    let view = View { known, bootstrap: &[], neighbours: &[], is_connected: &|_| false };
    let look = Look { now: scene.now, view, follows: true, is_settled: false };
    for _ in 0..15_000 {
        let peer = scene.walk.pick_known(look).unwrap();
        *counts.entry(peer).or_default() += 1;
    }
    let most = counts.values().max().unwrap();
    assert!(counts.len() > 290, "{} were visited", counts.len());
    assert!(*most < 150, "{most} visits of one, 50 on average");
}

#[test]
fn a_pick_costs_the_same_among_a_hundred_and_among_ten_thousand() {
    let mut scene = Scene::careless(&[]);
    let reads = |scene: &mut Scene| {
        let known = scene.catalog.known();
        let view = View { known, bootstrap: &[], neighbours: &[], is_connected: &|_| false };
        let held = allocation_counter::measure(|| {
            scene.walk.pick(scene.now, view);
        });
        held.bytes_total
    };
    scene.know(0..100);
    let few = reads(&mut scene);
    scene.know(100..3000);
    let many = reads(&mut scene);
    assert!(many <= few + 1024, "{few} and {many} bytes");
}

/// Anything that a manager may tell a walk.
#[derive(Debug, Clone)]
enum Event {
    Wake(u8),
    Appear(u32),
    End { learnt: usize, brought: Vec<u32> },
    Fail,
    Stray(u32),
    Told(Option<u32>, usize),
    Neighbours(Vec<u32>),
    Know(u32),
    Pass(u64),
    Timeout,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let count = prop_oneof![Just(0), 0_usize..5, Just(usize::MAX)];
    let event = prop_oneof![
        (0_u8..3).prop_map(Event::Wake),
        (0_u32..40).prop_map(Event::Appear),
        (count.clone(), proptest::collection::vec(0_u32..60, 0..50))
            .prop_map(|(learnt, brought)| Event::End { learnt, brought }),
        Just(Event::Fail),
        (0_u32..40).prop_map(Event::Stray),
        (proptest::option::of(0_u32..40), count).prop_map(|(by, learnt)| Event::Told(by, learnt)),
        proptest::collection::vec(0_u32..40, 0..6).prop_map(Event::Neighbours),
        (0_u32..40).prop_map(Event::Know),
        (0_u64..400_000).prop_map(Event::Pass),
        Just(Event::Timeout),
    ];
    proptest::collection::vec(event, 1..200)
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: Some(Box::new(
            proptest::test_runner::FileFailurePersistence::Direct("src/walk/tests.regressions"),
        )),
        ..ProptestConfig::default()
    })]

    #[test]
    fn whatever_happens_a_walk_is_bounded_and_goes_on(events in events(), seed: [u8; 32]) {
        let mut scene = Scene::new(&[0, 1]);
        let limits = WalkLimits { visited: 8, ..WalkLimits::default() };
        scene.walk = Walk::new(id(ME), limits.clone(), seed);
        scene.wake(Wake::Started);
        for event in events {
            let before = scene.walk.visiting();
            let visit = match event {
                Event::Wake(0) => scene.wake(Wake::Started),
                Event::Wake(1) => scene.wake(Wake::Changed),
                Event::Wake(_) => scene.wake(Wake::Online),
                Event::Appear(n) => scene.wake(Wake::Appeared(id(n))),
                Event::End { learnt, brought } => {
                    let brought: Vec<_> = brought.into_iter().map(id).collect();
                    let peer = before.unwrap_or(id(7));
                    let visit = Visit::Exchanged { learnt, brought: &brought };
                    scene.say(Input::Ended { peer, visit })
                }
                Event::Fail => scene.fail(before.unwrap_or(id(7))),
                Event::Stray(n) if before != Some(id(n)) => scene.end(id(n), 9, &[]),
                Event::Told(by, learnt) => scene.say(Input::Told { by: by.map(id), learnt }),
                Event::Neighbours(peers) => {
                    scene.neighbours = peers.into_iter().map(id).collect();
                    None
                }
                Event::Know(n) => {
                    scene.know([n]);
                    None
                }
                Event::Pass(millis) => {
                    scene.now += Duration::from_millis(millis);
                    scene.say(Input::Timeout)
                }
                Event::Stray(_) | Event::Timeout => scene.say(Input::Timeout),
            };
            // It is either visiting or due, and due within its longest wait.
            let due = scene.walk.next_timeout().unwrap();
            let longest = limits.longest_wait.max(limits.patience).max(limits.visits.every);
            prop_assert!(due <= scene.now + longest);
            prop_assert!(visit.is_none() || scene.walk.visiting() == visit);
            prop_assert!(scene.walk.visited.len() <= 8 && scene.walk.callers.len() <= 8);
            prop_assert!(scene.walk.silent.len() <= SILENT_MAX);
            prop_assert!(scene.walk.trail.len() <= TRAIL_MAX);
            prop_assert!(scene.walk.hints.len() <= HINTS_MAX);
            prop_assert!(scene.walk.missed.len() <= scene.bootstrap.len());
        }
    }
}
