//! What supervisors of the tree share: starting a child, reading its end from an event, and how often to restart.
//!
//! The parents decide what an end means for their children; this module starts them, tells what happened, and counts; [`job`] is the actor of those that do one
//! thing. Sessions and the parts of the node are started where they belong, within deadlines of their own.

use std::any::Any;
use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use kinfolk_core::intensity::{Intensity, Verdict};
use ractor::actor::messages::BoxedState;
use ractor::{Actor, ActorCell, ActorId, ActorRef, SpawnErr, SupervisionEvent};
use thiserror::Error;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tracing::warn;

use crate::fault::Here;

pub(crate) mod job;

/// Restarts within [`RESTART_PERIOD`] that a parent tolerates; Erlang/OTP's defaults are 1 in 5 s, which a burst of one cause exceeds.
pub(crate) const RESTARTS_MAX: usize = 5;
/// The period over which restarts are counted.
pub(crate) const RESTART_PERIOD: Duration = Duration::from_secs(10);
/// Delay before the second restart within the period; it doubles with each further one.
const RESTART_DELAY: Duration = Duration::from_millis(20);

/// How long a child may take to start: local work that awaits nobody.
const START: Duration = Duration::from_secs(1);

/// Why a child did not start.
#[derive(Debug, Error)]
pub(crate) enum NotStarted {
    #[error(transparent)]
    Failed(#[from] SpawnErr),
    #[error("it did not start in time")]
    Late,
}

/// Starts a child of this parent.
pub(crate) async fn start<A: Actor>(
    actor: A,
    arguments: A::Arguments,
    parent: ActorCell,
) -> Result<ActorRef<A::Msg>, NotStarted> {
    let starting = Actor::spawn_linked(None, actor, arguments, parent);
    let started = tokio::time::timeout(START, starting).await;
    let (child, _) = started.map_err(|_| NotStarted::Late)??;
    Ok(child)
}

/// How a child ended.
pub(crate) enum ChildEnd {
    /// It stopped; its last state comes along.
    Stopped(Option<BoxedState>),
    /// It was killed from outside.
    Killed,
    /// It returned an error or panicked.
    Failed(ractor::ActorProcessingErr),
}

/// Reads the end of a child from an event; `None` for events that are no end.
pub(crate) fn child_end(event: SupervisionEvent) -> Option<(ActorId, ChildEnd)> {
    match event {
        SupervisionEvent::ActorTerminated(cell, state, reason) => {
            let killed = matches!(reason.as_deref(), Some("killed" | "actor_task_cancelled"));
            let end = if killed { ChildEnd::Killed } else { ChildEnd::Stopped(state) };
            Some((cell.get_id(), end))
        }
        SupervisionEvent::ActorFailed(cell, error) => {
            Some((cell.get_id(), ChildEnd::Failed(error)))
        }
        _ => None,
    }
}

/// Counts the failures of a parent's children and spaces their restarts.
#[derive(Debug)]
pub(crate) struct Restarts {
    intensity: Intensity,
    /// What failed within the period and why, oldest first: the first cause is the one worth knowing.
    causes: VecDeque<(Instant, String)>,
}

/// A child failed more often than its parent tolerates.
#[derive(Debug, Error)]
#[error(
    "more than {RESTARTS_MAX} failures within {RESTART_PERIOD:?}; the first: {first}; the last: {last}"
)]
pub(crate) struct TooManyRestarts {
    first: String,
    last: String,
}

impl Restarts {
    pub(crate) fn new() -> Self {
        Self { intensity: Intensity::new(RESTARTS_MAX, RESTART_PERIOD), causes: VecDeque::new() }
    }

