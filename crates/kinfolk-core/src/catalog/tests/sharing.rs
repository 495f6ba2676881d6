//! Who makes room for whom, and what one source may bring.

use super::*;

/// Lets each of these sources bring one record, a second apart. Record and source have numbers in step.
fn fill(world: &mut World, range: std::ops::Range<u32>) {
    for n in range {
        let from = id(10_000 + n);
        assert_eq!(world.hear_from(from, Reach::World, record(n, 1), Duration::ZERO), Said::Added);
        world.now += secs(1);
    }
}

#[test]
fn the_oldest_unproven_record_makes_room() {
    let mut world = World::holding(4);
    fill(&mut world, 0..4);
    world.hear(record(0, 2));
    assert_eq!(world.hear(record(9, 1)), Said::AddedFor(id(1)));
}

#[test]
fn a_proven_record_never_makes_room_for_hearsay() {
    let mut world = World::holding(4);
    fill(&mut world, 0..4);
    for n in 0..4 {
        world.connect(id(n));
        world.handle(Input::Disconnected(id(n)));
    }
    assert_eq!(world.catalog.proven(), 4);
    assert_eq!(world.hear(record(9, 1)), Said::Ignored(Ignored::Full));
    // A peer that we talk to is worth more than one that we talked to before.
    world.connect(id(9));
    assert_eq!(world.hear(record(9, 1)), Said::AddedFor(id(0)));
}

#[test]
fn what_its_owner_told_itself_never_makes_room_for_hearsay() {
    let mut world = World::holding(4);
    for n in 0..4 {
        world.hear_owner(record(n, 1));
        world.now += secs(1);
    }
    assert_eq!(world.hear(record(9, 1)), Said::Ignored(Ignored::Full));
    assert_eq!(world.hear_owner(record(9, 1)), Said::AddedFor(id(0)));
}

#[test]
fn hearsay_that_its_owner_tells_as_well_weighs_more_and_counts_for_nobodys_share() {
    let mut world = World::new();
    let weight = |world: &World| world.catalog.known().get(&id(1)).unwrap().weight();
    world.hear(record(1, 1));
    assert_eq!(weight(&world), Weight::Hearsay);
    assert_eq!(world.catalog.loose_records_of(&id(STRANGER)), 1);
    assert_eq!(world.hear_owner(record(1, 1)), Said::Ignored(Ignored::Known));
    assert_eq!(weight(&world), Weight::FirstHand);
    assert_eq!(world.catalog.loose_records_of(&id(STRANGER)), 0);
    // That somebody else tells the next one takes nothing away.
    world.hear(record(1, 2));
    assert_eq!(weight(&world), Weight::FirstHand);
    world.connect(id(1));
    assert_eq!(weight(&world), Weight::Proven);
}

#[test]
fn who_is_connected_held_or_configured_is_never_evicted() {
    let mut world = World::holding(4);
    fill(&mut world, 0..4);
    world.connect(id(0));
    world.handle(Input::Keep { peer: id(1), keep: Keep::Held, wanted: true });
    world.handle(Input::Keep { peer: id(2), keep: Keep::Configured, wanted: true });
    world.handle(Input::Connected { peer: id(3), direction: Direction::Inbound });
    world.connect(id(9));
    assert_eq!(world.hear(record(9, 1)), Said::Ignored(Ignored::Full));
    world.handle(Input::Disconnected(id(3)));
    assert_eq!(world.hear(record(9, 1)), Said::AddedFor(id(3)));
    world.handle(Input::Keep { peer: id(1), keep: Keep::Held, wanted: false });
    assert_eq!(world.hear(record(8, 1)), Said::AddedFor(id(1)));
}

#[test]
fn a_session_that_the_peer_dialled_protects_it_and_proves_nothing() {
    let mut world = World::new();
    world.hear(record(1, 1));
    world.handle(Input::Connected { peer: id(1), direction: Direction::Inbound });
    assert_eq!(world.catalog.proven(), 0);
    world.connect(id(1));
    world.handle(Input::Disconnected(id(1)));
    assert!(world.catalog.known().get(&id(1)).unwrap().is_proven());
    world.hear(record(1, 2));
    assert!(world.catalog.known().get(&id(1)).unwrap().is_proven());
}

#[test]
fn a_peer_is_proven_if_its_record_comes_after_the_session() {
    let mut world = World::new();
    world.connect(id(1));
    world.hear_owner(record(1, 1));
    assert!(world.catalog.known().get(&id(1)).unwrap().is_proven());
}

#[test]
fn one_source_may_fill_half_of_a_catalog_that_knows_nobody_else() {
    let mut world = World::holding(160);
    for n in 0..80 {
        assert_eq!(world.hear(record(n, 1)), Said::Added);
    }
    assert_eq!(world.hear(record(80, 1)), Said::Ignored(Ignored::OverShare));
    // What it brought stays until others need the room.
    let from = id(STRANGER + 1);
    let heard = world.hear_from(from, Reach::World, record(81, 1), Duration::ZERO);
    assert!(matches!(heard, Said::AddedFor(_)), "{heard:?}");
    assert_eq!(world.catalog.loose_records_of(&id(STRANGER)), 79);
}

