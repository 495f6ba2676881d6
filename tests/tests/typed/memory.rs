//! What strangers that lie as producers cost a node in memory. It is alone in a process of its own, so that it is its memory that is measured, and not theirs.
//!
//! The process is this test program once more, with the one ignored test below. It writes where it is, and answers each line with a figure.

use std::process::Stdio;
use std::str::FromStr;
use std::time::Duration;

use iroh::endpoint::SendStream;
use kinfolk::{EndpointAddr, EndpointId, Limits};
use kinfolk_core::wire::subscription::ControlEntry;
use kinfolk_tests::support::node::{builder, real_addr};
use kinfolk_tests::support::stranger::read_until_end;
use kinfolk_tests::support::wait::{own_memory, within};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::cheats::{Producing, accepts, entry};
use crate::scene::{SOON, consumer};

/// Set for the process.
const CHILD: &str = "KINFOLK_CONSUMES";

/// What its answers begin with; libtest writes to the same stream.
const ANSWER: &str = "consumer: ";

/// How long it may take to answer on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// The longest item that it takes, and what it lets wait for its app: the defaults.
const ITEM_MAX: u64 = 256 * 1024;
const BUFFER: u64 = 1024 * 1024;

/// Far more than it may take of one that does not end.
const FLOOD: usize = 64 * 1024 * 1024;

/// The keys of those that say garbage.
const GARBAGE: std::ops::Range<u8> = 110..130;

struct Consuming {
    addr: EndpointAddr,
    ask: ChildStdin,
    said: Lines<BufReader<ChildStdout>>,
    _process: Child,
}

impl Consuming {
    async fn start() -> Self {
        let program = std::env::current_exe().expect("a test is a program");
        let test = "memory::a_node_that_consumes_and_whose_app_does_not_read";
        let mut process = Command::new(program)
            .args(["--exact", test, "--ignored", "--nocapture"])
            .env(CHILD, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the process starts");
        let ask = process.stdin.take().expect("it is piped");
        let mut said = BufReader::new(process.stdout.take().expect("it is piped")).lines();
        let at = answer(&mut said).await;
        let (id, socket) = at.split_once(' ').expect("an id and an address");
        let id = EndpointId::from_str(id).expect("an id");
        let addr = EndpointAddr::new(id).with_ip_addr(socket.parse().expect("an address"));
        Self { addr, ask, said, _process: process }
    }

    async fn memory(&mut self) -> u64 {
        self.ask.write_all(b"\n").await.expect("it is alive");
        answer(&mut self.said).await.parse().expect("a number")
    }

    /// A producer that is accepted and then says garbage, until it is cut off.
    async fn is_told_garbage(&self, key: u8) {
        let cheat = Producing::of(key, self.addr.clone()).await;
        let (mut asked, _) = cheat.asked().await;
        asked.send.write_all(&accepts(0)).await.expect("the node reads");
        let mut seed = u32::from(key);
        let garbage: Vec<u8> = std::iter::repeat_with(|| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            seed.to_be_bytes()[0] | 0x80
        })
        .take(ITEM_MAX as usize)
        .collect();
        within(SOON, "it is cut off", async {
            while asked.send.write_all(&garbage).await.is_ok() {}
        })
        .await;
        read_until_end(&mut asked.receive, SOON).await;
        cheat.leaves().await;
    }
}

async fn answer(said: &mut Lines<BufReader<ChildStdout>>) -> String {
    within(PATIENCE, "an answer of the process", async {
        loop {
            let line = said.next_line().await.expect("it can be read");
            if let Some(answer) = line.expect("the process is alive").strip_prefix(ANSWER) {
                return answer.to_owned();
            }
        }
    })
    .await
}

#[test]
#[ignore = "it is the node that another test attacks, started by it in a process of its own"]
fn a_node_that_consumes_and_whose_app_does_not_read() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let node = builder(1).limits(Limits::default()).discovery(true).spawn().await;
        let node = node.expect("it starts");
        let _unread = consumer(&node).await;
        println!("\n{ANSWER}{} {}", node.id(), real_addr(&node));
        let mut questions = BufReader::new(tokio::io::stdin()).lines();
        while let Ok(Some(_)) = questions.next_line().await {
            println!("\n{ANSWER}{}", own_memory());
        }
    });
}

/// Sends these bytes again and again until nobody takes more; whether it was held up.
async fn is_held_up(send: &mut SendStream, bytes: &[u8]) -> bool {
    let many = bytes.repeat(64 * 1024 / bytes.len());
    let mut sent = 0;
    while sent < FLOOD {
        match tokio::time::timeout(Duration::from_secs(1), send.write_all(&many)).await {
            Ok(written) => written.expect("the node is patient"),
            Err(_) => return true,
        }
        sent += many.len();
    }
    false
}

#[tokio::test(flavor = "multi_thread")]
async fn producers_without_end_with_long_claims_and_with_garbage_cost_a_consumer_what_may_wait_and_their_windows()
 {
    let mut consuming = Consuming::start().await;
    // What is made once.
    for key in 100..103 {
        consuming.is_told_garbage(key).await;
    }
    let before = consuming.memory().await;
    let mut kept = Vec::new();
    let floods = [entry(&[7; 1000]), entry(&[]), ControlEntry::Gap { missed: 1 }.encode()];
    for (key, bytes) in (60..).zip(floods) {
        let cheat = Producing::of(key, consuming.addr.clone()).await;
        let (mut asked, _) = cheat.asked().await;
        asked.send.write_all(&accepts(0)).await.expect("the node reads");
        assert!(is_held_up(&mut asked.send, &bytes).await, "{bytes:?} without end");
        kept.push((cheat, asked));
    }
    // The longest item, of which the last byte never comes.
    let long = entry(&vec![7; ITEM_MAX as usize]);
    for key in 70..73 {
        let cheat = Producing::of(key, consuming.addr.clone()).await;
        let (mut asked, _) = cheat.asked().await;
        asked.send.write_all(&accepts(0)).await.expect("the node reads");
        asked.send.write_all(&long[..long.len() - 1]).await.expect("the node reads");
        kept.push((cheat, asked));
    }
    let flooded = consuming.memory().await;
    for key in GARBAGE {
        consuming.is_told_garbage(key).await;
    }
    let garbage = consuming.memory().await.saturating_sub(flooded);
    let flood = flooded.saturating_sub(before);
    println!("{flood} bytes more, and {garbage} for garbage");
    // A window for each, and what a receiver has read: an item that is not whole, and as much again as it makes room for.
    let each = u64::from(Limits::default().stream_window) + 2 * ITEM_MAX;
    let sources = u64::try_from(kept.len()).expect("few");
    assert!(flood < BUFFER + sources * each, "{flood} bytes more");
    // They are gone; what a node remembers of a peer that was there is not measured by itself.
    let peers = u64::try_from(GARBAGE.len()).expect("few");
    assert!(garbage < peers * ITEM_MAX, "{garbage} bytes more");
}
