//! Ranges of ids, and what is said of them in a message of an exchange.

use super::super::frame::{FrameError, Reader, Writer};
use super::{IdBytes, LIST_MAX, LISTED_MAX, check_count};
use crate::reconcile::Version;
use crate::record::Seq;

const BOUND: &str = "bound";
const LIST: &str = "list";

/// Ids from the end of the range before, or from the first, up to a bound.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Range {
    /// The bound, which does not belong to the range.
    pub upper: Bound,
    /// What is said of it.
    pub said: Said,
}

/// The end of a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Bound {
    /// This place in the order of ids, which is not the first. Zeros at its end are not sent.
    At(IdBytes),
    /// Behind the last.
    End,
}

/// What is said of a range.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Said {
    /// Nothing.
    Skip,
    /// The sum of the hashes of what the sender knows there, modulo 2^64. Answered if it differs.
    Sum(u64),
    /// All that the sender knows there, by id; at most [`LIST_MAX`]. Answered with records and wants.
    List(Vec<Listed>),
}

/// One record that the sender of a list knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Listed {
    /// Whose it is.
    pub tag: Tag,
    /// Which of this node's it is.
    pub version: Version,
}

/// 31 bits of the keyed hash of an id: enough to tell apart what is in one range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag(u32);

impl Tag {
    /// The tag of an id with this hash: its highest bits.
    pub const fn from_hash(hash: u64) -> Self {
        Self((hash >> 33) as u32)
    }
}

/// What goes on from list to list of one message: numbers are written as the difference to the one before, as most nodes
/// count in Unix milliseconds.
#[derive(Default)]
pub(super) struct Lists {
    seq: u64,
    count: usize,
}

impl Range {
    const SKIP: u8 = 0;
    const SUM: u8 = 1;
    const LIST: u8 = 2;

    /// No fewer bytes than it takes.
    pub(crate) fn size(&self) -> usize {
        let said = match &self.said {
            Said::Skip => 1,
            Said::Sum(_) => 9,
            // Count, tag and number each as long as can be.
            Said::List(list) => list.len().saturating_mul(14).saturating_add(2),
        };
        self.upper.prefix().len().saturating_add(1).saturating_add(said)
    }

    pub(super) fn write(&self, writer: &mut Writer, lists: &mut Lists) -> Result<(), FrameError> {
        let prefix = self.upper.prefix();
        writer.field(BOUND, &prefix.len())?;
        writer.raw(prefix);
        match &self.said {
            Said::Skip => writer.field("range", &Self::SKIP),
            Said::Sum(sum) => {
                writer.field("range", &Self::SUM)?;
                writer.raw(&sum.to_be_bytes());
                Ok(())
            }
            Said::List(list) => {
                check_count(LIST, list.len(), LIST_MAX, "at most 32")?;
                lists.add(list.len())?;
                writer.field("range", &Self::LIST)?;
                writer.field(LIST, &list.len())?;
                list.iter().try_for_each(|listed| listed.write(writer, lists))
            }
        }
    }

    pub(super) fn read(reader: &mut Reader<'_>, lists: &mut Lists) -> Result<Self, FrameError> {
        let upper = Bound::from_prefix(reader.field(BOUND)?)?;
        let said = match reader.field("range")? {
            Self::SKIP => Said::Skip,
            Self::SUM => Said::Sum(u64::from_be_bytes(reader.field("sum")?)),
            Self::LIST => {
                let count = reader.count(LIST, LIST_MAX, "at most 32")?;
                lists.add(count)?;
                let mut list = Vec::with_capacity(count.min(reader.left() / 5));
                for _ in 0..count {
                    list.push(Listed::read(reader, lists)?);
                }
                Said::List(list)
            }
            kind => {
                return Err(FrameError::InvalidField {
                    field: "range",
                    expected: "0, 1 or 2",
                    came: u8::into(kind),
                });
            }
        };
        Ok(Self { upper, said })
    }
}

impl Lists {
    fn add(&mut self, count: usize) -> Result<(), FrameError> {
        self.count = self.count.saturating_add(count);
        check_count("lists", self.count, LISTED_MAX, "at most 8192 in all")
    }
}

impl Listed {
    fn write(&self, writer: &mut Writer, lists: &mut Lists) -> Result<(), FrameError> {
        let Version { seq, is_departure } = self.version;
        writer.raw(&((self.tag.0 << 1) | u32::from(is_departure)).to_be_bytes());
        let step = seq.get().wrapping_sub(lists.seq).cast_signed();
        lists.seq = seq.get();
        writer.field("seq", &step)
    }

    fn read(reader: &mut Reader<'_>, lists: &mut Lists) -> Result<Self, FrameError> {
        let tag = u32::from_be_bytes(reader.field("tag")?);
        let step: i64 = reader.field("seq")?;
        lists.seq = lists.seq.wrapping_add(step.cast_unsigned());
        let version = Version { seq: Seq::new(lists.seq), is_departure: tag & 1 == 1 };
        Ok(Self { tag: Tag(tag >> 1), version })
    }
}

impl Bound {
    /// The bytes that are sent: those up to the last that is not zero; none for the end.
    fn prefix(&self) -> &[u8] {
        match self {
            Self::At(id) => {
                let len =
                    id.iter().rposition(|byte| *byte != 0).map_or(0, |at| at.saturating_add(1));
                id.get(..len).unwrap_or_default()
            }
            Self::End => &[],
        }
    }

    fn from_prefix(prefix: &[u8]) -> Result<Self, FrameError> {
        let mut id = [0; 32];
        match id.get_mut(..prefix.len()) {
            Some([]) => Ok(Self::End),
            Some(start) => {
                start.copy_from_slice(prefix);
                Ok(Self::At(id))
            }
            None => Err(FrameError::InvalidField {
                field: BOUND,
                expected: "at most 32 bytes",
                came: u64::try_from(prefix.len()).unwrap_or(u64::MAX),
            }),
        }
    }
}
