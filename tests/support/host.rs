//! A stranger that a node dials, and that answers as a node would, up to the point where a test has it misbehave.
//!
//! It is the other side of [`guest`](super::guest): who opens which stream is the node's, what becomes of it is the test's.

use std::time::Duration;

use iroh::endpoint::{Connection, RecvStream, SendStream};
use kinfolk::{Code, EndpointAddr, EndpointId, Incarnation};
use kinfolk_core::wire::{
    Answer, CALL_MAX_DEFAULT, Control, Extensions, HEADER_MAX, Hello, MINOR, StreamHeader, Welcome,
    call_prefix,
};

use super::guest::{alpn, bytes, framed, hear};
use super::stranger::{Identity, Listener, Stranger};
use super::wait::within;

/// How long a node may take to do its part.
const PATIENCE: Duration = Duration::from_secs(10);

/// A stranger that listens for nodes.
#[derive(Debug)]
pub struct Host {
    stranger: Stranger,
    listener: Listener,
}

impl Host {
    /// A host of this identity on loopback.
    ///
    /// # Panics
    /// When iroh refuses.
    pub async fn bind(identity: impl Into<Identity>) -> Self {
        let stranger = Stranger::bind(identity).await;
        let listener = stranger.listen(&alpn());
        Self { stranger, listener }
    }

    /// Its public key.
    #[must_use]
    pub fn id(&self) -> EndpointId {
        self.stranger.id()
    }

    /// Who and where it is, for a node to dial.
    #[must_use]
    pub fn addr(&self) -> EndpointAddr {
        self.stranger.addr()
    }

    /// The stranger, for what it does of its own accord.
    #[must_use]
    pub fn stranger(&self) -> &Stranger {
        &self.stranger
    }

    /// The next dial, its `Hello` read and not answered.
    ///
    /// # Panics
    /// When none comes, or one that does not begin with a `Hello`.
    pub async fn greeted(&mut self) -> Dialled {
        let connection = self.listener.next(PATIENCE).await.expect("a node dials");
        let control = within(PATIENCE, "a control stream", connection.accept_bi()).await;
        let (send, mut receive) = control.expect("the connection is up");
        match hear(&mut receive).await {
            Some(Control::Hello(hello)) => Dialled { connection, send, receive, hello },
            other => panic!("expected a hello, not {other:?}"),
        }
    }

    /// The next dial, welcomed.
    ///
    /// # Panics
    /// As [`Host::greeted`].
    pub async fn welcomed(&mut self) -> Dialled {
        let mut dialled = self.greeted().await;
        dialled.welcome().await;
        dialled
    }
}

/// A link that a node dialled.
#[derive(Debug)]
pub struct Dialled {
    /// Its connection.
    pub connection: Connection,
    /// The host's half of the control stream.
    pub send: SendStream,
    /// The node's half of the control stream.
    pub receive: RecvStream,
    /// What the node said first.
    pub hello: Hello,
}

impl Dialled {
    /// Writes control frames in one go. What becomes of them shows elsewhere.
    pub async fn say(&mut self, frames: &[Control]) {
        let bytes: Vec<u8> = frames.iter().flat_map(bytes).collect();
        // A node that has had enough meanwhile is no error of the host's.
        let _ = self.send.write_all(&bytes).await;
    }

    /// Welcomes the node, as one and the same incarnation each time.
    pub async fn welcome(&mut self) {
        let welcome = Welcome {
            minor: MINOR,
            incarnation: Incarnation::new(1),
            call_max: CALL_MAX_DEFAULT,
            extensions: Extensions::none(),
        };
        self.say(&[Control::Welcome(welcome)]).await;
    }

    /// The next stream that the node opens and does not give up at once, its header read and not answered.
    ///
    /// # Panics
    /// When none comes, or one that does not begin with a header.
    pub async fn stream(&self) -> Asked {
        loop {
            let stream = within(PATIENCE, "a stream", self.connection.accept_bi()).await;
            let (send, mut receive) = stream.expect("the connection is up");
            let header = within(PATIENCE, "a header", framed(&mut receive, HEADER_MAX)).await;
            if let Some(header) = header {
                let header = StreamHeader::decode(&header).expect("a header");
                return Asked { header, send, receive };
            }
        }
    }

    /// Closes the connection with this code.
    pub fn close(&self, code: Code) {
        self.connection.close(u32::from(code.to_wire()).into(), code.name().as_bytes());
    }
}

/// A stream that a node opened.
#[derive(Debug)]
pub struct Asked {
    /// What it is for.
    pub header: StreamHeader,
    /// The host's half.
    pub send: SendStream,
    /// The node's half, from behind the header.
    pub receive: RecvStream,
}

impl Asked {
    /// Writes the answer byte.
    ///
    /// # Panics
    /// When there is no room for it.
    pub async fn answer(&mut self, answer: Answer) {
        let byte = [answer.to_byte()];
        // A node that has given it up meanwhile is no error of the host's.
        let _ = within(PATIENCE, "the answer", self.send.write_all(&byte)).await;
    }

    /// Answers a call with this body.
    ///
    /// # Panics
    /// When the node has given the call up.
    pub async fn respond(&mut self, body: &[u8]) {
        let mut message = vec![Answer::Ack.to_byte()];
        let prefix = call_prefix(body.len(), CALL_MAX_DEFAULT).expect("a small body");
        message.extend_from_slice(&prefix);
        message.extend_from_slice(body);
        let written = within(PATIENCE, "the response", self.send.write_all(&message)).await;
        written.expect("the node waits for it");
        self.send.finish().expect("finished once");
    }
}
