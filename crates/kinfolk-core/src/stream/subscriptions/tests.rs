use iroh_base::SecretKey;

use super::*;
use crate::backoff::{BOUNDS, bound};
use crate::stream::Schema;

mod failures;
mod world;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

fn peer(n: u32) -> EndpointId {
    let mut bytes = [0; 32];
    bytes[..4].copy_from_slice(&n.to_le_bytes());
    SecretKey::from_bytes(&bytes).public()
}

fn resume(next: u64) -> Option<Resume> {
    Some(Resume { epoch: 7, next })
}

fn another_schema() -> Refusal {
    Refusal::Schema { offered: Schema::new("quote", 4) }
}

struct Scene {
    subscriptions: Subscriptions,
    now: Instant,
    /// What was said last.
    said: Vec<Output>,
}

/// What a `Connect` asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Connect {
    attempt: Attempt,
    peer: EndpointId,
    resume: Option<Resume>,
    introduce: bool,
}

impl Scene {
    fn new() -> Self {
        Self::with(SubscriptionLimits::default())
    }

    fn with_places(sources: usize) -> Self {
        Self::with(SubscriptionLimits { sources, ..SubscriptionLimits::default() })
    }

    fn with(limits: SubscriptionLimits) -> Self {
        let subscriptions = Subscriptions::new(limits, [7; 32]);
        Self { subscriptions, now: Instant::now(), said: Vec::new() }
    }

    /// All attempts that this begins.
    fn say(&mut self, input: Input) -> Vec<Connect> {
        self.said.clear();
        self.subscriptions.handle(self.now, input, &mut self.said);
        let connects = self.said.iter().filter_map(|output| match output {
            Output::Connect { attempt, peer, resume, introduce } => Some(Connect {
                attempt: *attempt,
                peer: *peer,
                resume: *resume,
                introduce: *introduce,
            }),
            _ => None,
        });
        connects.collect()
    }

    /// The only attempt that this begins.
    fn begin(&mut self, input: Input) -> Connect {
        let connects = self.say(input);
        let [connect] = &connects[..] else { panic!("{:?}", self.said) };
        connect.clone()
    }

    fn offer(&mut self, n: u32, record: u64) -> Vec<Connect> {
        self.say(Input::Offered { peer: peer(n), record: Seq::new(record), rtt: None })
    }

    fn offer_near(&mut self, n: u32, millis: u64) -> Vec<Connect> {
        let rtt = Some(Duration::from_millis(millis));
        self.say(Input::Offered { peer: peer(n), record: Seq::new(1), rtt })
    }

    fn withdraw(&mut self, n: u32, why: Withdrawal) -> Vec<Connect> {
        self.say(Input::Withdrawn { peer: peer(n), why })
    }

    /// An attempt that is under way with peer 1.
    fn connecting(&mut self) -> Attempt {
        let connects = self.offer(1, 1);
        connects[0].attempt
    }

    /// A stream that flows from peer 1.
    fn connected(&mut self) -> Attempt {
        let attempt = self.connecting();
        assert_eq!(self.say(Input::Accepted { attempt }), []);
        attempt
    }

    fn lose(&mut self, attempt: Attempt) -> Vec<Connect> {
        self.say(Input::Lost { attempt, resume: None })
    }

    fn refuse(&mut self, attempt: Attempt, refusal: Refusal) -> Vec<Connect> {
        self.say(Input::Refused { attempt, refusal })
    }

    fn end(&mut self, attempt: Attempt, end: StreamEnd) -> Vec<Connect> {
        self.say(Input::Ended { attempt, end, resume: resume(5) })
    }

    fn state(&self, n: u32) -> Option<SourceState> {
        self.subscriptions.state(&peer(n))
    }

    fn is_terminated(&self, n: u32) -> bool {
        matches!(self.state(n), Some(SourceState::Terminated(_)))
    }

    fn pass(&mut self, time: Duration) -> Vec<Connect> {
        self.now += time;
        self.say(Input::Timeout)
    }

    /// How long until the next timeout, which begins one attempt.
    fn wait(&mut self) -> (Duration, Connect) {
        let at = self.subscriptions.next_timeout().expect("nothing is awaited");
        let waited = at - self.now;
        self.now = at;
        (waited, self.begin(Input::Timeout))
    }
}

