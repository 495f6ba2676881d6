//! The messages of an exchange: what two nodes say on a stream of their own until both know what either knew.
//!
//! The initiator begins with [`Message::Open`], the responder answers with [`Message::Accept`], and from then on both
//! take turns with [`Message::Turn`]. What a message means is decided by [`exchange`](crate::exchange); this module holds
//! what it may look like, and how much.
//!
//! A message is framed as all are, with a body of at most [`MESSAGE_MAX`] bytes: a kind byte, the fields, extensions. Records
//! travel as the signed bytes that they are, unverified.

use std::time::Duration;

use super::extension::Extensions;
use super::frame::{self, FrameError, Reader, Writer};
use crate::reconcile::Salt;
use crate::record::{RECORD_MAX, Ttl};

mod range;
#[cfg(test)]
mod tests;

use range::Lists;
pub use range::{Bound, Listed, Range, Said, Tag};

/// The longest body of a message: what a reader allocates at once. Sixteen of them are the default budget of an exchange.
pub const MESSAGE_MAX: usize = 64 * 1024;

/// The most messages that each side sends in one exchange. A catalog of a million is compared in six; the rest is room to send what
/// differs.
pub const TURNS_MAX: u32 = 32;

/// The least that each side must be ready to take in one exchange, in bytes, prefixes included: two full messages, so that the
/// first fits before it is known how many the other side takes.
pub const ACCEPTS_MIN: u32 = 128 * 1024;

/// The most ranges in one message. A reader holds about 64 bytes for each, and may have to remember most until the exchange is over.
pub const RANGES_MAX: usize = 512;

/// The most that one range lists. Writers of this version list at most 8; the rest is room to tune.
pub const LIST_MAX: usize = 32;

/// The most that all ranges of one message list, and so the most that the answer can want.
pub const LISTED_MAX: usize = 8192;

/// The most records in one message: a few more than fit, given what the smallest takes.
pub const RECORDS_MAX: usize = 512;

/// The most tokens that a side sends.
pub const TOKENS_MAX: usize = 64;

/// The fewest bytes of a record: version, signature, id and network.
const RECORD_MIN: usize = 113;

const RANGES: &str = "ranges";
const WANTS: &str = "wants";
const RECORDS: &str = "records";
const TOKENS: &str = "tokens";
const AGE: &str = "age";
const ACCEPTS: &str = "accepts";

/// The bytes of an id, as a place in the order of ids.
pub type IdBytes = [u8; 32];

/// A token: opaque here.
pub type Token = [u8; 16];

/// At most [`TOKENS_MAX`] tokens, which each side shows the other in its first message.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Tokens(Vec<Token>);

/// More tokens than [`TOKENS_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected at most {TOKENS_MAX} tokens, came {count}")]
pub struct TooManyTokens {
    /// How many.
    pub count: usize,
}

impl Tokens {
    /// No tokens.
    pub const fn none() -> Self {
        Self(Vec::new())
    }

    /// The tokens.
    pub fn as_slice(&self) -> &[Token] {
        &self.0
    }

    /// The tokens.
    pub fn into_inner(self) -> Vec<Token> {
        self.0
    }
}

impl TryFrom<Vec<Token>> for Tokens {
    type Error = TooManyTokens;

    fn try_from(tokens: Vec<Token>) -> Result<Self, TooManyTokens> {
        let count = tokens.len();
        if count > TOKENS_MAX { Err(TooManyTokens { count }) } else { Ok(Self(tokens)) }
    }
}

/// One message of an exchange.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Message {
    /// The initiator's first.
    Open {
        /// The key of all hashes in this exchange.
        salt: Salt,
        /// What a first message says of its sender.
        greeting: Greeting,
        /// What every message says.
        turn: Turn,
    },
    /// The responder's first.
    Accept {
        /// What a first message says of its sender.
        greeting: Greeting,
        /// What every message says.
        turn: Turn,
    },
    /// Any later one.
    Turn(Turn),
}

/// What each side says of itself in its first message.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Greeting {
    /// How many bytes the other side may send in this exchange, prefixes included; at least [`ACCEPTS_MIN`].
    pub accepts: u32,
    /// Opaque tokens.
    pub tokens: Tokens,
}

/// What every message says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Turn {
    /// The ids from the first on, range by range; those behind the last range are not spoken of. At most [`RANGES_MAX`].
    pub ranges: Vec<Range>,
    /// Which of those that the other side's last message listed are wanted, by their place in it, rising.
    pub wants: Vec<u16>,
    /// Records for the other side; at most [`RECORDS_MAX`].
    pub records: Vec<Relayed>,
    /// What its sender has left.
    pub rest: Rest,
    /// What later versions add.
    pub extensions: Extensions,
}

/// A record that is passed on, unverified.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Relayed {
    /// How old it is, in milliseconds, rounded up; at most [`Ttl::MAX`].
    pub age_ms: u32,
    /// The record as it was signed, 113 to [`RECORD_MAX`] bytes.
    pub bytes: Vec<u8>,
}

