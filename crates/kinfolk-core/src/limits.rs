//! Every bound of a node, in one place: counts, bytes and times, each with its unit and its reason.
//!
//! It serves the machines of this crate and the actors of `kinfolk`. All defaults are finite. A value marked *a guess*
//! has no measurement behind it yet. Nothing here acts; [`Limits::validate`] refuses values that would stop a node.

use std::time::Duration;

use thiserror::Error;

use crate::address_book::AddressLimits;
use crate::catalog::{CatalogLimitError, CatalogLimits};
use crate::exchange::{ExchangeLimitError, ExchangeLimits};
use crate::gate::{GateLimitError, GateLimits};
use crate::intake::{IntakeLimitError, IntakeLimits};
use crate::quota::{QuotaLimitError, QuotaLimits};
use crate::record::Ttl;
use crate::walk::{WalkLimitError, WalkLimits};
use crate::wire::call::CALL_MAX_DEFAULT;

mod announce;
mod streams;

pub use announce::{AnnounceLimitError, AnnounceLimits};
pub use streams::{StreamLimitError, StreamLimits};

/// The bounds of one node. Start from [`Limits::default`] and change fields.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Limits {
    /// Sessions in total, those that are closing included, but for [`REPLACED_MAX`](crate::peer_table::REPLACED_MAX).
    /// 512 × what one peer can pin (see [`Limits::connection_window`]) is 16 GiB, reached only if every peer does its worst.
    pub sessions: usize,
    /// Sessions that others opened. Two thirds of the total, so that strangers can never occupy every slot and cut the
    /// node off from peers of its own choice (the eclipse papers on Bitcoin and Ethereum). A peer may replace its own
    /// link when no more fit; what is then still closing, at most [`REPLACED_MAX`](crate::peer_table::REPLACED_MAX)
    /// sessions, never keeps a dial of this node waiting.
    pub sessions_inbound: usize,
    /// Sessions that this node opened, running dials included.
    pub sessions_outbound: usize,
    /// Dials under way at once. 16: a handshake costs about 1 ms of CPU, and a hub that returns must not be stormed.
    pub dials: usize,
    /// Peers remembered in total, with or without a session. A remembered peer costs about 1 KiB.
    pub peers: usize,
    /// Bans kept at once, quarantines included; about 100 bytes each. Keys are free and a ban may last [`LONGEST`], so an app that bans
    /// whoever misbehaves could be made to keep them without end. As many as [`Limits::peers`], so that a table that starts anew can be
    /// told all of them (a guess).
    pub bans: usize,
    /// How long an unneeded peer is remembered: longer than [`Limits::idle_timeout`], so that a redial can still say
    /// which of its links are dead.
    pub peer_memory: Duration,

    /// Intents that wait for one peer (a guess: what an interactive app queues in one retry period).
    pub intents_per_peer: usize,
    /// Intents that wait in total; about 200 bytes each.
    pub intents: usize,
    /// How long an intent may take when its caller does not say: it covers one lost dial and its backoff.
    pub intent_deadline: Duration,

    /// From the start of a dial until QUIC is established. iroh alone would wait 30 s for a dead address.
    pub dial_deadline: Duration,
    /// From an established connection until its `Hello` is answered or, for incoming ones, read and admitted.
    pub hello_deadline: Duration,
    /// How long a link that nothing needs stays open after its last use. Longer than a person's pause, shorter than
    /// the time a NAT keeps a mapping that nobody refreshes (a guess).
    pub linger: Duration,
    /// Links that linger for a moment although this node has dialled them for errands of its own alone, as visits and announcements are, and
    /// nobody uses them; of more, those that are idle for longest close at once, and so do all whose errand ends with a node that has three
    /// neighbours of announcements, or knows more than eight peers. Each costs both ends about 120 KiB, and a node that gets to know a network opens a
    /// dozen within seconds. Two, one for each walker.
    pub errand_links: usize,
    /// How long open streams may go on after `Goodbye`.
    pub drain_deadline: Duration,
    /// How long a graceful shutdown may take before what is left is cut.
    pub shutdown_deadline: Duration,
    /// A link that lived this long proves the peer reachable: failed attempts are forgotten.
    pub stable_after: Duration,
    /// The longest wait before a peer that is wanted is dialled again; see [`backoff`](crate::backoff). 10 minutes keep a vanished peer nearly free;
    /// an app whose few peers have to be back within seconds of their return says so here. At least 1 s; more than 10 minutes change nothing.
    pub redial_max: Duration,
    /// A link older than this is drained, and dialled anew if it is still wanted. Off by default: draining cuts streams
    /// that outlast [`Limits::drain_deadline`], and TLS keys of QUIC are renewed without it.
    pub session_age: Option<Duration>,
    /// How long a peer whose sessions keep panicking is left alone.
    pub quarantine: Duration,
    /// A part of the node that answers nothing for this long, or half as long again, is killed and restarted; the third within ten times as long
    /// ends the node. Its handlers await local work only, so that silence means that it hangs (a guess). At least 2 s. Two things to know: a
    /// part that blocks its thread cannot be killed, and ends the node instead; and on a runtime of several threads, a handler of the app
    /// that blocks its thread for so long may keep a part from answering.
    pub unresponsive: Duration,

    /// A silent connection counts as dead after this time, counted from the first that was sent since the last that came; iroh's 30 s is too slow to fail over.
    pub idle_timeout: Duration,
    /// Interval between signs of life; iroh takes 5 s at most. QUIC probes for an acknowledgement that does not come, at first within some round trips and then ever more rarely, so that with
    /// the default, 4 s, about a dozen may be lost before the idle timeout. Those of the side that has dialled are acknowledged, so that the other side, if it has no relay, sends its own only where none
    /// came for half as long again, or for 5 s.
    pub keep_alive: Duration,
    /// Bidirectional streams that a peer may have open at once. iroh's 100 caps concurrent calls.
    pub streams_per_peer: u32,
    /// Bytes that a peer may send on one stream before they are read: iroh's value, the bandwidth-delay product of
    /// 100 Mbit/s at 100 ms.
    pub stream_window: u32,
    /// Bytes that a peer may send on all its streams before they are read. As many again may be in requests that are being served (of those
    /// with many responses: whose bytes the handler still has), and as many in responses that the peer does not take: then its calls are refused as busy, and handlers that answer with many responses wait. The three and
    /// [`Limits::send_window`] are the memory that one peer can pin, but for what handlers of its calls that are running by then return, one response of
    /// at most [`Limits::call_bytes`] each. iroh's default is unlimited.
    pub connection_window: u32,
    /// Bytes of datagrams that wait on one connection, in each direction: those of the peer that were not read yet, and our own that were not sent. Beyond that the
    /// oldest are dropped. A tenth of a second of 5 Mbit/s (a guess).
    pub datagram_buffer: usize,
    /// Bytes of our own that may wait for acknowledgement on one connection; as large as the peer's default window.
    pub send_window: u64,

    /// From a new incoming stream until its header is complete.
    pub header_deadline: Duration,
    /// From a call's header until its request is complete, and again from its response until the peer has taken it; also for an ack.
    /// 1 MiB then needs 280 kbit/s.
    pub call_deadline: Duration,
    /// Streams whose header, or for a call whose request, is still awaited, per peer.
    pub negotiating_per_peer: usize,
    /// Incoming streams being served, all peers together. They are shared as [`shares`](crate::shares) says, so that no few peers take all.
    pub streams_inbound: usize,
    /// Streams that one served protocol may have open at once, unless its registration says otherwise; shared in the same way.
    pub protocol_concurrency: usize,
    /// Protocols served at once; the app's own number, so only a guard against a leak.
    pub protocols: usize,
    /// Largest request or response of a call, in bytes.
    pub call_bytes: u32,
    /// Requests that drive the node by messages and carry an open or a call, under way at once.
    pub messages: usize,
    /// Events kept for a slow subscriber before it is told how many it missed.
    pub events: usize,

    /// Bounds on incoming connections before their handshake.
    pub gate: GateLimits,
    /// Bounds on remembered addresses.
    pub addresses: AddressLimits,
    /// Bounds on known records.
    pub catalog: CatalogLimits,

    /// How long a record of this node holds: a node that vanishes without a word is listed for as long. Renewed after a third to a half of it. Whole
    /// seconds, 3 s to [`Ttl::MAX`]; the default is [`Ttl::DEFAULT`].
    pub record_ttl: Duration,
    /// Walkers. Two, so that one that waits for a slow peer does not keep the node from learning (a guess); all but one pause for up to a second between two visits. They slow down together: the more there are, the sooner all of them wait for long where visits bring nothing.
    pub walkers: usize,
    /// Exchanges that peers have opened and that run at once, one for each peer; each costs the memory of its messages, some 200 KiB. One that awaits nothing
    /// more from its peer is counted no more.
    pub exchanges_inbound: usize,
    /// Exchanges that the app has asked for and that run at once; those of the walkers come on top.
    pub exchanges_outbound: usize,
    /// How often a peer has its exchanges answered.
    pub quota: QuotaLimits,
    /// Bounds on checking records of strangers.
    pub intake: IntakeLimits,
    /// Bounds on how fast and how far walkers go.
    pub walk: WalkLimits,
    /// Bounds on one exchange of catalogs.
    pub exchange: ExchangeLimits,
    /// Bounds on announcements.
    pub announce: AnnounceLimits,
    /// Bounds on typed streams.
    pub streams: StreamLimits,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            sessions: 512,
            sessions_inbound: 341,
            sessions_outbound: 512,
            dials: 16,
            peers: 4096,
            bans: 4096,
            peer_memory: Duration::from_secs(60),
            intents_per_peer: 256,
            intents: 8192,
            intent_deadline: Duration::from_secs(30),
            dial_deadline: Duration::from_secs(10),
            hello_deadline: Duration::from_secs(10),
            linger: Duration::from_secs(30),
            errand_links: 2,
            drain_deadline: Duration::from_secs(10),
            shutdown_deadline: Duration::from_secs(15),
            stable_after: Duration::from_secs(15),
            redial_max: Duration::from_secs(600),
            session_age: None,
            quarantine: Duration::from_secs(600),
            unresponsive: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(10),
            keep_alive: Duration::from_secs(4),
            streams_per_peer: 1024,
            stream_window: 1_250_000,
            connection_window: 8 * 1024 * 1024,
            datagram_buffer: 64 * 1024,
            send_window: 8 * 1024 * 1024,
            header_deadline: Duration::from_secs(10),
            call_deadline: Duration::from_secs(30),
            negotiating_per_peer: 128,
            streams_inbound: 16 * 1024,
            protocol_concurrency: 4096,
            protocols: 1024,
            call_bytes: CALL_MAX_DEFAULT,
            messages: 1024,
            events: 1024,
            gate: GateLimits::default(),
            addresses: AddressLimits::default(),
            catalog: CatalogLimits::default(),
            record_ttl: Ttl::DEFAULT.as_duration(),
            walkers: 2,
            exchanges_inbound: 16,
            exchanges_outbound: 16,
            quota: QuotaLimits::default(),
            intake: IntakeLimits::default(),
            walk: WalkLimits::default(),
            exchange: ExchangeLimits::default(),
            announce: AnnounceLimits::default(),
            streams: StreamLimits::default(),
        }
    }
}

