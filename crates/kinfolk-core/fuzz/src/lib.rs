//! What has to hold for any bytes that a peer, or whoever hands on a ticket, may send: one function per decoder, and one for the control stream as a session reads it.
//!
//! Each takes bytes and panics if they break a promise. `tests/fuzz.rs` runs them on the committed seeds and on mutants of those;
//! `fuzz_targets/` runs them under libFuzzer. A decoder either refuses, and then blames the sender, or returns a value that
//! encodes to exactly the bytes that came.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a target fails this way"
)]

mod subscription;

pub use subscription::{answered, consumer_frame, control_entry, datagram, entries};

use data_encoding::BASE32_NOPAD;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use kinfolk_core::catalog::{
    Catalog, CatalogLimits, Input as CatalogInput, Sighting, Snapshot, Source,
};
use kinfolk_core::code::Code;
use kinfolk_core::exchange::{
    End, Exchange, ExchangeLimits, Input as ExchangeInput, Output as ExchangeOutput,
    Role as ExchangeRole,
};
use kinfolk_core::id::{NetworkId, ProtocolName};
use kinfolk_core::record::{
    ADDRESSES_MAX, Draft, OFFERS_MAX, RECORD_MAX, Reach, Record, Seq, TOPICS_MAX, Ttl, UnixMillis,
};
use kinfolk_core::ticket::{TICKET_ADDRESSES_MAX, TICKET_TEXT_MAX, Ticket};
use kinfolk_core::wire::exchange::{
    LISTED_MAX, MESSAGE_MAX, Message, RANGES_MAX, Said, TURNS_MAX, Tokens,
};
use kinfolk_core::wire::{
    Answer, CONTROL_MAX, Control, DEAD_LINKS_MAX, Extensions, FrameError, Goodbye, HEADER_MAX,
    LENGTH_BYTES, StreamHeader, Turns, call_length, call_prefix, frame,
};

/// Any control frame: the bytes are a body, its kind included.
pub fn control(bytes: &[u8]) {
    decode(bytes);
}

/// The fields and extensions of a `Hello`.
pub fn hello(bytes: &[u8]) {
    if let Some(Control::Hello(hello)) = decode(&of_kind(0, bytes)) {
        assert!(hello.dead.len() <= DEAD_LINKS_MAX);
        rebuild(&hello.extensions);
    }
}

/// The fields and extensions of a `Welcome`.
pub fn welcome(bytes: &[u8]) {
    if let Some(Control::Welcome(welcome)) = decode(&of_kind(1, bytes)) {
        rebuild(&welcome.extensions);
    }
}

/// The fields and extensions of a `Goodbye`.
pub fn goodbye(bytes: &[u8]) {
    if let Some(Control::Goodbye(goodbye)) = decode(&of_kind(2, bytes)) {
        assert_ne!(goodbye.code.to_wire(), 0);
        assert!(goodbye.within() <= Goodbye::WITHIN_MAX);
        rebuild(&goodbye.extensions);
    }
}

/// A list of extensions, as a `Done` holds them and nothing else.
pub fn extensions(bytes: &[u8]) {
    if let Some(Control::Done(extensions)) = decode(&of_kind(3, bytes)) {
        assert_eq!(extensions.is_empty(), bytes.is_empty());
        rebuild(&extensions);
    }
}

/// The body of a stream header.
pub fn header(bytes: &[u8]) {
    match StreamHeader::decode(bytes) {
        Ok(header) => {
            assert!(is_name(header.protocol.as_str().as_bytes()));
            assert_eq!(body(&header.encode().unwrap(), HEADER_MAX), bytes);
            rebuild(&header.extensions);
        }
        Err(error) => blames_the_peer(&error),
    }
}

/// The answer to a stream header, and the codes of QUIC.
pub fn answer(bytes: &[u8]) {
    for byte in bytes {
        let answer = Answer::from_byte(*byte);
        assert_eq!(answer.to_byte(), *byte);
        assert_eq!(answer == Answer::Ack, *byte == 0);
    }
    if let Some(number) = bytes.first_chunk() {
        let number = u64::from_be_bytes(*number);
        let code = Code::from_wire(number);
        assert_ne!(code.to_wire(), 0);
        assert!(u64::from(code.to_wire()) == number || code == Code::Unspecified);
    }
}

