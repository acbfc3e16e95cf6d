//! How a blob is cut: segments, rows, cells, shards, and where each plaintext byte lands.
//!
//! ```text
//! segment (sealed)  = record record record ...                 a record is 64 KiB: 65,520 bytes and a 16-byte tag
//! row r             = cell 0 .. cell k-1 | parity k .. n-1     a cell is one record, but in the last row
//! shard i           = cell i of row 0, cell i of row 1, ...
//! ```
//!
//! All rows but the last are full. The last row's sealed bytes are split evenly into k smaller cells, zero-padded
//! to a common length, so one plaintext byte costs n tiny shards and not n full cells. A cell has 32 bytes at least: whitened, no two
//! shards are then alike by chance, and nobody finds a shard's bytes by trying out what has its root.

use serde::{Deserialize, Serialize};

/// Length of a full cell, and of a full sealed record, in bytes.
pub const CELL_BYTES: usize = 64 * 1024;
/// Length of the smallest cell, in bytes.
pub const CELL_MIN_BYTES: usize = 32;
/// Length of the AES-GCM tag that ends each record, in bytes.
pub const TAG_BYTES: usize = 16;
/// Plaintext that one full record carries, in bytes.
pub const RECORD_PLAINTEXT_BYTES: usize = CELL_BYTES - TAG_BYTES;
/// Records of the largest segment: 40 MiB sealed.
pub const SEGMENT_RECORDS_MAX: usize = 640;
/// Most shards that GF(2^8) codes together, less one for a round bound.
pub const SHARDS_MAX: usize = 255;

/// Why a pair of k and n is not a usable code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "{k}+{parity} is not a usable code: k and parity must be at least 1 and k+parity at most {SHARDS_MAX}"
)]
pub struct GeometryError {
    /// Data shards asked for.
    pub k: usize,
    /// Parity shards asked for.
    pub parity: usize,
}

/// A code: any `k` of `n` shards rebuild a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "(u8, u8)", into = "(u8, u8)")]
pub struct Geometry {
    k: u8,
    n: u8,
}

impl TryFrom<(u8, u8)> for Geometry {
    type Error = GeometryError;
    fn try_from((k, n): (u8, u8)) -> Result<Self, GeometryError> {
        Self::new(k.into(), usize::from(n).saturating_sub(k.into()))
    }
}

impl From<Geometry> for (u8, u8) {
    fn from(g: Geometry) -> Self {
        (g.k, g.n)
    }
}

impl Geometry {
    /// A code of `k` data and `parity` parity shards, written `k+parity`.
    ///
    /// # Errors
    /// [`GeometryError`] where either is 0 or the sum exceeds [`SHARDS_MAX`].
    pub fn new(k: usize, parity: usize) -> Result<Self, GeometryError> {
        match (u8::try_from(k), u8::try_from(k.saturating_add(parity))) {
            (Ok(k8), Ok(n8)) if k > 0 && parity > 0 => Ok(Self { k: k8, n: n8 }),
            _ => Err(GeometryError { k, parity }),
        }
    }

    /// Shards that rebuild the segment.
    pub fn k(self) -> usize {
        self.k.into()
    }

    /// Shards in all.
    pub fn n(self) -> usize {
        self.n.into()
    }

    /// Shards that may be lost.
    pub fn parity(self) -> usize {
        self.n() - self.k()
    }

    /// Rows of the largest segment under this code.
    fn rows_max(self) -> usize {
        // At least two, since k is below 255.
        SEGMENT_RECORDS_MAX / self.k()
    }

    /// Plaintext of the largest segment under this code, in bytes: at most 40 MiB.
    pub fn segment_plaintext_max_bytes(self) -> usize {
        self.rows_max() * self.k() * RECORD_PLAINTEXT_BYTES
    }

    /// The layout of a segment with `plaintext_bytes` bytes of plaintext.
    ///
    /// # Panics
    /// When the segment is longer than [`Self::segment_plaintext_max_bytes`].
    pub fn segment(self, plaintext_bytes: usize) -> SegmentLayout {
        assert!(plaintext_bytes <= self.segment_plaintext_max_bytes(), "a segment is cut to the maximum");
        SegmentLayout { geometry: self, plaintext_bytes }
    }
}

/// One row of a segment: which sealed bytes it holds and where its cells lie in their shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// First sealed byte of this row within the segment.
    pub sealed_offset: usize,
    /// Sealed bytes in this row, without padding.
    pub sealed_bytes: usize,
    /// Length of each of this row's n cells.
    pub cell_bytes: usize,
    /// Where this row's cell starts in each shard.
    pub shard_offset: usize,
}

/// Where everything of one segment lies. Lengths are in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentLayout {
    geometry: Geometry,
    plaintext_bytes: usize,
}

impl SegmentLayout {
    /// The code.
    pub fn geometry(self) -> Geometry {
        self.geometry
    }

