//! Discovery on a local network that is made for the test: a namespace with one cable, where all that is sent comes back.

use std::net::UdpSocket;

use iroh::SecretKey;
use kinfolk_core::limits::Limits;
use kinfolk_core::peer_table::Totals;
use tokio::runtime::Handle;
use tokio::time::timeout;

use super::*;
use crate::admission::Admission;
use crate::discovery::child;
use crate::metrics::{AddressMetrics, DiscoveryMetrics, Metrics};

const PATIENCE: Duration = Duration::from_secs(30);

/// What a namespace needs to be a local network.
const CABLE: &str = "ip link add lan0 type veth peer name lan1 \
    && ip address add 10.9.0.1/24 dev lan0 && ip link set lo up && ip link set lan0 up \
    && ip link set lan1 up && ip route add default dev lan0 && exec \"$@\"";

/// Whether this is the child on a network of its own; if not, it is run.
fn is_on_a_network(test: &str) -> bool {
    if child::value().is_some() {
        return true;
    }
    child::run(&["unshare", "--net", "sh", "-c", CABLE, "sh"], module_path!(), test, "");
    false
}

fn context(number: u8, network: &str) -> Arc<Context> {
    let key = SecretKey::from_bytes(&[number; 32]);
    let network = NetworkId::from_name(network);
    Arc::new(Context::new(key, network, Limits::default(), Admission::default()))
}

fn move_to(context: &Context, addrs: &[&str]) -> EndpointAddr {
    let addrs = addrs.iter().map(|text| TransportAddr::Ip(text.parse().expect("an address")));
    let addr = EndpointAddr::from_parts(context.id, addrs);
    context.address.send_replace(addr.clone());
    addr
}

async fn next(mdns: &mut Mdns) -> EndpointAddr {
    timeout(PATIENCE, mdns.next()).await.expect("a hint in time").expect("the task runs")
}

fn metrics(context: &Context) -> Metrics {
    let (totals, discovery, addresses) =
        (Totals::default(), DiscoveryMetrics::default(), AddressMetrics::default());
    context.counters.snapshot(&totals, 0, discovery, addresses, 0)
}

/// Sockets of this namespace on the port of mDNS.
fn sockets() -> usize {
    ["udp", "udp6"]
        .iter()
        .filter_map(|file| std::fs::read_to_string(format!("/proc/self/net/{file}")).ok())
        .map(|text| text.lines().filter(|line| line.contains(":14E9 ")).count())
        .sum()
}

async fn eventually(what: &str, is_so: impl Fn() -> bool) {
    let waited = timeout(PATIENCE, async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("not in time: {what}"));
}

#[test]
fn the_name_of_the_service_is_that_of_the_network_and_fits_into_dns() {
    let (here, there) = (NetworkId::from_name("here"), NetworkId::from_name("there"));
    assert_ne!(service_name(here), service_name(there));
    assert!(service_name(here).len() < 63, "an underscore comes before it");
}

#[tokio::test]
async fn nodes_of_one_network_find_each_other_and_nobody_else() {
    if !is_on_a_network("nodes_of_one_network_find_each_other_and_nobody_else") {
        return;
    }
    let (alice, bob) = (context(1, "here"), context(2, "here"));
    let (carol, dave) = (context(3, "there"), context(4, "there"));
    let addrs = [
        (&alice, "10.9.0.1:1001"),
        (&bob, "10.9.0.1:1002"),
        (&carol, "10.9.0.1:1003"),
        (&dave, "10.9.0.1:1004"),
    ];
    let local = addrs.map(|(context, addr)| {
        // Neither this machine nor the world is told to the network.
        move_to(context, &[addr, "127.0.0.1:7", "203.0.113.1:7"]);
        EndpointAddr::from_parts(context.id, [TransportAddr::Ip(addr.parse().expect("an address"))])
    });
    let mut found = addrs.map(|(context, _)| Mdns::start(Arc::clone(context), 7));
    for (place, other) in [(0, 1), (1, 0), (2, 3), (3, 2)] {
        assert_eq!(next(&mut found[place]).await, local[other]);
    }
    // Bob goes elsewhere, and comes with another address.
    let moved = move_to(&bob, &["10.9.0.1:2002"]);
    assert_eq!(next(&mut found[0]).await, moved);
    for mut mdns in found {
        assert!(mdns.hints.try_recv().is_err(), "no more than that");
    }
}