#[test]
fn more_than_half_full_no_source_accounts_for_more_than_its_share() {
    let mut world = World::holding(160);
    for n in 0..80 {
        world.hear(record(n, 1));
    }
    for n in 100..400 {
        let from = id(STRANGER + 1 + n % 30);
        world.hear_from(from, Reach::World, record(n, 1), Duration::ZERO);
        let sources = (0..31).map(|n| id(STRANGER + n));
        if world.catalog.known().len() > 80 {
            let most = sources.map(|source| world.catalog.loose_records_of(&source)).max();
            assert!(most <= Some(10), "{most:?}");
        }
    }
    assert_eq!(world.catalog.known().len(), 160);
}

#[test]
fn a_newer_record_of_a_known_peer_is_taken_whoever_brings_it() {
    let mut world = World::holding(32);
    fill(&mut world, 0..20);
    for n in 0..20 {
        world.hear(record(n, 2));
    }
    assert_eq!(world.catalog.loose_records_of(&id(STRANGER)), 0);
    assert_eq!(world.seq(&id(7)), Some(2));
}

#[test]
fn a_proven_record_counts_for_nobodys_share() {
    let mut world = World::holding(32);
    fill(&mut world, 0..16);
    assert_eq!(world.hear(record(100, 1)), Said::Added);
    assert_eq!(world.hear(record(101, 1)), Said::Added);
    assert_eq!(world.hear(record(102, 1)), Said::Ignored(Ignored::OverShare));
    world.connect(id(100));
    world.handle(Input::Disconnected(id(100)));
    assert_eq!(world.catalog.loose_records_of(&id(STRANGER)), 1);
}

/// T3: what a source makes up occupies at most 1/16 of a catalog, and nothing of what is proven.
#[test]
fn a_hundred_thousand_valid_records_of_one_source_occupy_a_sixteenth() {
    let mut world = World::new();
    let honest: Vec<_> = (0..6_000).map(|n| (record(n, 1), id(20_000 + n / 100))).collect();
    for (record, from) in honest {
        world.hear_from(from, Reach::World, record, Duration::ZERO);
    }
    for n in 0..100 {
        world.connect(id(n));
        world.handle(Input::Disconnected(id(n)));
    }
    assert_eq!(world.catalog.known().len(), 6_000);
    let count = if cfg!(debug_assertions) { 100_000 } else { 1_000_000 };
    for n in 0..count {
        world.hear(record(100_000 + n, 1));
    }
    let occupied = world.catalog.loose_records_of(&id(STRANGER));
    assert!(occupied <= 10_000 / SHARES, "{occupied}");
    assert_eq!(world.catalog.known().len(), 6_000 + occupied);
    assert_eq!(world.catalog.proven(), 100);
}

#[test]
fn made_up_departures_do_not_push_out_the_memory_of_known_peers() {
    let mut world = World::with(CatalogLimits { records: 100, dead: 10 });
    world.hear(present(1, 5));
    world.hear(departure(1, 6));
    for n in 2..=60 {
        world.hear(departure(n, 1));
    }
    assert_eq!(world.catalog.dead(), 10);
    assert_eq!(world.hear(present(1, 5)), Said::Ignored(Ignored::Dead));
}

#[test]
fn a_full_memory_of_the_dead_loses_those_whose_time_is_nearest() {
    let mut world = World::with(CatalogLimits { records: 100, dead: 3 });
    for n in 1..=4 {
        world.hear(present(n, 5));
        world.hear(departure(n, 6));
        world.now += secs(1);
    }
    assert_eq!(world.catalog.dead(), 3);
    let heard: Vec<_> = (1..=4).map(|n| world.hear(present(n, 5))).collect();
    assert_eq!(heard[0], Said::Added);
    assert!(heard[1..].iter().all(|heard| *heard == Said::Ignored(Ignored::Dead)));
}

