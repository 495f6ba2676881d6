//! A flood of connections from one address, at full size: ten thousand dials under a thousand ids.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use iroh::SecretKey;
use kinfolk::{EndpointAddr, Node};
use kinfolk_core::wire::Control;
use kinfolk_tests::support::guest::{Guest, alpn, bytes, hear, hello};
use kinfolk_tests::support::node::{NETWORK, NEXT};
use kinfolk_tests::support::stranger::{Stranger, say};
use kinfolk_tests::support::wait::{eventually, within};
use tokio::task::JoinSet;

use crate::scene::SOON;
use crate::victim::{ALONE, Role, Victim, percentile};

const IDS: u64 = 1000;
const DIALS_PER_ID: u64 = 10;

/// How many of the ids attack at the same time, all with all their dials.
const AT_ONCE: usize = 50;

/// How long an attacker waits for a handshake, and stays if it gets one: less than until it would send its first packet again, and enough
/// for that packet to leave, as ten dials begin at once at each of fifty attackers.
const PATIENCE: Duration = Duration::from_millis(700);

/// How long the whole flood may take, on a busy machine.
const FLOOD: Duration = Duration::from_secs(120);

/// Honest peers that come during the flood, spread over its dials. Each costs some 20 KiB for a while, which are none of the attackers'.
const NEWCOMERS: u64 = 100;

const GROWTH_MAX: u64 = 32 * 1024 * 1024;

/// What one address may have live, by default.
const LIVE_PER_ADDRESS: u64 = 8;

fn key(n: u64) -> SecretKey {
    let mut key = [0xa7; 32];
    key[..8].copy_from_slice(&n.to_be_bytes());
    SecretKey::from_bytes(&key)
}

/// All dials, each of which is begun and counted.
async fn flood(node: EndpointAddr, dials: Arc<AtomicU64>) {
    let id = Arc::new(AtomicU64::new(0));
    let mut attackers = JoinSet::new();
    for _ in 0..AT_ONCE {
        let (node, id, dials) = (node.clone(), Arc::clone(&id), Arc::clone(&dials));
        attackers.spawn(async move {
            loop {
                let id = id.fetch_add(1, Ordering::Relaxed);
                if id >= IDS {
                    return;
                }
                let stranger = Stranger::builder(key(id)).handshake_deadline(PATIENCE);
                let stranger = Arc::new(stranger.bind().await);
                let mut attack = JoinSet::new();
                for n in 1..=DIALS_PER_ID {
                    dials.fetch_add(1, Ordering::Relaxed);
                    attack.spawn(dial(Arc::clone(&stranger), node.clone(), n));
                }
                attack.join_all().await;
            }
        });
    }
    attackers.join_all().await;
}

async fn dial(stranger: Arc<Stranger>, node: EndpointAddr, n: u64) {
    if let Ok(connection) = stranger.connect(node, &alpn()).await {
        // Half of them never say hello.
        let hello = bytes(&Control::Hello(hello(1, n)));
        let words = if n.is_multiple_of(2) { &hello[..] } else { b"" };
        let _said = say(&connection, words).await;
        tokio::time::sleep(PATIENCE).await;
    }
}

/// Attackers that come first, take as many places as their address may have, and stay. Those that get none leave.
async fn occupation(node: &EndpointAddr) -> Vec<(Stranger, Guest)> {
    let mut seated = Vec::new();
    for n in IDS..IDS + 2 * LIVE_PER_ADDRESS {
        let stranger = Stranger::builder(key(n)).handshake_deadline(PATIENCE * 2).bind().await;
        if let Ok(connection) = stranger.connect(node.clone(), &alpn()).await {
            let hello = bytes(&Control::Hello(hello(1, 1)));
            let (send, mut receive) = say(&connection, &hello).await.expect("the node listens");
            if hear(&mut receive).await.is_some() {
                seated.push((stranger, Guest { connection, send, receive }));
            }
        }
    }
    seated
}

