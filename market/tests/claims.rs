//! Claims, silence and collateral, each by its own case: what pays, what burns, and what is refused.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

#[path = "harness/away.rs"]
mod away;
#[path = "harness/holding.rs"]
mod holding;
#[path = "harness/market.rs"]
mod market;

use away::{Away, RATE, head, open, price};
use holding::Holding;
use market::{Market, PERIOD_S, party};
use spare_market::amount::Amount;
use spare_market::claim::{CLAIM_DRAWS, Claimable, SILENCE_TICKS, draw_share, draws};
use spare_market::deal::DealId;
use spare_market::head::HeadV1;
use spare_market::tx::{Action, Blame, Event};
use spare_market::voucher::{Voucher, VoucherV1};

#[test]
fn an_honest_provider_is_paid_to_the_end_of_the_escrow_without_its_client() {
    let mut away = Away::new(RATE);
    away.start();
    assert_eq!(away.claim().unwrap_err().code(), "claim_tick", "not in the tick in which it began");
    let before = away.m.free(&party(3));
    let mut claims = 0;
    loop {
        away.tick();
        let claimed = match away.claim() {
            Ok(claimed) => claimed,
            // What is not paid any more weighs nothing.
            Err(refused) if away.on_ledger().escrow < Amount(2) => {
                break assert_eq!(refused.code(), "nothing_to_claim");
            }
            Err(refused) => panic!("{refused}"),
        };
        let Event::Claimed { deals, amount, fee, .. } = claimed else { panic!("claimed") };
        assert_eq!(deals, 1);
        // Of what a period costs, the client pays 1% more, the provider gets 1% less, and the market's fee of 5% is of the whole.
        let escrow_ended = away.on_ledger().escrow < Amount(RATE);
        assert!(escrow_ended || (amount.0 - RATE * 101 / 100) < 20, "{amount:?}");
        assert!(escrow_ended || (fee.0 as f64 / RATE as f64 - 0.0705).abs() < 1e-3, "{fee:?}");
        claims += 1;
        assert!(claims <= 1000, "no more than was funded");
        assert_eq!(away.claim().unwrap_err().code(), "claim_tick", "once a tick");
        away.m.ledger.state().check_all().unwrap();
    }
    assert!(claims >= 990, "{claims} periods were paid of 1000 funded, of which 1% went for claiming");
    let deal = away.on_ledger();
    assert!(deal.escrow < Amount(2) && deal.collateral == Amount(RATE), "{deal:?}");
    let earned = away.m.free(&party(3)) - before;
    assert!(earned > 925 * RATE && earned < 945 * RATE, "{earned}");
    // Nor is anything asked then.
    away.provider_action(Action::Close { deal: away.deal, head: None }).unwrap();
    for _ in 0..5 {
        away.tick();
        assert_eq!(away.claim().unwrap_err().code(), "nothing_to_claim");
    }
    for node in [party(3), party(4)] {
        assert_eq!(away.m.refused(&party(4), Action::Lapse { node: node.node.public() }).0, "not_due");
    }
    let deal = away.deal;
    away.m.ok(&party(2), Action::Settle { deal });
    assert_eq!(away.m.ledger.state().totals().burned, Amount::ZERO);
}

#[test]
fn what_is_shown_has_to_be_what_was_drawn() {
    let mut away = Away::new(RATE);
    away.start();
    away.tick();
    let (tick, openings) = away.shown();
    let mut refused = |tick, openings| {
        let action = Action::Claim { tick, openings };
        away.m.refused(&party(3), action)
    };
    assert_eq!(refused(tick, openings[1..].to_vec()), ("not_shown", Blame::Sender));
    assert_eq!(refused(tick, vec![]), ("not_shown", Blame::Sender));
    let mut other = openings.clone();
    other.reverse();
    assert_eq!(refused(tick, other), ("not_shown", Blame::Sender));
    for draw in 0..CLAIM_DRAWS {
        let mut forged = openings.clone();
        forged[draw].leaf.leaf[0] ^= 1;
        assert_eq!(refused(tick, forged), ("not_shown", Blame::Sender), "draw {draw}");
    }
    for wrong in [tick - 1, tick + 1] {
        assert_eq!(refused(wrong, openings.clone()), ("claim_tick", Blame::Nobody));
    }
    // Another node of another account shows nothing with them.
    let action = Action::Claim { tick, openings: openings.clone() };
    assert_eq!(away.m.refused(&party(4), action), ("nothing_to_claim", Blame::Sender));
    // The next tick draws anew.
    let (m, now_s) = (&away.m.ledger.clone(), away.m.now_s);
    away.tick();
    let action = Action::Claim { tick: tick + 1, openings: openings.clone() };
    assert_eq!(away.m.refused(&party(3), action), ("not_shown", Blame::Sender));
    (away.m.ledger, away.m.now_s) = (m.clone(), now_s);
    away.claim().unwrap();
}

