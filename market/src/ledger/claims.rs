//! The rules of collateral, claims and challenges. See [`crate::claim`] for what they are for.

use std::ops::RangeInclusive;

use spare_proofs::opening::SetOpening;

use super::{Rules, give, put_account};
use crate::amount::Amount;
use crate::claim::{
    AnswerCosts, CHALLENGE_BOND, CHALLENGED_CLOSING_TICKS, CLAIM_COST_BPS, Challenge, Claimable, Claiming,
    Prover, check_shown, claimable, claimed_ticks, draw_share, draws, weight,
};
use crate::deal::{Deal, DealId, Status};
use crate::grant::Scope;
use crate::keys::PublicKey;
use crate::state::{Draft, Entry, Key};
use crate::tx::{Event, Refused};

impl Rules<'_> {
    pub(super) fn pledge(&self, state: &mut Draft<'_>, id: DealId, amount: Amount) -> Result<Event, Refused> {
        self.needs(Scope::Provide)?;
        let mut deal = state.deal(&id).cloned().ok_or(Refused::NoSuchDeal)?;
        if deal.terms.provider != self.delegate.account {
            return Err(Refused::NotAParty);
        }
        if amount == Amount::ZERO {
            return Err(Refused::Nothing);
        }
        let mut provider = state.account(&deal.terms.provider);
        let short = Refused::Collateral { free: provider.free, needed: amount };
        provider.free = provider.free.checked_sub(amount).ok_or(short)?;
        self.before_change(state, id, &mut deal);
        deal.collateral = deal.collateral.checked_add(amount).ok_or(Refused::Supply)?;
        put_account(state, deal.terms.provider, provider);
        put_deal(state, id, deal);
        Ok(Event::Pledged { deal: id, amount })
    }

    /// Periods before the running one are given up, unless a voucher is redeemed before.
    pub(super) fn start_claims(&self, state: &mut Draft<'_>, id: DealId) -> Result<Event, Refused> {
        let deal = self.own_deal(state, id)?;
        let tick = state.totals().ticks;
        if deal.claiming.is_some_and(|claiming| claiming.until_tick.is_none_or(|until| until >= tick)) {
            return Err(Refused::Claiming);
        }
        if deal.head.is_none_or(|head| head.head.bytes == 0) {
            return Err(Refused::NoHead);
        }
        // Each deal that is claimed for costs the ledger some work in each tick, so there has to be money in it.
        if deal.collateral == Amount::ZERO {
            return Err(Refused::NoCollateral);
        }
        if deal.escrow == Amount::ZERO {
            return Err(Refused::EscrowEmpty);
        }
        fall_silent(state, self.context.genesis.period_s, &self.signer);
        let prover = state.prover(&self.signer).unwrap_or(Prover { last_tick: tick, silent_tick: None });
        put_prover(state, self.signer, prover);
        let mut deal = state.deal(&id).cloned().ok_or(Refused::NoSuchDeal)?;
        deal.claiming = Some(Claiming { since_tick: tick, until_tick: None });
        deal.epoch += 1;
        deal.paid_through = deal.paid_through.max(self.context.period.checked_sub(1));
        put_deal(state, id, deal);
        Ok(Event::ClaimsStarted { deal: id })
    }

    /// The deal, of which the signer has to be the provider's node.
    fn own_deal(&self, state: &Draft<'_>, id: DealId) -> Result<Deal, Refused> {
        let deal = state.deal(&id).cloned().ok_or(Refused::NoSuchDeal)?;
        let is_own = self.signer == deal.terms.node && self.delegate.scopes.contains(&Scope::Provide);
        if is_own { Ok(deal) } else { Err(Refused::NotAParty) }
    }

    /// The running tick's draws include the deal yet.
    pub(super) fn end_claims(&self, state: &mut Draft<'_>, id: DealId) -> Result<Event, Refused> {
        let mut deal = self.own_deal(state, id)?;
        let claiming = deal.claiming.as_mut().filter(|claiming| claiming.is_on());
        claiming.ok_or(Refused::NothingToClaim)?.until_tick = Some(state.totals().ticks);
        put_deal(state, id, deal);
        Ok(Event::ClaimsEnded { deal: id })
    }

    /// Settles what happened to a deal in earlier ticks, and keeps how it stood when this one began. To be called when all is checked, before anything of
    /// its stake changes.
    pub(super) fn before_change(&self, state: &mut Draft<'_>, id: DealId, deal: &mut Deal) {
        if deal.claiming.is_some() {
            fall_silent(state, self.context.genesis.period_s, &deal.terms.node);
            let settled = state.deal(&id).expect("nothing removes it");
            (deal.collateral, deal.prior) = (settled.collateral, settled.prior);
        }
        deal.keep_stake(state.totals().ticks);
    }

    pub(super) fn claim(
        &self,
        state: &mut Draft<'_>,
        tick: u64,
        openings: &[SetOpening],
    ) -> Result<Event, Refused> {
        self.needs(Scope::Provide)?;
        let totals = state.totals();
        let prover = state.prover(&self.signer).ok_or(Refused::NothingToClaim)?;
        if tick != totals.ticks || prover.last_tick >= totals.ticks {
            return Err(Refused::ClaimTick { expected: totals.ticks.max(prover.last_tick + 1), got: tick });
        }
        let claimables = claimables(state, self.context.genesis.period_s, &self.signer);
        if claimables.is_empty() {
            return Err(Refused::NothingToClaim);
        }
        let drawn = draws(&totals.beacon(), &self.signer, &claimables);
        let drawn = drawn.iter().map(|drawn| (&claimables[drawn.index].head.head, drawn.position));
        check_shown(drawn, openings)?;
        fall_silent(state, self.context.genesis.period_s, &self.signer);
        let silent_tick = state.prover(&self.signer).and_then(|prover| prover.silent_tick);
        put_prover(state, self.signer, Prover { last_tick: totals.ticks, silent_tick });
        let (mut amount, mut fee) = (Amount::ZERO, Amount::ZERO);
        for claimable in &claimables {
            let (of_deal, kept) = self.pay_claim(state, claimable)?;
            amount = amount.checked_add(of_deal).ok_or(Refused::Supply)?;
            fee = fee.checked_add(kept).ok_or(Refused::Supply)?;
        }
        Ok(Event::Claimed { node: self.signer, deals: claimables.len() as u64, amount, fee })
    }

    /// Pays a claim under one deal. Returns what left the escrow, and what the market kept of it.
    fn pay_claim(&self, state: &mut Draft<'_>, claimable: &Claimable) -> Result<(Amount, Amount), Refused> {
        let mut deal = state.deal(&claimable.deal).cloned().ok_or(Refused::NoSuchDeal)?;
        deal.keep_stake(state.totals().ticks);
        let cost = claimable.amount.share(CLAIM_COST_BPS);
        // What a voucher pays for is not claimed, but claiming costs as much, else money that goes round in a circle would weigh for nothing.
        let of_provider = Amount(2 * claimable.amount.max(claimable.weight).share(CLAIM_COST_BPS).0 - cost.0);
        // Bounded by the escrow, and sums of what was issued.
        let amount = claimable.amount.checked_add(cost).ok_or(Refused::Supply)?;
        deal.escrow = deal.escrow.checked_sub(amount).ok_or(Refused::EscrowEmpty)?;
        deal.paid = deal.paid.checked_add(amount).ok_or(Refused::Supply)?;
        let share = deal.paid.share(self.context.genesis.fee_bps).saturating_sub(deal.fee);
        deal.fee = deal.fee.checked_add(share).ok_or(Refused::Supply)?;
        let due =
            share.checked_add(cost).and_then(|sum| sum.checked_add(of_provider)).ok_or(Refused::Supply)?;
        let of_pledge = due.saturating_sub(amount).min(deal.collateral);
        deal.collateral = deal.collateral.saturating_sub(of_pledge);
        let net = amount.saturating_sub(due);
        let kept = amount.saturating_sub(net).checked_add(of_pledge).ok_or(Refused::Supply)?;
        deal.paid_through = self.context.period.checked_sub(1);
        let mut totals = state.totals();
        totals.fees = totals.fees.checked_add(kept).ok_or(Refused::Supply)?;
        totals.paid = totals.paid.checked_add(amount).ok_or(Refused::Supply)?;
        state.put(Key::Totals, Entry::Totals(totals));
        let mut client = state.account(&deal.terms.client);
        client.spent = client.spent.checked_add(amount).ok_or(Refused::Supply)?;
        put_account(state, deal.terms.client, client);
        let mut provider = state.account(&deal.terms.provider);
        provider.free = provider.free.checked_add(net).ok_or(Refused::Supply)?;
        provider.earned = provider.earned.checked_add(net).ok_or(Refused::Supply)?;
        put_account(state, deal.terms.provider, provider);
        put_deal(state, claimable.deal, deal);
        Ok((amount, kept))
    }

    pub(super) fn lapse(&self, state: &mut Draft<'_>, node: &PublicKey) -> Result<Event, Refused> {
        let known = state.prover(node).ok_or(Refused::NotDue)?;
        let was_silent = |settled: &Settled| settled.prover.silent_tick > known.silent_tick;
        if !settled(state, self.context.genesis.period_s, node).as_ref().is_some_and(was_silent) {
            return Err(Refused::NotDue);
        }
        let burned = fall_silent(state, self.context.genesis.period_s, node);
        Ok(Event::Silent { node: *node, burned })
    }

    pub(super) fn challenge(&self, state: &mut Draft<'_>, id: DealId) -> Result<Event, Refused> {
        let mut deal = state.deal(&id).cloned().ok_or(Refused::NoSuchDeal)?;
        let challenger = self.delegate.account;
        if challenger == deal.terms.provider {
            return Err(Refused::OwnDeal);
        }
        let tick = state.totals().ticks;
        // Whoever closes a deal so as not to be asked can still be asked, but not for ever.
        if matches!(deal.status, Status::Closing { since_tick } if tick > since_tick + CHALLENGED_CLOSING_TICKS)
        {
            return Err(Refused::Closing);
        }
        let head = deal.head.filter(|head| head.head.bytes > 0).ok_or(Refused::NoHead)?;
        if deal.collateral == Amount::ZERO {
            return Err(Refused::NoCollateral);
        }
        if state.challenge(id, challenger).is_some() {
            return Err(Refused::ChallengeExists);
        }
        let (account, delegate) = self.spend(state, CHALLENGE_BOND)?;
        deal.challenges += 1;
        put_account(state, challenger, account);
        state.put(Key::Delegate(self.signer), Entry::Delegate(delegate));
        put_deal(state, id, deal);
        let challenge = Challenge { head, made_tick: tick, bond: CHALLENGE_BOND, moved: 0 };
        state.put(Key::Challenge(id, challenger), Entry::Challenge(challenge));
        Ok(Event::Challenged { deal: id, challenger })
    }

    pub(super) fn answer(
        &self,
        state: &mut Draft<'_>,
        id: DealId,
        challenger: PublicKey,
        openings: &[SetOpening],
    ) -> Result<Event, Refused> {
        let challenge = *state.challenge(id, challenger).ok_or(Refused::NoSuchChallenge)?;
        let deal = state.deal(&id).cloned().ok_or(Refused::NoSuchDeal)?;
        self.party(&deal)?;
        if challenge.is_superseded(&deal) {
            return Ok(move_on(state, id, deal, challenger, challenge));
        }
        let totals = state.totals();
        if challenge.is_over(totals.ticks) {
            return Err(Refused::TooLate);
        }
        let positions = challenge.positions(id, &challenger, &totals).ok_or(Refused::NotDue)?;
        check_shown(positions.iter().map(|position| (&challenge.head.head, *position)), openings)?;
        Ok(end_challenge(state, id, deal, challenger, challenge.costs_if_answered()))
    }

    pub(super) fn forfeit(
        &self,
        state: &mut Draft<'_>,
        id: DealId,
        challenger: PublicKey,
    ) -> Result<Event, Refused> {
        let challenge = *state.challenge(id, challenger).ok_or(Refused::NoSuchChallenge)?;
        let mut deal = state.deal(&id).cloned().ok_or(Refused::NoSuchDeal)?;
        if challenge.is_superseded(&deal) {
            return Ok(move_on(state, id, deal, challenger, challenge));
        }
        let tick = state.totals().ticks;
        if !challenge.is_over(tick) {
            return Err(Refused::NotDue);
        }
        self.before_change(state, id, &mut deal);
        let penalty = challenge.penalty(&deal, self.context.genesis.period_s);
        if penalty > Amount::ZERO {
            deal.penalized_tick = Some(tick);
        }
        let award = Amount(penalty.0 / 2);
        deal.collateral = deal.collateral.saturating_sub(penalty);
        let client = deal.terms.client;
        end_challenge(state, id, deal, challenger, AnswerCosts::default());
        give(state, challenger, award);
        give(state, client, penalty.saturating_sub(award));
        Ok(Event::Forfeited { deal: id, challenger, penalty, award })
    }
}

