//! Two nodes that can reach each other only through a relay server, which runs in this process.

use std::net::Ipv4Addr;
use std::time::Duration;

use iroh_relay::server::{RelayConfig, Server, ServerConfig};
use kinfolk::{EndpointAddr, Node, RelayMode, RelayUrl};
use kinfolk_tests::support::impair::{Impairment, Pair};
use kinfolk_tests::support::node::{ECHO, NEXT, builder, live, real_addr, serving};
use kinfolk_tests::support::wait::{eventually, within};

/// How long a first contact through the relay may take: a node first has to find its way to it.
const SOON: Duration = Duration::from_secs(20);

/// Two nodes with a relay server, and no other way to each other.
struct Apart {
    alice: Node,
    bob: Node,
    url: RelayUrl,
    server: Server,
    _sealed: Pair,
}

impl Apart {
    async fn new() -> Self {
        let mut config = ServerConfig::default();
        config.relay = Some(RelayConfig::new((Ipv4Addr::LOCALHOST, 0)));
        let server = within(SOON, "a relay", Server::spawn(config)).await.expect("it starts");
        let address = server.http_addr().expect("it listens");
        let url: RelayUrl = format!("http://{address}").parse().expect("a URL");
        let node = |key| serving(builder(key).relay(RelayMode::custom([url.clone()])));
        let (alice, bob) = (node(1).await, node(2).await);
        // What comes from anywhere but this pair's faces is dropped, and what comes from them too: no datagram gets through.
        let sealed = Impairment::new(1).link(real_addr(&alice), real_addr(&bob));
        let sealed = sealed.expect("both are on loopback");
        sealed.partition();
        for node in [&alice, &bob] {
            eventually(SOON, "the relay knows the node", async || {
                node.addr().relay_urls().any(|home| *home == url)
            })
            .await;
        }
        Self { alice, bob, url, server, _sealed: sealed }
    }

    fn bob_by_relay(&self) -> EndpointAddr {
        EndpointAddr::new(self.bob.id()).with_relay_url(self.url.clone())
    }
}

#[tokio::test]
async fn nodes_that_only_a_relay_connects_call_each_other_and_stream() {
    let apart = Apart::new().await;
    let Apart { alice, bob, .. } = &apart;
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
    within(SOON, "the end", async { tokio::join!(alice.shutdown(), bob.shutdown()) }).await;
    within(SOON, "the relay's end", apart.server.shutdown()).await.expect("it ends well");
}
