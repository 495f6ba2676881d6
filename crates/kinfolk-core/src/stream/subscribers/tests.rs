use std::collections::BTreeMap;

use iroh_base::SecretKey;

use super::*;
use crate::bucket::Rate;

mod model;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

fn peer(n: u8) -> EndpointId {
    SecretKey::from_bytes(&[n; 32]).public()
}

fn id(number: u64) -> SubscriberId {
    SubscriberId::new(number)
}

const SCHEMA: Schema = Schema::new("quote", 3);

/// Asks for the right items, with a ticket.
fn asked(number: u64, peer: EndpointId, eligible: Eligible) -> Input {
    Input::Asked { id: id(number), ask: Ask { peer, schema: SCHEMA, eligible, has_ticket: true } }
}

fn accept(number: u64) -> Output {
    Output::Accept { id: id(number) }
}

fn refuse(number: u64, refusal: Refusal) -> Output {
    Output::Refuse { id: id(number), refusal }
}

fn ended(number: u64, end: StreamEnd) -> Output {
    Output::End { id: id(number), end }
}

struct Scene {
    subscribers: Subscribers,
    now: Instant,
}

impl Scene {
    fn open() -> Self {
        Self::with(SubscriberLimits::default(), false)
    }

    fn ticketed() -> Self {
        Self::with(SubscriberLimits::default(), true)
    }

    fn with(limits: SubscriberLimits, requires_ticket: bool) -> Self {
        Self { subscribers: Subscribers::new(limits, SCHEMA, requires_ticket), now: Instant::now() }
    }

    fn say(&mut self, input: Input) -> Vec<Output> {
        let mut out = Vec::new();
        self.subscribers.handle(self.now, input, &mut out);
        out
    }

    fn pass(&mut self, time: Duration) -> Vec<Output> {
        self.now += time;
        self.say(Input::Timeout)
    }

    fn ask(&mut self, number: u64, from: u8) -> Vec<Output> {
        self.ask_as(number, from, Eligible::Yes)
    }

    fn ask_as(&mut self, number: u64, from: u8, eligible: Eligible) -> Vec<Output> {
        self.say(asked(number, peer(from), eligible))
    }

    /// Asks or renews, which have to call for a check, and says which.
    fn check(&mut self, input: Input) -> Generation {
        let out = self.say(input);
        let [Output::Check { generation, .. }] = out[..] else { panic!("{out:?}") };
        generation
    }

    fn begin(&mut self, number: u64, from: u8) -> Generation {
        self.check(asked(number, peer(from), Eligible::Yes))
    }

    fn renew(&mut self, number: u64) -> Generation {
        self.check(Input::Renewed { id: id(number) })
    }

    fn checked(
        &mut self,
        number: u64,
        generation: Generation,
        verdict: Result<Option<Duration>, ()>,
    ) -> Vec<Output> {
        self.say(Input::TicketChecked { id: id(number), generation, verdict })
    }

    fn judge(&mut self, from: u8, eligible: Eligible) -> Vec<Output> {
        self.say(Input::Judged { peer: peer(from), eligible })
    }
}

#[test]
fn without_conditions_everybody_is_accepted_at_once() {
    let mut scene = Scene::open();
    assert_eq!(scene.ask(1, 1), [accept(1)]);
    assert_eq!(scene.subscribers.next_timeout(), None);
    assert_eq!((scene.subscribers.held(), scene.subscribers.accepted()), (1, 1));
}

#[test]
fn a_peer_that_does_not_meet_the_condition_is_refused_and_holds_no_place() {
    let mut scene = Scene::open();
    assert_eq!(scene.ask_as(1, 1, Eligible::No), [refuse(1, Refusal::NotAllowed)]);
    assert_eq!(scene.ask_as(2, 1, Eligible::Unknown), [refuse(2, Refusal::UnknownPeer)]);
    assert_eq!(scene.subscribers.held(), 0);
}

#[test]
fn without_a_ticket_where_one_is_required_nobody_is_accepted_and_nothing_is_checked() {
    let mut scene = Scene::ticketed();
    let ask = Ask { peer: peer(1), schema: SCHEMA, eligible: Eligible::Yes, has_ticket: false };
    let asked = Input::Asked { id: id(1), ask };
    assert_eq!(scene.say(asked), [refuse(1, Refusal::BadTicket)]);
}

