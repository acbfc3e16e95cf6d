//! Challenges: who asks, what an answer costs, and what no answer takes.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

#[path = "harness/away.rs"]
mod away;
#[path = "harness/holding.rs"]
mod holding;
#[path = "harness/market.rs"]
mod market;

use away::{Away, RATE};
use holding::Holding;
use market::party;
use spare_market::amount::Amount;
use spare_market::claim::{
    CHALLENGE_BOND, CHALLENGE_TICKS, CLAIM_DRAWS, PENALTY_BONDS_MIN, break_even_fault_rate,
};
use spare_market::keys::PublicKey;
use spare_market::tx::{Action, Blame, Event};

/// The right answer to the challenge of `challenger`, once it is known what is to be shown.
fn answer(away: &Away, challenger: PublicKey) -> Option<Action> {
    let (deal, state) = (away.deal, away.m.ledger.state());
    let positions = state.challenge(deal, challenger)?.positions(deal, &challenger, &state.totals())?;
    let openings = positions.into_iter().map(|position| away.holding.show(position)).collect();
    Some(Action::Answer { deal, challenger, openings })
}

#[test]
fn a_false_alarm_costs_the_challenger_and_pays_the_provider() {
    let mut away = Away::new(RATE * 100);
    let deal = away.deal;
    let (challenger, free) = (party(4).account.public(), away.m.free(&party(4)));
    assert_eq!(away.m.refused(&party(3), Action::Challenge { deal }), ("own_deal", Blame::Sender));
    away.m.ok(&party(4), Action::Challenge { deal });
    assert_eq!(away.m.free(&party(4)), free - CHALLENGE_BOND.0);
    assert_eq!(away.m.refused(&party(4), Action::Challenge { deal }).0, "challenge_exists");
    // Another account's challenge, the client's say, stands beside it.
    away.m.ok(&party(2), Action::Challenge { deal });
    assert_eq!(answer(&away, challenger), None, "what is to be shown is not known yet");
    let early = Action::Answer { deal, challenger, openings: vec![] };
    assert_eq!(away.m.refused(&party(3), early.clone()), ("not_due", Blame::Nobody));
    away.tick();
    assert_eq!(away.m.refused(&party(3), early).0, "not_shown");
    let of_client = answer(&away, party(2).account.public()).unwrap();
    let Action::Answer { openings, .. } = of_client else { panic!("an answer") };
    let mixed = Action::Answer { deal, challenger, openings };
    assert_eq!(away.m.refused(&party(3), mixed).0, "not_shown", "each challenge draws its own");
    let good = answer(&away, challenger).unwrap();
    assert_eq!(away.m.refused(&party(4), good.clone()).0, "not_a_party");
    let earned = away.m.free(&party(3));
    away.provider_action(good.clone()).unwrap();
    assert_eq!(away.m.free(&party(3)), earned + CHALLENGE_BOND.0 / 2);
    assert_eq!(away.m.free(&party(4)), free - CHALLENGE_BOND.0, "the bond is lost");
    assert_eq!(away.m.refused(&party(3), good).0, "no_such_challenge");
    assert_eq!(away.on_ledger().collateral, Amount(RATE * 100));
}

#[test]
fn who_answers_for_a_newer_head_is_not_paid_and_half_of_the_bond_comes_back() {
    let mut away = Away::new(RATE * 100);
    let (deal, challenger) = (away.deal, party(4).account.public());
    let (free, earned) = (away.m.free(&party(4)), away.m.free(&party(3)));
    away.m.ok(&party(4), Action::Challenge { deal });
    // What was lost is left out of the next head, which client and provider signed.
    away.holding = Holding::new(2, &[5_000, 100_000]);
    let newer = away.head(2);
    away.provider_action(Action::Anchor { head: newer }).unwrap();
    let moving = Action::Answer { deal, challenger, openings: vec![] };
    assert_eq!(away.provider_action(moving), Ok(Event::Challenged { deal, challenger }));
    away.tick();
    let lost = Amount(CHALLENGE_BOND.0 / 2);
    let good = answer(&away, challenger).unwrap();
    let answered = away.provider_action(good);
    assert_eq!(answered, Ok(Event::Answered { deal, challenger, lost }));
    assert_eq!(away.m.free(&party(3)), earned, "nothing for what it may have lost");
    assert_eq!(away.m.free(&party(4)), free - lost.0);
}

#[test]
fn an_unanswered_challenge_takes_of_the_collateral_for_challenger_and_client() {
    let mut away = Away::new(RATE * 5000);
    let (deal, challenger) = (away.deal, party(4).account.public());
    let (free, of_client) = (away.m.free(&party(4)), away.m.free(&party(2)));
    away.m.ok(&party(4), Action::Challenge { deal });
    away.m.ok(&party(3), Action::Close { deal, head: None });
    let forfeit = Action::Forfeit { deal, challenger };
    for _ in 0..CHALLENGE_TICKS {
        away.tick();
        assert_eq!(away.m.refused(&party(4), forfeit.clone()), ("not_due", Blame::Nobody));
        assert_eq!(
            away.m.refused(&party(3), Action::Settle { deal }).0,
            "not_due",
            "not before it is dealt with"
        );
    }
    away.tick();
    let late = Action::Answer { deal, challenger, openings: vec![] };
    assert_eq!(away.m.refused(&party(3), late), ("too_late", Blame::Sender));
    assert!(matches!(away.m.ok(&party(2), forfeit.clone()), Event::Forfeited { .. }));
    assert_eq!(away.m.refused(&party(4), forfeit).0, "no_such_challenge");
    let penalty = RATE * 5000 - away.on_ledger().collateral.0;
    assert_eq!(
        penalty,
        (721 * RATE).min(RATE * 5000).max(CHALLENGE_BOND.0 * PENALTY_BONDS_MIN).min(RATE * 5000)
    );
    assert_eq!(away.m.free(&party(4)), free + penalty / 2, "the bond comes back with half of the penalty");
    assert_eq!(away.m.free(&party(2)), of_client + penalty.div_ceil(2));
    away.m.ok(&party(3), Action::Settle { deal });
    // A deal that is closing can be challenged yet, for a while.
    let mut away = Away::new(RATE);
    let deal = away.deal;
    away.m.ok(&party(3), Action::Close { deal, head: None });
    away.tick();
    away.m.ok(&party(4), Action::Challenge { deal });
    away.tick();
    assert_eq!(away.m.refused(&party(2), Action::Challenge { deal }).0, "closing");
    let no_collateral = Away::new(0);
    let mut m = no_collateral.m;
    assert_eq!(
        m.refused(&party(4), Action::Challenge { deal: no_collateral.deal }),
        ("no_collateral", Blame::Provider)
    );
}

#[test]
fn a_challenge_breaks_even_where_it_is_said_to() {
    let penalty = Amount(CHALLENGE_BOND.0 * 8);
    let rate = break_even_fault_rate(penalty);
    let caught = spare_proofs::draw::detection(rate, CLAIM_DRAWS as u32);
    let gain = caught * penalty.credits() / 2.0 - (1.0 - caught) * CHALLENGE_BOND.credits();
    assert!(gain.abs() < 1e-9, "{gain}");
    assert!(rate > 0.0 && rate < 0.02, "{rate}");
}
