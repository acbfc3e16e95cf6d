//! What claims cost the ledger, for ever more deals of one provider: bytes, and time beside the bare hashing of what is shown.

use std::hint::black_box;
use std::time::Instant;

use anyhow::{Context, ensure};
use spare_market::amount::{Amount, ReadPrice, StoragePrice};
use spare_market::block::{Header, Ledger, Operator};
use spare_market::claim::{CLAIM_DRAWS, Claiming, Prover, draws, set_of};
use spare_market::deal::{Deal, Terms, TermsV1};
use spare_market::genesis::{Genesis, GenesisV1};
use spare_market::grant::Scope;
use spare_market::head::{AnchoredHead, HeadV1};
use spare_market::keys::{PublicKey, SigningSecret};
use spare_market::ledger::claimables;
use spare_market::signed::Signed;
use spare_market::state::{Delegate, Entry, Key, State, Totals};
use spare_market::tx::{Action, Event, Tx};
use spare_proofs::cipher::Secret;
use spare_proofs::encode::to_bytes;
use spare_proofs::opening::SetOpening;
use spare_proofs::sumtree::{Member, SumTree};
use spare_proofs::tree::{GROUP_BYTES, LEAF_BYTES, Tree};

const DEALS: [usize; 3] = [10, 1_000, 100_000];
/// Shards under each deal's head, and their length: a gibibyte.
const SHARDS: usize = 1_024;
const SHARD_BYTES: usize = 1 << 20;
const PERIOD_S: u32 = 3600;
/// Times that the openings of a claim are checked, to measure one.
const ROUNDS: u32 = 200;

/// The set that each deal covers. Its shards are made anew where they are needed.
struct Holding {
    trees: Vec<(Tree, usize)>,
    set: SumTree,
}

fn shard(tag: usize) -> blake3::OutputReader {
    blake3::Hasher::new().update(&tag.to_le_bytes()).finalize_xof()
}

impl Holding {
    fn new() -> anyhow::Result<Self> {
        let mut bytes = vec![0; SHARD_BYTES];
        let mut trees: Vec<(Tree, usize)> = Vec::with_capacity(SHARDS);
        for tag in 0..SHARDS {
            shard(tag).fill(&mut bytes);
            trees.push((Tree::of(&bytes), tag));
        }
        trees.sort_by_key(|(tree, _)| tree.root());
        let member = |(tree, _): &(Tree, usize)| Member { root: tree.root(), bytes: tree.shard_bytes() };
        Ok(Self { set: SumTree::new(trees.iter().map(member).collect())?, trees })
    }

    fn show(&self, position: u64) -> anyhow::Result<SetOpening> {
        let member = self.set.prove(position).context("the position lies in the set")?;
        let offset = member.verify(&self.set.sum(), position)?;
        let at = self.trees.binary_search_by_key(&member.member.root, |(tree, _)| tree.root());
        let (tree, tag) = &self.trees[at.ok().context("the shard is the set's")?];
        let mut group = vec![0; GROUP_BYTES];
        let mut bytes = shard(*tag);
        bytes.set_position(offset - offset % GROUP_BYTES as u64);
        bytes.fill(&mut group);
        Ok(SetOpening { member, leaf: tree.open(offset / LEAF_BYTES as u64, &group)? })
    }
}

