//! Tests of the address book.

use super::*;
use iroh_base::SecretKey;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

fn peer(n: u8) -> EndpointId {
    SecretKey::from_bytes(&[n; 32]).public()
}

fn addr(port: u16) -> TransportAddr {
    TransportAddr::Ip(SocketAddr::from((Ipv4Addr::new(203, 0, 113, 7), port)))
}

fn relay() -> TransportAddr {
    TransportAddr::Relay("https://relay.example./".parse().unwrap())
}

fn at(n: u8, ports: impl IntoIterator<Item = u16>) -> EndpointAddr {
    EndpointAddr::from_parts(peer(n), ports.into_iter().map(addr))
}

fn holding(peers: usize) -> AddressBook {
    AddressBook::new(AddressLimits { peers, ..AddressLimits::default() })
}

fn fail(book: &mut AddressBook, now: Instant, n: u8, times: u32) -> usize {
    (0..times).map(|_| book.failed(now, &peer(n), AttemptFailure::Unreached)).sum()
}

fn check_invariants(book: &AddressBook) {
    assert!(book.len() <= book.limits.peers);
    let evictable: BTreeSet<_> =
        book.peers.iter().filter_map(|(peer, entry)| Some((entry.weight()?, *peer))).collect();
    assert_eq!(book.evictable, evictable);
    for entry in book.peers.values() {
        assert!(entry.learned.len() <= book.limits.learned_per_peer);
        assert!(entry.configured.len() <= book.limits.configured_per_peer);
        assert!(entry.learned.is_sorted_by_key(|a| std::cmp::Reverse(a.last_success)));
        let unsigned = || entry.known().filter(|known| known.slot != Slot::Signed);
        let addrs: BTreeSet<_> = unsigned().map(|known| known.addr).collect();
        assert_eq!(addrs.len(), unsigned().count());
        assert!(entry.signed.as_ref().is_none_or(|signed| !signed.addrs.is_empty()));
        assert!(!entry.is_empty());
    }
}

#[test]
fn a_peer_is_dialled_on_its_configured_and_learned_addresses_together() {
    let mut book = AddressBook::default();
    assert_eq!(book.addresses(&peer(1)), None);
    assert!(!book.knows(&peer(1)));
    assert_eq!(book.configure(at(1, [1, 2])), Ok(true));
    book.learned(Instant::now(), peer(1), relay());
    let all = at(1, [1, 2]).with_addrs([relay()]);
    assert_eq!(book.addresses(&peer(1)), Some(all));
    assert!(book.knows(&peer(1)));
}

#[test]
fn configuring_what_is_configured_is_nothing_new() {
    let mut book = AddressBook::default();
    assert_eq!(book.configure(at(1, [1, 2])), Ok(true));
    assert_eq!(book.configure(at(1, [2])), Ok(false));
    assert_eq!(book.configure(at(1, [2, 3])), Ok(true));
    assert_eq!(book.configured().next(), Some(at(1, [1, 2, 3])));
}

#[test]
fn a_bare_id_is_refused() {
    let mut book = AddressBook::default();
    let bare = EndpointAddr::new(peer(1));
    assert_eq!(book.configure(bare), Err(BookError::NoAddress));
    assert!(book.is_empty());
}

#[test]
fn too_many_configured_addresses_are_refused_and_change_nothing() {
    let mut book = AddressBook::default();
    book.configure(at(1, 1..=15)).unwrap();
    let (limit, got) = (16, 17);
    let refused = Err(BookError::TooMany { limit, got });
    assert_eq!(book.configure(at(1, 15..=17)), refused);
    assert_eq!(book.addresses(&peer(1)), Some(at(1, 1..=15)));
    assert_eq!(book.configure(at(1, 1..=16)), Ok(true));
    check_invariants(&book);
}

#[test]
fn removing_configured_addresses_leaves_the_learned_ones() {
    let mut book = AddressBook::default();
    book.configure(at(1, [1, 2, 3])).unwrap();
    book.learned(Instant::now(), peer(1), addr(9));
    assert_eq!(book.unconfigure(&peer(1), Some(&addr(2))), 1);
    assert_eq!(book.unconfigure(&peer(1), Some(&addr(2))), 0);
    assert_eq!(book.unconfigure(&peer(1), Some(&addr(9))), 0);
    assert_eq!(book.unconfigure(&peer(1), None), 2);
    assert_eq!(book.addresses(&peer(1)), Some(at(1, [9])));
    assert_eq!(book.unconfigure(&peer(2), None), 0);
    check_invariants(&book);
}

