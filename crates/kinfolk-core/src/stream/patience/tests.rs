use iroh_base::SecretKey;
use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(30);

fn peer(n: u64) -> EndpointId {
    let mut bytes = [1; 32];
    bytes[..8].copy_from_slice(&n.to_le_bytes());
    SecretKey::from_bytes(&bytes).public()
}

struct Scene {
    patience: Patience,
    now: Instant,
}

impl Scene {
    fn new() -> Self {
        Self { patience: Patience::new(PATIENCE), now: Instant::now() }
    }

    fn say(&mut self, input: Input) {
        let mut out = Vec::new();
        self.patience.handle(self.now, input, &mut out);
        assert_eq!(out, [], "only time gives anybody up");
    }

    fn came(&mut self, number: u64, from: u64) {
        self.say(Input::Came { id: SubscriberId::new(number), peer: peer(from) });
    }

    fn holds_up(&mut self, number: u64) {
        self.say(Input::HoldsUp { id: SubscriberId::new(number), behind: 100 });
    }

    fn took(&mut self, number: u64, items: u64) {
        self.say(Input::Took { id: SubscriberId::new(number), items });
    }

    fn left(&mut self, number: u64) {
        self.say(Input::Left { id: SubscriberId::new(number) });
    }

    /// Who is given up meanwhile.
    fn pass(&mut self, time: Duration) -> Vec<u64> {
        self.now += time;
        let mut out = Vec::new();
        self.patience.handle(self.now, Input::Timeout, &mut out);
        out.into_iter().map(|Output::GiveUp(id)| id.get()).collect()
    }

    /// How long the peer of this one, which holds up the others from now on, may do so.
    fn left_to(&mut self, number: u64) -> Duration {
        self.holds_up(number);
        let due = self.patience.next_timeout().unwrap();
        due.saturating_duration_since(self.now)
    }
}

#[test]
fn who_takes_nothing_is_given_up_when_patience_is_spent_and_not_before() {
    let mut scene = Scene::new();
    scene.came(1, 1);
    assert_eq!(scene.patience.next_timeout(), None);
    scene.holds_up(1);
    assert_eq!(scene.patience.next_timeout(), Some(scene.now + PATIENCE));
    assert_eq!(scene.pass(PATIENCE - SECOND), []);
    assert_eq!(scene.pass(SECOND), [1]);
    assert_eq!(scene.patience.next_timeout(), None);
    assert_eq!(scene.pass(PATIENCE), []);
}

#[test]
fn that_sends_are_given_up_and_begin_again_changes_no_clock() {
    let mut scene = Scene::new();
    scene.came(1, 1);
    for _ in 0..29 {
        scene.holds_up(1);
        assert_eq!(scene.pass(SECOND), []);
    }
    scene.holds_up(1);
    assert_eq!(scene.pass(SECOND), [1]);
}

#[test]
fn who_takes_a_little_now_and_then_is_kept_for_ever() {
    let mut scene = Scene::new();
    scene.came(1, 1);
    for _ in 0..100 {
        scene.holds_up(1);
        assert_eq!(scene.pass(PATIENCE - SECOND), []);
        scene.took(1, 1);
    }
    assert!(scene.patience.is_idle());
}

#[test]
fn all_who_hold_up_are_given_up_at_once_and_not_one_after_the_other() {
    let mut scene = Scene::new();
    for number in 1..=3 {
        scene.came(number, number);
        scene.holds_up(number);
    }
    scene.took(2, 1);
    assert_eq!(scene.pass(PATIENCE), [1, 3]);
}

#[test]
fn the_clock_of_a_peer_goes_on_with_its_next_subscription() {
    let mut scene = Scene::new();
    scene.came(1, 1);
    scene.holds_up(1);
    assert_eq!(scene.pass(20 * SECOND), []);
    scene.left(1);
    scene.came(2, 1);
    assert_eq!(scene.left_to(2), 10 * SECOND);
    assert_eq!(scene.pass(10 * SECOND), [2]);
}

