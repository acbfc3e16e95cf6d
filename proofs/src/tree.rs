//! BLAKE3 trees over stored shards: roots, verified streaming in 16 KiB groups, and 1 KiB openings.
//!
//! A shard's name is the BLAKE3 hash of its stored bytes. BLAKE3 is a binary tree over 1 KiB leaves, so a holder can
//! show any part of a shard with the hashes beside the path to it. Two uses:
//!
//! - **Verified streaming** for reads: hash pairs and 16 KiB groups in pre-order, byte for byte what the crate
//!   `bao-tree` writes for chunk groups of 16; a lie is noticed within one group. [`Tree`] plans what to send and
//!   [`Verifier`] checks what arrives, neither does IO.
//! - **Openings** for proofs on a ledger: one leaf and its path, [`Opening`].
//!
//! A holder keeps [`Tree::groups`], 32 bytes a group, beside the shard; everything above is recomputed when needed.
//!
//! Source: the BLAKE3 paper (O'Connor, Aumasson, Neves, Wilcox-O'Hearn), section 2.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use blake3::hazmat::{
    ChainingValue, HasherExt, Mode, left_subtree_len, merge_subtrees_non_root, merge_subtrees_root,
};
use serde::{Deserialize, Serialize};

/// What a reader verifies at once.
pub const GROUP_BYTES: usize = 16 * 1024;
/// What an opening shows: one BLAKE3 chunk.
pub const LEAF_BYTES: usize = 1024;
/// Length of a pair of hashes on the wire.
pub const PAIR_BYTES: usize = 64;

/// The BLAKE3 hash of a shard's stored bytes: its name and its commitment.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Root([u8; 32]);

impl Root {
    /// The root of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(blake3::hash(bytes).into())
    }

    /// Wraps the 32 bytes of a hash.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes of the hash.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(blake3::Hash::from_bytes(self.0).to_hex().as_str())
    }
}

impl fmt::Debug for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Root({self})")
    }
}

impl FromStr for Root {
    type Err = blake3::HexError;
    fn from_str(hex: &str) -> Result<Self, Self::Err> {
        Ok(Self(blake3::Hash::from_hex(hex)?.into()))
    }
}

/// The subtree hash of one group that is not the whole shard.
///
/// `offset` is the group's first byte in the shard, a multiple of [`GROUP_BYTES`].
fn group_hash(offset: u64, bytes: &[u8]) -> ChainingValue {
    blake3::Hasher::new().set_input_offset(offset).update(bytes).finalize_non_root()
}

fn groups_of(shard_bytes: u64) -> usize {
    usize::try_from(shard_bytes.div_ceil(GROUP_BYTES as u64)).expect("a shard's groups are counted in memory")
}

/// Computes a [`Tree`] from bytes that arrive in any pieces.
#[derive(Default)]
pub struct TreeHasher {
    /// Hashes of the full groups so far, but the newest, which may turn out to be the only one.
    groups: Vec<ChainingValue>,
    /// The bytes of the group under way.
    pending: Vec<u8>,
}

impl TreeHasher {
    /// Starts an empty shard.
    pub fn new() -> Self {
        Self::default()
    }

    fn offset(&self) -> u64 {
        (self.groups.len() * GROUP_BYTES) as u64
    }

    /// Takes the shard's next bytes.
    pub fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.pending.is_empty() && bytes.len() > GROUP_BYTES {
                // More follows, so this group is not the whole shard: hash it where it lies.
                let (group, rest) = bytes.split_at(GROUP_BYTES);
                self.groups.push(group_hash(self.offset(), group));
                bytes = rest;
                continue;
            }
            if self.pending.len() == GROUP_BYTES {
                self.groups.push(group_hash(self.offset(), &self.pending));
                self.pending.clear();
                continue;
            }
            let take = bytes.len().min(GROUP_BYTES - self.pending.len());
            self.pending.extend_from_slice(&bytes[..take]);
            bytes = &bytes[take..];
        }
    }

    /// The tree of all bytes taken.
    pub fn finalize(mut self) -> Tree {
        let shard_bytes = self.offset() + self.pending.len() as u64;
        if self.groups.is_empty() {
            return Tree { root: Root::of(&self.pending), shard_bytes, groups: Vec::new() };
        }
        self.groups.push(group_hash(self.offset(), &self.pending));
        Tree::from_groups(shard_bytes, self.groups).expect("the groups were just counted")
    }
}

