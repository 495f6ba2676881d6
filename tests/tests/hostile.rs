//! Strangers that speak QUIC but not the protocol, or the protocol but not its rules: each is told why, counted, and let go,
//! and an honest peer is served all the while.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use iroh::endpoint::{Connection, RecvStream, SendStream, VarInt};
use kinfolk::{Code, Limits, Metrics, NetworkId, Node, ProtocolName, Rate, Service};
use kinfolk_core::wire::{
    Answer, CONTROL_MAX, Control, DeadLink, Extensions, Goodbye, HEADER_MAX, Hello, LENGTH_BYTES,
    StreamHeader, StreamMode, Welcome, frame,
};
use kinfolk_tests::support::guest::{
    Guest, alpn, bytes, done, goodbye, header, hear, hello, knock,
};
use kinfolk_tests::support::node::{ECHO, NETWORK, NEXT, builder, quick_limits, serving};
use kinfolk_tests::support::stranger::{
    DialError, Stranger, closed_code, read_until_end, say, trickle,
};
use kinfolk_tests::support::wait::{eventually, live_tasks, within};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

const SOON: Duration = Duration::from_secs(10);

/// How long an honest peer's call may take meanwhile; the strangers' deadlines are not in its way.
const HONEST: Duration = Duration::from_secs(2);

const UNKNOWN: ProtocolName = ProtocolName::from_static("unknown/1");
const STUCK: ProtocolName = ProtocolName::from_static("stuck/1");
const HOLD: ProtocolName = ProtocolName::from_static("kinfolk/hold/1");

/// A node, an honest peer that is connected to it, and a stranger.
struct Scene {
    node: Node,
    honest: Node,
    stranger: Stranger,
}

fn limits() -> Limits {
    let mut limits = quick_limits();
    limits.hello_deadline = Duration::from_millis(800);
    limits.header_deadline = Duration::from_millis(500);
    limits.call_deadline = Duration::from_millis(500);
    limits.drain_deadline = Duration::from_millis(500);
    limits.gate.peer_rate = Rate::new(10_000, Duration::from_millis(1));
    limits
}

impl Scene {
    async fn new() -> Self {
        let node = serving(builder(1).limits(limits())).await;
        let honest = serving(builder(2)).await;
        let stranger = Stranger::bind(66).await;
        let scene = Self { node, honest, stranger };
        scene.honest.add_address(scene.node.addr()).expect("an address");
        scene.is_well().await;
        scene
    }

    /// The honest peer is served, and the node answers.
    async fn is_well(&self) {
        let call = self.honest.call::<_, u64>(self.node.id(), NEXT, &1_u64);
        assert_eq!(within(HONEST, "the honest peer's answer", call).await, Ok(2));
        self.metrics().await;
    }

    async fn metrics(&self) -> Metrics {
        within(HONEST, "the numbers", self.node.metrics()).await.expect("the node is alive")
    }