#[test]
fn a_peer_that_offers_the_stream_is_tried_at_once_and_said_to_be_so() {
    let mut scene = Scene::new();
    let connects = scene.offer(1, 1);
    let attempt = connects[0].attempt;
    let (peer, state) = (peer(1), SourceState::Connecting);
    let connect = Output::Connect { attempt, peer, resume: None, introduce: false };
    assert_eq!(scene.said, [connect, Output::Changed { peer, state }]);
    scene.say(Input::Accepted { attempt });
    assert_eq!(scene.said, [Output::Changed { peer, state: SourceState::Connected }]);
    assert_eq!(scene.subscriptions.next_timeout(), None);
}

#[test]
fn no_sample_of_the_round_trip_is_no_reason_to_wait() {
    let mut scene = Scene::new();
    let rtt = None;
    scene.begin(Input::Offered { peer: peer(1), record: Seq::new(1), rtt });
}

#[test]
fn however_often_a_stream_is_offered_there_is_one_attempt() {
    let mut scene = Scene::new();
    let attempt = scene.connecting();
    assert_eq!(scene.offer(1, 2), []);
    scene.say(Input::Accepted { attempt });
    assert_eq!(scene.offer(1, 3), []);
    assert_eq!(scene.said, []);
    assert_eq!(scene.subscriptions.placed(), 1);
}

#[test]
fn there_are_no_more_attempts_than_places_and_the_nearest_go_first() {
    let mut scene = Scene::with_places(1);
    let first = scene.offer_near(1, 50)[0].attempt;
    for (n, millis) in [(2, 30), (3, 10), (4, 20)] {
        assert_eq!(scene.offer_near(n, millis), []);
        assert_eq!(scene.state(n), Some(SourceState::Queued));
    }
    scene.offer(5, 1);
    let mut order = Vec::new();
    let mut attempt = first;
    for _ in 0..4 {
        let next = scene.refuse(attempt, another_schema());
        order.push(next[0].peer);
        attempt = next[0].attempt;
    }
    assert_eq!(order, [peer(3), peer(4), peer(2), peer(5)]);
}

#[test]
fn a_queued_source_that_comes_nearer_goes_before_the_others() {
    let mut scene = Scene::with_places(1);
    let first = scene.offer_near(1, 50)[0].attempt;
    scene.offer_near(2, 30);
    scene.offer_near(3, 40);
    scene.offer_near(3, 20);
    assert_eq!(scene.refuse(first, another_schema())[0].peer, peer(3));
}

#[test]
fn a_live_source_is_not_dropped_for_a_nearer_one() {
    let mut scene = Scene::with_places(1);
    let attempt = scene.connected();
    assert_eq!(scene.offer_near(2, 1), []);
    assert_eq!(scene.state(1), Some(SourceState::Connected));
    let next = scene.withdraw(1, Withdrawal::NotWanted);
    assert_eq!(scene.said[0], Output::Cut { attempt, peer: peer(1) });
    assert_eq!(next[0].peer, peer(2));
}

#[test]
fn a_source_that_waits_gives_its_place_up() {
    let mut scene = Scene::with_places(1);
    let attempt = scene.connecting();
    scene.offer(2, 1);
    let next = scene.lose(attempt);
    assert_eq!(next[0].peer, peer(2));
    scene.say(Input::Accepted { attempt: next[0].attempt });
    scene.pass(HOUR);
    assert_eq!(scene.state(1), Some(SourceState::Queued));
    assert_eq!(scene.subscriptions.next_timeout(), None);
}

#[test]
fn a_stream_that_breaks_off_keeps_its_place_for_one_return_at_once() {
    let mut scene = Scene::with_places(1);
    let attempt = scene.connected();
    scene.offer(2, 1);
    assert_eq!(scene.lose(attempt), []);
    let (waited, again) = scene.wait();
    assert!(waited <= JITTER, "{waited:?}");
    assert_eq!(again.peer, peer(1));
    assert_eq!(scene.lose(again.attempt)[0].peer, peer(2));
}

#[test]
fn a_dead_source_never_keeps_a_good_one_waiting_however_near_it_is() {
    let redial_max = Duration::from_millis(100);
    let limits = SubscriptionLimits { sources: 1, redial_max, ..SubscriptionLimits::default() };
    let mut scene = Scene::with(limits);
    for n in 1..5 {
        scene.offer_near(n, 1);
    }
    scene.offer_near(5, 100);
    let mut tried = vec![peer(1)];
    let mut attempt = Attempt::new(1);
    // Each takes longer to fail than the others wait.
    while tried.last() != Some(&peer(5)) {
        assert!(tried.len() < 6, "peer 5 was not among {tried:?}");
        scene.pass(10 * SECOND);
        let next = scene.lose(attempt);
        tried.push(next[0].peer);
        attempt = next[0].attempt;
    }
}