/// The group hashes do not fit the shard's length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{groups} group hashes do not fit a shard of {shard_bytes} bytes")]
pub struct GroupCountError {
    groups: usize,
    shard_bytes: u64,
}

/// A shard's root and the hashes of its groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    root: Root,
    shard_bytes: u64,
    /// One hash a group, or none when the shard is a single group.
    groups: Vec<ChainingValue>,
}

/// One item of a verified stream, in the order it is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Item {
    /// The hashes of a node's two children.
    Pair([u8; PAIR_BYTES]),
    /// `len` bytes of the shard at `offset`: one group. Its bytes are the caller's to read and check.
    Group {
        /// First byte in the shard.
        offset: u64,
        /// Length, [`GROUP_BYTES`] but for the shard's last group.
        len: usize,
    },
}

impl Tree {
    /// The tree of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        let mut hasher = TreeHasher::new();
        hasher.update(bytes);
        hasher.finalize()
    }

    /// Rebuilds a tree of two groups or more from its stored group hashes.
    ///
    /// # Errors
    /// [`GroupCountError`] when their number does not fit the length.
    pub fn from_groups(shard_bytes: u64, groups: Vec<ChainingValue>) -> Result<Self, GroupCountError> {
        if groups.len() < 2 || groups_of(shard_bytes) != groups.len() {
            return Err(GroupCountError { groups: groups.len(), shard_bytes });
        }
        let mid = split_groups(groups.len());
        let root = merge_subtrees_root(&subtree(&groups[..mid]), &subtree(&groups[mid..]), Mode::Hash);
        Ok(Self { root: Root(root.into()), shard_bytes, groups })
    }

    /// A tree of one group, which needs no hashes but its root.
    ///
    /// # Errors
    /// [`GroupCountError`] when the shard is longer than a group.
    pub fn single(shard_bytes: u64, root: Root) -> Result<Self, GroupCountError> {
        if shard_bytes > GROUP_BYTES as u64 {
            return Err(GroupCountError { groups: 0, shard_bytes });
        }
        Ok(Self { root, shard_bytes, groups: Vec::new() })
    }

    /// The shard's root.
    pub fn root(&self) -> Root {
        self.root
    }

    /// The shard's length in bytes.
    pub fn shard_bytes(&self) -> u64 {
        self.shard_bytes
    }

    /// The hashes to keep beside the shard: one a group, none for a single group.
    pub fn groups(&self) -> &[ChainingValue] {
        &self.groups
    }

    /// Checks that `bytes` are the group at `offset` and returns their hash, for a transcript.
    ///
    /// # Errors
    /// [`VerifyError::WrongGroup`] when they are not.
    pub fn verify_group(&self, offset: u64, bytes: &[u8]) -> Result<[u8; 32], VerifyError> {
        let wrong = VerifyError::WrongGroup { offset };
        let (hash, want) = if self.groups.is_empty() {
            (*Root::of(bytes).as_bytes(), *self.root.as_bytes())
        } else {
            let index = usize::try_from(offset / GROUP_BYTES as u64).unwrap_or(usize::MAX);
            (group_hash(offset, bytes), *self.groups.get(index).ok_or(wrong)?)
        };
        if hash == want { Ok(hash) } else { Err(wrong) }
    }

    /// What to send so that a reader can verify the groups that hold bytes `range`.
    pub fn plan(&self, range: Range<u64>) -> Vec<Item> {
        let mut items = Vec::new();
        let range = range.start..range.end.min(self.shard_bytes);
        if self.shard_bytes == 0 || range.start < range.end {
            self.plan_subtree(0..groups_of(self.shard_bytes).max(1), &range, &mut items);
        }
        items
    }

    fn plan_subtree(&self, groups: Range<usize>, range: &Range<u64>, items: &mut Vec<Item>) {
        let bytes = group_range_bytes(&groups, self.shard_bytes);
        if self.shard_bytes > 0 && (bytes.end <= range.start || bytes.start >= range.end) {
            return;
        }
        if groups.len() == 1 {
            items.push(Item::Group { offset: bytes.start, len: (bytes.end - bytes.start) as usize });
            return;
        }
        let mid = groups.start + split_groups(groups.len());
        items.push(Item::Pair(pair(
            &subtree(&self.groups[groups.start..mid]),
            &subtree(&self.groups[mid..groups.end]),
        )));
        self.plan_subtree(groups.start..mid, range, items);
        self.plan_subtree(mid..groups.end, range, items);
    }

    /// Opens the 1 KiB leaf `leaf_index`. `group` are the bytes of the group that holds it.
    ///
    /// # Errors
    /// [`VerifyError`] when the leaf lies outside the shard or `group` is not the shard's group.
    pub fn open(&self, leaf_index: u64, group: &[u8]) -> Result<Opening, VerifyError> {
        let offset = leaf_index.checked_mul(LEAF_BYTES as u64).ok_or(VerifyError::OutOfRange)?;
        if offset >= self.shard_bytes.max(1) {
            return Err(VerifyError::OutOfRange);
        }
        let group_offset = offset - offset % GROUP_BYTES as u64;
        self.verify_group(group_offset, group)?;
        let mut path = Vec::new();
        let mut groups = 0..groups_of(self.shard_bytes).max(1);
        let target = (group_offset / GROUP_BYTES as u64) as usize;
        while groups.len() > 1 {
            let mid = groups.start + split_groups(groups.len());
            let (kept, other) = if target < mid {
                (groups.start..mid, mid..groups.end)
            } else {
                (mid..groups.end, groups.start..mid)
            };
            path.push(subtree(&self.groups[other]));
            groups = kept;
        }
        let mut part = 0..group.len();
        let within = (offset - group_offset) as usize;
        while part.len() > LEAF_BYTES {
            let mid = part.start + left_subtree_len(part.len() as u64) as usize;
            let (kept, other) = if within < mid {
                (part.start..mid, mid..part.end)
            } else {
                (mid..part.end, part.start..mid)
            };
            path.push(group_hash(group_offset + other.start as u64, &group[other]));
            part = kept;
        }
        path.reverse();
        Ok(Opening { leaf: group[part].to_vec(), path })
    }
}

