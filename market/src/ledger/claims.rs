//! The rules of collateral, claims and challenges. See [`crate::claim`] for what they are for.

use std::ops::RangeInclusive;

use spare_proofs::opening::SetOpening;

use super::{Context, Rules, give, put_account};
use crate::amount::Amount;
use crate::claim::{
    CHALLENGE_BOND, CHALLENGED_CLOSING_TICKS, CLAIM_COST_BPS, Challenge, Claimable, Claiming, Prover,
    check_shown, claimable, claimed_ticks, draw_share, draws,
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
        deal.collateral = deal.collateral.checked_add(amount).ok_or(Refused::Supply)?;
        put_account(state, deal.terms.provider, provider);
        put_deal(state, id, deal);
        Ok(Event::Pledged { deal: id, amount })
    }

    /// Periods before the running one are given up, unless a voucher is redeemed before.
    pub(super) fn start_claims(&self, state: &mut Draft<'_>, id: DealId) -> Result<Event, Refused> {
        let deal = state.deal(&id).cloned().ok_or(Refused::NoSuchDeal)?;
        if self.signer != deal.terms.node || !self.delegate.scopes.contains(&Scope::Provide) {
            return Err(Refused::NotAParty);
        }
        let tick = state.totals().ticks;
        if deal.claiming.is_some_and(|claiming| claiming.until_tick.is_none_or(|until| until >= tick)) {
            return Err(Refused::Claiming);
        }
        if deal.head.is_none_or(|head| head.head.bytes == 0) {
            return Err(Refused::NoHead);
        }
        fall_silent(state, self.context, &self.signer);
        let prover = state.prover(&self.signer).unwrap_or(Prover { last_tick: tick, silent_tick: None });
        put_prover(state, self.signer, prover);
        let mut deal = state.deal(&id).cloned().ok_or(Refused::NoSuchDeal)?;
        deal.claiming = Some(Claiming { since_tick: tick, until_tick: None });
        deal.epoch += 1;
        deal.paid_through = deal.paid_through.max(self.context.period.checked_sub(1));
        put_deal(state, id, deal);
        Ok(Event::ClaimsStarted { deal: id })
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
        let claimables = claimables(state, self.context, self.delegate.account, &self.signer);
        // Where nothing is left to be paid it is shown all the same, until the deal is closed.
        if claimables.is_empty() {
            return Err(Refused::NothingToClaim);
        }
        let drawn = draws(&totals.beacon(), &self.signer, &claimables);
        let drawn = drawn.iter().map(|drawn| (&claimables[drawn.index].head.head, drawn.position));
        check_shown(drawn, openings)?;
        fall_silent(state, self.context, &self.signer);
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
        let cost = claimable.amount.share(CLAIM_COST_BPS);
        // Bounded by the escrow, and sums of what was issued.
        let amount = claimable.amount.checked_add(cost).ok_or(Refused::Supply)?;
        deal.escrow = deal.escrow.checked_sub(amount).ok_or(Refused::EscrowEmpty)?;
        deal.paid = deal.paid.checked_add(amount).ok_or(Refused::Supply)?;
        let share = deal.paid.share(self.context.genesis.fee_bps).saturating_sub(deal.fee);
        deal.fee = deal.fee.checked_add(share).ok_or(Refused::Supply)?;
        let kept = share.checked_add(Amount(2 * cost.0)).ok_or(Refused::Supply)?.min(amount);
        let net = amount.saturating_sub(kept);
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
        let was_silent =
            |silence: &Silence| silence.prover.silent_tick > state.prover(node).and_then(|p| p.silent_tick);
        if !silence(state, node).as_ref().is_some_and(was_silent) {
            return Err(Refused::NotDue);
        }
        let burned = fall_silent(state, self.context, node);
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
        let challenge = Challenge { head, made_tick: tick, bond: CHALLENGE_BOND };
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
            return Ok(end_challenge(state, id, deal, challenger, Amount::ZERO));
        }
        let totals = state.totals();
        if challenge.is_over(totals.ticks) {
            return Err(Refused::TooLate);
        }
        let positions = challenge.positions(id, &challenger, &totals).ok_or(Refused::NotDue)?;
        check_shown(positions.iter().map(|position| (&challenge.head.head, *position)), openings)?;
        Ok(end_challenge(state, id, deal, challenger, challenge.bond))
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
            return Ok(end_challenge(state, id, deal, challenger, Amount::ZERO));
        }
        if !challenge.is_over(state.totals().ticks) {
            return Err(Refused::NotDue);
        }
        let penalty = challenge.penalty(deal.collateral, self.context.genesis.period_s);
        let award = Amount(penalty.0 / 2);
        deal.collateral = deal.collateral.saturating_sub(penalty);
        let client = deal.terms.client;
        end_challenge(state, id, deal, challenger, Amount::ZERO);
        give(state, challenger, award);
        give(state, client, penalty.saturating_sub(award));
        Ok(Event::Forfeited { deal: id, challenger, penalty, award })
    }
}

