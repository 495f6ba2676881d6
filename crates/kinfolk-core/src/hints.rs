//! Hints: which of the endpoints that somebody on the local network claims to be there are worth a look.
//!
//! It decides for the discovery on the local network what is passed on to the address book and the walkers. A hint is
//! unsigned: whoever can send a packet on the network can make up any number of them, for any id and any address. So a hint
//! names addresses of the local network only, which no packet from there can turn against others elsewhere; this machine's
//! own are left out too, as nobody else can know what listens there. How many are passed on in a minute and how many are remembered is bounded. It never believes a hint: only
//! a session proves that its peer is there. It never reads a clock.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use iroh_base::{EndpointAddr, EndpointId, TransportAddr};

use crate::record::{ADDRESSES_MAX, Reach};

/// The minute of [`HintLimits::per_minute`].
const MINUTE: Duration = Duration::from_secs(60);

/// How much a [`Hints`] passes on. A zero lets nothing through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HintLimits {
    /// Hints in any 60 s. Default 30: a household at once, and for whoever makes them up one dial every two seconds. A guess.
    pub per_minute: usize,
    /// Peers of hints that are remembered. Default 256: the machines of a large office network. A guess.
    pub peers: usize,
    /// How long a hint is remembered; the same one is not passed on again meanwhile. Default 10 min: a peer that was missed is
    /// looked at again, as often as one that vanished is dialled. A guess.
    pub memory: Duration,
}

impl Default for HintLimits {
    fn default() -> Self {
        Self { per_minute: 30, peers: 256, memory: Duration::from_secs(600) }
    }
}

/// Why a hint is not passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Dropped {
    /// It is about this node.
    Own,
    /// It names no address of the local network that can be dialled.
    NotLocal,
    /// It was passed on a short while ago.
    Known,
    /// Too many were passed on within a minute.
    TooOften,
    /// Too many peers are remembered.
    TooMany,
}

impl Dropped {
    /// The reason's name in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Own => "own",
            Self::NotLocal => "not_local",
            Self::Known => "known",
            Self::TooOften => "too_often",
            Self::TooMany => "too_many",
        }
    }
}

/// The machine; see the module page. A `now` that is earlier than one before counts as no time passing.
#[derive(Debug, Clone)]
pub struct Hints {
    me: EndpointId,
    limits: HintLimits,
    known: BTreeMap<EndpointId, Passed>,
    /// When the hints of the last minute were passed on.
    recent: VecDeque<Instant>,
}

#[derive(Debug, Clone)]
struct Passed {
    at: Instant,
    addrs: BTreeSet<TransportAddr>,
}

impl Hints {
    /// A machine for the node with this id.
    #[must_use]
    pub fn new(me: EndpointId, limits: HintLimits) -> Self {
        Self { me, limits, known: BTreeMap::new(), recent: VecDeque::new() }
    }

    /// What to pass on of a hint: its peer with those of its addresses that are local, at most as many as a record has.
    ///
    /// # Errors
    ///
    /// [`Dropped`] if there is nothing to pass on.
    pub fn heard(&mut self, now: Instant, hint: &EndpointAddr) -> Result<EndpointAddr, Dropped> {
        if hint.id == self.me {
            return Err(Dropped::Own);
        }
        let local = hint.addrs.iter().filter(|addr| is_local(addr));
        let addrs: BTreeSet<_> = local.take(ADDRESSES_MAX).cloned().collect();
        if addrs.is_empty() {
            return Err(Dropped::NotLocal);
        }
        let memory = self.limits.memory;
        self.known.retain(|_, passed| now.saturating_duration_since(passed.at) < memory);
        let known = self.known.get(&hint.id);
        if known.is_some_and(|passed| passed.addrs == addrs) {
            return Err(Dropped::Known);
        }
        if known.is_none() && self.known.len() >= self.limits.peers {
            return Err(Dropped::TooMany);
        }
        let is_old = |at: &Instant| now.saturating_duration_since(*at) >= MINUTE;
        while self.recent.front().is_some_and(is_old) {
            self.recent.pop_front();
        }
        if self.recent.len() >= self.limits.per_minute {
            return Err(Dropped::TooOften);
        }
        self.recent.push_back(now);
        self.known.insert(hint.id, Passed { at: now, addrs: addrs.clone() });
        Ok(EndpointAddr { id: hint.id, addrs })
    }
}