/// Groups in the left child of a node over `groups` groups: the largest power of two below.
fn split_groups(groups: usize) -> usize {
    groups.next_power_of_two() / 2
}

fn subtree(groups: &[ChainingValue]) -> ChainingValue {
    match groups {
        [one] => *one,
        many => {
            let (left, right) = many.split_at(split_groups(many.len()));
            merge_subtrees_non_root(&subtree(left), &subtree(right), Mode::Hash)
        }
    }
}

fn group_range_bytes(groups: &Range<usize>, shard_bytes: u64) -> Range<u64> {
    (groups.start * GROUP_BYTES) as u64..((groups.end * GROUP_BYTES) as u64).min(shard_bytes)
}

fn pair(left: &ChainingValue, right: &ChainingValue) -> [u8; PAIR_BYTES] {
    let mut bytes = [0; PAIR_BYTES];
    bytes[..32].copy_from_slice(left);
    bytes[32..].copy_from_slice(right);
    bytes
}

/// Why bytes are not the part of the shard they are said to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// A pair of hashes is not the node's.
    #[error("a pair of hashes in the stream does not fit the root")]
    WrongPair,
    /// A group's bytes are not the shard's.
    #[error("the 16 KiB at byte {offset} are not the shard's")]
    WrongGroup {
        /// First byte of the group.
        offset: u64,
    },
    /// An opening does not lead to the root.
    #[error("the leaf and its path do not lead to the root")]
    WrongLeaf,
    /// The place asked for lies outside the shard.
    #[error("the place lies outside the shard")]
    OutOfRange,
}

