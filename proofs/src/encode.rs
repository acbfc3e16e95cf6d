//! Canonical bytes: one value has one encoding, and nothing else decodes.
//!
//! Values are encoded with [postcard](https://postcard.jamesmunns.com/wire-format). Postcard by itself accepts
//! some encodings that it would not produce (over-long integers, trailing bytes); [`from_bytes`] refuses them by
//! encoding what it decoded and comparing. Signed and hashed bytes therefore have exactly one meaning.
//! Types that travel are enums on the outside, so that a new version is a new variant.

use serde::{Serialize, de::DeserializeOwned};

/// Why bytes are not a canonical encoding.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes do not decode at all: truncated, an unknown variant, or a value out of range.
    #[error("the bytes do not decode: {0}")]
    Malformed(String),
    /// The bytes decode, but are not what encoding that value gives.
    #[error("the bytes are not the canonical encoding of what they mean")]
    NotCanonical,
    /// The bytes are longer than this type may be.
    #[error("{len_bytes} bytes, where at most {max_bytes} are allowed")]
    TooLong {
        /// Length of what was given.
        len_bytes: usize,
        /// The bound.
        max_bytes: usize,
    },
}

/// Encodes a value.
///
/// # Panics
/// Never for the types of this project: postcard fails only on sequences of unknown length, which they have not.
pub fn to_bytes<T: Serialize>(value: &T) -> Vec<u8> {
    postcard::to_stdvec(value).expect("every encoded type has sequences of known length")
}

/// Decodes `bytes`, at most `max_bytes` of them, and refuses all but the canonical encoding.
///
/// # Errors
/// [`DecodeError`], naming which rule the bytes break.
pub fn from_bytes<T: Serialize + DeserializeOwned>(bytes: &[u8], max_bytes: usize) -> Result<T, DecodeError> {
    if bytes.len() > max_bytes {
        return Err(DecodeError::TooLong { len_bytes: bytes.len(), max_bytes });
    }
    let value: T = postcard::from_bytes(bytes).map_err(|e| DecodeError::Malformed(e.to_string()))?;
    if to_bytes(&value) != bytes {
        return Err(DecodeError::NotCanonical);
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_value_has_one_encoding() {
        let bytes = to_bytes(&7u64);
        assert_eq!(bytes, [7]);
        assert_eq!(from_bytes::<u64>(&bytes, 10), Ok(7));
        assert_eq!(from_bytes::<u64>(&[0x87, 0x00], 10), Err(DecodeError::NotCanonical), "over-long varint");
        assert_eq!(from_bytes::<u64>(&[7, 0], 10), Err(DecodeError::NotCanonical), "trailing byte");
        assert!(matches!(from_bytes::<u64>(&[], 10), Err(DecodeError::Malformed(_))));
        assert!(matches!(from_bytes::<u64>(&[7, 0], 1), Err(DecodeError::TooLong { .. })));
    }
}