#[test]
fn whoever_was_never_tried_goes_before_a_nearer_one_that_has_refused() {
    let mut scene = Scene::with_places(1);
    let first = scene.offer_near(1, 1)[0].attempt;
    scene.offer_near(2, 50);
    scene.offer_near(3, 60);
    let second = scene.refuse(first, Refusal::BadTicket)[0].attempt;
    assert_eq!(scene.say(Input::NewTicket), []);
    assert_eq!(scene.state(1), Some(SourceState::Queued));
    let third = scene.refuse(second, another_schema());
    assert_eq!(third[0].peer, peer(3));
    assert_eq!(scene.refuse(third[0].attempt, another_schema())[0].peer, peer(1));
}

#[test]
fn a_lost_stream_is_asked_for_from_where_it_was_lost() {
    let mut scene = Scene::new();
    let attempt = scene.connected();
    scene.say(Input::Lost { attempt, resume: resume(40) });
    let (_, again) = scene.wait();
    assert_eq!(again.resume, resume(40));
    // It was not reached: what is known still holds.
    scene.lose(again.attempt);
    let (_, again) = scene.wait();
    assert_eq!(again.resume, resume(40));
    scene.refuse(again.attempt, Refusal::NoCapacity);
    let (_, again) = scene.wait();
    assert_eq!(again.resume, resume(40));
    // Items came from it, and how many is not known any more: the old place would bring them twice.
    scene.say(Input::Accepted { attempt: again.attempt });
    scene.say(Input::Lost { attempt: again.attempt, resume: None });
    let (_, again) = scene.wait();
    assert_eq!(again.resume, None);
}

#[test]
fn an_unknown_peer_introduces_itself_at_once_and_once_and_then_waits() {
    let mut scene = Scene::new();
    let attempt = scene.connecting();
    let again = scene.refuse(attempt, Refusal::UnknownPeer);
    assert!(again[0].introduce);
    assert_eq!(scene.refuse(again[0].attempt, Refusal::UnknownPeer), []);
    let (waited, again) = scene.wait();
    assert!(waited >= BOUNDS[0] / 2 && again.introduce);
    scene.say(Input::Accepted { attempt: again.attempt });
    scene.lose(again.attempt);
    assert!(!scene.wait().1.introduce, "it is known now");
}

#[test]
fn a_producer_that_has_no_room_or_drops_us_is_asked_more_and_more_rarely() {
    type Fail = fn(&mut Scene, Attempt) -> Vec<Connect>;
    let fails: [Fail; 4] = [
        |scene, attempt| scene.refuse(attempt, Refusal::NoCapacity),
        |scene, attempt| scene.end(attempt, StreamEnd::TooSlow),
        |scene, attempt| scene.end(attempt, StreamEnd::Misbehaved),
        |scene, attempt| scene.lose(attempt),
    ];
    for fail in fails {
        let mut scene = Scene::new();
        let mut attempt = scene.connecting();
        for failures in 0..8 {
            assert_eq!(fail(&mut scene, attempt), []);
            let (waited, again) = scene.wait();
            let bound = bound(failures).min(MINUTE);
            assert!(waited <= bound && waited >= bound / 2, "{waited:?} after {failures}");
            attempt = again.attempt;
        }
    }
}

#[test]
fn a_newer_record_ends_the_wait_for_a_peer_that_was_not_reached() {
    let mut scene = Scene::new();
    let mut attempt = scene.connecting();
    for _ in 0..5 {
        scene.lose(attempt);
        attempt = scene.wait().1.attempt;
    }
    scene.lose(attempt);
    scene.pass(2 * SECOND);
    assert_eq!(scene.offer(1, 1), []);
    let until = scene.subscriptions.next_timeout().unwrap();
    assert!(until > scene.now + 10 * SECOND, "the record is not newer");
    assert_eq!(scene.offer(1, 2), []);
    let (waited, again) = scene.wait();
    assert!(waited <= JITTER);
    scene.lose(again.attempt);
    assert!(scene.wait().0 <= BOUNDS[0], "the backoff starts anew");
}

#[test]
fn no_record_brings_a_consumer_back_in_a_loop() {
    let mut scene = Scene::new();
    let mut attempt = scene.connecting();
    let (start, mut tries) = (scene.now, 0);
    for record in 2.. {
        scene.lose(attempt);
        scene.offer(1, record);
        attempt = scene.wait().1.attempt;
        tries += 1;
        if scene.now > start + MINUTE {
            break;
        }
    }
    assert!(tries <= 121, "{tries} in a minute");
}