/// What a verified stream of the groups that hold bytes `range` of a shard consists of, whatever its bytes are.
pub fn stream_shape(shard_bytes: u64, range: Range<u64>) -> Vec<Next> {
    let range = range.start..range.end.min(shard_bytes);
    let mut items = Vec::new();
    let mut stack = Vec::new();
    if shard_bytes == 0 || range.start < range.end {
        stack.push(0..groups_of(shard_bytes).max(1));
    }
    while let Some(groups) = stack.pop() {
        let bytes = group_range_bytes(&groups, shard_bytes);
        if shard_bytes > 0 && (bytes.end <= range.start || bytes.start >= range.end) {
            continue;
        }
        if groups.len() > 1 {
            items.push(Next::Pair);
            let mid = groups.start + split_groups(groups.len());
            stack.extend([mid..groups.end, groups.start..mid]);
        } else {
            items.push(Next::Group { offset: bytes.start, len: (bytes.end - bytes.start) as usize });
        }
    }
    items
}

/// What stands for a group's bytes in a transcript, whether they are the shard's or not: their hash as the group at `offset`.
pub fn group_entry(shard_bytes: u64, offset: u64, bytes: &[u8]) -> [u8; 32] {
    if shard_bytes <= GROUP_BYTES as u64 { *Root::of(bytes).as_bytes() } else { group_hash(offset, bytes) }
}

/// Checks a verified stream item by item, knowing only the root and the length.
///
/// Call [`Self::expects`] to learn what comes, then hand it over by [`Self::pair`] or [`Self::group`].
pub struct Verifier {
    shard_bytes: u64,
    range: Range<u64>,
    /// Nodes still to come, the next one last, each with the hash it must have.
    stack: Vec<(Range<usize>, Expected)>,
}

#[derive(Clone, Copy)]
enum Expected {
    Root(Root),
    Subtree(ChainingValue),
}

/// What a [`Verifier`] takes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// [`PAIR_BYTES`] bytes for [`Verifier::pair`].
    Pair,
    /// `len` bytes of the shard at `offset`, for [`Verifier::group`].
    Group {
        /// First byte in the shard.
        offset: u64,
        /// Length.
        len: usize,
    },
}

impl Verifier {
    /// A verifier for the groups that hold bytes `range` of the shard `root` of `shard_bytes` bytes.
    pub fn new(root: Root, shard_bytes: u64, range: Range<u64>) -> Self {
        let range = range.start..range.end.min(shard_bytes);
        let mut stack = Vec::new();
        if shard_bytes == 0 || range.start < range.end {
            stack.push((0..groups_of(shard_bytes).max(1), Expected::Root(root)));
        }
        Self { shard_bytes, range, stack }
    }

    /// What comes next, or `None` when the stream is complete.
    pub fn expects(&self) -> Option<Next> {
        let (groups, _) = self.stack.last()?;
        Some(if groups.len() > 1 {
            Next::Pair
        } else {
            let bytes = group_range_bytes(groups, self.shard_bytes);
            Next::Group { offset: bytes.start, len: (bytes.end - bytes.start) as usize }
        })
    }

    /// Takes a pair of hashes.
    ///
    /// # Errors
    /// [`VerifyError::WrongPair`] when the node's hash is another. Nothing after it can be trusted.
    ///
    /// # Panics
    /// When [`Self::expects`] does not ask for a pair.
    pub fn pair(&mut self, bytes: &[u8; PAIR_BYTES]) -> Result<(), VerifyError> {
        assert_eq!(self.expects(), Some(Next::Pair), "a pair is due");
        let (groups, expected) = self.stack.pop().expect("a pair is due");
        let left: ChainingValue = bytes[..32].try_into().expect("half of 64");
        let right: ChainingValue = bytes[32..].try_into().expect("half of 64");
        let right_node = match expected {
            Expected::Root(root) => Root(merge_subtrees_root(&left, &right, Mode::Hash).into()) == root,
            Expected::Subtree(want) => merge_subtrees_non_root(&left, &right, Mode::Hash) == want,
        };
        if !right_node {
            return Err(VerifyError::WrongPair);
        }
        let mid = groups.start + split_groups(groups.len());
        for (child, hash) in [(mid..groups.end, right), (groups.start..mid, left)] {
            let bytes = group_range_bytes(&child, self.shard_bytes);
            if bytes.end > self.range.start && bytes.start < self.range.end {
                self.stack.push((child, Expected::Subtree(hash)));
            }
        }
        Ok(())
    }

