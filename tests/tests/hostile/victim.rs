//! The node under attack, alone in a process of its own: its memory, its processor time and the time that it takes to answer are its own,
//! and not those of the strangers that attack it, nor of other tests.
//!
//! The process is this test program once more, with the one ignored test below and a word about which node to be. It is asked over its
//! standard input and answers in lines of `name=number`.

use std::collections::BTreeMap;
use std::io::{Write as _, stdout};
use std::process::Stdio;
use std::str::FromStr;
use std::time::{Duration, Instant};

use kinfolk::{EndpointAddr, EndpointId, Limits, Metrics, Node, Rate, Service};
use kinfolk_core::wire::Hello;
use kinfolk_tests::support::guest::Guest;
use kinfolk_tests::support::node::{builder, quick_limits, real_addr, serving};
use kinfolk_tests::support::stranger::Stranger;
use kinfolk_tests::support::wait::{eventually, own_memory, within};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::Mutex;

use crate::scene::{SOON, STUCK};

/// Held by tests that measure, which would measure each other.
pub(crate) static ALONE: Mutex<()> = Mutex::const_new(());

/// Which node the process is to be.
const ROLE: &str = "KINFOLK_VICTIM";

/// What the answers begin with; libtest writes to the same stream.
const ANSWER: &str = "victim: ";

/// How long the process may take to answer; many answers of a node take as long as they take.
const PATIENCE: Duration = Duration::from_secs(60);

/// How many bytes each peer may have unread at [`Role::Narrow`].
pub(crate) const NARROW: u32 = 256 * 1024;

/// What the node under attack allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// The defaults, limits per address switched on for loopback, and little time for a hello.
    Guarded,
    /// Windows of [`NARROW`] bytes, and otherwise the defaults.
    Narrow,
    /// The defaults.
    Plain,
    /// No limit on how often a peer connects: what comes behind the gate is attacked.
    Open,
}

impl Role {
    const ALL: [Self; 4] = [Self::Guarded, Self::Narrow, Self::Plain, Self::Open];

    fn limits(self) -> Limits {
        let mut limits = Limits::default();
        match self {
            Self::Guarded => {
                limits.gate.exempt_loopback = false;
                limits.hello_deadline = Duration::from_secs(2);
            }
            Self::Narrow => {
                limits.connection_window = NARROW;
                limits.stream_window = NARROW / 4;
                limits.call_bytes = NARROW / 4;
            }
            Self::Plain => {}
            Self::Open => {
                limits = quick_limits();
                limits.gate.peer_rate = Rate::new(10_000, Duration::from_millis(1));
            }
        }
        limits
    }
}

/// What the process says of itself.
#[derive(Debug)]
pub(crate) struct Figures(BTreeMap<String, u64>);

impl Figures {
    /// 0 if it was not said, as a counter that nothing was added to.
    pub(crate) fn get(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or(0)
    }

    /// How much memory of its own the process has, in bytes.
    pub(crate) fn memory(&self) -> u64 {
        self.get("memory")
    }
}

/// The process; it ends when this is dropped.
pub(crate) struct Victim {
    pub(crate) addr: EndpointAddr,
    ask: ChildStdin,
    said: Lines<BufReader<ChildStdout>>,
    _process: Child,
}

