//! Money and prices: checked integers, never floats.
//!
//! The unit of account is the credit. Amounts are pico-credits, 10^12 to a credit. Prices are pico-credits per GiB and hour of
//! storage, or per GiB read. What is owed is first summed in units so fine that nothing is rounded ([`StorageDue`]), and rounded down
//! once, on the cumulative total; so many small periods never pay less than one long one.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Pico-credits in a credit.
pub const PICO_PER_CREDIT: u128 = 1_000_000_000_000;
/// Most that may ever be issued: 2^100 pico-credits. Sums of two amounts never overflow.
pub const SUPPLY_MAX: Amount = Amount(1 << 100);
/// Highest price accepted, in pico-credits per GiB hour or per GiB: about 750,000 credits per TB and month.
pub const PRICE_MAX: u64 = 1 << 40;
/// Hours in a month, as prices per month mean it: a twelfth of 365 days.
pub const HOURS_PER_MONTH: u64 = 730;

const GIB: u128 = 1 << 30;
const TB: u128 = 1_000_000_000_000;

/// An amount of money in pico-credits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Amount(pub u128);

impl Amount {
    /// Nothing.
    pub const ZERO: Self = Self(0);

    /// The sum, or `None` above [`SUPPLY_MAX`].
    pub fn checked_add(self, other: Self) -> Option<Self> {
        self.0.checked_add(other.0).map(Self).filter(|sum| *sum <= SUPPLY_MAX)
    }

    /// The difference, or `None` below zero.
    pub fn checked_sub(self, other: Self) -> Option<Self> {
        self.0.checked_sub(other.0).map(Self)
    }

    /// The difference, at least nothing.
    pub fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    /// `basis_points` ten-thousandths of the amount, rounded down.
    pub fn share(self, basis_points: u16) -> Self {
        // 2^100 times 10^4 fits.
        Self(self.0.min(SUPPLY_MAX.0) * u128::from(basis_points) / 10_000)
    }

    /// In credits, for people and rough comparisons only.
    pub fn credits(self) -> f64 {
        self.0 as f64 / PICO_PER_CREDIT as f64
    }
}

/// Writes all digits that are not zero: `12.5`, `0.000001`.
impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, pico) = (self.0 / PICO_PER_CREDIT, self.0 % PICO_PER_CREDIT);
        if pico == 0 {
            return write!(f, "{whole}");
        }
        write!(f, "{whole}.{}", format!("{pico:012}").trim_end_matches('0'))
    }
}

/// Text that is not an amount.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not an amount of credits; write for instance 25 or 0.5, with at most 12 decimals")]
pub struct AmountError(String);

impl FromStr for Amount {
    type Err = AmountError;
    fn from_str(text: &str) -> Result<Self, AmountError> {
        let wrong = || AmountError(text.chars().take(40).collect());
        let (whole, fraction) = text.trim().split_once('.').unwrap_or((text.trim(), "0"));
        let digits = |s: &str| !s.is_empty() && s.len() <= 19 && s.bytes().all(|b| b.is_ascii_digit());
        if !digits(whole) || !digits(fraction) || fraction.len() > 12 {
            return Err(wrong());
        }
        let whole: u128 = whole.parse().map_err(|_| wrong())?;
        let pico: u128 = format!("{fraction:0<12}").parse().map_err(|_| wrong())?;
        Some(Self(whole * PICO_PER_CREDIT + pico)).filter(|a| *a <= SUPPLY_MAX).ok_or_else(wrong)
    }
}

/// A price of storage, in pico-credits per GiB and hour.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct StoragePrice(pub u64);

impl StoragePrice {
    /// The price of `amount` per TB (10^12 bytes) and month (730 hours), to the nearest unit, or `None` above [`PRICE_MAX`].
    pub fn per_tb_month(amount: Amount) -> Option<Self> {
        let divisor = TB * u128::from(HOURS_PER_MONTH);
        let pico = (amount.0.checked_mul(GIB)? + divisor / 2) / divisor;
        u64::try_from(pico).ok().filter(|pico| *pico <= PRICE_MAX).map(Self)
    }

    /// The price per TB and month, to the nearest micro-credit: what a person typed comes back.
    pub fn to_tb_month(self) -> Amount {
        Amount(nearest_micro(u128::from(self.0) * TB * u128::from(HOURS_PER_MONTH), GIB))
    }

    /// What storing `bytes` for `seconds` costs.
    pub fn cost(self, bytes: u64, seconds: u64) -> Amount {
        StorageDue::of(self, bytes, seconds).map_or(SUPPLY_MAX, StorageDue::floor)
    }
}

/// A price of reading, in pico-credits per GiB.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ReadPrice(pub u64);

