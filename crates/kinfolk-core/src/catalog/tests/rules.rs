//! Which record counts, for how long, and who says so.

use super::*;

#[test]
fn a_record_is_added_once_and_updated_by_a_newer_one() {
    let mut world = World::new();
    assert_eq!(world.hear(record(1, 5)), Said::Added);
    assert_eq!(world.hear(record(1, 5)), Said::Ignored(Ignored::Known));
    assert_eq!(world.hear(record(1, 6)), Said::Updated);
    assert_eq!(world.hear(record(1, 5)), Said::Ignored(Ignored::Outdated));
    assert_eq!(world.seq(&id(1)), Some(6));
}

#[test]
fn of_two_records_with_one_number_the_first_is_kept_and_the_second_counted() {
    let mut world = World::new();
    world.hear(record(1, 5));
    let other = Draft::new(network()).forge(id(1), Seq::new(5), UnixMillis::new(CLOCK));
    assert_eq!(world.hear(other.clone()), Said::Ignored(Ignored::Equivocation));
    assert_eq!(world.hear_owner(other), Said::Ignored(Ignored::Equivocation));
    assert_eq!(world.catalog.known().get(&id(1)).unwrap().record(), &record(1, 5));
}

#[test]
fn a_departure_wins_over_a_record_of_the_same_number_whichever_comes_first() {
    let peer = key(1).public();
    let mut world = World::new();
    world.hear(present(1, 5));
    assert_eq!(world.hear(departure(1, 5)), Said::Removed(Removal::Departed));
    assert_eq!(world.hear(present(1, 5)), Said::Ignored(Ignored::Dead));
    let mut world = World::new();
    assert_eq!(world.hear(departure(1, 5)), Said::Nothing);
    assert_eq!(world.hear(present(1, 5)), Said::Ignored(Ignored::Dead));
    assert!(!world.knows(&peer));
}

#[test]
fn a_departed_peer_does_not_come_back_from_a_node_that_missed_the_goodbye() {
    let mut world = World::new();
    world.hear(present(1, 5));
    world.hear(departure(1, 6));
    for _ in 0..20 {
        world.wait(secs(60));
        let age = world.now - world.start;
        let from = id(STRANGER);
        assert_eq!(
            world.hear_from(from, Reach::World, present(1, 5), age),
            Said::Ignored(Ignored::Dead)
        );
    }
    assert_eq!(world.hear(present(1, 7)), Said::Added);
}

#[test]
fn a_departure_is_passed_on_until_its_time_is_over_and_remembered_for_longer() {
    let mut world = World::new();
    world.hear(present(1, 5));
    world.hear(departure(1, 6));
    let tombstones = |world: &World| world.catalog.known().relayable(world.now).count();
    assert_eq!(tombstones(&world), 1);
    assert_eq!(world.hear(departure(1, 6)), Said::Ignored(Ignored::Known));
    world.wait(Ttl::MAX.as_duration() - secs(1));
    assert_eq!(tombstones(&world), 1);
    world.wait(secs(1));
    assert_eq!(tombstones(&world), 0);
    assert_eq!(world.catalog.dead(), 1);
    world.wait(DEAD_MEMORY - Ttl::MAX.as_duration());
    assert_eq!(world.catalog.dead(), 0);
    assert_eq!(world.catalog.next_timeout(), None);
}

#[test]
fn a_peer_that_returns_takes_its_tombstone_back() {
    let mut world = World::new();
    world.hear(departure(1, 6));
    assert_eq!(world.hear(present(1, 7)), Said::Added);
    let all: Vec<_> = world.catalog.known().relayable(world.now).collect();
    assert_eq!(all, [(&present(1, 7), Duration::ZERO)]);
}

#[test]
fn a_record_expires_when_its_time_is_over() {
    let mut world = World::new();
    world.hear(record(1, 5));
    let ttl = Ttl::DEFAULT.as_duration();
    assert_eq!(world.catalog.next_timeout(), Some(world.start + ttl));
    assert_eq!(said(&world.wait(ttl - Duration::from_nanos(1))), Said::Nothing);
    assert_eq!(said(&world.wait(Duration::from_nanos(1))), Said::Removed(Removal::Expired));
}

