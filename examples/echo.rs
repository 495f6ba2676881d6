//! Two processes that talk: one listens and sends back what it gets, the other dials it with a ticket.
//!
//!     cargo run --release --example echo -- listen
//!     cargo run --release --example echo -- dial <ticket>             (sends the lines of standard input)
//!     cargo run --release --example echo -- dial <ticket> hello you   (sends one line)
//!
//! The ticket names the listener's key and where it can be reached; the dialler needs nothing else, and whoever answers with another key
//! is refused. The ticket is the only line of `listen` on standard output; what happens is told on standard error. End `listen` with
//! Ctrl-C. `RUST_LOG=kinfolk=debug` shows the logs.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use kinfolk::{
    Limits, NetworkId, Node, NodeEvent, Options, ProtocolName, RecvStream, SendStream, Service,
    Ticket,
};
use kinfolk_examples::{Error, arguments, init_logs, usage_error, with_causes};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::sync::broadcast::error::RecvError;

const NETWORK: &str = "kinfolk-echo";
const ECHO: ProtocolName = ProtocolName::from_static("echo/1");
/// How long the dialler tries to reach the listener at once, and in all.
const ATTEMPT: Duration = Duration::from_secs(4);
const PATIENCE: Duration = Duration::from_secs(6);

const USAGE: &str = "\
usage: echo listen [--bind ADDR]
       echo dial TICKET [MESSAGE...]

  --bind ADDR   where to listen: an IP address and a port, 0 for any free one (default 127.0.0.1:0);
                0.0.0.0:0 can be reached from other machines";

/// What the command line asks for.
enum Command {
    Listen(SocketAddr),
    Dial(Ticket, Option<String>),
    Help,
}

impl Command {
    fn parse(arguments: &[String]) -> Result<Self, String> {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        match arguments.as_slice() {
            ["--help" | "-h", ..] | [_, "--help" | "-h"] => Ok(Self::Help),
            ["listen"] => Ok(Self::Listen(SocketAddr::from(([127, 0, 0, 1], 0)))),
            ["listen", "--bind"] => Err("--bind needs an address".to_owned()),
            ["listen", "--bind", address] => match address.parse() {
                Ok(address) => Ok(Self::Listen(address)),
                Err(_) => {
                    Err(format!("`{address}` is no IP address with a port, such as 127.0.0.1:4433"))
                }
            },
            ["listen", other, ..] => Err(format!("`listen` does not know `{other}`")),
            ["dial"] => Err("`dial` needs the ticket that `listen` prints".to_owned()),
            ["dial", ticket, message @ ..] => {
                let ticket = read_ticket(ticket)?;
                let message = (!message.is_empty()).then(|| message.join(" "));
                Ok(Self::Dial(ticket, message))
            }
            [other, ..] => Err(format!("`{other}` is neither `listen` nor `dial`")),
            [] => Err("`listen` or `dial`?".to_owned()),
        }
    }
}

fn read_ticket(text: &str) -> Result<Ticket, String> {
    let ticket: Ticket = text.parse().map_err(|error| {
        format!("`{text}` is no ticket ({error}); copy the whole line that `listen` printed")
    })?;
    if ticket.network() != NetworkId::from_name(NETWORK) {
        return Err("the ticket is of another network than `echo`'s".to_owned());
    }
    Ok(ticket)
}

#[tokio::main]
async fn main() -> ExitCode {
    let command = match Command::parse(&arguments()) {
        Ok(command) => command,
        Err(problem) => return usage_error(&problem, USAGE),
    };
    let done = match command {
        Command::Listen(bind) => listen(bind).await,
        Command::Dial(ticket, message) => dial(ticket, message).await,
        Command::Help => {
            println!("{USAGE}");
            Ok(())
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", with_causes(&*error));
            ExitCode::FAILURE
        }
    }
}

/// Serves until Ctrl-C.
async fn listen(bind: SocketAddr) -> Result<(), Error> {
    init_logs()?;
    let node = Node::builder(NETWORK).bind_addr(bind).spawn().await?;
    let echo = Service::stream(|mut stream| async move {
        while let Some(chunk) = stream.recv.read_chunk(64 * 1024).await? {
            stream.send.write_chunk(chunk).await?;
        }
        stream.send.finish()?;
        Ok(())
    });
    node.serve(ECHO, echo).await?;
    let mut events = node.events().await?;
    println!("{}", node.ticket()?);
    eprintln!("this is {}; Ctrl-C ends it", node.id().fmt_short());
    let interrupted = tokio::signal::ctrl_c();
    tokio::pin!(interrupted);
    loop {
        tokio::select! {
            interrupted = &mut interrupted => {
                interrupted?;
                break;
            }
            event = events.recv() => match event {
                Ok(NodeEvent::SessionEstablished { peer, .. }) => eprintln!("{} is here", peer.fmt_short()),
                Ok(NodeEvent::SessionDown { peer, reason, .. }) => {
                    eprintln!("{} is gone: {reason:?}", peer.fmt_short());
                }
                Ok(_) => {}
                Err(RecvError::Lagged(missed)) => eprintln!("missed {missed} events"),
                // The node has ended by itself.
                Err(RecvError::Closed) => break,
            }
        }
    }
    eprintln!("\nsaying goodbye");
    eprintln!("{}", node.shutdown().await);
    Ok(())
}

/// Sends lines and prints what comes back, and how long that took.
async fn dial(ticket: Ticket, message: Option<String>) -> Result<(), Error> {
    init_logs()?;
    let mut limits = Limits::default();
    limits.dial_deadline = ATTEMPT;
    let node = Node::builder(NETWORK).limits(limits).spawn().await?;
    let talked = talk(&node, ticket, message).await;
    // Tells the listener, whatever happened.
    node.shutdown().await;
    talked
}

async fn talk(node: &Node, ticket: Ticket, message: Option<String>) -> Result<(), Error> {
    let began = Instant::now();
    let options = Options::new().deadline(PATIENCE);
    let (mut send, recv) = node.open_with(ticket, ECHO, options).await?;
    eprintln!("connected with {} in {:.1?}", send.peer().fmt_short(), began.elapsed());
    let mut recv = BufReader::new(recv);
    match message {
        Some(message) => exchange(&mut send, &mut recv, message.into_bytes()).await?,
        None => {
            let mut lines = BufReader::new(tokio::io::stdin());
            loop {
                let mut line = Vec::new();
                if lines.read_until(b'\n', &mut line).await? == 0 {
                    break;
                }
                exchange(&mut send, &mut recv, line).await?;
            }
        }
    }
    send.finish()?;
    Ok(())
}

/// Sends one line and prints what comes back. It reads while it writes, so that a line may be of any length.
async fn exchange(
    send: &mut SendStream,
    recv: &mut BufReader<RecvStream>,
    mut line: Vec<u8>,
) -> Result<(), Error> {
    if line.last() != Some(&b'\n') {
        line.push(b'\n');
    }
    let began = Instant::now();
    let mut back = Vec::new();
    let sending = async { send.write_all(&line).await.map_err(Error::from) };
    let reading = async { recv.read_until(b'\n', &mut back).await.map_err(Error::from) };
    tokio::try_join!(sending, reading)?;
    let took = began.elapsed();
    if back != line {
        return Err("other bytes came back than were sent".into());
    }
    println!("{}  ({took:.1?})", String::from_utf8_lossy(&back).trim_end());
    Ok(())
}
