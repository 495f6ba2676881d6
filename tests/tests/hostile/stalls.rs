//! As many streams as a peer may open, all stalled: what they cost the others, and how much memory.

use std::time::{Duration, Instant};

use iroh::endpoint::{RecvStream, SendStream};
use kinfolk::{Limits, Node};
use kinfolk_core::wire::{Answer, StreamMode};
use kinfolk_tests::support::guest::{Guest, header, hello};
use kinfolk_tests::support::node::{NEXT, builder};
use kinfolk_tests::support::stranger::Stranger;
use kinfolk_tests::support::wait::{eventually, within};
use tokio::task::JoinSet;

use crate::scene::{HONEST, SOON, STUCK, answer};
use crate::victim::{ALONE, NARROW, Role, Victim, percentile};

const ROUNDS: u64 = 7;
const CALLS_PER_ROUND: usize = 100;

/// What a peer that stalls may cost in memory: its window, as much again for what the node keeps beside it.
const PER_PEER_MAX: u64 = 16 * 1024 * 1024;

/// More than fits into the window of a stream at [`Role::Narrow`]; as much on each of hundreds of streams is more than fits at
/// [`Role::Plain`].
const UNREAD: usize = NARROW as usize;

/// Opens as many streams as the node lets a peer have, and stalls each: some in their header, the others with data that nobody reads and
/// that fills the window of the connection.
struct Stall {
    guest: Guest,
    _unfinished: Vec<(SendStream, RecvStream)>,
    _writers: JoinSet<()>,
}

impl Stall {
    async fn begin(victim: &mut Victim, stranger: &Stranger, n: u64) -> Self {
        let Limits { streams_per_peer, negotiating_per_peer, .. } = Limits::default();
        let guest = victim.welcomes(stranger, hello(1, n)).await;
        let served =
            u64::from(streams_per_peer) - u64::try_from(negotiating_per_peer).expect("few");
        let mut writers = JoinSet::new();
        let mut streams = Vec::new();
        for _ in 0..served {
            let (send, mut receive) = guest.ask(&header(STUCK, StreamMode::Acked)).await;
            assert_eq!(answer(&mut receive).await, Some(Answer::Ack));
            streams.push((send, receive));
        }
        let mut unfinished = Vec::new();
        for _ in 0..negotiating_per_peer {
            unfinished.push(guest.ask(b"\0").await);
        }
        victim
            .until("every stream is stalled", |now| {
                now.get("stuck") == served && now.get("streams") == u64::from(streams_per_peer)
            })
            .await;
        for (mut send, receive) in streams {
            writers.spawn(async move {
                let _unread = receive;
                let _ = send.write_all(&vec![7; UNREAD]).await;
                std::future::pending().await
            });
        }
        let window = u64::from(Limits::default().connection_window);
        let connection = &guest.connection;
        let is_full = async || connection.stats().sent_bytes >= window;
        eventually(SOON, "the window is full", is_full).await;
        Self { guest, _unfinished: unfinished, _writers: writers }
    }

    async fn end(self, victim: &mut Victim) {
        self.guest.connection.close(0_u32.into(), b"");
        victim.until("nothing is left of them", |now| now.get("streams") == 0).await;
    }
}

/// How long each of many calls takes, one after the other.
async fn round_trips(honest: &Node, victim: &Victim, times: &mut Vec<Duration>) {
    for _ in 0..CALLS_PER_ROUND {
        let asked = Instant::now();
        let call = honest.call::<_, u64>(victim.addr.id, NEXT, &1_u64);
        assert_eq!(within(HONEST, "the honest answer", call).await, Ok(2));
        times.push(asked.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn as_many_streams_as_a_peer_may_open_all_stalled_cost_others_at_most_twice_their_round_trip()
{
    let _alone = ALONE.lock().await;
    let mut victim = Victim::start(Role::Plain).await;
    let honest = builder(2).network_thread().peer(victim.addr.clone()).spawn().await;
    let honest = honest.expect("the node starts");
    let mallory = Stranger::bind(66).await;
    let (mut calm, mut stalled) = (Vec::new(), Vec::new());
    // The first calls make the link, and warm what is made once.
    round_trips(&honest, &victim, &mut Vec::new()).await;
    // Calm and stalled by turns, so that whatever else the machine does concerns both.
    for n in 1..=ROUNDS {
        round_trips(&honest, &victim, &mut calm).await;
        let stall = Stall::begin(&mut victim, &mallory, n).await;
        round_trips(&honest, &victim, &mut stalled).await;
        let streams = u64::from(Limits::default().streams_per_peer);
        assert_eq!(
            victim.figures().await.get("streams"),
            streams,
            "they are stalled all the while"
        );
        stall.end(&mut victim).await;
    }
    let ratio =
        percentile(&mut stalled, 50).as_secs_f64() / percentile(&mut calm, 50).as_secs_f64();
    println!(
        "round trip {} µs before and {} µs with 1024 stalled streams ({ratio:.2}×), p99 {} µs and {} µs",
        percentile(&mut calm, 50).as_micros(),
        percentile(&mut stalled, 50).as_micros(),
        percentile(&mut calm, 99).as_micros(),
        percentile(&mut stalled, 99).as_micros(),
    );
    assert!(ratio <= 2.0, "{ratio}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_stalls_every_stream_with_full_windows_takes_at_most_16_mib() {
    let _alone = ALONE.lock().await;
    let mut victim = Victim::start(Role::Plain).await;
    let before = victim.figures().await.memory();
    let window = u64::from(Limits::default().connection_window);
    let mallory = Stranger::bind(66).await;
    let _stall = Stall::begin(&mut victim, &mallory, 1).await;
    let growth = victim.filled(before, window).await;
    println!("1024 stalled streams and a full window: {} KiB more memory", growth / 1024);
    assert!(growth <= PER_PEER_MAX, "{growth} bytes");
}

const CONNECTIONS: u8 = 100;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unread_data_on_a_hundred_connections_takes_no_more_than_their_windows_and_a_quarter() {
    let _alone = ALONE.lock().await;
    let mut victim = Victim::start(Role::Narrow).await;
    let (mut strangers, mut streams) = (Vec::new(), Vec::new());
    for key in 0..CONNECTIONS {
        let stranger = Stranger::bind(100 + key).await;
        let guest = victim.welcomes(&stranger, hello(1, 1)).await;
        // The window of a stream is a quarter of the connection's: these fill it, with more behind.
        for _ in 0..5 {
            streams.push(guest.ask(&header(STUCK, StreamMode::Acked)).await);
        }
        strangers.push((stranger, guest));
    }
    let all = u64::try_from(streams.len()).expect("few");
    victim.until("all are served", |now| now.get("stuck") == all).await;
    // What connections and streams cost without data is not the windows'.
    let before = victim.figures().await.memory();
    let mut writers = JoinSet::new();
    for (mut send, receive) in streams {
        writers.spawn(async move {
            let _unread = receive;
            let _ = send.write_all(&vec![7; UNREAD]).await;
            std::future::pending::<()>().await;
        });
    }
    let windows = u64::from(NARROW) * u64::from(CONNECTIONS);
    let growth = victim.filled(before, windows).await;
    println!(
        "{CONNECTIONS} windows of {} KiB: {} KiB more memory, {:.2}× their sum",
        NARROW / 1024,
        growth / 1024,
        growth as f64 / windows as f64
    );
    // Data is kept in the pieces in which it came, of a packet each, and each piece has its own place and its own bookkeeping.
    assert!(growth <= windows + windows / 4, "{growth} bytes for {windows} of windows");
}
