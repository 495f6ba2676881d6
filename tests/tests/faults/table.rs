//! Each point, each way to fail, one node each: what must hold after the strike.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use kinfolk::fault::{Actor, Crash, Faults, Kind, Point};
use kinfolk::{ExchangeError, FeedEnd, LinkEnd, NodeEvent, ReceiverEnd, Terminal};
use kinfolk_tests::support::node::builder;
use kinfolk_tests::support::wait::{eventually, open_fds, within};
use tokio::sync::Semaphore;

use crate::provoke::{
    OUT_OF_REACH, at_start, needs_discovery, needs_flows, needs_restart_of, needs_store, provoke,
};
use crate::scene::{SOON, Scene, limits, nothing_is_left};

/// Descriptors are counted in the whole process.
static ALONE: Mutex<()> = Mutex::new(());

/// How many cases run at once, each with a thread and a runtime of its own.
const AT_ONCE: usize = 8;

/// As many of those that wait most of the time.
const WAITING_AT_ONCE: usize = 96;

/// What a case may do is many things, which debug builds all keep on one frame: as much as a first thread has.
const STACK: usize = 8 * 1024 * 1024;

/// How many of them are being set up at once: handshakes have deadlines, and cores are few.
static SET_UP: Semaphore = Semaphore::const_new(3);

/// What a node that hangs takes to be killed by `shutdown`, beyond its shutdown deadline, and what a busy machine adds.
const KILLED: Duration = Duration::from_secs(10 + 1 + 5);

/// What the parts and the endpoint may take beyond the shutdown deadline, and what a busy machine adds.
const STOPPED: Duration = Duration::from_secs(2 + 2 + 3 + 2);

/// The parts of a node that are restarted, by the names that its events have.
const PARTS: [&str; 8] = [
    "accept",
    "peer_manager",
    "discovery",
    "walker",
    "announcer",
    "streams",
    "producer",
    "consumer",
];

/// Looks at the parts from the first to the last of which one and a half times [`Limits::unresponsive`](kinfolk::Limits::unresponsive) pass: a
/// part that is silent from the first on is given up at the third, and that is known at the next.
const LOOKS: usize = 4;

/// What follows from a strike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Effect {
    /// Only the task is lost.
    None,
    /// The session ends like this.
    Session(LinkEnd),
    /// The exchange fails, and whoever waits for it is told.
    Exchange,
    /// The subscription of a consumer of another node fails.
    Feed,
    /// The subscription to a producer of another node fails.
    Receiver,
    /// The part is restarted once.
    Restart(&'static str),
    /// The node ends with the cause.
    End,
    /// The node is being shut down, and gets to its end.
    ShutDown,
    /// The root, or a part that it waits for, does no more until the node is shut down.
    Stuck,
}

fn effect(point: Point, crash: Crash) -> Effect {
    let never = crash == Crash::Never;
    match point {
        Point::ManagerPostStop
        | Point::StreamsPostStop
        | Point::DiscoveryPostStop
        | Point::DiscoveryDepart
        | Point::AnnouncerDepart
        | Point::AnnouncerDeparts => return Effect::ShutDown,
        // The stream is given up, or serves nobody until it is over.
        Point::AnnouncerOpens | Point::AnnouncerWrites | Point::AnnouncerReads if never => {
            return Effect::None;
        }
        // What they bring is missed until it is brought again.
        Point::DiscoverySaves
        | Point::DiscoveryKeeps
        | Point::DiscoveryLooks
        | Point::DiscoveryLetsGo
            if never =>
        {
            return Effect::None;
        }
        // Those that were admitted, or are found, stay what they are; who waits is told in time.
        Point::ProducerFollows | Point::ProducerLooks | Point::ProducerRefuses if never => {
            return Effect::None;
        }
        Point::ConsumerFollows if never => return Effect::None,
        // Nobody was subscribed yet: who asks comes again.
        Point::FeedPreStart | Point::ReceiverPreStart => return Effect::None,
        Point::ReceiverTask | Point::ReceiverTaskPanicked => return Effect::None,
        Point::SessionPreStart if never => return Effect::Session(LinkEnd::Failed),
        Point::ManagerPreStart => return Effect::Restart("peer_manager"),
        Point::AcceptPreStart => return Effect::Restart("accept"),
        Point::ManagerRefusal | Point::AcceptHandshake | Point::NodeRequest => return Effect::None,
        Point::NodeRestart if never => return Effect::Stuck,
        _ => {}
    }
    let is_task = point.kind() == Kind::Task;
    match point.actor() {
        Actor::Node if never => {
            if is_task {
                Effect::None
            } else {
                Effect::Stuck
            }
        }
        // Sessions that never return are ended by their deadlines.
        Actor::Session if never => Effect::None,
        Actor::Session if crash == Crash::Error => Effect::Session(LinkEnd::Failed),
        Actor::Session => Effect::Session(LinkEnd::Panicked),
        Actor::Node => Effect::End,
        Actor::PeerManager => Effect::Restart("peer_manager"),
        Actor::Accept => Effect::Restart("accept"),
        Actor::Discovery => Effect::Restart("discovery"),
        Actor::Walker => Effect::Restart("walker"),
        Actor::Announcer => Effect::Restart("announcer"),
        Actor::Exchange => Effect::Exchange,
        Actor::Streams => Effect::Restart("streams"),
        Actor::Producer => Effect::Restart("producer"),
        Actor::Consumer => Effect::Restart("consumer"),
        // They await nobody but the peer: nobody watches them.
        Actor::Feed | Actor::Receiver if never => Effect::None,
        Actor::Feed => Effect::Feed,
        Actor::Receiver => Effect::Receiver,
    }
}

