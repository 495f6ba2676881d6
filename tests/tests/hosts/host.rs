//! A host: a network of its own, with a node in it, and the commands that set up, change and break that network.
//!
//! The network is a namespace without a name, which lives as long as the processes in it: there is nothing to clean up but the node's
//! process, which is killed when its host is dropped and ends by itself when the test's process is gone. All devices and addresses are
//! made inside such namespaces; those of the machine are left alone.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::Ipv4Addr;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use kinfolk_tests::support::wait::within;
use tokio::sync::{mpsc, watch};

use crate::resident::{ANSWER, ENTRY, FAILED, KEY, NEWS};

/// How long the node may take to do what is local, on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(20);

/// The device of a host that its cable is plugged into.
const DEVICE: &str = "lan0";

/// One host. What is live is the link of its session with the other one.
pub struct Host {
    pub key: u8,
    process: Child,
    requests: ChildStdin,
    answers: mpsc::UnboundedReceiver<String>,
    live: watch::Receiver<Option<String>>,
}

impl Host {
    /// Whether hosts can be booted here; if they cannot, that is said.
    pub fn can_boot() -> bool {
        let Some(obstacle) = Self::obstacle() else { return true };
        // Not by `eprintln`, which nobody sees of a test that passes.
        let _ = writeln!(std::io::stderr(), "skipped, as hosts need namespaces: {obstacle}");
        false
    }