/// A ledger on which `deals` deals of `node` are claimed for since tick 1.
fn ledger(
    deals: usize,
    operator: (&Operator, &Secret),
    parties: (PublicKey, PublicKey, PublicKey),
    holding: &Holding,
) -> anyhow::Result<Ledger> {
    let (client, account, node) = parties;
    let (operator, secret) = operator;
    let genesis = Genesis::V1(GenesisV1 {
        market: operator.public(),
        started_s: 0,
        period_s: PERIOD_S,
        beacon: operator.first_beacon(),
        fee_bps: 300,
        salt: [0; 32],
    });
    let price = StoragePrice(1 << 20);
    let deal = |i: usize| {
        let terms = TermsV1 {
            client,
            provider: account,
            node,
            price,
            read_price: ReadPrice(0),
            compute: None,
            collateral: Amount(1 << 50),
            expires_s: 100,
            salt: (i as u128).to_le_bytes(),
        };
        let id = Terms::V1(terms.clone()).deal_id();
        let sum = holding.set.sum();
        let head = HeadV1 {
            deal: id,
            seq: 1,
            set_root: sum.hash,
            bytes: sum.bytes,
            price,
            from: 0,
            until: 30,
            index_hash: [0; 32],
        };
        let mut deal = Deal::open(terms, Amount(1 << 60), client);
        deal.anchor(AnchoredHead { head, hash: [1; 32] }, 1);
        deal.claiming = Some(Claiming { since_tick: 1, until_tick: None });
        (Key::Deal(id), Entry::Deal(Box::new(deal)))
    };
    let mut entries: Vec<(Key, Entry)> = (0..deals).map(deal).collect();
    let issued = Amount(deals as u128 * ((1 << 60) + (1 << 50)));
    let delegate = Delegate {
        account,
        scopes: vec![Scope::Provide],
        spend_cap: Amount::ZERO,
        spent: Amount::ZERO,
        expires_s: u64::MAX,
        serial: 1,
        number: 0,
    };
    entries.push((Key::Delegate(node), Entry::Delegate(delegate)));
    entries.push((Key::Prover(node), Entry::Prover(Prover { last_tick: 1, silent_tick: None })));
    let totals = Totals { issued, ticks: 1, beacons: vec![operator.first_beacon()], ..Totals::default() };
    entries.push((Key::Totals, Entry::Totals(totals)));
    let header = Header::V1 {
        height: 1,
        time_s: 0,
        previous: [0; 32],
        txs_hash: [0; 32],
        state_root: State::of(entries.clone()).root(),
        beacon: operator.first_beacon(),
    };
    let header = Signed::new(header, genesis.network(), &SigningSecret::from_secret(secret));
    Ok(Ledger::restore(genesis, header.raw(), entries)?)
}

/// Prints it.
///
/// # Errors
/// When a claim is refused.
pub fn print_costs() -> anyhow::Result<()> {
    let secret = Secret::new([1; 32]);
    let operator = Operator::new(&secret);
    let provider = SigningSecret::from_secret(&Secret::new([2; 32]));
    let [client, account] = [3, 4].map(|tag| SigningSecret::from_secret(&Secret::new([tag; 32])).public());
    let holding = Holding::new()?;
    println!("claims, each deal over {SHARDS} shards of 1 MiB");
    for deals in DEALS {
        let parties = (client, account, provider.public());
        let mut ledger = ledger(deals, (&operator, &secret), parties, &holding)?;
        let made = ledger.make(PERIOD_S.into(), vec![], &operator)?;
        ledger.take(made.next.context("a period begins with a block")?);
        let totals = ledger.state().totals();
        let claimables = claimables(ledger.state(), PERIOD_S, &provider.public());
        ensure!(claimables.len() == deals, "all deals can be claimed for");
        let drawn = draws(&totals.beacon(), &provider.public(), &claimables);
        let openings: Vec<SetOpening> =
            drawn.iter().map(|drawn| holding.show(drawn.position)).collect::<anyhow::Result<_>>()?;

        let set = set_of(&claimables[0].head.head);
        let checking = Instant::now();
        for _ in 0..ROUNDS {
            for (drawn, opening) in drawn.iter().zip(&openings) {
                opening.verify(&set, drawn.position)?;
            }
        }
        let per_opening = checking.elapsed() / (ROUNDS * CLAIM_DRAWS as u32);
        let hashing = Instant::now();
        for _ in 0..ROUNDS {
            for opening in &openings {
                black_box(blake3::hash(&to_bytes(opening)));
            }
        }
        let bare = hashing.elapsed() / (ROUNDS * CLAIM_DRAWS as u32);

        let bytes = to_bytes(&openings).len();
        let claim = Tx::V1 { number: 1, action: Action::Claim { tick: totals.ticks, openings } };
        let claim = Signed::new(claim, ledger.network(), &provider).raw().clone();
        let paying = Instant::now();
        let made = ledger.make(PERIOD_S.into(), vec![claim], &operator)?;
        let paid_in = paying.elapsed();
        ensure!(
            matches!(made.outcomes[0], Ok(Event::Claimed { .. })),
            "the claim is paid: {:?}",
            made.outcomes[0]
        );
        println!(
            "  {deals:>6} deals   {bytes:>6} bytes of proof; an opening is checked in {:>5.1} us, {:.2} times bare BLAKE3 of its bytes; \
             all deals are paid in {:.3} s",
            per_opening.as_secs_f64() * 1e6,
            per_opening.as_secs_f64() / bare.as_secs_f64(),
            paid_in.as_secs_f64()
        );
    }
    println!();
    Ok(())
}
