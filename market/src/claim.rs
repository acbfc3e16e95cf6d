//! Claims and challenges: how a provider shows the ledger that it holds what it was given, when no client's voucher says so.
//!
//! ```text
//! claim      StartClaims -> at each tick, after its beacon: Claim, one for all deals of a node whose clients are away
//! challenge  Challenge with a bond -> at the next tick's beacon: Answer -> the bond pays for it
//!                                  `-> no answer within the window: Forfeit takes of the collateral
//! ```
//!
//! A *tick* is a period in which there was a block before its last quarter. A claim is made in one tick for the periods since the one before, under
//! heads that were on the ledger before its beacon was known. Which bytes are shown follows from the beacon and the ledger's state; a provider supplies no list.
//!
//! **What is shown.** [`CLAIM_DRAWS`] bytes. A deal is drawn by what a period costs under it, a byte of its set like every other. Whoever lacks a share f
//! of what it claims for can show all draws with a chance of (1-f)^20. Which deals take part, under which heads and with which weights is settled when
//! a tick begins: nobody who knows the beacon can change what it draws.
//!
//! **Why dilution does not pay.** A provider that dropped what is worth V each period, and hides it among W of its own making, keeps V with the chance
//! q = (1-V/W)^c. Otherwise it gets nothing, and loses W/c once it was silent before. As 1 - q = (V/W)(1 + (1-V/W) + ... ) over c terms,
//! each of which is at least q, (1 - q) W/c is at least q V: on average nothing is gained. W is real: a deal weighs no more than its escrow can pay for a
//! period and its collateral can lose twenty times over, and claiming costs [`CLAIM_COST_BPS`] of it on either side, whoever pays for the period in
//! the end. So a W so large that it seldom fails, of which the first failure costs little, costs more than V.
//!
//! **Silence.** A claim that cannot be shown is not made. Its periods are not paid, and that is all; a second silence within
//! [`SILENCE_TICKS`] burns a draw's share of what it would have shown, and so does each further one: of each deal's own collateral, which was enough for
//! it when the tick began. Once that is gone the deal weighs nothing. What happened in a tick is settled before anything changes in a later one.
//!
//! **Coming back.** Vouchers are taken while claims go on, and what they pay is not claimed; the provider ends the claims when it trusts its client
//! again. A provider that gets no voucher starts to claim, and loses one unproven period at most; how often it lets that happen is its own affair.
//!
//! **Non-goals.** Judging who refused to sign: that cannot be proven.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};
use spare_proofs::draw::positions;
use spare_proofs::opening::{OpeningError, SetOpening};
use spare_proofs::sumtree::Sum;

use crate::amount::{Amount, StorageDue};
use crate::beacon::Beacon;
use crate::deal::{CLOSING_PERIODS, Deal, DealId, Stake, Status};
use crate::head::{AnchoredHead, HeadV1};
use crate::keys::PublicKey;
use crate::state::Totals;

/// Draws of a claim, and of the answer to a challenge.
pub const CLAIM_DRAWS: usize = 20;
/// What claiming costs each side, in ten-thousandths of what is claimed: the client pays so much more, the provider gets so much less. So
/// neither gains by forcing the other to it.
pub const CLAIM_COST_BPS: u16 = 100;
/// Ticks within which a second silence burns.
pub const SILENCE_TICKS: u64 = 30;
/// Ticks in which a challenge can be answered, from the one after it on.
pub const CHALLENGE_TICKS: u64 = 3;
/// Ticks after the one in which a deal was closed in which it can still be challenged.
pub const CHALLENGED_CLOSING_TICKS: u64 = 1;
/// What a challenger puts up: a thousandth of a credit, about twice what an answer costs its provider.
pub const CHALLENGE_BOND: Amount = Amount(1_000_000_000);
/// Times that a challenge goes over to a newer head.
pub const MOVES_MAX: u8 = 2;
/// Periods of a deal's rate that an unanswered challenge costs, at most all of its collateral: a month of hours.
pub const PENALTY_PERIODS: u64 = 720;
/// What it costs at least, in bonds, as far as there is collateral: so that also a small deal is worth a challenger's while.
pub const PENALTY_BONDS_MIN: u128 = 10;

/// For which ticks a deal is claimed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claiming {
    /// The tick in which that began; claims are made in later ones.
    pub since_tick: u64,
    /// The tick in which the provider ended it. Its draws include the deal yet: what is drawn in a tick is settled when that begins.
    pub until_tick: Option<u64>,
}

impl Claiming {
    /// Whether it goes on.
    pub fn is_on(&self) -> bool {
        self.until_tick.is_none()
    }
}

/// What the ledger remembers of a node that claims.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prover {
    /// The last tick that is dealt with: it claimed in it, or was silent, or had nothing to say.
    pub last_tick: u64,
    /// The last tick in which it was silent, if ever.
    pub silent_tick: Option<u64>,
}

