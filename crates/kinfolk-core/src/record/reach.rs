//! How far an address leads: to this machine, to the local network, or anywhere.
//!
//! It decides which addresses of a record a node may use, by where the record came from: whoever is far away could
//! otherwise make every node dial its own machine or its neighbours' printers. It never resolves a name: what a relay's
//! name leads to is the relay transport's concern, and only names that are local by definition count as local.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use iroh_base::{RelayUrl, TransportAddr};

/// How far away those are who can use an address, nearest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reach {
    /// Only this machine: loopback.
    Machine,
    /// Only the local network: private, link-local, unique local and carrier-grade NAT addresses.
    Site,
    /// Everybody.
    World,
}

impl Reach {
    /// How far this IP address leads.
    ///
    /// Addresses that embed an IPv4 address (mapped, NAT64, 6to4) lead as far as that one.
    pub fn of_ip(ip: IpAddr) -> Self {
        match ip.to_canonical() {
            IpAddr::V4(ip) => Self::of_v4(ip),
            IpAddr::V6(ip) => Self::of_v6(ip),
        }
    }

    /// How far this address leads, or how far away somebody is who has it. Custom transports say nothing about
    /// distance, so that they count as the world.
    pub fn of(addr: &TransportAddr) -> Self {
        match addr {
            TransportAddr::Ip(addr) => Self::of_ip(addr.ip()),
            TransportAddr::Relay(url) => Self::of_relay(url),
            _ => Self::World,
        }
    }

    /// Whether an address of this reach may be used when a record that names it came from somebody at `source`: only
    /// those who are as near themselves may name what is near.
    pub fn is_usable_from(self, source: Self) -> bool {
        source <= self
    }

    fn of_v4(ip: Ipv4Addr) -> Self {
        let [first, second, ..] = ip.octets();
        let is_carrier_nat = first == 100 && second & 0xc0 == 64;
        if ip.is_loopback() || first == 0 {
            Self::Machine
        } else if ip.is_private() || ip.is_link_local() || is_carrier_nat {
            Self::Site
        } else {
            Self::World
        }
    }

    fn of_v6(ip: Ipv6Addr) -> Self {
        let [first, second, third, _, _, _, seventh, eighth] = ip.segments();
        if ip.is_loopback() || ip.is_unspecified() {
            return Self::Machine;
        }
        let is_site_local = first & 0xffc0 == 0xfec0;
        if ip.is_unique_local() || ip.is_unicast_link_local() || is_site_local {
            return Self::Site;
        }
        let embedded = match first {
            0x0064 if second == 0xff9b => Some([seventh, eighth]),
            0x2002 => Some([second, third]),
            _ => None,
        };
        embedded.map_or(Self::World, |[high, low]| {
            let bits = (u32::from(high) << 16) | u32::from(low);
            Self::of_v4(Ipv4Addr::from_bits(bits))
        })
    }

    fn of_relay(url: &RelayUrl) -> Self {
        let host = url.host_str().unwrap_or_default().trim_end_matches('.');
        let literal = host.trim_start_matches('[').trim_end_matches(']');
        if let Ok(ip) = literal.parse() {
            Self::of_ip(ip)
        } else if host == "localhost" || host.ends_with(".localhost") {
            Self::Machine
        } else if host.ends_with(".local") || !host.contains('.') {
            Self::Site
        } else {
            Self::World
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reach(ip: &str) -> Reach {
        Reach::of_ip(ip.parse().unwrap())
    }

    fn relay(url: &str) -> Reach {
        Reach::of(&TransportAddr::Relay(url.parse().unwrap()))
    }

    #[test]
    fn loopback_leads_to_this_machine() {
        for ip in ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", "0.0.0.0", "::"] {
            assert_eq!(reach(ip), Reach::Machine, "{ip}");
        }
    }

    #[test]
    fn private_and_link_local_addresses_lead_to_the_local_network() {
        let sites = [
            "10.1.2.3",
            "172.16.0.1",
            "172.31.255.1",
            "192.168.1.1",
            "169.254.1.1",
            "100.64.0.1",
            "100.127.0.1",
            "fe80::1",
            "fd00::1",
            "fec0::1",
            "::ffff:10.0.0.1",
        ];
        for ip in sites {
            assert_eq!(reach(ip), Reach::Site, "{ip}");
        }
    }

    #[test]
    fn everything_else_leads_anywhere() {
        for ip in ["203.0.113.7", "172.32.0.1", "100.128.0.1", "8.8.8.8", "2001:db8::1"] {
            assert_eq!(reach(ip), Reach::World, "{ip}");
        }
    }

    #[test]
    fn an_embedded_address_leads_as_far_as_itself() {
        assert_eq!(reach("64:ff9b::7f00:1"), Reach::Machine);
        assert_eq!(reach("64:ff9b::a00:1"), Reach::Site);
        assert_eq!(reach("2002:c0a8:101::1"), Reach::Site);
        assert_eq!(reach("2002:808:808::1"), Reach::World);
    }

    #[test]
    fn a_relay_leads_as_far_as_its_host() {
        for url in [
            "https://127.0.0.1/",
            "http://[::1]:99/",
            "https://localhost/",
            "https://a.localhost./",
        ] {
            assert_eq!(relay(url), Reach::Machine, "{url}");
        }
        // Numbers in other notations are the same addresses.
        assert_eq!(relay("https://2130706433/"), Reach::Machine);
        for url in
            ["https://10.0.0.1/", "https://printer.local/", "https://printer/", "http://[fe80::1]/"]
        {
            assert_eq!(relay(url), Reach::Site, "{url}");
        }
        for url in ["https://relay.example./", "https://203.0.113.9:8443/"] {
            assert_eq!(relay(url), Reach::World, "{url}");
        }
    }

    #[test]
    fn only_who_is_near_may_name_what_is_near() {
        let all = [Reach::Machine, Reach::Site, Reach::World];
        let usable = |source: Reach| all.map(|reach| reach.is_usable_from(source));
        assert_eq!(usable(Reach::Machine), [true, true, true]);
        assert_eq!(usable(Reach::Site), [false, true, true]);
        assert_eq!(usable(Reach::World), [false, false, true]);
    }
}