/// Whether this is an address of the local network that can be dialled: also what a node tells about itself there. IPv6
/// addresses of one link only are none, as they mean nothing without the interface, which nobody can tell for another.
pub fn is_local(addr: &TransportAddr) -> bool {
    let TransportAddr::Ip(socket) = addr else { return false };
    let is_one_link = match socket.ip().to_canonical() {
        IpAddr::V4(_) => false,
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    Reach::of(addr) == Reach::Site && socket.port() != 0 && !is_one_link
}

#[cfg(test)]
mod tests {
    use iroh_base::SecretKey;
    use proptest::prelude::*;

    use super::*;

    fn id(number: u16) -> EndpointId {
        let [high, low] = number.to_be_bytes();
        let bytes = std::array::from_fn(|place| if place == 0 { high } else { low });
        SecretKey::from_bytes(&bytes).public()
    }

    fn hint(number: u16, addrs: &[&str]) -> EndpointAddr {
        let addrs = addrs.iter().map(|text| TransportAddr::Ip(text.parse().unwrap()));
        EndpointAddr::from_parts(id(number), addrs)
    }

    fn hints() -> Hints {
        Hints::new(id(0), HintLimits::default())
    }

    fn after(start: Instant, secs: u64) -> Instant {
        start + Duration::from_secs(secs)
    }

    #[test]
    fn a_neighbour_is_passed_on_with_its_local_addresses_alone() {
        let mut said = hint(1, &["192.168.1.5:7", "203.0.113.9:7", "127.0.0.1:7", "[fe80::1]:7"]);
        said.addrs.insert(TransportAddr::Relay("https://r.example".parse().unwrap()));
        let passed = hints().heard(Instant::now(), &said);
        assert_eq!(passed, Ok(hint(1, &["192.168.1.5:7"])));
    }

    #[test]
    fn a_hint_without_an_address_that_is_local_is_dropped() {
        for addrs in [
            &[][..],
            &["8.8.8.8:53"],
            &["127.0.0.1:22"],
            &["10.0.0.1:0"],
            &["[::ffff:127.0.0.1]:5"],
        ] {
            let dropped = hints().heard(Instant::now(), &hint(1, addrs));
            assert_eq!(dropped, Err(Dropped::NotLocal), "{addrs:?}");
        }
    }

    #[test]
    fn a_node_takes_no_hint_of_itself() {
        let dropped = hints().heard(Instant::now(), &hint(0, &["10.0.0.1:1"]));
        assert_eq!(dropped, Err(Dropped::Own));
    }

    #[test]
    fn the_same_hint_is_passed_on_again_after_its_memory_and_another_address_at_once() {
        let (start, mut hints) = (Instant::now(), hints());
        let (here, there) = (hint(1, &["10.0.0.1:1"]), hint(1, &["10.0.0.2:1"]));
        assert_eq!(hints.heard(start, &here), Ok(here.clone()));
        assert_eq!(hints.heard(after(start, 599), &here), Err(Dropped::Known));
        assert_eq!(hints.heard(after(start, 600), &here), Ok(here));
        assert_eq!(hints.heard(after(start, 601), &there), Ok(there));
    }

    #[test]
    fn more_than_fit_into_a_minute_or_the_memory_are_dropped() {
        let limits = HintLimits { per_minute: 2, peers: 3, memory: Duration::from_secs(300) };
        let (start, mut hints) = (Instant::now(), Hints::new(id(0), limits));
        let said = |number| hint(number, &["10.0.0.1:1"]);
        assert!(hints.heard(start, &said(1)).is_ok());
        assert!(hints.heard(after(start, 30), &said(2)).is_ok());
        assert_eq!(hints.heard(after(start, 59), &said(3)), Err(Dropped::TooOften));
        assert!(hints.heard(after(start, 60), &said(3)).is_ok());
        assert_eq!(hints.heard(after(start, 200), &said(4)), Err(Dropped::TooMany));
        assert!(hints.heard(after(start, 300), &said(4)).is_ok());
    }

    #[test]
    fn of_many_addresses_as_many_as_a_record_has_are_passed_on() {
        let mut said = hint(1, &[]);
        said.addrs.extend((1..100).map(|port| TransportAddr::Ip(([10, 0, 0, 1], port).into())));
        let passed = hints().heard(Instant::now(), &said).unwrap();
        assert_eq!(passed.addrs.len(), ADDRESSES_MAX);
    }

    proptest! {
        #[test]
        fn whatever_is_heard_no_bound_is_passed(heard in prop::collection::vec((0..40_u16, 1..4_u16, 0..20_u64), 0..300)) {
            let limits = HintLimits { per_minute: 5, peers: 8, memory: Duration::from_secs(100) };
            let start = Instant::now();
            let mut hints = Hints::new(id(0), limits);
            let (mut clock, mut passed) = (0, Vec::new());
            for (number, port, wait) in heard {
                clock += wait;
                if hints.heard(after(start, clock), &hint(number, &[&format!("10.0.0.1:{port}")])).is_ok() {
                    prop_assert_ne!(number, 0);
                    passed.push((clock, number));
                }
                let minute = passed.iter().filter(|(at, _)| at + 60 > clock).count();
                let peers: BTreeSet<_> = passed.iter().filter(|(at, _)| at + 100 > clock).map(|(_, number)| number).collect();
                prop_assert!(minute <= 5 && peers.len() <= 8, "{minute} in a minute, {} peers", peers.len());
            }
        }
    }
}
