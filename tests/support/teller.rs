//! What strangers tell of nodes: records, and how they are handed over by exchanges and announcements, as a node would or not quite so.
//!
//! The records are signed as nodes sign them, for nodes that need not exist. An exchange is the machine of `kinfolk-core`, whose messages a
//! test may spoil on their way; announcements are bytes.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use iroh::SecretKey;
use iroh::endpoint::{ReadError, ReadExactError, RecvStream, SendStream};
use kinfolk::{Code, EndpointId, NetworkId, ProtocolName, Record, Snapshot, TransportAddr};
use kinfolk_core::catalog::{Catalog, CatalogLimits, Input as Fact, Sighting, Source};
use kinfolk_core::exchange::{End, Exchange, ExchangeLimits, Input, Output, Role, Summary};
use kinfolk_core::reconcile::Salt;
use kinfolk_core::record::{Draft, Offer, Seq, UnixMillis};
use kinfolk_core::wire::exchange::{MESSAGE_MAX, Message, Rest, Tokens};
use kinfolk_core::wire::{Answer, LENGTH_BYTES, StreamMode, frame};

use super::guest::{Guest, header};
use super::node::NETWORK;
use super::wait::within;

/// The protocol of exchanges.
pub const EXCHANGE: ProtocolName = ProtocolName::from_static("kinfolk/exchange/1");

/// The protocol of announcements.
pub const ANNOUNCE: ProtocolName = ProtocolName::from_static("kinfolk/announce/1");

/// How long a node may take for its part.
const PATIENCE: Duration = Duration::from_secs(20);

/// The wall clock.
///
/// # Panics
/// When it is before 1970.
#[must_use]
pub fn wall_clock() -> UnixMillis {
    UnixMillis::from_unix(SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970"))
}

/// The key of the n-th node that does not exist.
#[must_use]
pub fn key(n: u32) -> SecretKey {
    let mut bytes = [0xfe; 32];
    bytes[..4].copy_from_slice(&n.to_be_bytes());
    SecretKey::from_bytes(&bytes)
}

/// A record of the node with this key, issued now, of the network that tests use, at this address if there is one.
///
/// # Panics
/// When the address is none that a record may carry.
#[must_use]
pub fn record(key: &SecretKey, seq: u64, address: Option<TransportAddr>) -> Record {
    record_at(key, seq, wall_clock(), address)
}

/// As [`record`], of a node that offers this protocol.
///
/// # Panics
/// As [`record`].
#[must_use]
pub fn offering(
    key: &SecretKey,
    seq: u64,
    address: Option<TransportAddr>,
    protocol: &ProtocolName,
) -> Record {
    let mut draft = draft(NETWORK, address);
    draft.add_offer(Offer::protocol(protocol)).expect("room for one");
    draft.sign(key, Seq::new(seq), wall_clock()).expect("a small record")
}

/// As [`record`], issued at this time.
///
/// # Panics
/// As [`record`].
#[must_use]
pub fn record_at(
    key: &SecretKey,
    seq: u64,
    issued_at: UnixMillis,
    address: Option<TransportAddr>,
) -> Record {
    signed(NETWORK, key, seq, issued_at, address)
}

/// As [`record`], of another network.
///
/// # Panics
/// Never.
#[must_use]
pub fn record_elsewhere(key: &SecretKey, seq: u64) -> Record {
    signed("another-network", key, seq, wall_clock(), None)
}

fn signed(
    network: &str,
    key: &SecretKey,
    seq: u64,
    issued_at: UnixMillis,
    address: Option<TransportAddr>,
) -> Record {
    draft(network, address).sign(key, Seq::new(seq), issued_at).expect("a small record")
}

fn draft(network: &str, address: Option<TransportAddr>) -> Draft {
    let mut draft = Draft::new(NetworkId::from_name(network));
    if let Some(address) = address {
        draft.add_address(address).expect("an address that a record may carry");
    }
    draft
}

/// The tombstone of the node with this key.
///
/// # Panics
/// Never.
#[must_use]
pub fn departure(key: &SecretKey, seq: u64) -> Record {
    let network = NetworkId::from_name(NETWORK);
    Record::departure(network, key, Seq::new(seq), wall_clock()).expect("a small record")
}

/// What a stranger says that it knows, itself left out.
#[must_use]
pub fn lore(me: EndpointId, records: impl IntoIterator<Item = Record>) -> Snapshot {
    let mut catalog = Catalog::new(me, CatalogLimits::default());
    let now = Instant::now();
    for record in records {
        let fact = if record.id() == me {
            Fact::Own(record)
        } else {
            // As if it were new, whatever it says itself.
            let sighting = Sighting::new(record, now, UnixMillis::new(0), Duration::ZERO);
            Fact::Heard { sighting, source: Source::Store }
        };
        catalog.handle(now, fact, &mut Vec::new());
    }
    catalog.snapshot()
}

/// How an exchange ended for the stranger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// As the machine says, with the bytes of the records that the node told.
    Over(Summary, Vec<Vec<u8>>),
    /// The node reset the stream.
    Reset(Code),
    /// The stream or the connection ended otherwise.
    Lost,
}

