//! What is known to have rotted: a shard whose file no longer holds what was stored. Reads of it are refused at once, it does not count as held, and
//! storing it again heals it.
//!
//! Whoever reads finds rot, the scrub first of all, and notes it here. What the disk cannot read is refused like rot once the scrub has tried it several
//! times: a bad sector is found that way, and a cable that was loose for a moment is not. That survives a killed process; after a power cut it may have to
//! be found again.

use std::io;

use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use spare_market::keys::PublicKey;
use spare_proofs::tree::Root;

use super::{OpenShard, ShardError, ShardRecord, VOLUME_ID_FILE, VOLUME_ID_KEY, Volume, shard_key};
use crate::direct_io::DirectReader;
use crate::meta::{Batch, MetaError, Table};
use crate::{sets, unix_now_s};

const ROTTEN_KEY: &[u8] = b"rotten shards";
/// Longest reason that is kept.
const WHY_MAX_BYTES: usize = 256;

/// That a shard was found to have rotted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Rot {
    /// The first version.
    V1 {
        /// Unix time in seconds when it was found.
        found_s: u64,
        /// Which bytes, or what else is wrong with the file.
        why: String,
    },
}

/// A shard that has rotted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rotten {
    /// Whose it is.
    pub owner: PublicKey,
    /// Its name.
    pub root: Root,
    /// When it was found, and what.
    pub rot: Rot,
}

impl Volume {
    /// Opens a shard for reading whether or not it is known to have rotted, so that one that is whole after all is noticed.
    ///
    /// # Errors
    /// [`ShardError`]. Rot is noted.
    pub fn open_to_check(
        self: &std::sync::Arc<Self>,
        owner: &PublicKey,
        root: &Root,
    ) -> Result<OpenShard, ShardError> {
        let record: Option<ShardRecord> = self.meta.get(Table::Shards, &shard_key(owner, root))?;
        let record = record.ok_or(ShardError::NotHere)?;
        let ShardRecord::V1 { shard_bytes, .. } = record;
        let opened = match DirectReader::open(&self.path(owner, root), &self.buffers) {
            // Deleted just now.
            Err(_) if !self.meta.has(Table::Shards, &shard_key(owner, root))? => {
                return Err(ShardError::NotHere);
            }
            opened => opened.map_err(damaged),
        };
        let read = opened.and_then(|file| Ok((super::read_tree(&file, shard_bytes, *root)?, file)));
        let (tree, file) = read.inspect_err(|error| self.note_if_rot(owner, root, &record, error))?;
        Ok(OpenShard { file, tree, volume: self.clone(), owner: *owner, record })
    }

    /// What is known about a shard's rot.
    ///
    /// # Errors
    /// When the metadata store fails.
    pub fn rot(&self, owner: &PublicKey, root: &Root) -> Result<Option<Rot>, MetaError> {
        self.meta.get(Table::Rot, &shard_key(owner, root))
    }

    /// How many shards have rotted.
    ///
    /// # Errors
    /// When the metadata store fails.
    pub fn rotten_shards(&self) -> Result<u64, MetaError> {
        Ok(self.meta.counter(Table::State, ROTTEN_KEY)?.max(0) as u64)
    }

    /// Shards that have rotted, at most `limit`, after the one with this key.
    ///
    /// # Errors
    /// When the metadata store fails.
    pub fn rotten(&self, after: Option<&[u8]>, limit: usize) -> Result<Vec<Rotten>, MetaError> {
        let mut found = Vec::new();
        // The key that comes next after another is that with a zero behind it.
        let start = after.map(|key| [key, &[0]].concat());
        self.meta.scan_from::<Rot>(Table::Rot, b"", start.as_deref(), |key, rot| {
            if found.len() == limit {
                return std::ops::ControlFlow::Break(());
            }
            found.extend(sets::split_shard_key(key).map(|(owner, root)| Rotten { owner, root, rot }));
            std::ops::ControlFlow::Continue(())
        })?;
        Ok(found)
    }

    /// Notes that a shard has rotted, if that is what `error` says about the shard as it is on `record`.
    pub(super) fn note_if_rot(
        &self,
        owner: &PublicKey,
        root: &Root,
        record: &ShardRecord,
        error: &ShardError,
    ) {
        let ShardError::Damaged(why) = error else { return };
        // A disk that is gone is another matter: its shards are there again when it is.
        if !self.is_there() {
            tracing::error!(dir = %self.dir.display(), "the folder for shards is not there any more");
            return;
        }
        if let Err(error) = self.note_rot(owner, root, record, why) {
            tracing::error!(%error, "rot could not be noted");
        }
    }

    /// Notes that a shard could not be read time and again, if `error` says that this is for its file and not for the machine. Returns whether it is.
    ///
    /// # Errors
    /// When the metadata store fails.
    pub fn note_unreadable(
        &self,
        owner: &PublicKey,
        root: &Root,
        error: &io::Error,
    ) -> Result<bool, MetaError> {
        if !is_of_the_file(error) || !self.is_there() {
            return Ok(false);
        }
        let record = self.meta.get::<ShardRecord>(Table::Shards, &shard_key(owner, root))?;
        if let Some(record) = record {
            self.note_rot(owner, root, &record, &format!("it cannot be read: {error}"))?;
        }
        Ok(true)
    }

