//! What every side says of every call and every stream, whichever of its lives a node is in; and whether it fits together.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Outcomes after which the peer certainly did not act on a call that must not run twice.
const NEVER_RUN: [&str; 5] = ["refused", "banned", "cancelled", "restarted", "shutting_down"];

/// One for all nodes. Calls and streams are named by the number of the step that made them.
#[derive(Debug, Default)]
pub struct Ledger {
    calls: Mutex<BTreeMap<u64, Call>>,
    streams: Mutex<BTreeMap<u64, Stream>>,
    faults: Mutex<Vec<String>>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Call {
    is_idempotent: bool,
    runs: u32,
    /// The word for how it ended; none if its caller died or gave it up.
    ended: Option<&'static str>,
}

/// Where bytes go: the node whose app reads them, and the one whose app writes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Way {
    pub reader: usize,
    pub writer: usize,
}

/// One direction of a stream; the counts are of bytes after the greeting.
#[derive(Debug, Default, Clone, Copy)]
pub struct Half {
    /// The writer finished after so many.
    pub finished: Option<u64>,
    /// The reader's QUIC has acknowledged so many and the end.
    pub acknowledged: Option<u64>,
    /// The reader's app read so many, and then a clean end.
    pub received: Option<u64>,
    /// Why what is acknowledged may be unread.
    excuse: Option<Excuse>,
}

/// Why a reader's app may never have read what its QUIC acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Excuse {
    /// The reader was killed.
    Killed,
    /// A link with the writer ended in this way and not in agreement, by the reader's account: nothing is promised of what it carried.
    Cut(&'static str),
    /// The reader's app dropped its end.
    GivenUp,
    /// The opener never heard whether the stream is served, and the acceptor's app never had it or nobody read its answer: QUIC takes in what
    /// is refused then, and a link that the opener does not know to serve anything may be closed at once.
    Unanswered,
}

/// A stream between two nodes.
#[derive(Debug, Clone, Copy)]
pub struct Stream {
    opener: usize,
    acceptor: usize,
    /// The opener has the peer's word that it is served.
    pub is_answered: bool,
    /// The acceptor's app has begun to read it.
    pub is_taken: bool,
    /// From the opener, and back.
    pub up: Half,
    pub down: Half,
}

/// Sums for the figures.
#[derive(Debug, Default)]
pub struct Sums {
    pub calls_run: u64,
    pub calls_answered: u64,
    pub streams_received: u64,
    pub streams_answered: u64,
    /// Directions of streams that were acknowledged to their end and read to it.
    pub acknowledged_and_read: u64,
    /// Those that were not read, and why they need not be.
    pub acknowledged_unread: BTreeMap<Excuse, u64>,
}

impl Ledger {
    pub fn blame(&self, fault: impl Into<String>) {
        lock(&self.faults).push(fault.into());
    }

    pub fn asked(&self, call: u64, is_idempotent: bool) {
        lock(&self.calls).entry(call).or_default().is_idempotent = is_idempotent;
    }

    pub fn ran(&self, call: u64) {
        lock(&self.calls).entry(call).or_default().runs += 1;
    }

    pub fn ended(&self, call: u64, how: &'static str) {
        let before = lock(&self.calls).entry(call).or_default().ended.replace(how);
        if before.is_some() {
            self.blame(format!("call {call} ended twice"));
        }
    }

    /// A stream is about to be opened.
    pub fn begun(&self, stream: u64, opener: usize, acceptor: usize) {
        let (up, down) = (Half::default(), Half::default());
        let begun = Stream { opener, acceptor, is_answered: false, is_taken: false, up, down };
        lock(&self.streams).insert(stream, begun);
    }

    /// Notes what a side says of a stream.
    pub fn stream(&self, stream: u64, note: impl FnOnce(&mut Stream)) {
        match lock(&self.streams).get_mut(&stream) {
            Some(stream) => note(stream),
            None => self.blame(format!("stream {stream} was never begun")),
        }
    }

    /// Nothing of this node is left, and its apps had no warning.
    pub fn killed(&self, node: usize) {
        self.excuse(Excuse::Killed, |way| way.reader == node);
    }

    /// A link that may have carried streams this way ended otherwise than in agreement, as the reader saw it.
    pub fn cut(&self, cut: Way, how: &'static str) {
        self.excuse(Excuse::Cut(how), |way| way == cut);
    }

    fn excuse(&self, excuse: Excuse, concerns: impl Fn(Way) -> bool) {
        for stream in lock(&self.streams).values_mut() {
            for (way, half) in stream.halves_mut() {
                if concerns(way) && half.received.is_none() {
                    half.excuse = Some(excuse);
                }
            }
        }
    }

    /// Everything that does not fit, once no node is left, and the sums.
    pub fn judge(&self) -> (Vec<String>, Sums) {
        let mut faults = std::mem::take(&mut *lock(&self.faults));
        let mut sums = Sums::default();
        for (id, call) in lock(&self.calls).iter() {
            sums.calls_run += u64::from(call.runs);
            sums.calls_answered += u64::from(call.ended == Some("done"));
            if !call.fits() {
                faults.push(format!("call {id}: {call:?}"));
            }
        }
        for (id, stream) in lock(&self.streams).iter() {
            sums.streams_received += u64::from(stream.up.received.is_some());
            sums.streams_answered += u64::from(stream.down.received.is_some());
            for (half, is_served) in stream.halves() {
                match half.excuse {
                    _ if half.acknowledged.is_none() => {}
                    _ if half.received.is_some() => sums.acknowledged_and_read += 1,
                    excuse => {
                        let excuse = excuse.or((!is_served).then_some(Excuse::Unanswered));
                        // Without one it does not fit.
                        if let Some(excuse) = excuse {
                            *sums.acknowledged_unread.entry(excuse).or_default() += 1;
                        }
                    }
                }
            }
            if !stream.fits() {
                faults.push(format!("stream {id}: {stream:?}"));
            }
        }
        (faults, sums)
    }
}