    /// Counts a failure: after which delay to restart, or what to fail with if it is one too many.
    pub(crate) fn fail(
        &mut self,
        now: Instant,
        child: &'static str,
        cause: &str,
    ) -> Result<Duration, TooManyRestarts> {
        self.causes.retain(|(at, _)| now.saturating_duration_since(*at) < RESTART_PERIOD);
        let last = format!("{child}: {cause}");
        match self.intensity.fail(now) {
            Verdict::Tolerated(n) => {
                self.causes.push_back((now, last));
                let doublings = u32::try_from(n.saturating_sub(2)).unwrap_or(0);
                let delay = RESTART_DELAY.saturating_mul(2_u32.saturating_pow(doublings));
                Ok(if n == 1 { Duration::ZERO } else { delay })
            }
            Verdict::Exceeded => {
                let first =
                    self.causes.pop_front().map_or_else(|| last.clone(), |(_, cause)| cause);
                Err(TooManyRestarts { first, last })
            }
        }
    }
}

/// A task that ends with its owner.
#[derive(Debug)]
pub(crate) struct OwnedTask(JoinHandle<()>);

impl OwnedTask {
    /// Starts a task of this actor. Should it panic, the actor is sent the text: a task fails as its owner does, never in silence.
    pub(crate) fn spawn<M: ractor::Message>(
        owner: &ActorRef<M>,
        here: Here,
        future: impl Future<Output = ()> + Send + 'static,
        panicked: fn(String) -> M,
    ) -> Self {
        let owner = owner.clone();
        Self(tokio::spawn(async move {
            #[cfg(feature = "fault-injection")]
            let future = async move {
                if here.pass().await.is_ok() {
                    future.await;
                }
            };
            #[cfg(not(feature = "fault-injection"))]
            let Here = here;
            if let Err(panic) = AssertUnwindSafe(future).catch_unwind().await {
                // An owner that is gone has no more use for it.
                let _ = owner.send_message(panicked(panic_text(panic.as_ref())));
            }
        }))
    }
}

impl OwnedTask {
    /// Whether it has ended.
    pub(crate) fn is_over(&self) -> bool {
        self.0.is_finished()
    }
}

impl Drop for OwnedTask {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A question that a child answers for as long as it is well: its parent asks, its actor passes the question on to its task, and the task
/// answers. A child that hangs in either leaves it unanswered.
#[derive(Debug, Default)]
pub(crate) struct Pulse {
    unanswered: AtomicU32,
    passed_on: Notify,
}

/// Questions that a child may leave unanswered. Of two, at least one was asked while this process had time to answer: where it was stopped
/// for a while, the next question comes at once and the one after that does not.
const UNANSWERED_MAX: u32 = 2;

impl Pulse {
    /// Asks once more; false if the child has left as many unanswered as it may.
    pub(crate) fn ask(&self) -> bool {
        self.unanswered.fetch_add(1, Ordering::Relaxed) < UNANSWERED_MAX
    }

    /// What the actor does when it is asked.
    pub(crate) fn pass_on(&self) {
        self.passed_on.notify_one();
    }

    /// What the task does all the time: waits for a question and answers it. Cancel safe.
    pub(crate) async fn answer(&self) {
        self.passed_on.notified().await;
        self.answer_now();
    }

