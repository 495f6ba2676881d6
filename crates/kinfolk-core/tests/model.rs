//! The production machines in every interleaving of small stories, and in random ones of long stories with many faults.
//!
//! Tables of peers are driven as the PeerManager does; `model/` plays the managers, sessions, Accept and the network, which does its worst.
//! Stories are searched by stateright; what is promised is in `model/promise.rs`, and a broken promise is printed with a shortest way to it.
//!
//! In debug the short stories run; an optimised build runs the long ones too; the deep search runs when it is asked for. `docs/testing.md`
//! has the commands. `KINFOLK_SEEDS` says how many seeds random runs try; `KINFOLK_SEED` tries that one alone.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::panic,
    reason = "a test may fail this way"
)]

#[path = "model/mod.rs"]
mod model;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use model::chaos::{self, Tally};
use model::name::Side;
use model::promise::Promise;
use model::search::{Bounds, Found, search};
use model::step::{Step, Variant};
use model::story::{Demand, Faults, NO_FAULTS, Story};

/// Far more than any story here needs, on a busy machine as well; the searches end by themselves.
const AMPLE: Bounds = Bounds { time: Duration::from_secs(600), steps: 100_000_000 };

/// What a story of the deep search gets: time, and about 16 GB of memory.
const DEEP: Bounds = Bounds { time: Duration::from_secs(60), steps: 12_000_000 };

/// Random runs unless the environment says otherwise: a second in debug.
const SEEDS: u64 = 1000;

use Side::{A, B, C};

fn hold_both() -> Story {
    Story::of([vec![Step::Hold(A, B)], vec![Step::Hold(B, A)]])
}

fn open_both() -> Story {
    Story::of([vec![Step::Open(A, B, None)], vec![Step::Open(B, A, None)]])
}

fn hold_from(side: Side) -> Story {
    from(Step::Hold(side, side.other()))
}

fn open_from(side: Side) -> Story {
    from(Step::Open(side, side.other(), None))
}

/// One wish of one side.
fn from(wish: Step) -> Story {
    let mut story = Story::of([vec![], vec![]]);
    let (Step::Hold(side, _) | Step::Open(side, ..)) = &wish else { panic!("{wish:?}") };
    story.wishes[side.index()].push(wish);
    story
}

fn open_and_hold() -> Story {
    Story::of([vec![Step::Open(A, B, None)], vec![Step::Hold(B, A)]])
}

const ONE_CRASH: Faults = Faults { crashes: 1, ..NO_FAULTS };
const ONE_LOSS: Faults = Faults { losses: 1, ..NO_FAULTS };
const ONE_DISCONNECT: Faults = Faults { disconnects: 1, ..NO_FAULTS };

/// Both, or in debug one of them, for stories that take seconds.
fn sides() -> impl Iterator<Item = Side> {
    Side::BOTH.into_iter().skip(usize::from(cfg!(debug_assertions)))
}

/// Tells the story in every interleaving, to the end.
fn holds_in_every_interleaving(story: &Story) -> Found {
    match search(story, Variant::AsWritten, AMPLE) {
        Ok(found) => {
            assert!(found.complete, "the search did not see everything: {found:?}");
            println!("{found:?} of {story:?}");
            found
        }
        Err(broken) => panic!("{story:?}: {broken:?}"),
    }
}

#[test]
fn two_nodes_that_want_each_other_keep_one_link_without_a_timer_or_a_failed_dial() {
    for story in [hold_both(), open_both(), open_and_hold()] {
        let found = holds_in_every_interleaving(&story.demanding(Demand::Peace));
        assert!(found.parked, "the story does without parking");
    }
    for side in Side::BOTH {
        holds_in_every_interleaving(&hold_from(side).demanding(Demand::Peace));
    }
}

#[test]
fn after_a_crash_at_any_moment_two_that_want_each_other_need_no_timer() {
    let at_once = |story: Story| story.with(ONE_CRASH).demanding(Demand::AgreementAtOnce);
    let found = holds_in_every_interleaving(&at_once(hold_both()));
    assert!(found.states > 1000, "the story is too short to show anything: {found:?}");
    if !cfg!(debug_assertions) {
        holds_in_every_interleaving(&at_once(open_and_hold()));
    }
}