#[test]
fn what_is_claimed_was_on_the_ledger_before_the_beacon() {
    let mut away = Away::new(RATE);
    away.start();
    away.tick();
    // A head that comes after the beacon does not count yet, whatever it covers: a provider could choose it by the draws.
    let small = Holding::new(2, &[10]);
    let newer = head(&away.m, away.deal, 2, &small);
    let at = |away: &Away| away.claimables()[0].head.head.seq;
    assert_eq!(at(&away), 1);
    let newer = away.m.head(away.deal, 2, |h| {
        let HeadV1 { set_root, bytes, .. } =
            spare_proofs::encode::from_bytes::<spare_market::head::Head>(&newer.head.bytes, 500)
                .map(|head| *head.v1())
                .unwrap();
        (h.set_root, h.bytes, h.price) = (set_root, bytes, price(away.holding.sum().bytes));
    });
    away.provider_action(Action::Anchor { head: newer }).unwrap();
    assert_eq!(at(&away), 1, "the one before");
    let third = away.m.head(away.deal, 3, |h| {
        (h.set_root, h.bytes, h.price) = (small.sum().hash, 10, price(away.holding.sum().bytes));
    });
    away.provider_action(Action::Anchor { head: third }).unwrap();
    assert_eq!(at(&away), 1, "still the one before this tick");
    away.claim().unwrap();
    away.tick();
    assert_eq!(at(&away), 3);
}

#[test]
fn one_silent_period_costs_its_pay_and_a_second_one_burns() {
    let mut away = Away::new(RATE);
    away.start();
    away.tick();
    away.claim().unwrap();
    // Away for a period.
    away.tick();
    away.tick();
    let (before, escrow) = (away.m.free(&party(3)), away.on_ledger().escrow);
    let Event::Claimed { amount, .. } = away.claim().unwrap() else { panic!("claimed") };
    assert!(amount.0 < RATE * 102 / 100, "the period that was not claimed is not paid later: {amount:?}");
    assert_eq!(away.on_ledger().collateral, Amount(RATE), "nothing else is lost");
    assert!(away.m.free(&party(3)) > before && away.on_ledger().escrow < escrow);
    // A second one soon after.
    away.tick();
    away.tick();
    let event = away.m.ok(&party(4), Action::Lapse { node: party(3).node.public() });
    let share = draw_share(Amount(RATE));
    assert!(matches!(event, Event::Silent { burned, .. } if burned.0.abs_diff(share.0) < 5), "{event:?}");
    assert_eq!(
        away.m.refused(&party(4), Action::Lapse { node: party(3).node.public() }).0,
        "not_due",
        "once"
    );
    assert_eq!(away.m.ledger.state().totals().burned, Amount(RATE - away.on_ledger().collateral.0));
    away.claim().unwrap();
    // Long after, one is free again.
    for _ in 0..=SILENCE_TICKS {
        away.tick();
        away.claim().unwrap();
    }
    let left = away.on_ledger().collateral;
    away.tick();
    away.tick();
    away.claim().unwrap();
    assert_eq!(away.on_ledger().collateral, left);
    away.m.ledger.state().check_all().unwrap();
}

