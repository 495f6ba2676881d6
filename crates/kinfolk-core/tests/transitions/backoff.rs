//! How long a peer that is wanted is left alone.

use std::time::Duration;

use kinfolk_core::code::Code;
use kinfolk_core::intent::{Intent, IntentId, Priority, Want};
use kinfolk_core::limits::Limits;
use kinfolk_core::peer_link::{DialFailure, Input, LinkEnd, Output};

use crate::scene::{Bench, SECOND, ids};

impl Bench {
    /// Lets the next dial end like this, as soon as it is due, and returns how long the machine then waits.
    fn wait_after(&mut self, end: LinkEnd) -> Duration {
        while !self.link.wants_dial() {
            self.fire();
        }
        let link = self.greet();
        self.end(link, end);
        self.link.why(self.now).retry_in.expect("it backs off")
    }
}

#[test]
fn a_peer_that_says_that_it_is_away_for_a_moment_is_asked_again_within_five_seconds() {
    for code in [Code::ShuttingDown, Code::Draining] {
        let mut bench = Bench::smaller();
        bench.hold(1);
        for _ in 0..10 {
            assert!(bench.wait_after(LinkEnd::ClosedByPeer(code)) <= 5 * SECOND, "{code:?}");
        }
    }
}

#[test]
fn a_goodbye_of_a_peer_that_shuts_down_leaves_its_return_at_most_five_seconds_away() {
    let mut bench = Bench::smaller();
    bench.hold(1);
    for _ in 0..10 {
        while !bench.link.wants_dial() {
            bench.fire();
        }
        let link = bench.greet();
        bench.welcome(link, 50);
        bench.tell(Input::Draining { link, code: Code::ShuttingDown });
        let wait = bench.link.why(bench.now).retry_in.expect("it backs off");
        assert!(wait <= 5 * SECOND, "{wait:?}");
        bench.end(link, LinkEnd::Drained);
    }
}

#[test]
fn a_peer_that_refuses_for_want_of_room_is_left_alone_for_longer_and_longer() {
    let mut bench = Bench::smaller();
    bench.hold(1);
    let busy = LinkEnd::ClosedByPeer(Code::Busy);
    let waits: Vec<_> = (0..6).map(|_| bench.wait_after(busy)).collect();
    assert!(waits.is_sorted() && waits[5] >= 300 * SECOND, "{waits:?}");
}

#[test]
fn a_dial_that_fails_after_news_of_another_way_is_followed_by_the_next_within_a_second() {
    let mut bench = Bench::smaller();
    bench.hold(1);
    for _ in 0..5 {
        bench.wait_after(LinkEnd::Lost);
    }
    while !bench.link.wants_dial() {
        bench.fire();
    }
    let link = bench.dial();
    bench.tell(Input::AddressNews);
    bench.end(link, LinkEnd::DialFailed(DialFailure::TimedOut));
    let wait = bench.link.why(bench.now).retry_in.expect("it backs off");
    assert!(wait <= SECOND, "{wait:?}");
    assert!(bench.wait_after(LinkEnd::Lost) >= 300 * SECOND, "news is for one dial");
}

#[test]
fn news_of_the_own_network_ends_a_backoff_in_half_a_second_to_a_second_and_forgets_what_failed() {
    let mut bench = Bench::smaller();
    bench.hold(1);
    for _ in 0..6 {
        bench.wait_after(LinkEnd::Lost);
    }
    let left = |bench: &Bench| bench.link.why(bench.now).retry_in.expect("it backs off");
    assert!(left(&bench) >= 60 * SECOND);
    assert_eq!(bench.tell(Input::NetworkNews), []);
    let wait = left(&bench);
    assert!(wait >= SECOND / 2 && wait <= SECOND, "{wait:?}");
    bench.now += SECOND / 4;
    bench.tell(Input::NetworkNews);
    assert_eq!(left(&bench), wait - SECOND / 4, "news upon news waits no longer");
    bench.now += wait - SECOND / 4;
    assert_eq!(bench.fire(), [Output::WantDial]);
    assert!(bench.wait_after(LinkEnd::Lost) <= 5 * SECOND, "what failed elsewhere is forgotten");
}

#[test]
fn no_peer_is_left_alone_for_longer_than_the_app_allows() {
    let (me, peer) = ids();
    let mut limits = Limits::default();
    limits.redial_max = 8 * SECOND;
    let mut bench = Bench::new(me, peer, &limits);
    bench.hold(1);
    let waits: Vec<_> = (0..10).map(|_| bench.wait_after(LinkEnd::Lost)).collect();
    assert!(waits.iter().all(|wait| *wait <= 8 * SECOND), "{waits:?}");
}

#[test]
fn an_errand_waits_as_long_as_the_backoff_says_and_an_intent_of_the_app_does_not() {
    let mut bench = Bench::smaller();
    bench.hold(1);
    let dead = LinkEnd::DialFailed(DialFailure::TimedOut);
    for _ in 0..4 {
        bench.wait_after(dead);
    }
    let priority = Priority::default();
    let errand = Intent { id: IntentId(2), want: Want::Errand, priority, deadline: None };
    bench.tell(Input::Queue(errand));
    assert!(!bench.link.wants_dial());
    let open = Intent { id: IntentId(3), want: Want::Stream, priority, deadline: None };
    bench.tell(Input::Queue(open));
    assert!(bench.link.wants_dial());
}
