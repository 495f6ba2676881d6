//! One exchange: two nodes tell each other what either knows and the other does not, and no more.
//!
//! It decides for whoever owns the stream between the two what to write next, what was learnt, and when it is over. Both
//! sides run one [`Exchange`], each on a [`Snapshot`] of its catalog: own record, peers and departures. Where the two
//! differ says [`reconcile`](crate::reconcile); what is said is on the page of [`wire::exchange`](crate::wire::exchange).
//! The machine never checks a signature, never changes a catalog, and never opens or closes a stream.
//!
//! # How it goes
//!
//! Both sides strictly take turns, so that neither can flood the other: each message is the answer to the one before.
//!
//! | a message says | the answer |
//! |---|---|
//! | a sum over a range, and it is ours too | nothing |
//! | a sum over a range, and ours is another | our description of it: a list if there is little, else sums over its parts |
//! | a list of all that is in a range | the records in it that are newer here; what we want of the list |
//! | wants | these records |
//! | records | nothing: they are for the catalog |
//! | that there is more | at least an empty message, so that its sender can go on |
//!
//! The exchange is over on both sides once a message asks nothing of its reader and its reader has nothing left to say. Equal
//! catalogs cost two messages; a difference is found after a number of messages that grows with the logarithm of the smaller catalog.
//!
//! The own record is listed apart, so that the peer has it after at most four messages, and is sent before all that wait with it.
//! The others go around in the order of ids, from a place that the salt gives, so that exchanges that are cut short transfer
//! different parts.
//!
//! # Bounds
//!
//! | what | bound | beyond it |
//! |---|---|---|
//! | a message | [`MESSAGE_MAX`] | the peer's fault |
//! | messages of each side | [`TURNS_MAX`], of which the last asks nothing | cut |
//! | bytes that a side sends | what it may, [`ExchangeLimits::bytes`], or what the peer said that it accepts if that is less | cut; the peer's fault if it sends more |
//! | records | each of ours is sent once, whatever is asked; one that comes lies in a range that we listed or wanted something of | the peer's fault |
//! | memory | some 17 bytes per record of the snapshot, which all stay in memory for as long as it goes on, 56 bytes for each in a leaf of the catalog that changes meanwhile, and at most 4 MiB for ranges that a hostile peer speaks of | |
//! | silence, the whole | [`ExchangeLimits::silence`], [`ExchangeLimits::deadline`] | over |
//!
//! An exchange that is cut is no failure: what was transferred is, and the next goes on with what still differs. A record that
//! the peer's catalog does not take (it remembers the node as dead, or is full) differs in each exchange and is sent in each.

use std::time::{Duration, Instant};

use crate::catalog::Snapshot;
use crate::wire::LENGTH_BYTES;
use crate::wire::exchange::{Greeting, MESSAGE_MAX, Message, Rest, TURNS_MAX, Tokens, Turn};

mod contract;
mod ledger;
mod limits;
#[cfg(test)]
mod tests;

pub use contract::{End, ExchangeError, Input, Output, Role, Summary, Traffic};
use ledger::{Composed, Ledger};
pub use limits::{ExchangeLimitError, ExchangeLimits};

/// Bytes of a message beside its ranges, wants and records: prefix, kind, four counts, rest.
const MESSAGE_SPARE: usize = 16;

/// Bytes that a first message has besides, without its tokens.
const GREETING_SPARE: usize = 24;

/// Kept back from what may be sent, so that a message that says nothing can always be.
const BUDGET_SPARE: u64 = 1024;

/// With less room than this a message does not fit the largest record.
const ROOM_MIN: u64 = 2048;

/// The machine; see the module page. Making one costs nothing: the snapshot is read when the first message is due.
///
/// Its driver has to do this: give [`Input::Start`] once and first; write each [`Output::Send`] in full before it reads the next message; give
/// what it reads as [`Input::Received`]; give [`Input::Timeout`] at [`next_timeout`](Self::next_timeout); check each
/// [`Output::Learned`] (skip what [`Snapshot::knows`] of a fresh snapshot, then [`Record::verify`](crate::record::Record::verify))
/// before the catalog sees it; after [`Output::Ended`] finish the stream, or reset it with [`End::code`].
#[derive(Debug)]
pub struct Exchange {
    role: Role,
    /// Until the salt is known.
    snapshot: Snapshot,
    limits: ExchangeLimits,
    /// Until they are sent.
    tokens: Tokens,
    state: State,
    /// Once the salt is known.
    ledger: Option<Ledger>,
    /// How many bytes the peer takes, once it has said so.
    accepted: u32,
    /// Whether this side has given up something for a budget, and whether the peer has.
    is_cut: bool,
    peer_is_cut: bool,
    started: Option<Instant>,
    /// Since when it is the peer's turn.
    waiting: Option<Instant>,
    sent: Traffic,
    received: Traffic,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    New,
    Running,
    Ended,
}

