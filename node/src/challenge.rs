//! The challenger's work: draw a deal -> ask its provider to show bytes of it -> when it cannot, challenge it on the ledger -> collect.
//!
//! **Participants.** A *challenger* is any node with some money. It has no part in the deals that it asks about, and no power to read what is stored.
//! What it is shown are single kilobytes of ciphertext with their paths, which it checks against the head that the ledger has.
//!
//! **Goals.** Asking costs no money and few bytes, within [`limits`](crate::limits) on both sides; only who cannot show anything off the ledger is asked
//! on it, so a bond is risked where it is likely to be won. What fails is asked again, until it failed [`TRIES`] times more often than not.
//! **Non-goals.** Judging silence that comes of this node's own line; asking about deals without collateral, where nothing can be won.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};
use spare_market::amount::Amount;
use spare_market::block::Ledger;
use spare_market::claim::{
    AnswerCosts, CHALLENGE_BOND, CLAIM_DRAWS, Challenge, break_even_fault_rate, check_shown,
};
use spare_market::deal::{Deal, DealId, Status};
use spare_market::keys::PublicKey;
use spare_market::signed::Signable;
use spare_market::tx::{Action, Tx};
use spare_proofs::draw::positions;
use spare_proofs::encode::from_bytes;
use tokio::time::{sleep, timeout};

use crate::chain::{Chain, ChainError};
use crate::frames::RefusalCode;
use crate::market::{SubmitError, Wallet};
use crate::meta::{Batch, Meta, MetaError, Table};
use crate::peers::{PeerError, Peers};

/// How much more often a deal's provider fails to show what was drawn than it does before it is challenged.
const TRIES: u32 = 3;
/// How often it is looked what is to be done, at most and at least.
const LOOK_EVERY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));
/// Longest time for one deal to be shown.
const SHOWN_WITHIN: Duration = Duration::from_secs(30);
/// Periods for which a deal whose provider answered a challenge is left alone: else one that answers nothing but those would live on bonds.
const CLEARED_PERIODS: u64 = 24;
/// Newest blocks in which the end of a challenge is looked for.
const ENDED_WITHIN_BLOCKS: usize = 4096;
const KEY: &[u8] = b"challenger";

/// What a challenger has done so far.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Times that a provider was asked off the ledger.
    pub asked: u64,
    /// Times that it showed what was drawn.
    pub shown: u64,
    /// Bytes of openings received.
    pub received_bytes: u64,
    /// Challenges made on the ledger.
    pub challenged: u64,
    /// Those that were answered, which cost the bond, or half of it where the deal went over to another set meanwhile.
    pub answered: u64,
    /// Those that were not.
    pub won: u64,
    /// Bonds lost.
    pub lost: Amount,
    /// Shares of penalties received.
    pub earned: Amount,
    /// Challenges that are open, with the number of the head that each is about, and the deal's collateral when it was made.
    open: BTreeMap<DealId, (u64, Amount)>,
    /// Deals whose provider answered a challenge: until which period they are not challenged again by themselves.
    cleared: BTreeMap<DealId, u64>,
    /// Deals whose provider failed, and how much more often than not.
    suspects: BTreeMap<DealId, u32>,
}

impl Record {
    /// Notes a challenge on the ledger, once.
    fn challenged(&mut self, id: DealId, at_stake: (u64, Amount)) {
        if self.open.insert(id, at_stake).is_none() {
            self.challenged += 1;
        }
        self.suspects.remove(&id);
    }

    /// Challenges that are open.
    pub fn open(&self) -> usize {
        self.open.len()
    }

    /// Deals whose provider failed to show what was drawn, and is asked again.
    pub fn suspects(&self) -> usize {
        self.suspects.len()
    }
}

/// What a challenger may spend.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    /// Deals asked about in a period. Each is at most 70 kB.
    pub deals_per_period: u32,
    /// Challenges that are open at once, each of which has a bond at stake.
    pub open_max: usize,
}

