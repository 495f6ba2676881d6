//! What reaches whom, and what it costs, in networks of honest nodes.

use std::time::Duration;

use kinfolk_core::code::Code;

use super::super::{Dropped, NEIGHBOURS};
use super::network::{Net, id, secs};

/// Reasons that honest nodes never give each other.
const FAULTS: [Dropped; 9] = [
    Dropped::FrameTooLarge,
    Dropped::FrameVersion,
    Dropped::UnknownTopic,
    Dropped::FrameMalformed,
    Dropped::FrameNonCanonical,
    Dropped::WrongHash,
    Dropped::WrongScope,
    Dropped::PromiseRate,
    Dropped::FrameRate,
];

fn assert_nobody_is_blamed(net: &Net) {
    for fault in FAULTS {
        assert_eq!(net.dropped(fault), 0, "{}", fault.name());
    }
    let blamed = net.closed.iter().filter(|(_, _, code)| *code != Code::Ok);
    assert_eq!(blamed.count(), 0);
}

#[test]
fn an_announcement_reaches_all() {
    for (count, seed) in [(2, 1), (3, 2), (10, 3), (20, 4), (40, 5)] {
        let mut net = Net::of(count, seed);
        assert_eq!(net.component(1), usize::from(count));
        let record = net.change(count / 2);
        net.run(secs(3));
        assert_eq!(net.knowing(&record), usize::from(count), "of {count}");
        assert_nobody_is_blamed(&net);
    }
}

#[test]
fn forty_nodes_that_start_at_once_become_one_overlay() {
    let mut net = Net::starting(40, 15, Duration::ZERO);
    assert_eq!(net.component(1), 40);
    let record = net.change(20);
    net.run(secs(3));
    assert_eq!(net.knowing(&record), 40);
    assert_nobody_is_blamed(&net);
}

/// Opens streams until everybody has neighbours, and then hardly any more, although everybody has just found everybody.
#[test]
fn forty_nodes_that_find_each_other_at_once_do_not_all_ask_each_other() {
    let mut most = 0;
    for seed in 0..10 {
        let mut net = Net::starting_apart(40, 100 + seed);
        net.run(secs(4));
        let opens = net.opens();
        net.run(secs(30));
        let more = net.opens() - opens;
        most = most.max(more);
        assert_eq!(net.component(1), 40);
    }
    // Two asked by each would open some four hundred.
    assert!(most <= 150, "{most}");
}

/// All are new, and draw lots before they ask those of the other part.
#[test]
fn a_few_new_nodes_and_many_that_began_apart_from_them_become_one_within_a_minute() {
    for seed in 0..10 {
        let mut net = Net::empty(200 + seed);
        for n in 1..=40 {
            let first = if n <= 5 { 1 } else { 6 };
            net.start(n, (n != first).then_some(first));
        }
        let all_hear = |net: &mut Net| {
            (2..=5).for_each(|n| net.exchange(1, n));
            (7..=40).for_each(|n| net.exchange(6, n));
        };
        net.run(secs(1) / 2);
        all_hear(&mut net);
        all_hear(&mut net);
        net.run(secs(5));
        assert_eq!((net.component(1), net.component(6)), (5, 35));
        net.exchange(1, 6);
        all_hear(&mut net);
        net.run(secs(54));
        assert_eq!((net.component(1), net.component(6)), (40, 40), "seed {seed}");
    }
}

#[test]
fn a_node_that_starts_is_known_by_its_first_announcement_to_all_that_were_there() {
    let net = Net::of(20, 1);
    for n in 1..=20 {
        for other in 1..n {
            assert!(net.node(other).catalog.known().get(&id(n)).is_some(), "{n} at {other}");
        }
    }
}

#[test]
fn a_departure_reaches_all_and_is_handed_over_before_the_end() {
    let mut net = Net::of(40, 6);
    net.change(7);
    net.run(secs(3));
    assert_eq!(net.listing(7), 39);
    net.depart(7);
    assert!(net.node(7).has_departed);
    assert_eq!(net.node(7).announcer.next_timeout(), None);
    net.run(secs(3));
    assert_eq!(net.listing(7), 0);
    net.crash(7);
    net.run(secs(60));
    assert_eq!((net.listing(7), net.component(1)), (0, 39));
    assert_nobody_is_blamed(&net);
}

#[test]
fn a_node_without_neighbours_departs_at_once() {
    let mut net = Net::empty(1);
    net.start(1, []);
    net.depart(1);
    assert!(net.node(1).has_departed);
}

#[test]
fn neighbours_that_crash_are_replaced() {
    let mut net = Net::of(40, 7);
    for n in 1..=10 {
        net.crash(n);
    }
    net.run(secs(60));
    assert_eq!(net.component(40), 30);
    let record = net.change(40);
    net.run(secs(3));
    assert_eq!(net.knowing(&record), 30);
    for node in net.nodes.values() {
        assert!(!node.announcer.neighbours().is_empty());
        assert!(node.announcer.neighbours().iter().all(|peer| net.nodes.contains_key(peer)));
    }
}