impl Exchange {
    /// An exchange that has not begun. `snapshot` is what this node knows, and `tokens` is what the peer is shown.
    pub const fn new(
        role: Role,
        snapshot: Snapshot,
        tokens: Tokens,
        limits: ExchangeLimits,
    ) -> Self {
        let none = Traffic { messages: 0, bytes: 0, records: 0 };
        Self {
            role,
            snapshot,
            limits,
            tokens,
            state: State::New,
            ledger: None,
            accepted: u32::MAX,
            is_cut: false,
            peer_is_cut: false,
            started: None,
            waiting: None,
            sent: none,
            received: none,
        }
    }

    /// Takes an input and appends what has to be done about it.
    pub fn handle(&mut self, now: Instant, input: Input<'_>, out: &mut Vec<Output>) {
        match (self.state, input) {
            (State::Ended, _) | (State::Running, Input::Start) => {}
            (State::New, Input::Start) => self.start(now, out),
            (_, Input::Received(body)) => {
                if self.state == State::New && self.role == Role::Responder {
                    self.start(now, out);
                }
                if let Err(error) = self.receive(now, body, out) {
                    self.end(End::Failed(error), out);
                }
            }
            (_, Input::Stop) => self.end(End::Stopped, out),
            (_, Input::Closed) => self.end(End::Closed, out),
            (_, Input::Timeout) => self.expire(now, out),
        }
    }

