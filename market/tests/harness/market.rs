//! A market with a few parties, driven one transaction at a time.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::sync::LazyLock;

use spare_market::amount::{Amount, ReadPrice, StorageDue, StoragePrice};
use spare_market::block::{Ledger, Operator, Outcome};
use spare_market::deal::{DealId, Terms, TermsV1};
use spare_market::genesis::{Genesis, GenesisV1};
use spare_market::grant::{Grant, Scope};
use spare_market::head::{FullHead, Head, HeadV1};
use spare_market::keys::{Seed, SigningSecret};
use spare_market::signed::{Signable, Signed, SignedBytes};
use spare_market::tx::{Action, Blame, Event, Refused, Tx};
use spare_market::voucher::{Voucher, VoucherV1};
use spare_proofs::cipher::Secret;

pub(crate) const PERIOD_S: u64 = 100;

/// The secret of the market's node, which is that of party 1.
fn market_secret() -> Secret {
    Secret::new([101; 32])
}

pub(crate) static OPERATOR: LazyLock<Operator> = LazyLock::new(|| Operator::new(&market_secret()));

/// An account and its node.
pub(crate) struct Party {
    pub(crate) account: SigningSecret,
    pub(crate) node: SigningSecret,
}

pub(crate) fn party(tag: u8) -> Party {
    let key = |entropy: u8| Seed::from_entropy([entropy; 32]).account_key();
    let node = if tag == 1 { SigningSecret::from_secret(&market_secret()) } else { key(tag + 100) };
    Party { account: key(tag), node }
}

/// A market with a funded client (1000) and a provider (100), all registered, at second 1000, which is in period 10.
pub(crate) struct Market {
    pub(crate) ledger: Ledger,
    pub(crate) now_s: u64,
    pub(crate) client: Party,
    pub(crate) provider: Party,
}

pub(crate) fn genesis(period_s: u32, fee_bps: u16) -> Genesis {
    Genesis::V1(GenesisV1 {
        market: OPERATOR.public(),
        started_s: 0,
        period_s,
        beacon: OPERATOR.first_beacon(),
        fee_bps,
        salt: [3; 32],
    })
}

impl Market {
    pub(crate) fn new() -> Self {
        let ledger = Ledger::new(genesis(PERIOD_S as u32, 500)).unwrap();
        let (client, provider) = (party(2), party(3));
        let mut market = Self { ledger, now_s: 1000, client, provider };
        for who in [party(1), party(2), party(3), party(4)] {
            let grant = market.grant(&who, &who, 1, u128::MAX >> 28, u64::MAX);
            market.ok(&who, Action::Register { grant });
        }
        for (who, amount) in [(party(2), 1000), (party(3), 100)] {
            market.ok(&party(1), Action::Fund { account: who.account.public(), amount: Amount(amount) });
        }
        market
    }

    pub(crate) fn signed<T: Signable>(&self, value: T, key: &SigningSecret) -> SignedBytes {
        Signed::new(value, self.ledger.network(), key).raw().clone()
    }

    pub(crate) fn grant(
        &self,
        of: &Party,
        to: &Party,
        serial: u64,
        cap: u128,
        expires_s: u64,
    ) -> SignedBytes {
        let scopes = vec![Scope::Provide, Scope::Spend];
        let (delegate, spend_cap) = (to.node.public(), Amount(cap));
        self.signed(Grant::V1 { delegate, scopes, spend_cap, serial, expires_s }, &of.account)
    }

    pub(crate) fn numbered(&self, by: &Party, number: u64, action: Action) -> SignedBytes {
        self.signed(Tx::V1 { number, action }, &by.node)
    }

    pub(crate) fn submit_raw(&mut self, tx: SignedBytes) -> Result<Event, Refused> {
        let outcome = self.block(vec![tx]).pop().unwrap();
        self.ledger.state().check_all().unwrap();
        outcome
    }

    /// Makes a block if one is due or anything is taken.
    pub(crate) fn block(&mut self, txs: Vec<SignedBytes>) -> Vec<Outcome> {
        let made = self.ledger.make(self.now_s, txs, &OPERATOR).unwrap();
        if let Some(next) = made.next {
            self.ledger.take(next);
        }
        made.outcomes
    }

    pub(crate) fn submit(&mut self, by: &Party, action: Action) -> Result<Event, Refused> {
        let number = self.ledger.state().delegate(&by.node.public()).map_or(0, |d| d.number) + 1;
        self.submit_raw(self.numbered(by, number, action))
    }

    pub(crate) fn ok(&mut self, by: &Party, action: Action) -> Event {
        self.submit(by, action).unwrap()
    }

    /// The code and the blame of a refusal, which changed nothing but the clock.
    pub(crate) fn refused(&mut self, by: &Party, action: Action) -> (&'static str, Blame) {
        // A first block in a new period counts it; that is no change of the transaction's.
        self.block(vec![]);
        let root = self.ledger.state().root();
        let refused = self.submit(by, action).unwrap_err();
        assert_eq!(self.ledger.state().root(), root, "{refused} changed something");
        (refused.code(), refused.blame())
    }

    pub(crate) fn terms(&self, change: impl FnOnce(&mut TermsV1)) -> Terms {
        let mut terms = TermsV1 {
            client: self.client.account.public(),
            provider: self.provider.account.public(),
            node: self.provider.node.public(),
            price: StoragePrice(1000),
            read_price: ReadPrice(10),
            compute: None,
            collateral: Amount(40),
            expires_s: self.now_s + 60,
            salt: [1; 16],
        };
        change(&mut terms);
        Terms::V1(terms)
    }

    pub(crate) fn open(&mut self, escrow: u128) -> DealId {
        let terms = self.terms(|_| ());
        let action =
            Action::Open { terms: self.signed(terms.clone(), &self.provider.node), escrow: Amount(escrow) };
        assert_eq!(self.ok(&party(2), action), Event::Opened { deal: terms.deal_id() });
        terms.deal_id()
    }

    pub(crate) fn head(&self, deal: DealId, seq: u64, change: impl FnOnce(&mut HeadV1)) -> FullHead {
        let mut head = HeadV1 {
            deal,
            seq,
            set_root: [5; 32],
            bytes: 1 << 30,
            price: StoragePrice(1000),
            from: self.now_s / PERIOD_S,
            until: self.now_s / PERIOD_S + 30,
            index_hash: [0; 32],
        };
        change(&mut head);
        let signed = self.signed(Head::V1(head), &self.client.node);
        FullHead::countersign(signed, self.ledger.network(), &self.provider.node)
    }

    pub(crate) fn voucher(&self, deal: DealId, paid_through: u64, total: u128) -> SignedBytes {
        self.voucher_of(&self.client, deal, 0, paid_through, total)
    }

    pub(crate) fn voucher_of(
        &self,
        client: &Party,
        deal: DealId,
        epoch: u32,
        paid_through: u64,
        total: u128,
    ) -> SignedBytes {
        let voucher = VoucherV1 {
            deal,
            epoch,
            paid_through: Some(paid_through),
            read_bytes: 0,
            jobs: Amount::ZERO,
            skipped: StorageDue::ZERO,
            total: Amount(total),
        };
        self.signed(Voucher::V1(voucher), &client.node)
    }

    pub(crate) fn redeem(&mut self, voucher: SignedBytes) -> Result<Event, Refused> {
        self.submit(&party(3), Action::Redeem { voucher })
    }

    pub(crate) fn free(&self, who: &Party) -> u128 {
        self.ledger.state().account(&who.account.public()).free.0
    }
}
