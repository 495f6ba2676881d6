//! The bytes of one anchor in the store: postcard, with forms of our own for addresses, so that no other crate's change makes old
//! files unreadable.

use std::net::{IpAddr, SocketAddr};

use iroh::TransportAddr;
use kinfolk_core::anchors::Anchor;
use kinfolk_core::id::NetworkId;
use kinfolk_core::record::{RECORD_MAX, RELAY_URL_MAX, Record, UnixMillis};
use serde::{Deserialize, Serialize};

/// The longest row that is read: a record, and as many addresses as an anchor has, each with a long URL.
const ROW_MAX: usize = 2 * RECORD_MAX;

#[derive(Debug, Serialize, Deserialize)]
struct Row<'a> {
    last_success: u64,
    #[serde(borrow)]
    reached: Vec<Place<'a>>,
    record: &'a [u8],
}

#[derive(Debug, Serialize, Deserialize)]
enum Place<'a> {
    Ip(SocketAddr),
    Relay(&'a str),
}

/// The row of an anchor. Addresses of custom transports are left out, as are URLs that no record may have, and IPv6 addresses of one
/// link only: these need the number of an interface, which is another one after a restart.
pub(super) fn encode(anchor: &Anchor) -> Result<Vec<u8>, postcard::Error> {
    let place = |addr| match addr {
        &TransportAddr::Ip(addr) => Some(Place::Ip(addr)).filter(|_| !is_of_one_link(addr.ip())),
        TransportAddr::Relay(url) => {
            Some(Place::Relay(url.as_str())).filter(|_| url.as_str().len() <= RELAY_URL_MAX)
        }
        _ => None,
    };
    postcard::to_allocvec(&Row {
        last_success: anchor.last_success().get(),
        reached: anchor.reached().iter().filter_map(place).collect(),
        record: anchor.record().bytes(),
    })
}

fn is_of_one_link(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local())
}

/// The anchor of a row, if it is one and its record verifies at this time.
pub(super) fn decode(bytes: &[u8], network: NetworkId, clock: UnixMillis) -> Option<Anchor> {
    if bytes.len() > ROW_MAX {
        return None;
    }
    let row: Row<'_> = postcard::from_bytes(bytes).ok()?;
    let record = Record::verify(row.record, network, clock).ok()?;
    let place = |place: &Place<'_>| match place {
        Place::Ip(addr) => Some(TransportAddr::Ip(*addr)),
        Place::Relay(url) => url.parse().ok().map(TransportAddr::Relay),
    };
    let reached = row.reached.iter().filter_map(place);
    Some(Anchor::new(record, reached, UnixMillis::new(row.last_success)))
}

#[cfg(test)]
mod tests {
    use iroh::SecretKey;
    use kinfolk_core::record::{Draft, Seq};
    use rand::{RngExt as _, SeedableRng as _};

    use super::*;

    const CLOCK: UnixMillis = UnixMillis::new(9);

    fn network() -> NetworkId {
        NetworkId::from_name("rows")
    }

    fn anchor(reached: impl IntoIterator<Item = TransportAddr>) -> Anchor {
        let key = SecretKey::from_bytes(&[1; 32]);
        let record = Draft::new(network()).sign(&key, Seq::new(1), CLOCK).expect("a record");
        Anchor::new(record, reached, UnixMillis::new(7))
    }

    fn ip(text: &str) -> TransportAddr {
        TransportAddr::Ip(text.parse().expect("an address"))
    }

    fn relay(len: usize) -> TransportAddr {
        let url = format!("https://{}/", "r".repeat(len - 9));
        TransportAddr::Relay(url.parse().expect("a URL"))
    }

    #[test]
    fn an_anchor_comes_back_as_it_was_written() {
        let anchor = anchor([ip("[2001:db8::1]:9"), ip("10.0.0.1:9"), relay(RELAY_URL_MAX)]);
        let bytes = encode(&anchor).expect("a row");
        assert_eq!(decode(&bytes, network(), CLOCK), Some(anchor));
    }

    #[test]
    fn what_no_record_may_have_and_what_means_nothing_after_a_restart_is_left_out() {
        let bytes = encode(&anchor([relay(RELAY_URL_MAX + 1), ip("[fe80::1%3]:9")]));
        let bytes = bytes.expect("a row");
        assert_eq!(decode(&bytes, network(), CLOCK), Some(anchor([])));
    }

    #[test]
    fn whatever_the_bytes_are_they_are_an_anchor_or_nothing() {
        let whole = encode(&anchor([relay(40)])).expect("a row");
        let mut rng = rand::rngs::StdRng::seed_from_u64(3);
        for round in 0..2_000 {
            let mut bytes = whole.clone();
            if round % 2 == 0 {
                bytes.truncate(rng.random_range(0..whole.len()));
            }
            for _ in 0..rng.random_range(0..4) {
                let place = rng.random_range(0..whole.len());
                if let Some(byte) = bytes.get_mut(place) {
                    *byte = rng.random();
                }
            }
            let record = decode(&bytes, network(), CLOCK).map(|anchor| anchor.record().clone());
            assert!(record.is_none_or(|record| record == *anchor([]).record()));
        }
        assert_eq!(decode(&vec![0; ROW_MAX + 1], network(), CLOCK), None);
    }
}
