//! What a node says of itself, and when: its record, what is new in it, and its farewell.

use std::time::{Duration, Instant};

use kinfolk_core::catalog;
use kinfolk_core::record::Seq;
use kinfolk_core::walk::Wake;
use ractor::RpcReplyPort;
use tracing::warn;

use super::{DiscoveryMessage, DiscoveryState, OwnNews, Saying};
use crate::discovery::announcer::AnnouncerMessage;
#[cfg(feature = "fault-injection")]
use crate::fault::Point;
use crate::fault::here;
use crate::metrics::Family;
use crate::supervision::{OwnedTask, lock};

/// The node says something new of itself at most this often: a burst of new addresses is one record.
const RENEWAL_MIN: Duration = Duration::from_secs(1);

/// When the node's record is renewed: after a third to a half of its time, so that one that is late or lost is made up for, and nodes that
/// started together do not go on in step. `random` is uniform.
fn renewal_after(ttl: Duration, random: u64) -> Duration {
    let part = (random as f64) / (u64::MAX as f64);
    ttl.div_f64(3.0).saturating_add(ttl.div_f64(6.0).mul_f64(part))
}

impl DiscoveryState {
    /// Sees to a new record of this node.
    pub(super) fn renew(&mut self) {
        if self.has_departed {
            self.renewal.send_replace(None);
            return;
        }
        let now = Instant::now();
        self.renewed_at = Some(now);
        let ttl = self.context.limits.record_ttl;
        self.renewal.send_replace(now.checked_add(renewal_after(ttl, rand::random())));
        self.say(Saying::Present);
    }

    /// Draws a number and says something with it, once it is saved where something is kept: a number that is used and forgotten would be
    /// used again.
    pub(super) fn say(&mut self, saying: Saying) {
        let seq = match lock(&self.context.own).number() {
            Ok(seq) => seq,
            Err(error) => return self.cannot_say(&error),
        };
        let Some(keep) = &self.context.keep else {
            return match saying {
                Saying::Present => self.say_present(seq),
                Saying::Departed(reply) => self.say_departed(seq, reply),
            };
        };
        let (me, saving) = (self.me.clone(), keep.save_seq(seq));
        let saving = async move {
            // One that cannot be saved is used all the same: the next life's numbers come from the clock as well.
            let _ = saving.await;
            let _ = me.send_message(DiscoveryMessage::Numbered(seq, saying));
        };
        let here = here!(self.context, Point::DiscoverySaves);
        let task = OwnedTask::spawn(&self.me, here, saving, DiscoveryMessage::TaskPanicked);
        self.saving.retain(|task| !task.is_over());
        self.saving.push(task);
    }

    pub(super) fn say_present(&mut self, seq: Seq) {
        if self.has_departed {
            return;
        }
        let address = self.context.address.borrow().clone();
        let signed = lock(&self.context.own).sign(seq, &address);
        match signed {
            Ok(record) => {
                let before = self.context.records.snapshot().own().map(|own| own.record().seq());
                if before.is_some_and(|before| before >= seq) {
                    // A later one was saved first.
                    return;
                }
                let is_news = std::mem::take(&mut self.has_news) || before.is_none();
                self.context.note(catalog::Input::Own(record.clone()));
                self.tell_announcer(AnnouncerMessage::Own(record));
                if is_news {
                    self.wake(Wake::Changed);
                }
            }
            Err(error) => self.cannot_say(&error),
        }
    }

    pub(super) fn say_departed(&mut self, seq: Seq, reply: RpcReplyPort<()>) {
        let signed = lock(&self.context.own).sign_departure(seq);
        match signed {
            Ok(record) => {
                // Whoever exchanges with this node from now on hears it too.
                self.context.note(catalog::Input::Own(record.clone()));
                self.tell_announcer(AnnouncerMessage::Depart(record, reply));
            }
            Err(error) => self.cannot_say(&error),
        }
    }

    /// What was said last holds until it is over: there can be nothing else.
    pub(super) fn cannot_say(&self, error: &dyn std::fmt::Display) {
        self.context.counters.count(Family::RecordRejected, "own");
        warn!(%error, "this node cannot say anything new of itself");
    }

    /// Sees to it that others hear of something new.
    pub(super) fn own_news(&mut self, news: OwnNews) {
        if self.has_departed {
            return;
        }
        match news {
            OwnNews::Said => {
                // The walkers are woken once there is a record that says it.
                self.has_news = true;
                self.renew_soon();
            }
            OwnNews::Aged => self.renew_soon(),
            OwnNews::Secret => self.wake(Wake::Changed),
        }
    }

    /// Sees to a new record, at once or a moment after the one before.
    fn renew_soon(&mut self) {
        let now = Instant::now();
        let earliest = self.renewed_at.and_then(|at| at.checked_add(RENEWAL_MIN));
        let at = earliest.map_or(now, |earliest| earliest.max(now));
        self.renewal.send_replace(Some(at));
    }

    /// Says farewell. Without an announcer nobody is told, and the node's record is over by itself.
    pub(super) fn depart(&mut self, reply: RpcReplyPort<()>) {
        if self.has_departed {
            return;
        }
        self.has_departed = true;
        // A dial under way when the endpoint is closed costs iroh seconds: no new ones.
        for (_, walker) in self.walkers.drain() {
            walker.actor.stop(None);
        }
        self.count_running();
        for running in self.exchanges.values().filter(|running| running.wanted.is_ours()) {
            running.exchange.stop(None);
        }
        self.say(Saying::Departed(reply));
    }
}
