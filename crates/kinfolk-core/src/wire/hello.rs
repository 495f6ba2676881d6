//! `Hello`: the dialler's first frame, which names the link and says what its sender knows.
//!
//! It carries what arbitration between two links needs: who the sender is in time ([`Incarnation`]), which of its
//! dials this is, and which links with the receiver it holds dead. Which link then stays is not decided here.
//!
//! Neither end is named in the frame, as both are known from the TLS handshake. So a peer can speak of its own links
//! with the receiver, and of nobody else's.

use iroh_base::EndpointId;

use super::extension::Extensions;
use super::frame::{FrameError, Reader, Writer};
use crate::id::{Incarnation, LinkId};

/// The minor version that this crate speaks. A peer with a newer one is understood, as it only adds extensions.
pub const MINOR: u16 = 0;

/// The most dead links that one `Hello` lists: the newest, as older ones lost every comparison already. 8 covers the
/// dials that can fail while the peer still holds a link.
pub const DEAD_LINKS_MAX: usize = 8;

const DEAD_LINKS: &str = "dead links";
const DEAD_LINKS_EXPECTED: &str = "at most 8";

/// The dialler's first frame on a link.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Hello {
    /// The sender's minor version.
    pub minor: u16,
    /// The sender's incarnation.
    pub incarnation: Incarnation,
    /// Counts the sender's links in this incarnation.
    pub n: u64,
    /// The links with the receiver that the sender holds dead, given-up dials included; at most [`DEAD_LINKS_MAX`].
    pub dead: Vec<DeadLink>,
    /// What later versions add.
    pub extensions: Extensions,
}

/// A link between the sender and the receiver of a [`Hello`] that the sender holds dead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DeadLink {
    /// Whether the sender of the `Hello` dialled it; otherwise the receiver did.
    pub mine: bool,
    /// The incarnation of the link's dialler.
    pub incarnation: Incarnation,
    /// The number of the link among those of its dialler.
    pub n: u64,
}

impl Hello {
    /// The link that this frame opens, when `sender` dialled it.
    pub fn link_id(&self, sender: EndpointId) -> LinkId {
        LinkId { dialler: sender, incarnation: self.incarnation, n: self.n }
    }

    pub(super) fn write(&self, writer: &mut Writer) -> Result<(), FrameError> {
        let count = self.dead.len();
        if count > DEAD_LINKS_MAX {
            return Err(FrameError::InvalidField {
                field: DEAD_LINKS,
                expected: DEAD_LINKS_EXPECTED,
                came: u64::try_from(count).unwrap_or(u64::MAX),
            });
        }
        writer.field("minor", &self.minor)?;
        writer.field("incarnation", &self.incarnation)?;
        writer.field("n", &self.n)?;
        writer.field(DEAD_LINKS, &count)?;
        for link in &self.dead {
            link.write(writer)?;
        }
        writer.extensions(&self.extensions);
        Ok(())
    }

    pub(super) fn read(mut reader: Reader<'_>) -> Result<Self, FrameError> {
        let minor = reader.field("minor")?;
        let incarnation = reader.field("incarnation")?;
        let n = reader.field("n")?;
        let count = reader.count(DEAD_LINKS, DEAD_LINKS_MAX, DEAD_LINKS_EXPECTED)?;
        let dead = (0..count).map(|_| DeadLink::read(&mut reader)).collect::<Result<_, _>>()?;
        let extensions = reader.extensions()?;
        Ok(Self { minor, incarnation, n, dead, extensions })
    }
}

impl DeadLink {
    /// How `sender` names this link in its `Hello` to the other end.
    pub fn of(link: &LinkId, sender: &EndpointId) -> Self {
        Self { mine: link.dialler == *sender, incarnation: link.incarnation, n: link.n }
    }

    /// The link that is meant when this comes in a `Hello` from `sender` to `receiver`.
    pub fn link(&self, sender: EndpointId, receiver: EndpointId) -> LinkId {
        let dialler = if self.mine { sender } else { receiver };
        LinkId { dialler, incarnation: self.incarnation, n: self.n }
    }

