//! What a node serves: one handler per protocol, with its limits and whom it admits.
//!
//! The app registers handlers; the sessions look them up for each incoming stream. The registry belongs to the node and survives
//! every restart below it.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, RwLock};

use bytes::Bytes;
use futures_util::stream::{self, Stream, StreamExt};
use iroh::EndpointId;
use kinfolk_core::code::Code;
use kinfolk_core::id::ProtocolName;
use kinfolk_core::record::{Offer, Record};
use kinfolk_core::wire::header::StreamMode;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::context::Context;
use crate::error::{HandlerError, ServeError};
use crate::metrics::ProtocolCounters;
use crate::protocol::places::{Place, Places};
use crate::protocol::respond::Bodies;
use crate::protocol::stream::{RecvStream, SendStream};
use crate::supervision::{read, write};

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;
type StreamHandler = dyn Fn(Incoming) -> BoxFuture<Result<(), HandlerError>> + Send + Sync;
type CallHandler =
    dyn Fn(EndpointId, Bytes) -> BoxFuture<Result<Vec<u8>, HandlerError>> + Send + Sync;
pub(crate) type ResponsesHandler = dyn Fn(EndpointId, Bytes) -> Bodies + Send + Sync;
type Admits = dyn Fn(&EndpointId) -> bool + Send + Sync;
type AdmitsRecord = dyn Fn(&Record) -> bool + Send + Sync;

/// A stream that a peer opened and this node has accepted.
#[derive(Debug)]
#[non_exhaustive]
pub struct Incoming {
    /// Who opened it.
    pub peer: EndpointId,
    /// For which protocol.
    pub protocol: ProtocolName,
    /// The half that this node sends on.
    pub send: SendStream,
    /// The half that this node receives on.
    pub recv: RecvStream,
}

/// A handler for one protocol, with what it admits.
///
/// ```
/// use kinfolk::Service;
///
/// let echo = Service::stream(|mut stream| async move {
///     while let Some(chunk) = stream.recv.read_chunk(64 * 1024).await? {
///         stream.send.write_chunk(chunk).await?;
///     }
///     stream.send.finish()?;
///     Ok(())
/// })
/// .concurrency(100);
/// # let _ = echo;
/// ```
pub struct Service {
    pub(crate) handler: Handler,
    pub(crate) concurrency: Option<usize>,
    pub(crate) admits: Option<Box<Admits>>,
    pub(crate) admits_record: Option<Box<AdmitsRecord>>,
    /// Whether the node's record says that it serves this.
    pub(crate) is_offered: bool,
}

pub(crate) enum Handler {
    Stream(Box<StreamHandler>),
    Call(Box<CallHandler>),
    Responses(Box<ResponsesHandler>),
    Actor {
        /// Passes a stream on; false if the actor is gone.
        cast: Box<dyn Fn(Incoming) -> bool + Send + Sync>,
        is_up: Box<dyn Fn() -> bool + Send + Sync>,
    },
}

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = match self.handler {
            Handler::Stream(_) => "stream",
            Handler::Call(_) => "call",
            Handler::Responses(_) => "call_stream",
            Handler::Actor { .. } => "actor",
        };
        f.debug_struct("Service")
            .field("kind", &kind)
            .field("concurrency", &self.concurrency)
            .finish_non_exhaustive()
    }
}

