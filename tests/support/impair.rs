//! A network that misbehaves on command: UDP relays between pairs of nodes, in this process.
//!
//! ```text
//!            addr_of_b                    addr_of_a
//!   a  <───>  [face]  ── A to B: queue ──>  [face]  <───>  b
//!                     <── B to A: queue ──
//! ```
//!
//! For each *pair* of nodes there are two sockets: `a` dials [`Pair::addr_of_b`] and reaches `b`,
//! `b` dials [`Pair::addr_of_a`] and reaches `a`, and each sees the other at that address only.
//! What happens to a datagram on its way, per direction, is a [`Condition`] that a test changes
//! while it runs. Random decisions come from the seed: the n-th datagram of a direction draws the
//! same lots in every run, whatever the condition was before. (What the n-th datagram *is* still
//! depends on the sender's own randomness and timing.) The relay never looks inside a datagram.
//!
//! # iroh leaves the relay, unless it is sealed in
//!
//! Found by reading iroh 1.4.1 (with noq-proto 1.4.0) and by experiment:
//!
//!  - An endpoint puts every address that it has bound, `127.0.0.1` included, among its NAT
//!    traversal candidates. Right after the handshake the accepting side names them in
//!    `ADD_ADDRESS` frames, the dialling side in `REACH_OUT`, and both probe each other there. The
//!    frames travel inside the encrypted connection, where no relay can stop them. A round of
//!    probes follows every change of addresses, and every minute while the round trip is above
//!    10 ms.
//!  - A probe that is answered opens a path. If its round trip is at least 5 ms better, the
//!    dialling side selects it, and closes whichever of the two it did not select. A relay that
//!    adds 1 ms each way lost its connection 85 ms after the dial, one that adds 100 ms lost it
//!    before the second echo; from then on echoes took 1 ms, and a partition cut nothing. Even a
//!    relay that adds nothing lost 19 connections of 40, and 25 of 40 on a busy machine, as the
//!    round trips of a handshake look slow; the others stayed, and a partition cut them.
//!  - No setting prevents it. `QuicTransportConfigBuilder` ignores
//!    `max_remote_nat_traversal_addresses` below 8 and `max_concurrent_multipath_paths` below 9, so
//!    neither NAT traversal nor multipath can be turned off; `addr_filter` governs what address
//!    lookups publish, not the candidates; `external_addr` adds candidates and takes none away;
//!    hooks see connections and not paths. A path selector could refuse to move, but needs an
//!    unstable feature of iroh. Other loopback addresses do not help, as they all reach each other.
//!
//! Therefore [`Impairment::link`] *seals* both nodes: it finds their sockets among the file
//! descriptors of this process and attaches a socket filter (classic BPF, no privilege needed)
//! that drops whatever does not come from a relay address (`127.77.0.0/16`). iroh's probes go
//! unanswered, as behind two strict firewalls, and so does a dial of a node's true address that a
//! peer learnt from a record. The node under test needs no option for it. A sealed connection over
//! 100 ms each way kept to its relay for 135 s, through four rounds of probes. What follows:
//!
//!  - nodes live in this process, are bound to one IPv4 loopback address (`127.0.0.1:0`, with
//!    `clear_ip_transports`), and Linux is needed;
//!  - a sealed node hears nothing but relays: every other node that is to reach it needs a pair;
//!  - the seal is on the socket. A node that restarts has a new one: bind it to port 0 and tell the
//!    pair ([`Pair::move_a`], [`Pair::move_b`]). iroh itself makes a new one when the machine's
//!    interfaces change; a test that changes them has to seal again in the same way.
//!
//! Connections in production move in the same way, with no sign but a path event: neither the
//! address that was dialled nor that of an incoming connection says where the peer is later.

use std::{
    collections::BinaryHeap,
    fs, io,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    os::fd::{BorrowedFd, RawFd},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU16, Ordering},
    },
    time::Duration,
};

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore, SeedableRng},
};
use socket2::{SockFilter, SockRef, Type};
use tokio::{
    net::UdpSocket,
    task::JoinHandle,
    time::{Instant, sleep_until},
};

/// The first two octets of every relay address; the seal lets pass what comes from there.
const RELAY_NETWORK: [u8; 2] = [127, 77];

