//! Names of things that cross the wire: a network, a node's life, a link, a protocol.
//!
//! Every machine and every frame uses these types, so that no bare number or string stands for an identity. A value
//! that exists is valid: [`ProtocolName`] is checked where it is made, and again where it is decoded. Nothing here
//! draws random numbers or counts; incarnations and link numbers come from the caller.

use std::borrow::Borrow;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;
use std::sync::Arc;

use iroh_base::EndpointId;
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

/// What every ALPN of this major version begins with; the hex digits of the [`NetworkId`] follow.
pub const ALPN_PREFIX: &[u8] = b"kinfolk/1/";

/// Separates network ids from every other use of the same hash. Changing it would split all networks.
const NETWORK_CONTEXT: &str = "kinfolk network id";

/// The set of nodes that may talk to each other: a hash of a name that the app chose.
///
/// It keeps networks apart, and keeps nothing secret: whoever knows the name can compute the id.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NetworkId([u8; 16]);

impl NetworkId {
    /// The id of the network with this name. The name's UTF-8 bytes count as they are: case and Unicode form matter.
    pub fn from_name(name: &str) -> Self {
        let mut id = [0; 16];
        blake3::Hasher::new_derive_key(NETWORK_CONTEXT)
            .update(name.as_bytes())
            .finalize_xof()
            .fill(&mut id);
        Self(id)
    }

    /// The id with these bytes.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The bytes of the id.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// What nodes of this network agree on in the TLS handshake, so that others are refused there: [`ALPN_PREFIX`] and
    /// 32 lower-case hex digits.
    pub fn alpn(&self) -> Vec<u8> {
        let mut alpn = ALPN_PREFIX.to_vec();
        alpn.extend(self.to_string().into_bytes());
        alpn
    }
}

impl fmt::Display for NetworkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for NetworkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NetworkId({self})")
    }
}

/// A random number that a node draws when it starts. Another incarnation of the same peer means that it restarted, so
/// whatever was agreed with the earlier one is gone. Incarnations have no order in time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Incarnation(u64);

impl Incarnation {
    /// The incarnation with this number.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Incarnation({self})")
    }
}

/// The name of one link, the same on both of its ends.
///
/// The order is that of the fields and serves maps; between two links of one dialler and incarnation it is the order
/// in which they were dialled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId {
    /// The node that dialled.
    pub dialler: EndpointId,
    /// The dialler's incarnation when it dialled.
    pub incarnation: Incarnation,
    /// Counts the dialler's links in this incarnation.
    pub n: u64,
}

impl fmt::Display for LinkId {
    /// Short, for logs: ten digits of the dialler, the last eight of its incarnation, and the number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [_, _, _, _, low @ ..] = self.incarnation.0.to_be_bytes();
        let incarnation = u32::from_be_bytes(low);
        let dialler = self.dialler.fmt_short();
        write!(f, "{dialler}/{incarnation:08x}#{}", self.n)
    }
}

/// The name of a protocol: 1 to 64 printable ASCII characters without spaces, such as `my-app/echo/1`.
///
/// Names that begin with `kinfolk/` belong to the library; see [`ProtocolName::is_reserved`].
#[derive(Clone)]
pub struct ProtocolName(Text);

/// Nearly every name is a constant of the program, so cloning one must not touch the heap.
#[derive(Clone)]
enum Text {
    Constant(&'static str),
    Shared(Arc<str>),
}

/// Why a text is no name: that of a protocol here; names of streams and schemas follow the same rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ProtocolNameError {
    /// It has no characters.
    #[error("a name has 1 to 64 bytes, this one has none")]
    Empty,
    /// It is longer than [`ProtocolName::MAX_LEN`].
    #[error("a name has 1 to 64 bytes, this one has {len}")]
    TooLong {
        /// Its length in bytes.
        len: usize,
    },
    /// It contains something else than printable ASCII.
    #[error("a name is made of ASCII from `!` to `~`, this one contains byte {byte:#04x}")]
    NotGraphic {
        /// The first byte at fault.
        byte: u8,
    },
}

impl ProtocolName {
    /// The longest name, in bytes. 64 leaves room for a vendor, a name and a version, and keeps stream headers small.
    pub const MAX_LEN: usize = 64;