impl Relayed {
    const AGE_MAX: u32 = Ttl::MAX.as_secs().saturating_mul(1000);

    /// A record of this age. One that is older than any may be gets the largest age.
    pub fn new(age: Duration, bytes: &[u8]) -> Self {
        let age_ms = age.as_nanos().div_ceil(1_000_000);
        let age_ms = u32::try_from(age_ms).unwrap_or(u32::MAX).min(Self::AGE_MAX);
        Self { age_ms, bytes: bytes.to_vec() }
    }

    /// How old it is.
    pub const fn age(&self) -> Duration {
        Duration::from_millis(self.age_ms as u64)
    }
}

/// What the sender of a message has left to say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Rest {
    /// Nothing.
    #[default]
    Nothing,
    /// More, in its next turn.
    More,
    /// More, which it will not say in this exchange, as a budget is used up. It answers nothing any more.
    Cut,
}

impl Turn {
    /// Whether it has to be answered.
    pub fn asks(&self) -> bool {
        let is_open = |range: &Range| range.said != Said::Skip;
        self.rest == Rest::More || !self.wants.is_empty() || self.ranges.iter().any(is_open)
    }

    fn write(&self, writer: &mut Writer) -> Result<(), FrameError> {
        check_count(RANGES, self.ranges.len(), RANGES_MAX, "at most 512")?;
        check_count(WANTS, self.wants.len(), LISTED_MAX, "at most 8192")?;
        check_count(RECORDS, self.records.len(), RECORDS_MAX, "at most 512")?;
        writer.field(RANGES, &self.ranges.len())?;
        let mut lists = Lists::default();
        for range in &self.ranges {
            range.write(writer, &mut lists)?;
        }
        writer.field(WANTS, &self.wants.len())?;
        let mut least = 0_u16;
        for want in &self.wants {
            check_want(*want)?;
            let gap = want.checked_sub(least).ok_or(not_rising(WANTS, u64::from(*want)))?;
            writer.field(WANTS, &gap)?;
            least = want.saturating_add(1);
        }
        writer.field(RECORDS, &self.records.len())?;
        for record in &self.records {
            record.check()?;
            writer.field(AGE, &record.age_ms)?;
            writer.field("record length", &record.bytes.len())?;
            writer.raw(&record.bytes);
        }
        writer.field("rest", &self.rest.to_byte())?;
        writer.extensions(&self.extensions);
        Ok(())
    }

    fn read(mut reader: Reader<'_>) -> Result<Self, FrameError> {
        let count = reader.count(RANGES, RANGES_MAX, "at most 512")?;
        // A range has two bytes at least. Room is made for no more than can follow.
        let mut ranges = Vec::with_capacity(count.min(reader.left() / 2));
        let mut lists = Lists::default();
        let mut last = None;
        for _ in 0..count {
            let range = Range::read(&mut reader, &mut lists)?;
            if last.is_some_and(|last| last >= range.upper) {
                return Err(not_rising("bound", u64::try_from(ranges.len()).unwrap_or(u64::MAX)));
            }
            last = Some(range.upper);
            ranges.push(range);
        }
        let count = reader.count(WANTS, LISTED_MAX, "at most 8192")?;
        let mut wants = Vec::with_capacity(count.min(reader.left()));
        let mut least = 0_u16;
        for _ in 0..count {
            let gap: u16 = reader.field(WANTS)?;
            let want = least.saturating_add(gap);
            check_want(want)?;
            wants.push(want);
            least = want.saturating_add(1);
        }
        let count = reader.count(RECORDS, RECORDS_MAX, "at most 512")?;
        let mut records = Vec::with_capacity(count.min(reader.left() / RECORD_MIN));
        for _ in 0..count {
            let age_ms = reader.field(AGE)?;
            let bytes: &[u8] = reader.field("record")?;
            let record = Relayed { age_ms, bytes: Vec::new() };
            record.check_len(bytes.len())?;
            records.push(Relayed { bytes: bytes.to_vec(), ..record });
        }
        let rest = Rest::from_byte(reader.field("rest")?)?;
        let extensions = reader.extensions()?;
        Ok(Self { ranges, wants, records, rest, extensions })
    }
}

impl Message {
    const OPEN: u8 = 0;
    const ACCEPT: u8 = 1;
    const TURN: u8 = 2;

    /// What every message says.
    pub const fn turn(&self) -> &Turn {
        match self {
            Self::Open { turn, .. } | Self::Accept { turn, .. } | Self::Turn(turn) => turn,
        }
    }

    /// The whole frame, prefix included.
    ///
    /// # Errors
    ///
    /// [`FrameError`] names what is beyond its bounds.
    pub fn encode(&self) -> Result<Vec<u8>, FrameError> {
        frame::encode_frame(&self.encode_body()?, MESSAGE_MAX)
    }

