//! Honest providers with restarts, slow disks and lossy lines, under the production rules of claims and standing: nothing of theirs burns, and
//! strikes stay below a stated bound.
//!
//! Each provider has a client that is away, for which it claims on a real ledger with real openings, and one that audits it and keeps a
//! [`Standing`]. Time goes on in minutes, in periods of an hour. `SPARE_HONEST_PERIODS` sets the number of provider-periods, `SPARE_HONEST_SEED` the seed;
//! it is printed.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

#[path = "harness/holding.rs"]
mod holding;
#[path = "harness/market.rs"]
mod market;

use holding::Holding;
use market::{Market, OPERATOR, Party, party};
use spare_market::amount::{Amount, StoragePrice};
use spare_market::claim::draws;
use spare_market::deal::{Terms, TermsV1};
use spare_market::head::{FullHead, Head, HeadV1};
use spare_market::ledger::claimables;
use spare_market::standing::{Fault, Place, STRIKE_SPACING_S, Standing};
use spare_market::tx::{Action, Event};
use spare_proofs::tree::Root;

const PERIOD_S: u64 = market::PERIOD_S;
/// An hour of the simulation is a period of the ledger's.
const MINUTES: u64 = 60;
const PROVIDERS: usize = 40;
/// Strikes that are tolerated in a million provider-periods.
const STRIKES_PER_MILLION_MAX: u64 = 10;

struct Dice(blake3::OutputReader);

impl Dice {
    fn chance(&mut self, one_in: u64) -> bool {
        self.roll(one_in) == 0
    }

    fn roll(&mut self, sides: u64) -> u64 {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes);
        u64::from_le_bytes(bytes) % sides
    }
}

/// A provider, and what is the matter with it.
struct Provider {
    who: Party,
    number: u64,
    /// Minutes for which it is down yet.
    down: u64,
    /// Minutes for which its disk answers too late yet.
    slow: u64,
    standing: Standing,
    is_audited: bool,
    is_claimed: bool,
}

impl Provider {
    /// Lives through a minute. Returns whether it can answer.
    fn live(&mut self, dice: &mut Dice) -> bool {
        self.down = self.down.saturating_sub(1);
        self.slow = self.slow.saturating_sub(1);
        // Restarts every three days, of up to 20 minutes; every two days a disk that hangs for up to half an hour.
        if dice.chance(3 * 24 * MINUTES) {
            self.down = 1 + dice.roll(20);
        }
        if dice.chance(2 * 24 * MINUTES) {
            self.slow = 1 + dice.roll(30);
        }
        self.down == 0 && self.slow == 0
    }
}