/// The lengths of frames and of calls: a prefix, and the limit of whoever reads it.
pub fn lengths(bytes: &[u8]) {
    let Some((prefix, rest)) = bytes.split_first_chunk::<LENGTH_BYTES>() else { return };
    let max = rest.first_chunk().map_or(u32::MAX, |max| u32::from_be_bytes(*max));
    let claimed = usize::try_from(u32::from_be_bytes(*prefix)).unwrap();
    match call_length(*prefix, max) {
        Ok(len) => {
            assert!(len == claimed && len <= usize::try_from(max).unwrap());
            assert_eq!(call_prefix(len, max), Ok(*prefix));
        }
        Err(error) => {
            assert_eq!(error.code(), Code::TooLarge);
            assert_eq!(call_prefix(claimed, max), Err(error));
        }
    }
    for max in [CONTROL_MAX, HEADER_MAX] {
        match frame::length(*prefix, max) {
            Ok(len) => assert!(len == claimed && (1..=max).contains(&len)),
            Err(error) => {
                assert!(claimed == 0 || claimed > max);
                blames_the_peer(&error);
            }
        }
    }
}

/// The name of a protocol, as text and as postcard holds it.
pub fn protocol_name(bytes: &[u8]) {
    if let Ok(text) = str::from_utf8(bytes) {
        let name = ProtocolName::new(text);
        assert_eq!(name.is_ok(), is_name(bytes));
        if let Ok(name) = name {
            assert_eq!(name.as_str(), text);
            let written = postcard::to_extend(&name, Vec::new()).unwrap();
            assert_eq!(postcard::from_bytes(&written), Ok(name));
        }
    }
    if let Ok(name) = postcard::from_bytes::<ProtocolName>(bytes) {
        assert!(is_name(name.as_str().as_bytes()));
    }
}

/// A record: the bytes as they come and, since no mutation survives a signature, the same bytes as a body that its owner signed.
pub fn record(bytes: &[u8]) {
    take_record(bytes);
    let key = iroh_base::SecretKey::from_bytes(&[7; 32]);
    let Some(fields) = bytes.get(113..) else { return };
    let network = NetworkId::from_name("my-app");
    let body = [&key.public().as_bytes()[..], network.as_bytes(), fields].concat();
    let message = [&b"kinfolk record signature\x01"[..], &body].concat();
    take_record(&[&[1][..], &key.sign(&message).to_bytes(), &body].concat());
}

fn take_record(bytes: &[u8]) {
    let network = NetworkId::from_name("my-app");
    let clock = UnixMillis::new(1_700_000_000_000);
    let Ok(record) = Record::verify(bytes, network, clock) else { return };
    assert_eq!(record.bytes(), bytes);
    assert!(bytes.len() <= RECORD_MAX && record.ttl() <= Ttl::MAX);
    assert!(record.issued_at().since(clock).as_secs() <= 60);
    assert_eq!(Record::claimed_id(bytes), Some(record.id().as_bytes()));
    let counts = [record.addresses().count(), record.topics().count(), record.offers().count()];
    assert!(counts[0] <= ADDRESSES_MAX && counts[1] <= TOPICS_MAX && counts[2] <= OFFERS_MAX);
    assert!(record.topics().is_sorted() && record.offers().is_sorted());
    assert!(record.addresses_from(Reach::World).all(|addr| Reach::of(&addr) == Reach::World));
    if record.is_departure() {
        assert_eq!(counts, [0, 0, 0]);
    }
    rebuild(&record.extensions());
}

/// A ticket: the bytes as text as it comes and, since few mutations leave a text whole, the same bytes as what the text is of.
pub fn ticket(bytes: &[u8]) {
    if let Ok(text) = str::from_utf8(bytes) {
        take_ticket(text);
    }
    let text = format!("kinfolk{}", BASE32_NOPAD.encode(bytes));
    take_ticket(&text);
    take_ticket(&text.to_ascii_lowercase());
}

