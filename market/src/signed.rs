//! Canonical signed encoding.
//!
//! What is signed is `BLAKE3-derive(domain; network id || exact bytes)`: the domain names the type and its version, the
//! network id keeps one network's records out of another. The exact bytes travel and are kept; checking never
//! re-encodes them, and decoding refuses bytes that are not the canonical encoding of their value.

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use spare_proofs::encode::{DecodeError, from_bytes, to_bytes};

use crate::keys::{BadSignature, PublicKey, Signature, SigningSecret};

/// Names a network: records signed for one mean nothing in another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct NetworkId(pub [u8; 32]);

/// A type that is signed.
pub trait Signable: Serialize + DeserializeOwned {
    /// Names the type and its version; a constant of this program.
    const DOMAIN: &'static str;
    /// Longest encoding that is accepted.
    const MAX_BYTES: usize;
}

/// Why a signed record is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignedError {
    /// The signature does not hold.
    #[error(transparent)]
    Signature(#[from] BadSignature),
    /// The signature holds, but what it covers does not decode.
    #[error(transparent)]
    Decode(#[from] DecodeError),
}

/// A record as it travels and is kept: exact bytes, signer, signature. Not yet checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedBytes {
    /// The canonical encoding that was signed.
    pub bytes: Vec<u8>,
    /// Who says it.
    pub signer: PublicKey,
    /// The signature over [`digest`].
    pub signature: Signature,
}

/// A checked record: its value, and the bytes that prove it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed<T> {
    value: T,
    raw: SignedBytes,
}

/// The 32 bytes that a signature covers.
pub fn digest(domain: &'static str, network: NetworkId, bytes: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key(domain);
    hasher.update(&network.0).update(bytes);
    hasher.finalize().into()
}

impl SignedBytes {
    /// Checks the signature, then decodes.
    ///
    /// # Errors
    /// [`SignedError`] when either fails.
    pub fn check<T: Signable>(self, network: NetworkId) -> Result<Signed<T>, SignedError> {
        if self.bytes.len() > T::MAX_BYTES {
            return Err(DecodeError::TooLong { len_bytes: self.bytes.len(), max_bytes: T::MAX_BYTES }.into());
        }
        self.signer.verify(&digest(T::DOMAIN, network, &self.bytes), &self.signature)?;
        let value = from_bytes(&self.bytes, T::MAX_BYTES)?;
        Ok(Signed { value, raw: self })
    }
}

impl<T: Signable> Signed<T> {
    /// Signs `value`.
    pub fn new(value: T, network: NetworkId, key: &SigningSecret) -> Self {
        let bytes = to_bytes(&value);
        let signature = key.sign(&digest(T::DOMAIN, network, &bytes));
        Self { value, raw: SignedBytes { bytes, signer: key.public(), signature } }
    }

    /// What was signed.
    pub fn value(&self) -> &T {
        &self.value
    }

    /// Who signed.
    pub fn signer(&self) -> PublicKey {
        self.raw.signer
    }

    /// The record as it travels.
    pub fn raw(&self) -> &SignedBytes {
        &self.raw
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::Seed;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Note(u64);
    impl Signable for Note {
        const DOMAIN: &'static str = "spare test note v1";
        const MAX_BYTES: usize = 16;
    }
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Other(u64);
    impl Signable for Other {
        const DOMAIN: &'static str = "spare test other v1";
        const MAX_BYTES: usize = 16;
    }

    const HOME: NetworkId = NetworkId([1; 32]);

    #[test]
    fn a_record_holds_for_its_type_network_and_exact_bytes() {
        let key = Seed::from_entropy([1; 32]).account_key();
        let raw = Signed::new(Note(5), HOME, &key).raw().clone();
        assert_eq!(raw.clone().check::<Note>(HOME).unwrap().value(), &Note(5));
        assert!(raw.clone().check::<Note>(NetworkId([2; 32])).is_err(), "another network");
        assert!(raw.clone().check::<Other>(HOME).is_err(), "another type");
        let mut changed = raw;
        changed.bytes[0] = 6;
        assert!(changed.check::<Note>(HOME).is_err(), "other bytes");
    }

    #[test]
    fn a_good_signature_over_non_canonical_bytes_is_refused() {
        let key = Seed::from_entropy([1; 32]).account_key();
        let bytes = vec![0x85, 0x00];
        let signature = key.sign(&digest(Note::DOMAIN, HOME, &bytes));
        let raw = SignedBytes { bytes, signer: key.public(), signature };
        assert_eq!(raw.check::<Note>(HOME), Err(SignedError::Decode(DecodeError::NotCanonical)));
    }
}
