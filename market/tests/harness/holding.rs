//! What a provider holds under a deal: real shards, whose bytes it can show.

use spare_market::claim::{Claimable, Drawn};
use spare_proofs::opening::SetOpening;
use spare_proofs::sumtree::{Member, Sum, SumTree};
use spare_proofs::tree::{GROUP_BYTES, LEAF_BYTES, Tree};

/// A set of shards.
pub(crate) struct Holding {
    shards: Vec<(Tree, Vec<u8>)>,
    set: SumTree,
}

impl Holding {
    /// Shards of these lengths, whose bytes follow from `tag`.
    pub(crate) fn new(tag: u8, lengths: &[usize]) -> Self {
        let shard = |(i, len): (usize, &usize)| {
            let mut bytes = vec![0; *len];
            blake3::Hasher::new().update(&[tag, i as u8]).finalize_xof().fill(&mut bytes);
            (Tree::of(&bytes), bytes)
        };
        let mut shards: Vec<_> = lengths.iter().enumerate().map(shard).collect();
        shards.sort_by_key(|(tree, _)| tree.root());
        let members =
            shards.iter().map(|(tree, bytes)| Member { root: tree.root(), bytes: bytes.len() as u64 });
        let set = SumTree::new(members.collect()).unwrap();
        Self { shards, set }
    }

    pub(crate) fn sum(&self) -> Sum {
        self.set.sum()
    }

    /// Shows byte `position` of the set.
    pub(crate) fn show(&self, position: u64) -> SetOpening {
        let member = self.set.prove(position).unwrap();
        let offset = member.verify(&self.set.sum(), position).unwrap();
        let (tree, bytes) = self.shards.iter().find(|(tree, _)| tree.root() == member.member.root).unwrap();
        let start = (offset - offset % GROUP_BYTES as u64) as usize;
        let group = &bytes[start..bytes.len().min(start + GROUP_BYTES)];
        SetOpening { member, leaf: tree.open(offset / LEAF_BYTES as u64, group).unwrap() }
    }

    /// Shows what was drawn of deals that all cover this holding.
    pub(crate) fn show_all(&self, drawn: &[Drawn], claimables: &[Claimable]) -> Vec<SetOpening> {
        assert!(drawn.iter().all(|drawn| claimables[drawn.index].head.head.bytes == self.sum().bytes));
        drawn.iter().map(|drawn| self.show(drawn.position)).collect()
    }
}
