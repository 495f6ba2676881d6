//! The rows about large catalogs: taking a record, and exchanging catalogs that are equal, by the machines alone and between two nodes.

use std::time::{Duration, Instant};

use kinfolk::error::StreamError;
use kinfolk::{ExchangeReport, Limits, Node, ProtocolName, SecretKey};
use kinfolk_bench_probe as probe;
use kinfolk_core::catalog::{Catalog, CatalogLimits, Input, Sighting, Source};
use kinfolk_core::exchange::{self, Exchange, ExchangeLimits, Output, Role};
use kinfolk_core::gate::Rate;
use kinfolk_core::id::NetworkId;
use kinfolk_core::reconcile::Salt;
use kinfolk_core::record::{Draft, Reach, Record, Seq, Topic, UnixMillis};
use kinfolk_core::wire::exchange::{MESSAGE_MAX, Tokens};
use kinfolk_core::wire::frame::{self, LENGTH_BYTES};

use crate::Options;
use crate::child::{self, spread, tell};
use crate::network;
use crate::stats::{Target, percentile};

const RECORDS: usize = 10_000;

const EXCHANGE: ProtocolName = ProtocolName::from_static("kinfolk/exchange/1");

/// Exchanges between the two nodes, one after the other.
const TIMES: usize = 100;

/// Runs the rows that are asked for and prints them.
pub fn run(options: &Options) {
    let rows = |role: &str, rows: &[(&str, Target)]| {
        if !options.wants(role) {
            return;
        }
        let run = || child::run(&format!("{role} {RECORDS}"));
        let runs: Vec<_> = (0..options.runs).map(|_| run()).collect();
        println!("\n{role}, catalogs of {RECORDS} records, {} runs", runs.len());
        for (name, target) in rows {
            let spread = spread(&runs, name);
            println!("  {name:<40} {spread:>26.2} {}", target.verdict(spread.median));
        }
    };
    rows(
        "core",
        &[
            ("take a verified record, µs", Target::AtMost(5.0)),
            ("check a signature, µs", Target::None),
            ("equal: cpu per side, ms", Target::AtMost(1.0)),
            ("equal: bytes per side", Target::AtMost(1024.0)),
        ],
    );
    rows(
        "session",
        &[
            ("equal: cpu per side, ms", Target::AtMost(1.0)),
            ("equal: bytes per side", Target::AtMost(1024.0)),
            ("equal: time, ms", Target::None),
        ],
    );
}

fn network_id() -> NetworkId {
    NetworkId::from_name("kinfolk-bench")
}

fn clock() -> UnixMillis {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    UnixMillis::new(u64::try_from(now.as_millis()).unwrap())
}

fn key(number: u64) -> SecretKey {
    let mut seed = [1; 32];
    seed[..8].copy_from_slice(&number.to_be_bytes());
    SecretKey::from_bytes(&seed)
}

/// Records of some 200 bytes.
fn records(count: usize) -> Vec<Record> {
    let mut draft = Draft::new(network_id());
    for host in [7, 8] {
        let address = ([127, 0, 0, 1], host).into();
        draft.add_address(kinfolk::TransportAddr::Ip(address)).unwrap();
    }
    draft.add_topic(Topic::from_name("weather")).unwrap();
    let now = clock();
    let sign = |number| draft.sign(&key(number), Seq::new(1), now).unwrap();
    (0..count as u64).map(sign).collect()
}

/// A catalog with these records, of the node with this key. Says how long each took.
fn catalog(number: u64, records: &[Record]) -> (Catalog, Duration) {
    let (me, peer) = (key(number), key(u64::MAX).public());
    let limits = CatalogLimits { records: records.len() * 3, dead: records.len() };
    let mut catalog = Catalog::new(me.public(), limits);
    let own = Draft::new(network_id()).sign(&me, Seq::new(1), clock()).unwrap();
    let (now, clock) = (Instant::now(), clock());
    let source = Source::Peer { peer, reach: Reach::Machine };
    let mut out = Vec::new();
    catalog.handle(now, Input::Own(own), &mut out);
    let cpu = probe::cpu_time();
    for record in records {
        let sighting = Sighting::new(record.clone(), now, clock, Duration::ZERO);
        catalog.handle(now, Input::Heard { sighting, source }, &mut out);
        out.clear();
    }
    let took = probe::cpu_time() - cpu;
    assert_eq!(catalog.known().len(), records.len());
    (catalog, took)
}

