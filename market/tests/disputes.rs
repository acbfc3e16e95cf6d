//! Disputes about jobs, each rule and each end by its own case: who pays whom how much, what is too early, too late or not one's own to say.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

#[path = "harness/market.rs"]
mod market;

use std::ops::Range;

use market::{Market, PERIOD_S, Party, party};
use spare_market::amount::{Amount, SUPPLY_MAX};
use spare_market::deal::{CLOSING_PERIODS, Deal, DealId};
use spare_market::dispute::{
    COMMIT_TICKS, DISPUTE_BOND, DISPUTE_WINDOW_S, DISPUTES_MAX, Decision, Dispute, Outcome, REVEAL_TICKS,
    Stage, VERIFIER_FEE, Verdict, commitment,
};
use spare_market::job::{
    Ended, JobId, JobReceipt, Material, Order, OrderV1, REASON_MAX_BYTES, Ran, VERIFIERS_MAX,
};
use spare_market::keys::{PublicKey, SigningSecret};
use spare_market::signed::{NetworkId, Signable, Signed, SignedBytes};
use spare_market::tx::{Action, Blame, Event, Tx};

const CREDIT: u128 = 1_000_000_000_000;
/// What an order names here.
const PENALTY: u128 = CREDIT;
const FEE: u128 = VERIFIER_FEE.0;
const BOND: u128 = DISPUTE_BOND.0;
/// What each party is given besides.
const FUNDS: u128 = 100 * CREDIT;
const WORK: [u8; 32] = [6; 32];
/// What the work leads to, when it is run by somebody honest.
const TRUE: [u8; 32] = [1; 32];

/// A deal whose jobs can be disputed, and seven verifiers, in order of their node keys.
struct Court {
    m: Market,
    deal: DealId,
    bench: Vec<u8>,
}

fn bench() -> Vec<u8> {
    let mut bench: Vec<u8> = (10..17).collect();
    bench.sort_by_key(|tag| party(*tag).node.public());
    bench
}

fn ran() -> Ran {
    Ran {
        work: WORK,
        configuration: [7; 32],
        ended: Ended::Code(0),
        fuel: 5,
        memory_peak_bytes: 0,
        stdout: Material::of(b"wrong"),
        stderr: Material::of(b""),
        is_log_cut: false,
        outputs: Material::of(b""),
        output_bytes: 0,
    }
}

/// What the provider says here.
fn told() -> [u8; 32] {
    ran().hash()
}

impl Court {
    fn new(collateral: u128) -> Self {
        let mut m = Market::new();
        for who in [2, 3] {
            m.ok(&party(1), Action::Fund { account: party(who).account.public(), amount: Amount(FUNDS) });
        }
        let bench = bench();
        for who in &bench {
            let grant = m.grant(&party(*who), &party(*who), 1, 0, u64::MAX);
            m.ok(&party(*who), Action::Register { grant });
        }
        let terms = m.terms(|t| t.collateral = Amount(collateral));
        let action = Action::Open { terms: m.signed(terms.clone(), &party(3).node), escrow: Amount(1000) };
        m.ok(&party(2), action);
        Self { m, deal: terms.deal_id(), bench }
    }

    fn tick(&mut self, ticks: u64) {
        for _ in 0..ticks {
            self.m.now_s += PERIOD_S;
            self.m.block(vec![]);
        }
    }

    fn on_ledger(&self) -> &Deal {
        self.m.ledger.state().deal(&self.deal).unwrap()
    }

    fn of(&self, job: JobId) -> &Dispute {
        self.m.ledger.state().dispute(&job).unwrap()
    }

    fn decision(&self, job: JobId) -> Decision {
        self.of(job).decision.unwrap()
    }

    fn nodes(&self, count: usize) -> Vec<PublicKey> {
        self.bench[..count].iter().map(|tag| party(*tag).node.public()).collect()
    }

    fn order(&self, change: impl FnOnce(&mut OrderV1)) -> Order {
        let mut order = OrderV1 {
            deal: self.deal,
            work: WORK,
            verifiers: self.nodes(3),
            penalty: Amount(PENALTY),
            begin_by_s: 0,
            salt: [0; 16],
        };
        change(&mut order);
        Order::V1(order)
    }

    fn receipt(&self, order: &Order, change: impl FnOnce(&mut JobId, &mut Ran, &mut u64)) -> JobReceipt {
        let (mut job, mut ran, mut ended_s) = (order.job_id(), ran(), self.m.now_s);
        change(&mut job, &mut ran, &mut ended_s);
        JobReceipt::V1 { job, ran, ended_s }
    }

    fn action(&self, order: &Order, receipt: JobReceipt) -> Action {
        let order = self.m.signed(order.clone(), &party(2).node);
        Action::Dispute { order, receipt: self.m.signed(receipt, &party(3).node), finding: TRUE }
    }

    /// A dispute about an order, which is to be decided by its verifiers.
    fn dispute(&mut self, change: impl FnOnce(&mut OrderV1)) -> JobId {
        let order = self.order(change);
        let action = self.action(&order, self.receipt(&order, |_, _, _| ()));
        let event = self.m.ok(&party(2), action);
        assert_eq!(event, Event::Disputed { deal: self.deal, job: order.job_id() });
        order.job_id()
    }

    fn commit_of(&self, by: usize, job: JobId, found: Option<[u8; 32]>) -> Action {
        let hash = commitment(job, &party(self.bench[by]).node.public(), found, &[by as u8; 32]);
        Action::Commit { job, hash }
    }

    fn reveal_of(&self, by: usize, job: JobId, found: Option<[u8; 32]>) -> Action {
        Action::Reveal { job, found, nonce: [by as u8; 32] }
    }