#[test]
fn a_peer_without_addresses_is_not_in_the_book() {
    let mut book = AddressBook::default();
    book.configure(at(1, [1])).unwrap();
    assert_eq!(book.unconfigure(&peer(1), None), 1);
    assert!(book.is_empty());
    assert_eq!(book.attempts(&peer(1)), None);
    fail(&mut book, Instant::now(), 1, 1);
    assert!(book.is_empty());
}

#[test]
fn learned_addresses_are_bounded_and_the_oldest_success_goes_first() {
    let start = Instant::now();
    let mut book = AddressBook::default();
    for port in 1..=4 {
        book.learned(start + seconds(port.into()), peer(1), addr(port));
    }
    book.learned(start + seconds(5), peer(1), addr(1));
    book.learned(start + seconds(6), peer(1), addr(5));
    let order: Vec<_> = book.known(&peer(1)).map(|known| known.addr).collect();
    assert_eq!(order, [&addr(5), &addr(1), &addr(4), &addr(3)]);
    check_invariants(&book);
}

#[test]
fn no_number_of_learned_addresses_evicts_a_configured_one() {
    let now = Instant::now();
    let mut book = AddressBook::default();
    book.configure(at(1, [1, 2])).unwrap();
    for port in 100..1_100 {
        book.learned(now, peer(1), addr(port));
    }
    assert_eq!(book.configured().next(), Some(at(1, [1, 2])));
    assert_eq!(book.known(&peer(1)).count(), 6);
}

#[test]
fn an_address_is_in_one_slot_and_the_app_wins() {
    let start = Instant::now();
    let mut book = AddressBook::default();
    book.learned(start, peer(1), addr(1));
    assert_eq!(book.configure(at(1, [1])), Ok(true));
    let address = addr(1);
    let expected = |last_success| KnownAddress {
        addr: &address,
        slot: Slot::Configured,
        last_success: Some(last_success),
    };
    assert!(book.known(&peer(1)).eq([expected(start)]));
    let later = start + seconds(1);
    book.learned(later, peer(1), addr(1));
    assert!(book.known(&peer(1)).eq([expected(later)]));
    assert_eq!(book.unconfigure(&peer(1), None), 1);
    assert!(!book.knows(&peer(1)));
}

#[test]
fn a_full_book_forgets_the_peer_reached_the_longest_time_ago() {
    let start = Instant::now();
    let mut book = holding(4);
    book.configure(at(1, [1])).unwrap();
    for n in 2..=4 {
        book.reached(start + seconds(n.into()), peer(n), addr(1));
    }
    book.reached(start + seconds(10), peer(2), addr(1));
    let outcome = book.reached(start + seconds(11), peer(5), addr(1));
    assert_eq!(outcome, Learned::Displaced(peer(3)));
    assert_eq!(book.configure(at(6, [1])), Ok(true));
    let left: Vec<_> = (1..=6).filter(|n| book.knows(&peer(*n))).collect();
    assert_eq!(left, [1, 2, 5, 6]);
    assert_eq!(book.evictions(), 2);
    check_invariants(&book);
}

#[test]
fn a_book_full_of_configured_peers_takes_no_other() {
    let now = Instant::now();
    let mut book = holding(2);
    book.configure(at(1, [1])).unwrap();
    book.configure(at(2, [1])).unwrap();
    assert_eq!(book.learned(now, peer(3), addr(1)), Learned::NoRoom);
    let full = Err(BookError::Full { limit: 2 });
    assert_eq!(book.configure(at(3, [1])), full);
    assert_eq!(book.learned(now, peer(2), addr(2)), Learned::Kept);
    assert_eq!(book.configure(at(2, [3])), Ok(true));
    assert_eq!(book.len(), 2);
}

