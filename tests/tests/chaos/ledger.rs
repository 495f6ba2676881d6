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

/// A stream; the counts are of bytes after its greeting.
#[derive(Debug, Default, Clone, Copy)]
pub struct Stream {
    /// The opener finished after so many.
    pub finished: Option<u64>,
    /// The peer's QUIC has acknowledged so many and the end.
    pub acknowledged: Option<u64>,
    /// The peer read so many, and then a clean end.
    pub received: Option<u64>,
    /// The peer finished its answer after so many.
    pub answer_finished: Option<u64>,
    /// The opener read so many, and then a clean end.
    pub answer_received: Option<u64>,
}

/// Sums for the figures.
#[derive(Debug, Default)]
pub struct Sums {
    pub calls_run: u64,
    pub calls_answered: u64,
    pub streams_received: u64,
    pub streams_acknowledged: u64,
    pub streams_answered: u64,
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

    /// Notes what a side says of a stream.
    pub fn stream(&self, stream: u64, note: impl FnOnce(&mut Stream)) {
        note(lock(&self.streams).entry(stream).or_default());
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
            sums.streams_received += u64::from(stream.received.is_some());
            sums.streams_acknowledged += u64::from(stream.acknowledged.is_some());
            sums.streams_answered += u64::from(stream.answer_received.is_some());
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
    fn fits(&self) -> bool {
        let is_of = |read: Option<u64>, sent: Option<u64>| read.is_none() || read == sent;
        is_of(self.received, self.finished)
            && is_of(self.acknowledged, self.finished)
            && is_of(self.answer_received, self.answer_finished)
            // The peer answers to the end only after it has read to the end.
            && (self.answer_finished.is_none() || self.received.is_some())
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

#[test]
fn a_clean_end_of_an_unfinished_or_shorter_stream_does_not_fit() {
    let sent = Stream { finished: Some(9), ..Stream::default() };
    assert!(sent.fits() && Stream::default().fits());
    assert!(Stream { received: Some(9), acknowledged: Some(9), ..sent }.fits());
    assert!(!Stream { received: Some(8), ..sent }.fits());
    assert!(!Stream { received: Some(4), ..Stream::default() }.fits());
    assert!(!Stream { acknowledged: Some(4), ..Stream::default() }.fits());
    assert!(!Stream { answer_finished: Some(2), ..sent }.fits());
    assert!(!Stream { received: Some(9), answer_received: Some(2), ..sent }.fits());
}
