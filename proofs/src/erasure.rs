//! Erasure coding, row by row: the one caller of `reed-solomon-erasure`.
//!
//! The code is Reed-Solomon over GF(2^8) with a systematic Vandermonde matrix, applied to each byte position alone.
//! So coding a row of cells, a run of rows, or whole shards is the same operation on longer slices, and memory is
//! what the caller holds. The golden vector below fixes the matrix: another implementation may replace this one
//! only if it gives the same parity.
//!
//! The library picks its SIMD instructions when it is built (on x86-64 those of Haswell, AVX2 among them) and does not
//! look at the processor it runs on. [`check_processor`] does.

use reed_solomon_erasure::galois_8::ReedSolomon;

use crate::geometry::Geometry;

/// This build's coder may need instructions that the processor lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProcessorError {
    /// The processor is older than the build.
    #[error(
        "this program was built for processors with AVX2, BMI2 and FMA (x86-64-v3), which this one lacks; \
         rebuild it with RUST_REED_SOLOMON_ERASURE_ARCH=x86-64-v2"
    )]
    TooOld,
    /// The build names an instruction set that nobody checks.
    #[error("this program was built with RUST_REED_SOLOMON_ERASURE_ARCH={0}; use x86-64-v2 or x86-64-v3")]
    Unknown(&'static str),
}

/// Refuses to run on a processor that would crash in the coder.
///
/// # Errors
/// [`ProcessorError`] on an x86-64 processor that lacks what the coder was built for.
pub fn check_processor() -> Result<(), ProcessorError> {
    #[cfg(target_arch = "x86_64")]
    match option_env!("RUST_REED_SOLOMON_ERASURE_ARCH") {
        Some("x86-64" | "x86-64-v2") => {}
        None | Some("haswell" | "x86-64-v3") => {
            use std::arch::is_x86_feature_detected as has;
            if !(has!("avx2")
                && has!("bmi1")
                && has!("bmi2")
                && has!("fma")
                && has!("lzcnt")
                && has!("movbe"))
            {
                return Err(ProcessorError::TooOld);
            }
        }
        Some(other) => return Err(ProcessorError::Unknown(other)),
    }
    Ok(())
}

/// Fewer than k shards are present.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{present} shards are present, {needed} are needed")]
pub struct TooFewShards {
    /// Shards present.
    pub present: usize,
    /// Shards needed: k.
    pub needed: usize,
}

/// A coder for one geometry. Making one inverts a matrix; keep it.
pub struct Erasure {
    geometry: Geometry,
    coder: ReedSolomon,
}

impl Erasure {
    /// A coder for `geometry`.
    pub fn new(geometry: Geometry) -> Self {
        let coder = ReedSolomon::new(geometry.k(), geometry.parity()).expect("a geometry is a valid code");
        Self { geometry, coder }
    }

    /// The code.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Computes the parity of a row in place. `row` is n cells of `cell_bytes` one after another, data first.
    ///
    /// # Panics
    /// When `row` is not n times `cell_bytes` long, or `cell_bytes` is 0.
    pub fn encode_row(&self, row: &mut [u8], cell_bytes: usize) {
        assert_eq!(row.len(), self.geometry.n() * cell_bytes, "a row is n cells");
        let (data, parity) = row.split_at_mut(self.geometry.k() * cell_bytes);
        let data: Vec<&[u8]> = data.chunks_exact(cell_bytes).collect();
        let mut parity: Vec<&mut [u8]> = parity.chunks_exact_mut(cell_bytes).collect();
        self.coder.encode_sep(&data, &mut parity).expect("the shapes were checked");
    }

