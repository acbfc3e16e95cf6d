//! A ledger under random transactions of honest and hostile parties.
//!
//! A model that knows only what was signed follows along: what each account was given, what each deal holds, and the highest voucher that was
//! ever submitted for it, and of each dispute who said what. Whatever the parties try, the ledger's money has to be the model's, every voucher's value is paid once, a
//! job is disputed once, a follower that replays the blocks comes to the same root, and so does one that starts from the entries.
//!
//! `SPARE_RANDOM_TXS` sets the number of transactions, `SPARE_RANDOM_SEED` the seed; it is printed.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::collections::{BTreeMap, BTreeSet};

use spare_market::amount::{Amount, ReadPrice, StorageDue, StoragePrice};
use spare_market::block::{Ledger, Operator, RestoreError};
use spare_market::deal::{DealId, Terms, TermsV1};
use spare_market::dispute::{DISPUTE_BOND, DISPUTE_WINDOW_S, Outcome, VERIFIER_FEE, commitment};
use spare_market::genesis::{Genesis, GenesisV1};
use spare_market::grant::{Grant, Scope};
use spare_market::head::{FullHead, Head, HeadV1};
use spare_market::job::{Ended, JobId, JobReceipt, Material, Order, OrderV1, Ran};
use spare_market::keys::{PublicKey, SigningSecret};
use spare_market::signed::{NetworkId, Signed, SignedBytes};
use spare_market::tx::{Action, Event, Tx};
use spare_market::voucher::{Voucher, VoucherV1};
use spare_proofs::cipher::Secret;

const PERIOD_S: u32 = 10;
const PARTIES: usize = 8;
const EVER: u64 = u64::MAX;

/// Pseudo-random numbers from a seed.
struct Dice(blake3::OutputReader);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes);
        u64::from_le_bytes(bytes) % sides
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> Option<&'a T> {
        if from.is_empty() { None } else { Some(&from[self.roll(from.len() as u64) as usize]) }
    }
}

/// An account with its node.
struct Party {
    account: SigningSecret,
    node: SigningSecret,
    number: u64,
    is_registered: bool,
}

/// What the model knows of a deal.
struct Known {
    terms: TermsV1,
    escrow: u128,
    collateral: u128,
    paid: u128,
    heads: Vec<FullHead>,
    vouchers: Vec<SignedBytes>,
}

/// What the model knows of a job that somebody disputes or may come to dispute.
struct Job {
    id: JobId,
    deal: DealId,
    penalty: u128,
    told: [u8; 32],
    order: SignedBytes,
    receipt: SignedBytes,
    /// The verifiers' nodes, and what each found, with a nonce.
    verifiers: BTreeMap<PublicKey, (Option<[u8; 32]>, [u8; 32])>,
    /// What they committed to and what they revealed, as far as the ledger took it.
    committed: BTreeMap<PublicKey, [u8; 32]>,
    revealed: BTreeMap<PublicKey, Option<[u8; 32]>>,
    stage: Stage,
}

#[derive(PartialEq)]
enum Stage {
    Quiet,
    Open,
    Over,
}

struct World {
    network: NetworkId,
    dice: Dice,
    parties: Vec<Party>,
    free: BTreeMap<PublicKey, u128>,
    fees: u128,
    burned: u128,
    deals: BTreeMap<DealId, Known>,
    jobs: Vec<Job>,
    /// How disputes ended.
    ends: BTreeSet<&'static str>,
    /// Transactions that were submitted before, to be submitted again.
    old: Vec<SignedBytes>,
    codes: BTreeSet<&'static str>,
    salt: u64,
}

impl World {
    fn sign<T: spare_market::signed::Signable>(&self, value: T, key: &SigningSecret) -> SignedBytes {
        Signed::new(value, self.network, key).raw().clone()
    }