    fn judge(&self, by: usize) -> Party {
        party(self.bench[by])
    }

    fn commit(&mut self, by: usize, job: JobId, found: Option<[u8; 32]>) {
        let verifier = self.judge(by).node.public();
        let event = self.m.ok(&self.judge(by), self.commit_of(by, job, found));
        assert_eq!(event, Event::Committed { job, verifier });
    }

    fn reveal(&mut self, by: usize, job: JobId, found: Option<[u8; 32]>) -> Event {
        self.m.ok(&self.judge(by), self.reveal_of(by, job, found))
    }

    /// These commit to what the work leads to.
    fn commit_all(&mut self, verifiers: Range<usize>, job: JobId) {
        for by in verifiers {
            self.commit(by, job, Some(TRUE));
        }
    }

    /// These reveal that they have found it.
    fn reveal_all(&mut self, verifiers: Range<usize>, job: JobId) {
        for by in verifiers {
            self.reveal(by, job, Some(TRUE));
        }
    }

    /// All verifiers say what they found, or that they found nothing.
    fn say(&mut self, job: JobId, verdicts: &[Option<[u8; 32]>]) -> Event {
        for (by, found) in verdicts.iter().enumerate() {
            self.commit(by, job, *found);
        }
        let events = verdicts.iter().enumerate().map(|(by, found)| self.reveal(by, job, *found));
        events.last().unwrap()
    }

    fn has(&self, who: u8) -> u128 {
        self.m.free(&party(who))
    }

    /// What the verifiers have.
    fn earned(&self) -> Vec<u128> {
        self.bench.iter().map(|tag| self.has(*tag)).collect()
    }

    fn burned(&self) -> u128 {
        self.m.ledger.state().totals().burned.0
    }

    fn refused(&mut self, by: &Party, action: Action) -> (&'static str, Blame) {
        self.m.refused(by, action)
    }
}

#[test]
fn a_wrong_result_costs_the_penalty() {
    let mut court = Court::new(3 * CREDIT);
    let (client, provider) = (court.has(2), court.has(3));
    let job = court.dispute(|_| ());
    assert_eq!(court.has(2), client - BOND);
    // What another than the client says came out convicts as well; one who disagrees and one who is silent get nothing.
    let other = Some([9; 32]);
    let event = court.say(job, &[other, Some(told()), other]);
    let burned = PENALTY - PENALTY / 4 - 2 * FEE;
    let outcome = Outcome::Wrong {
        found: [9; 32],
        penalty: Amount(PENALTY),
        award: Amount(PENALTY / 4),
        burned: Amount(burned),
    };
    let fees = Amount(2 * FEE);
    assert_eq!(event, Event::Decided { deal: court.deal, job, outcome, fees });
    assert_eq!((court.has(2), court.has(3)), (client + PENALTY / 4, provider));
    assert_eq!(court.earned(), [FEE, 0, FEE, 0, 0, 0, 0]);
    assert_eq!(court.on_ledger().collateral, Amount(3 * CREDIT - PENALTY));
    assert_eq!(court.burned(), burned);
    let tick = court.m.ledger.state().totals().ticks;
    assert_eq!(court.decision(job), Decision { tick, outcome, fees });
    assert_eq!(court.of(job).bond, Amount::ZERO);
    assert_eq!(court.of(job).seats[1].verdict, Verdict::Revealed(Some(told())));
}

#[test]
fn a_right_result_costs_the_client_its_bond() {
    let mut court = Court::new(3 * CREDIT);
    let (client, provider) = (court.has(2), court.has(3));
    let job = court.dispute(|_| ());
    let event = court.say(job, &[Some(told()), Some(told()), Some(TRUE)]);
    let (outcome, fees) = (Outcome::Right, Amount(2 * FEE));
    assert_eq!(event, Event::Decided { deal: court.deal, job, outcome, fees });
    assert_eq!((court.has(2), court.has(3)), (client - BOND, provider + BOND - 2 * FEE));
    assert_eq!(court.earned()[..3], [FEE, FEE, 0]);
    assert_eq!((court.on_ledger().collateral, court.burned()), (Amount(3 * CREDIT), 0));
}

#[test]
fn without_a_majority_nothing_is_proven() {
    let (a, b, c) = (Some([21; 32]), Some([22; 32]), Some([23; 32]));
    for (verdicts, paid) in [
        (vec![a, b, c], vec![FEE, FEE, FEE]),
        (vec![a, None, None], vec![FEE, 0, 0]),
        (vec![None, None, None], vec![0, 0, 0]),
        (vec![a, b, None], vec![FEE, FEE, 0]),
        (vec![a, a, b, b, c], vec![FEE, FEE, FEE, FEE, FEE]),
        (vec![Some(told()), a, None, None, Some(told())], vec![FEE, FEE, 0, 0, FEE]),
    ] {
        let mut court = Court::new(3 * CREDIT);
        let (client, provider, count) = (court.has(2), court.has(3), verdicts.len());
        let verifiers = court.nodes(count);
        let job = court.dispute(|order| order.verifiers = verifiers);
        court.say(job, &verdicts);
        assert_eq!(court.decision(job).outcome, Outcome::Unproven);
        let fees: u128 = paid.iter().sum();
        assert_eq!((court.has(2), court.has(3)), (client - fees, provider));
        assert_eq!(court.earned()[..count], paid);
        assert_eq!((court.on_ledger().collateral, court.burned()), (Amount(3 * CREDIT), 0));
    }
}