/// The largest UDP datagram.
const LARGEST_DATAGRAM: usize = 64 * 1024;

/// How many datagrams are taken in before those that are due go out.
const BATCH: usize = 64;

/// What is asked of the kernel for a relay's receive buffer, so that bursts wait here instead of
/// being lost uncounted. It grants at most `net.core.rmem_max`.
const RECEIVE_BUFFER: usize = 4 * 1024 * 1024;

/// A network of pairs that share a seed.
#[derive(Debug)]
pub struct Impairment {
    seed: u64,
    pairs: AtomicU16,
}

impl Impairment {
    /// A network without pairs; all its randomness comes from `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { seed, pairs: AtomicU16::new(0) }
    }

    /// Puts a relay between the nodes bound to `a_real` and `b_real`, clear at first, and seals
    /// both, so that they have no other way to reach each other.
    ///
    /// # Errors
    /// When a node is not bound to an IPv4 loopback address by this process, or a socket fails.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn link(&self, a_real: SocketAddr, b_real: SocketAddr) -> io::Result<Pair> {
        seal(a_real)?;
        seal(b_real)?;
        self.link_unsealed(a_real, b_real)
    }

    /// As [`link`](Self::link), without the seal: iroh may leave this relay for the direct path.
    /// For tests of exactly that, and for nodes that have no other way anyhow.
    ///
    /// # Errors
    /// When a socket fails.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn link_unsealed(&self, a_real: SocketAddr, b_real: SocketAddr) -> io::Result<Pair> {
        let index = self.pairs.fetch_add(1, Ordering::Relaxed);
        let [high, low] = index.to_be_bytes();
        let ip = Ipv4Addr::new(RELAY_NETWORK[0], RELAY_NETWORK[1], high, low);
        let facing_a = Arc::new(face(ip)?);
        let facing_b = Arc::new(face(ip)?);
        let (addr_of_b, addr_of_a) = (facing_a.local_addr()?, facing_b.local_addr()?);

        let a_to_b = Lane::new(a_real, b_real);
        let b_to_a = Lane::new(b_real, a_real);
        let tasks = [(&a_to_b, &facing_a, &facing_b, 0), (&b_to_a, &facing_b, &facing_a, 1)].map(
            |(lane, inbox, outbox, direction)| {
                let carrier = Carrier {
                    lane: Arc::clone(lane),
                    inbox: Arc::clone(inbox),
                    outbox: Arc::clone(outbox),
                    lots: lots_of(self.seed, index, direction),
                    queue: BinaryHeap::new(),
                    arrivals: 0,
                    wire_free_at: Instant::now(),
                };
                AbortOnDrop(tokio::spawn(carrier.run()))
            },
        );
        Ok(Pair { addr_of_a, addr_of_b, a_to_b, b_to_a, _tasks: tasks })
    }
}

/// The relay between two nodes, `a` and `b`. It ends when this is dropped.
#[derive(Debug)]
pub struct Pair {
    addr_of_a: SocketAddr,
    addr_of_b: SocketAddr,
    a_to_b: Arc<Lane>,
    b_to_a: Arc<Lane>,
    /// Hold the sockets; dropping them closes the relay.
    _tasks: [AbortOnDrop; 2],
}

impl Pair {
    /// Where `b` finds `a`.
    #[must_use]
    pub fn addr_of_a(&self) -> SocketAddr {
        self.addr_of_a
    }

    /// Where `a` finds `b`.
    #[must_use]
    pub fn addr_of_b(&self) -> SocketAddr {
        self.addr_of_b
    }

    /// Sets what datagrams meet from now on, and so ends a partition unless `condition` is one.
    /// Those under way keep their time of arrival, except that a black hole takes them too.
    ///
    /// # Panics
    /// When a probability is not within 0 to 1, or the rate is zero.
    pub fn set(&self, direction: Direction, condition: Condition) {
        condition.check();
        for lane in self.lanes(direction) {
            *lane.condition() = condition;
        }
    }

    /// Drops everything in both directions, datagrams under way included.
    pub fn partition(&self) {
        self.blackhole(Direction::Both, true);
    }

    /// Ends a partition; the other conditions are as before it.
    pub fn heal(&self) {
        self.blackhole(Direction::Both, false);
    }

