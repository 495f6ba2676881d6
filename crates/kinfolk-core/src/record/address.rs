//! The addresses of a record: which ones a node may say of itself, and their bytes.
//!
//! An address is normal or not allowed, so that it has one encoding: IPv4 is never written as IPv6, a relay is an
//! origin (scheme, host, port) and nothing more. What nobody can dial, whoever says it, is in no record: unspecified,
//! multicast and reserved addresses, port 0. Whether a *local* address may be used depends on where the record came from,
//! which is [`Reach`](super::Reach)'s to say.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use iroh_base::{RelayUrl, TransportAddr};
use thiserror::Error;

use crate::wire::frame::{FrameError, Reader, Writer};

/// Addresses in one record: all interfaces of a well-connected machine, and its relays.
pub const ADDRESSES_MAX: usize = 8;

/// Relays among them: nodes have one home relay, and a second one while they move.
pub const RELAYS_MAX: usize = 2;

/// The longest URL of a relay, in bytes (a guess; two of them have to fit into every record).
pub const RELAY_URL_MAX: usize = 120;

/// Why a record cannot carry an address. Whoever gave the address is to blame.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum AddressError {
    /// Nobody can dial it: unspecified, multicast, broadcast or reserved, or port 0.
    #[error("expected an address that can be dialled, got {0}")]
    Undiallable(SocketAddr),
    /// The URL is not just `http` or `https`, a host and a port.
    #[error("expected the URL of a relay as scheme, host and port only, got {0}")]
    NoOrigin(RelayUrl),
    /// The URL is too long.
    #[error("expected the URL of a relay of at most {RELAY_URL_MAX} bytes, got {len}")]
    LongUrl {
        /// Its length in bytes.
        len: usize,
    },
    /// Records carry IP addresses and relays only.
    #[error("expected an IP address or a relay, got an address of a custom transport")]
    Custom,
}

/// The address as records carry it: IPv4 in its own form, IPv6 without the scope and flow that mean something on one
/// machine only.
pub(super) fn normal(addr: TransportAddr) -> Result<TransportAddr, AddressError> {
    match addr {
        TransportAddr::Ip(addr) => {
            let normal = match addr.ip().to_canonical() {
                IpAddr::V4(ip) => SocketAddr::from((ip, addr.port())),
                IpAddr::V6(ip) => SocketAddrV6::new(ip, addr.port(), 0, 0).into(),
            };
            if is_diallable(normal) {
                Ok(TransportAddr::Ip(normal))
            } else {
                Err(AddressError::Undiallable(addr))
            }
        }
        TransportAddr::Relay(url) => {
            let len = url.as_str().len();
            if len > RELAY_URL_MAX {
                Err(AddressError::LongUrl { len })
            } else if is_origin(&url) {
                Ok(TransportAddr::Relay(url))
            } else {
                Err(AddressError::NoOrigin(url))
            }
        }
        _ => Err(AddressError::Custom),
    }
}

fn is_diallable(addr: SocketAddr) -> bool {
    let is_host = match addr.ip() {
        IpAddr::V4(ip) => {
            let [first, ..] = ip.octets();
            // 0/8 is this network, 224/4 multicast, 240/4 reserved with broadcast in it.
            (1..224).contains(&first)
        }
        IpAddr::V6(ip) => {
            // ::/96 but for loopback: unspecified, and a deprecated form of IPv4.
            let is_compatible = ip.to_bits() >> 32 == 0 && !ip.is_loopback();
            !is_compatible && !ip.is_multicast()
        }
    };
    is_host && addr.port() != 0
}

fn is_origin(url: &RelayUrl) -> bool {
    matches!(url.scheme(), "http" | "https")
        && url.has_host()
        && url.username().is_empty()
        && url.password().is_none()
        && url.path() == "/"
        && url.query().is_none()
        && url.fragment().is_none()
}

const RELAY: u8 = 0;
const V4: u8 = 1;
const V6: u8 = 2;

/// Writes an address that is [`normal`].
pub(super) fn write(writer: &mut Writer, addr: &TransportAddr) -> Result<(), FrameError> {
    match addr {
        TransportAddr::Relay(url) => {
            writer.field("address kind", &RELAY)?;
            writer.field("relay", url.as_str())
        }
        TransportAddr::Ip(SocketAddr::V4(addr)) => {
            writer.field("address kind", &V4)?;
            writer.field("address", &addr.ip().octets())?;
            writer.field("port", &addr.port())
        }
        TransportAddr::Ip(SocketAddr::V6(addr)) => {
            writer.field("address kind", &V6)?;
            writer.field("address", &addr.ip().octets())?;
            writer.field("port", &addr.port())
        }
        _ => Err(FrameError::Unencodable { field: "address" }),
    }
}