async fn case(point: Point, crash: Crash) {
    let armed = at_start(point, crash);
    if !armed.is_empty() && effect(point, crash) == Effect::End {
        return ends_as_it_starts(&armed).await;
    }
    let place = SET_UP.acquire().await;
    let mut scene = Scene::with(&armed, needs_discovery(point), needs_store(point)).await;
    scene.kept_lives().await;
    if needs_flows(point) {
        scene.let_flow().await;
    }
    provoke(&mut scene, point, crash).await;
    drop(place);
    within(SOON, "the strike", scene.faults.struck(point)).await;
    match effect(point, crash) {
        Effect::End => {
            let end = within(SOON, "the end", scene.alice.closed()).await;
            let Terminal::Failed(cause) = &end else { panic!("{end:?}") };
            assert!(cause.contains("injected"), "{cause}");
            assert_eq!(scene.log.count(|event| matches!(event, NodeEvent::Ended { .. })), 1);
        }
        Effect::ShutDown => {
            let end = within(limits().shutdown_deadline + STOPPED, "the end", scene.alice.closed());
            assert_eq!(end.await, Terminal::Shutdown);
        }
        Effect::Stuck => stuck(&mut scene, point).await,
        effect => {
            assert_one_event(&mut scene, point, effect).await;
            // Only what hangs is found out by looks at the parts, and nothing looks where the wait for that hangs.
            let is_watched = crash == Crash::Never && point != Point::NodeWatches;
            if is_watched {
                watch(&scene);
            }
            lives_on(&mut scene, point, crash).await;
            if is_watched {
                assert_no_late_restart(&mut scene, point, effect).await;
            }
        }
    }
    scene.asks_end().await;
    assert_eq!(scene.faults.strikes(point), 1);
    scene.over().await;
}

/// What strikes as soon as the node runs ends it before it can be asked.
async fn ends_as_it_starts(armed: &[(Point, Crash)]) {
    let faults = Faults::default();
    for (point, crash) in armed {
        faults.arm(*point, *crash);
    }
    let alice = builder(1).limits(limits()).faults(&faults).spawn().await.expect("it starts");
    let end = within(SOON, "the end", alice.closed()).await;
    let Terminal::Failed(cause) = &end else { panic!("{end:?}") };
    assert!(cause.contains("injected"), "{cause}");
    assert!(armed.iter().all(|(point, _)| faults.strikes(*point) == 1));
    assert_eq!(alice.metrics().await.expect_err("it has ended").0, end);
    drop(alice);
    nothing_is_left().await;
}

/// How often a part is to be restarted: by the strike, and to provoke it.
fn restarts(part: &str, point: Point, effect: Effect) -> usize {
    let provoked = usize::from(needs_restart_of(point) == Some(part));
    provoked + usize::from(matches!(effect, Effect::Restart(struck) if struck == part))
}