impl Service {
    /// Serves each stream with an async function. When it returns an error or panics, the stream is reset with the code
    /// `HandlerFailed` or `HandlerPanicked`, and nothing else is touched.
    pub fn stream<F, Fut>(handler: F) -> Self
    where
        F: Fn(Incoming) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), HandlerError>> + Send + 'static,
    {
        Self::new(Handler::Stream(Box::new(move |stream| Box::pin(handler(stream)))))
    }

    /// Answers each request with a typed response. Requests and responses travel as postcard.
    ///
    /// An error of the app that the caller should see belongs into the response type; a [`HandlerError`] only tells
    /// the caller that the handler failed.
    pub fn call<Req, Res, F, Fut>(handler: F) -> Self
    where
        Req: DeserializeOwned + 'static,
        Res: Serialize + 'static,
        F: Fn(EndpointId, Req) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Res, HandlerError>> + Send + 'static,
    {
        let handler = Arc::new(handler);
        Self::new(Handler::Call(Box::new(move |peer, request: Bytes| {
            let handler = Arc::clone(&handler);
            Box::pin(async move {
                let request = postcard::from_bytes(&request)
                    .map_err(|error| HandlerError::new(format!("undecodable request: {error}")))?;
                let response = handler(peer, request).await?;
                postcard::to_allocvec(&response)
                    .map_err(|error| HandlerError::new(format!("unencodable response: {error}")))
            })
        })))
    }

    /// Answers each request with bytes.
    pub fn call_bytes<F, Fut>(handler: F) -> Self
    where
        F: Fn(EndpointId, Bytes) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Vec<u8>, HandlerError>> + Send + 'static,
    {
        Self::new(Handler::Call(Box::new(move |peer, request| Box::pin(handler(peer, request)))))
    }

    /// Answers each request with any number of typed responses: those that the handler's stream makes, up to its end. They travel as postcard.
    ///
    /// The stream is polled as the caller reads, and runs ahead of it by what QUIC's windows hold. It is dropped at its next await once the caller has
    /// dropped its [`Responses`](crate::Responses). When it makes an error or panics, the caller gets the responses before that, then the code `HandlerFailed` or
    /// `HandlerPanicked`. A response larger than [`Limits::call_bytes`](kinfolk_core::limits::Limits::call_bytes) is a failure of the handler.
    ///
    /// A caller that does not read keeps the handler, and its place in the concurrency, for as long as the session lives, as one does that keeps a stream open;
    /// how many one peer can keep is bounded by [`Limits::streams_per_peer`](kinfolk_core::limits::Limits::streams_per_peer), and what waits for it by
    /// [`Limits::connection_window`](kinfolk_core::limits::Limits::connection_window): beyond that none of its handlers is asked for more.
    ///
    /// The bytes of a request count among those that its peer may have here until the handler has made its stream. What it keeps of the request beyond that is
    /// its own, and there may be as much for each place in the concurrency: with large requests, keep little or serve few at once.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use futures_util::{TryFutureExt, stream};
    /// use kinfolk::Service;
    /// use kinfolk::error::HandlerError;
    ///
    /// // What is at hand.
    /// let count = Service::call_stream(|_peer, to: u64| stream::iter((0..to).map(Ok)));
    ///
    /// // What comes one after another.
    /// let ticks = Service::call_stream(|_peer, every: Duration| {
    ///     stream::unfold(0_u64, move |tick| async move {
    ///         tokio::time::sleep(every).await;
    ///         Some((Ok(tick), tick + 1))
    ///     })
    /// });
    ///
    /// // What begins with something that may fail.
    /// let bytes = Service::call_stream(|_peer, (path, most): (String, usize)| {
    ///     async move {
    ///         let found = tokio::task::spawn_blocking(move || std::fs::read(path)).await;
    ///         let bytes = found.map_err(HandlerError::new)??;
    ///         Ok(stream::iter(bytes.into_iter().take(most).map(Ok)))
    ///     }
    ///     .try_flatten_stream()
    /// });
    /// # let _ = (count, ticks, bytes);
    /// ```
    pub fn call_stream<Req, Res, F, S>(handler: F) -> Self
    where
        Req: DeserializeOwned + 'static,
        Res: Serialize + 'static,
        F: Fn(EndpointId, Req) -> S + Send + Sync + 'static,
        S: Stream<Item = Result<Res, HandlerError>> + Send + 'static,
    {
        Self::new(Handler::Responses(Box::new(move |peer, request: Bytes| {
            let request = match postcard::from_bytes(&request) {
                Ok(request) => request,
                Err(error) => {
                    let error = HandlerError::new(format!("undecodable request: {error}"));
                    return stream::iter([Err(error)]).boxed();
                }
            };
            let encode = |response: Result<Res, HandlerError>| {
                postcard::to_allocvec(&response?)
                    .map_err(|error| HandlerError::new(format!("unencodable response: {error}")))
            };
            handler(peer, request).map(encode).boxed()
        })))
    }

    /// Answers each request with any number of responses of bytes, as [`Service::call_stream`] does. The bytes of the request count for as long as the handler's
    /// stream has any of them.
    pub fn call_stream_bytes<F, S>(handler: F) -> Self
    where
        F: Fn(EndpointId, Bytes) -> S + Send + Sync + 'static,
        S: Stream<Item = Result<Vec<u8>, HandlerError>> + Send + 'static,
    {
        Self::new(Handler::Responses(Box::new(move |peer, request| handler(peer, request).boxed())))
    }

    /// Casts each stream to an actor. The stream holds its place in the protocol's concurrency until both halves are over, which bounds
    /// the actor's mailbox. While the actor is dead, streams are refused as busy.
    pub fn actor<M>(actor: ractor::ActorRef<M>) -> Self
    where
        M: ractor::Message + From<Incoming>,
    {
        let watched = actor.get_cell();
        Self::new(Handler::Actor {
            cast: Box::new(move |stream| actor.send_message(M::from(stream)).is_ok()),
            is_up: Box::new(move || watched.get_status() < ractor::ActorStatus::Draining),
        })
    }

    /// Whether streams cannot be served now, since the actor that would is gone.
    pub(crate) fn is_away(&self) -> bool {
        matches!(&self.handler, Handler::Actor { is_up, .. } if !is_up())
    }

    fn new(handler: Handler) -> Self {
        Self { handler, concurrency: None, admits: None, admits_record: None, is_offered: false }
    }

    /// How many streams are served at once; more are refused as busy. The default is
    /// [`Limits::protocol_concurrency`](kinfolk_core::limits::Limits::protocol_concurrency).
    ///
    /// A peer that has 16 or more gets another only while more than a quarter as many are free, so that a few peers cannot take all: one alone
    /// gets four fifths of them.
    #[must_use]
    pub fn concurrency(mut self, streams: usize) -> Self {
        self.concurrency = Some(streams);
        self
    }

    /// Serves only peers for which the function is true; others are refused as not allowed. It runs for each stream and must not block.
    #[must_use]
    pub fn admit(mut self, admits: impl Fn(&EndpointId) -> bool + Send + Sync + 'static) -> Self {
        self.admits = Some(Box::new(admits));
        self
    }

    /// Serves only peers whose record is known and for which the function is true; others are refused as not allowed. A peer whose record is
    /// not known is refused as unknown, upon which its node exchanges catalogs with this one and asks once more; a stream that it opened eagerly, or
    /// only if a session was live, ends with the refusal. It runs for each
    /// stream and must not block.
    #[must_use]
    pub fn admit_record(
        mut self,
        admits: impl Fn(&Record) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.admits_record = Some(Box::new(admits));
        self
    }

    /// Says in the node's record that it serves the protocol, for as long as it does: peers find it by that, and
    /// [`Node::call_any`](crate::Node::call_any) asks it. Everybody in the network can see it, whomever the protocol admits. A record has
    /// room for 12 offers; to serve one more fails as [`ServeError::Offer`], as it does where discovery is switched off: nobody would hear of it.
    #[must_use]
    pub fn offered(mut self) -> Self {
        self.is_offered = true;
        self
    }
}

