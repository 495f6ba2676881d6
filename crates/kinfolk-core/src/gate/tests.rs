//! Tests of the gate, flood included.

use std::time::Duration;

use super::*;
use iroh_base::SecretKey;

const PROVEN: bool = true;
const UNPROVEN: bool = false;

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

fn ip(text: &str) -> Source {
    Source::Ip(text.parse().unwrap())
}

fn nth_ip(n: u32) -> Source {
    Source::Ip(Ipv4Addr::from_bits(0x0b00_0000 + n).into())
}

fn peer(n: u8) -> EndpointId {
    SecretKey::from_bytes(&[n; 32]).public()
}

fn ticket(verdict: Verdict) -> Ticket {
    match verdict {
        Verdict::Accept(ticket) => ticket,
        other => panic!("expected an accept, got {other:?}"),
    }
}

fn with(change: impl FnOnce(&mut GateLimits)) -> Gate {
    let mut limits = GateLimits::default();
    change(&mut limits);
    Gate::new(limits)
}

/// Accepts, retries, refusals, silences.
fn tally(verdicts: impl IntoIterator<Item = Verdict>) -> [usize; 4] {
    let mut tally = [0; 4];
    for verdict in verdicts {
        tally[match verdict {
            Verdict::Accept(_) => 0,
            Verdict::Retry => 1,
            Verdict::Refuse(_) => 2,
            Verdict::Ignore(_) => 3,
        }] += 1;
    }
    tally
}

fn check_invariants(gate: &Gate) {
    let tables = [&gate.addresses, &gate.shared];
    let mut live = 0;
    for table in tables {
        assert!(table.buckets.len() <= table.capacity);
        let idle: BTreeSet<_> = table
            .buckets
            .iter()
            .filter(|(_, bucket)| bucket.live == 0)
            .map(|(key, bucket)| (bucket.full_at, *key))
            .collect();
        assert_eq!(table.idle, idle);
        for (key, bucket) in &table.buckets {
            assert!(bucket.live <= gate.limits.of(*key).live);
            live += bucket.live as usize;
        }
    }
    assert_eq!(gate.live.len(), live);
}

#[test]
fn a_proven_flood_from_one_address_gets_its_cap_then_silence_and_an_honest_source_gets_in() {
    let now = Instant::now();
    let mut gate = Gate::new(GateLimits::default());
    let flood = tally((0..10_000).map(|_| gate.arrive(now, ip("203.0.113.7"), PROVEN, 8)));
    assert_eq!(flood, [8, 0, 8, 9_984]);
    ticket(gate.arrive(now, ip("203.0.113.8"), UNPROVEN, 8));
    assert_eq!((gate.live(), gate.groups()), (9, 2));
}

#[test]
fn a_flood_in_a_forged_name_never_shuts_out_the_owner_of_the_address() {
    let start = Instant::now();
    let mut gate = Gate::new(GateLimits::default());
    let mut held = Vec::new();
    for step in 0..10_000 {
        let now = start + Duration::from_millis(step * 10);
        if let Verdict::Accept(ticket) = gate.arrive(now, ip("203.0.113.7"), UNPROVEN, 5) {
            held.push(ticket);
        }
        assert!(gate.live() <= 4);
        if step % 1_000 == 999 {
            let owner = ticket(gate.arrive(now, ip("203.0.113.7"), PROVEN, 5));
            assert!(gate.depart(owner));
            held.drain(..).for_each(|ticket| assert!(gate.depart(ticket)));
        }
    }
    check_invariants(&gate);
}

#[test]
fn an_unproven_source_is_ignored_once_proven_arrivals_have_emptied_its_bucket() {
    let now = Instant::now();
    let mut gate = Gate::new(GateLimits::default());
    let source = ip("203.0.113.7");
    tally((0..16).map(|_| gate.arrive(now, source, PROVEN, 0)));
    let verdict = gate.arrive(now, source, UNPROVEN, 0);
    assert_eq!(verdict, Verdict::Ignore(GateReason::AddressRate));
}