    fn tx(&mut self, by: usize, action: Action) -> SignedBytes {
        // Mostly the next number, sometimes another.
        let number = self.parties[by].number + if self.dice.roll(40) == 0 { self.dice.roll(3) } else { 1 };
        self.sign(Tx::V1 { number, action }, &self.parties[by].node)
    }

    fn grant(&mut self, of: usize, to: usize, serial: u64) -> SignedBytes {
        let scopes = if self.dice.roll(30) == 0 { vec![] } else { vec![Scope::Provide, Scope::Spend] };
        let spend_cap = Amount(1 << (40 + self.dice.roll(20)));
        let delegate = self.parties[to].node.public();
        self.sign(
            Grant::V1 { delegate, scopes, spend_cap, serial, expires_s: EVER },
            &self.parties[of].account,
        )
    }

    /// A transaction that may or may not hold, at unix time `now_s`.
    fn invent(&mut self, now_s: u64, step: u64) -> (usize, SignedBytes) {
        let by = self.dice.roll(PARTIES as u64) as usize;
        let other = self.dice.roll(PARTIES as u64) as usize;
        if !self.parties[by].is_registered || self.dice.roll(200) == 0 {
            // A grant by another account to this node is a forgery, as far as the node's own account is concerned.
            let of = if self.dice.roll(10) == 0 { other } else { by };
            let grant = self.grant(of, by, step);
            return (by, self.tx(by, Action::Register { grant }));
        }
        let action = match self.dice.roll(130) {
            0..8 => {
                let amount = Amount(u128::from(self.dice.roll(1 << 40)));
                let by = if self.dice.roll(5) == 0 { by } else { 0 };
                let account = self.parties[other].account.public();
                return (by, self.tx(by, Action::Fund { account, amount }));
            }
            8..20 => self.invent_open(by, other, now_s),
            20..26 => {
                let deal = self.some_deal();
                Action::TopUp { deal, amount: Amount(u128::from(self.dice.roll(1 << 38))) }
            }
            26..46 => match self.invent_head(now_s) {
                Some(head) => Action::Anchor { head },
                None => Action::Settle { deal: self.some_deal() },
            },
            46..80 => match self.invent_voucher(now_s) {
                Some(voucher) => Action::Redeem { voucher },
                None => Action::Settle { deal: self.some_deal() },
            },
            80..84 => {
                let (deal, head) = (self.some_deal(), self.invent_head(now_s));
                Action::Close { deal, head: head.filter(|_| now_s.is_multiple_of(2)) }
            }
            84..90 => Action::Settle { deal: self.some_deal() },
            90..95 if !self.old.is_empty() => {
                let old = self.dice.roll(self.old.len() as u64) as usize;
                return (by, self.old[old].clone());
            }
            95..100 if !self.old.is_empty() => {
                let old = self.dice.roll(self.old.len() as u64) as usize;
                let mut tampered = self.old[old].clone();
                let at = self.dice.roll(tampered.bytes.len() as u64) as usize;
                tampered.bytes[at] ^= 1 << self.dice.roll(8);
                return (by, tampered);
            }
            100..110 => match self.invent_job(now_s) {
                Some(made) => return made,
                None => Action::Settle { deal: self.some_deal() },
            },
            110..126 => match self.invent_verdict() {
                Some(made) => return made,
                None => Action::Settle { deal: self.some_deal() },
            },
            126..130 => Action::Decide { job: self.some_job().map_or(JobId([0; 32]), |at| self.jobs[at].id) },
            _ => Action::Settle { deal: self.some_deal() },
        };
        // Transactions about a deal mostly come from one of its parties.
        let by = self.sender_for(&action).filter(|_| self.dice.roll(10) > 0).unwrap_or(by);
        (by, self.tx(by, action))
    }

