//! Tickets: one line of text that says where a member of a network can be reached, for people to pass on.
//!
//! A ticket is a hint that nobody has signed. Whoever dials by it reaches the member that it names or nobody, as the member's id is its key;
//! addresses that are wrong cost a dial. It is decoded under caps, since it may come from anywhere.
//!
//! The text is the word `kinfolk` and, in lower-case base32 of RFC 4648 without padding, a version byte 1 and a postcard body: the network's 16
//! bytes, the member's id, and its addresses. Upper case is read as well, as people and QR codes write it so.

use std::fmt;
use std::str::FromStr;

use data_encoding::BASE32_NOPAD;
use iroh_base::EndpointAddr;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::id::NetworkId;

/// Most addresses in a ticket; a host rarely has more that others can reach.
pub const TICKET_ADDRESSES_MAX: usize = 16;

/// Longest text that is read as a ticket, in bytes: 16 relay URLs of 100 bytes fit, and a chat message carries it.
pub const TICKET_TEXT_MAX: usize = 4096;

const KIND: &str = "kinfolk";
const VERSION: u8 = 1;

/// Where a member of a network can be reached. `Display` and `FromStr` are its text.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Ticket {
    network: NetworkId,
    member: EndpointAddr,
}

/// Why a text is no ticket, or an address makes none. Whoever wrote it is to blame.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum TicketError {
    /// It does not begin as a ticket does.
    #[error("a ticket begins with `{KIND}`")]
    Kind,
    /// It is longer than any ticket.
    #[error("a ticket has at most {TICKET_TEXT_MAX} bytes, this has {0}")]
    TooLong(usize),
    /// A character is none of base32, or some are missing.
    #[error("the text is damaged: {0}")]
    Damaged(String),
    /// It is of a later version.
    #[error("tickets of version {VERSION} are understood, this is of version {0}")]
    Version(u8),
    /// The bytes are no ticket's.
    #[error("the content is damaged")]
    Malformed,
    /// It names a member and no address of it.
    #[error("no address of {} is given", .0.fmt_short())]
    NoAddress(iroh_base::EndpointId),
    /// It has more addresses than a ticket may.
    #[error("a ticket has at most {TICKET_ADDRESSES_MAX} addresses, this has {0}")]
    TooManyAddresses(usize),
}

#[derive(Serialize, Deserialize)]
struct Body {
    network: NetworkId,
    member: EndpointAddr,
}

impl Ticket {
    /// A ticket for this member.
    ///
    /// # Errors
    ///
    /// If it has no address, too many, or too long ones.
    pub fn new(network: NetworkId, member: EndpointAddr) -> Result<Self, TicketError> {
        match member.addrs.len() {
            0 => Err(TicketError::NoAddress(member.id)),
            count if count > TICKET_ADDRESSES_MAX => Err(TicketError::TooManyAddresses(count)),
            _ => {
                let ticket = Self { network, member };
                match ticket.to_string().len() {
                    len if len > TICKET_TEXT_MAX => Err(TicketError::TooLong(len)),
                    _ => Ok(ticket),
                }
            }
        }
    }

    /// The network that the member is of.
    pub const fn network(&self) -> NetworkId {
        self.network
    }

    /// The member and its addresses.
    pub const fn member(&self) -> &EndpointAddr {
        &self.member
    }
}

impl From<Ticket> for EndpointAddr {
    fn from(ticket: Ticket) -> Self {
        ticket.member
    }
}

impl fmt::Display for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let body = Body { network: self.network, member: self.member.clone() };
        let bytes = postcard::to_extend(&body, vec![VERSION]).map_err(|_| fmt::Error)?;
        let text = BASE32_NOPAD.encode(&bytes).to_ascii_lowercase();
        write!(f, "{KIND}{text}")
    }
}

impl FromStr for Ticket {
    type Err = TicketError;

    /// Reads a ticket; white space around it is no part of it.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        if text.len() > TICKET_TEXT_MAX {
            return Err(TicketError::TooLong(text.len()));
        }
        let text = text.to_ascii_uppercase();
        let text = text.strip_prefix(&KIND.to_ascii_uppercase()).ok_or(TicketError::Kind)?;
        let bytes = BASE32_NOPAD.decode(text.as_bytes());
        let bytes = bytes.map_err(|error| TicketError::Damaged(error.to_string()))?;
        let (version, body) = bytes.split_first().ok_or(TicketError::Malformed)?;
        if *version != VERSION {
            return Err(TicketError::Version(*version));
        }
        match postcard::take_from_bytes::<Body>(body) {
            Ok((Body { network, member }, [])) => Self::new(network, member),
            _ => Err(TicketError::Malformed),
        }
    }
}