#[test]
fn an_outage_of_the_market_makes_nobody_silent() {
    let mut away = Away::new(RATE);
    away.start();
    away.m.now_s += 5 * PERIOD_S;
    away.m.block(vec![]);
    let Event::Claimed { amount, .. } = away.claim().unwrap() else { panic!("claimed") };
    assert!(amount.0.abs_diff(5 * RATE * 101 / 100) < 100, "all periods since the tick before: {amount:?}");
    assert_eq!(away.on_ledger().collateral, Amount(RATE));
}

#[test]
fn vouchers_are_taken_beside_claims_and_nothing_is_paid_twice() {
    let mut away = Away::new(RATE);
    let period = away.m.now_s / PERIOD_S;
    let old = voucher(&away, 0, period - 1, 3 * RATE);
    away.start();
    assert_eq!(away.m.refused(&party(3), Action::StartClaims { deal: away.deal }).0, "claiming");
    assert_eq!(away.m.refused(&party(3), Action::Redeem { voucher: old }).0, "voucher_epoch");
    away.tick();
    away.claim().unwrap();
    let paid = away.on_ledger().paid;
    assert_eq!(away.on_ledger().paid_through, Some(period));
    let same = voucher(&away, 1, period, paid.0);
    assert_eq!(away.m.refused(&party(3), Action::Redeem { voucher: same }).0, "stale_voucher");
    let back = voucher(&away, 1, period, paid.0 + 7);
    let Event::Paid { amount, .. } = away.provider_action(Action::Redeem { voucher: back }).unwrap() else {
        panic!("paid")
    };
    assert_eq!(amount, Amount(7));
    // What a voucher pays for is shown all the same, for what claiming costs, until the provider ends it.
    away.tick();
    let later = voucher(&away, 1, period + 1, paid.0 + RATE);
    away.provider_action(Action::Redeem { voucher: later }).unwrap();
    let before = (away.on_ledger().collateral, away.on_ledger().paid);
    let Event::Claimed { amount, fee, .. } = away.claim().unwrap() else { panic!("claimed") };
    assert!(amount == Amount::ZERO && fee.0.abs_diff(RATE / 50) < 10, "{fee:?}");
    let after = (away.on_ledger().collateral, away.on_ledger().paid);
    assert_eq!(after, (before.0.saturating_sub(fee), before.1), "out of the pledge");
    assert_eq!(away.m.refused(&party(2), Action::EndClaims { deal: away.deal }).0, "not_a_party");
    away.provider_action(Action::EndClaims { deal: away.deal }).unwrap();
    assert!(away.on_ledger().claiming.is_some_and(|claiming| !claiming.is_on()));
    assert_eq!(away.m.refused(&party(3), Action::EndClaims { deal: away.deal }).0, "nothing_to_claim");
    away.tick();
    let (tick, openings) = (away.m.ledger.state().totals().ticks, vec![]);
    assert_eq!(away.m.refused(&party(3), Action::Claim { tick, openings }).0, "nothing_to_claim");
    // Claims begin anew, and a period that nobody claimed or promised is not paid any more.
    away.start();
    assert_eq!((away.on_ledger().epoch, away.on_ledger().paid_through), (2, Some(period + 2)));
}

fn voucher(away: &Away, epoch: u32, through: u64, total: u128) -> spare_market::signed::SignedBytes {
    let voucher = VoucherV1 {
        deal: away.deal,
        epoch,
        paid_through: Some(through),
        read_bytes: 0,
        jobs: Amount::ZERO,
        skipped: Default::default(),
        total: Amount(total),
    };
    away.m.signed(Voucher::V1(voucher), &away.m.client.node)
}

