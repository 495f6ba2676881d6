use std::collections::BTreeMap;

use iroh_base::SecretKey;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::liveness::Standing as Liveness;

fn id(n: u8) -> EndpointId {
    SecretKey::from_bytes(&[n; 32]).public()
}

fn seq(n: u64) -> Seq {
    crate::record::SeqSource::default()
        .next(crate::record::UnixMillis::from_unix(Duration::from_millis(n)))
        .unwrap()
}

fn candidate(n: u8, distance: Distance) -> Candidate {
    Candidate {
        id: id(n),
        seq: seq(1),
        distance,
        liveness: Liveness::Good,
        is_backed: true,
        load: Load::default(),
    }
}

/// One of which only others told.
fn hearsay(n: u8) -> Candidate {
    Candidate { is_backed: false, ..candidate(n, Distance::Unknown) }
}

fn near(n: u8) -> Candidate {
    candidate(n, Distance::Measured(ms(1)))
}

fn with_calls(candidate: Candidate, in_flight: usize) -> Candidate {
    Candidate { load: Load { in_flight, ..candidate.load }, ..candidate }
}

const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// Asks the named provider and has it fail like this.
fn fail(search: &mut Search, now: Instant, candidate: &Candidate, standing: Standing) {
    search.asking(now, candidate);
    search.failed(now, &candidate.id, standing);
}

#[test]
fn the_nearer_of_two_is_asked() {
    let far = candidate(2, Distance::Measured(ms(80)));
    let choice = Search::default().choose(Instant::now(), &[far, near(1)], 0);
    assert_eq!(choice, Choice::Ask(id(1), 1));
}

#[test]
fn one_without_a_session_is_asked_after_those_with_one_unless_these_are_loaded() {
    let unknown = candidate(2, Distance::Unknown);
    let choose = |calls| {
        let known = with_calls(near(1), calls);
        Search::default().choose(Instant::now(), &[known, unknown.clone()], 0)
    };
    assert_eq!(choose(40), Choice::Ask(id(1), 1));
    assert_eq!(choose(51), Choice::Ask(id(2), 1));
}

#[test]
fn one_that_nobody_knows_how_to_reach_comes_last() {
    let candidates = [candidate(1, Distance::NoWay), candidate(2, Distance::Unknown)];
    assert_eq!(Search::default().choose(Instant::now(), &candidates, 7), Choice::Ask(id(2), 1));
}