#[test]
fn a_producer_that_shuts_down_is_awaited() {
    let mut scene = Scene::new();
    let attempt = scene.connected();
    scene.end(attempt, StreamEnd::ShuttingDown);
    let until = scene.subscriptions.next_timeout().unwrap();
    assert!(until >= scene.now + BOUNDS[0] / 2 && until <= scene.now + BOUNDS[0]);
    let again = scene.wait().1;
    assert_eq!(again.resume, resume(5));
    scene.lose(again.attempt);
    assert!(scene.subscriptions.next_timeout().unwrap() <= scene.now + BOUNDS[1]);
}

#[test]
fn a_producer_that_shut_down_and_is_back_is_tried_as_soon_as_its_record_says_so() {
    let mut scene = Scene::new();
    let attempt = scene.connected();
    scene.end(attempt, StreamEnd::ShuttingDown);
    scene.pass(JITTER);
    assert_eq!(scene.offer(1, 2), []);
    let (waited, again) = scene.wait();
    assert!(waited <= JITTER, "{waited:?}");
    assert_eq!(again.resume, resume(5));
}

#[test]
fn a_new_ticket_is_shown_to_those_that_refused_the_old_one_and_to_nobody_else() {
    let mut scene = Scene::new();
    for n in 1..=5 {
        scene.offer(n, 1);
    }
    let attempt = Attempt::new;
    scene.refuse(attempt(1), Refusal::BadTicket);
    scene.refuse(attempt(2), Refusal::NotAllowed);
    scene.say(Input::Accepted { attempt: attempt(3) });
    scene.end(attempt(3), StreamEnd::TicketExpired);
    scene.refuse(attempt(4), Refusal::NoSuchStream);
    scene.say(Input::Accepted { attempt: attempt(5) });
    let again: BTreeSet<_> =
        scene.say(Input::NewTicket).into_iter().map(|connect| connect.peer).collect();
    assert_eq!(again, BTreeSet::from([peer(1), peer(2), peer(3)]));
}

#[test]
fn a_ticket_that_is_new_during_an_attempt_is_not_lost() {
    let mut scene = Scene::new();
    let attempt = scene.connecting();
    assert_eq!(scene.say(Input::NewTicket), []);
    let again = scene.refuse(attempt, Refusal::BadTicket);
    assert_eq!(again.len(), 1, "it was the old one that was refused");
    assert_eq!(scene.refuse(again[0].attempt, Refusal::BadTicket), []);
    assert!(scene.is_terminated(1));
}

#[test]
fn a_record_that_is_new_during_an_attempt_is_not_lost() {
    let mut scene = Scene::new();
    let attempt = scene.connecting();
    scene.offer(1, 2);
    scene.refuse(attempt, Refusal::NoSuchStream);
    let (waited, again) = scene.wait();
    assert!(waited <= BOUNDS[0]);
    scene.refuse(again.attempt, Refusal::NoSuchStream);
    assert_eq!(scene.subscriptions.next_timeout(), None, "that one was tried");
}

#[test]
fn a_stream_that_is_over_is_asked_for_again_when_a_newer_record_offers_it() {
    type Finish = fn(&mut Scene, Attempt) -> Vec<Connect>;
    let ends: [Finish; 3] = [
        |scene, attempt| scene.end(attempt, StreamEnd::Finished),
        |scene, attempt| scene.refuse(attempt, Refusal::Ended),
        |scene, attempt| scene.refuse(attempt, Refusal::NoSuchStream),
    ];
    for end in ends {
        let mut scene = Scene::new();
        let attempt = scene.connected();
        end(&mut scene, attempt);
        assert!(scene.is_terminated(1));
        assert_eq!(scene.pass(HOUR), []);
        assert_eq!(scene.offer(1, 2).len(), 1);
    }
}

#[test]
fn a_peer_that_announces_a_stream_and_then_knows_nothing_of_it_is_asked_more_and_more_rarely() {
    let mut scene = Scene::new();
    let mut attempt = scene.connecting();
    for record in 2..8 {
        scene.refuse(attempt, Refusal::NoSuchStream);
        scene.offer(1, record);
        attempt = scene.wait().1.attempt;
    }
    scene.refuse(attempt, Refusal::NoSuchStream);
    scene.offer(1, 9);
    assert!(scene.wait().0 >= MINUTE / 2);
}

