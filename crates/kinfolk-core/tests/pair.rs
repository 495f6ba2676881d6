//! Two nodes and a network that does its worst: both sides keep the same link, nothing hangs, nothing is lost.
//!
//! The machines are the production ones; the driver in `pair/` plays managers, sessions, Accept and the network. Small stories
//! are told in every interleaving, breadth first; long ones with many faults in random interleavings, by seed.
//!
//! `KINFOLK_PAIR_SEEDS` says how many seeds are tried; `KINFOLK_PAIR_SEED` tries that one alone.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::panic,
    reason = "a test may fail this way"
)]

#[path = "pair/mod.rs"]
mod pair;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use pair::chaos::{self, Tally};
use pair::link::Side;
use pair::search::{Broken, Demand, Found, Story, search};
use pair::world::{Step, Variant};

/// Far more than any story here needs, on a busy machine as well; the searches end by themselves.
const LIMIT: Duration = Duration::from_secs(300);

/// What each of the deeper stories gets.
const DEEPER: Duration = Duration::from_secs(30);

/// Random runs unless the environment says otherwise: a few seconds in debug.
const SEEDS: u64 = 3000;

fn hold_both() -> Story {
    Story::of([vec![Step::Hold(Side::A)], vec![Step::Hold(Side::B)]])
}

fn open_both() -> Story {
    Story::of([vec![Step::Open(Side::A, None)], vec![Step::Open(Side::B, None)]])
}

fn hold_from(side: Side) -> Story {
    match side {
        Side::A => Story::of([vec![Step::Hold(Side::A)], vec![]]),
        Side::B => Story::of([vec![], vec![Step::Hold(Side::B)]]),
    }
}

fn open_from(side: Side) -> Story {
    let mut story = Story::of([vec![], vec![]]);
    story.wishes[side.index()].push(Step::Open(side, None));
    story
}

fn then_shutdown(mut story: Story, side: Side) -> Story {
    story.wishes[side.index()].push(Step::Shutdown(side));
    story
}

fn open_and_hold() -> Story {
    Story::of([vec![Step::Open(Side::A, None)], vec![Step::Hold(Side::B)]])
}

fn one_crash() -> Story {
    Story { crashes: 1, ..hold_both() }
}

fn one_loss() -> Story {
    Story { losses: 1, ..hold_both() }
}

fn one_disconnect(side: Side) -> Story {
    Story { disconnects: 1, ..hold_from(side) }
}

/// Tells the story in every interleaving, to the end.
fn holds_in_every_interleaving(story: &Story) -> Found {
    match search(story, Variant::AsWritten, LIMIT) {
        Ok(found) => {
            assert!(found.complete, "the search did not see everything: {found:?}");
            println!("{found:?}");
            found
        }
        Err(broken) => panic!("{story:?}: {broken:?}"),
    }
}

fn run(seed: u64, start: Instant) -> Tally {
    chaos::run(seed, Variant::AsWritten, start).unwrap_or_else(|broken| panic!("{broken:?}"))
}

#[test]
fn two_nodes_that_want_each_other_keep_one_link_without_a_timer_or_a_failed_dial() {
    for story in [hold_both(), open_both(), open_and_hold(), hold_from(Side::A), hold_from(Side::B)]
    {
        holds_in_every_interleaving(&Story { demand: Demand::Peace, ..story });
    }
}

#[test]
fn after_a_crash_at_any_moment_two_that_want_each_other_need_no_timer() {
    let demand = Demand::AgreementAtOnce;
    let found = holds_in_every_interleaving(&Story { demand, ..one_crash() });
    assert!(found.states > 1000, "the story is too short to show anything: {found:?}");
    holds_in_every_interleaving(&Story { demand, crashes: 1, ..open_and_hold() });
}

#[test]
fn after_two_crashes_at_any_moments_one_that_holds_the_other_finds_it_again() {
    for side in [Side::A, Side::B] {
        holds_in_every_interleaving(&Story { crashes: 2, timers: 1, ..hold_from(side) });
    }
}

#[test]
fn after_a_crash_and_a_one_sided_loss_at_any_moments_one_link_is_left() {
    holds_in_every_interleaving(&Story { losses: 1, ..one_crash() });
}

#[test]
fn a_link_lost_at_one_end_at_any_moment_is_replaced_by_one_link() {
    let found = holds_in_every_interleaving(&one_loss());
    assert!(found.states > 1000, "the story is too short to show anything: {found:?}");
    holds_in_every_interleaving(&Story { losses: 2, ..hold_both() });
    holds_in_every_interleaving(&Story { timers: 1, ..one_loss() });
    for side in [Side::A, Side::B] {
        holds_in_every_interleaving(&Story { losses: 2, timers: 1, ..hold_from(side) });
    }
}

