//! Encryption: AES-256-GCM records under keys that are bound to what they encrypt.
//!
//! **Goal:** no key and nonce ever cover two plaintexts, even when an upload is resumed after its source changed,
//! or a node restarts from an old snapshot. So there are no counters to keep and no nonces to draw: the key of a
//! segment is a keyed BLAKE3 of the segment itself, and the nonce is the record's number. Other plaintext, other
//! key. (The construction is deterministic encryption in the spirit of SIV, RFC 5297: equal segments at equal
//! places under one blob key give equal bytes, which is what makes resuming possible. Blob keys are random, so
//! nothing is learned across blobs.)
//!
//! **Non-goal:** hiding lengths.

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::geometry::TAG_BYTES;
use crate::whiten::OuterKey;

/// A 32-byte secret. It is wiped when dropped and never printed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
pub struct Secret([u8; 32]);

impl Secret {
    /// Wraps 32 secret bytes.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes, for deriving further keys.
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    /// Another secret for the use that `context` names and the thing that `id` names
    /// (BLAKE3 key derivation mode; `context` is a constant of this program).
    pub fn derive(&self, context: &'static str, id: &[u8]) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key(context);
        hasher.update(&self.0).update(id);
        Self(hasher.finalize().into())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// The bytes fail authentication: they were changed, or the key is not theirs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the bytes do not open under this key: they were changed, or they belong to another key")]
pub struct OpenError;

/// The key of one segment, bound to its plaintext and its place in the blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentKey(Secret);

impl SegmentKey {
    /// Keyed BLAKE3 over (segment index, plaintext) under the blob key.
    pub fn for_plaintext(blob_key: &Secret, segment_index: u64, plaintext: &[u8]) -> Self {
        let key = blob_key.derive("spare 2026 segment key v1", &segment_index.to_le_bytes());
        let mut hasher = blake3::Hasher::new_keyed(key.expose());
        hasher.update(plaintext);
        Self(Secret::new(hasher.finalize().into()))
    }

    /// The key that whitens this segment's shards. It does not lead back to the segment key.
    pub fn outer(&self) -> OuterKey {
        OuterKey::new(self.0.derive("spare 2026 outer key v1", &[]))
    }

    /// The cipher for this segment's records.
    pub fn cipher(&self) -> RecordCipher {
        RecordCipher::new(&self.0.derive("spare 2026 record key v1", &[]))
    }
}

/// Seals and opens the records of one segment.
pub struct RecordCipher(LessSafeKey);

impl RecordCipher {
    fn new(key: &Secret) -> Self {
        let key = UnboundKey::new(&AES_256_GCM, key.expose()).expect("a 32-byte key fits AES-256");
        Self(LessSafeKey::new(key))
    }

    fn nonce(index: u64) -> Nonce {
        let mut nonce = [0; NONCE_LEN];
        nonce[NONCE_LEN - 8..].copy_from_slice(&index.to_be_bytes());
        Nonce::assume_unique_for_key(nonce)
    }

    /// Seals `plaintext` as record `index` into `out`.
    ///
    /// # Panics
    /// When `out` is not exactly [`TAG_BYTES`] longer than `plaintext`.
    pub fn seal(&self, index: u64, plaintext: &[u8], out: &mut [u8]) {
        assert_eq!(out.len(), plaintext.len() + TAG_BYTES, "a sealed record is its plaintext and a tag");
        let (body, tag_out) = out.split_at_mut(plaintext.len());
        body.copy_from_slice(plaintext);
        let tag = self
            .0
            .seal_in_place_separate_tag(Self::nonce(index), Aad::empty(), body)
            .expect("a record is far below the limit of GCM");
        tag_out.copy_from_slice(tag.as_ref());
    }

    /// Opens record `index` in place and returns its plaintext.
    ///
    /// # Errors
    /// [`OpenError`] when the bytes are not that record under this key.
    pub fn open<'a>(&self, index: u64, sealed: &'a mut [u8]) -> Result<&'a [u8], OpenError> {
        match self.0.open_in_place(Self::nonce(index), Aad::empty(), sealed) {
            Ok(plaintext) => Ok(plaintext),
            Err(_) => Err(OpenError),
        }
    }
}

/// Seals a small message under `key` with a synthetic, content-bound key; 48 bytes longer than the message.
///
/// Layout: 32 bytes of keyed BLAKE3 of the message, which select the record key, then the sealed message.
pub fn seal_message(key: &Secret, message: &[u8]) -> Vec<u8> {
    let tag_key = key.derive("spare 2026 message selector v1", &[]);
    let selector = blake3::keyed_hash(tag_key.expose(), message);
    let mut out = vec![0; 32 + message.len() + TAG_BYTES];
    out[..32].copy_from_slice(selector.as_bytes());
    message_cipher(key, selector.as_bytes()).seal(0, message, &mut out[32..]);
    out
}

/// Opens what [`seal_message`] sealed.
///
/// # Errors
/// [`OpenError`] when `sealed` was not sealed under `key`.
pub fn open_message(key: &Secret, sealed: &[u8]) -> Result<Vec<u8>, OpenError> {
    let (selector, body) = sealed.split_first_chunk::<32>().ok_or(OpenError)?;
    let mut body = body.to_vec();
    Ok(message_cipher(key, selector).open(0, &mut body)?.to_vec())
}

fn message_cipher(key: &Secret, selector: &[u8; 32]) -> RecordCipher {
    RecordCipher::new(&key.derive("spare 2026 message key v1", selector))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_changed_source_changes_the_key_and_so_never_repeats_a_nonce() {
        let blob = Secret::new([7; 32]);
        let key = SegmentKey::for_plaintext(&blob, 0, b"first");
        assert_eq!(key, SegmentKey::for_plaintext(&blob, 0, b"first"), "resuming repeats the same bytes");
        assert_ne!(key, SegmentKey::for_plaintext(&blob, 0, b"fIrst"), "an edited source has another key");
        assert_ne!(key, SegmentKey::for_plaintext(&blob, 1, b"first"), "so has another place");
        assert_ne!(key, SegmentKey::for_plaintext(&Secret::new([8; 32]), 0, b"first"), "and another blob");
    }

    #[test]
    fn secrets_do_not_print() {
        assert_eq!(format!("{:?}", Secret::new([1; 32])), "Secret(..)");
    }

    proptest! {
        #[test]
        fn records_open_only_unchanged_and_in_place(
            plaintext in proptest::collection::vec(any::<u8>(), 0..300), index in any::<u64>(), bit in any::<usize>()
        ) {
            let cipher = SegmentKey::for_plaintext(&Secret::new([1; 32]), 3, &plaintext).cipher();
            let mut sealed = vec![0; plaintext.len() + TAG_BYTES];
            cipher.seal(index, &plaintext, &mut sealed);
            let mut copy = sealed.clone();
            prop_assert_eq!(cipher.open(index, &mut copy), Ok(&plaintext[..]));
            copy.copy_from_slice(&sealed);
            prop_assert_eq!(cipher.open(index ^ 1, &mut copy), Err(OpenError));
            let bit = bit % (sealed.len() * 8);
            sealed[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(cipher.open(index, &mut sealed), Err(OpenError));
        }

        #[test]
        fn messages_round_trip_and_garbage_is_refused(
            message in proptest::collection::vec(any::<u8>(), 0..300), garbage in proptest::collection::vec(any::<u8>(), 0..300)
        ) {
            let key = Secret::new([9; 32]);
            prop_assert_eq!(open_message(&key, &seal_message(&key, &message)), Ok(message));
            prop_assert_eq!(open_message(&key, &garbage), Err(OpenError));
        }
    }
}
