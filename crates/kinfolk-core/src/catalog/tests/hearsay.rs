//! Whose addresses may be a victim's.

use super::*;

const VICTIM: &str = "198.51.100.1:443";

/// A record of `id(1)` at this address.
fn at(seq: u64, addr: &str) -> Record {
    let mut draft = Draft::new(network());
    draft.add_address(ip(addr)).unwrap();
    draft.forge(id(1), Seq::new(seq), UnixMillis::new(CLOCK))
}

impl World {
    fn is_hearsay(&self) -> bool {
        self.catalog.known().get(&id(1)).unwrap().is_hearsay()
    }

    fn miss(&mut self) {
        self.handle(Input::Missed(id(1)));
    }
}

const HOME: &str = "203.0.113.7:4433";

#[test]
fn what_others_tell_is_hearsay_until_its_owner_tells_it_or_is_reached() {
    let mut world = World::new();
    world.hear(at(1, HOME));
    assert!(world.is_hearsay());
    world.handle(Input::Connected { peer: id(1), direction: Direction::Inbound });
    assert!(world.is_hearsay());
    world.hear_owner(at(1, HOME));
    assert!(!world.is_hearsay());
    let mut world = World::new();
    world.hear(at(1, HOME));
    world.connect(id(1));
    assert!(!world.is_hearsay());
    // A session says nothing of addresses that come after it from others.
    let mut world = World::new();
    world.connect(id(1));
    world.hear(at(1, VICTIM));
    assert!(world.is_hearsay());
}

#[test]
fn a_next_record_that_others_bring_is_hearsay_if_it_names_a_new_address() {
    for is_proven in [false, true] {
        let mut world = World::new();
        world.hear_owner(at(1, HOME));
        if is_proven {
            world.connect(id(1));
            world.handle(Input::Disconnected(id(1)));
        }
        world.hear(at(2, HOME));
        assert!(!world.is_hearsay());
        let weight = world.catalog.known().get(&id(1)).unwrap().weight();
        world.hear(at(3, VICTIM));
        assert!(world.is_hearsay());
        world.hear(at(4, VICTIM));
        assert!(world.is_hearsay());
        // What it weighs is another matter.
        assert_eq!(world.catalog.known().get(&id(1)).unwrap().weight(), weight);
        world.hear_owner(at(5, VICTIM));
        assert!(!world.is_hearsay());
    }
}

#[test]
fn a_peer_that_was_missed_needs_another_session_and_no_mere_signature_to_be_dialled_freely() {
    for is_proven in [false, true] {
        let mut world = World::new();
        world.hear_owner(at(1, VICTIM));
        if is_proven {
            world.connect(id(1));
            world.handle(Input::Disconnected(id(1)));
        }
        world.miss();
        // One that was reached there may be back: only the growing distance holds back.
        assert_eq!(world.is_hearsay(), !is_proven);
        for seq in 2..10 {
            world.hear(at(seq, VICTIM));
            assert!(world.is_hearsay());
        }
        world.hear_owner(at(10, VICTIM));
        assert!(!world.is_hearsay());
    }
}

#[test]
fn local_addresses_that_their_owner_told_from_afar_are_hearsay_once_a_neighbour_repeats_them() {
    for is_proven in [false, true] {
        let mut world = World::new();
        let mut draft = Draft::new(network());
        draft.add_address(ip(HOME)).unwrap();
        draft.add_address(ip("192.168.1.1:443")).unwrap();
        let record = draft.forge(id(1), Seq::new(1), UnixMillis::new(CLOCK));
        world.hear_owner(record.clone());
        if is_proven {
            world.connect(id(1));
            world.handle(Input::Disconnected(id(1)));
        }
        assert!(!world.is_hearsay());
        let mut tell = |peer| {
            let age = Duration::ZERO;
            let sighting = Sighting::new(record.clone(), world.now, world.clock(), age);
            let source = Source::Peer { peer, reach: Reach::Site };
            world.handle(Input::Heard { sighting, source });
            world.is_hearsay()
        };
        assert!(tell(id(STRANGER)));
        assert!(!tell(id(1)));
    }
}

#[test]
fn what_was_missed_while_the_own_network_was_away_makes_no_hearsay_of_anybody() {
    let mut world = World::new();
    world.hear_owner(at(1, HOME));
    world.miss();
    assert!(world.is_hearsay());
    world.handle(Input::Online);
    assert!(!world.is_hearsay());
    world.hear(at(2, HOME));
    assert!(!world.is_hearsay());
}