/// A registered service.
pub(crate) struct Registered {
    pub(crate) service: Service,
    pub(crate) places: Arc<Places>,
    pub(crate) counters: Arc<ProtocolCounters>,
}

impl Registered {
    fn new(service: Service, places: usize, counters: Arc<ProtocolCounters>) -> Self {
        Self { service, places: Places::new(places), counters }
    }

    /// A place for a stream of this peer among those that the protocol serves at once.
    pub(crate) fn place(&self, peer: EndpointId) -> Result<Place, Code> {
        self.places.take(peer)
    }

    /// Whether a stream of this mode can be served by this handler.
    pub(crate) fn takes(&self, mode: StreamMode) -> bool {
        match mode {
            StreamMode::Acked | StreamMode::Eager => {
                matches!(self.service.handler, Handler::Stream(_) | Handler::Actor { .. })
            }
            StreamMode::Call => matches!(self.service.handler, Handler::Call(_)),
            StreamMode::CallStream => matches!(self.service.handler, Handler::Responses(_)),
        }
    }
}

/// All services of a node.
#[derive(Default)]
pub(crate) struct Services(RwLock<BTreeMap<ProtocolName, Arc<Registered>>>);

impl std::fmt::Debug for Services {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Services").finish_non_exhaustive()
    }
}