/// Ends a challenge of `deal`. Of its bond the challenger loses `lost`: half to the provider for its answer, half to the market for keeping it.
fn end_challenge(
    state: &mut Draft<'_>,
    id: DealId,
    mut deal: Deal,
    challenger: PublicKey,
    lost: Amount,
) -> Event {
    let bond = state.challenge(id, challenger).map_or(Amount::ZERO, |challenge| challenge.bond);
    state.remove(Key::Challenge(id, challenger));
    deal.challenges = deal.challenges.saturating_sub(1);
    let provider = deal.terms.provider;
    put_deal(state, id, deal);
    let to_provider = Amount(lost.0 / 2);
    give(state, provider, to_provider);
    give(state, challenger, bond.saturating_sub(lost));
    let mut totals = state.totals();
    let kept = lost.saturating_sub(to_provider);
    totals.fees = totals.fees.checked_add(kept).expect("no more than was issued");
    state.put(Key::Totals, Entry::Totals(totals));
    Event::Answered { deal: id, challenger, lost }
}

/// Ticks before the running one in which a node did not claim, though deals took part.
struct Silence {
    account: PublicKey,
    prover: Prover,
    /// For each deal that was claimed for, in which of those ticks.
    deals: Vec<(DealId, Deal, RangeInclusive<u64>)>,
    /// The first tick that burns, if any does.
    burning: Option<u64>,
}

/// What of `node` is not dealt with yet, if anything.
fn silence(state: &Draft<'_>, node: &PublicKey) -> Option<Silence> {
    let mut prover = state.prover(node)?;
    let account = state.delegate(node)?.account;
    let due = prover.last_tick + 1..=state.totals().ticks.saturating_sub(1);
    if due.is_empty() {
        return None;
    }
    prover.last_tick = *due.end();
    let silent = |deal: &Deal| {
        let claimed = claimed_ticks(deal);
        (*claimed.start()).max(*due.start())..=(*claimed.end()).min(*due.end())
    };
    let deals = claimed_deals(state, account, node).into_iter();
    let deals: Vec<_> =
        deals.map(|(id, deal)| (id, silent(&deal), deal)).map(|(id, span, deal)| (id, deal, span)).collect();
    let spans = || deals.iter().map(|(_, _, span)| span).filter(|span| !span.is_empty());
    let first = spans().map(|span| *span.start()).min();
    let last = spans().map(|span| *span.end()).max();
    let burning = first.zip(last).and_then(|(first, last)| prover.fall_silent(first, last));
    Some(Silence { account, prover, deals, burning })
}

/// Has all ticks before the running one in which `node` did not claim on record, and burns what they cost. Returns how much.
pub(super) fn fall_silent(state: &mut Draft<'_>, context: &Context<'_>, node: &PublicKey) -> Amount {
    let Some(Silence { account, prover, deals, burning }) = silence(state, node) else { return Amount::ZERO };
    let tick = state.totals().ticks;
    put_prover(state, *node, prover);
    let Some(burning) = burning else { return Amount::ZERO };
    let (mut owed, mut burned) = (Amount::ZERO, Amount::ZERO);
    for (id, mut deal, span) in deals {
        let ticks = (*span.end() + 1).saturating_sub((*span.start()).max(burning));
        // As of now, which is as it was, unless heads came since.
        let rate =
            deal.head_before(tick).map_or(Amount::ZERO, |h| h.head.rate(context.genesis.period_s).floor());
        let share = Amount(draw_share(rate).0.saturating_mul(ticks.into()));
        let taken = share.min(deal.collateral);
        deal.collateral = deal.collateral.saturating_sub(taken);
        owed = Amount(owed.0.saturating_add(share.saturating_sub(taken).0));
        burned = Amount(burned.0 + taken.0);
        put_deal(state, id, deal);
    }
    // What a deal's collateral does not have comes from the others', and then from what is free: a pledge that was moved away saves nothing.
    for (id, mut deal) in claimed_deals(state, account, node) {
        let taken = owed.min(deal.collateral);
        deal.collateral = deal.collateral.saturating_sub(taken);
        (owed, burned) = (owed.saturating_sub(taken), Amount(burned.0 + taken.0));
        put_deal(state, id, deal);
    }
    let mut provider = state.account(&account);
    let taken = owed.min(provider.free);
    provider.free = provider.free.saturating_sub(taken);
    put_account(state, account, provider);
    burned = Amount(burned.0 + taken.0);
    let mut totals = state.totals();
    totals.burned = totals.burned.checked_add(burned).expect("no more than was issued");
    state.put(Key::Totals, Entry::Totals(totals));
    burned
}

/// The deals of `node`, which acts for `account`, that are or were claimed for, in order of id.
fn claimed_deals(state: &Draft<'_>, account: PublicKey, node: &PublicKey) -> Vec<(DealId, Deal)> {
    let deals = state.deals_of(&account).into_iter();
    let claimed = deals.filter(|(_, deal)| deal.terms.node == *node && deal.claiming.is_some());
    claimed.map(|(id, deal)| (id, deal.clone())).collect()
}

/// What `node` can claim in the running tick, in order of deal id.
fn claimables(
    state: &Draft<'_>,
    context: &Context<'_>,
    account: PublicKey,
    node: &PublicKey,
) -> Vec<Claimable> {
    let totals = state.totals();
    let of_node = state.deals_of(&account).into_iter().filter(|(_, deal)| deal.terms.node == *node);
    of_node.filter_map(|(id, deal)| claimable(id, deal, &totals, context.genesis.period_s)).collect()
}

fn put_deal(state: &mut Draft<'_>, id: DealId, deal: Deal) {
    state.put(Key::Deal(id), Entry::Deal(Box::new(deal)));
}

fn put_prover(state: &mut Draft<'_>, node: PublicKey, prover: Prover) {
    state.put(Key::Prover(node), Entry::Prover(prover));
}
