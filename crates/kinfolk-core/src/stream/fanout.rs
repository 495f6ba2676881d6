//! What a producer has sent and its subscribers have not: one log of encoded items for all of them.
//!
//! An item is encoded once and lies in one place, however many subscribers there are; each has no more than a position in the log, and takes what lies
//! behind it as slices. The log holds the latest items within its bounds, whether or not anybody is behind, so that whoever comes back after a lost link
//! goes on where it was. What happens when a subscriber is as far behind as the log reaches is the producer's choice, [`WhenFull`]. Where newer items take
//! the place of older ones of the same key, the log holds the latest item of each key instead ([`Latest`]). Where newcomers are to get these first, it holds both: whoever
//! comes back from before the log's beginning then gets the latest items of keys up to there, as a newcomer does.
//!
//! It decides who gets what next. It never waits, writes to nobody and knows no time.

use std::collections::{BTreeMap, VecDeque};

use bytes::{Bytes, BytesMut};
use thiserror::Error;

use super::latest::{KeyError, Latest};
use super::subscribers::SubscriberId;
use crate::wire::subscription::{Channel, HEAD_BYTES, Head, item_head};

mod limits;

pub use limits::{DATAGRAM_ITEM_MAX, FanoutLimitError, FanoutLimits, Replay, WhenFull};

/// Small items are put together in blocks of this size, so that an item costs no allocation of its own.
const BLOCK_BYTES: usize = 64 * 1024;

/// An item at least this long is a block of its own, without a copy.
const OWN_BLOCK: usize = 8 * 1024;

/// What a block costs besides its bytes; counted, so that a log of many tiny blocks keeps its bound too.
const BLOCK_COST: u64 = 96;

/// How much of a [`Channel::Latest`] may be under way to one subscriber before it has taken it: what is on its way cannot be superseded any more. It
/// is a few packets, so that a lone sender of state keeps a fast link busy (a guess).
const UNDER_WAY: u64 = 64 * 1024;

/// Why an item was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum AppendError {
    /// It is longer than the producer's items may be.
    #[error("expected an item of at most {max} bytes, came one of {length}")]
    TooLarge {
        /// Its length.
        length: usize,
        /// The longest that may be.
        max: usize,
    },
    /// A subscriber has to catch up first.
    #[error("a subscriber has to catch up first")]
    Full,
    /// Its key is too long or one too many, or the latest items of all keys would take too much.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// No more items can be numbered, which takes longer than anybody lives.
    #[error("no number is left for another item")]
    Exhausted,
}

/// An item that was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    /// Its number.
    pub number: u64,
    /// Whether a subscriber waits for it.
    pub is_awaited: bool,
    /// Whether a subscriber is too far behind now; [`Fanout::overrun`] says which.
    pub has_overrun: bool,
}

/// A part of what a subscriber gets next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Whole items with their heads.
    Items {
        /// How many.
        count: u64,
        /// As they go on the wire.
        bytes: Bytes,
    },
    /// It has lost so many.
    Missed(u64),
    /// So many were superseded by newer ones of their keys.
    Superseded(u64),
}

/// What a subscriber gets next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Take {
    /// The pieces were put where they were asked for.
    Pieces,
    /// Nothing for now: it is told by [`Appended::is_awaited`] when there is more.
    Wait,
    /// It has fallen too far behind, or is none.
    Over,
}

/// How far a subscriber is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Items given to it.
    pub items: u64,
    /// Bytes given to it.
    pub bytes: u64,
    /// Items that it has lost.
    pub missed: u64,
    /// Items that wait for it.
    pub behind: u64,
}

