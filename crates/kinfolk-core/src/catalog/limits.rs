//! What a [`Catalog`](super::Catalog) holds, each number with its unit and its reason.

/// What a [`Catalog`](super::Catalog) holds. Zeros are refused by [`validate`](Self::validate); a catalog built with them
/// all the same keeps nothing where they stand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CatalogLimits {
    /// Records of other nodes. Default 10 000: full membership of a network up to that size, at some 250 bytes each beside the record's own; a sample
    /// of a larger one. Refreshing them all every ten minutes costs 3.3 KB/s.
    pub records: usize,
    /// Dead records remembered, so that nobody revives them: expired, departed, forgotten. About 250 bytes each,
    /// a tombstone that is still passed on some 400 more. Default 20 000, twice the records: all of them may die and be
    /// replaced once within the memory of [`DEAD_MEMORY`](super::DEAD_MEMORY) (a guess).
    pub dead: usize,
}

impl Default for CatalogLimits {
    fn default() -> Self {
        Self { records: 10_000, dead: 20_000 }
    }
}

/// Beyond this many records, the memory and the time that a catalog takes are no longer those of a small machine.
const MOST: usize = 1 << 20;

impl CatalogLimits {
    /// Checks that a catalog can hold something, and that what it holds fits into memory.
    ///
    /// # Errors
    ///
    /// Names the first field that does not.
    pub fn validate(&self) -> Result<(), CatalogLimitError> {
        for (field, count) in [("records", self.records), ("dead", self.dead)] {
            if count == 0 {
                return Err(CatalogLimitError::Zero { field });
            }
            if count > MOST {
                return Err(CatalogLimitError::TooLarge { field });
            }
        }
        Ok(())
    }
}

/// Why [`CatalogLimits`] cannot be used. The app's configuration is to blame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CatalogLimitError {
    /// The catalog would keep nothing.
    #[error("catalog limit `{field}` must be above zero")]
    Zero {
        /// The field of [`CatalogLimits`].
        field: &'static str,
    },
    /// The catalog would not fit into memory.
    #[error("catalog limit `{field}` must not exceed {MOST}")]
    TooLarge {
        /// The field of [`CatalogLimits`].
        field: &'static str,
    },
}
