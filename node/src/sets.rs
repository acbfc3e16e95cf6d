//! The shards under a deal's newest head, on either side: table `sets`, deal and root -> length.

use std::collections::HashSet;
use std::ops::ControlFlow;

use spare_market::deal::DealId;
use spare_market::keys::PublicKey;
use spare_proofs::sumtree::{Member, SetError, Sum, SumTree};
use spare_proofs::tree::Root;

use crate::meta::{Meta, MetaError, Table};

/// The key of a shard under a deal.
pub fn key(deal: DealId, root: &Root) -> Vec<u8> {
    [&deal.0[..], root.as_bytes()].concat()
}

/// The owner and the root that a key of the tables `shards` and `fresh` is made of.
pub fn split_shard_key(key: &[u8]) -> Option<(PublicKey, Root)> {
    let owner = PublicKey::Ed25519(key.get(1..33)?.try_into().ok()?);
    Some((owner, Root::from_bytes(key.get(33..)?.try_into().ok()?)))
}

/// At most `limit` shards of a deal that come after `after`, in order of root.
///
/// # Errors
/// When the metadata store fails.
pub fn page(meta: &Meta, deal: DealId, after: Option<&Root>, limit: usize) -> Result<Vec<Member>, MetaError> {
    let mut members = Vec::new();
    let start = after.map(|root| key(deal, root));
    meta.scan_from::<u64>(Table::Sets, &deal.0, start.as_deref(), |rest, bytes| {
        if let Ok(root) = rest.try_into().map(Root::from_bytes)
            && Some(&root) != after
        {
            members.push(Member { root, bytes });
        }
        if members.len() < limit { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    Ok(members)
}

/// All shards of a deal, in order of root.
///
/// # Errors
/// When the metadata store fails.
pub fn all(meta: &Meta, deal: DealId) -> Result<Vec<Member>, MetaError> {
    page(meta, deal, None, usize::MAX)
}

/// What a head commits to when `add` comes to a deal's shards and `remove` goes, as [`sum`] gives it.
///
/// # Errors
/// When the metadata store fails.
pub fn commitment(
    meta: &Meta,
    deal: DealId,
    add: &[Member],
    remove: &[Root],
) -> Result<Option<Sum>, MetaError> {
    let remove: HashSet<&Root> = remove.iter().collect();
    let mut members = all(meta, deal)?;
    members.retain(|m| !remove.contains(&m.root));
    members.extend_from_slice(add);
    members.sort_unstable();
    Ok(sum(members))
}

/// What a head commits to that covers `members`: zeros for nothing, else the root of their sum-tree. `None` when they are no set, since they
/// are out of order or one is there twice.
pub fn sum(members: Vec<Member>) -> Option<Sum> {
    match SumTree::new(members) {
        Ok(tree) => Some(tree.sum()),
        Err(SetError::Empty) => Some(Sum { bytes: 0, hash: [0; 32] }),
        Err(_) => None,
    }
}
