//! Money for deals: what each provider that is to store something needs, opened or topped up together.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use spare_market::amount::{Amount, StorageDue, StoragePrice};
use spare_market::deal::{DealId, GRACE_PERIODS, Status, Terms, TermsV1};
use spare_market::keys::PublicKey;
use spare_market::signed::Signed;
use spare_market::tx::Action;
use tokio::time::timeout;

use super::{Cell, DealError, Deals, Record, record_key};
use crate::limits::STALL_TIMEOUT;
use crate::meta::{Batch, Table};
use crate::peers::PeerError;

/// A deal's escrow is made to last for this many bytes at least, so that storing little things does not top up again and again. But only
/// where that is a small part of the money there is: one of [`FUND_GENEROUSLY`].
const FUND_BYTES_MIN: u64 = 256 << 20;
const FUND_GENEROUSLY: u128 = 20;
/// Bytes of reading that are put aside for beside what is stored: what is under way at once, and audits.
const READ_RESERVE_BYTES: u64 = 16 << 20;

/// What a deal needs before more can be stored under it.
enum Need {
    Nothing(DealId),
    TopUp(Arc<Cell>, Amounts),
    Open(Box<Signed<Terms>>, Amounts),
}

/// What may be put aside, from what is best to what will just do.
#[derive(Clone, Copy)]
struct Amounts {
    /// For more than is stored, so that the next little thing needs nothing.
    generous: Amount,
    /// For what is to be stored, for the time that is paid for in advance.
    wanted: Amount,
    /// For what is stored now, and a moment.
    least: Amount,
}

impl Deals {
    /// Makes sure that a shard of `shard_bytes` more is funded at each of `nodes`: opens deals, and tops up others. An escrow is made to last
    /// for `expect_bytes` more, if there is money for that. Says of each node which deal to store under.
    ///
    /// # Errors
    /// [`DealError::Funds`], or the ledger cannot be used.
    pub async fn ensure(
        &self,
        nodes: &[PublicKey],
        shard_bytes: u64,
        expect_bytes: u64,
        price_max: StoragePrice,
    ) -> Result<Vec<Result<DealId, DealError>>, DealError> {
        let _opening = self.opening.lock().await;
        let needs = nodes.iter().map(async |node| {
            let needed = timeout(STALL_TIMEOUT, self.need(*node, shard_bytes, expect_bytes, price_max)).await;
            needed.unwrap_or(Err(DealError::Peer(PeerError::Stalled)))
        });
        let needs: Vec<Result<Need, DealError>> = futures::future::join_all(needs).await;
        let free = self.chain.view(|l| l.state().account(&self.account).free)?;
        let sum = |level: fn(&Amounts) -> Amount| {
            let amount = |need: &Need| match need {
                Need::Nothing(_) => 0,
                Need::TopUp(_, amounts) | Need::Open(_, amounts) => level(amounts).0,
            };
            needs.iter().flatten().map(amount).sum::<u128>()
        };
        let level: fn(&Amounts) -> Amount = match () {
            () if sum(|a| a.generous) <= free.0 / FUND_GENEROUSLY => |a| a.generous,
            () if sum(|a| a.wanted) <= free.0 => |a| a.wanted,
            () if sum(|a| a.least) <= free.0 => |a| a.least,
            () => {
                for need in needs.iter().flatten() {
                    if let Need::Nothing(id) = need {
                        self.give_up(*id, shard_bytes);
                    }
                }
                return Err(DealError::Funds { needed: Amount(sum(|a| a.least)), free });
            }
        };
        let action = |need: &Need| match need {
            Need::Nothing(_) => None,
            Need::TopUp(cell, amounts) => Some(Action::TopUp { deal: cell.id, amount: level(amounts) }),
            Need::Open(terms, amounts) => {
                Some(Action::Open { terms: terms.raw().clone(), escrow: level(amounts) })
            }
        };
        let actions: Vec<Action> = needs.iter().flatten().filter_map(action).collect();
        let mut outcomes = self.wallet.send_all(actions).await.into_iter();
        let outcome = |need: Result<Need, DealError>| {
            let cell = match need? {
                Need::Nothing(id) => return Ok(id),
                Need::TopUp(cell, _) => {
                    outcomes.next().expect("each action has an outcome")?;
                    cell
                }
                Need::Open(terms, _) => {
                    outcomes.next().expect("each action has an outcome")?;
                    let v1 = terms.value().v1().clone();
                    let cell = Cell::new(terms.value().deal_id(), Record::new(v1));
                    let record = cell.lock().clone();
                    self.meta.note(Batch::default().put(Table::Deals, &record_key(cell.id), &record))?;
                    self.keep(&cell);
                    cell
                }
            };
            cell.uncovered_bytes.fetch_add(shard_bytes, Ordering::Relaxed);
            Ok(cell.id)
        };
        Ok(needs.into_iter().map(outcome).collect())
    }

