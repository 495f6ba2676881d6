//! Two nodes with a relay server, which runs in this process: from the start their only way to each other, or from when the direct one is lost.

use std::net::Ipv4Addr;
use std::time::Duration;

use iroh_relay::server::{RelayConfig, Server, ServerConfig};
use kinfolk::{EndpointAddr, Node, Options, RelayMode, RelayUrl};
use kinfolk_tests::support::impair::{Impairment, Pair};
use kinfolk_tests::support::node::{ECHO, NEXT, builder, live, real_addr, serving};
use kinfolk_tests::support::wait::{eventually, within};

/// How long a first contact through the relay may take: a node first has to find its way to it.
const SOON: Duration = Duration::from_secs(20);

/// Two nodes with a relay server.
struct Relayed {
    alice: Node,
    bob: Node,
    url: RelayUrl,
    server: Server,
}

impl Relayed {
    async fn new() -> Self {
        let mut config = ServerConfig::default();
        config.relay = Some(RelayConfig::new((Ipv4Addr::LOCALHOST, 0)));
        let server = within(SOON, "a relay", Server::spawn(config)).await.expect("it starts");
        let address = server.http_addr().expect("it listens");
        let url: RelayUrl = format!("http://{address}").parse().expect("a URL");
        let node = |key| serving(builder(key).relay(RelayMode::custom([url.clone()])));
        let (alice, bob) = (node(1).await, node(2).await);
        for node in [&alice, &bob] {
            eventually(SOON, "the relay knows the node", async || {
                node.addr().relay_urls().any(|home| *home == url)
            })
            .await;
        }
        Self { alice, bob, url, server }
    }

    /// From now on there is no way between them but the relay.
    fn part(&self) -> Pair {
        // What comes from anywhere but this pair's faces is dropped, and what comes from them too: no datagram gets through.
        let sealed = Impairment::new(1).link(real_addr(&self.alice), real_addr(&self.bob));
        let sealed = sealed.expect("both are on loopback");
        sealed.partition();
        sealed
    }

    async fn over(self) {
        let Self { alice, bob, server, .. } = self;
        within(SOON, "the end", async { tokio::join!(alice.shutdown(), bob.shutdown()) }).await;
        within(SOON, "the relay's end", server.shutdown()).await.expect("it ends well");
    }

    fn bob_by_relay(&self) -> EndpointAddr {
        EndpointAddr::new(self.bob.id()).with_relay_url(self.url.clone())
    }
}

#[tokio::test]
async fn nodes_that_only_a_relay_connects_call_each_other_and_stream() {
    let apart = Relayed::new().await;
    let _sealed = apart.part();
    let Relayed { alice, bob, .. } = &apart;
    let call = alice.call::<_, u64>(apart.bob_by_relay(), NEXT, &1_u64);
    assert_eq!(within(SOON, "an answer", call).await, Ok(2));
    // Over the same link, in the other direction.
    let link = live(alice, bob.id()).await;
    let opened = within(SOON, "an open", bob.open(alice.id(), ECHO)).await;
    let (mut send, mut recv) = opened.expect("acknowledged");
    let payload = vec![7; 256 * 1024];
    let echoing = async {
        send.write_all(&payload).await.expect("sent");
        send.finish().expect("finished once");
    };
    let (echoed, ()) =
        within(SOON, "the echo", async { tokio::join!(recv.read_to_end(1 << 20), echoing) }).await;
    assert_eq!(echoed, Ok(payload.clone()));
    assert_eq!(live(alice, bob.id()).await, link);

    // The way is remembered: the next dial needs no address.
    alice.disconnect(bob.id()).await.expect("the node is up");
    let call = alice.call::<_, u64>(bob.id(), NEXT, &2_u64);
    assert_eq!(within(SOON, "an answer", call).await, Ok(3));
    apart.over().await;
}

#[tokio::test]
async fn a_link_at_rest_whose_direct_way_is_lost_goes_on_over_the_relay() {
    let relayed = Relayed::new().await;
    let Relayed { alice, bob, url, .. } = &relayed;
    let _hold = alice.hold(bob.addr().with_relay_url(url.clone()));
    let link = live(alice, bob.id()).await;
    // For longer than iroh lets a way through a relay live of which it hears nothing.
    tokio::time::sleep(Duration::from_secs(33)).await;
    assert_eq!(live(alice, bob.id()).await, link);
    let _sealed = relayed.part();
    // What it has sent on the direct way counts as lost after as long as iroh lets one live of which it hears nothing.
    let options = Options::new().deadline(2 * SOON);
    let call = alice.call_with::<_, u64>(bob.id(), NEXT, &1_u64, options);
    assert_eq!(within(3 * SOON, "an answer", call).await, Ok(2));
    assert_eq!(live(alice, bob.id()).await, link);
    relayed.over().await;
}
