//! Showing what is held, to the ledger and to challengers, where no voucher speaks for it.
//!
//! A head on the ledger can be asked about for as long as it is the newest there, or was before this tick. So the set under it is kept beside the
//! newest one, and what is in it is not deleted, whatever later heads removed.
//!
//! ```text
//! unpaid        no voucher for a period that is over -> Redeem, Anchor, Pledge, StartClaims
//! each tick     draws of all deals that are claimed for -> openings from disk -> Claim
//! challenged    draws of one deal -> openings from disk -> Answer
//! ```

use std::collections::HashMap;
use std::ops::ControlFlow;

use spare_market::amount::{Amount, StoragePrice};
use spare_market::block::Ledger;
use spare_market::claim::{CLAIM_DRAWS, draw_share, draws};
use spare_market::deal::{Deal, DealId};
use spare_market::head::AnchoredHead;
use spare_market::keys::PublicKey;
use spare_market::ledger::claimables;
use spare_market::state::Totals;
use spare_market::tx::Action;
use spare_proofs::draw::positions;
use spare_proofs::opening::SetOpening;
use spare_proofs::sumtree::{Member, SumTree};
use spare_proofs::tree::{GROUP_BYTES, LEAF_BYTES, Root};

use super::{EarnError, Earner, Record, internal};
use crate::frames::{Refusal, RefusalCode};
use crate::meta::{Batch, Meta, MetaError, Table};
use crate::sets;
use crate::shards::ShardError;
use crate::unix_now_s;

/// Draws whose burning the collateral is filled up to when claims begin, as far as there is money.
const PLEDGED_SHARES: u128 = 2 * CLAIM_DRAWS as u128;
/// Times in a period that it is tried to start claims: each step of it waits for the one before to be on the ledger, half of these times.
const CLAIM_TRIES_MAX: u32 = 8;
/// Most sets of a deal's heads that are kept beside the newest one's.
const ANCHORED_MAX: usize = 6;
/// Periods in a row for which a voucher has to come in time before claims end: who signs now and then is claimed from on. Twice as many each time
/// that claims had to begin again, [`KEPT_UP_DOUBLINGS_MAX`] times at most.
const KEPT_UP_PERIODS: u64 = 3;
const KEPT_UP_DOUBLINGS_MAX: u32 = 8;
/// Where the last period in which this node ran is noted.
const RUNNING_KEY: &[u8] = b"ran in period";
/// Where the periods are noted in which it did not.
const ABSENT_KEY: &[u8] = b"absent periods";
/// Most absent periods that are remembered.
const ABSENT_MAX: usize = 64;

/// Why something drawn cannot be shown.
#[derive(Debug, thiserror::Error)]
pub(super) enum ShowError {
    /// The set of that head is not kept here.
    #[error("the set of head {0} is not kept here")]
    Set(u64),
    /// A shard is gone, or its bytes are.
    #[error("shard {root} cannot be shown: {error}")]
    Shard {
        /// The shard.
        root: Root,
        /// Why.
        error: ShardError,
    },
    /// The records failed.
    #[error(transparent)]
    Meta(#[from] MetaError),
}

fn anchored_key(deal: DealId, root: &Root, seq: u64) -> Vec<u8> {
    [&deal.0[..], root.as_bytes(), &seq.to_be_bytes()].concat()
}

/// The set of a deal's head that is on the ledger, if it is kept.
fn anchored_set(meta: &Meta, deal: DealId, seq: u64) -> Result<Vec<Member>, MetaError> {
    let mut members = Vec::new();
    meta.scan::<u64>(Table::Anchored, &deal.0, |rest, bytes| {
        if let Some((root, of)) = rest.split_first_chunk::<32>()
            && of == seq.to_be_bytes()
        {
            members.push(Member { root: Root::from_bytes(*root), bytes });
        }
        ControlFlow::Continue(())
    })?;
    Ok(members)
}

/// Whether the ledger can be asked about what a deal's provider holds.
fn is_exposed(deal: &Deal) -> bool {
    deal.collateral > Amount::ZERO || deal.claiming.is_some() || deal.challenges > 0
}

/// Whether payment for something that is stored is claimed on the ledger.
fn is_claimed_for(deal: &Deal) -> bool {
    let is_on = deal.claiming.is_some_and(|claiming| claiming.is_on());
    is_on && deal.head.is_some_and(|head| head.head.bytes > 0)
}

impl Record {
    /// Notes that a voucher for storage through `through` came in period `now`.
    pub(super) fn note_kept_up(&mut self, through: Option<u64>, now: u64) {
        if through != now.checked_sub(1) || self.kept_up.0 == now {
            return;
        }
        let in_a_row = if self.kept_up.0 + 1 == now { self.kept_up.1 + 1 } else { 1 };
        self.kept_up = (now, in_a_row);
    }

