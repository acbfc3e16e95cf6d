//! The journal of an unfinished put: what is placed already, so that a repeated put goes on with it.

use std::ops::ControlFlow;

use serde::{Deserialize, Serialize};
use spare_market::keys::PublicKey;
use spare_proofs::cipher::SegmentKey;
use spare_proofs::geometry::Geometry;
use spare_proofs::tree::Root;

use super::{PutError, PutOptions};
use crate::catalog::{Catalog, Garbage};
use crate::client::Client;
use crate::meta::{Batch, MetaError, Table};

/// An unfinished put.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PutJournal {
    pub(super) blob_id: [u8; 16],
    pub(super) geometry: Geometry,
}

/// What is placed of one segment of an unfinished put.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SegmentJournal {
    /// Counts changed plaintexts. It goes into the key, so that shards given up for deletion never come back into use.
    pub(super) attempt: u32,
    /// Recognises unchanged plaintext without keeping its key.
    pub(super) key_hash: [u8; 32],
    /// For each shard, who holds it and its root.
    pub(super) placed: Vec<Option<(PublicKey, Root)>>,
    /// Shards whose provider did not confirm them when the put was resumed. They were placed again, and may still lie there.
    pub(super) lost: Vec<(PublicKey, Root)>,
}

impl SegmentJournal {
    pub(super) fn new(attempt: u32, key: &SegmentKey, shards: usize) -> Self {
        Self { attempt, key_hash: Self::hash_of(key), placed: vec![None; shards], lost: Vec::new() }
    }

    pub(super) fn hash_of(key: &SegmentKey) -> [u8; 32] {
        blake3::derive_key("spare 2026 journalled segment v1", &spare_proofs::encode::to_bytes(key))
    }

    /// What is to be deleted once the put is done: everything placed when no recipe names the segment, else only what was lost and not
    /// placed there again.
    pub(super) fn garbage(&self, is_used: bool) -> Vec<Garbage> {
        let placed = || self.placed.iter().flatten();
        let lost = self.lost.iter().filter(|lost| !placed().any(|p| p == *lost));
        let unused = placed().filter(|_| !is_used);
        lost.chain(unused).map(|(node, root)| Garbage { node: *node, root: *root }).collect()
    }
}

/// The names of puts that were cut short.
///
/// # Errors
/// When the metadata store fails.
pub fn unfinished(client: &Client) -> Result<Vec<String>, MetaError> {
    let mut names = Vec::new();
    client.catalog.meta().keys(Table::Puts, |key| {
        // Names have no control characters; the keys of segments and of recipes' blobs do.
        if !key.iter().any(|byte| *byte < b' ') {
            names.push(String::from_utf8_lossy(key).into_owned());
        }
    })?;
    Ok(names)
}

/// Finds the journal of an unfinished put of this name and code, or starts one. One of another code is given up.
pub(super) fn begin_or_resume(client: &Client, options: &PutOptions) -> Result<[u8; 16], PutError> {
    let meta = client.catalog.meta();
    let key = options.name.as_bytes();
    let unfinished: Option<PutJournal> = meta.get(Table::Puts, key)?;
    if let Some(journal) = &unfinished {
        if journal.geometry == options.geometry {
            return Ok(journal.blob_id);
        }
        let mut batch = Batch::default();
        clear_journal(client, key, 0, &mut batch)?;
        clear_journal(client, &recipe_journal_key(key), 0, &mut batch)?;
        meta.commit(&batch)?;
    }
    let journal = PutJournal { blob_id: rand::random(), geometry: options.geometry };
    // Not synced: if a power cut takes it, the put begins anew under another id, and what was placed goes with no head to cover it.
    meta.note(Batch::default().put(Table::Puts, key, &journal))?;
    Ok(journal.blob_id)
}

/// Forgets an unfinished put that has placed nothing: there is nothing to go on with.
pub(super) fn forget_if_empty(client: &Client, journal_key: &[u8]) -> Result<(), MetaError> {
    let meta = client.catalog.meta();
    let mut is_empty = true;
    meta.scan::<SegmentJournal>(Table::Puts, &[journal_key, b"\0"].concat(), |_, segment| {
        is_empty &= segment.placed.iter().all(Option::is_none) && segment.lost.is_empty();
        if is_empty { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    if is_empty { meta.note(Batch::default().delete(Table::Puts, journal_key)) } else { Ok(()) }
}

pub(super) fn segment_key(journal_key: &[u8], segment: u64) -> Vec<u8> {
    // Names have no control characters, so no name continues into another's segments.
    [journal_key, b"\0", &segment.to_be_bytes()].concat()
}

/// Clears the journal of a put. Segments from number `used` on, which no recipe names, become garbage.
pub(super) fn clear_journal(
    client: &Client,
    journal_key: &[u8],
    used: u64,
    batch: &mut Batch,
) -> Result<(), MetaError> {
    batch.delete(Table::Puts, journal_key);
    let prefix = [journal_key, b"\0"].concat();
    for (rest, segment) in client.catalog.meta().all::<SegmentJournal>(Table::Puts, &prefix)? {
        let number = rest.as_slice().try_into().map_or(0, u64::from_be_bytes);
        Catalog::add_garbage(batch, &segment.garbage(number < used));
        batch.delete(Table::Puts, &[&prefix[..], &rest].concat());
    }
    Ok(())
}

/// The journal key of the blob that holds a put's recipe.
pub(super) fn recipe_journal_key(journal_key: &[u8]) -> Vec<u8> {
    [journal_key, b"\x01recipe"].concat()
}