/// Has a challenge ask about the head that `deal` has now, from the next tick on. One over nothing has nothing to show.
fn move_on(
    state: &mut Draft<'_>,
    id: DealId,
    deal: Deal,
    challenger: PublicKey,
    challenge: Challenge,
) -> Event {
    match deal.head.filter(|head| head.head.bytes > 0) {
        None => end_challenge(state, id, deal, challenger, AnswerCosts::default()),
        Some(head) => {
            let (made_tick, moved) = (state.totals().ticks, challenge.moved + 1);
            let challenge = Challenge { head, made_tick, moved, ..challenge };
            state.put(Key::Challenge(id, challenger), Entry::Challenge(challenge));
            Event::Challenged { deal: id, challenger }
        }
    }
}

/// Ends a challenge of `deal`. Of its bond the challenger loses `costs`.
fn end_challenge(
    state: &mut Draft<'_>,
    id: DealId,
    mut deal: Deal,
    challenger: PublicKey,
    costs: AnswerCosts,
) -> Event {
    let bond = state.challenge(id, challenger).map_or(Amount::ZERO, |challenge| challenge.bond);
    state.remove(Key::Challenge(id, challenger));
    deal.challenges = deal.challenges.saturating_sub(1);
    let provider = deal.terms.provider;
    put_deal(state, id, deal);
    give(state, provider, costs.to_provider);
    let lost = costs.to_provider.checked_add(costs.to_market).expect("no more than the bond");
    give(state, challenger, bond.saturating_sub(lost));
    let mut totals = state.totals();
    totals.fees = totals.fees.checked_add(costs.to_market).expect("no more than was issued");
    state.put(Key::Totals, Entry::Totals(totals));
    Event::Answered { deal: id, challenger, lost }
}