    /// The message with this body, which comes without its prefix. Reading one allocates at most eight times its bytes and 72 KiB.
    ///
    /// # Errors
    ///
    /// [`FrameError`] says what is wrong with the bytes.
    pub fn decode(body: &[u8]) -> Result<Self, FrameError> {
        frame::check_body(body, MESSAGE_MAX)?;
        let mut reader = Reader::new(body);
        let message = match reader.field("kind")? {
            Self::OPEN => {
                let salt = Salt::from_bytes(reader.field("salt")?);
                let greeting = Greeting::read(&mut reader)?;
                Self::Open { salt, greeting, turn: Turn::read(reader)? }
            }
            Self::ACCEPT => {
                let greeting = Greeting::read(&mut reader)?;
                Self::Accept { greeting, turn: Turn::read(reader)? }
            }
            Self::TURN => Self::Turn(Turn::read(reader)?),
            kind => {
                return Err(FrameError::InvalidField {
                    field: "kind of message",
                    expected: "0, 1 or 2",
                    came: kind.into(),
                });
            }
        };
        frame::check_canonical(body, &message.encode_body()?)?;
        Ok(message)
    }

    fn encode_body(&self) -> Result<Vec<u8>, FrameError> {
        let mut writer = Writer::default();
        match self {
            Self::Open { salt, greeting, turn } => {
                writer.field("kind", &Self::OPEN)?;
                writer.raw(salt.as_bytes());
                greeting.write(&mut writer)?;
                turn.write(&mut writer)?;
            }
            Self::Accept { greeting, turn } => {
                writer.field("kind", &Self::ACCEPT)?;
                greeting.write(&mut writer)?;
                turn.write(&mut writer)?;
            }
            Self::Turn(turn) => {
                writer.field("kind", &Self::TURN)?;
                turn.write(&mut writer)?;
            }
        }
        Ok(writer.finish())
    }
}

impl Greeting {
    fn write(&self, writer: &mut Writer) -> Result<(), FrameError> {
        check_accepts(self.accepts)?;
        writer.field(ACCEPTS, &self.accepts)?;
        writer.field(TOKENS, &self.tokens.0.len())?;
        self.tokens.0.iter().for_each(|token| writer.raw(token));
        Ok(())
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, FrameError> {
        let accepts = reader.field(ACCEPTS)?;
        check_accepts(accepts)?;
        let count = reader.count(TOKENS, TOKENS_MAX, "at most 64")?;
        let tokens = (0..count).map(|_| reader.field(TOKENS)).collect::<Result<_, _>>()?;
        Ok(Self { accepts, tokens: Tokens(tokens) })
    }
}

fn check_accepts(accepts: u32) -> Result<(), FrameError> {
    if accepts < ACCEPTS_MIN {
        return Err(FrameError::InvalidField {
            field: ACCEPTS,
            expected: "at least 131072",
            came: accepts.into(),
        });
    }
    Ok(())
}

fn check_count(
    field: &'static str,
    count: usize,
    max: usize,
    expected: &'static str,
) -> Result<(), FrameError> {
    if count > max {
        let came = u64::try_from(count).unwrap_or(u64::MAX);
        return Err(FrameError::InvalidField { field, expected, came });
    }
    Ok(())
}

/// Larger ones name nothing, as no message lists so many.
fn check_want(want: u16) -> Result<(), FrameError> {
    let least_too_large = usize::from(want).saturating_add(1);
    check_count(WANTS, least_too_large, LISTED_MAX, "each below 8192")
}

fn not_rising(field: &'static str, came: u64) -> FrameError {
    FrameError::InvalidField { field, expected: "each larger than the one before", came }
}

impl Relayed {
    /// No fewer bytes than it takes.
    pub(crate) fn size(&self) -> usize {
        self.bytes.len().saturating_add(6)
    }

    fn check(&self) -> Result<(), FrameError> {
        self.check_len(self.bytes.len())
    }

    fn check_len(&self, len: usize) -> Result<(), FrameError> {
        let invalid = |field, expected, came| FrameError::InvalidField { field, expected, came };
        if self.age_ms > Self::AGE_MAX {
            return Err(invalid(AGE, "at most 86400000", self.age_ms.into()));
        }
        if !(RECORD_MIN..=RECORD_MAX).contains(&len) {
            let came = u64::try_from(len).unwrap_or(u64::MAX);
            return Err(invalid("record length", "113 to 1024", came));
        }
        Ok(())
    }
}

impl Rest {
    const fn to_byte(self) -> u8 {
        match self {
            Self::Nothing => 0,
            Self::More => 1,
            Self::Cut => 2,
        }
    }

    fn from_byte(byte: u8) -> Result<Self, FrameError> {
        match byte {
            0 => Ok(Self::Nothing),
            1 => Ok(Self::More),
            2 => Ok(Self::Cut),
            other => Err(FrameError::InvalidField {
                field: "rest",
                expected: "0, 1 or 2",
                came: other.into(),
            }),
        }
    }
}
