//! The ledger's state: accounts, delegates, deals and totals, and the root that commits to all of them.
//!
//! **Root.** Entries fall into 65,536 buckets by the first two bytes of their key's hash. A bucket's hash covers its entries in order
//! of key hash, 256 bucket hashes make a group's hash, 256 group hashes make the root. A change rehashes one bucket, one group and the
//! root, however large the state is.
//!
//! **Blocks.** A block is a [`Draft`] on top of a state that it only reads. What it changes is checked for conserved money, hashed and written
//! to disk before the state takes it over, at a cost that depends on what changes; meanwhile everybody goes on seeing the state before.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use spare_proofs::encode::to_bytes;

use crate::amount::Amount;
use crate::beacon::Beacon;
use crate::claim::{Challenge, Prover};
use crate::deal::{Deal, DealId};
use crate::dispute::Dispute;
use crate::grant::Scope;
use crate::job::JobId;
use crate::keys::PublicKey;

/// Names an entry of the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Key {
    /// An account.
    Account(PublicKey),
    /// A node key that acts for an account.
    Delegate(PublicKey),
    /// A deal that is not closed.
    Deal(DealId),
    /// Sums over everything.
    Totals,
    /// A node that claims.
    Prover(PublicKey),
    /// A challenge of a deal by an account.
    Challenge(DealId, PublicKey),
    /// A dispute about a job.
    Dispute(JobId),
}

/// An entry of the state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Entry {
    /// An account.
    Account(Account),
    /// A node key that acts for an account.
    Delegate(Delegate),
    /// A deal.
    Deal(Box<Deal>),
    /// Sums over everything.
    Totals(Totals),
    /// A node that claims.
    Prover(Prover),
    /// A challenge.
    Challenge(Challenge),
    /// A dispute, open or remembered.
    Dispute(Box<Dispute>),
}

/// An account's money that is in no deal.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// What can be put into deals.
    pub free: Amount,
    /// What deals have paid to it so far, after fees.
    pub earned: Amount,
    /// What its deals have paid to others so far.
    pub spent: Amount,
}

/// A node key that acts for an account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delegate {
    /// The account.
    pub account: PublicKey,
    /// What it may do.
    pub scopes: Vec<Scope>,
    /// Most it may put into deals.
    pub spend_cap: Amount,
    /// What it has put into deals.
    pub spent: Amount,
    /// Unix time in seconds after which it may do nothing.
    pub expires_s: u64,
    /// The grant's number.
    pub serial: u64,
    /// The number of its last transaction.
    pub number: u64,
}

/// Sums over everything.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Credits ever issued. All money in the state together is this much, always.
    pub issued: Amount,
    /// Fees kept by the market.
    pub fees: Amount,
    /// Paid to providers so far, fees included.
    pub paid: Amount,
    /// Taken from providers that fell silent or whose results were wrong, and given to nobody.
    pub burned: Amount,
    /// Periods in which there was a block. Windows count these, so an outage makes them longer.
    pub ticks: u64,
    /// The period of the newest block.
    pub period: u64,
    /// The period of the tick before, or the same one in the first tick.
    pub previous_period: u64,
    /// The beacons of the last ticks, at most [`BEACONS_KEPT`], newest last.
    pub beacons: Vec<Beacon>,
}

/// Beacons of past ticks that are kept, for challenges that are still to be answered.
pub const BEACONS_KEPT: usize = 8;

impl Totals {
    /// The running tick's beacon.
    pub fn beacon(&self) -> Beacon {
        self.beacons.last().copied().unwrap_or_default()
    }

    /// The beacon of `tick`, if that has begun and is not long past.
    pub fn beacon_of(&self, tick: u64) -> Option<Beacon> {
        let ago = usize::try_from(self.ticks.checked_sub(tick)?).ok()?;
        self.beacons.len().checked_sub(ago + 1).map(|index| self.beacons[index])
    }
}

impl Entry {
    fn account(entry: Option<&Self>) -> Account {
        if let Some(Self::Account(account)) = entry { *account } else { Account::default() }
    }

    fn delegate(entry: Option<&Self>) -> Option<&Delegate> {
        if let Some(Self::Delegate(delegate)) = entry { Some(delegate) } else { None }
    }

    fn deal(entry: Option<&Self>) -> Option<&Deal> {
        if let Some(Self::Deal(deal)) = entry { Some(deal) } else { None }
    }

    fn totals(entry: Option<&Self>) -> Totals {
        if let Some(Self::Totals(totals)) = entry { totals.clone() } else { Totals::default() }
    }

