//! Two machines that keep the rules.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::*;

/// What a side knows of a node.
type Known = Option<(u64, bool)>;

fn known() -> impl Strategy<Value = Known> {
    let seqs = select(vec![1, 2, CLOCK, CLOCK + 1, CLOCK + 600_000, u64::MAX]);
    let version = (seqs, prop::bool::weighted(0.2));
    prop_oneof![1 => Just(None), 3 => version.prop_map(Some)]
}

/// What both sides know of one node: mostly the same.
fn both() -> impl Strategy<Value = [Known; 2]> {
    prop_oneof![
        3 => known().prop_map(|known| [known, known]),
        2 => [known(), known()],
    ]
}

/// What a side should learn: what the other knows and it does not, or in an older version.
fn missing(mine: &Node, other: &Node) -> BTreeMap<EndpointId, Record> {
    let known = mine.known();
    let is_newer = |record: &Record| {
        known.get(&record.id()).is_none_or(|mine| Version::of(mine) < Version::of(record))
    };
    other.known().into_iter().filter(|(_, record)| is_newer(record)).collect()
}

fn learned(outcome: &Outcome, side: usize) -> BTreeMap<EndpointId, Record> {
    let learned = outcome.learned[side].iter();
    let by_id: BTreeMap<_, _> = learned.map(|(record, _)| (record.id(), record.clone())).collect();
    assert_eq!(by_id.len(), outcome.learned[side].len(), "a record came twice");
    by_id
}

fn said(n: u32, (seq, is_departure): (u64, bool)) -> Record {
    if is_departure { departure(n, seq) } else { record(n, seq) }
}