#[test]
fn peers_that_were_only_named_make_room_for_others_that_are() {
    let start = Instant::now();
    let mut book = holding(4);
    book.configure(at(1, [1])).unwrap();
    book.signed(start, peer(2), [addr(1)]);
    for n in 3..=100_u8 {
        let now = start + seconds(n.into());
        assert_eq!(book.name(now, at(n, [1])), Ok(true));
        assert_eq!(book.name(now, at(1, [1, 2])), Ok(n == 3), "it stays configured");
        check_invariants(&book);
    }
    let left: Vec<_> = (1..=100).filter(|n| book.knows(&peer(*n))).collect();
    assert_eq!(left, [1, 98, 99, 100]);
    let later = start + seconds(200);
    assert_eq!(book.signed(later, peer(2), [addr(1)]), Learned::NoRoom);
    assert_eq!(book.reached(later, peer(2), addr(1)), Learned::NoRoom);
    // What was named is kept like what was configured.
    assert_eq!(slots(&book, 99, &addr(1)), [Slot::Configured]);
    fail(&mut book, later, 99, 100);
    assert!(book.knows(&peer(99)));
    assert_eq!(book.configure(at(99, [1])), Ok(false));
    assert_eq!((1..=100).filter(|n| book.is_configured(&peer(*n))).collect::<Vec<_>>(), [1, 99]);
    for n in 101..=103 {
        assert_eq!(book.name(later, at(n, [1])), Ok(true));
    }
    assert!(book.knows(&peer(99)));
    // Taken back and named again, it is named only.
    assert_eq!(book.unconfigure(&peer(99), None), 1);
    assert_eq!(book.name(later, at(99, [1])), Ok(true));
    assert!(!book.is_configured(&peer(99)));
    check_invariants(&book);
}

#[test]
fn a_book_full_of_configured_peers_takes_none_that_is_only_named() {
    let mut book = holding(1);
    book.configure(at(1, [1])).unwrap();
    assert_eq!(book.name(Instant::now(), at(2, [1])), Err(BookError::Full { limit: 1 }));
    assert_eq!(book.refusals(), 1);
}

#[test]
fn a_flood_of_strangers_displaces_only_learned_peers() {
    let start = Instant::now();
    let mut book = holding(10);
    for n in 1..=5 {
        book.configure(at(n, [1])).unwrap();
    }
    for n in 10..=255_u8 {
        book.learned(start + seconds(n.into()), peer(n), addr(1));
        check_invariants(&book);
    }
    assert_eq!(book.len(), 10);
    assert_eq!(book.configured().count(), 5);
    assert!((251..=255).all(|n| book.knows(&peer(n))));
}

#[test]
fn a_learned_address_that_never_helps_is_dropped_and_a_configured_one_never() {
    let now = Instant::now();
    let mut book = AddressBook::default();
    book.configure(at(1, [1])).unwrap();
    book.learned(now, peer(1), addr(2));
    assert_eq!(fail(&mut book, now, 1, UNREACHED_BEFORE_DROP - 1), 0);
    assert_eq!(book.addresses(&peer(1)), Some(at(1, [1, 2])));
    assert_eq!(fail(&mut book, now, 1, 1), 1);
    assert_eq!(fail(&mut book, now, 1, 100), 0);
    assert_eq!(book.addresses(&peer(1)), Some(at(1, [1])));
    let failures = book.attempts(&peer(1)).unwrap().consecutive_failures;
    assert_eq!(failures, UNREACHED_BEFORE_DROP + 100);
}

#[test]
fn a_peer_whose_last_learned_address_is_dropped_leaves_the_book() {
    let now = Instant::now();
    let mut book = AddressBook::default();
    book.learned(now, peer(1), addr(1));
    assert_eq!(fail(&mut book, now, 1, UNREACHED_BEFORE_DROP), 1);
    assert!(book.is_empty());
    check_invariants(&book);
}

#[test]
fn an_address_learned_again_starts_over() {
    let now = Instant::now();
    let mut book = AddressBook::default();
    book.learned(now, peer(1), addr(1));
    book.learned(now, peer(1), addr(2));
    fail(&mut book, now, 1, UNREACHED_BEFORE_DROP - 1);
    book.learned(now, peer(1), addr(1));
    assert_eq!(fail(&mut book, now, 1, 1), 1);
    assert_eq!(book.addresses(&peer(1)), Some(at(1, [1])));
}

