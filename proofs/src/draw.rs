//! Draws: which bytes an audit looks at, as a pure function of a seed.
//!
//! The seed is a beacon for a ledger claim, or an auditor's private nonce for an ordinary read. Positions are drawn over
//! the bytes of a whole set, so a shard is drawn in proportion to its length; `sumtree` then shows which shard holds one.

/// Draws `count` positions below `total_bytes`, uniformly and independently, from `seed`.
///
/// Each comes from 16 bytes of BLAKE3 output taken modulo the total; the bias is below 2^-64.
/// An empty set has no positions.
pub fn positions(seed: &[u8; 32], total_bytes: u64, count: usize) -> Vec<u64> {
    if total_bytes == 0 {
        return Vec::new();
    }
    let mut hasher = blake3::Hasher::new_derive_key("spare 2026 audit draw v1");
    hasher.update(seed);
    let mut stream = hasher.finalize_xof();
    (0..count)
        .map(|_| {
            let mut bytes = [0; 16];
            stream.fill(&mut bytes);
            (u128::from_le_bytes(bytes) % u128::from(total_bytes)) as u64
        })
        .collect()
}

/// The chance that `draws` draws notice a loss of the share `lost` of all bytes: 1-(1-lost)^draws.
///
/// 20 draws notice 5% with 64%, 90 draws with 99%.
pub fn detection(lost: f64, draws: u32) -> f64 {
    1.0 - (1.0 - lost).powi(draws.min(i32::MAX as u32) as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_repeat_with_the_seed_and_spread_over_the_bytes() {
        let drawn = positions(&[1; 32], 1000, 10_000);
        assert_eq!(drawn, positions(&[1; 32], 1000, 10_000));
        assert_ne!(drawn, positions(&[2; 32], 1000, 10_000));
        assert_eq!(drawn[..100], positions(&[1; 32], 1000, 100), "more draws extend fewer");
        for tenth in 0..10 {
            let hits = drawn.iter().filter(|p| **p / 100 == tenth).count();
            assert!((850..1150).contains(&hits), "{hits} of 10,000 in tenth {tenth}");
        }
        assert!(positions(&[1; 32], 0, 5).is_empty());
    }

    #[test]
    fn golden_draw() {
        assert_eq!(positions(&[7; 32], 1 << 40, 3), GOLDEN);
    }

    const GOLDEN: [u64; 3] = [572_482_649_755, 876_453_525_768, 991_262_984_891];

    #[test]
    fn detection_is_as_published() {
        assert_eq!((detection(0.05, 20) * 100.0).round(), 64.0);
        assert_eq!((detection(0.05, 90) * 100.0).round(), 99.0);
    }
}
