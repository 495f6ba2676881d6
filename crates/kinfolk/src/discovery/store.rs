//! The store: what a node keeps on disk for its next life.
//!
//! It keeps, for the node, the last [`Seq`] that it used, its own incarnations and its [`Anchor`]s, in one directory per
//! node. It decides nothing about peers (`kinfolk_core::anchors` does) and never answers a remote. What it reads back was
//! checked like anything else that comes from outside: records are verified again, and a file that is damaged or belongs to
//! somebody else is set aside and replaced, so that a broken disk costs a node its memory and never its start.
//!
//! All work on the disk happens on tokio's blocking threads, one task at a time. A save is queued when it is asked for, and the
//! future that comes back only waits for it: an actor's handler asks, and gives the future to a task. What is queued is at most one value
//! of each kind, the newest, so that the queue cannot grow; saves that wait together are written together.
//!
//! A save is durable once its future is ready: the process may be killed at any moment after. A save that fails is counted and
//! tried again with the next one, or on closing; the file is opened anew for that, and replaced if it turns out to be damaged.

use std::future::Future;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use iroh::EndpointId;
use kinfolk_core::anchors::{ANCHORS_MAX, Anchor};
use kinfolk_core::id::{Incarnation, NetworkId};
use kinfolk_core::record::Seq;
use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};
use tracing::{debug, warn};

use crate::supervision::lock;

mod error;
mod file;
mod row;
#[cfg(test)]
mod tests;

#[cfg(test)]
use error::AsideReason;
pub use error::StoreError;
pub(crate) use error::{SaveError, SetAside};
use file::{Changes, Disk, Facts, Owner};

/// How many of its own incarnations a node remembers, the current one included: enough to recognise what is late from
/// any life that a peer may still talk of (a guess).
pub(crate) const INCARNATIONS_MAX: usize = 16;

/// What an earlier life has left.
#[derive(Debug, Default)]
pub(crate) struct Recovered {
    /// The last sequence number that was saved.
    pub(crate) last_seq: Option<Seq>,
    /// This node's incarnations, the newest first.
    pub(crate) incarnations: Vec<Incarnation>,
    /// The proven peers, in the order in which they were saved.
    pub(crate) peers: Vec<Anchor>,
    /// Peers that could not be read, or whose records did not verify.
    pub(crate) skipped: usize,
    /// The file that was found in the place of this node's, if there was one.
    pub(crate) set_aside: Option<SetAside>,
}

/// The store of one node; see the module page. All clones are the same store.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// Where the saves run, whoever asks for them.
    runtime: Handle,
    state: Mutex<State>,
    /// Held while the disk is worked on, by nobody but the blocking tasks. `None` once closed.
    disk: Mutex<Option<Disk>>,
    /// Whether a blocking task saves.
    is_saving: watch::Sender<bool>,
    failures: AtomicU64,
}

#[derive(Debug)]
struct State {
    /// All that the file has to say, from which a file that was lost is written anew.
    facts: Facts,
    /// What of it was asked to be saved and is not being saved yet.
    asked: Changes,
    /// What of it could not be saved.
    unsaved: Changes,
    /// Who waits for what was asked for. As many as there are tasks of this node that save.
    waiting: Vec<oneshot::Sender<Result<(), SaveError>>>,
    is_closed: bool,
}

impl Store {
    /// Opens the store in this directory, which is made if only its parent exists, and reads what is in it.
    ///
    /// Cancelled, it leaves a directory and a file that are whole, and that nobody uses once the blocking task is over.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if another node uses the directory, or if nothing can be kept in it.
    pub(crate) async fn open(
        directory: &Path,
        id: EndpointId,
        network: NetworkId,
    ) -> Result<(Self, Recovered), StoreError> {
        let runtime = Handle::current();
        let path = directory.to_owned();
        let owner = Owner { id, network };
        let opening = runtime.spawn_blocking(move || Disk::open(&path, owner));
        let (disk, recovered) = opening.await.map_err(|_| StoreError::Stopped)??;
        if let Some(aside) = &recovered.set_aside {
            warn!(directory = %directory.display(), %aside, "the store was replaced");
        }
        if recovered.skipped > 0 {
            warn!(skipped = recovered.skipped, "stored peers were not taken");
        }
        let state = State {
            facts: Facts::of(&recovered),
            asked: Changes::default(),
            unsaved: Changes::default(),
            waiting: Vec::new(),
            is_closed: false,
        };
        let inner = Inner {
            runtime,
            state: Mutex::new(state),
            disk: Mutex::new(Some(disk)),
            is_saving: watch::Sender::new(false),
            failures: AtomicU64::new(0),
        };
        Ok((Self { inner: Arc::new(inner) }, recovered))
    }

