//! Topics that everybody can see, and topics that only those see who know them.
//!
//!     cargo run --release --example topics
//!
//! Six nodes of one network, of which five are told the address of the first and find the others. Alice and bob play chess, and say so;
//! carol and dave share a secret. Eve is an outsider: she sees the chess players, and cannot see who shares the secret, even when she
//! asks both of them and guesses at it. Then bob leaves the game, dave leaves the network, and those who look for them hear of it.
//!
//! It exits with 0 only if all of this is so.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use kinfolk::{
    EndpointAddr, EndpointId, Find, Found, Node, NodeEvent, Removal, SecretTopic, Topic,
};
use kinfolk_examples::{Error, arguments, init_logs, usage_error, with_causes};
use tokio::time::{sleep, timeout};

/// How long anything may take; it takes milliseconds on an idle machine.
const SOON: Duration = Duration::from_secs(20);
/// How often is looked at what does not tell by itself.
const GLANCE: Duration = Duration::from_millis(5);

#[tokio::main]
async fn main() -> ExitCode {
    if !arguments().is_empty() {
        return usage_error("it takes no arguments", "usage: topics");
    }
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", with_causes(&*error));
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<(), Error> {
    init_logs()?;
    let chess = Topic::from_name("chess");
    // Whoever can guess a secret shares it. These bytes would come from a random generator, and reach the others by another way.
    let secret = SecretTopic::from_secret(b"u7!kR2-vQ9x+Lw4Zt0");
    let began = Instant::now();

    let hub = start(None, None).await?;
    let alice = start(Some(hub.addr()), Some(chess)).await?;
    let [bob, carol, dave, eve] = [
        start(Some(hub.addr()), None).await?,
        start(Some(hub.addr()), None).await?,
        start(Some(hub.addr()), None).await?,
        start(Some(hub.addr()), None).await?,
    ];
    let nodes = [&hub, &alice, &bob, &carol, &dave, &eve];
    for node in nodes {
        knows(node, nodes.len() - 1).await?;
    }
    println!("{} nodes have found each other in {:.1?}", nodes.len(), began.elapsed());

    let mut players = eve.find_topic(chess);
    check(here(&mut players).await? == alice.id(), "alice plays chess, and eve can see it")?;
    bob.join_topic(chess)?;
    check(here(&mut players).await? == bob.id(), "bob joins her, and eve hears of it")?;

    carol.join_secret_topic(secret.clone())?;
    dave.join_secret_topic(secret.clone())?;
    let mut sharers = carol.find_secret_topic(secret.clone());
    ask_all(&carol).await?;
    check(here(&mut sharers).await? == dave.id(), "carol, who knows the secret, finds dave")?;

    let guess = SecretTopic::from_secret(b"let me in");
    eve.join_secret_topic(guess.clone())?;
    let mut guessed = eve.find_secret_topic(guess);
    ask_all(&eve).await?;
    let found = timeout(Duration::ZERO, guessed.next()).await;
    check(found.is_err(), "eve, who guesses wrong, has asked everybody and finds nobody")?;
    let known = eve.catalog();
    let is_silent = |id| known.get(&id).is_some_and(|entry| entry.record().topics().count() == 0);
    check(is_silent(carol.id()) && is_silent(dave.id()), "the records of both say nothing of it")?;

    bob.leave_topic(&chess)?;
    check(gone(&mut players).await? == bob.id(), "bob plays no more, and eve hears of it")?;

    let mut events = carol.events().await?;
    let departed = NodeEvent::PeerDeparted { peer: dave.id(), reason: Removal::Departed };
    dave.shutdown().await;
    check(gone(&mut sharers).await? == dave.id(), "dave leaves, and shares nothing any more")?;
    while timeout(SOON, events.recv()).await?? != departed {}
    check(carol.catalog().get(&dave.id()).is_none(), "carol has heard that he is gone for good")?;

    for node in [&hub, &alice, &bob, &carol, &eve] {
        node.shutdown().await;
    }
    println!("all of it within {:.1?}", began.elapsed());
    Ok(())
}

/// A node that is told of one other at most, and from the start takes part in one topic at most.
async fn start(bootstrap: Option<EndpointAddr>, topic: Option<Topic>) -> Result<Node, Error> {
    let mut builder =
        Node::builder("kinfolk-topics").bind_addr(SocketAddr::from(([127, 0, 0, 1], 0)));
    if let Some(address) = bootstrap {
        builder = builder.bootstrap(address);
    }
    if let Some(topic) = topic {
        builder = builder.topics([topic]);
    }
    Ok(builder.spawn().await?)
}

/// Waits until a node knows so many others.
async fn knows(node: &Node, others: usize) -> Result<(), Error> {
    let waiting = async {
        while node.catalog().len() < others {
            sleep(GLANCE).await;
        }
    };
    Ok(timeout(SOON, waiting).await?)
}

/// Exchanges with every node that is known: who shares a secret with this one shows in exchanges alone.
///
/// Walkers do the same in their own time; an app that is in no hurry just waits.
async fn ask_all(node: &Node) -> Result<(), Error> {
    let asking = async {
        for entry in node.catalog().iter() {
            // One is lost with its connection, as when the peer has just dialled too.
            while node.sync_with(entry.id()).await.is_err() {
                sleep(GLANCE).await;
            }
        }
    };
    Ok(timeout(SOON, asking).await?)
}

/// The next that is found. Other news of those who were found before is passed over.
async fn here(find: &mut Find) -> Result<EndpointId, Error> {
    loop {
        match timeout(SOON, find.next()).await? {
            Some(Found::Here(entry)) => return Ok(entry.id()),
            Some(Found::Changed(_)) => {}
            other => return Err(format!("somebody was to be found, but came {other:?}").into()),
        }
    }
}

/// The next that is gone.
async fn gone(find: &mut Find) -> Result<EndpointId, Error> {
    loop {
        match timeout(SOON, find.next()).await? {
            Some(Found::Gone(peer)) => return Ok(peer),
            Some(Found::Changed(_)) => {}
            other => return Err(format!("somebody was to be gone, but came {other:?}").into()),
        }
    }
}

fn check(holds: bool, claim: &str) -> Result<(), Error> {
    if !holds {
        return Err(format!("it does not hold that {claim}").into());
    }
    println!("  {claim}");
    Ok(())
}
