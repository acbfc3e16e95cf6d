//! Asks: a provider's signed offer.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::amount::{PRICE_MAX, ReadPrice, StoragePrice};
use crate::job::ComputePrices;
use crate::signed::{Signable, SignedBytes};

/// Longest operator name, in bytes.
pub const OPERATOR_MAX_BYTES: usize = 64;
/// Longest name of a region, in bytes.
pub const REGION_MAX_BYTES: usize = 32;
/// Most graphics processors in an ask.
pub const GPUS_MAX: usize = 8;
/// Longest text about a processor, in bytes.
pub const COMPUTE_TEXT_MAX_BYTES: usize = 64;
/// Most addresses of each kind in an ask.
pub const ADDRESSES_MAX: usize = 8;
/// Longest libp2p address in an ask, in bytes of text.
pub const ADDRESS_MAX_BYTES: usize = 128;
/// Longest time from signing that an ask may claim to hold, in seconds.
pub const VALIDITY_MAX_S: u64 = 3600;

/// A provider's signed offer, signed by its node key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ask {
    /// The first version.
    V1(AskV1),
}

/// The first version of an ask.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AskV1 {
    /// The grant that lets the node key offer in its account's name.
    pub grant: SignedBytes,
    /// Who runs the node, in the operator's own words. Nodes of one operator fail together.
    pub operator: String,
    /// Where `spare/1` over quinn listens.
    pub direct: Vec<SocketAddr>,
    /// Where libp2p listens, as multiaddrs in text.
    pub libp2p: Vec<String>,
    /// Bytes on offer in all.
    pub offered_bytes: u64,
    /// Bytes still free.
    pub free_bytes: u64,
    /// Price of storage.
    pub price: StoragePrice,
    /// Price of reading.
    pub read_price: ReadPrice,
    /// Where the node is, in the operator's own words; may be empty.
    pub region: String,
    /// What the provider runs jobs on, if it runs any.
    pub compute: Option<ComputeAsk>,
    /// Unix time in seconds of signing. A newer ask replaces an older one.
    pub made_s: u64,
    /// Unix time in seconds until which the ask holds.
    pub valid_until_s: u64,
}

/// What a provider runs jobs on. All of it was measured or counted by the node; the prices are its operator's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ComputeAsk {
    /// Prices.
    pub prices: ComputePrices,
    /// What runs jobs: the hash of the engine's version and of every setting that changes a result.
    pub configuration: [u8; 32],
    /// The processor's architecture.
    pub arch: String,
    /// Jobs that run at the same time.
    pub slots: u16,
    /// How many of those are free.
    pub free_slots: u16,
    /// Most memory that one job may need, in bytes, as [`Work::needed_bytes`](crate::job::Work::needed_bytes) counts it.
    pub memory_bytes: u64,
    /// Most bytes of output files of a job.
    pub output_bytes: u64,
    /// Fuel that one job uses in a second, as a short program did at the node's start.
    pub fuel_per_s: u64,
    /// Graphics processors. Jobs cannot use them yet.
    pub gpus: Vec<Gpu>,
}

/// A graphics processor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gpu {
    /// Its name, as its driver says.
    pub name: String,
    /// The driver and its version.
    pub driver: String,
    /// Bytes of its memory; 0 if the driver does not say.
    pub memory_bytes: u64,
}

impl ComputeAsk {
    fn is_bounded(&self) -> bool {
        let texts = self.gpus.iter().flat_map(|gpu| [&gpu.name, &gpu.driver]).chain([&self.arch]);
        self.prices.is_bounded()
            && self.free_slots <= self.slots
            && self.gpus.len() <= GPUS_MAX
            && texts.clone().all(|t| t.len() <= COMPUTE_TEXT_MAX_BYTES && !t.chars().any(char::is_control))
    }
}

impl Signable for Ask {
    const DOMAIN: &'static str = "spare 2026 ask v1";
    const MAX_BYTES: usize = 4096;
}

/// Why an ask is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// It does not hold at this time.
    #[error("the ask is not valid at this time")]
    NotNow,
    /// A field is longer than it may be.
    #[error("a field of the ask exceeds its bound")]
    Bounds,
}

impl AskV1 {
    /// Checks the fields at unix time `now_s`. Signature and grant are checked apart.
    ///
    /// # Errors
    /// [`AskError`] when the ask is not to be used.
    pub fn check(&self, now_s: u64) -> Result<(), AskError> {
        let clock_skew_s = 600;
        let in_time = self.made_s <= now_s + clock_skew_s
            && now_s < self.valid_until_s
            && self.valid_until_s <= self.made_s.saturating_add(VALIDITY_MAX_S);
        if !in_time {
            return Err(AskError::NotNow);
        }
        let printable = [&self.operator, &self.region].iter().all(|text| !text.chars().any(char::is_control));
        let bounded = self.operator.len() <= OPERATOR_MAX_BYTES
            && self.region.len() <= REGION_MAX_BYTES
            && self.price.0 <= PRICE_MAX
            && self.read_price.0 <= PRICE_MAX
            && self.direct.len() <= ADDRESSES_MAX
            && self.libp2p.len() <= ADDRESSES_MAX
            && self
                .libp2p
                .iter()
                .all(|a| a.len() <= ADDRESS_MAX_BYTES && a.bytes().all(|b| b.is_ascii_graphic()))
            && self.free_bytes <= self.offered_bytes
            && self.compute.as_ref().is_none_or(ComputeAsk::is_bounded);
        if bounded && printable { Ok(()) } else { Err(AskError::Bounds) }
    }
}
