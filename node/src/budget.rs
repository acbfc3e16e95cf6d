//! Budgets: how much somebody may ask for in a while. Pure; time is an argument.
//!
//! A budget is a token bucket, kept as the one moment at which everything that was charged will have been earned (the "theoretical arrival time" of
//! ATM's generic cell rate algorithm, ITU-T I.371). So a budget that nobody uses is indistinguishable from none and is forgotten, and a table of them is
//! bounded.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

/// How fast a budget refills, and how much it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Units that come back each second.
    pub per_s: u64,
    /// Units that may be taken at once.
    pub burst: u64,
}

impl Rate {
    fn time_for(self, units: u64) -> Duration {
        // A unit takes at most a second; more units than fit take for ever.
        Duration::try_from_secs_f64(units as f64 / self.per_s as f64).unwrap_or(Duration::MAX)
    }
}

/// One budget.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Bucket {
    /// When all that was charged will have been earned.
    earned_at: Duration,
}

impl Bucket {
    fn owed(self, rate: Rate, now: Duration) -> Duration {
        self.earned_at.saturating_sub(now).saturating_sub(rate.time_for(rate.burst))
    }

    fn charge(&mut self, rate: Rate, units: u64, debt_max: Duration, now: Duration) {
        let earned_at = self.earned_at.max(now).saturating_add(rate.time_for(units));
        let latest = now.saturating_add(rate.time_for(rate.burst)).saturating_add(debt_max);
        self.earned_at = earned_at.min(latest);
    }

    fn is_full(self, now: Duration) -> bool {
        self.earned_at <= now
    }
}

/// Budgets of many, each under a key.
#[derive(Debug)]
pub struct Budgets<K> {
    rate: Rate,
    keys_max: usize,
    debt_max: Duration,
    buckets: HashMap<K, Bucket>,
    /// What those share for whom there is no room.
    others: Bucket,
}

impl<K: Eq + Hash> Budgets<K> {
    /// Budgets of `rate` for at most `keys_max` keys. All further ones share one. Nobody owes for longer than `debt_max`.
    pub fn new(rate: Rate, keys_max: usize, debt_max: Duration) -> Self {
        Self { rate, keys_max, debt_max, buckets: HashMap::new(), others: Bucket::default() }
    }

    /// How long `key` has to wait at `now` until it is within its rate; zero for whoever is.
    pub fn owed(&self, key: &K, now: Duration) -> Duration {
        match self.buckets.get(key) {
            Some(bucket) => bucket.owed(self.rate, now),
            None if self.buckets.len() < self.keys_max => Duration::ZERO,
            None => self.others.owed(self.rate, now),
        }
    }

    /// Charges `key` for `units`, also beyond what it has.
    pub fn charge(&mut self, key: K, units: u64, now: Duration) {
        if !self.buckets.contains_key(&key) && self.buckets.len() >= self.keys_max {
            self.buckets.retain(|_, bucket| !bucket.is_full(now));
        }
        let is_crowded = self.buckets.len() >= self.keys_max;
        let bucket = match self.buckets.get_mut(&key) {
            Some(bucket) => bucket,
            None if is_crowded => &mut self.others,
            None => self.buckets.entry(key).or_default(),
        };
        bucket.charge(self.rate, units, self.debt_max, now);
    }

    /// Charges `key` for `units` if it is within its rate, and says whether it is.
    pub fn take(&mut self, key: K, units: u64, now: Duration) -> bool {
        let is_within = self.owed(&key, now).is_zero();
        if is_within {
            self.charge(key, units, now);
        }
        is_within
    }

    /// How many keys are remembered.
    pub fn len(&self) -> usize {
        self.buckets.len()
    }

    /// Whether nobody is remembered.
    pub fn is_empty(&self) -> bool {
        self.buckets.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate { per_s: 10, burst: 50 };
    const DEBT: Duration = Duration::from_secs(20);

    fn s(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    #[test]
    fn a_burst_is_free_then_units_come_back_at_the_rate() {
        let mut budgets = Budgets::new(RATE, 10, DEBT);
        let now = s(100.0);
        assert!((0..50).all(|_| budgets.take("a", 1, now)), "the burst");
        budgets.charge("a", 1, now);
        assert_eq!(budgets.owed(&"a", now), s(0.1));
        assert!(!budgets.take("a", 1, now));
        assert!(budgets.take("b", 1, now), "others are not concerned");
        assert_eq!(budgets.owed(&"a", s(100.1)), Duration::ZERO);
        budgets.charge("a", 1_000_000, now);
        assert_eq!(budgets.owed(&"a", now), DEBT, "a debt ends");
        budgets.charge("a", u64::MAX, now);
        assert_eq!(budgets.owed(&"a", now), DEBT);
    }

    #[test]
    fn the_table_is_bounded_and_forgets_whoever_owes_nothing() {
        let mut budgets = Budgets::new(RATE, 3, DEBT);
        for key in 0..3 {
            budgets.charge(key, 10 * (key + 1), s(1.0));
        }
        // No room: the fourth and the fifth share a budget.
        budgets.charge(4, 60, s(1.0));
        assert_eq!((budgets.len(), budgets.owed(&5, s(1.0))), (3, s(1.0)));
        assert_eq!(budgets.owed(&0, s(1.0)), Duration::ZERO);
        // After a second the first has earned what it took.
        budgets.charge(6, 1, s(2.0));
        assert_eq!(budgets.len(), 3);
        assert_eq!(budgets.owed(&7, s(2.0)), Duration::ZERO);
    }

    #[test]
    fn no_pattern_of_asking_gets_more_than_the_rate() {
        let mut pattern = blake3::Hasher::new().finalize_xof();
        let mut number = |below: u64| {
            let mut bytes = [0; 8];
            pattern.fill(&mut bytes);
            u64::from_le_bytes(bytes) % below
        };
        for _ in 0..100 {
            let mut budgets = Budgets::new(RATE, 1, DEBT);
            let (mut now_ms, mut taken) = (0, 0);
            for _ in 0..200 {
                now_ms += number(500);
                let units = 1 + number(20);
                if budgets.take((), units, Duration::from_millis(now_ms)) {
                    taken += units;
                }
                // The last one may go beyond what is there, and is then waited for.
                assert!(taken <= RATE.burst + RATE.per_s * now_ms / 1000 + 20);
            }
        }
    }
}
