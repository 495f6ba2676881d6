//! Breaking off at every point.
//!
//! A connection that is closed forgets what it has not sent yet, so each test first makes sure that the node has what is to come before
//! the break.

use iroh::endpoint::{Connection, RecvStream, SendStream, VarInt};
use kinfolk::{Admission, Admit, Code, LinkEnd, NodeEvent, Service};
use kinfolk_core::wire::{Answer, Control, StreamMode};
use kinfolk_tests::support::events::EventLog;
use kinfolk_tests::support::guest::{Guest, bytes, done, goodbye, header, hear, hello, knock};
use kinfolk_tests::support::node::{ECHO, NEXT, builder};
use kinfolk_tests::support::stranger::Stranger;
use kinfolk_tests::support::wait::{eventually, within};
use tokio::sync::mpsc;

use crate::scene::{
    SOON, STUCK, Scene, answer, call_of_next, closed, has_arrived, is_served, limits,
};

/// How a stranger breaks off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Break {
    /// It ends its half of the stream.
    Finish,
    /// It gives both halves of the stream up.
    Reset,
    /// It closes the connection with a code and a reason.
    Close,
    /// It drops what it has, which ends streams and closes the connection with 0 if that was its last handle.
    Drop,
    /// It says no more.
    FallSilent,
}

/// What is kept of a break, so that nothing else is said by dropping it.
type Kept = Option<(Connection, SendStream, RecvStream)>;

impl Break {
    fn off(self, connection: Connection, mut send: SendStream, mut receive: RecvStream) -> Kept {
        match self {
            Self::Finish => send.finish().expect("finished once"),
            Self::Reset => {
                send.reset(VarInt::MAX).expect("reset once");
                receive.stop(VarInt::MAX).expect("stopped once");
            }
            Self::Close => connection.close(VarInt::MAX, &[7; 100]),
            Self::Drop => return None,
            Self::FallSilent => {}
        }
        Some((connection, send, receive))
    }
}

// In the hello

/// Breaks off before each byte of a hello: the node counts every one for this reason, closes with this code unless the stranger did, and
/// serves on.
async fn hellos_break_off(how: Break, code: Option<Code>, reason: &str) {
    let mut limits = limits();
    if how != Break::FallSilent {
        // So that no hello is late before it breaks off.
        limits.hello_deadline = SOON;
    }
    let scene = Scene::around(builder(1).limits(limits)).await;
    let mut kept = Vec::new();
    let mut broken = 0;
    for end in 0..bytes(&Control::Hello(hello(1, 1))).len() {
        broken += 1;
        let whole = bytes(&Control::Hello(hello(1, broken)));
        let (connection, send, receive) = scene.begins_with(&whole[..end]).await;
        if how != Break::FallSilent {
            has_arrived(&connection).await;
        }
        kept.push(how.off(connection, send, receive));
    }
    for (connection, ..) in kept.iter().flatten() {
        if code.is_some() {
            assert_eq!(closed(connection).await, code, "{how:?}");
        }
    }
    scene.counts(broken, reason, |metrics| &metrics.incoming_refused).await;
    let metrics = scene.metrics().await;
    assert_eq!(metrics.incoming_refused.values().sum::<u64>(), broken, "{metrics:?}");
    scene.is_well().await;
    nothing_is_left(&scene).await;
}

async fn nothing_is_left(scene: &Scene) {
    eventually(SOON, "nothing is left of them", async || {
        let metrics = scene.metrics().await;
        metrics.handshakes == 0 && metrics.sessions.inbound == 1 && metrics.streams_inbound == 0
    })
    .await;
}

#[tokio::test]
async fn a_hello_that_ends_before_any_byte_breaks_the_protocol() {
    hellos_break_off(Break::Finish, Some(Code::Violation), "no_hello").await;
}

#[tokio::test]
async fn a_hello_that_is_reset_before_any_byte_breaks_the_protocol() {
    hellos_break_off(Break::Reset, Some(Code::Violation), "no_hello").await;
}

#[tokio::test]
async fn a_connection_that_is_closed_before_any_byte_of_its_hello_is_counted() {
    hellos_break_off(Break::Close, None, "lost_before_hello").await;
}

