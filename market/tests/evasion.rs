//! Ways round what claims and challenges cost, tried one by one: hiding lost data behind deals of one's own, moving money or heads away before a burn, or
//! before a challenge; and ways for others to make an honest provider pay more than it owes.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

#[path = "harness/holding.rs"]
mod holding;
#[path = "harness/market.rs"]
mod market;

use holding::Holding;
use market::{Market, PERIOD_S, Party, party};
use spare_market::amount::{Amount, StoragePrice};
use spare_market::claim::{CHALLENGE_BOND, CHALLENGE_TICKS, Claimable, draws};
use spare_market::deal::{Deal, DealId};
use spare_market::head::{FullHead, Head, HeadV1};
use spare_market::ledger;
use spare_market::tx::{Action, Event};

/// A price at which 100 kB cost a good deal in a period.
const PRICE: u64 = 1 << 38;

fn setup() -> Market {
    let mut m = Market::new();
    for who in 2..=4 {
        m.ok(&party(1), Action::Fund { account: party(who).account.public(), amount: Amount(1 << 44) });
    }
    m
}

fn tick(m: &mut Market) {
    m.now_s += PERIOD_S;
    m.block(vec![]);
}

/// A deal of `client` with the provider, with `holding` under its first head on the ledger.
fn open(
    m: &mut Market,
    client: &Party,
    salt: u8,
    money: (u128, u128),
    holding: &Holding,
    price: u64,
) -> DealId {
    let (escrow, collateral) = money;
    let terms = m.terms(|t| {
        t.client = client.account.public();
        (t.collateral, t.price, t.salt) = (Amount(collateral), StoragePrice(price), [salt; 16]);
    });
    let action = Action::Open { terms: m.signed(terms.clone(), &party(3).node), escrow: Amount(escrow) };
    m.ok(client, action);
    let deal = terms.deal_id();
    let head = head(m, client, deal, 1, Some(holding), price);
    m.ok(&party(3), Action::Anchor { head });
    deal
}

fn head(
    m: &Market,
    client: &Party,
    deal: DealId,
    seq: u64,
    holding: Option<&Holding>,
    price: u64,
) -> FullHead {
    let (bytes, set_root) = holding.map_or((0, [0; 32]), |h| (h.sum().bytes, h.sum().hash));
    let from = m.now_s / PERIOD_S;
    let price = StoragePrice(price);
    let head = HeadV1 { deal, seq, set_root, bytes, price, from, until: from + 30, index_hash: [0; 32] };
    FullHead::countersign(m.signed(Head::V1(head), &client.node), m.ledger.network(), &party(3).node)
}

fn claimables(m: &Market) -> Vec<Claimable> {
    ledger::claimables(m.ledger.state(), PERIOD_S as u32, &party(3).node.public())
}

fn claim(m: &mut Market, holding: &Holding) -> Event {
    let (claimables, totals) = (claimables(m), m.ledger.state().totals());
    let drawn = draws(&totals.beacon(), &party(3).node.public(), &claimables);
    let openings = holding.show_all(&drawn, &claimables);
    m.ok(&party(3), Action::Claim { tick: totals.ticks, openings })
}

fn deal(m: &Market, id: DealId) -> Deal {
    m.ledger.state().deal(&id).unwrap().clone()
}

fn burned(m: &Market) -> u128 {
    m.ledger.state().totals().burned.0
}

fn rate(price: u64, bytes: u64) -> u128 {
    u128::from(price) * u128::from(bytes) * u128::from(PERIOD_S) / (3600 << 30)
}

/// What the provider has, free and pledged.
fn wealth(m: &Market, deals: &[DealId]) -> i128 {
    let pledged: u128 = deals.iter().map(|id| deal(m, *id).collateral.0).sum();
    (m.free(&party(3)) + pledged) as i128
}

/// A provider holds nothing of the victim's data. It claims for a deal of its own beside it, `own` times as large on paper.
struct Dilution {
    own: u64,
    escrow: u128,
    /// Whether the own deal is paid by vouchers, and so weighs without being claimed.
    by_voucher: bool,
}