    fn sender_for(&mut self, action: &Action) -> Option<usize> {
        let id = match action {
            Action::Open { .. } => return None,
            Action::TopUp { deal, .. } | Action::Close { deal, .. } | Action::Settle { deal } => *deal,
            Action::Anchor { head } => {
                spare_proofs::encode::from_bytes::<Head>(&head.head.bytes, 1000).unwrap().v1().deal
            }
            Action::Redeem { voucher } => {
                spare_proofs::encode::from_bytes::<Voucher>(&voucher.bytes, 1000).unwrap().v1().deal
            }
            _ => return None,
        };
        let deal = self.deals.get(&id)?;
        let provider = self.dice.roll(2) == 0 && !matches!(action, Action::TopUp { .. });
        let account = if provider { deal.terms.provider } else { deal.terms.client };
        self.parties.iter().position(|p| p.account.public() == account)
    }

    fn some_deal(&mut self) -> DealId {
        let ids: Vec<DealId> = self.deals.keys().copied().collect();
        self.dice.pick(&ids).copied().unwrap_or(DealId([0; 32]))
    }

    fn invent_open(&mut self, by: usize, other: usize, now_s: u64) -> Action {
        self.salt += 1;
        let mut salt = [0; 16];
        salt[..8].copy_from_slice(&self.salt.to_le_bytes());
        let pledge = [30, 30, 30, 39][self.dice.roll(4) as usize];
        let life_s = [60, 60, 60, 60, 0, 10_000][self.dice.roll(6) as usize];
        let terms = Terms::V1(TermsV1 {
            client: self.parties[by].account.public(),
            provider: self.parties[other].account.public(),
            node: self.parties[other].node.public(),
            price: StoragePrice(self.dice.roll(1 << 30)),
            read_price: ReadPrice(0),
            compute: None,
            collateral: Amount(u128::from(self.dice.roll(1 << pledge))),
            expires_s: now_s + life_s,
            salt,
        });
        let forger = self.dice.roll(PARTIES as u64) as usize;
        let signer = if self.dice.roll(10) == 0 { forger } else { other };
        let terms = self.sign(terms, &self.parties[signer].node);
        Action::Open { terms, escrow: Amount(u128::from(self.dice.roll(1 << 39))) }
    }

    fn party_of(&self, account: &PublicKey) -> &Party {
        self.parties.iter().find(|p| p.account.public() == *account).unwrap()
    }

    /// A head that supersedes, repeats, forks or forges.
    fn invent_head(&mut self, now_s: u64) -> Option<FullHead> {
        let id = self.some_deal();
        let known = self.deals.get(&id)?;
        if self.dice.roll(6) == 0 && !known.heads.is_empty() {
            return self.dice.pick(&known.heads).cloned();
        }
        let from = now_s / u64::from(PERIOD_S);
        let head = HeadV1 {
            deal: id,
            seq: known.heads.len() as u64 + 1 - u64::from(self.dice.roll(8) == 0),
            set_root: [1; 32],
            bytes: 1 + self.dice.roll(1 << 40),
            price: known.terms.price,
            from,
            until: from + [30, 30, 30, 31, 0][self.dice.roll(5) as usize],
            index_hash: [0; 32],
        };
        let network = if self.dice.roll(20) == 0 { NetworkId([9; 32]) } else { self.network };
        let [forges_client, forges_provider] = [0, 0].map(|_| self.dice.roll(12) == 0);
        let stranger = &self.parties[self.dice.roll(PARTIES as u64) as usize];
        let client = if forges_client { stranger } else { self.party_of(&known.terms.client) };
        let provider = if forges_provider { stranger } else { self.party_of(&known.terms.provider) };
        let signed = Signed::new(Head::V1(head), network, &client.node).raw().clone();
        let full = FullHead::countersign(signed, network, &provider.node);
        self.deals.get_mut(&id)?.heads.push(full.clone());
        Some(full)
    }

