//! What a stream carries.

use kinfolk_core::stream::Schema;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A value that producers send and consumers receive, as postcard.
///
/// It names its schema itself, since no name of a Rust type is the same in every program. A consumer whose schema differs from the producer's in name or version is refused, with
/// both schemas in the error: raise the version whenever what postcard writes changes.
///
/// ```
/// use kinfolk::{Item, Schema};
///
/// #[derive(serde::Serialize, serde::Deserialize)]
/// struct Quote {
///     symbol: String,
///     cents: u64,
/// }
///
/// impl Item for Quote {
///     const SCHEMA: Schema = Schema::new("quote", 1);
/// }
/// ```
pub trait Item: Serialize + DeserializeOwned + Send + 'static {
    /// Its schema.
    const SCHEMA: Schema;
}
