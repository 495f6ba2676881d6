//! Discovery on the local network by multicast DNS: who else of this node's network is near.
//!
//! One task tells the local network this node's id and local addresses, and passes on what others tell. What comes out are *hints*,
//! unsigned and unproven: `kinfolk_core::hints` decides which are passed on, and whoever takes them may only dial. It never gives
//! anything to iroh: the lookup is not one of the endpoint's address lookup services, or iroh would dial what it was told for any
//! dial of ours, and would publish all of the endpoint's addresses and its relay. Nodes of other networks are never heard, since the name of
//! the service is that of the network.
//!
//! Nothing about it can fail a node. Where multicast is not possible that is said once and tried again, less and less often; without a local address
//! nothing is tried. The lookup is set up anew when the local addresses change, since it joins the multicast group on what
//! was the default interface then; and every so often, as it does not tell when it has ended. Its tables have no bound of their own: once it
//! has told of more peers than a local network has, it is taken down like one that fails.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{Stream, StreamExt as _};
use iroh::address_lookup::{AddressLookup as _, AddressLookupBuilderError, EndpointData};
use iroh::{EndpointAddr, EndpointId, TransportAddr};
use iroh_mdns_address_lookup::{DiscoveryEvent, MdnsAddressLookup};
use kinfolk_core::backoff::Backoff;
use kinfolk_core::hints::{HintLimits, Hints, is_local};
use kinfolk_core::id::NetworkId;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant as Time, sleep, sleep_until};
use tracing::{debug, warn};

use crate::context::Context;
use crate::metrics::Family;

#[cfg(test)]
mod tests;

/// How often the network is asked who is there, all nodes together: a new node is found within three seconds, and the network sees some 25
/// questions a minute (a guess).
const CADENCE: Duration = Duration::from_secs(2);

/// Hints that wait for whoever takes them: a household that is found at once.
const QUEUE: usize = 32;

/// The lookup is set up anew this often (a guess).
const RENEWAL: Duration = Duration::from_secs(600);

/// Peers that the lookup may have told of and not taken back. Well above [`HintLimits::peers`]; it remembers at most a packet of each, and
/// may know of some times as many under a flood, of which it does not tell everything: a few MiB (an estimate).
const CROWD_MAX: usize = 1_024;

/// The longest time between two tries.
const DISTANCE_MAX: Duration = Duration::from_secs(600);

/// The shortest time between two lookups: addresses that come and go cost no more than this.
const PAUSE: Duration = Duration::from_secs(1);

/// What a running lookup ended by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    /// The local addresses have changed, or it is time for a new one.
    Renewed,
    /// It ended by itself.
    Lost,
    /// It has told of too many peers.
    Crowded,
}

/// The discovery on the local network. It ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Mdns {
    hints: mpsc::Receiver<EndpointAddr>,
    task: JoinHandle<()>,
}

impl Mdns {
    /// Starts it for this node, on the runtime that it is called on; `seed` is drawn by the caller, for the distance between tries. It waits
    /// for nothing.
    ///
    /// What is dropped is counted in [`Family::HintDropped`].
    pub(crate) fn start(context: Arc<Context>, seed: u64) -> Self {
        let (sender, hints) = mpsc::channel(QUEUE);
        let task = Task {
            addresses: context.address.subscribe(),
            hints: Hints::new(context.id, HintLimits::default()),
            backoff: Backoff::new(seed, DISTANCE_MAX),
            context,
            sender,
        };
        Self { hints, task: tokio::spawn(task.run()) }
    }

    /// The next hint: a peer that may be there, with local addresses that it may have. `None` never comes while this lives, unless the
    /// task panicked or its runtime shuts down.
    ///
    /// Cancelled, no hint is lost.
    pub(crate) async fn next(&mut self) -> Option<EndpointAddr> {
        self.hints.recv().await
    }
}