    /// A voucher that pays more, less, too early, again, or is forged.
    fn invent_voucher(&mut self, now_s: u64) -> Option<SignedBytes> {
        let id = self.some_deal();
        let known = self.deals.get(&id)?;
        if self.dice.roll(4) == 0 && !known.vouchers.is_empty() {
            return self.dice.pick(&known.vouchers).cloned();
        }
        let period = now_s / u64::from(PERIOD_S);
        let back = self.dice.roll(8);
        let voucher = VoucherV1 {
            deal: id,
            epoch: u32::from(self.dice.roll(20) == 0),
            paid_through: period.checked_sub(back),
            read_bytes: 0,
            jobs: Amount::ZERO,
            skipped: StorageDue::ZERO,
            total: Amount(known.paid + u128::from(self.dice.roll(1 << 36))),
        };
        let [forges, is_foreign] = [12, 20].map(|sides| self.dice.roll(sides) == 0);
        let stranger = &self.parties[self.dice.roll(PARTIES as u64) as usize];
        let client = if forges { stranger } else { self.party_of(&known.terms.client) };
        let network = if is_foreign { NetworkId([9; 32]) } else { self.network };
        let signed = Signed::new(Voucher::V1(voucher), network, &client.node).raw().clone();
        self.deals.get_mut(&id)?.vouchers.push(signed.clone());
        Some(signed)
    }

    /// One of the last jobs, mostly one that is disputed.
    fn some_job(&mut self) -> Option<usize> {
        let last = self.jobs.len().saturating_sub(60)..self.jobs.len();
        let wants_open = self.dice.roll(8) > 0;
        let jobs: Vec<usize> = last.filter(|at| !wants_open || self.jobs[*at].stage == Stage::Open).collect();
        self.dice.pick(&jobs).copied()
    }

    /// A dispute about a new job or one that was there, with verifiers of all kinds.
    fn invent_job(&mut self, now_s: u64) -> Option<(usize, SignedBytes)> {
        let at = match self.some_job().filter(|_| self.dice.roll(4) == 0) {
            Some(at) => at,
            None => self.invent_order(now_s)?,
        };
        let job = &self.jobs[at];
        let (order, receipt) = (job.order.clone(), job.receipt.clone());
        let finding = if self.dice.roll(30) == 0 { job.told } else { [1; 32] };
        let stranger = self.dice.roll(PARTIES as u64) as usize;
        let client = self.deals.get(&self.jobs[at].deal).map(|known| known.terms.client);
        let client = self.parties.iter().position(|party| Some(party.account.public()) == client);
        let by = client.filter(|_| self.dice.roll(12) > 0).unwrap_or(stranger);
        Some((by, self.tx(by, Action::Dispute { order, receipt, finding })))
    }

    fn invent_order(&mut self, now_s: u64) -> Option<usize> {
        let deal = self.some_deal();
        let terms = self.deals.get(&deal)?.terms.clone();
        let count = [1, 1, 3, 3, 2][self.dice.roll(5) as usize];
        let mut verifiers = BTreeMap::new();
        for _ in 0..20 {
            let party = &self.parties[self.dice.roll(PARTIES as u64) as usize];
            let is_own = [terms.client, terms.provider].contains(&party.account.public());
            if verifiers.len() < count && (!is_own || self.dice.roll(60) == 0) {
                let found = [Some([1; 32]), Some([1; 32]), Some([2; 32]), None][self.dice.roll(4) as usize];
                verifiers.insert(party.node.public(), (found, [self.dice.roll(256) as u8; 32]));
            }
        }
        self.salt += 1;
        let most = self.dice.roll(2) as usize;
        let order = Order::V1(OrderV1 {
            deal,
            work: [3; 32],
            verifiers: verifiers.keys().copied().collect(),
            penalty: Amount(u128::from(self.dice.roll(1 << [26, 38][most]))),
            begin_by_s: 0,
            salt: u128::from(self.salt).to_le_bytes(),
        });
        let ran = Ran {
            work: if self.dice.roll(30) == 0 { [4; 32] } else { [3; 32] },
            configuration: [0; 32],
            ended: Ended::OutOfFuel,
            fuel: self.salt,
            memory_peak_bytes: 0,
            stdout: Material::of(b""),
            stderr: Material::of(b""),
            is_log_cut: false,
            outputs: Material::of(b""),
            output_bytes: 0,
        };
        let told = ran.hash();
        // Now and then verifiers find what the provider says.
        if self.dice.roll(3) == 0 {
            verifiers.values_mut().for_each(|(found, _)| *found = found.map(|_| told));
        }
        // Some can be disputed for a few seconds yet, so that the ledger gets to forget them.
        let ago_s = [0, 0, DISPUTE_WINDOW_S - 50, DISPUTE_WINDOW_S - 5][self.dice.roll(4) as usize];
        let ended_s = now_s - ago_s;
        let receipt = JobReceipt::V1 { job: order.job_id(), ran, ended_s };
        let [forges_order, forges_receipt] = [0, 0].map(|_| self.dice.roll(20) == 0);
        let stranger = &self.parties[self.dice.roll(PARTIES as u64) as usize];
        let client = if forges_order { stranger } else { self.party_of(&terms.client) };
        let provider = if forges_receipt { stranger } else { self.party_of(&terms.provider) };
        let id = order.job_id();
        let penalty = order.v1().penalty.0;
        let order = self.sign(order, &client.node);
        let receipt = self.sign(receipt, &provider.node);
        let (committed, revealed, stage) = (BTreeMap::new(), BTreeMap::new(), Stage::Quiet);
        self.jobs.push(Job {
            id,
            deal,
            penalty,
            told,
            order,
            receipt,
            verifiers,
            committed,
            revealed,
            stage,
        });
        Some(self.jobs.len() - 1)
    }