    /// Fills in the missing ones of the first k shards, or equally long parts of shards. Missing parity stays missing.
    ///
    /// # Errors
    /// [`TooFewShards`] when fewer than k are present.
    ///
    /// # Panics
    /// When there are not n places, or those present differ in length or are empty.
    pub fn reconstruct_data(&self, shards: &mut [Option<Vec<u8>>]) -> Result<(), TooFewShards> {
        assert_eq!(shards.len(), self.geometry.n(), "one place a shard");
        let present = shards.iter().flatten().count();
        if present < self.geometry.k() {
            return Err(TooFewShards { present, needed: self.geometry.k() });
        }
        if shards[..self.geometry.k()].iter().any(Option::is_none) {
            self.coder.reconstruct_data(shards).expect("present shards are equally long");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// GF(2^8) with the polynomial x^8+x^4+x^3+x^2+1, bit by bit.
    fn multiply(mut a: u8, mut b: u8) -> u8 {
        let mut product = 0;
        while b != 0 {
            if b & 1 == 1 {
                product ^= a;
            }
            a = (a << 1) ^ if a & 0x80 != 0 { 0x1d } else { 0 };
            b >>= 1;
        }
        product
    }

    /// The value at `x` of the polynomial through `points`, by Lagrange: a slow, independent coder. The systematic
    /// Vandermonde code evaluates at n the polynomial that takes the data bytes at 0..k.
    fn lagrange(points: &[(u8, u8)], x: u8) -> u8 {
        let inverse = |a: u8| (1..=255).find(|&b| multiply(a, b) == 1).expect("a is not 0");
        points.iter().fold(0, |sum, &(xi, yi)| {
            let term = points
                .iter()
                .filter(|p| p.0 != xi)
                .fold(yi, |t, &(xj, _)| multiply(multiply(t, x ^ xj), inverse(xi ^ xj)));
            sum ^ term
        })
    }

    #[test]
    fn golden_parity_of_four_plus_two() {
        let mut row = b"spare rents out!".to_vec();
        row.resize(24, 0);
        Erasure::new(Geometry::new(4, 2).unwrap()).encode_row(&mut row, 4);
        assert_eq!(row[16..], GOLDEN_PARITY);
    }

    const GOLDEN_PARITY: [u8; 8] = [188, 242, 152, 30, 216, 89, 243, 125];

    proptest! {
        #[test]
        fn parity_is_what_polynomials_say(k in 1usize..12, parity in 1usize..12, seed in any::<u64>()) {
            let mut row: Vec<u8> = (0..k + parity).map(|i| (seed >> (i % 8)) as u8 ^ i as u8).collect();
            Erasure::new(Geometry::new(k, parity).unwrap()).encode_row(&mut row, 1);
            let points: Vec<(u8, u8)> = (0..k).map(|i| (i as u8, row[i])).collect();
            for (i, &cell) in row.iter().enumerate().skip(k) {
                prop_assert_eq!(cell, lagrange(&points, i as u8));
            }
        }

        #[test]
        fn any_k_shards_rebuild_the_data(k in 1usize..12, parity in 1usize..12, cell in 1usize..70, seed in any::<[u8; 32]>()) {
            let geometry = Geometry::new(k, parity).unwrap();
            let erasure = Erasure::new(geometry);
            let mut row = vec![0; geometry.n() * cell];
            blake3::Hasher::new_keyed(&seed).finalize_xof().fill(&mut row[..k * cell]);
            erasure.encode_row(&mut row, cell);
            // Rank the shards by a seeded hash and keep the first k.
            let mut order: Vec<usize> = (0..geometry.n()).collect();
            order.sort_by_key(|i| *blake3::keyed_hash(&seed, &[*i as u8]).as_bytes());
            let keep = |kept: &[usize]| -> Vec<Option<Vec<u8>>> {
                row.chunks_exact(cell).enumerate().map(|(i, c)| kept.contains(&i).then(|| c.to_vec())).collect()
            };
            let mut shards = keep(&order[..k]);
            erasure.reconstruct_data(&mut shards).unwrap();
            let data: Vec<u8> = shards[..k].iter().flatten().flatten().copied().collect();
            prop_assert_eq!(&data[..], &row[..k * cell]);
            let mut shards = keep(&order[..k - 1]);
            prop_assert_eq!(erasure.reconstruct_data(&mut shards), Err(TooFewShards { present: k - 1, needed: k }));
        }
    }
}