/// Returns what the provider gained in 300 ticks, as a multiple of what the victim's data earns in one; its own client's money counts as its own.
fn dilute(case: &Dilution) -> f64 {
    let mut m = setup();
    let (victims, own) = (Holding::new(1, &[100_000]), Holding::new(2, &[100_000]));
    let victim_price = (1 << 38) / case.own;
    let victim_rate = rate(victim_price, 100_000);
    let own_rate = rate(1 << 38, 100_000);
    let share = |rate: u128| rate / 20 + 1;
    let victim = open(&mut m, &party(2), 1, (1 << 40, share(victim_rate)), &victims, victim_price);
    let is_funded = case.escrow > own_rate;
    let pledge = if is_funded { share(own_rate) } else { 1 };
    let shield = open(&mut m, &party(4), 2, (case.escrow, pledge), &own, 1 << 38);
    for deal in [victim, shield] {
        m.ok(&party(3), Action::StartClaims { deal });
    }
    let all =
        |m: &Market| wealth(m, &[victim, shield]) + (m.free(&party(4)) + deal(m, shield).escrow.0) as i128;
    let start = all(&m);
    for _ in 0..300 {
        tick(&mut m);
        if case.by_voucher {
            let (of, through) = (deal(&m, shield), m.now_s / PERIOD_S - 1);
            let voucher = m.voucher_of(&party(4), shield, of.epoch, through, of.paid.0 + own_rate);
            m.ok(&party(3), Action::Redeem { voucher });
        }
        let (claimables, totals) = (claimables(&m), m.ledger.state().totals());
        let drawn = draws(&totals.beacon(), &party(3).node.public(), &claimables);
        let is_caught = drawn.iter().any(|drawn| claimables[drawn.index].deal == victim);
        if !is_caught && !drawn.is_empty() {
            let openings = drawn.iter().map(|drawn| own.show(drawn.position)).collect();
            m.ok(&party(3), Action::Claim { tick: totals.ticks, openings });
        }
        for (id, rate) in [(victim, victim_rate), (shield, own_rate * u128::from(is_funded))] {
            // What was burned of it shows when it weighs less than it could.
            let weighs = claimables.iter().find(|c| c.deal == id).map_or(0, |c| c.weight.0);
            if weighs < rate {
                m.ok(&party(3), Action::Pledge { deal: id, amount: Amount(share(rate)) });
            }
        }
    }
    tick(&mut m);
    let _ = m.submit(&party(4), Action::Lapse { node: party(3).node.public() });
    let gained = (all(&m) - start) as f64 / victim_rate as f64;
    println!("a shield of {} times, escrow {}: {gained:+.1}", case.own, case.escrow);
    gained
}

#[test]
fn lost_data_hides_behind_nothing() {
    for own in [3, 20, 100, 1000, 90_000] {
        // With hardly any money it hardly weighs; with money it costs more than it hides, whoever pays for it.
        for (escrow, by_voucher) in [(2, false), (1 << 42, false), (1 << 42, true)] {
            let gained = dilute(&Dilution { own, escrow, by_voucher });
            assert!(gained <= 0.0, "{own}, {escrow}, {by_voucher}: {gained}");
        }
    }
}