#[test]
fn only_failures_in_a_row_that_reached_nobody_count_against_an_address() {
    let now = Instant::now();
    let reached_elsewhere = |book: &mut AddressBook| _ = book.reached(now, peer(1), addr(2));
    let rejected =
        |book: &mut AddressBook| _ = book.failed(now, &peer(1), AttemptFailure::Rejected);
    let between: [&dyn Fn(&mut AddressBook); 2] = [&reached_elsewhere, &rejected];
    for between in between {
        let mut book = AddressBook::default();
        book.configure(at(1, [2])).unwrap();
        book.learned(now, peer(1), addr(1));
        fail(&mut book, now, 1, UNREACHED_BEFORE_DROP - 1);
        between(&mut book);
        assert_eq!(fail(&mut book, now, 1, UNREACHED_BEFORE_DROP - 1), 0);
        assert_eq!(fail(&mut book, now, 1, 1), 1);
    }
    let mut book = AddressBook::default();
    book.learned(now, peer(1), addr(1));
    for _ in 0..100 {
        assert_eq!(book.failed(now, &peer(1), AttemptFailure::Local), 0);
    }
    assert!(book.knows(&peer(1)));
}

#[test]
fn attempts_are_recorded_per_peer_and_successes_per_address() {
    let start = Instant::now();
    let mut book = AddressBook::default();
    book.configure(at(1, [1, 2])).unwrap();
    assert_eq!(book.attempts(&peer(1)), Some(AttemptRecord::default()));
    let at_second = |n| Some(start + seconds(n));
    book.failed(start, &peer(1), AttemptFailure::Unreached);
    book.failed(start + seconds(1), &peer(1), AttemptFailure::Rejected);
    book.failed(start + seconds(2), &peer(1), AttemptFailure::Local);
    let record =
        AttemptRecord { consecutive_failures: 2, last_success: None, last_failure: at_second(2) };
    assert_eq!(book.attempts(&peer(1)), Some(record));
    book.reached(start + seconds(3), peer(1), addr(2));
    let record = AttemptRecord {
        consecutive_failures: 0,
        last_success: at_second(3),
        last_failure: at_second(2),
    };
    assert_eq!(book.attempts(&peer(1)), Some(record));
    let successes: Vec<_> = book.known(&peer(1)).map(|a| a.last_success).collect();
    assert_eq!(successes, [None, at_second(3)]);
}

#[test]
fn where_a_dial_has_reached_a_peer_is_learned() {
    let now = Instant::now();
    let mut book = AddressBook::default();
    book.configure(at(1, [1])).unwrap();
    assert_eq!(book.reached(now, peer(1), addr(7)), Learned::Kept);
    assert_eq!(book.addresses(&peer(1)), Some(at(1, [1, 7])));
    assert_eq!(book.attempts(&peer(1)).unwrap().last_success, Some(now));
    check_invariants(&book);
}

#[test]
fn what_the_app_configured_can_be_carried_into_a_new_book() {
    let now = Instant::now();
    let mut book = AddressBook::default();
    book.configure(at(1, [1, 2])).unwrap();
    book.configure(at(2, [3])).unwrap();
    book.learned(now, peer(1), addr(8));
    book.learned(now, peer(3), addr(9));
    let mut next = AddressBook::default();
    for addr in book.configured() {
        assert_eq!(next.configure(addr), Ok(true));
    }
    assert!(next.configured().eq(book.configured()));
    assert_eq!(next.len(), 2);
    assert_eq!(next.addresses(&peer(1)), Some(at(1, [1, 2])));
}

#[test]
fn a_clock_that_runs_backwards_does_not_make_a_new_success_an_old_one() {
    let start = Instant::now() + seconds(1_000);
    let mut book = holding(3);
    for n in 1..=3 {
        book.learned(start + seconds(n.into()), peer(n), addr(1));
    }
    book.learned(start - seconds(900), peer(1), addr(2));
    check_invariants(&book);
    let outcome = book.learned(start - seconds(900), peer(4), addr(1));
    assert_eq!(outcome, Learned::Displaced(peer(2)));
}

#[test]
fn a_book_told_to_learn_nothing_learns_nothing() {
    let now = Instant::now();
    let mut book =
        AddressBook::new(AddressLimits { learned_per_peer: 0, ..AddressLimits::default() });
    assert_eq!(book.learned(now, peer(1), addr(1)), Learned::NoRoom);
    book.configure(at(1, [1])).unwrap();
    assert_eq!(book.learned(now, peer(1), addr(1)), Learned::Kept);
    assert_eq!(book.learned(now, peer(1), addr(2)), Learned::NoRoom);
    fail(&mut book, now, 1, 1);
    assert!(!book.hinted(now, peer(1), [addr(3)]));
    assert!(!book.hinted(now, peer(2), [addr(3)]));
    assert_eq!(book.reached(now, peer(1), addr(2)), Learned::NoRoom);
    assert_eq!(book.attempts(&peer(1)).unwrap().last_success, Some(now));
    assert_eq!(book.known(&peer(1)).count(), 1);
    check_invariants(&book);
}