#[test]
fn a_majority_is_one_of_all_who_are_named() {
    // Two of five agree and all others are silent: not more than half of five.
    let mut court = Court::new(3 * CREDIT);
    let client = court.has(2);
    let verifiers = court.nodes(5);
    let job = court.dispute(|order| order.verifiers = verifiers);
    court.commit_all(0..3, job);
    court.tick(COMMIT_TICKS + 1);
    court.reveal_all(0..2, job);
    assert_eq!(court.refused(&party(4), Action::Decide { job }), ("undecided", Blame::Nobody));
    court.tick(REVEAL_TICKS);
    // Whoever committed and did not reveal gets nothing.
    court.m.ok(&party(4), Action::Decide { job });
    assert_eq!(court.decision(job).outcome, Outcome::Unproven);
    assert_eq!((court.has(2), &court.earned()[..3]), (client - 2 * FEE, &[FEE, FEE, 0][..]));
    assert_eq!(court.refused(&party(4), Action::Decide { job }), ("decided", Blame::Nobody));
    // Three of five are.
    let verifiers = court.nodes(5);
    let job = court.dispute(|order| (order.verifiers, order.salt) = (verifiers, [1; 16]));
    court.commit_all(0..4, job);
    court.tick(COMMIT_TICKS + 1);
    court.reveal_all(0..3, job);
    court.tick(REVEAL_TICKS);
    court.m.ok(&party(4), Action::Decide { job });
    assert!(matches!(court.decision(job).outcome, Outcome::Wrong { .. }));
}

#[test]
fn fees_do_not_depend_on_the_verdict_and_half_of_a_penalty_is_burned() {
    // A penalty so small that a quarter of it does not pay three verifiers: the bond makes up the difference.
    let mut court = Court::new(3 * CREDIT);
    let client = court.has(2);
    let job = court.dispute(|order| order.penalty = Amount(4 * FEE));
    court.say(job, &[Some(TRUE), Some(TRUE), Some(TRUE)]);
    let outcome =
        Outcome::Wrong { found: TRUE, penalty: Amount(4 * FEE), award: Amount(FEE), burned: Amount(2 * FEE) };
    assert_eq!(court.decision(job).outcome, outcome);
    assert_eq!(court.has(2), client + FEE - 2 * FEE);
    assert_eq!((court.earned(), court.burned()), (vec![FEE, FEE, FEE, 0, 0, 0, 0], 2 * FEE));
}

#[test]
fn a_penalty_takes_what_collateral_is_left() {
    let mut court = Court::new(PENALTY + 8 * FEE);
    let client = court.has(2);
    let jobs: Vec<JobId> = (0..3).map(|salt| court.dispute(|order| order.salt = [salt; 16])).collect();
    assert_eq!(court.has(2), client - 3 * BOND);
    let lost = |court: &Court, job| match court.decision(job).outcome {
        Outcome::Wrong { penalty, award, burned, .. } => (penalty.0, award.0, burned.0),
        outcome => panic!("{outcome:?}"),
    };
    let found = [Some(TRUE), Some(TRUE), Some(TRUE)];
    court.say(jobs[0], &found);
    assert_eq!(lost(&court, jobs[0]), (PENALTY, PENALTY / 4, 3 * PENALTY / 4 - 3 * FEE));
    court.say(jobs[1], &found);
    assert_eq!(lost(&court, jobs[1]), (8 * FEE, 2 * FEE, 4 * FEE));
    court.say(jobs[2], &found);
    assert_eq!(lost(&court, jobs[2]), (0, 0, 0));
    assert_eq!(court.on_ledger().collateral, Amount::ZERO);
    // The second bond made up for one fee, the third for all three.
    assert_eq!(court.has(2), client + PENALTY / 4 + 2 * FEE - FEE - 3 * FEE);
    assert_eq!(court.earned()[..3], [3 * FEE; 3]);
    assert_eq!(court.burned(), 3 * PENALTY / 4 - 3 * FEE + 4 * FEE);
    // From then on nothing can be won.
    let order = court.order(|order| order.salt = [9; 16]);
    let action = court.action(&order, court.receipt(&order, |_, _, _| ()));
    assert_eq!(court.refused(&party(2), action), ("no_collateral", Blame::Provider));
}

#[test]
fn silence_burns_before_a_penalty_does() {
    let mut court = Court::new(PENALTY);
    let deal = court.deal;
    let head = court.m.head(deal, 1, |_| ());
    court.m.ok(&party(3), Action::Anchor { head });
    court.m.ok(&party(3), Action::StartClaims { deal });
    let job = court.dispute(|order| order.penalty = SUPPLY_MAX);
    court.commit_all(0..3, job);
    // Ticks in which the provider does not claim: the first is free, the running one is not over.
    court.tick(5);
    court.reveal_all(0..3, job);
    // A gibibyte at 1000 costs 27 a period here, and a draw's share of that is 2.
    let silent = 3 * 2;
    let Outcome::Wrong { penalty, burned, .. } = court.decision(job).outcome else { panic!("wrong") };
    assert_eq!(penalty, Amount(PENALTY - silent));
    assert_eq!(court.burned(), silent + burned.0);
    assert_eq!(court.on_ledger().collateral, Amount::ZERO);
}

#[test]
fn a_stake_that_a_penalty_changes_is_kept_as_it_was() {
    let mut court = Court::new(PENALTY);
    let job = court.dispute(|_| ());
    court.tick(2);
    court.say(job, &[Some(TRUE), Some(TRUE), Some(TRUE)]);
    let ticks = court.m.ledger.state().totals().ticks;
    assert_eq!(court.on_ledger().stake_before(ticks).collateral, Amount(PENALTY));
    assert_eq!(court.on_ledger().collateral, Amount::ZERO);
}

