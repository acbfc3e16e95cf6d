//! Recipes: what it takes to turn shards back into a blob, except where the shards are.
//!
//! A recipe is immutable and holds keys, geometry, shard roots and extents. It leaves the client only sealed under the
//! client's recipe key. Which provider holds which root is another, mutable record, the placement.
//!
//! A blob is the concatenation of its extents, each a run of plaintext bytes of a segment. A large blob has one extent a
//! segment; small blobs may point into a segment they share.

use serde::{Deserialize, Serialize};

use crate::cipher::{OpenError, Secret, SegmentKey, open_message, seal_message};
use crate::encode::{DecodeError, from_bytes, to_bytes};
use crate::geometry::{Geometry, RECORD_PLAINTEXT_BYTES, SegmentLayout};
use crate::tree::Root;

/// Longest recipe, before it is sealed: a blob of about 2.5 TiB at 10+20.
pub const RECIPE_MAX_BYTES: usize = 64 << 20;
/// Most that a segment adds to a recipe beside its roots: key, lengths and extent as varints.
const SEGMENT_OVERHEAD_MAX_BYTES: usize = 64;

/// A recipe, by version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Recipe {
    /// The first version.
    V1(RecipeV1),
}

/// The first version of a recipe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecipeV1 {
    /// The code of all segments.
    pub geometry: Geometry,
    /// The segments that the extents point into.
    pub segments: Vec<SegmentRecipe>,
    /// The blob's bytes in order.
    pub extents: Vec<Extent>,
}

/// What it takes to read one segment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentRecipe {
    /// Opens the records, and leads to the outer key.
    pub key: SegmentKey,
    /// Plaintext length.
    pub plaintext_bytes: u32,
    /// The n shards' roots, in order.
    pub roots: Vec<Root>,
}

/// A run of a segment's plaintext.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// Which segment.
    pub segment: u32,
    /// First byte within it.
    pub offset: u32,
    /// Length, above 0.
    pub len: u32,
}

/// Why sealed bytes are not a usable recipe.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecipeError {
    /// They do not open under this key.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// They open, but do not decode.
    #[error("the recipe does not decode: {0}")]
    Decode(#[from] DecodeError),
    /// A segment has not n roots, or is empty or too long.
    #[error("segment {segment} of the recipe does not fit its code")]
    Segment {
        /// Which segment.
        segment: usize,
    },
    /// An extent points outside its segment.
    #[error("extent {extent} of the recipe points outside its segment")]
    Extent {
        /// Which extent.
        extent: usize,
    },
}

/// Most records read at once, or one row where that is more: a quarter of the longest segment, so that a reader works on one part while
/// the next ones arrive.
pub const SLICE_RECORDS_MAX: usize = 160;

/// Most segments of a blob under `geometry`, so that its recipe can always be opened again.
pub fn segments_max(geometry: Geometry) -> usize {
    RECIPE_MAX_BYTES / (geometry.n() * 32 + SEGMENT_OVERHEAD_MAX_BYTES) - 1
}

/// A run of a segment that a read of the blob needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slice {
    /// Which segment.
    pub segment: usize,
    /// First plaintext byte within the segment.
    pub start: usize,
    /// One past the last.
    pub end: usize,
}

impl RecipeV1 {
    /// Length of the blob in bytes.
    pub fn blob_bytes(&self) -> u64 {
        self.extents.iter().map(|e| u64::from(e.len)).sum()
    }

    /// The layout of segment `index`.
    pub fn layout(&self, index: usize) -> SegmentLayout {
        self.geometry.segment(self.segments[index].plaintext_bytes as usize)
    }

    /// Bytes that all shards take together.
    pub fn stored_bytes(&self) -> u64 {
        (0..self.segments.len()).map(|i| (self.layout(i).shard_bytes() * self.geometry.n()) as u64).sum()
    }

    /// The segment runs that make up blob bytes `start..end`, in order, cut at rows. Each lies within [`SLICE_RECORDS_MAX`] records or one row.
    pub fn slices(&self, start: u64, end: u64) -> Vec<Slice> {
        let rows = (SLICE_RECORDS_MAX / self.geometry.k()).max(1);
        let stride = rows * self.geometry.k() * RECORD_PLAINTEXT_BYTES;
        let mut at = 0;
        let mut slices = Vec::new();
        for extent in &self.extents {
            let (from, to) = (start.max(at), end.min(at + u64::from(extent.len)));
            if from < to {
                let base = u64::from(extent.offset);
                let (mut start, end) = ((base + from - at) as usize, (base + to - at) as usize);
                while start < end {
                    let cut = end.min((start / stride + 1) * stride);
                    slices.push(Slice { segment: extent.segment as usize, start, end: cut });
                    start = cut;
                }
            }
            at += u64::from(extent.len);
        }
        slices
    }

    /// Checks what decoding alone does not.
    ///
    /// # Errors
    /// [`RecipeError`] naming the segment or extent that does not fit.
    pub fn check(&self) -> Result<(), RecipeError> {
        for (segment, s) in self.segments.iter().enumerate() {
            let bytes = s.plaintext_bytes as usize;
            if s.roots.len() != self.geometry.n()
                || bytes == 0
                || bytes > self.geometry.segment_plaintext_max_bytes()
            {
                return Err(RecipeError::Segment { segment });
            }
        }
        for (extent, e) in self.extents.iter().enumerate() {
            let segment_bytes =
                self.segments.get(e.segment as usize).map_or(0, |s| u64::from(s.plaintext_bytes));
            if e.len == 0 || u64::from(e.offset) + u64::from(e.len) > segment_bytes {
                return Err(RecipeError::Extent { extent });
            }
        }
        Ok(())
    }
}

