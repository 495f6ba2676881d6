//! What a [`Gate`](super::Gate) grants, each number with its unit and its reason.

use std::time::Duration;

use super::bucket::GroupLimit;
use super::{GateReason, GroupKey};
use crate::bucket::{Rate, RateError};

/// What a [`Gate`](super::Gate) grants. Zeros are refused by [`validate`](Self::validate); a gate built with them
/// all the same lets nothing through where they stand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GateLimits {
    /// Live connections per address group, handshakes included. Default 8: enough for the few
    /// machines behind one home router, few enough that a flood from one host stays small.
    pub live_per_address: u32,
    /// Arrivals per address group. Default 16 at once, then one per 5 s (0.2/s): a household that
    /// comes back after an outage gets through in one go, a host that hammers does not.
    pub address_rate: Rate,
    /// Live connections over relays, all peers together, since a relay hides who is behind it.
    /// Default 64, eight times what one address gets. A guess.
    pub relayed_live: u32,
    /// Arrivals over relays, all peers together. Default 32 at once, then one per 500 ms: with
    /// handshakes that may take 10 s, a flood over relays keeps at most 32 + 20 of the 64 default
    /// handshakes busy, and direct peers still get in. A guess.
    pub relayed_rate: Rate,
    /// Handshakes in flight in total. Default 64: at up to 10 s each they bound what strangers can
    /// make the node remember and compute.
    pub pending: usize,
    /// Whether connections from this machine escape the limits per address (not the one on
    /// handshakes). Default true: processes on one machine share an address, and nobody else can
    /// receive at it.
    pub exempt_loopback: bool,
    /// Address groups remembered. Default 4096, under 1 MiB: more groups than that, active within
    /// the same few seconds, are an attack. A guess.
    pub groups: usize,
    /// Finished handshakes per peer id. Default 10 at once, then one per 1 s: more than any backoff
    /// of ours asks for, far less than a reconnect loop does. A guess.
    pub peer_rate: Rate,
    /// Peer ids remembered for [`peer_rate`](Self::peer_rate). Default 4096, under 1 MiB. A guess.
    pub peers: usize,
}

impl Default for GateLimits {
    fn default() -> Self {
        Self {
            live_per_address: 8,
            address_rate: Rate::new(16, Duration::from_secs(5)),
            relayed_live: 64,
            relayed_rate: Rate::new(32, Duration::from_millis(500)),
            pending: 64,
            exempt_loopback: true,
            groups: 4096,
            peer_rate: Rate::new(10, Duration::from_secs(1)),
            peers: 4096,
        }
    }
}

impl GateLimits {
    /// Checks that every limit lets something through and that buckets refill within a day.
    ///
    /// # Errors
    ///
    /// Names the first field that does not.
    pub fn validate(&self) -> Result<(), GateLimitError> {
        let counts = [
            ("live_per_address", self.live_per_address == 0),
            ("relayed_live", self.relayed_live == 0),
            ("pending", self.pending == 0),
            ("groups", self.groups == 0),
            ("peers", self.peers == 0),
        ];
        if let Some((field, _)) = counts.into_iter().find(|(_, is_zero)| *is_zero) {
            return Err(GateLimitError::Zero { field });
        }
        let rates = [
            ("address_rate", self.address_rate),
            ("relayed_rate", self.relayed_rate),
            ("peer_rate", self.peer_rate),
        ];
        for (field, rate) in rates {
            rate.validate().map_err(|error| match error {
                RateError::Zero => GateLimitError::Zero { field },
                RateError::SlowRefill => GateLimitError::SlowRefill { field },
            })?;
        }
        Ok(())
    }

    /// Relayed peers and those of custom transports get the same limits, in groups of their own:
    /// in both, one address may stand for everybody.
    pub(super) fn of(&self, group: GroupKey) -> GroupLimit {
        if group.is_shared() {
            GroupLimit {
                live: self.relayed_live,
                rate: self.relayed_rate,
                over_live: GateReason::SharedLive,
                over_rate: GateReason::SharedRate,
            }
        } else {
            GroupLimit {
                live: self.live_per_address,
                rate: self.address_rate,
                over_live: GateReason::AddressLive,
                over_rate: GateReason::AddressRate,
            }
        }
    }
}

/// Why [`GateLimits`] cannot be used. The app's configuration is to blame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GateLimitError {
    /// The limit would let nothing through, or a rate would not limit at all.
    #[error("gate limit `{field}` must be above zero")]
    Zero {
        /// The field of [`GateLimits`].
        field: &'static str,
    },
    /// The bucket would take too long to fill up.
    #[error("gate limit `{field}` must refill within a day, `burst` times `every` is longer")]
    SlowRefill {
        /// The field of [`GateLimits`].
        field: &'static str,
    },
}