#[test]
fn a_record_that_is_shared_again_and_again_still_expires() {
    let (mut here, mut there) = (World::new(), World::new());
    here.hear(record(1, 5));
    let mut removals = 0;
    for _ in 0..100 {
        let pass = |from: &World, to: &mut World| {
            if let Some((record, age)) = from.catalog.known().relayable_of(&id(1), from.now) {
                to.hear_from(id(STRANGER), Reach::World, record.clone(), age);
            }
        };
        pass(&here, &mut there);
        pass(&there, &mut here);
        removals += here.wait(secs(60)).len() + there.wait(secs(60)).len();
    }
    assert_eq!(removals, 2);
    assert!(here.catalog.known().is_empty() && there.catalog.known().is_empty());
}

#[test]
fn who_lies_about_a_records_age_cannot_revive_it() {
    let mut world = World::new();
    world.hear(record(1, 5));
    world.wait(secs(29 * 60));
    // The entry is renewed by neither.
    assert_eq!(world.hear(record(1, 5)), Said::Ignored(Ignored::Known));
    assert_eq!(said(&world.wait(secs(60))), Said::Removed(Removal::Expired));
    assert_eq!(world.hear(record(1, 5)), Said::Ignored(Ignored::Dead));
    assert_eq!(world.hear(record(1, 4)), Said::Ignored(Ignored::Dead));
    assert_eq!(world.hear_owner(record(1, 5)), Said::Ignored(Ignored::Dead));
    world.wait(DEAD_MEMORY);
    assert_eq!(world.hear(record(1, 5)), Said::Ignored(Ignored::Expired));
}

#[test]
fn what_remains_of_a_record_is_by_its_age_or_by_the_clock_whichever_is_less() {
    for (waited, age) in [(0, 20), (20, 0), (20, 10), (10, 20)] {
        let mut world = World::new();
        world.wait(secs(waited * 60));
        world.hear_from(id(STRANGER), Reach::World, record(1, 5), secs(age * 60));
        let expires = world.catalog.known().get(&id(1)).unwrap().expires();
        assert_eq!(expires - world.now, secs(10 * 60));
        let told = world.catalog.known().relayable_of(&id(1), world.now + secs(60));
        assert_eq!(told.unwrap().1, secs(21 * 60));
    }
}

#[test]
fn a_record_whose_time_was_over_when_it_came_is_not_taken() {
    let mut world = World::new();
    let ttl = Ttl::DEFAULT.as_duration();
    for age in [ttl, ttl + secs(1), Duration::MAX] {
        let heard = world.hear_from(id(STRANGER), Reach::World, record(1, 5), age);
        assert_eq!(heard, Said::Ignored(Ignored::Expired));
    }
}

#[test]
fn a_node_with_a_slow_clock_is_known_to_those_who_talk_to_it() {
    let mut world = World::new();
    world.wait(secs(3600));
    assert_eq!(world.hear(record(1, 5)), Said::Ignored(Ignored::Expired));
    assert_eq!(world.hear_owner(record(1, 5)), Said::Added);
    // Nobody else would take it, so it is not offered.
    assert_eq!(world.catalog.known().relayable(world.now).count(), 0);
    let ttl = Ttl::DEFAULT.as_duration();
    assert_eq!(said(&world.wait(ttl)), Said::Removed(Removal::Expired));
}

#[test]
fn a_node_whose_clock_stepped_back_is_taken_at_its_word_and_heals() {
    let mut world = World::new();
    world.hear(record(1, 1_000));
    assert_eq!(world.hear(record(1, 10)), Said::Ignored(Ignored::Outdated));
    world.wait(UNDER_WAY);
    assert_eq!(world.hear(record(1, 10)), Said::Ignored(Ignored::Outdated));
    assert_eq!(world.hear_owner(record(1, 10)), Said::Updated);
    // What it said before does not come back, nor does anything between.
    assert_eq!(world.hear(record(1, 1_000)), Said::Ignored(Ignored::Dead));
    assert_eq!(world.hear(record(1, 500)), Said::Ignored(Ignored::Dead));
    assert_eq!(world.hear_owner(record(1, 11)), Said::Updated);
    assert_eq!(world.hear(record(1, 1_001)), Said::Updated);
}

#[test]
fn a_node_that_departed_and_lost_its_clock_is_back_and_may_depart_again() {
    let mut world = World::new();
    world.hear(departure(1, 1_000));
    world.wait(UNDER_WAY);
    assert_eq!(world.hear(present(1, 10)), Said::Ignored(Ignored::Dead));
    assert_eq!(world.hear_owner(present(1, 10)), Said::Added);
    assert_eq!(world.hear_owner(departure(1, 11)), Said::Removed(Removal::Departed));
    assert_eq!(world.hear_owner(present(1, 10)), Said::Ignored(Ignored::Dead));
    assert_eq!(world.hear_owner(departure(1, 11)), Said::Ignored(Ignored::Known));
    assert_eq!(world.hear(present(1, 999)), Said::Ignored(Ignored::Dead));
    assert_eq!(world.hear(present(1, 1_001)), Said::Added);
}

