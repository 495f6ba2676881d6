//! An endpoint of iroh alone, with the QUIC parameters that a node sets: what all is measured beside.

use std::net::SocketAddr;
use std::time::Duration;

use iroh::endpoint::{
    ConnectOptions, Connection, IdleTimeout, QuicTransportConfig, VarInt, presets,
};
use iroh::{Endpoint, EndpointAddr, RelayMode};
use kinfolk::Limits;

/// What it speaks.
const ALPN: &[u8] = b"raw/1";

/// The same as the node sets (`peers/transport.rs`).
fn transport(limits: &Limits, keep_alive: Duration) -> QuicTransportConfig {
    QuicTransportConfig::builder()
        .max_concurrent_bidi_streams(VarInt::from_u32(limits.streams_per_peer + 1))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(Some(limits.datagram_buffer))
        .datagram_send_buffer_size(limits.datagram_buffer)
        .stream_receive_window(VarInt::from_u32(limits.stream_window))
        .receive_window(VarInt::from_u32(limits.connection_window))
        .send_window(limits.send_window)
        .max_idle_timeout(IdleTimeout::try_from(limits.idle_timeout).ok())
        .keep_alive_interval(keep_alive)
        .default_path_keep_alive_interval(keep_alive.min(Duration::from_secs(5)))
        .build()
}

/// One on a free port of loopback.
pub async fn bind() -> Endpoint {
    let here: SocketAddr = ([127, 0, 0, 1], 0).into();
    let limits = Limits::default();
    Endpoint::builder(presets::Minimal)
        .alpns(vec![ALPN.to_vec()])
        .relay_mode(RelayMode::Disabled)
        .transport_config(transport(&limits, limits.keep_alive * 3 / 2))
        .clear_ip_transports()
        .bind_addr(here)
        .unwrap()
        .bind()
        .await
        .unwrap()
}

/// Connects them.
pub async fn connect(endpoint: &Endpoint, peer: EndpointAddr) -> Connection {
    let limits = Limits::default();
    let transport = transport(&limits, limits.keep_alive);
    let options = ConnectOptions::new().with_transport_config(transport);
    endpoint.connect_with_opts(peer, ALPN, options).await.unwrap().await.unwrap()
}