fn slots(book: &AddressBook, n: u8, addr: &TransportAddr) -> Vec<Slot> {
    let is_it = |known: &KnownAddress<'_>| known.addr == addr;
    book.known(&peer(n)).filter(is_it).map(|known| known.slot).collect()
}

#[test]
fn a_hand_typed_address_never_shadows_a_signed_one_and_vice_versa() {
    let now = Instant::now();
    let mut book = AddressBook::default();
    book.configure(at(1, [1, 2])).unwrap();
    assert_eq!(book.signed(now, peer(1), [addr(2), addr(3)]), Learned::Kept);
    assert_eq!(book.addresses(&peer(1)), Some(at(1, [1, 2, 3])));
    assert_eq!(slots(&book, 1, &addr(2)), [Slot::Configured, Slot::Signed]);
    book.unconfigure(&peer(1), None);
    assert_eq!(book.addresses(&peer(1)), Some(at(1, [2, 3])));
    book.configure(at(1, [2])).unwrap();
    book.signed(now, peer(1), []);
    assert_eq!(book.addresses(&peer(1)), Some(at(1, [2])));
    check_invariants(&book);
}

#[test]
fn a_new_record_takes_the_place_of_what_the_last_one_said_and_of_nothing_else() {
    let now = Instant::now();
    let mut book = AddressBook::default();
    book.learned(now, peer(1), addr(9));
    book.signed(now, peer(1), [addr(1), addr(2)]);
    book.signed(now, peer(1), [addr(3)]);
    assert_eq!(book.addresses(&peer(1)), Some(at(1, [3, 9])));
    check_invariants(&book);
}

#[test]
fn signed_addresses_are_not_forgotten_when_they_fail() {
    let now = Instant::now();
    let mut book = AddressBook::default();
    book.signed(now, peer(1), [addr(1)]);
    assert_eq!(fail(&mut book, now, 1, 100), 0);
    assert_eq!(slots(&book, 1, &addr(1)), [Slot::Signed]);
    check_invariants(&book);
}

#[test]
fn who_has_no_record_any_more_and_nothing_else_leaves_the_book() {
    let now = Instant::now();
    let mut book = AddressBook::default();
    book.signed(now, peer(1), [addr(1)]);
    book.signed(now, peer(1), []);
    book.signed(now, peer(2), []);
    assert!(book.is_empty());
    check_invariants(&book);
}

#[test]
fn a_newcomer_to_a_full_book_displaces_only_who_weighs_no_more() {
    let start = Instant::now();
    let mut book = holding(5);
    book.configure(at(1, [1])).unwrap();
    book.reached(start, peer(2), addr(1));
    book.signed(start, peer(2), [addr(1)]);
    book.signed(start, peer(3), [addr(1)]);
    book.reached(start, peer(4), addr(1));
    book.learned(start, peer(5), addr(1));
    let mut now = start;
    let mut later = || {
        now += seconds(1);
        now
    };
    assert_eq!(book.learned(later(), peer(6), addr(1)), Learned::Displaced(peer(5)));
    assert_eq!(book.reached(later(), peer(7), addr(1)), Learned::Displaced(peer(6)));
    assert_eq!(book.learned(later(), peer(8), addr(1)), Learned::NoRoom);
    assert_eq!(book.reached(later(), peer(9), addr(1)), Learned::Displaced(peer(4)));
    for reached in [7, 9] {
        let newcomer = peer(reached + 100);
        let displaced = Learned::Displaced(peer(reached));
        assert_eq!(book.signed(later(), newcomer, [addr(1)]), displaced);
    }
    assert_eq!(book.reached(later(), peer(10), addr(1)), Learned::NoRoom);
    assert_eq!(book.signed(later(), peer(11), [addr(1)]), Learned::Displaced(peer(3)));
    for (n, oldest) in [(12, 107), (13, 109), (14, 11)] {
        assert_eq!(book.signed(later(), peer(n), [addr(1)]), Learned::Displaced(peer(oldest)));
        book.reached(later(), peer(n), addr(1));
        check_invariants(&book);
    }
    assert_eq!(book.signed(later(), peer(15), [addr(1)]), Learned::NoRoom);
    assert_eq!(book.signed(later(), peer(12), [addr(2)]), Learned::Kept);
    let left: Vec<_> = (1..=255).filter(|n| book.knows(&peer(*n))).collect();
    assert_eq!(left, [1, 2, 12, 13, 14]);
    assert_eq!((book.evictions(), book.refusals()), (9, 3));
    assert_eq!(book.configure(at(16, [1])), Ok(true));
    assert!(!book.knows(&peer(2)), "it was reached the longest time ago");
}