#[test]
fn the_clock_of_a_peer_is_no_other_peer_s() {
    let mut scene = Scene::new();
    scene.came(1, 1);
    scene.holds_up(1);
    scene.pass(20 * SECOND);
    scene.left(1);
    scene.came(2, 2);
    assert_eq!(scene.left_to(2), PATIENCE);
}

#[test]
fn who_leaves_while_it_holds_up_nobody_owes_nothing() {
    let mut scene = Scene::new();
    scene.came(1, 1);
    scene.holds_up(1);
    scene.pass(20 * SECOND);
    scene.took(1, 1);
    scene.left(1);
    assert!(scene.patience.is_idle());
}

#[test]
fn a_debt_is_forgiven_once_the_next_subscription_has_taken_what_the_last_one_was_behind() {
    let mut scene = Scene::new();
    scene.came(1, 1);
    scene.holds_up(1);
    scene.pass(20 * SECOND);
    scene.left(1);
    scene.came(2, 1);
    scene.took(2, 99);
    assert_eq!(scene.left_to(2), 10 * SECOND);
    scene.took(2, 1);
    assert_eq!(scene.left_to(2), PATIENCE);
}

#[test]
fn what_a_peer_takes_by_its_other_subscriptions_pays_no_debt() {
    let mut scene = Scene::new();
    scene.came(1, 1);
    scene.came(2, 1);
    scene.holds_up(2);
    scene.pass(20 * SECOND);
    scene.left(2);
    scene.took(1, 1_000);
    assert_eq!(scene.left_to(1), 10 * SECOND);
}

#[test]
fn what_two_subscriptions_of_a_peer_spend_at_once_is_spent_once() {
    let mut scene = Scene::new();
    scene.came(1, 1);
    scene.came(2, 1);
    scene.holds_up(1);
    scene.pass(5 * SECOND);
    scene.holds_up(2);
    scene.pass(10 * SECOND);
    scene.left(1);
    scene.left(2);
    scene.came(3, 1);
    assert_eq!(scene.left_to(3), 15 * SECOND);
}

#[test]
fn a_debt_shrinks_slowly_and_is_then_forgotten() {
    let mut scene = Scene::new();
    scene.came(1, 1);
    scene.holds_up(1);
    assert_eq!(scene.pass(PATIENCE), [1]);
    scene.pass(8 * PATIENCE);
    scene.came(2, 1);
    assert_eq!(scene.left_to(2), PATIENCE / 2);
    scene.took(2, 1);
    scene.left(2);
    scene.pass(8 * PATIENCE);
    scene.came(3, 1);
    assert_eq!(scene.left_to(3), PATIENCE);
    // Another debt sweeps it out.
    scene.came(4, 2);
    scene.holds_up(4);
    scene.pass(SECOND);
    scene.left(4);
    assert_eq!(scene.patience.debts.len(), 1);
    scene.pass(16 * SECOND);
    scene.came(5, 3);
    assert!(scene.patience.debts.is_empty(), "it is not waited for another one");
}

#[test]
fn whoever_subscribes_again_and_again_holds_up_others_for_a_small_part_of_the_time() {
    for stays in [SECOND, PATIENCE - SECOND, 2 * PATIENCE] {
        let mut scene = Scene::new();
        let (begun, mut held) = (scene.now, Duration::ZERO);
        let mut number = 0;
        while scene.now.saturating_duration_since(begun) < 200 * PATIENCE {
            number += 1;
            scene.came(number, 1);
            // What comes with a new subscription is taken at once.
            scene.took(number, 1);
            let wanted = scene.left_to(number).min(stays);
            held += wanted;
            if scene.pass(wanted).is_empty() {
                scene.left(number);
            }
            scene.pass(SECOND);
        }
        let all = scene.now.saturating_duration_since(begun);
        assert!(held <= all / 10 + PATIENCE, "{held:?} of {all:?} by {number}");
    }
}