#[test]
fn a_peer_that_broke_the_rules_is_forgiven_after_a_while_and_a_newer_record() {
    type Break = fn(&mut Scene, Attempt) -> Vec<Connect>;
    let breaks: [Break; 4] = [
        |scene, attempt| scene.say(Input::Poisoned { attempt, resume: None }),
        |scene, attempt| scene.say(Input::Misbehaved { attempt }),
        |scene, attempt| scene.refuse(attempt, another_schema()),
        |scene, attempt| scene.end(attempt, StreamEnd::NotAllowed),
    ];
    for act in breaks {
        let mut scene = Scene::new();
        let attempt = scene.connected();
        act(&mut scene, attempt);
        assert!(scene.is_terminated(1));
        assert_eq!(scene.subscriptions.next_timeout(), None);
        assert_eq!(scene.offer(1, 2), []);
        assert_eq!(scene.pass(10 * MINUTE - SECOND), []);
        assert!(scene.is_terminated(1));
        assert_eq!(scene.pass(SECOND).len(), 1);
    }
}

#[test]
fn what_could_not_be_decoded_is_not_asked_for_again() {
    let mut scene = Scene::new();
    let attempt = scene.connected();
    scene.say(Input::Lost { attempt, resume: resume(9) });
    let attempt = scene.wait().1.attempt;
    scene.say(Input::Poisoned { attempt, resume: resume(12) });
    scene.pass(HOUR);
    assert_eq!(scene.offer(1, 2)[0].resume, resume(12), "it goes on behind it");
}

#[test]
fn whoever_broke_the_rules_is_not_asked_to_go_on_where_that_was() {
    let mut scene = Scene::new();
    let attempt = scene.connected();
    scene.say(Input::Lost { attempt, resume: resume(9) });
    let attempt = scene.wait().1.attempt;
    scene.say(Input::Misbehaved { attempt });
    scene.pass(HOUR);
    assert_eq!(scene.offer(1, 2)[0].resume, None);
}

#[test]
fn a_source_without_an_offer_is_forgotten_when_its_stream_is_lost() {
    for why in [Withdrawal::Gone, Withdrawal::NotOffered] {
        let mut scene = Scene::new();
        let attempt = scene.connected();
        assert_eq!(scene.withdraw(1, why), []);
        assert_eq!(scene.said, []);
        assert_eq!(scene.lose(attempt), []);
        assert_eq!(scene.said, [Output::Forgotten { peer: peer(1) }]);
        assert_eq!((scene.state(1), scene.subscriptions.next_timeout()), (None, None));
    }
}

#[test]
fn a_source_that_ends_for_good_without_an_offer_says_why_before_it_is_forgotten() {
    let mut scene = Scene::new();
    let attempt = scene.connected();
    scene.withdraw(1, Withdrawal::NotOffered);
    scene.end(attempt, StreamEnd::Finished);
    let peer = peer(1);
    let state = SourceState::Terminated(Termination::Ended(StreamEnd::Finished));
    assert_eq!(scene.said, [Output::Changed { peer, state }, Output::Forgotten { peer }]);
}

#[test]
fn a_source_whose_record_comes_back_goes_on_from_where_it_was() {
    let mut scene = Scene::new();
    let attempt = scene.connected();
    scene.withdraw(1, Withdrawal::Gone);
    scene.say(Input::Lost { attempt, resume: resume(12) });
    assert_eq!(scene.pass(5 * MINUTE), []);
    assert_eq!(scene.offer(1, 1)[0].resume, resume(12));
}

#[test]
fn a_source_that_is_not_wanted_is_cut_and_comes_back_when_it_is() {
    let mut scene = Scene::new();
    let attempt = scene.connected();
    scene.withdraw(1, Withdrawal::NotWanted);
    let (peer, state) = (peer(1), SourceState::Terminated(Termination::NotWanted));
    assert_eq!(scene.said, [Output::Cut { attempt, peer }, Output::Changed { peer, state }]);
    assert_eq!(scene.pass(HOUR), []);
    assert_eq!(scene.subscriptions.next_timeout(), None);
    assert_eq!(scene.lose(attempt), [], "it was cut");
    assert_eq!(scene.offer(1, 1).len(), 1);
}

