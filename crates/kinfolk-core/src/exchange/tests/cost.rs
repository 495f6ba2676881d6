//! What exchanges cost.

use std::time::Instant;

use super::*;

#[test]
fn equal_catalogs_of_ten_thousand_cost_two_messages_and_less_than_a_kilobyte() {
    let mut pair = Pair::new();
    pair.both_know_all_of(10_000);
    let outcome = pair.exchange();
    assert!(outcome.is_complete());
    assert_eq!((outcome.messages(), outcome.record_bytes()), (2, 0));
    assert!(outcome.bytes() <= 320, "{}", outcome.bytes());
}

/// Messages, bytes, and bytes of records of one exchange between two catalogs of `count`, of which one in `of` differs.
fn differing(count: u32, of: u32) -> (u32, u64, u64) {
    let mut pair = Pair::new();
    pair.limits.bytes = 2 * 1024 * 1024;
    (0..2).for_each(|n| pair.both_hear(&record(n, CLOCK)));
    for n in 2..count {
        // Three kinds of difference: known to one side, known to the other, newer on one side.
        match if n % of == 0 { n / of % 4 } else { 4 } {
            0 => pair.hear(0, record(n, CLOCK + u64::from(n))),
            1 => pair.hear(1, record(n, CLOCK + u64::from(n))),
            kind => {
                pair.both_hear(&record(n, CLOCK + u64::from(n)));
                if kind < 4 {
                    pair.hear((kind % 2) as usize, record(n, CLOCK + 600_000 + u64::from(n)));
                }
            }
        }
    }
    let outcome = pair.exchange();
    assert!(outcome.is_complete());
    assert_eq!(pair.nodes[0].known(), pair.nodes[1].known());
    (outcome.messages(), outcome.bytes(), outcome.record_bytes())
}

#[test]
fn large_differences_cost_little_more_than_their_records_and_small_ones_few_messages() {
    let (messages, bytes, records) = differing(10_000, 2);
    assert!(bytes * 100 <= records * 112, "{bytes} for {records}");
    assert!(messages <= 24, "{messages}");
    let (messages, bytes, _) = differing(10_000, 5_000);
    assert!(bytes <= 2_000, "{bytes}");
    assert!(messages <= 6, "{messages}");
}

#[test]
#[ignore = "a measurement that judges nothing: the command is in docs/testing.md"]
fn measure_differences() {
    for of in [1, 2, 5, 10, 20, 50, 100, 1_000, 5_000] {
        let (messages, bytes, records) = differing(10_000, of);
        let ratio = bytes as f64 / records as f64;
        println!("1 of {of} differs: {messages} messages, {bytes} B for {records} B: {ratio:.2}");
    }
}

#[test]
#[ignore = "a measurement that judges nothing: the command is in docs/testing.md"]
fn measure_equal_catalogs() {
    for count in [1_000, 10_000] {
        let mut pair = Pair::new();
        pair.both_know_all_of(count);
        let now = pair.nodes[0].now;
        let mut times = [Vec::new(), Vec::new()];
        for _ in 0..51 {
            let mut machines = pair.machines();
            let mut spent = [Duration::ZERO; 2];
            let mut out = Vec::new();
            machines[1].handle(now, Input::Start, &mut out);
            let start = Instant::now();
            machines[0].handle(now, Input::Start, &mut out);
            spent[0] += start.elapsed();
            for side in [1, 0] {
                let frame = out.drain(..).find_map(|output| match output {
                    Output::Send(frame) => Some(frame),
                    _ => None,
                });
                let start = Instant::now();
                let frame = frame.unwrap();
                machines[side].handle(now, Input::Received(&frame[LENGTH_BYTES..]), &mut out);
                spent[side] += start.elapsed();
            }
            assert!(machines.iter().all(Exchange::is_over));
            times.iter_mut().zip(spent).for_each(|(times, spent)| times.push(spent));
        }
        let bytes = pair.exchange().bytes();
        for (side, mut times) in ["initiator", "responder"].into_iter().zip(times) {
            times.sort();
            println!("{count}: {bytes} B; {side} {:?} (least {:?})", times[25], times[0]);
        }
    }
}