#[test]
fn who_takes_the_items_for_something_else_is_told_what_they_are_and_holds_no_place() {
    let mut scene = Scene::open();
    let other = |number, schema, eligible| Input::Asked {
        id: id(number),
        ask: Ask { peer: peer(1), schema, eligible, has_ticket: true },
    };
    let refused = |number| refuse(number, Refusal::Schema { offered: SCHEMA });
    let newer = Schema::new("quote", 4);
    assert_eq!(scene.say(other(1, newer.clone(), Eligible::Yes)), [refused(1)]);
    assert_eq!(scene.say(other(2, Schema::new("trade", 3), Eligible::Unknown)), [refused(2)]);
    assert_eq!(scene.subscribers.held(), 0);
    scene.say(Input::End(StreamEnd::Finished));
    assert_eq!(scene.say(other(3, newer, Eligible::Yes)), [refuse(3, Refusal::Ended)]);
}

#[test]
fn no_peer_has_more_places_than_its_share_and_all_together_no_more_than_there_are() {
    let limits = SubscriberLimits { total: 5, per_peer: 2, ..SubscriberLimits::default() };
    let mut scene = Scene::with(limits, false);
    assert_eq!(scene.ask(1, 1), [accept(1)]);
    assert_eq!(scene.ask(2, 1), [accept(2)]);
    assert_eq!(scene.ask(3, 1), [refuse(3, Refusal::NoCapacity)]);
    for number in 4..7 {
        assert_eq!(scene.ask(number, u8::try_from(number).unwrap()), [accept(number)]);
    }
    assert_eq!(scene.ask(7, 7), [refuse(7, Refusal::NoCapacity)]);
    scene.say(Input::Left { id: id(1) });
    assert_eq!(scene.ask(8, 7), [accept(8)]);
    assert_eq!(scene.subscribers.held_by(peer(1)), 1);
}

#[test]
fn a_place_is_held_while_the_ticket_is_checked() {
    let limits = SubscriberLimits { total: 1, ..SubscriberLimits::default() };
    let mut scene = Scene::with(limits, true);
    let generation = scene.begin(1, 1);
    assert_eq!(scene.ask(2, 2), [refuse(2, Refusal::NoCapacity)]);
    assert_eq!(scene.checked(1, generation, Err(())), [refuse(1, Refusal::BadTicket)]);
    scene.begin(3, 2);
}

#[test]
fn a_consumer_is_not_sent_to_make_itself_known_where_there_is_no_room() {
    let limits = SubscriberLimits { total: 1, ..SubscriberLimits::default() };
    let mut scene = Scene::with(limits, false);
    scene.ask(1, 1);
    assert_eq!(scene.ask_as(2, 2, Eligible::Unknown), [refuse(2, Refusal::NoCapacity)]);
}

#[test]
fn whose_first_check_is_late_is_told_to_come_again() {
    let mut scene = Scene::ticketed();
    let generation = scene.begin(1, 1);
    let due = scene.subscribers.next_timeout().unwrap();
    assert_eq!(due, scene.now + 10 * SECOND);
    assert_eq!(scene.pass(10 * SECOND), [refuse(1, Refusal::Unchecked)]);
    assert_eq!(scene.checked(1, generation, Ok(None)), []);
    assert_eq!(scene.subscribers.held(), 0);
}

#[test]
fn renewing_again_and_again_does_not_hold_a_place_without_a_valid_ticket() {
    let mut scene = Scene::ticketed();
    scene.begin(1, 1);
    scene.pass(6 * SECOND);
    scene.renew(1);
    assert_eq!(scene.pass(4 * SECOND), [refuse(1, Refusal::Unchecked)]);
}

#[test]
fn only_the_newest_check_counts() {
    let mut scene = Scene::ticketed();
    let first = scene.begin(1, 1);
    let second = scene.renew(1);
    assert_eq!(scene.checked(1, first, Ok(None)), []);
    assert_eq!(scene.checked(1, first, Err(())), []);
    assert_eq!(scene.checked(1, second, Ok(None)), [accept(1)]);
    assert_eq!(scene.checked(1, second, Err(())), []);
}