impl Drop for Mdns {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Task {
    context: Arc<Context>,
    /// Where this node can be reached, as far as iroh knows.
    addresses: watch::Receiver<EndpointAddr>,
    hints: Hints,
    /// Between tries that fail.
    backoff: Backoff,
    sender: mpsc::Sender<EndpointAddr>,
}

impl Task {
    async fn run(mut self) {
        while let Some(local) = self.local_addresses().await {
            let distance = match lookup(self.context.id, self.context.network) {
                Ok(lookup) => {
                    lookup.publish(&EndpointData::from_iter(local.iter().cloned()));
                    let events = lookup.subscribe().await;
                    match self.listen(events, &local).await {
                        Ended::Renewed => {
                            self.backoff.reset();
                            PAUSE
                        }
                        ended => self.failed(ended, &"the lookup has ended"),
                    }
                    // Here the lookup is dropped, and its sockets are closed.
                }
                Err(error) => self.failed(Ended::Lost, &error),
            };
            self.rest(distance).await;
        }
    }

    /// Waits until the next try is due, or until another network may be there.
    async fn rest(&mut self, distance: Duration) {
        sleep(distance.min(PAUSE)).await;
        tokio::select! {
            () = sleep(distance.saturating_sub(PAUSE)) => {}
            _ = self.addresses.changed() => {}
        }
    }

    /// This node's local addresses, once it has any; `None` if it has ended.
    async fn local_addresses(&mut self) -> Option<BTreeSet<TransportAddr>> {
        let has_local = |addr: &EndpointAddr| addr.addrs.iter().any(is_local);
        let addr = self.addresses.wait_for(has_local).await.ok()?;
        Some(local(&addr))
    }

    /// Counts that it does not work and says so the first time. Returns how long to leave it.
    fn failed(&mut self, ended: Ended, error: &dyn std::fmt::Display) -> Duration {
        let label = if ended == Ended::Crowded { "crowded" } else { "lost" };
        self.context.counters.count(Family::MdnsFailed, label);
        if self.backoff.attempts() == 0 {
            warn!(%error, ?ended, "discovery on the local network does not work for now");
        }
        self.backoff.fail()
    }

    /// Passes on hints for as long as the lookup is good.
    async fn listen<S>(&mut self, events: S, published: &BTreeSet<TransportAddr>) -> Ended
    where
        S: Stream<Item = DiscoveryEvent> + Unpin,
    {
        let mut crowd = BTreeSet::new();
        let mut events = events;
        let renewal = sleep_until(later(RENEWAL));
        tokio::pin!(renewal);
        loop {
            let event = tokio::select! {
                () = &mut renewal => return Ended::Renewed,
                changed = self.addresses.changed() => {
                    if changed.is_err() || local(&self.addresses.borrow_and_update()) != *published {
                        return Ended::Renewed;
                    }
                    continue;
                }
                event = events.next() => event,
            };
            match event {
                Some(DiscoveryEvent::Discovered { endpoint_info, .. }) => {
                    crowd.insert(endpoint_info.endpoint_id);
                    self.heard(&endpoint_info.to_endpoint_addr());
                }
                Some(DiscoveryEvent::Expired { endpoint_id }) => {
                    crowd.remove(&endpoint_id);
                }
                Some(_) => {}
                None => return Ended::Lost,
            }
            if crowd.len() > CROWD_MAX {
                return Ended::Crowded;
            }
        }
    }

    fn heard(&mut self, hint: &EndpointAddr) {
        let Ok(place) = self.sender.try_reserve() else {
            self.context.counters.count(Family::HintDropped, "queue_full");
            return;
        };
        match self.hints.heard(Instant::now(), hint) {
            Ok(hint) => {
                debug!(peer = %hint.id.fmt_short(), "heard of on the local network");
                place.send(hint);
            }
            Err(dropped) => self.context.counters.count(Family::HintDropped, dropped.name()),
        }
    }
}

/// Those of the addresses that mean something on the local network.
fn local(addr: &EndpointAddr) -> BTreeSet<TransportAddr> {
    addr.addrs.iter().filter(|addr| is_local(addr)).cloned().collect()
}

fn later(after: Duration) -> Time {
    let now = Time::now();
    now.checked_add(after).unwrap_or(now)
}

/// A lookup that hears and tells only nodes of this network.
fn lookup(
    id: EndpointId,
    network: NetworkId,
) -> Result<MdnsAddressLookup, AddressLookupBuilderError> {
    MdnsAddressLookup::builder()
        .service_name(service_name(network))
        .discovery_cadence(CADENCE)
        .build(id)
}

/// The name of the service: the network's id. DNS allows 63 bytes, and mDNS ignores their case, which hex digits have none of.
fn service_name(network: NetworkId) -> String {
    format!("kinfolk1-{network}")
}