#[test]
fn after_the_end_nobody_is_given_up() {
    let mut scene = Scene::new();
    scene.came(1, 1);
    scene.holds_up(1);
    scene.say(Input::End);
    scene.holds_up(1);
    scene.came(2, 1);
    scene.holds_up(2);
    assert_eq!(scene.patience.next_timeout(), None);
    assert_eq!(scene.pass(2 * PATIENCE), []);
}

#[test]
fn patience_that_no_clock_can_spend_gives_up_nobody() {
    let mut scene = Scene { patience: Patience::new(Duration::MAX), now: Instant::now() };
    scene.came(1, 1);
    scene.holds_up(1);
    assert_eq!(scene.patience.next_timeout(), None);
    scene.pass(PATIENCE);
    scene.left(1);
    assert_eq!(scene.patience.debts.len(), 1);
}

#[test]
fn as_many_debts_are_kept_as_there_is_room_for_and_the_smallest_goes() {
    let mut scene = Scene::new();
    let most = u64::try_from(DEBTS).unwrap();
    for number in 1..=most + 1 {
        scene.came(number, number);
        scene.holds_up(number);
    }
    scene.pass(SECOND);
    scene.left(1);
    scene.pass(SECOND);
    for number in 2..=most + 1 {
        scene.left(number);
        assert!(scene.patience.debts.len() <= DEBTS);
    }
    assert!(!scene.patience.debts.contains_key(&peer(1)));
    assert_eq!(scene.patience.debts.len(), DEBTS);
}

#[derive(Debug, Clone)]
enum Event {
    Come(u64),
    HoldUp(usize),
    Take(usize),
    Leave(usize),
    Pass(u64),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        3 => (0_u64..3).prop_map(Event::Come),
        6 => (0_usize..4).prop_map(Event::HoldUp),
        3 => (0_usize..4).prop_map(Event::Take),
        2 => (0_usize..4).prop_map(Event::Leave),
        6 => (0_u64..20_000).prop_map(Event::Pass),
    ];
    proptest::collection::vec(event, 0..80)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// A list of who is there and since when its clock runs, beside the machine.
    #[test]
    fn nobody_stalls_for_longer_than_patience_and_nobody_else_is_given_up(events in events()) {
        let mut scene = Scene::new();
        let mut there: Vec<(u64, Option<Instant>)> = Vec::new();
        let mut number = 0;
        for event in events {
            match event {
                Event::Come(from) => {
                    number += 1;
                    scene.came(number, from);
                    there.push((number, None));
                }
                Event::HoldUp(index) => if let Some((number, since)) = there.get_mut(index) {
                    scene.holds_up(*number);
                    *since = since.or(Some(scene.now));
                },
                Event::Take(index) => if let Some((number, since)) = there.get_mut(index) {
                    scene.took(*number, 1);
                    *since = None;
                },
                Event::Leave(index) => if index < there.len() {
                    scene.left(there.remove(index).0);
                },
                Event::Pass(millis) => {
                    for gone in scene.pass(Duration::from_millis(millis)) {
                        let at = there.iter().position(|(number, _)| *number == gone);
                        let (_, since) = there.remove(at.expect("it is there, once"));
                        prop_assert!(since.is_some(), "{} held up nobody", gone);
                    }
                    for (number, since) in &there {
                        let stalled = since.map(|since| scene.now.saturating_duration_since(since));
                        prop_assert!(stalled.is_none_or(|it| it < PATIENCE), "{}", number);
                    }
                }
            }
            let due = &scene.patience.due;
            prop_assert_eq!(due.len(), there.iter().filter(|(_, since)| since.is_some()).count());
            prop_assert!(scene.patience.debts.len() <= 3);
        }
        for (number, _) in there {
            scene.left(number);
        }
        prop_assert!(scene.patience.subscribers.is_empty() && scene.patience.due.is_empty());
    }
}
