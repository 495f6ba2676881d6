//! Each transition of a peer's machine, in the order of the tables on `peer_link`'s page.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::panic,
    reason = "a test may fail this way"
)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use iroh_base::{EndpointId, SecretKey};
use kinfolk_core::code::Code;
use kinfolk_core::id::{Incarnation, LinkId};
use kinfolk_core::intent::{Failure, Intent, IntentId, Outcome, Priority, Want};
use kinfolk_core::limits::Limits;
use kinfolk_core::peer_link::{
    DialFailure, DownReason, Incoming, Input, Linger, LinkEnd, Output, PeerEvent, PeerLink,
    PeerState, Rules,
};

const SECOND: Duration = Duration::from_secs(1);

/// A machine, its clock, and short ways to talk to it.
struct Bench {
    link: PeerLink,
    me: EndpointId,
    peer: EndpointId,
    now: Instant,
    arrivals: u64,
    dials: u64,
}

/// Two ids, the smaller first.
fn ids() -> (EndpointId, EndpointId) {
    let id = |n| SecretKey::from_bytes(&[n; 32]).public();
    if id(1) < id(2) { (id(1), id(2)) } else { (id(2), id(1)) }
}

impl Bench {
    /// A machine whose own id is the smaller one.
    fn smaller() -> Self {
        let (me, peer) = ids();
        Self::new(me, peer, &Limits::default())
    }

    /// A machine whose own id is the larger one.
    fn larger() -> Self {
        let (peer, me) = ids();
        Self::new(me, peer, &Limits::default())
    }

    fn new(me: EndpointId, peer: EndpointId, limits: &Limits) -> Self {
        let rules = Arc::new(Rules::from(limits));
        let link = PeerLink::new(me, Incarnation::new(1), peer, rules, 7);
        Self { link, me, peer, now: Instant::now(), arrivals: 0, dials: 0 }
    }

    fn tell(&mut self, input: Input) -> Vec<Output> {
        let mut out = Vec::new();
        self.link.handle(self.now, input, &mut out);
        out
    }

    fn open(&mut self, id: u64) -> Vec<Output> {
        self.open_until(id, None)
    }

    fn open_until(&mut self, id: u64, deadline: Option<Instant>) -> Vec<Output> {
        let priority = Priority::default();
        let intent = Intent { id: IntentId(id), want: Want::Stream, priority, deadline };
        self.tell(Input::Queue(intent))
    }

    fn hold(&mut self, id: u64) -> Vec<Output> {
        let priority = Priority::default();
        let intent = Intent { id: IntentId(id), want: Want::Hold, priority, deadline: None };
        self.tell(Input::Queue(intent))
    }

    fn theirs(&self, incarnation: u64, n: u64) -> LinkId {
        LinkId { dialler: self.peer, incarnation: Incarnation::new(incarnation), n }
    }

    fn ours(&self, n: u64) -> LinkId {
        LinkId { dialler: self.me, incarnation: Incarnation::new(1), n }
    }

    fn arrive(&mut self, link: LinkId, dead: &[LinkId]) -> Vec<Output> {
        self.arrivals += 1;
        let incoming = Incoming { link, dead: dead.to_vec(), arrival: self.arrivals };
        self.tell(Input::Incoming { incoming, room: true })
    }

    /// Lets the waiting dial start and returns its link.
    fn dial(&mut self) -> LinkId {
        assert!(self.link.wants_dial(), "no dial is wanted: {:?}", self.link.why(self.now));
        self.dials += 1;
        let link = self.ours(self.dials);
        assert_eq!(self.tell(Input::Granted { n: self.dials }), [Output::Dial(link)]);
        link
    }

    /// A dial whose hello is written.
    fn greet(&mut self) -> LinkId {
        let link = self.dial();
        let out = self.tell(Input::Connected { link });
        assert!(
            out.iter()
                .any(|output| matches!(output, Output::Greet(greeted, _) if *greeted == link))
        );
        link
    }

    fn welcome(&mut self, link: LinkId, incarnation: u64) -> Vec<Output> {
        self.arrivals += 1;
        let incarnation = Incarnation::new(incarnation);
        self.tell(Input::Welcomed { link, incarnation, arrival: self.arrivals })
    }

    /// A live link that this side dialled for a hold.
    fn live(&mut self) -> LinkId {
        self.hold(1000);
        let link = self.greet();
        self.welcome(link, 50);
        assert_eq!(self.link.live(), Some(link));
        link
    }

    fn end(&mut self, link: LinkId, end: LinkEnd) -> Vec<Output> {
        self.tell(Input::Ended { link, end })
    }

    fn state(&self) -> PeerState {
        self.link.why(self.now).state
    }

    /// Moves the clock to the next timeout and fires it.
    fn fire(&mut self) -> Vec<Output> {
        self.now = self.now.max(self.link.next_timeout().unwrap());
        self.tell(Input::Timeout)
    }
}

fn ends(out: &[Output]) -> Vec<(u64, Outcome)> {
    let end = |output: &Output| match output {
        Output::End(id, outcome, _) => Some((id.0, *outcome)),
        _ => None,
    };
    out.iter().filter_map(end).collect()
}

/// Whether the link is drained with this code, and given all the time that it may take.
fn drains(out: &[Output], link: LinkId, code: Code) -> bool {
    out.contains(&Output::Drain(link, code, Limits::default().drain_deadline))
}

fn hands(out: &[Output]) -> Vec<(LinkId, u64)> {
    let hand = |output: &Output| match output {
        Output::Hand(link, id) => Some((*link, id.0)),
        _ => None,
    };
    out.iter().filter_map(hand).collect()
}

// Intents and dials

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

// Arbitration

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

// Live links

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

// Wishes

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

// Memory

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