#[test]
fn after_two_crashes_at_any_moments_one_that_holds_the_other_finds_it_again() {
    for side in sides() {
        let faults = Faults { crashes: 2, timers: 1, ..NO_FAULTS };
        holds_in_every_interleaving(&hold_from(side).with(faults));
    }
}

#[test]
fn a_link_lost_at_one_end_at_any_moment_is_replaced_by_one_link() {
    let found = holds_in_every_interleaving(&hold_both().with(ONE_LOSS));
    assert!(found.states > 1000, "the story is too short to show anything: {found:?}");
    for side in sides() {
        let faults = Faults { losses: 2, timers: 1, ..NO_FAULTS };
        holds_in_every_interleaving(&hold_from(side).with(faults));
    }
}

#[test]
fn a_timer_that_fires_at_any_moment_leaves_one_link() {
    for side in sides() {
        holds_in_every_interleaving(&hold_from(side).with(Faults { timers: 2, ..NO_FAULTS }));
    }
}

#[test]
fn a_dial_that_nobody_answers_is_followed_by_one_link() {
    for story in [hold_both(), open_and_hold()] {
        holds_in_every_interleaving(&story.with(Faults { mute_dials: 1, ..NO_FAULTS }));
    }
}

#[test]
fn where_only_one_of_two_can_dial_both_share_its_link() {
    let open_where_none_can_be_dialled = open_and_hold().without_dials_from(A);
    let hold = Side::BOTH.map(|side| hold_both().without_dials_from(side));
    for story in hold.into_iter().chain([open_where_none_can_be_dialled]) {
        for faults in [ONE_LOSS, ONE_CRASH, Faults { timers: 1, ..NO_FAULTS }] {
            holds_in_every_interleaving(&story.clone().with(faults));
        }
    }
}

#[test]
fn a_disconnect_at_any_moment_is_followed_by_one_link_for_who_still_wants_it() {
    for side in sides() {
        let faults = Faults { lost_closes: 1, losses: 1, ..ONE_DISCONNECT };
        holds_in_every_interleaving(&hold_from(side).with(faults));
    }
}

#[test]
fn a_disconnect_or_shutdown_at_any_moment_cuts_no_stream_that_was_acknowledged() {
    for side in Side::BOTH {
        let found = holds_in_every_interleaving(&open_from(side).with(ONE_DISCONNECT));
        assert!(found.states > 1000, "the story is too short to show anything: {found:?}");
        holds_in_every_interleaving(&open_from(side).then_shutdown(side));
    }
}

#[test]
fn an_intent_that_is_cancelled_or_expires_at_any_moment_ends_once() {
    let short = Some(Duration::from_secs(3));
    for side in sides() {
        let mut story = from(Step::Open(side, side.other(), short));
        story.wishes[side.index()].push(Step::Open(side, side.other(), None));
        let faults = Faults { cancels: 1, timers: 1, ..NO_FAULTS };
        holds_in_every_interleaving(&story.with(faults));
    }
}

/// The long stories, told in an optimised build only.
#[test]
#[cfg_attr(debug_assertions, ignore = "runs in an optimised build")]
fn two_faults_at_any_moments_leave_one_link_for_two_that_hold_each_other() {
    for faults in [
        Faults { losses: 1, ..ONE_CRASH },
        Faults { timers: 1, ..ONE_CRASH },
        Faults { timers: 1, ..ONE_LOSS },
        Faults { lost_closes: 1, losses: 1, ..NO_FAULTS },
        Faults { lost_closes: 1, ..ONE_CRASH },
        Faults { losses: 2, ..NO_FAULTS },
        Faults { crashes: 2, ..NO_FAULTS },
        Faults { mute_dials: 1, timers: 1, ..NO_FAULTS },
        Faults { mute_dials: 1, ..ONE_LOSS },
        Faults { mute_dials: 1, ..ONE_CRASH },
        Faults { timers: 2, ..NO_FAULTS },
        ONE_DISCONNECT,
    ] {
        holds_in_every_interleaving(&hold_both().with(faults));
    }
}

