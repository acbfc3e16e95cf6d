//! The beacon: for each period 32 bytes that nobody but the market can tell beforehand, and that the market cannot choose any more.
//!
//! The market draws a secret and hashes it once for each period there will ever be; the last hash is in the genesis. Blocks of a period
//! carry the hash that stands as many steps before the end of that chain, so anybody checks it against the one before by hashing.
//!
//! **What it does not do.** The market itself knows all beacons from the start. A provider in league with it knows which bytes will be asked
//! for, and needs to keep no others. Whoever does not trust the operator audits by ordinary reads.
//!
//! Source: L. Lamport, *Password Authentication with Insecure Communication*, 1981, for hash chains shown from their end.

use spare_proofs::cipher::Secret;

/// Periods that have a beacon of their own: 119 years of hours. Later ones share the last, so a market is founded anew before.
pub const BEACON_PERIODS: u64 = 1 << 20;
/// Links between those that a market keeps at hand.
const STRIDE: u64 = 1 << 10;

/// A period's 32 bytes.
pub type Beacon = [u8; 32];

const LINK_KEY: &[u8; 32] = b"spare 2026 beacon chain link v1\0";

fn after(mut link: Beacon, steps: u64) -> Beacon {
    for _ in 0..steps {
        link = blake3::keyed_hash(LINK_KEY, &link).into();
    }
    link
}

/// Whether `newer` is the beacon of period `newer_period`, if `older` is that of `older_period`, which is not later.
pub fn follows((newer, newer_period): (&Beacon, u64), (older, older_period): (&Beacon, u64)) -> bool {
    let steps = newer_period.min(BEACON_PERIODS).checked_sub(older_period.min(BEACON_PERIODS));
    steps.is_some_and(|steps| after(*newer, steps) == *older)
}

/// All beacons of a market.
pub struct BeaconChain {
    /// Every [`STRIDE`]th link, from that of the last period on.
    links: Vec<Beacon>,
}

impl BeaconChain {
    /// The chain that ends in `secret`. Hashes for a tenth of a second.
    pub fn new(secret: &Secret) -> Self {
        let mut links = vec![*secret.expose()];
        for _ in 0..BEACON_PERIODS / STRIDE {
            links.push(after(links[links.len() - 1], STRIDE));
        }
        Self { links }
    }

    /// The beacon of `period`. That of period 0 is public from the start: it goes into the genesis.
    pub fn at(&self, period: u64) -> Beacon {
        let steps = BEACON_PERIODS.saturating_sub(period);
        after(self.links[(steps / STRIDE) as usize], steps % STRIDE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_beacon_follows_the_earlier_ones_and_no_other() {
        let chain = BeaconChain::new(&Secret::new([1; 32]));
        let last = BEACON_PERIODS;
        let follow = |newer: u64, older: u64| follows((&chain.at(newer), newer), (&chain.at(older), older));
        for (newer, older) in [(1, 0), (STRIDE, STRIDE - 1), (5000, 17), (last, last - 3), (last + 9, last)] {
            assert!(follow(newer, older), "{newer} {older}");
            assert!(!follows((&chain.at(newer), newer + 1), (&chain.at(older), older)) || newer >= last);
        }
        assert!(!follow(6, 7), "never backwards");
        assert!(!follows((&chain.at(7), 8), (&chain.at(7), 7)), "no period's beacon is the next one's");
        assert!(!follows((&[0; 32], u64::MAX), (&chain.at(0), 0)), "bounded");
        assert_ne!(chain.at(1), BeaconChain::new(&Secret::new([2; 32])).at(1));
    }
}