    fn write(&self, writer: &mut Writer) -> Result<(), FrameError> {
        writer.field("dead link's side", &self.mine)?;
        writer.field("dead link's incarnation", &self.incarnation)?;
        writer.field("dead link's n", &self.n)
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, FrameError> {
        Ok(Self {
            mine: reader.field("dead link's side")?,
            incarnation: reader.field("dead link's incarnation")?,
            n: reader.field("dead link's n")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::frame::{Control, LENGTH_BYTES};

    fn node(seed: u8) -> EndpointId {
        iroh_base::SecretKey::from_bytes(&[seed; 32]).public()
    }

    fn hello() -> Hello {
        Hello {
            minor: MINOR,
            incarnation: Incarnation::new(0x1234),
            n: 5,
            dead: vec![
                DeadLink { mine: true, incarnation: Incarnation::new(0x1234), n: 4 },
                DeadLink { mine: false, incarnation: Incarnation::new(9), n: 300 },
            ],
            extensions: Extensions::none(),
        }
    }

    const BODY: &[u8] = b"\x00\x00\xb4\x24\x05\x02\x01\xb4\x24\x04\x00\x09\xac\x02";

    fn decode(body: &[u8]) -> Result<Hello, FrameError> {
        match Control::decode(body)? {
            Control::Hello(hello) => Ok(hello),
            other => panic!("expected a hello, came {other:?}"),
        }
    }

    #[test]
    fn a_hello_has_exactly_these_bytes() {
        let frame = Control::Hello(hello()).encode().unwrap();
        assert_eq!(frame[..LENGTH_BYTES], [0, 0, 0, 14]);
        assert_eq!(frame[LENGTH_BYTES..], *BODY);
        assert_eq!(decode(BODY), Ok(hello()));
    }

    #[test]
    fn the_largest_numbers_fit() {
        let incarnation = Incarnation::new(u64::MAX);
        let dead = vec![DeadLink { mine: false, incarnation, n: u64::MAX }; DEAD_LINKS_MAX];
        let largest = Hello {
            minor: u16::MAX,
            incarnation,
            n: u64::MAX,
            dead,
            extensions: Extensions::none(),
        };
        let frame = Control::Hello(largest.clone()).encode().unwrap();
        assert_eq!(frame.len(), LENGTH_BYTES + 1 + 3 + 10 + 10 + 1 + 8 * 21);
        assert_eq!(decode(&frame[LENGTH_BYTES..]), Ok(largest));
    }

    #[test]
    fn a_newer_minor_with_unknown_extensions_is_understood() {
        let body = b"\x00\x07\x01\x02\x00\x0a\x03new";
        let hello = decode(body).unwrap();
        assert_eq!((hello.minor, hello.n), (7, 2));
        assert_eq!(hello.extensions.get(10), Some(&b"new"[..]));
        assert_eq!(Control::Hello(hello).encode().unwrap()[LENGTH_BYTES..], body[..]);
    }

    #[test]
    fn a_hello_cut_anywhere_is_refused() {
        for end in 1..BODY.len() {
            let cut = decode(&BODY[..end]);
            assert!(matches!(cut, Err(FrameError::Truncated { .. })), "{end}: {cut:?}");
        }
    }

    #[test]
    fn needless_bytes_in_a_number_are_refused() {
        for body in [
            &b"\x00\x80\x00\x01\x02\x00"[..],
            b"\x00\x00\x81\x00\x02\x00",
            b"\x00\x00\x01\x82\x80\x00\x00",
            b"\x00\x00\x01\x02\x80\x00",
            b"\x00\x00\x01\x02\x00\x8a\x00\x00",
        ] {
            assert_eq!(decode(body), Err(FrameError::NonCanonical), "{body:?}");
        }
    }

    #[test]
    fn a_number_beyond_its_type_is_refused() {
        let minor = b"\x00\x80\x80\x04\x01\x02\x00";
        assert_eq!(decode(minor), Err(FrameError::Undecodable { field: "minor" }));
        let incarnation = b"\x00\x00\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02\x02\x00";
        assert_eq!(decode(incarnation), Err(FrameError::Undecodable { field: "incarnation" }));
    }

    #[test]
    fn a_dead_link_is_dialled_by_one_side_or_the_other() {
        let body = b"\x00\x00\x01\x02\x01\x02\x01\x01";
        assert_eq!(decode(body), Err(FrameError::Undecodable { field: "dead link's side" }));
    }

    #[test]
    fn more_than_eight_dead_links_are_not_sent() {
        let mut hello = hello();
        hello.dead = vec![hello.dead[0]; DEAD_LINKS_MAX + 1];
        let refused = Control::Hello(hello).encode();
        assert!(matches!(refused, Err(FrameError::InvalidField { came: 9, .. })), "{refused:?}");
    }

    /// The error is about the count, not about the entries that are missing behind it: no entry was read, and no room
    /// was made for any.
    #[test]
    fn a_claimed_count_is_refused_before_the_first_entry_is_read() {
        let claims = [
            (9, &b"\x09"[..]),
            (1 << 32, b"\x80\x80\x80\x80\x10"),
            (u64::MAX, b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"),
        ];
        for (came, claim) in claims {
            let body = [&b"\x00\x00\x01\x02"[..], claim].concat();
            let (field, expected) = (DEAD_LINKS, DEAD_LINKS_EXPECTED);
            assert_eq!(decode(&body), Err(FrameError::InvalidField { field, expected, came }));
        }
    }

    #[test]
    fn the_message_names_the_limit_that_holds() {
        assert!(DEAD_LINKS_EXPECTED.ends_with(&DEAD_LINKS_MAX.to_string()));
    }

    #[test]
    fn a_hello_names_the_link_of_its_sender() {
        let link = hello().link_id(node(1));
        assert_eq!(link, LinkId { dialler: node(1), incarnation: Incarnation::new(0x1234), n: 5 });
    }

    #[test]
    fn both_ends_mean_the_same_dead_link() {
        let (alice, bob) = (node(1), node(2));
        for dialler in [alice, bob] {
            let link = LinkId { dialler, incarnation: Incarnation::new(3), n: 8 };
            let listed = DeadLink::of(&link, &alice);
            assert_eq!(listed.mine, dialler == alice);
            assert_eq!(listed.link(alice, bob), link);
        }
    }
}