    /// Starts or ends a partition of one direction, or of both.
    pub fn blackhole(&self, direction: Direction, open: bool) {
        for lane in self.lanes(direction) {
            lane.condition().blackhole = open;
        }
    }

    /// What happened so far; for [`Direction::Both`], the sums.
    #[must_use]
    pub fn tally(&self, direction: Direction) -> Tally {
        self.lanes(direction).map(|lane| *lock(&lane.tally)).fold(Tally::default(), Tally::plus)
    }

    /// `a` has restarted and is now bound to `a_real`. `b` still finds it at the same address.
    /// Until this is called nothing passes between `b` and the new `a`.
    ///
    /// # Errors
    /// As for [`Impairment::link`].
    pub fn move_a(&self, a_real: SocketAddr) -> io::Result<()> {
        seal(a_real)?;
        *lock(&self.a_to_b.source) = a_real;
        *lock(&self.b_to_a.target) = a_real;
        Ok(())
    }

    /// `b` has restarted and is now bound to `b_real`; see [`move_a`](Self::move_a).
    ///
    /// # Errors
    /// As for [`Impairment::link`].
    pub fn move_b(&self, b_real: SocketAddr) -> io::Result<()> {
        seal(b_real)?;
        *lock(&self.b_to_a.source) = b_real;
        *lock(&self.a_to_b.target) = b_real;
        Ok(())
    }

    fn lanes(&self, direction: Direction) -> impl Iterator<Item = &Lane> {
        let a_to_b = (direction != Direction::BToA).then_some(&*self.a_to_b);
        let b_to_a = (direction != Direction::AToB).then_some(&*self.b_to_a);
        a_to_b.into_iter().chain(b_to_a)
    }
}

/// One way through a pair, or both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// What `a` sends.
    AToB,
    /// What `b` sends.
    BToA,
    /// What either sends.
    Both,
}

/// What a direction does to datagrams. The default lets them pass as they come.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Condition {
    /// Time under way. Tokio's timers add up to about a millisecond.
    pub delay: Duration,
    /// Added to the delay, uniformly between nothing and this, anew for each datagram: one that
    /// draws less overtakes one that draws more.
    pub jitter: Duration,
    /// Probability that a datagram is lost.
    pub loss: f64,
    /// Probability that a datagram arrives twice, each time with a jitter of its own.
    pub duplicate: f64,
    /// Whether everything is dropped, datagrams under way included.
    pub blackhole: bool,
    /// Bytes per second that leave; what comes faster waits in the queue.
    pub rate_bytes_per_s: Option<u64>,
    /// How many datagrams may be under way; one more is dropped.
    pub queue: usize,
}

impl Default for Condition {
    fn default() -> Self {
        Self {
            delay: Duration::ZERO,
            jitter: Duration::ZERO,
            loss: 0.0,
            duplicate: 0.0,
            blackhole: false,
            rate_bytes_per_s: None,
            // About 6 MB of full QUIC packets. A guess: more than a fast connection has in flight.
            queue: 4096,
        }
    }
}

impl Condition {
    /// Clear but for a delay.
    #[must_use]
    pub fn delayed(delay: Duration) -> Self {
        Self { delay, ..Self::default() }
    }

    /// Clear but for a probability of loss.
    #[must_use]
    pub fn lossy(loss: f64) -> Self {
        Self { loss, ..Self::default() }
    }

    fn check(&self) {
        for (what, probability) in [("loss", self.loss), ("duplicate", self.duplicate)] {
            assert!(
                (0.0..=1.0).contains(&probability),
                "{what} is a probability, not {probability}"
            );
        }
        assert_ne!(self.rate_bytes_per_s, Some(0), "a rate of zero is a black hole");
    }
}

/// What happened to the datagrams of a direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Sent on, second copies included.
    pub forwarded: u64,
    /// Second copies made.
    pub duplicated: u64,
    /// Dropped by chance.
    pub lost: u64,
    /// Dropped by a black hole.
    pub partitioned: u64,
    /// Dropped because the queue was full.
    pub overflowed: u64,
    /// Dropped because they came from elsewhere than the node that this direction is for.
    pub unexpected: u64,
    /// Refused by the kernel when they were sent on.
    pub unsent: u64,
}

