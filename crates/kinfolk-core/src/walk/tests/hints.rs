//! Visits to peers that have shown up.

use super::*;

#[test]
fn strangers_that_show_up_all_the_time_get_every_other_visit() {
    let mut scene = Scene::new(&[1]);
    scene.know(2..50);
    scene.prove(2..50);
    let stranger = id(99);
    scene.connected.insert(stranger);
    let mut next = scene.wake(Wake::Started);
    let (mut to_stranger, mut to_others) = (0, 0);
    for _ in 0..2000 {
        while let Some(peer) = next {
            *(if peer == stranger { &mut to_stranger } else { &mut to_others }) += 1;
            next = useless(&mut scene, peer);
        }
        scene.now += Duration::from_secs(1);
        next = scene.wake(Wake::Appeared(stranger));
    }
    assert!(to_stranger >= 50, "{to_stranger} visits of the stranger");
    assert!(to_others >= to_stranger, "{to_others} of others, {to_stranger} of the stranger");
}

#[test]
fn strangers_that_show_up_are_visited_in_turn_where_nobody_else_is_known() {
    let mut scene = Scene::careless(&[]);
    let mut next = scene.wake(Wake::Appeared(id(90)));
    scene.wake(Wake::Appeared(id(91)));
    scene.wake(Wake::Appeared(id(92)));
    for n in 90..93 {
        assert_eq!(next, Some(id(n)));
        next = useless(&mut scene, id(n));
    }
}

#[test]
fn our_own_news_is_told_to_a_peer_that_the_walk_chooses_although_strangers_wait() {
    let mut scene = Scene::new(&[1]);
    let peer = scene.wake(Wake::Started).unwrap();
    for n in 90..95 {
        scene.connected.insert(id(n));
        assert_eq!(scene.wake(Wake::Appeared(id(n))), None);
    }
    assert_eq!(scene.wake(Wake::Changed), None);
    assert_eq!(useless(&mut scene, peer), Some(id(1)));
    assert_eq!(useless(&mut scene, id(1)), Some(id(90)));
}