    /// The answer of an actor that has no task to pass the question on to.
    pub(crate) fn answer_now(&self) {
        self.unanswered.store(0, Ordering::Relaxed);
    }
}

/// Whether a parent has given up a child that hangs.
#[derive(Debug, Default)]
pub(crate) struct Lost(bool);

/// A child that was killed goes on: it blocks its thread, and nothing can end that.
#[derive(Debug, Error)]
#[error("{0} hangs and cannot be killed")]
pub(crate) struct Unkillable(&'static str);

impl Lost {
    /// Kills the child. Its end, as any other, comes by its event; one that is still there the next time cannot be killed.
    pub(crate) fn kill(&mut self, child: &ActorCell, name: &'static str) -> Result<(), Unkillable> {
        if std::mem::replace(&mut self.0, true) {
            return Err(Unkillable(name));
        }
        warn!(actor = name, "a part of the node hangs and is killed");
        child.kill();
        Ok(())
    }

    /// Whether it was killed.
    pub(crate) fn is_so(&self) -> bool {
        self.0
    }
}

/// A child that its parent asks whether it is well.
#[derive(Debug)]
pub(crate) struct Watched<M> {
    pub(crate) actor: ActorRef<M>,
    pulse: Arc<Pulse>,
    pub(crate) lost: Lost,
}

impl<M: ractor::Message> Watched<M> {
    pub(crate) fn new(actor: ActorRef<M>, pulse: Arc<Pulse>) -> Self {
        Self { actor, pulse, lost: Lost::default() }
    }

    /// Sends it a message. One that is gone tells so by its supervision event.
    pub(crate) fn tell(&self, message: M) {
        let _ = self.actor.send_message(message);
    }

    /// Asks once more by this message, or kills the child if it has left too many unanswered.
    pub(crate) fn ask(&mut self, name: &'static str, question: M) -> Result<(), Unkillable> {
        if !self.pulse.ask() {
            return self.lost.kill(&self.actor.get_cell(), name);
        }
        self.tell(question);
        Ok(())
    }
}

/// Something that happens once, for everyone who waits for it.
#[derive(Debug, Default)]
pub(crate) struct Latch {
    set: AtomicBool,
    changed: Notify,
}

impl Latch {
    /// Whether it was set only now.
    pub(crate) fn set(&self) -> bool {
        let was_set = self.set.swap(true, Ordering::AcqRel);
        self.changed.notify_waiters();
        !was_set
    }

    pub(crate) fn is_set(&self) -> bool {
        self.set.load(Ordering::Acquire)
    }

    /// Waits until it is set. Cancel safe.
    pub(crate) async fn wait(&self) {
        let changed = self.changed.notified();
        tokio::pin!(changed);
        // Registered before the look, so that nothing in between is missed.
        changed.as_mut().enable();
        if !self.is_set() {
            changed.await;
        }
    }
}

/// The text of a caught panic.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a text".to_owned())
}

/// Locks a mutex whose data stays valid even if a holder panicked: every critical section of this crate leaves it whole.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads what a lock guards, as [`lock`] does.
pub(crate) fn read<T: ?Sized>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

/// Writes what a lock guards, as [`lock`] does.
pub(crate) fn write<T: ?Sized>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_restart_is_immediate_and_the_sixth_failure_is_one_too_many() {
        let now = Instant::now();
        let mut restarts = Restarts::new();
        let mut fail = |cause| restarts.fail(now, "child", cause);
        assert_eq!(fail("first").ok(), Some(Duration::ZERO));
        let delays: Vec<_> = (0..4).map(|_| fail("later").ok()).collect();
        assert_eq!(delays, [20, 40, 80, 160].map(|ms| Some(Duration::from_millis(ms))));
        let error = fail("last").expect_err("one too many").to_string();
        assert!(error.contains("the first: child: first; the last: child: last"), "{error}");
    }

    #[test]
    fn a_child_may_leave_two_questions_unanswered_and_an_answer_makes_good_for_all() {
        let pulse = Pulse::default();
        assert!(pulse.ask() && pulse.ask());
        pulse.pass_on();
        assert_eq!(pulse.answer().now_or_never(), Some(()));
        assert!(pulse.ask() && pulse.ask() && !pulse.ask() && !pulse.ask());
        assert_eq!(pulse.answer().now_or_never(), None, "nothing was passed on");
    }

    #[test]
    fn the_first_cause_is_the_oldest_within_the_period() {
        let start = Instant::now();
        let mut restarts = Restarts::new();
        restarts.fail(start, "child", "forgotten").expect("tolerated");
        let now = start + RESTART_PERIOD;
        for cause in ["first", "b", "c", "d", "e"] {
            restarts.fail(now, "child", cause).expect("tolerated");
        }
        let error = restarts.fail(now, "child", "last").expect_err("one too many").to_string();
        assert!(error.contains("the first: child: first; the last: child: last"), "{error}");
    }
}
