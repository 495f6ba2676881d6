//! Twenty nodes, the relays between them, and whoever does the plan to them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kinfolk::{EndpointAddr, LinkId};
use kinfolk_tests::support::impair::{Condition, Direction, Impairment, Pair};
use kinfolk_tests::support::wait::within;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use super::ledger::{Ledger, lock};
use super::life::{Life, id, last_task};
use super::plan::{Action, NODES, Shape, Step, pairs};
use super::traffic;

/// How long the nodes may take to agree after the last fault.
const CALM: Duration = Duration::from_secs(30);

/// How long it takes at most to end the faults: the longest is a drain.
const END_OF_FAULTS: Duration = Duration::from_secs(30);

#[derive(Clone)]
pub struct World(Arc<Inner>);

struct Inner {
    ledger: Arc<Ledger>,
    pairs: Vec<(usize, usize)>,
    relays: Vec<Pair>,
    /// Who is up; a node that is about to end is taken out first.
    lives: Vec<Mutex<Option<Life>>>,
    /// True once the faults are to end.
    calm: watch::Sender<bool>,
    /// How long tasks may be left of a node that ends in calm.
    last_task: Duration,
    figures: Mutex<Figures>,
}

/// What came of it.
#[derive(Debug, Default, Clone)]
pub struct Figures {
    /// How many asks ended how, those of nodes that were killed included.
    pub outcomes: BTreeMap<&'static str, u64>,
    /// Of the nodes that were not killed: sessions, those of them that were ended how, and links that were refused.
    pub established: u64,
    pub ended: BTreeMap<&'static str, u64>,
    pub refused: BTreeMap<&'static str, u64>,
}

/// What was done.
#[derive(Debug, Default)]
pub struct Done {
    pub actions: BTreeMap<&'static str, u64>,
    /// Those for which the node was away.
    pub skipped: u64,
}

impl World {
    pub async fn begin(seed: u64, shape: Shape) -> Self {
        let (ledger, pairs) = (Arc::default(), pairs());
        let mut lives = Vec::new();
        for index in 0..NODES {
            lives.push(Life::begin(index, Vec::new(), &ledger).await);
        }
        let network = Impairment::new(seed);
        let relay = |&(a, b): &(usize, usize)| {
            let relay = network.link(lives[a].address(), lives[b].address());
            let relay = relay.expect("on loopback");
            for (node, peer, address) in [(a, b, relay.addr_of_b()), (b, a, relay.addr_of_a())] {
                let address = EndpointAddr::new(id(peer)).with_ip_addr(address);
                lives[node].node().add_address(address).expect("the node is up");
            }
            relay
        };
        let relays = pairs.iter().map(relay).collect();
        let lives = lives.into_iter().map(|life| Mutex::new(Some(life))).collect();
        let calm = watch::Sender::new(false);
        let last_task = last_task(shape.longest_pause);
        let figures = Mutex::default();
        Self(Arc::new(Inner { ledger, pairs, relays, lives, calm, last_task, figures }))
    }

    pub fn ledger(&self) -> &Ledger {
        &self.0.ledger
    }

    pub fn figures(&self) -> Figures {
        lock(&self.0.figures).clone()
    }

    /// Does the plan, and then ends all its faults.
    pub async fn suffer(&self, plan: &[Step]) -> Done {
        let start = Instant::now();
        let mut done = Done::default();
        let mut faults = JoinSet::new();
        for (step, number) in plan.iter().zip(0..) {
            sleep_until(start + step.at).await;
            if self.act(number, step.action, &mut faults) {
                *done.actions.entry(step.action.name()).or_default() += 1;
            } else {
                done.skipped += 1;
            }
            while let Some(over) = faults.try_join_next() {
                over.expect("a fault ends well");
            }
        }
        self.0.calm.send_replace(true);
        within(END_OF_FAULTS, "the end of the faults", faults.join_all()).await;
        for (a, b) in self.0.pairs.iter().copied() {
            for (from, to) in [(a, b), (b, a)] {
                self.with(from, |life| life.node().unban(id(to)).expect("the node is up"));
            }
        }
        done
    }