#[test]
fn a_condition_that_holds_now_and_now_not_does_not_make_a_loop() {
    let mut scene = Scene::new();
    let mut attempt = scene.connected();
    for flaps in 0..6_u32 {
        scene.withdraw(1, Withdrawal::NotWanted);
        assert_eq!(scene.offer(1, 1), []);
        let (waited, again) = scene.wait();
        let least = flaps.checked_sub(1).map(|failures| bound(failures).min(MINUTE) / 2);
        assert!(waited >= least.unwrap_or_default(), "{waited:?} after {flaps}");
        attempt = again.attempt;
        scene.say(Input::Accepted { attempt });
    }
    scene.lose(attempt);
}

#[test]
fn what_is_withdrawn_without_having_been_offered_changes_nothing() {
    let mut scene = Scene::new();
    for why in [Withdrawal::Gone, Withdrawal::NotOffered, Withdrawal::NotWanted] {
        assert_eq!(scene.withdraw(1, why), []);
        assert_eq!(scene.said, []);
    }
    assert_eq!(scene.subscriptions.sources().count(), 0);
}

#[test]
fn a_consumer_that_closes_cuts_all_and_hears_nothing_more() {
    let mut scene = Scene::new();
    let attempt = scene.connected();
    let other = scene.offer(2, 1)[0].attempt;
    scene.say(Input::Close);
    let cut = |attempt, n| Output::Cut { attempt, peer: peer(n) };
    assert_eq!(scene.said, [cut(attempt, 1), cut(other, 2)]);
    assert_eq!(scene.offer(3, 1), []);
    assert_eq!(scene.lose(attempt), []);
    assert_eq!((scene.said.len(), scene.subscriptions.next_timeout()), (0, None));
    assert_eq!((scene.subscriptions.placed(), scene.subscriptions.sources().count()), (0, 0));
}

#[test]
fn consumers_that_lost_the_same_producer_do_not_return_in_step() {
    let at: BTreeSet<_> = (0..100)
        .map(|seed| {
            let mut scene = Scene::new();
            scene.subscriptions = Subscriptions::new(SubscriptionLimits::default(), [seed; 32]);
            let attempt = scene.connected();
            scene.lose(attempt);
            scene.wait().0
        })
        .collect();
    assert!(at.len() > 90, "only {} different times", at.len());
}

#[test]
fn of_those_whose_record_is_gone_no_more_is_remembered_than_the_limit_says() {
    let limits = SubscriptionLimits { absent: 3, ..SubscriptionLimits::default() };
    let mut scene = Scene::with(limits);
    for n in 0..10 {
        let attempt = scene.offer(n, 1)[0].attempt;
        scene.refuse(attempt, another_schema());
        scene.withdraw(n, Withdrawal::Gone);
        scene.pass(SECOND);
    }
    assert_eq!(scene.subscriptions.absent.len(), 3);
    assert_eq!(scene.offer(9, 1), [], "it is remembered");
    assert_eq!(scene.offer(1, 1).len(), 1, "it made room");
    scene.pass(HOUR);
    scene.offer(8, 1);
    assert_eq!(scene.subscriptions.absent.len(), 0);
}

#[test]
fn a_source_costs_no_more_than_the_page_says() {
    let peers: Vec<_> = (0..2_000).map(peer).collect();
    let now = Instant::now();
    let limits = SubscriptionLimits { absent: 2_000, ..SubscriptionLimits::default() };
    let mut subscriptions = Subscriptions::new(limits, [7; 32]);
    let mut out = Vec::with_capacity(8 * peers.len());
    let held = allocation_counter::measure(|| {
        for peer in &peers {
            let (peer, record) = (*peer, Seq::new(1));
            subscriptions.handle(now, Input::Offered { peer, record, rtt: None }, &mut out);
        }
        for attempt in (1..=500).map(Attempt::new) {
            subscriptions.handle(now, Input::Lost { attempt, resume: None }, &mut out);
        }
    });
    let each = held.bytes_current / 2_000;
    println!("{each} bytes per source");
    assert!(each <= 500, "{each} bytes each");
    let gone = allocation_counter::measure(|| {
        for peer in peers {
            let attempt = subscriptions.sources.get(&peer).unwrap().tried();
            let why = Withdrawal::Gone;
            subscriptions.handle(now, Input::Withdrawn { peer, why }, &mut out);
            if let Some(Try { attempt, .. }) = attempt {
                subscriptions.handle(now, Input::Lost { attempt, resume: None }, &mut out);
            }
        }
    });
    assert_eq!(subscriptions.sources.len(), 0);
    let each = (held.bytes_current + gone.bytes_current) / 2_000;
    println!("{each} bytes per absent source");
    assert!(each <= 500, "{each} bytes each");
}
