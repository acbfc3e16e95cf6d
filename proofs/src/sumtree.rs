//! A sum-tree over a set of shards: commits to which shards there are and how long each is.
//!
//! A head commits a provider to a set by 32 bytes and a total. A draw picks a byte of that total; the proof then shows which
//! shard holds that byte, so long shards are drawn more often and none can be left out.
//!
//! ```text
//! leaf = H(leaf domain, root, bytes)
//! node = H(node domain, left bytes, left hash, right bytes, right hash),  bytes = left bytes + right bytes, checked
//! ```
//!
//! The order of members is checked where a tree is built, not in proofs: a set's root means something because two parties that both
//! know the members have signed it. A tree that one party built alone may count a shard twice.
//!
//! Hashing the children's sums, not only their total, is what keeps a prover from moving bytes between subtrees
//! (Dagher et al., *Provisions*, 2015, and the flaw of Maxwell's first sum-tree found by Hu et al., 2019).

use serde::{Deserialize, Serialize};

use crate::tree::Root;

/// Most levels a proof may have: a set of 2^40 shards.
pub const PATH_MAX: usize = 40;

const LEAF_DOMAIN: &str = "spare 2026 shard set leaf v1";
const NODE_DOMAIN: &str = "spare 2026 shard set node v1";

/// A subtree: its total length and its hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sum {
    /// Bytes of all shards below.
    pub bytes: u64,
    /// The hash that commits to them.
    pub hash: [u8; 32],
}

/// One shard of a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Member {
    /// The shard's root.
    pub root: Root,
    /// The shard's length, above 0.
    pub bytes: u64,
}

/// Why a set cannot be committed to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SetError {
    /// The set has no members.
    #[error("the set is empty")]
    Empty,
    /// Members are not strictly ascending by root, or one has no bytes.
    #[error("the members are not in strictly ascending order of root, or one is empty")]
    Unordered,
    /// The total does not fit 64 bits.
    #[error("the set's total length does not fit 64 bits")]
    Overflow,
    /// A proof does not lead to the set's commitment.
    #[error("the proof does not lead to the set's commitment")]
    WrongProof,
}

fn leaf(member: &Member) -> Sum {
    let mut hasher = blake3::Hasher::new_derive_key(LEAF_DOMAIN);
    hasher.update(member.root.as_bytes()).update(&member.bytes.to_le_bytes());
    Sum { bytes: member.bytes, hash: hasher.finalize().into() }
}

fn node(left: &Sum, right: &Sum) -> Result<Sum, SetError> {
    let bytes = left.bytes.checked_add(right.bytes).ok_or(SetError::Overflow)?;
    let mut hasher = blake3::Hasher::new_derive_key(NODE_DOMAIN);
    for side in [left, right] {
        hasher.update(&side.bytes.to_le_bytes()).update(&side.hash);
    }
    Ok(Sum { bytes, hash: hasher.finalize().into() })
}

/// A set of shards with the levels of its tree, leaves first.
pub struct SumTree {
    members: Vec<Member>,
    levels: Vec<Vec<Sum>>,
}

impl SumTree {
    /// Commits to `members`, given in strictly ascending order of root.
    ///
    /// A level with an odd number of nodes hands its last one up unchanged.
    ///
    /// # Errors
    /// [`SetError`] when the set is empty, unordered or too long.
    pub fn new(members: Vec<Member>) -> Result<Self, SetError> {
        if members.is_empty() {
            return Err(SetError::Empty);
        }
        if members.iter().any(|m| m.bytes == 0) || members.windows(2).any(|w| w[0].root >= w[1].root) {
            return Err(SetError::Unordered);
        }
        let mut levels = vec![members.iter().map(leaf).collect::<Vec<_>>()];
        while levels[levels.len() - 1].len() > 1 {
            let below = &levels[levels.len() - 1];
            let above = below
                .chunks(2)
                .map(|nodes| if let [l, r] = nodes { node(l, r) } else { Ok(nodes[0]) })
                .collect::<Result<_, _>>()?;
            levels.push(above);
        }
        Ok(Self { members, levels })
    }

    /// The commitment.
    pub fn sum(&self) -> Sum {
        self.levels[self.levels.len() - 1][0]
    }