/// One event of the kind that is documented, and none of another.
async fn assert_one_event(scene: &mut Scene, point: Point, effect: Effect) {
    for part in PARTS {
        let expected = restarts(part, point, effect);
        eventually(SOON, "the restarts", async || scene.restarts_of(part) == expected).await;
    }
    let exchanges = usize::from(effect == Effect::Exchange);
    let of_exchanges = |event: &NodeEvent| {
        matches!(event, NodeEvent::ExchangeFailed { error: ExchangeError::Failed(_), .. })
    };
    eventually(SOON, "the exchange", async || scene.log.count(of_exchanges) == exchanges).await;
    let feeds = usize::from(effect == Effect::Feed);
    let of_feeds = |event: &NodeEvent| {
        matches!(event, NodeEvent::ConsumerLeft { reason: FeedEnd::Failed(_), .. })
    };
    let receivers = usize::from(effect == Effect::Receiver);
    let of_receivers = |event: &NodeEvent| {
        matches!(event, NodeEvent::SourceDown { reason: ReceiverEnd::Failed(_), .. })
    };
    // A part that fails takes all that is below it along.
    if !matches!(effect, Effect::Restart("streams" | "producer" | "consumer")) {
        eventually(SOON, "the feed", async || scene.log.count(of_feeds) == feeds).await;
        eventually(SOON, "the receiver", async || scene.log.count(of_receivers) == receivers).await;
    }
    let panics = usize::from(effect == Effect::Session(LinkEnd::Panicked));
    let of_sessions = |event: &NodeEvent| matches!(event, NodeEvent::SessionPanicked { .. });
    eventually(SOON, "the panic", async || scene.log.count(of_sessions) == panics).await;
    if let Effect::Session(wanted) = effect {
        let is_end = |event: &NodeEvent| match event {
            NodeEvent::SessionEnded { end, .. } | NodeEvent::DialFailed { end, .. } => {
                *end == wanted
            }
            _ => false,
        };
        eventually(SOON, "the session's end", async || scene.log.count(is_end) >= 1).await;
    }
}

/// From now on the node's looks at its parts are counted.
fn watch(scene: &Scene) {
    for _ in 0..LOOKS {
        scene.faults.arm(Point::NodeWatch, Crash::Stall(Duration::ZERO));
    }
}

/// What hung is well again, and nothing else was taken for silent.
async fn assert_no_late_restart(scene: &mut Scene, point: Point, effect: Effect) {
    let looks = || scene.faults.strikes(Point::NodeWatch);
    eventually(SOON, "the looks at the parts", async || looks() == LOOKS).await;
    for part in PARTS {
        let expected = restarts(part, point, effect);
        assert_eq!(scene.restarts_of(part), expected, "late restarts of {part}");
    }
}

/// The siblings are untouched, asks add up, and the node works.
async fn lives_on(scene: &mut Scene, point: Point, crash: Crash) {
    scene.asks_end().await;
    if point.actor() == Actor::Exchange {
        let synced = scene.synced();
        assert!(matches!(&synced, Some(Err(ExchangeError::Failed(_)))), "{synced:?}");
    }
    if point == Point::ManagerShutDown {
        // It is draining, and stays so.
        within(SOON, "the drain", scene.alice.drain()).await.expect("alice is up");
        scene.asks_add_up().await;
        return;
    }
    scene.alice.unban(scene.bob.id()).expect("alice is up");
    let manager_failed = scene.restarts_of("peer_manager") > 0;
    if !manager_failed {
        scene.kept_lives().await;
        scene.end_session_with_bob().await;
    }
    scene.is_usable(true).await;
    scene.discovers_on().await;
    streams_flow_on(scene, point, crash).await;
    if !manager_failed {
        scene.kept_lives().await;
    }
    scene.asks_add_up().await;
}

/// Nothing is missing from any stream or comes twice, and no more of them were interrupted than had to be.
async fn streams_flow_on(scene: &mut Scene, point: Point, crash: Crash) {
    if !needs_flows(point) {
        return;
    }
    let flows = scene.flows();
    flows.flow().await;
    flows.flow().await;
    let all = point.actor() == Actor::Streams;
    let broken = flows.broken();
    assert!(all || broken <= 1, "{broken} streams were interrupted");
    // A source is looked for by what hangs, or asked by it until that is found out: see `never`.
    let is_unheard = matches!(
        point,
        Point::ConsumerFollows
            | Point::ReceiverTask
            | Point::ReceiverTaskPanicked
            | Point::ProducerLooks
    );
    if crash != Crash::Never || !is_unheard {
        flows.probes_flow().await;
    }
}