#[test]
fn windows_are_open_to_their_last_tick() {
    let mut court = Court::new(3 * CREDIT);
    let job = court.dispute(|_| ());
    court.commit(0, job, Some(TRUE));
    assert_eq!(court.of(job).stage(court.of(job).made_tick), Stage::Committing);
    court.tick(COMMIT_TICKS);
    court.commit(1, job, Some(TRUE));
    let early = court.reveal_of(0, job, Some(TRUE));
    assert_eq!(court.refused(&court.judge(0), early.clone()), ("commits_open", Blame::Nobody));
    assert_eq!(court.refused(&party(4), Action::Decide { job }), ("undecided", Blame::Nobody));
    court.tick(1);
    let late = court.commit_of(2, job, Some(TRUE));
    assert_eq!(court.refused(&court.judge(2), late), ("commits_over", Blame::Sender));
    let verifier = court.judge(0).node.public();
    assert_eq!(court.m.ok(&court.judge(0), early), Event::Revealed { job, verifier, found: Some(TRUE) });
    court.tick(REVEAL_TICKS - 1);
    assert_eq!(court.refused(&party(4), Action::Decide { job }).0, "undecided");
    // The last that can come decides, though one has never come.
    let event = court.reveal(1, job, Some(TRUE));
    assert!(matches!(event, Event::Decided { outcome: Outcome::Wrong { .. }, .. }));

    // A tick later it is too late.
    let job = court.dispute(|order| order.salt = [1; 16]);
    court.commit_all(0..2, job);
    court.tick(COMMIT_TICKS + 1);
    court.reveal(0, job, Some(TRUE));
    court.tick(REVEAL_TICKS);
    let late = court.reveal_of(1, job, Some(TRUE));
    assert_eq!(court.refused(&court.judge(1), late.clone()), ("reveals_over", Blame::Sender));
    court.m.ok(&party(4), Action::Decide { job });
    assert_eq!(court.decision(job).outcome, Outcome::Unproven);
    assert_eq!(court.refused(&court.judge(1), late).0, "reveals_over");

    // Where nobody committed, nothing more can come.
    let job = court.dispute(|order| order.salt = [2; 16]);
    court.tick(COMMIT_TICKS);
    assert_eq!(court.refused(&party(4), Action::Decide { job }).0, "undecided");
    court.tick(1);
    let client = court.has(2);
    court.m.ok(&party(4), Action::Decide { job });
    assert_eq!((court.decision(job).outcome, court.has(2)), (Outcome::Unproven, client + BOND));
}

#[test]
fn an_outage_makes_the_windows_longer() {
    let mut court = Court::new(3 * CREDIT);
    let job = court.dispute(|_| ());
    court.m.now_s += 100 * PERIOD_S;
    court.m.block(vec![]);
    court.commit(0, job, Some(TRUE));
}

#[test]
fn nobody_learns_anothers_verdict_in_time_to_copy_it() {
    let mut court = Court::new(3 * CREDIT);
    let job = court.dispute(|_| ());
    court.commit(0, job, Some(TRUE));
    // The commitment itself is of no use to another: its own key is not in it.
    let Action::Commit { hash, .. } = court.commit_of(0, job, Some(TRUE)) else { panic!("a commitment") };
    court.m.ok(&court.judge(1), Action::Commit { job, hash });
    court.tick(COMMIT_TICKS + 1);
    court.reveal(0, job, Some(TRUE));
    let copied = court.reveal_of(0, job, Some(TRUE));
    assert_eq!(court.refused(&court.judge(1), copied.clone()), ("other_verdict", Blame::Sender));
    // Nor can one who waited for the others say anything.
    assert_eq!(court.refused(&court.judge(2), copied), ("not_committed", Blame::Sender));
    let late = court.commit_of(2, job, Some(TRUE));
    assert_eq!(court.refused(&court.judge(2), late).0, "commits_over");
    court.tick(REVEAL_TICKS);
    court.m.ok(&party(4), Action::Decide { job });
    assert_eq!(court.earned()[..3], [FEE, 0, 0]);
}

#[test]
fn a_verifier_says_one_thing_once() {
    let mut court = Court::new(3 * CREDIT);
    let job = court.dispute(|_| ());
    court.commit(0, job, Some(TRUE));
    let again = court.commit_of(0, job, Some(told()));
    assert_eq!(court.refused(&court.judge(0), again), ("committed", Blame::Sender));
    let unnamed = court.commit_of(3, job, Some(TRUE));
    assert_eq!(court.refused(&court.judge(3), unnamed), ("not_a_verifier", Blame::Sender));
    for stranger in [party(2), party(3), party(4)] {
        let action = Action::Commit { job, hash: [0; 32] };
        assert_eq!(court.refused(&stranger, action).0, "not_a_verifier");
        let action = Action::Reveal { job, found: None, nonce: [0; 32] };
        assert_eq!(court.refused(&stranger, action).0, "not_a_verifier");
    }
    // Once all have committed, nobody waits for the end of the window.
    court.commit(1, job, None);
    court.commit(2, job, Some(TRUE));
    let again = court.commit_of(1, job, Some(TRUE));
    assert_eq!(court.refused(&court.judge(1), again).0, "committed");
    let other = court.reveal_of(0, job, Some(told()));
    assert_eq!(court.refused(&court.judge(0), other).0, "other_verdict", "another result");
    let other = court.reveal_of(0, job, None);
    assert_eq!(court.refused(&court.judge(0), other).0, "other_verdict", "no result");
    let other = Action::Reveal { job, found: Some(TRUE), nonce: [77; 32] };
    assert_eq!(court.refused(&court.judge(0), other).0, "other_verdict", "another nonce");
    let other = court.reveal_of(1, job, Some([0; 32]));
    assert_eq!(court.refused(&court.judge(1), other).0, "other_verdict", "a result of zeros");
    court.reveal(0, job, Some(TRUE));
    let again = court.reveal_of(0, job, Some(TRUE));
    assert_eq!(court.refused(&court.judge(0), again), ("revealed", Blame::Sender));
    court.reveal(1, job, None);
    assert!(matches!(court.reveal(2, job, Some(TRUE)), Event::Decided { .. }));
    for by in 0..3 {
        let again = court.reveal_of(by, job, Some(TRUE));
        assert_eq!(court.refused(&court.judge(by), again).0, "revealed");
    }
    let none = JobId([0; 32]);
    for action in [
        Action::Commit { job: none, hash: [0; 32] },
        Action::Reveal { job: none, found: None, nonce: [0; 32] },
        Action::Decide { job: none },
    ] {
        assert_eq!(court.refused(&court.judge(0), action), ("no_such_dispute", Blame::Sender));
    }
}

