//! Twenty nodes through everything that can happen to them, and an exact account of it afterwards.
//!
//! All actions come from a seed, which is printed. `KINFOLK_CHAOS_SEED=<seed>` does the same to the nodes again; what they make of it
//! still depends on their own randomness and on time. File descriptors are counted in the whole process, so these tests have one of their own.

mod ledger;
mod life;
mod plan;
mod traffic;
mod world;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kinfolk_tests::support::wait::{eventually, live_tasks, open_fds};
use tokio::sync::Mutex;
use tokio::task::LocalSet;

use plan::{Shape, plan};
use world::World;

static ALONE: Mutex<()> = Mutex::const_new(());

const SHORT: Shape = Shape {
    time: Duration::from_secs(20),
    longest_pause: Duration::from_secs(4),
    longest_cut: Duration::from_secs(4),
};

const LONG: Shape = Shape {
    time: Duration::from_mins(3),
    longest_pause: Duration::from_secs(20),
    longest_cut: Duration::from_secs(10),
};

fn seed() -> u64 {
    match std::env::var("KINFOLK_CHAOS_SEED") {
        Ok(seed) => seed.parse().expect("KINFOLK_CHAOS_SEED is a number"),
        Err(_) => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
            u64::from(now.subsec_nanos()) ^ now.as_secs()
        }
    }
}

async fn every_promise_is_kept_through(shape: Shape) {
    let _alone = ALONE.lock().await;
    LocalSet::new().run_until(chaos(shape)).await;
}

async fn chaos(shape: Shape) {
    let seed = seed();
    println!("chaos: KINFOLK_CHAOS_SEED={seed} repeats these actions");
    let (tasks, fds) = (live_tasks(), open_fds());

    let world = World::begin(seed, shape).await;
    let done = world.suffer(&plan(seed, shape)).await;
    let calm = world.settle().await;
    let held = world.held();
    world.part().await;

    let (faults, sums) = world.ledger().judge();
    println!("actions: {:?}, skipped: {}", done.actions, done.skipped);
    println!("{:?}", world.figures());
    println!("{sums:?}; {held} of 60 pairs held and connected after {calm:?}");
    assert!(held > 0 && sums.calls_answered > 0 && sums.streams_answered > 0, "nothing was tried");
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
    drop(world);
    let what = format!("back to {tasks} tasks and {fds} descriptors");
    eventually(Duration::from_secs(10), &what, async || live_tasks() <= tasks && open_fds() <= fds)
        .await;
}

#[tokio::test]
async fn twenty_nodes_keep_every_promise_through_twenty_seconds_of_chaos() {
    every_promise_is_kept_through(SHORT).await;
}

#[tokio::test]
#[ignore = "it takes more than three minutes; the command is in docs/testing.md"]
async fn twenty_nodes_keep_every_promise_through_three_minutes_of_chaos() {
    every_promise_is_kept_through(LONG).await;
}

#[test]
fn the_same_seed_draws_the_same_actions() {
    assert_eq!(plan(7, SHORT), plan(7, SHORT));
    assert_ne!(plan(7, SHORT), plan(8, SHORT));
}