impl Call {
    fn fits(&self) -> bool {
        let answered = self.ended == Some("done");
        if self.is_idempotent {
            return !answered || self.runs >= 1;
        }
        let may_have_run = !self.ended.is_some_and(|how| NEVER_RUN.contains(&how));
        self.runs <= 1 && (!answered || self.runs == 1) && (may_have_run || self.runs == 0)
    }
}

impl Stream {
    /// The opener has it, on a link that works: what was cut before is another link.
    pub fn opened(&mut self, is_answered: bool) {
        self.is_answered |= is_answered;
        (self.up.excuse, self.down.excuse) = (None, None);
    }

    /// The opener's app wants no answer any more.
    pub fn given_up(&mut self) {
        self.down.excuse.get_or_insert(Excuse::GivenUp);
    }

    fn halves_mut(&mut self) -> [(Way, &mut Half); 2] {
        let up = Way { reader: self.acceptor, writer: self.opener };
        let down = Way { reader: self.opener, writer: self.acceptor };
        [(up, &mut self.up), (down, &mut self.down)]
    }

    /// Both directions, and whether what is acknowledged in it counts, as the stream is known to be served.
    fn halves(&self) -> [(&Half, bool); 2] {
        [(&self.up, self.is_answered || self.is_taken), (&self.down, self.is_answered)]
    }

    fn fits(&self) -> bool {
        // The peer answers to the end only after it has read to the end.
        let in_order = self.down.finished.is_none() || self.up.received.is_some();
        in_order && self.halves().iter().all(|(half, is_served)| half.fits(*is_served))
    }
}

impl Half {
    /// Bytes that were received are those that were sent, and those that were acknowledged on a stream that is served are received.
    fn fits(&self, is_served: bool) -> bool {
        let is_finished = |count: Option<u64>| count.is_none() || count == self.finished;
        let is_lost = self.acknowledged.is_some() && self.received.is_none();
        is_finished(self.received)
            && is_finished(self.acknowledged)
            && !(is_lost && is_served && self.excuse.is_none())
    }
}

/// A test that failed while it held a lock has said so already.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn a_call_that_ran_twice_or_was_answered_without_running_does_not_fit() {
    let call = |is_idempotent, runs, ended| Call { is_idempotent, runs, ended }.fits();
    assert!(
        call(false, 1, Some("done")) && call(false, 1, Some("unknown")) && call(false, 1, None)
    );
    assert!(call(true, 3, Some("done")) && call(false, 0, Some("refused")));
    assert!(!call(false, 2, Some("done")) && !call(false, 2, None));
    assert!(!call(false, 0, Some("done")) && !call(true, 0, Some("done")));
    assert!(!call(false, 1, Some("refused")));
}

#[cfg(test)]
fn stream(up: Half, down: Half) -> Stream {
    Stream { opener: 1, acceptor: 2, is_answered: true, is_taken: false, up, down }
}

#[test]
fn a_clean_end_of_an_unfinished_or_shorter_stream_does_not_fit() {
    let none = Half::default();
    let sent = Half { finished: Some(9), ..none };
    let read = Half { received: Some(9), acknowledged: Some(9), ..sent };
    let fits = |up, down| stream(up, down).fits();
    assert!(fits(none, none) && fits(sent, none) && fits(read, none) && fits(read, read));
    assert!(!fits(Half { received: Some(8), ..sent }, none));
    assert!(!fits(Half { received: Some(4), ..none }, none));
    assert!(!fits(Half { acknowledged: Some(4), ..none }, none));
    assert!(!fits(sent, Half { finished: Some(2), ..none }));
    assert!(!fits(read, Half { received: Some(2), ..none }));
}

#[test]
fn what_was_acknowledged_and_never_read_does_not_fit_without_an_excuse_of_its_own_reader() {
    let none = Half::default();
    let lost = Half { finished: Some(9), acknowledged: Some(9), ..none };
    let read = Half { received: Some(9), ..lost };
    let fits_after = |begun: Stream, happens: fn(&Ledger)| {
        let ledger = Ledger::default();
        lock(&ledger.streams).insert(7, begun);
        happens(&ledger);
        ledger.judge().0.is_empty()
    };
    for begun in [stream(lost, none), stream(read, lost)] {
        let is_up = begun.up.received.is_none();
        assert!(!fits_after(begun, |_| {}));
        assert_eq!(fits_after(begun, |ledger| ledger.killed(2)), is_up);
        assert_eq!(fits_after(begun, |ledger| ledger.killed(1)), !is_up);
        assert_eq!(
            fits_after(begun, |ledger| ledger.cut(Way { reader: 2, writer: 1 }, "lost")),
            is_up
        );
        assert_eq!(
            fits_after(begun, |ledger| ledger.cut(Way { reader: 1, writer: 2 }, "lost")),
            !is_up
        );
        assert!(!fits_after(begun, |ledger| ledger.cut(Way { reader: 2, writer: 3 }, "lost")));
        assert_eq!(fits_after(begun, |ledger| ledger.stream(7, Stream::given_up)), !is_up);
        assert!(!fits_after(begun, |ledger| {
            ledger.killed(1);
            ledger.killed(2);
            ledger.stream(7, |stream| stream.opened(false));
        }));
    }
    let unanswered = |up, down| Stream { is_answered: false, ..stream(up, down) };
    assert!(unanswered(lost, none).fits() && unanswered(read, lost).fits());
    assert!(!Stream { is_taken: true, ..unanswered(lost, none) }.fits());
}