impl Victim {
    pub(crate) async fn start(role: Role) -> Self {
        let program = std::env::current_exe().expect("a test is a program");
        let mut process = Command::new(program)
            .args(["--exact", "victim::a_node_that_others_attack", "--ignored", "--nocapture"])
            .env(ROLE, format!("{role:?}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the process starts");
        let ask = process.stdin.take().expect("it is piped");
        let said = BufReader::new(process.stdout.take().expect("it is piped")).lines();
        let nobody = EndpointAddr::new(EndpointId::from_bytes(&[0; 32]).expect("a point"));
        let mut victim = Self { addr: nobody, ask, said, _process: process };
        let addr = victim.answer().await;
        let (id, socket) = addr.split_once(' ').expect("an id and an address");
        let id = EndpointId::from_str(id).expect("an id");
        victim.addr = EndpointAddr::new(id).with_ip_addr(socket.parse().expect("an address"));
        victim
    }

    async fn answer(&mut self) -> String {
        within(PATIENCE, "an answer of the process", async {
            loop {
                let line = self.said.next_line().await.expect("it can be read");
                let line = line.expect("the process is alive");
                if let Some(answer) = line.strip_prefix(ANSWER) {
                    return answer.to_owned();
                }
            }
        })
        .await
    }

    async fn ask(&mut self, question: &str) -> Figures {
        self.ask.write_all(format!("{question}\n").as_bytes()).await.expect("it is alive");
        let answer = self.answer().await;
        let figure = |word: &str| {
            let (name, number) = word.split_once('=').expect("a name and a number");
            (name.to_owned(), number.parse().expect("a number"))
        };
        Figures(answer.split(' ').map(figure).collect())
    }

    /// Its memory and processor time, and the node's numbers.
    pub(crate) async fn figures(&mut self) -> Figures {
        self.ask("figures").await
    }

    /// How long the node takes to answer, asked so often one after the other, and how full its manager's mailbox is meanwhile.
    pub(crate) async fn answers(&mut self, times: usize) -> Figures {
        self.ask(&times.to_string()).await
    }

    /// Waits until the node's numbers are so.
    pub(crate) async fn until(&mut self, what: &str, is_so: impl Fn(&Figures) -> bool) {
        eventually(SOON, what, async || is_so(&self.figures().await)).await;
    }

    /// Waits until strangers have filled windows of so many bytes, and no more comes; returns by how much the process has grown.
    pub(crate) async fn filled(&mut self, before: u64, windows: u64) -> u64 {
        let growth = async |this: &mut Self| this.figures().await.memory().saturating_sub(before);
        let mut last = growth(self).await;
        eventually(PATIENCE, "the windows are full", async || {
            tokio::time::sleep(Duration::from_millis(500)).await;
            let earlier = std::mem::replace(&mut last, growth(self).await);
            // What is in them is in memory; a growth below them means that they are not full.
            last == earlier && last >= windows - windows / 10
        })
        .await;
        last
    }

    /// As [`Guest::enter_at`].
    pub(crate) async fn welcomes(&self, stranger: &Stranger, hello: Hello) -> Guest {
        Guest::enter_at(stranger, self.addr.clone(), hello).await
    }
}

#[test]
#[ignore = "it is the node that other tests attack, started by them in a process of its own"]
fn a_node_that_others_attack() {
    let Ok(name) = std::env::var(ROLE) else { return };
    let role = Role::ALL.into_iter().find(|role| format!("{role:?}") == name).expect("a role");
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime").block_on(live(role));
}

async fn live(role: Role) {
    let node = serving(builder(1).limits(role.limits())).await;
    let unread = Service::stream(|stream| async move {
        let _kept = stream;
        std::future::pending().await
    });
    node.serve(STUCK, unread).await.expect("a new protocol");
    say_in_a_line(&format!("{} {}", node.id(), real_addr(&node)));
    let mut questions = BufReader::new(tokio::io::stdin()).lines();
    while let Ok(Some(question)) = questions.next_line().await {
        let answer = match question.parse() {
            Ok(times) => time_of_answers(&node, times).await,
            Err(_) => figures(&metrics(&node).await),
        };
        say_in_a_line(&answer);
    }
}

fn say_in_a_line(answer: &str) {
    // libtest has begun a line of its own.
    println!("\n{ANSWER}{answer}");
    stdout().flush().expect("it is heard");
}

async fn metrics(node: &Node) -> Metrics {
    within(SOON, "the numbers", node.metrics()).await.expect("alive")
}

fn figures(metrics: &Metrics) -> String {
    let mut figures = vec![
        format!("memory={}", own_memory()),
        format!("busy_ms={}", busy().as_millis()),
        format!("handshakes={}", metrics.handshakes),
        format!("inbound={}", metrics.sessions.inbound),
        format!("live={}", metrics.sessions.live),
        format!("streams={}", metrics.streams_inbound),
        format!("stuck={}", metrics.protocols.get("stuck/1").map_or(0, |stuck| stuck.active)),
        format!("established={}", metrics.sessions.established),
        format!("accepted={}", metrics.incoming_accepted),
    ];
    figures.extend(metrics.incoming_refused.iter().map(|(why, count)| format!("{why}={count}")));
    figures.join(" ")
}

async fn time_of_answers(node: &Node, times: usize) -> String {
    let (mut taken, mut queue) = (Vec::new(), 0);
    for _ in 0..times {
        let asked = Instant::now();
        queue = metrics(node).await.manager_queue.max(queue);
        taken.push(asked.elapsed());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let mut at = |percent| percentile(&mut taken, percent).as_micros();
    format!("median_us={} p99_us={} queue={queue}", at(50), at(99))
}

/// How much processor time this process has taken.
fn busy() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("/proc/self/stat can be read");
    // The program's name, in parentheses, may have spaces in it; user and system time are the 14th and the 15th field.
    let fields = stat.rsplit_once(") ").expect("a name in parentheses").1;
    let ticks: u64 = fields
        .split(' ')
        .skip(11)
        .take(2)
        .map(|field| field.parse::<u64>().expect("a number of ticks"))
        .sum();
    // USER_HZ is 100 wherever Linux runs tests.
    Duration::from_millis(ticks * 10)
}

/// What so many percent of the times do not exceed.
pub(crate) fn percentile(times: &mut [Duration], percent: usize) -> Duration {
    times.sort_unstable();
    times[(times.len() - 1) * percent / 100]
}