#[test]
fn verdicts_need_a_grant_to_provide() {
    let mut court = Court::new(3 * CREDIT);
    let job = court.dispute(|_| ());
    court.commit(0, job, Some(TRUE));
    let revoke = |court: &Court, by: usize| {
        let grant = spare_market::grant::Grant::V1 {
            delegate: court.judge(by).node.public(),
            scopes: vec![],
            spend_cap: Amount::ZERO,
            serial: 2,
            expires_s: u64::MAX,
        };
        Action::Register { grant: court.m.signed(grant, &court.judge(by).account) }
    };
    for by in [0, 1] {
        court.m.ok(&court.judge(by), revoke(&court, by));
    }
    let action = court.commit_of(1, job, Some(TRUE));
    assert_eq!(court.refused(&court.judge(1), action), ("scope", Blame::Sender));
    court.tick(COMMIT_TICKS + 1);
    let action = court.reveal_of(0, job, Some(TRUE));
    assert_eq!(court.refused(&court.judge(0), action), ("scope", Blame::Sender));
}

/// Whether the client's node gets a dispute through about these, and why not.
fn tried(
    court: &mut Court,
    order: SignedBytes,
    receipt: SignedBytes,
    finding: [u8; 32],
) -> (&'static str, Blame) {
    court.refused(&party(2), Action::Dispute { order, receipt, finding })
}

#[test]
fn a_dispute_is_about_what_both_have_signed() {
    let mut court = Court::new(3 * CREDIT);
    let order = court.order(|_| ());
    let receipt = court.receipt(&order, |_, _, _| ());
    let sent = court.m.signed(order.clone(), &party(2).node);
    let got = court.m.signed(receipt.clone(), &party(3).node);
    let flipped = |raw: &SignedBytes| {
        let mut raw = raw.clone();
        raw.bytes[40] ^= 1;
        raw
    };
    let elsewhere = NetworkId([9; 32]);
    let foreign_order = Signed::new(order.clone(), elsewhere, &party(2).node).raw().clone();
    let foreign_receipt = Signed::new(receipt.clone(), elsewhere, &party(3).node).raw().clone();
    for bad in [flipped(&sent), got.clone(), foreign_order] {
        assert_eq!(tried(&mut court, bad, got.clone(), TRUE), ("bad_order", Blame::Sender));
    }
    for bad in [flipped(&got), sent.clone(), foreign_receipt] {
        assert_eq!(tried(&mut court, sent.clone(), bad, TRUE), ("bad_receipt", Blame::Sender));
    }
    for forger in [party(3).node, party(4).node, party(2).account] {
        let forged = court.m.signed(order.clone(), &forger);
        assert_eq!(tried(&mut court, forged, got.clone(), TRUE), ("bad_order", Blame::Client));
    }
    for forger in [party(2).node, party(4).node, party(3).account] {
        let forged = court.m.signed(receipt.clone(), &forger);
        assert_eq!(tried(&mut court, sent.clone(), forged, TRUE), ("bad_receipt", Blame::Sender));
    }
    // What does not belong together, or to a deal.
    let salted = court.order(|order| order.salt = [1; 16]);
    let other = court.m.signed(salted.clone(), &party(2).node);
    assert_eq!(tried(&mut court, other, got.clone(), TRUE), ("other_job", Blame::Sender));
    let of_other_work = court.receipt(&order, |_, ran, _| ran.work = [8; 32]);
    let of_other_work = court.m.signed(of_other_work, &party(3).node);
    assert_eq!(tried(&mut court, sent.clone(), of_other_work, TRUE), ("other_job", Blame::Provider));
    let nowhere = court.order(|order| order.deal = DealId([4; 32]));
    let nowhere = court.m.signed(nowhere, &party(2).node);
    assert_eq!(tried(&mut court, nowhere, got.clone(), TRUE), ("no_such_deal", Blame::Sender));
    assert_eq!(tried(&mut court, sent.clone(), got.clone(), told()), ("nothing_to_dispute", Blame::Sender));
    // Whoever else it may concern.
    let action =
        |order: &SignedBytes| Action::Dispute { order: order.clone(), receipt: got.clone(), finding: TRUE };
    for stranger in [party(3), party(4), court.judge(0)] {
        assert_eq!(court.refused(&stranger, action(&sent)), ("not_a_party", Blame::Sender));
    }
    let second = Party { account: party(2).account, node: party(7).node };
    let grant = court.m.grant(&party(2), &second, 1, 2 * BOND, u64::MAX);
    court.m.ok(&second, Action::Register { grant });
    assert_eq!(court.refused(&second, action(&sent)), ("not_a_signer", Blame::Sender));
    let of_second = court.m.signed(order.clone(), &second.node);
    assert_eq!(tried(&mut court, of_second.clone(), got.clone(), TRUE), ("bad_order", Blame::Client));
    // A signer disputes, what a signer ordered.
    let deal = court.deal;
    court.m.ok(&second, Action::TopUp { deal, amount: Amount(1) });
    court.m.ok(&second, action(&of_second));
    let event = court.say(order.job_id(), &[Some(TRUE), Some(TRUE), Some(TRUE)]);
    assert!(matches!(event, Event::Decided { .. }));
}

