//! An endpoint of iroh alone, with the QUIC parameters that a node sets: what all is measured beside.

use std::net::SocketAddr;

use iroh::endpoint::{IdleTimeout, QuicTransportConfig, VarInt, presets};
use iroh::{Endpoint, RelayMode};
use kinfolk::Limits;

/// What it speaks.
pub const ALPN: &[u8] = b"raw/1";

/// The same as the node sets (`transport` in `node/builder.rs`).
fn transport(limits: &Limits) -> QuicTransportConfig {
    QuicTransportConfig::builder()
        .max_concurrent_bidi_streams(VarInt::from_u32(limits.streams_per_peer + 1))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(Some(limits.datagram_buffer))
        .datagram_send_buffer_size(limits.datagram_buffer)
        .stream_receive_window(VarInt::from_u32(limits.stream_window))
        .receive_window(VarInt::from_u32(limits.connection_window))
        .send_window(limits.send_window)
        .max_idle_timeout(IdleTimeout::try_from(limits.idle_timeout).ok())
        .keep_alive_interval(limits.keep_alive)
        .default_path_keep_alive_interval(limits.keep_alive)
        .build()
}

/// One on a free port of loopback.
pub async fn bind() -> Endpoint {
    let here: SocketAddr = ([127, 0, 0, 1], 0).into();
    Endpoint::builder(presets::Minimal)
        .alpns(vec![ALPN.to_vec()])
        .relay_mode(RelayMode::Disabled)
        .transport_config(transport(&Limits::default()))
        .clear_ip_transports()
        .bind_addr(here)
        .unwrap()
        .bind()
        .await
        .unwrap()
}
