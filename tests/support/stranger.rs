//! A peer that speaks QUIC and nothing more: what a node meets when it meets someone hostile.
//!
//! A [`Stranger`] is an iroh endpoint on loopback without relays or lookups. It offers any ALPN,
//! writes any bytes, as slowly as it likes, and reports how the node under test got rid of it. It
//! never speaks kinfolk's protocol of its own accord. Every wait in here has a deadline.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use bytes::Bytes;
use iroh::{
    Endpoint, EndpointAddr, EndpointId, SecretKey,
    endpoint::{
        ConnectError, Connection, ConnectionError, PortmapperConfig, QuicTransportConfig,
        RecvStream, SendStream, WriteError, presets,
    },
};
use thiserror::Error;
use tokio::{
    sync::mpsc,
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep, timeout, timeout_at},
};

/// How long a handshake may take, unless the test says otherwise. A guess: generous on loopback.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// How long saying goodbye may take; iroh needs up to about 3 s when the peer has vanished.
const GOODBYE: Duration = Duration::from_secs(4);

/// How many accepted connections wait for a test to ask for them.
const ACCEPTED: usize = 64;

/// Who a stranger is: a key, or one byte that a fixed key is made of.
#[derive(Debug, Clone)]
pub struct Identity(SecretKey);

impl From<u8> for Identity {
    fn from(byte: u8) -> Self {
        Self(SecretKey::from_bytes(&[byte; 32]))
    }
}

impl From<SecretKey> for Identity {
    fn from(key: SecretKey) -> Self {
        Self(key)
    }
}

/// A stranger that is not bound yet.
#[derive(Debug)]
#[must_use]
pub struct StrangerBuilder {
    key: SecretKey,
    ip: Ipv4Addr,
    idle_timeout: Option<Duration>,
    stream_window: Option<u32>,
    handshake: Duration,
}

impl StrangerBuilder {
    /// Binds to this loopback address instead of 127.0.0.1; Linux has all of 127.0.0.0/8.
    pub fn ip(mut self, ip: Ipv4Addr) -> Self {
        self.ip = ip;
        self
    }

    /// Gives up on a silent peer after this time (iroh: 30 s), and keeps the connection alive three
    /// times as often.
    pub fn idle_timeout(mut self, timeout: Duration) -> Self {
        self.idle_timeout = Some(timeout);
        self
    }

    /// Takes no more bytes of a stream than these before it reads them.
    pub fn stream_window(mut self, bytes: u32) -> Self {
        self.stream_window = Some(bytes);
        self
    }

    /// How long [`Stranger::connect`] may take; 5 s otherwise.
    pub fn handshake_deadline(mut self, deadline: Duration) -> Self {
        self.handshake = deadline;
        self
    }

    /// Binds a port.
    ///
    /// # Panics
    /// When iroh refuses.
    pub async fn bind(self) -> Stranger {
        let mut transport = QuicTransportConfig::builder();
        if let Some(timeout) = self.idle_timeout {
            transport = transport
                .max_idle_timeout(Some(
                    timeout.try_into().expect("an idle timeout that QUIC can say"),
                ))
                .keep_alive_interval(timeout / 3);
        }
        if let Some(bytes) = self.stream_window {
            transport = transport.stream_receive_window(bytes.into());
        }
        let endpoint = Endpoint::builder(presets::Minimal)
            .clear_ip_transports()
            .bind_addr((self.ip, 0))
            .expect("a loopback address is a socket address")
            .portmapper_config(PortmapperConfig::Disabled)
            .secret_key(self.key)
            .transport_config(transport.build())
            .bind()
            .await
            .expect("a stranger binds on loopback");
        Stranger { endpoint, handshake: self.handshake }
    }
}

/// A plain iroh endpoint.
#[derive(Debug)]
pub struct Stranger {
    endpoint: Endpoint,
    handshake: Duration,
}

impl Stranger {
    /// A stranger of this identity, to be configured and bound.
    pub fn builder(identity: impl Into<Identity>) -> StrangerBuilder {
        StrangerBuilder {
            key: identity.into().0,
            ip: Ipv4Addr::LOCALHOST,
            idle_timeout: None,
            stream_window: None,
            handshake: HANDSHAKE,
        }
    }

    /// A stranger of this identity on 127.0.0.1.
    ///
    /// # Panics
    /// When iroh refuses.
    pub async fn bind(identity: impl Into<Identity>) -> Self {
        Self::builder(identity).bind().await
    }

    /// Its public key.
    #[must_use]
    pub fn id(&self) -> EndpointId {
        self.endpoint.id()
    }

    /// Where its socket is bound.
    #[must_use]
    pub fn real_addr(&self) -> SocketAddr {
        self.endpoint.bound_sockets()[0]
    }

    /// Who and where it is, for a node to dial.
    #[must_use]
    pub fn addr(&self) -> EndpointAddr {
        self.addr_at(self.real_addr())
    }

    /// Who it is, said to be at another address: at that of a relay, or at a false one.
    #[must_use]
    pub fn addr_at(&self, addr: SocketAddr) -> EndpointAddr {
        EndpointAddr::new(self.id()).with_ip_addr(addr)
    }

