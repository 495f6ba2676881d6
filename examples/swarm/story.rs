//! What happens to the swarm, phase by phase, and what is checked meanwhile.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use kinfolk::{
    DownReason, EndpointAddr, EndpointId, Found, Hold, LinkEnd, NodeEvent, PeerStatus, Removal,
    SecretKey, Terminal, Topic,
};
use kinfolk_examples::Error;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::task::JoinSet;

use crate::member::{Apart, Life, Member, STREAM_BYTES};
use crate::report;
use crate::screen::{Screen, State, size_of};

/// The node that vanishes. It is neither first nor last: it dials some of the others, and is dialled by the rest.
const VANISHES: usize = 1;
/// The node that is drained.
const DRAINS: usize = 2;
/// The node whose address all others start from; it is told of nobody.
const BOOTSTRAP: usize = 0;
/// How long nobody is told that a node has vanished.
const SILENCE: Duration = Duration::from_millis(250);
/// How often the nodes are asked whom they know.
const GLANCE: Duration = Duration::from_millis(5);

/// All nodes, what they wait for, and what went wrong.
pub struct Swarm {
    size: usize,
    screen: Screen,
    keys: Vec<SecretKey>,
    members: Vec<Member>,
    /// Each node's holds, one per pair of nodes.
    holds: Vec<Vec<Hold>>,
    apart: Option<Apart>,
    lives: Vec<Life>,
    /// The table of all nodes and the tree of one, taken while they were all there.
    last_look: Vec<String>,
    faults: Vec<String>,
}

impl Swarm {
    pub fn new(size: usize, screen: Screen) -> Self {
        let keys = (0..size).map(|_| SecretKey::generate()).collect();
        Self {
            size,
            screen,
            keys,
            members: Vec::new(),
            holds: Vec::new(),
            apart: None,
            lives: Vec::new(),
            last_look: Vec::new(),
            faults: Vec::new(),
        }
    }

    /// The whole story. An error ends it early.
    pub async fn tell(&mut self) -> Result<(), Error> {
        self.start().await?;
        self.discover().await?;
        self.connect().await?;
        self.announce().await?;
        self.talk("talk").await;
        self.vanish().await?;
        self.drain().await?;
        self.talk("talk again").await;
        self.look().await?;
        self.part().await
    }

    pub fn blame(&mut self, fault: String) {
        self.faults.push(fault);
    }

    pub fn faults(&self) -> &[String] {
        &self.faults
    }

    async fn start(&mut self) -> Result<(), Error> {
        let phase = self.screen.begin("start");
        for index in 0..self.size {
            let key = &self.keys[index];
            let bootstrap = self.members.get(BOOTSTRAP).map(|member| member.node.addr());
            let member = if index == VANISHES {
                let started = Member::start_apart(index, key, any_port(), bootstrap.as_ref());
                let (member, apart) = started.await?;
                self.apart = Some(apart);
                member
            } else {
                Member::start(index, key, any_port(), bootstrap.as_ref()).await?
            };
            self.screen.show(&member, State::Up);
            self.members.push(member);
        }
        phase.done(format!(
            "{} nodes with a UDP socket each; all know the address of node {BOOTSTRAP}, and no other",
            self.size
        ));
        Ok(())
    }

    /// All nodes find all others.
    async fn discover(&mut self) -> Result<(), Error> {
        let phase = self.screen.begin("discover");
        self.all_known().await;
        let (mut exchanges, mut bytes) = (0, 0);
        for member in &self.members {
            let metrics = member.node.metrics().await?;
            exchanges += report::exchanges_opened(&metrics);
            bytes += report::exchange_bytes(&metrics);
        }
        phase.done(format!(
            "every node knows the other {}, by {exchanges} exchanges of {} in all",
            self.size - 1,
            size_of(bytes)
        ));
        Ok(())
    }

    /// Waits until every node has a record of every other.
    async fn all_known(&self) {
        for member in &self.members {
            self.knows_all(member).await;
        }
    }

    /// Waits until a node has a record of every other.
    async fn knows_all(&self, member: &Member) {
        for peer in self.others(member.index) {
            while member.node.catalog().get(&peer.id()).is_none() {
                tokio::time::sleep(GLANCE).await;
            }
        }
    }