#[test]
fn an_unproven_source_gets_half_the_live_connections_and_proves_itself_for_the_rest() {
    let now = Instant::now();
    let mut gate = Gate::new(GateLimits::default());
    let source = ip("203.0.113.7");
    assert_eq!(tally((0..6).map(|_| gate.arrive(now, source, UNPROVEN, 0))), [4, 2, 0, 0]);
    assert_eq!(tally((0..6).map(|_| gate.arrive(now, source, PROVEN, 0))), [4, 0, 2, 0]);
}

#[test]
fn a_ticket_releases_its_place_exactly_once() {
    let now = Instant::now();
    let mut gate = Gate::new(GateLimits::default());
    let source = ip("203.0.113.7");
    let tickets: Vec<_> = (0..8).map(|_| ticket(gate.arrive(now, source, PROVEN, 0))).collect();
    let refused = Verdict::Refuse(GateReason::AddressLive);
    assert_eq!(gate.arrive(now, source, PROVEN, 0), refused);
    assert!(gate.depart(tickets[3]));
    assert!(!gate.depart(tickets[3]));
    ticket(gate.arrive(now, source, PROVEN, 0));
    assert_eq!(gate.arrive(now, source, PROVEN, 0), refused);
    check_invariants(&gate);
}

#[test]
fn a_ticket_of_an_earlier_gate_releases_nothing() {
    let now = Instant::now();
    let mut earlier = Gate::new(GateLimits::default());
    let old = ticket(earlier.arrive(now, ip("203.0.113.7"), PROVEN, 0));
    let mut gate = Gate::new(GateLimits::default());
    ticket(gate.arrive(now + seconds(1), ip("203.0.113.7"), PROVEN, 0));
    assert!(!gate.depart(old));
    assert_eq!(gate.live(), 1);
}

#[test]
fn a_bucket_refills_by_one_every_interval_and_never_beyond_its_burst() {
    let start = Instant::now();
    let mut gate = with(|limits| limits.live_per_address = 1_000);
    let source = ip("203.0.113.7");
    let mut burst = |now| tally((0..100).map(|_| gate.arrive(now, source, PROVEN, 0)))[0];
    assert_eq!(burst(start), 16);
    assert_eq!(burst(start + Duration::from_millis(4_999)), 0);
    assert_eq!(burst(start + seconds(5)), 1);
    assert_eq!(burst(start + seconds(22)), 3);
    assert_eq!(burst(start + seconds(24)), 0);
    assert_eq!(burst(start + seconds(25)), 1);
    assert_eq!(burst(start + seconds(100_000)), 16);
}

#[test]
fn a_clock_that_runs_backwards_refills_nothing_and_takes_nothing() {
    let start = Instant::now() + seconds(1_000);
    let mut gate = with(|limits| limits.live_per_address = 1_000);
    let source = ip("203.0.113.7");
    let mut burst = |now| tally((0..100).map(|_| gate.arrive(now, source, PROVEN, 0)))[0];
    assert_eq!(burst(start), 16);
    assert_eq!(burst(start - seconds(1_000)), 0);
    assert_eq!(burst(start), 0);
    assert_eq!(burst(start + seconds(5)), 1);

    let mut gate = Gate::new(GateLimits::default());
    gate.greet(start, peer(1)).unwrap();
    gate.greet(start - seconds(500), peer(1)).unwrap();
    gate.greet(start - seconds(500), peer(2)).unwrap();
}

#[test]
fn a_mapped_v4_address_counts_as_the_v4_address() {
    let mapped = GroupKey::from(ip("::ffff:203.0.113.7"));
    assert_eq!(mapped, GroupKey::from(ip("203.0.113.7")));
    assert_ne!(mapped, GroupKey::from(ip("::ffff:203.0.113.8")));
    assert_eq!(mapped.to_string(), "203.0.113.7/32");
}

