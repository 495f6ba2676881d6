//! Nodes under an app's own supervisor, driven by messages alone.
//!
//!     cargo run --release --example embed
//!
//! The app is an actor that starts two nodes as its children, `home` and `guest`. `home` serves one protocol with an actor of the app and
//! one with a function; `guest` asks for both. A third node, whose port is taken, fails with a typed error before it exists. Then the
//! parts of `home` are killed until it has had enough: its failure reaches the app's supervisor with its cause, which starts it anew. At
//! the end the nodes shut down, and the supervisor sees that too.
//!
//! It exits with 0 if everything went as it says.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use kinfolk::error::SpawnError;
use kinfolk::{
    Bytes, EndpointAddr, Incoming, Limits, LinkId, Node, NodeBuilder, NodeEvent, NodeMessage,
    Options, PeerStatus, ProtocolName, SecretKey, Service,
};
use kinfolk_examples::{Error, arguments, init_logs, usage_error, with_causes};
use ractor::{
    Actor, ActorId, ActorProcessingErr, ActorRef, RpcReplyPort, SupervisionEvent, call_t,
};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

/// Served by an actor: sends back what it gets, louder.
const SHOUT: ProtocolName = ProtocolName::from_static("embed/shout/1");
/// Served by a function: answers with the length of the question.
const LENGTH: ProtocolName = ProtocolName::from_static("embed/length/1");
/// How long anything may take, in milliseconds.
const SOON: u64 = 10_000;

type NodeRef = ActorRef<NodeMessage>;

/// The app's supervisor. It starts nodes, restarts those that fail, and tells what it sees.
struct App;

