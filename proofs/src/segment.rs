//! A segment's whole way: plaintext -> stored rows, and stored shards -> plaintext.
//!
//! [`SegmentCoder::code_row`] is encrypt, code, whiten; [`SegmentCoder::decode`] is unwhiten, decode, decrypt. Both work on rows, so a
//! writer holds one row at a time and a reader of a range touches only the rows that hold it.

use std::ops::Range;
use std::sync::Arc;

use crate::cipher::{OpenError, RecordCipher, SegmentKey};
use crate::erasure::{Erasure, TooFewShards};
use crate::geometry::{CELL_BYTES, SegmentLayout, TAG_BYTES};
use crate::whiten::ShardKeystream;

/// Why shards do not give back their plaintext.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SegmentError {
    /// Fewer than k shards.
    #[error(transparent)]
    TooFew(#[from] TooFewShards),
    /// The shards are whole, but do not open under this key: the recipe belongs to other shards.
    #[error(transparent)]
    Open(#[from] OpenError),
}

/// Codes and decodes one segment.
pub struct SegmentCoder {
    layout: SegmentLayout,
    erasure: Arc<Erasure>,
    cipher: RecordCipher,
    keystreams: Vec<ShardKeystream>,
}

impl SegmentCoder {
    /// A coder for a segment of `plaintext_bytes` bytes under `key`.
    ///
    /// # Panics
    /// When the segment is longer than its geometry allows.
    pub fn new(erasure: Arc<Erasure>, key: &SegmentKey, plaintext_bytes: usize) -> Self {
        let geometry = erasure.geometry();
        let outer = key.outer();
        let keystreams = (0..geometry.n()).map(|i| outer.shard(i)).collect();
        Self { layout: geometry.segment(plaintext_bytes), erasure, cipher: key.cipher(), keystreams }
    }

    /// Where everything of the segment lies.
    pub fn layout(&self) -> SegmentLayout {
        self.layout
    }

    /// Codes row `r` of `plaintext` into `row`: n stored cells one after another.
    ///
    /// # Panics
    /// When `plaintext` has not the segment's length, or there is no such row.
    pub fn code_row(&self, r: usize, plaintext: &[u8], row: &mut [u8]) {
        assert_eq!(plaintext.len(), self.layout.plaintext_bytes(), "the whole segment is at hand");
        let place = self.layout.row(r);
        let data_bytes = self.layout.geometry().k() * place.cell_bytes;
        assert_eq!(row.len(), self.row_bytes(r), "a row is n cells");
        let mut at = 0;
        let mut record = r * self.layout.geometry().k();
        while at < place.sealed_bytes {
            let plain = &plaintext[self.layout.record_plaintext(record)];
            let end = at + plain.len() + TAG_BYTES;
            self.cipher.seal(record as u64, plain, &mut row[at..end]);
            (at, record) = (end, record + 1);
        }
        row[at..data_bytes].fill(0);
        self.erasure.encode_row(row, place.cell_bytes);
        for (cell, keystream) in row.chunks_exact_mut(place.cell_bytes).zip(&self.keystreams) {
            keystream.apply(place.shard_offset, cell);
        }
    }

    /// Length of row `r` as [`Self::code_row`] makes it.
    pub fn row_bytes(&self, r: usize) -> usize {
        self.layout.geometry().n() * self.layout.row(r).cell_bytes
    }

    /// The bytes of each shard that hold `rows`.
    pub fn shard_range(&self, rows: &Range<usize>) -> Range<usize> {
        if rows.is_empty() {
            return 0..0;
        }
        let last = self.layout.row(rows.end - 1);
        self.layout.row(rows.start).shard_offset..last.shard_offset + last.cell_bytes
    }

    /// Decodes `rows` and returns the plaintext of all their records. `shards` are n places, each with the stored bytes of
    /// those rows where the shard is at hand.
    ///
    /// # Errors
    /// [`SegmentError`].
    pub fn decode(
        &self,
        rows: Range<usize>,
        mut shards: Vec<Option<Vec<u8>>>,
    ) -> Result<Vec<u8>, SegmentError> {
        let k = self.layout.geometry().k();
        let base = self.shard_range(&rows).start;
        for (shard, keystream) in shards.iter_mut().zip(&self.keystreams) {
            if let Some(bytes) = shard {
                keystream.apply(base, bytes);
            }
        }
        self.erasure.reconstruct_data(&mut shards)?;
        let mut plaintext = Vec::with_capacity(rows.len() * k * CELL_BYTES);
        let mut row = Vec::with_capacity(k * CELL_BYTES);
        for r in rows {
            let place = self.layout.row(r);
            let within = place.shard_offset - base;
            row.clear();
            for shard in shards[..k].iter().flatten() {
                row.extend_from_slice(&shard[within..within + place.cell_bytes]);
            }
            row.truncate(place.sealed_bytes);
            for (i, sealed) in row.chunks_mut(CELL_BYTES).enumerate() {
                plaintext.extend_from_slice(self.cipher.open((r * k + i) as u64, sealed)?);
            }
        }
        Ok(plaintext)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cipher::Secret;
    use crate::geometry::{Geometry, RECORD_PLAINTEXT_BYTES};
    use crate::tree::Root;
    use proptest::prelude::*;

    fn coder(k: usize, parity: usize, plaintext: &[u8]) -> SegmentCoder {
        let key = SegmentKey::for_plaintext(&Secret::new([1; 32]), 0, plaintext);
        SegmentCoder::new(Arc::new(Erasure::new(Geometry::new(k, parity).unwrap())), &key, plaintext.len())
    }

    fn shards(coder: &SegmentCoder, plaintext: &[u8]) -> Vec<Vec<u8>> {
        let mut shards = vec![Vec::new(); coder.layout().geometry().n()];
        for r in 0..coder.layout().rows() {
            let mut row = vec![0xEE; coder.row_bytes(r)];
            coder.code_row(r, plaintext, &mut row);
            for (shard, cell) in shards.iter_mut().zip(row.chunks_exact(coder.layout().row(r).cell_bytes)) {
                shard.extend_from_slice(cell);
            }
        }
        shards
    }

    #[test]
    fn golden_shard_roots() {
        let plaintext: Vec<u8> = (0..200_000u32).map(|i| (i % 251) as u8).collect();
        let coder = coder(2, 1, &plaintext);
        let roots: Vec<String> =
            shards(&coder, &plaintext).iter().map(|s| Root::of(s).to_string()[..16].to_owned()).collect();
        assert_eq!(roots, GOLDEN_ROOTS);
    }

    const GOLDEN_ROOTS: [&str; 3] = ["7e8bfa3f70445e1d", "c4f540e1bc03632b", "096420a3f65f5703"];

    #[test]
    fn a_key_for_other_shards_is_noticed() {
        let plaintext = vec![7; 1000];
        let stored = shards(&coder(2, 1, &plaintext), &plaintext);
        let other = coder(2, 1, &[8; 1000]);
        let result = other.decode(0..1, stored.into_iter().map(Some).collect());
        assert_eq!(result, Err(SegmentError::Open(OpenError)));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_k_shards_give_any_range_back(
            k in 1usize..6, parity in 1usize..6, len in 1usize..1_500_000, start in any::<usize>(), take in 1usize..400_000, seed in any::<[u8; 32]>()
        ) {
            let len = len.min(Geometry::new(k, parity).unwrap().segment_plaintext_max_bytes());
            let mut plaintext = vec![0; len];
            blake3::Hasher::new_keyed(&seed).finalize_xof().fill(&mut plaintext);
            let coder = coder(k, parity, &plaintext);
            let stored = shards(&coder, &plaintext);
            prop_assert!(stored.iter().all(|s| s.len() == coder.layout().shard_bytes()));
            let start = start % len;
            let end = (start + take).min(len);
            let (records, rows) = coder.layout().locate(start, end);
            let range = coder.shard_range(&rows);
            let mut order: Vec<usize> = (0..k + parity).collect();
            order.sort_by_key(|i| *blake3::keyed_hash(&seed, &[*i as u8]).as_bytes());
            let kept = |count: usize| -> Vec<Option<Vec<u8>>> {
                (0..k + parity).map(|i| order[..count].contains(&i).then(|| stored[i][range.clone()].to_vec())).collect()
            };
            let decoded = coder.decode(rows.clone(), kept(k)).unwrap();
            let base = rows.start * k * RECORD_PLAINTEXT_BYTES;
            prop_assert_eq!(&decoded[start - base..end - base], &plaintext[start..end]);
            prop_assert!(rows.len() <= records.len().div_ceil(k) + 1);
            let missing_one = matches!(coder.decode(rows, kept(k - 1)), Err(SegmentError::TooFew(_)));
            prop_assert!(missing_one);
        }
    }
}