#[test]
fn honest_providers_lose_nothing() {
    let number =
        |name: &str, default: u64| std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(default);
    let (periods, seed) = (number("SPARE_HONEST_PERIODS", 20_000), number("SPARE_HONEST_SEED", 1));
    println!("{periods} provider-periods from seed {seed}");
    let mut dice = Dice(blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof());
    let mut m = Market::new();
    let holding = Holding::new(1, &[3000, 700]);
    let price = StoragePrice(1 << 40);
    m.ok(&party(1), Action::Fund { account: party(2).account.public(), amount: Amount(1 << 90) });
    let mut providers: Vec<Provider> = Vec::new();
    for i in 0..PROVIDERS {
        let who = party(10 + i as u8);
        let grant = m.grant(&who, &who, 1, 0, u64::MAX);
        m.ok(&who, Action::Register { grant });
        m.ok(&party(1), Action::Fund { account: who.account.public(), amount: Amount(1 << 60) });
        let terms = Terms::V1(TermsV1 {
            client: party(2).account.public(),
            provider: who.account.public(),
            node: who.node.public(),
            price,
            read_price: Default::default(),
            compute: None,
            collateral: Amount(1 << 50),
            expires_s: m.now_s + 60,
            salt: [i as u8; 16],
        });
        let deal = terms.deal_id();
        m.ok(&party(2), Action::Open { terms: m.signed(terms, &who.node), escrow: Amount(1 << 80) });
        let set = holding.sum();
        let from = m.now_s / PERIOD_S;
        let head = Head::V1(HeadV1 {
            deal,
            seq: 1,
            set_root: set.hash,
            bytes: set.bytes,
            price,
            from,
            until: from + 30,
            index_hash: [0; 32],
        });
        let head = m.signed(head, &party(2).node);
        let head = FullHead::countersign(head, m.ledger.network(), &who.node);
        m.ok(&who, Action::Anchor { head });
        m.ok(&who, Action::StartClaims { deal });
        let number = m.ledger.state().delegate(&who.node.public()).unwrap().number;
        let standing = Standing::default();
        providers.push(Provider {
            who,
            number,
            down: 0,
            slow: 0,
            standing,
            is_audited: false,
            is_claimed: false,
        });
    }
    let place = Place { root: Root::of(b"shard"), shard_bytes: 3000, start: 0, end: 3000 };
    let (mut strikes, mut unclaimed, mut unaudited, mut failures) = (0u64, 0u64, 0u64, 0u64);
    for period in 0..periods.div_ceil(PROVIDERS as u64) {
        m.now_s += PERIOD_S;
        m.block(vec![]);
        let totals = m.ledger.state().totals();
        let mut txs = Vec::new();
        for minute in 0..MINUTES {
            let now_s = (period * MINUTES + minute) * 60;
            for provider in &mut providers {
                let can_answer = provider.live(&mut dice);
                // Each way loses one in twenty.
                if !provider.is_claimed && can_answer && !dice.chance(20) {
                    provider.is_claimed = true;
                    txs.push(claim(&m, provider, &holding, &totals));
                }
                if provider.is_audited && provider.standing.contained().is_none() {
                    continue;
                }
                if can_answer && !dice.chance(20) {
                    provider.is_audited = true;
                    provider.standing.answered(&place);
                } else {
                    failures += 1;
                    let is_strike =
                        provider.standing.failed(now_s, place, Fault::Silent, "silent", STRIKE_SPACING_S);
                    strikes += u64::from(is_strike);
                }
            }
        }
        for outcome in m.ledger_block(txs) {
            assert!(matches!(outcome, Ok(Event::Claimed { .. })), "{outcome:?}");
        }
        for provider in &mut providers {
            unclaimed += u64::from(!std::mem::take(&mut provider.is_claimed));
            unaudited += u64::from(!std::mem::take(&mut provider.is_audited));
        }
    }
    m.ledger.state().check_all().unwrap();
    let burned = m.ledger.state().totals().burned;
    println!(
        "{failures} failed audits, {unaudited} periods without a good one, {unclaimed} without a claim; {strikes} strikes, {} burned",
        burned.0
    );
    assert!(failures > periods / 50, "there was something to forgive");
    assert_eq!(burned, Amount::ZERO);
    assert!(
        strikes * 1_000_000 <= STRIKES_PER_MILLION_MAX * periods.max(1_000_000 / STRIKES_PER_MILLION_MAX)
    );
}

/// A provider's claim in the running tick.
fn claim(
    m: &Market,
    provider: &mut Provider,
    holding: &Holding,
    totals: &spare_market::state::Totals,
) -> spare_market::signed::SignedBytes {
    let claimables = claimables(m.ledger.state(), PERIOD_S as u32, &provider.who.node.public());
    let drawn = draws(&totals.beacon(), &provider.who.node.public(), &claimables);
    let openings = holding.show_all(&drawn, &claimables);
    provider.number += 1;
    m.numbered(&provider.who, provider.number, Action::Claim { tick: totals.ticks, openings })
}

impl Market {
    /// Makes a block, with its outcomes.
    fn ledger_block(
        &mut self,
        txs: Vec<spare_market::signed::SignedBytes>,
    ) -> Vec<spare_market::block::Outcome> {
        let made = self.ledger.make(self.now_s, txs, &OPERATOR).unwrap();
        if let Some(next) = made.next {
            self.ledger.take(next);
        }
        made.outcomes
    }
}