#[test]
fn peers_are_found_by_topic_and_by_offer() {
    let mut world = World::new();
    let (wind, rain) = (Topic::from_name("wind"), Topic::from_name("rain"));
    let readings = Offer::from_name("readings");
    let saying = |n: u32, seq, topics: &[Topic], offers: &[Offer]| {
        let mut draft = Draft::new(network());
        topics.iter().for_each(|topic| draft.add_topic(*topic).unwrap());
        offers.iter().for_each(|offer| draft.add_offer(*offer).unwrap());
        draft.forge(id(n), Seq::new(seq), UnixMillis::new(CLOCK))
    };
    world.hear(saying(1, 1, &[wind, rain], &[]));
    world.hear(saying(2, 1, &[rain], &[readings]));
    let found = |world: &World, topic: &Topic| {
        let known = world.catalog.known();
        known.with_topic(topic).map(|entry| entry.id()).collect::<BTreeSet<_>>()
    };
    assert_eq!(found(&world, &rain), [id(1), id(2)].into());
    assert_eq!(found(&world, &wind), [id(1)].into());
    assert!(world.catalog.known().with_offer(&readings).map(|entry| entry.id()).eq([id(2)]));
    world.hear(saying(1, 2, &[wind], &[readings]));
    assert_eq!(found(&world, &rain), [id(2)].into());
    assert_eq!(world.catalog.known().with_offer(&readings).count(), 2);
    world.handle(Input::Forget(id(2)));
    assert!(found(&world, &rain).is_empty());
}

#[test]
fn peers_whose_ids_begin_alike_are_told_apart() {
    let mut world = World::new();
    let (wind, rain) = (Topic::from_name("wind"), Topic::from_name("rain"));
    let is_point = |last: &u8| {
        let mut bytes = [7; 32];
        bytes[31] = *last;
        EndpointId::from_bytes(&bytes).is_ok()
    };
    let alike: Vec<_> = (0..128).filter(is_point).take(3).collect();
    let alike = alike.into_iter().map(|last| {
        let mut bytes = [7; 32];
        bytes[31] = last;
        EndpointId::from_bytes(&bytes).unwrap()
    });
    let [a, b, c] = alike.collect::<Vec<_>>().try_into().unwrap();
    let say = |world: &mut World, peer, seq, topic| {
        let mut draft = Draft::new(network());
        draft.add_topic(topic).unwrap();
        let record = draft.forge(peer, Seq::new(seq), UnixMillis::new(CLOCK));
        let source = Source::Peer { peer: id(STRANGER), reach: Reach::World };
        let sighting = Sighting::new(record, world.now, world.clock(), Duration::ZERO);
        // Beside the full check, which takes ids that are told apart by their beginnings.
        world.catalog.handle(world.now, Input::Heard { sighting, source }, &mut world.out);
    };
    let found = |world: &World, topic: &Topic| {
        let known = world.catalog.known();
        known.with_topic(topic).map(|entry| entry.id()).collect::<Vec<_>>()
    };
    say(&mut world, a, 1, wind);
    say(&mut world, b, 1, wind);
    say(&mut world, c, 1, rain);
    assert_eq!(found(&world, &wind), [a, b]);
    assert_eq!(found(&world, &rain), [c]);
    say(&mut world, a, 2, rain);
    assert_eq!(found(&world, &wind), [b]);
    assert_eq!(found(&world, &rain), [a, c]);
    let now = world.now;
    world.catalog.handle(now, Input::Forget(b), &mut Vec::new());
    world.catalog.handle(now, Input::Forget(c), &mut Vec::new());
    assert!(found(&world, &wind).is_empty());
    assert_eq!(found(&world, &rain), [a]);
    world.catalog.handle(now, Input::Forget(a), &mut Vec::new());
    assert!(found(&world, &rain).is_empty());
    assert_eq!(world.catalog.known().tags(), (0, 0));
}

#[test]
fn a_snapshot_stays_as_it_was() {
    let mut world = World::new();
    world.hear(record(1, 5));
    let before = world.catalog.snapshot();
    world.hear(record(1, 6));
    world.hear(record(2, 5));
    world.handle(Input::Forget(id(1)));
    assert_eq!(before.len(), 1);
    assert_eq!(before.get(&id(1)).unwrap().record(), &record(1, 5));
    assert!(!world.knows(&id(1)));
}

#[test]
fn from_any_place_every_peer_is_met_once() {
    let mut world = World::new();
    fill(&mut world, 0..20);
    let snapshot = world.catalog.snapshot();
    let all: BTreeSet<_> = snapshot.iter().map(|entry| entry.id()).collect();
    for start in [[0; 32], *id(7).as_bytes(), [0x80; 32], [0xff; 32]] {
        let met: Vec<_> = snapshot.iter_from(&start).map(|entry| entry.id()).collect();
        assert_eq!(met.len(), 20);
        assert_eq!(met.iter().copied().collect::<BTreeSet<_>>(), all);
        assert!(met[0].as_bytes() >= &start || met[0] == *all.first().unwrap());
    }
}

#[test]
fn bytes_that_are_known_need_no_check_of_their_signature() {
    let mut world = World::new();
    world.hear(record(1, 5));
    world.hear(departure(1, 5));
    let snapshot = world.catalog.snapshot();
    assert!(snapshot.knows(record(1, 5).bytes()));
    assert!(snapshot.knows(departure(1, 5).bytes()));
    assert!(!snapshot.knows(record(1, 6).bytes()));
    assert!(!snapshot.knows(record(2, 5).bytes()));
    assert!(!snapshot.knows(b"nonsense"));
}