enum AppMessage {
    /// Start a node under this actor.
    Start(&'static str, NodeBuilder, RpcReplyPort<Result<NodeRef, SpawnError>>),
}

struct AppState {
    children: BTreeMap<ActorId, (&'static str, NodeBuilder)>,
    news: mpsc::UnboundedSender<News>,
}

/// What the supervisor sees of its children.
enum News {
    Stopped(&'static str),
    Failed { name: &'static str, cause: String, restarted: Result<NodeRef, SpawnError> },
}

impl Actor for App {
    type Msg = AppMessage;
    type State = AppState;
    type Arguments = mpsc::UnboundedSender<News>;

    async fn pre_start(
        &self,
        _myself: ActorRef<AppMessage>,
        news: Self::Arguments,
    ) -> Result<AppState, ActorProcessingErr> {
        Ok(AppState { children: BTreeMap::new(), news })
    }

    async fn handle(
        &self,
        myself: ActorRef<AppMessage>,
        message: AppMessage,
        state: &mut AppState,
    ) -> Result<(), ActorProcessingErr> {
        let AppMessage::Start(name, builder, reply) = message;
        let started = state.start(&myself, name, builder).await;
        let _ = reply.send(started);
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<AppMessage>,
        event: SupervisionEvent,
        state: &mut AppState,
    ) -> Result<(), ActorProcessingErr> {
        let (child, failure) = match event {
            SupervisionEvent::ActorTerminated(child, last_state, reason) => {
                // What the node left behind goes before anything new starts.
                drop(last_state);
                (child, reason.filter(|reason| reason == "killed"))
            }
            SupervisionEvent::ActorFailed(child, error) => (child, Some(error.to_string())),
            _ => return Ok(()),
        };
        let Some((name, builder)) = state.children.remove(&child.get_id()) else { return Ok(()) };
        let news = match failure {
            None => News::Stopped(name),
            Some(cause) => {
                let restarted = state.start(&myself, name, builder).await;
                News::Failed { name, cause, restarted }
            }
        };
        let _ = state.news.send(news);
        Ok(())
    }
}

impl AppState {
    async fn start(
        &mut self,
        myself: &ActorRef<AppMessage>,
        name: &'static str,
        builder: NodeBuilder,
    ) -> Result<NodeRef, SpawnError> {
        let node = builder.clone().spawn_linked(myself.get_cell()).await?.actor();
        self.children.insert(node.get_id(), (name, builder));
        Ok(node)
    }
}

/// An actor of the app that serves streams.
struct Shouter;

enum ShouterMessage {
    /// A peer opened a stream.
    Visit(Incoming),
}

impl From<Incoming> for ShouterMessage {
    fn from(stream: Incoming) -> Self {
        Self::Visit(stream)
    }
}

impl Actor for Shouter {
    type Msg = ShouterMessage;
    /// The streams that are being served; they end with the actor.
    type State = JoinSet<()>;
    type Arguments = ();

    async fn pre_start(
        &self,
        _myself: ActorRef<ShouterMessage>,
        (): (),
    ) -> Result<JoinSet<()>, ActorProcessingErr> {
        Ok(JoinSet::new())
    }

    /// A handler never waits for a peer: each stream gets a task.
    async fn handle(
        &self,
        _myself: ActorRef<ShouterMessage>,
        ShouterMessage::Visit(mut stream): ShouterMessage,
        visits: &mut JoinSet<()>,
    ) -> Result<(), ActorProcessingErr> {
        while visits.try_join_next().is_some() {}
        visits.spawn(async move {
            // A stream that is dropped unfinished is reset, so the peer learns of a failure.
            let Ok(text) = stream.recv.read_to_end(1024).await else { return };
            if stream.send.write_all(&text.to_ascii_uppercase()).await.is_ok() {
                let _ = stream.send.finish();
            }
        });
        Ok(())
    }
}

/// Takes both protocols into service.
async fn serve(node: &NodeRef, shouter: &ActorRef<ShouterMessage>) -> Result<(), Error> {
    let shout = Service::actor(shouter.clone()).concurrency(100);
    let length = Service::call_bytes(|_peer, question: Bytes| async move {
        Ok(question.len().to_string().into_bytes())
    });
    call_t!(node, NodeMessage::Serve, SOON, SHOUT, shout)??;
    call_t!(node, NodeMessage::Serve, SOON, LENGTH, length)??;
    Ok(())
}

/// Opens a stream to the actor and calls the function.
async fn ask(node: &NodeRef, peer: &EndpointAddr) -> Result<(), Error> {
    let options = Options::new();
    let opened = call_t!(node, NodeMessage::Open, SOON, peer.into(), SHOUT, options);
    let (mut send, mut recv) = opened??;
    send.write_all(b"is anybody there?").await?;
    send.finish()?;
    let answer = recv.read_to_end(1024).await?;
    println!("  stream to the actor:   {}", String::from_utf8_lossy(&answer));
    let question = Bytes::from_static(b"how long is this?");
    let options = Options::new().deadline(Duration::from_secs(5));
    let answer = call_t!(node, NodeMessage::Call, SOON, peer.into(), LENGTH, question, options)??;
    println!("  call of the function:  {} bytes", String::from_utf8_lossy(&answer));
    Ok(())
}

/// The live link with a watched peer, as soon as there is another than this one.
async fn link(
    status: &mut watch::Receiver<PeerStatus>,
    last: Option<LinkId>,
) -> Result<Option<LinkId>, Error> {
    let live = |status: &PeerStatus| match status {
        PeerStatus::Up { link, .. } => Some(*link),
        PeerStatus::Down { .. } => None,
    };
    let status = status.wait_for(|status| live(status).is_some_and(|link| Some(link) != last));
    let status = tokio::time::timeout(Duration::from_millis(SOON), status).await??;
    Ok(live(&status))
}

/// Kills the parts of a node, one by one as they come back, until the node fails. Returns how often one came back.
async fn torment(node: &NodeRef) -> Result<usize, Error> {
    let mut events = call_t!(node, NodeMessage::Subscribe, SOON)?;
    let mut killed = Vec::new();
    let mut restarts = 0;
    let until_it_fails = async {
        while let Some(part) = next_part(node, &killed).await {
            killed.push(part.get_id());
            part.kill();
            // The events end with the node.
            while let Ok(event) = events.recv().await {
                if let NodeEvent::Restarted { actor, cause } = event {
                    restarts += 1;
                    println!("  {actor} is restarted: {cause}");
                    break;
                }
            }
        }
    };
    tokio::time::timeout(Duration::from_millis(SOON), until_it_fails).await?;
    Ok(restarts)
}

/// A part of the node that was not killed yet, as soon as there is one; `None` when the node is gone.
async fn next_part(node: &NodeRef, killed: &[ActorId]) -> Option<ractor::ActorCell> {
    while node.get_status() == ractor::ActorStatus::Running {
        let parts = node.get_children();
        if let Some(part) = parts.into_iter().find(|part| !killed.contains(&part.get_id())) {
            return Some(part);
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    None
}

async fn run() -> Result<(), Error> {
    let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
    let builder = |key: &SecretKey, bind| {
        let mut limits = Limits::default();
        // A dial to where a node was is over well before anybody here has waited too long.
        limits.dial_deadline = Duration::from_secs(3);
        Node::builder("kinfolk-embed").secret_key(key.clone()).bind_addr(bind).limits(limits)
    };
    let (tell, mut news) = mpsc::unbounded_channel();
    let (app, app_task) = Actor::spawn(None, App, tell).await?;
    let (shouter, _) = Actor::spawn_linked(None, Shouter, (), app.get_cell()).await?;

    println!("The app starts two nodes as its children.");
    let (home_key, guest_key) = (SecretKey::generate(), SecretKey::generate());
    let home = call_t!(app, AppMessage::Start, SOON, "home", builder(&home_key, loopback))??;
    let guest = call_t!(app, AppMessage::Start, SOON, "guest", builder(&guest_key, loopback))??;
    serve(&home, &shouter).await?;
    let address = call_t!(home, NodeMessage::Address, SOON)?;
    println!("  home is {} at {:?}", address.id.fmt_short(), address.addrs);
    ask(&guest, &address).await?;

    println!("Guest stays connected, and says what it knows.");
    let hold = call_t!(guest, NodeMessage::Hold, SOON, address.clone().into())??;
    let mut status = call_t!(guest, NodeMessage::Monitor, SOON, address.id)?;
    let first_link = link(&mut status, None).await?;
    for peer in call_t!(guest, NodeMessage::Peers, SOON)? {
        let (why, id) = (peer.why, peer.peer.fmt_short());
        println!(
            "  {id} is {}, with {} hold, since {:.1?}",
            why.state.name(),
            why.holds,
            why.age.unwrap_or_default()
        );
    }
    let metrics = call_t!(guest, NodeMessage::Metrics, SOON)?;
    println!("  intents by outcome: {:?}", metrics.intents_ended);

    println!("A node on a port that is taken does not start.");
    let taken = *address.ip_addrs().next().ok_or("home has no address")?;
    match call_t!(app, AppMessage::Start, SOON, "third", builder(&SecretKey::generate(), taken))? {
        Err(SpawnError::Bind(error)) => println!("  SpawnError::Bind: {}", with_causes(&*error)),
        Err(other) => return Err(other.into()),
        Ok(_) => return Err("two nodes are on one port".into()),
    }

    println!("The parts of home are killed as often as they come back.");
    let restarts = torment(&home).await?;
    let home = match news.recv().await.ok_or("the app is gone")? {
        News::Failed { name, cause, restarted } => {
            println!("  the app learns that {name} failed after {restarts} restarts: {cause}");
            restarted?
        }
        News::Stopped(name) => return Err(format!("{name} stopped, but should have failed").into()),
    };
    println!(
        "The app has started home anew, with the same key on another port; guest still holds it."
    );
    serve(&home, &shouter).await?;
    let address = call_t!(home, NodeMessage::Address, SOON)?;
    call_t!(guest, NodeMessage::AddAddress, SOON, address.clone())??;
    link(&mut status, first_link).await?;
    ask(&guest, &address).await?;
    drop(hold);

    println!("The nodes are asked to shut down.");
    for node in [&guest, &home] {
        node.cast(NodeMessage::Shutdown)?;
        match news.recv().await.ok_or("the app is gone")? {
            News::Stopped(name) => println!("  the app learns that {name} stopped"),
            News::Failed { name, cause, .. } => {
                return Err(format!("{name} failed: {cause}").into());
            }
        }
    }
    app.stop(None);
    app_task.await?;
    Ok(())
}

#[tokio::main]
async fn main() -> ExitCode {
    if let Some(argument) = arguments().first() {
        return usage_error(&format!("`{argument}` is not known"), "usage: embed");
    }
    let ended = match init_logs() {
        Ok(()) => run().await,
        Err(error) => Err(error),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", with_causes(&*error));
            ExitCode::FAILURE
        }
    }
}
