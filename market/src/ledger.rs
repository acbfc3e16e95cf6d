//! The ledger's rules: what each transaction does, and when it is refused.
//!
//! The ledger is a referee, not a bank. It holds escrow and collateral, takes the newest promises that the parties signed, and pays what they
//! promise; what is stored where, and whether it was, is between the parties.
//!
//! **Invariants.** A refused transaction changes nothing: each rule checks everything before it writes anything. Money is conserved. What a
//! voucher promises is paid once, whatever is submitted in whichever order. Amounts never go below zero.
//!
//! Each rule reads from top to bottom: who signs, what is there, what must hold, what changes.

mod claims;
mod disputes;

use crate::amount::{Amount, SUPPLY_MAX};
use crate::beacon::Beacon;
use crate::claim::Claimable;
use crate::deal::{Deal, DealId, SIGNERS_MAX, Status, Terms};
use crate::genesis::{Genesis, GenesisV1};
use crate::grant::{Grant, Scope};
use crate::head::{AnchoredHead, FullHead, Head};
use crate::keys::PublicKey;
use crate::signed::{NetworkId, Signed, SignedBytes};
use crate::state::{Account, BEACONS_KEPT, Delegate, Draft, Entry, Key, State};
use crate::tx::{Action, Event, Refused, Tx};
use crate::voucher::{Known, Voucher};

/// What the rules know beside the state: the market, and the time of the block. Rules that change would be chosen here, by height.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// What the market is.
    pub genesis: &'a GenesisV1,
    /// The network, which every signature names.
    pub network: NetworkId,
    /// Height of the block under way.
    pub height: u64,
    /// Its unix time in seconds.
    pub time_s: u64,
    /// The period that this time lies in.
    pub period: u64,
}

impl<'a> Context<'a> {
    /// The context of the block at `height` and `time_s`.
    pub fn new(genesis: &'a Genesis, network: NetworkId, height: u64, time_s: u64) -> Self {
        Self { genesis: genesis.v1(), network, height, time_s, period: genesis.period_at(time_s) }
    }
}

/// Counts a period in which there is a block, when a block begins: a tick. `beacon` is the period's. One whose first block comes in its last quarter
/// is no tick.
pub fn begin_block(state: &mut Draft<'_>, context: &Context<'_>, beacon: Beacon) {
    let mut totals = state.totals();
    let into_period_s =
        context.time_s.saturating_sub(context.genesis.started_s) % u64::from(context.genesis.period_s);
    // Too late for anybody to claim in it; the next period's first block counts both.
    let is_late = 4 * into_period_s > 3 * u64::from(context.genesis.period_s);
    if totals.ticks == 0 || context.period > totals.period && !is_late {
        totals.previous_period = if totals.ticks == 0 { context.period } else { totals.period };
        totals.ticks += 1;
        totals.period = context.period;
        totals.beacons.push(beacon);
        if totals.beacons.len() > BEACONS_KEPT {
            totals.beacons.remove(0);
        }
        state.put(Key::Totals, Entry::Totals(totals));
    }
}