    /// The endpoint itself, for what this type does not offer.
    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Dials, offering `alpn`.
    ///
    /// # Errors
    /// [`DialError`]. A success proves only that the TLS handshake ended: a node that refuses
    /// afterwards shows as a connection that closes.
    pub async fn connect(&self, addr: EndpointAddr, alpn: &[u8]) -> Result<Connection, DialError> {
        timeout(self.handshake, self.endpoint.connect(addr, alpn))
            .await
            .map_err(|_| DialError::Late(self.handshake))?
            .map_err(|source| DialError::Refused(Box::new(source)))
    }

    /// From now on accepts connections that offer `alpn`; they wait in the returned listener. A
    /// second call takes the place of the first, whose listener must be dropped before.
    #[must_use]
    pub fn listen(&self, alpn: &[u8]) -> Listener {
        self.endpoint.set_alpns(vec![alpn.to_vec()]);
        let (accepted, waiting) = mpsc::channel(ACCEPTED);
        let task = tokio::spawn(accept(self.endpoint.clone(), accepted));
        Listener { waiting, task: task.abort_handle() }
    }

    /// Closes everything in an orderly way, and waits until the peers can know. Dropping a stranger
    /// instead makes it vanish with an error in the log.
    pub async fn close(self) {
        // Late means that a peer vanished first, which is no concern of the test's.
        let _ = timeout(GOODBYE, self.endpoint.close()).await;
    }
}

