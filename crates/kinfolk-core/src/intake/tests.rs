//! Tests of the intake: what is cheap, what is paid for, and by whom.

use std::collections::BTreeSet;
use std::sync::OnceLock;

use iroh_base::SecretKey;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

use super::*;
use crate::bucket::{Rate, RateError};
use crate::catalog::{Catalog, CatalogLimits, Input, Source};
use crate::record::{Draft, RECORD_MAX, Reach, Seq};

const CLOCK: UnixMillis = UnixMillis::new(1_700_000_000_000);

fn network() -> NetworkId {
    NetworkId::from_name("my-app")
}

fn key(n: u8) -> SecretKey {
    SecretKey::from_bytes(&[n; 32])
}

fn peer(n: u8) -> EndpointId {
    key(n).public()
}

fn record(n: u8, seq: u64) -> Record {
    Draft::new(network()).sign(&key(n), Seq::new(seq), CLOCK).unwrap()
}

/// Bytes that only a check of the signature tells from a record.
fn bogus(serial: u32) -> Vec<u8> {
    static SIGNED: OnceLock<Record> = OnceLock::new();
    let mut bytes = SIGNED.get_or_init(|| record(1, 7)).bytes().to_vec();
    bytes[1..5].copy_from_slice(&serial.to_be_bytes());
    bytes
}

fn from(n: u8, bytes: &[u8]) -> Arrival<'_> {
    Arrival { bytes, source: peer(n), carried: Duration::ZERO, clock: CLOCK }
}

fn intake() -> Intake {
    Intake::new(peer(9), network(), IntakeLimits::default())
}

/// An intake that grants four at once and two to a source, and one each per second.
fn small(sources: usize) -> Intake {
    let (checks, checks_per_source) =
        (Rate::new(4, Duration::from_secs(1)), Rate::new(2, Duration::from_secs(1)));
    Intake::new(peer(9), network(), IntakeLimits { checks, checks_per_source, sources })
}

#[test]
fn what_was_signed_becomes_a_sighting() {
    let record = record(1, 7);
    let arrival = from(2, record.bytes());
    let sighting = intake().admit(Instant::now(), arrival, &Snapshot::default()).unwrap();
    assert_eq!(sighting.record(), &record);
}

#[test]
fn a_known_record_a_known_tombstone_and_the_own_record_cost_no_check() {
    let now = Instant::now();
    let mut catalog = Catalog::new(peer(9), CatalogLimits::default());
    let departed = Record::departure(network(), &key(2), Seq::new(7), CLOCK).unwrap();
    let (known, own) = (record(1, 7), record(9, 7));
    for record in [&known, &departed] {
        let sighting = Sighting::new(record.clone(), now, CLOCK, Duration::ZERO);
        let source = Source::Peer { peer: peer(3), reach: Reach::World };
        catalog.handle(now, Input::Heard { sighting, source }, &mut Vec::new());
    }
    catalog.handle(now, Input::Own(own.clone()), &mut Vec::new());
    let mut intake = intake();
    for record in [&known, &departed, &own] {
        let arrival = from(3, record.bytes());
        let sighting = intake.admit(now, arrival, catalog.known()).unwrap();
        assert_eq!(sighting.record(), record);
    }
    assert_eq!(intake.checks(), 0);
}

#[test]
fn what_is_cheaply_seen_to_be_wrong_costs_no_check() {
    let mut intake = intake();
    let foreign = Draft::new(NetworkId::from_name("other"));
    let foreign = foreign.sign(&key(1), Seq::new(1), CLOCK).unwrap();
    let mut version = record(1, 7).bytes().to_vec();
    version[0] = 2;
    let cases: [(&[u8], Rejection); 4] = [
        (&[1; RECORD_MAX + 1], Rejection::TooLarge),
        (&[1; 20], Rejection::Malformed),
        (&version, Rejection::UnknownVersion),
        (foreign.bytes(), Rejection::WrongNetwork),
    ];
    for (bytes, reason) in cases {
        let error = intake.admit(Instant::now(), from(2, bytes), &Snapshot::default()).unwrap_err();
        assert_eq!(error.refusal(), Refusal::Record(reason));
    }
    assert_eq!((intake.checks(), intake.sources()), (0, 0));
}