/// Carries out a transaction.
///
/// # Errors
/// [`Refused`]; nothing has changed then.
pub fn apply(state: &mut Draft<'_>, context: &Context<'_>, tx: &SignedBytes) -> Result<Event, Refused> {
    let tx = tx.clone().check::<Tx>(context.network)?;
    let Tx::V1 { number, action } = tx.value();
    let signer = tx.signer();
    if let Action::Register { grant } = action {
        return register(state, context, signer, *number, grant);
    }
    let delegate = state.delegate(&signer).cloned().ok_or(Refused::UnknownSigner)?;
    check_number(&delegate, *number)?;
    if context.time_s >= delegate.expires_s {
        return Err(Refused::Expired);
    }
    let rules = Rules { context, signer, delegate: &delegate };
    let event = match action {
        Action::Register { .. } => unreachable!("handled above"),
        Action::Fund { account, amount } => rules.fund(state, *account, *amount),
        Action::Open { terms, escrow } => rules.open(state, terms, *escrow),
        Action::TopUp { deal, amount } => rules.top_up(state, *deal, *amount),
        Action::Anchor { head } => rules.anchor(state, head),
        Action::Redeem { voucher } => rules.redeem(state, voucher),
        Action::Close { deal, head } => rules.close(state, *deal, head.as_ref()),
        Action::Settle { deal } => rules.settle(state, *deal),
        Action::Pledge { deal, amount } => rules.pledge(state, *deal, *amount),
        Action::StartClaims { deal } => rules.start_claims(state, *deal),
        Action::EndClaims { deal } => rules.end_claims(state, *deal),
        Action::Claim { tick, openings } => rules.claim(state, *tick, openings),
        Action::Lapse { node } => rules.lapse(state, node),
        Action::Challenge { deal } => rules.challenge(state, *deal),
        Action::Answer { deal, challenger, openings } => rules.answer(state, *deal, *challenger, openings),
        Action::Forfeit { deal, challenger } => rules.forfeit(state, *deal, *challenger),
        Action::Dispute { order, receipt, finding } => rules.dispute(state, order, receipt, *finding),
        Action::Commit { job, hash } => rules.commit(state, *job, *hash),
        Action::Reveal { job, found, nonce } => rules.reveal(state, *job, *found, nonce),
        Action::Decide { job } => rules.decide(state, *job),
    }?;
    // Rules that spend have written the delegate anew.
    let mut delegate = state.delegate(&signer).cloned().expect("nothing unregisters");
    delegate.number = *number;
    state.put(Key::Delegate(signer), Entry::Delegate(delegate));
    Ok(event)
}

/// What `node` can claim in the running tick, in order of deal id: what [`draws`](crate::claim::draws) draws among. Periods have `period_s` seconds.
pub fn claimables(state: &State, period_s: u32, node: &PublicKey) -> Vec<Claimable> {
    claims::claimables(&Draft::new(state), period_s, node)
}

fn check_number(delegate: &Delegate, number: u64) -> Result<(), Refused> {
    let expected = delegate.number + 1;
    if number == expected { Ok(()) } else { Err(Refused::Number { expected, got: number }) }
}

/// A node key begins to act for an account, or what it may do changes. The first time, the node itself signs; later any node of the account.
fn register(
    state: &mut Draft<'_>,
    context: &Context<'_>,
    signer: PublicKey,
    number: u64,
    grant: &SignedBytes,
) -> Result<Event, Refused> {
    let grant = grant.clone().check::<Grant>(context.network).map_err(|e| Refused::Grant(e.to_string()))?;
    let account = grant.signer();
    let Grant::V1 { delegate: node, scopes, spend_cap, serial, expires_s } = grant.value().clone();
    if scopes.windows(2).any(|pair| pair[0] >= pair[1]) || spend_cap > SUPPLY_MAX {
        return Err(Refused::Grant("its scopes are out of order, or its cap is out of bounds".into()));
    }
    let by = state.delegate(&signer).cloned();
    match &by {
        Some(by) if by.account != account => return Err(Refused::OtherAccount),
        Some(by) => check_number(by, number)?,
        None if number != 1 => return Err(Refused::Number { expected: 1, got: number }),
        None => {}
    }
    let known = state.delegate(&node).cloned();
    // Only the node itself can begin: else anybody could claim a key that they saw somewhere.
    if known.is_none() && signer != node {
        return Err(Refused::UnknownSigner);
    }
    let (spent, last_number) = match &known {
        Some(known) if known.account != account => return Err(Refused::OtherAccount),
        Some(known) if known.serial >= serial => return Err(Refused::OldGrant),
        Some(known) => (known.spent, known.number),
        None => (Amount::ZERO, 0),
    };
    let delegate = Delegate { account, scopes, spend_cap, spent, expires_s, serial, number: last_number };
    state.put(Key::Delegate(node), Entry::Delegate(delegate));
    let mut by = state.delegate(&signer).cloned().ok_or(Refused::UnknownSigner)?;
    by.number = number;
    state.put(Key::Delegate(signer), Entry::Delegate(by));
    Ok(Event::Registered { delegate: node, account })
}