fn config() -> ProptestConfig {
    ProptestConfig {
        cases: ProptestConfig::default().cases / 4,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn both_sides_learn_exactly_what_was_newer_on_the_other(
        nodes in prop_oneof![vec(both(), 0..20), vec(both(), 0..400)],
        know_each_other in any::<[bool; 2]>(),
    ) {
        let mut pair = Pair::new();
        for side in [0, 1] {
            if know_each_other[side] {
                let other = record(1 - u32::try_from(side).unwrap(), CLOCK);
                pair.hear(side, other);
            }
        }
        for (n, versions) in (2..).zip(nodes) {
            for (side, version) in versions.into_iter().enumerate() {
                if let Some(version) = version {
                    pair.hear(side, said(n, version));
                }
            }
        }
        let [first, second] = &pair.nodes;
        let expected = [missing(first, second), missing(second, first)];
        let outcome = pair.exchange();
        prop_assert!(outcome.is_complete());
        for (side, expected) in expected.iter().enumerate() {
            prop_assert_eq!(&learned(&outcome, side), expected);
        }
        let again = pair.exchange();
        prop_assert!(again.is_complete());
        prop_assert_eq!((again.messages(), again.record_bytes()), (2, 0));
    }
}

#[test]
fn two_nodes_that_know_nobody_learn_of_each_other() {
    let mut pair = Pair::new();
    let outcome = pair.exchange();
    assert!(outcome.is_complete());
    assert_eq!(outcome.messages(), 3);
    assert_eq!(pair.nodes[0].known(), pair.nodes[1].known());
}

#[test]
fn a_departure_wins_over_a_record_with_its_number_and_loses_against_a_newer_one() {
    let mut pair = Pair::new();
    pair.both_know_all_of(50);
    pair.hear(0, departure(10, CLOCK));
    pair.hear(0, departure(11, CLOCK));
    pair.hear(1, record(11, CLOCK + 1));
    let outcome = pair.exchange();
    assert_eq!(learned(&outcome, 1).into_values().collect::<Vec<_>>(), [departure(10, CLOCK)]);
    assert_eq!(learned(&outcome, 0).into_values().collect::<Vec<_>>(), [record(11, CLOCK + 1)]);
}

#[test]
fn the_own_records_come_with_the_first_four_messages() {
    let mut pair = Pair::new();
    for n in 2..2000 {
        pair.hear((n % 2) as usize, record(n, CLOCK));
    }
    let outcome = pair.run(|_, at| (at == 4).then_some(Input::Stop));
    for (side, other) in [(0, 1), (1, 0)] {
        assert!(outcome.learned[side].iter().any(|(record, _)| record.id() == id(other)));
        assert!(outcome.learned[side].len() < 500);
    }
}

#[test]
fn a_record_is_passed_on_with_the_age_that_it_has_by_then() {
    let mut pair = Pair::new();
    pair.nodes[0].hear(record(5, CLOCK), secs(100));
    pair.nodes.iter_mut().for_each(|node| node.now += Duration::from_micros(7_000_001));
    let outcome = pair.exchange();
    let age = |n| outcome.learned[1].iter().find(|(record, _)| record.id() == id(n)).unwrap().1;
    assert_eq!(age(5), Duration::from_millis(107_001));
}

#[test]
fn a_record_whose_time_is_over_is_neither_counted_nor_sent() {
    let mut pair = Pair::new();
    pair.both_know_all_of(30);
    pair.nodes[0].hear(record(40, CLOCK), secs(1799));
    pair.nodes.iter_mut().for_each(|node| node.now += secs(2));
    let outcome = pair.exchange();
    assert_eq!((outcome.messages(), outcome.record_bytes()), (2, 0));
}

#[test]
fn exchanges_that_are_cut_go_on_where_they_differ_until_both_know_all() {
    let mut pair = Pair::new();
    pair.limits.bytes = crate::wire::exchange::ACCEPTS_MIN;
    for n in 2..3000 {
        if n % 3 != 0 {
            pair.hear(0, record(n, CLOCK));
        }
        if n % 3 != 1 {
            pair.hear(1, record(n, CLOCK + u64::from(n % 2)));
        }
    }
    let mut exchanges = 0;
    loop {
        exchanges += 1;
        let outcome = pair.exchange();
        if outcome.is_complete() {
            break;
        }
        assert_eq!(outcome.ends(), [&End::Cut; 2]);
        // Nearly all of what a side may send is used.
        let most = outcome.summaries.iter().map(|summary| summary.sent.bytes).max();
        assert!(most.unwrap() > 115_000, "{most:?} in exchange {exchanges}");
        assert!(exchanges < 10);
    }
    assert_eq!(exchanges, 3);
    assert_eq!(pair.nodes[0].known(), pair.nodes[1].known());
}

#[test]
fn a_side_that_may_send_little_still_takes_what_the_other_has() {
    let mut pair = Pair::new();
    let small = crate::wire::exchange::ACCEPTS_MIN;
    for n in 2..2000 {
        pair.hear((n % 2) as usize, record(n, CLOCK));
    }
    // What a peer accepts bounds the other side as its own limit does.
    let mut machines = pair.machines();
    machines[1].limits.bytes = small;
    let now = pair.nodes[0].now;
    let mut out = Vec::new();
    machines[1].handle(now, Input::Start, &mut out);
    machines[0].handle(now, Input::Start, &mut out);
    let mut side = 1;
    let mut ends = Vec::new();
    while !out.is_empty() {
        let mut next = Vec::new();
        for output in out.drain(..) {
            match output {
                Output::Send(frame) => {
                    machines[side].handle(now, Input::Received(&frame[LENGTH_BYTES..]), &mut next);
                }
                Output::Ended(summary) => ends.push(summary),
                _ => {}
            }
        }
        side = 1 - side;
        out = next;
    }
    let [first, second] = &ends[..] else { panic!("{ends:?}") };
    assert_eq!([&first.end, &second.end], [&End::Cut; 2]);
    assert!(ends.iter().all(|end| end.sent.bytes <= small.into() && end.sent.records > 400));
}

#[test]
fn exchanges_with_different_salts_begin_at_different_places() {
    let firsts: BTreeSet<EndpointId> = (0..8)
        .map(|salts| {
            let mut pair = Pair::new();
            pair.salts = salts;
            (2..600).for_each(|n| pair.hear(0, record(n, CLOCK)));
            pair.exchange().learned[1][1].0.id()
        })
        .collect();
    assert!(firsts.len() >= 7);
}

#[test]
fn whoever_is_left_alone_keeps_what_it_learnt_and_a_later_exchange_goes_on() {
    for number in 2..6 {
        for (told, end) in [(Input::Stop, End::Stopped), (Input::Closed, End::Closed)] {
            let mut pair = Pair::new();
            for n in 2..2000 {
                pair.hear((n % 2) as usize, record(n, CLOCK));
            }
            let outcome = pair.run(|_, at| (at == number).then_some(told));
            assert!(outcome.ends().contains(&&end) && outcome.ends().contains(&&End::Closed));
            assert!(outcome.summaries.iter().all(|summary| summary.received.bytes > 0));
            pair.tell(&outcome);
            let rest = pair.exchange();
            assert!(rest.is_complete());
            assert_eq!(pair.nodes[0].known(), pair.nodes[1].known());
            let learned: Vec<_> =
                [&outcome, &rest].into_iter().flat_map(|it| it.learned[0].iter()).collect();
            assert_eq!(learned.len(), 1000);
        }
    }
}

#[test]
fn both_see_the_tokens_of_the_other_once() {
    let tokens = |n: u8| Tokens::try_from(vec![[n; 16]; 64]).unwrap();
    let pair = Pair::new();
    let now = pair.nodes[0].now;
    let salt = Salt::from_bytes([9; 16]);
    let [first, second] = pair.nodes.each_ref().map(|node| node.catalog.known().clone());
    let limits = ExchangeLimits::default();
    let mut first = Exchange::new(Role::Initiator { salt }, first, tokens(1), limits.clone());
    let mut second = Exchange::new(Role::Responder, second, tokens(2), limits);
    let mut out = Vec::new();
    second.handle(now, Input::Start, &mut out);
    first.handle(now, Input::Start, &mut out);
    let Some(Output::Send(open)) = out.pop() else { panic!() };
    second.handle(now, Input::Received(&open[LENGTH_BYTES..]), &mut out);
    let Some(Output::Send(accept)) = out.pop() else { panic!() };
    assert_eq!(out, [Output::Tokens(vec![[1; 16]; 64])]);
    out.clear();
    first.handle(now, Input::Received(&accept[LENGTH_BYTES..]), &mut out);
    assert_eq!(out[0], Output::Tokens(vec![[2; 16]; 64]));
    assert!(Tokens::try_from(vec![[0; 16]; 65]).is_err());
}

#[test]
fn a_peer_that_says_nothing_is_given_up_after_the_silence_and_a_slow_one_after_the_deadline() {
    let mut pair = Pair::new();
    let start = pair.nodes[0].now;
    let mut out = Vec::new();
    for mut machine in pair.machines() {
        assert_eq!(machine.next_timeout(), None);
        machine.handle(start, Input::Start, &mut out);
        assert_eq!(machine.next_timeout(), Some(start + secs(10)));
        out.clear();
        machine.handle(start + secs(9), Input::Timeout, &mut out);
        assert_eq!(out, []);
        machine.handle(start + secs(10), Input::Timeout, &mut out);
        assert!(matches!(&out[..], [Output::Ended(Summary { end: End::Silent, .. })]));
        assert!(machine.is_over());
    }
    (2..2000).for_each(|n| pair.hear(1, record(n, CLOCK)));
    let mut machines = pair.machines();
    let mut at = start;
    let mut frames = Vec::new();
    for side in [1, 0] {
        machines[side].handle(at, Input::Start, &mut frames);
    }
    for side in [1, 0, 1] {
        at += secs(8);
        let Some(Output::Send(frame)) =
            frames.drain(..).find(|output| matches!(output, Output::Send(_)))
        else {
            panic!()
        };
        machines[side].handle(at, Input::Received(&frame[LENGTH_BYTES..]), &mut frames);
    }
    assert_eq!(machines[1].next_timeout(), Some(start + secs(30)));
    let mut out = Vec::new();
    machines[1].handle(start + secs(30), Input::Timeout, &mut out);
    assert!(matches!(&out[..], [Output::Ended(Summary { end: End::Late, .. })]));
}

#[test]
fn what_comes_after_the_end_changes_nothing() {
    let mut pair = Pair::new();
    let now = pair.nodes[0].now;
    let [mut first, _] = pair.machines();
    let mut out = Vec::new();
    first.handle(now, Input::Start, &mut out);
    first.handle(now, Input::Stop, &mut out);
    out.clear();
    for input in
        [Input::Start, Input::Received(b"\x02"), Input::Stop, Input::Closed, Input::Timeout]
    {
        first.handle(now, input, &mut out);
    }
    assert_eq!(out, []);
}
