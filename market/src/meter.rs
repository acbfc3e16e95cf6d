//! The meter: what a deal has cost so far. Both sides run it over the same heads and agree to the last pico-credit.
//!
//! A period is charged at the highest rate in force during it. So what is added is paid from the period in which it was added, what is
//! removed is free from the next period on, and adding and removing within one period does not store for nothing.

use serde::{Deserialize, Serialize};

use crate::amount::{Amount, StorageDue};
use crate::head::HeadV1;

/// What storage has cost under a deal's heads.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meter {
    now: Point,
    /// How it stood at the end of earlier periods in which heads were taken, at most [`EARLIER_KEPT`], newest last.
    earlier: Vec<Point>,
}

/// Earlier periods that a meter can still tell.
const EARLIER_KEPT: usize = 8;

/// A meter in one period.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Point {
    /// The period that is open: nothing of it is summed.
    period: u64,
    /// Cost of all periods before.
    before: StorageDue,
    /// The newest head's cost of a period.
    rate: StorageDue,
    /// Highest rate in force in the open period.
    peak: StorageDue,
}

impl Meter {
    /// Goes on under `head`, from the period that it names; periods are `period_s` seconds long.
    ///
    /// # Errors
    /// [`MeterError`] when the head starts in a period that is summed already, or the cost is beyond any money.
    pub fn take(&mut self, head: &HeadV1, period_s: u32) -> Result<(), MeterError> {
        if head.from < self.now.period {
            return Err(MeterError::Past { period: head.from, open: self.now.period });
        }
        let mut next = self.now.at(head.from)?;
        next.rate = head.rate(period_s);
        next.peak = next.peak.max(next.rate);
        if next.period > self.now.period {
            self.earlier.push(self.now);
            if self.earlier.len() > EARLIER_KEPT {
                self.earlier.remove(0);
            }
        }
        self.now = next;
        Ok(())
    }

    /// What all periods before `period` cost, without rounding.
    ///
    /// # Errors
    /// [`MeterError`] when `period` is too long ago.
    pub fn storage_before(&self, period: u64) -> Result<StorageDue, MeterError> {
        let points = self.earlier.iter().rev();
        let point = std::iter::once(&self.now).chain(points).find(|point| point.period <= period);
        Ok(point.ok_or(MeterError::Past { period, open: self.oldest() })?.at(period)?.before)
    }

    /// What all periods before `period` cost, rounded down once.
    ///
    /// # Errors
    /// [`MeterError`] when `period` is too long ago.
    pub fn due_before(&self, period: u64) -> Result<Amount, MeterError> {
        Ok(self.storage_before(period)?.floor())
    }

    /// The first period that it can still tell in which storage cost something, if any.
    pub fn charged_since(&self) -> Option<u64> {
        let points = self.earlier.iter().chain([&self.now]);
        points.into_iter().find(|point| point.peak > StorageDue::ZERO).map(|point| point.period)
    }

    /// The first period that it can still tell.
    pub fn oldest(&self) -> u64 {
        self.earlier.first().unwrap_or(&self.now).period
    }

    /// Cost of a period under the newest head.
    pub fn rate(&self) -> StorageDue {
        self.now.rate
    }

    /// The first period that is not summed: that of the newest head.
    pub fn period(&self) -> u64 {
        self.now.period
    }
}

impl Point {
    /// This point with everything before `period`, which is not earlier, summed.
    fn at(&self, period: u64) -> Result<Self, MeterError> {
        if period == self.period {
            return Ok(*self);
        }
        let idle = self.rate.checked_mul(period - self.period - 1);
        let before = idle.and_then(|idle| self.before.checked_add(self.peak)?.checked_add(idle));
        let before = before.ok_or(MeterError::Overflow)?;
        Ok(Self { period, before, rate: self.rate, peak: self.rate })
    }
}

/// Why a meter cannot tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MeterError {
    /// The period is over and summed.
    #[error("period {period} is summed; what can be told begins with period {open}")]
    Past {
        /// The period asked for.
        period: u64,
        /// The first that can be told.
        open: u64,
    },
    /// The cost is beyond any money.
    #[error("the cost is beyond any money")]
    Overflow,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::amount::StoragePrice;
    use crate::deal::DealId;
    use proptest::prelude::*;

    fn head(from: u64, bytes: u64, price: u64) -> HeadV1 {
        let (deal, price) = (DealId([1; 32]), StoragePrice(price));
        HeadV1 { deal, seq: 1, set_root: [1; 32], bytes, price, from, until: from + 1, index_hash: [0; 32] }
    }

    #[test]
    fn a_period_costs_its_highest_rate() {
        let gib_hour = 3600;
        let mut meter = Meter::default();
        meter.take(&head(5, 2 << 30, 10), gib_hour).unwrap();
        assert_eq!(meter.due_before(5), Ok(Amount(0)));
        assert_eq!(meter.due_before(8), Ok(Amount(60)), "periods 5, 6, 7");
        meter.take(&head(8, 4 << 30, 10), gib_hour).unwrap();
        meter.take(&head(8, 1 << 30, 10), gib_hour).unwrap();
        assert_eq!(meter.due_before(9), Ok(Amount(100)), "period 8 at its peak");
        assert_eq!(meter.due_before(10), Ok(Amount(110)), "what was removed is free from the next period on");
        assert_eq!(meter.due_before(7), Ok(Amount(40)), "also of what is over");
        assert_eq!(meter.take(&head(7, 0, 0), gib_hour), Err(MeterError::Past { period: 7, open: 8 }));
        for period in 10..30 {
            meter.take(&head(period, 1 << 30, 10), gib_hour).unwrap();
        }
        assert_eq!(meter.due_before(21), Ok(Amount(220)));
        assert_eq!(meter.due_before(20), Err(MeterError::Past { period: 20, open: 21 }), "but not for ever");
    }

    proptest! {
        /// Against a naive reference: a list of the rates in force in each period.
        #[test]
        fn a_meter_is_the_sum_of_peaks(steps in prop::collection::vec((0u64..4, 0u64..1 << 40, 0u64..1 << 30), 1..20), after in 0u64..10) {
            let period_s = 3600;
            let mut meter = Meter::default();
            let mut peaks: Vec<u128> = vec![0];
            let mut rate = 0u128;
            let mut now = 0;
            let advance = |peaks: &mut Vec<u128>, to: u64, rate: u128| {
                while (peaks.len() as u64) <= to {
                    peaks.push(rate);
                }
            };
            for (wait, bytes, price) in steps {
                now += wait;
                advance(&mut peaks, now, rate);
                rate = u128::from(bytes) * u128::from(price);
                let last = peaks.len() - 1;
                peaks[last] = peaks[last].max(rate);
                meter.take(&head(now, bytes, price), period_s).unwrap();
            }
            advance(&mut peaks, now + after, rate);
            let sum: u128 = peaks[..(now + after) as usize].iter().sum();
            prop_assert_eq!(meter.due_before(now + after), Ok(Amount(sum / (1 << 30))));
        }
    }
}