    /// False if the node is away.
    fn act(&self, number: u64, action: Action, faults: &mut JoinSet<()>) -> bool {
        let world = self.clone();
        let ledger = Arc::clone(&self.0.ledger);
        match action {
            Action::Open { from, to, stream } => self.with(from, |life| {
                ledger.begun(number, from, to);
                life.run(async move |node, asks| {
                    traffic::open(node, id(to), number, stream, &ledger, &asks).await;
                });
            }),
            Action::Call { from, to, call } => self.with(from, |life| {
                life.run(async move |node, asks| {
                    traffic::call(node, id(to), number, call, &ledger, &asks).await;
                });
            }),
            Action::Hold { from, to } => self.with(from, |life| life.hold(to)),
            Action::Release { node, which } => self.with(node, |life| life.release(which)),
            Action::Disconnect { from, to } => self.with(from, |life| {
                life.run(async move |node, _| node.disconnect(id(to)).await.unwrap_or_default());
            }),
            Action::Ban { from, to, lasts } => self.with(from, |life| {
                life.run(async move |node, _| node.ban(id(to), lasts).unwrap_or_default());
            }),
            Action::Unban { from, to } => self.with(from, |life| {
                life.run(async move |node, _| node.unban(id(to)).unwrap_or_default());
            }),
            Action::Kill { node, away } => self.take(node).is_some_and(|life| {
                faults.spawn_local(async move {
                    let asks = Arc::clone(&life.asks);
                    life.kill().await;
                    world.0.ledger.killed(node);
                    add(&mut lock(&world.0.figures).outcomes, asks.ended());
                    world.unless_calm(away).await;
                    world.restart(node).await;
                });
                true
            }),
            Action::Drain { node, away } => self.take(node).is_some_and(|life| {
                faults.spawn_local(async move {
                    world.end(life).await;
                    world.unless_calm(away).await;
                    world.restart(node).await;
                });
                true
            }),
            Action::Pause { node, lasts } => self.with(node, |life| {
                let pause = life.pause();
                faults.spawn_local(async move {
                    world.unless_calm(lasts).await;
                    drop(pause);
                });
            }),
            Action::Spoil { pair, direction, condition, lasts } => {
                self.0.relays[pair].set(direction, condition);
                faults.spawn_local(async move {
                    world.unless_calm(lasts).await;
                    world.0.relays[pair].set(Direction::Both, Condition::default());
                });
                true
            }
        }
    }