/// One transaction's rules: its block, its signer and what the signer may do.
struct Rules<'a> {
    context: &'a Context<'a>,
    signer: PublicKey,
    delegate: &'a Delegate,
}

impl Rules<'_> {
    fn needs(&self, scope: Scope) -> Result<(), Refused> {
        if self.delegate.scopes.contains(&scope) { Ok(()) } else { Err(Refused::Scope) }
    }

    fn fund(&self, state: &mut Draft<'_>, account: PublicKey, amount: Amount) -> Result<Event, Refused> {
        if self.signer != self.context.genesis.market {
            return Err(Refused::NotTheMarket);
        }
        if amount == Amount::ZERO {
            return Err(Refused::Nothing);
        }
        let mut totals = state.totals();
        totals.issued = totals.issued.checked_add(amount).ok_or(Refused::Supply)?;
        let mut funded = state.account(&account);
        funded.free = funded.free.checked_add(amount).ok_or(Refused::Supply)?;
        state.put(Key::Totals, Entry::Totals(totals));
        put_account(state, account, funded);
        Ok(Event::Funded { account, amount })
    }

    /// The signer's account and grant after `amount` was put into a deal.
    fn spend(&self, state: &Draft<'_>, amount: Amount) -> Result<(Account, Delegate), Refused> {
        self.needs(Scope::Spend)?;
        let mut delegate = self.delegate.clone();
        let left = delegate.spend_cap.saturating_sub(delegate.spent);
        delegate.spent = delegate
            .spent
            .checked_add(amount)
            .filter(|spent| *spent <= delegate.spend_cap)
            .ok_or(Refused::SpendCap { left })?;
        let mut account = state.account(&delegate.account);
        let short = Refused::Funds { free: account.free, needed: amount };
        account.free = account.free.checked_sub(amount).ok_or(short)?;
        Ok((account, delegate))
    }

    fn open(&self, state: &mut Draft<'_>, terms: &SignedBytes, escrow: Amount) -> Result<Event, Refused> {
        let signed =
            terms.clone().check::<Terms>(self.context.network).map_err(|e| Refused::Terms(e.to_string()))?;
        let terms = signed.value().v1().clone();
        if !signed.value().is_open_at(self.context.time_s) {
            return Err(Refused::TermsExpired);
        }
        if terms.client != self.delegate.account {
            return Err(Refused::NotAParty);
        }
        let node =
            state.delegate(&terms.node).ok_or_else(|| Refused::Terms("its node is not registered".into()))?;
        let may_provide = signed.signer() == terms.node
            && node.account == terms.provider
            && node.scopes.contains(&Scope::Provide)
            && self.context.time_s < node.expires_s;
        if !may_provide {
            return Err(Refused::Terms(
                "they are not signed by a node that may provide for this account".into(),
            ));
        }
        let id = signed.value().deal_id();
        if state.deal(&id).is_some() {
            return Err(Refused::DealExists);
        }
        let (client, delegate) = self.spend(state, escrow)?;
        // A provider may be its own client; then both come out of one account.
        let mut provider =
            if terms.provider == terms.client { client } else { state.account(&terms.provider) };
        let short = Refused::Collateral { free: provider.free, needed: terms.collateral };
        provider.free = provider.free.checked_sub(terms.collateral).ok_or(short)?;
        put_account(state, terms.client, client);
        put_account(state, terms.provider, provider);
        state.put(Key::Delegate(self.signer), Entry::Delegate(delegate));
        let deal = Deal::open(terms, escrow, self.signer);
        state.put(Key::Deal(id), Entry::Deal(Box::new(deal)));
        Ok(Event::Opened { deal: id })
    }

    fn top_up(&self, state: &mut Draft<'_>, id: DealId, amount: Amount) -> Result<Event, Refused> {
        let mut deal = state.deal(&id).cloned().ok_or(Refused::NoSuchDeal)?;
        if deal.terms.client != self.delegate.account {
            return Err(Refused::NotAParty);
        }
        if amount == Amount::ZERO {
            return Err(Refused::Nothing);
        }
        if deal.status != Status::Open {
            return Err(Refused::Closing);
        }
        if !deal.signers.contains(&self.signer) {
            if deal.signers.len() >= SIGNERS_MAX {
                return Err(Refused::Signers);
            }
            deal.signers.push(self.signer);
        }
        let (client, delegate) = self.spend(state, amount)?;
        self.before_change(state, id, &mut deal);
        deal.escrow = deal.escrow.checked_add(amount).ok_or(Refused::Supply)?;
        put_account(state, deal.terms.client, client);
        state.put(Key::Delegate(self.signer), Entry::Delegate(delegate));
        state.put(Key::Deal(id), Entry::Deal(Box::new(deal)));
        Ok(Event::ToppedUp { deal: id, amount })
    }

    /// The deal that a head is for, and the head, if both sides signed it and it supersedes the newest.
    fn superseding(&self, state: &Draft<'_>, head: &FullHead) -> Result<(Deal, AnchoredHead), Refused> {
        let id = spare_proofs::encode::from_bytes::<Head>(
            &head.head.bytes,
            <Head as crate::signed::Signable>::MAX_BYTES,
        )
        .map_err(|e| Refused::HeadSignature(e.into()))?
        .v1()
        .deal;
        let deal = state.deal(&id).cloned().ok_or(Refused::NoSuchDeal)?;
        self.party(&deal)?;
        let signed = head.check(self.context.network, &deal.terms.node).map_err(Refused::HeadSignature)?;
        if !deal.signers.contains(&signed.signer()) {
            return Err(Refused::HeadSigner);
        }
        let head = AnchoredHead::of(&signed);
        head.check_supersedes(id, deal.head.as_ref())?;
        Ok((deal, head))
    }

    fn anchor(&self, state: &mut Draft<'_>, head: &FullHead) -> Result<Event, Refused> {
        let (mut deal, head) = self.superseding(state, head)?;
        let (id, seq) = (head.head.deal, head.head.seq);
        self.before_change(state, id, &mut deal);
        deal.anchor(head, state.totals().ticks);
        state.put(Key::Deal(id), Entry::Deal(Box::new(deal)));
        Ok(Event::Anchored { deal: id, seq })
    }

    fn redeem(&self, state: &mut Draft<'_>, voucher: &SignedBytes) -> Result<Event, Refused> {
        let signed: Signed<Voucher> =
            voucher.clone().check(self.context.network).map_err(Refused::VoucherSignature)?;
        let voucher = *signed.value().v1();
        let mut deal = state.deal(&voucher.deal).cloned().ok_or(Refused::NoSuchDeal)?;
        // A client would redeem little, and so void the provider's better vouchers.
        if self.delegate.account != deal.terms.provider {
            return Err(Refused::NotAParty);
        }
        self.needs(Scope::Provide)?;
        if !deal.signers.contains(&signed.signer()) {
            return Err(Refused::VoucherSigner);
        }
        if let Some(through) = voucher.paid_through.filter(|through| *through >= self.context.period) {
            return Err(Refused::VoucherEarly { through });
        }
        let known = Known { total: deal.paid, jobs: deal.jobs, through: deal.paid_through };
        voucher.check_improves(voucher.deal, deal.epoch, known)?;
        let promised = voucher.total.saturating_sub(deal.paid);
        let amount = promised.min(deal.escrow);
        if amount == Amount::ZERO {
            return Err(Refused::EscrowEmpty);
        }
        // Sums of what was issued, so they stay within bounds.
        let paid = deal.paid.checked_add(amount).ok_or(Refused::Supply)?;
        let fee = paid.share(self.context.genesis.fee_bps).saturating_sub(deal.fee);
        self.before_change(state, voucher.deal, &mut deal);
        let mut totals = state.totals();
        totals.fees = totals.fees.checked_add(fee).ok_or(Refused::Supply)?;
        totals.paid = totals.paid.checked_add(amount).ok_or(Refused::Supply)?;
        deal.escrow = deal.escrow.saturating_sub(amount);
        deal.paid = paid;
        deal.fee = deal.fee.checked_add(fee).ok_or(Refused::Supply)?;
        (deal.paid_through, deal.read_bytes) = (voucher.paid_through, voucher.read_bytes);
        deal.jobs = voucher.jobs;
        let net = amount.saturating_sub(fee);
        let mut client = state.account(&deal.terms.client);
        client.spent = client.spent.checked_add(amount).ok_or(Refused::Supply)?;
        put_account(state, deal.terms.client, client);
        let mut provider = state.account(&deal.terms.provider);
        provider.free = provider.free.checked_add(net).ok_or(Refused::Supply)?;
        provider.earned = provider.earned.checked_add(net).ok_or(Refused::Supply)?;
        put_account(state, deal.terms.provider, provider);
        state.put(Key::Totals, Entry::Totals(totals));
        state.put(Key::Deal(voucher.deal), Entry::Deal(Box::new(deal)));
        Ok(Event::Paid { deal: voucher.deal, amount, fee, short: promised.saturating_sub(amount) })
    }

    fn close(&self, state: &mut Draft<'_>, id: DealId, head: Option<&FullHead>) -> Result<Event, Refused> {
        let mut deal = state.deal(&id).cloned().ok_or(Refused::NoSuchDeal)?;
        self.party(&deal)?;
        if deal.status != Status::Open {
            return Err(Refused::Closing);
        }
        if let Some(head) = head {
            let (_, head) = self.superseding(state, head)?;
            if head.head.deal != id {
                return Err(Refused::NotAParty);
            }
            self.before_change(state, id, &mut deal);
            deal.anchor(head, state.totals().ticks);
        }
        deal.status = Status::Closing { since_tick: state.totals().ticks };
        state.put(Key::Deal(id), Entry::Deal(Box::new(deal)));
        Ok(Event::Closing { deal: id })
    }

    fn settle(&self, state: &mut Draft<'_>, id: DealId) -> Result<Event, Refused> {
        let deal = state.deal(&id).cloned().ok_or(Refused::NoSuchDeal)?;
        if !deal.can_be_settled(state.totals().ticks, self.context.time_s) {
            return Err(Refused::NotDue);
        }
        disputes::forget(state, &id)?;
        // What is to be burned goes first.
        let deal = if deal.claiming.is_some() {
            claims::fall_silent(state, self.context.genesis.period_s, &deal.terms.node);
            state.deal(&id).cloned().ok_or(Refused::NoSuchDeal)?
        } else {
            deal
        };
        give(state, deal.terms.client, deal.escrow);
        give(state, deal.terms.provider, deal.collateral);
        state.remove(Key::Deal(id));
        Ok(Event::Closed { deal: id, returned: deal.escrow })
    }

    /// The signer has to act for one of the deal's parties.
    fn party(&self, deal: &Deal) -> Result<(), Refused> {
        let is_client =
            self.delegate.account == deal.terms.client && self.delegate.scopes.contains(&Scope::Spend);
        let is_provider =
            self.delegate.account == deal.terms.provider && self.delegate.scopes.contains(&Scope::Provide);
        if is_client || is_provider { Ok(()) } else { Err(Refused::NotAParty) }
    }
}

/// Gives money that was in the ledger already.
fn give(state: &mut Draft<'_>, to: PublicKey, amount: Amount) {
    let mut account = state.account(&to);
    account.free = account.free.checked_add(amount).expect("no more than was issued");
    put_account(state, to, account);
}

fn put_account(state: &mut Draft<'_>, key: PublicKey, account: Account) {
    state.put(Key::Account(key), Entry::Account(account));
}
