//! What a stream and its items are called, for producers and consumers that may run different versions of an app.
//!
//! A stream has a name, by which consumers find its producers. Its items have a schema, which the app names and numbers
//! itself: the name of a Rust type is nothing that two builds agree on. Two nodes understand each other if both are equal;
//! this module never compares versions in any other way.

use std::fmt;

use crate::id::{ProtocolName, ProtocolNameError};

/// Why a text is no name of a stream or schema: the rules are those of [`ProtocolName`].
pub type NameError = ProtocolNameError;

/// The name of a stream: 1 to 64 printable ASCII characters without spaces, such as `my-app/quotes`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamName(ProtocolName);

impl StreamName {
    /// The longest name, in bytes.
    pub const MAX_LEN: usize = ProtocolName::MAX_LEN;

    /// The name with this text.
    ///
    /// # Errors
    ///
    /// [`NameError`] says what is wrong with the text.
    pub fn new(text: impl AsRef<str>) -> Result<Self, NameError> {
        ProtocolName::new(text).map(Self)
    }

    /// The name with this text, for constants.
    ///
    /// # Panics
    ///
    /// If the text is no valid name. In a `const` or `static` item that is an error of compilation.
    #[must_use]
    pub const fn from_static(text: &'static str) -> Self {
        Self(ProtocolName::from_static(text))
    }

    /// The text of the name.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl fmt::Display for StreamName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl AsRef<str> for StreamName {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

impl std::borrow::Borrow<str> for StreamName {
    fn borrow(&self) -> &str {
        self.as_str()
    }
}

impl std::str::FromStr for StreamName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::new(text)
    }
}

impl TryFrom<&str> for StreamName {
    type Error = NameError;

    fn try_from(text: &str) -> Result<Self, NameError> {
        Self::new(text)
    }
}

/// What the items of a stream are, as the app names and numbers it; it shows as `quote/3`.
///
/// ```
/// # use kinfolk_core::stream::Schema;
/// const QUOTE: Schema = Schema::new("quote", 3);
/// assert_eq!(QUOTE.to_string(), "quote/3");
/// ```
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Schema {
    name: ProtocolName,
    version: u32,
}

impl Schema {
    /// The longest name, in bytes.
    pub const NAME_MAX: usize = ProtocolName::MAX_LEN;

    /// The schema of this name and version, for constants. A name follows the rules of [`StreamName`].
    ///
    /// # Panics
    ///
    /// If the text is no valid name. In a `const` or `static` item that is an error of compilation.
    #[must_use]
    pub const fn new(name: &'static str, version: u32) -> Self {
        Self { name: ProtocolName::from_static(name), version }
    }

    /// The schema of this name and version.
    ///
    /// # Errors
    ///
    /// [`NameError`] says what is wrong with the name.
    pub fn try_new(name: impl AsRef<str>, version: u32) -> Result<Self, NameError> {
        Ok(Self { name: ProtocolName::new(name)?, version })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.name.as_str()
    }

    /// Its version. Versions have no order here: one that differs is another schema.
    pub const fn version(&self) -> u32 {
        self.version
    }
}

impl fmt::Display for Schema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.name, self.version)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    const QUOTES: StreamName = StreamName::from_static("my-app/quotes");
    const QUOTE: Schema = Schema::new("quote", 3);

    #[test]
    fn a_constant_and_a_parsed_name_are_the_same_stream() {
        let parsed: StreamName = "my-app/quotes".parse().unwrap();
        assert_eq!(parsed, QUOTES);
        assert_eq!(HashMap::from([(parsed, 1)]).get("my-app/quotes"), Some(&1));
    }

    #[test]
    fn a_stream_is_named_by_the_rules_of_protocols() {
        assert_eq!(StreamName::new(""), Err(NameError::Empty));
        assert_eq!(StreamName::new("a".repeat(65)), Err(NameError::TooLong { len: 65 }));
        assert_eq!(StreamName::try_from("a b"), Err(NameError::NotGraphic { byte: b' ' }));
        assert_eq!(StreamName::new("~".repeat(64)).unwrap().as_str().len(), StreamName::MAX_LEN);
    }

    #[test]
    fn a_schema_is_its_name_and_version() {
        assert_eq!(QUOTE.to_string(), "quote/3");
        assert_eq!((QUOTE.name(), QUOTE.version()), ("quote", 3));
        assert_eq!(Schema::try_new(String::from("quote"), 3), Ok(QUOTE));
        assert_ne!(Schema::new("quote", 4), QUOTE);
        assert_ne!(Schema::new("quotes", 3), QUOTE);
    }

    #[test]
    fn a_schema_is_named_by_the_rules_of_protocols() {
        assert_eq!(Schema::try_new("", 0), Err(NameError::Empty));
        assert_eq!(Schema::try_new("é", 0), Err(NameError::NotGraphic { byte: 0xc3 }));
    }

    #[test]
    #[should_panic(expected = "must not be empty")]
    fn a_constant_schema_without_a_name_panics() {
        let _ = Schema::new("", 1);
    }
}