#[tokio::test]
async fn a_connection_that_is_dropped_before_any_byte_of_its_hello_is_counted() {
    hellos_break_off(Break::Drop, None, "lost_before_hello").await;
}

#[tokio::test]
async fn whoever_falls_silent_before_any_byte_of_its_hello_is_late() {
    hellos_break_off(Break::FallSilent, Some(Code::HelloTimeout), "hello_timeout").await;
}

// In a stream

/// Breaks off before each byte of a call: the node counts every one under the code of the part that it broke off in, and the link carries
/// on.
async fn streams_break_off(how: Break, in_header: Code, in_request: Code) {
    let mut limits = limits();
    if how != Break::FallSilent {
        // So that no stream is late before it breaks off.
        limits.header_deadline = SOON;
        limits.call_deadline = SOON;
    }
    let scene = Scene::around(builder(1).limits(limits)).await;
    let guest = scene.guest().await;
    let (call, header) = (call_of_next(), header(NEXT, StreamMode::Call).len());
    let mut kept = Vec::new();
    for end in 0..call.len() {
        let (send, receive) = guest.ask(&call[..end]).await;
        if end > 0 && how != Break::FallSilent {
            served(&scene, 1).await;
        }
        kept.push(how.off(guest.connection.clone(), send, receive));
        if how != Break::FallSilent {
            served(&scene, 0).await;
        }
    }
    let mut expected = std::collections::BTreeMap::new();
    for (code, broken) in [(in_header, header), (in_request, call.len() - header)] {
        *expected.entry(code.name()).or_insert(0) += u64::try_from(broken).expect("small");
    }
    eventually(SOON, "every one is counted", async || {
        // A stream of which nothing was said yet is opened by the next one, and by this call at the latest.
        is_served(&guest).await;
        let refused = scene.metrics().await.streams_refused;
        refused.values().sum::<u64>() == expected.values().sum::<u64>()
    })
    .await;
    assert_eq!(scene.metrics().await.streams_refused, expected, "{how:?}");
    served(&scene, 0).await;
    assert_eq!(guest.connection.close_reason(), None);
    scene.is_well().await;
}

/// Waits until the node has so many streams of its peers.
async fn served(scene: &Scene, count: usize) {
    eventually(SOON, &format!("{count} streams are served"), async || {
        scene.metrics().await.streams_inbound == count
    })
    .await;
}

#[tokio::test]
async fn a_stream_that_ends_before_any_byte_is_malformed() {
    streams_break_off(Break::Finish, Code::Malformed, Code::Malformed).await;
}

#[tokio::test]
async fn a_stream_that_is_reset_before_any_byte_is_given_up() {
    streams_break_off(Break::Reset, Code::Cancelled, Code::Cancelled).await;
}

#[tokio::test]
async fn a_stream_that_is_dropped_before_any_byte_is_malformed() {
    streams_break_off(Break::Drop, Code::Malformed, Code::Malformed).await;
}

#[tokio::test]
async fn a_stream_that_falls_silent_before_any_byte_is_late() {
    streams_break_off(Break::FallSilent, Code::HeaderTimeout, Code::HeaderTimeout).await;
}

// In any state of a link

/// Closes a link with this code: the node reports this end.
async fn link_closes(log: &mut EventLog, guest: &Guest, code: VarInt, end: LinkEnd) {
    guest.connection.close(code, b"");
    let is_end = |event: &NodeEvent| matches!(event, NodeEvent::SessionEnded { .. });
    let ended = log.next(SOON, "the end of the link", is_end).await;
    assert!(matches!(ended, NodeEvent::SessionEnded { end: how, .. } if how == end), "{ended:?}");
}

