//! Keys. One 24-word seed owns everything a client has; a node key only speaks for a machine.
//!
//! ```text
//! seed (24 words, BIP-39 English, 256 bits of entropy)
//!  |- account key   ed25519, money and grants
//!  |- recipe key    seals recipes, leads to blob keys
//!  `- index key     seals the log of blobs
//! node key (separate, per machine)   libp2p and TLS identity, replaceable; acts for the account under a Grant
//! ```

use std::fmt;

use ed25519_dalek::{Signer as _, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};
use spare_proofs::cipher::Secret;
use zeroize::Zeroizing;

/// Words of a seed phrase.
const SEED_WORDS: usize = 24;

/// Why words are not a seed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SeedError {
    /// Not 24 words.
    #[error("a seed has {SEED_WORDS} words, not {0}")]
    WordCount(usize),
    /// A word that is not in the list, or a checksum that does not fit: most often a typing error.
    #[error("the words are not a seed: {0}")]
    Words(String),
}

/// The 24 words that own an account and its data.
pub struct Seed(Secret);

impl Seed {
    /// A seed from 32 bytes of fresh randomness.
    pub fn from_entropy(entropy: [u8; 32]) -> Self {
        Self(Secret::new(entropy))
    }

    /// Reads 24 English BIP-39 words, separated by white space, in any case.
    ///
    /// # Errors
    /// [`SeedError`] when they are not a seed.
    pub fn from_words(words: &str) -> Result<Self, SeedError> {
        let words =
            Zeroizing::new(words.split_whitespace().map(str::to_lowercase).collect::<Vec<_>>().join(" "));
        let count = words.split(' ').filter(|w| !w.is_empty()).count();
        if count != SEED_WORDS {
            return Err(SeedError::WordCount(count));
        }
        let mnemonic = bip39::Mnemonic::parse_in_normalized(bip39::Language::English, &words)
            .map_err(|e| SeedError::Words(e.to_string()))?;
        let entropy = Zeroizing::new(mnemonic.to_entropy());
        Ok(Self(Secret::new(entropy.as_slice().try_into().expect("24 words carry 32 bytes"))))
    }

    /// The 24 words.
    pub fn words(&self) -> Zeroizing<String> {
        let mnemonic = bip39::Mnemonic::from_entropy_in(bip39::Language::English, self.0.expose())
            .expect("32 bytes are a valid length of entropy");
        Zeroizing::new(mnemonic.to_string())
    }

    /// The key that owns the account.
    pub fn account_key(&self) -> SigningSecret {
        SigningSecret::from_secret(&self.0.derive("spare 2026 account key v1", &[]))
    }

    /// The key that seals recipes.
    pub fn recipe_key(&self) -> Secret {
        self.0.derive("spare 2026 recipe key v1", &[])
    }

    /// The key that seals the log of blobs.
    pub fn index_key(&self) -> Secret {
        self.0.derive("spare 2026 index key v1", &[])
    }
}

/// A public key with its scheme, so that other schemes can be added.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum PublicKey {
    /// Ed25519 (RFC 8032), checked strictly.
    Ed25519([u8; 32]),
}

impl PublicKey {
    /// The scheme's number and the key, as it is hashed and stored.
    pub fn to_bytes(self) -> [u8; 33] {
        let Self::Ed25519(key) = self;
        let mut bytes = [0; 33];
        bytes[1..].copy_from_slice(&key);
        bytes
    }

    /// The key bytes without the scheme.
    pub fn key_bytes(&self) -> &[u8; 32] {
        let Self::Ed25519(key) = self;
        key
    }

    /// Checks a signature strictly: no malleable signatures, no weak keys.
    ///
    /// # Errors
    /// [`BadSignature`] when it does not hold.
    pub fn verify(&self, message: &[u8], signature: &Signature) -> Result<(), BadSignature> {
        let Self::Ed25519(key) = self;
        let key = VerifyingKey::from_bytes(key).map_err(|_| BadSignature)?;
        let signature = ed25519_dalek::Signature::from_bytes(&signature.to_array());
        key.verify_strict(message, &signature).map_err(|_| BadSignature)
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::Ed25519(key) = self;
        f.write_str(blake3::Hash::from_bytes(*key).to_hex().as_str())
    }
}