    /// A verifier's next word about a job, or another's, or another one.
    fn invent_verdict(&mut self) -> Option<(usize, SignedBytes)> {
        let at = self.some_job()?;
        let named: Vec<PublicKey> = self.jobs[at].verifiers.keys().copied().collect();
        let node = *self.dice.pick(&named)?;
        let (found, nonce) = self.jobs[at].verifiers[&node];
        let id = self.jobs[at].id;
        let has_committed = self.jobs[at].committed.contains_key(&node) != (self.dice.roll(12) == 0);
        let action = if has_committed {
            let found = if self.dice.roll(12) == 0 { Some([1; 32]) } else { found };
            Action::Reveal { job: id, found, nonce }
        } else {
            Action::Commit { job: id, hash: commitment(id, &node, found, &nonce) }
        };
        let by = self.parties.iter().position(|party| party.node.public() == node)?;
        let by = if self.dice.roll(12) == 0 { self.dice.roll(PARTIES as u64) as usize } else { by };
        Some((by, self.tx(by, action)))
    }

    fn job(&mut self, id: &JobId) -> &mut Job {
        self.jobs.iter_mut().find(|job| job.id == *id).unwrap()
    }

    /// What the end of a dispute comes to, by what was revealed.
    fn end(&mut self, id: &JobId, outcome: &Outcome, fees: u128) {
        let job = self.jobs.iter_mut().find(|job| job.id == *id).unwrap();
        assert!(job.stage == Stage::Open, "a dispute ends once");
        job.stage = Stage::Over;
        let results: Vec<[u8; 32]> = job.revealed.values().copied().flatten().collect();
        let votes = |result: &[u8; 32]| results.iter().filter(|other| *other == result).count();
        let most = results.iter().copied().find(|result| votes(result) > job.verifiers.len() / 2);
        let paid: Vec<PublicKey> = job
            .revealed
            .iter()
            .filter(|(_, found)| found.is_some() && (most.is_none() || **found == most))
            .map(|(node, _)| *node)
            .collect();
        let due = paid.len() as u128 * VERIFIER_FEE.0;
        assert_eq!(fees, due);
        let (told, penalty, deal) = (job.told, job.penalty, job.deal);
        let known = self.deals.get_mut(&deal).unwrap();
        let (client, provider) = (known.terms.client, known.terms.provider);
        let mut to_client = 0;
        let mut to_provider = 0;
        match most {
            None => {
                assert_eq!(*outcome, Outcome::Unproven);
                self.ends.insert("unproven");
                to_client = DISPUTE_BOND.0 - due;
            }
            Some(result) if result == told => {
                assert_eq!(*outcome, Outcome::Right);
                self.ends.insert("right");
                to_provider = DISPUTE_BOND.0 - due;
            }
            Some(found) => {
                let taken = penalty.min(known.collateral);
                let is_whole = taken == penalty;
                let quarter = taken / 4;
                let burned = taken - quarter - due.min(quarter);
                let (penalty, award) = (Amount(taken), Amount(quarter));
                assert_eq!(*outcome, Outcome::Wrong { found, penalty, award, burned: Amount(burned) });
                self.ends.insert(if is_whole { "wrong" } else { "wrong, with little left" });
                known.collateral -= taken;
                self.burned += burned;
                to_client = DISPUTE_BOND.0 + taken - burned - due;
            }
        }
        *self.free.get_mut(&client).unwrap() += to_client;
        *self.free.entry(provider).or_default() += to_provider;
        for node in paid {
            let party = self.parties.iter().find(|party| party.node.public() == node).unwrap();
            *self.free.entry(party.account.public()).or_default() += VERIFIER_FEE.0;
        }
    }

