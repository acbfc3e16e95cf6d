//! Whitening: each shard is covered with its own keystream, so that no stored shard helps to make another.
//!
//! Erasure coding is public mathematics: a provider that holds k shards of a segment, or poses as k providers,
//! could drop all others and recompute them when audited (the *generation attack*). Under whitening, the stored bytes
//! of shard i are the coded bytes XOR AES-256-CTR (NIST SP 800-38A) under a key of (outer key, i). Providers lack
//! the outer key. A repairer is given it, rebuilds identical stored bytes with an identical root, and still
//! cannot read, since the outer key does not lead to the segment key.

use aws_lc_rs::cipher::{AES_256, EncryptingKey, EncryptionContext, UnboundCipherKey};
use aws_lc_rs::iv::FixedLength;

use crate::cipher::Secret;

/// Length of an AES block: keystream offsets are multiples of it.
const BLOCK_BYTES: usize = 16;

/// The secret that whitens all shards of one segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OuterKey(Secret);

impl OuterKey {
    /// Wraps a derived secret.
    pub fn new(secret: Secret) -> Self {
        Self(secret)
    }

    /// The keystream of shard `index`.
    pub fn shard(&self, index: usize) -> ShardKeystream {
        let key = self.0.derive("spare 2026 shard whitening v1", &(index as u64).to_le_bytes());
        let key = UnboundCipherKey::new(&AES_256, key.expose()).expect("a 32-byte key fits AES-256");
        ShardKeystream(EncryptingKey::ctr(key).expect("AES-256 has a counter mode"))
    }
}

/// The keystream of one shard. Applying it twice gives the input back.
pub struct ShardKeystream(EncryptingKey);

impl ShardKeystream {
    /// Whitens, or unwhitens, `bytes` which lie at `shard_offset` in the shard.
    ///
    /// # Panics
    /// When `shard_offset` is not a multiple of 16: callers work in cells or in 16 KiB groups.
    pub fn apply(&self, shard_offset: usize, bytes: &mut [u8]) {
        assert_eq!(shard_offset % BLOCK_BYTES, 0, "the keystream starts at a block");
        let counter = (shard_offset / BLOCK_BYTES) as u128;
        let context = EncryptionContext::Iv128(FixedLength::from(counter.to_be_bytes()));
        self.0.less_safe_encrypt(bytes, context).expect("counter mode takes any length");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outer() -> OuterKey {
        OuterKey::new(Secret::new([5; 32]))
    }

    #[test]
    fn whitening_is_its_own_inverse_and_random_access() {
        let plain: Vec<u8> = (0..1000u32).map(|i| i as u8).collect();
        let mut whole = plain.clone();
        outer().shard(3).apply(0, &mut whole);
        assert_ne!(whole, plain);
        let mut tail = plain[160..].to_vec();
        outer().shard(3).apply(160, &mut tail);
        assert_eq!(tail, whole[160..]);
        outer().shard(3).apply(0, &mut whole);
        assert_eq!(whole, plain);
    }

    #[test]
    fn shards_have_unrelated_keystreams() {
        let (mut a, mut b) = ([0; 64], [0; 64]);
        outer().shard(0).apply(0, &mut a);
        outer().shard(1).apply(0, &mut b);
        assert_ne!(a, b);
    }
}