impl Prover {
    /// Counts ticks `first` to `last` as silent. Returns the first of them that burns, if any does.
    pub fn fall_silent(&mut self, first: u64, last: u64) -> Option<u64> {
        let is_free = self.silent_tick.is_none_or(|before| first - before > SILENCE_TICKS);
        self.silent_tick = Some(last);
        Some(first + u64::from(is_free)).filter(|burning| *burning <= last)
    }
}

/// What can be claimed under a deal in the running tick.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claimable {
    /// The deal.
    pub deal: DealId,
    /// The head that was on the ledger before the beacon was known.
    pub head: AnchoredHead,
    /// What the deal is drawn by: see [`weight`]. Nothing in the running tick changes it.
    pub weight: Amount,
    /// What is paid for storage: what is due, as far as the weight and the escrow have it.
    pub amount: Amount,
}

/// The ticks in which `deal` takes part in claims. Nothing that happens in a tick changes whether that one is among them.
pub fn claimed_ticks(deal: &Deal) -> RangeInclusive<u64> {
    let Some(claiming) = deal.claiming else { return RangeInclusive::new(1, 0) };
    let until = claiming.until_tick.unwrap_or(u64::MAX);
    // From then on it can be settled at any moment.
    let settled = match deal.status {
        Status::Open => u64::MAX,
        Status::Closing { since_tick } => since_tick.saturating_add(CLOSING_PERIODS - 1),
    };
    claiming.since_tick.saturating_add(1)..=until.min(settled)
}

/// What a deal with `stake` is drawn by: what a period costs, as far as the escrow has it with what claiming costs, and the collateral has a draw's share.
pub fn weight(stake: &Stake, period_s: u32) -> Amount {
    let rate = stake.head.map_or(Amount::ZERO, |head| head.head.rate(period_s).floor());
    rate.min(funded(stake.escrow)).min(pledged(stake.collateral))
}

/// What `collateral` is a draw's share of.
fn pledged(collateral: Amount) -> Amount {
    Amount(collateral.0.saturating_mul(CLAIM_DRAWS as u128))
}

/// What `escrow` can pay for storage, beside what claiming costs its client.
fn funded(escrow: Amount) -> Amount {
    Amount(escrow.0 * 10_000 / (10_000 + u128::from(CLAIM_COST_BPS)))
}

/// What can be claimed under `deal` in the running tick, if it takes part. Periods have `period_s` seconds.
pub fn claimable(id: DealId, deal: &Deal, totals: &Totals, period_s: u32) -> Option<Claimable> {
    if !claimed_ticks(deal).contains(&totals.ticks) {
        return None;
    }
    let stake = deal.stake_before(totals.ticks);
    let head = stake.head?;
    let weight = weight(&stake, period_s);
    let unpaid = deal.paid_through.map_or(0, |through| through.saturating_add(1));
    let periods = totals.period.saturating_sub(unpaid.max(totals.previous_period));
    let rate = head.head.rate(period_s);
    let due = match weight < rate.floor() {
        true => Amount(weight.0.saturating_mul(periods.into())),
        false => rate.checked_mul(periods).map_or(deal.escrow, StorageDue::floor),
    };
    // For several periods at once, after an outage of the market, as far as the collateral has a share of it all.
    let amount = due.min(funded(deal.escrow)).min(pledged(stake.collateral));
    (weight > Amount::ZERO).then_some(Claimable { deal: id, head, weight, amount })
}

/// A draw's share of a claim, rounded up: what a silence that burns takes.
pub fn draw_share(claimed: Amount) -> Amount {
    Amount(claimed.0.div_ceil(CLAIM_DRAWS as u128))
}

/// A byte to be shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drawn {
    /// Which of the claimables, by index.
    pub index: usize,
    /// The byte of its set.
    pub position: u64,
}

/// What the node `node` has to show for a claim of `claimables`, which are in order of deal id.
///
/// Amounts and positions are 128 bits of BLAKE3 output modulo their total; the bias is below 2^-28.
pub fn draws(beacon: &Beacon, node: &PublicKey, claimables: &[Claimable]) -> Vec<Drawn> {
    let total: u128 = claimables.iter().map(|c| c.weight.0).sum();
    if total == 0 {
        return Vec::new();
    }
    let mut ends = Vec::with_capacity(claimables.len());
    let mut end = 0;
    for claimable in claimables {
        end += claimable.weight.0;
        ends.push(end);
    }
    let mut hasher = blake3::Hasher::new_derive_key("spare 2026 claim draw v1");
    hasher.update(beacon).update(&node.to_bytes());
    let mut stream = hasher.finalize_xof();
    let mut next = || {
        let mut bytes = [0; 16];
        stream.fill(&mut bytes);
        u128::from_le_bytes(bytes)
    };
    let mut draw = |_| {
        let at = next() % total;
        let index = ends.partition_point(|end| *end <= at);
        let position = (next() % u128::from(claimables[index].head.head.bytes)) as u64;
        Drawn { index, position }
    };
    (0..CLAIM_DRAWS).map(&mut draw).collect()
}