/// Why a set of limits cannot be used. The app is to blame.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum LimitsError {
    /// A limit that must be positive is zero.
    #[error("limit `{0}` must be larger than zero")]
    Zero(&'static str),
    /// Two limits contradict each other.
    #[error("limit `{smaller}` must not exceed `{larger}`")]
    Order {
        /// The one that must be smaller.
        smaller: &'static str,
        /// The one that must be larger.
        larger: &'static str,
    },
    /// A time is shorter than it can be kept.
    #[error("limit `{0}` must be at least {1:?}")]
    TooShort(&'static str, Duration),
    /// A time or count is beyond what the node can represent.
    #[error("limit `{0}` is too large")]
    TooLarge(&'static str),
    /// A limit of the gate is not usable.
    #[error(transparent)]
    Gate(#[from] GateLimitError),
    /// A limit of the catalog is not usable.
    #[error(transparent)]
    Catalog(#[from] CatalogLimitError),
    /// A limit of the quota is not usable.
    #[error(transparent)]
    Quota(#[from] QuotaLimitError),
    /// A limit of the intake is not usable.
    #[error(transparent)]
    Intake(#[from] IntakeLimitError),
    /// A limit of the walkers is not usable.
    #[error(transparent)]
    Walk(#[from] WalkLimitError),
    /// A limit of exchanges is not usable.
    #[error(transparent)]
    Exchange(#[from] ExchangeLimitError),
    /// A limit of the announcer is not usable.
    #[error(transparent)]
    Announce(#[from] AnnounceLimitError),
    /// A limit of typed streams is not usable.
    #[error(transparent)]
    Streams(#[from] StreamLimitError),
}

/// The longest time any limit may name: deadlines are added to the clock, and QUIC carries them in milliseconds.
pub const LONGEST: Duration = Duration::from_secs(30 * 24 * 3600);

impl Limits {
    /// Checks that a node can live within these limits.
    pub fn validate(&self) -> Result<(), LimitsError> {
        // Every field by name, so that a new one does not compile until it is checked here.
        let Self {
            sessions,
            sessions_inbound,
            sessions_outbound,
            dials,
            peers,
            bans,
            peer_memory,
            intents_per_peer,
            intents,
            intent_deadline,
            dial_deadline,
            hello_deadline,
            linger,
            errand_links,
            drain_deadline,
            shutdown_deadline,
            stable_after,
            redial_max,
            session_age,
            quarantine,
            unresponsive,
            idle_timeout,
            keep_alive,
            streams_per_peer,
            stream_window,
            connection_window,
            datagram_buffer,
            send_window,
            header_deadline,
            call_deadline,
            negotiating_per_peer,
            streams_inbound,
            protocol_concurrency,
            protocols,
            call_bytes,
            messages,
            events,
            gate,
            // Counts only, and a zero is allowed there: it switches off what it limits.
            addresses:
                AddressLimits {
                    configured_per_peer: _,
                    learned_per_peer: _,
                    signed_per_peer: _,
                    peers: _,
                },
            catalog,
            record_ttl,
            walkers,
            exchanges_inbound,
            exchanges_outbound,
            quota,
            intake,
            walk,
            exchange,
            announce,
            streams,
        } = self;
        let counts: [(&'static str, usize); 17] = [
            ("sessions", *sessions),
            ("sessions_inbound", *sessions_inbound),
            ("sessions_outbound", *sessions_outbound),
            ("dials", *dials),
            ("peers", *peers),
            ("bans", *bans),
            ("errand_links", *errand_links),
            ("intents_per_peer", *intents_per_peer),
            ("intents", *intents),
            ("negotiating_per_peer", *negotiating_per_peer),
            ("streams_inbound", *streams_inbound),
            ("protocol_concurrency", *protocol_concurrency),
            ("protocols", *protocols),
            ("walkers", *walkers),
            ("exchanges_inbound", *exchanges_inbound),
            ("exchanges_outbound", *exchanges_outbound),
            ("datagram_buffer", *datagram_buffer),
        ];
        let sizes: [(&'static str, u64); 7] = [
            ("streams_per_peer", (*streams_per_peer).into()),
            ("stream_window", (*stream_window).into()),
            ("connection_window", (*connection_window).into()),
            ("send_window", *send_window),
            ("call_bytes", (*call_bytes).into()),
            ("messages", u64::try_from(*messages).unwrap_or(u64::MAX)),
            ("events", u64::try_from(*events).unwrap_or(u64::MAX)),
        ];
        let times: [(&'static str, Duration); 17] = [
            ("peer_memory", *peer_memory),
            ("intent_deadline", *intent_deadline),
            ("dial_deadline", *dial_deadline),
            ("hello_deadline", *hello_deadline),
            ("linger", *linger),
            ("drain_deadline", *drain_deadline),
            ("shutdown_deadline", *shutdown_deadline),
            ("stable_after", *stable_after),
            ("redial_max", *redial_max),
            ("quarantine", *quarantine),
            ("unresponsive", *unresponsive),
            ("idle_timeout", *idle_timeout),
            ("keep_alive", *keep_alive),
            ("header_deadline", *header_deadline),
            ("call_deadline", *call_deadline),
            ("session_age", session_age.unwrap_or(LONGEST)),
            ("record_ttl", *record_ttl),
        ];
        let zero = counts
            .iter()
            .filter(|(_, value)| *value == 0)
            .map(|(name, _)| *name)
            .chain(sizes.iter().filter(|(_, value)| *value == 0).map(|(name, _)| *name))
            .chain(times.iter().filter(|(_, value)| value.is_zero()).map(|(name, _)| *name))
            .next();
        if let Some(name) = zero {
            return Err(LimitsError::Zero(name));
        }
        if let Some((name, _)) = times.iter().find(|(_, value)| *value > LONGEST) {
            return Err(LimitsError::TooLarge(name));
        }
        // QUIC carries 62 bits; tokio's broadcast and semaphores cap what they are given by panicking.
        const MOST: u64 = 1 << 31;
        if let Some((name, _)) = sizes.iter().find(|(_, value)| *value > MOST) {
            return Err(LimitsError::TooLarge(name));
        }
        if *record_ttl > Ttl::MAX.as_duration() {
            return Err(LimitsError::TooLarge("record_ttl"));
        }
        // Each is an actor.
        const MOST_WALKERS: usize = 64;
        if *walkers > MOST_WALKERS {
            return Err(LimitsError::TooLarge("walkers"));
        }
        // Room for them is made at once.
        const MOST_EVENTS: usize = 1 << 20;
        if *events > MOST_EVENTS {
            return Err(LimitsError::TooLarge("events"));
        }
        // The first bound of the backoff, and what a handler may take for a session's start, with as much again to spare.
        // A record that is renewed each second at most.
        const SHORTEST: [(&str, Duration); 3] = [
            ("redial_max", Duration::from_secs(1)),
            ("unresponsive", Duration::from_secs(2)),
            ("record_ttl", Duration::from_secs(3)),
        ];
        let is_short = |(name, shortest): &&(&'static str, Duration)| {
            times.iter().any(|(time, value)| time == name && value < shortest)
        };
        if let Some((name, shortest)) = SHORTEST.iter().find(is_short) {
            return Err(LimitsError::TooShort(name, *shortest));
        }
        if keep_alive >= idle_timeout {
            return Err(LimitsError::Order { smaller: "keep_alive", larger: "idle_timeout" });
        }
        if call_bytes > connection_window {
            return Err(LimitsError::Order { smaller: "call_bytes", larger: "connection_window" });
        }
        if peer_memory <= idle_timeout {
            return Err(LimitsError::Order { smaller: "idle_timeout", larger: "peer_memory" });
        }
        catalog.validate()?;
        quota.validate()?;
        intake.validate()?;
        walk.validate()?;
        exchange.validate()?;
        announce.validate()?;
        streams.validate()?;
        Ok(gate.validate()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid() {
        assert_eq!(Limits::default().validate(), Ok(()));
    }

    /// Where a field is, by the kind of its value.
    enum Field {
        Count(fn(&mut Limits) -> &mut usize),
        Bytes(fn(&mut Limits) -> &mut u32),
        ManyBytes(fn(&mut Limits) -> &mut u64),
        Time(fn(&mut Limits) -> &mut Duration),
        TimeOrNone(fn(&mut Limits) -> &mut Option<Duration>),
    }

    /// Lists fields by their kinds, and does not compile unless all fields of [`Limits`] are among them.
    macro_rules! fields {
        (elsewhere: $($other:ident),+; $($kind:ident: $($field:ident),+;)+) => {{
            let Limits { $($($field: _,)+)+ $($other: _,)+ } = Limits::default();
            [$($((stringify!($field), Field::$kind(|limits| &mut limits.$field)),)+)+]
        }};
    }

    fn fields() -> impl Iterator<Item = (&'static str, Field)> {
        let fields = fields! {
            elsewhere: gate, addresses, catalog, quota, intake, walk, exchange, announce, streams;
            Count: sessions, sessions_inbound, sessions_outbound, dials, peers, bans, errand_links, intents_per_peer,
                intents, negotiating_per_peer, streams_inbound, protocol_concurrency, protocols, messages, events,
                walkers, exchanges_inbound, exchanges_outbound, datagram_buffer;
            Bytes: streams_per_peer, stream_window, connection_window, call_bytes;
            ManyBytes: send_window;
            Time: peer_memory, intent_deadline, dial_deadline, hello_deadline, linger, drain_deadline,
                shutdown_deadline, stable_after, record_ttl, redial_max, quarantine, unresponsive, idle_timeout, keep_alive, header_deadline,
                call_deadline;
            TimeOrNone: session_age;
        };
        fields.into_iter()
    }

    #[test]
    fn a_zero_in_any_field_is_refused_by_name() {
        for (name, field) in fields() {
            let mut limits = Limits::default();
            match field {
                Field::Count(at) => *at(&mut limits) = 0,
                Field::Bytes(at) => *at(&mut limits) = 0,
                Field::ManyBytes(at) => *at(&mut limits) = 0,
                Field::Time(at) => *at(&mut limits) = Duration::ZERO,
                Field::TimeOrNone(at) => *at(&mut limits) = Some(Duration::ZERO),
            }
            assert_eq!(limits.validate(), Err(LimitsError::Zero(name)));
        }
    }

    #[test]
    fn a_time_that_no_clock_can_carry_is_refused_by_name_in_any_field() {
        for (name, field) in fields() {
            for time in [Duration::MAX, LONGEST + Duration::from_nanos(1)] {
                let mut limits = Limits::default();
                match field {
                    Field::Time(at) => *at(&mut limits) = time,
                    Field::TimeOrNone(at) => *at(&mut limits) = Some(time),
                    Field::Count(_) | Field::Bytes(_) | Field::ManyBytes(_) => continue,
                }
                assert_eq!(limits.validate(), Err(LimitsError::TooLarge(name)));
            }
        }
    }

    #[test]
    fn a_part_that_may_not_be_silent_and_a_redial_without_a_pause_are_refused() {
        let limits = Limits { unresponsive: Duration::from_millis(100), ..Limits::default() };
        let shortest = Duration::from_secs(2);
        assert_eq!(limits.validate(), Err(LimitsError::TooShort("unresponsive", shortest)));
        let limits = Limits { redial_max: Duration::from_millis(1), ..Limits::default() };
        let shortest = Duration::from_secs(1);
        assert_eq!(limits.validate(), Err(LimitsError::TooShort("redial_max", shortest)));
    }

    #[test]
    fn a_keep_alive_slower_than_the_idle_timeout_is_refused() {
        let limits = Limits { keep_alive: Duration::from_secs(20), ..Limits::default() };
        assert!(matches!(limits.validate(), Err(LimitsError::Order { .. })));
    }
}