#[test]
fn who_hands_over_a_forged_record_is_to_blame_and_who_hands_over_one_from_the_future_is_not() {
    let mut intake = intake();
    let mut blame = |bytes: &[u8], clock| {
        let arrival = Arrival { clock, ..from(2, bytes) };
        intake.admit(Instant::now(), arrival, &Snapshot::default()).unwrap_err().blame()
    };
    assert_eq!(blame(&bogus(3), CLOCK), Blame::Sender);
    assert_eq!(blame(record(1, 7).bytes(), UnixMillis::new(0)), Blame::Nobody);
}

#[test]
fn a_record_of_this_node_itself_is_never_of_the_future() {
    // Whether it has said anything yet or not.
    let admit = |n| {
        let said_before = record(n, 99);
        let arrival = Arrival { clock: UnixMillis::new(0), ..from(3, said_before.bytes()) };
        let admitted = intake().admit(Instant::now(), arrival, &Snapshot::default());
        admitted.map(|sighting| sighting.record().seq())
    };
    assert_eq!(admit(9), Ok(Seq::new(99)));
    let refusal = admit(1).unwrap_err().refusal();
    assert_eq!(refusal, Refusal::Record(Rejection::FromFuture));
}

#[test]
fn whoever_is_told_to_come_again_is_served_then() {
    let now = Instant::now();
    let mut intake = small(3);
    let mut admit = |at, n, seq| {
        intake.admit(at, from(n, record(1, seq).bytes()), &Snapshot::default()).map(drop)
    };
    assert_eq!((admit(now, 2, 1), admit(now, 2, 2)), (Ok(()), Ok(())));
    let Err(IntakeError::Busy { retry_at }) = admit(now, 2, 3) else {
        panic!("the source has used up its share")
    };
    assert_eq!(retry_at, now + Duration::from_secs(1));
    assert!(admit(retry_at - Duration::from_nanos(1), 2, 3).is_err());
    assert_eq!(admit(retry_at, 2, 3), Ok(()));
}

#[test]
fn more_sources_than_can_be_counted_are_told_when_there_is_room() {
    let now = Instant::now();
    let mut intake = small(3);
    let mut admit = |at, n| intake.admit(at, from(n, &bogus(n.into())), &Snapshot::default());
    for n in 1..=3 {
        assert!(matches!(admit(now, n), Err(IntakeError::Record(_))));
    }
    let Err(IntakeError::Crowded { retry_at }) = admit(now, 4) else {
        panic!("there is no room for a fourth source")
    };
    assert!(matches!(admit(retry_at, 4), Err(IntakeError::Record(_))));
    assert_eq!(intake.sources(), 3);
}

/// Half a second of 100 000 made-up records a second, from one source or from thirty.
fn flood(
    intake: &mut Intake,
    start: Instant,
    sources: u32,
    mut meanwhile: impl FnMut(&mut Intake, Instant),
) {
    for serial in 0..50_000_u32 {
        let now = start + Duration::from_micros(10) * serial;
        let source = u8::try_from(10 + serial % sources).unwrap();
        assert!(intake.admit(now, from(source, &bogus(serial)), &Snapshot::default()).is_err());
        meanwhile(intake, now);
    }
}

#[test]
fn a_flood_of_one_source_costs_no_more_than_its_share() {
    let mut intake = intake();
    flood(&mut intake, Instant::now(), 1, |_, _| {});
    // Two thousand at once and 500 per second.
    assert!(intake.checks() <= 2_250, "{}", intake.checks());
}

#[test]
fn a_flood_of_many_sources_costs_no_more_than_half_of_the_budget_and_what_grows_back() {
    let mut intake = intake();
    flood(&mut intake, Instant::now(), 30, |_, _| {});
    assert!(intake.checks() <= 4_000 + 1_000, "{}", intake.checks());
}