/// A challenge that is not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Challenge {
    /// The head that was the ledger's when it was made.
    pub head: AnchoredHead,
    /// The tick in which it was made. What is to be shown follows from the next one's beacon.
    pub made_tick: u64,
    /// What the challenger put up.
    pub bond: Amount,
    /// How often it went over to a newer head.
    pub moved: u8,
}

/// What an answered challenge costs its challenger.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AnswerCosts {
    /// For the provider, for its answer.
    pub to_provider: Amount,
    /// For the market, for keeping it.
    pub to_market: Amount,
}

impl Challenge {
    /// What of the bond its challenger loses when it is answered: half goes to the provider, half to the market. After it went over to a newer head, the
    /// provider gets nothing and the challenger its half back. What was asked about first may be what the newer head left out because it is lost.
    pub fn costs_if_answered(&self) -> AnswerCosts {
        let half = Amount(self.bond.0 / 2);
        let to_provider = if self.moved == 0 { half } else { Amount::ZERO };
        AnswerCosts { to_provider, to_market: self.bond.saturating_sub(half) }
    }

    /// The positions of the challenged set that are to be shown, or `None` before their beacon, or long after it.
    pub fn positions(&self, deal: DealId, challenger: &PublicKey, totals: &Totals) -> Option<Vec<u64>> {
        let beacon = totals.beacon_of(self.made_tick + 1)?;
        let mut hasher = blake3::Hasher::new_derive_key("spare 2026 challenge draw v1");
        hasher.update(&beacon).update(&deal.0).update(&challenger.to_bytes());
        Some(positions(hasher.finalize().as_bytes(), self.head.head.bytes, CLAIM_DRAWS))
    }

    /// Whether the time for an answer is over in `tick`.
    pub fn is_over(&self, tick: u64) -> bool {
        tick > self.made_tick + CHALLENGE_TICKS
    }

    /// Whether `deal` got a newer head in time, over another set. Then it is that one's turn, but not for ever: the sets of heads that are asked about
    /// are to be held on to.
    pub fn is_superseded(&self, deal: &Deal) -> bool {
        let is_other = |head: AnchoredHead| {
            head.head.seq > self.head.head.seq && set_of(&head.head) != set_of(&self.head.head)
        };
        self.moved < MOVES_MAX && !self.is_over(deal.anchored_tick) && deal.head.is_some_and(is_other)
    }

    /// What it takes of `deal`'s collateral if it is not answered. One time of not answering costs once, however many asked.
    pub fn penalty(&self, deal: &Deal, period_s: u32) -> Amount {
        if deal.penalized_tick.is_some_and(|penalized| self.made_tick <= penalized) {
            return Amount::ZERO;
        }
        let due = self.head.head.rate(period_s).checked_mul(PENALTY_PERIODS);
        let least = Amount(CHALLENGE_BOND.0 * PENALTY_BONDS_MIN);
        due.map_or(deal.collateral, |due| due.floor().max(least)).min(deal.collateral)
    }
}

/// The commitment of a head's set.
pub fn set_of(head: &HeadV1) -> Sum {
    Sum { bytes: head.bytes, hash: head.set_root }
}

/// Why what was shown is not what was drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ShowError {
    /// Another number of openings.
    #[error("{shown} openings are shown for {drawn} draws")]
    Count {
        /// Given.
        shown: usize,
        /// Expected.
        drawn: usize,
    },
    /// An opening shows something else.
    #[error("draw {draw} is not shown: {error}")]
    Opening {
        /// Which draw.
        draw: usize,
        /// Why.
        error: OpeningError,
    },
}

/// Checks that `shown` are the openings of `drawn`, each a byte of a head's set.
///
/// # Errors
/// [`ShowError`] for the first that is not.
pub fn check_shown<'a>(
    drawn: impl ExactSizeIterator<Item = (&'a HeadV1, u64)>,
    shown: &[SetOpening],
) -> Result<(), ShowError> {
    if drawn.len() != shown.len() {
        return Err(ShowError::Count { shown: shown.len(), drawn: drawn.len() });
    }
    for (draw, ((head, position), opening)) in drawn.zip(shown).enumerate() {
        opening.verify(&set_of(head), position).map_err(|error| ShowError::Opening { draw, error })?;
    }
    Ok(())
}

/// The share of a deal's bytes that has to be missing before a challenge pays on average: below it, its bond is lost more often than a penalty is won.
///
/// A challenger wins half of the penalty with the chance 1-(1-f)^20 and loses the bond otherwise.
pub fn break_even_fault_rate(penalty: Amount) -> f64 {
    let (bond, award) = (CHALLENGE_BOND.credits(), penalty.credits() / 2.0);
    let chance = bond / (bond + award);
    1.0 - (1.0 - chance).powf(1.0 / CLAIM_DRAWS as f64)
}
