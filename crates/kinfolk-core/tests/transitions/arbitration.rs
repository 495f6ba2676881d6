//! Arbitration.

use kinfolk_core::code::Code;
use kinfolk_core::peer_link::{Incoming, Input, LinkEnd, Output};

use crate::scene::{Bench, drains, hands};

#[test]
fn an_incoming_link_is_taken_when_there_is_no_other() {
    let mut bench = Bench::smaller();
    let link = bench.theirs(50, 1);
    let out = bench.arrive(link, &[]);
    assert_eq!(out[..2], [Output::Admit(link), Output::Publish(link)]);
    assert_eq!(bench.link.live(), Some(link));
}

#[test]
fn a_dial_whose_hello_is_not_written_gives_way() {
    for mut bench in [Bench::smaller(), Bench::larger()] {
        bench.open(1);
        let dial = bench.dial();
        let link = bench.theirs(50, 1);
        let out = bench.arrive(link, &[]);
        assert!(out.contains(&Output::Close(dial, Code::Duplicate)), "{out:?}");
        assert_eq!(hands(&out), [(link, 1)]);
    }
}

#[test]
fn the_smaller_side_yields_and_waits_for_the_verdict_on_its_dial() {
    let mut bench = Bench::smaller();
    bench.hold(1);
    let dial = bench.greet();
    let link = bench.theirs(50, 1);
    let out = bench.arrive(link, &[]);
    assert!(out.contains(&Output::Admit(link)), "{out:?}");
    assert!(!out.iter().any(|output| matches!(output, Output::Close(..))), "{out:?}");
    bench.end(dial, LinkEnd::ClosedByPeer(Code::Duplicate));
    assert_eq!(bench.link.live(), Some(link));
}

#[test]
fn a_yielded_dial_that_is_welcomed_after_all_becomes_live() {
    let mut bench = Bench::smaller();
    bench.hold(1);
    let dial = bench.greet();
    let link = bench.theirs(50, 1);
    bench.arrive(link, &[]);
    let out = bench.welcome(dial, 50);
    assert_eq!(bench.link.live(), Some(dial));
    assert!(out.contains(&Output::Unpublish(link)), "{out:?}");
}

#[test]
fn the_larger_side_parks_and_refuses_once_its_dial_is_welcomed() {
    let mut bench = Bench::larger();
    bench.hold(1);
    let dial = bench.greet();
    let link = bench.theirs(50, 1);
    assert_eq!(bench.arrive(link, &[]), [Output::Park(link)]);
    let out = bench.welcome(dial, 50);
    assert!(out.contains(&Output::Close(link, Code::Duplicate)), "{out:?}");
    assert_eq!(bench.link.live(), Some(dial));
}

#[test]
fn the_larger_side_welcomes_what_it_parked_when_its_dial_fails() {
    let mut bench = Bench::larger();
    bench.hold(1);
    let dial = bench.greet();
    let link = bench.theirs(50, 1);
    bench.arrive(link, &[]);
    let out = bench.end(dial, LinkEnd::Lost);
    assert!(out.contains(&Output::Welcome(link)), "{out:?}");
    assert_eq!(bench.link.live(), Some(link));
}

#[test]
fn the_larger_side_takes_an_incoming_link_that_lists_its_dial_as_dead() {
    let mut bench = Bench::larger();
    bench.hold(1);
    let dial = bench.greet();
    let link = bench.theirs(50, 1);
    let out = bench.arrive(link, &[dial]);
    assert!(out.contains(&Output::Admit(link)), "{out:?}");
    // The peer may have welcomed it, and drain it: the goodbye may come after the new hello.
    assert!(drains(&out, dial, Code::Duplicate), "{out:?}");
    assert_eq!(bench.link.live(), Some(link));
}

#[test]
fn the_larger_side_takes_the_link_of_a_restarted_peer() {
    let mut bench = Bench::larger();
    let live = bench.live();
    bench.end(live, LinkEnd::Lost);
    bench.open(1);
    bench.greet();
    let link = bench.theirs(51, 1);
    let out = bench.arrive(link, &[]);
    assert!(out.contains(&Output::Admit(link)), "{out:?}");
}