    /// What the library's own protocol names begin with.
    pub const RESERVED_PREFIX: &'static str = "kinfolk/";

    /// The name with this text.
    pub fn new(text: impl AsRef<str>) -> Result<Self, ProtocolNameError> {
        let text = text.as_ref();
        check(text)?;
        Ok(Self(Text::Shared(Arc::from(text))))
    }

    /// The name with this text, for constants:
    ///
    /// ```
    /// # use kinfolk_core::id::ProtocolName;
    /// const ECHO: ProtocolName = ProtocolName::from_static("my-app/echo/1");
    /// ```
    ///
    /// # Panics
    ///
    /// If the text is no valid name. In a `const` or `static` item that is an error of compilation; text that is only
    /// known at run time goes through [`ProtocolName::new`].
    #[allow(
        clippy::panic,
        reason = "in a constant, a panic is how compilation refuses an invalid name"
    )]
    #[must_use]
    pub const fn from_static(text: &'static str) -> Self {
        match check(text) {
            Ok(()) => Self(Text::Constant(text)),
            Err(ProtocolNameError::Empty) => panic!("a name must not be empty"),
            Err(ProtocolNameError::TooLong { .. }) => {
                panic!("a name must not be longer than 64 bytes")
            }
            Err(ProtocolNameError::NotGraphic { .. }) => {
                panic!("a name must be made of ASCII from `!` to `~`")
            }
        }
    }

    /// The text of the name.
    pub fn as_str(&self) -> &str {
        match &self.0 {
            Text::Constant(text) => text,
            Text::Shared(text) => text,
        }
    }

    /// Whether the name belongs to the library, so that no app may serve it.
    pub fn is_reserved(&self) -> bool {
        self.as_str().starts_with(Self::RESERVED_PREFIX)
    }
}

const fn check(text: &str) -> Result<(), ProtocolNameError> {
    let len = text.len();
    if len == 0 {
        return Err(ProtocolNameError::Empty);
    }
    if len > ProtocolName::MAX_LEN {
        return Err(ProtocolNameError::TooLong { len });
    }
    let mut bytes = text.as_bytes();
    while let [byte, rest @ ..] = bytes {
        if !byte.is_ascii_graphic() {
            return Err(ProtocolNameError::NotGraphic { byte: *byte });
        }
        bytes = rest;
    }
    Ok(())
}

impl fmt::Display for ProtocolName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for ProtocolName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ProtocolName({self})")
    }
}

impl AsRef<str> for ProtocolName {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

/// Lets maps keyed by name be asked with a `&str`; equality, order and hash are those of the text.
impl Borrow<str> for ProtocolName {
    fn borrow(&self) -> &str {
        self.as_str()
    }
}

impl PartialEq for ProtocolName {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for ProtocolName {}

impl PartialOrd for ProtocolName {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ProtocolName {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.as_str().cmp(other.as_str())
    }
}

impl Hash for ProtocolName {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_str().hash(state);
    }
}

impl FromStr for ProtocolName {
    type Err = ProtocolNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::new(text)
    }
}

impl TryFrom<&str> for ProtocolName {
    type Error = ProtocolNameError;

    fn try_from(text: &str) -> Result<Self, Self::Error> {
        Self::new(text)
    }
}

impl Serialize for ProtocolName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for ProtocolName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(NameVisitor)
    }
}

/// Checks the text where it lies, so that an invalid one is never copied.
struct NameVisitor;