    /// Takes a group's bytes and returns their hash, for a transcript.
    ///
    /// # Errors
    /// [`VerifyError::WrongGroup`] when they are not the shard's.
    ///
    /// # Panics
    /// When [`Self::expects`] does not ask for a group of this length.
    pub fn group(&mut self, bytes: &[u8]) -> Result<[u8; 32], VerifyError> {
        let Some(Next::Group { offset, len }) = self.expects() else { panic!("a group is due") };
        assert_eq!(len, bytes.len(), "a group is taken whole");
        let (_, expected) = self.stack.pop().expect("a group is due");
        let (hash, want) = match expected {
            Expected::Root(root) => (*Root::of(bytes).as_bytes(), *root.as_bytes()),
            Expected::Subtree(want) => (group_hash(offset, bytes), want),
        };
        if hash == want { Ok(hash) } else { Err(VerifyError::WrongGroup { offset }) }
    }
}

/// Longest shard that openings are checked for: far above any, and far below where lengths overflow.
const OPENED_MAX_BYTES: u64 = 1 << 60;

/// One leaf of a shard with the hashes beside its path: proof that the holder has these bytes.
///
/// For a shard of 4 MiB this is 1,024 bytes of leaf and 12 hashes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opening {
    /// The leaf's bytes: 1 KiB but for the shard's last leaf.
    pub leaf: Vec<u8>,
    /// The hashes beside the path, from the leaf up.
    pub path: Vec<[u8; 32]>,
}

impl Opening {
    /// Checks that this opens leaf `leaf_index` of the shard `root` of `shard_bytes` bytes.
    ///
    /// # Errors
    /// [`VerifyError`] when it does not.
    pub fn verify(&self, root: Root, shard_bytes: u64, leaf_index: u64) -> Result<(), VerifyError> {
        if shard_bytes > OPENED_MAX_BYTES {
            return Err(VerifyError::OutOfRange);
        }
        let offset = leaf_index.checked_mul(LEAF_BYTES as u64).ok_or(VerifyError::OutOfRange)?;
        if offset >= shard_bytes.max(1) {
            return Err(VerifyError::OutOfRange);
        }
        let leaf_bytes = (shard_bytes - offset).min(LEAF_BYTES as u64);
        if self.leaf.len() as u64 != leaf_bytes {
            return Err(VerifyError::WrongLeaf);
        }
        let turns = turns_to(offset, shard_bytes);
        if turns.len() != self.path.len() {
            return Err(VerifyError::WrongLeaf);
        }
        if turns.is_empty() {
            return if Root::of(&self.leaf) == root { Ok(()) } else { Err(VerifyError::WrongLeaf) };
        }
        let mut hash = group_hash(offset, &self.leaf);
        for (level, (sibling, went_right)) in self.path.iter().zip(turns.iter().rev()).enumerate() {
            let (left, right) = if *went_right { (sibling, &hash) } else { (&hash, sibling) };
            if level + 1 == turns.len() {
                let computed = Root(merge_subtrees_root(left, right, Mode::Hash).into());
                return if computed == root { Ok(()) } else { Err(VerifyError::WrongLeaf) };
            }
            hash = merge_subtrees_non_root(left, right, Mode::Hash);
        }
        unreachable!("the last level returned")
    }
}

/// From the root down to the leaf at `offset`: whether each step goes right.
fn turns_to(offset: u64, shard_bytes: u64) -> Vec<bool> {
    let mut turns = Vec::new();
    let (mut start, mut len) = (0, shard_bytes);
    while len > LEAF_BYTES as u64 {
        let left = left_subtree_len(len);
        let right = offset >= start + left;
        turns.push(right);
        (start, len) = if right { (start + left, len - left) } else { (start, left) };
    }
    turns
}