#[test]
fn burns_are_not_evaded_and_not_inflated() {
    let (holding, small) = (Holding::new(1, &[100_000]), Holding::new(2, &[1]));
    let cost = |change: &dyn Fn(&mut Market, DealId) -> Option<Event>| {
        let mut m = setup();
        let deal = open(&mut m, &party(4), 1, (1 << 32, 1 << 30), &holding, PRICE);
        m.ok(&party(3), Action::StartClaims { deal });
        tick(&mut m);
        tick(&mut m);
        // It was silent in one tick, and is in this one too.
        change(&mut m, deal);
        tick(&mut m);
        // What changes in a later tick changes nothing of it either. It may be settled by that already.
        let tiny = head(&m, &party(4), deal, 9, Some(&small), PRICE);
        m.ok(&party(3), Action::Anchor { head: tiny });
        let _ = m.submit(&party(2), Action::Lapse { node: party(3).node.public() });
        burned(&m)
    };
    let plain = cost(&|_, _| None);
    assert!(plain > 0);
    let anchor = |m: &mut Market, deal, holding, price| {
        let head = head(m, &party(4), deal, 2, Some(holding), price);
        Some(m.ok(&party(3), Action::Anchor { head }))
    };
    assert_eq!(
        cost(&|m, deal| anchor(m, deal, &small, PRICE)),
        plain,
        "a head over little, in the silent tick"
    );
    assert_eq!(cost(&|m, deal| anchor(m, deal, &holding, PRICE << 1)), plain, "a dearer head, by the client");
    let close = |m: &mut Market, deal| Some(m.ok(&party(3), Action::Close { deal, head: None }));
    assert_eq!(cost(&close), plain, "closing");
    let pledge =
        |m: &mut Market, deal| Some(m.ok(&party(3), Action::Pledge { deal, amount: Amount(1 << 35) }));
    assert_eq!(cost(&pledge), plain, "a larger pledge");
    let top_up =
        |m: &mut Market, deal| Some(m.ok(&party(4), Action::TopUp { deal, amount: Amount(1 << 35) }));
    assert_eq!(cost(&top_up), plain, "more escrow");
}

#[test]
fn a_deal_with_nothing_to_claim_makes_nobody_silent() {
    let mut m = setup();
    let holding = Holding::new(1, &[100_000]);
    let empty = open(&mut m, &party(2), 1, (1 << 32, 1 << 20), &holding, PRICE);
    m.ok(&party(3), Action::StartClaims { deal: empty });
    let nothing = head(&m, &party(2), empty, 2, None, PRICE);
    m.ok(&party(3), Action::Anchor { head: nothing });
    // The tick in which it was anchored is not claimed for yet; from then on there is nothing.
    for _ in 0..3 {
        tick(&mut m);
        let (tick, openings) = (m.ledger.state().totals().ticks, vec![]);
        assert_eq!(m.refused(&party(3), Action::Claim { tick, openings }).0, "nothing_to_claim");
    }
    let other = open(&mut m, &party(2), 2, (1 << 32, 1 << 30), &holding, PRICE);
    m.ok(&party(3), Action::StartClaims { deal: other });
    tick(&mut m);
    claim(&mut m, &holding);
    // Off for one period, the first ever.
    tick(&mut m);
    tick(&mut m);
    claim(&mut m, &holding);
    assert_eq!(burned(&m), 0);
}

#[test]
fn a_period_that_begins_with_its_last_moment_is_no_tick() {
    let mut m = setup();
    let holding = Holding::new(1, &[100_000]);
    let deal = open(&mut m, &party(2), 1, (1 << 36, 1 << 34), &holding, PRICE);
    m.ok(&party(3), Action::StartClaims { deal });
    tick(&mut m);
    claim(&mut m, &holding);
    let ticks = m.ledger.state().totals().ticks;
    // The market comes back a second before a period is over.
    m.now_s = (m.now_s / PERIOD_S + 10) * PERIOD_S + PERIOD_S - 1;
    m.block(vec![]);
    assert_eq!(m.ledger.state().totals().ticks, ticks);
    m.now_s += 1;
    m.block(vec![]);
    let Event::Claimed { amount, .. } = claim(&mut m, &holding) else { panic!("claimed") };
    let paid = amount.0 as f64 / rate(PRICE, 100_000) as f64;
    assert!((paid - 11.0 * 1.01).abs() < 0.01, "{paid} periods");
    assert_eq!(m.ledger.state().prover(&party(3).node.public()).unwrap().silent_tick, None);
}