/// One run of the machines alone.
pub fn measure_core(count: usize) {
    let records = records(count);
    let cpu = probe::cpu_time();
    for record in records.iter().take(1000) {
        Record::verify(record.bytes(), network_id(), clock()).unwrap();
    }
    tell("check a signature, µs", (probe::cpu_time() - cpu).as_secs_f64() * 1e6 / 1000.0);
    let (ours, took) = catalog(u64::MAX - 1, &records);
    tell("take a verified record, µs", took.as_secs_f64() * 1e6 / count as f64);
    // The node's own records differ, as they do between any two nodes that have not met; so they are told before.
    let (theirs, _) = catalog(u64::MAX - 2, &records);
    let catalogs = introduced(ours, theirs);
    let mut best = Duration::MAX;
    let mut bytes = 0;
    for salt in 0..20 {
        let (cpu, sent) = converse(&catalogs, salt);
        best = best.min(cpu);
        bytes = bytes.max(sent);
    }
    tell("equal: cpu per side, ms", best.as_secs_f64() * 1e3);
    tell("equal: bytes per side", bytes as f64);
}

/// The two catalogs, each with the other's own record.
fn introduced(mut ours: Catalog, mut theirs: Catalog) -> [Catalog; 2] {
    let own = |catalog: &Catalog| catalog.known().own().unwrap().record().clone();
    let (us, them) = (own(&ours), own(&theirs));
    for (catalog, record) in [(&mut ours, them), (&mut theirs, us)] {
        let (now, peer) = (Instant::now(), record.id());
        let sighting = Sighting::new(record, now, clock(), Duration::ZERO);
        let source = Source::Peer { peer, reach: Reach::Machine };
        catalog.handle(now, Input::Heard { sighting, source }, &mut Vec::new());
    }
    [ours, theirs]
}

/// An exchange between two catalogs: the CPU time of the side that needs more, and the bytes of the side that sends more.
fn converse(catalogs: &[Catalog; 2], salt: u8) -> (Duration, u64) {
    let roles = [Role::Initiator { salt: Salt::from_bytes([salt; 16]) }, Role::Responder];
    let mut cpu = [Duration::ZERO; 2];
    let mut sides: Vec<_> = roles
        .into_iter()
        .zip(catalogs)
        .map(|(role, catalog)| {
            Exchange::new(role, catalog.snapshot(), Tokens::none(), ExchangeLimits::default())
        })
        .collect();
    let now = Instant::now();
    let (mut frames, mut bytes) = ([Vec::new(), Vec::new()], [0; 2]);
    let (mut side, mut begun) = (0, [false; 2]);
    while sides.iter().any(|side| !side.is_over()) {
        let start = probe::cpu_time();
        let mut out = Vec::new();
        if !std::mem::replace(&mut begun[side], true) {
            sides[side].handle(now, exchange::Input::Start, &mut out);
        }
        for frame in std::mem::take(&mut frames[side]) {
            let frame: Vec<u8> = frame;
            sides[side].handle(now, exchange::Input::Received(&frame[LENGTH_BYTES..]), &mut out);
        }
        cpu[side] += probe::cpu_time() - start;
        for output in out {
            match output {
                Output::Send(frame) => {
                    bytes[side] += frame.len() as u64;
                    frames[1 - side].push(frame);
                }
                Output::Learned { .. } => panic!("they are equal"),
                _ => {}
            }
        }
        side = 1 - side;
    }
    (cpu[0].max(cpu[1]), bytes[0].max(bytes[1]))
}

