//! An error, an end, a reset, a close, a drop and silence in every state of a link that `breaks` and `acceptor` do not reach: the node's own
//! dial from its first packet on, a parked link, and links of either direction that drain.

use std::time::Duration;

use iroh::endpoint::{Connection, Incoming, RecvStream, SendStream, VarInt};
use kinfolk::{Code, EndpointAddr, Hold, LinkEnd, NodeEvent, SecretKey};
use kinfolk_core::peer_link::DialFailure;
use kinfolk_core::wire::Control;
use kinfolk_tests::support::events::EventLog;
use kinfolk_tests::support::guest::{Guest, alpn, bytes, goodbye, hear, hello};
use kinfolk_tests::support::host::{Dialled, Host};
use kinfolk_tests::support::node::{builder, live};
use kinfolk_tests::support::stranger::{Stranger, say};
use kinfolk_tests::support::wait::eventually;

use crate::scene::{SOON, Scene, closed, framed, limits};

/// What a stranger does to a link instead of what is its turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Break {
    /// It writes a frame that is none.
    Garbage,
    /// It ends its half of the control stream.
    Finish,
    /// It gives both halves of the control stream up.
    Reset,
    /// It closes the connection with this code.
    Close(Code),
    /// It drops all that it has, which closes the connection with 0, a code that says nothing.
    Drop,
}

const BREAKS: [Break; 7] = [
    Break::Garbage,
    Break::Finish,
    Break::Reset,
    Break::Close(Code::Ok),
    Break::Close(Code::Internal),
    Break::Close(Code::DeadlineExceeded),
    Break::Drop,
];

type Kept = Option<(Connection, SendStream, RecvStream)>;

impl Break {
    async fn off(
        self,
        connection: Connection,
        mut send: SendStream,
        mut receive: RecvStream,
    ) -> Kept {
        match self {
            Self::Garbage => send.write_all(&framed(b"\xffgarbage")).await.expect("a listener"),
            Self::Finish => send.finish().expect("finished once"),
            Self::Reset => {
                send.reset(VarInt::MAX).expect("reset once");
                receive.stop(VarInt::MAX).expect("stopped once");
            }
            Self::Close(code) => connection.close(u32::from(code.to_wire()).into(), b""),
            Self::Drop => return None,
        }
        Some((connection, send, receive))
    }

    /// How the node says that the link ended. Once either side has said goodbye, a close with `Ok` is the agreed one.
    fn end(self, is_draining: bool) -> LinkEnd {
        match self {
            Self::Garbage => LinkEnd::PeerMisbehaved(Code::Malformed),
            Self::Finish | Self::Reset => LinkEnd::PeerMisbehaved(Code::Violation),
            Self::Close(Code::Ok) if is_draining => LinkEnd::Drained,
            Self::Close(code) => LinkEnd::ClosedByPeer(code),
            Self::Drop => LinkEnd::ClosedByPeer(Code::Unspecified),
        }
    }
}

/// A scene, and a log of what happens to its node. Nothing ends by itself there but what falls silent.
async fn scene(deadline: Duration) -> (Scene, EventLog) {
    let mut limits = limits();
    limits.hello_deadline = deadline;
    limits.drain_deadline = deadline;
    let scene = Scene::around(builder(1).limits(limits)).await;
    let log = EventLog::of(&scene.node).await;
    (scene, log)
}

/// The node reports this end of its next link to end, serves on, and keeps nothing but the link with its honest peer.
async fn ends_as(scene: &Scene, log: &mut EventLog, end: LinkEnd, what: &str) {
    let is_end = |event: &NodeEvent| matches!(event, NodeEvent::SessionEnded { .. });
    let ended = log.next(SOON, what, is_end).await;
    assert!(
        matches!(ended, NodeEvent::SessionEnded { end: how, .. } if how == end),
        "{what}: {ended:?}"
    );
    scene.is_well().await;
}

async fn nothing_is_left(scene: &Scene) {
    eventually(SOON, "nothing is left of it", async || {
        let metrics = scene.metrics().await;
        let sessions = &metrics.sessions;
        let pending = sessions.dialling + sessions.parked + sessions.closing;
        (metrics.handshakes, metrics.streams_inbound, sessions.live, pending) == (0, 0, 1, 0)
    })
    .await;
}

// The node's own dial, before its hello

/// What a host does with a connection that it has not accepted yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Door {
    Refuse,
    Ignore,
    /// It begins the handshake and leaves it.
    Abandon,
    /// It ends the handshake, and the connection at once with this code.
    Close(Code),
}