impl Told {
    /// Whether both know now what either knew.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        matches!(self, Self::Over(summary, _) if summary.end == End::Complete)
    }
}

/// Opens an exchange as a guest, and goes through with it.
///
/// # Panics
/// When the node takes too long.
pub async fn exchange(guest: &Guest, known: Snapshot) -> Told {
    exchange_spoilt(guest, known, |_| {}).await
}

/// As [`exchange`], each of the guest's messages spoilt before it is sent.
///
/// # Panics
/// When the node takes too long.
pub async fn exchange_spoilt(
    guest: &Guest,
    known: Snapshot,
    spoil: impl FnMut(&mut Message),
) -> Told {
    let (mut send, mut receive) = guest.ask(&header(EXCHANGE, StreamMode::Eager)).await;
    converse(&mut send, &mut receive, initiator(), known, spoil).await
}

/// Goes through with an exchange that was opened, and in which nothing was said.
///
/// # Panics
/// When the node takes too long.
pub async fn go_through(send: &mut SendStream, receive: &mut RecvStream, known: Snapshot) -> Told {
    converse(send, receive, initiator(), known, |_| {}).await
}

fn initiator() -> Role {
    Role::Initiator { salt: Salt::from_bytes([7; 16]) }
}

/// The first message of an exchange, its length in front, which says that more follows.
///
/// # Panics
/// Never.
#[must_use]
pub fn opening(known: Snapshot) -> Vec<u8> {
    let mut machine = Exchange::new(initiator(), known, Tokens::none(), ExchangeLimits::default());
    let mut outputs = Vec::new();
    machine.handle(Instant::now(), Input::Start, &mut outputs);
    let sent = outputs.into_iter().find_map(|output| match output {
        Output::Send(bytes) => Some(bytes),
        _ => None,
    });
    let sent = sent.expect("the initiator speaks first");
    let mut message = Message::decode(&sent[LENGTH_BYTES..]).expect("a message");
    if let Message::Open { turn, .. } = &mut message {
        turn.rest = Rest::More;
    }
    message.encode().expect("a message")
}

/// Answers an exchange that the node opened, its header read and not answered.
///
/// # Panics
/// When the node takes too long.
pub async fn answer(send: &mut SendStream, receive: &mut RecvStream, known: Snapshot) -> Told {
    if send.write_all(&[Answer::Ack.to_byte()]).await.is_err() {
        return Told::Lost;
    }
    converse(send, receive, Role::Responder, known, |_| {}).await
}

async fn converse(
    send: &mut SendStream,
    receive: &mut RecvStream,
    role: Role,
    known: Snapshot,
    mut spoil: impl FnMut(&mut Message),
) -> Told {
    let mut is_acknowledged = role == Role::Responder;
    let mut machine = Exchange::new(role, known, Tokens::none(), ExchangeLimits::default());
    let (mut outputs, mut learnt) = (Vec::new(), Vec::new());
    machine.handle(Instant::now(), Input::Start, &mut outputs);
    loop {
        let mut over = None;
        for output in outputs.drain(..) {
            match output {
                Output::Send(bytes) => {
                    let mut message = Message::decode(&bytes[LENGTH_BYTES..]).expect("a message");
                    spoil(&mut message);
                    // What the node makes of it shows when its half is read.
                    let _ = send.write_all(&message.encode().expect("a message")).await;
                }
                Output::Learned { bytes, .. } => learnt.push(bytes),
                Output::Ended(summary) => over = Some(summary),
                _ => {}
            }
        }
        if let Some(summary) = over {
            let _ = send.finish();
            // The node is done with what was sent last when it ends its half.
            return match within(PATIENCE, "the end", receive.read_chunk(1)).await {
                Err(ReadError::Reset(code)) => Told::Reset(Code::from_wire(code.into_inner())),
                Ok(_) => Told::Over(summary, learnt),
                Err(_) => Told::Lost,
            };
        }
        let body = async {
            if !is_acknowledged {
                let mut answer = [0];
                receive.read_exact(&mut answer).await?;
                is_acknowledged = true;
            }
            let mut prefix = [0; LENGTH_BYTES];
            receive.read_exact(&mut prefix).await?;
            let length = frame::length(prefix, MESSAGE_MAX).expect("a length within bounds");
            let mut body = vec![0; length];
            receive.read_exact(&mut body).await?;
            Ok(body)
        };
        match within(PATIENCE, "a message", body).await {
            Ok(body) => {
                machine.handle(Instant::now(), Input::Received(&body), &mut outputs);
            }
            Err(ReadExactError::ReadError(ReadError::Reset(code))) => {
                return Told::Reset(Code::from_wire(code.into_inner()));
            }
            Err(_) => return Told::Lost,
        }
    }
}