/// Why challenging failed.
#[derive(Debug, thiserror::Error)]
pub enum ChallengeError {
    /// The ledger cannot be used.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// The records failed.
    #[error(transparent)]
    Meta(#[from] MetaError),
    /// The ledger did not take it.
    #[error(transparent)]
    Submit(#[from] SubmitError),
    /// The node is being stopped.
    #[error("the node is being stopped")]
    Stopped,
}

/// Why nothing was shown.
enum Unshown {
    /// The provider shows nothing to anybody for a while.
    Busy,
    /// It failed.
    Failed(String),
}

impl Unshown {
    fn of(why: impl ToString) -> Self {
        Self::Failed(why.to_string())
    }
}

/// What ends a challenge, or has it go over to a newer head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Answer,
    Forfeit,
}

/// Transactions about the newest challenge of a deal by `account`, from the newest on. Blocks.
fn ends_of(chain: &Chain, id: DealId, account: PublicKey) -> Result<Vec<End>, ChainError> {
    let tip = chain.view(|l| l.tip().height)?;
    let mut ends = Vec::new();
    for height in (1..=tip).rev().take(ENDED_WITHIN_BLOCKS) {
        // A node that began with a snapshot has no blocks from before.
        let Some(block) = chain.blocks(height, 1)?.pop() else { break };
        for tx in block.txs.iter().rev() {
            let Ok(Tx::V1 { action, .. }) = from_bytes::<Tx>(&tx.bytes, Tx::MAX_BYTES) else { continue };
            match action {
                Action::Answer { deal, challenger, .. } if (deal, challenger) == (id, account) => {
                    ends.push(End::Answer);
                }
                Action::Forfeit { deal, challenger } if (deal, challenger) == (id, account) => {
                    ends.push(End::Forfeit);
                }
                Action::Challenge { deal } if deal == id => {
                    let by = chain.view(|l| l.state().delegate(&tx.signer).map(|d| d.account))?;
                    if by == Some(account) {
                        return Ok(ends);
                    }
                }
                _ => {}
            }
        }
    }
    Ok(ends)
}

/// A challenger.
pub struct Challenger {
    account: PublicKey,
    budget: Budget,
    meta: Arc<Meta>,
    chain: Arc<Chain>,
    peers: Arc<Peers>,
    wallet: Arc<Wallet>,
    record: Mutex<Record>,
}

impl Challenger {
    /// The challenger of `account`, with what it noted before.
    ///
    /// # Errors
    /// When the metadata store fails.
    pub fn open(
        account: PublicKey,
        budget: Budget,
        meta: Arc<Meta>,
        chain: Arc<Chain>,
        peers: Arc<Peers>,
        wallet: Arc<Wallet>,
    ) -> Result<Self, MetaError> {
        let record = Mutex::new(meta.get(Table::State, KEY)?.unwrap_or_default());
        Ok(Self { account, budget, meta, chain, peers, wallet, record })
    }

    /// What was done so far.
    pub fn record(&self) -> Record {
        self.record.lock().expect("no holder panics").clone()
    }

    fn note(&self, change: impl FnOnce(&mut Record)) -> Result<(), MetaError> {
        let mut record = self.record.lock().expect("no holder panics");
        change(&mut record);
        self.meta.note(Batch::default().put(Table::State, KEY, &*record))
    }

    fn period(&self) -> Result<(u64, u32), ChainError> {
        self.chain.view(|l| {
            let genesis = l.genesis();
            (genesis.period_at(crate::unix_now_s()), genesis.v1().period_s)
        })
    }