    async fn need(
        &self,
        node: PublicKey,
        shard_bytes: u64,
        expect_bytes: u64,
        price_max: StoragePrice,
    ) -> Result<Need, DealError> {
        if let Some((cell, deal)) = self.live_or_adopted(&node).await? {
            let uncovered = cell.uncovered_bytes.load(Ordering::Relaxed);
            let mut record = cell.lock();
            record.follow(&deal);
            if record.terms.price > price_max {
                return Err(DealError::Terms);
            }
            let extra = uncovered.saturating_add(shard_bytes);
            let left = record.tab.left(&deal, self.period());
            let funding = record.tab.funding(&deal, self.period(), extra, self.period_s());
            if funding.periods > 0 && left >= record.terms.read_price.cost(READ_RESERVE_BYTES / 2) {
                drop(record);
                cell.uncovered_bytes.fetch_add(shard_bytes, Ordering::Relaxed);
                return Ok(Need::Nothing(cell.id));
            }
            let bytes = record.tab.bytes().saturating_add(extra);
            let amounts = self.amounts(&record.terms, bytes, bytes.saturating_add(expect_bytes), left);
            drop(record);
            return Ok(Need::TopUp(cell, amounts));
        }
        let offered = self.peers.book.get(&node);
        let terms = self.peers.with_session(&node, async |session| session.terms().await).await?;
        let terms = terms.check::<Terms>(self.network)?;
        let v1 = terms.value().v1();
        let is_meant = terms.signer() == node && v1.node == node && v1.client == self.account;
        let is_as_asked =
            offered.is_some_and(|p| v1.price <= p.ask.price && v1.read_price <= p.ask.read_price);
        if !is_meant || !is_as_asked || v1.price > price_max {
            return Err(DealError::Terms);
        }
        let amounts = self.amounts(v1, shard_bytes, shard_bytes.max(expect_bytes), Amount::ZERO);
        Ok(Need::Open(Box::new(terms), amounts))
    }

    /// What may be put aside beside `left` for `bytes` that are stored now, of `expected` in all.
    fn amounts(&self, terms: &TermsV1, bytes: u64, expected: u64, left: Amount) -> Amounts {
        let periods = self.fund_periods();
        let more = |periods, bytes| {
            let more = self.cost(terms, periods, bytes).saturating_sub(left);
            // A free deal costs nothing; any other needs something, since it lacks something.
            Amount(more.0.max(u128::from(left > Amount::ZERO)))
        };
        Amounts {
            generous: more(periods, (expected + expected / 2).max(FUND_BYTES_MIN)),
            wanted: more(periods, expected),
            least: more(2, bytes),
        }
    }

    fn fund_periods(&self) -> u64 {
        (self.fund_s / u64::from(self.period_s())).max(2)
    }

    /// What it costs to store `bytes` for `periods` and the grace, and to read them once.
    fn cost(&self, terms: &TermsV1, periods: u64, bytes: u64) -> Amount {
        let rate = StorageDue::of(terms.price, bytes, self.period_s().into());
        let due = rate.and_then(|rate| rate.checked_mul(periods + GRACE_PERIODS)).map(StorageDue::floor);
        let due = due.unwrap_or(spare_market::amount::SUPPLY_MAX);
        // Rounding must not leave it one unit short.
        let margin = Amount(u128::from(terms.price > StoragePrice(0)));
        [terms.read_price.cost(bytes.saturating_add(READ_RESERVE_BYTES)), margin]
            .into_iter()
            .fold(due, |sum, more| sum.checked_add(more).unwrap_or(sum))
    }

    /// Gives up a shard of `shard_bytes` under deal `id` that [`Self::ensure`] made sure of.
    pub fn give_up(&self, id: DealId, shard_bytes: u64) {
        if let Some(cell) = self.cells().into_iter().find(|cell| cell.id == id) {
            cell.subtract_uncovered(shard_bytes);
        }
    }

    /// Tops up deals whose money does not last for half the time that is paid for in advance. Says what is missing.
    ///
    /// # Errors
    /// [`DealError`].
    pub async fn top_up(&self, cells: &[Arc<Cell>]) -> Result<(), DealError> {
        let _opening = self.opening.lock().await;
        let mut due = Vec::new();
        let half = self.fund_periods() / 2;
        for cell in cells {
            let Some(deal) = self.on_ledger(cell.id)?.filter(|deal| deal.status == Status::Open) else {
                continue;
            };
            let mut record = cell.lock();
            record.follow(&deal);
            let (tab, terms) = (&record.tab, &record.terms);
            let funding = tab.funding(&deal, self.period(), 0, self.period_s());
            let left = tab.left(&deal, self.period());
            let can_be_read = left >= terms.read_price.cost(READ_RESERVE_BYTES / 2);
            if (funding.periods >= half && can_be_read) || tab.bytes() == 0 {
                continue;
            }
            let amount = self.cost(terms, self.fund_periods(), tab.bytes()).saturating_sub(left);
            if amount > Amount::ZERO {
                due.push((funding.periods, cell.id, amount));
            }
        }
        // Those that run dry first come first. When the money does not go round, each gets a share.
        due.sort_unstable();
        let free = self.chain.view(|l| l.state().account(&self.account).free)?;
        let (mut left, mut actions) = (free, Vec::new());
        for (i, (_, deal, amount)) in due.iter().enumerate() {
            let share = Amount(left.0 / (due.len() - i) as u128).min(*amount);
            if share > Amount::ZERO {
                left = left.saturating_sub(share);
                actions.push(Action::TopUp { deal: *deal, amount: share });
            }
        }
        let needed = Amount(due.iter().map(|(_, _, amount)| amount.0).sum());
        for taken in self.wallet.send_all(actions).await {
            taken?;
        }
        if needed > free { Err(DealError::Funds { needed, free }) } else { Ok(()) }
    }
}
