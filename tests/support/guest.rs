//! A stranger that says what a node would say, up to the point where a test has it misbehave.
//!
//! The frames are those of `kinfolk-core`; who sends which, when, and with what in it, is the test's.

use std::time::Duration;

use iroh::endpoint::{Connection, RecvStream, SendStream};
use kinfolk::{Code, EndpointAddr, Incarnation, NetworkId, Node, ProtocolName};
use kinfolk_core::wire::{
    CONTROL_MAX, Control, Extensions, Goodbye, Hello, LENGTH_BYTES, MINOR, StreamHeader,
    StreamMode, frame,
};

use super::{
    node::NETWORK,
    stranger::{Stranger, say},
    wait::within,
};

/// How long a node may take to answer a guest.
const PATIENCE: Duration = Duration::from_secs(10);

/// What nodes of [`NETWORK`] agree on in the TLS handshake.
#[must_use]
pub fn alpn() -> Vec<u8> {
    NetworkId::from_name(NETWORK).alpn()
}

/// A `Hello` of this version that opens link `n` of this incarnation and lists no dead links.
#[must_use]
pub fn hello(incarnation: u64, n: u64) -> Hello {
    Hello {
        minor: MINOR,
        incarnation: Incarnation::new(incarnation),
        n,
        dead: Vec::new(),
        extensions: Extensions::none(),
    }
}

/// A `Goodbye` with this code that takes its time.
#[must_use]
pub fn goodbye(code: Code) -> Control {
    Control::Goodbye(Goodbye::new(code, 0, PATIENCE))
}

/// A `Done`.
#[must_use]
pub fn done() -> Control {
    Control::Done(Extensions::none())
}

/// The bytes of a control frame.
///
/// # Panics
/// When the frame cannot be sent.
#[must_use]
pub fn bytes(frame: &Control) -> Vec<u8> {
    frame.encode().expect("a valid frame")
}

/// The bytes of a stream header.
///
/// # Panics
/// When the header cannot be sent.
#[must_use]
pub fn header(protocol: ProtocolName, mode: StreamMode) -> Vec<u8> {
    StreamHeader::new(protocol, mode).encode().expect("a valid header")
}

/// Dials and says hello; what the node makes of it shows on the connection and on the stream.
///
/// # Panics
/// When the node does not take the connection.
pub async fn knock(
    stranger: &Stranger,
    node: &Node,
    hello: Hello,
) -> (Connection, SendStream, RecvStream) {
    knock_at(stranger, node.addr(), hello).await
}

async fn knock_at(
    stranger: &Stranger,
    addr: EndpointAddr,
    hello: Hello,
) -> (Connection, SendStream, RecvStream) {
    let connection = stranger.connect(addr, &alpn()).await.expect("the node is up");
    let hello = bytes(&Control::Hello(hello));
    let (send, receive) = say(&connection, &hello).await.expect("the node listens");
    (connection, send, receive)
}

/// The next frame on a control stream; `None` if the stream or the connection ends instead.
///
/// # Panics
/// When nothing comes, or what comes is no frame.
pub async fn hear(receive: &mut RecvStream) -> Option<Control> {
    let body = within(PATIENCE, "a control frame", framed(receive, CONTROL_MAX)).await?;
    Some(Control::decode(&body).expect("a frame"))
}

/// The body of the next frame, of at most so many bytes; `None` if the stream ends or is given up before it is there.
///
/// # Panics
/// When it claims to be longer.
pub async fn framed(receive: &mut RecvStream, max: usize) -> Option<Vec<u8>> {
    let mut prefix = [0; LENGTH_BYTES];
    receive.read_exact(&mut prefix).await.ok()?;
    let length = frame::length(prefix, max).expect("a length within bounds");
    let mut body = vec![0; length];
    receive.read_exact(&mut body).await.ok()?;
    Some(body)
}

/// A stranger that was welcomed.
#[derive(Debug)]
pub struct Guest {
    /// Its connection.
    pub connection: Connection,
    /// Its half of the control stream.
    pub send: SendStream,
    /// The node's half of the control stream.
    pub receive: RecvStream,
}

impl Guest {
    /// Dials, says hello, and reads the welcome.
    ///
    /// # Panics
    /// When the node does not welcome it.
    pub async fn enter(stranger: &Stranger, node: &Node, hello: Hello) -> Self {
        Self::enter_at(stranger, node.addr(), hello).await
    }

    /// The same with a node at this address, which may be in another process.
    ///
    /// # Panics
    /// When the node does not welcome it.
    pub async fn enter_at(stranger: &Stranger, addr: EndpointAddr, hello: Hello) -> Self {
        let (connection, send, mut receive) = knock_at(stranger, addr, hello).await;
        let welcome = hear(&mut receive).await;
        let reason = connection.close_reason();
        assert!(matches!(welcome, Some(Control::Welcome(_))), "{welcome:?}, {reason:?}");
        Self { connection, send, receive }
    }

    /// Writes control frames in one go. What becomes of them shows elsewhere.
    pub async fn say(&mut self, frames: &[Control]) {
        let bytes: Vec<u8> = frames.iter().flat_map(bytes).collect();
        // A node that has had enough meanwhile is no error of the guest's.
        let _ = self.send.write_all(&bytes).await;
    }

    /// Opens a stream and writes these bytes on it.
    ///
    /// # Panics
    /// When the connection is gone.
    pub async fn ask(&self, bytes: &[u8]) -> (SendStream, RecvStream) {
        within(PATIENCE, "a stream", say(&self.connection, bytes)).await.expect("a connection")
    }
}