#[test]
fn an_honest_source_beside_a_flood_of_one_or_of_three_is_served_at_once() {
    for flooders in [1, 3] {
        let mut intake = intake();
        let (mut seq, mut turn) = (0, 0);
        flood(&mut intake, Instant::now(), flooders, |intake, now| {
            turn += 1;
            if turn % 500 == 0 {
                seq += 1;
                let record = record(1, seq);
                let arrival = from(2, record.bytes());
                assert!(intake.admit(now, arrival, &Snapshot::default()).is_ok(), "{seq}");
            }
        });
        assert_eq!(seq, 100);
    }
}

#[test]
fn a_newcomer_s_first_exchange_is_not_slowed_down_by_its_burst() {
    let now = Instant::now();
    let mut intake = intake();
    for serial in 0..2_000 {
        let error = intake.admit(now, from(2, &bogus(serial)), &Snapshot::default()).unwrap_err();
        assert_eq!(error.refusal(), Refusal::Record(Rejection::BadSignature));
    }
}

#[test]
fn every_reason_has_a_name_of_its_own() {
    let names: BTreeSet<_> = Refusal::ALL.into_iter().map(Refusal::name).collect();
    assert_eq!(names.len(), Refusal::ALL.len());
    assert_eq!(Refusal::ALL.len(), 2 + Rejection::ALL.len());
}

#[test]
fn limits_that_cannot_work_are_refused_by_name() {
    let valid = IntakeLimits::default();
    assert_eq!(valid.validate(), Ok(()));
    let with = |change: fn(&mut IntakeLimits)| {
        let mut limits = valid.clone();
        change(&mut limits);
        limits.validate().unwrap_err()
    };
    let zero = |field| IntakeLimitError::Rate { field, error: RateError::Zero };
    assert_eq!(with(|limits| limits.checks.burst = 0), zero("checks"));
    assert_eq!(
        with(|limits| limits.checks_per_source.every = Duration::ZERO),
        zero("checks_per_source")
    );
    assert_eq!(with(|limits| limits.sources = 0), IntakeLimitError::Zero { field: "sources" });
    assert_eq!(
        with(|limits| limits.sources = usize::MAX),
        IntakeLimitError::TooLarge { field: "sources" }
    );
    assert_eq!(with(|limits| limits.checks_per_source.burst = 5_000), IntakeLimitError::Order);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64,
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..ProptestConfig::default() })]

    /// Whatever comes from whomever and whenever, in no stretch of time are more signatures checked than the budget grants
    /// for it, in total and for each source; and a busy intake says when it is not.
    #[test]
    fn the_budget_holds_in_every_stretch_of_time(
        arrivals in vec((0_u64..700, 2_u8..6), 1..80),
    ) {
        let mut intake = small(8);
        let mut now = Instant::now();
        let mut spent: Vec<(Instant, u8)> = Vec::new();
        for (serial, (wait, source)) in arrivals.into_iter().enumerate() {
            now += Duration::from_millis(wait);
            let before = intake.checks();
            let bytes = bogus(u32::try_from(serial).unwrap());
            let error = intake.admit(now, from(source, &bytes), &Snapshot::default()).unwrap_err();
            match error {
                IntakeError::Record(_) => {
                    prop_assert_eq!(intake.checks(), before + 1);
                    spent.push((now, source));
                }
                IntakeError::Busy { retry_at } => {
                    prop_assert_eq!(intake.checks(), before);
                    prop_assert!(retry_at > now);
                    let mut later = intake.clone();
                    let retry = later.admit(retry_at, from(source, &bytes), &Snapshot::default());
                    prop_assert!(matches!(retry, Err(IntakeError::Record(_))));
                }
                IntakeError::Crowded { .. } => prop_assert!(false, "there was room"),
            }
        }
        for (first, (start, _)) in spent.iter().enumerate() {
            for (last, (end, _)) in spent.iter().enumerate().skip(first) {
                let grown = (*end - *start).as_secs();
                prop_assert!((last - first + 1) as u64 <= 4 + grown);
                for n in 2..6 {
                    let own = spent[first..=last].iter().filter(|(_, source)| *source == n);
                    prop_assert!(own.count() as u64 <= 2 + grown);
                }
            }
        }
    }
}