#[cfg(test)]
mod tests {
    use super::*;
    use bao_tree::io::outboard::PreOrderOutboard;
    use bao_tree::io::sync::{CreateOutboard, encode_ranges_validated};
    use bao_tree::{BlockSize, ByteRanges};
    use proptest::prelude::*;

    fn bytes_of(len: usize, seed: u64) -> Vec<u8> {
        let mut bytes = vec![0; len];
        blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
        bytes
    }

    /// The stream as a provider sends it.
    fn stream(tree: &Tree, shard: &[u8], range: Range<u64>) -> Vec<u8> {
        let mut out = Vec::new();
        for item in tree.plan(range) {
            match item {
                Item::Pair(pair) => out.extend_from_slice(&pair),
                Item::Group { offset, len } => {
                    out.extend_from_slice(&shard[offset as usize..offset as usize + len])
                }
            }
        }
        out
    }

    /// Runs a verifier over a stream; the bytes it accepted, or the first error.
    fn receive(root: Root, len: u64, range: Range<u64>, mut stream: &[u8]) -> Result<Vec<u8>, VerifyError> {
        let mut verifier = Verifier::new(root, len, range);
        let mut out = Vec::new();
        while let Some(next) = verifier.expects() {
            let want = match next {
                Next::Pair => PAIR_BYTES,
                Next::Group { len, .. } => len,
            };
            let (head, rest) = stream.split_at(want);
            stream = rest;
            match next {
                Next::Pair => verifier.pair(head.try_into().unwrap())?,
                Next::Group { .. } => {
                    verifier.group(head)?;
                    out.extend_from_slice(head);
                }
            }
        }
        assert!(stream.is_empty(), "a stream has no more than the verifier asks for");
        Ok(out)
    }

    const LENGTHS: [usize; 12] =
        [0, 1, 1023, 1024, 1025, 16383, 16384, 16385, 32768, 32769, 100_000, 7 * GROUP_BYTES];

    #[test]
    fn roots_are_blake3_whatever_the_pieces() {
        for len in LENGTHS {
            let shard = bytes_of(len, 1);
            for piece in [1, 1000, 16384, 70_000] {
                let mut hasher = TreeHasher::new();
                shard.chunks(piece).for_each(|p| hasher.update(p));
                let tree = hasher.finalize();
                assert_eq!(tree.root(), Root::of(&shard), "{len} bytes in pieces of {piece}");
                assert_eq!(tree.shard_bytes(), len as u64);
            }
        }
    }

    #[test]
    fn the_stream_is_what_bao_tree_writes() {
        for len in LENGTHS {
            let shard = bytes_of(len, 2);
            let outboard = PreOrderOutboard::<Vec<u8>>::create(
                std::io::Cursor::new(&shard[..]),
                BlockSize::from_chunk_log(4),
            )
            .unwrap();
            for (start, end) in [(0, len), (len / 2, len), (len / 3, len / 3 + 1)] {
                // Whole groups, which is what this protocol serves.
                let start = start - start % GROUP_BYTES;
                let end = end.next_multiple_of(GROUP_BYTES).min(len);
                if start >= end {
                    continue;
                }
                let ranges = bao_tree::io::round_up_to_chunks(&ByteRanges::from(start as u64..end as u64));
                let mut want = Vec::new();
                encode_ranges_validated(&shard[..], &outboard, &ranges, &mut want).unwrap();
                let got = stream(&Tree::of(&shard), &shard, start as u64..end as u64);
                assert_eq!(got, want, "{len} bytes, {start}..{end}");
            }
        }
    }

    #[test]
    fn a_stored_tree_is_the_computed_one() {
        let shard = bytes_of(100_000, 3);
        let tree = Tree::of(&shard);
        assert_eq!(Tree::from_groups(100_000, tree.groups().to_vec()), Ok(tree.clone()));
        assert!(Tree::from_groups(10_000_000, tree.groups().to_vec()).is_err());
        assert!(Tree::single(GROUP_BYTES as u64 + 1, tree.root()).is_err());
    }

