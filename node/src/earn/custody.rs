//! What is held for whom: a shard is *fresh* when it is stored, *covered* once a head has it, and fresh again, to be deleted, when a head removes it.
//!
//! **Invariant:** nothing is deleted that the newest head of any deal of its owner covers, nor what a head covers that the ledger can ask about.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use spare_market::deal::DealId;
use spare_market::keys::PublicKey;
use spare_proofs::sumtree::Member;
use spare_proofs::tree::Root;

use super::{EarnError, Earner, internal};
use crate::frames::{Refusal, RefusalCode};
use crate::limits::FRESH_LIFE_S;
use crate::meta::{Batch, MetaError, Table};
use crate::shards::{Fresh, ShardError, ShardRecord, shard_key};
use crate::{sets, unix_now_s};

/// What a head changes.
#[derive(Default)]
pub(super) struct Changed {
    pub(super) add: Vec<Member>,
    /// Bytes of those that no head covered before.
    pub(super) fresh_bytes: u64,
    /// Bytes of what it removes and no other deal covers.
    pub(super) released_bytes: u64,
}

impl Earner {
    /// Counts a shard that was stored.
    pub fn stored(&self, owner: &PublicKey, shard_bytes: u64) {
        *self.fresh_bytes.lock().expect("no holder panics").entry(*owner).or_default() += shard_bytes;
    }

    pub(super) fn no_longer_fresh(&self, owner: &PublicKey, bytes: u64) {
        let mut fresh = self.fresh_bytes.lock().expect("no holder panics");
        if let Some(known) = fresh.get_mut(owner) {
            *known = known.saturating_sub(bytes);
        }
    }

    /// Checks that what a head adds is here, and what it removes is covered, and writes both to `batch`.
    pub(super) fn changed_set(
        &self,
        owner: &PublicKey,
        id: DealId,
        add: &[Root],
        remove: &[Root],
        batch: &mut Batch,
    ) -> Result<Changed, Refusal> {
        let bad = |why: String| Refusal::new(RefusalCode::BadHead, why);
        let mut changed = Changed::default();
        for root in add {
            if self.meta.has(Table::Sets, &sets::key(id, root)).map_err(internal)? {
                return Err(bad(format!("shard {root} is covered already")));
            }
            let record = self.volume.record(owner, root).map_err(internal)?;
            let ShardRecord::V1 { shard_bytes, .. } = record
                .ok_or_else(|| Refusal::new(RefusalCode::NotHere, format!("shard {root} is not here")))?;
            changed.add.push(Member { root: *root, bytes: shard_bytes });
            if self.meta.has(Table::Fresh, &shard_key(owner, root)).map_err(internal)? {
                changed.fresh_bytes += shard_bytes;
            }
            batch.put(Table::Sets, &sets::key(id, root), &shard_bytes);
            batch.delete(Table::Fresh, &shard_key(owner, root));
        }
        for root in remove {
            let known: Option<u64> = self.meta.get(Table::Sets, &sets::key(id, root)).map_err(internal)?;
            let shard_bytes = known.ok_or_else(|| bad(format!("shard {root} is not covered")))?;
            batch.delete(Table::Sets, &sets::key(id, root));
            changed.released_bytes += self.release(owner, root, shard_bytes, id, batch).map_err(internal)?;
        }
        Ok(changed)
    }

    /// A shard that deal `id` no longer covers may go, unless another deal of its owner covers it. Returns the bytes that may go.
    pub(super) fn release(
        &self,
        owner: &PublicKey,
        root: &Root,
        shard_bytes: u64,
        id: DealId,
        batch: &mut Batch,
    ) -> Result<u64, MetaError> {
        let others = self.chain.view(|l| l.state().deals_of(owner).map(|(id, _)| id).collect::<Vec<_>>());
        for other in others.unwrap_or_default().into_iter().filter(|other| *other != id) {
            if self.meta.has(Table::Sets, &sets::key(other, root))? {
                return Ok(0);
            }
        }
        batch.put(Table::Fresh, &shard_key(owner, root), &Fresh::V1 { since_s: 0, shard_bytes });
        Ok(shard_bytes)
    }

    pub(super) fn is_covered(&self, owner: &PublicKey, root: &Root) -> Result<bool, MetaError> {
        for (id, _) in self.of_owner(owner) {
            if self.meta.has(Table::Sets, &sets::key(id, root))? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Deletes what heads removed, and what was stored long ago and never came under one.
    pub(super) fn sweep(&self) -> Result<(), EarnError> {
        let until_s = unix_now_s().saturating_sub(FRESH_LIFE_S);
        let mut due: BTreeMap<PublicKey, Vec<Root>> = BTreeMap::new();
        self.meta.scan::<Fresh>(Table::Fresh, b"", |key, Fresh::V1 { since_s, .. }| {
            if let Some((owner, root)) = sets::split_shard_key(key).filter(|_| since_s <= until_s) {
                due.entry(owner).or_default().push(root);
            }
            ControlFlow::Continue(())
        })?;
        for (owner, roots) in due {
            self.delete(&owner, &roots, until_s)?;
        }
        Ok(())
    }

    /// Deletes shards of `owner` that no head covers, since unix time `until_s` or longer. Returns how many and the disk given back.
    ///
    /// # Errors
    /// When the disk or the metadata store fails.
    pub fn delete(&self, owner: &PublicKey, roots: &[Root], until_s: u64) -> Result<(u32, u64), ShardError> {
        let (mut shards, mut freed) = (0, 0);
        for root in roots {
            let _owner = self.owner_lock(owner);
            let fresh: Option<Fresh> = self.meta.get(Table::Fresh, &shard_key(owner, root))?;
            let Some(Fresh::V1 { shard_bytes, .. }) = fresh else { continue };
            if self.is_anchored(owner, root)? {
                // The ledger can still ask about it.
                continue;
            }
            if self.is_covered(owner, root)? {
                // It was stored again while a head came to cover it.
                self.meta.note(Batch::default().delete(Table::Fresh, &shard_key(owner, root)))?;
                self.no_longer_fresh(owner, shard_bytes);
                continue;
            }
            let bytes = self.volume.delete(owner, root, until_s)?;
            if bytes > 0 {
                self.no_longer_fresh(owner, shard_bytes);
                shards += 1;
                freed += bytes;
            }
        }
        Ok((shards, freed))
    }

    /// Has shards that a head removed deleted in the background.
    pub fn delete_soon(self: Arc<Self>, owner: PublicKey, removed: Vec<Root>) {
        if removed.is_empty() {
            return;
        }
        tokio::task::spawn_blocking(move || {
            if let Err(error) = self.delete(&owner, &removed, 0) {
                tracing::error!(%error, "shards that a head removed could not be deleted");
            }
        });
    }
}