    /// Deals that can be challenged, with what that would take of their collateral.
    fn targets(&self) -> Result<Vec<(DealId, Deal, Amount)>, ChainError> {
        self.chain.view(|l: &Ledger| {
            let (period_s, made_tick) = (l.genesis().v1().period_s, l.state().totals().ticks);
            let deals = l.state().deals().filter(|(_, deal)| {
                deal.status == Status::Open
                    && deal.collateral > Amount::ZERO
                    && deal.terms.provider != self.account
            });
            let target = |(id, deal): (DealId, &Deal)| {
                let head = deal.head.filter(|head| head.head.bytes > 0)?;
                let of = Challenge { head, made_tick, bond: CHALLENGE_BOND, moved: 0 };
                Some((id, deal.clone(), of.penalty(deal, period_s)))
            };
            deals.filter_map(target).collect()
        })
    }

    /// The share of a deal's bytes that has to be missing before challenging it pays, for the deal in the middle of all that can be challenged.
    ///
    /// # Errors
    /// When the ledger cannot be used.
    pub fn breaks_even_at(&self) -> Result<Option<f64>, ChainError> {
        let mut penalties: Vec<Amount> = self.targets()?.into_iter().map(|(_, _, penalty)| penalty).collect();
        penalties.sort_unstable();
        Ok(penalties.get(penalties.len() / 2).map(|penalty| break_even_fault_rate(*penalty)))
    }

    /// Asks and challenges, for as long as the node runs.
    pub async fn run(self: Arc<Self>) {
        let mut asked_in = (0, 0);
        loop {
            let period_s = match self.look(&mut asked_in).await {
                Ok(period_s) => period_s,
                Err(error) => {
                    tracing::info!(%error, "challenging failed, and is tried again");
                    self.period().map_or(60, |(_, period_s)| period_s)
                }
            };
            let every = Duration::from_secs(period_s.into()) / self.budget.deals_per_period.max(1);
            sleep(every.clamp(LOOK_EVERY.0, LOOK_EVERY.1)).await;
        }
    }

    /// Deals with open challenges, and asks about one deal more. Returns the length of a period in seconds.
    async fn look(&self, asked_in: &mut (u64, u32)) -> Result<u32, ChallengeError> {
        let (period, period_s) = self.period()?;
        self.collect().await?;
        if asked_in.0 != period {
            *asked_in = (period, 0);
        }
        if asked_in.1 < self.budget.deals_per_period {
            asked_in.1 += 1;
            self.ask_about_one().await?;
        }
        Ok(period_s)
    }

    /// Takes up challenges of this account on the ledger that are not noted: the answer to the transaction was lost, or this node was killed.
    fn find_forgotten(&self) -> Result<(), ChallengeError> {
        let known = self.record().open;
        let forgotten: Vec<(DealId, (u64, Amount))> = self.chain.view(|l| {
            let state = l.state();
            let challenged =
                state.deals().filter(|(id, deal)| deal.challenges > 0 && !known.contains_key(id));
            let own = challenged.filter_map(|(id, deal)| {
                let challenge = state.challenge(id, self.account)?;
                Some((id, (challenge.head.head.seq, deal.collateral)))
            });
            own.collect()
        })?;
        if forgotten.is_empty() {
            return Ok(());
        }
        Ok(self.note(|record| {
            forgotten.into_iter().for_each(|(id, at_stake)| record.challenged(id, at_stake));
        })?)
    }

