//! Heads: what a provider holds for a client, and at which price, signed by both.
//!
//! The client signs first and sends the head with what changes in the set. The provider computes the same set, makes it durable and
//! countersigns; only then does what was added count as placed, and what was removed may be deleted. A repeated head is answered with the
//! same bytes. Each side has its signed head durable before it lets it go, and one writer works on a deal at a time, so two heads of one number
//! are proof against whoever signed both.

use serde::{Deserialize, Serialize};

use crate::amount::{PRICE_MAX, StorageDue, StoragePrice};
use crate::deal::DealId;
use crate::keys::{PublicKey, Signature, SigningSecret};
use crate::signed::{NetworkId, Signable, Signed, SignedBytes, SignedError, digest};

/// Periods for which a head holds at most; it is renewed before.
pub const HEAD_PERIODS_MAX: u64 = 30;
/// Most bytes that one deal covers: a pebibyte.
pub const DEAL_MAX_BYTES: u64 = 1 << 50;

/// A head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Head {
    /// The first version.
    V1(HeadV1),
}

/// The first version of a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeadV1 {
    /// The deal.
    pub deal: DealId,
    /// Number; the first is 1, each is higher than the one before.
    pub seq: u64,
    /// Commitment to the set of shards: the root of its sum-tree, or zeros for none.
    pub set_root: [u8; 32],
    /// Bytes of all shards together.
    pub bytes: u64,
    /// Price of storage.
    pub price: StoragePrice,
    /// The period from which it holds.
    pub from: u64,
    /// The first period for which it no longer holds.
    pub until: u64,
    /// Hash of the client's newest index entry when it signed; tells a recovering client how far its log goes.
    pub index_hash: [u8; 32],
}

impl Signable for Head {
    const DOMAIN: &'static str = "spare 2026 head v1";
    const MAX_BYTES: usize = 192;
}

const COUNTERSIGN_DOMAIN: &str = "spare 2026 head countersignature v1";

/// Why a head does not follow another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// It is for another deal.
    #[error("the head is for another deal")]
    OtherDeal,
    /// A newer head is known.
    #[error("head {seq} is not newer than head {newest}")]
    Stale {
        /// Its number.
        seq: u64,
        /// The newest known.
        newest: u64,
    },
    /// Another head of the same number is known: the client has two writers, or lies.
    #[error("head {seq} differs from the head of that number that is known: two writers use this account")]
    Forked {
        /// Its number.
        seq: u64,
    },
    /// A field is out of bounds.
    #[error("the head's {0} is out of bounds")]
    Bounds(&'static str),
}

impl Head {
    /// The first version's fields.
    pub fn v1(&self) -> &HeadV1 {
        let Self::V1(v1) = self;
        v1
    }
}

impl HeadV1 {
    /// What a period of `period_s` seconds costs under this head.
    pub fn rate(&self, period_s: u32) -> StorageDue {
        // Bounded by `check_bounds`, so this is well within range.
        StorageDue::of(self.price, self.bytes, period_s.into()).expect("a head's rate is bounded")
    }

    /// Checks what can be checked of a head alone.
    ///
    /// # Errors
    /// [`HeadError::Bounds`].
    pub fn check_bounds(&self) -> Result<(), HeadError> {
        let bounds = [
            ("length", self.bytes <= DEAL_MAX_BYTES),
            ("price", self.price.0 <= PRICE_MAX),
            ("number", self.seq > 0),
            ("life", self.from < self.until && self.until - self.from <= HEAD_PERIODS_MAX),
            ("set", (self.bytes == 0) == (self.set_root == [0; 32])),
        ];
        bounds.iter().find(|(_, fine)| !fine).map_or(Ok(()), |(what, _)| Err(HeadError::Bounds(what)))
    }
}

/// The newest head that somebody knows, as far as the next one needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnchoredHead {
    /// The head.
    pub head: HeadV1,
    /// Hash of its exact signed bytes.
    pub hash: [u8; 32],
}

/// The hash that names a head, of its exact bytes.
pub fn head_hash(bytes: &[u8]) -> [u8; 32] {
    blake3::derive_key("spare 2026 head hash v1", bytes)
}

impl AnchoredHead {
    /// The head of a checked record.
    pub fn of(head: &Signed<Head>) -> Self {
        Self { head: *head.value().v1(), hash: head_hash(&head.raw().bytes) }
    }

    /// Checks that this head is newer than `newest`, and not another of its number. Numbers may be skipped: a client never signs two heads
    /// of one number, so it passes over that of a head which was refused.
    ///
    /// # Errors
    /// [`HeadError`]. A repeat of `newest` itself is [`HeadError::Stale`].
    pub fn check_supersedes(&self, deal: DealId, newest: Option<&Self>) -> Result<(), HeadError> {
        if self.head.deal != deal {
            return Err(HeadError::OtherDeal);
        }
        self.head.check_bounds()?;
        let Some(known) = newest else { return Ok(()) };
        let (seq, newest) = (self.head.seq, known.head.seq);
        if seq == newest && self.hash != known.hash {
            return Err(HeadError::Forked { seq });
        }
        if seq <= newest {
            return Err(HeadError::Stale { seq, newest });
        }
        if self.head.from < known.head.from {
            return Err(HeadError::Bounds("first period"));
        }
        Ok(())
    }
}

/// A head signed by both sides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FullHead {
    /// The head with the client's signature.
    pub head: SignedBytes,
    /// The provider's node's signature over both.
    pub countersignature: Signature,
}

fn countersigned(network: NetworkId, head: &SignedBytes) -> [u8; 32] {
    digest(COUNTERSIGN_DOMAIN, network, &spare_proofs::encode::to_bytes(head))
}

impl FullHead {
    /// The provider's node signs what the client signed.
    pub fn countersign(head: SignedBytes, network: NetworkId, node_key: &SigningSecret) -> Self {
        let countersignature = node_key.sign(&countersigned(network, &head));
        Self { head, countersignature }
    }

    /// Checks the provider's signature alone, for a client that gets back the very bytes that it signed.
    ///
    /// # Errors
    /// [`SignedError::Signature`].
    pub fn check_countersignature(&self, network: NetworkId, node: &PublicKey) -> Result<(), SignedError> {
        Ok(node.verify(&countersigned(network, &self.head), &self.countersignature)?)
    }

    /// Checks both signatures. Whether the client's signer may sign for the client is for the caller to know.
    ///
    /// # Errors
    /// [`SignedError`].
    pub fn check(&self, network: NetworkId, node: &PublicKey) -> Result<Signed<Head>, SignedError> {
        self.check_countersignature(network, node)?;
        self.head.clone().check(network)
    }
}
