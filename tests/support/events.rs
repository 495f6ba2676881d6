//! What happened in a node, in order: waits for an event, and counts those that came.

use std::time::Duration;

use kinfolk::{Node, NodeEvent};
use tokio::{
    sync::broadcast::{Receiver, error::TryRecvError},
    time::timeout,
};

/// Everything that happened in a node since this was made.
#[derive(Debug)]
pub struct EventLog {
    events: Receiver<NodeEvent>,
    seen: Vec<NodeEvent>,
    /// How many of those seen an earlier wait has passed by.
    read: usize,
}

impl EventLog {
    /// Listens from now on.
    ///
    /// # Panics
    /// When the node has ended.
    pub async fn of(node: &Node) -> Self {
        let events = node.events().await.expect("the node is up");
        Self { events, seen: Vec::new(), read: 0 }
    }

    /// The next event that is wanted, those after the last one that a wait returned considered.
    ///
    /// # Panics
    /// When none comes within `deadline`; the message says `what`, and what came instead.
    pub async fn next(
        &mut self,
        deadline: Duration,
        what: &str,
        wanted: impl Fn(&NodeEvent) -> bool,
    ) -> NodeEvent {
        let come = timeout(deadline, async {
            loop {
                if self.read == self.seen.len() {
                    let event = self.events.recv().await.expect("no event is missed");
                    self.seen.push(event);
                }
                let event = &self.seen[self.read];
                self.read += 1;
                if wanted(event) {
                    return event.clone();
                }
            }
        });
        match come.await {
            Ok(event) => event,
            Err(_) => panic!("{what}: no such event within {deadline:?}, but {:#?}", self.seen),
        }
    }

    /// How many such events came, all since the beginning considered.
    ///
    /// # Panics
    /// When some were missed.
    pub fn count(&mut self, counted: impl Fn(&NodeEvent) -> bool) -> usize {
        loop {
            match self.events.try_recv() {
                Ok(event) => self.seen.push(event),
                Err(TryRecvError::Lagged(missed)) => panic!("{missed} events were missed"),
                Err(TryRecvError::Empty | TryRecvError::Closed) => break,
            }
        }
        self.seen.iter().filter(|event| counted(event)).count()
    }
}
