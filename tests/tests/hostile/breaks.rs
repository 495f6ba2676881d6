//! Breaking off at every point.

use iroh::endpoint::{Connection, RecvStream, SendStream, VarInt};
use kinfolk::Code;
use kinfolk_core::wire::{Answer, Control, StreamMode};
use kinfolk_tests::support::guest::{Guest, bytes, done, goodbye, header, hear, hello, knock};
use kinfolk_tests::support::node::ECHO;
use kinfolk_tests::support::wait::eventually;

use crate::scene::{SOON, Scene, answer, call_of_next, is_served};

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