impl Tally {
    fn plus(self, other: Self) -> Self {
        Self {
            forwarded: self.forwarded + other.forwarded,
            duplicated: self.duplicated + other.duplicated,
            lost: self.lost + other.lost,
            partitioned: self.partitioned + other.partitioned,
            overflowed: self.overflowed + other.overflowed,
            unexpected: self.unexpected + other.unexpected,
            unsent: self.unsent + other.unsent,
        }
    }
}

/// What a pair and the task that carries one of its directions share.
#[derive(Debug)]
struct Lane {
    source: Mutex<SocketAddr>,
    target: Mutex<SocketAddr>,
    condition: Mutex<Condition>,
    tally: Mutex<Tally>,
}

impl Lane {
    fn new(source: SocketAddr, target: SocketAddr) -> Arc<Self> {
        Arc::new(Self {
            source: Mutex::new(source),
            target: Mutex::new(target),
            condition: Mutex::new(Condition::default()),
            tally: Mutex::new(Tally::default()),
        })
    }

    fn condition(&self) -> MutexGuard<'_, Condition> {
        lock(&self.condition)
    }

    fn count(&self, counter: impl FnOnce(&mut Tally) -> &mut u64) {
        *counter(&mut lock(&self.tally)) += 1;
    }
}

/// The task of one direction: takes datagrams in at one face and sends them on from the other.
struct Carrier {
    lane: Arc<Lane>,
    inbox: Arc<UdpSocket>,
    outbox: Arc<UdpSocket>,
    lots: ChaCha8Rng,
    queue: BinaryHeap<UnderWay>,
    /// Numbers the entries of the queue, so that equal times keep their order.
    arrivals: u64,
    /// When the last datagram let in will have left, at the rate in force.
    wire_free_at: Instant,
}

impl Carrier {
    async fn run(mut self) {
        let mut buffer = vec![0; LARGEST_DATAGRAM];
        loop {
            self.send_what_is_due().await;
            let next = self.queue.peek().map(|head| head.due);
            tokio::select! {
                // An error shows again, and is passed over, when the datagram is read.
                _ = self.inbox.readable() => self.take_in(&mut buffer),
                () = at(next) => {}
            }
        }
    }

    fn take_in(&mut self, buffer: &mut [u8]) {
        for _ in 0..BATCH {
            match self.inbox.try_recv_from(buffer) {
                Ok((length, from)) => self.let_in(&buffer[..length], from),
                Err(_) => break,
            }
        }
    }

    fn let_in(&mut self, datagram: &[u8], from: SocketAddr) {
        if from != *lock(&self.lane.source) {
            return self.lane.count(|tally| &mut tally.unexpected);
        }
        // All lots are drawn for each datagram, needed or not: see the module's promise.
        let [loss, duplicate, jitter, second_jitter] = std::array::from_fn(|_| self.draw());
        let condition = *self.lane.condition();
        if condition.blackhole {
            return self.lane.count(|tally| &mut tally.partitioned);
        }
        if loss < condition.loss {
            return self.lane.count(|tally| &mut tally.lost);
        }
        self.enqueue(datagram, &condition, jitter);
        if duplicate < condition.duplicate {
            self.lane.count(|tally| &mut tally.duplicated);
            self.enqueue(datagram, &condition, second_jitter);
        }
    }

    fn enqueue(&mut self, datagram: &[u8], condition: &Condition, jitter: f64) {
        if self.queue.len() >= condition.queue {
            return self.lane.count(|tally| &mut tally.overflowed);
        }
        let mut leaves = Instant::now();
        if let Some(rate) = condition.rate_bytes_per_s {
            let on_the_wire = Duration::from_secs_f64(datagram.len() as f64 / rate as f64);
            leaves = leaves.max(self.wire_free_at) + on_the_wire;
            self.wire_free_at = leaves;
        }
        self.arrivals += 1;
        self.queue.push(UnderWay {
            due: leaves + condition.delay + condition.jitter.mul_f64(jitter),
            arrival: self.arrivals,
            datagram: datagram.into(),
        });
    }