#[test]
fn v6_addresses_of_one_slash_56_share_their_limits() {
    let now = Instant::now();
    let mut gate = Gate::new(GateLimits::default());
    let hosts = (0..20).map(|n| ip(&format!("2001:db8:1:2{n:02x}::{n}")));
    let verdicts: Vec<_> = hosts.map(|host| gate.arrive(now, host, PROVEN, 0)).collect();
    assert_eq!(tally(verdicts), [8, 0, 8, 4]);
    let neighbour = ticket(gate.arrive(now, ip("2001:db8:1:300::1"), PROVEN, 0));
    assert_eq!(neighbour.group().to_string(), "2001:db8:1:300::/56");
}

#[test]
fn relayed_peers_share_one_group_that_leaves_direct_ones_alone() {
    let now = Instant::now();
    let mut gate = with(|limits| limits.relayed_rate.burst = 100);
    let flood = tally((0..10_000).map(|_| gate.arrive(now, Source::Relay, UNPROVEN, 0)));
    assert_eq!(flood, [64, 0, 36, 9_900]);
    assert_eq!(
        gate.arrive(now, Source::Relay, UNPROVEN, 0),
        Verdict::Ignore(GateReason::SharedRate)
    );
    ticket(gate.arrive(now, ip("203.0.113.7"), UNPROVEN, 0));
    ticket(gate.arrive(now, Source::Other, UNPROVEN, 0));
}

#[test]
fn a_flood_over_relays_cannot_hold_every_handshake() {
    let start = Instant::now();
    let mut gate = Gate::new(GateLimits::default());
    let mut handshakes: Vec<(Instant, Ticket)> = Vec::new();
    for step in 0..1_000 {
        let now = start + Duration::from_millis(step * 100);
        handshakes.retain(|(until, ticket)| *until > now || !gate.depart(*ticket));
        let pending = handshakes.len();
        if let Verdict::Accept(ticket) = gate.arrive(now, Source::Relay, UNPROVEN, pending) {
            handshakes.push((now + seconds(10), ticket));
        }
        assert!(handshakes.len() <= 52);
    }
}

#[test]
fn unproven_sources_prove_themselves_when_more_than_half_of_the_handshakes_are_taken() {
    let now = Instant::now();
    let mut gate = Gate::new(GateLimits::default());
    ticket(gate.arrive(now, nth_ip(1), UNPROVEN, 32));
    assert_eq!(gate.arrive(now, nth_ip(2), UNPROVEN, 33), Verdict::Retry);
    assert_eq!(gate.groups(), 1, "a retry must leave no trace");
    ticket(gate.arrive(now, nth_ip(2), PROVEN, 63));
}

#[test]
fn everybody_is_refused_when_all_handshakes_are_taken() {
    let now = Instant::now();
    let mut gate = Gate::new(GateLimits::default());
    let refused = Verdict::Refuse(GateReason::Pending);
    assert_eq!(gate.arrive(now, nth_ip(1), UNPROVEN, 64), refused);
    assert_eq!(gate.arrive(now, nth_ip(1), PROVEN, 64), refused);
    assert_eq!(gate.arrive(now, Source::Relay, UNPROVEN, 64), refused);
    assert_eq!(gate.arrive(now, ip("127.0.0.1"), PROVEN, 64), refused);
    assert_eq!(gate.live(), 0);
}

#[test]
fn a_proven_source_that_insists_while_all_handshakes_are_taken_meets_silence() {
    let now = Instant::now();
    let mut gate = Gate::new(GateLimits::default());
    let insisting = tally((0..100).map(|_| gate.arrive(now, nth_ip(1), PROVEN, 64)));
    assert_eq!(insisting, [0, 0, 16, 84]);
}