impl Visitor<'_> for NameVisitor {
    type Value = ProtocolName;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a protocol name of 1 to 64 printable ASCII characters")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
        ProtocolName::new(text).map_err(E::custom)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, HashMap};

    use super::*;

    const ECHO: ProtocolName = ProtocolName::from_static("my-app/echo/1");

    fn dialler() -> EndpointId {
        iroh_base::SecretKey::from_bytes(&[7; 32]).public()
    }

    #[test]
    fn a_network_id_is_the_same_in_every_release() {
        let id = NetworkId::from_name("my-app");
        assert_eq!(id.to_string(), "82736b82d12216b78dae1de9da437287");
    }

    #[test]
    fn a_network_id_is_not_the_bare_hash_of_its_name() {
        let bare = blake3::hash(b"my-app");
        assert_ne!(NetworkId::from_name("my-app").as_bytes(), &bare.as_bytes()[..16]);
    }

    #[test]
    fn names_that_differ_only_in_case_are_two_networks() {
        assert_ne!(NetworkId::from_name("my-app"), NetworkId::from_name("My-app"));
    }

    #[test]
    fn the_alpn_is_the_prefix_and_32_lower_case_hex_digits() {
        let id = NetworkId::from_bytes(*b"\x00\x01\x0f\x10\xab\xcd\xef\xff89abcdef");
        assert_eq!(id.alpn(), b"kinfolk/1/00010f10abcdefff3839616263646566");
    }

    #[test]
    fn an_incarnation_shows_all_of_its_digits() {
        assert_eq!(Incarnation::new(0xbeef).to_string(), "000000000000beef");
        assert_eq!(Incarnation::new(u64::MAX).get(), u64::MAX);
    }

    #[test]
    fn a_link_id_shows_short() {
        let incarnation = Incarnation::new(0x0123_4567_89ab_cdef);
        let link = LinkId { dialler: dialler(), incarnation, n: 12 };
        let short = dialler().fmt_short().to_string();
        assert_eq!(link.to_string(), format!("{short}/89abcdef#12"));
    }

    #[test]
    fn later_links_of_one_incarnation_are_larger() {
        let incarnation = Incarnation::new(3);
        let link = |n| LinkId { dialler: dialler(), incarnation, n };
        assert!(link(2) < link(10));
    }

    #[test]
    fn a_constant_and_a_parsed_name_are_the_same_name() {
        let parsed: ProtocolName = "my-app/echo/1".parse().unwrap();
        assert_eq!(parsed, ECHO);
        assert_eq!(BTreeSet::from([parsed.clone(), ECHO]).len(), 1);
        let table = HashMap::from([(parsed, 1)]);
        assert_eq!(table.get(&ECHO), Some(&1));
        assert_eq!(table.get("my-app/echo/1"), Some(&1));
    }

    #[test]
    fn a_name_has_1_to_64_bytes() {
        assert_eq!(ProtocolName::new(""), Err(ProtocolNameError::Empty));
        assert!(ProtocolName::new("a").is_ok());
        assert!(ProtocolName::new("a".repeat(64)).is_ok());
        assert_eq!(ProtocolName::new("a".repeat(65)), Err(ProtocolNameError::TooLong { len: 65 }));
    }

    #[test]
    fn a_name_is_printable_ascii_without_spaces() {
        assert!(ProtocolName::new("!~").is_ok());
        for (text, byte) in [("a b", b' '), ("a\0", 0), ("\x7f", 0x7f), ("é", 0xc3), ("a\n", b'\n')]
        {
            assert_eq!(ProtocolName::new(text), Err(ProtocolNameError::NotGraphic { byte }));
        }
    }

    #[test]
    #[should_panic(expected = "must not be empty")]
    fn a_constant_name_that_is_invalid_panics() {
        let _ = ProtocolName::from_static("");
    }

    #[test]
    fn only_names_below_kinfolk_are_reserved() {
        for (text, reserved) in
            [("kinfolk/exchange/1", true), ("kinfolk", false), ("my/kinfolk/", false)]
        {
            assert_eq!(ProtocolName::new(text).unwrap().is_reserved(), reserved, "{text}");
        }
    }

    #[test]
    fn a_name_is_checked_when_it_is_decoded() {
        let bytes = postcard::to_allocvec(&ECHO).unwrap();
        assert_eq!(bytes, b"\x0dmy-app/echo/1");
        assert_eq!(postcard::from_bytes::<ProtocolName>(&bytes).unwrap(), ECHO);
        for invalid in [&b"\x00"[..], b"\x02a ", b"\x02\xc3\xa9", b"\x01\xff", b"\x05abc"] {
            assert!(postcard::from_bytes::<ProtocolName>(invalid).is_err(), "{invalid:?}");
        }
    }
}