impl Recipe {
    /// Seals the recipe under the client's recipe key.
    pub fn seal(&self, recipe_key: &Secret) -> Vec<u8> {
        seal_message(recipe_key, &to_bytes(self))
    }

    /// Opens and checks a sealed recipe.
    ///
    /// # Errors
    /// [`RecipeError`] when the bytes are not a recipe sealed under this key.
    pub fn open(recipe_key: &Secret, sealed: &[u8]) -> Result<Self, RecipeError> {
        let recipe: Self = from_bytes(&open_message(recipe_key, sealed)?, RECIPE_MAX_BYTES)?;
        let Self::V1(v1) = &recipe;
        v1.check()?;
        Ok(recipe)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn recipe() -> RecipeV1 {
        let geometry = Geometry::new(2, 1).unwrap();
        let segment = |tag: u8, plaintext_bytes| SegmentRecipe {
            key: SegmentKey::for_plaintext(&Secret::new([tag; 32]), 0, &[tag]),
            plaintext_bytes,
            roots: (0..3).map(|i| Root::of(&[tag, i])).collect(),
        };
        RecipeV1 {
            geometry,
            segments: vec![segment(1, 100), segment(2, 50)],
            extents: vec![
                Extent { segment: 0, offset: 0, len: 100 },
                Extent { segment: 1, offset: 10, len: 40 },
            ],
        }
    }

    #[test]
    fn golden_bytes() {
        // version, k n, 2 segments of (key, plaintext bytes, 3 roots), 2 extents; hashed, since keys are long
        let bytes = to_bytes(&Recipe::V1(recipe()));
        assert_eq!(bytes[..3], [0, 2, 3]);
        assert_eq!(blake3::hash(&bytes).to_hex().as_str(), GOLDEN_HASH);
    }

    const GOLDEN_HASH: &str = "dabbca5d7d2dfe6ba20900b952490c96b3a9e2272c8a717f7ce71fd05e5ca609";

    #[test]
    fn the_longest_recipe_can_be_opened() {
        let geometry = Geometry::new(100, 155).unwrap();
        let plaintext_bytes = geometry.segment_plaintext_max_bytes() as u32;
        let key = SegmentKey::for_plaintext(&Secret::new([1; 32]), 0, b"");
        let segments = segments_max(geometry);
        let segment = SegmentRecipe { key, plaintext_bytes, roots: vec![Root::of(b""); 255] };
        let extents =
            (0..segments as u32).map(|segment| Extent { segment, offset: 0, len: plaintext_bytes }).collect();
        let recipe = RecipeV1 { geometry, segments: vec![segment; segments], extents };
        let bytes = to_bytes(&Recipe::V1(recipe)).len();
        assert!((RECIPE_MAX_BYTES * 9 / 10..=RECIPE_MAX_BYTES).contains(&bytes), "{bytes}");
    }

    #[test]
    fn slices_cross_extents() {
        assert_eq!(recipe().blob_bytes(), 140);
        assert_eq!(
            recipe().slices(90, 105),
            [Slice { segment: 0, start: 90, end: 100 }, Slice { segment: 1, start: 10, end: 15 }]
        );
        assert!(recipe().slices(140, 200).is_empty());
    }

    #[test]
    fn long_slices_are_cut_between_rows() {
        let geometry = Geometry::new(3, 2).unwrap();
        let len = geometry.segment_plaintext_max_bytes() as u32;
        let key = SegmentKey::for_plaintext(&Secret::new([1; 32]), 0, b"");
        let segment = SegmentRecipe { key, plaintext_bytes: len, roots: vec![Root::of(b""); 5] };
        let extents = vec![Extent { segment: 0, offset: 0, len }];
        let recipe = RecipeV1 { geometry, segments: vec![segment], extents };
        let slices = recipe.slices(7, u64::from(len) - 7);
        assert_eq!((slices[0].start, slices.last().unwrap().end), (7, len as usize - 7));
        for pair in slices.windows(2) {
            assert_eq!(pair[0].end, pair[1].start);
            assert_eq!(pair[0].end % (3 * RECORD_PLAINTEXT_BYTES), 0, "no row is read twice");
        }
        let (records, _) = recipe.layout(0).locate(slices[0].start, slices[0].end);
        assert!(records.len() <= SLICE_RECORDS_MAX);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let key = Secret::new([3; 32]);
        let sealed = Recipe::V1(recipe()).seal(&key);
        assert_eq!(Recipe::open(&key, &sealed), Ok(Recipe::V1(recipe())));
        assert_eq!(Recipe::open(&Secret::new([4; 32]), &sealed), Err(RecipeError::Open(OpenError)));
        let break_with = |change: fn(&mut RecipeV1)| {
            let mut broken = recipe();
            change(&mut broken);
            Recipe::open(&key, &Recipe::V1(broken).seal(&key))
        };
        assert_eq!(break_with(|r| r.segments[1].roots.clear()), Err(RecipeError::Segment { segment: 1 }));
        assert_eq!(
            break_with(|r| r.segments[0].plaintext_bytes = u32::MAX),
            Err(RecipeError::Segment { segment: 0 })
        );
        assert_eq!(break_with(|r| r.extents[1].segment = 2), Err(RecipeError::Extent { extent: 1 }));
        assert_eq!(break_with(|r| r.extents[0].offset = 1), Err(RecipeError::Extent { extent: 0 }));
        assert_eq!(break_with(|r| r.extents[0].len = 0), Err(RecipeError::Extent { extent: 0 }));
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let key = Secret::new([3; 32]);
            prop_assert!(Recipe::open(&key, &bytes).is_err());
            let _ = Recipe::open(&key, &seal_message(&key, &bytes));
        }
    }
}
