//! Openings of a set: shows one byte of all that a head commits to, as proof that its holder has it.
//!
//! Which shard holds the byte is shown by the set's [sum-tree](crate::sumtree), the byte itself by the leaf around it and its path in the
//! shard's [tree](crate::tree). Whoever checks it needs the set's commitment alone.

use serde::{Deserialize, Serialize};

use crate::sumtree::{SetError, Sum, SumProof};
use crate::tree::{LEAF_BYTES, Opening, VerifyError};

/// One byte of a set, shown. About 2.2 KB for a 4 MiB shard among 10,000, at most 3.3 KB.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetOpening {
    /// Shows which shard holds the byte.
    pub member: SumProof,
    /// The leaf of that shard that holds the byte.
    pub leaf: Opening,
}

/// Why an opening shows nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpeningError {
    /// The shard is not the set's.
    #[error(transparent)]
    Set(#[from] SetError),
    /// The leaf is not the shard's.
    #[error(transparent)]
    Leaf(#[from] VerifyError),
}

impl SetOpening {
    /// Checks that this shows byte `position` of the set that `set` commits to.
    ///
    /// # Errors
    /// [`OpeningError`] when it does not.
    pub fn verify(&self, set: &Sum, position: u64) -> Result<(), OpeningError> {
        let offset = self.member.verify(set, position)?;
        let shard = self.member.member;
        Ok(self.leaf.verify(shard.root, shard.bytes, offset / LEAF_BYTES as u64)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sumtree::{Member, SumTree};
    use crate::tree::Tree;

    #[test]
    fn each_byte_of_a_set_can_be_shown_and_stands_for_no_other() {
        let shards: Vec<Vec<u8>> =
            [1usize, 1024, 1025, 40_000].iter().map(|len| vec![*len as u8; *len]).collect();
        let mut all: Vec<(Tree, &Vec<u8>)> = shards.iter().map(|bytes| (Tree::of(bytes), bytes)).collect();
        all.sort_by_key(|(tree, _)| tree.root());
        let members = all.iter().map(|(tree, bytes)| Member { root: tree.root(), bytes: bytes.len() as u64 });
        let set = SumTree::new(members.collect()).unwrap();
        let mut before = 0;
        for (tree, bytes) in &all {
            for offset in [0, bytes.len() as u64 / 2, bytes.len() as u64 - 1] {
                let position = before + offset;
                let start = (offset - offset % crate::tree::GROUP_BYTES as u64) as usize;
                let group = &bytes[start..bytes.len().min(start + crate::tree::GROUP_BYTES)];
                let leaf = tree.open(offset / LEAF_BYTES as u64, group).unwrap();
                let shown = SetOpening { member: set.prove(position).unwrap(), leaf };
                assert_eq!(shown.verify(&set.sum(), position), Ok(()));
                assert!(shown.verify(&set.sum(), (position + 2048) % set.sum().bytes).is_err());
                let mut forged = shown;
                forged.leaf.leaf[0] ^= 1;
                assert_eq!(forged.verify(&set.sum(), position), Err(VerifyError::WrongLeaf.into()));
            }
            before += bytes.len() as u64;
        }
    }
}