    /// One node takes part in a topic, and all others hear of it.
    async fn announce(&mut self) -> Result<(), Error> {
        let phase = self.screen.begin("announce");
        let topic = Topic::from_name("swarm");
        let author = &self.members[self.size - 1];
        let mut tasks = JoinSet::new();
        for peer in self.others(author.index) {
            let (mut found, index, id) = (peer.node.find_topic(topic), peer.index, author.id());
            tasks.spawn(async move {
                match found.next().await {
                    Some(Found::Here(entry)) if entry.id() == id => Ok(()),
                    other => Err(format!("node {index} heard of a topic: {other:?}").into()),
                }
            });
        }
        author.node.join_topic(topic)?;
        let author = author.index;
        let well = self.finish(tasks).await;
        phase.done(format!("node {author} joined a topic; {well} others heard of it"));
        Ok(())
    }

    async fn connect(&mut self) -> Result<(), Error> {
        let links = self.size * (self.size - 1) / 2;
        let phase = self.screen.begin("connect");
        for member in &self.members {
            let peers = &self.members[member.index + 1..];
            self.holds.push(peers.iter().map(|peer| member.hold(peer)).collect());
        }
        self.all_connected().await?;
        phase.done(format!("{links} links; every node sees the other {}", self.size - 1));
        Ok(())
    }

    /// Waits until every node says that it is connected to every other.
    async fn all_connected(&self) -> Result<(), Error> {
        for member in &self.members {
            for peer in self.others(member.index) {
                let mut status = member.node.monitor(peer.id()).await?;
                status.wait_for(PeerStatus::is_up).await?;
            }
        }
        Ok(())
    }

    /// Every node calls every other, and opens a stream to it, all at once.
    async fn talk(&mut self, name: &'static str) {
        let phase = self.screen.begin(name);
        let mut tasks = JoinSet::new();
        for member in &self.members {
            for peer in self.others(member.index) {
                converse(&mut tasks, member, peer);
            }
        }
        let each = tasks.len();
        let well = self.finish(tasks).await;
        phase.done(format!("{well} of {each} called and echoed {STREAM_BYTES} bytes"));
    }

    /// One node is gone from one instruction to the next, in the middle of being called, and comes back on another port.
    async fn vanish(&mut self) -> Result<(), Error> {
        let phase = self.screen.begin("vanish");
        let id = self.members[VANISHES].id();
        // Its numbers and its holds go with it.
        let life = self.members[VANISHES].life().await?;
        let unfinished = life.metrics.intents_waiting as u64;
        self.account(life, &[("still held", unfinished)]);
        let mut witnesses = Vec::new();
        for peer in self.others(VANISHES) {
            witnesses.push((peer.index, peer.node.events().await?));
        }
        let apart = self.apart.take().ok_or("the node has no thread of its own")?;
        apart.vanish().await;
        self.screen.show(&self.members[VANISHES], State::Gone);
        let mut tasks = JoinSet::new();
        for peer in self.others(VANISHES) {
            let (peer, to) = (peer.clone(), VANISHES);
            tasks.spawn(async move {
                peer.call(to, id).await?;
                peer.stream(to, id).await
            });
        }
        tokio::time::sleep(SILENCE).await;
        let mut believers = 0;
        for peer in self.others(VANISHES) {
            believers += usize::from(peer.node.monitor(id).await?.borrow().is_up());
        }
        phase.done(format!(
            "no goodbye; {believers} of {} others wait for node {VANISHES}",
            self.size - 1
        ));

        let phase = self.screen.begin("return");
        let found = self.restart(VANISHES, any_port()).await?;
        self.reunite(VANISHES, &mut tasks);
        let asked = tasks.len();
        let well = self.finish(tasks).await;
        self.all_connected().await?;
        let mut ends = BTreeMap::new();
        for (index, events) in witnesses {
            match last_word(events, id) {
                Some(DownReason::Replaced) => *ends.entry("replaced").or_insert(0) += 1,
                Some(DownReason::Ended(LinkEnd::Lost)) => *ends.entry("timed out").or_insert(0) += 1,
                other => self.faults.push(format!(
                    "node {VANISHES} was to vanish without a word, but node {index} heard: {other:?}"
                )),
            }
        }
        let ends: Vec<_> = ends.iter().map(|(how, count)| format!("{count} {how}")).collect();
        phase.done(format!(
            "all found in {found:.2?}; dead links: {}; {well} of {asked} talks",
            ends.join(", ")
        ));
        Ok(())
    }