#[test]
fn claims_are_the_providers_and_need_a_head_and_collateral() {
    let mut m = Market::new();
    let holding = Holding::new(1, &[100_000]);
    m.ok(&party(1), Action::Fund { account: party(2).account.public(), amount: Amount(1 << 40) });
    let deal = open(&mut m, 1, 100 * RATE, 0, &holding);
    assert_eq!(m.refused(&party(3), Action::StartClaims { deal }).0, "no_head");
    let empty = m.head(deal, 1, |h| (h.set_root, h.bytes) = ([0; 32], 0));
    m.ok(&party(3), Action::Anchor { head: empty });
    assert_eq!(m.refused(&party(3), Action::StartClaims { deal }).0, "no_head");
    let full = head(&m, deal, 2, &holding);
    m.ok(&party(3), Action::Anchor { head: full });
    assert_eq!(m.refused(&party(2), Action::StartClaims { deal }), ("not_a_party", Blame::Sender));
    assert_eq!(m.refused(&party(3), Action::StartClaims { deal: DealId([0; 32]) }).0, "no_such_deal");
    assert_eq!(m.refused(&party(3), Action::StartClaims { deal }), ("no_collateral", Blame::Provider));
    let mut away = Away { m, deal, holding };
    // The provider adds to it.
    let share = draw_share(Amount(RATE + 100)).0;
    let pledge = |amount| Action::Pledge { deal, amount: Amount(amount) };
    assert_eq!(away.m.refused(&party(3), pledge(0)).0, "nothing");
    assert_eq!(away.m.refused(&party(3), pledge(1 << 50)), ("collateral", Blame::Provider));
    assert_eq!(away.m.refused(&party(2), pledge(1)).0, "not_a_party");
    away.m.ok(&party(1), Action::Fund { account: party(3).account.public(), amount: Amount(RATE) });
    assert_eq!(away.m.ok(&party(3), pledge(share)), Event::Pledged { deal, amount: Amount(share) });
    away.start();
    away.tick();
    away.claim().unwrap();
    // It is given back at the end.
    let free = away.m.free(&party(3));
    away.m.ok(&party(2), Action::Close { deal, head: None });
    for _ in 0..2 {
        away.tick();
        away.claim().unwrap();
    }
    away.tick();
    let earned = away.m.free(&party(3));
    assert!(earned > free, "a closing deal is claimed for as well");
    away.m.ok(&party(2), Action::Settle { deal });
    assert_eq!(away.m.free(&party(3)), earned + share);
}

#[test]
fn what_a_silent_provider_owes_is_burned_before_its_deal_is_settled() {
    let mut away = Away::new(RATE);
    away.start();
    away.m.ok(&party(2), Action::Close { deal: away.deal, head: None });
    for _ in 0..4 {
        away.tick();
    }
    let free = away.m.free(&party(3));
    away.m.ok(&party(2), Action::Settle { deal: away.deal });
    let back = away.m.free(&party(3)) - free;
    // Two silent ticks in which the deal took part, of which one is free.
    assert!((RATE - back).abs_diff(draw_share(Amount(RATE)).0) < 10, "{back}");
}

#[test]
fn deals_are_drawn_by_amount_and_bytes_by_length() {
    let claimable = |tag: u8, bytes: u64, amount: u128| {
        let m = Market::new();
        let full = m.head(DealId([tag; 32]), 1, |h| h.bytes = bytes);
        let head = full.check(m.ledger.network(), &m.provider.node.public()).unwrap();
        let head = spare_market::head::AnchoredHead::of(&head);
        Claimable { deal: DealId([tag; 32]), head, weight: Amount(amount), amount: Amount(amount) }
    };
    let all = [claimable(1, 10, 100), claimable(2, 1000, 0), claimable(3, 1 << 40, 300)];
    let (mut by_deal, mut upper) = ([0u32; 3], 0);
    for beacon in 0..500u16 {
        let mut bytes = [0; 32];
        bytes[..2].copy_from_slice(&beacon.to_le_bytes());
        let drawn = draws(&bytes, &party(3).node.public(), &all);
        assert_eq!(drawn.len(), CLAIM_DRAWS);
        for drawn in drawn {
            by_deal[drawn.index] += 1;
            assert!(drawn.position < all[drawn.index].head.head.bytes);
            upper += u32::from(drawn.index == 2 && drawn.position >= 1 << 39);
        }
    }
    // 10,000 draws, a quarter and three quarters; the standard deviation is 43.
    assert!(by_deal[0].abs_diff(2500) < 200 && by_deal[1] == 0, "{by_deal:?}");
    assert!(upper.abs_diff(3750) < 220, "{upper}");
    assert!(draws(&[0; 32], &party(3).node.public(), &[]).is_empty());
}