/// The log; see the module page.
#[derive(Debug)]
pub struct Fanout {
    limits: FanoutLimits,
    channel: Channel,
    when_full: WhenFull,
    blocks: VecDeque<Block>,
    /// What nobody has taken of yet, so that it can still grow.
    open: BytesMut,
    /// Items in it.
    open_count: u64,
    /// Where it begins.
    opened: Position,
    /// Number of the next item, and where it begins.
    end: Position,
    /// Of each key; unless there are none.
    latest: Option<Latest>,
    subscribers: BTreeMap<SubscriberId, Subscriber>,
    /// No subscriber is further behind than this; some may have caught up since it was looked at.
    slowest: Position,
    /// Somebody waits for the next item.
    is_awaited: bool,
}

/// A place in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Position {
    number: u64,
    /// Bytes of all items before it, with what they cost.
    byte: u64,
}

/// Items that lie behind each other in memory and will not change.
#[derive(Debug)]
struct Block {
    begins: Position,
    count: u64,
    bytes: Bytes,
}

impl Block {
    fn ends(&self) -> Position {
        let length = to_u64(self.bytes.len()).saturating_add(BLOCK_COST);
        Position {
            number: self.begins.number.saturating_add(self.count),
            byte: self.begins.byte.saturating_add(length),
        }
    }

    /// The items from this number on.
    fn from(&self, number: u64) -> Bytes {
        let mut rest = self.bytes.clone();
        for _ in self.begins.number..number {
            let Some(head) = rest.first_chunk::<HEAD_BYTES>() else { break };
            let (Head::Item(length) | Head::Control(length)) = Head::from_bytes(*head);
            rest = rest.split_off(length.saturating_add(HEAD_BYTES).min(rest.len()));
        }
        rest
    }
}

/// Which latest items of keys come before the log.
#[derive(Debug, Clone, Copy)]
struct Replaying {
    /// Those from this number on,
    at: u64,
    /// up to this one, or to where the log begins by then.
    until: u64,
}

#[derive(Debug, Default)]
struct Subscriber {
    next: Position,
    /// It still gets latest items of keys, and then the log. Until then `next` is where it joined, so that it has all of the log's length for that.
    replay: Option<Replaying>,
    /// Of [`Channel::Latest`]: what it was given and has not said to have taken, by number and length.
    under_way: VecDeque<(u64, u64)>,
    under_way_bytes: u64,
    progress: Progress,
    /// Nothing comes after what there is.
    is_last: bool,
    /// It gets nothing more.
    is_over: bool,
}

pub(super) fn to_u64(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}

impl Fanout {
    /// A log without items. It keeps the latest item of each key where `is_keyed`, and always on [`Channel::Latest`].
    ///
    /// # Errors
    ///
    /// If its bounds leave no room for an item.
    pub fn new(
        channel: Channel,
        when_full: WhenFull,
        is_keyed: bool,
        limits: FanoutLimits,
    ) -> Result<Self, FanoutLimitError> {
        let is_keyed = is_keyed || channel == Channel::Latest;
        limits.validate(channel, is_keyed)?;
        Ok(Self {
            limits,
            channel,
            when_full,
            blocks: VecDeque::new(),
            open: BytesMut::new(),
            open_count: 0,
            opened: Position::default(),
            end: Position::default(),
            latest: is_keyed.then(|| Latest::new(limits.keys, limits.key_bytes)),
            subscribers: BTreeMap::new(),
            slowest: Position::default(),
            is_awaited: false,
        })
    }

    /// Which channel it is for.
    pub const fn channel(&self) -> Channel {
        self.channel
    }

    /// The number of the next item.
    pub const fn end(&self) -> u64 {
        self.end.number
    }

    /// The number of the oldest item that can still be asked for.
    pub fn first(&self) -> u64 {
        let kept = self.blocks.front().map_or(self.opened.number, |block| block.begins.number);
        kept.max(self.end.number.saturating_sub(self.limits.items))
    }