#[test]
fn loopback_is_exempt_from_the_limits_per_address_unless_told_otherwise() {
    let now = Instant::now();
    for source in ["127.0.0.1", "127.0.0.2", "::1", "::ffff:127.0.0.1"] {
        let mut gate = Gate::new(GateLimits::default());
        let arrivals: Vec<_> =
            (0..100).map(|_| gate.arrive(now, ip(source), UNPROVEN, 0)).collect();
        assert!(!gate.depart(ticket(arrivals[0])));
        assert_eq!(tally(arrivals), [100, 0, 0, 0]);

        let mut gate = with(|limits| limits.exempt_loopback = false);
        let arrivals = tally((0..100).map(|_| gate.arrive(now, ip(source), PROVEN, 0)));
        assert_eq!(arrivals, [8, 0, 8, 84]);
    }
}

#[test]
fn a_full_table_ignores_newcomers_until_a_group_is_back_to_a_full_bucket() {
    let start = Instant::now();
    let mut gate = with(|limits| limits.groups = 3);
    let first: Vec<_> = (0..3)
        .map(|n| ticket(gate.arrive(start + seconds(n.into()), nth_ip(n), PROVEN, 0)))
        .collect();
    let ignored = Verdict::Ignore(GateReason::AddressTable);
    let late = start + seconds(60);
    assert_eq!(gate.arrive(late, nth_ip(9), PROVEN, 0), ignored);
    assert!(gate.depart(first[1]));
    ticket(gate.arrive(late, nth_ip(9), PROVEN, 0));
    assert!(gate.depart(first[0]));
    assert_eq!(
        gate.arrive(late, nth_ip(0), UNPROVEN, 0),
        Verdict::Accept(Ticket { serial: 4, accepted_at: late, group: nth_ip(0).into() }),
        "a group in the table is not a newcomer"
    );
    assert_eq!(gate.arrive(late, nth_ip(1), PROVEN, 0), ignored);
    check_invariants(&gate);
}

#[test]
fn a_table_full_of_drained_buckets_ignores_newcomers_until_one_has_refilled() {
    let start = Instant::now();
    let mut gate = with(|limits| limits.groups = 2);
    for n in 0..2 {
        let now = start + seconds(u64::from(n));
        let accepted = ticket(gate.arrive(now, nth_ip(n), PROVEN, 0));
        assert!(gate.depart(accepted));
    }
    let ignored = Verdict::Ignore(GateReason::AddressTable);
    let nearly = start + Duration::from_millis(4_999);
    assert_eq!(gate.arrive(nearly, nth_ip(9), PROVEN, 0), ignored);
    ticket(gate.arrive(start + seconds(5), nth_ip(9), PROVEN, 0));
    assert_eq!(gate.arrive(start + seconds(5), nth_ip(8), PROVEN, 0), ignored);
}

#[test]
fn any_sequence_of_calls_keeps_the_ledger_the_counts_and_the_index_in_step() {
    let start = Instant::now() + seconds(100);
    let mut gate = with(|limits| {
        limits.groups = 10;
        limits.address_rate = Rate::new(6, Duration::from_millis(200));
        limits.relayed_live = 5;
    });
    let mut held = Vec::new();
    let mut state = 7_u64;
    for step in 0..5_000_u64 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let draw = state >> 33;
        // Mostly forwards, now and then back by up to a second.
        let now = start + Duration::from_millis(step * 20 - (draw % 7 / 6) * (step % 50) * 20);
        let source = match draw % 20 {
            0 => Source::Relay,
            1 => Source::Other,
            n => nth_ip(n as u32),
        };
        let pending = (draw >> 8) as usize % 70;
        match gate.arrive(now, source, draw & 64 == 0, pending) {
            Verdict::Accept(ticket) => held.push(ticket),
            _ if !held.is_empty() && draw & 128 == 0 => {
                let ticket = held.swap_remove(draw as usize % held.len());
                assert!(gate.depart(ticket));
                assert!(!gate.depart(ticket));
            }
            _ => {}
        }
        assert_eq!(gate.live(), held.len());
        check_invariants(&gate);
    }
    assert!(gate.next_serial > 1_000, "the walk must get somewhere");
}

