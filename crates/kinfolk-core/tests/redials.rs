//! How often a node dials a peer that it wants and that never stays, whatever that peer does instead: through the whole table, over many
//! seeds. The bounds are those of [`backoff`](kinfolk_core::backoff).

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::panic,
    reason = "a test may fail this way"
)]

use std::time::{Duration, Instant};

use iroh_base::{EndpointId, SecretKey};
use kinfolk_core::backoff::bound;
use kinfolk_core::code::Code;
use kinfolk_core::id::{Incarnation, LinkId};
use kinfolk_core::intent::{Intent, IntentId, Priority, Want};
use kinfolk_core::limits::Limits;
use kinfolk_core::peer_link::{DialFailure, Input, LinkEnd, Output};
use kinfolk_core::peer_table::PeerTable;

const SEEDS: u64 = 200;
const SECOND: Duration = Duration::from_secs(1);

/// As many as it takes until the last bound has repeated.
const ATTEMPTS: u32 = 9;

/// What the peer does with a dial.
#[derive(Debug, Clone, Copy)]
enum Peer {
    /// Its address is dead.
    Silent,
    /// It takes the connection and never answers the hello.
    Mute,
    /// The dial or the hello is answered with this end.
    Ends(LinkEnd),
    /// It welcomes the node, and is lost after so long.
    Leaves(Duration),
}

fn id(n: u64) -> EndpointId {
    let mut bytes = [7; 32];
    bytes[..8].copy_from_slice(&n.to_be_bytes());
    SecretKey::from_bytes(&bytes).public()
}

/// A node that wants one peer, and what that peer makes of it.
struct Bench {
    table: PeerTable,
    peer: EndpointId,
    now: Instant,
    arrivals: u64,
    intents: u64,
}

impl Bench {
    fn new(seed: u64) -> Self {
        let incarnation = Incarnation::new(1);
        let table = PeerTable::new(id(u64::MAX), incarnation, &Limits::default(), seed);
        // The seed of a peer's delays is mixed from that of the table and its key.
        Self { table, peer: id(seed), now: Instant::now(), arrivals: 0, intents: 0 }
    }

    fn tell(&mut self, input: Input) -> Vec<Output> {
        let mut out = Vec::new();
        self.table.handle(self.now, self.peer, input, &mut out);
        out.into_iter().map(|(_, output)| output).collect()
    }

    fn want(&mut self, want: Want) -> Vec<Output> {
        self.intents += 1;
        let (id, priority) = (IntentId(self.intents), Priority::default());
        self.tell(Input::Queue(Intent { id, want, priority, deadline: None }))
    }

    /// Lets time pass up to what is due next, but not beyond `end`.
    fn pass_time(&mut self, end: Option<Instant>) -> Vec<Output> {
        let due = self.table.next_timeout().expect("a peer that is wanted is waited for");
        self.now = end.map_or(due, |end| end.min(due)).max(self.now);
        let mut out = Vec::new();
        self.table.handle_timeout(self.now, &mut out);
        out.into_iter().map(|(_, output)| output).collect()
    }

    /// Plays the peer's part in a dial up to its end, at which the clock then stands.
    fn play(&mut self, peer: Peer, link: LinkId) {
        match peer {
            Peer::Silent => {}
            Peer::Ends(end @ LinkEnd::DialFailed(_)) => {
                self.tell(Input::Ended { link, end });
                return;
            }
            Peer::Mute | Peer::Ends(_) | Peer::Leaves(_) => {
                self.tell(Input::Connected { link });
            }
        }
        match peer {
            Peer::Silent | Peer::Mute => {
                let out = self.pass_time(None);
                let is_given_up = |output: &Output| matches!(output, Output::Close(given_up, _) | Output::Drain(given_up, ..) if *given_up == link);
                assert!(out.iter().any(is_given_up), "{out:?}");
                self.tell(Input::Ended { link, end: LinkEnd::Closed(Code::DeadlineExceeded) });
            }
            Peer::Ends(end) => {
                self.tell(Input::Ended { link, end });
            }
            Peer::Leaves(after) => {
                self.arrivals += 1;
                let (incarnation, arrival) = (Incarnation::new(9), self.arrivals);
                self.tell(Input::Welcomed { link, incarnation, arrival });
                assert_eq!(self.table.live(&self.peer), Some(link));
                self.now += after;
                self.tell(Input::Ended { link, end: LinkEnd::Lost });
            }
        }
    }

    /// The next dial that time alone brings, and how long it took.
    fn next_dial(&mut self) -> (LinkId, Duration) {
        let since = self.now;
        loop {
            if let Some(link) = dialled(&self.pass_time(None)) {
                return (link, self.now - since);
            }
        }
    }
}

fn dialled(out: &[Output]) -> Option<LinkId> {
    out.iter().find_map(|output| match output {
        Output::Dial(link) => Some(*link),
        _ => None,
    })
}

/// The delays from the end of each attempt until the next one.
fn delays(seed: u64, peer: Peer, attempts: u32) -> Vec<Duration> {
    let mut bench = Bench::new(seed);
    let mut link = dialled(&bench.want(Want::Hold)).expect("the first dial is at once");
    let mut delays = Vec::new();
    for _ in 0..attempts {
        bench.play(peer, link);
        let (next, delay) = bench.next_dial();
        delays.push(delay);
        link = next;
    }
    delays
}

