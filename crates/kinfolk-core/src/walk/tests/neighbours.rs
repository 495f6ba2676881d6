//! Walks of a node with neighbours.

use super::*;

/// A walk with four neighbours among many peers, past its first visit.
fn among_neighbours(seed: u8) -> Scene {
    let mut scene = Scene::with(WalkLimits::default(), seed, &[1]);
    scene.know(1..200);
    let peer = scene.wake(Wake::Started).unwrap();
    scene.end(peer, 10, &[]);
    scene.neighbours = (10..14).map(id).collect();
    scene
}

#[test]
fn all_but_one_visit_in_four_go_to_neighbours_while_any_is_due() {
    let mut to_neighbours = 0;
    for seed in 0..200 {
        let mut scene = among_neighbours(seed);
        let next = scene.wait();
        to_neighbours += usize::from(scene.neighbours.contains(&next));
    }
    assert!((130..170).contains(&to_neighbours), "{to_neighbours} of 200");
}

#[test]
fn neighbours_that_have_told_all_stand_for_visits_without_news() {
    let mut dials = 0;
    for seed in 0..50 {
        let mut scene = among_neighbours(seed);
        let until = scene.now + Duration::from_secs(2);
        let visits = scene.visits(None, until, useless);
        let to_neighbours =
            visits.iter().filter(|(_, peer)| scene.neighbours.contains(peer)).count();
        assert!(to_neighbours <= 4);
        dials += visits.len() - to_neighbours;
    }
    // Without neighbours it would be eight each.
    assert!((50..200).contains(&dials), "{dials} in 50 walks");
}

#[test]
fn much_news_is_worth_a_dial_although_neighbours_have_told_all() {
    let mut scene = among_neighbours(1);
    let until = scene.now + Duration::from_millis(200);
    let visits = scene.visits(None, until, |scene, peer| scene.end(peer, 10, &[]));
    let dials = visits.iter().filter(|(_, peer)| !scene.neighbours.contains(peer)).count();
    assert!(dials >= 8, "{dials} of {}", visits.len());
}

#[test]
fn a_neighbour_that_has_called_is_due_once_there_was_news() {
    let visited = |is_news_later: bool| {
        let mut visited = 0;
        for seed in 0..100 {
            let mut scene = among_neighbours(seed);
            scene.neighbours = vec![id(10)];
            scene.walk.level = 1;
            scene.say(Input::Told { by: Some(id(10)), learnt: 1 });
            scene.now += MILLI;
            if is_news_later {
                scene.say(Input::Told { by: Some(id(99)), learnt: 1 });
            }
            let next = scene.walk.visiting().unwrap_or_else(|| scene.wait());
            visited += usize::from(next == id(10));
        }
        visited
    };
    assert!(visited(false) <= 5, "{}", visited(false));
    assert!(visited(true) >= 60, "{}", visited(true));
}

#[test]
fn a_silent_neighbour_is_not_preferred() {
    let mut scene = among_neighbours(3);
    scene.neighbours = vec![id(10)];
    scene.wake(Wake::Appeared(id(10)));
    scene.fail(id(10));
    let until = scene.now + Duration::from_secs(2);
    let visits = scene.visits(None, until, useless);
    assert!(visits.len() >= 4, "{}", visits.len());
}

#[test]
fn a_walk_at_rest_that_has_not_met_enough_peers_goes_on_to_meet_them() {
    let mut abroad = 0;
    for seed in 0..100 {
        let mut scene = among_neighbours(seed);
        scene.walk.level = 12;
        scene.now += HOUR;
        let next = scene.say(Input::Timeout).unwrap();
        abroad += usize::from(!scene.neighbours.contains(&next));
    }
    assert!(abroad >= 85, "{abroad} of 100");
}

#[test]
fn whoever_crowds_around_a_node_gets_no_more_than_three_visits_in_four() {
    let mut scene = Scene::careless(&[1]);
    scene.know(1..200);
    scene.prove(1..200);
    let first = scene.wake(Wake::Started);
    let until = scene.now + HOUR;
    let visits = scene.visits(first, until, useless);
    assert!(visits.len() >= ENOUGH);
    scene.neighbours = (200..205).map(id).collect();
    let until = scene.now + 100 * HOUR;
    let visits = scene.visits(None, until, useless);
    let abroad = visits.iter().filter(|(_, peer)| !scene.neighbours.contains(peer)).count();
    assert!(abroad * 5 >= visits.len(), "{abroad} of {}", visits.len());
}