    /// One node takes no new work, its streams finish, and it comes back on the same port.
    async fn drain(&mut self) -> Result<(), Error> {
        let phase = self.screen.begin("drain");
        let member = self.members[DRAINS].clone();
        let id = member.id();
        let mut witnesses = Vec::new();
        let mut streams = Vec::new();
        for peer in self.others(DRAINS) {
            witnesses.push((peer.index, peer.node.events().await?));
            let mut stream = peer.open(DRAINS, id).await?;
            stream.send_half().await?;
            streams.push((peer.node.monitor(id).await?, stream));
        }
        let open = streams.len();
        self.screen.show(&member, State::Draining);
        let mut tasks = JoinSet::new();
        for (mut status, stream) in streams {
            tasks.spawn(async move {
                // The goodbye has come: from here on the link carries what is open, and nothing new.
                status.wait_for(|status| !status.is_up()).await?;
                stream.finish().await
            });
        }
        member.node.drain().await?;
        let well = self.finish(tasks).await;
        let life = member.life().await?;
        let holds = life.holds;
        self.account(life, &[("shutting_down", holds)]);
        let port = member.node.addr().ip_addrs().next().copied().ok_or("no address")?;
        let mut heard = 0;
        for (index, events) in witnesses {
            match departure(events, id).await {
                Some(Removal::Departed) => heard += 1,
                other => self.faults.push(format!(
                    "node {DRAINS} said that it leaves, but node {index} heard: {other:?}"
                )),
            }
        }
        phase.done(format!(
            "goodbye of node {DRAINS}; {well} of {open} open streams finished; {heard} heard that it left"
        ));

        let phase = self.screen.begin("stop");
        self.shut_down(&member).await;
        self.screen.show(&member, State::Gone);
        phase.done(format!("node {DRAINS} closed its endpoint"));

        let phase = self.screen.begin("return");
        let found = self.restart(DRAINS, port).await?;
        let mut tasks = JoinSet::new();
        self.reunite(DRAINS, &mut tasks);
        let asked = tasks.len();
        let well = self.finish(tasks).await;
        self.all_connected().await?;
        phase.done(format!("all found in {found:.2?}; old port; {well} of {asked} talks"));
        Ok(())
    }

    /// The nodes say what they know while they are all there.
    async fn look(&mut self) -> Result<(), Error> {
        for member in &self.members {
            let connected = member.node.metrics().await?.peers.connected;
            if connected != self.size - 1 {
                let fault = format!("node {} has {connected} peers at the end", member.index);
                self.faults.push(fault);
            }
            let known = member.known();
            if known != self.size - 1 {
                self.faults.push(format!("node {} knows {known} nodes at the end", member.index));
            }
        }
        let names = self.members.iter().map(|member| (member.id(), member.index)).collect();
        self.last_look = self.screen.table().await;
        self.last_look.extend(report::tree(&self.members[VANISHES], &names).await?);
        Ok(())
    }

    /// The holds are dropped, the last numbers read, and all nodes shut down.
    async fn part(&mut self) -> Result<(), Error> {
        let phase = self.screen.begin("part");
        self.holds.clear();
        for member in self.members.clone() {
            let life = member.life().await?;
            let holds = life.holds;
            self.account(life, &[("cancelled", holds)]);
        }
        let mut tasks = JoinSet::new();
        for member in self.members.clone() {
            self.screen.show(&member, State::Draining);
            let screen = self.screen.clone();
            tasks.spawn(async move {
                let end = member.node.shutdown().await;
                screen.show(&member, State::Gone);
                match end {
                    Terminal::Shutdown => Ok(()),
                    other => Err(format!("node {}: {other}", member.index).into()),
                }
            });
        }
        let well = self.finish(tasks).await;
        phase.done(format!("{well} nodes dropped their holds and stopped"));
        Ok(())
    }

    async fn shut_down(&mut self, member: &Member) {
        let end = member.node.shutdown().await;
        if end != Terminal::Shutdown {
            self.faults.push(format!("node {} was to shut down, but {end}", member.index));
        }
    }

    /// Starts a node anew with its old key and the one address, and lets it find whom it knew before and hold whom it held. Returns how
    /// long that took it.
    async fn restart(&mut self, index: usize, bind: SocketAddr) -> Result<Duration, Error> {
        let bootstrap: EndpointAddr = self.members[BOOTSTRAP].node.addr();
        let began = Instant::now();
        let member = Member::start(index, &self.keys[index], bind, Some(&bootstrap)).await?;
        self.screen.show(&member, State::Up);
        self.knows_all(&member).await;
        let took = began.elapsed();
        self.holds[index] =
            self.members[index + 1..].iter().map(|peer| member.hold(peer)).collect();
        self.members[index] = member;
        Ok(took)
    }

