//! Intents and dials.

use kinfolk_core::code::Code;
use kinfolk_core::intent::{Failure, Intent, IntentId, Outcome, Priority, Want};
use kinfolk_core::limits::Limits;
use kinfolk_core::peer_link::{DialFailure, Input, LinkEnd, Output, PeerEvent, PeerState};

use crate::scene::{Bench, SECOND, drains, ends, hands, ids};

#[test]
fn intents_for_an_unknown_peer_share_one_dial_and_go_out_behind_its_hello() {
    let mut bench = Bench::smaller();
    assert_eq!(bench.open(1), [Output::WantDial]);
    assert_eq!(bench.open(2), []);
    assert_eq!(bench.state(), PeerState::Waiting);
    let link = bench.dial();
    assert_eq!(bench.state(), PeerState::Connecting);
    let out = bench.tell(Input::Connected { link });
    assert_eq!(hands(&out), [(link, 1), (link, 2)]);
    assert_eq!(hands(&bench.open(3)), [(link, 3)]);
    assert_eq!(bench.state(), PeerState::Greeting);
}

#[test]
fn a_peer_that_never_answers_a_hello_was_missed_and_one_that_refuses_it_was_not() {
    let misses = |out: &[Output]| {
        let ends = out.iter().filter_map(|output| match output {
            Output::Event(PeerEvent::DialFailed(_, end, _)) => Some(end.is_miss()),
            _ => None,
        });
        ends.collect::<Vec<_>>()
    };
    let mut bench = Bench::smaller();
    bench.hold(1);
    bench.greet();
    assert_eq!(misses(&bench.fire()), [true]);
    let mut bench = Bench::smaller();
    bench.hold(1);
    let link = bench.greet();
    assert_eq!(misses(&bench.end(link, LinkEnd::ClosedByPeer(Code::Busy))), [false]);
}

#[test]
fn a_higher_priority_goes_first_and_equals_in_their_order() {
    let mut bench = Bench::smaller();
    for (id, priority) in [
        (1, Priority::Bulk),
        (2, Priority::Interactive),
        (3, Priority::Control),
        (4, Priority::Control),
    ] {
        let intent = Intent { id: IntentId(id), want: Want::Stream, priority, deadline: None };
        bench.tell(Input::Queue(intent));
    }
    let link = bench.dial();
    let out = bench.tell(Input::Connected { link });
    let order: Vec<u64> = hands(&out).into_iter().map(|(_, id)| id).collect();
    assert_eq!(order, [3, 4, 2, 1]);
}

#[test]
fn a_cancelled_intent_ends_once_and_takes_the_waiting_dial_with_it() {
    let mut bench = Bench::smaller();
    bench.open(1);
    let out = bench.tell(Input::Cancel(IntentId(1)));
    assert_eq!(ends(&out), [(1, Outcome::Cancelled)]);
    assert!(!bench.link.wants_dial());
    assert_eq!(ends(&bench.tell(Input::Cancel(IntentId(1)))), []);
}

#[test]
fn an_intent_ends_at_its_deadline_with_what_was_last_wrong() {
    let mut bench = Bench::smaller();
    let deadline = bench.now + 60 * SECOND;
    bench.open_until(1, Some(deadline));
    let link = bench.dial();
    let failed = LinkEnd::DialFailed(DialFailure::TimedOut);
    bench.end(link, failed);
    bench.now = deadline;
    let out = bench.tell(Input::Timeout);
    assert!(out.contains(&Output::End(IntentId(1), Outcome::TimedOut, Some(failed))), "{out:?}");
}

#[test]
fn a_full_queue_refuses_at_once() {
    let mut limits = Limits::default();
    limits.intents_per_peer = 2;
    let (me, peer) = ids();
    let mut bench = Bench::new(me, peer, &limits);
    bench.open(1);
    bench.open(2);
    assert_eq!(ends(&bench.open(3)), [(3, Outcome::Failed(Failure::QueueFull))]);
}

#[test]
fn a_node_does_not_dial_itself() {
    let (me, _) = ids();
    let mut bench = Bench::new(me, me, &Limits::default());
    assert_eq!(ends(&bench.open(1)), [(1, Outcome::Failed(Failure::SelfDial))]);
}

#[test]
fn a_failed_dial_is_tried_again_after_a_backoff_that_only_one_new_intent_cuts_short() {
    let mut bench = Bench::smaller();
    bench.open(1);
    let link = bench.dial();
    bench.end(link, LinkEnd::DialFailed(DialFailure::TimedOut));
    assert_eq!(bench.state(), PeerState::BackingOff);
    assert_eq!(bench.open(2), [Output::WantDial]);
    let link = bench.dial();
    bench.end(link, LinkEnd::DialFailed(DialFailure::TimedOut));
    assert_eq!(bench.open(3), []);
    assert_eq!(bench.state(), PeerState::BackingOff);
    assert!(bench.fire().contains(&Output::WantDial));
}

#[test]
fn news_of_an_address_ends_a_backoff() {
    let mut bench = Bench::smaller();
    bench.hold(1);
    let link = bench.dial();
    bench.end(link, LinkEnd::DialFailed(DialFailure::NoAddress));
    assert_eq!(bench.tell(Input::AddressNews), [Output::WantDial]);
}

#[test]
fn failures_that_waiting_cannot_mend_end_streams_but_not_holds() {
    for (failure, outcome) in [
        (DialFailure::NoAddress, Failure::NoAddress),
        (DialFailure::NoCommonProtocol, Failure::NoCommonProtocol),
        (DialFailure::WrongIdentity, Failure::WrongIdentity),
    ] {
        let mut bench = Bench::smaller();
        bench.open(1);
        bench.hold(2);
        let link = bench.dial();
        let out = bench.end(link, LinkEnd::DialFailed(failure));
        assert_eq!(ends(&out), [(1, Outcome::Failed(outcome))]);
        assert_eq!(bench.link.why(bench.now).holds, 1);
    }
}

#[test]
fn a_peer_that_bans_us_ends_streams_and_a_busy_one_does_not() {
    for (code, ended) in [
        (Code::Banned, vec![(1, Outcome::Refused(Code::Banned))]),
        (Code::NotAdmitted, vec![(1, Outcome::Refused(Code::NotAdmitted))]),
        (Code::Busy, vec![]),
        (Code::ShuttingDown, vec![]),
    ] {
        let mut bench = Bench::smaller();
        bench.open(1);
        let link = bench.dial();
        let out = bench.end(link, LinkEnd::ClosedByPeer(code));
        assert_eq!(ends(&out), ended, "{code}");
    }
}

#[test]
fn a_dial_that_never_connects_is_given_up_at_its_deadline() {
    let mut bench = Bench::smaller();
    bench.open(1);
    let link = bench.dial();
    let out = bench.fire();
    assert!(out.contains(&Output::Close(link, Code::DeadlineExceeded)), "{out:?}");
    assert!(bench.link.why(bench.now).retry_in.is_some());
}

#[test]
fn a_hello_that_is_never_answered_is_given_up_and_listed_as_dead() {
    let mut bench = Bench::smaller();
    bench.hold(1);
    let link = bench.greet();
    let out = bench.fire();
    assert!(drains(&out, link, Code::HelloTimeout), "{out:?}");
    bench.end(link, LinkEnd::Closed(Code::HelloTimeout));
    while !bench.link.wants_dial() {
        bench.fire();
    }
    let next = bench.dial();
    let out = bench.tell(Input::Connected { link: next });
    assert!(out.contains(&Output::Greet(next, vec![link])), "{out:?}");
}