#[test]
fn an_order_has_to_name_who_decides_and_what_is_at_stake() {
    let mut court = Court::new(3 * CREDIT);
    let mut refused = |change: &dyn Fn(&Court, &mut OrderV1)| {
        let order = court.order(|order| change(&court, order));
        let action = court.action(&order, court.receipt(&order, |_, _, _| ()));
        court.refused(&party(2), action)
    };
    assert_eq!(
        refused(&|_, o| (o.verifiers, o.penalty) = (vec![], Amount::ZERO)),
        ("no_verifiers", Blame::Client)
    );
    assert_eq!(refused(&|_, o| o.verifiers = vec![]), ("bad_order", Blame::Client));
    assert_eq!(refused(&|_, o| o.verifiers.truncate(2)), ("bad_order", Blame::Client), "an even number");
    assert_eq!(refused(&|_, o| o.verifiers.swap(0, 1)), ("bad_order", Blame::Client), "out of order");
    assert_eq!(refused(&|_, o| o.penalty = Amount::ZERO), ("no_penalty", Blame::Client));
    let with = |who: SigningSecret| {
        move |court: &Court, o: &mut OrderV1| {
            o.verifiers = court.nodes(2).into_iter().chain([who.public()]).collect();
            o.verifiers.sort_unstable();
        }
    };
    assert_eq!(refused(&with(party(9).node)), ("unknown_verifier", Blame::Client));
    assert_eq!(refused(&with(party(10).account)), ("unknown_verifier", Blame::Client));
    assert_eq!(refused(&with(party(2).node)), ("own_case", Blame::Client), "the client");
    assert_eq!(refused(&with(party(3).node)), ("own_case", Blame::Client), "the provider");
    // Other nodes of theirs are no better, nor are two of one verifier.
    for (of, code) in [(2, "own_case"), (3, "own_case"), (court.bench[0], "same_account")] {
        let node = party(20 + of).node;
        let member = Party { account: party(of).account, node: party(20 + of).node };
        let grant = court.m.grant(&party(of), &member, 1, 0, u64::MAX);
        court.m.ok(&member, Action::Register { grant });
        let order = court.order(|order| with(node)(&court, order));
        let action = court.action(&order, court.receipt(&order, |_, _, _| ()));
        assert_eq!(court.refused(&party(2), action), (code, Blame::Client));
    }
    // A single verifier is one.
    let job = court.dispute(|order| order.verifiers.truncate(1));
    court.say(job, &[Some(TRUE)]);
    assert!(matches!(court.decision(job).outcome, Outcome::Wrong { .. }));
}

#[test]
fn a_bond_is_spent_like_other_money() {
    let mut court = Court::new(3 * CREDIT);
    let order = court.order(|_| ());
    let action = court.action(&order, court.receipt(&order, |_, _, _| ()));
    let spent = court.m.ledger.state().delegate(&party(2).node.public()).unwrap().spent.0;
    let grant = court.m.grant(&party(2), &party(2), 2, spent + BOND - 1, u64::MAX);
    court.m.ok(&party(2), Action::Register { grant });
    assert_eq!(court.refused(&party(2), action.clone()), ("spend_cap", Blame::Sender));
    let grant = court.m.grant(&party(2), &party(2), 3, u128::MAX >> 28, u64::MAX);
    court.m.ok(&party(2), Action::Register { grant });
    let deal = court.deal;
    let left = court.has(2);
    court.m.ok(&party(2), Action::TopUp { deal, amount: Amount(left - BOND + 1) });
    assert_eq!(court.refused(&party(2), action.clone()), ("funds", Blame::Sender));
    let account = party(2).account.public();
    court.m.ok(&party(1), Action::Fund { account, amount: Amount(1) });
    court.m.ok(&party(2), action);
    assert_eq!(court.has(2), 0);
}

#[test]
fn nobody_disputes_with_itself() {
    let mut court = Court::new(CREDIT);
    let terms = court.m.terms(|t| (t.client, t.collateral) = (t.provider, Amount(CREDIT)));
    let action = Action::Open { terms: court.m.signed(terms.clone(), &party(3).node), escrow: Amount(10) };
    court.m.ok(&party(3), action);
    let order = court.order(|order| order.deal = terms.deal_id());
    let receipt = court.m.signed(court.receipt(&order, |_, _, _| ()), &party(3).node);
    let action = Action::Dispute { order: court.m.signed(order, &party(3).node), receipt, finding: TRUE };
    assert_eq!(court.refused(&party(3), action), ("own_deal", Blame::Sender));
}

