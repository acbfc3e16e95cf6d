//! The ledger's state: accounts, delegates, deals and totals, and the root that commits to all of them.
//!
//! **Root.** Entries fall into 65,536 buckets by the first two bytes of their key's hash. A bucket's hash covers its entries in order
//! of key hash, 256 bucket hashes make a group's hash, 256 group hashes make the root. A change rehashes one bucket, one group and the
//! root, however large the state is. What was changed since the last block is remembered with its old value, so that a block can be
//! undone, written to disk and checked for conserved money at a cost that depends on what changed.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use spare_proofs::encode::to_bytes;

use crate::amount::Amount;
use crate::deal::{Deal, DealId};
use crate::grant::Scope;
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
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Credits ever issued. All money in the state together is this much, always.
    pub issued: Amount,
    /// Fees kept by the market.
    pub fees: Amount,
    /// Paid to providers so far, fees included.
    pub paid: Amount,
    /// Periods in which there was a block. Windows count these, so an outage makes them longer.
    pub ticks: u64,
    /// The period of the newest block.
    pub period: u64,
}

impl Entry {
    /// The money that lies in this entry.
    fn money(&self) -> Amount {
        match self {
            Self::Account(account) => account.free,
            Self::Delegate(_) => Amount::ZERO,
            // Both are bounded by what was issued.
            Self::Deal(deal) => Amount(deal.escrow.0 + deal.terms.collateral.0),
            Self::Totals(totals) => totals.fees,
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

/// The state of a ledger.
#[derive(Debug, Clone, Default)]
pub struct State {
    entries: BTreeMap<Key, Entry>,
    /// What entries were before the open block.
    before: BTreeMap<Key, Option<Entry>>,
    /// Derived: which deals an account is a party to.
    parties: BTreeSet<(PublicKey, DealId)>,
    tree: RootTree,
}

impl State {
    /// A state of known entries.
    pub fn of(entries: impl IntoIterator<Item = (Key, Entry)>) -> Self {
        let mut state = Self::default();
        entries.into_iter().for_each(|(key, entry)| state.write(key, Some(entry)));
        state.before.clear();
        state
    }

    /// All entries in order of key.
    pub fn entries(&self) -> impl Iterator<Item = (&Key, &Entry)> {
        self.entries.iter()
    }

    /// An account; one that never had money is empty.
    pub fn account(&self, account: &PublicKey) -> Account {
        match self.entries.get(&Key::Account(*account)) {
            Some(Entry::Account(account)) => *account,
            _ => Account::default(),
        }
    }

    /// A registered node key.
    pub fn delegate(&self, node: &PublicKey) -> Option<&Delegate> {
        match self.entries.get(&Key::Delegate(*node)) {
            Some(Entry::Delegate(delegate)) => Some(delegate),
            _ => None,
        }
    }

    /// A deal that is not closed.
    pub fn deal(&self, deal: &DealId) -> Option<&Deal> {
        match self.entries.get(&Key::Deal(*deal)) {
            Some(Entry::Deal(deal)) => Some(deal),
            _ => None,
        }
    }

    /// The deals that `account` is a party to, in order of id.
    pub fn deals_of(&self, account: &PublicKey) -> impl Iterator<Item = (DealId, &Deal)> {
        let range = (*account, DealId([0; 32]))..=(*account, DealId([0xff; 32]));
        self.parties.range(range).filter_map(|(_, id)| Some((*id, self.deal(id)?)))
    }

    /// Sums over everything.
    pub fn totals(&self) -> Totals {
        match self.entries.get(&Key::Totals) {
            Some(Entry::Totals(totals)) => *totals,
            _ => Totals::default(),
        }
    }

    /// Sets an entry.
    pub fn put(&mut self, key: Key, entry: Entry) {
        self.remember(key);
        self.write(key, Some(entry));
    }

    /// Removes an entry.
    pub fn remove(&mut self, key: Key) {
        self.remember(key);
        self.write(key, None);
    }

    fn remember(&mut self, key: Key) {
        self.before.entry(key).or_insert_with(|| self.entries.get(&key).cloned());
    }

    fn write(&mut self, key: Key, entry: Option<Entry>) {
        self.tree.set(&key, entry.as_ref());
        if let (Key::Deal(id), Some(Entry::Deal(deal))) = (key, entry.as_ref().or(self.entries.get(&key))) {
            for party in [deal.terms.client, deal.terms.provider] {
                match entry {
                    Some(_) => self.parties.insert((party, id)),
                    None => self.parties.remove(&(party, id)),
                };
            }
        }
        match entry {
            Some(entry) => self.entries.insert(key, entry),
            None => self.entries.remove(&key),
        };
    }

    /// The root that commits to all entries, as it was when [`Self::root`] last computed it.
    pub fn committed_root(&self) -> [u8; 32] {
        self.tree.of_groups()
    }

    /// The root that commits to all entries.
    pub fn root(&mut self) -> [u8; 32] {
        self.tree.root()
    }

    /// Checks that what changed since the last block neither made nor lost money.
    ///
    /// # Errors
    /// [`NotConserved`].
    pub fn check_changes(&self) -> Result<(), NotConserved> {
        let sum = |entries: &mut dyn Iterator<Item = &Entry>| entries.map(|e| e.money().0).sum::<u128>();
        let old = sum(&mut self.before.values().flatten());
        let new = sum(&mut self.before.keys().filter_map(|key| self.entries.get(key)));
        let issued_before = match self.before.get(&Key::Totals) {
            Some(Some(Entry::Totals(totals))) => totals.issued.0,
            Some(_) => 0,
            None => self.totals().issued.0,
        };
        let (found, issued) = (new, old + (self.totals().issued.0 - issued_before));
        if found == issued { Ok(()) } else { Err(NotConserved { found, issued }) }
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

    /// Ends the open block: returns what changed, with the new entries.
    pub fn take_changes(&mut self) -> Vec<(Key, Option<Entry>)> {
        let changed = std::mem::take(&mut self.before);
        changed.into_keys().map(|key| (key, self.entries.get(&key).cloned())).collect()
    }

    /// Undoes the open block.
    pub fn undo(&mut self) {
        for (key, entry) in std::mem::take(&mut self.before) {
            self.write(key, entry);
        }
        self.root();
    }
}

/// Two levels of hashes over buckets of entries.
#[derive(Debug, Clone, Default)]
struct RootTree {
    /// For each bucket that has entries, key hash -> entry hash.
    buckets: BTreeMap<u16, BTreeMap<[u8; 32], [u8; 32]>>,
    bucket_hashes: BTreeMap<u16, [u8; 32]>,
    group_hashes: BTreeMap<u8, [u8; 32]>,
    changed: BTreeSet<u16>,
}

const EMPTY: [u8; 32] = [0; 32];

impl RootTree {
    fn set(&mut self, key: &Key, entry: Option<&Entry>) {
        let key = to_bytes(key);
        let key_hash = blake3::derive_key("spare 2026 state key v1", &key);
        let bucket = u16::from_be_bytes([key_hash[0], key_hash[1]]);
        let entries = self.buckets.entry(bucket).or_default();
        match entry {
            Some(entry) => {
                let mut hasher = blake3::Hasher::new_derive_key("spare 2026 state entry v1");
                hasher.update(&key_hash).update(&to_bytes(entry));
                entries.insert(key_hash, hasher.finalize().into());
            }
            None => {
                entries.remove(&key_hash);
            }
        }
        if entries.is_empty() {
            self.buckets.remove(&bucket);
        }
        self.changed.insert(bucket);
    }

    fn root(&mut self) -> [u8; 32] {
        let changed = std::mem::take(&mut self.changed);
        for bucket in &changed {
            match self.buckets.get(bucket) {
                None => self.bucket_hashes.remove(bucket),
                Some(entries) => {
                    let mut hasher = blake3::Hasher::new_derive_key("spare 2026 state bucket v1");
                    for hash in entries.values() {
                        hasher.update(hash);
                    }
                    self.bucket_hashes.insert(*bucket, hasher.finalize().into())
                }
            };
        }
        for group in changed.iter().map(|bucket| (bucket >> 8) as u8).collect::<BTreeSet<_>>() {
            let buckets = u16::from(group) << 8..=u16::from(group) << 8 | 0xff;
            // An emptied group is like one that never was: the root depends on the entries alone and not on how they came to be.
            if self.bucket_hashes.range(buckets.clone()).next().is_none() {
                self.group_hashes.remove(&group);
                continue;
            }
            let mut hasher = blake3::Hasher::new_derive_key("spare 2026 state group v1");
            for bucket in buckets {
                hasher.update(self.bucket_hashes.get(&bucket).unwrap_or(&EMPTY));
            }
            self.group_hashes.insert(group, hasher.finalize().into());
        }
        self.of_groups()
    }

    fn of_groups(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_derive_key("spare 2026 state root v1");
        for group in 0..=255u8 {
            hasher.update(self.group_hashes.get(&group).unwrap_or(&EMPTY));
        }
        hasher.finalize().into()
    }
}