#[test]
#[cfg_attr(debug_assertions, ignore = "runs in an optimised build")]
fn a_fault_at_any_moment_costs_no_stream_its_outcome() {
    for faults in
        [ONE_LOSS, ONE_CRASH, Faults { cancels: 1, ..NO_FAULTS }, Faults { timers: 1, ..NO_FAULTS }]
    {
        holds_in_every_interleaving(&open_both().with(faults));
        holds_in_every_interleaving(&open_and_hold().with(faults));
    }
    for faults in [Faults { mute_dials: 1, timers: 1, ..NO_FAULTS }, ONE_DISCONNECT] {
        holds_in_every_interleaving(&open_and_hold().with(faults));
    }
}

#[test]
#[cfg_attr(debug_assertions, ignore = "runs in an optimised build")]
fn a_fault_and_a_timer_at_any_moments_leave_one_link_where_only_one_of_two_can_dial() {
    for side in Side::BOTH {
        for faults in [
            Faults { timers: 1, ..ONE_CRASH },
            Faults { timers: 1, ..ONE_LOSS },
            Faults { timers: 1, ..ONE_DISCONNECT },
        ] {
            holds_in_every_interleaving(&hold_both().without_dials_from(side).with(faults));
        }
    }
}

/// Tells the story as far as the bounds of the deep search allow; `KINFOLK_DEEP_SECONDS` is the time that each story gets.
fn holds_as_far_as_seen(story: &Story) {
    let time = number("KINFOLK_DEEP_SECONDS").map_or(DEEP.time, Duration::from_secs);
    match search(story, Variant::AsWritten, Bounds { time, ..DEEP }) {
        Ok(found) => println!("{found:?} of {story:?}"),
        Err(broken) => panic!("{story:?}: {broken:?}"),
    }
}

/// The number in this variable of the environment.
fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|number| number.parse().unwrap())
}

#[test]
#[ignore = "it takes half a minute and gigabytes of memory, in release; the command is in docs/testing.md"]
fn deep_two_crashes_and_a_loss_at_any_moments_leave_one_link() {
    let faults = Faults { crashes: 2, losses: 1, ..NO_FAULTS };
    for story in [hold_from(A), hold_from(B), hold_both()] {
        holds_as_far_as_seen(&story.with(faults));
    }
}

/// Each holds the next, or both others, and has one dial under way at a time.
#[test]
#[ignore = "it takes minutes and gigabytes of memory, in release; the command is in docs/testing.md"]
fn deep_three_nodes_that_hold_each_other_keep_one_link_per_pair() {
    let ring = [vec![Step::Hold(A, B)], vec![Step::Hold(B, C)], vec![Step::Hold(C, A)]];
    let full = [
        vec![Step::Hold(A, B), Step::Hold(A, C)],
        vec![Step::Hold(B, A), Step::Hold(B, C)],
        vec![Step::Hold(C, A), Step::Hold(C, B)],
    ];
    let crash_and_loss = Faults { losses: 1, ..ONE_CRASH };
    for (wishes, faults) in [
        (&ring, &[NO_FAULTS, ONE_LOSS, ONE_CRASH, crash_and_loss][..]),
        (&full, &[NO_FAULTS, ONE_LOSS, ONE_CRASH][..]),
    ] {
        for faults in faults {
            let story = Story { dials: 1, ..Story::of(wishes.clone()) };
            holds_as_far_as_seen(&story.with(*faults));
        }
    }
}

/// Two faults, lost closes, dials that nobody answers, timers that fire at any moment.
#[test]
#[ignore = "it takes up to an hour and a half, in release; the command is in docs/testing.md"]
fn deep_stories_of_many_faults_break_no_promise_as_far_as_time_allows() {
    let stories =
        [hold_both(), open_both(), open_and_hold(), hold_from(Side::A), hold_from(Side::B)];
    for story in stories {
        for [crashes, losses, lost_closes, mute_dials, disconnects, cancels, timers] in [
            [1, 0, 0, 0, 0, 0, 2],
            [0, 1, 0, 0, 0, 0, 2],
            [2, 0, 0, 0, 0, 0, 1],
            [0, 2, 0, 0, 0, 0, 1],
            [1, 1, 0, 0, 0, 0, 1],
            [0, 0, 1, 0, 1, 0, 0],
            [0, 1, 1, 0, 0, 0, 1],
            [1, 0, 1, 0, 0, 0, 1],
            [0, 0, 0, 1, 0, 0, 2],
            [1, 0, 0, 1, 0, 0, 1],
            [0, 1, 0, 1, 0, 0, 1],
            [0, 0, 0, 0, 2, 0, 0],
            [0, 0, 0, 0, 1, 0, 1],
            [1, 0, 0, 0, 1, 0, 0],
            [0, 1, 0, 0, 1, 0, 0],
            [0, 0, 0, 0, 0, 1, 2],
            [0, 0, 0, 0, 0, 0, 3],
        ] {
            let faults =
                Faults { crashes, losses, lost_closes, mute_dials, disconnects, cancels, timers };
            holds_as_far_as_seen(&story.clone().with(faults));
        }
    }
}