    /// Saves the last sequence number: to be awaited before a record with it is used. A smaller one than before changes nothing.
    ///
    /// Queued at once; dropping the future changes nothing about the save.
    pub(crate) fn save_seq(&self, seq: Seq) -> impl Future<Output = Result<(), SaveError>> + use<> {
        saved(self.ask(move |facts| {
            facts.seq = facts.seq.max(Some(seq));
            Changes { seq: true, ..Changes::default() }
        }))
    }

    /// Saves that this incarnation has begun.
    ///
    /// Queued at once; dropping the future changes nothing about the save.
    pub(crate) fn save_incarnation(
        &self,
        incarnation: Incarnation,
    ) -> impl Future<Output = Result<(), SaveError>> + use<> {
        saved(self.ask(move |facts| {
            facts.incarnations.retain(|known| *known != incarnation);
            facts.incarnations.insert(0, incarnation);
            facts.incarnations.truncate(INCARNATIONS_MAX);
            Changes { incarnations: true, ..Changes::default() }
        }))
    }

    /// Saves the best proven peers in the place of those saved before; at most [`ANCHORS_MAX`], the first.
    ///
    /// Queued at once; dropping the future changes nothing about the save. It is ready as well when a newer list was saved instead.
    pub(crate) fn save_peers(
        &self,
        mut peers: Vec<Anchor>,
    ) -> impl Future<Output = Result<(), SaveError>> + use<> {
        peers.truncate(ANCHORS_MAX);
        saved(self.ask(move |facts| {
            facts.peers = peers.into();
            Changes { peers: true, ..Changes::default() }
        }))
    }

    /// How many saves have failed.
    pub(crate) fn failures(&self) -> u64 {
        self.inner.failures.load(Ordering::Relaxed)
    }

    /// Refuses saves from now on, waits for those that are queued, and closes the file, so that another node may open the
    /// directory. It takes as long as the disk does: the caller sets a deadline.
    ///
    /// Cancelled, it goes on without its caller as far as saves that are queued are concerned; the file is closed when the last
    /// clone is dropped.
    ///
    /// # Errors
    ///
    /// [`SaveError`] if something that was asked to be saved could not be.
    pub(crate) async fn close(&self) -> Result<(), SaveError> {
        lock(&self.inner.state).is_closed = true;
        self.idle().await;
        // One more try for what could not be saved when it was asked for.
        let last = {
            let mut state = lock(&self.inner.state);
            let unsaved = std::mem::take(&mut state.unsaved);
            (!unsaved.is_empty()).then(|| self.inner.ask(&mut state, unsaved))
        };
        let result = match last {
            Some((asked, answer)) => {
                self.inner.start(asked);
                saved(Some(answer)).await
            }
            None => Ok(()),
        };
        self.idle().await;
        let inner = Arc::clone(&self.inner);
        let closing = self.inner.runtime.spawn_blocking(move || drop(lock(&inner.disk).take()));
        let _ = closing.await;
        result
    }

    /// Waits until nothing is being saved.
    async fn idle(&self) {
        // The sender is in `self`, so that there is no error.
        let _ = self.inner.is_saving.subscribe().wait_for(|is_saving| !is_saving).await;
    }