    /// Waits until the nodes have what they hold and nothing else, and returns how long it took.
    ///
    /// # Panics
    /// When they do not in time.
    pub async fn settle(&self) -> Duration {
        let start = Instant::now();
        loop {
            let wrong = self.wrong().await;
            if wrong.is_empty() {
                return start.elapsed();
            }
            let took = start.elapsed();
            assert!(took < CALM, "after {took:?} of calm:\n{}", wrong.join("\n"));
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// How many pairs are held, by either side or both.
    pub fn held(&self) -> usize {
        self.wanted().len()
    }

    /// The pairs that are held, smaller index first.
    fn wanted(&self) -> BTreeSet<(usize, usize)> {
        let mut wanted = BTreeSet::new();
        for &(a, b) in &self.0.pairs {
            for (from, to) in [(a, b), (b, a)] {
                self.with(from, |life| {
                    if life.held().contains(&id(to)) {
                        wanted.insert((a, b));
                    }
                });
            }
        }
        wanted
    }

    /// What is not yet as it should be.
    async fn wrong(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut links = Vec::new();
        for index in 0..NODES {
            let Some((node, is_at_rest, held)) = lock(&self.0.lives[index])
                .as_ref()
                .map(|life| (life.node().clone(), life.is_at_rest(), life.held().len()))
            else {
                return vec![format!("node {index} is away")];
            };
            if !is_at_rest {
                wrong.push(format!("node {index}: asks have not ended"));
            }
            let peers = within(CALM, "the peers", node.peers()).await.expect("the node is up");
            let peers: BTreeMap<_, _> =
                peers.into_iter().map(|summary| (summary.peer, summary.why)).collect();
            let waiting: usize = peers.values().map(|why| why.waiting).sum();
            let holds: usize = peers.values().map(|why| why.holds).sum();
            if (waiting, holds) != (0, held) {
                wrong.push(format!("node {index}: {waiting} wait, {holds} of {held} holds"));
            }
            links.push(peers);
        }
        let wanted = self.wanted();
        for &(a, b) in &self.0.pairs {
            let (here, there) = (links[a].get(&id(b)), links[b].get(&id(a)));
            let link = |why: Option<&kinfolk::Why>| why.and_then(|why| why.link);
            let ends: [Option<LinkId>; 2] = [link(here), link(there)];
            let closing = [here, there].into_iter().flatten().any(|why| why.closing > 0);
            let is_up = ends[0].is_some();
            if ends[0] != ends[1] || is_up != wanted.contains(&(a, b)) || closing {
                let is_held = wanted.contains(&(a, b));
                wrong.push(format!("{a} and {b}, held: {is_held}:\n  {here:?}\n  {there:?}"));
            }
        }
        wrong
    }

    /// Ends all nodes, each with everything that it has to show for itself.
    pub async fn part(&self) {
        let mut ends = JoinSet::new();
        for index in 0..NODES {
            let (world, life) = (self.clone(), self.take(index).expect("all nodes are up"));
            ends.spawn_local(async move { world.end(life).await });
        }
        ends.join_all().await;
    }

    async fn end(&self, life: Life) {
        let asks = Arc::clone(&life.asks);
        let is_calm = *self.0.calm.borrow();
        let metrics = life.end(is_calm.then_some(self.0.last_task)).await;
        let mut figures = lock(&self.0.figures);
        add(&mut figures.outcomes, asks.ended());
        figures.established += metrics.sessions.established;
        add(&mut figures.ended, metrics.sessions.ended);
        add(&mut figures.refused, metrics.links_refused);
    }

    async fn restart(&self, index: usize) {
        let of_node = self.0.pairs.iter().zip(&self.0.relays);
        let peers = of_node.clone().filter_map(|(&(a, b), relay)| {
            if a == index {
                Some(EndpointAddr::new(id(b)).with_ip_addr(relay.addr_of_b()))
            } else {
                (b == index).then(|| EndpointAddr::new(id(a)).with_ip_addr(relay.addr_of_a()))
            }
        });
        let life = Life::begin(index, peers.collect(), &self.0.ledger).await;
        for (&(a, b), relay) in of_node {
            if a == index {
                relay.move_a(life.address()).expect("it is ours");
            } else if b == index {
                relay.move_b(life.address()).expect("it is ours");
            }
        }
        *lock(&self.0.lives[index]) = Some(life);
    }

    async fn unless_calm(&self, time: Duration) {
        let mut calm = self.0.calm.subscribe();
        tokio::select! {
            () = sleep(time) => {}
            _ = calm.wait_for(|calm| *calm) => {}
        }
    }

    fn take(&self, index: usize) -> Option<Life> {
        lock(&self.0.lives[index]).take()
    }

    /// False if the node is away.
    fn with(&self, index: usize, act: impl FnOnce(&Life)) -> bool {
        lock(&self.0.lives[index]).as_ref().map(act).is_some()
    }
}

fn add(sums: &mut BTreeMap<&'static str, u64>, counts: BTreeMap<&'static str, u64>) {
    for (name, count) in counts {
        *sums.entry(name).or_default() += count;
    }
}