#[test]
fn a_head_in_reserve_does_not_save_from_a_challenge() {
    let (holding, other) = (Holding::new(1, &[100_000]), Holding::new(2, &[90_000]));
    let mut m = setup();
    let deal_id = open(&mut m, &party(2), 1, (1 << 36, 1 << 42), &holding, PRICE);
    let challenger = party(4).account.public();
    let anchor = |m: &mut Market, seq, holding: &Holding| {
        let head = head(m, &party(2), deal_id, seq, Some(holding), PRICE);
        m.ok(&party(3), Action::Anchor { head });
    };
    let pass = |m: &mut Market, ticks| (0..ticks).for_each(|_| tick(m));
    let forfeit = |m: &mut Market| m.ok(&party(4), Action::Forfeit { deal: deal_id, challenger });
    // The same set again, or another one when it is too late.
    for (seq, set, waits) in [(2, &holding, 0), (3, &other, CHALLENGE_TICKS + 1)] {
        tick(&mut m);
        m.ok(&party(4), Action::Challenge { deal: deal_id });
        pass(&mut m, waits);
        anchor(&mut m, seq, set);
        pass(&mut m, CHALLENGE_TICKS + 1);
        let event = forfeit(&mut m);
        assert!(matches!(event, Event::Forfeited { penalty, .. } if penalty > Amount::ZERO), "{event:?}");
    }
    // Another set in time: the challenge goes over to it, twice and no more.
    tick(&mut m);
    m.ok(&party(4), Action::Challenge { deal: deal_id });
    for (seq, set) in [(4, &holding), (5, &other)] {
        anchor(&mut m, seq, set);
        pass(&mut m, CHALLENGE_TICKS + 1);
        assert_eq!(forfeit(&mut m), Event::Challenged { deal: deal_id, challenger });
        assert_eq!(m.refused(&party(4), Action::Forfeit { deal: deal_id, challenger }).0, "not_due");
    }
    anchor(&mut m, 6, &holding);
    pass(&mut m, CHALLENGE_TICKS + 1);
    let event = forfeit(&mut m);
    assert!(matches!(event, Event::Forfeited { penalty, .. } if penalty > Amount::ZERO), "{event:?}");
    m.ledger.state().check_all().unwrap();
}

#[test]
fn one_outage_costs_one_penalty_however_many_challenge() {
    let holding = Holding::new(1, &[100_000]);
    let mut m = setup();
    let challengers: Vec<Party> = (50..60).map(party).collect();
    for by in &challengers {
        let grant = m.grant(by, by, 1, 1 << 60, u64::MAX);
        m.ok(by, Action::Register { grant });
        m.ok(&party(1), Action::Fund { account: by.account.public(), amount: CHALLENGE_BOND });
    }
    let deal_id = open(&mut m, &party(2), 1, (1 << 36, 1 << 43), &holding, PRICE);
    for by in &challengers {
        m.ok(by, Action::Challenge { deal: deal_id });
    }
    (0..=CHALLENGE_TICKS).for_each(|_| tick(&mut m));
    let before = deal(&m, deal_id).collateral;
    let mut penalties = Vec::new();
    for by in &challengers {
        let forfeit = Action::Forfeit { deal: deal_id, challenger: by.account.public() };
        let Event::Forfeited { penalty, award, .. } = m.ok(by, forfeit) else { panic!("forfeited") };
        penalties.push(penalty);
        assert_eq!(m.free(by), CHALLENGE_BOND.0 + award.0, "the bond comes back");
    }
    assert!(penalties[0] > Amount::ZERO && penalties[1..].iter().all(|penalty| *penalty == Amount::ZERO));
    assert_eq!(before.saturating_sub(deal(&m, deal_id).collateral), penalties[0]);
    // A later one costs again.
    tick(&mut m);
    m.ok(&challengers[1], Action::Challenge { deal: deal_id });
    (0..=CHALLENGE_TICKS).for_each(|_| tick(&mut m));
    let forfeit = Action::Forfeit { deal: deal_id, challenger: challengers[1].account.public() };
    let Event::Forfeited { penalty, .. } = m.ok(&challengers[1], forfeit) else { panic!("forfeited") };
    assert_eq!(penalty, penalties[0]);
}