#[cfg(test)]
mod tests {
    use iroh_base::{SecretKey, TransportAddr};
    use proptest::prelude::*;

    use super::*;

    fn member(addresses: u16) -> EndpointAddr {
        let id = SecretKey::from_bytes(&[7; 32]).public();
        let address = |port: u16| TransportAddr::Ip(([192, 0, 2, 1], port).into());
        EndpointAddr::from_parts(id, (0..addresses).map(address))
    }

    fn ticket() -> Ticket {
        Ticket::new(NetworkId::from_name("my-app"), member(2)).unwrap()
    }

    /// The text of these bytes behind the kind.
    fn text_of(bytes: &[u8]) -> String {
        format!("{KIND}{}", BASE32_NOPAD.encode(bytes).to_ascii_lowercase())
    }

    fn bytes_of(ticket: &Ticket) -> Vec<u8> {
        let text = ticket.to_string().to_ascii_uppercase();
        BASE32_NOPAD.decode(&text.as_bytes()[KIND.len()..]).unwrap()
    }

    #[test]
    fn the_text_is_pinned() {
        let ticket = Ticket::new(NetworkId::from_name("my-app"), member(1)).unwrap();
        let text = "kinfolkagbhg24c2erbnn4nvyo6twsdokd6ustmmprjyuqkx32va6ytf3c7tfkho2xl5pt3sjbb52tjcrdnelabaeamaaacaeaa";
        assert_eq!(ticket.to_string(), text);
        assert_eq!(text.parse(), Ok(ticket));
    }

    #[test]
    fn a_text_that_was_copied_with_white_space_or_in_upper_case_is_read() {
        let text = ticket().to_string();
        assert_eq!(format!(" {text}\r\n").parse(), Ok(ticket()));
        assert_eq!(text.to_ascii_uppercase().parse(), Ok(ticket()));
    }

    #[test]
    fn what_is_wrong_with_a_text_is_said() {
        let parse = |text: &str| text.parse::<Ticket>().unwrap_err();
        let text = ticket().to_string();
        assert_eq!(parse(""), TicketError::Kind);
        assert_eq!(parse(&text[1..]), TicketError::Kind);
        assert_eq!(parse(KIND), TicketError::Malformed);
        assert_eq!(parse(&text.repeat(50)), TicketError::TooLong(50 * text.len()));
        assert!(matches!(parse(&format!("{text}!")), TicketError::Damaged(_)));
        assert_eq!(parse(&text_of(&[2, 0, 0])), TicketError::Version(2));
        let longer = [bytes_of(&ticket()), vec![0]].concat();
        assert_eq!(parse(&text_of(&longer)), TicketError::Malformed);
    }

    #[test]
    fn a_ticket_without_an_address_or_with_too_many_is_refused_when_made_and_when_read() {
        let network = NetworkId::from_name("my-app");
        for (addresses, error) in
            [(0, TicketError::NoAddress(member(0).id)), (17, TicketError::TooManyAddresses(17))]
        {
            assert_eq!(Ticket::new(network, member(addresses)), Err(error.clone()));
            let body = Body { network, member: member(addresses) };
            let bytes = postcard::to_extend(&body, vec![VERSION]).unwrap();
            assert_eq!(text_of(&bytes).parse::<Ticket>(), Err(error));
        }
        assert!(Ticket::new(network, member(16)).is_ok());
    }

    #[test]
    fn a_ticket_that_nobody_could_read_is_not_made() {
        let relay = |n: u32| {
            TransportAddr::Relay(format!("https://{n}{}.example", "r".repeat(200)).parse().unwrap())
        };
        let member = EndpointAddr::from_parts(member(0).id, (0..16).map(relay));
        let ticket = Ticket::new(NetworkId::from_name("my-app"), member);
        assert!(matches!(ticket, Err(TicketError::TooLong(_))), "{ticket:?}");
    }

    proptest! {
        #[test]
        fn damaged_bytes_are_no_ticket_or_one_with_a_text_of_its_own(
            bit in 0..1000_usize,
            cut in prop_oneof![Just(0), 1..100_usize],
        ) {
            let mut bytes = bytes_of(&ticket());
            let bit = bit % (8 * bytes.len());
            bytes[bit / 8] ^= 1 << (bit % 8);
            bytes.truncate(bytes.len().saturating_sub(cut));
            if let Ok(read) = text_of(&bytes).parse::<Ticket>() {
                prop_assert_eq!(read.to_string().parse(), Ok(read));
            }
        }

        #[test]
        fn no_text_makes_it_panic(text in ".*") {
            let _ = text.parse::<Ticket>();
            let _ = format!("{KIND}{text}").parse::<Ticket>();
        }
    }
}
