//! Live links.

use kinfolk_core::code::Code;
use kinfolk_core::id::Incarnation;
use kinfolk_core::intent::IntentId;
use kinfolk_core::limits::Limits;
use kinfolk_core::peer_link::{DownReason, Input, Linger, LinkEnd, Output, PeerEvent, PeerState};

use crate::scene::{Bench, SECOND, ids};

#[test]
fn a_lost_link_is_dialled_again_for_a_hold_after_a_first_short_delay() {
    let mut bench = Bench::smaller();
    let live = bench.live();
    let out = bench.end(live, LinkEnd::Lost);
    let down = PeerEvent::Down(live, DownReason::Ended(LinkEnd::Lost));
    assert!(out.contains(&Output::Event(down)), "{out:?}");
    assert!(bench.link.why(bench.now).retry_in.unwrap() <= SECOND);
    assert!(bench.fire().contains(&Output::WantDial));
}

#[test]
fn only_a_link_that_lived_resets_the_backoff() {
    let mut bench = Bench::smaller();
    let live = bench.live();
    bench.end(live, LinkEnd::Lost);
    bench.fire();
    let short = bench.greet();
    bench.welcome(short, 50);
    bench.end(short, LinkEnd::Lost);
    assert_eq!(bench.link.why(bench.now).attempts, 2);
    bench.fire();
    let long = bench.greet();
    bench.welcome(long, 50);
    bench.now += 16 * SECOND;
    bench.end(long, LinkEnd::Lost);
    assert_eq!(bench.link.why(bench.now).attempts, 1);
}

#[test]
fn a_goodbye_of_the_peer_ends_the_live_link_and_the_next_intent_dials_anew() {
    let mut bench = Bench::smaller();
    let link = bench.theirs(50, 1);
    bench.arrive(link, &[]);
    let out = bench.tell(Input::Draining { link, code: Code::Idle });
    assert!(out.contains(&Output::Unpublish(link)), "{out:?}");
    assert_eq!(bench.state(), PeerState::Draining);
    assert_eq!(bench.open(1), [Output::WantDial]);
}

#[test]
fn an_idle_link_is_closed_after_the_linger_time_and_a_used_one_is_not() {
    let mut bench = Bench::smaller();
    let link = bench.theirs(50, 1);
    bench.arrive(link, &[]);
    let linger = Limits::default().linger;
    assert_eq!(bench.fire(), [Output::CloseIfIdle(link, linger)]);
    bench.tell(Input::Lingered { link, linger: Linger::InUse });
    assert_eq!(bench.link.next_timeout(), Some(bench.now + linger));
    let used = bench.now - 10 * SECOND;
    bench.fire();
    bench.tell(Input::Lingered { link, linger: Linger::UsedAt(used + linger) });
    assert_eq!(bench.link.next_timeout(), Some(used + linger + linger));
    bench.fire();
    let out = bench.tell(Input::Lingered { link, linger: Linger::Closed });
    assert!(out.iter().any(|output| matches!(output, Output::Drain(_, Code::Idle, _))), "{out:?}");
}

#[test]
fn a_held_link_does_not_linger_and_the_peer_is_told_of_the_hold() {
    let mut bench = Bench::smaller();
    let link = bench.theirs(50, 1);
    bench.arrive(link, &[]);
    assert_eq!(bench.hold(1), [Output::Keep(link, true)]);
    assert_eq!(bench.link.next_timeout(), None);
    let out = bench.tell(Input::Cancel(IntentId(1)));
    assert!(out.contains(&Output::Keep(link, false)), "{out:?}");
    assert!(bench.link.next_timeout().is_some());
}

#[test]
fn a_link_past_its_age_is_drained_and_dialled_anew_if_held() {
    let mut limits = Limits::default();
    limits.session_age = Some(100 * SECOND);
    let (me, peer) = ids();
    let mut bench = Bench::new(me, peer, &limits);
    let live = bench.live();
    bench.now += 100 * SECOND;
    let out = bench.tell(Input::Timeout);
    assert!(
        out.iter().any(|output| matches!(output, Output::Drain(link, ..) if *link == live)),
        "{out:?}"
    );
    assert!(bench.link.wants_dial() || bench.link.why(bench.now).retry_in.is_some());
}

#[test]
fn a_session_that_does_not_end_in_time_is_killed() {
    let mut bench = Bench::smaller();
    let live = bench.live();
    bench.tell(Input::Disconnect);
    let out = bench.fire();
    assert!(out.contains(&Output::Kill(live)), "{out:?}");
    bench.end(live, LinkEnd::Failed);
    assert_eq!(bench.link.why(bench.now).closing, 0);
}

#[test]
fn an_event_about_an_unknown_link_changes_nothing() {
    let mut bench = Bench::smaller();
    bench.live();
    let stale = bench.ours(77);
    let before = bench.link.clone();
    let inputs = [
        Input::Connected { link: stale },
        Input::Welcomed { link: stale, incarnation: Incarnation::new(50), arrival: 99 },
        Input::Draining { link: stale, code: Code::Ok },
        Input::Lingered { link: stale, linger: Linger::Closed },
        Input::Ended { link: stale, end: LinkEnd::Lost },
    ];
    for input in inputs {
        assert_eq!(bench.tell(input.clone()), [], "{input:?}");
        assert_eq!(bench.link, before, "{input:?}");
    }
}
