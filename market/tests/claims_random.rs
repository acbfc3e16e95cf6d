//! Claims, challenges, pledges, vouchers and disputes in any order, valid or not: no money comes or goes, what is refused leaves no trace, and a follower comes to
//! the same state.
//!
//! `SPARE_CLAIMS_STEPS` sets the number of steps, `SPARE_CLAIMS_SEED` the seed; it is printed.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

#[path = "harness/holding.rs"]
mod holding;
#[path = "harness/market.rs"]
mod market;

use std::collections::{BTreeMap, BTreeSet};

use holding::Holding;
use market::{Market, OPERATOR, PERIOD_S, Party, party};
use spare_market::amount::{Amount, StoragePrice};
use spare_market::block::Ledger;
use spare_market::claim::draws;
use spare_market::deal::{DealId, Terms, TermsV1};
use spare_market::dispute::commitment;
use spare_market::head::{FullHead, Head, HeadV1};
use spare_market::job::{Ended, JobId, JobReceipt, Material, Order, OrderV1, Ran};
use spare_market::keys::PublicKey;
use spare_market::ledger::claimables;
use spare_market::tx::{Action, Event, Refused};
use spare_market::voucher::{Voucher, VoucherV1};

const PRICE: StoragePrice = StoragePrice(1 << 40);

struct Dice(blake3::OutputReader);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes);
        u64::from_le_bytes(bytes) % sides
    }
}

/// What the world knows of a deal.
struct Known {
    client: u8,
    provider: u8,
    seq: u64,
    opened_in: u64,
}

struct World {
    m: Market,
    follower: Ledger,
    dice: Dice,
    holding: Holding,
    deals: BTreeMap<DealId, Known>,
    codes: BTreeSet<&'static str>,
    taken: BTreeMap<&'static str, u64>,
    jobs: Vec<JobId>,
}

/// Parties that verify and do nothing else.
const JUDGES: std::ops::Range<u8> = 7..10;

fn name(action: &Action) -> &'static str {
    match action {
        Action::Open { .. } => "open",
        Action::TopUp { .. } => "top up",
        Action::Pledge { .. } => "pledge",
        Action::Anchor { .. } => "anchor",
        Action::Redeem { .. } => "redeem",
        Action::Close { .. } => "close",
        Action::Settle { .. } => "settle",
        Action::StartClaims { .. } => "start",
        Action::EndClaims { .. } => "end",
        Action::Claim { .. } => "claim",
        Action::Lapse { .. } => "lapse",
        Action::Challenge { .. } => "challenge",
        Action::Answer { .. } => "answer",
        Action::Forfeit { .. } => "forfeit",
        Action::Dispute { .. } => "dispute",
        Action::Commit { .. } => "commit",
        Action::Reveal { .. } => "reveal",
        Action::Decide { .. } => "decide",
        Action::Register { .. } | Action::Fund { .. } => "other",
    }
}

impl World {
    fn period(&self) -> u64 {
        self.m.now_s / PERIOD_S
    }

    fn pick(&mut self) -> Option<DealId> {
        let at = self.dice.roll(self.deals.len().max(1) as u64) as usize;
        self.deals.keys().nth(at).copied()
    }

    /// Something that one of the parties may do, and who does it.
    fn invent(&mut self) -> Option<(Party, Action)> {
        let roll = self.dice.roll(120);
        if roll < 4 || self.deals.is_empty() {
            let (client, provider) = (2 + self.dice.roll(2) as u8, 4 + self.dice.roll(2) as u8);
            let salt = self.dice.roll(u64::MAX);
            let terms = Terms::V1(TermsV1 {
                client: party(client).account.public(),
                provider: party(provider).account.public(),
                node: party(provider).node.public(),
                price: PRICE,
                read_price: Default::default(),
                compute: None,
                collateral: Amount(u128::from(self.dice.roll(1 << 24))),
                expires_s: self.m.now_s + 60,
                salt: u128::from(salt).to_le_bytes(),
            });
            let known = Known { client, provider, seq: 0, opened_in: self.period() };
            self.deals.insert(terms.deal_id(), known);
            let escrow = Amount(u128::from(self.dice.roll(1 << 26)));
            let terms = self.m.signed(terms, &party(provider).node);
            return Some((party(client), Action::Open { terms, escrow }));
        }
        let deal = self.pick()?;
        let (client, provider) = (self.deals[&deal].client, self.deals[&deal].provider);
        let amount = Amount(u128::from(self.dice.roll(1 << 24)));
        let anyone = party(2 + self.dice.roll(5) as u8);
        let challenger = party(2 + self.dice.roll(5) as u8).account.public();
        Some(match roll {
            4..9 => (party(client), Action::TopUp { deal, amount }),
            9..16 => (party(provider), Action::Pledge { deal, amount }),
            16..30 => (party(provider), Action::Anchor { head: self.head(deal) }),
            30..36 => (party(provider), Action::StartClaims { deal }),
            36..38 => (party(provider), Action::EndClaims { deal }),
            38..60 => (party(provider), self.claim(provider)),
            60..68 => (party(provider), Action::Redeem { voucher: self.voucher(deal) }),
            68..71 => (anyone, Action::Close { deal, head: None }),
            71..78 => (anyone, Action::Settle { deal }),
            78..84 => (anyone, Action::Challenge { deal }),
            84..92 => (party(provider), self.answer(deal, challenger)),
            92..97 => (anyone, Action::Forfeit { deal, challenger }),
            100..106 => (party(client), self.dispute(deal)),
            106..117 => self.verdict()?,
            117..120 => (anyone, Action::Decide { job: self.some_job()? }),
            _ => (anyone, Action::Lapse { node: party(provider).node.public() }),
        })
    }