/// Hands a node all that a catalog knows, as a peer that does nothing else.
async fn feed(node: &Node, catalog: &Catalog, records: usize) {
    let feeder = network::builder().discovery(false).spawn().await.unwrap();
    while node.catalog().len() < records {
        // It may be refused as long as the one before is being seen to.
        let _ = tell_all(&feeder, node, catalog).await;
    }
    feeder.shutdown().await;
}

/// One exchange of such a peer, as far as the bounds of exchanges let it come.
async fn tell_all(feeder: &Node, node: &Node, catalog: &Catalog) -> Result<(), StreamError> {
    let (mut send, mut recv) = feeder.open_eager(node.addr(), EXCHANGE).await.unwrap();
    let role = Role::Initiator { salt: Salt::from_bytes([7; 16]) };
    let limits = ExchangeLimits::default();
    let mut machine = Exchange::new(role, catalog.snapshot(), Tokens::none(), limits);
    let mut out = Vec::new();
    machine.handle(Instant::now(), exchange::Input::Start, &mut out);
    loop {
        for output in out.drain(..) {
            if let Output::Send(frame) = output {
                send.write_all(&frame).await?;
            }
        }
        if machine.is_over() {
            break;
        }
        let mut prefix = [0; LENGTH_BYTES];
        recv.read_exact(&mut prefix).await?;
        let mut body = vec![0; frame::length(prefix, MESSAGE_MAX).unwrap()];
        recv.read_exact(&mut body).await?;
        machine.handle(Instant::now(), exchange::Input::Received(&body), &mut out);
    }
    send.finish()
}

/// The default limits, without those that a benchmark runs into.
fn limits(records: usize) -> Limits {
    let mut limits = Limits::default();
    limits.catalog.records = records * 3;
    let plenty = Rate::new(1_000_000, Duration::from_micros(1));
    limits.intake.checks = plenty;
    limits.intake.checks_per_source = plenty;
    limits.quota.burst = 100_000;
    limits.quota.bytes = u64::from(u32::MAX);
    // What is known here is nowhere: nobody shall look for it meanwhile.
    limits.walk.first_wait = Duration::from_secs(3600);
    limits.walk.pause = Duration::from_secs(3600);
    limits.walk.longest_wait = Duration::from_secs(3600);
    limits
}

/// One exchange. The one before may still be coming to its end at the other node, which takes one at a time.
async fn sync(ours: &Node, theirs: &Node) -> ExchangeReport {
    let start = Instant::now();
    loop {
        match ours.sync_with(theirs.addr()).await {
            Ok(report) => return report,
            Err(error) => assert!(start.elapsed() < Duration::from_secs(30), "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// One run between two nodes.
pub async fn measure_session(count: usize) {
    let records = records(count);
    let (known, _) = catalog(u64::MAX - 1, &records);
    let start = || network::builder().limits(limits(count)).spawn();
    let (ours, theirs) = (start().await.unwrap(), start().await.unwrap());
    for node in [&ours, &theirs] {
        feed(node, &known, count + 1).await;
    }
    // One session for all, as between neighbours: no exchange pays for a handshake.
    let _held = ours.hold(theirs.addr());
    // The first ones teach them each other.
    for _ in 0..3 {
        sync(&ours, &theirs).await;
    }
    let idle = Duration::from_secs(2);
    let cpu = probe::cpu_time();
    tokio::time::sleep(idle).await;
    let idle = (probe::cpu_time() - cpu).as_secs_f64() / idle.as_secs_f64();
    let (start, cpu) = (Instant::now(), probe::cpu_time());
    let (mut most, mut took) = (0, Vec::new());
    for _ in 0..TIMES {
        let report = sync(&ours, &theirs).await;
        assert_eq!((report.learnt, report.is_complete), (0, true));
        most = most.max(report.bytes_sent).max(report.bytes_received);
        took.push(report.duration);
    }
    let cpu = (probe::cpu_time() - cpu).as_secs_f64() - idle * start.elapsed().as_secs_f64();
    tell("equal: time, ms", percentile(&mut took, 0.5).as_secs_f64() * 1e3);
    tell("equal: cpu per side, ms", cpu * 1e3 / TIMES as f64 / 2.0);
    tell("equal: bytes per side", most as f64);
}
