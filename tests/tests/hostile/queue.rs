//! A flood of control frames: what reaches the manager, and how soon it answers meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kinfolk::{Code, EndpointAddr, Limits};
use kinfolk_core::wire::Control;
use kinfolk_tests::support::guest::{alpn, bytes, done, goodbye, hello};
use kinfolk_tests::support::stranger::{Stranger, ending, say};
use kinfolk_tests::support::wait::within;
use tokio::task::JoinSet;

use crate::scene::SOON;
use crate::victim::{ALONE, Role, Victim};

/// Each takes about a third of a core for its handshakes: more would measure the machine.
const ATTACKERS: u8 = 4;

/// Control frames behind each hello.
const FRAMES: usize = 1000;

const ANSWER_MAX: Duration = Duration::from_millis(50);

/// How often the node is asked meanwhile, three times over.
const QUESTIONS: usize = 300;

/// Dials, says hello and a thousand frames more in one breath, and again as soon as it is thrown out.
async fn attack(key: u8, node: EndpointAddr, over: Arc<AtomicBool>) {
    let stranger = Stranger::bind(100 + key).await;
    let frames = match key % 3 {
        0 => bytes(&goodbye(Code::Ok)).repeat(FRAMES),
        1 => [bytes(&goodbye(Code::Ok)), bytes(&done()).repeat(FRAMES)].concat(),
        // Nothing but hellos, each of which would be a link that replaces the last one.
        _ => (2..).take(FRAMES).flat_map(|n| bytes(&Control::Hello(hello(1, n)))).collect(),
    };
    for n in 1.. {
        if over.load(Ordering::Relaxed) {
            return;
        }
        // On a busy machine the one or the other dial comes too late.
        let Ok(connection) = stranger.connect(node.clone(), &alpn()).await else { continue };
        let words = [bytes(&Control::Hello(hello(1, n * 10_000))), frames.clone()].concat();
        let _said = say(&connection, &words).await;
        let _ = ending(&connection, SOON).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_control_frames_fills_no_mailbox_and_delays_no_answer() {
    let _alone = ALONE.lock().await;
    let mut victim = Victim::start(Role::Open).await;
    let over = Arc::new(AtomicBool::new(false));
    let mut attackers = JoinSet::new();
    for key in 0..ATTACKERS {
        attackers.spawn(attack(key, victim.addr.clone(), Arc::clone(&over)));
    }
    victim.until("the flood has begun", |now| now.get("established") >= 20).await;
    let before = victim.figures().await;
    let (mut queue, mut p99) = (0, Duration::MAX);
    for _ in 0..3 {
        let answers = victim.answers(QUESTIONS).await;
        let time = |name| Duration::from_micros(answers.get(name));
        println!("an answer takes {:?}, p99 {:?}", time("median_us"), time("p99_us"));
        // The best of three: a machine that is busy elsewhere is late once, a mailbox that fills is late for good.
        p99 = time("p99_us").min(p99);
        queue = answers.get("queue").max(queue);
    }
    let links = victim.figures().await.get("established") - before.get("established");
    over.store(true, Ordering::Relaxed);
    println!("{links} links with {FRAMES} frames each: at most {queue} messages wait, p99 {p99:?}");
    assert!(links >= 50, "{links} links are no flood");
    // One message for each handshake that may be under way; and of each link its end and its peer's goodbye.
    let cap =
        u64::try_from(Limits::default().gate.pending).expect("few") + 2 * u64::from(ATTACKERS);
    assert!(queue <= cap, "{queue} messages wait, {cap} may");
    assert!(p99 <= ANSWER_MAX, "{p99:?}");
    within(SOON, "the attackers leave", attackers.join_all()).await;
    victim.until("nothing is left of them", |now| now.get("inbound") == 0).await;
}