/// Returns what has to be kept so that nothing more is said.
async fn meets(door: Door, incoming: Incoming) -> Option<Connection> {
    match door {
        Door::Refuse => incoming.refuse(),
        Door::Ignore => incoming.ignore(),
        Door::Abandon => drop(incoming.accept().expect("it waits")),
        Door::Close(code) => {
            let connection = incoming.accept().expect("it waits").await.expect("a handshake");
            connection.close(u32::from(code.to_wire()).into(), b"");
            return Some(connection);
        }
    }
    None
}

#[tokio::test]
async fn a_dial_that_is_met_in_any_way_before_its_hello_fails_for_that_reason_and_is_made_again() {
    let meetings = [
        (Door::Refuse, LinkEnd::DialFailed(DialFailure::Refused)),
        // Nobody answers, not even a repeated packet.
        (Door::Ignore, LinkEnd::DialFailed(DialFailure::TimedOut)),
        (Door::Abandon, LinkEnd::DialFailed(DialFailure::Other)),
        (Door::Close(Code::Ok), LinkEnd::ClosedByPeer(Code::Ok)),
        (Door::Close(Code::from_wire(200)), LinkEnd::ClosedByPeer(Code::from_wire(200))),
    ];
    for (door, expected) in meetings {
        let (scene, mut log) = scene(SOON).await;
        let stranger = Stranger::bind(77).await;
        stranger.endpoint().set_alpns(vec![alpn()]);
        let endpoint = stranger.endpoint().clone();
        let hosting = tokio::spawn(async move {
            let mut kept = Vec::new();
            while let Some(incoming) = endpoint.accept().await {
                kept.push(meets(door, incoming).await);
            }
        });
        let hold = scene.node.hold(stranger.addr());
        let is_failure = |event: &NodeEvent| matches!(event, NodeEvent::DialFailed { .. });
        let failed = log.next(SOON, "the failure", is_failure).await;
        let NodeEvent::DialFailed { end, retry_in, .. } = failed else { unreachable!("asked for") };
        assert_eq!(end, expected, "{door:?}");
        assert!(retry_in.is_some_and(|wait| wait >= Duration::from_millis(500)), "{retry_in:?}");
        log.next(SOON, "the failure of the next dial", is_failure).await;
        assert_eq!(hold.outcome(), None);
        drop(hold);
        scene.is_well().await;
        nothing_is_left(&scene).await;
        hosting.abort();
    }
}

// The node's own dial, from its hello on

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The hello is written.
    Greeting,
    Live,
    /// The node has said goodbye.
    NodeDrains,
    /// The host has said goodbye, and was answered.
    HostDrains,
}

impl State {
    const ALL: [Self; 4] = [Self::Greeting, Self::Live, Self::NodeDrains, Self::HostDrains];

    fn is_draining(self) -> bool {
        matches!(self, Self::NodeDrains | Self::HostDrains)
    }

    /// A link in this state that the node has dialled, and wants no more.
    async fn dialled(self, scene: &Scene, host: &mut Host) -> Dialled {
        let hold = scene.node.hold(host.addr());
        let mut dialled = host.greeted().await;
        drop(hold);
        if self == Self::Greeting {
            return dialled;
        }
        dialled.welcome().await;
        live(&scene.node, host.id()).await;
        match self {
            Self::NodeDrains => scene.node.disconnect(host.id()).await.expect("alive"),
            Self::HostDrains => dialled.say(&[goodbye(Code::Ok)]).await,
            Self::Greeting | Self::Live => return dialled,
        }
        assert!(matches!(hear(&mut dialled.receive).await, Some(Control::Goodbye(_))));
        dialled
    }
}

#[tokio::test]
async fn a_link_of_the_node_s_own_that_breaks_in_any_state_ends_for_that_reason() {
    for state in State::ALL {
        let (scene, mut log) = scene(SOON).await;
        for (key, how) in (100..).zip(BREAKS) {
            // Each a stranger of its own, so that none is left alone for what another did.
            let mut host = Host::bind(key).await;
            let Dialled { connection, send, receive, .. } = state.dialled(&scene, &mut host).await;
            let _kept = how.off(connection, send, receive).await;
            let end = how.end(state.is_draining());
            ends_as(&scene, &mut log, end, &format!("{state:?}, {how:?}")).await;
        }
        nothing_is_left(&scene).await;
    }
}