    fn head(&mut self, deal: DealId) -> FullHead {
        let from = self.period();
        let known = self.deals.get_mut(&deal).unwrap();
        known.seq += 1;
        let set = self.holding.sum();
        let head = Head::V1(HeadV1 {
            deal,
            seq: known.seq,
            set_root: set.hash,
            bytes: set.bytes,
            price: PRICE,
            from,
            until: from + 30,
            index_hash: [0; 32],
        });
        let head = self.m.signed(head, &party(known.client).node);
        FullHead::countersign(head, self.m.ledger.network(), &party(known.provider).node)
    }

    fn voucher(&mut self, id: DealId) -> spare_market::signed::SignedBytes {
        let (epoch, paid) = self.m.ledger.state().deal(&id).map_or((0, 0), |deal| (deal.epoch, deal.paid.0));
        let voucher = VoucherV1 {
            deal: id,
            epoch: epoch.saturating_sub(self.dice.roll(4) as u32 / 3),
            paid_through: self.period().checked_sub(1 + self.dice.roll(3)),
            read_bytes: 0,
            jobs: Amount::ZERO,
            skipped: Default::default(),
            total: Amount(paid + u128::from(self.dice.roll(1 << 20))),
        };
        self.m.signed(Voucher::V1(voucher), &party(self.deals[&id].client).node)
    }

    /// A claim that shows what is drawn, or now and then the last but one thing.
    fn claim(&mut self, provider: u8) -> Action {
        let (state, who) = (self.m.ledger.state(), party(provider));
        let totals = state.totals();
        let claimables = claimables(state, PERIOD_S as u32, &who.node.public());
        let drawn = draws(&totals.beacon(), &who.node.public(), &claimables);
        let mut openings = self.holding.show_all(&drawn, &claimables);
        if self.dice.roll(10) == 0 {
            openings.reverse();
        }
        Action::Claim { tick: totals.ticks, openings }
    }

    /// A dispute about a job that nobody disputed before.
    fn dispute(&mut self, deal: DealId) -> Action {
        let mut verifiers: Vec<PublicKey> = JUDGES.map(|tag| party(tag).node.public()).collect();
        verifiers.sort_unstable();
        let order = Order::V1(OrderV1 {
            deal,
            work: [0; 32],
            verifiers,
            penalty: Amount(1 + u128::from(self.dice.roll(1 << 23))),
            begin_by_s: 0,
            salt: u128::from(self.dice.roll(u64::MAX)).to_le_bytes(),
        });
        let nothing = Material::of(b"");
        let ran = Ran {
            work: [0; 32],
            configuration: [0; 32],
            ended: Ended::Code(0),
            fuel: 0,
            memory_peak_bytes: 0,
            stdout: nothing,
            stderr: nothing,
            is_log_cut: false,
            outputs: nothing,
            output_bytes: 0,
        };
        let job = order.job_id();
        self.jobs.push(job);
        let receipt = JobReceipt::V1 { job, ran, ended_s: self.m.now_s };
        let (client, provider) = (party(self.deals[&deal].client), party(self.deals[&deal].provider));
        let (order, receipt) = (self.m.signed(order, &client.node), self.m.signed(receipt, &provider.node));
        Action::Dispute { order, receipt, finding: [1; 32] }
    }

    fn some_job(&mut self) -> Option<JobId> {
        let last = &self.jobs[self.jobs.len().saturating_sub(8)..];
        let at = self.dice.roll(last.len().max(1) as u64) as usize;
        last.get(at).copied()
    }

    /// What a verifier commits to or reveals. What it found follows from who it is and the job.
    fn verdict(&mut self) -> Option<(Party, Action)> {
        let job = self.some_job()?;
        let tag = JUDGES.start + self.dice.roll(JUDGES.len() as u64) as u8;
        let (node, nonce) = (party(tag).node.public(), [tag; 32]);
        let found = if job.0[tag as usize] % 4 == 0 { None } else { Some([job.0[0] % 2; 32]) };
        let is_awaited = self.m.ledger.state().dispute(&job).is_some_and(|dispute| {
            let tick = self.m.ledger.state().totals().ticks;
            dispute.awaits(&node, tick)
                && matches!(dispute.stage(tick), spare_market::dispute::Stage::Committing)
        });
        let action = match is_awaited {
            true => Action::Commit { job, hash: commitment(job, &node, found, &nonce) },
            false => Action::Reveal { job, found, nonce },
        };
        Some((party(tag), action))
    }