impl ReadPrice {
    /// The price of `amount` per TB (10^12 bytes) read, to the nearest unit, or `None` above [`PRICE_MAX`].
    pub fn per_tb(amount: Amount) -> Option<Self> {
        let pico = (amount.0.checked_mul(GIB)? + TB / 2) / TB;
        u64::try_from(pico).ok().filter(|pico| *pico <= PRICE_MAX).map(Self)
    }

    /// The price per TB read, to the nearest micro-credit.
    pub fn to_tb(self) -> Amount {
        Amount(nearest_micro(u128::from(self.0) * TB, GIB))
    }

    /// What reading `bytes` in all costs, rounded down.
    pub fn cost(self, bytes: u64) -> Amount {
        Amount(u128::from(self.0) * u128::from(bytes) / GIB)
    }
}

/// `numerator / denominator` pico-credits, to the nearest micro-credit.
fn nearest_micro(numerator: u128, denominator: u128) -> u128 {
    let micro = 1_000_000;
    (numerator + denominator * micro / 2) / (denominator * micro) * micro
}

/// What storage costs, not yet rounded: pico-credits times bytes in a GiB times seconds in an hour.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct StorageDue(u128);

impl StorageDue {
    /// Nothing.
    pub const ZERO: Self = Self(0);

    /// What `bytes` at `price` cost in `seconds`, or `None` when that is beyond any money.
    pub fn of(price: StoragePrice, bytes: u64, seconds: u64) -> Option<Self> {
        u128::from(price.0).checked_mul(bytes.into())?.checked_mul(seconds.into()).map(Self)
    }

    /// The sum, or `None` beyond any money.
    pub fn checked_add(self, other: Self) -> Option<Self> {
        self.0.checked_add(other.0).map(Self)
    }

    /// The difference, at least nothing.
    pub fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    /// How many periods of `rate` this is, rounded up; of a rate of nothing, anything is one.
    pub fn periods_of(self, rate: Self) -> u64 {
        if rate == Self::ZERO {
            return u64::from(self > Self::ZERO);
        }
        u64::try_from(self.0.div_ceil(rate.0)).unwrap_or(u64::MAX)
    }

    /// This, `times` over, or `None` beyond any money.
    pub fn checked_mul(self, times: u64) -> Option<Self> {
        self.0.checked_mul(times.into()).map(Self)
    }

    /// In pico-credits, rounded down and capped at [`SUPPLY_MAX`].
    pub fn floor(self) -> Amount {
        Amount(self.0 / (GIB * 3600)).min(SUPPLY_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn amounts_print_as_they_are_read() {
        for text in ["0", "12.5", "0.000000000001", "1000000"] {
            assert_eq!(text.parse::<Amount>().unwrap().to_string(), text);
        }
        for text in ["", ".", "1.", ".5", "-1", "+1", "1e3", "0.0000000000001", "99999999999999999999", "١"]
        {
            assert!(text.parse::<Amount>().is_err(), "{text}");
        }
        assert_eq!(Amount(SUPPLY_MAX.0).checked_add(Amount(1)), None);
        assert_eq!(Amount(3).checked_sub(Amount(4)), None);
        assert_eq!(Amount(19_999).share(5000), Amount(9_999));
    }

    #[test]
    fn a_price_per_month_is_what_a_month_costs() {
        let price = StoragePrice::per_tb_month("1.5".parse().unwrap()).unwrap();
        assert_eq!(price.to_tb_month().to_string(), "1.5");
        let month = price.cost(1_000_000_000_000, HOURS_PER_MONTH * 3600).credits();
        assert!((month - 1.5).abs() < 1e-5, "{month}");
        assert_eq!(StoragePrice::per_tb_month("800000".parse().unwrap()), None);
        let read = ReadPrice::per_tb("2.25".parse().unwrap()).unwrap();
        assert_eq!(read.to_tb().to_string(), "2.25");
        assert!((read.cost(1_000_000_000_000).credits() - 2.25).abs() < 1e-5);
    }

    proptest! {
        #[test]
        fn rounding_once_never_loses_more_than_one_unit(price in 0..PRICE_MAX, bytes in 0u64..1 << 50, periods in 1u64..1000, seconds in 1u64..100_000) {
            let price = StoragePrice(price);
            let one = StorageDue::of(price, bytes, seconds).unwrap();
            let whole = one.checked_mul(periods).unwrap();
            prop_assert_eq!(whole, StorageDue::of(price, bytes, seconds * periods).unwrap());
            let rounded_each_time = one.floor().0 * u128::from(periods);
            prop_assert!(whole.floor().0 >= rounded_each_time.min(SUPPLY_MAX.0));
        }
    }
}