fn take_ticket(text: &str) {
    let Ok(ticket) = text.parse::<Ticket>() else { return };
    assert!(text.trim().len() <= TICKET_TEXT_MAX);
    assert!((1..=TICKET_ADDRESSES_MAX).contains(&ticket.member().addrs.len()));
    // Whoever passes it on passes on the same, in a text that others read.
    let written = ticket.to_string();
    assert!(written.len() <= TICKET_TEXT_MAX);
    assert_eq!(written.parse(), Ok(ticket.clone()));
    assert_eq!(Ticket::new(ticket.network(), ticket.member().clone()), Ok(ticket));
}

/// A message of an exchange.
pub fn exchange(bytes: &[u8]) {
    match Message::decode(bytes) {
        Ok(message) => {
            assert_eq!(body(&message.encode().unwrap(), MESSAGE_MAX), bytes);
            let turn = message.turn();
            assert!(turn.ranges.len() <= RANGES_MAX && turn.ranges.is_sorted_by_key(|it| it.upper));
            let listed = turn.ranges.iter().map(|range| match &range.said {
                Said::List(list) => list.len(),
                Said::Skip | Said::Sum(_) => 0,
            });
            assert!(listed.sum::<usize>() <= LISTED_MAX && turn.wants.len() <= LISTED_MAX);
            assert!(turn.wants.is_sorted_by(|a, b| a < b));
            assert!(turn.records.iter().all(|it| it.bytes.len() <= RECORD_MAX));
            rebuild(&turn.extensions);
        }
        Err(error) => blames_the_peer(&error),
    }
}

/// What a responder that knows a few nodes is sent: each message behind two bytes for its length.
pub fn exchange_turns(bytes: &[u8]) {
    static KNOWN: OnceLock<(Instant, Snapshot)> = OnceLock::new();
    let (now, known) = KNOWN.get_or_init(known);
    let limits = ExchangeLimits::default();
    let mut machine =
        Exchange::new(ExchangeRole::Responder, known.clone(), Tokens::none(), limits.clone());
    let (mut out, mut rest) = (Vec::new(), bytes);
    machine.handle(*now, ExchangeInput::Start, &mut out);
    let (mut sent, mut messages, mut came) = (0, 0, 0);
    while let Some((len, next)) = rest.split_first_chunk() {
        let len = usize::from(u16::from_be_bytes(*len)).min(next.len());
        let (message, next) = next.split_at(len);
        rest = next;
        came += LENGTH_BYTES + len;
        machine.handle(*now, ExchangeInput::Received(message), &mut out);
        let mut answers = 0;
        for output in out.drain(..) {
            match output {
                ExchangeOutput::Send(frame) => {
                    assert!(Message::decode(body(&frame, MESSAGE_MAX)).is_ok());
                    sent += frame.len();
                    answers += 1;
                }
                ExchangeOutput::Learned { bytes, .. } => {
                    assert!(Record::claimed_id(&bytes).is_some() && bytes.len() <= RECORD_MAX);
                }
                ExchangeOutput::Ended(summary) => {
                    assert!(machine.is_over());
                    assert_eq!(summary.sent.bytes, u64::try_from(sent).unwrap());
                    assert_eq!(summary.received.bytes, u64::try_from(came).unwrap());
                    if let End::Failed(error) = summary.end {
                        assert!(error.blames_peer(), "{error}");
                    }
                }
                _ => {}
            }
        }
        assert!(answers <= 1);
        messages += answers;
    }
    assert!(messages <= TURNS_MAX && sent <= usize::try_from(limits.bytes).unwrap());
}

/// A catalog of forty nodes and a departure.
fn known() -> (Instant, Snapshot) {
    let now = Instant::now();
    let clock = UnixMillis::new(1_700_000_000_000);
    let network = NetworkId::from_name("my-app");
    let key = |n: u8| iroh_base::SecretKey::from_bytes(&[n; 32]);
    let mut catalog = Catalog::new(key(1).public(), CatalogLimits::default());
    let record = |n: u8| Draft::new(network).sign(&key(n), Seq::new(n.into()), clock).unwrap();
    catalog.handle(now, CatalogInput::Own(record(1)), &mut Vec::new());
    let departure = Record::departure(network, &key(50), Seq::new(9), clock).unwrap();
    for record in (2..=40).map(record).chain([departure]) {
        let sighting = Sighting::new(record, now, clock, Duration::ZERO);
        let input = CatalogInput::Heard { sighting, source: Source::Store };
        catalog.handle(now, input, &mut Vec::new());
    }
    (now, catalog.known().clone())
}

