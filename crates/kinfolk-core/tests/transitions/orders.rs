//! What the app and the node want.

use kinfolk_core::code::Code;
use kinfolk_core::intent::Outcome;
use kinfolk_core::limits::Limits;
use kinfolk_core::peer_link::{Input, LinkEnd, Output, PeerEvent, PeerState};

use crate::scene::{Bench, SECOND, drains, ends};

#[test]
fn a_dial_that_may_be_welcomed_already_is_drained_when_the_app_or_the_node_gives_it_up() {
    for (input, code) in
        [(Input::Disconnect, Code::Cancelled), (Input::Shutdown, Code::ShuttingDown)]
    {
        let mut bench = Bench::smaller();
        bench.open(1);
        let dial = bench.greet();
        let out = bench.tell(input);
        assert!(drains(&out, dial, code), "{out:?}");
        // The welcome was on its way to the machine.
        assert_eq!(bench.welcome(dial, 50), []);
        assert_eq!(bench.link.live(), None);
        assert_eq!(bench.link.why(bench.now).closing, 1);
        // Time for the drain, and for the session's own end.
        let left = bench.link.next_timeout().unwrap().duration_since(bench.now);
        assert!(left > Limits::default().drain_deadline, "{left:?}");
        bench.end(dial, LinkEnd::Drained);
        assert_eq!(bench.link.why(bench.now).closing, 0);
    }
}

#[test]
fn a_dial_whose_hello_is_not_written_is_closed_when_the_app_or_the_node_gives_it_up() {
    for (input, code) in
        [(Input::Disconnect, Code::Cancelled), (Input::Shutdown, Code::ShuttingDown)]
    {
        let mut bench = Bench::smaller();
        bench.open(1);
        let dial = bench.dial();
        let out = bench.tell(input);
        assert!(out.contains(&Output::Close(dial, code)), "{out:?}");
    }
}

#[test]
fn a_ban_closes_a_dial_at_once_even_one_that_drains() {
    let mut bench = Bench::smaller();
    bench.open(1);
    let dial = bench.greet();
    let until = bench.now + 100 * SECOND;
    let out = bench.tell(Input::Ban { until });
    assert!(out.contains(&Output::Close(dial, Code::Banned)), "{out:?}");

    let mut bench = Bench::smaller();
    bench.open(1);
    let dial = bench.greet();
    bench.tell(Input::Disconnect);
    let out = bench.tell(Input::Ban { until });
    assert!(out.contains(&Output::Close(dial, Code::Banned)), "{out:?}");
}

#[test]
fn disconnect_ends_everything_and_drains_the_link() {
    let mut bench = Bench::smaller();
    let live = bench.live();
    let out = bench.tell(Input::Disconnect);
    assert_eq!(ends(&out), [(1000, Outcome::Cancelled)]);
    assert!(
        out.iter().any(|output| matches!(output, Output::Drain(link, ..) if *link == live)),
        "{out:?}"
    );
    assert!(!bench.link.wants_dial());
}

#[test]
fn a_ban_closes_refuses_and_ends_until_it_is_over() {
    let mut bench = Bench::smaller();
    let live = bench.live();
    let until = bench.now + 100 * SECOND;
    let out = bench.tell(Input::Ban { until });
    assert!(out.contains(&Output::Close(live, Code::Banned)), "{out:?}");
    assert_eq!(ends(&out), [(1000, Outcome::Banned)]);
    assert_eq!(ends(&bench.open(1)), [(1, Outcome::Banned)]);
    let link = bench.theirs(50, 1);
    assert!(bench.arrive(link, &[]).contains(&Output::Refuse(link, Code::Banned)));
    bench.now = until;
    assert!(bench.tell(Input::Timeout).contains(&Output::Event(PeerEvent::Unbanned)));
    assert_eq!(ends(&bench.open(2)), []);
}

#[test]
fn a_lifted_ban_is_over() {
    let mut bench = Bench::smaller();
    bench.tell(Input::Ban { until: bench.now + SECOND });
    assert!(bench.tell(Input::Unban).contains(&Output::Event(PeerEvent::Unbanned)));
    assert_eq!(bench.open(1), [Output::WantDial]);
}

#[test]
fn shutdown_ends_everything_and_refuses_what_comes() {
    let mut bench = Bench::smaller();
    let live = bench.live();
    let out = bench.tell(Input::Shutdown);
    assert_eq!(ends(&out), [(1000, Outcome::ShuttingDown)]);
    assert!(
        out.iter().any(|output| matches!(output, Output::Drain(link, ..) if *link == live)),
        "{out:?}"
    );
    assert_eq!(ends(&bench.open(1)), [(1, Outcome::ShuttingDown)]);
    let link = bench.theirs(50, 1);
    assert!(bench.arrive(link, &[]).contains(&Output::Refuse(link, Code::ShuttingDown)));
    assert!(bench.end(live, LinkEnd::Drained).contains(&Output::Forget));
}

#[test]
fn the_fifth_panic_within_ten_seconds_quarantines_the_peer_once() {
    let mut bench = Bench::smaller();
    let mut quarantines = 0;
    for n in 1..=5 {
        let link = bench.theirs(50, n);
        bench.arrive(link, &[]);
        let out = bench.end(link, LinkEnd::Panicked);
        let quarantined =
            |output: &&Output| matches!(output, Output::Event(PeerEvent::Quarantined(_)));
        quarantines += out.iter().filter(quarantined).count();
        assert_eq!(quarantines, usize::from(n == 5), "after panic {n}");
    }
    assert_eq!(bench.state(), PeerState::Banned);
}