impl Services {
    pub(crate) fn get(&self, protocol: &ProtocolName) -> Option<Arc<Registered>> {
        read(&self.0).get(protocol).cloned()
    }

    pub(crate) fn add(
        &self,
        protocol: ProtocolName,
        service: Service,
        default_concurrency: usize,
        max: usize,
        counters: Arc<ProtocolCounters>,
    ) -> Result<(), ServeError> {
        if protocol.is_reserved() {
            return Err(ServeError::Reserved(protocol));
        }
        let places = service.concurrency.unwrap_or(default_concurrency);
        if places == 0 {
            return Err(ServeError::ZeroConcurrency);
        }
        let mut services = write(&self.0);
        if services.contains_key(&protocol) {
            return Err(ServeError::AlreadyServed(protocol));
        }
        let of_the_app = services.keys().filter(|name| !name.is_reserved()).count();
        if of_the_app >= max {
            return Err(ServeError::TooMany(max));
        }
        services.insert(protocol, Arc::new(Registered::new(service, places, counters)));
        Ok(())
    }

    /// Takes one of the library's own protocols into service, in the place of what an actor that is gone served.
    pub(crate) fn replace_own(
        &self,
        protocol: ProtocolName,
        service: Service,
        counters: Arc<ProtocolCounters>,
    ) {
        let places = service.concurrency.unwrap_or(1);
        let registered = Arc::new(Registered::new(service, places, counters));
        // Dropped without the lock, as below.
        let replaced = write(&self.0).insert(protocol, registered);
        drop(replaced);
    }

    /// Takes all of them out. Their drop may run code of the app, which may come back here: not under the lock.
    pub(crate) fn take(&self) -> BTreeMap<ProtocolName, Arc<Registered>> {
        std::mem::take(&mut *write(&self.0))
    }

    /// What was served; to be dropped without any lock, as above.
    pub(crate) fn remove(&self, protocol: &ProtocolName) -> Option<Arc<Registered>> {
        write(&self.0).remove(protocol)
    }
}

impl Context {
    /// Takes a protocol into service.
    pub(crate) fn serve(&self, protocol: ProtocolName, service: Service) -> Result<(), ServeError> {
        let limits = &self.limits;
        let counters = self.counters.protocol(&protocol, limits.protocols);
        let offer = service.is_offered.then(|| Offer::protocol(&protocol));
        if let Some(offer) = offer {
            self.make_offer(offer)?;
        }
        let added = self.services.add(
            protocol,
            service,
            limits.protocol_concurrency,
            limits.protocols,
            counters,
        );
        match (offer, &added) {
            // Said only now that whoever hears of it is served.
            (Some(_), Ok(())) => self.renew_own(),
            (Some(offer), Err(_)) => self.withdraw_offer(offer),
            (None, _) => {}
        }
        added
    }

    /// Takes a protocol out of service, and its offer back; whether it was in service.
    pub(crate) fn unserve(&self, protocol: &ProtocolName) -> bool {
        let Some(removed) = self.services.remove(protocol) else { return false };
        if removed.service.is_offered {
            self.withdraw_offer(Offer::protocol(protocol));
        }
        true
    }

    /// Takes one of the library's own protocols into service, in the place of what served it before.
    pub(crate) fn serve_own(&self, protocol: ProtocolName, service: Service) {
        let counters = self.counters.protocol(&protocol, self.limits.protocols);
        self.services.replace_own(protocol, service, counters);
    }
}