    /// Shows which shard holds byte `position` of the set, or `None` when it lies beyond the total.
    pub fn prove(&self, position: u64) -> Option<SumProof> {
        if position >= self.sum().bytes {
            return None;
        }
        let (mut index, mut before) = (0, 0);
        let mut path = Vec::new();
        for level in self.levels.iter().rev().skip(1) {
            index *= 2;
            let left = level[index];
            let right = level.get(index + 1);
            let goes_right = position - before >= left.bytes;
            match (goes_right, right) {
                (false, None) => {}
                (false, Some(right)) => path.push(Step { sibling: *right, sibling_is_left: false }),
                (true, _) => {
                    path.push(Step { sibling: left, sibling_is_left: true });
                    before += left.bytes;
                    index += 1;
                }
            }
        }
        path.reverse();
        Some(SumProof { member: self.members[index], path })
    }
}

/// One level of a proof.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// The other child.
    pub sibling: Sum,
    /// Whether the other child is the left one.
    pub sibling_is_left: bool,
}

/// Shows that a member holds a certain byte of a set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SumProof {
    /// The shard.
    pub member: Member,
    /// From the member up.
    pub path: Vec<Step>,
}

impl SumProof {
    /// Checks the proof against the commitment and returns where in the member's shard byte `position` lies.
    ///
    /// # Errors
    /// [`SetError`] when the proof does not show that the member holds that byte.
    pub fn verify(&self, set: &Sum, position: u64) -> Result<u64, SetError> {
        if self.path.len() > PATH_MAX {
            return Err(SetError::WrongProof);
        }
        let mut here = leaf(&self.member);
        let mut before = 0u64;
        for step in &self.path {
            here = if step.sibling_is_left {
                before = before.checked_add(step.sibling.bytes).ok_or(SetError::Overflow)?;
                node(&step.sibling, &here)?
            } else {
                node(&here, &step.sibling)?
            };
        }
        let offset = position.checked_sub(before).ok_or(SetError::WrongProof)?;
        if here != *set || offset >= self.member.bytes {
            return Err(SetError::WrongProof);
        }
        Ok(offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn set(lengths: &[u64]) -> Vec<Member> {
        let mut members: Vec<Member> = lengths
            .iter()
            .enumerate()
            .map(|(i, &bytes)| Member { root: Root::of(&i.to_le_bytes()), bytes })
            .collect();
        members.sort();
        members
    }

    #[test]
    fn bad_sets_are_refused() {
        let error = |members: Vec<Member>| SumTree::new(members).err();
        assert_eq!(error(vec![]), Some(SetError::Empty));
        let mut members = set(&[1, 2]);
        members.reverse();
        assert_eq!(error(members), Some(SetError::Unordered));
        let member = set(&[1])[0];
        assert_eq!(error(vec![member, member]), Some(SetError::Unordered), "no shard counts twice");
        assert_eq!(error(set(&[u64::MAX, 1])), Some(SetError::Overflow));
        assert_eq!(error(set(&[0])), Some(SetError::Unordered));
    }

    proptest! {
        #[test]
        fn every_byte_leads_to_its_shard(lengths in proptest::collection::vec(1u64..50, 1..30)) {
            let members = set(&lengths);
            let tree = SumTree::new(members.clone()).unwrap();
            let mut position = 0;
            for member in members {
                for offset in 0..member.bytes {
                    let proof = tree.prove(position).unwrap();
                    prop_assert_eq!(proof.member, member);
                    prop_assert_eq!(proof.verify(&tree.sum(), position), Ok(offset));
                    position += 1;
                }
            }
            prop_assert_eq!(position, tree.sum().bytes);
            prop_assert!(tree.prove(position).is_none());
        }

        #[test]
        fn a_proof_serves_one_place_and_one_set(
            lengths in proptest::collection::vec(1u64..1_000_000, 2..30), position in any::<u64>(), shift in 1u64..1_000_000
        ) {
            let tree = SumTree::new(set(&lengths)).unwrap();
            let position = position % tree.sum().bytes;
            let proof = tree.prove(position).unwrap();
            let offset = proof.verify(&tree.sum(), position).unwrap();
            let elsewhere = position.wrapping_add(shift.max(proof.member.bytes));
            prop_assert!(proof.verify(&tree.sum(), elsewhere).is_err());
            let mut longer = proof.clone();
            longer.member.bytes += 1;
            prop_assert!(longer.verify(&tree.sum(), position).is_err(), "a stretched member");
            let mut moved = proof.clone();
            moved.path[0].sibling_is_left = !moved.path[0].sibling_is_left;
            prop_assert!(moved.verify(&tree.sum(), position).is_err(), "a swapped sibling");
            let mut shrunk = proof;
            shrunk.path[0].sibling.bytes -= 1;
            prop_assert!(shrunk.verify(&tree.sum(), position).is_err(), "bytes moved out of a sibling, offset {}", offset);
        }
    }
}