#[test]
fn equals_share_the_load_and_a_call_more_is_no_equal() {
    let equals = [near(1), candidate(2, Distance::Measured(ms(4))), with_calls(near(3), 1)];
    let mut asked = BTreeMap::new();
    for random in 0..100 {
        match Search::default().choose(Instant::now(), &equals, random) {
            Choice::Ask(id, 2) => *asked.entry(id).or_insert(0) += 1,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(asked, BTreeMap::from([(id(1), 50), (id(2), 50)]));
}

#[test]
fn one_in_trouble_is_asked_after_all_others_and_before_nobody() {
    let mut troubled = near(1);
    troubled.load.is_troubled = true;
    let other = candidate(2, Distance::NoWay);
    let now = Instant::now();
    let both = [troubled.clone(), other];
    assert_eq!(Search::default().choose(now, &both, 0), Choice::Ask(id(2), 1));
    assert_eq!(Search::default().choose(now, &[troubled], 0), Choice::Ask(id(1), 0));
}

#[test]
fn each_is_asked_once_before_one_is_asked_again_and_then_after_a_pause() {
    let (mut search, now) = (Search::default(), Instant::now());
    let all = [near(1), candidate(2, Distance::Unknown)];
    fail(&mut search, now, &all[0], Standing::Failed);
    assert_eq!(search.choose(now, &all, 0), Choice::Ask(id(2), 0));
    fail(&mut search, now, &all[1], Standing::Failed);
    let again = now + PAUSE.0;
    assert_eq!(search.choose(now, &all, 0), Choice::Pause(again));
    assert_eq!(search.choose(again, &all, 0), Choice::Ask(id(1), 0));
    fail(&mut search, again, &all[0], Standing::Failed);
    assert_eq!(search.choose(again, &all, 0), Choice::Ask(id(2), 0));
}

#[test]
fn one_that_has_the_request_is_not_asked_at_the_same_time() {
    let (mut search, now) = (Search::default(), Instant::now());
    search.asking(now, &near(1));
    assert_eq!(search.choose(now, &[near(1)], 0), Choice::Wait);
}

#[test]
fn one_that_is_away_is_waited_for_and_one_that_refuses_is_not() {
    for (standing, choice) in [(Standing::Away, Choice::Wait), (Standing::Refuses, Choice::GiveUp)]
    {
        let (mut search, now) = (Search::default(), Instant::now());
        fail(&mut search, now, &near(1), standing);
        assert_eq!(search.choose(now + ms(60_000), &[near(1)], 0), choice);
        let renewed = Candidate { seq: seq(2), ..near(1) };
        assert_eq!(search.choose(now + ms(60_000), &[renewed], 0), Choice::Ask(id(1), 0));
    }
}

#[test]
fn one_that_refuses_and_says_something_new_each_time_is_asked_after_a_pause_and_after_all_others() {
    let (mut search, mut now) = (Search::default(), Instant::now());
    let mut renewing = near(1);
    let mut pauses = Vec::new();
    for n in 2..8 {
        fail(&mut search, now, &renewing, Standing::Refuses);
        renewing.seq = seq(n);
        let Choice::Pause(at) = search.choose(now, &[renewing.clone()], 0) else {
            panic!("it is asked at once, the {n}th time");
        };
        pauses.push(at - now);
        now = at;
        let other = candidate(2, Distance::NoWay);
        assert_eq!(search.choose(now, &[renewing.clone(), other], 0), Choice::Ask(id(2), 0));
        assert_eq!(search.choose(now, &[renewing.clone()], 0), Choice::Ask(id(1), 0));
    }
    assert_eq!(pauses, [ms(100), ms(200), ms(400), ms(800), ms(1600), ms(2000)]);
}

#[test]
fn those_that_nothing_speaks_against_are_asked_first_and_what_others_told_of_after_what_is_backed()
{
    let doubtful = Candidate { liveness: Liveness::Doubtful, ..near(1) };
    let due = |candidate| Candidate { liveness: Liveness::Due, ..candidate };
    let order = [
        candidate(6, Distance::Unknown),
        due(candidate(5, Distance::Unknown)),
        hearsay(4),
        due(hearsay(3)),
        doubtful,
        Candidate { liveness: Liveness::Doubtful, ..hearsay(2) },
    ];
    for first in 0..order.len() {
        let rest: Vec<_> = order[first..].iter().rev().cloned().collect();
        let choice = Search::default().choose(Instant::now(), &rest, 0);
        assert_eq!(choice, Choice::Ask(order[first].id, rest.len() - 1));
    }
}

#[test]
fn one_in_trouble_is_asked_after_hearsay() {
    let mut busy = near(1);
    busy.load.is_troubled = true;
    let choice = Search::default().choose(Instant::now(), &[busy, hearsay(2)], 0);
    assert_eq!(choice, Choice::Ask(id(2), 1));
}

#[test]
fn a_call_asks_few_in_vain_of_whom_only_others_told_and_waits_for_one_that_is_backed() {
    let (mut search, mut now) = (Search::default(), Instant::now());
    let mut all: Vec<_> = (10..60).map(hearsay).collect();
    let ask_in_vain = |search: &mut Search, now: &mut Instant, all: &[Candidate], most: usize| {
        for asked in 0..most {
            *now += ms(10_000);
            let Choice::Ask(id, _) = search.choose(*now, all, 7) else { return asked };
            let chosen = all.iter().find(|one| one.id == id).unwrap();
            fail(search, *now, chosen, Standing::Failed);
        }
        most
    };
    assert_eq!(ask_in_vain(&mut search, &mut now, &all, 50), 8);
    assert_eq!(search.choose(now, &all, 0), Choice::Wait);
    // Two of them were there, and late: so many more may be asked in vain, however often these two are.
    let mut asked = all.iter_mut().filter(|one| search.asked.contains_key(one.id.as_bytes()));
    asked.by_ref().take(2).for_each(|one| one.is_backed = true);
    assert_eq!(ask_in_vain(&mut search, &mut now, &all, 50), 50);
    assert_eq!(search.on_hearsay, 10);
    all.push(candidate(1, Distance::NoWay));
    assert_eq!(search.choose(now, &all, 0), Choice::Ask(id(1), 0));
}

#[test]
fn the_only_one_there_is_is_asked_again_although_it_is_hearsay_and_not_for_ever() {
    let (mut search, mut now) = (Search::default(), Instant::now());
    for _ in 0..HEARSAY_MAX {
        assert_eq!(search.choose(now, &[hearsay(1)], 0), Choice::Ask(id(1), 0));
        fail(&mut search, now, &hearsay(1), Standing::Failed);
        now += PAUSE.1;
    }
    assert_eq!(search.choose(now, &[hearsay(1)], 0), Choice::Wait);
    assert_eq!(search.choose(now, &[candidate(1, Distance::Unknown)], 0), Choice::Ask(id(1), 0));
}

#[test]
fn whoever_had_the_request_first_and_not_whoever_was_asked_later_is_overtaken_by_an_answer() {
    let (mut search, now) = (Search::default(), Instant::now());
    for n in 1..4 {
        search.asking(now + ms(n), &near(u8::try_from(n).unwrap()));
    }
    search.asking(now, &near(4));
    search.failed(now + ms(3), &id(4), Standing::Failed);
    let overtaken = [1, 2, 3, 4, 5].map(|n| search.is_overtaken(&id(n), &id(2)));
    assert_eq!(overtaken, [true, false, false, false, false]);
}

#[test]
fn without_a_provider_one_is_waited_for() {
    assert_eq!(Search::default().choose(Instant::now(), &[], 0), Choice::Wait);
}

#[test]
fn a_sent_request_is_sent_to_nobody_else_unless_it_was_refused() {
    let lost = [Outcome::Unknown, Outcome::TimedOut, Outcome::Failed(Failure::DrainDeadline)];
    for outcome in lost {
        assert_eq!(after_attempt(outcome, false), Verdict::End, "{outcome:?}");
        let elsewhere = Verdict::Elsewhere(Standing::Failed);
        assert_eq!(after_attempt(outcome, true), elsewhere, "{outcome:?}");
    }
    let busy = after_attempt(Outcome::Refused(Code::Busy), false);
    assert_eq!(busy, Verdict::Elsewhere(Standing::Failed));
}

#[test]
fn a_refusal_that_does_not_promise_that_no_handler_had_the_request_ends_a_call_unless_it_is_safe() {
    for code in Code::ASSIGNED {
        let verdict = after_attempt(Outcome::Refused(*code), false);
        assert_eq!(verdict != Verdict::End, code.never_served(), "{code}");
        assert_ne!(after_attempt(Outcome::Refused(*code), true), Verdict::End, "{code}");
    }
}

#[test]
fn one_that_had_the_request_until_the_time_was_over_was_silent_and_one_that_was_not_reached_was_not()
 {
    assert_eq!(News::of_failure(Outcome::TimedOut, false), News::Silence);
    assert_eq!(News::of_failure(Outcome::TimedOut, true), News::Trouble);
    assert_eq!(News::of_failure(Outcome::Unknown, false), News::Trouble);
    assert_eq!(News::of_failure(Outcome::Refused(Code::Busy), true), News::Trouble);
    assert_eq!(News::of_failure(Outcome::Refused(Code::NotAllowed), true), News::Nothing);
    let failed = Outcome::Failed(Failure::Reset(Code::HandlerFailed));
    assert_eq!(News::of_failure(failed, false), News::Nothing);
}

#[test]
fn what_a_handler_says_is_an_answer_even_to_a_call_that_may_run_twice() {
    for code in [Code::HandlerFailed, Code::HandlerPanicked, Code::TooLarge] {
        let outcome = Outcome::Failed(Failure::Reset(code));
        assert_eq!(after_attempt(outcome, true), Verdict::End, "{code}");
    }
    let restarted = Outcome::Failed(Failure::Reset(Code::Restarted));
    assert_eq!(after_attempt(restarted, true), Verdict::Elsewhere(Standing::Failed));
    assert_eq!(after_attempt(restarted, false), Verdict::End);
}

#[test]
fn a_provider_in_trouble_is_out_of_it_after_a_while_or_with_an_answer() {
    let (mut loads, now) = (Loads::default(), Instant::now());
    let mut fail = |now| {
        loads.started(&id(1));
        loads.ended(now, &id(1), News::Trouble);
        [ms(999), ms(1000), ms(1999), ms(2000)]
            .map(|later| loads.of(now + later, &id(1)).is_troubled)
    };
    assert_eq!(fail(now), [true, false, false, false]);
    assert_eq!(fail(now + ms(3000)), [true, true, true, false]);
    loads.started(&id(1));
    loads.ended(now + ms(3001), &id(1), News::Answered);
    assert!(!loads.of(now + ms(3001), &id(1)).is_troubled);
    assert!(loads.0.is_empty());
}

#[test]
fn one_that_is_silent_for_good_is_asked_by_one_call_at_a_time_and_ever_more_seldom() {
    const CALL: Duration = Duration::from_secs(15);
    let (mut loads, mut now) = (Loads::default(), Instant::now());
    let mut waits = Vec::new();
    for _ in 0..7 {
        // Several begin before the first is over; once there was one trouble, one finds out if it is over.
        let mut begun = 0;
        while begun < 3 && !loads.of(now, &id(1)).is_troubled {
            loads.started(&id(1));
            begun += 1;
        }
        assert_eq!(begun, if waits.is_empty() { 3 } else { 1 });
        now += CALL;
        (0..begun).for_each(|_| loads.ended(now, &id(1), News::Silence));
        let since = now;
        while loads.of(now, &id(1)).is_troubled {
            now += Duration::from_secs(1);
        }
        waits.push((now - since).as_secs());
    }
    assert_eq!(waits, [30, 60, 120, 240, 480, 900, 900]);
    // However seldom it is asked, within limits.
    now += SILENCE.1 - ms(1);
    loads.started(&id(1));
    loads.ended(now, &id(1), News::Silence);
    assert!(loads.of(now + SILENCE.1 - ms(1), &id(1)).is_troubled);
    loads.started(&id(1));
    loads.ended(now, &id(1), News::Answered);
    assert!(loads.0.is_empty());
}

#[test]
fn silence_counts_where_a_refusal_came_before_it_and_not_the_other_way_around() {
    let (mut loads, now) = (Loads::default(), Instant::now());
    (0..3).for_each(|_| loads.started(&id(1)));
    loads.ended(now, &id(1), News::Trouble);
    loads.ended(now, &id(1), News::Silence);
    loads.ended(now, &id(1), News::Trouble);
    assert!(loads.of(now + SILENCE.0 - ms(1), &id(1)).is_troubled);
    assert!(!loads.of(now + SILENCE.0, &id(1)).is_troubled);
}

#[test]
fn calls_that_fail_together_are_one_trouble() {
    let (mut loads, now) = (Loads::default(), Instant::now());
    (0..10).for_each(|_| loads.started(&id(1)));
    assert_eq!(loads.of(now, &id(1)).in_flight, 10);
    (0..10).for_each(|_| loads.ended(now, &id(1), News::Trouble));
    assert!(!loads.of(now + TROUBLE.0, &id(1)).is_troubled);
}

#[test]
fn one_that_cannot_be_reached_never_gets_all_the_time_that_is_left() {
    assert_eq!(reach_share(ms(10_000), 0), ms(5000));
    assert_eq!(reach_share(ms(10_000), 2), ms(2500));
    assert_eq!(reach_share(ms(10_000), 100), REACH_MIN);
    assert_eq!(reach_share(ms(500), 100), ms(250));
}

fn any_distance() -> impl Strategy<Value = Distance> {
    prop_oneof![
        (0..500_u64).prop_map(|rtt| Distance::Measured(ms(rtt))),
        Just(Distance::Unknown),
        Just(Distance::NoWay),
    ]
}

fn any_candidate() -> impl Strategy<Value = Candidate> {
    let liveness = select(vec![Liveness::Good, Liveness::Due, Liveness::Doubtful]);
    let load = (0..100_usize, any::<bool>());
    (1..20_u8, any_distance(), liveness, any::<bool>(), load).prop_map(
        |(n, distance, liveness, is_backed, (in_flight, is_troubled))| Candidate {
            liveness,
            is_backed,
            load: Load { in_flight, is_troubled },
            ..candidate(n, distance)
        },
    )
}

fn any_candidates() -> impl Strategy<Value = Vec<Candidate>> {
    vec(any_candidate(), 0..12).prop_map(|candidates| {
        let by_id: BTreeMap<_, _> = candidates.into_iter().map(|one| (one.id, one)).collect();
        by_id.into_values().collect()
    })
}

fn any_code() -> impl Strategy<Value = Code> {
    (0..300_u64).prop_map(Code::from_wire)
}

fn any_outcome() -> impl Strategy<Value = Outcome> {
    prop_oneof![
        any_code().prop_map(Outcome::Refused),
        any_code().prop_map(|code| Outcome::Failed(Failure::Reset(code))),
        select(vec![
            Outcome::Unknown,
            Outcome::TimedOut,
            Outcome::Cancelled,
            Outcome::Banned,
            Outcome::Restarted,
            Outcome::Failed(Failure::DrainDeadline),
            Outcome::Failed(Failure::NoAddress),
            Outcome::Failed(Failure::QueueFull),
        ]),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nobody_who_is_less_doubted_and_cheaper_is_passed_over(
        candidates in any_candidates(),
        random: u64,
    ) {
        let choice = Search::default().choose(Instant::now(), &candidates, random);
        let Choice::Ask(chosen, others) = choice else {
            prop_assert!(candidates.is_empty());
            return Ok(());
        };
        prop_assert_eq!(others, candidates.len() - 1);
        let chosen = candidates.iter().find(|one| one.id == chosen).unwrap();
        for other in &candidates {
            let is_better =
                (other.doubts(), other.cost()) < (chosen.doubts(), chosen.cost());
            prop_assert!(!is_better, "{:?} and not {:?}", chosen, other);
        }
    }

    #[test]
    fn a_search_asks_each_provider_once_before_any_twice_and_none_that_refuses(
        candidates in any_candidates().prop_map(|mut all| {
            all.iter_mut().for_each(|one| one.is_backed = true);
            all
        }),
        standings in vec(select(vec![Standing::Failed, Standing::Away, Standing::Refuses]), 40),
        randoms in vec(any::<u64>(), 40),
    ) {
        let (mut search, mut now) = (Search::default(), Instant::now());
        let mut asked: BTreeMap<EndpointId, (usize, Standing)> = BTreeMap::new();
        for (standing, random) in standings.into_iter().zip(randoms) {
            match search.choose(now, &candidates, random) {
                Choice::Ask(id, _) => {
                    let before = asked.get(&id).copied();
                    if let Some((times, standing)) = before {
                        prop_assert_eq!(standing, Standing::Failed);
                        prop_assert!(times > 0 && asked.len() == candidates.len());
                    }
                    asked.insert(id, (before.map_or(0, |(times, _)| times) + 1, standing));
                    let candidate = candidates.iter().find(|one| one.id == id).unwrap();
                    fail(&mut search, now, candidate, standing);
                }
                Choice::Pause(at) => {
                    prop_assert!(at > now && at <= now + PAUSE.1);
                    now = at;
                }
                Choice::Wait | Choice::GiveUp => {
                    let none_left = |(_, standing): &(usize, Standing)| *standing != Standing::Failed;
                    prop_assert!(asked.len() == candidates.len() && asked.values().all(none_left));
                    break;
                }
            }
        }
    }

    #[test]
    fn a_search_asks_few_in_vain_of_whom_only_others_told_whatever_becomes_of_them(
        steps in vec((any_candidates(), any::<u64>(), 0..3000_u64), 0..60),
        standing in select(vec![Standing::Failed, Standing::Away, Standing::Refuses]),
    ) {
        let (mut search, mut now) = (Search::default(), Instant::now());
        let mut in_vain = 0;
        for (mut candidates, random, later) in steps {
            now += ms(later);
            // Each with something new, and nobody who was reached.
            for one in &mut candidates {
                one.seq = seq(random >> 20);
                let asked = search.asked.get(one.id.as_bytes());
                one.is_backed &= asked.is_none_or(|asked| asked.on_hearsay == 0);
            }
            if let Choice::Ask(id, _) = search.choose(now, &candidates, random) {
                let chosen = candidates.iter().find(|one| one.id == id).unwrap();
                in_vain += u32::from(!chosen.is_backed);
                fail(&mut search, now, chosen, standing);
            }
        }
        prop_assert!(in_vain <= HEARSAY_MAX);
    }

    #[test]
    fn a_request_that_may_have_been_acted_on_is_sent_to_another_only_after_a_refusal(
        outcome in any_outcome(),
    ) {
        let is_unserved = matches!(outcome, Outcome::Refused(code) if code.never_served());
        let verdict = after_attempt(outcome, false);
        prop_assert_eq!(verdict != Verdict::End, is_unserved, "{:?}", outcome);
    }

    #[test]
    fn what_ends_a_call_that_is_safe_ends_one_that_is_not(outcome in any_outcome()) {
        if after_attempt(outcome, true) == Verdict::End {
            prop_assert_eq!(after_attempt(outcome, false), Verdict::End);
        }
    }

    #[test]
    fn loads_count_exactly_what_is_under_way(steps in vec((1..4_u8, 0..4_u8, 0..4000_u64), 0..80)) {
        let (mut loads, mut now) = (Loads::default(), Instant::now());
        let mut under_way: BTreeMap<u8, usize> = BTreeMap::new();
        for (who, what, later) in steps {
            now += ms(later);
            let count = under_way.entry(who).or_default();
            if *count > 0 && what > 0 {
                *count -= 1;
                let all = [News::Answered, News::Trouble, News::Silence, News::Nothing];
                let news = all[usize::from(what)];
                loads.ended(now, &id(who), news);
            } else {
                *count += 1;
                loads.started(&id(who));
            }
            for (who, count) in &under_way {
                prop_assert_eq!(loads.of(now, &id(*who)).in_flight, *count);
            }
        }
    }

    #[test]
    fn shares_of_the_time_that_is_left_leave_some(left in 1..100_000_u64, others in 0..1000_usize) {
        let share = reach_share(ms(left), others);
        prop_assert!(share > Duration::ZERO && share <= ms(left) / 2);
    }
}