    /// When [`Input::Timeout`] is due next; `None` before it has begun and after it is over.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Instant> {
        if self.state != State::Running {
            return None;
        }
        self.late_at().into_iter().chain(self.silent_at()).min()
    }

    /// Whether it is over.
    #[must_use]
    pub const fn is_over(&self) -> bool {
        matches!(self.state, State::Ended)
    }

    fn late_at(&self) -> Option<Instant> {
        after(self.started, self.limits.deadline)
    }

    fn silent_at(&self) -> Option<Instant> {
        after(self.waiting, self.limits.silence)
    }

    fn start(&mut self, now: Instant, out: &mut Vec<Output>) {
        self.state = State::Running;
        self.started = Some(now);
        self.waiting = Some(now);
        if let Role::Initiator { salt } = self.role {
            let mut ledger = Ledger::new(&std::mem::take(&mut self.snapshot), salt, now);
            ledger.begin();
            self.ledger = Some(ledger);
            if let Err(error) = self.speak(now, out) {
                self.end(End::Failed(error), out);
            }
        }
    }

    fn receive(
        &mut self,
        now: Instant,
        body: &[u8],
        out: &mut Vec<Output>,
    ) -> Result<(), ExchangeError> {
        let bytes = count(body.len()).saturating_add(count(LENGTH_BYTES));
        self.received.bytes = self.received.bytes.saturating_add(bytes);
        self.received.messages = self.received.messages.saturating_add(1);
        let (max, came) = (u64::from(self.limits.bytes), self.received.bytes);
        if came > max {
            return Err(ExchangeError::OverBudget { max, came });
        }
        let message = Message::decode(body).map_err(ExchangeError::Malformed)?;
        let turn = self.take_turn(now, message, out)?;
        let is_last = self.received.messages >= TURNS_MAX;
        let (asks, rest) = (turn.asks(), turn.rest);
        if is_last && asks {
            return Err(ExchangeError::AskedTooLate);
        }
        let ledger = self.ledger.as_mut().ok_or(ExchangeError::OutOfTurn)?;
        ledger.take(&turn)?;
        self.peer_is_cut |= rest == Rest::Cut;
        let records = u32::try_from(turn.records.len()).unwrap_or(u32::MAX);
        self.received.records = self.received.records.saturating_add(records);
        let learned = |record: crate::wire::exchange::Relayed| Output::Learned {
            age: record.age(),
            bytes: record.bytes,
        };
        out.extend(turn.records.into_iter().map(learned));
        let is_first = self.sent.messages == 0;
        if !asks && ledger.is_settled() && !is_first {
            self.finish(out);
            return Ok(());
        }
        let said = self.speak(now, out)?;
        if !said && rest != Rest::More {
            self.finish(out);
        }
        Ok(())
    }

    /// What a message says, if it is one that the peer may send now.
    fn take_turn(
        &mut self,
        now: Instant,
        message: Message,
        out: &mut Vec<Output>,
    ) -> Result<Turn, ExchangeError> {
        let is_first = self.received.messages == 1;
        let (greeting, turn) = match (self.role, message) {
            (Role::Responder, Message::Open { salt, greeting, turn }) if is_first => {
                self.ledger = Some(Ledger::new(&std::mem::take(&mut self.snapshot), salt, now));
                (greeting, turn)
            }
            (Role::Initiator { .. }, Message::Accept { greeting, turn }) if is_first => {
                (greeting, turn)
            }
            (_, Message::Turn(turn)) if !is_first => return Ok(turn),
            _ => return Err(ExchangeError::OutOfTurn),
        };
        self.accepted = greeting.accepts;
        out.push(Output::Tokens(greeting.tokens.into_inner()));
        Ok(turn)
    }

    /// Sends the next message. Returns whether it asks anything.
    fn speak(&mut self, now: Instant, out: &mut Vec<Output>) -> Result<bool, ExchangeError> {
        let ledger = self.ledger.as_mut().ok_or(ExchangeError::OutOfTurn)?;
        let is_first = self.sent.messages == 0;
        let is_last = self.sent.messages.saturating_add(1) >= TURNS_MAX;
        let mut spare = MESSAGE_SPARE;
        let tokens = std::mem::take(&mut self.tokens);
        if is_first {
            let tokens = size_of_val(tokens.as_slice());
            spare = spare.saturating_add(GREETING_SPARE).saturating_add(tokens);
        }
        let budget = self.limits.bytes.min(self.accepted);
        let left = u64::from(budget).saturating_sub(BUDGET_SPARE).saturating_sub(self.sent.bytes);
        let room = usize::try_from(left).unwrap_or(usize::MAX).min(MESSAGE_MAX);
        let room = room.saturating_sub(spare);
        let may_ask = !is_last && !self.peer_is_cut;
        let Composed { mut turn, used, is_short } =
            if self.is_cut { Composed::default() } else { ledger.compose(now, room, may_ask) };
        // What a peer that answers no more cannot be asked is its cut, not ours.
        self.is_cut |= is_short && !self.peer_is_cut;
        let is_out = is_last || left.saturating_sub(count(used)) < ROOM_MIN;
        self.is_cut |= is_out && !ledger.is_settled();
        if self.is_cut {
            ledger.clear();
            turn.rest = Rest::Cut;
        } else if !ledger.is_settled() {
            turn.rest = Rest::More;
        }
        let asks = turn.asks();
        let records = u32::try_from(turn.records.len()).unwrap_or(u32::MAX);
        let greeting = Greeting { accepts: self.limits.bytes, tokens };
        let message = match self.role {
            Role::Initiator { salt } if is_first => Message::Open { salt, greeting, turn },
            Role::Responder if is_first => Message::Accept { greeting, turn },
            _ => Message::Turn(turn),
        };
        let frame = message.encode().map_err(ExchangeError::Internal)?;
        self.sent.messages = self.sent.messages.saturating_add(1);
        self.sent.bytes = self.sent.bytes.saturating_add(count(frame.len()));
        self.sent.records = self.sent.records.saturating_add(records);
        self.waiting = Some(now);
        out.push(Output::Send(frame));
        Ok(asks)
    }

    fn expire(&mut self, now: Instant, out: &mut Vec<Output>) {
        let is_due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if is_due(self.late_at()) {
            self.end(End::Late, out);
        } else if is_due(self.silent_at()) {
            self.end(End::Silent, out);
        }
    }

    /// Both sides have said what they could.
    fn finish(&mut self, out: &mut Vec<Output>) {
        let is_cut = self.is_cut || self.peer_is_cut;
        self.end(if is_cut { End::Cut } else { End::Complete }, out);
    }

    fn end(&mut self, end: End, out: &mut Vec<Output>) {
        self.state = State::Ended;
        self.ledger = None;
        self.snapshot = Snapshot::default();
        out.push(Output::Ended(Summary { end, sent: self.sent, received: self.received }));
    }
}

fn after(since: Option<Instant>, time: Duration) -> Option<Instant> {
    since.and_then(|since| since.checked_add(time))
}

fn count(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}