fn redials_grow(peer: Peer) {
    for seed in 0..SEEDS {
        for (attempt, delay) in (0..).zip(delays(seed, peer, ATTEMPTS)) {
            let bound = bound(attempt);
            assert!(
                delay >= bound / 2 && delay <= bound,
                "{peer:?}, seed {seed}: {delay:?} after attempt {attempt}, bound {bound:?}"
            );
        }
    }
}

#[test]
fn a_peer_that_is_never_there_is_dialled_within_the_bounds_of_the_backoff() {
    redials_grow(Peer::Silent);
}

#[test]
fn a_peer_that_never_answers_the_hello_is_dialled_within_the_bounds_of_the_backoff() {
    redials_grow(Peer::Mute);
}

#[test]
fn a_peer_that_always_refuses_is_dialled_within_the_bounds_of_the_backoff() {
    redials_grow(Peer::Ends(LinkEnd::DialFailed(DialFailure::Refused)));
    for code in [Code::Busy, Code::NotAdmitted, Code::Banned, Code::Ok, Code::from_wire(200)] {
        redials_grow(Peer::Ends(LinkEnd::ClosedByPeer(code)));
    }
}

/// Whoever is away for a moment says so: it is asked again soon, until it has said so for about a minute.
#[test]
fn a_peer_that_refuses_as_it_stops_is_dialled_within_five_seconds_for_a_minute_and_then_as_any_other()
 {
    /// Delays that a minute holds at least: 1 s, and then 5 s each.
    const BRIEF: usize = 13;
    /// Delays that two minutes hold at most, 2.5 s each: at the next the peer is not believed.
    const BELIEVED_MAX: u32 = 48;
    for code in [Code::ShuttingDown, Code::Draining] {
        for seed in 0..SEEDS {
            let peer = Peer::Ends(LinkEnd::ClosedByPeer(code));
            let delays = delays(seed, peer, BELIEVED_MAX + ATTEMPTS);
            let is_of = |delay: Duration, attempt| {
                let bound = bound(attempt);
                delay >= bound / 2 && delay <= bound
            };
            let says = |from: usize| format!("{code}, seed {seed}: {:?}", &delays[from..]);
            assert!(is_of(delays[0], 0), "{}", says(0));
            let grows = delays.iter().skip(1).position(|delay| !is_of(*delay, 1));
            let grows = 1 + grows.expect("it is not believed for ever");
            let believed: Duration = delays[..grows].iter().sum();
            assert!(grows >= BRIEF && believed <= 120 * SECOND, "{}", says(0));
            for (attempt, delay) in (2..).zip(&delays[grows..]) {
                assert!(is_of(*delay, attempt), "after {grows}: {}", says(grows));
            }
        }
    }
}

#[test]
fn a_peer_that_always_breaks_the_protocol_is_dialled_within_the_bounds_of_the_backoff() {
    redials_grow(Peer::Ends(LinkEnd::PeerMisbehaved(Code::Violation)));
    redials_grow(Peer::Ends(LinkEnd::Failed));
}

#[test]
fn a_peer_that_welcomes_and_leaves_at_once_is_dialled_within_the_bounds_of_the_backoff() {
    redials_grow(Peer::Leaves(Duration::ZERO));
    redials_grow(Peer::Leaves(SECOND));
    redials_grow(Peer::Leaves(Limits::default().stable_after - Duration::from_millis(1)));
}

#[test]
fn only_a_peer_that_stayed_long_enough_is_dialled_as_if_it_had_never_failed() {
    for seed in 0..SEEDS {
        for delay in delays(seed, Peer::Leaves(Limits::default().stable_after), ATTEMPTS) {
            assert!(delay >= bound(0) / 2 && delay <= bound(0), "seed {seed}: {delay:?}");
        }
    }
}

/// Dials of a peer that refuses each, within an hour in which the app asks for it so often.
fn dials_in_an_hour(seed: u64, ask_every: Option<Duration>) -> usize {
    let mut bench = Bench::new(seed);
    let end = bench.now + 3600 * SECOND;
    let mut ask_at = ask_every.map(|every| bench.now + every);
    let (mut dials, mut out) = (0, bench.want(Want::Hold));
    loop {
        if let Some(link) = dialled(&out) {
            dials += 1;
            // A refusal of which no stream hears, so that those that wait stay.
            bench.play(Peer::Ends(LinkEnd::DialFailed(DialFailure::Refused)), link);
        }
        if bench.now >= end {
            return dials;
        }
        out = match ask_at {
            Some(at) if bench.table.next_timeout().is_none_or(|due| due > at) => {
                bench.now = at.max(bench.now);
                ask_at = ask_every.map(|every| bench.now + every);
                let out = bench.want(Want::Stream);
                let mut ended = Vec::new();
                bench.table.cancel(bench.now, IntentId(bench.intents), &mut ended);
                out
            }
            _ => bench.pass_time(Some(end)),
        };
    }
}

#[test]
fn an_app_that_asks_all_the_time_at_most_doubles_the_dials_of_a_peer_that_refuses() {
    // 0.5 + 2.5 + 7.5 + 30 + 90 s at least until the last bound, and 300 s at least from then on.
    const MOST: usize = 6 + 3600 / 300;
    for seed in 0..SEEDS {
        let alone = dials_in_an_hour(seed, None);
        assert!((9..=MOST).contains(&alone), "seed {seed}: {alone} dials");
        let asked = dials_in_an_hour(seed, Some(SECOND));
        assert!(asked > alone && asked <= 2 * MOST, "seed {seed}: {asked} dials, {alone} alone");
    }
}