    /// Queues what `change` changes, and what could not be saved before; `None` if the store is closed.
    fn ask(&self, change: impl FnOnce(&mut Facts) -> Changes) -> Option<Answer> {
        let (asked, answer) = {
            let mut state = lock(&self.inner.state);
            if state.is_closed {
                return None;
            }
            let changes = change(&mut state.facts);
            let mut unsaved = std::mem::take(&mut state.unsaved);
            // Peers take the most room: a number that fits on a disk does not fail because these do not.
            if !changes.peers {
                state.unsaved.peers = std::mem::take(&mut unsaved.peers);
            }
            self.inner.ask(&mut state, changes.and(unsaved))
        };
        self.inner.start(asked);
        Some(answer)
    }
}

/// What became of a save.
async fn saved(answer: Option<Answer>) -> Result<(), SaveError> {
    match answer {
        // The sender is dropped unused if the runtime shuts down.
        Some(answer) => answer.await.unwrap_or(Err(SaveError::Closed)),
        None => Err(SaveError::Closed),
    }
}

/// Whether the task that saves has to be started for what was asked.
struct Asked {
    is_first: bool,
}

type Answer = oneshot::Receiver<Result<(), SaveError>>;

impl Inner {
    /// Queues changes of the facts.
    fn ask(&self, state: &mut State, changes: Changes) -> (Asked, Answer) {
        let (sender, receiver) = oneshot::channel();
        state.asked = state.asked.and(changes);
        state.waiting.push(sender);
        (Asked { is_first: !self.is_saving.send_replace(true) }, receiver)
    }

    /// Starts the task that saves, unless it runs already: that one sees what was asked before it ends. Not to be called with the state
    /// locked, as a runtime that shuts down drops the task at once.
    fn start(self: &Arc<Self>, asked: Asked) {
        if asked.is_first {
            let saving = Saving { inner: Arc::clone(self), is_over: false };
            self.runtime.spawn_blocking(move || saving.run());
        }
    }

    /// Writes once what is asked for. Returns whether anything was; if not, the task that saves is over.
    fn save_asked(&self) -> bool {
        let (facts, changes, waiting) = {
            let mut state = lock(&self.state);
            if state.asked.is_empty() {
                self.is_saving.send_replace(false);
                return false;
            }
            let changes = std::mem::take(&mut state.asked);
            (state.facts.clone(), changes, std::mem::take(&mut state.waiting))
        };
        let saved = match lock(&self.disk).as_mut() {
            Some(disk) => disk.save(&facts, changes),
            None => Err(SaveError::Closed),
        };
        match &saved {
            Ok(Some(aside)) => warn!(%aside, "the store was replaced"),
            Ok(None) => {}
            Err(error) => {
                // A full disk stays full: the first failure is news, the others are counted.
                if self.failures.fetch_add(1, Ordering::Relaxed) == 0 {
                    warn!(%error, "the store could not be written");
                }
                let mut state = lock(&self.state);
                state.unsaved = state.unsaved.and(changes);
            }
        }
        let answer = saved.map(|_| ());
        for waiter in waiting {
            // Whoever asked may have gone on.
            let _ = waiter.send(answer.clone());
        }
        true
    }
}

impl Drop for Inner {
    /// Closing a file may write: not on a thread that others wait for.
    fn drop(&mut self) {
        let disk = lock(&self.disk).take();
        if disk.is_some() {
            debug!("the store was dropped without being closed");
            self.runtime.spawn_blocking(move || drop(disk));
        }
    }
}

/// The one task that saves.
struct Saving {
    inner: Arc<Inner>,
    is_over: bool,
}

impl Saving {
    fn run(mut self) {
        while self.inner.save_asked() {}
        self.is_over = true;
    }
}

impl Drop for Saving {
    /// A runtime that shuts down drops the task before it has begun: whoever waits has to know.
    fn drop(&mut self) {
        if !self.is_over {
            let mut state = lock(&self.inner.state);
            state.unsaved = state.unsaved.and(std::mem::take(&mut state.asked));
            state.waiting.clear();
            self.inner.is_saving.send_replace(false);
        }
    }
}