    /// Lets a node that came back talk with all others, both ways at once.
    fn reunite(&self, index: usize, tasks: &mut JoinSet<Result<(), Error>>) {
        for peer in self.others(index) {
            converse(tasks, &self.members[index], peer);
            converse(tasks, peer, &self.members[index]);
        }
    }

    fn others(&self, index: usize) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(move |member| member.index != index)
    }

    /// Waits for all tasks and says how many went well.
    async fn finish(&mut self, mut tasks: JoinSet<Result<(), Error>>) -> usize {
        let mut well = 0;
        while let Some(result) = tasks.join_next().await {
            match result {
                Ok(Ok(())) => well += 1,
                Ok(Err(error)) => self.faults.push(error.to_string()),
                Err(error) => self.faults.push(error.to_string()),
            }
        }
        well
    }

    /// Compares what a node was asked for with the outcomes that it counted: every call and stream is done, and its holds ended like this.
    fn account(&mut self, life: Life, holds: &[(&str, u64)]) {
        let mut expected = BTreeMap::from([("done", life.streams)]);
        expected.extend(holds.iter().copied());
        expected.retain(|_, count| *count > 0);
        let mut counted = life.metrics.intents_ended.clone();
        counted.insert("still held", life.metrics.intents_waiting as u64);
        counted.retain(|_, count| *count > 0);
        if counted != expected {
            self.faults.push(format!(
                "node {} was asked for {} calls and streams and {} holds, and counted {counted:?} instead of {expected:?}",
                life.index, life.streams, life.holds
            ));
        }
        let held: u64 = holds.iter().map(|(_, count)| count).sum();
        if held != life.holds {
            self.faults.push(format!(
                "node {} was asked for {} holds and has {held}",
                life.index, life.holds
            ));
        }
        self.lives.push(life);
    }

    /// For a run that took too long or failed: what the nodes count, who is not connected to whom, and why.
    pub async fn inquire(&mut self) {
        self.last_look = self.screen.table().await;
        for member in &self.members {
            // A node that has ended was counted before.
            self.lives.extend(member.life().await.ok());
        }
        for member in self.members.clone() {
            for peer in self.members.clone() {
                if peer.index == member.index {
                    continue;
                }
                let why = match member.node.why(peer.id()).await {
                    Ok(Some(why)) if why.link.is_some() => continue,
                    Ok(Some(why)) => match why.last_error {
                        Some(error) => format!("{}, {error}", why.state.name()),
                        None => why.state.name().to_owned(),
                    },
                    Ok(None) => "it does not want one".to_owned(),
                    Err(closed) => closed.to_string(),
                };
                let (from, to) = (member.index, peer.index);
                self.faults.push(format!("node {from} has no link to node {to}: {why}"));
            }
        }
    }

    /// What came of it all.
    pub fn report(&self) -> Vec<String> {
        let mut lines = vec![String::new()];
        lines.extend(self.last_look.iter().cloned());
        lines.extend(report::summary(self.size, &self.lives));
        lines.push(String::new());
        match self.faults.as_slice() {
            [] => lines
                .push("All was well: every ask had the outcome that it should have.".to_owned()),
            faults => {
                lines.push(format!("Wrong ({}):", faults.len()));
                lines.extend(faults.iter().take(20).map(|fault| format!("  - {fault}")));
                if faults.len() > 20 {
                    lines.push(format!("  … and {} more", faults.len() - 20));
                }
            }
        }
        lines
    }
}

fn any_port() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

/// One node calls another and streams to it.
fn converse(tasks: &mut JoinSet<Result<(), Error>>, from: &Member, to: &Member) {
    let (from, to, id) = (from.clone(), to.index, to.id());
    tasks.spawn(async move {
        from.call(to, id).await?;
        from.stream(to, id).await
    });
}

/// Why a record of a peer is gone, once it is.
async fn departure(mut events: Receiver<NodeEvent>, id: EndpointId) -> Option<Removal> {
    loop {
        match events.recv().await {
            Ok(NodeEvent::PeerDeparted { peer, reason }) if peer == id => return Some(reason),
            Ok(_) | Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return None,
        }
    }
}

/// Why a node took its live link with a peer for dead, the first time since the subscription.
fn last_word(mut events: Receiver<NodeEvent>, id: EndpointId) -> Option<DownReason> {
    loop {
        match events.try_recv() {
            Ok(NodeEvent::SessionDown { peer, reason, .. }) if peer == id => return Some(reason),
            Ok(_) | Err(TryRecvError::Lagged(_)) => {}
            Err(TryRecvError::Empty | TryRecvError::Closed) => return None,
        }
    }
}
