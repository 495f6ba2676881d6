//! What is remembered.

use kinfolk_core::id::LinkId;
use kinfolk_core::peer_link::{Input, LinkEnd, Output};

use crate::scene::Bench;

#[test]
fn a_peer_is_remembered_for_a_while_and_then_forgotten() {
    let mut bench = Bench::smaller();
    let link = bench.theirs(50, 1);
    bench.arrive(link, &[]);
    bench.end(link, LinkEnd::Lost);
    while !bench.link.is_memory() {
        bench.fire();
    }
    let mut out = Vec::new();
    while !out.contains(&Output::Forget) {
        out = bench.fire();
    }
}

#[test]
fn no_more_than_eight_dead_links_are_listed_newest_last() {
    let mut bench = Bench::smaller();
    bench.hold(1);
    for _ in 0..12 {
        while !bench.link.wants_dial() {
            bench.fire();
        }
        let link = bench.greet();
        bench.end(link, LinkEnd::Lost);
    }
    while !bench.link.wants_dial() {
        bench.fire();
    }
    let link = bench.dial();
    let out = bench.tell(Input::Connected { link });
    let listed = out.iter().find_map(|output| match output {
        Output::Greet(_, dead) => Some(dead.clone()),
        _ => None,
    });
    let expected: Vec<LinkId> = (5..=12).map(|n| bench.ours(n)).collect();
    assert_eq!(listed, Some(expected));
}