    /// Takes an item: [`HEAD_BYTES`] bytes of any value, and the item behind them. A long one is moved out of the buffer, others are copied.
    ///
    /// # Errors
    ///
    /// If it was not taken; then nothing has changed but those first bytes.
    pub fn append(
        &mut self,
        entry: &mut Vec<u8>,
        key: Option<&[u8]>,
    ) -> Result<Appended, AppendError> {
        let length = entry.len().saturating_sub(HEAD_BYTES);
        let max = self.limits.item_max;
        let head = item_head(length, max).map_err(|_| AppendError::TooLarge { length, max })?;
        let number = self.end.number;
        let next = number.checked_add(1).ok_or(AppendError::Exhausted)?;
        let is_reliable = self.channel == Channel::Reliable;
        if is_reliable && self.when_full == WhenFull::Wait && self.is_full(to_u64(entry.len())) {
            return Err(AppendError::Full);
        }
        if let Some(room) = entry.first_chunk_mut::<HEAD_BYTES>() {
            *room = head;
        }
        if let Some(latest) = &mut self.latest {
            latest.put(number, key.unwrap_or_default(), entry)?;
        }
        if is_reliable {
            self.store(entry, next);
            self.trim();
        }
        self.end.number = next;
        let has_overrun =
            is_reliable && self.when_full == WhenFull::Disconnect && self.has_overrun();
        let is_awaited = std::mem::take(&mut self.is_awaited);
        Ok(Appended { number, is_awaited, has_overrun })
    }

    /// Whether the slowest subscriber has to catch up before an item of so many bytes.
    fn is_full(&mut self, length: u64) -> bool {
        if !self.is_far(self.slowest, length) {
            return false;
        }
        self.look_for_slowest();
        self.is_far(self.slowest, length)
    }

    /// Whether whoever is here has to catch up before an item of so many bytes.
    fn is_far(&self, from: Position, length: u64) -> bool {
        let bytes = self.end_of_all().saturating_sub(from.byte);
        let bytes = bytes.saturating_add(length).saturating_add(BLOCK_COST);
        let items = self.end.number.saturating_sub(from.number);
        items > 0 && (bytes > self.limits.bytes || items >= self.limits.items)
    }

    fn look_for_slowest(&mut self) {
        let places = self.subscribers.values().filter(|subscriber| !subscriber.is_over);
        let slowest = places.map(|subscriber| subscriber.next).min_by_key(|next| next.number);
        self.slowest = slowest.unwrap_or(self.end);
    }

    fn has_overrun(&mut self) -> bool {
        let first = self.first();
        if self.slowest.number >= first {
            return false;
        }
        self.look_for_slowest();
        self.slowest.number < first
    }

    /// Puts an item at the end; the next one has the number `next`.
    fn store(&mut self, entry: &mut Vec<u8>, next: u64) {
        let length = entry.len();
        if length >= OWN_BLOCK {
            self.seal();
            self.open_count = 1;
            self.opened = self.end;
            self.end.number = next;
            self.close(Bytes::from(std::mem::take(entry)));
            return;
        }
        if self.open.capacity().saturating_sub(self.open.len()) < length {
            self.seal();
            // What is left of the old block's memory stays unused.
            self.open = BytesMut::with_capacity(BLOCK_BYTES);
        }
        self.open.extend_from_slice(entry);
        self.open_count = self.open_count.saturating_add(1);
        self.end.number = next;
    }

    /// Closes what is open, so that it can be given away.
    fn seal(&mut self) {
        if self.open_count > 0 {
            let sealed = self.open.split().freeze();
            self.close(sealed);
        }
    }

    fn close(&mut self, bytes: Bytes) {
        let count = std::mem::take(&mut self.open_count);
        let block = Block { begins: self.opened, count, bytes };
        self.end.byte = block.ends().byte;
        self.opened = self.end;
        self.blocks.push_back(block);
    }

    /// Where the items end that are open.
    fn end_of_all(&self) -> u64 {
        let open = if self.open_count > 0 {
            to_u64(self.open.len()).saturating_add(BLOCK_COST)
        } else {
            0
        };
        self.opened.byte.saturating_add(open)
    }