/// How long a new peer of another address takes from its dial to its first answer.
async fn newcomer(victim: &Victim, n: usize) -> (Duration, Node) {
    // Each of an address of its own, so that it is a flood of theirs no more than a household's.
    let [high, low] = u16::try_from(n).expect("few").to_be_bytes();
    let elsewhere = (Ipv4Addr::new(127, 79, high, low), 0).into();
    // On a thread of its own: it shares the machine with the attackers, not their runtime.
    let honest = Node::builder(NETWORK).bind_addr(elsewhere).network_thread().spawn().await;
    let honest = honest.expect("the node starts");
    let dialled = Instant::now();
    let call = honest.call::<_, u64>(victim.addr.clone(), NEXT, &1_u64);
    assert_eq!(within(SOON, "the honest answer", call).await, Ok(2));
    (dialled.elapsed(), honest)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_dials_of_a_thousand_ids_at_one_address_cost_little_and_keep_nobody_out() {
    let _alone = ALONE.lock().await;
    let mut victim = Victim::start(Role::Guarded).await;
    let before = victim.figures().await;
    let seated = occupation(&victim.addr).await;
    assert_eq!(u64::try_from(seated.len()), Ok(LIVE_PER_ADDRESS));
    let begun = Instant::now();
    let dials = Arc::new(AtomicU64::new(0));
    let flood = tokio::spawn(flood(victim.addr.clone(), Arc::clone(&dials)));
    let (mut times, mut live, mut growth) = (Vec::new(), 0, 0);
    for n in 0..NEWCOMERS {
        let turn = IDS * DIALS_PER_ID * n / NEWCOMERS;
        eventually(FLOOD, "dials", async || dials.load(Ordering::Relaxed) >= turn).await;
        let (time, honest) = newcomer(&victim, times.len() + 1).await;
        times.push(time);
        let now = victim.figures().await;
        growth = now.memory().saturating_sub(before.memory()).max(growth);
        live = now.get("inbound").max(live);
        // Those of an address, and the newcomer and the one before it, which may still be closing.
        assert!(now.get("inbound") <= LIVE_PER_ADDRESS + 2, "{now:?}");
        // A handshake that is over is counted until the accept loop has seen that.
        assert!(now.get("handshakes") <= 2 * LIVE_PER_ADDRESS + 2, "{now:?}");
        within(SOON, "the newcomer leaves", honest.shutdown()).await;
    }
    flood.await.expect("the attackers do not fail");
    let (took, dials) = (begun.elapsed(), dials.load(Ordering::Relaxed));
    assert!(took < FLOOD, "the flood takes too long to tell anything");
    let after = victim.figures().await;
    for (stranger, guest) in seated {
        guest.connection.close(0_u32.into(), b"");
        stranger.close().await;
    }
    let busy = Duration::from_millis(after.get("busy_ms") - before.get("busy_ms"));
    let (median, p99) = (percentile(&mut times, 50), percentile(&mut times, 99));
    println!(
        "{dials} dials in {took:.1?}: {} newcomers answered after {median:.0?}, p99 {p99:.0?}, at most {live} inbound, \
         {} KiB more memory, {busy:.1?} of processor time, {} ignored",
        times.len(),
        growth / 1024,
        after.get("address_rate") - before.get("address_rate"),
    );
    assert_eq!(dials, IDS * DIALS_PER_ID);
    // Nearly all that came was turned away, without a word and by address. On a busy machine some attackers are too slow even to send.
    let ignored = after.get("address_rate") - before.get("address_rate");
    assert!(ignored >= dials / 2, "{after:?}");
    assert!(p99 < Duration::from_secs(1), "{times:?}");
    assert!(growth < GROWTH_MAX, "{growth} bytes");
    assert!(busy <= took, "{busy:?} of processor time in {took:?}");
    victim
        .until("nothing is left of them", |now| {
            now.get("handshakes") == 0 && now.get("inbound") == 0
        })
        .await;
}