/// The code that a stream is reset with, whatever comes before; `None` if it ends otherwise.
///
/// # Panics
/// When it goes on for too long.
pub async fn reset(receive: &mut RecvStream) -> Option<Code> {
    within(PATIENCE, "the end of a stream", async {
        loop {
            match receive.read_chunk(usize::MAX).await {
                Ok(Some(_)) => {}
                Err(ReadError::Reset(code)) => return Some(Code::from_wire(code.into_inner())),
                Ok(None) | Err(_) => return None,
            }
        }
    })
    .await
}

/// The code that the node stops a stream with; `None` if it ends otherwise.
///
/// # Panics
/// When it goes on for too long.
pub async fn stopped(send: &mut SendStream) -> Option<Code> {
    let end = within(PATIENCE, "a stop", send.stopped()).await;
    end.ok().flatten().map(|code| Code::from_wire(code.into_inner()))
}

/// A stream of announcements, opened by a guest.
#[derive(Debug)]
pub struct Announcing {
    /// The guest's half.
    pub send: SendStream,
    /// The node's half, from behind the answer.
    pub receive: RecvStream,
}

impl Announcing {
    /// Opens one, which the node takes.
    ///
    /// # Panics
    /// When the node refuses it.
    pub async fn open(guest: &Guest) -> Self {
        let (send, mut receive) = guest.ask(&header(ANNOUNCE, StreamMode::Acked)).await;
        let mut answer = [0];
        let answered = within(PATIENCE, "an answer", receive.read_exact(&mut answer)).await;
        answered.expect("an answer");
        assert_eq!(answer[0], Answer::Ack.to_byte());
        Self { send, receive }
    }

    /// Opens one, and becomes a neighbour.
    ///
    /// # Panics
    /// When the node refuses it.
    pub async fn join(guest: &Guest) -> Self {
        let mut announcing = Self::open(guest).await;
        announcing.say(&message(&[0, 0, 0])).await;
        announcing
    }

    /// Writes a frame, its length in front. What becomes of it shows elsewhere.
    pub async fn say(&mut self, frame: &[u8]) {
        let length = u32::try_from(frame.len()).expect("a short frame");
        let _ = self.send.write_all(&[&length.to_be_bytes()[..], frame].concat()).await;
    }

    /// Announces a record, whosever it is.
    pub async fn announce(&mut self, record: &[u8]) {
        self.say(&payload(record)).await;
    }
}

/// A frame of this version and of the network that tests use.
#[must_use]
pub fn message(body: &[u8]) -> Vec<u8> {
    let network = NetworkId::from_name(NETWORK);
    let topic = blake3::derive_key("kinfolk announcements topic", network.as_bytes());
    [&[1], &topic[..], body].concat()
}

/// The frame of a payload that was relayed by nobody yet.
///
/// # Panics
/// When it is longer than a record may be.
#[must_use]
pub fn payload(content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len()).expect("a short record").to_le_bytes();
    let length = match length {
        [low @ ..128, 0] => vec![low],
        [low, high @ ..64] => vec![low | 0x80, high << 1 | low >> 7],
        _ => panic!("expected a length of two bytes at most"),
    };
    let name = blake3::hash(content);
    message(&[&[1, 0], &name.as_bytes()[..], &length[..], content, &[0, 0]].concat())
}