#[tokio::test]
async fn a_node_survives_links_that_close_in_any_state_with_any_code() {
    let undecided = Stranger::bind(67).await;
    let (tell, mut asked) = mpsc::unbounded_channel();
    let nobody_decides_on = undecided.id();
    let admission = Admission::ask(move |peer| {
        let tell = tell.clone();
        async move {
            if peer == nobody_decides_on {
                let _ = tell.send(());
                std::future::pending::<()>().await;
            }
            Admit::Yes
        }
    });
    let mut limits = limits();
    // No state may end by itself before its link closes.
    limits.hello_deadline = SOON;
    limits.header_deadline = SOON;
    limits.drain_deadline = SOON;
    let scene = Scene::around(builder(1).limits(limits).admission(admission)).await;
    let stuck = Service::call_bytes(|_peer, _request| std::future::pending());
    scene.node.serve(STUCK, stuck).await.expect("a new protocol");
    let mut log = EventLog::of(&scene.node).await;
    let mut n = 0;
    let codes = [VarInt::from_u32(0), VarInt::from_u32(1), VarInt::from_u32(255), VarInt::MAX];
    for (round, code) in (1..).zip(codes) {
        let mut next = || {
            n += 1;
            hello(1, n)
        };
        let said = Code::from_wire(code.into_inner());
        let closed = LinkEnd::ClosedByPeer(said);
        // Once either side has said goodbye, this close is the agreed one.
        let agreed = if said == Code::Ok { LinkEnd::Drained } else { closed };

        // Before the hello, and before the welcome.
        let (connection, _send, _receive) = scene.begins_with(b"\0").await;
        has_arrived(&connection).await;
        connection.close(code, b"");
        scene.counts(round, "lost_before_hello", |metrics| &metrics.incoming_refused).await;
        let (connection, _send, _receive) = knock(&undecided, &scene.node, next()).await;
        within(SOON, "the question", asked.recv()).await.expect("asked");
        connection.close(code, b"");
        scene.counts(round, "lost_before_admission", |metrics| &metrics.incoming_refused).await;

        // Live, with nothing on it.
        let guest = Guest::enter(&scene.stranger, &scene.node, next()).await;
        link_closes(&mut log, &guest, code, closed).await;

        // With a stream whose header is not complete, with one that is served, with one whose answer is awaited.
        let guest = Guest::enter(&scene.stranger, &scene.node, next()).await;
        let _negotiating = guest.ask(b"\0").await;
        let (_send, mut receive) = guest.ask(&header(ECHO, StreamMode::Acked)).await;
        assert_eq!(answer(&mut receive).await, Some(Answer::Ack));
        let (mut send, _receive) =
            guest.ask(&[header(STUCK, StreamMode::Call), vec![0; 4]].concat()).await;
        send.finish().expect("finished once");
        eventually(SOON, "all three are served", async || {
            let metrics = scene.metrics().await;
            (metrics.streams_inbound, metrics.protocols["stuck/1"].active) == (3, 1)
        })
        .await;
        link_closes(&mut log, &guest, code, closed).await;

        // After the stranger's goodbye, and after its done.
        let mut guest = Guest::enter(&scene.stranger, &scene.node, next()).await;
        guest.say(&[goodbye(Code::Ok)]).await;
        assert!(matches!(hear(&mut guest.receive).await, Some(Control::Goodbye(_))));
        link_closes(&mut log, &guest, code, agreed).await;
        let mut guest = Guest::enter(&scene.stranger, &scene.node, next()).await;
        let (_send, mut receive) = guest.ask(&header(ECHO, StreamMode::Acked)).await;
        assert_eq!(answer(&mut receive).await, Some(Answer::Ack));
        guest.say(&[goodbye(Code::Ok), done()]).await;
        assert!(matches!(hear(&mut guest.receive).await, Some(Control::Goodbye(_))));
        // A round trip more, for what came behind the goodbye.
        let (_send, mut receive) = guest.ask(&header(ECHO, StreamMode::Acked)).await;
        assert_eq!(answer(&mut receive).await, Some(Answer::Refuse(Code::Draining)));
        link_closes(&mut log, &guest, code, agreed).await;

        // After the node's goodbye.
        let mut guest = Guest::enter(&scene.stranger, &scene.node, next()).await;
        scene.node.disconnect(scene.stranger.id()).await.expect("alive");
        assert!(matches!(hear(&mut guest.receive).await, Some(Control::Goodbye(_))));
        link_closes(&mut log, &guest, code, agreed).await;
        scene.is_well().await;
    }
    nothing_is_left(&scene).await;
}