#[test]
fn a_job_is_disputed_once_and_for_a_week() {
    let mut court = Court::new(3 * CREDIT);
    court.m.now_s = 10 * DISPUTE_WINDOW_S;
    let refused = |court: &mut Court, salt: u8, ended_s: u64| {
        let order = court.order(|order| order.salt = [salt; 16]);
        let receipt = court.receipt(&order, |_, _, ended| *ended = ended_s);
        let action = court.action(&order, receipt);
        court.refused(&party(2), action)
    };
    let now_s = court.m.now_s;
    let just = now_s - DISPUTE_WINDOW_S;
    assert_eq!(refused(&mut court, 0, just - 1), ("dispute_too_late", Blame::Sender));
    assert_eq!(refused(&mut court, 0, 0).0, "dispute_too_late");
    let order = court.order(|_| ());
    let action = court.action(&order, court.receipt(&order, |_, _, ended| *ended = just));
    court.m.ok(&party(2), action);
    let job = order.job_id();
    assert_eq!(refused(&mut court, 0, just), ("disputed", Blame::Sender));
    court.say(job, &[Some(TRUE), Some(TRUE), Some(TRUE)]);
    assert_eq!(refused(&mut court, 0, just).0, "disputed", "though it is decided");
    // A later dispute has the ledger forget it, from the second on in which it cannot be made again.
    court.dispute(|order| order.salt = [1; 16]);
    assert_eq!(refused(&mut court, 0, just).0, "disputed");
    court.m.now_s += 1;
    let open = court.dispute(|order| order.salt = [2; 16]);
    assert_eq!(court.m.ledger.state().dispute(&job), None);
    assert_eq!(refused(&mut court, 0, just).0, "dispute_too_late");
    // One that is open is not forgotten, however old.
    court.m.now_s += 2 * DISPUTE_WINDOW_S;
    court.dispute(|order| order.salt = [3; 16]);
    assert!(court.of(open).is_open());
    // Nor does a receipt of the end of time overflow.
    let order = court.order(|order| order.salt = [4; 16]);
    let action = court.action(&order, court.receipt(&order, |_, _, ended| *ended = u64::MAX));
    court.m.ok(&party(2), action);
}

#[test]
fn the_ledger_remembers_so_many_disputes_of_a_deal() {
    let mut court = Court::new(100 * CREDIT - 10);
    for salt in 0..DISPUTES_MAX as u8 {
        let job = court.dispute(|order| order.salt = [salt; 16]);
        if salt % 2 == 0 {
            court.say(job, &[None, None, None]);
        }
    }
    let order = court.order(|order| order.salt = [99; 16]);
    let action = court.action(&order, court.receipt(&order, |_, _, _| ()));
    assert_eq!(court.refused(&party(2), action.clone()), ("too_many_disputes", Blame::Sender));
    assert_eq!(court.m.ledger.state().disputes_of(&court.deal).count(), DISPUTES_MAX);
    court.m.now_s += DISPUTE_WINDOW_S;
    assert_eq!(court.refused(&party(2), action.clone()).0, "too_many_disputes");
    court.m.now_s += 1;
    court.dispute(|order| order.salt = [99; 16]);
    // The decided half is gone, the open half is not.
    assert_eq!(court.m.ledger.state().disputes_of(&court.deal).count(), DISPUTES_MAX / 2 + 1);
}

#[test]
fn a_deal_with_an_open_dispute_is_not_settled() {
    let mut court = Court::new(3 * CREDIT);
    let (deal, provider) = (court.deal, court.has(3));
    court.m.ok(&party(3), Action::Close { deal, head: None });
    // As long as a closing deal cannot be settled, its jobs can be disputed.
    court.tick(CLOSING_PERIODS - 1);
    let job = court.dispute(|_| ());
    let settle = Action::Settle { deal };
    assert_eq!(court.refused(&party(3), settle.clone()).0, "not_due");
    court.tick(1);
    assert_eq!(court.refused(&party(3), settle.clone()), ("dispute_open", Blame::Nobody));
    let order = court.order(|order| order.salt = [1; 16]);
    let action = court.action(&order, court.receipt(&order, |_, _, _| ()));
    assert_eq!(court.refused(&party(2), action.clone()), ("closing", Blame::Sender));
    court.commit_all(0..3, job);
    court.tick(COMMIT_TICKS);
    assert_eq!(court.refused(&party(3), settle.clone()).0, "dispute_open");
    court.reveal_all(0..3, job);
    assert!(matches!(court.decision(job).outcome, Outcome::Wrong { .. }));
    court.m.ok(&party(4), settle);
    assert_eq!(court.has(3), provider + 3 * CREDIT - PENALTY);
    // With the deal goes what is remembered of it.
    assert_eq!(court.m.ledger.state().dispute(&job), None);
    assert_eq!(court.m.ledger.state().disputes_of(&deal).count(), 0);
    assert_eq!(court.refused(&party(2), action).0, "no_such_deal");
}

#[test]
fn disputes_in_one_block_are_seen_by_what_follows_in_it() {
    let mut court = Court::new(3 * CREDIT);
    let deal = court.deal;
    court.m.ok(&party(3), Action::Close { deal, head: None });
    court.tick(CLOSING_PERIODS - 1);
    court.m.now_s += 1;
    let order = court.order(|_| ());
    let action = court.action(&order, court.receipt(&order, |_, _, _| ()));
    let number = |m: &Market, by: &Party| m.ledger.state().delegate(&by.node.public()).unwrap().number + 1;
    let next = number(&court.m, &party(2));
    let txs = vec![
        court.m.numbered(&party(2), next, action.clone()),
        court.m.numbered(&party(2), next + 1, action),
    ];
    let outcomes = court.m.block(txs);
    assert!(outcomes[0].is_ok());
    assert_eq!(outcomes[1].as_ref().unwrap_err().code(), "disputed");
    // Decided and settled in one block.
    let job = order.job_id();
    court.tick(COMMIT_TICKS + 1);
    let (decide, settle) = (number(&court.m, &party(4)), Action::Settle { deal });
    let txs = vec![
        court.m.numbered(&party(4), decide, settle.clone()),
        court.m.numbered(&party(4), decide, Action::Decide { job }),
        court.m.numbered(&party(4), decide + 1, settle),
    ];
    let outcomes = court.m.block(txs);
    assert_eq!(outcomes[0].as_ref().unwrap_err().code(), "dispute_open");
    assert!(outcomes[1..].iter().all(Result::is_ok));
    assert_eq!(court.m.ledger.state().dispute(&job), None);
    court.m.ledger.state().check_all().unwrap();
}

