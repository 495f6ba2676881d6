//! Calls to whoever offers a protocol: candidates from the catalog, attempts one after another, an answer.
//!
//! It runs in the caller's own future, as every call does. Whom to ask and whether another one may be is decided by
//! [`kinfolk_core::provider`]; here is looked who there is, how far away and how loaded. Of a call that may be acted on
//! twice, more than one attempt can be under way: where the first provider takes long, the next is asked beside it.

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use iroh::EndpointId;
use kinfolk_core::catalog::Entry;
use kinfolk_core::id::ProtocolName;
use kinfolk_core::intent::{Failure, Outcome};
use kinfolk_core::provider::{
    Candidate, Choice, Distance, Loads, News, Search, Verdict, after_attempt, reach_share,
};
use kinfolk_core::record::Offer;
use kinfolk_core::wire::call_prefix;

use crate::context::Context;
use crate::discovery::manager::DiscoveryMessage;
use crate::error::{NodeClosed, OpenError};
use crate::protocol::open::{Attempt, Options};
use crate::supervision::lock;

/// How often is looked whether a provider has come by itself, or the node is draining.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// Attempts of one call that may be under way at once, where it may be acted on twice.
const ATTEMPTS_MAX: usize = 3;

/// What this node has with the providers that it asks.
pub(crate) type Providers = Mutex<Loads>;

/// Sends a request to a peer that offers the protocol, and waits for the response.
pub(crate) async fn call_any(
    context: &Arc<Context>,
    protocol: ProtocolName,
    request: &[u8],
    options: Options,
) -> Result<Bytes, OpenError> {
    let mut counted = Counted { context, outcome: Outcome::Cancelled };
    let started = Instant::now();
    let mut call = AnyCall {
        context,
        protocol: &protocol,
        request,
        options: &options,
        deadline: options.deadline_from(context, started),
        search: Search::default(),
        under_way: Vec::new(),
        last: None,
        sought_at: None,
    };
    // In a box, as it is large and rarely polled.
    let result = Box::pin(call.run()).await;
    counted.outcome = result.as_ref().err().map_or(Outcome::Done, OpenError::outcome);
    result
}

/// Counts how a call ended, however many were asked.
struct Counted<'a> {
    context: &'a Context,
    outcome: Outcome,
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.context.counters.outcome(&self.outcome);
    }
}

/// One call in search of a provider.
struct AnyCall<'a> {
    context: &'a Arc<Context>,
    protocol: &'a ProtocolName,
    request: &'a [u8],
    options: &'a Options,
    deadline: Instant,
    search: Search,
    /// Who has been asked and has not answered: a handful.
    under_way: Vec<InFlight<'a>>,
    /// How the last attempt failed.
    last: Option<OpenError>,
    /// When the walkers were last told to look around.
    sought_at: Option<Instant>,
}

/// An attempt under way: whom it asks, and what came of it.
type Asking<'a> = Pin<Box<dyn Future<Output = (EndpointId, Result<Bytes, Failed>)> + Send + 'a>>;

/// How an attempt failed, and whether it is certain that the provider did not act on the request.
type Failed = (OpenError, bool);

impl<'a> AnyCall<'a> {
    async fn run(&mut self) -> Result<Bytes, OpenError> {
        if call_prefix(self.request.len(), self.context.limits.call_bytes).is_err() {
            return Err(OpenError::Failed { failure: Failure::TooLarge, cause: None });
        }
        let offer = Offer::protocol(self.protocol);
        let mut attempts: FuturesUnordered<Asking<'a>> = FuturesUnordered::new();
        // When the next provider is asked beside those that have the request.
        let mut impatient_at = self.deadline;
        // From before the first look, so that no news is missed.
        let (_, mut changes) = self.context.records.follow();
        loop {
            let now = Instant::now();
            let (mut wake, mut is_waiting) = (self.deadline, false);
            if !self.has_room(attempts.len()) {
                // The answers that are awaited are all that can happen.
            } else if !attempts.is_empty() && now < impatient_at {
                wake = impatient_at;
            } else if now < self.deadline {
                let candidates = self.candidates(now, &offer);
                match self.search.choose(now, &candidates, rand::random()) {
                    Choice::Ask(id, others) => {
                        let chosen = candidates.iter().filter(|candidate| candidate.id == id);
                        attempts.extend(chosen.map(|chosen| self.attempt(now, chosen, others)));
                        let left = self.deadline.saturating_duration_since(now);
                        impatient_at = now.checked_add(left.div_f64(2.0)).unwrap_or(self.deadline);
                        continue;
                    }
                    Choice::Pause(at) => (wake, is_waiting) = (wake.min(at), true),
                    // Nobody is left to be asked beside those that were, unless another one appears.
                    _ if !attempts.is_empty() => is_waiting = true,
                    // Nobody will ever be heard of.
                    Choice::Wait if !self.context.discovers => return Err(self.given_up()),
                    Choice::Wait => {
                        is_waiting = true;
                        self.seek(now);
                    }
                    Choice::GiveUp => return Err(self.given_up()),
                }
            }
            if attempts.is_empty() {
                if now >= self.deadline {
                    return Err(self.given_up());
                }
                if self.context.is_draining() {
                    return Err(OpenError::ShuttingDown);
                }
                wake = wake.min(now.checked_add(LOOK_AGAIN).unwrap_or(wake));
            }
            let sleeping = {
                let _timers = self.context.timers();
                tokio::time::sleep_until(wake.into())
            };
            tokio::select! {
                biased;
                Some((id, result)) = attempts.next() => {
                    if let Some(response) = self.ended(&id, result)? {
                        return Ok(response);
                    }
                    // Whoever was asked beside others and is of no use is replaced at once.
                    impatient_at = Instant::now();
                }
                _ = changes.recv(), if is_waiting => {}
                end = self.context.closed() => return Err(OpenError::Closed(NodeClosed(end))),
                // Attempts end at the deadline by themselves, and know the cause.
                () = sleeping, if attempts.is_empty() || wake < self.deadline => {}
            }
        }
    }

