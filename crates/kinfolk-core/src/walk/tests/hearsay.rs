//! Visits to peers that others told of.

use super::*;

#[test]
fn visits_to_hearsay_may_fail_four_times_and_then_once_an_hour() {
    let mut scene = Scene::new(&[]);
    scene.know(0..1000);
    let first = scene.wake(Wake::Started);
    let until = scene.now + 10 * HOUR;
    let visits = scene.visits(first, until, Scene::fail);
    assert!((10..=14).contains(&visits.len()), "{}", visits.len());
    let soon = visits.iter().filter(|(at, _)| *at - scene.start < HOUR).count();
    assert_eq!(soon, 4);
}

#[test]
fn a_peer_that_was_here_itself_is_no_hearsay_until_it_is_missed() {
    let mut scene = Scene::new(&[]);
    scene.know(0..3);
    scene.walk.hearsay = Budget::new(Rate::new(1, HOUR));
    scene.walk.hearsay.take(scene.now);
    assert_eq!(scene.wake(Wake::Started), None);
    let record = scene.catalog.known().get(&id(1)).unwrap().record().clone();
    let clock = UnixMillis::new(1_700_000_000_000);
    let sighting = Sighting::new(record, scene.now, clock, Duration::ZERO);
    let source = Source::Peer { peer: id(1), reach: Reach::World };
    scene.tell(Told::Heard { sighting, source });
    assert_eq!(scene.wake(Wake::Changed), Some(id(1)));
    let until = scene.now + HOUR - Duration::from_secs(1);
    let failed = scene.fail(id(1));
    assert_eq!(scene.visits(failed, until, Scene::fail), []);
}

#[test]
fn visits_to_hearsay_that_succeed_cost_nothing() {
    let mut scene = Scene::new(&[]);
    scene.know(0..1000);
    let mut next = scene.wake(Wake::Started);
    for _ in 0..30 {
        let peer = next.unwrap_or_else(|| scene.wait());
        next = scene.end(peer, 100, &[]);
    }
}

#[test]
fn while_hearsay_must_not_be_followed_proven_and_bootstrap_peers_are_visited() {
    let mut scene = Scene::new(&[5000]);
    scene.know(0..2000);
    let proven = [3, 77, 500];
    let mut next = scene.wake(Wake::Appeared(id(proven[0])));
    for n in &proven[1..] {
        scene.wake(Wake::Appeared(id(*n)));
        next = scene.end(next.unwrap(), 1, &[]);
    }
    scene.end(next.unwrap(), 1, &[]);
    scene.prove(proven);
    scene.walk.hearsay = Budget::new(Rate::new(1, HOUR));
    scene.walk.hearsay.take(scene.now);
    let allowed: BTreeSet<_> = proven.iter().copied().chain([5000]).map(id).collect();
    let until = scene.now + HOUR - Duration::from_secs(1);
    let visits = scene.visits(None, until, useless);
    let visited: BTreeSet<_> = visits.into_iter().map(|(_, peer)| peer).collect();
    assert_eq!(visited, allowed);
}
