//! A deal whose client is away: its provider claims, and is challenged.

#![allow(dead_code, reason = "each test file uses a part of it")]

use spare_market::amount::{Amount, StoragePrice};
use spare_market::claim::{Claimable, draws};
use spare_market::deal::{Deal, DealId};
use spare_market::head::{FullHead, HeadV1};
use spare_market::ledger;
use spare_market::tx::{Action, Event, Refused};
use spare_proofs::opening::SetOpening;

use crate::holding::Holding;
use crate::market::{Market, PERIOD_S, party};

/// What a period costs here: 1 GiB at a price that comes to this much.
pub(crate) const RATE: u128 = 1_000_000;

/// A deal whose provider holds real shards, with its head on the ledger.
pub(crate) struct Away {
    pub(crate) m: Market,
    pub(crate) deal: DealId,
    pub(crate) holding: Holding,
}

pub(crate) fn price(bytes: u64) -> StoragePrice {
    // So that the rate of a period of 100 s comes to RATE or a little more.
    StoragePrice((RATE * (3600 / u128::from(PERIOD_S)) * (1 << 30)).div_ceil(bytes.into()) as u64)
}

impl Away {
    pub(crate) fn new(collateral: u128) -> Self {
        let mut m = Market::new();
        for (who, amount) in [(2, 1 << 40), (3, 1 << 40), (4, 1 << 40)] {
            m.ok(&party(1), Action::Fund { account: party(who).account.public(), amount: Amount(amount) });
        }
        let holding = Holding::new(1, &[5_000, 100_000, 1]);
        let deal = open(&mut m, 1, 1000 * RATE, collateral, &holding);
        let mut away = Self { m, deal, holding };
        let head = away.head(1);
        away.m.ok(&party(3), Action::Anchor { head });
        away
    }

    pub(crate) fn head(&self, seq: u64) -> FullHead {
        head(&self.m, self.deal, seq, &self.holding)
    }

    pub(crate) fn tick(&mut self) {
        self.m.now_s += PERIOD_S;
        self.m.block(vec![]);
    }

    pub(crate) fn on_ledger(&self) -> &Deal {
        self.m.ledger.state().deal(&self.deal).unwrap()
    }

    pub(crate) fn provider_action(&mut self, action: Action) -> Result<Event, Refused> {
        self.m.submit(&party(3), action)
    }

    pub(crate) fn start(&mut self) {
        self.provider_action(Action::StartClaims { deal: self.deal }).unwrap();
    }

    pub(crate) fn claimables(&self) -> Vec<Claimable> {
        ledger::claimables(self.m.ledger.state(), PERIOD_S as u32, &party(3).node.public())
    }

    pub(crate) fn shown(&self) -> (u64, Vec<SetOpening>) {
        let totals = self.m.ledger.state().totals();
        let claimables = self.claimables();
        let drawn = draws(&totals.beacon(), &party(3).node.public(), &claimables);
        (totals.ticks, self.holding.show_all(&drawn, &claimables))
    }

    pub(crate) fn claim(&mut self) -> Result<Event, Refused> {
        let (tick, openings) = self.shown();
        self.provider_action(Action::Claim { tick, openings })
    }
}

pub(crate) fn open(m: &mut Market, salt: u8, escrow: u128, collateral: u128, holding: &Holding) -> DealId {
    let terms = m.terms(|t| {
        (t.collateral, t.price, t.salt) = (Amount(collateral), price(holding.sum().bytes), [salt; 16]);
    });
    let action = Action::Open { terms: m.signed(terms.clone(), &m.provider.node), escrow: Amount(escrow) };
    m.ok(&party(2), action);
    terms.deal_id()
}

pub(crate) fn head(m: &Market, deal: DealId, seq: u64, holding: &Holding) -> FullHead {
    let set = holding.sum();
    m.head(deal, seq, |head: &mut HeadV1| {
        (head.set_root, head.bytes, head.price) = (set.hash, set.bytes, price(set.bytes));
    })
}