#[test]
fn a_late_joiner_that_knows_one_node_is_told_to_all_and_hears_all() {
    let mut net = Net::of(40, 8);
    net.run(secs(600));
    net.start(41, [3]);
    net.run(secs(5));
    assert_eq!(net.listing(41), 40);
    let record = net.change(20);
    net.run(secs(3));
    assert_eq!(net.knowing(&record), 41);
}

#[test]
fn a_partition_that_outlived_all_records_heals_by_the_difference_of_catalogs() {
    let mut net = Net::of(40, 9);
    net.cut(1..=20);
    net.run(secs(45 * 60));
    // Both sides have forgotten each other.
    assert_eq!((net.component(1), net.component(40), net.listing(1)), (20, 20, 19));
    net.heal();
    let opens = net.opens();
    net.exchange(1, 40);
    net.run(secs(30));
    let joined = net.opens() - opens;
    assert_eq!(net.component(1), 40);
    // Those whom the two ask that learnt of the others, those whom that displaces, and the shuffles of half a minute; all that
    // became known asked by everybody would be eight hundred.
    assert!(joined <= 150, "{joined}");
    let record = net.change(33);
    net.run(secs(3));
    assert_eq!(net.knowing(&record), 40);
}

#[test]
fn a_partition_that_no_catalog_noticed_heals_within_minutes() {
    let mut net = Net::of(40, 10);
    net.cut(1..=20);
    net.run(secs(300));
    assert_eq!((net.component(1), net.component(40)), (20, 20));
    net.heal();
    net.run(secs(900));
    assert_eq!(net.component(1), 40);
}

#[test]
fn nobody_has_more_neighbours_than_may_be_and_few_have_less_than_three() {
    let mut net = Net::of(40, 11);
    net.run(secs(120));
    let counts: Vec<_> = net.nodes.values().map(|node| node.announcer.neighbours().len()).collect();
    assert!(counts.iter().all(|count| (1..=NEIGHBOURS).contains(count)), "{counts:?}");
    assert!(counts.iter().filter(|count| **count < 3).count() <= 4, "{counts:?}");
}

#[test]
fn a_node_alone_in_the_world_is_woken_a_few_times_a_minute() {
    let mut net = Net::empty(12);
    net.start(1, []);
    net.run(secs(3600));
    assert!(net.node(1).wakes <= 3600 / 5, "{}", net.node(1).wakes);
    assert_eq!(net.frames, 0);
}

#[test]
fn changes_that_come_too_fast_are_told_together_and_the_last_one_is_told() {
    let mut net = Net::of(10, 13);
    net.run(secs(120));
    let mut last = net.change(4);
    for _ in 0..50 {
        net.run(secs(1) / 10);
        last = net.change(4);
    }
    net.run(secs(30));
    assert_eq!(net.knowing(&last), 10);
    assert_eq!(net.dropped(Dropped::AuthorRate), 0);
}

/// Four hours of forty nodes that change, come and go, of which the first two fill the tables. The overlay's own are not to be seen, so
/// that their length in print stands for them.
#[test]
fn what_forty_nodes_keep_stays_flat_over_hours() {
    let mut net = Net::of(40, 14);
    let size = |net: &Net| {
        let mut most = [0; 3];
        for node in net.nodes.values() {
            let overlay = format!("{:?}", node.announcer.overlay).len();
            let announcer = &node.announcer;
            let own = announcer.timers.len() + announcer.lanes.len() + announcer.promises.len();
            let sizes = [overlay, own, announcer.seen.len()];
            most = std::array::from_fn(|n| most[n].max(sizes[n]));
        }
        most
    };
    let mut sizes = Vec::new();
    for hour in 0_u8..4 {
        for part in 0..12_u8 {
            let n = 1 + (hour * 12 + part) % 39;
            net.change(n);
            if part % 3 == 0 {
                net.crash(n);
                net.run(secs(200));
                net.start(n, [40]);
                net.run(secs(100));
            } else {
                net.run(secs(300));
            }
        }
        net.run(secs(120));
        sizes.push(size(&net));
    }
    let (early, late) = sizes.split_at(2);
    for place in 0..3 {
        let most = |sizes: &[[usize; 3]]| sizes.iter().map(|size| size[place]).max().unwrap();
        assert!(most(late) <= most(early) * 5 / 4 + 5, "{sizes:?}");
    }
    assert_eq!(net.component(40), 40);
    let spent = net.frames as f64 / 40.0 / 4.0 / 3600.0;
    println!("{spent:.2} frames per node and second, {} bytes in all; {sizes:?}", net.bytes);
    assert!(spent < 3.0, "{spent}");
    assert!(net.nodes.contains_key(&id(40)));
}
