//! Visits to peers that others told of.

use super::*;

/// Leaves nothing for hearsay.
fn spend(scene: &mut Scene) {
    scene.walk.hearsay = Hearsay::new(Rate::new(1, HOUR));
    assert!(scene.walk.hearsay.take(scene.now));
}

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
    spend(&mut scene);
    assert_eq!(scene.wake(Wake::Started), None);
    scene.hear_owner(1);
    assert_eq!(scene.wake(Wake::Changed), Some(id(1)));
    let until = scene.now + HOUR - Duration::from_secs(1);
    let failed = scene.fail(id(1));
    assert_eq!(scene.visits(failed, until, Scene::fail), []);
}

#[test]
fn visits_to_hearsay_may_succeed_as_often_as_a_walk_needs_it_and_then_once_an_hour() {
    let mut scene = Scene::new(&[]);
    scene.know(0..1000);
    let first = scene.wake(Wake::Started);
    let until = scene.now + 10 * HOUR;
    let visits = scene.visits(first, until, |scene, peer| scene.end(peer, 100, &[]));
    assert!((22..=26).contains(&visits.len()), "{}", visits.len());
    let soon = visits.iter().filter(|(at, _)| *at - scene.start < HOUR).count();
    assert_eq!(soon, ENOUGH);
}

#[test]
fn a_peer_with_a_session_is_visited_however_little_may_be_dialled() {
    let mut scene = Scene::new(&[]);
    scene.know(0..3);
    spend(&mut scene);
    assert_eq!(scene.wake(Wake::Started), None);
    scene.connected.insert(id(1));
    assert_eq!(scene.wake(Wake::Changed), Some(id(1)));
}

#[test]
fn visits_to_peers_that_show_up_and_vanish_use_up_nothing_of_what_the_walk_needs() {
    let mut scene = Scene::new(&[]);
    let mut visits = 0;
    for n in 0..20 {
        let next = scene.wake(Wake::Appeared(id(5000 + n)));
        visits += usize::from(next.is_some());
        next.map(|peer| scene.fail(peer));
        scene.now += Duration::from_secs(10);
    }
    assert_eq!(visits, 4);
    assert_eq!(scene.walk.dropped_hints(), 16);
    scene.know(0..1000);
    let first = scene.wake(Wake::Changed);
    let until = scene.now + HOUR / 2;
    assert_eq!(scene.visits(first, until, Scene::fail).len(), 4);
    // One that is still there needs no dial.
    scene.connected.insert(id(6000));
    assert_eq!(scene.wake(Wake::Appeared(id(6000))), Some(id(6000)));
}

#[test]
fn while_hearsay_must_not_be_followed_proven_and_bootstrap_peers_are_visited() {
    let mut scene = Scene::new(&[5000]);
    scene.know(0..2000);
    let proven = [3, 77, 500];
    for n in proven {
        scene.walk.was_hinted = false;
        assert_eq!(scene.wake(Wake::Appeared(id(n))), Some(id(n)));
        scene.end(id(n), 1, &[]);
    }
    scene.prove(proven);
    spend(&mut scene);
    let allowed: BTreeSet<_> = proven.iter().copied().chain([5000]).map(id).collect();
    let until = scene.now + HOUR - Duration::from_secs(1);
    let visits = scene.visits(None, until, useless);
    let visited: BTreeSet<_> = visits.into_iter().map(|(_, peer)| peer).collect();
    assert_eq!(visited, allowed);
}
