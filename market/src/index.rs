//! The index log: how a client finds its blobs again with nothing but its seed.
//!
//! Each change to the client's set of blobs is one numbered, encrypted, signed entry, copied to every provider of the
//! client. Each entry carries the hash of the one before, so the newest commits to the whole log, and appending
//! costs what changed rather than all there is. Once in a while an entry replaces all before it (`base == seq`), and
//! providers may drop those.
//!
//! A provider accepts only the entry that follows its newest one, or one that replaces everything; so a copy is always
//! a gapless run from its base. A provider cannot tell a base that continues its copy from one of another writer. The client can, since it
//! remembers the hash of each entry that it ever wrote or took over, and it pushes only onto a copy whose end it knows.
//!
//! Signatures say who wrote an entry, not that it belongs to the log: the seal does. A body opens only in the place that it was sealed
//! for ([`IndexEntryV1::place`]), under a key that no provider has.

use serde::{Deserialize, Serialize};

use crate::signed::Signable;

/// Longest sealed body of one entry, in bytes.
pub const BODY_MAX_BYTES: usize = 8 << 20;

/// One entry of an account's index log, signed by the node that wrote it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum IndexEntry {
    /// The first version.
    V1(IndexEntryV1),
}

/// The first version of an index entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexEntryV1 {
    /// This entry's number; the first is 1.
    pub seq: u64,
    /// The newest entry that stands for all before it. At most `seq`.
    pub base: u64,
    /// The hash of entry `seq - 1`, or zeros before the first.
    pub previous: [u8; 32],
    /// The change, sealed under the client's index key for this place in the log.
    pub body: Vec<u8>,
}

impl IndexEntryV1 {
    /// The place in the log that a body is sealed for: number, base and what came before.
    pub fn place(seq: u64, base: u64, previous: &[u8; 32]) -> [u8; 48] {
        let mut place = [0; 48];
        place[..8].copy_from_slice(&seq.to_le_bytes());
        place[8..16].copy_from_slice(&base.to_le_bytes());
        place[16..].copy_from_slice(previous);
        place
    }
}

impl Signable for IndexEntry {
    const DOMAIN: &'static str = "spare 2026 index entry v1";
    const MAX_BYTES: usize = BODY_MAX_BYTES + 64;
}

/// The end of a log: what the next entry must build on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LogEnd {
    /// Number of the newest entry, 0 for an empty log.
    pub seq: u64,
    /// The newest entry that stands for all before it.
    pub base: u64,
    /// Hash of the newest entry's exact bytes.
    pub hash: [u8; 32],
}

/// Why an entry does not extend a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IndexError {
    /// Its number is not above the newest. A retry of the newest entry itself is fine and not this.
    #[error("entry {seq} is not newer than entry {newest}")]
    Stale {
        /// The entry's number.
        seq: u64,
        /// The log's newest.
        newest: u64,
    },
    /// The same number with other content: two writers.
    #[error("entry {seq} differs from the entry of that number: two writers use this account")]
    Fork {
        /// The entry's number.
        seq: u64,
    },
    /// Entries in between are missing.
    #[error("entry {seq} does not follow entry {newest}")]
    Gap {
        /// The entry's number.
        seq: u64,
        /// The log's newest.
        newest: u64,
    },
    /// The base is above the entry or below the log's.
    #[error("entry {seq} names an impossible base")]
    Base {
        /// The entry's number.
        seq: u64,
    },
}

/// The hash that names an entry, of its exact signed bytes.
pub fn entry_hash(bytes: &[u8]) -> [u8; 32] {
    blake3::derive_key("spare 2026 index entry hash v1", bytes)
}

impl LogEnd {
    /// The end of the log after `entry`, whose exact bytes are `bytes`. A repeat of the newest entry changes nothing.
    ///
    /// # Errors
    /// [`IndexError`] when the entry does not extend this log.
    pub fn extend(&self, entry: &IndexEntryV1, bytes: &[u8]) -> Result<Self, IndexError> {
        let hash = entry_hash(bytes);
        let (seq, newest) = (entry.seq, self.seq);
        if seq == newest && newest > 0 {
            return if hash == self.hash { Ok(*self) } else { Err(IndexError::Fork { seq }) };
        }
        if seq <= newest {
            return Err(IndexError::Stale { seq, newest });
        }
        let replaces_all = entry.base == seq;
        if entry.base > seq || entry.base == 0 || !(replaces_all || entry.base == self.base) {
            return Err(IndexError::Base { seq });
        }
        let follows = seq == newest + 1;
        if follows && entry.previous != self.hash {
            return Err(IndexError::Fork { seq });
        }
        if !follows && !replaces_all {
            return Err(IndexError::Gap { seq, newest });
        }
        Ok(Self { seq, base: entry.base, hash })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use spare_proofs::encode::to_bytes;

    fn entry(seq: u64, base: u64, previous: [u8; 32]) -> (IndexEntryV1, Vec<u8>) {
        let entry = IndexEntryV1 { seq, base, previous, body: vec![seq as u8] };
        let bytes = to_bytes(&IndexEntry::V1(entry.clone()));
        (entry, bytes)
    }

    #[test]
    fn a_log_grows_gaplessly_or_starts_over() {
        let extend = |end: LogEnd, (entry, bytes): &(IndexEntryV1, Vec<u8>)| end.extend(entry, bytes);
        let first = entry(1, 1, [0; 32]);
        let one = extend(LogEnd::default(), &first).unwrap();
        assert_eq!(extend(one, &first), Ok(one), "a retry");
        let two = extend(one, &entry(2, 1, one.hash)).unwrap();
        assert_eq!((two.seq, two.base), (2, 1));
        assert_eq!(extend(two, &first), Err(IndexError::Stale { seq: 1, newest: 2 }));
        assert_eq!(extend(one, &entry(2, 1, [9; 32])), Err(IndexError::Fork { seq: 2 }));
        let mut other = entry(2, 1, one.hash);
        other.1.push(0);
        assert_eq!(extend(two, &other), Err(IndexError::Fork { seq: 2 }));
        assert_eq!(extend(one, &entry(3, 1, two.hash)), Err(IndexError::Gap { seq: 3, newest: 1 }));
        assert_eq!(extend(one, &entry(2, 3, one.hash)), Err(IndexError::Base { seq: 2 }));
        assert_eq!(extend(LogEnd::default(), &entry(1, 0, [0; 32])), Err(IndexError::Base { seq: 1 }));
        let fresh = extend(one, &entry(7, 7, [8; 32])).unwrap();
        assert_eq!((fresh.seq, fresh.base), (7, 7), "a copy that fell behind starts over at a base");
    }
}
