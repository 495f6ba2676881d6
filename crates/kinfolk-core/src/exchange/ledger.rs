//! What one side of an exchange still owes the other: descriptions, wants and records.
//!
//! It decides for the [`Exchange`](super::Exchange) what the next message says, given the room that there is, and what the
//! peer's message means. It knows nothing of turns, bytes in all, or time.

use std::collections::BTreeMap;
use std::time::Instant;

use super::contract::ExchangeError;
use crate::catalog::{Relayable, Snapshot};
use crate::reconcile::{Index, Salt};
use crate::record::Record;
use crate::wire::exchange::{
    Bound, IdBytes, LISTED_MAX, RANGES_MAX, RECORDS_MAX, Range, Relayed, Said, Turn,
};

/// Where the first range begins.
const FIRST: IdBytes = [0; 32];

/// Most bytes of a want: its gap as a varint.
const WANT_BYTES: usize = 3;

/// How far the transfer of a record of ours has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Idle,
    Queued,
    Sent,
}

/// See the module page.
#[derive(Debug)]
pub(super) struct Ledger {
    /// What this side knew when the exchange began.
    index: Index<Relayable>,
    /// Whose ids are asked about first, and whose records are sent first.
    place: IdBytes,
    /// The place of the own record.
    own: Option<usize>,
    /// Ranges that we owe a description of, by their begin: we said one thing of them, the peer another.
    owed: BTreeMap<IdBytes, Bound>,
    /// What we want of the peer's last message.
    wants: Vec<u16>,
    /// By the place in the index. A record is sent once, whatever the peer asks.
    standings: Vec<Standing>,
    queued: usize,
    /// Where to look for the next queued record.
    cursor: usize,
    /// What our last message listed, in its order.
    listed: Vec<usize>,
    /// Ranges in which records may come, by their begin: we have listed them, or wanted something there.
    asked: BTreeMap<IdBytes, Bound>,
}

impl Ledger {
    pub(super) fn new(snapshot: &Snapshot, salt: Salt, now: Instant) -> Self {
        let index = Index::new(Relayable::of(snapshot, now), salt);
        let own = snapshot.own().and_then(|own| index.find(own.record().id_bytes()));
        let place = salt.place();
        Self {
            place,
            own,
            owed: BTreeMap::new(),
            wants: Vec::new(),
            standings: vec![Standing::Idle; index.len()],
            queued: 0,
            cursor: index.place(&place),
            listed: Vec::new(),
            asked: BTreeMap::new(),
            index,
        }
    }

    /// The initiator owes a description of everything.
    pub(super) fn begin(&mut self) {
        self.owed.insert(FIRST, Bound::End);
    }

    /// Whether something is left to say that does not depend on the peer.
    pub(super) fn is_settled(&self) -> bool {
        self.queued == 0 && self.owed.is_empty()
    }

    /// Gives up what is left to say.
    pub(super) fn clear(&mut self) {
        self.owed.clear();
        self.wants.clear();
        for standing in &mut self.standings {
            if *standing == Standing::Queued {
                *standing = Standing::Idle;
            }
        }
        self.queued = 0;
    }

    /// Takes in what the peer said, but for the records, which are only checked.
    pub(super) fn take(&mut self, turn: &Turn) -> Result<(), ExchangeError> {
        if !turn.records.iter().all(|record| self.is_asked(record)) {
            return Err(ExchangeError::Unasked);
        }
        for want in &turn.wants {
            let listed = self.listed.len();
            let unknown = ExchangeError::UnknownWant { listed, want: *want };
            let at = *self.listed.get(usize::from(*want)).ok_or(unknown)?;
            self.queue(at);
        }
        let mut from = FIRST;
        let mut before = 0_usize;
        for range in &turn.ranges {
            match &range.said {
                Said::Skip => {}
                Said::Sum(sum) if self.index.agrees(&from, &range.upper, *sum) => {}
                Said::Sum(_) => widen(&mut self.owed, from, range.upper),
                Said::List(list) => {
                    let difference = self.index.compare(&from, &range.upper, list);
                    difference.ours.into_iter().for_each(|at| self.queue(at));
                    if !difference.theirs.is_empty() {
                        widen(&mut self.asked, from, range.upper);
                    }
                    let wants = difference.theirs.into_iter().map(|at| before.saturating_add(at));
                    self.wants.extend(wants.filter_map(|want| u16::try_from(want).ok()));
                    before = before.saturating_add(list.len());
                }
            }
            match range.upper {
                Bound::At(upper) => from = upper,
                Bound::End => break,
            }
        }
        Ok(())
    }