/// On average a provider gains nothing by dropping data and hiding the gap among data of its own making, whatever share it drops.
#[test]
fn dilution_gains_nothing_on_average() {
    let m = Market::new();
    let claimable = |tag: u8, amount: u128| {
        let full = m.head(DealId([tag; 32]), 1, |h| h.bytes = 1 << 30);
        let head = full.check(m.ledger.network(), &m.provider.node.public()).unwrap();
        let head = spare_market::head::AnchoredHead::of(&head);
        Claimable { deal: DealId([tag; 32]), head, weight: Amount(amount), amount: Amount(amount) }
    };
    const BEACONS: u32 = 4000;
    for (victims, own) in [(1u128, 1000u128), (10, 1000), (50, 1000), (200, 1000), (1000, 1000), (1000, 10)] {
        let all = [claimable(1, victims * 1000), claimable(2, own * 1000)];
        let burn = draw_share(Amount((victims + own) * 1000)).0 as i128;
        let mut gain = 0i128;
        for beacon in 0..BEACONS {
            let seed = *blake3::hash(&beacon.to_le_bytes()).as_bytes();
            let is_caught = draws(&seed, &party(3).node.public(), &all).iter().any(|drawn| drawn.index == 0);
            gain += if is_caught { -burn } else { victims as i128 * 1000 };
        }
        let gain = gain as f64 / f64::from(BEACONS) / (victims * 1000) as f64;
        println!("{victims} of {own} hidden: {gain:+.3} of what was dropped, each period");
        // Within three standard deviations of the mean of this many draws.
        let deviation = (burn as f64 / (victims * 1000) as f64 + 1.0) * 1.5 / f64::from(BEACONS).sqrt();
        assert!(gain <= deviation, "{victims} {own}: {gain}");
    }
}

#[test]
fn what_is_drawn_in_a_tick_is_settled_when_it_begins() {
    let mut away = Away::new(RATE);
    let second = open(&mut away.m, 2, RATE / 2, RATE, &away.holding);
    let of_second = head(&away.m, second, 1, &away.holding);
    away.provider_action(Action::Anchor { head: of_second }).unwrap();
    away.start();
    away.provider_action(Action::StartClaims { deal: second }).unwrap();
    away.tick();
    let (_, before) = away.shown();
    // An escrow that nearly ran out is filled, a voucher is redeemed, claims end, collateral grows.
    away.m.ok(&party(2), Action::TopUp { deal: second, amount: Amount(RATE / 3) });
    let voucher = VoucherV1 {
        deal: second,
        epoch: 1,
        paid_through: Some(away.m.now_s / PERIOD_S - 1),
        read_bytes: 0,
        jobs: Amount::ZERO,
        skipped: Default::default(),
        total: Amount(5),
    };
    let voucher = away.m.signed(Voucher::V1(voucher), &away.m.client.node);
    away.provider_action(Action::Redeem { voucher }).unwrap();
    away.provider_action(Action::Pledge { deal: second, amount: Amount(7) }).unwrap();
    away.provider_action(Action::EndClaims { deal: second }).unwrap();
    away.provider_action(Action::Close { deal: second, head: None }).unwrap();
    let (tick, after) = away.shown();
    assert_eq!(before, after);
    assert_eq!(away.m.refused(&party(3), Action::StartClaims { deal: second }).0, "claiming", "nor anew");
    let claimed = away.provider_action(Action::Claim { tick, openings: before }).unwrap();
    assert!(matches!(claimed, Event::Claimed { deals: 2, .. }), "{claimed:?}");
    away.tick();
    assert_eq!(away.claimables().len(), 1, "from the next tick on it takes no part");
}

