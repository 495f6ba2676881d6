//! Walks of a node whose network is back.

use super::*;

#[test]
fn a_network_that_is_back_makes_missed_bootstrap_peers_worth_a_dial() {
    let mut scene = Scene::careless(&[1]);
    scene.know([2]);
    let first = scene.wake(Wake::Started);
    let until = scene.now + Duration::from_secs(5);
    scene.visits(first, until, Scene::fail);
    assert_eq!(scene.wake(Wake::Online), Some(id(1)));
}

#[test]
fn a_network_that_is_back_makes_all_peers_worth_a_dial_that_the_catalog_knows_as_missed() {
    let mut scene = Scene::careless(&[1]);
    scene.know(1..4);
    let first = scene.wake(Wake::Started);
    let until = scene.now + HOUR;
    scene.visits(first, until, Scene::fail);
    scene.now += Duration::from_secs(15 * 60);
    (1..4).for_each(|n| scene.tell(Told::Missed(id(n))));
    scene.tell(Told::Online);
    let first = scene.wake(Wake::Online);
    assert!(first.is_some());
    let until = scene.now + Duration::from_secs(1);
    let visits = scene.visits(first, until, useless);
    let visited: BTreeSet<_> = visits.into_iter().map(|(_, peer)| peer).collect();
    assert_eq!(visited, (1..4).map(id).collect());
}