    /// What to say in this many bytes. If nothing may be asked, it is records alone, and what was to be asked is given up.
    pub(super) fn compose(&mut self, now: Instant, room: usize, may_ask: bool) -> Composed {
        self.listed.clear();
        let mut turn = Turn::default();
        let mut wants = std::mem::take(&mut self.wants);
        let mut is_short = false;
        let mut left = room;
        if may_ask {
            let fitting = room / WANT_BYTES;
            is_short = wants.len() > fitting;
            wants.truncate(fitting);
            left = left.saturating_sub(wants.len().saturating_mul(WANT_BYTES));
            turn.wants = wants;
            // The other half is for records, so that finding what differs and sending it go on side by side.
            let half = left / 2;
            let unused = self.describe(&mut turn, half);
            left = left.saturating_sub(half.saturating_sub(unused));
        } else if !wants.is_empty() || !self.owed.is_empty() {
            is_short = true;
            self.owed.clear();
        }
        let left = self.fill(&mut turn, now, left);
        Composed { turn, used: room.saturating_sub(left), is_short }
    }

    /// Describes as many of the ranges that are owed as there is room for. Returns the room that is left.
    fn describe(&mut self, turn: &mut Turn, room: usize) -> usize {
        let mut left = room;
        let mut count = 0_usize;
        let mut described = BTreeMap::new();
        let ring = self.owed.range(self.place..).chain(self.owed.range(..self.place));
        let owed: Vec<_> = ring.take(RANGES_MAX).map(|(from, upper)| (*from, *upper)).collect();
        let mut in_all = 0_usize;
        for (from, upper) in owed {
            let (ranges, listed) = self.index.describe(&from, upper, self.own);
            // One more, to skip what lies before.
            let skip = Range { upper: Bound::At(from), said: Said::Skip };
            let size =
                ranges.iter().fold(skip.size(), |sum, range| sum.saturating_add(range.size()));
            count = count.saturating_add(ranges.len()).saturating_add(1);
            in_all = in_all.saturating_add(listed.len());
            if size > left || count > RANGES_MAX || in_all > LISTED_MAX {
                break;
            }
            left = left.saturating_sub(size);
            self.owed.remove(&from);
            described.insert(from, (ranges, listed));
        }
        let mut end = FIRST;
        for (from, (ranges, listed)) in described {
            if from > end {
                turn.ranges.push(Range { upper: Bound::At(from), said: Said::Skip });
            }
            let mut start = from;
            for range in &ranges {
                if matches!(range.said, Said::List(_)) {
                    widen(&mut self.asked, start, range.upper);
                }
                if let Bound::At(upper) = range.upper {
                    start = upper;
                }
            }
            end = start;
            turn.ranges.extend(ranges);
            self.listed.extend(listed);
        }
        left
    }

    /// Adds as many of the records that are queued as there is room for. Returns the room that is left.
    fn fill(&mut self, turn: &mut Turn, now: Instant, room: usize) -> usize {
        let mut room = room;
        while turn.records.len() < RECORDS_MAX
            && let Some(at) = self.next()
        {
            let told = self.index.items().entry(at).map(|entry| entry.told());
            // Its time may be over meanwhile.
            if let Some(told) = told.filter(|told| told.is_relayable(now)) {
                let relayed = Relayed::new(told.age(now), told.record().bytes());
                let Some(left) = room.checked_sub(relayed.size()) else { break };
                room = left;
                turn.records.push(relayed);
            }
            if let Some(standing) = self.standings.get_mut(at) {
                *standing = Standing::Sent;
                self.queued = self.queued.saturating_sub(1);
            }
        }
        room
    }

    fn queue(&mut self, at: usize) {
        if let Some(standing) = self.standings.get_mut(at)
            && *standing == Standing::Idle
        {
            *standing = Standing::Queued;
            self.queued = self.queued.saturating_add(1);
        }
    }

    /// The next record to send: the own one, or the next after the one before.
    fn next(&mut self) -> Option<usize> {
        if self.queued == 0 {
            return None;
        }
        let is_queued = |at: &usize| self.standings.get(*at) == Some(&Standing::Queued);
        if let Some(own) = self.own.filter(is_queued) {
            return Some(own);
        }
        let (len, cursor) = (self.standings.len(), self.cursor);
        let next = (cursor..len).chain(0..cursor).find(is_queued)?;
        self.cursor = next;
        Some(next)
    }

    fn is_asked(&self, record: &Relayed) -> bool {
        let Some(id) = Record::claimed_id(&record.bytes) else { return false };
        let range = self.asked.range(..=*id).next_back();
        range.is_some_and(|(_, upper)| Bound::At(*id) < *upper)
    }
}

/// What a message says.
#[derive(Default)]
pub(super) struct Composed {
    pub(super) turn: Turn,
    /// Bytes that it takes at most.
    pub(super) used: usize,
    /// Whether something that was to be asked was given up.
    pub(super) is_short: bool,
}

/// Adds a range. A peer may speak twice of one: then the larger counts.
fn widen(ranges: &mut BTreeMap<IdBytes, Bound>, from: IdBytes, upper: Bound) {
    let bound = ranges.entry(from).or_insert(upper);
    *bound = upper.max(*bound);
}