#[test]
fn an_outage_is_paid_as_far_as_the_escrow_reaches() {
    let mut m = Market::new();
    for who in [2, 3] {
        m.ok(&party(1), Action::Fund { account: party(who).account.public(), amount: Amount(1 << 40) });
    }
    let holding = Holding::new(1, &[100_000]);
    let deal = open(&mut m, 1, 3 * RATE, RATE, &holding);
    let head = head(&m, deal, 1, &holding);
    m.ok(&party(3), Action::Anchor { head });
    let mut away = Away { m, deal, holding };
    away.start();
    away.m.now_s += 10 * PERIOD_S;
    away.m.block(vec![]);
    let Event::Claimed { amount, .. } = away.claim().unwrap() else { panic!("claimed") };
    assert!(amount.0.abs_diff(3 * RATE) < 5 && away.on_ledger().escrow < Amount(5), "{amount:?}");
}

#[test]
fn a_deal_weighs_no_more_than_its_money_is_good_for() {
    let holding = Holding::new(1, &[100_000]);
    let weight = |escrow: u128, collateral: u128| {
        let mut m = Market::new();
        for who in [2, 3] {
            m.ok(&party(1), Action::Fund { account: party(who).account.public(), amount: Amount(1 << 40) });
        }
        let deal = open(&mut m, 1, escrow, collateral, &holding);
        let head = head(&m, deal, 1, &holding);
        m.ok(&party(3), Action::Anchor { head });
        let mut away = Away { m, deal, holding: Holding::new(1, &[100_000]) };
        away.start();
        away.tick();
        let weighed = away.claimables().first().map_or(0, |claimable| claimable.weight.0);
        let Ok(Event::Claimed { amount, .. }) = away.claim() else { panic!("claimed") };
        assert!(amount.0 <= weighed + weighed / 100 + 1, "no more is paid for a period: {amount:?}");
        weighed
    };
    let rate = weight(1000 * RATE, RATE);
    assert!(rate.abs_diff(RATE) < 100, "a period's rate: {rate}");
    assert_eq!(weight(1000 * RATE, RATE / 100), 20 * (RATE / 100), "what the collateral makes up for");
    assert_eq!(
        weight(RATE / 2, RATE),
        RATE / 2 * 10_000 / 10_100,
        "what the escrow can pay, with what claiming costs"
    );
}

#[test]
fn silence_counts_only_for_deals_that_took_part() {
    let mut away = Away::new(RATE);
    away.start();
    away.tick();
    away.claim().unwrap();
    let second = open(&mut away.m, 2, 1000 * RATE, RATE, &away.holding);
    let of_second = head(&away.m, second, 1, &away.holding);
    away.provider_action(Action::Anchor { head: of_second }).unwrap();
    // Silent for four ticks with the first deal alone; then claims for the second begin.
    for _ in 0..5 {
        away.tick();
    }
    away.provider_action(Action::StartClaims { deal: second }).unwrap();
    let left = |away: &Away, deal| away.m.ledger.state().deal(&deal).unwrap().collateral.0;
    assert!(
        (RATE - left(&away, away.deal)).abs_diff(3 * draw_share(Amount(RATE)).0) < 10,
        "one of four is free"
    );
    assert_eq!(left(&away, second), RATE);
    away.tick();
    away.claim().unwrap();
    assert_eq!(left(&away, second), RATE);
}

#[test]
fn a_long_outage_of_the_market_is_paid_as_far_as_the_collateral_reaches() {
    let mut away = Away::new(RATE);
    away.start();
    away.m.now_s += 100 * PERIOD_S;
    away.m.block(vec![]);
    let Event::Claimed { amount, .. } = away.claim().unwrap() else { panic!("claimed") };
    assert!(amount.0.abs_diff(20 * RATE * 101 / 100) < 100, "{amount:?}");
    away.tick();
    away.claim().unwrap();
    assert_eq!(away.m.ledger.state().totals().burned, Amount::ZERO);
}

#[test]
fn a_client_does_not_redeem_its_own_vouchers() {
    let mut away = Away::new(RATE);
    let period = away.m.now_s / PERIOD_S;
    let little = voucher(&away, 0, period - 1, 1);
    assert_eq!(
        away.m.refused(&party(2), Action::Redeem { voucher: little.clone() }),
        ("not_a_party", Blame::Sender)
    );
    away.provider_action(Action::Redeem { voucher: little }).unwrap();
}