    /// Follows what the ledger says has happened, and checks that it was called for.
    fn follow(&mut self, by: usize, tx: &SignedBytes, event: &Event, fee_bps: u128) {
        let Tx::V1 { action, .. } = Signed::<Tx>::value(&tx.clone().check(self.network).unwrap()).clone();
        match (action, event) {
            (Action::Register { .. }, Event::Registered { .. }) => self.parties[by].is_registered = true,
            (Action::Fund { account, amount }, Event::Funded { .. }) => {
                assert_eq!(tx.signer, self.parties[0].node.public(), "only the market funds");
                *self.free.entry(account).or_default() += amount.0;
            }
            (Action::Open { terms, escrow }, Event::Opened { deal }) => {
                let terms: Terms = spare_proofs::encode::from_bytes(&terms.bytes, 1000).unwrap();
                let terms = terms.v1().clone();
                *self.free.get_mut(&terms.client).unwrap() -= escrow.0;
                *self.free.entry(terms.provider).or_default() -= terms.collateral.0;
                let (escrow, collateral) = (escrow.0, terms.collateral.0);
                let known = Known { terms, escrow, collateral, paid: 0, heads: vec![], vouchers: vec![] };
                assert!(self.deals.insert(*deal, known).is_none(), "a deal is opened once");
            }
            (Action::TopUp { deal, amount }, Event::ToppedUp { .. }) => {
                let known = self.deals.get_mut(&deal).unwrap();
                *self.free.get_mut(&known.terms.client).unwrap() -= amount.0;
                known.escrow += amount.0;
            }
            (Action::Redeem { voucher }, Event::Paid { deal, amount, fee, short }) => {
                let voucher: Voucher = spare_proofs::encode::from_bytes(&voucher.bytes, 1000).unwrap();
                let known = self.deals.get_mut(deal).unwrap();
                let promised = voucher.v1().total.0 - known.paid;
                assert_eq!(
                    amount.0,
                    promised.min(known.escrow),
                    "what is promised and not paid, as far as there is money"
                );
                assert_eq!(short.0, promised - amount.0);
                let fee_before = known.paid * fee_bps / 10_000;
                known.paid += amount.0;
                known.escrow -= amount.0;
                assert_eq!(fee.0, known.paid * fee_bps / 10_000 - fee_before);
                self.fees += fee.0;
                *self.free.entry(known.terms.provider).or_default() += amount.0 - fee.0;
            }
            (Action::Settle { deal }, Event::Closed { returned, .. }) => {
                let known = self.deals.remove(&deal).unwrap();
                assert_eq!(returned.0, known.escrow);
                *self.free.get_mut(&known.terms.client).unwrap() += known.escrow;
                *self.free.get_mut(&known.terms.provider).unwrap() += known.collateral;
                let mut of_deal = self.jobs.iter().filter(|job| job.deal == deal);
                assert!(of_deal.all(|job| job.stage != Stage::Open), "no open dispute is settled over");
            }
            (Action::Dispute { .. }, Event::Disputed { deal, job }) => {
                let client = self.deals[deal].terms.client;
                *self.free.get_mut(&client).unwrap() -= DISPUTE_BOND.0;
                let job = self.job(job);
                assert!(job.stage == Stage::Quiet, "a job is disputed once");
                job.stage = Stage::Open;
            }
            (Action::Commit { hash, .. }, Event::Committed { job, verifier }) => {
                assert_eq!(*verifier, tx.signer);
                let job = self.job(job);
                assert!(job.verifiers.contains_key(verifier) && job.revealed.is_empty());
                assert!(job.committed.insert(*verifier, hash).is_none(), "a verifier commits once");
            }
            (Action::Reveal { job: id, found, nonce }, event) => {
                let job = self.job(&id);
                assert!(job.stage == Stage::Open);
                let hash = commitment(id, &tx.signer, found, &nonce);
                assert_eq!(job.committed.get(&tx.signer), Some(&hash));
                assert!(job.revealed.insert(tx.signer, found).is_none(), "a verifier reveals once");
                match event {
                    Event::Revealed { .. } => {}
                    Event::Decided { job, outcome, fees, .. } => self.end(job, outcome, fees.0),
                    event => panic!("a verdict led to {event:?}"),
                }
            }
            (Action::Decide { .. }, Event::Decided { job, outcome, fees, .. }) => {
                self.end(job, outcome, fees.0);
            }
            (Action::Anchor { .. }, Event::Anchored { .. })
            | (Action::Close { .. }, Event::Closing { .. }) => {}
            (action, event) => panic!("{action:?} led to {event:?}"),
        }
    }
}

