//! A bound on how often something is done for each network within a time.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use spare_market::placement::Subnet;

/// Counts what is admitted in the window that began last.
#[derive(Debug)]
pub struct SubnetRate {
    window: Duration,
    per_subnet: usize,
    total: usize,
    began: Option<Instant>,
    counts: HashMap<Subnet, usize>,
    admitted: usize,
}

impl SubnetRate {
    /// Admits `per_subnet` of each network and `total` in all in each `window`.
    pub fn new(window: Duration, per_subnet: usize, total: usize) -> Self {
        Self { window, per_subnet, total, began: None, counts: HashMap::new(), admitted: 0 }
    }

    /// Counts one more of `subnet`, and says whether it is within the bounds.
    pub fn admit(&mut self, subnet: Subnet, now: Instant) -> bool {
        if self.began.is_none_or(|began| now.duration_since(began) >= self.window) {
            (self.began, self.admitted) = (Some(now), 0);
            self.counts.clear();
        }
        if self.admitted >= self.total || self.counts.get(&subnet).is_some_and(|c| *c >= self.per_subnet) {
            return false;
        }
        self.admitted += 1;
        *self.counts.entry(subnet).or_default() += 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_network_gets_its_share_and_all_together_theirs() {
        let now = Instant::now();
        let mut rate = SubnetRate::new(Duration::from_secs(60), 2, 3);
        let subnet = |i: u8| Subnet::V4([10, 0, i]);
        assert!(rate.admit(subnet(1), now) && rate.admit(subnet(1), now));
        assert!(!rate.admit(subnet(1), now));
        assert!(rate.admit(subnet(2), now));
        assert!(!rate.admit(subnet(3), now), "three in all");
        assert!(rate.admit(subnet(1), now + Duration::from_secs(60)), "a new window");
    }
}