/// Ticks in which a deal was to be claimed for, and what it was drawn by.
type Span = (RangeInclusive<u64>, Amount);

/// A node that claims, when all ticks before the running one are settled in which it did not.
struct Settled {
    prover: Prover,
    /// The deals that it claims or claimed for, in order of id.
    deals: Vec<(DealId, Deal)>,
    /// What its silence has burned of them.
    burned: Amount,
}

/// What the ticks before the running one come to for `node`, if it claims. The first silent one in a while is free; each further one burns a draw's share of
/// each deal, of its collateral.
fn settled(state: &Draft<'_>, period_s: u32, node: &PublicKey) -> Option<Settled> {
    let mut prover = state.prover(node)?;
    let account = state.delegate(node)?.account;
    let due = prover.last_tick + 1..=state.totals().ticks.saturating_sub(1);
    let mut deals = claimed_deals(state, account, node);
    if due.is_empty() {
        return Some(Settled { prover, deals, burned: Amount::ZERO });
    }
    prover.last_tick = *due.end();
    let spans = deals.iter().map(|(_, deal)| silent_spans(deal, &due, period_s));
    let spans: Vec<Vec<Span>> = spans.collect();
    let first = spans.iter().flatten().map(|(span, _)| *span.start()).min();
    let last = spans.iter().flatten().map(|(span, _)| *span.end()).max();
    let burning = first.zip(last).and_then(|(first, last)| prover.fall_silent(first, last));
    let mut burned = Amount::ZERO;
    if let Some(burning) = burning {
        for ((_, deal), spans) in deals.iter_mut().zip(spans) {
            let due = spans.iter().map(|(span, weight)| {
                let ticks = (*span.end() + 1).saturating_sub((*span.start()).max(burning));
                draw_share(*weight).0.saturating_mul(ticks.into())
            });
            // It belongs to ticks that are over: the running one began with what is left.
            let taken = Amount(due.fold(0, u128::saturating_add)).min(deal.collateral);
            deal.collateral = deal.collateral.saturating_sub(taken);
            burned = Amount(burned.0 + taken.0);
        }
    }
    Some(Settled { prover, deals, burned })
}