    fn prover(entry: Option<&Self>) -> Option<Prover> {
        if let Some(Self::Prover(prover)) = entry { Some(*prover) } else { None }
    }

    fn challenge(entry: Option<&Self>) -> Option<&Challenge> {
        if let Some(Self::Challenge(challenge)) = entry { Some(challenge) } else { None }
    }

    fn dispute(entry: Option<&Self>) -> Option<&Dispute> {
        if let Some(Self::Dispute(dispute)) = entry { Some(dispute) } else { None }
    }

    /// The money that lies in this entry.
    fn money(&self) -> Amount {
        match self {
            Self::Account(account) => account.free,
            Self::Delegate(_) => Amount::ZERO,
            // Both are bounded by what was issued.
            Self::Deal(deal) => Amount(deal.escrow.0 + deal.collateral.0),
            Self::Totals(totals) => Amount(totals.fees.0 + totals.burned.0),
            Self::Prover(_) => Amount::ZERO,
            Self::Challenge(challenge) => challenge.bond,
            Self::Dispute(dispute) => dispute.bond,
        }
    }
}

/// Money that came from nowhere or went nowhere: a bug in the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("money is not conserved: {found} pico-credits are there, {issued} were issued")]
pub struct NotConserved {
    /// What is there.
    pub found: u128,
    /// What was issued.
    pub issued: u128,
}

/// Entries that a block changes, as they are after it; `None` for those that are gone.
pub type Changes = BTreeMap<Key, Option<Entry>>;

/// The state of a ledger.
#[derive(Debug, Clone, Default)]
pub struct State {
    entries: BTreeMap<Key, Entry>,
    /// Derived: which deals an account is a party to.
    parties: BTreeSet<(PublicKey, DealId)>,
    /// Derived: which jobs of a deal are or were disputed.
    disputed: BTreeSet<(DealId, JobId)>,
    /// Derived: about which jobs' open disputes a node is named as verifier.
    verifiers: BTreeSet<(PublicKey, JobId)>,
    tree: RootTree,
}

impl State {
    /// A state of known entries.
    pub fn of(entries: impl IntoIterator<Item = (Key, Entry)>) -> Self {
        let mut state = Self::default();
        let changes: Changes = entries.into_iter().map(|(key, entry)| (key, Some(entry))).collect();
        let tree = state.tree.after(&changes);
        state.take(Change { entries: changes, tree });
        state
    }

    /// All entries in order of key.
    pub fn entries(&self) -> impl Iterator<Item = (&Key, &Entry)> {
        self.entries.iter()
    }

    /// An account; one that never had money is empty.
    pub fn account(&self, account: &PublicKey) -> Account {
        Entry::account(self.entries.get(&Key::Account(*account)))
    }

    /// A registered node key.
    pub fn delegate(&self, node: &PublicKey) -> Option<&Delegate> {
        Entry::delegate(self.entries.get(&Key::Delegate(*node)))
    }

    /// A deal that is not closed.
    pub fn deal(&self, deal: &DealId) -> Option<&Deal> {
        Entry::deal(self.entries.get(&Key::Deal(*deal)))
    }

    /// The deals that `account` is a party to, in order of id.
    pub fn deals_of(&self, account: &PublicKey) -> impl Iterator<Item = (DealId, &Deal)> {
        let range = (*account, DealId([0; 32]))..=(*account, DealId([0xff; 32]));
        self.parties.range(range).filter_map(|(_, id)| Some((*id, self.deal(id)?)))
    }

    /// Sums over everything.
    pub fn totals(&self) -> Totals {
        Entry::totals(self.entries.get(&Key::Totals))
    }

    /// What is remembered of a node that claims.
    pub fn prover(&self, node: &PublicKey) -> Option<Prover> {
        Entry::prover(self.entries.get(&Key::Prover(*node)))
    }

    /// A challenge of `deal` by the account `challenger`.
    pub fn challenge(&self, deal: DealId, challenger: PublicKey) -> Option<&Challenge> {
        Entry::challenge(self.entries.get(&Key::Challenge(deal, challenger)))
    }

    /// All open challenges of `deal`, with who made them.
    pub fn challenges_of(&self, deal: DealId) -> impl Iterator<Item = (PublicKey, &Challenge)> {
        let least = Key::Challenge(deal, PublicKey::Ed25519([0; 32]));
        let most = Key::Challenge(deal, PublicKey::Ed25519([0xff; 32]));
        self.entries.range(least..=most).filter_map(|(key, entry)| match key {
            Key::Challenge(_, challenger) => Some((*challenger, Entry::challenge(Some(entry))?)),
            _ => None,
        })
    }