#[test]
fn a_reconnect_loop_of_one_id_is_refused_and_others_are_not() {
    let start = Instant::now();
    let mut gate = Gate::new(GateLimits::default());
    let looping = peer(1);
    let mut greeted = |now| (0..10_000).filter(|_| gate.greet(now, looping).is_ok()).count();
    assert_eq!(greeted(start), 10);
    assert_eq!(greeted(start + seconds(1)), 1);
    assert_eq!(gate.greet(start + seconds(1), peer(2)), Ok(()));
    let refused = Err(GateReason::PeerRate);
    assert_eq!(gate.greet(start + seconds(1), looping), refused);
}

#[test]
fn a_full_table_of_ids_refuses_new_ids_until_one_has_refilled() {
    let start = Instant::now();
    let mut gate = with(|limits| limits.peers = 2);
    gate.greet(start, peer(1)).unwrap();
    gate.greet(start, peer(2)).unwrap();
    assert_eq!(gate.greet(start, peer(3)), Err(GateReason::PeerTable));
    assert_eq!(gate.greet(start, peer(1)), Ok(()));
    assert_eq!(gate.greet(start + seconds(1), peer(3)), Ok(()));
    assert_eq!(gate.peers(), 2);
}

#[test]
fn the_default_limits_are_valid_and_zeros_are_named() {
    assert_eq!(GateLimits::default().validate(), Ok(()));
    type Breakage = (&'static str, fn(&mut GateLimits));
    let breakages: [Breakage; 11] = [
        ("live_per_address", |limits| limits.live_per_address = 0),
        ("address_rate", |limits| limits.address_rate.burst = 0),
        ("address_rate", |limits| {
            limits.address_rate.every = Duration::ZERO;
        }),
        ("relayed_live", |limits| limits.relayed_live = 0),
        ("relayed_rate", |limits| limits.relayed_rate.burst = 0),
        ("relayed_rate", |limits| {
            limits.relayed_rate.every = Duration::ZERO;
        }),
        ("pending", |limits| limits.pending = 0),
        ("groups", |limits| limits.groups = 0),
        ("peer_rate", |limits| limits.peer_rate.burst = 0),
        ("peer_rate", |limits| {
            limits.peer_rate.every = Duration::ZERO;
        }),
        ("peers", |limits| limits.peers = 0),
    ];
    for (field, break_it) in breakages {
        let mut limits = GateLimits::default();
        break_it(&mut limits);
        assert_eq!(limits.validate(), Err(GateLimitError::Zero { field }));
    }
}

#[test]
fn a_rate_that_refills_for_longer_than_a_day_is_invalid() {
    for every in [seconds(86_401), Duration::MAX] {
        let limits = GateLimits { peer_rate: Rate::new(2, every), ..GateLimits::default() };
        let field = "peer_rate";
        assert_eq!(limits.validate(), Err(GateLimitError::SlowRefill { field }));
    }
}

#[test]
fn unusable_limits_close_the_gate_and_never_open_it() {
    let now = Instant::now();
    for rate in
        [Rate::new(0, seconds(1)), Rate::new(5, Duration::ZERO), Rate::new(5, Duration::MAX)]
    {
        let mut gate = with(|limits| {
            limits.address_rate = rate;
            limits.peer_rate = rate;
        });
        let ignored = Verdict::Ignore(GateReason::AddressRate);
        assert_eq!(gate.arrive(now, nth_ip(1), PROVEN, 0), ignored);
        assert_eq!(gate.greet(now, peer(1)), Err(GateReason::PeerRate));
    }
    let mut gate = with(|limits| limits.groups = 0);
    let ignored = Verdict::Ignore(GateReason::AddressTable);
    assert_eq!(gate.arrive(now, nth_ip(1), PROVEN, 0), ignored);
}

#[test]
fn reasons_have_distinct_names_in_snake_case() {
    let names: BTreeSet<_> = GateReason::ALL.iter().map(|reason| reason.name()).collect();
    assert_eq!(names.len(), GateReason::ALL.len());
    let is_snake = |name: &&str| name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
    assert!(names.iter().all(is_snake));
}