    #[test]
    fn an_opening_of_a_full_shard_has_the_documented_size() {
        let shard = bytes_of(4 << 20, 4);
        let tree = Tree::of(&shard);
        let opening = tree.open(4095, &shard[(4 << 20) - GROUP_BYTES..]).unwrap();
        assert_eq!((opening.leaf.len(), opening.path.len()), (1024, 12));
        assert_eq!(opening.verify(tree.root(), 4 << 20, 4095), Ok(()));
    }

    proptest! {
        #[test]
        fn every_range_arrives_and_every_flip_is_caught(
            len in 0usize..120_000, start in any::<u64>(), take in any::<u64>(), flip in any::<usize>(), seed in any::<u64>()
        ) {
            let shard = bytes_of(len, seed);
            let tree = Tree::of(&shard);
            let start = if len == 0 { 0 } else { start % len as u64 };
            let end = start + if len == 0 { 0 } else { take % (len as u64 - start + 1) };
            let mut sent = stream(&tree, &shard, start..end);
            let got = receive(tree.root(), len as u64, start..end, &sent).unwrap();
            let planned = tree.plan(start..end).into_iter().map(|item| match item {
                Item::Pair(_) => Next::Pair,
                Item::Group { offset, len } => {
                    let group = &shard[offset as usize..][..len];
                    assert_eq!(Ok(group_entry(shard.len() as u64, offset, group)), tree.verify_group(offset, group));
                    Next::Group { offset, len }
                }
            });
            prop_assert_eq!(planned.collect::<Vec<_>>(), stream_shape(len as u64, start..end));
            if start < end {
                let first = start as usize - start as usize % GROUP_BYTES;
                prop_assert_eq!(&got[..], &shard[first..(end as usize).next_multiple_of(GROUP_BYTES).min(len)]);
            }
            if !sent.is_empty() {
                let bit = flip % (sent.len() * 8);
                sent[bit / 8] ^= 1 << (bit % 8);
                prop_assert!(receive(tree.root(), len as u64, start..end, &sent).is_err());
            }
        }

        #[test]
        fn openings_verify_and_nothing_else_does(len in 1usize..70_000, leaf in any::<u64>(), flip in any::<usize>()) {
            let shard = bytes_of(len, 9);
            let tree = Tree::of(&shard);
            let leaf = leaf % (len as u64).div_ceil(1024);
            let group = (leaf as usize * 1024) / GROUP_BYTES * GROUP_BYTES;
            let mut opening = tree.open(leaf, &shard[group..(group + GROUP_BYTES).min(len)]).unwrap();
            prop_assert_eq!(opening.verify(tree.root(), len as u64, leaf), Ok(()));
            prop_assert!(opening.verify(tree.root(), len as u64, leaf + 1).is_err());
            prop_assert!(opening.verify(Root::from_bytes([0; 32]), len as u64, leaf).is_err());
            let bit = flip % (opening.leaf.len() * 8);
            opening.leaf[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(opening.verify(tree.root(), len as u64, leaf).is_err());
        }

        #[test]
        fn openings_from_strangers_never_panic(
            magnitude in 0u32..64, low in any::<u64>(), leaf in any::<u64>(), cut in 0usize..3
        ) {
            // A leaf and a path of the lengths that fit, so that the hashes are reached, and some that do not.
            let len = (1u64 << magnitude) | (low & ((1u64 << magnitude) - 1));
            let index = leaf % len.div_ceil(LEAF_BYTES as u64);
            let leaf_bytes = (len - index * LEAF_BYTES as u64).min(LEAF_BYTES as u64) as usize;
            let turns = if len <= OPENED_MAX_BYTES { turns_to(index * LEAF_BYTES as u64, len).len() } else { 60 };
            let opening = Opening { leaf: vec![7; leaf_bytes], path: vec![[9; 32]; turns.saturating_sub(cut)] };
            prop_assert!(opening.verify(Root::from_bytes([1; 32]), len, index).is_err());
            prop_assert!(opening.verify(Root::from_bytes([1; 32]), low, leaf).is_err());
        }
    }
}