#[test]
fn strangers_that_call_displace_neither_records_nor_peers_that_were_reached() {
    let start = Instant::now();
    let mut book = holding(20);
    for n in 1..=10 {
        book.signed(start, peer(n), [addr(1)]);
        book.reached(start, peer(n + 10), addr(1));
    }
    // One by one they go, as peers do, and strangers take their places.
    book.signed(start, peer(10), []);
    for n in 21..=255_u8 {
        book.learned(start + seconds(n.into()), peer(n), addr(1));
        check_invariants(&book);
    }
    assert!((1..=9).chain(11..=20).all(|n| book.knows(&peer(n))));
    let learned = book.signed(start + seconds(300), peer(10), [addr(1)]);
    assert_eq!(learned, Learned::Displaced(peer(255)), "the book is full of strangers");
}

#[test]
fn records_find_room_in_a_book_full_of_peers_that_were_reached_once() {
    let start = Instant::now();
    let mut book = holding(10);
    for n in 1..=200_u8 {
        let now = start + seconds(n.into());
        assert_ne!(book.signed(now, peer(n), [addr(1)]), Learned::NoRoom);
        book.reached(now, peer(n), addr(1));
        if n > 5 {
            book.signed(now, peer(n - 5), []);
        }
        check_invariants(&book);
    }
    assert_eq!(book.refusals(), 0);
    assert!((191..=200).all(|n| book.knows(&peer(n))));
}

#[test]
fn a_peer_whose_addresses_no_longer_help_weighs_as_one_that_was_never_reached() {
    let start = Instant::now();
    let mut book = holding(2);
    for n in 1..=2 {
        book.signed(start + seconds(n.into()), peer(n), [addr(1)]);
        book.reached(start, peer(n), addr(2));
    }
    let now = start + seconds(10);
    assert_eq!(book.signed(now, peer(3), [addr(1)]), Learned::NoRoom);
    fail(&mut book, now, 2, UNREACHED_BEFORE_DROP);
    assert_eq!(book.signed(now, peer(3), [addr(1)]), Learned::Displaced(peer(2)));
}

#[test]
fn no_more_signed_addresses_are_kept_than_a_record_can_name() {
    let mut book = AddressBook::default();
    book.signed(Instant::now(), peer(1), (1..=20).map(addr));
    assert_eq!(book.known(&peer(1)).count(), 8);
}

#[test]
fn a_hint_counts_where_nothing_better_is_known_and_displaces_strangers_only() {
    let now = Instant::now();
    let mut book = holding(2);
    book.signed(now, peer(7), [addr(1)]);
    book.learned(now, peer(8), addr(1));
    assert!(book.hinted(now, peer(1), [addr(1), addr(2)]));
    assert!(!book.knows(&peer(8)));
    book.reached(now, peer(6), addr(1));
    assert!(!book.knows(&peer(1)));
    assert!(!book.hinted(now, peer(1), [addr(1)]), "all others weigh more");
    book.signed(now, peer(7), []);
    assert!(!book.hinted(now, peer(1), []));
    assert!(book.hinted(now, peer(1), [addr(1), addr(2)]));
    assert_eq!(book.addresses(&peer(1)), Some(at(1, [1, 2])));
    assert!(!book.hinted(now, peer(1), [addr(9)]), "nothing speaks against what is known");
    fail(&mut book, now, 1, 1);
    assert!(book.hinted(now, peer(1), [addr(9)]));
    assert_eq!(book.addresses(&peer(1)), Some(at(1, [1, 2, 9])));
    assert!(book.hinted(now, peer(1), [addr(10), addr(11)]));
    assert_eq!(book.addresses(&peer(1)), Some(at(1, [1, 2, 9, 10])), "behind what was known");
    book.reached(now, peer(1), addr(9));
    assert!(!book.hinted(now, peer(1), [addr(3)]), "it was reached");
    check_invariants(&book);
}