    /// Whether vouchers come in time again, so that claims can end.
    pub(super) fn keeps_up(&self) -> bool {
        let begun_again = self.tab.epoch().saturating_sub(1).min(KEPT_UP_DOUBLINGS_MAX);
        self.kept_up.1 >= KEPT_UP_PERIODS << begun_again && !self.tab.has_doubts(self.kept_up.0)
    }

    /// Goes on from what the ledger settled by claims. Returns whether that changed anything.
    pub(super) fn follow(&mut self, deal: &Deal) -> bool {
        let before = self.tab.clone();
        self.tab.follow(deal);
        if self.tab.epoch() != before.epoch() {
            // Whoever paid well before has to begin anew.
            self.kept_up = (0, 0);
        }
        if self.tab.promised().is_none() {
            self.voucher = None;
        }
        if self.tab != before {
            self.ahead.clear();
        }
        self.tab != before
    }
}

impl Earner {
    /// Whether a shard is in a set that the ledger can ask about.
    pub(super) fn is_anchored(&self, owner: &PublicKey, root: &Root) -> Result<bool, MetaError> {
        for (id, _) in self.of_owner(owner) {
            let mut found = false;
            let prefix = [&id.0[..], root.as_bytes()].concat();
            self.meta.scan::<u64>(Table::Anchored, &prefix, |_, _| {
                found = true;
                ControlFlow::Break(())
            })?;
            if found {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Keeps the set of the newest head before another supersedes it, if the ledger has it or may come to have it: either side can put it there.
    ///
    /// # Errors
    /// The refusal to send, while the ledger has to catch up with too many.
    pub(super) fn keep_superseded(
        &self,
        id: DealId,
        deal: &Deal,
        record: &mut Record,
        batch: &mut Batch,
    ) -> Result<(), Refusal> {
        if !is_exposed(deal) || record.tab.bytes() == 0 {
            return Ok(());
        }
        if record.anchored.len() >= ANCHORED_MAX {
            self.wake.notify_one();
            let why = "the ledger has to catch up with this deal's heads first; try again in a moment";
            return Err(Refusal::new(RefusalCode::Busy, why));
        }
        self.keep_set(id, record, batch).map_err(internal)
    }

    fn keep_set(&self, id: DealId, record: &mut Record, batch: &mut Batch) -> Result<(), MetaError> {
        let Some(seq) = record.tab.head().map(|head| head.head.seq) else { return Ok(()) };
        if !record.anchored.contains(&seq) {
            for member in sets::all(&self.meta, id)? {
                batch.put(Table::Anchored, &anchored_key(id, &member.root, seq), &member.bytes);
            }
            record.anchored.push(seq);
        }
        Ok(())
    }

    /// Keeps the set of the newest head, if that is the ledger's.
    fn keep_anchored(
        &self,
        id: DealId,
        deal: &Deal,
        record: &mut Record,
        batch: &mut Batch,
    ) -> Result<(), MetaError> {
        let is_anchored =
            record.tab.head().is_some_and(|head| deal.head.is_some_and(|on| on.hash == head.hash));
        if is_anchored { self.keep_set(id, record, batch) } else { Ok(()) }
    }

    /// Forgets the sets of heads that nobody can ask about any more; what is in no other can be deleted then.
    pub(super) fn forget_anchored(
        &self,
        id: DealId,
        kept: &[u64],
        record: &mut Record,
        batch: &mut Batch,
    ) -> Result<(), MetaError> {
        if record.anchored.iter().all(|seq| kept.contains(seq)) {
            return Ok(());
        }
        let mut keys = Vec::new();
        self.meta.scan::<u64>(Table::Anchored, &id.0, |rest, _| {
            let seq = rest.split_first_chunk::<32>().and_then(|(_, seq)| seq.try_into().ok());
            if seq.is_none_or(|seq| !kept.contains(&u64::from_be_bytes(seq))) {
                keys.push([&id.0[..], rest].concat());
            }
            ControlFlow::Continue(())
        })?;
        for key in keys {
            batch.delete(Table::Anchored, &key);
        }
        record.anchored.retain(|seq| kept.contains(seq));
        Ok(())
    }

    /// Brings what is kept for the ledger's questions up to date. Returns whether the newest head is to be put on the ledger.
    pub(super) fn look_at_anchored(
        &self,
        id: DealId,
        deal: &Deal,
        record: &mut Record,
    ) -> Result<bool, EarnError> {
        let mut next = record.clone();
        let mut batch = Batch::default();
        self.keep_anchored(id, deal, &mut next, &mut batch)?;
        let challenged: Vec<u64> = self
            .chain
            .view(|l| l.state().challenges_of(id).map(|(_, challenge)| challenge.head.head.seq).collect())?;
        let tick = self.chain.view(|l| l.state().totals().ticks)?;
        let on_ledger = [deal.head, deal.head_before(tick)].into_iter().flatten().map(|head| head.head.seq);
        let newest = deal.head.map_or(0, |head| head.head.seq);
        // What is newer than the ledger's may be put there yet.
        let coming = record.anchored.iter().copied().filter(|seq| *seq > newest && is_exposed(deal));
        let kept: Vec<u64> = on_ledger.chain(challenged).chain(coming).collect();
        self.forget_anchored(id, &kept, &mut next, &mut batch)?;
        if next != *record {
            self.meta.commit(batch.put(Table::Deals, &super::record_key(id), &next))?;
            *record = next;
        }
        let is_unknown = deal.head.is_some_and(|head| !record.anchored.contains(&head.head.seq));
        let is_claimed = deal.claiming.is_some_and(|claiming| claiming.is_on());
        let has_many = record.anchored.len() > ANCHORED_MAX / 2;
        let is_called_for = is_unknown || record.is_releasing || is_claimed || has_many;
        Ok(is_exposed(deal) && record.tab.is_ahead_of(deal) && is_called_for)
    }

    /// Notes that this node runs, and in which periods it did not.
    pub(super) fn note_running(&self) -> Result<(), MetaError> {
        let now = self.period();
        let last: Option<u64> = self.meta.get(Table::State, RUNNING_KEY)?;
        if last == Some(now) {
            return Ok(());
        }
        let mut batch = Batch::default();
        if let Some(last) = last.filter(|last| *last + 1 < now) {
            let mut absent: Vec<u64> = self.meta.get(Table::State, ABSENT_KEY)?.unwrap_or_default();
            absent.extend((last + 1..now).rev().take(ABSENT_MAX));
            absent.sort_unstable();
            absent.drain(..absent.len().saturating_sub(ABSENT_MAX));
            batch.put(Table::State, ABSENT_KEY, &absent);
        }
        self.meta.note(batch.put(Table::State, RUNNING_KEY, &now))
    }

    /// How many of the periods after `after`, through `through`, this node knows that it did not run in.
    pub(super) fn absent_periods(&self, after: Option<u64>, through: Option<u64>) -> u64 {
        let absent: Vec<u64> = self.meta.get(Table::State, ABSENT_KEY).ok().flatten().unwrap_or_default();
        absent.iter().filter(|period| Some(**period) > after && Some(**period) <= through).count() as u64
    }

    /// The next step towards having the ledger pay for a deal whose client gives no vouchers, or some that leave out too much: once a period that is
    /// over stays unpaid until the next is half over, or there are doubts. Each step waits for the one before to be on the ledger.
    pub(super) fn start_claims(
        &self,
        id: DealId,
        deal: &Deal,
        record: &mut Record,
    ) -> Result<Vec<Action>, EarnError> {
        let now = self.period();
        let unpaid = record.tab.unpaid_since().map_or(0, |since| now.saturating_sub(since));
        let period_s = u64::from(self.period_s());
        let into_period_s = unix_now_s().saturating_sub(self.genesis.v1().started_s) % period_s;
        let is_on = deal.claiming.is_some_and(|claiming| claiming.is_on());
        if record.tried_claims.0 != now {
            record.tried_claims = (now, 0);
        }
        let is_due = !is_on
            && record.tab.bytes() > 0
            && record.terms.price > StoragePrice(0)
            && deal.escrow > Amount::ZERO
            && self.claim_after_periods > 0
            && (unpaid >= self.claim_after_periods && 2 * into_period_s >= period_s
                || record.tab.has_doubts(now))
            && record.tried_claims.1 < CLAIM_TRIES_MAX;
        // While claims go on, heads may make them dearer than what is pledged.
        if !is_due {
            return if is_on { self.pledges(id, deal, record) } else { Ok(Vec::new()) };
        }
        record.tried_claims.1 += 1;
        let rate = record.tab.rate().floor();
        let mut actions = self.pledges(id, deal, record)?;
        if rate == Amount::ZERO || (actions.is_empty() && deal.collateral < draw_share(rate)) {
            tracing::info!(deal = %id, needed = %draw_share(rate), "no voucher came, and there is no money to pledge, which claiming takes");
            return Ok(Vec::new());
        }
        // Claims void what is promised and not paid, so that is redeemed before; they are under the head that the ledger has.
        if record.tab.promised().is_some_and(|v| v.total > deal.paid) {
            actions.extend(record.voucher.clone().map(|voucher| Action::Redeem { voucher }));
        }
        if record.tab.is_ahead_of(deal) {
            actions.extend(record.head.clone().map(|head| Action::Anchor { head }));
        }
        // A client that signs another little thing each time does not put it off.
        if actions.is_empty() || record.tried_claims.1 > CLAIM_TRIES_MAX / 2 {
            tracing::info!(deal = %id, unpaid_periods = unpaid, "no voucher came: claims on the ledger begin");
            actions.push(Action::StartClaims { deal: id });
        }
        Ok(actions)
    }

    /// What is to be pledged so that a deal can be claimed for, as far as there is money.
    fn pledges(&self, id: DealId, deal: &Deal, record: &Record) -> Result<Vec<Action>, EarnError> {
        let share = draw_share(record.tab.rate().floor());
        let wanted = Amount(share.0.saturating_mul(PLEDGED_SHARES)).saturating_sub(deal.collateral);
        // Not for every small change.
        if wanted.0 <= share.0.saturating_mul(PLEDGED_SHARES) / 2 {
            return Ok(Vec::new());
        }
        let free = self.chain.view(|l| l.state().account(&self.account).free)?;
        let amount = wanted.min(free);
        Ok((amount > Amount::ZERO).then_some(Action::Pledge { deal: id, amount }).into_iter().collect())
    }

    /// This tick's claim, if there is one to be made.
    pub(super) fn claim(&self) -> Result<Option<Action>, EarnError> {
        let node = self.node_key.public();
        let (totals, claimables) = self.chain.view(|l: &Ledger| {
            let state = l.state();
            let totals = state.totals();
            let is_due = state.prover(&node).is_some_and(|prover| prover.last_tick < totals.ticks);
            let claimables = if is_due { claimables(state, self.period_s(), &node) } else { Vec::new() };
            (totals, claimables)
        })?;
        if claimables.is_empty() || !self.is_worth_trying(&totals) {
            return Ok(None);
        }
        let mut shower = Shower::new(self);
        let shown: Result<Vec<SetOpening>, ShowError> = draws(&totals.beacon(), &node, &claimables)
            .into_iter()
            .map(|drawn| {
                let of = &claimables[drawn.index];
                shower.show(of.deal, &of.head, drawn.position)
            })
            .collect();
        match shown {
            Ok(openings) => Ok(Some(Action::Claim { tick: totals.ticks, openings })),
            Err(error) => {
                tracing::error!(%error, deals = claimables.len(), "this period's claim cannot be shown; none of its deals is paid for it");
                Ok(None)
            }
        }
    }

    /// Whether this tick's claim was not tried a moment ago: what failed may work later, and reading costs the disk.
    fn is_worth_trying(&self, totals: &Totals) -> bool {
        let mut tried = self.claim_tried.lock().expect("no holder panics");
        let again_after =
            std::time::Duration::from_secs(u64::from(self.period_s()) / 4).max(super::BLOCK_MOMENT);
        let is_new = tried.is_none_or(|(tick, at)| tick != totals.ticks || at.elapsed() >= again_after);
        if is_new {
            *tried = Some((totals.ticks, std::time::Instant::now()));
        }
        is_new
    }

    /// Answers to the open challenges of a deal.
    pub(super) fn answers(&self, id: DealId, deal: &Deal) -> Result<Vec<Action>, EarnError> {
        if deal.challenges == 0 {
            return Ok(Vec::new());
        }
        let (totals, challenges) = self.chain.view(|l| {
            let challenges: Vec<_> =
                l.state().challenges_of(id).map(|(by, challenge)| (by, *challenge)).collect();
            (l.state().totals(), challenges)
        })?;
        let mut answers = Vec::new();
        let mut shower = Shower::new(self);
        for (challenger, challenge) in challenges {
            let positions = match challenge.is_superseded(deal) {
                true => Vec::new(),
                // Nobody settles a deal before this is dealt with.
                false if challenge.is_over(totals.ticks) => {
                    answers.push(Action::Forfeit { deal: id, challenger });
                    continue;
                }
                false => match challenge.positions(id, &challenger, &totals) {
                    Some(positions) => positions,
                    None => continue,
                },
            };
            let shown: Result<Vec<_>, _> =
                positions.into_iter().map(|position| shower.show(id, &challenge.head, position)).collect();
            match shown {
                Ok(openings) => answers.push(Action::Answer { deal: id, challenger, openings }),
                Err(error) => {
                    let left = (challenge.made_tick + spare_market::claim::CHALLENGE_TICKS)
                        .saturating_sub(totals.ticks);
                    tracing::error!(deal = %id, %error, ticks_left = left, "a challenge cannot be answered; it will cost collateral");
                }
            }
        }
        Ok(answers)
    }

    /// Openings of the head that the ledger has of a deal, for anybody: bytes drawn by the asker's seed.
    ///
    /// # Errors
    /// The refusal to send.
    pub fn openings(
        &self,
        id: DealId,
        seed: [u8; 32],
        count: usize,
    ) -> Result<(u64, Vec<SetOpening>), Refusal> {
        let deal =
            self.on_ledger(id).map_err(internal)?.filter(|deal| deal.terms.node == self.node_key.public());
        let head = deal.and_then(|deal| deal.head).filter(|head| head.head.bytes > 0);
        let head = head.ok_or_else(|| super::no_deal("no such deal with a head on the ledger"))?;
        let mut shower = Shower::new(self);
        let shown: Result<Vec<_>, _> = positions(&seed, head.head.bytes, count.min(CLAIM_DRAWS))
            .into_iter()
            .map(|position| shower.show(id, &head, position))
            .collect();
        match shown {
            Ok(openings) => Ok((head.head.seq, openings)),
            Err(error) => Err(Refusal::new(RefusalCode::Unavailable, error.to_string())),
        }
    }

    /// The deals that are claimed for or challenged.
    ///
    /// # Errors
    /// When the ledger cannot be used.
    pub fn exposed(&self) -> Result<Vec<(DealId, Deal)>, crate::chain::ChainError> {
        let node = self.node_key.public();
        self.chain.view(|l| {
            let deals = l.state().deals_of(&self.account).filter(|(_, deal)| deal.terms.node == node);
            let exposed = deals.filter(|(_, deal)| is_claimed_for(deal) || deal.challenges > 0);
            exposed.map(|(id, deal)| (id, deal.clone())).collect()
        })
    }
}

/// Shows bytes of sets, and keeps what it has built of them.
struct Shower<'a> {
    earner: &'a Earner,
    sets: HashMap<(DealId, u64), (PublicKey, SumTree)>,
}

impl<'a> Shower<'a> {
    fn new(earner: &'a Earner) -> Self {
        Self { earner, sets: HashMap::new() }
    }

    fn set(&mut self, id: DealId, seq: u64) -> Result<&(PublicKey, SumTree), ShowError> {
        let key = (id, seq);
        if !self.sets.contains_key(&key) {
            let members = anchored_set(&self.earner.meta, id, seq)?;
            let tree = SumTree::new(members).map_err(|_| ShowError::Set(seq))?;
            let cell = self.earner.all().remove(&id).ok_or(ShowError::Set(seq))?;
            self.sets.insert(key, (cell.client, tree));
        }
        Ok(&self.sets[&key])
    }

    fn show(&mut self, id: DealId, head: &AnchoredHead, position: u64) -> Result<SetOpening, ShowError> {
        let seq = head.head.seq;
        let volume = self.earner.volume.clone();
        let (owner, tree) = self.set(id, seq)?;
        let member = tree.prove(position).ok_or(ShowError::Set(seq))?;
        let offset = member.verify(&tree.sum(), position).map_err(|_| ShowError::Set(seq))?;
        let root = member.member.root;
        let failed = |error| ShowError::Shard { root, error };
        let shard = volume.open_shard(owner, &root).map_err(failed)?;
        let start = offset - offset % GROUP_BYTES as u64;
        let end = (start + GROUP_BYTES as u64).min(member.member.bytes);
        let (group, _) = shard.read_groups(start..end).map_err(failed)?;
        let leaf = shard.tree().open(offset / LEAF_BYTES as u64, group.as_ref());
        let leaf = leaf.map_err(|e| failed(ShardError::Damaged(e.to_string())))?;
        Ok(SetOpening { member, leaf })
    }
}