    /// A dispute about `job`, open or remembered.
    pub fn dispute(&self, job: &JobId) -> Option<&Dispute> {
        Entry::dispute(self.entries.get(&Key::Dispute(*job)))
    }

    /// The disputes about jobs of `deal` that are open or remembered, in order of job.
    pub fn disputes_of(&self, deal: &DealId) -> impl Iterator<Item = (JobId, &Dispute)> {
        let range = (*deal, JobId([0; 32]))..=(*deal, JobId([0xff; 32]));
        self.disputed.range(range).filter_map(|(_, job)| Some((*job, self.dispute(job)?)))
    }

    /// Whether a dispute about a job of `deal` is open: then the deal is not settled.
    pub fn is_disputed(&self, deal: &DealId) -> bool {
        self.disputes_of(deal).any(|(_, dispute)| dispute.is_open())
    }

    /// The open disputes that name `verifier`, in order of job. Whether it can do something about one now says [`Dispute::awaits`].
    pub fn disputes_for(&self, verifier: &PublicKey) -> impl Iterator<Item = (JobId, &Dispute)> {
        let range = (*verifier, JobId([0; 32]))..=(*verifier, JobId([0xff; 32]));
        self.verifiers.range(range).filter_map(|(_, job)| Some((*job, self.dispute(job)?)))
    }

    /// All deals, in order of id.
    pub fn deals(&self) -> impl Iterator<Item = (DealId, &Deal)> {
        let all = Key::Deal(DealId([0; 32]))..=Key::Deal(DealId([0xff; 32]));
        self.entries.range(all).filter_map(|(key, entry)| match key {
            Key::Deal(id) => Some((*id, Entry::deal(Some(entry))?)),
            _ => None,
        })
    }

    /// The root that commits to all entries.
    pub fn root(&self) -> [u8; 32] {
        self.tree.root
    }

    /// Checks that all money there is was issued, over all entries.
    ///
    /// # Errors
    /// [`NotConserved`].
    pub fn check_all(&self) -> Result<(), NotConserved> {
        let found = self.entries.values().map(|e| e.money().0).sum();
        let issued = self.totals().issued.0;
        if found == issued { Ok(()) } else { Err(NotConserved { found, issued }) }
    }

    /// Takes over what a block changes.
    pub fn take(&mut self, change: Change) {
        for (key, entry) in change.entries {
            if let (Key::Deal(id), Some(Entry::Deal(deal))) = (key, entry.as_ref().or(self.entries.get(&key)))
            {
                for party in [deal.terms.client, deal.terms.provider] {
                    match entry {
                        Some(_) => self.parties.insert((party, id)),
                        None => self.parties.remove(&(party, id)),
                    };
                }
            }
            if let (Key::Dispute(job), Some(Entry::Dispute(dispute))) =
                (key, entry.as_ref().or(self.entries.get(&key)))
            {
                let (is_kept, is_open) = (entry.is_some(), entry.is_some() && dispute.is_open());
                set(&mut self.disputed, (dispute.deal, job), is_kept);
                dispute.seats.iter().for_each(|seat| set(&mut self.verifiers, (seat.node, job), is_open));
            }
            match entry {
                Some(entry) => self.entries.insert(key, entry),
                None => self.entries.remove(&key),
            };
        }
        self.tree.take(change.tree);
    }
}

/// Has `set` contain `item`, or not.
fn set<T: Ord>(set: &mut BTreeSet<T>, item: T, is_in: bool) {
    if is_in {
        set.insert(item);
    } else {
        set.remove(&item);
    }
}

/// A block under way: a state, and what is to change in it. Dropping it leaves no trace.
#[derive(Debug)]
pub struct Draft<'a> {
    state: &'a State,
    changed: Changes,
}

impl<'a> Draft<'a> {
    /// A block on top of `state` that has changed nothing yet.
    pub fn new(state: &'a State) -> Self {
        Self { state, changed: Changes::new() }
    }

    fn entry(&self, key: &Key) -> Option<&Entry> {
        self.changed.get(key).map_or_else(|| self.state.entries.get(key), Option::as_ref)
    }

    /// An account; one that never had money is empty.
    pub fn account(&self, account: &PublicKey) -> Account {
        Entry::account(self.entry(&Key::Account(*account)))
    }

    /// A registered node key.
    pub fn delegate(&self, node: &PublicKey) -> Option<&Delegate> {
        Entry::delegate(self.entry(&Key::Delegate(*node)))
    }

    /// A deal that is not closed.
    pub fn deal(&self, deal: &DealId) -> Option<&Deal> {
        Entry::deal(self.entry(&Key::Deal(*deal)))
    }