#[test]
fn a_farewell_counts_beside_a_larger_number_however_old_it_seems() {
    let mut world = World::new();
    world.hear(present(1, 1_000));
    world.wait(Duration::from_hours(30));
    assert_eq!(world.hear_owner(present(1, 10)), Said::Added);
    // By its own clock it has departed more than a day ago.
    assert_eq!(world.hear_owner(departure(1, 11)), Said::Removed(Removal::Departed));
    world.wait(secs(1));
    assert_eq!(world.catalog.known().relayable(world.now).count(), 0);
    assert_eq!(world.hear_owner(present(1, 10)), Said::Ignored(Ignored::Dead));
}

#[test]
fn who_is_forgotten_in_its_second_life_is_so_for_what_it_has_said() {
    let mut world = World::new();
    world.hear(present(1, 1_000));
    world.wait(UNDER_WAY);
    assert_eq!(world.hear_owner(present(1, 10)), Said::Updated);
    world.handle(Input::Forget(present(1, 10).id()));
    assert_eq!(world.hear_owner(present(1, 10)), Said::Ignored(Ignored::Dead));
    assert_eq!(world.hear_owner(present(1, 9)), Said::Ignored(Ignored::Dead));
    assert_eq!(world.hear_owner(present(1, 11)), Said::Added);
}

#[test]
fn what_lay_before_it_was_judged_counts_from_when_it_came() {
    let mut world = World::new();
    let came = world.now;
    world.wait(UNDER_WAY);
    for record in [present(1, 5), departure(1, 6)] {
        let sighting = Sighting::new(record, came, world.clock(), Duration::ZERO);
        let source = Source::Peer { peer: id(STRANGER), reach: Reach::World };
        world.handle(Input::Heard { sighting, source });
    }
    assert_eq!(world.hear_owner(present(1, 4)), Said::Added);
}

#[test]
fn a_node_that_was_thought_dead_and_has_lost_its_clock_is_back() {
    let mut world = World::new();
    world.hear(present(1, 1_000));
    world.wait(Ttl::DEFAULT.as_duration());
    assert_eq!(world.hear(present(1, 10)), Said::Ignored(Ignored::Dead));
    assert_eq!(world.hear_owner(present(1, 10)), Said::Added);
}

#[test]
fn an_owner_may_depart_with_a_smaller_number() {
    let mut world = World::new();
    world.hear(present(1, 1_000));
    world.wait(UNDER_WAY);
    assert_eq!(world.hear(departure(1, 10)), Said::Ignored(Ignored::Outdated));
    assert_eq!(world.hear_owner(departure(1, 10)), Said::Removed(Removal::Departed));
    assert_eq!(world.hear(present(1, 1_000)), Said::Ignored(Ignored::Dead));
}

#[test]
fn what_an_owner_said_before_and_was_longer_under_way_changes_nothing() {
    let mut world = World::new();
    let owner = present(1, 1).id();
    // The newer ones come by others.
    world.hear(present(1, 5));
    world.wait(UNDER_WAY - Duration::from_nanos(1));
    // Hearing it again is no reason to wait for longer.
    world.hear(present(1, 5));
    assert_eq!(world.hear_owner(present(1, 4)), Said::Ignored(Ignored::Outdated));
    assert_eq!(world.hear_owner(departure(1, 4)), Said::Ignored(Ignored::Outdated));
    assert_eq!(world.seq(&owner), Some(5));
    world.hear(departure(1, 6));
    world.wait(UNDER_WAY - Duration::from_nanos(1));
    assert_eq!(world.hear_owner(present(1, 5)), Said::Ignored(Ignored::Dead));
    // What it says after that is another life's, which says more than once what it has to say.
    world.wait(Duration::from_nanos(1));
    assert_eq!(world.hear_owner(present(1, 3)), Said::Added);
    assert_eq!(world.hear_owner(present(1, 4)), Said::Updated);
    assert_eq!(world.hear_owner(present(1, 3)), Said::Ignored(Ignored::Outdated));
}

