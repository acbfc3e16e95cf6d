//! What a provider signs: that it holds a shard, and that it sent certain bytes.

use serde::{Deserialize, Serialize};
use spare_proofs::tree::Root;

use crate::keys::PublicKey;
use crate::signed::Signable;

/// "These bytes have arrived for this account, and are in a durable file." Signed by the provider's node key after fsync. What binds it to keep
/// them is the head that covers them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Receipt {
    /// The first version.
    V1 {
        /// Whose shard it is.
        owner: PublicKey,
        /// The root that the provider computed from the bytes it wrote.
        root: Root,
        /// The shard's length.
        shard_bytes: u64,
        /// Unix time in seconds, by the provider's clock.
        stored_s: u64,
    },
}

impl Signable for Receipt {
    const DOMAIN: &'static str = "spare 2026 store receipt v1";
    const MAX_BYTES: usize = 128;
}

/// "This is what I answered." Signed by the provider's node key at the end of every read.
///
/// Signed wrong bytes are evidence that anyone can check; a missing signature is a timeout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReadAnswer {
    /// The first version.
    V1 {
        /// Hash of the request, then of every hash pair and group hash sent, in order.
        transcript: [u8; 32],
    },
}

impl Signable for ReadAnswer {
    const DOMAIN: &'static str = "spare 2026 read answer v1";
    const MAX_BYTES: usize = 64;
}

/// Accumulates the transcript of a read on both sides.
///
/// A group enters as the hash that a verifier computes for it anyway, so nothing is hashed twice; the hash binds the bytes.
pub struct Transcript(blake3::Hasher);

impl Transcript {
    /// Starts with the request's exact bytes, which contain a nonce.
    pub fn new(request: &[u8]) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("spare 2026 read transcript v1");
        hasher.update(&(request.len() as u64).to_le_bytes()).update(request);
        Self(hasher)
    }

    /// Adds a hash pair as it was sent, or a group's hash.
    pub fn add(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// What the provider signs.
    pub fn finish(&self) -> ReadAnswer {
        ReadAnswer::V1 { transcript: self.0.finalize().into() }
    }
}
