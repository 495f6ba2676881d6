//! What QUIC may use and how it keeps connections alive, for each of the two sides, and dialling with it.

use std::time::Duration;

use iroh::endpoint::{
    ConnectError, ConnectOptions, Connection, IdleTimeout, QuicTransportConfig, VarInt,
};
use iroh::{Endpoint, EndpointAddr, RelayMode};
use kinfolk_core::limits::Limits;

/// iroh takes no longer interval between signs of life on a path.
const PATH_KEEP_ALIVE_MAX: Duration = Duration::from_secs(5);

/// The parameters of the side that accepts.
///
/// The dialler's signs of life are acknowledged, which tells either side that the other is there and keeps both NATs open. Its own are due
/// half an interval later or after the longest that a path may have, where none came: at the same interval they would cross each time, as each restarts the clocks of both.
///
/// Not where a relay may be a second path, in reserve: what comes there is acknowledged on the path in use, so that each needs the other's signs of life
/// to know that it is alive.
pub(crate) fn accepting(limits: &Limits, relay: &RelayMode) -> QuicTransportConfig {
    let keep_alive = match relay {
        RelayMode::Disabled => second_interval(limits.keep_alive, limits.idle_timeout),
        _ => limits.keep_alive,
    };
    transport(limits, keep_alive)
}

/// Between the interval of the dialler and the idle timeout: its own may be longer, and then it is this one that keeps the link.
fn second_interval(keep_alive: Duration, idle_timeout: Duration) -> Duration {
    let left = idle_timeout.saturating_sub(keep_alive);
    let half = keep_alive.min(left).checked_div(2).unwrap_or_default();
    keep_alive.saturating_add(half)
}

/// QUIC's own bounds. iroh's defaults let one connection pin about 250 MB; these let it pin its connection window.
fn transport(limits: &Limits, keep_alive: Duration) -> QuicTransportConfig {
    // `Limits::validate` keeps every value within QUIC's range.
    let idle = IdleTimeout::try_from(limits.idle_timeout).ok();
    QuicTransportConfig::builder()
        // One more for the control stream of a peer that dials.
        .max_concurrent_bidi_streams(VarInt::from_u32(limits.streams_per_peer.saturating_add(1)))
        // Version 1 has no use for one-way streams.
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(Some(limits.datagram_buffer))
        .datagram_send_buffer_size(limits.datagram_buffer)
        .stream_receive_window(VarInt::from_u32(limits.stream_window))
        .receive_window(VarInt::from_u32(limits.connection_window))
        .send_window(limits.send_window)
        .max_idle_timeout(idle)
        .keep_alive_interval(keep_alive)
        .default_path_keep_alive_interval(keep_alive.min(PATH_KEEP_ALIVE_MAX))
        .build()
}

/// Dials, with the parameters of the side that does.
#[derive(Debug, Clone)]
pub(crate) struct Dialler {
    endpoint: Endpoint,
    alpn: Vec<u8>,
    options: ConnectOptions,
}

impl Dialler {
    /// One for peers that speak this protocol.
    pub(crate) fn new(endpoint: Endpoint, alpn: Vec<u8>, limits: &Limits) -> Self {
        let transport = transport(limits, limits.keep_alive);
        let options = ConnectOptions::new().with_transport_config(transport);
        Self { endpoint, alpn, options }
    }

    /// Connects, up to the end of the handshake.
    pub(crate) async fn dial(&self, address: EndpointAddr) -> Result<Connection, ConnectError> {
        let options = self.options.clone();
        let connecting = self.endpoint.connect_with_opts(address, &self.alpn, options).await?;
        Ok(connecting.await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn the_second_to_speak_waits_for_longer_and_less_than_the_idle_timeout() {
        assert_eq!(second_interval(ms(3000), ms(10_000)), ms(4500));
        assert_eq!(second_interval(ms(8000), ms(10_000)), ms(9000));
        assert_eq!(second_interval(ms(9999), ms(10_000)), ms(9999) + ms(1) / 2);
    }

    #[test]
    fn by_default_it_is_the_dialler_alone_that_speaks_on_a_path_at_rest() {
        let Limits { keep_alive, idle_timeout, .. } = Limits::default();
        let second = second_interval(keep_alive, idle_timeout).min(PATH_KEEP_ALIVE_MAX);
        assert!(second >= keep_alive + Duration::from_secs(1), "{second:?} after {keep_alive:?}");
    }
}
