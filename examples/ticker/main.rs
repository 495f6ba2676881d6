//! A stream of quotes with two producers and three consumers, one of them slow; one producer is killed and comes back.
//!
//!     cargo run --release --example ticker [-- --seconds 8]
//!
//! Every node is told of one member and finds the others. Consumers find the producers by the stream's name alone. A live table shows what each consumer gets from each
//! producer: items a second, items missed, and how often the producer started anew. The slow consumer reads one quote a millisecond; both
//! producers drop the oldest for whoever is too far behind, and tell it how many.
//!
//! It exits with 0 only if every quote was received in its order, or counted as missed; if the fast consumers missed nothing while a producer lived; and if all of them had
//! both producers again after one was killed.

mod ledger;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use kinfolk::{
    EndpointAddr, EndpointId, Item, Limits, Node, Producer, Schema, SecretKey, WhenFull,
};
use kinfolk_examples::{Error, arguments, init_logs, usage_error, with_causes};
use ledger::Ledger;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{interval, sleep, timeout};

const QUOTES: &str = "quotes";
/// How long anything may take; it takes milliseconds on an idle machine.
const SOON: Duration = Duration::from_secs(20);
/// Quotes that a producer sends at once, and how often.
const BURST: u64 = 50;
const PAUSE: Duration = Duration::from_millis(10);
/// What the slow consumer does with a quote.
const WORK: Duration = Duration::from_millis(1);

/// What a thing costs, and what others would give for it.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
struct Quote {
    symbol: String,
    cents: u64,
    bids: Vec<u64>,
}

impl Item for Quote {
    const SCHEMA: Schema = Schema::new("quote", 1);
}

#[tokio::main]
async fn main() -> ExitCode {
    let usage = "usage: ticker [--seconds N]";
    let seconds = match arguments().as_slice() {
        [] => Ok(8),
        [name, seconds] if name == "--seconds" => seconds.parse::<u64>().map_err(|_| ()),
        _ => Err(()),
    };
    let Ok(seconds @ 3..=3600) = seconds else {
        return usage_error("expected a number of 3 to 3600 seconds", usage);
    };
    match run(Duration::from_secs(seconds)).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", with_causes(&*error));
            ExitCode::FAILURE
        }
    }
}

async fn run(time: Duration) -> Result<(), Error> {
    init_logs()?;
    let hub = start(None, None).await?;
    let key = SecretKey::generate();
    let anna = Ticker::start("anna", hub.addr(), SecretKey::generate()).await?;
    let mut bert = Ticker::start("bert", hub.addr(), key.clone()).await?;
    let (stop, stopped) = watch::channel(false);
    let mut consumers = Vec::new();
    for (name, work) in [("carl", None), ("dora", None), ("emil", Some(WORK))] {
        let node = start(Some(hub.addr()), None).await?;
        consumers.push(Watcher::start(name, node, work, stopped.clone()).await?);
    }
    for watcher in &consumers {
        watcher.online(2).await?;
    }
    println!("three consumers have found two producers\n");
    let names = [(anna.node.id(), "anna"), (bert.node.id(), "bert")];
    let began = Instant::now();
    let killed_at = time.mul_f64(0.4);
    let mut is_killed = false;
    let mut second = interval(Duration::from_secs(1));
    second.tick().await;
    while began.elapsed() < time {
        second.tick().await;
        if !is_killed && began.elapsed() >= killed_at {
            is_killed = true;
            println!("-- bert is killed without a word, and comes back with the same key --");
            bert.kill().await;
            bert = Ticker::start("bert", hub.addr(), key.clone()).await?;
        }
        table(&consumers, &names, began.elapsed());
    }
    for watcher in &consumers {
        watcher.online(2).await?;
        watcher.hears_from(bert.node.id(), 1).await?;
    }
    // What was sent is delivered before the producers say that nothing more comes.
    let mut sent = Vec::new();
    for ticker in [anna, bert] {
        sent.push(ticker.finish().await);
    }
    stop.send_replace(true);
    println!("\n== in all ==");
    let mut faults = Vec::new();
    for watcher in consumers {
        faults.extend(watcher.finish(&names).await?);
    }
    println!("anna has sent {} quotes, bert in his second life {}", sent[0], sent[1]);
    hub.shutdown().await;
    if faults.is_empty() {
        println!("every quote was received in its order, or counted as missed");
        return Ok(());
    }
    Err(faults.join("; ").into())
}

/// A node that knows of one other.
async fn start(hub: Option<EndpointAddr>, key: Option<SecretKey>) -> Result<Node, Error> {
    let here: SocketAddr = "127.0.0.1:0".parse()?;
    // What waits in the network for a slow consumer is not what this is about.
    let mut limits = Limits::default();
    limits.stream_window = 64 * 1024;
    let mut builder = Node::builder("ticker").bind_addr(here).limits(limits);
    if let Some(hub) = hub {
        builder = builder.bootstrap(hub);
    }
    if let Some(key) = key {
        builder = builder.secret_key(key);
    }
    Ok(builder.spawn().await?)
}

