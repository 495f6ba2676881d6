//! What a record says that a node is interested in or offers: 16-byte hashes of names that apps choose.
//!
//! Hashes keep records small and of bounded size, whatever the names. They hide nothing from whoever can guess a name.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::id::ProtocolName;
use crate::stream::StreamName;

/// Defines a 16-byte tag that is derived from a name. Two kinds of tag never mix: each has a type and a context of its own.
macro_rules! tag {
    ($(#[$doc:meta])* $tag:ident, $context:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $tag([u8; 16]);

        impl $tag {
            /// The tag of this name. The name's UTF-8 bytes count as they are: case and Unicode form matter.
            pub fn from_name(name: &str) -> Self {
                let mut tag = [0; 16];
                blake3::Hasher::new_derive_key($context)
                    .update(name.as_bytes())
                    .finalize_xof()
                    .fill(&mut tag);
                Self(tag)
            }

            /// The tag with these bytes.
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(bytes)
            }

            /// The bytes of the tag.
            pub const fn as_bytes(&self) -> &[u8; 16] {
                &self.0
            }
        }

        impl fmt::Display for $tag {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $tag {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($tag), "({})"), self)
            }
        }
    };
}

tag! {
    /// A subject that a node takes part in.
    Topic, "kinfolk topic"
}

tag! {
    /// A stream that a node produces, or a protocol that it serves.
    Offer, "kinfolk offered stream"
}

impl Offer {
    /// The tag of a node that produces this stream, whatever the schema: a consumer of another one learns so when it asks.
    pub fn stream(name: &StreamName) -> Self {
        Self::of("stream", name.as_str())
    }

    /// The tag of a node that serves this protocol and wants to be found by it.
    pub fn protocol(name: &ProtocolName) -> Self {
        Self::of("protocol", name.as_str())
    }

    /// Names contain no spaces, so what stands before the first one tells the kinds apart.
    fn of(kind: &str, name: &str) -> Self {
        Self::from_name(&format!("{kind} {name}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_the_same_in_every_release() {
        assert_eq!(Topic::from_name("weather").to_string(), "59a99cc4f17568f141c340d818a50f3d");
        assert_eq!(Offer::from_name("readings").to_string(), "781a02d5854eca12858f0f8859091d50");
    }

    #[test]
    fn a_topic_and_an_offer_of_one_name_have_different_bytes() {
        assert_ne!(Topic::from_name("a").as_bytes(), Offer::from_name("a").as_bytes());
    }

    #[test]
    fn a_stream_and_a_protocol_of_one_name_are_two_offers() {
        let stream = Offer::stream(&StreamName::from_static("quotes"));
        let protocol = Offer::protocol(&ProtocolName::from_static("quotes"));
        assert_eq!(stream.to_string(), "7932e79d9ca781f7b74bed4d2410e620");
        assert_eq!(protocol.to_string(), "67c213b6bb8f7704c36fb69dbacd62b3");
        assert!(![stream, protocol].contains(&Offer::from_name("quotes")));
    }

    #[test]
    fn a_tag_says_which_kind_it_is() {
        assert_eq!(
            format!("{:?}", Topic::from_bytes([0xab; 16])),
            "Topic(abababababababababababababababab)"
        );
    }
}