#[test]
fn a_node_never_takes_its_own_record_from_others() {
    let mut world = World::new();
    let me = id(u32::MAX);
    let own = |seq| draft().forge(me, Seq::new(seq), UnixMillis::new(CLOCK));
    world.handle(Input::Own(own(5)));
    assert_eq!(world.hear(own(9)), Said::Own(9));
    assert_eq!(world.hear_owner(own(9)), Said::Own(9));
    assert!(world.catalog.known().is_empty());
    assert_eq!(world.catalog.known().own().unwrap().record(), &own(5));
    // A record of another node is not the own one.
    world.handle(Input::Own(record(1, 1)));
    assert_eq!(world.catalog.known().own().unwrap().record(), &own(5));
}

#[test]
fn the_own_record_is_passed_on_with_its_age_until_it_is_over() {
    let mut world = World::new();
    let own = draft().forge(id(u32::MAX), Seq::new(5), UnixMillis::new(CLOCK));
    world.handle(Input::Own(own.clone()));
    world.wait(secs(60));
    let all: Vec<_> = world.catalog.known().relayable(world.now).collect();
    assert_eq!(all, [(&own, secs(60))]);
    world.wait(secs(1740));
    assert_eq!(world.catalog.known().relayable(world.now).count(), 0);
}

#[test]
fn a_missed_peer_is_doubted_and_restored_by_a_fresh_record_or_a_contact() {
    let mut world = World::new();
    world.hear(record(1, 5));
    let standing =
        |world: &World| world.catalog.known().get(&id(1)).unwrap().liveness().standing(world.now);
    let miss = |world: &mut World| {
        world.handle(Input::Missed(id(1)));
        assert_eq!(standing(world), Standing::Doubtful);
    };
    miss(&mut world);
    world.hear(record(1, 5));
    assert_eq!(standing(&world), Standing::Doubtful);
    world.hear(record(1, 6));
    assert_eq!(standing(&world), Standing::Good);
    miss(&mut world);
    world.wait(secs(30));
    assert_eq!(standing(&world), Standing::Due);
    world.connect(id(1));
    assert_eq!(standing(&world), Standing::Good);
    world.handle(Input::Missed(id(1)));
    assert_eq!(standing(&world), Standing::Good);
}

#[test]
fn when_the_network_is_back_all_who_were_missed_are_due_and_the_others_as_they_were() {
    let mut world = World::new();
    (1..=3).for_each(|n| assert_eq!(world.hear(record(n, 5)), Said::Added));
    for _ in 0..5 {
        world.handle(Input::Missed(id(1)));
        world.wait(secs(100));
    }
    world.handle(Input::Missed(id(2)));
    assert_eq!(said(&world.handle(Input::Online)), Said::Nothing);
    let standing = |n| world.catalog.known().get(&id(n)).unwrap().liveness().standing(world.now);
    assert_eq!([1, 2, 3].map(standing), [Standing::Due, Standing::Due, Standing::Good]);
}

#[test]
fn two_nodes_that_missed_each_other_meet_again() {
    let mut now = World::new();
    now.hear(record(1, 5));
    for _ in 0..3 {
        now.handle(Input::Missed(id(1)));
        let probe = now.catalog.known().get(&id(1)).unwrap().liveness().probe_at().unwrap();
        let wait = probe - now.now;
        now.wait(wait);
        let entry = now.catalog.known().get(&id(1)).unwrap();
        assert_eq!(entry.liveness().standing(now.now), Standing::Due);
    }
}

#[test]
fn every_way_out_of_the_catalog_is_told() {
    let mut world = World::holding(2);
    world.hear(record(1, 5));
    assert_eq!(said(&world.handle(Input::Forget(id(1)))), Said::Removed(Removal::Forgotten));
    assert_eq!(world.hear(record(1, 5)), Said::Ignored(Ignored::Dead));
    world.hear(present(1, 5));
    assert_eq!(world.hear(departure(1, 6)), Said::Removed(Removal::Departed));
    world.hear_from(id(70), Reach::World, record(2, 5), Duration::ZERO);
    world.wait(secs(1));
    world.hear_from(id(71), Reach::World, record(3, 5), Duration::ZERO);
    let heard = world.hear_from(id(72), Reach::World, record(4, 5), Duration::ZERO);
    assert_eq!(heard, Said::AddedFor(id(2)));
    let out = world.wait(Ttl::MAX.as_duration());
    let expired =
        |output: &Output| matches!(output, Output::Removed { reason: Removal::Expired, .. });
    assert!(out.len() == 2 && out.iter().all(expired));
}

#[test]
fn forgetting_who_is_unknown_changes_nothing() {
    let mut world = World::new();
    assert_eq!(said(&world.handle(Input::Forget(id(1)))), Said::Nothing);
    assert_eq!(world.catalog.dead(), 0);
}