    /// Whether a shard's file or the hashes in it are not there, or cannot be read for a reason of their own. Nothing is noted: this is for who changes
    /// the shard.
    pub(super) fn is_bad(&self, owner: &PublicKey, root: &Root, record: &ShardRecord) -> bool {
        let ShardRecord::V1 { shard_bytes, .. } = record;
        let opened = DirectReader::open(&self.path(owner, root), &self.buffers).map_err(damaged);
        match opened.and_then(|file| super::read_tree(&file, *shard_bytes, *root)) {
            Err(ShardError::Damaged(_)) => true,
            Err(ShardError::Io(error)) => is_of_the_file(&error),
            _ => false,
        }
    }

    fn note_rot(
        &self,
        owner: &PublicKey,
        root: &Root,
        record: &ShardRecord,
        why: &str,
    ) -> Result<(), MetaError> {
        let _one_at_a_time = self.change(root);
        let key = shard_key(owner, root);
        // Deleted, or stored again, since it was opened.
        if self.meta.get::<ShardRecord>(Table::Shards, &key)?.as_ref() != Some(record) {
            return Ok(());
        }
        if self.meta.has(Table::Rot, &key)? {
            return Ok(());
        }
        tracing::error!(%owner, %root, why, "a shard is lost or damaged on the disk; it is refused from now on");
        let mut why = why.to_owned();
        why.truncate(why.floor_char_boundary(WHY_MAX_BYTES));
        let mut batch = Batch::default();
        batch.put(Table::Rot, &key, &Rot::V1 { found_s: unix_now_s(), why });
        self.meta.note(batch.add(Table::State, ROTTEN_KEY, 1))
    }

    /// Forgets the rot of a shard that was read whole.
    ///
    /// # Errors
    /// When the metadata store fails.
    pub fn note_whole(&self, owner: &PublicKey, root: &Root) -> Result<(), MetaError> {
        let _one_at_a_time = self.change(root);
        let mut batch = Batch::default();
        if self.heal(&shard_key(owner, root), &mut batch)? {
            tracing::info!(%owner, %root, "a shard that had rotted is whole again");
            self.meta.note(&batch)?;
        }
        Ok(())
    }

    /// Removes the note about a shard's rot as part of another write, in which nobody else changes the shard. Returns whether there was one.
    pub(super) fn heal(&self, key: &[u8], batch: &mut Batch) -> Result<bool, MetaError> {
        let is_rotten = self.meta.has(Table::Rot, key)?;
        if is_rotten {
            batch.delete(Table::Rot, key).add(Table::State, ROTTEN_KEY, -1);
        }
        Ok(is_rotten)
    }

    /// Whether the folder is still the one that the records are about, and its disk answers: the page cache would, long after.
    fn is_there(&self) -> bool {
        let known: Result<Option<String>, _> = self.meta.get(Table::State, VOLUME_ID_KEY);
        let Ok(Some(known)) = known else { return false };
        let file = DirectReader::open(&self.dir.join(VOLUME_ID_FILE), &self.buffers);
        let there = file.and_then(|file| file.read(0, known.len()));
        there.is_ok_and(|there| there.as_ref() == known.as_bytes())
    }
}

/// What an error of opening or reading a shard's file says about the shard: one that is missing or too short is damaged. Any other is the disk's, which may
/// be there again in a moment.
pub(super) fn damaged(error: io::Error) -> ShardError {
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof => ShardError::Damaged(error.to_string()),
        _ => ShardError::Io(error),
    }
}

/// Whether an error is about the file: a bad sector, a block or a file system that found itself damaged, something else in the file's place. Others are
/// about the machine, which may be out of files or memory. Past the page cache a bad sector is `ENODATA` and not `EIO` (Linux, `block/blk-core.c`).
fn is_of_the_file(error: &io::Error) -> bool {
    let of_the_file = [
        Errno::IO,
        Errno::NODATA,
        Errno::BADMSG,
        Errno::ILSEQ,
        Errno::REMOTEIO,
        Errno::UCLEAN,
        Errno::ISDIR,
        Errno::LOOP,
    ];
    Errno::from_io_error(error).is_some_and(|errno| of_the_file.contains(&errno))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_sector_is_the_files_and_a_machine_out_of_files_is_not() {
        let is_of = |errno: Errno| is_of_the_file(&io::Error::from_raw_os_error(errno.raw_os_error()));
        assert!([Errno::NODATA, Errno::IO, Errno::BADMSG, Errno::ISDIR].into_iter().all(is_of));
        let machines = [Errno::MFILE, Errno::NOMEM, Errno::ACCESS, Errno::NODEV, Errno::STALE];
        assert!(!machines.into_iter().any(is_of));
        assert!(!is_of_the_file(&io::ErrorKind::UnexpectedEof.into()));
    }
}