    /// Looks what became of challenges, and ends those that were not answered in time.
    async fn collect(&self) -> Result<(), ChallengeError> {
        self.find_forgotten()?;
        let open = self.record().open;
        for (id, (seq, collateral)) in open {
            let (challenge, deal, tick, period_s) = self.chain.view(|l| {
                let state = l.state();
                let challenge = state.challenge(id, self.account).copied();
                (challenge, state.deal(&id).cloned(), state.totals().ticks, l.genesis().v1().period_s)
            })?;
            let Some(challenge) = challenge else {
                self.note_end(id, deal, collateral).await?;
                continue;
            };
            if challenge.head.head.seq > seq {
                // It went over to a newer head.
                self.note(|record| record.challenged(id, (challenge.head.head.seq, collateral)))?;
            }
            let Some(deal) = deal.filter(|_| challenge.is_over(tick)) else { continue };
            let penalty = challenge.penalty(&deal, period_s);
            match self.wallet.send(Action::Forfeit { deal: id, challenger: self.account }).await {
                // It goes over to the newer head.
                Ok(_) if challenge.is_superseded(&deal) => {}
                Ok(_) => self.note_award(id, Amount(penalty.0 / 2))?,
                Err(SubmitError::NotTaken(refused)) if refused.code == "no_such_challenge" => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Notes what became of a challenge that is not on the ledger any more. Others may have ended it, and this node may have been killed meanwhile.
    async fn note_end(
        &self,
        id: DealId,
        deal: Option<Deal>,
        collateral: Amount,
    ) -> Result<(), ChallengeError> {
        let (period, period_s) = self.period()?;
        let (chain, account) = (self.chain.clone(), self.account);
        let ends = tokio::task::spawn_blocking(move || ends_of(&chain, id, account));
        let ends = ends.await.map_err(|_| ChallengeError::Stopped)??;
        // One over a head that covers nothing ends by itself, and so does one whose deal was settled.
        let head = deal.as_ref().and_then(|deal| deal.head).filter(|head| head.head.bytes > 0);
        let challenge = |head| Challenge {
            head,
            made_tick: 0,
            bond: CHALLENGE_BOND,
            // All but the last had it go over to a newer head.
            moved: ends.len().saturating_sub(1) as u8,
        };
        match (ends.first(), deal.zip(head)) {
            (Some(End::Answer), Some((_, head))) => {
                let AnswerCosts { to_provider, to_market } = challenge(head).costs_if_answered();
                let lost = Amount(to_provider.0 + to_market.0);
                tracing::info!(deal = %id, %lost, "a challenge was answered");
                self.note(|record| {
                    record.open.remove(&id);
                    record.cleared.insert(id, period.saturating_add(CLEARED_PERIODS));
                    record.answered += 1;
                    record.lost = record.lost.checked_add(lost).unwrap_or(record.lost);
                })?;
            }
            (Some(End::Forfeit), Some((deal, head))) => {
                let before = Deal { collateral, penalized_tick: None, ..deal.clone() };
                let penalty = challenge(head).penalty(&before, period_s);
                // Of all challenges that were open at once, only the first takes something.
                let has_paid = collateral.saturating_sub(deal.collateral) >= penalty;
                let award = if has_paid { Amount(penalty.0 / 2) } else { Amount::ZERO };
                self.note_award(id, award)?;
            }
            _ => {
                tracing::info!(deal = %id, "a challenge came to nothing: what it was about is not on the ledger any more");
                self.note(|record| {
                    record.open.remove(&id);
                })?;
            }
        }
        Ok(())
    }

    /// Notes that a challenge was not answered, and what that brought.
    fn note_award(&self, id: DealId, award: Amount) -> Result<(), MetaError> {
        tracing::info!(deal = %id, %award, "a challenge was not answered: the provider pays");
        self.note(|record| {
            record.open.remove(&id);
            record.won += u64::from(award > Amount::ZERO);
            record.earned = record.earned.checked_add(award).unwrap_or(record.earned);
        })
    }

    /// Asks about a suspect, or a deal drawn at random; challenges it if its provider fails again and again.
    async fn ask_about_one(&self) -> Result<(), ChallengeError> {
        let mut targets = self.targets()?;
        targets.shuffle(&mut rand::rng());
        let known = self.record();
        let (period, _) = self.period()?;
        let is_cleared = |id: &DealId| known.cleared.get(id).is_some_and(|until| period < *until);
        targets.retain(|(id, _, _)| !known.open.contains_key(id) && !is_cleared(id));
        self.note(|record| {
            record.suspects.retain(|id, _| targets.iter().any(|(target, _, _)| target == id));
            record.cleared.retain(|_, until| period < *until);
        })?;
        let suspect = targets.iter().position(|(id, _, _)| known.suspects.contains_key(id));
        // Suspects are asked in turn with others, so that many of them do not stop the search.
        let at = suspect.filter(|_| rand::random()).unwrap_or(0);
        let Some((id, deal, penalty)) = targets.into_iter().nth(at) else { return Ok(()) };
        match self.ask(id, &deal).await {
            Ok(bytes) => self.note(|record| {
                record.asked += 1;
                record.shown += 1;
                record.received_bytes += bytes;
                // One good answer does not make up for what is missing elsewhere.
                if let Some(failed) = record.suspects.get_mut(&id) {
                    *failed -= 1;
                }
                record.suspects.retain(|_, failed| *failed > 0);
            })?,
            // Its budget for auditors is used up, by whomever.
            Err(Unshown::Busy) => self.note(|record| record.asked += 1)?,
            Err(Unshown::Failed(why)) => {
                tracing::info!(deal = %id, node = %deal.terms.node, why, "a provider could not show what was drawn");
                self.note(|record| {
                    record.asked += 1;
                    *record.suspects.entry(id).or_default() += 1;
                })?;
                let tries = self.record().suspects.get(&id).copied().unwrap_or(0);
                let is_worth_it =
                    Amount(penalty.0 / 2) > CHALLENGE_BOND && known.open.len() < self.budget.open_max;
                if tries >= TRIES && is_worth_it && self.peers.others_answer(&deal.terms.node) {
                    self.challenge(id).await?;
                }
            }
        }
        Ok(())
    }

    /// Has the provider of a deal show what a fresh seed draws. Returns the bytes received, or why not.
    async fn ask(&self, id: DealId, deal: &Deal) -> Result<u64, Unshown> {
        let seed: [u8; 32] = rand::random();
        let node = deal.terms.node;
        let asking = self
            .peers
            .with_session(&node, async |session| session.openings(id, seed, CLAIM_DRAWS as u8).await);
        let asked =
            timeout(SHOWN_WITHIN, asking).await.map_err(|_| Unshown::of("it did not answer in time"))?;
        let (seq, openings) = asked.map_err(|error| match error {
            PeerError::Refused(refusal) if refusal.code == RefusalCode::Busy => Unshown::Busy,
            error => Unshown::of(error),
        })?;
        // The head may have changed meanwhile; what counts is the one that is shown.
        let now = self.chain.view(|l| l.state().deal(&id).and_then(|deal| deal.head)).map_err(Unshown::of)?;
        let heads = [deal.head, now].into_iter().flatten();
        let head = heads
            .rev()
            .find(|head| head.head.seq == seq)
            .ok_or_else(|| Unshown::of("it shows another head than the ledger's"))?;
        let drawn = positions(&seed, head.head.bytes, CLAIM_DRAWS);
        let drawn = drawn.iter().map(|position| (&head.head, *position));
        check_shown(drawn, &openings).map_err(Unshown::of)?;
        Ok(spare_proofs::encode::to_bytes(&openings).len() as u64)
    }

    /// Challenges a deal on the ledger.
    ///
    /// # Errors
    /// [`ChallengeError`].
    pub async fn challenge(&self, id: DealId) -> Result<(), ChallengeError> {
        let at_stake = self.chain.view(|l| {
            let deal = l.state().deal(&id);
            let seq = deal.and_then(|deal| deal.head).map_or(0, |head| head.head.seq);
            (seq, deal.map_or(Amount::ZERO, |deal| deal.collateral))
        })?;
        self.wallet.send(Action::Challenge { deal: id }).await?;
        tracing::info!(deal = %id, bond = %CHALLENGE_BOND, "a deal is challenged");
        Ok(self.note(|record| record.challenged(id, at_stake))?)
    }
}