    fn answer(&mut self, deal: DealId, challenger: spare_market::keys::PublicKey) -> Action {
        let state = self.m.ledger.state();
        let challenge = state.challenge(deal, challenger);
        let positions =
            challenge.and_then(|c| c.positions(deal, &challenger, &state.totals())).unwrap_or_default();
        let openings = positions.into_iter().map(|position| self.holding.show(position)).collect();
        Action::Answer { deal, challenger, openings }
    }

    fn step(&mut self) {
        if self.dice.roll(8) == 0 {
            self.m.now_s += PERIOD_S * (1 + self.dice.roll(20) / 19 * self.dice.roll(5));
        }
        let mut txs = Vec::new();
        if let Some((by, action)) = self.invent() {
            let number = self.m.ledger.state().delegate(&by.node.public()).unwrap().number + 1;
            txs.push((name(&action), self.m.numbered(&by, number, action)));
        }
        let root = self.m.ledger.state().root();
        let made = self
            .m
            .ledger
            .make(self.m.now_s, txs.iter().map(|(_, tx)| tx.clone()).collect(), &OPERATOR)
            .unwrap();
        for ((name, _), outcome) in txs.iter().zip(&made.outcomes) {
            match outcome {
                Ok(event) => {
                    *self.taken.entry(name).or_default() += 1;
                    if let Event::Closed { deal, .. } = event {
                        self.deals.remove(deal);
                    }
                }
                Err(Refused::Show(_)) => drop(self.codes.insert("not_shown")),
                Err(refused) => drop(self.codes.insert(refused.code())),
            }
        }
        let Some(next) = made.next else {
            assert_eq!(self.m.ledger.state().root(), root, "what is refused leaves no trace");
            return;
        };
        let (replayed, _) = self.follower.replay(next.block.clone()).unwrap();
        assert_eq!(replayed.changes(), next.changes());
        self.follower.take(replayed);
        self.m.ledger.take(next);
        self.check();
    }

    /// All money is there, open challenges are counted, and no period is settled before it is over.
    fn check(&self) {
        let state = self.m.ledger.state();
        state.check_all().unwrap();
        for (id, known) in &self.deals {
            let Some(deal) = state.deal(id) else { continue };
            assert!(deal.challenges as usize == state.challenges_of(*id).count());
            assert!(
                state.disputes_of(id).all(|(job, dispute)| dispute.deal == *id && self.jobs.contains(&job))
            );
            assert!(state.is_disputed(id) == state.disputes_of(id).any(|(_, dispute)| dispute.bond.0 > 0));
            assert!(
                deal.paid_through.is_none_or(|through| through < self.period().max(1)),
                "never in advance"
            );
            assert!(known.opened_in <= self.period());
        }
    }
}

#[test]
fn claims_in_any_order_make_and_lose_no_money() {
    let number =
        |name: &str, default: u64| std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(default);
    let (steps, seed) = (number("SPARE_CLAIMS_STEPS", 10_000), number("SPARE_CLAIMS_SEED", 1));
    println!("{steps} steps from seed {seed}");
    let mut m = Market::new();
    for who in 5..JUDGES.end {
        let grant = m.grant(&party(who), &party(who), 1, u128::MAX >> 28, u64::MAX);
        m.ok(&party(who), Action::Register { grant });
    }
    for who in 2..7 {
        m.ok(&party(1), Action::Fund { account: party(who).account.public(), amount: Amount(1 << 50) });
    }
    let follower = m.ledger.clone();
    let dice = Dice(blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof());
    let holding = Holding::new(1, &[3000, 700]);
    let (codes, taken) = (BTreeSet::new(), BTreeMap::new());
    let mut world =
        World { m, follower, dice, holding, deals: BTreeMap::new(), codes, taken, jobs: Vec::new() };
    for _ in 0..steps {
        world.step();
        if world.deals.len() > 20 {
            // Those that nobody opened are forgotten.
            let state = world.m.ledger.state();
            world.deals.retain(|id, _| state.deal(id).is_some());
        }
    }
    println!("taken: {:?}; refused with {:?}", world.taken, world.codes);
    let burned = world.m.ledger.state().totals().burned;
    assert!(burned > Amount::ZERO, "somebody was silent");
    for action in [
        "open",
        "top up",
        "pledge",
        "anchor",
        "redeem",
        "close",
        "settle",
        "start",
        "end",
        "claim",
        "lapse",
        "challenge",
        "answer",
        "forfeit",
        "dispute",
        "commit",
        "reveal",
        "decide",
    ] {
        assert!(world.taken.contains_key(action), "{action} was never taken: {:?}", world.taken);
    }
    for code in [
        "not_shown",
        "claim_tick",
        "claiming",
        "challenge_exists",
        "voucher_epoch",
        "no_collateral",
        "not_due",
        "dispute_open",
        "commits_open",
        "reveals_over",
        "undecided",
    ] {
        assert!(world.codes.contains(code), "nothing was refused as {code}: {:?}", world.codes);
    }
}