/// The test of the test: each of these breaks one rule of the machine, or is another rule, and its story has to notice.
#[test]
fn a_broken_rule_is_noticed() {
    let peace = hold_both().demanding(Demand::Peace);
    let crash = hold_both().with(ONE_CRASH);
    let loss = hold_both().with(ONE_LOSS);
    let disconnect = open_and_hold().with(ONE_DISCONNECT);
    let used = open_from(A).with(ONE_DISCONNECT);
    let lost = Story { shutdowns: false, ..open_from(A).with(ONE_LOSS) };
    for (variant, story, promise) in [
        (Variant::BothLarger, &peace, Promise::Peace),
        (Variant::BothSmaller, &peace, Promise::Peace),
        (Variant::RefusesInsteadOfParking, &peace, Promise::Peace),
        (Variant::ListsNothing, &loss, Promise::DeadNeverWins),
        (Variant::ListsOnlyLost, &disconnect, Promise::DeadNeverWins),
        (Variant::StampsLate, &crash, Promise::DeadNeverWins),
        (Variant::KeepsIncarnation, &crash, Promise::DeadNeverWins),
        (Variant::CutsGivenUpDials, &used, Promise::NothingCut),
        (Variant::CutsGivenUpDials, &open_from(A).then_shutdown(A), Promise::NothingCut),
        (Variant::SwallowsEnds, &hold_from(A), Promise::ShutdownEmpties),
        (Variant::DropsLostStreams, &lost, Promise::OneOutcome),
        (Variant::LowerIdWins, &crash, Promise::DeadNeverWins),
        (Variant::LowerIdWins, &loss, Promise::DeadNeverWins),
        (Variant::NewestWins, &peace, Promise::Peace),
        (Variant::DropsDialOnIncoming, &peace, Promise::Peace),
    ] {
        match search(story, variant, AMPLE) {
            Ok(found) => panic!("{variant:?} goes unnoticed: {found:?}"),
            Err(broken) => assert_eq!(broken.breach.promise, promise, "{variant:?}: {broken:?}"),
        }
    }
}

fn run(seed: u64, start: Instant) -> Tally {
    chaos::run(seed, Variant::AsWritten, start).unwrap_or_else(|broken| panic!("{broken:?}"))
}

#[test]
fn random_interleavings_with_many_faults_break_no_promise() {
    let start = Instant::now();
    let seeds = match number("KINFOLK_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("KINFOLK_SEEDS").unwrap_or(SEEDS),
    };
    let (mut steps, mut served) = (0, 0);
    for seed in seeds {
        let tally = run(seed, start);
        steps += tally.steps;
        served += tally.served;
    }
    println!("{steps} steps and {served} streams in {:?}", start.elapsed());
}

#[test]
fn random_interleavings_meet_everything_that_a_machine_can_want() {
    let start = Instant::now();
    let wanted: BTreeSet<_> =
        (0..300).flat_map(|seed| run(seed, start).wanted.into_keys()).collect();
    // All but what the table keeps to itself, and a quarantine, which takes five panics within ten seconds.
    let all = BTreeSet::from([
        "admit",
        "banned",
        "close",
        "close if idle",
        "dial",
        "dial failed",
        "down",
        "drain",
        "end",
        "ended",
        "greet",
        "hand",
        "keep",
        "kill",
        "park",
        "publish",
        "refuse",
        "refused",
        "replaced",
        "unbanned",
        "unpublish",
        "up",
        "welcome",
    ]);
    assert_eq!(wanted, all);
}