    /// Waits until the counter stands at `count`; a counter is added to after the stranger was told.
    async fn counts(
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

    async fn dial(&self) -> Connection {
        self.stranger.connect(self.node.addr(), &alpn()).await.expect("the node is up")
    }

    /// Dials, writes these bytes on the control stream, and leaves the stream open.
    async fn begins_with(&self, bytes: &[u8]) -> (Connection, SendStream, RecvStream) {
        let connection = self.dial().await;
        let (send, receive) = say(&connection, bytes).await.expect("the node listens");
        (connection, send, receive)
    }

    /// Writes these bytes where a hello should be: the node closes with the code and counts the reason.
    async fn is_turned_away(&self, bytes: &[u8], code: Code, reason: &str) {
        let (connection, _send, _receive) = self.begins_with(bytes).await;
        assert_eq!(closed(&connection).await, Some(code));
        self.counts(1, reason, |metrics| &metrics.incoming_refused).await;
        self.is_well().await;
    }

    async fn guest(&self) -> Guest {
        Guest::enter(&self.stranger, &self.node, hello(1, 1)).await
    }

    /// After its welcome the stranger writes these bytes on the control stream: the node closes with the code and counts that.
    async fn is_shown_the_door(&self, bytes: &[u8], code: Code) {
        let mut guest = self.guest().await;
        guest.send.write_all(bytes).await.expect("the node listens");
        assert_eq!(closed(&guest.connection).await, Some(code));
        self.counts(1, "peer_misbehaved", |metrics| &metrics.sessions.ended).await;
        self.is_well().await;
    }

    /// A welcomed stranger writes these bytes on a stream of its own: the node refuses the stream with the code, counts that, and
    /// keeps the link.
    async fn is_refused_a_stream(&self, bytes: &[u8], code: Code) {
        let guest = self.guest().await;
        let (_send, mut receive) = guest.ask(bytes).await;
        assert_eq!(answer(&mut receive).await, Some(Answer::Refuse(code)));
        self.counts(1, code.name(), |metrics| &metrics.streams_refused).await;
        is_served(&guest).await;
        self.is_well().await;
    }
}

async fn closed(connection: &Connection) -> Option<Code> {
    closed_code(connection, SOON).await.map(Code::from_wire)
}

/// The answer to a stream's header.
async fn answer(receive: &mut RecvStream) -> Option<Answer> {
    let mut byte = [0];
    let read = within(SOON, "an answer", receive.read_exact(&mut byte)).await;
    read.ok().map(|()| Answer::from_byte(byte[0]))
}

/// A call of [`NEXT`] as it goes over the wire.
fn call_of_next() -> Vec<u8> {
    let request = [&1_u32.to_be_bytes()[..], &[41]].concat();
    [header(NEXT, StreamMode::Call), request].concat()
}

/// The guest's link carries a call.
async fn is_served(guest: &Guest) {
    let (mut send, mut receive) = guest.ask(&call_of_next()).await;
    send.finish().expect("finished once");
    let response = read_until_end(&mut receive, SOON).await;
    assert_eq!(response[..], [&[0][..], &1_u32.to_be_bytes(), &[42]].concat());
}

fn one_byte_is_missing(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.pop();
    bytes
}

fn framed(body: &[u8]) -> Vec<u8> {
    frame::encode_frame(body, usize::MAX).expect("short enough")
}

// In the handshake

#[tokio::test]
async fn a_node_of_another_network_ends_in_the_handshake_and_is_counted() {
    let scene = Scene::new().await;
    let other = NetworkId::from_name("another network").alpn();
    let dialled = scene.stranger.connect(scene.node.addr(), &other).await;
    assert!(matches!(dialled, Err(DialError::Refused(_))), "{dialled:?}");
    scene.counts(1, "no_common_protocol", |metrics| &metrics.incoming_refused).await;
    scene.is_well().await;
}

#[tokio::test]
async fn a_node_of_another_major_version_ends_in_the_handshake_and_is_counted() {
    let scene = Scene::new().await;
    let other = format!("kinfolk/2/{}", NetworkId::from_name(NETWORK));
    let dialled = scene.stranger.connect(scene.node.addr(), other.as_bytes()).await;
    assert!(matches!(dialled, Err(DialError::Refused(_))), "{dialled:?}");
    scene.counts(1, "no_common_protocol", |metrics| &metrics.incoming_refused).await;
    scene.is_well().await;
}

// Instead of a hello

#[tokio::test]
async fn garbage_instead_of_a_hello_is_malformed() {
    let garbage = framed(&[0xff; 40]);
    Scene::new().await.is_turned_away(&garbage, Code::Malformed, "malformed_hello").await;
}

#[tokio::test]
async fn an_empty_frame_instead_of_a_hello_is_malformed() {
    Scene::new().await.is_turned_away(&[0; 4], Code::Malformed, "malformed_hello").await;
}

#[tokio::test]
async fn a_hello_that_claims_to_be_too_long_is_too_large() {
    let length = u32::try_from(CONTROL_MAX).expect("small") + 1;
    for claim in [length, u32::MAX] {
        let scene = Scene::new().await;
        scene.is_turned_away(&claim.to_be_bytes(), Code::TooLarge, "malformed_hello").await;
    }
}

#[tokio::test]
async fn a_hello_with_more_dead_links_than_allowed_is_malformed() {
    let nine_dead = [&[0, 0, 1, 1, 9][..], &[1, 1, 1].repeat(9)].concat();
    let scene = Scene::new().await;
    scene.is_turned_away(&framed(&nine_dead), Code::Malformed, "malformed_hello").await;
}

#[tokio::test]
async fn a_hello_that_claims_the_most_dead_links_that_a_number_can_is_malformed() {
    let claim = [&[0, 0, 1, 1][..], &[0xff; 9], &[1]].concat();
    let scene = Scene::new().await;
    scene.is_turned_away(&framed(&claim), Code::Malformed, "malformed_hello").await;
}

#[tokio::test]
async fn a_hello_in_another_encoding_than_the_shortest_is_malformed() {
    let needless = framed(&[0, 0, 0x81, 0, 1, 0]);
    Scene::new().await.is_turned_away(&needless, Code::Malformed, "malformed_hello").await;
}

#[tokio::test]
async fn whoever_says_something_else_first_breaks_the_protocol() {
    let welcome = Control::Welcome(Welcome {
        minor: 0,
        incarnation: kinfolk::Incarnation::new(1),
        call_max: 1,
        extensions: Extensions::none(),
    });
    for frame in [welcome, goodbye(Code::Ok), done()] {
        Scene::new().await.is_turned_away(&bytes(&frame), Code::Violation, "no_hello").await;
    }
}

#[tokio::test]
async fn a_hello_that_ends_too_early_breaks_the_protocol() {
    let scene = Scene::new().await;
    let half = one_byte_is_missing(bytes(&Control::Hello(hello(1, 1))));
    let (connection, mut send, _receive) = scene.begins_with(&half).await;
    send.finish().expect("finished once");
    assert_eq!(closed(&connection).await, Some(Code::Violation));
    scene.counts(1, "no_hello", |metrics| &metrics.incoming_refused).await;
    scene.is_well().await;
}

#[tokio::test]
async fn a_hello_that_is_reset_breaks_the_protocol() {
    let scene = Scene::new().await;
    let (connection, mut send, _receive) = scene.begins_with(b"\0\0\0").await;
    send.reset(VarInt::MAX).expect("reset once");
    assert_eq!(closed(&connection).await, Some(Code::Violation));
    scene.counts(1, "no_hello", |metrics| &metrics.incoming_refused).await;
    scene.is_well().await;
}

#[tokio::test]
async fn a_hello_that_never_comes_is_late() {
    let scene = Scene::new().await;
    let connection = scene.dial().await;
    assert_eq!(closed(&connection).await, Some(Code::HelloTimeout));
    scene.counts(1, "hello_timeout", |metrics| &metrics.incoming_refused).await;
    scene.is_well().await;
}

#[tokio::test]
async fn a_hello_that_comes_byte_by_byte_is_late() {
    let scene = Scene::new().await;
    let slow = bytes(&Control::Hello(hello(u64::MAX, u64::MAX)));
    let (connection, mut send, _receive) = scene.begins_with(&slow[..1]).await;
    let pace = Duration::from_millis(200);
    let trickle = within(SOON, "the cut", trickle(&mut send, &slow[1..], pace));
    let (written, code) = tokio::join!(trickle, closed(&connection));
    assert!(written < slow.len() - 1, "the whole hello was read");
    assert_eq!(code, Some(Code::HelloTimeout));
    scene.counts(1, "hello_timeout", |metrics| &metrics.incoming_refused).await;
    scene.is_well().await;
}

#[tokio::test]
async fn whoever_leaves_before_its_hello_is_counted() {
    let scene = Scene::new().await;
    scene.dial().await.close(VarInt::MAX, b"changed my mind");
    scene.counts(1, "lost_before_hello", |metrics| &metrics.incoming_refused).await;
    scene.is_well().await;
}

// Unusual hellos that must be served

#[tokio::test]
async fn a_newer_minor_version_with_unknown_extensions_is_served() {
    let scene = Scene::new().await;
    let extensions = Extensions::none()
        .with(7, b"from the future")
        .and_then(|extensions| extensions.with(u32::MAX, b""));
    let extensions = extensions.expect("rising kinds");
    let newer = Hello { minor: u16::MAX, extensions: extensions.clone(), ..hello(1, 1) };
    let guest = Guest::enter(&scene.stranger, &scene.node, newer).await;
    let mut header = StreamHeader::new(NEXT, StreamMode::Call);
    header.extensions = extensions;
    let ask = [header.encode().expect("short enough"), vec![0, 0, 0, 1, 41]].concat();
    let (mut send, mut receive) = guest.ask(&ask).await;
    send.finish().expect("finished once");
    assert_eq!(read_until_end(&mut receive, SOON).await[..], [0, 0, 0, 0, 1, 42]);
}

#[tokio::test]
async fn a_hello_as_long_as_allowed_is_served() {
    let scene = Scene::new().await;
    let short = bytes(&Control::Hello(hello(1, 1)));
    // One byte for the extension's kind, and two for its length.
    let room = CONTROL_MAX + LENGTH_BYTES - short.len() - 3;
    let extensions = Extensions::none().with(1, &vec![7; room]).expect("one extension");
    let long = Hello { extensions, ..hello(1, 1) };
    assert_eq!(bytes(&Control::Hello(long.clone())).len(), CONTROL_MAX + LENGTH_BYTES);
    is_served(&Guest::enter(&scene.stranger, &scene.node, long).await).await;
}

#[tokio::test]
async fn the_largest_numbers_that_a_hello_can_carry_are_served() {
    let scene = Scene::new().await;
    let incarnation = kinfolk::Incarnation::new(u64::MAX);
    let dead = [true, false].repeat(4);
    let dead = dead.into_iter().map(|mine| DeadLink { mine, incarnation, n: u64::MAX - 1 });
    let largest = Hello { minor: u16::MAX, dead: dead.collect(), ..hello(u64::MAX, u64::MAX) };
    let guest = Guest::enter(&scene.stranger, &scene.node, largest).await;
    is_served(&guest).await;
    scene.is_well().await;
}

// A second link

#[tokio::test]
async fn a_second_hello_for_a_live_link_is_refused_and_the_link_lives_on() {
    let scene = Scene::new().await;
    let guest = scene.guest().await;
    let (second, ..) = knock(&scene.stranger, &scene.node, hello(1, 1)).await;
    assert_eq!(closed(&second).await, Some(Code::Violation));
    scene.counts(1, "violation", |metrics| &metrics.links_refused).await;
    is_served(&guest).await;
    scene.is_well().await;
}

#[tokio::test]
async fn an_older_link_than_the_live_one_is_refused_and_the_live_one_lives_on() {
    let scene = Scene::new().await;
    let guest = Guest::enter(&scene.stranger, &scene.node, hello(1, u64::MAX)).await;
    let (second, ..) = knock(&scene.stranger, &scene.node, hello(1, u64::MAX - 1)).await;
    assert_eq!(closed(&second).await, Some(Code::Duplicate));
    scene.counts(1, "duplicate", |metrics| &metrics.links_refused).await;
    is_served(&guest).await;
    scene.is_well().await;
}

#[tokio::test]
async fn a_peer_that_replaces_its_link_over_and_over_has_one_live_link_and_few_that_close() {
    let scene = Scene::new().await;
    let mut guests = Vec::new();
    for n in 1..=30 {
        guests.push(Guest::enter(&scene.stranger, &scene.node, hello(1, n)).await);
        let sessions = scene.metrics().await.sessions;
        // The live one, those that close, and the honest peer's.
        assert!(sessions.inbound <= 7, "{sessions:?}");
    }
    is_served(guests.last().expect("thirty")).await;
    for replaced in &guests[..29] {
        assert!(closed_code(&replaced.connection, SOON).await.is_some());
    }
    scene.is_well().await;
}

// On the control stream

#[tokio::test]
async fn a_frame_that_is_not_the_diallers_breaks_the_protocol() {
    let again = bytes(&Control::Hello(hello(1, 2)));
    Scene::new().await.is_shown_the_door(&again, Code::Violation).await;
    let welcome = b"\0\0\0\x04\x01\0\x01\x01";
    Scene::new().await.is_shown_the_door(welcome, Code::Violation).await;
}

#[tokio::test]
async fn a_done_before_its_goodbye_breaks_the_protocol() {
    Scene::new().await.is_shown_the_door(&bytes(&done()), Code::Violation).await;
}

#[tokio::test]
async fn a_second_goodbye_breaks_the_protocol() {
    let goodbye = bytes(&goodbye(Code::Ok));
    Scene::new().await.is_shown_the_door(&goodbye.repeat(2), Code::Violation).await;
}

#[tokio::test]
async fn a_second_done_breaks_the_protocol() {
    let scene = Scene::new().await;
    let mut guest = scene.guest().await;
    // An open stream keeps the node from being done itself.
    let (_send, mut receive) = guest.ask(&header(ECHO, StreamMode::Acked)).await;
    assert_eq!(answer(&mut receive).await, Some(Answer::Ack));
    guest.say(&[goodbye(Code::Ok), done(), done()]).await;
    assert_eq!(closed(&guest.connection).await, Some(Code::Violation));
    scene.counts(1, "peer_misbehaved", |metrics| &metrics.sessions.ended).await;
    scene.is_well().await;
}

#[tokio::test]
async fn garbage_on_the_control_stream_is_malformed() {
    Scene::new().await.is_shown_the_door(&framed(b"\xffgarbage"), Code::Malformed).await;
}

#[tokio::test]
async fn a_goodbye_without_a_reason_is_malformed() {
    Scene::new().await.is_shown_the_door(&framed(&[2, 0, 0, 0]), Code::Malformed).await;
}

#[tokio::test]
async fn a_control_frame_that_claims_to_be_too_long_is_too_large() {
    Scene::new().await.is_shown_the_door(&[0xff; 4], Code::TooLarge).await;
}

#[tokio::test]
async fn a_control_stream_that_ends_breaks_the_protocol() {
    let scene = Scene::new().await;
    let mut guest = scene.guest().await;
    guest.send.finish().expect("finished once");
    assert_eq!(closed(&guest.connection).await, Some(Code::Violation));
    scene.counts(1, "peer_misbehaved", |metrics| &metrics.sessions.ended).await;
    scene.is_well().await;
}

#[tokio::test]
async fn a_control_stream_that_is_reset_breaks_the_protocol() {
    let scene = Scene::new().await;
    let mut guest = scene.guest().await;
    guest.send.reset(VarInt::MAX).expect("reset once");
    assert_eq!(closed(&guest.connection).await, Some(Code::Violation));
    scene.counts(1, "peer_misbehaved", |metrics| &metrics.sessions.ended).await;
    scene.is_well().await;
}

#[tokio::test]
async fn whoever_stops_the_nodes_control_stream_is_served_and_cut_when_the_node_drains() {
    let scene = Scene::new().await;
    let mut guest = scene.guest().await;
    guest.receive.stop(VarInt::MAX).expect("stopped once");
    is_served(&guest).await;
    scene.node.disconnect(scene.stranger.id()).await.expect("alive");
    assert_eq!(closed(&guest.connection).await, Some(Code::DrainDeadline));
    scene.is_well().await;
}

#[tokio::test]
async fn the_largest_numbers_that_a_goodbye_can_carry_do_not_stretch_the_drain() {
    let scene = Scene::new().await;
    let mut guest = scene.guest().await;
    let (_send, mut receive) = guest.ask(&header(ECHO, StreamMode::Acked)).await;
    assert_eq!(answer(&mut receive).await, Some(Answer::Ack));
    let largest =
        Goodbye { served: u64::MAX, within_ms: u32::MAX, ..Goodbye::new(Code::Idle, 0, SOON) };
    guest.say(&[Control::Goodbye(largest)]).await;
    // The node's own deadline is half a second, the goodbye names 49 days.
    assert_eq!(closed(&guest.connection).await, Some(Code::DrainDeadline));
    scene.is_well().await;
}

// Streams

#[tokio::test]
async fn a_stream_header_that_never_ends_is_late() {
    let half = one_byte_is_missing(header(ECHO, StreamMode::Acked));
    Scene::new().await.is_refused_a_stream(&half, Code::HeaderTimeout).await;
}

#[tokio::test]
async fn a_stream_header_that_comes_byte_by_byte_is_late() {
    let scene = Scene::new().await;
    let guest = scene.guest().await;
    let slow = header(ECHO, StreamMode::Acked);
    let (mut send, mut receive) = guest.ask(&slow[..1]).await;
    let trickle = trickle(&mut send, &slow[1..], Duration::from_millis(200));
    let trickle = within(SOON, "the cut", trickle);
    let (written, answer) = tokio::join!(trickle, answer(&mut receive));
    assert!(written < slow.len() - 1, "the whole header was read");
    assert_eq!(answer, Some(Answer::Refuse(Code::HeaderTimeout)));
    is_served(&guest).await;
    scene.is_well().await;
}

#[tokio::test]
async fn a_stream_header_that_claims_to_be_too_long_is_too_large() {
    let length = u32::try_from(HEADER_MAX).expect("small") + 1;
    for claim in [length, u32::MAX] {
        Scene::new().await.is_refused_a_stream(&claim.to_be_bytes(), Code::TooLarge).await;
    }
}

#[tokio::test]
async fn a_stream_header_that_is_none_is_malformed() {
    let unknown_mode = framed(b"\x06echo/1\x03");
    let no_name = framed(b"\x00\x00");
    let name_with_space = framed(b"\x03a b\x00");
    let longest = framed(&[&[65][..], &[b'x'; 65], &[0]].concat());
    let garbage = framed(&[0xff; 20]);
    for bytes in [unknown_mode, no_name, name_with_space, longest, garbage, vec![0; 4]] {
        Scene::new().await.is_refused_a_stream(&bytes, Code::Malformed).await;
    }
}

#[tokio::test]
async fn a_stream_that_ends_before_its_header_is_malformed() {
    let scene = Scene::new().await;
    let guest = scene.guest().await;
    let (mut send, mut receive) = guest.ask(b"\0\0").await;
    send.finish().expect("finished once");
    assert_eq!(answer(&mut receive).await, Some(Answer::Refuse(Code::Malformed)));
    is_served(&guest).await;
    scene.is_well().await;
}

#[tokio::test]
async fn an_unknown_protocol_refuses_its_stream_alone() {
    let ask = header(UNKNOWN, StreamMode::Acked);
    Scene::new().await.is_refused_a_stream(&ask, Code::UnknownProtocol).await;
}

#[tokio::test]
async fn a_stream_in_a_mode_that_its_protocol_has_not_breaks_the_protocol() {
    let call_of_a_stream = header(ECHO, StreamMode::Call);
    let stream_of_a_call = header(NEXT, StreamMode::Acked);
    for ask in [call_of_a_stream, stream_of_a_call] {
        let scene = Scene::new().await;
        let guest = scene.guest().await;
        let (_send, mut receive) = guest.ask(&ask).await;
        assert_eq!(answer(&mut receive).await, Some(Answer::Refuse(Code::Violation)));
        is_served(&guest).await;
        scene.is_well().await;
    }
}

#[tokio::test]
async fn a_hold_in_a_mode_that_it_has_not_is_refused_and_counted() {
    let ask = header(HOLD, StreamMode::Eager);
    Scene::new().await.is_refused_a_stream(&ask, Code::Violation).await;
}

#[tokio::test]
async fn a_call_that_claims_four_gigabytes_is_too_large() {
    let scene = Scene::new().await;
    let guest = scene.guest().await;
    let ask = [header(NEXT, StreamMode::Call), vec![0xff; 4]].concat();
    let (_send, mut receive) = guest.ask(&ask).await;
    let end = within(SOON, "the end", receive.read_chunk(1)).await;
    assert_eq!(reset_code(end), Some(Code::TooLarge));
    scene.counts(1, "too_large", |metrics| &metrics.streams_refused).await;
    is_served(&guest).await;
    scene.is_well().await;
}

#[tokio::test]
async fn a_request_that_stops_coming_is_late() {
    let scene = Scene::new().await;
    let guest = scene.guest().await;
    let ask = [header(NEXT, StreamMode::Call), vec![0, 0, 4, 0], vec![7; 100]].concat();
    let (_send, mut receive) = guest.ask(&ask).await;
    let end = within(SOON, "the end", receive.read_chunk(1)).await;
    assert_eq!(reset_code(end), Some(Code::HeaderTimeout));
    is_served(&guest).await;
    scene.is_well().await;
}

#[tokio::test]
async fn requests_that_a_peer_has_in_service_take_up_no_more_room_than_its_window() {
    const ROOM: u32 = 256 * 1024;
    let mut limits = limits();
    limits.connection_window = ROOM;
    limits.call_bytes = ROOM / 4;
    let node = serving(builder(1).limits(limits)).await;
    let (tell, mut asked) = mpsc::unbounded_channel();
    let stuck = Service::call_bytes(move |_peer, _request| {
        let _ = tell.send(());
        std::future::pending()
    });
    node.serve(STUCK, stuck).await.expect("a new protocol");
    let stranger = Stranger::bind(66).await;
    let guest = Guest::enter(&stranger, &node, hello(1, 1)).await;
    // A little room is left for calls of a few bytes.
    let length = ROOM / 4 - 8;
    let claim = [header(STUCK, StreamMode::Call), length.to_be_bytes().to_vec()].concat();
    let ask = [claim.clone(), vec![7; usize::try_from(length).expect("small")]].concat();
    let mut served = Vec::new();
    for _ in 0..4 {
        served.push(guest.ask(&ask).await);
        within(SOON, "the handler", asked.recv()).await.expect("asked");
    }
    let (_send, mut receive) = guest.ask(&claim).await;
    let end = within(SOON, "the end", receive.read_chunk(1)).await;
    assert_eq!(reset_code(end), Some(Code::Busy));
    is_served(&guest).await;
    // The room is that of one peer.
    let other = Stranger::bind(67).await;
    let other = Guest::enter(&other, &node, hello(1, 1)).await;
    let _fifth = other.ask(&ask).await;
    within(SOON, "the handler", asked.recv()).await.expect("asked");
}

#[tokio::test]
async fn a_response_that_nobody_reads_gives_its_place_back() {
    let mut limits = limits();
    limits.call_bytes = 4 * 1024 * 1024;
    let node = serving(builder(1).limits(limits)).await;
    let large = Service::call_bytes(|_peer, _request| async { Ok(vec![7; 4 * 1024 * 1024]) });
    node.serve(STUCK, large.concurrency(1)).await.expect("a new protocol");
    let stranger = Stranger::bind(66).await;
    let guest = Guest::enter(&stranger, &node, hello(1, 1)).await;
    let ask = [header(STUCK, StreamMode::Call), vec![0; 4]].concat();
    let _unread = guest.ask(&ask).await;
    eventually(SOON, "the response is on its way", async || {
        let metrics = node.metrics().await.expect("alive");
        metrics.protocols["stuck/1"].active == 1
    })
    .await;
    eventually(SOON, "its place is free", async || {
        let metrics = node.metrics().await.expect("alive");
        metrics.protocols["stuck/1"].active == 0
    })
    .await;
    is_served(&guest).await;
}

#[tokio::test]
async fn a_second_hold_of_a_link_is_refused() {
    let scene = Scene::new().await;
    let guest = scene.guest().await;
    let (_send, mut receive) = guest.ask(&header(HOLD, StreamMode::Acked)).await;
    assert_eq!(answer(&mut receive).await, Some(Answer::Ack));
    let (_send, mut receive) = guest.ask(&header(HOLD, StreamMode::Acked)).await;
    assert_eq!(answer(&mut receive).await, Some(Answer::Refuse(Code::Busy)));
    is_served(&guest).await;
    scene.is_well().await;
}

fn reset_code(end: Result<Option<bytes::Bytes>, iroh::endpoint::ReadError>) -> Option<Code> {
    match end {
        Err(iroh::endpoint::ReadError::Reset(code)) => Some(Code::from_wire(code.into_inner())),
        other => panic!("expected a reset, came {other:?}"),
    }
}

#[tokio::test]
async fn one_way_streams_and_datagrams_are_not_possible() {
    let scene = Scene::new().await;
    let guest = scene.guest().await;
    assert_eq!(guest.connection.max_datagram_size(), None);
    let uni = tokio::time::timeout(Duration::from_millis(200), guest.connection.open_uni()).await;
    assert!(uni.is_err(), "the node allows none, so the open waits");
    is_served(&guest).await;
    scene.is_well().await;
}

#[tokio::test]
async fn a_thousand_streams_that_stall_at_once_are_bounded_and_leave_nothing_behind() {
    let scene = Scene::new().await;
    let guest = scene.guest().await;
    is_served(&guest).await;
    eventually(SOON, "the calls are over", async || scene.metrics().await.streams_inbound == 0)
        .await;
    let tasks = live_tasks();
    let mut stalled = Vec::new();
    for _ in 0..1000 {
        stalled.push(guest.ask(b"\0").await);
    }
    eventually(SOON, "as many as may be are read, the others refused", async || {
        let metrics = scene.metrics().await;
        assert!(metrics.streams_inbound <= 128 + 1, "{}", metrics.streams_inbound);
        metrics.streams_refused.get("busy").copied().unwrap_or(0) >= 1000 - 2 * 128
    })
    .await;
    scene.is_well().await;
    let mut answers = BTreeMap::new();
    for (_, receive) in &mut stalled {
        let answer = answer(receive).await.expect("every stream is answered");
        *answers.entry(answer).or_insert(0) += 1;
    }
    let late = answers.get(&Answer::Refuse(Code::HeaderTimeout)).copied().unwrap_or(0);
    let busy = answers.get(&Answer::Refuse(Code::Busy)).copied().unwrap_or(0);
    assert_eq!(late + busy, 1000, "{answers:?}");
    assert!(late >= 128, "{answers:?}");
    is_served(&guest).await;
    drop(stalled);
    eventually(SOON, "no task is left of them", async || live_tasks() <= tasks).await;
    assert_eq!(scene.metrics().await.streams_inbound, 0);
}

// At every point

/// How a stranger breaks off.
#[derive(Debug, Clone, Copy)]
enum Break {
    Finish,
    Reset,
    Close,
    Vanish,
}

const BREAKS: [Break; 4] = [Break::Finish, Break::Reset, Break::Close, Break::Vanish];

impl Break {
    fn off(self, connection: &Connection, mut send: SendStream, mut receive: RecvStream) {
        match self {
            Self::Finish => send.finish().expect("finished once"),
            Self::Reset => {
                // Either may be over already.
                let _ = send.reset(VarInt::MAX);
                let _ = receive.stop(VarInt::MAX);
            }
            Self::Close => connection.close(VarInt::MAX, &[7; 100]),
            Self::Vanish => {}
        }
    }
}

#[tokio::test]
async fn a_node_survives_a_hello_that_breaks_off_at_any_byte() {
    let scene = Scene::new().await;
    let mut n = 0;
    for how in BREAKS {
        for end in 0..=bytes(&Control::Hello(hello(1, 1))).len() {
            n += 1;
            let whole = bytes(&Control::Hello(hello(1, n)));
            let (connection, send, receive) = scene.begins_with(&whole[..end]).await;
            how.off(&connection, send, receive);
        }
        scene.is_well().await;
    }
    eventually(SOON, "nothing is left of them", async || {
        let metrics = scene.metrics().await;
        metrics.handshakes == 0 && metrics.sessions.inbound == 1
    })
    .await;
}

#[tokio::test]
async fn a_link_survives_streams_that_break_off_at_any_byte() {
    let scene = Scene::new().await;
    let guest = scene.guest().await;
    let call = call_of_next();
    for how in [Break::Finish, Break::Reset, Break::Vanish] {
        for end in 0..=call.len() {
            let (send, receive) = guest.ask(&call[..end]).await;
            how.off(&guest.connection, send, receive);
        }
        is_served(&guest).await;
    }
    eventually(SOON, "nothing is left of them", async || {
        scene.metrics().await.streams_inbound == 0
    })
    .await;
    scene.is_well().await;
}

#[tokio::test]
async fn a_node_survives_links_that_close_in_any_state_with_any_code() {
    let scene = Scene::new().await;
    let mut n = 0;
    for code in [VarInt::from_u32(0), VarInt::from_u32(1), VarInt::from_u32(255), VarInt::MAX] {
        let mut next = || {
            n += 1;
            hello(1, n)
        };
        // Before the hello, and before the welcome.
        scene.dial().await.close(code, b"");
        let (connection, ..) = knock(&scene.stranger, &scene.node, next()).await;
        connection.close(code, b"");
        // Live, with nothing on it.
        let guest = Guest::enter(&scene.stranger, &scene.node, next()).await;
        guest.connection.close(code, b"");
        // With a stream whose header is not complete, with one that is served, with one whose answer is on its way.
        let guest = Guest::enter(&scene.stranger, &scene.node, next()).await;
        let _negotiating = guest.ask(b"\0").await;
        let (_send, mut receive) = guest.ask(&header(ECHO, StreamMode::Acked)).await;
        assert_eq!(answer(&mut receive).await, Some(Answer::Ack));
        let _asked = guest.ask(&call_of_next()).await;
        guest.connection.close(code, b"");
        // After the stranger's goodbye, and after its done.
        let mut guest = Guest::enter(&scene.stranger, &scene.node, next()).await;
        guest.say(&[goodbye(Code::Ok)]).await;
        assert!(matches!(hear(&mut guest.receive).await, Some(Control::Goodbye(_))));
        guest.connection.close(code, b"");
        let mut guest = Guest::enter(&scene.stranger, &scene.node, next()).await;
        let (_send, mut receive) = guest.ask(&header(ECHO, StreamMode::Acked)).await;
        assert_eq!(answer(&mut receive).await, Some(Answer::Ack));
        guest.say(&[goodbye(Code::Ok), done()]).await;
        assert!(matches!(hear(&mut guest.receive).await, Some(Control::Goodbye(_))));
        guest.connection.close(code, b"");
        // After the node's goodbye.
        let mut guest = Guest::enter(&scene.stranger, &scene.node, next()).await;
        scene.node.disconnect(scene.stranger.id()).await.expect("alive");
        assert!(matches!(hear(&mut guest.receive).await, Some(Control::Goodbye(_))));
        guest.connection.close(code, b"");
        scene.is_well().await;
    }
    eventually(SOON, "nothing is left of them", async || {
        let metrics = scene.metrics().await;
        metrics.handshakes == 0 && metrics.sessions.inbound == 1 && metrics.streams_inbound == 0
    })
    .await;
}

// Too many

#[tokio::test]
async fn a_reconnect_loop_of_one_id_is_refused() {
    let mut limits = limits();
    limits.gate.peer_rate = Rate::new(10, Duration::from_secs(60));
    let node = serving(builder(1).limits(limits)).await;
    let mallory = Stranger::bind(66).await;
    for n in 1..=10 {
        let guest = Guest::enter(&mallory, &node, hello(1, n)).await;
        guest.connection.close(VarInt::from_u32(0), b"");
    }
    for n in 11..=15 {
        let (connection, ..) = knock(&mallory, &node, hello(1, n)).await;
        assert_eq!(closed(&connection).await, Some(Code::Busy));
    }
    let honest = serving(builder(2)).await;
    let call = honest.call::<_, u64>(node.addr(), NEXT, &1_u64);
    assert_eq!(within(HONEST, "the honest peer's answer", call).await, Ok(2));
    let metrics = node.metrics().await.expect("alive");
    assert_eq!(metrics.incoming_refused.get("peer_rate"), Some(&5));
}

/// Strangers of one address that dial as fast as they can, until it is dropped.
struct Flood {
    over: Arc<AtomicBool>,
    attackers: JoinSet<()>,
}

impl Flood {
    async fn of(node: &Node, strangers: u8) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let mut attackers = JoinSet::new();
        for key in 0..strangers {
            let stranger = Stranger::builder(100 + key)
                .handshake_deadline(Duration::from_millis(500))
                .bind()
                .await;
            let (node, over) = (node.addr(), Arc::clone(&over));
            attackers.spawn(async move {
                let mut held = Vec::new();
                for n in 1.. {
                    if over.load(Ordering::Relaxed) {
                        break;
                    }
                    // Half of them never say hello.
                    if let Ok(connection) = stranger.connect(node.clone(), &alpn()).await {
                        let hello = bytes(&Control::Hello(hello(1, n)));
                        let words = if n % 2 == 0 { &hello[..] } else { b"" };
                        let stream = say(&connection, words).await;
                        held.push((connection, stream));
                    }
                }
                drop(held);
                stranger.close().await;
            });
        }
        Self { over, attackers }
    }