/// Text that is not a public key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not an account; it has 64 hex digits, and `spare status` shows one's own")]
pub struct PublicKeyError(String);

impl std::str::FromStr for PublicKey {
    type Err = PublicKeyError;
    fn from_str(text: &str) -> Result<Self, PublicKeyError> {
        let hash = blake3::Hash::from_hex(text.trim().to_lowercase().as_bytes());
        hash.map(|h| Self::Ed25519(*h.as_bytes()))
            .map_err(|_| PublicKeyError(text.chars().take(80).collect()))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ed25519:{self}")
    }
}

/// A signature that does not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the signature does not hold")]
pub struct BadSignature;

/// An Ed25519 signature, as two halves so that it has a fixed length in canonical encoding.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature([u8; 32], [u8; 32]);

impl Signature {
    fn to_array(self) -> [u8; 64] {
        let mut bytes = [0; 64];
        bytes[..32].copy_from_slice(&self.0);
        bytes[32..].copy_from_slice(&self.1);
        bytes
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Signature(..)")
    }
}

/// A private key that signs: an account's or a node's.
pub struct SigningSecret(SigningKey);

impl SigningSecret {
    /// The key made from 32 secret bytes.
    pub fn from_secret(secret: &Secret) -> Self {
        Self(SigningKey::from_bytes(secret.expose()))
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        PublicKey::Ed25519(self.0.verifying_key().to_bytes())
    }

    /// Signs `message`.
    pub fn sign(&self, message: &[u8]) -> Signature {
        let bytes = self.0.sign(message).to_bytes();
        let (a, b) = bytes.split_at(32);
        Signature(a.try_into().expect("half of 64"), b.try_into().expect("half of 64"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_lead_back_to_the_same_keys() {
        let seed = Seed::from_entropy([42; 32]);
        let again = Seed::from_words(&seed.words().to_uppercase()).unwrap();
        assert_eq!(again.account_key().public(), seed.account_key().public());
        assert_eq!(again.recipe_key(), seed.recipe_key());
        assert_ne!(seed.recipe_key(), seed.index_key());
    }

    #[test]
    fn golden_account_of_a_fixed_seed() {
        let account = Seed::from_entropy([0; 32]).account_key().public();
        assert_eq!(account.to_string(), GOLDEN_ACCOUNT);
        assert_eq!(GOLDEN_ACCOUNT.parse(), Ok(account));
        assert!("c8c0".parse::<PublicKey>().is_err());
    }

    const GOLDEN_ACCOUNT: &str = "c8c09c099a2157bb59dc79b960c1546c4b111928fb26928466925d8a7132b66f";

    #[test]
    fn wrong_words_are_named() {
        let error = |words: &str| Seed::from_words(words).err();
        assert_eq!(error("one two"), Some(SeedError::WordCount(2)));
        let mut words = Seed::from_entropy([1; 32]).words().to_string();
        words.replace_range(..words.find(' ').unwrap(), "zzz");
        assert!(matches!(error(&words), Some(SeedError::Words(_))));
    }

    #[test]
    fn signatures_hold_for_their_message_and_key_only() {
        let key = Seed::from_entropy([2; 32]).account_key();
        let signature = key.sign(b"message");
        assert_eq!(key.public().verify(b"message", &signature), Ok(()));
        assert_eq!(key.public().verify(b"other", &signature), Err(BadSignature));
        let other = Seed::from_entropy([3; 32]).account_key();
        assert_eq!(other.public().verify(b"message", &signature), Err(BadSignature));
        // The identity point accepts a forged signature under lax checking.
        let mut weak = [0; 32];
        weak[0] = 1;
        assert_eq!(PublicKey::Ed25519(weak).verify(b"message", &Signature(weak, [0; 32])), Err(BadSignature));
    }
}
