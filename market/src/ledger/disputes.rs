//! The rules of disputes about jobs. See [`crate::dispute`] for what they are for.

use super::{Rules, give, put_account};
use crate::amount::Amount;
use crate::deal::{Deal, DealId};
use crate::dispute::{
    DISPUTE_BOND, DISPUTES_MAX, Decision, Dispute, DisputeError, Outcome, Stage, VERIFIER_FEE, fees_of,
    is_disputable,
};
use crate::grant::Scope;
use crate::job::{JobId, JobReceipt, Order};
use crate::keys::PublicKey;
use crate::signed::SignedBytes;
use crate::state::{Draft, Entry, Key};
use crate::tx::{Event, Refused};

impl Rules<'_> {
    pub(super) fn dispute(
        &self,
        state: &mut Draft<'_>,
        order: &SignedBytes,
        receipt: &SignedBytes,
        finding: [u8; 32],
    ) -> Result<Event, Refused> {
        let network = self.context.network;
        let order = order.clone().check::<Order>(network).map_err(DisputeError::OrderSignature)?;
        let receipt = receipt.clone().check::<JobReceipt>(network).map_err(DisputeError::ReceiptSignature)?;
        let (id, job) = (order.value().v1().deal, order.value().job_id());
        let deal = state.deal(&id).cloned().ok_or(Refused::NoSuchDeal)?;
        let client = deal.terms.client;
        if self.delegate.account != client {
            return Err(Refused::NotAParty);
        }
        if client == deal.terms.provider {
            return Err(Refused::OwnDeal);
        }
        if !deal.signers.contains(&self.signer) {
            return Err(DisputeError::Signer.into());
        }
        let (time_s, tick) = (self.context.time_s, state.totals().ticks);
        if !is_disputable(&deal, tick) {
            return Err(Refused::Closing);
        }
        let dispute = Dispute::of(&order, &receipt, finding, &deal, (time_s, tick))?;
        if deal.collateral == Amount::ZERO {
            return Err(Refused::NoCollateral);
        }
        if state.dispute(&job).is_some() {
            return Err(DisputeError::Disputed { job }.into());
        }
        let known = state.disputes_of(&id);
        let is_forgotten = |(_, known): &&(JobId, &Dispute)| known.can_be_forgotten(time_s);
        let forgotten: Vec<JobId> = known.iter().filter(is_forgotten).map(|(job, _)| *job).collect();
        if known.len() - forgotten.len() >= DISPUTES_MAX {
            return Err(DisputeError::TooMany.into());
        }
        check_verifiers(state, &deal, &dispute)?;
        let (account, delegate) = self.spend(state, DISPUTE_BOND)?;
        put_account(state, client, account);
        state.put(Key::Delegate(self.signer), Entry::Delegate(delegate));
        forgotten.into_iter().for_each(|job| state.remove(Key::Dispute(job)));
        put_dispute(state, job, dispute);
        Ok(Event::Disputed { deal: id, job })
    }

    pub(super) fn commit(&self, state: &mut Draft<'_>, job: JobId, hash: [u8; 32]) -> Result<Event, Refused> {
        self.needs(Scope::Provide)?;
        let mut dispute = known(state, job)?;
        dispute.commit(&self.signer, hash, state.totals().ticks)?;
        put_dispute(state, job, dispute);
        Ok(Event::Committed { job, verifier: self.signer })
    }

    /// The last one that can come decides.
    pub(super) fn reveal(
        &self,
        state: &mut Draft<'_>,
        job: JobId,
        found: Option<[u8; 32]>,
        nonce: &[u8; 32],
    ) -> Result<Event, Refused> {
        self.needs(Scope::Provide)?;
        let mut dispute = known(state, job)?;
        let tick = state.totals().ticks;
        dispute.reveal(job, &self.signer, found, nonce, tick)?;
        if dispute.stage(tick) == Stage::Due {
            return self.end(state, job, dispute);
        }
        put_dispute(state, job, dispute);
        Ok(Event::Revealed { job, verifier: self.signer, found })
    }

    pub(super) fn decide(&self, state: &mut Draft<'_>, job: JobId) -> Result<Event, Refused> {
        let dispute = known(state, job)?;
        match dispute.stage(state.totals().ticks) {
            Stage::Due => self.end(state, job, dispute),
            Stage::Decided => Err(DisputeError::Decided.into()),
            Stage::Committing | Stage::Revealing => {
                Err(DisputeError::Undecided { until_tick: dispute.reveal_until_tick() }.into())
            }
        }
    }

    /// Pays out what lies in a dispute that is due, and what of the deal's collateral is lost by it.
    fn end(&self, state: &mut Draft<'_>, job: JobId, mut dispute: Dispute) -> Result<Event, Refused> {
        let (id, tick) = (dispute.deal, state.totals().ticks);
        // A deal with an open dispute is not settled.
        let mut deal = state.deal(&id).cloned().ok_or(Refused::NoSuchDeal)?;
        self.before_change(state, id, &mut deal);
        let award = dispute.award(deal.collateral);
        let (client, provider) = (deal.terms.client, deal.terms.provider);
        if let Outcome::Wrong { penalty, burned, .. } = award.outcome {
            deal.collateral = deal.collateral.saturating_sub(penalty);
            let mut totals = state.totals();
            totals.burned = totals.burned.checked_add(burned).expect("no more than was issued");
            state.put(Key::Totals, Entry::Totals(totals));
        }
        state.put(Key::Deal(id), Entry::Deal(Box::new(deal)));
        for verifier in &award.paid {
            // Nor does a node's account ever change.
            let account = state.delegate(verifier).expect("nothing unregisters").account;
            give(state, account, VERIFIER_FEE);
        }
        give(state, client, award.to_client);
        give(state, provider, award.to_provider);
        let (outcome, fees) = (award.outcome, fees_of(award.paid.len()));
        dispute.bond = Amount::ZERO;
        dispute.decision = Some(Decision { tick, outcome, fees });
        put_dispute(state, job, dispute);
        Ok(Event::Decided { deal: id, job, outcome, fees })
    }
}