/// Why a dial failed.
#[derive(Debug, Error)]
pub enum DialError {
    /// No handshake within the deadline.
    #[error("no handshake within {0:?}")]
    Late(Duration),
    /// The peer refused, or there is none at the address.
    #[error("the dial was refused")]
    Refused(#[source] Box<ConnectError>),
}

/// An address at which nobody ever answers: a bound socket that is not read.
#[derive(Debug)]
pub struct Nobody(std::net::UdpSocket);

impl Nobody {
    /// Binds a port of 127.0.0.1.
    ///
    /// # Panics
    /// When there is no free one.
    #[must_use]
    pub fn bind() -> Self {
        Self(std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port"))
    }

    /// The address, said to be that of this identity.
    ///
    /// # Panics
    /// When the socket has no address.
    #[must_use]
    pub fn as_if(&self, identity: impl Into<Identity>) -> EndpointAddr {
        let addr = self.0.local_addr().expect("a bound socket");
        EndpointAddr::new(identity.into().0.public()).with_ip_addr(addr)
    }
}

/// Connections that a stranger accepted. Dropping it stops the accepting.
#[derive(Debug)]
pub struct Listener {
    waiting: mpsc::Receiver<Connection>,
    task: AbortHandle,
}

impl Listener {
    /// The next connection whose handshake ended, or `None` at the deadline.
    pub async fn next(&mut self, deadline: Duration) -> Option<Connection> {
        timeout(deadline, self.waiting.recv()).await.ok().flatten()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(endpoint: Endpoint, accepted: mpsc::Sender<Connection>) {
    let mut handshakes = JoinSet::new();
    loop {
        let incoming = tokio::select! {
            incoming = endpoint.accept() => incoming,
            Some(_) = handshakes.join_next() => continue,
        };
        let Some(incoming) = incoming else { return };
        let accepted = accepted.clone();
        handshakes.spawn(async move {
            // A handshake that fails is the dialler's to report.
            if let Ok(accepting) = incoming.accept()
                && let Ok(connection) = accepting.await
            {
                let _ = accepted.send(connection).await;
            }
        });
    }
}

/// Opens a bidirectional stream and writes `bytes` on it as they are. The stream stays open.
///
/// # Errors
/// When the connection is gone, or the peer stops the stream meanwhile.
pub async fn say(
    connection: &Connection,
    bytes: &[u8],
) -> Result<(SendStream, RecvStream), WriteError> {
    let (mut send, receive) = connection.open_bi().await?;
    send.write_all(bytes).await?;
    Ok((send, receive))
}

/// Writes one byte, then the next after `interval`, and so on. Returns how many were written before
/// the peer had enough: all of them, if it did not mind.
pub async fn trickle(send: &mut SendStream, bytes: &[u8], interval: Duration) -> usize {
    for (written, byte) in bytes.iter().enumerate() {
        if send.write_all(std::slice::from_ref(byte)).await.is_err() {
            return written;
        }
        // Without this a byte that nobody reads would not show that the stream is stopped.
        tokio::select! {
            _ = send.stopped() => return written + 1,
            () = sleep(interval) => {}
        }
    }
    bytes.len()
}

/// What came on a stream until it ended in any way, or until `deadline`.
pub async fn read_until_end(receive: &mut RecvStream, deadline: Duration) -> Bytes {
    let end = Instant::now() + deadline;
    let mut heard = Vec::new();
    while let Ok(Ok(Some(chunk))) = timeout_at(end, receive.read_chunk(usize::MAX)).await {
        heard.extend_from_slice(&chunk);
    }
    heard.into()
}

/// How a connection ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// The peer's application closed it.
    Closed {
        /// The code it gave.
        code: u64,
        /// The reason it gave.
        reason: Bytes,
    },
    /// Silence, for longer than the idle timeout.
    TimedOut,
    /// Something else: this side closed it, or QUIC did.
    Otherwise(ConnectionError),
}

/// Waits for the connection to end, until `deadline`; `None` if it has not.
pub async fn ending(connection: &Connection, deadline: Duration) -> Option<Ending> {
    let error = timeout(deadline, connection.closed()).await.ok()?;
    Some(match error {
        ConnectionError::ApplicationClosed(close) => {
            Ending::Closed { code: close.error_code.into_inner(), reason: close.reason }
        }
        ConnectionError::TimedOut => Ending::TimedOut,
        other => Ending::Otherwise(other),
    })
}

/// The code with which the peer's application closes the connection, until `deadline`; `None` if it
/// does not, or the connection ends otherwise.
pub async fn closed_code(connection: &Connection, deadline: Duration) -> Option<u64> {
    match ending(connection, deadline).await? {
        Ending::Closed { code, .. } => Some(code),
        Ending::TimedOut | Ending::Otherwise(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALPN: &[u8] = b"stranger/test";
    const SOON: Duration = Duration::from_secs(5);

    async fn acquainted() -> (Stranger, Connection, Stranger, Connection) {
        let (ann, bob) = (Stranger::bind(1).await, Stranger::bind(2).await);
        let mut listener = bob.listen(ALPN);
        let to_bob = ann.connect(bob.addr(), ALPN).await.expect("bob listens");
        let to_ann = listener.next(SOON).await.expect("ann dialled");
        (ann, to_bob, bob, to_ann)
    }

    #[tokio::test]
    async fn a_stranger_reports_the_code_it_was_closed_with() {
        let (_ann, to_bob, _bob, to_ann) = acquainted().await;
        to_ann.close(403_u32.into(), b"go away");
        let expected = Ending::Closed { code: 403, reason: Bytes::from_static(b"go away") };
        assert_eq!(ending(&to_bob, SOON).await, Some(expected));
        assert_eq!(closed_code(&to_bob, SOON).await, Some(403));
    }

    #[tokio::test]
    async fn a_trickle_ends_when_its_reader_stops_it() {
        let (_ann, to_bob, _bob, to_ann) = acquainted().await;
        let (mut send, _receive) = say(&to_bob, b"x").await.expect("bob is there");
        let (_, mut heard) = to_ann.accept_bi().await.expect("ann spoke");
        let slow = trickle(&mut send, &[b'x'; 1000], Duration::from_millis(20));
        let stop = async {
            let mut three = [0; 3];
            heard.read_exact(&mut three).await.expect("three bytes");
            heard.stop(7_u32.into()).expect("the stream is open");
        };
        let (written, ()) = timeout(SOON, async { tokio::join!(slow, stop) })
            .await
            .expect("a stop ends the trickle");
        assert!((2..100).contains(&written), "{written} bytes were written");
    }

    #[tokio::test]
    async fn what_was_heard_is_returned_at_the_deadline() {
        let (_ann, to_bob, _bob, to_ann) = acquainted().await;
        let _open = say(&to_bob, b"never finished").await.expect("bob is there");
        let (_, mut heard) = to_ann.accept_bi().await.expect("ann spoke");
        let bytes = read_until_end(&mut heard, Duration::from_millis(300)).await;
        assert_eq!(bytes, b"never finished"[..]);
    }

    #[tokio::test]
    async fn a_dial_of_a_deaf_address_is_late() {
        let deaf = std::net::UdpSocket::bind("127.0.0.2:0").expect("127.0.0.2 is loopback");
        let deadline = Duration::from_millis(300);
        let ann = Stranger::builder(1)
            .ip(Ipv4Addr::new(127, 0, 0, 2))
            .handshake_deadline(deadline)
            .bind()
            .await;
        let bob = SecretKey::from_bytes(&[2; 32]).public();
        let addr = EndpointAddr::new(bob).with_ip_addr(deaf.local_addr().expect("bound"));
        let dialled = ann.connect(addr, ALPN).await;
        assert!(matches!(dialled, Err(DialError::Late(late)) if late == deadline));
    }

    #[tokio::test]
    async fn a_short_idle_timeout_notices_a_peer_that_vanished() {
        let bob = Stranger::bind(2).await;
        let ann = Stranger::builder(1).idle_timeout(Duration::from_millis(600)).bind().await;
        let network = crate::support::impair::Impairment::new(1);
        let pair = network.link(ann.real_addr(), bob.real_addr()).expect("both are on loopback");
        let mut listener = bob.listen(ALPN);
        let to_bob = ann.connect(bob.addr_at(pair.addr_of_b()), ALPN).await.expect("bob listens");
        let _to_ann = listener.next(SOON).await.expect("ann dialled");
        pair.partition();
        assert_eq!(ending(&to_bob, SOON).await, Some(Ending::TimedOut));
    }
}