#[test]
fn addresses_of_this_machine_and_the_local_network_are_used_only_from_there() {
    let mut draft = draft();
    draft.add_address(ip("127.0.0.1:22")).unwrap();
    draft.add_address(ip("192.168.1.1:80")).unwrap();
    let record = draft.forge(id(1), Seq::new(5), UnixMillis::new(CLOCK));
    let mut world = World::new();
    let usable = |world: &World| world.catalog.known().get(&id(1)).unwrap().addresses().count();
    // Even from the owner itself.
    world.hear_owner(record.clone());
    assert_eq!(usable(&world), 1);
    let from = |world: &mut World, reach| {
        world.hear_from(id(STRANGER), reach, record.clone(), Duration::ZERO)
    };
    assert_eq!(from(&mut world, Reach::World), Said::Ignored(Ignored::Known));
    let out = {
        let sighting = Sighting::new(record.clone(), world.now, world.clock(), Duration::ZERO);
        let source = Source::Peer { peer: id(STRANGER), reach: Reach::Site };
        world.handle(Input::Heard { sighting, source })
    };
    assert!(matches!(out[..], [Output::Updated(_), Output::Ignored { .. }]));
    assert_eq!(usable(&world), 2);
    // Who is farther away takes nothing back; the record is the same.
    from(&mut world, Reach::World);
    assert_eq!(usable(&world), 2);
}

#[test]
fn local_addresses_that_a_next_record_repeats_may_be_used_whoever_brings_it_first() {
    let saying = |seq, addrs: &[&str]| {
        let mut draft = draft();
        addrs.iter().for_each(|addr| draft.add_address(ip(addr)).unwrap());
        draft.forge(id(1), Seq::new(seq), UnixMillis::new(CLOCK))
    };
    let (lan, other, own) = ("192.168.1.1:80", "192.168.1.2:80", "127.0.0.1:22");
    let mut world = World::new();
    let mut usable_after = |reach, record| {
        world.hear_from(id(STRANGER), reach, record, Duration::ZERO);
        let entry = world.catalog.known().get(&id(1)).unwrap();
        entry.addresses().collect::<BTreeSet<_>>()
    };
    let far = ip("203.0.113.7:4433");
    let all = |near: &[&str]| near.iter().map(|addr| ip(addr)).chain([far.clone()]).collect();
    assert_eq!(usable_after(Reach::Site, saying(1, &[lan])), all(&[lan]));
    assert_eq!(usable_after(Reach::World, saying(2, &[lan])), all(&[lan]));
    // Nearer ones, which were not usable, do not become so, and take nothing away.
    assert_eq!(usable_after(Reach::World, saying(3, &[lan, own])), all(&[lan]));
    // Nobody far away names a new one.
    assert_eq!(usable_after(Reach::World, saying(4, &[lan, other])), all(&[]));
    assert_eq!(usable_after(Reach::World, saying(5, &[lan])), all(&[]));
    assert_eq!(usable_after(Reach::Machine, saying(6, &[lan, own])), all(&[lan, own]));
    assert_eq!(usable_after(Reach::Site, saying(7, &[lan, own])), all(&[lan, own]));
    assert_eq!(usable_after(Reach::World, saying(8, &[own])), all(&[own]));
    assert_eq!(usable_after(Reach::World, saying(9, &[])), all(&[]));
    assert_eq!(usable_after(Reach::World, saying(10, &[own])), all(&[]));
}

#[test]
fn a_clock_that_runs_backwards_brings_nothing_back() {
    let mut world = World::new();
    world.hear(record(1, 5));
    world.wait(secs(100));
    world.now -= secs(50);
    assert_eq!(world.hear(record(2, 5)), Said::Added);
    assert_eq!(said(&world.handle(Input::Timeout)), Said::Nothing);
    let ttl = Ttl::DEFAULT.as_duration();
    assert_eq!(world.catalog.next_timeout(), Some(world.start + ttl));
    world.now = world.start + ttl;
    assert_eq!(world.handle(Input::Timeout).len(), 2);
    assert!(world.catalog.known().is_empty());
}

#[test]
fn every_reason_has_a_name_of_its_own() {
    let removals = Removal::ALL.map(Removal::name);
    let ignored = Ignored::ALL.map(Ignored::name);
    let names: BTreeSet<_> = removals.into_iter().collect();
    assert_eq!(names.len(), removals.len());
    let names: BTreeSet<_> = ignored.into_iter().collect();
    assert_eq!(names.len(), ignored.len());
}