#[test]
fn a_verifier_finds_what_awaits_it() {
    let mut court = Court::new(3 * CREDIT);
    let first = court.dispute(|_| ());
    let verifiers = court.nodes(1);
    let second = court.dispute(|order| (order.verifiers, order.salt) = (verifiers, [1; 16]));
    let awaits = |court: &Court, by: usize| {
        let (state, node) = (court.m.ledger.state(), court.judge(by).node.public());
        let tick = state.totals().ticks;
        let mut jobs: Vec<JobId> =
            state.disputes_for(&node).filter(|(_, d)| d.awaits(&node, tick)).map(|(job, _)| job).collect();
        jobs.sort_unstable_by_key(|job| *job == second);
        jobs
    };
    let named = |court: &Court, by: usize| {
        court.m.ledger.state().disputes_for(&court.judge(by).node.public()).count()
    };
    assert_eq!(
        (awaits(&court, 0), awaits(&court, 1), awaits(&court, 3)),
        (vec![first, second], vec![first], vec![])
    );
    let work = court.of(first);
    assert_eq!((work.work, work.configuration, work.told, work.finding), (WORK, [7; 32], told(), TRUE));
    court.commit(0, first, None);
    assert_eq!((awaits(&court, 0), named(&court, 0)), (vec![second], 2));
    court.commit(0, second, None);
    assert_eq!(awaits(&court, 0), vec![second], "to be revealed: all have committed");
    assert!(court.m.ledger.state().is_disputed(&court.deal));
    court.reveal(0, second, None);
    assert_eq!((awaits(&court, 0), named(&court, 0)), (vec![], 1), "decided");
    court.tick(COMMIT_TICKS + 1);
    assert_eq!((awaits(&court, 0), awaits(&court, 1)), (vec![first], vec![]), "one to reveal, one too late");
    court.reveal(0, first, None);
    assert_eq!((named(&court, 0), named(&court, 1)), (0, 0));
    assert!(!court.m.ledger.state().is_disputed(&court.deal));
    assert_eq!(court.m.ledger.state().disputes_of(&court.deal).count(), 2, "remembered");
}

#[test]
fn the_largest_dispute_fits_and_amounts_are_what_is_written() {
    let court = Court::new(3 * CREDIT);
    let order = court.order(|order| {
        (order.verifiers, order.begin_by_s) = (court.nodes(VERIFIERS_MAX), u64::MAX);
        order.penalty = SUPPLY_MAX;
    });
    let receipt = court.receipt(&order, |_, ran, ended_s| {
        let most = Material { bytes: u64::MAX, ..Material::of(b"") };
        (ran.stdout, ran.stderr, ran.outputs) = (most, most, most);
        (ran.fuel, ran.memory_peak_bytes, ran.output_bytes) = (u64::MAX, u64::MAX, u64::MAX);
        (ran.ended, *ended_s) = (Ended::Trapped("x".repeat(REASON_MAX_BYTES)), u64::MAX);
    });
    let length = |raw: &SignedBytes| spare_proofs::encode::to_bytes(raw).len();
    let (sent, got) =
        (court.m.signed(order.clone(), &party(2).node), court.m.signed(receipt.clone(), &party(3).node));
    assert!(sent.bytes.len() <= Order::MAX_BYTES && got.bytes.len() <= JobReceipt::MAX_BYTES);
    let tx = court.m.numbered(&party(2), u64::MAX, court.action(&order, receipt));
    assert!(tx.bytes.len() <= length(&sent) + length(&got) + 64, "{} bytes", tx.bytes.len());
    assert!(tx.bytes.len() <= Tx::MAX_BYTES / 16, "{} bytes", tx.bytes.len());
    assert_eq!((VERIFIER_FEE.to_string(), DISPUTE_BOND.to_string()), ("0.01".into(), "0.1".into()));
    assert!(BOND > VERIFIERS_MAX as u128 * FEE, "the bond pays all who can be named");
}

#[test]
fn golden_root_of_disputes() {
    let mut court = Court::new(3 * CREDIT);
    let first = court.dispute(|_| ());
    court.say(first, &[Some(TRUE), Some(told()), Some(TRUE)]);
    let second = court.dispute(|order| order.salt = [1; 16]);
    court.commit(0, second, None);
    let of = |job: JobId| blake3::hash(&spare_proofs::encode::to_bytes(court.of(job))).to_hex().to_string();
    let root = blake3::Hash::from_bytes(court.m.ledger.state().root()).to_hex().to_string();
    assert_eq!([of(first), of(second), root], GOLDEN);
}

const GOLDEN: [&str; 3] = [
    "9676f2ebfc2def3c91ef2eb76e3029b3f7e88689511d7954178d48be495f71bc",
    "1e4d198c135241a8b329e94a9aee59f02f7418f7e7301add581d556417a07893",
    "780e5a7602a535962de81fd3d3971e322a153a37a09a217e3572cf99f52bb968",
];