/// Reads an address. One that is not [`normal`] is refused, or differs from its bytes when it is written again.
pub(super) fn read(reader: &mut Reader<'_>) -> Result<TransportAddr, FrameError> {
    let addr = match reader.field("address kind")? {
        RELAY => {
            let text: &str = reader.field("relay")?;
            // Before it is parsed, as parsing costs more than reading.
            if text.len() > RELAY_URL_MAX {
                return Err(invalid("relay", "a URL of at most 120 bytes", text.len()));
            }
            let url = text.parse().map_err(|_| FrameError::Undecodable { field: "relay" })?;
            TransportAddr::Relay(url)
        }
        V4 => {
            let ip = Ipv4Addr::from(reader.field::<[u8; 4]>("address")?);
            TransportAddr::Ip(SocketAddr::from((ip, reader.field("port")?)))
        }
        V6 => {
            let ip = Ipv6Addr::from(reader.field::<[u8; 16]>("address")?);
            TransportAddr::Ip(SocketAddr::from((ip, reader.field("port")?)))
        }
        kind => return Err(invalid("address kind", "0 to 2", kind.into())),
    };
    normal(addr).map_err(|_| FrameError::Undecodable { field: "address" })
}

fn invalid(field: &'static str, expected: &'static str, came: usize) -> FrameError {
    FrameError::InvalidField { field, expected, came: u64::try_from(came).unwrap_or(u64::MAX) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> TransportAddr {
        TransportAddr::Ip(text.parse().unwrap())
    }

    fn relay(text: &str) -> TransportAddr {
        TransportAddr::Relay(text.parse().unwrap())
    }

    fn written(addr: &TransportAddr) -> Vec<u8> {
        let mut writer = Writer::default();
        write(&mut writer, addr).unwrap();
        writer.finish()
    }

    #[test]
    fn an_address_is_its_kind_and_its_parts() {
        assert_eq!(written(&ip("1.2.3.4:300")), b"\x01\x01\x02\x03\x04\xac\x02");
        let v6 = b"\x02\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x07\x50";
        assert_eq!(written(&ip("[2001:db8::7]:80")), v6);
        assert_eq!(written(&relay("https://r.example")), b"\x00\x12https://r.example/");
    }

    #[test]
    fn an_address_comes_back_as_it_was_written() {
        for addr in [ip("1.2.3.4:300"), ip("[2001:db8::7]:80"), relay("https://r.example:8443/")] {
            assert_eq!(read(&mut Reader::new(&written(&addr))), Ok(addr));
        }
    }

    #[test]
    fn ipv4_is_never_written_as_ipv6() {
        assert_eq!(normal(ip("[::ffff:1.2.3.4]:5")), Ok(ip("1.2.3.4:5")));
    }

    #[test]
    fn what_means_something_on_one_machine_only_is_left_out() {
        let scoped = SocketAddrV6::new("fe80::1".parse().unwrap(), 5, 7, 3);
        assert_eq!(normal(TransportAddr::Ip(scoped.into())), Ok(ip("[fe80::1]:5")));
    }

    #[test]
    fn what_nobody_can_dial_is_refused() {
        for text in [
            "0.0.0.0:5",
            "0.1.2.3:5",
            "224.0.0.1:5",
            "255.255.255.255:5",
            "240.0.0.1:5",
            "1.2.3.4:0",
            "[::]:5",
            "[ff02::1]:5",
            "[::1.2.3.4]:5",
            "[::ffff:224.0.0.1]:5",
        ] {
            assert!(matches!(normal(ip(text)), Err(AddressError::Undiallable(_))), "{text}");
        }
        assert!(read(&mut Reader::new(b"\x01\0\0\0\0\x05")).is_err());
    }

    #[test]
    fn a_relay_is_an_origin_and_nothing_more() {
        for text in [
            "ftp://r.example/",
            "https://user@r.example/",
            "https://:secret@r.example/",
            "https://r.example/reboot",
            "https://r.example/?now",
            "https://r.example/#a",
            "data:text/plain,hello",
        ] {
            assert!(matches!(normal(relay(text)), Err(AddressError::NoOrigin(_))), "{text}");
        }
    }

    #[test]
    fn a_long_url_is_refused() {
        let fits = format!("https://{}/", "r".repeat(RELAY_URL_MAX - 9));
        assert!(normal(relay(&fits)).is_ok());
        let long = format!("https://{}/", "r".repeat(RELAY_URL_MAX - 8));
        assert_eq!(normal(relay(&long)), Err(AddressError::LongUrl { len: 121 }));
        assert!(read(&mut Reader::new(&written(&relay(&long)))).is_err());
    }

    #[test]
    fn an_unknown_kind_of_address_is_refused() {
        assert_eq!(
            read(&mut Reader::new(b"\x03")),
            Err(FrameError::InvalidField { field: "address kind", expected: "0 to 2", came: 3 })
        );
    }
}
