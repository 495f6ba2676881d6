//! What the swarm prints at its end: the counters of all nodes together, and the supervision tree of one.

use std::collections::BTreeMap;

use kinfolk::{Direction, EndpointId, Limits, Metrics, PeerState};
use kinfolk_examples::Error;
use ractor::ActorCell;

use crate::member::{Life, Member};
use crate::screen::size_of;

/// How many sessions of the tree are shown.
const SESSIONS_SHOWN: usize = 10;

type Counts = BTreeMap<&'static str, u64>;

/// The counters of all lives, added up.
pub fn summary(nodes: usize, lives: &[Life]) -> Vec<String> {
    let metrics = || lives.iter().map(|life| &life.metrics);
    let total = |count: fn(&Metrics) -> u64| -> u64 { metrics().map(count).sum() };
    let counts = |family: fn(&Metrics) -> &Counts| {
        let mut counts = Counts::new();
        for (name, count) in metrics().flat_map(family) {
            *counts.entry(name).or_default() += count;
        }
        words(&counts)
    };
    let protocols = |count: fn(&kinfolk::ProtocolMetrics) -> u64| -> u64 {
        metrics().flat_map(|metrics| metrics.protocols.values()).map(count).sum()
    };
    let streams: u64 = lives.iter().map(|life| life.streams).sum();
    let holds: u64 = lives.iter().map(|life| life.holds).sum();
    let left: usize = metrics().map(|metrics| metrics.intents_waiting).sum();
    vec![
        String::new(),
        format!(
            "Counters of {nodes} nodes in {} lives (both ends of each link count):",
            lives.len()
        ),
        format!(
            "  sessions   {} established; ended: {}",
            total(|metrics| metrics.sessions.established),
            counts(|metrics| &metrics.sessions.ended),
        ),
        format!(
            "  dials      {} started; failed: {}",
            total(|metrics| metrics.dials_started),
            counts(|metrics| &metrics.dials_failed),
        ),
        format!(
            "  refused    connections: {}; links: {}; streams: {}",
            counts(|metrics| &metrics.incoming_refused),
            counts(|metrics| &metrics.links_refused),
            counts(|metrics| &metrics.streams_refused),
        ),
        format!(
            "  discovery  exchanges: {}; {} by this side's wish, {} in all",
            counts(|metrics| &metrics.discovery.exchanges),
            total(exchanges_opened),
            size_of(total(exchange_bytes)),
        ),
        format!(
            "             announcements: {} in all, on {} streams; dropped: {}",
            size_of(total(announce_bytes)),
            total(|metrics| sum(metrics, ANNOUNCE, |protocol| protocol.opened)),
            counts(|metrics| &metrics.discovery.announcements_dropped),
        ),
        format!(
            "             records: {} signatures checked; not taken: {}; gone: {}",
            total(|metrics| metrics.discovery.signatures_checked),
            counts(|metrics| &metrics.discovery.ignored),
            counts(|metrics| &metrics.discovery.removed),
        ),
        format!("  asked      {streams} calls and streams, {holds} holds"),
        format!(
            "  outcomes   {}; without one when their node was last asked: {left}",
            counts(|metrics| &metrics.intents_ended),
        ),
        format!(
            "  streams    {} opened, {} served; {} sent, {} received",
            protocols(|protocol| protocol.opened),
            protocols(|protocol| protocol.served),
            size_of(protocols(|protocol| protocol.bytes_sent)),
            size_of(protocols(|protocol| protocol.bytes_received)),
        ),
        format!(
            "  failures   restarts: {}; panics: {}",
            counts(|metrics| &metrics.restarts),
            counts(|metrics| &metrics.panics),
        ),
    ]
}

/// The library's own protocols, as they stand among those of the app.
const EXCHANGE: &str = "kinfolk/exchange/1";
const ANNOUNCE: &str = "kinfolk/announce/1";

fn sum(metrics: &Metrics, protocol: &str, count: fn(&kinfolk::ProtocolMetrics) -> u64) -> u64 {
    metrics.protocols.get(protocol).map_or(0, count)
}

/// Exchanges that the node has opened.
pub fn exchanges_opened(metrics: &Metrics) -> u64 {
    sum(metrics, EXCHANGE, |protocol| protocol.opened)
}

/// What it sent in exchanges, whoever opened them.
pub fn exchange_bytes(metrics: &Metrics) -> u64 {
    sum(metrics, EXCHANGE, |protocol| protocol.bytes_sent)
}

fn announce_bytes(metrics: &Metrics) -> u64 {
    sum(metrics, ANNOUNCE, |protocol| protocol.bytes_sent)
}

fn words(counts: &Counts) -> String {
    let words: Vec<_> = counts
        .iter()
        .filter(|(_, count)| **count > 0)
        .map(|(name, count)| format!("{count} {}", name.replace('_', " ")))
        .collect();
    if words.is_empty() { "none".to_owned() } else { words.join(", ") }
}

/// The actors under a node as ractor knows them, and what the node says of the sessions among them.
pub async fn tree(
    member: &Member,
    names: &BTreeMap<EndpointId, usize>,
) -> Result<Vec<String>, Error> {
    let node = &member.node;
    let mut peers = node.peers().await?;
    peers.retain(|peer| peer.why.state == PeerState::Connected);
    let root = node.actor().get_cell();
    // Actors have no names. They start in this order, and none of this node was restarted.
    let parts = children(&root);
    let [manager, accept, discovery, streams] = parts.as_slice() else {
        return Err(format!("a node was to have four parts, this one has {}", parts.len()).into());
    };
    let sessions = children(manager);
    let mut lines = vec![
        String::new(),
        format!("Supervision tree of node {}, {}:", member.index, node.id().fmt_short()),
        format!("  Node  actor {}", root.get_id()),
        format!("  ├── PeerManager  actor {}", manager.get_id()),
    ];
    for (at, peer) in peers.iter().take(SESSIONS_SHOWN).enumerate() {
        let last = at + 1 == sessions.len();
        let index = names.get(&peer.peer).copied().unwrap_or(usize::MAX);
        let opened = match peer.why.direction {
            Some(Direction::Outbound) => "dialled by this node",
            _ => "dialled by the peer",
        };
        let age = peer.why.age.unwrap_or_default();
        let branch = if last { "└" } else { "├" };
        lines.push(format!(
            "  │   {branch}── Session  with node {index}, {opened}, live for {age:.1?}"
        ));
    }
    if let Some(more @ 1..) = sessions.len().checked_sub(SESSIONS_SHOWN) {
        lines.push(format!("  │   └── … {more} more"));
    }
    lines.push(format!("  ├── Accept  actor {}", accept.get_id()));
    lines.push(format!("  ├── Discovery  actor {}", discovery.get_id()));
    let parts = children(discovery);
    let walkers = Limits::default().walkers;
    for walker in parts.iter().take(walkers) {
        lines.push(format!("  │   ├── Walker  actor {}", walker.get_id()));
    }
    for announcer in parts.iter().skip(walkers).take(1) {
        lines.push(format!("  │   ├── Announcer  actor {}", announcer.get_id()));
    }
    let exchanges = parts.len().saturating_sub(walkers + 1);
    lines.push(format!("  │   └── {exchanges} exchanges under way"));
    lines.push(format!("  └── Streams  actor {}", streams.get_id()));
    if sessions.len() != peers.len() {
        lines.push(format!("  ({} of these sessions are not live)", sessions.len() - peers.len()));
    }
    Ok(lines)
}

fn children(cell: &ActorCell) -> Vec<ActorCell> {
    let mut children = cell.get_children();
    children.sort_by_key(|child| child.get_id().pid());
    children
}