#[test]
fn a_timer_that_fires_at_any_moment_leaves_one_link() {
    for story in [hold_both(), hold_from(Side::A), hold_from(Side::B)] {
        holds_in_every_interleaving(&Story { timers: 2, ..story });
    }
}

#[test]
fn a_dial_that_nobody_answers_is_followed_by_one_link() {
    for story in [hold_both(), open_and_hold()] {
        holds_in_every_interleaving(&Story { mute_dials: 1, timers: 1, ..story });
    }
}

#[test]
fn a_disconnect_at_any_moment_is_followed_by_one_link_for_who_still_wants_it() {
    holds_in_every_interleaving(&Story { disconnects: 1, ..hold_both() });
    for side in [Side::A, Side::B] {
        holds_in_every_interleaving(&Story { lost_closes: 1, losses: 1, ..one_disconnect(side) });
    }
}

#[test]
fn a_disconnect_or_shutdown_at_any_moment_cuts_no_stream_that_was_acknowledged() {
    for side in Side::BOTH {
        let story = open_from(side);
        let found = holds_in_every_interleaving(&Story { disconnects: 1, ..story.clone() });
        assert!(found.states > 1000, "the story is too short to show anything: {found:?}");
        holds_in_every_interleaving(&then_shutdown(story, side));
    }
}

/// The test of the test: each of these breaks one rule of the machine, and its story has to notice.
#[test]
fn a_broken_rule_is_noticed() {
    let peace = Story { demand: Demand::Peace, ..hold_both() };
    let disconnect = Story { disconnects: 1, ..open_and_hold() };
    for (variant, story) in [
        (Variant::BothLarger, &peace),
        (Variant::BothSmaller, &peace),
        (Variant::RefusesInsteadOfParking, &peace),
        (Variant::ListsNothing, &one_loss()),
        (Variant::ListsOnlyLost, &disconnect),
        (Variant::StampsLate, &one_crash()),
        (Variant::KeepsIncarnation, &one_crash()),
        (Variant::CutsGivenUpDials, &Story { disconnects: 1, ..open_from(Side::A) }),
        (Variant::CutsGivenUpDials, &then_shutdown(open_from(Side::A), Side::A)),
    ] {
        let noticed = matches!(search(story, variant, LIMIT), Err(Broken { .. }));
        assert!(noticed, "{variant:?} goes unnoticed");
    }
}

#[test]
fn random_interleavings_with_many_faults_break_no_promise() {
    let start = Instant::now();
    let number = |name| std::env::var(name).ok().map(|number| number.parse::<u64>().unwrap());
    let seeds = match number("KINFOLK_PAIR_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("KINFOLK_PAIR_SEEDS").unwrap_or(SEEDS),
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
    // All but a quarantine, which takes five panics within ten seconds.
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
        "forget",
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
        "want dial",
        "welcome",
    ]);
    assert_eq!(wanted, all);
}

/// Two faults, lost closes, dials that nobody answers, timers that fire at any moment.
#[test]
#[ignore = "takes minutes in a release build; the command is in docs/testing.md"]
fn deeper_stories_break_no_promise_as_far_as_time_allows() {
    let stories =
        [hold_both(), open_both(), open_and_hold(), hold_from(Side::A), hold_from(Side::B)];
    for story in stories {
        for [crashes, losses, lost_closes, mute_dials, disconnects, timers] in [
            [1, 0, 0, 0, 0, 2],
            [0, 1, 0, 0, 0, 2],
            [2, 0, 0, 0, 0, 1],
            [0, 2, 0, 0, 0, 1],
            [1, 1, 0, 0, 0, 1],
            [0, 0, 1, 0, 1, 0],
            [0, 1, 1, 0, 0, 1],
            [1, 0, 1, 0, 0, 1],
            [0, 0, 0, 1, 0, 2],
            [1, 0, 0, 1, 0, 1],
            [0, 1, 0, 1, 0, 1],
            [0, 0, 0, 0, 2, 0],
            [0, 0, 0, 0, 1, 1],
            [1, 0, 0, 0, 1, 0],
            [0, 1, 0, 0, 1, 0],
            [0, 0, 0, 0, 0, 3],
        ] {
            let story = Story {
                crashes,
                losses,
                lost_closes,
                mute_dials,
                disconnects,
                timers,
                ..story.clone()
            };
            match search(&story, Variant::AsWritten, DEEPER) {
                Ok(found) => println!("{found:?} of {story:?}"),
                Err(broken) => panic!("{story:?}: {broken:?}"),
            }
        }
    }
}