    async fn ends(mut self) {
        self.over.store(true, Ordering::Relaxed);
        within(SOON, "the attackers leave", async {
            while self.attackers.join_next().await.is_some() {}
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_from_one_address_takes_its_share_and_no_more() {
    let mut limits = limits();
    limits.gate.exempt_loopback = false;
    let node = serving(builder(1).limits(limits)).await;
    let flood = Flood::of(&node, 32).await;
    let is_pushed_back = |metrics: &Metrics| {
        let refused = &metrics.incoming_refused;
        ["address_rate", "address_live"].iter().any(|reason| refused.contains_key(reason))
    };
    eventually(SOON, "the flood is pushed back", async || {
        is_pushed_back(&node.metrics().await.expect("alive"))
    })
    .await;

    // A new peer of another address gets in at once.
    let elsewhere = (Ipv4Addr::new(127, 0, 0, 2), 0).into();
    let honest = Node::builder(NETWORK).bind_addr(elsewhere).limits(quick_limits());
    let honest = serving(honest).await;
    let call = honest.call::<_, u64>(node.addr(), NEXT, &1_u64);
    assert_eq!(within(Duration::from_secs(1), "the honest answer", call).await, Ok(2));

    for _ in 0..20 {
        let metrics = node.metrics().await.expect("alive");
        // Eight each address may have; one of those counted here is the honest peer's.
        assert!(metrics.sessions.inbound <= 8 + 1, "{metrics:?}");
        // A handshake that is over is counted until the accept loop has seen that.
        assert!(metrics.handshakes <= 2 * 8, "{metrics:?}");
        let call = honest.call::<_, u64>(node.id(), NEXT, &1_u64);
        assert_eq!(within(HONEST, "the honest answer", call).await, Ok(2));
    }
    flood.ends().await;
    eventually(SOON, "nothing is left of them", async || {
        let metrics = node.metrics().await.expect("alive");
        metrics.handshakes == 0 && metrics.sessions.inbound == 1
    })
    .await;
}