#[test]
fn a_ticket_that_expires_ends_its_subscriber_exactly_once() {
    let mut scene = Scene::ticketed();
    let generation = scene.begin(1, 1);
    assert_eq!(scene.checked(1, generation, Ok(Some(MINUTE))), [accept(1)]);
    assert_eq!(scene.pass(MINUTE - SECOND), []);
    assert_eq!(scene.pass(SECOND), [ended(1, StreamEnd::TicketExpired)]);
    assert_eq!(scene.pass(MINUTE), []);
    assert_eq!(scene.say(Input::Left { id: id(1) }), []);
}

#[test]
fn the_timer_of_an_old_ticket_does_not_end_a_subscriber_with_a_renewed_one() {
    let mut scene = Scene::ticketed();
    let first = scene.begin(1, 1);
    scene.checked(1, first, Ok(Some(MINUTE)));
    scene.pass(30 * SECOND);
    let second = scene.renew(1);
    assert_eq!(scene.checked(1, second, Ok(Some(MINUTE))), []);
    assert_eq!(scene.pass(30 * SECOND), []);
    assert_eq!(scene.pass(30 * SECOND), [ended(1, StreamEnd::TicketExpired)]);
}

#[test]
fn a_ticket_holds_until_another_one_is_accepted_and_no_longer() {
    let mut scene = Scene::ticketed();
    let first = scene.begin(1, 1);
    scene.checked(1, first, Ok(Some(MINUTE)));
    let bad = scene.renew(1);
    assert_eq!(scene.checked(1, bad, Err(())), []);
    scene.pass(59 * SECOND);
    let late = scene.renew(1);
    assert_eq!(scene.pass(SECOND), [ended(1, StreamEnd::TicketExpired)]);
    assert_eq!(scene.checked(1, late, Ok(None)), []);
}

#[test]
fn a_renewed_ticket_that_is_valid_for_less_counts_all_the_same() {
    let mut scene = Scene::ticketed();
    let first = scene.begin(1, 1);
    scene.checked(1, first, Ok(None));
    let second = scene.renew(1);
    scene.checked(1, second, Ok(Some(SECOND)));
    assert_eq!(scene.pass(SECOND), [ended(1, StreamEnd::TicketExpired)]);
}

#[test]
fn a_renewal_whose_check_is_late_changes_nothing() {
    let mut scene = Scene::ticketed();
    let first = scene.begin(1, 1);
    scene.checked(1, first, Ok(None));
    scene.renew(1);
    assert_eq!(scene.pass(MINUTE), []);
    assert_eq!(scene.subscribers.next_timeout(), None);
    assert_eq!(scene.subscribers.accepted(), 1);
}

#[test]
fn a_ticket_that_is_over_when_it_is_checked_is_none() {
    let mut scene = Scene::ticketed();
    let generation = scene.begin(1, 1);
    let out = scene.checked(1, generation, Ok(Some(Duration::ZERO)));
    assert_eq!(out, [refuse(1, Refusal::BadTicket)]);
}

#[test]
fn a_ticket_that_no_clock_can_expire_is_valid_for_ever() {
    let mut scene = Scene::ticketed();
    let generation = scene.begin(1, 1);
    assert_eq!(scene.checked(1, generation, Ok(Some(Duration::MAX))), [accept(1)]);
    assert_eq!(scene.subscribers.next_timeout(), None);
}

#[test]
fn a_consumer_that_renews_in_a_loop_is_ended() {
    let mut scene = Scene::ticketed();
    let generation = scene.begin(1, 1);
    scene.checked(1, generation, Ok(None));
    for _ in 0..8 {
        scene.renew(1);
    }
    assert_eq!(scene.say(Input::Renewed { id: id(1) }), [ended(1, StreamEnd::Misbehaved)]);
    assert_eq!(scene.subscribers.held(), 0);
}

#[test]
fn a_tag_that_is_revoked_ends_what_its_peer_has_at_once() {
    let mut scene = Scene::ticketed();
    let first = scene.begin(1, 1);
    scene.checked(1, first, Ok(None));
    scene.begin(2, 1);
    let other = scene.begin(3, 2);
    scene.checked(3, other, Ok(None));
    let out = scene.judge(1, Eligible::No);
    assert_eq!(out, [ended(1, StreamEnd::NotAllowed), refuse(2, Refusal::NotAllowed)]);
    assert_eq!(scene.subscribers.held(), 1);
    assert_eq!(scene.judge(1, Eligible::No), []);
}