    fn obstacle() -> Option<String> {
        // In a namespace that is gone at once: everything that a test will need.
        let probe = Command::new("unshare")
            .args(["--net", "nsenter", "--net=/proc/self/ns/net"])
            .args(["ip", "link", "add", DEVICE, "type", "veth", "peer", "name", "lan1"])
            .output();
        match probe {
            Ok(output) if output.status.success() => None,
            Ok(output) => Some(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
            Err(error) => Some(format!("unshare (of util-linux): {error}")),
        }
    }

    /// A host without a network so far, whose node is yet to be started.
    ///
    /// # Panics
    /// Where hosts cannot be [booted](Self::can_boot).
    pub async fn boot(key: u8) -> Self {
        let binary = std::env::current_exe().expect("a test runs from a file");
        let mut process = Command::new("unshare")
            .arg("--net")
            .arg(binary)
            .args([ENTRY, "--exact", "--nocapture", "--test-threads=1"])
            .env(KEY, key.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare was there when it was tried");
        let requests = process.stdin.take().expect("piped");
        let output = process.stdout.take().expect("piped");
        let (answer, answers) = mpsc::unbounded_channel();
        let (news, live) = watch::channel(None);
        std::thread::spawn(move || listen(output, &answer, &news));
        let mut host = Self { key, process, requests, answers, live };
        // Once it speaks it is in its namespace.
        host.answer("boot").await;
        host.ip("link set lo up");
        host
    }

    /// Joins two hosts by a cable, whose ends are up and have these addresses in one network.
    pub fn join(a: &Self, at_a: Ipv4Addr, b: &Self, at_b: Ipv4Addr) {
        let b_is = b.process.id();
        a.ip(&format!("link add {DEVICE} type veth peer name {DEVICE} netns {b_is}"));
        for (host, address) in [(a, at_a), (b, at_b)] {
            // No addresses but those of the test. Where there is no IPv6 there is nothing to turn off.
            let _ = host.try_ip(&format!("link set {DEVICE} addrgenmode none"));
            host.add_address(address, 24);
            host.plug_in();
        }
    }

    /// Takes the host's end of the cable down. The other end, which stays up, has no carrier any more.
    pub fn unplug(&self) {
        self.ip(&format!("link set {DEVICE} down"));
    }

    /// Takes the host's end of the cable up.
    pub fn plug_in(&self) {
        self.ip(&format!("link set {DEVICE} up"));
    }

    /// Gives the host an address in a network of this prefix length.
    pub fn add_address(&self, address: Ipv4Addr, prefix: u8) {
        self.ip(&format!("address add {address}/{prefix} dev {DEVICE}"));
    }

    /// Takes an address from the host.
    pub fn remove_address(&self, address: Ipv4Addr, prefix: u8) {
        self.ip(&format!("address del {address}/{prefix} dev {DEVICE}"));
    }

    /// Lets the host send everything to the cable, as one that has a gateway.
    pub fn route_all(&self) {
        self.ip(&format!("route replace default dev {DEVICE}"));
    }

    fn ip(&self, arguments: &str) {
        if let Err(error) = self.try_ip(arguments) {
            panic!("ip {arguments}: {error}");
        }
    }

    fn try_ip(&self, arguments: &str) -> Result<(), String> {
        let mut ip = Command::new("nsenter");
        ip.args(["--net", "--target", &self.process.id().to_string(), "ip"]);
        let output = ip.args(arguments.split(' ')).output().map_err(|error| error.to_string())?;
        let error = || String::from_utf8_lossy(&output.stderr).trim().to_owned();
        output.status.success().then_some(()).ok_or_else(error)
    }

    /// Starts the host's node, which tells from now on how its session with the other one fares. It listens on all interfaces, as an app's
    /// would that is to be found.
    pub async fn start(&mut self, idle_timeout: Duration, other: &Self) {
        self.start_at(Ipv4Addr::UNSPECIFIED, idle_timeout).await;
        self.ask(&format!("watch {}", other.key)).await;
    }

    /// Starts the host's node at this address alone.
    pub async fn start_at(&mut self, address: Ipv4Addr, idle_timeout: Duration) {
        self.ask(&format!("start {} {address}", idle_timeout.as_millis())).await;
    }

    /// Starts the host's node at this address, which the host has lost before the node does anything else.
    pub async fn start_and_lose(&mut self, address: Ipv4Addr) {
        self.ask(&format!("start_and_lose {address} {DEVICE}")).await;
    }

    /// Waits until the node has ended, and returns why it did.
    pub async fn closed(&mut self) -> String {
        self.ask("closed").await
    }

    /// Lets the app hold the other node, of which it knows this address.
    pub async fn hold(&mut self, other: &Self, address: Ipv4Addr) {
        self.ask(&format!("hold {} {address}", other.key)).await;
    }

    /// Whether a stream over the session that is live gets to the other node and back.
    pub async fn reaches(&mut self, other: &Self) -> bool {
        self.ask(&format!("reach {}", other.key)).await == "true"
    }

    /// Asks the other node for the successor of 1, which has to come within the deadline.
    pub async fn call(&mut self, other: &Self, deadline: Duration) {
        let request = format!("call {} 1 {}", other.key, deadline.as_millis());
        self.send(&request);
        let answer = within(deadline + PATIENCE, &request, self.answers.recv()).await;
        assert_eq!(answer.as_deref(), Some("2"));
    }

    /// How many dials have failed so far.
    pub async fn dials_failed(&mut self) -> u64 {
        self.ask("dials_failed").await.parse().expect("a number")
    }

    /// The addresses that the node believes it has.
    pub async fn addresses(&mut self) -> Vec<Ipv4Addr> {
        let answer = self.ask("addresses").await;
        answer.split_whitespace().map(|address| address.parse().expect("IPv4")).collect()
    }

    /// The link that is live.
    pub fn link(&self) -> Option<String> {
        self.live.borrow().clone()
    }

    /// Waits until a link is live, and returns it.
    pub async fn up(&mut self, deadline: Duration) -> String {
        let live = within(deadline, "a session", self.live.wait_for(Option::is_some)).await;
        live.expect("the node is up").clone().expect("waited for")
    }

    /// Waits until no link is live.
    pub async fn down(&mut self, deadline: Duration) {
        let live = within(deadline, "the session's end", self.live.wait_for(Option::is_none)).await;
        live.expect("the node is up");
    }

    async fn ask(&mut self, request: &str) -> String {
        self.send(request);
        self.answer(request).await
    }

    fn send(&mut self, request: &str) {
        writeln!(self.requests, "{request}").expect("the host is up");
    }

    async fn answer(&mut self, request: &str) -> String {
        let answer = within(PATIENCE, request, self.answers.recv()).await;
        let answer = answer.unwrap_or_else(|| panic!("the host ended at: {request}"));
        assert!(!answer.starts_with(FAILED), "{request}: {answer}");
        answer
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Passes on what a node says, until it ends.
fn listen(
    output: ChildStdout,
    answers: &mpsc::UnboundedSender<String>,
    live: &watch::Sender<Option<String>>,
) {
    for line in BufReader::new(output).lines().map_while(Result::ok) {
        if let Some(answer) = line.strip_prefix(ANSWER) {
            let _ = answers.send(answer.to_owned());
        } else if let Some(link) = line.strip_prefix(NEWS) {
            live.send_replace(Some(link.to_owned()).filter(|link| !link.is_empty()));
        }
    }
}
