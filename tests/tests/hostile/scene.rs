//! A node, an honest peer and a stranger, and what happens to the stranger.

use std::collections::BTreeMap;
use std::time::Duration;

use iroh::endpoint::{Connection, RecvStream, SendStream};
use kinfolk::{Code, Limits, Metrics, Node, NodeBuilder, ProtocolName, Rate};
use kinfolk_core::wire::{Answer, StreamMode, frame};
use kinfolk_tests::support::guest::{Guest, alpn, header, hello};
use kinfolk_tests::support::node::{NEXT, builder, quick_limits, serving};
use kinfolk_tests::support::stranger::{Stranger, closed_code, read_until_end, say};
use kinfolk_tests::support::wait::{eventually, within};

pub(crate) const SOON: Duration = Duration::from_secs(10);

/// How long an honest peer's call may take meanwhile, on a busy machine.
pub(crate) const HONEST: Duration = Duration::from_secs(5);

pub(crate) const UNKNOWN: ProtocolName = ProtocolName::from_static("unknown/1");
pub(crate) const STUCK: ProtocolName = ProtocolName::from_static("stuck/1");
pub(crate) const HOLD: ProtocolName = ProtocolName::from_static("kinfolk/hold/1");

/// A node, an honest peer that is connected to it, and a stranger.
pub(crate) struct Scene {
    pub(crate) node: Node,
    pub(crate) honest: Node,
    pub(crate) stranger: Stranger,
}

pub(crate) fn limits() -> Limits {
    let mut limits = quick_limits();
    limits.hello_deadline = Duration::from_millis(800);
    limits.header_deadline = Duration::from_millis(500);
    limits.call_deadline = Duration::from_millis(500);
    limits.drain_deadline = Duration::from_millis(500);
    limits.gate.peer_rate = Rate::new(10_000, Duration::from_millis(1));
    limits
}

impl Scene {
    pub(crate) async fn new() -> Self {
        Self::around(builder(1).limits(limits())).await
    }

    /// As [`Scene::new`], with another node.
    pub(crate) async fn around(node: NodeBuilder) -> Self {
        let node = serving(node).await;
        let honest = serving(builder(2)).await;
        let stranger = Stranger::bind(66).await;
        let scene = Self { node, honest, stranger };
        scene.honest.add_address(scene.node.addr()).expect("an address");
        scene.is_well().await;
        scene
    }

    /// The honest peer is served, and the node answers.
    pub(crate) async fn is_well(&self) {
        let call = self.honest.call::<_, u64>(self.node.id(), NEXT, &1_u64);
        assert_eq!(within(HONEST, "the honest peer's answer", call).await, Ok(2));
        self.metrics().await;
    }

    pub(crate) async fn metrics(&self) -> Metrics {
        within(HONEST, "the numbers", self.node.metrics()).await.expect("the node is alive")
    }

    /// Waits until the counter stands at `count`; a counter is added to after the stranger was told.
    pub(crate) async fn counts(
        &self,
        count: u64,
        label: &str,
        family: impl Fn(&Metrics) -> &BTreeMap<&'static str, u64>,
    ) {
        eventually(SOON, &format!("{label} stands at {count}"), async || {
            family(&self.metrics().await).get(label).copied().unwrap_or(0) == count
        })
        .await;
    }

    pub(crate) async fn dial(&self) -> Connection {
        self.stranger.connect(self.node.addr(), &alpn()).await.expect("the node is up")
    }

    /// Dials, writes these bytes on the control stream, and leaves the stream open.
    pub(crate) async fn begins_with(&self, bytes: &[u8]) -> (Connection, SendStream, RecvStream) {
        let connection = self.dial().await;
        let (send, receive) = say(&connection, bytes).await.expect("the node listens");
        (connection, send, receive)
    }

    /// Writes these bytes where a hello should be: the node closes with the code and counts the reason.
    pub(crate) async fn is_turned_away(&self, bytes: &[u8], code: Code, reason: &str) {
        let (connection, _send, _receive) = self.begins_with(bytes).await;
        assert_eq!(closed(&connection).await, Some(code));
        self.counts(1, reason, |metrics| &metrics.incoming_refused).await;
        self.is_well().await;
    }

    pub(crate) async fn guest(&self) -> Guest {
        Guest::enter(&self.stranger, &self.node, hello(1, 1)).await
    }

    /// After its welcome the stranger writes these bytes on the control stream: the node closes with the code and counts that.
    pub(crate) async fn is_shown_the_door(&self, bytes: &[u8], code: Code) {
        let mut guest = self.guest().await;
        guest.send.write_all(bytes).await.expect("the node listens");
        assert_eq!(closed(&guest.connection).await, Some(code));
        self.counts(1, "peer_misbehaved", |metrics| &metrics.sessions.ended).await;
        self.is_well().await;
    }

    /// A welcomed stranger writes these bytes on a stream of its own: the node refuses the stream with the code, counts that, and
    /// keeps the link.
    pub(crate) async fn is_refused_a_stream(&self, bytes: &[u8], code: Code) {
        let guest = self.guest().await;
        let (_send, mut receive) = guest.ask(bytes).await;
        assert_eq!(answer(&mut receive).await, Some(Answer::Refuse(code)));
        self.counts(1, code.name(), |metrics| &metrics.streams_refused).await;
        is_served(&guest).await;
        self.is_well().await;
    }
}

/// Waits until the node's QUIC has acknowledged all that was said on a connection so far. An empty stream goes behind the rest, so the
/// control stream must have been opened, and nothing welcomed.
pub(crate) async fn has_arrived(connection: &Connection) {
    let (mut send, _receive) = connection.open_bi().await.expect("the connection is up");
    send.finish().expect("finished once");
    let acknowledged = within(SOON, "an acknowledgement", send.stopped()).await;
    assert_eq!(acknowledged.expect("the connection is up"), None);
}

pub(crate) async fn closed(connection: &Connection) -> Option<Code> {
    closed_code(connection, SOON).await.map(Code::from_wire)
}

/// The answer to a stream's header.
pub(crate) async fn answer(receive: &mut RecvStream) -> Option<Answer> {
    let mut byte = [0];
    let read = within(SOON, "an answer", receive.read_exact(&mut byte)).await;
    read.ok().map(|()| Answer::from_byte(byte[0]))
}

/// A call of [`NEXT`] as it goes over the wire.
pub(crate) fn call_of_next() -> Vec<u8> {
    let request = [&1_u32.to_be_bytes()[..], &[41]].concat();
    [header(NEXT, StreamMode::Call), request].concat()
}

/// The guest's link carries a call.
pub(crate) async fn is_served(guest: &Guest) {
    let (mut send, mut receive) = guest.ask(&call_of_next()).await;
    send.finish().expect("finished once");
    let response = read_until_end(&mut receive, SOON).await;
    assert_eq!(response[..], [&[0][..], &1_u32.to_be_bytes(), &[42]].concat());
}

pub(crate) fn one_byte_is_missing(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.pop();
    bytes
}

pub(crate) fn framed(body: &[u8]) -> Vec<u8> {
    frame::encode_frame(body, usize::MAX).expect("short enough")
}
