//! The row about memory: what consumers that read nothing cost the process of their producer.
//!
//! The consumers are in a process of their own, so that what waits at their end (their buffers and QUIC's receive windows) is not counted. What is: the heap of the producer's process,
//! from when all are subscribed and nothing was sent, to when nothing more can be sent. That is the log, what each feed has taken out of it, and the send side of QUIC.

use std::process::{Command, Stdio};
use std::time::Duration;

use kinfolk::{EndpointAddr, FanoutLimits};
use kinfolk_bench_probe as probe;
use tokio::time::{sleep, timeout};

use crate::blob::Blob;
use crate::stats::{Spread, Target};
use crate::{Flavour, Options, typed};

const ROLE: &str = "KINFOLK_BENCH_PRODUCER";
const CONSUMERS: usize = 50;

/// How long nothing can be sent until it is sure that nothing more can.
const FULL: Duration = Duration::from_secs(2);

/// Whose consumers this process is, if it is that.
pub fn role() -> Option<EndpointAddr> {
    let role = std::env::var(ROLE).ok()?;
    let (id, address) = role.split_once(' ').unwrap();
    Some(EndpointAddr::new(id.parse().unwrap()).with_ip_addr(address.parse().unwrap()))
}

/// Subscribes and reads nothing until the other process has had enough.
pub fn consume(producer: EndpointAddr) {
    Flavour::MultiThread.runtime().block_on(async move {
        let node = typed::node(Some(producer)).await;
        let _consumers = typed::consumers(&node, CONSUMERS).await;
        std::future::pending::<()>().await;
    });
}

/// Runs the row if it is asked for and prints it.
pub fn run(options: &Options) {
    let flavour = Flavour::MultiThread;
    if !options.wants("memory", flavour) || options.only.is_some() {
        return;
    }
    let log = FanoutLimits::default().bytes as f64;
    let runs: Vec<f64> =
        (0..options.runs()).map(|_| flavour.runtime().block_on(measure())).collect();
    let queues = log * CONSUMERS as f64;
    let kib = |bytes: f64| bytes / 1024.0;
    println!("\nmemory {flavour}: {CONSUMERS} consumers that read nothing, in another process");
    println!("sum of their queues {:.0} KiB, the log {:.0} KiB", kib(queues), kib(log));
    println!(
        "heap of the producer's process: +{:.0} KiB",
        Spread::of(runs.iter().map(|run| kib(*run)))
    );
    for (of, bytes, target) in
        [("queues", queues, Target::AtMost(1.10)), ("log", log, Target::None)]
    {
        let ratio = Spread::of(runs.iter().map(|run| run / bytes));
        println!("to the {of}: {ratio:.3} {}", target.verdict(ratio.median));
    }
}

async fn measure() -> f64 {
    let node = typed::node(None).await;
    let producer = typed::producer(&node).await;
    let addr = node.addr();
    let role = format!("{} {}", addr.id, addr.ip_addrs().next().unwrap());
    let mut child = Command::new(std::env::current_exe().unwrap())
        .env(ROLE, role)
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    producer.when_subscribed(CONSUMERS).await.unwrap();
    sleep(FULL).await;
    probe::count(true);
    let before = probe::heap().bytes;
    let blob = Blob::new(1024);
    while timeout(FULL, producer.send(&blob)).await.is_ok() {}
    let more = probe::heap().bytes - before;
    probe::count(false);
    child.kill().unwrap();
    child.wait().unwrap();
    drop(producer);
    node.shutdown().await;
    more as f64
}