    /// Sums over everything.
    pub fn totals(&self) -> Totals {
        Entry::totals(self.entry(&Key::Totals))
    }

    /// What is remembered of a node that claims.
    pub fn prover(&self, node: &PublicKey) -> Option<Prover> {
        Entry::prover(self.entry(&Key::Prover(*node)))
    }

    /// A challenge of `deal` by the account `challenger`.
    pub fn challenge(&self, deal: DealId, challenger: PublicKey) -> Option<&Challenge> {
        Entry::challenge(self.entry(&Key::Challenge(deal, challenger)))
    }

    /// The deals that `account` is a party to, in order of id.
    pub fn deals_of(&self, account: &PublicKey) -> Vec<(DealId, &Deal)> {
        let mut ids: BTreeSet<DealId> = self.state.deals_of(account).map(|(id, _)| id).collect();
        ids.extend(
            self.changed.keys().filter_map(|key| if let Key::Deal(id) = key { Some(*id) } else { None }),
        );
        let deals = ids.into_iter().filter_map(|id| Some((id, self.deal(&id)?)));
        deals.filter(|(_, deal)| [deal.terms.client, deal.terms.provider].contains(account)).collect()
    }

    /// A dispute about `job`, open or remembered.
    pub fn dispute(&self, job: &JobId) -> Option<&Dispute> {
        Entry::dispute(self.entry(&Key::Dispute(*job)))
    }

    /// The disputes about jobs of `deal` that are open or remembered, in order of job.
    pub fn disputes_of(&self, deal: &DealId) -> Vec<(JobId, &Dispute)> {
        let mut jobs: BTreeSet<JobId> = self.state.disputes_of(deal).map(|(job, _)| job).collect();
        let all = Key::Dispute(JobId([0; 32]))..=Key::Dispute(JobId([0xff; 32]));
        let changed = self.changed.range(all);
        jobs.extend(
            changed.filter_map(|(key, _)| if let Key::Dispute(job) = key { Some(*job) } else { None }),
        );
        let disputes = jobs.into_iter().filter_map(|job| Some((job, self.dispute(&job)?)));
        disputes.filter(|(_, dispute)| dispute.deal == *deal).collect()
    }

    /// Sets an entry.
    pub fn put(&mut self, key: Key, entry: Entry) {
        self.changed.insert(key, Some(entry));
    }

    /// Removes an entry.
    pub fn remove(&mut self, key: Key) {
        self.changed.insert(key, None);
    }

    /// What this block changes, once it is checked that it neither makes nor loses money.
    ///
    /// # Errors
    /// [`NotConserved`].
    pub fn finish(self) -> Result<Change, NotConserved> {
        let sum = |entries: &mut dyn Iterator<Item = &Entry>| entries.map(|e| e.money().0).sum::<u128>();
        let old = sum(&mut self.changed.keys().filter_map(|key| self.state.entries.get(key)));
        let found = sum(&mut self.changed.values().flatten());
        let issued = old + (self.totals().issued.0 - self.state.totals().issued.0);
        if found != issued {
            return Err(NotConserved { found, issued });
        }
        let tree = self.state.tree.after(&self.changed);
        Ok(Change { entries: self.changed, tree })
    }
}

/// What a block changes in a state. It fits only the state that it was made for.
#[derive(Debug)]
pub struct Change {
    entries: Changes,
    tree: TreeChange,
}

impl Change {
    /// The entries.
    pub fn entries(&self) -> &Changes {
        &self.entries
    }

    /// The root of the state after it.
    pub fn root(&self) -> [u8; 32] {
        self.tree.root
    }
}

type Hash = [u8; 32];

/// Two levels of hashes over buckets of entries.
#[derive(Debug, Clone)]
struct RootTree {
    /// For each bucket that has entries, key hash -> entry hash.
    buckets: BTreeMap<u16, BTreeMap<Hash, Hash>>,
    bucket_hashes: BTreeMap<u16, Hash>,
    group_hashes: BTreeMap<u8, Hash>,
    root: Hash,
}

/// What a block changes in a [`RootTree`]: `None` stands for what is gone.
#[derive(Debug)]
struct TreeChange {
    buckets: BTreeMap<u16, BTreeMap<Hash, Option<Hash>>>,
    bucket_hashes: BTreeMap<u16, Option<Hash>>,
    group_hashes: BTreeMap<u8, Option<Hash>>,
    root: Hash,
}

const EMPTY: Hash = [0; 32];