    /// Forgets blocks that nobody may ask for any more.
    fn trim(&mut self) {
        let oldest = self.end.number.saturating_sub(self.limits.items);
        let from = self.end_of_all().saturating_sub(self.limits.bytes);
        while let Some(block) = self.blocks.front() {
            let ends = block.ends();
            if ends.byte > from && ends.number > oldest {
                return;
            }
            self.blocks.pop_front();
        }
    }

    /// Adds a subscriber and returns the number of the first item that it gets. It goes on from `resume` as far as that is still there, and otherwise
    /// begins as the producer's new subscribers do. Where keys have latest items, nothing before the log is missed but what was superseded.
    pub fn subscribe(&mut self, id: SubscriberId, resume: Option<u64>, replay: Replay) -> u64 {
        let (first, end) = (self.first(), self.end.number);
        let keyed = self.latest.as_ref().and_then(Latest::first).unwrap_or(end);
        let mut subscriber = Subscriber::default();
        let begins = match (self.channel, resume, replay) {
            (Channel::Datagram, ..) | (_, None, Replay::Nothing) => end,
            (Channel::Latest, Some(next), _) => next.min(end),
            (Channel::Latest, None, Replay::Last(items)) => end.saturating_sub(items),
            (Channel::Latest, None, Replay::Keyed) => keyed,
            (Channel::Reliable, Some(next), _) if next < first && self.latest.is_some() => {
                subscriber.replay = Some(Replaying { at: next, until: first });
                end
            }
            (Channel::Reliable, Some(next), _) => next.clamp(first.min(end), end),
            (Channel::Reliable, None, Replay::Last(items)) => end.saturating_sub(items).max(first),
            (Channel::Reliable, None, Replay::Keyed) => {
                subscriber.replay = Some(Replaying { at: keyed, until: end });
                end
            }
        };
        subscriber.next = match self.channel {
            Channel::Reliable => self.position(begins),
            Channel::Latest | Channel::Datagram => Position { number: begins, byte: 0 },
        };
        if self.slowest.number > subscriber.next.number || self.subscribers.is_empty() {
            self.slowest = subscriber.next;
        }
        let told = subscriber.replay.map_or(begins, |replay| replay.at);
        self.subscribers.insert(id, subscriber);
        told
    }

    /// Forgets a subscriber; what was given to it.
    pub fn unsubscribe(&mut self, id: SubscriberId) -> Option<Progress> {
        let progress = self.progress(id);
        self.subscribers.remove(&id);
        progress
    }

    /// What was given to a subscriber, and what waits for it.
    pub fn progress(&self, id: SubscriberId) -> Option<Progress> {
        let subscriber = self.subscribers.get(&id)?;
        let behind = self.end.number.saturating_sub(subscriber.next.number);
        Some(match self.channel {
            // Nothing waits: each was sent when it came.
            Channel::Datagram => Progress { items: behind, ..subscriber.progress },
            Channel::Reliable | Channel::Latest => Progress { behind, ..subscriber.progress },
        })
    }

    /// Subscribers that have fallen too far behind since the last time: they get nothing more.
    pub fn overrun(&mut self) -> Vec<SubscriberId> {
        let first = self.first();
        let mut overrun = Vec::new();
        for (id, subscriber) in &mut self.subscribers {
            if !subscriber.is_over && subscriber.next.number < first {
                subscriber.is_over = true;
                overrun.push(*id);
            }
        }
        self.look_for_slowest();
        overrun
    }

