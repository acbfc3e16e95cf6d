//! Genesis: what a market is, fixed for good when it is founded.
//!
//! The hash of the genesis names the network. It is part of every signature's digest, so nothing signed for one market means anything
//! in another.

use serde::{Deserialize, Serialize};
use spare_proofs::encode::to_bytes;

use crate::beacon::Beacon;
use crate::keys::PublicKey;
use crate::signed::NetworkId;

/// Longest period, in seconds: a week.
pub const PERIOD_MAX_S: u32 = 7 * 24 * 3600;
/// Highest fee, in ten-thousandths: half of every payment.
pub const FEE_MAX_BPS: u16 = 5_000;

/// What a market is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Genesis {
    /// The first version.
    V1(GenesisV1),
}

/// The first version of a genesis.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GenesisV1 {
    /// The node key that orders transactions, signs blocks and issues credits.
    pub market: PublicKey,
    /// Unix time in seconds at which period 0 begins.
    pub started_s: u64,
    /// Length of a period in seconds.
    pub period_s: u32,
    /// The beacon of period 0; see [`crate::beacon`].
    pub beacon: Beacon,
    /// The market's share of every payment to a provider, in ten-thousandths.
    pub fee_bps: u16,
    /// Random, so that no two markets are one network.
    pub salt: [u8; 32],
}

/// A genesis that no market can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum GenesisError {
    /// The period is 0 or too long.
    #[error("a period has 1 to {PERIOD_MAX_S} seconds")]
    Period,
    /// The fee is too high.
    #[error("a fee is at most {FEE_MAX_BPS} ten-thousandths")]
    Fee,
}

impl Genesis {
    /// The first version's fields.
    pub fn v1(&self) -> &GenesisV1 {
        let Self::V1(v1) = self;
        v1
    }

    /// The network that this genesis founds.
    pub fn network(&self) -> NetworkId {
        NetworkId(blake3::derive_key("spare 2026 genesis v1", &to_bytes(self)))
    }

    /// Checks the fields.
    ///
    /// # Errors
    /// [`GenesisError`].
    pub fn check(&self) -> Result<(), GenesisError> {
        if self.v1().period_s == 0 || self.v1().period_s > PERIOD_MAX_S {
            return Err(GenesisError::Period);
        }
        if self.v1().fee_bps > FEE_MAX_BPS {
            return Err(GenesisError::Fee);
        }
        Ok(())
    }

    /// The period that unix time `now_s` lies in; times before the start lie in period 0.
    pub fn period_at(&self, now_s: u64) -> u64 {
        now_s.saturating_sub(self.v1().started_s) / u64::from(self.v1().period_s.max(1))
    }
}