/// The ticks among `due` in which `deal` was to be claimed for, and what it was drawn by in them. Its stake last changed in the first of them, if
/// in any: whatever changes a stake settles earlier ticks before.
fn silent_spans(deal: &Deal, due: &RangeInclusive<u64>, period_s: u32) -> Vec<Span> {
    let claimed = claimed_ticks(deal);
    let (start, end) = ((*claimed.start()).max(*due.start()), (*claimed.end()).min(*due.end()));
    let changed = deal.prior.0;
    let spans = [
        (start..=end.min(changed), weight(&deal.prior.1, period_s)),
        (start.max(changed.saturating_add(1))..=end, weight(&deal.stake(), period_s)),
    ];
    spans.into_iter().filter(|(span, weight)| !span.is_empty() && *weight > Amount::ZERO).collect()
}

/// Has all ticks before the running one in which `node` did not claim on record, and burns what they cost. Returns how much.
pub(super) fn fall_silent(state: &mut Draft<'_>, period_s: u32, node: &PublicKey) -> Amount {
    let Some(Settled { prover, deals, burned }) = settled(state, period_s, node) else { return Amount::ZERO };
    put_prover(state, *node, prover);
    if burned > Amount::ZERO {
        deals.into_iter().for_each(|(id, deal)| put_deal(state, id, deal));
        let mut totals = state.totals();
        totals.burned = totals.burned.checked_add(burned).expect("no more than was issued");
        state.put(Key::Totals, Entry::Totals(totals));
    }
    burned
}

/// The deals of `node`, which acts for `account`, that are or were claimed for, in order of id.
fn claimed_deals(state: &Draft<'_>, account: PublicKey, node: &PublicKey) -> Vec<(DealId, Deal)> {
    let deals = state.deals_of(&account).into_iter();
    let claimed = deals.filter(|(_, deal)| deal.terms.node == *node && deal.claiming.is_some());
    claimed.map(|(id, deal)| (id, deal.clone())).collect()
}

/// What `node` can claim in the running tick, in order of deal id.
pub(super) fn claimables(state: &Draft<'_>, period_s: u32, node: &PublicKey) -> Vec<Claimable> {
    let totals = state.totals();
    let deals = settled(state, period_s, node).map(|settled| settled.deals).unwrap_or_default();
    deals.iter().filter_map(|(id, deal)| claimable(*id, deal, &totals, period_s)).collect()
}

fn put_deal(state: &mut Draft<'_>, id: DealId, deal: Deal) {
    state.put(Key::Deal(id), Entry::Deal(Box::new(deal)));
}

fn put_prover(state: &mut Draft<'_>, node: PublicKey, prover: Prover) {
    state.put(Key::Prover(node), Entry::Prover(prover));
}