    /// Those who have to catch up before this item, as [`Fanout::append`] takes it, each with how many items wait for it.
    pub fn holding_up(&self, entry: &[u8]) -> impl Iterator<Item = (SubscriberId, u64)> + '_ {
        let length = to_u64(entry.len());
        let there = self.subscribers.iter().filter(|(_, subscriber)| !subscriber.is_over);
        let far = there.filter(move |(_, subscriber)| self.is_far(subscriber.next, length));
        let behind =
            |subscriber: &Subscriber| self.end.number.saturating_sub(subscriber.next.number);
        far.map(move |(id, subscriber)| (*id, behind(subscriber)))
    }

    /// Gives a subscriber nothing more.
    pub fn give_up(&mut self, id: SubscriberId) {
        if let Some(subscriber) = self.subscribers.get_mut(&id) {
            subscriber.is_over = true;
        }
        self.look_for_slowest();
    }

    /// A subscriber of [`Channel::Latest`] is to get what there is, whatever is under way to it: nothing comes after.
    pub fn hurry(&mut self, id: SubscriberId) {
        if let Some(subscriber) = self.subscribers.get_mut(&id) {
            subscriber.is_last = true;
        }
    }

    /// Whether a subscriber gets nothing more; so does one that is none.
    pub fn is_over(&self, id: SubscriberId) -> bool {
        self.subscribers.get(&id).is_none_or(|subscriber| subscriber.is_over)
    }

    /// A subscriber of [`Channel::Latest`] has taken all items below this number; others need not say so. Returns whether it may get more.
    pub fn taken(&mut self, id: SubscriberId, through: u64) -> bool {
        let Some(subscriber) = self.subscribers.get_mut(&id) else { return false };
        while let Some((number, length)) = subscriber.under_way.front().copied() {
            if number >= through {
                break;
            }
            subscriber.under_way.pop_front();
            subscriber.under_way_bytes = subscriber.under_way_bytes.saturating_sub(length);
        }
        subscriber.may_get_more()
    }

    /// Puts what a subscriber gets next behind the pieces: some `budget` bytes, and one item at least. What was taken is the taker's.
    pub fn take(&mut self, id: SubscriberId, budget: usize, pieces: &mut Vec<Piece>) -> Take {
        let before = pieces.len();
        let taken = match self.channel {
            // What goes by datagrams is not taken, and nothing wakes who asks for it.
            Channel::Datagram if self.is_over(id) => return Take::Over,
            Channel::Datagram => return Take::Wait,
            Channel::Latest => self.take_latest(id, budget, pieces),
            Channel::Reliable => self.take_items(id, budget, pieces),
        };
        match taken {
            None => Take::Over,
            Some(()) if pieces.len() > before => Take::Pieces,
            Some(()) => {
                self.is_awaited = true;
                Take::Wait
            }
        }
    }

    fn take_latest(
        &mut self,
        id: SubscriberId,
        budget: usize,
        pieces: &mut Vec<Piece>,
    ) -> Option<()> {
        let subscriber = self.subscribers.get_mut(&id).filter(|subscriber| !subscriber.is_over)?;
        let latest = self.latest.as_ref()?;
        let mut given = 0_usize;
        for (number, bytes) in latest.from(subscriber.next.number, self.end.number) {
            if given >= budget || !subscriber.may_get_more() {
                break;
            }
            given = given.saturating_add(bytes.len());
            let length = to_u64(bytes.len());
            subscriber.under_way.push_back((number, length));
            subscriber.under_way_bytes = subscriber.under_way_bytes.saturating_add(length);
            subscriber.give_latest(subscriber.next.number, number, bytes, pieces);
            subscriber.next.number = number.saturating_add(1);
        }
        Some(())
    }

    fn take_items(
        &mut self,
        id: SubscriberId,
        budget: usize,
        pieces: &mut Vec<Piece>,
    ) -> Option<()> {
        let mut given = self.take_replay(id, budget, pieces)?;
        if given >= budget {
            return Some(());
        }
        let (first, end) = (self.first(), self.end.number);
        let subscriber = self.subscribers.get_mut(&id)?;
        if subscriber.next.number < first {
            let missed = first.saturating_sub(subscriber.next.number);
            subscriber.progress.missed = subscriber.progress.missed.saturating_add(missed);
            subscriber.next.number = first;
            pieces.push(Piece::Missed(missed));
        }
        if subscriber.next.number >= self.opened.number && subscriber.next.number < end {
            self.seal();
        }
        let next = self.subscribers.get(&id)?.next.number;
        if next >= end {
            return Some(());
        }
        let at = self.block_of(next);
        let subscriber = self.subscribers.get_mut(&id)?;
        for block in self.blocks.range(at..) {
            if given >= budget {
                break;
            }
            let bytes = block.from(subscriber.next.number);
            given = given.saturating_add(bytes.len());
            let ends = block.ends();
            let count = ends.number.saturating_sub(subscriber.next.number);
            subscriber.give(count, bytes, pieces);
            subscriber.next = ends;
        }
        Some(())
    }

    /// Gives a subscriber what it still gets of the latest items of keys, and lets it go on with the log once it has all of them. Returns how many bytes it got.
    fn take_replay(
        &mut self,
        id: SubscriberId,
        budget: usize,
        pieces: &mut Vec<Piece>,
    ) -> Option<usize> {
        let subscriber = self.subscribers.get(&id).filter(|subscriber| !subscriber.is_over)?;
        let (Some(replay), Some(latest)) = (subscriber.replay, &self.latest) else {
            return Some(0);
        };
        let until = replay.until.max(self.first());
        let goes_on = self.position(until);
        let mut items = latest.from(replay.at, until);
        let subscriber = self.subscribers.get_mut(&id)?;
        let (mut at, mut given) = (replay.at, 0_usize);
        while given < budget {
            let Some((number, bytes)) = items.next() else {
                if at < until {
                    pieces.push(Piece::Superseded(until.saturating_sub(at)));
                }
                subscriber.replay = None;
                subscriber.next = goes_on;
                // The log may begin before the place that it had.
                if goes_on.number < self.slowest.number {
                    self.slowest = goes_on;
                }
                return Some(given);
            };
            given = given.saturating_add(bytes.len());
            subscriber.give_latest(at, number, bytes, pieces);
            at = number.saturating_add(1);
        }
        subscriber.replay = Some(Replaying { at, ..replay });
        Some(given)
    }

    /// Which block holds the item with this number. Mostly it is the last, which is looked at first: there may be thousands of small ones.
    fn block_of(&self, number: u64) -> usize {
        match self.blocks.back() {
            Some(last) if last.begins.number <= number && number < last.ends().number => {
                self.blocks.len().saturating_sub(1)
            }
            _ => self.blocks.partition_point(|block| block.ends().number <= number),
        }
    }

    /// Where the item with this number begins.
    fn position(&self, number: u64) -> Position {
        if number >= self.end.number {
            return Position { number, byte: self.end_of_all() };
        }
        let at = self.block_of(number);
        // Within a block, as far behind as its beginning.
        let byte = self.blocks.get(at).map_or(self.opened.byte, |block| block.begins.byte);
        Position { number, byte }
    }
}

impl Subscriber {
    fn may_get_more(&self) -> bool {
        self.is_last || self.under_way_bytes < UNDER_WAY
    }

    fn give(&mut self, count: u64, bytes: Bytes, pieces: &mut Vec<Piece>) {
        self.progress.items = self.progress.items.saturating_add(count);
        self.progress.bytes = self.progress.bytes.saturating_add(to_u64(bytes.len()));
        pieces.push(Piece::Items { count, bytes });
    }

    /// Gives the latest item of a key, which comes next although there were others before it.
    fn give_latest(&mut self, at: u64, number: u64, bytes: Bytes, pieces: &mut Vec<Piece>) {
        let superseded = number.saturating_sub(at);
        if superseded > 0 {
            pieces.push(Piece::Superseded(superseded));
        }
        self.give(1, bytes, pieces);
    }
}

#[cfg(test)]
mod tests;