#[tokio::test]
async fn nothing_is_left_when_it_is_dropped() {
    if !is_on_a_network("nothing_is_left_when_it_is_dropped") {
        return;
    }
    let tasks = || Handle::current().metrics().num_alive_tasks();
    let (before, alice, bob) = (tasks(), context(1, "here"), context(2, "here"));
    for context in [&alice, &bob] {
        move_to(context, &["10.9.0.1:1001"]);
    }
    let mut found = [&alice, &bob].map(|context| Mdns::start(Arc::clone(context), 7));
    next(&mut found[0]).await;
    assert!(sockets() >= 2, "{} sockets", sockets());
    drop(found);
    eventually("all sockets are closed", || sockets() == 0).await;
    // The lookup's own timer ends when it is due.
    eventually("all tasks are over", || tasks() == before).await;
    assert_eq!(Arc::strong_count(&alice), 1);
}

#[tokio::test]
async fn without_a_local_address_nothing_is_started() {
    if !is_on_a_network("without_a_local_address_nothing_is_started") {
        return;
    }
    let (alice, bob) = (context(1, "here"), context(2, "here"));
    move_to(&alice, &["127.0.0.1:1", "203.0.113.1:7", "[fe80::1]:7"]);
    let mut mdns = Mdns::start(Arc::clone(&alice), 7);
    let there = move_to(&bob, &["10.9.0.1:1002"]);
    let _bob = Mdns::start(Arc::clone(&bob), 7);
    eventually("the lookup of Bob has sockets", || sockets() > 0).await;
    let of_bob = sockets();
    move_to(&alice, &["10.9.0.1:1001"]);
    assert_eq!(next(&mut mdns).await, there);
    assert_eq!(sockets(), 2 * of_bob, "Alice had none before");
}

#[tokio::test]
async fn where_it_is_not_possible_it_is_counted_and_tried_again() {
    if !is_on_a_network("where_it_is_not_possible_it_is_counted_and_tried_again") {
        return;
    }
    // Somebody who does not share the port.
    let taken = [UdpSocket::bind("0.0.0.0:5353"), UdpSocket::bind("[::]:5353")];
    let alice = context(1, "here");
    move_to(&alice, &["10.9.0.1:1001"]);
    let mut mdns = Mdns::start(Arc::clone(&alice), 7);
    let lost = || metrics(&alice).discovery.mdns_failures.get("lost").copied().unwrap_or_default();
    eventually("it fails twice", || lost() >= 2).await;
    drop(taken);
    let bob = context(2, "here");
    let there = move_to(&bob, &["10.9.0.1:1002"]);
    let _bob = Mdns::start(Arc::clone(&bob), 7);
    assert_eq!(next(&mut mdns).await, there);
}

#[tokio::test]
async fn a_crowd_is_as_good_as_no_network() {
    let alice = context(1, "here");
    let (sender, mut hints) = mpsc::channel(QUEUE);
    let mut task = Task {
        addresses: alice.address.subscribe(),
        hints: Hints::new(alice.id, HintLimits::default()),
        backoff: Backoff::new(7, DISTANCE_MAX),
        context: Arc::clone(&alice),
        sender,
    };
    let (place, crowd) = (TransportAddr::Ip("10.9.0.2:7".parse().expect("an address")), 3_000_u16);
    let events = (0..crowd).map(|number| {
        let [high, low] = number.to_be_bytes();
        let bytes = std::array::from_fn(|place| if place == 0 { high } else { low });
        let id = SecretKey::from_bytes(&bytes).public();
        let data = EndpointData::from_iter([place.clone()]);
        DiscoveryEvent::Discovered {
            endpoint_info: iroh::address_lookup::EndpointInfo::from_parts(id, data),
            last_updated: None,
        }
    });
    let ended = task.listen(futures_util::stream::iter(events), &BTreeSet::new()).await;
    assert_eq!(ended, Ended::Crowded);
    let mut passed = 0;
    while hints.try_recv().is_ok() {
        passed += 1;
    }
    assert_eq!(passed, HintLimits::default().per_minute);
    let dropped = metrics(&alice).discovery.hints_dropped;
    assert_eq!(dropped.values().sum::<u64>() + 30, u64::try_from(CROWD_MAX).expect("small") + 1);
}