/// A control stream, byte by byte, as Accept and a session read it. The first byte says who dialled.
pub fn control_stream(bytes: &[u8]) {
    let Some((side, bytes)) = bytes.split_first() else { return };
    let dialled_here = side % 2 == 0;
    let mut stream = ControlStream::new(dialled_here);
    let mut taken = Vec::new();
    for byte in bytes {
        match stream.push(*byte) {
            Ok(None) => {}
            Ok(Some(frame)) => taken.push(frame),
            Err(()) => break,
        }
        assert!(stream.buffer.len() <= LENGTH_BYTES + CONTROL_MAX);
    }
    // All that a peer may say, whatever it sends.
    let orders: &[&[u8]] = if dialled_here { &[&[1, 2, 3], &[2, 3]] } else { &[&[0, 2, 3]] };
    let frames: Vec<Vec<u8>> = taken.iter().map(|frame| frame.encode().unwrap()).collect();
    let kinds: Vec<u8> = frames.iter().map(|frame| frame[LENGTH_BYTES]).collect();
    assert!(orders.iter().any(|order| order.starts_with(&kinds)), "{kinds:?}");
    assert!(bytes.starts_with(&frames.concat()));
}

/// What `peers::control::read` and its callers do, without waiting: the length, the body, whether it is its turn.
struct ControlStream {
    /// The frame that is being read, prefix included.
    buffer: Vec<u8>,
    hello_awaited: bool,
    turns: Turns,
}

impl ControlStream {
    fn new(dialled_here: bool) -> Self {
        let turns = Turns::new(dialled_here);
        Self { buffer: Vec::new(), hello_awaited: !dialled_here, turns }
    }

    /// The next byte; the frame that it completes; or that the peer is to be blamed.
    fn push(&mut self, byte: u8) -> Result<Option<Control>, ()> {
        self.buffer.push(byte);
        let Some((prefix, body)) = self.buffer.split_first_chunk::<LENGTH_BYTES>() else {
            return Ok(None);
        };
        let len = frame::length(*prefix, CONTROL_MAX).map_err(|error| blames_the_peer(&error))?;
        if body.len() < len {
            return Ok(None);
        }
        let frame = decode(body).ok_or(())?;
        self.buffer.clear();
        if std::mem::take(&mut self.hello_awaited) {
            return if matches!(frame, Control::Hello(_)) { Ok(Some(frame)) } else { Err(()) };
        }
        self.turns.take(frame).map(Some).map_err(|_| ())
    }
}

fn of_kind(kind: u8, fields: &[u8]) -> Vec<u8> {
    [&[kind], fields].concat()
}

/// The control frame with this body, if it is one.
fn decode(bytes: &[u8]) -> Option<Control> {
    match Control::decode(bytes) {
        Ok(control) => {
            assert_eq!(body(&control.encode().unwrap(), CONTROL_MAX), bytes);
            Some(control)
        }
        Err(error) => {
            blames_the_peer(&error);
            None
        }
    }
}

/// The body of a frame of ours, after a check that a reader would take its prefix.
fn body(frame: &[u8], max: usize) -> &[u8] {
    let (prefix, body) = frame.split_first_chunk::<LENGTH_BYTES>().unwrap();
    assert_eq!(frame::length(*prefix, max), Ok(body.len()));
    body
}

/// Extensions that were read are those that a sender could have made.
fn rebuild(extensions: &Extensions) {
    let with = |sum: Extensions, (kind, bytes): (u32, &[u8])| {
        assert_eq!(extensions.get(kind), Some(bytes));
        sum.with(kind, bytes).unwrap()
    };
    // Each `with` walks the list, so long lists of empty extensions would only slow the search down.
    if extensions.iter().count() <= 64 {
        assert_eq!(extensions.iter().fold(Extensions::none(), with), *extensions);
    }
}

fn blames_the_peer(error: &FrameError) {
    assert!(matches!(error.code(), Code::Malformed | Code::TooLarge), "{error}");
}

fn is_name(bytes: &[u8]) -> bool {
    (1..=ProtocolName::MAX_LEN).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic)
}