impl Default for RootTree {
    fn default() -> Self {
        let root = root_of(|_| None);
        Self { buckets: BTreeMap::new(), bucket_hashes: BTreeMap::new(), group_hashes: BTreeMap::new(), root }
    }
}

fn root_of<'a>(group_hash: impl Fn(u8) -> Option<&'a Hash>) -> Hash {
    let mut hasher = blake3::Hasher::new_derive_key("spare 2026 state root v1");
    for group in 0..=255 {
        hasher.update(group_hash(group).unwrap_or(&EMPTY));
    }
    hasher.finalize().into()
}

fn entry_hash(key_hash: &Hash, entry: &Entry) -> Hash {
    let mut hasher = blake3::Hasher::new_derive_key("spare 2026 state entry v1");
    hasher.update(key_hash).update(&to_bytes(entry));
    hasher.finalize().into()
}

/// What `key` is in `new`, which may say that it is gone, or else in `old`.
fn overlaid<'a, K: Ord>(
    old: &'a BTreeMap<K, Hash>,
    new: &'a BTreeMap<K, Option<Hash>>,
    key: &K,
) -> Option<&'a Hash> {
    new.get(key).map_or_else(|| old.get(key), Option::as_ref)
}

impl RootTree {
    /// What changes when entries do.
    fn after(&self, changes: &Changes) -> TreeChange {
        let mut buckets: BTreeMap<u16, BTreeMap<Hash, Option<Hash>>> = BTreeMap::new();
        for (key, entry) in changes {
            let key_hash = blake3::derive_key("spare 2026 state key v1", &to_bytes(key));
            let bucket = u16::from_be_bytes([key_hash[0], key_hash[1]]);
            let entry_hash = entry.as_ref().map(|entry| entry_hash(&key_hash, entry));
            buckets.entry(bucket).or_default().insert(key_hash, entry_hash);
        }
        let bucket_hashes: BTreeMap<u16, Option<Hash>> =
            buckets.iter().map(|(bucket, changed)| (*bucket, self.bucket_hash(*bucket, changed))).collect();
        let groups: BTreeSet<u8> = bucket_hashes.keys().map(|bucket| (bucket >> 8) as u8).collect();
        let group_hashes: BTreeMap<u8, Option<Hash>> =
            groups.into_iter().map(|group| (group, self.group_hash(group, &bucket_hashes))).collect();
        let root = root_of(|group| overlaid(&self.group_hashes, &group_hashes, &group));
        TreeChange { buckets, bucket_hashes, group_hashes, root }
    }

    fn bucket_hash(&self, bucket: u16, changed: &BTreeMap<Hash, Option<Hash>>) -> Option<Hash> {
        let mut entries: BTreeMap<&Hash, &Hash> = self.buckets.get(&bucket).into_iter().flatten().collect();
        for (key_hash, entry_hash) in changed {
            match entry_hash {
                Some(hash) => entries.insert(key_hash, hash),
                None => entries.remove(key_hash),
            };
        }
        // What was emptied is like what never was: the root depends on the entries alone and not on how they came to be.
        if entries.is_empty() {
            return None;
        }
        let mut hasher = blake3::Hasher::new_derive_key("spare 2026 state bucket v1");
        for hash in entries.into_values() {
            hasher.update(hash);
        }
        Some(hasher.finalize().into())
    }

    fn group_hash(&self, group: u8, changed: &BTreeMap<u16, Option<Hash>>) -> Option<Hash> {
        let buckets = u16::from(group) << 8..=u16::from(group) << 8 | 0xff;
        let hashes = buckets.map(|bucket| overlaid(&self.bucket_hashes, changed, &bucket));
        let mut hasher = blake3::Hasher::new_derive_key("spare 2026 state group v1");
        let mut is_empty = true;
        for hash in hashes {
            is_empty &= hash.is_none();
            hasher.update(hash.unwrap_or(&EMPTY));
        }
        (!is_empty).then(|| hasher.finalize().into())
    }

    fn take(&mut self, change: TreeChange) {
        for (bucket, changed) in change.buckets {
            let entries = self.buckets.entry(bucket).or_default();
            update(entries, changed);
            if entries.is_empty() {
                self.buckets.remove(&bucket);
            }
        }
        update(&mut self.bucket_hashes, change.bucket_hashes);
        update(&mut self.group_hashes, change.group_hashes);
        self.root = change.root;
    }
}

fn update<K: Ord>(map: &mut BTreeMap<K, Hash>, changes: BTreeMap<K, Option<Hash>>) {
    for (key, hash) in changes {
        match hash {
            Some(hash) => map.insert(key, hash),
            None => map.remove(&key),
        };
    }
}