    /// Plaintext length.
    pub fn plaintext_bytes(self) -> usize {
        self.plaintext_bytes
    }

    /// Records, the last of which may be short. An empty segment has none.
    pub fn records(self) -> usize {
        self.plaintext_bytes.div_ceil(RECORD_PLAINTEXT_BYTES)
    }

    /// Sealed length: the plaintext and one tag a record.
    pub fn sealed_bytes(self) -> usize {
        self.plaintext_bytes + self.records() * TAG_BYTES
    }

    /// Sealed bytes of a full row.
    fn row_bytes(self) -> usize {
        self.geometry.k() * CELL_BYTES
    }

    /// Rows, the last of which may have smaller cells.
    pub fn rows(self) -> usize {
        self.sealed_bytes().div_ceil(self.row_bytes())
    }

    /// The place of row `r`.
    ///
    /// # Panics
    /// When `r` is not below [`Self::rows`].
    pub fn row(self, r: usize) -> Row {
        assert!(r < self.rows(), "row {r} of {}", self.rows());
        let sealed_offset = r * self.row_bytes();
        let sealed_bytes = (self.sealed_bytes() - sealed_offset).min(self.row_bytes());
        let cell_bytes = sealed_bytes.div_ceil(self.geometry.k()).max(CELL_MIN_BYTES);
        Row { sealed_offset, sealed_bytes, cell_bytes, shard_offset: r * CELL_BYTES }
    }

    /// Length of each of the segment's n shards.
    pub fn shard_bytes(self) -> usize {
        match self.rows() {
            0 => 0,
            rows => {
                let last = self.row(rows - 1);
                last.shard_offset + last.cell_bytes
            }
        }
    }

    /// The records that hold plaintext `start..end`, and the rows that hold those records.
    pub fn locate(self, start: usize, end: usize) -> (std::ops::Range<usize>, std::ops::Range<usize>) {
        let end = end.min(self.plaintext_bytes);
        if start >= end {
            return (0..0, 0..0);
        }
        let records = start / RECORD_PLAINTEXT_BYTES..end.div_ceil(RECORD_PLAINTEXT_BYTES);
        let rows = records.start / self.geometry.k()..records.end.div_ceil(self.geometry.k());
        (records, rows)
    }

    /// Plaintext bytes of record `index`.
    pub fn record_plaintext(self, index: usize) -> std::ops::Range<usize> {
        let start = index * RECORD_PLAINTEXT_BYTES;
        start..(start + RECORD_PLAINTEXT_BYTES).min(self.plaintext_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn bounds_of_the_code_are_enforced() {
        assert!(Geometry::new(0, 3).is_err());
        assert!(Geometry::new(3, 0).is_err());
        assert!(Geometry::new(200, 56).is_err());
        assert!(Geometry::new(usize::MAX, 2).is_err());
        assert_eq!(Geometry::new(200, 55).unwrap().n(), 255);
        assert!(crate::encode::from_bytes::<Geometry>(&[4, 4], 2).is_err(), "no parity");
        assert!(crate::encode::from_bytes::<Geometry>(&[4, 3], 2).is_err(), "n below k");
    }

    #[test]
    fn a_ten_shard_segment_is_the_documented_forty_mebibytes() {
        let layout = Geometry::new(10, 4).unwrap().segment(640 * RECORD_PLAINTEXT_BYTES);
        assert_eq!(layout.sealed_bytes(), 40 << 20);
        assert_eq!(layout.shard_bytes(), 4 << 20);
        assert_eq!(layout.rows(), 64);
    }

    #[test]
    fn one_byte_costs_tiny_shards() {
        let layout = Geometry::new(10, 20).unwrap().segment(1);
        assert_eq!((layout.sealed_bytes(), layout.shard_bytes()), (17, CELL_MIN_BYTES));
        assert_eq!(Geometry::new(10, 20).unwrap().segment(0).shard_bytes(), 0);
    }

    proptest! {
        #[test]
        fn rows_tile_the_sealed_bytes(k in 1usize..60, parity in 1usize..60, share in 0.0f64..=1.0) {
            let geometry = Geometry::new(k, parity).unwrap();
            let plaintext_bytes = (geometry.segment_plaintext_max_bytes() as f64 * share) as usize;
            let layout = geometry.segment(plaintext_bytes);
            let mut sealed = 0;
            let mut shard = 0;
            for r in 0..layout.rows() {
                let row = layout.row(r);
                prop_assert_eq!(row.sealed_offset, sealed);
                prop_assert_eq!(row.shard_offset, shard);
                prop_assert!(row.cell_bytes * k >= row.sealed_bytes && row.cell_bytes <= CELL_BYTES);
                sealed += row.sealed_bytes;
                shard += row.cell_bytes;
            }
            prop_assert_eq!(sealed, layout.sealed_bytes());
            prop_assert_eq!(shard, layout.shard_bytes());
        }
    }
}
