//! Deals: everything between one client and one provider.
//!
//! ```text
//! provider signs Terms -> client's Open puts escrow and collateral aside -> Open
//!   Open     heads and vouchers are exchanged; the client tops up
//!   Grace    Open, seen from money: what is left no longer covers a locked grace of 7 periods. No transaction enters it
//!   Closing  either side closed; for 3 periods higher heads and vouchers still count
//!   Closed   settled: what is left of the escrow goes back to the client, the collateral to the provider
//! ```
//!
//! The state is lazy: whether a deal is in grace follows from its head, its vouchers and the time, so a deal that nobody touches costs
//! the ledger nothing and runs dry all the same.

use std::fmt;

use serde::{Deserialize, Serialize};
use spare_proofs::encode::to_bytes;

use crate::amount::{Amount, PRICE_MAX, ReadPrice, StorageDue, StoragePrice};
use crate::claim::Claiming;
use crate::head::AnchoredHead;
use crate::job::ComputePrices;
use crate::keys::PublicKey;
use crate::signed::Signable;

/// Periods of storage that stay funded beyond what is owed: the time in which a client that ran dry can top up.
pub const GRACE_PERIODS: u64 = 7;
/// Periods for which a closing deal still takes higher heads and vouchers.
pub const CLOSING_PERIODS: u64 = 3;
/// Most nodes of a client that put money into one deal.
pub const SIGNERS_MAX: usize = 8;
/// Longest time for which signed terms can be taken up, in seconds.
pub const TERMS_LIFE_MAX_S: u64 = 600;

/// Names a deal: the hash of its terms.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct DealId(pub [u8; 32]);

impl fmt::Display for DealId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(blake3::Hash::from_bytes(self.0).to_hex().as_str())
    }
}

impl fmt::Debug for DealId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "deal:{self}")
    }
}

/// What a provider agrees to, signed by its node key. The client takes it up by putting it on the ledger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Terms {
    /// The first version.
    V1(TermsV1),
}

/// The first version of terms.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TermsV1 {
    /// The client's account.
    pub client: PublicKey,
    /// The provider's account, which is paid.
    pub provider: PublicKey,
    /// The provider's node, which stores and countersigns heads.
    pub node: PublicKey,
    /// Price of storage.
    pub price: StoragePrice,
    /// Price of reading.
    pub read_price: ReadPrice,
    /// Prices of running jobs, if the provider runs any.
    pub compute: Option<ComputePrices>,
    /// What the provider puts aside as a pledge.
    pub collateral: Amount,
    /// Unix time in seconds until which the client can take the terms up.
    pub expires_s: u64,
    /// Random, so that two deals of the same two differ.
    pub salt: [u8; 16],
}

impl Signable for Terms {
    const DOMAIN: &'static str = "spare 2026 deal terms v1";
    const MAX_BYTES: usize = 256;
}

impl Terms {
    /// The first version's fields.
    pub fn v1(&self) -> &TermsV1 {
        let Self::V1(v1) = self;
        v1
    }

    /// The deal that these terms make.
    pub fn deal_id(&self) -> DealId {
        DealId(blake3::derive_key("spare 2026 deal id v1", &to_bytes(self)))
    }

    /// Whether prices are within bounds, and the terms can be taken up at unix time `now_s`.
    pub fn is_open_at(&self, now_s: u64) -> bool {
        let v1 = self.v1();
        let in_time = now_s < v1.expires_s && v1.expires_s <= now_s.saturating_add(TERMS_LIFE_MAX_S);
        let is_bounded = v1.compute.is_none_or(|prices| prices.is_bounded());
        in_time && v1.price.0 <= PRICE_MAX && v1.read_price.0 <= PRICE_MAX && is_bounded
    }
}

/// How a deal stands on the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Status {
    /// Entered by `Open`.
    Open,
    /// Entered by `Close`, from `Open`.
    Closing {
        /// The ledger's count of living periods at that time; see [`crate::ledger::Totals`].
        since_tick: u64,
    },
}

/// What a deal's part in claims goes by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stake {
    /// The newest head on the ledger.
    pub head: Option<AnchoredHead>,
    /// The client's money put aside.
    pub escrow: Amount,
    /// The provider's pledge.
    pub collateral: Amount,
}

/// A deal as the ledger keeps it. A closed one is not kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deal {
    /// What was agreed.
    pub terms: TermsV1,
    /// How it stands.
    pub status: Status,
    /// The client's money put aside, not yet paid.
    pub escrow: Amount,
    /// Paid to the provider so far, fee included.
    pub paid: Amount,
    /// The market's share of `paid`.
    pub fee: Amount,
    /// What is left of the provider's pledge.
    pub collateral: Amount,
    /// The last period that is settled, if any: a voucher or a claim paid for it, or nobody showed that it is to be paid.
    pub paid_through: Option<u64>,
    /// Bytes read that are paid for.
    pub read_bytes: u64,
    /// What was paid for jobs, as the newest voucher says that was redeemed; a part of `paid`, as far as the escrow went.
    pub jobs: Amount,
    /// Raised when the provider starts to claim without the client; vouchers of an earlier epoch no longer count.
    pub epoch: u32,
    /// The newest head that was put on the ledger.
    pub head: Option<AnchoredHead>,
    /// The tick in which that was.
    pub anchored_tick: u64,
    /// The last tick in which the deal's stake changed, and what it was when that tick began.
    pub prior: (u64, Stake),
    /// Since when the provider claims, if it does: no voucher came.
    pub claiming: Option<Claiming>,
    /// Challenges that are not answered. A deal is not settled before they are dealt with.
    pub challenges: u32,
    /// The last tick in which a challenge that was not answered took of the collateral. Those made before then take nothing more.
    pub penalized_tick: Option<u64>,
    /// The client's nodes that put money into the deal. They sign its heads and vouchers for as long as it lasts, also when their grants
    /// end or are revoked: what they signed is not to be had back. Other nodes of the account do not.
    pub signers: Vec<PublicKey>,
}