#[test]
fn only_the_latest_dial_of_a_peer_stays_parked() {
    let mut bench = Bench::larger();
    bench.hold(1);
    bench.greet();
    let (first, second) = (bench.theirs(50, 1), bench.theirs(50, 2));
    bench.arrive(first, &[]);
    let out = bench.arrive(second, &[]);
    assert!(out.contains(&Output::Park(second)), "{out:?}");
    assert!(out.contains(&Output::Close(first, Code::Duplicate)), "{out:?}");
}

#[test]
fn a_live_link_stays_when_a_duplicate_arrives() {
    for mut bench in [Bench::smaller(), Bench::larger()] {
        let live = bench.live();
        let link = bench.theirs(50, 1);
        let out = bench.arrive(link, &[]);
        assert!(out.contains(&Output::Refuse(link, Code::Duplicate)), "{out:?}");
        assert_eq!(bench.link.live(), Some(live));
    }
}

#[test]
fn a_restarted_peer_replaces_its_dead_link_at_once() {
    let mut bench = Bench::smaller();
    let live = bench.live();
    let link = bench.theirs(51, 1);
    let out = bench.arrive(link, &[]);
    assert!(out.contains(&Output::Close(live, Code::Replaced)), "{out:?}");
    assert_eq!(bench.link.live(), Some(link));
}

#[test]
fn a_link_that_the_peer_lists_as_dead_is_replaced_and_drained() {
    let mut bench = Bench::smaller();
    let live = bench.live();
    let link = bench.theirs(50, 1);
    let out = bench.arrive(link, &[live]);
    assert!(
        out.iter().any(|output| matches!(output, Output::Drain(old, ..) if *old == live)),
        "{out:?}"
    );
    assert_eq!(bench.link.live(), Some(link));
}

#[test]
fn of_two_dials_of_one_process_the_later_wins_whatever_the_order() {
    let mut bench = Bench::smaller();
    let (first, second) = (bench.theirs(50, 1), bench.theirs(50, 2));
    bench.arrive(first, &[]);
    bench.arrive(second, &[]);
    assert_eq!(bench.link.live(), Some(second));

    let mut bench = Bench::smaller();
    bench.arrive(second, &[]);
    let out = bench.arrive(first, &[]);
    assert!(out.contains(&Output::Refuse(first, Code::Duplicate)), "{out:?}");
}

#[test]
fn a_hello_that_waited_does_not_displace_a_younger_process() {
    let mut bench = Bench::smaller();
    let old = bench.theirs(50, 9);
    let incoming = Incoming { link: old, dead: vec![], arrival: 1 };
    bench.arrivals = 1;
    let new = bench.theirs(51, 1);
    bench.arrive(new, &[]);
    let out = bench.tell(Input::Incoming { incoming, room: true });
    assert!(out.contains(&Output::Refuse(old, Code::Duplicate)), "{out:?}");
    assert_eq!(bench.link.live(), Some(new));
}

#[test]
fn a_peer_may_not_use_a_link_id_twice_or_speak_for_another() {
    let mut bench = Bench::smaller();
    let link = bench.theirs(50, 1);
    bench.arrive(link, &[]);
    assert!(bench.arrive(link, &[]).contains(&Output::Refuse(link, Code::Violation)));
    let foreign = bench.ours(9);
    assert!(bench.arrive(foreign, &[]).contains(&Output::Refuse(foreign, Code::Violation)));
}

#[test]
fn without_room_a_new_session_is_refused_as_busy() {
    let mut bench = Bench::smaller();
    let link = bench.theirs(50, 1);
    let incoming = Incoming { link, dead: vec![], arrival: 1 };
    let out = bench.tell(Input::Incoming { incoming, room: false });
    assert!(out.contains(&Output::Refuse(link, Code::Busy)), "{out:?}");
}