#[tokio::test]
async fn a_link_of_the_node_s_own_on_which_nothing_comes_ends_at_the_deadline_of_its_state() {
    for (state, end) in [
        (State::Greeting, LinkEnd::Closed(Code::HelloTimeout)),
        (State::NodeDrains, LinkEnd::Closed(Code::DrainDeadline)),
        (State::HostDrains, LinkEnd::Closed(Code::DrainDeadline)),
    ] {
        let (scene, mut log) = scene(Duration::from_millis(800)).await;
        let mut host = Host::bind(100).await;
        let _silent = state.dialled(&scene, &mut host).await;
        ends_as(&scene, &mut log, end, &format!("{state:?}, silence")).await;
        nothing_is_left(&scene).await;
    }
}

// A link of a stranger's that drains

#[tokio::test]
async fn a_link_of_a_stranger_s_that_breaks_while_it_drains_ends_for_that_reason() {
    for node_drains in [true, false] {
        let (scene, mut log) = scene(SOON).await;
        for (n, how) in (1..).zip(BREAKS) {
            let mut guest = Guest::enter(&scene.stranger, &scene.node, hello(1, n)).await;
            if node_drains {
                scene.node.disconnect(scene.stranger.id()).await.expect("alive");
            } else {
                guest.say(&[goodbye(Code::Ok)]).await;
            }
            assert!(matches!(hear(&mut guest.receive).await, Some(Control::Goodbye(_))));
            let _kept = how.off(guest.connection, guest.send, guest.receive).await;
            let what = format!("the node drains: {node_drains}, {how:?}");
            ends_as(&scene, &mut log, how.end(true), &what).await;
        }
        nothing_is_left(&scene).await;
    }
}

// A parked link

/// A scene whose node has written its hello to a host, and has parked the link that the host opened meanwhile.
struct Parking {
    scene: Scene,
    log: EventLog,
    host: Host,
    dialled: Dialled,
    hold: Hold,
}

impl Parking {
    async fn new() -> (Self, (Connection, SendStream, RecvStream)) {
        let (scene, log) = scene(SOON).await;
        // Of two nodes the one with the larger id parks.
        let smaller =
            (100..).find(|key| SecretKey::from_bytes(&[*key; 32]).public() < scene.node.id());
        let mut host = Host::bind(smaller.expect("half of them are")).await;
        let hold = scene.node.hold(host.addr());
        let dialled = host.greeted().await;
        let node: EndpointAddr = scene.node.addr();
        let connection = host.stranger().connect(node, &alpn()).await.expect("the node is up");
        let hello = bytes(&Control::Hello(hello(1, 1)));
        let (send, receive) = say(&connection, &hello).await.expect("the node listens");
        eventually(SOON, "the link is parked", async || scene.metrics().await.sessions.parked == 1)
            .await;
        (Self { scene, log, host, dialled, hold }, (connection, send, receive))
    }

    /// The dial, which the host has welcomed after all, becomes live, and nothing of the parked link is left.
    async fn ends_with_the_dial(self) {
        live(&self.scene.node, self.host.id()).await;
        assert_eq!(self.hold.outcome(), None);
        eventually(SOON, "the dial alone is left", async || {
            let sessions = self.scene.metrics().await.sessions;
            (sessions.live, sessions.inbound, sessions.parked, sessions.closing) == (2, 1, 0, 0)
        })
        .await;
        self.scene.is_well().await;
    }
}

#[tokio::test]
async fn a_parked_link_that_breaks_ends_for_that_reason_and_the_dial_that_it_waited_for_goes_on() {
    for how in BREAKS {
        let (mut parking, (connection, send, receive)) = Parking::new().await;
        let _kept = how.off(connection, send, receive).await;
        let what = format!("parked, {how:?}");
        ends_as(&parking.scene, &mut parking.log, how.end(false), &what).await;
        parking.dialled.welcome().await;
        parking.ends_with_the_dial().await;
    }
}

#[tokio::test]
async fn a_parked_link_that_does_not_leave_when_it_is_refused_is_closed() {
    let (mut parking, (connection, _send, mut receive)) = Parking::new().await;
    parking.dialled.welcome().await;
    let refused = hear(&mut receive).await;
    assert!(
        matches!(&refused, Some(Control::Goodbye(goodbye)) if goodbye.code == Code::Duplicate),
        "{refused:?}"
    );
    assert_eq!(closed(&connection).await, Some(Code::Duplicate));
    let end = LinkEnd::Closed(Code::Duplicate);
    ends_as(&parking.scene, &mut parking.log, end, "parked, silence").await;
    parking.ends_with_the_dial().await;
}