    /// Has the walkers look around, not more often than is looked here: the catalog may change at any rate.
    fn seek(&mut self, now: Instant) {
        let is_soon = |at: Instant| now.saturating_duration_since(at) < LOOK_AGAIN;
        if !self.sought_at.is_some_and(is_soon) {
            self.sought_at = Some(now);
            let _ = self.context.tell_discovery(DiscoveryMessage::Sought);
        }
    }

    /// Whether one more provider may have the request, beside so many that have it.
    fn has_room(&self, attempts: usize) -> bool {
        attempts == 0 || self.options.is_idempotent() && attempts < ATTEMPTS_MAX
    }

    fn candidates(&self, now: Instant, offer: &Offer) -> Vec<Candidate> {
        let known = self.context.records.snapshot();
        let offering = known.with_offer(offer);
        offering
            .filter(|entry| !self.context.is_banned(&entry.id()))
            .map(|entry| self.candidate(now, entry))
            .collect()
    }

    fn candidate(&self, now: Instant, entry: &Entry) -> Candidate {
        let id = entry.id();
        let link = self.context.directory.get(&id);
        let is_configured = lock(&self.context.retained).book.is_configured(&id);
        Candidate {
            id,
            seq: entry.record().seq(),
            liveness: entry.liveness().standing(now),
            is_backed: link.is_some() || is_configured || !entry.is_hearsay(),
            distance: match link.and_then(|link| link.rtt()) {
                Some(rtt) => Distance::Measured(rtt),
                None if self.context.has_way_to(&id) => Distance::Unknown,
                None => Distance::NoWay,
            },
            load: lock(&self.context.providers).of(now, &id),
        }
    }

    /// Begins to ask a provider; so many others have not been asked.
    fn attempt(&mut self, now: Instant, provider: &Candidate, others: usize) -> Asking<'a> {
        let id = provider.id;
        self.search.asking(now, provider);
        self.under_way.push(InFlight::new(self.context, id));
        let left = self.deadline.saturating_duration_since(now);
        let attempt = Attempt {
            protocol: self.protocol,
            request: self.request,
            options: self.options,
            deadline: self.deadline,
            reach_by: now.checked_add(reach_share(left, others)).unwrap_or(self.deadline),
        };
        let context = self.context;
        Box::pin(async move { (id, attempt.at(context, id).await) })
    }

    /// What comes of the call, now that an attempt has ended: the response, an error, or nothing yet where another provider may be asked.
    fn ended(
        &mut self,
        id: &EndpointId,
        result: Result<Bytes, Failed>,
    ) -> Result<Option<Bytes>, OpenError> {
        let news = match &result {
            Ok(_) => News::Answered,
            Err((error, is_safe)) => News::of_failure(error.outcome(), *is_safe),
        };
        let ended = match result {
            Ok(response) => Ok(Some(response)),
            Err(failed) => self.failed(id, failed).map(|()| None),
        };
        let is_answer = match &ended {
            Ok(response) => response.is_some(),
            Err(error) => matches!(error, OpenError::Failed { failure: Failure::Reset(_), .. }),
        };
        for asked in &mut self.under_way {
            if asked.id == *id {
                asked.news = news;
            } else if is_answer && self.search.is_overtaken(&asked.id, id) {
                asked.news = News::Silence;
            }
        }
        self.under_way.retain(|asked| asked.id != *id);
        ended
    }

    /// Whether another provider may be asked, now that this one has not answered.
    fn failed(&mut self, id: &EndpointId, (error, is_safe): Failed) -> Result<(), OpenError> {
        match after_attempt(error.outcome(), is_safe || self.options.is_idempotent()) {
            Verdict::End => Err(error),
            Verdict::Elsewhere(standing) => {
                self.search.failed(Instant::now(), id, standing);
                self.last = Some(error);
                Ok(())
            }
        }
    }

    fn given_up(&mut self) -> OpenError {
        let failure = Failure::NoProvider;
        self.last.take().unwrap_or(OpenError::Failed { failure, cause: None })
    }
}

/// Counts a call as one that its provider has, for as long as it lives.
struct InFlight<'a> {
    context: &'a Context,
    id: EndpointId,
    /// What is to be known of the provider then.
    news: News,
}

impl<'a> InFlight<'a> {
    fn new(context: &'a Context, id: EndpointId) -> Self {
        lock(&context.providers).started(&id);
        Self { context, id, news: News::Nothing }
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        lock(&self.context.providers).ended(Instant::now(), &self.id, self.news);
    }
}
