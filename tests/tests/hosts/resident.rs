//! The node that lives in a host: this test binary once more, as a process that only its network sets apart.
//!
//! It does what the lines of its input say, one after the other, and answers each with a line; how the session with its peer fares it
//! tells unasked. It decides nothing, and ends with the test that booted its host, as its input ends then.

use std::io::Write as _;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use kinfolk::{EndpointAddr, EndpointId, Hold, Node, Options, PeerStatus, SecretKey};
use kinfolk_tests::support::node::{ECHO, NEXT, builder_at, quick_limits, serving};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

/// The environment variable that makes a process the resident of a host: its node's key.
pub const KEY: &str = "KINFOLK_HOST_KEY";

/// The test that such a process runs.
pub const ENTRY: &str = "resident::runs_a_node_if_its_environment_says_that_it_lives_in_a_host";

/// Begins an answer. What else is in the output is the test harness's.
pub const ANSWER: &str = "kinfolk answer: ";

/// Begins news of the session.
pub const NEWS: &str = "kinfolk news: ";

/// Begins an answer to what could not be done.
pub const FAILED: &str = "failed: ";

/// Where every node listens.
pub const PORT: u16 = 7_700;

/// How long an echo over a live session may take before the session counts as dead.
const ECHO_DEADLINE: Duration = Duration::from_secs(1);

/// The id of the node with this key.
fn id(key: u8) -> EndpointId {
    SecretKey::from_bytes(&[key; 32]).public()
}

#[derive(Default)]
struct Resident {
    node: Option<Node>,
    hold: Option<Hold>,
}

impl Resident {
    async fn obey(&mut self, key: u8, request: &str) -> Result<String, String> {
        let words: Vec<&str> = request.split(' ').collect();
        match (words.as_slice(), &self.node) {
            (["start", idle_timeout, address], None) => {
                let mut limits = quick_limits();
                limits.idle_timeout = Duration::from_millis(parsed(idle_timeout)?);
                let address = SocketAddr::new(parsed(address)?, PORT);
                self.node = Some(serving(builder_at(key, address).limits(limits)).await);
                Ok(String::new())
            }
            (["start_and_lose", address, device], None) => {
                let at = SocketAddr::new(parsed(address)?, PORT);
                self.node = Some(serving(builder_at(key, at)).await);
                // No await before this: tasks of the node that have not run yet see the address no more.
                let lose = ["address", "del", &format!("{address}/24"), "dev", device];
                let lost = std::process::Command::new("ip").args(lose).status();
                let lost = lost.map_err(|error| error.to_string())?;
                lost.success().then(String::new).ok_or_else(|| lost.to_string())
            }
            (["watch", peer], Some(node)) => {
                let status = node.monitor(id(parsed(peer)?)).await;
                tokio::spawn(tell(status.map_err(|error| error.to_string())?));
                Ok(String::new())
            }
            (["hold", peer, address], Some(node)) => {
                let address = SocketAddr::new(parsed(address)?, PORT);
                self.hold =
                    Some(node.hold(EndpointAddr::new(id(parsed(peer)?)).with_ip_addr(address)));
                Ok(String::new())
            }
            (["reach", peer], Some(node)) => Ok(reaches(node, id(parsed(peer)?)).await.to_string()),
            (["call", peer, number, deadline], Some(node)) => {
                let within = Duration::from_millis(parsed(deadline)?);
                let (number, options): (u64, _) =
                    (parsed(number)?, Options::new().idempotent().deadline(within));
                let asked = node.call_with(id(parsed(peer)?), NEXT, &number, options).await;
                asked.map(|next: u64| next.to_string()).map_err(|error| error.to_string())
            }
            (["dials_failed"], Some(node)) => {
                let metrics = node.metrics().await.map_err(|error| error.to_string())?;
                Ok(metrics.dials_failed.values().sum::<u64>().to_string())
            }
            (["closed"], Some(node)) => Ok(node.closed().await.to_string()),
            (["addresses"], Some(node)) => {
                let addresses: Vec<_> =
                    node.addr().ip_addrs().map(|address| address.ip().to_string()).collect();
                Ok(addresses.join(" "))
            }
            _ => Err(format!("not understood: {request}")),
        }
    }
}

fn parsed<T: FromStr>(word: &str) -> Result<T, String> {
    word.parse().map_err(|_| format!("not what was expected: {word}"))
}

/// Whether an echo comes back over the session that is live. It dials nobody, so that whoever asks helps nothing along.
async fn reaches(node: &Node, peer: EndpointId) -> bool {
    let echoed = timeout(ECHO_DEADLINE, async {
        let (mut send, mut recv) = node.try_open(peer, ECHO).await.ok()?;
        send.write_all(b"there?").await.ok()?;
        send.finish().ok()?;
        recv.read_to_end(16).await.ok()
    });
    echoed.await.is_ok_and(|echoed| echoed.is_some_and(|echoed| echoed == b"there?"))
}

async fn tell(mut status: watch::Receiver<PeerStatus>) {
    loop {
        let link = match *status.borrow_and_update() {
            PeerStatus::Up { link, .. } => link.to_string(),
            PeerStatus::Down { .. } => String::new(),
        };
        say(NEWS, &link);
        if status.changed().await.is_err() {
            return;
        }
    }
}

fn say(kind: &str, line: &str) {
    let mut output = std::io::stdout().lock();
    // The harness has left a line of its own unfinished. If nobody listens any more, the input ends as well.
    let _ = writeln!(output, "\n{kind}{line}").and_then(|()| output.flush());
}

#[tokio::test]
async fn runs_a_node_if_its_environment_says_that_it_lives_in_a_host() {
    let Ok(key) = std::env::var(KEY) else { return };
    let key = key.parse().expect("a number");
    let (lines, mut requests) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            let _ = lines.send(line);
        }
        // Whatever the node is at: the test is over, or has failed.
        std::process::exit(0);
    });
    let mut resident = Resident::default();
    say(ANSWER, "");
    while let Some(request) = requests.recv().await {
        match resident.obey(key, &request).await {
            Ok(answer) => say(ANSWER, &answer),
            Err(error) => say(ANSWER, &format!("{FAILED}{error}")),
        }
    }
}
