//! Parts of a measurement in processes of their own: this program again, told its role by the environment.
//!
//! A child answers one line for each line it is sent, and ends when its input ends.

use std::io::{BufRead, BufReader, Write};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};

use iroh::EndpointAddr;
use tokio::sync::mpsc;

use crate::arrangement::Flavour;
use crate::{idle, traffic};

const ROLE: &str = "KINFOLK_BENCH_ROLE";

/// What a child is for.
#[derive(Debug, Clone)]
pub struct Role {
    /// What it does: `serve`, `hub` or `spokes`.
    pub task: String,
    /// Its column: `kinfolk`, `raw`, or `both`.
    pub side: String,
    /// The runtime of its app.
    pub app: Flavour,
    /// The network has a thread of its own.
    pub own_thread: bool,
    /// How many of what it is about.
    pub count: usize,
}

/// The role of this process, if it is a child.
pub fn role() -> Option<Role> {
    let role = std::env::var(ROLE).ok()?;
    let words: Vec<&str> = role.split(' ').collect();
    let [task, side, app, own_thread, count] = words[..] else { panic!("no role: {role}") };
    Some(Role {
        task: task.to_owned(),
        side: side.to_owned(),
        app: Flavour::parse(app),
        own_thread: own_thread == "own",
        count: count.parse().unwrap(),
    })
}

/// Plays a role to its end.
pub fn run(role: Role) {
    let (sender, orders) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lines() {
            if line.map(|line| sender.send(line)).is_err() {
                return;
            }
        }
    });
    let runtime = role.app.runtime();
    runtime.block_on(async move {
        let playing = match role.task.as_str() {
            "serve" => tokio::spawn(traffic::serve(role, orders)),
            "hub" => tokio::spawn(idle::hub(role, orders)),
            _ => tokio::spawn(idle::spokes(role, orders)),
        };
        playing.await.unwrap();
    });
    // Whatever still runs is of no use to anybody.
    std::process::exit(0);
}

/// The lines that a child is sent.
pub type Orders = mpsc::UnboundedReceiver<String>;

/// Answers an order.
pub fn answer(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").unwrap();
    out.flush().unwrap();
}

/// A child process, killed when it is dropped.
pub struct Child {
    process: std::process::Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Child {
    /// Starts this program again in a role.
    pub fn start(role: &Role) -> Self {
        let own = if role.own_thread { "own" } else { "shared" };
        let app = role.app.name();
        let text = format!("{} {} {app} {own} {}", role.task, role.side, role.count);
        let mut process = Command::new(std::env::current_exe().unwrap())
            .env(ROLE, text)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let orders = process.stdin.take().unwrap();
        let answers = BufReader::new(process.stdout.take().unwrap());
        Self { process, orders, answers }
    }

    /// Sends an order and waits for its answer.
    pub fn ask(&mut self, order: &str) -> String {
        writeln!(self.orders, "{order}").unwrap();
        self.orders.flush().unwrap();
        let mut answer = String::new();
        self.answers.read_line(&mut answer).unwrap();
        assert!(!answer.is_empty(), "the child died over {order}");
        answer.trim_end().to_owned()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// An address as two words of a line.
pub fn format_address(address: &EndpointAddr) -> String {
    let ip = address.ip_addrs().next().unwrap();
    format!("{} {ip}", address.id)
}

/// The addresses in a line.
pub fn parse_addresses(line: &str) -> Vec<EndpointAddr> {
    let words: Vec<&str> = line.split(' ').filter(|word| !word.is_empty()).collect();
    let address = |pair: &[&str]| {
        EndpointAddr::new(pair[0].parse().unwrap()).with_ip_addr(pair[1].parse().unwrap())
    };
    words.chunks(2).map(address).collect()
}
