//! What both sides send.

use std::fmt;

use kinfolk::{Item, Schema};
use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A number and some bytes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Blob {
    /// Counts up.
    pub number: u64,
    /// The rest.
    pub bytes: Bytes,
}

impl Blob {
    /// A blob that takes about so many bytes as postcard.
    pub fn new(size: usize) -> Self {
        Self { number: 0, bytes: Bytes(vec![7; size.saturating_sub(4)]) }
    }
}

impl Item for Blob {
    const SCHEMA: Schema = Schema::new("blob", 1);
}

/// Bytes that are written and read as such; a plain `Vec<u8>` goes byte by byte.
#[derive(Debug, Clone)]
pub struct Bytes(pub Vec<u8>);

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reading;

        impl Visitor<'_> for Reading {
            type Value = Bytes;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }

            fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Bytes, E> {
                Ok(Bytes(bytes.to_vec()))
            }
        }

        deserializer.deserialize_bytes(Reading)
    }
}