/// A node that sends quotes until it is told to stop.
struct Ticker {
    node: Node,
    stop: watch::Sender<bool>,
    sending: JoinHandle<Result<(Producer<Quote>, u64), Error>>,
}

impl Ticker {
    async fn start(symbol: &'static str, hub: EndpointAddr, key: SecretKey) -> Result<Self, Error> {
        let node = start(Some(hub), Some(key)).await?;
        let producer = node
            .producer::<Quote>(QUOTES)
            .when_full(WhenFull::DropOldest)
            .keep_items(2_000)
            .await?;
        let (stop, stopped) = watch::channel(false);
        let sending = tokio::spawn(async move {
            let mut sent = 0;
            let mut pause = interval(PAUSE);
            while !*stopped.borrow() {
                pause.tick().await;
                for _ in 0..BURST {
                    let cents = 10_000 + sent % 100;
                    let bids = (1..=100).map(|step| cents - step).collect();
                    let quote = Quote { symbol: symbol.to_owned(), cents, bids };
                    producer.send(&quote).await?;
                    sent += 1;
                }
            }
            Ok((producer, sent))
        });
        Ok(Self { node, stop, sending })
    }

    /// Ends it as a crash would.
    async fn kill(self) {
        self.sending.abort();
        self.node.actor().kill();
        self.node.closed().await;
    }

    /// Ends it as it should; how many quotes it has sent.
    async fn finish(self) -> u64 {
        self.stop.send_replace(true);
        let Ok(Ok((producer, sent))) = self.sending.await else { return 0 };
        let _ = timeout(SOON, producer.finish()).await;
        self.node.shutdown().await;
        sent
    }
}

/// A node that consumes quotes and keeps count.
struct Watcher {
    name: &'static str,
    is_slow: bool,
    node: Node,
    ledger: Ledger,
    online: watch::Receiver<usize>,
    receiving: JoinHandle<()>,
}

impl Watcher {
    async fn start(
        name: &'static str,
        node: Node,
        work: Option<Duration>,
        mut stop: watch::Receiver<bool>,
    ) -> Result<Self, Error> {
        let mut consumer = node.consumer::<Quote>(QUOTES).buffer(64 * 1024).await?;
        let ledger = Ledger::default();
        let book = ledger.clone();
        let (report, online) = watch::channel(0);
        let receiving = tokio::spawn(async move {
            let mut look = interval(Duration::from_millis(50));
            loop {
                tokio::select! {
                    received = consumer.recv() => {
                        let Some(received) = received else { return };
                        book.note(&received);
                        if let Some(work) = work {
                            sleep(work).await;
                        }
                    }
                    _ = look.tick() => {
                        let is_up = |source: &kinfolk::SourceStatus| source.connected_for.is_some();
                        report.send_replace(consumer.sources().iter().filter(|s| is_up(s)).count());
                    }
                    () = stopped(&mut stop) => return,
                }
            }
        });
        Ok(Self { name, is_slow: work.is_some(), node, ledger, online, receiving })
    }

    async fn online(&self, sources: usize) -> Result<(), Error> {
        let mut online = self.online.clone();
        let waiting = online.wait_for(|online| *online >= sources);
        let waited = timeout(SOON, waiting).await;
        waited.map_err(|_| format!("{} has not {sources} sources", self.name))??;
        Ok(())
    }

    /// Waits until it has had items of this life of a producer.
    async fn hears_from(&self, source: EndpointId, restarts: u64) -> Result<(), Error> {
        let waiting = self.ledger.until(source, restarts);
        let waited = timeout(SOON, waiting).await;
        Ok(waited.map_err(|_| format!("{} does not hear from its source again", self.name))?)
    }

    /// What was wrong with what it got.
    async fn finish(self, names: &[(EndpointId, &'static str)]) -> Result<Vec<String>, Error> {
        self.receiving.await?;
        self.node.shutdown().await;
        let mut faults = Vec::new();
        for (source, name) in names {
            let account = self.ledger.account(*source);
            println!(
                "{} <- {name}: {} received, {} missed, {} restarts seen",
                self.name, account.items, account.missed, account.restarts
            );
            for fault in account.faults {
                faults.push(format!("{} from {name}: {fault}", self.name));
            }
            if !self.is_slow && account.missed > 0 {
                faults.push(format!("{} has missed {} of {name}", self.name, account.missed));
            }
            if account.items == 0 {
                faults.push(format!("{} got nothing from {name}", self.name));
            }
        }
        Ok(faults)
    }
}

/// Waits until it is time to stop.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

fn table(watchers: &[Watcher], names: &[(EndpointId, &'static str)], at: Duration) {
    println!(
        "{:>4.0} s   {:<14} {:>9} {:>9} {:>9}",
        at.as_secs_f64(),
        "",
        "items/s",
        "missed",
        "restarts"
    );
    for watcher in watchers {
        for (source, name) in names {
            let account = watcher.ledger.account(*source);
            let rate = watcher.ledger.since_last(*source);
            let pair = format!("{} <- {name}", watcher.name);
            println!("         {pair:<14} {rate:>9} {:>9} {:>9}", account.missed, account.restarts);
        }
    }
}