/// Has the ledger forget what was disputed of a deal that is settled.
pub(super) fn forget(state: &mut Draft<'_>, id: &DealId) -> Result<(), Refused> {
    let known = state.disputes_of(id);
    if let Some((job, _)) = known.iter().find(|(_, dispute)| dispute.is_open()) {
        return Err(DisputeError::Open { job: *job }.into());
    }
    let jobs: Vec<JobId> = known.into_iter().map(|(job, _)| job).collect();
    jobs.into_iter().for_each(|job| state.remove(Key::Dispute(job)));
    Ok(())
}

/// Verifiers have to be registered, since the ledger pays accounts; none judges a case of its own account, and none has two votes.
fn check_verifiers(state: &Draft<'_>, deal: &Deal, dispute: &Dispute) -> Result<(), DisputeError> {
    let mut accounts: Vec<PublicKey> = Vec::with_capacity(dispute.seats.len());
    for verifier in dispute.seats.iter().map(|seat| seat.node) {
        let account = state.delegate(&verifier).ok_or(DisputeError::Unregistered { verifier })?.account;
        if [deal.terms.client, deal.terms.provider].contains(&account) {
            return Err(DisputeError::OwnCase { verifier });
        }
        if accounts.contains(&account) {
            return Err(DisputeError::SameAccount { verifier });
        }
        accounts.push(account);
    }
    Ok(())
}

fn known(state: &Draft<'_>, job: JobId) -> Result<Dispute, DisputeError> {
    state.dispute(&job).cloned().ok_or(DisputeError::NoSuchDispute)
}

fn put_dispute(state: &mut Draft<'_>, job: JobId, dispute: Dispute) {
    state.put(Key::Dispute(job), Entry::Dispute(Box::new(dispute)));
}
