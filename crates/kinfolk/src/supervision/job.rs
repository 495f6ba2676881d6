//! Job: an actor that does one thing, and ends with what came of it.
//!
//! The work runs in a task that the actor owns; the actor gives it a place in the tree, and its end a meaning: it stops with what came of it in its state, and fails if the
//! work panics. Its parent reads either by [`end_of`]. It knows no deadline of the work and restarts nothing.

use std::marker::PhantomData;
use std::sync::Arc;

use ractor::{ActorCell, ActorProcessingErr, ActorRef};
use thiserror::Error;

use crate::context::Context;
#[cfg(feature = "fault-injection")]
use crate::fault::Points;
use crate::fault::here;
use crate::local_only::local_only;
use crate::metrics::Family;
use crate::supervision::{self, ChildEnd, NotStarted, OwnedTask};

/// What a job does, and what it does it with.
pub(crate) trait Work: Send + 'static {
    /// What comes of it.
    type End: Send + 'static;
    /// Under which name its failures are counted, as panics.
    const NAME: &'static str;
    /// Where a test can let it fail.
    #[cfg(feature = "fault-injection")]
    const POINTS: Points;

    fn context(&self) -> &Arc<Context>;

    fn run(self) -> impl Future<Output = Self::End> + Send;
}

/// The actor.
struct Job<W>(PhantomData<fn() -> W>);

/// What a parent has of a job.
pub(crate) type JobRef<W> = ActorRef<JobMessage<<W as Work>::End>>;

/// Reports of its own task.
pub(crate) enum JobMessage<E> {
    /// It is over.
    Done(E),
    /// The task panicked.
    TaskPanicked(String),
}
local_only!(@[E: Send + 'static] JobMessage<E>);

/// What the parent finds of a job that stopped.
struct JobState<E> {
    context: Arc<Context>,
    /// What came of it; `None` while it runs.
    end: Option<E>,
    _task: OwnedTask,
}

#[ractor::actor(message = JobMessage<W::End>, state = JobState<W::End>, arguments = W)]
impl<W: Work> Job<W> {
    async fn pre_start(
        &self,
        myself: ActorRef<JobMessage<W::End>>,
        work: W,
    ) -> Result<JobState<W::End>, ActorProcessingErr> {
        let context = Arc::clone(work.context());
        here!(context, W::POINTS.pre_start).pass().await?;
        let here = here!(context, W::POINTS.task);
        let me = myself.clone();
        let working = async move {
            let end = work.run().await;
            let _ = me.send_message(JobMessage::Done(end));
        };
        let task = OwnedTask::spawn(&myself, here, working, JobMessage::TaskPanicked);
        Ok(JobState { context, end: None, _task: task })
    }

    async fn handle(
        &self,
        myself: ActorRef<JobMessage<W::End>>,
        message: JobMessage<W::End>,
        state: &mut JobState<W::End>,
    ) -> Result<(), ActorProcessingErr> {
        here!(state.context, message.point(&W::POINTS)).pass().await?;
        match message {
            JobMessage::Done(end) => {
                state.end = Some(end);
                myself.stop(None);
                Ok(())
            }
            JobMessage::TaskPanicked(text) => Err(text.into()),
        }
    }
}

/// Starts a job of this parent.
pub(crate) async fn start<W: Work>(work: W, parent: ActorCell) -> Result<JobRef<W>, NotStarted> {
    supervision::start(Job::<W>(PhantomData), work, parent).await
}

/// Why nothing came of a job.
#[derive(Debug, Error)]
pub(crate) enum Unfinished {
    #[error("it stopped")]
    Stopped,
    #[error("it was killed")]
    Killed,
    #[error("{0}")]
    Failed(String),
}

/// What came of a job that has ended so.
pub(crate) fn end_of<W: Work>(context: &Context, end: ChildEnd) -> Result<W::End, Unfinished> {
    match end {
        ChildEnd::Stopped(state) => {
            let state = state.and_then(|mut state| state.take::<JobState<W::End>>().ok());
            state.and_then(|state| state.end).ok_or(Unfinished::Stopped)
        }
        ChildEnd::Killed => Err(Unfinished::Killed),
        ChildEnd::Failed(error) => {
            context.counters.count(Family::Panicked, W::NAME);
            Err(Unfinished::Failed(error.to_string()))
        }
    }
}
