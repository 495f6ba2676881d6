//! The rows about visitors: what a node, or iroh's endpoint alone, keeps of peers that came once, asked for something, and went.

use std::time::Duration;

use iroh::{Endpoint, EndpointAddr};
use kinfolk::{Node, ProtocolName, Service};
use kinfolk_bench_probe as probe;

use crate::Options;
use crate::child::{self, tell};
use crate::network;
use crate::stats::Target;

/// How many come, one after the other.
const VISITORS: usize = 1000;

/// By then iroh has forgotten them: it keeps what it knows of a remote for a minute.
const LATER: Duration = Duration::from_secs(75);

const GREET: ProtocolName = ProtocolName::from_static("greet/1");

const ALPN: &[u8] = b"greet/1";

/// Runs the rows if they are asked for and prints them.
pub fn run(options: &Options) {
    if !options.wants("gone") {
        return;
    }
    println!("\ngone, {VISITORS} visitors one after the other, one run");
    let node = child::run("gone node");
    let raw = child::run("gone raw");
    for (name, target) in
        [("heap per visitor, B", Target::None), ("the same later, B", Target::AtMost(1024.0))]
    {
        let verdict = target.verdict(node[name]);
        println!("  {name:<34} {:>9.0}  endpoint {:.0}  {verdict}", node[name], raw[name]);
    }
}

/// One run.
pub async fn measure(who: &str) {
    if who == "raw" {
        let host = network::endpoint().alpns(vec![ALPN.to_vec()]).bind().await.unwrap();
        let addr = EndpointAddr::new(host.id()).with_ip_addr(host.bound_sockets()[0]);
        let _serving = tokio::spawn(serve(host));
        visits(async || ask(&addr).await).await;
    } else {
        let host = network::builder().discovery(false).spawn().await.unwrap();
        let greet = Service::call(|_peer, n: u64| async move { Ok(n + 1) });
        host.serve(GREET, greet).await.unwrap();
        visits(async || call(&host).await).await;
    }
}

async fn visits(visit: impl AsyncFn()) {
    // What is made once.
    for _ in 0..10 {
        visit().await;
    }
    probe::count(true);
    let before = probe::heap().bytes;
    for _ in 0..VISITORS {
        visit().await;
    }
    let kept = || (probe::heap().bytes - before) as f64 / VISITORS as f64;
    tell("heap per visitor, B", kept());
    tokio::time::sleep(LATER).await;
    tell("the same later, B", kept());
}

async fn call(host: &Node) {
    let visitor = network::builder().discovery(false).spawn().await.unwrap();
    let answer: u64 = visitor.call(host.addr(), GREET, &1_u64).await.unwrap();
    assert_eq!(answer, 2);
    visitor.shutdown().await;
}

async fn serve(host: Endpoint) {
    while let Some(incoming) = host.accept().await {
        tokio::spawn(async move {
            let connection = incoming.await.unwrap();
            let (mut send, mut receive) = connection.accept_bi().await.unwrap();
            receive.read_to_end(ALPN.len()).await.unwrap();
            send.write_all(ALPN).await.unwrap();
            send.finish().unwrap();
            connection.closed().await;
        });
    }
}

async fn ask(host: &EndpointAddr) {
    let visitor = network::endpoint().bind().await.unwrap();
    let connection = visitor.connect(host.clone(), ALPN).await.unwrap();
    let (mut send, mut receive) = connection.open_bi().await.unwrap();
    send.write_all(ALPN).await.unwrap();
    send.finish().unwrap();
    assert_eq!(receive.read_to_end(ALPN.len()).await.unwrap(), ALPN);
    connection.close(0_u32.into(), b"");
    visitor.close().await;
}