#[test]
fn random_transactions_conserve_money_and_pay_each_voucher_once() {
    let number =
        |name: &str, default: u64| std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(default);
    let (steps, seed) = (number("SPARE_RANDOM_TXS", 60_000), number("SPARE_RANDOM_SEED", 1));
    println!("{steps} transactions from seed {seed}");
    let secret = |role: u8, i: usize| Secret::new([role * 64 + i as u8; 32]);
    let key = |role: u8, i: usize| SigningSecret::from_secret(&secret(role, i));
    let parties: Vec<Party> = (0..PARTIES)
        .map(|i| Party { account: key(1, i), node: key(2, i), number: 0, is_registered: false })
        .collect();
    let operator = Operator::new(&secret(2, 0));
    let genesis = Genesis::V1(GenesisV1 {
        market: operator.public(),
        started_s: 0,
        period_s: PERIOD_S,
        beacon: operator.first_beacon(),
        fee_bps: 300,
        salt: [7; 32],
    });
    let mut ledger = Ledger::new(genesis.clone()).unwrap();
    let mut follower = ledger.clone();
    let dice = Dice(blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof());
    let mut world = World {
        network: ledger.network(),
        dice,
        parties,
        free: BTreeMap::new(),
        fees: 0,
        burned: 0,
        deals: BTreeMap::new(),
        jobs: Vec::new(),
        ends: BTreeSet::new(),
        old: Vec::new(),
        codes: BTreeSet::new(),
        salt: 0,
    };
    // Jobs can have ended longer ago than they can be disputed.
    let (mut now_s, mut taken) = (DISPUTE_WINDOW_S + 100, 0u64);
    let mut header = None;
    let mut step = 0;
    while step < steps {
        // Mostly seconds, sometimes an outage.
        now_s += [0, 1, 2, 5, 11, 100][world.dice.roll(6) as usize];
        let size = 1 + world.dice.roll(30);
        let mut senders = Vec::new();
        let mut block = Vec::new();
        for _ in 0..size {
            step += 1;
            let (by, tx) = world.invent(now_s, step);
            // Within a block, numbers go on as if all were taken; what follows a refusal is then refused as well.
            if tx.signer == world.parties[by].node.public() {
                world.parties[by].number += 1;
            }
            senders.push(by);
            block.push(tx);
        }
        let made = ledger.make(now_s, block.clone(), &operator).unwrap();
        for ((by, tx), outcome) in senders.into_iter().zip(&block).zip(&made.outcomes) {
            match outcome {
                Ok(event) => {
                    taken += 1;
                    world.follow(by, tx, event, 300);
                }
                Err(refused) => drop(world.codes.insert(refused.code())),
            }
            if world.old.len() < 500 {
                world.old.push(tx.clone());
            } else {
                let at = world.dice.roll(500) as usize;
                world.old[at] = tx.clone();
            }
        }
        if let Some(next) = made.next {
            let (replayed, _) = follower.replay(next.block.clone()).unwrap();
            assert_eq!(replayed.changes(), next.changes());
            header = Some(follower.take(replayed).header);
            ledger.take(next);
        }
        for party in &mut world.parties {
            party.number = ledger.state().delegate(&party.node.public()).map_or(0, |d| d.number);
        }
        assert_eq!(follower.tip(), ledger.tip());
        check_money(&world, &ledger);
    }
    ledger.state().check_all().unwrap();
    let header = header.expect("blocks were made");
    let entries: Vec<_> = ledger.state().entries().map(|(k, e)| (*k, e.clone())).collect();
    let restored = Ledger::restore(genesis.clone(), &header, entries.clone()).unwrap();
    assert_eq!((restored.tip(), restored.state().root()), (ledger.tip(), ledger.state().root()));
    let fewer = entries[1..].to_vec();
    let error = Ledger::restore(genesis, &header, fewer).unwrap_err();
    assert!(matches!(error, RestoreError::Root(_)), "a missing entry is noticed, whatever it holds: {error}");
    assert!(taken > steps / 10, "{taken} of {steps} were taken");
    let seen: Vec<&str> = world.codes.into_iter().collect();
    for code in [
        "bad_transaction",
        "wrong_number",
        "other_account",
        "scope",
        "spend_cap",
        "not_the_market",
        "funds",
        "collateral",
        "bad_terms",
        "terms_expired",
        "no_such_deal",
        "not_a_party",
        "closing",
        "bad_head",
        "stale_head",
        "forked_head",
        "head_out_of_bounds",
        "bad_voucher",
        "voucher_early",
        "voucher_epoch",
        "stale_voucher",
        "escrow_empty",
        "not_due",
        "disputed",
        "bad_order",
        "bad_receipt",
        "other_job",
        "own_case",
        "dispute_too_late",
        "committed",
        "commits_open",
        "commits_over",
        "not_committed",
        "not_a_verifier",
        "other_verdict",
        "revealed",
        "reveals_over",
        "undecided",
        "decided",
        "no_such_dispute",
    ] {
        assert!(seen.contains(&code), "nothing was refused as {code}; seen: {seen:?}");
    }
    let over = world.jobs.iter().filter(|job| job.stage == Stage::Over).count();
    println!("{taken} taken, refused with {seen:?}; {over} disputes ended {:?}", world.ends);
    for end in ["right", "wrong", "wrong, with little left", "unproven"] {
        assert!(world.ends.contains(end), "no dispute ended {end}");
    }
}

fn check_money(world: &World, ledger: &Ledger) {
    let state = ledger.state();
    for (account, free) in &world.free {
        assert_eq!(state.account(account).free.0, *free);
    }
    assert_eq!((state.totals().fees.0, state.totals().burned.0), (world.fees, world.burned));
    for (id, known) in &world.deals {
        let deal = state.deal(id).unwrap();
        assert_eq!((deal.escrow.0, deal.paid.0), (known.escrow, known.paid));
        assert_eq!(deal.collateral.0, known.collateral);
    }
}