/// The root never returns, or waits for ever to restart a part: the parts that run live on, asks end by their deadlines, and the shutdown by
/// its own.
async fn stuck(scene: &mut Scene, point: Point) {
    if point != Point::NodePostStop {
        scene.kept_lives().await;
        scene.ask(scene.bob.addr());
    }
    scene.asks_end().await;
    let begun = Instant::now();
    let end = within(3 * SOON, "the shutdown", scene.alice.shutdown()).await;
    // A root that hangs is killed, as nothing else can end it.
    let bound = if point == Point::NodeRestart { STOPPED } else { KILLED };
    let latest = limits().shutdown_deadline + bound;
    assert!(begun.elapsed() < latest, "{end:?} after {:?}", begun.elapsed());
}

fn table(crash: Crash) {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let reachable = |point: &Point| OUT_OF_REACH.iter().all(|(out, _)| out != point);
    // A task has no error to return.
    let applies = |point: &Point| crash != Crash::Error || point.kind() != Kind::Task;
    let only = std::env::var("KINFOLK_FAULT").ok();
    let wanted =
        |point: &Point| only.as_ref().is_none_or(|only| format!("{point:?}").starts_with(only));
    let points = || Point::ALL.iter().copied().filter(reachable).filter(applies).filter(wanted);
    // What is made once and kept is made in this one.
    assert_eq!(run_all([Point::SessionGreet].into(), crash), Vec::<String>::new());
    let fds = open_fds();
    let failed = run_all(points().collect(), crash);
    assert!(failed.is_empty(), "{} failed:\n{}", failed.len(), failed.join("\n"));
    let begun = Instant::now();
    while open_fds() > fds {
        assert!(begun.elapsed() < SOON, "{} descriptors, {fds} before", open_fds());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Runs the cases, some at once, and returns what went wrong.
fn run_all(points: VecDeque<Point>, crash: Crash) -> Vec<String> {
    let (points, failed) = (Mutex::new(points), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..if crash == Crash::Never { WAITING_AT_ONCE } else { AT_ONCE } {
            let thread = std::thread::Builder::new().stack_size(STACK);
            let thread = thread.spawn_scoped(scope, || {
                loop {
                    let Some(point) = points.lock().expect("whole").pop_front() else { return };
                    let run = std::panic::catch_unwind(|| {
                        let runtime =
                            tokio::runtime::Builder::new_current_thread().enable_all().build();
                        runtime.expect("a runtime").block_on(case(point, crash));
                    });
                    if let Err(panic) = run {
                        let text = panic.downcast_ref::<String>().cloned();
                        let text =
                            text.or_else(|| panic.downcast_ref().map(|s: &&str| (*s).into()));
                        let text = text.unwrap_or_default();
                        failed.lock().expect("whole").push(format!("{point:?}: {text}"));
                    }
                }
            });
            thread.expect("a thread");
        }
    });
    failed.into_inner().expect("whole")
}

#[test]
fn whatever_panics_is_contained_in_one_event_and_leaves_nothing_behind() {
    table(Crash::Panic);
}

#[test]
fn whatever_returns_an_error_is_contained_in_one_event_and_leaves_nothing_behind() {
    table(Crash::Error);
}

#[test]
fn whatever_never_returns_is_restarted_or_ends_by_a_deadline_and_hangs_nothing_else() {
    table(Crash::Never);
}

#[tokio::test]
async fn a_node_that_does_not_start_says_why_and_leaves_nothing_behind() {
    for point in [Point::NodePreStart, Point::ManagerPreStart, Point::AcceptPreStart] {
        for crash in [Crash::Panic, Crash::Error, Crash::Never] {
            let faults = Faults::default();
            faults.arm(point, crash);
            let spawned = builder(1).limits(limits()).faults(&faults).spawn();
            match tokio::time::timeout(Duration::from_secs(5), spawned).await {
                Ok(spawned) => {
                    let error = spawned.expect_err("it was to fail").to_string();
                    assert!(
                        error.contains("injected") || error.contains("did not start"),
                        "{error}"
                    );
                }
                // Nothing bounds the root but whoever spawns it.
                Err(_) => assert_eq!((point, crash), (Point::NodePreStart, Crash::Never)),
            }
            assert_eq!(faults.strikes(point), 1);
            nothing_is_left().await;
        }
    }
}
