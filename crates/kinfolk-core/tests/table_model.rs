//! Random lives of a `PeerTable` with small caps, beside a model that a reader can check by eye: which sessions exist, which intents
//! are open, who is banned.
//!
//! The world is free: peers dial, restart, say goodbye and lie about dead links as they like; events come late, twice, or about links that
//! are long gone; the app wants and bans whomever. The driver in [`node`] carries out what the table says and compares after each step.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a test may fail this way"
)]

use kinfolk_core::code::Code;
use kinfolk_core::intent::Priority;
use kinfolk_core::limits::Limits;
use kinfolk_core::peer_link::{DialFailure, LinkEnd};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::FileFailurePersistence;

use node::Node;

#[path = "table_model/node.rs"]
mod node;

/// Peers of the node, itself included.
const PEERS: usize = 6;

/// What happens next. Peers are numbers below [`PEERS`]; sessions and intents are picked from those that exist.
#[derive(Debug, Clone)]
enum Op {
    Queue {
        peer: usize,
        hold: bool,
        priority: Priority,
        seconds: Option<u64>,
    },
    HoldAgain(Index),
    Cancel(Index),
    /// `back` tells how many dials ago the peer's own counting is; `late` that an earlier arrival is handled only now.
    Incoming {
        peer: usize,
        life: u64,
        back: u64,
        dead: Dead,
        late: bool,
    },
    Connected(Index),
    Welcomed(Index, u64),
    Goodbye(Index, Code),
    Lingered(Index, Idle),
    Ended(Index, LinkEnd),
    Stale(Index, LinkEnd),
    AddressNews(usize),
    NetworkNews,
    Disconnect(usize),
    Ban(usize, u64),
    Unban(usize),
    /// Time passes, and nobody looks at the clock yet.
    Sleep(u64),
    /// Time passes until something is due.
    Timeout,
    Shutdown,
}

/// What a hello lists as dead.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Dead {
    Nothing,
    Live,
    All,
}

/// What a session says when it is asked whether it is idle.
#[derive(Debug, Clone, Copy)]
enum Idle {
    Closed,
    InUse,
    Used { seconds_ago: u64 },
}

fn limits() -> impl Strategy<Value = Limits> {
    let counts = (1..=5_usize, 1..=3_usize, 1..=4_usize, 1..=2_usize, 1..=5_usize);
    let intents = (1..=8_usize, 1..=5_usize);
    (counts, intents, any::<bool>()).prop_map(|(counts, intents, ages)| {
        let mut limits = Limits::default();
        (
            limits.sessions,
            limits.sessions_inbound,
            limits.sessions_outbound,
            limits.dials,
            limits.peers,
        ) = counts;
        (limits.intents, limits.intents_per_peer) = intents;
        limits.session_age = ages.then(|| std::time::Duration::from_secs(40));
        assert_eq!(limits.validate(), Ok(()));
        limits
    })
}

fn end() -> impl Strategy<Value = LinkEnd> {
    let codes = [
        Code::Ok,
        Code::Duplicate,
        Code::Busy,
        Code::Banned,
        Code::NotAdmitted,
        Code::ShuttingDown,
    ];
    let failures = [
        DialFailure::NoAddress,
        DialFailure::TimedOut,
        DialFailure::WrongIdentity,
        DialFailure::SelfDial,
    ];
    prop_oneof![
        select(codes.to_vec()).prop_map(LinkEnd::ClosedByPeer),
        select(failures.to_vec()).prop_map(LinkEnd::DialFailed),
        select(vec![
            LinkEnd::Drained,
            LinkEnd::Lost,
            LinkEnd::Closed(Code::Ok),
            LinkEnd::PeerMisbehaved(Code::Violation),
            LinkEnd::Failed,
        ]),
        Just(LinkEnd::Panicked),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    // Two peers have most to do, or little would come together at any.
    let peer = || prop_oneof![1..3_usize, 0..PEERS];
    let priority = prop_oneof![1 => Just(Priority::Bulk), 3 => Just(Priority::Interactive)];
    let queue = (peer(), any::<bool>(), priority, option::of(0..40_u64))
        .prop_map(|(peer, hold, priority, seconds)| Op::Queue { peer, hold, priority, seconds });
    let dead = select(vec![Dead::Nothing, Dead::Live, Dead::All]);
    let incoming = (peer(), 1..=2_u64, select(vec![0, 0, 0, 1, 2]), dead, any::<bool>())
        .prop_map(|(peer, life, back, dead, late)| Op::Incoming { peer, life, back, dead, late });
    let code = select(vec![Code::Ok, Code::Idle, Code::Replaced, Code::ShuttingDown]);
    let idle = prop_oneof![
        Just(Idle::Closed),
        Just(Idle::InUse),
        (0..60_u64).prop_map(|seconds_ago| Idle::Used { seconds_ago }),
    ];
    let index = || any::<Index>();
    prop_oneof![
        24 => queue,
        2 => index().prop_map(Op::HoldAgain),
        6 => index().prop_map(Op::Cancel),
        20 => incoming,
        20 => index().prop_map(Op::Connected),
        20 => (index(), 1..=2_u64).prop_map(|(index, life)| Op::Welcomed(index, life)),
        4 => (index(), code).prop_map(|(index, code)| Op::Goodbye(index, code)),
        4 => (index(), idle).prop_map(|(index, idle)| Op::Lingered(index, idle)),
        16 => (index(), end()).prop_map(|(index, end)| Op::Ended(index, end)),
        2 => (index(), end()).prop_map(|(index, end)| Op::Stale(index, end)),
        2 => peer().prop_map(Op::AddressNews),
        1 => Just(Op::NetworkNews),
        3 => peer().prop_map(Op::Disconnect),
        4 => (peer(), 0..90_u64).prop_map(|(peer, seconds)| Op::Ban(peer, seconds)),
        3 => peer().prop_map(Op::Unban),
        4 => (0..20_000_u64).prop_map(Op::Sleep),
        10 => Just(Op::Timeout),
    ]
}

/// Failures are kept beside this file, so that they are tried first by everyone from then on.
fn config() -> ProptestConfig {
    ProptestConfig {
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config())]

    /// After each step: every intent is open in both or ended once; sessions are counted as they are; no cap is passed; nobody
    /// who is banned has a link; what waits has a timer.
    #[test]
    fn the_table_agrees_with_its_model_and_lets_go_of_all_once_nobody_wants_anything(
        limits in limits(),
        ops in vec(op(), 1..120),
        polite in any::<bool>(),
    ) {
        let mut node = Node::new(&limits);
        for op in ops {
            node.step(op);
        }
        node.cancel_all();
        node.wind_down(polite);
    }

    #[test]
    fn a_shutdown_at_any_moment_ends_every_intent_at_once_and_reaches_empty(
        limits in limits(),
        before in vec(op(), 0..80),
        after in vec(op(), 0..20),
        polite in any::<bool>(),
    ) {
        let mut node = Node::new(&limits);
        for op in before.into_iter().chain([Op::Shutdown]).chain(after) {
            node.step(op);
        }
        node.wind_down(polite);
    }
}