    async fn send_what_is_due(&mut self) {
        let now = Instant::now();
        while self.queue.peek().is_some_and(|head| head.due <= now) {
            let Some(head) = self.queue.pop() else { return };
            if self.lane.condition().blackhole {
                self.lane.count(|tally| &mut tally.partitioned);
                continue;
            }
            let target = *lock(&self.lane.target);
            match self.outbox.send_to(&head.datagram, target).await {
                Ok(_) => self.lane.count(|tally| &mut tally.forwarded),
                Err(_) => self.lane.count(|tally| &mut tally.unsent),
            }
        }
    }

    /// A number from 0 up to but not including 1.
    fn draw(&mut self) -> f64 {
        const STEPS: f64 = (1_u64 << 53) as f64;
        (self.lots.next_u64() >> 11) as f64 / STEPS
    }
}

/// A datagram in the queue. Greatest, for the heap, is the one to send first.
#[derive(PartialEq, Eq)]
struct UnderWay {
    due: Instant,
    arrival: u64,
    datagram: Box<[u8]>,
}

impl Ord for UnderWay {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (other.due, other.arrival).cmp(&(self.due, self.arrival))
    }
}

impl PartialOrd for UnderWay {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

#[derive(Debug)]
struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn lots_of(seed: u64, pair: u16, direction: u8) -> ChaCha8Rng {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..10].copy_from_slice(&pair.to_le_bytes());
    key[10] = direction;
    ChaCha8Rng::from_seed(key)
}

fn face(ip: Ipv4Addr) -> io::Result<UdpSocket> {
    let socket = std::net::UdpSocket::bind((ip, 0))?;
    socket.set_nonblocking(true)?;
    SockRef::from(&socket).set_recv_buffer_size(RECEIVE_BUFFER)?;
    UdpSocket::from_std(socket)
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// A test that failed while it held a lock has said so already.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes the socket that this process has bound to `real` deaf to all but relays.
fn seal(real: SocketAddr) -> io::Result<()> {
    let real = match real {
        SocketAddr::V4(real) if real.ip().is_loopback() => real,
        _ => {
            return Err(io::Error::other(format!(
                "expected a node bound to an IPv4 loopback address, not {real}"
            )));
        }
    };
    let mut is_sealed = false;
    for number in open_descriptors()? {
        // SAFETY: the number was just listed as open, and is borrowed for the system calls of this
        // block. If its owner closes it meanwhile, they fail, or tell of what was opened since, and
        // only a UDP socket bound to the node's address is touched.
        #[allow(unsafe_code, reason = "iroh does not show its sockets")]
        let descriptor = unsafe { BorrowedFd::borrow_raw(number) };
        let socket = SockRef::from(&descriptor);
        if is_udp_bound_to(&socket, real) {
            socket.attach_filter(&from_relays_only())?;
            is_sealed = true;
        }
    }
    if is_sealed {
        Ok(())
    } else {
        Err(io::Error::other(format!("no UDP socket of this process is bound to {real}")))
    }
}

fn open_descriptors() -> io::Result<Vec<RawFd>> {
    fs::read_dir("/proc/self/fd")?
        .map(|entry| {
            let name = entry?.file_name();
            name.to_string_lossy().parse().map_err(io::Error::other)
        })
        .collect()
}

/// Whether this is such a socket; a descriptor that is no socket is none.
fn is_udp_bound_to(socket: &SockRef<'_>, real: SocketAddrV4) -> bool {
    socket.r#type().is_ok_and(|kind| kind == Type::DGRAM)
        && socket.local_addr().is_ok_and(|bound| bound.as_socket_ipv4() == Some(real))
}

/// The program of the seal: keep a datagram whole if its source is a relay, else drop it.
fn from_relays_only() -> [SockFilter; 5] {
    // From the kernel's `linux/bpf_common.h` and `linux/filter.h`.
    const LOAD_WORD: u16 = 0x20;
    const AND: u16 = 0x54;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    const NETWORK_HEADER: u32 = 0xfff0_0000;
    const SOURCE_OF_IPV4: u32 = 12;

    let network = u32::from_be_bytes([RELAY_NETWORK[0], RELAY_NETWORK[1], 0, 0]);
    [
        SockFilter::new(LOAD_WORD, 0, 0, NETWORK_HEADER + SOURCE_OF_IPV4),
        SockFilter::new(AND, 0, 0, 0xffff_0000),
        SockFilter::new(JUMP_IF_EQUAL, 0, 1, network),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
        SockFilter::new(RETURN, 0, 0, 0),
    ]
}