impl Deal {
    /// A deal as it is opened by `signer`, a node of the client.
    pub fn open(terms: TermsV1, escrow: Amount, signer: PublicKey) -> Self {
        Self {
            status: Status::Open,
            escrow,
            paid: Amount::ZERO,
            fee: Amount::ZERO,
            collateral: terms.collateral,
            paid_through: None,
            read_bytes: 0,
            jobs: Amount::ZERO,
            epoch: 0,
            head: None,
            anchored_tick: 0,
            prior: (0, Stake::default()),
            claiming: None,
            challenges: 0,
            penalized_tick: None,
            signers: vec![signer],
            terms,
        }
    }

    /// Whether a closing deal's time is over at unix time `now_s`, when the ledger has counted `ticks` living periods, and no challenge is open. Until its terms have
    /// expired somebody could open the same deal again, and redeem its old vouchers.
    pub fn can_be_settled(&self, ticks: u64, now_s: u64) -> bool {
        let Status::Closing { since_tick } = self.status else { return false };
        ticks >= since_tick + CLOSING_PERIODS && now_s >= self.terms.expires_s && self.challenges == 0
    }

    /// What the deal's part in claims goes by, as it is.
    pub fn stake(&self) -> Stake {
        Stake { head: self.head, escrow: self.escrow, collateral: self.collateral }
    }

    /// Keeps the stake as it was when `tick` began. To be called before anything of it changes in `tick`, the running one.
    pub fn keep_stake(&mut self, tick: u64) {
        if self.prior.0 < tick {
            self.prior = (tick, self.stake());
        }
    }

    /// The stake when `tick` began. It can be told for the last tick in which it changed, and for later ones.
    pub fn stake_before(&self, tick: u64) -> Stake {
        if self.prior.0 < tick { self.stake() } else { self.prior.1 }
    }

    /// Puts a newer head on the ledger in `tick`.
    pub fn anchor(&mut self, head: AnchoredHead, tick: u64) {
        self.keep_stake(tick);
        (self.head, self.anchored_tick) = (Some(head), tick);
    }

    /// The newest head that was on the ledger before `tick`, which is the running one, began.
    pub fn head_before(&self, tick: u64) -> Option<AnchoredHead> {
        self.stake_before(tick).head
    }
}

/// How long money lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Funding {
    /// Periods, from now on, that are paid for beyond the locked grace. `u64::MAX` when nothing is charged.
    pub periods: u64,
    /// Whether the locked grace has been touched.
    pub in_grace: bool,
}

/// How long `escrow` lasts when `owed` of it is owed already and each further period costs `rate`.
///
/// A rise of the rate is to be refused unless [`Funding::in_grace`] is false after it.
pub fn funding(escrow: Amount, owed: Amount, rate: StorageDue) -> Funding {
    let left = escrow.saturating_sub(owed);
    let all = match rate.checked_mul(1 << 20).map(StorageDue::floor) {
        // Free, or so cheap that a million periods cost nothing.
        Some(Amount(0)) => u64::MAX,
        Some(million) => u64::try_from(left.0.saturating_mul(1 << 20) / million.0).unwrap_or(u64::MAX),
        None => 0,
    };
    let in_grace = all < GRACE_PERIODS;
    Funding { periods: if all == u64::MAX { all } else { all.saturating_sub(GRACE_PERIODS) }, in_grace }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn funding_counts_periods_beyond_the_grace() {
        let day_s = 24 * 3600;
        let price = StoragePrice::per_tb_month("30".parse().unwrap()).unwrap();
        let rate = StorageDue::of(price, 1_000_000_000_000, day_s).unwrap();
        // 30 credits a month are a little less than one a day.
        let of = |escrow: &str, owed: &str| funding(escrow.parse().unwrap(), owed.parse().unwrap(), rate);
        assert_eq!(of("10", "0"), Funding { periods: 3, in_grace: false });
        assert_eq!(of("10", "3"), Funding { periods: 0, in_grace: false });
        assert_eq!(of("10", "4"), Funding { periods: 0, in_grace: true });
        assert_eq!(of("1", "4"), Funding { periods: 0, in_grace: true });
        assert_eq!(funding(Amount::ZERO, Amount::ZERO, StorageDue::ZERO).periods, u64::MAX, "free");
    }
}