#[test]
fn a_record_that_goes_and_comes_back_cuts_nobody_off() {
    let mut scene = Scene::open();
    scene.ask(1, 1);
    assert_eq!(scene.judge(1, Eligible::Unknown), []);
    assert_eq!(scene.judge(1, Eligible::Yes), []);
    assert_eq!(scene.subscribers.accepted(), 1);
}

#[test]
fn a_record_that_goes_before_the_ticket_is_checked_leaves_an_unknown_peer() {
    let mut scene = Scene::ticketed();
    let generation = scene.begin(1, 1);
    assert_eq!(scene.judge(1, Eligible::Unknown), [refuse(1, Refusal::UnknownPeer)]);
    assert_eq!(scene.checked(1, generation, Ok(None)), []);
}

#[test]
fn after_the_end_nobody_is_left_and_nobody_is_accepted() {
    let mut scene = Scene::ticketed();
    let first = scene.begin(1, 1);
    scene.checked(1, first, Ok(Some(MINUTE)));
    scene.begin(2, 2);
    let out = scene.say(Input::End(StreamEnd::ShuttingDown));
    assert_eq!(out, [ended(1, StreamEnd::ShuttingDown), refuse(2, Refusal::Ended)]);
    assert_eq!(scene.subscribers.next_timeout(), None);
    assert_eq!(scene.ask(3, 3), [refuse(3, Refusal::Ended)]);
    assert_eq!(scene.say(Input::End(StreamEnd::Finished)), []);
}

#[test]
fn who_leaves_is_not_ended_as_well() {
    let mut scene = Scene::ticketed();
    let generation = scene.begin(1, 1);
    scene.checked(1, generation, Ok(Some(SECOND)));
    scene.now += MINUTE;
    assert_eq!(scene.say(Input::Left { id: id(1) }), []);
    assert_eq!(scene.subscribers.held_by(peer(1)), 0);
}

#[test]
fn a_consumer_that_comes_back_is_another_subscriber_whatever_becomes_of_the_first() {
    let mut scene = Scene::open();
    scene.ask(1, 1);
    scene.ask(2, 1);
    // The late end of an old link takes nothing from the new one.
    scene.say(Input::Left { id: id(1) });
    scene.say(Input::Left { id: id(1) });
    assert_eq!(scene.subscribers.held_by(peer(1)), 1);
    assert_eq!(scene.judge(1, Eligible::No), [ended(2, StreamEnd::NotAllowed)]);
}

#[test]
fn a_clock_that_steps_back_expires_nothing_late() {
    let mut scene = Scene::ticketed();
    let generation = scene.begin(1, 1);
    scene.checked(1, generation, Ok(Some(MINUTE)));
    scene.now -= SECOND;
    let second = scene.renew(1);
    scene.checked(1, second, Ok(Some(MINUTE)));
    scene.now += SECOND;
    assert_eq!(scene.pass(MINUTE), [ended(1, StreamEnd::TicketExpired)]);
}

#[test]
fn a_subscriber_costs_no_more_than_its_limit_says() {
    let peers: Vec<_> = (0..4_096_u64)
        .map(|n| {
            let mut bytes = [0; 32];
            bytes[..8].copy_from_slice(&n.to_le_bytes());
            SecretKey::from_bytes(&bytes).public()
        })
        .collect();
    let now = Instant::now();
    let mut subscribers = Subscribers::new(SubscriberLimits::default(), SCHEMA, true);
    let mut out = Vec::with_capacity(2 * peers.len());
    let held = allocation_counter::measure(|| {
        for (number, peer) in (0..).zip(&peers) {
            let id = id(number);
            subscribers.handle(now, asked(number, *peer, Eligible::Yes), &mut out);
            let Some(Output::Check { generation, .. }) = out.pop() else { panic!("no check") };
            let verdict = Ok(Some(MINUTE));
            subscribers.handle(now, Input::TicketChecked { id, generation, verdict }, &mut out);
        }
    });
    let each = u64::try_from(held.bytes_current).unwrap() / 4_096;
    println!("{each} bytes per subscriber");
    assert!(each <= 350, "{each} bytes each");
}
